//! The single steps of an op, and what each does to the store.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use fastrand::Rng;

use super::config::{Among, SimConfig};
use super::store::{InodeId, Store, part, plain, size};
use crate::canary::{self, Canary};
use crate::error::IoError;
use crate::io::flusher::{bounded, damaged, expand, prove};
use crate::io::{Op, OpenMode, Piece, RelPath, Step, Work, WorkSync};

/// Bytes of one write of zeros.
const CHUNK: u64 = 1 << 20;

/// Bytes of a block: what an `O_DIRECT` write is cut at.
const BLOCK: usize = 4096;

/// An open file.
#[derive(Clone, Debug)]
pub(super) struct Handle {
    pub(super) inode: InodeId,
    pub(super) path: RelPath,
    pub(super) mode: OpenMode,
}

/// How a file comes to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Birth {
    Exclusive,
    Fresh,
    IfMissing,
}

/// One step. Crash points lie before each that changes something.
#[derive(Clone, Debug)]
pub(super) enum Act {
    Create(RelPath, Birth),
    WritePath(RelPath, u64, Vec<Piece>),
    Zero(RelPath, u64, u64),
    Cut(RelPath, u64),
    WriteFile(InodeId, RelPath, u64, Bytes),
    WriteDirect(InodeId, RelPath, u64, Bytes),
    SyncFile(InodeId, RelPath),
    SyncPath(RelPath),
    SyncDir(RelPath),
    SyncTree,
    MakeDir(RelPath),
    Link(RelPath, RelPath),
    Rename(RelPath, RelPath),
    /// A missing source is success if the target exists.
    RenameAgain(RelPath, RelPath),
    Unlink(RelPath),
    Copy(RelPath, RelPath, u64),
    /// Nothing changes; the op looks when it ends.
    Look,
}

