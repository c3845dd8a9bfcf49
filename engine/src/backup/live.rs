//! A data directory that a daemon has open: log files are read past the page cache, where the daemon
//! writes them, and everything else leaves the cache as it was found.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::Error;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::check::{DirTree, ReadTree};
use crate::error::IoError;
use crate::io::{AlignedBuf, RelPath};
use crate::limits::BLOCK_BYTES;

/// See the module.
#[derive(Debug)]
pub struct LiveTree {
    root: PathBuf,
    names: DirTree,
    open: RefCell<Option<Open>>,
}

#[derive(Debug)]
struct Open {
    path: RelPath,
    file: File,
    direct: bool,
}

impl Open {
    fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
        if !self.direct {
            let size = self.file.metadata()?.size();
            let there = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
            let mut out = vec![0; len.min(there)];
            let count = read_up_to(&self.file, &mut out, offset)?;
            out.truncate(count);
            return Ok(out);
        }
        let start = offset - offset % BLOCK_BYTES;
        let lead = usize::try_from(offset - start).unwrap_or(0);
        let block = usize::try_from(BLOCK_BYTES).unwrap_or(4096);
        let mut buf = AlignedBuf::zeroed((lead + len).next_multiple_of(block));
        let count = self.file.read_at(&mut buf, start)?;
        let end = (lead + len).min(count);
        Ok(buf.get(lead.min(end)..end).unwrap_or_default().to_vec())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if !self.direct {
            // A hint: mail that somebody reads comes back into the cache by that.
            let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
            if posix_fadvise(&self.file, 0, 0, advice).is_err() {}
        }
    }
}

/// Until the buffer is full or the file ends.
fn read_up_to(file: &File, buf: &mut [u8], offset: u64) -> Result<usize, Error> {
    let mut done = 0;
    while done < buf.len() {
        let rest = buf.get_mut(done..).unwrap_or_default();
        let at = offset + u64::try_from(done).unwrap_or(0);
        match file.read_at(rest, at) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

impl LiveTree {
    /// The data directory `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        Self {
            names: DirTree::new(root.clone()),
            root,
            open: RefCell::new(None),
        }
    }

    fn open(&self, path: &RelPath) -> Result<Open, Error> {
        let name = self.root.join(path.as_str());
        let mut options = OpenOptions::new();
        options.read(true);
        let of_log = path.as_str().strip_suffix(".log").is_some()
            || path.as_str().strip_suffix(".held").is_some();
        if of_log {
            options.custom_flags(libc::O_DIRECT);
            match options.open(&name) {
                Ok(file) => {
                    return Ok(Open {
                        path: path.clone(),
                        file,
                        direct: true,
                    });
                }
                // A file system without it: then the daemon does not use it either.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    options.custom_flags(0);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Open {
            path: path.clone(),
            file: options.open(&name)?,
            direct: false,
        })
    }
}

impl ReadTree for LiveTree {
    fn list(&self, dir: &RelPath) -> Result<Vec<(String, u64)>, IoError> {
        self.names.list(dir)
    }

    fn read(&self, file: &RelPath, offset: u64, len: usize) -> Result<Vec<u8>, IoError> {
        let failed = |error: &Error| IoError {
            operation: "read",
            path: file.to_string(),
            offset,
            len: u64::try_from(len).unwrap_or(u64::MAX),
            errno: error.raw_os_error().unwrap_or(libc::EIO),
        };
        let mut open = self.open.borrow_mut();
        // A file that is read from its start anew may be another one by now.
        let known = open.take().filter(|open| open.path == *file && offset > 0);
        let handle = match known {
            Some(known) => open.insert(known),
            None => open.insert(self.open(file).map_err(|error| failed(&error))?),
        };
        handle.read(offset, len).map_err(|error| failed(&error))
    }

    fn identity(&self, file: &RelPath) -> Option<(u64, u64)> {
        self.names.identity(file)
    }
}
