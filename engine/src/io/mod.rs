//! The seam between decisions and the disk (storage.md 1.4).
//!
//! A [`Shard`](crate::Shard) hands owned [`Op`]s to an [`Io`] and gets exactly one [`Completion`]
//! for each. An op owns its buffers from `submit` until its completion: dropping what the caller
//! holds frees nothing that the kernel may still touch. All paths are relative to the data
//! directory.
//!
//! Three implementations share one body of tests (`conformance`): [`UringIo`] on a raw
//! ring, `SimIo` with seeds, `FaultyIo` around any of them.

use bytes::Bytes;

use crate::error::IoError;
use crate::format::store_line::StoreLine;

pub mod buf;
#[cfg(test)]
pub(crate) mod conformance;
#[cfg(any(test, feature = "sim"))]
pub mod faulty;
pub mod flusher;
mod inflight;
mod nice;
pub mod path;
mod refusal;
pub mod ring;
mod rules;
#[cfg(feature = "sim")]
pub mod sim;

pub use buf::AlignedBuf;
#[cfg(any(test, feature = "sim"))]
pub use faulty::{Fault, FaultyIo};
pub use flusher::Helpers;
pub use nice::short_turns;
pub use path::RelPath;
pub use ring::{UringIo, UringOptions};
#[cfg(feature = "sim")]
pub use sim::{SimDisk, SimIo};

/// The caller's name for an op; comes back in its completion.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Token(pub u64);

/// An open file of one `Io`. A handle, not a descriptor: a `Close` while another op is in flight
/// is safe, and a handle that was closed is an EBADF, never another file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FileId(pub u64);

/// How [`Op::Open`] opens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    /// An existing file, read only, `O_NOATIME` where allowed.
    Read,
    /// An existing log file, read and write, `O_DIRECT`.
    Log,
    /// A new file (`O_EXCL`), read and write, mode 0600.
    Create,
    /// An existing file, read and write, through the page cache.
    Edit,
}

/// One operation on the file system.
#[derive(Debug)]
pub enum Op {
    /// Opens a file. Done: [`Done::Opened`].
    Open {
        /// Which.
        path: RelPath,
        /// How.
        mode: OpenMode,
    },
    /// Gives a handle back. Done: [`Done::Nothing`].
    Close {
        /// From [`Done::Opened`].
        file: FileId,
    },
    /// Overwrites a piece of a log file, durable at completion (`O_DIRECT`, `RWF_DSYNC`, whole: a
    /// short write is finished by the `Io`). Done: [`Done::Buf`].
    LogWrite {
        /// A file opened with [`OpenMode::Log`].
        file: FileId,
        /// A multiple of 4096.
        offset: u64,
        /// Its first `len` bytes are written.
        buf: AlignedBuf,
        /// A multiple of 4096, at most the buffer's length.
        len: usize,
    },
    /// Reads a piece of a log file past the page cache. Done: [`Done::Read`], `count` below `len`
    /// only at the end of the file.
    LogRead {
        /// A file opened with [`OpenMode::Log`].
        file: FileId,
        /// A multiple of 4096.
        offset: u64,
        /// Filled from its start.
        buf: AlignedBuf,
        /// A multiple of 4096, at most the buffer's length.
        len: usize,
    },
    /// Reads through the page cache. Done: [`Done::Bytes`], short only at the end of the file.
    Read {
        /// Any open file.
        file: FileId,
        /// Bytes from the start.
        offset: u64,
        /// At most `FETCH_BYTES_MAX`.
        len: usize,
    },
    /// Writes through the page cache, whole. Not durable. Done: [`Done::Nothing`].
    Write {
        /// A file opened with [`OpenMode::Create`] or [`OpenMode::Edit`].
        file: FileId,
        /// Bytes from the start.
        offset: u64,
        /// What to write.
        data: Bytes,
    },
    /// Starts write-back early; never durability. Done: [`Done::Nothing`].
    StartWriteback {
        /// Any open file.
        file: FileId,
        /// Bytes from the start.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// fdatasync. Done: [`Done::Nothing`].
    Sync {
        /// Any open file.
        file: FileId,
    },
    /// Opens a directory, fsyncs it, closes it. Done: [`Done::Nothing`].
    SyncDir {
        /// Which.
        path: RelPath,
    },
    /// mkdir, mode 0700; an existing directory is success. Done: [`Done::Nothing`].
    MakeDir {
        /// Which.
        path: RelPath,
    },
    /// A hard link; an existing target is EEXIST. Done: [`Done::Nothing`].
    Link {
        /// Existing.
        from: RelPath,
        /// New.
        to: RelPath,
    },
    /// rename. Done: [`Done::Nothing`].
    Rename {
        /// Existing.
        from: RelPath,
        /// New, or replaced.
        to: RelPath,
    },
    /// unlink; a missing file is success. Done: [`Done::Nothing`].
    Unlink {
        /// Which.
        path: RelPath,
    },

    // What the kernel has no opcode for, or would punt to a worker: by the node's helper threads.
    /// Makes a log file of zeros with `O_DIRECT`, syncs it and its directory (storage.md 2.3). An
    /// existing file is written over. Done: [`Done::Nothing`].
    LogCreate {
        /// Which.
        path: RelPath,
        /// A multiple of 1 MiB, or of 4096 below that.
        bytes: u64,
    },
    /// Writes what is in the log only into the files of some users. Done: [`Done::Materialised`].
    Materialise(Vec<Work>),
    /// syncfs of the data directory: all completed writes and names are durable, and an error of
    /// any of them since the store was opened is reported. Done: [`Done::Nothing`].
    SyncTree,
    /// Names and sizes in a directory, sorted by name. Done: [`Done::Listing`].
    ListDir {
        /// Which.
        path: RelPath,
    },
    /// A whole small file. Longer than `bytes_max` is EFBIG. Done: [`Done::Bytes`].
    ReadFile {
        /// Which.
        path: RelPath,
        /// Bound on what is allocated.
        bytes_max: u64,
    },
    /// Copies a file, putting a CR before each LF: the way back from a wrong guess of line ends
    /// (storage.md 7). The first `skip` bytes are copied as they are. Done: [`Done::Copied`].
    CopyExpanded {
        /// Existing.
        from: RelPath,
        /// New.
        to: RelPath,
        /// Bytes to copy unchanged, at the start.
        skip: u64,
    },
    /// Free bytes and inodes. Done: [`Done::Space`].
    FreeSpace,
}

/// The writes of one user in a checkpoint, in order.
#[derive(Debug)]
pub struct Work {
    /// What to do, first to last. Every step is idempotent.
    pub steps: Vec<Step>,
    /// Whether each file written is fdatasynced, and each directory that got names fsynced.
    pub sync: WorkSync,
}

/// Whether a [`Work`] makes itself durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WorkSync {
    /// A [`Op::SyncTree`] follows.
    Later,
    /// Durable, names included, when the completion comes.
    Each,
}

