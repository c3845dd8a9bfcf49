//! Materialise: the pending mail of users into their files, coalesced.
//!
//! Per user the writes between two renames, unlinks or directories are gathered by file: one open,
//! one pwritev per stretch of neighbouring bytes, one close, no stat. With [`WorkSync::Each`] a
//! descriptor lives from its file's first write to the fdatasync (an evicted inode would forget its
//! error), and files are synced in groups, so that one journal commit serves many; directories that
//! got names are fsynced once at the end, the deeper ones first.

use std::collections::BTreeSet;
use std::io::IoSlice;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::OFlag;
use smallvec::SmallVec;

use super::compact::{bounded, damaged, message_bytes, prove};
use super::dir::{Dir, at, read_full, sync_data, within, write_all, write_all_vectored};
use crate::error::IoError;
use crate::format::store_line::StoreLine;
use crate::io::{AlignedBuf, Done, Piece, RelPath, Step, Work, WorkSync};
use crate::limits::{BLOCK_BYTES, FRAME_BYTES_MAX};

/// Pieces of one pwritev: `IOV_MAX` of Linux.
const SLICES_MAX: usize = 1024;

/// Bytes of one pwritev, so that what is read back from the log stays bounded.
const WRITE_BYTES_MAX: u64 = 4 << 20;

/// Files that wait, open, for their fdatasync. The whole process may have 1,024 descriptors.
const UNSYNCED_MAX: usize = 128;

/// Log files kept open while pieces are read back; all of a default shard's.
const LOGS_MAX: usize = 32;

/// Segments kept open while messages are copied; they are copied one segment behind the other.
const SEGMENTS_MAX: usize = 4;

pub(super) fn run(dir: &Dir, works: &[Work], stopped: &AtomicBool) -> Result<Done, IoError> {
    let mut run = Run {
        dir,
        logs: Vec::new(),
        segments: Vec::new(),
        unsynced: Vec::new(),
        names: BTreeSet::new(),
        bytes: 0,
        syncs: 0,
    };
    for work in works {
        if stopped.load(Ordering::Acquire) {
            return Err(dir.error("materialise", 0, 0, libc::ECANCELED));
        }
        run.work(work)?;
    }
    run.sync()?;
    Ok(Done::Materialised {
        bytes: run.bytes,
        syncs: run.syncs,
    })
}

/// Neighbouring bytes of one file.
struct Stretch<'a> {
    offset: u64,
    end: u64,
    pieces: SmallVec<[&'a Piece; 8]>,
}

/// The gathered writes of one file.
struct FileWrites<'a> {
    path: &'a RelPath,
    stretches: SmallVec<[Stretch<'a>; 2]>,
}

