//! Held mail: what a node keeps for partitions that it does not lead, until their primary has it.

use bytes::Bytes;
use ringpost_engine::config::ShardConfig;
use ringpost_engine::format::info::SEEN;
use ringpost_engine::held::{addressee, box_of};
use ringpost_engine::io::sim::{Crash, SimConfig};
use ringpost_engine::mbox::{View, restore};
use ringpost_engine::request::{
    AppendGroup, Body, Copy, Dedupe, Event, FlagOp, Flags, MailboxChange, Outcome, Refused,
    Request, StreamId, UidSet, Which,
};
use ringpost_netproto::id::{Epoch, Guid, MailboxId, PartitionId, Uid};
use ringpost_netproto::placement::UserKey;

use crate::refill::fence;
use crate::restart::{asked, lead, quiet};
use crate::testkit::{Bench, KEY, empty_disk, guid, message, partitions, prepare, user};

const PEER: StreamId = StreamId::new(7);
const ANN: &str = "ann";

/// One message of a held box.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Item {
    pub(crate) mailbox: MailboxId,
    pub(crate) uid: Uid,
    pub(crate) user: String,
    pub(crate) guid: Guid,
    pub(crate) held_for: MailboxId,
    pub(crate) sender: Bytes,
    pub(crate) bytes: Bytes,
}

pub(crate) fn held_box(partition: PartitionId) -> UserKey {
    box_of(partition, &KEY, partitions())
}

/// Everything that is held for a partition.
pub(crate) fn held(bench: &mut Bench, partition: PartitionId) -> Vec<Item> {
    let user = held_box(partition);
    let asked = bench.ask(Request::Mailboxes { user: user.clone() });
    let boxes = match asked {
        Some(Event::Mailboxes { result, .. }) => match result {
            Ok(boxes) => boxes,
            Err(Refused::NoSuchUser) => return Vec::new(),
            Err(other) => panic!("{other}"),
        },
        other => panic!("{other:?}"),
    };
    let mut items = Vec::new();
    for status in boxes {
        let Some(whose) = addressee(&status.name) else {
            continue;
        };
        let list = Request::List {
            user: user.clone(),
            mailbox: status.mailbox,
            after: 0,
            entries_max: 1_000,
        };
        let Some(Event::Listed { result, .. }) = bench.ask(list) else {
            panic!("not listed");
        };
        if result == Err(Refused::NoSuchMailbox) {
            // It was empty, and its removal on its way.
            continue;
        }
        for entry in result.expect("it is there").entries {
            let fetch = Request::Fetch {
                user: user.clone(),
                mailbox: status.mailbox,
                uid: entry.uid,
                stored_offset: 0,
                bytes_max: 1 << 20,
            };
            let Some(Event::Fetched { result, .. }) = bench.ask(fetch) else {
                panic!("not fetched");
            };
            if result == Err(Refused::NoSuchMessage) {
                // An expunge that a crash left unanswered was on its way.
                continue;
            }
            let fetched = result.expect("it is whole");
            items.push(Item {
                mailbox: status.mailbox,
                uid: entry.uid,
                user: String::from_utf8(whose.user.clone()).expect("a test's name"),
                guid: entry.guid,
                held_for: fetched.held_for,
                bytes: restore(&fetched.stored, fetched.format_flags, View::AsReceived),
                sender: fetched.sender,
            });
        }
    }
    items
}

/// Held mail on its way to the primary.
pub(crate) fn handed_back(item: &Item) -> AppendGroup {
    let body = Body::Small(prepare(&item.bytes));
    let mut group = Bench::group(&[&item.user], 0, body);
    group.sender = item.sender.clone();
    for recipient in &mut group.recipients {
        recipient.guid = item.guid;
        recipient.mailbox = item.held_for;
        recipient.dedupe = Dedupe::Whole;
    }
    group
}

/// The primary has it.
pub(crate) fn done(bench: &mut Bench, partition: PartitionId, item: &Item) {
    let user = held_box(partition);
    let expunge = Request::Expunge {
        user: user.clone(),
        mailbox: item.mailbox,
        uids: [(item.uid.value(), item.uid.value())].into_iter().collect(),
        which: Which::All,
    };
    bench.ask(expunge);
    let mailbox = item.mailbox;
    let change = MailboxChange::DeleteEmpty { mailbox };
    bench.ask(Request::Mailbox { user, change });
}

