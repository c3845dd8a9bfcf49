//! What a run's figures become: a line of JSON for machines, a row of a table for people, and the
//! median of several runs.
//!
//! `results/README.md` explains the fields; a test there compares the names.

use std::collections::BTreeMap;

use serde::Serialize;

use super::measure::Findings;
use crate::deliver::plan::Plan;
use crate::deliver::verify::Verification;
use crate::environment::Environment;
use crate::hist::LatencySummary;
use crate::letters::Size;
use crate::process::stolen_remark;
use crate::table;

/// One line of `results/*.ndjson`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct RunReport {
    /// What kind of line it is.
    pub(crate) kind: &'static str,
    /// Where it was measured.
    #[serde(flatten)]
    pub(crate) environment: Environment,
    /// What was asked for.
    #[serde(flatten)]
    pub(crate) parameters: Parameters,
    /// What came of it.
    #[serde(flatten)]
    pub(crate) figures: Figures,
    /// What would be possible, of the same call.
    #[serde(flatten)]
    pub(crate) limits: Limits,
    /// What the store gave back.
    pub(crate) verification: Verification,
    /// What went wrong besides.
    pub(crate) faults: Vec<String>,
    /// Whether nothing went wrong at all.
    pub(crate) good: bool,
}

/// What was asked for.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Parameters {
    /// Name of the system.
    pub(crate) system: String,
    /// Its packages' versions; ours is the commit.
    pub(crate) version: String,
    /// Bytes of a message.
    pub(crate) size: Size,
    /// Messages sent and not answered.
    pub(crate) in_flight: usize,
    /// Which run of this system with this size, from 1.
    pub(crate) round: usize,
    /// Accounts.
    pub(crate) users: usize,
    /// Measured window.
    pub(crate) seconds: f64,
    /// Load before it.
    pub(crate) warm_up_s: f64,
    /// Settings of our daemon.
    pub(crate) settings: Vec<String>,
    /// Of users and letters.
    pub(crate) seed: u64,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figures {
    /// Stored per second.
    pub(crate) messages_per_s: f64,
    /// Answered per second: of an MTA more than stored, while its queue grows.
    pub(crate) answered_per_s: f64,
    mib_per_s: f64,
    /// Of answers.
    pub(crate) latency: LatencySummary,
    sent: u64,
    acknowledged: u64,
    errors_count: u64,
    errors: BTreeMap<String, u64>,
    delivered_in_s: f64,
    flushes: Option<u64>,
    /// Flushes per message.
    pub(crate) flushes_per_message: Option<f64>,
    bytes_written: Option<u64>,
    /// Bytes written per byte of the messages.
    pub(crate) bytes_written_per_byte: Option<f64>,
    /// CPU time of the whole system under test.
    pub(crate) cpu_us_per_message: Option<f64>,
    generator_cpu_us_per_message: Option<f64>,
}

/// What would be possible, of the same call.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Limits {
    /// Median of a durable write of 4 KiB, alone.
    pub(crate) flush_us: Option<f64>,
    /// A perfect group commit of the bytes alone, on this disk.
    pub(crate) disk_messages_per_s: Option<f64>,
    /// Bare sockets, the same size and connections.
    pub(crate) echo_messages_per_s: Option<f64>,
    /// The run's rate divided by the nearer of both.
    pub(crate) of_nearest_limit: Option<f64>,
    /// The part of the processors' time that the hypervisor withheld meanwhile.
    pub(crate) stolen_share: Option<f64>,
}

impl RunReport {
    /// Puts a run's figures together.
    pub(crate) fn new(
        environment: &Environment,
        parameters: Parameters,
        plan: &Plan,
        findings: Findings,
        mut limits: Limits,
    ) -> Self {
        let figures = Figures::new(plan, &findings);
        let nearest = [limits.disk_messages_per_s, limits.echo_messages_per_s];
        let nearest = nearest.into_iter().flatten().reduce(f64::min);
        limits.of_nearest_limit = nearest.map(|limit| thousandths(figures.messages_per_s / limit));
        limits.stolen_share = findings.stolen_share.map(thousandths);
        let tally = &findings.tally;
        let good = tally.errors_count() == 0
            && tally.duplicates == 0
            && tally.sent > 0
            && findings.verification.is_good()
            && (findings.verification.equal > 0 || !findings.kept)
            && findings.faults.is_empty();
        Self {
            kind: "peers",
            environment: environment.clone(),
            parameters,
            figures,
            limits,
            verification: findings.verification,
            faults: findings.faults,
            good,
        }
    }

