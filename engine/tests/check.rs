//! The checker against what a shard really writes: drained, running, and cut off at each change.
mod testkit;

use ringpost_engine::check::{Report, Severity};
use ringpost_engine::config::ShardConfig;
use ringpost_engine::io::RelPath;
use ringpost_engine::io::sim::{Crash, SimConfig, SimDisk};
use ringpost_engine::request::{Outcome, Request};
use testkit::{Bench, check_disk, empty_disk, message};

/// Small mail, mail to several, a large one, a checkpoint in the middle, more of each.
fn workload(bench: &mut Bench) -> u64 {
    let mut stored = 0;
    for round in 0..3 {
        let number = round * 10;
        stored += count(&bench.deliver(&["bob"], number + 1, &message(number + 1, 300)));
        stored += count(&bench.deliver(&["bob", "eve"], number + 2, &message(number + 2, 900)));
        let large = message(number + 3, 6_000);
        let outcomes = bench.deliver_large(&["bob", "eve"], number + 3, &large);
        stored += count(&outcomes);
        if round < 2 && !bench.disk.is_crashed() {
            bench.checkpoint();
        }
    }
    stored
}

fn count(outcomes: &[Outcome]) -> u64 {
    let stored = outcomes
        .iter()
        .filter(|outcome| matches!(outcome, Outcome::Stored { .. }));
    u64::try_from(stored.count()).expect("few")
}

#[test]
fn what_a_shard_writes_is_sound_running_and_drained() {
    let mut bench = Bench::new(ShardConfig::tiny());
    assert_eq!(workload(&mut bench), 15);
    let running = bench.check();
    assert_eq!(running.findings, []);
    assert_eq!((running.users, running.messages), (2, 15));
    bench.drain();
    let drained = bench.check();
    assert_eq!(drained.findings, []);
    assert_eq!((drained.users, drained.messages), (2, 15));
    assert_eq!(drained.bytes, running.bytes);
}

/// Each byte of each of a user's files, and of STORE.
#[test]
fn a_flipped_byte_in_a_drained_store_is_damage() {
    let mut bench = Bench::new(ShardConfig::tiny());
    workload(&mut bench);
    bench.drain();
    let disk = bench.disk.clone();
    let mail = |name: &String| name.starts_with("p/") || name == "STORE";
    for (name, size) in disk.tree().into_iter().filter(|(name, _)| mail(name)) {
        let path = RelPath::root().entry("STORE").filter(|_| name == "STORE");
        let path = path.unwrap_or_else(|| plain(&name));
        let Some(size) = size else { continue };
        let bytes = disk.read(&path).expect("listed");
        for offset in (0..size).step_by(11) {
            let at = usize::try_from(offset).expect("small");
            if is_sender(&bytes, at) {
                continue;
            }
            assert!(disk.flip(&path, offset, 0x10));
            let report = check_disk(&disk);
            assert_eq!(report.worst, Some(Severity::Damage), "{name} at {offset}");
            assert!(disk.flip(&path, offset, 0x10));
        }
    }
    assert_eq!(check_disk(&disk).findings, []);
}

fn plain(name: &str) -> RelPath {
    let start = RelPath::partition_dir(ringpost_netproto::id::PartitionId::new(0)).parent();
    let names = name.strip_prefix("p/").expect("a user's file").split('/');
    names.fold(start, |dir, name| dir.entry(name).expect("a plain name"))
}

/// Whether a byte is in the sender of a `From_` line, which nothing covers.
fn is_sender(bytes: &[u8], at: usize) -> bool {
    let before = bytes.iter().take(at).rposition(|byte| *byte == b'\n');
    let start = before.map_or(0, |lf| lf + 1);
    let end = "From sender@example.test".len();
    let line = bytes.get(start..).unwrap_or_default();
    line.starts_with(b"From sender@") && (5..end).contains(&(at - start))
}

