//! Compaction of one user at a time, with appends and readers going on (storage.md 8.5).
//!
//! A compaction makes a new *generation* of a user's files: an info file without the runs that other
//! runs made void, and new segments with what is alive in the *victims*, the segments that hold enough
//! garbage. Segments that are none live on and are referred to as they are.
//!
//! ```text
//! Settle   the victims are rolled, so that no append goes there any more; wait until what they hold
//!          is in their files (what was appended before the last checkpoint is)
//! List     the directory: which generation number is free, which files exist
//! Read     the info file; fold it with the unwritten entries: the contents at L, a durable position.
//!          From here on what is published is captured beside (Capture)
//! Feed     write info.<gen>.part and <segment>.part piece by piece, each synced, with its directory;
//!          not faster than compact_bytes_per_s. What was captured follows, until little is left
//! Hold     the user's requests wait; its records in flight become durable, and the flusher has none
//!          of its work; the last captured entries are written and synced
//! Commit   INFO_SWAP is logged and durable: the one commit point
//! Name     memory goes over to the new generation, the files get their names; the user is released
//! ```
//!
//! Until the commit nothing was promised: a failure, a full disk, a drain removes the part files and
//! nothing else (a crash leaves that to the next load). After it everything follows from the record:
//! the renames are an entry of the user's, so that a checkpoint that passes the record has them behind
//! its sync, redo and load repeat them, and entries of the old generation keep only bytes for segments
//! that live on (`Swap::carry`). Old files are unlinked when no reader is left who may know of them
//! (`sweep`); the evidence is the RETIRE run and the lower generation.
//!
//! Every message is proved against its store line and its checksum while it is copied. One that is
//! damaged leaves its segment out of later compactions: it stays where a repair finds it.
//!
//! What is left out: the fold runs on the shard's thread, as that of a load does; a mailbox of a
//! million messages holds it for a moment.

mod contents;
mod feed;
mod plan;
mod queue;
mod swap;
mod sweep;
mod write;

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use ringpost_netproto::id::Uid;

use super::{Phase, Shard};
use crate::error::{Corrupt, IoError};
use crate::format::info::InfoHeader;
use crate::format::store_line::StoreLine;
use crate::index::{BadInfo, DeadFile};
use crate::io::{Done, Failed, Io, Op};
use crate::limits::INFO_BYTES_MAX;
use crate::ops::{Purpose, unreachable_done};
use crate::pending::{Entry, What};
use crate::position::Lsn;
use crate::request::{Event, MonotonicNs, Notice, Now, Refused};
use crate::space::{Place, Space};
use crate::user::User;

use queue::Wanted;
use write::Writer;

pub(super) use contents::{Contents, Life};
pub(super) use queue::Compactor;
pub(crate) use sweep::Dead;

/// Bytes of one piece of work: enough to pay for its two or three syncs, and done in milliseconds.
const PIECE_BYTES: u64 = 1 << 20;

/// So few captured entries are written while the user is held.
const HOLD_ENTRIES_MAX: usize = 32;

/// A hold that lasts longer than this is given up and tried again later, ns: the disk is slow or the
/// log full, and others wait.
const HOLD_MAX_NS: u64 = 1_000_000_000;

/// What happens to a user while its new generation is made.
#[derive(Debug)]
pub(crate) struct Capture {
    /// Published since the contents were folded, not in the part file yet.
    entries: Vec<Entry>,
    /// Of the new generation as its contents were folded.
    space: Space,
    /// What is copied, by mailbox and uid.
    copies: Vec<Copy>,
}

/// A message that moves to another segment.
#[derive(Clone, Debug)]
struct Copy {
    from_segment: u32,
    from_offset: u64,
    skip: u16,
    /// Names mailbox and uid, too.
    line: StoreLine,
    segment: u32,
    offset: u64,
}

