//! A record in replicated form becomes one of this node: everything local gets its value here, and
//! the rest stays as it is, so that the chain does (FORMAT.md, "Chain").

use super::super::crc;
use super::super::info::{MSG_FIXED_BYTES, MsgFixed, SLOT, Seed, move_run};
use super::super::{index, read_prefix};
use super::{
    DELIVER_FILE_FIXED_AT, DELIVER_FIXED_AT, GOES_ON, Group, Head, RECORD_HEADER_BYTES, RawHeader,
    RecordType,
};
use crate::error::CorruptReason;
use crate::position::Lsn;

/// Where a record of another node goes here.
#[derive(Clone, Copy, Debug)]
pub struct Local {
    /// Whether its group goes on.
    pub group: Group,
    /// Its user and the info file of its runs.
    pub seed: Seed,
    /// Of its first run; 0 if it has none.
    pub slot: u32,
    /// Of the frame.
    pub lsn: Lsn,
    /// Of a message: its segment.
    pub segment: u32,
    /// Of a message: its `From_` line in the segment; 0 in a file of its own.
    pub offset: u64,
    /// Of a DELIVER: bytes back to its BODY.
    pub distance: u32,
    /// Of a DELIVER: the CRC of its BODY's header cache.
    pub cache_crc: u32,
}

/// Type, header and bytes of each record of a payload that this program made or took over.
pub fn heads(payload: &[u8]) -> impl Iterator<Item = (RecordType, Head, usize, &[u8])> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = payload.get(at..)?;
        let raw: &RawHeader = read_prefix(rest).ok()?;
        let bytes = rest.get(..index(raw.rec_len.get()).max(RECORD_HEADER_BYTES))?;
        let kind = RecordType::from_value(raw.kind)?;
        let from = at;
        at += bytes.len();
        Some((kind, Head::from_raw(raw), from, bytes))
    })
}

/// `record`, a whole record in replicated form, as it must stand in a frame of this node. It is
/// checked for what this needs; the rest is for a decoder to say.
pub fn localise(record: &[u8], local: &Local) -> Result<Vec<u8>, CorruptReason> {
    let raw: &RawHeader = read_prefix(record)?;
    if index(raw.rec_len.get()) != record.len() {
        return Err(CorruptReason::Length);
    }
    let kind = RecordType::from_value(raw.kind).filter(|kind| kind.is_replicated());
    let kind = kind.ok_or(CorruptReason::Value("a record that no node ships"))?;
    let mut out = record.to_vec();
    put(
        &mut out,
        5,
        &[if local.group == Group::GoesOn {
            GOES_ON
        } else {
            0
        }],
    );
    let has_runs = !matches!(kind, RecordType::UserCreate | RecordType::Epoch);
    let generation = if has_runs { local.seed.generation } else { 0 };
    put(&mut out, 36, &generation.to_le_bytes());
    put(&mut out, 40, &local.slot.to_le_bytes());
    match kind {
        RecordType::Deliver => {
            put(&mut out, RECORD_HEADER_BYTES, &local.offset.to_le_bytes());
            put(
                &mut out,
                RECORD_HEADER_BYTES + 8,
                &local.segment.to_le_bytes(),
            );
            put(
                &mut out,
                RECORD_HEADER_BYTES + 12,
                &local.distance.to_le_bytes(),
            );
            message(&mut out, DELIVER_FIXED_AT, local, local.cache_crc)?;
        }
        RecordType::DeliverFile => {
            put(&mut out, RECORD_HEADER_BYTES, &local.segment.to_le_bytes());
            let cache = out.get(DELIVER_FILE_FIXED_AT + MSG_FIXED_BYTES..);
            let cache_crc = crc::of(cache.unwrap_or_default());
            message(&mut out, DELIVER_FILE_FIXED_AT, local, cache_crc)?;
        }
        RecordType::Flags | RecordType::Expunge | RecordType::Mailbox | RecordType::Keyword => {
            let runs = runs(out.get(RECORD_HEADER_BYTES..).unwrap_or_default(), local)?;
            put(&mut out, RECORD_HEADER_BYTES, &runs);
        }
        _ => {}
    }
    Ok(out)
}

/// Places a MSG run.
fn message(out: &mut [u8], at: usize, local: &Local, cache_crc: u32) -> Result<(), CorruptReason> {
    let fixed = MsgFixed::read(out.get(at..).unwrap_or_default())?;
    let fixed = fixed.placed(local.lsn, local.segment, local.offset);
    let fixed = fixed.seal(local.seed, local.slot, cache_crc);
    put(out, at, fixed.bytes());
    Ok(())
}

/// Places all other runs, one behind the other.
fn runs(mut rest: &[u8], local: &Local) -> Result<Vec<u8>, CorruptReason> {
    let mut out = Vec::with_capacity(rest.len());
    let mut slot = local.slot;
    while !rest.is_empty() {
        let extra = rest.get(5).copied().ok_or(CorruptReason::Truncated)?;
        let len = (usize::from(extra) + 1) * SLOT;
        let (run, next) = rest.split_at_checked(len).ok_or(CorruptReason::Truncated)?;
        let mut run = run.to_vec();
        put(&mut run, 24, &local.lsn.value().to_le_bytes());
        move_run(&run, local.seed, slot, &mut out);
        slot = slot.saturating_add(u32::from(extra) + 1);
        rest = next;
    }
    Ok(out)
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = out.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}
