//! Records at the end of the log of which no later frame says that they are on all copies: a TRUNCATE
//! may make them void, and where copies are asked they wait for a word (storage.md 1.5).
//!
//! A partition whose copy is brought up by other means says so too, for itself alone: that begins only
//! once nothing of it waits, so all before such a record counts, whatever others wait for.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ringpost_netproto::id::{PartitionId, Uid};

use super::Redo;
use crate::canary::{self, Canary};
use crate::config::{self, ShardConfig};
use crate::dedupe::Key;
use crate::format::frame::FrameHeader;
use crate::format::record::Head;
use crate::held;
use crate::pending::Entry;
use crate::position::Lsn;
use crate::request::Shipped;
use crate::shard::ShardIdentity;
use crate::shard::append::Mark;
use crate::shard::copies::{Copies, Found, Restored};
use crate::shard::partitions::At;
use crate::user::Lag;

/// A record that a later one may make void, or that nobody confirmed.
pub(super) struct Unproven {
    pub(super) start: Lsn,
    pub(super) end: Lsn,
    pub(super) mark: Mark,
    pub(super) user: Option<usize>,
    pub(super) delivery: Option<(Key, Uid)>,
    pub(super) shipped: Option<Shipped>,
    /// Sequence of the next delivery id before its frame, and behind it.
    pub(super) dedupe_before: u64,
    pub(super) dedupe_after: u64,
}

/// What moved a partition.
pub(super) enum Moved {
    /// A record.
    By(Mark),
    /// A TRUNCATE.
    To(At),
}

/// A record that counts, though no frame says so of all before it: it lies above what a checkpoint may
/// write.
pub(super) struct Local {
    pub(super) end: Lsn,
    pub(super) user: usize,
    /// Sequence of the next delivery id behind it.
    pub(super) dedupe_after: u64,
}

impl Redo {
    /// A record moves its partition on.
    pub(super) fn unproven(
        &mut self,
        frame: &FrameHeader,
        head: &Head,
        (user, delivery): (Option<usize>, Option<(Key, Uid)>),
    ) {
        let (_, chain_before) = self.partitions.last(head.partition);
        self.partitions
            .advance(head.partition, head.pseq, head.chain, head.epoch);
        let mark = Mark {
            partition: head.partition,
            pseq: head.pseq,
            chain: head.chain,
            chain_before,
            epoch: head.epoch,
        };
        self.moved(frame, Moved::By(mark));
        self.waiting.insert(head.partition);
        self.unproven.push_back(Unproven {
            start: frame.lsn,
            end: frame.end(),
            mark,
            user,
            delivery,
            shipped: None,
            dedupe_before: 0,
            dedupe_after: 0,
        });
    }

    /// A record without a number: of a held box, which follows nothing, or of a user who is refilled.
    pub(super) fn local(
        &mut self,
        identity: &ShardIdentity,
        frame: &FrameHeader,
        (head, user): (&Head, usize),
    ) {
        if self.waiting.contains(&head.partition) {
            let hash = self.boxes.entry(head.partition).or_insert_with(|| {
                held::box_of(head.partition, &identity.key, identity.partitions).hash()
            });
            if *hash != head.user {
                self.all_counts(head.partition);
            }
        }
        self.local.push_back(Local {
            end: frame.end(),
            user,
            dedupe_after: self.window.next(),
        });
    }

    /// All that a partition has so far counts.
    fn all_counts(&mut self, partition: PartitionId) {
        self.waiting.remove(&partition);
        let all = std::mem::take(&mut self.unproven);
        let (counts, kept): (VecDeque<_>, VecDeque<_>) = all
            .into_iter()
            .partition(|one| one.mark.partition == partition);
        self.unproven = kept;
        self.local.extend(counts.into_iter().filter_map(|one| {
            Some(Local {
                end: one.end,
                user: one.user?,
                dedupe_after: one.dedupe_after,
            })
        }));
        self.local.make_contiguous().sort_by_key(|one| one.end);
    }

    fn moved(&mut self, frame: &FrameHeader, moved: Moved) {
        if self.copies == config::Copies::Asked {
            self.moves.push_back((frame.end(), moved));
        }
    }

    /// What moved the partitions up to there.
    pub(super) fn settle(&mut self, upto: Lsn) {
        while let Some((end, moved)) = self.moves.front()
            && *end <= upto
        {
            match moved {
                Moved::By(mark) => {
                    let (partition, epoch) = (mark.partition, mark.epoch);
                    self.settled
                        .advance(partition, mark.pseq, mark.chain, epoch);
                }
                Moved::To(place) => self.settled.place_at(place),
            }
            self.moves.pop_front();
        }
    }

