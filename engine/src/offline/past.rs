//! A user as it was at a moment in the past: what a backup holds, and on it what the node's logs say
//! from the backup's end up to that moment (storage.md 8.6).
//!
//! The records are applied by what they mean (mailbox, uid, modseq), never by where they say that bytes
//! go: compactions have moved those since. So an `INFO_SWAP` says nothing here. The bytes of a message
//! that came after the backup are in the log file that holds its record; those of a large one in its
//! own file, wherever that is by now: with the user, or in the archive if it was expunged since.
//!
//! Memory is bounded by the records of one user in the stretch of log that is read.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ringpost_netproto::id::{MailboxId, Uid, WallNs};
use ringpost_netproto::placement::UserKey;

use super::{Offline, OfflineError, OfflineUser, bad, from_mbox, hand_on};
use crate::backup::{BackupError, Step, Walker};
use crate::check::{Progress, ReadTree, UserId};
use crate::error::CorruptReason;
use crate::format::Reserved;
use crate::format::frame::{FRAME_HEADER_BYTES, FrameError, FrameHeader};
use crate::format::info::{MSG_FIXED_BYTES, Msg, MsgFixed};
use crate::format::log_file::LogFileHeader;
use crate::format::record::{Payload, Record, Records};
use crate::format::store_file::{STORE_BYTES_MAX, StoreFile};
use crate::format::superblock::{Pair, SUPERBLOCK_BYTES};
use crate::index::{Index, apply_run};
use crate::io::RelPath;
use crate::position::Lsn;
use crate::repair::layer::Layer;
use crate::tail::{Existence, Tail};

/// Why the past cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PastError {
    /// The user's files in the backup.
    #[error("{0}")]
    Backup(#[from] OfflineError),
    /// The node's logs.
    #[error("{0}")]
    Logs(BackupError),
    /// The logs do not begin where the backup ends.
    #[error(
        "{0}; point-in-time restore wants a backup that the archive reaches back to: take a newer one"
    )]
    Hole(BackupError),
    /// Backup and logs are of two stores.
    #[error("the backup and the node's logs are of different stores")]
    OtherStore,
}

impl From<BackupError> for PastError {
    fn from(error: BackupError) -> Self {
        match error {
            BackupError::Gap { .. } => Self::Hole(error),
            error => Self::Logs(error),
        }
    }
}

/// Where the bytes are of a message that came after the backup.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// The stored message in the log file with this header, in bytes from the file's start.
    Log {
        log_id: u32,
        header: LogFileHeader,
        body: u64,
    },
    /// A file of its own.
    Own,
}

/// What the logs say of one user behind the backup.
pub(super) struct Later<'a> {
    /// The node's data directory.
    node: &'a dyn ReadTree,
    store: StoreFile,
    pub(super) places: BTreeMap<(MailboxId, Uid), Place>,
}

/// A record of the user.
struct Noted {
    pseq: u64,
    modseq: u64,
    what: What,
}

enum What {
    Message {
        head: Bytes,
        cache: Bytes,
        place: Place,
    },
    /// A whole record of runs.
    Runs(Bytes),
}

/// The records of all users with one hash, by ordinal.
#[derive(Default)]
struct Notes {
    names: BTreeMap<u32, Vec<u8>>,
    records: BTreeMap<u32, Vec<Noted>>,
}

