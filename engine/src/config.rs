//! What can be set on a shard. [`ShardConfig::default`] is for production, [`ShardConfig::tiny`]
//! shrinks every limit so that tests reach it.

use crate::limits::{BLOCK_BYTES, FRAME_BYTES_MAX, STORED_BYTES_MAX};

/// Settings of one shard. Zero never means unlimited.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShardConfig {
    /// Bytes of a log file, header included; a multiple of 4096.
    pub log_file_bytes: u64,
    /// Log files made before the shard serves.
    pub log_files_initial: u32,
    /// Log files in all; the rest are made in the background.
    pub log_files_max: u32,
    /// Bytes of a batch; a frame is at most this. Larger groups take a frame of their own.
    pub frame_bytes_max: u64,
    /// Log writes in flight; 2 is allowed and safe, since answers wait for all earlier frames.
    pub log_depth: u32,
    /// From here on a stored message gets a segment of its own.
    pub large_bytes: u64,
    /// Larger messages are refused.
    pub message_bytes_max: u64,
    /// A segment is rolled when a message would make it longer.
    pub segment_bytes_max: u64,
    /// Memory for bodies that are in the log only. Above it the oldest are dropped and read again.
    pub pending_bytes_max: u64,
    /// Records that are in the log only.
    pub pending_records_max: u64,
    /// Memory for loaded indexes.
    pub index_bytes_max: u64,
    /// Users whose tail is kept.
    pub tails_max: usize,
    /// Delivery ids remembered.
    pub dedupe_entries: u64,
    /// A checkpoint begins after this, in ns, if anything is pending.
    pub checkpoint_interval_ns: u64,
    /// How a checkpoint makes files durable.
    pub checkpoint_sync: CheckpointSync,
    /// Free bytes below which new mail is refused, on top of what is still to be materialised.
    pub reserve_bytes: u64,
    /// Compaction writes at most so many bytes a second.
    pub compact_bytes_per_s: u64,
    /// Whether log files are kept in `archive/` for point-in-time restore, and for how long.
    pub archive: Option<ArchiveLimits>,
    /// A scrub reads at most so many bytes a second. What compactions write is paid from the same
    /// purse, and first.
    pub scrub_bytes_per_s: u64,
    /// A pass of the scrub begins so long after the last one ended, in ns; `None`: only when it is
    /// asked for.
    pub scrub_interval_ns: Option<u64>,
    /// A user is compacted when so many bytes of its segments are dead (and 30 % of them), or a
    /// quarter as many of its info file (and 25 % of it).
    pub compact_bytes_min: u64,
    /// Whether partitions may have a second copy on another node.
    pub copies: Copies,
}

/// Whether partitions may have second copies (storage.md 1.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Copies {
    /// This node alone counts, from the start.
    One,
    /// After a restart each partition waits to be told: nothing that a copy did not confirm is
    /// visible before, and no uid is given.
    Asked,
}

/// What is kept of archived log files: the oldest go when either is passed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ArchiveLimits {
    /// Seconds since a file was archived.
    pub age_s: u64,
    /// Bytes of one shard's files.
    pub bytes: u64,
}

/// How a checkpoint makes files durable (storage.md 5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CheckpointSync {
    /// Each file when few users are dirty, else the whole file system at once.
    Auto,
    /// Always syncfs.
    Tree,
    /// Always each file.
    PerFile,
}

impl Default for ShardConfig {
    fn default() -> Self {
        Self {
            log_file_bytes: 64 << 20,
            log_files_initial: 4,
            log_files_max: 32,
            frame_bytes_max: 1 << 20,
            log_depth: 1,
            large_bytes: 128 << 10,
            message_bytes_max: 64 << 20,
            segment_bytes_max: 64 << 20,
            pending_bytes_max: 512 << 20,
            pending_records_max: 1 << 20,
            index_bytes_max: 256 << 20,
            tails_max: 262_144,
            dedupe_entries: 1 << 20,
            checkpoint_interval_ns: 60_000_000_000,
            checkpoint_sync: CheckpointSync::Auto,
            reserve_bytes: 1 << 30,
            archive: None,
            compact_bytes_per_s: 8 << 20,
            scrub_bytes_per_s: 8 << 20,
            scrub_interval_ns: Some(24 * 3_600 * 1_000_000_000),
            compact_bytes_min: 256 << 10,
            copies: Copies::One,
        }
    }
}

