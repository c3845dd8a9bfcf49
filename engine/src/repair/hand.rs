//! What does the changes of a repair, or of a new number of cores: a disk, or a
//! [`Layer`](super::layer::Layer) that only thinks them.

use crate::check::ReadTree;
use crate::error::IoError;
use crate::io::{Done, Io, Op, RelPath, Step, Work, WorkSync};
use crate::ops::{Ops, unreachable_done};

/// A tree that can be changed.
pub trait Hand: ReadTree {
    /// Does the steps in order; all of them are durable when it returns.
    fn apply(&mut self, steps: Vec<Step>) -> Result<(), IoError>;
}

/// A real data directory, or a simulated one: read by `tree`, changed by operations of an `Io`.
pub struct Disk<'a, I> {
    tree: &'a dyn ReadTree,
    ops: Ops<I>,
}

impl<'a, I: Io> Disk<'a, I> {
    /// `io` changes what `tree` reads.
    pub fn new(tree: &'a dyn ReadTree, io: I) -> Self {
        Self {
            tree,
            ops: Ops::new(io),
        }
    }

    /// Makes durable whatever was written before.
    pub(super) fn sync(&mut self) -> Result<(), IoError> {
        self.ops.run_plain(Op::SyncTree).map(drop)
    }
}

impl<I: Io> ReadTree for Disk<'_, I> {
    fn list(&self, dir: &RelPath) -> Result<Vec<(String, u64)>, IoError> {
        self.tree.list(dir)
    }

    fn read(&self, file: &RelPath, offset: u64, len: usize) -> Result<Vec<u8>, IoError> {
        self.tree.read(file, offset, len)
    }
}

impl<I: Io> Hand for Disk<'_, I> {
    fn apply(&mut self, steps: Vec<Step>) -> Result<(), IoError> {
        if steps.is_empty() {
            return Ok(());
        }
        let sync = WorkSync::Each;
        match self
            .ops
            .run_plain(Op::Materialise(vec![Work { steps, sync }]))?
        {
            Done::Materialised { .. } => Ok(()),
            other => unreachable_done(&other),
        }
    }
}
