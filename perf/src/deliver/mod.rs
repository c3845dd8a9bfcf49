//! `deliver`: messages into a daemon, measured, and checked against what it stored.

mod link;
mod lmtp;
mod load;
mod plan;
mod session;
mod tally;
