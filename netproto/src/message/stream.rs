//! Streams: pieces of a body, each with the checksum of its frame, and an end with the length and
//! checksum of the whole. The whole checksum is joined from those of the frames, so that the bytes
//! are read once; it notices pieces that are missing, doubled or out of order.

use bytes::BytesMut;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use super::{Fault, Reader};
use crate::frame::Frame;
use crate::wire::wire_struct;

wire_struct! {
    /// Stream end. A status other than OK in its header breaks the stream off; then a text follows
    /// and length and checksum mean nothing.
    pub struct StreamEndMeta [16] {
        /// Bytes of the whole body.
        0 body_len: U64,
        /// CRC-32/ISO-HDLC of the whole body.
        8 body_crc: U32,
        /// Sent 0.
        12 reserved: U32,
    }
}

/// Length and checksum of a body so far, or of the whole.
#[derive(Clone, Debug, Default)]
pub struct BodySum {
    hasher: crc32fast::Hasher,
    len: u64,
}

impl BodySum {
    /// Adds a piece whose checksum is known.
    pub fn add(&mut self, piece_len: usize, piece_crc: u32) {
        let piece_len = u64::try_from(piece_len).expect("a usize has at most 64 bits");
        let piece = crc32fast::Hasher::new_with_initial_len(piece_crc, piece_len);
        self.hasher.combine(&piece);
        self.len += piece_len;
    }

    /// Bytes so far.
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether there were no bytes.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Checksum so far.
    pub fn crc(&self) -> u32 {
        self.hasher.clone().finalize()
    }

    /// Whether an end speaks of this body.
    pub fn matches(&self, end: &StreamEndMeta) -> bool {
        end.body_len.get() == self.len && end.body_crc.get() == self.crc()
    }

    /// Appends the payload of the stream's end. Returns the length of the meta struct.
    pub fn encode_end(&self, out: &mut BytesMut) -> usize {
        let meta = StreamEndMeta {
            body_len: U64::new(self.len),
            body_crc: U32::new(self.crc()),
            reserved: U32::new(0),
        };
        out.extend_from_slice(meta.as_bytes());
        size_of::<StreamEndMeta>()
    }
}

/// Reads the payload of a stream's end.
pub fn decode_end(frame: &Frame) -> Result<StreamEndMeta, Fault> {
    let (meta, reader) = Reader::new::<StreamEndMeta>(frame)?;
    reader.finish()?;
    Ok(meta)
}
