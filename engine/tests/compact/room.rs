//! What compaction is for: files shrink and vanish, and a mailbox in use keeps its size.

use ringpost_engine::config::ShardConfig;
use ringpost_engine::io::sim::SimConfig;
use ringpost_engine::request::{Compacted, Refused, UidSet};

use super::testkit::{Bench, empty_disk, message};
use super::{
    BOB, append, assert_sound, by_request, bytes, compact, compacted, expunged, files, files_of,
    rest,
};

#[test]
fn filled_and_emptied_a_thousand_times_it_keeps_its_size() {
    let mut bench = Bench::new(ShardConfig::tiny());
    let mut number = 0;
    let mut most = (0, 0);
    for round in 0..1_000 {
        for _message in 0..12 {
            append(&mut bench, number, 500).expect("taken");
            number += 1;
        }
        bench.settle();
        if round % 10 == 0 {
            bench.deliver_large(&[BOB], 1_000_000 + round, &message(round, 9_000));
        }
        expunged(&mut bench, UidSet::all()).expect("expunged");
        if round % 7 == 0 {
            bench.checkpoint();
        }
        if round % 100 == 99 {
            rest(&mut bench);
            let so_far = (bytes(&bench.disk), files(&bench.disk).len());
            if round == 99 {
                most = so_far;
            }
            assert!(
                so_far.0 <= most.0.max(40 << 10) * 2,
                "{so_far:?} after {most:?} {:?}",
                files(&bench.disk)
            );
            assert!(so_far.1 <= most.1.max(6) * 2, "{so_far:?} after {most:?}");
        }
    }
    assert!(
        bench.shard.metrics().compactions >= 10,
        "{:?}",
        bench.shard.metrics()
    );
    assert_sound(&bench.disk, "at the end");
    assert!(bench.mailbox(BOB).is_empty());
    let page = bench.list(BOB).expect("the mailbox is there");
    assert!(
        u64::from(page.status.uidnext) > number,
        "uids are never given twice"
    );
    // Nothing is left of it but what says so.
    bench.checkpoint();
    compacted(&mut bench).expect("compacted");
    rest(&mut bench);
    assert!(bytes(&bench.disk) < 4 << 10, "{:?}", files(&bench.disk));
}

#[test]
fn half_of_the_mail_is_half_of_the_bytes() {
    let mut bench = Bench::new(by_request());
    for number in 0..60 {
        append(&mut bench, number, 900).expect("taken");
        bench.settle();
    }
    bench.checkpoint();
    let full = bytes(&bench.disk);
    let odd = (1..60).step_by(2).map(|uid| (uid, uid)).collect();
    expunged(&mut bench, odd).expect("expunged");
    bench.checkpoint();
    let garbage = bench.shard.metrics().garbage_bytes;
    assert!(garbage > full / 3, "{garbage} of {full}");
    let before = bench.mailbox(BOB);
    let done = compacted(&mut bench).expect("compacted");
    assert!(
        done.copied_bytes > full / 3 && done.freed_bytes > full / 3,
        "{done:?}"
    );
    rest(&mut bench);
    let now = bytes(&bench.disk);
    assert!(
        now < full * 55 / 100,
        "{now} of {full} {:?}",
        files(&bench.disk)
    );
    assert_eq!(bench.shard.metrics().garbage_bytes, 0);
    assert_eq!(bench.mailbox(BOB), before);
    assert_sound(&bench.disk, "compacted");
    // Mail goes on in the last segment made, which is not full.
    let segments = files_of(&bench.disk, ".mbox").len();
    bench.deliver(&[BOB], 100, &message(100, 300));
    bench.checkpoint();
    assert_eq!(files_of(&bench.disk, ".mbox").len(), segments);
    assert_eq!(
        compacted(&mut bench),
        Ok(Compacted::default()),
        "nothing to do"
    );
    assert_sound(&bench.disk, "appended");
}

#[test]
fn a_dead_sealed_segment_goes_without_a_copy() {
    let mut bench = Bench::new(by_request());
    // 16 KiB a segment: the first two are sealed.
    for number in 0..40 {
        append(&mut bench, number, 900).expect("taken");
        bench.settle();
    }
    bench.checkpoint();
    assert_eq!(files_of(&bench.disk, ".mbox").len(), 3);
    expunged(&mut bench, UidSet::range(1, 15)).expect("expunged");
    bench.checkpoint();
    rest(&mut bench);
    let left = files_of(&bench.disk, ".mbox");
    assert_eq!(left, ["00000002.mbox", "00000003.mbox"]);
    assert_eq!(bench.shard.metrics().compactions, 0);
    assert_sound(&bench.disk, "the first segment is gone");
    assert_eq!(bench.mailbox(BOB).len(), 25);
}

