//! DELIVER and its answer: one message for up to 1,000 recipients, one outcome for each.
//!
//! Addresses and mailbox names above their limits do not make a request invalid: they come through
//! (cut one byte above the limit by our own encoder) and [`DeliverRecipient::check`] refuses them,
//! so that the other recipients get their mail.

use alloc::vec::Vec;

use bytes::{Bytes, BytesMut};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use super::{ABSENT, Fault, Reader, clip};
use crate::frame::{Frame, Status};
use crate::id::{Guid, Uid};
use crate::limits::{
    ADDRESS_BYTES_MAX, INLINE_BODY_BYTES_MAX, MAILBOX_NAME_BYTES_MAX, QUEUE_ID_BYTES_MAX,
    RECIPIENTS_MAX, TEXT_BYTES_MAX,
};
use crate::wire::{wire_len, wire_struct};

/// `size_hint` of a message whose length is not known.
const SIZE_UNKNOWN: u64 = u64::MAX;

wire_struct! {
    /// DELIVER, request: then sender, queue id, the recipients, and the body if it is inline.
    pub struct DeliverMeta [32] {
        /// 1 to `RECIPIENTS_MAX`.
        0 recipients_count: U32,
        /// Bytes of all recipients together.
        4 recipients_len: U32,
        /// 0 for the null sender.
        8 sender_len: U16,
        /// 0 if there is none.
        10 queue_id_len: U16,
        /// 0 inline, 1 streamed.
        12 body_form: u8,
        /// Sent 0.
        13 reserved: [u8; 3],
        /// Length of the message as the sender expects it; all ones: not known.
        16 size_hint: U64,
        /// Sent 0.
        24 reserved_2: U64,
    }
}

wire_struct! {
    /// One recipient; its address and mailbox name follow at once.
    pub struct RecipientRow [4] {
        /// Bytes of the address.
        0 address_len: U16,
        /// Bytes of the mailbox name, 0xFFFF: none given.
        2 mailbox_len: U16,
    }
}

wire_struct! {
    /// DELIVER, response: then the rows, then their texts in the same order.
    pub struct DeliverReplyMeta [8] {
        /// As many as the request had recipients.
        0 rows_count: U32,
        /// Bytes of one row.
        4 row_len: U32,
    }
}

wire_struct! {
    /// The outcome for one recipient.
    pub struct ReplyRow [24] {
        /// A status.
        0 status: U16,
        /// Bytes of its text.
        2 text_len: U16,
        /// Number of the message in its mailbox, 0: none.
        4 uid: U32,
        /// Delivery id, zeros: none.
        8 guid: [u8; 16],
    }
}

/// One recipient of a message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeliverRecipient {
    /// As the MTA has it, any bytes.
    pub address: Bytes,
    /// A mailbox that overrides the address's detail (`-m NAME`).
    pub mailbox: Option<Bytes>,
}

impl DeliverRecipient {
    /// Refuses what is empty or longer than the limits. What an address means is not decided here.
    pub fn check(&self) -> Result<(), (Status, &'static str)> {
        if self.address.is_empty() {
            return Err((Status::NoUser, "the address is empty"));
        }
        if self.address.len() > ADDRESS_BYTES_MAX {
            return Err((Status::NoUser, "the address is longer than 320 bytes"));
        }
        match &self.mailbox {
            Some(name) if !(1..=MAILBOX_NAME_BYTES_MAX).contains(&name.len()) => {
                Err((Status::NoMailbox, "a mailbox name has 1 to 255 bytes"))
            }
            _ => Ok(()),
        }
    }
}

/// Everything about a message but its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeliverRequest {
    /// Envelope sender, empty for the null sender; at most `ADDRESS_BYTES_MAX` bytes.
    pub sender: Bytes,
    /// 1 to `RECIPIENTS_MAX`.
    pub recipients: Vec<DeliverRecipient>,
    /// The MTA's queue id for logs and traces, or empty; at most `QUEUE_ID_BYTES_MAX` bytes.
    pub queue_id: Bytes,
    /// Milliseconds that remain for the answer; 0: no limit.
    pub deadline_ms: u32,
    /// Length of the message in bytes if the sender knows it, for admission.
    pub size_hint: Option<u64>,
}

/// Where the body of a request is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DeliverBody {
    /// Here.
    Inline(Bytes),
    /// In stream frames with the request's id.
    Streamed,
}

