//! The simulator over pinned seeds, each of which found something once, and over fresh ones. A seed
//! that fails is printed; `cargo run --release -p ringpost-fuzz --bin sim -- --seed N` shows its trace.
#![expect(
    clippy::disallowed_methods,
    reason = "the clock chooses fresh seeds and the environment an old one; no seed sees them"
)]

use std::time::{SystemTime, UNIX_EPOCH};

use ringpost_fuzz::sim::{Stats, Trace, World, run_catching};

/// Seeds that found something, and what it was. What a seed does changes with the simulator, so that
/// each finding has a test of its own in the engine too.
const PINNED: &[(u64, &str)] = &[
    (
        18,
        "a read of a user whose first mail is in flight took the user for damaged",
    ),
    (
        73,
        "a change that was begun asked for a poll at once for as long as it ran",
    ),
    (
        180,
        "a load held sizes from before a checkpoint against an index from after it",
    ),
    (
        191,
        "a watch whose user was loaded while the shard drained was not answered",
    ),
    (
        291,
        "a dedupe file of a checkpoint that did not end was reported as damage",
    ),
    (313, "a shard that drained asked for polls at once"),
    (
        455,
        "a compaction that waited for the disk asked for polls at once",
    ),
    (
        484,
        "a look at free space under way asked for the next one at once",
    ),
    (
        1231,
        "a compaction took bytes from a snapshot that were in the log only",
    ),
    (
        1961,
        "the oracle did not know of a copy of what nobody was shown yet",
    ),
    (
        2624,
        "delivery ids that a failed sync left in the cache were believed durable",
    ),
    (
        912_341,
        "the simulated disk told one shard of a failed sync, and another's said yes",
    ),
    (
        1_795_974_273_000_249,
        "what waited behind a change without room was not refused, and the shard asked to be polled for ever",
    ),
    (
        1_795_974_588_001_233,
        "a part file that a crash left was removed when a compaction had made another of its name",
    ),
    (
        1_795_974_755_001_245,
        "the next sync of a file did not hear that a failed sync of the tree had lost its pages (the disk's)",
    ),
    (
        1_795_974_920_013_469,
        "copies that were asked for together took more places in the window than were counted (the oracle's)",
    ),
    (
        1_795_993_115_000_655,
        "a log file was unlinked for its name in the archive, which a kill had left and a power cut took",
    ),
    (
        3_492,
        "a repair took a message out of a file that a compaction had given up",
    ),
    (
        4_182,
        "a log did not open after the repair of the header of its last file",
    ),
    (
        5_937,
        "a large message was renamed into the archive, and a power cut took both names",
    ),
    (
        11_748,
        "a repair left a ring of delivery ids without its header",
    ),
    (
        16_688,
        "a segment was unlinked in front of a message that was about to be seen",
    ),
    (
        17_672,
        "a directory that a kill had left was taken for durable",
    ),
    (21_318, "a scrub went on in the partitions of another core"),
    (29_083, "a repair wrote over the delivery ids of a new ring"),
    (
        29_275,
        "a checkpoint that was done again for a backup missed a file that was gone",
    ),
    (
        33_527,
        "a compaction did not retire a file that a snapshot read and a checkpoint named",
    ),
    (
        35_597,
        "the checker took a first superblock that was torn for damage",
    ),
    (
        50_572,
        "the checker took a first log header that was torn for damage",
    ),
];

/// Fresh seeds of each run.
const FRESH: u64 = 60;

fn all_hold(seeds: impl Iterator<Item = u64>) -> Stats {
    let mut all = Stats::default();
    for seed in seeds {
        match run_catching(World::Whole, seed, Trace::No) {
            Ok((stats, _)) => all.add(&stats),
            Err(failure) => panic!("seed {seed}: {}", failure.what),
        }
    }
    all
}

#[test]
fn pinned_seeds_hold() {
    let all = all_hold(PINNED.iter().map(|(seed, _)| *seed).chain(1..=40));
    assert!(all.crashes > 100 && all.stored > 200, "{all:?}");
    println!("{all:?}");
}

#[test]
fn fresh_seeds_hold() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let from = std::env::var("SIM_SEED").ok();
    let from = from.and_then(|seed| seed.parse().ok());
    let from = from.unwrap_or_else(|| now.as_secs() * 1_000);
    println!("seeds {from} to {}", from + FRESH - 1);
    println!("{:?}", all_hold(from..from + FRESH));
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [1, 2, 3, 5, 8, 13] {
        let run = || run_catching(World::Whole, seed, Trace::Kept).unwrap();
        let ((stats, first), (again, second)) = (run(), run());
        assert!(first.lines().count() > 100, "seed {seed} does nothing");
        let differ = first.lines().zip(second.lines()).find(|(a, b)| a != b);
        assert_eq!(differ, None, "seed {seed}");
        assert_eq!(first.len(), second.len(), "seed {seed}");
        assert_eq!(stats, again, "seed {seed}");
    }
}
