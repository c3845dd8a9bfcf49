//! Users from disk (storage.md 8.1): list the directory, read the newest info file, fold it with
//! what is pending. A failure concerns this user alone.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use ringpost_netproto::id::{MailboxId, Uid};
use ringpost_netproto::placement::UserKey;

use super::Shard;
use super::append::Append;
use crate::canary::{self, Canary};
use crate::error::{Corrupt, CorruptReason};
use crate::format::info::InfoHeader;
use crate::index::{BadInfo, DeadFile, Folded, Index, InfoFile, fold};
use crate::io::{Done, Failed, Io, Op, RelPath};
use crate::limits::{INFO_BYTES_MAX, SLOT_BYTES};
use crate::ops::{Purpose, unreachable_done};
use crate::pending::{Entry, What};
use crate::request::{Event, Notice, Refused};
use crate::tail::Existence;
use crate::user::{Hold, Live, State, Waiter};

/// Whether a load waits for a compaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Deferred {
    Yes,
    No,
}

/// What a directory listing told.
#[derive(Clone, Debug, Default)]
pub(super) struct Listing {
    /// The highest info file, or the one that a record made.
    generation: Option<u32>,
    /// Other info files: of generations that a compaction replaced.
    older: Vec<u32>,
    /// Above every segment id in a name.
    next_segment: u32,
    /// Final segment names and their sizes.
    segments: Vec<(u32, u64)>,
    /// Of them those of one message each.
    large: BTreeSet<DeadFile>,
}

/// A load under way.
#[derive(Clone, Debug)]
pub(super) struct Loading {
    listing: Listing,
    /// Files of a new generation that are being given their names, and part files on their way out: a
    /// compaction may make one of that name as soon as the user is there.
    steps: usize,
    /// The files it wants are being given their names by a compaction.
    deferred: Deferred,
    /// Why one of them was not.
    failed: Option<Corrupt>,
    /// Checkpoints ended when the directory was asked for, or the file of a user whose tail is known:
    /// one in between may have moved pending records into files behind our back.
    checkpoints: u64,
    /// The name that somebody asked for: that of a user who is not there yet.
    name: Option<Arc<[u8]>>,
}

/// Name of a user, if a file or record tells it.
type Name = Option<Arc<[u8]>>;

impl<I: Io> Shard<I> {
    /// Begins to load a user unless that is under way.
    pub(super) fn start_load(&mut self, index: usize, key: Option<&UserKey>) {
        let user = self.users.get_mut(index);
        if self.loads.contains_key(&index) {
            return;
        }
        let loading = Loading {
            listing: Listing::default(),
            steps: 0,
            deferred: Deferred::No,
            failed: None,
            checkpoints: self.checkpoint.ended(),
            name: key.map(|key| Arc::from(key.name())),
        };
        self.loads.insert(index, loading);
        if user.live().is_some() {
            self.read_info(index);
            return;
        }
        user.state = State::Loading;
        self.list_names(index);
    }

    /// Asks for the names in a user's directory.
    fn list_names(&mut self, index: usize) {
        let checkpoints = self.checkpoint.ended();
        if let Some(loading) = self.loads.get_mut(&index) {
            loading.checkpoints = checkpoints;
            loading.listing = Listing::default();
        }
        let path = self.users.get(index).dir();
        self.ops
            .start(Op::ListDir { path }, Purpose::UserDir(index));
    }

