//! Debian packages of the peers, downloaded and laid out in a folder of their own.
//!
//! Nothing is installed: packages and all they depend on are fetched as if the machine had none
//! (an empty status file), and unpacked into a root of their own that chroot(2) enters. So MTAs
//! that exclude each other lie side by side, no service is started, and the machine's own mail
//! setup is never touched. Their scripts are not run: accounts and configuration are written here.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

/// What a peer needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Family {
    /// Its folder's name.
    pub(crate) name: &'static str,
    /// The package whose version is the peer's.
    pub(crate) main: &'static str,
    /// Named to apt-get, besides [`Self::main`].
    pub(crate) packages: &'static [&'static str],
}

/// Not needed to run anything, and half of all files.
const LEFT_OUT: [&str; 4] = [
    "./usr/share/doc",
    "./usr/share/man",
    "./usr/share/locale",
    "./usr/share/lintian",
];

/// Says that a download was complete.
const MARK: &str = "complete";

/// The downloaded packages of a family, fetched where the cache has none.
pub(crate) fn fetch(cache: &Path, family: &Family) -> anyhow::Result<Vec<PathBuf>> {
    let folder = cache.join(family.name);
    if !folder.join(MARK).exists() {
        download(&folder, family).with_context(|| {
            format!(
                "the Debian packages of {} cannot be had: {} needs a Debian machine with a \
                 package mirror in reach",
                family.name, family.name
            )
        })?;
        std::fs::write(folder.join(MARK), "")?;
    }
    let mut debs = Vec::new();
    for entry in std::fs::read_dir(&folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            debs.push(path);
        }
    }
    debs.sort();
    ensure!(
        version(&debs, family.main).is_some(),
        "{} holds no package {}; remove that folder",
        folder.display(),
        family.main
    );
    Ok(debs)
}

fn download(folder: &Path, family: &Family) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder.join("partial"))
        .with_context(|| format!("cannot write to {}", folder.display()))?;
    let status = folder.join("status");
    std::fs::write(&status, "")?;
    let install = || {
        let mut command = Command::new("apt-get");
        command
            .args(["--yes", "--download-only", "--no-install-recommends"])
            .args(["-o", "Debug::NoLocking=1", "-o"])
            .arg(format!("Dir::State::status={}", status.display()))
            .arg("-o")
            .arg(format!("Dir::Cache::archives={}", folder.display()))
            .arg("install")
            .arg(family.main)
            .args(family.packages);
        command
    };
    if run(&mut install()).is_err() {
        // The lists may be missing or older than the mirror.
        run(Command::new("apt-get").arg("update"))?;
        run(&mut install())?;
    }
    Ok(())
}

/// Runs a tool to its end; an error ends with its last words.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(std::process::Stdio::null())
        .env("DEBIAN_FRONTEND", "noninteractive")
        .output()
        .with_context(|| format!("{name} cannot be started"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = complaint.lines().chain(said.lines()).collect();
        let tail = lines.get(lines.len().saturating_sub(6)..);
        bail!(
            "{name} ended with {}: {}",
            output.status,
            tail.unwrap_or_default().join("; ")
        );
    }
    Ok(said)
}

/// Unpacks packages into an empty folder, with `/bin` and `/lib` inside `/usr` as Debian has it.
pub(crate) fn unpack(debs: &[PathBuf], root: &Path) -> anyhow::Result<()> {
    for name in ["bin", "sbin", "lib", "lib64"] {
        let inside = Path::new("usr").join(name);
        std::fs::create_dir_all(root.join(&inside))?;
        std::os::unix::fs::symlink(&inside, root.join(name))?;
    }
    for deb in debs {
        let script =
            "dpkg-deb --fsys-tarfile \"$1\" | tar -x -C \"$2\" --keep-directory-symlink \"${@:3}\"";
        let mut command = Command::new("bash");
        command.args(["-o", "pipefail", "-c", script, "bash"]);
        command.arg(deb).arg(root);
        command.args(LEFT_OUT.map(|path| format!("--exclude={path}")));
        run(&mut command).with_context(|| format!("cannot unpack {}", deb.display()))?;
    }
    Ok(())
}

/// The version of a package among files as apt-get names them (`:` is written `%3a`).
pub(crate) fn version(debs: &[PathBuf], package: &str) -> Option<String> {
    debs.iter().find_map(|path| {
        let mut parts = path.file_stem()?.to_str()?.split('_');
        (parts.next()? == package).then(|| parts.next().map(|text| text.replace("%3a", ":")))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_stands_in_the_name_of_the_file() {
        let debs = [
            PathBuf::from("/c/dovecot-imapd_1%3a2.3.19.1+dfsg1-2_amd64.deb"),
            PathBuf::from("/c/procmail_3.22-27_amd64.deb"),
        ];
        assert_eq!(version(&debs, "procmail").as_deref(), Some("3.22-27"));
        assert_eq!(
            version(&debs, "dovecot-imapd").as_deref(),
            Some("1:2.3.19.1+dfsg1-2")
        );
        assert_eq!(version(&debs, "dovecot"), None);
    }

    #[test]
    fn what_a_tool_says_last_is_in_the_error() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such package >&2; exit 100"]);
        let error = run(&mut command).unwrap_err().to_string();
        assert!(error.contains("100") && error.contains("no such package"));
        let error = run(&mut Command::new("/nowhere/apt-get")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/apt-get"), "{error}");
    }

    #[test]
    fn a_cache_without_the_package_is_refused_by_name() {
        let cache = tempfile::tempdir().unwrap();
        let family = Family {
            name: "x",
            main: "dovecot-core",
            packages: &[],
        };
        std::fs::create_dir(cache.path().join("x")).unwrap();
        std::fs::write(cache.path().join("x").join(MARK), "").unwrap();
        let error = fetch(cache.path(), &family).unwrap_err();
        assert!(error.to_string().contains("no package dovecot-core"));
    }
}
