//! What a caller asks of a [`Shard`](crate::Shard) and what comes out of it (storage.md 1.3).
//!
//! Every accepted request has a [`Ticket`] and exactly one answering [`Event`]. Nothing here knows
//! of sockets; the daemon maps a [`Refused`] to a protocol's reply in one table.

use std::sync::Arc;

use bytes::Bytes;
use ringpost_netproto::id::{Guid, MailboxId, Modseq, Uid, UidValidity, WallNs};
use ringpost_netproto::placement::UserKey;

use crate::error::{Corrupt, Fatal};
use crate::large::StagedBody;
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
}

/// What a shard can be asked to do.
#[derive(Debug)]
#[non_exhaustive]
pub enum Request {
    /// Make a message durable for users of this shard. Answered by [`Event::Appended`].
    Append(AppendGroup),
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
    /// INBOX unless the detail names another existing mailbox.
    pub mailbox: MailboxId,
    /// The delivery id, or random under [`Dedupe::No`].
    pub guid: Guid,
    /// Whether the guid is looked up among recent deliveries.
    pub dedupe: Dedupe,
    /// INTERNALDATE (RFC 9051 2.3.2).
    pub internal_date: WallNs,
}

/// Whether a delivery with a known guid is answered as a duplicate (mail.md 5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dedupe {
    /// The content has a `Received:` field: equal bytes mean a retry.
    Yes,
    /// Store it whatever came before.
    No,
}

/// Why something is appended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Origin {
    /// By an MTA.
    Delivery,
    /// By a mail client (IMAP APPEND), later.
    ClientAppend,
}

/// What became of one recipient.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// On stable storage, in its mailbox.
    Stored {
        /// Its number.
        uid: Uid,
        /// Its change number.
        modseq: Modseq,
        /// Proof: only `commit` makes one.
        durable: DurableTo,
    },
    /// The same delivery is already on stable storage.
    Duplicate {
        /// The number of the first copy.
        uid: Uid,
        /// Proof for the first copy.
        durable: DurableTo,
    },
    /// Not stored.
    Refused(Refused),
}

/// Why not. All but `TooLarge`, `NoSuchMailbox` and `NoSuchMessage` are temporary.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// Some share of memory or log is used up.
    #[error("busy: {0}")]
    Busy(BusyReason),
    /// Free space or inodes are at the floor.
    #[error("the disk is full")]
    DiskFull,
    /// The mailbox does not exist.
    #[error("no such mailbox")]
    NoSuchMailbox,
    /// The user has no mailboxes yet (nothing was ever delivered).
    #[error("no such user in the store")]
    NoSuchUser,
    /// The message does not exist (any more).
    #[error("no such message")]
    NoSuchMessage,
    /// Above `message_bytes_max`.
    #[error("the message is larger than the limit")]
    TooLarge,
    /// The user's files are damaged; deliveries wait until they are repaired.
    #[error("the mailbox needs repair: {0}")]
    Repairing(Arc<Corrupt>),
    /// The bytes asked for are damaged and are not served.
    #[error("the message is damaged: {0}")]
    Damaged(Arc<Corrupt>),
    /// The user's partition belongs to another shard.
    #[error("the user belongs to another core")]
    WrongShard,
    /// The shard stopped after a fatal error, or is draining.
    #[error("the store is stopping")]
    Stopped,
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
        })
    }
}

