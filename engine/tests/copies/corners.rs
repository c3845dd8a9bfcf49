//! What callers, faults and unlucky moments can make of held mail, cuts and refills: each was a bug once.
use ringpost_engine::format::info::SEEN;
use ringpost_engine::io::sim::{Among, Crash, SimConfig, StepError};
use ringpost_engine::request::{
    Body, Copy, Event, FlagOp, Flags, MailboxStatus, Outcome, Refused, Replicate, Request,
    StreamId, Ticket, UidSet, UserState, Which,
};
use ringpost_netproto::id::{Epoch, MailboxId, PartitionId, UidValidity};

use crate::held::{held, held_box, mark_seen};
use crate::refill::{self, Earlier, fence};
use crate::restart::{asked, quiet};
use crate::testkit::{Bench, empty_disk, guid, message, prepare, user};

mod refills;

const PEER: StreamId = StreamId::new(7);

const ANN: &str = "ann";

fn partition() -> PartitionId {
    user(ANN).partition()
}

fn open(seed: u64) -> Bench {
    Bench::on(empty_disk(SimConfig::new(seed)), asked()).expect("opens")
}

fn lead(bench: &mut Bench, partition: PartitionId, epoch: u32, copy: Copy) {
    let lead = Request::Lead {
        partition,
        epoch: Epoch::new(epoch),
        copy,
        peers_pseq: 0,
    };
    bench.submit(lead).expect("taken");
    quiet(bench);
}

fn follow(bench: &mut Bench, partition: PartitionId, epoch: u32) {
    bench.ask(fence(partition, epoch));
}

fn statuses(bench: &mut Bench) -> Vec<MailboxStatus> {
    match bench.ask(Request::Mailboxes { user: user(ANN) }) {
        Some(Event::Mailboxes { result, .. }) => result.unwrap_or_default(),
        other => panic!("{other:?}"),
    }
}

fn refill(mailboxes: Vec<MailboxStatus>, epoch: u32) -> UserState {
    UserState {
        epoch: Epoch::new(epoch),
        mailboxes,
        mailbox: MailboxId::INBOX,
        changed: Vec::new(),
        vanished: UidSet::default(),
        more: ringpost_engine::request::More::No,
    }
}

fn request(state: UserState) -> Request {
    Request::Refill {
        user: user(ANN),
        state: Box::new(state),
    }
}

/// A primary that leads alone and has `count` messages.
fn primary_with(seed: u64, count: u64) -> Bench {
    let mut primary = open(seed);
    lead(&mut primary, partition(), 1, Copy::None);
    for number in 1..=count {
        primary.deliver(&[ANN], number, &message(number, 300));
    }
    primary
}

fn at() -> (PartitionId, Epoch) {
    (partition(), Epoch::new(1))
}

/// All records of a primary of `count` messages, that are on its medium and wait.
fn records(bench: &mut Bench, partition: PartitionId) -> Vec<Replicate> {
    bench
        .shard
        .partition_tail(partition)
        .expect("its own")
        .waiting
}

fn primary_waiting(
    seed: u64,
    partition: PartitionId,
    epoch: u32,
    names: &[&str],
    from: u64,
) -> Vec<Replicate> {
    let mut primary = open(seed);
    lead(&mut primary, partition, epoch, Copy::Stream(PEER));
    for (nth, name) in names.iter().enumerate() {
        let number = from + nth as u64;
        primary.append(&[name], number, &message(number, 300));
        quiet(&mut primary);
    }
    records(&mut primary, partition)
}

