//! A user's index: the fold of the info file's runs and of what is pending (storage.md 8.1).
//!
//! Folding gives the tail (what an append needs) and, when somebody reads, the index (what is
//! there). Slots that a pending record will write are taken from the record, never from the file: the
//! file may hold torn or missing bytes there until the next checkpoint.

use bytes::Bytes;
use ringpost_netproto::id::{MailboxId, Uid, UidValidity};
use smallvec::SmallVec;

use crate::error::CorruptReason;
use crate::format::info::{
    FIRST_SLOT, INFO_HEADER_BYTES, InfoHeader, MSG_FIXED_BYTES, Mailbox, MailboxOp, Msg, MsgFixed,
    OWN_FILE, Run, Runs, SLOT, Seed,
};
use crate::format::{Reserved, index as as_index};
use crate::pending::{Entry, What};
use crate::user::{Existence, MailboxTail, Tail};

/// A message of the index. 80 bytes beside the info file's own, which it shares.
#[derive(Clone, Debug)]
pub(crate) struct IndexEntry {
    pub(crate) uid: Uid,
    /// Begins with the fixed part of the MSG run.
    head: Bytes,
    pub(crate) cache: Bytes,
}

impl IndexEntry {
    /// The values of its MSG run, whose checksum held.
    pub(crate) fn msg(&self) -> Result<Msg, CorruptReason> {
        MsgFixed::read(&self.head)?.values(Reserved::Unknown)
    }
}

/// All messages of a user by mailbox, ascending by uid.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    mailboxes: SmallVec<[(MailboxId, Vec<IndexEntry>); 1]>,
    bytes: u64,
}

impl Index {
    /// Memory it takes, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The messages of a mailbox, ascending by uid.
    pub(crate) fn mailbox(&self, mailbox: MailboxId) -> &[IndexEntry] {
        let found = self.mailboxes.iter().find(|(id, _)| *id == mailbox);
        found.map_or(&[], |(_, entries)| entries.as_slice())
    }

    /// One message.
    pub(crate) fn find(&self, mailbox: MailboxId, uid: Uid) -> Option<&IndexEntry> {
        let entries = self.mailbox(mailbox);
        let place = entries.binary_search_by_key(&uid, |entry| entry.uid).ok()?;
        entries.get(place)
    }

    /// Adds a message above all others of its mailbox, or the same one again.
    pub(crate) fn push(&mut self, mailbox: MailboxId, uid: Uid, head: Bytes, cache: Bytes) {
        let entry = IndexEntry { uid, head, cache };
        let weight = 80 + MSG_FIXED_BYTES + entry.cache.len();
        let found = self.mailboxes.iter_mut().find(|(id, _)| *id == mailbox);
        let entries = if let Some((_, entries)) = found {
            entries
        } else {
            self.mailboxes.push((mailbox, Vec::new()));
            &mut self.mailboxes.last_mut().expect("just pushed").1
        };
        if let Err(place) = entries.binary_search_by_key(&uid, |entry| entry.uid) {
            entries.insert(place, entry);
            self.bytes += u64::try_from(weight).expect("an index has at most 64 bits");
        }
    }
}

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

/// A tail before any run.
pub(crate) fn blank_tail(existence: Existence, has_dir: bool) -> Tail {
    Tail {
        existence,
        has_dir,
        generation: 1,
        next_slot: FIRST_SLOT,
        next_segment: 1,
        modseq: 0,
        uidvalidity_max: 0,
        mailboxes: SmallVec::new(),
    }
}

/// Folds the file (if there is one) and what is pending, oldest first. `has_dir` goes into the tail.
pub(crate) fn fold<'a>(
    file: Option<&InfoFile<'_>>,
    pending: impl Iterator<Item = &'a Entry> + Clone,
    seed: Seed,
    has_dir: bool,
) -> Result<(Tail, Index, SegmentEnds), BadInfo> {
    let mut tail = blank_tail(Existence::Absent, has_dir);
    tail.generation = seed.generation;
    let mut index = Index::default();
    let redone_from = pending
        .clone()
        .map(|entry| entry.slot)
        .filter(|slot| *slot > 0)
        .min();
    if let Some(file) = file {
        tail.existence = Existence::Created;
        tail.next_segment = file.header.next_segment.max(1);
        tail.uidvalidity_max = file.header.uidvalidity_max;
        tail.modseq = file.header.base_modseq;
        fold_file(file, redone_from, seed, &mut tail, &mut index)?;
    }
    let begun = tail.mailboxes.iter().filter(|mailbox| mailbox.segment > 0);
    let ends = begun
        .map(|mailbox| (mailbox.segment, mailbox.segment_end))
        .collect();
    for entry in pending {
        fold_pending(entry, seed, &mut tail, &mut index).map_err(|reason| BadInfo {
            offset: entry.info_offset(),
            reason,
        })?;
    }
    Ok((tail, index, ends))
}

