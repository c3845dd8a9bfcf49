//! Common ground of two tails.

use std::collections::{BTreeMap, BTreeSet};

use ringpost_engine::request::PartitionTail;

use super::USERS;
use crate::testkit::user;

/// Types of records with a message, where their guid is, and where a record has its type and the
/// user's hash (FORMAT.md).
const GUID_AT: [(u8, usize); 2] = [(2, 88 + 104), (3, 72 + 104)];
const TYPE_AT: usize = 4;
const HASH_AT: usize = 8;

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

/// Whose messages the records above one bring: user and guid.
pub(super) fn messages_above(
    tail: &PartitionTail,
    pseq: u64,
) -> BTreeSet<(&'static str, [u8; 16])> {
    let mut found = BTreeSet::new();
    for records in &tail.waiting {
        for (item, number) in records.items.iter().zip(records.prev_pseq + 1..) {
            let record = &item.record;
            let guid_at = GUID_AT.iter().find(|(kind, _)| *kind == record[TYPE_AT]);
            let (Some((_, at)), true) = (guid_at, number > pseq) else {
                continue;
            };
            let hash = record[HASH_AT..HASH_AT + 8].try_into().expect("8 bytes");
            let hash = u64::from_le_bytes(hash);
            let mut names = USERS.iter();
            let name = names.find(|name| user(name).hash().value() == hash);
            let guid = record[*at..at + 16].try_into().expect("16 bytes");
            found.insert((*name.expect("one of them"), guid));
        }
    }
    found
}
