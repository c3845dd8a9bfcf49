//! MAILBOX, KEYWORD and RETIRE runs: what mailboxes there are, what their keyword bits mean, and
//! which segments a generation replaced.

use ringpost_netproto::id::{MailboxId, Modseq, UidValidity, WallNs};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use super::super::{Layout, Reserved, read_prefix};
use super::{SLOT, Seed, extra_slots, kind, seal_run};
use crate::error::CorruptReason;
use crate::position::Lsn;

/// A mailbox's UTF-8 name has 1 to this many bytes.
pub const MAILBOX_NAME_BYTES_MAX: usize = 1024;

/// A keyword has 1 to this many bytes.
pub const KEYWORD_BYTES_MAX: usize = 255;

/// Segments of one RETIRE run; more need several.
pub const RETIRE_COUNT_MAX: usize = 255 * SLOT / 4;

on_disk! {
    struct RawMailbox, "MAILBOX run", 64 {
        0 crc: U32,
        4 kind: u8,
        5 extra: u8,
        6 op: u8,
        7 special_use: u8,
        8 mailbox: U32,
        12 uidvalidity: U32,
        16 modseq: U64,
        24 lsn: U64,
        32 uidnext: U32,
        36 name_len: U16,
        38 reserved_38: [u8; 2],
        40 highest_modseq: U64,
        48 time: U64,
        56 reserved_56: [u8; 8],
    }
}

on_disk! {
    struct RawKeyword, "KEYWORD run", 64 {
        0 crc: U32,
        4 kind: u8,
        5 extra: u8,
        6 reserved_6: [u8; 2],
        8 mailbox: U32,
        12 bit: U32,
        16 modseq: U64,
        24 lsn: U64,
        32 reserved_32: [u8; 4],
        36 name_len: U16,
        38 reserved_38: [u8; 26],
    }
}

on_disk! {
    struct RawRetire, "RETIRE run", 64 {
        0 crc: U32,
        4 kind: u8,
        5 extra: u8,
        6 reserved_6: [u8; 2],
        8 count: U32,
        12 reserved_12: [u8; 52],
    }
}

pub(in super::super) const MAILBOX_LAYOUT: Layout = RawMailbox::LAYOUT;
pub(in super::super) const KEYWORD_LAYOUT: Layout = RawKeyword::LAYOUT;
pub(in super::super) const RETIRE_LAYOUT: Layout = RawRetire::LAYOUT;

/// What happens to a mailbox.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MailboxOp {
    /// It is there from now on.
    Create,
    /// It has another name.
    Rename,
    /// It and its messages are gone.
    Delete,
    /// IMAP SUBSCRIBE.
    Subscribe,
    /// IMAP UNSUBSCRIBE.
    Unsubscribe,
    /// Its state as a new generation begins, subscription apart.
    Snapshot,
}

/// RFC 6154 attributes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SpecialUse {
    /// An ordinary mailbox.
    None,
    /// `\All`.
    All,
    /// `\Archive`.
    Archive,
    /// `\Drafts`.
    Drafts,
    /// `\Flagged`.
    Flagged,
    /// `\Junk`.
    Junk,
    /// `\Sent`.
    Sent,
    /// `\Trash`.
    Trash,
}

impl MailboxOp {
    const ALL: [Self; 6] = [
        Self::Create,
        Self::Rename,
        Self::Delete,
        Self::Subscribe,
        Self::Unsubscribe,
        Self::Snapshot,
    ];

    const fn value(self) -> u8 {
        match self {
            Self::Create => 1,
            Self::Rename => 2,
            Self::Delete => 3,
            Self::Subscribe => 4,
            Self::Unsubscribe => 5,
            Self::Snapshot => 6,
        }
    }

    fn from_value(value: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|op| op.value() == value)
    }
}

impl SpecialUse {
    const ALL: [Self; 8] = [
        Self::None,
        Self::All,
        Self::Archive,
        Self::Drafts,
        Self::Flagged,
        Self::Junk,
        Self::Sent,
        Self::Trash,
    ];

    const fn value(self) -> u8 {
        match self {
            Self::None => 0,
            Self::All => 1,
            Self::Archive => 2,
            Self::Drafts => 3,
            Self::Flagged => 4,
            Self::Junk => 5,
            Self::Sent => 6,
            Self::Trash => 7,
        }
    }

    fn from_value(value: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.value() == value)
    }
}

