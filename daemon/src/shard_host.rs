//! A core's shard and the eventfd that says when to poll it: all that this crate knows of how the
//! engine is run.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use ringpost_engine::config::ShardConfig;
use ringpost_engine::error::OpenError;
use ringpost_engine::io::Helpers;
use ringpost_engine::io::ring::{UringIo, UringOptions};
use ringpost_engine::metrics::Metrics;
use ringpost_engine::request::{Event, MonotonicNs, Now, Refused, Request, Ticket};
use ringpost_engine::{Shard, ShardIdentity};

use crate::clock;
use crate::letter::DAMAGED_SHOWN_MAX;
use crate::status;

/// The shard of a core. Lives on the thread that opened it.
pub struct ShardHost {
    shard: Shard<UringIo>,
}

/// The ring's eventfd, shared with the runtime that waits for it.
#[derive(Debug)]
pub struct RingEvent(OwnedFd);

impl AsRawFd for RingEvent {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl RingEvent {
    /// Takes the wake-ups that came; called before the shard is polled, never after.
    pub fn clear(&self) {
        // EAGAIN: somebody was faster; the poll that follows finds nothing.
        let mut count = [0; 8];
        if let Err(error) = nix::unistd::read(&self.0, &mut count) {
            tracing::trace!(%error, "the ring's eventfd");
        }
    }
}

impl ShardHost {
    /// Makes a ring and opens a shard on the calling thread, which is the only one that may use it.
    /// Blocks until the log is replayed.
    pub fn open(
        helpers: &Helpers,
        identity: ShardIdentity,
        config: ShardConfig,
        seed: [u8; 16],
    ) -> Result<Self, OpenError> {
        let io = UringIo::new(&UringOptions::default(), helpers)?;
        for note in io.notes() {
            tracing::info!(core = identity.log_id, note, "the ring");
        }
        let shard = Shard::open(io, identity, config, seed, clock::now())?;
        Ok(Self { shard })
    }

    /// Damaged places that the scrub knows, the first as sentences.
    pub fn damaged(&self) -> Vec<String> {
        let shown = self.shard.damages().take(DAMAGED_SHOWN_MAX);
        shown.map(status::damage).collect()
    }

    /// For waiting until a poll brings something.
    pub fn event_fd(&mut self) -> io::Result<RingEvent> {
        let event = self.shard.io_mut().event_fd();
        event.try_clone_to_owned().map(RingEvent)
    }

    /// Puts a request.
    pub fn submit(&mut self, now: Now, request: Request) -> Result<Ticket, Refused> {
        self.shard.submit(now, request)
    }

    /// Moves everything on and appends what came of it.
    pub fn poll(&mut self, now: Now, events: &mut Vec<Event>) {
        self.shard.poll(now, events);
    }

    /// As [`Self::poll`], but leaves a batch open that has room.
    pub fn poll_and_gather(&mut self, now: Now, events: &mut Vec<Event>) {
        self.shard.poll_and_gather(now, events);
    }

    /// Whether new mail could be taken now.
    pub fn takes_mail(&self, now: Now) -> Result<(), Refused> {
        self.shard.takes_mail(now)
    }

    /// Whether an open batch waits for nothing but [`Self::poll`].
    pub fn is_gathering(&self) -> bool {
        self.shard.is_gathering()
    }

    /// Requests that the shard took so far.
    pub fn taken(&self) -> u64 {
        self.shard.tickets_issued()
    }

    /// When to poll although nothing happened.
    pub fn next_deadline(&self) -> Option<MonotonicNs> {
        self.shard.next_deadline()
    }

    /// The shard's numbers.
    pub fn metrics(&self) -> Metrics {
        *self.shard.metrics()
    }
}

/// The runtime's own ring could not be made: the same sentence as for the engine's.
pub fn no_ring(error: &io::Error) -> OpenError {
    OpenError::NoRing {
        reason: format!("the kernel refuses a ring for sockets: {error}"),
    }
}
