//! The state of a log's partitions: total decode; what is read is what is written again.

use ringpost_engine::format::crc;
use ringpost_engine::format::parts::{PARTS_ENTRY_BYTES, PARTS_HEADER_BYTES, decode, encode};
use ringpost_engine::format::store_file::StoreId;

use crate::seal;

/// The input is the file; identity is taken from it.
pub fn run(input: &[u8]) {
    check(input);
    let mut sealed = seal::file_header(input, *b"RINGPRT1", PARTS_HEADER_BYTES);
    let head = sealed.clone();
    let seed = crc::of(head.get(48..56).unwrap_or_default());
    let seed = crc::extend(seed, head.get(40..44).unwrap_or_default());
    let entries = sealed.get_mut(PARTS_HEADER_BYTES..).unwrap_or_default();
    for entry in entries.chunks_mut(PARTS_ENTRY_BYTES) {
        let crc = crc::extend(seed, entry.get(4..).unwrap_or_default());
        seal::put_u32(entry, 0, crc);
    }
    check(&sealed);
}

fn check(input: &[u8]) {
    let store = StoreId::new(seal::get(input, 24).unwrap_or_default());
    let log_id = seal::get_u32(input, 40);
    if let Ok((sequence, partitions)) = decode(input, store, log_id) {
        let written = encode(store, log_id, sequence, &partitions);
        assert_eq!(decode(&written, store, log_id), Ok((sequence, partitions)));
    }
}
