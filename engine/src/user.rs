//! Users of a shard: what an append needs of each (the tail), the loaded index, and what is pending
//! (storage.md 4.3, 8.1).
//!
//! A user is in the table while anything pins it (pending records, open requests) or until it is
//! evicted as least recently used. A name that was never seen gets its state from disk.

use std::collections::VecDeque;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use hashbrown::HashMap;
use ringpost_netproto::id::{MailboxId, PartitionId, Uid, UserHash};
use ringpost_netproto::placement::UserKey;
use slab::Slab;
use smallvec::SmallVec;

use crate::error::Corrupt;
use crate::format::info::Seed;
use crate::held;
use crate::index::{DeadFile, Index};
use crate::io::RelPath;
use crate::pending::Entry;
use crate::shard::{Capture, Dead};
use crate::tail::{Existence, Tail};

/// A user whose files were read.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) tail: Tail,
    /// Only while somebody reads.
    pub(crate) index: Option<Index>,
}

impl Live {
    /// Whether a message that readers could see is not there any more; no if nobody knows, since the index
    /// is not in memory.
    pub(crate) fn has_lost(&self, mailbox: MailboxId, uid: Uid) -> bool {
        let tail = self.tail.mailbox(mailbox);
        let shown = tail.is_some_and(|tail| uid.value() < tail.uidnext_visible);
        let index = self.index.as_ref();
        shown && index.is_some_and(|index| index.find(mailbox, uid).is_none())
    }
}

#[derive(Debug)]
pub(crate) enum State {
    /// Known by its records only.
    Unloaded,
    Loading,
    Live(Box<Live>),
    Repairing(Arc<Corrupt>),
}

#[derive(Debug)]
pub(crate) struct User {
    pub(crate) hash: UserHash,
    pub(crate) ordinal: u32,
    pub(crate) partition: PartitionId,
    /// `None` only after recovery, until the info header is read.
    pub(crate) name: Option<Arc<[u8]>>,
    pub(crate) state: State,
    /// Requests that wait for the state.
    pub(crate) waiting: VecDeque<Waiter>,
    /// Requests that hold the index of this user.
    pub(crate) pins: u32,
    /// Looked at since the eviction hand passed.
    recent: bool,
    /// Durable, in the log only, not part of a running checkpoint.
    pub(crate) pending: Vec<Entry>,
    /// So many of them, the last ones, lie above what waits for another node: no checkpoint may write
    /// them yet.
    pub(crate) ahead_count: usize,
    /// Durable, part of the running checkpoint.
    pub(crate) frozen: Vec<Entry>,
    /// The running checkpoint has written `frozen`: read from the files.
    pub(crate) frozen_written: bool,
    /// Whether its requests wait for a compaction.
    pub(crate) hold: Hold,
    /// While a compaction makes a new generation: what happens meanwhile.
    pub(crate) capture: Option<Box<Capture>>,
    /// Segments with damage: not compacted, so that a repair finds them.
    pub(crate) spared: Vec<u32>,
    /// Numbers of those who read its files.
    pub(crate) readers: SmallVec<[u64; 1]>,
    /// Files that go when nobody reads them.
    pub(crate) dead: Vec<Dead>,
    /// Its part of the garbage counted in all users.
    garbage_bytes: u64,
    /// Of the info file that the records found by recovery go to.
    pub(crate) redo_generation: u32,
    /// Whether mailboxes changed since the last checkpoint began, so that `folders` lags.
    pub(crate) folders: Lag,
    /// Whether the running checkpoint writes `folders`.
    pub(crate) frozen_folders: Lag,
    /// The change whose turn it is: index in the shard's table.
    pub(crate) changing: Option<usize>,
    /// Changes behind it, in order.
    pub(crate) changes: VecDeque<usize>,
    /// Snapshots and the segments that they need.
    pub(crate) snapshots: Vec<Pinned>,
    /// Dead files that snapshots need still.
    pub(crate) kept: Vec<DeadFile>,
    /// Watches that wait for a change, by ticket.
    pub(crate) watches: Vec<u64>,
}

/// Whether a derived file lags behind the records.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) enum Lag {
    Yes,
    #[default]
    No,
}

