//! A node that is only its protocol: a Unix socket, a `ServerSession`, and whatever a test wants to
//! go wrong. One connection at a time, one thread; it ends with the test's process.
#![allow(
    dead_code,
    clippy::allow_attributes,
    reason = "each test binary uses a part of it"
)]

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use bytes::Bytes;
use ringpost_netproto::frame::{RequestId, Status};
use ringpost_netproto::message::deliver::{DeliverRequest, RecipientReply};
use ringpost_netproto::session::Config;
use ringpost_netproto::session::server::{Event, ServerSession};
use ringpost_netproto::version::{Hello, Role};

/// For whatever a test waits for: much longer than it takes, so that it fails only if it hangs.
pub(crate) const BOUND: Duration = Duration::from_secs(30);

/// A message as it arrived.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Arrived {
    pub(crate) request: DeliverRequest,
    pub(crate) body: Vec<u8>,
}

/// A listening socket in a directory of its own.
#[derive(Debug)]
pub(crate) struct FakeNode {
    directory: tempfile::TempDir,
    arrived: Receiver<Arrived>,
    /// One for each time the node says that it is where the test wants it.
    marks: Receiver<()>,
}

/// The node's side of one connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) stream: UnixStream,
    pub(crate) session: ServerSession,
    arrived: Sender<Arrived>,
    marks: Sender<()>,
}

impl FakeNode {
    /// Serves one connection after the other with `serve`.
    pub(crate) fn start(serve: impl FnMut(Connection) + Send + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self::start_in(directory, serve)
    }

    /// The same in a directory that a client may be looking into already.
    pub(crate) fn start_in(
        directory: tempfile::TempDir,
        mut serve: impl FnMut(Connection) + Send + 'static,
    ) -> Self {
        let socket = socket_in(directory.path());
        std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let listener = UnixListener::bind(socket).unwrap();
        let (arrived, arrivals) = channel();
        let (marks, seen) = channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                serve(Connection {
                    stream: stream.unwrap(),
                    session: ServerSession::new(Config::new(Hello::new(Role::Node))),
                    arrived: arrived.clone(),
                    marks: marks.clone(),
                });
            }
        });
        Self {
            directory,
            arrived: arrivals,
            marks: seen,
        }
    }

    /// A node that answers each message with these, repeated as often as there are recipients.
    pub(crate) fn answering(statuses: &'static [Status]) -> Self {
        Self::start(move |mut connection| connection.answer_all(statuses))
    }

    pub(crate) fn data(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        socket_in(self.directory.path())
    }

    /// The next message that came to its end.
    pub(crate) fn next_arrived(&self) -> Arrived {
        self.arrived.recv_timeout(BOUND).expect("a message arrives")
    }

    /// Waits for the node's mark.
    pub(crate) fn await_mark(&self) {
        self.marks.recv_timeout(BOUND).expect("the node gets there");
    }
}

/// Where the daemon puts its socket.
pub(crate) fn socket_in(data: &Path) -> PathBuf {
    data.join("run/node")
}

impl Connection {
    /// Tells the test that this point is reached.
    pub(crate) fn mark(&self) {
        // A test that has ended does not care.
        self.marks.send(()).ok();
    }

    /// The next event; `None` at the end of the connection.
    pub(crate) fn next_event(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.session.poll_event() {
                return Some(event);
            }
            self.flush();
            let mut input = vec![0; 64 << 10];
            match self.stream.read(&mut input) {
                Ok(0) | Err(_) => return None,
                Ok(read) => {
                    input.truncate(read);
                    if self.session.handle_input(Bytes::from(input)).is_err() {
                        self.flush();
                        return None;
                    }
                }
            }
        }
    }

    /// Writes what the session has to say, unless nobody listens.
    pub(crate) fn flush(&mut self) {
        while let Some(output) = self.session.poll_transmit() {
            if self.stream.write_all(&output).is_err() {
                return;
            }
        }
    }

    /// Receives messages and hands each to `answer` with its id at its end.
    pub(crate) fn receive(
        &mut self,
        mut answer: impl FnMut(&mut ServerSession, RequestId, &Arrived),
    ) {
        let mut message = None;
        while let Some(event) = self.next_event() {
            match event {
                Event::DeliverBegin { request, .. } => {
                    message = Some(Arrived {
                        request,
                        body: Vec::new(),
                    });
                }
                Event::DeliverData { id, data } => {
                    self.session.release(id, u64::try_from(data.len()).unwrap());
                    if let Some(message) = &mut message {
                        message.body.extend_from_slice(&data);
                    }
                }
                Event::DeliverEnd { id } => {
                    let message = message.take().unwrap();
                    answer(&mut self.session, id, &message);
                    drop(self.arrived.send(message));
                }
                _ => {}
            }
            self.flush();
        }
    }

    fn answer_all(&mut self, statuses: &'static [Status]) {
        self.receive(|session, id, message| {
            let replies: Vec<_> = statuses
                .iter()
                .cycle()
                .take(message.request.recipients.len())
                .map(|status| RecipientReply::new(*status))
                .collect();
            session.deliver_reply(id, &replies);
        });
    }
}
