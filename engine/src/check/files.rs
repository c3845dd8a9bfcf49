//! The log files of one log: which were armed, which belong to it, which follow one another, and the
//! one whose header is damaged but whose frames the log needs.

use super::Checker;
use super::Severity;
use super::tree::{ReadTree, Window};
use crate::error::{CorruptReason, IoError};
use crate::format::Version;
use crate::format::frame::{FRAME_HEADER_BYTES, FrameHeader};
use crate::format::index;
use crate::format::log_file::{LOG_HEADER_BYTES, LogFileHeader};
use crate::format::store_file::StoreFile;
use crate::io::RelPath;
use crate::limits::BLOCK_BYTES;
use crate::position::Lsn;
use ringpost_netproto::id::WallNs;

/// The sequence of a file whose header is made of its frames: below its successor's.
pub(super) const HIDDEN: u64 = 0;

/// What the first block of a log file says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FileState {
    /// A header of this log.
    Armed,
    /// Zeros: never used.
    Blank,
    /// Neither: torn or damaged.
    Damaged,
    /// Of another store, log or version, or a copy of another file: no part of the log.
    Stray,
}

/// A log file whose first block was read.
#[derive(Clone, Debug)]
pub(crate) struct LogFile {
    pub(crate) path: RelPath,
    pub(crate) bytes: u64,
    pub(crate) state: FileState,
    /// `Some` if it is armed.
    pub(crate) header: Option<LogFileHeader>,
}

impl LogFile {
    /// The position behind its last byte.
    pub(crate) fn end(&self, header: &LogFileHeader) -> Lsn {
        header
            .start_lsn
            .after(self.bytes.saturating_sub(BLOCK_BYTES))
    }
}

impl Checker<'_> {
    /// Reads the first block of each log file.
    pub(super) fn log_files(&mut self, store: &StoreFile, log_id: u32) -> Vec<LogFile> {
        let mut files: Vec<LogFile> = Vec::new();
        for (name, bytes) in self.list(&RelPath::log_dir(log_id)).unwrap_or_default() {
            let number = name.strip_suffix(".log").and_then(|stem| stem.parse().ok());
            let path = number.map(|number| RelPath::log_file(log_id, number));
            let Some(path) = path.filter(|path| path.file_name() == name) else {
                continue;
            };
            let Some(block) = self.read(&path, 0, LOG_HEADER_BYTES) else {
                continue;
            };
            let mut file = LogFile {
                path,
                bytes,
                state: FileState::Blank,
                header: None,
            };
            match LogFileHeader::open(&block, store.store, log_id) {
                Ok(header) => {
                    file.state = FileState::Armed;
                    file.header = Some(header);
                }
                Err(_) if block.iter().all(|byte| *byte == 0) => {}
                Err(reason @ (CorruptReason::Identity | CorruptReason::Version { .. })) => {
                    file.state = FileState::Stray;
                    self.damage(&file.path, 0, reason);
                }
                Err(reason) => {
                    // Whether it hides frames is seen when the log is read.
                    file.state = FileState::Damaged;
                    self.found(Severity::Minor, &file.path, 0, reason);
                }
            }
            files.push(file);
        }
        self.copies(&mut files);
        files
    }

    /// Two files cannot be armed by one arming: the one that holds less of the log is a copy that
    /// somebody made.
    fn copies(&mut self, files: &mut [LogFile]) {
        let mut best: Vec<(LogFileHeader, u64, usize)> = Vec::new();
        let mut strays = Vec::new();
        for (index, file) in files.iter().enumerate() {
            let Some(header) = file.header else { continue };
            let same = |other: &LogFileHeader| {
                other.salt == header.salt && other.sequence == header.sequence
            };
            let place = best.iter().position(|(other, _, _)| same(other));
            let Some(known) = place.and_then(|place| best.get_mut(place)) else {
                best.push((header, u64::MAX, index));
                continue;
            };
            if known.1 == u64::MAX {
                known.1 = files
                    .get(known.2)
                    .map_or(0, |file| frames_end(self.tree, file, &header));
            }
            let end = frames_end(self.tree, file, &header);
            if end > known.1 {
                strays.push(known.2);
                (known.1, known.2) = (end, index);
            } else {
                strays.push(index);
            }
        }
        for stray in strays {
            if let Some(file) = files.get_mut(stray) {
                file.state = FileState::Stray;
                file.header = None;
                let reason = CorruptReason::Disagree("this log file is a copy of another one");
                self.damage(&file.path, 0, reason);
            }
        }
    }
}

/// The position up to which the frames of a file follow one another.
fn frames_end(tree: &dyn ReadTree, file: &LogFile, header: &LogFileHeader) -> u64 {
    let mut window = Window::new(tree, &file.path);
    let mut pos = header.start_lsn;
    while pos < file.end(header) {
        let offset = header.offset_of(pos).unwrap_or(file.bytes);
        let frame = header_at(&mut window, offset);
        match frame.filter(|frame| frame.salt == header.salt && frame.lsn == pos) {
            Some(frame) => pos = frame.end(),
            None => break,
        }
    }
    pos.value()
}

/// A whole frame header at `offset`, of whatever file and position.
pub(super) fn header_at(window: &mut Window<'_>, offset: u64) -> Option<FrameHeader> {
    let bytes = window.at(offset, FRAME_HEADER_BYTES).ok()?;
    FrameHeader::open(bytes).ok()
}

/// Whether the records of a frame are those that its header was written for.
fn is_whole(window: &mut Window<'_>, offset: u64, frame: &FrameHeader) -> bool {
    let bytes = window.at(offset, FRAME_HEADER_BYTES + index(frame.payload_len));
    bytes.is_ok_and(|bytes| frame.payload(bytes).is_ok())
}

