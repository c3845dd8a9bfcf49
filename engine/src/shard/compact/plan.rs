//! Which segments a compaction replaces, and where their messages go.

use std::collections::BTreeMap;

use ringpost_netproto::id::MailboxId;

use crate::space::{SegmentUse, Space};
use crate::tail::Tail;

/// Segments of one compaction; with those that it makes they fit one `INFO_SWAP` of any frame size.
const VICTIMS_MAX: usize = 1_000;

/// So many sealed segments of a mailbox that are less than a quarter full are left alone; more are
/// made one, so that their number stays bounded however often parts of them are rewritten.
const SMALL_MAX: usize = 8;

/// How much is worth copying.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Zeal {
    /// What has a fair share of garbage.
    Fair,
    /// What has any: somebody asked.
    Thorough,
}

/// Chooses segments, those with the largest share of garbage first, as long as their live messages
/// take at most `copy_max` bytes. A segment without live messages is always among them: nothing of it
/// is copied. `spared` are left alone. Ascending.
pub(super) fn victims(
    tail: &Tail,
    zeal: Zeal,
    segment_max: u64,
    copy_max: u64,
    spared: &[u32],
) -> Vec<u32> {
    let space = &tail.space;
    let small = small(tail, space, segment_max);
    let wanted = |known: &SegmentUse| {
        let garbage = match zeal {
            Zeal::Fair => known.is_stale(),
            Zeal::Thorough => known.dead_bytes > 0,
        };
        garbage
            || small
                .get(&known.mailbox)
                .is_some_and(|ids| ids.contains(&known.segment))
    };
    let known = space.segments().iter();
    let mut chosen: Vec<&SegmentUse> = known
        .filter(|known| wanted(known) && !spared.contains(&known.segment))
        .collect();
    // Shares are compared without division; sums of a user's bytes are far below 2^64.
    let share = |a: &SegmentUse, b: &SegmentUse| {
        let (a, b) = (
            u128::from(a.dead_bytes) * u128::from(b.bytes),
            u128::from(b.dead_bytes) * u128::from(a.bytes),
        );
        b.cmp(&a)
    };
    chosen.sort_by(|a, b| share(a, b));
    let mut copied = 0;
    let mut victims: Vec<u32> = chosen
        .into_iter()
        .filter(|known| {
            let fits = known.live_count == 0 || copied + known.live_bytes() <= copy_max;
            copied += if fits { known.live_bytes() } else { 0 };
            fits
        })
        .map(|known| known.segment)
        .take(VICTIMS_MAX)
        .collect();
    victims.sort_unstable();
    victims
}

/// By mailbox, its small sealed segments, if they are too many.
fn small(tail: &Tail, space: &Space, segment_max: u64) -> BTreeMap<MailboxId, Vec<u32>> {
    let mut small: BTreeMap<MailboxId, Vec<u32>> = BTreeMap::new();
    for known in space.segments() {
        let active = tail.mailbox(known.mailbox).map(|mailbox| mailbox.segment);
        if !known.is_empty() && known.bytes < segment_max / 4 && active != Some(known.segment) {
            small.entry(known.mailbox).or_default().push(known.segment);
        }
    }
    small.retain(|_, segments| segments.len() > SMALL_MAX);
    small
}

/// Gives copied messages their places: one mailbox to a segment, each as full as it may be.
#[derive(Debug)]
pub(super) struct Layout {
    next_segment: u32,
    segment_max: u64,
    /// The segment being filled.
    current: Option<(MailboxId, u32, u64)>,
    /// Mailbox, segment and length of each made so far.
    made: Vec<(MailboxId, u32, u64)>,
}

impl Layout {
    /// The first segment made is `next_segment`.
    pub(super) fn new(next_segment: u32, segment_max: u64) -> Self {
        Self {
            next_segment,
            segment_max,
            current: None,
            made: Vec::new(),
        }
    }

