//! A call of `peers`: limits first, then for each cell round by round, in each round every system
//! once, then the table.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;

use super::args::Args;
use super::chart;
use super::device::Device;
use super::measure::measure;
use super::packages::Family;
use super::peer::{Door, Running, Site};
use super::report::{Limits, Parameters, RunReport, median};
use super::root::Root;
use super::system::System;
use crate::deliver::attic::Attic;
use crate::deliver::cell::{self, Folder, Keep};
use crate::deliver::plan::Plan;
use crate::disk::DiskLimits;
use crate::environment::Environment;
use crate::letters::Size;
use crate::programs::{self, Programs, Rebuild};
use crate::table;
use crate::workload::Users;

/// For each size and depth of the disk: 18 of them make five seconds.
const DISK_EACH: Duration = Duration::from_millis(280);

/// For each cell.
const ECHO_EACH: Duration = Duration::from_millis(500);

/// What is the same for all runs of a call.
pub(super) struct Bench {
    args: Args,
    programs: Programs,
    attic: Attic,
    scratch: Folder,
    links: tempfile::TempDir,
    packages: PathBuf,
    device: Device,
    environment: Environment,
    roots: RefCell<BTreeMap<&'static str, Rc<Root>>>,
    run: u64,
}

/// Runs the call. The exit code is 1 if anything was wrong in any run.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    args.check()?;
    let table = |reports: &[RunReport]| table::render(&RunReport::HEADS, &rows(reports));
    let ended = campaign(args, "peers", &table)?;
    if let Some(folder) = &args.out {
        chart::write(folder, &ended.reports)?;
    }
    Ok(ended.code)
}

/// What a campaign leaves.
pub(crate) struct Ended {
    /// All runs, in their order.
    pub(crate) reports: Vec<RunReport>,
    /// Whether all went well.
    pub(crate) code: ExitCode,
}

/// Measures all that the arguments name, and prints it: lines of this `kind`, and a table.
pub(crate) fn campaign(
    args: &Args,
    kind: &'static str,
    table: &dyn Fn(&[RunReport]) -> String,
) -> anyhow::Result<Ended> {
    let mut bench = Bench::new(args)?;
    let disk = if args.no_limits {
        DiskLimits::default()
    } else {
        progress("measuring the disk");
        DiskLimits::measure(&bench.scratch.path, DISK_EACH)?
    };
    bench.lay_out(&args.systems())?;
    let mut reports = Vec::new();
    for (size, in_flight) in args.cells() {
        let limits = bench.limits(&disk, size, in_flight)?;
        for round in 1..=args.rounds {
            for system in args.systems() {
                progress(&format!(
                    "round {round}: {}, {}, {in_flight} in flight",
                    system.name(),
                    size.label()
                ));
                let mut report = bench.report(system, (size, in_flight, round), limits)?;
                report.kind = kind;
                if args.json {
                    emit(&report)?;
                }
                reports.push(report);
            }
        }
    }
    let text = people(&bench.environment, &disk, &reports, &table(&reports));
    say(args.json, &text)?;
    if !args.json {
        reports.iter().try_for_each(emit)?;
    }
    let good = reports.iter().all(|report| report.good);
    if !good {
        bench.scratch.keep();
    }
    let code = if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    };
    Ok(Ended { reports, code })
}

impl Bench {
    /// Looks around and makes the folders.
    pub(super) fn new(args: &Args) -> anyhow::Result<Self> {
        let rebuild = if args.no_build {
            Rebuild::Never
        } else {
            Rebuild::IfStale
        };
        let programs = Programs::locate(rebuild)?;
        let parent = match &args.scratch {
            Some(folder) => folder.clone(),
            None => programs::folder()?,
        };
        let parent = parent
            .canonicalize()
            .with_context(|| format!("--scratch {}", parent.display()))?;
        let keep = if args.keep { Keep::Yes } else { Keep::No };
        let scratch = cell::folder(&parent, keep, &Attic::default())?;
        let packages = match &args.packages {
            Some(folder) => folder.clone(),
            None => programs::workspace().join("target/peers-packages"),
        };
        let environment = Environment::look(&scratch.path, &programs::workspace())?;
        Ok(Self {
            args: args.clone(),
            programs,
            links: cell::socket_folder()?,
            packages,
            device: Device::of(&scratch.path)?,
            run: (environment.time_s & 0xFFFF_FFFF) << 32,
            environment,
            roots: RefCell::default(),
            attic: Attic::default(),
            scratch,
        })
    }

