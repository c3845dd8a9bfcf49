//! One user's turn: index, then messages (see the parent). Two looks: what does not fit at the first is
//! looked up anew and read again by itself, and only then believed.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use ringpost_netproto::id::{MailboxId, Uid};
use ringpost_netproto::placement::UserKey;

use super::super::Shard;
use super::super::compact::Contents;
use super::super::load::Wants;
use super::super::publish::message_of;
use super::super::writes::Gone;
use super::target::{Fed, Progress, Target, targets};
use super::{Busy, Damage, Moved, News, PAUSE_NS, PIECE_BYTES, place_of};
use crate::error::{Corrupt, CorruptReason, IoError};
use crate::format::info::InfoHeader;
use crate::index::BadInfo;
use crate::io::{AlignedBuf, Done, Failed, FileId, Io, Op, OpenMode, RelPath};
use crate::limits::{BLOCK_BYTES, INFO_BYTES_MAX, SLOT_BYTES};
use crate::ops::{Purpose, unreachable_done};
use crate::pending::{Entry, What};
use crate::request::{DamagedMessage, Event, Now, Refused, Scrubbed, Ticket};
use crate::tail::Existence;
use crate::user::{Hold, State, User, Waiter};

/// See the module.
pub(super) struct Visit {
    /// It is pinned.
    user: usize,
    /// Of those who read its files.
    reader: u64,
    asked: Option<(Ticket, UserKey)>,
    /// It was not in memory before.
    stranger: Stranger,
    step: Step,
    index_look: Look,
    look: Look,
    targets: Vec<Target>,
    next: usize,
    progress: Progress,
    /// The segment that is open.
    open: Option<(u32, RelPath, FileId)>,
    /// What did not fit at the first look.
    suspects: BTreeSet<(MailboxId, Uid)>,
    found: Vec<Damage>,
    done: Scrubbed,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stranger {
    Yes,
    No,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Look {
    First,
    Second,
}

/// The info file, as far as it is read.
struct Reading {
    path: RelPath,
    file: FileId,
    generation: u32,
    /// Up to here everything is in the file and never written again.
    limit: u64,
    bytes: Vec<u8>,
}

enum Step {
    Loading,
    /// The index is to be read.
    Ready,
    OpenInfo {
        path: RelPath,
        generation: u32,
        /// Checkpoints ended when it was opened.
        checkpoints: u64,
    },
    ReadInfo(Reading),
    Messages,
    OpenSegment(RelPath),
    /// From this offset on.
    ReadSegment(u64),
}

impl Visit {
    pub(super) fn is_loading(&self) -> bool {
        matches!(self.step, Step::Loading)
    }

    pub(super) fn take_ticket(&mut self) -> Option<Ticket> {
        self.asked.take().map(|(ticket, _)| ticket)
    }

    /// The message that comes next does not fit, or cannot be read.
    fn fault(&mut self, dir: &RelPath, name: &Arc<[u8]>, reason: CorruptReason) {
        self.progress = Progress::default();
        let Some(target) = self.targets.get(self.next) else {
            return;
        };
        self.next += 1;
        match self.look {
            Look::First => {
                self.suspects.insert((target.mailbox, target.uid));
            }
            Look::Second => self.found.push(Damage {
                user: Arc::clone(name),
                message: Some(DamagedMessage {
                    mailbox: target.mailbox,
                    uid: target.uid,
                    guid: target.guid,
                }),
                corrupt: Arc::new(Corrupt {
                    file: target.path(dir).to_string(),
                    offset: target.offset,
                    reason,
                }),
            }),
        }
    }
}

impl<I: Io> Shard<I> {
    pub(super) fn begin_visit(&mut self, index: usize, asked: Option<(Ticket, UserKey)>) {
        let user = self.users.get_mut(index);
        let stranger = matches!(user.state, State::Unloaded) && user.unwritten().next().is_none();
        user.pins += 1;
        let loaded = user.name.is_some() && user.live().is_some();
        let ready = loaded || matches!(user.state, State::Repairing(_));
        let reader = self.begin_reader(index);
        let key = asked.as_ref().map(|(_, key)| key.clone());
        self.scrubber.visit = Some(Visit {
            user: index,
            reader,
            asked,
            stranger: if stranger {
                Stranger::Yes
            } else {
                Stranger::No
            },
            step: if ready { Step::Ready } else { Step::Loading },
            index_look: Look::First,
            look: Look::First,
            targets: Vec::new(),
            next: 0,
            progress: Progress::default(),
            open: None,
            suspects: BTreeSet::new(),
            found: Vec::new(),
            done: Scrubbed::default(),
        });
        if !ready {
            self.users.get_mut(index).waiting.push_back(Waiter::Scrub);
            self.start_load(index, key.as_ref());
        }
    }

    pub(in crate::shard) fn scrub_wants(&self, name: Option<&[u8]>) -> Wants {
        let asked = self.scrubber.visit.as_ref();
        let asked = asked.and_then(|visit| visit.asked.as_ref());
        Wants::compare(asked.map(|(_, key)| key), name)
    }

    /// The user turned out to have another name: the next ordinal is meant.
    pub(in crate::shard) fn scrub_moves(&mut self) {
        let Some(visit) = self.scrubber.visit.take() else {
            return;
        };
        let asked = visit.asked.clone();
        self.leave(&visit);
        let Some((_, key)) = &asked else { return };
        let user = self.users.by_key(key);
        self.begin_visit(user, asked);
    }

    pub(in crate::shard) fn scrub_user_loaded(&mut self) {
        if let Some(visit) = &mut self.scrubber.visit {
            visit.step = Step::Ready;
        }
    }

    /// The next operation of the visit, or its end.
    pub(super) fn step_visit(&mut self, now: Now) -> Moved {
        let Some(visit) = &mut self.scrubber.visit else {
            return Moved::No;
        };
        match &visit.step {
            Step::Ready => self.open_index(now),
            Step::ReadInfo(_) => self.read_index(now),
            Step::Messages => self.read_messages(now),
            Step::Loading | Step::OpenInfo { .. } | Step::OpenSegment(_) | Step::ReadSegment(_) => {
                Moved::No
            }
        }
    }

    fn open_index(&mut self, now: Now) -> Moved {
        let checkpoints = self.checkpoint.ended();
        let Some(visit) = &mut self.scrubber.visit else {
            return Moved::No;
        };
        let user = self.users.get(visit.user);
        let is_made = |entry: &Entry| matches!(entry.what, What::Create { .. });
        match &user.state {
            State::Repairing(corrupt) => {
                visit.found.push(Damage {
                    user: name_of(user),
                    message: None,
                    corrupt: Arc::clone(corrupt),
                });
                self.end_visit(now);
                return Moved::Yes;
            }
            State::Live(live) if live.tail.existence != Existence::Created => {
                self.end_visit(now);
                return Moved::Yes;
            }
            // All of it is in the log only.
            State::Live(_) if user.unwritten().any(is_made) => {
                self.end_visit(now);
                return Moved::Yes;
            }
            State::Live(_) if user.hold == Hold::Free => {}
            _ => {
                self.scrubber.not_before = now.monotonic.after(PAUSE_NS);
                return Moved::No;
            }
        }
        let generation = user.generation();
        let path = user.dir().info(generation);
        visit.step = Step::OpenInfo {
            path: path.clone(),
            generation,
            checkpoints,
        };
        let mode = OpenMode::Log;
        self.pay_scrub(now, 1);
        self.scrub_op(Op::Open { path, mode });
        Moved::Yes
    }

    fn read_index(&mut self, now: Now) -> Moved {
        let Some(visit) = &self.scrubber.visit else {
            return Moved::No;
        };
        let Step::ReadInfo(reading) = &visit.step else {
            return Moved::No;
        };
        let (file, got) = (reading.file, reading.bytes.len());
        let offset = u64::try_from(got).expect("an index has at most 64 bits");
        let left = reading.limit.saturating_sub(offset);
        self.read_piece(now, file, offset, left);
        Moved::Yes
    }

    /// Reads up to a piece of `want` bytes from a whole block on.
    fn read_piece(&mut self, now: Now, file: FileId, offset: u64, want: u64) {
        let piece = u64::try_from(PIECE_BYTES).expect("256 KiB");
        let len = want.clamp(1, piece).next_multiple_of(BLOCK_BYTES);
        let buf = self.scrubber.buf.take();
        self.pay_scrub(now, len);
        self.scrub_op(Op::LogRead {
            file,
            offset,
            buf: buf.unwrap_or_else(|| AlignedBuf::zeroed(PIECE_BYTES)),
            len: usize::try_from(len).expect("at most a piece"),
        });
    }

    /// An operation of the visit ended.
    pub(super) fn visit_op_ended(&mut self, now: Now, result: Result<Done, Failed>) {
        let Some(visit) = &mut self.scrubber.visit else {
            return;
        };
        let step = std::mem::replace(&mut visit.step, Step::Messages);
        match (step, result) {
            (step @ Step::OpenInfo { .. }, Ok(Done::Opened { file, bytes })) => {
                self.index_opened(now, step, (file, bytes));
            }
            (Step::ReadInfo(mut reading), Ok(Done::Read { buf, count })) => {
                let left = reading.limit - u64::try_from(reading.bytes.len()).unwrap_or(u64::MAX);
                let take = count.min(usize::try_from(left).unwrap_or(usize::MAX));
                let piece = buf.get(..take).unwrap_or_default();
                reading.bytes.extend_from_slice(piece);
                visit.done.bytes += u64::try_from(count).unwrap_or(0);
                self.scrubber.buf = Some(buf);
                let whole = u64::try_from(reading.bytes.len()).unwrap_or(u64::MAX) >= reading.limit;
                if whole || count == 0 {
                    self.index_read(now, reading);
                } else {
                    visit.step = Step::ReadInfo(reading);
                }
            }
            (Step::OpenSegment(path), Ok(Done::Opened { file, .. })) => {
                let segment = visit.targets.get(visit.next).map(|target| target.segment);
                visit.open = segment.map(|segment| (segment, path, file));
            }
            (Step::ReadSegment(offset), Ok(Done::Read { buf, count })) => {
                visit.done.bytes += u64::try_from(count).unwrap_or(0);
                self.take_piece(offset, buf.get(..count).unwrap_or_default());
                self.scrubber.buf = Some(buf);
            }
            (step, Err(failed)) => {
                if let Some(buf) = failed.buf {
                    self.scrubber.buf = Some(buf);
                }
                self.visit_failed(now, step, &failed.error);
            }
            (_, Ok(other)) => unreachable_done(&other),
        }
    }

    /// An operation failed: damage, unless it is our own want of something.
    fn visit_failed(&mut self, now: Now, step: Step, error: &IoError) {
        let ours = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EAGAIN];
        if ours.contains(&error.errno) {
            self.drop_visit();
            return;
        }
        let errno = error.errno;
        let reason = CorruptReason::Unreadable { errno };
        let Some(visit) = &mut self.scrubber.visit else {
            return;
        };
        let user = self.users.get(visit.user);
        let (dir, name) = (user.dir(), name_of(user));
        match step {
            Step::OpenInfo { path, .. } => self.bad_index(now, &path, 0, reason),
            Step::ReadInfo(reading) => {
                let file = reading.file;
                self.ops.start(Op::Close { file }, Purpose::Tidy);
                self.bad_index(now, &reading.path, error.offset, reason);
            }
            Step::OpenSegment(_) => {
                // Every message of that file, in one go.
                let segment = visit.targets.get(visit.next).map(|target| target.segment);
                let path = visit
                    .targets
                    .get(visit.next)
                    .map(|target| target.path(&dir));
                while visit.targets.get(visit.next).is_some_and(|target| {
                    Some(target.segment) == segment && Some(target.path(&dir)) == path
                }) {
                    visit.fault(&dir, &name, reason.clone());
                }
            }
            Step::ReadSegment(offset) => {
                // At the first look a piece may hold many; each is read by itself at the second.
                let piece = u64::try_from(PIECE_BYTES).expect("256 KiB");
                let segment = visit.targets.get(visit.next).map(|target| target.segment);
                visit.fault(&dir, &name, reason.clone());
                while visit.look == Look::First
                    && visit.targets.get(visit.next).is_some_and(|target| {
                        Some(target.segment) == segment && target.offset < offset + piece
                    })
                {
                    visit.fault(&dir, &name, reason.clone());
                }
            }
            Step::Loading | Step::Ready | Step::Messages => {}
        }
    }

    /// How much of the index stands in the file for good: below the first slot that the log still owes.
    fn index_opened(&mut self, now: Now, step: Step, (file, bytes): (FileId, u64)) {
        let Step::OpenInfo {
            path,
            generation,
            checkpoints,
        } = step
        else {
            return;
        };
        let ended = self.checkpoint.ended();
        let quiet = self.log.end() == self.positions.durable_to().lsn();
        let Some(visit) = &mut self.scrubber.visit else {
            return;
        };
        let user = self.users.get(visit.user);
        let slots = user.unwritten().map(|entry| entry.slot);
        let owed = slots.filter(|slot| *slot > 0).min();
        let next = user.live().map(|live| live.tail.next_slot);
        let stale = ended != checkpoints || user.generation() != generation;
        if stale || user.hold != Hold::Free {
            // It grew, or was replaced, while it was opened.
            self.ops.start(Op::Close { file }, Purpose::Tidy);
            visit.step = Step::Ready;
            return;
        }
        let least = match (owed, next) {
            (Some(slot), _) => u64::from(slot) * SLOT_BYTES,
            (None, Some(slot)) if quiet => u64::from(slot) * SLOT_BYTES,
            _ => 0,
        };
        let limit = owed.map_or(bytes, |slot| bytes.min(u64::from(slot) * SLOT_BYTES));
        if bytes < least || limit > INFO_BYTES_MAX {
            self.ops.start(Op::Close { file }, Purpose::Tidy);
            self.bad_index(now, &path, bytes, CorruptReason::Truncated);
            return;
        }
        visit.step = Step::ReadInfo(Reading {
            path,
            file,
            generation,
            limit,
            bytes: Vec::new(),
        });
    }

    /// The index is read: its runs are checked, and its messages are what comes next.
    fn index_read(&mut self, now: Now, reading: Reading) {
        let Reading {
            path,
            file,
            generation,
            limit,
            bytes,
        } = reading;
        self.ops.start(Op::Close { file }, Purpose::Tidy);
        let Some(visit) = &mut self.scrubber.visit else {
            return;
        };
        let user = self.users.get(visit.user);
        let unwritten = user.unwritten().filter_map(message_of);
        let unwritten = unwritten.map(|(mailbox, uid, ..)| (mailbox, uid)).collect();
        // What the log alone calls dead may have lost its file already.
        let gone = Gone::unwritten(user);
        let whole = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let bytes = Bytes::from(bytes);
        let bad = |reason| BadInfo { offset: 0, reason };
        let checked = if whole < limit {
            let (offset, reason) = (whole, CorruptReason::Truncated);
            Err(BadInfo { offset, reason })
        } else {
            InfoHeader::open(&bytes, user.hash, user.ordinal, generation)
                .map_err(bad)
                .and_then(|header| Contents::fold(&header, &bytes, std::iter::empty()))
                .and_then(|contents| targets(&contents, &unwritten).map_err(bad))
        };
        match checked {
            Ok(mut all) => {
                all.retain(|target| !gone.has(target.mailbox, target.uid));
                if visit.look == Look::Second {
                    let suspects = &visit.suspects;
                    all.retain(|target| suspects.contains(&(target.mailbox, target.uid)));
                }
                visit.targets = all;
                visit.next = 0;
                visit.step = Step::Messages;
            }
            Err(BadInfo { offset, reason }) => self.bad_index(now, &path, offset, reason),
        }
    }

    /// The index does not fit: once more, then it is damage.
    fn bad_index(&mut self, now: Now, path: &RelPath, offset: u64, reason: CorruptReason) {
        let Some(visit) = &mut self.scrubber.visit else {
            return;
        };
        visit.step = Step::Ready;
        if visit.index_look == Look::First {
            visit.index_look = Look::Second;
            return;
        }
        let user = self.users.get(visit.user);
        let file = path.to_string();
        visit.found.push(Damage {
            user: name_of(user),
            message: None,
            corrupt: Arc::new(Corrupt {
                file,
                offset,
                reason,
            }),
        });
        self.end_visit(now);
    }

    /// Reads on where the next message is, opens its file, or ends.
    fn read_messages(&mut self, now: Now) -> Moved {
        let Some(visit) = &mut self.scrubber.visit else {
            return Moved::No;
        };
        let dir = self.users.get(visit.user).dir();
        let Some(target) = visit.targets.get(visit.next) else {
            self.end_look(now);
            return Moved::Yes;
        };
        let path = target.path(&dir);
        let open = visit.open.as_ref();
        let Some((_, _, file)) =
            open.filter(|(segment, open, _)| *segment == target.segment && *open == path)
        else {
            visit.step = Step::OpenSegment(path.clone());
            self.close_segment();
            self.pay_scrub(now, 1);
            let mode = OpenMode::Log;
            self.scrub_op(Op::Open { path, mode });
            return Moved::Yes;
        };
        let file = *file;
        let at = target.offset + visit.progress.got();
        let start = at / BLOCK_BYTES * BLOCK_BYTES;
        // With all that lies in a row behind it, at the first look.
        let alone = target.offset + target.len() - start;
        let want = match visit.look {
            Look::Second => alone,
            Look::First => {
                let row = visit.targets.get(visit.next..).unwrap_or_default().iter();
                let piece = u64::try_from(PIECE_BYTES).expect("256 KiB");
                let row = row
                    .take_while(|other| target.shares_file(other) && other.offset < start + piece);
                row.map(|other| other.offset + other.len() - start)
                    .fold(alone, u64::max)
            }
        };
        visit.step = Step::ReadSegment(start);
        self.read_piece(now, file, start, want);
        Moved::Yes
    }

    /// Compares what a piece holds with the index.
    fn take_piece(&mut self, offset: u64, bytes: &[u8]) {
        let Some(visit) = &mut self.scrubber.visit else {
            return;
        };
        let user = self.users.get(visit.user);
        let (dir, name) = (user.dir(), name_of(user));
        let mut moved = false;
        while let Some(target) = visit.targets.get(visit.next) {
            let here = visit.open.as_ref();
            if here.is_none_or(|(_, path, _)| *path != target.path(&dir)) {
                break;
            }
            let at = target.offset + visit.progress.got();
            let from = at
                .checked_sub(offset)
                .and_then(|at| usize::try_from(at).ok());
            let rest = from.and_then(|from| bytes.get(from..)).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
            moved = true;
            let (fed, _) = visit.progress.feed(target, rest);
            if fed == Fed::More {
                break;
            }
            let verdict = visit.progress.verdict(target);
            visit.done.messages += u64::from(visit.look == Look::First);
            match verdict {
                Ok(()) => {
                    visit.progress = Progress::default();
                    visit.next += 1;
                }
                Err(reason) => visit.fault(&dir, &name, reason),
            }
        }
        if !moved {
            // The file ends before the message does.
            visit.fault(&dir, &name, CorruptReason::Truncated);
        }
    }

    fn close_segment(&mut self) {
        let visit = self.scrubber.visit.as_mut();
        if let Some((_, _, file)) = visit.and_then(|visit| visit.open.take()) {
            self.ops.start(Op::Close { file }, Purpose::Tidy);
        }
    }

    fn end_look(&mut self, now: Now) {
        self.close_segment();
        let Some(visit) = &mut self.scrubber.visit else {
            return;
        };
        if visit.look == Look::First && !visit.suspects.is_empty() {
            visit.look = Look::Second;
            visit.step = Step::Ready;
            return;
        }
        self.end_visit(now);
    }

    /// The user is done: what is known of it is what was found.
    fn end_visit(&mut self, now: Now) {
        self.close_segment();
        let Some(mut visit) = self.scrubber.visit.take() else {
            return;
        };
        let user = self.users.get_mut(visit.user);
        let place = place_of(user);
        for damage in visit.found.iter().filter(|damage| damage.message.is_some()) {
            // A compaction would meet it, and a repair has to find it.
            let file = damage.corrupt.file.rsplit('/').next().unwrap_or_default();
            let segment = file.split('.').next().unwrap_or_default();
            if let Ok(segment) = u32::from_str_radix(segment, 16)
                && !user.spared.contains(&segment)
            {
                user.spared.push(segment);
            }
        }
        let there = match &user.state {
            State::Live(live) => live.tail.existence == Existence::Created,
            _ => true,
        };
        visit.done.users = u64::from(there);
        self.found_damage(place, std::mem::take(&mut visit.found));
        visit.done.damaged = self.scrubber.known.count_of(place);
        self.metrics.scrub_users += visit.done.users;
        self.metrics.scrub_messages += visit.done.messages;
        self.metrics.scrub_bytes += visit.done.bytes;
        if let Some(pass) = &mut self.scrubber.pass {
            pass.done.users += visit.done.users;
            pass.done.messages += visit.done.messages;
            pass.done.bytes += visit.done.bytes;
            if visit.asked.is_none() && u32::from(place.partition.value()) == pass.partition {
                pass.position = Some(place);
                self.scrubber.news = self.scrubber.news.max(News::Position);
            }
        }
        self.pay_scrub(now, 1);
        if let Some((ticket, _)) = visit.asked.take() {
            let result = if there {
                Ok(visit.done)
            } else {
                Err(Refused::NoSuchUser)
            };
            self.answer(Event::Scrubbed { ticket, result });
        }
        self.leave(&visit);
    }

    /// The visit ends without a verdict.
    pub(super) fn drop_visit(&mut self) {
        self.close_segment();
        let Some(mut visit) = self.scrubber.visit.take() else {
            return;
        };
        if let Step::ReadInfo(reading) = &visit.step {
            let file = reading.file;
            self.ops.start(Op::Close { file }, Purpose::Tidy);
        }
        if let Some(ticket) = visit.take_ticket() {
            let result = Err(Refused::Stopped);
            self.answer(Event::Scrubbed { ticket, result });
        }
        self.leave(&visit);
    }

    fn leave(&mut self, visit: &Visit) {
        debug_assert_eq!(
            self.scrubber.busy,
            Busy::No,
            "an op of the visit is under way"
        );
        self.end_reader(visit.user, visit.reader);
        self.users.unpin(visit.user);
        match visit.stranger {
            Stranger::Yes => self.users.forget_if_idle(visit.user),
            Stranger::No => self.users.forget_if_absent(visit.user),
        }
    }
}

fn name_of(user: &User) -> Arc<[u8]> {
    user.name.clone().unwrap_or_else(|| Arc::from(&[][..]))
}
