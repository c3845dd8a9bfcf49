//! Opening a shard: superblock, tables of the last checkpoint, replay of the log (storage.md 6).
//!
//! Replay puts every record of the log back where it was before the end: into the pending entries of
//! its user. Nothing on disk changes but one armed log file and the superblock's boot counter, so
//! a crash in it repeats it with the same result. No index is read.

mod unproven;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use ringpost_netproto::id::{Epoch, PartitionId, UserHash};
use slab::Slab;
use smallvec::SmallVec;

use super::append::seconds;
use super::backup::Backups;
use super::checkpoint::{Checkpoint, NewFile, sealed};
use super::compact::Compactor;
use super::copies::{Copies, Gate, replicas};
use super::partitions::Partitions;
use super::purse::Purse;
use super::scrub::Scrubber;
use super::snapshot::Snapshots;
use super::stage::Stages;
use super::{Looking, Phase, Shard, ShardIdentity, Space};
use crate::canary::{self, Canary};
use crate::commit::Positions;
use crate::config::{self, ShardConfig};
use crate::dedupe::Window;
use crate::error::{Corrupt, CorruptReason, IoError, OpenError};
use crate::format::Reserved;
use crate::format::dedupe::{CAPACITY_MAX, DEDUPE_ENTRY_BYTES, DEDUPE_HEADER_BYTES};
use crate::format::dedupe::{DedupeEntry, DedupeHeader};
use crate::format::frame::{FRAME_HEADER_BYTES, FrameHeader};
use crate::format::info::MSG_FIXED_BYTES;
use crate::format::parts::{self, ENTRIES_MAX, PARTS_ENTRY_BYTES, PARTS_HEADER_BYTES};
use crate::format::record::{
    DELIVER_FILE_FIXED_AT, DELIVER_FIXED_AT, Payload, RECORD_HEADER_BYTES, Record, Records,
};
use crate::format::superblock::{Pair, SUPERBLOCK_BYTES, Shutdown, Superblock};
use crate::io::{AlignedBuf, Done, FileId, Io, Op, OpenMode, RelPath};
use crate::log::{Files, Found, Log, Salts, recover};
use crate::metrics::Metrics;
use crate::ops::{Ops, unreachable_done};
use crate::pending::{Bodies, Entry, LargeMail, PendingBody, SmallMail, Swap, What};
use crate::position::Lsn;
use crate::request::{Event, Notice, Now};
use crate::user::{Lag, Users};
use unproven::{Local, Moved, Unproven};

