//! The runtime of a core: the only file that names `tokio_uring`.
//!
//! Its traps (docs/decisions) and what is done here about them:
//! - A dropped future is not cancelled: it swallows the bytes of the next read. So every read and
//!   write here is awaited to its end by a task of its own, and a time-out is a `shutdown(2)`, which
//!   ends the operation.
//! - Its `bind` sets `SO_REUSEPORT`: sockets are made by std and come in through [`Stream::new`].
//! - The runtime's end waits for operations in flight: sockets are shut down first.
//! - `DEFER_TASKRUN` hangs: only `COOP_TASKRUN` and `SINGLE_ISSUER` are set.
//!
//! The ring waits by itself for a socket that is not ready, but only if it blocks: a socket that
//! came from a tokio listener must be set to blocking first.

use std::future::Future;
use std::io::{self, Write as _};
use std::net::Shutdown;
use std::os::fd::AsRawFd;

use tokio::io::unix::AsyncFd;
use tokio_uring::net::{TcpStream, UnixStream};

/// Submission queue entries: sockets that have something to say in one turn.
const ENTRIES: u32 = 256;

/// Runs a core's main task on this thread until it ends.
pub fn run<F: Future>(main: F) -> io::Result<F::Output> {
    let mut builder = tokio_uring::builder();
    builder.entries(ENTRIES);
    builder.uring_builder(
        tokio_uring::uring_builder()
            .setup_coop_taskrun()
            .setup_single_issuer(),
    );
    let runtime = tokio_uring::Runtime::new(&builder)?;
    Ok(runtime.block_on(main))
}

/// Starts a task on this core. Nothing waits for its end; it must not be aborted.
pub fn spawn<F: Future<Output = ()> + 'static>(task: F) {
    drop(tokio_uring::spawn(task));
}

/// One round: all that the tasks of this core asked of the ring goes to the kernel, and what is ready
/// comes back. A mere `yield_now` would not do: the runtime hands the ring over only before it
/// sleeps, so answers would stay here and sockets would not be read. Never drop it.
pub async fn round() {
    // It fails only with the ring, and then each socket says so.
    tokio_uring::no_op().await.ok();
}

/// Waits for an eventfd with tokio's own poller; its futures may be dropped. `fd` must own its
/// descriptor, so that it is open as long as it is watched.
pub fn watch<T: AsRawFd>(fd: T) -> io::Result<AsyncFd<T>> {
    #[expect(
        deprecated,
        reason = "the new name is unsafe; both callers pass owners of an eventfd"
    )]
    AsyncFd::new(fd)
}

/// A connected socket as it travels between threads.
#[derive(Debug)]
pub enum Socket {
    /// From another machine, or this one.
    Tcp(std::net::TcpStream),
    /// From this machine.
    Unix(std::os::unix::net::UnixStream),
}

impl Socket {
    /// A few last words before it is closed. They fit the buffer of a socket that is new.
    pub fn say(&self, words: &[u8]) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => (&*socket).write_all(words),
            Self::Unix(socket) => (&*socket).write_all(words),
        }
    }
}

/// A connected socket on this core's ring. One task reads, one writes.
pub enum Stream {
    /// See [`Socket::Tcp`].
    Tcp(TcpStream),
    /// See [`Socket::Unix`].
    Unix(UnixStream),
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp(_) => "Stream::Tcp",
            Self::Unix(_) => "Stream::Unix",
        })
    }
}

impl Stream {
    /// Takes a blocking socket over.
    pub fn new(socket: Socket) -> Self {
        match socket {
            Socket::Tcp(socket) => Self::Tcp(TcpStream::from_std(socket)),
            Socket::Unix(socket) => Self::Unix(UnixStream::from_std(socket)),
        }
    }

    /// Reads into the free capacity of an empty buffer; 0 at the end of the stream. Never drop it.
    pub async fn read(&self, buf: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        debug_assert!(buf.is_empty(), "a read fills a buffer from its start");
        match self {
            Self::Tcp(stream) => stream.read(buf).await,
            Self::Unix(stream) => stream.read(buf).await,
        }
    }

    /// Writes a whole buffer and gives it back. Never drop it.
    pub async fn write_all(&self, buf: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        match self {
            Self::Tcp(stream) => stream.write_all(buf).await,
            Self::Unix(stream) => stream.write_all(buf).await,
        }
    }

    /// Ends operations in flight, and later ones, in that direction. A socket that is already gone
    /// is fine.
    pub fn shutdown(&self, how: Shutdown) {
        let result = match self {
            Self::Tcp(stream) => stream.shutdown(how),
            Self::Unix(stream) => stream.shutdown(how),
        };
        if let Err(error) = result {
            tracing::trace!(%error, "shutdown of a socket");
        }
    }
}
