//! Records of an append into the open batch: bodies, deliveries, and what makes a user
//! (storage.md 3.6, 4.1). Everything was decided before: nothing here is refused or taken back.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use ringpost_netproto::id::{Epoch, MailboxId, Modseq, Uid, UidValidity};
use smallvec::SmallVec;

use super::Shard;
use super::append::{
    Decided, DecidedKind, FIRST_MAILBOXES, Mark, Part, PartOf, Special, line_flags, seconds,
};
use crate::canary::{self, Canary};
use crate::dedupe::Window;
use crate::format::crc;
use crate::format::info::{
    FIRST_SLOT, Keyword, MSG_FIXED_BYTES, Mailbox, MailboxOp, Msg, MsgFixed, SLOT, SYSTEM_FLAGS,
    Seed,
};
use crate::format::record::{
    BODY_STORED_AT, BodyParts, DeliverParts, Encoder, Group, Head, Placed, RecordType,
};
use crate::format::store_line::StoreLine;
use crate::io::{Io, Op};
use crate::limits::KEYWORDS_MAX;
use crate::mbox;
use crate::ops::Purpose;
use crate::pending::{Entry, LargeMail, PendingBody, SmallMail, What};
use crate::position::Lsn;
use crate::prepare::{PreparedBody, Summary};
use crate::request::{Body, Dedupe, Given, Now, Outcome, Recipient, Refused};
use crate::tail::{Existence, Stand, Tail, Usage};

impl<I: Io> Shard<I> {
    /// Second pass: records for `chunk` into the open batch, which has room for them.
    pub(super) fn encode(&mut self, now: Now, index: usize, chunk: &[usize], body: &Body) {
        let append = self.appends.get_mut(index).expect("an open append");
        append.parts += 1;
        let sender = append.group.sender.clone();
        let special = append.special.clone();
        self.copies.refilling = matches!(special, Special::Given(_));
        let cache_crc = crc::of(body.cache());
        let placed_body = match body {
            Body::Small(small) => Some(self.encode_prepared(small)),
            Body::Staged(_) => None,
        };
        let batch_lsn = self.log.open_batch_mut().expect("room was made").lsn();
        let mut done: SmallVec<[Decided; 1]> = SmallVec::new();
        for (nth, recipient_at) in chunk.iter().enumerate() {
            let append = self.appends.get(index).expect("an open append");
            let recipient = append.group.recipients.get(*recipient_at);
            let mut recipient = recipient.expect("chosen among them").clone();
            let user = append.users.get(*recipient_at);
            let user = *user.expect("as many as recipients");
            let segment = append.segments.get(*recipient_at).copied().flatten();
            let last = nth + 1 == chunk.len();
            let mut entries = SmallVec::new();
            self.encode_creation(now, user, recipient.user.name(), &mut entries);
            let held_for = special.held_for(*recipient_at);
            if held_for.is_some() {
                let of = (index, *recipient_at);
                recipient.mailbox = self.encode_held_mailbox(now, of, user, &mut entries);
            }
            let (place, words) = (recipient.mailbox, &recipient.flags.keywords);
            let keywords = self.encode_keywords(user, place, words, None, &mut entries);
            let one = One {
                user,
                recipient: &recipient,
                sender: &sender,
                batch_lsn,
                cache_crc,
                keywords,
                held_for: held_for.unwrap_or(MailboxId::new(0)),
                given: special.given(*recipient_at),
                group: if last { Group::Ends } else { Group::GoesOn },
            };
            let (uid, modseq) = match (body, &placed_body) {
                (Body::Small(small), Some((at, pending))) => {
                    self.encode_small(&one, small, *at, pending, &mut entries)
                }
                (Body::Staged(staged), _) => {
                    let segment = segment.expect("reserved when it was linked");
                    self.encode_large(&one, staged, segment, &mut entries)
                }
                (Body::Small(_), None) => unreachable!("a small body was just encoded"),
            };
            self.remember(now, &one, uid, body.summary());
            self.hand_over_early(user, &mut entries);
            let kind = DecidedKind::Stored { uid, modseq };
            done.push(Decided {
                recipient: *recipient_at,
                kind,
                entries,
            });
            self.set_outcome(index, *recipient_at, Outcome::Refused(Refused::Stopped));
        }
        self.copies.refilling = false;
        let count = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        let part = Part {
            of: PartOf::Append(index, done),
            marks: std::mem::take(&mut self.marks),
            dedupe_next: self.window.next(),
        };
        let batch = self.log.open_batch_mut().expect("room was made");
        batch.attach(part, count);
    }