impl<I: Io> Shard<I> {
    /// Opens one shard of a store and replays its log. Blocks until the shard can serve. `seed` is
    /// entropy for the salts of log files.
    #[expect(
        clippy::too_many_lines,
        reason = "one step behind the other, and every field once"
    )]
    pub fn open(
        io: I,
        identity: ShardIdentity,
        config: ShardConfig,
        seed: [u8; 16],
        now: Now,
    ) -> Result<Self, OpenError> {
        let dir = RelPath::log_dir(identity.log_id);
        config.check().map_err(|rule| OpenError::Unusable {
            path: dir.to_string(),
            reason: format!("the configuration breaks a rule: {rule}"),
        })?;
        let mut ops = Ops::new(io);
        ops.run_plain(Op::MakeDir { path: dir.clone() })?;
        ops.run_plain(Op::SyncDir { path: dir.parent() })?;
        clear_stage(&mut ops, &identity)?;
        let (super_file, super_copy, mut superblock) = open_super(&mut ops, &identity)?;
        let mut redo = Redo::new(&identity, &config);
        redo.ends
            .push_back((superblock.checkpoint_lsn, superblock.previous_crc));
        redo.read_tables(&mut ops, &identity, &superblock)?;
        let recovery = recover(
            &mut ops,
            identity.log(),
            config.log_file_bytes,
            (superblock.checkpoint_lsn, superblock.previous_crc),
            |reserved, frame, payload| {
                if canary::on(Canary::ReplayedTwice) {
                    redo.apply(&identity, reserved, frame, payload)?;
                }
                redo.apply(&identity, reserved, frame, payload)
            },
        )?;
        let mut files = Files::new(
            identity.log(),
            config.log_file_bytes,
            config.log_files_max,
            Salts::new(&seed, superblock.boots),
        );
        let (backups, archived) =
            Backups::open(&mut ops, (identity.log_id, identity.logs), config.archive)?;
        let is_archived = |found: &Found| {
            let sequence = found.header.map(|header| header.sequence);
            sequence.is_some_and(|sequence| archived.contains(&sequence))
        };
        for found in &recovery.found {
            let outgrown = found.bytes != config.log_file_bytes;
            // One that a crash left with both names belongs to the archive alone.
            let leaves = outgrown || is_archived(found);
            if leaves && !found.damaged && !recovery.chain.contains(&found.number) {
                let path = RelPath::log_file(identity.log_id, found.number);
                ops.run_plain(Op::Close { file: found.file })?;
                ops.run_plain(Op::Unlink { path })?;
                continue;
            }
            files.add_free((found.number, found.bytes), found.file, found.header);
        }
        files.set_live(&recovery.chain);
        files.keep(backups.keep());
        if config.archive.is_some() {
            files.hold_passed(superblock.checkpoint_lsn);
        }
        while files.count() < config.log_files_initial {
            files.make_now(&mut ops)?;
        }
        superblock.sequence += 1;
        superblock.boots += 1;
        superblock.shutdown = Shutdown::Open;
        superblock.written_at = now.wall;
        let super_copy = super_copy ^ 1;
        write_super(&mut ops, super_file, super_copy, &superblock)?;
        let goes_on = !recovery.chain.is_empty() && recovery.end < files.active_end();
        let reused = goes_on && canary::on(Canary::TornFileReused);
        if !reused {
            files.start_now(&mut ops, recovery.end, now.wall)?;
        }
        if let Some(torn) = recovery.torn_at {
            redo.notices.push(Notice::TornTail(Arc::new(torn)));
        }
        let confirmed = redo.confirmed(&config, recovery.end);
        let mut copies = Copies::new(gate_unsaid(&config), recovery.end);
        let partitions = redo.partitions.clone();
        redo.withdraw(confirmed, recovery.end, &mut copies);
        let mut log = Log::new(
            &mut ops,
            &config,
            files,
            recovery.end,
            recovery.previous_crc,
            now,
        );
        log.knows_ends(redo.ends.iter().copied());
        let metrics = Metrics {
            recovered_bytes: recovery.bytes,
            recovered_records: redo.records,
            checkpoint_at_ns: now.monotonic.value(),
            ..Metrics::default()
        };
        let interval = config.scrub_interval_ns;
        let scrubber = Scrubber::open(&mut ops, (identity.log_id, identity.logs), interval, now);
        let mut shard = Self {
            ops,
            identity,
            epoch: Epoch::new(superblock.boots.max(partitions.promised_max().value() + 1)),
            users: redo.users,
            log,
            positions: Positions::recovered(superblock.checkpoint_lsn, confirmed, recovery.end),
            copies,
            dedupe_durable: redo.dedupe_durable,
            window: redo.window,
            recent: Window::new(crate::limits::RECENT_ENTRIES),
            bodies: redo.bodies,
            pending_records: redo.records,
            dirty: redo.dirty,
            partitions,
            partitions_durable: redo.partitions,
            marks: SmallVec::new(),
            appends: Slab::new(),
            ready: VecDeque::new(),
            larges: Slab::new(),
            stages: Stages::default(),
            changes: Slab::new(),
            turns: VecDeque::new(),
            reads: Slab::new(),
            snapshots: Snapshots::default(),
            watches: BTreeMap::new(),
            unfolded: Vec::new(),
            loads: BTreeMap::new(),
            index_bytes: 0,
            checkpoint: Checkpoint::new(
                now.monotonic,
                superblock.parts_sequence,
                redo.new_dedupe_file,
            ),
            compactor: Compactor::new(),
            scrubber,
            purse: Purse::new(now.monotonic),
            backups,
            readers_begun: 0,
            superblock,
            super_copy,
            super_file,
            space: Space {
                free_bytes: u64::MAX,
                floor_bytes: 0,
                free_inodes: u64::MAX,
                inodes_floor: 0,
                looked_at: now.monotonic,
                looking: Looking::No,
                refused: false,
            },
            metrics,
            tickets_issued: 0,
            tickets_open: 0,
            events: redo.notices.into_iter().map(Event::Notice).collect(),
            phase: Phase::Serving,
            ended: Vec::new(),
            config,
        };
        let space = shard.ops.run(Op::FreeSpace);
        shard.space_looked(now, space);
        shard.load_unfolded();
        shard.gauges(now);
        Ok(shard)
    }

    /// Begins to read the users whose mailboxes changed since the checkpoint: what `folders` will
    /// say takes their whole index. Those that were made since tell it themselves.
    fn load_unfolded(&mut self) {
        for index in self.dirty.clone() {
            let user = self.users.get(index);
            let made = user
                .unwritten()
                .any(|entry| matches!(entry.what, What::Create { .. }));
            if !made && user.folders == Lag::Yes {
                self.unfolded.push(index);
                self.start_load(index, None);
            }
        }
    }

    /// Writes the superblock over the older copy, while nothing else is in flight.
    pub(super) fn rewrite_super(&mut self) -> Result<(), IoError> {
        self.super_copy ^= 1;
        write_super(
            &mut self.ops,
            self.super_file,
            self.super_copy,
            &self.superblock,
        )
    }

    /// The deliveries remembered, oldest first: for a change of the number of logs, once drained.
    pub(crate) fn deliveries(&self) -> impl Iterator<Item = DedupeEntry> + '_ {
        self.window.entries()
    }

    /// Sequence number of the next delivery remembered.
    pub(crate) fn deliveries_next(&self) -> u64 {
        self.window.next()
    }
}

