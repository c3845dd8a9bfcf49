//! All that a new generation must hold: the runs of the info file and of the unwritten entries,
//! folded by modseq into what is true at one position of the log (FORMAT.md, info file).
//!
//! Unlike the index, which serves readers, this keeps what readers do not ask for: tombstones,
//! keywords, subscriptions, runs of newer kinds. Positions and flags of a message are a few words;
//! its run stays where it is, in the file or in the entry.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ringpost_netproto::id::{MailboxId, Uid, UidValidity, WallNs};

use super::write::Writer;
use crate::error::CorruptReason;
use crate::format::info::{
    Change, ChangeKind, FIRST_SLOT, INFO_HEADER_BYTES, InfoHeader, MSG_FIXED_BYTES, Mailbox,
    MailboxOp, Msg, MsgFixed, OWN_FILE, Run, Runs, SLOT, Seed, SpecialUse,
};
use crate::format::{Reserved, index};
use crate::index::BadInfo;
use crate::pending::{Entry, What};
use crate::tail::Tail;

/// Where the MSG run of a message is.
#[derive(Clone, Copy, Debug)]
enum Source {
    /// In the info file, at this slot.
    File(u32),
    /// Among the runs of entries.
    Entry(u32),
}

/// A message whose run is known.
#[derive(Clone, Copy, Debug)]
pub(in crate::shard) struct Message {
    pub(in crate::shard) mailbox: MailboxId,
    pub(in crate::shard) uid: Uid,
    /// Of its last change.
    pub(super) modseq: u64,
    pub(super) system_flags: u32,
    pub(super) keywords: u64,
    pub(super) segment: u32,
    pub(in crate::shard) own_file: OwnFile,
    pub(in crate::shard) life: Life,
    source: Source,
}

/// Whether a message has a segment of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::shard) enum OwnFile {
    Yes,
    No,
}

/// Whether a message is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::shard) enum Life {
    Alive,
    /// Expunged, or its mailbox is deleted.
    Gone,
}

/// A mailbox.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    pub(super) name: String,
    pub(super) special_use: SpecialUse,
    pub(super) uidvalidity: UidValidity,
    pub(super) uidnext: u32,
    pub(super) highest_modseq: u64,
    /// Of its own last change.
    pub(super) modseq: u64,
    pub(super) time: WallNs,
    /// Modseq and time of its subscription, if it has one.
    pub(super) subscribed: Option<(u64, WallNs)>,
    /// Modseq and time of its deletion, if it is deleted.
    pub(super) deleted: Option<(u64, WallNs)>,
}

/// Messages that are gone, and nothing else in between.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Gone {
    pub(super) mailbox: MailboxId,
    pub(super) low: u32,
    pub(super) high: u32,
    /// The highest of their expunges.
    pub(super) modseq: u64,
    pub(super) time: WallNs,
}

/// See the module.
pub(in crate::shard) struct Contents {
    /// The info file.
    bytes: Bytes,
    reserved: Reserved,
    /// MSG runs of entries: head and cache.
    runs: Vec<(Bytes, Bytes)>,
    /// By mailbox and uid.
    pub(in crate::shard) messages: Vec<Message>,
    /// With the deleted ones.
    pub(super) folders: BTreeMap<MailboxId, Folder>,
    /// By mailbox and bit: keyword and modseq.
    pub(super) keywords: BTreeMap<(MailboxId, u8), (String, u64)>,
    /// Ascending by modseq.
    pub(super) gone: Vec<Gone>,
    /// Segments that this or an earlier generation replaced.
    pub(super) retired: BTreeSet<u32>,
    /// Runs of newer kinds that may be skipped, verbatim.
    pub(super) unknown: Vec<Bytes>,
}

/// What the walk gathers before it is folded.
#[derive(Default)]
struct Gathered {
    messages: Vec<Message>,
    changes: Vec<Change>,
}

