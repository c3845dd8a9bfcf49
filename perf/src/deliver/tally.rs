//! What a generator thread saw, and how threads' accounts add up.

use std::collections::BTreeMap;
use std::time::Duration;

use super::plan::Plan;
use super::session::Outcome;
use crate::hist::Latencies;
use crate::schedule::Arrivals;
use crate::workload::Letter;

/// Different error texts that are kept; the rest are counted under one name.
const ERROR_TEXTS_MAX: usize = 32;

/// Messages to watched users that one thread remembers; their bytes are rebuilt for the comparison.
const WATCHED_COUNT_MAX: usize = 4096;

/// The same in bytes.
const WATCHED_BYTES_MAX: usize = 64 << 20;

/// Messages that were never sent are counted up to here: it bounds the counting.
const OVERDUE_MAX: u64 = 10_000_000;

/// A message to a watched user, fetched and compared after the run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Watched {
    /// Index of the user.
    pub(crate) user: usize,
    /// Which of the thread's letters.
    pub(crate) letter: usize,
    /// Its serial.
    pub(crate) serial: u64,
}

/// The account of one thread, or of all.
#[derive(Debug)]
pub(crate) struct Tally {
    /// Of messages all of whose recipients were stored, in the measured window.
    pub(crate) latencies: Latencies,
    /// Messages wholly stored in the measured window.
    pub(crate) messages: u64,
    /// Recipients stored in the measured window.
    pub(crate) recipients: u64,
    /// Recipients stored in the whole run, warm-up and drain included.
    pub(crate) recipients_all: u64,
    /// Recipients stored since the window opened, drain included: what its counters are divided by.
    pub(crate) recipients_since: u64,
    /// Messages wholly stored since then.
    pub(crate) messages_since: u64,
    /// Messages sent in the whole run.
    pub(crate) sent: u64,
    /// Recipients answered as duplicates.
    pub(crate) duplicates: u64,
    /// Recipients refused or left without an answer, by text.
    pub(crate) errors: BTreeMap<String, u64>,
    /// Stored per user, whole run.
    pub(crate) stored_by_user: Vec<u32>,
    /// Refused, unanswered or duplicate per user: may or may not be in the mailbox.
    pub(crate) doubtful_by_user: Vec<u32>,
    /// Messages wholly stored in each second since the start, warm-up and drain included.
    pub(crate) timeline: Vec<u64>,
    /// Open loop: the longest that a message waited for a free place before it was sent.
    pub(crate) late_max: Duration,
    /// Open loop: messages that were due and never sent, because no place became free in time.
    pub(crate) overdue: u64,
    /// Stored messages of watched users, by thread.
    pub(crate) watched: Vec<(Vec<Letter>, Vec<Watched>)>,
    watching: Vec<Watched>,
    /// Whether every stored message of the watched users is in `watched`.
    pub(crate) watched_all: bool,
    /// Whether the run ended early because the cap on bytes was met.
    pub(crate) capped: bool,
}

impl Tally {
    /// Empty, for this many users.
    pub(crate) fn new(users_count: usize) -> Self {
        Self {
            latencies: Latencies::new(),
            messages: 0,
            recipients: 0,
            recipients_all: 0,
            recipients_since: 0,
            messages_since: 0,
            sent: 0,
            duplicates: 0,
            errors: BTreeMap::new(),
            stored_by_user: vec![0; users_count],
            doubtful_by_user: vec![0; users_count],
            timeline: Vec::new(),
            late_max: Duration::ZERO,
            overdue: 0,
            watched: Vec::new(),
            watching: Vec::new(),
            watched_all: true,
            capped: false,
        }
    }

    /// Counts one recipient's outcome, `elapsed` after the start.
    pub(crate) fn count_recipient(
        &mut self,
        plan: &Plan,
        to: Watched,
        outcome: &Outcome,
        elapsed: Duration,
    ) {
        let counts = match outcome {
            Outcome::Stored => {
                self.recipients_all += 1;
                self.recipients += u64::from(plan.is_measured(elapsed));
                self.recipients_since += u64::from(plan.window.is_open(elapsed));
                if plan.is_watched(to.user) {
                    self.watch(plan, to);
                }
                &mut self.stored_by_user
            }
            Outcome::Duplicate => {
                self.duplicates += 1;
                &mut self.doubtful_by_user
            }
            Outcome::Refused(text) => {
                self.count_error(text, 1);
                &mut self.doubtful_by_user
            }
        };
        if let Some(count) = counts.get_mut(to.user) {
            *count += 1;
        }
    }

    /// Open loop, at the end: what was due and never sent is counted, and as having waited until
    /// `elapsed` at least, else an overloaded daemon would look fast.
    pub(crate) fn count_overdue(
        &mut self,
        plan: &Plan,
        arrivals: Option<Arrivals>,
        elapsed: Duration,
    ) {
        let Some(mut arrivals) = arrivals.filter(|_| !self.capped) else {
            return;
        };
        while arrivals.peek() < plan.end() && self.overdue < OVERDUE_MAX {
            let Some(due) = arrivals.take(plan.end()) else {
                return;
            };
            self.overdue += 1;
            if plan.is_measured(due) {
                self.latencies.record(elapsed.saturating_sub(due));
            }
        }
    }

    fn watch(&mut self, plan: &Plan, to: Watched) {
        let bytes = plan.size.mean().saturating_mul(self.watching.len());
        if self.watching.len() < WATCHED_COUNT_MAX && bytes < WATCHED_BYTES_MAX {
            self.watching.push(to);
        } else {
            self.watched_all = false;
        }
    }

