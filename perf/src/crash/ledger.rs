//! The truth that a store is held against: what was sent to whom, what was acknowledged, and what was
//! found after each restart.
//!
//! A delivery that was acknowledged has to be there once, with its bytes. One in doubt (no answer, or
//! "later") may be there or not, until it is sent again with the same bytes: then it has to be there
//! once. Empty messages carry no mark and are not filtered, so they are only counted: at least the
//! acknowledged, at most all.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::letter;

/// Sentences that are kept; the counts go on.
const SENTENCES_MAX: usize = 20;

/// What may not happen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Violations {
    /// Acknowledged and not there.
    pub(crate) lost: u64,
    /// There more than once, or answered as known when it was new.
    pub(crate) doubled: u64,
    /// There with other bytes than were sent.
    pub(crate) damaged: u64,
    /// Never sent to this user, uids out of order, counts that differ, checks that failed.
    pub(crate) other: u64,
    /// The first sentences.
    pub(crate) sentences: Vec<String>,
}

impl Violations {
    /// Whether nothing happened.
    pub(crate) fn is_none(&self) -> bool {
        self.lost + self.doubled + self.damaged + self.other == 0
    }

    /// Keeps a sentence, if there are not too many.
    pub(crate) fn say(&mut self, sentence: impl FnOnce() -> String) {
        if self.sentences.len() < SENTENCES_MAX {
            self.sentences.push(sentence());
        }
    }

    /// Counts something that is neither loss, double nor damage.
    pub(crate) fn other(&mut self, sentence: impl FnOnce() -> String) {
        self.other += 1;
        self.say(sentence);
    }
}

/// A place on the record of a disk that keeps one: so many marks were made before (`fuse::tape`). 0 with
/// any other disk.
pub(crate) type Mark = u64;

/// A place in the order of events as the load loop saw them.
pub(crate) type Moment = u64;

/// One recipient of one message of the current round.
#[derive(Clone, Copy, Debug)]
struct Delivery {
    user: usize,
    acknowledged: Option<Moment>,
    /// When the answer was here, on the disk's record.
    acknowledged_mark: Mark,
    uid: Option<u32>,
    /// Counted as lost already.
    lost: bool,
}

/// One message of the current round.
#[derive(Clone, Debug)]
struct Sent {
    moment: Moment,
    /// Before its first byte went out, on the disk's record.
    mark: Mark,
    deliveries: Vec<Delivery>,
}

/// A message that was found and compared.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    /// Its number in the mailbox.
    pub(crate) uid: u32,
    /// Its serial; `None` for an empty message.
    pub(crate) serial: Option<u64>,
}

/// What is known of a user's INBOX.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inbox {
    /// Everything found so far, ascending by uid.
    pub(crate) known: Vec<Known>,
    /// It never changes (RFC 9051 2.3.1.1).
    pub(crate) uidvalidity: Option<u32>,
    empty_acknowledged: u64,
    empty_sent: u64,
    empty_found: u64,
}

impl Inbox {
    /// The highest uid found so far; 0 if none.
    pub(crate) fn last_uid(&self) -> u32 {
        self.known.last().map_or(0, |known| known.uid)
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    seed: u64,
    clock: Moment,
    /// The marks on the disk's record, where there is one.
    pub(crate) marks: Option<Arc<AtomicU64>>,
    inboxes: Vec<Inbox>,
    open: BTreeMap<u64, Sent>,
    /// What went wrong so far.
    pub(crate) violations: Violations,
    /// Deliveries (message and recipient) that were acknowledged in the first place.
    pub(crate) acknowledged: u64,
    /// Deliveries that got no answer, or "later".
    pub(crate) doubtful: u64,
    /// Of these, how many were there all the same.
    pub(crate) doubtful_found: u64,
}

impl Ledger {
    /// For `users_count` users that have no mail.
    pub(crate) fn new(seed: u64, users_count: usize) -> Self {
        Self {
            seed,
            clock: 0,
            marks: None,
            inboxes: (0..users_count).map(|_| Inbox::default()).collect(),
            open: BTreeMap::new(),
            violations: Violations::default(),
            acknowledged: 0,
            doubtful: 0,
            doubtful_found: 0,
        }
    }

