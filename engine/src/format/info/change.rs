//! The CHANGE run: new absolute values for a range of uids, or their expunge.

use ringpost_netproto::id::{MailboxId, Modseq, Uid, WallNs};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use super::super::{Layout, Reserved, read_prefix};
use super::{Seed, kind, seal_run};
use crate::error::CorruptReason;
use crate::position::Lsn;

/// Bytes of a CHANGE run: one slot.
pub const CHANGE_RUN_BYTES: usize = 64;

on_disk! {
    struct Raw, "CHANGE run", 64 {
        0 crc: U32,
        4 kind: u8,
        5 extra: u8,
        6 reserved_6: [u8; 2],
        8 mailbox: U32,
        12 uid_low: U32,
        16 modseq: U64,
        24 lsn: U64,
        32 uid_high: U32,
        36 system_flags: U32,
        40 keywords: U64,
        48 time: U64,
        56 reserved_56: [u8; 8],
    }
}

const _: () = assert!(size_of::<Raw>() == CHANGE_RUN_BYTES);

pub(in super::super) const LAYOUT: Layout = Raw::LAYOUT;

/// What a CHANGE run changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChangeKind {
    /// Flags and keywords become those given.
    Flags,
    /// The messages are gone (a tombstone); flags and keywords are zero.
    Expunge,
}

/// A change of messages, uids `uid_low..=uid_high`. Absolute: a repeat is harmless.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Change {
    /// Flags or expunge.
    pub kind: ChangeKind,
    /// Which mailbox.
    pub mailbox: MailboxId,
    /// First uid.
    pub uid_low: Uid,
    /// Last uid.
    pub uid_high: Uid,
    /// The highest wins.
    pub modseq: Modseq,
    /// Position of the frame of its record.
    pub lsn: Lsn,
    /// All system flags from now on.
    pub system_flags: u32,
    /// All keyword bits from now on.
    pub keywords: u64,
    /// When.
    pub time: WallNs,
}

impl Change {
    /// Appends the run for `slot`.
    pub fn encode(&self, seed: Seed, slot: u32, out: &mut Vec<u8>) {
        let from = out.len();
        let raw = Raw {
            crc: U32::ZERO,
            kind: match self.kind {
                ChangeKind::Flags => kind::FLAGS,
                ChangeKind::Expunge => kind::EXPUNGE,
            },
            extra: 0,
            reserved_6: [0; 2],
            mailbox: U32::new(self.mailbox.value()),
            uid_low: U32::new(self.uid_low.value()),
            modseq: U64::new(self.modseq.value()),
            lsn: U64::new(self.lsn.value()),
            uid_high: U32::new(self.uid_high.value()),
            system_flags: U32::new(self.system_flags),
            keywords: U64::new(self.keywords),
            time: U64::new(self.time.value()),
            reserved_56: [0; 8],
        };
        out.extend_from_slice(raw.as_bytes());
        seal_run(out, from, seed, slot);
    }

    /// The values of a run whose CRC held.
    pub(super) fn decode(run: &[u8], reserved: Reserved) -> Result<Self, CorruptReason> {
        let raw: &Raw = read_prefix(run)?;
        if raw.extra != 0 {
            return Err(CorruptReason::Length);
        }
        reserved.check(&raw.reserved_6)?;
        reserved.check(&raw.reserved_56)?;
        if raw.uid_low.get() == 0 || raw.uid_low > raw.uid_high {
            return Err(CorruptReason::Value("an empty range of uids"));
        }
        Ok(Self {
            kind: match raw.kind {
                kind::FLAGS => ChangeKind::Flags,
                kind::EXPUNGE => ChangeKind::Expunge,
                _ => return Err(CorruptReason::Value("not a CHANGE run")),
            },
            mailbox: MailboxId::new(raw.mailbox.get()),
            uid_low: Uid::new(raw.uid_low.get()),
            uid_high: Uid::new(raw.uid_high.get()),
            modseq: Modseq::new(raw.modseq.get()),
            lsn: Lsn::new(raw.lsn.get()),
            system_flags: raw.system_flags.get(),
            keywords: raw.keywords.get(),
            time: WallNs::new(raw.time.get()),
        })
    }
}
