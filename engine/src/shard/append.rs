//! Appends: from a request to records in a batch, and from a durable frame to answers
//! (storage.md 4.1, 4.2).
//!
//! Two passes over the recipients of a group: decide (refuse, duplicate, store), then encode.
//! Nothing is refused after the first byte is encoded, so there is no code to take anything back.
//! This file decides; `encode` writes the records, `publish` answers.

use std::sync::Arc;

use bytes::Bytes;
use ringpost_netproto::id::{
    Epoch, Guid, MailboxId, Modseq, PartitionId, Uid, UidValidity, WallNs,
};
use ringpost_netproto::placement::UserKey;
use smallvec::SmallVec;

use super::copies::Records;
use super::hold::{self, HeldFor};
use super::load::Wants;
use super::refill::{Givens, Meets, meet};
use super::room::keywords_need;
use super::{Phase, Shard};
use crate::canary::{self, Canary};
use crate::dedupe::{Key, Seen};
use crate::error::{Corrupt, CorruptReason};
use crate::format::info::{SLOT, SpecialUse};
use crate::format::record::{body_len, deliver_file_len, deliver_len};
use crate::format::store_line::STORE_LINE_FLAGS;
use crate::io::Io;
use crate::limits::{APPEND_AGE_MAX_NS, CACHE_SLOTS_MAX, PREFIX_BYTES_MAX, RECIPIENTS_MAX};
use crate::pending::Entry;
use crate::position::Lsn;
use crate::prepare::Summary;
use crate::request::{
    AppendGroup, Body, BusyReason, Dedupe, Event, Given, MonotonicNs, Notice, Now, Outcome,
    Recipient, Refused, Ticket,
};
use crate::tail::{Existence, Tail};
use crate::user::{Hold, Live, State, User, Waiter};

/// The mailboxes a user begins with.
pub(super) const FIRST_MAILBOXES: [(MailboxId, &str, SpecialUse); 2] = [
    (MailboxId::INBOX, "INBOX", SpecialUse::None),
    (MailboxId::SENT, "Sent", SpecialUse::Sent),
];

/// Who is told what became of an append.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Asker {
    /// A caller.
    Ticket(Ticket),
    /// A partition's records that are going to be cut off.
    Cut(PartitionId),
}

/// What is other with some appends.
#[derive(Clone)]
pub(super) enum Special {
    Nothing,
    /// Held mail: its recipients are held boxes.
    Held(HeldFor),
    /// Messages that a copy lacks.
    Given(Givens),
}

/// An append that is not answered yet.
pub(super) struct Append {
    pub(super) asker: Asker,
    pub(super) group: AppendGroup,
    pub(super) special: Special,
    /// Index of each recipient's user.
    pub(super) users: SmallVec<[usize; 1]>,
    pub(super) outcomes: SmallVec<[Option<Outcome>; 1]>,
    pub(super) since: MonotonicNs,
    /// Users whose state is being read.
    loading: u32,
    /// Frames that hold a part of it.
    pub(super) parts: u32,
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

impl Special {
    /// Whether the index tells what to do.
    fn reads(&self) -> bool {
        matches!(self, Self::Given(_))
    }

    /// Whether mailboxes are made with their first message.
    fn is_held(&self) -> bool {
        matches!(self, Self::Held(_))
    }

    /// At most so many bytes of records that make a recipient's mailbox.
    pub(super) fn mailbox_need(&self) -> usize {
        if self.is_held() {
            hold::MAILBOX_NEED
        } else {
            0
        }
    }

    /// Of a recipient's message, the mailbox that it is held for.
    pub(super) fn held_for(&self, recipient: usize) -> Option<MailboxId> {
        match self {
            Self::Held(all) => all.get(recipient).copied(),
            _ => None,
        }
    }

    /// Numbers that it has already.
    pub(super) fn given(&self, recipient: usize) -> Option<Given> {
        match self {
            Self::Given(all) => all.get(recipient).copied(),
            _ => None,
        }
    }
}

impl Append {
    pub(super) fn since(&self) -> MonotonicNs {
        self.since
    }

    /// Whether it looks for guids in indexes.
    pub(super) fn reads(&self) -> bool {
        let mut recipients = self.group.recipients.iter();
        let whole = |recipient: &Recipient| recipient.dedupe == Dedupe::Whole;
        self.special.reads() || recipients.any(whole)
    }

