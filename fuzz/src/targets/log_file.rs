//! The header of a log file: total decode; what is read is what is sealed again.

use ringpost_engine::format::log_file::{LOG_HEADER_BYTES, LogFileHeader};
use ringpost_engine::format::store_file::StoreId;
use ringpost_engine::position::Lsn;

use crate::seal;

/// The input begins with the header; its identity is taken from it.
pub fn run(input: &[u8]) {
    check(input);
    check(&seal::file_header(input, *b"RINGLOG1", LOG_HEADER_BYTES));
}

fn check(input: &[u8]) {
    let store = StoreId::new(seal::get(input, 24).unwrap_or_default());
    let log_id = seal::get_u32(input, 40);
    if let Ok(header) = LogFileHeader::open(input, store, log_id) {
        let again = LogFileHeader::open(header.seal().as_slice(), store, log_id);
        let again = again.expect("just sealed");
        assert_eq!(
            (again.salt, again.start_lsn),
            (header.salt, header.start_lsn)
        );
        let lsn = Lsn::new(seal::get_u64(input, 48));
        if let Some(offset) = header.offset_of(lsn) {
            assert!(offset >= 4096);
        }
    }
}
