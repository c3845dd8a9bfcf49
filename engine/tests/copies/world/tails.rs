//! Common ground of two tails.

use std::collections::BTreeMap;

use ringpost_engine::request::PartitionTail;

/// The last record of a tail, and its chain if it is the one that counts.
pub(super) fn last_of(tail: &PartitionTail) -> (u64, u32) {
    let waiting = tail.waiting.last();
    let last = waiting.map(|last| last.prev_pseq + last.items.len() as u64);
    (last.unwrap_or(tail.shown_pseq), tail.shown_chain)
}

/// Number and chain of every record of a tail, the one that counts first.
pub(super) fn chains(tail: &PartitionTail) -> BTreeMap<u64, u32> {
    let mut chains = BTreeMap::from([(tail.shown_pseq, tail.shown_chain)]);
    for records in &tail.waiting {
        let mut pseq = records.prev_pseq;
        for item in &records.items {
            pseq += 1;
            let chain = item.record[60..64].try_into().expect("four bytes");
            chains.insert(pseq, u32::from_le_bytes(chain));
        }
    }
    chains
}

/// The last record that both have. What counts somewhere is common: both have it.
pub(super) fn common(ours: &PartitionTail, theirs: &PartitionTail) -> u64 {
    let (a, b) = (chains(ours), chains(theirs));
    let floor = ours
        .shown_pseq
        .min(last_of(theirs).0)
        .max(theirs.shown_pseq.min(last_of(ours).0));
    let same = a.iter().filter(|(pseq, chain)| b.get(pseq) == Some(chain));
    same.map(|(pseq, _)| *pseq).max().unwrap_or(0).max(floor)
}

/// Whether two tails have a record of different content in the same place.
pub(super) fn shares(ours: &PartitionTail, theirs: &PartitionTail) -> bool {
    common(ours, theirs) < last_of(ours).0
}
