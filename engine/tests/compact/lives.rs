//! Random lives: mail, expunges, flags, compactions, checkpoints, restarts and crashes in any order,
//! against a model that knows what was acknowledged. The seed is in the failure.

use std::collections::{BTreeMap, BTreeSet};

use ringpost_engine::config::{CheckpointSync, ShardConfig};
use ringpost_engine::io::sim::{Crash, Model, SimConfig};
use ringpost_engine::request::{Event, Outcome, Request, Ticket, UidRange, UidSet};

use super::testkit::{Bench, empty_disk, guid, message};
use super::{BOB, append, assert_sound, compact, expunge, files, store_flags};

/// What the mailbox must hold, and what it may.
#[derive(Default)]
struct Expected {
    /// Number and flags of each acknowledged message that was not expunged, by uid.
    there: BTreeMap<u32, (u64, u32)>,
    /// Messages whose append was not answered before a crash.
    perhaps: BTreeSet<u64>,
    /// Uids whose expunge was not answered.
    perhaps_gone: BTreeSet<u32>,
    /// Flags that were not acknowledged, by uid.
    perhaps_flags: BTreeMap<u32, u32>,
    /// Above every uid ever seen.
    uidnext: u32,
    highest_modseq: u64,
}

/// A request that is not answered.
enum Asked {
    Append(u64),
    Expunge(Vec<UidRange>),
    Flags(Vec<UidRange>, u32),
    Other,
}

fn size_of(number: u64) -> usize {
    match number % 4 {
        0 => 200,
        1 => 700,
        2 => 1_500,
        _ => 3_000,
    }
}

impl Expected {
    /// Takes an answer in.
    fn answered(&mut self, asked: Asked, event: &Event) {
        match (asked, event) {
            (Asked::Append(number), Event::Appended { outcomes, .. }) => match &outcomes[..] {
                [Outcome::Stored { uid, .. }] => {
                    self.there.insert(uid.value(), (number, 0));
                    assert!(uid.value() >= self.uidnext, "uid {uid:?} was given before");
                }
                [Outcome::Duplicate { .. }] => panic!("{number} is no duplicate"),
                _ => {
                    self.perhaps.insert(number);
                }
            },
            (Asked::Expunge(ranges), Event::Expunged { result, .. }) => {
                for range in ranges {
                    let uids = self.there.range(range.low..=range.high);
                    let uids: Vec<u32> = uids.map(|(uid, _)| *uid).collect();
                    for uid in uids {
                        if result.is_ok() {
                            self.there.remove(&uid);
                        } else {
                            self.perhaps_gone.insert(uid);
                        }
                    }
                }
            }
            (Asked::Flags(ranges, flags), Event::FlagsStored { result, .. }) => {
                for range in ranges {
                    for (uid, (_, known)) in self.there.range_mut(range.low..=range.high) {
                        if result.is_ok() {
                            *known = flags;
                        } else {
                            self.perhaps_flags.insert(*uid, flags);
                        }
                    }
                }
            }
            _ => {}
        }
    }

    /// What was asked when the disk stopped may have happened.
    fn unanswered(&mut self, asked: Asked) {
        match asked {
            Asked::Append(number) => {
                self.perhaps.insert(number);
            }
            Asked::Expunge(ranges) => {
                for range in ranges {
                    let uids = self.there.range(range.low..=range.high);
                    self.perhaps_gone.extend(uids.map(|(uid, _)| *uid));
                }
            }
            Asked::Flags(ranges, flags) => {
                for range in ranges {
                    let uids = self.there.range(range.low..=range.high);
                    self.perhaps_flags
                        .extend(uids.map(|(uid, _)| (*uid, flags)));
                }
            }
            Asked::Other => {}
        }
    }

    /// Holds the mailbox against this, and takes over what turned out.
    fn verify(&mut self, bench: &mut Bench, context: &str) {
        assert_sound(&bench.disk, context);
        let found = bench.mailbox(BOB);
        for (uid, (number, _)) in &self.there {
            assert!(
                found.contains_key(uid) || self.perhaps_gone.contains(uid),
                "{context}: {number} as uid {uid} is lost: {:?}",
                files(&bench.disk)
            );
        }
        let mut there = BTreeMap::new();
        for (uid, (id, bytes)) in &found {
            let known = self.there.get(uid).copied();
            let perhaps = || {
                let mut numbers = self.perhaps.iter();
                numbers
                    .find(|number| guid(**number) == *id)
                    .map(|number| (*number, 0))
            };
            let (number, flags) = known
                .or_else(perhaps)
                .unwrap_or_else(|| panic!("{context}: uid {uid} came back"));
            assert_eq!(guid(number), *id, "{context}: uid {uid}");
            assert_eq!(
                *bytes,
                message(number, size_of(number)),
                "{context}: {number}"
            );
            there.insert(*uid, (number, flags));
        }
        if let Ok(page) = bench.list(BOB) {
            for entry in &page.entries {
                let uid = entry.uid.value();
                let (_, flags) = there.get_mut(&uid).expect("listed above");
                let perhaps = self.perhaps_flags.get(&uid);
                assert!(
                    entry.flags == *flags || Some(&entry.flags) == perhaps,
                    "{context}: flags of uid {uid}"
                );
                *flags = entry.flags;
            }
            let status = page.status;
            assert!(
                status.uidnext >= self.uidnext,
                "{context}: UIDNEXT went back"
            );
            assert!(
                status.highest_modseq >= self.highest_modseq,
                "{context}: HIGHESTMODSEQ went back"
            );
            let above = there
                .keys()
                .next_back()
                .is_none_or(|uid| *uid < status.uidnext);
            assert!(above, "{context}: UIDNEXT is not above all");
            self.uidnext = status.uidnext;
            self.highest_modseq = status.highest_modseq;
            let count = usize::try_from(status.messages_count).expect("few");
            assert_eq!(count, there.len(), "{context}: counts");
        }
        self.there = there;
        self.perhaps.clear();
        self.perhaps_gone.clear();
        self.perhaps_flags.clear();
        assert_sound(&bench.disk, context);
    }
}

