//! Users of a shard: what an append needs of each (the tail), the loaded index, and what is pending
//! (storage.md 4.3, 8.1).
//!
//! A user is in the table while anything pins it (pending records, open requests) or until it is
//! evicted as least recently used. A name that was never seen gets its state from disk.

use std::collections::VecDeque;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use hashbrown::HashMap;
use ringpost_netproto::id::{MailboxId, PartitionId, UidValidity, UserHash};
use ringpost_netproto::placement::UserKey;
use slab::Slab;
use smallvec::SmallVec;

use crate::error::Corrupt;
use crate::format::info::Seed;
use crate::index::Index;
use crate::io::RelPath;
use crate::pending::Entry;
use crate::request::MailboxStatus;

/// What an append needs of a mailbox. Positions are those reserved, durable or not.
#[derive(Clone, Debug)]
pub(crate) struct MailboxTail {
    pub(crate) mailbox: MailboxId,
    pub(crate) name: Box<str>,
    pub(crate) uidvalidity: UidValidity,
    pub(crate) uidnext: u32,
    /// The segment being appended to; 0 if there is none yet.
    pub(crate) segment: u32,
    pub(crate) segment_end: u64,
    /// Of what is visible.
    pub(crate) highest_modseq: u64,
    pub(crate) messages_count: u32,
    pub(crate) bytes: u64,
}

impl MailboxTail {
    /// The mailbox in numbers.
    pub(crate) fn status(&self) -> MailboxStatus {
        MailboxStatus {
            mailbox: self.mailbox,
            name: self.name.to_string(),
            uidvalidity: self.uidvalidity,
            uidnext: self.uidnext,
            highest_modseq: self.highest_modseq,
            messages_count: self.messages_count,
            bytes: self.bytes,
        }
    }
}

/// Whether a user has been created.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Existence {
    /// No record names it.
    Absent,
    /// Its create record is written, or its info file exists.
    Created,
}

/// What an append needs of a user.
#[derive(Clone, Debug)]
pub(crate) struct Tail {
    pub(crate) existence: Existence,
    /// Whether its directory exists on disk.
    pub(crate) has_dir: bool,
    pub(crate) generation: u32,
    pub(crate) next_slot: u32,
    pub(crate) next_segment: u32,
    pub(crate) modseq: u64,
    pub(crate) uidvalidity_max: u32,
    pub(crate) mailboxes: SmallVec<[MailboxTail; 1]>,
}

/// So many numbers are left at the least while messages are taken: far more than one group uses.
const HEADROOM: u32 = 1 << 20;

impl Tail {
    /// Whether every number that a message takes can still grow. Only absurd files say no.
    pub(crate) fn has_numbers(&self, mailbox: Option<&MailboxTail>) -> bool {
        let most = u32::MAX - HEADROOM;
        self.next_slot < most
            && self.next_segment < most
            && self.modseq < u64::MAX >> 1
            && mailbox.is_none_or(|mailbox| mailbox.uidnext < most)
    }

    pub(crate) fn mailbox(&self, mailbox: MailboxId) -> Option<&MailboxTail> {
        self.mailboxes.iter().find(|tail| tail.mailbox == mailbox)
    }

    pub(crate) fn mailbox_mut(&mut self, mailbox: MailboxId) -> Option<&mut MailboxTail> {
        self.mailboxes
            .iter_mut()
            .find(|tail| tail.mailbox == mailbox)
    }
}

/// A user whose files were read.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) tail: Tail,
    /// Only while somebody reads.
    pub(crate) index: Option<Index>,
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
    /// Durable, part of the running checkpoint.
    pub(crate) frozen: Vec<Entry>,
    /// The running checkpoint has written `frozen`: read from the files.
    pub(crate) frozen_written: bool,
    /// Of the info file that the records found by recovery go to.
    pub(crate) redo_generation: u32,
}

/// Who waits for a user to be loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Waiter {
    /// Index of an append.
    Append(usize),
    /// Index of a read.
    Read(usize),
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

    /// Everything that is in the log only, oldest first.
    pub(crate) fn unwritten(&self) -> impl DoubleEndedIterator<Item = &Entry> + Clone {
        self.frozen.iter().chain(&self.pending)
    }

    fn is_idle(&self) -> bool {
        self.pins == 0
            && self.waiting.is_empty()
            && self.pending.is_empty()
            && self.frozen.is_empty()
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
}

impl Users {
    pub(crate) fn new(count_max: usize) -> Self {
        Self {
            table: Slab::new(),
            by_hash: HashMap::default(),
            hand: 0,
            count_max,
            forgotten_bytes: 0,
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
            frozen: Vec::new(),
            frozen_written: false,
            redo_generation: 1,
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

    /// Lets go of a user. A verdict of damage holds as long as somebody who heard it is there: the
    /// next use looks again.
    pub(crate) fn unpin(&mut self, index: usize) {
        let user = self.get_mut(index);
        user.pins -= 1;
        if user.pins == 0 && matches!(user.state, State::Repairing(_)) {
            user.state = State::Unloaded;
        }
    }

    /// Bytes of indexes that left with their users since the last call.
    pub(crate) fn take_forgotten_bytes(&mut self) -> u64 {
        std::mem::take(&mut self.forgotten_bytes)
    }

    /// Drops loaded indexes, least recently used first, until they take at most `bytes_max`.
    pub(crate) fn shrink_indexes(&mut self, mut bytes: u64, bytes_max: u64) -> u64 {
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
