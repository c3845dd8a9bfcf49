//! Who leads a partition: a barrier begins an epoch, a fence ends one (cluster.md 5.2, 6.1).

use ringpost_netproto::id::{Epoch, PartitionId};
use smallvec::SmallVec;

use super::{Answers, Cutting, Entries, Held, Job, Led, Recorded, Records};
use crate::format::record::{Head, RECORD_HEADER_BYTES, RecordType};
use crate::io::Io;
use crate::pending::Entry;
use crate::request::{Copy, Event, Now, Outcome, Refused, Ticket};
use crate::shard::Shard;
use crate::shard::append::{Decided, Mark, Part, PartOf};

/// Somebody says that this node leads.
pub(super) struct Wish {
    ticket: Ticket,
    epoch: Epoch,
    pub(super) copy: Copy,
    peers_pseq: u64,
}

impl<I: Io> Shard<I> {
    pub(in crate::shard) fn submit_lead(
        &mut self,
        ticket: Ticket,
        partition: PartitionId,
        (epoch, copy, peers_pseq): (Epoch, Copy, u64),
    ) -> Result<(), Refused> {
        self.accepts_mail()?;
        if !self.identity.owns_partition(partition) {
            return Err(Refused::WrongShard);
        }
        let wish = Wish {
            ticket,
            epoch,
            copy,
            peers_pseq,
        };
        let place = self.begin_place(partition);
        place.jobs.push_back(Job::Lead(wish));
        self.copies.turns.push_back(partition);
        Ok(())
    }

    /// Begins an epoch; `false` if there is no room now.
    pub(super) fn try_lead(&mut self, now: Now, partition: PartitionId, wish: &Wish) -> bool {
        let ticket = wish.ticket;
        let promised = self.partitions.promised(partition);
        let begun = self.partitions.epoch_last(partition);
        let (last, chain_before) = self.partitions.last(partition);
        let refused = if wish.epoch < promised || wish.epoch <= begun || wish.copy == Copy::Follows
        {
            Some(Refused::Fenced { promised })
        } else if wish.peers_pseq > last {
            Some(Refused::Gap {
                pseq: last,
                chain: chain_before,
            })
        } else {
            None
        };
        if let Some(refused) = refused {
            let result = Err(refused);
            self.answer(Event::Led { ticket, result });
            return true;
        }
        if self.log.room(RECORD_HEADER_BYTES).is_none() {
            return false;
        }
        let head = Head::of_partition(partition, wish.epoch, last + 1, chain_before);
        let batch = self.log.open_batch_mut().expect("room was made");
        let placed = batch.encode(|encoder| encoder.of_partition(&head, RecordType::Epoch));
        let mark = Mark {
            partition,
            pseq: head.pseq,
            chain: placed.chain,
            chain_before,
            epoch: wish.epoch,
        };
        self.partitions
            .advance(partition, mark.pseq, mark.chain, mark.epoch);
        self.partitions.set_leads(partition, Some(wish.epoch));
        let part = Part {
            of: PartOf::Records(Records {
                answers: Answers::Nobody,
                promise: None,
                all: vec![(mark, Recorded::Barrier(Some(ticket)))],
            }),
            marks: SmallVec::new(),
            dedupe_next: self.window.next(),
        };
        let batch = self.log.open_batch_mut().expect("room was made");
        batch.attach(part, 0);
        let place = self.copies.place(partition);
        place.led = Led::Here;
        place.leading.push(ticket);
        // What it has and no copy confirmed goes out in the new epoch.
        let gate = self.copies.gate(partition);
        self.set_copy(now, partition, wish.copy);
        if self.copies.gate(partition) == gate {
            self.ship_again(partition);
        }
        true
    }

