//! The maker thread: log files of zeros, and the way back from a wrong guess of line ends.

use std::os::fd::OwnedFd;

use nix::fcntl::OFlag;
use nix::sys::stat::fstat;
use nix::unistd::ftruncate;

use super::dir::{Dir, at, read_full, signed, sync_all, within, write_all};
use crate::error::IoError;
use crate::io::{AlignedBuf, Done, Op, RelPath};

/// Bytes of one write or read.
const CHUNK: usize = 1 << 20;

pub(super) fn run(dir: &Dir, op: Op) -> Result<Done, IoError> {
    match op {
        Op::LogCreate { path, bytes } => log_create(dir, &path, bytes),
        Op::CopyExpanded { from, to, skip } => copy_expanded(dir, &from, &to, skip),
        other => unreachable!("not for the maker: {other:?}"),
    }
}

/// Real zeros, past the page cache: an overwrite of written blocks later needs neither a journal
/// commit nor an io-wq worker (storage.md 2.3).
fn log_create(dir: &Dir, path: &RelPath, bytes: u64) -> Result<Done, IoError> {
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_DIRECT;
    let fd = dir.open("create", path, flags)?;
    let fail = within("fill with zeros", path, 0, bytes);
    let zeros = AlignedBuf::try_zeroed(CHUNK).ok_or_else(|| fail(libc::ENOMEM))?;
    let mut offset = 0;
    while offset < bytes {
        let len = usize::try_from(bytes - offset).unwrap_or(CHUNK).min(CHUNK);
        let chunk = zeros.get(..len).expect("at most the buffer's length");
        write_all(&fd, path, offset, chunk)?;
        offset += len as u64;
    }
    let stat = fstat(&fd).map_err(|errno| at("fstat", path)(errno as i32))?;
    if u64::try_from(stat.st_size).is_ok_and(|found| found > bytes) {
        let end = signed(bytes).map_err(&fail)?;
        ftruncate(&fd, end).map_err(|errno| fail(errno as i32))?;
    }
    sync_all(&fd, path)?;
    dir.sync_dir(&path.parent())?;
    Ok(Done::Nothing)
}

/// A chunk at a time. The copy is not synced: the caller syncs what it goes on writing.
fn copy_expanded(dir: &Dir, from: &RelPath, to: &RelPath, skip: u64) -> Result<Done, IoError> {
    let source = dir.open("open", from, OFlag::O_RDONLY)?;
    let target = dir.open(
        "create",
        to,
        OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL,
    )?;
    let result = copy(&source, from, &target, to, skip);
    if result.is_err() {
        // The copy was promised to nobody. The first error is the one to report.
        drop(dir.unlink(to));
    }
    result
}

fn copy(
    source: &OwnedFd,
    from: &RelPath,
    target: &OwnedFd,
    to: &RelPath,
    skip: u64,
) -> Result<Done, IoError> {
    let mut input = vec![0; CHUNK];
    let mut output = Vec::with_capacity(2 * CHUNK);
    let mut crc = crc32fast::Hasher::new();
    let (mut read, mut written) = (0, 0);
    loop {
        let count = read_full(source, from, read, &mut input)?;
        let chunk = input.get(..count).unwrap_or_default();
        if chunk.is_empty() {
            break;
        }
        let plain = usize::try_from(skip.saturating_sub(read)).unwrap_or(usize::MAX);
        let (plain, body) = chunk.split_at(plain.min(chunk.len()));
        output.clear();
        output.extend_from_slice(plain);
        expand(body, &mut output);
        crc.update(output.get(plain.len()..).unwrap_or_default());
        write_all(target, to, written, &output)?;
        read += count as u64;
        written += output.len() as u64;
    }
    Ok(Done::Copied {
        crc: crc.finalize(),
        bytes: written,
    })
}

/// Appends `body` with a CR before each LF.
pub(crate) fn expand(body: &[u8], output: &mut Vec<u8>) {
    let mut rest = body;
    while let Some(end) = memchr::memchr(b'\n', rest) {
        let (line, behind) = rest.split_at(end);
        output.extend_from_slice(line);
        output.extend_from_slice(b"\r\n");
        rest = behind.get(1..).unwrap_or_default();
    }
    output.extend_from_slice(rest);
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_lf_gets_a_cr() {
        for (body, expected) in [
            ("", ""),
            ("a", "a"),
            ("\n", "\r\n"),
            ("a\n\nb", "a\r\n\r\nb"),
            ("a\r\n", "a\r\r\n"),
        ] {
            let mut out = Vec::new();
            super::expand(body.as_bytes(), &mut out);
            assert_eq!(out, expected.as_bytes());
        }
    }
}
