//! A walk over the frames of a log that may be growing, from a position on, over files that left the
//! log for the archive. It stops where the log ends now, and can be asked again.

use std::collections::BTreeMap;

use super::BackupError;
use crate::check::ReadTree;
use crate::error::{Corrupt, CorruptReason, IoError};
use crate::format::frame::{FRAME_HEADER_BYTES, FrameError, FrameHeader};
use crate::format::log_file::{LOG_HEADER_BYTES, LogFileHeader};
use crate::format::store_file::StoreId;
use crate::io::RelPath;
use crate::position::Lsn;

/// Read at once.
const WINDOW: usize = 1 << 20;

/// Looks for a log file again after one vanished under its name: it is on its way to the archive.
const LOOKS_MAX: u32 = 8;

/// One step of a walk.
#[derive(Debug)]
pub enum Step {
    /// The walk goes on in a file.
    File {
        /// Its header.
        header: LogFileHeader,
        /// Where it is now.
        path: RelPath,
    },
    /// A whole frame.
    Frame {
        /// Its header.
        frame: Box<FrameHeader>,
        /// In bytes from the start of its file.
        offset: u64,
        /// Header and records; of a frame without records its header alone.
        bytes: Vec<u8>,
    },
    /// The log ends here, so far.
    End,
}

struct Current {
    path: RelPath,
    header: LogFileHeader,
}

/// See the module.
pub struct Walker<'a> {
    tree: &'a dyn ReadTree,
    store: StoreId,
    log_id: u32,
    pos: Lsn,
    previous_crc: u32,
    current: Option<Current>,
    /// Headers of archived files, which never change.
    archived: BTreeMap<RelPath, LogFileHeader>,
    window: Vec<u8>,
    window_at: u64,
}

impl<'a> Walker<'a> {
    /// A walk over one log of a store, from a position on; `previous_crc` is of the frame that ends
    /// there, as a superblock has it.
    pub fn new(
        tree: &'a dyn ReadTree,
        (store, log_id): (StoreId, u32),
        (pos, previous_crc): (Lsn, u32),
    ) -> Self {
        Self {
            tree,
            store,
            log_id,
            pos,
            previous_crc,
            current: None,
            archived: BTreeMap::new(),
            window: Vec::new(),
            window_at: 0,
        }
    }

    /// Behind the last frame, and that frame's sum.
    pub fn end(&self) -> (Lsn, u32) {
        (self.pos, self.previous_crc)
    }

    /// The file in which the walk is.
    pub fn path(&self) -> Option<&RelPath> {
        self.current.as_ref().map(|current| &current.path)
    }

    /// Bytes of the file in which the walk is, whatever its name is by now.
    pub fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, BackupError> {
        for _look in 0..LOOKS_MAX {
            let Some(current) = &self.current else {
                return Ok(Vec::new());
            };
            match self.tree.read(&current.path, offset, len) {
                Err(error) if error.is_not_found() => self.look_again()?,
                other => return Ok(other?),
            }
        }
        Err(self.gap())
    }

    /// The next step. After [`Step::End`] it may be asked again.
    pub fn step(&mut self) -> Result<Step, BackupError> {
        if self.current.is_none() {
            return self.begin();
        }
        for _look in 0..LOOKS_MAX {
            match self.try_step() {
                Err(BackupError::Io(error)) if error.is_not_found() => self.look_again()?,
                other => return other,
            }
        }
        Err(self.gap())
    }

    /// The name that a file of the log has now, or in the archive.
    pub(crate) fn locate(
        &mut self,
        header: &LogFileHeader,
    ) -> Result<Option<RelPath>, BackupError> {
        let files = self.files()?.into_iter();
        let mut same = files.filter(|(_, other, _)| other == header);
        Ok(same.next().map(|(path, ..)| path))
    }

