//! The first 512 bytes of an info file, written once when the generation is made.

use ringpost_netproto::id::{UserHash, WallNs};
use ringpost_netproto::placement::NAME_BYTES_MAX;
use zerocopy::little_endian::{U16, U32, U64};

use super::super::{Layout, Version, read_prefix, write_prefix};
use super::Seed;
use crate::error::CorruptReason;
use crate::position::Lsn;

/// Of an info file.
pub const MAGIC: [u8; 8] = *b"RINGIDX1";

/// Bytes before the first run: slots 0 to 7.
pub const INFO_HEADER_BYTES: usize = 512;

const _: () = assert!(INFO_HEADER_BYTES == super::SLOT * 8 && super::FIRST_SLOT == 8);

on_disk! {
    struct Raw, "info header", 344 {
        0 start: [u8; 24],
        24 user_hash: U64,
        32 ordinal: U32,
        36 generation: U32,
        40 created_at: U64,
        48 base_lsn: U64,
        56 base_modseq: U64,
        64 tombstones_from: U64,
        72 next_segment: U32,
        76 uidvalidity_max: U32,
        80 name_len: U16,
        82 reserved: [u8; 6],
        88 name: [u8; 256],
    }
}

pub(in super::super) const LAYOUT: Layout = Raw::LAYOUT;

/// The header of an info file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InfoHeader {
    /// Hash of the name.
    pub user: UserHash,
    /// Tells users with equal hashes apart.
    pub ordinal: u32,
    /// The highest without `.part` is the current one.
    pub generation: u32,
    /// Wall clock.
    pub created_at: WallNs,
    /// Log records below this are in the file as it was made.
    pub base_lsn: Lsn,
    /// The user's modseq when it was made.
    pub base_modseq: u64,
    /// The lowest modseq whose expunges are all still known.
    pub tombstones_from: u64,
    /// Above every segment used when it was made.
    pub next_segment: u32,
    /// The highest uidvalidity given when it was made.
    pub uidvalidity_max: u32,
    /// The canonical user name, 1 to 255 bytes.
    pub name: Box<[u8]>,
    /// Who wrote it.
    pub version: Version,
}

impl InfoHeader {
    /// The 512 bytes. The version written is this program's.
    pub fn seal(&self) -> [u8; INFO_HEADER_BYTES] {
        assert!(
            (1..=NAME_BYTES_MAX).contains(&self.name.len()),
            "a user name of {} bytes",
            self.name.len()
        );
        let mut name = [0; 256];
        for (to, from) in name.iter_mut().zip(&self.name) {
            *to = *from;
        }
        let raw = Raw {
            start: [0; 24],
            user_hash: U64::new(self.user.value()),
            ordinal: U32::new(self.ordinal),
            generation: U32::new(self.generation),
            created_at: U64::new(self.created_at.value()),
            base_lsn: U64::new(self.base_lsn.value()),
            base_modseq: U64::new(self.base_modseq),
            tombstones_from: U64::new(self.tombstones_from),
            next_segment: U32::new(self.next_segment),
            uidvalidity_max: U32::new(self.uidvalidity_max),
            name_len: U16::new(u16::try_from(self.name.len()).expect("at most 255")),
            reserved: [0; 6],
            name,
        };
        let mut out = [0; INFO_HEADER_BYTES];
        write_prefix(&raw, &mut out);
        super::super::seal_header(&mut out, MAGIC, size_of::<Raw>(), Version::OURS);
        out
    }

    /// Checks the header against the directory and file name it was found under.
    pub fn open(
        bytes: &[u8],
        user: UserHash,
        ordinal: u32,
        generation: u32,
    ) -> Result<Self, CorruptReason> {
        let version = super::super::open_header(bytes, MAGIC, size_of::<Raw>(), INFO_HEADER_BYTES)?;
        let raw: &Raw = read_prefix(bytes)?;
        let found = (raw.user_hash.get(), raw.ordinal.get(), raw.generation.get());
        if found != (user.value(), ordinal, generation) {
            return Err(CorruptReason::Identity);
        }
        version.reserved().check(&raw.reserved)?;
        let name_len = usize::from(raw.name_len.get());
        if !(1..=NAME_BYTES_MAX).contains(&name_len) {
            return Err(CorruptReason::Length);
        }
        let (name, padding) = raw
            .name
            .split_at_checked(name_len)
            .ok_or(CorruptReason::Length)?;
        version.reserved().check(padding)?;
        Ok(Self {
            user,
            ordinal,
            generation,
            created_at: WallNs::new(raw.created_at.get()),
            base_lsn: Lsn::new(raw.base_lsn.get()),
            base_modseq: raw.base_modseq.get(),
            tombstones_from: raw.tombstones_from.get(),
            next_segment: raw.next_segment.get(),
            uidvalidity_max: raw.uidvalidity_max.get(),
            name: Box::from(name),
            version,
        })
    }

    /// What the CRCs of this file's runs start from.
    pub fn seed(&self) -> Seed {
        Seed {
            user: self.user,
            generation: self.generation,
        }
    }
}
