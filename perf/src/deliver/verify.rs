//! Asks the daemon, after the run, for what it acknowledged: as many messages per user as were
//! answered, and those of some users byte for byte.
//!
//! A message that was refused or left without an answer may be there or not; everything else has
//! to be there once. The node protocol is asked whichever door was measured.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use ringpost_daemon::client::{Client, Deadline, Patience};
use ringpost_netproto::frame::Status;
use ringpost_netproto::id::{MailboxId, Uid};
use ringpost_netproto::message::MailboxRef;
use ringpost_netproto::message::fetch::FetchRequest;
use ringpost_netproto::message::list::{ListRequest, More};
use ringpost_netproto::session::client::{Event, NotReady, RequestId};
use ringpost_netproto::version::Role;
use serde::Serialize;

use super::plan::Plan;
use super::tally::Tally;
use crate::address::Address;
use crate::workload::{Letter, SENDER, Users};

/// Questions under way at a time.
const ASKED_MAX: usize = 64;

/// For each answer; a mailbox may have to be read from the disk first.
const PATIENCE: Duration = Duration::from_mins(1);

/// Bytes that are fetched in all.
const FETCH_BYTES_MAX: usize = 256 << 20;

/// Sentences about single users that are kept.
const PROBLEMS_MAX: usize = 8;

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Verification {
    /// Users whose count was compared.
    pub(crate) users_count: usize,
    /// Messages found in their mailboxes.
    pub(crate) found: u64,
    /// Acknowledged and not found, by count.
    pub(crate) missing: u64,
    /// Found beyond what was acknowledged or in doubt, by count.
    pub(crate) surplus: u64,
    /// Messages compared byte for byte and equal.
    pub(crate) equal: u64,
    /// Acknowledged messages of watched users that no fetched message equals.
    pub(crate) damaged: u64,
    /// The first sentences about what is wrong.
    pub(crate) problems: Vec<String>,
}

impl Verification {
    /// Whether nothing is wrong.
    pub(crate) fn is_good(&self) -> bool {
        self.missing == 0 && self.surplus == 0 && self.damaged == 0
    }

    /// Keeps a sentence about what is wrong, as long as there are few.
    pub(crate) fn say(&mut self, problem: impl FnOnce() -> String) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem());
        }
    }

    /// Compares counts: `before` is what the mailboxes held when the run began.
    fn compare_counts(&mut self, users: &Users, tally: &Tally, before: &[u32], after: &[u32]) {
        self.users_count = after.len();
        let acknowledged = tally.stored_by_user.iter().zip(&tally.doubtful_by_user);
        for (user, ((&before, &after), (&stored, &doubtful))) in
            before.iter().zip(after).zip(acknowledged).enumerate()
        {
            let found = after.saturating_sub(before);
            self.found += u64::from(found);
            let missing = stored.saturating_sub(found);
            let surplus = found.saturating_sub(stored.saturating_add(doubtful));
            self.missing += u64::from(missing);
            self.surplus += u64::from(surplus);
            if missing + surplus > 0 {
                self.say(|| {
                    format!(
                        "{}: {stored} acknowledged, {doubtful} in doubt, {found} found",
                        users.name(user)
                    )
                });
            }
        }
    }
}

/// Compares the store behind `node` with the account. `before` is from [`counts`].
pub(crate) fn verify(
    node: &Address,
    plan: &Plan,
    tally: &mut Tally,
    before: &[u32],
) -> anyhow::Result<Verification> {
    let mut verification = Verification::default();
    let after = counts(node, &plan.users)?;
    verification.compare_counts(&plan.users, tally, before, &after);

    let mut expected = expected(tally);
    let mut reader = Reader::connect(node)?;
    let mut bytes_left = FETCH_BYTES_MAX;
    for (user, letters) in &mut expected {
        let known = before.get(*user).copied().unwrap_or(0);
        let left = reader.compare(
            &plan.users.shared_name(*user),
            known,
            letters,
            &mut bytes_left,
        )?;
        verification.equal += left.equal;
        verification.damaged += left.unfound;
        if left.unfound > 0 {
            verification.say(|| {
                format!(
                    "{}: {} acknowledged messages are not there byte for byte",
                    plan.users.name(*user),
                    left.unfound
                )
            });
        }
    }
    Ok(verification)
}

