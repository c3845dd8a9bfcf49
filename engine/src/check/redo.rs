//! What the log holds above the checkpoint, by user: laid over the files as recovery does.

use std::collections::{BTreeMap, BTreeSet};

use ringpost_netproto::id::{MailboxId, PartitionId, Uid, UidValidity, UserHash};

use crate::format::info::{Change, Mailbox, MailboxOp, Msg, Run, Runs};
use crate::format::record::{InfoSwap, Payload, Record};
use crate::format::store_line::StoreLine;

/// A user directory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct UserId {
    pub(super) partition: PartitionId,
    pub(super) user: UserHash,
    pub(super) ordinal: u32,
}

impl UserId {
    /// The first that is not in `partition` or one before it. Of the last partition there is none:
    /// the greatest id, which no user has, since its hash would lie in it.
    pub(super) fn first_behind(partition: PartitionId) -> Self {
        match partition.value().checked_add(1) {
            Some(next) => Self {
                partition: PartitionId::new(next),
                user: UserHash::new(0),
                ordinal: 0,
            },
            None => Self {
                partition,
                user: UserHash::new(u64::MAX),
                ordinal: u32::MAX,
            },
        }
    }
}

/// All users with records above the checkpoint.
#[derive(Debug, Default)]
pub(super) struct Redo {
    pub(super) users: BTreeMap<UserId, UserRedo>,
}

/// A mailbox run without its borrow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct OwnedMailbox {
    pub(super) op: MailboxOp,
    pub(super) mailbox: MailboxId,
    pub(super) uidvalidity: UidValidity,
    pub(super) name: String,
}

impl From<Mailbox<'_>> for OwnedMailbox {
    fn from(run: Mailbox<'_>) -> Self {
        Self {
            op: run.op,
            mailbox: run.mailbox,
            uidvalidity: run.uidvalidity,
            name: run.name.to_owned(),
        }
    }
}

/// A run as the fold needs it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum OwnedRun {
    Msg(Msg),
    Change(Change),
    Mailbox(OwnedMailbox),
    Retire(Vec<u32>),
    /// Nothing that a check needs.
    Other,
}

impl From<Run<'_>> for OwnedRun {
    fn from(run: Run<'_>) -> Self {
        match run {
            Run::Msg { msg, .. } => Self::Msg(msg),
            Run::Change(change) => Self::Change(change),
            Run::Mailbox(mailbox) => Self::Mailbox(mailbox.into()),
            Run::Retire(retire) => Self::Retire(retire.segments().collect()),
            Run::Keyword(_) | Run::Unknown(_) => Self::Other,
        }
    }
}

/// The records of one user, in log order.
#[derive(Debug, Default)]
pub(super) struct UserRedo {
    /// The name, if the log has the user's first record: then directory and header may be missing.
    pub(super) created: Option<Vec<u8>>,
    /// Of the info file that the slots are in.
    pub(super) generation: u32,
    /// By first slot: how many slots, and the run.
    pub(super) runs: BTreeMap<u32, (u32, OwnedRun)>,
    /// The uidvalidity in the store line of each pending small message.
    pub(super) validities: BTreeMap<(MailboxId, Uid), u32>,
    /// Segment and offset of messages whose runs a new generation holds and whose bytes the log
    /// still has to write.
    pub(super) unwritten: BTreeSet<(u32, u64)>,
    /// What the last `INFO_SWAP` says, if there is one.
    pub(super) swap: Option<Swap>,
}

/// A new generation whose files may still have their part names.
#[derive(Debug, Default)]
pub(super) struct Swap {
    /// The info file has at least so many slots.
    pub(super) slots: u32,
    /// Segments that the compactions made.
    pub(super) made: BTreeSet<u32>,
}

impl UserRedo {
    /// Whether redo writes all of `slots` slots from `first` on.
    pub(super) fn covers(&self, first: u32, slots: u32) -> bool {
        let end = first.saturating_add(slots);
        let mut at = first;
        while at < end {
            let before = self.runs.range(..=at).next_back();
            match before {
                Some((slot, (len, _))) if slot.saturating_add(*len) > at => {
                    at = slot.saturating_add(*len);
                }
                _ => return false,
            }
        }
        true
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.created.is_none() && self.runs.is_empty() && self.swap.is_none()
    }

    /// Whether a mailbox changed, so that `folders` may lag.
    pub(super) fn changes_mailboxes(&self) -> bool {
        let mailbox = |(_, run): &(u32, OwnedRun)| matches!(run, OwnedRun::Mailbox(_));
        self.created.is_some() || self.runs.values().any(mailbox)
    }

    /// Takes a record of this user over.
    pub(super) fn add(&mut self, record: &Record<'_>) {
        self.generation = record.head.generation.max(self.generation);
        let slot = record.head.slot;
        match &record.payload {
            Payload::UserCreate(name) => self.created = Some(name.to_vec()),
            Payload::Deliver(deliver) => {
                self.runs
                    .insert(slot, (deliver.fixed.slots(), OwnedRun::Msg(deliver.msg)));
                let line = deliver
                    .prefix
                    .len()
                    .checked_sub(crate::format::store_line::STORE_LINE_BYTES)
                    .and_then(|at| deliver.prefix.get(at..));
                if let Some(Ok(line)) = line.map(StoreLine::decode) {
                    let key = (deliver.msg.mailbox, deliver.msg.uid);
                    self.validities.insert(key, line.uidvalidity);
                }
            }
            Payload::DeliverFile(file) => {
                self.runs
                    .insert(slot, (file.fixed.slots(), OwnedRun::Msg(file.msg)));
            }
            Payload::Flags(runs)
            | Payload::Expunge(runs)
            | Payload::Mailbox(runs)
            | Payload::Keyword(runs) => self.add_runs(runs),
            Payload::InfoSwap(swap) => self.swap(swap),
            Payload::Body(_) | Payload::Noop => {}
        }
    }

    /// The new generation holds all runs so far; bytes are still owed to segments that live on.
    fn swap(&mut self, swap: &InfoSwap<'_>) {
        let retired: BTreeSet<u32> = swap.retired_segments().collect();
        for (_, (_, run)) in std::mem::take(&mut self.runs) {
            if let OwnedRun::Msg(msg) = run {
                self.unwritten.insert((msg.segment, msg.offset));
            }
        }
        self.unwritten
            .retain(|(segment, _)| !retired.contains(segment));
        self.created = None;
        self.generation = swap.generation;
        let known = self.swap.get_or_insert_default();
        known.slots = swap.slots;
        known.made.extend(swap.new_segments());
    }

    fn add_runs(&mut self, runs: &Runs<'_>) {
        for run in runs.clone() {
            if let Ok(value) = run.run {
                self.runs.insert(run.slot, (run.slots, value.into()));
            }
        }
    }
}