/// What a snapshot keeps on disk.
#[derive(Debug)]
pub(crate) struct Pinned {
    pub(crate) snapshot: u64,
    /// Ascending.
    pub(crate) segments: Box<[u32]>,
}

/// Whether a user's requests wait for the end of a compaction (storage.md 8.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Hold {
    Free,
    /// Changes wait; reads go on.
    Held,
    /// The new generation counts, its files are being given their names: loads wait too.
    Naming,
}

/// Who waits for a user to be loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Waiter {
    /// Index of an append.
    Append(usize),
    /// Index of a read.
    Read(usize),
    /// Index of a request for a compaction.
    Compact(usize),
    /// Index of a change.
    Change(usize),
    /// The scrub.
    Scrub,
    /// Index of a request of a partition's primary.
    Replicate(usize),
}

impl User {
    pub(crate) fn dir(&self) -> RelPath {
        RelPath::user_dir(self.partition, self.hash, self.ordinal)
    }

    pub(crate) fn seed(&self, generation: u32) -> Seed {
        Seed {
            user: self.hash,
            generation,
        }
    }

    /// Of the info file that unwritten records go to.
    pub(crate) fn generation(&self) -> u32 {
        self.live()
            .map_or(self.redo_generation, |live| live.tail.generation)
    }

    /// Whether it is this node's alone: its records have no place in the partition's stream.
    pub(crate) fn is_local(&self) -> bool {
        self.name.as_deref().is_some_and(held::is_box)
    }

    pub(crate) fn live(&self) -> Option<&Live> {
        match &self.state {
            State::Live(live) => Some(live),
            _ => None,
        }
    }

    pub(crate) fn live_mut(&mut self) -> Option<&mut Live> {
        match &mut self.state {
            State::Live(live) => Some(live),
            _ => None,
        }
    }

    /// Takes out what a checkpoint may write.
    pub(crate) fn take_settled(&mut self) -> Vec<Entry> {
        let settled_count = self.pending.len() - self.ahead_count;
        let ahead = self.pending.split_off(settled_count);
        std::mem::replace(&mut self.pending, ahead)
    }

    /// Everything that is in the log only, oldest first.
    pub(crate) fn unwritten(&self) -> impl DoubleEndedIterator<Item = &Entry> + Clone {
        self.frozen.iter().chain(&self.pending)
    }

    /// Whether a snapshot needs a segment: its file must stay.
    pub(crate) fn is_pinned(&self, segment: u32) -> bool {
        let needs = |pinned: &Pinned| pinned.segments.binary_search(&segment).is_ok();
        self.snapshots.iter().any(needs)
    }

    fn is_idle(&self) -> bool {
        self.pins == 0
            && self.watches.is_empty()
            && self.kept.is_empty()
            && self.waiting.is_empty()
            && self.pending.is_empty()
            && self.frozen.is_empty()
            && self.dead.is_empty()
            && !matches!(self.state, State::Loading)
    }
}

/// A user hash is a keyed hash already.
#[derive(Default)]
pub(crate) struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("only u64 keys are hashed")
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

/// The table of users.
#[derive(Debug)]
pub(crate) struct Users {
    table: Slab<User>,
    by_hash: HashMap<u64, SmallVec<[usize; 1]>, BuildHasherDefault<Identity>>,
    /// The eviction hand's place.
    hand: usize,
    count_max: usize,
    /// Bytes of indexes that left with their users, until somebody asks.
    forgotten_bytes: u64,
    /// Of the users in the table.
    garbage_bytes: u64,
}

