//! The scrub: everything that a shard has on disk is read again and compared with its checksums, while
//! the shard serves (storage.md 8.6). It finds rot while another copy or a backup still has the bytes.
//!
//! ```text
//! a pass    own      superblock copies, headers of live and armed log files
//!           names    partition by partition, user by user, in the order of their directories
//! a visit   load     the user is loaded as for an append: listing, lengths, all runs of the index
//!           index    its info file again, past the page cache: what counts is the medium
//!           bytes    every message that is there, in the order of the segments, past the page cache:
//!                    store line, length, guid and checksum against the index
//! ```
//!
//! Reading pays from the purse that compaction pays from, and waits while a checkpoint writes or mail
//! waits for room. A user whose visit begins was not in memory leaves it with the visit.
//!
//! What does not fit is looked at a second time, from the index on: meanwhile it may have been
//! expunged, or moved by a compaction. Only what fails twice is damage. It is named once, counted,
//! kept in `log/<id>/scrub`, and not served from then on, not even in pieces that no checksum covers.
//! A later visit that finds it whole forgets it. Nothing is repaired here: there is no second copy yet.
//!
//! The visit is registered as a reader, so that no file that it knows of goes meanwhile.

mod known;
mod own;
mod target;
mod visit;

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use ringpost_netproto::id::{MailboxId, PartitionId, Uid, UserHash, WallNs};
use ringpost_netproto::placement::UserKey;

use super::{Phase, Shard};
use crate::error::Corrupt;
use crate::format::scrub::{SCRUB_BYTES_MAX, ScrubFile, ScrubPlace};
use crate::io::{AlignedBuf, Done, Failed, Io, Op, RelPath, Step as WriteStep, Work, WorkSync};
use crate::ops::{Ops, Purpose, unreachable_done};
use crate::request::{
    BusyReason, Damage, Event, MonotonicNs, Notice, Now, Refused, ScrubWhat, Scrubbed, Ticket,
};
use crate::user::User;

use known::Known;
use own::Own;
use visit::Visit;

/// Bytes of one read: long enough for a disk that seeks, done in a millisecond by others.
const PIECE_BYTES: usize = 256 << 10;

/// The first pass after a start waits so long, ns: others have more to do then.
const START_NS: u64 = 60_000_000_000;

/// While others need the disk it is looked again after this, ns.
const PAUSE_NS: u64 = 100_000_000;

/// With more appends than this open, reading pays four times.
const APPENDS_CALM: usize = 32;

/// The file is written at most so often, ns, but for news.
const SAVE_NS: u64 = 60_000_000_000;

/// Users that can be asked for at a time.
const ASKED_MAX: usize = 1_024;

/// Steps without an operation in one turn: others have theirs.
const STEPS_MAX: usize = 16;

/// The scrub of a shard.
pub(super) struct Scrubber {
    known: Known,
    pass: Option<Pass>,
    /// When the next pass begins by itself.
    next_pass: Option<MonotonicNs>,
    ended: Option<(WallNs, u64)>,
    /// Users to be visited before others.
    asked: VecDeque<Asked>,
    /// Who waits for the next pass that begins.
    whole: Vec<Ticket>,
    visit: Option<Visit>,
    /// An op of it is under way.
    busy: Busy,
    not_before: MonotonicNs,
    /// Between reads, while a visit or the shard's own files need it.
    buf: Option<AlignedBuf>,
    saved_at: MonotonicNs,
    news: News,
    saving: Busy,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Busy {
    Yes,
    No,
}

/// What the file does not say yet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum News {
    None,
    /// A position: soon enough with the next that comes.
    Position,
    /// Damage, or the end of a pass.
    Found,
}

/// A pass over all users.
struct Pass {
    began: WallNs,
    own: Own,
    /// The last user done.
    position: Option<ScrubPlace>,
    /// The partition of `names`; above the last when all are done.
    partition: u32,
    /// Users of it that are still to come; `None`: not listed yet.
    names: Option<VecDeque<(UserHash, u32)>>,
    tickets: Vec<Ticket>,
    done: Scrubbed,
}

/// A user that somebody asked for, or of whom damage is known since before the start.
enum Asked {
    Key(Ticket, UserKey),
    Place(ScrubPlace),
}

/// Whether a step got anywhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Moved {
    Yes,
    No,
}

