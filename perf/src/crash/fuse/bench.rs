//! A file system on a loop device on a file whose every write and flush is on a [`Tape`].

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use anyhow::Context as _;

use super::blocks::Blocks;
use super::server::Served;
use super::tape::{Recording, Tape};
use crate::loop_disk::{self as disk, FileSystem};

/// Of the disk; what is not written takes no memory.
pub(super) const DISK_BYTES: u64 = 4 << 30;

/// One write in so many stays in flight while flushes pass, where the loop driver lets it.
const LINGER_ONE_IN: u64 = 5;

/// How the loop driver writes to its file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Writes {
    /// Through the page cache, one request after the other.
    InTurn,
    /// Past it (`--direct-io`): many in flight, flushes among them.
    Many,
}

/// Where a bench stands: the folders are made once and used by one bench at a time.
pub(super) struct Stand {
    pub(super) kind: FileSystem,
    device: PathBuf,
    mount: PathBuf,
    _keeper: Keeper,
}

/// A program that does nothing but hold the mount namespace, and ends when this process does.
///
/// The kernel unmounts with the namespace's last process. Would that be this one, it would wait in its
/// own exit for an answer of the FUSE server that it was, forever.
struct Keeper(Child);

/// A mounted disk. Taken down when dropped, in this order.
pub(super) struct Bench {
    mounted: Mounted,
    served: Served,
    base: Blocks,
    pub(super) tape: Arc<Tape>,
}

/// A mount; the loop device goes with it.
struct Mounted(Option<PathBuf>);

impl Stand {
    /// Below `folder`, in the mount namespace of this thread, which is nobody else's.
    pub(super) fn new(kind: FileSystem, folder: &Path) -> anyhow::Result<Self> {
        let stand = Self {
            kind,
            device: folder.join("dev"),
            mount: folder.join("mnt"),
            _keeper: Keeper::start()?,
        };
        std::fs::create_dir(&stand.device)?;
        std::fs::create_dir(&stand.mount)?;
        Ok(stand)
    }

    /// Where the file system is mounted.
    pub(super) fn folder(&self) -> &Path {
        &self.mount
    }

    /// An empty file system.
    pub(super) fn format(&self) -> anyhow::Result<Blocks> {
        let tape = Arc::new(Tape::new(Blocks::default(), 0));
        let served = Served::start(&self.device, DISK_BYTES, Arc::clone(&tape))?;
        let mut make = Command::new(format!("mkfs.{}", self.kind.name()));
        match self.kind {
            FileSystem::Ext4 => make.args(["-q", "-F", "-E", "nodiscard,lazy_journal_init=1"]),
            FileSystem::Xfs => make.args(["-q", "-f", "-K"]),
        };
        disk::run(make.arg(served.file()))?;
        served.stop()?;
        Ok(tape.blocks())
    }

    /// Mounts a disk. The inner error: the file system refuses what is on it.
    pub(super) fn mount(
        &self,
        base: Blocks,
        writes: Writes,
    ) -> anyhow::Result<Result<Bench, String>> {
        let linger_one_in = match writes {
            Writes::InTurn => 0,
            Writes::Many => LINGER_ONE_IN,
        };
        let tape = Arc::new(Tape::new(base.clone(), linger_one_in));
        let served = Served::start(&self.device, DISK_BYTES, Arc::clone(&tape))?;
        let mut attach = Command::new("losetup");
        attach.args(["--find", "--show"]);
        if writes == Writes::Many {
            attach.arg("--direct-io=on");
        }
        let device = disk::output(attach.arg(served.file()))?;
        let mut mount = Command::new("mount");
        mount.args(["-t", self.kind.name()]);
        let mounted = disk::run(mount.arg(&device).arg(&self.mount));
        // In use, it goes when the file system on it is unmounted; otherwise now.
        disk::run(Command::new("losetup").arg("--detach").arg(&device))
            .with_context(|| format!("cannot let go of {device}"))?;
        if let Err(why) = mounted {
            served.stop()?;
            return Ok(Err(format!("{why:#}")));
        }
        Ok(Ok(Bench {
            mounted: Mounted(Some(self.mount.clone())),
            served,
            base,
            tape,
        }))
    }
}

impl Bench {
    /// Unmounts, and gives what was recorded, unmounting included.
    pub(super) fn take_down(self) -> anyhow::Result<Recording> {
        let Self {
            mut mounted,
            served,
            base,
            tape,
        } = self;
        mounted.end()?;
        served.stop()?;
        Ok(tape.recording(base))
    }
}

impl Mounted {
    fn end(&mut self) -> anyhow::Result<()> {
        match self.0.take() {
            // Lazily: the kernel clears up the rings of a daemon that was killed a moment later. The
            // FUSE server waits until all is gone.
            Some(folder) => disk::run(Command::new("umount").arg("--lazy").arg(folder)),
            None => Ok(()),
        }
    }
}

impl Keeper {
    fn start() -> anyhow::Result<Self> {
        let child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // What is typed at a terminal does not reach it.
            .process_group(0)
            .spawn()
            .context("cannot start cat")?;
        Ok(Self(child))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        drop(self.0.wait());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // After an error: what is left goes with the process.
        drop(self.end());
    }
}
