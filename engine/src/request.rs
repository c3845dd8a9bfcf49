//! What a caller asks of a [`Shard`](crate::Shard) and what comes out of it (storage.md 1.3).
//!
//! Every accepted request has a [`Ticket`] and exactly one answering [`Event`]. Nothing here knows
//! of sockets; the daemon maps a [`Refused`] to a protocol's reply in one table.

mod answer;
mod copies;
mod flags;
mod mailbox;
mod scrub;
mod uids;

pub use answer::{Compacted, Event, Fetched, ListEntry, ListPage, MailboxStatus, More, Notice};
pub use copies::{
    Copy, Disowned, Given, Led, PartitionTail, Refilled, Replicate, Replicated, SealedItem,
    Shipped, StreamId, UserState,
};
pub use flags::{FlagOp, Flags, is_keyword};
pub use mailbox::{
    Changed, ChangesPage, Copied, Horizon, MailboxChange, MailboxChanged, QuotaLimits, Snapshot,
    SnapshotId, Subscribed, Which,
};
pub use scrub::{Damage, DamagedMessage, ScrubWhat, Scrubbed};
pub use uids::{UidRange, UidSet};

use std::sync::Arc;

use bytes::Bytes;
use ringpost_netproto::id::{
    Epoch, Guid, MailboxId, Modseq, PartitionId, Uid, UidValidity, WallNs,
};
use ringpost_netproto::placement::UserKey;

use crate::error::{Corrupt, CorruptReason};
use crate::large::StagedBody;
use crate::mailbox_name::NameFault;
use crate::position::DurableTo;
use crate::prepare::{PreparedBody, Summary};

/// Nanoseconds of a clock that never goes back and has no defined zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct MonotonicNs(u64);

impl MonotonicNs {
    /// Wraps the plain number.
    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    /// The plain number.
    pub const fn value(self) -> u64 {
        self.0
    }

    /// This moment plus `ns`.
    #[must_use]
    pub const fn after(self, ns: u64) -> Self {
        Self(self.0.saturating_add(ns))
    }

    /// Nanoseconds since `earlier`; 0 if that lies ahead.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// The time of a call: the engine has no clock of its own.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For intervals and deadlines.
    pub monotonic: MonotonicNs,
    /// For dates that are stored. It may go back; ids take the maximum.
    pub wall: WallNs,
}

/// Names an accepted request of one shard until its event; never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ticket(pub(crate) u64);

impl Ticket {
    /// A number for maps of waiting callers.
    pub const fn value(self) -> u64 {
        self.0
    }
}

/// A question before any bytes came (RCPT time). It reserves nothing.
#[derive(Clone, Debug)]
pub struct Admit {
    /// Whose mail it would be.
    pub user: UserKey,
    /// The announced size in bytes, if any.
    pub size_hint: Option<u64>,
    /// What the user may keep. Asked early of a user in memory only; the append asks again.
    pub quota: QuotaLimits,
}

