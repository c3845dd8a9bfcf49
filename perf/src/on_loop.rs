//! `on`: any other command of this program, with its data on a file system of another kind in a loop
//! file. Each table of `docs/PERFORMANCE.md` can so be taken on ext4 with a journal and on XFS, whatever
//! the machine's own disk has.
//!
//! The loop device goes past the page cache of the disk below it (`losetup --direct-io`), so that a flush
//! is one of the disk and nothing is cached twice. Bytes and flushes are then counted at the loop device.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, bail};

use crate::loop_disk::{self, Disk, FileSystem};
use crate::programs;

/// Run another command with its data on a file system in a loop file, e.g. `on xfs -- matrix --seconds 5`
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Args {
    /// Which file system
    #[arg(value_enum)]
    fs: FileSystem,

    /// Its size, GiB; the disk gives room as it is used
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u64).range(1..=4096))]
    gib: u64,

    /// Folder for the file; it decides which disk is measured [beside this program]
    #[arg(long, value_name = "FOLDER")]
    scratch: Option<PathBuf>,

    /// The command and its options, without `--scratch`
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Becomes the command. However that ends, the kernel takes the mount and the file away with its last
/// process; what is left is an empty folder to mount on, for the next call.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let beside = programs::folder()?;
    let scratch = args.scratch.as_ref().unwrap_or(&beside);
    let mount = scratch.join("on-loop");
    std::fs::create_dir_all(&mount).with_context(|| format!("--scratch {}", scratch.display()))?;
    let image = tempfile::Builder::new()
        .prefix("on-loop.")
        .tempfile_in(scratch)
        .with_context(|| format!("--scratch {}", scratch.display()))?;
    let disk = match Disk::create(args.fs, image.path(), &mount, args.gib << 30)? {
        Ok(disk) => disk,
        Err(why) => bail!("no {} in a loop file here: {}", args.fs.name(), why.0),
    };
    let device = loop_disk::output(
        Command::new("findmnt")
            .args(["--noheadings", "--output", "SOURCE"])
            .arg(disk.folder()),
    )?;
    loop_disk::run(Command::new("losetup").args(["--direct-io=on", &device]))?;
    // It lives as long as the device does.
    image
        .close()
        .context("cannot remove the loop file's name")?;
    let program = std::env::current_exe().context("cannot find this program's own path")?;
    let error = Command::new(program)
        .args(&args.command)
        .arg("--scratch")
        .arg(disk.folder())
        .exec();
    Err(error).context("cannot start the command")
}
