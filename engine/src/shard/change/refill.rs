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
use crate::format::record::{Group, RECORD_HEADER_BYTES, RecordType};
use crate::index::{self, IndexEntry};
use crate::io::Io;
use crate::limits::{KEYWORDS_MAX, MAILBOXES_MAX};
use crate::mailbox_name::{NameFault, canonical};
use crate::pending::Entry;
use crate::position::{DurableTo, Lsn};
use crate::request::{
    BusyReason, Limit, ListEntry, MailboxStatus, More, Now, Refilled, Refused, Subscribed,
    UidRange, UidSet, UserState, is_keyword,
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
    /// Whether not all of it fits a frame.
    more: More,
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
    let entries = at.index.mailbox(state.mailbox);
    let missing = missing(at, state, entries)?;
    let mut runs = Vec::new();
    for status in &state.mailboxes {
        mailbox_runs(at.tail.mailbox(status.mailbox), status, &mut runs)?;
    }
    let this = state
        .mailboxes
        .iter()
        .find(|one| one.mailbox == state.mailbox);
    if let Some(status) = this {
        change_runs(entries, state, status.highest_modseq, &mut runs);
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
    if let Some(status) = this.filter(|_| state.more == More::No && missing.is_empty()) {
        // Last: it says that all below the primary's next uid is here.
        runs.extend(end_run(at.tail.mailbox(status.mailbox), status)?);
    }
    let changed = state.changed.iter().map(|entry| entry.modseq.value());
    let named = state.mailboxes.iter().map(|one| one.highest_modseq);
    let modseq = changed.chain(named).fold(at.tail.modseq.max(1), u64::max);
    let whole_count = runs.len();
    let need = fit(&mut runs, room);
    if runs.is_empty() && whole_count > 0 {
        return Err(Refused::TooLarge);
    }
    Ok(RefillPlan {
        state: if runs.is_empty() {
            State::Done
        } else {
            State::ToDo
        },
        more: if runs.len() < whole_count {
            More::Yes
        } else {
            More::No
        },
        runs,
        need,
        modseq: Modseq::new(modseq),
        missing,
    })
}

/// Leaves as many runs as one frame can hold; gives what they need.
fn fit(runs: &mut Vec<Planned>, room: usize) -> usize {
    let (mut need, mut kind) = (0, None);
    let mut count = 0;
    for run in runs.iter() {
        let head = if kind == Some(run.kind()) {
            0
        } else {
            RECORD_HEADER_BYTES
        };
        if need + head + run.len() > room {
            break;
        }
        (need, kind) = (need + head + run.len(), Some(run.kind()));
        count += 1;
    }
    runs.truncate(count);
    need
}

/// Whether the numbers and names can be a primary's.
fn make_sense(state: &UserState) -> Result<(), Refused> {
    let good = |uid: u32, modseq: u64| is_given(uid) && modseq < u64::MAX >> 1;
    let messages = state.changed.iter();
    let mut messages = messages.map(|one| (one.uid.value(), one.modseq.value()));
    let mailboxes = state.mailboxes.iter();
    let mut mailboxes = mailboxes.map(|one| (one.uidnext, one.highest_modseq));
    let ids: BTreeSet<MailboxId> = state.mailboxes.iter().map(|one| one.mailbox).collect();
    let named = |one: &MailboxStatus| one.mailbox.value() > 0 && is_given(one.uidvalidity.value());
    if !(messages.all(|(uid, modseq)| good(uid, modseq))
        && mailboxes.all(|(uid, modseq)| good(uid, modseq))
        && state.mailboxes.iter().all(named)
        && ids.len() == state.mailboxes.len())
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

/// Messages that the primary has and this node does not; refused if it has others in their place, or
/// flags of them that the primary never had.
fn missing(at: &At<'_>, state: &UserState, entries: &[IndexEntry]) -> Result<Vec<Uid>, Refused> {
    let tail = at.tail.mailbox(state.mailbox);
    let (next, visible) = tail.map_or((1, 1), |tail| (tail.uidnext, tail.uidnext_visible));
    let mut missing = Vec::new();
    for entry in &state.changed {
        match index::find(entries, entry.uid) {
            Some(here) if is_no_later(here, entry) => {}
            None if entry.uid.value() >= next => missing.push(entry.uid),
            None if entry.uid.value() >= visible => {
                return Err(Refused::Busy(BusyReason::SlowDisk));
            }
            _ => return Err(Refused::Diverged { pseq: 0 }),
        }
    }
    Ok(missing)
}

/// Whether a message here is the primary's, as it was at some time.
fn is_no_later(here: &IndexEntry, there: &ListEntry) -> bool {
    let same = here.msg().is_ok_and(|msg| msg.guid == there.guid);
    let flags = (there.modseq.value(), there.flags, there.keywords);
    let earlier = here.modseq < there.modseq.value();
    same && (earlier || (here.modseq, here.flags, here.keywords) == flags)
}

/// What makes a mailbox here the primary's, but for its messages and its next uid.
fn mailbox_runs(
    here: Option<&MailboxTail>,
    there: &MailboxStatus,
    runs: &mut Vec<Planned>,
) -> Result<(), Refused> {
    let mut status = there.clone();
    let run = match here {
        Some(here) if here.uidvalidity != there.uidvalidity => {
            return Err(Refused::Diverged { pseq: 0 });
        }
        Some(here) => {
            (status.uidnext, status.highest_modseq) = (here.uidnext, here.highest_modseq);
            (*here.name != *there.name).then_some(MailboxOp::Rename)
        }
        None => {
            (status.uidnext, status.highest_modseq) = (1, 0);
            Some(MailboxOp::Create)
        }
    };
    let subscribed = here.map_or(Subscribed::No, |here| here.subscribed);
    let subscribe = match (subscribed, there.subscribed) {
        (Subscribed::No, Subscribed::Yes) => Some(MailboxOp::Subscribe),
        (Subscribed::Yes, Subscribed::No) => Some(MailboxOp::Unsubscribe),
        _ => None,
    };
    let ops = run.into_iter().chain(subscribe);
    runs.extend(ops.map(|op| Planned::Mailbox(op, Box::new(status.clone()))));
    let known = here.map_or(&[][..], |here| &here.keywords);
    let mut pairs = known.iter().zip(&there.keywords);
    if known.len() > there.keywords.len() || pairs.any(|(ours, theirs)| ours != theirs) {
        return Err(Refused::Diverged { pseq: 0 });
    }
    let fresh = there.keywords.iter().enumerate().skip(known.len());
    runs.extend(fresh.filter_map(|(bit, word)| {
        let bit = u8::try_from(bit).ok()?;
        Some(Planned::Keyword(there.mailbox, bit, Arc::clone(word)))
    }));
    Ok(())
}

/// The primary's next uid and highest modseq: a name that stays says them.
fn end_run(here: Option<&MailboxTail>, there: &MailboxStatus) -> Result<Option<Planned>, Refused> {
    let (uidnext, highest) = here.map_or((1, 0), |here| (here.uidnext, here.highest_modseq));
    if uidnext > there.uidnext {
        return Err(Refused::Diverged { pseq: 0 });
    }
    let lags = uidnext < there.uidnext || highest < there.highest_modseq;
    Ok(lags.then(|| Planned::Mailbox(MailboxOp::Rename, Box::new(there.clone()))))
}

/// Flags of messages that are here, and the end of those that went.
fn change_runs(entries: &[IndexEntry], state: &UserState, highest: u64, runs: &mut Vec<Planned>) {
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
            let range = UidRange {
                low: uid.value(),
                high: uid.value(),
            };
            let (kind, mailbox) = (ChangeKind::Flags, state.mailbox);
            runs.push(Planned::Change(
                kind, mailbox, range, *modseq, *flags, *keywords,
            ));
        }
    }
    for range in state.vanished.ranges() {
        let of_range = UidSet::from_iter([(range.low, range.high)]);
        let mut here = index::selected(entries, &of_range);
        let Some(first) = here.next() else { continue };
        let ends = (first.uid, first.uid, first.modseq);
        let (low, high, latest) = here.fold(ends, |(low, _, latest), entry| {
            (low, entry.uid, latest.max(entry.modseq))
        });
        let range = UidRange {
            low: low.value(),
            high: high.value(),
        };
        // Of messages that changed later here than anything there, nobody knows.
        let modseq = Modseq::new(highest.max(latest + 1));
        let (kind, mailbox) = (ChangeKind::Expunge, state.mailbox);
        runs.push(Planned::Change(kind, mailbox, range, modseq, 0, 0));
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

    /// Bytes of the run.
    fn len(&self) -> usize {
        match self {
            Self::Mailbox(_, status) => SLOT + status.name.len().next_multiple_of(SLOT),
            Self::Keyword(_, _, word) => SLOT + word.len().next_multiple_of(SLOT),
            Self::Change(..) => CHANGE_RUN_BYTES,
        }
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
            more: self.more,
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
