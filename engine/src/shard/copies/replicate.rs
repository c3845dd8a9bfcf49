//! Records of another node's partition into this log (storage.md 1.5, cluster.md 5.2): fenced by
//! epoch, without a gap, proven by the chain, each once however often it is sent.
//!
//! A request is checked in two steps. When it is taken: whether its bytes are records at all. When it
//! has its turn in its partition: whether they continue what is here. Then all of it is one group.
//! Numbers are the sender's; segments, offsets and slots are given here. Large messages are linked
//! into their users' directories first, and that is durable before a record names them.

mod links;
mod made;
mod place;
mod read;

use std::collections::BTreeMap;

use bytes::Bytes;
use ringpost_netproto::id::{MailboxId, PartitionId};
use smallvec::SmallVec;

use super::{Answers, Gate, Job, Place, Records};
use crate::format::info::Msg;
use crate::format::record::{Head, RECORD_HEADER_BYTES, RecordType};
use crate::io::{Io, Op, RelPath};
use crate::limits::APPEND_AGE_MAX_NS;
use crate::ops::Purpose;
use crate::request::{BusyReason, Event, MonotonicNs, Now, Refused, Replicate, Replicated, Ticket};
use crate::shard::Shard;
use crate::shard::append::{Part, PartOf};
use crate::tail::Existence;
use crate::user::{Hold, State, Waiter};

use made::mailbox_runs;

/// A request of a primary.
pub(super) struct Replicating {
    pub(super) ticket: Ticket,
    partition: PartitionId,
    request: Replicate,
    incoming: Vec<Incoming>,
    /// Pinned, each once.
    users: SmallVec<[usize; 4]>,
    /// Of them those that are being read.
    loading: u32,
    since: MonotonicNs,
    /// What is answered once it is on this medium.
    upto: (u64, u32),
    /// Links of large messages on their way to durability.
    linking: u32,
    /// Why one of them was not made.
    unlinked: Option<Refused>,
}

/// A record that was checked for being one.
pub(super) struct Incoming {
    pub(super) head: Head,
    pub(super) kind: RecordType,
    /// In replicated form.
    record: Bytes,
    body: Option<Bytes>,
    /// Bytes of header cache of the body.
    cache_len: usize,
    /// Of a message.
    pub(super) msg: Option<Msg>,
    user: Option<usize>,
    /// Of a large message: its bytes in a stage file.
    file: Option<RelPath>,
    /// And its segment, once they are linked into the user's directory.
    segment: Option<u32>,
}

/// What one look at a request came to.
enum Looked {
    /// It is answered, or will be by itself.
    Done,
    /// Its large messages are being linked.
    Links,
    Refused(Refused),
    NoRoom(BusyReason),
}

impl<I: Io> Shard<I> {
    /// Takes a request over whose records are records.
    pub(in crate::shard) fn submit_replicate(
        &mut self,
        now: Now,
        ticket: Ticket,
        request: Replicate,
    ) -> Result<(), Refused> {
        self.accepts_mail()?;
        let partition = request.partition;
        if !self.identity.owns_partition(partition) {
            return Err(Refused::WrongShard);
        }
        let mut incoming = self.read_records(&request).map_err(Refused::BadRecords)?;
        let last = incoming.last();
        let upto = last.map_or((request.prev_pseq, request.prev_chain), |last| {
            (last.head.pseq, last.head.chain)
        });
        let mut users: SmallVec<[usize; 4]> = SmallVec::new();
        let mut needs_index: BTreeMap<usize, bool> = BTreeMap::new();
        for one in &mut incoming {
            if one.kind == RecordType::Epoch {
                continue;
            }
            let user = self
                .users
                .by_ordinal(one.head.user, one.head.ordinal, partition);
            if !users.contains(&user) {
                self.users.get_mut(user).pins += 1;
                users.push(user);
            }
            let needs = needs_index.entry(user).or_default();
            *needs |= matches!(
                one.kind,
                RecordType::Flags | RecordType::Expunge | RecordType::Mailbox
            );
            one.user = Some(user);
        }
        let index = self.copies.requests.insert(Replicating {
            ticket,
            partition,
            request,
            incoming,
            users,
            loading: 0,
            since: now.monotonic,
            upto,
            linking: 0,
            unlinked: None,
        });
        let place = self.begin_place(partition);
        place.jobs.push_back(Job::Replicate(index));
        for (user, needs) in needs_index {
            self.load_for(user, index, needs);
        }
        self.copies.turns.push_back(partition);
        Ok(())
    }

