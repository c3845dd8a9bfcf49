//! Damaged bytes are never copied, and cost nobody else.

use ringpost_engine::error::CorruptReason;
use ringpost_engine::request::{Event, Notice, Refused, UidSet};

use super::testkit::{Bench, message};
use super::{BOB, append, by_request, compacted, dir_of, expunged, files_of};

#[test]
fn a_damaged_message_keeps_its_segment_and_the_others_are_compacted() {
    let mut bench = Bench::new(by_request());
    for number in 0..40 {
        append(&mut bench, number, 900).expect("taken");
        bench.settle();
    }
    bench.checkpoint();
    let gone = (1..=40).filter(|uid| uid % 2 == 0).map(|uid| (uid, uid));
    expunged(&mut bench, gone.collect()).expect("expunged");
    bench.checkpoint();
    let mut before = bench.mailbox(BOB);
    // In the middle of the first message.
    let first = dir_of(BOB).segment(1);
    assert!(bench.disk.flip(&first, 400, 0x10));
    before.remove(&1);
    let done = compacted(&mut bench).expect("the other segments");
    assert!(done.freed_bytes > 0);
    let left = files_of(&bench.disk, ".mbox");
    assert!(left.contains(&"00000001.mbox".to_owned()), "{left:?}");
    assert!(!left.contains(&"00000002.mbox".to_owned()), "{left:?}");
    let named = bench.events.iter().any(|event| match event {
        Event::Notice(Notice::Corrupt(corrupt)) => corrupt.file == first.as_str(),
        _ => false,
    });
    assert!(named, "the damage is named");
    assert!(matches!(bench.fetch(BOB, 1), Err(Refused::Damaged(_))));
    for (uid, (_, bytes)) in before {
        let fetched = bench.fetch(BOB, uid).expect("the others are served");
        assert_eq!(u64::from(uid), 1 + number_of(&bytes), "uid {uid}");
        assert!(fetched.stored_len > 0);
    }
    let findings = bench.check().findings;
    assert!(
        findings
            .iter()
            .all(|finding| finding.corrupt.file == first.as_str()),
        "{findings:?}"
    );
}

/// The number that a message names.
fn number_of(bytes: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(bytes);
    let rest = text.split("Subject: mail ").nth(1).expect("a subject");
    let digits = rest.split("\r\n").next().expect("a line");
    digits.parse().expect("a number")
}

#[test]
fn a_damaged_index_is_left_alone() {
    let mut bench = Bench::new(by_request());
    for number in 0..20 {
        append(&mut bench, number, 900).expect("taken");
    }
    bench.settle();
    bench.checkpoint();
    expunged(&mut bench, UidSet::range(3, 12)).expect("expunged");
    bench.checkpoint();
    let info = dir_of(BOB).info(1);
    assert!(bench.disk.flip(&info, 1_000, 1));
    let refused = compacted(&mut bench).expect_err("nothing can be built on it");
    let Refused::Damaged(corrupt) = refused else {
        panic!("{refused}");
    };
    assert_eq!(corrupt.file, info.as_str());
    assert!(matches!(corrupt.reason, CorruptReason::Checksum));
    assert_eq!(files_of(&bench.disk, ".part"), [""; 0]);
    assert!(bench.disk.flip(&info, 1_000, 1));
    // Mended (by a repair, say), it is compacted.
    compacted(&mut bench).expect("compacted");
    assert_eq!(bench.mailbox(BOB).len(), 10);
    bench.deliver(&[BOB], 50, &message(50, 900));
    assert!(bench.check().is_sound());
}
