//! Who tests the tests: each planted bug of the engine has to be found by the simulator. One that is
//! not found is a promise that nobody checks.

use std::sync::atomic::{AtomicUsize, Ordering};

use ringpost_engine::canary::{Canary, plant};
use ringpost_fuzz::sim::{Trace, run_catching};

/// Seeds within which a bug has to be found (storage.md 12.4).
const BUDGET: u64 = 2_000;

/// The seed that finds it, and what it says.
fn find(canary: Canary) -> Option<(u64, String)> {
    plant(Some(canary));
    let found = (1..=BUDGET).find_map(|seed| {
        let failure = run_catching(seed, Trace::No).err()?;
        Some((seed, failure.what))
    });
    plant(None);
    found
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
    let planted = Canary::ALL.iter().copied();
    let planted: Vec<Canary> = planted.filter(|canary| !canary.needs_a_copy()).collect();
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
        match found {
            Some((seeds, what)) => {
                let what: String = what.chars().take(100).collect();
                println!("{:<26} {seeds:>5} seeds: {what}", canary.name());
            }
            None => println!("{:<26} NOT FOUND in {BUDGET} seeds", canary.name()),
        }
    }
    assert_eq!(table.len(), planted.len());
    let missed: Vec<_> = table.iter().filter(|(_, found)| found.is_none()).collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
}