    /// All users' inboxes, by number.
    pub(crate) fn inboxes(&self) -> &[Inbox] {
        &self.inboxes
    }

    fn tick(&mut self) -> Moment {
        self.clock += 1;
        self.clock
    }

    fn mark(&self) -> Mark {
        self.marks
            .as_ref()
            .map_or(0, |marks| marks.load(Ordering::Acquire))
    }

    /// The message is about to be sent for the first time.
    pub(crate) fn sent(&mut self, serial: u64, recipients: &[usize]) {
        let (moment, mark) = (self.tick(), self.mark());
        if letter::is_empty(self.seed, serial) {
            for &user in recipients {
                if let Some(inbox) = self.inboxes.get_mut(user) {
                    inbox.empty_sent += 1;
                }
            }
        }
        let delivery = |&user: &usize| Delivery {
            user,
            acknowledged: None,
            acknowledged_mark: 0,
            uid: None,
            lost: false,
        };
        let deliveries = recipients.iter().map(delivery).collect();
        let sent = Sent {
            moment,
            mark,
            deliveries,
        };
        self.open.insert(serial, sent);
    }

    /// The answer to the first sending was yes. `duplicate`: the store says it had it before.
    pub(crate) fn acknowledged(&mut self, serial: u64, position: usize, duplicate: Duplicate) {
        let (moment, mark) = (self.tick(), self.mark());
        let empty = letter::is_empty(self.seed, serial);
        let Some(sent) = self.open.get_mut(&serial) else {
            return;
        };
        let Some(delivery) = sent.deliveries.get_mut(position) else {
            return;
        };
        delivery.acknowledged = Some(moment);
        delivery.acknowledged_mark = mark;
        self.acknowledged += 1;
        if duplicate == Duplicate::Yes {
            self.violations.doubled += 1;
            self.violations
                .say(|| format!("message {serial} was new and was answered as a duplicate"));
        }
        if empty && let Some(inbox) = self.inboxes.get_mut(delivery.user) {
            inbox.empty_acknowledged += 1;
        }
    }

    /// A message with `bytes` stands in the user's INBOX under `uid`, above all that were there.
    pub(crate) fn found(&mut self, user: usize, uid: u32, bytes: &[u8]) {
        let seed = self.seed;
        let Some(inbox) = self.inboxes.get_mut(user) else {
            return;
        };
        if uid <= inbox.last_uid() {
            let last = inbox.last_uid();
            self.violations
                .other(|| format!("user {user}: uid {uid} is listed behind {last}"));
        }
        let serial = letter::serial(seed, bytes);
        inbox.known.push(Known { uid, serial });
        let Some(serial) = serial else {
            if bytes.is_empty() {
                inbox.empty_found += 1;
            } else {
                self.violations.damaged += 1;
                self.violations
                    .say(|| format!("user {user}, uid {uid}: bytes that were never sent"));
            }
            return;
        };
        if bytes != letter::content(seed, serial) {
            self.violations.damaged += 1;
            self.violations
                .say(|| format!("user {user}, uid {uid}: message {serial} has other bytes"));
        }
        let delivery = self
            .open
            .get_mut(&serial)
            .and_then(|sent| sent.deliveries.iter_mut().find(|one| one.user == user));
        match delivery {
            None => self.violations.other(|| {
                format!("user {user}, uid {uid}: message {serial} is of another round or user")
            }),
            Some(delivery) => match delivery.uid {
                Some(first) => {
                    self.violations.doubled += 1;
                    self.violations.say(|| {
                        format!("user {user}: message {serial} has uid {first} and uid {uid}")
                    });
                }
                None => delivery.uid = Some(uid),
            },
        }
    }

