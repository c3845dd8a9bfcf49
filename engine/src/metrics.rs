//! Counters of one shard, read by the daemon and by tests (storage.md 12.6). Plain numbers, added up
//! at scrape; none of them decides anything.

/// A histogram over powers of two: bucket `i` counts values below `2^i` and not below `2^(i-1)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Powers {
    /// Counts; the last bucket also takes all that is larger.
    pub buckets: [u64; 40],
    /// Sum of all values.
    pub sum: u64,
    /// Number of values.
    pub count: u64,
}

impl Default for Powers {
    fn default() -> Self {
        Self {
            buckets: [0; 40],
            sum: 0,
            count: 0,
        }
    }
}

impl Powers {
    /// Counts one value.
    pub fn record(&mut self, value: u64) {
        let bucket = usize::try_from(u64::BITS - value.leading_zeros()).unwrap_or(usize::MAX);
        if let Some(count) = self.buckets.get_mut(bucket.min(39)) {
            *count += 1;
        }
        self.sum = self.sum.saturating_add(value);
        self.count += 1;
    }
}

/// Counters (they only grow) and gauges of one shard.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Metrics {
    /// Recipients answered `Stored`.
    pub stored: u64,
    /// Recipients answered `Duplicate`.
    pub duplicates: u64,
    /// Recipients refused.
    pub refused: u64,
    /// A delivery id was known with another content; stored.
    pub dedupe_mismatches: u64,
    /// Durable log writes of records.
    pub frames: u64,
    /// Durable log writes of an idle log, vouching for its last frame.
    pub noop_frames: u64,
    /// Bytes of log frames written.
    pub frame_bytes: u64,
    /// Bytes of records in them.
    pub payload_bytes: u64,
    /// Recipients per frame.
    pub batch_messages: Powers,
    /// Nanoseconds from submitting a frame to its completion.
    pub log_write_ns: Powers,
    /// Nanoseconds from submitting an append to its answer.
    pub append_ns: Powers,
    /// All flushes asked of the device: frames, armings, superblocks, syncs.
    pub flushes: u64,
    /// Checkpoints ended.
    pub checkpoints: u64,
    /// Nanoseconds of the last checkpoint.
    pub checkpoint_ns: u64,
    /// Users in checkpoints.
    pub materialised_users: u64,
    /// Bytes given to the kernel by checkpoints.
    pub materialised_bytes: u64,
    /// Bodies read again from the log.
    pub bodies_reread: u64,
    /// Users loaded from their info file.
    pub users_loaded: u64,
    /// Damaged structures met.
    pub corrupt: u64,
    /// Users whose files were compacted.
    pub compactions: u64,
    /// Compactions that were given up: no room, damage, a slow disk.
    pub compactions_failed: u64,
    /// Bytes of messages that compactions copied.
    pub compact_copied_bytes: u64,
    /// Bytes that compactions wrote, indexes included.
    pub compact_written_bytes: u64,
    /// Bytes by which compactions made files smaller.
    pub compact_freed_bytes: u64,
    /// Nanoseconds of the last compaction.
    pub compaction_ns: u64,
    /// Users whose files a scrub read.
    pub scrub_users: u64,
    /// Messages that a scrub compared with their checksum and the index.
    pub scrub_messages: u64,
    /// Bytes that a scrub read.
    pub scrub_bytes: u64,
    /// Whole passes of the scrub.
    pub scrub_passes: u64,
    /// Nanoseconds of the last whole pass, pauses and restarts included.
    pub scrub_pass_ns: u64,
    /// Unlinks of files in which nothing was alive.
    pub files_unlinked: u64,
    /// Part files removed that no record named.
    pub parts_removed: u64,
    /// Files of expunged large messages removed when their user was loaded.
    pub dead_files_removed: u64,
    /// Changes of flags and mailboxes, expunges, copies made durable, or found to be so.
    pub changes: u64,
    /// Such requests refused.
    pub changes_refused: u64,
    /// Piecewise reads whose checksum could not be checked here.
    pub unverified_reads: u64,

    /// Gauge: bytes of bodies in memory that are in the log only.
    pub pending_bytes: u64,
    /// Gauge: records that are in the log only.
    pub pending_records: u64,
    /// Gauge: bytes of log in use.
    pub log_used_bytes: u64,
    /// Gauge: bytes of log that the finished files hold.
    pub log_capacity_bytes: u64,
    /// Gauge: monotonic time of the last checkpoint's end, ns.
    pub checkpoint_at_ns: u64,
    /// Gauge: users with state in memory.
    pub users_resident: u64,
    /// Gauge: bytes of loaded indexes.
    pub index_bytes: u64,
    /// Gauge: bytes that the files of resident users hold for nothing.
    pub garbage_bytes: u64,
    /// Gauge: damaged places that a scrub found and that were not whole since.
    pub scrub_damaged: u64,
    /// Gauge: thousandths of the partitions that the running pass has behind it; 0 if none runs.
    pub scrub_permille: u64,
    /// Gauge: passes of the scrub under way, 0 or 1.
    pub scrub_running: u64,
    /// Gauge: wall clock of the last whole pass's end, ns; 0 if there was none.
    pub scrub_ended_at_ns: u64,
    /// Gauge: requests without an answer.
    pub tickets: u64,
    /// Gauge: snapshots open.
    pub snapshots: u64,
    /// Gauge: watches that wait.
    pub watches: u64,
    /// Gauge: age of the oldest append without an answer, ns.
    pub oldest_append_ns: u64,
    /// Gauge: free bytes of the file system at the last look.
    pub disk_free_bytes: u64,
    /// Gauge: bytes of log files kept in `archive/`.
    pub archive_bytes: u64,
    /// Gauge: backups that run, 0 or 1.
    pub backups: u64,
    /// Gauge: bytes of log read by recovery.
    pub recovered_bytes: u64,
    /// Gauge: records found by recovery.
    pub recovered_records: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_fall_into_powers_of_two() {
        let mut powers = Powers::default();
        for value in [0, 1, 2, 3, 4, u64::MAX] {
            powers.record(value);
        }
        assert_eq!(powers.buckets[..4], [1, 1, 2, 1]);
        assert_eq!(powers.buckets[39], 1);
        assert_eq!(powers.count, 6);
    }
}