/// What lies in `stage/` was promised to nobody. Each shard clears its own; the first one also what
/// is left of a layout with more logs.
fn clear_stage<I: Io>(ops: &mut Ops<I>, identity: &ShardIdentity) -> Result<(), IoError> {
    let dir = RelPath::stage(identity.log_id, 0).parent();
    let names = match ops.run_plain(Op::ListDir { path: dir.clone() })? {
        Done::Listing(names) => names,
        other => unreachable_done(&other),
    };
    for (name, _) in names {
        let owner = name
            .split_once('-')
            .and_then(|(id, _)| u32::from_str_radix(id, 16).ok());
        let owner = owner.filter(|owner| *owner < identity.logs).unwrap_or(0);
        if let Some(path) = dir.entry(&name).filter(|_| owner == identity.log_id) {
            ops.run_plain(Op::Unlink { path })?;
        }
    }
    Ok(())
}

/// Opens the superblock, or makes the first one of a new log: handle, valid copy, contents.
fn open_super<I: Io>(
    ops: &mut Ops<I>,
    identity: &ShardIdentity,
) -> Result<(FileId, u64, Superblock), OpenError> {
    let path = RelPath::superblock(identity.log_id);
    let file_bytes = 2 * SUPERBLOCK_BYTES;
    let opened = ops.run_plain(Op::Open {
        path: path.clone(),
        mode: OpenMode::Log,
    });
    let file = match opened {
        Ok(Done::Opened { file, .. }) => file,
        Ok(other) => unreachable_done(&other),
        Err(error) if error.is_not_found() => {
            if has_log_files(ops, identity)? {
                let file = path.to_string();
                return Err(Corrupt {
                    file,
                    offset: 0,
                    reason: CorruptReason::Truncated,
                }
                .into());
            }
            return new_super(ops, identity, &path);
        }
        Err(error) => return Err(error.into()),
    };
    // A killed process may have one on its way: it must not land on what is written from here on.
    if !canary::on(Canary::ReadBeforeSync) {
        ops.run_plain(Op::Sync { file })?;
    }
    let (bytes, count) = ops.run_read(file, 0, AlignedBuf::zeroed(file_bytes))?;
    let bytes = bytes.get(..count).unwrap_or_default();
    let pair = match Pair::open(bytes, identity.store, identity.log_id) {
        Ok(pair) => pair,
        // A crash in the making of the log: zeros, and nothing was ever written.
        Err(_) if bytes.iter().all(|byte| *byte == 0) && !has_log_files(ops, identity)? => {
            ops.run_plain(Op::Close { file })?;
            return new_super(ops, identity, &path);
        }
        // The same where the device garbled the first block that was written to it.
        Err((CorruptReason::Magic | CorruptReason::Checksum, _)) if is_unused(ops, identity)? => {
            ops.run_plain(Op::Close { file })?;
            return new_super(ops, identity, &path);
        }
        Err((reason, _)) => {
            return Err(Corrupt {
                file: path.to_string(),
                offset: 0,
                reason,
            }
            .into());
        }
    };
    let current = pair.current;
    let fits = current.partitions == identity.partitions
        && current.key_check == identity.key.check()
        && current.node == identity.node;
    if !fits {
        return Err(Corrupt {
            file: path.to_string(),
            offset: 0,
            reason: CorruptReason::Disagree("superblock and STORE (partitions, key or node)"),
        }
        .into());
    }
    let copy = u64::try_from(pair.current_copy).expect("0 or 1");
    Ok((file, copy, current))
}

