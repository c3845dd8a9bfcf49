//! The MSG run: all that is known of a message, 128 bytes, then `k` slots of header cache.

use ringpost_netproto::id::{Guid, MailboxId, Modseq, Uid, WallNs};
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::super::{Layout, Reserved, crc};
use super::{FORMAT_FLAGS_KNOWN, RUN_COVERED_FROM, Seed, kind};
use crate::error::CorruptReason;
use crate::limits::{CACHE_SLOTS_MAX, PREFIX_BYTES_MAX, SLOT_BYTES, STORED_BYTES_MAX};
use crate::position::Lsn;

/// Bytes before the header cache.
pub const MSG_FIXED_BYTES: usize = 128;

on_disk! {
    /// The fixed part of a MSG run as it stands on disk. It is passed around as such, since log and
    /// index hold the same 128 bytes.
    #[derive(PartialEq, Eq)]
    pub struct MsgFixed, "MSG run", 128 {
        0 crc: U32,
        4 kind: u8,
        5 extra: u8,
        6 format_flags: U16,
        8 mailbox: U32,
        12 uid: U32,
        16 modseq: U64,
        24 lsn: U64,
        32 segment: U32,
        36 reserved_36: U32,
        40 offset: U64,
        48 stored_len: U32,
        52 skip: U16,
        54 reserved_54: U16,
        56 header_len: U32,
        60 lines_count: U32,
        64 quoted_count: U32,
        68 rfc822_size: U32,
        72 internal_date: U64,
        80 date_s: I64,
        88 system_flags: U32,
        92 stored_crc: U32,
        96 keywords: U64,
        104 guid: [u8; 16],
        120 held_for: U32,
        124 reserved_124: U32,
    }
}

const _: () = assert!(size_of::<MsgFixed>() == MSG_FIXED_BYTES);

pub(in super::super) const LAYOUT: Layout = MsgFixed::LAYOUT;

/// The values of a MSG run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Msg {
    /// Bits of [`super::ALL_CRLF`] and its neighbours.
    pub format_flags: u16,
    /// Which mailbox.
    pub mailbox: MailboxId,
    /// Its number there.
    pub uid: Uid,
    /// Of the append.
    pub modseq: Modseq,
    /// Position of the frame of its record; 0 if rebuilt.
    pub lsn: Lsn,
    /// The segment that holds it.
    pub segment: u32,
    /// Of the `From_` line, in bytes from the segment's start.
    pub offset: u64,
    /// Bytes of the stored message.
    pub stored_len: u32,
    /// Bytes of `From_` line and store line before it.
    pub skip: u16,
    /// Bytes of the stored message up to and with the empty line behind the header.
    pub header_len: u32,
    /// LF in the stored message.
    pub lines_count: u32,
    /// Lines with a quoting `>` added.
    pub quoted_count: u32,
    /// Octets in the CRLF view.
    pub rfc822_size: u32,
    /// INTERNALDATE.
    pub internal_date: WallNs,
    /// `Date:` in seconds since 1970, if it could be read.
    pub date_s: Option<i64>,
    /// Bits of [`super::SEEN`] and its neighbours.
    pub system_flags: u32,
    /// CRC of the stored message.
    pub stored_crc: u32,
    /// One bit per keyword of the mailbox.
    pub keywords: u64,
    /// Identity of the content.
    pub guid: Guid,
    /// In the hidden mailbox, which mailbox the message is for; else 0.
    pub held_for: u32,
}

impl Msg {
    /// The fixed part in front of `cache_slots` slots of header cache; still without its CRC.
    pub fn fixed(&self, cache_slots: u8) -> MsgFixed {
        assert!(
            usize::from(cache_slots) <= CACHE_SLOTS_MAX,
            "a header cache of {cache_slots} slots"
        );
        MsgFixed {
            crc: U32::ZERO,
            kind: kind::MSG,
            extra: cache_slots + 1,
            format_flags: U16::new(self.format_flags),
            mailbox: U32::new(self.mailbox.value()),
            uid: U32::new(self.uid.value()),
            modseq: U64::new(self.modseq.value()),
            lsn: U64::new(self.lsn.value()),
            segment: U32::new(self.segment),
            reserved_36: U32::ZERO,
            offset: U64::new(self.offset),
            stored_len: U32::new(self.stored_len),
            skip: U16::new(self.skip),
            reserved_54: U16::ZERO,
            header_len: U32::new(self.header_len),
            lines_count: U32::new(self.lines_count),
            quoted_count: U32::new(self.quoted_count),
            rfc822_size: U32::new(self.rfc822_size),
            internal_date: U64::new(self.internal_date.value()),
            date_s: I64::new(self.date_s.unwrap_or(i64::MIN)),
            system_flags: U32::new(self.system_flags),
            stored_crc: U32::new(self.stored_crc),
            keywords: U64::new(self.keywords),
            guid: self.guid.bytes(),
            held_for: U32::new(self.held_for),
            reserved_124: U32::ZERO,
        }
    }

    /// Bytes in the segment: prefix, message, empty line.
    pub fn segment_bytes(&self) -> u64 {
        u64::from(self.skip) + u64::from(self.stored_len) + 1
    }
}

