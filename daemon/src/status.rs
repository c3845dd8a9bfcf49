//! A node's report about itself, as names and values: `ringpost status` and `/status` show the same.

use ringpost_engine::metrics::{Metrics, Powers};
use ringpost_engine::request::{Damage, Scrubbed};
use ringpost_netproto::limits::TEXT_BYTES_MAX;
use ringpost_netproto::message::printable;
use ringpost_netproto::message::report::ReportField;

use crate::config::Config;
use crate::letter::{CoreReport, DAMAGED_SHOWN_MAX};

/// All fields, in an order for people.
pub fn fields(config: &Config, reports: &[CoreReport]) -> Vec<ReportField> {
    let sum =
        |of: fn(&Metrics) -> u64| -> u64 { reports.iter().map(|report| of(&report.shard)).sum() };
    let connections: u64 = reports
        .iter()
        .flat_map(|report| report.doors)
        .map(|door| door.connections)
        .sum();
    let mut fields = Fields(Vec::new());
    fields.put("version", env!("CARGO_PKG_VERSION"));
    fields.put("node", config.node_id);
    fields.put("data_dir", config.data_dir.display());
    fields.put("cores", reports.len());
    fields.put("connections", connections);
    fields.put("messages.stored", sum(|shard| shard.stored));
    fields.put("messages.duplicates", sum(|shard| shard.duplicates));
    fields.put("messages.refused", sum(|shard| shard.refused));
    fields.put("log.used_bytes", sum(|shard| shard.log_used_bytes));
    fields.put("log.capacity_bytes", sum(|shard| shard.log_capacity_bytes));
    fields.put("log.frames", sum(|shard| shard.frames));
    fields.put("log.write_us_p50", worst(reports, 0.5) / 1_000);
    fields.put("log.write_us_p99", worst(reports, 0.99) / 1_000);
    fields.put("flushes", sum(|shard| shard.flushes));
    fields.put("pending.records", sum(|shard| shard.pending_records));
    fields.put("pending.bytes", sum(|shard| shard.pending_bytes));
    fields.put("checkpoints", sum(|shard| shard.checkpoints));
    fields.put(
        "checkpoint.age_s",
        checkpoint_age_ns(reports) / 1_000_000_000,
    );
    fields.put("users.resident", sum(|shard| shard.users_resident));
    fields.put("recovered.records", sum(|shard| shard.recovered_records));
    fields.put("recovered.bytes", sum(|shard| shard.recovered_bytes));
    fields.put("corrupt", sum(|shard| shard.corrupt));
    fields.put("disk.free_bytes", disk_free_bytes(reports));
    fields.scrub(reports);
    fields.0
}

/// What a scrub that was asked for did, all cores together, and what is damaged.
pub fn scrubbed(done: &Scrubbed, reports: &[CoreReport]) -> Vec<ReportField> {
    let mut fields = Fields(Vec::new());
    fields.put("scrub.users", done.users);
    fields.put("scrub.messages", done.messages);
    fields.put("scrub.bytes", done.bytes);
    fields.put("scrub.damaged", done.damaged);
    if done.damaged > 0 {
        fields.damaged(reports);
    }
    fields.0
}

/// A damaged place as a sentence: whose, which message, file, offset, reason.
pub fn damage(damage: &Damage) -> String {
    let corrupt = &damage.corrupt;
    let whose = match (damage.user.is_empty(), &damage.message) {
        (true, _) => String::new(),
        (false, None) => format!("index of {}: ", printable(&damage.user)),
        (false, Some(message)) => format!(
            "{} mailbox {} uid {} guid {}: ",
            printable(&damage.user),
            message.mailbox.value(),
            message.uid.value(),
            message.guid
        ),
    };
    format!("{whose}{corrupt}")
}

struct Fields(Vec<ReportField>);

