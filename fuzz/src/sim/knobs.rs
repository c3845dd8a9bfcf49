//! What is drawn from a seed before anything happens: limits, the disk's manners, users, and which
//! kinds of work there are (swarm testing: each seed leaves some out, so that others come in masses).

use fastrand::Rng;
use ringpost_engine::config::{ArchiveLimits, CheckpointSync, ShardConfig};
use ringpost_engine::io::sim::{Fate, Harsh, Model, SimConfig};

/// Kinds of work; a weight each.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Kind {
    Append,
    Large,
    Retry,
    Store,
    Expunge,
    Copy,
    Move,
    Create,
    Rename,
    Delete,
    Subscribe,
    List,
    Fetch,
    Watch,
    Snapshot,
    Compact,
    Checkpoint,
    Pause,
    Settle,
}

const KINDS: [Kind; 19] = [
    Kind::Append,
    Kind::Large,
    Kind::Retry,
    Kind::Store,
    Kind::Expunge,
    Kind::Copy,
    Kind::Move,
    Kind::Create,
    Kind::Rename,
    Kind::Delete,
    Kind::Subscribe,
    Kind::List,
    Kind::Fetch,
    Kind::Watch,
    Kind::Snapshot,
    Kind::Compact,
    Kind::Checkpoint,
    Kind::Pause,
    Kind::Settle,
];

/// A seed's world.
#[derive(Clone, Debug)]
pub(super) struct Knobs {
    pub(super) shard: ShardConfig,
    pub(super) disk: SimConfig,
    pub(super) logs: u32,
    pub(super) users: usize,
    pub(super) lives: u32,
    /// Steps of a life, at most.
    pub(super) steps_max: u32,
    /// Turns of the loop between two steps, at most.
    pub(super) turns_max: u32,
    /// Changes of the disk before a crash, fewer than this.
    pub(super) changes_max: u64,
    weights: Vec<(Kind, u32)>,
    /// One delivery in so many goes to several users.
    pub(super) several_one_in: u32,
    /// One life in so many ends by a drain; 0 is never.
    pub(super) drain_one_in: u32,
    /// One life in so many has a fault of the disk beside its end; 0 is never.
    pub(super) fault_one_in: u32,
    /// Whether the last life ends with a wound of the medium.
    pub(super) rots: bool,
    /// Whether wall clocks go back.
    pub(super) clock_back: bool,
    /// Whether appends have a quota.
    pub(super) quota: bool,
}

/// What else comes over a store than work, crashes and faults. Drawn apart from the rest, and from a stream
/// of its own, so that a seed without any of it does what it did before there was such a thing.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is drawn by itself, and none excludes another"
)]
#[derive(Clone, Default, Debug)]
pub(super) struct Hazards {
    /// The number of cores changes at restarts, crashes in the change included.
    pub(super) cores: bool,
    /// Copies are made of the node while it works.
    pub(super) copies: bool,
    /// The log is archived, and users are looked at as of moments since a copy was made.
    pub(super) archive: bool,
    /// The store is repaired after crashes and rot, by repairs that are cut off.
    pub(super) repairs: bool,
}

/// Apart from what a seed's own stream draws.
const HAZARDS: u64 = 0x6a09_e667_f3bc_c908;

impl Hazards {
    /// Draws all of them; the stream goes on for what they draw later.
    pub(super) fn draw(seed: u64) -> (Self, Rng) {
        let mut rng = Rng::with_seed(seed ^ HAZARDS);
        let (cores, copies) = (rng.u8(..4) == 0, rng.u8(..4) == 0);
        let archive = rng.u8(..4) == 0;
        let hazards = Self {
            cores,
            // Without one there is nothing to go on from.
            copies: copies || archive,
            archive,
            repairs: rng.u8(..4) == 0,
        };
        (hazards, rng)
    }
}

fn one_of<T: Copy, const N: usize>(rng: &mut Rng, of: [T; N]) -> T {
    rng.choice(of).expect("there is something to choose")
}

impl Knobs {
    /// Draws all of them.
    pub(super) fn draw(rng: &mut Rng, seed: u64) -> Self {
        let mut weights = Vec::new();
        for kind in KINDS {
            let weight = match kind {
                Kind::Append => rng.u32(3..20),
                Kind::Pause => rng.u32(1..8),
                _ if rng.u8(..3) == 0 => 0,
                _ => rng.u32(1..8),
            };
            weights.push((kind, weight));
        }
        Self {
            shard: shard(rng),
            disk: disk(rng, seed),
            logs: one_of(rng, [1, 1, 1, 2, 3]),
            users: rng.usize(1..7),
            lives: rng.u32(2..7),
            steps_max: one_of(rng, [15, 40, 90]),
            turns_max: one_of(rng, [1, 3, 12]),
            changes_max: 400,
            weights,
            several_one_in: one_of(rng, [2, 4, 100]),
            drain_one_in: one_of(rng, [0, 3, 6]),
            fault_one_in: one_of(rng, [0, 2, 4]),
            rots: rng.u8(..4) == 0,
            clock_back: rng.u8(..3) == 0,
            quota: rng.u8(..3) == 0,
        }
    }

