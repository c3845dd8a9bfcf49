//! The store line: total decode, and one form only.

use ringpost_engine::format::store_line::StoreLine;

/// The input begins with a store line.
pub fn run(input: &[u8]) {
    if let Ok(line) = StoreLine::decode(input) {
        assert!(input.starts_with(&line.encode()));
    }
}
