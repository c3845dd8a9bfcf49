//! The ring of delivery ids: a header of 4096 bytes and entries of 48. Derived data: losing it
//! costs duplicates, never mail. An entry lies at its sequence number modulo the capacity, and
//! its CRC starts from that number, so that an entry of a former lap is not taken for its successor.

use ringpost_netproto::id::{Guid, MailboxId, Uid, UserHash};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use super::store_file::StoreId;
use super::{BLOCK_HEADER_BYTES, Layout, Version, crc, read_prefix, write_prefix};
use crate::error::CorruptReason;

/// Of the file.
pub const MAGIC: [u8; 8] = *b"RINGDUP1";

/// Bytes before the first entry.
pub const DEDUPE_HEADER_BYTES: usize = BLOCK_HEADER_BYTES;

/// Bytes of an entry.
pub const DEDUPE_ENTRY_BYTES: usize = 48;

/// A ring has at most this many entries (3 GiB); the default is 2^20.
pub const CAPACITY_MAX: u64 = 1 << 26;

on_disk! {
    struct RawHeader, "dedupe header", 64 {
        0 start: [u8; 24],
        24 store: [u8; 16],
        40 log_id: U32,
        44 logs: U32,
        48 capacity: U64,
        56 base_next: U64,
    }
}

on_disk! {
    struct RawEntry, "dedupe entry", 48 {
        0 crc: U32,
        4 time_s: U32,
        8 user_hash: U64,
        16 guid: [u8; 16],
        32 uid: U32,
        36 mailbox: U32,
        40 ordinal: U32,
        44 body_crc: U32,
    }
}

const _: () = assert!(size_of::<RawEntry>() == DEDUPE_ENTRY_BYTES);

pub(super) const HEADER_LAYOUT: Layout = RawHeader::LAYOUT;
pub(super) const ENTRY_LAYOUT: Layout = RawEntry::LAYOUT;

/// The header of the ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DedupeHeader {
    /// The store it belongs to.
    pub store: StoreId,
    /// The log directory.
    pub log_id: u32,
    /// The number of logs in use when this file was made: with another number the entries belong
    /// to other shards.
    pub logs: u32,
    /// Entries; 1 to [`CAPACITY_MAX`].
    pub capacity: u64,
    /// Sequence number of the first entry that was written into this file.
    pub base_next: u64,
}

impl DedupeHeader {
    /// Sequence of the next delivery id: the superblock's, or, in a file that was made for another number of
    /// logs since, behind its last `good` entry.
    pub(crate) fn next(&self, in_super: u64, mut good: impl FnMut(u64) -> bool) -> u64 {
        if in_super > self.base_next {
            return in_super;
        }
        let end = self.base_next.saturating_add(self.capacity);
        (self.base_next..end)
            .find(|sequence| !good(*sequence))
            .unwrap_or(end)
    }

    /// The 4096 bytes.
    pub fn seal(&self) -> Box<[u8; DEDUPE_HEADER_BYTES]> {
        let mut out = Box::new([0; DEDUPE_HEADER_BYTES]);
        let raw = RawHeader {
            start: [0; 24],
            store: self.store.bytes(),
            log_id: U32::new(self.log_id),
            logs: U32::new(self.logs),
            capacity: U64::new(self.capacity),
            base_next: U64::new(self.base_next),
        };
        write_prefix(&raw, out.as_mut_slice());
        super::seal_header(
            out.as_mut_slice(),
            MAGIC,
            size_of::<RawHeader>(),
            Version::OURS,
        );
        out
    }

    /// Checks the header.
    pub fn open(bytes: &[u8], store: StoreId, log_id: u32) -> Result<Self, CorruptReason> {
        super::open_header(bytes, MAGIC, size_of::<RawHeader>(), DEDUPE_HEADER_BYTES)?;
        let raw: &RawHeader = read_prefix(bytes)?;
        if raw.store != store.bytes() || raw.log_id.get() != log_id {
            return Err(CorruptReason::Identity);
        }
        if !(1..=CAPACITY_MAX).contains(&raw.capacity.get()) {
            return Err(CorruptReason::Length);
        }
        Ok(Self {
            store,
            log_id,
            logs: raw.logs.get(),
            capacity: raw.capacity.get(),
            base_next: raw.base_next.get(),
        })
    }

    /// Where the entry with that sequence number lies, in bytes from the file's start.
    pub fn offset_of(&self, sequence: u64) -> u64 {
        DEDUPE_HEADER_BYTES as u64 + sequence % self.capacity * DEDUPE_ENTRY_BYTES as u64
    }
}

/// One delivery that was stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DedupeEntry {
    /// Seconds since 1970.
    pub time_s: u32,
    /// For whom.
    pub user: UserHash,
    /// Tells users with equal hashes apart.
    pub ordinal: u32,
    /// Into which mailbox.
    pub mailbox: MailboxId,
    /// The delivery id.
    pub guid: Guid,
    /// The number it got.
    pub uid: Uid,
    /// CRC of the stored message: another one under the same id is no duplicate.
    pub body_crc: u32,
}

impl DedupeEntry {
    /// The 48 bytes of the entry with that sequence number.
    pub fn seal(&self, sequence: u64) -> [u8; DEDUPE_ENTRY_BYTES] {
        let mut raw = RawEntry {
            crc: U32::ZERO,
            time_s: U32::new(self.time_s),
            user_hash: U64::new(self.user.value()),
            guid: self.guid.bytes(),
            uid: U32::new(self.uid.value()),
            mailbox: U32::new(self.mailbox.value()),
            ordinal: U32::new(self.ordinal),
            body_crc: U32::new(self.body_crc),
        };
        raw.crc = U32::new(entry_crc(&raw, sequence));
        let mut out = [0; DEDUPE_ENTRY_BYTES];
        write_prefix(&raw, &mut out);
        out
    }

    /// Checks the entry at the place of that sequence number.
    pub fn open(bytes: &[u8], sequence: u64) -> Result<Self, CorruptReason> {
        let raw: &RawEntry = read_prefix(bytes)?;
        if raw.crc.get() != entry_crc(raw, sequence) {
            return Err(CorruptReason::Checksum);
        }
        if raw.uid.get() == 0 {
            return Err(CorruptReason::Value("a delivery with uid 0"));
        }
        Ok(Self {
            time_s: raw.time_s.get(),
            user: UserHash::new(raw.user_hash.get()),
            ordinal: raw.ordinal.get(),
            mailbox: MailboxId::new(raw.mailbox.get()),
            guid: Guid::new(raw.guid),
            uid: Uid::new(raw.uid.get()),
            body_crc: raw.body_crc.get(),
        })
    }
}

/// Of the sequence number and bytes 4 to 48.
fn entry_crc(raw: &RawEntry, sequence: u64) -> u32 {
    crc::extend(
        crc::of(&sequence.to_le_bytes()),
        raw.as_bytes().get(4..).unwrap_or_default(),
    )
}
