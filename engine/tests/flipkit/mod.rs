//! A small store, damaged in one place at a time, repaired, opened, and compared with what it held. For
//! the test that does some places and the example that does all.
#![allow(
    dead_code,
    clippy::allow_attributes,
    reason = "test and example each use their own part of the kit; an expect would fail in the other"
)]

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ringpost_engine::config::ShardConfig;
use ringpost_engine::io::RelPath;
use ringpost_engine::io::sim::{SimConfig, SimDisk};
use ringpost_engine::repair::{Repaired, plan, repair};
use ringpost_netproto::id::{Guid, WallNs};

use crate::testkit::{Bench, check_disk, message};

/// Who has mail in the store.
pub(crate) const USERS: [&str; 3] = ["bob", "eve", "dan"];

/// 2026-02-01T00:00:00Z.
const NOW: WallNs = WallNs::new(1_769_904_000_000_000_000);

/// Of a message of which not so much is left.
const UNKNOWN: Guid = Guid::new([0; 16]);

/// A path relative to the data directory.
pub(crate) fn path_of(name: &str) -> RelPath {
    name.split('/').fold(RelPath::root(), |dir, name| {
        dir.entry(name).expect("a name of the tree")
    })
}

/// All files of a store; a directory has no content.
#[derive(Clone, Default)]
pub(crate) struct Image(pub(crate) BTreeMap<String, Option<Vec<u8>>>);

impl Image {
    pub(crate) fn of(disk: &SimDisk) -> Self {
        let content = |(name, size): (String, Option<u64>)| {
            let bytes = size.map(|_| disk.read(&path_of(&name)).expect("listed"));
            (name, bytes)
        };
        Self(disk.tree().into_iter().map(content).collect())
    }

    pub(crate) fn disk(&self) -> SimDisk {
        let disk = SimDisk::new(SimConfig::new(1));
        for (name, bytes) in &self.0 {
            match bytes {
                Some(bytes) => disk.put(&path_of(name), bytes),
                None => disk.put_dir(&path_of(name)),
            }
        }
        disk
    }

    /// Names and sizes of the files.
    pub(crate) fn files(&self) -> Vec<(String, usize)> {
        let size = |(name, bytes): (&String, &Option<Vec<u8>>)| {
            Some((name.clone(), bytes.as_ref()?.len()))
        };
        self.0.iter().filter_map(size).collect()
    }

    pub(crate) fn bytes_mut(&mut self, name: &str) -> &mut Vec<u8> {
        let bytes = self.0.get_mut(name).expect("a file of the image");
        bytes.as_mut().expect("a file, not a directory")
    }
}

/// Small mail, mail for two, a large message, a checkpoint; then more of each in the log only, and a
/// frame that vouches for the last one.
pub(crate) fn small_store() -> Image {
    let mut bench = Bench::new(ShardConfig::tiny());
    let mut number = 0;
    for (round, bytes) in [300, 700].into_iter().enumerate() {
        for users in [&["bob"][..], &["bob", "eve"], &["eve"], &["bob"]] {
            number += 1;
            bench.deliver(users, number, &message(number, bytes));
        }
        number += 1;
        bench.deliver_large(&["bob", "eve"], number, &message(number, 5_000));
        if round == 0 {
            bench.checkpoint();
        }
    }
    number += 1;
    bench.deliver(&["dan"], number, &message(number, 300));
    idle(&mut bench);
    Image::of(&bench.disk)
}

/// Lets the shard write the frame that vouches for its last one.
pub(crate) fn idle(bench: &mut Bench) {
    let before = bench.disk.log_writes();
    for _turn in 0..1_000 {
        bench.poll();
        bench.pass_time();
        if bench.disk.log_writes() > before {
            break;
        }
    }
    bench.poll();
}

/// Every message, by user and uid.
pub(crate) type Mail = BTreeMap<(&'static str, u32), (Guid, Bytes)>;

/// What a store holds; it has to open.
pub(crate) fn mail(disk: SimDisk) -> Mail {
    let mut bench = Bench::on(disk, ShardConfig::tiny()).expect("a repaired store opens");
    let mut mail = Mail::new();
    for user in USERS {
        for (uid, found) in bench.mailbox(user) {
            mail.insert((user, uid), found);
        }
    }
    mail
}

/// How much was damaged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Damage {
    /// 512 bytes.
    Sector,
    /// Less, or whole files.
    Less,
}

/// What came of one damage.
#[derive(Clone, Debug)]
pub(crate) struct Verdict {
    /// Messages that are not there any more; several copies of one count once.
    pub(crate) missing: BTreeSet<Bytes>,
    pub(crate) repaired: Repaired,
}

/// Repairs a damaged store and compares it with what it held. Panics if anything is there that was
/// not, if a missing message was not named, or if a second repair finds something to do.
pub(crate) fn judge(image: &Image, held: &Mail, what: &str) -> Verdict {
    judge_after(image, held, what, Damage::Less)
}

/// As [`judge`], of a store that lost more than usual.
pub(crate) fn judge_after(image: &Image, held: &Mail, what: &str, damage: Damage) -> Verdict {
    let disk = image.disk();
    let planned = plan(&disk, NOW, &mut |_| {});
    let planned = planned.unwrap_or_else(|error| panic!("{what}: {error}"));
    let repaired = repair(&disk, disk.io(), NOW, &mut |_| {});
    let repaired = repaired.unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(planned, repaired, "{what}: a dry run told something else");
    let report = check_disk(&disk);
    assert!(
        report.is_sound(),
        "{what}: {:?} after {repaired:?}",
        report.findings
    );
    let again = plan(&disk, NOW, &mut |_| {}).expect("a repaired store can be repaired");
    assert!(again.is_nothing(), "{what}: {again:?} after {repaired:?}");
    let now = mail(disk);
    let mut missing = BTreeSet::new();
    for ((user, uid), (guid, bytes)) in held {
        if let Some(found) = now.get(&(*user, *uid)) {
            assert_eq!(&found.1, bytes, "{what}: {user} {uid}");
            continue;
        }
        missing.insert(bytes.clone());
        let named = repaired.lost.iter().any(|lost| {
            let found = (lost.lost.name.as_deref(), lost.lost.uid, lost.lost.guid);
            match found {
                (Some(name), found, UNKNOWN) => name == user.as_bytes() && found == *uid,
                (Some(name), found, id) => {
                    name == user.as_bytes() && id == *guid && (found == *uid || found == 0)
                }
                // The sector with the user's name is lost too.
                (None, found, id) => damage == Damage::Sector && found == *uid && id == *guid,
            }
        });
        assert!(named, "{what}: {user} {uid} is not named: {repaired:?}");
    }
    for (key, found) in &now {
        assert!(held.contains_key(key), "{what}: {key:?} {found:?} is new");
    }
    Verdict { missing, repaired }
}

/// Flips `mask` in one byte and judges.
pub(crate) fn flip(image: &Image, held: &Mail, (name, at, mask): (&str, usize, u8)) -> Verdict {
    let mut image = image.clone();
    let byte = image.bytes_mut(name).get_mut(at).expect("inside the file");
    *byte ^= mask;
    judge(&image, held, &format!("{name} at {at} ^ {mask:#04x}"))
}
