//! A shard among damaged files, absurd numbers and full disks: it refuses, names the cause and goes
//! on; it neither panics nor hangs nor serves what is not true.
mod testkit;

use bytes::Bytes;
use ringpost_engine::config::ShardConfig;
use ringpost_engine::error::{CorruptReason, OpenError};
use ringpost_engine::format::crc;
use ringpost_engine::format::frame::{FRAME_HEADER_BYTES, FrameHeader};
use ringpost_engine::format::log_file::{LOG_HEADER_BYTES, LogFileHeader};
use ringpost_engine::format::record::RECORD_HEADER_BYTES;
use ringpost_engine::format::store_file::StoreId;
use ringpost_engine::format::superblock::{Pair, Superblock};
use ringpost_engine::io::RelPath;
use ringpost_engine::io::sim::{Crash, SimConfig};
use ringpost_engine::position::Lsn;
use ringpost_engine::request::{Body, Outcome, Refused, Request};
use ringpost_engine::store::{Store, StoreOptions};
use ringpost_netproto::id::NodeId;
use testkit::{Bench, KEY, empty_disk, message, now_of, partitions, prepare, user};

/// Places in every file header (FORMAT.md 2).
const CRC_AT: usize = 8;
const CRC_COVERS_FROM: usize = 12;
const MINOR_AT: usize = 13;

fn dir_of(name: &str) -> RelPath {
    RelPath::user_dir(user(name).partition(), user(name).hash(), 0)
}

/// A store with one materialised message for each user, opened anew: nothing is in memory.
fn reopened(names: &[&str], config: ShardConfig) -> Bench {
    let mut bench = Bench::new(config);
    for (number, name) in (1..).zip(names) {
        bench.deliver(&[name], number, &message(number, 300));
    }
    bench.drain();
    bench.crash(Crash::PowerCut)
}

#[test]
fn a_user_in_repair_is_refused_however_often_it_is_asked_for() {
    let mut bench = reopened(&["bob", "eve"], ShardConfig::tiny());
    assert!(bench.disk.flip(&dir_of("bob").info(1), 40, 0x40));
    // The second and third ask while the first, whose other recipient is slow, still waits.
    let mut tickets = vec![bench.append(&["bob", "eve"], 10, &message(10, 200))];
    for number in 11..60 {
        bench.poll();
        bench.disk.advance(1_000);
        tickets.push(bench.append(&["bob"], number, &message(number, 200)));
    }
    bench.settle();
    for ticket in tickets {
        let outcomes = bench.outcomes(ticket);
        assert!(
            matches!(outcomes[0], Outcome::Refused(Refused::Repairing(_))),
            "{outcomes:?}"
        );
        assert!(
            outcomes
                .iter()
                .skip(1)
                .all(|outcome| matches!(outcome, Outcome::Stored { .. })),
            "{outcomes:?}"
        );
    }
    assert!(matches!(bench.list("bob"), Err(Refused::Repairing(_))));
    assert!(bench.disk.flip(&dir_of("bob").info(1), 40, 0x40));
    let outcomes = bench.deliver(&["bob"], 70, &message(70, 200));
    assert!(
        matches!(outcomes[0], Outcome::Stored { uid, .. } if uid.value() == 2),
        "{outcomes:?}"
    );
    assert_eq!(bench.mailbox("bob").len(), 2);
}

#[test]
fn an_index_damaged_behind_our_back_is_no_empty_mailbox() {
    let mut bench = Bench::new(ShardConfig::tiny());
    bench.deliver(&["bob"], 1, &message(1, 300));
    bench.checkpoint();
    assert!(bench.disk.flip(&dir_of("bob").info(1), 40, 0x40));
    assert!(matches!(bench.list("bob"), Err(Refused::Repairing(_))));
    assert!(matches!(bench.fetch("bob", 1), Err(Refused::Repairing(_))));
    assert!(bench.disk.flip(&dir_of("bob").info(1), 40, 0x40));
    assert_eq!(bench.mailbox("bob").len(), 1);
}

#[test]
fn memory_of_indexes_is_counted_right_when_users_are_evicted() {
    let mut bench = Bench::new(ShardConfig::tiny());
    let names: Vec<String> = (0..40).map(|number| format!("user{number}")).collect();
    for (number, name) in (1..).zip(&names) {
        bench.deliver(&[name], number, &message(number, 300));
        bench.deliver(&[name], 1_000 + number, &message(number, 300));
        bench.checkpoint();
    }
    for _round in 0..3 {
        for name in &names {
            assert_eq!(bench.list(name).expect("it is there").entries.len(), 2);
            bench.poll();
            let metrics = bench.shard.metrics();
            let most = metrics.users_resident * 2 * 1_200;
            assert!(metrics.index_bytes <= most, "{metrics:?}");
        }
    }
}

