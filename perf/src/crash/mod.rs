//! `crash`: kills a daemon, or takes the power from under its file system, at random moments under
//! load, and holds what is there afterwards against what was acknowledged.
//!
//! One store lives through all rounds. Each round reads what is new and some of what is old; at the
//! end everything is read once more. The first line prints the seed; the exit code is the verdict: 0
//! nothing lost, doubled or damaged, 1 otherwise, 3 when the rig cannot run here.

#![expect(
    clippy::print_stdout,
    reason = "a rig speaks to whoever runs it, and its last line is read by scripts"
)]

mod fuse;
mod ledger;
mod letter;
mod life;
mod lives;
mod load;
mod reader;
mod run;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;

use self::fuse::Taped;
use self::life::Life;
use self::lives::{Lives, Task};
use self::run::{Ground, Run, USERS_FIRST, USERS_PER_ROUND};
use crate::loop_disk::{Disk, FileSystem, NoDisk};
use crate::programs::{Programs, Rebuild};
use crate::workload::Users;

/// The rig could not run; said on standard output.
const EXIT_SKIPPED: u8 = 3;

/// The image of a power cut's file system; the file is sparse.
const DISK_BYTES: u64 = 16 << 30;

/// `crash`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    rig: Rig,
}

#[derive(Debug, clap::Subcommand)]
enum Rig {
    /// SIGKILL at random moments under load.
    Kill9(Common),
    /// A file system that is shut down without flushing its journal (root, loop devices).
    Powercut {
        /// Which file system.
        #[arg(long, value_enum, default_value = "ext4")]
        fs: FileSystem,
        /// What is under way when the power goes.
        #[arg(long, value_enum, default_value = "deliver")]
        task: Task,
        #[command(flatten)]
        common: Common,
    },
    /// A store without a daemon: the child of a rig.
    #[command(hide = true)]
    Life {
        #[command(subcommand)]
        life: Life,
    },
    /// A disk that records writes and flushes, and what any crash in between may leave of it (root,
    /// loop devices, FUSE).
    Fuse {
        /// Which file system.
        #[arg(long, value_enum, default_value = "ext4")]
        fs: FileSystem,
        /// Crashes that are tried for each round.
        #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        images: u32,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Clone, Debug, clap::Args)]
struct Common {
    /// How often.
    #[arg(long, default_value_t = 200)]
    rounds: u32,
    /// Connections under load: half node protocol, half LMTP.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Repeats the letters and the moments of an earlier run.
    #[arg(long)]
    seed: Option<u64>,
    /// The blow falls at most this long after the load has begun.
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    window_ms: u64,
    /// `ringpost check` on the crashed store after every so many rounds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    check_every: u32,
    /// Where to work; a new folder is made in it. Default: the system's folder for temporary files.
    #[arg(long)]
    folder: Option<PathBuf>,
}

/// Runs a rig and prints its verdict.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let common = match &options.rig {
        Rig::Kill9(common) | Rig::Powercut { common, .. } | Rig::Fuse { common, .. } => common,
        Rig::Life { life } => return life::run(life).map(|()| ExitCode::SUCCESS),
    };
    let seed = common.seed.unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed:#018x} (--seed {seed} repeats it)");
    let programs = Programs::locate(Rebuild::IfStale)?;
    let folder = match &common.folder {
        Some(parent) => tempfile::Builder::new().prefix("rp").tempdir_in(parent),
        None => tempfile::Builder::new().prefix("rp").tempdir(),
    }
    .context("cannot make a folder to work in")?;

    let ground = match &options.rig {
        Rig::Kill9(_) => Ok(Ground::Kill),
        Rig::Powercut { fs, .. } => {
            let (image, mount) = (folder.path().join("disk"), folder.path().join("mnt"));
            std::fs::create_dir(&mount)?;
            Disk::create(*fs, &image, &mount, DISK_BYTES)?.map(Ground::Power)
        }
        Rig::Life { .. } => unreachable!("it has returned"),
        Rig::Fuse { fs, images, .. } => {
            Taped::create(*fs, folder.path(), *images, seed)?.map(Ground::Taped)
        }
    };
    let ground = match ground {
        Ok(ground) => ground,
        Err(NoDisk(why)) => {
            println!("skipped: {why}");
            return Ok(ExitCode::from(EXIT_SKIPPED));
        }
    };
    if let Rig::Powercut { task, .. } = &options.rig
        && *task != Task::Deliver
    {
        let Ground::Power(disk) = ground else {
            unreachable!("a power cut has a disk");
        };
        let mut lives = Lives::new(common, &programs, disk, folder.path(), seed);
        let ended = lives.all_rounds(*task);
        if !matches!(ended, Ok(true)) {
            drop(lives);
            println!("kept: {}", folder.keep().display());
        }
        return Ok(if ended? {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        });
    }
    let users_max = USERS_FIRST + USERS_PER_ROUND * usize::try_from(common.rounds)?;
    let users = Users::new("crash", users_max);
    let mut run = Run::new(common, &programs, &users, folder.path(), ground, seed)?;
    let ended = run.all_rounds();
    let whole = ended.is_ok() && run.is_whole();
    run.print_verdict();
    if !whole {
        drop(run);
        println!("kept: {}", folder.keep().display());
    }
    ended?;
    Ok(if whole {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
