//! Appends: from a request to records in a batch, and from a durable frame to answers
//! (storage.md 4.1, 4.2).
//!
//! Two passes over the recipients of a group: decide (refuse, duplicate, store), then encode.
//! Nothing is refused after the first byte is encoded, so there is no code to take anything back.
//! Longer than a file should be: publishing and the encoders of each kind of record want to become
//! files of their own.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use ringpost_netproto::id::{MailboxId, Modseq, PartitionId, Uid, UidValidity, WallNs};
use ringpost_netproto::placement::NAME_BYTES_MAX;
use smallvec::SmallVec;

use super::load::Wants;
use super::{Phase, Shard};
use crate::dedupe::{Key, Seen};
use crate::error::{Corrupt, CorruptReason};
use crate::format::crc;
use crate::format::info::{
    FIRST_SLOT, MSG_FIXED_BYTES, Mailbox, MailboxOp, Msg, MsgFixed, SLOT, SpecialUse,
};
use crate::format::record::{
    BODY_STORED_AT, BodyParts, DeliverParts, Encoder, Group, Head, Placed, RecordType, body_len,
    deliver_file_len, deliver_len, name_len, runs_len,
};
use crate::format::store_line::{STORE_LINE_FLAGS, StoreLine};
use crate::index::{apply_mailbox, count_visible};
use crate::io::Io;
use crate::limits::{
    APPEND_AGE_MAX_NS, CACHE_SLOTS_MAX, PREFIX_BYTES_MAX, RECIPIENTS_MAX, USER_QUEUE_MAX,
};
use crate::mbox;
use crate::pending::{Entry, LargeMail, PendingBody, SmallMail, What};
use crate::position::{DurableTo, Lsn};
use crate::prepare::{PreparedBody, Summary};
use crate::request::{
    AppendGroup, Body, BusyReason, Dedupe, Event, MonotonicNs, Notice, Now, Outcome, Recipient,
    Refused, Ticket,
};
use crate::user::{Existence, State, Tail, Waiter};

/// The mailboxes a user begins with.
const FIRST_MAILBOXES: [(MailboxId, &str, SpecialUse); 2] = [
    (MailboxId::INBOX, "INBOX", SpecialUse::None),
    (MailboxId::SENT, "Sent", SpecialUse::Sent),
];

/// An append that is not answered yet.
pub(super) struct Append {
    ticket: Ticket,
    pub(super) group: AppendGroup,
    /// Index of each recipient's user.
    pub(super) users: SmallVec<[usize; 1]>,
    pub(super) outcomes: SmallVec<[Option<Outcome>; 1]>,
    since: MonotonicNs,
    /// Users whose state is being read.
    loading: u32,
    /// Frames that hold a part of it.
    parts: u32,
    /// Links and directory syncs of a large message under way.
    pub(super) steps: u32,
    /// Of a large message: the segment reserved for each recipient.
    pub(super) segments: SmallVec<[Option<u32>; 1]>,
    /// Whether the links of a large message are made.
    pub(super) linked: Linked,
}

/// How far a large append is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Linked {
    NotYet,
    Doing,
    Done,
}

impl Append {
    pub(super) fn since(&self) -> MonotonicNs {
        self.since
    }
}

/// A piece of an append in one frame.
pub(super) struct Part {
    append: usize,
    done: SmallVec<[Decided; 1]>,
    /// How far each of its partitions is once the frame is durable.
    marks: SmallVec<[Mark; 1]>,
    /// Sequence of the next delivery id behind this part.
    dedupe_next: u64,
}

/// A record's place in its partition.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    partition: PartitionId,
    pseq: u64,
    chain: u32,
}

/// What one recipient gets when the frame is durable.
struct Decided {
    recipient: usize,
    kind: DecidedKind,
    entries: SmallVec<[Entry; 1]>,
}

#[derive(Clone, Copy)]
enum DecidedKind {
    Stored { uid: Uid, modseq: Modseq },
    Duplicate { uid: Uid },
}

/// The first pass over one recipient.
enum Decision {
    Store,
    /// Durable already, or refused.
    Now(Outcome),
    /// The first copy is in a frame that is not durable yet.
    WithFirst(Uid),
    /// The same recipient stands earlier in this group.
    WithEarlier,
}