impl Scrubber {
    /// As the file tells it; without one, or with a damaged one, from the start. What it says of partitions
    /// that were this core's when there were more cores or fewer is passed over: users of other cores are
    /// not to be touched from here.
    pub(super) fn open<I: Io>(
        ops: &mut Ops<I>,
        (log_id, logs): (u32, u32),
        interval_ns: Option<u64>,
        now: Now,
    ) -> Self {
        let read = ops.run_plain(Op::ReadFile {
            path: RelPath::scrub(log_id),
            bytes_max: SCRUB_BYTES_MAX,
        });
        let mut file = match read {
            Ok(Done::Bytes(bytes)) => ScrubFile::decode(&bytes).unwrap_or_default(),
            _ => ScrubFile::default(),
        };
        let is_ours = |place: &ScrubPlace| u32::from(place.partition.value()) % logs == log_id;
        file.position = file.position.filter(is_ours);
        file.damaged.retain(|found| is_ours(&found.place));
        let soon = now.monotonic.after(START_NS);
        let rest = file.ended.map_or(0, |(at, _)| {
            let since = now.wall.value().saturating_sub(at.value());
            interval_ns.unwrap_or(0).saturating_sub(since)
        });
        let known = Known::from_file(file.damaged);
        let pass = file.began.map(|began| Pass {
            began,
            own: Own::new(),
            partition: file
                .position
                .map_or(log_id, |place| u32::from(place.partition.value())),
            position: file.position,
            names: None,
            tickets: Vec::new(),
            done: Scrubbed::default(),
        });
        Self {
            asked: known.users().into_iter().map(Asked::Place).collect(),
            known,
            pass: pass.filter(|_| interval_ns.is_some()),
            next_pass: interval_ns.map(|_| soon.max(now.monotonic.after(rest))),
            ended: file.ended,
            whole: Vec::new(),
            visit: None,
            busy: Busy::No,
            not_before: soon,
            buf: None,
            saved_at: now.monotonic,
            news: News::None,
            saving: Busy::No,
        }
    }

    /// Why a message is not served, if a scrub found it damaged at this very place.
    pub(super) fn quarantined(
        &self,
        user: &User,
        (mailbox, uid): (MailboxId, Uid),
        path: &RelPath,
    ) -> Option<Arc<Corrupt>> {
        let found = self.known.message(place_of(user), mailbox, uid)?;
        (found.file == path.as_str()).then(|| Arc::clone(found))
    }

    /// Whether a drain needs not wait for it.
    pub(super) fn is_idle(&self) -> bool {
        self.visit.is_none() && self.busy == Busy::No && self.saving == Busy::No
    }

    fn has_work(&self) -> bool {
        self.visit.is_some()
            || self.pass.is_some()
            || !self.asked.is_empty()
            || !self.whole.is_empty()
    }
}

/// The user's directory.
fn place_of(user: &User) -> ScrubPlace {
    ScrubPlace {
        partition: user.partition,
        hash: user.hash,
        ordinal: user.ordinal,
    }
}

impl<I: Io> Shard<I> {
    /// Damage that scrubs found and that was not whole since, by user.
    pub fn damages(&self) -> impl Iterator<Item = &Damage> {
        self.scrubber.known.iter()
    }

    pub(super) fn submit_scrub(&mut self, ticket: Ticket, what: ScrubWhat) -> Result<(), Refused> {
        if self.phase != Phase::Serving {
            return Err(Refused::Stopped);
        }
        let scrubber = &mut self.scrubber;
        if scrubber.asked.len() + scrubber.whole.len() >= ASKED_MAX {
            return Err(Refused::Busy(BusyReason::Tickets));
        }
        match what {
            ScrubWhat::All => scrubber.whole.push(ticket),
            ScrubWhat::User(key) if !self.identity.owns(&key) => return Err(Refused::WrongShard),
            ScrubWhat::User(key) => scrubber.asked.push_front(Asked::Key(ticket, key)),
        }
        // Whoever asks does not wait for the rest after a start.
        scrubber.not_before = MonotonicNs::new(0);
        Ok(())
    }

    /// Goes on with the scrub as far as that is paid for.
    pub(super) fn tend_scrub(&mut self, now: Now) {
        if matches!(self.phase, Phase::Draining(_)) {
            self.give_scrub_up();
        }
        if self.phase != Phase::Serving {
            return;
        }
        for _step in 0..STEPS_MAX {
            if self.scrubber.busy == Busy::Yes
                || self.scrub_due().is_none_or(|due| due > now.monotonic)
            {
                break;
            }
            if self.others_come_first(now) {
                self.scrubber.not_before = now.monotonic.after(PAUSE_NS);
                break;
            }
            if self.step_scrub(now) == Moved::No {
                break;
            }
        }
        self.save_scrub(now);
    }

    /// When to look again although nothing completes.
    pub(super) fn scrub_due(&self) -> Option<MonotonicNs> {
        let scrubber = &self.scrubber;
        if self.phase != Phase::Serving {
            return None;
        }
        if scrubber.busy == Busy::Yes || scrubber.visit.as_ref().is_some_and(Visit::is_loading) {
            return None;
        }
        let from = if scrubber.has_work() {
            MonotonicNs::new(0)
        } else {
            scrubber.next_pass?
        };
        Some(from.max(scrubber.not_before).max(self.purse.due()))
    }