fn fold_file(
    file: &InfoFile<'_>,
    redone_from: Option<u32>,
    seed: Seed,
    tail: &mut Tail,
    index: &mut Index,
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
                apply_msg(tail, index, &msg, (head, cache));
            }
            Run::Mailbox(mailbox) => apply_mailbox(tail, &mailbox),
            Run::Change(change) => tail.modseq = tail.modseq.max(change.modseq.value()),
            Run::Keyword(keyword) => tail.modseq = tail.modseq.max(keyword.modseq.value()),
            Run::Retire(_) | Run::Unknown(_) => {}
        }
        tail.next_slot = run.slot + run.slots;
    }
    Ok(())
}

/// Applies what one pending entry will write.
pub(crate) fn fold_pending(
    entry: &Entry,
    seed: Seed,
    tail: &mut Tail,
    index: &mut Index,
) -> Result<(), CorruptReason> {
    match &entry.what {
        What::Create { .. } => tail.existence = Existence::Created,
        What::Swap(_) => {}
        // The new generation's file has its run.
        What::Small(_) | What::Large(_) if entry.slot == 0 => {}
        What::Runs(runs) => {
            // Recovery held them against the version of their log file.
            let runs = Runs::new(runs, seed, entry.slot).reserved(Reserved::Unknown);
            for run in runs {
                match run.run? {
                    Run::Mailbox(mailbox) => apply_mailbox(tail, &mailbox),
                    Run::Change(change) => tail.modseq = tail.modseq.max(change.modseq.value()),
                    Run::Keyword(word) => tail.modseq = tail.modseq.max(word.modseq.value()),
                    Run::Msg { .. } | Run::Retire(_) | Run::Unknown(_) => {}
                }
            }
        }
        What::Small(mail) => {
            let msg = MsgFixed::read(&mail.head)?.values(Reserved::Unknown)?;
            apply_msg(tail, index, &msg, (mail.head.clone(), mail.cache.clone()));
        }
        What::Large(mail) => {
            let msg = MsgFixed::read(&mail.head)?.values(Reserved::Unknown)?;
            apply_msg(tail, index, &msg, (mail.head.clone(), mail.cache.clone()));
        }
    }
    tail.next_slot = tail.next_slot.max(entry.slot_end());
    Ok(())
}

fn apply_msg(tail: &mut Tail, index: &mut Index, msg: &Msg, (head, cache): (Bytes, Bytes)) {
    tail.modseq = tail.modseq.max(msg.modseq.value());
    tail.next_segment = tail.next_segment.max(msg.segment.saturating_add(1));
    if let Some(mailbox) = tail.mailbox_mut(msg.mailbox) {
        mailbox.uidnext = mailbox.uidnext.max(msg.uid.value().saturating_add(1));
        if msg.format_flags & OWN_FILE == 0 && msg.segment >= mailbox.segment {
            mailbox.segment = msg.segment;
            mailbox.segment_end = msg.offset + msg.segment_bytes();
        }
        count_visible(mailbox, msg);
    }
    index.push(msg.mailbox, msg.uid, head, cache);
}

/// Counts a message that readers see now.
pub(crate) fn count_visible(mailbox: &mut MailboxTail, msg: &Msg) {
    mailbox.highest_modseq = mailbox.highest_modseq.max(msg.modseq.value());
    mailbox.messages_count += 1;
    mailbox.bytes += u64::from(msg.rfc822_size);
}

/// Applies a MAILBOX run.
pub(crate) fn apply_mailbox(tail: &mut Tail, run: &Mailbox<'_>) {
    tail.modseq = tail.modseq.max(run.modseq.value());
    tail.uidvalidity_max = tail.uidvalidity_max.max(run.uidvalidity.value());
    match run.op {
        MailboxOp::Create | MailboxOp::Snapshot => {
            if tail.mailbox(run.mailbox).is_none() {
                tail.mailboxes.push(MailboxTail {
                    mailbox: run.mailbox,
                    name: Box::from(run.name),
                    uidvalidity: UidValidity::new(run.uidvalidity.value()),
                    uidnext: run.uidnext.max(1),
                    segment: 0,
                    segment_end: 0,
                    highest_modseq: run.highest_modseq,
                    messages_count: 0,
                    bytes: 0,
                });
            }
        }
        MailboxOp::Rename => {
            if let Some(mailbox) = tail.mailbox_mut(run.mailbox) {
                mailbox.name = Box::from(run.name);
            }
        }
        MailboxOp::Delete => tail
            .mailboxes
            .retain(|mailbox| mailbox.mailbox != run.mailbox),
        MailboxOp::Subscribe | MailboxOp::Unsubscribe => {}
    }
}
