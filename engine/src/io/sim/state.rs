//! What is behind a simulated disk: virtual time, ops in flight, and the switches at work.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;

use bytes::Bytes;
use fastrand::Rng;

use super::config::{Among, Crash, SimConfig};
use super::crash;
use super::medium;
use super::steps::{Act, Handle, plan};
use super::store::{InodeId, Limits, Store, part, plain};
use crate::canary::{self, Canary};
use crate::error::IoError;
use crate::io::{Completion, Done, Failed, FileId, Op, OpenMode, RelPath, Token, WorkSync};

/// An op in flight.
#[derive(Debug)]
struct Running {
    io: u32,
    token: Token,
    op: Op,
    handle: Option<Handle>,
    acts: VecDeque<Act>,
    /// What was done before it began; a sync promises no more.
    since: u64,
    bytes: u64,
    syncs: u64,
    /// Directories that got a name which the plan did not foresee, to be synced at its end.
    named: BTreeSet<RelPath>,
}

impl Running {
    /// Whether it is a materialise that makes itself durable.
    fn syncs_names(&self) -> bool {
        match &self.op {
            Op::Materialise(works) => works.iter().any(|work| work.sync == WorkSync::Each),
            _ => false,
        }
    }
}

/// What one-shot switches count.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Counted {
    pub(super) steps: u64,
    pub(super) changes: u64,
    pub(super) syncs: u64,
    pub(super) log_writes: u64,
    reads: u64,
    writes: u64,
    names: u64,
    transfers: u64,
    /// Errors that no program could have avoided.
    pub(super) faults: u64,
    /// Ops that were in flight when their `Io` was dropped.
    pub(super) dropped: u64,
}

impl Counted {
    /// Counts a step; gives its number among each class that it belongs to.
    fn step(&mut self, act: &Act) {
        self.steps += 1;
        match act.class() {
            Among::Reads => self.reads += 1,
            Among::Writes => self.writes += 1,
            Among::Names => self.names += 1,
            Among::Syncs => self.syncs += 1,
            Among::Steps => {}
        }
        self.log_writes += u64::from(matches!(act, Act::WriteDirect(..)));
    }

    fn among(&self, class: Among) -> u64 {
        match class {
            Among::Steps => self.steps,
            Among::Reads => self.reads,
            Among::Writes => self.writes,
            Among::Names => self.names,
            Among::Syncs => self.syncs,
        }
    }
}

/// Everything behind a [`SimDisk`](super::SimDisk).
#[derive(Debug)]
pub(super) struct State {
    pub(super) config: SimConfig,
    rng: Rng,
    pub(super) now_ns: u64,
    pub(super) store: Store,
    handles: BTreeMap<u64, Handle>,
    next_handle: u64,
    /// By the time of their next step; the second number makes it unique.
    in_flight: BTreeMap<(u64, u64), Running>,
    serial: u64,
    ios: u32,
    /// Finished, by `Io`.
    mail: BTreeMap<u32, Vec<Completion>>,
    pub(super) counted: Counted,
    /// Those whose next `SyncTree` fails: another one's sync did, and the kernel tells each of them once.
    untold: BTreeSet<u32>,
    /// Files with pages that a failed `SyncTree` marked clean: who syncs one of them next hears of it.
    lossy: BTreeSet<InodeId>,
    pub(super) frozen: bool,
    /// The steps that were going on when it froze.
    limbo: Vec<Act>,
    pub(super) trace: String,
}

/// What a sync covers.
enum Synced {
    Nothing,
    File(InodeId),
    Everything,
}

impl State {
    pub(super) fn new(config: SimConfig, rng: Rng, now_ns: u64, store: Store) -> Self {
        Self {
            config,
            rng,
            now_ns,
            store,
            handles: BTreeMap::new(),
            next_handle: 1,
            in_flight: BTreeMap::new(),
            serial: 0,
            ios: 0,
            mail: BTreeMap::new(),
            counted: Counted::default(),
            untold: BTreeSet::new(),
            lossy: BTreeSet::new(),
            frozen: false,
            limbo: Vec::new(),
            trace: String::new(),
        }
    }

