//! What cores and the control thread say to each other through the [`mesh`](crate::mesh). Bodies
//! travel by pointer; a letter is a few words.

use std::sync::Arc;

use ringpost_engine::error::{Fatal, OpenError};
use ringpost_engine::metrics::Metrics;
use ringpost_engine::request::{Event, Refused, Request};

use crate::accounts::Accounts;
use crate::rt::Socket;

/// From one endpoint of the mesh to another.
#[derive(Debug)]
pub enum Letter {
    /// A request for the receiver's shard, from a core that keeps `slot` for the answer.
    Ask {
        /// Names the waiting caller at the sender.
        slot: usize,
        /// What is asked.
        request: Box<Request>,
    },
    /// The answer to an [`Letter::Ask`].
    Answer {
        /// As asked.
        slot: usize,
        /// What came of it.
        answer: Box<Answer>,
    },
    /// A connection to serve.
    Guest(Box<Guest>),
    /// What was reloaded.
    Settings(Arc<Settings>),
    /// Asks for a [`Letter::Reported`] with the same number.
    Report(usize),
    /// The numbers of a core.
    Reported(usize, Box<CoreReport>),
    /// Take no new transactions; say [`Word::Quiet`] when the last connection is gone.
    CloseDoors,
    /// Close connections however they are.
    CutOff,
    /// Checkpoint, mark clean, say [`Word::Drained`].
    Drain,
    /// End the thread.
    Stop,
    /// To the control thread.
    Word(Box<Word>),
}

/// What a core tells the control thread.
#[derive(Debug)]
pub enum Word {
    /// The shard is open and the core serves.
    Serving,
    /// The shard cannot be opened.
    OpenFailed(OpenError),
    /// No connection is left.
    Quiet,
    /// The shard is drained.
    Drained,
    /// The shard stopped for good: the process must end.
    Fatal(Fatal),
}

/// What came of a request.
#[derive(Debug)]
pub enum Answer {
    /// The shard's event for it.
    Event(Event),
    /// It was not taken.
    Refused(Refused),
}

/// A connection on its way to a core.
#[derive(Debug)]
pub struct Guest {
    /// Blocking: the ring waits for it.
    pub socket: Socket,
    /// Which protocol it speaks.
    pub door: Door,
    /// Who it is, for logs and `Received`-like traces.
    pub peer: String,
    /// What it may ask for.
    pub trust: Trust,
    /// Its place among `connections_max`; given back when dropped.
    pub place: Place,
}

/// A protocol.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Door {
    /// The node protocol.
    Node,
    /// LMTP.
    Lmtp,
}

impl Door {
    /// As in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Lmtp => "lmtp",
        }
    }
}

/// What a peer may ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trust {
    /// Deliver.
    Deliver,
    /// Read mail as well.
    Read,
}

/// One of `connections_max`: an [`Arc`] whose count is the number of connections.
#[derive(Clone, Debug)]
pub struct Place(pub Arc<()>);

/// What SIGHUP replaces on every core.
#[derive(Debug, Default)]
pub struct Settings {
    /// Who has an account.
    pub accounts: Accounts,
    /// Whether a `Return-Path:` is put on top.
    pub return_path: bool,
}

/// Damaged places that a core's report names; how many there are stands in its numbers.
pub const DAMAGED_SHOWN_MAX: usize = 50;

/// The numbers of one core at one moment.
#[derive(Clone, Debug, Default)]
pub struct CoreReport {
    /// Which core.
    pub core: usize,
    /// Its shard's.
    pub shard: Metrics,
    /// Its doors', by [`Door`].
    pub doors: [DoorReport; 2],
    /// Damaged places that its scrub knows, as sentences; at most [`DAMAGED_SHOWN_MAX`].
    pub damaged: Vec<String>,
    /// Requests to other cores without an answer.
    pub asked: usize,
    /// Letters that wait since a receiver is behind.
    pub mesh_backlog: usize,
    /// Bytes of messages being received.
    pub receiving_bytes: u64,
    /// When the report was made, on the engine's clock.
    pub monotonic_ns: u64,
}

/// The numbers of one door on one core.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DoorReport {
    /// Open connections.
    pub connections: u64,
    /// Connections so far.
    pub accepted: u64,
    /// Recipients answered: stored.
    pub stored: u64,
    /// Recipients answered: duplicate.
    pub duplicate: u64,
    /// Recipients answered: refused for the time being.
    pub deferred: u64,
    /// Recipients answered: refused for good.
    pub rejected: u64,
    /// Bytes of messages received.
    pub received_bytes: u64,
}
