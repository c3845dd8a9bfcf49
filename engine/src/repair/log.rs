//! A log after its records went into the files: its tables and superblock say that it is empty, and
//! what is no part of it goes to `lost/`.

use std::collections::BTreeMap;

use bytes::Bytes;
use ringpost_netproto::id::{Epoch, PartitionId, WallNs};

use super::hand::Hand;
use super::{Outcome, lost};
use crate::check::{FileState, LogSurvey, Redo, What};
use crate::error::IoError;
use crate::format::dedupe::{DedupeEntry, DedupeHeader};
use crate::format::parts::{self, EpochEnd, EpochStart, HISTORY_MAX, Health, PartitionState};
use crate::format::store_file::StoreFile;
use crate::format::superblock::{SUPERBLOCK_BYTES, Shutdown, Superblock};
use crate::io::{Piece, RelPath, Step};
use crate::position::Lsn;

/// Delivery ids of a ring whose header is lost; the default of a shard.
const CAPACITY: u64 = 1 << 20;

/// Where a log begins whose every file and superblock is lost: above any position it can have had in
/// a few years.
const FRESH: Lsn = Lsn::new(1 << 50);

/// One log to be closed.
pub(super) struct Log<'a> {
    pub(super) hand: &'a mut dyn Hand,
    pub(super) store: &'a StoreFile,
    pub(super) survey: &'a LogSurvey,
    pub(super) redo: &'a Redo,
    pub(super) now: WallNs,
}

impl LogSurvey {
    /// Where the log goes on after a repair: behind all files if the one it ends in has no header. Where it
    /// ended another file may have room, and its chain would lead to the one that cannot be read.
    pub(super) fn next_lsn(&self) -> Lsn {
        let armed = self
            .files
            .iter()
            .filter_map(|file| Some(file.end(&file.header?)));
        match armed.max() {
            None if self.made_up => FRESH,
            Some(behind) if self.headless => behind.max(self.end),
            _ => self.end,
        }
    }

    /// Whether records may be missing.
    pub(super) fn is_lossy(&self) -> bool {
        !self.lost.is_empty() || !self.gaps.is_empty() || !self.chains.holes.is_empty()
    }

    /// The number of the last opening: epochs of records come from it.
    pub(super) fn boots(&self) -> u32 {
        let epochs = self.chains.last.values().filter_map(|last| last.epoch);
        let history = self.partitions.values().flat_map(|state| &state.history);
        let epochs = epochs.chain(history.map(|start| start.epoch));
        let last = epochs.map(Epoch::value).max().unwrap_or(0);
        self.superblock.boots.max(last)
    }
}

