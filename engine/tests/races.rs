//! Races that the simulator found, made small: what was wrong is in each test's comment. Each failed
//! before its fix.

mod testkit;

use ringpost_engine::config::{CheckpointSync, ShardConfig};
use ringpost_engine::format::store_file::StoreId;
use ringpost_engine::format::superblock::Pair;
use ringpost_engine::io::RelPath;
use ringpost_engine::io::sim::{Crash, Fate, Harsh, SimConfig};
use ringpost_engine::request::{
    Event, MailboxChange, MonotonicNs, Notice, Outcome, QuotaLimits, Refused, Request, ScrubWhat,
    UidSet,
};
use ringpost_netproto::id::{MailboxId, Modseq};
use testkit::{Bench, empty_disk, message, user};

const BOB: &str = "bob";

fn no_damage_is_named(bench: &Bench, context: &str) {
    for event in &bench.events {
        let named = matches!(event, Event::Notice(Notice::Corrupt(_)));
        assert!(!named, "{context}: {event:?}");
    }
}

fn list() -> Request {
    Request::List {
        user: user(BOB),
        mailbox: MailboxId::INBOX,
        after: 0,
        entries_max: 100,
    }
}

/// Who read a mailbox whose first mail was being written was told that it needs repair: the user's
/// record was neither in a file nor pending yet.
#[test]
fn a_user_whose_first_mail_is_in_flight_is_not_damaged() {
    for turns in 0..20 {
        let mut bench = Bench::new(ShardConfig::tiny());
        bench.append(&[BOB], 1, &message(1, 300));
        for _turn in 0..turns {
            bench.poll();
            bench.pass_time();
        }
        bench.submit(list()).expect("taken");
        bench.settle();
        no_damage_is_named(&bench, &format!("after {turns} turns"));
        for event in &bench.events {
            if let Event::Listed { result, .. } = event {
                let fine = matches!(result, Ok(_) | Err(Refused::NoSuchUser));
                assert!(fine, "after {turns} turns: {result:?}");
            }
        }
        assert_eq!(bench.mailbox(BOB).len(), 1);
    }
}

/// A user that was loaded while a checkpoint wrote it was held for damaged: sizes of its segments were
/// of before, its index of after.
#[test]
fn a_load_beside_a_checkpoint_sees_one_of_two_states() {
    for seed in 0..300 {
        let mut config = SimConfig::new(seed);
        (config.slow_one_in, config.slow_factor) = (12, 3_000);
        let mut bench = Bench::on(empty_disk(config), ShardConfig::tiny()).expect("opens");
        bench.deliver(&[BOB], 1, &message(1, 300));
        bench.checkpoint();
        bench.deliver(&[BOB], 2, &message(2, 900));
        let mut bench = bench.crash(Crash::Kill);
        bench.submit(list()).expect("taken");
        for _turn in 0..seed % 4 {
            bench.poll();
            bench.pass_time();
        }
        bench.submit(Request::Checkpoint).expect("taken");
        bench.settle();
        no_damage_is_named(&bench, &format!("seed {seed}"));
        assert_eq!(bench.mailbox(BOB).len(), 2, "seed {seed}");
    }
}

/// A watch whose user was still being loaded when the shard began to drain got no answer.
#[test]
fn a_drain_answers_watches_whose_users_are_loaded_meanwhile() {
    let mut bench = Bench::new(ShardConfig::tiny());
    bench.deliver(&[BOB], 1, &message(1, 300));
    bench.checkpoint();
    let status = bench.status(BOB, MailboxId::INBOX);
    let mut bench = bench.crash(Crash::Kill);
    let watch = Request::Watch {
        user: user(BOB),
        mailbox: Some(MailboxId::INBOX),
        since: Modseq::new(status.highest_modseq),
    };
    let now = bench.now();
    let watch = bench.shard.submit(now, watch).expect("taken");
    bench.drain();
    for _turn in 0..50 {
        bench.poll();
        bench.pass_time();
    }
    assert_eq!(bench.woken(watch), Some(Err(Refused::Stopped)));
}

