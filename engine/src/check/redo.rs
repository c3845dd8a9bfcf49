//! What the log holds above the checkpoint, by user: laid over the files as recovery does.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use ringpost_netproto::id::{MailboxId, PartitionId, Uid, UidValidity, UserHash};

use super::tree::ReadTree;
use crate::error::IoError;
use crate::format::crc;
use crate::format::info::{Change, Mailbox, MailboxOp, Msg, Run, Runs};
use crate::format::record::{Head, InfoSwap, Payload, Record};
use crate::format::store_line::StoreLine;
use crate::io::RelPath;
use crate::position::Lsn;

/// A user directory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct UserId {
    pub(crate) partition: PartitionId,
    pub(crate) user: UserHash,
    pub(crate) ordinal: u32,
}

impl UserId {
    /// Whose a record is.
    pub(crate) fn of(head: &Head) -> Self {
        Self {
            partition: head.partition,
            user: head.user,
            ordinal: head.ordinal,
        }
    }

    /// All of the user's files.
    pub(crate) fn dir(&self) -> RelPath {
        RelPath::user_dir(self.partition, self.user, self.ordinal)
    }

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

/// Where a record is, and its message.
#[derive(Clone, Debug)]
pub(crate) struct At {
    /// The log file.
    pub(crate) path: Rc<RelPath>,
    /// Of the record, in bytes from the file's start.
    pub(crate) offset: u64,
    /// Bytes of the record.
    pub(crate) len: u32,
    /// Of a DELIVER: where its message is, in bytes from the file's start.
    pub(crate) body: u64,
    /// Of the frame.
    pub(crate) lsn: Lsn,
}

/// All users with records above the checkpoint.
#[derive(Debug, Default)]
pub(crate) struct Redo {
    pub(crate) users: BTreeMap<UserId, UserRedo>,
    /// Records of frames in which a byte was put right: by file and offset.
    mended: BTreeMap<(RelPath, u64), Rc<[u8]>>,
    /// The log file of the last record: most share theirs.
    path: Option<Rc<RelPath>>,
}

impl Redo {
    /// A path to be shared by the records of a file.
    pub(super) fn path(&mut self, path: &RelPath) -> Rc<RelPath> {
        match &self.path {
            Some(known) if **known == *path => Rc::clone(known),
            _ => Rc::clone(self.path.insert(Rc::new(path.clone()))),
        }
    }

    /// What is to be read at `offset` of a log file instead of its bytes.
    pub(super) fn mend(&mut self, path: &RelPath, offset: u64, bytes: Vec<u8>) {
        self.mended.insert((path.clone(), offset), bytes.into());
    }

    /// A partition's records above `pseq` so far are void.
    pub(super) fn void(&mut self, partition: PartitionId, pseq: u64) {
        let users = self.users.iter_mut();
        for (_, user) in users.filter(|(id, _)| id.partition == partition) {
            user.void(pseq);
        }
        self.users.retain(|_, user| !user.entries.is_empty());
    }

    /// Bytes of a log file, as they were before damage where that is known.
    pub(crate) fn read(
        &self,
        tree: &dyn ReadTree,
        path: &RelPath,
        offset: u64,
        len: usize,
    ) -> Result<Vec<u8>, IoError> {
        let before = self.mended.range(..=(path.clone(), offset)).next_back();
        if let Some(((file, start), bytes)) = before
            && file == path
            && let Ok(from) = usize::try_from(offset - start)
            && let Some(found) = bytes.get(from..).and_then(|rest| rest.get(..len))
        {
            return Ok(found.to_vec());
        }
        tree.read(path, offset, len)
    }
}

/// One record of a user: what has to be written of it, and where it is.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) at: At,
    /// Of the info file that its runs go into.
    pub(crate) generation: u32,
    /// First slot of its runs; 0 if they are not to be written.
    pub(crate) slot: u32,
    /// Its number in its partition; 0 of a local record.
    pseq: u64,
    pub(crate) what: What,
}

/// What a record of a user has to be written as.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum What {
    /// The user begins.
    Create(Vec<u8>),
    /// Runs.
    Runs,
    /// A message for a shared segment.
    Small(Msg),
    /// A message with a file of its own.
    Large(Msg),
    /// A new generation: new segments and retired ones.
    Swap(Vec<u32>, BTreeSet<u32>),
}

/// A mailbox run without its borrow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct OwnedMailbox {
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
pub(crate) enum OwnedRun {
    /// With the CRC of its header cache, if it is in the info file.
    Msg(Msg, Option<u32>),
    Change(Change),
    Mailbox(OwnedMailbox),
    Retire(Vec<u32>),
    /// Nothing that a check needs.
    Other,
}

