//! Logs that lack a file, a header or the ring of delivery ids.

use ringpost_engine::config::ShardConfig;
use ringpost_engine::format::dedupe::{DedupeEntry, DedupeHeader};
use ringpost_engine::format::log_file::LogFileHeader;
use ringpost_engine::format::store_file::StoreId;
use ringpost_engine::io::sim::Crash;
use ringpost_engine::repair::{Action, repair};
use ringpost_engine::request::Outcome;

use crate::flipkit::{self, Image, Mail, USERS, judge, mail};
use crate::testkit::{self, check_disk};
use crate::{NOW, drained, file_of, harmed};

/// A store that filled several log files, nothing of which was checkpointed.
fn long_bench() -> testkit::Bench {
    let mut config = ShardConfig::tiny();
    config.checkpoint_interval_ns = u64::MAX / 4;
    config.log_files_max = 8;
    config.pending_bytes_max = 1 << 20;
    config.pending_records_max = 10_000;
    let mut bench = testkit::Bench::new(config);
    for (number, name) in (1..=30).zip(USERS.into_iter().cycle()) {
        bench.deliver(&[name], number, &testkit::message(number, 3_500));
    }
    flipkit::idle(&mut bench);
    bench
}

fn long_log() -> (Image, Mail) {
    let image = Image::of(&long_bench().disk);
    let held = mail(image.disk());
    assert_eq!(held.len(), 30);
    (image, held)
}

/// A checkpoint had written everybody's files when the power went, and not yet that it had. Then the log
/// is read again, and what is damaged in it is whole in the files.
#[test]
fn what_the_files_have_whole_is_not_lost_with_the_log() {
    let mut bench = long_bench();
    let mut image = Image::of(&bench.disk);
    let held = mail(image.disk());
    bench.drain();
    let files = Image::of(&bench.disk).0.into_iter();
    image
        .0
        .extend(files.filter(|(name, _)| name.starts_with("p/")));
    let needle = b"line 50 of mail 7\n";
    for (name, bytes) in &mut image.0 {
        let Some(bytes) = bytes.as_mut().filter(|_| name.starts_with("log/")) else {
            continue;
        };
        let mut windows = bytes.windows(needle.len());
        if let Some(at) = windows.position(|window| window == needle) {
            bytes[at] ^= 1;
        }
    }
    assert!(!check_disk(&image.disk()).is_sound(), "the log is damaged");
    let disk = image.disk();
    let repaired = repair(&disk, disk.io(), NOW, &mut |_| {}).expect("it can be repaired");
    assert!(repaired.lost.is_empty(), "{:?}", repaired.lost);
    assert!(check_disk(&disk).is_sound());
    assert!(mail(disk) == held, "every message is as it was");
}

fn armed_logs(image: &Image) -> Vec<(String, LogFileHeader)> {
    let files = image.0.iter().filter_map(|(name, bytes)| {
        let bytes = bytes.as_ref()?;
        let header = LogFileHeader::open(bytes.get(..4_096)?, StoreId::new([9; 16]), 0).ok()?;
        Some((name.clone(), header))
    });
    let mut files: Vec<_> = files.collect();
    files.sort_by_key(|(_, header)| header.sequence);
    files
}

#[test]
fn a_missing_log_file_is_named_and_the_rest_is_served() {
    let (image, held) = long_log();
    let logs = armed_logs(&image);
    assert!(logs.len() >= 3, "{logs:?}");
    let (middle, _) = &logs[1];
    let image = harmed(&image, |image| drop(image.0.remove(middle)));
    let report = check_disk(&image.disk());
    let named = report.findings.iter().map(ToString::to_string);
    let named: Vec<String> = named
        .filter(|said| said.contains("log file is missing"))
        .collect();
    assert_eq!(named.len(), 1, "{:?}", report.findings);
    let disk = image.disk();
    let repaired = repair(&disk, disk.io(), NOW, &mut |_| {}).expect("the rest can be saved");
    let said: Vec<String> = repaired.actions.iter().map(ToString::to_string).collect();
    assert!(
        said.iter().any(|said| said.contains("positions")),
        "{said:?}"
    );
    assert!(said.iter().any(|said| said.contains("records")), "{said:?}");
    assert!(check_disk(&disk).is_sound());
    let left = mail(disk);
    assert!(left.len() > 8 && left.len() < 30, "{} of 30", left.len());
    assert!(left.iter().all(|(key, found)| held.get(key) == Some(found)));
}