/// What a shard can be asked to do.
#[derive(Debug)]
#[non_exhaustive]
pub enum Request {
    /// Make a message durable for users of this shard. Answered by [`Event::Appended`].
    Append(AppendGroup),
    /// Make a message durable here for users whose partition another node leads, which cannot be
    /// reached: it goes into the held boxes of this shard's partitions ([`crate::held`]), whatever the
    /// user may keep. Answered by [`Event::Appended`] as soon as it is on this medium; the uids are the
    /// box's. Refused with [`BusyReason::Held`] if a box has no room for one more user.
    Hold(AppendGroup),
    /// Open a stage file for a message of `large_bytes` or more. [`Event::StageBegun`].
    StageBegin {
        /// Announced size in bytes, if any, for admission.
        size_hint: Option<u64>,
        /// Envelope sender for the `From_` line; empty for the null sender.
        sender: Bytes,
        /// Date of the `From_` line and INTERNALDATE.
        internal_date: WallNs,
    },
    /// Append stored bytes to a stage file, in order. [`Event::StageWritten`].
    StageWrite {
        /// From [`Event::StageBegun`].
        stage: StageId,
        /// Stored form (converted and quoted by `prepare`), at most 1 MiB.
        data: Bytes,
    },
    /// Put CRLF back into what was staged so far: the line ends turned out to be mixed.
    /// [`Event::StageExpanded`].
    StageExpand {
        /// From [`Event::StageBegun`].
        stage: StageId,
    },
    /// Write the prefix, sync, and hand the body out for [`Request::Append`]. [`Event::Staged`].
    StageFinish {
        /// From [`Event::StageBegun`].
        stage: StageId,
        /// What `prepare` counted.
        summary: Box<Summary>,
        /// The header cache, as in [`PreparedBody`].
        cache: Bytes,
        /// Guid of the store line. Recipients have their own in their index.
        guid: Guid,
    },
    /// Open a stage file for a large message that another node has, out of
    /// [`Shipped::file`]: its prefix is taken over as it is. [`Event::StageBegun`], then
    /// [`Request::StageWrite`] with the stored form, then [`Request::StageSeal`].
    StageTake {
        /// `From_` line and store line, at most 1280 bytes.
        prefix: Bytes,
    },
    /// Make the copy of another node's file durable, for [`Request::Replicate`].
    /// [`Event::StageSealed`]. Refused with [`Refused::BadRecords`] if it is not what its store
    /// line says.
    StageSeal {
        /// From [`Event::StageBegun`].
        stage: StageId,
    },
    /// Forget a stage file, finished or not; its links stay. Unanswered by an event.
    StageDrop {
        /// From [`Event::StageBegun`].
        stage: StageId,
    },
    /// The mailboxes of a user. [`Event::Mailboxes`].
    Mailboxes {
        /// Whose.
        user: UserKey,
    },
    /// A page of a mailbox, ascending by uid. [`Event::Listed`].
    List {
        /// Whose.
        user: UserKey,
        /// Which mailbox.
        mailbox: MailboxId,
        /// Only messages above this uid; 0 from the start.
        after: u32,
        /// At most this many entries (and never more than `LIST_ENTRIES_MAX`).
        entries_max: u32,
    },
    /// One message, or a piece of a long one. [`Event::Fetched`].
    Fetch {
        /// Whose.
        user: UserKey,
        /// Which mailbox.
        mailbox: MailboxId,
        /// Which message.
        uid: Uid,
        /// Byte offset in the stored form; 0 for the start.
        stored_offset: u64,
        /// At most this many bytes (and never more than `FETCH_BYTES_MAX`).
        bytes_max: u32,
    },
    /// Sets or takes off flags. [`Event::FlagsStored`].
    Store {
        /// Whose.
        user: UserKey,
        /// Which mailbox.
        mailbox: MailboxId,
        /// Which messages; uids that no message has are passed over.
        uids: UidSet,
        /// What to do with `flags`.
        op: FlagOp,
        /// Which flags.
        flags: Flags,
        /// Only messages that did not change after this (RFC 7162 3.1.3).
        unchanged_since: Option<Modseq>,
    },
    /// Removes messages for good. [`Event::Expunged`].
    Expunge {
        /// Whose.
        user: UserKey,
        /// Which mailbox.
        mailbox: MailboxId,
        /// Which messages; uids that no message has are passed over.
        uids: UidSet,
        /// All of them, or those with `\Deleted`.
        which: Which,
    },
    /// Copies messages with flags, keywords, date and guid (RFC 9051 6.4.7). [`Event::Copied`].
    Copy {
        /// Whose.
        user: UserKey,
        /// From where.
        from: MailboxId,
        /// Which messages; uids that no message has are passed over.
        uids: UidSet,
        /// To where; may be the same mailbox.
        to: MailboxId,
        /// The user's bounds; they hold for all copies together.
        quota: QuotaLimits,
    },
    /// As `Copy`, and the message is gone from where it was, in one step each (RFC 6851). Never
    /// refused for quota. [`Event::Copied`].
    Move {
        /// Whose.
        user: UserKey,
        /// From where.
        from: MailboxId,
        /// Which messages; uids that no message has are passed over.
        uids: UidSet,
        /// To where.
        to: MailboxId,
    },
    /// Makes or changes a mailbox; of an unknown user too. [`Event::MailboxChanged`].
    Mailbox {
        /// Whose.
        user: UserKey,
        /// What.
        change: MailboxChange,
    },
    /// What happened in a mailbox since a modseq. [`Event::Changes`].
    Changes {
        /// Whose.
        user: UserKey,
        /// Which mailbox.
        mailbox: MailboxId,
        /// Only what came, changed or went after this.
        since: Modseq,
        /// Only messages above this uid; 0 from the start.
        after: u32,
        /// At most this many entries (and never more than `LIST_ENTRIES_MAX`).
        entries_max: u32,
    },
    /// Waits until a mailbox, or any of the user's, has a modseq above `since`; answered at once if
    /// it has. One watch, one answer: ask again from there. [`Event::Woken`].
    Watch {
        /// Whose.
        user: UserKey,
        /// Which mailbox; `None`: all of them, names and subscriptions included.
        mailbox: Option<MailboxId>,
        /// The highest modseq that the caller knows.
        since: Modseq,
    },
    /// Ends a watch, which is answered [`Refused::Cancelled`]. Itself unanswered.
    Unwatch {
        /// Of the watch.
        watch: Ticket,
    },
    /// Keeps a mailbox readable as it is. [`Event::SnapshotOpened`].
    SnapshotOpen {
        /// Whose.
        user: UserKey,
        /// Which mailbox.
        mailbox: MailboxId,
    },
    /// As `List`, of a snapshot. [`Event::Listed`].
    SnapshotList {
        /// Which.
        snapshot: SnapshotId,
        /// Only messages above this uid; 0 from the start.
        after: u32,
        /// At most this many entries (and never more than `LIST_ENTRIES_MAX`).
        entries_max: u32,
    },
    /// As `Fetch`, of a snapshot: of messages too that are gone by now. [`Event::Fetched`].
    SnapshotFetch {
        /// Which.
        snapshot: SnapshotId,
        /// Which message.
        uid: Uid,
        /// Byte offset in the stored form; 0 for the start.
        stored_offset: u64,
        /// At most this many bytes (and never more than `FETCH_BYTES_MAX`).
        bytes_max: u32,
    },
    /// Lets a snapshot go. Unanswered.
    SnapshotClose {
        /// Which.
        snapshot: SnapshotId,
    },
    /// Rewrite the files of a user without what is dead in them, whether it is much or little, as soon
    /// as no other compaction runs. [`Event::Compacted`].
    Compact {
        /// Whose.
        user: UserKey,
    },
    /// Makes the data directory copyable while mail goes on: no compaction begins, a checkpoint is
    /// taken, and log files that it passes leave the log instead of being armed again. The same id
    /// again gives a running backup more time, and is [`Refused::NoSuchBackup`] when that one is over.
    /// [`Event::BackupBegun`].
    BackupBegin {
        /// Chosen by the caller, at random, for each backup anew: one backup at a time.
        id: u64,
        /// It ends by itself after this, in ns; at most [`crate::limits::BACKUP_LEASE_NS_MAX`].
        lease_ns: u64,
    },
    /// The copy is made, or given up. [`Event::BackupEnded`].
    BackupEnd {
        /// As begun.
        id: u64,
    },
    /// Read what is on disk and compare it with its checksums, not faster than
    /// `scrub_bytes_per_s`. Answered when it is done, which for all of a shard may take hours.
    /// [`Event::Scrubbed`].
    Scrub {
        /// What.
        what: ScrubWhat,
    },
    /// Records of a partition from its primary, for the copy here. Answered by
    /// [`Event::Replicated`] when they are on this medium; visible when they are committed.
    Replicate(Box<Replicate>),
    /// This node becomes primary of a partition, in an epoch that is above all before: it has taken
    /// back what the copies have and it lost. The barrier is a record like any other; mail may
    /// follow at once. [`Event::Led`] when it counts.
    Lead {
        /// Which partition.
        partition: PartitionId,
        /// Of the register that names this node.
        epoch: Epoch,
        /// Which copy it has from here on; not [`Copy::Follows`].
        copy: Copy,
        /// The highest pseq that any copy has: refused with [`Refused::Gap`] while this node has
        /// less.
        peers_pseq: u64,
    },
    /// Cuts off a partition's records above `pseq`, which no primary knows and nobody was promised.
    /// Only what does not count can go. Its messages are held first ([`crate::held`]), but for those of
    /// users whose files are damaged. Refused as a hold would be; asked again, it holds nothing
    /// twice. [`Event::Disowned`].
    Disown {
        /// Which partition.
        partition: PartitionId,
        /// The last record that stays.
        pseq: u64,
    },
    /// What a copy that lacks records which count already has of a user becomes what the primary says,
    /// but for the messages it lacks, which are answered. Only while the partition follows, and nothing
    /// of the user waits. [`Event::Refilled`].
    Refill {
        /// Whose.
        user: UserKey,
        /// What the primary says, or a part of it.
        state: Box<UserState>,
    },
    /// Messages that a copy lacks, with the numbers that the primary gave them: ascending, and above
    /// all that the mailbox has here. One that is there is answered as a duplicate; another one in its
    /// place, or below, is refused with [`Refused::Diverged`]. [`Event::Appended`].
    RefillMail {
        /// The messages; `mailbox` is where they are, `folder` and keywords of `flags` are not looked at.
        group: AppendGroup,
        /// Of each recipient.
        given: Vec<Given>,
    },
    /// A copy has all that the primary had at a record: the partition's stream goes on behind it.
    /// Refused while records wait here, or if this node has others up to there. [`Event::Resumed`].
    Resume {
        /// Which partition.
        partition: PartitionId,
        /// In which the primary leads.
        epoch: Epoch,
        /// The record.
        pseq: u64,
        /// The chain after it.
        chain: u32,
    },
    /// Force a checkpoint. [`Event::Checkpointed`].
    Checkpoint,
    /// Take no more appends, answer what is open, checkpoint, mark clean. [`Event::Drained`].
    Drain,
}

