//! Payloads: a fixed meta struct, then what its lengths announce, in their order.
//!
//! Decoding is total: a length that does not fit is a [`Fault`], and nothing is reserved for a count
//! before it was compared with its limit. Byte strings are slices of the frame.

pub mod append;
pub mod backup;
pub mod deliver;
pub mod fetch;
pub mod list;
pub mod mailbox;
pub mod report;
pub mod scrub;
pub mod stream;

use alloc::string::String;

use bytes::{Bytes, BytesMut};
use zerocopy::{FromBytes, IntoBytes};

use crate::error::Violation;
use crate::frame::{Frame, Opcode, Status, flags};
use crate::limits::{MAILBOX_NAME_BYTES_MAX, TEXT_BYTES_MAX, USER_BYTES_MAX};
use crate::wire::{read_grown, wire_len};

/// A byte string's length that stands for "there is none".
const ABSENT: u16 = 0xFFFF;

/// Why a payload is not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Its lengths lie: the peer broke the protocol.
    Malformed(&'static str),
    /// It is well formed and breaks a limit, or is newer than we are: the request is answered with
    /// this and the connection lives.
    Refused(Status, &'static str),
}

impl Fault {
    /// As the fault of a peer, where there is no request that could be answered.
    pub fn violation(self, opcode: Opcode) -> Violation {
        let (Self::Malformed(what) | Self::Refused(_, what)) = self;
        Violation::Malformed {
            opcode: opcode.name(),
            what,
        }
    }
}

/// Which mailbox of a user.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MailboxRef {
    /// By its id.
    Id(crate::id::MailboxId),
    /// By its UTF-8 name, 1 to `MAILBOX_NAME_BYTES_MAX` bytes.
    Name(Bytes),
}

impl MailboxRef {
    /// Length and id for a meta struct.
    fn wire(&self) -> (u16, u32) {
        match self {
            Self::Id(id) => (ABSENT, id.value()),
            Self::Name(name) => (wire_len(clip(name, MAILBOX_NAME_BYTES_MAX + 1).len()), 0),
        }
    }

    fn put(&self, out: &mut BytesMut) {
        if let Self::Name(name) = self {
            out.extend_from_slice(clip(name, MAILBOX_NAME_BYTES_MAX + 1));
        }
    }

    fn read(reader: &mut Reader, name_len: u16, id: u32) -> Result<Self, Fault> {
        match reader.take_optional(name_len, "the mailbox name is cut off")? {
            None => Ok(Self::Id(crate::id::MailboxId::new(id))),
            Some(name) if (1..=MAILBOX_NAME_BYTES_MAX).contains(&name.len()) => {
                Ok(Self::Name(name))
            }
            Some(_) => Err(Fault::Refused(
                Status::NoMailbox,
                "a mailbox name has 1 to 255 bytes",
            )),
        }
    }
}

/// `bytes`, or its first `max`: used with one above a limit, so that the other side still sees that
/// the limit was broken.
fn clip(bytes: &[u8], max: usize) -> &[u8] {
    bytes.get(..max).unwrap_or(bytes)
}

/// The user of a request, refused by itself if it cannot be one.
fn take_user(reader: &mut Reader, len: u16) -> Result<Bytes, Fault> {
    let user = reader.take(usize::from(len), "the user is cut off")?;
    if (1..=USER_BYTES_MAX).contains(&user.len()) {
        Ok(user)
    } else {
        Err(Fault::Refused(
            Status::NoUser,
            "a user name has 1 to 255 bytes",
        ))
    }
}

/// `text` as it may go into a reply: at most `TEXT_BYTES_MAX` bytes, cut between characters.
pub(crate) fn bounded_text(text: &str) -> &str {
    text.get(..text.floor_char_boundary(TEXT_BYTES_MAX))
        .unwrap_or_default()
}

/// Text of a peer for a log or a terminal: of its first `TEXT_BYTES_MAX` bytes, control characters
/// and what is not UTF-8 are escaped.
pub fn printable(text: &[u8]) -> String {
    escaped(clip(text, TEXT_BYTES_MAX))
}

/// The same of all of a text, however long: for lines with names that strangers gave.
pub fn escaped(text: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for chunk in text.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() {
                out.extend(character.escape_default());
            } else {
                out.push(character);
            }
        }
        for byte in chunk.invalid() {
            out.extend(core::ascii::escape_default(*byte).map(char::from));
        }
    }
    out
}

/// Takes a payload apart from its start.
pub(crate) struct Reader {
    rest: Bytes,
}

impl Reader {
    /// The meta struct of `frame` and a reader of what follows it.
    pub(crate) fn new<T: FromBytes + IntoBytes>(frame: &Frame) -> Result<(T, Self), Fault> {
        let known = size_of::<T>();
        let newer = frame.meta().len() > known;
        if frame.header.flags.get() & flags::COMPRESSED != 0 {
            return Err(Fault::Refused(
                Status::Unsupported,
                "compressed payloads are not supported",
            ));
        }
        if newer && frame.header.flags.get() & flags::MUST_UNDERSTAND != 0 {
            return Err(Fault::Refused(
                Status::Unsupported,
                "a part of this request that must be understood is not known here",
            ));
        }
        Ok((read_grown(frame.meta()), Self { rest: frame.body() }))
    }

    /// The next `len` bytes.
    pub(crate) fn take(&mut self, len: usize, fault: &'static str) -> Result<Bytes, Fault> {
        match len {
            0 => Ok(Bytes::new()),
            _ if len > self.rest.len() => Err(Fault::Malformed(fault)),
            _ => Ok(self.rest.split_to(len)),
        }
    }

    /// The same where [`ABSENT`] stands for none.
    pub(crate) fn take_optional(
        &mut self,
        len: u16,
        fault: &'static str,
    ) -> Result<Option<Bytes>, Fault> {
        if len == ABSENT {
            return Ok(None);
        }
        self.take(usize::from(len), fault).map(Some)
    }

    /// A row of a table whose rows are `row_len` long, which may be more or less than we know.
    pub(crate) fn take_row<T: FromBytes + IntoBytes>(
        &mut self,
        row_len: usize,
    ) -> Result<T, Fault> {
        let fault = Fault::Malformed("a row is cut off");
        let row = self.rest.get(..row_len).ok_or(fault)?;
        let row = read_grown(row);
        bytes::Buf::advance(&mut self.rest, row_len);
        Ok(row)
    }

    /// What is left.
    pub(crate) fn rest(self) -> Bytes {
        self.rest
    }

    /// Nothing may be left.
    pub(crate) fn finish(self) -> Result<(), Fault> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(Fault::Malformed("bytes behind its end"))
        }
    }
}