/// Polls that a shard asks for at once, one behind the other, while the disk has nothing to say.
fn polls_at_once(bench: &mut Bench) -> u32 {
    let mut most = 0;
    let mut count = 0;
    for _turn in 0..3_000 {
        bench.poll();
        let now = bench.disk.now_ns();
        let quiet = bench.disk.next_due_ns().is_none_or(|due| due > now);
        let deadline = bench.shard.next_deadline().map(MonotonicNs::value);
        let restless = quiet && deadline.is_some_and(|at| at <= now);
        count = if restless { count + 1 } else { 0 };
        most = most.max(count);
        bench.pass_time();
    }
    most
}

/// A look at free space that a slow disk did not answer was due again all the time: the core span.
#[test]
fn who_waits_for_a_slow_disk_does_not_spin() {
    let mut config = SimConfig::new(3);
    (config.slow_one_in, config.slow_factor) = (2, 50_000);
    let mut bench = Bench::on(empty_disk(config), ShardConfig::tiny()).expect("opens");
    for number in 1..12 {
        bench.append(&[BOB], number, &message(number, 300));
        assert!(polls_at_once(&mut bench) < 20, "mail {number}");
    }
}

/// While a drain waited for a compaction, a checkpoint was due all the time and could not begin.
#[test]
fn a_drain_that_waits_does_not_spin() {
    let config = ShardConfig {
        compact_bytes_min: 1,
        checkpoint_interval_ns: 1_000,
        ..ShardConfig::tiny()
    };
    for seed in 0..40 {
        let mut disk = SimConfig::new(seed);
        (disk.slow_one_in, disk.slow_factor) = (3, 2_000);
        let mut bench = Bench::on(empty_disk(disk), config.clone()).expect("opens");
        for number in 1..6 {
            bench.deliver(&[BOB], number, &message(number, 900));
        }
        bench.checkpoint();
        let expunged = bench.expunge(BOB, MailboxId::INBOX, UidSet::range(1, 3));
        expunged.expect("they are there");
        let user = user(BOB);
        bench.submit(Request::Compact { user }).expect("taken");
        for _turn in 0..seed {
            bench.poll();
            bench.pass_time();
        }
        bench.append(&[BOB], 7, &message(7, 300));
        bench.poll();
        bench.submit(Request::Drain).expect("taken");
        assert!(polls_at_once(&mut bench) < 20, "seed {seed}");
        bench.settle();
    }
}

/// A dedupe file that the first checkpoint had not finished was reported as damage.
#[test]
fn a_first_checkpoint_that_did_not_end_is_no_damage() {
    for change in 1..80 {
        let disk = empty_disk(SimConfig::new(change).weak());
        let mut bench = Bench::on(disk, ShardConfig::tiny()).expect("opens");
        bench.deliver(&[BOB], 1, &message(1, 300));
        let at = bench.disk.changes() + change;
        bench.disk.configure(|config| config.crash_at = Some(at));
        bench.submit(Request::Checkpoint).expect("taken");
        bench.settle();
        let mut bench = bench.crash(Crash::PowerCut);
        assert_eq!(bench.mailbox(BOB).len(), 1, "change {change}");
        no_damage_is_named(&bench, &format!("change {change}"));
    }
}

/// A compaction dropped the bytes of an expunged message that were in the log only, though a snapshot
/// still showed it.
#[test]
fn a_snapshot_keeps_bytes_that_are_in_the_log_only() {
    let config = ShardConfig {
        compact_bytes_min: 1 << 40,
        checkpoint_interval_ns: 1 << 60,
        ..ShardConfig::tiny()
    };
    let mut bench = Bench::new(config);
    bench.deliver(&[BOB], 1, &message(1, 300));
    bench.checkpoint();
    bench.deliver(&[BOB], 2, &message(2, 700));
    let snapshot = bench.snapshot(BOB, MailboxId::INBOX).expect("taken");
    let all = bench.expunge(BOB, MailboxId::INBOX, UidSet::all());
    all.expect("they are there");
    let user = user(BOB);
    bench.submit(Request::Compact { user }).expect("taken");
    bench.settle();
    let text = bench.snapshot_text(&snapshot, 2);
    assert_eq!(text.expect("it is kept"), message(2, 700));
    no_damage_is_named(&bench, "after the compaction");
}

