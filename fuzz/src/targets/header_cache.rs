//! The header cache: total decode, and one form only.

use ringpost_engine::header_cache::{decode, encode};

/// The input is a cache.
pub fn run(input: &[u8]) {
    if let Ok(fields) = decode(input) {
        assert_eq!(encode(&fields), input);
    }
}
