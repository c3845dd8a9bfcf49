//! Snapshots: mailboxes that stay readable as they were while others write (storage.md 8.3).
//!
//! A snapshot shares the index entries of its moment and keeps the files that they name: unlinks wait
//! until the last snapshot that needs a file is closed. It lives in memory only; after a restart the
//! files are found dead when their user is loaded.

use std::collections::BTreeMap;

use ringpost_netproto::id::{MailboxId, Uid};

use super::Shard;
use super::fetch::Fetch;
use super::read::{Page, Sink, Wanted, list};
use crate::index::{Entries, IndexEntry, alive, find};
use crate::io::Io;
use crate::limits::SNAPSHOTS_MAX;
use crate::log::Keep;
use crate::request::{
    BusyReason, Event, ListPage, MailboxStatus, Refused, Snapshot, SnapshotId, Ticket,
};
use crate::user::Pinned;

/// One snapshot.
struct OpenSnapshot {
    user: usize,
    mailbox: MailboxId,
    status: MailboxStatus,
    entries: Entries,
}

/// All snapshots of a shard.
#[derive(Default)]
pub(super) struct Snapshots {
    open: BTreeMap<u64, OpenSnapshot>,
    opened: u64,
}

impl Snapshots {
    /// How many are open.
    pub(super) fn count(&self) -> usize {
        self.open.len()
    }
}

impl<I: Io> Shard<I> {
    /// Keeps a mailbox of a loaded user.
    pub(super) fn open_snapshot(
        &mut self,
        user: usize,
        mailbox: MailboxId,
    ) -> Result<Snapshot, Refused> {
        let live = self.users.get(user).live().ok_or(Refused::NoSuchUser)?;
        let tail = live.tail.visible_mailbox(mailbox);
        let status = tail.ok_or(Refused::NoSuchMailbox)?.status();
        // Each holds its user's index in memory.
        let full = self.snapshots.open.len() >= SNAPSHOTS_MAX
            || self.index_bytes > self.config.index_bytes_max.saturating_mul(2);
        if full {
            return Err(Refused::Busy(BusyReason::Snapshots));
        }
        let index = live.index.as_ref();
        let entries = index.map_or_else(Entries::default, |index| index.share(mailbox));
        let uids = alive(&entries).map(|entry| entry.uid).collect();
        let mut segments = Vec::new();
        for segment in alive(&entries).filter_map(IndexEntry::segment) {
            // Neighbours mostly share one.
            if segments.last() != Some(&segment) {
                segments.push(segment);
            }
        }
        segments.sort_unstable();
        segments.dedup();
        self.snapshots.opened += 1;
        let id = self.snapshots.opened;
        let pinned = Pinned {
            snapshot: id,
            segments: segments.into_boxed_slice(),
        };
        let found = self.users.get_mut(user);
        found.pins += 1;
        found.snapshots.push(pinned);
        let open = OpenSnapshot {
            user,
            mailbox,
            status: status.clone(),
            entries,
        };
        self.snapshots.open.insert(id, open);
        Ok(Snapshot {
            id: SnapshotId(id),
            status,
            uids,
        })
    }

    /// Answers a page of a snapshot.
    pub(super) fn list_snapshot(
        &mut self,
        ticket: Ticket,
        snapshot: SnapshotId,
        after: u32,
        entries_max: u32,
    ) {
        let result = self.snapshot_page(snapshot, after, entries_max);
        self.answer(Event::Listed { ticket, result });
    }

    fn snapshot_page(
        &self,
        snapshot: SnapshotId,
        after: u32,
        entries_max: u32,
    ) -> Result<ListPage, Refused> {
        let open = self.snapshots.open.get(&snapshot.0);
        let open = open.ok_or(Refused::NoSuchSnapshot)?;
        let page = Page::new(open.mailbox, after, entries_max);
        let user = self.users.get(open.user);
        list(user, open.status.clone(), &open.entries, page)
    }

    /// Begins to read a message of a snapshot.
    pub(super) fn fetch_snapshot(
        &mut self,
        ticket: Ticket,
        snapshot: SnapshotId,
        uid: Uid,
        (stored_offset, bytes_max): (u64, u32),
    ) -> Result<(), Refused> {
        let open = self.snapshots.open.get(&snapshot.0);
        let open = open.ok_or(Refused::NoSuchSnapshot)?;
        let (user, place) = (open.user, (open.mailbox, uid));
        let fetch = Fetch::new(place, Some(snapshot.0), stored_offset, bytes_max);
        let what = Wanted::Fetch(fetch.clone());
        let read = self.open_read(Sink::Ticket(ticket), user, None, what);
        self.find(read, user, &fetch);
        Ok(())
    }

    /// A message of a snapshot.
    pub(super) fn snapshot_entry(&self, snapshot: u64, uid: Uid) -> Result<&IndexEntry, Refused> {
        let open = self.snapshots.open.get(&snapshot);
        let open = open.ok_or(Refused::NoSuchSnapshot)?;
        find(&open.entries, uid).ok_or(Refused::NoSuchMessage)
    }

    /// Lets a snapshot go, and the files that waited for it.
    pub(super) fn close_snapshot(&mut self, snapshot: SnapshotId) {
        let Some(OpenSnapshot { user, .. }) = self.snapshots.open.remove(&snapshot.0) else {
            return;
        };
        let found = self.users.get_mut(user);
        found
            .snapshots
            .retain(|pinned| pinned.snapshot != snapshot.0);
        self.unlink_unpinned(user);
        self.sweep(user);
        self.users.unpin(user);
    }

    /// Removes the files of a user that were kept for snapshots, once none needs them. While a
    /// checkpoint may still give one of them its name, they wait on.
    pub(super) fn unlink_unpinned(&mut self, user: usize) {
        // A checkpoint that is done again after a crash must find what it gives a name to.
        let archives = self.backups.retires() == Keep::Yes;
        let found = self.users.get_mut(user);
        if self.backups.is_running()
            || found.kept.is_empty()
            || !(found.frozen.is_empty() || (found.frozen_written && !archives))
        {
            return;
        }
        let kept = std::mem::take(&mut found.kept);
        let (still, free) = kept
            .into_iter()
            .partition(|dead| found.is_pinned(dead.segment));
        found.kept = still;
        let dir = found.dir();
        let free: Vec<_> = free;
        for dead in free {
            self.part_with(&dir, &dead);
        }
    }
}
