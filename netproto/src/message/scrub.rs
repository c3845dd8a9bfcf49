//! SCRUB: asks a node to read what it has and compare it with its checksums. The answer is a report,
//! as STATUS gives one.

use bytes::{Bytes, BytesMut};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U16;

use super::{Fault, Reader, clip, take_user};
use crate::frame::Frame;
use crate::limits::USER_BYTES_MAX;
use crate::wire::{wire_len, wire_struct};

wire_struct! {
    /// SCRUB, request: then the user.
    pub struct ScrubMeta [4] {
        /// Bytes of the user's name; 0: everything that the node has.
        0 user_len: U16,
        /// Sent 0.
        2 reserved: U16,
    }
}

/// Appends the payload of a request; without a user for all of the node. Returns the length of the
/// meta struct.
pub fn encode_request(user: Option<&[u8]>, out: &mut BytesMut) -> usize {
    let user = clip(user.unwrap_or_default(), USER_BYTES_MAX + 1);
    let meta = ScrubMeta {
        user_len: U16::new(wire_len(user.len())),
        reserved: U16::new(0),
    };
    out.extend_from_slice(meta.as_bytes());
    out.extend_from_slice(user);
    size_of::<ScrubMeta>()
}

/// Reads the payload of a request: the canonical user name, if it is about one.
pub fn decode_request(frame: &Frame) -> Result<Option<Bytes>, Fault> {
    let (meta, mut reader) = Reader::new::<ScrubMeta>(frame)?;
    let user = match meta.user_len.get() {
        0 => None,
        len => Some(take_user(&mut reader, len)?),
    };
    reader.finish()?;
    Ok(user)
}
