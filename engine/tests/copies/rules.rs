//! Single facts about second copies, each with a peer that the test plays by hand.

use ringpost_engine::config::ShardConfig;
use ringpost_engine::position::Lsn;
use ringpost_engine::request::{Copy, Event, Outcome, Replicate, SealedItem, StreamId};
use ringpost_netproto::id::PartitionId;

use crate::testkit::{Bench, message, user};

const PEER: StreamId = StreamId::new(7);
const OTHER: StreamId = StreamId::new(8);

fn quiet(bench: &mut Bench) {
    for _turn in 0..60 {
        bench.poll();
        bench.pass_time();
    }
}

/// Sealed items of a stream and where their frames end.
fn sealed(bench: &Bench, stream: StreamId) -> Vec<(Lsn, SealedItem)> {
    let frames = bench.events.iter().filter_map(|event| match event {
        Event::Sealed { upto, items, .. } => Some((*upto, items)),
        _ => None,
    });
    let items = frames.flat_map(|(upto, items)| items.iter().map(move |item| (upto, item)));
    let items = items.filter(|(_, item)| item.stream == stream);
    items.map(|(upto, item)| (upto, item.clone())).collect()
}

/// Two users in different partitions.
fn two_users() -> (&'static str, &'static str) {
    let first = "ann";
    let names = ["bob", "cid", "dot", "eve", "fay", "gus"];
    let other = names
        .into_iter()
        .find(|name| user(name).partition() != user(first).partition());
    (first, other.expect("four partitions"))
}

fn partition(name: &str) -> PartitionId {
    user(name).partition()
}

#[test]
fn an_answer_waits_for_its_stream_and_for_no_other() {
    let (ann, bob) = two_users();
    let mut bench = Bench::new(ShardConfig::tiny());
    let now = bench.now();
    bench
        .shard
        .set_copy(now, partition(ann), Copy::Stream(PEER));
    bench
        .shard
        .set_copy(now, partition(bob), Copy::Stream(OTHER));
    let first = bench.append(&[ann], 1, &message(1, 300));
    quiet(&mut bench);
    let second = bench.append(&[bob], 2, &message(2, 300));
    quiet(&mut bench);
    assert_eq!(bench.try_outcomes(first), None);
    let (upto, item) = sealed(&bench, OTHER).pop().expect("it was sealed");
    assert_eq!(item.records.prev_pseq, 0);
    let now = bench.now();
    bench.shard.copied(now, OTHER, upto);
    bench.poll();
    assert!(matches!(
        bench.outcomes(second)[..],
        [Outcome::Stored { .. }]
    ));
    assert_eq!(bench.try_outcomes(first), None, "its peer is silent");
    let (upto, _) = sealed(&bench, PEER).pop().expect("it was sealed");
    let now = bench.now();
    bench.shard.copied(now, PEER, upto);
    bench.shard.copied(now, PEER, upto);
    bench.poll();
    let [Outcome::Stored { durable, .. }] = bench.outcomes(first)[..] else {
        panic!("it is on both");
    };
    assert!(durable.lsn() <= upto);
}

#[test]
fn one_mail_for_two_peers_is_answered_when_both_have_it() {
    let (ann, bob) = two_users();
    let mut bench = Bench::new(ShardConfig::tiny());
    let now = bench.now();
    bench
        .shard
        .set_copy(now, partition(ann), Copy::Stream(PEER));
    bench
        .shard
        .set_copy(now, partition(bob), Copy::Stream(OTHER));
    let ticket = bench.append(&[ann, bob], 1, &message(1, 300));
    quiet(&mut bench);
    let (upto, ours) = sealed(&bench, PEER).pop().expect("sealed");
    let (_, theirs) = sealed(&bench, OTHER).pop().expect("sealed");
    let body = |item: &SealedItem| item.records.items.last().and_then(|one| one.body.clone());
    let (a, b) = (body(&ours).expect("a mail"), body(&theirs).expect("a mail"));
    assert_eq!(a.as_ptr(), b.as_ptr(), "the body is there once");
    let now = bench.now();
    bench.shard.copied(now, PEER, upto);
    bench.poll();
    assert_eq!(bench.try_outcomes(ticket), None);
    let now = bench.now();
    bench.shard.copied(now, OTHER, upto);
    bench.poll();
    assert!(matches!(
        bench.outcomes(ticket)[..],
        [Outcome::Stored { .. }, Outcome::Stored { .. }]
    ));
}