/// A drain took no checkpoint while work was open, and the work was a copy that waited for one.
#[test]
fn a_drain_gives_room_to_the_copy_it_waits_for() {
    let config = ShardConfig {
        pending_records_max: 16,
        checkpoint_interval_ns: 1 << 60,
        ..ShardConfig::tiny()
    };
    let mut bench = Bench::new(config);
    for number in 1..40 {
        bench.deliver(&[BOB], number, &message(number, 1_500));
    }
    bench.checkpoint();
    let copy = Request::Copy {
        user: user(BOB),
        from: MailboxId::INBOX,
        uids: UidSet::all(),
        to: MailboxId::SENT,
        quota: QuotaLimits::default(),
    };
    let copy = bench.submit(copy).expect("taken");
    while bench.shard.metrics().pending_records == 0 {
        bench.poll();
        bench.pass_time();
    }
    bench.drain();
    let copied = bench.copied(copy).expect("it was begun");
    assert!(
        copied.failed.is_empty() && copied.pairs.len() == 39,
        "{copied:?}"
    );
}

/// A pass of the scrub that was due when a drain began stayed due until the drain ended.
#[test]
fn a_scrub_that_is_due_does_not_keep_a_drain_awake() {
    let config = ShardConfig {
        scrub_interval_ns: Some(1_000),
        checkpoint_interval_ns: 1 << 60,
        ..ShardConfig::tiny()
    };
    for seed in 0..20 {
        let mut disk = SimConfig::new(seed);
        (disk.slow_one_in, disk.slow_factor) = (2, 2_000);
        let mut bench = Bench::on(empty_disk(disk), config.clone()).expect("opens");
        bench.deliver(&[BOB], 1, &message(1, 900));
        bench.append(&[BOB], 2, &message(2, 900));
        bench.submit(Request::Drain).expect("taken");
        assert!(polls_at_once(&mut bench) < 20, "seed {seed}");
        bench.settle();
    }
}

/// Delivery ids that a killed process had written and not synced counted as saved: a power cut later,
/// after checkpoints and a drain, a retry was stored twice.
#[test]
fn ids_that_a_killed_process_left_in_the_cache_are_made_durable() {
    for change in 1..60 {
        let mut disk = SimConfig::new(change).weak();
        disk.fate = Fate::Least;
        let mut bench = Bench::on(empty_disk(disk), ShardConfig::tiny()).expect("opens");
        bench.deliver(&[BOB], 1, &message(1, 300));
        let at = bench.disk.changes() + change;
        bench.disk.configure(|config| config.crash_at = Some(at));
        bench.submit(Request::Checkpoint).expect("taken");
        bench.settle();
        let mut bench = bench.crash(Crash::Kill);
        bench.drain();
        let mut bench = bench.crash(Crash::PowerCut);
        let again = bench.deliver(&[BOB], 1, &message(1, 300));
        let known = matches!(again[..], [Outcome::Duplicate { .. }]);
        assert!(known, "change {change}: {again:?}");
        no_damage_is_named(&bench, &format!("change {change}"));
    }
}

/// A disk that keeps what was synced and nothing else: names only by a sync of their directory.
fn forgetful(seed: u64) -> SimConfig {
    let mut disk = SimConfig::new(seed).weak();
    disk.fate = Fate::Least;
    disk
}

/// BOB's first checkpoint ended by a kill before this change.
fn killed_in_first_checkpoint(change: u64, checkpoint_sync: CheckpointSync) -> Bench {
    let config = ShardConfig {
        checkpoint_sync,
        checkpoint_interval_ns: 1 << 60,
        ..ShardConfig::tiny()
    };
    let mut bench = Bench::on(empty_disk(forgetful(change)), config).expect("opens");
    bench.deliver(&[BOB], 1, &message(1, 300));
    bench.deliver(&[BOB], 2, &message(2, 900));
    let at = bench.disk.changes() + change;
    bench.disk.configure(|config| config.crash_at = Some(at));
    bench.submit(Request::Checkpoint).expect("taken");
    bench.settle();
    bench.crash(Crash::Kill)
}

