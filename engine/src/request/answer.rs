//! What comes out of a [`Shard`](crate::Shard): answers, and what an operator should read.

use std::sync::Arc;

use bytes::Bytes;
use ringpost_netproto::id::{Guid, MailboxId, Modseq, Uid, UidValidity, WallNs};

use super::BusyReason;
use super::{
    Changed, ChangesPage, Copied, Damage, Disowned, Led, MailboxChanged, Outcome, Refilled,
    Refused, Replicated, Scrubbed, SealedItem, Snapshot, StageId, Subscribed, Ticket,
};
use crate::error::{Corrupt, Fatal};
use crate::format::info::SpecialUse;
use crate::io::RelPath;
use crate::large::StagedBody;
use crate::position::Lsn;

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
    /// The copy of another node's file is durable.
    StageSealed {
        /// Of the request.
        ticket: Ticket,
        /// Its name for [`super::Shipped::file`], until [`super::Request::StageDrop`], or why not.
        result: Result<RelPath, Refused>,
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
    /// Flags are changed, or found to be so already.
    FlagsStored {
        /// Of the request.
        ticket: Ticket,
        /// Durable, or why not.
        result: Result<Changed, Refused>,
    },
    /// Messages are gone.
    Expunged {
        /// Of the request.
        ticket: Ticket,
        /// Durable, or why not.
        result: Result<Changed, Refused>,
    },
    /// Messages are copied or moved.
    Copied {
        /// Of the request.
        ticket: Ticket,
        /// Durable, or why none was.
        result: Result<Copied, Refused>,
    },
    /// A mailbox is made or changed.
    MailboxChanged {
        /// Of the request.
        ticket: Ticket,
        /// Durable, or why not.
        result: Result<MailboxChanged, Refused>,
    },
    /// What happened in a mailbox.
    Changes {
        /// Of the request.
        ticket: Ticket,
        /// A page, or why not.
        result: Result<ChangesPage, Refused>,
    },
    /// The end of a watch: something changed.
    Woken {
        /// Of the request.
        ticket: Ticket,
        /// The highest modseq by now; [`Refused::Cancelled`] after an `Unwatch`.
        result: Result<Modseq, Refused>,
    },
    /// A snapshot is taken.
    SnapshotOpened {
        /// Of the request.
        ticket: Ticket,
        /// What it holds, or why not.
        result: Result<Snapshot, Refused>,
    },
    /// A user's files are compacted; what was dead in them is unlinked when nobody reads it.
    Compacted {
        /// Of the request.
        ticket: Ticket,
        /// What it did, or why not.
        result: Result<Compacted, Refused>,
    },
    /// The data directory can be copied, or a backup that can be copied got more time.
    BackupBegun {
        /// Of the request.
        ticket: Ticket,
        /// Where the log ends by now: what is in any file until now is below. Or why not.
        result: Result<Lsn, Refused>,
    },
    /// A backup is over: until now it held, or [`Refused::NoSuchBackup`].
    BackupEnded {
        /// Of the request.
        ticket: Ticket,
        /// Bytes of log files that were held for it.
        result: Result<u64, Refused>,
    },
    /// A scrub that was asked for is done.
    Scrubbed {
        /// Of the request.
        ticket: Ticket,
        /// What it did, or why not.
        result: Result<Scrubbed, Refused>,
    },
    /// A checkpoint that began at or after the request has ended.
    Checkpointed {
        /// Of the request.
        ticket: Ticket,
        /// [`Refused::Stopped`] after a fatal error: it may have ended or not.
        result: Result<(), Refused>,
    },
    /// Everything is checkpointed and the superblock says so; the shard can be dropped.
    Drained {
        /// Of the request.
        ticket: Ticket,
        /// [`Refused::Stopped`] after a fatal error: the next start recovers.
        result: Result<(), Refused>,
    },
    /// A frame with records of partitions that have a stream went to the medium: they go to the
    /// copies while it is written.
    Sealed {
        /// Of the log file; with `upto` it names the frame.
        salt: u64,
        /// What [`crate::Shard::copied`] is told when a peer has these and all before.
        upto: Lsn,
        /// One for each partition.
        items: Vec<SealedItem>,
    },
    /// Records that no copy confirmed yet, for the stream that their partition just got. Confirmed
    /// by [`crate::Shard::copied_to`].
    ShippedAgain {
        /// What was one frame.
        item: SealedItem,
    },
    /// A copy has records, or does not take them.
    Replicated {
        /// Of the request.
        ticket: Ticket,
        /// On this medium, or why not.
        result: Result<Replicated, Refused>,
    },
    /// This node leads a partition.
    Led {
        /// Of the request.
        ticket: Ticket,
        /// The barrier, or why not.
        result: Result<Led, Refused>,
    },
    /// Records are cut off.
    Disowned {
        /// Of the request.
        ticket: Ticket,
        /// What was, or why nothing.
        result: Result<Disowned, Refused>,
    },
    /// A copy has what its primary said of a user.
    Refilled {
        /// Of the request.
        ticket: Ticket,
        /// What it lacks still, or why nothing was done.
        result: Result<Refilled, Refused>,
    },
    /// A partition's stream goes on behind a record.
    Resumed {
        /// Of the request.
        ticket: Ticket,
        /// Or why not.
        result: Result<(), Refused>,
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
    /// A scrub found damage that was not known. It is not served from now on.
    Damaged(Arc<Damage>),
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
    /// A backup that runs is given up, or the log is not archived any further for now: what is copied
    /// meanwhile has a hole.
    BackupGivenUp {
        /// Why.
        reason: &'static str,
    },
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
    /// Highest modseq of the mailbox's messages, expunges included; 0 if nothing happened yet.
    pub highest_modseq: u64,
    /// Live messages.
    pub messages_count: u32,
    /// Of them without `\Seen`.
    pub unseen_count: u32,
    /// Of them with `\Deleted`.
    pub deleted_count: u32,
    /// Sum of RFC822.SIZE in bytes.
    pub bytes: u64,
    /// RFC 6154.
    pub special_use: SpecialUse,
    /// RFC 9051 6.3.7.
    pub subscribed: Subscribed,
    /// Keyword n is bit n of [`ListEntry::keywords`].
    pub keywords: Vec<Arc<str>>,
}

/// What a compaction did; zeros if there was nothing to do.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Compacted {
    /// Bytes of messages copied into new segments.
    pub copied_bytes: u64,
    /// Bytes by which the files became smaller.
    pub freed_bytes: u64,
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
    /// Keywords: bit n stands for [`MailboxStatus::keywords`] n.
    pub keywords: u64,
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
    /// Of a message in a held box: the mailbox that it is for; else 0.
    pub held_for: MailboxId,
    /// What the `From_` line says of the sender, if all of a message was read: empty for the null
    /// sender.
    pub sender: Bytes,
}
