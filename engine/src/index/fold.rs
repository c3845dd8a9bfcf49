//! From runs to index and tail. Slots that a pending record will write are taken from the record,
//! never from the file: the file may hold torn or missing bytes there until the next checkpoint.

use bytes::Bytes;
use ringpost_netproto::id::MailboxId;
use smallvec::SmallVec;

use super::{DeadFile, Index, alive};
use crate::canary::{self, Canary};
use crate::error::CorruptReason;
use crate::format::info::{
    FIRST_SLOT, INFO_HEADER_BYTES, InfoHeader, MSG_FIXED_BYTES, MailboxOp, Msg, MsgFixed, Run,
    Runs, SLOT, Seed,
};
use crate::format::{Reserved, index as as_index};
use crate::pending::{Entry, LargeMail, SmallMail, What};
use crate::tail::{Existence, Tail, Usage};

/// The info file of a user, whole.
pub(crate) struct InfoFile<'a> {
    pub(crate) header: &'a InfoHeader,
    pub(crate) bytes: &'a Bytes,
}

/// Damage at a byte of the info file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct BadInfo {
    pub(crate) offset: u64,
    pub(crate) reason: CorruptReason,
}

/// Segments being appended to, and how long each is by the file's own runs: the bytes that no redo
/// will write again.
pub(crate) type SegmentEnds = SmallVec<[(u32, u64); 2]>;

/// What runs say together.
pub(crate) struct Folded {
    pub(crate) tail: Tail,
    pub(crate) index: Index,
    pub(crate) ends: SegmentEnds,
    /// Large messages that went.
    pub(crate) dead: Vec<DeadFile>,
    /// Segments that compactions replaced.
    pub(crate) retired: Vec<u32>,
}

/// Folds the file (if there is one) and what is pending, oldest first. `has_dir` goes into the tail.
pub(crate) fn fold<'a>(
    file: Option<&InfoFile<'_>>,
    pending: impl Iterator<Item = &'a Entry> + Clone,
    seed: Seed,
    has_dir: bool,
) -> Result<Folded, BadInfo> {
    let mut tail = Tail::blank(Existence::Absent, has_dir);
    tail.generation = seed.generation;
    let mut folded = Folded {
        tail,
        index: Index::default(),
        ends: SegmentEnds::new(),
        dead: Vec::new(),
        retired: Vec::new(),
    };
    let redone_from = pending
        .clone()
        .map(|entry| entry.slot)
        .filter(|slot| *slot > 0)
        .min();
    if let Some(file) = file {
        let tail = &mut folded.tail;
        tail.existence = Existence::Created;
        tail.next_segment = file.header.next_segment.max(1);
        tail.uidvalidity_max = file.header.uidvalidity_max;
        tail.modseq = file.header.base_modseq;
        tail.modseq_visible = tail.modseq;
        folded.index.tombstones_from = file.header.tombstones_from;
        folded.file(file, redone_from, seed)?;
    }
    let begun = folded.tail.mailboxes.iter();
    let begun = begun.filter(|mailbox| mailbox.segment > 0);
    folded.ends = begun
        .map(|mailbox| (mailbox.segment, mailbox.segment_end))
        .collect();
    for entry in pending {
        folded.pending(entry, seed).map_err(|reason| BadInfo {
            offset: entry.info_offset(),
            reason,
        })?;
    }
    if canary::on(Canary::UidnextFromLive) {
        for mailbox in &mut folded.tail.mailboxes {
            let last = alive(folded.index.mailbox(mailbox.mailbox)).next_back();
            mailbox.uidnext = last.map_or(1, |entry| entry.uid.value() + 1);
        }
    }
    // A user begins with INBOX and keeps it: a file cut behind its header is no user without mail.
    if let Some(file) = file
        && folded.tail.mailbox(MailboxId::INBOX).is_none()
    {
        let offset = u64::try_from(file.bytes.len()).expect("an index has at most 64 bits");
        let reason = CorruptReason::Truncated;
        return Err(BadInfo { offset, reason });
    }
    Ok(folded)
}

