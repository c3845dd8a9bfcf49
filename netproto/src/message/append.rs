//! APPEND and its answer: one message into a mailbox of a user, with flags, keywords and date, as a
//! mail program (RFC 9051 6.3.12) or an import stores it. There is no envelope but the sender, and
//! nothing is added to the message.

use alloc::vec::Vec;

use bytes::{Bytes, BytesMut};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use super::deliver::BodyForm;
use super::{Fault, MailboxRef, Reader, clip, take_user};
use crate::frame::{Frame, Status};
use crate::id::{Guid, MailboxId, Uid, UidValidity, WallNs};
use crate::limits::{
    ADDRESS_BYTES_MAX, INLINE_BODY_BYTES_MAX, KEYWORD_BYTES_MAX, KEYWORDS_MAX, USER_BYTES_MAX,
};
use crate::wire::{wire_len, wire_struct};

/// `size_hint` of a message whose length is not known.
const SIZE_UNKNOWN: u64 = u64::MAX;

/// Bit of `options`: make a mailbox that is missing.
const CREATE: u8 = 1;

/// Bit of `made`: the mailbox was made for this message, or for one of the same connection before.
const MADE: u8 = 1;

wire_struct! {
    /// APPEND, request: then user, mailbox name, sender, keywords, and the body if it is inline.
    pub struct AppendMeta [80] {
        /// 1 to `USER_BYTES_MAX`.
        0 user_len: U16,
        /// Bytes of the mailbox name, 0xFFFF: by id.
        2 mailbox_len: U16,
        /// Id of the mailbox, 0 if by name.
        4 mailbox: U32,
        /// 0 for none known.
        8 sender_len: U16,
        /// At most `KEYWORDS_MAX`.
        10 keywords_count: U16,
        /// Bytes of all keywords with their rows.
        12 keywords_len: U32,
        /// System flags, as in the store's FORMAT.md.
        16 flags: U32,
        /// 0 inline, 1 streamed.
        20 body_form: u8,
        /// Bits: 1 make a mailbox that is missing.
        21 options: u8,
        /// Sent 0.
        22 reserved: U16,
        /// INTERNALDATE in nanoseconds since 1970; 0: the time of arrival.
        24 internal_date: U64,
        /// Length of the message as the sender expects it; all ones: not known.
        32 size_hint: U64,
        /// Identity of the message; zeros: the store gives one and does not look for another.
        40 dedupe_id: [u8; 16],
        /// Sent 0.
        56 reserved_2: [u8; 24],
    }
}

wire_struct! {
    /// One keyword; its bytes follow at once.
    pub struct KeywordRow [2] {
        /// 1 to `KEYWORD_BYTES_MAX`.
        0 keyword_len: U16,
    }
}

wire_struct! {
    /// APPEND, response: nothing follows.
    pub struct AppendReplyMeta [32] {
        /// Number of the message in its mailbox.
        0 uid: U32,
        /// Validity of that number.
        4 uidvalidity: U32,
        /// Id of the mailbox.
        8 mailbox: U32,
        /// Bits: 1 the mailbox was made on this connection.
        12 made: u8,
        /// Sent 0.
        13 reserved: [u8; 3],
        /// Identity of the message: the one of the request, or a new one.
        16 guid: [u8; 16],
    }
}

/// What becomes of an append to a mailbox that does not exist.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Missing {
    /// It is answered `NO_MAILBOX`.
    Refuse,
    /// The mailbox is made. Only one that is named can be.
    Create,
}

