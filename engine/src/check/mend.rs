//! The one wrong byte of a structure, found by its CRC. CRC-32 is linear: what a wrong byte adds to the
//! sum depends on its place and on the bits that changed, and no two of these agree in anything shorter
//! than 512 MiB. So a sum that is off names the byte, if it was one.
//!
//! Other damage names a byte too, by chance, in about one of 2^24 / length cases. Who asks must prove
//! the result by something else, and never asks for the text of a message.

use crate::format::crc;

/// Contribution of each byte to the CRC, reflected polynomial 0xEDB88320.
fn table() -> [u32; 256] {
    std::array::from_fn(|index| {
        let value = u32::try_from(index).expect("at most 255");
        (0..8).fold(value, |value, _bit| {
            (value >> 1) ^ if value & 1 == 1 { 0xEDB8_8320 } else { 0 }
        })
    })
}

/// Places and changes, each of which alone would turn the sum `actual` of `len` bytes into `expected`:
/// (offset, bits to be flipped). Empty if the sums agree.
pub(crate) fn one_byte(len: usize, actual: u32, expected: u32) -> Vec<(usize, u8)> {
    let mut found = Vec::new();
    // By top byte: these are all different.
    let mut inverse = [(0u8, 0u32); 256];
    for (byte, entry) in (0..=u8::MAX).zip(table()) {
        let [.., top] = entry.to_le_bytes();
        if let Some(place) = inverse.get_mut(usize::from(top)) {
            *place = (byte, entry);
        }
    }
    let mut state = actual ^ expected;
    if state == 0 {
        return found;
    }
    for at in (0..len).rev() {
        let [.., top] = state.to_le_bytes();
        let Some((byte, entry)) = inverse.get(usize::from(top)).copied() else {
            return found;
        };
        if state == entry && byte != 0 {
            found.push((at, byte));
        }
        state = ((state ^ entry) << 8) | u32::from(byte);
    }
    found
}

/// `bytes` with the change of [`one_byte`].
pub(crate) fn changed(bytes: &[u8], (at, bits): (usize, u8)) -> Vec<u8> {
    let mut out = bytes.to_vec();
    if let Some(byte) = out.get_mut(at) {
        *byte ^= bits;
    }
    out
}

/// What `bytes` were, if one byte is wrong of a structure whose sum lies at `sum_at` and covers all from
/// `from` on; `stored` is what lies there, `actual` the sum of what it covers.
pub(crate) fn under_sum(
    bytes: &[u8],
    (sum_at, from): (usize, usize),
    (stored, actual): (u32, u32),
) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let wrong = (stored ^ actual).to_le_bytes();
    if wrong.iter().filter(|byte| **byte != 0).count() == 1 {
        let mut candidate = bytes.to_vec();
        if let Some(sum) = candidate.get_mut(sum_at..sum_at + 4) {
            sum.copy_from_slice(&actual.to_le_bytes());
            found.push(candidate);
        }
    }
    let len = bytes.len().saturating_sub(from);
    let inside = one_byte(len, actual, stored);
    found.extend(
        inside
            .into_iter()
            .map(|(at, bits)| changed(bytes, (at + from, bits))),
    );
    found
}

/// What a file header was, if one byte of it is wrong: candidates, of which the caller opens those that
/// can be opened. No sum covers the magic value: all its neighbours are given.
pub(crate) fn header(bytes: &[u8]) -> Vec<Vec<u8>> {
    const SUM: usize = 8;
    const COVERED: usize = 12;
    let (Some(stored), Some(covered)) = (
        bytes.get(SUM..).and_then(|rest| rest.first_chunk()),
        bytes.get(COVERED..),
    ) else {
        return Vec::new();
    };
    let sums = (u32::from_le_bytes(*stored), crc::of(covered));
    if sums.0 != sums.1 {
        return under_sum(bytes, (SUM, COVERED), sums);
    }
    let magic = (0..SUM).flat_map(|at| (1..=u8::MAX).map(move |bits| (at, bits)));
    magic.map(|change| changed(bytes, change)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wrong_byte_is_named() {
        let good: Vec<u8> = (0..1000u32)
            .map(|n| u8::try_from(n * 7 % 251).unwrap())
            .collect();
        let expected = crc::of(&good);
        for at in (0..good.len()).step_by(13) {
            for bits in [1, 0x80, 0x55, 0xFF] {
                let bad = changed(&good, (at, bits));
                assert_eq!(
                    one_byte(bad.len(), crc::of(&bad), expected),
                    [(at, bits)],
                    "{bits:#x} at {at}"
                );
            }
        }
        assert_eq!(one_byte(good.len(), expected, expected), []);
    }

    #[test]
    fn two_wrong_bytes_are_seldom_one() {
        let good = vec![0x5A; 512];
        let expected = crc::of(&good);
        let mut named = 0;
        for at in 0..500 {
            let bad = changed(&changed(&good, (at, 3)), (at + 9, 0x40));
            named += one_byte(bad.len(), crc::of(&bad), expected).len();
        }
        assert_eq!(named, 0);
    }
}
