//! Reading mail in a directory that no daemon uses: what `ringpost --data DIR list` and its like do.
//! Nothing is written, not even what a start would: what is in the log only is read from there.
//!
//! The logs are read as a check does (`check/log.rs`), the index is folded as the running store does
//! (`index/fold.rs`), so that lists are the same before and after the daemon stops. Whoever calls sees to
//! it that nobody writes meanwhile. Memory is bounded by the records above the checkpoint and the index
//! of one user; a message is handed on in pieces. A message that is not as it was written is an error with
//! file and offset, found at its last piece at the latest, and the others are served.

mod past;

use std::collections::BTreeMap;

use bytes::Bytes;
use ringpost_netproto::id::{MailboxId, Uid};
use ringpost_netproto::placement::UserKey;

use crate::check::{
    At, Checker, Finding, Progress, ReadTree, Redo, Severity, UserId, What, info_of, prefix,
};
use crate::error::{Corrupt, CorruptReason, IoError};
use crate::format::info::{INFO_HEADER_BYTES, InfoHeader, Msg, OWN_FILE};
use crate::format::store_file::StoreFile;
use crate::format::{crc, index as as_index};
use crate::index::{Index, InfoFile, above, fold};
use crate::io::RelPath;
use crate::limits::{FETCH_BYTES_MAX, INFO_BYTES_MAX};
use crate::mbox::{Restorer, View};
use crate::repair::hand::Hand as _;
use crate::repair::layer::Layer;
use crate::repair::redo::Owed;
use crate::request::{ListEntry, ListPage, MailboxStatus, More};
use crate::shard::read::list_entry;
use crate::tail::{MailboxTail, Tail};

use past::Later;
pub use past::PastError;

/// Why something could not be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OfflineError {
    /// No such user.
    #[error("no such user")]
    NoSuchUser,
    /// The user has no such mailbox.
    #[error("no such mailbox")]
    NoSuchMailbox,
    /// It has no such message.
    #[error("no such message")]
    NoSuchMessage,
    /// What is needed is damaged or cannot be read.
    #[error("{0}; `ringpost repair --dry-run` tells what can be saved")]
    Damaged(Corrupt),
}

impl From<IoError> for OfflineError {
    fn from(error: IoError) -> Self {
        Self::Damaged(error.corrupt())
    }
}

/// A whole directory, and what its logs hold above their checkpoints.
pub struct Offline<'a> {
    tree: &'a dyn ReadTree,
    store: StoreFile,
    redo: Redo,
    damages: Vec<Finding>,
}

impl<'a> Offline<'a> {
    /// Reads STORE and the logs; `progress` is called after each of these.
    ///
    /// # Errors
    /// STORE is damaged or cannot be read: nothing can be found without it.
    pub fn open(
        tree: &'a dyn ReadTree,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, OfflineError> {
        let mut checker = Checker::new(tree);
        let mut redo = Redo::default();
        let Some(store) = checker.store_file() else {
            let found = checker.report.findings.swap_remove(0);
            return Err(OfflineError::Damaged(found.corrupt));
        };
        let logs = checker.log_ids(store.logs);
        let of = u64::try_from(logs.len()).unwrap_or(u64::MAX);
        for (done, log_id) in (1..).zip(logs) {
            drop(checker.log(&store, log_id, &mut redo));
            let (messages, bytes) = (0, 0);
            progress(Progress {
                done,
                of,
                messages,
                bytes,
            });
        }
        let mut damages = checker.report.findings;
        damages.retain(|finding| finding.severity == Severity::Damage);
        Ok(Self {
            tree,
            store,
            redo,
            damages,
        })
    }

    /// Damage met in the logs: mail that was acknowledged may not be shown.
    pub fn damages(&self) -> &[Finding] {
        &self.damages
    }

