//! Copy and move (RFC 9051 6.4.7, RFC 6851): messages are read back and written anew, or linked if
//! they have files of their own; a move expunges them where they were in the same group.
//!
//! A step is what one group can hold: read or linked side by side, checked, encoded. Each step is
//! whole or absent after a crash, so that no message of a move is ever in both mailboxes or in none.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use ringpost_netproto::id::{MailboxId, Modseq, Uid, UidValidity};

use super::copier::{Copier, Source};
use super::{At, Change, Copied, Moves, Placed, Plan};
use crate::error::IoError;
use crate::format::crc;
use crate::format::info::{CHANGE_RUN_BYTES, Msg, OWN_FILE};
use crate::format::record::{Group, body_len, deliver_file_len, deliver_len, runs_len};
use crate::format::store_line::STORE_LINE_BYTES;
use crate::index::{Index, IndexEntry, selected};
use crate::io::{Done, Failed, Io, Op, RelPath};
use crate::limits::{COPY_STEP_MAX, PREFIX_BYTES_MAX};
use crate::ops::Purpose;
use crate::pending::{Entry, What};
use crate::position::DurableTo;
use crate::request::{Now, Refused, UidSet};
use crate::shard::Shard;
use crate::shard::fetch::{Fetch, Got};
use crate::shard::publish::message_of;
use crate::shard::read::{Sink, Wanted};
use crate::shard::room::{keywords_need, within_quota};
use crate::tail::{Tail, Usage};

/// A message of the step under way.
struct Item {
    source: Source,
    state: ItemState,
}

enum ItemState {
    Waits,
    /// Stored bytes and `From_` line.
    Read(Bytes, Bytes),
    /// Being linked: the segment, and where else the file may be by now.
    Links(u32, Option<RelPath>),
    Linked(u32),
    Failed(Refused),
}

/// How far the step under way is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// None is.
    No,
    /// Its messages are to be read and linked.
    Begins,
    Reads,
    /// Links are being made durable.
    Syncs,
    /// Waits for room in a batch.
    Ready,
}

/// Messages to be copied, and what will be answered.
pub(in crate::shard) struct CopyPlan {
    from: MailboxId,
    to: MailboxId,
    moves: bool,
    /// Keywords of the source, by bit.
    words: Vec<Arc<str>>,
    left: VecDeque<Uid>,
    step: Step,
    items: Vec<Item>,
    /// Reads and links of the step that have not ended.
    waits: usize,
    /// Reserved for messages that are not encoded yet.
    held: Usage,
    begun: bool,
    pairs: Vec<(Uid, Uid)>,
    failed: Vec<(Uid, Refused)>,
    modseq: Option<Modseq>,
}

/// The op that makes the links of a step durable; above every message's place in it.
const SYNC: usize = COPY_STEP_MAX;

/// Decides a copy or move.
pub(super) fn plan(
    at: &At<'_>,
    (from, to): (MailboxId, MailboxId),
    uids: &UidSet,
    moves: Moves,
) -> Result<CopyPlan, Refused> {
    let source = at.mailbox(from)?;
    at.mailbox(to)?;
    let mut plan = CopyPlan {
        from,
        to,
        moves: moves == Moves::Yes,
        words: source.keywords.clone(),
        left: VecDeque::new(),
        step: Step::No,
        items: Vec::new(),
        waits: 0,
        held: Usage::default(),
        begun: false,
        pairs: Vec::new(),
        failed: Vec::new(),
        modseq: None,
    };
    let mut usage = Usage::default();
    for entry in selected(at.index.mailbox(from), uids) {
        let size = entry.msg().map_or(0, |msg| msg.rfc822_size);
        usage = usage.plus(Usage::of(size));
        plan.left.push_back(entry.uid);
    }
    if let Moves::No(quota) = moves {
        within_quota(at.tail.usage(), usage, &quota)?;
        plan.held = usage;
    }
    Ok(plan)
}

/// Messages and bytes of what a part of a change adds.
pub(super) fn usage_of(entries: &[Entry]) -> Usage {
    let heads = entries.iter().filter_map(message_of);
    heads.fold(Usage::default(), |sum, (_, _, head, _)| {
        let msg = crate::format::info::MsgFixed::read(head)
            .and_then(|fixed| fixed.values(crate::format::Reserved::Unknown))
            .expect("encoded by this shard");
        sum.plus(Usage::of(msg.rfc822_size))
    })
}