fn hold(bench: &mut Bench, names: &[&str], number: u64, bytes: &[u8]) -> Vec<Outcome> {
    let body = Body::Small(prepare(bytes));
    let hold = Request::Hold(Bench::group(names, number, body));
    match bench.ask(hold) {
        Some(Event::Appended { outcomes, .. }) => outcomes,
        other => panic!("{other:?}"),
    }
}

fn partition() -> PartitionId {
    user(ANN).partition()
}

/// All messages of a mailbox are marked as seen.
pub(crate) fn mark_seen(user: UserKey, mailbox: MailboxId) -> Request {
    Request::Store {
        user,
        mailbox,
        uids: UidSet::all(),
        op: FlagOp::Add,
        flags: Flags {
            system: SEEN,
            keywords: Vec::new(),
        },
        unchanged_since: None,
    }
}

/// A node that has nothing to say for the partition.
fn follower(seed: u64, config: ShardConfig) -> Bench {
    let mut bench = Bench::on(empty_disk(SimConfig::new(seed)), config).expect("opens");
    let now = bench.now();
    bench.shard.set_copy(now, partition(), Copy::Follows);
    bench
}

#[test]
fn mail_for_another_primary_is_held_through_a_power_cut_and_read_by_nobody() {
    let mut bench = follower(1, asked());
    let text = message(1, 400);
    let refused = bench.submit(Request::Append(Bench::group(
        &[ANN],
        1,
        Body::Small(prepare(&text)),
    )));
    assert!(matches!(refused, Err(Refused::Fenced { .. })));
    let outcomes = hold(&mut bench, &[ANN], 1, &text);
    assert!(
        matches!(outcomes[..], [Outcome::Stored { .. }]),
        "{outcomes:?}"
    );
    let again = hold(&mut bench, &[ANN], 1, &text);
    assert!(
        matches!(again[..], [Outcome::Duplicate { .. }]),
        "{again:?}"
    );
    let tail = bench.shard.partition_tail(partition()).expect("its own");
    assert_eq!((tail.shown_pseq, tail.waiting.len()), (0, 0));
    let shipped =
        |event: &Event| matches!(event, Event::Sealed { .. } | Event::ShippedAgain { .. });
    assert!(!bench.events.iter().any(shipped));
    let mut bench = bench.crash(Crash::PowerCut);
    for round in 0..3 {
        assert_eq!(bench.list(ANN), Err(Refused::NoSuchUser));
        let items = held(&mut bench, partition());
        let [item] = &items[..] else {
            panic!("round {round}: {items:?}");
        };
        assert_eq!((item.user.as_str(), item.guid), (ANN, guid(1)));
        assert_eq!(item.held_for, MailboxId::INBOX);
        assert_eq!(&item.sender[..], b"sender@example.test");
        assert_eq!(&item.bytes[..], &text);
        match round {
            0 => bench.checkpoint(),
            _ => bench = bench.crash(Crash::Kill),
        }
        assert!(bench.check().is_sound(), "{:?}", bench.check().findings);
    }
}

#[test]
fn what_an_address_asked_for_and_who_it_was_come_back() {
    let mut bench = follower(2, asked());
    let odd = "a/b=c d@x";
    let partition = user(odd).partition();
    let mut group = Bench::group(&[odd], 3, Body::Small(prepare(&message(3, 200))));
    group.recipients[0].folder = Some("Lists/rust".into());
    group.recipients[0].flags.system = SEEN;
    bench.ask(Request::Hold(group));
    let boxes = bench.ask(Request::Mailboxes {
        user: held_box(partition),
    });
    let Some(Event::Mailboxes { result, .. }) = boxes else {
        panic!("{boxes:?}");
    };
    let names = result.expect("it is there").into_iter();
    let found: Vec<_> = names.filter_map(|status| addressee(&status.name)).collect();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].user, odd.as_bytes());
    assert_eq!(found[0].folder.as_deref(), Some("Lists/rust"));
}

