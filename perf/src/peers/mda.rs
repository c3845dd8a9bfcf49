//! procmail and maildrop, started for each message as an MTA's pipe does it: procmail into mbox
//! files, maildrop into maildirs.
//!
//! **Durable** as they are: both call fsync(2) on what they wrote before they end with 0, and have no
//! setting for it. procmail does so where it was not built with `NOfsync` (`config.h` of its
//! sources; Debian does not); of maildrop the call was seen with strace(1), between write and
//! link(2). Neither syncs a folder. In procmail's favour only the kernel's lock is taken: a dot lock
//! that another delivery holds makes it sleep for eight seconds (`LOCKSLEEP`, procmailrc(5)). They
//! run as the account `mail` and not as root, and deliver to virtual users: the name is an argument
//! of the one rule there is.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;

use super::compare::{self, Quoting};
use super::packages::Family;
use super::peer::{Door, Running, Site};
use super::root::Root;
use super::spool::{MAIL, Spool};
use crate::deliver::plan::Plan;
use crate::deliver::tally::Tally;
use crate::deliver::verify::Verification;
use crate::workload::{SENDER, Users};

/// procmail's package.
pub(crate) const PROCMAIL: Family = Family {
    name: "procmail",
    main: "procmail",
    packages: &[],
};

/// maildrop's package.
pub(crate) const MAILDROP: Family = Family {
    name: "maildrop",
    main: "maildrop",
    packages: &[],
};

/// Libraries of maildrop that a machine may not have; everything else is in any Debian.
const MAILDROP_LIBRARIES: [&str; 5] = [
    "libcourier-unicode.so.4",
    "libcourierauth.so.0",
    "libpcre.so.3",
    "libltdl.so.7",
    "libgdbm.so.6",
];

/// Which program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Program {
    /// procmail.
    Procmail,
    /// maildrop.
    Maildrop,
}

/// A program with its rule and its spool; no server runs.
pub(crate) struct Mda {
    program: Program,
    path: PathBuf,
    rule: PathBuf,
    libraries: PathBuf,
    spool: Spool,
    users: Users,
}

impl Mda {
    /// Writes the rule and an empty spool.
    pub(crate) fn start(site: &Site<'_>, program: Program) -> anyhow::Result<Self> {
        let (family, name) = match program {
            Program::Procmail => (&PROCMAIL, "procmail"),
            Program::Maildrop => (&MAILDROP, "maildrop"),
        };
        let root = (site.roots)(family)?;
        root.fresh("data", None)?;
        root.folder("data/spool", None, 0o755)?;
        own(&root.path("data/spool"))?;
        let spool = Spool {
            folder: root.path("data/spool"),
        };
        let libraries = libraries(&root)?;
        let rule = root.path("data/rule");
        // maildrop refuses a rule that others may read.
        std::fs::write(&rule, self::rule(program, &spool.folder))?;
        std::fs::set_permissions(&rule, std::fs::Permissions::from_mode(0o600))?;
        own(&rule)?;
        let path = root.path("usr/bin").join(name);
        // Not set-user-id: nobody's mail is written in another's name.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
            .with_context(|| format!("{} is missing", path.display()))?;
        reachable(&rule)?;
        Ok(Self {
            program,
            path,
            rule,
            libraries,
            spool,
            users: site.users.clone(),
        })
    }
}

impl Mda {
    /// An empty maildir for each user: maildrop writes to a maildir where there is one.
    fn maildirs(&self) -> anyhow::Result<Vec<u32>> {
        for index in 0..self.users.count() {
            let maildir = self.spool.folder.join(self.users.name(index));
            std::fs::create_dir(&maildir)?;
            own(&maildir)?;
            for name in ["new", "cur", "tmp"] {
                std::fs::create_dir(maildir.join(name))?;
                own(&maildir.join(name))?;
            }
        }
        Ok(vec![0; self.users.count()])
    }
}

