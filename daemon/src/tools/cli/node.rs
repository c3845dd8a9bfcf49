//! Which node is asked, and the questions as the commands need them.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use ringpost_netproto::frame::Status;
use ringpost_netproto::id::Uid;
use ringpost_netproto::limits::LIST_ENTRIES_MAX;
use ringpost_netproto::message::MailboxRef;
use ringpost_netproto::message::append::AppendRequest;
use ringpost_netproto::message::backup::BackupRequest;
use ringpost_netproto::message::fetch::FetchRequest;
use ringpost_netproto::message::list::{ListEntry, ListPage, ListRequest, More};
use ringpost_netproto::message::mailbox::MailboxStatus;
use ringpost_netproto::message::printable;
use ringpost_netproto::message::report::ReportField;
use ringpost_netproto::version::{Role, StoreId};

use super::Failure;
use super::options::Global;
use super::restore::user::Guids;
use crate::client::{Address, Client, ClientError, Deadline, Patience};

/// Below a data directory.
const SOCKET_IN_DATA: &str = "run/node";

/// Where packages let the daemon listen.
const SOCKET_OF_SYSTEM: &str = "/run/ringpost/node";

/// What `ringpostd` uses if nothing is said.
const DATA_DEFAULT: &str = "ringpost-data";

/// A scrub of everything takes as long as its rate makes it.
const SCRUB_PATIENCE: Duration = Duration::from_hours(24);

/// A connection to the node that was meant.
#[derive(Debug)]
pub struct Node {
    client: Client,
    /// For each answer, not for a whole command: an export may take hours.
    patience: Duration,
}

/// The data directory that was meant: `--data`, or the default.
pub fn data_dir(global: &Global) -> PathBuf {
    global
        .data
        .clone()
        .unwrap_or_else(|| PathBuf::from(DATA_DEFAULT))
}

/// Who has the mail that a command wants.
#[derive(Debug)]
pub enum Source {
    /// A node that runs.
    Node(Box<Node>),
    /// This data directory; nobody answers at its socket.
    Files(PathBuf),
}

impl Source {
    /// The node that the options name; with `--data` its files, if nobody listens there.
    pub fn find(global: &Global) -> Result<Self, Failure> {
        let Some(data) = &global.data else {
            return Node::connect(global).map(|node| Self::Node(Box::new(node)));
        };
        match Node::reach(global) {
            Ok(node) => Ok(Self::Node(Box::new(node))),
            // No socket, or one that a killed daemon left behind.
            Err(ClientError::Io { source, .. })
                if matches!(
                    source.kind(),
                    ErrorKind::NotFound | ErrorKind::ConnectionRefused
                ) =>
            {
                Ok(Self::Files(data.clone()))
            }
            Err(error) => Err(no_node(&error, global)),
        }
    }
}

/// The address of the running node that was meant.
fn address(global: &Global) -> Address {
    match (&global.to, &global.data) {
        (Some(to), _) => Address::from_path(to),
        (None, Some(data)) => Address::Unix(data.join(SOCKET_IN_DATA)),
        (None, None) if Path::new(SOCKET_OF_SYSTEM).exists() => {
            Address::Unix(SOCKET_OF_SYSTEM.into())
        }
        (None, None) => Address::Unix(Path::new(DATA_DEFAULT).join(SOCKET_IN_DATA)),
    }
}

impl Node {
    /// Connects to the node that the options name.
    pub fn connect(global: &Global) -> Result<Self, Failure> {
        Self::reach(global).map_err(|error| no_node(&error, global))
    }

    fn reach(global: &Global) -> Result<Self, ClientError> {
        let patience = Duration::from_secs(global.timeout);
        let deadline = Deadline::after(patience);
        let client = Client::connect(&address(global), Role::Admin, deadline, Patience::None)?;
        Ok(Self { client, patience })
    }

    fn deadline(&self) -> Deadline {
        Deadline::after(self.patience)
    }

    /// The node's report.
    pub fn status(&mut self) -> Result<Vec<ReportField>, Failure> {
        let deadline = self.deadline();
        Ok(self.client.status(deadline)?)
    }

