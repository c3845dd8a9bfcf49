//! Second copies (storage.md 1.5): which partition waits for whom, and what waits.
//!
//! A frame on this node's medium is taken apart by partition. A piece whose partition has one copy is
//! published at once; any other is *held* until its gate opens: its stream confirmed the frame, or
//! the partition's primary committed the record. Within a partition pieces leave in the order of the
//! log, and so do those of one stream; one slow peer holds back no other. What is held lies in the
//! log alone: a checkpoint ends below the first frame with a held piece.
//!
//! Without copies nothing here is touched but one test of a flag per frame and request. `ship` hands
//! records out, `replicate` takes them in, `lead` changes who leads, `cut` takes records back.

mod cut;
mod lead;
mod numbers;
mod replicate;
mod ship;

use std::collections::{BTreeMap, VecDeque};

use ringpost_netproto::id::{Epoch, PartitionId};
use smallvec::SmallVec;

use super::Shard;
use super::append::{Decided, Mark, Part, PartOf};
use super::partitions::Partitions;
use crate::canary::{self, Canary};
use crate::io::Io;
use crate::pending::{Entry, What};
use crate::position::{DurableTo, Lsn};
use crate::request::{Copy, Event, Led as LedAt, Now, Refused, StreamId, Ticket};
use crate::user::{Lag, State};

use replicate::Replicating;
use ship::Kept;
pub(super) use ship::{Wrapped, replicas};

/// Who has to have a partition's records before they count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Gate {
    /// This node alone.
    Alone,
    /// And the peer behind this stream.
    Stream(StreamId),
    /// Its primary, another node, says.
    Follows,
    /// Nobody has said since the restart.
    Undecided,
}

/// One partition.
struct Place {
    gate: Gate,
    /// Whether this node may give uids: a node that comes back takes the peer's lead back first.
    led: Led,
    held: VecDeque<Piece>,
    /// Up to here the primary said so, of records that are proven to be its own.
    commit_pseq: u64,
    /// Up to here the peer of the stream said so, by number.
    confirmed_pseq: u64,
    /// The first record in a frame that was handed to the stream as it was sealed: earlier ones are
    /// confirmed by number.
    shipped_from: Option<u64>,
    /// Sealed records that do not count yet.
    kept: VecDeque<Kept>,
    /// What other nodes want, in order.
    jobs: VecDeque<Job>,
    /// A cut is on its way to the medium.
    cutting: bool,
}

/// Whether this node may give numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Led {
    Here,
    NotYet,
}

/// Something that has its turn in a partition.
enum Job {
    /// Index of a request.
    Replicate(usize),
    Lead(lead::Wish),
    Cut(Ticket, u64),
}

impl Place {
    fn new(gate: Gate) -> Self {
        Self {
            gate,
            led: match gate {
                Gate::Alone | Gate::Stream(_) => Led::Here,
                Gate::Follows | Gate::Undecided => Led::NotYet,
            },
            held: VecDeque::new(),
            commit_pseq: 0,
            confirmed_pseq: 0,
            shipped_from: None,
            kept: VecDeque::new(),
            jobs: VecDeque::new(),
            cutting: false,
        }
    }

    /// The chain after a record that does not count yet.
    fn chain_at(&self, pseq: u64) -> Option<u32> {
        let mut kept = self.kept.iter();
        let found = kept.find(|kept| kept.mark.pseq == pseq);
        found.map(|kept| kept.mark.chain)
    }

    /// Whether its stream or number says that a piece is on both media; `None` if neither can.
    fn is_numbered(&self, mark: &Mark) -> bool {
        self.shipped_from.is_none_or(|first| mark.pseq < first)
    }
}

/// A frame on this medium of which something is held, or that stands behind such a one.
pub(super) struct Frame {
    end: Lsn,
    held_count: usize,
    dedupe_next: u64,
    /// Of what counts.
    marks: Vec<Mark>,
    /// Users and how many of their pending entries are of it, as far as they count.
    pub(super) users: Vec<(usize, usize)>,
}

/// What waits: of one partition, and of one record or one answer.
struct Piece {
    start: Lsn,
    end: Lsn,
    /// The partition's place once it counts; `None` if it only repeats what stands before it.
    mark: Option<Mark>,
    of: Held,
}