#[test]
fn log_files_that_are_copies_or_strangers_are_set_aside() {
    let (image, held) = long_log();
    let logs = armed_logs(&image);
    let copy = harmed(&image, |image| {
        let bytes = image.0[&logs[1].0].clone();
        image.0.insert("log/00/0042.log".to_owned(), bytes);
    });
    let stranger = harmed(&image, |image| {
        let mut header = logs[2].1;
        header.store = StoreId::new([8; 16]);
        let mut bytes = image.0[&logs[2].0].clone().expect("a file");
        bytes[..4_096].copy_from_slice(header.seal().as_slice());
        image.0.insert("log/00/0042.log".to_owned(), Some(bytes));
    });
    for (what, image) in [("copy", copy), ("stranger", stranger)] {
        let verdict = judge(&image, &held, what);
        assert!(verdict.missing.is_empty(), "{what}: {:?}", verdict.repaired);
        let moved = verdict.repaired.actions.iter().any(|action| {
            action.file.starts_with("log/00/") && action.what.starts_with("moved to lost/")
        });
        assert!(moved, "{what}: {:?}", verdict.repaired);
    }
}

#[test]
fn a_log_file_without_its_header_is_found_by_its_frames() {
    let (image, held) = long_log();
    for (name, _) in armed_logs(&image) {
        for garbage in [0xEE, 0] {
            let image = harmed(&image, |image| {
                image.bytes_mut(&name)[..4_096].fill(garbage);
            });
            let verdict = judge(&image, &held, &name);
            assert!(verdict.missing.is_empty(), "{name}: {:?}", verdict.repaired);
            if verdict.repaired.is_nothing() {
                continue;
            }
            // It is not taken for an empty log in service either.
            let disk = image.disk();
            let config = ShardConfig::tiny();
            let opened = testkit::Bench::on(disk, config).map(|_bench| ());
            let error = opened.expect_err("the log holds acknowledged mail");
            assert!(error.to_string().contains("ringpost repair"), "{error}");
        }
    }
}

/// A file that was armed and never written, whose header rots away, with the next one armed behind it: a
/// shard does not open, since any frame may have been in it. So it is no sound store, and a repair lets the
/// log go on behind that place.
#[test]
fn an_armed_log_file_without_its_header_is_named_and_passed() {
    let image = drained();
    let held = mail(image.disk());
    // An opening without a word: it begins at the end of the log, and arms the next file.
    let config = ShardConfig::tiny();
    let mut bench = testkit::Bench::on(image.disk(), config).expect("the store opens");
    for _turn in 0..10 {
        bench.poll();
        bench.pass_time();
    }
    let image = Image::of(&bench.disk);
    let mut refused = 0;
    for (name, _) in armed_logs(&image) {
        for garbage in [0xEE, 0] {
            let image = harmed(&image, |image| {
                image.bytes_mut(&name)[..4_096].fill(garbage);
            });
            let disk = image.disk();
            let is_sound = check_disk(&disk).is_sound();
            let config = ShardConfig::tiny();
            let opens = testkit::Bench::on(disk, config).is_ok();
            assert!(opens || !is_sound, "{name}: sound, and does not open");
            refused += usize::from(!opens);
            let verdict = judge(&image, &held, &name);
            assert!(verdict.missing.is_empty(), "{name}: {:?}", verdict.repaired);
        }
    }
    assert!(refused > 0, "every header was superfluous");
}

