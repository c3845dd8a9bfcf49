//! Where the time of a running process goes: stacks of its threads, taken by perf(1), as flame graphs and
//! tables, and against an earlier recording.
//!
//! Two clocks. [`Clock::Running`] samples the processor's clock (`cpu-clock`, which virtual machines have,
//! too): what a thread does. [`Clock::Waiting`] takes every switch away from a thread with its stack, and
//! counts the microseconds until it runs again: what it waits for, or that somebody else had the
//! processor. perf is a program of its own because taking stacks wants the kernel's help and, of other
//! users' processes, its permission (`kernel.perf_event_paranoid`).

pub mod record;
pub mod report;
pub mod stacks;
pub mod svg;

pub use record::{Clock, Recording, Unwind};
pub use report::Report;

/// Why nothing was recorded or drawn; a sentence with what to do.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct FlameError(pub String);
