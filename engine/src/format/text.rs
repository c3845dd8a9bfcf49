//! What the text files STORE and `folders` share: a checksum in the last line, and escaping.
//!
//! The last line is `crc <8 hex digits>` and LF; it covers every byte before it. Names are percent
//! escaped: any byte that is not in 0x21..=0x7E, and `%` itself, as `%` and two upper-case digits.

use std::fmt::Write;

use super::crc;
use crate::error::CorruptReason;

/// Both files are smaller than this: 4,096 mailboxes with names of 1,024 escaped bytes.
pub(super) const TEXT_BYTES_MAX: usize = 16 << 20;

/// Adds the checksum line.
pub(super) fn seal(mut text: String) -> String {
    let crc = crc::of(text.as_bytes());
    writeln!(text, "crc {crc:08x}").expect("a String takes everything");
    text
}

/// The text before the checksum line, if that holds.
pub(super) fn open(bytes: &[u8]) -> Result<&str, CorruptReason> {
    const LINE: usize = "crc 01234567\n".len();
    if bytes.len() > TEXT_BYTES_MAX {
        return Err(CorruptReason::Length);
    }
    let (text, line) = bytes
        .len()
        .checked_sub(LINE)
        .and_then(|at| bytes.split_at_checked(at))
        .ok_or(CorruptReason::Truncated)?;
    let digits = line
        .strip_prefix(b"crc ")
        .and_then(|rest| rest.strip_suffix(b"\n"))
        .ok_or(CorruptReason::Truncated)?;
    if hex_u32(digits) != Some(crc::of(text)) {
        return Err(CorruptReason::Checksum);
    }
    if !text.ends_with(b"\n") {
        return Err(CorruptReason::Truncated);
    }
    std::str::from_utf8(text).map_err(|_utf8| CorruptReason::Value("not ASCII text"))
}

/// Appends `bytes`, escaped.
pub(super) fn escape(bytes: &[u8], out: &mut String) {
    for byte in bytes {
        match byte {
            b'%' => out.push_str("%25"),
            0x21..=0x7E => out.push(char::from(*byte)),
            _ => write!(out, "%{byte:02X}").expect("a String takes everything"),
        }
    }
}

/// Undoes [`escape`]; `None` for anything that `escape` does not produce.
pub(super) fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let pair = [rest.next()?, rest.next()?];
                let value = hex_upper(pair)?;
                if (0x21..=0x7E).contains(&value) && value != b'%' {
                    return None;
                }
                out.push(value);
            }
            0x21..=0x7E => out.push(byte),
            _ => return None,
        }
    }
    Some(out)
}

/// Two upper-case digits.
fn hex_upper(pair: [u8; 2]) -> Option<u8> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    };
    let [high, low] = pair;
    Some((digit(high)? << 4) | digit(low)?)
}

/// What a byte is as a lower-case hexadecimal digit; 0xFF if it is none.
#[expect(clippy::indexing_slicing, reason = "at compile time")]
static DIGITS: [u8; 256] = {
    let mut digits = [0xFF; 256];
    let mut value = 0;
    while value < 16 {
        digits[HEX_DIGITS[value as usize] as usize] = value;
        value += 1;
    }
    digits
};

/// The digits that are written.
const HEX_DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Every byte as two lower-case hexadecimal digits.
#[expect(clippy::indexing_slicing, reason = "at compile time")]
static PAIRS: [[u8; 2]; 256] = {
    let mut pairs = [[0; 2]; 256];
    let mut value = 0;
    while value < 256 {
        pairs[value] = [HEX_DIGITS[value >> 4], HEX_DIGITS[value & 15]];
        value += 1;
    }
    pairs
};

/// Exactly `2 * N` lower-case hexadecimal digits, most significant first. Eight such fields stand in
/// front of every stored message, so nothing branches by digit.
pub(super) fn hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let (pairs, odd) = digits.as_chunks::<2>();
    if pairs.len() != N || !odd.is_empty() {
        return None;
    }
    let value = |digit: u8| DIGITS.get(usize::from(digit)).copied().unwrap_or(0xFF);
    let mut out = [0; N];
    let mut seen = 0;
    for (to, [high, low]) in out.iter_mut().zip(pairs) {
        let (high, low) = (value(*high), value(*low));
        seen |= high | low;
        *to = (high << 4) | (low & 15);
    }
    (seen < 16).then_some(out)
}

/// Writes `bytes`, most significant first, as lower-case hexadecimal digits over `place`, which has
/// room for exactly them.
pub(super) fn put_hex(place: &mut [u8], bytes: impl ExactSizeIterator<Item = u8>) {
    let (pairs, odd) = place.as_chunks_mut::<2>();
    assert!(
        pairs.len() == bytes.len() && odd.is_empty(),
        "two digits for each byte"
    );
    for (pair, byte) in pairs.iter_mut().zip(bytes) {
        *pair = PAIRS.get(usize::from(byte)).copied().unwrap_or_default();
    }
}

/// One byte as two lower-case digits.
pub(super) fn hex_u8(digits: &[u8]) -> Option<u8> {
    hex::<1>(digits).map(|[byte]| byte)
}

/// A 32-bit number as 8 lower-case digits.
pub(super) fn hex_u32(digits: &[u8]) -> Option<u32> {
    hex::<4>(digits).map(|bytes| {
        bytes
            .iter()
            .fold(0, |sum, byte| (sum << 8) | u32::from(*byte))
    })
}

/// A 64-bit number as 16 lower-case digits.
pub(super) fn hex_u64(digits: &[u8]) -> Option<u64> {
    hex::<8>(digits).map(|bytes| {
        bytes
            .iter()
            .fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
    })
}

/// A decimal number without sign or leading zeros.
pub(super) fn decimal(text: &str) -> Option<u32> {
    let value: u32 = text.parse().ok()?;
    (value.to_string() == text).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_survives_escaping_in_one_form_only() {
        for byte in 0..=255u8 {
            let mut text = String::new();
            escape(&[b'a', byte], &mut text);
            assert!(text.bytes().all(|c| (0x21..=0x7E).contains(&c)));
            assert_eq!(unescape(&text), Some(vec![b'a', byte]));
        }
        for bad in ["%", "%4", "%41", "%2f", "%zz", "a b", "\u{e4}"] {
            assert_eq!(unescape(bad), None, "{bad}");
        }
    }

    #[test]
    fn numbers_have_one_form() {
        assert_eq!(decimal("10"), Some(10));
        for bad in ["", "+1", "01", "-1", "4294967296", " 1"] {
            assert_eq!(decimal(bad), None, "{bad}");
        }
        assert_eq!(hex_u32(b"00ff00ff"), Some(0x00ff_00ff));
        for bad in [&b"00FF00FF"[..], b"0ff00ff", b"00ff00ff0"] {
            assert_eq!(hex_u32(bad), None);
        }
    }

    #[test]
    fn only_lower_case_digits_are_read_and_written() {
        let digit = |byte: u8| {
            char::from(byte)
                .to_digit(16)
                .filter(|_| !byte.is_ascii_uppercase())
        };
        for high in 0..=255u8 {
            for low in 0..=255u8 {
                let value = digit(high)
                    .zip(digit(low))
                    .map(|(high, low)| 16 * high + low);
                assert_eq!(hex_u8(&[high, low]).map(u32::from), value, "{high} {low}");
            }
        }
        for byte in 0..=255u8 {
            let mut pair = [0; 2];
            put_hex(&mut pair, [byte].into_iter());
            assert_eq!(pair, format!("{byte:02x}").as_bytes());
        }
    }
}