fn replicate(bench: &mut Bench, all: &[Replicate], commit_pseq: u64) {
    for one in all {
        let one = Replicate {
            commit_pseq,
            ..one.clone()
        };
        match bench.ask(Request::Replicate(Box::new(one))) {
            Some(Event::Replicated { result: Ok(_), .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}

fn answered(bench: &mut Bench, request: Request, turns: u32) -> Option<Event> {
    let ticket = bench.submit(request).expect("taken");
    for _ in 0..turns {
        bench.poll();
        if !bench.unanswered().contains(&ticket) {
            break;
        }
        bench.pass_time();
    }
    let mut events = bench.events.iter();
    let place = events.position(|event| crate::testkit::ticket_of(event) == Some(ticket))?;
    Some(bench.events.remove(place))
}

fn take(bench: &mut Bench, ticket: Ticket) -> Option<Event> {
    let mut events = bench.events.iter();
    let place = events.position(|event| crate::testkit::ticket_of(event) == Some(ticket))?;
    Some(bench.events.remove(place))
}

fn disown(pseq: u64) -> Request {
    Request::Disown {
        partition: partition(),
        pseq,
    }
}

fn resume(pseq: u64, chain: u32) -> Request {
    Request::Resume {
        partition: partition(),
        epoch: Epoch::new(1),
        pseq,
        chain,
    }
}

/// A message that comes again while it waits for a copy has no record of its own: it goes with the one
/// that it repeats.
#[test]
fn a_cut_of_a_message_that_came_twice() {
    let mut bench = open(5);
    lead(&mut bench, partition(), 1, Copy::Stream(PEER));
    let twice = [1, 1].map(|number| {
        let ticket = bench.append(&[ANN], number, &message(number, 300));
        quiet(&mut bench);
        ticket
    });
    let last = last_of(&records(&mut bench, partition()));
    follow(&mut bench, partition(), 2);
    for ticket in twice {
        let fenced = bench.outcomes(ticket);
        assert!(
            matches!(fenced[..], [Outcome::Refused(Refused::Fenced { .. })]),
            "{fenced:?}"
        );
    }
    match answered(&mut bench, disown(1), 200) {
        Some(Event::Disowned {
            result: Ok(cut), ..
        }) => assert_eq!(cut.records_count, last - 1),
        other => panic!("{other:?}"),
    }
    assert_eq!(held(&mut bench, partition()).len(), 1);
    bench.checkpoint();
    assert_eq!(bench.shard.unconfirmed_count(), 1, "the barrier stays");
}

#[test]
fn a_cut_that_was_fenced_while_it_held() {
    for polls in 1..12 {
        let mut bench = open(9);
        lead(&mut bench, partition(), 1, Copy::Stream(PEER));
        bench.append(&[ANN], 1, &message(1, 300));
        quiet(&mut bench);
        follow(&mut bench, partition(), 2);
        let ticket = bench.submit(disown(0)).expect("taken");
        for _ in 0..polls {
            bench.poll();
            if !bench.unanswered().contains(&ticket) {
                break;
            }
            bench.pass_time();
        }
        // A person promotes this node.
        let now = bench.now();
        bench.shard.set_copy(now, partition(), Copy::None);
        bench.settle();
        let answer = take(&mut bench, ticket);
        if !matches!(answer, Some(Event::Disowned { result: Err(_), .. })) {
            continue;
        }
        lead(&mut bench, partition(), 3, Copy::Stream(PEER));
        bench.append(&[ANN], 2, &message(2, 300));
        quiet(&mut bench);
        let tail = bench.shard.partition_tail(partition()).expect("its own");
        assert!(!tail.waiting.is_empty());
        follow(&mut bench, partition(), 4);
        let cut = answered(&mut bench, disown(tail.shown_pseq), 20_000);
        let done = matches!(cut, Some(Event::Disowned { result: Ok(_), .. }));
        assert!(done, "polls {polls}: {cut:?}");
        let guids: Vec<_> = held(&mut bench, partition())
            .into_iter()
            .map(|item| item.guid)
            .collect();
        assert!(
            guids.contains(&guid(2)),
            "polls {polls}: cut off and not held: {guids:?}"
        );
    }
}

#[test]
fn one_recipient_twice_in_a_hold() {
    let mut bench = open(10);
    let now = bench.now();
    bench.shard.set_copy(now, partition(), Copy::Follows);
    let hold = Request::Hold(Bench::group(
        &[ANN, ANN],
        1,
        Body::Small(prepare(&message(1, 300))),
    ));
    let answer = bench.ask(hold);
    assert!(matches!(answer, Some(Event::Appended { .. })));
    assert_eq!(held(&mut bench, partition()).len(), 1);
}

fn last_of(all: &[Replicate]) -> u64 {
    all.iter()
        .map(|r| r.prev_pseq + r.items.len() as u64)
        .max()
        .unwrap_or(0)
}

fn shown(bench: &mut Bench) -> Vec<(u32, u32)> {
    bench
        .list(ANN)
        .map(|p| p.entries.iter().map(|e| (e.uid.value(), e.flags)).collect())
        .unwrap_or_default()
}

/// A copy that has a first message that counts, and records of two more that it was not told yet.
fn first_and_more() -> (Bench, u64, Vec<Replicate>) {
    let mut primary = open(1);
    lead(&mut primary, partition(), 1, Copy::Stream(PEER));
    primary.append(&[ANN], 1, &message(1, 300));
    quiet(&mut primary);
    let first = records(&mut primary, partition());
    let last = last_of(&first);
    for number in 2..4 {
        primary.append(&[ANN], number, &message(number, 300));
        quiet(&mut primary);
    }
    let more = records(&mut primary, partition())
        .into_iter()
        .filter(|r| r.prev_pseq >= last)
        .collect();
    let mut copy = open(2);
    follow(&mut copy, partition(), 1);
    replicate(&mut copy, &first, u64::MAX);
    quiet(&mut copy);
    (copy, last, more)
}

#[test]
fn a_record_and_a_resume_in_one_turn() {
    let (mut copy, last, more) = first_and_more();
    copy.list(ANN).expect("loaded");
    let one = Replicate {
        commit_pseq: 0,
        ..more[0].clone()
    };
    copy.submit(Request::Replicate(Box::new(one)))
        .expect("taken");
    let ticket = copy.submit(resume(last + 10, 77)).expect("taken");
    copy.settle();
    let answer = take(&mut copy, ticket);
    follow(&mut copy, partition(), 1);
    quiet(&mut copy);
    let now = copy.now();
    copy.shard.set_copy(now, partition(), Copy::Stream(PEER));
    copy.shard.set_copy(now, partition(), Copy::Follows);
    quiet(&mut copy);
    let tail = copy.shard.partition_tail(partition()).expect("its own");
    let cut = answered(&mut copy, disown(last), 3_000);
    assert!(cut.is_some(), "a Disown without an answer");
    if matches!(answer, Some(Event::Resumed { result: Ok(()), .. })) {
        assert_eq!((tail.shown_pseq, tail.waiting.len()), (last + 10, 0));
    }
}

#[test]
fn a_cut_of_a_new_user_of_the_stream() {
    let all = primary_waiting(1, partition(), 1, &[ANN], 1);
    let mut copy = open(2);
    follow(&mut copy, partition(), 1);
    replicate(&mut copy, &all, 0);
    let cut = answered(&mut copy, disown(0), 5_000);
    assert!(cut.is_some());
    assert_eq!(held(&mut copy, partition()).len(), 1);
}

#[test]
fn drain_answers_all() {
    for polls in 0..10 {
        let all = primary_waiting(1, partition(), 1, &[ANN], 1);
        let mut copy = open(2);
        follow(&mut copy, partition(), 1);
        replicate(&mut copy, &all, 0);
        copy.submit(disown(0)).expect("taken");
        copy.submit(resume(7, 7)).expect("taken");
        for _ in 0..polls {
            copy.poll();
            copy.pass_time();
        }
        let now = copy.now();
        if polls % 2 == 0 {
            copy.shard.set_copy(now, partition(), Copy::None);
        }
        copy.submit(Request::Drain).expect("taken");
        for _ in 0..5_000 {
            copy.poll();
            copy.pass_time();
            if copy.is_answered() {
                break;
            }
        }
        assert!(copy.is_answered(), "polls {polls}: {:?}", copy.unanswered());
    }
}

#[test]
fn a_log_full_of_what_is_to_be_cut_off() {
    let mut bench = open(21);
    lead(&mut bench, partition(), 1, Copy::Stream(PEER));
    let mut refused = None;
    for number in 1..2_000 {
        let ticket = bench.append(&[ANN], number, &message(number, 1_500));
        for _ in 0..30 {
            bench.poll();
            bench.pass_time();
        }
        refused = bench.try_outcomes(ticket);
        if refused.is_some() {
            break;
        }
    }
    assert!(refused.is_some(), "the log is full");
    follow(&mut bench, partition(), 2);
    for _attempt in 0..3 {
        let cut = answered(&mut bench, disown(0), 100_000);
        if matches!(cut, Some(Event::Disowned { result: Ok(_), .. })) {
            return;
        }
    }
    let mut bench = bench.crash(Crash::PowerCut);
    follow(&mut bench, partition(), 2);
    let cut = answered(&mut bench, disown(0), 1_500_000);
    assert!(
        matches!(cut, Some(Event::Disowned { result: Ok(_), .. })),
        "{cut:?}"
    );
}

#[test]
fn a_hold_with_many_words() {
    for words in 10..64usize {
        for extra in (0..1_300usize).step_by(60) {
            let mut bench = open(23);
            let now = bench.now();
            bench.shard.set_copy(now, partition(), Copy::Follows);
            let mut group = Bench::group(&[ANN], 1, Body::Small(prepare(&message(1, 200 + extra))));
            group.recipients[0].flags.keywords = (0..words)
                .map(|n| format!("{n:0>250}").as_str().into())
                .collect();
            let answer = bench.ask(Request::Hold(group));
            if let Some(Event::Appended { outcomes, .. }) = &answer
                && matches!(outcomes[..], [Outcome::Refused(_)])
            {
                return;
            }
        }
    }
    panic!("no words were too many");
}

#[test]
fn a_large_message_that_counts_while_it_is_being_held() {
    for polls in 0..40 {
        let mut bench = open(24);
        lead(&mut bench, partition(), 1, Copy::Stream(PEER));
        let staged = Body::Staged(bench.stage(2, &message(2, 9_000)).expect("room"));
        bench
            .submit(Request::Append(Bench::group(&[ANN], 2, staged)))
            .expect("taken");
        quiet(&mut bench);
        follow(&mut bench, partition(), 2);
        let ticket = bench.submit(disown(0)).expect("taken");
        for _ in 0..polls {
            bench.poll();
            bench.pass_time();
        }
        let now = bench.now();
        bench.shard.set_copy(now, partition(), Copy::None);
        bench.submit(Request::Checkpoint).expect("taken");
        bench.settle();
        assert!(take(&mut bench, ticket).is_some(), "polls {polls}");
        assert!(!bench.events.iter().any(|e| matches!(e, Event::Fatal(_))));
        let listed = bench.list(ANN).map(|p| p.entries.len());
        if listed.is_ok() {
            let fetched = bench.fetch(ANN, 1);
            assert!(fetched.is_ok(), "{fetched:?}");
        }
        bench.checkpoint();
        bench = bench.crash(Crash::PowerCut);
        assert!(
            bench.check().is_sound(),
            "{polls}: {:?}",
            bench.check().findings
        );
        let boxed = held(&mut bench, partition()).len();
        let now = bench.now();
        bench.shard.set_copy(now, partition(), Copy::None);
        let listed = bench.list(ANN).map_or(0, |p| p.entries.len());
        assert!(boxed + listed > 0);
    }
}

#[test]
fn a_copy_is_let_go_while_a_cut_is_on_its_way() {
    let mut found = Vec::new();
    for polls in 0..16 {
        let mut bench = open(25);
        lead(&mut bench, partition(), 1, Copy::Stream(PEER));
        let staged = Body::Staged(bench.stage(1, &message(1, 9_000)).expect("room"));
        bench
            .submit(Request::Append(Bench::group(&[ANN], 1, staged)))
            .expect("taken");
        quiet(&mut bench);
        follow(&mut bench, partition(), 2);
        bench.submit(disown(0)).expect("taken");
        for _ in 0..polls {
            bench.poll();
            bench.pass_time();
        }
        let now = bench.now();
        bench.shard.set_copy(now, partition(), Copy::None);
        bench.settle();
        let lead_now = Request::Lead {
            partition: partition(),
            epoch: Epoch::new(3),
            copy: Copy::None,
            peers_pseq: 0,
        };
        bench.ask(lead_now);
        let outcomes = bench.deliver(&[ANN], 5, &message(5, 300));
        let stored = matches!(outcomes[..], [Outcome::Stored { .. }]);
        let before = shown(&mut bench);
        let mut bench = bench.crash(Crash::PowerCut);
        lead(&mut bench, partition(), 4, Copy::None);
        let after = bench.list(ANN).map(|p| {
            p.entries
                .iter()
                .map(|e| (e.uid.value(), e.flags))
                .collect::<Vec<_>>()
        });
        let there = after
            .as_ref()
            .is_ok_and(|_| bench.mailbox(ANN).values().any(|(id, _)| *id == guid(5)));
        if (stored && !there) || after.as_ref().ok() != Some(&before) {
            found.push(format!(
                "polls {polls}: {outcomes:?} before {before:?} after {after:?} {:?}",
                bench.check().findings
            ));
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// Whatever step of whatever it was that failed.
#[test]
fn a_fatal_error_answers_all() {
    let all = primary_waiting(1, partition(), 1, &[ANN], 1);
    let mut fatals_count = 0;
    for among in [Among::Writes, Among::Syncs, Among::Names] {
        for at in 1..60 {
            let errno = 5;
            let config = SimConfig {
                error_at: Some(StepError { among, at, errno }),
                ..SimConfig::new(at)
            };
            let Ok(mut copy) = Bench::on(empty_disk(config), asked()) else {
                continue;
            };
            let now = copy.now();
            copy.shard.set_copy(now, partition(), Copy::Follows);
            let records = all.iter().cloned();
            let records = records.map(|one| Request::Replicate(Box::new(one)));
            let lead = Request::Lead {
                partition: partition(),
                epoch: Epoch::new(4),
                copy: Copy::None,
                peers_pseq: 0,
            };
            let rest = [disown(0), resume(3, 0), resume(4, 0), lead];
            for request in records.chain(rest) {
                // A refusal is an answer too.
                drop(copy.submit(request));
                quiet(&mut copy);
            }
            let fatal = |event: &Event| matches!(event, Event::Fatal(_));
            fatals_count += u32::from(copy.events.iter().any(fatal));
            let open = copy.unanswered();
            assert!(open.is_empty(), "{among:?} {at}: {open:?}");
        }
    }
    assert!(fatals_count > 10, "{fatals_count}");
}