    /// The user of a canonical name.
    pub fn user(&self, name: &[u8]) -> Result<OfflineUser<'_>, OfflineError> {
        let key = UserKey::new(name, &self.store.key, self.store.partitions);
        let key = key.ok_or(OfflineError::NoSuchUser)?;
        let mut damaged = None;
        for id in self.candidates(&key)? {
            match self.load(id, name) {
                Ok(Some(user)) => return Ok(user),
                Ok(None) => {}
                // Its name may be what is damaged: another one may still be the right one.
                Err(error) => damaged = damaged.or(Some(error)),
            }
        }
        Err(damaged.unwrap_or(OfflineError::NoSuchUser))
    }

    /// All with the hash of a name, by their ordinals.
    fn candidates(&self, key: &UserKey) -> Result<Vec<UserId>, IoError> {
        let dir = RelPath::partition_dir(key.partition());
        let names = match self.tree.list(&dir) {
            Ok(names) => names,
            Err(error) if error.is_not_found() => Vec::new(),
            Err(error) => return Err(error),
        };
        let on_disk = names
            .iter()
            .filter_map(|(name, _)| UserId::named(key.partition(), name));
        let in_log = self.redo.users.keys().copied();
        let of_hash = |id: &UserId| (id.partition, id.user) == (key.partition(), key.hash());
        let mut ids: Vec<UserId> = on_disk.chain(in_log).filter(of_hash).collect();
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    /// A user, if that is its name.
    fn load(&self, id: UserId, name: &[u8]) -> Result<Option<OfflineUser<'_>>, OfflineError> {
        let mut layer = Layer::new(self.tree);
        let mut in_log = BTreeMap::new();
        if let Some(user) = self.redo.users.get(&id) {
            let owed = Owed {
                tree: self.tree,
                redo: &self.redo,
                id,
                user,
            };
            layer.apply(owed.index_steps()?)?;
            for entry in &user.entries {
                if let What::Small(msg) = &entry.what {
                    in_log.insert((msg.segment, msg.offset), &entry.at);
                }
            }
        }
        let dir = id.dir();
        let names = layer.list(&dir)?;
        let generation = names.iter().filter_map(|(name, _)| info_of(name)).max();
        let Some(generation) = generation else {
            // Made for a record that never came.
            let unborn = names.iter().all(|(name, _)| crate::check::is_unborn(name));
            let lost = bad(&dir.info(1), 0, CorruptReason::Truncated);
            return if unborn { Ok(None) } else { Err(lost) };
        };
        let path = dir.info(generation);
        let most = usize::try_from(INFO_BYTES_MAX).unwrap_or(usize::MAX);
        let bytes = Bytes::from(layer.read(&path, 0, most)?);
        let start = bytes.get(..INFO_HEADER_BYTES).unwrap_or(&bytes);
        let header = InfoHeader::open(start, id.user, id.ordinal, generation)
            .map_err(|reason| bad(&path, 0, reason))?;
        if &*header.name != name {
            return Ok(None);
        }
        let file = InfoFile {
            header: &header,
            bytes: &bytes,
        };
        let folded = fold(Some(&file), std::iter::empty(), header.seed(), true)
            .map_err(|found| bad(&path, found.offset, found.reason))?;
        Ok(Some(OfflineUser {
            store: self,
            layer,
            in_log,
            id,
            dir,
            tail: folded.tail,
            index: folded.index,
            later: None,
        }))
    }
}

fn bad(file: &RelPath, offset: u64, reason: CorruptReason) -> OfflineError {
    OfflineError::Damaged(Corrupt {
        file: file.to_string(),
        offset,
        reason,
    })
}

/// One user: the index as of the end of the log.
pub struct OfflineUser<'a> {
    store: &'a Offline<'a>,
    /// The directory with the names that its files will have.
    layer: Layer<'a>,
    /// Messages that may be in the log only, by segment and offset.
    in_log: BTreeMap<(u32, u64), &'a At>,
    id: UserId,
    dir: RelPath,
    tail: Tail,
    index: Index,
    /// What came after this directory was copied, if it is a backup.
    later: Option<Later<'a>>,
}