/// A mailbox and what happened to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mailbox<'a> {
    /// What.
    pub op: MailboxOp,
    /// RFC 6154.
    pub special_use: SpecialUse,
    /// Never used again.
    pub mailbox: MailboxId,
    /// Validity of its uids.
    pub uidvalidity: UidValidity,
    /// Of the change.
    pub modseq: Modseq,
    /// Position of the frame of its record; 0 in a snapshot.
    pub lsn: Lsn,
    /// Above every uid given so far.
    pub uidnext: u32,
    /// Of its messages; 0 at first.
    pub highest_modseq: u64,
    /// When.
    pub time: WallNs,
    /// UTF-8.
    pub name: &'a str,
}

impl<'a> Mailbox<'a> {
    /// Bytes of the run.
    pub fn encoded_len(&self) -> usize {
        SLOT + self.name.len().next_multiple_of(SLOT)
    }

    /// Appends the run for `slot`. The name has 1 to [`MAILBOX_NAME_BYTES_MAX`] bytes.
    pub fn encode(&self, seed: Seed, slot: u32, out: &mut Vec<u8>) {
        assert!(
            (1..=MAILBOX_NAME_BYTES_MAX).contains(&self.name.len()),
            "a mailbox name of {} bytes",
            self.name.len()
        );
        let from = out.len();
        let raw = RawMailbox {
            crc: U32::ZERO,
            kind: kind::MAILBOX,
            extra: extra_slots(self.name.len()),
            op: self.op.value(),
            special_use: self.special_use.value(),
            mailbox: U32::new(self.mailbox.value()),
            uidvalidity: U32::new(self.uidvalidity.value()),
            modseq: U64::new(self.modseq.value()),
            lsn: U64::new(self.lsn.value()),
            uidnext: U32::new(self.uidnext),
            name_len: U16::new(u16::try_from(self.name.len()).expect("at most 1024")),
            reserved_38: [0; 2],
            highest_modseq: U64::new(self.highest_modseq),
            time: U64::new(self.time.value()),
            reserved_56: [0; 8],
        };
        out.extend_from_slice(raw.as_bytes());
        out.extend_from_slice(self.name.as_bytes());
        out.resize(from + self.encoded_len(), 0);
        seal_run(out, from, seed, slot);
    }

    pub(super) fn decode(run: &'a [u8], reserved: Reserved) -> Result<Self, CorruptReason> {
        let raw: &RawMailbox = read_prefix(run)?;
        reserved.check(&raw.reserved_38)?;
        reserved.check(&raw.reserved_56)?;
        let name = trailing_name(run, raw.name_len.get(), MAILBOX_NAME_BYTES_MAX)?;
        if raw.mailbox.get() == 0 || raw.uidvalidity.get() == 0 || raw.uidnext.get() == 0 {
            return Err(CorruptReason::Value(
                "a mailbox whose id, uidvalidity or uidnext is 0",
            ));
        }
        Ok(Self {
            op: MailboxOp::from_value(raw.op)
                .ok_or(CorruptReason::Value("unknown mailbox operation"))?,
            special_use: SpecialUse::from_value(raw.special_use)
                .ok_or(CorruptReason::Value("unknown special use"))?,
            mailbox: MailboxId::new(raw.mailbox.get()),
            uidvalidity: UidValidity::new(raw.uidvalidity.get()),
            modseq: Modseq::new(raw.modseq.get()),
            lsn: Lsn::new(raw.lsn.get()),
            uidnext: raw.uidnext.get(),
            highest_modseq: raw.highest_modseq.get(),
            time: WallNs::new(raw.time.get()),
            name,
        })
    }
}

/// The meaning of a keyword bit in one mailbox.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Keyword<'a> {
    /// Which mailbox.
    pub mailbox: MailboxId,
    /// 0 to 63.
    pub bit: u8,
    /// Of the change.
    pub modseq: Modseq,
    /// Position of the frame of its record; 0 in a snapshot.
    pub lsn: Lsn,
    /// The keyword, as first spelt.
    pub name: &'a str,
}

impl<'a> Keyword<'a> {
    /// Bytes of the run.
    pub fn encoded_len(&self) -> usize {
        SLOT + self.name.len().next_multiple_of(SLOT)
    }

    /// Appends the run for `slot`. The name has 1 to [`KEYWORD_BYTES_MAX`] bytes.
    pub fn encode(&self, seed: Seed, slot: u32, out: &mut Vec<u8>) {
        assert!(
            (1..=KEYWORD_BYTES_MAX).contains(&self.name.len()) && self.bit < 64,
            "keyword bit {} with a name of {} bytes",
            self.bit,
            self.name.len()
        );
        let from = out.len();
        let raw = RawKeyword {
            crc: U32::ZERO,
            kind: kind::KEYWORD,
            extra: extra_slots(self.name.len()),
            reserved_6: [0; 2],
            mailbox: U32::new(self.mailbox.value()),
            bit: U32::new(u32::from(self.bit)),
            modseq: U64::new(self.modseq.value()),
            lsn: U64::new(self.lsn.value()),
            reserved_32: [0; 4],
            name_len: U16::new(u16::try_from(self.name.len()).expect("at most 255")),
            reserved_38: [0; 26],
        };
        out.extend_from_slice(raw.as_bytes());
        out.extend_from_slice(self.name.as_bytes());
        out.resize(from + self.encoded_len(), 0);
        seal_run(out, from, seed, slot);
    }

