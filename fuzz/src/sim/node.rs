//! One node: shards on a simulated disk, and the time that passes for them.

use ringpost_engine::Shard;
use ringpost_engine::config::ShardConfig;
use ringpost_engine::error::{Corrupt, OpenError};
use ringpost_engine::format::Version;
use ringpost_engine::format::store_file::{StoreFile, StoreId};
use ringpost_engine::io::RelPath;
use ringpost_engine::io::sim::{SimConfig, SimDisk, SimIo};
use ringpost_engine::layout::{Disk, Layout, Shards};
use ringpost_engine::request::{Event, MonotonicNs, Now, Refused, Request, Ticket};
use ringpost_netproto::id::{NodeId, PartitionId, WallNs};
use ringpost_netproto::placement::{HashKey, PartitionCount, UserKey, core_of};

const KEY: HashKey = HashKey::new([7; 16]);
const STORE: [u8; 16] = [9; 16];
pub(crate) const PARTITIONS: u32 = 4;
/// 2026-01-01T00:00:00Z.
const WALL: u64 = 1_767_225_600_000_000_000;

fn partitions() -> PartitionCount {
    PartitionCount::new(PARTITIONS).expect("a power of two")
}

/// The user with this name.
pub(crate) fn user(name: &str) -> UserKey {
    UserKey::new(name.as_bytes(), &KEY, partitions()).expect("a good name")
}

/// The directory of a user.
pub(crate) fn dir_of(user: &UserKey) -> RelPath {
    RelPath::user_dir(user.partition(), user.hash(), 0)
}

fn store_file(logs: u32) -> StoreFile {
    StoreFile {
        version: Version::OURS,
        store: StoreId::new(STORE),
        node: NodeId::new(1),
        partitions: partitions(),
        logs,
        key: KEY,
        newer: Vec::new(),
    }
}

/// A disk with an empty store.
pub(crate) fn empty_disk(config: SimConfig, logs: u32) -> SimDisk {
    let disk = SimDisk::new(config);
    disk.put_dir(&RelPath::log_dir(0).parent());
    disk.put_dir(&RelPath::stage(0, 0).parent());
    for partition in 0..PARTITIONS {
        let partition = u16::try_from(partition).expect("few");
        disk.put_dir(&RelPath::partition_dir(PartitionId::new(partition)));
    }
    disk.put(&RelPath::store(), &store_file(logs).encode());
    disk
}

/// A moment on this disk; its wall clock is off by `skew_ns`.
pub(crate) fn now_of(disk: &SimDisk, skew_ns: i64) -> Now {
    let ns = disk.now_ns();
    Now {
        monotonic: MonotonicNs::new(ns),
        wall: WallNs::new((WALL + ns).saturating_add_signed(skew_ns)),
    }
}

/// Shards that serve.
pub(crate) struct Node {
    pub(crate) disk: SimDisk,
    shards: Vec<Shard<SimIo>>,
    skew_ns: i64,
    /// Logs that the store had before.
    was: u32,
}

/// What STORE says.
fn layout_of(disk: &SimDisk, logs: u32) -> Result<Layout, OpenError> {
    let path = RelPath::store();
    let bytes = disk.read(&path).unwrap_or_default();
    let file = StoreFile::decode(&bytes).map_err(|reason| Corrupt {
        file: path.to_string(),
        offset: 0,
        reason,
    })?;
    Ok(Layout::new(file, logs))
}

/// How many logs STORE says there are.
pub(crate) fn logs_of(disk: &SimDisk) -> Result<u32, OpenError> {
    Ok(layout_of(disk, 1)?.file().logs)
}

impl Node {
    /// Opens every shard of the store on `disk`, as many as `logs` says: if it has another number of
    /// them, it is brought over first, as the daemon does.
    pub(crate) fn open(
        disk: &SimDisk,
        config: &ShardConfig,
        logs: u32,
        (seed, skew_ns): ([u8; 16], i64),
    ) -> Result<Self, OpenError> {
        let mut layout = layout_of(disk, logs)?;
        let mut hand = Disk::new(disk, disk.io());
        layout.settle(&mut hand)?;
        let was = layout.file().logs;
        if layout.is_due() {
            let shards = Shards {
                config,
                seed,
                make_io: || Ok(disk.io()),
                now: || now_of(disk, skew_ns),
            };
            layout.change(&mut hand, shards)?;
        }
        let mut shards = Vec::new();
        for log_id in 0..layout.file().logs {
            let (identity, now) = (layout.identity(log_id), now_of(disk, skew_ns));
            let shard = Shard::open(disk.io(), identity, config.clone(), seed, now)?;
            shards.push(shard);
        }
        Ok(Self {
            disk: disk.clone(),
            shards,
            skew_ns,
            was,
        })
    }

    pub(crate) fn now(&self) -> Now {
        now_of(&self.disk, self.skew_ns)
    }

    /// Shards.
    pub(crate) fn count(&self) -> usize {
        self.shards.len()
    }

    /// Whether the number of logs changed when this node opened.
    pub(crate) fn is_new_layout(&self) -> bool {
        u32::try_from(self.shards.len()) != Ok(self.was)
    }

    /// The shard that a user belongs to.
    pub(crate) fn owner(&self, user: &UserKey) -> usize {
        core_of(user.partition(), self.shards.len())
    }

    pub(crate) fn submit(&mut self, shard: usize, request: Request) -> Result<Ticket, Refused> {
        let now = self.now();
        let shard = self.shards.get_mut(shard).expect("one of the node's");
        shard.submit(now, request)
    }

    /// Polls every shard once; what comes out, by shard.
    pub(crate) fn poll(&mut self, out: &mut Vec<(usize, Event)>) {
        let now = self.now();
        let mut events = Vec::new();
        for (number, shard) in self.shards.iter_mut().enumerate() {
            shard.poll(now, &mut events);
            out.extend(events.drain(..).map(|event| (number, event)));
        }
    }

    /// Whether a shard asks for a poll at once, though the last one did all there was to do.
    pub(crate) fn is_restless(&self) -> bool {
        let now = self.disk.now_ns();
        let due = self.disk.next_due_ns().is_some_and(|due| due <= now);
        let deadlines = self.shards.iter().filter_map(Shard::next_deadline);
        !due && deadlines.map(MonotonicNs::value).any(|at| at <= now)
    }

    /// To the next completion or deadline.
    pub(crate) fn pass_time(&self) {
        let deadlines = self.shards.iter().filter_map(Shard::next_deadline);
        let deadline = deadlines.map(MonotonicNs::value).min();
        let due = self.disk.next_due_ns();
        let now = self.disk.now_ns();
        let to = [due, deadline].into_iter().flatten().min();
        let to = to.unwrap_or(now + 1_000_000);
        self.disk.advance(to.saturating_sub(now).max(1));
    }

    /// Requests that wait, of all shards, by the shards' own count.
    pub(crate) fn tickets_open(&self) -> u64 {
        let open = self.shards.iter().map(|shard| shard.metrics().tickets);
        open.sum()
    }

    pub(crate) fn metric(&self, of: impl Fn(&ringpost_engine::metrics::Metrics) -> u64) -> u64 {
        self.shards.iter().map(|shard| of(shard.metrics())).sum()
    }
}
