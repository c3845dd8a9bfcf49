//! The superblock: where a shard's log starts after a crash, and what belongs to that point.
//!
//! `super` holds two copies of 4096 bytes. Only the older is ever written, so that a torn write
//! leaves the other; the higher `sequence` wins.

use ringpost_netproto::id::{NodeId, WallNs};
use ringpost_netproto::placement::PartitionCount;
use zerocopy::little_endian::{U32, U64};

use super::store_file::StoreId;
use super::{BLOCK_HEADER_BYTES, COUNTER_MAX, Layout, Version, read_prefix, write_prefix};
use crate::error::CorruptReason;
use crate::position::Lsn;

/// Of each copy.
pub const MAGIC: [u8; 8] = *b"RINGSUP1";

/// Bytes of one copy.
pub const SUPERBLOCK_BYTES: usize = BLOCK_HEADER_BYTES;

/// Flag: the shard was drained and checkpointed. Saves work, skips no check.
const CLEAN: u32 = 1;

on_disk! {
    struct Raw, "superblock", 136 {
        0 start: [u8; 24],
        24 store: [u8; 16],
        40 node: U32,
        44 log_id: U32,
        48 sequence: U64,
        56 flags: U32,
        60 partitions: U32,
        64 storage_generation: U32,
        68 boots: U32,
        72 checkpoint_lsn: U64,
        80 previous_crc: U32,
        84 key_check: U32,
        88 map_revision: U64,
        96 oldest_log_sequence: U64,
        104 newest_log_sequence: U64,
        112 dedupe_next: U64,
        120 written_at: U64,
        128 parts_sequence: U64,
    }
}

pub(super) const LAYOUT: Layout = Raw::LAYOUT;

/// How the shard ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shutdown {
    /// Drained and checkpointed.
    Clean,
    /// Running, or stopped in its course.
    Open,
}

/// One copy, its checks held.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// The store it belongs to.
    pub store: StoreId,
    /// The node.
    pub node: NodeId,
    /// The log directory.
    pub log_id: u32,
    /// The highest valid one wins.
    pub sequence: u64,
    /// How the shard ended.
    pub shutdown: Shutdown,
    /// Number of partitions of the store.
    pub partitions: PartitionCount,
    /// Grows when a store is repaired from its peer.
    pub storage_generation: u32,
    /// Counts openings.
    pub boots: u32,
    /// Recovery starts here.
    pub checkpoint_lsn: Lsn,
    /// `header_crc` of the frame that ends at `checkpoint_lsn`; 0 at the start of the log.
    pub previous_crc: u32,
    /// Check value of the hash key.
    pub key_check: u32,
    /// The last partition map seen.
    pub map_revision: u64,
    /// Log files with a lower sequence are not needed.
    pub oldest_log_sequence: u64,
    /// A hint; newer ones may exist.
    pub newest_log_sequence: u64,
    /// Delivery ids below this sequence are in `dedupe`.
    pub dedupe_next: u64,
    /// Wall clock.
    pub written_at: WallNs,
    /// The valid partition state file.
    pub parts_sequence: u64,
    /// What a newer minor version put behind the fields above, and its version; kept as it is.
    pub newer: Option<(Version, Box<[u8]>)>,
}

impl Superblock {
    /// The bytes of a copy.
    pub fn seal(&self) -> Box<[u8; SUPERBLOCK_BYTES]> {
        let mut out = Box::new([0; SUPERBLOCK_BYTES]);
        let raw = Raw {
            start: [0; 24],
            store: self.store.bytes(),
            node: U32::new(self.node.value()),
            log_id: U32::new(self.log_id),
            sequence: U64::new(self.sequence),
            flags: U32::new(match self.shutdown {
                Shutdown::Clean => CLEAN,
                Shutdown::Open => 0,
            }),
            partitions: U32::new(self.partitions.value()),
            storage_generation: U32::new(self.storage_generation),
            boots: U32::new(self.boots),
            checkpoint_lsn: U64::new(self.checkpoint_lsn.value()),
            previous_crc: U32::new(self.previous_crc),
            key_check: U32::new(self.key_check),
            map_revision: U64::new(self.map_revision),
            oldest_log_sequence: U64::new(self.oldest_log_sequence),
            newest_log_sequence: U64::new(self.newest_log_sequence),
            dedupe_next: U64::new(self.dedupe_next),
            written_at: U64::new(self.written_at.value()),
            parts_sequence: U64::new(self.parts_sequence),
        };
        write_prefix(&raw, out.as_mut_slice());
        let mut version = Version::OURS;
        let mut used = size_of::<Raw>();
        if let Some((newer, rest)) = &self.newer {
            version = *newer;
            let known = used;
            for (to, from) in out.iter_mut().skip(known).zip(rest) {
                *to = *from;
            }
            used = (known + rest.len()).min(SUPERBLOCK_BYTES);
        }
        super::seal_header(out.as_mut_slice(), MAGIC, used, version);
        out
    }