    /// Whether its records are this node's alone, whoever leads.
    pub(super) fn is_given(&self) -> bool {
        matches!(self.special, Special::Given(_))
    }
}

/// A piece of an append or change in one frame.
pub(super) struct Part {
    pub(super) of: PartOf,
    /// How far each of its partitions is once the frame is durable.
    pub(super) marks: SmallVec<[Mark; 1]>,
    /// Sequence of the next delivery id behind this part.
    pub(super) dedupe_next: u64,
}

/// Whose a part is, and what becomes visible with it.
pub(super) enum PartOf {
    /// Index of an append.
    Append(usize, SmallVec<[Decided; 1]>),
    /// Index of a change.
    Change(usize, SmallVec<[Entry; 1]>),
    /// Records that came from another node, that a restart found unconfirmed, or of which nobody
    /// waits to hear any more; see `copies`.
    Records(Records),
}

/// A record's place in its partition.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    pub(super) partition: PartitionId,
    pub(super) pseq: u64,
    /// After it.
    pub(super) chain: u32,
    pub(super) chain_before: u32,
    pub(super) epoch: Epoch,
}

/// What one recipient gets when the frame is durable.
pub(super) struct Decided {
    pub(super) recipient: usize,
    pub(super) kind: DecidedKind,
    pub(super) entries: SmallVec<[Entry; 1]>,
}

