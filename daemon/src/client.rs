//! A small blocking client of the node protocol: shim, CLI, load generator and tests.
//!
//! It moves bytes between a socket and a [`ClientSession`] and waits in poll(2), so one deadline
//! bounds connecting, writing and waiting for an answer alike. Nothing is retried here after a
//! request went out: what became of it is then unknown, and only the caller knows whether the same
//! message may be sent again.

mod address;
pub mod appends;

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;

use bytes::{Buf as _, Bytes};
use nix::poll::{PollFd, PollFlags};
use ringpost_netproto::error::Violation;
use ringpost_netproto::frame::{RequestId, Status, Verdict};
use ringpost_netproto::message::append::{AppendReply, AppendRequest};
use ringpost_netproto::message::backup::BackupRequest;
use ringpost_netproto::message::deliver::{DeliverRequest, RecipientReply};
use ringpost_netproto::message::fetch::FetchRequest;
use ringpost_netproto::message::list::{ListEntry, ListPage, ListRequest};
use ringpost_netproto::message::mailbox::MailboxStatus;
use ringpost_netproto::message::report::ReportField;
use ringpost_netproto::session::Config;
use ringpost_netproto::session::client::{ClientSession, Event, NotReady};
use ringpost_netproto::version::{Hello, Role};

use self::address::Stream;
pub use self::address::{Address, Deadline, Ready, pause, wait};

/// One read from the socket.
const READ_BYTES: usize = 64 << 10;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody there, or the socket failed.
    #[error("{address}: {}", plain(.source))]
    Io {
        /// Whom we talked to.
        address: Address,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The deadline came first.
    #[error("{address}: no answer in time")]
    Deadline {
        /// Whom we talked to.
        address: Address,
    },
    /// The peer closed the connection.
    #[error("{address}: the connection was closed")]
    Closed {
        /// Whom we talked to.
        address: Address,
    },
    /// The peer takes no requests, and says why.
    #[error("{address}: {text} ({status})")]
    GoAway {
        /// Whom we talked to.
        address: Address,
        /// Why, in one number.
        status: Status,
        /// Why, as a sentence.
        text: String,
    },
    /// The peer does not speak our protocol.
    #[error("{address}: {source}")]
    Violation {
        /// Whom we talked to.
        address: Address,
        /// What it did.
        source: Violation,
    },
    /// The session did not take a request.
    #[error("{0}")]
    NotReady(#[from] NotReady),
    /// The request was answered with a failure.
    #[error("{text}{} ({status})", if .text.is_empty() { "refused" } else { "" })]
    Failed {
        /// What to do about it.
        status: Status,
        /// Why, as a sentence; may be empty.
        text: String,
    },
}

/// An error of the kernel as a sentence: "connection refused".
pub fn plain(error: &io::Error) -> String {
    let text = match error.raw_os_error() {
        Some(raw) => nix::errno::Errno::from_raw(raw).desc().to_owned(),
        None => error.to_string(),
    };
    let mut letters = text.chars();
    match (letters.next(), letters.clone().next()) {
        (Some(first), Some(second)) if second.is_lowercase() => {
            first.to_lowercase().chain(letters).collect()
        }
        _ => text,
    }
}

/// What happens when nobody listens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Patience {
    /// The error is returned at once.
    None,
    /// Tried again until then: the daemon may be restarting.
    Until(Deadline),
}

/// A connection to a node.
#[derive(Debug)]
pub struct Client {
    address: Address,
    stream: Stream,
    session: ClientSession,
    /// Taken from the session and not written yet.
    unwritten: Bytes,
    input: Box<[u8]>,
    half: Half,
}

/// Which directions of the connection live.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Half {
    Both,
    /// Writing failed: the peer has closed. What it said before is still read.
    ReadOnly,
    Closed,
}

