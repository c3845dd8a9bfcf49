//! Random lives: mail, expunges, flags, compactions, checkpoints, restarts and crashes in any order,
//! against a model that knows what was acknowledged. The seed is in the failure.

use std::collections::{BTreeMap, BTreeSet};

use ringpost_engine::config::{CheckpointSync, ShardConfig};
use ringpost_engine::format::info::SpecialUse;
use ringpost_engine::io::sim::{Crash, Model, SimConfig};
use ringpost_engine::request::{
    Event, MailboxChange, Outcome, QuotaLimits, Request, Ticket, UidRange, UidSet,
};
use ringpost_netproto::id::{MailboxId, Uid};

use super::testkit::{Bench, empty_disk, guid, message, user};
use super::{BOB, append, assert_sound, compact, expunge, files, store_flags};

/// What the mailbox must hold, and what it may.
#[derive(Default)]
struct Expected {
    /// Number and flags of each acknowledged message that was not expunged, by uid.
    there: BTreeMap<u32, (u64, u32)>,
    /// Messages whose append was not answered before a crash.
    perhaps: BTreeSet<u64>,
    /// Uids whose expunge was not answered.
    perhaps_gone: Vec<UidRange>,
    /// Flags that were not acknowledged.
    perhaps_flags: Vec<(UidRange, u32)>,
    /// Above every uid ever seen.
    uidnext: u32,
    highest_modseq: u64,
}

/// A request that is not answered.
enum Asked {
    Append(u64),
    Expunge(Vec<UidRange>),
    Flags(Vec<UidRange>, u32),
    Move(Vec<UidRange>),
    Other,
}

fn size_of(number: u64) -> usize {
    match number % 4 {
        0 => 200,
        1 => 700,
        2 => 1_500,
        _ if is_large(number) => 9_000,
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
            // Which messages there were when it was decided, only the answer knows.
            (
                Asked::Expunge(_),
                Event::Expunged {
                    result: Ok(done), ..
                },
            ) => {
                self.there
                    .retain(|uid, _| !done.uids.contains(Uid::new(*uid)));
            }
            (
                Asked::Move(_),
                Event::Copied {
                    result: Ok(done), ..
                },
            ) => {
                for (uid, _) in &done.pairs {
                    self.there.remove(&uid.value());
                }
            }
            (
                Asked::Flags(_, flags),
                Event::FlagsStored {
                    result: Ok(done), ..
                },
            ) => {
                for (uid, (_, known)) in &mut self.there {
                    if done.uids.contains(Uid::new(*uid)) {
                        *known = flags;
                    }
                }
            }
            (asked, _) => self.unanswered(asked),
        }
    }

    /// What was asked when the disk stopped may have happened.
    fn unanswered(&mut self, asked: Asked) {
        match asked {
            Asked::Append(number) => {
                self.perhaps.insert(number);
            }
            Asked::Expunge(ranges) | Asked::Move(ranges) => self.perhaps_gone.extend(ranges),
            Asked::Flags(ranges, flags) => {
                let ranges = ranges.into_iter();
                self.perhaps_flags
                    .extend(ranges.map(|range| (range, flags)));
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
                found.contains_key(uid)
                    || self
                        .perhaps_gone
                        .iter()
                        .any(|range| range.contains(Uid::new(*uid))),
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
                let perhaps = |(range, flags): &(UidRange, u32)| {
                    range.contains(entry.uid) && *flags == entry.flags
                };
                assert!(
                    entry.flags == *flags || self.perhaps_flags.iter().any(perhaps),
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

fn is_large(number: u64) -> bool {
    number % 12 == 3
}

/// What a mail client does beside.
fn client(rng: &mut fastrand::Rng, bench: &Bench, expected: &Expected) -> (Request, Asked) {
    let name = user(BOB);
    let to = one_of(rng, [2, 3, 4, 5]);
    let uids = some_uids(rng, expected);
    let ranges = uids.ranges().to_vec();
    let snapshots = bench.events.iter().filter_map(|event| match event {
        Event::SnapshotOpened { result, .. } => Some(result.as_ref().ok()?.id),
        _ => None,
    });
    let request = match rng.u8(..6) {
        0 => {
            let request = Request::Move {
                user: name,
                from: MailboxId::INBOX,
                uids,
                to: MailboxId::new(to),
            };
            return (request, Asked::Move(ranges));
        }
        1 => Request::Copy {
            user: name,
            from: MailboxId::INBOX,
            uids,
            to: MailboxId::new(to),
            quota: QuotaLimits::default(),
        },
        2 => Request::Mailbox {
            user: name,
            change: MailboxChange::Create {
                name: format!("folder {}", rng.u8(..4)),
                special_use: SpecialUse::None,
            },
        },
        3 => Request::Mailbox {
            user: name,
            change: MailboxChange::Delete {
                mailbox: MailboxId::new(to),
            },
        },
        4 => Request::SnapshotOpen {
            user: name,
            mailbox: MailboxId::INBOX,
        },
        _ => match snapshots.last() {
            Some(snapshot) => Request::SnapshotClose { snapshot },
            None => Request::Checkpoint,
        },
    };
    (request, Asked::Other)
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

/// Takes in what was answered.
fn take_in(bench: &Bench, expected: &mut Expected, open: &mut BTreeMap<Ticket, Asked>) {
    for event in &bench.events {
        if let Some(asked) = super::ticket_of(event).and_then(|ticket| open.remove(&ticket)) {
            expected.answered(asked, event);
        }
    }
}

fn one_life(
    bench: &mut Bench,
    rng: &mut fastrand::Rng,
    expected: &mut Expected,
    next_number: &mut u64,
) {
    let mut open: BTreeMap<Ticket, Asked> = BTreeMap::new();
    for _step in 0..rng.u32(20..120) {
        let (request, asked) = match rng.u8(..26) {
            0..=11 => {
                *next_number += 1;
                let number = *next_number;
                if is_large(number) {
                    bench.settle();
                    take_in(bench, expected, &mut open);
                    let text = message(number, size_of(number));
                    match bench.try_deliver_large(&[BOB], number, &text).as_deref() {
                        Some([Outcome::Stored { uid, .. }]) => {
                            expected.there.insert(uid.value(), (number, 0));
                        }
                        _ => drop(expected.perhaps.insert(number)),
                    }
                    continue;
                }
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
            20..=21 => client(rng, bench, expected),
            _ => {
                for _turn in 0..rng.u32(1..40) {
                    bench.poll();
                    bench.pass_time();
                }
                // One change after the other, so that the model knows their order.
                bench.settle();
                take_in(bench, expected, &mut open);
                continue;
            }
        };
        // What changes messages is decided on what was answered before.
        if !matches!(asked, Asked::Other) {
            bench.settle();
            take_in(bench, expected, &mut open);
        }
        if bench.disk.is_crashed() {
            break;
        }
        if let Request::SnapshotClose { .. } = request {
            let now = bench.now();
            drop(bench.shard.submit(now, request));
        } else if let Ok(ticket) = bench.submit(request) {
            open.insert(ticket, asked);
        }
        for _turn in 0..rng.u32(..6) {
            bench.poll();
            bench.pass_time();
        }
    }
    bench.settle();
    take_in(bench, expected, &mut open);
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
    // 551: mail in flight for a sealed segment whose last message was just expunged.
    for seed in [28, 551] {
        lives(seed);
    }
}
