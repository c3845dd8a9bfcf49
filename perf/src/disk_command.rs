//! `disk`: the limits of a folder's disk, as a table and a line of JSON.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::Serialize;

use crate::disk::DiskLimits;
use crate::environment::Environment;
use crate::programs;

/// Measure what the disk itself can do
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Folder on the disk to be measured [beside this program]
    #[arg(long, value_name = "FOLDER")]
    scratch: Option<PathBuf>,

    /// Seconds for each size and depth
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,

    /// Standard output gets the JSON line alone, the table goes to standard error
    #[arg(long)]
    json: bool,
}

/// One line of `results/*.ndjson`.
#[derive(Serialize)]
struct DiskReport<'a> {
    kind: &'static str,
    #[serde(flatten)]
    environment: &'a Environment,
    seconds: f64,
    flush_us: Option<f64>,
    #[serde(flatten)]
    limits: &'a DiskLimits,
}

/// Measures and prints.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    ensure!(
        (0.01..=3600.0).contains(&args.seconds),
        "--seconds is 0.01 to 3600"
    );
    let folder = match &args.scratch {
        Some(folder) => folder.clone(),
        None => programs::folder()?,
    };
    let folder = folder
        .canonicalize()
        .with_context(|| format!("--scratch {}", folder.display()))?;
    let environment = Environment::look(&folder, &programs::workspace())?;
    let limits = DiskLimits::measure(&folder, Duration::from_secs_f64(args.seconds))?;
    let report = DiskReport {
        kind: "disk",
        environment: &environment,
        seconds: args.seconds,
        flush_us: limits.flush_us(),
        limits: &limits,
    };
    let line = serde_json::to_string(&report)?;
    let text = format!("{}\n\n{}\n", environment.sentence(), limits.table());
    if args.json {
        std::io::stderr().write_all(text.as_bytes())?;
        writeln!(std::io::stdout(), "{line}")?;
    } else {
        writeln!(std::io::stdout(), "{text}{line}")?;
    }
    Ok(ExitCode::SUCCESS)
}
