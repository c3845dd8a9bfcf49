//! The simulated disk: conformance, and that its faults are those of the model.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::*;
use crate::io::conformance::{Driver, Rig, conformance, entry};
use crate::io::{AlignedBuf, Done, FileId, Io, Op, OpenMode, Piece, RelPath, Step, Work, WorkSync};

impl Rig for SimDisk {
    type Io = SimIo;

    fn new() -> Self {
        let mut config = SimConfig::new(7);
        config.short_one_in = 3;
        config.slow_one_in = 10;
        Self::new(config)
    }

    fn io(&mut self) -> SimIo {
        Self::io(self)
    }
}

conformance!(SimDisk);

/// A disk with a durable log file of zeros, opened.
fn log_disk(config: SimConfig) -> (SimDisk, Driver<SimIo>, FileId) {
    let disk = SimDisk::new(config);
    disk.put(&RelPath::log_file(0, 1), &vec![0; 65536]);
    let mut driver = Driver::new(disk.io());
    let (file, _) = driver.open(&RelPath::log_file(0, 1), OpenMode::Log);
    (disk, driver, file)
}

fn log_write(file: FileId, byte: u8) -> Op {
    let mut buf = AlignedBuf::zeroed(8192);
    buf.fill(byte);
    Op::LogWrite {
        file,
        offset: 0,
        buf,
        len: 8192,
    }
}

/// A bit of everything; true when it got through.
fn workload(driver: &mut Driver<SimIo>) -> bool {
    let write = |name: &str, offset, data: &'static [u8]| Step::Write {
        path: entry("u").entry(name).unwrap(),
        offset,
        pieces: vec![Piece::Bytes(Bytes::from_static(data))],
    };
    let folders = entry("u").entry("folders").unwrap();
    let first = Work {
        steps: vec![
            Step::MakeDir(entry("u")),
            write("a", 0, &[1; 1500]),
            write("b", 0, &[2; 1500]),
            Step::Replace {
                path: folders.clone(),
                data: Bytes::from_static(b"old"),
            },
        ],
        sync: WorkSync::Later,
    };
    let second = Work {
        steps: vec![
            write("a", 1500, &[3; 1500]),
            Step::Rename {
                from: entry("u").entry("b").unwrap(),
                to: entry("u").entry("c").unwrap(),
            },
            Step::Replace {
                path: folders,
                data: Bytes::from_static(b"new!"),
            },
        ],
        sync: WorkSync::Each,
    };
    [
        Op::LogCreate {
            path: entry("log"),
            bytes: 8192,
        },
        Op::Materialise(vec![first]),
        Op::SyncTree,
        Op::Materialise(vec![second]),
    ]
    .into_iter()
    .all(|op| driver.run(op).is_ok())
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let run = |seed| {
        let mut config = SimConfig::new(seed).weak();
        config.short_one_in = 2;
        config.slow_one_in = 5;
        config.trace = true;
        let mut disk = SimDisk::new(config);
        let mut driver = Driver::new(disk.io());
        assert!(workload(&mut driver));
        let image = disk.crash(Crash::PowerCut);
        (disk.trace(), image.tree())
    };
    let (trace, tree) = run(1);
    assert!(trace.lines().count() > 15, "{trace}");
    assert_eq!(run(1), (trace.clone(), tree));
    assert_ne!(run(2).0, trace);
}