    pub(super) fn new_io(&mut self) -> u32 {
        self.ios += 1;
        self.ios
    }

    /// Freezes, and draws what is found afterwards.
    pub(super) fn crash(&mut self, kind: Crash) -> (SimConfig, Rng, u64, Store) {
        self.freeze();
        let seed = self.rng.u64(..);
        let mut rng = Rng::with_seed(seed);
        let mut store = self.store.clone();
        crash::crash(&mut store, &self.limbo, kind, &self.config, &mut rng);
        (self.config.after_crash(seed), rng, self.now_ns, store)
    }

    pub(super) fn next_due_ns(&self) -> Option<u64> {
        self.in_flight.keys().next().map(|(due, _)| *due)
    }

    pub(super) fn advance(&mut self, ns: u64) {
        self.run_until(self.now_ns.saturating_add(ns));
    }

    pub(super) fn handle(&self, file: FileId, io: u32) -> Option<Handle> {
        let id = file.0.checked_sub(u64::from(io) << 32)?;
        self.handles.get(&id).cloned()
    }

    pub(super) fn close(&mut self, file: FileId, io: u32) -> Option<Handle> {
        let id = file.0.checked_sub(u64::from(io) << 32)?;
        self.handles.remove(&id)
    }

    /// Starts an op.
    pub(super) fn start(&mut self, io: u32, op: Op, token: Token, handle: Option<Handle>) {
        let acts = plan(&op, handle.as_ref(), &self.config, &mut self.rng);
        if canary::on(Canary::BufferReused) {
            self.reuse_buffers(io, &op);
        }
        let running = Running {
            io,
            token,
            op,
            handle,
            acts,
            since: self.store.seq(),
            bytes: 0,
            syncs: 0,
            named: BTreeSet::new(),
        };
        if self.frozen {
            self.fail(running, libc::EIO);
        } else {
            self.schedule(running);
        }
    }

    /// Log writes in flight get the bytes of a later one: its buffer was theirs.
    fn reuse_buffers(&mut self, io: u32, op: &Op) {
        let Op::LogWrite { buf, .. } = op else {
            return;
        };
        for running in self.in_flight.values_mut().filter(|other| other.io == io) {
            for act in &mut running.acts {
                if let Act::WriteDirect(_, _, _, data) = act {
                    let mut mixed = data.to_vec();
                    for (old, new) in mixed.iter_mut().zip(buf.iter()) {
                        *old = *new;
                    }
                    *data = Bytes::from(mixed);
                }
            }
        }
    }

    fn schedule(&mut self, running: Running) {
        let due = self.now_ns + self.cost(running.acts.front());
        self.serial += 1;
        self.in_flight.insert((due, self.serial), running);
    }

    /// Virtual ns of a step, near what a small virtual machine shows.
    fn cost(&mut self, act: Option<&Act>) -> u64 {
        let range = match act {
            Some(Act::WriteDirect(..)) => 80_000..140_000,
            Some(act) if act.syncs() => 300_000..1_500_000,
            Some(Act::Zero(..) | Act::Copy(..)) => 200_000..500_000,
            Some(Act::Look) => 2_000..90_000,
            _ => 5_000..60_000,
        };
        let slow = self.config.slow_one_in;
        let factor = if slow > 0 && self.rng.u32(..slow) == 0 {
            self.config.slow_factor
        } else {
            1
        };
        self.rng.u64(range) * factor
    }

    /// The time after one more poll.
    pub(super) fn passed(&self) -> u64 {
        self.now_ns.saturating_add(self.config.poll_ns)
    }

    /// Does what is due until `now`.
    pub(super) fn run_until(&mut self, now: u64) {
        while self
            .in_flight
            .keys()
            .next()
            .is_some_and(|(due, _)| *due <= now)
        {
            self.run_next();
        }
        self.now_ns = self.now_ns.max(now);
    }

