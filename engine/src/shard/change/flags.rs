//! Flags and expunges: which messages change into what, and the runs that say so (storage.md 8.4).

use std::collections::VecDeque;
use std::sync::Arc;

use ringpost_netproto::id::{MailboxId, Modseq, Uid};
use smallvec::SmallVec;

use super::{At, Changed, Placed};
use crate::format::info::{
    CHANGE_RUN_BYTES, Change, ChangeKind, DELETED, SLOT, SYSTEM_FLAGS, Seed,
};
use crate::format::record::{Group, RecordType, runs_len};
use crate::index::{IndexEntry, selected};
use crate::io::Io;
use crate::position::DurableTo;
use crate::request::{FlagOp, Flags, Now, Refused, UidRange, UidSet, Which};
use crate::shard::Shard;
use crate::shard::encode::{RunsAt, next_modseq};
use crate::shard::room::{keywords_fit, keywords_need};
use crate::tail::Tail;

/// Messages that end in the same value.
struct Range {
    uids: UidRange,
    flags: u32,
    keywords: u64,
}

/// Runs to be encoded, and what will be answered.
pub(in crate::shard) struct RunPlan {
    kind: ChangeKind,
    mailbox: MailboxId,
    /// Keywords that are given and have no bit yet.
    fresh: Vec<Arc<str>>,
    /// Their bits, once their record is encoded.
    fresh_bits: u64,
    left: VecDeque<Range>,
    uids: UidSet,
    modified: UidSet,
    /// Of the last run encoded.
    modseq: Option<Modseq>,
}

/// Decides a `Store`.
pub(super) fn store(
    at: &At<'_>,
    mailbox: MailboxId,
    uids: &UidSet,
    (op, flags, unchanged_since): (FlagOp, &Flags, Option<u64>),
) -> Result<RunPlan, Refused> {
    let tail = at.mailbox(mailbox)?;
    let words = &flags.keywords;
    let fresh: Vec<Arc<str>> = if op == FlagOp::Remove {
        Vec::new()
    } else {
        keywords_fit(Some(tail), words.iter())?;
        let is_fresh = |word: &&Arc<str>| tail.keyword_bit(word).is_none();
        words.iter().filter(is_fresh).cloned().collect()
    };
    let bits = words.iter().filter_map(|word| tail.keyword_bit(word));
    let bits = bits.fold(0, |bits, bit| bits | (1u64 << bit));
    let system = flags.system & SYSTEM_FLAGS;
    let mut plan = RunPlan::new(ChangeKind::Flags, mailbox);
    for entry in selected(at.index.mailbox(mailbox), uids) {
        if unchanged_since.is_some_and(|since| entry.modseq > since) {
            plan.modified.push(entry.uid);
            continue;
        }
        let (flags, keywords) = match op {
            FlagOp::Add => (entry.flags | system, entry.keywords | bits),
            FlagOp::Remove => (entry.flags & !system, entry.keywords & !bits),
            FlagOp::Replace => (system, bits),
        };
        let same = (flags, keywords) == (entry.flags, entry.keywords) && fresh.is_empty();
        if !same {
            plan.push(entry, flags, keywords);
        }
    }
    if !plan.left.is_empty() {
        plan.fresh = fresh;
    }
    Ok(plan)
}

/// Decides an `Expunge`.
pub(super) fn expunge(
    at: &At<'_>,
    mailbox: MailboxId,
    uids: &UidSet,
    which: Which,
) -> Result<RunPlan, Refused> {
    at.mailbox(mailbox)?;
    let mut plan = RunPlan::new(ChangeKind::Expunge, mailbox);
    for entry in selected(at.index.mailbox(mailbox), uids) {
        if which == Which::All || entry.flags & DELETED != 0 {
            plan.push(entry, 0, 0);
        }
    }
    Ok(plan)
}

impl RunPlan {
    fn new(kind: ChangeKind, mailbox: MailboxId) -> Self {
        Self {
            kind,
            mailbox,
            fresh: Vec::new(),
            fresh_bits: 0,
            left: VecDeque::new(),
            uids: UidSet::none(),
            modified: UidSet::none(),
            modseq: None,
        }
    }

