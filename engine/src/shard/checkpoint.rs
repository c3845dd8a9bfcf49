//! Checkpoints (storage.md 5): what is in the log only goes to segments and index, coalesced per
//! user; one sync makes it durable; then the superblock says so and log files are free again.
//!
//! Nothing above `DurableTo` is written, every write is idempotent, and nothing advances before the
//! sync succeeded. A full disk makes a checkpoint wait, with everything kept; any other error is
//! fatal and never retried (section 9).

use std::collections::BTreeMap;

use bytes::Bytes;

use super::writes::{Steps, Todo, planted, step_bytes};
use super::{Phase, Shard};
use crate::canary::{self, Canary};
use crate::config::CheckpointSync;
use crate::error::IoError;
use crate::format::dedupe::DedupeHeader;
use crate::format::parts;
use crate::format::superblock::{SUPERBLOCK_BYTES, Shutdown};
use crate::index::DeadFile;
use crate::io::{AlignedBuf, Done, Failed, Io, Op, Piece, RelPath, Step, Work, WorkSync};
use crate::ops::{Purpose, unreachable_done};
use crate::pending::{Entry, What};
use crate::position::Lsn;
use crate::request::{Event, MonotonicNs, Now, Refused, Ticket};
use crate::user::{self, Hold, Lag};

/// Users of one work: enough to pay for the hand-over, few enough to build in a fraction of a
/// millisecond.
const WORK_USERS: usize = 32;

/// Bytes of one work, roughly.
const WORK_BYTES: u64 = 1 << 20;

/// Works given to the flusher at a time: one being written, one waiting.
const WORKS_IN_FLIGHT: usize = 2;

/// With at most this many users, each file is synced by itself: a sync of the whole file system
/// would write what others have in it.
const PER_FILE_USERS_MAX: usize = 64;

/// A checkpoint that met a full disk looks again after this, ns.
const RETRY_NS: u64 = 1_000_000_000;

/// The state machine of checkpoints.
pub(super) struct Checkpoint {
    state: State,
    /// Tickets for the next checkpoint to begin.
    asked: Vec<Ticket>,
    /// What was durable when the last of them asked.
    asked_upto: Lsn,
    /// A compaction waits for one.
    wanted: Wanted,
    /// Tickets of the running one.
    running: Vec<Ticket>,
    begun: MonotonicNs,
    ended_at: MonotonicNs,
    ended: u64,
    /// Of the running one, for pacing.
    used_at_begin: u64,
    bodies_at_begin: u64,
    users_count: usize,
    users_written: usize,
    /// Users whose records it writes.
    users: Vec<usize>,
    /// Partition states at its position.
    partitions: Vec<parts::PartitionState>,
    parts_sequence: u64,
    /// The `dedupe` file must be made anew, header and all.
    pub(super) new_dedupe_file: NewFile,
}

/// Whether somebody waits for a checkpoint without a ticket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wanted {
    Yes,
    No,
}

/// Whether a derived file is written from its start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NewFile {
    Yes,
    No,
}

enum State {
    Idle,
    Writing(Writing),
    /// Met a full disk; everything is kept.
    Waiting(Writing, MonotonicNs),
    Tables(Frozen),
    Syncing(Frozen),
    Super(Frozen),
}

/// What a checkpoint will say.
#[derive(Clone, Copy)]
struct Frozen {
    upto: Lsn,
    previous_crc: u32,
    dedupe_next: u64,
    sync: WorkSync,
    records: u64,
}

struct Writing {
    frozen: Frozen,
    /// Users to be written, in the order of their directories; from `next` on not given out yet.
    users: Vec<usize>,
    next: usize,
    works: BTreeMap<u64, Vec<usize>>,
    works_made: u64,
    /// Users whose work failed for space.
    failed: Vec<usize>,
}