    /// The mailbox as the store counts it, after everything in it was listed.
    pub(crate) fn counted(&mut self, user: usize, uidvalidity: u32, messages_count: u32) {
        let Some(inbox) = self.inboxes.get_mut(user) else {
            return;
        };
        if *inbox.uidvalidity.get_or_insert(uidvalidity) != uidvalidity {
            self.violations
                .other(|| format!("user {user}: uidvalidity became {uidvalidity}"));
        }
        let known = inbox.known.len();
        if usize::try_from(messages_count).ok() != Some(known) {
            self.violations.other(|| {
                format!("user {user}: {messages_count} messages counted, {known} were found")
            });
        }
        let found = inbox.empty_found;
        if found < inbox.empty_acknowledged {
            self.violations.lost += inbox.empty_acknowledged - found;
            self.violations
                .say(|| format!("user {user}: acknowledged empty messages are missing"));
            inbox.empty_acknowledged = found;
        }
        if found > inbox.empty_sent {
            self.violations.doubled += found - inbox.empty_sent;
            self.violations
                .say(|| format!("user {user}: more empty messages than were sent"));
            inbox.empty_sent = found;
        }
    }

    /// After the restart, all mailboxes read: nothing acknowledged may be missing, and what one
    /// sender was told was stored before it sent the next has the lower uid.
    pub(crate) fn after_restart(&mut self) {
        let mut by_user: BTreeMap<usize, Vec<(u32, Moment, Moment, u64)>> = BTreeMap::new();
        for (&serial, sent) in &mut self.open {
            if letter::is_empty(self.seed, serial) {
                continue;
            }
            for delivery in &mut sent.deliveries {
                match (delivery.acknowledged, delivery.uid) {
                    (Some(_), None) => {
                        let user = delivery.user;
                        delivery.lost = true;
                        self.violations.lost += 1;
                        self.violations.say(|| {
                            format!("user {user}: message {serial} was acknowledged and is gone")
                        });
                    }
                    (Some(moment), Some(uid)) => {
                        let place = (uid, sent.moment, moment, serial);
                        by_user.entry(delivery.user).or_default().push(place);
                    }
                    (None, uid) => {
                        self.doubtful += 1;
                        self.doubtful_found += u64::from(uid.is_some());
                    }
                }
            }
        }
        for (user, mut places) in by_user {
            places.sort_unstable();
            let (mut latest_sent, mut of) = (0, 0);
            for (_, sent, acknowledged, serial) in places {
                if latest_sent > acknowledged {
                    self.violations.other(|| {
                        format!(
                            "user {user}: message {of} was sent after {serial} was acknowledged \
                             and has the lower uid"
                        )
                    });
                }
                if sent > latest_sent {
                    (latest_sent, of) = (sent, serial);
                }
            }
        }
    }

    /// What has to be sent again: everything in doubt, and some that were acknowledged, since an MTA
    /// whose connection was cut sends those as well. Empty messages are not: nothing filters them.
    pub(crate) fn to_retry(&self, random: &mut fastrand::Rng) -> Vec<(u64, Vec<usize>)> {
        let mut retries = Vec::new();
        for (&serial, sent) in &self.open {
            let in_doubt = sent.deliveries.iter().any(|one| one.acknowledged.is_none());
            if (in_doubt || random.u8(..) < 8) && !letter::is_empty(self.seed, serial) {
                let users = sent.deliveries.iter().map(|one| one.user).collect();
                retries.push((serial, users));
            }
        }
        retries
    }

    /// The second sending was answered with yes.
    pub(crate) fn retried(&mut self, serial: u64, position: usize, duplicate: Duplicate) {
        let moment = self.tick();
        let delivery = self
            .open
            .get_mut(&serial)
            .and_then(|sent| sent.deliveries.get_mut(position));
        let Some(delivery) = delivery else { return };
        delivery.acknowledged.get_or_insert(moment);
        let user = delivery.user;
        match (delivery.uid, duplicate) {
            (Some(uid), Duplicate::No) => self.violations.other(|| {
                format!("user {user}: message {serial} has uid {uid} and was stored as new")
            }),
            (None, Duplicate::Yes) => self.violations.other(|| {
                format!("user {user}: message {serial} is not there and was called a duplicate")
            }),
            _ => {}
        }
    }