impl<I: Io> Shard<I> {
    pub(super) fn submit_append(
        &mut self,
        now: Now,
        ticket: Ticket,
        group: AppendGroup,
    ) -> Result<(), Refused> {
        self.accepts_mail()?;
        let count = group.recipients.len();
        assert!(
            (1..=RECIPIENTS_MAX).contains(&count),
            "a group with {count} recipients"
        );
        if group
            .recipients
            .iter()
            .any(|recipient| !self.identity.owns(&recipient.user))
        {
            return Err(Refused::WrongShard);
        }
        if group.body.summary().received_len > self.config.message_bytes_max {
            return Err(Refused::TooLarge);
        }
        let entry = self.appends.vacant_key();
        let mut users = SmallVec::with_capacity(count);
        let mut loading = 0;
        for recipient in &group.recipients {
            let index = self.users.by_key(&recipient.user);
            self.users.get_mut(index).pins += 1;
            users.push(index);
            loading += self.want_user(index, &recipient.user, Waiter::Append(entry));
        }
        let append = Append {
            ticket,
            outcomes: SmallVec::from_elem(None, count),
            segments: SmallVec::from_elem(None, count),
            group,
            users,
            since: now.monotonic,
            loading,
            parts: 0,
            steps: 0,
            linked: Linked::NotYet,
        };
        self.appends.insert(append);
        if loading == 0 {
            self.ready.push_back(entry);
        }
        Ok(())
    }

    /// Makes sure a user is loaded or loading; 1 if the waiter has to wait.
    fn want_user(
        &mut self,
        index: usize,
        key: &ringpost_netproto::placement::UserKey,
        waiter: Waiter,
    ) -> u32 {
        let user = self.users.get_mut(index);
        match user.state {
            State::Live(_) if user.name.is_some() => 0,
            // Somebody holds it so: the verdict is for all who come meanwhile.
            State::Repairing(_) => 0,
            _ => {
                user.waiting.push_back(waiter);
                self.start_load(index, key);
                1
            }
        }
    }

    /// Whether a loaded user is (one of those) that an append means.
    pub(super) fn append_wants(&self, index: usize, user: usize, name: Option<&[u8]>) -> Wants {
        let Some(append) = self.appends.get(index) else {
            return Wants::This;
        };
        let place = append.users.iter().position(|other| *other == user);
        let recipient = place.and_then(|place| append.group.recipients.get(place));
        let same = recipient
            .zip(name)
            .is_none_or(|(recipient, name)| recipient.user.name() == name);
        if same { Wants::This } else { Wants::Other }
    }

    /// One of an append's users is loaded (it may be another user now, if the name told).
    pub(super) fn append_user_loaded(&mut self, index: usize) {
        if let Some(append) = self.appends.get_mut(index) {
            append.loading -= 1;
            if append.loading == 0 {
                self.ready.push_back(index);
            }
        }
    }

    /// A name turned out to belong to another ordinal: the append follows it there.
    pub(super) fn append_moves(&mut self, index: usize, from: usize) {
        let Some(append) = self.appends.get(index) else {
            return;
        };
        let place = append.users.iter().position(|user| *user == from);
        let Some(place) = place else { return };
        let key = append
            .group
            .recipients
            .get(place)
            .map(|recipient| recipient.user.clone());
        let Some(key) = key else { return };
        let to = self.users.by_key(&key);
        self.users.get_mut(to).pins += 1;
        self.users.unpin(from);
        if let Some(user) = self
            .appends
            .get_mut(index)
            .and_then(|a| a.users.get_mut(place))
        {
            *user = to;
        }
        if self.want_user(to, &key, Waiter::Append(index)) == 0 {
            self.append_user_loaded(index);
        }
    }

    /// Age of the oldest append without an answer that waits for room, in ns.
    pub(super) fn oldest_append_ns(&self, now: Now) -> u64 {
        let oldest = self
            .ready
            .front()
            .and_then(|index| self.appends.get(*index));
        oldest.map_or(0, |append| now.monotonic.since(append.since))
    }

    /// Which bound keeps new mail waiting, if any (storage.md 4.4).
    pub(super) fn pressure(&self) -> Option<BusyReason> {
        let used = self.log.used_bytes(self.positions.checkpointed_to().lsn());
        let log_limit = self
            .checkpoint
            .log_limit(self.log.files().capacity_bytes_max());
        if used >= log_limit {
            return Some(BusyReason::Log);
        }
        let records_limit = self.config.pending_records_max * 95 / 100;
        if self.pending_records >= records_limit.max(1) {
            return Some(BusyReason::PendingRecords);
        }
        None
    }

