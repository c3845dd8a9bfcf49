//! Numbers of entries that do not count yet: taken when they are logged or found, given back when they
//! become void, in the opposite order.

use crate::format::Reserved;
use crate::format::info::{FIRST_SLOT, MailboxOp, Msg, MsgFixed, Run, Runs, Seed};
use crate::pending::{Entry, What};
use crate::tail::{Existence, Stand, Tail, Usage};

impl Tail {
    /// Takes the numbers of an entry that does not count yet; the opposite is [`Self::give_back`].
    pub(in crate::shard) fn reserve_entry(&mut self, entry: &Entry, seed: Seed) {
        self.next_slot = self.next_slot.max(entry.slot_end());
        if let What::Create { .. } = &entry.what {
            self.existence = Existence::Created;
        }
        if let What::Runs(runs) = &entry.what {
            for run in Runs::new(runs, seed, entry.slot).reserved(Reserved::Unknown) {
                self.reserve_run(run.run.as_ref().ok());
            }
        }
        if let Some(msg) = msg_of(entry) {
            self.take_place(&msg);
            self.reserved = self.reserved.plus(Usage::of(msg.rfc822_size));
        }
    }

    fn reserve_run(&mut self, run: Option<&Run<'_>>) {
        match run {
            Some(Run::Mailbox(run)) => {
                self.modseq = self.modseq.max(run.modseq.value());
                self.uidvalidity_max = self.uidvalidity_max.max(run.uidvalidity.value());
                match (run.op, self.mailbox_mut(run.mailbox)) {
                    (MailboxOp::Create, None) => self.add_mailbox(run, Stand::Coming),
                    (MailboxOp::Delete, Some(mailbox)) => mailbox.stand = Stand::Leaving,
                    _ => {}
                }
            }
            Some(Run::Keyword(word)) => {
                self.modseq = self.modseq.max(word.modseq.value());
                if let Some(mailbox) = self.mailbox_mut(word.mailbox)
                    && mailbox.keywords.len() == usize::from(word.bit)
                {
                    mailbox.keywords.push(std::sync::Arc::from(word.name));
                }
            }
            Some(Run::Change(change)) => self.modseq = self.modseq.max(change.modseq.value()),
            _ => {}
        }
    }

    /// Gives the numbers of an entry back that became void: the last one that was reserved.
    pub(in crate::shard) fn give_back(&mut self, entry: &Entry, seed: Seed) {
        if entry.slot > 0 {
            self.next_slot = entry.slot;
        }
        match &entry.what {
            What::Create { .. } => {
                self.existence = Existence::Absent;
                self.next_slot = FIRST_SLOT;
            }
            What::Runs(runs) => {
                let all = Runs::new(runs, seed, entry.slot).reserved(Reserved::Unknown);
                for run in all.filter_map(|run| run.run.ok()) {
                    match run {
                        Run::Mailbox(run) if run.op == MailboxOp::Create => {
                            self.mailboxes.retain(|tail| tail.mailbox != run.mailbox);
                        }
                        Run::Mailbox(run) if run.op == MailboxOp::Delete => {
                            if let Some(mailbox) = self.mailbox_mut(run.mailbox) {
                                mailbox.stand = Stand::There;
                            }
                        }
                        Run::Keyword(word) => {
                            if let Some(mailbox) = self.mailbox_mut(word.mailbox) {
                                mailbox.keywords.truncate(usize::from(word.bit));
                            }
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        let Some(msg) = msg_of(entry) else { return };
        self.reserved = self.reserved.minus(Usage::of(msg.rfc822_size));
        let shared = matches!(entry.what, What::Small(_));
        if shared {
            self.arrived(msg.segment);
        }
        if let Some(mailbox) = self.mailbox_mut(msg.mailbox) {
            mailbox.uidnext = msg.uid.value();
            if shared {
                (mailbox.segment, mailbox.segment_end) = (msg.segment, msg.offset);
            }
        }
    }
}

/// The message of an entry, if it is one.
pub(super) fn msg_of(entry: &Entry) -> Option<Msg> {
    let (_, _, head, _) = crate::shard::publish::message_of(entry)?;
    let fixed = MsgFixed::read(head).ok()?;
    fixed.values(Reserved::Unknown).ok()
}