    pub(super) fn load_step(
        &mut self,
        index: usize,
        purpose: Purpose,
        result: Result<Done, Failed>,
    ) {
        match (purpose, result) {
            (Purpose::UserDir(_), Ok(Done::Listing(names))) => {
                let (listing, unborn) = self.read_names(index, &names);
                let renames = self.renames(index, &names);
                if let Some(loading) = self.loads.get_mut(&index) {
                    loading.listing = listing;
                    loading.steps = renames.len() + unborn.len();
                }
                if renames.is_empty() && unborn.is_empty() {
                    self.read_info(index);
                }
                for (from, to) in renames {
                    let op = Op::Rename { from, to };
                    self.ops.start(op, Purpose::UserRename(index));
                }
                for path in unborn {
                    self.metrics.parts_removed += 1;
                    let op = Op::Unlink { path };
                    self.ops.start(op, Purpose::UserUnlink(index));
                }
            }
            (Purpose::UserRename(_), Err(failed)) if !failed.error.is_not_found() => {
                self.load_step_done(index, Some(failed.error.corrupt()));
            }
            // Done, here or by a checkpoint that was faster; a part file that stays harms nothing.
            (Purpose::UserRename(_) | Purpose::UserUnlink(_), _) => {
                self.load_step_done(index, None);
            }
            (Purpose::UserDir(_), Err(failed)) if failed.error.is_not_found() => {
                self.read_info(index);
            }
            (Purpose::UserInfo(_), Ok(Done::Bytes(bytes))) => self.info_read(index, &bytes),
            (Purpose::UserInfo(_), Err(failed))
                if failed.error.is_not_found() && self.is_outdated(index) =>
            {
                self.read_info(index);
            }
            (_, Err(failed)) => self.load_failed(index, failed.error.corrupt()),
            (_, Ok(other)) => unreachable_done(&other),
        }
    }

    /// What an `INFO_SWAP` that redo found orders and the directory shows not done.
    fn renames(&self, index: usize, names: &[(String, u64)]) -> Vec<(RelPath, RelPath)> {
        let user = self.users.get(index);
        let dir = user.dir();
        let there = |path: &RelPath| {
            let name = path.file_name();
            names
                .binary_search_by(|(other, _)| (**other).cmp(name))
                .is_ok()
        };
        let swaps = user.unwritten().filter_map(Entry::swap);
        swaps
            .flat_map(|swap| swap.renames(&dir).collect::<Vec<_>>())
            .filter(|(from, _)| there(from))
            .collect()
    }

    /// One of the steps behind a listing ended.
    fn load_step_done(&mut self, index: usize, failed: Option<Corrupt>) {
        let Some(loading) = self.loads.get_mut(&index) else {
            return;
        };
        loading.steps -= 1;
        loading.failed = loading.failed.take().or(failed);
        if loading.steps > 0 {
            return;
        }
        match loading.failed.take() {
            Some(corrupt) => self.load_failed(index, corrupt),
            None => self.read_info(index),
        }
    }

    /// Takes the names of a user's directory in; and part files that no record names.
    fn read_names(&self, index: usize, names: &[(String, u64)]) -> (Listing, Vec<RelPath>) {
        let user = self.users.get(index);
        let dir = user.dir();
        let mut listing = Listing {
            next_segment: 1,
            ..Listing::default()
        };
        let mut part_files = Vec::new();
        let swap = user.unwritten().filter_map(Entry::swap).next_back();
        let made = |segment| swap.is_some_and(|swap| swap.new.contains(&segment));
        for (name, bytes) in names {
            let hex = |text: &str| u32::from_str_radix(text, 16).ok();
            if let Some(generation) = name.strip_prefix("info.").and_then(hex) {
                listing.generation = listing.generation.max(Some(generation));
                listing.older.push(generation);
            } else if let Some(part) = name.strip_prefix("info.") {
                let generation = part.strip_suffix(".part").and_then(hex);
                if generation.is_some() && generation != swap.map(|swap| swap.generation) {
                    part_files.extend(dir.entry(name));
                }
            } else if let Some(segment) = name.strip_suffix(".part").and_then(hex) {
                let names = |entry: &Entry| match &entry.what {
                    What::Large(mail) => mail.segment == segment,
                    _ => false,
                };
                let mut held = self.copies.held_of(user.partition, index);
                let has_record = user.unwritten().any(names) || held.any(names);
                if made(segment) {
                    listing.segments.push((segment, *bytes));
                } else if !has_record {
                    part_files.extend(dir.entry(name));
                }
                listing.next_segment = listing.next_segment.max(segment.saturating_add(1));
            } else if let Some(stem) = name.strip_suffix(".mbox") {
                let mut parts = stem.split('.').map(hex);
                let segment = parts.next().flatten();
                if let (Some(segment), Some(Some(mailbox)), Some(Some(uid)), None) =
                    (segment, parts.next(), parts.next(), parts.next())
                {
                    listing.large.insert(DeadFile {
                        segment,
                        mailbox: MailboxId::new(mailbox),
                        uid: Uid::new(uid),
                    });
                }
                if let Some(segment) = segment {
                    listing.next_segment = listing.next_segment.max(segment.saturating_add(1));
                    listing.segments.push((segment, *bytes));
                }
            }
        }
        listing.generation = swap.map(|swap| swap.generation).or(listing.generation);
        listing
            .older
            .retain(|generation| Some(*generation) < listing.generation);
        if canary::on(Canary::UnreferencedDeleted) && listing.generation.is_none() {
            let finals = names
                .iter()
                .filter(|(name, _)| name.strip_suffix(".mbox").is_some());
            part_files.extend(finals.filter_map(|(name, _)| dir.entry(name)));
        }
        (listing, part_files)
    }

