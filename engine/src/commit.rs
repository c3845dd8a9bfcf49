//! The positions of a shard's log: who may move which, and in what order (storage.md 1.2, 4.1).
//!
//! This is the only place that makes a [`DurableTo`], so every positive answer passes through it.
//! With second copies each stream has a `DurableTo` and a `VisibleTo` of its own; the shard's are the
//! least of all, below which nothing waits for anybody. It touches no file.

use std::collections::BTreeMap;

use crate::canary::{self, Canary};
use crate::position::{CheckpointedTo, DurableTo, FlushedTo, Lsn, VisibleTo, WrittenTo};

use crate::request::StreamId;

/// The five positions; `CheckpointedTo <= VisibleTo <= DurableTo <= FlushedTo <= WrittenTo`.
#[derive(Clone, Debug)]
pub(crate) struct Positions {
    written: WrittenTo,
    flushed: FlushedTo,
    durable: DurableTo,
    visible: VisibleTo,
    checkpointed: CheckpointedTo,
    /// Empty with one copy.
    streams: BTreeMap<StreamId, Stream>,
}

/// One secondary.
#[derive(Clone, Copy, Debug)]
struct Stream {
    /// What it confirmed.
    copied: Lsn,
    durable: DurableTo,
    visible: VisibleTo,
}

impl Positions {
    /// After recovery: all below `end` was read back from the medium, all below `checkpointed` is
    /// in segments and index.
    /// What lies above `confirmed` waits for a second copy.
    pub(crate) fn recovered(checkpointed: Lsn, confirmed: Lsn, end: Lsn) -> Self {
        let positions = Self {
            written: WrittenTo::new(end),
            flushed: FlushedTo::new(end),
            durable: DurableTo::new(confirmed),
            visible: VisibleTo::new(confirmed),
            checkpointed: CheckpointedTo::new(checkpointed),
            streams: BTreeMap::new(),
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

    /// All frames up to `end` are on the medium: durable, if nothing in them waits for a copy.
    pub(crate) fn flushed(&mut self, end: Lsn) {
        self.flushed = FlushedTo::new(end);
        self.check();
    }

    /// Nothing up to `end` waits for a copy.
    pub(crate) fn settled(&mut self, end: Lsn) -> DurableTo {
        self.durable = DurableTo::new(end);
        self.check();
        self.durable
    }

    /// For a record in a frame that ends at `end` and waits for nobody but this medium.
    pub(crate) fn alone(&self, end: Lsn) -> Option<DurableTo> {
        (end <= self.flushed.lsn()).then(|| DurableTo::new(end))
    }

    /// A peer confirmed all of its stream up to `upto`; said twice it is true once. It cannot confirm
    /// what was never handed to it.
    pub(crate) fn copied(&mut self, stream: StreamId, upto: Lsn) {
        let upto = upto.min(self.written.lsn());
        let known = self.stream(stream);
        known.copied = known.copied.max(upto);
        self.advance(stream);
    }

    /// For a record of a stream in a frame that ends at `end`: proof once it is on both media.
    pub(crate) fn on_both(&mut self, stream: StreamId, end: Lsn) -> Option<DurableTo> {
        if canary::on(Canary::CopyNotAwaited) {
            return self.alone(end);
        }
        let durable = self.advance(stream);
        (end <= durable.lsn()).then(|| DurableTo::new(end))
    }

    /// All records of a stream up to `end` are published.
    pub(crate) fn shown(&mut self, stream: StreamId, end: Lsn) {
        let known = self.stream(stream);
        known.visible = VisibleTo::new(end.max(known.visible.lsn()));
        self.check();
    }

    /// No partition has this stream any more.
    pub(crate) fn close(&mut self, stream: StreamId) {
        self.streams.remove(&stream);
    }

    fn stream(&mut self, stream: StreamId) -> &mut Stream {
        let zero = Lsn::new(0);
        self.streams.entry(stream).or_insert(Stream {
            copied: zero,
            durable: DurableTo::new(zero),
            visible: VisibleTo::new(zero),
        })
    }

    /// A stream is durable as far as both media have it.
    fn advance(&mut self, stream: StreamId) -> DurableTo {
        let flushed = self.flushed.lsn();
        let known = self.stream(stream);
        let both = known.copied.min(flushed).max(known.durable.lsn());
        known.durable = DurableTo::new(both);
        let durable = known.durable;
        self.check();
        durable
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
        let each = self.streams.values().all(|stream| {
            let planted = canary::on(Canary::CopyNotAwaited);
            (planted || stream.visible.lsn() <= stream.durable.lsn())
                && stream.durable.lsn() <= self.flushed.lsn()
        });
        assert!(ordered && each, "positions out of order: {self:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recovered(end: u64) -> Positions {
        Positions::recovered(Lsn::new(0), Lsn::new(end), Lsn::new(end))
    }

    #[test]
    fn positions_advance_in_order() {
        let mut positions = recovered(4096);
        positions.submitted(Lsn::new(8192));
        positions.flushed(Lsn::new(8192));
        assert_eq!(positions.settled(Lsn::new(8192)).lsn(), Lsn::new(8192));
        positions.published();
        positions.checkpointed(Lsn::new(8192));
        assert_eq!(positions.checkpointed_to().lsn(), Lsn::new(8192));
    }

    #[test]
    fn a_stream_is_durable_on_both_media_only() {
        let mut positions = recovered(0);
        let (peer, end) = (StreamId::new(1), Lsn::new(4096));
        positions.submitted(end);
        positions.copied(peer, Lsn::new(1 << 40));
        assert_eq!(positions.on_both(peer, end), None, "not flushed here");
        assert_eq!(positions.alone(end), None);
        positions.flushed(end);
        let proof = positions.on_both(peer, end).expect("both have it");
        assert_eq!(proof.lsn(), end);
        let other = StreamId::new(2);
        assert_eq!(positions.on_both(other, end), None, "not copied there");
        positions.copied(other, end);
        positions.copied(other, Lsn::new(0));
        assert!(positions.on_both(other, end).is_some(), "never taken back");
        let beyond = Lsn::new(8192);
        positions.submitted(beyond);
        positions.flushed(beyond);
        assert_eq!(positions.on_both(peer, beyond), None);
        positions.shown(peer, end);
    }

    #[test]
    #[should_panic(expected = "out of order")]
    fn nothing_is_on_the_medium_before_it_was_written() {
        recovered(0).flushed(Lsn::new(4096));
    }

    #[test]
    #[should_panic(expected = "out of order")]
    fn nothing_is_durable_before_it_is_on_the_medium() {
        let mut positions = recovered(0);
        positions.submitted(Lsn::new(4096));
        positions.settled(Lsn::new(4096));
    }

    #[test]
    #[should_panic(expected = "out of order")]
    fn nothing_is_checkpointed_before_it_is_visible() {
        let mut positions = recovered(0);
        positions.submitted(Lsn::new(4096));
        positions.flushed(Lsn::new(4096));
        positions.settled(Lsn::new(4096));
        positions.checkpointed(Lsn::new(4096));
    }
}
