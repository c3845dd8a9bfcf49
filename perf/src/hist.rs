//! Latencies in a histogram of three digits, and the few figures that are reported of it.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Longer waits are counted as this one; the drain after a run gives up far earlier.
const LATENCY_NS_MAX: u64 = 600_000_000_000;

/// One histogram, from a microsecond to ten minutes.
#[derive(Clone, Debug)]
pub(crate) struct Latencies(Histogram<u64>);

/// In microseconds.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub(crate) struct LatencySummary {
    /// How many were measured.
    pub(crate) count: u64,
    /// Half are at most this.
    pub(crate) p50_us: f64,
    /// 99 in 100.
    pub(crate) p99_us: f64,
    /// 999 in 1,000.
    pub(crate) p999_us: f64,
    /// The longest.
    pub(crate) max_us: f64,
    /// The arithmetic mean.
    pub(crate) mean_us: f64,
}

impl Latencies {
    /// Empty.
    pub(crate) fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1_000, LATENCY_NS_MAX, 3);
        Self(histogram.expect("the bounds are constants that hdrhistogram takes"))
    }

    /// Counts one.
    pub(crate) fn record(&mut self, latency: Duration) {
        self.0
            .saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(LATENCY_NS_MAX));
    }

    /// Adds another thread's.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.0
            .add(&other.0)
            .expect("all histograms here have the same bounds");
    }

    /// What is reported.
    pub(crate) fn summary(&self) -> LatencySummary {
        if self.0.is_empty() {
            return LatencySummary::default();
        }
        let at = |quantile| micros(Duration::from_nanos(self.0.value_at_quantile(quantile)));
        LatencySummary {
            count: self.0.len(),
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: at(1.0),
            mean_us: (self.0.mean() / 100.0).round() / 10.0,
        }
    }
}

/// Microseconds with one decimal.
pub(crate) fn micros(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e7).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_three_digits() {
        let mut latencies = Latencies::new();
        for us in 1..=1000 {
            latencies.record(Duration::from_micros(us));
        }
        let summary = latencies.summary();
        assert_eq!(summary.count, 1000);
        for (got, want) in [
            (summary.p50_us, 500.0),
            (summary.p99_us, 990.0),
            (summary.p999_us, 999.0),
            (summary.max_us, 1000.0),
            (summary.mean_us, 500.5),
        ] {
            assert!((got - want).abs() < 2.0, "{got} is not {want}");
        }
    }

    #[test]
    fn merged_threads_count_together_and_the_longest_wins() {
        let (mut a, mut b) = (Latencies::new(), Latencies::new());
        a.record(Duration::from_micros(10));
        b.record(Duration::from_secs(10_000));
        a.merge(&b);
        assert_eq!(a.summary().count, 2);
        assert!(a.summary().max_us > 599e6);
    }

    #[test]
    fn nothing_measured_is_all_zero() {
        assert_eq!(Latencies::new().summary(), LatencySummary::default());
    }
}
