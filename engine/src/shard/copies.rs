//! Second copies (storage.md 1.5): which partition waits for whom, and what waits.
//!
//! A frame on this node's medium is taken apart by partition. A piece whose partition has one copy is
//! published at once; any other is *held* until its gate opens: its stream confirmed the frame, or
//! the partition's primary committed the record. Within a partition pieces leave in the order of the
//! log, and so do those of one stream; one slow peer holds back no other. What is held lies in the
//! log alone: a checkpoint ends below the first frame with a held piece, and below the first of which
//! no frame on the medium says that it counts. Else a crash during that checkpoint leaves records in
//! the files that the next start takes for unconfirmed.
//!
//! Without copies nothing here is touched but one test of a flag per frame and request. `hold` takes
//! frames apart, `gate` hears what counts, `settle` how far; `ship` hands records out, `replicate`
//! takes them in, `lead` changes who leads, `cut` takes records back.

mod cut;
mod gate;
mod hold;
mod lead;
mod numbers;
mod replicate;
mod settle;
mod ship;

use std::collections::{BTreeMap, VecDeque};

use ringpost_netproto::id::{Epoch, PartitionId};
use ringpost_netproto::placement::UserKey;
use smallvec::SmallVec;

use super::append::{Decided, Mark};
use super::partitions::{At, Partitions};
use super::{Shard, ShardIdentity};
use crate::canary::{self, Canary};
use crate::held;
use crate::io::Io;
use crate::log::Unstated;
use crate::pending::Entry;
use crate::position::Lsn;
use crate::request::{Refused, StreamId, Ticket};

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
    /// A cut, or a place further on, is on its way to the medium, and who waits for it.
    cutting: Option<(Ticket, Cutting)>,
    /// Those whose barriers are on their way there.
    leading: Vec<Ticket>,
    /// What the cut that has its turn holds first.
    rescue: Option<cut::Rescue>,
}

/// What a TRUNCATE on its way is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cutting {
    Disown,
    Resume,
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
    Resume(cut::Place),
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
            cutting: None,
            leading: Vec::new(),
            rescue: None,
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
    /// Of what was cut off. A checkpoint between a frame and the TRUNCATE behind it says what the
    /// log says there: else the next record has no predecessor.
    void: Vec<Mark>,
    /// Where its TRUNCATEs put partitions.
    cuts: Vec<At>,
    /// Users and how many of their pending entries are of it, as far as they count.
    pub(super) users: Vec<(usize, usize)>,
}

impl Frame {
    fn new(end: Lsn, dedupe_next: u64) -> Self {
        Self {
            end,
            held_count: 0,
            dedupe_next,
            marks: Vec::new(),
            void: Vec::new(),
            cuts: Vec::new(),
            users: Vec::new(),
        }
    }

    /// Whether a restart misses nothing of it: a NOOP, or what was cut off.
    fn is_empty(&self) -> bool {
        self.marks.is_empty() && self.users.is_empty()
    }
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
    pub(super) all: Vec<(Mark, Recorded)>,
}

/// A record of such a part.
pub(super) enum Recorded {
    /// Its user, pinned.
    Entry(usize, Box<Entry>),
    Barrier(Option<Ticket>),
}

/// A frame that recovery found and that a checkpoint may not pass yet.
#[derive(Default)]
pub(super) struct Found {
    pub(super) dedupe_next: u64,
    /// Records that a later TRUNCATE made void.
    pub(super) void: Vec<Mark>,
    pub(super) cuts: Vec<At>,
    /// Users and how many of their pending entries are of it.
    pub(super) users: Vec<(usize, usize)>,
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
    Resume(cut::Place),
}

/// The shard's second copies.
pub(super) struct Copies {
    /// Whether a partition of which nothing was said waits.
    unsaid: Gate,
    places: BTreeMap<PartitionId, Place>,
    /// Partitions with held pieces of a stream, one for each, in the order of the log.
    orders: BTreeMap<StreamId, VecDeque<(Lsn, PartitionId)>>,
    frames: VecDeque<Frame>,
    /// Frames that hold nothing back, as long as no later one on the medium says so.
    unstated: VecDeque<Frame>,
    /// The end of the last frame that is in neither.
    settled_to: Lsn,
    /// Where the last frame ended.
    last_end: Lsn,
    /// The partitions as of the least `DurableTo`, for a checkpoint; `None` without copies.
    settled: Option<Partitions>,
    requests: slab::Slab<Replicating>,
    /// The frame of the piece that is being published.
    publishing: Option<Lsn>,
    /// Partitions with a job that may be looked at.
    turns: VecDeque<PartitionId>,
    /// What is being encoded has no place in the stream of its partition.
    pub(super) refilling: bool,
    /// Held boxes that were asked for.
    boxes: BTreeMap<PartitionId, UserKey>,
}