    /// The guids of all messages of `user`, ascending; none of a user who has no mail yet.
    pub fn guids(&mut self, user: &str) -> Result<Vec<u128>, Failure> {
        let deadline = self.deadline();
        let mailboxes = match self.client.mailboxes(user.as_bytes(), deadline) {
            Ok(mailboxes) => mailboxes,
            Err(error) if error.status() == Status::NoUser => Vec::new(),
            Err(error) => return Err(refused(&error, OsStr::new(user), None)),
        };
        let mut guids = Vec::new();
        for mailbox in mailboxes {
            let by_id = MailboxRef::Id(mailbox.mailbox);
            pages(self, OsStr::new(user), &by_id, |_, page| {
                let found = page.entries.iter();
                guids.extend(found.map(|entry| u128::from_le_bytes(entry.guid.bytes())));
                Ok(())
            })?;
        }
        guids.sort_unstable();
        Ok(guids)
    }

    /// What is secret enough of this store to key ids with: its uuid.
    pub fn store_key(&self) -> [u8; 16] {
        let store = self.client.peer().and_then(|peer| peer.store);
        store.map_or([0; 16], StoreId::bytes)
    }

    /// The connection itself.
    pub fn client_mut(&mut self) -> &mut Client {
        &mut self.client
    }

    /// Appends a message; the status says whether it was there already.
    pub fn append(&mut self, request: &AppendRequest, body: &Bytes) -> Result<Status, ClientError> {
        let deadline = self.deadline();
        let reply = self.client.append(request, body, deadline)?;
        Ok(reply.status)
    }

    /// The guids in a mailbox; none if there is no such user or mailbox.
    pub fn guids_in(&mut self, user: &OsStr, mailbox: &MailboxRef) -> Result<Guids, Failure> {
        let mut found = Guids::new();
        let mut after_uid = 0;
        loop {
            let request = ListRequest {
                user: bytes(user),
                mailbox: mailbox.clone(),
                after_uid,
                entries_max: u32::try_from(LIST_ENTRIES_MAX).unwrap_or(u32::MAX),
            };
            let deadline = self.deadline();
            let page = match self.client.list(&request, deadline) {
                Ok(page) => page,
                Err(error) if matches!(error.status(), Status::NoUser | Status::NoMailbox) => {
                    return Ok(found);
                }
                Err(error) => return Err(refused(&error, user, Some(mailbox))),
            };
            found.extend(page.entries.iter().map(|entry| entry.guid.bytes()));
            match page.entries.last().map(|entry| entry.uid.value()) {
                Some(last) if page.more == More::Yes && last > after_uid => after_uid = last,
                _ => return Ok(found),
            }
        }
    }

    /// Begins, prolongs or ends a backup.
    pub fn backup(&mut self, request: BackupRequest) -> Result<Vec<ReportField>, ClientError> {
        let deadline = self.deadline();
        self.client.backup(request, deadline)
    }

    /// Lets the node scrub `user`, or all that it has, and waits for the end, at most a day.
    pub fn scrub(&mut self, user: Option<&OsStr>) -> Result<Vec<ReportField>, Failure> {
        let deadline = Deadline::after(SCRUB_PATIENCE);
        let result = self.client.scrub(user.map(OsStr::as_bytes), deadline);
        result.map_err(|error| match (user, error.status()) {
            (_, Status::Deadline) => Failure::Said(
                "not done within a day; the scrub goes on, `ringpost scrub` tells how far it is"
                    .to_owned(),
            ),
            (Some(user), _) => refused(&error, user, None),
            (None, _) => error.into(),
        })
    }
}

/// Where mail is read from: a node, or the files of one that is stopped.
pub trait Mail {
    /// The mailboxes of `user`.
    fn mailboxes(&mut self, user: &OsStr) -> Result<Vec<MailboxStatus>, Failure>;

    /// The messages of a mailbox with a uid above `after_uid`, as many as a page holds.
    fn page(
        &mut self,
        user: &OsStr,
        mailbox: &MailboxRef,
        after_uid: u32,
    ) -> Result<ListPage, Failure>;

    /// One message: its bytes in pieces, and its entry. After an error the pieces are void.
    fn fetch(
        &mut self,
        user: &OsStr,
        mailbox: &MailboxRef,
        uid: Uid,
        piece: &mut dyn FnMut(&ListEntry, Bytes) -> Result<(), Failure>,
    ) -> Result<ListEntry, FetchError>;
}

