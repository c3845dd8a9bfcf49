//! `unix:PATH` or `HOST:PORT`, and a nonblocking stream to either.

use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, ensure};

/// A TCP connect that takes longer has failed.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// Where a daemon listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// A name or IP address with a port.
    Tcp(String),
}

impl FromStr for Address {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            ensure!(!path.is_empty(), "unix: needs a path behind it");
            return Ok(Self::Unix(path.into()));
        }
        let port = text.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
        ensure!(
            matches!(port, Some(Ok(_))),
            "{text:?} is neither unix:PATH nor HOST:PORT"
        );
        Ok(Self::Tcp(text.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(name) => f.write_str(name),
        }
    }
}

impl From<&Path> for Address {
    fn from(path: &Path) -> Self {
        Self::Unix(path.to_owned())
    }
}

impl From<&Address> for ringpost_daemon::client::Address {
    fn from(address: &Address) -> Self {
        match address {
            Address::Unix(path) => Self::Unix(path.clone()),
            Address::Tcp(name) => Self::Tcp(name.clone()),
        }
    }
}

impl Address {
    /// A blocking connection, without Nagle's delay.
    pub(crate) fn connect(&self) -> anyhow::Result<Stream> {
        let connect = || -> io::Result<Stream> {
            match self {
                Self::Unix(path) => Ok(Stream::Unix(UnixStream::connect(path)?)),
                Self::Tcp(name) => {
                    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
                    for address in name.to_socket_addrs()? {
                        match TcpStream::connect_timeout(&address, CONNECT_MAX) {
                            Ok(stream) => {
                                stream.set_nodelay(true)?;
                                return Ok(Stream::Tcp(stream));
                            }
                            Err(error) => last = error,
                        }
                    }
                    Err(last)
                }
            }
        };
        connect().with_context(|| format!("cannot connect to {self}"))
    }
}

/// A connected socket.
#[derive(Debug)]
pub(crate) enum Stream {
    /// Of a Unix socket.
    Unix(UnixStream),
    /// Of TCP.
    Tcp(TcpStream),
}

impl Stream {
    /// From here on, reads and writes fail with `WouldBlock` instead of waiting.
    pub(crate) fn make_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_nonblocking(true),
            Self::Tcp(stream) => stream.set_nonblocking(true),
        }
    }

    /// A blocking read or write that takes longer fails.
    pub(crate) fn bound(&self, patience: Duration) -> io::Result<()> {
        match self {
            Self::Unix(stream) => {
                stream.set_read_timeout(Some(patience))?;
                stream.set_write_timeout(Some(patience))
            }
            Self::Tcp(stream) => {
                stream.set_read_timeout(Some(patience))?;
                stream.set_write_timeout(Some(patience))
            }
        }
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

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buf),
            Self::Tcp(stream) => stream.read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(buf),
            Self::Tcp(stream) => stream.write(buf),
        }
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write_vectored(bufs),
            Self::Tcp(stream) => stream.write_vectored(bufs),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_and_print_alike() {
        for good in [
            "unix:/run/ringpost/node",
            "127.0.0.1:24",
            "[::1]:24",
            "mx.example:2424",
        ] {
            assert_eq!(good.parse::<Address>().unwrap().to_string(), good);
        }
        for bad in ["", "unix:", "/run/node", "host", "host:", "host:70000"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