    /// Encodes as many appends as there is room for, oldest first.
    pub(super) fn place_ready(&mut self, now: Now) {
        while let Some(index) = self.ready.front().copied() {
            let full = self.disk_is_full();
            let stopping = self.phase == Phase::Stopped;
            if full || stopping {
                self.ready.pop_front();
                let why = if full {
                    Refused::DiskFull
                } else {
                    Refused::Stopped
                };
                self.refuse_rest(index, &why);
                continue;
            }
            let pressure = self.pressure();
            if pressure.is_none() && self.place(now, index) {
                self.ready.pop_front();
                continue;
            }
            let append = self.appends.get(index).expect("a ready append is open");
            if now.monotonic.since(append.since) < APPEND_AGE_MAX_NS {
                return;
            }
            let reason = pressure.unwrap_or(BusyReason::SlowDisk);
            self.events.push(Event::Notice(Notice::Pressure(reason)));
            self.ready.pop_front();
            self.refuse_rest(index, &Refused::Busy(reason));
        }
    }

    /// Places what is left of an append. `false`: no room now, try again.
    fn place(&mut self, now: Now, index: usize) -> bool {
        let body = self
            .appends
            .get(index)
            .expect("a ready append is open")
            .group
            .body
            .clone();
        if let Body::Staged(staged) = &body {
            // What is settled without a record needs no link.
            if self.decide(now, index).is_none() {
                self.finish_if_decided(now, index);
                return true;
            }
            if !self.link_staged(index, staged) {
                return true;
            }
        }
        while let Some(chunk) = self.decide(now, index) {
            let need = chunk.iter().fold(Self::body_need(&body), |sum, recipient| {
                sum + self.recipient_need(index, *recipient, &body)
            });
            if self.log.room(need).is_none() {
                return false;
            }
            self.encode(now, index, &chunk, &body);
        }
        self.finish_if_decided(now, index);
        true
    }

    /// First pass: settles what needs no record and picks the next recipients to store, as many as
    /// fit one frame. `None` when every recipient is decided.
    fn decide(&mut self, now: Now, index: usize) -> Option<SmallVec<[usize; 1]>> {
        let mut chunk: SmallVec<[usize; 1]> = SmallVec::new();
        let mut with_first: SmallVec<[Decided; 1]> = SmallVec::new();
        let body = self.appends.get(index)?.group.body.clone();
        let mut need = Self::body_need(&body);
        let count = self.appends.get(index)?.users.len();
        for recipient in 0..count {
            let append = self.appends.get(index)?;
            if append.outcomes.get(recipient).is_none_or(Option::is_some) {
                continue;
            }
            match self.decide_one(now, append, recipient, &chunk) {
                Decision::Store => {
                    need += self.recipient_need(index, recipient, &body);
                    if need > self.log.payload_max() && !chunk.is_empty() {
                        break;
                    }
                    chunk.push(recipient);
                }
                Decision::Now(outcome) => {
                    self.drop_reserved(index, recipient);
                    self.set_outcome(index, recipient, outcome);
                }
                Decision::WithFirst(uid) => {
                    self.drop_reserved(index, recipient);
                    with_first.push(Decided {
                        recipient,
                        kind: DecidedKind::Duplicate { uid },
                        entries: SmallVec::new(),
                    });
                    // Settled provisionally; the frame of the first copy makes it true.
                    self.set_outcome(index, recipient, Outcome::Refused(Refused::Stopped));
                }
                Decision::WithEarlier => {}
            }
        }
        if !with_first.is_empty() {
            let part = Part {
                append: index,
                done: with_first,
                marks: SmallVec::new(),
                dedupe_next: self.window.next(),
            };
            self.log
                .attach_last(part)
                .map_err(|_part| ())
                .expect("its first copy is in flight");
            self.appends.get_mut(index)?.parts += 1;
        }
        (!chunk.is_empty()).then_some(chunk)
    }