/// What becomes of a piece that counts.
enum Held {
    Append(usize, SmallVec<[Decided; 1]>),
    Change(usize, SmallVec<[Entry; 1]>),
    /// Of which nobody waits to hear. Each pins its user.
    Entries(Entries),
    /// A barrier, and who asked for it.
    Barrier(Option<Ticket>),
}

/// A part of a frame that no append or change asked for.
pub(super) struct Records {
    /// Who is answered when it is on this medium.
    pub(super) answers: Answers,
    /// An epoch that is promised with it.
    pub(super) promise: Option<(PartitionId, Epoch)>,
    /// Each with its mark.
    pub(super) records: Vec<(Mark, Recorded)>,
}

/// A record of such a part.
pub(super) enum Recorded {
    /// Its user, pinned.
    Entry(usize, Box<Entry>),
    Barrier(Option<Ticket>),
}

/// A record that recovery found unconfirmed.
pub(super) struct Restored {
    pub(super) start: Lsn,
    pub(super) end: Lsn,
    pub(super) mark: Mark,
    /// Its user, pinned.
    pub(super) entry: Option<(usize, Entry)>,
    pub(super) shipped: Option<crate::request::Shipped>,
}

/// Entries with their users.
type Entries = SmallVec<[(usize, Entry); 1]>;

/// Who waits for the medium.
pub(super) enum Answers {
    Nobody,
    /// Index of a request of a primary.
    Replicate(usize),
    /// All above a record is void: partition and that record.
    Cut(Box<cut::Cut>),
}

/// The shard's second copies.
pub(super) struct Copies {
    /// Whether a partition of which nothing was said waits.
    unsaid: Gate,
    places: BTreeMap<PartitionId, Place>,
    /// Partitions with held pieces of a stream, one for each, in the order of the log.
    orders: BTreeMap<StreamId, VecDeque<(Lsn, PartitionId)>>,
    frames: VecDeque<Frame>,
    /// Where the last frame ended.
    last_end: Lsn,
    /// The partitions as of the least `DurableTo`, for a checkpoint; `None` without copies.
    settled: Option<Partitions>,
    requests: slab::Slab<Replicating>,
    /// The frame of the piece that is being published.
    publishing: Option<Lsn>,
    /// Partitions with a job that may be looked at.
    turns: VecDeque<PartitionId>,
}

impl Copies {
    pub(super) fn new(unsaid: Gate, end: Lsn) -> Self {
        Self {
            unsaid,
            places: BTreeMap::new(),
            orders: BTreeMap::new(),
            frames: VecDeque::new(),
            last_end: end,
            settled: None,
            requests: slab::Slab::new(),
            publishing: None,
            turns: VecDeque::new(),
        }
    }

    /// Whether no partition ever had a second copy since the shard was opened.
    pub(super) fn are_none(&self) -> bool {
        self.places.is_empty() && self.unsaid == Gate::Alone
    }

    fn gate(&self, partition: PartitionId) -> Gate {
        let place = self.places.get(&partition);
        place.map_or(self.unsaid, |place| place.gate)
    }

    fn place(&mut self, partition: PartitionId) -> &mut Place {
        let unsaid = self.unsaid;
        let place = self.places.entry(partition);
        place.or_insert_with(|| Place::new(unsaid))
    }

    /// Whether a frame's records go anywhere.
    pub(super) fn are_shipped(&self) -> bool {
        !self.are_none()
    }

    /// Requests of primaries that are open.
    pub(super) fn are_open(&self) -> bool {
        self.places
            .values()
            .any(|place| !place.jobs.is_empty() || place.cutting)
    }

    fn hold(&mut self, partition: PartitionId, piece: Piece) {
        let end = piece.end;
        let place = self.place(partition);
        place.held.push_back(piece);
        if let Gate::Stream(stream) = place.gate {
            self.orders
                .entry(stream)
                .or_default()
                .push_back((end, partition));
        }
        let frame = self.frames.iter_mut().rev().find(|frame| frame.end == end);
        if let Some(frame) = frame {
            frame.held_count += 1;
        } else {
            // Found by recovery.
            let dedupe_next = 0;
            self.frames.push_back(Frame {
                end,
                held_count: 1,
                dedupe_next,
                marks: Vec::new(),
                users: Vec::new(),
            });
        }
    }

    fn let_go(&mut self, end: Lsn) {
        let frame = self.frame(end).expect("a held piece's frame is known");
        frame.held_count -= 1;
    }