#[test]
fn a_crash_at_each_change_keeps_what_was_synced() {
    let path = |name: &str| entry("u").entry(name).unwrap();
    for model in [Model::Ext4, Model::Weak] {
        for kind in [Crash::PowerCut, Crash::Kill] {
            let mut passed = 0;
            for at in 1.. {
                let mut config = SimConfig::new(at).crash_at(at);
                config.model = model;
                let mut disk = SimDisk::new(config);
                let mut driver = Driver::new(disk.io());
                let done = workload(&mut driver);
                assert_eq!(done, !disk.is_crashed());
                let mut image = disk.crash(kind);
                // Whatever happened before the SyncTree of the workload is there after it.
                if disk.syncs() >= 4 {
                    let a = image.read(&path("a")).unwrap();
                    assert_eq!(a[..1500], [1; 1500]);
                    assert!(a[1500..].iter().all(|byte| [0, 3].contains(byte)));
                    let c = image.read(&path("b")).or(image.read(&path("c"))).unwrap();
                    assert_eq!(c, [2; 1500]);
                    let folders = image.read(&path("folders")).unwrap();
                    assert!(folders == b"old" || folders == b"new!", "{folders:?}");
                    assert_eq!(image.len(&entry("log")), Some(8192));
                }
                // It goes on from any state, and from a crash in that.
                let again = Driver::new(image.io());
                drop(again);
                let mut later = image.crash(Crash::PowerCut);
                assert!(workload(&mut Driver::new(later.io())), "{:?}", later.tree());
                later = later.crash(Crash::PowerCut);
                assert_eq!(later.read(&path("a")).unwrap().len(), 3000);
                assert_eq!(later.read(&path("c")).unwrap(), [2; 1500]);
                assert_eq!(later.read(&path("folders")).unwrap(), b"new!");
                passed = at;
                if done {
                    break;
                }
            }
            assert!(passed > 15, "{passed} crash points");
        }
    }
}

#[test]
fn a_log_write_is_durable_when_it_completes_and_torn_before() {
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        let (mut disk, mut driver, file) = log_disk(SimConfig::new(seed));
        assert!(driver.run(log_write(file, 1)).is_ok());
        driver.start(log_write(file, 2));
        driver.io.poll(&mut Vec::new());
        let image = disk.crash(Crash::PowerCut);
        let found = image.read(&RelPath::log_file(0, 1)).unwrap();
        let sectors: Vec<_> = found[..8192].chunks(512).collect();
        assert!(
            sectors
                .iter()
                .all(|sector| **sector == [1; 512] || **sector == [2; 512])
        );
        seen.insert(sectors.iter().filter(|sector| sector[0] == 2).count());
    }
    assert!(seen.contains(&0) && seen.contains(&16), "{seen:?}");
    assert!(seen.len() > 5, "{seen:?}");
}

#[test]
fn a_harsh_device_garbles_one_block_in_flight() {
    let mut garbled = 0;
    for seed in 0..200 {
        let mut config = SimConfig::new(seed);
        config.harsh = Harsh::Direct;
        let (mut disk, mut driver, file) = log_disk(config);
        driver.start(log_write(file, 2));
        driver.io.poll(&mut Vec::new());
        let image = disk.crash(Crash::PowerCut);
        let found = image.read(&RelPath::log_file(0, 1)).unwrap();
        assert!(found[8192..].iter().all(|byte| *byte == 0));
        garbled += usize::from(found.iter().any(|byte| ![0, 2].contains(byte)));
    }
    assert!((20..180).contains(&garbled), "{garbled}");
}

#[test]
fn a_log_write_of_a_killed_process_lands_before_the_next_fdatasync() {
    let (mut late, mut never) = (0, 0);
    for seed in 0..100 {
        let (mut disk, mut driver, file) = log_disk(SimConfig::new(seed));
        driver.start(log_write(file, 2));
        driver.io.poll(&mut Vec::new());
        let image = disk.crash(Crash::Kill);
        let before = image.read(&RelPath::log_file(0, 1)).unwrap()[0];
        let mut driver = Driver::new(image.io());
        let (file, _) = driver.open(&RelPath::log_file(0, 1), OpenMode::Log);
        driver.ok(Op::Sync { file });
        let after = driver.log_read(file, 0, 8192).0;
        assert_eq!(after[0], after[1]);
        assert_eq!(driver.log_read(file, 0, 8192).0, after);
        late += usize::from(before == 0 && after[0] == 2);
        never += usize::from(after[0] == 0);
    }
    assert!(late > 10 && never > 10, "{late} {never}");
}