impl Log<'_> {
    /// Writes tables and superblocks; after that nothing is replayed.
    pub(super) fn close(&mut self, out: &mut Outcome) -> Result<(), IoError> {
        let log_id = self.survey.log_id;
        let dedupe_next = self.dedupe()?;
        if self.survey.has_no_ring() {
            let what = "made anew: a delivery from before the last checkpoint that comes again is not known";
            out.did(RelPath::dedupe(log_id).to_string(), what.to_owned());
        }
        let parts_sequence = self.parts()?;
        let survey = self.survey;
        let sequence = survey.superblock.sequence + 1;
        let lost = survey.is_lossy();
        let newest = survey.files.iter().filter_map(|file| file.header);
        let mut superblock = Superblock {
            sequence,
            shutdown: Shutdown::Clean,
            storage_generation: survey.superblock.storage_generation + u32::from(lost),
            boots: survey.boots(),
            checkpoint_lsn: survey.next_lsn(),
            previous_crc: survey.previous_crc,
            newest_log_sequence: newest.map(|header| header.sequence).max().unwrap_or(0),
            oldest_log_sequence: 0,
            dedupe_next,
            written_at: self.now,
            parts_sequence,
            ..survey.superblock.clone()
        };
        let path = RelPath::superblock(log_id);
        // The other copy first: until it is whole, this one counts. Then both say the same, so that no
        // older point of the log can come up again.
        for copy in [survey.current_copy ^ 1, survey.current_copy] {
            let offset = u64::try_from(copy * SUPERBLOCK_BYTES).expect("0 or 4096");
            let data = Bytes::copy_from_slice(superblock.seal().as_slice());
            self.hand.apply(vec![Step::Write {
                path: path.clone(),
                offset,
                pieces: vec![Piece::Bytes(data)],
            }])?;
            superblock.sequence += 1;
        }
        out.did(
            path.to_string(),
            format!(
                "the log was written into the files and begins anew at {}",
                superblock.checkpoint_lsn
            ),
        );
        for file in &survey.files {
            if file.state == FileState::Stray {
                let owner = format!("log-{log_id:02x}");
                let to = lost::set_aside(self.hand, &file.path, &owner)?;
                out.did(file.path.to_string(), format!("moved to {to}"));
            }
        }
        Ok(())
    }

    /// Remembers the deliveries that were in the log only; gives the next sequence number.
    fn dedupe(&mut self) -> Result<u64, IoError> {
        let survey = self.survey;
        let path = RelPath::dedupe(survey.log_id);
        let mut steps = Vec::new();
        let (header, mut next) = match (survey.dedupe, survey.made_up) {
            (Some((header, next)), false) => (header, next),
            (known, _) => {
                let header = DedupeHeader {
                    store: self.store.store,
                    log_id: survey.log_id,
                    logs: self.store.logs,
                    capacity: known.map_or(CAPACITY, |(known, _)| known.capacity),
                    base_next: 0,
                };
                let data = Bytes::copy_from_slice(header.seal().as_slice());
                steps.push(Step::Replace {
                    path: path.clone(),
                    data,
                });
                (header, 0)
            }
        };
        for entry in self.deliveries() {
            steps.push(Step::Write {
                path: path.clone(),
                offset: header.offset_of(next),
                pieces: vec![Piece::Bytes(Bytes::copy_from_slice(&entry.seal(next)))],
            });
            next += 1;
        }
        self.hand.apply(steps)?;
        Ok(next)
    }

    /// Of the records above the checkpoint, oldest first.
    fn deliveries(&self) -> Vec<DedupeEntry> {
        let log_id = self.survey.log_id;
        let mut found = Vec::new();
        for (id, user) in &self.redo.users {
            if u32::from(id.partition.value()) % self.store.logs != log_id {
                continue;
            }
            for entry in &user.entries {
                let (What::Small(msg) | What::Large(msg)) = &entry.what else {
                    continue;
                };
                let time_s = msg.internal_date.value() / 1_000_000_000;
                let delivery = DedupeEntry {
                    time_s: u32::try_from(time_s).unwrap_or(u32::MAX),
                    user: id.user,
                    ordinal: id.ordinal,
                    mailbox: msg.mailbox,
                    guid: msg.guid,
                    uid: msg.uid,
                    body_crc: msg.stored_crc,
                };
                found.push(((entry.at.lsn, entry.at.offset), delivery));
            }
        }
        found.sort_by_key(|(place, _)| *place);
        found.into_iter().map(|(_, entry)| entry).collect()
    }

    /// Writes the state of the partitions; gives its sequence number.
    fn parts(&mut self) -> Result<u64, IoError> {
        let survey = self.survey;
        let mut states: BTreeMap<PartitionId, PartitionState> = survey.partitions.clone();
        for (partition, last) in &survey.chains.last {
            let state = states.entry(*partition).or_insert_with(|| PartitionState {
                partition: *partition,
                health: Health::Whole,
                promised: last.epoch.unwrap_or(Epoch::new(0)),
                chain: 0,
                pseq: 0,
                commit_pseq: 0,
                oldest_pseq: 0,
                history: Vec::new(),
            });
            state.pseq = last.pseq;
            state.chain = last.chain;
            state.commit_pseq = last.pseq;
            state.oldest_pseq = last.pseq + 1;
            let newer = |epoch| state.history.last().is_none_or(|known| known.epoch < epoch);
            if let Some(epoch) = last.epoch.filter(|epoch| newer(*epoch)) {
                if state.history.len() >= HISTORY_MAX {
                    state.history.remove(0);
                }
                state.promised = state.promised.max(epoch);
                state.history.push(EpochStart {
                    epoch,
                    end: EpochEnd::Clean,
                    first_pseq: last.pseq,
                });
            }
        }
        let sequence = survey.superblock.parts_sequence.max(survey.parts_newest) + 1;
        let states: Vec<PartitionState> = states.into_values().collect();
        let copy = u8::from(sequence % 2 == 1);
        let data = parts::encode(self.store.store, survey.log_id, sequence, &states);
        self.hand.apply(vec![Step::Replace {
            path: RelPath::parts(survey.log_id, copy),
            data: Bytes::from(data),
        }])?;
        Ok(sequence)
    }
}
