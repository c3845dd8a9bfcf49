//! Walks over the runs of an info file, or of a log record that holds some.

use super::super::Reserved;
use super::{Change, Keyword, Mailbox, Msg, MsgFixed, Retire, SLOT, Seed, kind, run_crc};
use crate::error::CorruptReason;

/// One run, its CRC and values checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Run<'a> {
    /// A message.
    Msg {
        /// As it stands on disk.
        fixed: &'a MsgFixed,
        /// Its values.
        msg: Msg,
        /// The header cache, a multiple of 64 bytes.
        cache: &'a [u8],
    },
    /// Flags or an expunge.
    Change(Change),
    /// A mailbox.
    Mailbox(Mailbox<'a>),
    /// A keyword.
    Keyword(Keyword<'a>),
    /// Segments that this generation replaced.
    Retire(Retire<'a>),
    /// A kind of a newer version that may be skipped and is copied verbatim at compaction.
    Unknown(&'a [u8]),
}

/// A run, or a stretch of slots in which none validates.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunAt<'a> {
    /// Its first slot.
    pub slot: u32,
    /// How many slots.
    pub slots: u32,
    /// The run, or what does not hold at `slot`. The next item begins where the next run validates.
    pub run: Result<Run<'a>, CorruptReason>,
}

/// Iterator over runs. A bad run yields its reason once, with the slots up to the next run that
/// validates; a loader that meets one may stop, or prove that redo covers these slots.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Runs<'a> {
    rest: &'a [u8],
    slot: u32,
    seed: Seed,
    reserved: Reserved,
}

impl<'a> Runs<'a> {
    /// Over `bytes`, which begin at `first_slot`: of an info file what follows its header, and slot
    /// 8.
    pub fn new(bytes: &'a [u8], seed: Seed, first_slot: u32) -> Self {
        Self {
            rest: bytes,
            slot: first_slot,
            seed,
            reserved: Reserved::Zero,
        }
    }

    /// Takes reserved bytes as a file of that version may hold them.
    #[must_use]
    pub fn reserved(mut self, reserved: Reserved) -> Self {
        self.reserved = reserved;
        self
    }

    /// The run at the start of `bytes` if its CRC holds at `slot`.
    fn checked(bytes: &'a [u8], seed: Seed, slot: u32) -> Result<&'a [u8], CorruptReason> {
        let extra = bytes.get(5).ok_or(CorruptReason::Truncated)?;
        let run = bytes
            .get(..(usize::from(*extra) + 1) * SLOT)
            .ok_or(CorruptReason::Truncated)?;
        let stored = run.first_chunk().ok_or(CorruptReason::Truncated)?;
        if u32::from_le_bytes(*stored) == run_crc(seed, slot, run) {
            Ok(run)
        } else {
            Err(CorruptReason::Checksum)
        }
    }

    /// The values of a run whose CRC held.
    fn decode(run: &'a [u8], reserved: Reserved) -> Result<Run<'a>, CorruptReason> {
        match run.get(4).copied().unwrap_or_default() {
            kind::MSG => {
                MsgFixed::read(run)?;
                let fixed: &MsgFixed = super::super::read_prefix(run)?;
                Ok(Run::Msg {
                    fixed,
                    msg: fixed.values(reserved)?,
                    cache: run.get(super::MSG_FIXED_BYTES..).unwrap_or_default(),
                })
            }
            kind::FLAGS | kind::EXPUNGE => Change::decode(run, reserved).map(Run::Change),
            kind::MAILBOX => Mailbox::decode(run, reserved).map(Run::Mailbox),
            kind::KEYWORD => Keyword::decode(run, reserved).map(Run::Keyword),
            kind::RETIRE => Retire::decode(run, reserved).map(Run::Retire),
            unknown if unknown & kind::OPTIONAL != 0 => Ok(Run::Unknown(run)),
            _ => Err(CorruptReason::Value(
                "a kind of run this program does not know",
            )),
        }
    }

    /// Takes `slots` slots, or what is left of the file, off the front.
    fn advance(&mut self, slots: u32) {
        let len = super::super::index(slots) * SLOT;
        self.rest = self.rest.get(len..).unwrap_or_default();
        self.slot = self.slot.saturating_add(slots);
    }

    /// Slots from here to the next run that validates, at least 1.
    fn slots_to_next(&self) -> u32 {
        let mut slots = 1u32;
        while let Some(bytes) = self.rest.get(super::super::index(slots) * SLOT..) {
            let slot = self.slot.saturating_add(slots);
            if bytes.is_empty() || Self::checked(bytes, self.seed, slot).is_ok() {
                break;
            }
            slots += 1;
        }
        slots
    }
}

impl<'a> Iterator for Runs<'a> {
    type Item = RunAt<'a>;

    fn next(&mut self) -> Option<RunAt<'a>> {
        if self.rest.is_empty() {
            return None;
        }
        let slot = self.slot;
        let (slots, run) = match Self::checked(self.rest, self.seed, slot) {
            Ok(run) => {
                let slots = u32::try_from(run.len() / SLOT).expect("at most 256 slots");
                (slots, Self::decode(run, self.reserved))
            }
            Err(reason) => (self.slots_to_next(), Err(reason)),
        };
        self.advance(slots);
        Some(RunAt { slot, slots, run })
    }
}
