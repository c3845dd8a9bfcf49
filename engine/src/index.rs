//! A user's index: all visible messages by mailbox, and what went (storage.md 8.1).
//!
//! It is the fold of the info file's runs and of what is pending; `fold` makes it, and published
//! records keep it up. A snapshot shares the messages of a mailbox: the first change after it copies
//! them, so that it stays as it was.

mod fold;

use std::rc::Rc;

use bytes::Bytes;
use ringpost_netproto::id::{Guid, MailboxId, Uid};
use smallvec::SmallVec;

use crate::canary::{self, Canary};
use crate::error::CorruptReason;
use crate::format::Reserved;
use crate::format::info::{Change, ChangeKind, MSG_FIXED_BYTES, Msg, MsgFixed, OWN_FILE, SLOT};
use crate::request::{UidRange, UidSet};
use crate::space::Place;
use crate::tail::Tail;

pub(crate) use fold::{BadInfo, Folded, InfoFile, apply_run, fold};

/// A message of the index. 96 bytes beside the info file's own, which it shares.
#[derive(Clone, Debug)]
pub(crate) struct IndexEntry {
    pub(crate) uid: Uid,
    /// As of its last change.
    pub(crate) flags: u32,
    pub(crate) keywords: u64,
    pub(crate) modseq: u64,
    /// Begins with the fixed part of the MSG run.
    head: Bytes,
    pub(crate) cache: Bytes,
    /// Expunged; its place is taken out later, with others.
    gone: bool,
}

impl IndexEntry {
    /// The segment that holds it; cheaper than all of its values.
    pub(crate) fn segment(&self) -> Option<u32> {
        let fixed = MsgFixed::read(&self.head).ok()?;
        Some(fixed.segment())
    }

    /// The values of its MSG run, whose checksum held, with the flags and modseq of its last
    /// change.
    pub(crate) fn msg(&self) -> Result<Msg, CorruptReason> {
        let mut msg = MsgFixed::read(&self.head)?.values(Reserved::Unknown)?;
        msg.system_flags = self.flags;
        msg.keywords = self.keywords;
        msg.modseq = ringpost_netproto::id::Modseq::new(self.modseq);
        Ok(msg)
    }
}

/// Uids that went together.
#[derive(Clone, Copy, Debug)]
struct Tombstone {
    range: UidRange,
    modseq: u64,
}

/// A large message that went: its file is nobody's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct DeadFile {
    pub(crate) segment: u32,
    pub(crate) mailbox: MailboxId,
    pub(crate) uid: Uid,
}

/// The messages of a mailbox, ascending by uid, as index and snapshots share them.
pub(crate) type Entries = Rc<Vec<IndexEntry>>;

/// The messages that are there, in a list that may hold gone ones.
pub(crate) fn alive(
    entries: &[IndexEntry],
) -> impl DoubleEndedIterator<Item = &IndexEntry> + Clone {
    entries.iter().filter(|entry| !entry.gone)
}

/// The message with this uid.
pub(crate) fn find(entries: &[IndexEntry], uid: Uid) -> Option<&IndexEntry> {
    let place = entries.binary_search_by_key(&uid, |entry| entry.uid).ok()?;
    entries.get(place).filter(|entry| !entry.gone)
}

/// The messages above a uid.
pub(crate) fn above(entries: &[IndexEntry], uid: u32) -> impl Iterator<Item = &IndexEntry> + Clone {
    let first = entries.partition_point(|entry| entry.uid.value() <= uid);
    alive(entries.get(first..).unwrap_or_default())
}

/// The messages of a set.
pub(crate) fn selected<'a>(
    entries: &'a [IndexEntry],
    uids: &'a UidSet,
) -> impl Iterator<Item = &'a IndexEntry> {
    uids.ranges()
        .iter()
        .flat_map(|range| alive(within(entries, *range)))
}

/// The entries of a range, gone ones among them.
fn within(entries: &[IndexEntry], range: UidRange) -> &[IndexEntry] {
    let (from, to) = places(entries, range);
    entries.get(from..to).unwrap_or_default()
}

fn places(entries: &[IndexEntry], range: UidRange) -> (usize, usize) {
    let from = entries.partition_point(|entry| entry.uid.value() < range.low);
    let to = entries.partition_point(|entry| entry.uid.value() <= range.high);
    (from, to)
}