    /// After the retries, all mailboxes read again: everything is there once. Forgets the round.
    pub(crate) fn after_retries(&mut self) {
        for (serial, sent) in std::mem::take(&mut self.open) {
            if letter::is_empty(self.seed, serial) {
                continue;
            }
            for delivery in sent.deliveries {
                if delivery.uid.is_none() && !delivery.lost {
                    let user = delivery.user;
                    self.violations.lost += 1;
                    self.violations.say(|| {
                        format!("user {user}: message {serial} is not there after its retry")
                    });
                }
            }
        }
    }

    /// A message of an earlier round was fetched again; `bytes` is `None` if it is gone.
    pub(crate) fn read_again(&mut self, user: usize, known: Known, bytes: Option<&[u8]>) {
        let wanted = known
            .serial
            .map_or_else(Vec::new, |serial| letter::content(self.seed, serial));
        let uid = known.uid;
        match bytes {
            None => {
                self.violations.lost += 1;
                self.violations
                    .say(|| format!("user {user}: uid {uid} was there once and is gone"));
            }
            Some(bytes) if bytes != wanted => {
                self.violations.damaged += 1;
                self.violations
                    .say(|| format!("user {user}: uid {uid} was whole once and is damaged"));
            }
            Some(_) => {}
        }
    }
}

/// Crashes that were tried beside what really happened.
impl Ledger {
    /// A copy for one try: it starts without violations and counts.
    pub(crate) fn fork(&self) -> Self {
        Self {
            marks: None,
            violations: Violations::default(),
            acknowledged: 0,
            doubtful: 0,
            doubtful_found: 0,
            ..self.clone()
        }
    }

    /// A copy as it would be had the disk stopped at `cut`: an answer that came later is none, and what
    /// was sent later was never sent. An answer may have been given before `cut` and have come later;
    /// that counts as doubt.
    pub(crate) fn fork_at(&self, cut: Mark) -> Self {
        let mut fork = self.fork();
        fork.open = BTreeMap::new();
        for (&serial, sent) in &self.open {
            let empty = letter::is_empty(self.seed, serial);
            let mut sent = sent.clone();
            let never = sent.mark >= cut;
            for delivery in &mut sent.deliveries {
                let late = delivery.acknowledged.is_some() && delivery.acknowledged_mark > cut;
                if late {
                    delivery.acknowledged = None;
                }
                if empty && let Some(inbox) = fork.inboxes.get_mut(delivery.user) {
                    inbox.empty_sent = inbox.empty_sent.saturating_sub(u64::from(never));
                    inbox.empty_acknowledged =
                        inbox.empty_acknowledged.saturating_sub(u64::from(late));
                }
            }
            if !never {
                fork.open.insert(serial, sent);
            }
        }
        fork
    }

    /// Goes on from a fork: what it knows is true from here on, and what was counted so far stays.
    pub(crate) fn continue_from(&mut self, fork: Self) {
        self.clock = fork.clock;
        self.inboxes = fork.inboxes;
        self.open = fork.open;
    }

    /// Another store, which is empty.
    pub(crate) fn forget_store(&mut self) {
        self.continue_from(Self::new(self.seed, self.inboxes.len()));
    }

    /// Takes over what a try found.
    pub(crate) fn absorb(&mut self, fork: &Self, of: &str) {
        let found = &fork.violations;
        self.violations.lost += found.lost;
        self.violations.doubled += found.doubled;
        self.violations.damaged += found.damaged;
        self.violations.other += found.other;
        for sentence in &found.sentences {
            self.violations.say(|| format!("{of}: {sentence}"));
        }
        self.doubtful += fork.doubtful;
        self.doubtful_found += fork.doubtful_found;
    }

    /// Whether the answer is known for every recipient of this message: wherever its bytes lie, they
    /// may not be lost. With one answer missing the bytes in that recipient's log may.
    pub(crate) fn is_due(&self, serial: u64) -> bool {
        !letter::is_empty(self.seed, serial)
            && self.open.get(&serial).is_some_and(|sent| {
                sent.deliveries
                    .iter()
                    .all(|delivery| delivery.acknowledged.is_some())
            })
    }
}

/// What a positive answer says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Duplicate {
    /// Stored by this sending.
    No,
    /// It was there before.
    Yes,
}

#[cfg(test)]
mod tests;
