//! One message on its way in: line ends, `From ` quoting, CRC, counts and header cache, in one pass
//! while the bytes arrive (DESIGN.md 4.1). Pure: no disk, no clock. The core that received the bytes
//! runs it; the owner shard only copies.

use std::hash::Hasher;

use bytes::Bytes;
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;
use siphasher::sip128::{Hasher128, SipHasher24};
use smallvec::SmallVec;

use crate::format::crc;
use crate::format::info::{ALL_CRLF, EIGHT_BIT, MIXED_LINE_ENDS, NO_FINAL_NEWLINE, QUOTED};
use crate::header_cache::{self, Field};
use crate::limits::STORED_BYTES_MAX;

mod header;
mod lines;
#[cfg(test)]
mod tests;

use lines::{Ends, FinalLine, Lines, len_u64};

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
    /// SipHash-2-4-128 of the bytes as received, without an added `Return-Path:`; zeros where it is
    /// not wanted ([`Preparer::without_content_hash`]).
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

/// What is left to hand over at the end of a message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Prepared {
    /// Cache, counts, and the stored form without what was taken before
    /// ([`Preparer::take_stored`]); the whole of it if nothing was.
    pub body: PreparedBody,
}

/// What the caller has to do after a piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Push {
    /// Nothing; perhaps [`Preparer::take_stored`] if [`Preparer::buffered_len`] grew large.
    Buffered,
    /// The line ends turned out to be mixed after bytes were taken as LF: put a CR in front of each
    /// LF of all that was taken so far (`Request::StageExpand`) and report it by
    /// [`Preparer::expanded`] before anything else is taken. Said once.
    ExpandSpilled,
}

/// The message is larger than `message_bytes_max`; nothing more can be pushed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the message is larger than {bytes_max} bytes")]
pub struct TooLarge {
    /// The limit.
    pub bytes_max: u64,
}

/// Prepares one message while its bytes arrive in pieces of any size; how they are cut changes
/// nothing in the result.
#[derive(Debug)]
pub struct Preparer {
    bytes_max: u64,
    prelude: Prelude,
    lines: Lines,
    received_len: u64,
    eight_bit: bool,
    /// `None`: nobody asks for the hash.
    content: Option<SipHasher24>,
    /// CRC of what was taken.
    taken_crc: u32,
    /// What was taken is about to be rewritten.
    expanding: bool,
}

/// Whether a `Return-Path:` goes in front; known after the first bytes.
#[derive(Debug)]
enum Prelude {
    /// For this sender, unless the bytes that are held back are the beginning of one.
    Open {
        sender: Bytes,
        held: SmallVec<[u8; RETURN_PATH.len()]>,
    },
    /// Nothing was added.
    Nothing,
    /// A line of so many bytes without its end was added.
    Added(u64),
}

/// A message that begins with this, in any case, has its own.
const RETURN_PATH: &[u8; 12] = b"Return-Path:";

/// Room for a `Return-Path:` of usual length, so that the first piece allocates once.
const LINE_ADDED_BYTES: usize = 128;

impl Preparer {
    /// Begins a message.
    pub fn new(options: PrepareOptions) -> Self {
        Self {
            bytes_max: options.message_bytes_max.min(STORED_BYTES_MAX / 2),
            prelude: options
                .return_path
                .map_or(Prelude::Nothing, |sender| Prelude::Open {
                    sender,
                    held: SmallVec::new(),
                }),
            lines: Lines::new(),
            received_len: 0,
            eight_bit: false,
            content: Some(SipHasher24::new_with_key(&options.content_key)),
            taken_crc: 0,
            expanding: false,
        }
    }

    /// The message is not delivered, so that no retry of it has to be recognised by its content: that
    /// is not hashed, which is nearly half of what preparing costs.
    #[must_use]
    pub fn without_content_hash(mut self) -> Self {
        assert_eq!(self.received_len, 0, "it is said before the first byte");
        self.content = None;
        self
    }

    /// Takes the next bytes of the message.
    pub fn push(&mut self, chunk: &[u8]) -> Result<Push, TooLarge> {
        self.received_len = self.received_len.saturating_add(len_u64(chunk.len()));
        if self.received_len > self.bytes_max {
            return Err(TooLarge {
                bytes_max: self.bytes_max,
            });
        }
        if let Some(content) = &mut self.content {
            content.write(chunk);
        }
        self.eight_bit |= !chunk.is_ascii();
        self.lines.stored.reserve(chunk.len() + LINE_ADDED_BYTES);
        let rest = self.begin(chunk);
        self.lines.push(rest);
        if std::mem::take(&mut self.lines.expand_taken) {
            self.expanding = true;
            return Ok(Push::ExpandSpilled);
        }
        Ok(Push::Buffered)
    }

