//! A backup taken to a moment since with the node's log: what was served then, no more and no less.
mod testkit;

use std::collections::BTreeMap;

use ringpost_engine::config::{ArchiveLimits, ShardConfig};
use ringpost_engine::io::RelPath;
use ringpost_engine::io::sim::{Crash, Fate, SimConfig, SimDisk};
use ringpost_engine::offline::{Offline, OfflineError, OfflineUser, PastError};
use ringpost_engine::request::{FlagOp, Request, UidSet};
use ringpost_netproto::id::{MailboxId, WallNs};
use testkit::backup::{copied, copied_of, turns};
use testkit::client::{flags, uids};
use testkit::{Bench, empty_disk, message, now_of, user};

const USERS: [&str; 3] = ["ann", "bob", "cyd"];

/// Large enough for any test.
const LIMITS: ArchiveLimits = ArchiveLimits {
    age_s: 1 << 40,
    bytes: 1 << 40,
};

fn archiving() -> ShardConfig {
    ShardConfig {
        archive: Some(LIMITS),
        ..ShardConfig::tiny()
    }
}

/// Of one message: uid, modseq, flags, keywords, and its text.
type Seen = (u32, u64, u32, u64, Vec<u8>);

/// All mailboxes of a user by name: id, uidvalidity, uidnext, keywords, and the messages.
type Mail = BTreeMap<String, (u32, u32, u32, Vec<String>, Vec<Seen>)>;

fn mail(found: &OfflineUser<'_>) -> Mail {
    let mut all = Mail::new();
    for status in found.mailboxes() {
        let page = found.list(status.mailbox, 0, 10_000).expect("it is listed");
        let mut messages = Vec::new();
        for entry in page.entries {
            let mut text = Vec::new();
            let fetched = found.fetch(status.mailbox, entry.uid, &mut |_, piece| {
                text.extend_from_slice(&piece);
                true
            });
            let uid = entry.uid.value();
            fetched.unwrap_or_else(|error| panic!("{} {uid}: {error}", status.name));
            let modseq = entry.modseq.value();
            messages.push((uid, modseq, entry.flags, entry.keywords, text));
        }
        let keywords = status.keywords.iter().map(ToString::to_string).collect();
        let numbers = (status.mailbox.value(), status.uidvalidity.value());
        let mailbox = (numbers.0, numbers.1, status.uidnext, keywords, messages);
        all.insert(status.name, mailbox);
    }
    all
}

/// What the directory says now.
fn present(disk: &SimDisk, name: &str) -> Option<Mail> {
    let offline = Offline::open(disk, &mut |_| {}).expect("STORE is whole");
    match offline.user(name.as_bytes()) {
        Ok(found) => Some(mail(&found)),
        Err(OfflineError::NoSuchUser) => None,
        Err(other) => panic!("{name}: {other}"),
    }
}

/// What backup and log say of a moment.
fn past(backup: &SimDisk, node: &SimDisk, name: &str, at: WallNs) -> Option<Mail> {
    let offline = Offline::open(backup, &mut |_| {}).expect("STORE is whole");
    match offline.user_at(name.as_bytes(), (node, at), &mut |_| {}) {
        Ok(found) => Some(mail(&found)),
        Err(PastError::Backup(OfflineError::NoSuchUser)) => None,
        Err(other) => panic!("{name}: {other}"),
    }
}

/// One thing that somebody does; refusals are fine.
fn act(bench: &mut Bench, random: &mut fastrand::Rng, number: &mut u64) {
    let name = *USERS.get(random.usize(..USERS.len())).expect("one of them");
    let known = bench.statuses(name).unwrap_or_default();
    let some = |random: &mut fastrand::Rng| {
        let count = known.len().max(1);
        known
            .get(random.usize(..count))
            .map(|status| status.mailbox)
    };
    let inbox = MailboxId::INBOX;
    let (from, to) = (some(random).unwrap_or(inbox), some(random).unwrap_or(inbox));
    let low = random.u32(1..12);
    let few = UidSet::range(low, low + random.u32(..3));
    *number += 1;
    match random.u32(..22) {
        0..7 => drop(bench.deliver(
            &[name],
            *number,
            &message(*number, random.usize(100..1_500)),
        )),
        7 => drop(bench.deliver(&USERS, *number, &message(*number, 300))),
        8..10 => {
            let text = message(*number, random.usize(5_000..9_000));
            drop(bench.try_deliver_large(&[name], *number, &text));
        }
        10..12 => drop(bench.expunge(name, from, few)),
        12 => drop(bench.store(
            name,
            from,
            few,
            FlagOp::Add,
            flags(1 << random.u32(..3), &[]),
        )),
        13 => {
            let word = format!("k{}", random.u32(..4));
            drop(bench.store(name, from, few, FlagOp::Replace, flags(0, &[&word])));
        }
        14 => drop(bench.create(name, &format!("F{}", random.u32(..4)))),
        15 => drop(bench.copy(name, from, few, to)),
        16 => drop(bench.move_to(name, from, few, to)),
        17 => drop(bench.rename(name, &format!("F{}", random.u32(..4)), "Moved")),
        18 if from != inbox && random.u32(..3) == 0 => drop(bench.delete(name, from)),
        19 => drop(bench.submit(Request::Compact { user: user(name) })),
        _ => bench.checkpoint(),
    }
    bench.settle();
}

