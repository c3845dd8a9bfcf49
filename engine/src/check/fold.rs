//! The index of a user: the runs of the info file and of the log, folded.

use std::collections::{BTreeMap, BTreeSet};

use ringpost_netproto::id::{MailboxId, Uid, UidValidity};

use super::Checker;
use super::redo::{OwnedMailbox, OwnedRun};
use super::user::Place;
use crate::error::CorruptReason;
use crate::format::info::{ChangeKind, MailboxOp, Msg, Runs, SLOT};
use crate::io::RelPath;

/// A mailbox after the fold.
pub(super) struct Folded {
    pub(super) uidvalidity: UidValidity,
    pub(super) name: String,
    pub(super) alive: bool,
}

/// A message after the fold.
pub(super) struct Entry {
    pub(super) msg: Msg,
    /// Of its header cache, if that is in the info file.
    pub(super) cache_crc: Option<u32>,
    /// In the info file, in bytes from its start.
    pub(super) info_at: u64,
    /// Whether the log will write it again, so that the files may lack it.
    pub(super) pending: bool,
    pub(super) alive: bool,
}

/// A user's index after the fold.
#[derive(Default)]
pub(super) struct Fold {
    pub(super) mailboxes: BTreeMap<MailboxId, Folded>,
    pub(super) messages: BTreeMap<(MailboxId, Uid), Entry>,
    /// The user's name, if header or log tell it.
    pub(super) name: Option<Box<[u8]>>,
    /// Segments that this generation replaced.
    pub(super) retired: BTreeSet<u32>,
}

impl Checker<'_> {
    pub(super) fn fold(&mut self, place: &Place<'_>, path: &RelPath, runs: Runs<'_>) -> Fold {
        let mut all: BTreeMap<u32, (OwnedRun, bool)> = BTreeMap::new();
        for run in runs {
            if place.redo.covers(run.slot, run.slots) {
                continue;
            }
            let at = slot_at(run.slot);
            match run.run {
                Ok(value) => {
                    if place
                        .redo
                        .runs
                        .keys()
                        .next()
                        .is_some_and(|first| run.slot > *first)
                    {
                        // Slots are given in the order of the log: its record never was durable.
                        let what = "the index and the log: a run whose record is not in the log";
                        self.damage(path, at, CorruptReason::Disagree(what));
                    }
                    all.insert(run.slot, (value.into(), false));
                }
                Err(reason) => self.damage(path, at, reason),
            }
        }
        for (slot, (_, run)) in &place.redo.runs {
            all.insert(*slot, (run.clone(), true));
        }
        let mut fold = Fold::default();
        let mut expunges = Vec::new();
        for (slot, (run, pending)) in all {
            let info_at = slot_at(slot);
            match run {
                OwnedRun::Msg(msg, cache_crc) => {
                    let pending =
                        pending || place.redo.unwritten.contains(&(msg.segment, msg.offset));
                    let entry = Entry {
                        msg,
                        cache_crc,
                        info_at,
                        pending,
                        alive: true,
                    };
                    if let Err(reason) = fold.add(entry) {
                        self.damage(path, info_at, reason);
                    }
                }
                OwnedRun::Mailbox(mailbox) => {
                    if let Err(reason) = fold.mailbox(mailbox) {
                        self.damage(path, info_at, reason);
                    }
                }
                OwnedRun::Change(change) if change.kind == ChangeKind::Expunge => {
                    expunges.push(change);
                }
                OwnedRun::Retire(segments) => fold.retired.extend(segments),
                OwnedRun::Change(_) | OwnedRun::Other => {}
            }
        }
        for change in expunges {
            let range = (change.mailbox, change.uid_low)..=(change.mailbox, change.uid_high);
            for (_, entry) in fold.messages.range_mut(range) {
                entry.alive &= entry.msg.modseq > change.modseq;
            }
        }
        for ((mailbox, _), entry) in &mut fold.messages {
            entry.alive &= fold
                .mailboxes
                .get(mailbox)
                .is_some_and(|mailbox| mailbox.alive);
        }
        fold
    }
}

impl Fold {
    fn add(&mut self, entry: Entry) -> Result<(), CorruptReason> {
        let key = (entry.msg.mailbox, entry.msg.uid);
        if !self.mailboxes.contains_key(&key.0) {
            self.messages.insert(key, entry);
            return Err(CorruptReason::Value(
                "a message in a mailbox that was never made",
            ));
        }
        if self.messages.insert(key, entry).is_some() {
            return Err(CorruptReason::Value("a uid was given twice"));
        }
        Ok(())
    }

    fn mailbox(&mut self, run: OwnedMailbox) -> Result<(), CorruptReason> {
        let known = self.mailboxes.get_mut(&run.mailbox);
        match (run.op, known) {
            (MailboxOp::Create | MailboxOp::Snapshot, None) => {
                let OwnedMailbox {
                    mailbox,
                    uidvalidity,
                    name,
                    ..
                } = run;
                self.mailboxes.insert(
                    mailbox,
                    Folded {
                        uidvalidity,
                        name,
                        alive: true,
                    },
                );
                Ok(())
            }
            (MailboxOp::Create | MailboxOp::Snapshot, Some(_)) => {
                Err(CorruptReason::Value("a mailbox was made twice"))
            }
            (_, None) => Err(CorruptReason::Value(
                "a change of a mailbox that was never made",
            )),
            (_, Some(known)) if known.uidvalidity != run.uidvalidity => {
                Err(CorruptReason::Value("a mailbox's uidvalidity changed"))
            }
            (MailboxOp::Rename, Some(known)) => {
                known.name = run.name;
                Ok(())
            }
            (MailboxOp::Delete, Some(known)) => {
                known.alive = false;
                Ok(())
            }
            (MailboxOp::Subscribe | MailboxOp::Unsubscribe, Some(_)) => Ok(()),
        }
    }

    pub(super) fn uidvalidity(&self, mailbox: MailboxId) -> u32 {
        self.mailboxes
            .get(&mailbox)
            .map_or(0, |mailbox| mailbox.uidvalidity.value())
    }
}

/// Of a run, in bytes from the info file's start.
pub(super) fn slot_at(slot: u32) -> u64 {
    u64::from(slot) * u64::try_from(SLOT).expect("64")
}
