//! What a mail client asks of a shard, and the answers.

use std::collections::BTreeMap;

use bytes::Bytes;
use ringpost_engine::config::ShardConfig;
use ringpost_engine::format::info::SpecialUse;
use ringpost_engine::io::RelPath;
use ringpost_engine::io::sim::Crash;
use ringpost_engine::mbox::{View, restore};
use ringpost_engine::request::{
    AppendGroup, Body, Changed, ChangesPage, Copied, Dedupe, Event, Fetched, FlagOp, Flags,
    ListPage, MailboxChange, MailboxChanged, MailboxStatus, Origin, Outcome, QuotaLimits,
    Recipient, Refused, Request, Snapshot, Ticket, UidSet, Which,
};
use ringpost_netproto::id::{MailboxId, Modseq, Uid, WallNs};

use super::{Bench, guid, message, prepare, user};

/// The answer to a ticket, out of all events so far.
macro_rules! answer {
    ($bench:expr, $ticket:expr, $event:ident) => {
        $bench.events.iter().find_map(|event| match event {
            Event::$event { ticket, result } if *ticket == $ticket => Some(result.clone()),
            _ => None,
        })
    };
}

/// Flags with keywords.
pub(crate) fn flags(system: u32, keywords: &[&str]) -> Flags {
    Flags {
        system,
        keywords: keywords.iter().map(|word| (*word).into()).collect(),
    }
}

/// Uids one by one.
pub(crate) fn uids(list: &[u32]) -> UidSet {
    list.iter().map(|uid| Uid::new(*uid)).collect()
}

impl Bench {
    pub(crate) fn store(
        &mut self,
        name: &str,
        mailbox: MailboxId,
        set: UidSet,
        op: FlagOp,
        flags: Flags,
    ) -> Result<Changed, Refused> {
        self.store_since(name, mailbox, set, (op, flags), None)
    }

    pub(crate) fn store_since(
        &mut self,
        name: &str,
        mailbox: MailboxId,
        uids: UidSet,
        (op, flags): (FlagOp, Flags),
        unchanged_since: Option<u64>,
    ) -> Result<Changed, Refused> {
        let ticket = self.submit(Request::Store {
            user: user(name),
            mailbox,
            uids,
            op,
            flags,
            unchanged_since: unchanged_since.map(Modseq::new),
        })?;
        self.settle();
        answer!(self, ticket, FlagsStored).expect("it was answered")
    }

    pub(crate) fn expunge(
        &mut self,
        name: &str,
        mailbox: MailboxId,
        uids: UidSet,
    ) -> Result<Changed, Refused> {
        self.expunge_which(name, mailbox, uids, Which::All)
    }

    pub(crate) fn expunge_which(
        &mut self,
        name: &str,
        mailbox: MailboxId,
        uids: UidSet,
        which: Which,
    ) -> Result<Changed, Refused> {
        let ticket = self.submit(Request::Expunge {
            user: user(name),
            mailbox,
            uids,
            which,
        })?;
        self.settle();
        answer!(self, ticket, Expunged).expect("it was answered")
    }

    pub(crate) fn copy(
        &mut self,
        name: &str,
        from: MailboxId,
        uids: UidSet,
        to: MailboxId,
    ) -> Result<Copied, Refused> {
        let ticket = self.submit(Request::Copy {
            user: user(name),
            from,
            uids,
            to,
            quota: QuotaLimits::default(),
        })?;
        self.settle();
        self.copied(ticket)
    }

    pub(crate) fn move_to(
        &mut self,
        name: &str,
        from: MailboxId,
        uids: UidSet,
        to: MailboxId,
    ) -> Result<Copied, Refused> {
        let ticket = self.submit(Request::Move {
            user: user(name),
            from,
            uids,
            to,
        })?;
        self.settle();
        self.copied(ticket)
    }

    pub(crate) fn copied(&self, ticket: Ticket) -> Result<Copied, Refused> {
        answer!(self, ticket, Copied).expect("it was answered")
    }

    pub(crate) fn change(
        &mut self,
        name: &str,
        change: MailboxChange,
    ) -> Result<MailboxChanged, Refused> {
        let user = user(name);
        let ticket = self.submit(Request::Mailbox { user, change })?;
        self.settle();
        self.mailbox_changed(ticket)
    }

    pub(crate) fn mailbox_changed(&self, ticket: Ticket) -> Result<MailboxChanged, Refused> {
        answer!(self, ticket, MailboxChanged).expect("it was answered")
    }