/// A life, a backup, and a life behind it with looks at what is served; then each look again, from
/// backup and log alone.
fn look_back(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let disk = empty_disk(SimConfig::new(seed));
    let mut bench = Bench::on(disk, archiving()).expect("an empty store opens");
    let mut number = 0;
    for _act in 0..random.u32(..40) {
        act(&mut bench, &mut random, &mut number);
    }
    let backup = copied(&mut bench, seed + 1);
    let mut id = seed + 1;
    let own = USERS.map(|name| {
        id += 1;
        copied_of(&mut bench, id, Some(name))
    });
    let mut looks = Vec::new();
    for _look in 0..4 {
        for _act in 0..random.u32(..25) {
            act(&mut bench, &mut random, &mut number);
        }
        if random.u32(..4) == 0 {
            let kind = if random.bool() {
                Crash::PowerCut
            } else {
                Crash::Kill
            };
            bench = bench.crash(kind);
        }
        let at = now_of(&bench.disk).wall;
        looks.push((at, USERS.map(|name| present(&bench.disk, name))));
        bench.disk.advance(2_000_000);
    }
    turns(&mut bench, 50);
    for (number, (at, seen)) in looks.into_iter().enumerate() {
        for ((name, seen), own) in USERS.into_iter().zip(seen).zip(&own) {
            let context = format!("seed {seed}: look {number}: {name}");
            // One of the user alone, who may have come since.
            if let Some(own) = own {
                let found = past(own, &bench.disk, name, at);
                assert_eq!(found, seen, "{context}, by a backup of one user");
            }
            let found = past(&backup, &bench.disk, name, at);
            assert_eq!(found, seen, "{context}");
        }
    }
    assert!(bench.check().is_sound(), "seed {seed}");
}

#[test]
fn a_backup_is_taken_to_any_moment_since() {
    let fresh = fastrand::u64(1_000_000..);
    println!("fresh seed {fresh}");
    for seed in (0..60).chain(fresh..fresh + 20) {
        look_back(seed);
    }
}

#[test]
fn an_expunged_large_message_is_in_the_archive_until_it_is_too_old() {
    let mut bench = Bench::new(ShardConfig {
        archive: Some(ArchiveLimits {
            age_s: 100,
            ..LIMITS
        }),
        ..ShardConfig::tiny()
    });
    bench.deliver(&["bob"], 1, &message(1, 300));
    let backup = copied(&mut bench, 1);
    bench.deliver_large(&["bob"], 2, &message(2, 9_000));
    let at = now_of(&bench.disk).wall;
    bench.disk.advance(2_000_000);
    let before = present(&bench.disk, "bob").expect("it has mail");
    bench
        .expunge("bob", MailboxId::INBOX, uids(&[2]))
        .expect("it is there");
    bench.checkpoint();
    turns(&mut bench, 20);
    assert_eq!(
        testkit::client::large_files(&bench, "bob"),
        Vec::<String>::new()
    );
    assert_eq!(past(&backup, &bench.disk, "bob", at), Some(before));
    let kept = |bench: &Bench| {
        let names = bench.disk.list(&RelPath::archive_dir(0)).into_iter();
        names
            .filter(|(name, _)| name.strip_suffix(".mbox").is_some())
            .count()
    };
    assert_eq!(kept(&bench), 1);
    bench.disk.advance(101_000_000_000);
    bench.deliver(&["bob"], 3, &message(3, 300));
    turns(&mut bench, 20);
    assert_eq!(kept(&bench), 0, "it is too old");
}