impl Client {
    /// Connects and shakes hands, at the latest at `deadline`. With patience, a daemon that is
    /// absent, stopping, or gone in the middle of the handshake is tried again.
    pub fn connect(
        address: &Address,
        role: Role,
        deadline: Deadline,
        patience: Patience,
    ) -> Result<Self, ClientError> {
        loop {
            let error = match Self::connect_once(address, role, deadline) {
                Ok(client) => return Ok(client),
                Err(error) => error,
            };
            let Patience::Until(until) = patience else {
                return Err(error);
            };
            if !error.is_absence() || pause(until.min(deadline)).is_err() {
                return Err(error);
            }
        }
    }

    fn connect_once(
        address: &Address,
        role: Role,
        deadline: Deadline,
    ) -> Result<Self, ClientError> {
        let stream = Stream::connect(address, deadline).map_err(|source| ClientError::Io {
            address: address.clone(),
            source,
        })?;
        let mut client = Self {
            address: address.clone(),
            stream,
            session: ClientSession::new(Config::new(Hello::new(role))),
            unwritten: Bytes::new(),
            input: vec![0; READ_BYTES].into_boxed_slice(),
            half: Half::Both,
        };
        loop {
            match client.next_event(deadline)? {
                Event::Connected => return Ok(client),
                Event::GoAway { status, text } => return Err(client.goaway(status, text)),
                _ => {}
            }
        }
    }

    /// The protocol itself, for requests of one's own; then [`next_event`](Self::next_event).
    pub fn session_mut(&mut self) -> &mut ClientSession {
        &mut self.session
    }

    /// Who answered.
    pub const fn peer(&self) -> Option<&Hello> {
        self.session.peer()
    }

    /// Waits for the next event. After the end of the connection all open requests fail as
    /// [`Status::Lost`], then it is an error.
    pub fn next_event(&mut self, deadline: Deadline) -> Result<Event, ClientError> {
        loop {
            if let Some(event) = self.session.poll_event() {
                return Ok(event);
            }
            self.turn(deadline)?;
        }
    }

    /// Writes and reads what can be, waiting until something can. Take all events before it.
    pub fn turn(&mut self, deadline: Deadline) -> Result<(), ClientError> {
        self.check_open()?;
        self.write();
        let mut events = PollFlags::POLLIN;
        if self.half == Half::Both && !self.unwritten.is_empty() {
            events |= PollFlags::POLLOUT;
        }
        let mut fds = [PollFd::new(self.stream.as_fd(), events)];
        if wait(&mut fds, deadline).map_err(|error| self.io(error))? == Ready::No {
            return Err(ClientError::Deadline {
                address: self.address.clone(),
            });
        }
        self.advance()
    }

    /// Writes and reads what can be, without waiting. Take all events before it.
    pub fn advance(&mut self) -> Result<(), ClientError> {
        self.check_open()?;
        self.write();
        self.read()
    }

    fn check_open(&self) -> Result<(), ClientError> {
        if self.half == Half::Closed {
            return Err(ClientError::Closed {
                address: self.address.clone(),
            });
        }
        Ok(())
    }

    /// As much as the socket takes. An error only ends this direction: the peer may have said why.
    fn write(&mut self) {
        while self.half == Half::Both {
            if self.unwritten.is_empty() {
                match self.session.poll_transmit() {
                    Some(next) => self.unwritten = next,
                    None => return,
                }
            }
            match self.stream.write(&self.unwritten) {
                Ok(written) => self.unwritten.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.half = Half::ReadOnly,
            }
        }
    }

    fn read(&mut self) -> Result<(), ClientError> {
        match self.stream.read(&mut self.input) {
            Ok(0) => {
                self.half = Half::Closed;
                self.session.handle_close();
                Ok(())
            }
            Ok(read) => {
                let input = Bytes::copy_from_slice(self.input.get(..read).unwrap_or_default());
                self.session.handle_input(input).map_err(|source| {
                    self.write();
                    self.half = Half::Closed;
                    ClientError::Violation {
                        address: self.address.clone(),
                        source,
                    }
                })
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                Ok(())
            }
            Err(error) => {
                self.half = Half::Closed;
                self.session.handle_close();
                Err(self.io(error))
            }
        }
    }

