//! The truth that a store is held against: what was sent to whom, what was acknowledged, and what was
//! found after each restart.
//!
//! A delivery that was acknowledged has to be there once, with its bytes. One in doubt (no answer, or
//! "later") may be there or not, until it is sent again with the same bytes: then it has to be there
//! once. Empty messages carry no mark and are not filtered, so they are only counted: at least the
//! acknowledged, at most all.

use std::collections::BTreeMap;

use super::letter;

/// Sentences that are kept; the counts go on.
const SENTENCES_MAX: usize = 20;

/// What may not happen.
#[derive(Debug, Default)]
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

/// A place in the order of events as the load loop saw them.
pub(crate) type Moment = u64;

/// One recipient of one message of the current round.
#[derive(Clone, Copy, Debug)]
struct Delivery {
    user: usize,
    acknowledged: Option<Moment>,
    uid: Option<u32>,
    /// Counted as lost already.
    lost: bool,
}

/// One message of the current round.
#[derive(Debug)]
struct Sent {
    moment: Moment,
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
#[derive(Debug, Default)]
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
#[derive(Debug)]
pub(crate) struct Ledger {
    seed: u64,
    clock: Moment,
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

    /// The message is about to be sent for the first time.
    pub(crate) fn sent(&mut self, serial: u64, recipients: &[usize]) {
        let moment = self.tick();
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
            uid: None,
            lost: false,
        };
        let deliveries = recipients.iter().map(delivery).collect();
        self.open.insert(serial, Sent { moment, deliveries });
    }

    /// The answer to the first sending was yes. `duplicate`: the store says it had it before.
    pub(crate) fn acknowledged(&mut self, serial: u64, position: usize, duplicate: Duplicate) {
        let moment = self.tick();
        let empty = letter::is_empty(self.seed, serial);
        let Some(sent) = self.open.get_mut(&serial) else {
            return;
        };
        let Some(delivery) = sent.deliveries.get_mut(position) else {
            return;
        };
        delivery.acknowledged = Some(moment);
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

/// What a positive answer says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Duplicate {
    /// Stored by this sending.
    No,
    /// It was there before.
    Yes,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: u64 = 3;

    /// Three messages, none of them empty, to users 0 and 1.
    fn ledger() -> (Ledger, Vec<u64>) {
        let serials: Vec<u64> = (0..100)
            .filter(|serial| !letter::is_empty(SEED, *serial))
            .take(3)
            .collect();
        let mut ledger = Ledger::new(SEED, 2);
        for &serial in &serials {
            ledger.sent(serial, &[0, 1]);
            ledger.acknowledged(serial, 0, Duplicate::No);
        }
        (ledger, serials)
    }

    fn find(ledger: &mut Ledger, user: usize, uid: u32, serial: u64) {
        ledger.found(user, uid, &letter::content(SEED, serial));
    }

    #[test]
    fn whole_round_without_fault_leaves_no_violation() {
        let (mut ledger, serials) = ledger();
        for (uid, &serial) in (1..).zip(&serials) {
            find(&mut ledger, 0, uid, serial);
        }
        find(&mut ledger, 1, 1, serials[2]);
        ledger.after_restart();
        assert_eq!((ledger.doubtful, ledger.doubtful_found), (3, 1));
        let retries = ledger.to_retry(&mut fastrand::Rng::with_seed(1));
        assert_eq!(retries.len(), 3);
        for &serial in &serials {
            ledger.retried(serial, 0, Duplicate::Yes);
            let known = serial == serials[2];
            ledger.retried(
                serial,
                1,
                if known { Duplicate::Yes } else { Duplicate::No },
            );
        }
        find(&mut ledger, 1, 2, serials[0]);
        find(&mut ledger, 1, 5, serials[1]);
        ledger.counted(0, 9, 3);
        ledger.counted(1, 9, 3);
        ledger.after_retries();
        assert!(ledger.violations.is_none(), "{:?}", ledger.violations);
    }

    #[test]
    fn each_fault_is_seen() {
        let (mut lost, serials) = ledger();
        find(&mut lost, 0, 1, serials[0]);
        find(&mut lost, 0, 2, serials[2]);
        lost.after_restart();
        assert_eq!(lost.violations.lost, 1);

        let (mut doubled, serials) = ledger();
        find(&mut doubled, 0, 1, serials[0]);
        find(&mut doubled, 0, 2, serials[0]);
        assert_eq!(doubled.violations.doubled, 1);

        let (mut damaged, serials) = ledger();
        let mut bytes = letter::content(SEED, serials[0]);
        *bytes.last_mut().unwrap() ^= 1;
        damaged.found(0, 1, &bytes);
        damaged.found(0, 2, b"no mark at all");
        assert_eq!(damaged.violations.damaged, 2);

        let (mut order, serials) = ledger();
        find(&mut order, 0, 1, serials[1]);
        find(&mut order, 0, 2, serials[0]);
        find(&mut order, 0, 3, serials[2]);
        order.after_restart();
        assert_eq!(order.violations.other, 1, "{:?}", order.violations);

        let (mut uids, serials) = ledger();
        find(&mut uids, 0, 2, serials[0]);
        find(&mut uids, 0, 2, serials[1]);
        uids.counted(0, 9, 3);
        uids.counted(0, 10, 2);
        assert_eq!(uids.violations.other, 3, "{:?}", uids.violations);

        let (mut again, serials) = ledger();
        find(&mut again, 0, 1, serials[0]);
        again.retried(serials[0], 0, Duplicate::No);
        again.retried(serials[1], 0, Duplicate::Yes);
        assert_eq!(again.violations.other, 2);
        let known = again.inboxes()[0].known[0];
        again.read_again(0, known, None);
        again.read_again(0, known, Some(b"x"));
        assert_eq!(again.violations.lost, 1);
        assert_eq!(again.violations.damaged, 1);
    }

    #[test]
    fn empty_messages_are_counted() {
        let serial = (0..1_000)
            .find(|serial| letter::is_empty(SEED, *serial))
            .unwrap();
        let mut ledger = Ledger::new(SEED, 1);
        ledger.sent(serial, &[0]);
        ledger.acknowledged(serial, 0, Duplicate::No);
        ledger.counted(0, 1, 0);
        assert_eq!(ledger.violations.lost, 1);
        ledger.found(0, 1, b"");
        ledger.found(0, 2, b"");
        ledger.counted(0, 1, 2);
        assert_eq!(ledger.violations.doubled, 1);
        assert!(ledger.to_retry(&mut fastrand::Rng::with_seed(1)).is_empty());
    }
}
