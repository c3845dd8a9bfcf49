//! sendmail 8.17 as MTA with a local mailer: procmail and system accounts, which is the thesis's
//! general mail system, or our shim without any account.
//!
//! **Durable** by default: `SuperSafe` is true, so a message's queue file is synced before the
//! MTA answers ("Sendmail Installation and Operation Guide", 5.6); procmail syncs the mailbox, our
//! shim ends with 0 only after the daemon's answer. `DeliveryMode` is `interactive`: each SMTP
//! connection delivers what it took before it answers, so that as much is under way as there are
//! connections. In the default `background` mode nothing bounds the processes that pile up, and a
//! rate would be that of forking. It runs as root, which local mailers with accounts need.
//! No alias file, no DNS, no IDENT: nothing of these is what is compared.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;

use super::group::Group;
use super::packages::{self, Family};
use super::peer::{Door, Running, Site};
use super::ringpost::{Ringpost, Via};
use super::root::{Account, PEOPLE_FROM, Root};
use super::service::{Service, free_port};
use super::spool::Spool;
use crate::address::Address;
use crate::deliver::plan::Plan;
use crate::deliver::tally::Tally;
use crate::deliver::verify::Verification;
use crate::workload::Users;

/// Its packages; m4 and sed make its configuration.
pub(crate) const FAMILY: Family = Family {
    name: "sendmail",
    main: "sendmail-bin",
    packages: &["sendmail-cf", "procmail", "m4", "sed", "dash", "coreutils"],
};

/// Accounts that its packages would make.
const ACCOUNTS: [Account; 3] = [
    Account {
        name: "smmta",
        id: 61_406,
    },
    Account {
        name: "smmsp",
        id: 61_407,
    },
    Account {
        name: "ringpost-mta",
        id: 61_408,
    },
];

const CF: &str = "/etc/mail/perf.cf";
const SHIM: &str = "/usr/bin/ringpost-deliver";
const SOCKETS: &str = "/run/ringpost";

/// Who delivers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Local {
    /// procmail, users in passwd, mbox files in /var/mail.
    Procmail,
    /// `ringpost-deliver`, a process per message.
    Ringpost,
    /// A program that takes the message and throws it away: what the MTA leaves to any store.
    Dummy,
}

/// One that runs, with what it delivers to.
pub(crate) struct Sendmail {
    service: Service,
    store: Store,
    root: Rc<Root>,
    smtp: Address,
    users: Users,
}

enum Store {
    Spool(Spool),
    Ringpost(Box<Ringpost>),
    Nothing,
}

impl Sendmail {
    /// Starts it with an empty queue and an empty store.
    pub(crate) fn start(site: &Site<'_>, local: Local) -> anyhow::Result<Self> {
        let root = (site.roots)(&FAMILY)?;
        root.fresh("data", None)?;
        root.fresh("run", None)?;
        root.folder("data/mqueue", None, 0o700)?;
        root.folder("home", None, 0o755)?;
        let names: Vec<&str> = (0..site.users.count())
            .map(|i| site.users.name(i))
            .collect();
        let people = if local == Local::Procmail {
            names.as_slice()
        } else {
            &[]
        };
        root.accounts(&ACCOUNTS, people)?;
        let store = Self::store(&root, site, local)?;
        let port = free_port()?;
        root.write("etc/mail/perf.mc", &configuration(local, port))?;
        let text = packages::run(root.command("/bin/sh").args(["-c", M4]))
            .context("sendmail.cf cannot be made")?;
        root.write(CF, &text)?;
        let arguments = ["-C", CF, "-bD"];
        let program = "/usr/libexec/sendmail/sendmail";
        let mut service = root.start(Group::make()?, program, &arguments)?;
        let smtp = Address::Tcp(format!("127.0.0.1:{port}"));
        service.wait_for(&smtp, &root.path("service.log"))?;
        Ok(Self {
            service,
            store,
            root,
            smtp,
            users: site.users.clone(),
        })
    }

    fn store(root: &Rc<Root>, site: &Site<'_>, local: Local) -> anyhow::Result<Store> {
        match local {
            // Without $u sendmail would speak SMTP with it.
            Local::Dummy => {
                root.write("usr/bin/dummy", "#!/bin/sh\nexec cat >/dev/null\n")?;
                let mode = std::fs::Permissions::from_mode(0o755);
                std::fs::set_permissions(root.path("usr/bin/dummy"), mode)?;
                Ok(Store::Nothing)
            }
            Local::Procmail => {
                root.fresh("var/mail", None)?;
                root.folder("var/mail", None, 0o1777)?;
                root.write("etc/procmailrc", PROCMAILRC)?;
                Ok(Store::Spool(Spool {
                    folder: root.path("var/mail"),
                }))
            }
            Local::Ringpost => {
                std::fs::copy(&site.programs.deliver, root.path(SHIM))
                    .context("ringpost-deliver cannot be put beside sendmail")?;
                root.folder(SOCKETS, None, 0o755)?;
                let sockets: PathBuf = root.short_path(SOCKETS);
                let inner = Site {
                    sockets: &sockets,
                    ..*site
                };
                Ok(Store::Ringpost(Box::new(Ringpost::start(
                    &inner,
                    Via::Mda,
                )?)))
            }
        }
    }
}

