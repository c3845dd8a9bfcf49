//! One log directory: superblock, partition state, delivery ids, log files and the chain of frames
//! from the checkpoint to the end, told apart from damage by `flushed_lsn` (storage.md 6.1, 6.2).

use std::collections::BTreeMap;

use ringpost_netproto::id::PartitionId;

use super::redo::{Redo, UserId};
use super::segment::{prefix, stored_in_memory};
use super::tree::Window;
use super::{Checker, Severity};
use crate::error::{CorruptReason, IoError};
use crate::format::dedupe::{DEDUPE_ENTRY_BYTES, DEDUPE_HEADER_BYTES, DedupeEntry, DedupeHeader};
use crate::format::frame::{FRAME_HEADER_BYTES, FrameError, FrameHeader};
use crate::format::info::{Msg, MsgFixed, Seed};
use crate::format::log_file::{LOG_HEADER_BYTES, LogFileHeader};
use crate::format::parts::{self, ENTRIES_MAX, PARTS_ENTRY_BYTES, PARTS_HEADER_BYTES};
use crate::format::record::{Group, Head, Payload, Record, Records, chain};
use crate::format::store_file::StoreFile;
use crate::format::superblock::{Pair, SUPERBLOCK_BYTES, Superblock};
use crate::format::{crc, index};
use crate::io::RelPath;
use crate::limits::BLOCK_BYTES;
use crate::position::Lsn;

/// A log file whose first block was read.
struct LogFile {
    path: RelPath,
    bytes: u64,
    header: Option<LogFileHeader>,
    /// Why there is no header; `None` of a file of zeros.
    bad: Option<CorruptReason>,
}

/// Where the chains of a log's partitions stand.
#[derive(Default)]
struct Chains {
    /// Pseq and chain of the last record of each partition.
    last: BTreeMap<PartitionId, (u64, u32)>,
    /// Whether a partition that is missing in `last` has no record.
    complete: bool,
}

/// A walk over the frames of one log.
struct Walk<'a> {
    store: &'a StoreFile,
    log_id: u32,
    chains: Chains,
    redo: &'a mut Redo,
}

/// What stopped the walk over frames.
enum Stop {
    Frame(FrameError),
    Io(IoError),
}

impl From<IoError> for Stop {
    fn from(error: IoError) -> Self {
        Self::Io(error)
    }
}

