//! Files that nobody needs any more, and those who may still read them (storage.md 2.2, 8.4, 8.5).
//!
//! A file is dead once durable evidence says so. It is unlinked when no reader is left who began
//! before that, when no record in flight can be about it, and when no entry in the log only would write
//! or name it: a checkpoint must find the files that it gives names to.

use std::collections::BTreeSet;

use super::super::Shard;
use crate::index::DeadFile;
use crate::io::{Io, RelPath};
use crate::pending::What;
use crate::position::Lsn;
use crate::user::User;

/// Files that died together.
#[derive(Debug)]
pub(crate) struct Dead {
    /// Readers up to this one may know of them.
    died: u64,
    /// Records below may still be in flight.
    upto: Lsn,
    segments: Vec<u32>,
    paths: Vec<RelPath>,
}

impl<I: Io> Shard<I> {
    /// Somebody begins to read files of a user; none that is there now goes before
    /// [`Self::end_reader`] with the number that this gives.
    pub(in crate::shard) fn begin_reader(&mut self, index: usize) -> u64 {
        self.readers_begun += 1;
        let user = self.users.get_mut(index);
        user.readers.push(self.readers_begun);
        self.readers_begun
    }

    /// That reader is done.
    pub(in crate::shard) fn end_reader(&mut self, index: usize, reader: u64) {
        let user = self.users.get_mut(index);
        user.readers.retain(|other| *other != reader);
        self.sweep(index);
    }

    /// Durable evidence says that these files of a user, and with them these segments, are dead.
    pub(super) fn bury(&mut self, index: usize, segments: Vec<u32>, paths: Vec<RelPath>) {
        if paths.is_empty() {
            return;
        }
        let dead = Dead {
            died: self.readers_begun,
            upto: self.positions.durable_to().lsn(),
            segments,
            paths,
        };
        self.users.get_mut(index).dead.push(dead);
        self.sweep(index);
    }

    /// Unlinks what nobody holds any more.
    pub(in crate::shard) fn sweep(&mut self, index: usize) {
        let durable = self.positions.durable_to().lsn();
        let user = self.users.get_mut(index);
        if user.dead.is_empty() || self.backups.holds_files() {
            return;
        }
        let owed = owed(user);
        let oldest = user.readers.iter().min().copied();
        let dead = std::mem::take(&mut user.dead);
        let (gone, kept): (Vec<Dead>, _) = dead.into_iter().partition(|dead| {
            let held = |segment: &u32| owed.contains(segment) || user.is_pinned(*segment);
            oldest.is_none_or(|reader| reader > dead.died)
                && durable >= dead.upto
                && !dead.segments.iter().any(held)
        });
        user.dead = kept;
        for dead in gone {
            let live = self.users.get_mut(index).live_mut();
            if let Some(live) = live {
                // Mail that was on its way when its segment emptied keeps it.
                if dead.segments.iter().any(|id| live.tail.is_needed(*id)) {
                    continue;
                }
                for segment in &dead.segments {
                    live.tail.space.forget(*segment);
                }
            }
            for path in dead.paths {
                self.metrics.files_unlinked += 1;
                self.retire(path, None);
            }
        }
    }

    /// Lets the files of sealed segments go in which nothing is left, once what is in flight is
    /// durable: it may be mail for one of them.
    pub(in crate::shard) fn bury_emptied(&mut self, index: usize) {
        let upto = self.log.end();
        let died = self.readers_begun;
        let user = self.users.get_mut(index);
        if user.capture.is_some() {
            // They may be read for copying; its end looks again.
            return;
        }
        let dir = user.dir();
        let Some(live) = user.live() else { return };
        let tail = &live.tail;
        let active = |id| tail.mailboxes.iter().any(|mailbox| mailbox.segment == id);
        let buried = |id| user.dead.iter().any(|dead| dead.segments.contains(&id));
        let known = tail.space.segments().iter();
        let emptied = known.filter(|known| known.live_count == 0 && !known.is_empty());
        let ids = emptied.map(|known| known.segment);
        let gone = |id: &u32| !active(*id) && !tail.is_needed(*id) && !buried(*id);
        let emptied: Vec<u32> = ids.filter(gone).collect();
        user.dead.extend(emptied.into_iter().map(|segment| Dead {
            died,
            upto,
            segments: vec![segment],
            paths: vec![dir.segment(segment)],
        }));
        self.sweep(index);
    }
}

impl<I: Io> Shard<I> {
    /// A user was loaded whose directory has these files: what is dead of them goes.
    pub(in crate::shard) fn bury_listed(
        &mut self,
        index: usize,
        segments: &[(u32, u64)],
        large: &BTreeSet<DeadFile>,
        retired: &[u32],
    ) {
        let user = self.users.get_mut(index);
        let owed = owed(user);
        let dir = user.dir();
        let Some(live) = user.live_mut() else { return };
        let space = &mut live.tail.space;
        let goes = |id: u32| retired.contains(&id) && !space.is_alive(id);
        let mut ids = Vec::new();
        let mut paths = Vec::new();
        for (id, _) in segments.iter().filter(|(id, _)| goes(*id)) {
            ids.push(*id);
            paths.push(dir.segment(*id));
        }
        for dead in large.iter().filter(|dead| goes(dead.segment)) {
            ids.push(dead.segment);
            paths.push(dir.large(dead.segment, dead.mailbox, dead.uid));
        }
        // What emptied and went before is no garbage any more.
        let there = |id: u32| owed.contains(&id) || segments.iter().any(|(other, _)| *other == id);
        let known = space.segments().iter().map(|known| known.segment);
        let gone: Vec<u32> = known
            .filter(|id| !space.is_alive(*id) && !there(*id))
            .collect();
        for id in gone {
            space.forget(id);
        }
        self.bury(index, ids, paths);
        self.bury_emptied(index);
    }
}

/// Segments that entries in the log only will write or give names to.
pub(super) fn owed(user: &User) -> BTreeSet<u32> {
    let mut owed = BTreeSet::new();
    for entry in user.unwritten() {
        match &entry.what {
            What::Small(mail) => {
                owed.insert(mail.segment);
            }
            What::Large(mail) => {
                owed.insert(mail.segment);
            }
            What::Swap(swap) => owed.extend(swap.new.iter().copied()),
            What::Create { .. } | What::Runs(_) | What::Dead(_) => {}
        }
    }
    owed
}
