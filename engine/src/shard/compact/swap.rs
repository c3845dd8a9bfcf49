//! The end of a compaction: hold, commit, switch, names, release (storage.md 8.5).

use super::super::Shard;
use super::super::writes::{Gone, folders_of};
use super::{Compaction, Last, Step, segment_of};
use crate::canary::{self, Canary};
use crate::format::record::{Group, Head, SwapParts, swap_len};
use crate::index::DeadFile;
use crate::io::{Io, Op, Piece, RelPath, Step as WriteStep, Work, WorkSync};
use crate::limits::SLOT_BYTES;
use crate::ops::Purpose;
use crate::pending::{Entry, Swap, What};
use crate::position::Lsn;
use crate::request::{BusyReason, Compacted, MonotonicNs, Now, Refused};
use crate::user::{Hold, Lag, State, User, Waiter};

use ringpost_netproto::id::{MailboxId, Modseq};

impl<I: Io> Shard<I> {
    /// From here on the user's requests wait; those in flight come to their end.
    pub(super) fn hold(&mut self, now: Now, index: usize) {
        self.users.get_mut(index).hold = Hold::Held;
        let upto = self.log.end();
        self.set_compaction_step(Step::Hold {
            since: now.monotonic,
            upto,
            last: Last::NotYet,
        });
    }

    pub(super) fn step_hold(&mut self, now: Now, since: MonotonicNs, upto: Lsn, last: Last) {
        if now.monotonic >= since.after(super::HOLD_MAX_NS) {
            self.cancel_compaction(Refused::Busy(BusyReason::SlowDisk));
            return;
        }
        let Some(running) = &self.compactor.running else {
            return;
        };
        let index = running.wanted.user;
        match last {
            Last::NotYet => {
                let durable = self.positions.durable_to().lsn() >= upto;
                // What a checkpoint may not write yet is counted by its frame.
                let stated = self.users.get(index).ahead_count == 0;
                if durable && stated && !self.checkpoint.is_writing(index) {
                    self.write_last(since, upto);
                }
            }
            Last::Written => self.commit_compaction(),
        }
    }

    /// The last captured entries, and `folders` if the new info file is the first to hold a change
    /// of mailboxes: redo will not see that change any more.
    fn write_last(&mut self, since: MonotonicNs, upto: Lsn) {
        let Some(running) = &mut self.compactor.running else {
            return;
        };
        let user = self.users.get_mut(running.wanted.user);
        let dir = user.dir();
        let old = user.seed(user.generation());
        let mut steps = Vec::new();
        if let (Some(capture), Some(writer)) = (&mut user.capture, &mut running.writer) {
            let mut entries = std::mem::take(&mut capture.entries);
            if canary::on(Canary::LastDeltaLeftOut) {
                entries.clear();
            }
            for entry in &entries {
                writer
                    .entry(entry, old)
                    .expect("its checksum was made here");
            }
            if writer.len() > 0 {
                let (offset, bytes) = writer.take();
                steps.push(WriteStep::Write {
                    path: dir.info_part(running.generation),
                    offset,
                    pieces: vec![Piece::Bytes(bytes)],
                });
            }
        }
        let lags = user.folders == Lag::Yes || user.frozen_folders == Lag::Yes;
        let folders = lags.then(|| folders_of(user)).flatten();
        steps.extend(folders.map(|data| WriteStep::Replace {
            path: dir.folders(),
            data,
        }));
        if steps.is_empty() {
            self.set_compaction_step(Step::Hold {
                since,
                upto,
                last: Last::Written,
            });
            return;
        }
        let work = Work {
            steps,
            sync: WorkSync::Each,
        };
        self.compaction_op(Op::Materialise(vec![work]));
    }

    /// Logs the record, if there is room for it now.
    fn commit_compaction(&mut self) {
        let Some(running) = &self.compactor.running else {
            return;
        };
        let user = self.users.get(running.wanted.user);
        let gone = gone_large(user);
        let swap = running.swap(user, &gone);
        let need = swap_len(swap.new.len() + swap.retired.len());
        if need > self.log.payload_max() {
            self.cancel_compaction(Refused::TooLarge);
            return;
        }
        let head = Head {
            group: Group::Ends,
            partition: user.partition,
            user: user.hash,
            ordinal: user.ordinal,
            mailbox: MailboxId::new(0),
            modseq: Modseq::new(user.live().map_or(0, |live| live.tail.modseq)),
            uid: 0,
            generation: swap.generation,
            slot: 0,
            body_crc: 0,
            pseq: 0,
            epoch: self.epoch_of(user.partition),
            chain: 0,
        };
        let parts = SwapParts {
            generation: swap.generation,
            slots: swap.slots,
            new: &swap.new,
            retired: &swap.retired,
        };
        let renames = swap.renames(&user.dir()).collect::<Vec<_>>();
        let Some(batch) = self.log.room(need) else {
            return;
        };
        batch.encode(|encoder| encoder.info_swap(&head, &parts));
        let lsn = batch.lsn();
        self.pending_records += 1;
        self.set_compaction_step(Step::Commit { lsn });
        if canary::on(Canary::PartRenamedEarly) {
            for (from, to) in renames {
                self.ops.start(Op::Rename { from, to }, Purpose::Tidy);
            }
        }
        if canary::on(Canary::OldUnlinkedEarly)
            && let Some((_, _, paths)) = self.old_files()
        {
            for path in paths {
                self.ops.start(Op::Unlink { path }, Purpose::Tidy);
            }
        }
    }