    /// Begins to load a user whose state, or whose index, is not there.
    fn load_for(&mut self, user: usize, request: usize, needs_index: bool) {
        let found = self.users.get_mut(user);
        let there = match &found.state {
            State::Live(live) => live.index.is_some() || !needs_index,
            State::Repairing(_) => true,
            State::Unloaded | State::Loading => false,
        };
        if !there {
            found.waiting.push_back(Waiter::Replicate(request));
            if let Some(open) = self.copies.requests.get_mut(request) {
                open.loading += 1;
            }
            // What is known to be absent is there at once.
            self.start_load(user, None);
        }
    }

    /// One of a request's users is loaded, or cannot be.
    pub(in crate::shard) fn replicate_user_loaded(&mut self, request: usize) {
        if let Some(open) = self.copies.requests.get_mut(request) {
            open.loading -= 1;
            if open.loading == 0 {
                self.copies.turns.push_back(open.partition);
            }
        }
    }

    /// Looks at the jobs that have their turn.
    pub(in crate::shard) fn tend_copies(&mut self, now: Now) {
        for _turn in 0..self.copies.turns.len() {
            let Some(partition) = self.copies.turns.pop_front() else {
                return;
            };
            self.tend_partition(now, partition);
        }
        self.settle_frames();
    }

    /// When a request of a primary has waited too long for room.
    pub(in crate::shard) fn copies_due(&self) -> Option<MonotonicNs> {
        if self.copies.requests.is_empty() {
            return None;
        }
        // One behind another job waits for that.
        let first = |place: &Place| match place.jobs.front() {
            Some(Job::Replicate(index)) => self.copies.requests.get(*index),
            _ => None,
        };
        let open = self.copies.places.values().filter_map(first);
        let oldest = open.map(|open| open.since).min();
        oldest.map(|since| since.after(APPEND_AGE_MAX_NS))
    }

    fn tend_partition(&mut self, now: Now, partition: PartitionId) {
        loop {
            let Some(place) = self.copies.places.get_mut(&partition) else {
                return;
            };
            if place.cutting.is_some() {
                return;
            }
            let Some(job) = place.jobs.pop_front() else {
                return;
            };
            let goes_on = match &job {
                Job::Replicate(index) => self.try_replicate(now, *index),
                Job::Lead(wish) => self.try_lead(now, partition, wish),
                Job::Resume(to) => self.try_resume(to),
                Job::Cut(ticket, pseq) => self.try_cut(now, partition, (*ticket, *pseq)),
            };
            if !goes_on {
                self.copies.place(partition).jobs.push_front(job);
                self.copies.turns.push_back(partition);
                return;
            }
        }
    }

    /// Carries a request on; `false` if it has to wait.
    fn try_replicate(&mut self, now: Now, index: usize) -> bool {
        let Some(open) = self.copies.requests.get(index) else {
            return true;
        };
        if open.loading > 0 || open.linking > 0 {
            return false;
        }
        let (ticket, since) = (open.ticket, open.since);
        match self.look_at_request(now, index) {
            Looked::Done => true,
            Looked::Links => false,
            Looked::NoRoom(_) if now.monotonic.since(since) < APPEND_AGE_MAX_NS => false,
            Looked::NoRoom(reason) => {
                self.end_request(index);
                let result = Err(Refused::Busy(reason));
                self.answer(Event::Replicated { ticket, result });
                true
            }
            Looked::Refused(refused) => {
                self.end_request(index);
                let result = Err(refused);
                self.answer(Event::Replicated { ticket, result });
                true
            }
        }
    }

