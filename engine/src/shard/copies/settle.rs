//! How far everything counts, and how far the log says so: what a checkpoint may write.

use ringpost_netproto::id::PartitionId;

use crate::io::Io;
use crate::position::{DurableTo, Lsn};
use crate::shard::Shard;
use crate::shard::partitions::Partitions;

impl<I: Io> Shard<I> {
    /// The partitions' states for a checkpoint at the least `DurableTo`.
    pub(in crate::shard) fn settled_partitions(&self) -> &Partitions {
        let settled = self.copies.settled.as_ref();
        settled.unwrap_or(&self.partitions_durable)
    }

    /// Where a checkpoint may end.
    pub(in crate::shard) fn settled_to(&self) -> Lsn {
        if self.copies.are_none() {
            self.positions.durable_to().lsn()
        } else {
            self.copies.settled_to
        }
    }

    /// The least `DurableTo`: all frames up to there hold nothing that waits.
    pub(super) fn settle_frames(&mut self) {
        while let Some(frame) = self.copies.frames.front()
            && frame.held_count == 0
        {
            self.positions.settled(frame.end);
            self.positions.published();
            let settled = self.copies.frames.pop_front();
            self.copies.unstated.extend(settled);
        }
        self.settle_stated();
    }

    /// What a frame on the medium says to count may go into files.
    pub(super) fn settle_stated(&mut self) {
        let stated = self.log.stated();
        while let Some(frame) = self.copies.unstated.front()
            && (frame.end <= stated || frame.is_empty())
        {
            self.dedupe_durable = self.dedupe_durable.max(frame.dedupe_next);
            if let Some(settled) = &mut self.copies.settled {
                for place in &frame.cuts {
                    settled.place_at(place);
                }
                for mark in frame.marks.iter().chain(&frame.void) {
                    let (partition, epoch) = (mark.partition, mark.epoch);
                    settled.advance(partition, mark.pseq, mark.chain, epoch);
                }
            }
            for (user, count) in &frame.users {
                self.users.get_mut(*user).ahead_count -= count;
            }
            self.copies.settled_to = frame.end;
            self.copies.unstated.pop_front();
        }
    }

    /// Up to where a user's records are published.
    pub(in crate::shard) fn shown_of(&self, user: usize) -> DurableTo {
        let user = self.users.get(user);
        if user.is_local() {
            let flushed = self.positions.flushed_to().lsn();
            return self.positions.alone(flushed).expect("it is flushed");
        }
        self.shown_to(user.partition)
    }

    /// Up to where a partition's records are published.
    pub(in crate::shard) fn shown_to(&self, partition: PartitionId) -> DurableTo {
        let place = self.copies.places.get(&partition);
        let first = place.and_then(|place| place.held.front());
        let Some(first) = first else {
            // Nothing is held: what is on this medium counts.
            let flushed = self.positions.flushed_to().lsn();
            return self.positions.alone(flushed).expect("it is flushed");
        };
        let proven = self.positions.alone(first.start);
        proven.expect("a held piece lies on this medium")
    }
}
