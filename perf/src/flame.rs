//! `flame`: where the time of a loaded daemon goes, per thread.
//!
//! One call builds the daemon with frame pointers, starts it, loads it as `deliver` does, lets
//! perf(1) take stacks of all its threads behind the warm-up, and then what they wait for, and writes
//! pictures and tables (`ringpost_daemon::flame`); with an earlier recording, what is other than there.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, ensure};
use nix::unistd::Pid;
use ringpost_daemon::flame::record::ring_events;
use ringpost_daemon::flame::{Clock, Recording, Report, Unwind};

use crate::deliver::run::{Bench, progress};
use crate::deliver::{Preset, Witness};
use crate::programs;
use crate::table;

/// Recorded waits are many: fewer seconds of them are enough.
const WAITING_SECONDS_MAX: u32 = 4;

/// `io_uring`'s trace points are counted so long, s.
const RING_SECONDS: u32 = 1;

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

    /// Folder of an earlier recording: draw and tell what is other than there
    #[arg(long, value_name = "FOLDER")]
    diff: Option<PathBuf>,
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
        // Recorders take their time to begin and to end, more of it where processes come and go.
        seconds: f64::from(args.seconds + waiting_seconds(args) + RING_SECONDS) + 8.0,
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
    let takes = Takes {
        recordings: [
            (recording(args, Clock::Running), out.join("perf.data")),
            (
                recording(args, Clock::Waiting),
                out.join("perf-waiting.data"),
            ),
        ],
        ring_events: out.join("ring-events.json"),
    };
    let witness = takes.clone();
    let record = move |pid: Pid| witness.take(pid);
    bench.watch(ringpostd, Witness::new(record));
    let key = deliver.cells().first().copied().context("one cell")?;
    let (_, report) = bench.measure(0, key)?;
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
    takes.tell(&out, args.diff.as_deref(), &mut text)?;
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(if report.good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What is recorded, and the files that get it.
#[derive(Clone, Debug)]
struct Takes {
    recordings: [(Recording, PathBuf); 2],
    ring_events: PathBuf,
}

impl Takes {
    /// Records a process, one take behind the other.
    fn take(&self, pid: Pid) -> anyhow::Result<()> {
        let pid = u32::try_from(pid.as_raw()).context("a pid is positive")?;
        for (recording, data) in &self.recordings {
            recording.record(pid, data)?;
        }
        let counts = ring_events(pid, RING_SECONDS).unwrap_or_default();
        std::fs::write(&self.ring_events, serde_json::to_string(&counts)?)?;
        Ok(())
    }

    /// Draws and tells what was recorded, and what is other than in an earlier recording.
    fn tell(&self, out: &Path, old: Option<&Path>, text: &mut String) -> anyhow::Result<()> {
        for (recording, data) in &self.recordings {
            progress("reading the stacks");
            let report = Report {
                threads: recording.threads(data)?,
                clock: recording.clock,
            };
            writeln!(text, "{}\n", heading(recording.clock))?;
            text.push_str(&report.write(out)?);
            match old {
                Some(old) if report.is_also_in(old) => {
                    writeln!(text, "Against {}\n", old.display())?;
                    text.push_str(&report.write_difference(old, out)?);
                }
                Some(old) => writeln!(text, "{} has no such recording\n", old.display())?,
                None => {}
            }
        }
        let counts: Vec<(String, u64)> =
            serde_json::from_slice(&std::fs::read(&self.ring_events)?)?;
        let rows = counts.into_iter();
        let rows: Vec<_> = rows
            .map(|(event, count)| vec![event, count.to_string()])
            .collect();
        if !rows.is_empty() {
            let heads = ["io_uring trace point", "in a second"];
            writeln!(text, "{}", table::render(&heads, &rows))?;
        }
        Ok(())
    }
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

/// The daemon of these pictures has frame pointers.
fn recording(args: &Args, clock: Clock) -> Recording {
    Recording {
        seconds: match clock {
            Clock::Running => args.seconds,
            Clock::Waiting => waiting_seconds(args),
        },
        frequency: args.frequency,
        clock,
        unwind: Unwind::FramePointers,
    }
}

fn waiting_seconds(args: &Args) -> u32 {
    args.seconds.min(WAITING_SECONDS_MAX)
}

fn heading(clock: Clock) -> &'static str {
    match clock {
        Clock::Running => "## What runs",
        Clock::Waiting => {
            "## What waits, and for what (a thread that has nothing to do waits, too)"
        }
    }
}