    /// Everything is archived, for ever, and the clock that tells moments goes forward.
    pub(super) fn archive(&mut self) {
        self.shard.archive = Some(ArchiveLimits {
            age_s: 1 << 40,
            bytes: 1 << 40,
        });
        self.clock_back = false;
    }

    /// Many lives of a few appends. Other shards' writes make time pass in small steps, and half of all
    /// writes take long: so a crash often takes a frame of the log and leaves the one behind it, where the
    /// next life writes its own and soon crashes too.
    pub(super) fn short_lives(&mut self) {
        self.weights = vec![(Kind::Append, 3), (Kind::Pause, 1)];
        self.logs = 3;
        self.users = 6;
        self.lives = 24;
        self.steps_max = 15;
        self.turns_max = 3;
        self.changes_max = 100;
        self.several_one_in = 100;
        self.drain_one_in = 0;
        self.fault_one_in = 0;
        self.rots = false;
        self.shard.log_depth = 2;
        // Frames of one block.
        self.shard.large_bytes = 1 << 10;
        self.shard.checkpoint_interval_ns = 10_000_000_000;
        self.disk.model = Model::Weak;
        self.disk.fate = Fate::Drawn;
        self.disk.poll_ns = 1_000;
        self.disk.slow_one_in = 2;
        self.disk.slow_factor = 50;
    }

    /// The kind of the next step.
    pub(super) fn kind(&self, rng: &mut Rng) -> Kind {
        let all: u32 = self.weights.iter().map(|(_, weight)| weight).sum();
        let mut at = rng.u32(..all);
        for (kind, weight) in &self.weights {
            if at < *weight {
                return *kind;
            }
            at -= weight;
        }
        Kind::Append
    }
}

fn shard(rng: &mut Rng) -> ShardConfig {
    let frame_bytes_max = one_of(rng, [16 << 10, 16 << 10, 32 << 10, 64 << 10]);
    let large_bytes = one_of(rng, [1 << 10, 2 << 10, 4 << 10]);
    let config = ShardConfig {
        log_file_bytes: frame_bytes_max * one_of(rng, [3, 4, 8]),
        log_files_initial: 2,
        log_files_max: rng.u32(3..8),
        frame_bytes_max,
        log_depth: rng.u32(1..3),
        large_bytes,
        message_bytes_max: 64 << 10,
        segment_bytes_max: one_of(rng, [2 * large_bytes, 16 << 10, 64 << 10]),
        pending_bytes_max: one_of(rng, [frame_bytes_max, 2 * frame_bytes_max, 1 << 20]),
        pending_records_max: one_of(rng, [16, 64, 1_024]),
        index_bytes_max: one_of(rng, [1, 8 << 10, 1 << 20]),
        tails_max: one_of(rng, [1, 4, 64]),
        dedupe_entries: one_of(rng, [64, 256]),
        checkpoint_interval_ns: one_of(rng, [5_000_000, 100_000_000, 10_000_000_000]),
        checkpoint_sync: one_of(
            rng,
            [
                CheckpointSync::Auto,
                CheckpointSync::Tree,
                CheckpointSync::PerFile,
            ],
        ),
        reserve_bytes: 64 << 10,
        scrub_bytes_per_s: one_of(rng, [64 << 10, 64 << 20]),
        scrub_interval_ns: one_of(rng, [None, None, Some(100_000_000)]),
        compact_bytes_per_s: one_of(rng, [64 << 10, 4 << 20, 64 << 20]),
        compact_bytes_min: one_of(rng, [1, 2 << 10, 1 << 40]),
        ..ShardConfig::tiny()
    };
    assert_eq!(config.check(), Ok(()), "{config:?}");
    config
}

fn disk(rng: &mut Rng, seed: u64) -> SimConfig {
    let mut config = SimConfig::new(seed);
    config.model = one_of(rng, [Model::Ext4, Model::Weak]);
    config.fate = one_of(
        rng,
        [
            Fate::Drawn,
            Fate::Drawn,
            Fate::Drawn,
            Fate::Least,
            Fate::Most,
        ],
    );
    config.poll_ns = one_of(rng, [1_000, 20_000, 200_000]);
    config.slow_one_in = one_of(rng, [0, 10, 50]);
    config.slow_factor = one_of(rng, [50, 1_000]);
    config.short_one_in = one_of(rng, [0, 3, 7]);
    config.harsh = one_of(rng, [Harsh::No, Harsh::Direct]);
    config
}