fn some_uids(rng: &mut fastrand::Rng, expected: &Expected) -> UidSet {
    let most = expected.there.keys().next_back().copied().unwrap_or(1);
    match rng.u8(..4) {
        0 => UidSet::all(),
        1 => UidSet::range(rng.u32(1..=most), rng.u32(1..=most)),
        _ => (1..=most)
            .filter(|_| rng.bool())
            .map(|uid| (uid, uid))
            .collect(),
    }
}

fn one_life(
    bench: &mut Bench,
    rng: &mut fastrand::Rng,
    expected: &mut Expected,
    next_number: &mut u64,
) {
    let mut open: BTreeMap<Ticket, Asked> = BTreeMap::new();
    let mut seen = bench.events.len();
    for _step in 0..rng.u32(20..120) {
        let (request, asked) = match rng.u8(..24) {
            0..=11 => {
                *next_number += 1;
                let number = *next_number;
                if let Ok(ticket) = append(bench, number, size_of(number)) {
                    open.insert(ticket, Asked::Append(number));
                }
                continue;
            }
            12..=14 => {
                let uids = some_uids(rng, expected);
                let ranges = uids.ranges().to_vec();
                (expunge(uids), Asked::Expunge(ranges))
            }
            15..=16 => {
                let uids = some_uids(rng, expected);
                let ranges = uids.ranges().to_vec();
                let flags = rng.u32(..32);
                (store_flags(flags, uids), Asked::Flags(ranges, flags))
            }
            17..=18 => (compact(), Asked::Other),
            19 => (Request::Checkpoint, Asked::Other),
            _ => {
                for _turn in 0..rng.u32(1..40) {
                    bench.poll();
                    bench.pass_time();
                }
                // One change after the other, so that the model knows their order.
                bench.settle();
                for event in bench.events.get(seen..).unwrap_or_default() {
                    if let Some(asked) = super::ticket_of(event).and_then(|t| open.remove(&t)) {
                        expected.answered(asked, event);
                    }
                }
                seen = bench.events.len();
                continue;
            }
        };
        // What changes messages is decided on what was answered before.
        if !matches!(asked, Asked::Other) {
            bench.settle();
            for event in bench.events.get(seen..).unwrap_or_default() {
                if let Some(asked) = super::ticket_of(event).and_then(|t| open.remove(&t)) {
                    expected.answered(asked, event);
                }
            }
            seen = bench.events.len();
        }
        if bench.disk.is_crashed() {
            break;
        }
        if let Ok(ticket) = bench.submit(request) {
            open.insert(ticket, asked);
        }
        for _turn in 0..rng.u32(..6) {
            bench.poll();
            bench.pass_time();
        }
    }
    bench.settle();
    for event in bench.events.get(seen..).unwrap_or_default() {
        if let Some(asked) = super::ticket_of(event).and_then(|t| open.remove(&t)) {
            expected.answered(asked, event);
        }
    }
    for (_, asked) in open {
        expected.unanswered(asked);
    }
}

fn one_of<T: Copy, const N: usize>(rng: &mut fastrand::Rng, of: [T; N]) -> T {
    rng.choice(of).expect("there is something to choose")
}

fn lives(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut config = SimConfig::new(seed);
    config.model = if rng.bool() { Model::Ext4 } else { Model::Weak };
    config.slow_one_in = one_of(&mut rng, [0, 10, 50]);
    config.short_one_in = one_of(&mut rng, [0, 7]);
    let shard = ShardConfig {
        checkpoint_sync: one_of(
            &mut rng,
            [
                CheckpointSync::Auto,
                CheckpointSync::Tree,
                CheckpointSync::PerFile,
            ],
        ),
        compact_bytes_min: one_of(&mut rng, [1, 2 << 10, 1 << 40]),
        compact_bytes_per_s: one_of(&mut rng, [64 << 10, 64 << 20]),
        ..ShardConfig::tiny()
    };
    let mut image = empty_disk(config);
    let mut expected = Expected::default();
    let mut next_number = 0;
    for life in 0..6 {
        let context = format!("seed {seed}, life {life}");
        let opened = Bench::on(image.clone(), shard.clone());
        let mut bench = opened.unwrap_or_else(|error| panic!("{context}: {error}"));
        expected.verify(&mut bench, &context);
        if rng.u8(..4) == 0 {
            one_life(&mut bench, &mut rng, &mut expected, &mut next_number);
            bench.drain();
            image = bench.disk.clone();
            continue;
        }
        let base = bench.disk.changes();
        let crash_at = base + rng.u64(1..300);
        bench
            .disk
            .configure(|config| config.crash_at = Some(crash_at));
        one_life(&mut bench, &mut rng, &mut expected, &mut next_number);
        let kind = if rng.bool() {
            Crash::PowerCut
        } else {
            Crash::Kill
        };
        image = bench.disk.crash(kind);
    }
    let mut bench = Bench::on(image, shard).expect("opens");
    expected.verify(&mut bench, &format!("seed {seed}, the end"));
}

#[test]
fn random_lives() {
    for seed in 1..=60 {
        lives(seed);
    }
}

/// Seeds that found something once.
#[test]
fn pinned_lives() {
    for seed in [] {
        lives(seed);
    }
}
