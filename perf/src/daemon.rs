//! A `ringpostd` of one's own: started on a given folder, waited for, stopped or killed by its id.
//!
//! The daemon says when it serves through `NOTIFY_SOCKET` (`sd_notify(3)`), so no start is guessed
//! by sleeping; its end shows as the end of a pipe that it holds as standard input. A dropped
//! [`Daemon`] is killed and reaped, and so is one whose perf is told to end ([`signals`]).
//! `deliver` measures it, `crash` kills it at chosen moments.

use std::fs::OpenOptions;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::signals;

/// A Unix socket's path has at most this many bytes (unix(7): `sun_path`, less its final NUL).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// What of the daemon's own words goes into an error.
const LOG_TAIL_BYTES: u64 = 2_000;

/// How a daemon is to run. It creates what is missing in `data`.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// The program.
    pub(crate) ringpostd: PathBuf,
    /// `--data`.
    pub(crate) data: PathBuf,
    /// An existing folder with a short path, for the sockets. May be used again after a kill.
    pub(crate) sockets: PathBuf,
    /// What the daemon prints is appended here.
    pub(crate) log: PathBuf,
    /// `KEY=VALUE` for `--set`, on top of the sockets. Any user exists (`--try`).
    pub(crate) settings: Vec<String>,
    /// How long it may take until it serves, recovery included.
    pub(crate) start_max: Duration,
}

/// Where a daemon listens: Unix sockets only, so that many can run side by side.
#[derive(Clone, Debug)]
pub(crate) struct Doors {
    /// The node protocol (`listen.socket`).
    pub(crate) node: PathBuf,
    /// LMTP (`listen.lmtp`).
    pub(crate) lmtp: PathBuf,
    /// Metrics and health over HTTP (`listen.admin`).
    pub(crate) admin: PathBuf,
}

impl Doors {
    fn below(folder: &Path) -> anyhow::Result<Self> {
        let door = |name: &str| {
            let path = folder.join(name);
            let fits = path.as_os_str().len() <= SOCKET_PATH_BYTES_MAX;
            ensure!(
                fits,
                "{} is too long for a socket; choose a shorter folder",
                path.display()
            );
            Ok(path)
        };
        Ok(Self {
            node: door("node")?,
            lmtp: door("lmtp")?,
            admin: door("admin")?,
        })
    }
}

/// A running daemon. Dropping it kills it (SIGKILL) and waits for its end.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    life: ChildStdin,
    doors: Doors,
    started_in: Duration,
}

impl Daemon {
    /// Starts it and returns once it serves. On failure the daemon is gone and the error ends with
    /// its last words.
    pub(crate) fn start(setup: &Setup) -> anyhow::Result<Self> {
        let doors = Doors::below(&setup.sockets)?;
        let notify_path = setup.sockets.join("notify");
        if notify_path.exists() {
            std::fs::remove_file(&notify_path)
                .with_context(|| format!("cannot remove {}", notify_path.display()))?;
        }
        let notify = UnixDatagram::bind(&notify_path)
            .with_context(|| format!("cannot listen at {}", notify_path.display()))?;
        notify.set_nonblocking(true)?;

        let begun = Instant::now();
        let mut child = command(setup, &doors, &notify_path)?
            .spawn()
            .with_context(|| format!("cannot start {}", setup.ringpostd.display()))?;
        let life = child
            .stdin
            .take()
            .context("the daemon has no standard input")?;
        let mut daemon = Self {
            child,
            life,
            doors,
            started_in: Duration::ZERO,
        };
        signals::register(daemon.pid());
        daemon
            .wait_ready(&notify, begun + setup.start_max)
            .map_err(|error| {
                let (log, tail) = (setup.log.display(), log_tail(&setup.log));
                anyhow!("{error:#}; its last words in {log}:\n{tail}")
            })?;
        daemon.started_in = begun.elapsed();
        Ok(daemon)
    }

    /// Where it listens.
    pub(crate) fn doors(&self) -> &Doors {
        &self.doors
    }