impl<'a> Offline<'a> {
    /// The user of a canonical name as it was at `until`: this directory is a backup that had ended by
    /// then, `node` the data directory of the node, which may go on. `progress` is called after each
    /// log, and for each file of it.
    ///
    /// The result says nothing of where the logs end: whoever asks for a moment that has not come gets
    /// what there is.
    ///
    /// # Errors
    /// The user's files in the backup are damaged; the logs are damaged, of another store, or do not
    /// reach back to the backup; neither knows the user.
    pub fn user_at(
        &self,
        name: &[u8],
        (node, until): (&'a dyn ReadTree, WallNs),
        progress: &mut dyn FnMut(Progress),
    ) -> Result<OfflineUser<'_>, PastError> {
        let key = UserKey::new(name, &self.store.key, self.store.partitions);
        let key = key.ok_or(OfflineError::NoSuchUser)?;
        let store = store_of(node)?;
        if store.store != self.store.store {
            return Err(PastError::OtherStore);
        }
        let logs = logs_of(node, self.store.logs.max(store.logs))?;
        let of = u64::try_from(logs.len()).unwrap_or(u64::MAX);
        let mut notes = Notes::default();
        for (done, log_id) in (1..).zip(logs) {
            let from = self.log_start(log_id)?;
            let walker = Walker::new(node, (store.store, log_id), from);
            let mut say = |done| {
                progress(Progress {
                    done,
                    of,
                    messages: 0,
                    bytes: 0,
                });
            };
            notes.take_log(walker, log_id, (&key, until), &mut || say(done - 1))?;
            say(done);
        }
        let mut user = match self.user(name) {
            Ok(user) => user,
            Err(OfflineError::NoSuchUser) => {
                let named = notes.names.iter().find(|(_, known)| *known == name);
                let (ordinal, _) = named.ok_or(OfflineError::NoSuchUser)?;
                self.newcomer(UserId {
                    partition: key.partition(),
                    user: key.hash(),
                    ordinal: *ordinal,
                })
            }
            Err(error) => return Err(error.into()),
        };
        let records = notes.records.remove(&user.id.ordinal).unwrap_or_default();
        let places = user.replay(records)?;
        user.later = Some(Later {
            node,
            store,
            places,
        });
        Ok(user)
    }

    /// Where a log of the backup begins to replay, and the sum of the frame before; its start if it had
    /// none. What is in the backup beside is told apart by its modseqs.
    fn log_start(&self, log_id: u32) -> Result<(Lsn, u32), PastError> {
        let path = RelPath::superblock(log_id);
        let bytes = match self.tree.read(&path, 0, 2 * SUPERBLOCK_BYTES) {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => return Ok((Lsn::new(0), 0)),
            Err(error) => return Err(OfflineError::from(error).into()),
        };
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok((Lsn::new(0), 0));
        }
        let pair = Pair::open(&bytes, self.store.store, log_id);
        let pair = pair.map_err(|(reason, _)| bad(&path, 0, reason))?;
        Ok((pair.current.checkpoint_lsn, pair.current.previous_crc))
    }

    /// A user that the backup does not know.
    fn newcomer(&self, id: UserId) -> OfflineUser<'_> {
        OfflineUser {
            store: self,
            layer: Layer::new(self.tree),
            in_log: BTreeMap::new(),
            id,
            dir: id.dir(),
            tail: Tail::blank(Existence::Created, true),
            index: Index::default(),
            later: None,
        }
    }
}

fn store_of(tree: &dyn ReadTree) -> Result<StoreFile, PastError> {
    let path = RelPath::store();
    let bytes = tree.read(&path, 0, STORE_BYTES_MAX + 1);
    let bytes = bytes.map_err(OfflineError::from)?;
    let store = StoreFile::decode(&bytes).map_err(|reason| bad(&path, 0, reason))?;
    Ok(store)
}

/// Every log that there was, whatever the number of cores is now.
fn logs_of(node: &dyn ReadTree, logs: u32) -> Result<BTreeSet<u32>, PastError> {
    let mut found: BTreeSet<u32> = (0..logs).collect();
    for dir in [RelPath::log_dir(0).parent(), RelPath::archive_root()] {
        match node.list(&dir) {
            Ok(names) => {
                let ids = names.iter();
                found.extend(ids.filter_map(|(name, _)| u32::from_str_radix(name, 16).ok()));
            }
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(OfflineError::from(error).into()),
        }
    }
    Ok(found)
}

impl Notes {
    /// The records of the user in a log, up to the first frame that is younger than `until`.
    fn take_log(
        &mut self,
        mut walker: Walker<'_>,
        log_id: u32,
        (key, until): (&UserKey, WallNs),
        next_file: &mut dyn FnMut(),
    ) -> Result<(), PastError> {
        let mut file = None;
        loop {
            match walker.step()? {
                Step::End => return Ok(()),
                Step::File { header, .. } => {
                    next_file();
                    file = Some(header);
                }
                Step::Frame { frame, .. } if frame.wall > until => return Ok(()),
                Step::Frame {
                    frame,
                    offset,
                    bytes,
                } => {
                    let Some(header) = file else { continue };
                    let at = Frame {
                        log_id,
                        header,
                        offset,
                    };
                    self.frame(&at, &frame, &bytes, key).map_err(|reason| {
                        let path = walker.path().cloned();
                        bad(&path.unwrap_or(RelPath::log_dir(log_id)), offset, reason)
                    })?;
                }
            }
        }
    }