#[test]
fn one_message_to_many_is_held_once_for_each_and_its_body_is_in_the_log_once() {
    let names = ["ann", "bob", "cid", "dot", "eve", "fay"];
    let mut bench = Bench::new(asked());
    for number in 0..4 {
        let now = bench.now();
        bench
            .shard
            .set_copy(now, PartitionId::new(number), Copy::Follows);
    }
    let text = message(9, 3_000);
    let outcomes = hold(&mut bench, &names, 9, &text);
    let stored = |outcome: &Outcome| matches!(outcome, Outcome::Stored { .. });
    assert!(outcomes.iter().all(stored), "{outcomes:?}");
    let mut found = Vec::new();
    for number in 0..4 {
        let items = held(&mut bench, PartitionId::new(number));
        assert!(items.iter().all(|item| item.bytes[..] == text));
        found.extend(items.into_iter().map(|item| item.user));
    }
    found.sort();
    assert_eq!(found, names);
}

#[test]
fn mail_is_handed_back_once_whatever_its_age() {
    // A window of a few ids, and more deliveries than that in between.
    let config = ShardConfig {
        dedupe_entries: 16,
        ..asked()
    };
    let mut primary = Bench::on(empty_disk(SimConfig::new(3)), config).expect("opens");
    lead(&mut primary, 1, Copy::None);
    let mut other = follower(4, asked());
    for number in [1, 2] {
        hold(&mut other, &[ANN], number, &message(number, 300));
    }
    // The first is there: its sender's connection broke before the answer, and he came here.
    primary.deliver(&[ANN], 1, &message(1, 300));
    for number in 100..140 {
        primary.deliver(&[ANN], number, &message(number, 200));
    }
    primary.checkpoint();
    let mut primary = primary.crash(Crash::PowerCut);
    lead(&mut primary, 2, Copy::None);
    for _time in 0..2 {
        for item in held(&mut other, partition()) {
            let append = Request::Append(handed_back(&item));
            let Some(Event::Appended { outcomes, .. }) = primary.ask(append) else {
                panic!("not answered");
            };
            let fine = matches!(
                outcomes[..],
                [Outcome::Stored { .. } | Outcome::Duplicate { .. }]
            );
            assert!(fine, "{outcomes:?}");
        }
    }
    let there = primary.mailbox(ANN);
    for number in [1, 2] {
        let copies = there.values().filter(|(id, _)| *id == guid(number));
        assert_eq!(copies.count(), 1, "mail {number}");
    }
    for item in held(&mut other, partition()) {
        done(&mut other, partition(), &item);
    }
    let mut other = other.crash(Crash::PowerCut);
    assert_eq!(held(&mut other, partition()), []);
    let boxes = other.ask(Request::Mailboxes {
        user: held_box(partition()),
    });
    let Some(Event::Mailboxes { result, .. }) = boxes else {
        panic!("{boxes:?}");
    };
    let names: Vec<String> = result
        .expect("it is there")
        .into_iter()
        .map(|status| status.name)
        .collect();
    assert_eq!(names, ["INBOX", "Sent"], "emptied ones are gone");
}

#[test]
fn a_mailbox_with_mail_on_its_way_is_not_removed() {
    let mut bench = follower(5, asked());
    hold(&mut bench, &[ANN], 1, &message(1, 300));
    let item = held(&mut bench, partition()).remove(0);
    let expunge = Request::Expunge {
        user: held_box(partition()),
        mailbox: item.mailbox,
        uids: UidSet::all(),
        which: Which::All,
    };
    bench.ask(expunge);
    let body = Body::Small(prepare(&message(2, 300)));
    let hold = bench.submit(Request::Hold(Bench::group(&[ANN], 2, body)));
    // Into the log it goes; it is not there yet.
    bench.poll();
    let empty = bench.submit(Request::Mailbox {
        user: held_box(partition()),
        change: MailboxChange::DeleteEmpty {
            mailbox: item.mailbox,
        },
    });
    bench.settle();
    let (hold, empty) = (hold.expect("taken"), empty.expect("taken"));
    assert!(matches!(bench.outcomes(hold)[..], [Outcome::Stored { .. }]));
    let refused = bench.events.iter().any(|event| {
        matches!(event, Event::MailboxChanged { ticket, result: Err(Refused::NotEmpty) }
            if *ticket == empty)
    });
    assert!(refused);
    assert_eq!(held(&mut bench, partition()).len(), 1);
}