#[derive(Clone, Copy)]
pub(super) enum DecidedKind {
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
        self.submit_group(now, Asker::Ticket(ticket), group, Special::Nothing)
    }

    pub(super) fn submit_group(
        &mut self,
        now: Now,
        asker: Asker,
        group: AppendGroup,
        special: Special,
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
        for recipient in &group.recipients {
            self.takes_append(&special, &recipient.user)?;
        }
        let reads = special.reads();
        if group.body.summary().received_len > self.config.message_bytes_max {
            return Err(Refused::TooLarge);
        }
        let mut users = SmallVec::with_capacity(count);
        let mut wanted: SmallVec<[(usize, Recipient); 1]> = SmallVec::new();
        for recipient in &group.recipients {
            let index = self.users.by_key(&recipient.user);
            self.users.get_mut(index).pins += 1;
            users.push(index);
            if !self.is_there(index, reads || recipient.dedupe == Dedupe::Whole) {
                wanted.push((index, recipient.clone()));
            }
        }
        let append = self.appends.insert(Append {
            asker,
            special,
            outcomes: SmallVec::from_elem(None, count),
            segments: SmallVec::from_elem(None, count),
            group,
            users,
            since: now.monotonic,
            loading: u32::try_from(wanted.len()).expect("at most the recipients"),
            parts: 0,
            steps: 0,
            linked: Linked::NotYet,
        });
        if wanted.is_empty() {
            self.ready.push_back(append);
        }
        for (index, recipient) in wanted {
            self.want_recipient(index, &recipient, append);
        }
        Ok(())
    }

    /// Whether who may put mail into a user's mailboxes is who an append is of.
    fn takes_append(&self, special: &Special, user: &UserKey) -> Result<(), Refused> {
        match special {
            Special::Given(_) => self.takes_refills_of(user),
            Special::Nothing | Special::Held(_) => self.takes_changes_of(user),
        }
    }

    /// Whether a user is loaded, with the index if that is asked about.
    fn is_there(&self, index: usize, reads: bool) -> bool {
        let user = self.users.get(index);
        match &user.state {
            State::Live(live) => user.name.is_some() && (live.index.is_some() || !reads),
            // Somebody holds it so: the verdict is for all who come meanwhile.
            State::Repairing(_) => true,
            State::Unloaded | State::Loading => false,
        }
    }

    /// Lets an append wait for a user. What is in memory already is there before this returns.
    fn want_recipient(&mut self, index: usize, recipient: &Recipient, append: usize) {
        let user = self.users.get_mut(index);
        user.waiting.push_back(Waiter::Append(append));
        self.start_load(index, Some(&recipient.user));
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
        let recipient = append.group.recipients.get(place).cloned();
        let Some(recipient) = recipient else { return };
        let to = self.users.by_key(&recipient.user);
        self.users.get_mut(to).pins += 1;
        self.users.unpin(from);
        if let Some(user) = self
            .appends
            .get_mut(index)
            .and_then(|a| a.users.get_mut(place))
        {
            *user = to;
        }
        let reads = self.appends.get(index).is_some_and(Append::reads);
        if self.is_there(to, reads) {
            self.append_user_loaded(index);
        } else {
            self.want_recipient(to, &recipient, index);
        }
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
            let rescues = |append: &Append| matches!(append.asker, Asker::Cut(_));
            // What is cut off makes room; it is held before.
            let rescues = self.appends.get(index).is_some_and(rescues);
            let pressure = if rescues { None } else { self.pressure() };
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

    /// Lets an append wait for its user, if that is held by a compaction.
    fn waits_for_release(&mut self, index: usize) -> bool {
        let append = self.appends.get_mut(index).expect("a ready append is open");
        let held = |user: &&usize| self.users.get(**user).hold != Hold::Free;
        let Some(user) = append.users.iter().find(held).copied() else {
            return false;
        };
        append.loading += 1;
        let waiter = Waiter::Append(index);
        self.users.get_mut(user).waiting.push_back(waiter);
        true
    }

    /// Places what is left of an append. `false`: no room now, try again.
    fn place(&mut self, now: Now, index: usize) -> bool {
        if self.waits_for_release(index) {
            return true;
        }
        self.resolve_folders(index);
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
            // What was made for one may be another's.
            self.resolve_folders(index);
        }
        self.finish_if_decided(now, index);
        true
    }

    /// Replaces the names of mailboxes by their ids, once; those of held boxes, which come and go,
    /// each time.
    fn resolve_folders(&mut self, index: usize) {
        let append = self.appends.get_mut(index).expect("a ready append is open");
        let is_held = append.special.is_held();
        for (recipient, user) in append.group.recipients.iter_mut().zip(&append.users) {
            if is_held {
                let live = self.users.get(*user).live();
                let named = live.zip(recipient.folder.as_deref());
                let found = named.and_then(|(live, name)| hold::mailbox_named(&live.tail, name));
                recipient.mailbox = found.map_or(hold::UNMADE, |found| found.mailbox);
                continue;
            }
            if let Some(name) = recipient.folder.take() {
                let live = self.users.get(*user).live();
                let tails = live.into_iter().flat_map(|live| &live.tail.mailboxes);
                let there = tails.filter(|tail| tail.takes_mail());
                let there = there.map(|tail| (tail.mailbox, &*tail.name));
                // A user who is not there yet begins with these.
                let absent = live.is_some_and(|live| live.tail.existence == Existence::Absent);
                let first = FIRST_MAILBOXES.iter().filter(|_| absent);
                let first = first.map(|(mailbox, name, _)| (*mailbox, *name));
                let found = named(&name, there.chain(first));
                recipient.mailbox = found.unwrap_or(recipient.mailbox);
            }
        }
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
                    if canary::on(Canary::RefusedRemembered)
                        && matches!(outcome, Outcome::Refused(_))
                    {
                        self.remember_refused(index, recipient);
                    }
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
                of: PartOf::Append(index, with_first),
                marks: SmallVec::new(),
                dedupe_next: self.window.next(),
            };
            self.appends.get_mut(index)?.parts += 1;
            if let Err(part) = self.log.attach_last(part) {
                // Its first copy is on this medium and waits for another.
                self.hold_part(now, None, part);
            }
        }
        (!chunk.is_empty()).then_some(chunk)
    }

    fn decide_one(&self, now: Now, append: &Append, place: usize, chunk: &[usize]) -> Decision {
        let group = &append.group;
        let recipient = group.recipients.get(place).expect("as many as users");
        let user_index = *append.users.get(place).expect("as many as recipients");
        let user = self.users.get(user_index);
        let live = match self.open_mailbox(append, user, (recipient, chunk.len())) {
            Ok(live) => live,
            Err(refused) => return Decision::Now(Outcome::Refused(refused)),
        };
        if let Some(given) = append.special.given(place) {
            let user = append.users.get(place);
            let same = |earlier: &usize| append.users.get(*earlier) == user;
            if chunk.iter().any(same) {
                // Its place depends on that one's.
                return Decision::WithEarlier;
            }
            return self.decide_given(live, recipient, given);
        }
        let store = || match self.has_room(append, place, chunk) {
            Ok(()) => Decision::Store,
            Err(refused) => Decision::Now(Outcome::Refused(refused)),
        };
        let window = match recipient.dedupe {
            Dedupe::Yes | Dedupe::Whole => &self.window,
            Dedupe::Recent => &self.recent,
            Dedupe::No => return store(),
        };
        let key = self.dedupe_key(user_index, recipient, group.body.summary());
        let shown = self.shown_of(user_index);
        let duplicate_in = |mailbox, uid| {
            Decision::Now(Outcome::Duplicate {
                uid,
                uidvalidity: uidvalidity(&live.tail, mailbox),
                durable: shown,
            })
        };
        if recipient.dedupe == Dedupe::Whole {
            let Some(all) = &live.index else {
                // Its index could not be read.
                return Decision::Now(Outcome::Refused(Refused::Busy(BusyReason::SlowDisk)));
            };
            if let Some((mailbox, uid)) = all.find_guid(recipient.guid) {
                return duplicate_in(mailbox, uid);
            }
            if self.is_arriving(append, user_index, recipient.guid) {
                return Decision::Now(Outcome::Refused(Refused::Busy(BusyReason::SlowDisk)));
            }
        }
        let duplicate = |uid| duplicate_in(recipient.mailbox, uid);
        let lost =
            |uid| recipient.dedupe == Dedupe::Recent && live.has_lost(recipient.mailbox, uid);
        match window.find(&key, shown, seconds(now.wall)) {
            Seen::Durable(uid) if !lost(uid) => duplicate(uid),
            Seen::InFlight(uid) if canary::on(Canary::DuplicateInFlight) => duplicate(uid),
            Seen::InFlight(uid) => Decision::WithFirst(uid),
            // Whoever made the id of one that is lost looked for it and did not find it.
            Seen::Durable(_) | Seen::OtherContent | Seen::No => {
                let same = |earlier: &&usize| {
                    append.users.get(**earlier) == Some(&user_index)
                        && group.recipients.get(**earlier).is_some_and(|other| {
                            other.guid == recipient.guid
                                && other.mailbox == recipient.mailbox
                                && other.folder == recipient.folder
                        })
                };
                if chunk.iter().any(|earlier| same(&earlier)) {
                    Decision::WithEarlier
                } else {
                    store()
                }
            }
        }
    }

    /// Whether another append has this content on its way to a user, whatever the mailbox.
    fn is_arriving(&self, append: &Append, user: usize, guid: Guid) -> bool {
        let others = self.appends.iter().map(|(_, other)| other);
        let mut others = others.filter(|other| other.parts > 0 && !std::ptr::eq(*other, append));
        others.any(|other| {
            let mut all = other.users.iter().zip(&other.group.recipients);
            all.any(|(of, recipient)| *of == user && recipient.guid == guid)
        })
    }

    fn decide_given(&self, live: &Live, recipient: &Recipient, given: Given) -> Decision {
        match meet(live, recipient, given) {
            Ok(Meets::Nothing) => Decision::Store,
            Ok(Meets::Itself) => Decision::Now(Outcome::Duplicate {
                uid: given.uid,
                uidvalidity: uidvalidity(&live.tail, recipient.mailbox),
                durable: self.shown_to(recipient.user.partition()),
            }),
            Err(refused) => Decision::Now(Outcome::Refused(refused)),
        }
    }

    /// The user of a recipient whose mailbox takes mail, or will with this.
    fn open_mailbox<'a>(
        &self,
        append: &Append,
        user: &'a User,
        (recipient, earlier_count): (&Recipient, usize),
    ) -> Result<&'a Live, Refused> {
        let live = match &user.state {
            State::Live(live) => live,
            State::Repairing(corrupt) => return Err(Refused::Repairing(Arc::clone(corrupt))),
            State::Unloaded | State::Loading => unreachable!("a ready append's users are loaded"),
        };
        self.takes_append(&append.special, &recipient.user)?;
        let tail = &live.tail;
        let exists = match tail.mailbox(recipient.mailbox) {
            Some(mailbox) => mailbox.takes_mail(),
            None if append.special.is_held() && hold::has_room(tail, earlier_count) => true,
            None if append.special.is_held() => return Err(Refused::Busy(BusyReason::Held)),
            None => tail.existence == Existence::Absent && is_first_mailbox(recipient.mailbox),
        };
        if !exists {
            return Err(Refused::NoSuchMailbox);
        }
        if !tail.has_numbers(tail.mailbox(recipient.mailbox)) {
            let what = "its numbers (uid, segment, slot, modseq) are used up";
            return Err(Refused::Repairing(Arc::new(Corrupt {
                file: user.dir().to_string(),
                offset: 0,
                reason: CorruptReason::Value(what),
            })));
        }
        Ok(live)
    }

    pub(super) fn dedupe_key(&self, user: usize, recipient: &Recipient, summary: &Summary) -> Key {
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
    pub(super) fn body_need(body: &Body) -> usize {
        match body {
            Body::Small(body) => body_len(body.cache.len(), body.stored.len()),
            Body::Staged(_) => 0,
        }
    }

    /// At most so many bytes of records for one recipient.
    fn recipient_need(&self, index: usize, place: usize, body: &Body) -> usize {
        let append = self.appends.get(index).expect("an open append");
        let user = append.users.get(place).expect("as many as recipients");
        let recipients = &append.group.recipients;
        let recipient = recipients.get(place).expect("as many as users");
        append.special.mailbox_need() + self.recipient_need_of(*user, recipient, body)
    }

    pub(super) fn recipient_need_of(
        &self,
        user: usize,
        recipient: &Recipient,
        body: &Body,
    ) -> usize {
        self.creation_need(user)
            + keywords_need(&recipient.flags.keywords)
            + match body {
                Body::Small(_) => deliver_len(PREFIX_BYTES_MAX),
                Body::Staged(_) => deliver_file_len(CACHE_SLOTS_MAX * SLOT),
            }
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
                if canary::on(Canary::RefusedRemembered) {
                    self.remember_refused(index, recipient);
                }
                self.drop_reserved(index, recipient);
                self.set_outcome(index, recipient, Outcome::Refused(why.clone()));
            }
        }
        self.finish_if_decided(now, index);
    }

    /// Planted: the id of a refused delivery is remembered.
    fn remember_refused(&mut self, index: usize, place: usize) {
        let append = self.appends.get(index).expect("an open append");
        let (Some(user), Some(recipient)) =
            (append.users.get(place), append.group.recipients.get(place))
        else {
            return;
        };
        if !matches!(recipient.dedupe, Dedupe::Yes | Dedupe::Whole) {
            return;
        }
        let key = self.dedupe_key(*user, recipient, append.group.body.summary());
        let time_s = seconds(recipient.internal_date);
        self.window.insert(&key, Uid::new(1), time_s, Lsn::new(0));
    }

    /// After a fatal error: every open append is answered `Stopped`, whatever the disk holds.
    pub(super) fn refuse_appends(&mut self) {
        self.ready.clear();
        let open: Vec<usize> = self.appends.iter().map(|(index, _)| index).collect();
        for index in open {
            let append = self.appends.remove(index);
            let stopped = Outcome::Refused(Refused::Stopped);
            let outcomes = append.outcomes.iter().map(|_| stopped.clone()).collect();
            if let Asker::Ticket(ticket) = append.asker {
                self.answer(Event::Appended { ticket, outcomes });
            }
        }
    }
}

/// The mailbox of this name: exactly so, else but for ASCII case.
fn named<'a>(name: &str, all: impl Iterator<Item = (MailboxId, &'a str)>) -> Option<MailboxId> {
    let alike: SmallVec<[_; 4]> = all
        .filter(|(_, other)| other.eq_ignore_ascii_case(name))
        .collect();
    let exact = alike.iter().find(|(_, other)| *other == name);
    exact.or(alike.first()).map(|(mailbox, _)| *mailbox)
}

/// Validity of the uids of a mailbox; 0 of one that is not there.
pub(super) fn uidvalidity(tail: &Tail, mailbox: MailboxId) -> UidValidity {
    tail.mailbox(mailbox)
        .map_or(UidValidity::new(0), |tail| tail.uidvalidity)
}

fn is_first_mailbox(mailbox: MailboxId) -> bool {
    FIRST_MAILBOXES
        .iter()
        .any(|(first, _, _)| *first == mailbox)
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

    pub(super) fn cache(&self) -> &Bytes {
        match self {
            Self::Small(body) => &body.cache,
            Self::Staged(staged) => &staged.cache,
        }
    }
}