/// A copy that is in sync again: what was on its way to the medium when it was asked for is shipped too,
/// whenever that is.
#[test]
fn a_stream_that_begins_behind_a_sealed_frame_has_its_records() {
    let mut again_count = 0;
    for turns in 0..12 {
        let mut bench = Bench::new(ShardConfig::tiny());
        for copy in [Copy::Stream(OTHER), Copy::None] {
            let now = bench.now();
            bench.shard.set_copy(now, partition("ann"), copy);
        }
        let ticket = bench.append(&["ann"], 1, &message(1, 300));
        for _turn in 0..turns {
            bench.poll();
            bench.pass_time();
        }
        bench.poll();
        if bench.try_outcomes(ticket).is_some() {
            continue;
        }
        let now = bench.now();
        bench
            .shard
            .set_copy(now, partition("ann"), Copy::Stream(PEER));
        quiet(&mut bench);
        assert_eq!(bench.try_outcomes(ticket), None, "its peer is silent");
        let again = bench.events.iter().filter_map(|event| match event {
            Event::ShippedAgain { item } if item.stream == PEER => Some(item.records.items.len()),
            _ => None,
        });
        let again: usize = again.sum();
        let fresh = sealed(&bench, PEER).into_iter();
        let fresh: usize = fresh.map(|(_, item)| item.records.items.len()).sum();
        assert_eq!(again + fresh, 3, "the user, its mailboxes, the mail");
        again_count += usize::from(again == 3);
        let now = bench.now();
        bench.shard.copied_to(now, partition("ann"), 3);
        bench.poll();
        assert!(matches!(
            bench.outcomes(ticket)[..],
            [Outcome::Stored { .. }]
        ));
    }
    assert!(again_count > 0, "none was on its way");
}

#[test]
fn a_lost_peer_lets_waiting_tickets_go() {
    let mut bench = Bench::new(ShardConfig::tiny());
    let now = bench.now();
    bench
        .shard
        .set_copy(now, partition("ann"), Copy::Stream(PEER));
    let ticket = bench.append(&["ann"], 1, &message(1, 300));
    let again = bench.append(&["ann"], 1, &message(1, 300));
    quiet(&mut bench);
    let late = bench.append(&["ann"], 1, &message(1, 300));
    quiet(&mut bench);
    assert_eq!(bench.try_outcomes(ticket), None);
    assert_eq!(bench.try_outcomes(late), None, "no better than the first");
    let now = bench.now();
    bench.shard.set_copy(now, partition("ann"), Copy::None);
    bench.settle();
    assert!(matches!(
        bench.outcomes(ticket)[..],
        [Outcome::Stored { .. }]
    ));
    for ticket in [again, late] {
        assert!(matches!(
            bench.outcomes(ticket)[..],
            [Outcome::Duplicate { .. }]
        ));
    }
    assert_eq!(bench.mailbox("ann").len(), 1);
}

#[test]
fn what_lacks_its_second_copy_lives_in_the_log_alone() {
    let (ann, bob) = two_users();
    let mut bench = Bench::new(ShardConfig::tiny());
    let now = bench.now();
    bench
        .shard
        .set_copy(now, partition(ann), Copy::Stream(PEER));
    bench.append(&[ann], 1, &message(1, 300));
    quiet(&mut bench);
    bench.append(&[bob], 2, &message(2, 300));
    quiet(&mut bench);
    let used = bench.shard.metrics().log_used_bytes;
    let checkpoint = bench.submit(ringpost_engine::request::Request::Checkpoint);
    checkpoint.expect("taken");
    quiet(&mut bench);
    let after = bench.shard.metrics().log_used_bytes;
    assert!(
        after >= used,
        "the log is kept from the first mail on: {used}, {after}"
    );
    let dir = ringpost_engine::io::RelPath::partition_dir(partition(ann));
    assert_eq!(bench.disk.list(&dir), [], "nothing of it is materialised");
}

#[test]
fn replicated_form_holds_nothing_local() {
    let mut bench = Bench::new(ShardConfig::tiny());
    let now = bench.now();
    bench
        .shard
        .set_copy(now, partition("ann"), Copy::Stream(PEER));
    for number in 1..4 {
        bench.append(&["ann"], number, &message(number, 300));
        quiet(&mut bench);
    }
    let all = sealed(&bench, PEER);
    let (mut pseq, mut chain) = (0, 0);
    for (_, SealedItem { records, .. }) in &all {
        let Replicate {
            prev_pseq,
            prev_chain,
            items,
            ..
        } = records;
        assert_eq!((*prev_pseq, *prev_chain), (pseq, chain));
        for item in items {
            let field = |at: usize| {
                u32::from_le_bytes(item.record[at..at + 4].try_into().expect("four bytes"))
            };
            assert_eq!((item.record[5], field(36), field(40)), (0, 0, 0));
            let next = ringpost_engine::format::record::chain(chain, &item.record);
            assert_eq!(field(60), next, "the chain holds over the replicated form");
            (pseq, chain) = (pseq + 1, next);
        }
    }
    assert!(pseq >= 5, "a user, its mailboxes and three mails");
}