    /// Whether the disk is needed more elsewhere.
    fn others_come_first(&self, now: Now) -> bool {
        self.checkpoint.is_working() || self.oldest_append_ns(now) > 0
    }

    fn pay_scrub(&mut self, now: Now, bytes: u64) {
        let busy = if self.appends.len() > APPENDS_CALM {
            4
        } else {
            1
        };
        let rate = self.config.scrub_bytes_per_s;
        self.purse.spend(now, bytes.saturating_mul(busy), rate);
    }

    fn scrub_op(&mut self, op: Op) {
        self.scrubber.busy = Busy::Yes;
        self.ops.start(op, Purpose::Scrub);
    }

    /// A step of what is to be done next.
    fn step_scrub(&mut self, now: Now) -> Moved {
        if self.scrubber.visit.is_some() {
            return self.step_visit(now);
        }
        if let Some(asked) = self.scrubber.asked.pop_front() {
            match asked {
                Asked::Key(ticket, key) => {
                    let user = self.users.by_key(&key);
                    self.begin_visit(user, Some((ticket, key)));
                }
                Asked::Place(place) => self.visit_place(place),
            }
            return Moved::Yes;
        }
        let pass = self.scrubber.pass.as_ref();
        // One that somebody waits for ends first: who asks again and again would never get an answer.
        let waits = pass.is_some_and(|pass| !pass.tickets.is_empty());
        if pass.is_none() || (!self.scrubber.whole.is_empty() && !waits) {
            self.begin_pass(now);
        }
        let Some(pass) = &mut self.scrubber.pass else {
            return Moved::No;
        };
        if !pass.own.is_done() {
            return self.step_own(now);
        }
        if let Some(names) = &mut pass.names {
            let partition = u16::try_from(pass.partition).unwrap_or(u16::MAX);
            if let Some((hash, ordinal)) = names.pop_front() {
                self.visit_place(ScrubPlace {
                    partition: PartitionId::new(partition),
                    hash,
                    ordinal,
                });
                return Moved::Yes;
            }
            pass.names = None;
            pass.partition = pass.partition.saturating_add(self.identity.logs);
        }
        if pass.partition >= self.identity.partitions.value() {
            self.end_pass(now);
            return Moved::Yes;
        }
        let partition = u16::try_from(pass.partition).unwrap_or(u16::MAX);
        let path = RelPath::partition_dir(PartitionId::new(partition));
        self.scrub_op(Op::ListDir { path });
        Moved::Yes
    }

    fn visit_place(&mut self, place: ScrubPlace) {
        let user = self
            .users
            .by_ordinal(place.hash, place.ordinal, place.partition);
        self.begin_visit(user, None);
    }

    fn begin_pass(&mut self, now: Now) {
        let tickets = std::mem::take(&mut self.scrubber.whole);
        self.scrubber.pass = Some(Pass {
            began: now.wall,
            own: Own::new(),
            position: None,
            partition: self.identity.log_id,
            names: None,
            tickets,
            done: Scrubbed::default(),
        });
        self.scrubber.news = self.scrubber.news.max(News::Position);
    }

    fn end_pass(&mut self, now: Now) {
        let Some(pass) = self.scrubber.pass.take() else {
            return;
        };
        let ns = now.wall.value().saturating_sub(pass.began.value());
        self.scrubber.ended = Some((now.wall, ns));
        self.scrubber.news = News::Found;
        self.scrubber.buf = None;
        let interval = self.config.scrub_interval_ns;
        self.scrubber.next_pass = interval.map(|ns| now.monotonic.after(ns));
        self.metrics.scrub_passes += 1;
        self.metrics.scrub_pass_ns = ns;
        let done = Scrubbed {
            damaged: self.scrubber.known.count(),
            ..pass.done
        };
        for ticket in pass.tickets {
            let result = Ok(done);
            self.answer(Event::Scrubbed { ticket, result });
        }
    }

    /// An op of the scrub ended.
    pub(super) fn scrub_step(&mut self, now: Now, result: Result<Done, Failed>) {
        self.scrubber.busy = Busy::No;
        if self.scrubber.visit.is_some() {
            self.visit_op_ended(now, result);
            return;
        }
        let Some(pass) = &mut self.scrubber.pass else {
            return;
        };
        if !pass.own.is_done() {
            self.own_read(result);
            return;
        }
        let after = pass.position;
        let partition = pass.partition;
        let comes = |(hash, ordinal): &(UserHash, u32)| {
            after.is_none_or(|after| {
                u32::from(after.partition.value()) != partition
                    || (*hash, *ordinal) > (after.hash, after.ordinal)
            })
        };
        let mut names: Vec<_> = match result {
            Ok(Done::Listing(names)) => names
                .iter()
                .filter_map(|(name, _)| user_of(name))
                .filter(comes)
                .collect(),
            Ok(other) => unreachable_done(&other),
            // Mail for it says more than we could.
            Err(_) => Vec::new(),
        };
        names.sort_unstable();
        let empty = names.is_empty();
        pass.names = Some(names.into());
        // Most partitions of a small store are empty, and cost next to nothing.
        if !empty {
            self.pay_scrub(now, 1);
        }
    }