impl Checkpoint {
    pub(super) fn new(now: MonotonicNs, parts_sequence: u64, new_dedupe_file: NewFile) -> Self {
        Self {
            state: State::Idle,
            asked: Vec::new(),
            asked_upto: Lsn::new(0),
            wanted: Wanted::No,
            running: Vec::new(),
            begun: now,
            ended_at: now,
            ended: 0,
            used_at_begin: 0,
            bodies_at_begin: 0,
            users_count: 0,
            users_written: 0,
            users: Vec::new(),
            partitions: Vec::new(),
            parts_sequence,
            new_dedupe_file,
        }
    }

    /// Asks for a checkpoint that begins from now on and holds all up to a position.
    pub(super) fn ask(&mut self, ticket: Ticket, upto: Lsn) {
        self.asked.push(ticket);
        self.asked_upto = self.asked_upto.max(upto);
    }

    /// Asks for one without a ticket, if anything is to be written.
    pub(super) fn want(&mut self) {
        self.wanted = Wanted::Yes;
    }

    /// Whether the flusher has work of this user.
    pub(super) fn is_writing(&self, user: usize) -> bool {
        match &self.state {
            State::Writing(writing) => writing.works.values().flatten().any(|other| *other == user),
            _ => false,
        }
    }

    /// Whether it needs the disk.
    pub(super) fn is_working(&self) -> bool {
        !matches!(self.state, State::Idle | State::Waiting(..))
    }

    /// Whether the superblock is being written.
    pub(super) fn is_writing_super(&self) -> bool {
        matches!(self.state, State::Super(_))
    }

    /// Checkpoints ended since the shard was opened.
    pub(super) fn ended(&self) -> u64 {
        self.ended
    }

    /// Checkpoints begun since the shard was opened.
    pub(super) fn begun(&self) -> u64 {
        self.ended + u64::from(!matches!(self.state, State::Idle))
    }

    /// When one is due by time.
    pub(super) fn due(&self, interval_ns: u64, dirty: bool) -> Option<MonotonicNs> {
        match &self.state {
            State::Idle if dirty => Some(self.ended_at.after(interval_ns)),
            State::Waiting(_, until) => Some(*until),
            _ => None,
        }
    }

    /// Bytes of log up to which new mail is taken: 85 % of the capacity, but while a checkpoint runs
    /// only as far beyond where it began as it has got, so that mail is slowed down smoothly
    /// instead of stopped at the end.
    pub(super) fn log_limit(&self, capacity: u64) -> u64 {
        let most = capacity * 85 / 100;
        match &self.state {
            State::Writing(_) | State::Waiting(..) => self.paced(self.used_at_begin, most),
            State::Idle | State::Tables(_) | State::Syncing(_) | State::Super(_) => most,
        }
    }

    /// Bytes of bodies up to which new mail is taken while a checkpoint writes, at most 80 % of
    /// `bytes_max`: what is left is for the sync. A body that left memory costs the flusher a read
    /// of its own, so that a shard which outran it would only fall further behind (decision 0013).
    pub(super) fn bodies_limit(&self, bytes_max: u64) -> Option<u64> {
        matches!(self.state, State::Writing(_))
            .then(|| self.paced(self.bodies_at_begin, bytes_max * 80 / 100))
    }

    /// From an eighth of the way between `begin` and `most` up to `most`, with the users written.
    fn paced(&self, begin: u64, most: u64) -> u64 {
        let runway = most.saturating_sub(begin);
        let done = u64::try_from(self.users_written).unwrap_or(0);
        let all = u64::try_from(self.users_count.max(1)).unwrap_or(1);
        let share = runway / 8 + (runway - runway / 8) / all.saturating_add(1) * done;
        begin + share.min(runway)
    }
}

