//! The info file: a user's index. A header of 512 bytes, then runs of 64-byte slots, append only.
//!
//! The CRC of a run starts from {user hash, generation, slot number}, so that a run in another
//! place or file fails. A damaged run costs itself: [`Runs`] goes on where the next one holds.

mod change;
mod header;
mod mailbox;
mod msg;
mod scan;

pub use change::{CHANGE_RUN_BYTES, Change, ChangeKind};
pub use header::{INFO_HEADER_BYTES, InfoHeader, MAGIC};
pub use mailbox::{
    KEYWORD_BYTES_MAX, Keyword, MAILBOX_NAME_BYTES_MAX, Mailbox, MailboxOp, RETIRE_COUNT_MAX,
    Retire, SpecialUse,
};
pub use msg::{MSG_FIXED_BYTES, Msg, MsgFixed};
pub use scan::{Run, RunAt, Runs};

pub(super) use change::LAYOUT as CHANGE_LAYOUT;
pub(super) use header::LAYOUT as HEADER_LAYOUT;
pub(super) use mailbox::{KEYWORD_LAYOUT, MAILBOX_LAYOUT, RETIRE_LAYOUT};
pub(super) use msg::LAYOUT as MSG_LAYOUT;

use ringpost_netproto::id::UserHash;

use super::crc;
use crate::canary::{self, Canary};
use crate::limits::SLOT_BYTES;

/// Format flag: all line ends were CRLF; stored as LF.
pub const ALL_CRLF: u16 = 0x01;
/// Format flag: line ends were mixed; stored verbatim.
pub const MIXED_LINE_ENDS: u16 = 0x02;
/// Format flag: the final newline was missing; one is added.
pub const NO_FINAL_NEWLINE: u16 = 0x04;
/// Format flag: some line has a quoting `>` added.
pub const QUOTED: u16 = 0x08;
/// Format flag: some byte is above 0x7F.
pub const EIGHT_BIT: u16 = 0x10;
/// Format flag of the index: the message has a segment of its own.
pub const OWN_FILE: u16 = 0x40;
/// Format flag of the index: the run was made from a segment, not from the log.
pub const REBUILT: u16 = 0x80;

/// Every format flag that a writer of this version sets.
const FORMAT_FLAGS_KNOWN: u16 =
    ALL_CRLF | MIXED_LINE_ENDS | NO_FINAL_NEWLINE | QUOTED | EIGHT_BIT | OWN_FILE | REBUILT;

/// System flag `\Seen` (RFC 9051 2.3.2).
pub const SEEN: u32 = 0x01;
/// System flag `\Answered`.
pub const ANSWERED: u32 = 0x02;
/// System flag `\Flagged`.
pub const FLAGGED: u32 = 0x04;
/// System flag `\Deleted`.
pub const DELETED: u32 = 0x08;
/// System flag `\Draft`.
pub const DRAFT: u32 = 0x10;

/// Every system flag that a request can set.
pub const SYSTEM_FLAGS: u32 = SEEN | ANSWERED | FLAGGED | DELETED | DRAFT;

/// Bytes of one slot.
pub const SLOT: usize = 64;
const _: () = assert!(SLOT as u64 == SLOT_BYTES);

/// The first slot behind the header.
pub const FIRST_SLOT: u32 = 8;

/// Kinds of runs. With bit 7 set an unknown kind is skipped and kept, else refused.
mod kind {
    pub(super) const MSG: u8 = 1;
    pub(super) const FLAGS: u8 = 2;
    pub(super) const EXPUNGE: u8 = 3;
    pub(super) const MAILBOX: u8 = 4;
    pub(super) const KEYWORD: u8 = 5;
    pub(super) const RETIRE: u8 = 6;
    pub(super) const OPTIONAL: u8 = 0x80;
}

/// The info file a run belongs to; with its slot this is what its CRC starts from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seed {
    /// Whose.
    pub user: UserHash,
    /// Which info file.
    pub generation: u32,
}

impl Seed {
    /// The CRC from which a run at `slot` starts: of 16 bytes, user hash, generation, slot number.
    pub fn crc(self, slot: u32) -> u32 {
        let mut bytes = [0; 16];
        if canary::on(Canary::SeedLeftOut) {
            return crc::of(&bytes);
        }
        let parts = self
            .user
            .value()
            .to_le_bytes()
            .into_iter()
            .chain(self.generation.to_le_bytes())
            .chain(slot.to_le_bytes());
        for (to, from) in bytes.iter_mut().zip(parts) {
            *to = from;
        }
        crc::of(&bytes)
    }
}

/// Where the CRC of a run begins to cover.
const RUN_COVERED_FROM: usize = 4;

/// The CRC of a whole run in memory. For a MSG run whose cache's CRC is known, [`MsgFixed::seal`].
fn run_crc(seed: Seed, slot: u32, run: &[u8]) -> u32 {
    crc::extend(
        seed.crc(slot),
        run.get(RUN_COVERED_FROM..).unwrap_or_default(),
    )
}

/// Puts the CRC of `out[from..]`, one whole run, into its first four bytes.
fn seal_run(out: &mut [u8], from: usize, seed: Seed, slot: u32) {
    let run = out.get_mut(from..).unwrap_or_default();
    let crc = run_crc(seed, slot, run);
    if let Some(first) = run.first_chunk_mut() {
        *first = crc.to_le_bytes();
    }
}

/// Appends a whole run, as it stands in one place, as it must stand at `slot` of another info file.
/// `bytes` is one run of a [`Runs`] walk; a MSG run whose values change wants [`Msg::fixed`].
pub fn move_run(bytes: &[u8], seed: Seed, slot: u32, out: &mut Vec<u8>) {
    let from = out.len();
    out.extend_from_slice(bytes);
    seal_run(out, from, seed, slot);
}

/// Slots behind the first for `bytes` more bytes.
fn extra_slots(bytes: usize) -> u8 {
    u8::try_from(bytes.div_ceil(SLOT)).expect("the caller bounded the run")
}