    fn look_at_request(&mut self, now: Now, index: usize) -> Looked {
        let open = self.copies.requests.get(index).expect("an open request");
        let (partition, epoch) = (open.partition, open.request.epoch);
        let promised = self.partitions.promised(partition);
        let gate = self.copies.gate(partition);
        let leads = matches!(gate, Gate::Alone | Gate::Stream(_));
        if epoch < promised || (leads && epoch == promised && epoch.value() > 0) {
            return Looked::Refused(Refused::Fenced { promised });
        }
        let known = match self.common(index) {
            Ok(known) => known,
            Err(looked) => return looked,
        };
        let needs_promise = epoch > promised;
        let open = self.copies.requests.get(index).expect("an open request");
        let fresh = open.incoming.get(known..).unwrap_or_default();
        let unlinked = open.unlinked.clone().map_or(Ok(()), Err);
        if let Err(refused) = unlinked.and_then(|()| self.makes_sense(fresh)) {
            return Looked::Refused(refused);
        }
        let held = |one: &Incoming| {
            one.user
                .is_some_and(|user| self.users.get(user).hold != Hold::Free)
        };
        if fresh.iter().any(held) {
            // A compaction lets go of it in a moment.
            return Looked::NoRoom(BusyReason::SlowDisk);
        }
        let is_done = fresh.is_empty() && !needs_promise;
        let need = fresh.iter().fold(0, |sum, one| {
            sum + one.record.len() + one.body.as_ref().map_or(0, Bytes::len)
        });
        if gate != Gate::Follows {
            // Another node leads, and in a later epoch than any that this one knows.
            self.set_copy(now, partition, crate::request::Copy::Follows);
        }
        if is_done {
            self.commit(now, index);
            self.confirm_flushed(now, index);
            return Looked::Done;
        }
        let used = self.log.used_bytes(self.positions.checkpointed_to().lsn());
        if used >= self.log.files().capacity_bytes_max() * 90 / 100 {
            return Looked::NoRoom(BusyReason::Log);
        }
        let need = need + RECORD_HEADER_BYTES;
        if need > self.log.payload_max() {
            return Looked::Refused(Refused::TooLarge);
        }
        match self.link_replicas(index, known) {
            Ok(0) => {}
            Ok(_) => return Looked::Links,
            Err(refused) => return Looked::Refused(refused),
        }
        if self.log.room(need).is_none() {
            return Looked::NoRoom(BusyReason::SlowDisk);
        }
        self.encode_replicas(now, index, known, needs_promise);
        self.commit(now, index);
        Looked::Done
    }

    /// How many of a request's records are here already; or where it and this log part. The chain after
    /// one record speaks for all before it.
    fn common(&self, index: usize) -> Result<usize, Looked> {
        let open = self.copies.requests.get(index).expect("an open request");
        let request = &open.request;
        let (last, chain) = self.partitions.last(open.partition);
        let gap = Looked::Refused(Refused::Gap { pseq: last, chain });
        if request.prev_pseq > last {
            return Err(gap);
        }
        let known = open.incoming.iter().filter(|one| one.head.pseq <= last);
        let (known, pseq, chain) = known.fold(
            (0, request.prev_pseq, request.prev_chain),
            |(known, _, _), one| (known + 1, one.head.pseq, one.head.chain),
        );
        match self.chain_of(open.partition, pseq) {
            Some(ours) if ours == chain => Ok(known),
            Some(_) => Err(Looked::Refused(Refused::Diverged { pseq })),
            // In a batch that is not sealed: a moment later it can be told.
            None if pseq > self.partitions_durable.last(open.partition).0 => {
                Err(Looked::NoRoom(BusyReason::SlowDisk))
            }
            None => Err(gap),
        }
    }

    /// The chain after a record of this log, if it is known: of what does not count yet, and of the
    /// last one that does.
    fn chain_of(&self, partition: PartitionId, pseq: u64) -> Option<u32> {
        let (last, chain) = self.partitions.last(partition);
        let (shown, shown_chain) = self.partitions_durable.last(partition);
        if pseq == 0 {
            return Some(0);
        }
        if pseq == last {
            return Some(chain);
        }
        if pseq == shown {
            return Some(shown_chain);
        }
        let place = self.copies.places.get(&partition)?;
        place.chain_at(pseq)
    }

