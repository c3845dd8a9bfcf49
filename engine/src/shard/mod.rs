//! One core's store (storage.md 1.3): admit, submit, poll, `next_deadline`; dispatch and no more.
//!
//! A shard never blocks after it was opened, knows no clock and draws nothing at random: time and
//! seed are arguments. It belongs to one thread. What it promises stands in the crate's docs; where
//! each part of it lives: `append`, `encode` and `publish` (batches), `large` and `stage` (messages with a file of their
//! own), `change` (flags, expunge, copy, mailboxes), `load` (users from disk), `read`, `fetch`,
//! `feed` and `snapshot`, `checkpoint`, `compact` and `scrub`, `open` (recovery).
//! Descends from the thesis's work list and operation threads (3.1.3.1, 3.1.3.2).

mod append;
mod backup;
mod change;
mod checkpoint;
mod compact;
mod copies;
mod dispatch;
mod encode;
mod feed;
mod fetch;
mod hold;
mod large;
mod load;
mod open;
mod partitions;
mod publish;
mod purse;
pub(crate) mod read;
mod refill;
mod room;
mod scrub;
mod snapshot;
mod stage;
mod writes;

use std::collections::{BTreeMap, VecDeque};

use ringpost_netproto::id::{Epoch, NodeId, PartitionId};
use ringpost_netproto::placement::{HashKey, PartitionCount, UserKey, core_of};
use slab::Slab;
use smallvec::SmallVec;

use crate::commit::Positions;
use crate::config::ShardConfig;
use crate::dedupe::Window;
use crate::error::{Fatal, IoError};
use crate::format::store_file::StoreId;
use crate::format::superblock::Superblock;
use crate::io::{Done, Failed, FileId, Io, Op};
use crate::limits::{APPEND_AGE_MAX_NS, TICKETS_MAX};
use crate::log::{Log, LogIdentity, Seal};
use crate::metrics::Metrics;
use crate::ops::{Ended, Ops, Purpose, unreachable_done};
use crate::pending::Bodies;
use crate::request::{
    Admit, BusyReason, Event, MonotonicNs, Notice, Now, Refused, Request, Ticket,
};
use crate::tail::Usage;
use crate::user::{User, Users};

pub(crate) use compact::{Capture, Dead};

use append::{Append, Mark, Part};
use backup::Backups;
use change::Change;
use checkpoint::Checkpoint;
use compact::Compactor;
use copies::{Copies, Wrapped};
use feed::Watch;
use large::LargeStep;
use load::Loading;
use partitions::Partitions;
use purse::Purse;
use read::Read;
use scrub::Scrubber;
use snapshot::Snapshots;
use stage::Stages;

/// How often free space is looked at, ns.
const SPACE_INTERVAL_NS: u64 = 1_000_000_000;

/// What a shard is part of.
#[derive(Clone, Copy, Debug)]
pub struct ShardIdentity {
    /// The store.
    pub store: StoreId,
    /// The node.
    pub node: NodeId,
    /// Its log directory and its number among the shards.
    pub log_id: u32,
    /// How many shards (logs) there are; a shard owns each partition with
    /// `partition mod logs == log_id`.
    pub logs: u32,
    /// Partitions of the store.
    pub partitions: PartitionCount,
    /// The store's hash key.
    pub key: HashKey,
}

impl ShardIdentity {
    fn log(&self) -> LogIdentity {
        LogIdentity {
            store: self.store,
            log_id: self.log_id,
        }
    }

    fn owns(&self, user: &UserKey) -> bool {
        self.owns_partition(user.partition())
    }

    fn owns_partition(&self, partition: PartitionId) -> bool {
        let logs = crate::format::index(self.logs);
        core_of(partition, logs) == crate::format::index(self.log_id)
    }
}

