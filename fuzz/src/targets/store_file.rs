//! The text file STORE: total decode, and one form only.

use ringpost_engine::format::store_file::StoreFile;

use crate::seal;

/// The input is the file.
pub fn run(input: &[u8]) {
    check(input);
    check(&seal::text(input));
}

fn check(input: &[u8]) {
    if let Ok(store) = StoreFile::decode(input) {
        assert_eq!(store.encode(), input);
    }
}
