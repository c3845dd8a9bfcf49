//! Cyrus IMAP 3.6: lmtpd, with a process per connection, into its own store, read back from its
//! spool (a file a message).
//!
//! **Durable** by default: message files, indexes and the twoskip databases are synced before LMTP
//! answers. The settings that would stop it stay off: `skiplist_unsafe` ("this option forces the
//! skiplist cyrusdb backend to not sync writes to the disk. Enabling this option is NOT
//! RECOMMENDED"; imapd.conf(5)). Debian's configuration but for paths, users (`autocreate_post`
//! makes an INBOX at the first message) and as many lmtpd as messages are in flight. It runs as
//! the account `cyrus`, its master as root.

use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;

use super::compare::{self, Quoting};
use super::group::Group;
use super::packages::{self, Family};
use super::peer::{Door, Running, Site};
use super::root::{Account, Root};
use super::service::Service;
use crate::address::Address;
use crate::deliver::plan::Plan;
use crate::deliver::tally::Tally;
use crate::deliver::verify::Verification;

/// Its packages.
pub(crate) const FAMILY: Family = Family {
    name: "cyrus",
    main: "cyrus-imapd",
    packages: &["dash"],
};

const CYRUS: Account = Account {
    name: "cyrus",
    id: 61_403,
};

const IMAPD_CONF: &str = "/etc/imapd-perf.conf";
const CYRUS_CONF: &str = "/etc/cyrus-perf.conf";
const LMTP: &str = "/run/cyrus/socket/lmtp";
const PROGRAMS: &str = "/usr/lib/cyrus/bin";

/// One that runs.
pub(crate) struct Cyrus {
    root: Rc<Root>,
    service: Service,
    lmtp: Address,
}

impl Cyrus {
    /// Starts it on an empty store.
    pub(crate) fn start(site: &Site<'_>) -> anyhow::Result<Self> {
        let root = (site.roots)(&FAMILY)?;
        root.accounts(&[CYRUS], &[])?;
        root.fresh("data", Some(CYRUS))?;
        root.fresh("run", None)?;
        let folders = ["data/conf", "data/mail", "run/cyrus"];
        let below = ["run/cyrus/proc", "run/cyrus/lock", "run/cyrus/socket"];
        for folder in folders.into_iter().chain(below) {
            root.folder(folder, Some(CYRUS), 0o755)?;
        }
        root.write(IMAPD_CONF, imapd_conf())?;
        root.write(CYRUS_CONF, &cyrus_conf(site.in_flight))?;
        let arguments = ["-D", "-C", IMAPD_CONF, "-M", CYRUS_CONF];
        let master = format!("{PROGRAMS}/master");
        let mut service = root.start(Group::make()?, &master, &arguments)?;
        let lmtp = Address::Unix(root.short_path(LMTP));
        service.wait_for(&lmtp, &root.path("service.log"))?;
        Ok(Self {
            root,
            service,
            lmtp,
        })
    }
}

impl Running for Cyrus {
    fn door(&self) -> Door {
        Door::Lmtp(self.lmtp.clone())
    }

    fn cpu(&self) -> anyhow::Result<Duration> {
        self.service.cpu()
    }

    fn compare(
        &mut self,
        plan: &Plan,
        tally: &mut Tally,
        before: &[u32],
    ) -> anyhow::Result<Verification> {
        let root = Rc::clone(&self.root);
        let mut mailbox = |user: &str| messages(&root, user);
        compare::compare(plan, tally, before, Quoting::None, &mut mailbox)
    }

    fn stop(self: Box<Self>) -> anyhow::Result<()> {
        self.service.stop()
    }
}

/// The files of a user's INBOX, which mbpath(8) finds: `1.`, `2.` and so on.
fn messages(root: &Root, user: &str) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut command = root.command(&format!("{PROGRAMS}/mbpath"));
    // It has to be the account that owns the databases.
    let mailbox = format!("user.{user}");
    command.args(["-C", IMAPD_CONF, &mailbox]);
    let said = packages::run(&mut command)?;
    let folder = said.lines().last().context("mbpath names no folder")?;
    let mut messages = Vec::new();
    for entry in std::fs::read_dir(root.path(folder.trim()))? {
        let entry = entry?;
        if is_message(&entry.file_name().to_string_lossy()) {
            messages.push(std::fs::read(entry.path())?);
        }
    }
    Ok(messages)
}

fn is_message(name: &str) -> bool {
    name.strip_suffix('.')
        .is_some_and(|uid| !uid.is_empty() && uid.bytes().all(|byte| byte.is_ascii_digit()))
}

/// imapd.conf(5).
fn imapd_conf() -> &'static str {
    "configdirectory: /data/conf
proc_path: /run/cyrus/proc
mboxname_lockpath: /run/cyrus/lock
defaultpartition: default
partition-default: /data/mail
altnamespace: no
unixhierarchysep: no
lmtp_downcase_rcpt: yes
autocreate_quota: 0
autocreate_post: yes
umask: 077
lmtpsocket: /run/cyrus/socket/lmtp
syslog_prefix: cyrus
"
}

/// cyrus.conf(5) for so many messages in flight.
fn cyrus_conf(in_flight: usize) -> String {
    let children = in_flight + 16;
    format!(
        "START {{
  recover cmd=\"{PROGRAMS}/ctl_cyrusdb -C {IMAPD_CONF} -r\"
}}
SERVICES {{
  lmtpunix cmd=\"{PROGRAMS}/lmtpd -C {IMAPD_CONF}\" listen=\"{LMTP}\" prefork=0 maxchild={children}
}}
EVENTS {{
  checkpoint cmd=\"{PROGRAMS}/ctl_cyrusdb -C {IMAPD_CONF} -c\" period=30
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_leaves_syncing_on() {
        assert!(!imapd_conf().contains("unsafe"));
        assert!(imapd_conf().lines().all(|line| line.contains(": ")));
        let text = cyrus_conf(64);
        assert!(text.contains("maxchild=80\n"));
        assert_eq!(text.matches('{').count(), text.matches('}').count());
    }

    #[test]
    fn messages_are_the_files_named_by_uid() {
        let names = ["1.", "42.", "cyrus.index", ".", "x1."];
        assert_eq!(names.map(is_message), [true, true, false, false, false]);
    }
}