    pub(super) fn decode(run: &'a [u8], reserved: Reserved) -> Result<Self, CorruptReason> {
        let raw: &RawKeyword = read_prefix(run)?;
        reserved.check(&raw.reserved_6)?;
        reserved.check(&raw.reserved_32)?;
        reserved.check(&raw.reserved_38)?;
        let name = trailing_name(run, raw.name_len.get(), KEYWORD_BYTES_MAX)?;
        let bit = u8::try_from(raw.bit.get())
            .ok()
            .filter(|bit| *bit < 64)
            .ok_or(CorruptReason::Value("a keyword bit above 63"))?;
        Ok(Self {
            mailbox: MailboxId::new(raw.mailbox.get()),
            bit,
            modseq: Modseq::new(raw.modseq.get()),
            lsn: Lsn::new(raw.lsn.get()),
            name,
        })
    }
}

/// Segments whose live messages are all in this generation's segments: evidence for their unlink.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retire<'a> {
    segments: &'a [U32],
}

impl<'a> Retire<'a> {
    /// Appends the run for `slot` with 1 to [`RETIRE_COUNT_MAX`] segments.
    pub fn encode(segments: &[u32], seed: Seed, slot: u32, out: &mut Vec<u8>) {
        assert!(
            (1..=RETIRE_COUNT_MAX).contains(&segments.len()),
            "{} retired segments",
            segments.len()
        );
        let from = out.len();
        let raw = RawRetire {
            crc: U32::ZERO,
            kind: kind::RETIRE,
            extra: extra_slots(segments.len() * 4),
            reserved_6: [0; 2],
            count: U32::new(u32::try_from(segments.len()).expect("at most 4080")),
            reserved_12: [0; 52],
        };
        out.extend_from_slice(raw.as_bytes());
        for segment in segments {
            out.extend_from_slice(&segment.to_le_bytes());
        }
        out.resize(from + SLOT + (segments.len() * 4).next_multiple_of(SLOT), 0);
        seal_run(out, from, seed, slot);
    }

    pub(super) fn decode(run: &'a [u8], reserved: Reserved) -> Result<Self, CorruptReason> {
        let raw: &RawRetire = read_prefix(run)?;
        reserved.check(&raw.reserved_6)?;
        reserved.check(&raw.reserved_12)?;
        let count = super::super::index(raw.count.get());
        if !(1..=RETIRE_COUNT_MAX).contains(&count)
            || usize::from(raw.extra) != (count * 4).div_ceil(SLOT)
        {
            return Err(CorruptReason::Length);
        }
        let (ids, padding) = run
            .get(SLOT..)
            .and_then(|rest| rest.split_at_checked(count * 4))
            .ok_or(CorruptReason::Truncated)?;
        padding_is_zero(padding)?;
        let segments = <[U32] as zerocopy::FromBytes>::ref_from_bytes(ids)
            .map_err(|_size| CorruptReason::Length)?;
        Ok(Self { segments })
    }

    /// The segments.
    pub fn segments(&self) -> impl Iterator<Item = u32> + 'a {
        self.segments.iter().map(|id| id.get())
    }
}

/// The name behind the first slot of a run whose length is `extra` slots; zero to its end.
fn trailing_name(run: &[u8], name_len: u16, max: usize) -> Result<&str, CorruptReason> {
    let name_len = usize::from(name_len);
    if !(1..=max).contains(&name_len) || run.len() != SLOT + name_len.next_multiple_of(SLOT) {
        return Err(CorruptReason::Length);
    }
    let (name, padding) = run
        .get(SLOT..)
        .and_then(|rest| rest.split_at_checked(name_len))
        .ok_or(CorruptReason::Truncated)?;
    padding_is_zero(padding)?;
    std::str::from_utf8(name).map_err(|_utf8| CorruptReason::Value("a name that is not UTF-8"))
}

/// Padding has no meaning in any version.
fn padding_is_zero(padding: &[u8]) -> Result<(), CorruptReason> {
    Reserved::Zero.check(padding)
}
