//! One log directory: superblock, partition state, delivery ids, and what the walk over its frames gives.

use std::collections::BTreeMap;

use ringpost_netproto::id::{PartitionId, WallNs};

use super::files::LogFile;
use super::records::{Chains, Last, Walk};
use super::redo::Redo;
use super::salvage::Lost;
use super::tree::Window;
use super::{Checker, Severity};
use crate::error::CorruptReason;
use crate::format::Version;
use crate::format::dedupe::{DEDUPE_ENTRY_BYTES, DEDUPE_HEADER_BYTES, DedupeEntry, DedupeHeader};
use crate::format::index;
use crate::format::log_file::LogFileHeader;
use crate::format::parts::{
    self, ENTRIES_MAX, PARTS_ENTRY_BYTES, PARTS_HEADER_BYTES, PartitionState,
};
use crate::format::store_file::StoreFile;
use crate::format::superblock::{Pair, SUPERBLOCK_BYTES, Shutdown, Superblock};
use crate::io::RelPath;
use crate::position::Lsn;

/// Whether something of a log must be put right before a shard can be trusted with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LogState {
    /// Nothing but what a crash leaves.
    Sound,
    /// Something is damaged, or the delivery ids are lost.
    Broken,
}

/// What was found of a log.
#[derive(Debug)]
pub(crate) struct LogSurvey {
    pub(crate) log_id: u32,
    pub(crate) state: LogState,
    /// The valid copy, or one made up: then the walk begins where the log files do.
    pub(crate) superblock: Superblock,
    /// Whether `superblock` is made up.
    pub(crate) made_up: bool,
    /// Place in the file of the copy that counts.
    pub(crate) current_copy: usize,
    pub(crate) files: Vec<LogFile>,
    /// Where the log ends.
    pub(crate) end: Lsn,
    /// Whether it ends in a frame that was being written.
    pub(crate) torn: bool,
    /// Whether it ends in a file whose header is damaged.
    pub(crate) headless: bool,
    /// Positions of files that are missing.
    pub(crate) gaps: Vec<(Lsn, Lsn)>,
    /// `header_crc` of the last frame.
    pub(crate) previous_crc: u32,
    /// The highest sequence number of a partition state that may count.
    pub(crate) parts_newest: u64,
    /// As of the checkpoint, or as much of it as can be read.
    pub(crate) partitions: BTreeMap<PartitionId, PartitionState>,
    pub(crate) chains: Chains,
    /// Header of the ring of delivery ids, and the sequence number of the next one.
    pub(crate) dedupe: Option<(DedupeHeader, u64)>,
    /// Messages in damaged frames.
    pub(crate) lost: Vec<Lost>,
}

impl LogSurvey {
    /// Whether the ring of delivery ids cannot be read, and held some.
    pub(crate) fn has_no_ring(&self) -> bool {
        self.dedupe.is_none() && self.superblock.dedupe_next > 0
    }

    /// The identity of the log, as in the header of any of its files.
    pub(super) fn any_header(&self) -> LogFileHeader {
        let known = self.files.iter().find_map(|file| file.header);
        known.unwrap_or(LogFileHeader {
            store: self.superblock.store,
            log_id: self.log_id,
            sequence: 0,
            salt: 1,
            start_lsn: Lsn::new(0),
            previous_salt: 0,
            armed_at: WallNs::new(0),
            version: Version::OURS,
        })
    }
}

/// A superblock for a log whose copies are both damaged. The walk begins with the oldest file of the
/// newest chain: replay from any earlier point gives the same state.
fn made_up(store: &StoreFile, log_id: u32, files: &[LogFile]) -> Superblock {
    let headers = || files.iter().filter_map(|file| file.header);
    let mut first = headers().max_by_key(|header| header.sequence);
    while let Some(known) = first {
        let before = headers()
            .find(|header| header.salt == known.previous_salt && header.sequence < known.sequence);
        match before {
            Some(before) => first = Some(before),
            None => break,
        }
    }
    Superblock {
        store: store.store,
        node: store.node,
        log_id,
        sequence: 1,
        shutdown: Shutdown::Open,
        partitions: store.partitions,
        storage_generation: 1,
        boots: 0,
        checkpoint_lsn: first.map_or(Lsn::new(0), |header| header.start_lsn),
        previous_crc: 0,
        key_check: store.key.check(),
        map_revision: 0,
        oldest_log_sequence: 0,
        newest_log_sequence: 0,
        dedupe_next: 0,
        written_at: WallNs::new(0),
        parts_sequence: 0,
        newer: None,
    }
}