/// What a step is called, where it works, and how much it moves.
pub(super) struct Described {
    pub(super) operation: &'static str,
    pub(super) path: String,
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl Act {
    pub(super) fn changes(&self) -> bool {
        self.class() != Among::Reads
    }

    pub(super) fn syncs(&self) -> bool {
        self.class() == Among::Syncs
    }

    /// The narrowest class it belongs to.
    pub(super) fn class(&self) -> Among {
        match self {
            Self::Look => Among::Reads,
            Self::WritePath(..)
            | Self::Zero(..)
            | Self::Cut(..)
            | Self::WriteFile(..)
            | Self::WriteDirect(..)
            | Self::Copy(..) => Among::Writes,
            Self::Create(..)
            | Self::MakeDir(_)
            | Self::Link(..)
            | Self::Rename(..)
            | Self::RenameAgain(..)
            | Self::Unlink(_) => Among::Names,
            Self::SyncFile(..) | Self::SyncPath(_) | Self::SyncDir(_) | Self::SyncTree => {
                Among::Syncs
            }
        }
    }

    pub(super) fn is_among(&self, class: Among) -> bool {
        class == Among::Steps || class == self.class()
    }

    pub(super) fn describe(&self) -> Described {
        let (operation, path, offset, len) = match self {
            Self::Create(path, _) => ("create", path.as_str(), 0, 0),
            Self::WritePath(path, offset, pieces) => {
                let len = pieces.iter().map(Piece::len).sum();
                ("write", path.as_str(), *offset, len)
            }
            Self::Zero(path, offset, len) => ("write", path.as_str(), *offset, *len),
            Self::Cut(path, bytes) => ("fill with zeros", path.as_str(), 0, *bytes),
            Self::WriteFile(_, path, offset, data) | Self::WriteDirect(_, path, offset, data) => {
                ("write", path.as_str(), *offset, data.len() as u64)
            }
            Self::SyncFile(_, path) | Self::SyncPath(path) => ("fdatasync", path.as_str(), 0, 0),
            Self::SyncDir(path) => ("fsync", path.as_str(), 0, 0),
            Self::SyncTree => ("syncfs", ".", 0, 0),
            Self::MakeDir(path) => ("mkdir", path.as_str(), 0, 0),
            Self::Link(_, to) => ("link", to.as_str(), 0, 0),
            Self::Rename(_, to) | Self::RenameAgain(_, to) => ("rename", to.as_str(), 0, 0),
            Self::Unlink(path) => ("unlink", path.as_str(), 0, 0),
            Self::Copy(_, to, _) => ("copy", to.as_str(), 0, 0),
            Self::Look => ("look", "", 0, 0),
        };
        Described {
            operation,
            path: path.to_owned(),
            offset,
            len,
        }
    }

    pub(super) fn error(&self, errno: i32) -> IoError {
        let Described {
            operation,
            path,
            offset,
            len,
        } = self.describe();
        IoError {
            operation,
            path,
            offset,
            len,
            errno,
        }
    }
}

/// The steps of an op.
pub(super) fn plan(
    op: &Op,
    handle: Option<&Handle>,
    config: &SimConfig,
    rng: &mut Rng,
) -> VecDeque<Act> {
    let acts = match op {
        Op::Open {
            path,
            mode: OpenMode::Create,
        } => vec![Act::Create(path.clone(), Birth::Exclusive)],
        Op::LogWrite {
            offset, buf, len, ..
        } => on(handle, |inode, path| {
            let data = Bytes::copy_from_slice(part(buf, 0, *len));
            Act::WriteDirect(inode, path, *offset, data)
        }),
        Op::Write { offset, data, .. } => on(handle, |inode, path| {
            Act::WriteFile(inode, path, *offset, data.clone())
        }),
        Op::Sync { .. } => on(handle, Act::SyncFile),
        Op::SyncDir { path } => vec![Act::SyncDir(path.clone())],
        Op::MakeDir { path } => vec![Act::MakeDir(path.clone())],
        Op::Link { from, to } => vec![Act::Link(from.clone(), to.clone())],
        Op::Rename { from, to } => vec![Act::Rename(from.clone(), to.clone())],
        Op::Unlink { path } => vec![Act::Unlink(path.clone())],
        Op::LogCreate { path, bytes } => log_create(path, *bytes),
        Op::Materialise(works) => materialise(works),
        Op::SyncTree => vec![Act::SyncTree],
        Op::CopyExpanded { from, to, skip } => {
            vec![Act::Copy(from.clone(), to.clone(), *skip)]
        }
        Op::Open { .. }
        | Op::Close { .. }
        | Op::LogRead { .. }
        | Op::Read { .. }
        | Op::StartWriteback { .. }
        | Op::ListDir { .. }
        | Op::ReadFile { .. }
        | Op::FreeSpace => vec![Act::Look],
    };
    let mut split = VecDeque::with_capacity(acts.len());
    for act in acts {
        if config.short_one_in > 0 && rng.u32(..config.short_one_in) == 0 {
            split.extend(shorten(act, rng));
        } else {
            split.push_back(act);
        }
    }
    split
}

fn on(handle: Option<&Handle>, act: impl FnOnce(InodeId, RelPath) -> Act) -> Vec<Act> {
    let handle = handle.expect("checked at submit");
    vec![act(handle.inode, handle.path.clone())]
}

/// A write in two halves; anything else whole.
fn shorten(act: Act, rng: &mut Rng) -> Vec<Act> {
    match act {
        Act::WriteFile(inode, path, offset, data) if data.len() > 1 => {
            let (first, rest) = halves(&data, rng.usize(1..data.len()));
            let behind = offset + first.len() as u64;
            vec![
                Act::WriteFile(inode, path.clone(), offset, first),
                Act::WriteFile(inode, path, behind, rest),
            ]
        }
        Act::WriteDirect(inode, path, offset, data) if data.len() > BLOCK => {
            let at = rng.usize(1..data.len().div_ceil(BLOCK)) * BLOCK;
            let (first, rest) = halves(&data, at);
            let behind = offset + first.len() as u64;
            if canary::on(Canary::ShortTakenAsWhole) {
                return vec![Act::WriteDirect(inode, path, offset, first)];
            }
            vec![
                Act::WriteDirect(inode, path.clone(), offset, first),
                Act::WriteDirect(inode, path, behind, rest),
            ]
        }
        Act::WritePath(path, offset, mut pieces) if pieces.len() > 1 => {
            let rest = pieces.split_off(rng.usize(1..pieces.len()));
            let behind = offset + pieces.iter().map(Piece::len).sum::<u64>();
            vec![
                Act::WritePath(path.clone(), offset, pieces),
                Act::WritePath(path, behind, rest),
            ]
        }
        other => vec![other],
    }
}

fn halves(data: &Bytes, at: usize) -> (Bytes, Bytes) {
    (data.slice(..at), data.slice(at..))
}

fn log_create(path: &RelPath, bytes: u64) -> Vec<Act> {
    let mut acts = vec![Act::Create(path.clone(), Birth::IfMissing)];
    let mut offset = 0;
    while offset < bytes {
        let len = (bytes - offset).min(CHUNK);
        acts.push(Act::Zero(path.clone(), offset, len));
        offset += len;
    }
    acts.push(Act::Cut(path.clone(), bytes));
    acts.push(Act::SyncPath(path.clone()));
    acts.push(Act::SyncDir(path.parent()));
    acts
}

/// As the flusher does it, but a write is not merged with its neighbours: more crash points.
fn materialise(works: &[Work]) -> Vec<Act> {
    let mut acts = Vec::new();
    let mut files = BTreeSet::new();
    let mut dirs = BTreeSet::new();
    for work in works {
        let each = work.sync == WorkSync::Each;
        for step in &work.steps {
            match step {
                Step::MakeDir(path) => acts.push(Act::MakeDir(path.clone())),
                Step::Write {
                    path,
                    offset,
                    pieces,
                } => {
                    acts.push(Act::WritePath(path.clone(), *offset, pieces.clone()));
                    if each {
                        files.insert(path.clone());
                    }
                }
                Step::Replace { path, data } => {
                    let aside = path.with_suffix(".new");
                    let piece = Piece::Bytes(data.clone());
                    acts.push(Act::Create(aside.clone(), Birth::Fresh));
                    acts.push(Act::WritePath(aside.clone(), 0, vec![piece]));
                    acts.push(Act::SyncPath(aside.clone()));
                    acts.push(Act::Rename(aside, path.clone()));
                }
                Step::Rename { from, to } => {
                    acts.push(Act::RenameAgain(from.clone(), to.clone()));
                    if files.remove(from) {
                        files.insert(to.clone());
                    }
                }
                Step::Unlink(path) => {
                    acts.push(Act::Unlink(path.clone()));
                    files.remove(path);
                }
            }
            if each {
                dirs.extend(named(step));
            }
        }
    }
    acts.extend(files.into_iter().map(Act::SyncPath));
    acts.extend(dirs.into_iter().rev().map(Act::SyncDir));
    acts
}

/// The directories in which a step makes or removes names.
fn named(step: &Step) -> Vec<RelPath> {
    match step {
        Step::Write { offset: 1.., .. } => Vec::new(),
        Step::Write { path, .. }
        | Step::Replace { path, .. }
        | Step::MakeDir(path)
        | Step::Unlink(path) => vec![path.parent()],
        Step::Rename { from, to } => vec![from.parent(), to.parent()],
    }
}

impl Store {
    /// Does a step. `since` bounds what a sync covers, `room` what files may grow by. Tells whether
    /// a write made its file.
    pub(super) fn act(
        &mut self,
        act: &Act,
        since: u64,
        room: Option<u64>,
    ) -> Result<bool, IoError> {
        let fail = |errno| act.error(errno);
        match act {
            Act::WritePath(path, offset, pieces) => {
                let data = self.gather(pieces)?;
                let made = self.file(&plain(path.as_str())).is_err();
                let id = self.create_if_missing(&plain(path.as_str()));
                let id = id.map_err(|errno| IoError {
                    operation: "open",
                    ..fail(errno)
                })?;
                let written = self.write_within(id, *offset, &data, room);
                written.map(|()| made).map_err(fail)
            }
            Act::Copy(from, to, skip) => {
                let copied = self.copy(from, to, *skip, room);
                copied.map(|()| false).map_err(fail)
            }
            other => {
                let done = self.act_simply(other, since, room);
                done.map(|()| false).map_err(fail)
            }
        }
    }

