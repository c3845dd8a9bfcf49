//! A crash at each change of the disk while a user is compacted and mail arrives for it: what is there
//! afterwards is the old generation or the new one, whole.

use std::collections::BTreeMap;

use ringpost_engine::canary::{Canary, plant};
use ringpost_engine::config::{CheckpointSync, ShardConfig};
use ringpost_engine::io::sim::{Crash, Model, SimConfig, SimDisk};
use ringpost_engine::request::{Event, Outcome, Request, UidSet};

use super::testkit::{Bench, empty_disk, guid, message};
use super::{
    BOB, Mailbox, append, assert_sound, by_request, compact, compacted, expunge, expunged, files,
    files_of, store_flags,
};

/// Numbers of the messages that arrive while the compaction runs.
const ARRIVING: std::ops::Range<u64> = 100..114;

/// Bytes of each.
const ARRIVING_BYTES: usize = 700;

/// One of the old messages that is expunged while the compaction runs.
const LATE_UID: u32 = 15;

/// A user with garbage in a sealed segment, the active one and a file of its own, checkpointed.
fn prepared(config: SimConfig) -> (SimDisk, Mailbox) {
    let disk = empty_disk(config);
    let mut bench = Bench::on(disk.clone(), by_request()).expect("an empty store opens");
    for number in 0..20 {
        bench.deliver(&[BOB], number, &message(number, 900));
    }
    bench.deliver_large(&[BOB], 20, &message(20, 9_000));
    bench.deliver_large(&[BOB], 21, &message(21, 9_000));
    bench.checkpoint();
    let gone = [(3, 11), (18, 18), (21, 21)].into_iter().collect();
    expunged(&mut bench, gone).expect("expunged");
    let flags = bench.submit(store_flags(1, UidSet::range(1, 14)));
    flags.expect("taken");
    bench.settle();
    let before = bench.mailbox(BOB);
    bench.drain();
    (disk, before)
}

/// What the caller was told.
#[derive(Default)]
struct Told {
    /// Number and uid of each message.
    stored: BTreeMap<u64, u32>,
    late_is_gone: bool,
}

/// Mail and an expunge while a compaction runs, then a checkpoint.
fn run(bench: &mut Bench) -> Told {
    let mut tickets = BTreeMap::new();
    let mut expunges = Vec::new();
    for number in ARRIVING {
        if let Ok(ticket) = append(bench, number, ARRIVING_BYTES) {
            tickets.insert(ticket, number);
        }
        match number - ARRIVING.start {
            1 => drop(bench.submit(compact())),
            5 => expunges.extend(bench.submit(expunge(UidSet::range(LATE_UID, LATE_UID)))),
            12 => {
                bench.settle();
                drop(bench.submit(Request::Checkpoint));
                bench.settle();
            }
            _ => {}
        }
        for _turn in 0..6 {
            bench.poll();
            bench.pass_time();
        }
    }
    bench.settle();
    let mut told = Told::default();
    for event in &bench.events {
        match event {
            Event::Appended { ticket, outcomes } => {
                if let (Some(number), [Outcome::Stored { uid, .. }]) =
                    (tickets.get(ticket), &outcomes[..])
                {
                    told.stored.insert(*number, uid.value());
                }
            }
            Event::Expunged { ticket, result } => {
                told.late_is_gone |= expunges.contains(ticket) && result.is_ok();
            }
            _ => {}
        }
    }
    told
}

/// Everything that was acknowledged, nothing that was gone, no half of anything.
fn verify(bench: &mut Bench, before: &Mailbox, told: &Told, context: &str) {
    assert_sound(&bench.disk, context);
    let after = bench.mailbox(BOB);
    for (uid, mail) in before {
        if *uid == LATE_UID {
            assert!(
                !(told.late_is_gone && after.contains_key(uid)),
                "{context}: came back"
            );
        } else {
            assert_eq!(after.get(uid), Some(mail), "{context}: uid {uid}");
        }
    }
    for (number, uid) in &told.stored {
        let found = after.get(uid);
        let (found, bytes) = found.unwrap_or_else(|| panic!("{context}: {number} as {uid}"));
        assert_eq!(*found, guid(*number), "{context}: uid {uid}");
        assert_eq!(
            *bytes,
            message(*number, ARRIVING_BYTES),
            "{context}: {number}"
        );
    }
    for (uid, (found, _)) in &after {
        let known = before.contains_key(uid) || {
            let mut numbers = ARRIVING;
            numbers.any(|number| guid(number) == *found)
        };
        assert!(known, "{context}: uid {uid} came back");
    }
    let page = bench.list(BOB).expect("the mailbox can be listed");
    for entry in page.entries.iter().filter(|entry| entry.uid.value() <= 14) {
        assert_eq!(entry.flags, 1, "{context}: flags of {:?}", entry.uid);
    }
    assert_sound(&bench.disk, context);
}

