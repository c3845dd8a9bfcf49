//! Records of another node's partition into this log (storage.md 1.5, cluster.md 5.2): fenced by
//! epoch, without a gap, proven by the chain, each once however often it is sent.
//!
//! A request is checked in two steps. When it is taken: whether its bytes are records at all. When it
//! has its turn in its partition: whether they continue what is here. Then all of it is one group.
//! Numbers are the sender's; segments, offsets and slots are given here.

mod made;

use std::collections::BTreeMap;

use bytes::Bytes;
use ringpost_netproto::id::{MailboxId, PartitionId};
use smallvec::SmallVec;

use super::{Answers, Gate, Job, Recorded, Records};
use crate::dedupe::Key;
use crate::error::CorruptReason;
use crate::format::crc;
use crate::format::info::{FIRST_SLOT, MSG_FIXED_BYTES, Msg, Seed};
use crate::format::record::{
    BODY_STORED_AT, DELIVER_FILE_FIXED_AT, DELIVER_FIXED_AT, Group, Head, Local, Payload,
    RECORD_HEADER_BYTES, Record, RecordType, Records as Decoded, chain, heads, localise,
};
use crate::io::Io;
use crate::limits::APPEND_AGE_MAX_NS;
use crate::pending::{Entry, LargeMail, PendingBody, SmallMail, What};
use crate::position::Lsn;
use crate::request::{BusyReason, Event, MonotonicNs, Now, Refused, Replicate, Replicated, Ticket};
use crate::shard::Shard;
use crate::shard::append::{Mark, Part, PartOf, seconds};
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
}

/// A record that was checked for being one.
struct Incoming {
    head: Head,
    kind: RecordType,
    /// In replicated form.
    record: Bytes,
    body: Option<Bytes>,
    /// Bytes of header cache of the body.
    cache_len: usize,
    /// Of a message.
    msg: Option<Msg>,
    user: Option<usize>,
}

/// What one look at a request came to.
enum Looked {
    /// It is answered, or will be by itself.
    Done,
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

    /// The records of a request, if they are records, contiguous, of its partition, tied by the chain.
    fn read_records(&self, request: &Replicate) -> Result<Vec<Incoming>, CorruptReason> {
        let (mut pseq, mut before) = (request.prev_pseq, request.prev_chain);
        let mut incoming = Vec::with_capacity(request.items.len());
        for shipped in &request.items {
            let one = self.read_record(&shipped.record, shipped.body.as_ref())?;
            let same = one.head.partition == request.partition
                && one.head.pseq == pseq.saturating_add(1)
                && one.head.epoch <= request.epoch;
            if !same {
                return Err(CorruptReason::Value("a record out of its place"));
            }
            if chain(before, &one.record) != one.head.chain {
                return Err(CorruptReason::Checksum);
            }
            if one.kind == RecordType::DeliverFile {
                // Its stage file would have to be linked and synced before the record.
                return Err(CorruptReason::Value(
                    "a large message, which a copy does not take yet",
                ));
            }
            (pseq, before) = (one.head.pseq, one.head.chain);
            incoming.push(one);
        }
        Ok(incoming)
    }

