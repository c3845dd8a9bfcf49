//! Large messages into mailboxes (storage.md 7): one data copy per node, linked into the directory
//! of each recipient and made durable there *before* the record that names it.
//!
//! Until that record, the link is called `<segment>.part` and was promised to nobody.

use std::sync::Arc;

use super::Shard;
use super::append::Linked;
use crate::canary::{self, Canary};
use crate::error::IoError;
use crate::io::{Done, Failed, Io, Op, RelPath};
use crate::large::StagedBody;
use crate::ops::Purpose;
use crate::request::{Outcome, Refused};
use crate::user::State;

/// One recipient's link on its way to durability.
pub(super) struct LargeStep {
    of: Asker,
    user: usize,
    stage: RelPath,
    part: RelPath,
    step: Step,
}

/// Who waits for a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Asker {
    /// An append and its recipient.
    Append(usize, usize),
    /// A request of a partition's primary.
    Replicate(usize),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    MakeDir,
    SyncParent,
    Link,
    SyncDir,
}

impl<I: Io> Shard<I> {
    /// Makes the links of a staged append; `true` once all of them are durable (or refused) and the
    /// append can be encoded.
    pub(super) fn link_staged(&mut self, index: usize, staged: &Arc<StagedBody>) -> bool {
        let append = self.appends.get_mut(index).expect("a ready append is open");
        match append.linked {
            Linked::Done => return true,
            Linked::Doing => return false,
            Linked::NotYet => append.linked = Linked::Doing,
        }
        let users = append.users.clone();
        let settled: Vec<bool> = append.outcomes.iter().map(Option::is_some).collect();
        for (recipient, user) in users.iter().enumerate() {
            if settled.get(recipient).copied().unwrap_or(true) {
                continue;
            }
            let of = Asker::Append(index, recipient);
            let Some(segment) = self.link(of, *user, &staged.path) else {
                continue;
            };
            let append = self.appends.get_mut(index).expect("a ready append is open");
            append.steps += 1;
            if let Some(place) = append.segments.get_mut(recipient) {
                *place = Some(segment);
            }
        }
        self.linked_if_done(index)
    }

    /// Begins to link a stage file into the directory of a user who is loaded; its segment there.
    pub(super) fn link(&mut self, of: Asker, user: usize, stage: &RelPath) -> Option<u32> {
        let found = self.users.get_mut(user);
        let dir = found.dir();
        let State::Live(live) = &mut found.state else {
            return None;
        };
        let segment = live.tail.next_segment;
        live.tail.next_segment += 1;
        // A directory may be there and its name not durable: made by a checkpoint that has not
        // ended, or by a process that was killed.
        let step = if live.tail.has_dir {
            Step::Link
        } else {
            Step::MakeDir
        };
        let key = self.larges.insert(LargeStep {
            of,
            user,
            stage: stage.clone(),
            part: dir.segment_part(segment),
            step,
        });
        self.start_large(key);
        Some(segment)
    }

    fn start_large(&mut self, key: usize) {
        let large = self.larges.get(key).expect("an open step");
        let dir = large.part.parent();
        let op = match large.step {
            Step::MakeDir => Op::MakeDir { path: dir },
            Step::SyncParent => Op::SyncDir { path: dir.parent() },
            Step::Link => Op::Link {
                from: large.stage.clone(),
                to: large.part.clone(),
            },
            Step::SyncDir => Op::SyncDir { path: dir },
        };
        self.ops.start(op, Purpose::Large(key));
    }

    /// A step ended. What concerns this message alone refuses it; any other error is fatal.
    pub(super) fn large_step(
        &mut self,
        key: usize,
        result: Result<Done, Failed>,
    ) -> Result<(), IoError> {
        let Some(large) = self.larges.get_mut(key) else {
            return Ok(());
        };
        if let Err(Failed { error, .. }) = result {
            // The stage file or the user's directory is gone: nothing was promised of either.
            let gone = large.step == Step::Link && error.is_not_found();
            let no_room = error.is_no_space() || matches!(error.errno, libc::EMLINK | libc::EXDEV);
            let why = match (gone, no_room) {
                (true, _) => Refused::Repairing(Arc::new(error.corrupt())),
                (false, true) => Refused::DiskFull,
                (false, false) => return Err(error),
            };
            self.space.refused |= error.is_no_space();
            let of = large.of;
            self.larges.remove(key);
            match of {
                Asker::Append(append, recipient) => {
                    self.drop_reserved(append, recipient);
                    self.settle(append, recipient, Outcome::Refused(why));
                    self.step_done(append);
                }
                Asker::Replicate(request) => self.replica_linked(request, Err(why)),
            }
            return Ok(());
        }
        let next = match large.step {
            Step::MakeDir => Some(Step::SyncParent),
            Step::SyncParent => Some(Step::Link),
            Step::Link if canary::on(Canary::DirSyncLeftOut) => None,
            Step::Link => Some(Step::SyncDir),
            Step::SyncDir => None,
        };
        if matches!(large.step, Step::SyncParent | Step::SyncDir) {
            self.metrics.flushes += 1;
        }
        if let Some(next) = next {
            large.step = next;
            let user = large.user;
            if next == Step::Link
                && let Some(live) = self.users.get_mut(user).live_mut()
            {
                live.tail.has_dir = true;
            }
            self.start_large(key);
        } else {
            let of = large.of;
            self.larges.remove(key);
            match of {
                Asker::Append(append, _) => self.step_done(append),
                Asker::Replicate(request) => self.replica_linked(request, Ok(())),
            }
        }
        Ok(())
    }

    fn settle(&mut self, index: usize, recipient: usize, outcome: Outcome) {
        if let Some(append) = self.appends.get_mut(index)
            && let Some(place) = append.outcomes.get_mut(recipient)
        {
            *place = Some(outcome);
        }
    }

    fn step_done(&mut self, index: usize) {
        if let Some(append) = self.appends.get_mut(index) {
            append.steps -= 1;
        }
        if self.linked_if_done(index) {
            self.ready.push_back(index);
        }
    }

    fn linked_if_done(&mut self, index: usize) -> bool {
        let Some(append) = self.appends.get_mut(index) else {
            return false;
        };
        if append.steps > 0 {
            return false;
        }
        append.linked = Linked::Done;
        true
    }

    /// Takes back the link of a recipient that gets no record.
    pub(super) fn drop_reserved(&mut self, index: usize, recipient: usize) {
        let Some(append) = self.appends.get_mut(index) else {
            return;
        };
        let segment = append.segments.get_mut(recipient).and_then(Option::take);
        let user = append.users.get(recipient).copied();
        if let (Some(segment), Some(user)) = (segment, user) {
            let path = self.users.get(user).dir().segment_part(segment);
            self.ops.start(Op::Unlink { path }, Purpose::Tidy);
        }
    }
}