impl<I: Io> Shard<I> {
    /// Begins a checkpoint if one is due, and goes on with one that waits or has free hands.
    pub(super) fn tend_checkpoint(&mut self, now: Now) {
        match &mut self.checkpoint.state {
            State::Idle => {
                if self.wants_checkpoint(now) {
                    self.begin_checkpoint(now);
                } else {
                    self.end_drain();
                }
            }
            State::Waiting(_, until) if *until <= now.monotonic => {
                let idle = State::Idle;
                if let State::Waiting(mut writing, _) =
                    std::mem::replace(&mut self.checkpoint.state, idle)
                {
                    let failed = std::mem::take(&mut writing.failed);
                    writing.users.extend(failed);
                    self.checkpoint.state = State::Writing(writing);
                }
                self.feed_flusher(now);
            }
            State::Writing(_) => self.feed_flusher(now),
            _ => {}
        }
    }

    /// Whether a checkpoint cannot go on until there is room on the disk.
    pub(crate) fn waits_for_room(&self) -> bool {
        matches!(self.checkpoint.state, State::Waiting(..))
    }

    fn wants_checkpoint(&mut self, now: Now) -> bool {
        if self.phase == Phase::Clean || self.awaits_folders() {
            return false;
        }
        // Work that is still open may wait for the room that one makes.
        if matches!(self.phase, Phase::Draining(_)) && !self.has_work() {
            return self.log.is_quiet() && !self.is_clean();
        }
        if self.answers_asked() || self.backups.wants_checkpoint() {
            return true;
        }
        if self.dirty.is_empty() || self.holds_all() {
            return false;
        }
        let files = self.log.files();
        let capacity = if self.space.refused {
            files.capacity_bytes()
        } else {
            files.capacity_bytes_max()
        };
        let used = self.log.used_bytes(self.positions.checkpointed_to().lsn());
        let due = self
            .checkpoint
            .ended_at
            .after(self.config.checkpoint_interval_ns);
        self.checkpoint.wanted == Wanted::Yes
            || used >= capacity / 2
            || now.monotonic >= due
            || self.bodies.bytes() >= self.config.pending_bytes_max * 60 / 100
            || self.pending_records >= (self.config.pending_records_max / 2).max(1)
    }

    /// Whether a checkpoint that begins now holds all that those who asked for one mean.
    fn answers_asked(&self) -> bool {
        let asked = &self.checkpoint;
        !asked.asked.is_empty() && self.settled_to() >= asked.asked_upto
    }

    /// Whether what is dirty waits for copies: the next checkpoint would be the last one again.
    fn holds_all(&self) -> bool {
        let waits = !self.copies.are_none();
        waits && self.settled_to() <= self.positions.checkpointed_to().lsn()
    }

    /// Whether users are being read whose mailboxes recovery found changed: their `folders` cannot
    /// be written before. One that cannot be read keeps its old file, for the repair.
    fn awaits_folders(&mut self) -> bool {
        let loads = &self.loads;
        self.unfolded.retain(|user| loads.contains_key(user));
        !self.unfolded.is_empty()
    }

    /// The same, as of now.
    pub(super) fn reads_folders(&self) -> bool {
        let mut users = self.unfolded.iter();
        users.any(|user| self.loads.contains_key(user))
    }

    /// Whether the superblock on disk says "clean" already, and the log has nothing but what waits for
    /// copies, for however long.
    fn is_clean(&self) -> bool {
        let written = self.dirty.is_empty() || self.holds_all();
        self.superblock.shutdown == Shutdown::Clean && written && !self.copies.wants_statement()
    }

    /// Ends a drain when the last checkpoint left nothing.
    fn end_drain(&mut self) {
        if let Phase::Draining(ticket) = self.phase
            && !self.has_work()
            && self.log.is_quiet()
            && self.is_clean()
            && self.backups.is_quiet()
        {
            self.phase = Phase::Clean;
            let result = Ok(());
            for ticket in std::mem::take(&mut self.checkpoint.asked) {
                let result = result.clone();
                self.answer(Event::Checkpointed { ticket, result });
            }
            self.answer(Event::Drained { ticket, result });
        }
    }

