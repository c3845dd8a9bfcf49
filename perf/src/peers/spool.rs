//! Mailboxes that are mbox files, one a user, in one folder: what procmail and the
//! classic local mailers write.

use std::fs::FileTimes;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use nix::unistd::{Gid, Uid, chown};

use super::compare::{self, Quoting, split_mbox};
use crate::deliver::plan::Plan;
use crate::deliver::tally::Tally;
use crate::deliver::verify::Verification;
use crate::workload::{SENDER, Users};

/// The `mail` account of Debian, which is in every machine's passwd: user and group.
pub(crate) const MAIL: u32 = 8;

/// A mailbox was read last so long before its last message came.
const UNREAD: Duration = Duration::from_hours(1);

/// The folder.
#[derive(Clone, Debug)]
pub(crate) struct Spool {
    /// As seen from outside.
    pub(crate) folder: PathBuf,
}

impl Spool {
    /// Gives each user a mailbox with one unread message; `owner` by the user's index. Returns how
    /// many each has. procmail sleeps for a second before it writes to a mailbox in which nothing
    /// is unread, so that the file's times tell of new mail: no figure here is to hold that.
    pub(crate) fn fill(
        &self,
        users: &Users,
        owner: impl Fn(usize) -> u32,
    ) -> anyhow::Result<Vec<u32>> {
        let first = format!(
            "From {SENDER} Mon Nov 23 21:39:13 2026\nFrom: {SENDER}\nSubject: welcome\n\nHello.\n\n"
        );
        let now = SystemTime::now();
        let times = FileTimes::new()
            .set_accessed(now - UNREAD)
            .set_modified(now);
        for index in 0..users.count() {
            let path = self.folder.join(users.name(index));
            let mut options = std::fs::OpenOptions::new();
            let mut file = options
                .create_new(true)
                .write(true)
                .mode(0o660)
                .open(&path)
                .with_context(|| format!("cannot make {}", path.display()))?;
            std::io::Write::write_all(&mut file, first.as_bytes())?;
            file.set_times(times)?;
            let owner = Uid::from_raw(owner(index));
            chown(&path, Some(owner), Some(Gid::from_raw(MAIL)))?;
        }
        Ok(vec![1; users.count()])
    }

    /// Compares the watched users' mailboxes.
    pub(crate) fn compare(
        &self,
        plan: &Plan,
        tally: &mut Tally,
        before: &[u32],
    ) -> anyhow::Result<Verification> {
        let mut mailbox = |user: &str| {
            let path = self.folder.join(user);
            let text = std::fs::read(&path);
            let text = text.with_context(|| format!("cannot read {}", path.display()))?;
            Ok(split_mbox(&text))
        };
        compare::compare(plan, tally, before, Quoting::Mboxo, &mut mailbox)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filled_mailboxes_hold_one_message() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool {
            folder: folder.path().to_owned(),
        };
        let own = nix::unistd::geteuid().as_raw();
        if own != 0 {
            return;
        }
        let users = Users::new("u", 2);
        assert_eq!(spool.fill(&users, |_| own).unwrap(), [1, 1]);
        let text = std::fs::read(folder.path().join("u0000001")).unwrap();
        assert_eq!(split_mbox(&text).len(), 1);
        let times = std::fs::metadata(folder.path().join("u0000000")).unwrap();
        assert!(times.accessed().unwrap() < times.modified().unwrap());
        assert!(spool.fill(&users, |_| own).is_err());
    }
}