#[test]
fn names_are_sure_where_the_model_says_so() {
    let name = entry("f");
    for (model, by_file, by_dir) in [(Model::Ext4, true, true), (Model::Weak, false, true)] {
        for (sync_dir, sure) in [(false, by_file), (true, by_dir)] {
            let mut config = SimConfig::new(1);
            config.model = model;
            config.fate = Fate::Least;
            let mut disk = SimDisk::new(config);
            let mut driver = Driver::new(disk.io());
            let file = driver.create(&name, b"content");
            driver.ok(Op::Sync { file });
            if sync_dir {
                driver.ok(Op::SyncDir {
                    path: RelPath::root(),
                });
            }
            let image = disk.crash(Crash::PowerCut);
            let found = image.read(&name);
            assert_eq!(found.is_some(), sure, "{model:?} {sync_dir}");
            assert!(found.is_none_or(|found| found == b"content"));
            // Killed, nothing of it is lost.
            let image = disk.crash(Crash::Kill);
            assert_eq!(image.read(&name).unwrap(), b"content");
        }
    }
}

#[test]
fn names_persist_as_a_prefix_or_as_any_subset() {
    let survivors = |model| {
        let mut sets = BTreeSet::new();
        let mut config = SimConfig::new(3);
        config.model = model;
        let mut disk = SimDisk::new(config);
        let mut driver = Driver::new(disk.io());
        for name in ["a", "b", "c"] {
            driver.create(&entry(name), b"");
        }
        for _ in 0..100 {
            let image = disk.crash(Crash::PowerCut);
            let names: Vec<_> = image.tree().into_iter().map(|(name, _)| name).collect();
            sets.insert(names.concat());
        }
        sets
    };
    let prefixes = ["", "a", "ab", "abc"].map(str::to_owned);
    assert_eq!(survivors(Model::Ext4), BTreeSet::from(prefixes));
    assert_eq!(survivors(Model::Weak).len(), 8);
}

#[test]
fn sizes_come_before_data_in_the_weak_model_only() {
    let zeros = |model| {
        let mut config = SimConfig::new(5);
        config.model = model;
        let mut disk = SimDisk::new(config);
        disk.put(&entry("f"), &[1; 100]);
        let mut driver = Driver::new(disk.io());
        let step = Step::Write {
            path: entry("f"),
            offset: 100,
            pieces: vec![Piece::Bytes(Bytes::from(vec![2; 5000]))],
        };
        let work = Work {
            steps: vec![step],
            sync: WorkSync::Later,
        };
        assert!(driver.run(Op::Materialise(vec![work])).is_ok());
        (0..100).any(|_| {
            let image = disk.crash(Crash::PowerCut);
            let found = image.read(&entry("f")).unwrap();
            assert!(found.starts_with(&[1; 100]));
            found.contains(&0)
        })
    };
    assert!(zeros(Model::Weak));
    assert!(!zeros(Model::Ext4));
}

#[test]
fn a_failed_sync_makes_the_next_one_lie() {
    let (mut lied, mut evicted) = (0, 0);
    for seed in 0..100 {
        let mut config = SimConfig::new(seed);
        config.sync_error_at = Some(1);
        let mut disk = SimDisk::new(config);
        disk.put(&entry("f"), b"");
        let mut driver = Driver::new(disk.io());
        let file = driver.create(&entry("g"), b"precious");
        assert_eq!(driver.errno(Op::Sync { file }), libc::EIO);
        evicted += usize::from(driver.read(file, 0, 100) != b"precious");
        driver.ok(Op::Sync { file });
        let image = disk.crash(Crash::PowerCut);
        lied += usize::from(image.read(&entry("g")).unwrap() != b"precious");
    }
    assert!(
        lied > 10 && evicted > 5 && evicted < lied,
        "{lied} {evicted}"
    );
}

#[test]
fn room_ends_at_a_byte_and_comes_back() {
    let mut config = SimConfig::new(1);
    config.capacity_bytes = Some(10);
    let disk = SimDisk::new(config);
    let mut driver = Driver::new(disk.io());
    let file = driver.create(&entry("a"), b"123456");
    let more = |offset| Op::Write {
        file,
        offset,
        data: Bytes::from_static(b"abcdef"),
    };
    let error = driver.run(more(6)).unwrap_err();
    assert!(error.is_no_space());
    assert_eq!(disk.read(&entry("a")).unwrap(), b"123456abcd");
    driver.ok(more(0));
    disk.configure(|config| config.capacity_bytes = Some(100));
    driver.ok(more(6));
    assert_eq!(disk.len(&entry("a")), Some(12));
}