    /// Heads of [`Self::row`].
    pub(crate) const HEADS: [&str; 14] = [
        "system",
        "size",
        "in flight",
        "messages/s",
        "lowest",
        "highest",
        "p50",
        "p99",
        "flushes/msg",
        "written/byte",
        "CPU us/msg",
        "disk limit/s",
        "of nearest limit",
        "read back",
    ];

    /// The row of a table, with the lowest and highest rate of all rounds.
    pub(crate) fn row(&self, lowest: f64, highest: f64) -> Vec<String> {
        let figures = &self.figures;
        let read_back = if self.good {
            table::count(self.verification.equal)
        } else {
            "WRONG".to_owned()
        };
        let percent = |part: f64| {
            let digits = usize::from(part < 0.0995);
            format!("{:.digits$} %", part * 100.0)
        };
        vec![
            self.parameters.system.clone(),
            self.parameters.size.label(),
            self.parameters.in_flight.to_string(),
            table::number(figures.messages_per_s),
            table::number(lowest),
            table::number(highest),
            table::time(figures.latency.p50_us),
            table::time(figures.latency.p99_us),
            table::maybe(figures.flushes_per_message),
            table::maybe(figures.bytes_written_per_byte),
            table::maybe(figures.cpu_us_per_message),
            table::maybe(self.limits.disk_messages_per_s),
            self.limits
                .of_nearest_limit
                .map_or_else(|| "-".to_owned(), percent),
            read_back,
        ]
    }

    /// Sentences about what went wrong, each with the run's name.
    pub(crate) fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        for (text, count) in &self.figures.errors {
            remarks.push(format!("{} times: {text}", table::count(*count)));
        }
        if !self.verification.is_good() {
            let Verification {
                missing,
                surplus,
                damaged,
                ..
            } = self.verification;
            remarks.push(format!(
                "store: {missing} missing, {surplus} surplus, {damaged} not equal"
            ));
        } else if self.verification.equal == 0 && !self.good {
            remarks.push("no message to a watched user was acknowledged".to_owned());
        }
        remarks.extend(self.verification.problems.iter().cloned());
        remarks.extend(self.faults.iter().cloned());
        remarks.extend(stolen_remark(self.limits.stolen_share));
        let Parameters {
            system,
            size,
            in_flight,
            round,
            ..
        } = &self.parameters;
        let name = format!("{system} {size} x{in_flight}, round {round}");
        remarks
            .iter()
            .map(|text| format!("{name}: {text}"))
            .collect()
    }
}

impl Figures {
    fn new(plan: &Plan, findings: &Findings) -> Self {
        let tally = &findings.tally;
        // One recipient each.
        let stored = tally.recipients_all;
        let answered = rate(tally.messages, plan.window.measured().as_secs_f64());
        let delivered_in_s = findings.delivered_in.as_secs_f64();
        // An MTA's answer says that the message is queued: what counts is when all were stored.
        let messages_per_s = if findings.queued {
            rate(stored, delivered_in_s)
        } else {
            answered
        };
        let size = float(plan.size.mean_u64());
        let each = |total: f64| (stored > 0).then(|| thousandths(total / float(stored)));
        let flushes = findings.device.map(|device| device.flushes);
        Self {
            messages_per_s,
            answered_per_s: answered,
            mib_per_s: thousandths(messages_per_s * size / 1_048_576.0),
            latency: tally.latencies.summary(),
            sent: tally.sent,
            acknowledged: tally.recipients_all,
            errors_count: tally.errors_count(),
            errors: tally.errors.clone(),
            delivered_in_s: thousandths(delivered_in_s),
            flushes,
            flushes_per_message: flushes.and_then(|count| each(float(count))),
            bytes_written: findings.written_bytes,
            bytes_written_per_byte: findings
                .written_bytes
                .and_then(|bytes| each(float(bytes) / size)),
            cpu_us_per_message: each(findings.cpu.as_secs_f64() * 1e6),
            generator_cpu_us_per_message: each(findings.generator_cpu.as_secs_f64() * 1e6),
        }
    }
}

/// Of several runs of one system the one whose rate is the median; of an even number the lower.
pub(crate) fn median<'a>(runs: &[&'a RunReport]) -> Option<&'a RunReport> {
    let mut sorted = runs.to_vec();
    sorted.sort_by(|a, b| {
        a.figures
            .messages_per_s
            .total_cmp(&b.figures.messages_per_s)
    });
    sorted.get(sorted.len().checked_sub(1)? / 2).copied()
}