    /// One record: put where it could stand here and decoded like one of this log.
    fn read_record(&self, record: &Bytes, body: Option<&Bytes>) -> Result<Incoming, CorruptReason> {
        let (kind, head, _, _) = heads(record).next().ok_or(CorruptReason::Truncated)?;
        let mut payload = Vec::new();
        let (mut cache_len, mut cache_crc, mut distance) = (0, 0, 0);
        if kind == RecordType::Deliver {
            let body = body.ok_or(CorruptReason::Value("a DELIVER without its BODY"))?;
            let Payload::Body(parts) = Decoded::at(body, 0)?.payload else {
                return Err(CorruptReason::Value("a DELIVER that points at no BODY"));
            };
            if crc::of(parts.stored) != head.body_crc {
                return Err(CorruptReason::Checksum);
            }
            (cache_len, cache_crc) = (parts.cache.len(), crc::of(parts.cache));
            distance = u32::try_from(body.len()).map_err(|_wide| CorruptReason::Length)?;
            payload.extend_from_slice(body);
        }
        let local = Local {
            group: Group::Ends,
            seed: Seed {
                user: head.user,
                generation: 1,
            },
            slot: FIRST_SLOT,
            lsn: Lsn::new(0),
            segment: 1,
            offset: 0,
            distance,
            cache_crc,
        };
        let at = payload.len();
        payload.extend_from_slice(&localise(record, &local)?);
        let decoded = Decoded::at(&payload, at)?;
        if decoded.bytes.len() != record.len() {
            return Err(CorruptReason::Length);
        }
        let of_user = kind != RecordType::Epoch;
        if of_user && self.identity.partitions.partition(head.user) != head.partition {
            return Err(CorruptReason::Identity);
        }
        let msg = self.look_into(&decoded, cache_len)?;
        Ok(Incoming {
            head,
            kind,
            record: record.clone(),
            body: body.filter(|_| kind == RecordType::Deliver).cloned(),
            cache_len,
            msg,
            user: None,
        })
    }