    fn begin(&mut self) -> Result<Step, BackupError> {
        let files = self.files()?;
        let pos = self.pos;
        let holds = |(_, header, bytes): &&(RelPath, LogFileHeader, u64)| {
            let end = header.start_lsn.after(bytes.saturating_sub(header_bytes()));
            header.start_lsn <= pos && pos <= end
        };
        let first = files.iter().filter(holds);
        if let Some((path, header, _)) = first.max_by_key(|(_, header, _)| header.sequence) {
            self.enter(path.clone(), *header);
            return Ok(Step::File {
                header: *header,
                path: path.clone(),
            });
        }
        // A log that was never written has nothing behind the position.
        let later = files.iter().any(|(_, header, _)| header.start_lsn > pos);
        if later {
            Err(self.gap())
        } else {
            Ok(Step::End)
        }
    }

    fn enter(&mut self, path: RelPath, header: LogFileHeader) {
        self.current = Some(Current { path, header });
        self.window.clear();
    }

    fn gap(&self) -> BackupError {
        BackupError::Gap {
            log_id: self.log_id,
            lsn: self.pos.value(),
            after: self.path().map(ToString::to_string),
        }
    }

    /// The file of the walk has another name now.
    fn look_again(&mut self) -> Result<(), BackupError> {
        self.window.clear();
        let files = self.files()?;
        let Some(current) = &mut self.current else {
            return Ok(());
        };
        let same = |(_, header, _): &&(RelPath, LogFileHeader, u64)| *header == current.header;
        if let Some((path, _, _)) = files.iter().find(same) {
            current.path = path.clone();
        }
        Ok(())
    }

    fn try_step(&mut self) -> Result<Step, BackupError> {
        let Some(current) = &self.current else {
            return Ok(Step::End);
        };
        let header = current.header;
        if let Ok(step) = self.frame(&header)? {
            return Ok(step);
        }
        let files = self.files()?;
        let pos = self.pos;
        // Whatever names the file as its predecessor, or begins here: one that no frame came into before a
        // crash is armed again sooner or later, and the chain that went through it is cut. Frames name the
        // one before them, too.
        let later = files
            .iter()
            .filter(|(_, other, _)| other.sequence > header.sequence);
        let here = later.clone().filter(|(_, other, _)| other.start_lsn == pos);
        if let Some((path, next, _)) = here.max_by_key(|(_, other, _)| other.sequence) {
            let (path, next) = (path.clone(), *next);
            self.enter(path.clone(), next);
            return Ok(Step::File { header: next, path });
        }
        let follows = later
            .clone()
            .filter(|(_, other, _)| other.previous_salt == header.salt);
        let Some((path, next, _)) = follows.max_by_key(|(_, other, _)| other.sequence) else {
            let beyond = later.filter(|(_, other, _)| other.start_lsn > pos);
            return self.end_of_log(&header, beyond);
        };
        // It is armed ahead, or the log went on since the last look.
        let is_filled = self.has_frames(path, next)?;
        match self.frame(&header)? {
            Ok(step) => Ok(step),
            Err(error) if is_filled => Err(self.damaged(&header, error)),
            Err(_) => {
                self.window.clear();
                Ok(Step::End)
            }
        }
    }

