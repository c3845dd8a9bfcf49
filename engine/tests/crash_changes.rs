//! A crash at every change of the disk while a mailbox lives: flags, expunges, copies, moves, folders,
//! large messages, checkpoints; in two models of metadata, by power cut and by kill.
//!
//! The oracle is a list of states: work is done one step behind the other, so that after a crash the
//! store is what it was after the last acknowledged step, or after the one that was under way. Each
//! step is whole or absent. Then the rest of the work is done, and the end must be the same.
mod testkit;

use std::collections::BTreeMap;

use bytes::Bytes;
use ringpost_engine::config::ShardConfig;
use ringpost_engine::format::info::{DELETED, FLAGGED, SEEN, SpecialUse};
use ringpost_engine::io::sim::{Crash, Model, SimConfig, SimDisk};
use ringpost_engine::mbox::{View, restore};
use ringpost_engine::request::{
    Event, FlagOp, Flags, MailboxChange, More, Outcome, QuotaLimits, Refused, Request, Subscribed,
    UidSet, Which,
};
use ringpost_netproto::id::{Guid, MailboxId, Modseq};
use testkit::client::{flags, uids};
use testkit::{Bench, empty_disk, message, user};

const BOB: &str = "bob";

/// One step of the work. Mailboxes are named, since ids are given by the store.
#[derive(Clone, Debug)]
enum Step {
    Deliver(u64, usize),
    Store(&'static str, UidSet, FlagOp, Flags),
    Expunge(&'static str, UidSet, Which),
    Copy(&'static str, UidSet, &'static str),
    Move(&'static str, UidSet, &'static str),
    Create(&'static str),
    Rename(&'static str, &'static str),
    Delete(&'static str),
    Subscribe(&'static str),
    Checkpoint,
}

fn work() -> Vec<Step> {
    use Step::{
        Checkpoint, Copy, Create, Delete, Deliver, Expunge, Move, Rename, Store, Subscribe,
    };
    let all = UidSet::all;
    vec![
        Deliver(1, 300),
        Create("a"),
        Deliver(2, 9_000),
        Store("INBOX", all(), FlagOp::Add, flags(SEEN, &["one"])),
        Copy("INBOX", uids(&[1, 2]), "a"),
        Create("a/b"),
        Deliver(3, 700),
        Move("INBOX", uids(&[2, 3]), "a/b"),
        Checkpoint,
        Store(
            "a/b",
            uids(&[1]),
            FlagOp::Replace,
            flags(FLAGGED, &["two", "one"]),
        ),
        Deliver(4, 6_000),
        Rename("a", "c/d"),
        Expunge("c/d", uids(&[2]), Which::All),
        Store("INBOX", uids(&[4]), FlagOp::Add, Flags::system(DELETED)),
        Subscribe("c/d/b"),
        Expunge("INBOX", all(), Which::Deleted),
        Checkpoint,
        Deliver(5, 400),
        Move("c/d/b", all(), "INBOX"),
        Delete("c/d"),
        Create("c/d"),
        Copy("INBOX", all(), "Sent"),
        Expunge("INBOX", uids(&[6]), Which::All),
        Checkpoint,
        Expunge("Sent", all(), Which::All),
        Deliver(6, 200),
    ]
}

/// What a client sees of a message.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Seen {
    guid: Guid,
    flags: u32,
    keywords: Vec<String>,
    modseq: Modseq,
    bytes: Bytes,
}

/// What a client sees of a mailbox.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Folder {
    mailbox: MailboxId,
    uidvalidity: u32,
    uidnext: u32,
    highest_modseq: u64,
    subscribed: Subscribed,
    messages: BTreeMap<u32, Seen>,
}

/// All mailboxes by name.
type State = BTreeMap<String, Folder>;

/// A message without the number that a second attempt gives otherwise.
type Essence<'a> = (u32, Guid, u32, &'a [String], &'a Bytes);

/// A state without such numbers.
fn essence(state: &State) -> BTreeMap<&str, (Subscribed, Vec<Essence<'_>>)> {
    state
        .iter()
        .map(|(name, folder)| (&**name, (folder.subscribed, messages(folder))))
        .collect()
}

fn messages(folder: &Folder) -> Vec<Essence<'_>> {
    let messages = folder.messages.iter();
    messages
        .map(|(uid, seen)| (*uid, seen.guid, seen.flags, &*seen.keywords, &seen.bytes))
        .collect()
}

fn id_of(bench: &mut Bench, name: &str) -> Option<MailboxId> {
    let statuses = bench.statuses(BOB).ok()?;
    let found = statuses.into_iter().find(|status| status.name == name)?;
    Some(found.mailbox)
}

#[expect(clippy::too_many_lines, reason = "one arm a kind of step")]
/// Asks for a step and waits; whether it was acknowledged.
fn run(bench: &mut Bench, step: &Step) -> bool {
    let name = match step {
        Step::Store(name, ..)
        | Step::Expunge(name, ..)
        | Step::Copy(name, ..)
        | Step::Move(name, ..)
        | Step::Delete(name)
        | Step::Subscribe(name) => name,
        _ => "INBOX",
    };
    let found = id_of(bench, name);
    if bench.disk.is_crashed() {
        return false;
    }
    let mailbox = found.unwrap_or(MailboxId::INBOX);
    let to = match step {
        Step::Copy(_, _, to) | Step::Move(_, _, to) => id_of(bench, to),
        _ => None,
    };
    let to = to.unwrap_or(MailboxId::INBOX);
    let user = user(BOB);
    let change = |change| Request::Mailbox {
        user: user.clone(),
        change,
    };
    let request = match step.clone() {
        Step::Deliver(number, bytes) => return deliver(bench, number, bytes),
        Step::Checkpoint => Request::Checkpoint,
        Step::Store(_, uids, op, flags) => Request::Store {
            user,
            mailbox,
            uids,
            op,
            flags,
            unchanged_since: None,
        },
        Step::Expunge(_, uids, which) => Request::Expunge {
            user,
            mailbox,
            uids,
            which,
        },
        Step::Copy(_, uids, _) => Request::Copy {
            user,
            from: mailbox,
            uids,
            to,
            quota: QuotaLimits::default(),
        },
        Step::Move(_, uids, _) => Request::Move {
            user,
            from: mailbox,
            uids,
            to,
        },
        Step::Create(name) => change(MailboxChange::Create {
            name: name.to_owned(),
            special_use: SpecialUse::None,
        }),
        Step::Rename(from, to) => change(MailboxChange::Rename {
            from: from.to_owned(),
            to: to.to_owned(),
        }),
        Step::Delete(_) => change(MailboxChange::Delete { mailbox }),
        Step::Subscribe(_) => change(MailboxChange::Subscribe { mailbox }),
    };
    let from = bench.events.len();
    if bench.submit(request).is_err() {
        return false;
    }
    bench.settle();
    bench.events.iter().skip(from).any(|event| match event {
        Event::FlagsStored { result, .. } | Event::Expunged { result, .. } => result.is_ok(),
        Event::Copied { result, .. } => {
            let failed = result.as_ref().map_or(0, |copied| copied.failed.len());
            assert_eq!(failed, 0, "{result:?}");
            result.is_ok()
        }
        Event::MailboxChanged { result, .. } => result.is_ok(),
        Event::Checkpointed { result, .. } => result.is_ok(),
        _ => false,
    })
}

fn deliver(bench: &mut Bench, number: u64, bytes: usize) -> bool {
    let text = message(number, bytes);
    let outcomes = if bytes > 4_096 {
        bench.try_deliver_large(&[BOB], number, &text)
    } else {
        let ticket = bench.append(&[BOB], number, &text);
        bench.settle();
        bench.try_outcomes(ticket)
    };
    let taken = |outcome: &Outcome| !matches!(outcome, Outcome::Refused(_));
    outcomes.is_some_and(|outcomes| outcomes.iter().all(taken))
}

/// What a client sees; `None` once the disk has crashed.
fn look(bench: &mut Bench) -> Option<State> {
    let mut state = State::new();
    let statuses = match bench.statuses(BOB) {
        Ok(statuses) => statuses,
        Err(Refused::NoSuchUser) => return Some(state),
        Err(refused) => {
            assert!(bench.disk.is_crashed(), "{refused}");
            return None;
        }
    };
    for status in statuses {
        let page = bench.list_of(BOB, status.mailbox).ok()?;
        assert_eq!(page.more, More::No);
        let named = |bits: u64| {
            let words = status.keywords.iter().enumerate();
            let words = words.filter(move |(bit, _)| bits >> bit & 1 == 1);
            words.map(|(_, word)| word.to_string()).collect()
        };
        let mut messages = BTreeMap::new();
        for entry in page.entries {
            let fetched = bench
                .fetch_of(BOB, status.mailbox, entry.uid.value())
                .ok()?;
            let seen = Seen {
                guid: entry.guid,
                flags: entry.flags,
                keywords: named(entry.keywords),
                modseq: entry.modseq,
                bytes: restore(&fetched.stored, fetched.format_flags, View::AsReceived),
            };
            messages.insert(entry.uid.value(), seen);
        }
        assert_eq!(messages.len() as u64, u64::from(status.messages_count));
        let folder = Folder {
            mailbox: status.mailbox,
            uidvalidity: status.uidvalidity.value(),
            uidnext: status.uidnext,
            highest_modseq: status.highest_modseq,
            subscribed: status.subscribed,
            messages,
        };
        assert!(state.insert(status.name, folder).is_none(), "a name twice");
    }
    Some(state)
}

/// Does steps until one is not acknowledged; the states after each.
fn run_all(bench: &mut Bench, steps: &[Step]) -> Vec<State> {
    let mut states = Vec::new();
    for step in steps {
        if !run(bench, step) {
            assert!(bench.disk.is_crashed(), "{step:?} was refused");
            break;
        }
        // What was acknowledged counts, whatever can be seen of it.
        let seen = look(bench);
        let ends = seen.is_none();
        states.push(seen.unwrap_or_default());
        if ends {
            break;
        }
    }
    states
}

fn reopen(mut disk: SimDisk, again_at: Option<u64>, kind: Crash) -> Bench {
    if let Some(change) = again_at {
        disk.configure(|config| config.crash_at = Some(change));
        let opened = Bench::on(disk.clone(), ShardConfig::tiny());
        if !disk.is_crashed() {
            disk.configure(|config| config.crash_at = None);
            return opened.expect("it opens");
        }
        let next = disk.crash(kind);
        drop(opened);
        disk = next;
    }
    Bench::on(disk, ShardConfig::tiny()).expect("it opens")
}

fn crash_everywhere(model: Model, kind: Crash) {
    let steps = work();
    let mut config = SimConfig::new(23);
    config.model = model;
    let mut bench = Bench::on(empty_disk(config.clone()), ShardConfig::tiny()).expect("opens");
    let base = empty_disk(config.clone()).changes();
    let mut states = vec![State::new()];
    states.extend(run_all(&mut bench, &steps));
    assert_eq!(states.len(), steps.len() + 1, "without a crash");
    let total = bench.disk.changes() - base;
    assert!(total > 120, "{total} changes are too few to mean anything");
    for change in 1..=total {
        let context = format!("{model:?}, {kind:?}, crash at change {change}");
        let disk = empty_disk(config.clone());
        disk.configure(|config| config.crash_at = Some(base + change));
        let mut image = disk.clone();
        let mut done = 0;
        if let Ok(mut bench) = Bench::on(disk, ShardConfig::tiny()) {
            done = run_all(&mut bench, &steps).len();
            image = bench.disk.crash(kind);
        } else {
            image = image.crash(kind);
        }
        let again = change
            .is_multiple_of(5)
            .then_some(image.changes() + change % 13 + 1);
        let mut bench = reopen(image, again, kind);
        let found = look(&mut bench).expect("it serves");
        let before = states.get(done).expect("steps that were asked for");
        let under_way = states.get(done + 1).unwrap_or(before);
        let step = steps.get(done);
        let from = if found == *under_way {
            done + 1
        } else {
            assert_eq!(found, *before, "{context}, after {step:?} was asked for");
            done
        };
        let report = bench.check();
        assert!(report.is_sound(), "{context}: {:?}", report.findings);
        let rest = steps.get(from..).unwrap_or_default();
        let later = run_all(&mut bench, rest);
        assert_eq!(later.len(), rest.len(), "{context}");
        let end = later.last().unwrap_or(&found);
        let wanted = states.last().expect("there is work");
        assert_eq!(essence(end), essence(wanted), "{context}");
        bench.checkpoint();
        let mut bench = bench.crash(kind);
        assert_eq!(look(&mut bench).as_ref(), Some(end), "{context}");
        let report = bench.check();
        assert!(report.is_sound(), "{context}: {:?}", report.findings);
    }
}

#[test]
fn every_crash_point_ext4_power_cut() {
    crash_everywhere(Model::Ext4, Crash::PowerCut);
}

#[test]
fn every_crash_point_weak_power_cut() {
    crash_everywhere(Model::Weak, Crash::PowerCut);
}

#[test]
fn every_crash_point_kill() {
    crash_everywhere(Model::Ext4, Crash::Kill);
}