/// A large message went into a directory that a killed process had made and not synced: its own
/// directory was durable, the name of that directory was not.
#[test]
fn a_large_message_is_not_put_into_a_directory_that_a_power_cut_may_take() {
    for checkpoint_sync in [CheckpointSync::PerFile, CheckpointSync::Tree] {
        for change in 1..30 {
            let mut bench = killed_in_first_checkpoint(change, checkpoint_sync);
            bench.deliver_large(&[BOB], 3, &message(3, 9_000));
            let mut bench = bench.crash(Crash::PowerCut);
            let report = bench.check();
            assert_eq!(bench.mailbox(BOB).len(), 3, "change {change}: {report:?}");
            no_damage_is_named(&bench, &format!("change {change}"));
        }
    }
}

/// The same while a checkpoint that made the directory was still to sync it.
#[test]
fn a_large_message_beside_a_first_checkpoint_survives() {
    let config = ShardConfig {
        checkpoint_sync: CheckpointSync::Tree,
        checkpoint_interval_ns: 1_000_000,
        ..ShardConfig::tiny()
    };
    let mut beside = 0;
    for seed in 0..60 {
        let mut disk = forgetful(seed);
        (disk.slow_one_in, disk.slow_factor) = (4, 20);
        let mut bench = Bench::on(empty_disk(disk), config.clone()).expect("opens");
        bench.deliver(&[BOB], 1, &message(1, 300));
        while bench.shard.metrics().materialised_users == 0 {
            bench.poll();
            bench.pass_time();
        }
        bench.deliver_large(&[BOB], 2, &message(2, 9_000));
        beside += u32::from(bench.shard.metrics().checkpoints == 0);
        let mut bench = bench.crash(Crash::PowerCut);
        assert_eq!(bench.mailbox(BOB).len(), 2, "seed {seed}");
        no_damage_is_named(&bench, &format!("seed {seed}"));
    }
    assert!(beside > 0, "no checkpoint was going on");
}

/// A drain ended before a watch whose user was still being loaded was answered.
#[test]
fn a_drain_does_not_leave_a_watch_behind() {
    let mut bench = Bench::new(ShardConfig::tiny());
    bench.deliver(&[BOB], 1, &message(1, 300));
    bench.checkpoint();
    let mut bench = bench.crash(Crash::Kill);
    bench.drain();
    let mut bench = bench.crash(Crash::Kill);
    let slow = |config: &mut SimConfig| (config.slow_one_in, config.slow_factor) = (1, 1_000_000);
    bench.disk.configure(slow);
    let watch = Request::Watch {
        user: user(BOB),
        mailbox: Some(MailboxId::INBOX),
        since: Modseq::new(1 << 60),
    };
    let now = bench.now();
    let watch = bench.shard.submit(now, watch).expect("taken");
    bench.poll();
    bench.disk.configure(|config| config.slow_one_in = 0);
    bench.drain();
    assert_eq!(bench.woken(watch), Some(Err(Refused::Stopped)));
}

/// On a full disk a shard tried to make another log file again and again, without a pause.
#[test]
fn a_full_disk_is_not_asked_for_log_files_all_the_time() {
    let mut config = SimConfig::new(1);
    config.trace = true;
    config.poll_ns = 200_000;
    let mut bench = Bench::on(empty_disk(config), ShardConfig::tiny()).expect("opens");
    bench.deliver(&[BOB], 1, &message(1, 300));
    bench.checkpoint();
    let files = u64::try_from(bench.disk.tree().len()).expect("few");
    bench
        .disk
        .configure(|config| config.inodes_max = Some(files));
    let tries = |bench: &Bench| bench.disk.trace().matches("create log/").count();
    let mut number = 2;
    while !bench.disk.trace().contains(".log 0 0 28") {
        bench.append(&[BOB], number, &message(number, 900));
        bench.settle();
        number += 1;
        assert!(number < 2_000, "the log never wants another file");
    }
    let (before, from) = (tries(&bench), bench.disk.now_ns());
    for _turn in 0..1_000 {
        bench.poll();
        bench.disk.advance(1_000);
    }
    let seconds = (bench.disk.now_ns() - from) / 1_000_000_000;
    let more = u64::try_from(tries(&bench) - before).expect("few");
    assert!(more <= seconds + 1, "{more} tries in {seconds} s");
}

