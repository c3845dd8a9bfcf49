//! What a system under test has used, all its processes together, and which they are: a control
//! group (cgroups(7), either version) counts also those that have ended long ago, or were forked
//! away from their parent. It holds exactly what was started here, so it is also what is ended.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::signals;

/// Processes that were told to end may need a moment to be gone.
const GONE_MAX: Duration = Duration::from_secs(10);

/// For the names: a call has many, one after the other.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// A control group of one's own. Dropping it kills what is left in it.
#[derive(Debug)]
pub(crate) struct Group {
    folder: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Version {
    One,
    Two,
}

impl Group {
    /// A new group below the root of the hierarchy.
    pub(crate) fn make() -> anyhow::Result<Self> {
        let hierarchies = [
            ("/sys/fs/cgroup/cpuacct", Version::One),
            ("/sys/fs/cgroup", Version::Two),
        ];
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ringpost-perf.{}.{number}", std::process::id());
        for (top, version) in hierarchies {
            let procs = Path::new(top).join("cgroup.procs");
            let folder = Path::new(top).join(&name);
            if procs.exists() && std::fs::create_dir(&folder).is_ok() {
                signals::register_group(&folder);
                return Ok(Self { folder, version });
            }
        }
        bail!("no control group can be made, so CPU time cannot be counted: run this as root")
    }

    /// The command, which joins the group before anything else.
    pub(crate) fn joining(&self, command: &Command) -> Command {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]);
        shell.arg(self.folder.join("cgroup.procs"));
        shell.arg(command.get_program()).args(command.get_args());
        shell
    }

    /// Takes a running process in, with all its threads.
    pub(crate) fn take_in(&self, pid: Pid) -> anyhow::Result<()> {
        std::fs::write(self.folder.join("cgroup.procs"), pid.to_string())
            .context("cannot count the CPU time of a process")
    }

    /// CPU time of all that were ever in it.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        let name = match self.version {
            Version::One => "cpuacct.usage",
            Version::Two => "cpu.stat",
        };
        let text = std::fs::read_to_string(self.folder.join(name))
            .context("cannot read a control group's CPU time")?;
        parse(&text, self.version).context("a control group's CPU time is no number")
    }

    /// The processes in it now.
    pub(crate) fn pids(&self) -> Vec<Pid> {
        members(&self.folder)
    }

    /// Kills what is in it, until nothing is.
    pub(crate) fn kill(&self) {
        let deadline = Instant::now() + GONE_MAX;
        loop {
            let pids = self.pids();
            if pids.is_empty() || Instant::now() > deadline {
                return;
            }
            for pid in pids {
                // It may have ended meanwhile.
                kill(pid, Signal::SIGKILL).ok();
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
        signals::forget_group(&self.folder);
        let deadline = Instant::now() + GONE_MAX;
        // A killed process is counted until it was reaped.
        while std::fs::remove_dir(&self.folder).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Processes of a group's folder.
pub(crate) fn members(folder: &Path) -> Vec<Pid> {
    let text = std::fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    let pids = text.lines().filter_map(|line| line.parse().ok());
    pids.filter(|&pid| pid > 1).map(Pid::from_raw).collect()
}

fn parse(text: &str, version: Version) -> Option<Duration> {
    match version {
        Version::One => text.trim().parse().ok().map(Duration::from_nanos),
        Version::Two => {
            let value = text
                .lines()
                .find_map(|line| line.strip_prefix("usage_usec "));
            value?.trim().parse().ok().map(Duration::from_micros)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_read() {
        let one = parse("1234567890\n", Version::One);
        assert_eq!(one, Some(Duration::from_nanos(1_234_567_890)));
        let two = parse("usage_usec 77\nuser_usec 70\n", Version::Two);
        assert_eq!(two, Some(Duration::from_micros(77)));
        assert_eq!(parse("user_usec 70\n", Version::Two), None);
        assert_eq!(parse("", Version::One), None);
    }

    /// Where groups can be made: the time of an ended child of an ended child is in the sum.
    #[test]
    fn ended_grandchildren_are_counted_and_nothing_is_left() {
        let Ok(group) = Group::make() else {
            return;
        };
        let mut busy = Command::new("sh");
        busy.args([
            "-c",
            "sh -c 'i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done'",
        ]);
        let status = group.joining(&busy).status().unwrap();
        assert!(status.success());
        assert!(group.cpu().unwrap() > Duration::from_millis(1));
        let mut sleeper = Command::new("sleep");
        sleeper.arg("60");
        let mut child = group.joining(&sleeper).spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let deadline = Instant::now() + GONE_MAX;
        while !group.pids().contains(&pid) && Instant::now() < deadline {
            std::thread::yield_now();
        }
        kill(pid, Signal::SIGKILL).unwrap();
        child.wait().unwrap();
        let folder = group.folder.clone();
        drop(group);
        assert!(!folder.exists());
    }
}
