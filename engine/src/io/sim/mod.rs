//! The simulated disk. One seed, one thread, virtual time, no randomly ordered maps: the same seed and
//! the same calls give the same trace, byte for byte.
//!
//! # The fault model
//!
//! A file has a durable image, and completed writes that are not durable yet; readers see both. Names
//! and sizes are operations of their own. Ops are split into single steps (a materialise into its
//! writes, a replace into create, write, sync, rename); ops in flight complete in any order, and a
//! crash can come before any step.
//!
//! | operation | durable |
//! |---|---|
//! | buffered write, size, create, rename, link, unlink | after a sync of file, directory, tree; or by chance |
//! | `LogWrite` | its own range, at completion; before that sector by sector, old or new by chance |
//! | `Sync` of a file | data and size written before it began; its name only in [`Model::Ext4`] |
//! | `SyncDir`, `SyncTree` | the directory's names; everything completed before the call |
//!
//! A crash draws a fate for each pending item. [`Model::Ext4`]: names persist in order, a prefix of
//! what was done, and a size never before its data. [`Model::Weak`] (after ALICE, OSDI 2014): any
//! subset of names, sizes without data. Data persists by sectors of 512 bytes, each at any of its
//! versions since the last sync. [`Crash::PowerCut`] forgets caches; [`Crash::Kill`] keeps them, and
//! log writes in flight may still land until that file's next sync.
//!
//! Errors, each a switch of [`SimConfig`]:
//!
//! | fault | what happens |
//! |---|---|
//! | slow, short | a step takes many times as long; a transfer goes on in two steps, with a crash point between |
//! | `error_at` | the k-th step, of all or of a class, fails with an errno; a write does a part first |
//! | `sync_error_at` | EIO *with pages marked clean*, the cache then evicted or not: this `Io`'s next sync of the tree lies, each other one's fails, and so does the next sync of each file that a failed `SyncTree` was to write |
//! | `capacity_bytes`, `inodes_max`, `links_max` | no room from a given byte, file or name on: ENOSPC, EDQUOT, EMLINK |
//! | `lost_write_at` | a log write is confirmed and not done |
//! | `sector_at` | one sector of a transfer to the medium is lost, or written over another one |
//! | `harsh` | a whole 4 KiB block in flight at a power cut turns into garbage, with what was in it; of log writes, or of all |
//! | `crash_at` | a crash before the k-th change |
//!
//! [`SimDisk::flip`] is bit rot, [`SimDisk::stray`] a sector over another one, [`SimDisk::spoil`] a
//! sector that cannot be read until it is written.
//! What is hurt on the medium is remembered ([`SimDisk::wounds`]), what no program could have avoided is
//! counted ([`SimDisk::faults`]): a test can tell what was done to a program from what it did itself.
//!
//! After its crash point a disk is frozen: every op fails with EIO and nothing changes any more, so
//! that a program under test comes to its end. [`SimDisk::crash`] then gives the image it restarts
//! from; called again, another fate of the same moment.
//!
//! Three planted bugs live here, since they are the kernel's side of the engine's ring
//! ([`Canary`](crate::canary::Canary)): log writes that are not durable, short ones taken as whole, and buffers
//! that are filled again too early.
//!
//! Left out: renaming directories, permissions, write-back that reorders within a sector.

mod config;
mod crash;
mod disk;
mod driver;
mod medium;
mod state;
mod steps;
mod store;
#[cfg(test)]
mod tests;

pub use config::{Among, Crash, Fate, Harsh, Model, Sector, SimConfig, StepError, Wound};
pub use disk::SimDisk;
pub use driver::SimIo;