#[test]
fn an_error_hits_the_step_it_is_set_for() {
    let mut config = SimConfig::new(1);
    config.error_at = Some(StepError {
        among: Among::Steps,
        at: 3,
        errno: libc::EDQUOT,
    });
    let disk = SimDisk::new(config);
    let mut driver = Driver::new(disk.io());
    driver.ok(Op::MakeDir { path: entry("a") });
    driver.ok(Op::MakeDir { path: entry("b") });
    assert_eq!(driver.errno(Op::MakeDir { path: entry("c") }), libc::EDQUOT);
    driver.ok(Op::MakeDir { path: entry("c") });
    assert_eq!((disk.steps(), disk.changes(), disk.faults()), (4, 4, 1));
}

#[test]
fn an_error_is_counted_among_its_class() {
    let classes = [
        (Among::Reads, Op::FreeSpace),
        (Among::Names, Op::MakeDir { path: entry("d") }),
        (Among::Syncs, Op::SyncTree),
    ];
    for (among, op) in classes {
        let mut config = SimConfig::new(1);
        config.error_at = Some(StepError {
            among,
            at: 1,
            errno: libc::EIO,
        });
        let disk = SimDisk::new(config);
        let mut driver = Driver::new(disk.io());
        let others = [
            Op::FreeSpace,
            Op::MakeDir { path: entry("d") },
            Op::SyncTree,
        ];
        for other in others {
            let same = std::mem::discriminant(&other) == std::mem::discriminant(&op);
            assert_eq!(driver.run(other).is_err(), same, "{among:?}");
        }
    }
}

#[test]
fn a_failed_sync_is_told_to_everybody_once() {
    let disk = SimDisk::new(SimConfig::new(1));
    let mut drivers = [1, 2, 3].map(|_| Driver::new(disk.io()));
    let [first, second, third] = &mut drivers;
    first.ok(Op::MakeDir { path: entry("a") });
    disk.configure(|config| config.sync_error_at = Some(1));
    assert_eq!(first.errno(Op::SyncTree), libc::EIO);
    assert_eq!(second.errno(Op::SyncTree), libc::EIO);
    for driver in [first, second] {
        driver.ok(Op::SyncTree);
    }
    assert_eq!(third.errno(Op::SyncTree), libc::EIO);
}

#[test]
fn a_failed_sync_of_the_tree_is_told_to_the_next_of_each_file() {
    let disk = SimDisk::new(SimConfig::new(1));
    let mut first = Driver::new(disk.io());
    let mut second = Driver::new(disk.io());
    first.create(&entry("clean"), b"1");
    first.ok(Op::SyncTree);
    first.create(&entry("dirty"), b"1");
    let next = disk.syncs() + 1;
    disk.configure(|config| config.sync_error_at = Some(next));
    assert_eq!(first.errno(Op::SyncTree), libc::EIO);
    let (clean, _) = second.open(&entry("clean"), OpenMode::Read);
    let (dirty, _) = second.open(&entry("dirty"), OpenMode::Read);
    second.ok(Op::Sync { file: clean });
    assert_eq!(second.errno(Op::Sync { file: dirty }), libc::EIO);
    second.ok(Op::Sync { file: dirty });
}

#[test]
fn names_and_files_and_quota_run_out() {
    let mut config = SimConfig::new(1);
    config.links_max = Some(2);
    let disk = SimDisk::new(config);
    let mut driver = Driver::new(disk.io());
    driver.create(&entry("a"), b"1");
    let link = |to| Op::Link {
        from: entry("a"),
        to: entry(to),
    };
    driver.ok(link("b"));
    assert_eq!(driver.errno(link("c")), libc::EMLINK);
    disk.configure(|config| config.inodes_max = Some(2));
    let make = || Op::MakeDir { path: entry("d") };
    assert_eq!(driver.errno(make()), libc::ENOSPC);
    disk.configure(|config| {
        config.inodes_max = None;
        config.capacity_bytes = Some(1);
        config.full_errno = libc::EDQUOT;
    });
    driver.ok(make());
    let op = Op::LogCreate {
        path: entry("e"),
        bytes: 4096,
    };
    assert_eq!(driver.errno(op), libc::EDQUOT);
    assert_eq!(disk.faults(), 3);
}

