//! `flame`: where the time of a loaded daemon goes, per thread.
//!
//! One call builds the daemon with frame pointers, starts it, loads it as `deliver` does, lets
//! perf(1) take stacks of all its threads behind the warm-up, and writes an SVG per thread, the
//! stacks themselves, and a table of the frames with the most samples. The clock of the processor's
//! scheduler is sampled (`cpu-clock`), which virtual machines have, too: what a thread waits for does
//! not show.

mod stacks;
mod svg;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, bail, ensure};
use nix::unistd::Pid;

use crate::deliver::run::{Bench, progress};
use crate::deliver::{Preset, Witness};
use crate::programs;
use crate::table;
use stacks::Frame;

/// Frames of a thread in the table.
const FRAMES_SHOWN: usize = 20;

/// Threads with fewer samples than this share get no picture.
const THREAD_SHARE_MIN: f64 = 0.005;

/// Record stacks of a loaded daemon: an SVG per thread and the frames that take the time
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Door
    #[arg(long, default_value = "node")]
    via: String,

    /// Bytes of a message
    #[arg(long, default_value_t = 4096)]
    size: usize,

    /// Messages sent and not answered
    #[arg(long, default_value_t = 64)]
    in_flight: usize,

    /// Accounts that get mail
    #[arg(long, default_value_t = 30_000)]
    users: usize,

    /// Recorded seconds
    #[arg(long, default_value_t = 10)]
    seconds: u32,

    /// Seconds of load before that, or `checkpoint`: until the first one has ended
    #[arg(long, default_value = "checkpoint")]
    warm_up: String,

    /// Seconds that a warm-up takes at most
    #[arg(long, default_value_t = 30)]
    warm_up_max: u32,

    /// Samples a second and processor; no divisor of the timer's frequency
    #[arg(long, default_value_t = 997)]
    frequency: u32,

    /// Folder for the daemon's data [beside this program]
    #[arg(long, value_name = "FOLDER")]
    scratch: Option<PathBuf>,

    /// Setting for the daemon; may be repeated [the whole log before the load]
    #[arg(
        long = "set",
        value_name = "KEY=VALUE",
        default_value = "log_bytes_at_start=2 GiB"
    )]
    settings: Vec<String>,

    /// Folder that gets the pictures [target/flame/COMMIT]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

/// Records, draws, prints. The exit code is 1 if the load was not as it should be.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    ensure!(
        (1..=600).contains(&args.seconds) && (1..=20_000).contains(&args.frequency),
        "--seconds is 1 to 600, --frequency 1 to 20,000"
    );
    let ringpostd = build()?;
    let deliver = Preset {
        via: args.via.clone(),
        size: args.size.to_string(),
        in_flight: args.in_flight.to_string(),
        users: args.users,
        // The recorder begins a little behind the window's opening.
        seconds: f64::from(args.seconds) + 2.0,
        warm_up: args.warm_up.clone(),
        warm_up_max: f64::from(args.warm_up_max),
        settings: args.settings.clone(),
        scratch: args.scratch.clone(),
    }
    .arguments()?;
    let mut bench = Bench::new(&deliver)?;
    let commit = bench.environment.commit.trim_end_matches('+').to_owned();
    let out = match &args.out {
        Some(folder) => folder.clone(),
        None => programs::workspace().join("target/flame").join(commit),
    };
    std::fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let data = out.join("perf.data");
    let (seconds, frequency, into) = (args.seconds, args.frequency, data.clone());
    let record = move |pid: Pid| record(pid, seconds, frequency, &into);
    bench.watch(ringpostd, Witness::new(record));
    let key = deliver.cells().first().copied().context("one cell")?;
    let (_, report) = bench.measure(0, key)?;
    let threads = stacks::fold(&script(&data)?);
    ensure!(!threads.is_empty(), "perf took no samples");
    let mut text = format!("{}\n\n", bench.environment.sentence());
    writeln!(
        text,
        "{}",
        table::render(
            &["messages/s", "daemon us/message"],
            &[vec![
                table::number(report.messages_per_s()),
                table::maybe(report.daemon_cpu_us_per_message()),
            ]]
        )
    )?;
    text.push_str(&write_out(&out, &threads)?);
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(if report.good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The daemon with frame pointers, in a target folder of its own so that the usual one stays good.
fn build() -> anyhow::Result<PathBuf> {
    let workspace = programs::workspace();
    let target = workspace.join("target/flame/build");
    progress("building the daemon with frame pointers");
    let status = Command::new("cargo")
        .args([
            "build",
            "--release",
            "--locked",
            "--package",
            "ringpost-daemon",
        ])
        .args(["--bin", "ringpostd", "--target-dir"])
        .arg(&target)
        .env("RUSTFLAGS", "-Cforce-frame-pointers=yes")
        .env("CFLAGS", "-fno-omit-frame-pointer")
        .current_dir(&workspace)
        .status()
        .context("cannot start cargo")?;
    ensure!(
        status.success(),
        "cargo could not build ringpostd ({status})"
    );
    Ok(target.join("release/ringpostd"))
}

/// perf(1) on a running process; returns when it has ended.
fn record(pid: Pid, seconds: u32, frequency: u32, into: &Path) -> anyhow::Result<()> {
    let output = Command::new("perf")
        .args(["record", "-e", "cpu-clock", "--call-graph", "fp"])
        .args(["-F", &frequency.to_string(), "-p", &pid.to_string(), "-o"])
        .arg(into)
        .args(["--", "sleep", &seconds.to_string()])
        .stdin(Stdio::null())
        .output()
        .context("cannot start perf; it comes with the package linux-perf or linux-tools")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("perf record ended with {}: {}", output.status, said.trim());
    }
    Ok(())
}

