//! The frame on the wire: a header of 64 bytes, a payload, and what the numbers in it mean.
//!
//! The header's checksum is over its bytes 8..64 and is verified before any length in it is
//! believed. PROTOCOL.md section 2 is the prose; the struct here is the truth.

mod opcode;
mod status;

use core::fmt;

use bytes::Bytes;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

pub use self::opcode::{Built, Opcode};
pub use self::status::{Status, Verdict};
use crate::wire::wire_struct;

/// The first bytes of every frame. They change only if the header changes.
pub const MAGIC: [u8; 4] = *b"RPN1";

/// Length of [`FrameHeader`].
pub const HEADER_BYTES: usize = 64;

/// `partition` of a frame that concerns none.
pub const PARTITION_NONE: u32 = 0xFFFF_FFFF;

/// Flag bits of a header. Unknown ones are ignored; [`flags::COMPRESSED`] is reserved and refused.
pub mod flags {
    /// May overtake what waits.
    pub const URGENT: u16 = 1;
    /// Held mail that is handed back.
    pub const HELD: u16 = 2;
    /// May have been sent before, on a connection that was cut.
    pub const RETRY: u16 = 4;
    /// A receiver that does not know all of the meta struct must refuse the frame.
    pub const MUST_UNDERSTAND: u16 = 8;
    /// Reserved.
    pub const COMPRESSED: u16 = 16;
}

wire_struct! {
    /// The header of a frame.
    pub struct FrameHeader [64] {
        /// [`MAGIC`].
        0 magic: [u8; 4],
        /// CRC-32/ISO-HDLC of bytes 8..64.
        4 header_crc: U32,
        /// Bytes behind the header, at most the receiver's announced maximum.
        8 payload_len: U32,
        /// CRC-32/ISO-HDLC of the payload, 0 for an empty one.
        12 payload_crc: U32,
        /// [`Opcode`]; numbers are never used again.
        16 opcode: U16,
        /// Schema of this opcode's meta; 1.
        18 op_version: u8,
        /// [`Kind`].
        19 kind: u8,
        /// [`flags`].
        20 flags: U16,
        /// [`Status`] of a response, a stream end or a GOAWAY.
        22 status: U16,
        /// Ascending per connection, odd from the dialer, even from the acceptor; responses, streams
        /// and cancels repeat it. 0 where there is no request.
        24 request_id: U64,
        /// The partition concerned, [`PARTITION_NONE`] if none.
        32 partition: U32,
        /// Epoch of that partition as the sender knows it.
        36 epoch: U32,
        /// Record number within the partition.
        40 pseq: U64,
        /// Length of the fixed struct at the start of the payload.
        48 meta_len: U32,
        /// Milliseconds that remain; 0 is none.
        52 deadline_ms: U32,
        /// Bytes of credit given back.
        56 credit: U32,
        /// Low half of the sender's map revision.
        60 map_lo: U16,
        /// Sent 0, ignored.
        62 reserved: U16,
    }
}

impl FrameHeader {
    /// A header with these three and nothing else. The encoder fills lengths and checksums in.
    pub fn new(kind: Kind, opcode: Opcode, id: RequestId) -> Self {
        Self {
            magic: MAGIC,
            opcode: U16::new(opcode.wire()),
            op_version: 1,
            kind: kind.wire(),
            request_id: U64::new(id.value()),
            partition: U32::new(PARTITION_NONE),
            ..Self::new_zeroed()
        }
    }

    /// The same with a status.
    #[must_use]
    pub fn with_status(mut self, status: Status) -> Self {
        self.status = U16::new(status.wire());
        self
    }

    /// The same with a remaining time in milliseconds, 0 for none.
    #[must_use]
    pub fn with_deadline_ms(mut self, deadline_ms: u32) -> Self {
        self.deadline_ms = U32::new(deadline_ms);
        self
    }

    /// What the checksum of this header has to be.
    pub fn computed_crc(&self) -> u32 {
        self.as_bytes()
            .split_at_checked(8)
            .map_or(0, |(_, covered)| crc32fast::hash(covered))
    }
}

/// Who asked: unique per connection and direction.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RequestId(u64);

impl RequestId {
    /// Of a frame that belongs to no request.
    pub const NONE: Self = Self(0);

    /// Wraps the plain number.
    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    /// The plain number.
    pub const fn value(self) -> u64 {
        self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a frame is to its request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Asks; is answered once.
    Request,
    /// Answers.
    Response,
    /// Neither is answered nor answers.
    OneWay,
    /// A piece of a body.
    StreamData,
    /// The end of a body: its length and checksum.
    StreamEnd,
    /// Gives a request up.
    Cancel,
}

impl Kind {
    /// All of them, by number.
    pub const ALL: [Self; 6] = [
        Self::Request,
        Self::Response,
        Self::OneWay,
        Self::StreamData,
        Self::StreamEnd,
        Self::Cancel,
    ];

    /// The number on the wire.
    pub const fn wire(self) -> u8 {
        match self {
            Self::Request => 0,
            Self::Response => 1,
            Self::OneWay => 2,
            Self::StreamData => 3,
            Self::StreamEnd => 4,
            Self::Cancel => 5,
        }
    }

    /// `None` for a number that is not in the table.
    pub fn from_wire(wire: u8) -> Option<Self> {
        Self::ALL.get(usize::from(wire)).copied()
    }
}

/// A whole frame whose checksums are right.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// As received: lengths and `meta_len` are consistent with `payload`.
    pub header: FrameHeader,
    /// From the header's `kind`, which is in the table.
    pub kind: Kind,
    /// A slice of what was received where it came in one piece; it keeps that buffer alive.
    pub payload: Bytes,
}

impl Frame {
    /// `None` for an opcode that this version does not know.
    pub fn opcode(&self) -> Option<Opcode> {
        Opcode::from_wire(self.header.opcode.get())
    }

    /// The request it belongs to.
    pub fn id(&self) -> RequestId {
        RequestId::new(self.header.request_id.get())
    }

    /// Of a response.
    pub fn status(&self) -> Status {
        Status::from_wire(self.header.status.get())
    }

    /// The fixed struct at the start of the payload, as long as the sender made it.
    pub fn meta(&self) -> &[u8] {
        self.payload.get(..self.meta_len()).unwrap_or_default()
    }

    /// What follows the meta struct.
    pub fn body(&self) -> Bytes {
        self.payload.slice(self.meta_len()..)
    }

    /// Bounded by the payload, whoever built this frame.
    fn meta_len(&self) -> usize {
        usize::try_from(self.header.meta_len.get())
            .unwrap_or(usize::MAX)
            .min(self.payload.len())
    }
}
