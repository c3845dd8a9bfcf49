//! The positions of a shard's log: who may move which, and in what order (storage.md 1.2, 4.1).
//!
//! This is the only place that makes a [`DurableTo`], so every positive answer passes through it.
//! It touches no file.

use crate::position::{CheckpointedTo, DurableTo, FlushedTo, Lsn, VisibleTo, WrittenTo};

/// The five positions; `CheckpointedTo <= VisibleTo <= DurableTo <= FlushedTo <= WrittenTo`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Positions {
    written: WrittenTo,
    flushed: FlushedTo,
    durable: DurableTo,
    visible: VisibleTo,
    checkpointed: CheckpointedTo,
}

impl Positions {
    /// After recovery: all below `end` was read back from the medium, all below `checkpointed` is
    /// in segments and index.
    pub(crate) fn recovered(checkpointed: Lsn, end: Lsn) -> Self {
        let positions = Self {
            written: WrittenTo::new(end),
            flushed: FlushedTo::new(end),
            durable: DurableTo::new(end),
            visible: VisibleTo::new(end),
            checkpointed: CheckpointedTo::new(checkpointed),
        };
        positions.check();
        positions
    }

    /// A frame that ends at `end` was handed to the kernel.
    pub(crate) fn submitted(&mut self, end: Lsn) {
        assert!(end >= self.written.lsn(), "frames are sealed in order");
        self.written = WrittenTo::new(end);
        self.check();
    }

    /// All frames up to `end` are on the medium. With one copy that makes them durable; with two,
    /// the peer's confirmation will have a say here.
    pub(crate) fn flushed(&mut self, end: Lsn) -> DurableTo {
        self.flushed = FlushedTo::new(end);
        self.durable = DurableTo::new(end);
        self.check();
        self.durable
    }

    /// All records up to `DurableTo` are published.
    pub(crate) fn published(&mut self) {
        self.visible = VisibleTo::new(self.durable.lsn());
        self.check();
    }

    /// A checkpoint's sync and superblock succeeded.
    pub(crate) fn checkpointed(&mut self, upto: Lsn) {
        self.checkpointed = CheckpointedTo::new(upto);
        self.check();
    }

    pub(crate) fn flushed_to(&self) -> FlushedTo {
        self.flushed
    }

    /// For a planted bug: what was only handed to the kernel proves nothing.
    pub(crate) fn written_to(&self) -> WrittenTo {
        self.written
    }

    pub(crate) fn durable_to(&self) -> DurableTo {
        self.durable
    }

    pub(crate) fn checkpointed_to(&self) -> CheckpointedTo {
        self.checkpointed
    }

    fn check(&self) {
        let ordered = self.checkpointed.lsn() <= self.visible.lsn()
            && self.visible.lsn() <= self.durable.lsn()
            && self.durable.lsn() <= self.flushed.lsn()
            && self.flushed.lsn() <= self.written.lsn();
        assert!(ordered, "positions out of order: {self:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_advance_in_order() {
        let mut positions = Positions::recovered(Lsn::new(0), Lsn::new(4096));
        positions.submitted(Lsn::new(8192));
        assert_eq!(positions.flushed(Lsn::new(8192)).lsn(), Lsn::new(8192));
        positions.published();
        positions.checkpointed(Lsn::new(8192));
        assert_eq!(positions.checkpointed_to().lsn(), Lsn::new(8192));
    }

    #[test]
    #[should_panic(expected = "out of order")]
    fn nothing_is_durable_before_it_was_written() {
        Positions::recovered(Lsn::new(0), Lsn::new(0)).flushed(Lsn::new(4096));
    }

    #[test]
    #[should_panic(expected = "out of order")]
    fn nothing_is_checkpointed_before_it_is_visible() {
        let mut positions = Positions::recovered(Lsn::new(0), Lsn::new(0));
        positions.submitted(Lsn::new(4096));
        positions.flushed(Lsn::new(4096));
        positions.checkpointed(Lsn::new(4096));
    }
}