impl Source {
    fn is_large(&self) -> bool {
        self.msg.format_flags & OWN_FILE != 0
    }

    /// At most so many bytes of records.
    fn need(&self, words: &[Arc<str>], moves: bool) -> usize {
        let message = if self.is_large() {
            deliver_file_len(self.cache.len())
        } else {
            let stored_len = crate::format::index(self.msg.stored_len);
            body_len(self.cache.len(), stored_len) + deliver_len(PREFIX_BYTES_MAX)
        };
        let expunge = if moves { CHANGE_RUN_BYTES } else { 0 };
        let named: Vec<_> = named(words, self.msg.keywords).cloned().collect();
        message + expunge + keywords_need(&named)
    }
}

/// The names of keyword bits.
pub(super) fn named(words: &[Arc<str>], bits: u64) -> impl Iterator<Item = &Arc<str>> {
    let has = move |bit: usize| {
        bits.checked_shr(u32::try_from(bit).unwrap_or(64))
            .unwrap_or(0)
    };
    let words = words.iter().enumerate();
    words.filter_map(move |(bit, word)| (has(bit) & 1 == 1).then_some(word))
}

impl CopyPlan {
    pub(super) fn is_done(&self) -> bool {
        self.left.is_empty() && self.step == Step::No
    }

    pub(super) fn is_begun(&self) -> bool {
        self.begun
    }

    pub(super) fn answer(self, tail: Option<&Tail>, durable: DurableTo) -> Copied {
        let mailbox = tail.and_then(|tail| tail.mailbox(self.to));
        let (uidvalidity, known) = mailbox.map_or((UidValidity::new(0), 0), |mailbox| {
            (mailbox.uidvalidity, mailbox.highest_modseq)
        });
        Copied {
            uidvalidity,
            pairs: self.pairs,
            failed: self.failed,
            modseq: self.modseq.unwrap_or(Modseq::new(known)),
            durable,
        }
    }

    /// Takes the messages of the next step: as many as one group can hold.
    fn begin_step(&mut self, index: &Index, payload_max: usize) {
        let mut need = runs_len(0);
        while let Some(uid) = self.left.front().copied()
            && self.items.len() < COPY_STEP_MAX
        {
            let found = index.find(self.from, uid);
            let Some(Ok(msg)) = found.map(IndexEntry::msg) else {
                // Nobody takes it away meanwhile, and its run held when it was read.
                self.left.pop_front();
                self.failed.push((uid, Refused::NoSuchMessage));
                continue;
            };
            let cache = found.map_or(Bytes::new(), |entry| entry.cache.clone());
            let source = Source { msg, cache };
            let more = source.need(&self.words, self.moves);
            if need + more > payload_max && !self.items.is_empty() {
                break;
            }
            let state = if need + more > payload_max {
                ItemState::Failed(Refused::TooLarge)
            } else {
                ItemState::Waits
            };
            need += more;
            self.left.pop_front();
            self.items.push(Item { source, state });
        }
        self.step = if self.items.is_empty() {
            Step::No
        } else {
            Step::Begins
        };
    }

    fn need(&self) -> usize {
        let items = self.items.iter();
        let each = items.map(|item| item.source.need(&self.words, self.moves));
        runs_len(0) + each.sum::<usize>()
    }
}

impl<I: Io> Shard<I> {
    /// Counts what a copy will add, so that nothing else takes its room.
    pub(super) fn hold_copies(&mut self, user: usize, plan: &CopyPlan) {
        if let Some(live) = self.users.get_mut(user).live_mut() {
            live.tail.reserved = live.tail.reserved.plus(plan.held);
        }
    }

    /// Gives back what was held for copies that are not made.
    pub(super) fn release_copies(&mut self, user: usize, plan: &CopyPlan) {
        if let Some(live) = self.users.get_mut(user).live_mut() {
            live.tail.reserved = live.tail.reserved.minus(plan.held);
        }
    }

