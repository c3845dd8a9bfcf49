//! What every `Io` agrees on: which ops are malformed, what a failure is called, what it gives back.
//! Real and simulated disk use these same functions, so that they cannot drift apart here.

use super::{FileId, Op, OpenMode, RelPath};
use crate::error::IoError;
use crate::io::Failed;
use crate::limits::{BLOCK_BYTES, FETCH_BYTES_MAX};

impl Op {
    /// What is tried, for messages.
    pub(crate) fn operation(&self) -> &'static str {
        match self {
            Self::Open { mode, .. } => match mode {
                OpenMode::Read | OpenMode::Log | OpenMode::Edit => "open",
                OpenMode::Create => "create",
            },
            Self::Close { .. } => "close",
            Self::LogWrite { .. } | Self::Write { .. } => "write",
            Self::LogRead { .. } | Self::Read { .. } => "read",
            Self::StartWriteback { .. } => "start write-back of",
            Self::Sync { .. } => "fdatasync",
            Self::SyncDir { .. } => "fsync",
            Self::MakeDir { .. } => "mkdir",
            Self::Link { .. } => "link",
            Self::Rename { .. } => "rename",
            Self::Unlink { .. } => "unlink",
            Self::LogCreate { .. } => "fill with zeros",
            Self::Materialise(_) => "materialise",
            Self::SyncTree => "syncfs",
            Self::ListDir { .. } => "list",
            Self::ReadFile { .. } => "read whole",
            Self::CopyExpanded { .. } => "copy",
            Self::FreeSpace => "fstatvfs",
        }
    }

    /// The open file it works on.
    pub(crate) fn file(&self) -> Option<FileId> {
        match self {
            Self::Close { file }
            | Self::LogWrite { file, .. }
            | Self::LogRead { file, .. }
            | Self::Read { file, .. }
            | Self::Write { file, .. }
            | Self::StartWriteback { file, .. }
            | Self::Sync { file } => Some(*file),
            _ => None,
        }
    }

    /// The name it works on; of two the new one, which is what can be missing room or rights.
    pub(crate) fn path(&self) -> Option<&RelPath> {
        match self {
            Self::Open { path, .. }
            | Self::SyncDir { path }
            | Self::MakeDir { path }
            | Self::Unlink { path }
            | Self::LogCreate { path, .. }
            | Self::ListDir { path }
            | Self::ReadFile { path, .. } => Some(path),
            Self::Link { to, .. } | Self::Rename { to, .. } | Self::CopyExpanded { to, .. } => {
                Some(to)
            }
            _ => None,
        }
    }

    /// Offset and length in bytes, 0 where they have no meaning.
    fn range(&self) -> (u64, u64) {
        match self {
            Self::LogWrite { offset, len, .. }
            | Self::LogRead { offset, len, .. }
            | Self::Read { offset, len, .. } => (*offset, *len as u64),
            Self::Write { offset, data, .. } => (*offset, data.len() as u64),
            Self::StartWriteback { offset, len, .. } => (*offset, *len),
            Self::LogCreate { bytes, .. } => (0, *bytes),
            Self::ReadFile { bytes_max, .. } => (0, *bytes_max),
            _ => (0, 0),
        }
    }

    /// The error for an errno; `file` is the path of the open file, if the op has one.
    pub(crate) fn error(&self, file: Option<&RelPath>, errno: i32) -> IoError {
        let (offset, len) = self.range();
        let path = match (file.or(self.path()), self.file()) {
            (Some(path), _) => path.as_str().to_owned(),
            (None, Some(FileId(id))) => format!("closed file {id:#x}"),
            (None, None) => ".".to_owned(),
        };
        IoError {
            operation: self.operation(),
            path,
            offset,
            len,
            errno,
        }
    }

    /// The failure that gives the op's buffer back.
    pub(crate) fn into_failed(self, error: IoError) -> Failed {
        let buf = match self {
            Self::LogWrite { buf, .. } | Self::LogRead { buf, .. } => Some(buf),
            _ => None,
        };
        Failed { error, buf }
    }

    /// EINVAL for what the kernel would refuse or what breaks a bound; checked before it is queued.
    pub(crate) fn check(&self) -> Result<(), i32> {
        let holds = match self {
            Self::LogWrite {
                offset, buf, len, ..
            }
            | Self::LogRead {
                offset, buf, len, ..
            } => {
                let aligned =
                    offset.is_multiple_of(BLOCK_BYTES) && (*len as u64).is_multiple_of(BLOCK_BYTES);
                aligned && *len > 0 && *len <= buf.len() && fits(*offset, *len as u64)
            }
            Self::Read { offset, len, .. } => {
                *len as u64 <= u64::from(FETCH_BYTES_MAX) && fits(*offset, *len as u64)
            }
            Self::Write { offset, data, .. } => {
                u32::try_from(data.len()).is_ok() && fits(*offset, data.len() as u64)
            }
            Self::StartWriteback { offset, len, .. } => fits(*offset, *len),
            Self::LogCreate { bytes, .. } => {
                *bytes > 0 && bytes.is_multiple_of(BLOCK_BYTES) && fits(0, *bytes)
            }
            _ => true,
        };
        if holds { Ok(()) } else { Err(libc::EINVAL) }
    }

    /// Whether the node's helper threads do it: what has no opcode, or would block a core.
    pub(crate) fn is_for_helpers(&self) -> bool {
        matches!(
            self,
            Self::LogCreate { .. }
                | Self::Materialise(_)
                | Self::SyncTree
                | Self::ListDir { .. }
                | Self::ReadFile { .. }
                | Self::CopyExpanded { .. }
                | Self::FreeSpace
        )
    }
}

/// Whether a range ends within what a file offset can say.
fn fits(offset: u64, len: u64) -> bool {
    offset
        .checked_add(len)
        .is_some_and(|end| i64::try_from(end).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::AlignedBuf;

    #[test]
    fn malformed_ops_are_einval() {
        let file = FileId(1);
        let write = |offset, len| Op::LogWrite {
            file,
            offset,
            buf: AlignedBuf::zeroed(8192),
            len,
        };
        for (offset, len, holds) in [
            (0, 4096, true),
            (4096, 8192, true),
            (1, 4096, false),
            (0, 100, false),
            (0, 0, false),
            (0, 12288, false),
            (u64::MAX - 4095, 4096, false),
        ] {
            assert_eq!(write(offset, len).check().is_ok(), holds, "{offset} {len}");
        }
        let long = Op::Read {
            file,
            offset: 0,
            len: (1 << 20) + 1,
        };
        assert_eq!(long.check(), Err(libc::EINVAL));
    }

    #[test]
    fn a_failure_names_everything_and_returns_the_buffer() {
        let op = Op::LogRead {
            file: FileId(1),
            offset: 4096,
            buf: AlignedBuf::zeroed(4096),
            len: 4096,
        };
        let error = op.error(Some(&RelPath::log_file(1, 2)), libc::EIO);
        assert_eq!(
            error.to_string(),
            "cannot read log/01/0002.log (offset 4096, 4096 bytes): I/O error (errno 5)"
        );
        assert!(op.into_failed(error).buf.is_some());
    }
}
