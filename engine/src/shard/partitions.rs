//! The place of each partition in its stream of records: pseq and chain (storage.md 3.6, 3.9).
//! With one copy nobody asks; the bytes are there from the first release, so that a second copy can
//! be added to a store without rewriting it.
//!
//! A partition keeps its place when the number of logs changes: before the change each log gets the
//! states of all partitions, whoever owned them, and uses those that become its own (storage.md 6.4).

use ringpost_netproto::id::{Epoch, PartitionId};
use ringpost_netproto::placement::PartitionCount;

use super::{Shard, ShardIdentity};
use crate::error::IoError;
use crate::format::parts::{self, EpochEnd, EpochStart, HISTORY_MAX, Health, PartitionState};
use crate::io::{Io, Op, Piece, RelPath, Step, Work, WorkSync};
use crate::request::Refused;

/// One partition's place.
#[derive(Clone, Debug)]
struct Place {
    pseq: u64,
    chain: u32,
    /// Lower epochs are refused.
    promised: Epoch,
    /// In which this node leads it, once it was told to. A node without a cluster leads all in an
    /// epoch of its own.
    leads: Option<Epoch>,
    health: Health,
    history: Vec<EpochStart>,
}

impl Default for Place {
    fn default() -> Self {
        Self {
            pseq: 0,
            chain: 0,
            promised: Epoch::new(0),
            leads: None,
            health: Health::Whole,
            history: Vec::new(),
        }
    }
}

/// Where a TRUNCATE puts a partition.
#[derive(Clone, Copy)]
pub(super) struct At {
    pub(super) partition: PartitionId,
    /// Its last record.
    pub(super) pseq: u64,
    /// The chain after it.
    pub(super) chain: u32,
    pub(super) epoch: Epoch,
}

/// All partitions of the store; those of other shards stay untouched.
#[derive(Clone, Debug)]
pub(super) struct Partitions {
    places: Vec<Place>,
}

impl Partitions {
    pub(super) fn new(count: PartitionCount) -> Self {
        let count = crate::format::index(count.value());
        Self {
            places: vec![Place::default(); count],
        }
    }

    fn place(&mut self, partition: PartitionId) -> Option<&mut Place> {
        self.places.get_mut(usize::from(partition.value()))
    }

    /// The next record's pseq and the chain before it.
    pub(super) fn next(&mut self, partition: PartitionId) -> (u64, u32) {
        let place = self
            .place(partition)
            .expect("the user's partition is one of the store's");
        (place.pseq + 1, place.chain)
    }

    /// A record was written, or found by recovery, with this header; `chain` is the one after it.
    pub(super) fn advance(&mut self, partition: PartitionId, pseq: u64, chain: u32, epoch: Epoch) {
        let Some(place) = self.place(partition) else {
            return;
        };
        place.pseq = pseq;
        place.chain = chain;
        place.promised = place.promised.max(epoch);
        if place.history.last().is_none_or(|last| last.epoch < epoch) {
            if place.history.len() >= HISTORY_MAX {
                place.history.remove(0);
            }
            place.history.push(EpochStart {
                epoch,
                end: EpochEnd::Clean,
                first_pseq: pseq,
            });
        }
    }

    /// Lower epochs are refused from here on.
    pub(super) fn promise(&mut self, partition: PartitionId, epoch: Epoch) {
        if let Some(place) = self.place(partition) {
            place.promised = place.promised.max(epoch);
        }
    }

    /// The epoch that was promised last.
    pub(super) fn promised(&self, partition: PartitionId) -> Epoch {
        let place = self.places.get(usize::from(partition.value()));
        place.map_or(Epoch::new(0), |place| place.promised)
    }

    /// Refuses epochs below that.
    pub(super) fn takes(&self, partition: PartitionId, epoch: Epoch) -> Result<(), Refused> {
        let promised = self.promised(partition);
        if epoch < promised {
            return Err(Refused::Fenced { promised });
        }
        Ok(())
    }

    /// The epoch of the last record.
    pub(super) fn epoch_last(&self, partition: PartitionId) -> Epoch {
        let place = self.places.get(usize::from(partition.value()));
        let last = place.and_then(|place| place.history.last());
        last.map_or(Epoch::new(0), |start| start.epoch)
    }

    /// In which epoch this node leads a partition, if it was told to.
    pub(super) fn leads(&self, partition: PartitionId) -> Option<Epoch> {
        let place = self.places.get(usize::from(partition.value()));
        place.and_then(|place| place.leads)
    }

    /// This node leads a partition, or does so no more.
    pub(super) fn set_leads(&mut self, partition: PartitionId, epoch: Option<Epoch>) {
        if let Some(place) = self.place(partition) {
            place.leads = epoch;
        }
    }