    /// The files of a user that is being loaded have their names now.
    pub(super) fn resume_load(&mut self, index: usize) {
        let loading = self.loads.get_mut(&index);
        if let Some(loading) = loading
            && std::mem::replace(&mut loading.deferred, Deferred::No) == Deferred::Yes
        {
            self.read_info(index);
        }
    }

    /// Asks for the info file, or goes on without one.
    fn read_info(&mut self, index: usize) {
        let checkpoints = self.checkpoint.ended();
        let Some(loading) = self.loads.get_mut(&index) else {
            return;
        };
        if self.users.get(index).hold == Hold::Naming {
            loading.deferred = Deferred::Yes;
            return;
        }
        let user = self.users.get(index);
        if user.live().is_some() {
            loading.checkpoints = checkpoints;
        } else if loading.checkpoints != checkpoints {
            // Sizes and names are of before it, pending records of after it.
            self.list_names(index);
            return;
        }
        let fresh = user
            .unwritten()
            .any(|entry| matches!(entry.what, What::Create { .. }));
        let generation = match user.live() {
            Some(live) if live.tail.existence != Existence::Created || fresh => None,
            Some(live) => Some(live.tail.generation),
            None => loading.listing.generation,
        };
        let Some(generation) = generation else {
            self.loaded(index, None);
            return;
        };
        loading.listing.generation = Some(generation);
        let path = user.dir().info(generation);
        let op = Op::ReadFile {
            path,
            bytes_max: INFO_BYTES_MAX,
        };
        self.ops.start(op, Purpose::UserInfo(index));
    }

    /// Whether records moved into the file, or the file was replaced, since it was asked for.
    fn is_outdated(&self, index: usize) -> bool {
        let Some(loading) = self.loads.get(&index) else {
            return false;
        };
        let live = self.users.get(index).live();
        loading.checkpoints != self.checkpoint.ended()
            || live.is_some_and(|live| Some(live.tail.generation) != loading.listing.generation)
    }

    fn info_read(&mut self, index: usize, bytes: &Bytes) {
        if self.is_outdated(index) {
            self.read_info(index);
            return;
        }
        self.loaded(index, Some(bytes));
    }

    /// Everything is read: fold, and let the waiters go on.
    fn loaded(&mut self, index: usize, bytes: Option<&Bytes>) {
        let Some(Loading {
            listing,
            name: asked,
            ..
        }) = self.loads.remove(&index)
        else {
            return;
        };
        match self.folded(index, bytes, &listing) {
            Ok((name, folded)) => {
                self.metrics.users_loaded += 1;
                self.unlink_dead(index, &listing, &folded.dead);
                // The generation that replaced them was just read whole.
                let dir = self.users.get(index).dir();
                for generation in &listing.older {
                    let path = dir.info(*generation);
                    self.ops.start(Op::Unlink { path }, Purpose::Tidy);
                }
                let user = self.users.get_mut(index);
                if user.name.is_none() {
                    user.name = name.or(asked);
                }
                let appends = &self.appends;
                let waits = |waiter: &Waiter| match waiter {
                    Waiter::Append(append) => appends.get(*append).is_some_and(Append::reads),
                    Waiter::Scrub => false,
                    _ => true,
                };
                let reader = user.waiting.iter().any(waits);
                let held = self.copies.holds(user.partition, index);
                let Folded {
                    mut tail,
                    index: all,
                    retired,
                    ..
                } = folded;
                let fresh = user.live().is_none();
                let seed = user.seed(tail.generation);
                if held {
                    for entry in self.copies.held_of(user.partition, index) {
                        tail.reserve_entry(entry, seed);
                    }
                }
                match &mut user.state {
                    State::Live(live) => live.index = Some(all),
                    state => {
                        let index = (reader || held).then_some(all);
                        *state = State::Live(Box::new(Live { tail, index }));
                    }
                }
                let bytes = user
                    .live()
                    .and_then(|live| live.index.as_ref())
                    .map(Index::bytes);
                self.index_bytes += bytes.unwrap_or(0);
                if fresh {
                    self.bury_listed(index, &listing.segments, &listing.large, &retired);
                }
                self.weigh(index);
                self.wake(index);
            }
            Err(bad) => self.load_failed(index, bad),
        }
    }