/// Every page of a mailbox, in order, handed to `page`.
pub fn pages(
    mail: &mut dyn Mail,
    user: &OsStr,
    mailbox: &MailboxRef,
    mut page: impl FnMut(&mut dyn Mail, ListPage) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut after_uid = 0;
    loop {
        let next = mail.page(user, mailbox, after_uid)?;
        let last = next.entries.last().map(|entry| entry.uid.value());
        let more = next.more;
        page(mail, next)?;
        match last {
            // Uids ascend; a node that does not keep to it must not keep us here forever.
            Some(last) if more == More::Yes && last > after_uid => after_uid = last,
            _ => return Ok(()),
        }
    }
}

impl Mail for Node {
    fn mailboxes(&mut self, user: &OsStr) -> Result<Vec<MailboxStatus>, Failure> {
        let deadline = self.deadline();
        self.client
            .mailboxes(user.as_bytes(), deadline)
            .map_err(|error| refused(&error, user, None))
    }

    fn page(
        &mut self,
        user: &OsStr,
        mailbox: &MailboxRef,
        after_uid: u32,
    ) -> Result<ListPage, Failure> {
        let request = ListRequest {
            user: bytes(user),
            mailbox: mailbox.clone(),
            after_uid,
            entries_max: u32::try_from(LIST_ENTRIES_MAX).unwrap_or(u32::MAX),
        };
        let deadline = self.deadline();
        self.client
            .list(&request, deadline)
            .map_err(|error| refused(&error, user, Some(mailbox)))
    }

    fn fetch(
        &mut self,
        user: &OsStr,
        mailbox: &MailboxRef,
        uid: Uid,
        piece: &mut dyn FnMut(&ListEntry, Bytes) -> Result<(), Failure>,
    ) -> Result<ListEntry, FetchError> {
        let request = FetchRequest {
            user: bytes(user),
            mailbox: mailbox.clone(),
            uid,
        };
        let deadline = self.deadline();
        let (id, entry) = self.client.fetch(&request, deadline)?;
        loop {
            let deadline = self.deadline();
            match self.client.fetched(id, deadline)? {
                Some(data) => piece(&entry, data)?,
                None => return Ok(entry),
            }
        }
    }
}

/// Why a message was not fetched, or not to its end.
#[derive(Debug)]
pub enum FetchError {
    /// The node, or the way to it.
    Client(ClientError),
    /// What became of the pieces.
    Output(Failure),
}

impl From<ClientError> for FetchError {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

impl From<Failure> for FetchError {
    fn from(failure: Failure) -> Self {
        Self::Output(failure)
    }
}

impl FetchError {
    /// As the end of a command.
    pub fn into_failure(self, user: &OsStr, mailbox: &MailboxRef) -> Failure {
        match self {
            Self::Client(error) => refused(&error, user, Some(mailbox)),
            Self::Output(failure) => failure,
        }
    }
}

/// Bytes of a word of the command line.
pub fn bytes(word: &OsStr) -> Bytes {
    Bytes::copy_from_slice(word.as_bytes())
}

/// A name for a person.
pub fn name(word: &OsStr) -> String {
    printable(word.as_bytes())
}

/// Nobody answers: also say what to try.
fn no_node(error: &ClientError, global: &Global) -> Failure {
    let hint = if global.data.is_some() || global.to.is_some() {
        "is the daemon running?"
    } else {
        "is the daemon running? --to ADDRESS names another one, and --data DIR reads the files of one \
         that is stopped"
    };
    Failure::Said(match error {
        ClientError::Io { .. } => format!("{error}; {hint}"),
        _ => error.to_string(),
    })
}

/// A refusal in the words of the command line.
pub fn refused(error: &ClientError, user: &OsStr, mailbox: Option<&MailboxRef>) -> Failure {
    let mailbox = match mailbox {
        Some(MailboxRef::Name(name)) => printable(name),
        Some(MailboxRef::Id(id)) => id.to_string(),
        None => String::new(),
    };
    Failure::Said(match error.status() {
        Status::NoUser => format!("no such user: {}", name(user)),
        Status::NoMailbox => format!("{} has no mailbox {mailbox:?}", name(user)),
        Status::NoMessage => format!("no such message in {mailbox:?} of {}", name(user)),
        _ => error.to_string(),
    })
}
