//! A user of a copy becomes what the primary says (storage.md 8.3, cluster.md 6.3): the difference as
//! runs with the primary's numbers, in local records, since the partition's stream does not hold them.
//!
//! Messages that are not here cannot be made of a list: they are named, and brought by
//! `shard/refill.rs`. Only when none is missing does a mailbox get the primary's next uid: until then
//! the messages to come lie above the one it has.

use std::collections::BTreeSet;
use std::sync::Arc;

use ringpost_netproto::id::{MailboxId, Modseq, Uid};
use smallvec::SmallVec;

use super::{At, Placed};
use crate::format::info::{
    CHANGE_RUN_BYTES, Change, ChangeKind, Keyword, Mailbox, MailboxOp, SLOT, Seed,
};
use crate::format::record::{Group, RecordType, runs_len};
use crate::index::{self, IndexEntry};
use crate::io::Io;
use crate::limits::{KEYWORDS_MAX, MAILBOXES_MAX};
use crate::mailbox_name::{NameFault, canonical};
use crate::pending::Entry;
use crate::position::{DurableTo, Lsn};
use crate::request::{
    Limit, ListEntry, MailboxStatus, Now, Refilled, Refused, Subscribed, UidRange, UserState,
    is_keyword,
};
use crate::shard::Shard;
use crate::shard::encode::RunsAt;
use crate::tail::{MailboxTail, Stand, Tail, is_given};

/// A run to be encoded, but for its place.
enum Planned {
    Mailbox(MailboxOp, Box<MailboxStatus>),
    Keyword(MailboxId, u8, Arc<str>),
    Change(ChangeKind, MailboxId, UidRange, Modseq, u32, u64),
}

/// What is different, and what will be answered.
pub(in crate::shard) struct RefillPlan {
    runs: Vec<Planned>,
    /// Bytes of records, at most.
    need: usize,
    /// The highest modseq here or that the primary named: no run about a name is older.
    modseq: Modseq,
    missing: Vec<Uid>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    ToDo,
    Done,
}

/// Decides what is different; `room` is what one frame can hold.
pub(super) fn plan(at: &At<'_>, state: &UserState, room: usize) -> Result<RefillPlan, Refused> {
    make_sense(state)?;
    let mut runs = Vec::new();
    let entries = at.index.mailbox(state.mailbox);
    let missing = missing(at, state, entries)?;
    for status in &state.mailboxes {
        let full = status.mailbox == state.mailbox && missing.is_empty();
        mailbox_runs(at.tail.mailbox(status.mailbox), status, full, &mut runs)?;
    }
    let named: BTreeSet<MailboxId> = state.mailboxes.iter().map(|one| one.mailbox).collect();
    for gone in at
        .tail
        .mailboxes
        .iter()
        .filter(|one| !named.contains(&one.mailbox))
    {
        runs.push(Planned::Mailbox(MailboxOp::Delete, Box::new(gone.status())));
    }
    if let Some(status) = state
        .mailboxes
        .iter()
        .find(|one| one.mailbox == state.mailbox)
    {
        change_runs(
            entries,
            state,
            Modseq::new(status.highest_modseq),
            &mut runs,
        );
    }
    let changed = state.changed.iter().map(|entry| entry.modseq.value());
    let named = state.mailboxes.iter().map(|one| one.highest_modseq);
    let need = runs.iter().map(Planned::need).sum();
    if need > room {
        return Err(Refused::TooLarge);
    }
    Ok(RefillPlan {
        state: if runs.is_empty() {
            State::Done
        } else {
            State::ToDo
        },
        runs,
        need,
        modseq: Modseq::new(changed.chain(named).fold(at.tail.modseq.max(1), u64::max)),
        missing,
    })
}

/// Whether the numbers and names can be a primary's.
fn make_sense(state: &UserState) -> Result<(), Refused> {
    let good = |uid: u32, modseq: u64| is_given(uid) && modseq < u64::MAX >> 1;
    let messages = state.changed.iter();
    let mut messages = messages.map(|one| (one.uid.value(), one.modseq.value()));
    let mailboxes = state.mailboxes.iter();
    let mut mailboxes = mailboxes.map(|one| (one.uidnext, one.highest_modseq));
    if !(messages.all(|(uid, modseq)| good(uid, modseq))
        && mailboxes.all(|(uid, modseq)| good(uid, modseq)))
    {
        return Err(Refused::Diverged { pseq: 0 });
    }
    if state.mailboxes.len() > MAILBOXES_MAX {
        return Err(Refused::Limit(Limit::Mailboxes));
    }
    for status in &state.mailboxes {
        if canonical(&status.name).map_err(Refused::BadName)? != status.name {
            return Err(Refused::BadName(NameFault::Inbox));
        }
        if status.keywords.len() > KEYWORDS_MAX {
            return Err(Refused::Limit(Limit::Keywords));
        }
        if !status.keywords.iter().all(|word| is_keyword(word)) {
            return Err(Refused::BadKeyword);
        }
    }
    Ok(())
}

