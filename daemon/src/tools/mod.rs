//! The programs beside the daemon: the shim that an MTA calls, and the operator's tool.

pub mod cli;
pub mod deliver;
pub mod man;
