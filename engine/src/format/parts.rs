//! The state of a log's partitions as of a checkpoint: `parts.0` and `parts.1`, written in turn.
//! The superblock names the valid one by its sequence; redo adds the rest.

use ringpost_netproto::id::{Epoch, PartitionId};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use super::store_file::StoreId;
use super::{BLOCK_HEADER_BYTES, Layout, Reserved, Version, crc, read_prefix, write_prefix};
use crate::error::CorruptReason;

/// Of the file.
pub const MAGIC: [u8; 8] = *b"RINGPRT1";

/// Bytes before the first entry.
pub const PARTS_HEADER_BYTES: usize = BLOCK_HEADER_BYTES;

/// Bytes of an entry.
pub const PARTS_ENTRY_BYTES: usize = 256;

/// Epochs remembered per partition.
pub const HISTORY_MAX: usize = 18;

/// A log has at most every partition.
pub const ENTRIES_MAX: u32 = 65_536;

/// State: acknowledged records of the partition were lost.
const DAMAGED: u8 = 1;

/// Top bit of an epoch: its primary ended without handing over.
const UNCLEAN: u32 = 1 << 31;

on_disk! {
    struct RawHeader, "partition state header", 56 {
        0 start: [u8; 24],
        24 store: [u8; 16],
        40 log_id: U32,
        44 entries: U32,
        48 sequence: U64,
    }
}

on_disk! {
    struct RawEntry, "partition state entry", 256 {
        0 crc: U32,
        4 partition: U16,
        6 history_len: u8,
        7 state: u8,
        8 promised: U32,
        12 chain: U32,
        16 pseq: U64,
        24 commit_pseq: U64,
        32 oldest_pseq: U64,
        40 history: [RawEpoch; 18],
    }
}

on_disk! {
    struct RawEpoch, "epoch of a partition", 12 {
        0 epoch: U32,
        4 first_pseq: U64,
    }
}

const _: () = assert!(size_of::<RawEntry>() == PARTS_ENTRY_BYTES);

pub(super) const HEADER_LAYOUT: Layout = RawHeader::LAYOUT;
pub(super) const ENTRY_LAYOUT: Layout = RawEntry::LAYOUT;
pub(super) const EPOCH_LAYOUT: Layout = RawEpoch::LAYOUT;

/// One partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartitionState {
    /// Which.
    pub partition: PartitionId,
    /// Whether acknowledged records were lost.
    pub health: Health,
    /// Epochs below are refused.
    pub promised: Epoch,
    /// Chain after `pseq`.
    pub chain: u32,
    /// Of the last record; 0 if there was none.
    pub pseq: u64,
    /// Up to here on all copies.
    pub commit_pseq: u64,
    /// The oldest record that is still in the log.
    pub oldest_pseq: u64,
    /// Oldest first, at most [`HISTORY_MAX`].
    pub history: Vec<EpochStart>,
}

/// Whether a partition can be served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Health {
    /// Every acknowledged record is there.
    Whole,
    /// Some were lost with damaged log frames.
    Damaged,
}

/// Where an epoch began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EpochStart {
    /// Below 2^31.
    pub epoch: Epoch,
    /// How it ended.
    pub end: EpochEnd,
    /// Its first record.
    pub first_pseq: u64,
}

/// How an epoch ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EpochEnd {
    /// Handed over, or still going on.
    Clean,
    /// Its primary was lost.
    Unclean,
}

/// The file's bytes. At most [`ENTRIES_MAX`] partitions with at most [`HISTORY_MAX`] epochs each.
pub fn encode(
    store: StoreId,
    log_id: u32,
    sequence: u64,
    partitions: &[PartitionState],
) -> Vec<u8> {
    let entries = u32::try_from(partitions.len()).expect("a log has at most every partition");
    assert!(entries <= ENTRIES_MAX, "{entries} partitions");
    let mut out = vec![0; PARTS_HEADER_BYTES];
    let raw = RawHeader {
        start: [0; 24],
        store: store.bytes(),
        log_id: U32::new(log_id),
        entries: U32::new(entries),
        sequence: U64::new(sequence),
    };
    write_prefix(&raw, &mut out);
    super::seal_header(&mut out, MAGIC, size_of::<RawHeader>(), Version::OURS);
    for state in partitions {
        let mut raw = state.raw();
        raw.crc = U32::new(entry_crc(&raw, sequence, log_id));
        out.extend_from_slice(raw.as_bytes());
    }
    out
}

