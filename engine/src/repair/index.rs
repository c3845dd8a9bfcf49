//! A user's index as far as it can be read: the good runs, folded, one wrong byte of a run put right
//! where the message or the run's own rules prove it, and what could not be read.

use std::collections::{BTreeMap, BTreeSet};

use ringpost_netproto::id::{MailboxId, Uid, UidValidity, WallNs};

use crate::check::{Lost, ReadTree, UserId, mend, prefix};
use crate::error::CorruptReason;
use crate::format::folders::{Folder as FolderLine, Folders};
use crate::format::info::{
    Change, ChangeKind, FIRST_SLOT, INFO_HEADER_BYTES, InfoHeader, Mailbox, MailboxOp, Msg,
    OWN_FILE, Run, Runs, SLOT, Seed, SpecialUse,
};
use crate::format::{Reserved, crc};
use crate::io::RelPath;

/// A mailbox, folded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Folder {
    pub(super) uidvalidity: UidValidity,
    pub(super) name: String,
    pub(super) special_use: SpecialUse,
    pub(super) uidnext: u32,
    pub(super) time: WallNs,
    pub(super) modseq: u64,
    pub(super) alive: bool,
    pub(super) subscribed: bool,
}

/// A message, folded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Known {
    /// With its last flags, keywords and modseq.
    pub(super) msg: Msg,
    pub(super) cache: Vec<u8>,
    /// Whether it was not expunged, nor its mailbox deleted.
    pub(super) alive: bool,
}

/// Slots that hold no run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct BadRun {
    /// In bytes from the file's start.
    pub(super) offset: u64,
    pub(super) slots: u32,
    /// Whether they are all zeros.
    pub(super) empty: bool,
    /// Whether one byte was wrong and the run is there all the same.
    pub(super) mended: bool,
}

/// What an info file says.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    /// Its header, or why there is none.
    pub(super) header: Option<InfoHeader>,
    pub(super) bad_header: Option<CorruptReason>,
    pub(super) folders: BTreeMap<MailboxId, Folder>,
    pub(super) messages: BTreeMap<(MailboxId, Uid), Known>,
    pub(super) expunges: Vec<Change>,
    pub(super) keywords: BTreeMap<(MailboxId, u8), (u64, String)>,
    pub(super) retired: BTreeSet<u32>,
    /// Runs that a newer version wrote and that may be skipped.
    pub(super) unknown: Vec<Vec<u8>>,
    pub(super) bad: Vec<BadRun>,
    /// Whether something else shows that runs are missing.
    pub(super) cut: bool,
    /// The highest met.
    pub(super) modseq: u64,
    pub(super) next_segment: u32,
    pub(super) uidvalidity_max: u32,
}

impl Index {
    /// Whether something was there that cannot be read any more.
    pub(super) fn has_lost(&self) -> bool {
        self.header.is_none() || self.cut || self.bad.iter().any(|bad| !bad.mended)
    }

    /// The text copy of the mailboxes.
    pub(super) fn folders_file(&self, name: &[u8]) -> Folders {
        let alive = self.folders.iter().filter(|(_, folder)| folder.alive);
        let line = |(mailbox, folder): (&MailboxId, &Folder)| FolderLine {
            mailbox: *mailbox,
            uidvalidity: folder.uidvalidity,
            name: folder.name.clone(),
        };
        Folders {
            user: name.to_vec(),
            mailboxes: alive.map(line).collect(),
        }
    }

    /// Whether a message of which a store line is left may be one of this user.
    pub(super) fn lacks(&self, lost: &Lost) -> bool {
        let uid = Uid::new(lost.uid);
        let folder = self.folders.get(&lost.mailbox);
        let same = folder.is_some_and(|folder| {
            folder.alive && Some(folder.uidvalidity.value()) == lost.validity
        });
        same && !self.messages.contains_key(&(lost.mailbox, uid))
            && !self.is_expunged(lost.mailbox, uid)
    }

    /// Whether a message is in a mailbox.
    pub(super) fn is_alive(&self, mailbox: MailboxId, uid: Uid) -> bool {
        let found = self.messages.get(&(mailbox, uid));
        found.is_some_and(|known| known.alive)
    }