    /// After a fatal error: whoever waits for a checkpoint learns that none will end.
    pub(super) fn refuse_checkpoints(&mut self) {
        let running = std::mem::take(&mut self.checkpoint.running);
        let asked = std::mem::take(&mut self.checkpoint.asked);
        for ticket in running.into_iter().chain(asked) {
            let result = Err(Refused::Stopped);
            self.answer(Event::Checkpointed { ticket, result });
        }
    }

    /// Takes what is settled of each dirty user into the checkpoint that begins: who they are, and how
    /// many records.
    fn freeze(&mut self) -> (Vec<usize>, u64) {
        let mut users = std::mem::take(&mut self.dirty);
        let mut records = 0;
        // Of whom this checkpoint may write the creation, and the next a change of mailboxes that
        // only the whole index tells.
        let mut unfolded = Vec::new();
        users.retain(|index| {
            let user = self.users.get_mut(*index);
            assert!(user.frozen.is_empty(), "one checkpoint at a time");
            user.frozen = user.take_settled();
            if !user.pending.is_empty() {
                self.dirty.push(*index);
            }
            if user.frozen.is_empty() && !user.pending.is_empty() {
                return false;
            }
            user.frozen_written = false;
            user.frozen_folders = std::mem::take(&mut user.folders);
            if user.pending.iter().any(Entry::changes_mailboxes) {
                user.folders = Lag::Yes;
                if matches!(user.state, user::State::Unloaded) {
                    unfolded.push(*index);
                }
            }
            records += u64::try_from(user.frozen.len()).expect("an index has at most 64 bits");
            true
        });
        for index in unfolded {
            self.unfolded.push(index);
            self.start_load(index, None);
        }
        (users, records)
    }

    fn begin_checkpoint(&mut self, now: Now) {
        let upto = if canary::on(Canary::CheckpointBeyondDurable) {
            self.positions.written_to().lsn()
        } else {
            self.settled_to()
        };
        let (mut users, records) = self.freeze();
        let place = |index: &usize| {
            let user = self.users.get(*index);
            (user.partition, user.hash, user.ordinal)
        };
        users.sort_by_key(place);
        let sync = match self.config.checkpoint_sync {
            CheckpointSync::PerFile => WorkSync::Each,
            CheckpointSync::Auto if users.len() <= PER_FILE_USERS_MAX => WorkSync::Each,
            CheckpointSync::Auto | CheckpointSync::Tree => WorkSync::Later,
        };
        let frozen = Frozen {
            upto,
            previous_crc: self.log.crc_at(upto),
            dedupe_next: self.dedupe_durable,
            sync,
            records,
        };
        let checkpointed = self.positions.checkpointed_to().lsn();
        self.checkpoint.begun = now.monotonic;
        self.checkpoint.used_at_begin = self.log.used_bytes(checkpointed);
        self.checkpoint.bodies_at_begin = self.bodies.bytes();
        self.checkpoint.users_count = users.len();
        self.checkpoint.users_written = 0;
        self.checkpoint.users.clone_from(&users);
        self.checkpoint.partitions = self.settled_partitions().states();
        if self.answers_asked() {
            self.checkpoint.running = std::mem::take(&mut self.checkpoint.asked);
        }
        self.checkpoint.wanted = Wanted::No;
        self.checkpoint.state = State::Writing(Writing {
            frozen,
            users,
            next: 0,
            works: BTreeMap::new(),
            works_made: 0,
            failed: Vec::new(),
        });
        if canary::on(Canary::RearmedEarly) {
            self.log.release(upto);
        }
        self.feed_flusher(now);
    }