fn new_super<I: Io>(
    ops: &mut Ops<I>,
    identity: &ShardIdentity,
    path: &RelPath,
) -> Result<(FileId, u64, Superblock), OpenError> {
    let bytes = u64::try_from(2 * SUPERBLOCK_BYTES).expect("8192");
    ops.run_plain(Op::LogCreate {
        path: path.clone(),
        bytes,
    })?;
    let file = match ops.run_plain(Op::Open {
        path: path.clone(),
        mode: OpenMode::Log,
    })? {
        Done::Opened { file, .. } => file,
        other => unreachable_done(&other),
    };
    let superblock = Superblock {
        store: identity.store,
        node: identity.node,
        log_id: identity.log_id,
        sequence: 1,
        shutdown: Shutdown::Open,
        partitions: identity.partitions,
        storage_generation: 1,
        boots: 0,
        checkpoint_lsn: Lsn::new(0),
        previous_crc: 0,
        key_check: identity.key.check(),
        map_revision: 0,
        oldest_log_sequence: 0,
        newest_log_sequence: 0,
        dedupe_next: 0,
        written_at: ringpost_netproto::id::WallNs::new(0),
        parts_sequence: 0,
        newer: None,
    };
    write_super(ops, file, 0, &superblock)?;
    Ok((file, 0, superblock))
}

fn write_super<I: Io>(
    ops: &mut Ops<I>,
    file: FileId,
    copy: u64,
    superblock: &Superblock,
) -> Result<(), IoError> {
    let (buf, len) = sealed(superblock);
    let offset = copy * u64::try_from(SUPERBLOCK_BYTES).expect("4096");
    ops.run_plain(Op::LogWrite {
        file,
        offset,
        buf,
        len,
    })
    .map(|_buf| ())
}

fn has_log_files<I: Io>(ops: &mut Ops<I>, identity: &ShardIdentity) -> Result<bool, IoError> {
    match ops.run_plain(Op::ListDir {
        path: RelPath::log_dir(identity.log_id),
    })? {
        Done::Listing(names) => Ok(names
            .iter()
            .any(|(name, _)| name.strip_suffix(".log").is_some())),
        other => unreachable_done(&other),
    }
}

/// Whether a log has nothing but a superblock: no log file was made, so that no shard ever served
/// from it.
fn is_unused<I: Io>(ops: &mut Ops<I>, identity: &ShardIdentity) -> Result<bool, IoError> {
    let path = RelPath::superblock(identity.log_id);
    let dir = RelPath::log_dir(identity.log_id);
    match ops.run_plain(Op::ListDir { path: dir })? {
        Done::Listing(names) => Ok(names.iter().all(|(name, _)| name == path.file_name())),
        other => unreachable_done(&other),
    }
}

