//! What a user's files hold and nobody needs any more: the sums that say when a compaction pays
//! (storage.md 8.5). Kept in the tail, made by the fold, never on disk: never wrong after a crash.

use ringpost_netproto::id::{MailboxId, Uid};
use smallvec::SmallVec;

use crate::format::info::{Msg, OWN_FILE};
use crate::limits::SLOT_BYTES;

/// A compaction pays when a segment has this share of dead bytes, in percent (storage.md 8.5).
const SEGMENT_DEAD_PERCENT: u64 = 30;

/// And when this share of the info file could go, in percent.
const INFO_STALE_PERCENT: u64 = 25;

/// One shared segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SegmentUse {
    pub(crate) segment: u32,
    pub(crate) mailbox: MailboxId,
    /// Of all its messages, prefixes and empty lines.
    pub(crate) bytes: u64,
    /// Of those that are gone.
    pub(crate) dead_bytes: u64,
    /// Messages that are there.
    pub(crate) live_count: u32,
    /// Messages that are gone and whose run has no header cache: what explains their bytes.
    bare_count: u32,
}

impl SegmentUse {
    /// Whether enough of it is dead.
    pub(crate) fn is_stale(&self) -> bool {
        self.dead_bytes > 0 && self.dead_bytes * 100 >= self.bytes * SEGMENT_DEAD_PERCENT
    }

    /// Whether its file has gone.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Bytes that a compaction would have to copy.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.bytes - self.dead_bytes
    }
}

/// Where a message lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    pub(crate) mailbox: MailboxId,
    pub(crate) uid: Uid,
    pub(crate) segment: u32,
    /// Of the segment that it takes; `None` if it has a file of its own.
    pub(crate) bytes: Option<u64>,
}

impl Place {
    pub(crate) fn of(msg: &Msg) -> Self {
        let shared = msg.format_flags & OWN_FILE == 0;
        Self {
            mailbox: msg.mailbox,
            uid: msg.uid,
            segment: msg.segment,
            bytes: shared.then(|| msg.segment_bytes()),
        }
    }
}

/// What happens to a user's files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Happened {
    Stored(Place),
    Expunged(Place, u32),
    Deleted(MailboxId),
    Changed(u32),
}

/// See the module. Large messages have files of their own, which go at once.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Space {
    /// Ascending by segment.
    segments: SmallVec<[SegmentUse; 1]>,
    /// Slots of the info file that a new generation would not have.
    stale_slots: u32,
    /// While a new generation is made: what happened since its contents were taken.
    journal: Option<Vec<Happened>>,
}

impl Space {
    /// The shared segments, ascending.
    pub(crate) fn segments(&self) -> &[SegmentUse] {
        &self.segments
    }

    fn place(&self, segment: u32) -> Result<usize, usize> {
        self.segments
            .binary_search_by_key(&segment, |known| known.segment)
    }

    /// Whether a shared segment has messages that are there.
    pub(crate) fn is_alive(&self, segment: u32) -> bool {
        let known = self
            .place(segment)
            .ok()
            .and_then(|place| self.segments.get(place));
        known.is_some_and(|known| known.live_count > 0)
    }

    /// A message lies in its segment.
    pub(crate) fn stored(&mut self, msg: &Msg) {
        self.apply(Happened::Stored(Place::of(msg)));
    }

    /// A message that was stored is gone; its MSG run has so many slots of header cache.
    pub(crate) fn expunged(&mut self, msg: &Msg, cache_slots: usize) {
        let slots = u32::try_from(cache_slots).unwrap_or(0);
        self.apply(Happened::Expunged(Place::of(msg), slots));
    }

    /// A mailbox was deleted: its segments are dead.
    pub(crate) fn deleted(&mut self, mailbox: MailboxId) {
        self.apply(Happened::Deleted(mailbox));
    }

    /// Slots were written that a new generation would not have.
    pub(crate) fn changed(&mut self, slots: u32) {
        if slots > 0 {
            self.apply(Happened::Changed(slots));
        }
    }

    /// Begins to remember what happens.
    pub(crate) fn remember(&mut self) {
        self.journal = Some(Vec::new());
    }

