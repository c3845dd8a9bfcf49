//! What the tests of a running node share: a daemon of one's own in a scratch directory, an LMTP
//! client that says exactly what it is told to, a node client, waiting for events with a bound.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "helpers of tests are tests, and a bound on waiting needs a clock"
)]
#![expect(dead_code, reason = "each test file uses a part of it")]

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringpost_daemon::client::{Address, Client, ClientError, Deadline, Patience};
use ringpost_netproto::id::{MailboxId, Uid};
use ringpost_netproto::message::MailboxRef;
use ringpost_netproto::message::deliver::{DeliverRecipient, DeliverRequest, RecipientReply};
use ringpost_netproto::message::fetch::FetchRequest;
use ringpost_netproto::message::list::{ListPage, ListRequest};
use ringpost_netproto::message::mailbox::MailboxStatus;
use ringpost_netproto::version::Role;

/// Nothing a test waits for takes longer, even on two busy cores.
pub(crate) const BOUND: Duration = Duration::from_mins(1);

/// Keeps the logs small, so that a start takes a moment.
const SMALL: [&str; 2] = ["log_bytes_per_core=16 MiB", "memory_per_core=64 MiB"];

/// A directory for one test: store, sockets, list of users.
#[derive(Debug)]
pub(crate) struct Scratch(tempfile::TempDir);

impl Scratch {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `--data` of its daemons.
    pub(crate) fn data(&self) -> PathBuf {
        self.path("data")
    }

    /// A daemon for which any user exists.
    pub(crate) fn start(&self) -> Daemon {
        self.start_with(&[])
    }

    /// The same with further settings.
    pub(crate) fn start_with(&self, settings: &[&str]) -> Daemon {
        let mut all = vec!["accounts.accept=any"];
        all.extend(settings);
        Daemon::start(self, &all)
            .unwrap_or_else(|words| panic!("the daemon did not start: {words}"))
    }

    /// Runs `ringpostd` to its end: exit code and standard error.
    pub(crate) fn run(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_ringpostd"))
            .current_dir(self.0.path())
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), words)
    }
}

/// A running daemon. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    pub(crate) node: PathBuf,
    pub(crate) lmtp: PathBuf,
    pub(crate) admin: PathBuf,
    log: PathBuf,
}

impl Daemon {
    /// Starts `ringpostd` and waits until it serves; its words if it does not.
    pub(crate) fn start(scratch: &Scratch, settings: &[&str]) -> Result<Self, String> {
        Self::start_in(scratch, settings, &[])
    }

