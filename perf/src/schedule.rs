//! When messages are due: in open loop at times fixed before the run, whatever the daemon does.
//!
//! A closed loop sends the next message when an answer comes, so a stall of the daemon stops the
//! load and hides itself (coordinated omission). In open loop a message that could not be sent in
//! time keeps its due time, and its latency counts from there. Gaps are drawn from an exponential
//! distribution (independent senders), by seed.

use std::time::Duration;

/// How messages come.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Pace {
    /// The next when one is answered.
    Closed,
    /// This many a second, whatever is answered.
    Open {
        /// Messages per second, above 0.
        rate: f64,
    },
}

/// The due times of one generator thread, ascending, from the start of the run.
#[derive(Clone, Debug)]
pub(crate) struct Arrivals {
    random: fastrand::Rng,
    mean_gap: Duration,
    next: Duration,
}

impl Arrivals {
    /// `None` for a closed loop. `share` threads divide the rate, each with a seed of its own.
    pub(crate) fn new(pace: Pace, share: u32, seed: u64) -> Option<Self> {
        let Pace::Open { rate } = pace else {
            return None;
        };
        let mut arrivals = Self {
            random: fastrand::Rng::with_seed(seed),
            mean_gap: Duration::try_from_secs_f64(f64::from(share) / rate).unwrap_or(Duration::MAX),
            next: Duration::ZERO,
        };
        arrivals.advance();
        Some(arrivals)
    }

    /// The next due time that was not taken yet.
    pub(crate) fn peek(&self) -> Duration {
        self.next
    }

    /// Takes a due time if it is not after `elapsed`.
    pub(crate) fn take(&mut self, elapsed: Duration) -> Option<Duration> {
        let due = self.next;
        if due > elapsed {
            return None;
        }
        self.advance();
        Some(due)
    }

    fn advance(&mut self) {
        // In (0, 1]; its logarithm is at most 0 and finite.
        let chance = 1.0 - self.random.f64();
        let gap = self.mean_gap.as_secs_f64() * -chance.ln();
        let gap = Duration::try_from_secs_f64(gap).unwrap_or(Duration::MAX);
        self.next = self.next.saturating_add(gap);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(rate: f64, share: u32, seed: u64) -> Arrivals {
        Arrivals::new(Pace::Open { rate }, share, seed).unwrap()
    }

    #[test]
    fn closed_loop_has_no_due_times() {
        assert!(Arrivals::new(Pace::Closed, 1, 1).is_none());
    }

    #[test]
    fn due_times_depend_on_the_seed_alone() {
        let times = |seed| {
            let mut arrivals = open(1000.0, 1, seed);
            (0..100)
                .map(|_| arrivals.take(Duration::MAX).unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(times(7), times(7));
        assert_ne!(times(7), times(8));
        assert!(times(7).is_sorted());
    }

    #[test]
    fn two_threads_keep_the_rate_together() {
        let second = Duration::from_secs(10);
        let count: u32 = (0..2)
            .map(|seed| {
                let mut arrivals = open(5000.0, 2, seed);
                let mut count = 0;
                while arrivals.take(second).is_some() {
                    count += 1;
                }
                count
            })
            .sum();
        // 50,000 expected, standard deviation 224.
        assert!((48_800..51_200).contains(&count), "{count}");
    }

    #[test]
    fn late_messages_keep_their_due_time() {
        let mut arrivals = open(1000.0, 1, 3);
        let due = arrivals.peek();
        assert_eq!(
            arrivals.take(due.checked_sub(Duration::from_nanos(1)).unwrap()),
            None
        );
        assert_eq!(arrivals.take(due + Duration::from_secs(3)), Some(due));
    }
}