/// A superblock that a killed process had on its way landed over the one of the process after it, whose
/// boot was forgotten: its salts and epochs would have come again.
#[test]
fn a_superblock_of_a_killed_process_does_not_land_on_a_later_one() {
    let mut landed = 0;
    for change in 1..40 {
        let mut bench = Bench::new(ShardConfig::tiny());
        bench.deliver(&[BOB], 1, &message(1, 300));
        let at = bench.disk.changes() + change;
        bench.disk.configure(|config| config.crash_at = Some(at));
        bench.submit(Request::Checkpoint).expect("taken");
        bench.settle();
        if !bench.disk.is_crashed() {
            break;
        }
        for fate in 0..16 {
            let image = bench.disk.crash(Crash::Kill);
            let mut next = Bench::on(image, ShardConfig::tiny()).expect("opens");
            for number in 2..20 {
                next.deliver(&[BOB], number, &message(number, 300));
            }
            let bytes = next
                .disk
                .read(&RelPath::superblock(0))
                .expect("it is there");
            let pair = Pair::open(&bytes, StoreId::new([9; 16]), 0).expect("it is whole");
            assert_eq!(pair.current.boots, 2, "change {change}, fate {fate}");
            landed += 1;
        }
    }
    assert!(landed > 100, "{landed} kills");
}

/// A power cut that garbled the block of the very first superblock left a store that did not open.
#[test]
fn a_first_superblock_that_was_garbled_is_made_again() {
    for change in 1..12 {
        let mut config = SimConfig::new(change);
        (config.harsh, config.crash_at) = (Harsh::Direct, Some(change));
        let mut disk = empty_disk(config);
        let opened = Bench::on(disk.clone(), ShardConfig::tiny());
        assert!(opened.is_err(), "change {change} is behind the opening");
        for fate in 0..32 {
            let found = disk.crash(Crash::PowerCut);
            let opened = Bench::on(found, ShardConfig::tiny());
            let error = opened.err();
            assert!(error.is_none(), "change {change}, fate {fate}: {error:?}");
        }
    }
}

/// The first checkpoint ended by a sync that failed and marked what it left behind as clean: the next
/// process found the delivery ids in the cache, synced them again and believed that.
#[test]
fn ids_that_a_failed_sync_left_in_the_cache_are_written_again() {
    let config = ShardConfig {
        checkpoint_sync: CheckpointSync::PerFile,
        checkpoint_interval_ns: 1 << 60,
        ..ShardConfig::tiny()
    };
    for sync in 1..16 {
        let mut bench = Bench::on(empty_disk(forgetful(sync)), config.clone()).expect("opens");
        bench.deliver(&[BOB], 1, &message(1, 300));
        let at = bench.disk.syncs() + sync;
        bench
            .disk
            .configure(|config| config.sync_error_at = Some(at));
        bench.submit(Request::Checkpoint).expect("taken");
        bench.settle();
        let mut bench = bench.crash(Crash::Kill);
        bench.drain();
        let mut bench = bench.crash(Crash::PowerCut);
        let again = bench.deliver(&[BOB], 1, &message(1, 300));
        let known = matches!(again[..], [Outcome::Duplicate { .. }]);
        assert!(known, "sync {sync}: {again:?}");
        no_damage_is_named(&bench, &format!("sync {sync}"));
    }
}

/// A log file that left the log for a backup, while a scrub had yet to read its header, was named as
/// damaged: its handle was closed.
#[test]
fn a_log_file_that_leaves_the_log_is_not_damage_to_a_scrub() {
    for turns in 0..60 {
        let mut bench = Bench::new(ShardConfig {
            scrub_bytes_per_s: 64 << 10,
            checkpoint_interval_ns: 1 << 60,
            pending_bytes_max: 1 << 20,
            pending_records_max: 1 << 10,
            log_files_max: 8,
            ..ShardConfig::tiny()
        });
        for number in 1..90 {
            bench.deliver(&[BOB], number, &message(number, 1_400));
        }
        let what = ScrubWhat::All;
        bench.submit(Request::Scrub { what }).expect("taken");
        for _turn in 0..turns {
            bench.poll();
            bench.pass_time();
        }
        let lease_ns = 1 << 50;
        let begin = Request::BackupBegin { id: 1, lease_ns };
        bench.submit(begin).expect("taken");
        for _turn in 0..400 {
            bench.poll();
            bench.pass_time();
        }
        let named = |event: &&Event| matches!(event, Event::Notice(Notice::Damaged(_)));
        let named = bench.events.iter().find(named);
        assert!(named.is_none(), "after {turns} turns: {named:?}");
    }
}

