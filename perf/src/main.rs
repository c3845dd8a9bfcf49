//! Load, comparison and profiles for Ringpost: one subcommand per module, nothing else here.

#![forbid(unsafe_code)]
#![expect(
    clippy::disallowed_methods,
    reason = "a load generator reads clocks, opens files and finds its programs itself"
)]

mod address;
mod daemon;
mod deliver;
mod environment;
mod hist;
mod programs;
mod schedule;
mod scrape;
mod workload;

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
enum Command {}

fn main() -> ExitCode {
    match Cli::parse().command {}
}
