//! Errors by guilt: [`DecodeError`] is about bytes, [`Violation`] about a peer that breaks the rules.
//! Both end the connection, and both are values that tests compare. Their `Display` is the sentence
//! that goes into the GOAWAY and into both logs. What a peer may ask but not get is no error: it is
//! a [`Status`](crate::frame::Status) in a reply.

use crate::frame::{Kind, RequestId};

/// Bytes that are no frame. After one of these a stream has no frame boundaries any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The peer speaks something else, or bytes were lost.
    #[error("not a frame of this protocol: it begins with {found:02x?} instead of RPN1")]
    Magic {
        /// What stood there.
        found: [u8; 4],
    },
    /// Damage on the way, or a foreign protocol. Nothing in the header was believed.
    #[error("a frame header's checksum is {computed:08x}, it says {found:08x}")]
    HeaderCrc {
        /// As the header has it.
        found: u32,
        /// As its bytes have it.
        computed: u32,
    },
    /// Nothing was reserved for it.
    #[error("a frame announces {found} bytes of payload, more than the {max} allowed")]
    PayloadTooLong {
        /// As announced.
        found: u32,
        /// The bound in force.
        max: u32,
    },
    /// The meta struct would reach beyond the payload.
    #[error("a frame announces {meta} bytes of meta in a payload of {payload} bytes")]
    MetaTooLong {
        /// As announced.
        meta: u32,
        /// Length of the payload.
        payload: u32,
    },
    /// A kind decides who waits for what: an unknown one cannot be skipped.
    #[error("a frame of the unknown kind {found}")]
    Kind {
        /// As received.
        found: u8,
    },
    /// Damage on the way.
    #[error("a payload's checksum is {computed:08x}, its header says {found:08x}")]
    PayloadCrc {
        /// As the header has it.
        found: u32,
        /// As its bytes have it.
        computed: u32,
    },
}

/// Why a session was ended by this side. The GOAWAY with this sentence waits in `poll_transmit`.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// The bytes are no frames.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The first frame has to be HELLO.
    #[error("the first frame was not HELLO")]
    HelloMissing,
    /// HELLO comes once.
    #[error("a second HELLO")]
    HelloTwice,
    /// A HELLO that cannot be: which part of it.
    #[error("a HELLO that makes no sense: {0}")]
    HelloInvalid(&'static str),
    /// No version that both speak.
    #[error(
        "no common protocol version: this side speaks {ours_min} to {ours_max}, \
         the peer {theirs_min} to {theirs_max}"
    )]
    Version {
        /// Lowest here.
        ours_min: u16,
        /// Highest here.
        ours_max: u16,
        /// Lowest there.
        theirs_min: u16,
        /// Highest there.
        theirs_max: u16,
    },
    /// Two clusters must not talk, whatever addresses were configured.
    #[error("the peer belongs to another cluster")]
    OtherCluster,
    /// An address leads to a node that was not meant.
    #[error("the peer is node {found}, not node {expected}")]
    OtherNode {
        /// As configured.
        expected: u32,
        /// As in its HELLO; 0 if it is no node.
        found: u32,
    },
    /// A copied data directory, or an address that leads back.
    #[error("the peer has this node's own identity")]
    OwnIdentity,
    /// A payload that does not fit its own lengths.
    #[error("a malformed {opcode} frame: {what}")]
    Malformed {
        /// Name of the opcode.
        opcode: &'static str,
        /// Which part.
        what: &'static str,
    },
    /// Request ids ascend, odd from the dialer, even from the acceptor.
    #[error("request id {found} after {last}")]
    RequestIdOrder {
        /// As received.
        found: RequestId,
        /// The one before.
        last: RequestId,
    },
    /// An answer or a piece to a request that was never made or is answered.
    #[error("a frame for request {0}, which is not open")]
    NoSuchRequest(RequestId),
    /// A frame that does not belong there: a kind that its opcode or the state does not have.
    #[error("an unexpected {opcode} frame of kind {kind:?}")]
    Unexpected {
        /// Name of the opcode.
        opcode: &'static str,
        /// As received.
        kind: Kind,
    },
    /// The peer sent more than it had credit for.
    #[error("the peer sent more than it had credit for")]
    CreditExceeded,
    /// The peer gave back more than it was sent.
    #[error("the peer gave back more credit than it was sent")]
    CreditOverflow,
    /// More than `REQUESTS_IN_FLIGHT_MAX` without an answer.
    #[error("too many requests in flight")]
    TooManyRequests,
    /// Pieces are missing, doubled or out of order, though each was whole.
    #[error("the body of request {id} does not match the length and checksum at its end")]
    StreamMismatch {
        /// Of the request.
        id: RequestId,
    },
    /// The peer reads nothing and the caller went on feeding input.
    #[error("{0} bytes wait for a peer that does not read")]
    Backlog(usize),
    /// Input after the end; nothing is queued for it.
    #[error("input after the session had ended")]
    Ended,
}

impl Violation {
    /// What the GOAWAY says in one number.
    pub fn status(&self) -> crate::frame::Status {
        use crate::frame::Status;
        match self {
            Self::Version { .. } => Status::WrongVersion,
            Self::OtherCluster | Self::OtherNode { .. } | Self::OwnIdentity => Status::WrongPeer,
            _ => Status::Violation,
        }
    }
}
