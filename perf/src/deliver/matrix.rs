//! `matrix`: `deliver` over doors, sizes and numbers in flight, in the steady state of a store, kept
//! in one file, with a Markdown table.
//!
//! A matrix takes longer than anybody has a machine to himself, so the file is the state: a cell
//! whose line is there, of the same commit and the same parameters, is not measured again, and
//! `--budget` ends a call between two cells. The table is of the whole file.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use serde_json::Value;

use super::args::{Args as DeliverArgs, CellKey};
use super::preset::Preset;
use super::run::{Bench, progress};
use crate::programs;
use crate::table;

/// Measure all doors, sizes and numbers in flight into one file, with a Markdown table
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Doors
    #[arg(long, default_value = "node,lmtp")]
    via: String,

    /// Bytes of a message
    #[arg(long, default_value = "512,4096,32768,262144")]
    size: String,

    /// Messages sent and not answered
    #[arg(long, default_value = "1,16,64,256")]
    in_flight: String,

    /// Accounts that get mail
    #[arg(long, default_value_t = 30_000)]
    users: usize,

    /// Measured seconds of each cell
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,

    /// Seconds of load before that, or `checkpoint`: until the first one has ended
    #[arg(long, default_value = "checkpoint")]
    warm_up: String,

    /// Seconds that a warm-up takes at most
    #[arg(long, default_value_t = 30.0)]
    warm_up_max: f64,

    /// Folder for the daemon's data; it decides which disk is measured [beside this program]
    #[arg(long, value_name = "FOLDER")]
    scratch: Option<PathBuf>,

    /// Setting for the daemon; may be repeated [the whole log before the load]
    #[arg(
        long = "set",
        value_name = "KEY=VALUE",
        default_value = "log_bytes_at_start=2 GiB"
    )]
    settings: Vec<String>,

    /// File that gets the lines, and has those of earlier calls [perf/results/matrix-COMMIT.ndjson]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Begin no cell after so many seconds; the next call goes on
    #[arg(long, value_name = "SECONDS")]
    budget: Option<f64>,

    /// Take the programs as they are, even if their sources changed since
    #[arg(long)]
    no_build: bool,
}

impl Args {
    /// The call of `deliver` that it stands for.
    fn deliver(&self) -> anyhow::Result<DeliverArgs> {
        let preset = Preset {
            via: self.via.clone(),
            size: self.size.clone(),
            in_flight: self.in_flight.clone(),
            users: self.users,
            seconds: self.seconds,
            warm_up: self.warm_up.clone(),
            warm_up_max: self.warm_up_max,
            settings: self.settings.clone(),
            scratch: self.scratch.clone(),
        };
        let mut args = preset.arguments()?;
        args.no_build = self.no_build;
        Ok(args)
    }
}

/// Measures what is missing and prints the table. The exit code is 1 if any line of the file is bad.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let begin = Instant::now();
    let deliver = args.deliver()?;
    let bench = Bench::new(&deliver)?;
    let commit = &bench.environment.commit;
    let out = args.out.clone().unwrap_or_else(|| {
        let name = format!("matrix-{}.ndjson", commit.trim_end_matches('+'));
        programs::workspace().join("perf/results").join(name)
    });
    let keys = deliver.cells();
    for (index, &key) in keys.iter().enumerate() {
        if read(&out)?
            .iter()
            .any(|line| is_of(line, key, &deliver, commit))
        {
            continue;
        }
        if args
            .budget
            .is_some_and(|budget| begin.elapsed().as_secs_f64() >= budget)
        {
            progress("the budget is spent; the same call goes on");
            break;
        }
        let (_, report) = bench.measure(index, key)?;
        append(&out, &serde_json::to_string(&report)?)?;
    }
    let lines = read(&out)?;
    let mine = |line: &&Value| keys.iter().any(|&key| is_of(line, key, &deliver, commit));
    let mine: Vec<&Value> = lines.iter().filter(mine).collect();
    let mut text = format!("{}\n\n", bench.environment.sentence());
    writeln!(
        text,
        "{} of {} cells, {}\n",
        mine.len(),
        keys.len(),
        out.display()
    )?;
    text.push_str(&markdown(&mine));
    std::io::stdout().write_all(text.as_bytes())?;
    let good = mine.iter().all(|line| line["good"] == true);
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The lines of a file, none if it is not there. A line that was cut is an error with its number.
fn read(path: &Path) -> anyhow::Result<Vec<Value>> {
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let line = |(index, line): (usize, &str)| {
        serde_json::from_str(line).with_context(|| format!("{}:{}", path.display(), index + 1))
    };
    text.lines().enumerate().map(line).collect()
}

fn append(path: &Path, line: &str) -> anyhow::Result<()> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    let written = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
    written.with_context(|| format!("cannot write to {}", path.display()))
}

/// Whether a line is a cell's, with the call's parameters and commit.
fn is_of(line: &Value, key: CellKey, args: &DeliverArgs, commit: &str) -> bool {
    line["kind"] == "deliver"
        && line["commit"] == commit
        && line["via"] == key.via.name()
        && line["size"] == serde_json::json!(key.size)
        && line["in_flight"] == key.in_flight
        && line["users"] == args.users
        && line["seconds"] == args.seconds
        && line["settings"] == Value::from(args.settings.clone())
}

