//! What one cell of a run is to do: the load's parameters, fixed before its clock starts.

use std::sync::Arc;
use std::time::Duration;

use super::session::Outcome;
use super::window::{WarmUp, Window};
use crate::letters::{Letters, Size};
use crate::schedule::Pace;
use crate::workload::{LineEnd, Popularity, Users};

/// Users whose mailboxes are fetched and compared byte for byte at the end.
pub(crate) const WATCHED_USERS_COUNT: usize = 16;

/// Whether messages differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Serials {
    /// Each has serial numbers of its own: never a duplicate.
    Fresh,
    /// Each place of the generator sends one letter again and again: the duplicate filter at work.
    Repeated,
}

/// Which users a message goes to.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Visit {
    /// Drawn by seed, evenly.
    Drawn,
    /// Drawn by seed, some more often than others.
    Skewed(Arc<Popularity>),
    /// One after the other: after `users / recipients` messages each has had one.
    InTurn,
}

/// Everything the generator needs to know.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Who gets mail.
    pub(crate) users: Users,
    /// Bytes of a message.
    pub(crate) size: Size,
    /// As the door under test gets it.
    pub(crate) line_end: LineEnd,
    /// Recipients of a message.
    pub(crate) recipients: usize,
    /// Which they are.
    pub(crate) visit: Visit,
    /// Closed or open loop.
    pub(crate) pace: Pace,
    /// Messages sent and not answered, at most.
    pub(crate) in_flight: usize,
    /// Load that is not measured, at the start.
    pub(crate) warm_up: WarmUp,
    /// When load is measured, behind it.
    pub(crate) window: Window,
    /// How long answers may take after that.
    pub(crate) drain_max: Duration,
    /// Of all randomness.
    pub(crate) seed: u64,
    /// Different for every run, so that its messages are no duplicates of an earlier run's.
    pub(crate) run: u64,
    /// Users whose mailboxes are compared at the end, at most.
    pub(crate) watched_users: usize,
    /// Whether messages differ.
    pub(crate) serials: Serials,
    /// The run ends early when this many bytes were sent: it must not fill the disk.
    pub(crate) bytes_max: u64,
}

impl Plan {
    /// When the last message is sent, from the start.
    pub(crate) fn end(&self) -> Duration {
        self.window.end()
    }

    /// The recipients of the message before which `sent` were sent.
    pub(crate) fn draw(&self, sent: u64, random: &mut fastrand::Rng, drawn: &mut Vec<usize>) {
        match &self.visit {
            Visit::Drawn => self.users.draw(self.recipients, None, random, drawn),
            Visit::Skewed(popularity) => {
                let popularity = Some(&**popularity);
                self.users.draw(self.recipients, popularity, random, drawn);
            }
            Visit::InTurn => {
                let count = self.recipients.min(self.users.count());
                let sent = usize::try_from(sent).unwrap_or(0);
                let first = sent.wrapping_mul(count) % self.users.count();
                let turn = |step| (first + step) % self.users.count();
                drawn.clear();
                drawn.extend((0..count).map(turn));
            }
        }
    }

    /// Zipf's exponent, if some users get more mail than others.
    pub(crate) fn zipf(&self) -> Option<f64> {
        match &self.visit {
            Visit::Skewed(popularity) => Some(popularity.exponent),
            Visit::Drawn | Visit::InTurn => None,
        }
    }

    /// Whether a moment is in the measured window.
    pub(crate) fn is_measured(&self, elapsed: Duration) -> bool {
        self.window.contains(elapsed)
    }

    /// Whether a user's mailbox is compared at the end. User 0 always is.
    pub(crate) fn is_watched(&self, user: usize) -> bool {
        user.is_multiple_of(self.users.count().div_ceil(self.watched_users))
    }

    /// Whether an outcome is what was to be expected: a duplicate is, of a repeated letter.
    pub(crate) fn is_success(&self, outcome: &Outcome) -> bool {
        match outcome {
            Outcome::Stored => true,
            Outcome::Duplicate => self.serials == Serials::Repeated,
            Outcome::Refused(_) => false,
        }
    }

    /// The letters of a thread, for so many messages under way.
    pub(crate) fn letters(&self, thread: usize, places: usize) -> anyhow::Result<Letters> {
        let seed = u64::try_from(thread * self.in_flight)?;
        let seed = self.seed.wrapping_add(seed);
        Letters::new((self.size, self.line_end), (self.run, seed), places)
    }

    /// A plan for tests: everything small.
    #[cfg(test)]
    pub(crate) fn tiny(users_count: usize) -> Self {
        Self {
            users: Users::new("u", users_count),
            size: Size::Bytes(512),
            line_end: LineEnd::Lf,
            recipients: 1,
            visit: Visit::Drawn,
            pace: Pace::Closed,
            in_flight: 4,
            warm_up: WarmUp::Time(Duration::ZERO),
            window: Window::at(Duration::ZERO, Duration::from_secs(1)),
            drain_max: Duration::from_secs(10),
            seed: 1,
            run: 1,
            serials: Serials::Fresh,
            watched_users: WATCHED_USERS_COUNT,
            bytes_max: 1 << 20,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bounded_number_of_users_is_watched() {
        for count in [1, 2, 15, 16, 17, 100, 30_000] {
            let plan = Plan::tiny(count);
            let watched = (0..count).filter(|&user| plan.is_watched(user)).count();
            assert!(
                (1..=plan.watched_users).contains(&watched),
                "{count}: {watched}"
            );
        }
    }

    #[test]
    fn in_turn_each_user_is_visited_once() {
        let mut plan = Plan::tiny(6);
        plan.visit = Visit::InTurn;
        plan.recipients = 2;
        let mut random = fastrand::Rng::with_seed(1);
        let (mut drawn, mut seen) = (Vec::new(), Vec::new());
        for sent in 0..3 {
            plan.draw(sent, &mut random, &mut drawn);
            seen.extend_from_slice(&drawn);
        }
        assert_eq!(seen, [0, 1, 2, 3, 4, 5]);
    }
}