/// Runs the workload until the disk freezes before its k-th change; gives acknowledged messages.
fn cut_off(config: SimConfig) -> (SimDisk, u64) {
    let disk = empty_disk(config);
    let Ok(mut bench) = Bench::on(disk.clone(), ShardConfig::tiny()) else {
        return (disk, 0);
    };
    let mut stored = 0;
    for number in 1..=9 {
        let text = message(number, if number % 3 == 0 { 6_000 } else { 500 });
        let outcomes = if number % 3 == 0 {
            bench
                .try_deliver_large(&["bob", "eve"], number, &text)
                .unwrap_or_default()
        } else {
            let group = Bench::group(
                &["bob", "eve"],
                number,
                ringpost_engine::request::Body::Small(testkit::prepare(&text)),
            );
            match bench.submit(Request::Append(group)) {
                Ok(ticket) => {
                    bench.settle();
                    if bench.disk.is_crashed() {
                        Vec::new()
                    } else {
                        bench.outcomes(ticket)
                    }
                }
                Err(_) => Vec::new(),
            }
        };
        if bench.disk.is_crashed() {
            break;
        }
        stored += count(&outcomes);
        if number % 4 == 0 {
            bench.checkpoint();
        }
        if bench.disk.is_crashed() {
            break;
        }
    }
    (bench.disk.clone(), stored)
}

/// A store that was opened after a crash, drained and checked has no remains of it and no other
/// messages than the checker saw in the log.
fn recovered(disk: SimDisk, kind: Crash, before: &Report, change: u64) {
    let mut bench = Bench::on(disk, ShardConfig::tiny()).expect("a store opens after a crash");
    bench.drain();
    let report = bench.check();
    let worst = report.worst.unwrap_or(Severity::Expected);
    assert_eq!(
        worst,
        Severity::Expected,
        "change {change}: {:?}",
        report.findings
    );
    match kind {
        Crash::PowerCut => assert_eq!(report.messages, before.messages, "change {change}"),
        // A write that was in flight may have landed since.
        Crash::Kill => assert!(report.messages >= before.messages, "change {change}"),
    }
}

#[test]
fn no_cut_off_leaves_damage() {
    let (disk, stored) = cut_off(SimConfig::new(1));
    assert_eq!(stored, 18);
    let changes = disk.changes();
    for weak in [false, true] {
        for change in (1 + u64::from(weak)..=changes).step_by(2) {
            let config = SimConfig::new(change).crash_at(change);
            let config = if weak { config.weak() } else { config };
            let (mut disk, stored) = cut_off(config);
            for kind in [Crash::PowerCut, Crash::Kill] {
                let image = disk.crash(kind);
                let report = check_disk(&image);
                assert!(
                    report.is_sound(),
                    "weak {weak}, change {change}: {:?}",
                    report.findings
                );
                assert!(
                    report.messages >= stored,
                    "change {change}: {report:?}, {stored} stored"
                );
                if change % 8 < 2 {
                    recovered(image, kind, &report, change);
                }
            }
        }
    }
}

/// What an opening that went wrong in its first writes leaves is no damage: a shard opens on it.
#[test]
fn a_first_superblock_or_log_header_that_is_torn_is_no_damage() {
    let torn = |disk: &SimDisk, path: &RelPath, bytes: usize| {
        let mut content = disk.read(path).expect("it is there");
        content[40..bytes].fill(0);
        disk.put(path, &content);
    };
    let log = RelPath::log_file(0, 1);
    let disk = empty_disk(SimConfig::new(1));
    drop(Bench::on(disk.clone(), ShardConfig::tiny()).expect("opens"));
    let whole = disk.read(&RelPath::superblock(0)).expect("it is there");

    let alone = empty_disk(SimConfig::new(2));
    alone.put(&RelPath::superblock(0), &whole);
    torn(&alone, &RelPath::superblock(0), whole.len());
    torn(&disk, &log, 4_096);
    for disk in [alone, disk] {
        let report = check_disk(&disk);
        assert!(report.is_sound(), "{:?}", report.findings);
        let mut bench = Bench::on(disk, ShardConfig::tiny()).expect("opens");
        bench.deliver(&["bob"], 1, &message(1, 300));
        assert!(bench.check().is_sound());
    }
}
