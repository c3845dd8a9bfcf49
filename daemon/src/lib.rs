//! The processes of a Ringpost node: `ringpostd`, `ringpost-deliver`, `ringpost`.
//!
//! Thin loops around decisions that are made elsewhere: the engine's shard and the sans-IO sessions.
//! Everything here that waits is in [`rt`], `core_loop`, `conn` and `listen`.
#![forbid(unsafe_code)]

pub mod accounts;
pub mod address;
pub mod client;
pub mod clock;
pub mod config;
pub mod exit;
pub mod lmtp;
pub mod mesh;
pub mod rt;
pub mod tools;