impl ShardConfig {
    /// Limits so small that a test of a few hundred messages meets all of them.
    pub fn tiny() -> Self {
        Self {
            log_file_bytes: 64 << 10,
            log_files_initial: 2,
            log_files_max: 4,
            frame_bytes_max: 16 << 10,
            log_depth: 1,
            large_bytes: 4 << 10,
            message_bytes_max: 64 << 10,
            segment_bytes_max: 16 << 10,
            pending_bytes_max: 32 << 10,
            pending_records_max: 64,
            index_bytes_max: 8 << 10,
            tails_max: 4,
            dedupe_entries: 64,
            checkpoint_interval_ns: 1_000_000_000,
            checkpoint_sync: CheckpointSync::Auto,
            reserve_bytes: 64 << 10,
            archive: None,
            compact_bytes_per_s: 4 << 20,
            scrub_bytes_per_s: 4 << 20,
            scrub_interval_ns: None,
            compact_bytes_min: 4 << 10,
            copies: Copies::One,
        }
    }

    /// The first rule that does not hold, as a sentence.
    #[expect(clippy::too_many_lines, reason = "a table of rules")]
    pub fn check(&self) -> Result<(), &'static str> {
        let rules = [
            (
                self.log_file_bytes.is_multiple_of(BLOCK_BYTES),
                "log files are multiples of 4096 bytes",
            ),
            (
                self.frame_bytes_max.is_multiple_of(BLOCK_BYTES),
                "frames are multiples of 4096 bytes",
            ),
            (
                self.frame_bytes_max >= 4 * BLOCK_BYTES,
                "a frame has at least 16 KiB",
            ),
            (
                self.frame_bytes_max <= FRAME_BYTES_MAX,
                "a frame has at most 4 MiB",
            ),
            (
                self.log_file_bytes >= 3 * self.frame_bytes_max,
                "a log file holds at least two frames",
            ),
            (
                self.log_files_initial >= 2,
                "two log files are made before serving",
            ),
            (
                self.log_files_max >= self.log_files_initial,
                "log_files_max is below the initial",
            ),
            (
                (1..=2).contains(&self.log_depth),
                "one or two log writes are in flight",
            ),
            (
                self.large_bytes <= self.frame_bytes_max / 4,
                "large_bytes is at most a quarter frame",
            ),
            (self.large_bytes > 0, "large_bytes is above 0"),
            (
                self.message_bytes_max <= STORED_BYTES_MAX / 2,
                "messages are below 1 GiB",
            ),
            (
                self.message_bytes_max >= self.large_bytes,
                "message_bytes_max is below large_bytes",
            ),
            (
                self.segment_bytes_max >= 2 * self.large_bytes,
                "a segment holds two small messages",
            ),
            (
                self.pending_bytes_max >= self.frame_bytes_max,
                "pending bodies hold one frame",
            ),
            (
                self.pending_records_max > 0,
                "pending_records_max is above 0",
            ),
            (self.dedupe_entries > 0, "dedupe_entries is above 0"),
            (self.tails_max > 0, "tails_max is above 0"),
            (
                self.compact_bytes_per_s.min(self.scrub_bytes_per_s) > 0,
                "the rates of compaction and scrub are above 0",
            ),
            (self.compact_bytes_min > 0, "compact_bytes_min is above 0"),
            (
                self.archive
                    .is_none_or(|limits| limits.bytes >= self.log_file_bytes && limits.age_s > 0),
                "the archive keeps at least one log file",
            ),
        ];
        rules
            .iter()
            .find(|(holds, _)| !holds)
            .map_or(Ok(()), |(_, rule)| Err(rule))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_and_tiny_keep_the_rules() {
        assert_eq!(ShardConfig::default().check(), Ok(()));
        assert_eq!(ShardConfig::tiny().check(), Ok(()));
    }
}
