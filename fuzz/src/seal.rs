//! Right checksums for wrong contents. A fuzzer does not find a CRC by chance, so targets run twice:
//! on the bytes as they are, and on a copy whose checksums were made to hold, which gets past them
//! to the code that reads values.

use ringpost_engine::format::crc;

/// Writes `value` little-endian at `at`, if it fits.
pub(crate) fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    put(bytes, at, &value.to_le_bytes());
}

/// Writes `value` at `at`, if it fits.
pub(crate) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(to) = at
        .checked_add(value.len())
        .and_then(|end| bytes.get_mut(at..end))
    {
        to.copy_from_slice(value);
    }
}

/// The little-endian number at `at`, 0 beyond the end.
pub(crate) fn get_u32(bytes: &[u8], at: usize) -> u32 {
    get(bytes, at).map_or(0, u32::from_le_bytes)
}

/// The little-endian number at `at`, 0 beyond the end.
pub(crate) fn get_u64(bytes: &[u8], at: usize) -> u64 {
    get(bytes, at).map_or(0, u64::from_le_bytes)
}

/// The `N` bytes at `at`.
pub(crate) fn get<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// A copy with at least `header_len` bytes whose first are a file header that holds: magic, this
/// program's version, and the checksum at 8 over bytes 12 to `header_len`.
pub(crate) fn file_header(bytes: &[u8], magic: [u8; 8], header_len: usize) -> Vec<u8> {
    let mut out = bytes.to_vec();
    out.resize(out.len().max(header_len), 0);
    put(&mut out, 0, &magic);
    put(&mut out, 12, &[1]);
    let crc = crc::of(out.get(12..header_len).unwrap_or_default());
    put_u32(&mut out, 8, crc);
    out
}

/// A copy of a text file whose last line is its checksum.
pub(crate) fn text(bytes: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    let line_len = "crc 01234567\n".len();
    if out.len() >= line_len
        && out
            .get(out.len() - line_len..)
            .is_some_and(|l| l.starts_with(b"crc "))
    {
        out.truncate(out.len() - line_len);
    }
    if !out.ends_with(b"\n") {
        out.push(b'\n');
    }
    let crc = crc::of(&out);
    out.extend_from_slice(format!("crc {crc:08x}\n").as_bytes());
    out
}

/// A copy in which every frame of the node protocol has its magic, a length that is all there, and
/// checksums that hold.
pub(crate) fn node_frames(bytes: &[u8]) -> Vec<u8> {
    const HEADER: usize = 64;
    let mut out = bytes.to_vec();
    let mut at = 0;
    while let Some(rest) = out.get_mut(at..).filter(|rest| rest.len() >= HEADER) {
        let here = rest.len() - HEADER;
        let wanted = usize::try_from(get_u32(rest, 8)).unwrap_or(usize::MAX);
        let len = if wanted > here {
            wanted % (here + 1)
        } else {
            wanted
        };
        let payload = rest.get(HEADER..HEADER + len).unwrap_or_default();
        let payload_crc = crc::of(payload);
        put(rest, 0, b"RPN1");
        put_u32(rest, 8, u32::try_from(len).unwrap_or_default());
        put_u32(rest, 12, payload_crc);
        let header_crc = crc::of(rest.get(8..HEADER).unwrap_or_default());
        put_u32(rest, 4, header_crc);
        at += HEADER + len;
    }
    out
}