    /// Fetches and unpacks what the systems need, before any clock runs.
    pub(super) fn lay_out(&self, systems: &[System]) -> anyhow::Result<()> {
        for system in systems {
            for family in system.families() {
                self.root(family)?;
            }
        }
        Ok(())
    }

    fn root(&self, family: &Family) -> anyhow::Result<Rc<Root>> {
        if let Some(root) = self.roots.borrow().get(family.name) {
            return Ok(Rc::clone(root));
        }
        progress(&format!("laying out {}", family.name));
        let path = self.scratch.path.join(format!("root-{}", family.name));
        let short = self.links.path().join(family.name);
        let root = Rc::new(Root::make(
            &self.packages,
            family,
            path,
            short,
            self.attic.clone(),
        )?);
        self.roots
            .borrow_mut()
            .insert(family.name, Rc::clone(&root));
        Ok(root)
    }

    fn limits(&self, disk: &DiskLimits, size: Size, in_flight: usize) -> anyhow::Result<Limits> {
        let door = Door::Node("127.0.0.1:1".parse()?);
        let plan = self.args.plan(size, in_flight, &door, 0);
        let echo = if self.args.no_limits {
            None
        } else {
            let connections = door.connections(in_flight);
            Some(cell::echo_per_s(&plan, connections, ECHO_EACH)?)
        };
        Ok(Limits {
            flush_us: disk.flush_us(),
            disk_messages_per_s: disk.messages_per_s(size.mean(), in_flight),
            echo_messages_per_s: echo,
            of_nearest_limit: None,
            stolen_share: None,
        })
    }

    fn report(
        &mut self,
        system: System,
        (size, in_flight, round): (Size, usize, usize),
        limits: Limits,
    ) -> anyhow::Result<RunReport> {
        self.run += 1;
        let number = self.run;
        let plan = |door: &Door, domain: Option<&str>| {
            let mut plan = self.args.plan(size, in_flight, door, number);
            if let Some(domain) = domain {
                plan.users = Users::in_domain("u", self.args.users, domain);
            }
            plan
        };
        let findings = self
            .with(system, in_flight, |running| {
                measure(running, &plan, &self.device)
            })
            .with_context(|| format!("{} cannot be measured", system.name()))?;
        let parameters = Parameters {
            system: system.name(),
            version: self.version(system)?,
            size,
            in_flight,
            round,
            users: self.args.users,
            seconds: self.args.seconds,
            warm_up_s: self.args.warm_up,
            settings: self.args.settings.clone(),
            seed: self.args.seed,
        };
        // The figures need the plan's sizes and times only, which no door changes.
        let plan = plan(&Door::Node("127.0.0.1:1".parse()?), None);
        Ok(RunReport::new(
            &self.environment,
            parameters,
            &plan,
            findings,
            limits,
        ))
    }

    /// A plan with messages that nobody has seen. Its line ends are not those of every door.
    pub(super) fn plan(&mut self, size: Size, in_flight: usize) -> anyhow::Result<Plan> {
        self.run += 1;
        let door = Door::Node("127.0.0.1:1".parse()?);
        Ok(self.args.plan(size, in_flight, &door, self.run))
    }

    /// Where it is measured.
    pub(super) fn environment(&self) -> &Environment {
        &self.environment
    }

    /// Makes durable what is still in the page cache.
    pub(super) fn sync(&self) -> anyhow::Result<()> {
        self.device.sync()
    }

