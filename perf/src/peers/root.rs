//! The root folder of a peer: its unpacked packages, the few devices and accounts that it needs,
//! and programs started in it by chroot(1). Its mail lies below it, so that the scratch folder's
//! disk is the one under test, and every path is an ordinary one of that file system.

use std::fs::OpenOptions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{Gid, Uid, chown};

use super::group::Group;
use super::packages::{self, Family};
use super::service::Service;
use crate::deliver::attic::Attic;

/// An account that owns mail or runs a peer's programs. High numbers, which nobody else has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Account {
    /// Its name, and its group's.
    pub(crate) name: &'static str,
    /// Its number, and its group's.
    pub(crate) id: u32,
}

/// Owner of all mail: virtual users have no account of their own.
pub(crate) const VMAIL: Account = Account {
    name: "vmail",
    id: 61_400,
};

/// Character devices: name, major, minor (Documentation/admin-guide/devices.txt).
const DEVICES: [(&str, u64, u64); 5] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
];

/// A root folder. Who made it removes it.
#[derive(Debug)]
pub(crate) struct Root {
    path: PathBuf,
    /// A short name of the same folder: paths of sockets are bounded.
    short: PathBuf,
    version: String,
    attic: Attic,
}

impl Root {
    /// Unpacks a family into `path`, which must not exist, and names it `short` by a link.
    pub(crate) fn make(
        cache: &Path,
        family: &Family,
        path: PathBuf,
        short: PathBuf,
        attic: Attic,
    ) -> anyhow::Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "{} runs in a root folder of its own, with accounts of its own: only root may do that \
             (chroot(2)); --only ringpost-node,ringpost-lmtp,ringpost-mda needs no root",
            family.name
        );
        let debs = packages::fetch(cache, family)?;
        std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        packages::unpack(&debs, &path)?;
        std::os::unix::fs::symlink(&path, &short)
            .with_context(|| format!("cannot make {}", short.display()))?;
        let root = Self {
            path,
            short,
            version: packages::version(&debs, family.main).unwrap_or_default(),
            attic,
        };
        root.devices()?;
        for folder in ["etc", "proc", "root"] {
            std::fs::create_dir_all(root.path(folder))?;
        }
        root.write("etc/hosts", "127.0.0.1 localhost mail.perf.test\n")?;
        root.write(
            "etc/nsswitch.conf",
            "passwd: files\ngroup: files\nhosts: files\n",
        )?;
        root.accounts(&[], &[])?;
        Ok(root)
    }

    /// Version of the family's main package.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// A path below it, as seen from outside.
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        self.path.join(inside.trim_start_matches('/'))
    }

    /// The same, short enough for a socket.
    pub(crate) fn short_path(&self, inside: &str) -> PathBuf {
        self.short.join(inside.trim_start_matches('/'))
    }

    /// Writes a file for everybody to read.
    pub(crate) fn write(&self, inside: &str, text: &str) -> anyhow::Result<()> {
        let path = self.path(inside);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// An empty folder in the place of whatever was there.
    pub(crate) fn fresh(&self, inside: &str, owner: Option<Account>) -> anyhow::Result<()> {
        let path = self.path(inside);
        if path.exists() {
            let past = tempfile::tempdir_in(&self.path)?;
            std::fs::rename(&path, past.path().join("past"))
                .with_context(|| format!("cannot move {} away", path.display()))?;
            self.attic.store(past);
        }
        self.folder(inside, owner, 0o755)
    }

    /// A folder with an owner and a mode.
    pub(crate) fn folder(
        &self,
        inside: &str,
        owner: Option<Account>,
        mode: u32,
    ) -> anyhow::Result<()> {
        let path = self.path(inside);
        std::fs::create_dir_all(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        let id = owner.map_or(0, |account| account.id);
        chown(&path, Some(Uid::from_raw(id)), Some(Gid::from_raw(id)))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
        Ok(())
    }

    /// Writes the accounts: root, `vmail`, those named, and people with a home and a shell.
    pub(crate) fn accounts(&self, own: &[Account], people: &[&str]) -> anyhow::Result<()> {
        let (passwd, group) = accounts(own, people);
        self.write("etc/passwd", &passwd)?;
        self.write("etc/group", &group)
    }

    /// A command inside, not started yet.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("chroot");
        command.arg(&self.path).arg(program);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin");
        command
    }

    /// Starts a program inside that stays in the foreground; it and its children are of `group`.
    pub(crate) fn start(
        &self,
        group: Group,
        program: &str,
        arguments: &[&str],
    ) -> anyhow::Result<Service> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path("service.log"))?;
        let mut inside = self.command(program);
        inside.args(arguments);
        let mut command = group.joining(&inside);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .current_dir(&self.path)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        Service::start(command, group, program)
    }

    fn devices(&self) -> anyhow::Result<()> {
        let folders = [("dev", 0o755), ("tmp", 0o1777)];
        for (name, mode) in folders {
            self.folder(name, None, mode)?;
        }
        for (name, major, minor) in DEVICES {
            let path = self.path("dev").join(name);
            let mode = Mode::from_bits_truncate(0o666);
            mknod(&path, SFlag::S_IFCHR, mode, makedev(major, minor))
                .with_context(|| format!("cannot make the device {}", path.display()))?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))?;
        }
        Ok(())
    }
}

/// Numbers of people's accounts go up from here.
pub(crate) const PEOPLE_FROM: usize = 70_000;

/// passwd(5) and group(5).
fn accounts(own: &[Account], people: &[&str]) -> (String, String) {
    use std::fmt::Write as _;
    let mut passwd = String::from("root:x:0:0:root:/root:/bin/sh\n");
    let mut group = String::from("root:x:0:\nmail:x:8:\n");
    for Account { name, id } in [VMAIL].iter().chain(own) {
        // Writing to a String cannot fail.
        writeln!(passwd, "{name}:x:{id}:{id}::/data:/bin/false").ok();
        writeln!(group, "{name}:x:{id}:").ok();
    }
    for (index, name) in people.iter().enumerate() {
        let id = PEOPLE_FROM + index;
        writeln!(passwd, "{name}:x:{id}:8::/home:/bin/sh").ok();
    }
    (passwd, group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_lines_of_passwd_and_group() {
        let own = Account {
            name: "dovecot",
            id: 61_401,
        };
        let (passwd, group) = accounts(&[own], &["u1", "u2"]);
        let lines: Vec<_> = passwd.lines().collect();
        assert_eq!(
            lines,
            [
                "root:x:0:0:root:/root:/bin/sh",
                "vmail:x:61400:61400::/data:/bin/false",
                "dovecot:x:61401:61401::/data:/bin/false",
                "u1:x:70000:8::/home:/bin/sh",
                "u2:x:70001:8::/home:/bin/sh",
            ]
        );
        assert!(passwd.lines().all(|line| line.split(':').count() == 7));
        assert!(group.contains("dovecot:x:61401:\n"));
    }
}
