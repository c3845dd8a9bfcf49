//! Who is compacted next: users whose files became worth it, and those that somebody asked for.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use ringpost_netproto::placement::UserKey;
use slab::Slab;
use smallvec::SmallVec;

use super::super::load::Wants;
use super::super::{Phase, Shard};
use super::plan::{Zeal, victims};
use super::{Busy, Compaction, Step, is_owed};
use crate::io::Io;
use crate::limits::SLOT_BYTES;
use crate::pending::What;
use crate::position::Lsn;
use crate::request::{BusyReason, Compacted, Event, Now, Refused, Ticket};
use crate::tail::Existence;
use crate::user::{State, Waiter};

/// Users that wait. One that finds no room comes again with its next expunge or load.
const QUEUE_MAX: usize = 256;

/// So often a compaction that was given up is tried again, each time behind all others.
const TRIES_MAX: u32 = 3;

/// The shard's compactions.
pub(in crate::shard) struct Compactor {
    pub(super) queue: VecDeque<Wanted>,
    /// Requests whose user is being loaded.
    asked: Slab<Asked>,
    pub(super) running: Option<Compaction>,
    /// Something changed for those in the queue.
    pub(super) look: Look,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Look {
    Yes,
    No,
}

/// A request whose user is being loaded.
struct Asked {
    ticket: Ticket,
    key: UserKey,
    user: usize,
}

/// A user that waits; it is pinned.
pub(super) struct Wanted {
    pub(super) user: usize,
    pub(super) zeal: Zeal,
    pub(super) tickets: SmallVec<[Ticket; 1]>,
    plan: Option<Plan>,
    pub(super) tries: u32,
}

/// Its victims were rolled: nothing is appended to them from `upto` on.
struct Plan {
    victims: Vec<u32>,
    /// Other segments that nothing is appended to from there on.
    sealed: BTreeSet<u32>,
    upto: Lsn,
}

/// What a look at a waiting user found.
enum Found {
    Ready,
    /// Bytes or the user itself are in the log only: a checkpoint will help.
    Unwritten,
    /// Records are in flight.
    InFlight,
    /// There is nothing to do (any more).
    Nothing,
    /// Nothing can be done.
    Refused(Refused),
}

impl Compactor {
    pub(in crate::shard) fn new() -> Self {
        Self {
            queue: VecDeque::new(),
            asked: Slab::new(),
            running: None,
            look: Look::No,
        }
    }

    /// Whether one runs.
    pub(in crate::shard) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Whether nothing runs or waits.
    pub(in crate::shard) fn is_idle(&self) -> bool {
        self.running.is_none() && self.queue.is_empty() && self.asked.is_empty()
    }

    /// A checkpoint ended: who waited for one may go on.
    pub(in crate::shard) fn look_again(&mut self) {
        self.look = Look::Yes;
    }
}

impl<I: Io> Shard<I> {
    pub(in crate::shard) fn submit_compact(
        &mut self,
        ticket: Ticket,
        key: &UserKey,
    ) -> Result<(), Refused> {
        if !self.identity.owns(key) {
            return Err(Refused::WrongShard);
        }
        if self.phase != Phase::Serving {
            return Err(Refused::Stopped);
        }
        let user = self.users.by_key(key);
        if self.user_queue_is_full(user) {
            return Err(Refused::Busy(BusyReason::UserQueue));
        }
        self.users.get_mut(user).pins += 1;
        let asked = self.compactor.asked.insert(Asked {
            ticket,
            key: key.clone(),
            user,
        });
        self.want_compaction(asked);
        Ok(())
    }

    /// Goes on with a request now if its user is there, else when it is.
    fn want_compaction(&mut self, asked: usize) {
        let Some(Asked { user, key, .. }) = self.compactor.asked.get(asked) else {
            return;
        };
        let (index, key) = (*user, key.clone());
        let user = self.users.get_mut(index);
        let loaded = user.name.is_some() && user.live().is_some();
        if loaded || matches!(user.state, State::Repairing(_)) {
            self.compaction_user_loaded(asked);
        } else {
            user.waiting.push_back(Waiter::Compact(asked));
            self.start_load(index, Some(&key));
        }
    }

    pub(in crate::shard) fn compaction_wants(&self, asked: usize, name: Option<&[u8]>) -> Wants {
        Wants::compare(
            self.compactor.asked.get(asked).map(|asked| &asked.key),
            name,
        )
    }

