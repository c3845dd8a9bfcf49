//! What a cell's figures become: a line of JSON for machines, a row of a table for people.
//!
//! `results/README.md` explains the fields; a test there compares the names.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::cell::{Findings, Reach, per_second};
use super::lmtp::Transfer;
use super::plan::{Plan, Serials};
use super::verify::Verification;
use crate::disk::DiskLimits;
use crate::environment::Environment;
use crate::hist::{LatencySummary, micros};
use crate::letters::Size;
use crate::process::stolen_remark;
use crate::schedule::Pace;
use crate::scrape::Metrics;
use crate::table;

/// One line of `results/*.ndjson`.
#[derive(Debug, Serialize)]
pub(crate) struct CellReport {
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
    /// What the daemon said of itself.
    #[serde(flatten)]
    pub(crate) daemon: DaemonFigures,
    /// What would be possible, of the same run.
    #[serde(flatten)]
    pub(crate) limits: Limits,
    /// What the store gave back.
    pub(crate) verification: Option<Verification>,
    /// What went wrong besides.
    pub(crate) faults: Vec<String>,
    /// Whether nothing went wrong at all.
    pub(crate) good: bool,
}

/// What was asked for.
#[derive(Debug, Serialize)]
pub(crate) struct Parameters {
    via: &'static str,
    target: String,
    size: Size,
    in_flight: usize,
    connections: usize,
    threads: usize,
    users: usize,
    recipients: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    zipf: Option<f64>,
    seconds: f64,
    warm_up_s: Option<f64>,
    rate: Option<f64>,
    repeat: bool,
    bdat: bool,
    settings: Vec<String>,
    seed: u64,
    run: String,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    messages_per_s: f64,
    recipients_per_s: f64,
    mib_per_s: f64,
    latency: LatencySummary,
    late_max_us: f64,
    overdue: u64,
    sent: u64,
    acknowledged_recipients: u64,
    duplicates: u64,
    errors_count: u64,
    errors: BTreeMap<String, u64>,
    capped: bool,
    elapsed_s: f64,
    messages_by_second: Vec<u64>,
    generator_cpu_us_per_message: Option<f64>,
    shim_cpu_us_per_message: Option<f64>,
}

/// What the daemon said of itself; `None` where it was not asked.
#[derive(Debug, Default, Serialize)]
pub(crate) struct DaemonFigures {
    flushes: Option<f64>,
    flushes_per_recipient: Option<f64>,
    log_frames: Option<f64>,
    log_write_mean_us: Option<f64>,
    log_write_p99_below_us: Option<f64>,
    batch_recipients_mean: Option<f64>,
    warm_up_checkpoints: Option<f64>,
    checkpoints: Option<f64>,
    materialised_bytes: Option<f64>,
    daemon_cpu_us_per_message: Option<f64>,
    daemon_bytes_max: Option<u64>,
    start_s: Option<f64>,
    stop_s: Option<f64>,
}

/// What would be possible, of the same run.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Limits {
    /// Median of a durable write of 4 KiB, alone.
    pub(crate) flush_us: Option<f64>,
    /// A perfect group commit of the bytes alone, on this disk.
    pub(crate) disk_messages_per_s: Option<f64>,
    /// The cell's rate divided by that.
    pub(crate) of_disk: Option<f64>,
    /// Bare sockets, the same size and connections.
    pub(crate) echo_messages_per_s: Option<f64>,
    /// The part of the processors' time that the hypervisor withheld in the window.
    pub(crate) stolen_share: Option<f64>,
}

impl Limits {
    /// `disk` of the call, `echo` of the cell.
    pub(crate) fn new(disk: &DiskLimits, plan: &Plan, echo: Option<f64>) -> Self {
        Self {
            flush_us: disk.flush_us(),
            disk_messages_per_s: disk.messages_per_s(plan.size.mean(), plan.in_flight),
            of_disk: None,
            echo_messages_per_s: echo,
            stolen_share: None,
        }
    }
}

