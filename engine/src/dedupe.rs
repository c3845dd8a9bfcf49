//! The window of recent deliveries (storage.md 4.5): a retry of a delivery that was stored is
//! answered like the first time, also after a restart.
//!
//! A ring of entries in the order of arrival and a table from delivery id to place. Only accepted
//! deliveries enter it: a refused one leaves no id, else its retry would vanish.

use hashbrown::HashTable;
use ringpost_netproto::id::{Guid, MailboxId, Uid, UserHash};

use crate::format::dedupe::{DEDUPE_ENTRY_BYTES, DedupeEntry, DedupeHeader};
use crate::position::{DurableTo, Lsn};

/// Entries older than this do not count: 48 hours, beyond which no MTA's retry is meant.
const AGE_MAX_S: u32 = 48 * 3600;

/// What is asked: the same delivery?
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    pub(crate) user: UserHash,
    pub(crate) ordinal: u32,
    pub(crate) mailbox: MailboxId,
    pub(crate) guid: Guid,
    pub(crate) body_crc: u32,
}

/// The answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Seen {
    /// Not in the window.
    No,
    /// In the window with another content: no duplicate.
    OtherContent,
    /// The first copy is on stable storage.
    Durable(Uid),
    /// The first copy is in a frame that is not durable yet.
    InFlight(Uid),
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    entry: DedupeEntry,
    /// End of the frame that holds it; 0 for one read back from disk.
    durable_at: Lsn,
}

/// The ring and its table.
#[derive(Debug)]
pub(crate) struct Window {
    /// By place; `None` where nothing was, or where the file's entry was damaged.
    slots: Vec<Option<Slot>>,
    places: HashTable<usize>,
    capacity: usize,
    /// Sequence number of the next entry; its place is that modulo the capacity.
    next: u64,
    /// Entries below this sequence are in the file.
    saved: u64,
}

impl Window {
    pub(crate) fn new(capacity: u64) -> Self {
        let capacity = usize::try_from(capacity).expect("config bounds the window");
        Self {
            slots: Vec::new(),
            places: HashTable::new(),
            capacity,
            next: 0,
            saved: 0,
        }
    }

    /// Whether this delivery was accepted within the window.
    pub(crate) fn find(&self, key: &Key, durable: DurableTo, now_s: u32) -> Seen {
        let found = self.places.find(hash_of(&key.guid), |place| {
            self.at(*place).is_some_and(|slot| slot.entry.is_for(key))
        });
        let Some(slot) = found.and_then(|place| self.at(*place)) else {
            return Seen::No;
        };
        if now_s.saturating_sub(slot.entry.time_s) > AGE_MAX_S {
            Seen::No
        } else if slot.entry.body_crc != key.body_crc {
            Seen::OtherContent
        } else if slot.durable_at <= durable.lsn() {
            Seen::Durable(slot.entry.uid)
        } else {
            Seen::InFlight(slot.entry.uid)
        }
    }

    /// Remembers an accepted delivery whose frame ends at `durable_at`.
    pub(crate) fn insert(&mut self, key: &Key, uid: Uid, time_s: u32, durable_at: Lsn) {
        let entry = DedupeEntry {
            time_s,
            user: key.user,
            ordinal: key.ordinal,
            mailbox: key.mailbox,
            guid: key.guid,
            uid,
            body_crc: key.body_crc,
        };
        self.push(Slot { entry, durable_at });
    }

    /// Adds an entry unless the same one is there already (redo may repeat what the file holds).
    /// `durable_at` as in [`Self::insert`]; 0 for one of the file.
    pub(crate) fn restore(&mut self, entry: DedupeEntry, durable_at: Lsn) {
        let key = Key {
            user: entry.user,
            ordinal: entry.ordinal,
            mailbox: entry.mailbox,
            guid: entry.guid,
            body_crc: entry.body_crc,
        };
        let known = self.places.find(hash_of(&key.guid), |place| {
            self.at(*place).is_some_and(|slot| slot.entry.is_for(&key))
        });
        let known = known.and_then(|place| self.at(*place));
        if known.is_none_or(|slot| slot.entry.uid != entry.uid) {
            self.push(Slot { entry, durable_at });
        }
    }

    /// A delivery became void: its retry is a delivery.
    pub(crate) fn forget_delivery(&mut self, key: &Key, uid: Uid) {
        let found = self.places.find(hash_of(&key.guid), |place| {
            self.at(*place)
                .is_some_and(|slot| slot.entry.is_for(key) && slot.entry.uid == uid)
        });
        let Some(place) = found.copied() else { return };
        self.forget(hash_of(&key.guid), |other, _| other == place);
        if let Some(slot) = self.slots.get_mut(place) {
            *slot = None;
        }
    }