impl Fields {
    fn scrub(&mut self, reports: &[CoreReport]) {
        let all = |of: fn(&Metrics) -> u64| reports.iter().map(move |report| of(&report.shard));
        let sum = |of: fn(&Metrics) -> u64| all(of).sum::<u64>();
        let cores = u64::try_from(reports.len().max(1)).unwrap_or(1);
        let running = sum(|shard| shard.scrub_running);
        let done = (cores - running.min(cores)) * 1_000;
        let permille = if running == 0 {
            0
        } else {
            (sum(|shard| shard.scrub_permille) + done) / cores
        };
        self.put("scrub.running", running);
        self.put("scrub.permille", permille);
        self.put(
            "scrub.passes",
            all(|shard| shard.scrub_passes).min().unwrap_or(0),
        );
        let took_ns = all(|shard| shard.scrub_pass_ns).max().unwrap_or(0);
        self.put("scrub.pass_s", took_ns / 1_000_000_000);
        let ended_ns = all(|shard| shard.scrub_ended_at_ns).min().unwrap_or(0);
        self.put("scrub.ended_at", ended_ns / 1_000_000_000);
        self.put("scrub.users", sum(|shard| shard.scrub_users));
        self.put("scrub.messages", sum(|shard| shard.scrub_messages));
        self.put("scrub.bytes", sum(|shard| shard.scrub_bytes));
        self.put("scrub.damaged", sum(|shard| shard.scrub_damaged));
        self.damaged(reports);
    }

    fn damaged(&mut self, reports: &[CoreReport]) {
        let places = reports.iter().flat_map(|report| &report.damaged);
        for (number, place) in (1..).zip(places.take(DAMAGED_SHOWN_MAX)) {
            let number: u32 = number;
            let end = place.floor_char_boundary(TEXT_BYTES_MAX);
            self.put(
                &format!("damaged.{number}"),
                place.get(..end).unwrap_or_default(),
            );
        }
    }

    fn put(&mut self, name: &str, value: impl std::fmt::Display) {
        self.0.push(ReportField {
            name: name.to_owned(),
            value: value.to_string(),
        });
    }
}

/// Of the core whose last checkpoint is the oldest.
pub fn checkpoint_age_ns(reports: &[CoreReport]) -> u64 {
    let age = |report: &CoreReport| {
        report
            .monotonic_ns
            .saturating_sub(report.shard.checkpoint_at_ns)
    };
    reports.iter().map(age).max().unwrap_or(0)
}

/// As the core saw it that looked last; 0 if none has.
pub fn disk_free_bytes(reports: &[CoreReport]) -> u64 {
    reports
        .iter()
        .map(|report| report.shard.disk_free_bytes)
        .max()
        .unwrap_or(0)
}

fn worst(reports: &[CoreReport], share: f64) -> u64 {
    reports
        .iter()
        .map(|report| quantile(&report.shard.log_write_ns, share))
        .max()
        .unwrap_or(0)
}

/// The upper bound of the bucket that holds the quantile; 0 without values.
fn quantile(powers: &Powers, share: f64) -> u64 {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank among counts; an error of one in 2^52 does not show"
    )]
    let rank = (powers.count as f64 * share).ceil() as u64;
    let mut below = 0;
    for (index, count) in powers.buckets.iter().enumerate() {
        below += count;
        if below >= rank && below > 0 {
            return 1_u64 << index;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_the_bound_of_its_bucket() {
        let mut powers = Powers::default();
        assert_eq!(quantile(&powers, 0.5), 0);
        for value in [1, 3, 3, 100] {
            powers.record(value);
        }
        assert_eq!(quantile(&powers, 0.5), 4);
        assert_eq!(quantile(&powers, 0.99), 128);
    }

    #[test]
    fn every_field_fits_the_protocol() {
        let fields = fields(
            &Config::default(),
            &[CoreReport::default(), CoreReport::default()],
        );
        assert!(
            fields
                .iter()
                .all(|field| field.name.len() <= 256 && field.value.len() <= 256)
        );
        assert!(
            fields
                .iter()
                .any(|field| field.name == "cores" && field.value == "2")
        );
    }
}