impl CellReport {
    /// Puts a cell's figures together.
    pub(crate) fn new(
        environment: &Environment,
        parameters: Parameters,
        plan: &Plan,
        findings: Findings,
        mut limits: Limits,
    ) -> Self {
        let tally = &findings.tally;
        let daemon = DaemonFigures::new(&findings);
        let measured = plan.window.measured();
        let messages_per_s = round(per_second(tally.messages, measured));
        limits.of_disk = limits
            .disk_messages_per_s
            .map(|limit| messages_per_s / limit);
        limits.stolen_share = findings.stolen_share;
        let of_message = |time: Duration| per_message(time, tally.messages_since);
        let figures = Figures {
            messages_per_s,
            recipients_per_s: round(per_second(tally.recipients, measured)),
            mib_per_s: round(messages_per_s * float(plan.size.mean()) / 1_048_576.0),
            latency: tally.latencies.summary(),
            late_max_us: micros(tally.late_max),
            overdue: tally.overdue,
            sent: tally.sent,
            acknowledged_recipients: tally.recipients_all,
            duplicates: tally.duplicates,
            errors_count: tally.errors_count(),
            errors: tally.errors.clone(),
            capped: tally.capped,
            elapsed_s: findings.elapsed.as_secs_f64(),
            messages_by_second: tally.timeline.clone(),
            generator_cpu_us_per_message: of_message(findings.generator_cpu.own),
            shim_cpu_us_per_message: of_message(findings.generator_cpu.children)
                .filter(|us| *us > 0.0),
        };
        let stored = findings
            .verification
            .as_ref()
            .is_none_or(Verification::is_good);
        let good = tally.errors_count() == 0
            && (tally.duplicates == 0 || plan.serials == Serials::Repeated)
            && tally.sent > 0
            && stored
            && findings.faults.is_empty();
        Self {
            kind: "deliver",
            environment: environment.clone(),
            parameters,
            figures,
            daemon,
            limits,
            verification: findings.verification,
            faults: findings.faults,
            good,
        }
    }

    /// The rate.
    pub(crate) fn messages_per_s(&self) -> f64 {
        self.figures.messages_per_s
    }

    /// What a message cost the daemon.
    pub(crate) fn daemon_cpu_us_per_message(&self) -> Option<f64> {
        self.daemon.daemon_cpu_us_per_message
    }

    /// Heads of [`Self::row`].
    pub(crate) const HEADS: [&str; 19] = [
        "via",
        "size",
        "in flight",
        "messages/s",
        "MiB/s",
        "p50",
        "p99",
        "p99.9",
        "max",
        "flushes/rcpt",
        "batch",
        "log write",
        "daemon us/msg",
        "perf us/msg",
        "disk limit/s",
        "of it",
        "echo/s",
        "verified",
        "errors",
    ];

    /// The row of a table.
    pub(crate) fn row(&self) -> Vec<String> {
        let latency = &self.figures.latency;
        let verified = match &self.verification {
            None => "-".to_owned(),
            Some(verification) if verification.is_good() => table::count(verification.found),
            Some(_) => "WRONG".to_owned(),
        };
        vec![
            self.parameters.via.to_owned(),
            self.parameters.size.label(),
            self.parameters.in_flight.to_string(),
            table::number(self.figures.messages_per_s),
            table::number(self.figures.mib_per_s),
            table::time(latency.p50_us),
            table::time(latency.p99_us),
            table::time(latency.p999_us),
            table::time(latency.max_us),
            table::maybe(self.daemon.flushes_per_recipient),
            table::maybe(self.daemon.batch_recipients_mean),
            self.daemon
                .log_write_mean_us
                .map_or_else(|| "-".to_owned(), table::time),
            table::maybe(self.daemon.daemon_cpu_us_per_message),
            table::maybe(self.figures.generator_cpu_us_per_message),
            table::maybe(self.limits.disk_messages_per_s),
            self.limits
                .of_disk
                .map_or_else(|| "-".to_owned(), |part| format!("{:.0} %", part * 100.0)),
            table::maybe(self.limits.echo_messages_per_s),
            verified,
            table::count(self.figures.errors_count),
        ]
    }