    /// Whether an `Io` has something to take.
    pub(super) fn has_mail(&self, io: u32) -> bool {
        self.mail.get(&io).is_some_and(|mail| !mail.is_empty())
    }

    /// Whether an `Io` has something in flight.
    pub(super) fn is_busy(&self, io: u32) -> bool {
        self.in_flight.values().any(|running| running.io == io)
    }

    /// Ops that have not ended.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// An `Io` is dropped: what it had in flight goes on to its end, and nobody hears of it.
    pub(super) fn abandon(&mut self, io: u32) {
        let busy = self.in_flight.values().filter(|running| running.io == io);
        self.counted.dropped += busy.count() as u64;
        while self.is_busy(io) {
            self.run_next();
        }
        drop(self.take_mail(io));
    }

    pub(super) fn take_mail(&mut self, io: u32) -> Vec<Completion> {
        self.mail.remove(&io).unwrap_or_default()
    }

    /// Does the next step of whatever is due first.
    pub(super) fn run_next(&mut self) {
        let Some(((due, _), mut running)) = self.in_flight.pop_first() else {
            return;
        };
        self.now_ns = self.now_ns.max(due);
        let Some(act) = running.acts.pop_front() else {
            return self.complete(running);
        };
        if act.changes() {
            self.counted.changes += 1;
            if self.config.crash_at == Some(self.counted.changes) {
                running.acts.push_front(act);
                self.serial += 1;
                self.in_flight.insert((due, self.serial), running);
                return self.freeze();
            }
        }
        let result = self.step(&act, &running);
        self.note(&running, &act, &result);
        if let Err(error) = result {
            return self.fail_with(running, error);
        }
        if let Act::WritePath(path, ..) = &act {
            running.bytes += act.describe().len;
            if result.is_ok_and(|made| made) && running.syncs_names() {
                running.named.insert(path.parent());
            }
        }
        running.syncs += u64::from(act.syncs());
        if running.acts.is_empty() {
            let named = std::mem::take(&mut running.named);
            running.acts.extend(named.into_iter().map(Act::SyncDir));
        }
        if running.acts.is_empty() {
            self.complete(running);
        } else {
            self.schedule(running);
        }
    }

    /// Does a step, or what the faults make of it; whether a file was made that nobody foresaw.
    fn step(&mut self, act: &Act, running: &Running) -> Result<bool, IoError> {
        self.counted.step(act);
        // What a killed process left in the queue lands when it likes.
        self.store.land(|late| late.steps == 0);
        for late in &mut self.store.late {
            late.steps -= 1;
        }
        if let Some(error) = self.config.error_at
            && act.is_among(error.among)
            && error.at == self.counted.among(error.among)
        {
            self.counted.faults += 1;
            crash::in_part(&mut self.store, act, &self.config, &mut self.rng);
            return Err(act.error(error.errno));
        }
        if act.syncs() && self.config.sync_error_at == Some(self.counted.syncs) {
            self.counted.faults += 1;
            return Err(self.fail_sync(act, running.io));
        }
        if matches!(act, Act::SyncTree) && self.untold.remove(&running.io) {
            return Err(act.error(libc::EIO));
        }
        if let Synced::File(file) = self.synced_by(act)
            && self.lossy.remove(&file)
        {
            return Err(act.error(libc::EIO));
        }
        if matches!(act, Act::WriteDirect(..))
            && self.config.lost_write_at == Some(self.counted.log_writes)
        {
            medium::lose(&mut self.store, act);
            return Ok(false);
        }
        let used = |capacity: u64| capacity.saturating_sub(self.store.used());
        let capacity = self.config.capacity_bytes.filter(|_| act.changes());
        let room = capacity.map(used);
        self.store.limits = Limits {
            inodes_max: self.config.inodes_max,
            links_max: self.config.links_max,
        };
        // A sync inside an op covers what that op wrote before.
        let since = match running.op {
            Op::Sync { .. } | Op::SyncDir { .. } | Op::SyncTree => running.since,
            _ => self.store.seq(),
        };
        let transfer = match self.config.sector_at {
            Some(_) => medium::transfer(&self.store, act, since),
            None => None,
        };
        self.counted.transfers += u64::from(transfer.is_some());
        let done = self.store.act(act, since, room);
        if let (Some(transfer), Some((at, how))) = (transfer, self.config.sector_at)
            && at == self.counted.transfers
        {
            medium::spoil_sector(&mut self.store, &transfer, how, &mut self.rng);
        }
        done.map_err(|mut error| {
            let limited = matches!(error.errno, libc::ENOSPC | libc::EMLINK);
            self.counted.faults += u64::from(limited);
            if error.errno == libc::ENOSPC {
                error.errno = self.config.full_errno;
            }
            error
        })
    }

