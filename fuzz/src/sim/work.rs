//! The next thing to ask of the node: drawn by the seed's weights, mostly about what is there.

use std::sync::Arc;

use bytes::Bytes;
use ringpost_engine::format::info::{SYSTEM_FLAGS, SpecialUse};
use ringpost_engine::request::{
    AppendGroup, Body, Dedupe, FlagOp, Flags, MailboxChange, Origin, QuotaLimits, Recipient,
    Request, UidSet, Which,
};
use ringpost_netproto::id::{MailboxId, Modseq, Uid, WallNs};

use super::Sim;
use super::asked::{Asked, Chosen, NewFlags, To};
use super::knobs::Kind;
use super::mail::Mail;
use super::oracle::Oracle;

const NAMES: [&str; 6] = ["a", "a/b", "c", "c/d", "Sent", "Archiv/\u{e4}"];
const WORDS: [&str; 4] = ["$Forwarded", "junk", "later", "NonJunk"];

/// A request and what the oracle has to know of it.
pub(super) type Draft = (usize, Request, Asked);

impl Sim {
    /// A request of this kind; `None` if there is nothing to ask it about.
    pub(super) fn draft(&mut self, kind: Kind) -> Option<Draft> {
        let who = self.rng.usize(..self.knobs.users);
        match kind {
            Kind::Append => Some(self.draft_append(who)),
            Kind::Retry => self.draft_retry(),
            Kind::Store => self.draft_store(who),
            Kind::Expunge => self.draft_expunge(who),
            Kind::Copy | Kind::Move => self.draft_copy(who, kind == Kind::Move),
            Kind::Create | Kind::Rename | Kind::Delete | Kind::Subscribe => {
                self.draft_mailbox(who, kind)
            }
            Kind::List | Kind::Fetch | Kind::Watch | Kind::Compact | Kind::Checkpoint => {
                Some(self.draft_read(who, kind))
            }
            Kind::Snapshot => self.draft_snapshot(who),
            Kind::Large | Kind::Pause | Kind::Settle => None,
        }
    }

    /// Puts a new message into the catalogue.
    pub(super) fn new_mail(&mut self, bytes: usize) -> usize {
        let number = self.oracle.mails.len();
        let mail = Mail::draw(&mut self.rng, number, bytes);
        self.oracle.by_guid.insert(mail.guid, number);
        self.oracle.mails.push(mail);
        number
    }

    fn small_bytes(&mut self) -> usize {
        // Stored form included, below `large_bytes`.
        let most = usize::try_from(self.knobs.shard.large_bytes).unwrap_or(1_024) - 300;
        match self.rng.u8(..4) {
            0 => 0,
            1 => self.rng.usize(..100),
            _ => self.rng.usize(..most),
        }
    }

    /// Some flags and keywords.
    fn marks(&mut self) -> (u32, Vec<String>) {
        let words = WORDS.iter().filter(|_| self.rng.u8(..6) == 0);
        let words: Vec<String> = words.map(|word| (*word).to_owned()).collect();
        let words = words.into_iter().map(|word| {
            if self.rng.bool() {
                word
            } else {
                word.to_uppercase()
            }
        });
        let words = words.collect();
        let system = if self.rng.bool() {
            self.rng.u32(..=SYSTEM_FLAGS)
        } else {
            1 << self.rng.u32(..5)
        };
        (system, words)
    }

    fn quota(&mut self, who: usize) -> QuotaLimits {
        if !self.knobs.quota || self.rng.bool() {
            return QuotaLimits::default();
        }
        let mails = &self.oracle;
        let size = |mail: usize| u64::from(mails.mail(mail).body.summary.rfc822_size);
        let (bytes, messages) = mails.person(who).usage(size);
        QuotaLimits {
            bytes_max: self.rng.bool().then(|| bytes + self.rng.u64(..4_000)),
            messages_max: self.rng.bool().then(|| messages + self.rng.u64(..4)),
        }
    }

