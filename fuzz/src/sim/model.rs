//! What each user must have: a plain map, changed by what was acknowledged and by nothing else.

use std::collections::{BTreeMap, BTreeSet};

use ringpost_engine::request::{FlagOp, MailboxChange};
use ringpost_netproto::placement::UserKey;

use super::asked::{Asked, NewFlags};
use super::node;

/// What does not hold, as a sentence.
pub(super) type Verdict = Result<(), String>;

/// Returns the sentence unless the condition holds.
macro_rules! ensure {
    ($cond:expr, $($arg:tt)+) => {
        if !$cond {
            return Err(format!($($arg)+));
        }
    };
}
pub(super) use ensure;

/// Flags of a message; keywords in lower case.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(super) struct Marks {
    pub(super) system: u32,
    pub(super) words: BTreeSet<String>,
}

impl Marks {
    pub(super) fn new(system: u32, words: &[String]) -> Self {
        Self {
            system,
            words: words.iter().map(|word| word.to_lowercase()).collect(),
        }
    }

    /// These after a change.
    pub(super) fn after(&self, change: &NewFlags) -> Self {
        let given = Self::new(change.system, &change.words);
        match change.op {
            FlagOp::Add => Self {
                system: self.system | given.system,
                words: self.words.union(&given.words).cloned().collect(),
            },
            FlagOp::Remove => Self {
                system: self.system & !given.system,
                words: self.words.difference(&given.words).cloned().collect(),
            },
            FlagOp::Replace => given,
        }
    }
}

/// A message in a mailbox.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Message {
    pub(super) mail: usize,
    pub(super) marks: Marks,
    /// At least this.
    pub(super) modseq: u64,
}

/// A mailbox.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Folder {
    pub(super) name: String,
    /// 0: not known yet.
    pub(super) uidvalidity: u32,
    pub(super) subscribed: Option<bool>,
    /// Above every uid that was seen or acknowledged.
    pub(super) uidnext: u32,
    /// At least this.
    pub(super) highest_modseq: u64,
    pub(super) messages: BTreeMap<u32, Message>,
    /// What every uid was, alive or not.
    pub(super) past: BTreeMap<u32, usize>,
}

impl Folder {
    pub(super) fn new(name: &str, uidvalidity: u32) -> Self {
        Self {
            name: name.to_owned(),
            uidvalidity,
            subscribed: None,
            uidnext: 1,
            highest_modseq: 0,
            messages: BTreeMap::new(),
            past: BTreeMap::new(),
        }
    }

    /// Puts a message there that was acknowledged or seen. It may be `late`, so that what is behind it is
    /// known before: copies are made in steps, with one answer for all; and what nobody answered is known
    /// when it is seen, which may be after deliveries to a mailbox that could not be read meanwhile.
    pub(super) fn put(&mut self, uid: u32, message: Message, late: bool) -> Verdict {
        if let Some(known) = self.messages.get_mut(&uid) {
            ensure!(
                known.mail == message.mail,
                "uid {uid} of {} is mail {} and mail {}",
                self.name,
                known.mail,
                message.mail
            );
            known.modseq = known.modseq.max(message.modseq);
            return Ok(());
        }
        ensure!(
            uid >= self.uidnext || (late && !self.past.contains_key(&uid)),
            "uid {uid} of {} for mail {} was given before (UIDNEXT {})",
            self.name,
            message.mail,
            self.uidnext
        );
        self.uidnext = self.uidnext.max(uid + 1);
        self.highest_modseq = self.highest_modseq.max(message.modseq);
        self.past.insert(uid, message.mail);
        self.messages.insert(uid, message);
        Ok(())
    }
}

/// A delivery id that the node knows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    /// How many messages had been stored by then.
    pub(super) at: u64,
}

/// One user.
#[derive(Clone, Debug)]
pub(super) struct Person {
    pub(super) key: UserKey,
    pub(super) name: String,
    /// By id; empty if the user is not there yet.
    pub(super) folders: BTreeMap<u32, Folder>,
    /// Mailboxes that are gone.
    pub(super) buried: BTreeMap<u32, Folder>,
    pub(super) uidvalidity_max: u32,
    /// Unanswered when the node ended, or refused when some of it may have been done.
    pub(super) doubts: Vec<Asked>,
    /// Changes asked so far.
    pub(super) changes: u64,
    /// Flags of messages cannot be foretold until the next look.
    pub(super) vague: bool,
    /// By mailbox and mail: deliveries that are known.
    pub(super) ids: BTreeMap<(u32, usize), Known>,
    /// Ids that may be known although their message is not there.
    pub(super) perhaps: BTreeSet<(u32, usize)>,
}

/// Mailboxes that a user has from the start.
pub(super) const FIRST: [(u32, &str); 2] = [(1, "INBOX"), (2, "Sent")];

impl Person {
    pub(super) fn new(number: usize) -> Self {
        let name = format!("user{number}@sim.test");
        Self {
            key: node::user(&name),
            name,
            folders: BTreeMap::new(),
            buried: BTreeMap::new(),
            uidvalidity_max: 0,
            doubts: Vec::new(),
            changes: 0,
            vague: false,
            ids: BTreeMap::new(),
            perhaps: BTreeSet::new(),
        }
    }

    pub(super) fn exists(&self) -> bool {
        !self.folders.is_empty()
    }

    /// The user is there, now at the latest.
    pub(super) fn born(&mut self) {
        if self.folders.is_empty() {
            for (id, name) in FIRST {
                self.folders.insert(id, Folder::new(name, 0));
            }
        }
    }

    /// A mailbox is gone; whether it was there.
    pub(super) fn bury(&mut self, mailbox: u32) -> bool {
        let gone = self.folders.remove(&mailbox);
        let was = gone.is_some();
        self.buried.extend(gone.map(|folder| (mailbox, folder)));
        was
    }

    /// Kept bytes and messages.
    pub(super) fn usage(&self, size_of: impl Fn(usize) -> u64) -> (u64, u64) {
        let messages = || self.folders.values().flat_map(|f| f.messages.values());
        let bytes = messages().map(|message| size_of(message.mail)).sum();
        let count = messages().count().try_into().unwrap_or(u64::MAX);
        (bytes, count)
    }

    /// Names of the mailboxes after a change that may have happened, by id; a new one as id 0.
    pub(super) fn names_after(&self, change: Option<&MailboxChange>) -> BTreeMap<String, u32> {
        let first = FIRST.iter().filter(|_| self.folders.is_empty());
        let mut names: BTreeMap<String, u32> = first
            .filter(|_| change.is_some())
            .map(|(id, name)| ((*name).to_owned(), *id))
            .chain(self.folders.iter().map(|(id, f)| (f.name.clone(), *id)))
            .collect();
        match change {
            Some(MailboxChange::Create { name, .. }) => {
                names.entry(name.clone()).or_insert(0);
            }
            Some(MailboxChange::Rename { from, to }) => {
                names = names
                    .into_iter()
                    .map(|(name, id)| (renamed(&name, from, to), id))
                    .collect();
            }
            Some(MailboxChange::Delete { mailbox }) => {
                names.retain(|_, id| *id != mailbox.value());
            }
            _ => {}
        }
        names
    }
}

/// A name after a rename of `from`, which takes along what is below it.
pub(super) fn renamed(name: &str, from: &str, to: &str) -> String {
    match name.strip_prefix(from) {
        Some("") => to.to_owned(),
        Some(rest) if rest.starts_with('/') => format!("{to}{rest}"),
        _ => name.to_owned(),
    }
}