impl Copy {
    /// Where it was.
    fn from(&self) -> Place {
        Place {
            mailbox: self.line.mailbox,
            uid: Uid::new(self.line.uid),
            segment: self.from_segment,
            bytes: None,
        }
    }
}

impl Capture {
    /// Whether all that was published is in the part file.
    fn is_written(&self) -> bool {
        self.entries.is_empty()
    }

    /// Takes note of what readers see from now on.
    pub(crate) fn published(&mut self, entry: &Entry) {
        let mut entry = entry.clone();
        // The part file gets the run; the bytes are the checkpoint's.
        if let What::Small(mail) = &mut entry.what {
            mail.body = None;
        }
        self.entries.push(entry);
    }

    /// The segment of a message in the new generation.
    fn moved(&self, place: &Place) -> u32 {
        let key = (place.mailbox, place.uid.value());
        let copies = &self.copies;
        let found = copies.binary_search_by_key(&key, |copy| (copy.line.mailbox, copy.line.uid));
        let copy = found.ok().and_then(|found| copies.get(found));
        let copy = copy.filter(|copy| copy.from_segment == place.segment);
        copy.map_or(place.segment, |copy| copy.segment)
    }
}

/// The compaction that runs.
struct Compaction {
    wanted: Wanted,
    began: MonotonicNs,
    victims: BTreeSet<u32>,
    /// Segments whose last record is durable, and in the contents.
    sealed: BTreeSet<u32>,
    step: Step,
    /// An op of it is under way.
    busy: Busy,
    /// Why it shall end early.
    cancelled: Option<Refused>,
    /// Names in the user's directory and their sizes.
    names: Vec<(String, u64)>,
    generation: u32,
    contents: Option<Contents>,
    /// Of the contents, the next to be written.
    next_message: usize,
    writer: Option<Writer>,
    /// Of the captured copies, the next to be written into the index and into its segment.
    next_run: usize,
    next_copy: usize,
    /// Mailbox, segment, length of the segments made.
    made: Vec<(ringpost_netproto::id::MailboxId, u32, u64)>,
    /// Segments that live on: messages that are gone keep their runs there.
    kept: BTreeSet<u32>,
    /// Every other segment whose file may exist; ascending.
    retired: Vec<u32>,
    /// Large messages that went since the last checkpoint: they get no name from a checkpoint.
    gone: Vec<DeadFile>,
    copied_bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Busy {
    Yes,
    No,
}

/// Where it is; see the module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    List,
    Read {
        /// Checkpoints ended when the file was asked for.
        checkpoints: u64,
    },
    Feed,
    Hold {
        since: MonotonicNs,
        /// The user's records in flight end before this.
        upto: Lsn,
        last: Last,
    },
    Commit {
        /// The frame that holds the record.
        lsn: Lsn,
    },
    Name {
        /// Files that have no name yet.
        left: usize,
    },
    /// It was ended early.
    Clear {
        /// Part files that may still be there: the next compaction may make some of the same name.
        left: usize,
    },
}

/// Whether the last captured entries are in the part file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Last {
    NotYet,
    Written,
}

impl<I: Io> Shard<I> {
    /// Goes on with the running compaction, or begins the next. Called behind every publication and
    /// before a checkpoint can begin, so that none passes an `INFO_SWAP` without its renames.
    pub(super) fn tend_compaction(&mut self, now: Now) {
        if matches!(self.phase, Phase::Stopped | Phase::Clean) {
            return;
        }
        if matches!(self.phase, Phase::Draining(_)) {
            self.refuse_waiting_compactions(&Refused::Stopped);
            self.cancel_compaction(Refused::Stopped);
        }
        loop {
            if self.compactor.running.is_none() {
                self.begin_compaction(now);
            }
            let Some(running) = &self.compactor.running else {
                return;
            };
            let before = running.step;
            if running.busy == Busy::No {
                self.step_compaction(now);
            }
            let after = self.compactor.running.as_ref();
            if after.is_some_and(|running| running.busy == Busy::Yes || running.step == before) {
                return;
            }
        }
    }