    fn io(&self, source: io::Error) -> ClientError {
        ClientError::Io {
            address: self.address.clone(),
            source,
        }
    }

    fn goaway(&self, status: Status, text: String) -> ClientError {
        ClientError::GoAway {
            address: self.address.clone(),
            status,
            text,
        }
    }

    /// Delivers a message that is in memory.
    pub fn deliver(
        &mut self,
        request: &DeliverRequest,
        body: &Bytes,
        deadline: Deadline,
    ) -> Result<Vec<RecipientReply>, ClientError> {
        let id = self.when_ready(deadline, |session| session.deliver(request, body.clone()))?;
        match self.answer(id, deadline)? {
            Event::Delivered { replies, .. } => Ok(replies),
            other => unexpected(&other),
        }
    }

    /// The mailboxes of `user`, ascending by id.
    pub fn mailboxes(
        &mut self,
        user: &[u8],
        deadline: Deadline,
    ) -> Result<Vec<MailboxStatus>, ClientError> {
        let id = self.when_ready(deadline, |session| session.mailboxes(user))?;
        match self.answer(id, deadline)? {
            Event::Mailboxes { mailboxes, .. } => Ok(mailboxes),
            other => unexpected(&other),
        }
    }

    /// A page of a mailbox.
    pub fn list(
        &mut self,
        request: &ListRequest,
        deadline: Deadline,
    ) -> Result<ListPage, ClientError> {
        let id = self.when_ready(deadline, |session| session.list(request))?;
        match self.answer(id, deadline)? {
            Event::Listed { page, .. } => Ok(page),
            other => unexpected(&other),
        }
    }

    /// Appends a message to a mailbox; it is durable when this returns.
    pub fn append(
        &mut self,
        request: &AppendRequest,
        body: &Bytes,
        deadline: Deadline,
    ) -> Result<AppendReply, ClientError> {
        let id = self.when_ready(deadline, |session| session.append(request, body.clone()))?;
        match self.answer(id, deadline)? {
            Event::Appended { reply, .. } => Ok(reply),
            other => unexpected(&other),
        }
    }

    /// Begins, prolongs or ends a backup.
    pub fn backup(
        &mut self,
        request: BackupRequest,
        deadline: Deadline,
    ) -> Result<Vec<ReportField>, ClientError> {
        let id = self.when_ready(deadline, |session| session.backup(request))?;
        match self.answer(id, deadline)? {
            Event::Backup { fields, .. } => Ok(fields),
            other => unexpected(&other),
        }
    }

    /// The node's report about itself.
    pub fn status(&mut self, deadline: Deadline) -> Result<Vec<ReportField>, ClientError> {
        let id = self.when_ready(deadline, ClientSession::status)?;
        match self.answer(id, deadline)? {
            Event::Status { fields, .. } => Ok(fields),
            other => unexpected(&other),
        }
    }

    /// Lets the node scrub a user, or all that it has; what it found, when that is done.
    pub fn scrub(
        &mut self,
        user: Option<&[u8]>,
        deadline: Deadline,
    ) -> Result<Vec<ReportField>, ClientError> {
        let id = self.when_ready(deadline, |session| session.scrub(user))?;
        match self.answer(id, deadline)? {
            Event::Scrubbed { fields, .. } => Ok(fields),
            other => unexpected(&other),
        }
    }

    /// Begins to fetch a message; its bytes come with [`fetched`](Self::fetched).
    pub fn fetch(
        &mut self,
        request: &FetchRequest,
        deadline: Deadline,
    ) -> Result<(RequestId, ListEntry), ClientError> {
        let id = self.when_ready(deadline, |session| session.fetch(request))?;
        match self.answer(id, deadline)? {
            Event::FetchBegin { entry, .. } => Ok((id, entry)),
            other => unexpected(&other),
        }
    }