struct Run<'a> {
    dir: &'a Dir,
    logs: Vec<(&'a RelPath, OwnedFd)>,
    segments: Vec<(&'a RelPath, OwnedFd)>,
    /// Written, to be fdatasynced.
    unsynced: Vec<(&'a RelPath, OwnedFd)>,
    /// Directories that got names, to be fsynced.
    names: BTreeSet<RelPath>,
    bytes: u64,
    syncs: u64,
}

impl<'a> Run<'a> {
    fn work(&mut self, work: &'a Work) -> Result<(), IoError> {
        let mut files = SmallVec::<[FileWrites<'a>; 4]>::new();
        for step in &work.steps {
            if let Step::Write {
                path,
                offset,
                pieces,
            } = step
            {
                gather(&mut files, path, *offset, pieces)?;
            } else {
                self.write_files(&mut files, work.sync)?;
                self.step(step, work.sync)?;
            }
        }
        self.write_files(&mut files, work.sync)
    }

    fn step(&mut self, step: &Step, sync: WorkSync) -> Result<(), IoError> {
        match step {
            Step::Write { .. } => unreachable!("gathered by the caller"),
            Step::MakeDir(path) => {
                self.dir.make_dir(path)?;
                self.named(path, sync);
            }
            Step::Replace { path, data } => self.replace(path, data, sync)?,
            Step::Rename { from, to } => {
                match self.dir.rename(from, to) {
                    Err(error) if error.is_not_found() && self.dir.exists(to) => {}
                    other => other?,
                }
                self.named(from, sync);
                self.named(to, sync);
            }
            Step::Unlink(path) => {
                self.dir.unlink(path)?;
                self.named(path, sync);
            }
        }
        Ok(())
    }

    /// The directory of `path` is to be synced. Also where nothing changed: after a kill the name
    /// may be there and not durable yet.
    fn named(&mut self, path: &RelPath, sync: WorkSync) {
        if sync == WorkSync::Each {
            self.names.insert(path.parent());
        }
    }

    fn replace(&mut self, path: &RelPath, data: &[u8], sync: WorkSync) -> Result<(), IoError> {
        let aside = path.with_suffix(".new");
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC;
        let fd = self.dir.open("create", &aside, flags)?;
        write_all(&fd, &aside, 0, data)?;
        sync_data(&fd, &aside)?;
        self.bytes += data.len() as u64;
        self.syncs += 1;
        self.dir.rename(&aside, path)?;
        self.named(path, sync);
        Ok(())
    }

    fn write_files(
        &mut self,
        files: &mut SmallVec<[FileWrites<'a>; 4]>,
        sync: WorkSync,
    ) -> Result<(), IoError> {
        for file in files.drain(..) {
            let fd = self.open(&file, sync)?;
            for stretch in &file.stretches {
                self.write_stretch(&fd, file.path, stretch)?;
            }
            if sync == WorkSync::Each {
                self.unsynced.push((file.path, fd));
                if self.unsynced.len() >= UNSYNCED_MAX {
                    self.sync_files()?;
                }
            }
        }
        Ok(())
    }

    fn open(&mut self, file: &FileWrites<'a>, sync: WorkSync) -> Result<OwnedFd, IoError> {
        let create = OFlag::O_WRONLY | OFlag::O_CREAT;
        if sync == WorkSync::Later {
            return self.dir.open("open", file.path, create);
        }
        // A file that begins here may have been made by a process that was killed: its name may be
        // as little durable as a new one's.
        if file.stretches.iter().any(|stretch| stretch.offset == 0) {
            self.named(file.path, sync);
        }
        match self.dir.open("open", file.path, OFlag::O_WRONLY) {
            Err(error) if error.is_not_found() => {
                self.named(file.path, sync);
                self.dir.open("open", file.path, create)
            }
            other => other,
        }
    }

    /// One pwritev, or several where it has too many pieces or bytes.
    fn write_stretch(
        &mut self,
        fd: &OwnedFd,
        path: &'a RelPath,
        stretch: &Stretch<'a>,
    ) -> Result<(), IoError> {
        let mut offset = stretch.offset;
        let mut loaded = SmallVec::<[Loaded<'a>; 8]>::new();
        let mut bytes = 0;
        for piece in &stretch.pieces {
            if loaded.len() == SLICES_MAX || (bytes > 0 && bytes + piece.len() > WRITE_BYTES_MAX) {
                write_loaded(fd, path, offset, &loaded)?;
                loaded.clear();
                offset += bytes;
                bytes = 0;
            }
            loaded.push(self.load(piece)?);
            bytes += piece.len();
        }
        write_loaded(fd, path, offset, &loaded)?;
        self.bytes += stretch.end - stretch.offset;
        Ok(())
    }

    fn load(&mut self, piece: &'a Piece) -> Result<Loaded<'a>, IoError> {
        match piece {
            Piece::Bytes(bytes) => Ok(Loaded::Memory(bytes)),
            Piece::Log {
                path,
                offset,
                len,
                crc,
            } => self.read_log(path, *offset, u64::from(*len), *crc),
            Piece::Message {
                path,
                offset,
                skip,
                line,
            } => self.read_message(path, *offset, *skip, line),
        }
    }

    /// Reads a piece back past the page cache and checks it.
    fn read_log(
        &mut self,
        path: &'a RelPath,
        offset: u64,
        len: u64,
        crc: u32,
    ) -> Result<Loaded<'a>, IoError> {
        let fail = within("read", path, offset, len);
        if len > FRAME_BYTES_MAX {
            return Err(fail(libc::EINVAL));
        }
        let start = offset - offset % BLOCK_BYTES;
        let skip = usize::try_from(offset - start).or(Err(fail(libc::EINVAL)))?;
        let len = usize::try_from(len).or(Err(fail(libc::EINVAL)))?;
        let mut buf = AlignedBuf::try_zeroed(skip + len).ok_or_else(|| fail(libc::ENOMEM))?;
        let fd = self.log(path)?;
        let count = read_full(fd, path, start, &mut buf)?;
        let range = skip..skip + len;
        match buf.get(range.clone()).filter(|_| range.end <= count) {
            None => Err(fail(libc::EIO)),
            Some(body) if crc32fast::hash(body) != crc => Err(IoError {
                operation: "checksum",
                ..fail(libc::EIO)
            }),
            Some(_) => Ok(Loaded::Log(buf, range)),
        }
    }

    /// Reads a message out of a segment and proves it.
    fn read_message(
        &mut self,
        path: &'a RelPath,
        offset: u64,
        skip: u16,
        line: &StoreLine,
    ) -> Result<Loaded<'a>, IoError> {
        let len = message_bytes(skip, line);
        let mut buf = Vec::new();
        let count = bounded(path, offset, len)?;
        if buf.try_reserve_exact(count).is_err() {
            return Err(damaged(path, offset, len, libc::ENOMEM));
        }
        buf.resize(count, 0);
        let fd = self.segment(path)?;
        let count = read_full(fd, path, offset, &mut buf)?;
        buf.truncate(count);
        prove(&buf, (path, offset), skip, line)?;
        Ok(Loaded::Segment(buf))
    }

    fn segment(&mut self, path: &'a RelPath) -> Result<&OwnedFd, IoError> {
        let found = self.segments.iter().position(|(open, _)| *open == path);
        let place = if let Some(place) = found {
            place
        } else {
            let fd = self.dir.open("open", path, OFlag::O_RDONLY)?;
            if self.segments.len() >= SEGMENTS_MAX {
                self.segments.remove(0);
            }
            self.segments.push((path, fd));
            self.segments.len() - 1
        };
        let (_, fd) = self.segments.get(place).expect("found or pushed above");
        Ok(fd)
    }

    fn log(&mut self, path: &'a RelPath) -> Result<&OwnedFd, IoError> {
        let found = self.logs.iter().position(|(open, _)| *open == path);
        let place = if let Some(place) = found {
            place
        } else {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECT;
            let fd = self.dir.open("open", path, flags)?;
            if self.logs.len() >= LOGS_MAX {
                self.logs.remove(0);
            }
            self.logs.push((path, fd));
            self.logs.len() - 1
        };
        let (_, fd) = self.logs.get(place).expect("found or pushed above");
        Ok(fd)
    }

    fn sync_files(&mut self) -> Result<(), IoError> {
        for (path, fd) in self.unsynced.drain(..) {
            sync_data(&fd, path)?;
            self.syncs += 1;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), IoError> {
        self.sync_files()?;
        for dir in self.names.iter().rev() {
            self.dir.sync_dir(dir)?;
            self.syncs += 1;
        }
        Ok(())
    }
}

/// A piece in memory.
enum Loaded<'a> {
    Memory(&'a [u8]),
    Log(AlignedBuf, Range<usize>),
    Segment(Vec<u8>),
}

impl Loaded<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Memory(bytes) => bytes,
            Self::Log(buf, range) => buf.get(range.clone()).expect("checked when it was read"),
            Self::Segment(bytes) => bytes,
        }
    }
}

fn write_loaded(
    fd: &OwnedFd,
    path: &RelPath,
    offset: u64,
    loaded: &[Loaded<'_>],
) -> Result<(), IoError> {
    let mut slices: SmallVec<[IoSlice<'_>; 8]> = loaded
        .iter()
        .map(|piece| IoSlice::new(piece.bytes()))
        .collect();
    write_all_vectored(fd, path, offset, &mut slices)
}

impl Piece {
    /// Length in bytes.
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Log { len, .. } => u64::from(*len),
            Self::Message { skip, line, .. } => message_bytes(*skip, line),
        }
    }
}

/// Adds a write to those of its file; to its last stretch if it begins where that ends.
fn gather<'a>(
    files: &mut SmallVec<[FileWrites<'a>; 4]>,
    path: &'a RelPath,
    offset: u64,
    pieces: &'a [Piece],
) -> Result<(), IoError> {
    let len = pieces.iter().map(Piece::len).sum::<u64>();
    let end = offset
        .checked_add(len)
        .ok_or_else(|| at("write", path)(libc::EINVAL))?;
    let place = files.iter().position(|file| file.path == path);
    let place = place.unwrap_or_else(|| {
        files.push(FileWrites {
            path,
            stretches: SmallVec::new(),
        });
        files.len() - 1
    });
    let file = files.get_mut(place).expect("found or pushed above");
    match file.stretches.last_mut() {
        Some(last) if last.end == offset => {
            last.pieces.extend(pieces);
            last.end = end;
        }
        _ => file.stretches.push(Stretch {
            offset,
            end,
            pieces: pieces.iter().collect(),
        }),
    }
    Ok(())
}