impl OfflineUser<'_> {
    /// All mailboxes, ascending by id.
    pub fn mailboxes(&self) -> Vec<MailboxStatus> {
        let mut found: Vec<_> = self.tail.visible().map(MailboxTail::status).collect();
        found.sort_by_key(|status| status.mailbox);
        found
    }

    /// A page of a mailbox: messages with a uid above `after`.
    pub fn list(
        &self,
        mailbox: MailboxId,
        after: u32,
        entries_max: usize,
    ) -> Result<ListPage, OfflineError> {
        let status = self.mailbox(mailbox)?.status();
        let mut rest = above(self.index.mailbox(mailbox), after);
        let taken = rest.by_ref().take(entries_max.max(1));
        let entries: Result<Vec<_>, _> = taken
            .map(|entry| Ok(list_entry(&entry.msg()?, entry.cache.clone())))
            .collect();
        let more = if rest.next().is_some() {
            More::Yes
        } else {
            More::No
        };
        Ok(ListPage {
            status,
            entries: entries
                .map_err(|reason| bad(&self.dir.info(self.tail.generation), 0, reason))?,
            more,
        })
    }

    /// One message as it was received, in pieces. Its checksum is compared when all of it was handed
    /// on: an error makes the pieces void. `piece` ends it by giving `false`.
    pub fn fetch(
        &self,
        mailbox: MailboxId,
        uid: Uid,
        piece: &mut dyn FnMut(&ListEntry, Bytes) -> bool,
    ) -> Result<ListEntry, OfflineError> {
        let uidvalidity = self.mailbox(mailbox)?.uidvalidity.value();
        let found = self.index.find(mailbox, uid);
        let found = found.ok_or(OfflineError::NoSuchMessage)?;
        let info = self.dir.info(self.tail.generation);
        let msg = found.msg().map_err(|reason| bad(&info, 0, reason))?;
        let entry = list_entry(&msg, found.cache.clone());
        let own = msg.format_flags & OWN_FILE != 0;
        let in_log = self.in_log.get(&(msg.segment, msg.offset));
        let mut give = |data| piece(&entry, data);
        let later = self.later.as_ref();
        let place = later.and_then(|later| Some((later, later.places.get(&(mailbox, uid))?)));
        if let Some((later, place)) = place {
            later.fetch(place, (&self.dir, &msg), uidvalidity, &mut give)?;
        } else if let Some(at) = in_log.filter(|_| !own) {
            // Its prefix was compared with its run when the log was read.
            let Offline { tree, redo, .. } = self.store;
            let read = |offset, len| redo.read(*tree, &at.path, offset, len);
            hand_on(&msg, (&at.path, at.body), &read, &mut give)?;
        } else {
            let path = if own {
                self.dir.large(msg.segment, msg.mailbox, msg.uid)
            } else {
                self.dir.segment(msg.segment)
            };
            let read = |offset, len| self.layer.read(&path, offset, len);
            from_mbox(&msg, &path, uidvalidity, &read, &mut give)?;
        }
        Ok(entry)
    }

    fn mailbox(&self, mailbox: MailboxId) -> Result<&MailboxTail, OfflineError> {
        let found = self.tail.visible_mailbox(mailbox);
        found.ok_or(OfflineError::NoSuchMailbox)
    }
}

/// A message out of a segment or a file of its own.
fn from_mbox(
    msg: &Msg,
    path: &RelPath,
    uidvalidity: u32,
    read: &dyn Fn(u64, usize) -> Result<Vec<u8>, IoError>,
    piece: &mut dyn FnMut(Bytes) -> bool,
) -> Result<(), OfflineError> {
    let start = read(msg.offset, usize::from(msg.skip))?;
    prefix(&start, msg, Some(uidvalidity))
        .map_err(|(offset, reason)| bad(path, msg.offset + offset, reason))?;
    let stored_at = msg.offset + u64::from(msg.skip);
    hand_on(msg, (path, stored_at), read, piece)
}

/// The stored bytes from `from` of a file on, as they were received, in pieces.
fn hand_on(
    msg: &Msg,
    (path, from): (&RelPath, u64),
    read: &dyn Fn(u64, usize) -> Result<Vec<u8>, IoError>,
    piece: &mut dyn FnMut(Bytes) -> bool,
) -> Result<(), OfflineError> {
    let mut restorer = Restorer::new(
        msg.format_flags,
        u64::from(msg.stored_len),
        View::AsReceived,
    );
    let (mut left, mut offset, mut sum) = (msg.stored_len, from, 0);
    while left > 0 {
        let data = Bytes::from(read(offset, as_index(left.min(FETCH_BYTES_MAX)))?);
        let count = u32::try_from(data.len()).unwrap_or(0);
        if count == 0 {
            return Err(bad(path, offset, CorruptReason::Truncated));
        }
        sum = crc::extend(sum, &data);
        (left, offset) = (left.saturating_sub(count), offset + u64::from(count));
        if !piece(restorer.push(&data)) {
            return Ok(());
        }
    }
    if sum == msg.stored_crc {
        Ok(())
    } else {
        Err(bad(path, from, CorruptReason::Checksum))
    }
}