/// All messages of a user's INBOX.
pub(crate) fn mailbox(node: &Address, user: &str) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut reader = Reader::connect(node)?;
    let user = Bytes::copy_from_slice(user.as_bytes());
    let uids = reader.inbox(&user)?;
    uids.iter().map(|uid| reader.fetch(&user, *uid)).collect()
}

/// Messages in each user's INBOX; 0 where nothing was ever delivered.
pub(crate) fn counts(node: &Address, users: &Users) -> anyhow::Result<Vec<u32>> {
    let mut reader = Reader::connect(node)?;
    let mut counts = vec![0; users.count()];
    let mut asked: BTreeMap<RequestId, usize> = BTreeMap::new();
    let mut next = 0;
    while next < users.count() || !asked.is_empty() {
        while next < users.count() && asked.len() < ASKED_MAX {
            let name = users.shared_name(next);
            match reader.client.session_mut().mailboxes(&name) {
                Ok(id) => asked.insert(id, next),
                Err(NotReady::Credit | NotReady::Backlog | NotReady::InFlight)
                    if !asked.is_empty() =>
                {
                    break;
                }
                Err(error) => return Err(error).context("cannot ask for mailboxes"),
            };
            next += 1;
        }
        match reader.client.next_event(Deadline::after(PATIENCE))? {
            Event::Mailboxes { id, mailboxes } => {
                let user = asked
                    .remove(&id)
                    .context("an answer to nothing that was asked")?;
                let inbox = mailboxes
                    .iter()
                    .find(|status| status.mailbox == MailboxId::INBOX);
                if let (Some(count), Some(inbox)) = (counts.get_mut(user), inbox) {
                    *count = inbox.messages_count;
                }
            }
            Event::Failed {
                id,
                status: Status::NoUser | Status::NoMailbox,
                ..
            } => {
                asked.remove(&id);
            }
            Event::Failed { status, text, .. } => {
                bail!("cannot ask for mailboxes: {} {text}", status.name())
            }
            other => bail!("an answer to nothing that was asked: {other:?}"),
        }
    }
    Ok(counts)
}

/// The acknowledged messages of each watched user, as they were sent, with how often.
pub(crate) fn expected(tally: &mut Tally) -> BTreeMap<usize, BTreeMap<Bytes, u32>> {
    let mut expected: BTreeMap<usize, BTreeMap<Bytes, u32>> = BTreeMap::new();
    for (letters, watched) in &mut tally.watched {
        for message in watched.iter() {
            if let Some(letter) = letters.get_mut(message.letter) {
                let bytes = rebuild(letter, message.serial);
                *expected
                    .entry(message.user)
                    .or_default()
                    .entry(bytes)
                    .or_default() += 1;
            }
        }
    }
    expected
}

fn rebuild(letter: &mut Letter, serial: u64) -> Bytes {
    let sealed = letter.seal(serial);
    let copy = Bytes::copy_from_slice(&sealed);
    letter.take_back(sealed);
    copy
}

/// What came of the comparison of one user.
struct Left {
    equal: u64,
    unfound: u64,
}

/// A connection that asks for what is stored.
pub(crate) struct Reader {
    client: Client,
}

impl Reader {
    /// Opens one.
    pub(crate) fn connect(node: &Address) -> anyhow::Result<Self> {
        let client = Client::connect(
            &node.into(),
            Role::Client,
            Deadline::after(PATIENCE),
            Patience::None,
        )
        .context("cannot ask what is stored")?;
        Ok(Self { client })
    }

    /// All messages of a user's INBOX.
    pub(crate) fn inbox(&mut self, user: &Bytes) -> anyhow::Result<Vec<Uid>> {
        let mut uids = Vec::new();
        let mut request = ListRequest {
            user: user.clone(),
            mailbox: MailboxRef::Id(MailboxId::INBOX),
            after_uid: 0,
            entries_max: 1000,
        };
        loop {
            let page = self.client.list(&request, Deadline::after(PATIENCE))?;
            uids.extend(page.entries.iter().map(|entry| entry.uid));
            match uids.last() {
                Some(last) if page.more != More::No && !page.entries.is_empty() => {
                    request.after_uid = last.value();
                }
                _ => return Ok(uids),
            }
        }
    }

