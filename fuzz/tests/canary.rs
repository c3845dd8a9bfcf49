//! Who tests the tests: each planted bug of the engine has to be found by the simulator, by what that bug
//! does and not by chance. One that is not found is a promise that nobody checks.

use std::cmp::Reverse;
use std::sync::atomic::{AtomicUsize, Ordering};

use ringpost_engine::canary::{Canary, plant};
use ringpost_fuzz::sim::{Trace, World, run_catching};

/// Seeds within which a bug has to be found (storage.md 12.4).
fn budget(canary: Canary) -> u64 {
    match canary {
        // The medium has to hurt a frame of the log, with another behind it, in a seed's last life; a repair
        // has to follow on a crash between a compaction's record and the next checkpoint, with mail for a
        // segment that is not there yet.
        Canary::DamageTakenAsTorn | Canary::CarriedNotOwed => 10_000,
        _ => 2_000,
    }
}

/// A seed that finds a bug, and what it says.
struct Find {
    seed: u64,
    what: String,
}

/// What a bug does, as parts of what the simulator may say of it.
fn symptoms(canary: Canary) -> &'static [&'static str] {
    /// Acknowledged mail or what belongs to it is not there, or what is there does not fit together.
    const LOST: &[&str] = &[
        "is lost",
        "is not found",
        "does not open",
        "the checker finds",
        "a notice without a reason",
        "is mail ",
        "was given before",
        "went back",
        "its subscription",
        "has the mailboxes",
        "flags of uid",
        "refused without a reason",
        "fatal without a fault",
        "was stored twice",
        "nobody put",
        "knows",
        "came back",
        "still in doubt",
        "panic",
    ];
    match canary {
        Canary::NewerSuperOverwritten => &["superblock", "log/"],
        Canary::TornTakenAsDamage => &["acknowledged mail is damaged in the log"],
        // That the next file has no predecessor any more is not the point: it is mail of another life.
        Canary::TornFileReused => &["nobody put", "are not those sent", "came back"],
        Canary::UidnextFromLive => &["was given before", "UIDNEXT"],
        Canary::DedupeNotRefilled | Canary::IdsLeftBehind => &["was stored twice"],
        Canary::DuplicateInFlight | Canary::RefusedRemembered => &["is called a duplicate"],
        Canary::ReplayedTwice => &[" after "],
        Canary::FilesNotHeld | Canary::EndToldEarly => &["a copy "],
        Canary::QuotaCountedTwice => &["is said to keep", "over quota"],
        Canary::BodyApart => &["BODY"],
        Canary::CarriedNotOwed => &[
            "a repair finds something",
            "a crash lost",
            "a repair gave up",
        ],
        Canary::SeedLeftOut => &[
            "a guid that nobody sent",
            "nobody put",
            "is mail ",
            "UID",
            "its numbers",
        ],
        _ => LOST,
    }
}

/// The first seed that shows what the bug does, and passes without it.
fn find(canary: Canary) -> Option<Find> {
    let run = |seed| run_catching(World::of(canary), seed, Trace::No);
    (1..=budget(canary)).find_map(|seed| {
        plant(Some(canary));
        let failure = run(seed).err();
        plant(None);
        let what = failure?.what;
        let is_its = symptoms(canary).iter().any(|part| what.contains(part));
        let is_found = is_its && run(seed).is_ok();
        is_found.then_some(Find { seed, what })
    })
}

#[test]
#[cfg_attr(
    debug_assertions,
    ignore = "ten minutes unless optimised: cargo test --release, as .ci/run sim does"
)]
fn every_planted_bug_is_found() {
    // Panics are findings here; their text comes with the table.
    std::panic::set_hook(Box::new(|_panic| {}));
    let next = AtomicUsize::new(0);
    let is_here = |canary: &Canary| !canary.needs_a_copy();
    let mut planted: Vec<Canary> = Canary::ALL.iter().copied().filter(is_here).collect();
    // The longest searches first, so that none is left over at the end.
    planted.sort_by_key(|canary| Reverse(budget(*canary)));
    let work = || {
        let mut table = Vec::new();
        while let Some(canary) = planted.get(next.fetch_add(1, Ordering::Relaxed)) {
            table.push((*canary, find(*canary)));
        }
        table
    };
    let mut table: Vec<_> = std::thread::scope(|scope| {
        let threads = [scope.spawn(work), scope.spawn(work)];
        let joined = threads.map(|thread| thread.join().expect("panics are caught"));
        joined.into_iter().flatten().collect()
    });
    drop(std::panic::take_hook());
    table.sort_by_key(|(canary, _)| *canary);
    for (canary, found) in &table {
        if let Some(Find { seed, what }) = found {
            let what: String = what.chars().take(100).collect();
            println!("{:<26} {seed:>5} seeds: {what}", canary.name());
        } else {
            let seeds = budget(*canary);
            println!("{:<26} NOT FOUND in {seeds} seeds", canary.name());
        }
    }
    assert_eq!(table.len(), planted.len());
    let missed = table.iter().filter(|(_, found)| found.is_none());
    let missed: Vec<&str> = missed.map(|(canary, _)| canary.name()).collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
}
