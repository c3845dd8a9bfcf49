//! Records that no primary knows are cut off (storage.md 1.5, cluster.md 6.2): one TRUNCATE, and what
//! they took of their users is given back. Only what does not count can be cut.
//!
//! Their messages are held first, in groups of their own: all of them need not fit one frame. A crash
//! in between leaves both, and the cut that follows it finds them held already.

mod rescue;

use ringpost_netproto::id::{Epoch, PartitionId};
use smallvec::SmallVec;

use super::numbers::msg_of;
use super::{Answers, Cutting, Gate, Held, Job, Piece, Records};
use crate::dedupe::Key;
use crate::format::record::{Head, RECORD_HEADER_BYTES, RecordType};
use crate::io::{Io, Op};
use crate::ops::Purpose;
use crate::pending::{Entry, What};
use crate::position::Lsn;
use crate::request::{Disowned, Event, Now, Refused, Ticket};
use crate::shard::Shard;
use crate::shard::append::{Mark, Part, PartOf};
use crate::shard::partitions::At;

pub(super) use rescue::Rescue;

/// A cut on its way to the medium.
pub(in crate::shard) struct Cut {
    ticket: Ticket,
    pub(super) partition: PartitionId,
    /// The last record that stays.
    pseq: u64,
    chain: u32,
    /// Promised at that time.
    epoch: Epoch,
    records_count: u64,
}

/// A place further on, of a copy that was brought up by other means.
#[derive(Clone, Copy)]
pub(in crate::shard) struct Place {
    pub(super) ticket: Ticket,
    partition: PartitionId,
    epoch: Epoch,
    pseq: u64,
    chain: u32,
}

impl<I: Io> Shard<I> {
    pub(in crate::shard) fn submit_cut(
        &mut self,
        ticket: Ticket,
        partition: PartitionId,
        pseq: u64,
    ) -> Result<(), Refused> {
        self.accepts_mail()?;
        if !self.identity.owns_partition(partition) {
            return Err(Refused::WrongShard);
        }
        let place = self.begin_place(partition);
        place.jobs.push_back(Job::Cut(ticket, pseq));
        self.copies.turns.push_back(partition);
        Ok(())
    }

    /// Cuts, or says why not; `false` if it has to wait.
    pub(super) fn try_cut(
        &mut self,
        now: Now,
        partition: PartitionId,
        (ticket, pseq): (Ticket, u64),
    ) -> bool {
        if let Some(rescue) = &self.copies.place(partition).rescue
            && rescue.is_open()
        {
            return false;
        }
        let promised = self.partitions.promised(partition);
        let (last, last_chain) = self.partitions.last(partition);
        let (shown, shown_chain) = self.partitions_durable.last(partition);
        let gate = self.copies.gate(partition);
        let place = self.copies.place(partition);
        let sealed = place.kept.back().map_or(shown, |kept| kept.mark.pseq);
        let held = place.held.iter().rev().find_map(|piece| piece.mark);
        let flushed = held.map_or(shown, |mark| mark.pseq);
        let chain = if pseq == shown {
            Some(shown_chain)
        } else {
            place.chain_at(pseq)
        };
        let refused = if matches!(gate, Gate::Alone | Gate::Stream(_)) {
            Some(Refused::Fenced { promised })
        } else if pseq < shown {
            Some(Refused::Diverged { pseq: shown })
        } else {
            None
        };
        if let Some(refused) = refused {
            return self.not_cut(partition, ticket, Err(refused));
        }
        if last <= pseq {
            let nothing = Disowned {
                pseq: last,
                chain: last_chain,
                records_count: 0,
            };
            return self.not_cut(partition, ticket, Ok(nothing));
        }
        if sealed < last || flushed < last {
            return false;
        }
        let Some(chain) = chain else {
            return self.not_cut(partition, ticket, Err(Refused::Diverged { pseq }));
        };
        match self.rescue(now, partition, pseq) {
            None => return false,
            Some(Ok(())) => {}
            Some(Err(refused)) => {
                return self.not_cut(partition, ticket, Err(refused));
            }
        }
        if self.log.room(RECORD_HEADER_BYTES).is_none() {
            return false;
        }
        self.copies.place(partition).rescue = None;
        let cut = Cut {
            ticket,
            partition,
            pseq,
            chain,
            epoch: promised,
            records_count: last - pseq,
        };
        self.encode_cut(cut);
        true
    }

    /// Answers a cut of nothing. What was held for it is held.
    fn not_cut(
        &mut self,
        partition: PartitionId,
        ticket: Ticket,
        result: Result<Disowned, Refused>,
    ) -> bool {
        self.copies.place(partition).rescue = None;
        self.answer(Event::Disowned { ticket, result });
        true
    }

    pub(in crate::shard) fn submit_resume(
        &mut self,
        ticket: Ticket,
        partition: PartitionId,
        (epoch, pseq, chain): (Epoch, u64, u32),
    ) -> Result<(), Refused> {
        self.accepts_mail()?;
        if !self.identity.owns_partition(partition) {
            return Err(Refused::WrongShard);
        }
        if pseq >= u64::MAX >> 1 {
            return Err(Refused::Diverged { pseq });
        }
        let to = Place {
            ticket,
            partition,
            epoch,
            pseq,
            chain,
        };
        let place = self.begin_place(partition);
        place.jobs.push_back(Job::Resume(to));
        self.copies.turns.push_back(partition);
        Ok(())
    }