    /// What happened since is forgotten.
    pub(crate) fn forget_journal(&mut self) {
        self.journal = None;
    }

    /// Takes over what happened to the files of another generation since it began to remember.
    /// `moved` tells the segment of a message here.
    pub(crate) fn catch_up(&mut self, other: &mut Self, moved: impl Fn(&Place) -> u32) {
        for mut happened in other.journal.take().unwrap_or_default() {
            if let Happened::Expunged(place, _) = &mut happened {
                place.segment = moved(place);
            }
            self.apply(happened);
        }
    }

    fn apply(&mut self, happened: Happened) {
        if let Some(journal) = &mut self.journal {
            journal.push(happened);
        }
        match happened {
            Happened::Stored(place) => {
                let Some(bytes) = place.bytes else { return };
                let known = self.known(place.segment, place.mailbox);
                known.bytes += bytes;
                known.live_count += 1;
            }
            Happened::Expunged(place, cache_slots) => {
                // Without a cache it is what a new generation keeps of it, as long as its segment
                // lives.
                if place.bytes.is_none() || cache_slots > 0 {
                    self.stale_slots = self.stale_slots.saturating_add(2 + cache_slots);
                }
                let Some(bytes) = place.bytes else { return };
                if let Ok(found) = self.place(place.segment)
                    && let Some(known) = self.segments.get_mut(found)
                {
                    known.dead_bytes = known.bytes.min(known.dead_bytes + bytes);
                    known.live_count = known.live_count.saturating_sub(1);
                    known.bare_count += u32::from(cache_slots == 0);
                }
            }
            Happened::Deleted(mailbox) => {
                let mut slots = 0;
                let dead = self.segments.iter_mut();
                for known in dead.filter(|known| known.mailbox == mailbox) {
                    slots += 2 * known.live_count;
                    known.dead_bytes = known.bytes;
                    known.live_count = 0;
                }
                self.stale_slots = self.stale_slots.saturating_add(slots);
            }
            Happened::Changed(slots) => self.stale_slots = self.stale_slots.saturating_add(slots),
        }
    }

    /// A segment, from now on if it was not known.
    fn known(&mut self, segment: u32, mailbox: MailboxId) -> &mut SegmentUse {
        let place = self.place(segment).unwrap_or_else(|place| {
            let fresh = SegmentUse {
                segment,
                mailbox,
                bytes: 0,
                dead_bytes: 0,
                live_count: 0,
                bare_count: 0,
            };
            self.segments.insert(place, fresh);
            place
        });
        self.segments
            .get_mut(place)
            .expect("found or just inserted")
    }

    /// A sealed segment's file is gone, or on its way: there are no bytes any more that its runs would
    /// explain. That it was sealed stays known until the next generation.
    pub(crate) fn forget(&mut self, segment: u32) {
        if let Ok(place) = self.place(segment)
            && let Some(known) = self.segments.get_mut(place)
        {
            let slots = known.bare_count.saturating_mul(2);
            (known.bytes, known.dead_bytes, known.bare_count) = (0, 0, 0);
            self.stale_slots = self.stale_slots.saturating_add(slots);
        }
    }

    /// Bytes of dead messages, and of the info file what could go.
    pub(crate) fn garbage_bytes(&self) -> u64 {
        let dead: u64 = self.segments.iter().map(|known| known.dead_bytes).sum();
        dead + u64::from(self.stale_slots) * SLOT_BYTES
    }

    /// Whether a compaction pays, for an info file of so many slots: shares are large enough, and
    /// there is at least `bytes_min` to win (of the info file a quarter of that).
    pub(crate) fn is_due(&self, slots: u32, bytes_min: u64) -> bool {
        let bytes: u64 = self.segments.iter().map(|known| known.bytes).sum();
        let dead: u64 = self.segments.iter().map(|known| known.dead_bytes).sum();
        let stale = u64::from(self.stale_slots);
        let segments = dead >= bytes_min.max(1) && dead * 100 >= bytes * SEGMENT_DEAD_PERCENT;
        let info = stale * SLOT_BYTES >= (bytes_min / 4).max(1)
            && stale * 100 >= u64::from(slots) * INFO_STALE_PERCENT;
        segments || info
    }

