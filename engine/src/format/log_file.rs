//! The header of a log file: which piece of which log this is. Written anew, with a new salt, each
//! time the file is armed; what a former use left behind has another salt and is not read as ours.

use ringpost_netproto::id::WallNs;
use zerocopy::little_endian::{U32, U64};

use super::store_file::StoreId;
use super::{BLOCK_HEADER_BYTES, COUNTER_MAX, Layout, Version, read_prefix, write_prefix};
use crate::error::CorruptReason;
use crate::position::Lsn;

/// Of an armed log file. One that was never armed is all zeros.
pub const MAGIC: [u8; 8] = *b"RINGLOG1";

/// Bytes before the first frame.
pub const LOG_HEADER_BYTES: usize = BLOCK_HEADER_BYTES;

on_disk! {
    struct Raw, "log file header", 88 {
        0 start: [u8; 24],
        24 store: [u8; 16],
        40 log_id: U32,
        44 reserved: U32,
        48 sequence: U64,
        56 salt: U64,
        64 start_lsn: U64,
        72 previous_salt: U64,
        80 armed_at: U64,
    }
}

pub(super) const LAYOUT: Layout = Raw::LAYOUT;

/// An armed log file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogFileHeader {
    /// The store it belongs to.
    pub store: StoreId,
    /// The log directory.
    pub log_id: u32,
    /// Grows with every arming; decides between two claims to one predecessor.
    pub sequence: u64,
    /// In every frame of this file; random, never 0.
    pub salt: u64,
    /// Position of byte 4096.
    pub start_lsn: Lsn,
    /// Salt of the file before this one; 0 for the first.
    pub previous_salt: u64,
    /// Wall clock.
    pub armed_at: WallNs,
    /// Who wrote it.
    pub version: Version,
}

impl LogFileHeader {
    /// The 4096 bytes in front of the payload. The version written is this program's.
    pub fn seal(&self) -> Box<[u8; LOG_HEADER_BYTES]> {
        let mut out = Box::new([0; LOG_HEADER_BYTES]);
        let raw = Raw {
            start: [0; 24],
            store: self.store.bytes(),
            log_id: U32::new(self.log_id),
            reserved: U32::ZERO,
            sequence: U64::new(self.sequence),
            salt: U64::new(self.salt),
            start_lsn: U64::new(self.start_lsn.value()),
            previous_salt: U64::new(self.previous_salt),
            armed_at: U64::new(self.armed_at.value()),
        };
        write_prefix(&raw, out.as_mut_slice());
        super::seal_header(out.as_mut_slice(), MAGIC, size_of::<Raw>(), Version::OURS);
        out
    }

    /// Checks the header. `Magic` means the file was never armed (or the block is lost).
    pub fn open(bytes: &[u8], store: StoreId, log_id: u32) -> Result<Self, CorruptReason> {
        let version = super::open_header(bytes, MAGIC, size_of::<Raw>(), LOG_HEADER_BYTES)?;
        let raw: &Raw = read_prefix(bytes)?;
        if raw.store != store.bytes() || raw.log_id.get() != log_id {
            return Err(CorruptReason::Identity);
        }
        version.reserved().check(&raw.reserved.to_bytes())?;
        if raw.salt.get() == 0 {
            return Err(CorruptReason::Value("the salt is 0"));
        }
        if !raw.start_lsn.get().is_multiple_of(4096) {
            return Err(CorruptReason::Value("start_lsn is not a multiple of 4096"));
        }
        if raw.start_lsn.get() > COUNTER_MAX || raw.sequence.get() > COUNTER_MAX {
            return Err(CorruptReason::Value("start_lsn or sequence is used up"));
        }
        Ok(Self {
            store,
            log_id,
            sequence: raw.sequence.get(),
            salt: raw.salt.get(),
            start_lsn: Lsn::new(raw.start_lsn.get()),
            previous_salt: raw.previous_salt.get(),
            armed_at: WallNs::new(raw.armed_at.get()),
            version,
        })
    }

    /// Where `lsn` lies in this file, in bytes from its start; `None` if it lies before it.
    pub fn offset_of(&self, lsn: Lsn) -> Option<u64> {
        lsn.value()
            .checked_sub(self.start_lsn.value())?
            .checked_add(LOG_HEADER_BYTES as u64)
    }
}