    /// The place of the next message, of so many bytes.
    pub(super) fn place(&mut self, mailbox: MailboxId, bytes: u64) -> (u32, u64) {
        let fits = self.current.filter(|(open, _, end)| {
            *open == mailbox && end.saturating_add(bytes) <= self.segment_max
        });
        let (_, segment, offset) = fits.unwrap_or_else(|| {
            self.made.extend(self.current.take());
            let segment = self.next_segment;
            self.next_segment += 1;
            (mailbox, segment, 0)
        });
        self.current = Some((mailbox, segment, offset + bytes));
        (segment, offset)
    }

    /// Above every segment made.
    pub(super) fn next_segment(&self) -> u32 {
        self.next_segment
    }

    /// Mailbox, segment and length of all that were made, ascending by segment.
    pub(super) fn finish(mut self) -> Vec<(MailboxId, u32, u64)> {
        self.made.extend(self.current.take());
        self.made
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tail::Existence;

    /// Segments of one mailbox: (bytes of live messages, bytes of dead ones).
    fn tail(segments: &[(u32, u32)]) -> Tail {
        let mut tail = Tail::blank(Existence::Created, true);
        for (number, (live, dead)) in (1..).zip(segments) {
            let msg = |bytes: u32| crate::space::tests::message(number, bytes);
            if *live > 0 {
                tail.space.stored(&msg(*live));
            }
            if *dead > 0 {
                tail.space.stored(&msg(*dead));
                tail.space.expunged(&msg(*dead), 1);
            }
        }
        tail
    }

    #[test]
    fn a_third_of_garbage_is_worth_it_and_any_if_asked() {
        let tail = tail(&[(700, 300), (710, 290), (1000, 0), (0, 500)]);
        let chosen = |zeal| victims(&tail, zeal, 1, u64::MAX, &[]);
        assert_eq!(chosen(Zeal::Fair), [1, 4]);
        assert_eq!(chosen(Zeal::Thorough), [1, 2, 4]);
        assert_eq!(victims(&tail, Zeal::Fair, 1, u64::MAX, &[4]), [1]);
    }

    #[test]
    fn little_room_takes_what_frees_most_for_the_least_copying() {
        let tail = tail(&[(600, 400), (0, 500), (100, 900), (500, 500)]);
        assert_eq!(victims(&tail, Zeal::Fair, 1, 0, &[]), [2]);
        assert_eq!(victims(&tail, Zeal::Fair, 1, 100, &[]), [2, 3]);
        assert_eq!(victims(&tail, Zeal::Fair, 1, 650, &[]), [2, 3, 4]);
        assert_eq!(victims(&tail, Zeal::Fair, 1, u64::MAX, &[]), [1, 2, 3, 4]);
    }

    #[test]
    fn many_small_segments_become_one() {
        let small = [(100, 0); SMALL_MAX];
        assert!(victims(&tail(&small), Zeal::Fair, 1000, u64::MAX, &[]).is_empty());
        let many = [(100, 0); SMALL_MAX + 1];
        let chosen = victims(&tail(&many), Zeal::Fair, 1000, u64::MAX, &[]);
        assert_eq!(chosen.len(), many.len());
    }

    #[test]
    fn a_segment_is_of_one_mailbox_and_within_its_bound() {
        let (inbox, sent) = (MailboxId::INBOX, MailboxId::SENT);
        let mut layout = Layout::new(7, 100);
        assert_eq!(layout.place(inbox, 60), (7, 0));
        assert_eq!(layout.place(inbox, 40), (7, 60));
        assert_eq!(layout.place(inbox, 1), (8, 0));
        assert_eq!(layout.place(sent, 1), (9, 0));
        assert_eq!(
            layout.place(sent, 500),
            (10, 0),
            "one larger than any segment"
        );
        assert_eq!(layout.next_segment(), 11);
        let made = [
            (inbox, 7, 100),
            (inbox, 8, 1),
            (sent, 9, 1),
            (sent, 10, 500),
        ];
        assert_eq!(layout.finish(), made);
    }
}
