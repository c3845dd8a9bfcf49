//! Records on their way to a copy: a sealed frame is copied once, brought into replicated form and
//! handed out by partition while this node's own write runs.

use std::collections::BTreeMap;

use bytes::Bytes;
use ringpost_netproto::id::PartitionId;
use smallvec::SmallVec;

use super::{Gate, Led};
use crate::format::index;
use crate::format::record::{RECORD_HEADER_BYTES, RecordType, heads, make_replica};
use crate::io::{Io, RelPath};
use crate::log::Sealed;
use crate::position::Lsn;
use crate::request::{Event, PartitionTail, Replicate, SealedItem, Shipped};
use crate::shard::Shard;
use crate::shard::append::{Mark, Part};

/// A record as it was, or may have to be, shipped.
#[derive(Clone)]
pub(in crate::shard) struct Kept {
    pub(in crate::shard) mark: Mark,
    /// Of its frame: what was one frame is shipped together.
    pub(in crate::shard) end: Lsn,
    pub(in crate::shard) shipped: Shipped,
}

/// A sealed frame, copied.
pub(in crate::shard) struct Wrapped {
    salt: u64,
    end: Lsn,
    payload: Vec<u8>,
    marks: BTreeMap<(PartitionId, u64), Mark>,
}

impl Wrapped {
    pub(in crate::shard) fn new(frame: &Sealed<'_, Part>) -> Self {
        let marks = frame.groups.iter().flat_map(Part::each_mark);
        Self {
            salt: frame.salt,
            end: frame.end,
            payload: frame.payload.to_vec(),
            marks: marks
                .map(|mark| ((mark.partition, mark.pseq), mark))
                .collect(),
        }
    }
}

impl Part {
    /// The places of its records.
    fn each_mark(&self) -> impl Iterator<Item = Mark> {
        let records = match &self.of {
            crate::shard::append::PartOf::Records(records) => &records.all[..],
            _ => &[],
        };
        let own = records.iter().map(|(mark, _)| *mark);
        self.marks.iter().copied().chain(own)
    }
}

/// Every record of a frame that goes to other nodes, in replicated form: its place, and its bytes.
pub(in crate::shard) fn replicas(mut payload: Vec<u8>) -> Vec<(PartitionId, u64, Shipped)> {
    struct Found {
        partition: PartitionId,
        pseq: u64,
        at: usize,
        len: usize,
        body: Option<usize>,
        file: Option<RelPath>,
    }
    let mut found: Vec<Found> = Vec::new();
    let mut bodies: BTreeMap<usize, usize> = BTreeMap::new();
    let u32_at = |bytes: &[u8], at: usize| {
        let field = bytes.get(at..).and_then(<[u8]>::first_chunk);
        field.map_or(0, |field| u32::from_le_bytes(*field))
    };
    for (kind, head, at, bytes) in heads(&payload) {
        if kind == RecordType::Body {
            bodies.insert(at, bytes.len());
        }
        if !kind.is_replicated() {
            continue;
        }
        let distance = index(u32_at(bytes, RECORD_HEADER_BYTES + 12));
        let segment = u32_at(bytes, RECORD_HEADER_BYTES);
        let dir = RelPath::user_dir(head.partition, head.user, head.ordinal);
        found.push(Found {
            partition: head.partition,
            pseq: head.pseq,
            at,
            len: bytes.len(),
            body: (kind == RecordType::Deliver).then(|| at.saturating_sub(distance)),
            file: (kind == RecordType::DeliverFile).then(|| dir.segment_part(segment)),
        });
    }
    let places = bodies.iter().map(|(at, len)| (*at, *len));
    let places: Vec<_> = places
        .chain(found.iter().map(|one| (one.at, one.len)))
        .collect();
    for (at, len) in places {
        make_replica(payload.get_mut(at..at + len).unwrap_or_default());
    }
    let payload = Bytes::from(payload);
    let body = |at: usize| {
        let len = bodies.get(&at)?;
        Some(payload.slice(at..at + len))
    };
    let shipped = found.into_iter().map(|one| {
        let shipped = Shipped {
            record: payload.slice(one.at..one.at + one.len),
            body: one.body.and_then(body),
            file: one.file,
        };
        (one.partition, one.pseq, shipped)
    });
    shipped.collect()
}

