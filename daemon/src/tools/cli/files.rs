//! The mail in the files of a node that is stopped: `folders`, `list`, `show` and `export` with `--data`.
//! What is in the log only is read from there, and nothing is written.

use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use bytes::Bytes;
use ringpost_engine::check::{DirTree, ReadTree};
use ringpost_engine::offline::{Offline, OfflineError, OfflineUser};
use ringpost_netproto::frame::Status;
use ringpost_netproto::id::{MailboxId, Uid};
use ringpost_netproto::limits::LIST_ENTRIES_MAX;
use ringpost_netproto::message::MailboxRef;
use ringpost_netproto::message::list::{ListEntry, ListPage};
use ringpost_netproto::message::mailbox::MailboxStatus;

use super::Failure;
use super::check::{Bar, Hold, lock};
use super::node::{FetchError, Mail, refused};
use crate::client::ClientError;
use crate::exit::Code;
use crate::reading::{list_entry, list_page, mailbox_status};

/// What to do about whoever uses a directory that is to be read.
const ASK_IT: &str =
    "ask a daemon that listens elsewhere with --to ADDRESS, or stop it, or take a copy";

/// Reads the mail of a data directory while `act` asks for it; a daemon cannot start meanwhile. Damage
/// of the log is told, and then the code is `Code::Failed`.
pub fn with(
    data: &Path,
    act: impl FnOnce(&mut dyn Mail) -> Result<Code, Failure>,
) -> Result<Code, Failure> {
    let lock = lock(data, Hold::Shared, ASK_IT)?;
    let tree = DirTree::new(data);
    let code = read(&tree, act);
    drop(lock);
    code
}

fn read(
    tree: &dyn ReadTree,
    act: impl FnOnce(&mut dyn Mail) -> Result<Code, Failure>,
) -> Result<Code, Failure> {
    let bar = Bar::new();
    let offline = Offline::open(tree, &mut |progress| bar.show(progress));
    bar.end();
    let offline = offline.map_err(|error| Failure::Said(error.to_string()))?;
    for finding in offline.damages() {
        // Whoever closed standard error does not want to know.
        drop(writeln!(std::io::stderr(), "ringpost: {finding}"));
    }
    let mut files = Files {
        offline: &offline,
        user: None,
    };
    let code = act(&mut files)?;
    Ok(if offline.damages().is_empty() {
        code
    } else {
        Code::Failed
    })
}

struct Files<'a> {
    offline: &'a Offline<'a>,
    /// Whom all questions of a command are about.
    user: Option<OfflineUser<'a>>,
}

impl<'a> Files<'a> {
    fn user(&mut self, user: &OsStr) -> Result<&OfflineUser<'a>, ClientError> {
        let found = match self.user.take() {
            Some(found) => found,
            None => self
                .offline
                .user(user.as_bytes())
                .map_err(ClientError::from)?,
        };
        Ok(self.user.insert(found))
    }

    /// As the door of a node finds it: INBOX in any case, other names as they are.
    fn mailbox(&mut self, user: &OsStr, mailbox: &MailboxRef) -> Result<MailboxId, ClientError> {
        let name = match mailbox {
            MailboxRef::Id(id) => return Ok(*id),
            MailboxRef::Name(name) if name.eq_ignore_ascii_case(b"INBOX") => {
                return Ok(MailboxId::INBOX);
            }
            MailboxRef::Name(name) => name,
        };
        let found = self.user(user)?.mailboxes().into_iter();
        let mut found = found.filter(|status| status.name.as_bytes() == &name[..]);
        let found = found.next().ok_or(OfflineError::NoSuchMailbox);
        Ok(found.map(|status| status.mailbox)?)
    }
}

impl From<OfflineError> for ClientError {
    /// As a node would say it.
    fn from(error: OfflineError) -> Self {
        let status = match error {
            OfflineError::NoSuchUser => Status::NoUser,
            OfflineError::NoSuchMailbox => Status::NoMailbox,
            OfflineError::NoSuchMessage => Status::NoMessage,
            _ => Status::Corrupt,
        };
        Self::Failed {
            status,
            text: error.to_string(),
        }
    }
}

impl Mail for Files<'_> {
    fn mailboxes(&mut self, user: &OsStr) -> Result<Vec<MailboxStatus>, Failure> {
        let found = self
            .user(user)
            .map_err(|error| refused(&error, user, None))?;
        Ok(found.mailboxes().into_iter().map(mailbox_status).collect())
    }

    fn page(
        &mut self,
        user: &OsStr,
        mailbox: &MailboxRef,
        after_uid: u32,
    ) -> Result<ListPage, Failure> {
        let page = self.mailbox(user, mailbox).and_then(|id| {
            let found = self.user(user)?;
            Ok(found.list(id, after_uid, LIST_ENTRIES_MAX)?)
        });
        page.map(list_page)
            .map_err(|error| refused(&error, user, Some(mailbox)))
    }

    fn fetch(
        &mut self,
        user: &OsStr,
        mailbox: &MailboxRef,
        uid: Uid,
        piece: &mut dyn FnMut(&ListEntry, Bytes) -> Result<(), Failure>,
    ) -> Result<ListEntry, FetchError> {
        let mailbox = self.mailbox(user, mailbox)?;
        let mut taken = Ok(());
        let fetched = self.user(user)?.fetch(mailbox, uid, &mut |entry, data| {
            taken = piece(&list_entry(entry.clone()), data);
            taken.is_ok()
        });
        taken?;
        Ok(list_entry(fetched.map_err(ClientError::from)?))
    }
}