    /// A failed write-back is the file system's and the file's (the kernel's `errseq_t` of a superblock
    /// and of a mapping): pages are clean afterwards, so whoever else syncs the tree, or one of these files,
    /// has to hear of it, or would take them for written.
    fn fail_sync(&mut self, act: &Act, io: u32) -> IoError {
        let only = match self.synced_by(act) {
            Synced::Nothing => return act.error(libc::EIO),
            Synced::File(id) => Some(id),
            Synced::Everything => None,
        };
        if only.is_none() {
            let dirty = self.store.inodes.iter();
            let dirty = dirty.filter(|(_, inode)| !inode.pending.is_empty());
            self.lossy.extend(dirty.map(|(id, _)| *id));
        }
        crash::fail_sync(&mut self.store, only, &self.config, &mut self.rng);
        self.untold
            .extend((1..=self.ios).filter(|other| *other != io));
        act.error(libc::EIO)
    }

    /// Whose data an act makes durable.
    fn synced_by(&self, act: &Act) -> Synced {
        match act {
            Act::SyncFile(id, _) => Synced::File(*id),
            Act::SyncPath(path) => {
                let found = self.store.file(&plain(path.as_str()));
                found.map_or(Synced::Nothing, Synced::File)
            }
            Act::SyncTree => Synced::Everything,
            _ => Synced::Nothing,
        }
    }

    fn note(&mut self, running: &Running, act: &Act, result: &Result<bool, IoError>) {
        if !self.config.trace {
            return;
        }
        let described = act.describe();
        let errno = result.as_ref().err().map_or(0, |error| error.errno);
        let path = running.handle.as_ref().map(|handle| handle.path.as_str());
        writeln!(
            self.trace,
            "{} {} {} {} {} {} {} {errno}",
            self.now_ns,
            running.io,
            running.token.0,
            if act.changes() {
                described.operation
            } else {
                running.op.operation()
            },
            path.unwrap_or(&described.path),
            described.offset,
            described.len,
        )
        .expect("a string takes everything");
    }

    /// Nothing changes any more; whatever is in flight fails.
    pub(super) fn freeze(&mut self) {
        if std::mem::replace(&mut self.frozen, true) {
            return;
        }
        for (_, running) in std::mem::take(&mut self.in_flight) {
            self.limbo.extend(running.acts.front().cloned());
            self.fail(running, libc::EIO);
        }
    }

    fn fail(&mut self, running: Running, errno: i32) {
        let path = running.handle.as_ref().map(|handle| &handle.path);
        let error = running.op.error(path, errno);
        self.deliver(
            running.io,
            running.token,
            Err(running.op.into_failed(error)),
        );
    }

    fn fail_with(&mut self, running: Running, error: IoError) {
        // Ops of the ring are named by the op, the helpers' by the step, as on the real disk.
        if error.operation == "look" || !running.op.is_for_helpers() {
            return self.fail(running, error.errno);
        }
        self.deliver(
            running.io,
            running.token,
            Err(running.op.into_failed(error)),
        );
    }

    fn deliver(&mut self, io: u32, token: Token, result: Result<Done, Failed>) {
        let completion = Completion { token, result };
        self.mail.entry(io).or_default().push(completion);
    }

