//! Frames on this node's medium, taken apart by partition: what counts is published, the rest is held.

use std::collections::BTreeMap;

use ringpost_netproto::id::PartitionId;
use smallvec::SmallVec;

use super::ship::Kept;
use super::{Answers, Frame, Gate, Held, Piece, Recorded, Records};
use crate::canary::{self, Canary};
use crate::io::Io;
use crate::pending::{Entry, What};
use crate::position::{DurableTo, Lsn};
use crate::request::{Event, Led as LedAt, Now};
use crate::shard::Shard;
use crate::shard::append::{Append, Decided, Mark, Part, PartOf};
use crate::user::{Lag, State};

impl<I: Io> Shard<I> {
    /// Takes a frame apart that is on this node's medium.
    pub(in crate::shard) fn hold_frame(&mut self, now: Now, end: Lsn, parts: Vec<Part>) {
        let start = std::mem::replace(&mut self.copies.last_end, end);
        let dedupe_next = parts.last().map_or(0, |part| part.dedupe_next);
        let frame = Frame::new(end, dedupe_next);
        self.copies.frames.push_back(frame);
        for part in parts {
            self.hold_part(now, Some((start, end)), part);
        }
        self.settle_frames();
    }

    /// Publishes or holds the pieces of a part. Without a frame it waits for what its partitions hold.
    pub(in crate::shard) fn hold_part(&mut self, now: Now, frame: Option<(Lsn, Lsn)>, part: Part) {
        match part.of {
            PartOf::Append(append, done) => {
                self.hold_append(now, frame, (append, done), &part.marks);
            }
            PartOf::Change(change, entries) => {
                let Some(mark) = part.marks.last().copied() else {
                    // Of a held box, or what a copy is refilled with.
                    let durable = self.begin_local(frame);
                    self.publish_change(change, entries, durable);
                    self.copies.publishing = None;
                    return;
                };
                let of = if self.is_led_here(mark.partition) {
                    Held::Change(change, entries)
                } else {
                    Held::Entries(self.fence_change(change, entries))
                };
                self.hold_piece(now, frame, (mark.partition, Some(mark)), of);
            }
            PartOf::Records(records) => self.hold_records(now, frame, records),
        }
    }

    /// An append by partition; what goes into held boxes counts at once.
    fn hold_append(
        &mut self,
        now: Now,
        frame: Option<(Lsn, Lsn)>,
        (append, done): (usize, SmallVec<[Decided; 1]>),
        marks: &[Mark],
    ) {
        let mut pieces: BTreeMap<PartitionId, SmallVec<[Decided; 1]>> = BTreeMap::new();
        let mut local = SmallVec::new();
        let is_given = self.appends.get(append).is_some_and(Append::is_given);
        for decided in done {
            let open = self.appends.get(append);
            let user = open.and_then(|open| open.users.get(decided.recipient));
            let Some(user) = user.map(|user| self.users.get(*user)) else {
                continue;
            };
            if is_given || user.is_local() {
                local.push(decided);
            } else {
                pieces.entry(user.partition).or_default().push(decided);
            }
        }
        if let Some(open) = self.appends.get_mut(append) {
            let more = pieces.len() + usize::from(!local.is_empty());
            let more = u32::try_from(more).expect("at most the recipients");
            open.parts = open.parts + more - 1;
        }
        if !local.is_empty() {
            let durable = self.begin_local(frame);
            self.publish_append(now, append, local, durable);
            self.copies.publishing = None;
        }
        for (partition, done) in pieces {
            let mut marks = marks.iter().rev();
            let mark = marks.find(|mark| mark.partition == partition).copied();
            let of = if self.is_led_here(partition) {
                Held::Append(append, done)
            } else {
                Held::Entries(self.fence_append(now, append, done))
            };
            self.hold_piece(now, frame, (partition, mark), of);
        }
    }

    /// What is this node's alone counts with its frame.
    fn begin_local(&mut self, frame: Option<(Lsn, Lsn)>) -> DurableTo {
        self.copies.publishing = frame.map(|(_, end)| end);
        let flushed = self.positions.flushed_to().lsn();
        self.positions.alone(flushed).expect("it is flushed")
    }

    /// Whether those who wait for an answer may get a good one.
    pub(super) fn is_led_here(&self, partition: PartitionId) -> bool {
        self.copies.gate(partition) != Gate::Follows
    }

    pub(super) fn hold_records(&mut self, now: Now, frame: Option<(Lsn, Lsn)>, records: Records) {
        if let Some((partition, epoch)) = records.promise {
            self.partitions_durable.promise(partition, epoch);
            if let Some(settled) = &mut self.copies.settled {
                settled.promise(partition, epoch);
            }
        }
        for (mark, recorded) in records.all {
            let of = match recorded {
                Recorded::Entry(user, entry) => {
                    Held::Entries(SmallVec::from_iter([(user, *entry)]))
                }
                Recorded::Barrier(ticket) => {
                    let place = self.copies.place(mark.partition);
                    place.leading.retain(|other| Some(*other) != ticket);
                    if self.is_led_here(mark.partition) {
                        Held::Barrier(ticket)
                    } else {
                        self.fence_barrier(mark.partition, ticket)
                    }
                }
            };
            self.hold_piece(now, frame, (mark.partition, Some(mark)), of);
        }
        match records.answers {
            Answers::Nobody => {}
            Answers::Replicate(request) => self.replicated(now, request),
            Answers::Cut(cut) => {
                let partition = cut.partition;
                self.cut_off(&cut, frame.map(|(_, end)| end));
                self.release_held(now, partition);
            }
            Answers::Resume(to) => self.resumed(&to, frame.map(|(_, end)| end)),
        }
    }

