//! Durable frames: their records become visible, then their appends are answered (storage.md 4.1).

use bytes::Bytes;
use ringpost_netproto::id::{MailboxId, Uid, UidValidity};
use smallvec::SmallVec;

use super::Shard;
use super::append::{Asker, Decided, DecidedKind, Mark, Part, PartOf, uidvalidity};
use crate::format::Reserved;
use crate::format::info::{MsgFixed, Run, Runs, Seed};
use crate::index::{DeadFile, Index, apply_run};
use crate::io::Io;
use crate::pending::{Entry, What};
use crate::position::DurableTo;
use crate::request::{Event, Now, Outcome};
use crate::tail::{Existence, Usage};
use crate::user::{Lag, Live, State};

impl<I: Io> Shard<I> {
    /// Frames that became durable: their records are published, then their appends answered.
    pub(super) fn publish(&mut self, now: Now) {
        while let Some((end, parts)) = self.log.completed(&mut self.positions) {
            if !self.copies.are_none() {
                self.hold_frame(now, end, parts);
                continue;
            }
            let durable = self.positions.settled(end);
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
            epoch,
            ..
        } in part.marks
        {
            self.partitions_durable
                .advance(partition, pseq, chain, epoch);
        }
        self.dedupe_durable = self.dedupe_durable.max(part.dedupe_next);
        match part.of {
            PartOf::Append(append, done) => self.publish_append(now, append, done, durable),
            PartOf::Change(change, entries) => self.publish_change(change, entries, durable),
            PartOf::Records(_) => unreachable!("there is no copy that they could come from"),
        }
    }

    pub(super) fn publish_append(
        &mut self,
        now: Now,
        index: usize,
        done: SmallVec<[Decided; 1]>,
        durable: DurableTo,
    ) {
        for decided in done {
            let Some(append) = self.appends.get_mut(index) else {
                continue;
            };
            let user = *append
                .users
                .get(decided.recipient)
                .expect("as many as recipients");
            let recipients = &append.group.recipients;
            let mailbox = recipients
                .get(decided.recipient)
                .map_or(MailboxId::INBOX, |recipient| recipient.mailbox);
            let live = self.users.get(user).live();
            let uidvalidity =
                live.map_or(UidValidity::new(0), |live| uidvalidity(&live.tail, mailbox));
            let outcome = match decided.kind {
                DecidedKind::Stored { uid, modseq } => Outcome::Stored {
                    uid,
                    uidvalidity,
                    modseq,
                    durable,
                },
                DecidedKind::Duplicate { uid } => Outcome::Duplicate {
                    uid,
                    uidvalidity,
                    durable,
                },
            };
            if let Some(place) = append.outcomes.get_mut(decided.recipient) {
                *place = Some(outcome);
            }
            self.publish_entries(user, decided.entries);
        }
        if let Some(append) = self.appends.get_mut(index) {
            append.parts -= 1;
        }
        self.finish_if_decided(now, index);
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
        let before_count = user.pending.len();
        if let Some(capture) = &mut user.capture {
            entries.iter().for_each(|entry| capture.published(entry));
        }
        let hash = user.hash;
        let mut folders = Lag::No;
        if let State::Live(live) = &mut user.state {
            let seed = Seed {
                user: hash,
                generation: live.tail.generation,
            };
            let mut dead = Vec::new();
            let bytes = |live: &Live| live.index.as_ref().map_or(0, Index::bytes);
            let before = bytes(live);
            for entry in &entries {
                if show(live, entry, seed, &mut dead) == Lag::Yes {
                    folders = Lag::Yes;
                }
            }
            self.index_bytes = self.index_bytes + bytes(live) - before;
            if !dead.is_empty() {
                user.pending.push(Entry {
                    slot: 0,
                    what: What::Dead(dead.into_boxed_slice()),
                });
                self.pending_records += 1;
            }
        }
        if folders == Lag::Yes {
            user.folders = Lag::Yes;
        }
        let changed = entries
            .iter()
            .any(|entry| matches!(entry.what, What::Runs(_)));
        user.pending.extend(entries);
        let more = user.pending.len() - before_count;
        if let Some(frame) = self.copies.publishing() {
            frame.users.push((index, more));
            user.ahead_count += more;
        }
        if changed {
            self.bury_emptied(index);
            self.weigh(index);
        } else {
            self.sweep(index);
        }
        self.wake_watches(index);
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
        match append.asker {
            Asker::Ticket(ticket) => self.answer(Event::Appended { ticket, outcomes }),
            Asker::Cut(partition) => self.rescued(partition, outcomes),
        }
    }
}

/// Shows readers what an entry says; gives whether it changes mailboxes.
fn show(live: &mut Live, entry: &Entry, seed: Seed, dead: &mut Vec<DeadFile>) -> Lag {
    let mut folders = Lag::No;
    if let What::Create { .. } = &entry.what {
        live.tail.existence = Existence::Created;
    }
    if let What::Runs(runs) = &entry.what {
        for run in Runs::new(runs, seed, entry.slot).reserved(Reserved::Unknown) {
            let run = run.run.expect("encoded by this shard");
            if let Run::Mailbox(_) = &run {
                folders = Lag::Yes;
            }
            apply_run(&mut live.tail, live.index.as_mut(), &run, dead);
        }
    }
    let Some((_, _, head, cache)) = message_of(entry) else {
        return folders;
    };
    let msg = MsgFixed::read(head).and_then(|fixed| fixed.values(Reserved::Unknown));
    let msg = msg.expect("encoded by this shard");
    live.tail.count_in(&msg);
    if let What::Small(mail) = &entry.what {
        live.tail.arrived(mail.segment);
    }
    live.tail.reserved = live.tail.reserved.minus(Usage::of(msg.rfc822_size));
    if let Some(index) = &mut live.index {
        index.push(&msg, head.clone(), cache.clone());
    }
    folders
}

/// Mailbox, uid, head and cache of an entry that is a message.
pub(super) fn message_of(entry: &Entry) -> Option<(MailboxId, Uid, &Bytes, &Bytes)> {
    match &entry.what {
        What::Small(mail) => Some((mail.mailbox, mail.uid, &mail.head, &mail.cache)),
        What::Large(mail) => Some((mail.mailbox, mail.uid, &mail.head, &mail.cache)),
        What::Create { .. } | What::Runs(_) | What::Swap(_) | What::Dead(_) => None,
    }
}