    fn act_simply(&mut self, act: &Act, since: u64, room: Option<u64>) -> Result<(), i32> {
        let name = |path: &RelPath| plain(path.as_str());
        match act {
            Act::WritePath(..) | Act::Copy(..) => unreachable!("done by the caller"),
            Act::Create(path, birth) => {
                let path = name(path);
                match (birth, self.lookup(&path)) {
                    (Birth::Exclusive, Ok(_)) => Err(libc::EEXIST),
                    (Birth::IfMissing, Ok(_)) => Ok(()),
                    _ => self.create(&path).map(drop),
                }
            }
            Act::Zero(path, offset, len) => {
                let id = self.file(&name(path))?;
                let zeros = Bytes::from(vec![0; size(*len)]);
                self.write_within(id, *offset, &zeros, room)
            }
            Act::Cut(path, bytes) => {
                let id = self.file(&name(path))?;
                if self.inode(id).cache.len() as u64 > *bytes {
                    self.truncate(id, *bytes);
                }
                Ok(())
            }
            Act::WriteFile(id, _, offset, data) => self.write_within(*id, *offset, data, room),
            Act::WriteDirect(id, _, offset, data) => {
                let (data, result) = self.fitting(*id, *offset, data, room);
                if canary::on(Canary::DsyncLeftOff) {
                    self.write(*id, *offset, data);
                } else {
                    self.write_durable(*id, *offset, &data);
                }
                result
            }
            Act::SyncFile(id, _) => {
                self.sync(*id, since);
                Ok(())
            }
            Act::SyncPath(path) => {
                let id = self.file(&name(path))?;
                self.sync(id, since);
                Ok(())
            }
            Act::SyncDir(path) => {
                let path = name(path);
                self.check_dir(&path)?;
                self.sync_dir(&path, since);
                Ok(())
            }
            Act::SyncTree => {
                self.sync_tree(since);
                Ok(())
            }
            Act::MakeDir(path) => self.make_dir(&name(path)),
            Act::Link(from, to) => self.link(&name(from), &name(to)),
            Act::Rename(from, to) => self.rename(&name(from), &name(to)),
            Act::RenameAgain(from, to) => match self.rename(&name(from), &name(to)) {
                Err(libc::ENOENT) if self.lookup(&name(to)).is_ok() => Ok(()),
                other => other,
            },
            Act::Unlink(path) => self.unlink(&name(path)),
            Act::Look => Ok(()),
        }
    }

