//! Copies of a data directory that mail goes on changing (storage.md 8.6), and what they can tell of
//! the past.
//!
//! A [`Copier`] copies in an order that makes the copy start like a node after a crash, whatever the
//! shards do meanwhile, as long as they hold a backup ([`Request::BackupBegin`](crate::request)):
//! STORE; each superblock with its tables; then all files of the users; then the log from that
//! superblock on, frame by frame, up to where it ended when the last of those files was read; then the
//! large messages that this log names and that came too late for their user's turn. A log is walked by a
//! [`Walker`], which knows files that left it for the archive.
//!
//! A copy of one user is the same with everything of the others left out: their directories are not there,
//! their records in the log are blanks. It is read as any copy is, and kept apart by whoever makes it.
//!
//! Nothing here has a ring: whoever copies may block. The source is only read.

mod copy;
mod live;
mod only;
mod walk;

use crate::error::{Corrupt, IoError};
use crate::io::RelPath;

pub use copy::{CopiedLog, Copier, Copy, Next, Progress};
pub use live::LiveTree;
pub use walk::{Step, Walker};

/// Why a copy, or a look back, cannot be made.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// A file cannot be read or written.
    #[error("{0}")]
    Io(IoError),
    /// Bytes are damaged that nothing else has.
    #[error("{0}; `ringpost check` tells what else is damaged")]
    Damaged(Corrupt),
    /// Neither a directory nor the log knows the user.
    #[error("no such user")]
    NoSuchUser,
    /// The log has a hole.
    #[error(
        "log {log_id:02x} has no file with position {lsn}{}: it was recycled or removed",
        .after.as_ref().map(|name| format!(", behind {name}")).unwrap_or_default()
    )]
    Gap {
        /// Which log.
        log_id: u32,
        /// What would be read next.
        lsn: u64,
        /// The file before the hole, if there is one.
        after: Option<String>,
    },
}

impl From<IoError> for BackupError {
    fn from(error: IoError) -> Self {
        Self::Io(error)
    }
}

impl From<Corrupt> for BackupError {
    fn from(corrupt: Corrupt) -> Self {
        Self::Damaged(corrupt)
    }
}

/// Where a copy goes.
pub trait Target {
    /// Makes a directory whose parent is there; one that exists is success.
    fn make_dir(&mut self, dir: &RelPath) -> Result<(), IoError>;

    /// Writes into a file at an offset; makes it if it is missing.
    fn write(&mut self, file: &RelPath, offset: u64, data: &[u8]) -> Result<(), IoError>;

    /// Gives a file of the target a second name, if it can; `false` if the bytes must be copied.
    fn link(&mut self, from: &RelPath, to: &RelPath) -> Result<bool, IoError>;
}