impl Checker<'_> {
    /// Checks one log and adds what it holds above its checkpoint to `redo`. Without a valid
    /// superblock nothing is known of its records.
    pub(super) fn log(&mut self, store: &StoreFile, log_id: u32, redo: &mut Redo) {
        let names = self.tree.list(&RelPath::log_dir(log_id));
        if self.is_unmade(log_id, names.as_deref().unwrap_or_default()) {
            let path = RelPath::superblock(log_id);
            self.found(Severity::Minor, &path, 0, CorruptReason::Truncated);
            return;
        }
        let Some(superblock) = self.superblock(store, log_id) else {
            return;
        };
        let chains = self.parts(store, &superblock);
        self.dedupe(store, &superblock);
        let Some(files) = self.log_files(store, log_id) else {
            return;
        };
        let mut walk = Walk {
            store,
            log_id,
            chains,
            redo,
        };
        self.frames(&superblock, &files, &mut walk);
    }

    /// Whether a crash came before the log had anything in it: no log file, and no superblock or
    /// one of zeros.
    fn is_unmade(&self, log_id: u32, names: &[(String, u64)]) -> bool {
        let path = RelPath::superblock(log_id);
        let is_log = |(name, _): &(String, u64)| name.split('.').nth(1) == Some("log");
        if names.iter().any(is_log) {
            return false;
        }
        match self.tree.read(&path, 0, 2 * SUPERBLOCK_BYTES) {
            Ok(bytes) => bytes.iter().all(|byte| *byte == 0),
            Err(error) => error.is_not_found(),
        }
    }

    fn superblock(&mut self, store: &StoreFile, log_id: u32) -> Option<Superblock> {
        let path = RelPath::superblock(log_id);
        let bytes = self.read(&path, 0, 2 * SUPERBLOCK_BYTES)?;
        let copy_at = |copy: usize| u64::try_from(copy * SUPERBLOCK_BYTES).expect("0 or 4096");
        let pair = match Pair::open(&bytes, store.store, log_id) {
            Ok(pair) => pair,
            Err((first, second)) => {
                self.damage(&path, copy_at(0), first);
                self.damage(&path, copy_at(1), second);
                return None;
            }
        };
        if let Some(reason) = pair.other {
            self.found(
                Severity::Expected,
                &path,
                copy_at(1 - pair.current_copy),
                reason,
            );
        }
        let current = pair.current;
        let same = current.node == store.node
            && current.partitions == store.partitions
            && current.key_check == store.key.check();
        if !same {
            let reason = CorruptReason::Disagree("the superblock and STORE");
            self.damage(&path, copy_at(pair.current_copy), reason);
        }
        Some(current)
    }

    /// The valid partition state: where the chains stand at the checkpoint.
    fn parts(&mut self, store: &StoreFile, superblock: &Superblock) -> Chains {
        let mut chains = Chains {
            last: BTreeMap::new(),
            complete: superblock.checkpoint_lsn == Lsn::new(0),
        };
        let dir = RelPath::log_dir(superblock.log_id);
        let names = self.list(&dir).unwrap_or_default();
        let mut valid = false;
        for copy in 0..2 {
            let path = RelPath::parts(superblock.log_id, copy);
            if !names.iter().any(|(name, _)| name == path.file_name()) {
                continue;
            }
            let most = PARTS_HEADER_BYTES + index(ENTRIES_MAX) * PARTS_ENTRY_BYTES;
            let Some(bytes) = self.read(&path, 0, most) else {
                continue;
            };
            match parts::decode(&bytes, store.store, superblock.log_id) {
                Ok((sequence, states)) if sequence == superblock.parts_sequence => {
                    valid = true;
                    let state = |s: &parts::PartitionState| (s.partition, (s.pseq, s.chain));
                    chains.last = states.iter().map(state).collect();
                    chains.complete = true;
                }
                Ok(_) => {}
                Err(reason) => self.found(Severity::Expected, &path, 0, reason),
            }
        }
        if !valid && superblock.parts_sequence != 0 {
            let reason = CorruptReason::Disagree("the superblock and the partition state");
            self.damage(&RelPath::parts(superblock.log_id, 0), 0, reason);
        }
        chains
    }

    /// The ring of delivery ids is derived data: whatever is wrong with it is minor.
    fn dedupe(&mut self, store: &StoreFile, superblock: &Superblock) {
        let path = RelPath::dedupe(superblock.log_id);
        let names = self.list(&path.parent()).unwrap_or_default();
        if !names.iter().any(|(name, _)| name == path.file_name()) {
            if superblock.dedupe_next > 0 {
                self.found(Severity::Minor, &path, 0, CorruptReason::Truncated);
            }
            return;
        }
        let Some(bytes) = self.read(&path, 0, DEDUPE_HEADER_BYTES) else {
            return;
        };
        let header = match DedupeHeader::open(&bytes, store.store, superblock.log_id) {
            Ok(header) => header,
            Err(reason) => {
                self.found(Severity::Minor, &path, 0, reason);
                return;
            }
        };
        let next = superblock.dedupe_next;
        let first = next.saturating_sub(header.capacity).max(header.base_next);
        let tree = self.tree;
        let mut window = Window::new(tree, &path);
        for sequence in first..next {
            let offset = header.offset_of(sequence);
            let bytes = match window.at(offset, DEDUPE_ENTRY_BYTES) {
                Ok(bytes) => bytes,
                Err(error) => {
                    self.finding(Severity::Minor, error.corrupt());
                    return;
                }
            };
            // A checkpoint that did not reach its superblock may have put the next lap here.
            let entry = DedupeEntry::open(bytes, sequence).or_else(|reason| {
                DedupeEntry::open(bytes, sequence + header.capacity).or(Err(reason))
            });
            if let Err(reason) = entry {
                self.found(Severity::Minor, &path, offset, reason);
            }
        }
    }

    fn log_files(&mut self, store: &StoreFile, log_id: u32) -> Option<Vec<LogFile>> {
        let names = self.list(&RelPath::log_dir(log_id))?;
        let mut files = Vec::new();
        for (name, bytes) in names {
            let number = name.strip_suffix(".log").and_then(|stem| stem.parse().ok());
            let path = number.map(|number| RelPath::log_file(log_id, number));
            let Some(path) = path.filter(|path| path.file_name() == name) else {
                continue;
            };
            let Some(block) = self.read(&path, 0, LOG_HEADER_BYTES) else {
                continue;
            };
            let (header, bad) = match LogFileHeader::open(&block, store.store, log_id) {
                Ok(header) => (Some(header), None),
                Err(_) if block.iter().all(|byte| *byte == 0) => (None, None),
                Err(reason) => (None, Some(reason)),
            };
            if let Some(reason) = &bad {
                // Whether it hides frames is seen at the log's end.
                self.found(Severity::Minor, &path, 0, reason.clone());
            }
            files.push(LogFile {
                path,
                bytes,
                header,
                bad,
            });
        }
        Some(files)
    }

    /// Walks over the frames from the checkpoint on.
    fn frames(&mut self, superblock: &Superblock, files: &[LogFile], walk: &mut Walk<'_>) {
        let mut pos = superblock.checkpoint_lsn;
        let mut previous = superblock.previous_crc;
        let mut current = latest(files, |header, file| {
            header.start_lsn <= pos && pos < end_of(header, file.bytes)
        });
        if current.is_none() {
            // Nothing was ever logged, or the last file is full and the next was not armed.
            let blank = pos == Lsn::new(0)
                && files
                    .iter()
                    .all(|file| file.header.is_none() && file.bad.is_none());
            if !blank && latest(files, |header, file| end_of(header, file.bytes) == pos).is_none() {
                let path = RelPath::superblock(superblock.log_id);
                let reason = CorruptReason::Disagree("checkpoint_lsn and the log files");
                self.damage(&path, 72, reason);
            }
            return;
        }
        let mut last = None;
        while let Some((file, header)) = current {
            let next = latest(files, |other, _| {
                other.previous_salt == header.salt && other.sequence > header.sequence
            });
            let end = next.map_or(end_of(&header, file.bytes), |(_, next)| next.start_lsn);
            let mut window = Window::new(self.tree, &file.path);
            while pos < end {
                let offset = header.offset_of(pos).expect("the chain ascends");
                match read_frame(&mut window, &header, (pos, previous), offset) {
                    Ok((frame, payload)) => {
                        let place = Place {
                            file,
                            header: &header,
                            frame: &frame,
                            offset,
                        };
                        self.records(&place, &payload, walk);
                        pos = frame.end();
                        previous = frame.header_crc;
                    }
                    Err(Stop::Io(error)) => {
                        self.finding(Severity::Damage, error.corrupt());
                        return;
                    }
                    Err(Stop::Frame(error)) => {
                        self.log_end(files, file, pos, offset, error);
                        return;
                    }
                }
            }
            last = Some(file);
            current = next;
        }
        if let Some(file) = last {
            self.log_end(files, file, pos, file.bytes, FrameError::NotAFrame);
        }
    }

    /// No frame is at `pos`: the log ends here, unless a later frame says that it was flushed.
    fn log_end(
        &mut self,
        files: &[LogFile],
        file: &LogFile,
        pos: Lsn,
        offset: u64,
        error: FrameError,
    ) {
        for other in files {
            let later = other.header.is_some_and(|header| header.start_lsn >= pos);
            if other.path != file.path && !later && other.bad.is_none() {
                continue;
            }
            let mut window = Window::new(self.tree, &other.path);
            let mut at = BLOCK_BYTES;
            while at < other.bytes {
                let bytes = match window.at(at, FRAME_HEADER_BYTES) {
                    Ok(bytes) => bytes,
                    Err(error) => {
                        self.finding(Severity::Damage, error.corrupt());
                        break;
                    }
                };
                let vouches = FrameHeader::open(bytes).is_ok_and(|frame| {
                    let ours = other.header.is_none_or(|header| header.salt == frame.salt);
                    ours && frame.lsn >= pos && frame.flushed_lsn > pos
                });
                if vouches {
                    self.damage(&file.path, offset, error.reason());
                    return;
                }
                at += BLOCK_BYTES;
            }
        }
        let unused = matches!(error, FrameError::NotAFrame | FrameError::OtherSalt);
        if !unused {
            self.found(Severity::Expected, &file.path, offset, error.reason());
        }
    }

    /// Checks the records of a frame and adds them to `redo`.
    fn records(&mut self, place: &Place<'_>, payload: &[u8], walk: &mut Walk<'_>) {
        let mut count = 0;
        let mut group = Group::Ends;
        let reserved = place.header.version.reserved();
        for record in Records::new(payload).reserved(reserved) {
            let record = match record {
                Ok(record) => record,
                Err(reason) => {
                    self.damage(&place.file.path, place.offset, reason);
                    return;
                }
            };
            count += 1;
            group = record.head.group;
            let at = place.offset
                + u64::try_from(FRAME_HEADER_BYTES + record.at).expect("a frame is at most 4 MiB");
            let checked = check_record(walk, place.frame, payload, &record)
                .and_then(|()| check_chain(&mut walk.chains, &record));
            if let Err(reason) = checked {
                self.damage(&place.file.path, at, reason);
                continue;
            }
            if !matches!(record.payload, Payload::Body(_) | Payload::Noop) {
                let id = UserId {
                    partition: record.head.partition,
                    user: record.head.user,
                    ordinal: record.head.ordinal,
                };
                walk.redo.users.entry(id).or_default().add(&record);
            }
        }
        if group == Group::GoesOn || count != place.frame.records_count {
            let reason = CorruptReason::Value("a frame that does not end with its last record");
            self.damage(&place.file.path, place.offset, reason);
        }
    }
}