    /// Whether there is anything to win at all.
    pub(crate) fn has_garbage(&self) -> bool {
        self.garbage_bytes() > 0
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use ringpost_netproto::id::{Guid, Modseq, WallNs};

    use super::*;
    use crate::position::Lsn;

    /// A message of INBOX that takes so many bytes of a segment.
    pub(crate) fn message(segment: u32, bytes: u32) -> Msg {
        Msg {
            format_flags: 0,
            mailbox: MailboxId::INBOX,
            uid: Uid::new(1),
            modseq: Modseq::new(1),
            lsn: Lsn::new(0),
            segment,
            offset: 0,
            stored_len: bytes - 1,
            skip: 0,
            header_len: 0,
            lines_count: 0,
            quoted_count: 0,
            rfc822_size: 0,
            internal_date: WallNs::new(0),
            date_s: None,
            system_flags: 0,
            stored_crc: 0,
            keywords: 0,
            guid: Guid::new([0; 16]),
            held_for: 0,
        }
    }

    #[test]
    fn garbage_is_due_by_share_and_by_size() {
        let mut space = Space::default();
        for _message in 0..10 {
            space.stored(&message(1, 100));
        }
        assert!(!space.has_garbage());
        space.expunged(&message(1, 100), 1);
        space.expunged(&message(1, 100), 1);
        assert!(space.has_garbage());
        assert!(
            !space.is_due(100, 1),
            "a fifth of the bytes, 6 % of the slots"
        );
        space.expunged(&message(1, 100), 1);
        assert!(
            space.is_due(100, 300),
            "three tenths, and at least 300 bytes"
        );
        assert!(!space.is_due(100, 301) && !space.is_due(100, 10_000));
        assert!(
            !space.is_due(37, 2308) && space.is_due(36, 2304),
            "9 slots of 36"
        );
        let left = space.segments()[0];
        assert_eq!(
            (left.bytes, left.dead_bytes, left.live_count),
            (1000, 300, 7)
        );
        space.deleted(MailboxId::SENT);
        assert_eq!(space.segments()[0].live_count, 7);
        space.deleted(MailboxId::INBOX);
        assert_eq!(space.segments()[0].live_bytes(), 0);
        space.forget(1);
        assert_eq!(space.garbage_bytes(), (9 + 14) * 64);
        assert!(!space.is_alive(1) && space.segments()[0].is_empty());
    }

    #[test]
    fn what_a_new_generation_keeps_of_a_dead_message_is_no_garbage() {
        let mut space = Space::default();
        space.stored(&message(1, 1000));
        space.stored(&message(1, 100));
        space.expunged(&message(1, 100), 0);
        assert!(
            !space.is_due(12, 1),
            "else it would be written again and again"
        );
    }

    #[test]
    fn a_new_generation_catches_up() {
        let mut old = Space::default();
        old.stored(&message(1, 100));
        old.remember();
        let mut new = Space::default();
        new.stored(&message(2, 100));
        old.stored(&message(3, 50));
        old.expunged(&message(1, 100), 0);
        old.changed(1);
        new.catch_up(
            &mut old,
            |place| if place.segment == 1 { 2 } else { place.segment },
        );
        let found: Vec<_> = new
            .segments()
            .iter()
            .map(|known| (known.segment, known.live_count))
            .collect();
        assert_eq!(found, [(2, 0), (3, 1)]);
        assert_eq!(new.garbage_bytes(), 100 + 64);
        old.changed(1);
        new.catch_up(&mut old, |place| place.segment);
        assert_eq!(new.garbage_bytes(), 100 + 64, "it remembers no more");
    }

    #[test]
    fn large_messages_leave_slots_alone() {
        let large = Msg {
            format_flags: OWN_FILE,
            ..message(3, 100_000)
        };
        let mut space = Space::default();
        space.stored(&large);
        space.expunged(&large, 0);
        assert!(space.segments().is_empty());
        assert_eq!(space.garbage_bytes(), 128);
    }
}
