//! What a copy of one user keeps: the user's directory, and of the log the user's records. Those of all
//! others are blanked where they stand, and the frames sealed anew, so that positions, offsets and lengths
//! are those of the node, and whoever reads a node's data directory reads this one.

use std::collections::BTreeSet;

use ringpost_netproto::placement::UserKey;

use super::BackupError;
use crate::check::{ReadTree, UserId, info_of};
use crate::error::{CorruptReason, IoError};
use crate::format::Reserved;
use crate::format::crc;
use crate::format::frame::{FrameHeader, FrameKind};
use crate::format::info::{INFO_HEADER_BYTES, InfoHeader};
use crate::format::record::{Group, Payload, Record, Records, blank, detach};
use crate::format::store_file::StoreFile;
use crate::io::RelPath;

/// See the module.
pub(super) struct Only {
    name: Vec<u8>,
    key: UserKey,
    /// Which of the users with this hash it is; more than one if a name cannot be read.
    ordinals: BTreeSet<u32>,
}

/// A record of a frame.
struct Part {
    from: usize,
    to: usize,
    /// Number of its group in the frame.
    group: u32,
    mine: bool,
}

impl Only {
    pub(super) fn new(name: &[u8], store: &StoreFile) -> Result<Self, BackupError> {
        let key = UserKey::new(name, &store.key, store.partitions);
        Ok(Self {
            name: name.to_vec(),
            key: key.ok_or(BackupError::NoSuchUser)?,
            ordinals: BTreeSet::new(),
        })
    }

    /// Where the user's directory is.
    pub(super) fn partition(&self) -> u32 {
        u32::from(self.key.partition().value())
    }

    /// Whether directory or log knew the user.
    pub(super) fn is_found(&self) -> bool {
        !self.ordinals.is_empty()
    }

    /// Whether a directory is the user's. One without an index was made for a record that comes with
    /// the log; one whose index cannot be read may be, and repair may tell.
    pub(super) fn takes(&mut self, tree: &dyn ReadTree, id: &UserId) -> Result<bool, IoError> {
        if (id.partition, id.user) != (self.key.partition(), self.key.hash()) {
            return Ok(false);
        }
        let dir = id.dir();
        let names = tree.list(&dir)?;
        let mut generations: Vec<u32> =
            names.iter().filter_map(|(name, _)| info_of(name)).collect();
        generations.sort_unstable();
        let mut taken = false;
        for generation in generations.into_iter().rev() {
            let start = match tree.read(&dir.info(generation), 0, INFO_HEADER_BYTES) {
                Ok(start) => start,
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(error),
            };
            match InfoHeader::open(&start, id.user, id.ordinal, generation) {
                Ok(header) => {
                    taken = *header.name == *self.name;
                    break;
                }
                Err(_) => taken = true,
            }
        }
        if taken {
            self.ordinals.insert(id.ordinal);
        }
        Ok(taken)
    }

    /// A frame with the user's records alone, behind the one with `previous_crc`: its header, and header
    /// and records as they are written.
    pub(super) fn frame(
        &mut self,
        frame: &FrameHeader,
        payload: &[u8],
        (reserved, previous_crc): (Reserved, u32),
    ) -> Result<(FrameHeader, Vec<u8>), CorruptReason> {
        let mut sealed = FrameHeader {
            previous_crc,
            ..*frame
        };
        let mut records = Vec::new();
        if frame.kind == FrameKind::Records {
            let kept = self.kept(payload, reserved)?;
            records = payload.to_vec();
            let mut at = 0;
            for (number, part) in kept.iter().enumerate() {
                blank_out(&mut records, at, part.from);
                let next = kept.get(number + 1);
                let group = match next {
                    Some(next) if next.group == part.group => Group::GoesOn,
                    _ => Group::Ends,
                };
                detach(
                    records.get_mut(part.from..part.to).unwrap_or_default(),
                    group,
                );
                at = part.to;
            }
            let end = records.len();
            blank_out(&mut records, at, end);
            sealed.records_count = u32::try_from(kept.len()).expect("of a frame of 4 MiB");
            sealed.payload_crc = crc::of(&records);
        }
        let mut bytes = sealed.seal().to_vec();
        bytes.append(&mut records);
        Ok((sealed, bytes))
    }

    /// The user's records, and the bodies that they point at.
    fn kept(&mut self, payload: &[u8], reserved: Reserved) -> Result<Vec<Part>, CorruptReason> {
        let mut parts = Vec::new();
        let mut bodies = BTreeSet::new();
        let mut group = 0;
        for record in Records::new(payload).reserved(reserved) {
            let record = record?;
            let mine = self.is_mine(&record)?;
            if let Payload::Deliver(deliver) = &record.payload
                && mine
            {
                bodies.insert(deliver.body_at);
            }
            parts.push(Part {
                from: record.at,
                to: record.at + record.bytes.len(),
                group,
                mine,
            });
            group += u32::from(record.head.group == Group::Ends);
        }
        parts.retain(|part| part.mine || bodies.contains(&part.from));
        Ok(parts)
    }

    fn is_mine(&mut self, record: &Record<'_>) -> Result<bool, CorruptReason> {
        let head = &record.head;
        if matches!(record.payload, Payload::Truncate) && head.partition == self.key.partition() {
            return Err(CorruptReason::Value(
                "records of this user's partition that were taken back: copy the user when a checkpoint \
                 has passed them, or the whole node",
            ));
        }
        if (head.partition, head.user) != (self.key.partition(), self.key.hash())
            || record.payload.is_of_no_user()
        {
            return Ok(false);
        }
        if let Payload::UserCreate(name) = &record.payload
            && **name == *self.name
        {
            self.ordinals.insert(head.ordinal);
        }
        Ok(self.ordinals.contains(&head.ordinal))
    }
}

fn blank_out(records: &mut [u8], from: usize, to: usize) {
    if let Some(out) = records.get_mut(from..to).filter(|out| !out.is_empty()) {
        blank(out);
    }
}

/// Writes what a user's copy has of a frame: the blocks that are not zeros, and the last one, so that the
/// file has its length.
pub(super) fn write_sparse(
    target: &mut dyn super::Target,
    to: &RelPath,
    offset: u64,
    (bytes, frame_len): (&[u8], u64),
) -> Result<(), IoError> {
    let block = usize::try_from(crate::limits::BLOCK_BYTES).expect("4096");
    let mut at = offset;
    for piece in bytes.chunks(block) {
        let mut padded = piece.to_vec();
        padded.resize(block, 0);
        let next = at + crate::limits::BLOCK_BYTES;
        if padded.iter().any(|byte| *byte != 0) || next == offset + frame_len {
            target.write(to, at, &padded)?;
        }
        at = next;
    }
    if at < offset + frame_len {
        let last = offset + frame_len - crate::limits::BLOCK_BYTES;
        target.write(to, last, &vec![0; block])?;
    }
    Ok(())
}
