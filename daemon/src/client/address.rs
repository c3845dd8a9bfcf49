//! Where a node listens, and how a socket to it is opened within a deadline.
#![expect(
    clippy::disallowed_methods,
    reason = "a blocking client measures its own deadlines"
)]

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

/// Between two tries to connect, while a daemon restarts.
const RETRY_EVERY: Duration = Duration::from_millis(50);

/// A node's address: a Unix socket or `HOST:PORT`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// A socket in the file system.
    Unix(PathBuf),
    /// Host name or number, with a port.
    Tcp(String),
}

impl FromStr for Address {
    type Err = Infallible;

    /// `unix:PATH`; a word with a slash is a path, another with a colon is `HOST:PORT`.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self::from_path(Path::new(text)))
    }
}

impl Address {
    /// The same for a word of the command line that may be no UTF-8.
    pub fn from_path(path: &Path) -> Self {
        let Some(text) = path.to_str() else {
            return Self::Unix(path.to_path_buf());
        };
        if let Some(path) = text.strip_prefix("unix:") {
            return Self::Unix(PathBuf::from(path));
        }
        if text.contains(':') && !text.contains('/') {
            return Self::Tcp(text.to_owned());
        }
        Self::Unix(path.to_path_buf())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Tcp(host) => f.write_str(host),
        }
    }
}

/// A moment after which nothing is waited for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    /// `duration` from this moment on, at most a day.
    pub fn after(duration: Duration) -> Self {
        Self(Instant::now() + duration.min(Duration::from_hours(24)))
    }

    /// What is left; `None` if nothing is.
    pub fn remaining(self) -> Option<Duration> {
        let left = self.0.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    /// The milliseconds that are left, rounded up, as the protocol has them; at least 1.
    pub fn remaining_ms(self) -> u32 {
        let left = self.remaining().unwrap_or_default();
        u32::try_from(left.as_nanos().div_ceil(1_000_000)).map_or(u32::MAX, |ms| ms.max(1))
    }
}

/// A connected socket that never blocks.
#[derive(Debug)]
pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    /// Connects, at the latest at `deadline`. Only a full queue is waited for.
    pub(super) fn connect(address: &Address, deadline: Deadline) -> io::Result<Self> {
        loop {
            match Self::try_connect(address, deadline) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => pause(deadline)?,
                done => return done,
            }
        }
    }

    fn try_connect(address: &Address, deadline: Deadline) -> io::Result<Self> {
        match address {
            Address::Unix(path) => connect_unix(path).map(Self::Unix),
            Address::Tcp(host) => {
                let stream = connect_tcp(host, deadline)?;
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                Ok(Self::Tcp(stream))
            }
        }
    }
}

/// Without blocking: a full queue answers EAGAIN instead of sleeping.
fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    let name = UnixAddr::new(path)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &name)?;
    Ok(UnixStream::from(socket))
}

fn connect_tcp(host: &str, deadline: Deadline) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in host.to_socket_addrs()? {
        let Some(left) = deadline.remaining() else {
            return Err(io::ErrorKind::TimedOut.into());
        };
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Waits a little before the next try; an error at `deadline`.
pub fn pause(deadline: Deadline) -> io::Result<()> {
    let left = deadline.remaining().ok_or(io::ErrorKind::TimedOut)?;
    match poll(&mut [], timeout(left.min(RETRY_EVERY))) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// For poll(2), rounded up so that a rest of microseconds does not spin.
fn timeout(duration: Duration) -> PollTimeout {
    let ms = duration.as_nanos().div_ceil(1_000_000);
    PollTimeout::from(u16::try_from(ms).unwrap_or(u16::MAX))
}

/// Waits for the descriptors until `deadline`.
pub fn wait(fds: &mut [PollFd<'_>], deadline: Deadline) -> io::Result<Ready> {
    loop {
        let Some(left) = deadline.remaining() else {
            return Ok(Ready::No);
        };
        match poll(fds, timeout(left)) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(Ready::Yes),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Whether something happened before a deadline.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ready {
    /// At least one descriptor has something.
    Yes,
    /// The deadline came first.
    No,
}

impl io::Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buf),
            Self::Tcp(stream) => stream.read(buf),
        }
    }
}

impl io::Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(buf),
            Self::Tcp(stream) => stream.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_three_forms() {
        for (text, want) in [
            ("unix:run/node", Address::Unix("run/node".into())),
            (
                "/run/ringpost/node",
                Address::Unix("/run/ringpost/node".into()),
            ),
            ("./a:b", Address::Unix("./a:b".into())),
            ("node", Address::Unix("node".into())),
            ("127.0.0.1:2525", Address::Tcp("127.0.0.1:2525".into())),
            ("[::1]:2525", Address::Tcp("[::1]:2525".into())),
        ] {
            let Ok(address) = text.parse::<Address>();
            assert_eq!(address, want);
        }
    }
}
