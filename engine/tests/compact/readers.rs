//! Who reads keeps what it reads.

use ringpost_engine::mbox::{View, restore};
use ringpost_engine::request::{Event, Request, Snapshot, UidSet};
use ringpost_netproto::id::{MailboxId, Uid};

use super::testkit::{Bench, message, user};
use super::{BOB, answer, append, assert_sound, by_request, compacted, expunged, files_of, rest};

fn snapshot(bench: &mut Bench) -> Snapshot {
    let open = Request::SnapshotOpen {
        user: user(BOB),
        mailbox: MailboxId::INBOX,
    };
    let ticket = bench.submit(open).expect("taken");
    bench.settle();
    match answer(bench, ticket) {
        Some(Event::SnapshotOpened { result, .. }) => result.clone().expect("opened"),
        other => panic!("{other:?}"),
    }
}

fn fetch(bench: &mut Bench, snapshot: &Snapshot, uid: u32) -> Vec<u8> {
    let fetch = Request::SnapshotFetch {
        snapshot: snapshot.id,
        uid: Uid::new(uid),
        stored_offset: 0,
        bytes_max: u32::MAX,
    };
    let ticket = bench.submit(fetch).expect("taken");
    bench.settle();
    match answer(bench, ticket) {
        Some(Event::Fetched { result, .. }) => {
            let fetched = result.as_ref().expect("a snapshot keeps its messages");
            restore(&fetched.stored, fetched.format_flags, View::AsReceived).to_vec()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_snapshot_keeps_the_files_of_its_generation() {
    let mut bench = Bench::new(by_request());
    for number in 0..20 {
        append(&mut bench, number, 900).expect("taken");
        bench.settle();
    }
    bench.deliver_large(&[BOB], 20, &message(20, 9_000));
    bench.checkpoint();
    let old = files_of(&bench.disk, ".mbox");
    let first = snapshot(&mut bench);
    expunged(&mut bench, UidSet::range(2, 21)).expect("expunged");
    bench.checkpoint();
    compacted(&mut bench).expect("compacted");
    let second = snapshot(&mut bench);
    rest(&mut bench);
    let both = files_of(&bench.disk, ".mbox");
    assert!(
        old.iter().all(|name| both.contains(name)),
        "{both:?} after {old:?}"
    );
    assert_sound(&bench.disk, "two generations");
    for uid in 1..=20 {
        let number = u64::from(uid) - 1;
        assert_eq!(
            fetch(&mut bench, &first, uid),
            message(number, 900),
            "uid {uid}"
        );
    }
    assert_eq!(fetch(&mut bench, &first, 21), message(20, 9_000));
    assert_eq!(fetch(&mut bench, &second, 1), message(0, 900));
    assert_eq!(bench.mailbox(BOB).len(), 1);
    // The third generation leaves both behind.
    expunged(&mut bench, UidSet::all()).expect("expunged");
    bench.checkpoint();
    compacted(&mut bench).expect("compacted");
    assert_eq!(fetch(&mut bench, &second, 1), message(0, 900));
    assert_eq!(fetch(&mut bench, &first, 7), message(6, 900));
    for open in [&second, &first] {
        let close = Request::SnapshotClose { snapshot: open.id };
        let now = bench.now();
        bench.shard.submit(now, close).expect("taken");
    }
    rest(&mut bench);
    assert_eq!(files_of(&bench.disk, ".mbox"), [""; 0]);
    assert_sound(&bench.disk, "nobody reads");
}

#[test]
fn fetches_begun_at_every_moment_of_a_compaction_succeed() {
    for turns in 0..50 {
        let mut bench = Bench::new(by_request());
        for number in 0..20 {
            append(&mut bench, number, 900).expect("taken");
        }
        bench.settle();
        bench.checkpoint();
        expunged(&mut bench, UidSet::range(3, 12)).expect("expunged");
        bench.checkpoint();
        bench.submit(super::compact()).expect("taken");
        for _turn in 0..turns {
            bench.poll();
            bench.pass_time();
        }
        let asked: Vec<_> = [1, 2, 13, 14, 19, 20]
            .into_iter()
            .map(|uid| {
                let fetch = Request::Fetch {
                    user: user(BOB),
                    mailbox: MailboxId::INBOX,
                    uid: Uid::new(uid),
                    stored_offset: 0,
                    bytes_max: u32::MAX,
                };
                (uid, bench.submit(fetch).expect("taken"))
            })
            .collect();
        bench.settle();
        for (uid, ticket) in asked {
            let Some(Event::Fetched { result, .. }) = answer(&bench, ticket) else {
                panic!("no answer");
            };
            let fetched = result.as_ref().unwrap_or_else(|refused| {
                panic!("uid {uid} after {turns} turns: {refused}");
            });
            let bytes = restore(&fetched.stored, fetched.format_flags, View::AsReceived);
            assert_eq!(
                bytes,
                message(u64::from(uid) - 1, 900),
                "uid {uid}, {turns} turns"
            );
        }
        assert_sound(&bench.disk, &format!("{turns} turns"));
    }
}
