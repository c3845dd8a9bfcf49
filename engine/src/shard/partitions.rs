//! The place of each partition in its stream of records: pseq and chain (storage.md 3.6, 3.9).
//! With one copy nobody asks; the bytes are there from the first release, so that a second copy can
//! be added to a store without rewriting it.

use ringpost_netproto::id::{Epoch, PartitionId};
use ringpost_netproto::placement::PartitionCount;

use crate::format::parts::{EpochEnd, EpochStart, HISTORY_MAX, Health, PartitionState};

/// One partition's place.
#[derive(Clone, Debug, Default)]
struct Place {
    pseq: u64,
    chain: u32,
    history: Vec<EpochStart>,
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

    /// Takes the state at the checkpoint.
    pub(super) fn restore(&mut self, states: Vec<PartitionState>) {
        for state in states {
            if let Some(place) = self.place(state.partition) {
                *place = Place {
                    pseq: state.pseq,
                    chain: state.chain,
                    history: state.history,
                };
            }
        }
    }

    /// The state of every partition that has records.
    pub(super) fn states(&self) -> Vec<PartitionState> {
        let states = self
            .places
            .iter()
            .enumerate()
            .filter(|(_, place)| place.pseq > 0);
        states
            .map(|(number, place)| PartitionState {
                partition: PartitionId::new(u16::try_from(number).expect("at most 65,536")),
                health: Health::Whole,
                promised: place
                    .history
                    .last()
                    .map_or(Epoch::new(0), |last| last.epoch),
                chain: place.chain,
                pseq: place.pseq,
                commit_pseq: place.pseq,
                oldest_pseq: place.pseq + 1,
                history: place.history.clone(),
            })
            .collect()
    }
}
