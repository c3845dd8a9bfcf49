//! What must hold of the records of a frame beside its checksum, and their way into `redo`.

use std::collections::BTreeMap;

use ringpost_netproto::id::{Epoch, PartitionId};

use super::Checker;
use super::files::LogFile;
use super::redo::{At, Redo, UserId};
use super::segment::{prefix, stored_in_memory};
use crate::error::CorruptReason;
use crate::format::crc;
use crate::format::frame::{FRAME_HEADER_BYTES, FrameHeader};
use crate::format::info::{Msg, MsgFixed, Seed};
use crate::format::log_file::LogFileHeader;
use crate::format::record::{Group, Head, Payload, Record, Records, chain};
use crate::format::store_file::StoreFile;
use crate::position::Lsn;

/// The last record of a partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Last {
    pub(crate) pseq: u64,
    pub(crate) chain: u32,
    pub(crate) epoch: Option<Epoch>,
}

/// Where the chains of a log's partitions stand.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chains {
    /// Of each partition with records.
    pub(crate) last: BTreeMap<PartitionId, Last>,
    /// Whether a partition that is missing in `last` has no record.
    pub(super) complete: bool,
    /// The walk begins before the point that `last` is of.
    pub(super) behind: bool,
    /// Damage was passed over: a hole is no further finding.
    pub(super) broken: bool,
    /// Records that are missing, by partition: first and last pseq.
    pub(crate) holes: Vec<(PartitionId, u64, u64)>,
}

/// A walk over the frames of one log.
pub(super) struct Walk<'a> {
    pub(super) store: &'a StoreFile,
    pub(super) log_id: u32,
    pub(super) chains: Chains,
    pub(super) redo: &'a mut Redo,
}

impl Checker<'_> {
    /// Checks the records of a frame and adds them to `redo`; `offset` is the frame's.
    pub(super) fn records(
        &mut self,
        walk: &mut Walk<'_>,
        (file, header): (&LogFile, &LogFileHeader),
        frame: &FrameHeader,
        (offset, payload): (u64, &[u8]),
    ) {
        let mut count = 0;
        let mut group = Group::Ends;
        let reserved = header.version.reserved();
        for record in Records::new(payload).reserved(reserved) {
            let record = match record {
                Ok(record) => record,
                Err(reason) => {
                    self.damage(&file.path, offset, reason);
                    return;
                }
            };
            count += 1;
            group = record.head.group;
            let at = record_at(offset, record.at);
            let checked = walk
                .check(frame.lsn, payload, &record)
                .and_then(|()| walk.chains.follow(&record));
            if let Err(reason) = checked {
                self.damage(&file.path, at, reason);
                continue;
            }
            walk.take(&record, payload, (&file.path, offset, frame.lsn));
        }
        if group == Group::GoesOn || count != frame.records_count {
            let reason = CorruptReason::Value("a frame that does not end with its last record");
            self.damage(&file.path, offset, reason);
        }
    }
}

/// Offset in the file of a record at `at` of the payload of the frame at `offset`.
pub(super) fn record_at(offset: u64, at: usize) -> u64 {
    offset + u64::try_from(FRAME_HEADER_BYTES + at).expect("a stretch of a log file")
}

