//! Reading a log back (storage.md 6): the chain of files, the frames in them, and where the log ends.
//!
//! A bad frame is either the torn end of the log or damage to acknowledged mail. `flushed_lsn` in
//! later frames tells them apart: a frame sealed after the bad one was flushed says so. Damage is an
//! error, never truncated. Recovery writes nothing here.

use std::collections::BTreeMap;

use super::files::LogIdentity;
use crate::canary::{self, Canary};
use crate::error::{Corrupt, CorruptReason, IoError, OpenError};
use crate::format::Reserved;
use crate::format::frame::{FRAME_HEADER_BYTES, FrameError, FrameHeader, FrameKind};
use crate::format::log_file::{LOG_HEADER_BYTES, LogFileHeader};
use crate::io::{AlignedBuf, Done, FileId, Io, Op, OpenMode, RelPath};
use crate::limits::{BLOCK_BYTES, FRAME_BYTES_MAX};
use crate::ops::{Ops, unreachable_done};
use crate::position::Lsn;

/// A log file that was found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) number: u32,
    pub(crate) file: FileId,
    /// Size: another than today's if the configuration changed since it was made.
    pub(crate) bytes: u64,
    /// `None`: never armed, or its header is damaged.
    pub(crate) header: Option<LogFileHeader>,
    /// Whether the header block held something that does not validate.
    pub(crate) damaged: bool,
}

impl Found {
    /// Whether the file was armed and holds `lsn`.
    fn holds(&self, lsn: Lsn) -> bool {
        self.header
            .is_some_and(|header| header.start_lsn <= lsn && lsn < self.end(&header))
    }

    /// The position behind the last byte.
    fn end(&self, header: &LogFileHeader) -> Lsn {
        header
            .start_lsn
            .after(self.bytes.saturating_sub(header_bytes()))
    }
}

/// What reading the log gave.
#[derive(Debug)]
pub(crate) struct Recovery {
    /// Every finished log file.
    pub(crate) found: Vec<Found>,
    /// Numbers of the files in the chain, in order.
    pub(crate) chain: Vec<u32>,
    /// Where the log ends.
    pub(crate) end: Lsn,
    /// `header_crc` of the last frame.
    pub(crate) previous_crc: u32,
    /// Bytes of frames read.
    pub(crate) bytes: u64,
    /// Whether the log ended in a frame that was being written.
    pub(crate) torn_at: Option<Corrupt>,
}

/// Reads the log from `start` on. `apply` gets every good frame with its records, and what is known
/// of their reserved bytes (a newer minor version may use them); what it finds impossible is damage.
pub(crate) fn recover<I: Io>(
    ops: &mut Ops<I>,
    identity: LogIdentity,
    file_bytes: u64,
    (start, previous_crc): (Lsn, u32),
    mut apply: impl FnMut(Reserved, &FrameHeader, &[u8]) -> Result<(), CorruptReason>,
) -> Result<Recovery, OpenError> {
    let found = find(ops, identity, file_bytes)?;
    let mut recovery = Recovery {
        found,
        chain: Vec::new(),
        end: start,
        previous_crc,
        bytes: 0,
        torn_at: None,
    };
    let mut reader = Reader::new(&recovery.found);
    let mut next = latest(&recovery.found, |found, _header| found.holds(start));
    while let Some(current) = next {
        let (number, header) = current;
        recovery.chain.push(number);
        next = successor(&recovery.found, &header);
        let found = numbered(&recovery.found, number);
        let limit = next.map_or(found.end(&header), |(_, next)| next.start_lsn);
        let file = found.file;
        while recovery.end < limit {
            let offset = header.offset_of(recovery.end).expect("the chain ascends");
            let bytes = reader.frame(ops, number, file, offset)?;
            let mut previous_crc = recovery.previous_crc;
            if canary::on(Canary::TornFileReused) {
                previous_crc = FrameHeader::open(bytes).map_or(0, |frame| frame.previous_crc);
            }
            let read = FrameHeader::open_at(bytes, header.salt, recovery.end, previous_crc);
            let applied = read.and_then(|frame| {
                let payload = frame.payload(bytes)?;
                Ok(apply(header.version.reserved(), &frame, payload).map(|()| frame))
            });
            match applied {
                Ok(Ok(frame)) => {
                    recovery.end = frame.end();
                    recovery.previous_crc = frame.header_crc;
                    recovery.bytes += match frame.kind {
                        FrameKind::Records => u64::from(frame.frame_len),
                        FrameKind::Noop | FrameKind::Skip => BLOCK_BYTES,
                    };
                }
                Ok(Err(reason)) => {
                    return Err(OpenError::LogDamaged(corrupt(
                        identity, number, offset, reason,
                    )));
                }
                Err(error) => {
                    let bad = corrupt(identity, number, offset, error.reason());
                    recovery.evidence(ops, &mut reader, &bad)?;
                    let torn = !matches!(error, FrameError::NotAFrame | FrameError::OtherSalt);
                    if torn && canary::on(Canary::TornTakenAsDamage) {
                        return Err(OpenError::LogDamaged(bad));
                    }
                    recovery.torn_at = torn.then_some(bad);
                    return Ok(recovery);
                }
            }
        }
    }
    // The chain ended with a file: its successor was never armed, or its header is damaged.
    let bad = corrupt(
        identity,
        *recovery.chain.last().unwrap_or(&0),
        0,
        CorruptReason::Magic,
    );
    recovery.evidence(ops, &mut reader, &bad)?;
    Ok(recovery)
}