/// Messages that the primary has and this node does not; refused if it has others in their place.
fn missing(at: &At<'_>, state: &UserState, entries: &[IndexEntry]) -> Result<Vec<Uid>, Refused> {
    let next = at
        .tail
        .mailbox(state.mailbox)
        .map_or(1, |tail| tail.uidnext);
    let mut missing = Vec::new();
    for entry in &state.changed {
        match index::find(entries, entry.uid).map(IndexEntry::msg) {
            Some(Ok(msg)) if msg.guid == entry.guid => {}
            None if entry.uid.value() >= next => missing.push(entry.uid),
            _ => return Err(Refused::Diverged { pseq: 0 }),
        }
    }
    Ok(missing)
}

/// What makes a mailbox here the primary's; its next uid only if it is `full`.
fn mailbox_runs(
    here: Option<&MailboxTail>,
    there: &MailboxStatus,
    full: bool,
    runs: &mut Vec<Planned>,
) -> Result<(), Refused> {
    let mut status = there.clone();
    match here {
        Some(here) if here.uidvalidity != there.uidvalidity => {
            return Err(Refused::Diverged { pseq: 0 });
        }
        Some(here) if !full => {
            status.uidnext = here.uidnext;
            status.highest_modseq = here.highest_modseq;
        }
        Some(_) => {}
        None => (status.uidnext, status.highest_modseq) = (1, 0),
    }
    let lags = |here: &MailboxTail| {
        *here.name != *status.name
            || here.uidnext < status.uidnext
            || here.highest_modseq < status.highest_modseq
    };
    // A name that stays says the rest too.
    let run = match here {
        Some(here) => lags(here).then_some(MailboxOp::Rename),
        None => Some(MailboxOp::Create),
    };
    let subscribed = here.map_or(Subscribed::No, |here| here.subscribed);
    let subscribe = match (subscribed, there.subscribed) {
        (Subscribed::No, Subscribed::Yes) => Some(MailboxOp::Subscribe),
        (Subscribed::Yes, Subscribed::No) => Some(MailboxOp::Unsubscribe),
        _ => None,
    };
    let ops = run.into_iter().chain(subscribe);
    runs.extend(ops.map(|op| Planned::Mailbox(op, Box::new(status.clone()))));
    let known = here.map_or(0, |here| here.keywords.len());
    let fresh = there.keywords.iter().enumerate().skip(known);
    runs.extend(fresh.filter_map(|(bit, word)| {
        let bit = u8::try_from(bit).ok()?;
        Some(Planned::Keyword(there.mailbox, bit, Arc::clone(word)))
    }));
    Ok(())
}

/// Flags of messages that are here, and the end of those that went.
fn change_runs(
    entries: &[IndexEntry],
    state: &UserState,
    highest: Modseq,
    runs: &mut Vec<Planned>,
) {
    let one = |uid: Uid| UidRange {
        low: uid.value(),
        high: uid.value(),
    };
    for ListEntry {
        uid,
        modseq,
        flags,
        keywords,
        ..
    } in &state.changed
    {
        let known = index::find(entries, *uid);
        if known.is_some_and(|known| known.modseq < modseq.value()) {
            let kind = ChangeKind::Flags;
            let mailbox = state.mailbox;
            runs.push(Planned::Change(
                kind,
                mailbox,
                one(*uid),
                *modseq,
                *flags,
                *keywords,
            ));
        }
    }
    for entry in index::selected(entries, &state.vanished) {
        let kind = ChangeKind::Expunge;
        // Of messages that changed later here than anything there, nobody knows.
        let modseq = highest.max(Modseq::new(entry.modseq + 1));
        runs.push(Planned::Change(
            kind,
            state.mailbox,
            one(entry.uid),
            modseq,
            0,
            0,
        ));
    }
}

/// What the runs of a plan share.
struct RunPlace {
    now: Now,
    lsn: Lsn,
    seed: Seed,
    /// Of mailboxes and keywords.
    modseq: Modseq,
}

impl Planned {
    fn kind(&self) -> RecordType {
        match self {
            Self::Mailbox(..) => RecordType::Mailbox,
            Self::Keyword(..) => RecordType::Keyword,
            Self::Change(ChangeKind::Flags, ..) => RecordType::Flags,
            Self::Change(ChangeKind::Expunge, ..) => RecordType::Expunge,
        }
    }

