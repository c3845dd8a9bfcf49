//! `INFO_SWAP`: a user's files of a new generation are complete and durable under their part names,
//! and count from here on. The commit point of a compaction (storage.md 8.5).

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, IntoBytes};

use super::super::{Layout, Reserved, index, pad8, read_prefix};
use super::RECORD_HEADER_BYTES;
use crate::error::CorruptReason;

on_disk! {
    struct Raw, "INFO_SWAP payload", 16 {
        0 generation: U32,
        4 slots: U32,
        8 new_count: U32,
        12 retired_count: U32,
    }
}

pub(in super::super) const LAYOUT: Layout = Raw::LAYOUT;

/// Bytes of an `INFO_SWAP` record with so many segment ids, new and retired ones together.
pub const fn swap_len(segments_count: usize) -> usize {
    pad8(RECORD_HEADER_BYTES + size_of::<Raw>() + 4 * segments_count)
}

/// What an `INFO_SWAP` says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SwapParts<'a> {
    /// Of the info file that counts from here on, until redo or checkpoint named
    /// `info.<generation>.part`.
    pub generation: u32,
    /// Slots of that file, its header included: records behind this one go on there.
    pub slots: u32,
    /// Segments made by the compaction, until then named `<segment>.part`.
    pub new: &'a [u32],
    /// Segments that hold nothing that is alive in the new generation.
    pub retired: &'a [u32],
}

impl SwapParts<'_> {
    /// The payload, padded.
    pub(super) fn encode(&self) -> Vec<u8> {
        let count = |ids: &[u32]| U32::new(u32::try_from(ids.len()).expect("a frame bounds it"));
        let raw = Raw {
            generation: U32::new(self.generation),
            slots: U32::new(self.slots),
            new_count: count(self.new),
            retired_count: count(self.retired),
        };
        let len = swap_len(self.new.len() + self.retired.len()) - RECORD_HEADER_BYTES;
        let mut out = Vec::with_capacity(len);
        out.extend_from_slice(raw.as_bytes());
        for id in self.new.iter().chain(self.retired) {
            out.extend_from_slice(&id.to_le_bytes());
        }
        out.resize(len, 0);
        out
    }
}

/// A decoded `INFO_SWAP`; fields as in [`SwapParts`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InfoSwap<'a> {
    /// See [`SwapParts::generation`].
    pub generation: u32,
    /// See [`SwapParts::slots`].
    pub slots: u32,
    new: &'a [U32],
    retired: &'a [U32],
}

impl<'a> InfoSwap<'a> {
    pub(super) fn decode(rest: &'a [u8]) -> Result<Self, CorruptReason> {
        let raw: &Raw = read_prefix(rest)?;
        let (new, retired) = (index(raw.new_count.get()), index(raw.retired_count.get()));
        // A frame is at most 4 MiB: longer lists cannot be right, nor wrap the sums below.
        let fits = new <= rest.len()
            && retired <= rest.len()
            && rest.len() + RECORD_HEADER_BYTES == swap_len(new + retired);
        let ids = rest.get(size_of::<Raw>()..).filter(|_| fits);
        let (ids, padding) = ids
            .and_then(|ids| ids.split_at_checked(4 * (new + retired)))
            .ok_or(CorruptReason::Length)?;
        Reserved::Zero.check(padding)?;
        let ids = <[U32]>::ref_from_bytes(ids).map_err(|_size| CorruptReason::Length)?;
        let (new, retired) = ids.split_at_checked(new).ok_or(CorruptReason::Length)?;
        if raw.generation.get() == 0 || raw.slots.get() < super::super::info::FIRST_SLOT {
            return Err(CorruptReason::Value(
                "an INFO_SWAP without generation or slots",
            ));
        }
        Ok(Self {
            generation: raw.generation.get(),
            slots: raw.slots.get(),
            new,
            retired,
        })
    }

    /// The segments that the compaction made.
    pub fn new_segments(&self) -> impl Iterator<Item = u32> + 'a {
        self.new.iter().map(|id| id.get())
    }

    /// The segments that nothing refers to any more.
    pub fn retired_segments(&self) -> impl Iterator<Item = u32> + 'a {
        self.retired.iter().map(|id| id.get())
    }
}