impl MsgFixed {
    /// Fills in the CRC of the run at `slot`, header cache included, of which only the CRC and the
    /// slots are needed: the cache is not read again for each recipient.
    #[must_use]
    pub fn seal(mut self, seed: Seed, slot: u32, cache_crc: u32) -> Self {
        self.crc = U32::new(self.expected_crc(seed, slot, cache_crc));
        self
    }

    /// The same message at another place; without a CRC until it is sealed.
    #[must_use]
    pub fn placed(mut self, lsn: Lsn, segment: u32, offset: u64) -> Self {
        self.lsn = U64::new(lsn.value());
        self.segment = U32::new(segment);
        self.offset = U64::new(offset);
        self
    }

    /// Whether the CRC holds for a run at `slot` with that header cache.
    pub fn check_crc(&self, seed: Seed, slot: u32, cache_crc: u32) -> Result<(), CorruptReason> {
        if self.crc.get() == self.expected_crc(seed, slot, cache_crc) {
            Ok(())
        } else {
            Err(CorruptReason::Checksum)
        }
    }

    fn expected_crc(&self, seed: Seed, slot: u32, cache_crc: u32) -> u32 {
        let covered = self.as_bytes().get(RUN_COVERED_FROM..).unwrap_or_default();
        let fixed = crc::extend(seed.crc(slot), covered);
        crc::combine(fixed, cache_crc, u64::from(self.cache_slots()) * SLOT_BYTES)
    }

    /// Identity of the content.
    pub fn guid(&self) -> Guid {
        Guid::new(self.guid)
    }

    /// The segment that holds the message.
    pub fn segment(&self) -> u32 {
        self.segment.get()
    }

    /// Of the `From_` line in the segment.
    pub fn offset(&self) -> u64 {
        self.offset.get()
    }

    /// The 128 bytes.
    pub fn bytes(&self) -> &[u8] {
        self.as_bytes()
    }

    /// Slots of header cache behind the fixed part.
    pub fn cache_slots(&self) -> u8 {
        self.extra.saturating_sub(1)
    }

    /// Slots of the whole run.
    pub fn slots(&self) -> u32 {
        u32::from(self.extra) + 1
    }

    /// The fixed part at the start of `bytes`: kind and lengths, not the CRC, not the values.
    pub fn read(bytes: &[u8]) -> Result<Self, CorruptReason> {
        let (fixed, _) =
            Self::read_from_prefix(bytes).map_err(|_short| CorruptReason::Truncated)?;
        if fixed.kind != kind::MSG {
            return Err(CorruptReason::Value("not a MSG run"));
        }
        if fixed.extra == 0 || usize::from(fixed.cache_slots()) > CACHE_SLOTS_MAX {
            return Err(CorruptReason::Length);
        }
        Ok(fixed)
    }

    /// The values, each within its limits.
    pub fn values(&self, reserved: Reserved) -> Result<Msg, CorruptReason> {
        reserved.check(&self.reserved_36.to_bytes())?;
        reserved.check(&self.reserved_54.to_bytes())?;
        reserved.check(&self.reserved_124.to_bytes())?;
        let format_flags = self.format_flags.get();
        if reserved == Reserved::Zero && format_flags & !FORMAT_FLAGS_KNOWN != 0 {
            return Err(CorruptReason::Value("unknown format flags"));
        }
        if self.uid.get() == 0 || self.mailbox.get() == 0 {
            return Err(CorruptReason::Value("a message with uid or mailbox 0"));
        }
        let stored_len = self.stored_len.get();
        let lengths = u64::from(stored_len) <= STORED_BYTES_MAX
            && self.header_len.get() <= stored_len
            && self.lines_count.get() <= stored_len
            && self.quoted_count.get() <= self.lines_count.get()
            && usize::from(self.skip.get()) <= PREFIX_BYTES_MAX
            && self
                .offset
                .get()
                .checked_add(STORED_BYTES_MAX * 2)
                .is_some();
        if !lengths {
            return Err(CorruptReason::Length);
        }
        let date_s = self.date_s.get();
        Ok(Msg {
            format_flags,
            mailbox: MailboxId::new(self.mailbox.get()),
            uid: Uid::new(self.uid.get()),
            modseq: Modseq::new(self.modseq.get()),
            lsn: Lsn::new(self.lsn.get()),
            segment: self.segment.get(),
            offset: self.offset.get(),
            stored_len,
            skip: self.skip.get(),
            header_len: self.header_len.get(),
            lines_count: self.lines_count.get(),
            quoted_count: self.quoted_count.get(),
            rfc822_size: self.rfc822_size.get(),
            internal_date: WallNs::new(self.internal_date.get()),
            date_s: (date_s != i64::MIN).then_some(date_s),
            system_flags: self.system_flags.get(),
            stored_crc: self.stored_crc.get(),
            keywords: self.keywords.get(),
            guid: Guid::new(self.guid),
            held_for: self.held_for.get(),
        })
    }
}

impl std::fmt::Debug for MsgFixed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.values(Reserved::Unknown) {
            Ok(msg) => msg.fmt(f),
            Err(reason) => write!(f, "MsgFixed({reason})"),
        }
    }
}