    fn at(&self, place: usize) -> Option<&Slot> {
        self.slots.get(place).and_then(Option::as_ref)
    }

    fn push(&mut self, slot: Slot) {
        let place = self.place_of(self.next);
        self.next += 1;
        if place >= self.slots.len() {
            self.slots.resize(place + 1, None);
        }
        if let Some(old) = self.at(place).copied() {
            self.forget(hash_of(&old.entry.guid), |other, _| other == place);
        }
        // A later delivery with the same id and another content takes the table's place of the
        // earlier one: `find` meets the latest.
        let (hash, key) = (hash_of(&slot.entry.guid), slot.entry.key());
        self.forget(hash, |_, known| {
            known.is_some_and(|known| known.entry.is_for(&key))
        });
        if let Some(free) = self.slots.get_mut(place) {
            *free = Some(slot);
        }
        let slots = &self.slots;
        self.places.insert_unique(hash, place, |other| {
            let known = slots.get(*other).and_then(Option::as_ref);
            known.map_or(0, |slot| hash_of(&slot.entry.guid))
        });
    }

    /// Takes a place out of the table.
    fn forget(&mut self, hash: u64, is_it: impl Fn(usize, Option<&Slot>) -> bool) {
        let slots = &self.slots;
        let found = self.places.find_entry(hash, |other| {
            is_it(*other, slots.get(*other).and_then(Option::as_ref))
        });
        if let Ok(entry) = found {
            entry.remove();
        }
    }

    fn place_of(&self, sequence: u64) -> usize {
        let capacity = u64::try_from(self.capacity).expect("an index has at most 64 bits");
        usize::try_from(sequence % capacity).expect("below the capacity")
    }

    /// Sequence number of the next entry.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// The entries not in the file yet, up to sequence `upto`, each with its sequence, in order.
    pub(crate) fn unsaved(&self, upto: u64) -> Vec<(u64, [u8; DEDUPE_ENTRY_BYTES])> {
        let capacity = u64::try_from(self.capacity).expect("an index has at most 64 bits");
        // A place that a later delivery took in between holds what may not be durable yet.
        let kept = self.next.max(upto).saturating_sub(capacity);
        let from = self.saved.max(kept);
        (from..upto)
            .filter_map(|sequence| {
                let slot = self.at(self.place_of(sequence))?;
                Some((sequence, slot.entry.seal(sequence)))
            })
            .collect()
    }

    /// Entries below `upto` are durable in the file.
    pub(crate) fn mark_saved(&mut self, upto: u64) {
        self.saved = self.saved.max(upto);
    }

    /// Every entry, oldest first.
    pub(crate) fn entries(&self) -> impl Iterator<Item = DedupeEntry> + '_ {
        let capacity = u64::try_from(self.capacity).expect("an index has at most 64 bits");
        (self.next.saturating_sub(capacity)..self.next)
            .filter_map(|sequence| self.at(self.place_of(sequence)).map(|slot| slot.entry))
    }

    /// Fills an empty window from the file's bytes: all entries below `next` that validate. Where
    /// the file was made for another capacity, the entries get new places and none counts as saved:
    /// `false`, and the file has to be written anew.
    pub(crate) fn load(&mut self, header: &DedupeHeader, file: &[u8], next: u64) -> bool {
        let same = usize::try_from(header.capacity).is_ok_and(|capacity| capacity == self.capacity);
        for sequence in next.saturating_sub(header.capacity)..next {
            let offset = usize::try_from(header.offset_of(sequence)).unwrap_or(usize::MAX);
            let end = offset.saturating_add(DEDUPE_ENTRY_BYTES);
            let entry = file
                .get(offset..end)
                .map(|bytes| DedupeEntry::open(bytes, sequence));
            if let Some(Ok(entry)) = entry {
                if same {
                    self.next = sequence;
                }
                self.restore(entry, Lsn::new(0));
            }
        }
        if same {
            self.next = next;
            self.saved = next;
        }
        same
    }
}

impl DedupeEntry {
    /// What asks for it.
    pub(crate) fn key(&self) -> Key {
        Key {
            user: self.user,
            ordinal: self.ordinal,
            mailbox: self.mailbox,
            guid: self.guid,
            body_crc: self.body_crc,
        }
    }