/// Where a frame is.
struct Place<'a> {
    file: &'a LogFile,
    header: &'a LogFileHeader,
    frame: &'a FrameHeader,
    offset: u64,
}

/// The position behind a log file's last byte.
fn end_of(header: &LogFileHeader, bytes: u64) -> Lsn {
    header.start_lsn.after(bytes.saturating_sub(BLOCK_BYTES))
}

/// Of the files that are wanted, the one armed last.
fn latest(
    files: &[LogFile],
    wanted: impl Fn(&LogFileHeader, &LogFile) -> bool,
) -> Option<(&LogFile, LogFileHeader)> {
    files
        .iter()
        .filter_map(|file| Some((file, file.header?)))
        .filter(|(file, header)| wanted(header, file))
        .max_by_key(|(_, header)| header.sequence)
}

fn read_frame(
    window: &mut Window<'_>,
    header: &LogFileHeader,
    (pos, previous): (Lsn, u32),
    offset: u64,
) -> Result<(FrameHeader, Vec<u8>), Stop> {
    let bytes = window.at(offset, FRAME_HEADER_BYTES)?;
    let frame = FrameHeader::open_at(bytes, header.salt, pos, previous).map_err(Stop::Frame)?;
    // `open_at` bounded the length by that of the largest frame.
    let bytes = window.at(offset, FRAME_HEADER_BYTES + index(frame.payload_len))?;
    let payload = frame.payload(bytes).map_err(Stop::Frame)?;
    Ok((frame, payload.to_vec()))
}