    /// The log ends here, unless it has a hole: files behind it that are filled.
    fn end_of_log<'f>(
        &mut self,
        header: &LogFileHeader,
        beyond: impl Iterator<Item = &'f (RelPath, LogFileHeader, u64)>,
    ) -> Result<Step, BackupError> {
        let mut is_filled = false;
        for (path, other, _) in beyond {
            is_filled |= self.has_frames(path, other)?;
        }
        match self.frame(header)? {
            Ok(step) => Ok(step),
            Err(_) if is_filled => Err(self.gap()),
            Err(_) => {
                self.window.clear();
                Ok(Step::End)
            }
        }
    }

    /// Whether a file has its first frame: what is before it was full then.
    fn has_frames(&self, path: &RelPath, header: &LogFileHeader) -> Result<bool, IoError> {
        let bytes = self.tree.read(path, header_bytes(), FRAME_HEADER_BYTES)?;
        let frame = FrameHeader::open(&bytes);
        Ok(frame.is_ok_and(|frame| frame.salt == header.salt && frame.lsn == header.start_lsn))
    }

    fn damaged(&self, header: &LogFileHeader, error: FrameError) -> BackupError {
        let file = self.path().map(ToString::to_string).unwrap_or_default();
        BackupError::Damaged(Corrupt {
            file,
            offset: header.offset_of(self.pos).unwrap_or(0),
            reason: error.reason(),
        })
    }

    /// The frame at the walk's position, read anew if the window shows none.
    fn frame(&mut self, header: &LogFileHeader) -> Result<Result<Step, FrameError>, BackupError> {
        let found = self.frame_in_window(header)?;
        if found.is_ok() {
            return Ok(found);
        }
        self.window.clear();
        self.frame_in_window(header)
    }

    fn frame_in_window(
        &mut self,
        header: &LogFileHeader,
    ) -> Result<Result<Step, FrameError>, BackupError> {
        let offset = header.offset_of(self.pos).unwrap_or(0);
        let (salt, pos, previous) = (header.salt, self.pos, self.previous_crc);
        let bytes = self.at(offset, FRAME_HEADER_BYTES)?;
        let frame = match FrameHeader::open_at(bytes, salt, pos, previous) {
            Ok(frame) => frame,
            Err(error) => return Ok(Err(error)),
        };
        // `open_at` bounded the length by that of the largest frame.
        let len = FRAME_HEADER_BYTES + crate::format::index(frame.payload_len);
        let bytes = self.at(offset, len)?;
        if let Err(error) = frame.payload(bytes) {
            return Ok(Err(error));
        }
        let bytes = bytes.to_vec();
        self.pos = frame.end();
        self.previous_crc = frame.header_crc;
        Ok(Ok(Step::Frame {
            frame: Box::new(frame),
            offset,
            bytes,
        }))
    }

    /// `len` bytes of the walk's file, fewer only at its end.
    fn at(&mut self, offset: u64, len: usize) -> Result<&[u8], BackupError> {
        let from = offset.checked_sub(self.window_at);
        let from = from.and_then(|from| usize::try_from(from).ok());
        let held = from.filter(|from| {
            let end = from.checked_add(len);
            end.is_some_and(|end| end <= self.window.len())
        });
        let from = if let Some(from) = held {
            from
        } else {
            let Some(current) = &self.current else {
                return Ok(&[]);
            };
            self.window = self.tree.read(&current.path, offset, len.max(WINDOW))?;
            self.window_at = offset;
            0
        };
        let end = (from + len).min(self.window.len());
        Ok(self.window.get(from..end).unwrap_or_default())
    }

    /// All armed files: in the log and in the archive.
    fn files(&mut self) -> Result<Vec<(RelPath, LogFileHeader, u64)>, BackupError> {
        let mut files = Vec::new();
        // The archive comes last: what leaves the log meanwhile is found there.
        let dirs = [
            RelPath::log_dir(self.log_id),
            RelPath::archive_dir(self.log_id),
        ];
        for (place, dir) in dirs.iter().enumerate() {
            let names = match self.tree.list(dir) {
                Ok(names) => names,
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(error.into()),
            };
            for (name, bytes) in names {
                let is_log = [".log", ".held"].iter().any(|end| name.ends_with(end));
                let Some(path) = dir.entry(&name).filter(|_| is_log) else {
                    continue;
                };
                if let Some(header) = self.header(&path, place == 1)? {
                    files.push((path, header, bytes));
                }
            }
        }
        Ok(files)
    }

    fn header(
        &mut self,
        path: &RelPath,
        archived: bool,
    ) -> Result<Option<LogFileHeader>, BackupError> {
        if let Some(known) = self.archived.get(path) {
            return Ok(Some(*known));
        }
        let bytes = match self.tree.read(path, 0, LOG_HEADER_BYTES) {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        match LogFileHeader::open(&bytes, self.store, self.log_id) {
            Ok(header) => {
                if archived {
                    self.archived.insert(path.clone(), header);
                }
                Ok(Some(header))
            }
            Err(reason @ (CorruptReason::Version { .. } | CorruptReason::Identity)) => {
                let file = path.to_string();
                Err(BackupError::Damaged(Corrupt {
                    file,
                    offset: 0,
                    reason,
                }))
            }
            // Never armed; or being armed right now, and then nobody needs it yet.
            Err(_) => Ok(None),
        }
    }
}

fn header_bytes() -> u64 {
    u64::try_from(LOG_HEADER_BYTES).unwrap_or(4096)
}
