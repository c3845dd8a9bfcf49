//! The metrics of mail.md 11 in `OpenMetrics` text. Numbers of the cores are added up at each scrape;
//! nothing is counted twice and no user is a label. Their names are what docs/OPERATING.md must list.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode as encode_text;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use ringpost_engine::metrics::{Metrics, Powers};

use super::Survey;
use crate::letter::{CoreReport, Door, DoorReport};
use crate::status::{checkpoint_age_ns, disk_free_bytes};

/// The content type of the text.
pub const KIND: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Seconds per nanosecond.
const NS: f64 = 1e-9;

/// The text for a scrape.
pub fn encode(survey: Survey) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("ringpost");
    registry.register_collector(Box::new(Page(survey)));
    let mut text = String::new();
    encode_text(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Page(Survey);

/// Name, help, type, value.
type Column = (
    &'static str,
    &'static str,
    MetricType,
    fn(&DoorReport) -> u64,
);

type Labels<'a> = [(&'a str, &'a str)];

impl Page {
    fn sum(&self, of: fn(&Metrics) -> u64) -> u64 {
        self.0.reports.iter().map(|report| of(&report.shard)).sum()
    }

    fn powers(&self, of: fn(&Metrics) -> &Powers) -> Powers {
        let mut all = Powers::default();
        for report in &self.0.reports {
            let powers = of(&report.shard);
            for (sum, count) in all.buckets.iter_mut().zip(powers.buckets) {
                *sum += count;
            }
            all.sum += powers.sum;
            all.count += powers.count;
        }
        all
    }

    fn door(&self, door: Door) -> DoorReport {
        let mut sum = DoorReport::default();
        for report in &self.0.reports {
            let of = match door {
                Door::Node => &report.doors[0],
                Door::Lmtp => &report.doors[1],
            };
            sum.connections += of.connections;
            sum.accepted += of.accepted;
            sum.stored += of.stored;
            sum.duplicate += of.duplicate;
            sum.deferred += of.deferred;
            sum.rejected += of.rejected;
            sum.received_bytes += of.received_bytes;
        }
        sum
    }
}

/// A counter without labels.
struct Sum {
    name: &'static str,
    help: &'static str,
    of: fn(&Metrics) -> u64,
}

const COUNTERS: &[Sum] = &[
    Sum {
        name: "duplicates",
        help: "Deliveries that were there already",
        of: |m| m.duplicates,
    },
    Sum {
        name: "dedupe_mismatches",
        help: "Known delivery ids with another content",
        of: |m| m.dedupe_mismatches,
    },
    Sum {
        name: "log_frames",
        help: "Durable log writes of records",
        of: |m| m.frames,
    },
    Sum {
        name: "log_noop_frames",
        help: "Durable log writes when idle",
        of: |m| m.noop_frames,
    },
    Sum {
        name: "log_frame_bytes",
        help: "Bytes of log frames",
        of: |m| m.frame_bytes,
    },
    Sum {
        name: "log_payload_bytes",
        help: "Bytes of records in them",
        of: |m| m.payload_bytes,
    },
    Sum {
        name: "flushes",
        help: "Flushes asked of the device",
        of: |m| m.flushes,
    },
    Sum {
        name: "checkpoints",
        help: "Checkpoints ended",
        of: |m| m.checkpoints,
    },
    Sum {
        name: "materialised_bytes",
        help: "Bytes that checkpoints wrote",
        of: |m| m.materialised_bytes,
    },
    Sum {
        name: "materialised_users",
        help: "Users that checkpoints wrote",
        of: |m| m.materialised_users,
    },
    Sum {
        name: "bodies_reread",
        help: "Bodies read again from the log",
        of: |m| m.bodies_reread,
    },
    Sum {
        name: "compactions",
        help: "Users whose files were made smaller",
        of: |m| m.compactions,
    },
    Sum {
        name: "compactions_failed",
        help: "Compactions that were given up",
        of: |m| m.compactions_failed,
    },
    Sum {
        name: "compact_copied_bytes",
        help: "Bytes of messages that compactions copied",
        of: |m| m.compact_copied_bytes,
    },
    Sum {
        name: "compact_written_bytes",
        help: "Bytes that compactions wrote, indexes included",
        of: |m| m.compact_written_bytes,
    },
    Sum {
        name: "compact_freed_bytes",
        help: "Bytes by which compactions made files smaller",
        of: |m| m.compact_freed_bytes,
    },
    Sum {
        name: "scrub_users",
        help: "Users whose files a scrub read",
        of: |m| m.scrub_users,
    },
    Sum {
        name: "scrub_messages",
        help: "Messages that a scrub compared with checksum and index",
        of: |m| m.scrub_messages,
    },
    Sum {
        name: "scrub_bytes",
        help: "Bytes that a scrub read",
        of: |m| m.scrub_bytes,
    },
    Sum {
        name: "scrub_passes",
        help: "Whole passes of the scrub",
        of: |m| m.scrub_passes,
    },
    Sum {
        name: "files_unlinked",
        help: "Files unlinked in which nothing was alive",
        of: |m| m.files_unlinked,
    },
    Sum {
        name: "users_loaded",
        help: "Users loaded from their index",
        of: |m| m.users_loaded,
    },
    Sum {
        name: "corrupt_records",
        help: "Damaged structures met",
        of: |m| m.corrupt,
    },
];

const GAUGES: &[Sum] = &[
    Sum {
        name: "pending_bytes",
        help: "Bytes in memory that are in the log only",
        of: |m| m.pending_bytes,
    },
    Sum {
        name: "pending_records",
        help: "Records that are in the log only",
        of: |m| m.pending_records,
    },
    Sum {
        name: "log_used_bytes",
        help: "Bytes of log in use",
        of: |m| m.log_used_bytes,
    },
    Sum {
        name: "log_capacity_bytes",
        help: "Bytes that the log can hold",
        of: |m| m.log_capacity_bytes,
    },
    Sum {
        name: "backups",
        help: "Cores that hold their files for a backup",
        of: |m| m.backups,
    },
    Sum {
        name: "archive_bytes",
        help: "Bytes of log files kept in the archive",
        of: |m| m.archive_bytes,
    },
    Sum {
        name: "users_resident",
        help: "Users in memory",
        of: |m| m.users_resident,
    },
    Sum {
        name: "index_bytes",
        help: "Bytes of loaded indexes",
        of: |m| m.index_bytes,
    },
    Sum {
        name: "garbage_bytes",
        help: "Bytes that the files of users in memory hold for nothing",
        of: |m| m.garbage_bytes,
    },
    Sum {
        name: "scrub_damaged",
        help: "Damaged places that a scrub found and that were not whole since",
        of: |m| m.scrub_damaged,
    },
    Sum {
        name: "scrub_running",
        help: "Cores with a pass of the scrub under way",
        of: |m| m.scrub_running,
    },
    Sum {
        name: "open_requests",
        help: "Requests without an answer",
        of: |m| m.tickets,
    },
    Sum {
        name: "recovered_records",
        help: "Records found by the last recovery",
        of: |m| m.recovered_records,
    },
];

/// Every metric with its type's suffix, as docs/OPERATING.md lists them.
pub fn names() -> Vec<String> {
    let counters = COUNTERS
        .iter()
        .map(|row| format!("ringpost_{}_total", row.name));
    let gauges = GAUGES.iter().map(|row| format!("ringpost_{}", row.name));
    let rest = [
        "ringpost_deliveries_total",
        "ringpost_received_bytes_total",
        "ringpost_connections",
        "ringpost_connections_accepted_total",
        "ringpost_batch_messages",
        "ringpost_log_write_seconds",
        "ringpost_delivery_seconds",
        "ringpost_checkpoint_age_seconds",
        "ringpost_checkpoint_seconds",
        "ringpost_oldest_append_seconds",
        "ringpost_flushes_per_recipient",
        "ringpost_disk_free_bytes",
        "ringpost_receiving_bytes",
        "ringpost_mesh_backlog",
        "ringpost_accounts",
        "ringpost_cores",
        "ringpost_build_info",
    ];
    counters
        .chain(gauges)
        .chain(rest.map(str::to_owned))
        .collect()
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for row in COUNTERS {
            counter(&mut encoder, (row.name, row.help), self.sum(row.of))?;
        }
        for row in GAUGES {
            gauge(&mut encoder, (row.name, row.help), float(self.sum(row.of)))?;
        }
        self.encode_doors(&mut encoder)?;
        let batches = self.powers(|shard| &shard.batch_messages);
        histogram(
            &mut encoder,
            ("batch_messages", "Recipients per log write"),
            &batches,
            1.0,
        )?;
        let writes = self.powers(|shard| &shard.log_write_ns);
        histogram(
            &mut encoder,
            ("log_write_seconds", "Durable log writes"),
            &writes,
            NS,
        )?;
        let appends = self.powers(|shard| &shard.append_ns);
        let help = "From an append's request to its durable answer";
        histogram(&mut encoder, ("delivery_seconds", help), &appends, NS)?;
        self.encode_gauges(&mut encoder)
    }
}