    /// Planted: records that are on their way into the log are shown, or the next checkpoint writes
    /// them.
    fn hand_over_early(&mut self, index: usize, entries: &mut SmallVec<[Entry; 1]>) {
        if canary::on(Canary::VisibleEarly) {
            self.publish_entries(index, std::mem::take(entries));
        } else if canary::on(Canary::WrittenBeyondDurable) {
            let user = self.users.get_mut(index);
            if user.pending.is_empty() {
                self.dirty.push(index);
            }
            user.pending.extend_from_slice(entries);
            self.pending_records += u64::try_from(entries.len()).unwrap_or(0);
        }
    }

    /// Remembers a delivery that is stored.
    fn remember(&mut self, now: Now, one: &One<'_>, uid: Uid, summary: &Summary) {
        let key = self.dedupe_key(one.user, one.recipient, summary);
        if let Some(window) = self.window_of(one.recipient.dedupe) {
            window.insert(&key, uid, seconds(now.wall), one.batch_lsn.after(1));
        }
    }

    /// Where ids of such deliveries are remembered, if they are.
    fn window_of(&mut self, dedupe: Dedupe) -> Option<&mut Window> {
        match dedupe {
            Dedupe::Yes | Dedupe::Whole => Some(&mut self.window),
            Dedupe::Recent => Some(&mut self.recent),
            Dedupe::No => None,
        }
    }

    /// The BODY record of a small message.
    fn encode_prepared(&mut self, body: &PreparedBody) -> (usize, Rc<PendingBody>) {
        self.encode_body(&body.cache, &body.stored, body.summary.stored_crc)
    }

    /// A BODY record: its place in the batch, and the body as pending mail refers to it.
    pub(super) fn encode_body(
        &mut self,
        cache: &Bytes,
        stored: &Bytes,
        stored_crc: u32,
    ) -> (usize, Rc<PendingBody>) {
        let parts = BodyParts {
            cache,
            stored,
            stored_crc,
        };
        let head = Head::unowned(Group::GoesOn, stored_crc);
        let batch = self.log.open_batch_mut().expect("room was made");
        let placed = batch.encode(|encoder| encoder.body(&head, &parts));
        let stored_at =
            crate::format::frame::FRAME_HEADER_BYTES + placed.at + BODY_STORED_AT + cache.len();
        let lsn = batch
            .lsn()
            .after(u64::try_from(stored_at).expect("inside a frame"));
        let len = u32::try_from(stored.len()).expect("below large_bytes");
        let memory = Some(stored.clone());
        if canary::on(Canary::BodyApart) {
            self.log.split();
        }
        (placed.at, self.bodies.add(memory, lsn, len, stored_crc))
    }

