//! FETCH: the bytes of one message as they were received. The answer carries the message's
//! `EntryRow`, then the bytes follow as a stream.

use bytes::{Bytes, BytesMut};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32};

use super::list::{EntryRow, ListEntry};
use super::{Fault, MailboxRef, Reader, clip, take_user};
use crate::frame::Frame;
use crate::id::Uid;
use crate::limits::USER_BYTES_MAX;
use crate::wire::{wire_len, wire_struct};

wire_struct! {
    /// FETCH, request: then the user, then the mailbox's name.
    pub struct FetchMeta [16] {
        /// Bytes of the user's name.
        0 user_len: U16,
        /// Bytes of the mailbox's name, 0xFFFF: by id.
        2 mailbox_len: U16,
        /// Id of the mailbox, 0 if by name.
        4 mailbox: U32,
        /// Which message.
        8 uid: U32,
        /// Sent 0.
        12 reserved: U32,
    }
}

/// Asks for one message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FetchRequest {
    /// Canonical user name, 1 to `USER_BYTES_MAX` bytes.
    pub user: Bytes,
    /// Which mailbox.
    pub mailbox: MailboxRef,
    /// Which message.
    pub uid: Uid,
}

impl FetchRequest {
    /// Appends the payload of a request. Returns the length of the meta struct.
    pub fn encode(&self, out: &mut BytesMut) -> usize {
        let user = clip(&self.user, USER_BYTES_MAX + 1);
        let (mailbox_len, mailbox) = self.mailbox.wire();
        let meta = FetchMeta {
            user_len: U16::new(wire_len(user.len())),
            mailbox_len: U16::new(mailbox_len),
            mailbox: U32::new(mailbox),
            uid: U32::new(self.uid.value()),
            reserved: U32::new(0),
        };
        out.extend_from_slice(meta.as_bytes());
        out.extend_from_slice(user);
        self.mailbox.put(out);
        size_of::<FetchMeta>()
    }

    /// Reads the payload of a request.
    pub fn decode(frame: &Frame) -> Result<Self, Fault> {
        let (meta, mut reader) = Reader::new::<FetchMeta>(frame)?;
        let user = take_user(&mut reader, meta.user_len.get())?;
        let mailbox = MailboxRef::read(&mut reader, meta.mailbox_len.get(), meta.mailbox.get())?;
        reader.finish()?;
        Ok(Self {
            user,
            mailbox,
            uid: Uid::new(meta.uid.get()),
        })
    }
}

/// Appends the payload of a response: the message's entry without its cache. Returns the length of
/// the meta struct.
pub fn encode_head(entry: &ListEntry, out: &mut BytesMut) -> usize {
    out.extend_from_slice(entry.to_row(0).as_bytes());
    size_of::<EntryRow>()
}

/// Reads the payload of a response.
pub fn decode_head(frame: &Frame) -> Result<ListEntry, Fault> {
    let (row, reader) = Reader::new::<EntryRow>(frame)?;
    reader.finish()?;
    Ok(ListEntry::from_row(&row, Bytes::new()))
}