    fn frame(
        &mut self,
        at: &Frame,
        frame: &FrameHeader,
        bytes: &[u8],
        key: &UserKey,
    ) -> Result<(), CorruptReason> {
        let payload = frame.payload(bytes).map_err(FrameError::reason)?;
        let reserved = at.header.version.reserved();
        for record in Records::new(payload).reserved(reserved) {
            let record = record?;
            let head = &record.head;
            if matches!(record.payload, Payload::Truncate) && head.partition == key.partition() {
                self.void(head.pseq);
            }
            if (head.partition, head.user) == (key.partition(), key.hash()) {
                self.record(at, payload, &record)?;
            }
        }
        Ok(())
    }

    /// The partition's records above `pseq` so far count for nothing.
    fn void(&mut self, pseq: u64) {
        for records in self.records.values_mut() {
            records.retain(|noted| noted.pseq <= pseq);
        }
    }

    fn record(
        &mut self,
        at: &Frame,
        payload: &[u8],
        record: &Record<'_>,
    ) -> Result<(), CorruptReason> {
        let head = &record.head;
        let what = match &record.payload {
            Payload::UserCreate(name) => {
                self.names.insert(head.ordinal, name.to_vec());
                return Ok(());
            }
            Payload::Deliver(deliver) => {
                let body = Records::at(payload, deliver.body_at)?;
                let Payload::Body(body) = body.payload else {
                    return Err(CorruptReason::Value("a DELIVER that points at no BODY"));
                };
                What::Message {
                    head: Bytes::copy_from_slice(deliver.fixed.bytes()),
                    cache: Bytes::copy_from_slice(body.cache),
                    place: at.body(body.stored_at),
                }
            }
            Payload::DeliverFile(file) => What::Message {
                head: Bytes::copy_from_slice(file.fixed.bytes()),
                cache: Bytes::copy_from_slice(file.cache),
                place: Place::Own,
            },
            Payload::Flags(_) | Payload::Expunge(_) | Payload::Mailbox(_) | Payload::Keyword(_) => {
                What::Runs(Bytes::copy_from_slice(record.bytes))
            }
            Payload::Body(_)
            | Payload::InfoSwap(_)
            | Payload::Epoch
            | Payload::Truncate
            | Payload::Noop
            | Payload::Promise => return Ok(()),
        };
        let modseq = head.modseq.value();
        let records = self.records.entry(head.ordinal).or_default();
        let pseq = head.pseq;
        records.push(Noted { pseq, modseq, what });
        Ok(())
    }
}

/// Where a frame is.
struct Frame {
    log_id: u32,
    header: LogFileHeader,
    offset: u64,
}

impl Frame {
    /// Bytes at `at` of its payload.
    fn body(&self, at: usize) -> Place {
        let behind = u64::try_from(FRAME_HEADER_BYTES + at).expect("a frame is at most 4 MiB");
        Place::Log {
            log_id: self.log_id,
            header: self.header,
            body: self.offset + behind,
        }
    }
}

impl OfflineUser<'_> {
    /// Applies what came after the backup. Records of one log are in order; of two, since the number of
    /// cores may have changed, modseqs tell.
    fn replay(
        &mut self,
        mut records: Vec<Noted>,
    ) -> Result<BTreeMap<(MailboxId, Uid), Place>, PastError> {
        let known = self.tail.modseq;
        records.retain(|noted| noted.modseq > known);
        records.sort_by_key(|noted| noted.modseq);
        let mut places = BTreeMap::new();
        for noted in records {
            let dir = self.dir.clone();
            let bad = |reason| bad(&dir, 0, reason);
            match noted.what {
                What::Message { head, cache, place } => {
                    let msg = self.message(&head, cache).map_err(bad)?;
                    places.insert((msg.mailbox, msg.uid), place);
                }
                What::Runs(record) => self.runs(&record).map_err(bad)?,
            }
        }
        Ok(places)
    }

    fn message(&mut self, head: &Bytes, cache: Bytes) -> Result<Msg, CorruptReason> {
        let msg = MsgFixed::read(head)?.values(Reserved::Unknown)?;
        self.tail.take_place(&msg);
        if self.index.push(&msg, head.slice(..MSG_FIXED_BYTES), cache) {
            self.tail.count_in(&msg);
        }
        Ok(msg)
    }

    fn runs(&mut self, record: &[u8]) -> Result<(), CorruptReason> {
        let record = Records::at(record, 0)?;
        let (Payload::Flags(runs)
        | Payload::Expunge(runs)
        | Payload::Mailbox(runs)
        | Payload::Keyword(runs)) = record.payload
        else {
            return Ok(());
        };
        let mut dead = Vec::new();
        for run in runs {
            apply_run(&mut self.tail, Some(&mut self.index), &run.run?, &mut dead);
        }
        Ok(())
    }
}

