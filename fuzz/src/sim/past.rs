//! The past of a node that archives its log: a backup and the log since tell any user as of any moment
//! behind the backup (storage.md 8.6, `engine/src/offline/past.rs`).
//!
//! What it promises: what was served at that moment, no more and no less, byte for byte; through crashes,
//! compactions, changes of the number of cores, and however much was expunged since, for as long as the
//! archive has no hole. A hole is said, never looked over; a full disk makes one, and so may a fault of the
//! disk. Moments are those of the wall clock: a seed that archives has one that only goes forward.

use ringpost_engine::io::sim::SimDisk;
use ringpost_engine::offline::{Offline, OfflineError, OfflineUser, PastError};
use ringpost_netproto::id::WallNs;

use super::Sim;
use super::look::Seen;
use super::model::{Person, Verdict, ensure};
use super::node::now_of;
use super::oracle::Oracle;

/// Looks that are kept of a backup.
const LOOKS_MAX: usize = 4;

/// More than any mailbox has.
const ENTRIES_MAX: usize = 100_000;

/// A backup, and what was served at some moments since.
pub(super) struct Past {
    backup: SimDisk,
    /// Whose it is, if it is not everybody's.
    only: Option<usize>,
    looks: Vec<(WallNs, Vec<Person>)>,
}

impl Past {
    pub(super) fn new(backup: SimDisk, only: Option<usize>) -> Self {
        Self {
            backup,
            only,
            looks: Vec::new(),
        }
    }
}

impl Sim {
    /// Everybody was looked at and nothing is under way: what is known is what is served now.
    pub(super) fn remember(&mut self) {
        let quiet = |who| self.oracle.under_way(who).is_empty();
        if self.is_over() || !(0..self.knobs.users).all(quiet) {
            return;
        }
        let at = now_of(&self.disk, self.skew_ns).wall;
        let people = self.oracle.people.clone();
        if let Some(past) = self
            .past
            .as_mut()
            .filter(|past| past.looks.len() < LOOKS_MAX)
        {
            past.looks.push((at, people));
            // What comes next comes later.
            self.disk.advance(1_000);
        }
    }

    /// Looks again at each moment, from the backup and the log alone.
    pub(super) fn look_back(&mut self) -> Verdict {
        let Some(past) = self.past.take() else {
            return Ok(());
        };
        let mut oracle = Oracle::new(self.knobs.users, self.oracle.window);
        oracle.mails.clone_from(&self.oracle.mails);
        oracle.by_guid.clone_from(&self.oracle.by_guid);
        let offline = Offline::open(&past.backup, &mut |_progress| {});
        let offline = offline.map_err(|error| format!("a backup is not read: {error}"))?;
        for (at, people) in &past.looks {
            let people = people.iter().enumerate();
            for (who, person) in people.filter(|(who, _)| past.only.is_none_or(|of| of == *who)) {
                *oracle.person_mut(who) = person.clone();
                let found = offline.user_at(person.name.as_bytes(), (&self.disk, *at), &mut |_| {});
                let verdict = match found {
                    Ok(found) => self.is_as_it_was(&mut oracle, who, &found),
                    Err(PastError::Backup(OfflineError::NoSuchUser)) => oracle.reconcile(who, None),
                    Err(_) if self.has_holes => Ok(()),
                    Err(error) => Err(error.to_string()),
                };
                verdict.map_err(|what| {
                    format!(
                        "{} as of {at:?}, by a backup of {:?}: {what}",
                        person.name, past.only
                    )
                })?;
                self.stats.looks_back += 1;
            }
        }
        Ok(())
    }

    fn is_as_it_was(&self, oracle: &mut Oracle, who: usize, found: &OfflineUser<'_>) -> Verdict {
        let mut seen = Seen::new();
        for status in found.mailboxes() {
            let page = found.list(status.mailbox, 0, ENTRIES_MAX);
            let page = page.map_err(|error| format!("{}: {error}", status.name))?;
            seen.push((page.status, page.entries));
        }
        oracle.reconcile(who, Some(&seen))?;
        for (status, entries) in &seen {
            for entry in entries {
                let mut text = Vec::new();
                let fetched = found.fetch(status.mailbox, entry.uid, &mut |_, piece| {
                    text.extend_from_slice(&piece);
                    true
                });
                match fetched {
                    // Of a large one that was expunged since, the archive may lack the file.
                    Err(_) if self.has_holes => continue,
                    Err(error) => return Err(format!("uid {}: {error}", entry.uid)),
                    Ok(_) => {}
                }
                let mail = oracle.by_guid.get(&entry.guid).copied();
                let mail = mail.map(|mail| oracle.mail(mail));
                ensure!(
                    mail.is_some_and(|mail| *mail.bytes == *text),
                    "uid {} of {} does not come back as sent",
                    entry.uid,
                    status.name
                );
            }
        }
        Ok(())
    }
}