impl Copies {
    pub(super) fn new(unsaid: Gate, end: Lsn) -> Self {
        Self {
            unsaid,
            places: BTreeMap::new(),
            orders: BTreeMap::new(),
            frames: VecDeque::new(),
            unstated: VecDeque::new(),
            settled_to: end,
            last_end: end,
            settled: None,
            requests: slab::Slab::new(),
            publishing: None,
            turns: VecDeque::new(),
            refilling: false,
            boxes: BTreeMap::new(),
        }
    }

    /// Whether a partition follows and has nothing that waits.
    pub(super) fn is_empty_follower(&self, partition: PartitionId) -> bool {
        let place = self.places.get(&partition);
        place.is_some_and(|place| {
            place.gate == Gate::Follows && place.held.is_empty() && place.kept.is_empty()
        })
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

    /// Whether a frame is wanted that says what counts.
    pub(super) fn unstated(&self) -> Unstated {
        if self.unstated.is_empty() {
            Unstated::Nothing
        } else {
            Unstated::Records
        }
    }

    /// Whether a checkpoint may write more as soon as a frame says what counts.
    pub(super) fn wants_statement(&self) -> bool {
        self.unstated() == Unstated::Records
    }

    /// Requests of primaries that are open.
    pub(super) fn are_open(&self) -> bool {
        self.places
            .values()
            .any(|place| !place.jobs.is_empty() || place.cutting.is_some())
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
            self.frames.push_back(Frame {
                held_count: 1,
                ..Frame::new(end, 0)
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

    /// The frame around a position on this medium, if a checkpoint may not pass it yet.
    pub(super) fn frame_with(&mut self, lsn: Lsn) -> Option<&mut Frame> {
        let mut frames = self.unstated.iter_mut().chain(&mut self.frames);
        frames.find(|frame| frame.end > lsn)
    }

    fn frame(&mut self, end: Lsn) -> Option<&mut Frame> {
        let frames = match self.frames.front() {
            Some(first) if first.end <= end => &mut self.frames,
            _ => &mut self.unstated,
        };
        let found = frames.binary_search_by_key(&end, |frame| frame.end);
        found.ok().and_then(|place| frames.get_mut(place))
    }

    /// What recovery found that nobody confirmed: the frames with it, in order, then the records.
    pub(super) fn restore(
        &mut self,
        (settled, settled_to): (Partitions, Lsn),
        frames: impl Iterator<Item = (Lsn, Found)>,
        records: impl Iterator<Item = Restored>,
    ) {
        self.settled = Some(settled);
        self.settled_to = settled_to;
        self.frames = frames
            .map(|(end, found)| Frame {
                users: found.users,
                void: found.void,
                cuts: found.cuts,
                ..Frame::new(end, found.dedupe_next)
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
    /// Records on this medium that wait for the word of another node, or for one about who leads.
    pub fn unconfirmed_count(&self) -> usize {
        let held = self.copies.places.values().flat_map(|place| &place.held);
        held.filter(|piece| piece.mark.is_some()).count()
    }

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

    /// The held box of a partition.
    pub(super) fn held_box(&mut self, partition: PartitionId) -> UserKey {
        let ShardIdentity {
            key, partitions, ..
        } = &self.identity;
        let found = self.copies.boxes.entry(partition);
        let found = found.or_insert_with(|| held::box_of(partition, key, *partitions));
        found.clone()
    }

    /// The same of a user: a held box takes them whoever leads.
    pub(super) fn takes_changes_of(&self, user: &UserKey) -> Result<(), Refused> {
        if held::is_box(user.name()) {
            return Ok(());
        }
        self.takes_changes(user.partition())
    }

    /// Whether records of a user wait for copies whose makers are gone.
    pub(super) fn awaits_copies(&self, user: usize) -> bool {
        !self.copies.are_none() && self.copies.holds(self.users.get(user).partition, user)
    }
}
