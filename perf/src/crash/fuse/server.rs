//! A file system of one file, for the kernel's loop driver: what is read and written there is a
//! [`Tape`]'s, and a flush of the loop device arrives as FSYNC.
//!
//! No write-back cache is asked for, so a write is here before the device says that it is done. Root
//! only; the mount is seen in this thread's mount namespace and goes with the process.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr,
    ReplyData, ReplyEmpty, ReplyEntry, ReplyWrite, Request, SessionACL, TimeOrNow, WriteFlags,
};
use nix::fcntl::FallocateFlags;

use super::tape::Tape;
use crate::loop_disk as disk;

/// The file's name.
const NAME: &str = "disk";

const FILE: INodeNo = INodeNo(2);

/// The kernel need not ask again: nothing changes but through it.
const TTL: Duration = Duration::from_hours(1);

/// Several, so that a write may still be in flight while a flush is answered.
const THREADS: usize = 4;

/// For the kernel to let the file go after the file system on it was unmounted.
const CLOSE_PATIENCE: Duration = Duration::from_secs(30);

/// A mounted file. Unmounted when dropped.
pub(super) struct Served {
    session: Option<BackgroundSession>,
    folder: PathBuf,
    gone: Receiver<()>,
}

impl Served {
    /// Serves `bytes` of the tape as a file in `folder`, which has to be there and empty.
    pub(super) fn start(folder: &Path, bytes: u64, tape: Arc<Tape>) -> anyhow::Result<Self> {
        let (tell, gone) = mpsc::channel();
        let device = Device {
            tape,
            bytes,
            gone: tell,
        };
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("ringpost-tape".to_owned())];
        config.acl = SessionACL::All;
        config.n_threads = Some(THREADS);
        let session = fuser::spawn_mount(device, folder, &config)
            .with_context(|| format!("cannot mount a FUSE file system at {}", folder.display()))?;
        Ok(Self {
            session: Some(session),
            folder: folder.to_owned(),
            gone,
        })
    }

    /// The file.
    pub(super) fn file(&self) -> PathBuf {
        self.folder.join(NAME)
    }

    /// Waits until the kernel has let go, and unmounts.
    pub(super) fn stop(mut self) -> anyhow::Result<()> {
        self.end()
    }

    fn end(&mut self) -> anyhow::Result<()> {
        let Some(session) = self.session.take() else {
            return Ok(());
        };
        // Lazily: the loop device lets its file go a moment after its own end.
        disk::run(
            std::process::Command::new("umount")
                .arg("--lazy")
                .arg(&self.folder),
        )?;
        self.gone
            .recv_timeout(CLOSE_PATIENCE)
            .context("the kernel still holds the block file")?;
        session.join().context("the FUSE server ended badly")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // After an error: what is left goes with the process.
        drop(self.end());
    }
}

struct Device {
    tape: Arc<Tape>,
    bytes: u64,
    gone: Sender<()>,
}

impl Device {
    fn attributes(&self, ino: INodeNo) -> FileAttr {
        let folder = ino == INodeNo::ROOT;
        FileAttr {
            ino,
            size: if folder { 0 } else { self.bytes },
            blocks: if folder { 0 } else { self.bytes / 512 },
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if folder {
                FileType::Directory
            } else {
                FileType::RegularFile
            },
            perm: if folder { 0o755 } else { 0o600 },
            nlink: if folder { 2 } else { 1 },
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    /// The part of a request that is inside the disk.
    fn inside(&self, offset: u64, len: u64) -> usize {
        let len = len.min(self.bytes.saturating_sub(offset));
        usize::try_from(len).unwrap_or(usize::MAX)
    }
}

impl Filesystem for Device {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Where the kernel lacks it, direct writes come one at a time, and that is all.
        config.add_capabilities(InitFlags::FUSE_ASYNC_DIO).ok();
        Ok(())
    }

    fn destroy(&mut self) {
        // Nobody waits any more if the rig gave up.
        self.gone.send(()).ok();
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == INodeNo::ROOT && name == NAME {
            reply.entry(&TTL, &self.attributes(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attributes(ino));
    }

    /// mkfs may want to set the size that the file has.
    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.attr(&TTL, &self.attributes(ino));
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let len = self.inside(offset, u64::from(size));
        reply.data(&self.tape.read(offset, len));
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match u32::try_from(data.len()) {
            Ok(count) if self.inside(offset, u64::from(count)) == data.len() => {
                self.tape.write(offset, data);
                reply.written(count);
            }
            _ => reply.error(Errno::ENOSPC),
        }
    }

    /// A close; no flush of the device.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.tape.flush();
        reply.ok();
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mode = FallocateFlags::from_bits_retain(mode);
        let zeros = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_ZERO_RANGE;
        if mode.intersects(zeros) {
            self.tape.zero(offset, self.inside(offset, length));
            reply.ok();
        } else {
            reply.error(Errno::EOPNOTSUPP);
        }
    }
}