    /// As if it had a record of its own.
    fn need(&self) -> usize {
        runs_len(match self {
            Self::Mailbox(_, status) => SLOT + status.name.len().next_multiple_of(SLOT),
            Self::Keyword(_, _, word) => SLOT + word.len().next_multiple_of(SLOT),
            Self::Change(..) => CHANGE_RUN_BYTES,
        })
    }

    /// Appends the run for `slot`; takes what it gives to the tail.
    fn encode(&self, tail: &mut Tail, place: &RunPlace, out: &mut Vec<u8>) {
        let RunPlace {
            now,
            lsn,
            seed,
            modseq: highest,
        } = *place;
        let slot = tail.next_slot;
        let before = out.len();
        match self {
            Self::Mailbox(op, status) => {
                let run = Mailbox {
                    op: *op,
                    special_use: status.special_use,
                    mailbox: status.mailbox,
                    uidvalidity: status.uidvalidity,
                    modseq: highest,
                    lsn,
                    uidnext: status.uidnext,
                    highest_modseq: status.highest_modseq,
                    time: now.wall,
                    name: &status.name,
                };
                run.encode(seed, slot, out);
                match (op, tail.mailbox_mut(status.mailbox)) {
                    (MailboxOp::Create, None) => tail.add_mailbox(&run, Stand::Coming),
                    (MailboxOp::Delete, Some(known)) => known.stand = Stand::Leaving,
                    (_, Some(known)) => known.uidnext = known.uidnext.max(status.uidnext),
                    _ => {}
                }
            }
            Self::Keyword(mailbox, bit, name) => {
                let run = Keyword {
                    mailbox: *mailbox,
                    bit: *bit,
                    modseq: highest,
                    lsn,
                    name,
                };
                run.encode(seed, slot, out);
                if let Some(known) = tail.mailbox_mut(*mailbox) {
                    known.keywords.push(Arc::clone(name));
                }
            }
            Self::Change(kind, mailbox, range, modseq, flags, keywords) => {
                let run = Change {
                    kind: *kind,
                    mailbox: *mailbox,
                    uid_low: Uid::new(range.low),
                    uid_high: Uid::new(range.high),
                    modseq: *modseq,
                    lsn,
                    system_flags: *flags,
                    keywords: *keywords,
                    time: now.wall,
                };
                run.encode(seed, slot, out);
            }
        }
        let slots = (out.len() - before) / SLOT;
        tail.next_slot += u32::try_from(slots).expect("at most 17");
    }
}

impl RefillPlan {
    pub(super) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    pub(super) fn answer(self, durable: DurableTo) -> Refilled {
        Refilled {
            missing: self.missing,
            durable,
        }
    }
}

impl<I: Io> Shard<I> {
    /// Encodes the difference, in one group.
    pub(super) fn place_refill(
        &mut self,
        now: Now,
        change: usize,
        user: usize,
        plan: &mut RefillPlan,
    ) -> Placed {
        if plan.is_done() {
            return Placed::All;
        }
        if self
            .log
            .room(self.creation_need(user) + plan.need)
            .is_none()
        {
            return Placed::NoRoom;
        }
        self.copies.refilling = true;
        let mut entries = SmallVec::new();
        let key = self
            .changes
            .get(change)
            .expect("an open change")
            .key
            .clone();
        self.encode_user(user, key.name(), plan.modseq, &mut entries);
        self.encode_refill(now, user, plan, &mut entries);
        self.copies.refilling = false;
        plan.state = State::Done;
        self.attach_change(change, entries);
        Placed::All
    }

    fn encode_refill(
        &mut self,
        now: Now,
        index: usize,
        plan: &RefillPlan,
        entries: &mut SmallVec<[Entry; 1]>,
    ) {
        let lsn = self.log.open_batch_mut().expect("room was made").lsn();
        let mut rest = &plan.runs[..];
        while let Some(first) = rest.first() {
            let kind = first.kind();
            let count = rest.iter().take_while(|run| run.kind() == kind).count();
            let (now_ones, later) = rest.split_at(count);
            rest = later;
            let user = self.users.get_mut(index);
            let hash = user.hash;
            let tail = &mut user.live_mut().expect("decided").tail;
            tail.modseq = tail.modseq.max(plan.modseq.value());
            let slot = tail.next_slot;
            let seed = Seed {
                user: hash,
                generation: tail.generation,
            };
            let place = RunPlace {
                now,
                lsn,
                seed,
                modseq: plan.modseq,
            };
            let mut runs = Vec::new();
            for run in now_ones {
                run.encode(tail, &place, &mut runs);
            }
            let at = RunsAt {
                user: index,
                mailbox: MailboxId::new(0),
                kind,
                slot,
                modseq: plan.modseq,
                group: if rest.is_empty() {
                    Group::Ends
                } else {
                    Group::GoesOn
                },
            };
            self.encode_runs(&at, runs, entries);
        }
    }
}