    fn is_for(&self, key: &Key) -> bool {
        self.guid == key.guid
            && self.user == key.user
            && self.ordinal == key.ordinal
            && self.mailbox == key.mailbox
    }
}

/// A guid is a keyed hash or random: half of it serves as the table's hash.
fn hash_of(guid: &Guid) -> u64 {
    let bytes = guid.bytes();
    let half = bytes.first_chunk::<8>().expect("a guid has 16 bytes");
    u64::from_le_bytes(*half)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commit::Positions;

    fn key(number: u8, body_crc: u32) -> Key {
        Key {
            user: UserHash::new(7),
            ordinal: 0,
            mailbox: MailboxId::INBOX,
            guid: Guid::new([number; 16]),
            body_crc,
        }
    }

    fn durable(lsn: u64) -> DurableTo {
        Positions::recovered(Lsn::new(0), Lsn::new(lsn), Lsn::new(lsn)).durable_to()
    }

    #[test]
    fn what_a_checkpoint_saves_was_not_replaced_since() {
        let mut window = Window::new(4);
        for number in 0..3 {
            window.insert(&key(number, 9), Uid::new(1), 100, Lsn::new(4096));
        }
        let upto = window.next();
        for number in 3..6 {
            window.insert(&key(number, 9), Uid::new(1), 100, Lsn::new(8192));
        }
        let saved = window.unsaved(upto);
        let guids: Vec<_> = saved
            .iter()
            .map(|(sequence, bytes)| DedupeEntry::open(bytes, *sequence).map(|entry| entry.guid))
            .collect();
        assert_eq!(guids, [Ok(Guid::new([2; 16]))]);
    }

    #[test]
    fn a_delivery_is_in_flight_until_its_frame_is_durable() {
        let mut window = Window::new(4);
        window.insert(&key(1, 9), Uid::new(5), 100, Lsn::new(4096));
        assert_eq!(
            window.find(&key(1, 9), durable(0), 100),
            Seen::InFlight(Uid::new(5))
        );
        assert_eq!(
            window.find(&key(1, 9), durable(4096), 100),
            Seen::Durable(Uid::new(5))
        );
        assert_eq!(
            window.find(&key(1, 8), durable(4096), 100),
            Seen::OtherContent
        );
        assert_eq!(window.find(&key(2, 9), durable(4096), 100), Seen::No);
        assert_eq!(
            window.find(&key(1, 9), durable(4096), 101 + AGE_MAX_S),
            Seen::No
        );
    }

    #[test]
    fn the_oldest_leaves_when_the_ring_is_full() {
        let mut window = Window::new(3);
        for number in 0..5 {
            window.insert(
                &key(number, 1),
                Uid::new(1 + u32::from(number)),
                1,
                Lsn::new(0),
            );
        }
        for (number, want) in [(0, false), (1, false), (2, true), (3, true), (4, true)] {
            let seen = window.find(&key(number, 1), durable(0), 1);
            assert_eq!(seen != Seen::No, want, "entry {number}");
        }
        assert_eq!(window.entries().count(), 3);
        let unsaved = window.unsaved(5);
        assert_eq!(
            unsaved
                .iter()
                .map(|(sequence, _)| *sequence)
                .collect::<Vec<_>>(),
            [2, 3, 4]
        );
        window.mark_saved(5);
        assert_eq!(window.unsaved(5).len(), 0);
    }

    #[test]
    fn the_latest_content_of_an_id_counts() {
        let mut window = Window::new(4);
        window.insert(&key(1, 1), Uid::new(1), 1, Lsn::new(0));
        window.insert(&key(1, 2), Uid::new(2), 1, Lsn::new(0));
        assert_eq!(
            window.find(&key(1, 2), durable(0), 1),
            Seen::Durable(Uid::new(2))
        );
        for number in 10..14 {
            window.insert(&key(number, 1), Uid::new(9), 1, Lsn::new(0));
        }
        assert_eq!(window.find(&key(1, 2), durable(0), 1), Seen::No);
    }

    #[test]
    fn redo_adds_only_what_the_file_lacks() {
        let mut window = Window::new(4);
        window.insert(&key(1, 1), Uid::new(1), 1, Lsn::new(0));
        let entry = window.entries().next().expect("one entry");
        window.restore(entry, Lsn::new(0));
        assert_eq!(window.entries().count(), 1);
        window.restore(
            DedupeEntry {
                guid: Guid::new([9; 16]),
                ..entry
            },
            Lsn::new(0),
        );
        assert_eq!(window.entries().count(), 2);
    }
}