    /// The user turned out to have another name: ask for the next ordinal.
    pub(in crate::shard) fn compaction_moves(&mut self, asked: usize) {
        let Some(open) = self.compactor.asked.get(asked) else {
            return;
        };
        let (from, key) = (open.user, open.key.clone());
        let to = self.users.by_key(&key);
        self.users.get_mut(to).pins += 1;
        self.users.unpin(from);
        if let Some(open) = self.compactor.asked.get_mut(asked) {
            open.user = to;
        }
        self.want_compaction(asked);
    }

    /// The user of a request is loaded, or cannot be.
    pub(in crate::shard) fn compaction_user_loaded(&mut self, asked: usize) {
        if !self.compactor.asked.contains(asked) {
            return;
        }
        let Asked { ticket, user, .. } = self.compactor.asked.remove(asked);
        let refused = match &self.users.get(user).state {
            State::Live(live) if live.tail.existence == Existence::Absent => {
                Some(Refused::NoSuchUser)
            }
            State::Live(_) => None,
            State::Repairing(corrupt) => Some(Refused::Repairing(Arc::clone(corrupt))),
            State::Unloaded | State::Loading => unreachable!("it was just loaded"),
        };
        if let Some(refused) = refused {
            self.users.unpin(user);
            let result = Err(refused);
            self.answer(Event::Compacted { ticket, result });
            self.users.forget_if_idle(user);
            return;
        }
        // The pin goes into the queue. A user that waits already is asked for twice.
        let waiting = self
            .compactor
            .queue
            .iter_mut()
            .find(|other| other.user == user);
        if let Some(waiting) = waiting {
            waiting.zeal = Zeal::Thorough;
            waiting.plan = None;
            waiting.tickets.push(ticket);
            self.users.unpin(user);
        } else {
            self.compactor.queue.push_front(Wanted {
                user,
                zeal: Zeal::Thorough,
                tickets: SmallVec::from_elem(ticket, 1),
                plan: None,
                tries: 0,
            });
        }
        self.compactor.look = Look::Yes;
    }

    /// A user's files are worth it: it comes when those before it are done, and what it holds is in
    /// its files.
    pub(super) fn queue_compaction(&mut self, index: usize) {
        let compactor = &self.compactor;
        let running = compactor.running.as_ref();
        let known = compactor.queue.iter().any(|other| other.user == index)
            || running.is_some_and(|running| running.wanted.user == index);
        if known || compactor.queue.len() >= QUEUE_MAX || self.phase != Phase::Serving {
            return;
        }
        self.users.get_mut(index).pins += 1;
        self.compactor.queue.push_back(Wanted {
            user: index,
            zeal: Zeal::Fair,
            tickets: SmallVec::new(),
            plan: None,
            tries: 0,
        });
        self.compactor.look = Look::Yes;
    }

    /// Begins with the first in the queue that is ready.
    pub(super) fn begin_compaction(&mut self, now: Now) {
        // A copy that is being made wants each user's files under the names that they have.
        let held = self.phase != Phase::Serving || self.backups.holds_files();
        if self.compactor.look == Look::No || held {
            return;
        }
        self.compactor.look = Look::No;
        let mut place = 0;
        while let Some(mut wanted) = self.compactor.queue.remove(place) {
            match self.look_at(&mut wanted) {
                Found::Ready => {
                    self.start_compaction(now, wanted);
                    self.compactor.look = Look::Yes;
                    return;
                }
                Found::Nothing => self.answer_compaction(&wanted, &Ok(Compacted::default())),
                Found::Refused(why) => self.answer_compaction(&wanted, &Err(why)),
                found => {
                    match found {
                        Found::Unwritten if !wanted.tickets.is_empty() => {
                            self.checkpoint.want();
                        }
                        Found::InFlight => self.compactor.look = Look::Yes,
                        _ => {}
                    }
                    self.compactor.queue.insert(place, wanted);
                    place += 1;
                }
            }
        }
    }