    /// Checks one copy. `store` and `log_id` are what it must belong to.
    pub fn open(bytes: &[u8], store: StoreId, log_id: u32) -> Result<Self, CorruptReason> {
        let known = size_of::<Raw>();
        let version = super::open_header(bytes, MAGIC, known, SUPERBLOCK_BYTES)?;
        let raw: &Raw = read_prefix(bytes)?;
        if raw.store != store.bytes() || raw.log_id.get() != log_id {
            return Err(CorruptReason::Identity);
        }
        let newer = (version.minor > super::MINOR).then(|| {
            let rest = bytes.get(known..SUPERBLOCK_BYTES).unwrap_or_default();
            (version, Box::from(rest))
        });
        let shutdown = match raw.flags.get() {
            0 => Shutdown::Open,
            CLEAN => Shutdown::Clean,
            _ => return Err(CorruptReason::Value("unknown superblock flags")),
        };
        if !raw.checkpoint_lsn.get().is_multiple_of(4096) {
            return Err(CorruptReason::Value(
                "checkpoint_lsn is not a multiple of 4096",
            ));
        }
        let counters = [
            raw.sequence.get(),
            raw.checkpoint_lsn.get(),
            raw.dedupe_next.get(),
            raw.parts_sequence.get(),
        ];
        if counters.iter().any(|counter| *counter > COUNTER_MAX) || raw.boots.get() == u32::MAX {
            return Err(CorruptReason::Value(
                "a counter of the superblock is used up",
            ));
        }
        Ok(Self {
            store,
            node: NodeId::new(raw.node.get()),
            log_id,
            sequence: raw.sequence.get(),
            shutdown,
            partitions: PartitionCount::new(raw.partitions.get()).ok_or(CorruptReason::Value(
                "the number of partitions is no power of two",
            ))?,
            storage_generation: raw.storage_generation.get(),
            boots: raw.boots.get(),
            checkpoint_lsn: Lsn::new(raw.checkpoint_lsn.get()),
            previous_crc: raw.previous_crc.get(),
            key_check: raw.key_check.get(),
            map_revision: raw.map_revision.get(),
            oldest_log_sequence: raw.oldest_log_sequence.get(),
            newest_log_sequence: raw.newest_log_sequence.get(),
            dedupe_next: raw.dedupe_next.get(),
            written_at: WallNs::new(raw.written_at.get()),
            parts_sequence: raw.parts_sequence.get(),
            newer,
        })
    }
}

/// What a `super` file says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pair {
    /// The valid copy with the higher sequence.
    pub current: Superblock,
    /// Which of the two copies (0 or 1) that is; the next write goes to the other one.
    pub current_copy: usize,
    /// Why the other copy is not valid, if so. A torn write explains it.
    pub other: Option<CorruptReason>,
}

impl Pair {
    /// Chooses between the two copies in `file`. With none valid, the reasons of both.
    pub fn open(
        file: &[u8],
        store: StoreId,
        log_id: u32,
    ) -> Result<Self, (CorruptReason, CorruptReason)> {
        let second = file.get(SUPERBLOCK_BYTES..).unwrap_or_default();
        let copies = (
            Superblock::open(file, store, log_id),
            Superblock::open(second, store, log_id),
        );
        let pair = |current, current_copy, other| Self {
            current,
            current_copy,
            other,
        };
        match copies {
            (Ok(a), Ok(b)) if a.sequence >= b.sequence => Ok(pair(a, 0, None)),
            (Ok(_), Ok(b)) => Ok(pair(b, 1, None)),
            (Ok(a), Err(reason)) => Ok(pair(a, 0, Some(reason))),
            (Err(reason), Ok(b)) => Ok(pair(b, 1, Some(reason))),
            (Err(a), Err(b)) => Err((a, b)),
        }
    }
}