#[test]
fn a_sector_that_is_lost_or_misdirected_is_remembered_as_a_wound() {
    let (mut lost, mut elsewhere) = (0, 0);
    for seed in 0..100 {
        for how in [Sector::Lost, Sector::Misdirected] {
            let mut config = SimConfig::new(seed);
            config.sector_at = Some((2, how));
            let (disk, mut driver, file) = log_disk(config);
            disk.put(&entry("other"), &[7; 1500]);
            assert!(driver.run(log_write(file, 1)).is_ok());
            assert!(disk.wounds().is_empty());
            assert!(driver.run(log_write(file, 2)).is_ok());
            let log = disk.read(&RelPath::log_file(0, 1)).unwrap();
            let other = disk.read(&entry("other")).unwrap();
            let wounds = disk.wounds();
            let in_log = wounds
                .iter()
                .filter(|wound| wound.path == "log/00/0001.log");
            assert!(in_log.count() > 0);
            let kept: Vec<_> = log
                .chunks(512)
                .filter(|sector| **sector == [1; 512])
                .collect();
            lost += usize::from(kept.len() == 1);
            let hit = other.contains(&2);
            assert!(!hit || how == Sector::Misdirected);
            assert_eq!(hit, wounds.iter().any(|wound| wound.path == "other"));
            elsewhere += usize::from(hit);
        }
    }
    assert!(lost > 150 && elsewhere > 10, "{lost} {elsewhere}");
}

#[test]
fn a_buffered_sector_is_lost_behind_the_cache() {
    let mut config = SimConfig::new(3);
    config.sector_at = Some((1, Sector::Lost));
    let mut disk = SimDisk::new(config);
    let mut driver = Driver::new(disk.io());
    let file = driver.create(&entry("f"), &[9; 2000]);
    driver.ok(Op::Sync { file });
    driver.ok(Op::SyncTree);
    assert_eq!(driver.read(file, 0, 2000), [9; 2000]);
    let image = disk.crash(Crash::PowerCut);
    let found = image.read(&entry("f")).unwrap();
    assert_eq!(found.len(), 2000);
    let zeros = found.split(|byte| *byte != 0).map(<[u8]>::len).max();
    assert!((400..=512).contains(&zeros.unwrap()), "{zeros:?}");
    assert_eq!(image.wounds().len(), 1);
}

#[test]
fn a_bad_sector_fails_its_readers_until_it_is_written() {
    let disk = SimDisk::new(SimConfig::new(1));
    disk.put(&entry("f"), &[1; 2000]);
    assert!(disk.spoil(&entry("f"), 700));
    assert!(!disk.spoil(&entry("f"), 2000));
    let mut driver = Driver::new(disk.io());
    let (file, _) = driver.open(&entry("f"), OpenMode::Edit);
    assert_eq!(driver.read(file, 0, 512), [1; 512]);
    let read = || Op::Read {
        file,
        offset: 512,
        len: 1,
    };
    assert_eq!(driver.errno(read()), libc::EIO);
    assert!(!disk.is_readable(&entry("f"), 0, 2000));
    let data = Bytes::from(vec![2; 512]);
    driver.ok(Op::Write {
        file,
        offset: 512,
        data,
    });
    assert!(driver.run(read()).is_ok());
    assert!(disk.is_readable(&entry("f"), 0, 2000));
}