/// After a crash: the store serves, a compaction runs through, and nothing is left over.
fn recover(
    image: SimDisk,
    shard: &ShardConfig,
    (before, told): (&Mailbox, &Told),
    context: &str,
    checkpoint_first: bool,
) {
    let opened = Bench::on(image, shard.clone());
    let mut bench = opened.unwrap_or_else(|error| panic!("{context}: {error}"));
    if checkpoint_first {
        bench.checkpoint();
    }
    verify(&mut bench, before, told, context);
    compacted(&mut bench).unwrap_or_else(|refused| panic!("{context}: {refused}"));
    bench.deliver(
        &[BOB],
        ARRIVING.end - 1,
        &message(ARRIVING.end - 1, ARRIVING_BYTES),
    );
    verify(&mut bench, before, told, context);
    bench.checkpoint();
    verify(&mut bench, before, told, context);
    bench.poll();
    let (disk, config) = (bench.disk.clone(), bench.config.clone());
    drop(bench);
    assert_eq!(files_of(&disk, ".part"), [""; 0], "{context}");
    let infos = files(&disk).into_iter();
    let infos = infos.filter(|(name, _)| name.starts_with("info."));
    assert_eq!(infos.count(), 1, "{context}: {:?}", files(&disk));
    let mut bench = Bench::on(disk, config).expect("it did before");
    verify(&mut bench, before, told, context);
}

fn crash_everywhere(model: Model, kind: Crash, shard: &ShardConfig) {
    let config = |seed| {
        let mut config = SimConfig::new(seed);
        config.model = model;
        config
    };
    let total = {
        let (disk, before) = prepared(config(7));
        let base = disk.changes();
        let mut bench = Bench::on(disk.clone(), shard.clone()).expect("opens");
        let told = run(&mut bench);
        assert_eq!(told.stored.len(), ARRIVING.count(), "{:?}", bench.events);
        assert!(told.late_is_gone);
        assert!(bench.shard.metrics().compactions > 0, "it has to be tested");
        verify(&mut bench, &before, &told, "without a crash");
        disk.changes() - base
    };
    assert!(total > 60, "{total} changes are too few to mean anything");
    for change in 1..=total {
        let context = format!("{model:?}, {kind:?}, crash at change {change}");
        let (mut disk, before) = prepared(config(change));
        let base = disk.changes();
        disk.configure(|config| config.crash_at = Some(base + change));
        let mut told = Told::default();
        if let Ok(mut bench) = Bench::on(disk.clone(), shard.clone()) {
            told = run(&mut bench);
        }
        let mut image = disk.crash(kind);
        // Every third one crashes once more while it recovers.
        if change.is_multiple_of(3) {
            let again = image.changes() + change % 23 + 1;
            image.configure(|config| config.crash_at = Some(again));
            if let Ok(mut bench) = Bench::on(image.clone(), shard.clone()) {
                drop(bench.submit(Request::Checkpoint));
                drop(bench.submit(compact()));
                bench.settle();
            }
            image = image.crash(kind);
        }
        recover(
            image,
            shard,
            (&before, &told),
            &context,
            change.is_multiple_of(2),
        );
    }
}

fn with_sync(checkpoint_sync: CheckpointSync) -> ShardConfig {
    ShardConfig {
        checkpoint_sync,
        ..ShardConfig::tiny()
    }
}

#[test]
fn every_crash_point_ext4_power_cut() {
    crash_everywhere(Model::Ext4, Crash::PowerCut, &ShardConfig::tiny());
}

#[test]
fn every_crash_point_weak_power_cut_each_file_synced() {
    let shard = with_sync(CheckpointSync::PerFile);
    crash_everywhere(Model::Weak, Crash::PowerCut, &shard);
}

#[test]
fn every_crash_point_weak_power_cut_all_synced_at_once() {
    let shard = with_sync(CheckpointSync::Tree);
    crash_everywhere(Model::Weak, Crash::PowerCut, &shard);
}

#[test]
fn every_crash_point_kill() {
    crash_everywhere(Model::Ext4, Crash::Kill, &ShardConfig::tiny());
}

/// A rig that misses a planted bug proves nothing.
#[test]
fn each_planted_bug_is_found() {
    let planted = [
        Canary::OldUnlinkedEarly,
        Canary::LastDeltaLeftOut,
        Canary::OldEntriesRedone,
        Canary::SwapPassed,
        Canary::PartRenamedEarly,
        Canary::SwapDropsBytes,
    ];
    for canary in planted {
        let found = [
            (Model::Weak, Crash::PowerCut, CheckpointSync::PerFile),
            (Model::Ext4, Crash::Kill, CheckpointSync::Auto),
        ]
        .into_iter()
        .any(|(model, kind, sync)| {
            let run = std::panic::catch_unwind(|| {
                plant(Some(canary));
                crash_everywhere(model, kind, &with_sync(sync));
            });
            plant(None);
            run.is_err()
        });
        assert!(found, "{} was not found", canary.name());
    }
}
