//! No daemon outlives a perf that is told to end: SIGTERM (timeout(1), CI), SIGINT and SIGHUP kill
//! the daemons and control groups that are registered here, then take their usual course.

use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

#[expect(
    clippy::disallowed_types,
    reason = "the thread that waits for signals has to know what runs; it is locked for a moment"
)]
static RUNNING: std::sync::Mutex<Vec<Pid>> = std::sync::Mutex::new(Vec::new());

#[expect(clippy::disallowed_types, reason = "as above")]
static GROUPS: std::sync::Mutex<Vec<PathBuf>> = std::sync::Mutex::new(Vec::new());

/// From here on signals are told to a thread of their own by handlers, which a program that is started
/// does not inherit. Blocking them would be inherited, and a daemon that never sees SIGTERM never
/// drains.
pub(crate) fn watch() -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).context("cannot watch signals")?;
    std::thread::spawn(move || {
        let Some(signal) = signals.forever().next() else {
            return;
        };
        for pid in running().drain(..) {
            // It may have ended by itself.
            kill(pid, Signal::SIGKILL).ok();
        }
        for folder in groups().drain(..) {
            for pid in crate::peers::members(&folder) {
                kill(pid, Signal::SIGKILL).ok();
            }
        }
        signal_hook::low_level::emulate_default_handler(signal).ok();
    });
    Ok(())
}

/// A daemon was started.
pub(crate) fn register(pid: Pid) {
    running().push(pid);
}

/// It is about to be waited for: its id may soon be another's.
pub(crate) fn forget(pid: Pid) {
    running().retain(|&known| known != pid);
}

/// A control group was made: whatever is in it was started here.
pub(crate) fn register_group(folder: &Path) {
    groups().push(folder.to_owned());
}

/// It is about to be removed.
pub(crate) fn forget_group(folder: &Path) {
    groups().retain(|known| known != folder);
}

fn groups() -> std::sync::MutexGuard<'static, Vec<PathBuf>> {
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn running() -> std::sync::MutexGuard<'static, Vec<Pid>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_do_not_inherit_blocked_signals() {
        watch().unwrap();
        let output = std::process::Command::new("grep")
            .args(["^SigBlk:", "/proc/self/status"])
            .output()
            .unwrap();
        let line = String::from_utf8(output.stdout).unwrap();
        assert_eq!(
            line.trim_start_matches("SigBlk:").trim(),
            "0000000000000000"
        );
    }
}