/// Of the armed files that are wanted, the one armed last: its place.
pub(super) fn latest(
    files: &[LogFile],
    wanted: impl Fn(&LogFileHeader, &LogFile) -> bool,
) -> Option<(usize, LogFileHeader)> {
    files
        .iter()
        .enumerate()
        .filter_map(|(index, file)| Some((index, file, file.header?)))
        .filter(|(_, file, header)| wanted(header, file))
        .max_by_key(|(_, _, header)| header.sequence)
        .map(|(index, _, header)| (index, header))
}

/// A frame that proves that what is missing at `pos` was flushed, hence acknowledged: in the file at
/// `here`, in one that begins later, or in one whose header is damaged.
pub(super) fn is_vouched_for(
    tree: &dyn ReadTree,
    files: &[LogFile],
    here: Option<usize>,
    pos: Lsn,
) -> Result<bool, IoError> {
    for (index, file) in files.iter().enumerate() {
        let wanted = match (file.state, file.header) {
            (FileState::Damaged | FileState::Blank, _) => true,
            (_, Some(header)) => Some(index) == here || header.start_lsn >= pos,
            _ => false,
        };
        if !wanted {
            continue;
        }
        let mut window = Window::new(tree, &file.path);
        let mut at = BLOCK_BYTES;
        while at < file.bytes {
            let bytes = window.at(at, FRAME_HEADER_BYTES)?;
            let vouches = FrameHeader::open(bytes).is_ok_and(|frame| {
                let ours = file.header.is_none_or(|header| header.salt == frame.salt);
                ours && frame.lsn >= pos && frame.flushed_lsn > pos
            });
            if vouches {
                return Ok(true);
            }
            at += BLOCK_BYTES;
        }
    }
    Ok(false)
}

/// What a frame has to be that proves that the log goes on in a file without a header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Proof {
    /// There: something else says that the log goes on.
    Header,
    /// Whole: nothing else does, and a file that is being armed anew may hold a frame that was torn and given
    /// up.
    Frame,
}

/// The file with a damaged header that holds the frame at `pos`, and the header that its frames
/// prove: salt and `start_lsn`.
pub(super) fn hidden(
    tree: &dyn ReadTree,
    files: &[LogFile],
    like: &LogFileHeader,
    (pos, previous): (Lsn, Option<u32>),
    proof: Proof,
) -> Option<(usize, LogFileHeader)> {
    // The header may be so damaged that it is zeros.
    let headless = files
        .iter()
        .enumerate()
        .filter(|(_, file)| matches!(file.state, FileState::Damaged | FileState::Blank));
    for (index, file) in headless {
        let mut window = Window::new(tree, &file.path);
        let mut at = BLOCK_BYTES;
        while at < file.bytes {
            let first = header_at(&mut window, at);
            let start = first.and_then(|frame| {
                let start = frame.lsn.value().checked_sub(at - BLOCK_BYTES)?;
                Some((Lsn::new(start), frame.salt))
            });
            at += BLOCK_BYTES;
            let Some((start_lsn, salt)) = start.filter(|(start, _)| *start <= pos) else {
                continue;
            };
            let header = LogFileHeader {
                store: like.store,
                log_id: like.log_id,
                sequence: HIDDEN,
                salt,
                start_lsn,
                previous_salt: 0,
                armed_at: WallNs::new(0),
                version: Version::OURS,
            };
            let offset = header.offset_of(pos).unwrap_or(file.bytes);
            let frame = header_at(&mut window, offset).filter(|frame| {
                frame.salt == salt
                    && frame.lsn == pos
                    && previous.is_none_or(|previous| previous == frame.previous_crc)
            });
            let holds = |frame: FrameHeader| {
                proof == Proof::Header || is_whole(&mut window, offset, &frame)
            };
            if frame.is_some_and(holds) {
                return Some((index, header));
            }
        }
    }
    None
}

/// Of the armed files that begin above `pos`, the first that holds frames: the log goes on there when
/// the file between is gone.
pub(super) fn behind_gap(
    tree: &dyn ReadTree,
    files: &[LogFile],
    pos: Lsn,
) -> Option<(usize, LogFileHeader)> {
    let holds = |file: &LogFile, header: &LogFileHeader| {
        let mut window = Window::new(tree, &file.path);
        header_at(&mut window, BLOCK_BYTES)
            .is_some_and(|frame| frame.salt == header.salt && frame.lsn == header.start_lsn)
    };
    files
        .iter()
        .enumerate()
        .filter_map(|(index, file)| Some((index, file, file.header?)))
        .filter(|(_, file, header)| header.start_lsn > pos && holds(file, header))
        .min_by_key(|(_, _, header)| header.start_lsn)
        .map(|(index, _, header)| (index, header))
}

/// Where a file begins that was armed behind `pos`, the end of the file with this header, and whose
/// predecessor is not there; of several the last. A file is armed when the one before it is in use, and that
/// one is not armed again before a checkpoint has passed it: a shard does not open such a log.
pub(super) fn missed(files: &[LogFile], last: &LogFileHeader, pos: Lsn) -> Option<Lsn> {
    let headers = || files.iter().filter_map(|file| file.header);
    headers()
        .filter(|header| {
            let before = header.previous_salt;
            header.start_lsn > pos
                && header.sequence > last.sequence
                && before != 0
                && before != last.salt
                && headers().all(|other| other.salt != before)
        })
        .map(|header| header.start_lsn)
        .max()
}