    /// Goes on from a place further on, or says why not; `false` if it has to wait.
    pub(super) fn try_resume(&mut self, to: &Place) -> bool {
        let promised = self.partitions.promised(to.partition);
        let (last, chain) = self.partitions.last(to.partition);
        let refused = if to.epoch < promised {
            Some(Refused::Fenced { promised })
        } else if to.pseq < last || (to.pseq == last && to.chain != chain) {
            Some(Refused::Diverged { pseq: last })
        } else {
            self.takes_refills(to.partition).err()
        };
        if refused.is_some() || to.pseq == last {
            let (ticket, result) = (to.ticket, refused.map_or(Ok(()), Err));
            self.answer(Event::Resumed { ticket, result });
            return true;
        }
        if self.log.room(RECORD_HEADER_BYTES).is_none() {
            return false;
        }
        let head = Head::of_partition(to.partition, to.epoch, to.pseq, to.chain);
        self.partitions
            .advance(to.partition, to.pseq, to.chain, to.epoch);
        self.copies.place(to.partition).cutting = Some((to.ticket, Cutting::Resume));
        self.encode_truncate(&head, Answers::Resume(*to));
        true
    }

    /// The place is on the medium: all up to there counts.
    pub(super) fn resumed(&mut self, to: &Place, frame: Option<Lsn>) {
        let mark = Mark {
            partition: to.partition,
            pseq: to.pseq,
            chain: to.chain,
            chain_before: to.chain,
            epoch: to.epoch,
        };
        self.partitions_durable
            .advance(mark.partition, mark.pseq, mark.chain, mark.epoch);
        if let Some(frame) = frame.and_then(|end| self.copies.frame(end)) {
            frame.marks.push(mark);
        }
        let place = self.copies.place(to.partition);
        place.cutting = None;
        place.commit_pseq = place.commit_pseq.max(to.pseq);
        self.copies.turns.push_back(to.partition);
        let (ticket, result) = (to.ticket, Ok(()));
        self.answer(Event::Resumed { ticket, result });
    }

    fn encode_cut(&mut self, cut: Cut) {
        let epoch = self.partitions.promised(cut.partition);
        let head = Head::of_partition(cut.partition, epoch, cut.pseq, cut.chain);
        self.partitions.truncate(cut.partition, cut.pseq, cut.chain);
        self.copies.place(cut.partition).cutting = Some((cut.ticket, Cutting::Disown));
        self.encode_truncate(&head, Answers::Cut(Box::new(cut)));
    }

    /// A TRUNCATE into the open batch, which has room for it; `answers` when it is on the medium.
    fn encode_truncate(&mut self, head: &Head, answers: Answers) {
        let dedupe_next = self.window.next();
        let part = Part {
            of: PartOf::Records(Records {
                answers,
                promise: None,
                all: Vec::new(),
            }),
            marks: SmallVec::new(),
            dedupe_next,
        };
        let batch = self.log.open_batch_mut().expect("room was made");
        batch.encode(|encoder| encoder.of_partition(head, RecordType::Truncate));
        batch.attach(part, 0);
    }

    /// The TRUNCATE is on the medium: what it cuts off is no more.
    pub(super) fn cut_off(&mut self, cut: &Cut, frame: Option<Lsn>) {
        if let Some(frame) = frame.and_then(|end| self.copies.frame(end)) {
            frame.cuts.push(At {
                partition: cut.partition,
                pseq: cut.pseq,
                chain: cut.chain,
                epoch: cut.epoch,
            });
        }
        let place = self.copies.place(cut.partition);
        place.cutting = None;
        place.kept.retain(|kept| kept.mark.pseq <= cut.pseq);
        let beyond = |piece: &Piece| piece.mark.is_some_and(|mark| mark.pseq > cut.pseq);
        let first = place.held.iter().position(beyond);
        // What repeats a record that stands behind the cut goes with it.
        let void = place.held.split_off(first.unwrap_or(place.held.len()));
        for piece in void.into_iter().rev() {
            self.copies.let_go(piece.end);
            if let (Some(mark), Some(frame)) = (piece.mark, self.copies.frame(piece.end)) {
                frame.void.insert(0, mark);
            }
            if let Held::Entries(entries) = piece.of {
                for (user, entry) in entries.into_iter().rev() {
                    self.void(cut.partition, user, &entry);
                }
            }
        }
        self.copies.turns.push_back(cut.partition);
        let (ticket, result) = (
            cut.ticket,
            Ok(Disowned {
                pseq: cut.pseq,
                chain: cut.chain,
                records_count: cut.records_count,
            }),
        );
        self.answer(Event::Disowned { ticket, result });
    }

    /// An entry counts for nothing: its numbers are free again, its delivery is not known any more.
    fn void(&mut self, partition: PartitionId, index: usize, entry: &Entry) {
        self.pending_records -= 1;
        let user = self.users.get_mut(index);
        let seed = user.seed(user.generation());
        if let What::Large(mail) = &entry.what {
            let path = user.dir().segment_part(mail.segment);
            self.ops.start(Op::Unlink { path }, Purpose::Tidy);
        }
        let (hash, ordinal) = (user.hash, user.ordinal);
        if let Some(live) = user.live_mut() {
            live.tail.give_back(entry, seed);
        }
        if let Some(msg) = msg_of(entry) {
            self.window.forget_delivery(
                &Key {
                    user: hash,
                    ordinal,
                    mailbox: msg.mailbox,
                    guid: msg.guid,
                    body_crc: msg.stored_crc,
                },
                msg.uid,
            );
        }
        let left = self.copies.held_of(partition, index);
        let left = left.filter_map(modseq_of).max();
        if let Some(live) = self.users.get_mut(index).live_mut() {
            live.tail.modseq = live.tail.modseq_visible.max(left.unwrap_or(0));
        }
        self.users.unpin(index);
        self.users.forget_if_absent(index);
    }
}

/// The modseq of a message that waits. Other records have none that a later one would not exceed.
fn modseq_of(entry: &Entry) -> Option<u64> {
    msg_of(entry).map(|msg| msg.modseq.value())
}
