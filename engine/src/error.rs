//! The three ways the world can disappoint the engine: damaged bytes, a failed operation, a store
//! that must not be opened. Bugs are `assert!`s; refusals are in [`request`](crate::request).

use std::fmt;

/// Bytes on disk that are not what they must be. Never served, never believed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{file} at offset {offset}: {reason}")]
pub struct Corrupt {
    /// Relative to the data directory.
    pub file: String,
    /// Bytes from the start of the file.
    pub offset: u64,
    /// What does not hold.
    pub reason: CorruptReason,
}

impl Corrupt {
    /// Whether they could not be read at all: another time they may.
    pub(crate) fn is_unreadable(&self) -> bool {
        matches!(self.reason, CorruptReason::Unreadable { .. })
    }
}

/// What does not hold of damaged bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum CorruptReason {
    /// A magic value is absent: this is something else, or was never written.
    Magic,
    /// A checksum does not match.
    Checksum,
    /// The structure is whole but belongs elsewhere (salt, uuid, slot, name).
    Identity,
    /// A length or count is outside its limits.
    Length,
    /// The file or region ends too early.
    Truncated,
    /// A value that no writer produces.
    Value(&'static str),
    /// Another major version, or an incompatible feature this program does not know.
    Version {
        /// Found major version.
        major: u8,
        /// Found minor version.
        minor: u8,
        /// Unknown incompatible feature bits.
        incompat: u32,
    },
    /// The device or file system gave an error instead of the bytes.
    Unreadable {
        /// Positive.
        errno: i32,
    },
    /// Two files that must agree do not.
    Disagree(&'static str),
    /// A scrub found it damaged before the store was opened.
    Quarantined,
}

impl fmt::Display for CorruptReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => f.write_str("the magic value is missing"),
            Self::Checksum => f.write_str("the checksum does not match"),
            Self::Identity => f.write_str("the structure belongs to another place"),
            Self::Length => f.write_str("a length is outside its limits"),
            Self::Truncated => f.write_str("the data ends too early"),
            Self::Value(what) => write!(f, "impossible value: {what}"),
            Self::Version {
                major,
                minor,
                incompat,
            } => write!(
                f,
                "written by format {major}.{minor} (unknown features {incompat:#x}), \
                 this program reads format {}.x",
                crate::format::MAJOR
            ),
            Self::Unreadable { errno } => {
                let name = nix::errno::Errno::from_raw(*errno);
                write!(f, "cannot be read: {} (errno {errno})", name.desc())
            }
            Self::Disagree(what) => write!(f, "two files disagree: {what}"),
            Self::Quarantined => f.write_str("an earlier scrub found it damaged"),
        }
    }
}

/// A failed operation on the file system, with all that a log line needs.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub struct IoError {
    /// What was tried, a verb: "write", "fdatasync".
    pub operation: &'static str,
    /// Relative to the data directory.
    pub path: String,
    /// Bytes from the start of the file; 0 where it has no meaning.
    pub offset: u64,
    /// Bytes; 0 where it has no meaning.
    pub len: u64,
    /// The kernel's answer, positive.
    pub errno: i32,
}

impl fmt::Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            operation,
            path,
            offset,
            len,
            errno,
        } = self;
        let name = nix::errno::Errno::from_raw(*errno);
        write!(
            f,
            "cannot {operation} {path} (offset {offset}, {len} bytes): {}",
            name.desc()
        )?;
        write!(f, " (errno {errno})")
    }
}

impl IoError {
    /// The same as damage: bytes that cannot be read are not there.
    pub(crate) fn corrupt(&self) -> Corrupt {
        Corrupt {
            file: self.path.clone(),
            offset: self.offset,
            reason: CorruptReason::Unreadable { errno: self.errno },
        }
    }

    /// Whether the file system has no room (ENOSPC, EDQUOT).
    pub fn is_no_space(&self) -> bool {
        matches!(self.errno, libc::ENOSPC | libc::EDQUOT)
    }

    /// Whether the name is taken.
    pub(crate) fn is_exists(&self) -> bool {
        self.errno == libc::EEXIST
    }

    /// Whether the file or directory does not exist.
    pub fn is_not_found(&self) -> bool {
        self.errno == libc::ENOENT
    }
}

/// Why a shard stopped for good.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fatal {
    /// An operation whose failure leaves the medium in doubt; never retried.
    #[error("{0}; stopping, since a retry would prove nothing (recovery will replay the log)")]
    Io(#[from] IoError),
}

/// Why a store or shard cannot be opened. Each sentence says what to do.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file system said no.
    #[error(transparent)]
    Io(#[from] IoError),
    /// Structures that must be whole are not.
    #[error(
        "{0}; run `ringpost repair` (`--dry-run` first), or restore the data directory from a copy \
         or a backup"
    )]
    Corrupt(#[from] Corrupt),
    /// Acknowledged mail is in damaged log frames: never truncated silently.
    #[error(
        "acknowledged mail is damaged in the log: {0}; nothing was changed; \
         `ringpost repair --dry-run` tells what can be saved, `ringpost repair` saves it"
    )]
    LogDamaged(Corrupt),
    /// Another daemon runs on this directory.
    #[error("{path} is in use by a running daemon (process {pid})")]
    InUse {
        /// The data directory.
        path: String,
        /// The holder's process id, 0 if unknown.
        pid: i32,
    },
    /// The directory belongs to another node.
    #[error("{path} belongs to node {found}, the configuration says node {expected}")]
    OtherNode {
        /// The data directory.
        path: String,
        /// In STORE.
        found: u32,
        /// In the configuration.
        expected: u32,
    },
    /// Not a store, or not one to be used.
    #[error("{path}: {reason}")]
    Unusable {
        /// The data directory.
        path: String,
        /// A sentence.
        reason: String,
    },
    /// `io_uring` is forbidden or too old; the daemon exits 78.
    #[error("io_uring cannot be used: {reason}")]
    NoRing {
        /// A sentence that names the cause and what to change.
        reason: String,
    },
}