    /// Encodes the step that is ready and begins the next.
    pub(super) fn place_copy(
        &mut self,
        now: Now,
        change: usize,
        user: usize,
        plan: &mut CopyPlan,
    ) -> Placed {
        if plan.step == Step::Ready {
            let need = plan.need();
            let any = plan.items.iter().any(|item| !item.has_failed());
            if any && self.log.room(need).is_none() {
                return Placed::NoRoom;
            }
            self.encode_step(now, change, user, plan);
        }
        if plan.step == Step::No {
            let live = self.users.get(user).live();
            let index = live.and_then(|live| live.index.as_ref());
            let index = index.expect("a change pins its user's index");
            plan.begin_step(index, self.log.payload_max());
        }
        if plan.is_done() {
            Placed::All
        } else {
            Placed::Waits
        }
    }

    /// Starts to read and link the messages of a step.
    pub(super) fn begin_copy_step(&mut self, change: usize) {
        let Some(Change { user, plan, .. }) = self.changes.get_mut(change) else {
            return;
        };
        let Plan::Copy(plan) = plan else { return };
        if plan.step != Step::Begins {
            return;
        }
        plan.step = Step::Reads;
        plan.begun = true;
        let (user, from) = (*user, plan.from);
        let waiting: Vec<(usize, Msg)> = plan
            .items
            .iter()
            .enumerate()
            .filter(|(_, item)| matches!(item.state, ItemState::Waits))
            .map(|(place, item)| (place, item.source.msg))
            .collect();
        // One more, so that what ends at once does not end the step before all has begun.
        plan.waits = waiting.len() + 1;
        for (place, msg) in waiting {
            if msg.format_flags & OWN_FILE != 0 {
                self.link_copy(change, place, user, &msg);
                continue;
            }
            let fetch = Fetch::new((from, msg.uid), None, 0, u32::MAX);
            let sink = Sink::Copy(change, place);
            let what = Wanted::Fetch(fetch.clone());
            let read = self.open_read(sink, user, None, what);
            self.find(read, user, &fetch);
        }
        self.copy_waits_less(change);
    }

    fn copy_plan(&mut self, change: usize) -> Option<&mut CopyPlan> {
        match &mut self.changes.get_mut(change)?.plan {
            Plan::Copy(plan) => Some(plan),
            _ => None,
        }
    }

    /// A body was read.
    pub(in crate::shard) fn copy_read(
        &mut self,
        change: usize,
        place: usize,
        result: Result<Got, Refused>,
    ) {
        let Some(plan) = self.copy_plan(change) else {
            return;
        };
        if let Some(item) = plan.items.get_mut(place) {
            item.state = match result {
                Ok(got) if is_whole(&got) => {
                    let front = got.prefix.len().saturating_sub(STORE_LINE_BYTES);
                    ItemState::Read(got.stored, got.prefix.slice(..front))
                }
                Ok(_) => ItemState::Failed(Refused::TooLarge),
                Err(refused) => ItemState::Failed(refused),
            };
        }
        self.copy_waits_less(change);
    }

    /// Links the file of a large message under a new segment id.
    fn link_copy(&mut self, change: usize, place: usize, user: usize, msg: &Msg) {
        let found = self.users.get_mut(user);
        let dir = found.dir();
        let pending = found.unwritten().find_map(|entry| match &entry.what {
            What::Large(mail) if (mail.mailbox, mail.uid) == (msg.mailbox, msg.uid) => {
                Some(dir.segment_part(mail.segment))
            }
            _ => None,
        });
        let last = dir.large(msg.segment, msg.mailbox, msg.uid);
        let (from, other) = match pending {
            Some(part) => (part, Some(last)),
            None => (last, None),
        };
        let live = found.live_mut().expect("a change pins its user");
        let segment = live.tail.next_segment;
        live.tail.next_segment += 1;
        let to = dir.segment_part(segment);
        if let Some(plan) = self.copy_plan(change)
            && let Some(item) = plan.items.get_mut(place)
        {
            item.state = ItemState::Links(segment, other);
        }
        let op = Op::Link { from, to };
        self.ops.start(op, Purpose::Copy(change, place));
    }