#[derive(Clone, Debug)]
struct MailboxIndex {
    mailbox: MailboxId,
    entries: Entries,
    gone_count: usize,
    /// Ascending by modseq.
    tombstones: Vec<Tombstone>,
}

/// All messages of a user by mailbox, ascending by uid.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    mailboxes: SmallVec<[MailboxIndex; 1]>,
    bytes: u64,
    /// Expunges with this modseq and above are all known.
    tombstones_from: u64,
}

impl Index {
    /// Memory it takes, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The messages of a mailbox, ascending by uid; see [`alive`].
    pub(crate) fn mailbox(&self, mailbox: MailboxId) -> &[IndexEntry] {
        self.place(mailbox).map_or(&[], |found| &found.entries)
    }

    /// A message with this content, wherever it is; one that went just now too.
    pub(crate) fn find_guid(&self, guid: Guid) -> Option<(MailboxId, Uid)> {
        self.mailboxes.iter().find_map(|found| {
            let same = |entry: &&IndexEntry| {
                MsgFixed::read(&entry.head).is_ok_and(|fixed| fixed.guid() == guid)
            };
            let entry = found.entries.iter().find(same)?;
            Some((found.mailbox, entry.uid))
        })
    }

    /// The same, to be kept.
    pub(crate) fn share(&self, mailbox: MailboxId) -> Entries {
        let found = self.place(mailbox);
        found.map_or_else(Entries::default, |found| Rc::clone(&found.entries))
    }

    /// One message.
    pub(crate) fn find(&self, mailbox: MailboxId, uid: Uid) -> Option<&IndexEntry> {
        find(self.mailbox(mailbox), uid)
    }

    /// What went from a mailbox after `since`, if all of it is still known.
    pub(crate) fn vanished(&self, mailbox: MailboxId, since: u64) -> Option<UidSet> {
        if since.saturating_add(1) < self.tombstones_from {
            return None;
        }
        let known = self
            .place(mailbox)
            .map_or(&[][..], |found| &found.tombstones);
        let first = known.partition_point(|tombstone| tombstone.modseq <= since);
        let ranges = known.get(first..).unwrap_or_default().iter();
        Some(
            ranges
                .map(|tombstone| (tombstone.range.low, tombstone.range.high))
                .collect(),
        )
    }

    fn place(&self, mailbox: MailboxId) -> Option<&MailboxIndex> {
        self.mailboxes.iter().find(|found| found.mailbox == mailbox)
    }

    fn place_mut(&mut self, mailbox: MailboxId) -> &mut MailboxIndex {
        let found = self
            .mailboxes
            .iter()
            .position(|found| found.mailbox == mailbox);
        let place = found.unwrap_or_else(|| {
            self.mailboxes.push(MailboxIndex {
                mailbox,
                entries: Entries::default(),
                gone_count: 0,
                tombstones: Vec::new(),
            });
            self.mailboxes.len() - 1
        });
        self.mailboxes.get_mut(place).expect("found or just pushed")
    }

    /// Adds a message above all others of its mailbox, or the same one again. `false` if it was
    /// known.
    pub(crate) fn push(&mut self, msg: &Msg, head: Bytes, cache: Bytes) -> bool {
        let weight = ENTRY_BYTES + MSG_FIXED_BYTES + cache.len();
        let entry = IndexEntry {
            uid: msg.uid,
            flags: msg.system_flags,
            keywords: msg.keywords,
            modseq: msg.modseq.value(),
            head,
            cache,
            gone: false,
        };
        let found = self.place_mut(msg.mailbox);
        let known = found
            .entries
            .binary_search_by_key(&msg.uid, |entry| entry.uid);
        let place = match known {
            Err(place) => place,
            // Replay is idempotent here; the planted bug is one that is not.
            Ok(place) if canary::on(Canary::ReplayedTwice) => place,
            Ok(_) => return false,
        };
        Rc::make_mut(&mut found.entries).insert(place, entry);
        self.bytes += u64::try_from(weight).expect("an index has at most 64 bits");
        true
    }