    /// A thread's last call: its letters go with the messages that it remembered.
    pub(crate) fn close(&mut self, letters: Vec<Letter>) {
        self.watched
            .push((letters, std::mem::take(&mut self.watching)));
    }

    /// Counts errors under their text.
    pub(crate) fn count_error(&mut self, text: &str, count: u64) {
        let known = self.errors.contains_key(text) || self.errors.len() < ERROR_TEXTS_MAX;
        let text = if known { text } else { "(other texts)" };
        *self.errors.entry(text.to_owned()).or_default() += count;
    }

    /// Counts a message all of whose recipients were stored. Its latency counts from its due time,
    /// and counts if that lies in the measured window, however late the answer: a stall at the end
    /// must not hide. The rate counts answers within the window.
    pub(crate) fn count_message(&mut self, plan: &Plan, due: Duration, elapsed: Duration) {
        self.messages += u64::from(plan.is_measured(elapsed));
        self.messages_since += u64::from(plan.window.is_open(elapsed));
        if plan.is_measured(due) {
            self.latencies.record(elapsed.saturating_sub(due));
        }
        let second = usize::try_from(elapsed.as_secs()).unwrap_or(usize::MAX);
        // A run has bounded seconds, its drain too.
        if second < 1 << 20 {
            if self.timeline.len() <= second {
                self.timeline.resize(second + 1, 0);
            }
            if let Some(count) = self.timeline.get_mut(second) {
                *count += 1;
            }
        }
    }

    /// All recipients that were not plainly stored, duplicates apart.
    pub(crate) fn errors_count(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Adds another thread's account.
    pub(crate) fn merge(&mut self, other: Self) {
        self.latencies.merge(&other.latencies);
        self.messages += other.messages;
        self.recipients += other.recipients;
        self.recipients_all += other.recipients_all;
        self.recipients_since += other.recipients_since;
        self.messages_since += other.messages_since;
        self.sent += other.sent;
        self.duplicates += other.duplicates;
        for (text, count) in other.errors {
            self.count_error(&text, count);
        }
        add(&mut self.stored_by_user, &other.stored_by_user);
        add(&mut self.doubtful_by_user, &other.doubtful_by_user);
        if self.timeline.len() < other.timeline.len() {
            self.timeline.resize(other.timeline.len(), 0);
        }
        for (sum, count) in self.timeline.iter_mut().zip(other.timeline) {
            *sum += count;
        }
        self.late_max = self.late_max.max(other.late_max);
        self.overdue += other.overdue;
        self.watched.extend(other.watched);
        self.watched_all &= other.watched_all;
        self.capped |= other.capped;
    }
}

fn add(sums: &mut [u32], counts: &[u32]) {
    for (sum, count) in sums.iter_mut().zip(counts) {
        *sum += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deliver::window::Window;

    fn to(user: usize) -> Watched {
        Watched {
            user,
            letter: 0,
            serial: 0,
        }
    }

    #[test]
    fn accounts_of_threads_add_up() {
        let plan = Plan::tiny(3);
        let mut all = Tally::new(3);
        for thread in 0..2 {
            let mut tally = Tally::new(3);
            let elapsed = Duration::from_millis(500);
            tally.count_recipient(&plan, to(thread), &Outcome::Stored, elapsed);
            let refused = Outcome::Refused("451 busy".to_owned());
            tally.count_recipient(&plan, to(2), &refused, elapsed);
            tally.count_recipient(&plan, to(2), &Outcome::Duplicate, elapsed);
            let elapsed = Duration::from_secs(u64::try_from(thread).unwrap() * 2);
            tally.count_message(&plan, Duration::ZERO, elapsed);
            tally.close(Vec::new());
            all.merge(tally);
        }
        assert_eq!(all.stored_by_user, [1, 1, 0]);
        assert_eq!(all.doubtful_by_user, [0, 0, 4]);
        assert_eq!(all.timeline, [1, 0, 1]);
        assert_eq!(
            (all.recipients_all, all.duplicates, all.errors_count()),
            (2, 2, 2)
        );
        assert_eq!(
            all.watched
                .iter()
                .map(|(_, watched)| watched.len())
                .sum::<usize>(),
            2
        );
    }

    #[test]
    fn rate_counts_answers_in_the_window_and_latency_what_was_due_in_it() {
        let mut plan = Plan::tiny(1);
        plan.window = Window::at(Duration::from_secs(1), Duration::from_secs(1));
        let mut tally = Tally::new(1);
        let at = Duration::from_millis;
        for (due, answered) in [(100, 900), (900, 1100), (1200, 1300), (1900, 9000)] {
            tally.count_message(&plan, at(due), at(answered));
        }
        assert_eq!((tally.messages, tally.messages_since), (2, 3));
        let summary = tally.latencies.summary();
        assert_eq!(summary.count, 2);
        assert!(summary.max_us > 7_000_000.0);
    }

    #[test]
    fn watching_is_bounded_and_says_so() {
        let plan = Plan::tiny(1);
        let mut tally = Tally::new(1);
        for _ in 0..=WATCHED_COUNT_MAX {
            assert!(tally.watched_all);
            tally.count_recipient(&plan, to(0), &Outcome::Stored, Duration::ZERO);
        }
        assert!(!tally.watched_all);
    }

    #[test]
    fn error_texts_are_bounded() {
        let mut tally = Tally::new(1);
        for number in 0..1000 {
            tally.count_error(&format!("error {number}"), 1);
        }
        assert_eq!(tally.errors.len(), ERROR_TEXTS_MAX + 1);
        assert_eq!(tally.errors_count(), 1000);
    }
}
