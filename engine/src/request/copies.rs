//! What a shard and the replication above it say to each other (storage.md 1.5, cluster.md 4 and 5):
//! which copy a partition has, the records that go to it, what came from another node.

use bytes::Bytes;
use ringpost_netproto::id::{Epoch, MailboxId, Modseq, PartitionId, Uid};

use super::{ListEntry, MailboxStatus, More, UidSet};
use crate::io::RelPath;
use crate::position::{DurableTo, FlushedTo};

/// One secondary as a shard sees it: an ordered stream of records that the caller carries there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct StreamId(u32);

impl StreamId {
    /// The caller's number.
    pub const fn new(value: u32) -> Self {
        Self(value)
    }

    /// The plain number.
    pub const fn value(self) -> u32 {
        self.0
    }
}

/// Whose records of a partition count, and from when on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Copy {
    /// This node is primary and counts alone: one copy was asked for, or the policy says so while
    /// the other is away.
    None,
    /// This node is primary; a record counts when it is here and was confirmed by this stream.
    Stream(StreamId),
    /// Another node is primary: records come by [`super::Request::Replicate`], and count when it
    /// says so. No uid is given here.
    Follows,
}

/// Records of one partition, contiguous, in the order of their pseq.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Replicate {
    /// Which partition.
    pub partition: PartitionId,
    /// In which the sender is primary. Records may be of lower ones.
    pub epoch: Epoch,
    /// Of the record before the first; 0 if there is none. With no records it is the sender's last.
    pub prev_pseq: u64,
    /// The partition's chain after that record; 0 if there is none.
    pub prev_chain: u32,
    /// At most what one frame holds; empty to say `commit_pseq` alone.
    pub items: Vec<Shipped>,
    /// Up to here the sender's records are on all copies, and its readers see them.
    pub commit_pseq: u64,
}

/// One record on its way to another node: whole, in replicated form (FORMAT.md, "Chain"), but with
/// its chain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shipped {
    /// The record.
    pub record: Bytes,
    /// The BODY record that a DELIVER refers to. DELIVERs of one message share its memory.
    pub body: Option<Bytes>,
    /// Of a large message, the file with its bytes. Out of [`super::Event::Sealed`] it is this node's:
    /// prefix (of `skip` bytes), stored form, LF; it stays there as long as the record waits. In a
    /// [`super::Request::Replicate`] it is the receiver's, from [`super::Event::StageSealed`]; a
    /// record that is there already needs none.
    pub file: Option<RelPath>,
}

/// What a frame holds for one partition with a stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SealedItem {
    /// Where it goes.
    pub stream: StreamId,
    /// What goes.
    pub records: Replicate,
}

/// A copy has records on its medium; they are not visible before they are committed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Replicated {
    /// The partition's last record here.
    pub pseq: u64,
    /// The chain after it.
    pub chain: u32,
    /// Proof that all of it is on this node's medium.
    pub flushed: FlushedTo,
}

/// Numbers that a primary gave to a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Given {
    /// Its number.
    pub uid: Uid,
    /// Its last change.
    pub modseq: Modseq,
    /// Bits of the mailbox's keywords.
    pub keywords: u64,
}

/// What a primary says of a user (storage.md 8.3): all mailboxes, and of one of them what changed since
/// an earlier pass ended, or since 0: a page of [`super::Request::Changes`] after the other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UserState {
    /// Of the primary; below what is promised here it is refused.
    pub epoch: Epoch,
    /// All of them; of `mailbox` as of the page.
    pub mailboxes: Vec<MailboxStatus>,
    /// Of which mailbox the rest is.
    pub mailbox: MailboxId,
    /// Messages that came or changed, as they are now.
    pub changed: Vec<ListEntry>,
    /// Messages that went.
    pub vanished: UidSet,
    /// Whether another page follows: only behind the last one the mailbox gets the primary's next uid.
    pub more: More,
}

/// A copy has what a primary said of a user, but for some messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refilled {
    /// Those of `changed` that are not here; bring them, and say the same again.
    pub missing: Vec<Uid>,
    /// Whether more was to be done than one frame holds; say the same again.
    pub more: More,
    /// Proof of the rest.
    pub durable: DurableTo,
}

/// A node leads a partition: its barrier is on all copies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Led {
    /// Of the EPOCH record.
    pub pseq: u64,
    /// The chain after it.
    pub chain: u32,
}

/// Records were cut off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Disowned {
    /// The partition's last record now.
    pub pseq: u64,
    /// The chain after it.
    pub chain: u32,
    /// Records that are void.
    pub records_count: u64,
}

/// Where a partition stands on this node's medium: for common ground with another (cluster.md 5.3).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartitionTail {
    /// Lower epochs are refused.
    pub promised: Epoch,
    /// The last record that counts; 0 if there is none.
    pub shown_pseq: u64,
    /// The chain after it.
    pub shown_chain: u32,
    /// What does not count yet, as it would be shipped: what was one frame together.
    pub waiting: Vec<Replicate>,
}