/// Everything about a message but its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AppendRequest {
    /// Canonical user name, 1 to `USER_BYTES_MAX` bytes.
    pub user: Bytes,
    /// Where to.
    pub mailbox: MailboxRef,
    /// What if that does not exist.
    pub missing: Missing,
    /// Envelope sender if it is known, for the `From_` line; at most `ADDRESS_BYTES_MAX` bytes.
    pub sender: Bytes,
    /// System flags, as in the store's FORMAT.md.
    pub flags: u32,
    /// At most `KEYWORDS_MAX`, each of 1 to `KEYWORD_BYTES_MAX` bytes. Whether they are keywords is
    /// decided by the store.
    pub keywords: Vec<Bytes>,
    /// INTERNALDATE; `None`: the time of arrival.
    pub internal_date: Option<WallNs>,
    /// An append with the id of one that came lately is answered `OK_DUPLICATE`. It becomes the
    /// message's guid, so that a caller finds in a list what is there from longer ago.
    pub dedupe_id: Option<Guid>,
    /// Milliseconds that remain for the answer; 0: no limit.
    pub deadline_ms: u32,
    /// Length of the message in bytes if the sender knows it, for admission.
    pub size_hint: Option<u64>,
}

/// Where the body of a request is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AppendBody {
    /// Here.
    Inline(Bytes),
    /// In stream frames with the request's id and opcode.
    Streamed,
}

impl AppendRequest {
    /// Whether it may be sent; what is wrong otherwise.
    pub fn check(&self) -> Result<(), &'static str> {
        if !(1..=USER_BYTES_MAX).contains(&self.user.len()) {
            return Err("a user name has 1 to 255 bytes");
        }
        if self.sender.len() > ADDRESS_BYTES_MAX {
            return Err("the sender is longer than 320 bytes");
        }
        if self.keywords.len() > KEYWORDS_MAX {
            return Err("a message with more than 64 keywords");
        }
        let fits = |word: &Bytes| (1..=KEYWORD_BYTES_MAX).contains(&word.len());
        if !self.keywords.iter().all(fits) {
            return Err("a keyword has 1 to 255 bytes");
        }
        Ok(())
    }

    /// Appends the payload without an inline body. Returns the length of the meta struct.
    ///
    /// # Panics
    /// If [`check`](Self::check) was not asked or not heard.
    pub fn encode(&self, body_form: BodyForm, out: &mut BytesMut) -> usize {
        let (mailbox_len, mailbox) = self.mailbox.wire();
        let rows = size_of::<KeywordRow>() * self.keywords.len();
        let keywords_len = rows + self.keywords.iter().map(Bytes::len).sum::<usize>();
        let meta = AppendMeta {
            user_len: U16::new(wire_len(self.user.len())),
            mailbox_len: U16::new(mailbox_len),
            mailbox: U32::new(mailbox),
            sender_len: U16::new(wire_len(self.sender.len())),
            keywords_count: U16::new(wire_len(self.keywords.len())),
            keywords_len: U32::new(wire_len(keywords_len)),
            flags: U32::new(self.flags),
            body_form: body_form.wire(),
            options: match self.missing {
                Missing::Refuse => 0,
                Missing::Create => CREATE,
            },
            internal_date: U64::new(self.internal_date.map_or(0, WallNs::value)),
            size_hint: U64::new(self.size_hint.unwrap_or(SIZE_UNKNOWN)),
            dedupe_id: self.dedupe_id.map_or([0; 16], Guid::bytes),
            ..AppendMeta::new_zeroed()
        };
        out.extend_from_slice(meta.as_bytes());
        out.extend_from_slice(&self.user);
        self.mailbox.put(out);
        out.extend_from_slice(&self.sender);
        for keyword in &self.keywords {
            let row = KeywordRow {
                keyword_len: U16::new(wire_len(clip(keyword, KEYWORD_BYTES_MAX).len())),
            };
            out.extend_from_slice(row.as_bytes());
            out.extend_from_slice(clip(keyword, KEYWORD_BYTES_MAX));
        }
        size_of::<AppendMeta>()
    }

    /// Reads a request's payload.
    pub fn decode(frame: &Frame) -> Result<(Self, AppendBody), Fault> {
        let (meta, mut reader) = Reader::new::<AppendMeta>(frame)?;
        let user = take_user(&mut reader, meta.user_len.get())?;
        let mailbox = MailboxRef::read(&mut reader, meta.mailbox_len.get(), meta.mailbox.get())?;
        let sender = reader.take(meta.sender_len.get().into(), "the sender is cut off")?;
        let keywords_len = usize::try_from(meta.keywords_len.get()).unwrap_or(usize::MAX);
        let table = reader.take(keywords_len, "the keywords are cut off")?;
        let request = Self {
            user,
            mailbox,
            missing: match meta.options & CREATE {
                0 => Missing::Refuse,
                _ => Missing::Create,
            },
            sender,
            flags: meta.flags.get(),
            keywords: read_keywords(table, meta.keywords_count.get().into())?,
            internal_date: Some(meta.internal_date.get())
                .filter(|date| *date != 0)
                .map(WallNs::new),
            dedupe_id: Some(Guid::new(meta.dedupe_id)).filter(|id| id.bytes() != [0; 16]),
            deadline_ms: frame.header.deadline_ms.get(),
            size_hint: Some(meta.size_hint.get()).filter(|size| *size != SIZE_UNKNOWN),
        };
        request
            .check()
            .map_err(|what| Fault::Refused(Status::Invalid, what))?;
        let body = match BodyForm::from_wire(meta.body_form) {
            Some(BodyForm::Inline) => AppendBody::Inline(reader.rest()),
            Some(BodyForm::Streamed) => {
                reader.finish()?;
                AppendBody::Streamed
            }
            None => {
                return Err(Fault::Refused(
                    Status::Unsupported,
                    "the form of the body is not known here",
                ));
            }
        };
        match &body {
            AppendBody::Inline(bytes) if bytes.len() > INLINE_BODY_BYTES_MAX => {
                Err(Fault::Malformed("an inline body of more than 65,536 bytes"))
            }
            _ => Ok((request, body)),
        }
    }
}