    /// A mailbox of a user, mostly one that is there.
    fn mailbox(&mut self, who: usize) -> u32 {
        let folders = &self.oracle.person(who).folders;
        if self.rng.bool() || folders.is_empty() {
            return 1;
        }
        let at = self.rng.usize(..folders.len());
        folders.keys().nth(at).copied().unwrap_or(1)
    }

    /// Recipients, each user once, all of one shard.
    pub(super) fn recipients(&mut self, who: usize, client: bool) -> Vec<To> {
        let shard = self.owner(who);
        let mut all = vec![who];
        if !client && self.rng.u32(..self.knobs.several_one_in) == 0 {
            for other in 0..self.knobs.users {
                if other != who && self.owner(other) == shard && self.rng.bool() {
                    all.push(other);
                }
            }
        }
        let mut recipients = Vec::new();
        for who in all {
            let mailbox = if self.rng.u8(..4) == 0 {
                self.mailbox(who)
            } else {
                1
            };
            let (system, words) = if client {
                self.marks()
            } else {
                (0, Vec::new())
            };
            recipients.push(To {
                who,
                mailbox,
                once: !client,
                system,
                words,
                quota: self.quota(who),
                alone: None,
            });
        }
        recipients
    }

    fn draft_append(&mut self, who: usize) -> Draft {
        let bytes = self.small_bytes();
        let mail = self.new_mail(bytes);
        let client = self.rng.u8(..5) == 0;
        let to = self.recipients(who, client);
        self.append(mail, to)
    }

    /// The same delivery again, to the same recipients, as a sender does that heard nothing. Also of
    /// what was acknowledged: an answer can get lost.
    fn draft_retry(&mut self) -> Option<Draft> {
        let sent = self.sent.len();
        let back = self.rng.usize(1..6);
        let (mail, to) = self.sent.get(sent.checked_sub(back)?)?.clone();
        let large = self.oracle.mail(mail).body.summary.received_len;
        let first = to.first()?;
        let same_shard = to
            .iter()
            .all(|to| self.owner(to.who) == self.owner(first.who));
        if large >= self.knobs.shard.large_bytes || !first.once || !same_shard {
            return None;
        }
        Some(self.append(mail, to))
    }

    fn append(&mut self, mail: usize, to: Vec<To>) -> Draft {
        let body = Body::Small(Arc::clone(&self.oracle.mail(mail).body));
        let group = group(&self.oracle, mail, &to, body);
        self.sent.push((mail, to.clone()));
        let shard = to.first().map_or(0, |to| self.owner(to.who));
        (shard, Request::Append(group), Asked::Append { mail, to })
    }

    /// Some messages of a mailbox.
    fn chosen(&mut self, who: usize) -> Option<Chosen> {
        let mailbox = self.mailbox(who);
        let folder = self.oracle.person(who).folders.get(&mailbox)?;
        let floor = folder.uidnext;
        let uids = match self.rng.u8(..5) {
            0 => UidSet::all(),
            1 => UidSet::range(self.rng.u32(1..=floor), self.rng.u32(1..=floor)),
            2 => folder
                .messages
                .keys()
                .filter(|_| self.rng.bool())
                .map(|uid| Uid::new(*uid))
                .collect(),
            _ => {
                let at = self.rng.usize(..folder.messages.len().max(1));
                UidSet::one(Uid::new(*folder.messages.keys().nth(at)?))
            }
        };
        Some(Chosen {
            who,
            mailbox,
            uids,
            floor,
        })
    }

    fn draft_store(&mut self, who: usize) -> Option<Draft> {
        let of = self.chosen(who)?;
        let (system, words) = self.marks();
        let op = match self.rng.u8(..3) {
            0 => FlagOp::Add,
            1 => FlagOp::Remove,
            _ => FlagOp::Replace,
        };
        let folder = self.oracle.person(who).folders.get(&of.mailbox)?;
        let unchanged_since = (self.rng.u8(..5) == 0).then_some(folder.highest_modseq);
        let request = Request::Store {
            user: self.oracle.person(who).key.clone(),
            mailbox: MailboxId::new(of.mailbox),
            uids: of.uids.clone(),
            op,
            flags: Flags {
                system,
                keywords: words.iter().map(|word| word.as_str().into()).collect(),
            },
            unchanged_since: unchanged_since.map(Modseq::new),
        };
        let flags = NewFlags {
            op,
            system,
            words,
            unchanged_since,
        };
        Some((self.owner(who), request, Asked::Store(of, flags)))
    }

