//! The copy of a whole data directory, or of what one user has of it, a small step at a time, so that
//! whoever copies can show progress, prolong its lease, and stop.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use ringpost_netproto::id::PartitionId;

use super::only::{Only, write_sparse};
use super::{BackupError, Step as Walked, Target, Walker};
use crate::check::{ReadTree, UserId};
use crate::error::{Corrupt, CorruptReason, IoError};
use crate::format::frame::{FRAME_HEADER_BYTES, FrameHeader, FrameKind};
use crate::format::log_file::{LOG_HEADER_BYTES, LogFileHeader};
use crate::format::parts::{ENTRIES_MAX, PARTS_ENTRY_BYTES, PARTS_HEADER_BYTES};
use crate::format::record::{Payload, Records};
use crate::format::store_file::{STORE_BYTES_MAX, StoreFile};
use crate::format::superblock::{Pair, SUPERBLOCK_BYTES, Superblock};
use crate::format::{Reserved, index};
use crate::io::RelPath;
use crate::limits::BLOCK_BYTES;
use crate::position::Lsn;

/// Bytes of one step.
const PIECE: usize = 1 << 20;

/// A superblock is read again when a checkpoint ended meanwhile; they come seconds apart.
const TRIES_MAX: u32 = 20;

/// How far a copy is.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Progress {
    /// Partitions and logs that are done.
    pub done: u64,
    /// Partitions and logs in all.
    pub of: u64,
    /// Files so far.
    pub files: u64,
    /// Bytes so far.
    pub bytes: u64,
}

/// What was copied of one log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CopiedLog {
    /// Which.
    pub log_id: u32,
    /// Where the copy starts to replay.
    pub checkpoint_lsn: Lsn,
    /// Where its log ends.
    pub end: Lsn,
}

/// A finished copy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Copy {
    /// The store.
    pub store: StoreFile,
    /// Each log, ascending.
    pub logs: Vec<CopiedLog>,
    /// Files and bytes.
    pub progress: Progress,
}

/// What a copy wants next.
#[derive(Debug)]
pub enum Next {
    /// Another step.
    More,
    /// [`Copier::mark`]: where the logs end by now.
    Mark,
    /// Nothing.
    Done(Box<Copy>),
}

/// A log that is being copied.
struct Log<'a> {
    id: u32,
    walker: Walker<'a>,
    checkpoint_lsn: Lsn,
    /// The walk is done from here on.
    mark: Option<Lsn>,
    /// The file that is written, and its header's.
    to: Option<(RelPath, LogFileHeader)>,
    number: u32,
    /// Of the last frame of the copy.
    previous_crc: u32,
}

/// A file that is being copied.
struct File {
    from: RelPath,
    to: RelPath,
    offset: u64,
    /// A large message under a name that may change.
    other: Option<RelPath>,
    identity: Option<(u64, u64)>,
}

/// A large message that the log names.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Large {
    part: RelPath,
    last: RelPath,
}

/// See the module.
pub struct Copier<'a> {
    tree: &'a dyn ReadTree,
    store: StoreFile,
    logs: Vec<Log<'a>>,
    log_at: usize,
    /// Still to be listed.
    partitions: Range<u32>,
    /// The user, if it is not everything.
    only: Option<Only>,
    files: VecDeque<File>,
    users: VecDeque<RelPath>,
    copied: BTreeSet<RelPath>,
    linked: BTreeMap<(u64, u64), RelPath>,
    large: BTreeSet<Large>,
    /// Names of files that the log names.
    wanted: BTreeSet<RelPath>,
    marked: Marked,
    progress: Progress,
}

/// Whether the logs' ends are known.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Marked {
    Yes,
    No,
}

impl<'a> Copier<'a> {
    /// Begins a copy: STORE, directories, and each superblock with its tables. Every shard of a
    /// running node holds a backup by then.
    ///
    /// # Errors
    /// STORE or a superblock cannot be read, or nothing can be written.
    pub fn new(tree: &'a dyn ReadTree, target: &mut dyn Target) -> Result<Self, BackupError> {
        Self::begin(tree, target, None)
    }