/// What comes out of [`Shard::poll`](crate::Shard::poll).
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// An append's end: one outcome per recipient, in their order. `Stored` is durable.
    Appended {
        /// Of the request.
        ticket: Ticket,
        /// As many as there were recipients.
        outcomes: Vec<Outcome>,
    },
    /// A stage file is open.
    StageBegun {
        /// Of the request.
        ticket: Ticket,
        /// Its handle, or why not.
        result: Result<StageId, Refused>,
    },
    /// A piece is written (not durable).
    StageWritten {
        /// Of the request.
        ticket: Ticket,
        /// Or why not.
        result: Result<(), Refused>,
    },
    /// CRLF is put back; the CRC and length of what is staged now.
    StageExpanded {
        /// Of the request.
        ticket: Ticket,
        /// CRC-32 and length of the stored bytes, or why not.
        result: Result<(u32, u64), Refused>,
    },
    /// A stage file is durable and can be appended.
    Staged {
        /// Of the request.
        ticket: Ticket,
        /// The body, or why not.
        result: Result<Arc<StagedBody>, Refused>,
    },
    /// The mailboxes of a user.
    Mailboxes {
        /// Of the request.
        ticket: Ticket,
        /// Ascending by id.
        result: Result<Vec<MailboxStatus>, Refused>,
    },
    /// A page of a mailbox.
    Listed {
        /// Of the request.
        ticket: Ticket,
        /// The page, or why not.
        result: Result<ListPage, Refused>,
    },
    /// A message or a piece of it.
    Fetched {
        /// Of the request.
        ticket: Ticket,
        /// The bytes, or why not.
        result: Result<Fetched, Refused>,
    },
    /// A checkpoint that began at or after the request has ended.
    Checkpointed {
        /// Of the request.
        ticket: Ticket,
    },
    /// Everything is checkpointed and the superblock says so; the shard can be dropped.
    Drained {
        /// Of the request.
        ticket: Ticket,
    },
    /// Something an operator should read in the log; the shard goes on.
    Notice(Notice),
    /// A log or checkpoint operation failed: nothing is acknowledged any more and the process must
    /// end (DESIGN.md decision 11). All open tickets were answered with [`Refused::Stopped`].
    Fatal(Fatal),
}

/// What an operator should read.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Notice {
    /// Damaged bytes were met; only what they held is affected.
    Corrupt(Arc<Corrupt>),
    /// The log ended in a frame that was being written when the node stopped; nobody was promised
    /// what it held.
    TornTail(Arc<Corrupt>),
    /// Free space is near or at the floor.
    DiskLow {
        /// Bytes free on the file system.
        free_bytes: u64,
        /// Below this, new mail is refused.
        floor_bytes: u64,
    },
    /// New mail is being refused or delayed, and why.
    Pressure(BusyReason),
    /// A file with a final name that no index explains; left alone.
    Unreferenced {
        /// Relative to the data directory.
        path: String,
    },
}

/// A mailbox in numbers (RFC 9051 STATUS).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MailboxStatus {
    /// Its id.
    pub mailbox: MailboxId,
    /// Its UTF-8 name.
    pub name: String,
    /// Validity of its uids.
    pub uidvalidity: UidValidity,
    /// Above every uid ever given.
    pub uidnext: u32,
    /// Highest modseq of the mailbox; 0 if nothing happened yet.
    pub highest_modseq: u64,
    /// Live messages.
    pub messages_count: u32,
    /// Sum of RFC822.SIZE in bytes.
    pub bytes: u64,
}

/// A page of messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListPage {
    /// The mailbox in numbers, at the time of the page.
    pub status: MailboxStatus,
    /// Ascending by uid.
    pub entries: Vec<ListEntry>,
    /// Whether messages above the last entry exist.
    pub more: More,
}

/// Whether another page follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum More {
    /// Ask again above the last uid.
    Yes,
    /// This was the end.
    No,
}

/// One message of a list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListEntry {
    /// Number within the mailbox.
    pub uid: Uid,
    /// Last change.
    pub modseq: Modseq,
    /// System flags (storage.md 8.3).
    pub flags: u32,
    /// INTERNALDATE.
    pub internal_date: WallNs,
    /// Octets in the CRLF view (RFC 9051 RFC822.SIZE).
    pub rfc822_size: u32,
    /// Octets as received.
    pub received_size: u64,
    /// Identity of the content.
    pub guid: Guid,
    /// `Date:` in seconds since 1970, if it could be read.
    pub date_s: Option<i64>,
    /// The header cache (`header_cache::decode`).
    pub cache: Bytes,
}

/// Stored bytes of one message and what undoes their quoting (`mbox::Restorer`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fetched {
    /// Stored form from the asked offset on; shared, not copied, where it was pending.
    pub stored: Bytes,
    /// Length of the whole stored form in bytes.
    pub stored_len: u64,
    /// `format::info` flags: line ends, final newline, quoting.
    pub format_flags: u16,
    /// CRC-32 of the whole stored form. Whole reads were checked against it already.
    pub stored_crc: u32,
    /// The message's entry without its header cache.
    pub entry: ListEntry,
}
