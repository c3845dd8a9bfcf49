//! The file of delivery ids: total decode of header and entries.

use ringpost_engine::format::crc;
use ringpost_engine::format::dedupe::{
    DEDUPE_ENTRY_BYTES, DEDUPE_HEADER_BYTES, DedupeEntry, DedupeHeader,
};
use ringpost_engine::format::store_file::StoreId;

use crate::seal;

/// The input is a header of 4096 bytes and entries behind it; identity is taken from it.
pub fn run(input: &[u8]) {
    header(input);
    header(&seal::file_header(input, *b"RINGDUP1", DEDUPE_HEADER_BYTES));
    let entries = input.get(DEDUPE_HEADER_BYTES..).unwrap_or(input);
    for (sequence, bytes) in (0..).zip(entries.chunks(DEDUPE_ENTRY_BYTES)) {
        entry(bytes, sequence);
        let mut sealed = bytes.to_vec();
        let seed = crc::of(&u64::to_le_bytes(sequence));
        let crc = crc::extend(seed, sealed.get(4..).unwrap_or_default());
        seal::put_u32(&mut sealed, 0, crc);
        entry(&sealed, sequence);
    }
}

fn header(input: &[u8]) {
    let store = StoreId::new(seal::get(input, 24).unwrap_or_default());
    if let Ok(header) = DedupeHeader::open(input, store, seal::get_u32(input, 40)) {
        assert!(header.offset_of(u64::MAX) >= 4096);
    }
}

fn entry(bytes: &[u8], sequence: u64) {
    if let Ok(entry) = DedupeEntry::open(bytes, sequence) {
        assert_eq!(entry.seal(sequence).as_slice(), bytes);
    }
}