    /// The record is on this medium: the new generation counts. It is this node's alone, so it waits for
    /// no copy, and must not: the user's requests wait for it, and so does the checkpoint.
    pub(super) fn step_commit(&mut self, lsn: Lsn) {
        if self.positions.flushed_to().lsn() <= lsn {
            return;
        }
        let Some(running) = &mut self.compactor.running else {
            return;
        };
        let index = running.wanted.user;
        let user = self.users.get_mut(index);
        running.gone = gone_large(user);
        let swap = running.swap(user, &running.gone);
        let dir = user.dir();
        let mut renames: Vec<_> = swap.renames(&dir).collect();
        // A snapshot may want them, under the name that all others have.
        renames.extend(running.gone.iter().map(|gone| {
            let last = dir.large(gone.segment, gone.mailbox, gone.uid);
            (dir.segment_part(gone.segment), last)
        }));
        let capture = user.capture.take();
        running.step = Step::Name {
            left: renames.len(),
        };
        if let State::Live(live) = &mut user.state {
            let tail = &mut live.tail;
            tail.generation = swap.generation;
            tail.next_slot = swap.slots;
            if let Some(capture) = capture {
                assert!(
                    capture.is_written() || canary::on(Canary::LastDeltaLeftOut),
                    "records were published while their user was held"
                );
                let mut space = capture.space.clone();
                space.catch_up(&mut tail.space, |place| capture.moved(place));
                tail.space = space;
                if let Some(index) = &mut live.index {
                    for copy in &capture.copies {
                        index.relocate(&copy.from(), (copy.segment, copy.offset));
                    }
                }
            }
            // A mailbox without a segment goes on in the last one made for it.
            for (mailbox, segment, end) in running.made.iter().rev() {
                if let Some(tail) = tail.mailbox_mut(*mailbox)
                    && tail.segment == 0
                {
                    (tail.segment, tail.segment_end) = (*segment, *end);
                }
            }
        }
        user.hold = Hold::Naming;
        user.redo_generation = swap.generation;
        // What a running checkpoint counts stays counted there.
        swap.carry(&mut user.frozen);
        if user.pending.is_empty() {
            self.dirty.push(index);
        }
        self.pending_records -= swap.carry(&mut user.pending);
        user.pending.push(Entry {
            slot: 0,
            what: What::Swap(swap),
        });
        if let Some(frame) = self.copies.frame_with(lsn) {
            frame.users.push((index, 1));
            user.ahead_count += 1;
        }
        for (from, to) in renames {
            self.ops.start(Op::Rename { from, to }, Purpose::Compact);
        }
    }

    /// All names are given: everybody goes on, and the old files go when nobody reads them.
    pub(super) fn end_compaction(&mut self, now: Now) {
        self.bury_old();
        let Some(running) = self.compactor.running.take() else {
            return;
        };
        let index = running.wanted.user;
        let freed = running.old_bytes().saturating_sub(running.new_bytes());
        self.metrics.compactions += 1;
        self.metrics.compaction_ns = now.monotonic.since(running.began);
        self.metrics.compact_freed_bytes += freed;
        self.release(index);
        self.answer_compaction(
            &running.wanted,
            &Ok(Compacted {
                copied_bytes: running.copied_bytes,
                freed_bytes: freed,
            }),
        );
        self.weigh(index);
        self.compactor.look_again();
    }

    /// The old info file and the retired segments.
    fn bury_old(&mut self) {
        if let Some((index, segments, paths)) = self.old_files() {
            self.bury(index, segments, paths);
        }
    }

    /// User, segments and files that the new generation leaves behind.
    fn old_files(&self) -> Option<(usize, Vec<u32>, Vec<RelPath>)> {
        let running = self.compactor.running.as_ref()?;
        let index = running.wanted.user;
        let dir = self.users.get(index).dir();
        let dead = |name: &str| segment_of(name).is_some_and(|id| running.is_retired(id));
        let older = |name: &str| {
            let generation = name.strip_prefix("info.");
            generation
                .and_then(|generation| u32::from_str_radix(generation, 16).ok())
                .is_some_and(|generation| generation < running.generation)
        };
        let names = running.names.iter().map(|(name, _)| name);
        let listed = names.filter(|name| dead(name) || older(name));
        let mut paths: Vec<_> = listed.filter_map(|name| dir.entry(name)).collect();
        // What was not there when the directory was listed: written or linked since.
        for segment in &running.retired {
            paths.push(dir.segment(*segment));
            paths.push(dir.segment_part(*segment));
        }
        paths.sort_unstable();
        paths.dedup();
        let mut segments = running.retired.clone();
        for gone in &running.gone {
            segments.push(gone.segment);
            paths.push(dir.segment_part(gone.segment));
            paths.push(dir.large(gone.segment, gone.mailbox, gone.uid));
        }
        Some((index, segments, paths))
    }

