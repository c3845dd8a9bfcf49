//! Messages out of segments: what a compaction copies is proved while it is read (storage.md 8.5).
//!
//! A message that is not as the index says ends the whole work with an EIO that names the segment and
//! the place; nothing of it was promised to anybody yet.

use crate::error::IoError;
use crate::format::crc;
use crate::format::store_line::{STORE_LINE_BYTES, StoreLine};
use crate::io::RelPath;
use crate::limits::FRAME_BYTES_MAX;

/// Bytes of a message in a segment: prefix, stored message, empty line.
pub(crate) fn message_bytes(skip: u16, line: &StoreLine) -> u64 {
    u64::from(skip) + u64::from(line.stored_len) + 1
}

/// The error of a message that is not what it must be, or could not be read.
pub(crate) fn damaged(path: &RelPath, offset: u64, len: u64, errno: i32) -> IoError {
    IoError {
        operation: "verify a message in",
        path: path.to_string(),
        offset,
        len,
        errno,
    }
}

/// How many bytes a piece takes; more than a frame never were a small message.
pub(crate) fn bounded(path: &RelPath, offset: u64, len: u64) -> Result<usize, IoError> {
    let fits = usize::try_from(len).ok().filter(|_| len <= FRAME_BYTES_MAX);
    fits.ok_or_else(|| damaged(path, offset, len, libc::EINVAL))
}

/// Holds the bytes of a message against its store line, which the index vouches for.
pub(crate) fn prove(
    bytes: &[u8],
    (path, offset): (&RelPath, u64),
    skip: u16,
    line: &StoreLine,
) -> Result<(), IoError> {
    let whole = || {
        let (prefix, rest) = bytes.split_at_checked(usize::from(skip))?;
        let found = prefix.last_chunk::<STORE_LINE_BYTES>()?;
        let (stored, end) = rest.split_at_checked(crate::format::index(line.stored_len))?;
        let same = StoreLine::decode(found).ok()? == *line
            && prefix.starts_with(b"From ")
            && crc::of(stored) == line.stored_crc
            && end == b"\n";
        same.then_some(())
    };
    let len = message_bytes(skip, line);
    whole().ok_or_else(|| damaged(path, offset, len, libc::EIO))
}