impl Page {
    fn encode_doors(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let doors = [Door::Node, Door::Lmtp].map(|door| (door.name(), self.door(door)));
        let help = "Recipients answered, by door and outcome";
        let kind = MetricType::Counter;
        let mut family = encoder.encode_descriptor("deliveries", help, None, kind)?;
        for (name, door) in &doors {
            for (outcome, count) in [
                ("stored", door.stored),
                ("duplicate", door.duplicate),
                ("deferred", door.deferred),
                ("rejected", door.rejected),
            ] {
                let labels: &Labels<'_> = &[("door", name), ("outcome", outcome)];
                ConstCounter::new(count).encode(family.encode_family(&labels.to_vec())?)?;
            }
        }
        let columns: [Column; 3] = [
            (
                "received_bytes",
                "Bytes of messages received",
                kind,
                |door| door.received_bytes,
            ),
            ("connections_accepted", "Connections so far", kind, |door| {
                door.accepted
            }),
            ("connections", "Connections", MetricType::Gauge, |door| {
                door.connections
            }),
        ];
        for (name, help, kind, of) in columns {
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for (door_name, door) in &doors {
                let labels = vec![("door", *door_name)];
                let metric = family.encode_family(&labels)?;
                match kind {
                    MetricType::Gauge => ConstGauge::new(float(of(door))).encode(metric)?,
                    _ => ConstCounter::new(of(door)).encode(metric)?,
                }
            }
        }
        Ok(())
    }

