//! Records out of the payload of a frame whose CRC held.

use super::super::info::{MSG_FIXED_BYTES, Msg, MsgFixed, Run, Runs, SLOT, Seed};
use super::super::{Reserved, index, read_prefix};
use super::encode::{body_len, deliver_file_len, deliver_len, name_len};
use super::{
    GOES_ON, Head, InfoSwap, RECORD_HEADER_BYTES, RawBody, RawDeliver, RawDeliverFile, RawHeader,
    RecordType,
};
use crate::error::CorruptReason;
use crate::limits::{CACHE_SLOTS_MAX, PREFIX_BYTES_MAX};

/// One record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record<'a> {
    /// Of its header, in bytes from the payload's start.
    pub at: usize,
    /// Its header.
    pub head: Head,
    /// The rest.
    pub payload: Payload<'a>,
    /// All of it, for [`super::chain()`].
    pub bytes: &'a [u8],
}

/// What a record holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Payload<'a> {
    /// A message.
    Body(Body<'a>),
    /// A message for one user.
    Deliver(Deliver<'a>),
    /// A large message for one user.
    DeliverFile(DeliverFile<'a>),
    /// CHANGE runs.
    Flags(Runs<'a>),
    /// CHANGE runs.
    Expunge(Runs<'a>),
    /// MAILBOX runs.
    Mailbox(Runs<'a>),
    /// KEYWORD runs.
    Keyword(Runs<'a>),
    /// The canonical name.
    UserCreate(&'a [u8]),
    /// A new generation.
    InfoSwap(InfoSwap<'a>),
    /// A new primary's barrier.
    Epoch,
    /// The header's pseq and chain are the partition's last again.
    Truncate,
    /// Nothing.
    Noop,
    /// The header's epoch is the lowest that is taken from here on.
    Promise,
}

impl Payload<'_> {
    /// Whether it belongs to a partition as a whole, or to nobody.
    pub const fn is_of_no_user(&self) -> bool {
        matches!(
            self,
            Self::Epoch | Self::Truncate | Self::Noop | Self::Promise
        )
    }
}

/// A message and its header cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Body<'a> {
    /// The header cache.
    pub cache: &'a [u8],
    /// The stored message. Its CRC is the header's `body_crc`, proved by the frame's.
    pub stored: &'a [u8],
    /// Of `stored`, in bytes from the payload's start.
    pub stored_at: usize,
}

/// A message for one user.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Deliver<'a> {
    /// The MSG run's fixed part; the cache is the BODY's.
    pub fixed: &'a MsgFixed,
    /// Its values.
    pub msg: Msg,
    /// `From_` line and store line.
    pub prefix: &'a [u8],
    /// Of the group's BODY, in bytes from the payload's start.
    pub body_at: usize,
}

/// A large message for one user; its bytes are in `<segment>.part`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeliverFile<'a> {
    /// The MSG run's fixed part.
    pub fixed: &'a MsgFixed,
    /// Its values.
    pub msg: Msg,
    /// The header cache.
    pub cache: &'a [u8],
}

/// Iterator over the records of a payload. Ends behind the first that is not what it must be, since
/// nothing tells where the next begins.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    payload: &'a [u8],
    at: usize,
    reserved: Reserved,
}

impl<'a> Records<'a> {
    /// Over a frame's records.
    pub fn new(payload: &'a [u8]) -> Self {
        Self {
            payload,
            at: 0,
            reserved: Reserved::Zero,
        }
    }

    /// Takes reserved bytes as a log file of that version may hold them.
    #[must_use]
    pub fn reserved(mut self, reserved: Reserved) -> Self {
        self.reserved = reserved;
        self
    }

    /// The record at `at` in a payload: a BODY that a DELIVER points back to.
    pub fn at(payload: &'a [u8], at: usize) -> Result<Record<'a>, CorruptReason> {
        let mut records = Self::new(payload);
        records.at = at;
        records.reserved = Reserved::Unknown;
        match records.next() {
            Some(Ok(record)) if record.at == at => Ok(record),
            Some(Err(reason)) => Err(reason),
            _ => Err(CorruptReason::Truncated),
        }
    }

    /// The bytes of the record at `self.at`.
    fn cut(&self) -> Result<(&'a RawHeader, &'a [u8]), CorruptReason> {
        let rest = self.payload.get(self.at..).unwrap_or_default();
        let raw: &RawHeader = read_prefix(rest)?;
        let len = index(raw.rec_len.get());
        if len < RECORD_HEADER_BYTES || !len.is_multiple_of(8) {
            return Err(CorruptReason::Length);
        }
        Ok((raw, rest.get(..len).ok_or(CorruptReason::Truncated)?))
    }

    /// A record of a known type, or `None` for one that may be skipped.
    fn decode(
        &self,
        raw: &RawHeader,
        bytes: &'a [u8],
    ) -> Result<Option<Record<'a>>, CorruptReason> {
        let Some(kind) = RecordType::from_value(raw.kind) else {
            if raw.kind & RecordType::OPTIONAL != 0 {
                return Ok(None);
            }
            return Err(CorruptReason::Value(
                "a type of record this program does not know",
            ));
        };
        if self.reserved == Reserved::Zero && raw.flags & !GOES_ON != 0 {
            return Err(CorruptReason::Value("unknown record flags"));
        }
        let head = Head::from_raw(raw);
        let placed = kind.is_replicated() || kind == RecordType::Truncate;
        if !placed && (head.pseq != 0 || head.chain != 0) {
            return Err(CorruptReason::Value("a local record in a chain"));
        }
        let rest = bytes.get(RECORD_HEADER_BYTES..).unwrap_or_default();
        let payload = match kind {
            RecordType::Body => self.body(bytes).map(Payload::Body)?,
            RecordType::Deliver => self.deliver(&head, bytes).map(Payload::Deliver)?,
            RecordType::DeliverFile => self.deliver_file(&head, bytes).map(Payload::DeliverFile)?,
            RecordType::Flags => Payload::Flags(self.runs(&head, rest)?),
            RecordType::Expunge => Payload::Expunge(self.runs(&head, rest)?),
            RecordType::Mailbox => Payload::Mailbox(self.runs(&head, rest)?),
            RecordType::Keyword => Payload::Keyword(self.runs(&head, rest)?),
            RecordType::UserCreate => Payload::UserCreate(user_name(rest)?),
            RecordType::InfoSwap => Payload::InfoSwap(InfoSwap::decode(rest)?),
            RecordType::Noop if rest.is_empty() => Payload::Noop,
            RecordType::Epoch if rest.is_empty() => Payload::Epoch,
            RecordType::Truncate if rest.is_empty() => Payload::Truncate,
            RecordType::Promise if rest.is_empty() => Payload::Promise,
            RecordType::Noop | RecordType::Epoch | RecordType::Truncate | RecordType::Promise => {
                return Err(CorruptReason::Length);
            }
        };
        Ok(Some(Record {
            at: self.at,
            head,
            payload,
            bytes,
        }))
    }

    fn body(&self, bytes: &'a [u8]) -> Result<Body<'a>, CorruptReason> {
        let rest = bytes.get(RECORD_HEADER_BYTES..).unwrap_or_default();
        let raw: &RawBody = read_prefix(rest)?;
        self.reserved.check(&raw.reserved)?;
        let stored_len = index(raw.stored_len.get());
        let cache_len = usize::from(raw.cache_slots) * SLOT;
        // A frame is at most 4 MiB: a longer length cannot be right, nor wrap the sum below.
        if stored_len > bytes.len()
            || usize::from(raw.cache_slots) > CACHE_SLOTS_MAX
            || bytes.len() != body_len(cache_len, stored_len)
        {
            return Err(CorruptReason::Length);
        }
        let at = size_of::<RawBody>() + cache_len;
        let (before, rest) = rest.split_at_checked(at).ok_or(CorruptReason::Length)?;
        let (stored, after) = rest
            .split_at_checked(stored_len)
            .ok_or(CorruptReason::Length)?;
        let padding = after
            .strip_prefix(b"\n")
            .ok_or(CorruptReason::Value("no LF behind a body"))?;
        Reserved::Zero.check(padding)?;
        Ok(Body {
            cache: before.get(size_of::<RawBody>()..).unwrap_or_default(),
            stored,
            stored_at: self.at + RECORD_HEADER_BYTES + at,
        })
    }

    fn deliver(&self, head: &Head, bytes: &'a [u8]) -> Result<Deliver<'a>, CorruptReason> {
        let rest = bytes.get(RECORD_HEADER_BYTES..).unwrap_or_default();
        let raw: &RawDeliver = read_prefix(rest)?;
        self.reserved.check(&raw.reserved)?;
        let prefix_len = usize::from(raw.prefix_len.get());
        if prefix_len > PREFIX_BYTES_MAX || bytes.len() != deliver_len(prefix_len) {
            return Err(CorruptReason::Length);
        }
        let (fixed, msg) = self.msg(head, &raw.fixed)?;
        let same = fixed.cache_slots() == raw.cache_slots
            && msg.segment == raw.segment.get()
            && msg.offset == raw.offset.get()
            && usize::from(msg.skip) == prefix_len;
        if !same {
            return Err(CorruptReason::Disagree("a DELIVER and its MSG run"));
        }
        let (prefix, padding) = rest
            .get(size_of::<RawDeliver>()..)
            .and_then(|rest| rest.split_at_checked(prefix_len))
            .ok_or(CorruptReason::Length)?;
        Reserved::Zero.check(padding)?;
        let body_at = self
            .at
            .checked_sub(index(raw.distance.get()))
            .filter(|at| *at < self.at)
            .ok_or(CorruptReason::Value("a DELIVER without a BODY before it"))?;
        Ok(Deliver {
            fixed,
            msg,
            prefix,
            body_at,
        })
    }

    fn deliver_file(&self, head: &Head, bytes: &'a [u8]) -> Result<DeliverFile<'a>, CorruptReason> {
        let rest = bytes.get(RECORD_HEADER_BYTES..).unwrap_or_default();
        let raw: &RawDeliverFile = read_prefix(rest)?;
        self.reserved.check(&raw.reserved)?;
        let (fixed, msg) = self.msg(head, &raw.fixed)?;
        let cache_len = usize::from(fixed.cache_slots()) * SLOT;
        if bytes.len() != deliver_file_len(cache_len) {
            return Err(CorruptReason::Length);
        }
        if msg.segment != raw.segment.get() {
            return Err(CorruptReason::Disagree("a DELIVER_FILE and its MSG run"));
        }
        Ok(DeliverFile {
            fixed,
            msg,
            cache: rest.get(size_of::<RawDeliverFile>()..).unwrap_or_default(),
        })
    }

    /// The fixed part of a MSG run inside a record, which must say what the header says.
    fn msg(
        &self,
        head: &Head,
        bytes: &'a [u8; MSG_FIXED_BYTES],
    ) -> Result<(&'a MsgFixed, Msg), CorruptReason> {
        MsgFixed::read(bytes)?;
        let fixed: &MsgFixed = read_prefix(bytes)?;
        let msg = fixed.values(self.reserved)?;
        let same = msg.mailbox == head.mailbox
            && msg.uid.value() == head.uid
            && msg.modseq == head.modseq
            && msg.stored_crc == head.body_crc;
        if !same {
            return Err(CorruptReason::Disagree("a record's header and its MSG run"));
        }
        Ok((fixed, msg))
    }

    /// Runs of a record, each of which must hold: the frame's CRC did.
    fn runs(&self, head: &Head, rest: &'a [u8]) -> Result<Runs<'a>, CorruptReason> {
        let seed = Seed {
            user: head.user,
            generation: head.generation,
        };
        let runs = Runs::new(rest, seed, head.slot).reserved(self.reserved);
        if rest.is_empty() {
            return Err(CorruptReason::Length);
        }
        for run in runs.clone() {
            if matches!(run.run?, Run::Msg { .. } | Run::Retire(_)) {
                return Err(CorruptReason::Value("a run of another kind in a record"));
            }
        }
        Ok(runs)
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, CorruptReason>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.at < self.payload.len() {
            let item = self
                .cut()
                .and_then(|(raw, bytes)| Ok((self.decode(raw, bytes)?, bytes.len())));
            match item {
                Ok((record, len)) => {
                    self.at += len;
                    if let Some(record) = record {
                        return Some(Ok(record));
                    }
                }
                Err(reason) => {
                    self.at = self.payload.len();
                    return Some(Err(reason));
                }
            }
        }
        None
    }
}

/// u16 length, name, zeros.
fn user_name(rest: &[u8]) -> Result<&[u8], CorruptReason> {
    let (count, name) = rest.split_first_chunk().ok_or(CorruptReason::Truncated)?;
    let count = usize::from(u16::from_le_bytes(*count));
    let max = ringpost_netproto::placement::NAME_BYTES_MAX;
    if !(1..=max).contains(&count) || rest.len() + RECORD_HEADER_BYTES != name_len(count) {
        return Err(CorruptReason::Length);
    }
    let (name, padding) = name.split_at_checked(count).ok_or(CorruptReason::Length)?;
    Reserved::Zero.check(padding)?;
    Ok(name)
}