    /// How long it took from the start of the process until it served; recovery is part of it.
    pub(crate) fn started_in(&self) -> Duration {
        self.started_in
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("the kernel's ids are below 2^22"))
    }

    /// SIGKILL, and waits for its end.
    pub(crate) fn kill(mut self) -> anyhow::Result<ExitStatus> {
        self.child.kill().context("cannot kill the daemon")?;
        self.child.wait().context("cannot wait for the daemon")
    }

    /// SIGTERM, and waits for its end; after `patience` it is killed and that is an error.
    pub(crate) fn stop(mut self, patience: Duration) -> anyhow::Result<ExitStatus> {
        kill(self.pid(), Signal::SIGTERM).context("cannot stop the daemon")?;
        if !self.wait_end(patience)? {
            self.child.kill().context("cannot kill the daemon")?;
            bail!("the daemon was still running {patience:?} after SIGTERM");
        }
        self.child.wait().context("cannot wait for the daemon")
    }

    /// Waits up to `patience` for the process's end: the pipe then has no reader. Whether it came.
    pub(crate) fn wait_end(&mut self, patience: Duration) -> anyhow::Result<bool> {
        let deadline = Instant::now() + patience;
        loop {
            let mut fds = [PollFd::new(self.life.as_fd(), PollFlags::empty())];
            poll_until(&mut fds, deadline)?;
            if fds.iter().any(|fd| fd.any().unwrap_or(false)) {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
        }
    }

    fn wait_ready(&mut self, notify: &UnixDatagram, deadline: Instant) -> anyhow::Result<()> {
        let mut message = [0; 4096];
        loop {
            let mut fds = [
                PollFd::new(notify.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.life.as_fd(), PollFlags::empty()),
            ];
            poll_until(&mut fds, deadline)?;
            let dead = fds.last().and_then(PollFd::any).unwrap_or(false);
            while let Ok(count) = notify.recv(&mut message) {
                let said = message.get(..count).unwrap_or_default();
                if said
                    .split(|byte| *byte == b'\n')
                    .any(|line| line == b"READY=1")
                {
                    return Ok(());
                }
            }
            if dead {
                let status = self.child.wait().context("cannot wait for the daemon")?;
                bail!("the daemon ended before it served ({status})");
            }
            if Instant::now() >= deadline {
                bail!("the daemon did not say READY=1 in time");
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        signals::forget(self.pid());
        // Both fail only if the process was reaped already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn command(setup: &Setup, doors: &Doors, notify: &Path) -> anyhow::Result<Command> {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&setup.log)
        .with_context(|| format!("cannot open {}", setup.log.display()))?;
    let mut command = Command::new(&setup.ringpostd);
    command.arg("--try").arg("--data").arg(&setup.data);
    let unix = |key: &str, path: &Path| format!("listen.{key}=unix:{}", path.display());
    let listen = [
        unix("socket", &doors.node),
        unix("lmtp", &doors.lmtp),
        unix("admin", &doors.admin),
        "listen.node=none".to_owned(),
    ];
    for setting in listen.iter().chain(&setup.settings) {
        command.arg("--set").arg(setting);
    }
    command
        .env("NOTIFY_SOCKET", notify)
        .stdin(Stdio::piped())
        .stdout(log.try_clone().context("cannot share the log file")?)
        .stderr(log);
    Ok(command)
}

/// One poll(2) that ends at `deadline` at the latest. An interrupted call counts as nothing seen.
fn poll_until(fds: &mut [PollFd<'_>], deadline: Instant) -> anyhow::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    match poll(fds, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno).context("cannot poll"),
    }
}

/// The end of a log file, for an error message.
fn log_tail(path: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = OpenOptions::new().read(true).open(path)?;
        let bytes = file.metadata()?.len();
        file.seek(SeekFrom::Start(bytes.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut tail = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut tail)?;
        Ok(String::from_utf8_lossy(&tail).into_owned())
    };
    read().unwrap_or_else(|error| format!("(unreadable: {error})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shell script in the daemon's place; `$NOTIFY_SOCKET` is real.
    fn setup(folder: &Path, script: &str) -> Setup {
        let program = folder.join("fake");
        // Another process writes it: a test beside this one may fork while it is open for writing,
        // and then it could not be executed (ETXTBSY).
        let written = Command::new("sh")
            .args([
                "-c",
                "printf '#!/bin/sh\\n%s\\n' \"$2\" > \"$1\"; chmod 755 \"$1\"",
                "sh",
            ])
            .arg(&program)
            .arg(script)
            .status();
        assert!(written.unwrap().success());
        Setup {
            ringpostd: program,
            data: folder.join("data"),
            sockets: folder.to_owned(),
            log: folder.join("log"),
            settings: vec!["a.b=1".to_owned()],
            start_max: Duration::from_secs(20),
        }
    }

    /// sh cannot send a datagram, Perl is in every Debian (perl-base).
    const READY: &str = "perl -MIO::Socket::UNIX -e '\
        IO::Socket::UNIX->new(Type=>SOCK_DGRAM,Peer=>$ENV{NOTIFY_SOCKET})->send(\"STATUS=x\\nREADY=1\")'";

    #[test]
    fn daemon_is_ready_when_it_says_so_and_can_be_stopped_and_started_again() {
        let folder = tempfile::tempdir().unwrap();
        let setup = setup(
            folder.path(),
            &format!("echo \"$@\"; {READY}; exec sleep 60"),
        );
        for _ in 0..2 {
            let mut daemon = Daemon::start(&setup).unwrap();
            assert!(daemon.started_in() > Duration::ZERO);
            assert!(!daemon.wait_end(Duration::ZERO).unwrap());
            daemon.stop(Duration::from_secs(20)).unwrap();
        }
        let log = std::fs::read_to_string(&setup.log).unwrap();
        let first = log.lines().next().unwrap();
        assert!(first.starts_with("--try --data "), "{first}");
        assert!(first.contains("--set listen.admin=unix:") && first.ends_with("--set a.b=1"));
    }

    #[test]
    fn early_end_is_an_error_with_the_last_words() {
        let folder = tempfile::tempdir().unwrap();
        let setup = setup(folder.path(), "echo io_uring is forbidden >&2; exit 78");
        let error = format!("{:#}", Daemon::start(&setup).unwrap_err());
        assert!(
            error.contains("78") && error.contains("io_uring is forbidden"),
            "{error}"
        );
    }

    #[test]
    fn silence_is_an_error_after_the_deadline() {
        let folder = tempfile::tempdir().unwrap();
        let mut setup = setup(folder.path(), "exec sleep 60");
        setup.start_max = Duration::from_millis(50);
        let error = format!("{:#}", Daemon::start(&setup).unwrap_err());
        assert!(error.contains("READY=1"), "{error}");
    }

    #[test]
    fn long_socket_paths_are_refused_by_name() {
        let error = Doors::below(Path::new(&"x".repeat(120))).unwrap_err();
        assert!(error.to_string().contains("too long"));
    }
}