impl Recovery {
    /// Looks for a frame that was sealed after what is missing at `self.end` had been flushed: then
    /// acknowledged mail is damaged, and `bad` names where. Any file may hold it, since a damaged
    /// header hides a file from the chain; frames of former uses have a lower `flushed_lsn`. In a file with
    /// such a header the frame that would be the next is enough, if it is whole: one of a former use was
    /// torn, or it would have been the next then.
    fn evidence<I: Io>(
        &self,
        ops: &mut Ops<I>,
        reader: &mut Reader,
        bad: &Corrupt,
    ) -> Result<(), OpenError> {
        if self.misses_a_file() {
            let what = "the log and its files: one is missing that a later one goes on from";
            let reason = CorruptReason::Disagree(what);
            return Err(OpenError::LogDamaged(Corrupt {
                reason,
                ..bad.clone()
            }));
        }
        for found in &self.found {
            let chained = self.chain.last() == Some(&found.number);
            let later = found
                .header
                .is_some_and(|header| header.start_lsn >= self.end);
            if !(chained || later || found.damaged) {
                continue;
            }
            let mut offset = header_bytes();
            while let Some(bytes) = reader.block(ops, found.number, found.file, offset)? {
                let frame = FrameHeader::open(bytes).ok();
                let vouches = frame.as_ref().is_some_and(|frame| {
                    let ours = found.header.is_none_or(|header| header.salt == frame.salt);
                    ours && frame.lsn >= self.end && frame.flushed_lsn > self.end
                });
                let goes_on = match frame {
                    Some(frame) if found.damaged && self.is_next(&frame) => {
                        let bytes = reader.frame(ops, found.number, found.file, offset)?;
                        frame.payload(bytes).is_ok()
                    }
                    _ => false,
                };
                if (vouches || goes_on) && !canary::on(Canary::DamageTakenAsTorn) {
                    return Err(OpenError::LogDamaged(bad.clone()));
                }
                offset += BLOCK_BYTES;
            }
        }
        Ok(())
    }
}

impl Recovery {
    /// Whether a frame says that it follows the last one.
    fn is_next(&self, frame: &FrameHeader) -> bool {
        frame.lsn == self.end && frame.previous_crc == self.previous_crc
    }

    /// Whether a file that was armed behind the end of the chain has a predecessor that is not there: a
    /// file is armed when the one before it is in use, and that one is not recycled before a checkpoint
    /// has passed it.
    fn misses_a_file(&self) -> bool {
        let headers = || self.found.iter().filter_map(|found| found.header);
        let last = self.chain.last();
        let last = self.found.iter().find(|found| Some(&found.number) == last);
        let last = last.and_then(|found| found.header);
        headers().any(|header| {
            header.start_lsn > self.end
                && header.previous_salt != 0
                && last.is_some_and(|last| header.sequence > last.sequence)
                && headers().all(|other| other.salt != header.previous_salt)
        })
    }
}

/// Opens every finished log file, waits for what a killed process still has in flight, and reads
/// its header. Unfinished ones (a crash while they were made) are unlinked: they are too short and
/// all zeros, since a file is armed only when it has its length.
fn find<I: Io>(
    ops: &mut Ops<I>,
    identity: LogIdentity,
    file_bytes: u64,
) -> Result<Vec<Found>, OpenError> {
    let dir = RelPath::log_dir(identity.log_id);
    // A process that was killed may have made a file and not yet synced its name: without this an
    // acknowledged frame would go with the name in a power cut.
    ops.run_plain(Op::SyncDir { path: dir.clone() })?;
    let names = match ops.run_plain(Op::ListDir { path: dir.clone() })? {
        Done::Listing(names) => names,
        other => unreachable_done(&other),
    };
    let mut found = Vec::new();
    for (name, bytes) in names {
        let number = name
            .strip_suffix(".log")
            .and_then(|stem| stem.parse::<u32>().ok());
        let Some(number) = number else { continue };
        let path = RelPath::log_file(identity.log_id, number);
        if path.file_name() != name {
            continue;
        }
        let file = match ops.run_plain(Op::Open {
            path: path.clone(),
            mode: OpenMode::Log,
        })? {
            Done::Opened { file, .. } => file,
            other => unreachable_done(&other),
        };
        if !canary::on(Canary::ReadBeforeSync) {
            ops.run_plain(Op::Sync { file })?;
        }
        let (block, count) = ops.run_read(file, 0, AlignedBuf::zeroed(2 * LOG_HEADER_BYTES))?;
        let block = block.get(..count).unwrap_or_default();
        let (block, first) = block
            .split_at_checked(LOG_HEADER_BYTES)
            .unwrap_or((block, &[]));
        let header = LogFileHeader::open(block, identity.store, identity.log_id);
        if let Err(reason @ (CorruptReason::Version { .. } | CorruptReason::Identity)) = header {
            return Err(corrupt(identity, number, 0, reason).into());
        }
        // A header of zeros in front of a frame was lost: a file that was never armed has no frames.
        let lost = FrameHeader::open(first).is_ok() || block.iter().any(|byte| *byte != 0);
        let damaged = header.is_err() && lost;
        if header.is_err() && !damaged && bytes < file_bytes {
            ops.run_plain(Op::Close { file })?;
            ops.run_plain(Op::Unlink { path })?;
            continue;
        }
        found.push(Found {
            number,
            file,
            bytes,
            header: header.ok(),
            damaged,
        });
    }
    Ok(found)
}