    /// Sentences about what went wrong or limits the figure, each with the cell's name.
    pub(crate) fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        for (text, count) in &self.figures.errors {
            remarks.push(format!("{} times: {text}", table::count(*count)));
        }
        if self.figures.duplicates > 0 {
            let count = table::count(self.figures.duplicates);
            remarks.push(format!("{count} recipients were answered as duplicates"));
        }
        if let Some(verification) = &self.verification {
            if !verification.is_good() {
                remarks.push(format!(
                    "store: {} missing, {} surplus, {} not byte for byte",
                    verification.missing, verification.surplus, verification.damaged
                ));
            }
            remarks.extend(verification.problems.iter().cloned());
        }
        remarks.extend(self.faults.iter().cloned());
        remarks.extend(stolen_remark(self.limits.stolen_share));
        if self.figures.capped {
            remarks.push("ended early: the cap on bytes (--mib-max) was met".to_owned());
        }
        if self.figures.overdue > 0 {
            remarks.push(format!(
                "overloaded: {} messages were due and never sent; latencies count them as waiting \
                 until the end",
                table::count(self.figures.overdue)
            ));
        }
        let name = format!(
            "{} {} x{}",
            self.parameters.via,
            self.parameters.size.label(),
            self.parameters.in_flight
        );
        remarks
            .iter()
            .map(|remark| format!("{name}: {remark}"))
            .collect()
    }
}

impl Parameters {
    /// From the plan and its reach.
    pub(crate) fn new(plan: &Plan, reach: &Reach, target: String, settings: &[String]) -> Self {
        Self {
            via: reach.via.name(),
            target,
            size: plan.size,
            in_flight: plan.in_flight,
            connections: reach.connections,
            threads: reach.threads,
            users: plan.users.count(),
            recipients: plan.recipients,
            zipf: plan.zipf(),
            seconds: plan.window.measured().as_secs_f64(),
            warm_up_s: plan.window.opening().map(|opening| opening.as_secs_f64()),
            rate: match plan.pace {
                Pace::Closed => None,
                Pace::Open { rate } => Some(rate),
            },
            repeat: plan.serials == Serials::Repeated,
            bdat: reach.transfer == Transfer::Bdat,
            settings: settings.to_vec(),
            seed: plan.seed,
            run: format!("{:016x}", plan.run),
        }
    }
}

impl DaemonFigures {
    fn new(findings: &Findings) -> Self {
        let metrics = findings.metrics.clone().unwrap_or_default();
        let recipients = findings.tally.recipients_since;
        let flushes = metrics.sum("ringpost_flushes_total", "");
        let per_recipient = |count: f64| {
            let recipients = u32::try_from(recipients).ok().filter(|count| *count > 0)?;
            Some(count / f64::from(recipients))
        };
        let us = |seconds: f64| round(seconds * 1e6);
        Self {
            flushes,
            flushes_per_recipient: flushes.and_then(per_recipient),
            log_frames: metrics.sum("ringpost_log_frames_total", ""),
            log_write_mean_us: metrics.mean(LOG_WRITE).map(us),
            log_write_p99_below_us: metrics.quantile(LOG_WRITE, 0.99).map(us),
            batch_recipients_mean: batch_mean(&metrics),
            warm_up_checkpoints: findings.warm_up_checkpoints,
            checkpoints: metrics.sum("ringpost_checkpoints_total", ""),
            materialised_bytes: metrics.sum("ringpost_materialised_bytes_total", ""),
            daemon_cpu_us_per_message: findings
                .daemon_cpu
                .and_then(|cpu| per_message(cpu.own, findings.tally.messages_since)),
            daemon_bytes_max: findings.daemon_bytes_max,
            start_s: findings.start.map(|time| time.as_secs_f64()),
            stop_s: findings.stop.map(|time| time.as_secs_f64()),
        }
    }
}

const LOG_WRITE: &str = "ringpost_log_write_seconds";

fn batch_mean(metrics: &Metrics) -> Option<f64> {
    metrics.mean("ringpost_batch_messages").map(round)
}

/// Microseconds of CPU per message since the window opened.
fn per_message(time: Duration, messages: u64) -> Option<f64> {
    let messages = u32::try_from(messages).ok().filter(|count| *count > 0)?;
    Some(round(time.as_secs_f64() * 1e6 / f64::from(messages)))
}

fn float(value: usize) -> f64 {
    u32::try_from(value).map_or(f64::INFINITY, f64::from)
}

