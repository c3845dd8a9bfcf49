//! `sim`: runs seeds of the simulator on all cores, or one with its trace. The first line says which
//! seeds of which commit, the exit code is the verdict.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a command line program")]
#![expect(
    clippy::disallowed_methods,
    reason = "the clock chooses fresh seeds and measures; no seed sees it"
)]

use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use clap::Parser;
use ringpost_engine::canary::{Canary, plant};
use ringpost_fuzz::sim::{Failure, Stats, Trace, World, run, run_catching};

/// Failures that are listed.
const LISTED_MAX: usize = 20;

/// Runs the storage engine on a simulated disk: random work, faults, power cuts and kills, all from a
/// seed, against what it promised. Exit 0: nothing was found; 1: something was.
#[derive(Parser)]
#[command(name = "sim")]
struct Arguments {
    /// How many seeds to run.
    #[arg(long, value_name = "N", default_value_t = 200)]
    seeds: u64,
    /// The first of them; a fresh one from the clock without this.
    #[arg(long, value_name = "SEED")]
    from: Option<u64>,
    /// Run this one alone and print its trace.
    #[arg(long, value_name = "SEED", conflicts_with_all = ["seeds", "from"])]
    seed: Option<u64>,
    /// Plant a bug in the engine (`--canaries` lists them); stops at the first seed that finds it.
    #[arg(long, value_name = "NAME", value_parser = canary)]
    canary: Option<Canary>,
    /// List the bugs that can be planted.
    #[arg(long)]
    canaries: bool,
    /// What the seeds are about; the whole without this, or where a planted bug shows.
    #[arg(long, value_enum)]
    world: Option<World>,
    /// Threads; as many as there are cores without this.
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
}

impl Arguments {
    fn world(&self) -> World {
        let shows = || self.canary.map_or(World::Whole, World::of);
        self.world.unwrap_or_else(shows)
    }
}

/// What one node can show.
fn planted() -> impl Iterator<Item = Canary> {
    let all = Canary::ALL.iter().copied();
    all.filter(|canary| !canary.needs_a_copy())
}

fn canary(name: &str) -> Result<Canary, String> {
    let mut all = planted();
    let found = all.find(|canary| canary.name() == name);
    found.ok_or_else(|| "no such bug; --canaries lists them".to_owned())
}

thread_local! {
    static SEED: Cell<u64> = const { Cell::new(0) };
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.canaries {
        for canary in planted() {
            println!("{}", canary.name());
        }
        return ExitCode::SUCCESS;
    }
    // A release build ends at a panic: say which seed it was.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let seed = SEED.get();
        println!("seed {seed} found a panic; again with its trace: --seed {seed}");
        hook(panic);
    }));
    match arguments.seed {
        Some(seed) => one(seed, &arguments),
        None => many(&arguments),
    }
}

/// One seed with its trace.
fn one(seed: u64, arguments: &Arguments) -> ExitCode {
    println!("sim: seed {seed}, commit {}", commit());
    plant(arguments.canary);
    SEED.set(seed);
    match run(arguments.world(), seed, Trace::Kept) {
        Ok((stats, trace)) => {
            print!("{trace}");
            println!("seed {seed} holds: {stats:?}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            print!("{}", failure.trace);
            println!("seed {seed} FAILS: {}", failure.what);
            ExitCode::FAILURE
        }
    }
}

fn many(arguments: &Arguments) -> ExitCode {
    let from = arguments.from.unwrap_or_else(fresh);
    let (planted, world) = (arguments.canary, arguments.world());
    println!(
        "sim: seeds {from} to {}, commit {}{}",
        from + arguments.seeds.saturating_sub(1),
        commit(),
        planted.map_or(String::new(), |canary| format!(
            ", planted: {}",
            canary.name()
        ))
    );
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicU64::new(from);
    let end = from + arguments.seeds;
    let begun = Instant::now();
    let mut all = Stats::default();
    let mut failures: Vec<Failure> = Vec::new();
    let mut done = 0;
    let (sender, results) = mpsc::channel();
    std::thread::scope(|scope| {
        for _job in 0..arguments.jobs.unwrap_or(cores).max(1) {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                plant(planted);
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    SEED.set(seed);
                    if sender.send(run_catching(world, seed, Trace::No)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        for result in results {
            done += 1;
            match result {
                Ok((stats, _)) => all.add(&stats),
                Err(failure) => failures.push(failure),
            }
            if planted.is_some() && !failures.is_empty() {
                next.store(end, Ordering::Relaxed);
            }
            progress(done, arguments.seeds, &all, failures.len());
        }
    });
    report(&mut failures, (done, &all), begun.elapsed().as_secs_f64())
}

/// A line that is written over, if somebody looks at it.
fn progress(done: u64, of: u64, all: &Stats, failures: usize) {
    let mut out = std::io::stderr();
    if out.is_terminal() && (done.is_multiple_of(16) || done == of) {
        let end = if done == of { "\n" } else { "" };
        // Nobody misses a line of progress.
        write!(
            out,
            "\r{done} of {of} seeds, {} crashes, {failures} failures{end}",
            all.crashes
        )
        .ok();
    }
}

fn report(failures: &mut [Failure], (done, all): (u64, &Stats), seconds: f64) -> ExitCode {
    failures.sort_by_key(|failure| failure.seed);
    for failure in failures.iter().take(LISTED_MAX) {
        println!(
            "seed {} FAILS: {}\n  again with its trace: --seed {}",
            failure.seed, failure.what, failure.seed
        );
    }
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let rate = all.operations as f64 / seconds.max(0.001);
    println!(
        "{done} seeds, {} failed; {} simulated crashes ({} in a recovery), {} fatal errors, {} wounds",
        failures.len(),
        all.crashes,
        all.recovery_crashes,
        all.fatal,
        all.wounds
    );
    println!(
        "{} changes of the number of cores, {} copies of a working node, {} looks back, {} repairs",
        all.layouts, all.copies, all.looks_back, all.repairs
    );
    println!(
        "{} operations ({rate:.0}/s), {} messages stored, {} checkpoints, {} compactions; {seconds:.1} s",
        all.operations, all.stored, all.checkpoints, all.compactions
    );
    ExitCode::from(u8::from(!failures.is_empty()))
}

/// A seed that nobody ran yet.
fn fresh() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(1, |now| now.as_secs()) * 1_000_000
}

fn commit() -> String {
    let git = |arguments: &[&str]| {
        let here = ["-C", env!("CARGO_MANIFEST_DIR")];
        let output = Command::new("git").args(here).args(arguments).output();
        let output = output.ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "unknown".to_owned();
    };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]);
    match changed {
        Some(changed) if changed.is_empty() => commit,
        _ => format!("{commit}+"),
    }
}