    /// The same, of the user with a canonical name: the user's files, and the log with all that is not
    /// the user's blanked. That there is no such user may turn out at the end of it.
    ///
    /// # Errors
    /// As above; the name is none.
    pub fn of_user(
        tree: &'a dyn ReadTree,
        target: &mut dyn Target,
        name: &[u8],
    ) -> Result<Self, BackupError> {
        Self::begin(tree, target, Some(name))
    }

    fn begin(
        tree: &'a dyn ReadTree,
        target: &mut dyn Target,
        name: Option<&[u8]>,
    ) -> Result<Self, BackupError> {
        let path = RelPath::store();
        let bytes = tree.read(&path, 0, STORE_BYTES_MAX + 1)?;
        let store = StoreFile::decode(&bytes).map_err(|reason| corrupt(&path, reason))?;
        let only = name.map(|name| Only::new(name, &store)).transpose()?;
        target.make_dir(&RelPath::log_dir(0).parent())?;
        target.make_dir(&RelPath::stage(0, 0).parent())?;
        target.make_dir(&RelPath::partition_dir(PartitionId::new(0)).parent())?;
        let mut partitions = 0..store.partitions.value();
        for partition in partitions.clone() {
            target.make_dir(&partition_dir(partition))?;
        }
        if let Some(only) = &only {
            partitions = only.partition()..only.partition() + 1;
        }
        let mut progress = Progress {
            of: u64::from(partitions.end - partitions.start) + u64::from(store.logs),
            ..Progress::default()
        };
        let mut logs = Vec::new();
        for log_id in 0..store.logs {
            target.make_dir(&RelPath::log_dir(log_id))?;
            let whole = only.is_none();
            if let Some(log) = tables(tree, target, (&store, log_id), whole, &mut progress)? {
                logs.push(log);
            }
        }
        target.write(&path, 0, &bytes)?;
        Ok(Self {
            tree,
            store,
            logs,
            log_at: 0,
            partitions,
            only,
            files: VecDeque::new(),
            users: VecDeque::new(),
            copied: BTreeSet::new(),
            linked: BTreeMap::new(),
            large: BTreeSet::new(),
            wanted: BTreeSet::new(),
            marked: Marked::No,
            progress,
        })
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Says where the logs end by now, by their number: a running node tells it
    /// ([`Event::BackupBegun`](crate::request::Event)) whenever its backup is prolonged. A log that is
    /// not in `ends` does not grow and is copied to its end.
    pub fn mark(&mut self, ends: &[Lsn]) {
        self.marked = Marked::Yes;
        for log in &mut self.logs {
            log.mark = ends.get(index(log.id)).copied();
        }
    }

    /// Does a little more.
    pub fn step(&mut self, target: &mut dyn Target) -> Result<Next, BackupError> {
        if let Some(file) = self.files.pop_front() {
            self.piece(target, file)?;
            return Ok(Next::More);
        }
        if let Some(dir) = self.users.pop_front() {
            self.user(target, &dir)?;
            return Ok(Next::More);
        }
        if let Some(partition) = self.partitions.next() {
            self.partition(partition)?;
            return Ok(Next::More);
        }
        if self.marked == Marked::No {
            return Ok(Next::Mark);
        }
        if self.log_at < self.logs.len() {
            self.log(target)?;
            return Ok(Next::More);
        }
        if self.only.as_ref().is_some_and(|only| !only.is_found()) {
            return Err(BackupError::NoSuchUser);
        }
        let logs = self.logs.iter().map(|log| CopiedLog {
            log_id: log.id,
            checkpoint_lsn: log.checkpoint_lsn,
            end: log.walker.end().0,
        });
        Ok(Next::Done(Box::new(Copy {
            store: self.store.clone(),
            logs: logs.collect(),
            progress: self.progress,
        })))
    }

    fn partition(&mut self, partition: u32) -> Result<(), BackupError> {
        let dir = partition_dir(partition);
        let partition = PartitionId::new(u16::try_from(partition).unwrap_or(u16::MAX));
        for (name, _) in self.tree.list(&dir)? {
            let Some(id) = UserId::named(partition, &name) else {
                continue;
            };
            let wanted = match &mut self.only {
                Some(only) => only.takes(self.tree, &id)?,
                None => true,
            };
            if wanted {
                self.users.extend(dir.entry(&name));
            }
        }
        self.progress.done += 1;
        Ok(())
    }

    /// The files of a user. Part files are the log's to name; those of a compaction are nobody's.
    fn user(&mut self, target: &mut dyn Target, dir: &RelPath) -> Result<(), BackupError> {
        let names = self.tree.list(dir)?;
        target.make_dir(dir)?;
        for (name, _) in names {
            let unborn = [".part", ".new"].iter().any(|end| name.ends_with(end));
            let Some(path) = dir.entry(&name).filter(|_| !unborn) else {
                continue;
            };
            self.want(path.clone(), path, None);
        }
        Ok(())
    }

    fn want(&mut self, from: RelPath, to: RelPath, other: Option<RelPath>) {
        self.files.push_back(File {
            from,
            to,
            offset: 0,
            other,
            identity: None,
        });
    }

    /// The next bytes of a file. One that vanished was dead, or has another name now.
    fn piece(&mut self, target: &mut dyn Target, mut file: File) -> Result<(), BackupError> {
        if file.offset == 0 && is_large(&file.to) {
            file.identity = self.tree.identity(&file.from);
            let known = file.identity.and_then(|id| self.linked.get(&id).cloned());
            if let Some(known) = known
                && target.link(&known, &file.to)?
            {
                self.end_file(file);
                return Ok(());
            }
        }
        let bytes = match self.tree.read(&file.from, file.offset, PIECE) {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => {
                match file.other.take() {
                    // A part file gets its last name once, and never the other way round.
                    Some(other) => {
                        file.from = other;
                        self.files.push_front(file);
                    }
                    // Of a user's listing: dead before the copy began, or a name that is gone.
                    None if !self.wanted.contains(&file.to) => {}
                    None => return Err(error.into()),
                }
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        if !bytes.is_empty() || file.offset == 0 {
            target.write(&file.to, file.offset, &bytes)?;
        }
        let len = u64::try_from(bytes.len()).unwrap_or(0);
        self.progress.bytes += len;
        file.offset += len;
        if bytes.len() < PIECE {
            self.end_file(file);
        } else {
            self.files.push_front(file);
        }
        Ok(())
    }

    fn end_file(&mut self, file: File) {
        self.progress.files += 1;
        if let Some(identity) = file.identity {
            self.linked.entry(identity).or_insert(file.to.clone());
        }
        if is_large(&file.to) {
            self.copied.insert(file.to);
        }
    }

    /// The next frames of a log.
    fn log(&mut self, target: &mut dyn Target) -> Result<(), BackupError> {
        let Some(log) = self.logs.get_mut(self.log_at) else {
            return Ok(());
        };
        // The file that holds the position is wanted even if nothing came behind it.
        let is_enough = log.number > 0 && log.mark.is_some_and(|mark| log.walker.end().0 >= mark);
        let step = if is_enough {
            Walked::End
        } else {
            log.walker.step()?
        };
        match step {
            Walked::File { header, .. } => {
                log.number += 1;
                let to = RelPath::log_file(header.log_id, log.number);
                let bytes = if self.only.is_some() {
                    log.start_sparse(target, &to, &header)?
                } else {
                    log.start(target, &to, &header)?
                };
                self.progress.bytes += bytes;
                log.to = Some((to, header));
                self.progress.files += 1;
            }
            Walked::Frame {
                frame,
                offset,
                bytes,
            } => {
                if let Some((to, header)) = &log.to {
                    let reserved = header.version.reserved();
                    let mut bytes = bytes;
                    if let Some(only) = &mut self.only {
                        let payload = frame.payload(&bytes).unwrap_or_default();
                        let sealed = only.frame(&frame, payload, (reserved, log.previous_crc));
                        let (sealed, own) = sealed.map_err(|reason| Corrupt {
                            offset,
                            ..corrupt(log.walker.path().unwrap_or(to), reason)
                        })?;
                        log.previous_crc = sealed.header_crc;
                        write_sparse(target, to, offset, (&own, u64::from(frame.frame_len)))?;
                        bytes = own;
                    } else {
                        write_frame(target, to, &frame, offset, &bytes)?;
                    }
                    let payload = bytes.get(FRAME_HEADER_BYTES..).unwrap_or_default();
                    let named = large_of(payload, reserved);
                    let named = named.filter(|large| !self.copied.contains(&large.last));
                    self.large.extend(named);
                }
                self.progress.bytes += u64::from(frame.frame_len);
            }
            Walked::End => {
                self.log_at += 1;
                self.progress.done = (self.progress.done + 1).min(self.progress.of);
                if self.log_at == self.logs.len() {
                    self.want_large(target)?;
                }
            }
        }
        Ok(())
    }

    /// Files that came after the turn of their user, under the name that they will have.
    fn want_large(&mut self, target: &mut dyn Target) -> Result<(), BackupError> {
        let wanted: Vec<Large> = self.large.iter().cloned().collect();
        for Large { part, last } in wanted {
            if !self.copied.contains(&last) {
                target.make_dir(&last.parent())?;
                self.wanted.insert(last.clone());
                let (from, to) = (part, last.clone());
                self.want(from, to, Some(last));
            }
        }
        Ok(())
    }
}

impl Log<'_> {
    /// The start of the next file, up to where the walk goes on. What it holds in front of that is not
    /// needed; but a hole would be: writing into one later wants a journal's commit.
    fn start(
        &mut self,
        target: &mut dyn Target,
        to: &RelPath,
        header: &LogFileHeader,
    ) -> Result<u64, BackupError> {
        let until = header.offset_of(self.walker.end().0).unwrap_or(0);
        let mut offset = 0;
        while offset < until {
            let left = usize::try_from(until - offset).unwrap_or(PIECE);
            let bytes = self.walker.read(offset, left.min(PIECE))?;
            if bytes.is_empty() {
                break;
            }
            target.write(to, offset, &bytes)?;
            offset += u64::try_from(bytes.len()).unwrap_or(0);
        }
        Ok(offset)
    }

    /// The same without anybody's mail: the header and a hole, since nobody writes there.
    fn start_sparse(
        &mut self,
        target: &mut dyn Target,
        to: &RelPath,
        header: &LogFileHeader,
    ) -> Result<u64, BackupError> {
        let bytes = self.walker.read(0, LOG_HEADER_BYTES)?;
        let until = header.offset_of(self.walker.end().0).unwrap_or(0);
        write_sparse(target, to, 0, (&bytes, until))?;
        Ok(u64::try_from(bytes.len()).unwrap_or(0))
    }
}

/// A frame as it lies on disk: padded, the rest of a file behind a SKIP as zeros.
fn write_frame(
    target: &mut dyn Target,
    to: &RelPath,
    frame: &FrameHeader,
    offset: u64,
    bytes: &[u8],
) -> Result<(), IoError> {
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().next_multiple_of(index_of(BLOCK_BYTES)), 0);
    target.write(to, offset, &padded)?;
    if frame.kind == FrameKind::Skip {
        let zeros = vec![0; index(frame.frame_len).saturating_sub(padded.len())];
        let behind = offset + u64::try_from(padded.len()).unwrap_or(0);
        for (number, piece) in zeros.chunks(PIECE).enumerate() {
            let at = behind + u64::try_from(number * PIECE).unwrap_or(0);
            target.write(to, at, piece)?;
        }
    }
    Ok(())
}

fn index_of(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// The large messages that the records of a frame name.
fn large_of(payload: &[u8], reserved: Reserved) -> impl Iterator<Item = Large> {
    let records = Records::new(payload).reserved(reserved);
    records.filter_map(Result::ok).filter_map(|record| {
        let Payload::DeliverFile(file) = &record.payload else {
            return None;
        };
        let dir = UserId::of(&record.head).dir();
        Some(Large {
            part: dir.segment_part(file.msg.segment),
            last: dir.large(file.msg.segment, file.msg.mailbox, file.msg.uid),
        })
    })
}

/// Whether a name is that of one large message.
fn is_large(path: &RelPath) -> bool {
    path.file_name().split('.').count() == 4
}

fn partition_dir(partition: u32) -> RelPath {
    RelPath::partition_dir(PartitionId::new(
        u16::try_from(partition).unwrap_or(u16::MAX),
    ))
}

fn corrupt(path: &RelPath, reason: CorruptReason) -> Corrupt {
    Corrupt {
        file: path.to_string(),
        offset: 0,
        reason,
    }
}

/// A file of a log that is small, or nothing if it is not there.
fn small(tree: &dyn ReadTree, path: &RelPath, max: usize) -> Result<Vec<u8>, IoError> {
    match tree.read(path, 0, max) {
        Err(error) if error.is_not_found() => Ok(Vec::new()),
        other => other,
    }
}

/// Copies a superblock and the tables that belong to it; if it is not everything, without these, since
/// they are of all users. `None` if the log was never written.
fn tables<'a>(
    tree: &'a dyn ReadTree,
    target: &mut dyn Target,
    (store, log_id): (&StoreFile, u32),
    whole: bool,
    progress: &mut Progress,
) -> Result<Option<Log<'a>>, BackupError> {
    let path = RelPath::superblock(log_id);
    let open = |bytes: &[u8]| Pair::open(bytes, store.store, log_id);
    let parts_max = PARTS_HEADER_BYTES + index(ENTRIES_MAX) * PARTS_ENTRY_BYTES;
    for _try in 0..TRIES_MAX {
        let bytes = small(tree, &path, 2 * SUPERBLOCK_BYTES)?;
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let pair = open(&bytes).map_err(|(reason, _)| corrupt(&path, reason))?;
        let from = (pair.current.checkpoint_lsn, pair.current.previous_crc);
        let log = |walker| Log {
            id: log_id,
            mark: None,
            walker,
            checkpoint_lsn: from.0,
            to: None,
            number: 0,
            previous_crc: from.1,
        };
        let walker = Walker::new(tree, (store.store, log_id), from);
        if !whole {
            let without = Superblock {
                dedupe_next: 0,
                parts_sequence: 0,
                ..pair.current
            };
            let bytes = without.seal().repeat(2);
            target.write(&path, 0, &bytes)?;
            progress.files += 1;
            progress.bytes += u64::try_from(bytes.len()).unwrap_or(0);
            return Ok(Some(log(walker)));
        }
        let parts = RelPath::parts(log_id, u8::from(pair.current.parts_sequence % 2 == 1));
        let states = small(tree, &parts, parts_max)?;
        let dedupe = RelPath::dedupe(log_id);
        let mut copied = copy_whole(tree, target, &dedupe)?;
        let again = small(tree, &path, 2 * SUPERBLOCK_BYTES)?;
        let same = open(&again).is_ok_and(|again| again.current == pair.current);
        if !same {
            continue;
        }
        for (path, bytes) in [(&path, &bytes), (&parts, &states)] {
            if !bytes.is_empty() {
                target.write(path, 0, bytes)?;
                copied.0 += 1;
                copied.1 += u64::try_from(bytes.len()).unwrap_or(0);
            }
        }
        progress.files += copied.0;
        progress.bytes += copied.1;
        return Ok(Some(log(walker)));
    }
    let what = "the superblock and its tables: checkpoints end faster than they can be read";
    Err(corrupt(&path, CorruptReason::Disagree(what)).into())
}

fn copy_whole(
    tree: &dyn ReadTree,
    target: &mut dyn Target,
    path: &RelPath,
) -> Result<(u64, u64), BackupError> {
    let mut offset = 0;
    loop {
        let bytes = match tree.read(path, offset, PIECE) {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => return Ok((0, 0)),
            Err(error) => return Err(error.into()),
        };
        if !bytes.is_empty() {
            target.write(path, offset, &bytes)?;
        }
        offset += u64::try_from(bytes.len()).unwrap_or(0);
        if bytes.len() < PIECE {
            return Ok((1, offset));
        }
    }
}