    pub(super) fn hold_piece(
        &mut self,
        now: Now,
        frame: Option<(Lsn, Lsn)>,
        (partition, mark): (PartitionId, Option<Mark>),
        of: Held,
    ) {
        let place = self.copies.places.get(&partition);
        let before = place.and_then(|place| place.held.back());
        let before = before.map(|piece| (piece.start, piece.end));
        // What only repeats something waits for no later frame: no peer may ever hear of that one.
        let repeated = before.filter(|_| mark.is_none() || frame.is_none());
        let at = match (repeated, frame) {
            (Some(before), _) => Some(before),
            (None, frame) => frame,
        };
        let (start, end) = at.unwrap_or_else(|| {
            let shown = self.shown_to(partition).lsn();
            (shown, shown)
        });
        let piece = Piece {
            start,
            end,
            mark,
            of,
        };
        match self.opens(partition, &piece) {
            Some(durable) if before.is_none() => self.publish_piece(now, partition, piece, durable),
            _ => self.copies.hold(partition, piece),
        }
    }

    /// Proof that a piece counts which nothing of its partition is held before, if it does.
    pub(super) fn opens(&mut self, partition: PartitionId, piece: &Piece) -> Option<DurableTo> {
        let alone = self.positions.alone(piece.end);
        // It repeats what counts.
        let Some(mark) = &piece.mark else {
            return alone;
        };
        let Some(place) = self.copies.places.get(&partition) else {
            return alone.filter(|_| self.copies.unsaid == Gate::Alone);
        };
        match place.gate {
            Gate::Alone => alone,
            Gate::Stream(_) if mark.pseq <= place.confirmed_pseq => alone,
            Gate::Stream(_) if place.is_numbered(mark) && !canary::on(Canary::CopyNotAwaited) => {
                None
            }
            Gate::Stream(stream) => self.positions.on_both(stream, piece.end),
            Gate::Follows => alone.filter(|_| mark.pseq <= place.commit_pseq),
            Gate::Undecided => None,
        }
    }

    /// Publishes what a partition holds as far as its gate is open.
    pub(super) fn release_held(&mut self, now: Now, partition: PartitionId) {
        let cutting = |place: &super::Place| place.cutting.is_some();
        if self.copies.places.get(&partition).is_some_and(cutting) {
            return;
        }
        loop {
            let place = self.copies.places.get_mut(&partition);
            let Some(piece) = place.and_then(|place| place.held.pop_front()) else {
                return;
            };
            let Some(durable) = self.opens(partition, &piece) else {
                let place = self.copies.place(partition);
                place.held.push_front(piece);
                return;
            };
            self.copies.let_go(piece.end);
            self.publish_piece(now, partition, piece, durable);
        }
    }

    pub(super) fn publish_piece(
        &mut self,
        now: Now,
        partition: PartitionId,
        piece: Piece,
        durable: DurableTo,
    ) {
        // What was confirmed by number is ahead of its stream.
        if let Gate::Stream(stream) = self.copies.gate(partition)
            && self.positions.on_both(stream, piece.end).is_some()
        {
            self.positions.shown(stream, piece.end);
        }
        if let Some(mark) = piece.mark {
            self.partitions_durable
                .advance(partition, mark.pseq, mark.chain, mark.epoch);
            if let Some(frame) = self.copies.frame(piece.end) {
                frame.marks.push(mark);
            }
            if let Some(place) = self.copies.places.get_mut(&partition) {
                let counts = |kept: &Kept| kept.mark.pseq <= mark.pseq;
                while place.kept.front().is_some_and(counts) {
                    place.kept.pop_front();
                }
            }
        }
        self.copies.publishing = Some(piece.end);
        match piece.of {
            Held::Append(append, done) => self.publish_append(now, append, done, durable),
            Held::Change(change, entries) => self.publish_change(change, entries, durable),
            Held::Entries(entries) => {
                for (user, entry) in entries {
                    self.publish_record(user, entry);
                }
            }
            Held::Barrier(ticket) => {
                if let (Some(ticket), Some(mark)) = (ticket, piece.mark) {
                    let result = Ok(LedAt {
                        pseq: mark.pseq,
                        chain: mark.chain,
                    });
                    self.answer(Event::Led { ticket, result });
                }
            }
        }
        self.copies.publishing = None;
    }

    /// Publishes a record of a user who may not be in memory.
    pub(super) fn publish_record(&mut self, index: usize, entry: Entry) {
        let user = self.users.get_mut(index);
        let loaded = matches!(user.state, State::Live(_));
        if let What::Create { name, .. } = &entry.what
            && user.name.is_none()
        {
            user.name = Some(std::sync::Arc::from(&name[..]));
        }
        if !loaded && entry.changes_mailboxes() {
            user.folders = Lag::Yes;
            let created = |entry: &Entry| matches!(entry.what, What::Create { .. });
            let created = user.unwritten().any(created);
            if !created {
                self.unfolded.push(index);
                self.start_load(index, None);
            }
        }
        let mut entries = SmallVec::new();
        entries.push(entry);
        self.publish_entries(index, entries);
        self.users.unpin(index);
        self.users.forget_if_idle(index);
    }
}
