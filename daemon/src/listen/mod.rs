//! The doors: listeners on the control thread, sessions on the cores.
//!
//! Sockets are bound by std, since tokio-uring's `bind` would set `SO_REUSEPORT` and let a stale
//! daemon share the port. They are accepted by tokio's own listeners on the control thread, so that
//! closing a door drops no operation of a ring, and handed to the cores in turn. [`passed`] takes those
//! that systemd bound.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::sys::socket::{getsockopt, sockopt};

use crate::config::{Address, Config};
use crate::conn::{Session, Wire};
use crate::core_loop::Core;
use crate::letter::{Door, Trust};
use crate::rt::Socket;

pub mod lmtp;
pub mod node;
pub mod passed;

/// The session of a connection.
pub(crate) fn session(
    door: Door,
    core: &Rc<Core>,
    wire: &Rc<Wire>,
    trust: Trust,
    peer: String,
) -> Rc<dyn Session> {
    match door {
        Door::Node => node::NodeSession::new(core, wire, trust, peer),
        Door::Lmtp => lmtp::LmtpDoor::new(core, wire, peer),
    }
}

/// A bound socket, listening.
#[derive(Debug)]
pub enum Listener {
    /// Over TCP.
    Tcp(tokio::net::TcpListener),
    /// A Unix socket and the file to remove at the end; none if somebody else made it.
    Unix(tokio::net::UnixListener, Option<SocketFile>),
}

/// Removes a socket's file when it is dropped.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.0.display(), %error, "cannot remove the socket");
        }
    }
}

impl Listener {
    /// Binds an address. Must be called within a tokio runtime.
    pub fn bind(address: &Address) -> Result<Self, String> {
        address.check()?;
        let fault = |error: io::Error| format!("cannot listen at {address}: {error}");
        match address {
            Address::Tcp(socket) => {
                let listener = bind_tcp(*socket).map_err(fault)?;
                tokio::net::TcpListener::from_std(listener)
                    .map(Self::Tcp)
                    .map_err(fault)
            }
            Address::Unix(path) => {
                let listener = bind_unix(path).map_err(fault)?;
                let file = SocketFile(path.clone());
                let listener = tokio::net::UnixListener::from_std(listener).map_err(fault)?;
                Ok(Self::Unix(listener, Some(file)))
            }
        }
    }

    /// Where it listens; the port is the real one.
    pub fn address(&self) -> Option<Address> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok().map(Address::Tcp),
            Self::Unix(_, Some(file)) => Some(Address::Unix(file.0.clone())),
            Self::Unix(listener, None) => passed::place(listener),
        }
    }

    /// The next connection: blocking, as the cores' rings want it.
    pub async fn accept(&self) -> io::Result<Socket> {
        match self {
            Self::Tcp(listener) => {
                let (socket, _) = listener.accept().await?;
                socket.set_nodelay(true)?;
                let socket = socket.into_std()?;
                socket.set_nonblocking(false)?;
                Ok(Socket::Tcp(socket))
            }
            Self::Unix(listener, _) => {
                let (socket, _) = listener.accept().await?;
                let socket = socket.into_std()?;
                socket.set_nonblocking(false)?;
                Ok(Socket::Unix(socket))
            }
        }
    }
}

fn bind_tcp(address: std::net::SocketAddr) -> io::Result<std::net::TcpListener> {
    // std sets SO_REUSEADDR, not SO_REUSEPORT.
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Takes the place of a socket that nobody listens at any more. The store's lock was taken before, so
/// a daemon of the same data directory is not in the way; another program's live socket is.
fn bind_unix(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(io::Error::from(io::ErrorKind::AddrInUse));
            }
            fs::remove_file(path)?;
        }
        Ok(_) => {
            return Err(io::Error::other("a file that is no socket is in the way"));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    // Whoever may enter the directory may deliver; who may read is decided by SO_PEERCRED.
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Who is there, and what it may ask for (mail.md 2.1): over a Unix socket the peer's user decides.
pub fn introduce(socket: &Socket, config: &Config) -> (String, Trust) {
    match socket {
        Socket::Tcp(socket) => {
            let peer = socket.peer_addr();
            (
                peer.map_or_else(|_| "tcp".to_owned(), |peer| peer.to_string()),
                Trust::Read,
            )
        }
        Socket::Unix(socket) => match getsockopt(&socket.as_fd(), sockopt::PeerCredentials) {
            Ok(credentials) => {
                let uid = credentials.uid();
                let own = nix::unistd::geteuid().as_raw();
                let trusted = uid == 0 || uid == own || config.trusted_uids.contains(&uid);
                let trust = if trusted { Trust::Read } else { Trust::Deliver };
                (format!("uid {uid} pid {}", credentials.pid()), trust)
            }
            Err(_) => ("unix".to_owned(), Trust::Deliver),
        },
    }
}
