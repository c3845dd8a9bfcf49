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
#[must_use]
pub fn combine(first: u32, second: u32, second_len: u64) -> u32 {
    let mut hasher = Hasher::new_with_initial(first);
    hasher.combine(&Hasher::new_with_initial_len(second, second_len));
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