/// The file that claims `header`'s as its predecessor: of several, the one armed last.
fn successor(found: &[Found], header: &LogFileHeader) -> Option<(u32, LogFileHeader)> {
    latest(found, |_found, other| {
        other.previous_salt == header.salt && other.sequence > header.sequence
    })
}

/// Of the armed files that are wanted, the one armed last.
fn latest(
    found: &[Found],
    wanted: impl Fn(&Found, &LogFileHeader) -> bool,
) -> Option<(u32, LogFileHeader)> {
    let by_sequence: BTreeMap<u64, (u32, LogFileHeader)> = found
        .iter()
        .filter_map(|found| Some((found, found.header?)))
        .filter(|(found, header)| wanted(found, header))
        .map(|(found, header)| (header.sequence, (found.number, header)))
        .collect();
    by_sequence.into_values().next_back()
}

fn numbered(found: &[Found], number: u32) -> &Found {
    let found = found.iter().find(|found| found.number == number);
    found.expect("the chain is made of found files")
}

fn corrupt(identity: LogIdentity, number: u32, offset: u64, reason: CorruptReason) -> Corrupt {
    let file = RelPath::log_file(identity.log_id, number).to_string();
    Corrupt {
        file,
        offset,
        reason,
    }
}

fn header_bytes() -> u64 {
    u64::try_from(LOG_HEADER_BYTES).expect("4096")
}

/// Reads log files a window at a time, past the page cache.
struct Reader {
    buf: Option<AlignedBuf>,
    number: u32,
    base: u64,
    count: usize,
}

impl Reader {
    /// The window holds the largest frame of the largest file.
    fn new(found: &[Found]) -> Self {
        let longest = found.iter().map(|found| found.bytes).max();
        let bytes = longest.unwrap_or(0).clamp(BLOCK_BYTES, FRAME_BYTES_MAX);
        let bytes = bytes.next_multiple_of(BLOCK_BYTES);
        let bytes = usize::try_from(bytes).expect("at most 4 MiB");
        Self {
            buf: Some(AlignedBuf::zeroed(bytes)),
            number: 0,
            base: 0,
            count: 0,
        }
    }

    /// The bytes from `offset` on, at least `need` of them unless the file ends before.
    fn at<I: Io>(
        &mut self,
        ops: &mut Ops<I>,
        (number, file): (u32, FileId),
        offset: u64,
        need: usize,
    ) -> Result<&[u8], IoError> {
        let from = usize::try_from(offset.wrapping_sub(self.base)).unwrap_or(usize::MAX);
        let held = number == self.number
            && offset >= self.base
            && from.checked_add(need).is_some_and(|end| end <= self.count);
        let from = if held {
            from
        } else {
            let buf = self.buf.take().expect("reads come one behind the other");
            let (buf, count) = ops.run_read(file, offset, buf)?;
            self.buf = Some(buf);
            (self.number, self.base, self.count) = (number, offset, count);
            0
        };
        let buf = self.buf.as_deref().unwrap_or_default();
        Ok(buf.get(from..self.count).unwrap_or_default())
    }

    /// The frame that begins at `offset`, or as much of it as its header, if any, asks for.
    fn frame<I: Io>(
        &mut self,
        ops: &mut Ops<I>,
        number: u32,
        file: FileId,
        offset: u64,
    ) -> Result<&[u8], OpenError> {
        let bytes = self.at(ops, (number, file), offset, FRAME_HEADER_BYTES)?;
        let need = FrameHeader::open(bytes).map_or(FRAME_HEADER_BYTES, |frame| {
            FRAME_HEADER_BYTES + crate::format::index(frame.payload_len)
        });
        Ok(self.at(ops, (number, file), offset, need)?)
    }

    /// The block at `offset`, or `None` at the end of the file.
    fn block<I: Io>(
        &mut self,
        ops: &mut Ops<I>,
        number: u32,
        file: FileId,
        offset: u64,
    ) -> Result<Option<&[u8]>, OpenError> {
        let bytes = self.at(ops, (number, file), offset, FRAME_HEADER_BYTES)?;
        Ok((bytes.len() >= FRAME_HEADER_BYTES).then_some(bytes))
    }
}
