//! No daemon outlives a perf that is told to end: SIGTERM (timeout(1), CI), SIGINT and SIGHUP kill
//! the daemons that are registered here, then take their usual course.

use std::sync::PoisonError;

use anyhow::Context as _;
use nix::sys::signal::{SigSet, Signal, kill, raise};
use nix::unistd::Pid;

#[expect(
    clippy::disallowed_types,
    reason = "the thread that waits for signals has to know what runs; it is locked for a moment"
)]
static RUNNING: std::sync::Mutex<Vec<Pid>> = std::sync::Mutex::new(Vec::new());

/// From here on signals are taken by a thread of their own. To be called before other threads are
/// made: they inherit that the signals are blocked. Programs that are started do not.
pub(crate) fn watch() -> anyhow::Result<()> {
    let mut ends = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        ends.add(signal);
    }
    ends.thread_block().context("cannot block signals")?;
    std::thread::spawn(move || {
        let Ok(signal) = ends.wait() else {
            return;
        };
        for pid in running().drain(..) {
            // It may have ended by itself.
            kill(pid, Signal::SIGKILL).ok();
        }
        ends.thread_unblock().and_then(|()| raise(signal)).ok();
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

fn running() -> std::sync::MutexGuard<'static, Vec<Pid>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}