impl DeliverRequest {
    /// Whether it may be sent; what is wrong otherwise.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.recipients.is_empty() {
            return Err("a delivery without recipients");
        }
        if self.recipients.len() > RECIPIENTS_MAX {
            return Err("a delivery to more than 1,000 recipients");
        }
        if self.sender.len() > ADDRESS_BYTES_MAX {
            return Err("the sender is longer than 320 bytes");
        }
        if self.queue_id.len() > QUEUE_ID_BYTES_MAX {
            return Err("the queue id is longer than 64 bytes");
        }
        Ok(())
    }

    /// Appends the payload without an inline body. Returns the length of the meta struct.
    ///
    /// # Panics
    /// If [`check`](Self::check) was not asked or not heard.
    pub fn encode(&self, body_form: BodyForm, out: &mut BytesMut) -> usize {
        let recipients_len: usize = self.recipients.iter().map(recipient_len).sum();
        let meta = DeliverMeta {
            recipients_count: U32::new(wire_len(self.recipients.len())),
            recipients_len: U32::new(wire_len(recipients_len)),
            sender_len: U16::new(wire_len(self.sender.len())),
            queue_id_len: U16::new(wire_len(self.queue_id.len())),
            body_form: body_form.wire(),
            size_hint: U64::new(self.size_hint.unwrap_or(SIZE_UNKNOWN)),
            ..DeliverMeta::new_zeroed()
        };
        out.reserve(size_of::<DeliverMeta>() + self.sender.len() + recipients_len);
        out.extend_from_slice(meta.as_bytes());
        out.extend_from_slice(&self.sender);
        out.extend_from_slice(&self.queue_id);
        for recipient in &self.recipients {
            let (address, mailbox) = clipped(recipient);
            let row = RecipientRow {
                address_len: U16::new(wire_len(address.len())),
                mailbox_len: U16::new(mailbox.map_or(ABSENT, |name| wire_len(name.len()))),
            };
            out.extend_from_slice(row.as_bytes());
            out.extend_from_slice(address);
            out.extend_from_slice(mailbox.unwrap_or_default());
        }
        size_of::<DeliverMeta>()
    }

    /// Reads a request's payload.
    pub fn decode(frame: &Frame) -> Result<(Self, DeliverBody), Fault> {
        let (meta, mut reader) = Reader::new::<DeliverMeta>(frame)?;
        let count = usize::try_from(meta.recipients_count.get()).unwrap_or(usize::MAX);
        if !(1..=RECIPIENTS_MAX).contains(&count) {
            return Err(Fault::Refused(
                Status::Invalid,
                "a delivery has 1 to 1,000 recipients",
            ));
        }
        let sender = reader.take(meta.sender_len.get().into(), "the sender is cut off")?;
        let queue_id = reader.take(meta.queue_id_len.get().into(), "the queue id is cut off")?;
        let recipients_len = usize::try_from(meta.recipients_len.get()).unwrap_or(usize::MAX);
        let table = reader.take(recipients_len, "the recipients are cut off")?;
        let request = Self {
            sender,
            recipients: read_recipients(table, count)?,
            queue_id,
            deadline_ms: frame.header.deadline_ms.get(),
            size_hint: Some(meta.size_hint.get()).filter(|size| *size != SIZE_UNKNOWN),
        };
        request
            .check()
            .map_err(|what| Fault::Refused(Status::Invalid, what))?;
        let body = match BodyForm::from_wire(meta.body_form) {
            Some(BodyForm::Inline) => DeliverBody::Inline(reader.rest()),
            Some(BodyForm::Streamed) => {
                reader.finish()?;
                DeliverBody::Streamed
            }
            None => {
                return Err(Fault::Refused(
                    Status::Unsupported,
                    "the form of the body is not known here",
                ));
            }
        };
        match &body {
            DeliverBody::Inline(bytes) if bytes.len() > INLINE_BODY_BYTES_MAX => {
                Err(Fault::Malformed("an inline body of more than 65,536 bytes"))
            }
            _ => Ok((request, body)),
        }
    }
}

/// Where a body travels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BodyForm {
    /// At the end of the request's frame.
    Inline,
    /// In stream frames.
    Streamed,
}

impl BodyForm {
    pub(super) const fn wire(self) -> u8 {
        match self {
            Self::Inline => 0,
            Self::Streamed => 1,
        }
    }

