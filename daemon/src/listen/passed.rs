//! Sockets that whoever started the daemon made for it (`sd_listen_fds(3)`): systemd keeps them through
//! restarts, so that connections wait meanwhile, and may put them where the daemon itself must not write,
//! such as `/var/spool/postfix/private` (mail.md 2.1).
//!
//! `LISTEN_FDNAMES` says which door each is of. A door that has sockets here opens none of its own. What is
//! not understood ends the start with a sentence: a socket that nobody accepts at would look alive.

use std::fmt;
use std::os::fd::AsFd;
use std::path::PathBuf;

use listenfd::ListenFd;
use nix::sys::socket::{getsockopt, sockopt};

use super::Listener;
use crate::config::{Address, Config};

/// The doors that a socket can be of, by the name that it is passed under.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Name {
    /// The node protocol: `listen.socket` or, over TCP, `listen.node`.
    Node,
    /// LMTP: `listen.lmtp`.
    Lmtp,
    /// HTTP: `listen.admin`.
    Admin,
}

impl Name {
    fn of(word: &str) -> Option<Self> {
        match word {
            "node" => Some(Self::Node),
            "lmtp" => Some(Self::Lmtp),
            "admin" => Some(Self::Admin),
            _ => None,
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Node => "node",
            Self::Lmtp => "lmtp",
            Self::Admin => "admin",
        })
    }
}

/// What a socket is.
#[derive(Debug)]
enum Socket {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

/// The sockets that were passed, each with its door.
#[derive(Debug, Default)]
pub struct Passed(Vec<(Name, Socket)>);

impl Passed {
    /// Takes those that the environment tells of, once, before there are threads. `names` is
    /// `LISTEN_FDNAMES`.
    ///
    /// # Errors
    /// A sentence: a name that is none of a door, or a socket that does not listen.
    pub fn take(names: Option<&str>) -> Result<Self, String> {
        let mut fds = ListenFd::from_env();
        let mut words = names.unwrap_or_default().split(':');
        let mut passed = Vec::new();
        for index in 0..fds.len() {
            // systemd's word for a socket without FileDescriptorName= is the unit's own name.
            let word = words.next().unwrap_or_default();
            let name = Name::of(word).ok_or_else(|| {
                format!(
                    "a socket was passed under the name {word:?} (LISTEN_FDNAMES); set \
                     FileDescriptorName= to node, lmtp or admin"
                )
            })?;
            let unix = fds.take_unix_listener(index).ok().flatten();
            let tcp = || fds.take_tcp_listener(index).ok().flatten().map(Socket::Tcp);
            let socket = unix.map(Socket::Unix).or_else(tcp).ok_or_else(|| {
                format!("what was passed as {name} is no stream socket; use ListenStream=")
            })?;
            if !socket.listens() {
                return Err(format!(
                    "the socket that was passed as {name} does not listen; use ListenStream= with \
                     Accept=no"
                ));
            }
            passed.push((name, socket));
        }
        Ok(Self(passed))
    }

    /// Those of a door: over TCP, over a Unix socket, or both. Must be called within a tokio runtime.
    pub fn of_door(
        &mut self,
        wanted: Name,
        kinds: &[Kind],
        config: &Config,
    ) -> Result<Vec<Listener>, String> {
        let is_it =
            |(name, socket): &(Name, Socket)| *name == wanted && kinds.contains(&socket.kind());
        let (found, rest) = std::mem::take(&mut self.0).into_iter().partition(is_it);
        self.0 = rest;
        let found: Vec<(Name, Socket)> = found;
        let listeners = found.into_iter().map(|(name, socket)| {
            let fault = |error: std::io::Error| format!("the socket that was passed as {name}: {error}");
            match socket {
                Socket::Tcp(listener) => {
                    let address = listener.local_addr().map_err(fault)?;
                    if !config.insecure && !address.ip().is_loopback() {
                        return Err(format!(
                            "{address}, passed as {name}, can be reached from other machines, without \
                             encryption or passwords; listen at a loopback address, or set insecure = true"
                        ));
                    }
                    listener.set_nonblocking(true).map_err(fault)?;
                    let listener = tokio::net::TcpListener::from_std(listener).map_err(fault)?;
                    Ok(Listener::Tcp(listener))
                }
                Socket::Unix(listener) => {
                    listener.set_nonblocking(true).map_err(fault)?;
                    let listener = tokio::net::UnixListener::from_std(listener).map_err(fault)?;
                    Ok(Listener::Unix(listener, None))
                }
            }
        });
        listeners.collect()
    }
}

/// Over what connections come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// TCP.
    Tcp,
    /// A Unix socket.
    Unix,
}

impl Socket {
    const fn kind(&self) -> Kind {
        match self {
            Self::Tcp(_) => Kind::Tcp,
            Self::Unix(_) => Kind::Unix,
        }
    }

    fn listens(&self) -> bool {
        let listens = match self {
            Self::Tcp(listener) => getsockopt(&listener.as_fd(), sockopt::AcceptConn),
            Self::Unix(listener) => getsockopt(&listener.as_fd(), sockopt::AcceptConn),
        };
        listens.unwrap_or(false)
    }
}

/// Where a Unix socket that was passed is.
pub(super) fn place(listener: &tokio::net::UnixListener) -> Option<Address> {
    let address = listener.local_addr().ok()?;
    address.as_pathname().map(PathBuf::from).map(Address::Unix)
}