    fn draft_expunge(&mut self, who: usize) -> Option<Draft> {
        let of = self.chosen(who)?;
        let which = if self.rng.bool() {
            Which::All
        } else {
            Which::Deleted
        };
        let request = Request::Expunge {
            user: self.oracle.person(who).key.clone(),
            mailbox: MailboxId::new(of.mailbox),
            uids: of.uids.clone(),
            which,
        };
        Some((self.owner(who), request, Asked::Expunge(of, which)))
    }

    fn draft_copy(&mut self, who: usize, moves: bool) -> Option<Draft> {
        let of = self.chosen(who)?;
        let to = self.mailbox(who);
        let messages = self.oracle.person(who).usage(|_| 0).1;
        if messages > 200 && !moves {
            return None;
        }
        let quota = self.quota(who);
        let user = self.oracle.person(who).key.clone();
        let (from, target) = (MailboxId::new(of.mailbox), MailboxId::new(to));
        let uids = of.uids.clone();
        let request = if moves {
            Request::Move {
                user,
                from,
                uids,
                to: target,
            }
        } else {
            Request::Copy {
                user,
                from,
                uids,
                to: target,
                quota,
            }
        };
        let asked = Asked::Copy {
            of,
            to,
            moves,
            quota,
        };
        Some((self.owner(who), request, asked))
    }

    /// One change of a user's mailboxes at a time, so that after a crash there are two possibilities.
    fn draft_mailbox(&mut self, who: usize, kind: Kind) -> Option<Draft> {
        let busy = |asked: &&Asked| matches!(asked, Asked::Mailbox { .. });
        if self.oracle.under_way(who).iter().any(busy) {
            return None;
        }
        let mut name = || (*self.rng.choice(&NAMES).unwrap_or(&"a")).to_owned();
        let change = match kind {
            Kind::Create => MailboxChange::Create {
                name: name(),
                special_use: SpecialUse::None,
            },
            Kind::Rename => MailboxChange::Rename {
                from: name(),
                to: name(),
            },
            Kind::Delete => MailboxChange::Delete {
                mailbox: MailboxId::new(self.mailbox(who)),
            },
            _ => {
                let mailbox = MailboxId::new(self.mailbox(who));
                if self.rng.bool() {
                    MailboxChange::Subscribe { mailbox }
                } else {
                    MailboxChange::Unsubscribe { mailbox }
                }
            }
        };
        let request = Request::Mailbox {
            user: self.oracle.person(who).key.clone(),
            change: change.clone(),
        };
        Some((self.owner(who), request, Asked::Mailbox { who, change }))
    }

    fn draft_read(&mut self, who: usize, kind: Kind) -> Draft {
        let user = self.oracle.person(who).key.clone();
        let shard = self.owner(who);
        let mailbox = self.mailbox(who);
        let folder = self.oracle.person(who).folders.get(&mailbox);
        let uidnext = folder.map_or(1, |folder| folder.uidnext);
        match kind {
            Kind::List => {
                let after = if self.rng.bool() {
                    0
                } else {
                    self.rng.u32(..uidnext)
                };
                let entries_max = if self.rng.bool() {
                    1_000
                } else {
                    self.rng.u32(1..8)
                };
                let request = Request::List {
                    user,
                    mailbox: MailboxId::new(mailbox),
                    after,
                    entries_max,
                };
                let asked = Asked::List {
                    who,
                    mailbox,
                    after,
                    entries_max,
                };
                (shard, request, asked)
            }
            Kind::Fetch => {
                let uid = self.rng.u32(1..=uidnext);
                let (offset, bytes_max) = if self.rng.bool() {
                    (0, u32::MAX)
                } else {
                    (self.rng.u64(..600), self.rng.u32(1..2_000))
                };
                self.fetch(who, mailbox, (uid, offset, bytes_max))
            }
            Kind::Watch => {
                let since = folder.map_or(0, |folder| folder.highest_modseq);
                let mailbox = folder.is_some().then_some(mailbox);
                let request = Request::Watch {
                    user,
                    mailbox: mailbox.map(MailboxId::new),
                    since: Modseq::new(since),
                };
                let asked = Asked::Watch {
                    who,
                    mailbox,
                    since,
                };
                (shard, request, asked)
            }
            Kind::Compact => (shard, Request::Compact { user }, Asked::Compact),
            _ => (shard, Request::Checkpoint, Asked::Checkpoint),
        }
    }

