//! What was asked of the node and is not answered yet, as the oracle needs to know it.

use ringpost_engine::request::{FlagOp, MailboxChange, QuotaLimits, UidSet, Which};

/// One recipient of a delivery.
#[derive(Clone, Debug)]
pub(super) struct To {
    pub(super) who: usize,
    pub(super) mailbox: u32,
    /// Whether the delivery id is looked up.
    pub(super) once: bool,
    pub(super) system: u32,
    pub(super) words: Vec<String>,
    pub(super) quota: QuotaLimits,
    /// Changes asked of this user by then, if no other was under way.
    pub(super) alone: Option<u64>,
}

/// A change of flags.
#[derive(Clone, Debug)]
pub(super) struct NewFlags {
    pub(super) op: FlagOp,
    pub(super) system: u32,
    pub(super) words: Vec<String>,
    pub(super) unchanged_since: Option<u64>,
}

/// Which messages of which mailbox of whom. `floor` is the mailbox's UIDNEXT as known when it was
/// asked: messages below it that are there must be dealt with.
#[derive(Clone, Debug)]
pub(super) struct Chosen {
    pub(super) who: usize,
    pub(super) mailbox: u32,
    pub(super) uids: UidSet,
    pub(super) floor: u32,
}

/// A request.
#[derive(Clone, Debug)]
pub(super) enum Asked {
    Append {
        mail: usize,
        to: Vec<To>,
    },
    Store(Chosen, NewFlags),
    Expunge(Chosen, Which),
    Copy {
        of: Chosen,
        to: u32,
        moves: bool,
        quota: QuotaLimits,
    },
    Mailbox {
        who: usize,
        change: MailboxChange,
    },
    Mailboxes {
        who: usize,
    },
    List {
        who: usize,
        mailbox: u32,
        after: u32,
        entries_max: u32,
    },
    Fetch {
        who: usize,
        mailbox: u32,
        uid: u32,
        offset: u64,
        bytes_max: u32,
    },
    Changes {
        who: usize,
        mailbox: u32,
    },
    Watch {
        who: usize,
        mailbox: Option<u32>,
        since: u64,
    },
    SnapshotOpen {
        who: usize,
        mailbox: u32,
    },
    SnapshotList {
        snapshot: usize,
    },
    SnapshotFetch {
        snapshot: usize,
        uid: u32,
    },
    /// A step of a large message's way into a stage file.
    Stage {
        upload: usize,
    },
    Compact,
    /// A page that is held against the model by who asked.
    Look,
    Checkpoint,
    /// A backup's begin, its prolongation, or its end.
    Backup,
    Drain,
}

impl Asked {
    /// Whether it may change what this user has.
    pub(super) fn changes(&self, user: usize) -> bool {
        match self {
            Self::Append { to, .. } => to.iter().any(|to| to.who == user),
            Self::Store(of, _) | Self::Expunge(of, _) | Self::Copy { of, .. } => of.who == user,
            Self::Mailbox { who, .. } => *who == user,
            _ => false,
        }
    }
}
