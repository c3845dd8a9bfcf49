//! A user's records without those of the others around them, as a copy of one user keeps them: whoever
//! else a frame served leaves blanks of the same length, so that everything stays where it was.

use core::mem::offset_of;
use core::ops::Range;

use zerocopy::little_endian::U32;

use super::super::write_prefix;
use super::{GOES_ON, Group, RawHeader, RecordType};

/// Type of a blank: NOOP with the bit that lets every reader skip it.
const BLANK: u8 = RecordType::OPTIONAL | RecordType::Noop.value();

/// Makes `out` one record of zeros that a reader skips: at least a header's bytes, a multiple of 8.
pub(crate) fn blank(out: &mut [u8]) {
    out.fill(0);
    let rec_len = U32::new(u32::try_from(out.len()).expect("a frame is at most 4 MiB"));
    write_prefix(&rec_len, out);
    if let Some(kind) = out.get_mut(offset_of!(RawHeader, kind)) {
        *kind = BLANK;
    }
}

/// Takes a record out of its partition's chain, which has holes without the others, and says whether
/// its group goes on.
pub(crate) fn detach(record: &mut [u8], group: Group) {
    if let Some(flags) = record.get_mut(offset_of!(RawHeader, flags)) {
        *flags &= !GOES_ON;
        if group == Group::GoesOn {
            *flags |= GOES_ON;
        }
    }
    for field in [PSEQ, CHAIN] {
        if let Some(bytes) = record.get_mut(field) {
            bytes.fill(0);
        }
    }
}

const PSEQ: Range<usize> = offset_of!(RawHeader, pseq)..offset_of!(RawHeader, pseq) + 8;
const CHAIN: Range<usize> = offset_of!(RawHeader, chain)..offset_of!(RawHeader, chain) + 4;
