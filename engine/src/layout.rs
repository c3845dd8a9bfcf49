//! The number of logs of a store, one a core, and how it changes at a start (storage.md 6.4).
//!
//! No log may hold records of a partition that is another's by then. So every log is recovered and
//! checkpointed with the old layout; partition states go to all logs, old and new; delivery ids are
//! shared out anew into files beside those in use. The STORE file with the new number commits: a crash
//! before it leaves the old layout whole, one after it the new one, and the next start does the rest.
//! Which files of delivery ids hold, the number of logs in their headers says.
//!
//! A log that is left over keeps its files, empty of records, and is a log again when the number grows.
//!
//! Directories are read and changed by a [`Hand`], so that a simulated disk is brought over by the same
//! steps as a real one.

use bytes::Bytes;
use ringpost_netproto::placement::core_of;

use crate::canary::{self, Canary};
use crate::config::ShardConfig;
use crate::error::{IoError, OpenError};
use crate::format::BLOCK_HEADER_BYTES;
use crate::format::dedupe::{DedupeEntry, DedupeHeader};
use crate::format::index;
use crate::format::parts::PartitionState;
use crate::format::store_file::{LOGS_MAX, StoreFile};
use crate::io::{Io, Piece, RelPath, Step};
use crate::request::{Event, Now, Request};
use crate::shard::{Shard, ShardIdentity};

pub use crate::repair::hand::{Disk, Hand};

/// What shards are opened with while the number of logs changes.
pub struct Shards<'a, M, N> {
    /// Of each of them.
    pub config: &'a ShardConfig,
    /// Entropy for the salts of log files.
    pub seed: [u8; 16],
    /// Gives an `Io` on the data directory for each log in turn.
    pub make_io: M,
    /// The time.
    pub now: N,
}

/// What STORE says, and how many logs there are to be.
#[derive(Clone, Debug)]
pub struct Layout {
    file: StoreFile,
    logs_wanted: u32,
}

impl Layout {
    /// `file` is what STORE says. [`Self::settle`] comes next, then [`Self::change`] if it
    /// [is due](Self::is_due), then the shards.
    pub fn new(file: StoreFile, logs_wanted: u32) -> Self {
        Self { file, logs_wanted }
    }

    /// What STORE says.
    pub fn file(&self) -> &StoreFile {
        &self.file
    }

    /// What the shard with this number is part of.
    pub fn identity(&self, log_id: u32) -> ShardIdentity {
        ShardIdentity {
            store: self.file.store,
            node: self.file.node,
            log_id,
            logs: self.file.logs,
            partitions: self.file.partitions,
            key: self.file.key,
        }
    }

    /// Whether another number of logs is wanted than there are.
    pub fn is_due(&self) -> bool {
        self.file.logs != self.logs_wanted
    }

    /// Ends what a change left when it was cut off: its delivery ids come into use if it had
    /// committed, else they go.
    pub fn settle(&self, hand: &mut dyn Hand) -> Result<(), IoError> {
        for log_id in 0..LOGS_MAX {
            let old = RelPath::dedupe(log_id);
            let new = old.with_suffix(".new");
            let start = match hand.read(&new, 0, BLOCK_HEADER_BYTES) {
                Ok(start) => start,
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(error),
            };
            let ours = DedupeHeader::open(&start, self.file.store, log_id)
                .is_ok_and(|header| header.logs == self.file.logs);
            hand.apply(vec![if ours {
                Step::Rename { from: new, to: old }
            } else {
                Step::Unlink(new)
            }])?;
        }
        Ok(())
    }

    /// Recovers and checkpoints every log with the old layout, so that no log holds records of
    /// another's partition, hands partition states and delivery ids over, then goes over to the new
    /// number of logs. A crash in between repeats it.
    ///
    /// # Errors
    /// [`OpenError::Unusable`] while a log holds records that no copy confirmed: they live in that log
    /// alone and can go nowhere. Serve with the old number of cores until they are confirmed or cut
    /// off. Others as of [`Shard::open`].
    pub fn change<I, M, N>(
        &mut self,
        hand: &mut dyn Hand,
        mut shards: Shards<'_, M, N>,
    ) -> Result<(), OpenError>
    where
        I: Io,
        M: FnMut() -> Result<I, OpenError>,
        N: FnMut() -> Now,
    {
        let mut deliveries: Vec<Vec<DedupeEntry>> = Vec::new();
        let mut states = Vec::new();
        let mut next = 0;
        for log_id in 0..self.file.logs {
            let shard = self.drained(log_id, &mut shards)?;
            next = next.max(shard.deliveries_next());
            deliveries.push(shard.deliveries().collect());
            states.extend(shard.partition_states());
        }
        states.sort_by_key(|state: &PartitionState| state.partition);
        for log_id in 0..self.logs_wanted.max(self.file.logs) {
            self.drained(log_id, &mut shards)?.hand_over(&states)?;
        }
        if canary::on(Canary::IdsLeftBehind) {
            deliveries.clear();
        }
        for log_id in 0..self.logs_wanted {
            self.write_deliveries(hand, (log_id, shards.config), &deliveries, next)?;
        }
        self.file.logs = self.logs_wanted;
        hand.apply(vec![Step::Replace {
            path: RelPath::store(),
            data: Bytes::from(self.file.encode()),
        }])?;
        Ok(self.settle(hand)?)
    }

