//! Finds the programs under test, and sees to it that they are the ones of these sources.
//!
//! `cargo run -p ringpost-perf` builds the daemon's library but not its programs, so an old
//! `ringpostd` could lie beside a fresh perf. A figure taken with it would be a lie: missing or
//! stale programs are built first, unless the caller forbids it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context as _, bail, ensure};

/// The three programs of `daemon/`, found and executable.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    /// The daemon.
    pub(crate) ringpostd: PathBuf,
    /// The MTA's shim.
    pub(crate) deliver: PathBuf,
    /// The operator's tool.
    pub(crate) ringpost: PathBuf,
}

/// Whether cargo may be called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rebuild {
    /// When a program is missing or older than a source file.
    IfStale,
    /// Take what is there.
    Never,
}

const NAMES: [&str; 3] = ["ringpostd", "ringpost-deliver", "ringpost"];

impl Programs {
    /// Looks beside this executable (`target/release`, or its parent for a test binary).
    pub(crate) fn locate(rebuild: Rebuild) -> anyhow::Result<Self> {
        let folder = folder()?;
        let workspace = workspace();
        if rebuild == Rebuild::IfStale && workspace.join("Cargo.toml").exists() {
            let oldest = NAMES.iter().map(|name| changed(&folder.join(name))).min();
            let sources =
                ["engine", "netproto", "daemon"].map(|crate_name| workspace.join(crate_name));
            let newest = sources.iter().map(|path| newest_source(path)).max();
            if oldest.flatten() < newest.flatten() {
                build(&folder, &workspace, &["ringpost-daemon", "--bins"])?;
            }
        }
        let [ringpostd, deliver, ringpost] = NAMES.map(|name| folder.join(name));
        for path in [&ringpostd, &deliver, &ringpost] {
            ensure!(
                path.is_file(),
                "{} is missing; build it with: cargo build --release -p ringpost-daemon --bins",
                path.display()
            );
        }
        Ok(Self {
            ringpostd,
            deliver,
            ringpost,
        })
    }
}

/// Where cargo puts the workspace's programs.
pub(crate) fn folder() -> anyhow::Result<PathBuf> {
    let exe = std::env::current_exe().context("cannot find this program's own path")?;
    let folder = exe.parent().context("this program has no folder")?;
    let folder = match (folder.file_name(), folder.parent()) {
        (Some(name), Some(parent)) if name == "deps" => parent,
        _ => folder,
    };
    Ok(folder.to_owned())
}

/// The sources this program was built from.
pub(crate) fn workspace() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

/// The work that is counted, built with the simulated disk.
pub(crate) fn count() -> anyhow::Result<PathBuf> {
    let folder = folder()?;
    build(&folder, &workspace(), &["ringpost-fuzz", "--bin", "count"])?;
    Ok(folder.join("count"))
}

/// Has cargo build programs of a package into `folder`.
fn build(folder: &Path, workspace: &Path, what: &[&str]) -> anyhow::Result<()> {
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(name) => name,
        None => bail!("{} is no folder of cargo's", folder.display()),
    };
    let target = folder
        .parent()
        .context("the programs' folder has no parent")?;
    let mut command = Command::new("cargo");
    command
        .args(["build", "--quiet", "--locked", "--profile", profile])
        .arg("--package")
        .args(what)
        .arg("--target-dir")
        .arg(target)
        .current_dir(workspace);
    let status = command
        .status()
        .with_context(|| format!("cannot start cargo to build {}", what.join(" ")))?;
    ensure!(
        status.success(),
        "cargo could not build {} ({status})",
        what.join(" ")
    );
    Ok(())
}

/// When `path` was changed last; `None` if it does not exist.
fn changed(path: &Path) -> Option<SystemTime> {
    path.metadata()
        .and_then(|metadata| metadata.modified())
        .ok()
}

/// The newest change of a `.rs` or `.toml` file below `folder`. Links are not followed.
fn newest_source(folder: &Path) -> Option<SystemTime> {
    let entries = std::fs::read_dir(folder).ok()?;
    entries
        .flatten()
        .filter_map(|entry| {
            let path = entry.path();
            if entry.file_type().ok()?.is_dir() {
                return newest_source(&path);
            }
            let extension = path.extension()?;
            (extension == "rs" || extension == "toml").then(|| changed(&path))?
        })
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_source_looks_into_folders_and_at_sources_only() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(newest_source(folder.path()), None);
        let inner = folder.path().join("src");
        std::fs::create_dir(&inner).unwrap();
        std::fs::write(inner.join("notes.txt"), "x").unwrap();
        assert_eq!(newest_source(folder.path()), None);
        std::fs::write(inner.join("a.rs"), "x").unwrap();
        assert_eq!(newest_source(folder.path()), changed(&inner.join("a.rs")));
    }

    #[test]
    fn programs_lie_above_the_test_binaries() {
        let folder = folder().unwrap();
        assert_ne!(folder.file_name().unwrap(), "deps");
        assert!(workspace().join("perf/Cargo.toml").is_file());
    }
}
