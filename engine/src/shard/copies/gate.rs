//! Who is asked for a partition, and what they said: gates are set and opened.

use ringpost_netproto::id::PartitionId;

use super::{Gate, Job, Place};
use crate::io::Io;
use crate::position::Lsn;
use crate::request::{Copy, Now, StreamId};
use crate::shard::Shard;

impl<I: Io> Shard<I> {
    /// A peer has all records of a stream in frames up to `upto` (of
    /// [`Event::Sealed`](crate::request::Event)) on its medium.
    /// Saying so twice, or late, does no harm. Answers come out of the next [`Self::poll`].
    pub fn copied(&mut self, now: Now, stream: StreamId, upto: Lsn) {
        self.positions.copied(stream, upto);
        self.release_stream(now, stream);
        self.settle_frames();
    }

    pub(super) fn release_stream(&mut self, now: Now, stream: StreamId) {
        while let Some((end, partition)) = self.next_of(stream) {
            if self.positions.on_both(stream, end).is_none() {
                return;
            }
            if let Some(order) = self.copies.orders.get_mut(&stream) {
                order.pop_front();
            }
            self.release_held(now, partition);
        }
    }

    /// The partition that a stream's order names next.
    pub(super) fn next_of(&self, stream: StreamId) -> Option<(Lsn, PartitionId)> {
        self.copies.orders.get(&stream)?.front().copied()
    }

    /// A peer has a partition's records up to `pseq` on its medium: for those that were handed out
    /// again, or brought by other means, and so for all before them.
    pub fn copied_to(&mut self, now: Now, partition: PartitionId, pseq: u64) {
        let sealed = self.copies.places.get(&partition);
        let sealed = sealed.and_then(|place| place.kept.back());
        let known = sealed.map_or(0, |kept| kept.mark.pseq);
        let durable = self.partitions_durable.last(partition).0;
        if self.copies.places.contains_key(&partition) {
            let place = self.copies.place(partition);
            place.confirmed_pseq = place.confirmed_pseq.max(pseq.min(known.max(durable)));
            self.release_held(now, partition);
            self.settle_frames();
        }
    }

    /// The order of the log among what a stream's partitions hold.
    pub(super) fn reorder(&mut self, stream: StreamId) {
        let mut order: Vec<(Lsn, PartitionId)> = Vec::new();
        for (partition, place) in &self.copies.places {
            if place.gate == Gate::Stream(stream) {
                order.extend(place.held.iter().map(|piece| (piece.end, *partition)));
            }
        }
        order.sort_by_key(|(end, _)| *end);
        self.copies.orders.insert(stream, order.into());
    }

    /// Says which copy a partition has from here on (cluster.md 5). What is held goes on waiting under
    /// the new rule: [`Copy::None`] lets it go, a stream is handed all of it by
    /// [`Event::ShippedAgain`](crate::request::Event), [`Copy::Follows`] fences those who wait for an answer.
    pub fn set_copy(&mut self, now: Now, partition: PartitionId, copy: Copy) {
        if !self.identity.owns_partition(partition) {
            return;
        }
        let gate = match copy {
            Copy::None => Gate::Alone,
            Copy::Stream(stream) => Gate::Stream(stream),
            Copy::Follows => Gate::Follows,
        };
        if self.copies.are_none() && gate == Gate::Alone {
            return;
        }
        let place = self.begin_place(partition);
        // A lead that waits for its turn begins with what was said last.
        for job in &mut place.jobs {
            if let Job::Lead(wish) = job
                && copy != Copy::Follows
            {
                wish.copy = copy;
            }
        }
        let before = std::mem::replace(&mut place.gate, gate);
        if before == gate {
            return;
        }
        (place.confirmed_pseq, place.shipped_from) = (0, None);
        for gate in [before, gate] {
            if let Gate::Stream(stream) = gate {
                self.reorder(stream);
            }
        }
        if let Gate::Stream(stream) = before
            && !self
                .copies
                .places
                .values()
                .any(|place| place.gate == before)
        {
            self.copies.orders.remove(&stream);
            self.positions.close(stream);
        }
        match gate {
            Gate::Stream(_) => self.ship_again(partition),
            Gate::Follows => self.fence(now, partition),
            Gate::Alone | Gate::Undecided => {}
        }
        self.release_held(now, partition);
        self.settle_frames();
    }

    /// What is known of a partition; from the first one on frames are taken apart.
    pub(super) fn begin_place(&mut self, partition: PartitionId) -> &mut Place {
        if self.copies.are_none() {
            self.copies.last_end = self.positions.flushed_to().lsn();
            self.copies.settled_to = self.copies.last_end;
            self.copies.settled = Some(self.partitions_durable.clone());
        }
        self.copies.place(partition)
    }
}
