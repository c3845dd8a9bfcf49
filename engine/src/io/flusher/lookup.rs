//! The lookup thread: directories, small files, room.

use std::os::fd::OwnedFd;

use bytes::Bytes;
use nix::dir::{Dir as Entries, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, fstat, fstatat};
use nix::sys::statvfs::fstatvfs;

use super::dir::{Dir, at, read_full, within};
use crate::error::IoError;
use crate::io::{Done, Op, RelPath};

pub(super) fn run(dir: &Dir, op: Op) -> Result<Done, IoError> {
    match op {
        Op::ListDir { path } => list(dir, &path),
        Op::ReadFile { path, bytes_max } => read_file(dir, &path, bytes_max),
        Op::FreeSpace => free_space(dir),
        other => unreachable!("not for the lookup thread: {other:?}"),
    }
}

fn list(dir: &Dir, path: &RelPath) -> Result<Done, IoError> {
    let fail = |errno: Errno| at("list", path)(errno as i32);
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut entries = Entries::openat(dir, path.as_c_str(), flags, Mode::empty()).map_err(fail)?;
    let mut names = Vec::new();
    for entry in entries.iter() {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        names.push((name.to_owned(), entry.file_type()));
    }
    let mut listing = Vec::with_capacity(names.len());
    for (name, kind) in names {
        let bytes = match kind {
            Some(Type::Directory) => 0,
            _ => match fstatat(&entries, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(stat) if is_dir(&stat) => 0,
                Ok(stat) => u64::try_from(stat.st_size).unwrap_or(0),
                // Unlinked between the two calls: it is not there.
                Err(Errno::ENOENT) => continue,
                Err(errno) => return Err(fail(errno)),
            },
        };
        listing.push((name.to_string_lossy().into_owned(), bytes));
    }
    listing.sort_unstable();
    Ok(Done::Listing(listing))
}

fn is_dir(stat: &libc::stat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFDIR
}

fn open_to_read(dir: &Dir, path: &RelPath) -> Result<OwnedFd, IoError> {
    match dir.open("open", path, OFlag::O_RDONLY | OFlag::O_NOATIME) {
        // O_NOATIME is for owners.
        Err(error) if error.errno == libc::EPERM => dir.open("open", path, OFlag::O_RDONLY),
        other => other,
    }
}

fn read_file(dir: &Dir, path: &RelPath, bytes_max: u64) -> Result<Done, IoError> {
    let fd = open_to_read(dir, path)?;
    let stat = fstat(&fd).map_err(|errno| at("fstat", path)(errno as i32))?;
    let bytes = u64::try_from(stat.st_size).unwrap_or(0);
    let fail = within("read whole", path, 0, bytes);
    if bytes > bytes_max {
        return Err(fail(libc::EFBIG));
    }
    if is_dir(&stat) {
        return Err(fail(libc::EISDIR));
    }
    let len = usize::try_from(bytes).or(Err(fail(libc::EFBIG)))?;
    let mut data = Vec::new();
    if data.try_reserve_exact(len).is_err() {
        return Err(fail(libc::ENOMEM));
    }
    data.resize(len, 0);
    let count = read_full(&fd, path, 0, &mut data)?;
    data.truncate(count);
    Ok(Done::Bytes(Bytes::from(data)))
}

fn free_space(dir: &Dir) -> Result<Done, IoError> {
    let stat = fstatvfs(dir).map_err(|errno| dir.error("fstatvfs", 0, 0, errno as i32))?;
    let block = stat.fragment_size();
    let total_inodes = match stat.files() {
        // btrfs makes inodes as it goes.
        0 => u64::MAX,
        files => files,
    };
    Ok(Done::Space {
        free_bytes: stat.blocks_available().saturating_mul(block),
        total_bytes: stat.blocks().saturating_mul(block),
        free_inodes: if total_inodes == u64::MAX {
            u64::MAX
        } else {
            stat.files_available()
        },
        total_inodes,
    })
}
