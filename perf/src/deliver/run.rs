//! A call of `deliver`: cell by cell with its limits, then the table.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;

use super::args::{Args, CellKey};
use super::cell::{self, Target, Witness};
use super::report::{CellReport, Limits, Parameters};
use crate::disk::DiskLimits;
use crate::environment::Environment;
use crate::programs::{self, Programs};
use crate::table;

/// For each size and depth of the disk: 18 of them make three seconds.
const DISK_EACH: Duration = Duration::from_millis(160);

/// For each cell.
const ECHO_EACH: Duration = Duration::from_millis(500);

/// What the cells of a call share.
pub(crate) struct Bench<'a> {
    args: &'a Args,
    programs: Option<Programs>,
    target: Target,
    scratch: PathBuf,
    /// Where it is measured.
    pub(crate) environment: Environment,
    run: u64,
}

impl<'a> Bench<'a> {
    /// Checks the call and finds, or builds, the programs.
    pub(crate) fn new(args: &'a Args) -> anyhow::Result<Self> {
        args.check()?;
        let programs = args.programs()?;
        let scratch = scratch(args)?;
        let environment = Environment::look(&scratch, &programs::workspace())?;
        Ok(Self {
            args,
            target: args.target(programs.as_ref(), scratch.clone())?,
            programs,
            scratch,
            run: run_number(environment.time_s),
            environment,
        })
    }

    /// Has this daemon measured in place of the usual one, and somebody look on.
    pub(crate) fn watch(&mut self, ringpostd: PathBuf, who: Witness) {
        if let Target::Own(own) = &mut self.target {
            own.programs.ringpostd = ringpostd;
            own.witness = Some(who);
        }
    }

    /// Measures a cell, and what its disk and its sockets can do right before.
    pub(crate) fn measure(
        &self,
        index: usize,
        key: CellKey,
    ) -> anyhow::Result<(DiskLimits, CellReport)> {
        // Users and messages of a cell are its own, also where the daemon is not.
        let number = self.run.wrapping_add(u64::try_from(index)? << 24);
        let plan = self.args.plan(key, number);
        let reach = self.args.reach(key, self.programs.as_ref());
        let (size, in_flight) = (key.size.label(), key.in_flight);
        progress(&format!("{:?}, {size}, {in_flight} in flight", key.via));
        let own = matches!(self.target, Target::Own(_));
        let disk = if self.args.no_limits || !own {
            DiskLimits::default()
        } else {
            DiskLimits::measure(&self.scratch, DISK_EACH)?
        };
        let echo = if self.args.no_limits || reach.connections == 0 {
            None
        } else {
            Some(cell::echo_per_s(&plan, reach.connections, ECHO_EACH)?)
        };
        let findings = cell::run(&plan, &reach, &self.target)?;
        let settings = &self.args.settings;
        let parameters = Parameters::new(&plan, &reach, target_name(self.args), settings);
        let limits = Limits::new(&disk, &plan, echo);
        let report = CellReport::new(&self.environment, parameters, &plan, findings, limits);
        Ok((disk, report))
    }
}

/// Runs the call. The exit code is 1 if anything was wrong in any cell.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let bench = Bench::new(args)?;
    let mut reports = Vec::new();
    let mut disk = DiskLimits::default();
    for (index, &key) in args.cells().iter().enumerate() {
        let (limits, report) = bench.measure(index, key)?;
        disk = limits;
        emit(args, &report)?;
        reports.push(report);
    }
    let text = people(&bench.environment, &disk, &reports);
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

pub(crate) fn progress(what: &str) {
    // Nobody may be listening; the figures do not depend on it.
    drop(writeln!(std::io::stderr(), "perf: {what}"));
}

/// Environment, limits of the last cell's disk, table, remarks.
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