impl Contents {
    /// Folds the info file and the unwritten entries of its user, oldest first. `entries` are those
    /// at the time when the file was read.
    pub(in crate::shard) fn fold<'a>(
        header: &InfoHeader,
        bytes: &Bytes,
        entries: impl Iterator<Item = &'a Entry> + Clone,
    ) -> Result<Self, BadInfo> {
        let mut contents = Self {
            bytes: bytes.clone(),
            reserved: header.version.reserved(),
            runs: Vec::new(),
            messages: Vec::new(),
            folders: BTreeMap::new(),
            keywords: BTreeMap::new(),
            gone: Vec::new(),
            retired: BTreeSet::new(),
            unknown: Vec::new(),
        };
        let mut gathered = Gathered::default();
        // The file may hold torn or missing bytes where an entry will write.
        let redone_from = entries.clone().map(|entry| entry.slot);
        let redone_from = redone_from.filter(|slot| *slot > 0).min();
        contents.file(header.seed(), redone_from, &mut gathered)?;
        for entry in entries {
            contents
                .entry(entry, header.seed(), &mut gathered)
                .map_err(|reason| BadInfo {
                    offset: entry.info_offset(),
                    reason,
                })?;
        }
        contents.settle(gathered);
        Ok(contents)
    }

    fn file(
        &mut self,
        seed: Seed,
        redone_from: Option<u32>,
        gathered: &mut Gathered,
    ) -> Result<(), BadInfo> {
        let bytes = self.bytes.clone();
        let all = bytes.get(INFO_HEADER_BYTES..).unwrap_or_default();
        let own = redone_from.map_or(all.len(), |slot| {
            index(slot.saturating_sub(FIRST_SLOT)).saturating_mul(SLOT)
        });
        let Some(own) = all.get(..own) else {
            let offset = u64::try_from(bytes.len()).expect("an index has at most 64 bits");
            let reason = CorruptReason::Truncated;
            return Err(BadInfo { offset, reason });
        };
        for run in Runs::new(own, seed, FIRST_SLOT).reserved(self.reserved) {
            let at = index(run.slot) * SLOT;
            let offset = u64::try_from(at).expect("an index has at most 64 bits");
            match run.run.map_err(|reason| BadInfo { offset, reason })? {
                Run::Msg { msg, .. } => self.message(&msg, Source::File(run.slot), gathered),
                other => {
                    let len = index(run.slots) * SLOT;
                    self.run(&other, &bytes.slice(at..at + len), gathered);
                }
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        entry: &Entry,
        seed: Seed,
        gathered: &mut Gathered,
    ) -> Result<(), CorruptReason> {
        match &entry.what {
            What::Create { .. } | What::Dead(_) | What::Swap(_) => {}
            What::Runs(bytes) => {
                for run in Runs::new(bytes, seed, entry.slot).reserved(Reserved::Unknown) {
                    let at = index(run.slot - entry.slot) * SLOT;
                    let len = index(run.slots) * SLOT;
                    self.run(&run.run?, &bytes.slice(at..at + len), gathered);
                }
            }
            What::Small(_) | What::Large(_) if entry.slot == 0 => {}
            What::Small(mail) => self.entry_message(&mail.head, &mail.cache, gathered)?,
            What::Large(mail) => self.entry_message(&mail.head, &mail.cache, gathered)?,
        }
        Ok(())
    }

    fn entry_message(
        &mut self,
        head: &Bytes,
        cache: &Bytes,
        gathered: &mut Gathered,
    ) -> Result<(), CorruptReason> {
        let msg = MsgFixed::read(head)?.values(Reserved::Unknown)?;
        let place = u32::try_from(self.runs.len()).expect("pending records are bounded");
        self.runs.push((head.clone(), cache.clone()));
        self.message(&msg, Source::Entry(place), gathered);
        Ok(())
    }

    fn message(&mut self, msg: &Msg, source: Source, gathered: &mut Gathered) {
        if let Some(folder) = self.folders.get_mut(&msg.mailbox) {
            folder.uidnext = folder.uidnext.max(msg.uid.value().saturating_add(1));
            folder.highest_modseq = folder.highest_modseq.max(msg.modseq.value());
        }
        let own_file = msg.format_flags & OWN_FILE != 0;
        gathered.messages.push(Message {
            mailbox: msg.mailbox,
            uid: msg.uid,
            modseq: msg.modseq.value(),
            system_flags: msg.system_flags,
            keywords: msg.keywords,
            segment: msg.segment,
            own_file: if own_file { OwnFile::Yes } else { OwnFile::No },
            life: Life::Alive,
            source,
        });
    }

    fn run(&mut self, run: &Run<'_>, bytes: &Bytes, gathered: &mut Gathered) {
        match run {
            Run::Msg { .. } => {}
            Run::Change(change) => {
                if let Some(folder) = self.folders.get_mut(&change.mailbox) {
                    folder.uidnext = folder
                        .uidnext
                        .max(change.uid_high.value().saturating_add(1));
                    folder.highest_modseq = folder.highest_modseq.max(change.modseq.value());
                }
                gathered.changes.push(*change);
            }
            Run::Mailbox(mailbox) => self.mailbox(mailbox),
            Run::Keyword(word) => {
                let value = (word.name.to_owned(), word.modseq.value());
                self.keywords.insert((word.mailbox, word.bit), value);
            }
            Run::Retire(retire) => self.retired.extend(retire.segments()),
            Run::Unknown(_) => self.unknown.push(bytes.clone()),
        }
    }

    fn mailbox(&mut self, run: &Mailbox<'_>) {
        let change = (run.modseq.value(), run.time);
        if matches!(run.op, MailboxOp::Create | MailboxOp::Snapshot) {
            self.folders.entry(run.mailbox).or_insert_with(|| Folder {
                name: run.name.to_owned(),
                special_use: run.special_use,
                uidvalidity: run.uidvalidity,
                uidnext: run.uidnext,
                highest_modseq: run.highest_modseq,
                modseq: run.modseq.value(),
                time: run.time,
                subscribed: None,
                deleted: None,
            });
            return;
        }
        let Some(folder) = self.folders.get_mut(&run.mailbox) else {
            return;
        };
        match run.op {
            MailboxOp::Create | MailboxOp::Snapshot => {}
            MailboxOp::Rename => {
                run.name.clone_into(&mut folder.name);
                folder.modseq = folder.modseq.max(run.modseq.value());
            }
            MailboxOp::Delete => folder.deleted = Some(change),
            MailboxOp::Subscribe => folder.subscribed = Some(change),
            MailboxOp::Unsubscribe => folder.subscribed = None,
        }
        folder.uidnext = folder.uidnext.max(run.uidnext);
        folder.highest_modseq = folder.highest_modseq.max(run.highest_modseq);
    }

    /// Applies the changes, in the order of the log.
    fn settle(&mut self, gathered: Gathered) {
        let Gathered {
            mut messages,
            changes,
        } = gathered;
        messages.sort_by_key(|message| (message.mailbox, message.uid));
        messages.dedup_by_key(|message| (message.mailbox, message.uid));
        for message in &mut messages {
            let folder = self.folders.get(&message.mailbox);
            if folder.is_none_or(|folder| folder.deleted.is_some()) {
                message.life = Life::Gone;
            }
        }
        for change in &changes {
            let low = (change.mailbox, change.uid_low);
            let high = (change.mailbox, change.uid_high);
            let key = |message: &Message| (message.mailbox, message.uid);
            let from = messages.partition_point(|message| key(message) < low);
            let touched = messages.get_mut(from..).unwrap_or_default().iter_mut();
            for message in touched.take_while(|message| key(message) <= high) {
                if change.modseq.value() < message.modseq {
                    continue;
                }
                match change.kind {
                    ChangeKind::Expunge => message.life = Life::Gone,
                    ChangeKind::Flags => {
                        message.modseq = change.modseq.value();
                        message.system_flags = change.system_flags;
                        message.keywords = change.keywords;
                    }
                }
            }
        }
        self.gone = merged(&messages, &changes, &self.folders);
        self.messages = messages;
    }

    /// Takes over what the tail knows better: numbers that were given, durable or not.
    pub(super) fn agree_with(&mut self, tail: &Tail) {
        for mailbox in &tail.mailboxes {
            if let Some(folder) = self.folders.get_mut(&mailbox.mailbox) {
                folder.uidnext = folder.uidnext.max(mailbox.uidnext);
                folder.highest_modseq = folder.highest_modseq.max(mailbox.highest_modseq);
            }
        }
    }

    /// Whether a mailbox was made and not deleted.
    pub(super) fn is_there(&self, mailbox: MailboxId) -> bool {
        let folder = self.folders.get(&mailbox);
        folder.is_some_and(|folder| folder.deleted.is_none())
    }

    /// What stands before the messages: mailboxes, keywords, retired segments, what is unknown.
    pub(super) fn prologue(&self, writer: &mut Writer, retired: &[u32]) {
        let last = self.folders.keys().next_back();
        for (mailbox, folder) in &self.folders {
            // The id of a deleted mailbox is never given again.
            if folder.deleted.is_none() || Some(mailbox) == last {
                writer.folder(*mailbox, folder);
            }
        }
        for ((mailbox, bit), keyword) in &self.keywords {
            if self.is_there(*mailbox) {
                writer.keyword(*mailbox, *bit, keyword);
            }
        }
        writer.retire(retired);
        for run in &self.unknown {
            writer.verbatim(run);
        }
    }

    /// The values of a message as they are now, and its header cache.
    pub(in crate::shard) fn values(
        &self,
        message: &Message,
    ) -> Result<(Msg, Bytes), CorruptReason> {
        let (fixed, cache) = match message.source {
            Source::File(slot) => {
                let at = index(slot) * SLOT;
                let fixed = MsgFixed::read(self.bytes.get(at..).unwrap_or_default())?;
                let from = at + MSG_FIXED_BYTES;
                let to = from + usize::from(fixed.cache_slots()) * SLOT;
                (fixed, self.bytes.slice(from..to))
            }
            Source::Entry(place) => {
                let run = self.runs.get(index(place));
                let (head, cache) = run.expect("a place in this very list");
                (MsgFixed::read(head)?, cache.clone())
            }
        };
        let mut msg = fixed.values(Reserved::Unknown)?;
        msg.modseq = ringpost_netproto::id::Modseq::new(message.modseq);
        msg.system_flags = message.system_flags;
        msg.keywords = message.keywords;
        Ok((msg, cache))
    }
}

/// Tombstones: neighbouring expunges become one range, unless a message that is there lies between.
/// So there are never more of them than messages.
fn merged(
    messages: &[Message],
    changes: &[Change],
    folders: &BTreeMap<MailboxId, Folder>,
) -> Vec<Gone> {
    let there = |mailbox: &MailboxId| {
        let folder = folders.get(mailbox);
        folder.is_some_and(|folder| folder.deleted.is_none())
    };
    let expunges = changes
        .iter()
        .filter(|change| change.kind == ChangeKind::Expunge && there(&change.mailbox));
    let mut ranges: Vec<Gone> = expunges
        .map(|change| Gone {
            mailbox: change.mailbox,
            low: change.uid_low.value(),
            high: change.uid_high.value(),
            modseq: change.modseq.value(),
            time: change.time,
        })
        .collect();
    ranges.sort_by_key(|range| (range.mailbox, range.low));
    let alive = messages
        .iter()
        .filter(|message| message.life == Life::Alive);
    let alive: Vec<_> = alive
        .map(|message| (message.mailbox, message.uid))
        .collect();
    let alive_in = |mailbox: MailboxId, low: u32, high: u32| {
        let from = alive.partition_point(|key| *key < (mailbox, Uid::new(low)));
        alive
            .get(from)
            .is_some_and(|key| *key <= (mailbox, Uid::new(high)))
    };
    let mut out: Vec<Gone> = Vec::new();
    for range in ranges {
        if let Some(last) = out.last_mut()
            && last.mailbox == range.mailbox
        {
            let high = last.high.max(range.high);
            if !alive_in(range.mailbox, last.low, high) {
                last.high = high;
                last.modseq = last.modseq.max(range.modseq);
                last.time = last.time.max(range.time);
                continue;
            }
        }
        out.push(range);
    }
    // As they would stand there if each had been written when it happened.
    out.sort_by_key(|range| range.modseq);
    out
}

#[cfg(test)]
mod tests;