    /// A link was made, or the links of a step are durable.
    pub(in crate::shard) fn copy_step(
        &mut self,
        change: usize,
        place: usize,
        result: Result<Done, Failed>,
    ) -> Result<(), IoError> {
        let Some(user) = self.changes.get(change).map(|open| open.user) else {
            return result.map(|_| ()).map_err(|failed| failed.error);
        };
        if place == SYNC {
            result.map_err(|failed| failed.error)?;
            self.metrics.flushes += 1;
            self.copy_is_ready(change);
            return Ok(());
        }
        let dir = self.users.get(user).dir();
        let Some(item) = self
            .copy_plan(change)
            .and_then(|plan| plan.items.get_mut(place))
        else {
            return Ok(());
        };
        let ItemState::Links(segment, other) = &mut item.state else {
            return Ok(());
        };
        let segment = *segment;
        match result {
            Ok(_) => item.state = ItemState::Linked(segment),
            Err(Failed { error, .. }) if error.is_not_found() => {
                // A checkpoint gave it its final name meanwhile.
                if let Some(from) = other.take() {
                    let to = dir.segment_part(segment);
                    let op = Op::Link { from, to };
                    self.ops.start(op, Purpose::Copy(change, place));
                    return Ok(());
                }
                let corrupt = Arc::new(error.corrupt());
                item.state = ItemState::Failed(Refused::Damaged(corrupt));
            }
            Err(Failed { error, .. })
                if error.is_no_space() || matches!(error.errno, libc::EMLINK | libc::EXDEV) =>
            {
                item.state = ItemState::Failed(Refused::DiskFull);
                self.space.refused |= error.is_no_space();
            }
            Err(Failed { error, .. }) => return Err(error),
        }
        self.copy_waits_less(change);
        Ok(())
    }

    /// One read or link of a step ended; with the last of them the step goes on.
    fn copy_waits_less(&mut self, change: usize) {
        let Some(plan) = self.copy_plan(change) else {
            return;
        };
        plan.waits -= 1;
        if plan.waits > 0 {
            return;
        }
        let linked = |item: &Item| matches!(item.state, ItemState::Linked(_));
        if plan.items.iter().any(linked) {
            plan.step = Step::Syncs;
            let user = self.changes.get(change).expect("an open change").user;
            let path = self.users.get(user).dir();
            self.ops
                .start(Op::SyncDir { path }, Purpose::Copy(change, SYNC));
        } else {
            self.copy_is_ready(change);
        }
    }

    fn copy_is_ready(&mut self, change: usize) {
        if let Some(plan) = self.copy_plan(change) {
            plan.step = Step::Ready;
            self.turns.push_back(change);
        }
    }

    /// Encodes a step as one group.
    fn encode_step(&mut self, now: Now, change: usize, user: usize, plan: &mut CopyPlan) {
        plan.step = Step::No;
        let mut items = Vec::new();
        for item in std::mem::take(&mut plan.items) {
            let usage = Usage::of(item.source.msg.rfc822_size);
            if !plan.moves {
                // What was held is given to the message, or back.
                plan.held = plan.held.minus(usage);
                let live = self.users.get_mut(user).live_mut();
                let tail = &mut live.expect("a change pins its user").tail;
                tail.reserved = tail.reserved.minus(usage);
            }
            match item.state {
                ItemState::Failed(refused) => plan.failed.push((item.source.msg.uid, refused)),
                _ => items.push(item),
            }
        }
        if items.is_empty() {
            return;
        }
        let mut copier = Copier::new(self, user, plan.to, plan.words.clone(), plan.moves);
        let last = items.len() - 1;
        for (place, item) in items.into_iter().enumerate() {
            let ends = place == last && !plan.moves;
            let group = if ends { Group::Ends } else { Group::GoesOn };
            let Item { source, state } = item;
            let to = match state {
                ItemState::Read(stored, front) => {
                    copier.small(self, &source, (stored, front), group)
                }
                ItemState::Linked(segment) => copier.large(self, &source, segment, group),
                _ => unreachable!("a ready step has only what was read or linked"),
            };
            plan.pairs.push((source.msg.uid, to));
        }
        if plan.moves {
            copier.expunge(self, now, plan.from);
        }
        plan.modseq = Some(copier.modseq);
        self.attach_change(change, copier.entries);
    }
}

impl Item {
    fn has_failed(&self) -> bool {
        matches!(self.state, ItemState::Failed(_))
    }
}

/// Whether all of a message was read, and is what it was.
fn is_whole(got: &Got) -> bool {
    got.stored.len() == crate::format::index(got.msg.stored_len)
        && crc::of(&got.stored) == got.msg.stored_crc
}
