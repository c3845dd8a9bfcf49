//! Reads a daemon's metrics (`OpenMetrics` or Prometheus text over HTTP) and takes differences.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::address::Address;

/// A page of metrics is smaller; a peer that sends more is none.
const PAGE_BYTES_MAX: u64 = 4 << 20;

const PATIENCE: Duration = Duration::from_secs(10);

/// Samples by their whole name, labels included, as they stand on the page.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// Asks the admin door for `/metrics`.
    pub(crate) fn scrape(admin: &Address) -> anyhow::Result<Self> {
        let mut stream = admin.connect()?;
        stream.bound(PATIENCE)?;
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: ringpost\r\nConnection: close\r\n\r\n")?;
        let mut page = Vec::new();
        stream
            .take(PAGE_BYTES_MAX)
            .read_to_end(&mut page)
            .with_context(|| format!("cannot read metrics from {admin}"))?;
        let page = String::from_utf8_lossy(&page);
        let (head, body) = page
            .split_once("\r\n\r\n")
            .context("the metrics page has no header")?;
        let status = head.split_ascii_whitespace().nth(1);
        ensure!(
            status == Some("200"),
            "{admin} answered: {}",
            head.lines().next().unwrap_or("")
        );
        Ok(Self::parse(body))
    }

    /// Takes the samples out of a page; comments and lines that are none are passed over.
    pub(crate) fn parse(page: &str) -> Self {
        let sample = |line: &str| {
            let line = line.trim();
            if line.starts_with('#') {
                return None;
            }
            // A label's value may contain blanks, so the value is looked for behind the labels.
            let split = line.find('}').map(|at| at + 1).or_else(|| line.find(' '))?;
            let (name, rest) = line.split_at_checked(split)?;
            let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
            Some((name.to_owned(), value))
        };
        Self(page.lines().filter_map(sample).collect())
    }

    /// What was added since `before`; a sample that was not there counts from 0.
    #[must_use]
    pub(crate) fn since(&self, before: &Self) -> Self {
        let difference = |(name, value): (&String, &f64)| {
            (
                name.clone(),
                value - before.0.get(name).copied().unwrap_or(0.0),
            )
        };
        Self(self.0.iter().map(difference).collect())
    }

    /// The sum over all labels of a sample, of those whose labels contain `label` (all if empty);
    /// `None` if there is none.
    pub(crate) fn sum(&self, name: &str, label: &str) -> Option<f64> {
        let mut values = self
            .series(name)
            .filter(|(labels, _)| labels.contains(label))
            .map(|(_, value)| value)
            .peekable();
        values.peek()?;
        Some(values.sum())
    }

    /// The mean of a histogram or summary: `_sum` by `_count`. `None` if nothing was observed.
    pub(crate) fn mean(&self, name: &str) -> Option<f64> {
        let count = self.sum(&format!("{name}_count"), "")?;
        let sum = self.sum(&format!("{name}_sum"), "")?;
        (count > 0.0).then(|| sum / count)
    }

    /// A quantile of a histogram over all other labels: the upper edge of the bucket it falls in.
    pub(crate) fn quantile(&self, name: &str, quantile: f64) -> Option<f64> {
        let total = self.sum(&format!("{name}_count"), "")?;
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        for (labels, value) in self.series(&format!("{name}_bucket")) {
            let edge = label_value(labels, "le")?;
            let edge = if edge == "+Inf" {
                f64::INFINITY
            } else {
                edge.parse().ok()?
            };
            match buckets
                .iter_mut()
                .find(|(known, _)| known.total_cmp(&edge).is_eq())
            {
                Some((_, sum)) => *sum += value,
                None => buckets.push((edge, value)),
            }
        }
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        if total <= 0.0 {
            return None;
        }
        let wanted = quantile * total;
        buckets
            .iter()
            .find(|(_, count)| *count >= wanted)
            .map(|(edge, _)| *edge)
    }

    fn series<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        self.0.iter().filter_map(move |(key, value)| {
            let labels = key.strip_prefix(name)?;
            (labels.is_empty() || labels.starts_with('{')).then_some((labels, *value))
        })
    }
}