impl Walk<'_> {
    /// What must hold of a record beside its own bytes: its place, its body, the sums of its runs.
    pub(super) fn check(
        &self,
        lsn: Lsn,
        payload: &[u8],
        record: &Record<'_>,
    ) -> Result<(), CorruptReason> {
        let head = &record.head;
        if let Payload::Body(body) = &record.payload {
            return if crc::of(body.stored) == head.body_crc {
                Ok(())
            } else {
                Err(CorruptReason::Checksum)
            };
        }
        if record.payload.is_of_no_user() {
            return Ok(());
        }
        self.owns(head)?;
        match &record.payload {
            Payload::Deliver(deliver) => {
                let body = Records::at(payload, deliver.body_at)?;
                let Payload::Body(body) = body.payload else {
                    return Err(CorruptReason::Value("a DELIVER that points at no BODY"));
                };
                stored_in_memory(body.stored, &deliver.msg)?;
                prefix(deliver.prefix, &deliver.msg, None).map_err(|(_, reason)| reason)?;
                check_msg(lsn, head, (deliver.fixed, &deliver.msg), body.cache)
            }
            Payload::DeliverFile(file) => check_msg(lsn, head, (file.fixed, &file.msg), file.cache),
            Payload::UserCreate(name) if self.store.key.user_hash(name) != head.user => {
                Err(CorruptReason::Identity)
            }
            _ => Ok(()),
        }
    }

    /// Whether the user's partition is one of this log.
    pub(super) fn owns(&self, head: &Head) -> Result<(), CorruptReason> {
        let partition = self.store.partitions.partition(head.user);
        let log_id = u32::from(partition.value()) % self.store.logs;
        if partition == head.partition && (log_id == self.log_id || self.log_id >= self.store.logs)
        {
            Ok(())
        } else {
            Err(CorruptReason::Identity)
        }
    }

    /// Adds a record to what its user has in the log. `payload` begins behind the header of the frame
    /// at `offset` of `path`.
    pub(super) fn take(
        &mut self,
        record: &Record<'_>,
        payload: &[u8],
        (path, offset, lsn): (&crate::io::RelPath, u64, Lsn),
    ) {
        if matches!(record.payload, Payload::Truncate) {
            self.redo.void(record.head.partition, record.head.pseq);
        }
        if matches!(record.payload, Payload::Body(_)) || record.payload.is_of_no_user() {
            return;
        }
        let body_at = match &record.payload {
            Payload::Deliver(deliver) => match Records::at(payload, deliver.body_at) {
                Ok(Record {
                    payload: Payload::Body(body),
                    ..
                }) => record_at(offset, body.stored_at),
                _ => return,
            },
            _ => 0,
        };
        let at = At {
            path: self.redo.path(path),
            offset: record_at(offset, record.at),
            len: u32::try_from(record.bytes.len()).expect("a frame is at most 4 MiB"),
            body: body_at,
            lsn,
        };
        let id = UserId::of(&record.head);
        self.redo.users.entry(id).or_default().add(record, at);
    }
}

pub(super) fn check_msg(
    lsn: Lsn,
    head: &Head,
    (fixed, msg): (&MsgFixed, &Msg),
    cache: &[u8],
) -> Result<(), CorruptReason> {
    let seed = Seed {
        user: head.user,
        generation: head.generation,
    };
    if cache.len() != usize::from(fixed.cache_slots()) * 64 {
        return Err(CorruptReason::Length);
    }
    fixed.check_crc(seed, head.slot, crc::of(cache))?;
    crate::header_cache::decode(cache)?;
    if msg.lsn != lsn {
        return Err(CorruptReason::Disagree(
            "a MSG run and the frame that holds it",
        ));
    }
    Ok(())
}

impl Chains {
    /// Pseq without a hole, and the chain.
    pub(super) fn follow(&mut self, record: &Record<'_>) -> Result<(), CorruptReason> {
        let head = &record.head;
        if head.pseq == 0 && !matches!(record.payload, Payload::Truncate) {
            return Ok(());
        }
        if matches!(record.payload, Payload::Truncate) {
            let last = Last {
                pseq: head.pseq,
                chain: head.chain,
                epoch: None,
            };
            self.last.insert(head.partition, last);
            return Ok(());
        }
        let before = self.last.get(&head.partition).copied();
        if self.behind && before.is_some_and(|last| last.pseq >= head.pseq) {
            return Ok(());
        }
        let last = Last {
            pseq: head.pseq,
            chain: head.chain,
            epoch: Some(head.epoch),
        };
        self.last.insert(head.partition, last);
        let before = before.or_else(|| self.complete.then(Last::default));
        match before {
            Some(before) if before.pseq + 1 != head.pseq => {
                let hole = (head.partition, before.pseq + 1, head.pseq.saturating_sub(1));
                self.holes.push(hole);
                if self.broken {
                    return Ok(());
                }
                Err(CorruptReason::Value("a hole in a partition's records"))
            }
            Some(before) if chain(before.chain, record.bytes) != head.chain => {
                if self.broken {
                    return Ok(());
                }
                Err(CorruptReason::Checksum)
            }
            _ => Ok(()),
        }
    }
}
