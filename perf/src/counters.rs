//! `counters`: how many instructions the paths take that every message takes. A count does not change with
//! the machine's hour, so a step of tuning that is lost in the noise of a clock shows here, and so does a
//! slow decay.
//!
//! The work is `ringpost-fuzz --bin count`; what twice of it costs more is what it costs. Of `append` and
//! `recovery` the simulated disk is a part, which does not matter for what changes; `append-shard` is
//! `append` without it.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::environment::Environment;
use crate::programs;
use crate::table;

/// How much of each kind of work is done, and twice of it.
const AMOUNTS: [(&str, u64); 8] = [
    ("crc", 8),
    ("frame", 2_000),
    ("prepare", 1_000),
    ("prepare-filed", 1_000),
    ("scan", 8),
    ("append", 4_000),
    // More would ask for more log files than it makes beforehand.
    ("append-shard", 2_000),
    ("recovery", 16),
];

/// What changes by more is said.
const CHANGE_PERCENT: f64 = 1.0;

/// Count instructions
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Lines of earlier runs; the last one is compared with this one [perf/results/counters.ndjson]
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,

    /// Append this run to that file
    #[arg(long)]
    keep: bool,

    /// Standard output gets the JSON line alone, the table goes to standard error
    #[arg(long)]
    json: bool,
}

/// One line of `results/counters.ndjson`.
#[derive(Serialize)]
struct Report<'a> {
    kind: &'static str,
    #[serde(flatten)]
    environment: &'a Environment,
    rustc: &'a str,
    valgrind: &'a str,
    /// Instructions per unit, by kind of work.
    instructions: &'a BTreeMap<String, f64>,
}

/// What is read of an earlier line.
#[derive(Deserialize)]
struct Earlier {
    commit: String,
    rustc: String,
    instructions: BTreeMap<String, f64>,
}

/// Counts, compares, prints.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let valgrind = version("valgrind")
        .context("callgrind is part of Debian's package valgrind: apt-get install valgrind")?;
    let rustc = version("rustc")?;
    let program = programs::count()?;
    let folder = programs::folder()?;
    let environment = Environment::look(&folder, &programs::workspace())?;
    let results = match &args.results {
        Some(path) => path.clone(),
        None => programs::workspace().join("perf/results/counters.ndjson"),
    };
    let earlier = last_line(&results)?;
    let units = units(&program)?;
    let mut instructions = BTreeMap::new();
    for (case, amount) in AMOUNTS {
        let mut both = [0; 2];
        for (place, amount) in both.iter_mut().zip([amount, 2 * amount]) {
            let all = collected(&program, &[case, &amount.to_string()])?;
            let before = collected(&program, &[case, &amount.to_string(), "--before"])?;
            *place = all.saturating_sub(before);
        }
        let [once, twice] = both;
        ensure!(
            twice > once,
            "{case}: twice the work costs no more: {both:?}"
        );
        let per_unit = as_number(twice - once) / as_number(amount);
        instructions.insert(case.to_owned(), per_unit.round());
    }
    let report = Report {
        kind: "counters",
        environment: &environment,
        rustc: &rustc,
        valgrind: &valgrind,
        instructions: &instructions,
    };
    let line = serde_json::to_string(&report)?;
    let other = earlier.as_ref().filter(|earlier| earlier.rustc != rustc);
    let other = other.map_or(String::new(), |earlier| {
        format!("the earlier ones are of {}\n", earlier.rustc)
    });
    let text = format!(
        "{}\n{rustc}, {valgrind}\n{other}{}",
        environment.sentence(),
        compared(&instructions, earlier.as_ref(), &units)
    );
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(std::io::stderr(), "{text}")?;
        writeln!(out, "{line}")?;
    } else {
        writeln!(out, "{text}")?;
    }
    if args.keep {
        let file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&results);
        let mut file = file.with_context(|| format!("cannot open {}", results.display()))?;
        writeln!(file, "{line}")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A table, and a sentence for what changed.
fn compared(
    instructions: &BTreeMap<String, f64>,
    earlier: Option<&Earlier>,
    units: &BTreeMap<String, String>,
) -> String {
    let known = |case: &str| earlier.and_then(|earlier| earlier.instructions.get(case).copied());
    let mut changed = Vec::new();
    let mut rows = Vec::new();
    for (case, count) in instructions {
        let change = known(case).map(|before| (count / before - 1.0) * 100.0);
        let said = change.map_or("-".to_owned(), |change| format!("{change:+.1} %"));
        if let Some(change) = change.filter(|change| change.abs() > CHANGE_PERCENT) {
            changed.push(format!("CHANGED: {case} by {change:+.1} %\n"));
        }
        rows.push(vec![
            case.clone(),
            units.get(case).cloned().unwrap_or_default(),
            table::number(*count),
            known(case).map_or("-".to_owned(), table::number),
            said,
        ]);
    }
    let commit = earlier.map_or("earlier", |earlier| &earlier.commit);
    let heads = ["work", "unit", "instructions", commit, "change"];
    format!("{}{}", table::render(&heads, &rows), changed.concat())
}

/// The first line of a program's `--version`.
fn version(program: &str) -> anyhow::Result<String> {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

fn last_line(results: &Path) -> anyhow::Result<Option<Earlier>> {
    let text = match std::fs::read_to_string(results) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| results.display().to_string()),
    };
    let Some(line) = text.lines().last() else {
        return Ok(None);
    };
    let earlier = serde_json::from_str(line);
    let earlier = earlier.with_context(|| format!("the last line of {}", results.display()))?;
    Ok(Some(earlier))
}

/// Kinds of work and their units.
fn units(program: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let output = Command::new(program).output();
    let output = output.with_context(|| format!("cannot start {}", program.display()))?;
    let text = String::from_utf8(output.stdout)?;
    let pairs = text.lines().filter_map(|line| line.split_once('\t'));
    Ok(pairs
        .map(|(case, unit)| (case.to_owned(), unit.to_owned()))
        .collect())
}

/// Instructions of one run.
fn collected(program: &Path, arguments: &[&str]) -> anyhow::Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args(arguments)
        .output()
        .context("cannot start valgrind")?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("{} {}: {text}", program.display(), arguments.join(" "));
    }
    of_callgrind(&text).with_context(|| format!("callgrind says no count: {text}"))
}

/// `==123== Collected : 456`.
fn of_callgrind(text: &str) -> Option<u64> {
    let mut lines = text.lines();
    lines.find_map(|line| {
        let (_, count) = line.split_once("Collected : ")?;
        count.trim().parse().ok()
    })
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
fn as_number(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_and_changes_named() {
        let text = "==9== Callgrind\n==9== Events    : Ir\n==9== Collected : 5238855\n==9==\n";
        assert_eq!(of_callgrind(text), Some(5_238_855));
        assert_eq!(of_callgrind("valgrind: no"), None);
        let counts = |append: f64| {
            BTreeMap::from([("append".to_owned(), append), ("crc".to_owned(), 100.0)])
        };
        let earlier = Earlier {
            commit: "abc".to_owned(),
            rustc: "rustc 1".to_owned(),
            instructions: counts(1_000.0),
        };
        let units = BTreeMap::new();
        let said = compared(&counts(1_009.0), Some(&earlier), &units);
        assert!(
            said.contains("+0.9 %") && !said.contains("CHANGED"),
            "{said}"
        );
        let said = compared(&counts(960.0), Some(&earlier), &units);
        assert!(said.contains("CHANGED: append by -4.0 %"), "{said}");
        assert!(!compared(&counts(1.0), None, &units).contains("CHANGED"));
    }
}
