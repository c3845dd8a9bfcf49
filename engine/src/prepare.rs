//! One message on its way in: line ends, `From ` quoting, CRC, counts and header cache, in one pass
//! while the bytes arrive (DESIGN.md 4.1). Pure: no disk, no clock. The core that received the bytes
//! runs it; the owner shard only copies.

use bytes::Bytes;

/// How a message is prepared.
#[derive(Clone, Debug)]
pub struct PrepareOptions {
    /// Received bytes above this are refused.
    pub message_bytes_max: u64,
    /// Envelope sender to put into a `Return-Path:` line (empty for `<>`); `None` adds nothing. Nor
    /// is anything added to a message that begins with one (mail.md 6.2).
    pub return_path: Option<Bytes>,
    /// Key of the content hash: the cluster's.
    pub content_key: [u8; 16],
}

/// What was counted of a message. The stored form is what goes into log and segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Summary {
    /// `format::info` flags: line ends, final newline, quoting, 8-bit.
    pub format_flags: u16,
    /// Bytes of the stored form; it ends with LF unless it is empty.
    pub stored_len: u64,
    /// CRC-32 of the stored form.
    pub stored_crc: u32,
    /// Bytes of the stored form up to and with the empty line behind the header, or all.
    pub header_len: u32,
    /// LF in the stored form.
    pub lines_count: u32,
    /// Lines of the stored form with a quoting `>` added.
    pub quoted_count: u32,
    /// Octets in the CRLF view.
    pub rfc822_size: u32,
    /// Octets as received, a `Return-Path:` that was added included.
    pub received_len: u64,
    /// The `Date:` field in seconds since 1970, if it could be read.
    pub date_s: Option<i64>,
    /// SipHash-2-4-128 of the bytes as received, without an added `Return-Path:`.
    pub content_hash: [u8; 16],
    /// Whether the header has a `Received:` field: then equal bytes mean a retry (mail.md 5).
    pub received_field: ReceivedField,
}

/// Whether the header has a `Received:` field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReceivedField {
    /// An MTA stamped it.
    Present,
    /// No MTA has seen it.
    Absent,
}

/// A small message, ready for the log. Shared by all its recipients.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PreparedBody {
    /// The stored form.
    pub stored: Bytes,
    /// The header cache: a multiple of 64 bytes, at most 15 of them, zero-padded.
    pub cache: Bytes,
    /// What was counted.
    pub summary: Summary,
}
