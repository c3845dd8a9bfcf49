//! Changes: flags, expunge, copy and move, mailboxes (storage.md 8.3, 8.4). From a request to records
//! in a batch, and from a durable frame to its answer.
//!
//! A user's changes run one behind the other: each begins when the one before is durable. So every
//! change is decided on what readers see, and needs no code to undo what a crash took away. Mail
//! goes on arriving meanwhile: it takes numbers of its own and is changed by nobody before it is
//! visible. A change pins its user, so that the index stays loaded until it is answered.
//!
//! A change too large for one frame is encoded in steps; each is whole or absent after a crash.

mod copier;
mod copy;
mod flags;
mod mailbox;
mod refill;
mod wish;

use std::sync::Arc;

use ringpost_netproto::id::MailboxId;
use ringpost_netproto::placement::UserKey;
use smallvec::SmallVec;

use super::Shard;
use super::append::{Part, PartOf};
use super::load::Wants;
use super::read::readable;
use crate::error::{Corrupt, CorruptReason};
use crate::index::Index;
use crate::io::Io;
use crate::limits::{APPEND_AGE_MAX_NS, UID_RANGES_MAX};
use crate::pending::Entry;
use crate::position::DurableTo;
use crate::request::{
    BusyReason, Changed, Copied, Event, MailboxChange, MailboxChanged, MonotonicNs, Notice, Now,
    Refused, Ticket,
};
use crate::tail::{MailboxTail, Tail, Usage};
use crate::user::{Hold, Waiter};

use copy::CopyPlan;
use flags::RunPlan;
use mailbox::MailboxPlan;
use refill::RefillPlan;
pub(super) use wish::{Moves, Wish, wish_of};

/// A change that is not answered yet.
pub(super) struct Change {
    ticket: Ticket,
    key: UserKey,
    pub(super) user: usize,
    since: MonotonicNs,
    wish: Wish,
    plan: Plan,
    /// Frames that hold a part of it.
    parts: u32,
}

/// How far a change is.
enum Plan {
    /// Waits for its turn.
    None,
    Runs(RunPlan),
    Mailbox(MailboxPlan),
    Copy(Box<CopyPlan>),
    Refill(Box<RefillPlan>),
}

/// What one attempt to place a change came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Placed {
    /// All of it is in batches.
    All,
    /// It goes on by itself, when something was read.
    Waits,
    /// It may not go on now; others may.
    Held,
    /// No batch has room now: try again.
    NoRoom,
}

impl<I: Io> Shard<I> {
    pub(super) fn submit_change(
        &mut self,
        now: Now,
        ticket: Ticket,
        key: UserKey,
        wish: Wish,
    ) -> Result<(), Refused> {
        self.accepts_mail()?;
        if !self.identity.owns(&key) {
            return Err(Refused::WrongShard);
        }
        if let Wish::Refill(_) = wish {
            self.takes_refills_of(&key)?;
        } else {
            self.takes_changes_of(&key)?;
        }
        if wish.ranges() > UID_RANGES_MAX {
            return Err(Refused::TooLarge);
        }
        let user = self.users.by_key(&key);
        if self.user_queue_is_full(user) {
            return Err(Refused::Busy(BusyReason::UserQueue));
        }
        self.users.get_mut(user).pins += 1;
        let change = self.changes.insert(Change {
            ticket,
            key,
            user,
            since: now.monotonic,
            wish,
            plan: Plan::None,
            parts: 0,
        });
        self.want_turn(change);
        Ok(())
    }

    /// Queues a change behind the others of its user, as soon as the index is there.
    fn want_turn(&mut self, change: usize) {
        let Some(Change { user, key, .. }) = self.changes.get(change) else {
            return;
        };
        let (user, key) = (*user, key.clone());
        if self.has_index(user, Waiter::Change(change), &key) {
            self.change_user_loaded(change);
        }
    }

    pub(super) fn change_wants(&self, change: usize, name: Option<&[u8]>) -> Wants {
        Wants::compare(self.changes.get(change).map(|change| &change.key), name)
    }

