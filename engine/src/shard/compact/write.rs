//! The runs of a new generation, in order: what its mailboxes are, then messages, then tombstones,
//! then whatever happened since (storage.md 8.5). Bytes come out in pieces, ready to be written.

use bytes::Bytes;
use ringpost_netproto::id::{MailboxId, Modseq, Uid, WallNs};

use super::contents::{Folder, Gone};
use crate::error::CorruptReason;
use crate::format::info::{
    Change, ChangeKind, FIRST_SLOT, InfoHeader, Keyword, MSG_FIXED_BYTES, Mailbox, MailboxOp, Msg,
    MsgFixed, RETIRE_COUNT_MAX, Retire, Runs, SLOT, Seed, move_run,
};
use crate::format::{Reserved, crc, index};
use crate::limits::SLOT_BYTES;
use crate::pending::{Entry, What};
use crate::position::Lsn;

/// Runs that a new generation writes of its own accord have no record.
const NO_RECORD: Lsn = Lsn::new(0);

/// See the module.
#[derive(Debug)]
pub(super) struct Writer {
    seed: Seed,
    /// The next run's.
    slot: u32,
    /// Of `out`, in bytes from the file's start.
    offset: u64,
    out: Vec<u8>,
}

impl Writer {
    pub(super) fn new(header: &InfoHeader) -> Self {
        Self {
            seed: header.seed(),
            slot: FIRST_SLOT,
            offset: 0,
            out: header.seal().to_vec(),
        }
    }

    /// Bytes that were not taken yet.
    pub(super) fn len(&self) -> usize {
        self.out.len()
    }

    /// Slots of the file so far, header included.
    pub(super) fn slots(&self) -> u32 {
        self.slot
    }

    /// What is to be written, and where.
    pub(super) fn take(&mut self) -> (u64, Bytes) {
        let bytes = Bytes::from(std::mem::take(&mut self.out));
        let offset = self.offset;
        self.offset = u64::from(self.slot) * SLOT_BYTES;
        (offset, bytes)
    }

    /// Appends a run.
    fn run(&mut self, encode: impl FnOnce(Seed, u32, &mut Vec<u8>)) {
        let before = self.out.len();
        encode(self.seed, self.slot, &mut self.out);
        let slots = (self.out.len() - before) / SLOT;
        self.slot += u32::try_from(slots).expect("a run has at most 256 slots");
    }

    /// A mailbox as it is, its subscription, and its deletion if it is there for its id alone.
    pub(super) fn folder(&mut self, mailbox: MailboxId, folder: &Folder) {
        let snapshot = Mailbox {
            op: MailboxOp::Snapshot,
            special_use: folder.special_use,
            mailbox,
            uidvalidity: folder.uidvalidity,
            modseq: Modseq::new(folder.modseq),
            lsn: NO_RECORD,
            uidnext: folder.uidnext,
            highest_modseq: folder.highest_modseq,
            time: folder.time,
            name: &folder.name,
        };
        self.run(|seed, slot, out| snapshot.encode(seed, slot, out));
        let further = [
            (MailboxOp::Subscribe, folder.subscribed),
            (MailboxOp::Delete, folder.deleted),
        ];
        for (op, change) in further {
            if let Some((modseq, time)) = change {
                let modseq = Modseq::new(modseq);
                let run = Mailbox {
                    op,
                    modseq,
                    time,
                    ..snapshot
                };
                self.run(|seed, slot, out| run.encode(seed, slot, out));
            }
        }
    }

    pub(super) fn keyword(&mut self, mailbox: MailboxId, bit: u8, (name, modseq): &(String, u64)) {
        let run = Keyword {
            mailbox,
            bit,
            modseq: Modseq::new(*modseq),
            lsn: NO_RECORD,
            name,
        };
        self.run(|seed, slot, out| run.encode(seed, slot, out));
    }

    pub(super) fn retire(&mut self, segments: &[u32]) {
        for some in segments.chunks(RETIRE_COUNT_MAX) {
            self.run(|seed, slot, out| Retire::encode(some, seed, slot, out));
        }
    }

    /// A run as it stands elsewhere.
    pub(super) fn verbatim(&mut self, run: &[u8]) {
        self.run(|seed, slot, out| move_run(run, seed, slot, out));
    }

    pub(super) fn message(&mut self, msg: &Msg, cache: &[u8]) {
        let cache_slots = u8::try_from(cache.len() / SLOT).expect("at most 15 slots");
        self.run(|seed, slot, out| {
            let fixed = msg.fixed(cache_slots).seal(seed, slot, crc::of(cache));
            out.extend_from_slice(fixed.bytes());
            out.extend_from_slice(cache);
        });
    }

    pub(super) fn gone(&mut self, gone: &Gone) {
        let run = Change {
            kind: ChangeKind::Expunge,
            mailbox: gone.mailbox,
            uid_low: Uid::new(gone.low),
            uid_high: Uid::new(gone.high),
            modseq: Modseq::new(gone.modseq),
            lsn: NO_RECORD,
            system_flags: 0,
            keywords: 0,
            time: gone.time,
        };
        self.run(|seed, slot, out| run.encode(seed, slot, out));
    }

    /// What an entry of the generation before says, here. `old` is that generation's.
    pub(super) fn entry(&mut self, entry: &Entry, old: Seed) -> Result<(), CorruptReason> {
        match &entry.what {
            What::Create { .. } | What::Dead(_) | What::Swap(_) => {}
            What::Small(_) | What::Large(_) if entry.slot == 0 => {}
            What::Small(mail) => self.pending(&mail.head, &mail.cache)?,
            What::Large(mail) => self.pending(&mail.head, &mail.cache)?,
            What::Runs(bytes) => {
                for run in Runs::new(bytes, old, entry.slot).reserved(Reserved::Unknown) {
                    run.run?;
                    let at = index(run.slot - entry.slot) * SLOT;
                    let len = index(run.slots) * SLOT;
                    self.verbatim(bytes.get(at..at + len).unwrap_or_default());
                }
            }
        }
        Ok(())
    }

    fn pending(&mut self, head: &Bytes, cache: &Bytes) -> Result<(), CorruptReason> {
        let fixed = MsgFixed::read(head.get(..MSG_FIXED_BYTES).unwrap_or_default())?;
        self.message(&fixed.values(Reserved::Unknown)?, cache);
        Ok(())
    }
}

/// The header of a new generation.
pub(super) fn header(
    old: &InfoHeader,
    generation: u32,
    (base_lsn, base_modseq): (Lsn, u64),
    next_segment: u32,
    (uidvalidity_max, created_at): (u32, WallNs),
) -> InfoHeader {
    InfoHeader {
        generation,
        created_at,
        base_lsn,
        base_modseq,
        next_segment,
        uidvalidity_max,
        ..old.clone()
    }
}
