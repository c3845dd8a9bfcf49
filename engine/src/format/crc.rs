//! CRC-32/ISO-HDLC (reflected 0xEDB88320, init and xorout 0xFFFFFFFF), the check of every structure
//! on disk. It is not CRC-32C. A value of 0 is the CRC of no bytes, so that chains start from 0.

use crc32fast::Hasher;

/// The CRC of `bytes`.
pub fn of(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// The CRC of what `crc` covers followed by `bytes`.
#[must_use]
pub fn extend(crc: u32, bytes: &[u8]) -> u32 {
    let mut hasher = Hasher::new_with_initial(crc);
    hasher.update(bytes);
    hasher.finalize()
}

/// The CRC of what `first` covers followed by the `second_len` bytes that `second` covers: lets a
/// CRC taken while bytes arrived stand in for reading them again.
///
/// It is `first` times x^(8 `second_len`), plus `second`, in polynomials modulo that of the CRC.
/// crc32fast's own takes a multiplication, bit by bit, for each bit of the length: for a message of
/// some KiB that is more than reading it would be. Here it is one for each byte, by four bits.
#[must_use]
#[expect(
    clippy::indexing_slicing,
    reason = "256 entries, and the digit is a byte"
)]
pub fn combine(first: u32, second: u32, second_len: u64) -> u32 {
    if second_len == 0 {
        return first;
    }
    let mut shifted = first;
    let mut left = second_len;
    for powers in &POWERS {
        if left == 0 {
            break;
        }
        let [digit, ..] = left.to_le_bytes();
        if digit != 0 {
            shifted = multiply(shifted, powers[usize::from(digit)]);
        }
        left >>= 8;
    }
    shifted ^ second
}

/// The polynomial without its x^32, reflected like all others: bit 31 is 1, bit 0 is x^31.
const POLYNOMIAL: u32 = 0xEDB8_8320;
/// x^8: a zero byte behind what a CRC covers.
const X_8: u32 = 1 << 23;

/// x^(8 n) for each length n that is a byte at one of the eight places of a u64: 8 KiB, of which
/// messages of up to 64 KiB use the first two.
#[expect(clippy::indexing_slicing, reason = "at compile time")]
static POWERS: [[u32; 256]; 8] = {
    let mut all = [[1 << 31; 256]; 8];
    let mut step = X_8;
    let mut place = 0;
    while place < 8 {
        let mut digit = 1;
        while digit < 256 {
            all[place][digit] = multiply(all[place][digit - 1], step);
            digit += 1;
        }
        step = multiply(all[place][255], step);
        place += 1;
    }
    all
};

/// What four bits below x^31 are modulo the polynomial.
#[expect(clippy::indexing_slicing, reason = "at compile time")]
static OVERFLOW: [u32; 16] = {
    let mut all = [0; 16];
    let mut bits = 0u32;
    while bits < 16 {
        all[bits as usize] = times_x(times_x(times_x(times_x(bits))));
        bits += 1;
    }
    all
};

const fn times_x(a: u32) -> u32 {
    (a >> 1) ^ (POLYNOMIAL & (a & 1).wrapping_neg())
}

/// The product of two polynomials modulo that of the CRC: by Horner's rule over four bits of `b` at
/// a time, those of the highest powers first.
#[expect(
    clippy::indexing_slicing,
    reason = "16 entries, and an index of four bits"
)]
const fn multiply(a: u32, b: u32) -> u32 {
    let (x1, x2) = (times_x(a), times_x(times_x(a)));
    let x3 = times_x(x2);
    let (low, high) = (x2 ^ x3, a ^ x1);
    // By the four bits: 8 is 1, 4 is x, 2 is x^2, 1 is x^3.
    let times = [
        0,
        x3,
        x2,
        low,
        x1,
        x1 ^ x3,
        x1 ^ x2,
        x1 ^ low,
        a,
        a ^ x3,
        a ^ x2,
        a ^ low,
        high,
        high ^ x3,
        high ^ x2,
        high ^ low,
    ];
    let mut product = 0;
    let mut bits = 0;
    while bits < 32 {
        let digit = (b >> bits) & 15;
        product = (product >> 4) ^ OVERFLOW[(product & 15) as usize] ^ times[digit as usize];
        bits += 4;
    }
    product
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// crc32fast's own, which takes the lengths bit by bit.
    fn slow(first: u32, second: u32, second_len: u64) -> u32 {
        let mut hasher = Hasher::new_with_initial(first);
        hasher.combine(&Hasher::new_with_initial_len(second, second_len));
        hasher.finalize()
    }

    /// The check value of the catalogue of parametrised CRC algorithms for CRC-32/ISO-HDLC.
    #[test]
    fn it_is_iso_hdlc() {
        assert_eq!(of(b"123456789"), 0xCBF4_3926);
        assert_eq!(of(b""), 0);
    }

    #[test]
    fn extend_and_combine_equal_one_pass() {
        let whole = of(b"one, two, three");
        assert_eq!(extend(of(b"one, "), b"two, three"), whole);
        assert_eq!(combine(of(b"one, "), of(b"two, three"), 10), whole);
        assert_eq!(combine(whole, of(b""), 0), whole);
    }

    #[test]
    fn combine_holds_for_every_length_of_two_bytes_and_each_power_of_two() {
        let powers = (0..64).map(|bit| 1u64 << bit);
        for len in (0..1 << 16).chain(powers).chain([u64::MAX]) {
            for first in [1, 1 << 31, 0xDEAD_BEEF] {
                assert_eq!(
                    combine(first, 7, len),
                    slow(first, 7, len),
                    "{first:x} {len}"
                );
            }
        }
    }

    #[test]
    fn combine_is_linear_in_each_bit_of_what_comes_first() {
        for bit in 0..32 {
            let first = 1 << bit;
            assert_eq!(combine(first, 0, 4_171), slow(first, 0, 4_171), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn combine_equals_reading_all(
            first in proptest::collection::vec(any::<u8>(), 0..300),
            second in proptest::collection::vec(any::<u8>(), 0..5_000),
        ) {
            let len = u64::try_from(second.len()).expect("short");
            let whole = of(&[&first[..], &second].concat());
            prop_assert_eq!(combine(of(&first), of(&second), len), whole);
        }

        #[test]
        fn combine_is_crc32fasts(first: u32, second: u32, len: u64, cut in 0u32..64) {
            let len = len >> cut;
            prop_assert_eq!(combine(first, second, len), slow(first, second, len));
        }
    }
}