    /// Records that make an absent user and its first mailboxes.
    pub(super) fn encode_creation(
        &mut self,
        now: Now,
        index: usize,
        name: &[u8],
        entries: &mut SmallVec<[Entry; 1]>,
    ) {
        let epoch = self.epoch_of(self.users.get(index).partition);
        let user = self.users.get_mut(index);
        let seed = user.seed(1);
        let Some(live) = user.live_mut() else { return };
        if live.tail.existence != Existence::Absent {
            return;
        }
        let tail = &mut live.tail;
        tail.existence = Existence::Coming;
        let modseq = next_modseq(tail, epoch);
        let name = Bytes::copy_from_slice(name);
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
            tail.add_mailbox(&run, Stand::Coming);
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

    /// A record for those of the keywords that a mailbox does not have yet; gives the bits of all
    /// of them. Words for which there is no bit are left out: who must not lose them asked before.
    pub(super) fn encode_keywords(
        &mut self,
        index: usize,
        mailbox: MailboxId,
        words: &[Arc<str>],
        modseq: Option<Modseq>,
        entries: &mut SmallVec<[Entry; 1]>,
    ) -> u64 {
        if words.is_empty() {
            return 0;
        }
        let epoch = self.epoch_of(self.users.get(index).partition);
        let lsn = self.log.open_batch_mut().expect("room was made").lsn();
        let user = self.users.get_mut(index);
        let (hash, live) = (user.hash, user.live_mut().expect("decided: it is there"));
        let tail = &mut live.tail;
        let (slot, generation) = (tail.next_slot, tail.generation);
        let seed = Seed {
            user: hash,
            generation,
        };
        let known = tail.mailbox(mailbox).expect("decided: it exists");
        let fresh = words.iter().any(|word| known.keyword_bit(word).is_none());
        let modseq = match modseq {
            Some(modseq) => modseq,
            None if fresh => next_modseq(tail, epoch),
            None => Modseq::new(tail.modseq),
        };
        let mut next_slot = slot;
        let mut runs = Vec::new();
        let mut bits = 0;
        let known = tail.mailbox_mut(mailbox).expect("decided: it exists");
        for word in words {
            let bit = known.keyword_bit(word).or_else(|| {
                let bit = u8::try_from(known.keywords.len()).ok()?;
                if usize::from(bit) >= KEYWORDS_MAX {
                    return None;
                }
                let run = Keyword {
                    mailbox,
                    bit,
                    modseq,
                    lsn,
                    name: word,
                };
                run.encode(seed, next_slot, &mut runs);
                next_slot += u32::try_from(run.encoded_len() / SLOT).expect("a short word");
                known.keywords.push(Arc::clone(word));
                Some(bit)
            });
            bits |= bit.map_or(0, |bit| 1 << bit);
        }
        tail.next_slot = next_slot;
        if !runs.is_empty() {
            let at = RunsAt {
                user: index,
                mailbox,
                kind: RecordType::Keyword,
                slot,
                modseq,
                group: Group::GoesOn,
            };
            self.encode_runs(&at, runs, entries);
        }
        bits
    }

    /// A record of runs, sealed for their slots.
    pub(super) fn encode_runs(
        &mut self,
        at: &RunsAt,
        runs: Vec<u8>,
        entries: &mut SmallVec<[Entry; 1]>,
    ) {
        let live = self.users.get(at.user).live();
        let generation = live.map_or(1, |live| live.tail.generation);
        let mut head = self.head(at.user, at.mailbox, at.modseq, at.slot, at.group);
        head.generation = generation;
        self.record(&head, |encoder, head| encoder.runs(head, at.kind, &runs));
        entries.push(Entry {
            slot: at.slot,
            what: What::Runs(Bytes::from(runs)),
        });
    }

    /// A record's header at the next place of its partition; at none if its user is this node's alone.
    pub(super) fn head(
        &mut self,
        user: usize,
        mailbox: MailboxId,
        modseq: Modseq,
        slot: u32,
        group: Group,
    ) -> Head {
        let user = self.users.get(user);
        let (pseq, chain, epoch) = if user.is_local() || self.copies.refilling {
            (0, 0, Epoch::new(0))
        } else {
            let (pseq, chain) = self.partitions.next(user.partition);
            (pseq, chain, self.epoch_of(user.partition))
        };
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
            epoch,
            chain,
        }
    }