    /// The user's requests go on.
    fn release(&mut self, index: usize) {
        self.users.get_mut(index).hold = Hold::Free;
        let waiting = std::mem::take(&mut self.users.get_mut(index).waiting);
        for waiter in waiting {
            match waiter {
                // They wait for a load.
                Waiter::Read(_)
                | Waiter::Change(_)
                | Waiter::Compact(_)
                | Waiter::Replicate(_)
                | Waiter::Scrub => {
                    self.users.get_mut(index).waiting.push_back(waiter);
                }
                Waiter::Append(append) => self.append_user_loaded(append),
            }
        }
        self.resume_load(index);
    }

    /// Ends the running compaction early, unless its record is written.
    pub(in crate::shard) fn cancel_compaction(&mut self, why: Refused) {
        if let Some(running) = &mut self.compactor.running
            && !matches!(
                running.step,
                Step::Commit { .. } | Step::Name { .. } | Step::Clear { .. }
            )
        {
            running.cancelled.get_or_insert(why);
        }
    }

    /// It was ended early, and none of its ops is under way: nothing of it was promised, so its part
    /// files go; then the next may begin.
    pub(super) fn clear_cancelled(&mut self) {
        let Some(running) = &mut self.compactor.running else {
            return;
        };
        if let Step::Clear { left } = running.step {
            if left == 0
                && let Some(running) = self.compactor.running.take()
            {
                let why = running.cancelled.unwrap_or(Refused::Stopped);
                self.compaction_again(running.wanted, why);
            }
            return;
        }
        let index = running.wanted.user;
        let user = self.users.get_mut(index);
        user.capture = None;
        if let Some(live) = user.live_mut() {
            live.tail.space.forget_journal();
        }
        let dir = user.dir();
        let mut paths = Vec::new();
        if running.writer.is_some() {
            paths.push(dir.info_part(running.generation));
            let made = running.made.iter();
            paths.extend(made.map(|(_, segment, _)| dir.segment_part(*segment)));
        }
        running.step = Step::Clear { left: paths.len() };
        for path in paths {
            self.ops.start(Op::Unlink { path }, Purpose::Compact);
        }
        if self.users.get(index).hold != Hold::Free {
            self.release(index);
        }
    }
}

/// Large messages that came and went since the last checkpoint. Were they given their names by the
/// next one, and that done again after a crash, there would be nothing left to rename.
fn gone_large(user: &User) -> Vec<DeadFile> {
    let gone = Gone::unwritten(user);
    let large = user.unwritten().filter_map(|entry| match &entry.what {
        What::Large(mail) => Some(DeadFile {
            segment: mail.segment,
            mailbox: mail.mailbox,
            uid: mail.uid,
        }),
        _ => None,
    });
    large
        .filter(|file| gone.has(file.mailbox, file.uid))
        .collect()
}

impl Compaction {
    /// What the record says, for a user as it is now.
    fn swap(&self, user: &User, gone: &[DeadFile]) -> Swap {
        let slots = self.writer.as_ref().map_or(0, super::Writer::slots);
        let mut retired: Vec<u32> = self.victims.iter().copied().collect();
        let owed = user.unwritten().filter_map(|entry| match &entry.what {
            What::Small(mail) => Some(mail.segment),
            What::Large(mail) => Some(mail.segment),
            _ => None,
        });
        retired.extend(owed.filter(|segment| self.is_retired(*segment)));
        retired.extend(gone.iter().map(|gone| gone.segment));
        retired.sort_unstable();
        retired.dedup();
        Swap {
            generation: self.generation,
            slots,
            new: self.made.iter().map(|(_, segment, _)| *segment).collect(),
            retired: retired.into(),
        }
    }

    fn is_retired(&self, segment: u32) -> bool {
        self.retired.binary_search(&segment).is_ok()
    }

    /// Bytes of the files that go.
    fn old_bytes(&self) -> u64 {
        let goes = |name: &str| {
            segment_of(name).is_some_and(|id| self.is_retired(id))
                || name.strip_prefix("info.").is_some_and(|rest| {
                    u32::from_str_radix(rest, 16).is_ok_and(|other| other < self.generation)
                })
        };
        let names = self.names.iter().filter(|(name, _)| goes(name));
        names.map(|(_, bytes)| *bytes).sum()
    }

    /// Bytes of the files that came.
    fn new_bytes(&self) -> u64 {
        let slots = self.writer.as_ref().map_or(0, super::Writer::slots);
        u64::from(slots) * SLOT_BYTES + self.copied_bytes
    }
}
