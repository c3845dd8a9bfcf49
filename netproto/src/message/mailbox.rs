//! `MAILBOX_LIST`: a user's mailboxes in numbers (RFC 9051 STATUS).

use alloc::vec::Vec;

use bytes::{Bytes, BytesMut};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use super::{Fault, Reader, clip, take_user};
use crate::frame::Frame;
use crate::id::{MailboxId, UidValidity};
use crate::limits::{MAILBOX_NAME_BYTES_MAX, MAILBOXES_MAX, USER_BYTES_MAX};
use crate::wire::{wire_len, wire_struct};

wire_struct! {
    /// `MAILBOX_LIST`, request: then the user.
    pub struct MailboxesMeta [8] {
        /// Bytes of the user's name.
        0 user_len: U16,
        /// Sent 0.
        2 reserved: [u8; 6],
    }
}

wire_struct! {
    /// `MAILBOX_LIST`, response: then each row with its name behind it.
    pub struct MailboxesReplyMeta [8] {
        /// At most `MAILBOXES_MAX`.
        0 rows_count: U32,
        /// Bytes of one row without its name.
        4 row_len: U32,
    }
}

wire_struct! {
    /// A mailbox in numbers.
    pub struct MailboxRow [40] {
        /// Its id.
        0 mailbox: U32,
        /// Bytes of its name.
        4 name_len: U16,
        /// Sent 0.
        6 reserved: U16,
        /// Validity of its uids.
        8 uidvalidity: U32,
        /// Above every uid ever given.
        12 uidnext: U32,
        /// Highest modseq, 0: nothing happened yet.
        16 highest_modseq: U64,
        /// Live messages.
        24 messages_count: U32,
        /// Sent 0.
        28 reserved_2: U32,
        /// Sum of RFC822.SIZE.
        32 bytes: U64,
    }
}

/// A mailbox in numbers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MailboxStatus {
    /// Its id.
    pub mailbox: MailboxId,
    /// Its UTF-8 name, at most `MAILBOX_NAME_BYTES_MAX` bytes.
    pub name: Bytes,
    /// Validity of its uids.
    pub uidvalidity: UidValidity,
    /// Above every uid ever given.
    pub uidnext: u32,
    /// Highest modseq of the mailbox; 0 if nothing happened yet.
    pub highest_modseq: u64,
    /// Live messages.
    pub messages_count: u32,
    /// Sum of RFC822.SIZE in bytes.
    pub bytes: u64,
}

impl MailboxStatus {
    /// Its row; the name goes behind it.
    pub(super) fn to_row(&self) -> MailboxRow {
        MailboxRow {
            mailbox: U32::new(self.mailbox.value()),
            name_len: U16::new(wire_len(self.clipped_name().len())),
            uidvalidity: U32::new(self.uidvalidity.value()),
            uidnext: U32::new(self.uidnext),
            highest_modseq: U64::new(self.highest_modseq),
            messages_count: U32::new(self.messages_count),
            bytes: U64::new(self.bytes),
            ..MailboxRow::new_zeroed()
        }
    }

    pub(super) fn clipped_name(&self) -> &[u8] {
        clip(&self.name, MAILBOX_NAME_BYTES_MAX)
    }

    pub(super) fn from_row(row: &MailboxRow, name: Bytes) -> Self {
        Self {
            mailbox: MailboxId::new(row.mailbox.get()),
            name,
            uidvalidity: UidValidity::new(row.uidvalidity.get()),
            uidnext: row.uidnext.get(),
            highest_modseq: row.highest_modseq.get(),
            messages_count: row.messages_count.get(),
            bytes: row.bytes.get(),
        }
    }

    /// Appends the payload of a response; of more than `MAILBOXES_MAX` the first. Returns the
    /// length of the meta struct.
    pub fn encode_all(mailboxes: &[Self], out: &mut BytesMut) -> usize {
        let sent = mailboxes.get(..MAILBOXES_MAX).unwrap_or(mailboxes);
        let meta = MailboxesReplyMeta {
            rows_count: U32::new(wire_len(sent.len())),
            row_len: U32::new(wire_len(size_of::<MailboxRow>())),
        };
        out.extend_from_slice(meta.as_bytes());
        for mailbox in sent {
            out.extend_from_slice(mailbox.to_row().as_bytes());
            out.extend_from_slice(mailbox.clipped_name());
        }
        size_of::<MailboxesReplyMeta>()
    }

    /// Reads the payload of a response.
    pub fn decode_all(frame: &Frame) -> Result<Vec<Self>, Fault> {
        let (meta, mut reader) = Reader::new::<MailboxesReplyMeta>(frame)?;
        let count = usize::try_from(meta.rows_count.get()).unwrap_or(usize::MAX);
        let row_len = usize::try_from(meta.row_len.get()).unwrap_or(usize::MAX);
        if count > MAILBOXES_MAX {
            return Err(Fault::Malformed("more than 3,000 mailboxes"));
        }
        let mut mailboxes = Vec::with_capacity(count);
        for _ in 0..count {
            let row: MailboxRow = reader.take_row(row_len)?;
            let name = reader.take(row.name_len.get().into(), "a name is cut off")?;
            mailboxes.push(Self::from_row(&row, name));
        }
        reader.finish()?;
        Ok(mailboxes)
    }
}

/// Appends the payload of a request for the mailboxes of `user`. Returns the length of the meta
/// struct.
pub fn encode_request(user: &[u8], out: &mut BytesMut) -> usize {
    let user = clip(user, USER_BYTES_MAX + 1);
    let meta = MailboxesMeta {
        user_len: U16::new(wire_len(user.len())),
        reserved: [0; 6],
    };
    out.extend_from_slice(meta.as_bytes());
    out.extend_from_slice(user);
    size_of::<MailboxesMeta>()
}

/// Reads the payload of a request: the user.
pub fn decode_request(frame: &Frame) -> Result<Bytes, Fault> {
    let (meta, mut reader) = Reader::new::<MailboxesMeta>(frame)?;
    let user = take_user(&mut reader, meta.user_len.get())?;
    reader.finish()?;
    Ok(user)
}