    /// The user turned out to have another name: ask for the next ordinal.
    pub(super) fn change_moves(&mut self, change: usize) {
        let Some(open) = self.changes.get(change) else {
            return;
        };
        let (from, key) = (open.user, open.key.clone());
        let to = self.users.by_key(&key);
        self.users.get_mut(to).pins += 1;
        self.users.unpin(from);
        if let Some(open) = self.changes.get_mut(change) {
            open.user = to;
        }
        self.want_turn(change);
    }

    /// The user is loaded, or cannot be.
    pub(super) fn change_user_loaded(&mut self, change: usize) {
        let Some(open) = self.changes.get(change) else {
            return;
        };
        let user = self.users.get_mut(open.user);
        if user.changing.is_some() {
            user.changes.push_back(change);
        } else {
            user.changing = Some(change);
            self.turns.push_back(change);
        }
    }

    /// Encodes as much of the changes as there is room for, oldest first. One that is held back
    /// does not hold back the others.
    pub(super) fn place_changes(&mut self, now: Now) {
        for _change in 0..self.turns.len() {
            let Some(change) = self.turns.pop_front() else {
                return;
            };
            match self.place_change(now, change) {
                Placed::All | Placed::Waits => {}
                Placed::Held => self.turns.push_back(change),
                Placed::NoRoom => {
                    self.turns.push_front(change);
                    self.refuse_overdue(now);
                    return;
                }
            }
        }
    }

    /// Refuses what has waited too long behind a change that is begun and finds no room: its turn may
    /// not come for as long again.
    fn refuse_overdue(&mut self, now: Now) {
        let overdue = |change: &usize| {
            self.refusable(*change)
                .is_some_and(|since| now.monotonic.since(since) >= APPEND_AGE_MAX_NS)
        };
        let overdue: Vec<usize> = self.turns.iter().copied().filter(overdue).collect();
        for change in overdue {
            self.turns.retain(|other| *other != change);
            self.wait_for_room(now, change, (Placed::NoRoom, BusyReason::SlowDisk));
        }
    }

    /// Since when a change waits that can still be refused: none of it is in the log, and it waits for
    /// no compaction.
    fn refusable(&self, change: usize) -> Option<MonotonicNs> {
        let open = self.changes.get(change)?;
        let held = self.users.get(open.user).hold != Hold::Free;
        let begun = open.parts > 0 || open.plan.is_begun();
        (!held && !begun).then_some(open.since)
    }

    fn place_change(&mut self, now: Now, change: usize) -> Placed {
        if !self.changes.contains(change) {
            return Placed::All;
        }
        let user = self.changes.get(change).map(|open| open.user);
        if user.is_some_and(|user| self.users.get(user).hold != Hold::Free) {
            // A compaction lets go of it in a moment.
            return Placed::Held;
        }
        if let Err(fenced) = self.may_go_on(change) {
            if self.changes.get(change).is_some_and(|open| open.parts > 0) {
                return Placed::Held;
            }
            self.turns.retain(|other| *other != change);
            self.refuse_change(change, fenced);
            return Placed::All;
        }
        if let Some(reason) = self.change_pressure(change) {
            return self.wait_for_room(now, change, (Placed::Held, reason));
        }
        if user.is_some_and(|user| self.awaits_copies(user)) {
            // An earlier primary may have answered what is held: it comes first.
            return self.wait_for_room(now, change, (Placed::Held, BusyReason::SlowDisk));
        }
        let open = self.changes.get_mut(change).expect("just looked up");
        if matches!(open.plan, Plan::None) {
            match self.begin_change(change) {
                Ok(plan) => self.changes.get_mut(change).expect("an open change").plan = plan,
                Err(refused) => {
                    self.refuse_change(change, refused);
                    return Placed::All;
                }
            }
        }
        // The plan is taken out while it is carried on: it borrows nothing of the shard.
        let open = self.changes.get_mut(change).expect("an open change");
        let user = open.user;
        let mut plan = std::mem::replace(&mut open.plan, Plan::None);
        let placed = match &mut plan {
            Plan::None => unreachable!("it has just begun"),
            Plan::Runs(runs) => self.place_runs(now, change, user, runs),
            Plan::Mailbox(mailbox) => self.place_mailbox(now, change, user, mailbox),
            Plan::Copy(copy) => self.place_copy(now, change, user, copy),
            Plan::Refill(refill) => self.place_refill(now, change, user, refill),
        };
        // What is different may be something else once there is room.
        let is_stale = placed == Placed::NoRoom && matches!(plan, Plan::Refill(_));
        if !is_stale {
            self.changes.get_mut(change).expect("an open change").plan = plan;
        }
        match placed {
            Placed::All => {
                let user = self.changes.get(change).expect("an open change").user;
                let shown = self.shown_of(user);
                self.finish_change(change, shown);
            }
            Placed::Held | Placed::NoRoom => {
                return self.wait_for_room(now, change, (placed, BusyReason::SlowDisk));
            }
            Placed::Waits => self.begin_copy_step(change),
        }
        placed
    }