    pub(super) fn fetch(
        &self,
        who: usize,
        mailbox: u32,
        (uid, offset, bytes_max): (u32, u64, u32),
    ) -> Draft {
        let request = Request::Fetch {
            user: self.oracle.person(who).key.clone(),
            mailbox: MailboxId::new(mailbox),
            uid: Uid::new(uid),
            stored_offset: offset,
            bytes_max,
        };
        let asked = Asked::Fetch {
            who,
            mailbox,
            uid,
            offset,
            bytes_max,
        };
        (self.owner(who), request, asked)
    }

    /// Opens a snapshot, or uses one, or closes it.
    fn draft_snapshot(&mut self, who: usize) -> Option<Draft> {
        let open = self.oracle.snapshots.iter().enumerate();
        let open = open.filter(|(_, kept)| kept.is_open);
        let open: Vec<usize> = open.map(|(place, _)| place).collect();
        if open.len() < 2 || self.rng.u8(..4) == 0 {
            let mailbox = self.mailbox(who);
            let user = self.oracle.person(who).key.clone();
            let request = Request::SnapshotOpen {
                user,
                mailbox: MailboxId::new(mailbox),
            };
            return Some((
                self.owner(who),
                request,
                Asked::SnapshotOpen { who, mailbox },
            ));
        }
        let snapshot = self.rng.choice(open)?;
        let kept = self.oracle.snapshots.get_mut(snapshot)?;
        let (shard, id) = (kept.shard, kept.id);
        match self.rng.u8(..4) {
            0 => {
                kept.is_open = false;
                self.close_snapshot(shard, id);
                None
            }
            1 => {
                let request = Request::SnapshotList {
                    snapshot: id,
                    after: 0,
                    entries_max: 1_000,
                };
                Some((shard, request, Asked::SnapshotList { snapshot }))
            }
            _ => {
                let at = self.rng.usize(..kept.mails.len().max(1));
                let uid = *kept.mails.keys().nth(at)?;
                let request = Request::SnapshotFetch {
                    snapshot: id,
                    uid: Uid::new(uid),
                    stored_offset: 0,
                    bytes_max: u32::MAX,
                };
                Some((shard, request, Asked::SnapshotFetch { snapshot, uid }))
            }
        }
    }
}

/// The group of an append.
pub(super) fn group(oracle: &Oracle, mail: usize, to: &[To], body: Body) -> AppendGroup {
    let number = u64::try_from(mail).unwrap_or(u64::MAX);
    let recipient = |to: &To| Recipient {
        user: oracle.person(to.who).key.clone(),
        mailbox: MailboxId::new(to.mailbox),
        folder: None,
        guid: oracle.mail(mail).guid,
        dedupe: if to.once { Dedupe::Yes } else { Dedupe::No },
        internal_date: WallNs::new(1_767_225_600_000_000_000 + number * 1_000_000_000),
        flags: Flags {
            system: to.system,
            keywords: to.words.iter().map(|word| word.as_str().into()).collect(),
        },
        quota: to.quota,
    };
    let client = to.iter().any(|to| !to.once);
    AppendGroup {
        body,
        sender: Bytes::from_static(if client { b"" } else { b"sender@sim.test" }),
        recipients: to.iter().map(recipient).collect(),
        origin: if client {
            Origin::ClientAppend
        } else {
            Origin::Delivery
        },
    }
}
