//! `deliver`: messages into a daemon, measured, and checked against what it stored.
//!
//! One call measures every size with every number in flight, each in a cell of its own with a
//! daemon of its own on an empty folder, beside the limits of disk and sockets in the same call.

mod args;
pub(crate) mod attic;
pub(crate) mod cell;
mod echo;
mod fake;
pub(crate) mod link;
pub(crate) mod lmtp;
mod load;
pub(crate) mod matrix;
pub(crate) mod mda;
pub(crate) mod node;
pub(crate) mod plan;
mod preset;
mod report;
pub(crate) mod run;
pub(crate) mod session;
pub(crate) mod tally;
pub(crate) mod verify;
pub(crate) mod window;

pub(crate) use args::Args;
pub(crate) use cell::Witness;
pub(crate) use preset::Preset;
pub(crate) use run::run;