    /// Holds the first bytes back until it is known whether they are a `Return-Path:`; gives those
    /// that are not held.
    fn begin<'a>(&mut self, chunk: &'a [u8]) -> &'a [u8] {
        let Prelude::Open { held, .. } = &mut self.prelude else {
            return chunk;
        };
        let wanted = RETURN_PATH.get(held.len()..).unwrap_or_default();
        let same = chunk
            .iter()
            .zip(wanted)
            .take_while(|(byte, want)| byte.eq_ignore_ascii_case(want))
            .count();
        let (begun, rest) = chunk.split_at(same);
        held.extend_from_slice(begun);
        if held.len() == RETURN_PATH.len() || !rest.is_empty() {
            self.begun();
        }
        rest
    }

    /// Enough has come to decide.
    fn begun(&mut self) {
        let prelude = std::mem::replace(&mut self.prelude, Prelude::Nothing);
        let Prelude::Open { sender, held } = prelude else {
            self.prelude = prelude;
            return;
        };
        if held.len() < RETURN_PATH.len() {
            let line = return_path(&sender);
            self.lines.prepend(&line);
            self.prelude = Prelude::Added(len_u64(line.len()));
        }
        self.lines.push(&held);
    }

    /// Bytes that [`Self::take_stored`] would give.
    pub fn buffered_len(&self) -> usize {
        self.lines.stored.len()
    }

    /// Takes what is converted so far, for a stage file.
    pub fn take_stored(&mut self) -> Bytes {
        assert!(!self.expanding, "the taken bytes are being rewritten");
        let taken = std::mem::take(&mut self.lines.stored);
        self.taken_crc = crc::extend(self.taken_crc, &taken);
        self.lines.taken_len += len_u64(taken.len());
        Bytes::from(taken)
    }

    /// What was taken has been rewritten: its CRC and length (`Event::StageExpanded`).
    pub fn expanded(&mut self, crc: u32, len: u64) {
        assert!(self.expanding, "nothing was to be rewritten");
        assert_eq!(len, self.lines.taken_len, "one CR per LF that was taken");
        self.expanding = false;
        self.taken_crc = crc;
    }

    /// Ends the message.
    pub fn finish(mut self) -> Prepared {
        assert!(!self.expanding, "the taken bytes are being rewritten");
        self.begun();
        let final_line = self.lines.finish();
        let stored = Bytes::from(std::mem::take(&mut self.lines.stored));
        self.lines.taken_len += len_u64(stored.len());
        self.taken_crc = crc::extend(self.taken_crc, &stored);
        let summary = self.summary(final_line);
        let cache = Bytes::from(header_cache::encode(&self.lines.header.fields()));
        Prepared {
            body: PreparedBody {
                stored,
                cache,
                summary,
            },
        }
    }

    fn summary(&self, final_line: FinalLine) -> Summary {
        let lines = &self.lines;
        let (line_flag, end_len) = match lines.ends {
            Ends::Unknown | Ends::Lf => (0, 1),
            Ends::Crlf => (ALL_CRLF, 2),
            Ends::MixedLfFirst => (MIXED_LINE_ENDS, 1),
            Ends::MixedCrlfFirst => (MIXED_LINE_ENDS, 2),
        };
        let flag = |holds: bool, flag: u16| if holds { flag } else { 0 };
        let added = match self.prelude {
            Prelude::Added(line_len) => Some(line_len),
            _ => None,
        };
        let bare_lf = lines.ends_count - lines.crlf_count;
        let date = lines.header.fields().value(Field::Date);
        Summary {
            format_flags: line_flag
                | flag(final_line == FinalLine::Ended, NO_FINAL_NEWLINE)
                | flag(lines.quoted_count > 0, QUOTED)
                | flag(self.eight_bit, EIGHT_BIT),
            stored_len: lines.stored_len(),
            stored_crc: self.taken_crc,
            header_len: fits(lines.header_len()),
            lines_count: lines.lines_count() + u32::from(final_line == FinalLine::Ended),
            quoted_count: lines.quoted_count,
            rfc822_size: fits(
                self.received_len + u64::from(bare_lf) + added.map_or(0, |line| line + 2),
            ),
            received_len: self.received_len + added.map_or(0, |line| line + end_len),
            date_s: date.and_then(|date| date_s(date.bytes)),
            content_hash: (self.content).map_or([0; 16], |content| content.finish128().as_bytes()),
            received_field: lines.header.received(),
        }
    }
}

/// Lengths of a message of at most [`STORED_BYTES_MAX`] / 2 received bytes: a CR per LF or a `>` per
/// five bytes do not double it.
fn fits(len: u64) -> u32 {
    u32::try_from(len).expect("below 4 GiB, see STORED_BYTES_MAX")
}

/// The line without its end. Only printable ASCII and blanks stay as they are.
fn return_path(sender: &[u8]) -> Vec<u8> {
    let mut line = b"Return-Path: <".to_vec();
    for byte in sender {
        match byte {
            b' '..=b'~' => line.push(*byte),
            _ => line.extend_from_slice(format!("%{byte:02X}").as_bytes()),
        }
    }
    line.push(b'>');
    line
}

/// A `Date:` in seconds since 1970. A wrong day of the week is forgiven; a date without zone, or
/// past all repair, is none.
fn date_s(value: &[u8]) -> Option<i64> {
    static PARSER: DateTimeParser = DateTimeParser::new().relaxed_weekday(true);
    PARSER.parse_timestamp(value).ok().map(Timestamp::as_second)
}