    /// Takes note of what a visit found; says what is new.
    fn found_damage(&mut self, place: ScrubPlace, found: Vec<Damage>) {
        let before = self.scrubber.known.count();
        let news = self.scrubber.known.replace(place, found);
        if !news.is_empty() || before != self.scrubber.known.count() {
            self.scrubber.news = News::Found;
        }
        for damage in news {
            self.tell_damage(damage);
        }
    }

    fn tell_damage(&mut self, damage: Damage) {
        self.metrics.corrupt += 1;
        let notice = Notice::Damaged(Arc::new(damage));
        self.events.push(Event::Notice(notice));
    }

    /// Writes the file if there are news for it.
    fn save_scrub(&mut self, now: Now) {
        let scrubber = &self.scrubber;
        let due = match scrubber.news {
            News::None => false,
            News::Position => now.monotonic >= scrubber.saved_at.after(SAVE_NS),
            News::Found => true,
        };
        if !due || scrubber.saving == Busy::Yes {
            return;
        }
        let file = ScrubFile {
            began: scrubber.pass.as_ref().map(|pass| pass.began),
            position: scrubber.pass.as_ref().and_then(|pass| pass.position),
            ended: scrubber.ended,
            damaged: scrubber.known.to_file(),
        };
        let work = Work {
            steps: vec![WriteStep::Replace {
                path: RelPath::scrub(self.identity.log_id),
                data: Bytes::from(file.encode()),
            }],
            sync: WorkSync::Each,
        };
        self.scrubber.saving = Busy::Yes;
        self.scrubber.saved_at = now.monotonic;
        self.scrubber.news = News::None;
        let op = Op::Materialise(vec![work]);
        self.ops.start(op, Purpose::ScrubFile);
    }

    /// The file is written, or not: it is derived, and the next news write it again.
    pub(super) fn scrub_saved(&mut self) {
        self.scrubber.saving = Busy::No;
    }

    /// Nobody's turn comes any more.
    fn give_scrub_up(&mut self) {
        if self.scrubber.busy == Busy::Yes {
            return;
        }
        if let Some(visit) = &self.scrubber.visit {
            if visit.is_loading() {
                return;
            }
            self.drop_visit();
        }
        self.refuse_scrubs();
    }

    /// Who waits learns that it does not come.
    pub(super) fn refuse_scrubs(&mut self) {
        let mut tickets = std::mem::take(&mut self.scrubber.whole);
        if let Some(pass) = &mut self.scrubber.pass {
            tickets.append(&mut pass.tickets);
        }
        let asked = std::mem::take(&mut self.scrubber.asked);
        tickets.extend(asked.into_iter().filter_map(|asked| match asked {
            Asked::Key(ticket, _) => Some(ticket),
            Asked::Place(_) => None,
        }));
        if let Some(visit) = &mut self.scrubber.visit {
            tickets.extend(visit.take_ticket());
        }
        for ticket in tickets {
            let result = Err(Refused::Stopped);
            self.answer(Event::Scrubbed { ticket, result });
        }
    }

    pub(super) fn scrub_gauges(&mut self) {
        let scrubber = &self.scrubber;
        let partitions = self.identity.partitions.value().max(1);
        let permille = |pass: &Pass| u64::from(pass.partition.min(partitions)) * 1_000;
        self.metrics.scrub_damaged = scrubber.known.count();
        self.metrics.scrub_running = u64::from(scrubber.pass.is_some());
        self.metrics.scrub_permille =
            scrubber.pass.as_ref().map_or(0, permille) / u64::from(partitions);
        self.metrics.scrub_ended_at_ns = scrubber.ended.map_or(0, |(at, _)| at.value());
    }
}

/// Hash and ordinal of a user directory's name; only the form that the engine writes.
fn user_of(name: &str) -> Option<(UserHash, u32)> {
    let (hash, ordinal) = name.split_once('-')?;
    let user = UserHash::new(u64::from_str_radix(hash, 16).ok()?);
    let ordinal: u32 = ordinal.parse().ok()?;
    (format!("{user}-{ordinal}") == name).then_some((user, ordinal))
}