/// Small and large ones, before and after a restart: what is cut off is held, flags of the system with
/// it; the cut again holds nothing twice.
#[test]
fn what_is_cut_off_is_held() {
    for restarts in [false, true] {
        let mut bench = Bench::on(empty_disk(SimConfig::new(6)), asked()).expect("opens");
        lead(&mut bench, 1, Copy::Stream(PEER));
        let (small, large) = (message(1, 300), message(2, 9_000));
        bench.append(&[ANN], 1, &small);
        let staged = Body::Staged(bench.stage(2, &large).expect("there is room"));
        let group = Bench::group(&[ANN], 2, staged);
        bench.submit(Request::Append(group)).expect("taken");
        quiet(&mut bench);
        if restarts {
            bench = bench.crash(Crash::PowerCut);
        }
        let now = bench.now();
        bench.shard.set_copy(now, partition(), Copy::Follows);
        let cut = Request::Disown {
            partition: partition(),
            pseq: 0,
        };
        match bench.ask(cut) {
            Some(Event::Disowned {
                result: Ok(cut), ..
            }) => assert!(cut.records_count >= 5),
            other => panic!("{other:?}"),
        }
        let tail = bench.shard.partition_tail(partition()).expect("its own");
        assert_eq!((tail.shown_pseq, tail.waiting.len()), (0, 0));
        for _restart in 0..2 {
            let mut items = held(&mut bench, partition());
            items.sort_by_key(|item| item.bytes.len());
            let bytes: Vec<&[u8]> = items.iter().map(|item| &item.bytes[..]).collect();
            assert_eq!(bytes, [&small[..], &large], "restarts: {restarts}");
            assert!(items.iter().all(|item| item.user == ANN));
            assert_eq!(bench.list(ANN), Err(Refused::NoSuchUser));
            assert!(bench.check().is_sound(), "{:?}", bench.check().findings);
            bench.checkpoint();
            bench = bench.crash(Crash::PowerCut);
        }
    }
}

/// A checkpoint ends between what is cut off and its TRUNCATE, where another partition's record waits:
/// it says what the log says there.
#[test]
fn a_checkpoint_before_a_cut_knows_what_was_cut_off() {
    let mut bench = Bench::on(empty_disk(SimConfig::new(8)), asked()).expect("opens");
    lead(&mut bench, 1, Copy::Stream(PEER));
    let other = PartitionId::new(u16::from(partition().value() == 0));
    let waits = Request::Lead {
        partition: other,
        epoch: Epoch::new(1),
        copy: Copy::Stream(PEER),
        peers_pseq: 0,
    };
    bench.submit(waits).expect("taken");
    quiet(&mut bench);
    bench.append(&[ANN], 1, &message(1, 300));
    quiet(&mut bench);
    bench.ask(fence(partition(), 2));
    let cut = Request::Disown {
        partition: partition(),
        pseq: 0,
    };
    assert!(matches!(
        bench.ask(cut),
        Some(Event::Disowned { result: Ok(_), .. })
    ));
    let checkpointed = bench.shard.metrics().checkpoints;
    bench.submit(Request::Checkpoint).expect("taken");
    quiet(&mut bench);
    assert!(bench.shard.metrics().checkpoints > checkpointed);
    for _restart in 0..2 {
        bench = bench.crash(Crash::PowerCut);
        assert!(bench.check().is_sound(), "{:?}", bench.check().findings);
        let tail = bench.shard.partition_tail(partition()).expect("its own");
        assert_eq!((tail.shown_pseq, tail.shown_chain), (0, 0));
    }
}

/// Flags of a held message are its own.
#[test]
fn a_held_box_takes_changes_while_another_node_leads() {
    let mut bench = follower(7, asked());
    hold(&mut bench, &[ANN], 1, &message(1, 300));
    let item = held(&mut bench, partition()).remove(0);
    match bench.ask(mark_seen(held_box(partition()), item.mailbox)) {
        Some(Event::FlagsStored { result: Ok(_), .. }) => {}
        other => panic!("{other:?}"),
    }
}