    fn decide_one(&self, now: Now, append: &Append, place: usize, chunk: &[usize]) -> Decision {
        let group = &append.group;
        let recipient = group.recipients.get(place).expect("as many as users");
        let user_index = *append.users.get(place).expect("as many as recipients");
        let user = self.users.get(user_index);
        let tail = match &user.state {
            State::Live(live) => &live.tail,
            State::Repairing(corrupt) => {
                return Decision::Now(Outcome::Refused(Refused::Repairing(Arc::clone(corrupt))));
            }
            State::Unloaded | State::Loading => unreachable!("a ready append's users are loaded"),
        };
        let exists = tail.mailbox(recipient.mailbox).is_some()
            || (tail.existence == Existence::Absent && is_first_mailbox(recipient.mailbox));
        if !exists {
            return Decision::Now(Outcome::Refused(Refused::NoSuchMailbox));
        }
        if !tail.has_numbers(tail.mailbox(recipient.mailbox)) {
            let corrupt = Corrupt {
                file: user.dir().to_string(),
                offset: 0,
                reason: CorruptReason::Value(
                    "its numbers (uid, segment, slot, modseq) are used up",
                ),
            };
            return Decision::Now(Outcome::Refused(Refused::Repairing(Arc::new(corrupt))));
        }
        if recipient.dedupe == Dedupe::No {
            return Decision::Store;
        }
        let key = self.dedupe_key(user_index, recipient, group.body.summary());
        match self
            .window
            .find(&key, self.positions.durable_to(), seconds(now.wall))
        {
            Seen::Durable(uid) => Decision::Now(Outcome::Duplicate {
                uid,
                durable: self.positions.durable_to(),
            }),
            Seen::InFlight(uid) => Decision::WithFirst(uid),
            Seen::OtherContent | Seen::No => {
                let same = |earlier: &&usize| {
                    append.users.get(**earlier) == Some(&user_index)
                        && group.recipients.get(**earlier).is_some_and(|other| {
                            other.guid == recipient.guid && other.mailbox == recipient.mailbox
                        })
                };
                if chunk.iter().any(|earlier| same(&earlier)) {
                    Decision::WithEarlier
                } else {
                    Decision::Store
                }
            }
        }
    }

    fn dedupe_key(&self, user: usize, recipient: &Recipient, summary: &Summary) -> Key {
        let user = self.users.get(user);
        Key {
            user: user.hash,
            ordinal: user.ordinal,
            mailbox: recipient.mailbox,
            guid: recipient.guid,
            body_crc: summary.stored_crc,
        }
    }

    /// Bytes of records that the body of a group takes.
    fn body_need(body: &Body) -> usize {
        match body {
            Body::Small(body) => body_len(body.cache.len(), body.stored.len()),
            Body::Staged(_) => 0,
        }
    }

    /// At most so many bytes of records for one recipient.
    fn recipient_need(&self, index: usize, recipient: usize, body: &Body) -> usize {
        let append = self.appends.get(index).expect("an open append");
        let user = append
            .users
            .get(recipient)
            .map(|user| self.users.get(*user));
        let absent = user
            .and_then(|user| user.live())
            .is_none_or(|live| live.tail.existence == Existence::Absent);
        let create = if absent {
            name_len(NAME_BYTES_MAX) + runs_len(4 * SLOT)
        } else {
            0
        };
        create
            + match body {
                Body::Small(_) => deliver_len(PREFIX_BYTES_MAX),
                Body::Staged(_) => deliver_file_len(CACHE_SLOTS_MAX * SLOT),
            }
    }