    /// Whether the one who may change a user is who this change is of.
    fn may_go_on(&self, change: usize) -> Result<(), Refused> {
        let Some(open) = self.changes.get(change) else {
            return Ok(());
        };
        match open.wish {
            Wish::Refill(_) => self.takes_refills_of(&open.key),
            _ => self.takes_changes_of(&open.key),
        }
    }

    /// A change that finds no room waits a while; one that was begun must be finished.
    fn wait_for_room(
        &mut self,
        now: Now,
        change: usize,
        (placed, reason): (Placed, BusyReason),
    ) -> Placed {
        let open = self.changes.get(change).expect("an open change");
        let begun = open.parts > 0 || open.plan.is_begun();
        if begun || now.monotonic.since(open.since) < APPEND_AGE_MAX_NS {
            return placed;
        }
        self.events.push(Event::Notice(Notice::Pressure(reason)));
        self.refuse_change(change, Refused::Busy(reason));
        Placed::All
    }

    /// Which bound keeps a change waiting (storage.md 4.4): what empties a mailbox is taken longer
    /// than what fills it.
    fn change_pressure(&self, change: usize) -> Option<BusyReason> {
        let open = self.changes.get(change)?;
        if let Wish::Copy { .. } = open.wish {
            return self.pressure();
        }
        let used = self.log.used_bytes(self.positions.checkpointed_to().lsn());
        if used >= self.log.files().capacity_bytes_max() * 95 / 100 {
            return Some(BusyReason::Log);
        }
        let records_max = self.config.pending_records_max;
        (self.pending_records >= records_max).then_some(BusyReason::PendingRecords)
    }

    /// Decides a change on what is visible now.
    fn begin_change(&mut self, change: usize) -> Result<Plan, Refused> {
        let open = self.changes.get(change).expect("an open change");
        let user = self.users.get(open.user);
        let makes = matches!(
            &open.wish,
            Wish::Mailbox(MailboxChange::Create { .. }) | Wish::Refill(_)
        );
        match readable(user) {
            Err(Refused::NoSuchUser) if makes => {}
            other => other?,
        }
        let live = user.live().expect("readable, or absent");
        let wanted = open
            .wish
            .target()
            .and_then(|target| live.tail.mailbox(target));
        if !live.tail.has_numbers(wanted) {
            let what = "its numbers (uid, segment, slot, modseq) are used up";
            return Err(Refused::Repairing(Arc::new(Corrupt {
                file: user.dir().to_string(),
                offset: 0,
                reason: CorruptReason::Value(what),
            })));
        }
        let place = At {
            tail: &live.tail,
            index: live.index.as_ref().expect("a change waits for it"),
        };
        match &open.wish {
            Wish::Store {
                mailbox,
                uids,
                op,
                flags,
                unchanged_since,
            } => {
                let change = (*op, flags, *unchanged_since);
                flags::store(&place, *mailbox, uids, change).map(Plan::Runs)
            }
            Wish::Expunge {
                mailbox,
                uids,
                which,
            } => flags::expunge(&place, *mailbox, uids, *which).map(Plan::Runs),
            Wish::Copy {
                from,
                uids,
                to,
                moves,
            } => {
                if self.disk_is_full() && matches!(moves, Moves::No(_)) {
                    return Err(Refused::DiskFull);
                }
                let plan = copy::plan(&place, (*from, *to), uids, *moves)?;
                let user = open.user;
                self.hold_copies(user, &plan);
                Ok(Plan::Copy(Box::new(plan)))
            }
            Wish::Mailbox(asked) => {
                let room = self.log.payload_max();
                let create = self.creation_need(open.user);
                mailbox::plan(&place, asked, room - create).map(Plan::Mailbox)
            }
            Wish::Refill(state) => {
                self.partitions.takes(open.key.partition(), state.epoch)?;
                let room = self.log.payload_max() - self.creation_need(open.user);
                let plan = refill::plan(&place, state, room)?;
                Ok(Plan::Refill(Box::new(plan)))
            }
        }
    }