#[test]
fn a_harsh_device_garbles_a_block_of_a_file_that_it_wrote() {
    let mut garbled = 0;
    for seed in 0..200 {
        let mut config = SimConfig::new(seed);
        config.harsh = Harsh::Yes;
        let mut disk = SimDisk::new(config);
        disk.put(&entry("f"), &[1; 10_000]);
        let mut driver = Driver::new(disk.io());
        let (file, _) = driver.open(&entry("f"), OpenMode::Edit);
        let data = Bytes::from(vec![2; 100]);
        driver.ok(Op::Write {
            file,
            offset: 5000,
            data,
        });
        let image = disk.crash(Crash::PowerCut);
        let found = image.read(&entry("f")).unwrap();
        assert!(found[..4096].iter().chain(&found[8192..]).all(|b| *b == 1));
        let bad = found.iter().any(|byte| ![1, 2].contains(byte));
        assert_eq!(bad, !image.wounds().is_empty());
        garbled += usize::from(bad);
    }
    assert!((5..100).contains(&garbled), "{garbled}");
}

#[test]
fn what_is_in_flight_at_a_drop_is_counted() {
    let disk = SimDisk::new(SimConfig::new(1));
    let mut io = disk.io();
    io.submit(Op::SyncTree, crate::io::Token(1)).unwrap();
    io.poll(&mut Vec::new());
    assert_eq!((disk.in_flight(), disk.dropped()), (1, 0));
    drop(io);
    assert_eq!((disk.in_flight(), disk.dropped()), (0, 1));
}

#[test]
fn a_lost_log_write_is_confirmed_and_not_done() {
    let mut config = SimConfig::new(1);
    config.lost_write_at = Some(1);
    let (_disk, mut driver, file) = log_disk(config);
    assert!(driver.run(log_write(file, 9)).is_ok());
    assert_eq!(driver.log_read(file, 0, 4096).0, [0]);
    assert!(driver.run(log_write(file, 9)).is_ok());
    assert_eq!(driver.log_read(file, 0, 4096).0, [9]);
}

#[test]
fn rot_is_seen_by_readers_and_survives() {
    let mut disk = SimDisk::new(SimConfig::new(1));
    disk.put(&entry("d").entry("f").unwrap(), b"abc");
    let path = entry("d").entry("f").unwrap();
    assert!(disk.flip(&path, 1, 1));
    assert!(!disk.flip(&path, 3, 1));
    assert!(!disk.flip(&entry("none"), 0, 1));
    let image = disk.crash(Crash::PowerCut);
    assert_eq!(image.read(&path).unwrap(), b"acc");
    let expected = [("d".to_owned(), None), ("d/f".to_owned(), Some(3))];
    assert_eq!(image.tree(), expected);
    assert_eq!(image.list(&entry("d")), [("f".to_owned(), 3)]);
}

#[test]
fn a_frozen_disk_answers_everything_with_eio() {
    let disk = SimDisk::new(SimConfig::new(1).crash_at(2));
    let mut driver = Driver::new(disk.io());
    driver.ok(Op::MakeDir { path: entry("a") });
    assert!(!disk.is_crashed());
    assert_eq!(driver.errno(Op::MakeDir { path: entry("b") }), libc::EIO);
    assert!(disk.is_crashed());
    assert_eq!(driver.errno(Op::SyncTree), libc::EIO);
    let list = Op::ListDir {
        path: RelPath::root(),
    };
    assert_eq!(driver.errno(list), libc::EIO);
    assert_eq!(disk.tree(), [("a".to_owned(), None)]);
}

#[test]
fn virtual_time_drives_what_is_due() {
    let disk = SimDisk::new(SimConfig::new(1));
    disk.configure(|config| config.poll_ns = 0);
    let mut io = disk.io();
    io.submit(Op::SyncTree, crate::io::Token(1)).unwrap();
    let mut out = Vec::new();
    for _ in 0..10 {
        io.poll(&mut out);
    }
    assert!(out.is_empty());
    let due = disk.next_due_ns().unwrap();
    disk.advance(due - disk.now_ns() - 1);
    io.poll(&mut out);
    assert!(out.is_empty());
    disk.advance(1);
    io.poll(&mut out);
    assert!(matches!(out[0].result, Ok(Done::Nothing)));
    assert_eq!(disk.next_due_ns(), None);
}