impl Folded {
    fn file(
        &mut self,
        file: &InfoFile<'_>,
        redone_from: Option<u32>,
        seed: Seed,
    ) -> Result<(), BadInfo> {
        let all = file.bytes.get(INFO_HEADER_BYTES..).unwrap_or_default();
        // A header that redo writes again may be all the file has.
        let own = redone_from.map_or(all.len(), |slot| {
            as_index(slot.saturating_sub(FIRST_SLOT)).saturating_mul(SLOT)
        });
        let Some(own) = all.get(..own) else {
            let offset = u64::try_from(file.bytes.len()).expect("an index has at most 64 bits");
            return Err(BadInfo {
                offset,
                reason: CorruptReason::Truncated,
            });
        };
        let reserved = file.header.version.reserved();
        for run in Runs::new(own, seed, FIRST_SLOT).reserved(reserved) {
            let at = as_index(run.slot) * SLOT;
            let offset = u64::try_from(at).expect("an index has at most 64 bits");
            match run.run.map_err(|reason| BadInfo { offset, reason })? {
                Run::Msg { msg, cache, .. } => {
                    let head = file.bytes.slice(at..at + MSG_FIXED_BYTES);
                    let cache_at = at + MSG_FIXED_BYTES;
                    let cache = file.bytes.slice(cache_at..cache_at + cache.len());
                    self.message(&msg, head, cache);
                }
                other => self.run(&other),
            }
            self.tail.next_slot = run.slot + run.slots;
        }
        Ok(())
    }

    /// What one pending entry will write.
    fn pending(&mut self, entry: &Entry, seed: Seed) -> Result<(), CorruptReason> {
        match &entry.what {
            What::Create { .. } => self.tail.existence = Existence::Created,
            What::Dead(_) | What::Swap(_) => {}
            // The new generation's file has its run.
            What::Small(_) | What::Large(_) if entry.slot == 0 => {}
            What::Runs(runs) => {
                // Recovery held them against the version of their log file.
                let runs = Runs::new(runs, seed, entry.slot).reserved(Reserved::Unknown);
                for run in runs {
                    self.run(&run.run?);
                }
            }
            What::Small(mail) => {
                let msg = MsgFixed::read(&mail.head)?.values(Reserved::Unknown)?;
                self.message(&msg, mail.head.clone(), mail.cache.clone());
            }
            What::Large(mail) => {
                let msg = MsgFixed::read(&mail.head)?.values(Reserved::Unknown)?;
                self.message(&msg, mail.head.clone(), mail.cache.clone());
            }
        }
        if canary::on(Canary::QuotaCountedTwice)
            && let What::Small(SmallMail { head, .. }) | What::Large(LargeMail { head, .. }) =
                &entry.what
            && entry.slot > 0
        {
            let msg = MsgFixed::read(head)?.values(Reserved::Unknown)?;
            self.tail.used = self.tail.used.plus(Usage::of(msg.rfc822_size));
        }
        self.tail.next_slot = self.tail.next_slot.max(entry.slot_end());
        Ok(())
    }

    fn message(&mut self, msg: &Msg, head: Bytes, cache: Bytes) {
        self.tail.take_place(msg);
        if self.index.push(msg, head, cache) {
            self.tail.count_in(msg);
        }
    }

    fn run(&mut self, run: &Run<'_>) {
        if let Run::Retire(retire) = run {
            self.retired.extend(retire.segments());
        }
        apply_run(&mut self.tail, Some(&mut self.index), run, &mut self.dead);
    }
}

/// Applies a run that is no message: of the file, or one whose record is durable. Flags and expunges
/// need the index.
pub(crate) fn apply_run(
    tail: &mut Tail,
    index: Option<&mut Index>,
    run: &Run<'_>,
    dead: &mut Vec<DeadFile>,
) {
    match run {
        Run::Mailbox(run) => {
            tail.apply_mailbox(run);
            if run.op == MailboxOp::Delete
                && let Some(index) = index
            {
                index.remove(run.mailbox, dead);
            }
        }
        Run::Change(change) => {
            let index = index.expect("a change pins its user's index");
            index.change(tail, change, dead);
        }
        Run::Keyword(word) => tail.apply_keyword(word),
        Run::Msg { .. } | Run::Retire(_) | Run::Unknown(_) => {}
    }
}
