//! What background work may take of the disk: compaction and scrub pay from one purse (storage.md 8.5,
//! 8.6), each at its own rate, so that both together are never faster than the faster of them.

use crate::request::{MonotonicNs, Now};

/// The smallest payment, in bytes: a random read costs a seek or a queue slot whatever it brings.
const PAYMENT_MIN: u64 = 16 << 10;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Purse {
    /// What was taken is paid for from here on.
    not_before: MonotonicNs,
}

impl Purse {
    pub(super) fn new(now: MonotonicNs) -> Self {
        Self { not_before: now }
    }

    /// When there is something in it again.
    pub(super) fn due(self) -> MonotonicNs {
        self.not_before
    }

    /// Pays for `bytes`, at so many a second.
    pub(super) fn spend(&mut self, now: Now, bytes: u64, bytes_per_s: u64) {
        let bytes = u128::from(bytes.max(PAYMENT_MIN));
        let ns = bytes * 1_000_000_000 / u128::from(bytes_per_s.max(1));
        let from = self.not_before.max(now.monotonic);
        self.not_before = from.after(u64::try_from(ns).unwrap_or(u64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use ringpost_netproto::id::WallNs;

    use super::*;

    #[test]
    fn what_one_spends_the_other_waits_for() {
        let at = |monotonic| Now {
            monotonic: MonotonicNs::new(monotonic),
            wall: WallNs::new(0),
        };
        let mut purse = Purse::new(MonotonicNs::new(0));
        purse.spend(at(5), 1 << 20, 1 << 20);
        assert_eq!(purse.due().value(), 1_000_000_005);
        purse.spend(at(6), 2 << 20, 4 << 20);
        assert_eq!(purse.due().value(), 1_500_000_005, "behind what is owed");
        purse.spend(at(9_000_000_000), 1, PAYMENT_MIN);
        assert_eq!(purse.due().value(), 10_000_000_000, "and never nothing");
    }
}
