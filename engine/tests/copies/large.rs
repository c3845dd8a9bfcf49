//! Large messages on their way to a copy: their bytes go first, in a file.

use ringpost_engine::error::CorruptReason;
use ringpost_engine::io::RelPath;
use ringpost_engine::io::sim::{Crash, SimConfig};
use ringpost_engine::request::{Body, Copy, Event, Refused, Replicate, Request, StreamId};

use crate::restart::{asked, confirm, lead, quiet};
use crate::testkit::{Bench, empty_disk, guid, message, user};

const PEER: StreamId = StreamId::new(7);
const ANN: &str = "ann";

/// A primary that was brought a large message, all that it ships, and the file.
fn primary(large: &[u8]) -> (Bench, Vec<Replicate>, Vec<u8>) {
    let mut bench = Bench::on(empty_disk(SimConfig::new(1)), asked()).expect("opens");
    lead(&mut bench, 1, Copy::Stream(PEER));
    let body = Body::Staged(bench.stage(1, large).expect("there is room"));
    let group = Bench::group(&[ANN], 1, body);
    bench.submit(Request::Append(group)).expect("taken");
    quiet(&mut bench);
    let tail = bench.shard.partition_tail(user(ANN).partition());
    let waiting = tail.expect("its own").waiting;
    let mut items = waiting.iter().flat_map(|records| &records.items);
    let file = items.find_map(|item| item.file.clone());
    let bytes = bench.disk.read(&file.expect("a large message"));
    (
        bench,
        waiting,
        bytes.expect("it waits, so its file is there"),
    )
}

fn copy() -> Bench {
    Bench::on(empty_disk(SimConfig::new(2)), asked()).expect("opens")
}

/// Brings records; those of a large message with this file.
fn bring(bench: &mut Bench, records: &[Replicate], file: Option<&RelPath>) -> Vec<Option<Refused>> {
    let mut answers = Vec::new();
    for records in records {
        let mut records = records.clone();
        records.commit_pseq = u64::MAX;
        for item in &mut records.items {
            item.file = item.file.take().and_then(|_| file.cloned());
        }
        match bench.ask(Request::Replicate(Box::new(records))) {
            Some(Event::Replicated { result, .. }) => answers.push(result.err()),
            other => panic!("{other:?}"),
        }
    }
    answers
}

/// The prefix ends with the store line, behind the first line.
fn parts(file: &[u8]) -> (&[u8], &[u8]) {
    let first = file.iter().position(|byte| *byte == b'\n').expect("a line");
    let (prefix, rest) = file.split_at(first + 1 + 128);
    (prefix, &rest[..rest.len() - 1])
}

#[test]
fn a_copy_has_a_large_message_byte_for_byte() {
    let large = message(1, 9_000);
    let (mut primary, records, file) = primary(&large);
    let mut copy = copy();
    let (prefix, stored) = parts(&file);
    let (stage, path) = copy.take_file(prefix, stored).expect("there is room");
    let answers = bring(&mut copy, &records, Some(&path));
    assert!(answers.iter().all(Option::is_none), "{answers:?}");
    let now = copy.now();
    let dropped = copy.shard.submit(now, Request::StageDrop { stage });
    dropped.expect("taken");
    quiet(&mut copy);
    // Told again it is there, with or without its file.
    let again = bring(&mut copy, &records[records.len() - 1..], None);
    assert!(again.iter().all(Option::is_none), "{again:?}");
    let mut copy = copy.crash(Crash::PowerCut);
    lead(&mut copy, 2, Copy::None);
    confirm(&mut primary);
    let (ours, theirs) = (primary.mailbox(ANN), copy.mailbox(ANN));
    assert_eq!(ours, theirs);
    assert_eq!(theirs[&1], (guid(1), large.into()));
    copy.checkpoint();
    assert_eq!(copy.mailbox(ANN), ours);
    assert!(copy.check().is_sound(), "{:?}", copy.check().findings);
}

#[test]
fn a_record_without_its_file_or_with_another_is_refused() {
    let (_, records, file) = primary(&message(1, 9_000));
    let (_, _, other) = primary(&message(2, 9_000));
    let mut copy = copy();
    let refused = bring(&mut copy, &records, None);
    let missing = CorruptReason::Value("a large message without its file");
    assert!(
        refused.contains(&Some(Refused::BadRecords(missing.clone()))),
        "{refused:?}"
    );
    let (prefix, stored) = parts(&other);
    let (_, path) = copy.take_file(prefix, stored).expect("there is room");
    let refused = bring(&mut copy, &records, Some(&path));
    assert!(
        refused.contains(&Some(Refused::BadRecords(missing))),
        "{refused:?}"
    );
    // Bytes that are not those of the store line are no file at all.
    let (prefix, _) = parts(&file);
    assert_eq!(copy.take_file(prefix, stored), None);
    assert_eq!(copy.take_file(&prefix[1..100], stored), None);
    copy.checkpoint();
    let dir = RelPath::partition_dir(user(ANN).partition());
    for (name, _) in copy.disk.list(&dir) {
        let dir = dir.entry(&name).expect("a plain name");
        assert_eq!(copy.disk.list(&dir), [], "nothing is left of them");
    }
}

/// What is cut off takes its file with it.
#[test]
fn a_large_message_that_is_cut_off_leaves_no_file() {
    let (mut primary, _, _) = primary(&message(1, 9_000));
    let partition = user(ANN).partition();
    let files = |bench: &Bench| {
        let dir = RelPath::partition_dir(partition);
        let hash = format!("{:016x}", user(ANN).hash().value());
        let dirs = bench.disk.list(&dir).into_iter();
        let dirs = dirs.filter(|(name, _)| name.starts_with(&hash));
        let dirs = dirs.filter_map(move |(name, _)| dir.entry(&name));
        dirs.map(|dir| bench.disk.list(&dir).len()).sum::<usize>()
    };
    assert_eq!(files(&primary), 1);
    let now = primary.now();
    primary.shard.set_copy(now, partition, Copy::Follows);
    let cut = Request::Disown { partition, pseq: 0 };
    assert!(matches!(
        primary.ask(cut),
        Some(Event::Disowned { result: Ok(_), .. })
    ));
    quiet(&mut primary);
    assert_eq!(files(&primary), 0);
}