    /// The end of an op whose steps are done.
    fn complete(&mut self, running: Running) {
        match self.look(&running) {
            Err(errno) => self.fail(running, errno),
            Ok(Some(done)) => self.deliver(running.io, running.token, Ok(done)),
            Ok(None) => {
                let done = match running.op {
                    Op::LogWrite { buf, .. } => Done::Buf(buf),
                    Op::LogRead {
                        offset,
                        mut buf,
                        len,
                        ..
                    } => {
                        let handle = running.handle.expect("checked at submit");
                        let found = part(&self.store.inode(handle.inode).cache, offset, len);
                        let count = found.len();
                        if let Some(target) = buf.get_mut(..count) {
                            target.copy_from_slice(found);
                        }
                        Done::Read { buf, count }
                    }
                    _ => Done::Nothing,
                };
                self.deliver(running.io, running.token, Ok(done));
            }
        }
    }

    /// What an op answers that does not move its buffer.
    fn look(&mut self, running: &Running) -> Result<Option<Done>, i32> {
        let store = &self.store;
        Ok(Some(match &running.op {
            Op::Open { path, mode } => {
                let inode = store.file(&plain(path.as_str()))?;
                let bytes = store.inode(inode).cache.len() as u64;
                let id = self.next_handle;
                self.next_handle += 1;
                let handle = Handle {
                    inode,
                    path: path.clone(),
                    mode: *mode,
                };
                self.handles.insert(id, handle);
                // An `Io` knows its own handles only.
                let file = FileId(id + (u64::from(running.io) << 32));
                Done::Opened { file, bytes }
            }
            Op::Read { offset, len, .. } => {
                let handle = running.handle.as_ref().expect("checked at submit");
                let inode = store.inode(handle.inode);
                inode.check_readable(*offset, *len)?;
                let found = part(&inode.cache, *offset, *len);
                Done::Bytes(Bytes::copy_from_slice(found))
            }
            Op::Materialise(_) => Done::Materialised {
                bytes: running.bytes,
                syncs: running.syncs,
            },
            Op::ListDir { path } => {
                let path = plain(path.as_str());
                store.check_dir(&path)?;
                Done::Listing(store.list(&path))
            }
            Op::LogRead { offset, len, .. } => {
                let handle = running.handle.as_ref().expect("checked at submit");
                let inode = store.inode(handle.inode);
                inode.check_readable(*offset, *len)?;
                return Ok(None);
            }
            Op::ReadFile { path, bytes_max } => {
                let inode = store.inode(store.file(&plain(path.as_str()))?);
                inode.check_readable(0, inode.cache.len())?;
                let cache = &inode.cache;
                if cache.len() as u64 > *bytes_max {
                    return Err(libc::EFBIG);
                }
                Done::Bytes(Bytes::copy_from_slice(cache))
            }
            Op::CopyExpanded { from, to, skip } => {
                let (crc, bytes) = store.copied(from, to, *skip)?;
                Done::Copied { crc, bytes }
            }
            Op::FreeSpace => {
                let total_bytes = self.config.capacity_bytes.unwrap_or(1 << 40);
                let inodes = self.config.inodes_max;
                Done::Space {
                    free_bytes: total_bytes.saturating_sub(store.used()),
                    total_bytes,
                    free_inodes: inodes.map_or(u64::MAX, |max| max.saturating_sub(store.count())),
                    total_inodes: inodes.unwrap_or(u64::MAX),
                }
            }
            _ => return Ok(None),
        }))
    }

    /// Refusals that need no time: a handle that is closed or of the wrong kind.
    pub(super) fn refuse(op: &Op, handle: Option<&Handle>) -> Result<(), i32> {
        let Some(handle) = handle else {
            return if op.file().is_some() {
                Err(libc::EBADF)
            } else {
                op.check()
            };
        };
        match (op, handle.mode) {
            (Op::LogWrite { .. } | Op::Write { .. }, OpenMode::Read) => Err(libc::EBADF),
            (Op::Write { offset, data, .. }, OpenMode::Log)
                if !offset.is_multiple_of(4096) || !data.len().is_multiple_of(4096) =>
            {
                Err(libc::EINVAL)
            }
            _ => op.check(),
        }
    }
}