impl Checker<'_> {
    /// Checks one log and adds what it holds above its checkpoint to `redo`; `None` if a crash came
    /// before it had anything in it.
    pub(crate) fn log(
        &mut self,
        store: &StoreFile,
        log_id: u32,
        redo: &mut Redo,
    ) -> Option<LogSurvey> {
        let damages = self.damages;
        let names = self.tree.list(&RelPath::log_dir(log_id));
        if self.is_unmade(store, log_id, names.as_deref().unwrap_or_default()) {
            let path = RelPath::superblock(log_id);
            self.found(Severity::Minor, &path, 0, CorruptReason::Truncated);
            return None;
        }
        let files = self.log_files(store, log_id);
        let pair = self.superblock(store, log_id);
        let one_copy = pair.as_ref().is_some_and(|pair| pair.other.is_some());
        let (superblock, current_copy, is_made_up) = match pair {
            Some(pair) => (pair.current, pair.current_copy, false),
            None => (made_up(store, log_id, &files), 1, true),
        };
        let (parts_newest, partitions) = self.parts(store, &superblock, one_copy || is_made_up);
        let last = |state: &PartitionState| Last {
            pseq: state.pseq,
            chain: state.chain,
            epoch: None,
        };
        let chains = Chains {
            last: partitions.iter().map(|(id, s)| (*id, last(s))).collect(),
            complete: !partitions.is_empty() || superblock.checkpoint_lsn == Lsn::new(0),
            behind: one_copy || is_made_up,
            ..Chains::default()
        };
        let dedupe = self.dedupe(store, &superblock);
        let mut survey = LogSurvey {
            log_id,
            state: LogState::Sound,
            end: superblock.checkpoint_lsn,
            superblock,
            made_up: is_made_up,
            current_copy,
            files,
            torn: false,
            headless: false,
            gaps: Vec::new(),
            previous_crc: 0,
            parts_newest,
            partitions,
            chains: Chains::default(),
            dedupe,
            lost: Vec::new(),
        };
        let mut walk = Walk {
            store,
            log_id,
            chains,
            redo,
        };
        self.frames(&mut survey, &mut walk);
        survey.chains = walk.chains;
        if self.damages > damages || survey.has_no_ring() {
            survey.state = LogState::Broken;
        }
        Some(survey)
    }

    /// Whether a crash came before the log had anything in it: no log file, and no superblock, one of zeros, or
    /// alone there one whose first copy was being written.
    fn is_unmade(&self, store: &StoreFile, log_id: u32, names: &[(String, u64)]) -> bool {
        let path = RelPath::superblock(log_id);
        let is_log = |(name, _): &(String, u64)| name.split('.').nth(1) == Some("log");
        if names.iter().any(is_log) {
            return false;
        }
        let alone = names.iter().all(|(name, _)| name == path.file_name());
        match self.tree.read(&path, 0, 2 * SUPERBLOCK_BYTES) {
            Ok(bytes) if bytes.iter().all(|byte| *byte == 0) => true,
            Ok(bytes) => {
                let opened = Pair::open(&bytes, store.store, log_id).map(drop);
                alone
                    && matches!(
                        opened,
                        Err((CorruptReason::Magic | CorruptReason::Checksum, _))
                    )
            }
            Err(error) => error.is_not_found(),
        }
    }

    fn superblock(&mut self, store: &StoreFile, log_id: u32) -> Option<Pair> {
        let path = RelPath::superblock(log_id);
        let bytes = self.read(&path, 0, 2 * SUPERBLOCK_BYTES)?;
        let copy_at = |copy: usize| u64::try_from(copy * SUPERBLOCK_BYTES).expect("0 or 4096");
        let pair = match Pair::open(&bytes, store.store, log_id) {
            Ok(pair) => pair,
            Err((first, second)) => {
                self.damage(&path, copy_at(0), first);
                self.damage(&path, copy_at(1), second);
                return None;
            }
        };
        if let Some(reason) = pair.other.clone() {
            self.found(
                Severity::Expected,
                &path,
                copy_at(1 - pair.current_copy),
                reason,
            );
        }
        let current = &pair.current;
        let same = current.node == store.node
            && current.partitions == store.partitions
            && current.key_check == store.key.check();
        if !same {
            let reason = CorruptReason::Disagree("the superblock and STORE");
            self.damage(&path, copy_at(pair.current_copy), reason);
        }
        Some(pair)
    }

    /// The valid partition state; the newest there is if the superblock may be older than it.
    fn parts(
        &mut self,
        store: &StoreFile,
        superblock: &Superblock,
        newest: bool,
    ) -> (u64, BTreeMap<PartitionId, PartitionState>) {
        let dir = RelPath::log_dir(superblock.log_id);
        let names = self.list(&dir).unwrap_or_default();
        let mut found: Option<(u64, Vec<PartitionState>)> = None;
        let mut bad = None;
        let mut highest = 0;
        for copy in 0..2 {
            let path = RelPath::parts(superblock.log_id, copy);
            if !names.iter().any(|(name, _)| name == path.file_name()) {
                continue;
            }
            let most = PARTS_HEADER_BYTES + index(ENTRIES_MAX) * PARTS_ENTRY_BYTES;
            let Some(bytes) = self.read(&path, 0, most) else {
                continue;
            };
            match parts::decode(&bytes, store.store, superblock.log_id) {
                Ok(read) => {
                    // Another than the superblock's is one that a crash kept from its superblock: the next
                    // state takes its place, and never that of the one that counts.
                    if newest {
                        highest = read.0.max(highest);
                    }
                    let wanted = read.0 == superblock.parts_sequence;
                    let newer = found.as_ref().is_none_or(|known| known.0 < read.0);
                    if wanted || (newest && newer && read.0 > superblock.parts_sequence) {
                        found = Some(read);
                    }
                }
                Err(reason) => {
                    bad = Some(path.clone());
                    self.found(Severity::Expected, &path, 0, reason);
                }
            }
        }
        if found.is_none() && superblock.parts_sequence != 0 {
            let reason = CorruptReason::Disagree("the superblock and the partition state");
            let path = bad.unwrap_or(RelPath::parts(superblock.log_id, 0));
            self.damage(&path, 0, reason);
        }
        let states = found.map(|(_, states)| states).unwrap_or_default();
        let states = states
            .into_iter()
            .map(|state| (state.partition, state))
            .collect();
        (highest, states)
    }

    /// The ring of delivery ids is derived data: whatever is wrong with it is minor.
    fn dedupe(
        &mut self,
        store: &StoreFile,
        superblock: &Superblock,
    ) -> Option<(DedupeHeader, u64)> {
        let path = RelPath::dedupe(superblock.log_id);
        let names = self.list(&path.parent()).unwrap_or_default();
        if !names.iter().any(|(name, _)| name == path.file_name()) {
            if superblock.dedupe_next > 0 {
                self.found(Severity::Minor, &path, 0, CorruptReason::Truncated);
            }
            return None;
        }
        let bytes = self.read(&path, 0, DEDUPE_HEADER_BYTES)?;
        let header = match DedupeHeader::open(&bytes, store.store, superblock.log_id) {
            Ok(header) => header,
            Err(reason) => {
                self.found(Severity::Minor, &path, 0, reason);
                return None;
            }
        };
        let tree = self.tree;
        let mut window = Window::new(tree, &path);
        let next = header.next(superblock.dedupe_next, |sequence| {
            let bytes = window.at(header.offset_of(sequence), DEDUPE_ENTRY_BYTES);
            bytes.is_ok_and(|bytes| DedupeEntry::open(bytes, sequence).is_ok())
        });
        let first = next.saturating_sub(header.capacity).max(header.base_next);
        for sequence in first..next {
            let offset = header.offset_of(sequence);
            let bytes = match window.at(offset, DEDUPE_ENTRY_BYTES) {
                Ok(bytes) => bytes,
                Err(error) => {
                    self.finding(Severity::Minor, error.corrupt());
                    return Some((header, next));
                }
            };
            // A checkpoint that did not reach its superblock may have put the next lap here.
            let entry = DedupeEntry::open(bytes, sequence).or_else(|reason| {
                DedupeEntry::open(bytes, sequence + header.capacity).or(Err(reason))
            });
            if let Err(reason) = entry {
                self.found(Severity::Minor, &path, offset, reason);
            }
        }
        Some((header, next))
    }
}
