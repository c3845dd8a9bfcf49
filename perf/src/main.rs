//! Load, comparison and profiles for Ringpost: one subcommand per module, nothing else here.

#![forbid(unsafe_code)]
#![expect(
    clippy::disallowed_methods,
    reason = "a load generator reads clocks, opens files and finds its programs itself"
)]

mod address;
mod compaction;
mod counters;
mod crash;
mod daemon;
mod deliver;
mod disk;
mod disk_command;
mod engine;
mod environment;
mod flame;
mod hist;
mod letters;
mod loop_disk;

mod on_loop;
mod peers;
mod process;
mod programs;
mod scale;
mod schedule;
mod scrape;
mod signals;
mod table;
mod workload;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;

/// Load generator, disk limits and crash rigs. README.md in `perf/results` explains the figures.
#[derive(Parser)]
#[command(name = "ringpost-perf", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Deliver messages to a daemon and measure it
    Deliver(deliver::Args),
    /// Measure all doors, sizes and numbers in flight into one file, with a Markdown table
    Matrix(deliver::matrix::Args),
    /// Record stacks of a loaded daemon: an SVG per thread and the frames that take the time
    Flame(flame::Args),
    /// Measure the daemon against other mail stores, in turn, in one run
    Peers(peers::Args),
    /// Measure reading against other mail stores, in turn, in one run
    Reading(peers::reading::Args),
    /// Repeat the thesis's experiment: sendmail with procmail against sendmail with our shim
    Thesis(peers::thesis::Args),
    /// Measure what the disk itself can do: durable writes by size and depth
    Disk(disk_command::Args),
    /// Grow a mailbox, or a store, and measure every step
    Scale(scale::Args),
    /// Measure deliveries with and without compaction, in turn
    Compaction(compaction::Args),
    /// Count the instructions of the paths that every message takes, with callgrind
    Counters(counters::Args),
    /// Run another command on ext4 or XFS in a loop file
    On(on_loop::Args),
    /// Kill a daemon, or take its disk away, at random moments under load
    Crash(crash::Options),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = signals::watch().and_then(|()| match &cli.command {
        Command::Deliver(args) => deliver::run(args),
        Command::Matrix(args) => deliver::matrix::run(args),
        Command::Flame(args) => flame::run(args),
        Command::Peers(args) => peers::run(args),
        Command::Reading(args) => peers::reading::run(args),
        Command::Thesis(args) => peers::thesis::run(args),
        Command::Disk(args) => disk_command::run(args),
        Command::Scale(args) => scale::run(args),
        Command::Compaction(args) => compaction::run(args),
        Command::Counters(args) => counters::run(args),
        Command::On(args) => on_loop::run(args),
        Command::Crash(options) => crash::run(options),
    });
    done.unwrap_or_else(|error| {
        // Standard error may be closed; the exit code says it as well.
        drop(writeln!(std::io::stderr(), "ringpost-perf: {error:#}"));
        ExitCode::FAILURE
    })
}