    /// Gives the open batch to a change; its entries are published when the frame is durable.
    fn attach_change(&mut self, change: usize, entries: SmallVec<[Entry; 1]>) {
        let marks = std::mem::take(&mut self.marks);
        let part = Part {
            of: PartOf::Change(change, entries),
            marks,
            dedupe_next: self.window.next(),
        };
        self.changes.get_mut(change).expect("an open change").parts += 1;
        let batch = self.log.open_batch_mut().expect("room was made");
        batch.attach(part, 0);
    }

    /// A part of a change gets no answer of its own any more: its user.
    pub(super) fn part_of_change_ends(
        &mut self,
        change: usize,
        entries: &SmallVec<[Entry; 1]>,
    ) -> Option<usize> {
        let open = self.changes.get_mut(change)?;
        open.parts -= 1;
        let user = open.user;
        if let Wish::Copy {
            moves: Moves::Yes, ..
        } = &open.wish
            && let Some(live) = self.users.get_mut(user).live_mut()
        {
            live.tail.moving = live.tail.moving.minus(copy::usage_of(entries));
        }
        Some(user)
    }

    /// Refuses a change none of whose frames is awaited.
    pub(super) fn refuse_change_if_idle(&mut self, change: usize, why: Refused) {
        if self.changes.get(change).is_some_and(|open| open.parts == 0) {
            // Its number is given to another, whose turn is its own.
            self.turns.retain(|other| *other != change);
            self.refuse_change(change, why);
        }
    }

    /// A frame with a part of a change is durable.
    pub(super) fn publish_change(
        &mut self,
        change: usize,
        entries: SmallVec<[Entry; 1]>,
        durable: DurableTo,
    ) {
        let Some(open) = self.changes.get_mut(change) else {
            return;
        };
        open.parts -= 1;
        let user = open.user;
        let arrived = match &open.wish {
            Wish::Copy {
                moves: Moves::Yes, ..
            } => copy::usage_of(&entries),
            _ => Usage::default(),
        };
        self.publish_entries(user, entries);
        if let Some(live) = self.users.get_mut(user).live_mut() {
            live.tail.moving = live.tail.moving.minus(arrived);
        }
        self.finish_change(change, durable);
    }