    /// Gives the flusher its next works; goes on when all are done.
    fn feed_flusher(&mut self, now: Now) {
        let keep = self.backups.files_kept();
        let retires = self.backups.retires();
        let State::Writing(writing) = &mut self.checkpoint.state else {
            return;
        };
        while writing.works.len() < WORKS_IN_FLIGHT && writing.next < writing.users.len() {
            let mut works = Vec::new();
            let mut users = Vec::new();
            let mut bytes = 0;
            while let Some(index) = writing.users.get(writing.next).copied()
                && users.len() < WORK_USERS
                && bytes < WORK_BYTES
            {
                if self.users.get(index).hold == Hold::Held {
                    // Its turn comes last; a compaction is about to change what it owes.
                    let last = writing.users.len() - 1;
                    if writing.next == last {
                        break;
                    }
                    writing.users.swap(writing.next, last);
                    continue;
                }
                writing.next += 1;
                let user = self.users.get_mut(index);
                let Todo { steps, kept } = Steps::new(&self.log, user, keep, retires).all();
                let fresh = |dead: &DeadFile| !user.kept.contains(dead);
                let kept: Vec<_> = kept.into_iter().filter(fresh).collect();
                user.kept.extend(kept);
                bytes += steps.iter().map(step_bytes).sum::<u64>();
                let (steps, apart) = planted(steps);
                works.extend(apart);
                let sync = match writing.frozen.sync {
                    WorkSync::Each if canary::on(Canary::FileSyncLeftOut) => WorkSync::Later,
                    sync => sync,
                };
                works.push(Work { steps, sync });
                users.push(index);
            }
            if works.is_empty() {
                break;
            }
            let number = writing.works_made;
            writing.works_made += 1;
            writing.works.insert(number, users);
            self.ops
                .start(Op::Materialise(works), Purpose::Materialise(number));
        }
        if !writing.works.is_empty() || writing.next < writing.users.len() {
            return;
        }
        let frozen = writing.frozen;
        if writing.failed.is_empty() {
            self.checkpoint.state = State::Tables(frozen);
            self.write_tables(frozen);
        } else {
            let until = now.monotonic.after(RETRY_NS);
            let state = std::mem::replace(&mut self.checkpoint.state, State::Idle);
            if let State::Writing(writing) = state {
                self.checkpoint.state = State::Waiting(writing, until);
            }
        }
    }

    /// One step of a checkpoint ended.
    pub(super) fn checkpoint_step(
        &mut self,
        now: Now,
        purpose: Purpose,
        result: Result<Done, Failed>,
    ) -> Result<(), IoError> {
        if let Purpose::Materialise(number) = purpose {
            return self.work_done(now, number, result);
        }
        match (&self.checkpoint.state, result) {
            (State::Tables(frozen), Err(failed)) if failed.error.is_no_space() => {
                self.space.refused = true;
                let writing = Writing {
                    frozen: *frozen,
                    users: Vec::new(),
                    next: 0,
                    works: BTreeMap::new(),
                    works_made: 0,
                    failed: Vec::new(),
                };
                let until = now.monotonic.after(RETRY_NS);
                self.checkpoint.state = State::Waiting(writing, until);
            }
            (State::Syncing(_), Err(_)) if canary::on(Canary::SyncRetried) => {
                self.ops.start(Op::SyncTree, Purpose::SyncTree);
            }
            (_, Err(failed)) => return Err(failed.error),
            (State::Tables(frozen), Ok(Done::Materialised { syncs, .. })) => {
                let frozen = *frozen;
                self.metrics.flushes += syncs;
                if frozen.sync == WorkSync::Later && !canary::on(Canary::SuperBeforeSync) {
                    self.checkpoint.state = State::Syncing(frozen);
                    self.ops.start(Op::SyncTree, Purpose::SyncTree);
                } else {
                    self.write_super(now, frozen);
                }
            }
            (State::Syncing(frozen), Ok(Done::Nothing)) => {
                self.metrics.flushes += 1;
                let frozen = *frozen;
                self.write_super(now, frozen);
            }
            (State::Super(frozen), Ok(Done::Buf(_))) => {
                self.metrics.flushes += 1;
                let frozen = *frozen;
                self.end_checkpoint(now, frozen);
            }
            (_, Ok(other)) => unreachable_done(&other),
        }
        Ok(())
    }

