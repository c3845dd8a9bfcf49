//! The mail of one node: a synchronous state machine over `trait Io`.
#![deny(unsafe_code)]

pub mod check;
pub mod config;
pub mod error;
pub mod format;
pub mod header_cache;
pub mod io;
pub mod large;
pub mod limits;
pub mod mbox;
pub mod position;
pub mod prepare;
pub mod request;
