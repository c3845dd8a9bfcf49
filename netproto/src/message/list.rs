//! LIST: a page of a mailbox, ascending by uid, with what a message list shows.

use alloc::vec::Vec;

use bytes::{Bytes, BytesMut};
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use super::mailbox::MailboxStatus;
use super::{Fault, MailboxRef, Reader, clip, take_user};
use crate::frame::Frame;
use crate::id::{Guid, Modseq, Uid, WallNs};
use crate::limits::{HEADER_CACHE_BYTES_MAX, LIST_ENTRIES_MAX, USER_BYTES_MAX};
use crate::message::mailbox::MailboxRow;
use crate::wire::{wire_len, wire_struct};

/// Bit of [`EntryRow`]'s `known`: `date_s` is one.
const KNOWN_DATE: u16 = 1;

wire_struct! {
    /// LIST, request: then the user, then the mailbox's name.
    pub struct ListMeta [16] {
        /// Bytes of the user's name.
        0 user_len: U16,
        /// Bytes of the mailbox's name, 0xFFFF: by id.
        2 mailbox_len: U16,
        /// Id of the mailbox, 0 if by name.
        4 mailbox: U32,
        /// Only messages above this uid; 0: from the start.
        8 after_uid: U32,
        /// At most this many entries, and never more than `LIST_ENTRIES_MAX`.
        12 entries_max: U32,
    }
}

wire_struct! {
    /// LIST, response: then a `MailboxRow` and its name, then each entry with its cache behind it.
    pub struct ListReplyMeta [16] {
        /// At most `LIST_ENTRIES_MAX`.
        0 rows_count: U32,
        /// Bytes of the mailbox's row without its name.
        4 mailbox_row_len: U16,
        /// Bytes of one entry without its cache.
        6 row_len: U16,
        /// 1: messages above the last entry exist.
        8 more: u8,
        /// Sent 0.
        9 reserved: [u8; 7],
    }
}

wire_struct! {
    /// One message.
    pub struct EntryRow [64] {
        /// Number within the mailbox.
        0 uid: U32,
        /// System flags.
        4 flags: U32,
        /// Last change.
        8 modseq: U64,
        /// INTERNALDATE in nanoseconds since 1970.
        16 internal_date: U64,
        /// Octets as received.
        24 received_size: U64,
        /// `Date:` in seconds since 1970, if bit 1 of `known`.
        32 date_s: I64,
        /// Octets in the CRLF view.
        40 rfc822_size: U32,
        /// Bytes of the header cache.
        44 cache_len: U16,
        /// Bits: 1 `date_s` is known.
        46 known: U16,
        /// Identity of the content.
        48 guid: [u8; 16],
    }
}

/// Asks for a page.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListRequest {
    /// Canonical user name, 1 to `USER_BYTES_MAX` bytes.
    pub user: Bytes,
    /// Which mailbox.
    pub mailbox: MailboxRef,
    /// Only messages above this uid; 0 from the start.
    pub after_uid: u32,
    /// At most this many entries, and never more than `LIST_ENTRIES_MAX`.
    pub entries_max: u32,
}

/// One message of a list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListEntry {
    /// Number within the mailbox.
    pub uid: Uid,
    /// Last change.
    pub modseq: Modseq,
    /// System flags.
    pub flags: u32,
    /// INTERNALDATE.
    pub internal_date: WallNs,
    /// Octets in the CRLF view (RFC 9051 RFC822.SIZE).
    pub rfc822_size: u32,
    /// Octets as received: what a fetch brings.
    pub received_size: u64,
    /// Identity of the content.
    pub guid: Guid,
    /// `Date:` in seconds since 1970, if it could be read.
    pub date_s: Option<i64>,
    /// The store's header cache, opaque here. Longer than `HEADER_CACHE_BYTES_MAX`, it is not sent.
    pub cache: Bytes,
}

/// Whether another page follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum More {
    /// Ask again above the last uid.
    Yes,
    /// This was the end.
    No,
}

/// A page of messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListPage {
    /// The mailbox in numbers, at the time of the page.
    pub status: MailboxStatus,
    /// Ascending by uid, at most `LIST_ENTRIES_MAX`.
    pub entries: Vec<ListEntry>,
    /// Whether messages above the last entry exist.
    pub more: More,
}

impl ListRequest {
    /// Appends the payload of a request. Returns the length of the meta struct.
    pub fn encode(&self, out: &mut BytesMut) -> usize {
        let user = clip(&self.user, USER_BYTES_MAX + 1);
        let (mailbox_len, mailbox) = self.mailbox.wire();
        let meta = ListMeta {
            user_len: U16::new(wire_len(user.len())),
            mailbox_len: U16::new(mailbox_len),
            mailbox: U32::new(mailbox),
            after_uid: U32::new(self.after_uid),
            entries_max: U32::new(self.entries_max),
        };
        out.extend_from_slice(meta.as_bytes());
        out.extend_from_slice(user);
        self.mailbox.put(out);
        size_of::<ListMeta>()
    }

