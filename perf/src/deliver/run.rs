//! A call of `deliver`: limits first, then cell by cell, then the table.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;

use super::args::Args;
use super::cell::{self, Target};
use super::report::{CellReport, Limits, Parameters};
use crate::disk::DiskLimits;
use crate::environment::Environment;
use crate::programs;
use crate::table;

/// For each size and depth of the disk: 18 of them make five seconds.
const DISK_EACH: Duration = Duration::from_millis(280);

/// For each cell.
const ECHO_EACH: Duration = Duration::from_millis(500);

/// Runs the call. The exit code is 1 if anything was wrong in any cell.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    args.check()?;
    let programs = args.programs()?;
    let scratch = scratch(args)?;
    let target = args.target(programs.as_ref(), scratch.clone())?;
    let environment = Environment::look(&scratch, &programs::workspace())?;
    let run = run_number(environment.time_s);
    let own = matches!(target, Target::Own { .. });
    let disk = if args.no_limits || !own {
        DiskLimits::default()
    } else {
        progress("measuring the disk");
        DiskLimits::measure(&scratch, DISK_EACH)?
    };
    let mut reports = Vec::new();
    for (index, &(size, in_flight)) in args.cells().iter().enumerate() {
        // Users and messages of a cell are its own, also where the daemon is not.
        let number = run.wrapping_add(u64::try_from(index)? << 24);
        let plan = args.plan(size, in_flight, number);
        let reach = args.reach(in_flight, programs.as_ref());
        progress(&format!(
            "{} bytes, {in_flight} in flight",
            table::count(u64::try_from(size)?)
        ));
        let echo = if args.no_limits || reach.connections == 0 {
            None
        } else {
            Some(cell::echo_per_s(&plan, reach.connections, ECHO_EACH)?)
        };
        let findings = cell::run(&plan, &reach, &target)?;
        let parameters = Parameters::new(&plan, &reach, target_name(args), &args.settings);
        let limits = Limits::new(&disk, &plan, echo);
        let report = CellReport::new(&environment, parameters, &plan, findings, limits);
        emit(args, &report)?;
        reports.push(report);
    }
    let text = people(&environment, &disk, &reports);
    if args.json {
        std::io::stderr().write_all(text.as_bytes())?;
    } else {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())?;
        for report in &reports {
            writeln!(out, "{}", serde_json::to_string(report)?)?;
        }
    }
    let good = reports.iter().all(|report| report.good);
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// With `--json` a line goes out when its cell has ended: a long matrix that is broken off has
/// given what it had.
fn emit(args: &Args, report: &CellReport) -> anyhow::Result<()> {
    if args.json {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string(report)?)?;
        out.flush()?;
    }
    Ok(())
}

fn scratch(args: &Args) -> anyhow::Result<PathBuf> {
    // Beside the programs: the system's folder for temporary files is often no disk at all.
    let folder = match &args.scratch {
        Some(folder) => folder.clone(),
        None => programs::folder()?,
    };
    folder
        .canonicalize()
        .with_context(|| format!("--scratch {}", folder.display()))
}

/// Different for every call on a machine: the second it began in and the process.
fn run_number(time_s: u64) -> u64 {
    (time_s & 0xFFFF_FFFF) << 32 | u64::from(std::process::id() & 0x00FF_FFFF)
}

fn target_name(args: &Args) -> String {
    args.to.clone().unwrap_or_else(|| "own".to_owned())
}

fn progress(what: &str) {
    // Nobody may be listening; the figures do not depend on it.
    drop(writeln!(std::io::stderr(), "perf: {what}"));
}

/// Environment, limits, table, remarks.
pub(crate) fn people(
    environment: &Environment,
    disk: &DiskLimits,
    reports: &[CellReport],
) -> String {
    let mut lines = vec![String::new(), environment.sentence()];
    lines.extend(disk.sentence());
    lines.push(String::new());
    let rows: Vec<_> = reports.iter().map(CellReport::row).collect();
    lines.push(table::render(&CellReport::HEADS, &rows));
    lines.extend(reports.iter().flat_map(CellReport::remarks));
    lines.push(String::new());
    lines.join("\n")
}