#[test]
fn a_stray_segment_with_the_last_number_stops_no_shard() {
    let mut bench = reopened(&["bob"], ShardConfig::tiny());
    let stray = dir_of("bob").segment(u32::MAX);
    bench.disk.put(&stray, b"From nobody\n");
    let mut refused = 0;
    for number in 10..60 {
        let outcomes = bench.deliver(&["bob"], number, &message(number, 2_000));
        match &outcomes[0] {
            Outcome::Refused(Refused::Repairing(_)) => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(refused, 50);
    let large = bench.try_deliver_large(&["bob"], 90, &message(90, 9_000));
    let large = large.expect("answered");
    assert!(matches!(large[0], Outcome::Refused(Refused::Repairing(_))));
    assert_eq!(bench.mailbox("bob").len(), 1, "it can be read");
}

#[test]
fn a_thousand_recipients_of_the_largest_small_message_end_in_tiny_frames() {
    let mut bench = Bench::new(ShardConfig::tiny());
    let names: Vec<String> = (0..1_000).map(|number| format!("user{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let text = message(1, 3_900);
    let body = Body::Small(prepare(&text));
    let mut stored = 0;
    // What was refused for want of room is sent again, as an MTA does.
    for _attempt in 0..20 {
        let group = Bench::group(&names, 1, body.clone());
        let ticket = bench.submit(Request::Append(group)).expect("taken");
        bench.settle();
        let outcomes = bench.outcomes(ticket);
        assert_eq!(outcomes.len(), 1_000);
        stored = outcomes
            .iter()
            .filter(|outcome| matches!(outcome, Outcome::Stored { .. } | Outcome::Duplicate { .. }))
            .count();
        if stored == 1_000 {
            break;
        }
    }
    assert_eq!(stored, 1_000);
    for name in ["user0", "user500", "user999"] {
        let mailbox = bench.mailbox(name);
        assert_eq!(mailbox.len(), 1, "{name}");
        assert_eq!(mailbox[&1].1, text);
    }
    let mut bench = bench.crash(Crash::PowerCut);
    assert_eq!(bench.mailbox("user777").len(), 1);
    assert!(bench.check().is_sound());
}

#[test]
fn a_change_of_cores_on_a_full_disk_ends_with_a_reason() {
    let mut bench = Bench::on(empty_disk(SimConfig::new(3)), ShardConfig::tiny()).expect("opens");
    bench.deliver(&["bob"], 1, &message(1, 300));
    let disk = bench.disk.crash(Crash::PowerCut);
    drop(bench);
    disk.configure(|config| config.capacity_bytes = Some(0));
    let dir = tempfile::tempdir().expect("a directory");
    let mut entropy = [9; 32];
    entropy[16..].copy_from_slice(&KEY.bytes());
    let mut options = StoreOptions {
        node: NodeId::new(1),
        partitions: partitions(),
        logs: 1,
        entropy,
    };
    drop(Store::open(dir.path(), &options).expect("a new store"));
    options.logs = 2;
    let mut store = Store::open(dir.path(), &options).expect("it opens");
    let config = ShardConfig::tiny();
    let changed = store.change_layout(&config, [1; 16], || Ok(disk.io()), || now_of(&disk));
    assert!(
        matches!(&changed, Err(OpenError::Io(error)) if error.is_no_space()),
        "{changed:?}"
    );
    assert!(store.needs_new_layout());
    disk.configure(|config| config.capacity_bytes = None);
    let changed = store.change_layout(&config, [1; 16], || Ok(disk.io()), || now_of(&disk));
    assert!(changed.is_ok(), "{changed:?}");
}

/// A sum must not overflow on what a file claims under a good checksum.
#[test]
fn absurd_counters_in_headers_are_refused() {
    let bench = Bench::new(ShardConfig::tiny());
    let store = StoreId::new([9; 16]);
    let bytes = bench.disk.read(&RelPath::superblock(0)).expect("made");
    let pair = Pair::open(&bytes, store, 0).expect("both are good");
    for absurd in 0..5 {
        let mut copy = pair.current.clone();
        match absurd {
            0 => copy.sequence = u64::MAX,
            1 => copy.checkpoint_lsn = Lsn::new(u64::MAX - 4_095),
            2 => copy.dedupe_next = u64::MAX,
            3 => copy.parts_sequence = u64::MAX,
            _ => copy.boots = u32::MAX,
        }
        let opened = Superblock::open(copy.seal().as_slice(), store, 0);
        assert!(matches!(opened, Err(CorruptReason::Value(_))), "{absurd}");
    }
    let bytes = bench.disk.read(&RelPath::log_file(0, 1)).expect("made");
    let mut header = LogFileHeader::open(&bytes, store, 0).expect("armed");
    header.start_lsn = Lsn::new(u64::MAX - 4_095);
    let opened = LogFileHeader::open(header.seal().as_slice(), store, 0);
    assert!(matches!(opened, Err(CorruptReason::Value(_))));
}

/// FORMAT.md promises: of a newer minor version, read. Its reserved bytes mean something to it.
#[test]
fn a_log_of_a_newer_minor_version_is_read() {
    let mut bench = Bench::new(ShardConfig::tiny());
    let text = message(1, 300);
    bench.deliver(&["bob"], 1, &text);
    let disk = bench.disk.crash(Crash::PowerCut);
    drop(bench);
    let path = RelPath::log_file(0, 1);
    let mut bytes = disk.read(&path).expect("the first log file");
    let (header, frame) = bytes.split_at_mut(LOG_HEADER_BYTES);
    header[MINOR_AT] = 1;
    let crc = crc::of(&header[CRC_COVERS_FROM..]);
    header[CRC_AT..CRC_COVERS_FROM].copy_from_slice(&crc.to_le_bytes());
    let mut sealed = FrameHeader::open(frame).expect("the first frame");
    let payload = FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + sealed.payload_len as usize;
    frame[payload.start + RECORD_HEADER_BYTES + 5] = 7;
    sealed.payload_crc = crc::of(&frame[payload]);
    let start = sealed.seal();
    frame[..start.len()].copy_from_slice(&start);
    disk.put(&path, &bytes);
    let mut bench = Bench::on(disk, ShardConfig::tiny()).expect("a newer minor version is read");
    assert_eq!(bench.mailbox("bob")[&1].1, text);
    bench.checkpoint();
    assert_eq!(bench.mailbox("bob")[&1].1, text);
}

/// A connection that is lost while a piece is being written: its place is free again.
#[test]
fn stages_dropped_while_they_are_busy_do_not_add_up() {
    let mut bench = Bench::new(ShardConfig::tiny());
    for number in 0..1_100 {
        let stage = bench.stage_begin().expect("a place is free");
        let data = Bytes::from_static(b"a line\n");
        let written = bench.submit(Request::StageWrite { stage, data });
        written.expect("taken");
        let now = bench.now();
        let dropped = bench.shard.submit(now, Request::StageDrop { stage });
        dropped.unwrap_or_else(|refused| panic!("{number}: {refused}"));
        bench.settle();
        bench.events.clear();
    }
    bench.drain();
    let left = bench.disk.list(&RelPath::stage(0, 0).parent());
    assert_eq!(left, []);
}

/// A caller that forgets a stage file too early loses that message, not the store.
#[test]
fn a_stage_file_that_is_gone_refuses_its_message_only() {
    let mut bench = Bench::new(ShardConfig::tiny());
    bench.deliver(&["bob"], 1, &message(1, 300));
    let text = message(2, 9_000);
    let body = bench.stage(2, &text).expect("staged");
    let stage = body.stage;
    let now = bench.now();
    let dropped = bench.shard.submit(now, Request::StageDrop { stage });
    dropped.expect("taken");
    let group = Bench::group(&["bob", "eve"], 2, Body::Staged(body));
    let ticket = bench.submit(Request::Append(group)).expect("taken");
    bench.settle();
    for outcome in bench.outcomes(ticket) {
        assert!(
            matches!(outcome, Outcome::Refused(Refused::Repairing(_))),
            "{outcome:?}"
        );
    }
    let outcomes = bench.deliver_large(&["bob", "eve"], 2, &text);
    assert!(
        outcomes
            .iter()
            .all(|outcome| matches!(outcome, Outcome::Stored { .. })),
        "{outcomes:?}"
    );
    assert_eq!(bench.mailbox("bob").len(), 2);
}