/// The stacks as text. Inlined functions are not resolved: it would take minutes.
fn script(data: &Path) -> anyhow::Result<String> {
    let output = Command::new("perf")
        .args(["script", "--no-inline", "-F", "comm,tid,ip,sym", "-i"])
        .arg(data)
        .output()
        .context("cannot start perf")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "perf script: {}", said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A picture per thread; gives the tables.
fn write_out(out: &Path, threads: &BTreeMap<String, Frame>) -> anyhow::Result<String> {
    let all: u64 = threads.values().map(|frame| frame.samples).sum();
    let mut by_samples: Vec<_> = threads.iter().collect();
    by_samples.sort_by_key(|(_, frame)| std::cmp::Reverse(frame.samples));
    let mut text = String::new();
    for (thread, root) in by_samples {
        let share = share(root.samples, all);
        if share < THREAD_SHARE_MIN {
            continue;
        }
        let file = out.join(format!("{}.svg", thread.replace(['/', ' '], "-")));
        let title = format!(
            "{thread}: {} samples, {:.1} % of all",
            root.samples,
            share * 100.0
        );
        std::fs::write(&file, svg::draw(&title, root))
            .with_context(|| format!("cannot write {}", file.display()))?;
        writeln!(text, "{title}, {}\n", file.display())?;
        text.push_str(&top(root));
        text.push('\n');
    }
    Ok(text)
}

/// The frames of a thread with the most samples of their own, as a Markdown table.
fn top(root: &Frame) -> String {
    let totals = root.totals();
    let mut frames: Vec<_> = totals.iter().collect();
    frames.sort_by_key(|(_, (own, below))| std::cmp::Reverse((*own, *below)));
    let mut text = "| alone | with all below | function |\n|---|---|---|\n".to_owned();
    for (name, (own, below)) in frames.into_iter().take(FRAMES_SHOWN) {
        let percent = |part| share(part, root.samples) * 100.0;
        writeln!(
            text,
            "| {:.1} % | {:.1} % | `{}` |",
            percent(*own),
            percent(*below),
            name.text
        )
        .expect("a String takes everything");
    }
    text
}

fn share(part: u64, all: u64) -> f64 {
    let float = |count: u64| u32::try_from(count).map_or(f64::from(u32::MAX), f64::from);
    float(part) / float(all.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_get_pictures_and_tables_by_their_samples() {
        let mut script = "core 0 1\n\t10 inner\n\t20 outer\n\n".repeat(300);
        script.push_str("rare 2\n\t10 inner\n\n");
        let folder = tempfile::tempdir().unwrap();
        let text = write_out(folder.path(), &stacks::fold(&script)).unwrap();
        assert!(folder.path().join("core-0.svg").is_file());
        assert!(
            !folder.path().join("rare.svg").exists(),
            "below half a percent"
        );
        assert!(text.contains("| 100.0 % | 100.0 % | `inner` |"), "{text}");
        assert!(text.contains("| 0.0 % | 100.0 % | `outer` |"), "{text}");
    }
}