fn read_keywords(table: Bytes, count: usize) -> Result<Vec<Bytes>, Fault> {
    if count > KEYWORDS_MAX {
        return Err(Fault::Refused(
            Status::Invalid,
            "a message has at most 64 keywords",
        ));
    }
    let mut reader = Reader { rest: table };
    let mut keywords = Vec::with_capacity(count);
    for _ in 0..count {
        let row: KeywordRow = reader.take_row(size_of::<KeywordRow>())?;
        keywords.push(reader.take(row.keyword_len.get().into(), "a keyword is cut off")?);
    }
    reader.finish()?;
    Ok(keywords)
}

/// Whether the mailbox was there before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Made {
    /// It was made on this connection.
    Yes,
    /// It was there.
    No,
}

/// Where a message is. It is durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AppendReply {
    /// [`Status::Ok`], or [`Status::OkDuplicate`]: `uid` is the first copy's.
    pub status: Status,
    /// Number of the message in its mailbox.
    pub uid: Uid,
    /// Validity of that number.
    pub uidvalidity: UidValidity,
    /// The mailbox.
    pub mailbox: MailboxId,
    /// Whether that was made.
    pub made: Made,
    /// Identity of the message.
    pub guid: Guid,
}

impl AppendReply {
    /// Appends the payload of a response; its status goes into the header. Returns the length of
    /// the meta struct.
    pub fn encode(&self, out: &mut BytesMut) -> usize {
        let meta = AppendReplyMeta {
            uid: U32::new(self.uid.value()),
            uidvalidity: U32::new(self.uidvalidity.value()),
            mailbox: U32::new(self.mailbox.value()),
            made: match self.made {
                Made::Yes => MADE,
                Made::No => 0,
            },
            reserved: [0; 3],
            guid: self.guid.bytes(),
        };
        out.extend_from_slice(meta.as_bytes());
        size_of::<AppendReplyMeta>()
    }

    /// Reads a response whose status is *done*.
    pub fn decode(frame: &Frame) -> Result<Self, Fault> {
        let (meta, reader) = Reader::new::<AppendReplyMeta>(frame)?;
        reader.finish()?;
        Ok(Self {
            status: frame.status(),
            uid: Uid::new(meta.uid.get()),
            uidvalidity: UidValidity::new(meta.uidvalidity.get()),
            mailbox: MailboxId::new(meta.mailbox.get()),
            made: match meta.made & MADE {
                0 => Made::No,
                _ => Made::Yes,
            },
            guid: Guid::new(meta.guid),
        })
    }
}
