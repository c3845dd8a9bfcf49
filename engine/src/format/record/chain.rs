//! The chain of a partition: each replicated record binds all before it, in a form that holds no
//! local placement, so that two copies can be compared by one number.

use super::super::crc;
use super::{RECORD_HEADER_BYTES, RecordType};

/// Most bytes at the start of a record in which local fields lie: header, DELIVER fields, MSG run.
const HEAD_MAX: usize = RECORD_HEADER_BYTES + 24 + 128;

/// Fields of the header that are zero in the replicated form: flags, generation and slot, chain.
const HEADER_LOCAL: [(usize, usize); 3] = [(5, 1), (36, 8), (60, 4)];

/// Of a run that is no MSG run: crc, lsn.
const RUN_LOCAL: [(usize, usize); 2] = [(0, 4), (24, 8)];

/// Of a MSG run: crc, lsn, segment, offset.
const MSG_LOCAL: [(usize, usize); 4] = [(0, 4), (24, 8), (32, 4), (40, 8)];

/// The chain after `record`, a whole encoded record, behind a record with chain `previous`: the CRC
/// that starts from `previous` of the record with all local fields zero.
pub fn chain(previous: u32, record: &[u8]) -> u32 {
    let kind = record
        .get(4)
        .and_then(|value| RecordType::from_value(*value));
    let copied = match kind {
        Some(RecordType::Deliver) => HEAD_MAX,
        Some(RecordType::DeliverFile) => RECORD_HEADER_BYTES + 8 + 128,
        _ => RECORD_HEADER_BYTES,
    };
    let mut head = [0; HEAD_MAX];
    for (to, from) in head.iter_mut().zip(record.iter().take(copied)) {
        *to = *from;
    }
    clear(&mut head, 0, &HEADER_LOCAL);
    match kind {
        Some(RecordType::Deliver) => {
            clear(&mut head, RECORD_HEADER_BYTES, &[(0, 16)]);
            clear(&mut head, RECORD_HEADER_BYTES + 24, &MSG_LOCAL);
        }
        Some(RecordType::DeliverFile) => {
            clear(&mut head, RECORD_HEADER_BYTES, &[(0, 4)]);
            clear(&mut head, RECORD_HEADER_BYTES + 8, &MSG_LOCAL);
        }
        _ => {}
    }
    let crc = crc::extend(previous, head.get(..copied).unwrap_or_default());
    let rest = record.get(copied..).unwrap_or_default();
    match kind {
        Some(
            RecordType::Flags | RecordType::Expunge | RecordType::Mailbox | RecordType::Keyword,
        ) => runs(crc, rest),
        _ => crc::extend(crc, rest),
    }
}

/// Zeroes what is local to a node in a whole encoded record, but leaves the chain: the form in which
/// it goes to another node.
pub fn make_replica(record: &mut [u8]) {
    let kind = record
        .get(4)
        .and_then(|value| RecordType::from_value(*value));
    let [flags, place, _chain] = HEADER_LOCAL;
    clear(record, 0, &[flags, place]);
    match kind {
        Some(RecordType::Deliver) => {
            clear(record, RECORD_HEADER_BYTES, &[(0, 16)]);
            clear(record, RECORD_HEADER_BYTES + 24, &MSG_LOCAL);
        }
        Some(RecordType::DeliverFile) => {
            clear(record, RECORD_HEADER_BYTES, &[(0, 4)]);
            clear(record, RECORD_HEADER_BYTES + 8, &MSG_LOCAL);
        }
        Some(
            RecordType::Flags | RecordType::Expunge | RecordType::Mailbox | RecordType::Keyword,
        ) => {
            let mut at = RECORD_HEADER_BYTES;
            while let Some(extra) = record.get(at + 5).copied() {
                clear(record, at, &RUN_LOCAL);
                at += (usize::from(extra) + 1) * 64;
            }
        }
        _ => {}
    }
}

/// The chain over runs, each with its local fields zero.
fn runs(mut crc: u32, mut rest: &[u8]) -> u32 {
    while let Some(first) = rest.first_chunk::<64>() {
        let mut slot = *first;
        let [_, _, _, _, _, extra, ..] = slot;
        clear(&mut slot, 0, &RUN_LOCAL);
        crc = crc::extend(crc, &slot);
        let len = ((usize::from(extra) + 1) * 64).min(rest.len());
        crc = crc::extend(crc, rest.get(64..len).unwrap_or_default());
        rest = rest.get(len..).unwrap_or_default();
    }
    crc::extend(crc, rest)
}

/// Zeroes `fields`, (offset, length) from `base`.
fn clear(bytes: &mut [u8], base: usize, fields: &[(usize, usize)]) {
    for (offset, len) in fields {
        if let Some(field) = bytes.get_mut(base + offset..base + offset + len) {
            field.fill(0);
        }
    }
}