    /// Answers a change all of which is durable.
    fn finish_change(&mut self, change: usize, durable: DurableTo) {
        let Some(open) = self.changes.get_mut(change) else {
            return;
        };
        if open.parts > 0 || !open.plan.is_done() {
            return;
        }
        let plan = std::mem::replace(&mut open.plan, Plan::None);
        let (ticket, user) = (open.ticket, open.user);
        let is_store = matches!(open.wish, Wish::Store { .. });
        if let Plan::Copy(plan) = &plan {
            self.release_copies(user, plan);
        }
        let tail = self.users.get(user).live().map(|live| &live.tail);
        let event = match plan {
            Plan::Runs(runs) => {
                let result = Ok(runs.answer(tail, durable));
                if is_store {
                    Event::FlagsStored { ticket, result }
                } else {
                    Event::Expunged { ticket, result }
                }
            }
            Plan::Mailbox(plan) => Event::MailboxChanged {
                ticket,
                result: Ok(plan.answer(tail, durable)),
            },
            Plan::Copy(plan) => Event::Copied {
                ticket,
                result: Ok(plan.answer(tail, durable)),
            },
            Plan::Refill(plan) => Event::Refilled {
                ticket,
                result: Ok(plan.answer(durable)),
            },
            Plan::None => unreachable!("it is done"),
        };
        self.metrics.changes += 1;
        self.close_change(change);
        self.answer(event);
    }

    /// Answers a change of which nothing was encoded with a refusal.
    pub(super) fn refuse_change(&mut self, change: usize, why: Refused) {
        let Some(open) = self.changes.get(change) else {
            return;
        };
        let event = open.wish.refusal(open.ticket, why);
        self.metrics.changes_refused += 1;
        self.close_change(change);
        self.answer(event);
    }

    /// Takes a change out; the next one of its user has its turn.
    fn close_change(&mut self, change: usize) {
        let Change { user, plan, .. } = self.changes.remove(change);
        if let Plan::Copy(plan) = plan {
            self.release_copies(user, &plan);
        }
        let found = self.users.get_mut(user);
        if found.changing == Some(change) {
            found.changing = found.changes.pop_front();
            self.turns.extend(found.changing);
        } else {
            found.changes.retain(|other| *other != change);
        }
        self.users.unpin(user);
        self.users.forget_if_absent(user);
        self.trim_indexes(user);
    }

    /// After a fatal error: every open change is answered `Stopped`, whatever the disk holds.
    pub(super) fn refuse_changes(&mut self) {
        self.turns.clear();
        let open: Vec<usize> = self.changes.iter().map(|(index, _)| index).collect();
        for index in open {
            let change = self.changes.remove(index);
            self.answer(change.wish.refusal(change.ticket, Refused::Stopped));
        }
    }

    /// When the oldest change that waits for room is refused.
    pub(super) fn changes_due(&self) -> Option<MonotonicNs> {
        let mut waiting = self.turns.iter();
        let oldest = waiting.find_map(|change| self.refusable(*change));
        oldest.map(|since| since.after(APPEND_AGE_MAX_NS))
    }

    /// Whether work is open that a drain waits for.
    pub(super) fn has_work(&self) -> bool {
        let draining = matches!(self.phase, super::Phase::Draining(_));
        !self.appends.is_empty()
            || !self.changes.is_empty()
            || !self.compactor.is_idle()
            || (draining && !self.scrubber.is_idle())
            || self.copies.are_open()
    }
}

/// What a change is decided on.
struct At<'a> {
    tail: &'a Tail,
    index: &'a Index,
}

impl At<'_> {
    fn mailbox(&self, mailbox: MailboxId) -> Result<&MailboxTail, Refused> {
        let found = self.tail.visible_mailbox(mailbox);
        found.ok_or(Refused::NoSuchMailbox)
    }
}

impl Plan {
    /// Whether all of it is in batches.
    fn is_done(&self) -> bool {
        match self {
            Self::None => false,
            Self::Runs(plan) => plan.is_done(),
            Self::Mailbox(plan) => plan.is_done(),
            Self::Copy(plan) => plan.is_done(),
            Self::Refill(plan) => plan.is_done(),
        }
    }

    /// Whether some of it was encoded or read, so that it cannot be refused as a whole any more.
    fn is_begun(&self) -> bool {
        match self {
            Self::None => false,
            Self::Runs(plan) => plan.is_begun(),
            Self::Mailbox(plan) => plan.is_done(),
            Self::Copy(plan) => plan.is_begun(),
            Self::Refill(plan) => plan.is_done(),
        }
    }
}