    /// Second pass: records for `chunk` into the open batch, which has room for them.
    fn encode(&mut self, now: Now, index: usize, chunk: &[usize], body: &Body) {
        let append = self.appends.get_mut(index).expect("an open append");
        append.parts += 1;
        let group = append.group.clone();
        let users = append.users.clone();
        let segments = append.segments.clone();
        let cache_crc = crc::of(body.cache());
        let batch_lsn = self.log.open_batch_mut().expect("room was made").lsn();
        let placed_body = match body {
            Body::Small(small) => Some(self.encode_body(small)),
            Body::Staged(_) => None,
        };
        let mut done: SmallVec<[Decided; 1]> = SmallVec::new();
        for (nth, recipient_at) in chunk.iter().enumerate() {
            let recipient = group
                .recipients
                .get(*recipient_at)
                .expect("chosen among them");
            let user = *users.get(*recipient_at).expect("as many as recipients");
            let last = nth + 1 == chunk.len();
            let mut entries = SmallVec::new();
            self.encode_creation(now, user, recipient, &mut entries);
            let one = One {
                user,
                recipient,
                sender: &group.sender,
                batch_lsn,
                cache_crc,
                group: if last { Group::Ends } else { Group::GoesOn },
            };
            let (uid, modseq) = match (body, &placed_body) {
                (Body::Small(small), Some((at, pending))) => {
                    self.encode_small(&one, small, *at, pending, &mut entries)
                }
                (Body::Staged(staged), _) => {
                    let segment = segments.get(*recipient_at).copied().flatten();
                    let segment = segment.expect("reserved when it was linked");
                    self.encode_large(&one, staged, segment, &mut entries)
                }
                (Body::Small(_), None) => unreachable!("a small body was just encoded"),
            };
            if recipient.dedupe == Dedupe::Yes {
                let key = self.dedupe_key(user, recipient, body.summary());
                self.window
                    .insert(&key, uid, seconds(now.wall), batch_lsn.after(1));
            }
            let kind = DecidedKind::Stored { uid, modseq };
            done.push(Decided {
                recipient: *recipient_at,
                kind,
                entries,
            });
            self.set_outcome(index, *recipient_at, Outcome::Refused(Refused::Stopped));
        }
        let recipients = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        let marks = std::mem::take(&mut self.marks);
        let dedupe_next = self.window.next();
        let batch = self.log.open_batch_mut().expect("room was made");
        batch.attach(
            Part {
                append: index,
                done,
                marks,
                dedupe_next,
            },
            recipients,
        );
    }

    fn encode_body(&mut self, body: &PreparedBody) -> (usize, Rc<PendingBody>) {
        let parts = BodyParts {
            cache: &body.cache,
            stored: &body.stored,
            stored_crc: body.summary.stored_crc,
        };
        let head = Head::unowned(Group::GoesOn, body.summary.stored_crc);
        let batch = self.log.open_batch_mut().expect("room was made");
        let placed = batch.encode(|encoder| encoder.body(&head, &parts));
        let stored_at = crate::format::frame::FRAME_HEADER_BYTES
            + placed.at
            + BODY_STORED_AT
            + body.cache.len();
        let lsn = batch
            .lsn()
            .after(u64::try_from(stored_at).expect("inside a frame"));
        let len = u32::try_from(body.stored.len()).expect("below large_bytes");
        let memory = Some(body.stored.clone());
        (
            placed.at,
            self.bodies.add(memory, lsn, len, body.summary.stored_crc),
        )
    }

    /// Records that make an absent user and its first mailboxes.
    fn encode_creation(
        &mut self,
        now: Now,
        index: usize,
        recipient: &Recipient,
        entries: &mut SmallVec<[Entry; 1]>,
    ) {
        let epoch = self.epoch;
        let user = self.users.get_mut(index);
        let seed = user.seed(1);
        let Some(live) = user.live_mut() else { return };
        if live.tail.existence == Existence::Created {
            return;
        }
        let tail = &mut live.tail;
        tail.existence = Existence::Created;
        let modseq = next_modseq(tail, epoch);
        let name = Bytes::copy_from_slice(recipient.user.name());
        let batch_lsn = self.log.open_batch_mut().expect("room was made").lsn();
        let slot = tail.next_slot;
        assert_eq!(slot, FIRST_SLOT, "an absent user has no runs");
        let mut runs = Vec::with_capacity(4 * SLOT);
        for (mailbox, name, special_use) in FIRST_MAILBOXES {
            let uidvalidity = (tail.uidvalidity_max + 1).max(seconds(now.wall));
            let run = Mailbox {
                op: MailboxOp::Create,
                special_use,
                mailbox,
                uidvalidity: UidValidity::new(uidvalidity),
                modseq,
                lsn: batch_lsn,
                uidnext: 1,
                highest_modseq: 0,
                time: now.wall,
                name,
            };
            run.encode(seed, tail.next_slot, &mut runs);
            tail.next_slot += u32::try_from(run.encoded_len() / SLOT).expect("a short name");
            apply_mailbox(tail, &run);
        }
        let head = self.head(index, MailboxId::new(0), modseq, 0, Group::GoesOn);
        self.record(&head, |encoder, head| encoder.user_create(head, &name));
        let mut head = self.head(index, MailboxId::INBOX, modseq, slot, Group::GoesOn);
        head.generation = 1;
        self.record(&head, |encoder, head| {
            encoder.runs(head, RecordType::Mailbox, &runs)
        });
        entries.push(Entry {
            slot: 0,
            what: What::Create {
                name,
                lsn: batch_lsn,
            },
        });
        entries.push(Entry {
            slot,
            what: What::Runs(Bytes::from(runs)),
        });
    }

