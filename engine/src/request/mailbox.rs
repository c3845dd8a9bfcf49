//! Changes of mailboxes and of the messages in them: what is asked beyond [`super::Request`]'s
//! fields, and the answers (storage.md 8.3, 8.4).

use ringpost_netproto::id::{MailboxId, Modseq, Uid, UidValidity};

use super::{ListEntry, MailboxStatus, More, Refused, UidSet};
use crate::format::info::SpecialUse;
use crate::position::DurableTo;

/// Bounds on what a user may keep, from the user directory. A bound below what is kept refuses new
/// mail and nothing else.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct QuotaLimits {
    /// Sum of RFC822.SIZE over all mailboxes, in bytes; `None`: no bound.
    pub bytes_max: Option<u64>,
    /// Messages in all mailboxes; `None`: no bound.
    pub messages_max: Option<u64>,
}

/// A change of a user's mailboxes. Names are hierarchical, with `/` between the levels, and are
/// checked by [`crate::mailbox_name`]; a parent need not exist.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MailboxChange {
    /// Makes one (RFC 9051 6.3.4). It gets an id and a uidvalidity that the user never had.
    Create {
        /// UTF-8. One `/` at the end is taken off.
        name: String,
        /// RFC 6154.
        special_use: SpecialUse,
    },
    /// Gives another name to a mailbox and to all below it, in one step (RFC 9051 6.3.6). Ids, uids
    /// and uidvalidities stay. A name that exists only as a parent can be renamed too. INBOX cannot.
    Rename {
        /// As it is called.
        from: String,
        /// As it will be called; nobody's name yet.
        to: String,
    },
    /// Removes one with its messages and its subscription, but not what is below it (RFC 9051
    /// 6.3.5). INBOX cannot be removed.
    Delete {
        /// Which.
        mailbox: MailboxId,
    },
    /// The same, if nothing is in it or on its way into it; else [`super::Refused::NotEmpty`].
    DeleteEmpty {
        /// Which.
        mailbox: MailboxId,
    },
    /// RFC 9051 6.3.7.
    Subscribe {
        /// Which.
        mailbox: MailboxId,
    },
    /// RFC 9051 6.3.8.
    Unsubscribe {
        /// Which.
        mailbox: MailboxId,
    },
}

/// A durable change of a mailbox.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MailboxChanged {
    /// The mailbox made or changed; of a rename the one that was named, or 0 if the name was a
    /// parent's alone.
    pub mailbox: MailboxId,
    /// Its uidvalidity; 0 if there is no mailbox.
    pub uidvalidity: UidValidity,
    /// Of the change.
    pub modseq: Modseq,
    /// Proof.
    pub durable: DurableTo,
}

/// A durable change of messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Changed {
    /// The messages changed; messages that were so already are not among them.
    pub uids: UidSet,
    /// The messages left alone because they changed after `unchanged_since` (RFC 7162 3.1.3,
    /// MODIFIED).
    pub modified: UidSet,
    /// Of the last change made; if there was none, the mailbox's.
    pub modseq: Modseq,
    /// Proof.
    pub durable: DurableTo,
}

/// Which messages of a set an expunge takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Which {
    /// Those with `\Deleted` at that moment (RFC 4315 2.1).
    Deleted,
    /// All.
    All,
}

/// Durable copies, or moves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Copied {
    /// Of the target mailbox (RFC 4315 3, COPYUID).
    pub uidvalidity: UidValidity,
    /// Uid there was, uid there is; ascending in both.
    pub pairs: Vec<(Uid, Uid)>,
    /// Messages that could not be read, or for which there was no room, and why. They are as they
    /// were.
    pub failed: Vec<(Uid, Refused)>,
    /// Of the last one; if there was none, of the target mailbox.
    pub modseq: Modseq,
    /// Proof.
    pub durable: DurableTo,
}

/// What happened in a mailbox since a modseq (RFC 7162 3.1.4, 3.2.5), a page ascending by uid.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChangesPage {
    /// The mailbox in numbers, at the time of the page. Its `highest_modseq` on the *first* page is
    /// what to ask from next time.
    pub status: MailboxStatus,
    /// Messages that came or changed after `since`, as they are now, without header cache.
    pub changed: Vec<ListEntry>,
    /// Messages that went after `since`; a superset under [`Horizon::Passed`].
    pub vanished: UidSet,
    /// Whether every expunge since `since` is still known.
    pub horizon: Horizon,
    /// Uids up to here are dealt with: `after` of the next page.
    pub upto: u32,
    /// Whether a next page follows.
    pub more: More,
}

/// Whether expunges since some modseq are all known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Horizon {
    /// Yes: `vanished` names what went since then.
    Known,
    /// Compaction has forgotten some: `vanished` names every uid that was given and has no message
    /// (allowed by RFC 7162 3.2.5.1).
    Passed,
}

/// A mailbox as it was at one moment. It stays readable while others write and expunge; files that
/// it needs are kept until it is closed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// For `SnapshotList`, `SnapshotFetch` and `SnapshotClose`.
    pub id: SnapshotId,
    /// In numbers, at that moment.
    pub status: MailboxStatus,
    /// Its messages: message n of an IMAP session is the n-th of them.
    pub uids: UidSet,
}

/// A snapshot of this shard; never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SnapshotId(pub(crate) u64);

/// Whether a mailbox is subscribed to (RFC 9051 6.3.7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Subscribed {
    /// It is.
    Yes,
    /// It is not.
    No,
}