    /// What the info file and the pending records of a user say together.
    fn folded(
        &self,
        index: usize,
        bytes: Option<&Bytes>,
        listing: &Listing,
    ) -> Result<(Name, Folded), Corrupt> {
        let user = self.users.get(index);
        let generation = listing.generation.unwrap_or(1);
        let path = user.dir().info(generation);
        let bad = |offset, reason| Corrupt {
            file: path.to_string(),
            offset,
            reason,
        };
        let created = user.unwritten().find_map(|entry| match &entry.what {
            What::Create { name, .. } => Some(name),
            _ => None,
        });
        // A user whose create record is pending owes nothing to a file: redo writes all of it.
        let header = match (bytes, created) {
            (Some(bytes), None) => Some(
                InfoHeader::open(bytes, user.hash, user.ordinal, generation)
                    .map_err(|reason| bad(0, reason))?,
            ),
            _ => None,
        };
        if header.is_none() && created.is_none() && !listing.segments.is_empty() {
            return Err(bad(0, CorruptReason::Disagree("segments without an index")));
        }
        let slots = user.unwritten().filter_map(Entry::swap).next_back();
        let slots = slots.map_or(0, |swap| u64::from(swap.slots));
        let len = bytes.map_or(0, |bytes| u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        if len < slots * SLOT_BYTES {
            return Err(bad(len, CorruptReason::Truncated));
        }
        let file = match (&header, bytes) {
            (Some(header), Some(bytes)) => Some(InfoFile { header, bytes }),
            _ => None,
        };
        // A checkpoint makes the directory's name durable: none has while the create record is pending or there
        // is no index. A directory may be there all the same, that a killed process made and did not sync.
        let has_dir = created.is_none() && bytes.is_some();
        let seed = user.seed(generation);
        let mut folded = fold(file.as_ref(), user.unwritten(), seed, has_dir)
            .map_err(|BadInfo { offset, reason }| bad(offset, reason))?;
        let tail = &mut folded.tail;
        tail.next_segment = tail.next_segment.max(listing.next_segment);
        for (segment, end) in folded.ends.iter().copied() {
            // A new generation's runs may tell of bytes that redo has still to write.
            let owed = user
                .unwritten()
                .filter_map(|entry| entry.owes(segment))
                .min();
            let end = owed.map_or(end, |offset| offset.min(end));
            if end == 0 {
                continue;
            }
            let found = listing
                .segments
                .iter()
                .find(|(number, _)| *number == segment);
            if user.live().is_none() && found.is_none_or(|(_, bytes)| *bytes < end) {
                if tail.leave_segment(segment, end) {
                    continue;
                }
                let file = user.dir().segment(segment).to_string();
                let offset = found.map_or(0, |(_, bytes)| *bytes);
                return Err(Corrupt {
                    file,
                    offset,
                    reason: CorruptReason::Truncated,
                });
            }
        }
        let name = created
            .map(|name| &name[..])
            .or(header.as_ref().map(|header| &*header.name));
        Ok((name.map(Arc::from), folded))
    }

    /// Removes the files of large messages that are expunged by durable records, which a crash or a
    /// snapshot left over. Those that a checkpoint is going to name and remove are left to it.
    fn unlink_dead(&mut self, index: usize, listing: &Listing, dead: &[DeadFile]) {
        if self.backups.holds_files() {
            // The next load finds them again.
            return;
        }
        let user = self.users.get(index);
        let is_pending = |dead: &DeadFile| {
            user.unwritten().any(|entry| match &entry.what {
                What::Large(mail) => mail.segment == dead.segment,
                _ => false,
            })
        };
        let left = dead.iter().filter(|dead| listing.large.contains(dead));
        let left: Vec<DeadFile> = left.filter(|dead| !is_pending(dead)).copied().collect();
        let dir = user.dir();
        for dead in left {
            self.metrics.dead_files_removed += 1;
            self.part_with(&dir, &dead);
        }
    }

    fn load_failed(&mut self, index: usize, corrupt: Corrupt) {
        self.loads.remove(&index);
        self.metrics.corrupt += 1;
        let corrupt = Arc::new(corrupt);
        self.events
            .push(Event::Notice(Notice::Corrupt(Arc::clone(&corrupt))));
        let user = self.users.get_mut(index);
        if user.live().is_none() {
            user.state = State::Repairing(corrupt);
        } else {
            // Its tail is good: mail can be taken. Only who wants to read is refused.
            let waiting = std::mem::take(&mut user.waiting);
            for waiter in waiting {
                match waiter {
                    Waiter::Append(_) | Waiter::Compact(_) | Waiter::Scrub => {
                        self.users.get_mut(index).waiting.push_back(waiter);
                    }
                    Waiter::Read(read) => {
                        self.refuse_read(read, Refused::Repairing(Arc::clone(&corrupt)));
                    }
                    Waiter::Change(change) => {
                        self.refuse_change(change, Refused::Repairing(Arc::clone(&corrupt)));
                    }
                    // It looks for itself.
                    Waiter::Replicate(request) => self.replicate_user_loaded(request),
                }
            }
        }
        self.wake(index);
    }

    /// Lets go whoever waited for a user; those who mean another name with the same hash move on.
    fn wake(&mut self, index: usize) {
        // Answering may make a user idle, and an idle user may leave the table.
        self.users.get_mut(index).pins += 1;
        let waiting = std::mem::take(&mut self.users.get_mut(index).waiting);
        let name = self.users.get(index).name.clone();
        for waiter in waiting {
            let wants = match waiter {
                Waiter::Append(append) => self.append_wants(append, index, name.as_deref()),
                Waiter::Read(read) => self.read_wants(read, name.as_deref()),
                Waiter::Change(change) => self.change_wants(change, name.as_deref()),
                Waiter::Compact(asked) => self.compaction_wants(asked, name.as_deref()),
                Waiter::Scrub => self.scrub_wants(name.as_deref()),
                // By hash and ordinal, which are what they are.
                Waiter::Replicate(_) => Wants::This,
            };
            match (waiter, wants) {
                (Waiter::Append(append), Wants::This) => self.append_user_loaded(append),
                (Waiter::Append(append), Wants::Other) => self.append_moves(append, index),
                (Waiter::Read(read), Wants::This) => self.run_read(read),
                (Waiter::Read(read), Wants::Other) => self.read_moves(read),
                (Waiter::Replicate(request), _) => self.replicate_user_loaded(request),
                (Waiter::Change(change), Wants::This) => self.change_user_loaded(change),
                (Waiter::Change(change), Wants::Other) => self.change_moves(change),
                (Waiter::Compact(asked), Wants::This) => self.compaction_user_loaded(asked),
                (Waiter::Compact(asked), Wants::Other) => self.compaction_moves(asked),
                (Waiter::Scrub, Wants::This) => self.scrub_user_loaded(),
                (Waiter::Scrub, Wants::Other) => self.scrub_moves(),
            }
        }
        self.users.unpin(index);
        self.users.forget_if_unknown(index);
    }
}

/// Whether a loaded user is the one that a waiter asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wants {
    This,
    /// Another name with the same hash.
    Other,
}

impl Wants {
    /// Whether the loaded name is the asked one; what is not known is not another.
    pub(super) fn compare(asked: Option<&UserKey>, name: Option<&[u8]>) -> Self {
        match (asked, name) {
            (Some(asked), Some(name)) if asked.name() != name => Self::Other,
            _ => Self::This,
        }
    }
}