    /// Whether a uid was given up.
    pub(super) fn is_expunged(&self, mailbox: MailboxId, uid: Uid) -> bool {
        self.expunges.iter().any(|change| {
            change.mailbox == mailbox && (change.uid_low..=change.uid_high).contains(&uid)
        })
    }
}

/// One info file being read.
pub(super) struct Reader<'a> {
    pub(super) tree: &'a dyn ReadTree,
    pub(super) id: UserId,
    pub(super) dir: &'a RelPath,
    pub(super) generation: u32,
}

impl Reader<'_> {
    /// Reads `bytes`, a whole info file.
    pub(super) fn read(&self, bytes: &[u8]) -> Index {
        let mut index = Index::default();
        let UserId { user, ordinal, .. } = self.id;
        let mut reserved = Reserved::Zero;
        let header = match InfoHeader::open(bytes, user, ordinal, self.generation) {
            Ok(header) => Some(header),
            Err(reason) => {
                let other = matches!(reason, CorruptReason::Version { .. });
                index.bad_header = Some(reason);
                if other {
                    // Its runs may mean something else.
                    return index;
                }
                self.mended_header(bytes)
            }
        };
        if let Some(header) = header {
            reserved = header.version.reserved();
            index.modseq = header.base_modseq;
            index.next_segment = header.next_segment;
            index.uidvalidity_max = header.uidvalidity_max;
            index.header = Some(header);
        }
        let seed = Seed {
            user,
            generation: self.generation,
        };
        let runs = bytes.get(INFO_HEADER_BYTES..).unwrap_or_default();
        let mut changes = Vec::new();
        for run in Runs::new(runs, seed, FIRST_SLOT).reserved(reserved) {
            let at = crate::format::index(run.slot) * SLOT;
            if let Ok(value) = &run.run {
                index.take(value, &mut changes);
                continue;
            }
            let len = crate::format::index(run.slots) * SLOT;
            let end = (at + len).min(bytes.len());
            let stretch = bytes.get(at..end).unwrap_or_default();
            let good = self.mended(stretch, seed, run.slot, reserved);
            index.bad.push(BadRun {
                offset: u64::try_from(at).expect("an info file is at most 4 GiB"),
                slots: run.slots,
                empty: stretch.iter().all(|byte| *byte == 0),
                mended: good.is_some(),
            });
            let good = good.unwrap_or_default();
            if let Some(run) = Runs::new(&good, seed, run.slot).reserved(reserved).next()
                && let Ok(value) = &run.run
            {
                index.take(value, &mut changes);
            }
        }
        index.fold(changes);
        index
    }

    /// The header, if one byte of it is wrong.
    fn mended_header(&self, bytes: &[u8]) -> Option<InfoHeader> {
        let UserId { user, ordinal, .. } = self.id;
        let header = bytes.get(..INFO_HEADER_BYTES)?;
        mend::header(header)
            .into_iter()
            .find_map(|header| InfoHeader::open(&header, user, ordinal, self.generation).ok())
    }

    /// The run of a stretch of slots, if one byte of it is wrong.
    fn mended(&self, bytes: &[u8], seed: Seed, slot: u32, reserved: Reserved) -> Option<Vec<u8>> {
        let stored = u32::from_le_bytes(*bytes.first_chunk()?);
        if bytes.len() > 256 * SLOT {
            return None;
        }
        let actual = crc::extend(seed.crc(slot), bytes.get(4..)?);
        let whole = |candidate: &[u8]| {
            let run = Runs::new(candidate, seed, slot).reserved(reserved).next();
            run.is_some_and(|run| {
                crate::format::index(run.slots) * SLOT == candidate.len()
                    && run.run.is_ok_and(|run| self.is_proved(&run))
            })
        };
        mend::under_sum(bytes, (0, 4), (stored, actual))
            .into_iter()
            .find(|candidate| whole(candidate))
    }

    /// A MSG run has to agree with the store line of its message. The reserved bytes of the other
    /// runs are zero, which no damage makes them.
    fn is_proved(&self, run: &Run<'_>) -> bool {
        let Run::Msg { msg, .. } = run else {
            return !matches!(run, Run::Unknown(_));
        };
        let path = if msg.format_flags & OWN_FILE == 0 {
            self.dir.segment(msg.segment)
        } else {
            self.dir.large(msg.segment, msg.mailbox, msg.uid)
        };
        let bytes = self
            .tree
            .read(&path, msg.offset, usize::from(msg.skip))
            .unwrap_or_default();
        prefix(&bytes, msg, None).is_ok()
    }
}