    /// What a decoder leaves to its caller.
    fn look_into(
        &self,
        record: &Record<'_>,
        cache_len: usize,
    ) -> Result<Option<Msg>, CorruptReason> {
        match &record.payload {
            Payload::UserCreate(name) if self.identity.key.user_hash(name) != record.head.user => {
                Err(CorruptReason::Identity)
            }
            Payload::Deliver(deliver)
                if usize::from(deliver.fixed.cache_slots()) * 64 != cache_len =>
            {
                Err(CorruptReason::Length)
            }
            Payload::Deliver(deliver) => Ok(Some(deliver.msg)),
            Payload::DeliverFile(file) => Ok(Some(file.msg)),
            _ => Ok(None),
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
        let open = self.copies.requests.iter().map(|(_, open)| open.since);
        open.min().map(|since| since.after(APPEND_AGE_MAX_NS))
    }

    fn tend_partition(&mut self, now: Now, partition: PartitionId) {
        loop {
            let Some(place) = self.copies.places.get_mut(&partition) else {
                return;
            };
            if place.cutting {
                return;
            }
            let Some(job) = place.jobs.pop_front() else {
                return;
            };
            let goes_on = match &job {
                Job::Replicate(index) => self.try_replicate(now, *index),
                Job::Lead(wish) => self.try_lead(now, partition, wish),
                Job::Cut(ticket, pseq) => self.try_cut(partition, (*ticket, *pseq)),
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
        if open.loading > 0 {
            return false;
        }
        let (ticket, since) = (open.ticket, open.since);
        match self.look_at_request(now, index) {
            Looked::Done => true,
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
        if let Err(refused) = self.makes_sense(fresh) {
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
                records: Vec::new(),
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

    /// Encodes the records from `known` on, and the promise that goes with them.
    fn encode_replicas(&mut self, now: Now, index: usize, known: usize, needs_promise: bool) {
        let open = self
            .copies
            .requests
            .get_mut(index)
            .expect("an open request");
        let incoming: Vec<Incoming> = open.incoming.drain(..).skip(known).collect();
        let (partition, epoch) = (open.partition, open.request.epoch);
        let mut promise = None;
        if needs_promise {
            promise = Some((partition, epoch));
            self.partitions.promise(partition, epoch);
            let head = Head::of_partition(partition, epoch, 0, 0);
            let batch = self.log.open_batch_mut().expect("room was made");
            batch.encode(|encoder| encoder.of_partition(&head, RecordType::Promise));
        }
        let mut records = Vec::with_capacity(incoming.len());
        let mut last_body: Option<(Bytes, usize, std::rc::Rc<PendingBody>)> = None;
        let count = incoming.len();
        for (nth, one) in incoming.iter().enumerate() {
            let group = if nth + 1 == count {
                Group::Ends
            } else {
                Group::GoesOn
            };
            let body = one.body.as_ref().map(|body| {
                let same = last_body.take().filter(|(last, _, _)| {
                    last.as_ptr() == body.as_ptr() && last.len() == body.len()
                });
                let (at, pending) = match same {
                    Some((_, at, pending)) => (at, pending),
                    None => self.encode_replica_body(body, one),
                };
                last_body = Some((body.clone(), at, std::rc::Rc::clone(&pending)));
                (at, pending)
            });
            records.push(self.encode_replica(now, one, group, body));
        }
        let part = Part {
            of: PartOf::Records(Records {
                answers: Answers::Replicate(index),
                promise,
                records,
            }),
            marks: SmallVec::new(),
            dedupe_next: self.window.next(),
        };
        let batch = self.log.open_batch_mut().expect("room was made");
        batch.attach(part, 0);
    }

    fn encode_replica_body(
        &mut self,
        body: &Bytes,
        one: &Incoming,
    ) -> (usize, std::rc::Rc<PendingBody>) {
        let cache_from = BODY_STORED_AT;
        let stored_from = cache_from + one.cache_len;
        let stored_len = one.msg.as_ref().map_or(0, |msg| msg.stored_len);
        let stored_to = stored_from + crate::format::index(stored_len);
        let cache = Bytes::copy_from_slice(body.get(cache_from..stored_from).unwrap_or_default());
        // Not a slice: what is pending must not keep a whole foreign frame in memory.
        let stored = Bytes::copy_from_slice(body.get(stored_from..stored_to).unwrap_or_default());
        self.encode_body(&cache, &stored, one.head.body_crc)
    }

    /// One record, placed here.
    fn encode_replica(
        &mut self,
        now: Now,
        one: &Incoming,
        group: Group,
        body: Option<(usize, std::rc::Rc<PendingBody>)>,
    ) -> (Mark, Recorded) {
        let partition = one.head.partition;
        let (_, chain_before) = self.partitions.last(partition);
        let mark = Mark {
            partition,
            pseq: one.head.pseq,
            chain: one.head.chain,
            chain_before,
            epoch: one.head.epoch,
        };
        self.partitions
            .advance(partition, mark.pseq, mark.chain, mark.epoch);
        let Some(user) = one.user else {
            let local = self.local_of(None, one, group, (0, 0, 0));
            let bytes = localise(&one.record, &local).expect("it was read before");
            let batch = self.log.open_batch_mut().expect("room was made");
            batch.encode(|encoder| encoder.whole(&bytes));
            return (mark, Recorded::Barrier(None));
        };
        self.users.get_mut(user).pins += 1;
        let (segment, offset) = match &one.msg {
            Some(msg) if one.kind == RecordType::Deliver => {
                self.reserve_bytes((user, msg.mailbox), msg.segment_bytes())
            }
            Some(_) => (self.linked_segment(one), 0),
            None => (0, 0),
        };
        let batch = self.log.open_batch_mut().expect("room was made");
        let here = batch.payload_len();
        let body_at = body.as_ref().map_or(here, |(at, _)| *at);
        let distance = u32::try_from(here - body_at).expect("inside a frame");
        let local = self.local_of(Some(user), one, group, (segment, offset, distance));
        let bytes = localise(&one.record, &local).expect("it was read before");
        let batch = self.log.open_batch_mut().expect("room was made");
        let lsn = batch.lsn();
        batch.encode(|encoder| encoder.whole(&bytes));
        self.pending_records += 1;
        let bytes = Bytes::from(bytes);
        let what = what_of(one, &bytes, lsn, body.map(|(_, pending)| pending));
        let what = self.with_cache(one, what);
        let entry = Entry {
            slot: local.slot,
            what,
        };
        let found = self.users.get_mut(user);
        let seed = local.seed;
        if let What::Create { name, .. } = &entry.what
            && found.name.is_none()
        {
            found.name = Some(std::sync::Arc::from(&name[..]));
        }
        if let Some(live) = found.live_mut() {
            live.tail.reserve_entry(&entry, seed);
        }
        if let Some(msg) = &one.msg {
            let key = Key {
                user: one.head.user,
                ordinal: one.head.ordinal,
                mailbox: msg.mailbox,
                guid: msg.guid,
                body_crc: msg.stored_crc,
            };
            self.window
                .insert(&key, msg.uid, seconds(now.wall), lsn.after(1));
        }
        (mark, Recorded::Entry(user, Box::new(entry)))
    }

    fn local_of(
        &mut self,
        user: Option<usize>,
        one: &Incoming,
        group: Group,
        (segment, offset, distance): (u32, u64, u32),
    ) -> Local {
        let lsn = self.log.open_batch_mut().expect("room was made").lsn();
        let has_runs = !matches!(one.kind, RecordType::UserCreate | RecordType::Epoch);
        let tail = user.and_then(|user| self.users.get(user).live());
        let (generation, next_slot) =
            tail.map_or((1, 0), |live| (live.tail.generation, live.tail.next_slot));
        let cache_crc = one.body.as_ref().map_or(0, |body| {
            let cache = body.get(BODY_STORED_AT..BODY_STORED_AT + one.cache_len);
            crc::of(cache.unwrap_or_default())
        });
        Local {
            group,
            seed: Seed {
                user: one.head.user,
                generation,
            },
            slot: if has_runs { next_slot } else { 0 },
            lsn,
            segment,
            offset,
            distance,
            cache_crc,
        }
    }

    /// The header cache of a small message stands in its BODY.
    fn with_cache(&self, one: &Incoming, what: What) -> What {
        match what {
            What::Small(mail) => {
                let cache = one
                    .body
                    .as_ref()
                    .and_then(|body| body.get(BODY_STORED_AT..BODY_STORED_AT + one.cache_len));
                What::Small(SmallMail {
                    cache: Bytes::copy_from_slice(cache.unwrap_or_default()),
                    ..mail
                })
            }
            other => other,
        }
    }

    /// The segment that a large message was linked as.
    fn linked_segment(&self, one: &Incoming) -> u32 {
        one.msg.as_ref().map_or(0, |msg| msg.segment)
    }
}

/// What a placed record will write.
fn what_of(
    one: &Incoming,
    bytes: &Bytes,
    lsn: Lsn,
    body: Option<std::rc::Rc<PendingBody>>,
) -> What {
    let from = RECORD_HEADER_BYTES;
    match (one.kind, &one.msg) {
        (RecordType::UserCreate, _) => {
            let len = bytes.get(from..).and_then(<[u8]>::first_chunk);
            let len = len.map_or(0, |len| usize::from(u16::from_le_bytes(*len)));
            What::Create {
                name: bytes.slice(from + 2..from + 2 + len),
                lsn,
            }
        }
        (RecordType::Deliver, Some(msg)) => {
            let end = DELIVER_FIXED_AT + MSG_FIXED_BYTES + usize::from(msg.skip);
            let head = bytes.slice(DELIVER_FIXED_AT..end);
            let fixed = crate::format::info::MsgFixed::read(&head).expect("it was read before");
            What::Small(SmallMail {
                cache: Bytes::new(),
                body,
                mailbox: msg.mailbox,
                uid: msg.uid,
                segment: fixed.segment(),
                offset: fixed.offset(),
                head,
            })
        }
        (_, Some(msg)) => {
            let fixed_end = DELIVER_FILE_FIXED_AT + MSG_FIXED_BYTES;
            let head = bytes.slice(DELIVER_FILE_FIXED_AT..fixed_end);
            let fixed = crate::format::info::MsgFixed::read(&head).expect("it was read before");
            What::Large(LargeMail {
                cache: bytes.slice(fixed_end..),
                mailbox: msg.mailbox,
                uid: msg.uid,
                segment: fixed.segment(),
                head,
            })
        }
        _ => What::Runs(bytes.slice(from..)),
    }
}