    /// Reads the payload of a request.
    pub fn decode(frame: &Frame) -> Result<Self, Fault> {
        let (meta, mut reader) = Reader::new::<ListMeta>(frame)?;
        let user = take_user(&mut reader, meta.user_len.get())?;
        let mailbox = MailboxRef::read(&mut reader, meta.mailbox_len.get(), meta.mailbox.get())?;
        reader.finish()?;
        Ok(Self {
            user,
            mailbox,
            after_uid: meta.after_uid.get(),
            entries_max: meta.entries_max.get(),
        })
    }
}

impl ListEntry {
    /// The cache as it is sent.
    fn sent_cache(&self) -> &[u8] {
        if self.cache.len() <= HEADER_CACHE_BYTES_MAX {
            &self.cache
        } else {
            &[]
        }
    }

    pub(super) fn to_row(&self, cache_len: usize) -> EntryRow {
        EntryRow {
            uid: U32::new(self.uid.value()),
            flags: U32::new(self.flags),
            modseq: U64::new(self.modseq.value()),
            internal_date: U64::new(self.internal_date.value()),
            received_size: U64::new(self.received_size),
            date_s: I64::new(self.date_s.unwrap_or(0)),
            rfc822_size: U32::new(self.rfc822_size),
            cache_len: U16::new(wire_len(cache_len)),
            known: U16::new(self.date_s.map_or(0, |_| KNOWN_DATE)),
            guid: self.guid.bytes(),
        }
    }

    pub(super) fn from_row(row: &EntryRow, cache: Bytes) -> Self {
        Self {
            uid: Uid::new(row.uid.get()),
            modseq: Modseq::new(row.modseq.get()),
            flags: row.flags.get(),
            internal_date: WallNs::new(row.internal_date.get()),
            rfc822_size: row.rfc822_size.get(),
            received_size: row.received_size.get(),
            guid: Guid::new(row.guid),
            date_s: Some(row.date_s.get()).filter(|_| row.known.get() & KNOWN_DATE != 0),
            cache,
        }
    }
}

impl ListPage {
    /// Appends the payload of a response; of more than `LIST_ENTRIES_MAX` entries the first, and
    /// then there are more. Returns the length of the meta struct.
    pub fn encode(&self, out: &mut BytesMut) -> usize {
        let (sent, more) = match self.entries.get(..LIST_ENTRIES_MAX) {
            Some(first) if first.len() < self.entries.len() => (first, More::Yes),
            _ => (self.entries.as_slice(), self.more),
        };
        let meta = ListReplyMeta {
            rows_count: U32::new(wire_len(sent.len())),
            mailbox_row_len: U16::new(wire_len(size_of::<MailboxRow>())),
            row_len: U16::new(wire_len(size_of::<EntryRow>())),
            more: u8::from(more == More::Yes),
            ..ListReplyMeta::new_zeroed()
        };
        out.extend_from_slice(meta.as_bytes());
        out.extend_from_slice(self.status.to_row().as_bytes());
        out.extend_from_slice(self.status.clipped_name());
        for entry in sent {
            let cache = entry.sent_cache();
            out.extend_from_slice(entry.to_row(cache.len()).as_bytes());
            out.extend_from_slice(cache);
        }
        size_of::<ListReplyMeta>()
    }

    /// Reads the payload of a response.
    pub fn decode(frame: &Frame) -> Result<Self, Fault> {
        let (meta, mut reader) = Reader::new::<ListReplyMeta>(frame)?;
        let count = usize::try_from(meta.rows_count.get()).unwrap_or(usize::MAX);
        if count > LIST_ENTRIES_MAX {
            return Err(Fault::Malformed("more than 1,000 entries"));
        }
        let row: MailboxRow = reader.take_row(meta.mailbox_row_len.get().into())?;
        let name = reader.take(row.name_len.get().into(), "the name is cut off")?;
        let status = MailboxStatus::from_row(&row, name);
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            let row: EntryRow = reader.take_row(meta.row_len.get().into())?;
            let cache = reader.take(row.cache_len.get().into(), "a header cache is cut off")?;
            entries.push(ListEntry::from_row(&row, cache));
        }
        reader.finish()?;
        Ok(Self {
            status,
            entries,
            more: if meta.more == 0 { More::No } else { More::Yes },
        })
    }
}