/// A killed delivery had made the directory of a new user and not synced its name. The next one found it there
/// and took it for durable.
#[test]
fn a_directory_that_a_killed_delivery_made_is_not_taken_for_durable() {
    let mut made = 0;
    for change in 1..16 {
        let disk = empty_disk(forgetful(change));
        let mut bench = Bench::on(disk, ShardConfig::tiny()).expect("opens");
        let at = bench.disk.changes() + change;
        bench.disk.configure(|config| config.crash_at = Some(at));
        bench.try_deliver_large(&[BOB], 1, &message(1, 9_000));
        let mut bench = bench.crash(Crash::Kill);
        let dir = RelPath::user_dir(user(BOB).partition(), user(BOB).hash(), 0);
        let names = bench.disk.tree();
        made += u32::from(names.iter().any(|(name, _)| *name == dir.to_string()));
        bench.deliver_large(&[BOB], 1, &message(1, 9_000));
        let mut bench = bench.crash(Crash::PowerCut);
        assert_eq!(bench.mailbox(BOB).len(), 1, "change {change}");
        no_damage_is_named(&bench, &format!("change {change}"));
    }
    assert!(made > 0, "no directory was left by a kill");
}

/// A segment of which nothing was left had room for one message more, and the next went into another one. A
/// change in the same frame, published before, saw a sealed segment with nothing in it, and its file went.
#[test]
fn a_segment_stays_for_a_message_that_is_about_to_be_seen() {
    let config = ShardConfig {
        segment_bytes_max: 8 << 10,
        compact_bytes_min: 1 << 40,
        checkpoint_interval_ns: 1 << 60,
        ..ShardConfig::tiny()
    };
    let mut bench = Bench::on(empty_disk(SimConfig::new(1)), config).expect("opens");
    for number in 1..4 {
        bench.deliver(&[BOB], number, &message(number, 1_800));
    }
    let expunged = bench.expunge(BOB, MailboxId::INBOX, UidSet::range(1, 3));
    expunged.expect("they are there");
    bench.checkpoint();
    let change = MailboxChange::Subscribe {
        mailbox: MailboxId::SENT,
    };
    bench
        .submit(Request::Mailbox {
            user: user(BOB),
            change,
        })
        .expect("taken");
    bench.append(&[BOB], 4, &message(4, 300));
    bench.append(&[BOB], 5, &message(5, 3_000));
    bench.settle();
    for _turn in 0..20 {
        bench.poll();
        bench.pass_time();
    }
    let mut bench = bench.crash(Crash::Kill);
    assert_eq!(bench.mailbox(BOB).len(), 2);
    no_damage_is_named(&bench, "after it");
}

/// A checkpoint had unlinked the file of a message that came and went, and did not end. When it was done again
/// while a backup ran, which keeps such files, it wanted to give the file its name.
#[test]
fn a_checkpoint_done_again_for_a_backup_misses_no_file_of_what_is_gone() {
    for change in 1..20 {
        let mut disk = SimConfig::new(change);
        disk.fate = Fate::Most;
        let config = ShardConfig {
            checkpoint_interval_ns: 1 << 60,
            ..ShardConfig::tiny()
        };
        let mut bench = Bench::on(empty_disk(disk), config).expect("opens");
        bench.deliver_large(&[BOB], 1, &message(1, 9_000));
        bench.deliver(&[BOB], 2, &message(2, 300));
        let gone = bench.expunge(BOB, MailboxId::INBOX, UidSet::range(1, 1));
        gone.expect("it is there");
        let at = bench.disk.changes() + change;
        bench.disk.configure(|config| config.crash_at = Some(at));
        bench.submit(Request::Checkpoint).expect("taken");
        bench.settle();
        let mut bench = bench.crash(Crash::PowerCut);
        bench.disk.configure(|config| config.crash_at = None);
        let lease_ns = 1_000_000_000_000;
        let answer = bench.ask(Request::BackupBegin { id: 1, lease_ns });
        let runs = matches!(answer, Some(Event::BackupBegun { result: Ok(_), .. }));
        assert!(runs, "change {change}: {answer:?}");
        bench.checkpoint();
        assert_eq!(bench.mailbox(BOB).len(), 1, "change {change}");
    }
}