    /// When to look again although nothing completes.
    pub(super) fn compaction_due(&self) -> Option<MonotonicNs> {
        let running = self.compactor.running.as_ref()?;
        match running.step {
            Step::Feed if running.busy == Busy::No => Some(self.purse.due()),
            Step::Hold { since, .. } if running.busy == Busy::No => Some(since.after(HOLD_MAX_NS)),
            _ => None,
        }
    }

    /// One step of the running compaction, which has no op under way. Nothing may come of it.
    fn step_compaction(&mut self, now: Now) {
        let Some(running) = &self.compactor.running else {
            return;
        };
        if running.cancelled.is_some() {
            self.clear_cancelled();
            return;
        }
        match running.step {
            Step::List => {
                let path = self.users.get(running.wanted.user).dir();
                self.compaction_op(Op::ListDir { path });
            }
            Step::Read { .. } => {
                let user = self.users.get(running.wanted.user);
                let path = user.dir().info(user.generation());
                let bytes_max = INFO_BYTES_MAX;
                self.set_compaction_step(Step::Read {
                    checkpoints: self.checkpoint.ended(),
                });
                self.compaction_op(Op::ReadFile { path, bytes_max });
            }
            Step::Feed if now.monotonic >= self.purse.due() => self.feed_compaction(now),
            Step::Hold { since, upto, last } => self.step_hold(now, since, upto, last),
            Step::Commit { lsn } => self.step_commit(lsn),
            Step::Name { left } => {
                if left == 0 {
                    self.end_compaction(now);
                }
            }
            Step::Feed | Step::Clear { .. } => {}
        }
    }

    fn set_compaction_step(&mut self, step: Step) {
        if let Some(running) = &mut self.compactor.running {
            running.step = step;
        }
    }

    fn compaction_op(&mut self, op: Op) {
        if let Some(running) = &mut self.compactor.running {
            running.busy = Busy::Yes;
        }
        self.ops.start(op, Purpose::Compact);
    }

    /// An op of the running compaction ended. An error is fatal for the shard.
    pub(super) fn compaction_op_ended(
        &mut self,
        now: Now,
        result: Result<Done, Failed>,
    ) -> Result<(), IoError> {
        let Some(running) = &mut self.compactor.running else {
            return Ok(());
        };
        if let Step::Name { left } = &mut running.step {
            *left -= 1;
            return match result {
                // A checkpoint was faster.
                Err(failed) if !failed.error.is_not_found() => Err(failed.error),
                _ => Ok(()),
            };
        }
        if let Step::Clear { left } = &mut running.step {
            // A part file that stays is removed when its user is loaded.
            *left -= 1;
            return Ok(());
        }
        running.busy = Busy::No;
        match (running.step, result) {
            (Step::List, Ok(Done::Listing(names))) => {
                running.generation = free_generation(&names);
                running.names = names;
                running.step = Step::Read { checkpoints: 0 };
            }
            (Step::Read { checkpoints }, Ok(Done::Bytes(bytes))) => {
                // A checkpoint in between moved entries into the file behind our back.
                if checkpoints == self.checkpoint.ended() {
                    self.compaction_read(now, &bytes);
                }
            }
            (Step::Feed | Step::Hold { .. }, Ok(Done::Materialised { bytes, syncs })) => {
                self.metrics.flushes += syncs;
                self.metrics.compact_written_bytes += bytes;
                if let Step::Hold { last, .. } = &mut running.step {
                    *last = Last::Written;
                }
            }
            (_, Ok(other)) => unreachable_done(&other),
            (step, Err(failed)) => return self.compaction_failed(step, failed.error),
        }
        Ok(())
    }

