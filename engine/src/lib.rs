//! The mail of one node (storage.md): a synchronous state machine behind [`io::Io`].
//!
//! A [`Shard`] is one core's part of a [`store::Store`]. Requests and completions go in, operations and
//! events come out; it knows disks and mail, and neither sockets nor clocks nor randomness.
//!
//! # The contract
//!
//! When an append is answered [`request::Outcome::Stored`], the message survives kill -9, a kernel
//! crash and a power cut of a device that honours flush, and comes back byte for byte.
//!
//! 1. An acknowledged message is there exactly once, in its mailbox, under its uid, after any crash.
//! 2. An unacknowledged message is wholly there or wholly absent, never half visible.
//! 3. Readers see durable records only. Uid, uidvalidity and modseq never go back.
//! 4. Answers of one shard leave in log order.
//! 5. One bad block costs the records in it: it is detected, named and never served.
//! 6. Nothing is deleted without durable evidence that it is dead.
//!
//! The bytes on disk are specified in `FORMAT.md` and defined in [`format`](mod@format).
#![deny(unsafe_code)]

pub mod backup;
#[cfg(not(feature = "sim"))]
mod canary;
#[cfg(feature = "sim")]
pub mod canary;
pub mod check;
mod commit;
pub mod config;
mod dedupe;
pub mod error;
pub mod format;
pub mod header_cache;
pub mod held;
mod index;
pub mod io;
pub mod large;
pub mod layout;
pub mod limits;
mod log;
pub mod mailbox_name;
pub mod mbox;
pub mod metrics;
pub mod offline;
mod ops;
mod pending;
pub mod position;
pub mod prepare;
pub mod repair;
pub mod request;
mod shard;
mod space;
pub mod store;
mod tail;
mod user;

pub use shard::{Shard, ShardIdentity};
