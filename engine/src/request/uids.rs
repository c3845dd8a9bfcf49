//! Sets of uids, as IMAP and POP3 name messages (RFC 9051 9, `sequence-set`).

use ringpost_netproto::id::Uid;
use smallvec::SmallVec;

/// The uids `low..=high`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct UidRange {
    /// First, not 0.
    pub low: u32,
    /// Last, not below `low`.
    pub high: u32,
}

impl UidRange {
    /// Whether a uid lies in it.
    pub const fn contains(self, uid: Uid) -> bool {
        self.low <= uid.value() && uid.value() <= self.high
    }

    /// How many uids it has.
    pub fn count(self) -> u64 {
        u64::from(self.high - self.low) + 1
    }
}

/// Uids in ranges: ascending, disjoint, not touching. Whether a message has a uid is not its
/// concern: operations on a set pass over uids that no message has.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct UidSet(SmallVec<[UidRange; 1]>);

impl UidSet {
    /// No uid.
    pub fn none() -> Self {
        Self::default()
    }

    /// Every uid there can be (`1:*`).
    pub fn all() -> Self {
        Self::range(1, u32::MAX)
    }

    /// One uid.
    pub fn one(uid: Uid) -> Self {
        Self::range(uid.value(), uid.value())
    }

    /// The uids between two numbers, both included, in any order. 0 is no uid and left out.
    pub fn range(a: u32, b: u32) -> Self {
        std::iter::once((a, b)).collect()
    }

    /// Ascending, disjoint, not touching.
    pub fn ranges(&self) -> &[UidRange] {
        &self.0
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many uids.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|range| range.count()).sum()
    }

    /// Whether a uid is in it.
    pub fn contains(&self, uid: Uid) -> bool {
        let behind = self.0.partition_point(|range| range.high < uid.value());
        self.0.get(behind).is_some_and(|range| range.contains(uid))
    }

    /// The uids, ascending. Of a set that is as large as its messages only: [`Self::all`] has four
    /// billion.
    pub fn iter(&self) -> impl Iterator<Item = Uid> + '_ {
        let uids = |range: &UidRange| range.low..=range.high;
        self.0.iter().flat_map(uids).map(Uid::new)
    }

    /// Adds a uid above all others, or the last one again.
    pub(crate) fn push(&mut self, uid: Uid) {
        self.push_range(uid.value(), uid.value());
    }

    /// Adds a range that begins above the last one's start.
    pub(crate) fn push_range(&mut self, low: u32, high: u32) {
        match self.0.last_mut() {
            Some(last) if low <= last.high.saturating_add(1) => last.high = last.high.max(high),
            _ => self.0.push(UidRange { low, high }),
        }
    }
}

/// From pairs in any order, overlapping or not; each may stand either way round.
impl FromIterator<(u32, u32)> for UidSet {
    fn from_iter<T: IntoIterator<Item = (u32, u32)>>(pairs: T) -> Self {
        let ordered = |(a, b): (u32, u32)| (a.min(b).max(1), a.max(b));
        let mut pairs: Vec<_> = pairs
            .into_iter()
            .filter(|(a, b)| *a.max(b) > 0)
            .map(ordered)
            .collect();
        pairs.sort_unstable();
        let mut set = Self::default();
        for (low, high) in pairs {
            set.push_range(low, high);
        }
        set
    }
}

/// From single uids in any order.
impl FromIterator<Uid> for UidSet {
    fn from_iter<T: IntoIterator<Item = Uid>>(uids: T) -> Self {
        uids.into_iter()
            .map(|uid| (uid.value(), uid.value()))
            .collect()
    }
}

/// `1:3,7`, as IMAP writes it.
impl std::fmt::Display for UidSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (number, range) in self.0.iter().enumerate() {
            if number > 0 {
                f.write_str(",")?;
            }
            match range {
                UidRange { low, high } if low == high => write!(f, "{low}")?,
                UidRange { low, high } => write!(f, "{low}:{high}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_sorted_and_joined() {
        let set: UidSet = [(7, 7), (3, 1), (4, 5), (0, 0), (9, 8)]
            .into_iter()
            .collect();
        assert_eq!(set.to_string(), "1:5,7:9");
        assert_eq!(set.count(), 8);
        assert!(set.contains(Uid::new(5)) && !set.contains(Uid::new(6)));
        assert!(!set.contains(Uid::new(10)));
        assert_eq!(UidSet::all().count(), u64::from(u32::MAX));
        assert!(UidSet::range(0, 0).is_empty());
        assert_eq!(UidSet::range(0, 2).to_string(), "1:2");
        let top: UidSet = [(u32::MAX, 5), (u32::MAX, u32::MAX)].into_iter().collect();
        assert_eq!(top.ranges().len(), 1);
    }
}
