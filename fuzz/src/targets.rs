//! One file per target. Each says what its input is and what must hold.

pub mod address;
pub mod dedupe;
pub mod folders;
pub mod header_cache;
pub mod import_mbox;
pub mod info;
pub mod lmtp;
pub mod log_file;
pub mod log_frame;
pub mod mbox_scan;
pub mod message;
pub mod node_client;
pub mod node_frame;
pub mod node_server;
pub mod parts;
pub mod store_file;
pub mod store_line;
pub mod superblock;

/// How a target cuts its input: the first byte is the length of the pieces, the rest the input.
fn pieces(input: &[u8]) -> Option<(usize, &[u8])> {
    let (len, rest) = input.split_first()?;
    Some((usize::from(*len).max(1), rest))
}