    /// The last record and the chain after it.
    pub(super) fn last(&self, partition: PartitionId) -> (u64, u32) {
        let place = self.places.get(usize::from(partition.value()));
        place.map_or((0, 0), |place| (place.pseq, place.chain))
    }

    /// What a TRUNCATE says: a place that was, or, of a copy that was brought up by other means, one
    /// further on.
    pub(super) fn place_at(&mut self, to: &At) {
        if to.pseq > self.last(to.partition).0 {
            self.advance(to.partition, to.pseq, to.chain, to.epoch);
        } else {
            self.truncate(to.partition, to.pseq, to.chain);
        }
    }

    /// All records above `pseq` are void; `chain` is the one after that record.
    pub(super) fn truncate(&mut self, partition: PartitionId, pseq: u64, chain: u32) {
        if let Some(place) = self.place(partition)
            && place.pseq > pseq
        {
            (place.pseq, place.chain) = (pseq, chain);
            place.history.retain(|start| start.first_pseq <= pseq);
        }
    }

    /// Takes the states at the checkpoint, of the shard's own partitions.
    pub(super) fn restore(&mut self, identity: &ShardIdentity, states: Vec<PartitionState>) {
        for state in states {
            if !identity.owns_partition(state.partition) {
                continue;
            }
            if let Some(place) = self.place(state.partition) {
                *place = Place {
                    pseq: state.pseq,
                    chain: state.chain,
                    promised: state.promised,
                    leads: None,
                    health: state.health,
                    history: state.history,
                };
            }
        }
    }

    /// The highest epoch that any partition has seen.
    pub(super) fn promised_max(&self) -> Epoch {
        let promised = self.places.iter().map(|place| place.promised);
        promised.max().unwrap_or(Epoch::new(0))
    }

    /// The state of every partition that has records or a promise.
    pub(super) fn states(&self) -> Vec<PartitionState> {
        let states = self
            .places
            .iter()
            .enumerate()
            .filter(|(_, place)| place.pseq > 0 || place.promised > Epoch::new(0));
        states
            .map(|(number, place)| {
                let number = u16::try_from(number).expect("at most 65,536");
                place.state(PartitionId::new(number))
            })
            .collect()
    }

    /// The state of one partition; `None` if the store has no such.
    pub(super) fn state(&self, partition: PartitionId) -> Option<PartitionState> {
        let place = self.places.get(usize::from(partition.value()))?;
        Some(place.state(partition))
    }
}

impl Place {
    fn state(&self, partition: PartitionId) -> PartitionState {
        PartitionState {
            partition,
            health: self.health,
            promised: self.promised,
            chain: self.chain,
            pseq: self.pseq,
            commit_pseq: self.pseq,
            oldest_pseq: self.pseq + 1,
            history: self.history.clone(),
        }
    }
}

impl<I: Io> Shard<I> {
    /// Where a partition of this shard stands as of its last durable record; `None` if it is another
    /// shard's.
    pub fn partition(&self, partition: PartitionId) -> Option<PartitionState> {
        let owned = self.identity.owns_partition(partition);
        owned.then(|| self.partitions_durable.state(partition))?
    }

    /// The state of this shard's partitions, as of the last durable record.
    pub(crate) fn partition_states(&self) -> Vec<PartitionState> {
        self.partitions_durable.states()
    }

    /// Makes the states of all partitions durable in this log, which is drained, before the number
    /// of logs changes. The old and the new owners find their own among them, so that a crash at any
    /// moment leaves either layout whole.
    pub(crate) fn hand_over(&mut self, states: &[PartitionState]) -> Result<(), IoError> {
        let mut rest = Vec::new();
        while self.ops.in_flight() > 0 {
            // A look at free space, a log file being made: nobody waits for it any more.
            self.ops.poll(&mut rest);
            if rest.drain(..).count() == 0 {
                self.ops.io_mut().wait();
            }
        }
        let log_id = self.identity.log_id;
        let sequence = self.superblock.parts_sequence + 1;
        let path = RelPath::parts(log_id, u8::from(sequence % 2 == 1));
        let data = parts::encode(self.identity.store, log_id, sequence, states);
        let work = Work {
            steps: vec![Step::Write {
                path,
                offset: 0,
                pieces: vec![Piece::Bytes(bytes::Bytes::from(data))],
            }],
            sync: WorkSync::Each,
        };
        self.ops.run_plain(Op::Materialise(vec![work]))?;
        self.superblock.sequence += 1;
        self.superblock.parts_sequence = sequence;
        self.rewrite_super()
    }
}
