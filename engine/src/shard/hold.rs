//! Mail for partitions that another node leads, into their held boxes ([`crate::held`]).
//!
//! A box is a user like any other but for one thing: its records have no number in the partition's
//! stream ([`crate::user::User::is_local`]). So they go to no other node, wait for none, and stay when
//! the partition's own records are cut off.

use std::sync::Arc;

use ringpost_netproto::id::{MailboxId, Modseq, UidValidity};
use smallvec::SmallVec;

use super::Shard;
use super::append::{Asker, Special, seconds};
use super::encode::{RunsAt, next_modseq};
use crate::format::info::{MAILBOX_NAME_BYTES_MAX, Mailbox, MailboxOp, SLOT, Seed, SpecialUse};
use crate::format::record::{Group, RecordType, runs_len};
use crate::held;
use crate::io::Io;
use crate::limits::MAILBOXES_MAX;
use crate::pending::Entry;
use crate::request::{AppendGroup, Dedupe, Now, QuotaLimits, Refused};
use crate::tail::{MailboxTail, Stand, Tail};

/// Of a recipient whose mailbox in the box is made with its first message.
pub(super) const UNMADE: MailboxId = MailboxId::new(0);

/// Of each recipient of a held group, the mailbox that its message is for.
pub(super) type HeldFor = SmallVec<[MailboxId; 1]>;

/// Bytes of the record that makes a mailbox, at most.
pub(super) const MAILBOX_NEED: usize =
    runs_len(SLOT + MAILBOX_NAME_BYTES_MAX.next_multiple_of(SLOT));

impl<I: Io> Shard<I> {
    /// Takes a group whose recipients' partitions are led elsewhere.
    pub(super) fn submit_hold(
        &mut self,
        now: Now,
        asker: Asker,
        mut group: AppendGroup,
    ) -> Result<(), Refused> {
        let mut held_for = HeldFor::new();
        for recipient in &mut group.recipients {
            if !self.identity.owns(&recipient.user) {
                return Err(Refused::WrongShard);
            }
            let user = recipient.user.name();
            let folder = recipient.folder.as_deref();
            // A folder of no possible name would not be found there either.
            let name = held::mailbox_of(user, folder).or_else(|_| held::mailbox_of(user, None));
            held_for.push(recipient.mailbox);
            recipient.folder = Some(Arc::from(name.map_err(Refused::BadName)?));
            recipient.mailbox = UNMADE;
            recipient.user = self.held_box(recipient.user.partition());
            recipient.dedupe = Dedupe::Yes;
            recipient.quota = QuotaLimits::default();
        }
        self.submit_group(now, asker, group, Special::Held(held_for))
    }

    /// The mailbox of a held box that a recipient's mail goes to, made if it is not there.
    pub(super) fn encode_held_mailbox(
        &mut self,
        now: Now,
        (append, recipient): (usize, usize),
        user: usize,
        entries: &mut SmallVec<[Entry; 1]>,
    ) -> MailboxId {
        let recipients = &self.appends.get(append).expect("an open append").group;
        let recipients = &recipients.recipients;
        let found = recipients.get(recipient).expect("chosen among them");
        let name = found.folder.clone().expect("a held group names them");
        let mailbox = self.make_held_mailbox(now, user, &name, entries);
        let append = self.appends.get_mut(append).expect("an open append");
        if let Some(recipient) = append.group.recipients.get_mut(recipient) {
            recipient.mailbox = mailbox;
        }
        mailbox
    }

    fn make_held_mailbox(
        &mut self,
        now: Now,
        index: usize,
        name: &str,
        entries: &mut SmallVec<[Entry; 1]>,
    ) -> MailboxId {
        let lsn = self.log.open_batch_mut().expect("room was made").lsn();
        let epoch = self.epoch_of(self.users.get(index).partition);
        let user = self.users.get_mut(index);
        let hash = user.hash;
        let tail = &mut user.live_mut().expect("decided: it is there").tail;
        if let Some(known) = mailbox_named(tail, name) {
            return known.mailbox;
        }
        let (slot, generation) = (tail.next_slot, tail.generation);
        let modseq: Modseq = next_modseq(tail, epoch);
        let uidvalidity = (tail.uidvalidity_max + 1).max(seconds(now.wall));
        let run = Mailbox {
            op: MailboxOp::Create,
            special_use: SpecialUse::None,
            mailbox: MailboxId::new(uidvalidity),
            uidvalidity: UidValidity::new(uidvalidity),
            modseq,
            lsn,
            uidnext: 1,
            highest_modseq: 0,
            time: now.wall,
            name,
        };
        let mut runs = Vec::new();
        let seed = Seed {
            user: hash,
            generation,
        };
        run.encode(seed, slot, &mut runs);
        tail.next_slot += u32::try_from(run.encoded_len() / SLOT).expect("at most 17");
        tail.add_mailbox(&run, Stand::Coming);
        let at = RunsAt {
            user: index,
            mailbox: run.mailbox,
            kind: RecordType::Mailbox,
            slot,
            modseq,
            group: Group::GoesOn,
        };
        self.encode_runs(&at, runs, entries);
        at.mailbox
    }
}

/// The mailbox of exactly this name that takes mail.
pub(super) fn mailbox_named<'a>(tail: &'a Tail, name: &str) -> Option<&'a MailboxTail> {
    let mut taking = tail.mailboxes.iter().filter(|tail| tail.takes_mail());
    taking.find(|tail| *tail.name == *name)
}

/// Whether one more mailbox can be made, behind so many recipients of the same group.
pub(super) fn has_room(tail: &Tail, earlier_count: usize) -> bool {
    tail.mailboxes.len() + earlier_count < MAILBOXES_MAX
}