/// Free space at the last look.
#[derive(Clone, Copy, Debug)]
struct Space {
    free_bytes: u64,
    floor_bytes: u64,
    free_inodes: u64,
    inodes_floor: u64,
    looked_at: MonotonicNs,
    looking: Looking,
    /// The disk said "no space" since the last look that found some.
    refused: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Looking {
    Yes,
    No,
}

/// Whether the shard takes work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Serving,
    /// No more appends; when all are answered, a checkpoint, then clean.
    Draining(Ticket),
    /// Drained: nothing may change any more.
    Clean,
    /// After a fatal error.
    Stopped,
}

/// One core's store. See the module.
pub struct Shard<I: Io> {
    ops: Ops<I>,
    config: ShardConfig,
    identity: ShardIdentity,
    epoch: Epoch,
    users: Users,
    log: Log<Part>,
    positions: Positions,
    window: Window,
    /// Ids that their callers made; of this run only.
    recent: Window,
    bodies: Bodies,
    pending_records: u64,
    /// Users with pending records, each once.
    dirty: Vec<usize>,
    /// As of the last record encoded.
    partitions: Partitions,
    /// As of the last durable record: what a checkpoint writes.
    partitions_durable: Partitions,
    copies: Copies,
    /// Places of the records encoded since the last part was attached.
    marks: SmallVec<[Mark; 1]>,
    /// Delivery ids below this sequence belong to durable records.
    dedupe_durable: u64,
    appends: Slab<Append>,
    /// Appends whose users are loaded, in order.
    ready: VecDeque<usize>,
    larges: Slab<LargeStep>,
    stages: Stages,
    changes: Slab<Change>,
    /// Changes that have their user's turn and something to be decided or encoded, in order.
    turns: VecDeque<usize>,
    reads: Slab<Read>,
    snapshots: Snapshots,
    /// By ticket.
    watches: BTreeMap<u64, Watch>,
    /// Users whose mailboxes recovery found changed, while they are being read.
    unfolded: Vec<usize>,
    /// Users being loaded, by index.
    loads: BTreeMap<usize, Loading>,
    index_bytes: u64,
    checkpoint: Checkpoint,
    compactor: Compactor,
    backups: Backups,
    scrubber: Scrubber,
    /// Of compactor and scrubber.
    purse: Purse,
    /// Numbers those who read files, so that none goes under them.
    readers_begun: u64,
    superblock: Superblock,
    super_copy: u64,
    super_file: FileId,
    space: Space,
    metrics: Metrics,
    tickets_issued: u64,
    tickets_open: u64,
    events: Vec<Event>,
    phase: Phase,
    ended: Vec<Ended>,
}

impl<I: Io> Shard<I> {
    /// Whether a message for this user could be taken now. Reserves nothing.
    pub fn admit(&mut self, now: Now, ask: &Admit) -> Result<(), Refused> {
        if !self.identity.owns(&ask.user) {
            return Err(Refused::WrongShard);
        }
        if ask
            .size_hint
            .is_some_and(|bytes| bytes > self.config.message_bytes_max)
        {
            return Err(Refused::TooLarge);
        }
        self.takes_mail(now)?;
        let found = self.users.find(&ask.user).and_then(User::live);
        let announced = Usage {
            bytes: ask.size_hint.unwrap_or(0),
            messages: 1,
        };
        found.map_or(Ok(()), |live| {
            room::within_quota(live.tail.usage(), announced, &ask.quota)
        })
    }

    /// Whether new mail could be taken now, whoever it is for. What `admit` says beyond this is of
    /// one user or one message.
    pub fn takes_mail(&self, now: Now) -> Result<(), Refused> {
        self.accepts_mail()?;
        if self.oldest_append_ns(now) > APPEND_AGE_MAX_NS {
            return Err(Refused::Busy(
                self.pressure().unwrap_or(BusyReason::SlowDisk),
            ));
        }
        if self.disk_is_full() {
            return Err(Refused::DiskFull);
        }
        Ok(())
    }