    /// Encodes one record and moves its partition on.
    pub(super) fn record(
        &mut self,
        head: &Head,
        encode: impl FnOnce(&mut Encoder<'_>, &Head) -> Placed,
    ) {
        let batch = self.log.open_batch_mut().expect("room was made");
        let placed = batch.encode(|encoder| encode(encoder, head));
        self.pending_records += 1;
        if head.pseq == 0 {
            return;
        }
        let (partition, pseq, chain) = (head.partition, head.pseq, placed.chain);
        self.partitions.advance(partition, pseq, chain, head.epoch);
        self.marks.push(Mark {
            partition,
            pseq,
            chain,
            chain_before: head.chain,
            epoch: head.epoch,
        });
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
        let reserved = self.reserve(one, &body.cache, summary);
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
        // The run goes in front when it is sealed: it tells how long the prefix is.
        let date = one.recipient.internal_date;
        let mut head = Vec::with_capacity(MSG_FIXED_BYTES + mbox::prefix_room(one.sender));
        head.resize(MSG_FIXED_BYTES, 0);
        mbox::put_prefix(one.sender, date, &line, &mut head);
        let (run, prefix) = head.split_at_mut(MSG_FIXED_BYTES);
        let bytes = u64::try_from(prefix.len()).expect("short") + u64::from(stored_len) + 1;
        let place = (one.user, one.recipient.mailbox);
        let (segment, offset) = self.reserve_bytes(place, bytes);
        let mut msg = message(one, summary, &reserved);
        msg.segment = segment;
        msg.offset = offset;
        msg.skip = u16::try_from(prefix.len()).expect("limits bound it");
        let fixed = self.seal_run(one.user, &msg, slot, (&body.cache, one.cache_crc));
        run.copy_from_slice(fixed.bytes());
        let record_head = self.message_head(one, &reserved, summary);
        let parts = DeliverParts {
            fixed: &fixed,
            prefix,
            body_at,
        };
        self.record(&record_head, |encoder, head| encoder.deliver(head, &parts));
        let mail = SmallMail {
            head: Bytes::from(head),
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
        let reserved = self.reserve(one, &staged.cache, &staged.summary);
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
        if canary::on(Canary::RenamedBeforeRecord) {
            let dir = self.users.get(one.user).dir();
            let from = dir.segment_part(segment);
            let to = dir.large(segment, one.recipient.mailbox, uid);
            self.ops.start(Op::Rename { from, to }, Purpose::Tidy);
        }
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

    pub(super) fn seal_run(
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
    fn reserve(&mut self, one: &One<'_>, cache: &Bytes, summary: &Summary) -> Reserved {
        let epoch = self.epoch_of(self.users.get(one.user).partition);
        let live = self.users.get_mut(one.user).live_mut();
        let tail = &mut live.expect("decided: store").tail;
        let modseq = match one.given {
            Some(given) => {
                tail.modseq = tail.modseq.max(given.modseq.value());
                given.modseq
            }
            None => next_modseq(tail, epoch),
        };
        let slots = (MSG_FIXED_BYTES + cache.len()) / SLOT;
        let usage = Usage::of(summary.rfc822_size);
        if let Some(given) = one.given
            && let Some(mailbox) = tail.mailbox_mut(one.recipient.mailbox)
        {
            mailbox.uidnext = given.uid.value();
        }
        reserve_message(tail, one.recipient.mailbox, slots, usage, modseq)
    }

    /// Takes the next bytes of a recipient's segment, and the slots of its run.
    pub(super) fn reserve_bytes(
        &mut self,
        (user, mailbox): (usize, MailboxId),
        bytes: u64,
    ) -> (u32, u64) {
        let segment_max = self.config.segment_bytes_max;
        let live = self.users.get_mut(user).live_mut().expect("decided: store");
        let tail = &mut live.tail;
        let next_segment = tail.next_segment;
        let mailbox = tail.mailbox_mut(mailbox).expect("decided: it exists");
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
        tail.awaits(place.0);
        place
    }
}

/// One recipient being encoded.
struct One<'a> {
    user: usize,
    recipient: &'a Recipient,
    sender: &'a [u8],
    batch_lsn: Lsn,
    cache_crc: u32,
    /// Bits of its flags' keywords.
    keywords: u64,
    /// Of held mail the mailbox that it is for, else 0.
    held_for: MailboxId,
    /// Numbers that it has already.
    given: Option<Given>,
    group: Group,
}

/// Where a record of runs goes.
pub(super) struct RunsAt {
    pub(super) user: usize,
    pub(super) mailbox: MailboxId,
    pub(super) kind: RecordType,
    /// Of the first run.
    pub(super) slot: u32,
    pub(super) modseq: Modseq,
    pub(super) group: Group,
}

/// What a recipient's message was given.
pub(super) struct Reserved {
    pub(super) uid: Uid,
    pub(super) modseq: Modseq,
    pub(super) uidvalidity: UidValidity,
    pub(super) slot: u32,
    pub(super) generation: u32,
}

/// Takes the next uid and slots of a mailbox, and counts the message as on its way.
pub(super) fn reserve_message(
    tail: &mut Tail,
    mailbox: MailboxId,
    slots: usize,
    usage: Usage,
    modseq: Modseq,
) -> Reserved {
    tail.reserved = tail.reserved.plus(usage);
    let (slot, generation) = (tail.next_slot, tail.generation);
    tail.next_slot += u32::try_from(slots).expect("at most 17");
    let mailbox = tail.mailbox_mut(mailbox).expect("decided: it exists");
    let uid = Uid::new(mailbox.uidnext);
    mailbox.uidnext = mailbox
        .uidnext
        .checked_add(1)
        .expect("4 billion uids are used up");
    Reserved {
        uid,
        modseq,
        uidvalidity: mailbox.uidvalidity,
        slot,
        generation,
    }
}

/// The values of a MSG run, but for its place in a segment.
fn message(one: &One<'_>, summary: &Summary, reserved: &Reserved) -> Msg {
    Msg {
        format_flags: summary.format_flags,
        mailbox: one.recipient.mailbox,
        uid: reserved.uid,
        modseq: reserved.modseq,
        lsn: one.batch_lsn,
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
        system_flags: one.recipient.flags.system & SYSTEM_FLAGS,
        stored_crc: summary.stored_crc,
        keywords: one.given.map_or(one.keywords, |given| given.keywords),
        guid: one.recipient.guid,
        held_for: one.held_for.value(),
    }
}

/// RFC 7162 3.1: grows with every group; an epoch begins above all earlier ones (cluster.md 6.6).
pub(super) fn next_modseq(tail: &mut Tail, epoch: Epoch) -> Modseq {
    tail.modseq = (tail.modseq + 1).max(u64::from(epoch.value()) << 40);
    Modseq::new(tail.modseq)
}