    /// A log with everything of it in the users' files.
    fn drained<I, M, N>(
        &self,
        log_id: u32,
        shards: &mut Shards<'_, M, N>,
    ) -> Result<Shard<I>, OpenError>
    where
        I: Io,
        M: FnMut() -> Result<I, OpenError>,
        N: FnMut() -> Now,
    {
        let io = (shards.make_io)()?;
        let now = (shards.now)();
        let identity = self.identity(log_id);
        let shard = Shard::open(io, identity, shards.config.clone(), shards.seed, now)?;
        let count = shard.unconfirmed_count();
        if count > 0 {
            return Err(OpenError::Unusable {
                path: RelPath::log_dir(log_id).to_string(),
                reason: format!(
                    "log {log_id:02x} holds {count} records that no copy confirmed: the number of \
                     cores stays {} until they are",
                    self.file.logs
                ),
            });
        }
        if canary::on(Canary::LayoutUndrained) {
            return Ok(shard);
        }
        drain(shard, &mut shards.now)
    }

    /// Writes the window of one log of the new layout beside the old one.
    fn write_deliveries(
        &self,
        hand: &mut dyn Hand,
        (log_id, config): (u32, &ShardConfig),
        deliveries: &[Vec<DedupeEntry>],
        base_next: u64,
    ) -> Result<(), IoError> {
        let header = DedupeHeader {
            store: self.file.store,
            log_id,
            logs: self.logs_wanted,
            capacity: config.dedupe_entries,
            base_next,
        };
        let (logs, log) = (index(self.logs_wanted), index(log_id));
        let owned =
            |entry: &&DedupeEntry| core_of(self.file.partitions.partition(entry.user), logs) == log;
        let owned = deliveries
            .iter()
            .map(|of| of.iter().filter(owned).collect());
        let capacity = usize::try_from(config.dedupe_entries).unwrap_or(usize::MAX);
        let kept = newest_of_each(owned.collect(), capacity);
        let mut bytes = header.seal().to_vec();
        for (sequence, entry) in (base_next..).zip(kept) {
            let at = usize::try_from(header.offset_of(sequence)).unwrap_or(usize::MAX);
            let sealed = entry.seal(sequence);
            if bytes.len() < at + sealed.len() {
                bytes.resize(at + sealed.len(), 0);
            }
            if let Some(place) = bytes.get_mut(at..at + sealed.len()) {
                place.copy_from_slice(&sealed);
            }
        }
        let path = RelPath::dedupe(log_id).with_suffix(".new");
        hand.apply(vec![
            Step::MakeDir(path.parent()),
            // Of a change that was cut off, perhaps longer.
            Step::Unlink(path.clone()),
            Step::Write {
                path,
                offset: 0,
                pieces: vec![Piece::Bytes(Bytes::from(bytes))],
            },
        ])
    }
}

/// The newest of each log, `capacity` of them in all, in an order in which each log's own stands: the
/// newest of every log come last, next to each other. Times do not decide it: a clock that was set back
/// made the newest look old, and they went.
fn newest_of_each<T>(logs: Vec<Vec<T>>, capacity: usize) -> Vec<T> {
    let newest_first = logs
        .into_iter()
        .map(|log| log.into_iter().rev().enumerate());
    let mut ranked: Vec<(usize, T)> = newest_first.flatten().collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.truncate(capacity);
    ranked.into_iter().rev().map(|(_, entry)| entry).collect()
}

/// Drains a shard that serves nobody.
fn drain<I: Io>(mut shard: Shard<I>, now: &mut impl FnMut() -> Now) -> Result<Shard<I>, OpenError> {
    let submitted = shard.submit(now(), Request::Drain);
    assert!(
        submitted.is_ok(),
        "a shard that was just opened refused to drain: {submitted:?}"
    );
    let mut events = Vec::new();
    loop {
        shard.poll(now(), &mut events);
        for event in events.drain(..) {
            match event {
                Event::Drained { result: Ok(()), .. } => return Ok(shard),
                Event::Fatal(crate::error::Fatal::Io(error)) => return Err(error.into()),
                _ => {}
            }
        }
        if shard.waits_for_room() {
            return Err(OpenError::Io(IoError {
                operation: "write the checkpoint of",
                path: "log".to_owned(),
                offset: 0,
                len: 0,
                errno: libc::ENOSPC,
            }));
        }
        shard.io_mut().wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_smaller_window_keeps_the_newest_of_each_log() {
        let busy = vec!["a1", "a2", "a3", "a4", "a5"];
        let quiet = vec!["b1", "b2"];
        let all = newest_of_each(vec![busy.clone(), quiet.clone()], 9);
        assert_eq!(all, ["a1", "a2", "a3", "b1", "a4", "b2", "a5"]);
        let kept = newest_of_each(vec![busy, quiet], 4);
        assert_eq!(kept, ["b1", "a4", "b2", "a5"]);
    }
}