    fn work_done(
        &mut self,
        now: Now,
        number: u64,
        result: Result<Done, Failed>,
    ) -> Result<(), IoError> {
        let State::Writing(writing) = &mut self.checkpoint.state else {
            return Ok(());
        };
        let users = writing.works.remove(&number).unwrap_or_default();
        match result {
            Ok(Done::Materialised { bytes, syncs }) => {
                self.metrics.materialised_bytes += bytes;
                self.metrics.flushes += syncs;
                for index in users {
                    self.metrics.materialised_users += 1;
                    self.checkpoint.users_written += 1;
                    let user = self.users.get_mut(index);
                    user.frozen_written = true;
                    for entry in &mut user.frozen {
                        if let What::Small(mail) = &mut entry.what {
                            mail.body = None;
                        }
                    }
                }
            }
            Ok(other) => unreachable_done(&other),
            Err(failed) if failed.error.is_no_space() => {
                self.space.refused = true;
                if !canary::on(Canary::DroppedOnFull) {
                    writing.failed.extend(users);
                }
            }
            Err(_) if canary::on(Canary::SyncRetried) => writing.failed.extend(users),
            Err(failed) => return Err(failed.error),
        }
        self.feed_flusher(now);
        Ok(())
    }

    /// Delivery ids and partition states of the records below the checkpoint.
    fn write_tables(&mut self, frozen: Frozen) {
        let log_id = self.identity.log_id;
        let header = DedupeHeader {
            store: self.identity.store,
            log_id,
            logs: self.identity.logs,
            capacity: self.config.dedupe_entries,
            base_next: 0,
        };
        let mut steps = Vec::new();
        let path = RelPath::dedupe(log_id);
        if self.checkpoint.new_dedupe_file == NewFile::Yes {
            let pieces = vec![Piece::Bytes(Bytes::copy_from_slice(
                header.seal().as_slice(),
            ))];
            steps.push(Step::Write {
                path: path.clone(),
                offset: 0,
                pieces,
            });
        }
        // Neighbours in the ring go out as one write.
        let mut run: Vec<u8> = Vec::new();
        let mut run_at = 0;
        for (sequence, entry) in self.window.unsaved(frozen.dedupe_next) {
            let offset = header.offset_of(sequence);
            let run_end = run_at + u64::try_from(run.len()).expect("an index has at most 64 bits");
            if offset != run_end && !run.is_empty() {
                let pieces = vec![Piece::Bytes(Bytes::from(std::mem::take(&mut run)))];
                steps.push(Step::Write {
                    path: path.clone(),
                    offset: run_at,
                    pieces,
                });
            }
            if run.is_empty() {
                run_at = offset;
            }
            run.extend_from_slice(&entry);
        }
        if !run.is_empty() {
            let pieces = vec![Piece::Bytes(Bytes::from(run))];
            steps.push(Step::Write {
                path,
                offset: run_at,
                pieces,
            });
        }
        let sequence = self.checkpoint.parts_sequence + 1;
        let copy = u8::from(sequence % 2 == 1);
        let states = &self.checkpoint.partitions;
        let data = parts::encode(self.identity.store, log_id, sequence, states);
        let path = RelPath::parts(log_id, copy);
        steps.push(Step::Write {
            path,
            offset: 0,
            pieces: vec![Piece::Bytes(Bytes::from(data))],
        });
        let work = Work {
            steps,
            sync: frozen.sync,
        };
        self.ops.start(Op::Materialise(vec![work]), Purpose::Tables);
    }

