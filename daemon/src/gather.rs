//! How long an open batch waits for more: what a core knows of the mail that its answers bring
//! (decision 0014). Arithmetic only; the core's loop asks it and does the waiting.

use ringpost_engine::request::MonotonicNs;

/// A batch gathers at most so long, ns: half of what a durable write takes on a slow device.
pub const GATHER_NS_MAX: u64 = 500_000;

/// Who had a message answered often has another one: an MTA empties its queue over a few
/// connections. An open batch waits for most of those whose answers just went out, but no longer than
/// the last durable write took, so that waiting at most doubles a latency and a lone message never
/// waits.
#[derive(Clone, Copy, Debug)]
pub struct Returns {
    /// Appends answered by the last durable write.
    answered: u64,
    /// Requests taken before they were.
    taken: u64,
    /// When that was.
    at: MonotonicNs,
    /// When the last batch went to the disk.
    sealed_at: MonotonicNs,
    patience_ns: u64,
}

impl Returns {
    /// Before the first batch: nothing is expected.
    pub const NONE: Self = Self {
        answered: 0,
        taken: 0,
        at: MonotonicNs::new(0),
        sealed_at: MonotonicNs::new(0),
        patience_ns: 0,
    };

    /// A batch went to the disk.
    #[must_use]
    pub const fn sealed(self, now: MonotonicNs) -> Self {
        Self {
            sealed_at: now,
            ..self
        }
    }

    /// So many appends were answered; `taken` requests had come until then.
    #[must_use]
    pub fn answered(self, answered: u64, taken: u64, now: MonotonicNs) -> Self {
        Self {
            answered,
            taken,
            at: now,
            sealed_at: self.sealed_at,
            patience_ns: now.since(self.sealed_at).min(GATHER_NS_MAX),
        }
    }

    /// Whether mail of those who were answered may still be on its way: fewer than seven eighths of
    /// them have sent some, and the wait is not too long.
    pub fn are_due(&self, taken: u64, now: MonotonicNs) -> bool {
        let back = taken.saturating_sub(self.taken);
        back.saturating_mul(8) < self.answered.saturating_mul(7)
            && now.since(self.at) < self.patience_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ns: u64) -> MonotonicNs {
        MonotonicNs::new(ns)
    }

    #[test]
    fn nothing_is_expected_before_the_first_answer() {
        assert!(!Returns::NONE.are_due(0, at(1)));
        assert!(!Returns::NONE.sealed(at(5)).are_due(9, at(6)));
    }

    #[test]
    fn most_of_those_who_were_answered_are_waited_for_as_long_as_the_write_took() {
        let returns = Returns::NONE
            .sealed(at(1_000))
            .answered(8, 100, at(101_000));
        assert!(returns.are_due(106, at(101_000)));
        assert!(
            !returns.are_due(107, at(101_000)),
            "seven eighths are enough"
        );
        assert!(returns.are_due(100, at(200_999)));
        assert!(!returns.are_due(100, at(201_000)), "the write took 100 us");
    }

    #[test]
    fn a_slow_write_is_not_waited_for_as_long() {
        let returns = Returns::NONE.sealed(at(0)).answered(8, 0, at(90_000_000));
        assert!(!returns.are_due(0, at(90_000_000 + GATHER_NS_MAX)));
    }

    #[test]
    fn a_lone_message_does_not_wait() {
        let returns = Returns::NONE.sealed(at(0)).answered(1, 1, at(100_000));
        assert!(
            !returns.are_due(2, at(150_000)),
            "it is the one that was due"
        );
        assert!(!returns.are_due(1, at(1_000_000)), "nobody is due any more");
    }
}