    pub(crate) fn create(&mut self, name: &str, mailbox: &str) -> Result<MailboxId, Refused> {
        let change = MailboxChange::Create {
            name: mailbox.to_owned(),
            special_use: SpecialUse::None,
        };
        self.change(name, change).map(|changed| changed.mailbox)
    }

    pub(crate) fn rename(&mut self, name: &str, from: &str, to: &str) -> Result<(), Refused> {
        let change = MailboxChange::Rename {
            from: from.to_owned(),
            to: to.to_owned(),
        };
        self.change(name, change).map(|_| ())
    }

    pub(crate) fn delete(&mut self, name: &str, mailbox: MailboxId) -> Result<(), Refused> {
        let change = MailboxChange::Delete { mailbox };
        self.change(name, change).map(|_| ())
    }

    pub(crate) fn statuses(&mut self, name: &str) -> Result<Vec<MailboxStatus>, Refused> {
        let ticket = self.submit(Request::Mailboxes { user: user(name) })?;
        self.settle();
        answer!(self, ticket, Mailboxes).expect("it was answered")
    }

    pub(crate) fn status(&mut self, name: &str, mailbox: MailboxId) -> MailboxStatus {
        let statuses = self.statuses(name).expect("the user exists");
        let found = statuses
            .into_iter()
            .find(|status| status.mailbox == mailbox);
        found.expect("the mailbox exists")
    }

    /// Names of all mailboxes, ascending by id.
    pub(crate) fn names(&mut self, name: &str) -> Vec<String> {
        let statuses = self.statuses(name).expect("the user exists");
        statuses.into_iter().map(|status| status.name).collect()
    }

    pub(crate) fn list_of(&mut self, name: &str, mailbox: MailboxId) -> Result<ListPage, Refused> {
        let ticket = self.submit(Request::List {
            user: user(name),
            mailbox,
            after: 0,
            entries_max: 1_000,
        })?;
        self.settle();
        answer!(self, ticket, Listed).expect("it was answered")
    }

    /// Uid, flags and keyword words of each message.
    pub(crate) fn flags_of(
        &mut self,
        name: &str,
        mailbox: MailboxId,
    ) -> BTreeMap<u32, (u32, Vec<String>)> {
        let page = self.list_of(name, mailbox).expect("it can be listed");
        let words = page.status.keywords;
        let named = |bits: u64| {
            let words = words.iter().enumerate();
            words
                .filter(|(bit, _)| bits >> bit & 1 == 1)
                .map(|(_, word)| word.to_string())
                .collect()
        };
        page.entries
            .iter()
            .map(|entry| (entry.uid.value(), (entry.flags, named(entry.keywords))))
            .collect()
    }

    /// The uids of a mailbox.
    pub(crate) fn uids_of(&mut self, name: &str, mailbox: MailboxId) -> Vec<u32> {
        let page = self.list_of(name, mailbox).expect("it can be listed");
        page.entries.iter().map(|entry| entry.uid.value()).collect()
    }

    pub(crate) fn fetch_of(
        &mut self,
        name: &str,
        mailbox: MailboxId,
        uid: u32,
    ) -> Result<Fetched, Refused> {
        let ticket = self.submit(Request::Fetch {
            user: user(name),
            mailbox,
            uid: Uid::new(uid),
            stored_offset: 0,
            bytes_max: u32::MAX,
        })?;
        self.settle();
        answer!(self, ticket, Fetched).expect("it was answered")
    }

    /// A message as received.
    pub(crate) fn text_of(&mut self, name: &str, mailbox: MailboxId, uid: u32) -> Bytes {
        let fetched = self.fetch_of(name, mailbox, uid).expect("it is there");
        received(&fetched)
    }

    pub(crate) fn changes(
        &mut self,
        name: &str,
        mailbox: MailboxId,
        since: u64,
        (after, entries_max): (u32, u32),
    ) -> Result<ChangesPage, Refused> {
        let ticket = self.submit(Request::Changes {
            user: user(name),
            mailbox,
            since: Modseq::new(since),
            after,
            entries_max,
        })?;
        self.settle();
        answer!(self, ticket, Changes).expect("it was answered")
    }

    pub(crate) fn watch(&mut self, name: &str, mailbox: Option<MailboxId>, since: u64) -> Ticket {
        let request = Request::Watch {
            user: user(name),
            mailbox,
            since: Modseq::new(since),
        };
        let now = self.now();
        self.shard.submit(now, request).expect("taken")
    }

    /// What a watch was answered, if it was.
    pub(crate) fn woken(&self, ticket: Ticket) -> Option<Result<Modseq, Refused>> {
        answer!(self, ticket, Woken)
    }