    /// The same with more in its environment.
    pub(crate) fn start_in(
        scratch: &Scratch,
        settings: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<Self, String> {
        let log = scratch.path("log");
        let notify = scratch.path("notify");
        if notify.exists() {
            fs::remove_file(&notify).unwrap();
        }
        let ready = UnixDatagram::bind(&notify).unwrap();
        ready.set_nonblocking(true).unwrap();
        let sockets = ["node", "lmtp", "admin"].map(|name| scratch.path(name));
        let [node, lmtp, admin] = sockets;
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringpostd"));
        command
            .arg("--data")
            .arg(scratch.data())
            .env("NOTIFY_SOCKET", &notify)
            .envs(environment.iter().copied());
        for (key, path) in [("socket", &node), ("lmtp", &lmtp), ("admin", &admin)] {
            command
                .arg("--set")
                .arg(format!("listen.{key}=unix:{}", path.display()));
        }
        for setting in SMALL.iter().chain(settings) {
            command.args(["--set", setting]);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn();
        let mut daemon = Self {
            child: child.unwrap(),
            node,
            lmtp,
            admin,
            log,
        };
        let begun = Instant::now();
        while begun.elapsed() < BOUND {
            let mut fds = [PollFd::new(ready.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::from(50_u8)).unwrap();
            let mut said = [0; 4096];
            while let Ok(count) = ready.recv(&mut said) {
                if said
                    .get(..count)
                    .unwrap_or_default()
                    .split(|byte| *byte == b'\n')
                    .any(|line| line == b"READY=1")
                {
                    return Ok(daemon);
                }
            }
            if daemon.child.try_wait().unwrap().is_some() {
                return Err(daemon.words());
            }
        }
        Err(format!("not ready within {BOUND:?}: {}", daemon.words()))
    }

    /// What it logged.
    pub(crate) fn words(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// SIGTERM, and its end.
    pub(crate) fn stop(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    /// SIGKILL, and its end.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Its end, within [`BOUND`].
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        until("the daemon's end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// An LMTP connection that has said LHLO.
    pub(crate) fn lmtp(&self) -> Lmtp {
        let mut lmtp = Lmtp::over(UnixStream::connect(&self.lmtp).unwrap());
        assert!(lmtp.reply().starts_with("220 "));
        assert!(lmtp.say("LHLO test").starts_with("250 "));
        lmtp
    }

    /// A connection of the node protocol.
    pub(crate) fn client(&self) -> NodeClient {
        NodeClient::connect(&Address::Unix(self.node.clone())).unwrap()
    }

    /// The body of an admin page, and its status line.
    pub(crate) fn page(&self, path: &str) -> (String, String) {
        let mut stream = UnixStream::connect(&self.admin).unwrap();
        stream.set_read_timeout(Some(BOUND)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }

    /// A metric's value; labels are part of the name.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.page("/metrics");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in\n{text}"))
            .parse()
            .unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
    }
}

/// Waits until something holds.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < BOUND, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A byte stream of either kind.
pub(crate) trait Wire: Read + Write + Send {
    fn end_writing(&self);
}

impl Wire for UnixStream {
    fn end_writing(&self) {
        self.shutdown(std::net::Shutdown::Write).unwrap();
    }
}

impl Wire for TcpStream {
    fn end_writing(&self) {
        self.shutdown(std::net::Shutdown::Write).unwrap();
    }
}

/// An LMTP client. What it sends is what the test says, byte for byte.
pub(crate) struct Lmtp {
    wire: BufReader<Box<dyn Wire>>,
}

impl Lmtp {
    pub(crate) fn over_tcp(address: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(BOUND)).unwrap();
        Self {
            wire: BufReader::new(Box::new(stream)),
        }
    }

    pub(crate) fn over(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(BOUND)).unwrap();
        Self {
            wire: BufReader::new(Box::new(stream)),
        }
    }

    /// The last line of the next reply.
    pub(crate) fn reply(&mut self) -> String {
        loop {
            let mut line = String::new();
            self.wire.read_line(&mut line).unwrap();
            if line.as_bytes().get(3) != Some(&b'-') {
                return line.trim_end().to_owned();
            }
        }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.wire.get_mut().write_all(bytes).unwrap();
    }

    /// As [`send`](Self::send), for a server that may be gone.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.wire.get_mut().write_all(bytes)
    }

    pub(crate) fn say(&mut self, command: &str) -> String {
        self.send(format!("{command}\r\n").as_bytes());
        self.reply()
    }

    pub(crate) fn end_writing(&mut self) {
        self.wire.get_ref().end_writing();
    }

    /// What the server says until it closes.
    pub(crate) fn rest(&mut self) -> String {
        let mut text = String::new();
        self.wire.read_to_string(&mut text).unwrap();
        text
    }

    /// MAIL and RCPTs; the replies to the RCPTs.
    pub(crate) fn envelope(&mut self, recipients: &[&str]) -> Vec<String> {
        assert!(
            self.say("MAIL FROM:<sender@example.test>")
                .starts_with("250 ")
        );
        recipients
            .iter()
            .map(|user| self.say(&format!("RCPT TO:<{user}>")))
            .collect()
    }

    /// A whole message with DATA; one reply per recipient.
    pub(crate) fn deliver(&mut self, recipients: &[&str], message: &[u8]) -> Vec<String> {
        for reply in self.envelope(recipients) {
            assert!(reply.starts_with("250 "), "{reply}");
        }
        assert!(self.say("DATA").starts_with("354 "));
        self.send(&stuffed(message));
        recipients.iter().map(|_| self.reply()).collect()
    }

    /// A whole message with BDAT; one reply per recipient. Any bytes pass.
    pub(crate) fn deliver_bdat(&mut self, recipients: &[&str], message: &[u8]) -> Vec<String> {
        for reply in self.envelope(recipients) {
            assert!(reply.starts_with("250 "), "{reply}");
        }
        self.send(format!("BDAT {} LAST\r\n", message.len()).as_bytes());
        self.send(message);
        recipients.iter().map(|_| self.reply()).collect()
    }
}

/// As it goes behind DATA: dots doubled behind CRLF, the end. The message must end with CRLF or be
/// empty.
pub(crate) fn stuffed(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() + 16);
    let mut line_start = true;
    let mut before = 0;
    for byte in message {
        if line_start && *byte == b'.' {
            out.push(b'.');
        }
        out.push(*byte);
        line_start = *byte == b'\n' && before == b'\r';
        before = *byte;
    }
    out.extend_from_slice(b".\r\n");
    out
}

/// The node protocol, one request at a time.
pub(crate) struct NodeClient(Client);

impl NodeClient {
    pub(crate) fn connect(address: &Address) -> Result<Self, ClientError> {
        Client::connect(
            address,
            Role::Client,
            Deadline::after(BOUND),
            Patience::None,
        )
        .map(Self)
    }

    /// Delivers a message; one outcome per recipient.
    pub(crate) fn deliver(&mut self, recipients: &[&str], message: &[u8]) -> Vec<RecipientReply> {
        self.try_deliver(recipients, message).unwrap()
    }

    pub(crate) fn try_deliver(
        &mut self,
        recipients: &[&str],
        message: &[u8],
    ) -> Result<Vec<RecipientReply>, ClientError> {
        let request = deliver_request(recipients);
        self.0.deliver(
            &request,
            &Bytes::copy_from_slice(message),
            Deadline::after(BOUND),
        )
    }

    /// Delivers a message to one recipient, into a mailbox by name (`-m`).
    pub(crate) fn deliver_into(
        &mut self,
        recipient: &str,
        mailbox: &str,
        message: &[u8],
    ) -> RecipientReply {
        let mut request = deliver_request(&[recipient]);
        for recipient in &mut request.recipients {
            recipient.mailbox = Some(Bytes::copy_from_slice(mailbox.as_bytes()));
        }
        let body = Bytes::copy_from_slice(message);
        let replies = self.0.deliver(&request, &body, Deadline::after(BOUND));
        replies.unwrap().remove(0)
    }

    /// How many messages each of a user's mailboxes has.
    pub(crate) fn mailboxes(&mut self, user: &str) -> Vec<(String, u32)> {
        let found = self.0.mailboxes(user.as_bytes(), Deadline::after(BOUND));
        let about = |status: MailboxStatus| {
            let name = String::from_utf8_lossy(&status.name).into_owned();
            (name, status.messages_count)
        };
        found.unwrap().into_iter().map(about).collect()
    }

    /// Begins a message, sends so many bytes of it, and is gone.
    pub(crate) fn deliver_half(mut self, recipients: &[&str], bytes: usize) {
        let request = deliver_request(recipients);
        let id = self.0.session_mut().deliver_begin(&request).unwrap();
        let data = Bytes::from(vec![b'x'; bytes]);
        self.0.session_mut().deliver_data(id, data).unwrap();
        until("half a message to be sent", || {
            self.0.advance().unwrap();
            self.0.session_mut().transmit_backlog() == 0
        });
    }

    pub(crate) fn try_list(&mut self, user: &str) -> Result<ListPage, ClientError> {
        let request = ListRequest {
            user: Bytes::copy_from_slice(user.as_bytes()),
            mailbox: MailboxRef::Id(MailboxId::INBOX),
            after_uid: 0,
            entries_max: 1_000,
        };
        self.0.list(&request, Deadline::after(BOUND))
    }

    /// How many messages a user has; 0 for one who never got any.
    pub(crate) fn count(&mut self, user: &str) -> usize {
        self.try_list(user).map_or(0, |page| page.entries.len())
    }

    /// A message as it was received.
    pub(crate) fn fetch(&mut self, user: &str, uid: u32) -> Vec<u8> {
        let request = FetchRequest {
            user: Bytes::copy_from_slice(user.as_bytes()),
            mailbox: MailboxRef::Id(MailboxId::INBOX),
            uid: Uid::new(uid),
        };
        let deadline = Deadline::after(BOUND);
        let (id, _) = self.0.fetch(&request, deadline).unwrap();
        let mut message = Vec::new();
        while let Some(data) = self.0.fetched(id, deadline).unwrap() {
            message.extend_from_slice(&data);
        }
        message
    }

    /// The protocol itself.
    pub(crate) fn inner(&mut self) -> &mut Client {
        &mut self.0
    }
}

fn deliver_request(recipients: &[&str]) -> DeliverRequest {
    let recipient = |address: &&str| DeliverRecipient {
        address: Bytes::copy_from_slice(address.as_bytes()),
        mailbox: None,
    };
    DeliverRequest {
        sender: Bytes::from_static(b"sender@example.test"),
        recipients: recipients.iter().map(recipient).collect(),
        queue_id: Bytes::new(),
        deadline_ms: 0,
        size_hint: None,
    }
}

/// A message that an MTA has stamped, so that its repetition is a duplicate.
pub(crate) fn stamped(subject: &str) -> Vec<u8> {
    let stamp = "Received: from mx by node id 4711; Mon, 1 Jan 2024 00:00:00 +0000";
    format!("{stamp}\r\nSubject: {subject}\r\n\r\nHello.\r\n").into_bytes()
}

/// The file behind a path.
pub(crate) fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap()
}