/// A derived file, whole; `None` if it is not there.
fn read_file<I: Io>(
    ops: &mut Ops<I>,
    path: RelPath,
    bytes_max: u64,
) -> Result<Option<Bytes>, IoError> {
    match ops.run_plain(Op::ReadFile { path, bytes_max }) {
        Ok(Done::Bytes(bytes)) => Ok(Some(bytes)),
        Ok(other) => unreachable_done(&other),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// What replay builds.
struct Redo {
    users: Users,
    bodies: Bodies,
    window: Window,
    partitions: Partitions,
    dirty: Vec<usize>,
    records: u64,
    memory_max: u64,
    new_dedupe_file: NewFile,
    notices: Vec<Notice>,
    /// Whether a second copy may have to confirm what is read.
    copies: config::Copies,
    /// Records of which no later frame says yet that they are on all copies.
    unproven: VecDeque<Unproven>,
    /// Partitions with some, or that had some.
    waiting: BTreeSet<PartitionId>,
    /// Records in such frames that count, in the order of the log.
    local: VecDeque<Local>,
    /// The held boxes of partitions.
    boxes: BTreeMap<PartitionId, UserHash>,
    /// The partitions as of what is proven, and what moved them since: a checkpoint may end anywhere
    /// between, and says what the log says there.
    settled: Partitions,
    moves: VecDeque<(Lsn, Moved)>,
    /// Where frames end, from the proven ones on, and their `header_crc`.
    ends: VecDeque<(Lsn, u32)>,
    /// Up to here a frame says so.
    proven: Lsn,
    /// Sequence of the next delivery id at the confirmed end.
    dedupe_durable: u64,
}

impl Redo {
    fn new(identity: &ShardIdentity, config: &ShardConfig) -> Self {
        Self {
            users: Users::new(config.tails_max),
            bodies: Bodies::default(),
            window: Window::new(config.dedupe_entries),
            partitions: Partitions::new(identity.partitions),
            dirty: Vec::new(),
            records: 0,
            memory_max: config.pending_bytes_max * 60 / 100,
            new_dedupe_file: NewFile::Yes,
            notices: Vec::new(),
            copies: config.copies,
            unproven: VecDeque::new(),
            waiting: BTreeSet::new(),
            local: VecDeque::new(),
            boxes: BTreeMap::new(),
            settled: Partitions::new(identity.partitions),
            moves: VecDeque::new(),
            ends: VecDeque::new(),
            proven: Lsn::new(0),
            dedupe_durable: 0,
        }
    }

    /// Delivery ids and partition states as of the checkpoint. Both are derived data: damage is
    /// reported and costs the window of duplicates, or the place in the stream of records.
    fn read_tables<I: Io>(
        &mut self,
        ops: &mut Ops<I>,
        identity: &ShardIdentity,
        superblock: &Superblock,
    ) -> Result<(), OpenError> {
        let log_id = identity.log_id;
        if superblock.parts_sequence > 0 {
            let copy = u8::from(superblock.parts_sequence % 2 == 1);
            let path = RelPath::parts(log_id, copy);
            let entries = usize::try_from(ENTRIES_MAX).expect("65,536");
            let bytes_max = PARTS_HEADER_BYTES + entries * PARTS_ENTRY_BYTES;
            let bytes_max = u64::try_from(bytes_max).expect("17 MiB");
            let bytes = read_file(ops, path.clone(), bytes_max)?.unwrap_or_default();
            match parts::decode(&bytes, identity.store, log_id) {
                Ok((sequence, states)) if sequence == superblock.parts_sequence => {
                    self.partitions.restore(identity, states);
                    self.settled = self.partitions.clone();
                }
                Ok(_) => self.report(&path, CorruptReason::Identity),
                Err(reason) => self.report(&path, reason),
            }
        }
        let path = RelPath::dedupe(log_id);
        let entry_bytes = u64::try_from(DEDUPE_ENTRY_BYTES).expect("48");
        let header_bytes = u64::try_from(DEDUPE_HEADER_BYTES).expect("4096");
        let bytes_max = header_bytes + CAPACITY_MAX * entry_bytes;
        let Some(file) = read_file(ops, path.clone(), bytes_max)? else {
            return Ok(());
        };
        match DedupeHeader::open(&file, identity.store, log_id) {
            // No checkpoint says that it holds anything, and nothing proves that it is durable, not even
            // a sync, since one that failed may have marked its pages clean: it is written anew.
            Ok(header) if superblock.dedupe_next == 0 && header.base_next == 0 => {}
            Ok(header) => {
                let good = |sequence| {
                    let at = usize::try_from(header.offset_of(sequence)).unwrap_or(usize::MAX);
                    let bytes = file.get(at..at.saturating_add(DEDUPE_ENTRY_BYTES));
                    bytes.is_some_and(|bytes| DedupeEntry::open(bytes, sequence).is_ok())
                };
                let next = header.next(superblock.dedupe_next, good);
                if self.window.load(&header, &file, next) {
                    self.new_dedupe_file = NewFile::No;
                }
            }
            // No checkpoint says that it holds anything: one that a crash ended left it.
            Err(_) if superblock.dedupe_next == 0 => {}
            Err(reason) => self.report(&path, reason),
        }
        Ok(())
    }

    fn report(&mut self, path: &RelPath, reason: CorruptReason) {
        let corrupt = Corrupt {
            file: path.to_string(),
            offset: 0,
            reason,
        };
        self.notices.push(Notice::Corrupt(Arc::new(corrupt)));
    }

    /// Applies the records of one frame.
    fn apply(
        &mut self,
        identity: &ShardIdentity,
        reserved: Reserved,
        frame: &FrameHeader,
        payload: &[u8],
    ) -> Result<(), CorruptReason> {
        self.proven = self.proven.max(frame.durable_lsn);
        let proven = self.proven;
        while self.unproven.front().is_some_and(|one| one.end <= proven) {
            self.unproven.pop_front();
        }
        while self.local.front().is_some_and(|one| one.end <= proven) {
            self.local.pop_front();
        }
        self.settle(proven);
        while self.ends.front().is_some_and(|(end, _)| *end < proven) {
            self.ends.pop_front();
        }
        self.ends.push_back((frame.end(), frame.header_crc));
        let mut shipped = BTreeMap::new();
        if self.copies == config::Copies::Asked {
            let all = replicas(payload.to_vec()).into_iter();
            shipped.extend(all.map(|(partition, pseq, shipped)| ((partition, pseq), shipped)));
        }
        let dedupe_before = self.window.next();
        let payload = Bytes::copy_from_slice(payload);
        let mut bodies: BTreeMap<usize, (Rc<PendingBody>, Bytes)> = BTreeMap::new();
        for record in Records::new(&payload).reserved(reserved) {
            let record = record?;
            if let Payload::Body(body) = &record.payload {
                let at = FRAME_HEADER_BYTES + body.stored_at;
                let lsn = frame.lsn.after(u64::try_from(at).expect("inside a frame"));
                let len = u32::try_from(body.stored.len()).expect("inside a frame");
                let fits = self.bodies.bytes() + u64::from(len) <= self.memory_max;
                let end = body.stored_at + body.stored.len();
                let memory = fits.then(|| payload.slice(body.stored_at..end));
                let pending = self.bodies.add(memory, lsn, len, record.head.body_crc);
                let cache_at = body.stored_at - body.cache.len();
                let cache = payload.slice(cache_at..body.stored_at);
                bodies.insert(record.at, (pending, cache));
                continue;
            }
            if record.payload.is_of_no_user() {
                self.apply_partition(identity, frame, &record)?;
            } else {
                self.apply_user(identity, frame, &payload, &record, &bodies)?;
            }
        }
        let dedupe_after = self.window.next();
        let of_frame = self.unproven.iter_mut().rev();
        for one in of_frame.take_while(|one| one.end == frame.end()) {
            one.shipped = shipped.remove(&(one.mark.partition, one.mark.pseq));
            (one.dedupe_before, one.dedupe_after) = (dedupe_before, dedupe_after);
        }
        Ok(())
    }

    /// Applies a record that belongs to a partition as a whole.
    fn apply_partition(
        &mut self,
        identity: &ShardIdentity,
        frame: &FrameHeader,
        record: &Record<'_>,
    ) -> Result<(), CorruptReason> {
        let head = &record.head;
        if matches!(record.payload, Payload::Noop) {
            return Ok(());
        }
        if !identity.owns_partition(head.partition) {
            return Err(CorruptReason::Identity);
        }
        match &record.payload {
            Payload::Epoch => self.unproven(frame, head, (None, None)),
            Payload::Promise => self.partitions.promise(head.partition, head.epoch),
            Payload::Truncate => self.void(frame, head),
            _ => {}
        }
        Ok(())
    }

    /// Applies a record that has a user.
    #[expect(clippy::too_many_lines, reason = "one arm a type of record")]
    fn apply_user(
        &mut self,
        identity: &ShardIdentity,
        frame: &FrameHeader,
        payload: &Bytes,
        record: &Record<'_>,
        bodies: &BTreeMap<usize, (Rc<PendingBody>, Bytes)>,
    ) -> Result<(), CorruptReason> {
        let head = &record.head;
        let after = |offset: usize, len: usize| {
            let from = record.at + offset;
            payload.slice(from..from + len)
        };
        let (slot, what, message) = match &record.payload {
            Payload::Noop
            | Payload::Epoch
            | Payload::Truncate
            | Payload::Promise
            | Payload::Body(_) => return Ok(()),
            Payload::InfoSwap(swap) => {
                let mut retired: Vec<u32> = swap.retired_segments().collect();
                retired.sort_unstable();
                let swap = Swap {
                    generation: swap.generation,
                    slots: swap.slots,
                    new: swap.new_segments().collect(),
                    retired: Rc::from(retired),
                };
                (0, What::Swap(swap), None)
            }
            Payload::UserCreate(name) => {
                let name = Bytes::copy_from_slice(name);
                (
                    0,
                    What::Create {
                        name,
                        lsn: frame.lsn,
                    },
                    None,
                )
            }
            Payload::Flags(_) | Payload::Expunge(_) | Payload::Mailbox(_) | Payload::Keyword(_) => {
                let runs = after(
                    RECORD_HEADER_BYTES,
                    record.bytes.len() - RECORD_HEADER_BYTES,
                );
                (head.slot, What::Runs(runs), None)
            }
            Payload::Deliver(deliver) => {
                let (body, cache) = bodies
                    .get(&deliver.body_at)
                    .ok_or(CorruptReason::Value("a DELIVER without its BODY"))?;
                let mail = SmallMail {
                    head: after(DELIVER_FIXED_AT, MSG_FIXED_BYTES + deliver.prefix.len()),
                    cache: cache.clone(),
                    body: Some(Rc::clone(body)),
                    mailbox: deliver.msg.mailbox,
                    uid: deliver.msg.uid,
                    segment: deliver.msg.segment,
                    offset: deliver.msg.offset,
                };
                (head.slot, What::Small(mail), Some(deliver.msg))
            }
            Payload::DeliverFile(file) => {
                let cache_at = DELIVER_FILE_FIXED_AT + MSG_FIXED_BYTES;
                let mail = LargeMail {
                    head: after(DELIVER_FILE_FIXED_AT, MSG_FIXED_BYTES),
                    cache: after(cache_at, file.cache.len()),
                    mailbox: file.msg.mailbox,
                    uid: file.msg.uid,
                    segment: file.msg.segment,
                };
                (head.slot, What::Large(mail), Some(file.msg))
            }
        };
        if !identity.owns_partition(head.partition)
            || identity.partitions.partition(head.user) != head.partition
        {
            return Err(CorruptReason::Identity);
        }
        let mut delivery = None;
        if let Some(msg) = message
            && !canary::on(Canary::DedupeNotRefilled)
        {
            let entry = DedupeEntry {
                time_s: seconds(frame.wall),
                user: head.user,
                ordinal: head.ordinal,
                mailbox: msg.mailbox,
                guid: msg.guid,
                uid: msg.uid,
                body_crc: msg.stored_crc,
            };
            delivery = Some((entry.key(), entry.uid));
            self.window.restore(entry, frame.lsn.after(1));
        }
        let index = self
            .users
            .by_ordinal(head.user, head.ordinal, head.partition);
        if head.pseq > 0 {
            self.unproven(frame, head, (Some(index), delivery));
        } else if self.copies == config::Copies::Asked {
            if let What::Swap(_) = &what {
                // All before it counted when it was made.
                self.local.retain(|one| one.user != index);
            }
            self.local(identity, frame, (head, index));
        }
        let user = self.users.get_mut(index);
        if let What::Create { name, .. } = &what {
            user.name = Some(Arc::from(&name[..]));
        }
        if user.pending.is_empty() {
            self.dirty.push(index);
        }
        if let What::Swap(swap) = &what {
            self.records -= swap.carry(&mut user.pending);
        }
        if let Payload::Mailbox(_) = &record.payload {
            user.folders = Lag::Yes;
        }
        if head.generation > 0 {
            user.redo_generation = head.generation;
        }
        user.pending.push(Entry { slot, what });
        self.records += 1;
        Ok(())
    }
}

/// What a partition waits for of which nothing was said yet.
fn gate_unsaid(config: &ShardConfig) -> Gate {
    match config.copies {
        config::Copies::One => Gate::Alone,
        config::Copies::Asked => Gate::Undecided,
    }
}