fn label_value<'a>(labels: &'a str, label: &str) -> Option<&'a str> {
    let mut parts = labels.trim_matches(['{', '}']).split(',');
    parts.find_map(|part| {
        let (name, value) = part.split_once('=')?;
        (name.trim() == label).then(|| value.trim_matches('"'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    const PAGE: &str = "\
# HELP ringpost_flushes Durable writes.\n\
# TYPE ringpost_flushes counter\n\
ringpost_flushes_total{kind=\"log\",core=\"0\"} 10\n\
ringpost_flushes_total{kind=\"log\",core=\"1\"} 5\n\
ringpost_flushes_total{kind=\"large file\"} 3\n\
ringpost_flushes_totally_other 99\n\
ringpost_batch_messages_sum 300\n\
ringpost_batch_messages_count 15\n\
ringpost_log_write_seconds_bucket{core=\"0\",le=\"0.0001\"} 5\n\
ringpost_log_write_seconds_bucket{core=\"0\",le=\"0.001\"} 9\n\
ringpost_log_write_seconds_bucket{core=\"0\",le=\"+Inf\"} 10\n\
ringpost_log_write_seconds_bucket{core=\"1\",le=\"0.0001\"} 10\n\
ringpost_log_write_seconds_bucket{core=\"1\",le=\"0.001\"} 10\n\
ringpost_log_write_seconds_bucket{core=\"1\",le=\"+Inf\"} 10\n\
ringpost_log_write_seconds_count 20\n\
ringpost_log_write_seconds_sum 0.002\n\
# EOF\n";

    fn close(a: Option<f64>, b: f64) -> bool {
        a.is_some_and(|a| (a - b).abs() < 1e-9)
    }

    #[test]
    fn samples_are_summed_over_labels() {
        let metrics = Metrics::parse(PAGE);
        assert!(close(metrics.sum("ringpost_flushes_total", ""), 18.0));
        assert!(close(
            metrics.sum("ringpost_flushes_total", "kind=\"log\""),
            15.0
        ));
        assert_eq!(metrics.sum("ringpost_nothing", ""), None);
        assert!(close(metrics.mean("ringpost_batch_messages"), 20.0));
        assert!(close(
            metrics.quantile("ringpost_log_write_seconds", 0.5),
            0.0001
        ));
        assert!(close(
            metrics.quantile("ringpost_log_write_seconds", 0.9),
            0.001
        ));
        assert_eq!(
            metrics.quantile("ringpost_log_write_seconds", 1.0),
            Some(f64::INFINITY)
        );
    }

    #[test]
    fn differences_count_new_samples_from_zero() {
        let before = Metrics::parse("a 1\nb{c=\"d\"} 2\n");
        let after = Metrics::parse("a 4\nb{c=\"d\"} 2\ne 7 1234567\n");
        let delta = after.since(&before);
        assert!(close(delta.sum("a", ""), 3.0));
        assert!(close(delta.sum("b", ""), 0.0));
        assert!(close(delta.sum("e", ""), 7.0));
    }

    #[test]
    fn a_page_is_fetched_over_a_unix_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            for status in ["200 OK", "404 Not Found"] {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 1024];
                assert!(stream.read(&mut request).unwrap() > 0);
                write!(stream, "HTTP/1.1 {status}\r\nA: b\r\n\r\nx 5\n").unwrap();
            }
        });
        let address = Address::from(path.as_path());
        assert!(close(Metrics::scrape(&address).unwrap().sum("x", ""), 5.0));
        let error = Metrics::scrape(&address).unwrap_err();
        assert!(error.to_string().contains("404"), "{error}");
        server.join().unwrap();
    }
}
