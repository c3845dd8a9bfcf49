//! The node protocol of Ringpost without sockets, disks or clocks, and the arithmetic of placement.
//!
//! Bytes in, values out: [`codec`](crate) and sessions are state machines that a caller feeds, so
//! that a table, a fuzzer or a simulated link can drive them. `PROTOCOL.md` is the specification.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod id;
pub mod placement;
