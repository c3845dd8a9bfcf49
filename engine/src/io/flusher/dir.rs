//! The data directory as the helper threads use it: every call relative to one descriptor, EINTR
//! tried again, every failure with operation, path, offset, length and errno.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, fstatat, mkdirat};
use nix::sys::uio::{pread, pwrite, pwritev};
use nix::unistd::{UnlinkatFlags, fdatasync, fsync, syncfs, unlinkat};

use crate::error::IoError;
use crate::io::RelPath;

/// Files are for the daemon's user alone.
pub(crate) const FILE_MODE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);
const DIR_MODE: Mode = Mode::S_IRWXU;

/// The open data directory.
#[derive(Debug)]
pub(crate) struct Dir {
    fd: OwnedFd,
    path: String,
}

/// Tries again what a signal interrupted.
fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, i32> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno as i32),
            Ok(value) => return Ok(value),
        }
    }
}

/// An [`IoError`] without a range.
pub(super) fn at(operation: &'static str, path: &RelPath) -> impl Fn(i32) -> IoError {
    within(operation, path, 0, 0)
}

/// An [`IoError`] with a range.
pub(super) fn within(
    operation: &'static str,
    path: &RelPath,
    offset: u64,
    len: u64,
) -> impl Fn(i32) -> IoError {
    move |errno| IoError {
        operation,
        path: path.to_string(),
        offset,
        len,
        errno,
    }
}

/// A file offset as the kernel takes it.
pub(super) fn signed(offset: u64) -> Result<i64, i32> {
    i64::try_from(offset).or(Err(libc::EINVAL))
}

impl Dir {
    pub(crate) fn open_root(path: &Path) -> Result<Self, IoError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let name = path.display().to_string();
        let fd = retry(|| nix::fcntl::open(path, flags, Mode::empty()));
        let fd = fd.map_err(|errno| IoError {
            operation: "open directory",
            path: name.clone(),
            offset: 0,
            len: 0,
            errno,
        })?;
        Ok(Self { fd, path: name })
    }

    /// An error about the directory itself.
    pub(crate) fn error(
        &self,
        operation: &'static str,
        offset: u64,
        len: u64,
        errno: i32,
    ) -> IoError {
        IoError {
            operation,
            path: self.path.clone(),
            offset,
            len,
            errno,
        }
    }

    pub(super) fn open(
        &self,
        operation: &'static str,
        path: &RelPath,
        flags: OFlag,
    ) -> Result<OwnedFd, IoError> {
        let flags = flags | OFlag::O_CLOEXEC;
        retry(|| openat(&self.fd, path.as_c_str(), flags, FILE_MODE)).map_err(at(operation, path))
    }

    pub(super) fn make_dir(&self, path: &RelPath) -> Result<(), IoError> {
        match retry(|| mkdirat(&self.fd, path.as_c_str(), DIR_MODE)) {
            Ok(()) | Err(libc::EEXIST) => Ok(()),
            Err(errno) => Err(at("mkdir", path)(errno)),
        }
    }

    pub(super) fn exists(&self, path: &RelPath) -> bool {
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        retry(|| fstatat(&self.fd, path.as_c_str(), flags)).is_ok()
    }

    pub(super) fn rename(&self, from: &RelPath, to: &RelPath) -> Result<(), IoError> {
        retry(|| renameat(&self.fd, from.as_c_str(), &self.fd, to.as_c_str()))
            .map_err(at("rename", to))
    }

    pub(super) fn unlink(&self, path: &RelPath) -> Result<(), IoError> {
        let flags = UnlinkatFlags::NoRemoveDir;
        match retry(|| unlinkat(&self.fd, path.as_c_str(), flags)) {
            Ok(()) | Err(libc::ENOENT) => Ok(()),
            Err(errno) => Err(at("unlink", path)(errno)),
        }
    }

    pub(super) fn sync_dir(&self, path: &RelPath) -> Result<(), IoError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let fd = self.open("fsync", path, flags)?;
        retry(|| fsync(&fd)).map_err(at("fsync", path))
    }

    pub(super) fn syncfs(&self) -> Result<(), IoError> {
        retry(|| syncfs(&self.fd)).map_err(|errno| self.error("syncfs", 0, 0, errno))
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

pub(super) fn sync_data(fd: &OwnedFd, path: &RelPath) -> Result<(), IoError> {
    retry(|| fdatasync(fd)).map_err(at("fdatasync", path))
}

pub(super) fn sync_all(fd: &OwnedFd, path: &RelPath) -> Result<(), IoError> {
    retry(|| fsync(fd)).map_err(at("fsync", path))
}

/// Writes all of `slices` one behind the other; goes on after short writes.
pub(super) fn write_all_vectored(
    fd: &OwnedFd,
    path: &RelPath,
    mut offset: u64,
    mut slices: &mut [IoSlice<'_>],
) -> Result<(), IoError> {
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        let len = slices.iter().map(|slice| slice.len() as u64).sum();
        let fail = within("write", path, offset, len);
        let at = signed(offset).map_err(&fail)?;
        let count = retry(|| pwritev(fd, slices, at)).map_err(&fail)?;
        if count == 0 {
            return Err(fail(libc::EIO));
        }
        offset += count as u64;
        IoSlice::advance_slices(&mut slices, count);
    }
    Ok(())
}

/// Writes all of `data`; goes on after short writes.
pub(super) fn write_all(
    fd: &OwnedFd,
    path: &RelPath,
    mut offset: u64,
    mut data: &[u8],
) -> Result<(), IoError> {
    while !data.is_empty() {
        let fail = within("write", path, offset, data.len() as u64);
        let at = signed(offset).map_err(&fail)?;
        let count = retry(|| pwrite(fd, data, at)).map_err(&fail)?;
        data = match data.get(count..) {
            Some(rest) if count > 0 => rest,
            _ => return Err(fail(libc::EIO)),
        };
        offset += count as u64;
    }
    Ok(())
}

/// Reads until `data` is full or the file ends; how many bytes came.
pub(super) fn read_full(
    fd: &OwnedFd,
    path: &RelPath,
    offset: u64,
    data: &mut [u8],
) -> Result<usize, IoError> {
    let len = data.len() as u64;
    let mut done = 0;
    while let Some(rest) = data.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let fail = within("read", path, offset, len);
        let at = signed(offset + done as u64).map_err(&fail)?;
        match retry(|| pread(fd, rest, at)).map_err(&fail)? {
            0 => break,
            count => done += count,
        }
    }
    Ok(done)
}