    /// Starts a system on an empty folder and has something done with it.
    pub(super) fn with<T>(
        &self,
        system: System,
        in_flight: usize,
        work: impl FnOnce(Box<dyn Running>) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let folder = tempfile::tempdir_in(&self.scratch.path)?;
        let sockets = cell::socket_folder()?;
        let users = Users::new("u", self.args.users);
        let site = Site {
            roots: &|family| self.root(family),
            scratch: folder.path(),
            sockets: sockets.path(),
            programs: &self.programs,
            settings: &self.args.settings,
            users: &users,
            in_flight,
        };
        let done = system.start(&site).and_then(work);
        self.attic.store(folder);
        done
    }

    /// Versions of a system's packages; of ours the commit.
    pub(super) fn version(&self, system: System) -> anyhow::Result<String> {
        let mut versions = Vec::new();
        for family in system.families() {
            let root = self.root(family)?;
            versions.push(format!("{} {}", family.main, root.version()));
        }
        if system.is_ours() {
            versions.push(format!("ringpost {}", self.environment.commit));
        }
        Ok(versions.join(", "))
    }
}

/// For people: on standard error where standard output is for machines.
pub(super) fn say(json: bool, text: &str) -> anyhow::Result<()> {
    if json {
        std::io::stderr().write_all(text.as_bytes())?;
    } else {
        std::io::stdout().write_all(text.as_bytes())?;
    }
    Ok(())
}

/// A line on standard output.
pub(super) fn emit<T: Serialize>(report: &T) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(report)?)?;
    out.flush()?;
    Ok(())
}

pub(super) fn progress(what: &str) {
    // Nobody may be listening; the figures do not depend on it.
    drop(writeln!(std::io::stderr(), "perf: {what}"));
}

/// The runs of each system in each cell, in the order in which they were begun.
pub(crate) fn by_cell(reports: &[RunReport]) -> Vec<Vec<&RunReport>> {
    let mut cells: Vec<Vec<&RunReport>> = Vec::new();
    for report in reports {
        let of = |report: &RunReport| {
            let parameters = &report.parameters;
            let Parameters {
                size, in_flight, ..
            } = *parameters;
            (parameters.system.clone(), size, in_flight)
        };
        let same =
            |cell: &&mut Vec<&RunReport>| cell.first().is_some_and(|first| of(first) == of(report));
        match cells.iter_mut().find(same) {
            Some(cell) => cell.push(report),
            None => cells.push(vec![report]),
        }
    }
    cells
}

/// The medians, one row per system and cell.
pub(crate) fn rows(reports: &[RunReport]) -> Vec<Vec<String>> {
    let row = |cell: &Vec<&RunReport>| {
        let rates = || cell.iter().map(|run| run.figures.messages_per_s);
        let lowest = rates().reduce(f64::min)?;
        let highest = rates().reduce(f64::max)?;
        Some(median(cell)?.row(lowest, highest))
    };
    by_cell(reports).iter().filter_map(row).collect()
}

fn people(
    environment: &Environment,
    disk: &DiskLimits,
    reports: &[RunReport],
    table: &str,
) -> String {
    let mut lines = vec![String::new(), environment.sentence()];
    lines.extend(disk.sentence());
    lines.push(String::new());
    lines.push(table.to_owned());
    lines.extend(reports.iter().flat_map(RunReport::remarks));
    lines.push(String::new());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::report::tests::report;

    #[test]
    fn runs_of_a_system_are_one_row_with_their_spread() {
        let reports = [
            report("a", 10.0),
            report("b", 5.0),
            report("a", 30.0),
            report("b", 6.0),
            report("a", 20.0),
            report("b", 7.0),
        ];
        let rows = rows(&reports);
        let shown: Vec<_> = rows
            .iter()
            .map(|row| [0, 3, 4, 5].map(|i| row[i].as_str()))
            .collect();
        assert_eq!(
            shown,
            [["a", "20.0", "10.0", "30.0"], ["b", "6.00", "5.00", "7.00"]]
        );
    }
}
