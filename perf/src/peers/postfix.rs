//! Postfix 3.7 in front of a store that takes LMTP: Dovecot's mdbox, or ours.
//!
//! **Durable** by design: a message's queue file is synced before smtpd answers, and removed after
//! the store's answer (postfix.org, OVERVIEW and `fsync` in `cleanup(8)`); there is no setting for
//! it. Debian's services without chroot, as many smtpd and lmtp processes as messages are in
//! flight, no DNS, no local accounts. Its daemons run as `postfix`, its master as root. An answer
//! says that a message is queued; rates count when the store has it.

use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;

use super::dovecot::{Dovecot, Format};
use super::group::Group;
use super::packages::Family;
use super::peer::{Door, Running, Site};
use super::ringpost::{Ringpost, Via};
use super::root::{Account, Root};
use super::service::{Service, free_port};
use crate::address::Address;
use crate::deliver::plan::Plan;
use crate::deliver::tally::Tally;
use crate::deliver::verify::Verification;

/// Its packages.
pub(crate) const FAMILY: Family = Family {
    name: "postfix",
    main: "postfix",
    packages: &["dash"],
};

/// The domain that recipients without one are in.
pub(crate) const DOMAIN: &str = "perf.test";

const POSTFIX: Account = Account {
    name: "postfix",
    id: 61_404,
};

const POSTDROP: Account = Account {
    name: "postdrop",
    id: 61_405,
};

const NOBODY: Account = Account {
    name: "nobody",
    id: 65_534,
};

const QUEUE: &str = "var/spool/postfix";
const STORE: &str = "/run/store";

/// Where a message may wait.
const QUEUES: [&str; 4] = ["maildrop", "incoming", "active", "deferred"];

/// What is behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Behind {
    /// Dovecot, mdbox.
    Dovecot,
    /// Ours.
    Ringpost,
}

/// One that runs, with its store.
pub(crate) struct Postfix {
    service: Service,
    store: Store,
    root: Rc<Root>,
    smtp: Address,
}

enum Store {
    Dovecot(Box<Dovecot>),
    Ringpost(Box<Ringpost>),
}

impl Postfix {
    /// Starts both, empty.
    pub(crate) fn start(site: &Site<'_>, behind: Behind) -> anyhow::Result<Self> {
        let root = (site.roots)(&FAMILY)?;
        root.accounts(&[POSTFIX, POSTDROP, NOBODY], &[])?;
        root.fresh("run", None)?;
        root.folder(STORE, None, 0o755)?;
        let sockets = root.short_path(STORE);
        let store = match behind {
            Behind::Dovecot => {
                let dovecot = Dovecot::start(site, Format::Mdbox)?;
                let Address::Unix(lmtp) = dovecot.lmtp() else {
                    anyhow::bail!("Dovecot's LMTP is no Unix socket");
                };
                // Another name of the same socket: Postfix sees nothing outside its own root.
                std::fs::hard_link(&lmtp, root.path(STORE).join("lmtp"))
                    .context("the LMTP socket cannot be shown to Postfix")?;
                Store::Dovecot(Box::new(dovecot))
            }
            Behind::Ringpost => {
                let mut settings = site.settings.to_vec();
                settings.push(format!("default_domain={DOMAIN}"));
                settings.push("recipient_delimiter=none".to_owned());
                let inner = Site {
                    sockets: &sockets,
                    settings: &settings,
                    ..*site
                };
                Store::Ringpost(Box::new(Ringpost::start(&inner, Via::Lmtp)?))
            }
        };
        // The LMTP client is not root.
        open_to_all(&root)?;
        queue(&root)?;
        let port = free_port()?;
        root.write("etc/postfix/main.cf", MAIN_CF)?;
        root.write("etc/postfix/master.cf", &master_cf(port, site.in_flight))?;
        let program = "/usr/lib/postfix/sbin/master";
        let mut service = root.start(Group::make()?, program, &["-c", "/etc/postfix", "-d"])?;
        let smtp = Address::Tcp(format!("127.0.0.1:{port}"));
        service.wait_for(&smtp, &root.path("service.log"))?;
        Ok(Self {
            service,
            store,
            root,
            smtp,
        })
    }
}

impl Running for Postfix {
    fn door(&self) -> Door {
        Door::Smtp(self.smtp.clone())
    }