impl Running for Sendmail {
    fn door(&self) -> Door {
        Door::Smtp(self.smtp.clone())
    }

    fn fill(&self) -> anyhow::Result<Option<Vec<u32>>> {
        let owner = |index| u32::try_from(PEOPLE_FROM + index).unwrap_or(u32::MAX);
        match &self.store {
            Store::Spool(spool) => spool.fill(&self.users, owner).map(Some),
            Store::Ringpost(_) => Ok(None),
            Store::Nothing => Ok(Some(vec![0; self.users.count()])),
        }
    }

    fn store_door(&self) -> Option<Door> {
        match &self.store {
            Store::Ringpost(ringpost) => Some(Door::Node(ringpost.node())),
            Store::Spool(_) | Store::Nothing => None,
        }
    }

    fn cpu(&self) -> anyhow::Result<Duration> {
        let store = match &self.store {
            Store::Ringpost(ringpost) => ringpost.cpu()?,
            Store::Spool(_) | Store::Nothing => Duration::ZERO,
        };
        Ok(self.service.cpu()? + store)
    }

    fn is_idle(&self) -> anyhow::Result<bool> {
        // A message's control file lies in the queue until it is delivered.
        let mut queue = std::fs::read_dir(self.root.path("data/mqueue"))?;
        Ok(queue.next().is_none())
    }

    fn compare(
        &mut self,
        plan: &Plan,
        tally: &mut Tally,
        before: &[u32],
    ) -> anyhow::Result<Verification> {
        match &mut self.store {
            Store::Spool(spool) => spool.compare(plan, tally, before),
            Store::Ringpost(ringpost) => ringpost.compare_lines(plan, tally, before),
            Store::Nothing => Ok(Verification::default()),
        }
    }

    fn keeps(&self) -> bool {
        !matches!(self.store, Store::Nothing)
    }

    fn stop(self: Box<Self>) -> anyhow::Result<()> {
        let this = *self;
        this.service.stop()?;
        match this.store {
            Store::Ringpost(ringpost) => ringpost.stop(),
            Store::Spool(_) | Store::Nothing => Ok(()),
        }
    }
}

/// The mailbox that procmail would write to without it, but without a dot lock: see `mda.rs`.
const PROCMAILRC: &str = "DROPPRIVS=yes\n:0\n/var/mail/$LOGNAME\n";

/// Run inside the root.
const M4: &str = "cd /usr/share/sendmail/cf/cf && \
    m4 -D_CF_DIR_=/usr/share/sendmail/cf/ /usr/share/sendmail/cf/m4/cf.m4 /etc/mail/perf.mc";

/// The input of m4 (`cf/README` of sendmail).
fn configuration(local: Local, port: u16) -> String {
    let mailer = match local {
        Local::Procmail => {
            "FEATURE(`local_procmail', `/usr/bin/procmail', `procmail -Y -a $h -d $u')dnl"
                .to_owned()
        }
        Local::Ringpost => format!(
            "define(`LOCAL_MAILER_PATH', `{SHIM}')dnl
define(`LOCAL_MAILER_ARGS', `ringpost-deliver --socket {SOCKETS}/node -f $f -d $u')dnl
MODIFY_MAILER_FLAGS(`LOCAL', `-w')dnl"
        ),
        Local::Dummy => "define(`LOCAL_MAILER_PATH', `/usr/bin/dummy')dnl
define(`LOCAL_MAILER_ARGS', `dummy $u')dnl
MODIFY_MAILER_FLAGS(`LOCAL', `-w')dnl"
            .to_owned(),
    };
    format!(
        "divert(0)dnl
OSTYPE(`linux')dnl
define(`confDOMAIN_NAME', `mail.perf.test')dnl
define(`confDELIVERY_MODE', `interactive')dnl
define(`confTO_IDENT', `0')dnl
define(`confPID_FILE', `/run/sendmail.pid')dnl
define(`confMAX_DAEMON_CHILDREN', `0')dnl
define(`STATUS_FILE', `')dnl
undefine(`ALIAS_FILE')dnl
define(`QUEUE_DIR', `/data/mqueue')dnl
FEATURE(`no_default_msa')dnl
FEATURE(`nocanonify')dnl
FEATURE(`accept_unqualified_senders')dnl
FEATURE(`accept_unresolvable_domains')dnl
DAEMON_OPTIONS(`Family=inet, Name=MTA, Port={port}, Addr=127.0.0.1')dnl
{mailer}
MAILER(`local')dnl
MAILER(`smtp')dnl
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mailers_differ_and_quotes_are_in_pairs() {
        for local in [Local::Procmail, Local::Ringpost, Local::Dummy] {
            let text = configuration(local, 2525);
            assert_eq!(text.matches('`').count(), text.matches('\'').count());
            assert!(text.contains("Port=2525, Addr=127.0.0.1"));
            // SuperSafe stays at its default, which is safe.
            assert!(!text.contains("SAFE"));
            let no_accounts = text.contains("`LOCAL', `-w'");
            assert_eq!(no_accounts, local != Local::Procmail);
        }
    }
}