impl Users {
    pub(crate) fn new(count_max: usize) -> Self {
        Self {
            table: Slab::new(),
            by_hash: HashMap::default(),
            hand: 0,
            count_max,
            forgotten_bytes: 0,
            garbage_bytes: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    pub(crate) fn get(&self, index: usize) -> &User {
        self.table
            .get(index)
            .expect("a pinned user stays in the table")
    }

    pub(crate) fn get_mut(&mut self, index: usize) -> &mut User {
        let user = self
            .table
            .get_mut(index)
            .expect("a pinned user stays in the table");
        user.recent = true;
        user
    }

    /// The user with this hash and ordinal, made if unknown (redo).
    pub(crate) fn by_ordinal(
        &mut self,
        hash: UserHash,
        ordinal: u32,
        partition: PartitionId,
    ) -> usize {
        let known = self.by_hash.get(&hash.value());
        let found = known
            .into_iter()
            .flatten()
            .find(|index| self.get(**index).ordinal == ordinal);
        match found {
            Some(index) => *index,
            None => self.insert(hash, ordinal, partition, None),
        }
    }

    /// The user with this name. Of several with its hash, the first whose name fits or is not known
    /// yet; one more, with the next ordinal, if all have other names.
    pub(crate) fn by_key(&mut self, key: &UserKey) -> usize {
        let fits = |user: &User| user.name.as_ref().is_none_or(|name| **name == *key.name());
        let ordinals = self.by_hash.get(&key.hash().value());
        let mut known: SmallVec<[usize; 2]> = ordinals.into_iter().flatten().copied().collect();
        known.sort_by_key(|index| self.get(*index).ordinal);
        let mut next = 0;
        for index in known {
            let user = self.get(index);
            if user.ordinal > next {
                break;
            }
            if fits(user) {
                return index;
            }
            next = user.ordinal + 1;
        }
        self.insert(key.hash(), next, key.partition(), None)
    }

    /// The user with this name, if it is in memory and its name is known.
    pub(crate) fn find(&self, key: &UserKey) -> Option<&User> {
        let ordinals = self.by_hash.get(&key.hash().value());
        let mut known = ordinals.into_iter().flatten().map(|index| self.get(*index));
        known.find(|user| user.name.as_ref().is_some_and(|name| **name == *key.name()))
    }

    fn insert(
        &mut self,
        hash: UserHash,
        ordinal: u32,
        partition: PartitionId,
        name: Option<Arc<[u8]>>,
    ) -> usize {
        self.evict();
        let index = self.table.insert(User {
            hash,
            ordinal,
            partition,
            name,
            state: State::Unloaded,
            waiting: VecDeque::new(),
            pins: 0,
            recent: true,
            pending: Vec::new(),
            ahead_count: 0,
            frozen: Vec::new(),
            frozen_written: false,
            hold: Hold::Free,
            capture: None,
            spared: Vec::new(),
            readers: SmallVec::new(),
            dead: Vec::new(),
            garbage_bytes: 0,
            redo_generation: 1,
            folders: Lag::No,
            frozen_folders: Lag::No,
            changing: None,
            changes: VecDeque::new(),
            snapshots: Vec::new(),
            kept: Vec::new(),
            watches: Vec::new(),
        });
        self.by_hash.entry(hash.value()).or_default().push(index);
        index
    }

    /// Makes room for one more: the hand passes over users used since its last round.
    fn evict(&mut self) {
        let mut steps = 2 * self.table.len().min(64);
        while self.table.len() >= self.count_max && steps > 0 {
            steps -= 1;
            self.hand = if self.hand >= self.table.capacity() {
                0
            } else {
                self.hand + 1
            };
            let Some(user) = self.table.get_mut(self.hand) else {
                continue;
            };
            if user.recent {
                user.recent = false;
            } else if user.is_idle() {
                self.remove(self.hand);
            }
        }
    }

    fn remove(&mut self, index: usize) {
        let user = self.table.remove(index);
        let bytes = user.live().and_then(|live| live.index.as_ref());
        self.forgotten_bytes += bytes.map_or(0, Index::bytes);
        self.garbage_bytes -= user.garbage_bytes;
        let hash = user.hash.value();
        if let Some(known) = self.by_hash.get_mut(&hash) {
            known.retain(|other| *other != index);
            if known.is_empty() {
                self.by_hash.remove(&hash);
            }
        }
    }

    /// Forgets a user that nothing refers to, so that its next use reads the files.
    pub(crate) fn forget_if_idle(&mut self, index: usize) {
        if self.table.get(index).is_some_and(User::is_idle) {
            self.remove(index);
        }
    }

    /// Forgets a user of whom nothing is on disk, so that names that never come again take no room.
    pub(crate) fn forget_if_absent(&mut self, index: usize) {
        let absent = |live: &Live| live.tail.existence == Existence::Absent;
        let found = self.table.get(index).and_then(User::live);
        if found.is_some_and(absent) {
            self.forget_if_idle(index);
        }
    }

    /// The same, and a user that could not be loaded: the next use looks again. One that was loaded stays
    /// for whoever asks next, until there are too many.
    pub(crate) fn forget_if_unknown(&mut self, index: usize) {
        let unloaded = |user: &User| matches!(user.state, State::Unloaded);
        if self.table.get(index).is_some_and(unloaded) {
            self.forget_if_idle(index);
        } else {
            self.forget_if_absent(index);
        }
    }

    /// Lets go of a user. A verdict of damage holds as long as somebody who heard it is there: the
    /// next use looks again.
    pub(crate) fn unpin(&mut self, index: usize) {
        let user = self.get_mut(index);
        user.pins -= 1;
        if user.pins == 0 && matches!(user.state, State::Repairing(_)) {
            user.state = State::Unloaded;
        }
    }

    /// Users with files that wait to be removed.
    pub(crate) fn with_dead_files(&self) -> Vec<usize> {
        let waits = |user: &User| !(user.kept.is_empty() && user.dead.is_empty());
        let found = self.table.iter().filter(|(_, user)| waits(user));
        found.map(|(index, _)| index).collect()
    }

    /// Counts what a user's files hold for nothing; gives its bytes.
    pub(crate) fn weigh(&mut self, index: usize) -> u64 {
        let user = self.get_mut(index);
        let live = user.live();
        let bytes = live.map_or(0, |live| live.tail.space.garbage_bytes());
        let before = std::mem::replace(&mut user.garbage_bytes, bytes);
        self.garbage_bytes = self.garbage_bytes - before + bytes;
        bytes
    }

    /// Bytes that the files of the users in the table hold for nothing.
    pub(crate) fn garbage_bytes(&self) -> u64 {
        self.garbage_bytes
    }

    /// Bytes of indexes that left with their users since the last call.
    pub(crate) fn take_forgotten_bytes(&mut self) -> u64 {
        std::mem::take(&mut self.forgotten_bytes)
    }

    /// Drops loaded indexes, least recently used first, until they take at most `bytes_max`; never that of
    /// the user `kept`.
    pub(crate) fn shrink_indexes(&mut self, mut bytes: u64, bytes_max: u64, kept: usize) -> u64 {
        let mut steps = 2 * self.table.capacity();
        while bytes > bytes_max && steps > 0 {
            steps -= 1;
            self.hand = if self.hand >= self.table.capacity() {
                0
            } else {
                self.hand + 1
            };
            let Some(user) = self.table.get_mut(self.hand) else {
                continue;
            };
            if user.recent {
                user.recent = false;
            } else if user.pins == 0
                && self.hand != kept
                && let Some(live) = user.live_mut()
            {
                bytes -= live.index.take().map_or(0, |index| index.bytes());
            }
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use ringpost_netproto::placement::{HashKey, PartitionCount};

    use super::*;

    fn key(name: &str) -> UserKey {
        let partitions = PartitionCount::new(4096).expect("a power of two");
        UserKey::new(name.as_bytes(), &HashKey::new([1; 16]), partitions).expect("a good name")
    }

    #[test]
    fn names_with_equal_hashes_get_ordinals() {
        let mut users = Users::new(8);
        let (bob, eve) = (key("bob"), key("eve"));
        let first = users.by_key(&bob);
        users.get_mut(first).name = Some(Arc::from(eve.name()));
        let second = users.by_key(&bob);
        assert_ne!(first, second);
        assert_eq!(users.get(second).ordinal, 1);
        assert_eq!(users.by_ordinal(bob.hash(), 0, bob.partition()), first);
        assert_eq!(users.by_key(&bob), second, "its name is not known yet");
    }

    #[test]
    fn the_table_is_bounded_but_never_drops_a_pinned_user() {
        let mut users = Users::new(3);
        let pinned = users.by_key(&key("pinned"));
        users.get_mut(pinned).pins = 1;
        for number in 0..20 {
            users.by_key(&key(&format!("user{number}")));
        }
        assert!(users.len() <= 4, "{} users", users.len());
        assert_eq!(users.by_key(&key("pinned")), pinned);
    }
}