    /// The frame that what is published now lies in, if a checkpoint may not pass it yet.
    pub(super) fn publishing(&mut self) -> Option<&mut Frame> {
        let end = self.publishing?;
        self.frame(end)
    }

    fn frame(&mut self, end: Lsn) -> Option<&mut Frame> {
        let found = self.frames.binary_search_by_key(&end, |frame| frame.end);
        found.ok().and_then(|place| self.frames.get_mut(place))
    }

    /// What recovery found that nobody confirmed: the frames with it, in order, then the records.
    pub(super) fn restore(
        &mut self,
        settled: Partitions,
        frames: impl Iterator<Item = (Lsn, u64)>,
        records: impl Iterator<Item = Restored>,
    ) {
        self.settled = Some(settled);
        self.frames = frames
            .map(|(end, dedupe_next)| Frame {
                end,
                held_count: 0,
                dedupe_next,
                marks: Vec::new(),
                users: Vec::new(),
            })
            .collect();
        for record in records {
            let Restored {
                start,
                end,
                mark,
                entry,
                shipped,
            } = record;
            let place = self.place(mark.partition);
            if let Some(shipped) = shipped {
                place.kept.push_back(Kept { mark, end, shipped });
            }
            let of = match entry {
                Some(entry) => Held::Entries(SmallVec::from_iter([entry])),
                None => Held::Barrier(None),
            };
            let piece = Piece {
                start,
                end,
                mark: Some(mark),
                of,
            };
            self.hold(mark.partition, piece);
        }
    }

    /// Whether there are such entries.
    pub(super) fn holds(&self, partition: PartitionId, user: usize) -> bool {
        self.held_of(partition, user).next().is_some()
    }

    /// Entries of a user that do not count yet, in the order of the log.
    pub(super) fn held_of(
        &self,
        partition: PartitionId,
        user: usize,
    ) -> impl Iterator<Item = &Entry> + use<'_> {
        let place = self.places.get(&partition).into_iter();
        let pieces = place.flat_map(|place| &place.held);
        let entries = pieces.filter_map(|piece| match &piece.of {
            Held::Entries(entries) => Some(entries),
            _ => None,
        });
        let entries = entries.flatten().filter(move |(of, _)| *of == user);
        entries.map(|(_, entry)| entry)
    }
}

impl<I: Io> Shard<I> {
    /// The epoch of the records that this node writes for a partition.
    pub(super) fn epoch_of(&self, partition: PartitionId) -> Epoch {
        if self.copies.are_none() {
            return self.epoch;
        }
        self.partitions.leads(partition).unwrap_or(self.epoch)
    }

    /// Whether uids and modseqs of a partition are given here (cluster.md 1).
    pub(super) fn takes_changes(&self, partition: PartitionId) -> Result<(), Refused> {
        if self.copies.are_none() {
            return Ok(());
        }
        let place = self.copies.places.get(&partition);
        let gate = self.copies.gate(partition);
        let led = match place {
            Some(place) => place.led == Led::Here,
            None => matches!(gate, Gate::Alone),
        };
        let planted = canary::on(Canary::LeadNotTakenBack) && gate != Gate::Follows;
        if led || planted {
            return Ok(());
        }
        Err(Refused::Fenced {
            promised: self.partitions.promised(partition),
        })
    }