impl<I: Io> Shard<I> {
    /// Hands out what frames hold that were just sealed.
    pub(in crate::shard) fn ship(&mut self, sealed: SmallVec<[Wrapped; 1]>) {
        for frame in sealed {
            let mut items: BTreeMap<PartitionId, SealedItem> = BTreeMap::new();
            for (partition, pseq, shipped) in replicas(frame.payload) {
                let Some(mark) = frame.marks.get(&(partition, pseq)).copied() else {
                    continue;
                };
                let epoch = self.epoch_of(partition);
                let commit_pseq = self.partitions_durable.last(partition).0;
                let gate = self.copies.gate(partition);
                if gate == Gate::Alone && !self.copies.places.contains_key(&partition) {
                    continue;
                }
                // Alone too, until it counts: a stream may be asked for while it is on its way.
                let place = self.copies.place(partition);
                place.kept.push_back(Kept {
                    mark,
                    end: frame.end,
                    shipped: shipped.clone(),
                });
                let Gate::Stream(stream) = gate else { continue };
                place.shipped_from.get_or_insert(pseq);
                let item = items.entry(partition).or_insert_with(|| SealedItem {
                    stream,
                    records: Replicate {
                        partition,
                        epoch,
                        prev_pseq: mark.pseq - 1,
                        prev_chain: mark.chain_before,
                        items: Vec::new(),
                        commit_pseq,
                    },
                });
                item.records.items.push(shipped);
            }
            if !items.is_empty() {
                self.events.push(Event::Sealed {
                    salt: frame.salt,
                    upto: frame.end,
                    items: items.into_values().collect(),
                });
            }
        }
    }

    /// Hands out again what a partition holds that no peer of its stream confirmed, frame by frame.
    pub(super) fn ship_again(&mut self, partition: PartitionId) {
        let gate = self.copies.gate(partition);
        let led = self.copies.place(partition).led;
        if let (Gate::Stream(stream), Led::Here) = (gate, led) {
            let again = self.waiting(partition, None).into_iter();
            let again = again.map(|records| Event::ShippedAgain {
                item: SealedItem { stream, records },
            });
            self.events.extend(again);
        }
    }

    /// What a partition holds, up to a position, by frame.
    fn waiting(&self, partition: PartitionId, upto: Option<Lsn>) -> Vec<Replicate> {
        let epoch = self.epoch_of(partition);
        let commit_pseq = self.partitions_durable.last(partition).0;
        let place = self.copies.places.get(&partition).into_iter();
        let mut last_end = None;
        let mut all: Vec<Replicate> = Vec::new();
        for kept in place.flat_map(|place| &place.kept) {
            if upto.is_some_and(|upto| kept.end > upto) {
                break;
            }
            if last_end.replace(kept.end) != Some(kept.end) {
                all.push(Replicate {
                    partition,
                    epoch,
                    prev_pseq: kept.mark.pseq - 1,
                    prev_chain: kept.mark.chain_before,
                    items: Vec::new(),
                    commit_pseq,
                });
            }
            if let Some(records) = all.last_mut() {
                records.items.push(kept.shipped.clone());
            }
        }
        all
    }

    /// Where a partition of this shard stands on this medium, down to what nobody confirmed; `None`
    /// if it is another shard's.
    pub fn partition_tail(&self, partition: PartitionId) -> Option<PartitionTail> {
        if !self.identity.owns_partition(partition) {
            return None;
        }
        let (shown_pseq, shown_chain) = self.partitions_durable.last(partition);
        let flushed = self.positions.flushed_to().lsn();
        Some(PartitionTail {
            promised: self.partitions_durable.promised(partition),
            shown_pseq,
            shown_chain,
            waiting: self.waiting(partition, Some(flushed)),
        })
    }
}