    fn encode_gauges(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let reports = &self.0.reports;
        let most = |of: fn(&CoreReport) -> u64| reports.iter().map(of).max().unwrap_or(0);
        let total = |of: fn(&CoreReport) -> u64| reports.iter().map(of).sum::<u64>();
        let backlog: usize = reports.iter().map(|report| report.mesh_backlog).sum();
        let recipients = self.sum(|shard| shard.stored).max(1);
        let rows = [
            (
                (
                    "checkpoint_age_seconds",
                    "Since the last checkpoint of the slowest core",
                ),
                float(checkpoint_age_ns(reports)) * NS,
            ),
            (
                (
                    "checkpoint_seconds",
                    "Duration of the longest last checkpoint",
                ),
                float(most(|report| report.shard.checkpoint_ns)) * NS,
            ),
            (
                (
                    "oldest_append_seconds",
                    "Age of the oldest append without an answer",
                ),
                float(most(|report| report.shard.oldest_append_ns)) * NS,
            ),
            (
                (
                    "flushes_per_recipient",
                    "Flushes divided by recipients stored",
                ),
                float(self.sum(|shard| shard.flushes)) / float(recipients),
            ),
            (
                ("disk_free_bytes", "Free for mail"),
                float(disk_free_bytes(reports)),
            ),
            (
                (
                    "receiving_bytes",
                    "Bytes of messages being received, or received and not answered",
                ),
                float(total(|report| report.receiving_bytes)),
            ),
            (
                ("mesh_backlog", "Letters that wait for a slower core"),
                float(u64::try_from(backlog).unwrap_or(u64::MAX)),
            ),
            (
                ("accounts", "Users in accounts.file"),
                float(u64::try_from(self.0.users_count).unwrap_or(u64::MAX)),
            ),
            (
                ("cores", "Cores that answer"),
                float(u64::try_from(reports.len()).unwrap_or(u64::MAX)),
            ),
        ];
        for (name, value) in rows {
            gauge(encoder, name, value)?;
        }
        let kind = MetricType::Info;
        let mut info = encoder.encode_descriptor("build", "Version of the daemon", None, kind)?;
        info.encode_info(&vec![("version", env!("CARGO_PKG_VERSION"))])
    }
}

type Name = (&'static str, &'static str);

fn counter(encoder: &mut DescriptorEncoder<'_>, (name, help): Name, value: u64) -> fmt::Result {
    let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    ConstCounter::new(value).encode(metric)
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, (name, help): Name, value: f64) -> fmt::Result {
    let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    ConstGauge::new(value).encode(metric)
}

/// Bucket `i` of the engine counts values below 2^i.
fn histogram(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): Name,
    powers: &Powers,
    unit: f64,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    let last = powers.buckets.len() - 1;
    let bounds = (0..powers.buckets.len()).map(|index| {
        if index == last {
            f64::MAX
        } else {
            float(1 << index) * unit
        }
    });
    let buckets: Vec<_> = bounds.zip(powers.buckets).collect();
    metric.encode_histogram::<NoLabelSet>(float(powers.sum) * unit, powers.count, &buckets, None)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a metric is a float; 2^53 is exact enough"
)]
fn float(value: u64) -> f64 {
    value as f64
}

const _: fn() = || {
    fn is_label_set<T: EncodeLabelSet>() {}
    is_label_set::<Vec<(&str, &str)>>();
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_every_name_and_no_other() {
        let mut report = CoreReport::default();
        report.shard.log_write_ns.record(100_000);
        report.shard.stored = 10;
        report.shard.flushes = 2;
        let survey = Survey {
            reports: vec![report.clone(), report],
            cores: 2,
            unready: None,
            status: Vec::new(),
            users_count: 3,
        };
        let text = encode(survey).expect("a String takes everything");
        let names = names();
        for name in &names {
            assert!(text.contains(name.as_str()), "{name} is missing in\n{text}");
        }
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().expect("a word");
            let base = name.trim_end_matches("_bucket").trim_end_matches("_sum");
            let base = base.trim_end_matches("_count");
            assert!(
                names.iter().any(|known| known == base),
                "{name} is not listed"
            );
        }
        assert!(
            text.contains("ringpost_flushes_per_recipient 0.2"),
            "{text}"
        );
        assert!(
            text.contains("ringpost_log_write_seconds_count 2"),
            "{text}"
        );
    }
}