/// Two decimals are enough for all that is measured here.
fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deliver::cell::Via;
    use crate::deliver::session::Outcome;
    use crate::deliver::tally::{Tally, Watched};
    use crate::process::CpuTime;

    fn findings(plan: &Plan) -> Findings {
        let mut tally = Tally::new(plan.users.count());
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
        let page = "ringpost_flushes_total 5\nringpost_batch_messages_sum 20\n\
                    ringpost_batch_messages_count 4\nringpost_log_write_seconds_sum 0.001\n\
                    ringpost_log_write_seconds_count 10\n";
        Findings {
            tally,
            metrics: Some(Metrics::parse(page)),
            warm_up_checkpoints: Some(0.0),
            daemon_cpu: Some(CpuTime {
                own: Duration::from_millis(2),
                children: Duration::ZERO,
            }),
            generator_cpu: CpuTime::default(),
            stolen_share: Some(0.0),
            daemon_bytes_max: Some(1 << 20),
            elapsed: Duration::from_secs(1),
            start: None,
            stop: None,
            verification: Some(Verification::default()),
            faults: Vec::new(),
        }
    }

    fn report(change: impl Fn(&mut Findings)) -> CellReport {
        let plan = Plan::tiny(4);
        let reach = Reach {
            via: Via::Node,
            transfer: Transfer::Data,
            connections: 1,
            threads: 1,
            deliver: None,
        };
        let mut findings = findings(&plan);
        change(&mut findings);
        let parameters = Parameters::new(&plan, &reach, "own".to_owned(), &[]);
        let limits = Limits {
            disk_messages_per_s: Some(40.0),
            ..Limits::default()
        };
        CellReport::new(&Environment::default(), parameters, &plan, findings, limits)
    }

    #[test]
    fn figures_are_the_rates_and_the_daemons_own_differences() {
        let report = report(|_| {});
        assert!(report.good);
        let json = serde_json::to_value(&report).unwrap();
        for (field, want) in [
            ("messages_per_s", 20.0),
            ("flushes_per_recipient", 0.25),
            ("batch_recipients_mean", 5.0),
            ("log_write_mean_us", 100.0),
            ("daemon_cpu_us_per_message", 100.0),
            ("of_disk", 0.5),
            ("stolen_share", 0.0),
        ] {
            let got = json.get(field).and_then(serde_json::Value::as_f64).unwrap();
            assert!((got - want).abs() < 1e-6, "{field}: {got}");
        }
        assert_eq!(json["latency"]["count"], 20);
        assert!(report.remarks().is_empty());
        let row = report.row();
        assert_eq!(row.len(), CellReport::HEADS.len());
        assert_eq!(row[..4], ["node", "512", "4", "20.0"]);
    }

    #[test]
    fn anything_wrong_makes_the_cell_bad_and_is_said() {
        type Change = (fn(&mut Findings), &'static str);
        let changes: [Change; 4] = [
            (
                |findings| findings.tally.count_error("451 busy", 2),
                "2 times: 451 busy",
            ),
            (|findings| findings.tally.duplicates = 1, "duplicates"),
            (
                |findings| findings.faults.push("metrics: gone".to_owned()),
                "metrics: gone",
            ),
            (
                |findings| {
                    let verification = findings.verification.as_mut().unwrap();
                    verification.missing = 1;
                },
                "1 missing",
            ),
        ];
        for (change, want) in changes {
            let report = report(change);
            assert!(!report.good, "{want}");
            assert!(
                report.remarks().iter().any(|remark| remark.contains(want)),
                "{want}"
            );
        }
    }

    #[test]
    fn a_machine_that_was_held_is_said_and_is_no_fault_of_the_store() {
        let report = report(|findings| findings.stolen_share = Some(0.058));
        assert!(report.good);
        let remarks = report.remarks();
        assert!(
            remarks.iter().any(|remark| remark.contains("5.8 %")),
            "{remarks:?}"
        );
    }

    /// The prose about the fields names each of them.
    #[test]
    fn every_field_is_explained() {
        let readme = crate::programs::workspace().join("perf/results/README.md");
        let readme = std::fs::read_to_string(readme).unwrap();
        let json = serde_json::to_value(report(|_| {})).unwrap();
        for field in json.as_object().unwrap().keys() {
            assert!(
                readme.contains(&format!("`{field}`")),
                "{field} is not explained"
            );
        }
    }
}