    fn write_super(&mut self, now: Now, frozen: Frozen) {
        self.checkpoint.parts_sequence += 1;
        let clean = matches!(self.phase, Phase::Draining(_))
            && self.dirty.is_empty()
            && !self.has_work()
            && self.log.is_quiet();
        let (oldest, newest) = self.log.files().sequences();
        let superblock = &mut self.superblock;
        superblock.sequence += 1;
        superblock.shutdown = if clean {
            Shutdown::Clean
        } else {
            Shutdown::Open
        };
        superblock.checkpoint_lsn = frozen.upto;
        superblock.previous_crc = frozen.previous_crc;
        superblock.oldest_log_sequence = oldest;
        superblock.newest_log_sequence = newest;
        superblock.dedupe_next = frozen.dedupe_next;
        superblock.written_at = now.wall;
        superblock.parts_sequence = self.checkpoint.parts_sequence;
        let (buf, len) = sealed(superblock);
        self.super_copy ^= u64::from(!canary::on(Canary::NewerSuperOverwritten));
        let offset = self.super_copy * u64::try_from(SUPERBLOCK_BYTES).expect("4096");
        self.checkpoint.state = State::Super(frozen);
        let file = self.super_file;
        self.ops.start(
            Op::LogWrite {
                file,
                offset,
                buf,
                len,
            },
            Purpose::Super,
        );
    }

    fn end_checkpoint(&mut self, now: Now, frozen: Frozen) {
        self.positions.checkpointed(frozen.upto);
        self.log.release(frozen.upto);
        self.window.mark_saved(frozen.dedupe_next);
        self.checkpoint.new_dedupe_file = NewFile::No;
        self.pending_records -= frozen.records;
        for index in std::mem::take(&mut self.checkpoint.users) {
            let user = self.users.get_mut(index);
            if let Some(live) = user.live_mut() {
                live.tail.has_dir = true;
            }
            user.frozen = Vec::new();
            user.frozen_written = false;
            user.frozen_folders = Lag::No;
            self.unlink_unpinned(index);
            self.sweep(index);
        }
        self.compactor.look_again();
        self.checkpoint.state = State::Idle;
        self.checkpoint.ended += 1;
        self.checkpoint.ended_at = now.monotonic;
        self.metrics.checkpoints += 1;
        self.metrics.checkpoint_ns = now.monotonic.since(self.checkpoint.begun);
        self.metrics.checkpoint_at_ns = now.monotonic.value();
        for ticket in std::mem::take(&mut self.checkpoint.running) {
            let result = Ok(());
            self.answer(Event::Checkpointed { ticket, result });
        }
        self.end_drain();
    }
}

/// A superblock in a buffer of its own.
pub(super) fn sealed(superblock: &crate::format::superblock::Superblock) -> (AlignedBuf, usize) {
    let mut buf = AlignedBuf::zeroed(SUPERBLOCK_BYTES);
    buf.copy_from_slice(superblock.seal().as_slice());
    (buf, SUPERBLOCK_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mail_is_paced_by_the_users_written() {
        let mut checkpoint = Checkpoint::new(MonotonicNs::new(0), 0, NewFile::No);
        assert_eq!(checkpoint.bodies_limit(1_000), None, "no checkpoint runs");
        assert_eq!(checkpoint.log_limit(1_000), 850);
        checkpoint.used_at_begin = 450;
        checkpoint.bodies_at_begin = 600;
        checkpoint.users_count = 99;
        checkpoint.state = State::Writing(Writing {
            frozen: Frozen {
                upto: Lsn::new(0),
                previous_crc: 0,
                dedupe_next: 0,
                sync: WorkSync::Later,
                records: 0,
            },
            users: Vec::new(),
            next: 0,
            works: BTreeMap::new(),
            works_made: 0,
            failed: Vec::new(),
        });
        assert_eq!(checkpoint.bodies_limit(1_000), Some(625));
        assert_eq!(checkpoint.log_limit(1_000), 500);
        checkpoint.users_written = 50;
        assert_eq!(checkpoint.bodies_limit(1_000), Some(675));
        checkpoint.users_written = 99;
        assert_eq!(checkpoint.bodies_limit(1_000), Some(724));
        checkpoint.bodies_at_begin = 900;
        let above = checkpoint.bodies_limit(1_000);
        assert_eq!(above, Some(900), "never below where it began");
    }
}