    /// The next bytes of a message; `None` behind the last, when length and checksum were compared.
    /// An error makes void what came before.
    pub fn fetched(
        &mut self,
        id: RequestId,
        deadline: Deadline,
    ) -> Result<Option<Bytes>, ClientError> {
        match self.answer(id, deadline)? {
            Event::FetchData { data, .. } => Ok(Some(data)),
            Event::FetchEnd { .. } => Ok(None),
            other => unexpected(&other),
        }
    }

    /// Makes a request as soon as credit and backlog allow it. Events of other requests that come
    /// meanwhile are dropped: this is for one request at a time.
    fn when_ready(
        &mut self,
        deadline: Deadline,
        mut make: impl FnMut(&mut ClientSession) -> Result<RequestId, NotReady>,
    ) -> Result<RequestId, ClientError> {
        loop {
            match make(&mut self.session) {
                Ok(id) => return Ok(id),
                Err(NotReady::Credit | NotReady::Backlog | NotReady::InFlight) => {
                    self.turn(deadline)?;
                    while let Some(event) = self.session.poll_event() {
                        if let Event::GoAway { status, text } = event {
                            return Err(self.goaway(status, text));
                        }
                    }
                }
                Err(never) => return Err(never.into()),
            }
        }
    }

    /// The next event of request `id`; a failure is an error.
    fn answer(&mut self, id: RequestId, deadline: Deadline) -> Result<Event, ClientError> {
        loop {
            let event = self.next_event(deadline)?;
            match event {
                Event::Failed {
                    id: failed,
                    status,
                    text,
                } if failed == id => return Err(ClientError::Failed { status, text }),
                event if request_of(&event) == Some(id) => return Ok(event),
                _ => {}
            }
        }
    }
}

/// The request an event belongs to.
fn request_of(event: &Event) -> Option<RequestId> {
    match event {
        Event::Delivered { id, .. }
        | Event::Appended { id, .. }
        | Event::Listed { id, .. }
        | Event::Mailboxes { id, .. }
        | Event::FetchBegin { id, .. }
        | Event::FetchData { id, .. }
        | Event::FetchEnd { id, .. }
        | Event::Status { id, .. }
        | Event::Backup { id, .. }
        | Event::Scrubbed { id, .. }
        | Event::Pong { id }
        | Event::Failed { id, .. } => Some(*id),
        _ => None,
    }
}

/// The session matches answers with requests, so this is a bug of ours.
fn unexpected(event: &Event) -> ! {
    unreachable!("the session answered a request with {event:?}")
}

impl ClientError {
    /// Nobody is there to take requests, but may soon be.
    fn is_absence(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound};
        match self {
            Self::Io { source, .. } => matches!(
                source.kind(),
                BrokenPipe | ConnectionRefused | ConnectionReset | NotFound
            ),
            Self::Closed { .. } => true,
            Self::GoAway { status, .. } => *status == Status::Stopping,
            _ => false,
        }
    }

    /// The status that stands for this error; [`Status::Lost`] if there was none.
    pub fn status(&self) -> Status {
        match self {
            Self::GoAway { status, .. } | Self::Failed { status, .. } => *status,
            Self::Deadline { .. } => Status::Deadline,
            _ => Status::Lost,
        }
    }

    /// Whether trying again may help.
    pub fn verdict(&self) -> Verdict {
        self.status().verdict()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn absence_is_an_error_at_once_or_after_the_patience() {
        let nowhere = Address::Unix("/nonexistent/ringpost/node".into());
        let far = Deadline::after(Duration::from_mins(1));
        let soon = Patience::Until(Deadline::after(Duration::from_millis(10)));
        for patience in [Patience::None, soon] {
            let error = Client::connect(&nowhere, Role::Shim, far, patience).unwrap_err();
            assert_eq!(
                error.to_string(),
                "/nonexistent/ringpost/node: no such file or directory"
            );
        }
        assert!(far.remaining().unwrap() > Duration::from_secs(30));
    }

    #[test]
    fn errors_of_the_kernel_read_as_sentences() {
        let refused = io::Error::from_raw_os_error(nix::libc::ECONNREFUSED);
        assert_eq!(plain(&refused), "connection refused");
    }
}