/// What must hold of a record beside its own bytes: its place, its body, the sums of its runs.
fn check_record(
    walk: &Walk<'_>,
    frame: &FrameHeader,
    payload: &[u8],
    record: &Record<'_>,
) -> Result<(), CorruptReason> {
    let head = &record.head;
    if let Payload::Body(body) = &record.payload {
        return if crc::of(body.stored) == head.body_crc {
            Ok(())
        } else {
            Err(CorruptReason::Checksum)
        };
    }
    if matches!(record.payload, Payload::Noop) {
        return Ok(());
    }
    let Walk { store, log_id, .. } = walk;
    let partition = store.partitions.partition(head.user);
    if partition != head.partition || u32::from(partition.value()) % store.logs != *log_id {
        return Err(CorruptReason::Identity);
    }
    match &record.payload {
        Payload::Deliver(deliver) => {
            let body = Records::at(payload, deliver.body_at)?;
            let Payload::Body(body) = body.payload else {
                return Err(CorruptReason::Value("a DELIVER that points at no BODY"));
            };
            stored_in_memory(body.stored, &deliver.msg)?;
            prefix(deliver.prefix, &deliver.msg, None).map_err(|(_, reason)| reason)?;
            check_msg(frame, head, (deliver.fixed, &deliver.msg), body.cache)
        }
        Payload::DeliverFile(file) => check_msg(frame, head, (file.fixed, &file.msg), file.cache),
        Payload::UserCreate(name) if store.key.user_hash(name) != head.user => {
            Err(CorruptReason::Identity)
        }
        _ => Ok(()),
    }
}

fn check_msg(
    frame: &FrameHeader,
    head: &Head,
    (fixed, msg): (&MsgFixed, &Msg),
    cache: &[u8],
) -> Result<(), CorruptReason> {
    let seed = Seed {
        user: head.user,
        generation: head.generation,
    };
    if cache.len() != usize::from(fixed.cache_slots()) * 64 {
        return Err(CorruptReason::Length);
    }
    fixed.check_crc(seed, head.slot, crc::of(cache))?;
    crate::header_cache::decode(cache)?;
    if msg.lsn != frame.lsn {
        return Err(CorruptReason::Disagree(
            "a MSG run and the frame that holds it",
        ));
    }
    Ok(())
}

/// Pseq without a hole, and the chain.
fn check_chain(chains: &mut Chains, record: &Record<'_>) -> Result<(), CorruptReason> {
    let head = &record.head;
    if head.pseq == 0 {
        return Ok(());
    }
    let before = chains.last.insert(head.partition, (head.pseq, head.chain));
    match before.or(chains.complete.then_some((0, 0))) {
        Some((pseq, _)) if pseq + 1 != head.pseq => {
            Err(CorruptReason::Value("a hole in a partition's records"))
        }
        Some((_, previous)) if chain(previous, record.bytes) != head.chain => {
            Err(CorruptReason::Checksum)
        }
        _ => Ok(()),
    }
}