    /// Takes a request over; its event comes out of a later [`Self::poll`].
    pub fn submit(&mut self, now: Now, request: Request) -> Result<Ticket, Refused> {
        match self.phase {
            Phase::Stopped | Phase::Clean => return Err(Refused::Stopped),
            Phase::Draining(_) if request.is_mail() => return Err(Refused::Stopped),
            Phase::Serving | Phase::Draining(_) => {}
        }
        let open = usize::try_from(self.tickets_open).unwrap_or(usize::MAX);
        if open >= TICKETS_MAX {
            return Err(Refused::Busy(BusyReason::Tickets));
        }
        let ticket = Ticket(self.tickets_issued);
        let answered = request.is_answered();
        self.tickets_issued += 1;
        self.tickets_open += u64::from(answered);
        let taken = self.dispatch(now, ticket, request);
        if taken.is_err() {
            self.tickets_open -= u64::from(answered);
        }
        taken.map(|()| ticket)
    }

    /// Takes completions in, advances, and appends what came of it to `out`. Call it after requests
    /// were submitted (all of a turn share one batch), when the `Io` has completions, and at
    /// [`Self::next_deadline`].
    pub fn poll(&mut self, now: Now, out: &mut Vec<Event>) {
        self.advance(now, out, Seal::Open);
    }

    /// As [`Self::poll`], but a batch that has room stays open for what the caller expects at once.
    /// Call `poll` then; [`Self::is_gathering`] says whether something waits for that.
    pub fn poll_and_gather(&mut self, now: Now, out: &mut Vec<Event>) {
        self.advance(now, out, Seal::Full);
    }

    /// Whether mail waits in an open batch, and the log for nothing but [`Self::poll`].
    pub fn is_gathering(&self) -> bool {
        self.log.is_gathering()
    }

    fn advance(&mut self, now: Now, out: &mut Vec<Event>, seal: Seal) {
        // What a round starts, the next one hands to the kernel; and some of it completes at once
        // (cached reads). Bounded, so that others get their turn; what is left then is due at once.
        for _round in 0..4 {
            let mut ended = std::mem::take(&mut self.ended);
            self.ops.poll(&mut ended);
            let idle = ended.is_empty();
            for ended in ended.drain(..) {
                if let Err(error) = self.end(now, ended) {
                    self.stop(Fatal::Io(error));
                }
            }
            self.ended = ended;
            if self.phase != Phase::Stopped {
                self.publish(now);
                self.tend_compaction(now);
                self.place_changes(now);
                self.place_ready(now);
                self.tend_copies(now);
                self.seal(now, seal);
                self.tend(now);
                self.tend_scrub(now);
            }
            if idle && !self.ops.has_fresh() {
                break;
            }
        }
        out.append(&mut self.events);
    }

    /// Hands the kernel what may go, and the copies what is in it.
    fn seal(&mut self, now: Now, seal: Seal) {
        let ships = self.copies.are_shipped();
        let mut sealed: SmallVec<[Wrapped; 1]> = SmallVec::new();
        let places = (&mut self.positions, &mut self.metrics);
        self.log.seal(&mut self.ops, places, now, seal, |frame| {
            if ships {
                sealed.push(Wrapped::new(frame));
            }
        });
        self.ship(sealed);
    }