fn rate(count: u64, seconds: f64) -> f64 {
    thousandths(float(count) / seconds)
}

fn float(value: u64) -> f64 {
    // Counts and bytes of a run are far below 2^53.
    let (high, low) = (value >> 32, value & 0xFFFF_FFFF);
    let part = |half: u64| u32::try_from(half).map_or(f64::INFINITY, f64::from);
    part(high) * 4_294_967_296.0 + part(low)
}

fn thousandths(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::deliver::session::Outcome;
    use crate::deliver::tally::{Tally, Watched};
    use crate::peers::device::DeviceCounts;
    use std::time::Duration;

    pub(crate) fn report(system: &str, rate: f64) -> RunReport {
        let plan = Plan::tiny(4);
        let mut report = make(&plan, false);
        report.parameters.system = system.to_owned();
        report.figures.messages_per_s = rate;
        report
    }

    fn make(plan: &Plan, queued: bool) -> RunReport {
        let mut tally = Tally::new(4);
        tally.sent = 20;
        for user in 0..20 {
            let to = Watched {
                user: user % 4,
                letter: 0,
                serial: 0,
            };
            let at = Duration::from_millis(500);
            tally.count_recipient(plan, to, &Outcome::Stored, at);
            tally.count_message(plan, at, at + Duration::from_micros(100));
        }
        let findings = Findings {
            tally,
            delivered_in: Duration::from_secs(4),
            queued,
            kept: true,
            cpu: Duration::from_millis(2),
            generator_cpu: Duration::from_millis(1),
            stolen_share: Some(0.002),
            device: Some(DeviceCounts {
                flushes: 5,
                written_bytes: 1,
            }),
            written_bytes: Some(20 * 512 * 3),
            verification: Verification {
                equal: 20,
                ..Verification::default()
            },
            faults: Vec::new(),
        };
        let parameters = Parameters {
            system: "x".to_owned(),
            version: "1".to_owned(),
            size: plan.size,
            in_flight: 4,
            round: 1,
            users: 4,
            seconds: 1.0,
            warm_up_s: 0.0,
            settings: Vec::new(),
            seed: 1,
        };
        let limits = Limits {
            flush_us: Some(100.0),
            disk_messages_per_s: Some(80.0),
            echo_messages_per_s: Some(40.0),
            of_nearest_limit: None,
            stolen_share: None,
        };
        RunReport::new(&Environment::default(), parameters, plan, findings, limits)
    }

    #[test]
    fn figures_are_per_message_and_beside_the_nearest_limit() {
        let report = make(&Plan::tiny(4), false);
        assert!(report.good);
        let figures = &report.figures;
        assert!((figures.messages_per_s - 20.0).abs() < 0.01);
        assert_eq!(figures.flushes_per_message, Some(0.25));
        assert_eq!(figures.bytes_written_per_byte, Some(3.0));
        assert_eq!(figures.cpu_us_per_message, Some(100.0));
        assert_eq!(report.limits.of_nearest_limit, Some(0.5));
        assert_eq!(report.row(1.0, 2.0).len(), RunReport::HEADS.len());
        assert!(report.remarks().is_empty());
    }

    #[test]
    fn what_an_mta_took_counts_when_it_is_stored() {
        let figures = make(&Plan::tiny(4), true).figures;
        assert!((figures.messages_per_s - 5.0).abs() < 0.01);
        assert!((figures.answered_per_s - 20.0).abs() < 0.01);
    }

    #[test]
    fn median_is_by_rate() {
        let runs = [report("a", 30.0), report("a", 10.0), report("a", 20.0)];
        let all: Vec<&RunReport> = runs.iter().collect();
        let rate = |runs: &[&RunReport]| median(runs).map(|run| run.figures.messages_per_s);
        assert_eq!(rate(&all), Some(20.0));
        assert_eq!(rate(&all[..2]), Some(10.0));
        assert_eq!(rate(&[]), None);
    }

    /// Every field of a line is explained, by its own name.
    #[test]
    fn readme_explains_every_field() {
        let readme = include_str!("../../results/README.md");
        let part = readme.split("## Fields of `peers`").nth(1).unwrap();
        let value = serde_json::to_value(report("a", 1.0)).unwrap();
        for name in value.as_object().unwrap().keys() {
            assert!(part.contains(&format!("`{name}`")), "{name}");
        }
    }
}
