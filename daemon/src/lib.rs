//! The processes of a Ringpost node: `ringpostd`, `ringpost-deliver`, `ringpost`.
//!
//! Thin loops around decisions that are made elsewhere: the engine's shard and the sans-IO sessions.
//! What waits is in [`rt`], [`core_loop`], [`conn`], [`listen`] and [`node`]; what decides is in
//! [`delivery`], [`spill`], [`accounts`], [`config`], [`lmtp`].
#![forbid(unsafe_code)]

pub mod accounts;
pub mod address;
pub mod admin;
pub mod bodies;
pub mod client;
pub mod clock;
pub mod config;
pub mod conn;
pub mod core_loop;
pub mod delivery;
pub mod delivery_id;
pub mod exit;
pub mod flame;
pub mod gate;
pub mod gather;
pub mod import;
pub mod letter;
pub mod listen;
pub mod lmtp;
pub mod logs;
pub mod mesh;
pub mod node;
pub mod reading;
pub mod rt;
pub mod shard_host;
pub mod spill;
pub mod status;
pub mod tools;