impl Running for Mda {
    fn door(&self) -> Door {
        let (path, rule, spool) = (
            self.path.clone(),
            self.rule.clone(),
            self.spool.folder.clone(),
        );
        let (program, libraries) = (self.program, self.libraries.clone());
        Door::Program(Box::new(move |users| {
            let mut command = Command::new(&path);
            command.env_clear().env("HOME", &spool).uid(MAIL).gid(MAIL);
            command.args(["-f", SENDER]);
            let user = users.first().copied().unwrap_or_default();
            match program {
                Program::Procmail => command.args(["-a", user]).arg(&rule),
                Program::Maildrop => command
                    .env("LD_LIBRARY_PATH", &libraries)
                    .arg(&rule)
                    .arg(user),
            };
            command
        }))
    }

    fn fill(&self) -> anyhow::Result<Option<Vec<u32>>> {
        match self.program {
            Program::Procmail => self.spool.fill(&self.users, |_| MAIL).map(Some),
            Program::Maildrop => self.maildirs().map(Some),
        }
    }

    fn cpu(&self) -> anyhow::Result<Duration> {
        Ok(Duration::ZERO)
    }

    fn compare(
        &mut self,
        plan: &Plan,
        tally: &mut Tally,
        before: &[u32],
    ) -> anyhow::Result<Verification> {
        match self.program {
            Program::Procmail => self.spool.compare(plan, tally, before),
            Program::Maildrop => {
                let mut mailbox = |user: &str| new_messages(&self.spool.folder.join(user));
                compare::compare(plan, tally, before, Quoting::None, &mut mailbox)
            }
        }
    }

    fn stop(self: Box<Self>) -> anyhow::Result<()> {
        Ok(())
    }
}

/// procmailrc(5), maildropfilter(7): everything to the mailbox that the argument names.
fn rule(program: Program, spool: &Path) -> String {
    let spool = spool.display();
    match program {
        Program::Procmail => format!("MAILDIR={spool}\nDEFAULT=/dev/null\n:0\n$MAILDIR/$1\n"),
        Program::Maildrop => format!("to \"{spool}/$1\"\n"),
    }
}

/// Messages that nobody has seen yet (maildir(5)).
fn new_messages(maildir: &Path) -> anyhow::Result<Vec<Vec<u8>>> {
    let entries = std::fs::read_dir(maildir.join("new"))?;
    entries
        .map(|entry| Ok(std::fs::read(entry?.path())?))
        .collect()
}

fn own(path: &Path) -> anyhow::Result<()> {
    let (uid, gid) = (
        nix::unistd::Uid::from_raw(MAIL),
        nix::unistd::Gid::from_raw(MAIL),
    );
    nix::unistd::chown(path, Some(uid), Some(gid))
        .with_context(|| format!("cannot give {} to the account mail", path.display()))
}

/// A folder with links to maildrop's own libraries, and to nothing else of its root: the C library
/// has to be the machine's, as the loader is.
fn libraries(root: &Root) -> anyhow::Result<PathBuf> {
    let folder = root.path("data/lib");
    std::fs::create_dir_all(&folder)?;
    let places = ["usr/lib", "usr/lib/courier-authlib"].map(|inside| root.path(inside));
    let multiarch = std::fs::read_dir(root.path("usr/lib"))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().ends_with("-linux-gnu"));
    let places: Vec<PathBuf> = places.into_iter().chain(multiarch).collect();
    for name in MAILDROP_LIBRARIES {
        let found = places
            .iter()
            .map(|place| place.join(name))
            .find(|path| path.exists());
        if let Some(found) = found {
            std::os::unix::fs::symlink(found, folder.join(name))?;
        }
    }
    Ok(folder)
}

/// Lets everybody pass the folders that were made for this call: the programs are not root.
fn reachable(path: &Path) -> anyhow::Result<()> {
    for folder in path.ancestors().skip(1) {
        let made_here = folder
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("ringpost-perf."));
        if made_here {
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_deliver_to_the_argument() {
        let spool = Path::new("/s");
        assert_eq!(
            rule(Program::Procmail, spool),
            "MAILDIR=/s\nDEFAULT=/dev/null\n:0\n$MAILDIR/$1\n"
        );
        assert_eq!(rule(Program::Maildrop, spool), "to \"/s/$1\"\n");
    }
}
