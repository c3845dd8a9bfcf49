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
//! Switches of [`SimConfig`]: slow ops; short transfers (the op goes on by itself, with a crash point
//! between); an errno at the k-th step; no room from a given byte on; a failed sync *with pages marked
//! clean*, the cache then evicted or not; a lost log write; whole 4 KiB blocks in flight turned into
//! garbage (`harsh`); a crash at the k-th change. [`SimDisk::flip`] is bit rot.
//!
//! After its crash point a disk is frozen: every op fails with EIO and nothing changes any more, so
//! that a program under test comes to its end. [`SimDisk::crash`] then gives the image it restarts
//! from; called again, another fate of the same moment.
//!
//! Left out: renaming directories, permissions, misdirected writes, errors of the medium that last.

mod config;
mod crash;
mod disk;
mod driver;
mod state;
mod steps;
mod store;
#[cfg(test)]
mod tests;

pub use config::{Crash, Fate, Model, SimConfig};
pub use disk::SimDisk;
pub use driver::SimIo;
