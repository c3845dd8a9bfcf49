//! Records of another node get their places in this log: one group, numbers as they came.

use bytes::Bytes;
use smallvec::SmallVec;

use super::Incoming;
use crate::dedupe::Key;
use crate::format::crc;
use crate::format::info::{MSG_FIXED_BYTES, Seed};
use crate::format::record::{
    BODY_STORED_AT, DELIVER_FILE_FIXED_AT, DELIVER_FIXED_AT, Group, Head, Local,
    RECORD_HEADER_BYTES, RecordType, localise,
};
use crate::io::Io;
use crate::pending::{Entry, LargeMail, PendingBody, SmallMail, What};
use crate::position::Lsn;
use crate::request::Now;
use crate::shard::Shard;
use crate::shard::append::{Mark, Part, PartOf, seconds};
use crate::shard::copies::{Answers, Recorded, Records};

impl<I: Io> Shard<I> {
    /// Encodes the records from `known` on, and the promise that goes with them.
    pub(super) fn encode_replicas(
        &mut self,
        now: Now,
        index: usize,
        known: usize,
        needs_promise: bool,
    ) {
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
                all: records,
            }),
            marks: SmallVec::new(),
            dedupe_next: self.window.next(),
        };
        let batch = self.log.open_batch_mut().expect("room was made");
        batch.attach(part, 0);
    }

    pub(super) fn encode_replica_body(
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
    pub(super) fn encode_replica(
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
            Some(_) => (one.segment.expect("it was linked"), 0),
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

    pub(super) fn local_of(
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
            // It stands in the BODY.
            let shared = one.body.as_ref();
            let cache =
                shared.and_then(|body| body.get(BODY_STORED_AT..BODY_STORED_AT + one.cache_len));
            What::Small(SmallMail {
                cache: Bytes::copy_from_slice(cache.unwrap_or_default()),
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