    pub(crate) fn snapshot(&mut self, name: &str, mailbox: MailboxId) -> Result<Snapshot, Refused> {
        let user = user(name);
        let ticket = self.submit(Request::SnapshotOpen { user, mailbox })?;
        self.settle();
        answer!(self, ticket, SnapshotOpened).expect("it was answered")
    }

    pub(crate) fn snapshot_list(&mut self, snapshot: &Snapshot) -> Result<ListPage, Refused> {
        let ticket = self.submit(Request::SnapshotList {
            snapshot: snapshot.id,
            after: 0,
            entries_max: 1_000,
        })?;
        self.settle();
        answer!(self, ticket, Listed).expect("it was answered")
    }

    pub(crate) fn snapshot_text(
        &mut self,
        snapshot: &Snapshot,
        uid: u32,
    ) -> Result<Bytes, Refused> {
        let ticket = self.submit(Request::SnapshotFetch {
            snapshot: snapshot.id,
            uid: Uid::new(uid),
            stored_offset: 0,
            bytes_max: u32::MAX,
        })?;
        self.settle();
        let fetched = answer!(self, ticket, Fetched).expect("it was answered");
        fetched.map(|fetched| received(&fetched))
    }

    pub(crate) fn snapshot_close(&mut self, snapshot: &Snapshot) {
        let now = self.now();
        let snapshot = snapshot.id;
        let closed = self.shard.submit(now, Request::SnapshotClose { snapshot });
        assert!(closed.is_ok(), "{closed:?}");
        self.poll();
    }

    /// An append by a client: no duplicates, flags of its own.
    pub(crate) fn client_append(
        &mut self,
        name: &str,
        mailbox: MailboxId,
        (number, message): (u64, &[u8]),
        flags: Flags,
        quota: QuotaLimits,
    ) -> Outcome {
        let ticket = self.client_append_of(
            (name, mailbox),
            (number, message),
            flags,
            (quota, Dedupe::No),
        );
        self.settle();
        self.outcomes(ticket).remove(0)
    }

    /// Without waiting for its answer.
    pub(crate) fn client_append_of(
        &mut self,
        (name, mailbox): (&str, MailboxId),
        (number, message): (u64, &[u8]),
        flags: Flags,
        (quota, dedupe): (QuotaLimits, Dedupe),
    ) -> Ticket {
        let group = AppendGroup {
            body: Body::Small(prepare(message)),
            sender: Bytes::new(),
            recipients: vec![Recipient {
                user: user(name),
                mailbox,
                folder: None,
                guid: guid(number),
                dedupe,
                internal_date: WallNs::new(1_000_000_000_000_000_000 + number),
                flags,
                quota,
            }],
            origin: Origin::ClientAppend,
        };
        self.submit(Request::Append(group)).expect("taken")
    }
}

/// A small message as received.
pub(crate) fn received(fetched: &Fetched) -> Bytes {
    restore(&fetched.stored, fetched.format_flags, View::AsReceived)
}

/// A user with so many messages in INBOX, numbered like their uids.
pub(crate) fn filled(count: u64) -> Bench {
    let mut bench = Bench::new(ShardConfig::tiny());
    for number in 1..=count {
        bench.deliver(&["bob"], number, &message(number, 300));
    }
    bench
}

/// The same facts as they are, after a checkpoint, and after a crash of each kind before and after.
pub(crate) fn in_every_state(mut bench: Bench, mut check: impl FnMut(&mut Bench)) {
    check(&mut bench);
    let mut bench = bench.crash(Crash::PowerCut);
    check(&mut bench);
    bench.checkpoint();
    check(&mut bench);
    let report = bench.check();
    assert!(report.is_sound(), "{:?}", report.findings);
    let mut bench = bench.crash(Crash::Kill);
    check(&mut bench);
    let mut bench = bench.crash(Crash::PowerCut);
    check(&mut bench);
    bench.checkpoint();
    let report = bench.check();
    assert!(report.is_sound(), "{:?}", report.findings);
}

pub(crate) fn dir(name: &str) -> RelPath {
    RelPath::user_dir(user(name).partition(), user(name).hash(), 0)
}

pub(crate) fn lines(text: &[u8]) -> u64 {
    text.split(|byte| *byte == b'\n').count() as u64 - 1
}

/// The names of large files in a user's directory.
pub(crate) fn large_files(bench: &Bench, name: &str) -> Vec<String> {
    let names = bench
        .disk
        .list(&dir(name))
        .into_iter()
        .map(|(name, _)| name);
    let is_large = |name: &String| name.matches('.').count() == 3 || name.contains(".part");
    names.filter(is_large).collect()
}