    /// Up to where a partition's records are published.
    pub(super) fn shown_to(&self, partition: PartitionId) -> DurableTo {
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

    /// The partitions' states for a checkpoint at the least `DurableTo`.
    pub(super) fn settled_partitions(&self) -> &Partitions {
        let settled = self.copies.settled.as_ref();
        settled.unwrap_or(&self.partitions_durable)
    }

    /// Takes a frame apart that is on this node's medium.
    pub(super) fn hold_frame(&mut self, now: Now, end: Lsn, parts: Vec<Part>) {
        let start = std::mem::replace(&mut self.copies.last_end, end);
        let dedupe_next = parts.last().map_or(0, |part| part.dedupe_next);
        self.copies.frames.push_back(Frame {
            end,
            held_count: 0,
            dedupe_next,
            marks: Vec::new(),
            users: Vec::new(),
        });
        for part in parts {
            self.hold_part(now, Some((start, end)), part);
        }
        self.settle_frames();
    }

    /// Publishes or holds the pieces of a part. Without a frame it waits for what its partitions hold.
    pub(super) fn hold_part(&mut self, now: Now, frame: Option<(Lsn, Lsn)>, part: Part) {
        match part.of {
            PartOf::Append(append, done) => {
                let mut pieces: BTreeMap<PartitionId, SmallVec<[Decided; 1]>> = BTreeMap::new();
                for decided in done {
                    let open = self.appends.get(append);
                    let user = open.and_then(|open| open.users.get(decided.recipient));
                    let Some(user) = user else { continue };
                    let partition = self.users.get(*user).partition;
                    pieces.entry(partition).or_default().push(decided);
                }
                if let Some(open) = self.appends.get_mut(append) {
                    let more = u32::try_from(pieces.len()).expect("at most the recipients");
                    open.parts = open.parts + more - 1;
                }
                for (partition, done) in pieces {
                    let marks = part.marks.iter().rev();
                    let mark = marks.copied().find(|mark| mark.partition == partition);
                    let of = if self.is_led_here(partition) {
                        Held::Append(append, done)
                    } else {
                        Held::Entries(self.fence_append(now, append, done))
                    };
                    self.hold_piece(now, frame, (partition, mark), of);
                }
            }
            PartOf::Change(change, entries) => {
                let Some(mark) = part.marks.last().copied() else {
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

    /// Whether those who wait for an answer may get a good one.
    fn is_led_here(&self, partition: PartitionId) -> bool {
        self.copies.gate(partition) != Gate::Follows
    }

    fn hold_records(&mut self, now: Now, frame: Option<(Lsn, Lsn)>, records: Records) {
        if let Some((partition, epoch)) = records.promise {
            self.partitions_durable.promise(partition, epoch);
            if let Some(settled) = &mut self.copies.settled {
                settled.promise(partition, epoch);
            }
        }
        for (mark, recorded) in records.records {
            let of = match recorded {
                Recorded::Entry(user, entry) => {
                    Held::Entries(SmallVec::from_iter([(user, *entry)]))
                }
                Recorded::Barrier(ticket) => Held::Barrier(ticket),
            };
            self.hold_piece(now, frame, (mark.partition, Some(mark)), of);
        }
        match records.answers {
            Answers::Nobody => {}
            Answers::Replicate(request) => self.replicated(now, request),
            Answers::Cut(cut) => self.cut_off(*cut),
        }
    }

    fn hold_piece(
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
    fn opens(&mut self, partition: PartitionId, piece: &Piece) -> Option<DurableTo> {
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
    fn release_held(&mut self, now: Now, partition: PartitionId) {
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

    fn publish_piece(
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
    fn publish_record(&mut self, index: usize, entry: Entry) {
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

    /// The least `DurableTo`: all frames up to there hold nothing that waits.
    fn settle_frames(&mut self) {
        while let Some(frame) = self.copies.frames.front()
            && frame.held_count == 0
        {
            self.dedupe_durable = self.dedupe_durable.max(frame.dedupe_next);
            for mark in &frame.marks {
                let (partition, epoch) = (mark.partition, mark.epoch);
                if let Some(settled) = &mut self.copies.settled {
                    settled.advance(partition, mark.pseq, mark.chain, epoch);
                }
            }
            for (user, count) in &frame.users {
                self.users.get_mut(*user).ahead_count -= count;
            }
            self.positions.settled(frame.end);
            self.positions.published();
            self.copies.frames.pop_front();
        }
    }

    /// A peer has all records of a stream in frames up to `upto` (of [`Event::Sealed`]) on its medium.
    /// Saying so twice, or late, does no harm. Answers come out of the next [`Self::poll`].
    pub fn copied(&mut self, now: Now, stream: StreamId, upto: Lsn) {
        self.positions.copied(stream, upto);
        self.release_stream(now, stream);
        self.settle_frames();
    }

    fn release_stream(&mut self, now: Now, stream: StreamId) {
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
    fn next_of(&self, stream: StreamId) -> Option<(Lsn, PartitionId)> {
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
    fn reorder(&mut self, stream: StreamId) {
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
    /// [`Event::ShippedAgain`], [`Copy::Follows`] fences those who wait for an answer.
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
    fn begin_place(&mut self, partition: PartitionId) -> &mut Place {
        if self.copies.are_none() {
            self.copies.last_end = self.positions.flushed_to().lsn();
            self.copies.settled = Some(self.partitions_durable.clone());
        }
        self.copies.place(partition)
    }
}