/// One step of a [`Work`].
#[derive(Debug)]
pub enum Step {
    /// mkdir, an existing directory is success.
    MakeDir(RelPath),
    /// pwritev at an offset; creates the file if it is missing.
    Write {
        /// Which file.
        path: RelPath,
        /// Bytes from the start.
        offset: u64,
        /// Written one behind the other.
        pieces: Vec<Piece>,
    },
    /// Writes a small file aside (`<path>.new`), fdatasyncs it, renames it over `path`.
    Replace {
        /// Which file.
        path: RelPath,
        /// Its whole content.
        data: Bytes,
    },
    /// rename; a missing `from` is success if `to` exists.
    Rename {
        /// Existing, or already renamed.
        from: RelPath,
        /// New.
        to: RelPath,
    },
    /// unlink; a missing file is success.
    Unlink(RelPath),
}

/// A piece of a write.
#[derive(Clone, Debug)]
pub enum Piece {
    /// From memory.
    Bytes(Bytes),
    /// From a log file, read with `O_DIRECT`: its memory was given back.
    Log {
        /// Which log file.
        path: RelPath,
        /// Bytes from the start, any alignment.
        offset: u64,
        /// Bytes.
        len: u32,
        /// CRC-32 of these bytes; a mismatch is an EIO of the work ("checksum" in the operation).
        crc: u32,
    },
    /// A message out of a segment, with its prefix and its empty line. One that is not whole is an
    /// EIO of the work ("verify a message in" is the operation, the segment its path).
    Message {
        /// Which segment.
        path: RelPath,
        /// Of the `From_` line: bytes from the start.
        offset: u64,
        /// Bytes of `From_` line and store line.
        skip: u16,
        /// The store line it must have; it tells length and CRC of the message behind it.
        line: StoreLine,
    },
}

/// The end of an op.
#[derive(Debug)]
pub struct Completion {
    /// Of the op.
    pub token: Token,
    /// What came of it. Buffers of failed log ops come back in [`Failed`].
    pub result: Result<Done, Failed>,
}

/// A failed op: the reason, and the buffer if it had one.
#[derive(Debug)]
pub struct Failed {
    /// Operation, path, offset, length, errno.
    pub error: IoError,
    /// Of `LogWrite` and `LogRead`.
    pub buf: Option<AlignedBuf>,
}

/// What a successful op gives.
#[derive(Debug)]
pub enum Done {
    /// Nothing but success.
    Nothing,
    /// A new handle and the file's size in bytes.
    Opened {
        /// The handle.
        file: FileId,
        /// Size at open.
        bytes: u64,
    },
    /// The buffer of a log write.
    Buf(AlignedBuf),
    /// The buffer of a log read and how many bytes of it were read.
    Read {
        /// As given.
        buf: AlignedBuf,
        /// From its start.
        count: usize,
    },
    /// Bytes read.
    Bytes(Bytes),
    /// Names and sizes in bytes (0 for directories), sorted by name.
    Listing(Vec<(String, u64)>),
    /// CRC-32 and length of the copy behind `skip`.
    Copied {
        /// CRC-32 of the bytes behind `skip`.
        crc: u32,
        /// Length of the whole copy in bytes.
        bytes: u64,
    },
    /// What a materialise wrote.
    Materialised {
        /// Bytes given to the kernel.
        bytes: u64,
        /// fdatasync, fsync and syncfs calls.
        syncs: u64,
    },
    /// Room on the file system.
    Space {
        /// For this process.
        free_bytes: u64,
        /// Size of the file system.
        total_bytes: u64,
        /// Free inodes; `u64::MAX` where the file system has no such limit.
        free_inodes: u64,
        /// All inodes.
        total_inodes: u64,
    },
}

/// A disk. Implementations never block in `submit` and `poll`, and never run an op inside `submit`.
pub trait Io {
    /// Takes an op over. `Err` gives it back whole: the table of ops in flight is full; try again
    /// after a `poll`.
    fn submit(&mut self, op: Op, token: Token) -> Result<(), Op>;

    /// Hands the kernel what is queued and appends finished ops to `out`.
    fn poll(&mut self, out: &mut Vec<Completion>);

    /// Blocks until a completion may be there. Used while opening and draining only. Returns at
    /// once if nothing is in flight.
    fn wait(&mut self);

    /// The buffers for log frames, `count` of `bytes` each, registered with the kernel where it
    /// allows. Called once.
    fn log_bufs(&mut self, count: usize, bytes: usize) -> Vec<AlignedBuf>;
}
