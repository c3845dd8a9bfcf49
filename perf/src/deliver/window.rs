//! The measured part of a run, and what opens it: a time fixed beforehand, or the end of the
//! daemon's first checkpoint.
//!
//! Until it opens the load runs on the same connections and is not counted. Generator threads read
//! the opening at every answer, so it is one atomic number; [`watch`] sets it from a thread of its
//! own, which asks the daemon no more often than every [`POLL_EACH`].

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::scrape::Metrics;

/// How often the daemon is asked whether its checkpoint has ended.
const POLL_EACH: Duration = Duration::from_millis(200);

/// Checkpoints that ended, of all cores together.
pub(crate) const CHECKPOINTS: &str = "ringpost_checkpoints_total";

/// What ends the warm-up.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum WarmUp {
    /// This much load.
    Time(Duration),
    /// A checkpoint of every core, or this much load if that is sooner.
    Checkpoint(Duration),
}

/// As on the command line: seconds, or the word.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum WarmUpArg {
    /// So many.
    Seconds(f64),
    /// `checkpoint`.
    Checkpoint,
}

impl FromStr for WarmUpArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "checkpoint" {
            return Ok(Self::Checkpoint);
        }
        let seconds = text.parse().ok();
        seconds
            .filter(|seconds| (0.0..=3600.0).contains(seconds))
            .map(Self::Seconds)
            .ok_or_else(|| "seconds, 0 to 3600, or `checkpoint`".to_owned())
    }
}

/// Nanoseconds from the start of the load to the opening; the largest number until it is known.
/// Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    opens_ns: Arc<AtomicU64>,
    measured: Duration,
}

impl Window {
    /// One that opens at a time that is known.
    pub(crate) fn at(opens: Duration, measured: Duration) -> Self {
        let window = Self::unknown(measured);
        window.open(opens);
        window
    }

    /// One that somebody will open.
    pub(crate) fn unknown(measured: Duration) -> Self {
        Self {
            opens_ns: Arc::new(AtomicU64::new(u64::MAX)),
            measured,
        }
    }

    /// Fixes the opening.
    pub(crate) fn open(&self, opens: Duration) {
        let ns = u64::try_from(opens.as_nanos()).unwrap_or(u64::MAX);
        self.opens_ns.store(ns, Ordering::Relaxed);
    }

    /// From the start of the load to the opening, if that is known.
    pub(crate) fn opening(&self) -> Option<Duration> {
        let ns = self.opens_ns.load(Ordering::Relaxed);
        (ns != u64::MAX).then(|| Duration::from_nanos(ns))
    }

    /// How long it is open.
    pub(crate) fn measured(&self) -> Duration {
        self.measured
    }

    /// When the last message is sent; far away as long as nobody knows.
    pub(crate) fn end(&self) -> Duration {
        let ns = self.opens_ns.load(Ordering::Relaxed);
        Duration::from_nanos(ns).saturating_add(self.measured)
    }

    /// Whether a moment lies behind the opening.
    pub(crate) fn is_open(&self, elapsed: Duration) -> bool {
        self.opening().is_some_and(|opening| elapsed >= opening)
    }

    /// Whether a moment lies in the window.
    pub(crate) fn contains(&self, elapsed: Duration) -> bool {
        self.is_open(elapsed) && elapsed < self.end()
    }
}

/// Waits until the warm-up has ended, and opens the window. `ask` gives the daemon's metrics,
/// `before` are those of the start; `stop` is hung up when the load has ended. Whether the window is
/// open then.
pub(crate) fn watch(
    warm_up: WarmUp,
    window: &Window,
    begin: Instant,
    before: Option<&Metrics>,
    ask: &dyn Fn() -> anyhow::Result<Option<Metrics>>,
    stop: &Receiver<()>,
) -> anyhow::Result<bool> {
    let wait = |time| matches!(stop.recv_timeout(time), Err(RecvTimeoutError::Timeout));
    match warm_up {
        // It was opened before the load began.
        WarmUp::Time(time) => {
            Ok(wait(time.saturating_sub(begin.elapsed())) || begin.elapsed() >= time)
        }
        WarmUp::Checkpoint(longest) => {
            let before = before.context("a warm-up to the first checkpoint needs metrics")?;
            while begin.elapsed() < longest {
                if !wait(POLL_EACH) {
                    return Ok(false);
                }
                if ask()?.is_some_and(|now| checkpoint_ended(before, &now)) {
                    break;
                }
            }
            window.open(begin.elapsed());
            Ok(true)
        }
    }
}

/// Whether as many checkpoints ended since as there are cores: the page has their sum only, and all
/// cores fill alike.
fn checkpoint_ended(before: &Metrics, now: &Metrics) -> bool {
    let ended = now.since(before).sum(CHECKPOINTS, "");
    let cores = now.sum("ringpost_cores", "");
    matches!((ended, cores), (Some(ended), Some(cores)) if ended >= cores)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::sync::mpsc::channel;

    #[test]
    fn window_is_closed_until_somebody_opens_it() {
        let window = Window::unknown(Duration::from_secs(1));
        let shared = window.clone();
        assert!(!window.is_open(Duration::from_secs(9)) && window.opening().is_none());
        assert!(window.end() > Duration::from_hours(1_000_000));
        shared.open(Duration::from_secs(9));
        assert_eq!(window.end(), Duration::from_secs(10));
        let at = |ms| window.contains(Duration::from_millis(ms));
        assert_eq!(
            [8_999, 9_000, 9_999, 10_000].map(at),
            [false, true, true, false]
        );
        assert!(window.is_open(Duration::from_secs(11)));
    }

    #[test]
    fn words_of_the_command_line() {
        assert_eq!("checkpoint".parse(), Ok(WarmUpArg::Checkpoint));
        assert_eq!("2.5".parse(), Ok(WarmUpArg::Seconds(2.5)));
        for wrong in ["-1", "3601", "soon", ""] {
            assert!(wrong.parse::<WarmUpArg>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_last_cores_checkpoint_opens_the_window() {
        let page = |ended: u32| {
            let page = format!("ringpost_checkpoints_total {ended}\nringpost_cores 2\n");
            Metrics::parse(&page)
        };
        let asked = Cell::new(0);
        let ask = || {
            asked.set(asked.get() + 1);
            Ok(Some(page(10 + u32::from(asked.get() > 1))))
        };
        let window = Window::unknown(Duration::from_secs(1));
        let (_hold, stop) = channel();
        let warm_up = WarmUp::Checkpoint(Duration::from_mins(1));
        let before = page(9);
        let opened = watch(warm_up, &window, Instant::now(), Some(&before), &ask, &stop);
        assert!(opened.unwrap());
        assert_eq!(asked.get(), 2);
        assert!(window.opening().is_some());
    }

    #[test]
    fn a_load_that_ends_first_leaves_it_closed_and_an_upper_bound_opens_it() {
        let none = || Ok(Some(Metrics::default()));
        let window = Window::unknown(Duration::from_secs(1));
        let (hold, stop) = channel();
        drop(hold);
        let before = Metrics::default();
        let long = WarmUp::Checkpoint(Duration::from_mins(1));
        let opened = watch(long, &window, Instant::now(), Some(&before), &none, &stop);
        assert!(!opened.unwrap() && window.opening().is_none());

        let (_hold, stop) = channel();
        let short = WarmUp::Checkpoint(Duration::from_millis(1));
        let opened = watch(short, &window, Instant::now(), Some(&before), &none, &stop);
        assert!(opened.unwrap() && window.opening().is_some());
    }
}
