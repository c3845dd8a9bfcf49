//! Durable frames: their records become visible, then their appends are answered (storage.md 4.1).

use bytes::Bytes;
use ringpost_netproto::id::{MailboxId, Uid};
use smallvec::SmallVec;

use super::Shard;
use super::append::{DecidedKind, Mark, Part};
use crate::format::info::MsgFixed;
use crate::index::count_visible;
use crate::io::Io;
use crate::pending::{Entry, What};
use crate::position::DurableTo;
use crate::request::{Event, Now, Outcome};
use crate::user::State;

impl<I: Io> Shard<I> {
    /// Frames that became durable: their records are published, then their appends answered.
    pub(super) fn publish(&mut self, now: Now) {
        while let Some(parts) = self.log.completed(&mut self.positions) {
            let durable = self.positions.durable_to();
            for part in parts {
                self.publish_part(now, part, durable);
            }
            self.positions.published();
        }
    }

    fn publish_part(&mut self, now: Now, part: Part, durable: DurableTo) {
        for Mark {
            partition,
            pseq,
            chain,
        } in part.marks
        {
            self.partitions_durable
                .advance(partition, pseq, chain, self.epoch);
        }
        self.dedupe_durable = self.dedupe_durable.max(part.dedupe_next);
        for decided in part.done {
            let Some(append) = self.appends.get_mut(part.append) else {
                continue;
            };
            let user = *append
                .users
                .get(decided.recipient)
                .expect("as many as recipients");
            let outcome = match decided.kind {
                DecidedKind::Stored { uid, modseq } => Outcome::Stored {
                    uid,
                    modseq,
                    durable,
                },
                DecidedKind::Duplicate { uid } => Outcome::Duplicate { uid, durable },
            };
            if let Some(place) = append.outcomes.get_mut(decided.recipient) {
                *place = Some(outcome);
            }
            self.publish_entries(user, decided.entries);
        }
        if let Some(append) = self.appends.get_mut(part.append) {
            append.parts -= 1;
        }
        self.finish_if_decided(now, part.append);
    }

    /// Makes durable entries visible to readers and known to the next checkpoint.
    pub(super) fn publish_entries(&mut self, index: usize, entries: SmallVec<[Entry; 1]>) {
        if entries.is_empty() {
            return;
        }
        let user = self.users.get_mut(index);
        if user.pending.is_empty() {
            self.dirty.push(index);
        }
        if let State::Live(live) = &mut user.state {
            for entry in &entries {
                let Some((mailbox, uid, head, cache)) = message_of(entry) else {
                    continue;
                };
                let msg =
                    MsgFixed::read(head).and_then(|f| f.values(crate::format::Reserved::Unknown));
                if let (Ok(msg), Some(tail)) = (msg, live.tail.mailbox_mut(mailbox)) {
                    count_visible(tail, &msg);
                }
                if let Some(index) = &mut live.index {
                    let before = index.bytes();
                    index.push(mailbox, uid, head.clone(), cache.clone());
                    self.index_bytes += index.bytes() - before;
                }
            }
        }
        user.pending.extend(entries);
    }

    pub(super) fn set_outcome(&mut self, index: usize, recipient: usize, outcome: Outcome) {
        let append = self.appends.get_mut(index).expect("an open append");
        if let Some(place) = append.outcomes.get_mut(recipient) {
            *place = Some(outcome);
        }
    }

    /// Answers an append all of whose recipients are settled and none of whose frames is awaited.
    pub(super) fn finish_if_decided(&mut self, now: Now, index: usize) {
        let Some(append) = self.appends.get(index) else {
            return;
        };
        let open = append.outcomes.iter().any(Option::is_none);
        if open || append.parts > 0 || append.steps > 0 {
            return;
        }
        let append = self.appends.remove(index);
        for user in &append.users {
            self.users.unpin(*user);
        }
        let outcomes: Vec<Outcome> = append.outcomes.into_iter().flatten().collect();
        for outcome in &outcomes {
            match outcome {
                Outcome::Stored { .. } => self.metrics.stored += 1,
                Outcome::Duplicate { .. } => self.metrics.duplicates += 1,
                Outcome::Refused(_) => self.metrics.refused += 1,
            }
        }
        self.metrics
            .append_ns
            .record(now.monotonic.since(append.since));
        self.answer(Event::Appended {
            ticket: append.ticket,
            outcomes,
        });
    }
}

/// Mailbox, uid, head and cache of an entry that is a message.
pub(super) fn message_of(entry: &Entry) -> Option<(MailboxId, Uid, &Bytes, &Bytes)> {
    match &entry.what {
        What::Small(mail) => Some((mail.mailbox, mail.uid, &mail.head, &mail.cache)),
        What::Large(mail) => Some((mail.mailbox, mail.uid, &mail.head, &mail.cache)),
        What::Create { .. } | What::Runs(_) | What::Swap(_) => None,
    }
}