impl Later<'_> {
    /// Hands a message on that came after the backup.
    pub(super) fn fetch(
        &self,
        place: &Place,
        (dir, msg): (&RelPath, &Msg),
        uidvalidity: u32,
        piece: &mut dyn FnMut(Bytes) -> bool,
    ) -> Result<(), OfflineError> {
        match place {
            Place::Log {
                log_id,
                header,
                body,
            } => {
                let path = self.log_file(*log_id, header)?;
                let read = |offset, len| self.node.read(&path, offset, len);
                hand_on(msg, (&path, *body), &read, piece)
            }
            Place::Own => {
                let path = self.own_file(dir, msg)?;
                let read = |offset, len| self.node.read(&path, offset, len);
                from_mbox(msg, &path, uidvalidity, &read, piece)
            }
        }
    }

    /// The name that a log file has now.
    fn log_file(&self, log_id: u32, header: &LogFileHeader) -> Result<RelPath, OfflineError> {
        let start = (Lsn::new(0), 0);
        let mut walker = Walker::new(self.node, (self.store.store, log_id), start);
        match walker.locate(header) {
            Ok(Some(path)) => Ok(path),
            Ok(None) => {
                let gone = RelPath::log_dir(log_id);
                Err(bad(
                    &gone,
                    header.start_lsn.value(),
                    CorruptReason::Truncated,
                ))
            }
            Err(BackupError::Io(error)) => Err(error.into()),
            Err(BackupError::Damaged(corrupt)) => Err(OfflineError::Damaged(corrupt)),
            Err(BackupError::NoSuchUser) => Err(OfflineError::NoSuchUser),
            Err(BackupError::Gap { lsn, .. }) => Err(bad(
                &RelPath::log_dir(log_id),
                lsn,
                CorruptReason::Truncated,
            )),
        }
    }

    /// The name that a large message's file has now.
    fn own_file(&self, dir: &RelPath, msg: &Msg) -> Result<RelPath, OfflineError> {
        let last = dir.large(msg.segment, msg.mailbox, msg.uid);
        for path in [&last, &dir.segment_part(msg.segment)] {
            match self.node.read(path, 0, 1) {
                Ok(_) => return Ok(path.clone()),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
        }
        // It was expunged since; the seconds at the end of its name are not known.
        let dirs = match self.node.list(&RelPath::archive_root()) {
            Ok(dirs) => dirs,
            Err(error) if error.is_not_found() => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        // Of any log that there was, whatever the number of cores is now.
        let ids = dirs.iter();
        for log_id in ids.filter_map(|(name, _)| u32::from_str_radix(name, 16).ok()) {
            let archived = last.archived_large(log_id, 0);
            let name = archived.as_ref().map(RelPath::file_name);
            let start = name
                .and_then(|name| name.rsplit_once('-'))
                .map(|(start, _)| start);
            let dir = RelPath::archive_dir(log_id);
            let names = match self.node.list(&dir) {
                Ok(names) => names,
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(error.into()),
            };
            let is_it = |name: &&String| name.rsplit_once('-').map(|(name, _)| name) == start;
            let found = names.iter().map(|(name, _)| name).find(is_it);
            if let Some(path) = found.and_then(|name| dir.entry(name)) {
                return Ok(path);
            }
        }
        Err(bad(&last, 0, CorruptReason::Truncated))
    }
}