    /// A record's header at the next place of its partition.
    fn head(
        &mut self,
        user: usize,
        mailbox: MailboxId,
        modseq: Modseq,
        slot: u32,
        group: Group,
    ) -> Head {
        let user = self.users.get(user);
        let (pseq, chain) = self.partitions.next(user.partition);
        Head {
            group,
            partition: user.partition,
            user: user.hash,
            ordinal: user.ordinal,
            mailbox,
            modseq,
            uid: 0,
            generation: 0,
            slot,
            body_crc: 0,
            pseq,
            epoch: self.epoch,
            chain,
        }
    }

    /// Encodes one record and moves its partition on.
    fn record(&mut self, head: &Head, encode: impl FnOnce(&mut Encoder<'_>, &Head) -> Placed) {
        let batch = self.log.open_batch_mut().expect("room was made");
        let placed = batch.encode(|encoder| encode(encoder, head));
        let (partition, pseq, chain) = (head.partition, head.pseq, placed.chain);
        self.partitions.advance(partition, pseq, chain, head.epoch);
        self.marks.push(Mark {
            partition,
            pseq,
            chain,
        });
        self.pending_records += 1;
    }

    fn encode_small(
        &mut self,
        one: &One<'_>,
        body: &PreparedBody,
        body_at: usize,
        pending: &Rc<PendingBody>,
        entries: &mut SmallVec<[Entry; 1]>,
    ) -> (Uid, Modseq) {
        let summary = &body.summary;
        let stored_len = u32::try_from(summary.stored_len).expect("below large_bytes");
        let segment_max = self.config.segment_bytes_max;
        let reserved = self.reserve(one, &body.cache);
        let Reserved {
            uid,
            modseq,
            uidvalidity,
            slot,
            ..
        } = reserved;
        let line = StoreLine {
            mailbox: one.recipient.mailbox,
            uidvalidity: uidvalidity.value(),
            uid: uid.value(),
            guid: one.recipient.guid,
            internal_date: one.recipient.internal_date,
            stored_len,
            stored_crc: summary.stored_crc,
            format_flags: line_flags(summary.format_flags),
        };
        let prefix = mbox::prefix(one.sender, one.recipient.internal_date, &line);
        let bytes = u64::try_from(prefix.len()).expect("short") + u64::from(stored_len) + 1;
        let (segment, offset) = self.reserve_bytes(one, bytes, segment_max);
        let mut msg = message(one, summary, &reserved);
        msg.segment = segment;
        msg.offset = offset;
        msg.skip = u16::try_from(prefix.len()).expect("limits bound it");
        let fixed = self.seal_run(one.user, &msg, slot, (&body.cache, one.cache_crc));
        let head = self.message_head(one, &reserved, summary);
        let parts = DeliverParts {
            fixed: &fixed,
            prefix: &prefix,
            body_at,
        };
        self.record(&head, |encoder, head| encoder.deliver(head, &parts));
        let mut bytes = Vec::with_capacity(MSG_FIXED_BYTES + prefix.len());
        bytes.extend_from_slice(fixed.bytes());
        bytes.extend_from_slice(&prefix);
        let mail = SmallMail {
            head: Bytes::from(bytes),
            cache: body.cache.clone(),
            body: Some(Rc::clone(pending)),
            mailbox: one.recipient.mailbox,
            uid,
            segment,
            offset,
        };
        entries.push(Entry {
            slot,
            what: What::Small(mail),
        });
        (uid, modseq)
    }

    fn encode_large(
        &mut self,
        one: &One<'_>,
        staged: &crate::large::StagedBody,
        segment: u32,
        entries: &mut SmallVec<[Entry; 1]>,
    ) -> (Uid, Modseq) {
        let reserved = self.reserve(one, &staged.cache);
        let Reserved {
            uid, modseq, slot, ..
        } = reserved;
        let mut msg = message(one, &staged.summary, &reserved);
        msg.format_flags |= crate::format::info::OWN_FILE;
        msg.segment = segment;
        msg.skip = staged.prefix_len;
        let fixed = self.seal_run(one.user, &msg, slot, (&staged.cache, one.cache_crc));
        let head = self.message_head(one, &reserved, &staged.summary);
        self.record(&head, |encoder, head| {
            encoder.deliver_file(head, &fixed, &staged.cache)
        });
        let mail = LargeMail {
            head: Bytes::copy_from_slice(fixed.bytes()),
            cache: staged.cache.clone(),
            mailbox: one.recipient.mailbox,
            uid,
            segment,
        };
        entries.push(Entry {
            slot,
            what: What::Large(mail),
        });
        (uid, modseq)
    }

    fn message_head(&mut self, one: &One<'_>, reserved: &Reserved, summary: &Summary) -> Head {
        let mailbox = one.recipient.mailbox;
        let mut head = self.head(one.user, mailbox, reserved.modseq, reserved.slot, one.group);
        head.uid = reserved.uid.value();
        head.generation = reserved.generation;
        head.body_crc = summary.stored_crc;
        head
    }

    fn seal_run(
        &self,
        user: usize,
        msg: &Msg,
        slot: u32,
        (cache, cache_crc): (&Bytes, u32),
    ) -> MsgFixed {
        let user = self.users.get(user);
        let generation = user.live().map_or(1, |live| live.tail.generation);
        let slots = u8::try_from(cache.len() / SLOT).expect("at most 15");
        msg.fixed(slots)
            .seal(user.seed(generation), slot, cache_crc)
    }

    /// Takes the next uid, modseq and slots of a recipient.
    fn reserve(&mut self, one: &One<'_>, cache: &Bytes) -> Reserved {
        let epoch = self.epoch;
        let slots = (MSG_FIXED_BYTES + cache.len()) / SLOT;
        let live = self
            .users
            .get_mut(one.user)
            .live_mut()
            .expect("decided: store");
        let tail = &mut live.tail;
        let modseq = next_modseq(tail, epoch);
        let (slot, generation) = (tail.next_slot, tail.generation);
        tail.next_slot += u32::try_from(slots).expect("at most 17");
        let mailbox = tail
            .mailbox_mut(one.recipient.mailbox)
            .expect("decided: it exists");
        let uid = Uid::new(mailbox.uidnext);
        mailbox.uidnext = mailbox
            .uidnext
            .checked_add(1)
            .expect("4 billion uids are used up");
        let uidvalidity = mailbox.uidvalidity;
        Reserved {
            uid,
            modseq,
            uidvalidity,
            slot,
            generation,
            lsn: one.batch_lsn,
        }
    }

    /// Takes the next bytes of a recipient's segment, and the slots of its run.
    fn reserve_bytes(&mut self, one: &One<'_>, bytes: u64, segment_max: u64) -> (u32, u64) {
        let live = self
            .users
            .get_mut(one.user)
            .live_mut()
            .expect("decided: store");
        let tail = &mut live.tail;
        let next_segment = tail.next_segment;
        let mailbox = tail
            .mailbox_mut(one.recipient.mailbox)
            .expect("decided: it exists");
        let roll = mailbox.segment == 0 || mailbox.segment_end + bytes > segment_max;
        if roll {
            mailbox.segment = next_segment;
            mailbox.segment_end = 0;
        }
        let place = (mailbox.segment, mailbox.segment_end);
        mailbox.segment_end += bytes;
        if roll {
            tail.next_segment += 1;
        }
        place
    }

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
    fn publish_entries(&mut self, index: usize, entries: SmallVec<[Entry; 1]>) {
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

    fn set_outcome(&mut self, index: usize, recipient: usize, outcome: Outcome) {
        let append = self.appends.get_mut(index).expect("an open append");
        if let Some(place) = append.outcomes.get_mut(recipient) {
            *place = Some(outcome);
        }
    }

    /// Answers an append all of whose recipients are settled and none of whose frames is awaited.
    fn finish_if_decided(&mut self, now: Now, index: usize) {
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

    /// Refuses the recipients of an append that are not settled.
    pub(super) fn refuse_rest(&mut self, index: usize, why: &Refused) {
        let Some(append) = self.appends.get(index) else {
            return;
        };
        let now = Now {
            monotonic: append.since,
            wall: WallNs::new(0),
        };
        for recipient in 0..append.users.len() {
            let settled = self
                .appends
                .get(index)
                .and_then(|append| append.outcomes.get(recipient));
            if settled.is_some_and(Option::is_none) {
                self.drop_reserved(index, recipient);
                self.set_outcome(index, recipient, Outcome::Refused(why.clone()));
            }
        }
        self.finish_if_decided(now, index);
    }

    /// After a fatal error: every open append is answered `Stopped`, whatever the disk holds.
    pub(super) fn refuse_appends(&mut self) {
        self.ready.clear();
        let open: Vec<usize> = self.appends.iter().map(|(index, _)| index).collect();
        for index in open {
            let append = self.appends.remove(index);
            let stopped = Outcome::Refused(Refused::Stopped);
            let outcomes = append.outcomes.iter().map(|_| stopped.clone()).collect();
            self.answer(Event::Appended {
                ticket: append.ticket,
                outcomes,
            });
        }
    }

    /// Whether too many requests wait for one user.
    pub(super) fn user_queue_is_full(&self, index: usize) -> bool {
        self.users.get(index).waiting.len() >= USER_QUEUE_MAX
    }
}

/// One recipient being encoded.
struct One<'a> {
    user: usize,
    recipient: &'a Recipient,
    sender: &'a [u8],
    batch_lsn: Lsn,
    cache_crc: u32,
    group: Group,
}

/// What a recipient's message was given.
struct Reserved {
    uid: Uid,
    modseq: Modseq,
    uidvalidity: UidValidity,
    slot: u32,
    generation: u32,
    lsn: Lsn,
}

/// The values of a MSG run, but for its place in a segment.
fn message(one: &One<'_>, summary: &Summary, reserved: &Reserved) -> Msg {
    Msg {
        format_flags: summary.format_flags,
        mailbox: one.recipient.mailbox,
        uid: reserved.uid,
        modseq: reserved.modseq,
        lsn: reserved.lsn,
        segment: 0,
        offset: 0,
        stored_len: u32::try_from(summary.stored_len).expect("bounded at submit"),
        skip: 0,
        header_len: summary.header_len,
        lines_count: summary.lines_count,
        quoted_count: summary.quoted_count,
        rfc822_size: summary.rfc822_size,
        internal_date: one.recipient.internal_date,
        date_s: summary.date_s,
        system_flags: 0,
        stored_crc: summary.stored_crc,
        keywords: 0,
        guid: one.recipient.guid,
        held_for: 0,
    }
}

/// Mailbox, uid, head and cache of an entry that is a message.
pub(super) fn message_of(entry: &Entry) -> Option<(MailboxId, Uid, &Bytes, &Bytes)> {
    match &entry.what {
        What::Small(mail) => Some((mail.mailbox, mail.uid, &mail.head, &mail.cache)),
        What::Large(mail) => Some((mail.mailbox, mail.uid, &mail.head, &mail.cache)),
        What::Create { .. } | What::Runs(_) => None,
    }
}

fn is_first_mailbox(mailbox: MailboxId) -> bool {
    FIRST_MAILBOXES
        .iter()
        .any(|(first, _, _)| *first == mailbox)
}

/// RFC 7162 3.1: grows with every group; an epoch begins above all earlier ones (cluster.md 6.6).
fn next_modseq(tail: &mut Tail, epoch: ringpost_netproto::id::Epoch) -> Modseq {
    tail.modseq = (tail.modseq + 1).max(u64::from(epoch.value()) << 40);
    Modseq::new(tail.modseq)
}

/// Seconds of a wall clock, as 32 unsigned bits (until 2106).
pub(super) fn seconds(wall: WallNs) -> u32 {
    u32::try_from(wall.value() / 1_000_000_000).unwrap_or(u32::MAX)
}

/// The format flags that a store line carries.
pub(super) fn line_flags(format_flags: u16) -> u8 {
    u8::try_from(format_flags & STORE_LINE_FLAGS).expect("five bits")
}

impl Body {
    pub(super) fn summary(&self) -> &Summary {
        match self {
            Self::Small(body) => &body.summary,
            Self::Staged(staged) => &staged.summary,
        }
    }

    fn cache(&self) -> &Bytes {
        match self {
            Self::Small(body) => &body.cache,
            Self::Staged(staged) => &staged.cache,
        }
    }
}