/// A stage file of this shard.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct StageId(pub(crate) u64);

/// One message for users of one shard: one body, one group, one flush.
#[derive(Clone, Debug)]
pub struct AppendGroup {
    /// The message, shared by the recipients (and by the groups of other shards).
    pub body: Body,
    /// Envelope sender for the `From_` line; empty for the null sender.
    pub sender: Bytes,
    /// 1 to `RECIPIENTS_MAX`, all of this shard's partitions.
    pub recipients: Vec<Recipient>,
    /// Why it is appended.
    pub origin: Origin,
}

/// Where the bytes of an append are.
#[derive(Clone, Debug)]
pub enum Body {
    /// In memory, below `large_bytes`: goes through the log.
    Small(Arc<PreparedBody>),
    /// In a synced stage file: only a reference goes through the log.
    Staged(Arc<StagedBody>),
}

/// One recipient of a group.
#[derive(Clone, Debug)]
pub struct Recipient {
    /// The account's canonical user.
    pub user: UserKey,
    /// Where it goes if there is no `folder`, or no such one.
    pub mailbox: MailboxId,
    /// The mailbox that the address asks for by name: an exact match, else one that differs in
    /// ASCII case only (mail.md 6.1).
    pub folder: Option<Arc<str>>,
    /// The delivery id, or random under [`Dedupe::No`].
    pub guid: Guid,
    /// Whether the guid is looked up among recent deliveries.
    pub dedupe: Dedupe,
    /// INTERNALDATE (RFC 9051 2.3.2).
    pub internal_date: WallNs,
    /// What it has from the start. None for a delivery.
    pub flags: Flags,
    /// What the user may keep.
    pub quota: QuotaLimits,
}

