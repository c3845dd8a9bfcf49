//! The two superblock copies: total decode; what is read is what is sealed again.

use ringpost_engine::format::store_file::StoreId;
use ringpost_engine::format::superblock::{Pair, SUPERBLOCK_BYTES, Superblock};

use crate::seal;

/// The input is a `super` file; its identity is taken from its first copy.
pub fn run(input: &[u8]) {
    check(input);
    let (first, second) = input
        .split_at_checked(SUPERBLOCK_BYTES)
        .unwrap_or((input, &[]));
    let mut sealed = seal::file_header(first, *b"RINGSUP1", SUPERBLOCK_BYTES);
    sealed.extend_from_slice(&seal::file_header(second, *b"RINGSUP1", SUPERBLOCK_BYTES));
    check(&sealed);
}

fn check(file: &[u8]) {
    let store = StoreId::new(seal::get(file, 24).unwrap_or_default());
    let log_id = seal::get_u32(file, 44);
    if let Ok(pair) = Pair::open(file, store, log_id) {
        assert!(pair.current_copy < 2);
        let again = Superblock::open(pair.current.seal().as_slice(), store, log_id);
        assert_eq!(again.as_ref(), Ok(&pair.current));
    }
}
