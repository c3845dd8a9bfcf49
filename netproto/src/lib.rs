//! The node protocol of Ringpost without sockets, disks or clocks, and the arithmetic of placement.
//!
//! Bytes in, values out: [`codec`] and [`session`] are state machines that a caller feeds, so that a
//! table, a fuzzer or a simulated link can drive them. `PROTOCOL.md` is the specification.
//!
//! | module | owns |
//! |---|---|
//! | [`frame`] | the 64-byte header; the tables of kinds, opcodes and statuses |
//! | [`wire`] | the offset tables of all structs |
//! | [`codec`] | bytes to frames and back |
//! | [`message`] | payloads: deliver, list, mailboxes, fetch, status report |
//! | [`version`] | HELLO |
//! | [`session`] | client and server: requests, credit, streams |
//! | [`limits`], [`error`] | every bound; errors by guilt |
//! | [`id`], [`placement`] | ids of wire and disk; name to partition to core |
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod codec;
pub mod error;
pub mod frame;
pub mod id;
pub mod limits;
pub mod message;
pub mod placement;
pub mod session;
pub mod version;
pub mod wire;
