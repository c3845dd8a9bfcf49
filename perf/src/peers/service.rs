//! A peer's server: started in the foreground, waited for, ended by its id, with what it forked.

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::group::Group;
use crate::address::Address;
use crate::signals;

/// Until a server that was started listens.
const START_MAX: Duration = Duration::from_mins(1);

/// Until one that was told to end has ended; then it is killed.
const STOP_MAX: Duration = Duration::from_secs(20);

/// Between two looks at something that is waited for.
const LOOK: Duration = Duration::from_millis(5);

/// A running server. Dropping it kills it and all that it started.
#[derive(Debug)]
pub(crate) struct Service {
    child: Child,
    group: Group,
    name: String,
}

impl Service {
    /// Starts a command that joins `group`.
    pub(crate) fn start(mut command: Command, group: Group, name: &str) -> anyhow::Result<Self> {
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let service = Self {
            child,
            group,
            name: name.to_owned(),
        };
        signals::register(service.pid());
        Ok(service)
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("the kernel's ids are below 2^22"))
    }

    /// CPU time of it and all that it started.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        self.group.cpu()
    }

    /// Waits until somebody can connect; `log` is named if nobody can.
    pub(crate) fn wait_for(&mut self, door: &Address, log: &Path) -> anyhow::Result<()> {
        let (name, child) = (&self.name, &mut self.child);
        wait_until(START_MAX, || {
            if let Some(status) = child.try_wait().context("cannot wait for a server")? {
                bail!("{name} ended with {status}");
            }
            Ok(door.connect().is_ok())
        })
        .with_context(|| {
            let said = std::fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<&str> = said.lines().collect();
            let tail = lines.get(lines.len().saturating_sub(5)..);
            format!(
                "{name} does not serve at {door}; its last words: {}",
                tail.unwrap_or_default().join("; ")
            )
        })
    }

    /// SIGTERM to the server; then whatever is left of its group is killed.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        kill(self.pid(), Signal::SIGTERM).with_context(|| format!("cannot stop {}", self.name))?;
        let child = &mut self.child;
        wait_until(STOP_MAX, || {
            Ok(child
                .try_wait()
                .context("cannot wait for a server")?
                .is_some())
        })
        .with_context(|| format!("{} did not end after SIGTERM", self.name))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        signals::forget(self.pid());
        // Both fail only if the process was reaped already.
        drop(self.child.kill());
        drop(self.child.wait());
        self.group.kill();
    }
}

/// Looks again and again until it is so.
pub(crate) fn wait_until(
    patience: Duration,
    mut is_so: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + patience;
    while !is_so()? {
        if Instant::now() > deadline {
            bail!("nothing after {patience:?}");
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// A TCP port of loopback that nobody listens at now.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("no port is free")?;
    Ok(listener.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_with_the_event_or_with_patience() {
        let mut looks = 0;
        let seen = wait_until(Duration::from_secs(5), || {
            looks += 1;
            Ok(looks == 3)
        });
        assert!(seen.is_ok());
        assert_eq!(looks, 3);
        assert!(wait_until(Duration::ZERO, || Ok(false)).is_err());
        assert!(wait_until(Duration::from_secs(5), || bail!("gone")).is_err());
    }
}