    /// This node leads no more: who waits for an answer gets none, and what they brought waits for the
    /// new primary's word.
    pub(super) fn fence(&mut self, now: Now, partition: PartitionId) {
        self.partitions.set_leads(partition, None);
        let place = self.copies.place(partition);
        place.led = Led::NotYet;
        let held = std::mem::take(&mut place.held);
        for mut piece in held {
            piece.of = match piece.of {
                Held::Append(append, done) => Held::Entries(self.fence_append(now, append, done)),
                Held::Change(change, entries) => Held::Entries(self.fence_change(change, entries)),
                Held::Barrier(ticket) => self.fence_barrier(partition, ticket),
                entries @ Held::Entries(_) => entries,
            };
            self.copies.place(partition).held.push_back(piece);
        }
    }

    /// Takes a barrier from who asked for it: the record stays.
    pub(super) fn fence_barrier(&mut self, partition: PartitionId, ticket: Option<Ticket>) -> Held {
        if let Some(ticket) = ticket {
            let promised = self.partitions.promised(partition);
            let result = Err(Refused::Fenced { promised });
            self.answer(Event::Led { ticket, result });
        }
        Held::Barrier(None)
    }

    /// Takes from an append what was encoded for it.
    pub(super) fn fence_append(
        &mut self,
        now: Now,
        index: usize,
        done: SmallVec<[Decided; 1]>,
    ) -> Entries {
        let mut all = Entries::new();
        for decided in done {
            let Some(append) = self.appends.get(index) else {
                continue;
            };
            let user = append.users.get(decided.recipient).copied();
            let user = user.expect("as many as recipients");
            let promised = self.partitions.promised(self.users.get(user).partition);
            let fenced = Outcome::Refused(Refused::Fenced { promised });
            self.set_outcome(index, decided.recipient, fenced);
            self.pin_all(user, decided.entries, &mut all);
        }
        if let Some(append) = self.appends.get_mut(index) {
            append.parts -= 1;
        }
        self.finish_if_decided(now, index);
        all
    }

    /// Takes from a change what was encoded for it.
    pub(super) fn fence_change(&mut self, change: usize, entries: SmallVec<[Entry; 1]>) -> Entries {
        let mut all = Entries::new();
        if let Some(user) = self.part_of_change_ends(change, &entries) {
            self.pin_all(user, entries, &mut all);
            let promised = self.partitions.promised(self.users.get(user).partition);
            self.refuse_change_if_idle(change, Refused::Fenced { promised });
        }
        all
    }

    fn pin_all(&mut self, user: usize, entries: SmallVec<[Entry; 1]>, all: &mut Entries) {
        for entry in entries {
            self.users.get_mut(user).pins += 1;
            all.push((user, entry));
        }
    }

    /// After a fatal error.
    pub(super) fn refuse_jobs(&mut self) {
        let places = std::mem::take(&mut self.copies.places);
        for mut place in places.into_values() {
            for job in place.jobs.drain(..) {
                let result = Refused::Stopped;
                match job {
                    Job::Replicate(_) => {}
                    Job::Lead(wish) => {
                        let ticket = wish.ticket;
                        let result = Err(result);
                        self.answer(Event::Led { ticket, result });
                    }
                    Job::Resume(to) => {
                        let (ticket, result) = (to.ticket, Err(result));
                        self.answer(Event::Resumed { ticket, result });
                    }
                    Job::Cut(ticket, _) => {
                        let result = Err(result);
                        self.answer(Event::Disowned { ticket, result });
                    }
                }
            }
            match place.cutting {
                Some((ticket, Cutting::Disown)) => self.answer(Event::Disowned {
                    ticket,
                    result: Err(Refused::Stopped),
                }),
                Some((ticket, Cutting::Resume)) => self.answer(Event::Resumed {
                    ticket,
                    result: Err(Refused::Stopped),
                }),
                None => {}
            }
            for ticket in place.leading {
                let result = Err(Refused::Stopped);
                self.answer(Event::Led { ticket, result });
            }
            for piece in place.held {
                if let Held::Barrier(Some(ticket)) = piece.of {
                    let result = Err(Refused::Stopped);
                    self.answer(Event::Led { ticket, result });
                }
            }
        }
    }
}
