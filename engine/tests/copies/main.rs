//! Second copies: two and three shards on simulated disks that play primary and copy over simulated
//! links, with crashes of either side, failover, and what was cut off. `world` is the cluster, its
//! register and its links; `rules`, `restart` and `large` are single facts; here are the seeds.

#![expect(
    clippy::indexing_slicing,
    clippy::format_push_string,
    reason = "a test fails by panicking, and says why at length"
)]

#[path = "../testkit/mod.rs"]
mod testkit;

mod corners;
mod held;
mod large;
mod refill;
mod restart;
mod rules;
mod world;

use ringpost_engine::canary::{Canary, plant};
use world::{End, Plan, World};

/// Seeds of each kind in one run of the tests.
const SEEDS: u64 = 25;

fn run(seed: u64, plan: &Plan) -> Result<u64, String> {
    let mut world = World::new(seed, plan);
    world.run()
}

fn all_hold(from: u64, plan: &Plan) {
    let mut acknowledged = 0;
    for seed in from..from + SEEDS {
        match run(seed, plan) {
            Ok(count) => acknowledged += count,
            Err(found) => panic!("seed {seed}, {plan:?}: {found}"),
        }
    }
    assert!(acknowledged > SEEDS * 5, "{acknowledged} mails are too few");
}

#[test]
fn two_nodes_heal_and_agree() {
    all_hold(1, &Plan::new(2, End::Heal));
}

#[test]
fn three_nodes_heal_and_agree() {
    all_hold(1_000, &Plan::new(3, End::Heal));
}

#[test]
fn what_was_acknowledged_survives_the_loss_of_either_node() {
    all_hold(2_000, &Plan::new(2, End::Loss));
}

#[test]
fn what_was_acknowledged_survives_the_loss_of_one_in_three() {
    all_hold(3_000, &Plan::new(3, End::Loss));
}

/// Seeds that found something: a connection made anew while a lead waited for its turn (14, 215); two
/// checkpoints behind a restart, the first with a user's creation, the second with the end of one of
/// its mailboxes (325).
#[test]
fn what_was_found_once_is_mended() {
    for seed in [14, 215, 325] {
        if let Err(found) = run(seed, &Plan::new(3, End::Heal)) {
            panic!("seed {seed}: {found}");
        }
    }
    // A compaction whose commit waited for a silent peer, and a checkpoint that waited for it: for ever.
    for end in [End::Heal, End::Loss] {
        for nodes in [2, 3] {
            if let Err(found) = run(3_171, &Plan::new(nodes, end)) {
                panic!("seed 3171: {found}");
            }
        }
    }
}

/// Fresh seeds of every kind: `COPIES_SEEDS=1000..1300 cargo test --test copies -- --ignored soak`.
#[test]
#[ignore = "as long as it is told to"]
#[expect(
    clippy::disallowed_methods,
    reason = "the seeds are given by hand, and printed with what they find"
)]
fn soak() {
    let seeds = std::env::var("COPIES_SEEDS").expect("from..to");
    let (from, to) = seeds.split_once("..").expect("from..to");
    let bound = |text: &str| text.parse::<u64>().expect("a number");
    let mut found_count = 0;
    for seed in bound(from)..bound(to) {
        for (nodes, end) in [
            (2, End::Heal),
            (3, End::Heal),
            (2, End::Loss),
            (3, End::Loss),
        ] {
            let plan = Plan::new(nodes, end);
            let run = std::panic::AssertUnwindSafe(|| run(seed, &plan));
            let found = match std::panic::catch_unwind(run) {
                Ok(Ok(_)) => continue,
                Ok(Err(found)) => found,
                Err(_) => "an assertion".to_owned(),
            };
            found_count += 1;
            println!("seed {seed}, {nodes} nodes, {end:?}: {found}");
        }
    }
    assert_eq!(found_count, 0, "seeds {seeds}");
}

/// A crash of either side after each step of one run.
#[test]
fn a_crash_at_each_step_of_either_side() {
    for node in 0..2 {
        for step in 0..120 {
            let mut plan = Plan::new(2, End::Heal);
            plan.steps = 150;
            plan.crash_at = Some((step, node));
            if let Err(found) = run(77, &plan) {
                panic!("crash of node {node} at step {step}: {found}");
            }
        }
    }
}

/// Each planted bug is found within so many seeds.
#[test]
fn planted_bugs_are_found() {
    let bugs = Canary::ALL.iter().copied();
    let bugs: Vec<Canary> = bugs.filter(|bug| bug.needs_a_copy()).collect();
    assert!(bugs.len() >= 3, "{bugs:?}");
    for bug in bugs {
        plant(Some(bug));
        let found = (0..300).find_map(|seed| {
            let end = if seed % 2 == 0 { End::Loss } else { End::Heal };
            let plan = Plan::new(2, end);
            let run = || run(10_000 + seed, &plan);
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
            match ended {
                Ok(Ok(_)) => None,
                Ok(Err(found)) => Some((seed, found)),
                Err(_) => Some((seed, "an assertion".to_owned())),
            }
        });
        plant(None);
        assert!(found.is_some(), "{} was not found", bug.name());
    }
}