    /// When `poll` must be called although nothing completes.
    pub fn next_deadline(&self) -> Option<MonotonicNs> {
        if matches!(self.phase, Phase::Stopped | Phase::Clean) {
            return None;
        }
        let unsent = self.ops.has_fresh() || !self.events.is_empty();
        let unsent = unsent.then_some(MonotonicNs::new(0));
        let noop = self.log.noop_due(&self.positions, self.copies.unstated());
        let waiting = self
            .ready
            .front()
            .and_then(|index| self.appends.get(*index));
        let refusal = waiting.map(|append| append.since().after(APPEND_AGE_MAX_NS));
        let dirty = !self.dirty.is_empty();
        // What cannot begin before something completes is not due by time.
        let serving = self.phase == Phase::Serving || self.has_work();
        let may_begin = serving && !self.reads_folders();
        let checkpoint = self
            .checkpoint
            .due(self.config.checkpoint_interval_ns, dirty && may_begin);
        let busy = dirty || self.has_work() || self.disk_is_full() || self.backups.is_running();
        let space = (busy && self.space.looking == Looking::No)
            .then(|| self.space.looked_at.after(SPACE_INTERVAL_NS));
        [
            unsent,
            noop,
            refusal,
            self.changes_due(),
            self.copies_due(),
            checkpoint,
            space,
            self.compaction_due(),
            self.backups.due(),
            self.scrub_due(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Requests taken so far.
    pub fn tickets_issued(&self) -> u64 {
        self.tickets_issued
    }

    /// Counters and gauges, as of the last `poll`.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The `Io` under the shard, to wait on its completions.
    pub fn io_mut(&mut self) -> &mut I {
        self.ops.io_mut()
    }

    /// The end of one op. An error is fatal for the shard.
    fn end(&mut self, now: Now, ended: Ended) -> Result<(), IoError> {
        let Ended { purpose, result } = ended;
        match purpose {
            Purpose::Frame(number) => {
                self.log.written(number, result, &mut self.metrics, now)?;
            }
            Purpose::Arm(index) => {
                result.map_err(|failed| failed.error)?;
                self.metrics.flushes += 1;
                self.log.files_mut().armed(index);
            }
            Purpose::LogMake(number) => match result {
                Ok(_) => self.log.files_mut().made(&mut self.ops, number),
                Err(failed) => self.log_not_made(now, failed.error)?,
            },
            Purpose::LogOpen(number) => match result {
                Ok(Done::Opened { file, .. }) => self.log.files_mut().opened(number, file),
                Ok(other) => unreachable_done(&other),
                Err(failed) => self.log_not_made(now, failed.error)?,
            },
            Purpose::Materialise(_) | Purpose::Tables | Purpose::SyncTree | Purpose::Super => {
                self.checkpoint_step(now, purpose, result)?;
            }
            Purpose::UserDir(user)
            | Purpose::UserInfo(user)
            | Purpose::UserRename(user)
            | Purpose::UserUnlink(user) => {
                self.load_step(user, purpose, result);
            }
            Purpose::Stage(stage) => self.stage_step(stage, result)?,
            Purpose::Large(index) => self.large_step(index, result)?,
            Purpose::Fetch(index) => self.fetch_step(index, result),
            Purpose::Compact => self.compaction_op_ended(now, result)?,
            Purpose::Copy(index, place) => self.copy_step(index, place, result)?,
            Purpose::Archive => self.archive_step(result)?,
            Purpose::Leave(number) => self.retire_step(number, result)?,
            Purpose::ArchiveList => self.archive_listed(result)?,
            Purpose::Scrub => self.scrub_step(now, result),
            Purpose::ScrubFile => self.scrub_saved(),
            Purpose::Space => self.space_looked(now, result),
            Purpose::Tidy => {}
            Purpose::Opening => unreachable!("the shard is open"),
        }
        Ok(())
    }

    /// A log file that could not be made is tried again later; without space it never is a reason
    /// to stop.
    fn log_not_made(&mut self, now: Now, error: IoError) -> Result<(), IoError> {
        if !error.is_no_space() {
            return Err(error);
        }
        self.space.refused = true;
        self.log.files_mut().not_made(now.monotonic);
        self.give_backup_up("no room for another log file");
        Ok(())
    }

    /// Housekeeping at the end of a round.
    fn tend(&mut self, now: Now) {
        self.bodies.shrink(self.config.pending_bytes_max);
        self.tend_checkpoint(now);
        self.tend_backup(now);
        let when = (now, self.copies.unstated());
        self.log
            .vouch(&mut self.ops, &mut self.positions, &mut self.metrics, when);
        let look = self.space.looking == Looking::No
            && now.monotonic >= self.space.looked_at.after(SPACE_INTERVAL_NS)
            && (!self.dirty.is_empty()
                || self.has_work()
                || self.disk_is_full()
                || self.backups.is_running());
        if look {
            self.space.looking = Looking::Yes;
            self.ops.start(Op::FreeSpace, Purpose::Space);
        }
        self.gauges(now);
    }

    fn gauges(&mut self, now: Now) {
        let checkpointed = self.positions.checkpointed_to().lsn();
        self.index_bytes -= self.users.take_forgotten_bytes();
        self.metrics.pending_bytes = self.bodies.bytes();
        self.metrics.pending_records = self.pending_records;
        self.metrics.log_used_bytes = self.log.used_bytes(checkpointed);
        self.metrics.log_capacity_bytes = self.log.files().capacity_bytes();
        self.metrics.users_resident = u64::try_from(self.users.len()).unwrap_or(u64::MAX);
        self.metrics.index_bytes = self.index_bytes;
        self.metrics.garbage_bytes = self.users.garbage_bytes();
        self.metrics.tickets = self.tickets_open;
        self.metrics.snapshots = u64::try_from(self.snapshots.count()).unwrap_or(u64::MAX);
        self.metrics.watches = u64::try_from(self.watches.len()).unwrap_or(u64::MAX);
        self.metrics.oldest_append_ns = self.oldest_append_ns(now);
        self.metrics.disk_free_bytes = self.space.free_bytes;
        self.metrics.archive_bytes = self.backups.bytes();
        self.metrics.backups = u64::from(self.backups.is_running());
        self.scrub_gauges();
    }

    fn accepts_mail(&self) -> Result<(), Refused> {
        if self.phase == Phase::Serving {
            Ok(())
        } else {
            Err(Refused::Stopped)
        }
    }

    /// Free space below the floor, or the disk said so itself.
    fn disk_is_full(&self) -> bool {
        let unwritten = self.bodies.bytes().saturating_mul(3) / 2;
        self.space.refused
            || self.space.free_bytes < self.space.floor_bytes.saturating_add(unwritten)
            || self.space.free_inodes < self.space.inodes_floor
    }

    #[expect(
        clippy::needless_pass_by_value,
        reason = "the end of an op is handed on whole"
    )]
    fn space_looked(&mut self, now: Now, result: Result<Done, Failed>) {
        self.space.looking = Looking::No;
        self.space.looked_at = now.monotonic;
        let Ok(Done::Space {
            free_bytes,
            total_bytes,
            free_inodes,
            total_inodes,
        }) = result
        else {
            return;
        };
        let was_full = self.disk_is_full();
        // A share of a small disk; never more than what the configuration reserves.
        self.space.floor_bytes = self.config.reserve_bytes.min(total_bytes / 50);
        self.space.free_bytes = free_bytes;
        self.space.free_inodes = free_inodes;
        self.space.inodes_floor = if free_inodes == u64::MAX {
            0
        } else {
            total_inodes / 50
        };
        if free_bytes > self.space.floor_bytes {
            self.space.refused = false;
        }
        self.make_room();
        if self.disk_is_full() && !was_full {
            let floor_bytes = self.space.floor_bytes;
            self.events.push(Event::Notice(Notice::DiskLow {
                free_bytes,
                floor_bytes,
            }));
        }
    }

    /// Answers a ticket.
    fn answer(&mut self, event: Event) {
        self.tickets_open -= 1;
        self.events.push(event);
    }

    /// Nothing is acknowledged any more; every open ticket learns it.
    fn stop(&mut self, fatal: Fatal) {
        if self.phase == Phase::Stopped {
            return;
        }
        let before = std::mem::replace(&mut self.phase, Phase::Stopped);
        self.refuse_appends();
        self.refuse_changes();
        self.refuse_reads();
        self.refuse_compactions();
        self.refuse_backup();
        self.refuse_scrubs();
        self.refuse_watches();
        self.refuse_stages();
        self.refuse_checkpoints();
        if let Phase::Draining(ticket) = before {
            let result = Err(Refused::Stopped);
            self.answer(Event::Drained { ticket, result });
        }
        self.refuse_copies();
        self.metrics.tickets = self.tickets_open;
        self.events.push(Event::Fatal(fatal));
    }
}