/// Whether a delivery with a known guid is answered as a duplicate (mail.md 5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dedupe {
    /// The content has a `Received:` field: equal bytes mean a retry.
    Yes,
    /// The caller made the id and looks for it among the guids of the mailbox; what it cannot see
    /// there are appends that were under way when its connection ended. The last
    /// `limits::RECENT_ENTRIES` of these are remembered, in memory only: a restart leaves nothing
    /// under way. Ids of deliveries are not pushed out by them. One that was expunged or moved since is
    /// stored again, as long as the mailbox's index is in memory, as it is when it was just looked at.
    Recent,
    /// Held mail is handed back: as `Yes`, and looked for among the guids of all of the user's
    /// mailboxes, so that no age makes a second copy of what is still there.
    Whole,
    /// Store it whatever came before.
    No,
}

/// Why something is appended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Origin {
    /// By an MTA.
    Delivery,
    /// By a mail client (IMAP APPEND).
    ClientAppend,
}

/// What became of one recipient.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// On stable storage, in its mailbox.
    Stored {
        /// Its number.
        uid: Uid,
        /// Validity of that number.
        uidvalidity: UidValidity,
        /// Its change number.
        modseq: Modseq,
        /// Proof: only `commit` makes one.
        durable: DurableTo,
    },
    /// The same delivery is already on stable storage.
    Duplicate {
        /// The number of the first copy.
        uid: Uid,
        /// Validity of that number.
        uidvalidity: UidValidity,
        /// Proof for the first copy.
        durable: DurableTo,
    },
    /// Not stored.
    Refused(Refused),
}

