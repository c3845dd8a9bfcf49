//! Reading a data directory: a real one, or the durable image of a simulated disk.

#![expect(
    clippy::disallowed_methods,
    reason = "the checker is offline: it has no ring and may block"
)]

use std::cell::RefCell;
use std::fs::File;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use crate::error::IoError;
use crate::io::RelPath;

/// A tree of files that nobody writes to.
pub trait ReadTree {
    /// Names and sizes in bytes (0 for directories), sorted by name. A directory that is missing is
    /// an ENOENT.
    fn list(&self, dir: &RelPath) -> Result<Vec<(String, u64)>, IoError>;

    /// Up to `len` bytes from `offset` on, fewer only at the end of the file.
    fn read(&self, file: &RelPath, offset: u64, len: usize) -> Result<Vec<u8>, IoError>;

    /// What two names of one file have in common; `None` if it has only this one, or nobody knows.
    fn identity(&self, _file: &RelPath) -> Option<(u64, u64)> {
        None
    }
}

/// A real data directory.
#[derive(Debug)]
pub struct DirTree {
    root: PathBuf,
    /// The file read last: messages are read one behind the other.
    open: RefCell<Option<(RelPath, File)>>,
}

impl DirTree {
    /// The data directory `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            open: RefCell::new(None),
        }
    }
}

impl ReadTree for DirTree {
    fn list(&self, dir: &RelPath) -> Result<Vec<(String, u64)>, IoError> {
        let failed = |error: &Error| io_error("list", dir, 0, 0, error);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.root.join(dir.as_str())).map_err(|e| failed(&e))? {
            let entry = entry.map_err(|e| failed(&e))?;
            let meta = entry.metadata().map_err(|e| failed(&e))?;
            let bytes = if meta.is_dir() { 0 } else { meta.size() };
            names.push((entry.file_name().to_string_lossy().into_owned(), bytes));
        }
        names.sort();
        Ok(names)
    }

    fn read(&self, file: &RelPath, offset: u64, len: usize) -> Result<Vec<u8>, IoError> {
        let bytes = u64::try_from(len).unwrap_or(u64::MAX);
        let failed = |error: &Error| io_error("read", file, offset, bytes, error);
        let mut open = self.open.borrow_mut();
        // A file that is read from its start anew may be another one by now.
        let known = open.take().filter(|(path, _)| path == file && offset > 0);
        let (_, handle) = if let Some(known) = known {
            open.insert(known)
        } else {
            let handle = File::open(self.root.join(file.as_str())).map_err(|e| failed(&e))?;
            open.insert((file.clone(), handle))
        };
        let size = handle.metadata().map_err(|e| failed(&e))?.size();
        let there = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut out = vec![0; len.min(there)];
        match handle.read_exact_at(&mut out, offset) {
            Ok(()) => Ok(out),
            Err(error) => Err(failed(&error)),
        }
    }

    fn identity(&self, file: &RelPath) -> Option<(u64, u64)> {
        let meta = std::fs::symlink_metadata(self.root.join(file.as_str())).ok()?;
        (meta.nlink() > 1).then(|| (meta.dev(), meta.ino()))
    }
}

fn io_error(
    operation: &'static str,
    path: &RelPath,
    offset: u64,
    len: u64,
    error: &Error,
) -> IoError {
    let errno = match error.kind() {
        // Shorter than its size said: the file is being written, or the medium is failing.
        ErrorKind::UnexpectedEof => libc::EIO,
        _ => error.raw_os_error().unwrap_or(libc::EIO),
    };
    IoError {
        operation,
        path: path.to_string(),
        offset,
        len,
        errno,
    }
}

#[cfg(feature = "sim")]
impl ReadTree for crate::io::sim::SimDisk {
    fn list(&self, dir: &RelPath) -> Result<Vec<(String, u64)>, IoError> {
        let names = Self::list(self, dir);
        if names.is_empty() && !self.tree().iter().any(|(name, _)| name == dir.as_str()) {
            let missing = Error::from_raw_os_error(libc::ENOENT);
            return Err(io_error("list", dir, 0, 0, &missing));
        }
        Ok(names)
    }

    fn read(&self, file: &RelPath, offset: u64, len: usize) -> Result<Vec<u8>, IoError> {
        let Some(mut bytes) = Self::read(self, file) else {
            let missing = Error::from_raw_os_error(libc::ENOENT);
            return Err(io_error("read", file, offset, 0, &missing));
        };
        let from = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        bytes.drain(..from);
        bytes.truncate(len);
        Ok(bytes)
    }
}

/// A file read from front to back, a mebibyte at a time.
pub(crate) struct Window<'a> {
    tree: &'a dyn ReadTree,
    file: &'a RelPath,
    base: u64,
    bytes: Vec<u8>,
}

/// What a window reads at once.
const WINDOW: usize = 1 << 20;

impl<'a> Window<'a> {
    pub(crate) fn new(tree: &'a dyn ReadTree, file: &'a RelPath) -> Self {
        Self {
            tree,
            file,
            base: 0,
            bytes: Vec::new(),
        }
    }

    /// `len` bytes from `offset` on, fewer only at the end of the file. The caller bounded `len`.
    pub(crate) fn at(&mut self, offset: u64, len: usize) -> Result<&[u8], IoError> {
        let from = offset
            .checked_sub(self.base)
            .and_then(|from| usize::try_from(from).ok());
        let held = from.filter(|from| {
            from.checked_add(len)
                .is_some_and(|end| end <= self.bytes.len())
        });
        let from = if let Some(from) = held {
            from
        } else {
            self.bytes = self.tree.read(self.file, offset, len.max(WINDOW))?;
            self.base = offset;
            0
        };
        let end = (from + len).min(self.bytes.len());
        Ok(self.bytes.get(from..end).unwrap_or_default())
    }

    /// As much as comes with one read, at most `max`; empty at the end of the file.
    pub(crate) fn some(&mut self, offset: u64, max: u64) -> Result<&[u8], IoError> {
        let max = usize::try_from(max).unwrap_or(WINDOW).min(WINDOW);
        self.at(offset, max)
    }
}