#[test]
fn what_cannot_be_looked_at_is_said() {
    let mut bench = Bench::new(ShardConfig::tiny());
    bench.deliver(&["bob"], 1, &message(1, 300));
    let backup = copied(&mut bench, 1);
    let offline = Offline::open(&backup, &mut |_| {}).expect("STORE is whole");
    let at = WallNs::new(u64::MAX);
    let nobody = offline
        .user_at(b"eve", (&bench.disk, at), &mut |_| {})
        .err();
    assert_eq!(nobody, Some(PastError::Backup(OfflineError::NoSuchUser)));
    // Without an archive the log is written over sooner or later.
    for number in 2..200 {
        bench.deliver(&["bob"], number, &message(number, 1_000));
    }
    let hole = offline.user_at(b"bob", (&bench.disk, at), &mut |_| {});
    let hole = hole.err().expect("the log was recycled");
    assert!(matches!(hole, PastError::Hole(_)), "{hole}");
    assert!(hole.to_string().contains("take a newer one"), "{hole}");
}

/// A log file into which no frame came before two crashes was armed again, and the walk over the log
/// ended in front of it, though it went on: the past was served without what came since, and without a
/// word.
#[test]
fn files_that_stayed_empty_do_not_end_the_past() {
    for crashes in 0..5 {
        for drained in [false, true] {
            let mut bench =
                Bench::on(empty_disk(SimConfig::new(crashes)), archiving()).expect("opens");
            bench.deliver(&["bob"], 1, &message(1, 300));
            let backup = copied(&mut bench, 1);
            for number in 2..8 {
                bench.deliver(&["bob"], number, &message(number, 300));
                bench.checkpoint();
                turns(&mut bench, 20);
                for _crash in 0..crashes {
                    if drained {
                        bench.drain();
                    }
                    bench = bench.crash(Crash::Kill);
                    turns(&mut bench, 20);
                }
            }
            let at = now_of(&bench.disk).wall;
            let seen = present(&bench.disk, "bob");
            assert!(seen.is_some(), "it has mail");
            let found = past(&backup, &bench.disk, "bob", at);
            assert!(found == seen, "{crashes} crashes, drained: {drained}");
        }
    }
}

/// Only the archives of as many logs as there are now were looked into.
#[test]
fn a_large_message_is_found_in_the_archive_of_a_core_that_is_gone() {
    let mut bench = Bench::new(archiving());
    bench.deliver(&["bob"], 1, &message(1, 300));
    let backup = copied(&mut bench, 1);
    bench.deliver_large(&["bob"], 2, &message(2, 9_000));
    let at = now_of(&bench.disk).wall;
    bench.disk.advance(2_000_000);
    let before = present(&bench.disk, "bob").expect("it has mail");
    let gone = bench.expunge("bob", MailboxId::INBOX, uids(&[2]));
    gone.expect("it is there");
    bench.checkpoint();
    turns(&mut bench, 20);
    let node = SimDisk::new(SimConfig::new(1));
    for (name, size) in bench.disk.tree() {
        let path = |name: &str| {
            let names = name.split('/');
            names.fold(RelPath::root(), |dir, name| {
                dir.entry(name).expect("a name")
            })
        };
        let is_large = name.starts_with("archive/00/") && name.strip_suffix(".mbox").is_some();
        let to = if is_large {
            name.replace("archive/00/", "archive/05/")
        } else {
            name.clone()
        };
        match size {
            Some(_) => node.put(&path(&to), &bench.disk.read(&path(&name)).expect("listed")),
            None => node.put_dir(&path(&to)),
        }
    }
    assert_eq!(node.list(&RelPath::archive_dir(5)).len(), 1);
    assert_eq!(past(&backup, &node, "bob", at), Some(before));
}