/// Why not. `Busy`, `DiskFull`, `OverQuota`, `Repairing`, `Damaged`, `WrongShard` and `Stopped` may
/// be otherwise later; the rest is for good.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// Some share of memory or log is used up.
    #[error("busy: {0}")]
    Busy(BusyReason),
    /// Free space or inodes are at the floor.
    #[error("the disk is full")]
    DiskFull,
    /// The user keeps as much as may be, or would with this.
    #[error("over quota: {bytes} bytes in {messages} messages")]
    OverQuota {
        /// Kept now, reserved appends included.
        bytes: u64,
        /// Kept now, reserved appends included.
        messages: u64,
    },
    /// The mailbox does not exist.
    #[error("no such mailbox")]
    NoSuchMailbox,
    /// The user has no mailboxes yet (nothing was ever delivered).
    #[error("no such user in the store")]
    NoSuchUser,
    /// The message does not exist (any more).
    #[error("no such message")]
    NoSuchMessage,
    /// Above `message_bytes_max`; or more than one log frame can hold in one step.
    #[error("the message is larger than the limit")]
    TooLarge,
    /// A mailbox with this name exists.
    #[error("a mailbox of that name exists")]
    Exists,
    /// The mailbox has messages, or some are on their way into it.
    #[error("the mailbox is not empty")]
    NotEmpty,
    /// Not a name for a mailbox.
    #[error("{0}")]
    BadName(NameFault),
    /// Not a keyword ([`is_keyword`]).
    #[error("not a keyword")]
    BadKeyword,
    /// A limit of what one user can have.
    #[error("{0}")]
    Limit(Limit),
    /// The snapshot was closed, or belongs to another shard.
    #[error("no such snapshot")]
    NoSuchSnapshot,
    /// It was never begun, its lease ran out, or the disk became too full for it.
    #[error("no such backup: its lease ran out, or the disk became too full for it")]
    NoSuchBackup,
    /// The caller ended it.
    #[error("cancelled")]
    Cancelled,
    /// The user's files are damaged; deliveries wait until they are repaired.
    #[error("the mailbox needs repair: {0}; see `ringpost repair`")]
    Repairing(Arc<Corrupt>),
    /// The bytes asked for are damaged and are not served.
    #[error("the message is damaged: {0}; see `ringpost repair`")]
    Damaged(Arc<Corrupt>),
    /// The user's partition belongs to another shard.
    #[error("the user belongs to another core")]
    WrongShard,
    /// Another node is, or may be, the partition's primary.
    #[error("another node may be primary: epochs below {promised} are refused")]
    Fenced {
        /// Epochs below this one are refused here.
        promised: Epoch,
    },
    /// Records before these are missing here: send from behind `pseq` on. Or these are so old that
    /// nothing is known of them: a sender with this chain by this number knows that all up to there
    /// is here.
    #[error("records are missing behind number {pseq}")]
    Gap {
        /// The partition's last record here.
        pseq: u64,
        /// The chain after it.
        chain: u32,
    },
    /// This node has other records in their place: common ground is to be found first.
    #[error("the copies hold different records by number {pseq}")]
    Diverged {
        /// A record at or before which they part.
        pseq: u64,
    },
    /// What another node sent is no sequence of records.
    #[error("records from another node are no records: {0}")]
    BadRecords(CorruptReason),
    /// The shard stopped after a fatal error, or is draining.
    #[error("the store is stopping")]
    Stopped,
}

/// What one user cannot have more of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Limit {
    /// `limits::MAILBOXES_MAX`.
    #[error("the user has as many mailboxes as there can be")]
    Mailboxes,
    /// `limits::KEYWORDS_MAX`.
    #[error("the mailbox has as many keywords as there can be")]
    Keywords,
}

/// Which bound was met; a metric label.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[non_exhaustive]
pub enum BusyReason {
    /// No free log space until a checkpoint ends.
    Log,
    /// The table of records that are in the log only is full.
    PendingRecords,
    /// The bodies that wait for the flusher take too much memory.
    Bodies,
    /// The oldest unanswered append waits too long.
    SlowDisk,
    /// Too many open requests.
    Tickets,
    /// Too many requests wait for one user's state.
    UserQueue,
    /// Too many messages are being received.
    Stages,
    /// Too many snapshots are open, or they hold too much memory.
    Snapshots,
    /// Too many watches wait.
    Watches,
    /// A backup runs.
    Backup,
    /// Mail is held for as many users of a partition as can be.
    Held,
}

impl std::fmt::Display for BusyReason {
    /// One lower-case word, as in metrics and in replies.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Log => "log",
            Self::PendingRecords => "pending",
            Self::Bodies => "bodies",
            Self::SlowDisk => "disk",
            Self::Tickets => "tickets",
            Self::UserQueue => "user",
            Self::Stages => "stages",
            Self::Snapshots => "snapshots",
            Self::Watches => "watches",
            Self::Backup => "backup",
            Self::Held => "held",
        })
    }
}
