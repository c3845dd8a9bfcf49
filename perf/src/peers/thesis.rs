//! `thesis`: the experiment of chapter 4 (Thesis 4.1, 4.2) on the bench of `peers`: sendmail as
//! MTA, 30,000 users, messages of 512 B, 4 KB, 32 KB and 256 KB. The general mail system has its
//! users in passwd and delivers with procmail; the tested one has our shim in its place; a dummy
//! that throws mail away shows what the MTA leaves to any store.
//!
//! Its table gave receiving throughput and concurrent SMTP connections; units and meanings of its
//! figures are lost, so none of ours stands beside one of them, only beside the abstract's claim
//! that the prototype receives about twice as much. A connection count is held if the answers of all
//! but one in a hundred come within a second.

use std::path::PathBuf;
use std::process::ExitCode;

use super::chart;
use super::report::{RunReport, median};
use super::run::{by_cell, campaign};
use super::system::System;
use crate::letters::Size;
use crate::table;

/// Answers may take so long while connections count as held, 99 in 100.
const HELD_P99_US: f64 = 1e6;

/// Users whose mailboxes are compared. A run has some messages for a thousand users: of 16 of 30,000 most
/// would get none.
const WATCHED_USERS: usize = 512;

/// The general mail system first.
const SYSTEMS: [System; 3] = [
    System::SendmailProcmail,
    System::SendmailRingpost,
    System::SendmailDummy,
];

/// Repeat the thesis's experiment: sendmail with procmail against sendmail with our shim
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Args {
    /// Bytes of a message; several make a matrix
    #[arg(long, value_delimiter = ',', default_value = "512,4096,32768,262144")]
    size: Vec<usize>,

    /// SMTP connections, each with a message under way
    #[arg(long, value_delimiter = ',', default_value = "1,4,16,64,256")]
    connections: Vec<usize>,

    /// Accounts that get mail, evenly
    #[arg(long, default_value_t = 30_000)]
    users: usize,

    /// Measured seconds of each run
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,

    /// Runs of each system; tables show the median by rate
    #[arg(long, default_value_t = 5)]
    rounds: usize,

    /// Folder for all data [beside this program]
    #[arg(long, value_name = "FOLDER")]
    scratch: Option<PathBuf>,

    /// Folder for downloaded packages, kept for the next call [target/peers-packages]
    #[arg(long, value_name = "FOLDER")]
    packages: Option<PathBuf>,

    /// Folder for thesis.md and the files of `peers`
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,

    /// Take our programs as they are, even if their sources changed since
    #[arg(long)]
    no_build: bool,

    /// Standard output gets the JSON lines alone, the table goes to standard error
    #[arg(long)]
    json: bool,
}

impl Args {
    fn bench(&self) -> super::args::Args {
        super::args::Args {
            only: SYSTEMS.to_vec(),
            size: self.size.iter().copied().map(Size::Bytes).collect(),
            in_flight: self.connections.clone(),
            users: self.users,
            seconds: self.seconds,
            warm_up: 0.5,
            rounds: self.rounds,
            mib_max: 8192,
            watched: WATCHED_USERS,
            seed: 1,
            scratch: self.scratch.clone(),
            packages: self.packages.clone(),
            settings: Vec::new(),
            no_limits: false,
            no_build: self.no_build,
            keep: false,
            out: self.out.clone(),
            json: self.json,
        }
    }
}

/// Runs the experiment. The exit code is 1 if anything was wrong in any run.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let bench = args.bench();
    bench.check()?;
    let heads = heads(&args.size);
    let heads: Vec<&str> = heads.iter().map(String::as_str).collect();
    let print = |reports: &[RunReport]| table::render(&heads, &redrawn(reports, &args.size));
    let ended = campaign(&bench, "thesis", &print)?;
    if let Some(folder) = &args.out {
        chart::write(folder, &ended.reports)?;
        let text = chart::markdown(&heads, &redrawn(&ended.reports, &args.size));
        std::fs::write(folder.join("thesis.md"), text)?;
    }
    Ok(ended.code)
}

fn heads(sizes: &[usize]) -> Vec<String> {
    let size = |&size| table::bytes(u64::try_from(size).unwrap_or(u64::MAX));
    std::iter::once(String::new())
        .chain(sizes.iter().map(size))
        .collect()
}

/// The table: a column per size.
fn redrawn(reports: &[RunReport], sizes: &[usize]) -> Vec<Vec<String>> {
    let medians: Vec<&RunReport> = by_cell(reports)
        .iter()
        .filter_map(|cell| median(cell))
        .collect();
    let of = |system: System, size: usize| {
        let name = system.name();
        let mine = move |run: &&RunReport| {
            run.parameters.system == name && run.parameters.size == Size::Bytes(size)
        };
        medians.iter().copied().filter(mine).collect::<Vec<_>>()
    };
    let best = |system, size| {
        let rates = of(system, size);
        rates
            .iter()
            .map(|run| run.figures.messages_per_s)
            .reduce(f64::max)
    };
    let held = |system, size| {
        let runs = of(system, size);
        let held = runs
            .iter()
            .filter(|run| run.good && run.figures.latency.p99_us < HELD_P99_US);
        held.map(|run| run.parameters.in_flight).max()
    };
    let row = |name: &str, cell: &dyn Fn(usize) -> String| {
        let cells = sizes.iter().map(|&size| cell(size));
        std::iter::once(name.to_owned())
            .chain(cells)
            .collect::<Vec<_>>()
    };
    let [general, ours, dummy] = SYSTEMS;
    let rate = |system| move |size| table::maybe(best(system, size));
    let count = |system| move |size| held(system, size).map_or("-".to_owned(), |n| n.to_string());
    let times = |size| {
        let ratio = best(ours, size).zip(best(general, size));
        ratio.map_or("-".to_owned(), |(ours, general)| {
            format!("{:.2}", ours / general)
        })
    };
    vec![
        row("received/s, passwd and procmail", &rate(general)),
        row("received/s, ringpost-deliver", &rate(ours)),
        row("received/s, dummy", &rate(dummy)),
        row("ours, times (thesis: about 2)", &times),
        row("connections held, passwd and procmail", &count(general)),
        row("connections held, ringpost-deliver", &count(ours)),
        row("connections held, dummy", &count(dummy)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::report::tests::report;

    fn run(system: System, connections: usize, rate: f64, p99_us: f64) -> RunReport {
        let mut report = report(&system.name(), rate);
        report.parameters.in_flight = connections;
        report.figures.latency.p99_us = p99_us;
        report
    }

    #[test]
    fn table_has_the_best_rate_and_the_most_connections_within_a_second() {
        let [general, ours, _] = SYSTEMS;
        let reports = [
            run(general, 16, 100.0, 1e5),
            run(general, 64, 90.0, 2e6),
            run(ours, 16, 150.0, 1e5),
            run(ours, 64, 250.0, 5e5),
        ];
        let rows = redrawn(&reports, &[512, 4096]);
        let column: Vec<&str> = rows.iter().map(|row| row[1].as_str()).collect();
        assert_eq!(column, ["100", "250", "-", "2.50", "16", "64", "-"]);
        assert!(rows.iter().all(|row| row.len() == 3 && row[2] == "-"));
        assert_eq!(heads(&[512, 4096]), ["", "512", "4 KiB"]);
    }
}