    pub(super) const fn from_wire(wire: u8) -> Option<Self> {
        match wire {
            0 => Some(Self::Inline),
            1 => Some(Self::Streamed),
            _ => None,
        }
    }
}

fn clipped(recipient: &DeliverRecipient) -> (&[u8], Option<&[u8]>) {
    let mailbox = recipient.mailbox.as_deref();
    (
        clip(&recipient.address, ADDRESS_BYTES_MAX + 1),
        mailbox.map(|name| clip(name, MAILBOX_NAME_BYTES_MAX + 1)),
    )
}

fn recipient_len(recipient: &DeliverRecipient) -> usize {
    let (address, mailbox) = clipped(recipient);
    size_of::<RecipientRow>() + address.len() + mailbox.map_or(0, <[u8]>::len)
}

fn read_recipients(table: Bytes, count: usize) -> Result<Vec<DeliverRecipient>, Fault> {
    let mut reader = Reader { rest: table };
    let mut recipients = Vec::with_capacity(count);
    for _ in 0..count {
        let row: RecipientRow = reader.take_row(size_of::<RecipientRow>())?;
        recipients.push(DeliverRecipient {
            address: reader.take(row.address_len.get().into(), "an address is cut off")?,
            mailbox: reader
                .take_optional(row.mailbox_len.get(), "a recipient's mailbox is cut off")?,
        });
    }
    reader.finish()?;
    Ok(recipients)
}

/// What became of one recipient.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecipientReply {
    /// Done means durable as the operator's policy says.
    pub status: Status,
    /// Number of the message in its mailbox.
    pub uid: Option<Uid>,
    /// The delivery id.
    pub guid: Option<Guid>,
    /// A sentence for a log, mostly empty; at most `TEXT_BYTES_MAX` bytes are sent. From a peer it
    /// may hold anything: see [`printable`](super::printable).
    pub text: Bytes,
}

impl RecipientReply {
    /// A bare status.
    pub const fn new(status: Status) -> Self {
        Self {
            status,
            uid: None,
            guid: None,
            text: Bytes::new(),
        }
    }

    /// Appends the payload of a response. Returns the length of the meta struct.
    pub fn encode_all(replies: &[Self], out: &mut BytesMut) -> usize {
        let meta = DeliverReplyMeta {
            rows_count: U32::new(wire_len(replies.len())),
            row_len: U32::new(wire_len(size_of::<ReplyRow>())),
        };
        out.extend_from_slice(meta.as_bytes());
        for reply in replies {
            let row = ReplyRow {
                status: U16::new(reply.status.wire()),
                text_len: U16::new(wire_len(clip(&reply.text, TEXT_BYTES_MAX).len())),
                uid: U32::new(reply.uid.map_or(0, Uid::value)),
                guid: reply.guid.map_or([0; 16], Guid::bytes),
            };
            out.extend_from_slice(row.as_bytes());
        }
        for reply in replies {
            out.extend_from_slice(clip(&reply.text, TEXT_BYTES_MAX));
        }
        size_of::<DeliverReplyMeta>()
    }

    /// Reads the payload of a response to a request with `count` recipients.
    pub fn decode_all(frame: &Frame, count: usize) -> Result<Vec<Self>, Fault> {
        let (meta, mut reader) = Reader::new::<DeliverReplyMeta>(frame)?;
        if usize::try_from(meta.rows_count.get()) != Ok(count) || count > RECIPIENTS_MAX {
            return Err(Fault::Malformed("not one outcome per recipient"));
        }
        let row_len = usize::try_from(meta.row_len.get()).unwrap_or(usize::MAX);
        let table_len = row_len
            .checked_mul(count)
            .ok_or(Fault::Malformed("the rows are cut off"))?;
        let mut rows = Reader {
            rest: reader.take(table_len, "the rows are cut off")?,
        };
        let mut replies = Vec::with_capacity(count);
        for _ in 0..count {
            let row: ReplyRow = rows.take_row(row_len)?;
            replies.push(Self {
                status: Status::from_wire(row.status.get()),
                uid: Some(Uid::new(row.uid.get())).filter(|uid| uid.value() != 0),
                guid: Some(Guid::new(row.guid)).filter(|guid| guid.bytes() != [0; 16]),
                text: reader.take(row.text_len.get().into(), "a text is cut off")?,
            });
        }
        reader.finish()?;
        Ok(replies)
    }
}