    /// Adds a message above all others: to the last range if it is the next uid and ends in the same
    /// value. Ranges bridge no gap: an uid that is gone would be told to be gone again.
    fn push(&mut self, entry: &IndexEntry, flags: u32, keywords: u64) {
        let uid = entry.uid.value();
        self.uids.push(entry.uid);
        if let Some(last) = self.left.back_mut()
            && last.uids.high.checked_add(1) == Some(uid)
            && (last.flags, last.keywords) == (flags, keywords)
        {
            last.uids.high = uid;
            return;
        }
        self.left.push_back(Range {
            uids: UidRange {
                low: uid,
                high: uid,
            },
            flags,
            keywords,
        });
    }

    pub(super) fn is_done(&self) -> bool {
        self.left.is_empty()
    }

    pub(super) fn is_begun(&self) -> bool {
        self.modseq.is_some()
    }

    pub(super) fn answer(self, tail: Option<&Tail>, durable: DurableTo) -> Changed {
        let mailbox = tail.and_then(|tail| tail.mailbox(self.mailbox));
        let known = mailbox.map_or(0, |mailbox| mailbox.highest_modseq);
        Changed {
            uids: self.uids,
            modified: self.modified,
            modseq: self.modseq.unwrap_or(Modseq::new(known)),
            durable,
        }
    }
}

impl<I: Io> Shard<I> {
    /// Encodes runs, as many as fit a frame at a time.
    pub(super) fn place_runs(
        &mut self,
        now: Now,
        change: usize,
        user: usize,
        plan: &mut RunPlan,
    ) -> Placed {
        while !plan.left.is_empty() {
            let words = keywords_need(&plan.fresh);
            let fits = (self.log.payload_max() - words - runs_len(0)) / CHANGE_RUN_BYTES;
            let count = plan.left.len().min(fits.max(1));
            let need = words + runs_len(count * CHANGE_RUN_BYTES);
            if self.log.room(need).is_none() {
                return Placed::NoRoom;
            }
            self.encode_changes(now, change, user, plan, count);
        }
        Placed::All
    }

    fn encode_changes(
        &mut self,
        now: Now,
        change: usize,
        index: usize,
        plan: &mut RunPlan,
        count: usize,
    ) {
        let lsn = self.log.open_batch_mut().expect("room was made").lsn();
        let epoch = self.epoch_of(self.users.get(index).partition);
        let user = self.users.get_mut(index);
        let modseq = next_modseq(&mut user.live_mut().expect("decided").tail, epoch);
        plan.modseq = Some(modseq);
        let mut entries = SmallVec::new();
        let words = std::mem::take(&mut plan.fresh);
        let mailbox = plan.mailbox;
        plan.fresh_bits |= self.encode_keywords(index, mailbox, &words, Some(modseq), &mut entries);
        let user = self.users.get_mut(index);
        let hash = user.hash;
        let tail = &mut user.live_mut().expect("decided").tail;
        let seed = Seed {
            user: hash,
            generation: tail.generation,
        };
        let slot = tail.next_slot;
        let mut runs = Vec::with_capacity(count * SLOT);
        for range in plan.left.drain(..count) {
            let run = Change {
                kind: plan.kind,
                mailbox,
                uid_low: Uid::new(range.uids.low),
                uid_high: Uid::new(range.uids.high),
                modseq,
                lsn,
                system_flags: range.flags,
                keywords: match plan.kind {
                    ChangeKind::Flags => range.keywords | plan.fresh_bits,
                    ChangeKind::Expunge => 0,
                },
                time: now.wall,
            };
            run.encode(seed, tail.next_slot, &mut runs);
            tail.next_slot += 1;
        }
        let kind = match plan.kind {
            ChangeKind::Flags => RecordType::Flags,
            ChangeKind::Expunge => RecordType::Expunge,
        };
        let at = RunsAt {
            user: index,
            mailbox,
            kind,
            slot,
            modseq,
            group: Group::Ends,
        };
        self.encode_runs(&at, runs, &mut entries);
        self.attach_change(change, entries);
    }
}
