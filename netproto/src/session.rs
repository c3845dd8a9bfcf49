//! Sessions: a connection's two ends as state machines without sockets or clocks.
//!
//! The caller moves bytes: what was read goes into `handle_input`, what `poll_transmit` gives is
//! written in that order, and after each input `poll_event` is asked until it has nothing. Three
//! duties keep memory bounded: take all events before the next input; stop reading while
//! `transmit_backlog` is above [`BACKLOG_BYTES_SOFT`](crate::limits::BACKLOG_BYTES_SOFT); call
//! `handle_close` when the connection ends. After a [`Violation`](crate::error::Violation) write
//! what is left in `poll_transmit` (the GOAWAY) and close.
//!
//! Deadlines, heartbeats and reconnects need a clock and are the caller's.

mod credit;
mod link;
mod outbox;

pub mod client;
pub mod server;

use crate::id::NodeId;
use crate::version::Hello;

/// How a session introduces itself and whom it expects.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// What the peer is told.
    pub hello: Hello,
    /// The node that must answer; `None`: any.
    pub expected_node: Option<NodeId>,
}

impl Config {
    /// Any peer is welcome that has the same cluster or does not know one.
    pub const fn new(hello: Hello) -> Self {
        Self {
            hello,
            expected_node: None,
        }
    }
}
