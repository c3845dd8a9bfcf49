//! What the log still owes to a user's files, as steps: what the next checkpoints would do (storage.md
//! 5). A repair does it first, so that nothing of a user is in the log only.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ringpost_netproto::id::WallNs;

use crate::canary::{self, Canary};
use crate::check::{At, Entry, OwedBy, ReadTree, Redo, UserId, What, hex8, info_of};
use crate::error::IoError;
use crate::format::Version;
use crate::format::info::{INFO_HEADER_BYTES, InfoHeader, MSG_FIXED_BYTES, Msg};
use crate::format::record::{DELIVER_FILE_FIXED_AT, DELIVER_FIXED_AT, RECORD_HEADER_BYTES};
use crate::io::{Piece, RelPath, Step};
use crate::limits::SLOT_BYTES;

/// What is asked for of what is owed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    All,
    Index,
}

/// What one user is owed.
pub(crate) struct Owed<'a> {
    pub(crate) tree: &'a dyn ReadTree,
    pub(crate) redo: &'a Redo,
    pub(crate) id: UserId,
    pub(crate) user: &'a OwedBy,
}

impl Owed<'_> {
    /// All of it, in order.
    pub(super) fn steps(&self) -> Result<Vec<Step>, IoError> {
        self.part(Part::All)
    }

    /// The same without the bytes of messages, which stay in the log.
    pub(crate) fn index_steps(&self) -> Result<Vec<Step>, IoError> {
        self.part(Part::Index)
    }

    fn part(&self, part: Part) -> Result<Vec<Step>, IoError> {
        let dir = self.id.dir();
        let names: BTreeMap<String, u64> = match self.tree.list(&dir) {
            Ok(names) => names.into_iter().collect(),
            Err(error) if error.is_not_found() => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        let mut steps = vec![Step::MakeDir(dir.clone())];
        let there = |path: &RelPath| names.contains_key(path.file_name());
        for entry in &self.user.entries {
            if let What::Swap(made, _) = &entry.what {
                let info = (dir.info_part(entry.generation), dir.info(entry.generation));
                let segments = made
                    .iter()
                    .map(|segment| (dir.segment_part(*segment), dir.segment(*segment)));
                let renames = std::iter::once(info).chain(segments);
                steps.extend(
                    renames
                        .filter(|(from, _)| there(from))
                        .map(|(from, to)| Step::Rename { from, to }),
                );
            }
        }
        steps.extend(self.implied_swap(&dir, &names));
        let swaps = self.user.entries.iter();
        let swaps = swaps.filter(|entry| matches!(entry.what, What::Swap(..)));
        let swaps: BTreeSet<u32> = swaps.map(|entry| entry.generation).collect();
        let on_disk = names.keys().filter_map(|name| info_of(name)).max();
        let newest = self.user.entries.iter().map(|entry| entry.generation);
        let newest = newest.filter(|generation| there(&dir.info_part(*generation)));
        let swapped = swaps.last().copied();
        let current = swapped.max(on_disk).max(newest.max()).unwrap_or(0);
        // No swap since is lost: what one of them retired was taken out when it was read.
        let lives = |entry: &Entry| {
            let known = |before| swaps.contains(&(before + 1));
            (entry.generation..current).all(known) && !canary::on(Canary::CarriedNotOwed)
        };
        for entry in &self.user.entries {
            match &entry.what {
                What::Small(msg) => {
                    let path = dir.segment(msg.segment);
                    // Of an older generation only what lives on is owed; its segment may not be there yet.
                    let owed = entry.generation >= current || lives(entry) || there(&path);
                    if owed && part == Part::All {
                        steps.push(self.message(entry, msg, path)?);
                    }
                }
                What::Large(msg) => {
                    let from = dir.segment_part(msg.segment);
                    let to = dir.large(msg.segment, msg.mailbox, msg.uid);
                    if there(&from) && !there(&to) {
                        steps.push(Step::Rename { from, to });
                    }
                }
                What::Create(_) | What::Runs | What::Swap(..) => {}
            }
        }
        for entry in &self.user.entries {
            if entry.generation >= current
                && let Some(step) = self.runs(entry, &dir)?
            {
                steps.push(step);
            }
        }
        Ok(steps)
    }

    /// The renames of an `INFO_SWAP` that is lost, if later records are of its generation.
    fn implied_swap(&self, dir: &RelPath, names: &BTreeMap<String, u64>) -> Vec<Step> {
        let there = |path: &RelPath| names.contains_key(path.file_name());
        let newest = self.user.entries.iter().map(|entry| entry.generation).max();
        let Some(generation) = newest.filter(|generation| {
            there(&dir.info_part(*generation)) && !there(&dir.info(*generation))
        }) else {
            return Vec::new();
        };
        let swaps = |entry: &Entry| matches!(entry.what, What::Swap(..));
        if self.user.entries.iter().any(swaps) {
            return Vec::new();
        }
        let pending = |segment: u32| {
            self.user.entries.iter().any(|entry| match &entry.what {
                What::Large(msg) => msg.segment == segment,
                _ => false,
            })
        };
        let segments = names
            .keys()
            .filter_map(|name| hex8(name.strip_suffix(".part")?))
            .filter(|segment| !pending(*segment))
            .map(|segment| (dir.segment_part(segment), dir.segment(segment)));
        std::iter::once((dir.info_part(generation), dir.info(generation)))
            .chain(segments)
            .map(|(from, to)| Step::Rename { from, to })
            .collect()
    }

    fn record(&self, at: &At, from: usize, len: usize) -> Result<Bytes, IoError> {
        let offset = at.offset + u64::try_from(from).expect("inside a record");
        self.log(at, offset, len)
    }

    fn log(&self, at: &At, offset: u64, len: usize) -> Result<Bytes, IoError> {
        let bytes = self.redo.read(self.tree, &at.path, offset, len)?;
        Ok(Bytes::from(bytes))
    }

    fn message(&self, entry: &Entry, msg: &Msg, path: RelPath) -> Result<Step, IoError> {
        let skip = usize::from(msg.skip);
        let prefix = self.record(&entry.at, DELIVER_FIXED_AT + MSG_FIXED_BYTES, skip)?;
        let len = crate::format::index(msg.stored_len);
        let stored = self.log(&entry.at, entry.at.body, len)?;
        Ok(Step::Write {
            path,
            offset: msg.offset,
            pieces: vec![
                Piece::Bytes(prefix),
                Piece::Bytes(stored),
                Piece::Bytes(Bytes::from_static(b"\n")),
            ],
        })
    }

    /// The write into the info file, if there is one.
    fn runs(&self, entry: &Entry, dir: &RelPath) -> Result<Option<Step>, IoError> {
        let path = dir.info(entry.generation);
        let at = &entry.at;
        let pieces = match &entry.what {
            What::Create(name) => return Ok(self.header(entry, name, path)),
            What::Swap(..) => return Ok(None),
            _ if entry.slot == 0 => return Ok(None),
            What::Runs => {
                let len = crate::format::index(at.len) - RECORD_HEADER_BYTES;
                vec![self.record(at, RECORD_HEADER_BYTES, len)?]
            }
            What::Small(_) => {
                let fixed = self.record(at, DELIVER_FIXED_AT, MSG_FIXED_BYTES)?;
                let cache = cache_bytes(&fixed);
                let from = at.body - u64::try_from(cache).expect("at most 15 slots");
                vec![fixed, self.log(at, from, cache)?]
            }
            What::Large(_) => {
                let fixed = self.record(at, DELIVER_FILE_FIXED_AT, MSG_FIXED_BYTES)?;
                let cache = cache_bytes(&fixed);
                let from = DELIVER_FILE_FIXED_AT + MSG_FIXED_BYTES;
                vec![fixed, self.record(at, from, cache)?]
            }
        };
        Ok(Some(Step::Write {
            path,
            offset: u64::from(entry.slot) * SLOT_BYTES,
            pieces: pieces.into_iter().map(Piece::Bytes).collect(),
        }))
    }

    /// The header of a new user's info file, unless it is there.
    fn header(&self, entry: &Entry, name: &[u8], path: RelPath) -> Option<Step> {
        let there = self.tree.read(&path, 0, INFO_HEADER_BYTES);
        let UserId { user, ordinal, .. } = self.id;
        if there
            .is_ok_and(|bytes| InfoHeader::open(&bytes, user, ordinal, entry.generation).is_ok())
        {
            return None;
        }
        let header = InfoHeader {
            user,
            ordinal,
            generation: entry.generation.max(1),
            created_at: WallNs::new(0),
            base_lsn: entry.at.lsn,
            base_modseq: 0,
            tombstones_from: 0,
            next_segment: 1,
            uidvalidity_max: 0,
            name: Box::from(name),
            version: Version::OURS,
        };
        Some(Step::Write {
            path,
            offset: 0,
            pieces: vec![Piece::Bytes(Bytes::copy_from_slice(&header.seal()))],
        })
    }
}

/// Bytes of header cache behind the fixed part of a MSG run.
fn cache_bytes(fixed: &[u8]) -> usize {
    let extra = fixed.get(5).copied().unwrap_or(1);
    usize::from(extra.saturating_sub(1)) * 64
}
