//! One group of a copy being encoded: bodies and deliveries in the target, and for a move the
//! expunge of the source.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use ringpost_netproto::id::{MailboxId, Modseq, Uid};
use smallvec::SmallVec;

use super::copy::named;
use crate::format::crc;
use crate::format::info::{
    Change, ChangeKind, MSG_FIXED_BYTES, Msg, MsgFixed, REBUILT, SLOT, Seed,
};
use crate::format::record::{DeliverParts, Group, Head, RecordType};
use crate::format::store_line::StoreLine;
use crate::io::Io;
use crate::mbox;
use crate::pending::{Entry, LargeMail, SmallMail, What};
use crate::position::Lsn;
use crate::request::{Now, UidSet};
use crate::shard::Shard;
use crate::shard::append::line_flags;
use crate::shard::encode::{Reserved, RunsAt, next_modseq, reserve_message};
use crate::tail::Usage;

/// A message to be copied.
pub(super) struct Source {
    pub(super) msg: Msg,
    pub(super) cache: Bytes,
}

/// One group of a copy. The open batch has room for it.
pub(super) struct Copier {
    user: usize,
    to: MailboxId,
    moves: bool,
    words: Vec<Arc<str>>,
    pub(super) modseq: Modseq,
    lsn: Lsn,
    pub(super) entries: SmallVec<[Entry; 1]>,
    /// Uids where they were.
    copied: UidSet,
}

impl Copier {
    /// Begins a group; `words` are the keywords of the source by bit.
    pub(super) fn new<I: Io>(
        shard: &mut Shard<I>,
        user: usize,
        to: MailboxId,
        words: Vec<Arc<str>>,
        moves: bool,
    ) -> Self {
        let lsn = shard.log.open_batch_mut().expect("room was made").lsn();
        let epoch = shard.epoch_of(shard.users.get(user).partition);
        let live = shard.users.get_mut(user).live_mut();
        let tail = &mut live.expect("a change pins its user").tail;
        Self {
            user,
            to,
            moves,
            words,
            modseq: next_modseq(tail, epoch),
            lsn,
            entries: SmallVec::new(),
            copied: UidSet::none(),
        }
    }

    /// The message in the target, but for its place in a segment, and its numbers.
    fn reserve<I: Io>(&mut self, shard: &mut Shard<I>, source: &Source) -> (Msg, Reserved) {
        let old = &source.msg;
        self.copied.push(old.uid);
        let words: Vec<_> = named(&self.words, old.keywords).cloned().collect();
        let (user, to, modseq) = (self.user, self.to, self.modseq);
        let keywords = shard.encode_keywords(user, to, &words, Some(modseq), &mut self.entries);
        let live = shard.users.get_mut(user).live_mut();
        let tail = &mut live.expect("a change pins its user").tail;
        let usage = Usage::of(old.rfc822_size);
        if self.moves {
            tail.moving = tail.moving.plus(usage);
        }
        let slots = (MSG_FIXED_BYTES + source.cache.len()) / SLOT;
        let reserved = reserve_message(tail, to, slots, usage, modseq);
        let msg = Msg {
            format_flags: old.format_flags & !REBUILT,
            mailbox: to,
            uid: reserved.uid,
            modseq,
            lsn: self.lsn,
            offset: 0,
            keywords,
            ..*old
        };
        (msg, reserved)
    }

    /// Run and record header of a message whose place is known.
    fn seal<I: Io>(
        &self,
        shard: &mut Shard<I>,
        msg: &Msg,
        cache: &Bytes,
        (reserved, group): (&Reserved, Group),
    ) -> (MsgFixed, Head) {
        let (user, slot) = (self.user, reserved.slot);
        let fixed = shard.seal_run(user, msg, slot, (cache, crc::of(cache)));
        let mut head = shard.head(user, self.to, self.modseq, slot, group);
        head.uid = msg.uid.value();
        head.generation = reserved.generation;
        head.body_crc = msg.stored_crc;
        (fixed, head)
    }