/// The file that the log ends in, begun by an opening while the one before has room, loses its header; whether
/// its only frame is behind the last one tells that it is needed. The log cannot go on at its end then: the
/// file before still reaches there, and the next one, if it is armed, goes on from the one that is lost.
#[test]
fn the_log_goes_on_behind_a_file_without_a_header() {
    let config = || ShardConfig {
        checkpoint_interval_ns: u64::MAX / 4,
        ..ShardConfig::tiny()
    };
    for turns in [0, 10] {
        let mut bench = testkit::Bench::on(drained().disk(), config()).expect("the store opens");
        bench.deliver(&USERS[..1], 90, &testkit::message(90, 500));
        for _turn in 0..turns {
            bench.poll();
            bench.pass_time();
        }
        let image = Image::of(&bench.disk);
        let held = mail(image.disk());
        let mut refused = 0;
        for (name, _) in armed_logs(&image) {
            let image = harmed(&image, |image| image.bytes_mut(&name)[..4_096].fill(0xEE));
            let what = format!("{turns} turns: {name}");
            let is_sound = check_disk(&image.disk()).is_sound();
            let opens = testkit::Bench::on(image.disk(), config()).is_ok();
            assert_eq!(opens, is_sound, "{what}");
            refused += usize::from(!opens);
            let verdict = judge(&image, &held, &what);
            assert!(verdict.missing.is_empty(), "{what}: {:?}", verdict.repaired);
            // What comes then is taken up by a recovery.
            let disk = image.disk();
            repair(&disk, disk.io(), NOW, &mut |_| {}).expect("the rest can be saved");
            let mut bench = testkit::Bench::on(disk, config()).expect("it is sound");
            bench.deliver(&USERS[..1], 91, &testkit::message(91, 500));
            let disk = bench.disk.crash(Crash::PowerCut);
            assert!(check_disk(&disk).is_sound(), "{what}");
            assert_eq!(mail(disk).len(), held.len() + 1, "{what}");
        }
        assert_eq!(refused, 1, "{turns} turns");
    }
}

/// A change of the number of cores writes the ring of delivery ids anew, and its superblock tells of the new one
/// with the next checkpoint only. A repair in between wrote over it.
#[test]
fn a_repair_goes_on_behind_the_ids_of_a_new_ring() {
    let name = USERS[0];
    let config = ShardConfig::tiny;
    let mut bench = testkit::Bench::new(config());
    let deliver = |bench: &mut testkit::Bench, number| {
        bench.deliver(&[name], number, &testkit::message(number, 300))
    };
    for number in 1..6 {
        deliver(&mut bench, number);
    }
    bench.drain();
    let image = Image::of(&bench.disk);
    let image = harmed(&image, |image| {
        let ring = image.0.get_mut("log/00/dedupe").and_then(Option::as_mut);
        let ring = ring.expect("a file");
        let header = DedupeHeader::open(ring, StoreId::new([9; 16]), 0).expect("it is whole");
        let known = (0..5).map(|sequence| {
            let at = usize::try_from(header.offset_of(sequence)).expect("small");
            DedupeEntry::open(&ring[at..at + 48], sequence).expect("it is whole")
        });
        let known: Vec<DedupeEntry> = known.collect();
        let header = DedupeHeader {
            base_next: 5,
            ..header
        };
        let mut new = header.seal().to_vec();
        for (sequence, entry) in (5..).zip(known) {
            new.resize(
                usize::try_from(header.offset_of(sequence)).expect("small"),
                0,
            );
            new.extend(entry.seal(sequence));
        }
        *ring = new;
    });
    let mut bench = testkit::Bench::on(image.disk(), config()).expect("opens");
    deliver(&mut bench, 6);
    let image = Image::of(&bench.disk.crash(Crash::Kill));
    let index = file_of(name, "info.00000001");
    let disk = harmed(&image, |image| image.bytes_mut(&index)[100] ^= 1).disk();
    let repaired = repair(&disk, disk.io(), NOW, &mut |_| {}).expect("it can be put right");
    assert!(!repaired.is_nothing());
    let mut bench = testkit::Bench::on(disk, config()).expect("opens");
    for number in 1..7 {
        let known = deliver(&mut bench, number);
        let known = matches!(known[..], [Outcome::Duplicate { .. }]);
        assert!(known, "{number} is not known");
    }
}

/// Delivery ids that cannot be read are no damage, and a repair puts them right all the same.
#[test]
fn a_ring_of_delivery_ids_without_its_header_is_made_anew() {
    let image = drained();
    let held = mail(image.disk());
    let ring = "log/00/dedupe";
    for garbage in [0xEE, 0] {
        let image = harmed(&image, |image| image.bytes_mut(ring)[..512].fill(garbage));
        let said = format!("{:?}", check_disk(&image.disk()).findings);
        assert!(said.contains(ring), "{said}");
        let verdict = judge(&image, &held, ring);
        assert!(verdict.missing.is_empty(), "{:?}", verdict.repaired);
        let named = |action: &Action| action.file == ring && action.what.starts_with("made anew");
        assert!(
            verdict.repaired.actions.iter().any(named),
            "{:?}",
            verdict.repaired
        );
        let disk = image.disk();
        repair(&disk, disk.io(), NOW, &mut |_| {}).expect("it can be put right");
        let findings = check_disk(&disk).findings;
        assert!(findings.is_empty(), "{findings:?}");
    }
}