    fn create_if_missing(&mut self, path: &str) -> Result<InodeId, i32> {
        match self.file(path) {
            Err(libc::ENOENT) => self.create(path),
            other => other,
        }
    }

    /// As much of a write as there is room for, and the errno if that is not all.
    fn fitting(
        &self,
        id: InodeId,
        offset: u64,
        data: &Bytes,
        room: Option<u64>,
    ) -> (Bytes, Result<(), i32>) {
        let end_max = room.map(|room| self.inode(id).cache.len() as u64 + room);
        match end_max {
            Some(end_max) if offset + data.len() as u64 > end_max => {
                let len = size(end_max.saturating_sub(offset));
                (data.slice(..len), Err(libc::ENOSPC))
            }
            _ => (data.clone(), Ok(())),
        }
    }

    fn write_within(
        &mut self,
        id: InodeId,
        offset: u64,
        data: &Bytes,
        room: Option<u64>,
    ) -> Result<(), i32> {
        let (data, result) = self.fitting(id, offset, data, room);
        if !data.is_empty() {
            self.write(id, offset, data);
        }
        result
    }

    fn gather(&self, pieces: &[Piece]) -> Result<Bytes, IoError> {
        let mut data = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Bytes(bytes) => data.extend_from_slice(bytes),
                Piece::Log {
                    path,
                    offset,
                    len,
                    crc,
                } => {
                    let fail = |operation, errno| IoError {
                        operation,
                        path: path.to_string(),
                        offset: *offset,
                        len: u64::from(*len),
                        errno,
                    };
                    let id = self.file(&plain(path.as_str()));
                    let id = id.map_err(|errno| fail("open", errno))?;
                    let len = size(u64::from(*len));
                    let inode = self.inode(id);
                    let body = part(&inode.cache, *offset, len);
                    if body.len() < len || inode.check_readable(*offset, len).is_err() {
                        return Err(fail("read", libc::EIO));
                    }
                    if crc32fast::hash(body) != *crc {
                        return Err(fail("checksum", libc::EIO));
                    }
                    data.extend_from_slice(body);
                }
                Piece::Message {
                    path,
                    offset,
                    skip,
                    line,
                } => {
                    let len = bounded(path, *offset, piece.len())?;
                    let id = self.file(&plain(path.as_str()));
                    let id = id.map_err(|errno| damaged(path, *offset, piece.len(), errno))?;
                    let bytes = part(&self.inode(id).cache, *offset, len);
                    prove(bytes, (path, *offset), *skip, line)?;
                    data.extend_from_slice(bytes);
                }
            }
        }
        Ok(Bytes::from(data))
    }

    fn copy(
        &mut self,
        from: &RelPath,
        to: &RelPath,
        skip: u64,
        room: Option<u64>,
    ) -> Result<(), i32> {
        let source = self.file(&plain(from.as_str()))?;
        let to = plain(to.as_str());
        if self.lookup(&to).is_ok() {
            return Err(libc::EEXIST);
        }
        let all = &self.inode(source).cache;
        self.inode(source).check_readable(0, all.len())?;
        let (plain_part, body) = all.split_at(size(skip).min(all.len()));
        let mut copy = plain_part.to_vec();
        expand(body, &mut copy);
        let target = self.create(&to)?;
        let result = self.write_within(target, 0, &Bytes::from(copy), room);
        if result.is_err() {
            self.unlink(&to)?;
        }
        result
    }

    /// CRC-32 behind `skip`, and length, of a copy.
    pub(super) fn copied(
        &self,
        from: &RelPath,
        to: &RelPath,
        skip: u64,
    ) -> Result<(u32, u64), i32> {
        let source = &self.inode(self.file(&plain(from.as_str()))?).cache;
        let copy = &self.inode(self.file(&plain(to.as_str()))?).cache;
        let skip = skip.min(source.len() as u64);
        let crc = crc32fast::hash(part(copy, skip, copy.len()));
        Ok((crc, copy.len() as u64))
    }
}