    /// Chooses the victims of a waiting user if that was not done, and says whether it can begin.
    fn look_at(&mut self, wanted: &mut Wanted) -> Found {
        let free = self.space.free_bytes;
        let budget = free - (free / 8).min(self.space.floor_bytes / 8);
        let segment_max = self.config.segment_bytes_max;
        let bytes_min = self.config.compact_bytes_min;
        let upto = self.log.end();
        let durable = self.positions.durable_to().lsn();
        let user = self.users.get_mut(wanted.user);
        let created = user
            .unwritten()
            .any(|entry| matches!(entry.what, What::Create { .. }));
        let spared = std::mem::take(&mut user.spared);
        let Some(live) = user.live_mut() else {
            return Found::Nothing;
        };
        let tail = &mut live.tail;
        let due = match wanted.zeal {
            Zeal::Fair => tail.space.is_due(tail.next_slot, bytes_min),
            Zeal::Thorough => tail.space.has_garbage(),
        };
        let info_bytes = u64::from(tail.next_slot) * SLOT_BYTES;
        let found = if !due {
            Some(Found::Nothing)
        } else if info_bytes.saturating_mul(2) > budget {
            Some(Found::Refused(Refused::DiskFull))
        } else {
            if wanted.plan.is_none() {
                // A new index and copies must fit beside the old ones, and leave some room.
                let copy_max = (budget - info_bytes) / 2;
                let victims = victims(tail, wanted.zeal, segment_max, copy_max, &spared);
                for mailbox in &mut tail.mailboxes {
                    if victims.contains(&mailbox.segment) {
                        (mailbox.segment, mailbox.segment_end) = (0, 0);
                    }
                }
                let known = tail.space.segments().iter().map(|known| known.segment);
                let active = |id: &u32| tail.mailboxes.iter().any(|tail| tail.segment == *id);
                let sealed = known.filter(|id| !active(id)).collect();
                wanted.plan = Some(Plan {
                    victims,
                    sealed,
                    upto,
                });
            }
            None
        };
        let alive: BTreeSet<u32> = tail
            .space
            .segments()
            .iter()
            .filter(|known| known.live_count > 0)
            .map(|known| known.segment)
            .collect();
        user.spared = spared;
        if let Some(found) = found {
            return found;
        }
        let Some(plan) = &wanted.plan else {
            return Found::Nothing;
        };
        let mut victims = plan.victims.iter();
        // A snapshot reads what was expunged, too.
        let read = |victim: &u32| alive.contains(victim) || user.is_pinned(*victim);
        if plan.upto > durable {
            Found::InFlight
        } else if created || victims.any(|victim| read(victim) && is_owed(user, *victim)) {
            Found::Unwritten
        } else {
            Found::Ready
        }
    }

    fn start_compaction(&mut self, now: Now, mut wanted: Wanted) {
        let Some(plan) = wanted.plan.take() else {
            return;
        };
        self.compactor.running = Some(Compaction {
            wanted,
            began: now.monotonic,
            victims: plan.victims.into_iter().collect(),
            sealed: plan.sealed,
            kept: BTreeSet::new(),
            step: Step::List,
            busy: Busy::No,
            cancelled: None,
            names: Vec::new(),
            generation: 0,
            contents: None,
            next_message: 0,
            writer: None,
            next_run: 0,
            next_copy: 0,
            made: Vec::new(),
            retired: Vec::new(),
            gone: Vec::new(),
            copied_bytes: 0,
        });
    }

    /// Ends a user's turn: answers those who asked and lets go of it.
    pub(super) fn answer_compaction(
        &mut self,
        wanted: &Wanted,
        result: &Result<Compacted, Refused>,
    ) {
        for ticket in &wanted.tickets {
            let result = result.clone();
            self.answer(Event::Compacted {
                ticket: *ticket,
                result,
            });
        }
        self.users.unpin(wanted.user);
    }

    /// Puts a user whose compaction was given up behind the others, or gives up for now.
    pub(super) fn compaction_again(&mut self, mut wanted: Wanted, why: Refused) {
        wanted.tries += u32::from(why != Refused::Busy(BusyReason::Backup));
        let retry = matches!(why, Refused::Busy(_) | Refused::Damaged(_));
        if retry && wanted.tries < TRIES_MAX && self.phase == Phase::Serving {
            self.compactor.queue.push_back(wanted);
        } else {
            self.metrics.compactions_failed += 1;
            self.answer_compaction(&wanted, &Err(why));
        }
        self.compactor.look = Look::Yes;
    }

    /// Nobody's turn comes any more.
    pub(super) fn refuse_waiting_compactions(&mut self, why: &Refused) {
        for wanted in std::mem::take(&mut self.compactor.queue) {
            self.answer_compaction(&wanted, &Err(why.clone()));
        }
        for Asked { ticket, user, .. } in std::mem::take(&mut self.compactor.asked)
            .into_iter()
            .map(|(_, asked)| asked)
        {
            self.users.unpin(user);
            let result = Err(why.clone());
            self.answer(Event::Compacted { ticket, result });
        }
    }

    /// After a fatal error.
    pub(in crate::shard) fn refuse_compactions(&mut self) {
        self.refuse_waiting_compactions(&Refused::Stopped);
        if let Some(running) = self.compactor.running.take() {
            self.answer_compaction(&running.wanted, &Err(Refused::Stopped));
        }
    }
}