    /// Applies a CHANGE run to index and counts; files that nobody needs any more go into `dead`.
    pub(crate) fn change(&mut self, tail: &mut Tail, change: &Change, dead: &mut Vec<DeadFile>) {
        let modseq = change.modseq.value();
        tail.saw(modseq);
        // A run that a new generation made is there for good.
        tail.space.changed(u32::from(change.lsn.value() > 0));
        let range = UidRange {
            low: change.uid_low.value(),
            high: change.uid_high.value(),
        };
        let found = self.place_mut(change.mailbox);
        if change.kind == ChangeKind::Expunge {
            found.tombstones.push(Tombstone { range, modseq });
        }
        let (from, to) = places(&found.entries, range);
        let older = |entry: &IndexEntry| !entry.gone && entry.modseq < modseq;
        let mut freed = 0;
        if found
            .entries
            .get(from..to)
            .unwrap_or_default()
            .iter()
            .any(older)
        {
            let entries = Rc::make_mut(&mut found.entries);
            let entries = entries.get_mut(from..to).unwrap_or_default();
            for entry in entries.iter_mut().filter(|entry| older(entry)) {
                entry.modseq = modseq;
                if change.kind == ChangeKind::Flags {
                    if let Some(mailbox) = tail.mailbox_mut(change.mailbox) {
                        mailbox.recount(entry.flags, change.system_flags);
                    }
                    entry.flags = change.system_flags;
                    entry.keywords = change.keywords;
                    continue;
                }
                entry.gone = true;
                found.gone_count += 1;
                freed += entry.cache.len() + MSG_FIXED_BYTES;
                if let Ok(msg) = entry.msg() {
                    tail.count_out(change.mailbox, entry.flags, msg.rfc822_size);
                    tail.space.expunged(&msg, entry.cache.len() / SLOT);
                    dead.extend(dead_file(&msg));
                }
            }
        }
        if let Some(mailbox) = tail.mailbox_mut(change.mailbox) {
            mailbox.highest_modseq = mailbox.highest_modseq.max(modseq);
        }
        // Places are taken out together: one by one would move the rest each time.
        if found.gone_count > 64 && found.gone_count >= found.entries.len() / 4 {
            Rc::make_mut(&mut found.entries).retain(|entry| !entry.gone);
            freed += found.gone_count * ENTRY_BYTES;
            found.gone_count = 0;
        }
        let freed = u64::try_from(freed).expect("an index has at most 64 bits");
        self.bytes = self.bytes.saturating_sub(freed);
    }

    /// A compaction moved a message to another place. Snapshots keep the old one.
    pub(crate) fn relocate(&mut self, from: &Place, to: (u32, u64)) {
        let found = self.place_mut(from.mailbox);
        let known = found
            .entries
            .binary_search_by_key(&from.uid, |entry| entry.uid);
        let Ok(place) = known else { return };
        let entries = Rc::make_mut(&mut found.entries);
        let Some(entry) = entries.get_mut(place) else {
            return;
        };
        let msg = MsgFixed::read(&entry.head).and_then(|fixed| fixed.values(Reserved::Unknown));
        if let Ok(mut msg) = msg
            && msg.segment == from.segment
        {
            (msg.segment, msg.offset) = to;
            let slots = u8::try_from(entry.cache.len() / SLOT).unwrap_or(0);
            entry.head = Bytes::copy_from_slice(msg.fixed(slots).bytes());
        }
    }

    /// A mailbox went, and all that was in it.
    pub(crate) fn remove(&mut self, mailbox: MailboxId, dead: &mut Vec<DeadFile>) {
        let Some(place) = self
            .mailboxes
            .iter()
            .position(|found| found.mailbox == mailbox)
        else {
            return;
        };
        let found = self.mailboxes.remove(place);
        let mut freed = found.gone_count * ENTRY_BYTES;
        for entry in alive(&found.entries) {
            freed += ENTRY_BYTES + MSG_FIXED_BYTES + entry.cache.len();
            dead.extend(entry.msg().ok().as_ref().and_then(dead_file));
        }
        let freed = u64::try_from(freed).expect("an index has at most 64 bits");
        self.bytes = self.bytes.saturating_sub(freed);
    }
}

/// Of an entry, without what it shares with the info file.
const ENTRY_BYTES: usize = size_of::<IndexEntry>();

fn dead_file(msg: &Msg) -> Option<DeadFile> {
    (msg.format_flags & OWN_FILE != 0).then_some(DeadFile {
        segment: msg.segment,
        mailbox: msg.mailbox,
        uid: msg.uid,
    })
}