impl Index {
    fn take(&mut self, run: &Run<'_>, changes: &mut Vec<Change>) {
        match run {
            Run::Msg { msg, cache, .. } => {
                self.modseq = self.modseq.max(msg.modseq.value());
                self.next_segment = self.next_segment.max(msg.segment.saturating_add(1));
                let key = (msg.mailbox, msg.uid);
                let newer = |known: &Known| known.msg.modseq < msg.modseq;
                if self.messages.get(&key).is_none_or(newer) {
                    let known = Known {
                        msg: *msg,
                        cache: cache.to_vec(),
                        alive: true,
                    };
                    self.messages.insert(key, known);
                }
            }
            Run::Change(change) => {
                self.modseq = self.modseq.max(change.modseq.value());
                match change.kind {
                    ChangeKind::Flags => changes.push(*change),
                    ChangeKind::Expunge => self.expunges.push(*change),
                }
            }
            Run::Mailbox(run) => self.mailbox(run),
            Run::Keyword(run) => {
                self.modseq = self.modseq.max(run.modseq.value());
                let known = self.keywords.entry((run.mailbox, run.bit)).or_default();
                if known.0 <= run.modseq.value() {
                    *known = (run.modseq.value(), run.name.to_owned());
                }
            }
            Run::Retire(run) => {
                self.retired.extend(run.segments());
                let last = run.segments().max().unwrap_or(0);
                self.next_segment = self.next_segment.max(last.saturating_add(1));
            }
            Run::Unknown(bytes) => self.unknown.push(bytes.to_vec()),
        }
    }

    fn mailbox(&mut self, run: &Mailbox<'_>) {
        self.modseq = self.modseq.max(run.modseq.value());
        self.uidvalidity_max = self.uidvalidity_max.max(run.uidvalidity.value());
        let folder = self.folders.entry(run.mailbox).or_insert_with(|| Folder {
            uidvalidity: run.uidvalidity,
            name: run.name.to_owned(),
            special_use: run.special_use,
            uidnext: 1,
            time: run.time,
            modseq: 0,
            alive: true,
            subscribed: false,
        });
        folder.uidnext = folder.uidnext.max(run.uidnext);
        // In the order of the file, as in service: a new generation has a subscription behind the mailbox,
        // which may have been renamed since.
        folder.modseq = folder.modseq.max(run.modseq.value());
        match run.op {
            MailboxOp::Create | MailboxOp::Snapshot | MailboxOp::Rename => {
                run.name.clone_into(&mut folder.name);
                folder.special_use = run.special_use;
            }
            MailboxOp::Delete => folder.alive = false,
            MailboxOp::Subscribe => folder.subscribed = true,
            MailboxOp::Unsubscribe => folder.subscribed = false,
        }
    }

    /// Applies flags and expunges to the messages.
    fn fold(&mut self, mut changes: Vec<Change>) {
        // Before the flags: a range of these may pass over a uid that is gone.
        for change in &self.expunges {
            let range = (change.mailbox, change.uid_low)..=(change.mailbox, change.uid_high);
            for (_, known) in self.messages.range_mut(range) {
                known.alive &= known.msg.modseq > change.modseq;
            }
        }
        changes.sort_by_key(|change| change.modseq);
        for change in changes {
            let range = (change.mailbox, change.uid_low)..=(change.mailbox, change.uid_high);
            for (_, known) in self.messages.range_mut(range) {
                if known.alive && known.msg.modseq < change.modseq {
                    known.msg.system_flags = change.system_flags;
                    known.msg.keywords = change.keywords;
                    known.msg.modseq = change.modseq;
                }
            }
        }
        for ((mailbox, uid), known) in &mut self.messages {
            if let Some(folder) = self.folders.get_mut(mailbox) {
                known.alive &= folder.alive;
                folder.uidnext = folder.uidnext.max(uid.value().saturating_add(1));
            }
        }
        for change in &self.expunges {
            if let Some(folder) = self.folders.get_mut(&change.mailbox) {
                folder.uidnext = folder
                    .uidnext
                    .max(change.uid_high.value().saturating_add(1));
            }
        }
    }
}