/// The columns of the table: head, field, how it is shown.
type Column = (&'static str, &'static str, fn(f64) -> String);

const COLUMNS: [Column; 12] = [
    ("messages/s", "messages_per_s", table::number),
    ("MiB/s", "mib_per_s", table::number),
    ("p50", "latency.p50_us", table::time),
    ("p99", "latency.p99_us", table::time),
    ("p99.9", "latency.p999_us", table::time),
    (
        "flushes per recipient",
        "flushes_per_recipient",
        table::number,
    ),
    (
        "daemon us/message",
        "daemon_cpu_us_per_message",
        table::number,
    ),
    (
        "generator us/message",
        "generator_cpu_us_per_message",
        table::number,
    ),
    (
        "checkpoints before, in it",
        "warm_up_checkpoints",
        table::number,
    ),
    ("durable 4 KiB write", "flush_us", table::time),
    ("disk's limit/s", "disk_messages_per_s", table::number),
    ("of it", "of_disk", percent),
];

fn percent(part: f64) -> String {
    format!("{:.0} %", part * 100.0)
}

/// A Markdown table, a row per line, in the order of the file.
fn markdown(lines: &[&Value]) -> String {
    let mut heads = vec!["via", "size", "in flight"];
    heads.extend(COLUMNS.map(|(head, _, _)| head));
    let mut text = format!(
        "| {} |\n|{}\n",
        heads.join(" | "),
        "---|".repeat(heads.len())
    );
    for line in lines {
        let mut row = vec![
            line["via"].as_str().unwrap_or("-").to_owned(),
            size(&line["size"]),
            line["in_flight"].to_string(),
        ];
        row.extend(COLUMNS.map(|(_, field, show)| cell(line, field, show)));
        if line["good"] != true {
            row.push("**not good**".to_owned());
        }
        text.push_str("| ");
        text.push_str(&row.join(" | "));
        text.push_str(" |\n");
    }
    text
}

/// A size as [`Size::label`](crate::letters::Size::label) shows it.
fn size(value: &Value) -> String {
    let bytes = value.as_u64().map(table::bytes);
    bytes.unwrap_or_else(|| value.as_str().unwrap_or("-").to_owned())
}

fn cell(line: &Value, field: &str, show: fn(f64) -> String) -> String {
    let value = field.split('.').fold(line, |value, name| &value[name]);
    let shown = value.as_f64().map_or("-".to_owned(), show);
    // One column for both, since a row is long enough.
    match (field, line["checkpoints"].as_f64()) {
        ("warm_up_checkpoints", Some(during)) => format!("{shown}, {}", table::number(during)),
        _ => shown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use serde_json::json;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> Args {
        Cli::parse_from(std::iter::once("perf").chain(line.split_whitespace())).args
    }

    #[test]
    fn defaults_are_the_whole_matrix_in_the_steady_state() {
        let deliver = parse("").deliver().unwrap();
        assert!(deliver.check().is_ok());
        assert_eq!(deliver.cells().len(), 32);
        assert_eq!(deliver.settings, ["log_bytes_at_start=2 GiB"]);
        assert!(parse("--size many").deliver().is_err());
    }

    #[test]
    fn a_cell_is_known_again_by_commit_and_parameters() {
        let deliver = parse("--via node --size 4096 --in-flight 64")
            .deliver()
            .unwrap();
        let key = deliver.cells()[0];
        let line = json!({
            "kind": "deliver", "commit": "abc", "via": "node", "size": 4096, "in_flight": 64,
            "users": 30_000, "seconds": 10.0, "settings": ["log_bytes_at_start=2 GiB"],
        });
        assert!(is_of(&line, key, &deliver, "abc"));
        assert!(!is_of(&line, key, &deliver, "abd"));
        for (field, other) in [
            ("via", json!("lmtp")),
            ("size", json!(512)),
            ("users", json!(1)),
        ] {
            let mut line = line.clone();
            line[field] = other;
            assert!(!is_of(&line, key, &deliver, "abc"), "{field}");
        }
    }

    #[test]
    fn table_has_a_row_per_line_and_says_what_is_missing_or_bad() {
        let line = json!({
            "via": "node", "size": 4096, "in_flight": 64, "messages_per_s": 31_830.4,
            "latency": {"p99_us": 4321.0}, "of_disk": 0.123, "warm_up_checkpoints": 2.0,
            "checkpoints": 1.0, "good": false,
        });
        let text = markdown(&[&line]);
        let row = text.lines().last().unwrap();
        assert_eq!(text.lines().count(), 3);
        for want in [
            "| node | 4 KiB | 64 | 31,830 | - |",
            "4.32 ms",
            "12 %",
            "2.00, 1.00",
            "not good",
        ] {
            assert!(row.contains(want), "{want}: {row}");
        }
    }

    #[test]
    fn lines_that_were_written_are_read_and_a_cut_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.ndjson");
        assert!(read(&path).unwrap().is_empty());
        append(&path, "{\"a\":1}").unwrap();
        append(&path, "{\"a\":2}").unwrap();
        assert_eq!(read(&path).unwrap(), [json!({"a": 1}), json!({"a": 2})]);
        append(&path, "{\"a\":").unwrap();
        assert!(format!("{:#}", read(&path).unwrap_err()).contains("x.ndjson:3"));
    }
}