    /// What a failed op means: no room and damage end this compaction; what leaves the medium in
    /// doubt ends the shard.
    fn compaction_failed(&mut self, step: Step, error: IoError) -> Result<(), IoError> {
        if error.is_no_space() {
            self.space.refused = true;
            self.cancel_compaction(Refused::DiskFull);
            return Ok(());
        }
        let source = error.path.strip_suffix(".mbox");
        let reads = matches!(step, Step::List | Step::Read { .. });
        if source.is_none() && !reads {
            return Err(error);
        }
        if let Some(stem) = source
            && let Some(running) = &self.compactor.running
        {
            let segment = stem.rsplit('/').next().unwrap_or_default();
            if let Ok(segment) = u32::from_str_radix(segment, 16) {
                let user = self.users.get_mut(running.wanted.user);
                user.spared.push(segment);
            }
        }
        self.compaction_damaged(error.corrupt());
        Ok(())
    }

    /// Something of the user is not as it must be: said once, and left as it is.
    fn compaction_damaged(&mut self, corrupt: Corrupt) {
        self.metrics.corrupt += 1;
        let corrupt = Arc::new(corrupt);
        let notice = Notice::Corrupt(Arc::clone(&corrupt));
        self.events.push(Event::Notice(notice));
        self.cancel_compaction(Refused::Damaged(corrupt));
    }

    /// The info file is read: fold, lay out, and begin to capture.
    fn compaction_read(&mut self, now: Now, bytes: &Bytes) {
        let Some(running) = &self.compactor.running else {
            return;
        };
        let index = running.wanted.user;
        let user = self.users.get(index);
        let path = user.dir().info(user.generation());
        let folded = InfoHeader::open(bytes, user.hash, user.ordinal, user.generation())
            .map_err(|reason| BadInfo { offset: 0, reason })
            .and_then(|header| {
                let contents = Contents::fold(&header, bytes, user.unwritten())?;
                Ok((header, contents))
            });
        match folded {
            Ok((header, contents)) => {
                if let Err(BadInfo { offset, reason }) = self.lay_out(now, &header, contents) {
                    let file = path.to_string();
                    self.compaction_damaged(Corrupt {
                        file,
                        offset,
                        reason,
                    });
                }
            }
            Err(BadInfo { offset, reason }) => {
                let file = path.to_string();
                self.compaction_damaged(Corrupt {
                    file,
                    offset,
                    reason,
                });
            }
        }
    }

    /// Counts what a user's files hold for nothing, and puts it in the queue if a compaction pays.
    pub(super) fn weigh(&mut self, index: usize) {
        let bytes_min = self.config.compact_bytes_min;
        let garbage = self.users.weigh(index);
        let user = self.users.get(index);
        let due = garbage > 0
            && user.live().is_some_and(|live| {
                let tail = &live.tail;
                tail.space.is_due(tail.next_slot, bytes_min)
            });
        if due {
            self.queue_compaction(index);
        }
    }
}

/// Above every generation in the directory, part files included: an older part file may still be on
/// its way out.
fn free_generation(names: &[(String, u64)]) -> u32 {
    let generations = names.iter().filter_map(|(name, _)| {
        let rest = name.strip_prefix("info.")?;
        u32::from_str_radix(rest.strip_suffix(".part").unwrap_or(rest), 16).ok()
    });
    generations.max().unwrap_or(0).saturating_add(1)
}

/// The segment id of a final name.
fn segment_of(name: &str) -> Option<u32> {
    let stem = name.strip_suffix(".mbox")?;
    u32::from_str_radix(stem.split('.').next()?, 16).ok()
}

/// Whether the log still owes bytes to a segment.
fn is_owed(user: &User, segment: u32) -> bool {
    let frozen = if user.frozen_written {
        &[][..]
    } else {
        &user.frozen
    };
    frozen
        .iter()
        .chain(&user.pending)
        .any(|entry| match &entry.what {
            What::Small(mail) => mail.segment == segment && mail.body.is_some(),
            _ => false,
        })
}
