//! A file system in a file, for the rigs and for [`on`](crate::on_loop). It can lose its power:
//! `EXT4_IOC_SHUTDOWN` and `XFS_IOC_GOINGDOWN` with NOLOGFLUSH throw away whatever is not on the device,
//! and every later write fails.
//!
//! Measured on ext4: synced data stays, unsynced data and names are gone, about a second a cycle. It
//! is no power cut of the device itself: a device's volatile cache is not modelled (storage.md 12.3).
//!
//! The mount lives in a mount namespace of this thread's own, and of the programs it starts: however
//! the rig ends, the kernel takes mount and loop device away with its last process.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, bail};

/// Which one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum FileSystem {
    /// ext4 with its journal.
    Ext4,
    /// XFS.
    Xfs,
}

impl FileSystem {
    /// As mount(8) and mkfs(8) call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
}

/// Both ioctls are the same number, `_IOR('X', 125, u32)`, and NOLOGFLUSH is 2 in both. The call is made by perl, which every Debian has: it would be unsafe here.
const SHUTDOWN: &str = "open(my $disk, '<', $ARGV[0]) or die $!; my $flags = pack('L', 2); \
                        ioctl($disk, 0x8004587d, $flags) or die $!";

/// A mounted loop file. Unmounted when dropped.
#[derive(Debug)]
pub(crate) struct Disk {
    kind: FileSystem,
    image: PathBuf,
    mount: PathBuf,
    mounted: Mounted,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mounted {
    Yes,
    No,
}

/// Why this machine does not let us: no root, no loop devices, no mkfs.
#[derive(Debug)]
pub(crate) struct NoDisk(pub(crate) String);

impl Disk {
    /// Makes `bytes` of a file system in the file `image` and mounts it on the folder `mount`.
    pub(crate) fn create(
        kind: FileSystem,
        image: &Path,
        mount: &Path,
        bytes: u64,
    ) -> anyhow::Result<Result<Self, NoDisk>> {
        if let Err(why) = own_namespace() {
            return Ok(Err(why));
        }
        std::fs::File::create(image)?.set_len(bytes)?;
        let mkfs = format!("mkfs.{}", kind.name());
        let mut make = Command::new(&mkfs);
        match kind {
            FileSystem::Ext4 => make.args(["-q", "-F"]),
            FileSystem::Xfs => make.args(["-q", "-f"]),
        };
        if let Err(why) = run(make.arg(image)) {
            return Ok(impossible(&format!("{mkfs}: {why:#}")));
        }
        let mut disk = Self {
            kind,
            image: image.to_owned(),
            mount: mount.to_owned(),
            mounted: Mounted::No,
        };
        match disk.mount() {
            Ok(()) => Ok(Ok(disk)),
            Err(why) => Ok(impossible(&format!("{why:#}"))),
        }
    }

    /// Where it is mounted.
    pub(crate) fn folder(&self) -> &Path {
        &self.mount
    }

    /// Pulls the plug, about now; the child ends when it is pulled.
    pub(crate) fn cut_power(&self) -> anyhow::Result<Child> {
        Command::new("perl")
            .args(["-e", SHUTDOWN])
            .arg(&self.mount)
            .stdin(Stdio::null())
            .spawn()
            .context("cannot start perl to shut the file system down")
    }

    /// Unmounts and mounts again: the journal is replayed.
    pub(crate) fn power_up(&mut self) -> anyhow::Result<()> {
        self.unmount()?;
        self.mount()
    }

    fn mount(&mut self) -> anyhow::Result<()> {
        let mut mount = Command::new("mount");
        mount.args(["-t", self.kind.name(), "-o", "loop"]);
        run(mount.arg(&self.image).arg(&self.mount))?;
        self.mounted = Mounted::Yes;
        Ok(())
    }

    fn unmount(&mut self) -> anyhow::Result<()> {
        run(Command::new("umount").arg(&self.mount))?;
        self.mounted = Mounted::No;
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted == Mounted::Yes {
            // Nothing more can be done about it here; the mount is named in mount(8)'s list.
            drop(self.unmount());
        }
    }
}

fn impossible(why: &str) -> Result<Disk, NoDisk> {
    Err(NoDisk(why.to_owned()))
}

/// From here on, this thread's mounts, and those of threads and programs that it starts, are nobody
/// else's and end with them.
pub(crate) fn own_namespace() -> Result<(), NoDisk> {
    if !nix::unistd::geteuid().is_root() {
        return Err(NoDisk("mounting wants root".to_owned()));
    }
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)
        .map_err(|errno| NoDisk(format!("a mount namespace: {errno}")))?;
    run(Command::new("mount").args(["--make-rprivate", "/"]))
        .map_err(|why| NoDisk(format!("{why:#}")))
}

/// Runs a program to its end; what it says on standard error is the error.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    output(command).map(drop)
}

/// As [`run`]; returns what the program says on standard output.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}", command.get_program().display(), said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
