//! perf(1): stacks of a process into a file, and out of it as text.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::FlameError;
use super::stacks::{self, Threads};

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Clock {
    /// Samples of what runs.
    Running,
    /// Microseconds that threads do not run, by what they did last.
    Waiting,
}

impl Clock {
    /// In what it counts.
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Running => "samples",
            Self::Waiting => "us",
        }
    }

    /// Ending of the names of its files.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Running => "",
            Self::Waiting => "-waiting",
        }
    }
}

/// How perf finds who called whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unwind {
    /// The program was built with frame pointers: cheap and exact.
    FramePointers,
    /// By the unwind tables that every build has; perf copies pieces of stacks for it.
    Tables,
}

/// How long, how often, and what of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Recording {
    /// Length, s.
    pub seconds: u32,
    /// Samples a second and processor; without meaning for [`Clock::Waiting`].
    pub frequency: u32,
    /// What is counted.
    pub clock: Clock,
    /// How stacks are found.
    pub unwind: Unwind,
}

impl Recording {
    /// Records a process into a file; returns when the time is over.
    ///
    /// # Errors
    /// perf is not there, may not look, or the process ended.
    pub fn record(&self, pid: u32, into: &Path) -> Result<(), FlameError> {
        let mut perf = Command::new("perf");
        perf.arg("record");
        match self.clock {
            Clock::Running => {
                perf.args(["-e", "cpu-clock", "-F", &self.frequency.to_string()]);
            }
            Clock::Waiting => {
                perf.args(["-e", "sched:sched_switch", "--switch-events"]);
            }
        }
        perf.args(["--call-graph", self.unwind.name()])
            .args(["-p", &pid.to_string(), "-o"])
            .arg(into)
            .args(["--", "sleep", &self.seconds.to_string()]);
        finished("perf record", &mut perf)?;
        Ok(())
    }

    /// The stacks of a recording, by thread. Inlined functions are not resolved: it would take minutes.
    ///
    /// # Errors
    /// perf cannot read the file, or took no samples.
    pub fn threads(&self, recorded: &Path) -> Result<Threads, FlameError> {
        let mut perf = Command::new("perf");
        perf.args(["script", "--no-inline", "-F"]);
        match self.clock {
            Clock::Running => perf.arg("comm,tid,ip,sym"),
            Clock::Waiting => perf.args(["comm,tid,time,event,ip,sym", "--show-switch-events"]),
        };
        perf.arg("-i").arg(recorded);
        let output = finished("perf script", &mut perf)?;
        let text = String::from_utf8_lossy(&output.stdout);
        let threads = match self.clock {
            Clock::Running => stacks::fold(&text),
            Clock::Waiting => stacks::fold_waits(&text),
        };
        if threads.is_empty() {
            return Err(FlameError("perf took no samples of it".to_owned()));
        }
        Ok(threads)
    }
}

impl Unwind {
    const fn name(self) -> &'static str {
        match self {
            Self::FramePointers => "fp",
            Self::Tables => "dwarf,16384",
        }
    }
}

/// What `io_uring` did for a process in some seconds: how often, by trace point. `None` where the kernel
/// has no such points or hides them.
pub fn ring_events(pid: u32, seconds: u32) -> Option<Vec<(&'static str, u64)>> {
    let events = RING_EVENTS
        .map(|event| format!("io_uring:{event}"))
        .join(",");
    let mut perf = Command::new("perf");
    perf.args(["stat", "-x", ",", "-e", &events, "-p", &pid.to_string()])
        .args(["--", "sleep", &seconds.to_string()]);
    let output = finished("perf stat", &mut perf).ok()?;
    // It prints its counts where errors go.
    let text = String::from_utf8_lossy(&output.stderr);
    let counts = RING_EVENTS.iter().filter_map(|event| {
        let ending = format!("io_uring:{event}");
        let line = text
            .lines()
            .find(|line| line.split(',').nth(2) == Some(&*ending))?;
        Some((*event, line.split(',').next()?.parse().ok()?))
    });
    let counts: Vec<_> = counts.collect();
    (!counts.is_empty()).then_some(counts)
}

/// Handed over, done, waiting for a socket, back in the thread's own time, and given to a worker thread.
const RING_EVENTS: [&str; 5] = [
    "io_uring_submit_req",
    "io_uring_complete",
    "io_uring_poll_arm",
    "io_uring_task_work_run",
    "io_uring_queue_async_work",
];

fn finished(name: &str, command: &mut Command) -> Result<Output, FlameError> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| {
        FlameError(format!(
            "cannot start perf ({error}); it comes with the package linux-perf or linux-tools"
        ))
    })?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: Vec<&str> = said
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    Err(FlameError(format!(
        "{name} ended with {}: {}",
        output.status,
        said.first().copied().unwrap_or("without a word").trim()
    )))
}