/// Nobody looked into them any more, so they stayed for ever.
#[test]
fn archives_of_cores_that_are_gone_grow_too_old_as_well() {
    let config = |age_s| ShardConfig {
        archive: Some(ArchiveLimits { age_s, ..LIMITS }),
        ..ShardConfig::tiny()
    };
    let disk = empty_disk(SimConfig::new(1));
    disk.put_dir(&RelPath::archive_root());
    let now_s = now_of(&disk).wall.value() / 1_000_000_000;
    let of = |log_id, age_s| RelPath::archived(log_id, 7, now_s - age_s);
    for log_id in [1, 3] {
        disk.put_dir(&RelPath::archive_dir(log_id));
        disk.put(&of(log_id, 500), b"old");
        disk.put(&of(log_id, 10), b"new");
    }
    let mut bench = Bench::on(disk, config(100)).expect("it opens");
    bench.deliver_large(&["bob"], 1, &message(1, 9_000));
    turns(&mut bench, 20);
    let count = |bench: &Bench, log_id| bench.disk.list(&RelPath::archive_dir(log_id)).len();
    assert_eq!((count(&bench, 1), count(&bench, 3)), (1, 1));
    // What comes into its own archive is counted anew, and what is the others' is not forgotten.
    let gone = bench.expunge("bob", MailboxId::INBOX, UidSet::all());
    gone.expect("it is there");
    bench.checkpoint();
    turns(&mut bench, 20);
    assert_eq!(count(&bench, 0), 1);
    bench.disk.advance(95_000_000_000);
    bench.deliver(&["bob"], 2, &message(2, 300));
    turns(&mut bench, 20);
    assert_eq!((count(&bench, 1), count(&bench, 3)), (0, 0));
    assert_eq!(count(&bench, 0), 1, "it is younger");
}

/// A kill came when a log file had its name in the archive and the directory was not synced; the next opening
/// took the name for durable and unlinked the one in the log, and a power cut took the other.
#[test]
fn a_name_in_the_archive_that_a_kill_left_is_made_durable_before_the_other_goes() {
    for seed in 0..60 {
        let mut config = SimConfig::new(seed).weak();
        config.poll_ns = 1_000;
        let mut bench = Bench::on(empty_disk(config), archiving()).expect("opens");
        bench.deliver(&["bob"], 1, &message(1, 300));
        let backup = copied(&mut bench, 1);
        let archived = |bench: &Bench| bench.disk.list(&RelPath::archive_dir(0)).len();
        let had = archived(&bench);
        for number in 2..40 {
            bench.deliver(&["bob"], number, &message(number, 300));
        }
        assert_eq!(archived(&bench), had, "all are needed without a checkpoint");
        bench.submit(Request::Checkpoint).expect("taken");
        let mut polls = 0;
        while archived(&bench) == had {
            bench.poll();
            polls += 1;
            assert!(polls < 100_000, "nothing comes into the archive");
        }
        bench = bench.crash(Crash::Kill);
        turns(&mut bench, 5);
        bench = bench.crash(Crash::PowerCut);
        let at = now_of(&bench.disk).wall;
        let seen = present(&bench.disk, "bob");
        assert!(seen.is_some(), "it has mail");
        let found = past(&backup, &bench.disk, "bob", at);
        assert!(found == seen, "seed {seed}");
    }
}

/// The file of an expunged large message was renamed into the archive: a power cut kept the end of its old name
/// and not the new one.
#[test]
fn a_large_message_is_on_its_way_into_the_archive_when_the_power_goes() {
    for seed in 0..60 {
        let mut config = SimConfig::new(seed).weak();
        config.poll_ns = 1_000;
        config.fate = Fate::Least;
        let mut bench = Bench::on(empty_disk(config), archiving()).expect("opens");
        bench.deliver(&["bob"], 1, &message(1, 300));
        let backup = copied(&mut bench, 1);
        bench.deliver_large(&["bob"], 2, &message(2, 9_000));
        bench.checkpoint();
        let at = now_of(&bench.disk).wall;
        bench.disk.advance(2_000_000);
        let before = present(&bench.disk, "bob");
        let gone = bench.expunge("bob", MailboxId::INBOX, uids(&[2]));
        gone.expect("it is there");
        bench.submit(Request::Checkpoint).expect("taken");
        let large = |name: &(String, u64)| name.0.strip_suffix(".mbox").is_some();
        let mut polls = 0;
        while !bench.disk.list(&RelPath::archive_dir(0)).iter().any(large) {
            bench.poll();
            polls += 1;
            assert!(polls < 100_000, "nothing comes into the archive");
        }
        // Its checkpoint makes the names of the user durable, and with them the end of the old one.
        bench.deliver_large(&["bob"], 3, &message(3, 9_000));
        bench.checkpoint();
        bench = bench.crash(Crash::PowerCut);
        turns(&mut bench, 5);
        assert!(
            past(&backup, &bench.disk, "bob", at) == before,
            "seed {seed}"
        );
    }
}