    /// A partition's records above this one are void. They are not proven, so they are the last ones.
    /// Or it goes on further on, behind what counts.
    pub(super) fn void(&mut self, frame: &FrameHeader, head: &Head) {
        if head.pseq > self.partitions.last(head.partition).0 {
            self.all_counts(head.partition);
        }
        let place = At {
            partition: head.partition,
            pseq: head.pseq,
            chain: head.chain,
            epoch: head.epoch,
        };
        self.partitions.place_at(&place);
        self.moved(frame, Moved::To(place));
        let all = std::mem::take(&mut self.unproven);
        let is_void =
            |one: &Unproven| one.mark.partition == head.partition && one.mark.pseq > head.pseq;
        let (void, kept): (VecDeque<_>, VecDeque<_>) = all.into_iter().partition(is_void);
        self.unproven = kept;
        for one in void.into_iter().rev() {
            if let Some(user) = one.user
                && self.users.get_mut(user).pending.pop().is_some()
            {
                self.records -= 1;
            }
            if let Some((key, uid)) = &one.delivery {
                self.window.forget_delivery(key, *uid);
            }
        }
        self.tidy();
    }

    /// After entries were taken out: who is dirty, and whose `folders` lags.
    pub(super) fn tidy(&mut self) {
        let users = &mut self.users;
        self.dirty.retain(|index| {
            let user = users.get_mut(*index);
            if !user.pending.iter().any(Entry::changes_mailboxes) {
                user.folders = Lag::No;
            }
            !user.pending.is_empty()
        });
    }

    /// Up to where everything counts at once.
    pub(super) fn confirmed(&self, config: &ShardConfig, end: Lsn) -> Lsn {
        let asked = config.copies == config::Copies::Asked;
        if !asked || canary::on(Canary::UnconfirmedShown) {
            return end;
        }
        self.unproven.front().map_or(end, |one| one.start)
    }

    /// Takes what nobody confirmed out again: it waits in `copies`.
    pub(super) fn withdraw(&mut self, confirmed: Lsn, end: Lsn, copies: &mut Copies) {
        self.dedupe_durable = self.window.next();
        if self.copies == config::Copies::One {
            return;
        }
        self.settle(confirmed);
        if confirmed == end {
            copies.restore(
                (self.partitions.clone(), confirmed),
                std::iter::empty(),
                std::iter::empty(),
            );
            return;
        }
        let unproven = std::mem::take(&mut self.unproven);
        if let Some(first) = unproven.front() {
            self.dedupe_durable = first.dedupe_before;
        }
        let mut frames: BTreeMap<Lsn, Found> = BTreeMap::new();
        let counts = |mark: &Mark| (mark.partition, mark.pseq, mark.chain);
        let waiting: BTreeSet<_> = unproven.iter().map(|one| counts(&one.mark)).collect();
        for (end, moved) in std::mem::take(&mut self.moves) {
            match moved {
                Moved::By(mark) if waiting.contains(&counts(&mark)) => {}
                Moved::By(mark) => frames.entry(end).or_default().void.push(mark),
                Moved::To(place) => frames.entry(end).or_default().cuts.push(place),
            }
        }
        let mut records = VecDeque::new();
        for one in unproven.into_iter().rev() {
            frames.entry(one.end).or_default().dedupe_next = one.dedupe_after;
            let before = one.mark.pseq - 1;
            self.partitions
                .truncate(one.mark.partition, before, one.mark.chain_before);
            let entry = one.user.and_then(|user| {
                let found = self.users.get_mut(user);
                found.pins += 1;
                Some((user, found.pending.pop()?))
            });
            records.push_front(Restored {
                start: one.start,
                end: one.end,
                mark: one.mark,
                entry,
                shipped: one.shipped,
            });
        }
        for local in std::mem::take(&mut self.local) {
            if local.end <= confirmed {
                continue;
            }
            let frame = frames.entry(local.end).or_default();
            frame.dedupe_next = frame.dedupe_next.max(local.dedupe_after);
            frame.users.push((local.user, 1));
            self.users.get_mut(local.user).ahead_count += 1;
        }
        self.tidy();
        let last = Found {
            dedupe_next: self.window.next(),
            ..Found::default()
        };
        frames.entry(end).or_insert(last);
        copies.restore(
            (self.settled.clone(), confirmed),
            frames.into_iter(),
            records.into_iter(),
        );
    }
}