impl From<Run<'_>> for OwnedRun {
    fn from(run: Run<'_>) -> Self {
        match run {
            Run::Msg { msg, cache, .. } => Self::Msg(msg, Some(crc::of(cache))),
            Run::Change(change) => Self::Change(change),
            Run::Mailbox(mailbox) => Self::Mailbox(mailbox.into()),
            Run::Retire(retire) => Self::Retire(retire.segments().collect()),
            Run::Keyword(_) | Run::Unknown(_) => Self::Other,
        }
    }
}

/// The records of one user, in log order.
#[derive(Debug, Default)]
pub(crate) struct UserRedo {
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
    /// All records, in log order: what is to be written of each.
    pub(crate) entries: Vec<Entry>,
}

/// A new generation whose files may still have their part names.
#[derive(Debug, Default)]
pub(crate) struct Swap {
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
    pub(crate) fn changes_mailboxes(&self) -> bool {
        let mailbox = |(_, run): &(u32, OwnedRun)| matches!(run, OwnedRun::Mailbox(_));
        self.created.is_some() || self.runs.values().any(mailbox)
    }

    /// Takes a record of this user over.
    pub(super) fn add(&mut self, record: &Record<'_>, at: At) {
        self.note(record, at);
        self.generation = record.head.generation.max(self.generation);
        let slot = record.head.slot;
        match &record.payload {
            Payload::UserCreate(name) => self.created = Some(name.to_vec()),
            Payload::Deliver(deliver) => {
                self.runs.insert(
                    slot,
                    (deliver.fixed.slots(), OwnedRun::Msg(deliver.msg, None)),
                );
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
                    .insert(slot, (file.fixed.slots(), OwnedRun::Msg(file.msg, None)));
            }
            Payload::Flags(runs)
            | Payload::Expunge(runs)
            | Payload::Mailbox(runs)
            | Payload::Keyword(runs) => self.add_runs(runs),
            Payload::InfoSwap(swap) => self.swap(swap),
            Payload::Body(_)
            | Payload::Epoch
            | Payload::Truncate
            | Payload::Noop
            | Payload::Promise => {}
        }
    }

    /// Records above `pseq` count for nothing: they are the last ones, and their slots are given again.
    fn void(&mut self, pseq: u64) {
        let first = self.entries.partition_point(|entry| entry.pseq <= pseq);
        for entry in self.entries.split_off(first) {
            match &entry.what {
                What::Create(_) => self.created = None,
                What::Small(msg) | What::Large(msg) => {
                    self.validities.remove(&(msg.mailbox, msg.uid));
                }
                What::Runs | What::Swap(..) => {}
            }
            if entry.slot > 0 {
                self.runs.split_off(&entry.slot);
            }
        }
    }

    /// Takes over what has to be written of a record.
    fn note(&mut self, record: &Record<'_>, at: At) {
        let what = match &record.payload {
            Payload::UserCreate(name) => What::Create(name.to_vec()),
            Payload::Deliver(deliver) => What::Small(deliver.msg),
            Payload::DeliverFile(file) => What::Large(file.msg),
            Payload::InfoSwap(swap) => {
                let retired: BTreeSet<u32> = swap.retired_segments().collect();
                self.entries.retain_mut(|entry| {
                    entry.slot = 0;
                    match &entry.what {
                        What::Small(msg) | What::Large(msg) => !retired.contains(&msg.segment),
                        What::Create(_) | What::Runs => false,
                        // Its names were made durable with this one's files, or are still owed.
                        What::Swap(..) => true,
                    }
                });
                What::Swap(swap.new_segments().collect(), retired)
            }
            Payload::Flags(_) | Payload::Expunge(_) | Payload::Mailbox(_) | Payload::Keyword(_) => {
                What::Runs
            }
            Payload::Body(_)
            | Payload::Epoch
            | Payload::Truncate
            | Payload::Noop
            | Payload::Promise => return,
        };
        let generation = match &record.payload {
            Payload::InfoSwap(swap) => swap.generation,
            // It has no runs and hence no generation of its own; a user begins with the first.
            Payload::UserCreate(_) => 1,
            _ => record.head.generation,
        };
        self.entries.push(Entry {
            at,
            generation,
            slot: record.head.slot,
            pseq: record.head.pseq,
            what,
        });
    }

    /// Adds a message whose runs are damaged and whose bytes are not: the bytes are still owed to the
    /// segment.
    pub(super) fn add_bytes(&mut self, msg: Msg, generation: u32, at: At) {
        self.unwritten.insert((msg.segment, msg.offset));
        self.entries.push(Entry {
            at,
            generation,
            slot: 0,
            pseq: 0,
            what: What::Small(msg),
        });
    }

    /// The new generation holds all runs so far; bytes are still owed to segments that live on.
    fn swap(&mut self, swap: &InfoSwap<'_>) {
        let retired: BTreeSet<u32> = swap.retired_segments().collect();
        for (_, (_, run)) in std::mem::take(&mut self.runs) {
            if let OwnedRun::Msg(msg, _) = run {
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
