//! `deliver`: messages into a daemon, measured, and checked against what it stored.

mod fake;
mod link;
mod lmtp;
mod load;
mod mda;
mod node;
mod plan;
mod session;
mod tally;
mod verify;
