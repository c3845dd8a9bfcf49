//! A copy that lacks what counts already is brought up by other means than the partition's stream
//! (cluster.md 6.3): user by user, then the stream goes on from a place that the primary names.
//!
//! 1. The copy follows, and what waits there is cut off.
//! 2. For each user the primary's `Mailboxes`, and each mailbox's `Changes` since 0, or since where an
//!    earlier pass ended, go to the copy by `Refill`; messages that it names by `RefillMail`, and then
//!    the page again. A pass that was interrupted tells nothing: messages come by uid, not by modseq.
//! 3. When a whole pass has found nothing, and the primary's last record was the same before and behind
//!    it, `Resume` with that record.
//!
//! What is written so has no number in the stream and counts with its frame. So nothing of it may stand
//! behind records of its partition that wait: it is refused while there are any, and a restart takes it
//! for the word that there were none.

use bytes::Bytes;
use ringpost_netproto::id::{MailboxId, Modseq, PartitionId};
use ringpost_netproto::placement::UserKey;
use smallvec::SmallVec;

use super::Shard;
use super::append::{Asker, Special};
use crate::format::info::FIRST_SLOT;
use crate::format::record::Group;
use crate::held;
use crate::index;
use crate::io::Io;
use crate::pending::{Entry, What};
use crate::request::{
    AppendGroup, BusyReason, Dedupe, Given, Now, QuotaLimits, Recipient, Refused, Ticket,
};
use crate::tail::{Existence, is_given};
use crate::user::Live;

/// The numbers of each recipient's message.
pub(super) type Givens = SmallVec<[Given; 1]>;

/// What a message that a copy is brought meets there.
pub(super) enum Meets {
    /// Nothing: it is stored.
    Nothing,
    /// Itself.
    Itself,
}

impl<I: Io> Shard<I> {
    /// Whether a user may be refilled: a held box is this node's alone.
    pub(super) fn takes_refills_of(&self, user: &UserKey) -> Result<(), Refused> {
        if held::is_box(user.name()) {
            return Err(Refused::NoSuchUser);
        }
        self.takes_refills(user.partition())
    }

    /// Whether users of a partition may be refilled: it follows, and nothing waits.
    pub(super) fn takes_refills(&self, partition: PartitionId) -> Result<(), Refused> {
        let last = self.partitions.last(partition);
        let is_flushed = last == self.partitions_durable.last(partition);
        if !(is_flushed && self.copies.is_empty_follower(partition)) {
            return Err(Refused::Fenced {
                promised: self.partitions.promised(partition),
            });
        }
        Ok(())
    }

    pub(super) fn submit_refill_mail(
        &mut self,
        now: Now,
        ticket: Ticket,
        mut group: AppendGroup,
        given: Vec<Given>,
    ) -> Result<(), Refused> {
        if given.len() != group.recipients.len() {
            return Err(Refused::NoSuchMessage);
        }
        for recipient in &mut group.recipients {
            self.takes_refills_of(&recipient.user)?;
            recipient.folder = None;
            recipient.flags.keywords.clear();
            recipient.dedupe = Dedupe::Yes;
            recipient.quota = QuotaLimits::default();
        }
        let special = Special::Given(given.into_iter().collect());
        self.submit_group(now, Asker::Ticket(ticket), group, special)
    }

    /// The record that makes an absent user, without mailboxes.
    pub(super) fn encode_user(
        &mut self,
        index: usize,
        name: &[u8],
        modseq: Modseq,
        entries: &mut SmallVec<[Entry; 1]>,
    ) {
        let live = self.users.get_mut(index).live_mut();
        let Some(live) = live.filter(|live| live.tail.existence == Existence::Absent) else {
            return;
        };
        live.tail.existence = Existence::Coming;
        assert_eq!(
            live.tail.next_slot, FIRST_SLOT,
            "an absent user has no runs"
        );
        let head = self.head(index, MailboxId::new(0), modseq, 0, Group::GoesOn);
        self.record(&head, |encoder, head| encoder.user_create(head, name));
        let lsn = self.log.open_batch_mut().expect("room was made").lsn();
        let name = Bytes::copy_from_slice(name);
        let what = What::Create { name, lsn };
        entries.push(Entry { slot: 0, what });
    }
}

/// What a message meets that a copy is brought; refused if its place is taken, or lies below others.
pub(super) fn meet(live: &Live, recipient: &Recipient, given: Given) -> Result<Meets, Refused> {
    let tail = live.tail.mailbox(recipient.mailbox);
    let tail = tail.ok_or(Refused::NoSuchMailbox)?;
    let Some(all) = &live.index else {
        // It could not be read.
        return Err(Refused::Busy(BusyReason::SlowDisk));
    };
    let sane = is_given(given.uid.value()) && given.modseq.value() < u64::MAX >> 1;
    if !sane {
        return Err(Refused::Diverged { pseq: 0 });
    }
    let known = index::find(all.mailbox(recipient.mailbox), given.uid);
    match known.map(index::IndexEntry::msg) {
        Some(Ok(msg)) if msg.guid == recipient.guid => Ok(Meets::Itself),
        None if given.uid.value() >= tail.uidnext => Ok(Meets::Nothing),
        // On its way.
        None if given.uid.value() >= tail.uidnext_visible => {
            Err(Refused::Busy(BusyReason::SlowDisk))
        }
        _ => Err(Refused::Diverged { pseq: 0 }),
    }
}