    /// Fetches the messages of a user behind the first `known` and strikes out those expected,
    /// until none is left to be found.
    fn compare(
        &mut self,
        user: &Bytes,
        known: u32,
        expected: &mut BTreeMap<Bytes, u32>,
        bytes_left: &mut usize,
    ) -> anyhow::Result<Left> {
        let mut equal = 0;
        let (mut after_uid, mut skip) = (0, known);
        while !expected.is_empty() && *bytes_left > 0 {
            let request = ListRequest {
                user: user.clone(),
                mailbox: MailboxRef::Id(MailboxId::INBOX),
                after_uid,
                entries_max: 1000,
            };
            let page = self.client.list(&request, Deadline::after(PATIENCE))?;
            for entry in &page.entries {
                after_uid = entry.uid.value();
                if skip > 0 {
                    skip -= 1;
                    continue;
                }
                if expected.is_empty() || *bytes_left == 0 {
                    break;
                }
                let message = self.fetch(user, entry.uid)?;
                *bytes_left = bytes_left.saturating_sub(message.len());
                equal += u64::from(strike(expected, &message));
            }
            if page.more == More::No || page.entries.is_empty() {
                break;
            }
        }
        let unfound = if *bytes_left == 0 {
            0
        } else {
            expected.values().map(|&count| u64::from(count)).sum()
        };
        Ok(Left { equal, unfound })
    }

    /// One message.
    pub(crate) fn fetch(&mut self, user: &Bytes, uid: Uid) -> anyhow::Result<Vec<u8>> {
        let request = FetchRequest {
            user: user.clone(),
            mailbox: MailboxRef::Id(MailboxId::INBOX),
            uid,
        };
        let (id, entry) = self.client.fetch(&request, Deadline::after(PATIENCE))?;
        let mut message = Vec::new();
        while let Some(piece) = self.client.fetched(id, Deadline::after(PATIENCE))? {
            message.extend_from_slice(&piece);
        }
        let len = u64::try_from(message.len())?;
        if len != entry.received_size {
            bail!(
                "message {uid} has {len} bytes, its entry says {}",
                entry.received_size
            );
        }
        Ok(message)
    }
}

/// Strikes a fetched message out, as it is or without the Return-Path line that the daemon puts on
/// top (mail.md 6.2). Whether it was expected.
fn strike(expected: &mut BTreeMap<Bytes, u32>, message: &[u8]) -> bool {
    let line = format!("Return-Path: <{SENDER}>");
    let rest = message.strip_prefix(line.as_bytes()).and_then(|rest| {
        rest.strip_prefix(b"\r\n")
            .or_else(|| rest.strip_prefix(b"\n"))
    });
    let message = rest.unwrap_or(message);
    let Some(count) = expected.get_mut(message) else {
        return false;
    };
    *count -= 1;
    if *count == 0 {
        expected.remove(message);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_below_the_acknowledged_are_missing_and_above_the_doubtful_surplus() {
        let users = Users::new("u", 5);
        let mut tally = Tally::new(5);
        tally.stored_by_user = vec![2, 2, 2, 2, 0];
        tally.doubtful_by_user = vec![0, 1, 1, 0, 0];
        let mut verification = Verification::default();
        verification.compare_counts(&users, &tally, &[0, 0, 0, 5, 0], &[2, 3, 4, 6, 1]);
        assert_eq!((verification.missing, verification.surplus), (1, 2));
        assert_eq!(verification.found, 2 + 3 + 4 + 1 + 1);
        assert!(!verification.is_good());
        assert_eq!(verification.problems.len(), 3);
        assert!(verification.problems[1].contains("u0000003: 2 acknowledged, 0 in doubt, 1 found"));
    }

    #[test]
    fn messages_are_struck_out_once_with_or_without_return_path() {
        let mut expected = BTreeMap::from([(Bytes::from_static(b"a: b\n\nx\n"), 2)]);
        assert!(!strike(&mut expected, b"a: b\n\ny\n"));
        assert!(strike(
            &mut expected,
            b"Return-Path: <ada@example.net>\na: b\n\nx\n"
        ));
        assert!(!strike(
            &mut expected,
            b"Return-Path: <eve@example.net>\na: b\n\nx\n"
        ));
        assert!(strike(&mut expected, b"a: b\n\nx\n"));
        assert!(expected.is_empty());
        assert!(!strike(&mut expected, b"a: b\n\nx\n"));
    }
}