    /// Encodes a message from its stored bytes and its `From_` line (empty if that is not known);
    /// gives its new uid.
    pub(super) fn small<I: Io>(
        &mut self,
        shard: &mut Shard<I>,
        source: &Source,
        (stored, front): (Bytes, Bytes),
        group: Group,
    ) -> Uid {
        let (mut msg, reserved) = self.reserve(shard, source);
        let cache = &source.cache;
        let store_line = StoreLine {
            mailbox: self.to,
            uidvalidity: reserved.uidvalidity.value(),
            uid: reserved.uid.value(),
            guid: msg.guid,
            internal_date: msg.internal_date,
            stored_len: msg.stored_len,
            stored_crc: msg.stored_crc,
            format_flags: line_flags(msg.format_flags),
        };
        let mut prefix = if front.is_empty() {
            mbox::from_line(b"", msg.internal_date)
        } else {
            front.to_vec()
        };
        prefix.extend_from_slice(&store_line.encode());
        msg.skip = u16::try_from(prefix.len()).expect("limits bound it");
        let place = (self.user, self.to);
        (msg.segment, msg.offset) = shard.reserve_bytes(place, msg.segment_bytes());
        let (body_at, body) = shard.encode_body(cache, &stored, msg.stored_crc);
        let (fixed, head) = self.seal(shard, &msg, cache, (&reserved, group));
        let parts = DeliverParts {
            fixed: &fixed,
            prefix: &prefix,
            body_at,
        };
        shard.record(&head, |encoder, head| encoder.deliver(head, &parts));
        let mut bytes = fixed.bytes().to_vec();
        bytes.extend_from_slice(&prefix);
        let mail = SmallMail {
            head: Bytes::from(bytes),
            cache: cache.clone(),
            body: Some(Rc::clone(&body)),
            mailbox: self.to,
            uid: msg.uid,
            segment: msg.segment,
            offset: msg.offset,
        };
        self.entries.push(Entry {
            slot: reserved.slot,
            what: What::Small(mail),
        });
        msg.uid
    }

    /// Encodes a message whose file was linked as that segment; gives its new uid.
    pub(super) fn large<I: Io>(
        &mut self,
        shard: &mut Shard<I>,
        source: &Source,
        segment: u32,
        group: Group,
    ) -> Uid {
        let (mut msg, reserved) = self.reserve(shard, source);
        msg.segment = segment;
        let cache = &source.cache;
        let (fixed, head) = self.seal(shard, &msg, cache, (&reserved, group));
        shard.record(&head, |encoder, head| {
            encoder.deliver_file(head, &fixed, cache)
        });
        let mail = LargeMail {
            head: Bytes::copy_from_slice(fixed.bytes()),
            cache: cache.clone(),
            mailbox: self.to,
            uid: msg.uid,
            segment,
        };
        self.entries.push(Entry {
            slot: reserved.slot,
            what: What::Large(mail),
        });
        msg.uid
    }

    /// Ends the group of a move: its messages are gone where they were.
    pub(super) fn expunge<I: Io>(&mut self, shard: &mut Shard<I>, now: Now, from: MailboxId) {
        let user = shard.users.get_mut(self.user);
        let hash = user.hash;
        let tail = &mut user.live_mut().expect("a change pins its user").tail;
        let seed = Seed {
            user: hash,
            generation: tail.generation,
        };
        let slot = tail.next_slot;
        let mut runs = Vec::new();
        for range in self.copied.ranges() {
            let run = Change {
                kind: ChangeKind::Expunge,
                mailbox: from,
                uid_low: Uid::new(range.low),
                uid_high: Uid::new(range.high),
                modseq: self.modseq,
                lsn: self.lsn,
                system_flags: 0,
                keywords: 0,
                time: now.wall,
            };
            run.encode(seed, tail.next_slot, &mut runs);
            tail.next_slot += 1;
        }
        let at = RunsAt {
            user: self.user,
            mailbox: from,
            kind: RecordType::Expunge,
            slot,
            modseq: self.modseq,
            group: Group::Ends,
        };
        shard.encode_runs(&at, runs, &mut self.entries);
    }
}