    fn domain(&self) -> Option<&'static str> {
        Some(DOMAIN)
    }

    fn store_door(&self) -> Option<Door> {
        match &self.store {
            Store::Dovecot(dovecot) => Some(dovecot.door()),
            Store::Ringpost(ringpost) => Some(Door::Node(ringpost.node())),
        }
    }

    fn cpu(&self) -> anyhow::Result<Duration> {
        let store = match &self.store {
            Store::Dovecot(dovecot) => dovecot.cpu()?,
            Store::Ringpost(ringpost) => ringpost.cpu()?,
        };
        Ok(self.service.cpu()? + store)
    }

    fn is_idle(&self) -> anyhow::Result<bool> {
        for queue in QUEUES {
            let folder = self.root.path(QUEUE).join(queue);
            if std::fs::read_dir(folder)?.next().is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn compare(
        &mut self,
        plan: &Plan,
        tally: &mut Tally,
        before: &[u32],
    ) -> anyhow::Result<Verification> {
        match &mut self.store {
            Store::Dovecot(dovecot) => dovecot.compare(plan, tally, before),
            Store::Ringpost(ringpost) => ringpost.compare_lines(plan, tally, before),
        }
    }

    fn stop(self: Box<Self>) -> anyhow::Result<()> {
        let this = *self;
        this.service.stop()?;
        match this.store {
            Store::Dovecot(dovecot) => dovecot.stop(),
            Store::Ringpost(ringpost) => ringpost.stop(),
        }
    }
}

fn open_to_all(root: &Root) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let lmtp = root.path(STORE).join("lmtp");
    std::fs::set_permissions(lmtp, std::fs::Permissions::from_mode(0o666))
        .context("the LMTP socket cannot be opened to Postfix")
}

/// The queue's folders, as `postfix set-permissions` makes them.
fn queue(root: &Root) -> anyhow::Result<()> {
    root.fresh(QUEUE, None)?;
    let private = [
        "active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "private",
        "saved", "trace",
    ];
    for name in private {
        root.folder(&format!("{QUEUE}/{name}"), Some(POSTFIX), 0o700)?;
    }
    root.folder(&format!("{QUEUE}/pid"), None, 0o755)?;
    root.fresh("var/lib/postfix", Some(POSTFIX))?;
    let group = nix::unistd::Gid::from_raw(POSTDROP.id);
    for (name, mode) in [("public", 0o2710), ("maildrop", 0o1730)] {
        let inside = format!("{QUEUE}/{name}");
        root.folder(&inside, Some(POSTFIX), mode)?;
        nix::unistd::chown(&root.path(&inside), None, Some(group))?;
    }
    Ok(())
}

/// postconf(5).
const MAIN_CF: &str = "compatibility_level = 3.6
queue_directory = /var/spool/postfix
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
data_directory = /var/lib/postfix
meta_directory = /etc/postfix
shlib_directory = /usr/lib/postfix
mail_owner = postfix
setgid_group = postdrop
myhostname = mail.perf.test
mydestination =
myorigin = perf.test
virtual_mailbox_domains = perf.test
virtual_mailbox_maps = static:all
virtual_transport = lmtp:unix:/run/store/lmtp
lmtp_destination_concurrency_limit = 64
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
alias_maps =
local_recipient_maps =
message_size_limit = 0
mailbox_size_limit = 0
virtual_mailbox_limit = 0
disable_dns_lookups = yes
smtp_host_lookup = native
smtpd_client_connection_count_limit = 0
";

/// master(5): Debian's services, not in a chroot of their own.
fn master_cf(port: u16, in_flight: usize) -> String {
    let processes = in_flight + 16;
    format!(
        "127.0.0.1:{port} inet n - n - {processes} smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
proxymap unix - - n - - proxymap
error unix - - n - - error
retry unix - - n - - error
lmtp unix - - n - {processes} lmtp
anvil unix - - n - 1 anvil
showq unix n - n - - showq
flush unix n - n 1000? 0 flush
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_have_eight_columns_and_listen_on_loopback() {
        let text = master_cf(2525, 64);
        assert!(text.lines().all(|line| line.split(' ').count() == 8));
        assert!(text.starts_with("127.0.0.1:2525 inet n - n - 80 smtpd\n"));
        assert!(MAIN_CF.lines().all(|line| line.contains(" =")));
        assert!(MAIN_CF.contains(&format!("myorigin = {DOMAIN}\n")));
    }
}