/// The sequence number of a file and its partitions.
pub fn decode(
    bytes: &[u8],
    store: StoreId,
    log_id: u32,
) -> Result<(u64, Vec<PartitionState>), CorruptReason> {
    let version = super::open_header(bytes, MAGIC, size_of::<RawHeader>(), PARTS_HEADER_BYTES)?;
    let raw: &RawHeader = read_prefix(bytes)?;
    if raw.store != store.bytes() || raw.log_id.get() != log_id {
        return Err(CorruptReason::Identity);
    }
    let (sequence, entries) = (raw.sequence.get(), raw.entries.get());
    if entries > ENTRIES_MAX {
        return Err(CorruptReason::Length);
    }
    let entries = bytes
        .get(PARTS_HEADER_BYTES..)
        .and_then(|rest| rest.get(..super::index(entries) * PARTS_ENTRY_BYTES))
        .ok_or(CorruptReason::Truncated)?;
    let states = entries
        .chunks_exact(PARTS_ENTRY_BYTES)
        .map(|entry| {
            let raw: &RawEntry = read_prefix(entry)?;
            if raw.crc.get() != entry_crc(raw, sequence, log_id) {
                return Err(CorruptReason::Checksum);
            }
            PartitionState::from_raw(raw, version.reserved())
        })
        .collect::<Result<_, _>>()?;
    Ok((sequence, states))
}

impl PartitionState {
    fn raw(&self) -> RawEntry {
        assert!(
            self.history.len() <= HISTORY_MAX,
            "{} epochs",
            self.history.len()
        );
        let mut history = [RawEpoch {
            epoch: U32::ZERO,
            first_pseq: U64::ZERO,
        }; HISTORY_MAX];
        for (to, from) in history.iter_mut().zip(&self.history) {
            let unclean = match from.end {
                EpochEnd::Clean => 0,
                EpochEnd::Unclean => UNCLEAN,
            };
            assert!(from.epoch.value() < UNCLEAN, "epoch {}", from.epoch);
            to.epoch = U32::new(from.epoch.value() | unclean);
            to.first_pseq = U64::new(from.first_pseq);
        }
        RawEntry {
            crc: U32::ZERO,
            partition: U16::new(self.partition.value()),
            history_len: u8::try_from(self.history.len()).expect("at most 18"),
            state: match self.health {
                Health::Whole => 0,
                Health::Damaged => DAMAGED,
            },
            promised: U32::new(self.promised.value()),
            chain: U32::new(self.chain),
            pseq: U64::new(self.pseq),
            commit_pseq: U64::new(self.commit_pseq),
            oldest_pseq: U64::new(self.oldest_pseq),
            history,
        }
    }

    fn from_raw(raw: &RawEntry, reserved: Reserved) -> Result<Self, CorruptReason> {
        let (history, padding) = raw
            .history
            .split_at_checked(usize::from(raw.history_len))
            .ok_or(CorruptReason::Length)?;
        reserved.check(padding.as_bytes())?;
        Ok(Self {
            partition: PartitionId::new(raw.partition.get()),
            health: match raw.state {
                0 => Health::Whole,
                DAMAGED => Health::Damaged,
                _ => return Err(CorruptReason::Value("unknown state of a partition")),
            },
            promised: Epoch::new(raw.promised.get()),
            chain: raw.chain.get(),
            pseq: raw.pseq.get(),
            commit_pseq: raw.commit_pseq.get(),
            oldest_pseq: raw.oldest_pseq.get(),
            history: history
                .iter()
                .map(|raw| EpochStart {
                    epoch: Epoch::new(raw.epoch.get() & !UNCLEAN),
                    end: if raw.epoch.get() & UNCLEAN == 0 {
                        EpochEnd::Clean
                    } else {
                        EpochEnd::Unclean
                    },
                    first_pseq: raw.first_pseq.get(),
                })
                .collect(),
        })
    }
}

/// Of the file's sequence number, the log id and bytes 4 to 256.
fn entry_crc(raw: &RawEntry, sequence: u64, log_id: u32) -> u32 {
    let seed = crc::extend(crc::of(&sequence.to_le_bytes()), &log_id.to_le_bytes());
    crc::extend(seed, raw.as_bytes().get(4..).unwrap_or_default())
}