#[test]
fn it_is_no_faster_than_it_may_be() {
    let slow = ShardConfig {
        compact_bytes_per_s: 4 << 10,
        ..by_request()
    };
    let mut bench = Bench::new(slow);
    for number in 0..20 {
        append(&mut bench, number, 900).expect("taken");
        bench.settle();
    }
    bench.checkpoint();
    expunged(&mut bench, UidSet::range(1, 8)).expect("expunged");
    bench.checkpoint();
    let from = bench.disk.now_ns();
    let ticket = bench.submit(compact()).expect("taken");
    let mut longest = 0;
    // Mail is not held up meanwhile.
    for number in 100..110 {
        let from = bench.disk.now_ns();
        let ticket = append(&mut bench, number, 300).expect("taken");
        while super::answer(&bench, ticket).is_none() {
            bench.poll();
            bench.pass_time();
        }
        longest = longest.max(bench.disk.now_ns() - from);
    }
    assert!(super::answer(&bench, ticket).is_none(), "it takes seconds");
    bench.settle();
    let took = bench.disk.now_ns() - from;
    let written = bench.shard.metrics().compact_written_bytes;
    assert!(written > 8 << 10, "{written}");
    // The last piece is not waited for.
    assert!(took > 1_000_000_000, "{took} ns for {written} bytes");
    assert!(longest < 100_000_000, "an append took {longest} ns");
    assert_sound(&bench.disk, "slowly");
}

#[test]
fn a_full_disk_is_emptied_by_expunge_and_compaction() {
    let disk = empty_disk(SimConfig::new(3));
    let mut bench = Bench::on(disk.clone(), by_request()).expect("opens");
    let mut number = 0;
    while number < 60 {
        append(&mut bench, number, 900).expect("taken");
        bench.settle();
        number += 1;
    }
    bench.checkpoint();
    // No room for anything but a few slots.
    let used: u64 = disk.tree().iter().filter_map(|(_, bytes)| *bytes).sum();
    disk.configure(|config| config.capacity_bytes = Some(used + (48 << 10)));
    let even = (2..=60).step_by(2).map(|uid| (uid, uid)).collect();
    expunged(&mut bench, even).expect("expunges are taken on a full disk");
    bench.checkpoint();
    rest(&mut bench);
    let before = bench.mailbox(BOB);
    let from = bytes(&disk);
    for _round in 0..12 {
        drop(compacted(&mut bench));
        rest(&mut bench);
        assert_sound(&disk, "in between");
    }
    let now = bytes(&disk);
    assert!(now < from * 70 / 100, "{now} of {from}: {:?}", files(&disk));
    assert_eq!(bench.mailbox(BOB), before);
}

#[test]
fn without_room_it_leaves_everything_as_it_was() {
    let disk = empty_disk(SimConfig::new(4));
    let mut bench = Bench::on(disk.clone(), by_request()).expect("opens");
    for number in 0..30 {
        append(&mut bench, number, 900).expect("taken");
        bench.settle();
    }
    bench.checkpoint();
    let even = (2..=30).step_by(2).map(|uid| (uid, uid)).collect();
    expunged(&mut bench, even).expect("expunged");
    bench.checkpoint();
    let before = bench.mailbox(BOB);
    let names = files(&disk);
    // It believes in the room that it last saw, and meets the end of it at every byte.
    let used: u64 = disk.tree().iter().filter_map(|(_, bytes)| *bytes).sum();
    for room in (0..16 << 10).step_by(700) {
        disk.configure(|config| config.capacity_bytes = Some(used + room));
        let result = compacted(&mut bench);
        if result.is_ok() {
            break;
        }
        assert_eq!(result, Err(Refused::DiskFull), "{room} bytes of room");
        assert_eq!(files(&disk), names, "{room} bytes of room");
        assert_sound(&disk, "no room");
    }
    disk.configure(|config| config.capacity_bytes = None);
    rest(&mut bench);
    compacted(&mut bench).expect("there is room again");
    assert_eq!(bench.mailbox(BOB), before);
    bench.deliver(&[BOB], 100, &message(100, 900));
    assert_sound(&disk, "room again");
}

#[test]
fn a_drain_ends_a_compaction_that_is_not_committed() {
    for turns in 0..60 {
        let mut bench = Bench::new(by_request());
        for number in 0..20 {
            append(&mut bench, number, 900).expect("taken");
        }
        bench.settle();
        bench.checkpoint();
        expunged(&mut bench, UidSet::range(3, 12)).expect("expunged");
        let before = bench.mailbox(BOB);
        bench.submit(compact()).expect("taken");
        for _turn in 0..turns {
            bench.poll();
            bench.pass_time();
        }
        bench.drain();
        let (disk, config) = (bench.disk.clone(), bench.config.clone());
        drop(bench);
        assert_sound(&disk, &format!("drained after {turns} turns"));
        let mut bench = Bench::on(disk, config).expect("opens");
        assert_eq!(bench.mailbox(BOB), before, "{turns} turns");
        assert_eq!(files_of(&bench.disk, ".part"), [""; 0], "{turns} turns");
    }
}

#[test]
fn nobody_is_compacted_for_nothing() {
    let mut bench = Bench::new(by_request());
    let refused = compacted(&mut bench);
    assert_eq!(
        refused,
        Err(Refused::NoSuchUser),
        "nothing was ever delivered"
    );
    bench.deliver(&[BOB], 1, &message(1, 900));
    // A user whose first record is in the log only, and who has no garbage.
    assert_eq!(compacted(&mut bench), Ok(Compacted::default()));
    expunged(&mut bench, UidSet::all()).expect("expunged");
    let done = compacted(&mut bench).expect("after the checkpoint that it asks for");
    assert_eq!(done.copied_bytes, 0);
    assert_eq!(bench.shard.metrics().compactions, 1);
    assert_sound(&bench.disk, "compacted");
    bench.drain();
    assert_eq!(compacted(&mut bench), Err(Refused::Stopped));
}
