//! Reads a store back through the node protocol and tells the ledger what is there.

use std::time::Duration;

use anyhow::{Context as _, bail};
use ringpost_daemon::client::{Client, ClientError, Deadline, Patience};
use ringpost_netproto::frame::Status;
use ringpost_netproto::id::{MailboxId, Uid};
use ringpost_netproto::message::MailboxRef;
use ringpost_netproto::message::fetch::FetchRequest;
use ringpost_netproto::message::list::{ListRequest, More};
use ringpost_netproto::version::Role;

use super::ledger::{Inbox, Known, Ledger};
use crate::address::Address;
use crate::daemon::Doors;
use crate::workload::Users;

/// For each answer.
const PATIENCE: Duration = Duration::from_mins(1);

/// A connection that reads.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    client: Client,
    users: &'a Users,
}

impl<'a> Reader<'a> {
    /// Connects to the node's socket.
    pub(crate) fn connect(doors: &Doors, users: &'a Users) -> anyhow::Result<Self> {
        let client = Client::connect(
            &(&Address::from(doors.node.as_path())).into(),
            Role::Client,
            Deadline::after(PATIENCE),
            Patience::None,
        )
        .context("cannot read the store back")?;
        Ok(Self { client, users })
    }

    /// Everything above what the ledger knows, of every user, and each mailbox's own count.
    pub(crate) fn read_new(&mut self, ledger: &mut Ledger) -> anyhow::Result<()> {
        for user in 0..self.users.count() {
            let mut after_uid = ledger.inboxes().get(user).map_or(0, Inbox::last_uid);
            loop {
                let request = ListRequest {
                    user: self.users.shared_name(user),
                    mailbox: MailboxRef::Id(MailboxId::INBOX),
                    after_uid,
                    entries_max: 1_000,
                };
                let page = match self.client.list(&request, Deadline::after(PATIENCE)) {
                    Ok(page) => page,
                    Err(ClientError::Failed {
                        status: Status::NoUser | Status::NoMailbox,
                        ..
                    }) => {
                        // A user without mail does not exist; one with mail has to.
                        if ledger
                            .inboxes()
                            .get(user)
                            .is_some_and(|one| one.last_uid() > 0)
                        {
                            ledger
                                .violations
                                .other(|| format!("user {user} had mail and is unknown"));
                        }
                        break;
                    }
                    Err(error) => return Err(error).context("cannot list"),
                };
                for entry in &page.entries {
                    let uid = entry.uid.value();
                    match self.fetch(user, entry.uid)? {
                        Ok(bytes) => ledger.found(user, uid, &bytes),
                        Err(why) => unreadable(ledger, user, uid, &why),
                    }
                    after_uid = uid;
                }
                if page.more == More::No || page.entries.is_empty() {
                    let status = &page.status;
                    ledger.counted(user, status.uidvalidity.value(), status.messages_count);
                    break;
                }
            }
        }
        Ok(())
    }

    /// Fetches messages of earlier rounds again and compares them.
    pub(crate) fn read_again(
        &mut self,
        ledger: &mut Ledger,
        known: impl Iterator<Item = (usize, Known)>,
    ) -> anyhow::Result<u64> {
        let mut count = 0;
        for (user, known) in known {
            let fetched = self.fetch(user, Uid::new(known.uid))?;
            ledger.read_again(user, known, fetched.as_deref().ok());
            count += 1;
        }
        Ok(count)
    }

    /// The node's report about itself, by name.
    pub(crate) fn report(&mut self, name: &str) -> anyhow::Result<Option<String>> {
        let fields = self.client.status(Deadline::after(PATIENCE))?;
        Ok(fields
            .into_iter()
            .find(|field| field.name == name)
            .map(|field| field.value))
    }

    /// The bytes, or the store's reason why it does not give them.
    fn fetch(&mut self, user: usize, uid: Uid) -> anyhow::Result<Result<Vec<u8>, String>> {
        let request = FetchRequest {
            user: self.users.shared_name(user),
            mailbox: MailboxRef::Id(MailboxId::INBOX),
            uid,
        };
        let (id, entry) = match self.client.fetch(&request, Deadline::after(PATIENCE)) {
            Ok(begun) => begun,
            Err(error @ ClientError::Failed { .. }) => return Ok(Err(error.to_string())),
            Err(error) => return Err(error).context("cannot fetch"),
        };
        let mut message = Vec::new();
        loop {
            match self.client.fetched(id, Deadline::after(PATIENCE)) {
                Ok(Some(piece)) => message.extend_from_slice(&piece),
                Ok(None) => break,
                Err(error @ ClientError::Failed { .. }) => return Ok(Err(error.to_string())),
                Err(error) => return Err(error).context("cannot fetch"),
            }
        }
        if u64::try_from(message.len())? != entry.received_size {
            bail!("uid {uid}: the entry's size and the bytes differ");
        }
        Ok(Ok(message))
    }
}

fn unreadable(ledger: &mut Ledger, user: usize, uid: u32, why: &str) {
    ledger.violations.damaged += 1;
    ledger
        .violations
        .say(|| format!("user {user}, uid {uid}: listed and not readable: {why}"));
}
