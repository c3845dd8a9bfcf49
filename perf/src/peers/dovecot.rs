//! Dovecot 2.3: LMTP into each of its mailbox formats, read back over IMAP.
//!
//! **Durable**: `mail_fsync = always`. The manual: "optimized (default): Whenever necessary to avoid
//! losing important data; always: Useful with e.g. NFS when write()s are delayed; never: Never use
//! it" (doc.dovecot.org/2.3/settings/core, `mail_fsync`; also in `conf.d/10-mail.conf`). Files are
//! then synced before LMTP answers 250. Nothing else is changed from Debian's defaults but what lets
//! it run: virtual users through a static passdb and userdb with one system account, no TLS, as many
//! LMTP processes as messages are in flight. In its favour informational log lines are dropped, and
//! logins share a process ("high-performance mode", doc.dovecot.org/2.3, "Login processes").

use std::time::Duration;

use super::compare::{self, Quoting};
use super::group::Group;
use super::imap;
use super::packages::Family;
use super::peer::{Door, ReadDoor, Running, Site};
use super::root::{Account, VMAIL};
use super::service::{Service, free_port};
use crate::address::Address;
use crate::deliver::plan::Plan;
use crate::deliver::tally::Tally;
use crate::deliver::verify::Verification;

/// Its packages.
pub(crate) const FAMILY: Family = Family {
    name: "dovecot",
    main: "dovecot-core",
    packages: &["dovecot-lmtpd", "dovecot-imapd"],
};

const INTERNAL: Account = Account {
    name: "dovecot",
    id: 61_401,
};

const LOGIN: Account = Account {
    name: "dovenull",
    id: 61_402,
};

const CONFIG: &str = "/etc/perf.conf";
const LMTP: &str = "/run/dovecot/lmtp";
const LOG: &str = "/run/dovecot.log";

/// A mailbox format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Format {
    /// Several messages in a file, indexes beside.
    Mdbox,
    /// A message in a file, indexes beside.
    Sdbox,
    /// A message in a file, by name.
    Maildir,
    /// All messages in a file.
    Mbox,
}

impl Format {
    /// `mail_location` (doc.dovecot.org/2.3, "Mail Location Settings").
    fn location(self) -> &'static str {
        match self {
            Self::Mdbox => "mdbox:~/mdbox",
            Self::Sdbox => "sdbox:~/sdbox",
            Self::Maildir => "maildir:~/Maildir",
            Self::Mbox => "mbox:~/mail:INBOX=~/inbox",
        }
    }
}

/// One that runs.
pub(crate) struct Dovecot {
    service: Service,
    lmtp: Address,
    imap: Address,
}

impl Dovecot {
    /// Starts it on empty mailboxes.
    pub(crate) fn start(site: &Site<'_>, format: Format) -> anyhow::Result<Self> {
        let root = (site.roots)(&FAMILY)?;
        root.accounts(&[INTERNAL, LOGIN], &[])?;
        root.fresh("data", Some(VMAIL))?;
        root.fresh("run", None)?;
        root.fresh("run/dovecot-state", None)?;
        let port = free_port()?;
        root.write(CONFIG, &config(format, site.in_flight, port))?;
        let arguments = ["-F", "-c", CONFIG];
        let mut service = root.start(Group::make()?, "/usr/sbin/dovecot", &arguments)?;
        let lmtp = Address::Unix(root.short_path(LMTP));
        service.wait_for(&lmtp, &root.path(LOG))?;
        Ok(Self {
            service,
            lmtp,
            imap: Address::Tcp(format!("127.0.0.1:{port}")),
        })
    }

    /// Where LMTP is spoken.
    pub(crate) fn lmtp(&self) -> Address {
        self.lmtp.clone()
    }
}

impl Running for Dovecot {
    fn door(&self) -> Door {
        Door::Lmtp(self.lmtp.clone())
    }

    fn reads(&self) -> Option<ReadDoor> {
        Some(ReadDoor::Imap(self.imap.clone()))
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
        let mut mailbox = |user: &str| imap::mailbox(&self.imap, user);
        compare::compare(plan, tally, before, Quoting::None, &mut mailbox)
    }

    fn stop(self: Box<Self>) -> anyhow::Result<()> {
        self.service.stop()
    }
}

/// dovecot.conf(5) for so many messages in flight, with the port of IMAP.
fn config(format: Format, in_flight: usize, imap: u16) -> String {
    let location = format.location();
    let processes = in_flight + 16;
    let clients = 1000 + 2 * in_flight;
    let owner = VMAIL.name;
    format!(
        "protocols = imap lmtp
base_dir = /run/dovecot
state_dir = /run/dovecot-state
log_path = {LOG}
info_log_path = /dev/null
ssl = no
listen = 127.0.0.1
disable_plaintext_auth = no
auth_username_chars =
auth_username_format = %Ln
mail_fsync = always
mail_location = {location}
mbox_write_locks = fcntl
default_client_limit = {clients}
passdb {{
  driver = static
  args = nopassword=y
}}
userdb {{
  driver = static
  args = uid={owner} gid={owner} home=/data/%n allow_all_users=yes
}}
service lmtp {{
  process_limit = {processes}
  unix_listener lmtp {{
    mode = 0666
  }}
}}
service imap-login {{
  service_count = 0
  inet_listener imap {{
    port = {imap}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_is_durable_and_has_a_process_for_each_message() {
        for format in [Format::Mdbox, Format::Sdbox, Format::Maildir, Format::Mbox] {
            let text = config(format, 256, 14_300);
            assert!(text.contains("\nmail_fsync = always\n"));
            assert!(text.contains(&format!("\nmail_location = {}\n", format.location())));
            assert!(text.contains("process_limit = 272\n"));
            assert!(text.contains("    port = 14300\n"));
            assert_eq!(text.matches('{').count(), text.matches('}').count());
        }
    }
}