    /// Whether records can follow what their users have: a sender with another past says so by the
    /// chain, so this fails for a broken one only.
    fn makes_sense(&self, fresh: &[Incoming]) -> Result<(), Refused> {
        struct Known {
            existence: Existence,
            mailboxes: BTreeMap<MailboxId, u32>,
        }
        let mut users: BTreeMap<usize, Known> = BTreeMap::new();
        for one in fresh {
            let Some(user) = one.user else { continue };
            let parts = Refused::Diverged {
                pseq: one.head.pseq,
            };
            let live = match &self.users.get(user).state {
                State::Live(live) => live,
                State::Repairing(corrupt) => {
                    return Err(Refused::Repairing(std::sync::Arc::clone(corrupt)));
                }
                State::Unloaded | State::Loading => return Err(parts),
            };
            if !live.tail.has_numbers(None) || one.head.modseq.value() > u64::MAX >> 1 {
                return Err(parts);
            }
            let known = users.entry(user).or_insert_with(|| Known {
                existence: live.tail.existence,
                mailboxes: live
                    .tail
                    .mailboxes
                    .iter()
                    .map(|mailbox| (mailbox.mailbox, mailbox.uidnext))
                    .collect(),
            });
            let absent = known.existence == Existence::Absent;
            if absent != (one.kind == RecordType::UserCreate) {
                return Err(parts);
            }
            known.existence = Existence::Created;
            for run in mailbox_runs(one) {
                known.mailboxes.insert(run.0, run.1);
            }
            if let Some(msg) = &one.msg {
                let next = known.mailboxes.get_mut(&msg.mailbox).ok_or(parts.clone())?;
                if msg.uid.value() < *next || msg.uid.value() >= u32::MAX - (1 << 20) {
                    return Err(parts);
                }
                *next = msg.uid.value() + 1;
            }
        }
        Ok(())
    }

    /// What is proven to be common counts as far as the sender says.
    fn commit(&mut self, now: Now, index: usize) {
        let open = self.copies.requests.get(index).expect("an open request");
        let commit = open.request.commit_pseq.min(open.upto.0);
        let partition = open.partition;
        let place = self.copies.place(partition);
        place.commit_pseq = place.commit_pseq.max(commit);
        self.release_held(now, partition);
        self.settle_frames();
    }

    /// All of a request is in the log already: it is answered when that is on the medium.
    fn confirm_flushed(&mut self, now: Now, index: usize) {
        let part = Part {
            of: PartOf::Records(Records {
                answers: Answers::Replicate(index),
                promise: None,
                all: Vec::new(),
            }),
            marks: SmallVec::new(),
            dedupe_next: self.window.next(),
        };
        if let Err(part) = self.log.attach_last(part) {
            self.hold_part(now, None, part);
        }
    }

    /// A request's records are on this medium.
    pub(super) fn replicated(&mut self, now: Now, index: usize) {
        let Some(open) = self.copies.requests.get(index) else {
            return;
        };
        let (ticket, partition, (pseq, chain)) = (open.ticket, open.partition, open.upto);
        self.end_request(index);
        let flushed = self.positions.flushed_to();
        let result = Ok(Replicated {
            pseq,
            chain,
            flushed,
        });
        self.answer(Event::Replicated { ticket, result });
        self.release_held(now, partition);
    }

    fn end_request(&mut self, index: usize) {
        let open = self.copies.requests.remove(index);
        for one in &open.incoming {
            if let (Some(segment), Some(user)) = (one.segment, one.user) {
                // Promised to nobody: it gets no record.
                let path = self.users.get(user).dir().segment_part(segment);
                self.ops.start(Op::Unlink { path }, Purpose::Tidy);
            }
        }
        for user in open.users {
            self.users.unpin(user);
            self.users.forget_if_absent(user);
        }
    }

    /// After a fatal error: whatever the disk holds.
    pub(in crate::shard) fn refuse_copies(&mut self) {
        let open: Vec<usize> = self
            .copies
            .requests
            .iter()
            .map(|(index, _)| index)
            .collect();
        for index in open {
            let ticket = self.copies.requests.remove(index).ticket;
            let result = Err(Refused::Stopped);
            self.answer(Event::Replicated { ticket, result });
        }
        self.refuse_jobs();
    }
}
