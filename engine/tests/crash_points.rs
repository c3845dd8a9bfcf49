//! A crash at every change of the disk, in two models of metadata, by power cut and by kill, and
//! again during the recovery from it; then a model test with random work and crashes.
//!
//! The oracle: what was acknowledged is there exactly once, with the right bytes, under its uid; what
//! was not is absent or whole; its retry is stored once; uids ascend and are never given twice;
//! the checker finds no damage.
mod testkit;

use std::collections::BTreeMap;

use ringpost_engine::config::ShardConfig;
use ringpost_engine::error::OpenError;
use ringpost_engine::io::sim::{Crash, Model, SimConfig, SimDisk};
use ringpost_engine::request::{Body, Outcome, Request};
use testkit::{Bench, empty_disk, guid, message, prepare};

/// One delivery of the workload.
#[derive(Clone)]
struct Delivery {
    number: u64,
    users: Vec<String>,
    text: Vec<u8>,
}

/// What the caller was told.
#[derive(Default)]
struct Ledger {
    /// (user, number) -> uid.
    acknowledged: BTreeMap<(String, u64), u32>,
}

impl Ledger {
    fn note(&mut self, delivery: &Delivery, outcomes: &[Outcome]) {
        for (name, outcome) in delivery.users.iter().zip(outcomes) {
            let uid = match outcome {
                Outcome::Stored { uid, .. } | Outcome::Duplicate { uid, .. } => uid.value(),
                Outcome::Refused(_) => continue,
            };
            let known = self
                .acknowledged
                .insert((name.clone(), delivery.number), uid);
            assert!(
                known.is_none_or(|known| known == uid),
                "{name}: uid {known:?} became {uid}"
            );
        }
    }
}

/// Small and large messages to one or several users, a checkpoint now and then.
fn workload() -> Vec<Delivery> {
    (0..24u64)
        .map(|number| {
            let users = match number % 6 {
                0 => vec!["ann".to_owned(), "bob".to_owned(), "eve".to_owned()],
                3 => vec!["bob".to_owned(), "cat".to_owned()],
                _ => vec![format!("user{}", number % 4)],
            };
            let bytes = if number % 8 == 5 {
                9_000
            } else {
                200 + 150 * usize::try_from(number % 7).expect("small")
            };
            Delivery {
                number,
                users,
                text: message(number, bytes),
            }
        })
        .collect()
}

fn is_large(delivery: &Delivery) -> bool {
    delivery.text.len() > 4_096
}

/// Notes the answers of these tickets.
fn note_all(bench: &Bench, tickets: &BTreeMap<u64, Delivery>, ledger: &mut Ledger) {
    for event in &bench.events {
        if let ringpost_engine::request::Event::Appended { ticket, outcomes } = event
            && let Some(delivery) = tickets.get(&ticket.value())
        {
            ledger.note(delivery, outcomes);
        }
    }
}

/// Runs work until it ends or the disk crashes, and notes what was acknowledged before that.
fn run_noting(bench: &mut Bench, work: &[Delivery], ledger: &mut Ledger) {
    let mut tickets = BTreeMap::new();
    for delivery in work {
        let users: Vec<&str> = delivery.users.iter().map(String::as_str).collect();
        if bench.disk.is_crashed() {
            break;
        }
        if is_large(delivery) {
            if let Some(outcomes) = bench.try_deliver_large(&users, delivery.number, &delivery.text)
            {
                ledger.note(delivery, &outcomes);
            }
            continue;
        }
        let body = Body::Small(prepare(&delivery.text));
        let request = Request::Append(Bench::group(&users, delivery.number, body));
        let Ok(ticket) = bench.submit(request) else {
            break;
        };
        tickets.insert(ticket.value(), delivery.clone());
        if delivery.number % 10 == 9 && bench.submit(Request::Checkpoint).is_err() {
            break;
        }
        if delivery.number % 3 != 1 {
            bench.settle();
        }
    }
    bench.settle();
    note_all(bench, &tickets, ledger);
}

/// Every mailbox against the ledger; then the whole workload again, as a sender would retry it.
fn verify(bench: &mut Bench, work: &[Delivery], ledger: &mut Ledger, context: &str) {
    let check_mailboxes = |bench: &mut Bench, ledger: &Ledger, all: bool| {
        let names: std::collections::BTreeSet<&String> =
            work.iter().flat_map(|delivery| &delivery.users).collect();
        for name in names {
            let found = bench.mailbox(name);
            for delivery in work.iter().filter(|delivery| delivery.users.contains(name)) {
                let copies: Vec<_> = found
                    .iter()
                    .filter(|(_, (found, _))| *found == guid(delivery.number))
                    .collect();
                let acknowledged = ledger.acknowledged.get(&(name.clone(), delivery.number));
                assert!(
                    copies.len() <= 1,
                    "{context}: {name} has mail {} twice",
                    delivery.number
                );
                if all || acknowledged.is_some() {
                    assert_eq!(
                        copies.len(),
                        1,
                        "{context}: {name} lost mail {}",
                        delivery.number
                    );
                }
                for (uid, (_, bytes)) in copies {
                    assert_eq!(
                        bytes, &delivery.text,
                        "{context}: bytes of {}",
                        delivery.number
                    );
                    assert!(
                        acknowledged.is_none_or(|known| known == uid),
                        "{context}: uid"
                    );
                }
            }
        }
    };
    check_mailboxes(bench, ledger, false);
    run_noting(bench, work, ledger);
    check_mailboxes(bench, ledger, true);
    let report = bench.check();
    assert!(report.is_sound(), "{context}: {:?}", report.findings);
}

/// Opens the store on what a crash left, crashing again at the given change if it gets that far.
fn reopen(disk: &SimDisk, again_at: Option<u64>, kind: Crash) -> Result<Bench, OpenError> {
    let mut disk = disk.clone();
    if let Some(change) = again_at {
        disk.configure(|config| config.crash_at = Some(change));
        let opened = Bench::on(disk.clone(), ShardConfig::tiny());
        if !disk.is_crashed() {
            disk.configure(|config| config.crash_at = None);
            return opened;
        }
        let next = disk.crash(kind);
        drop(opened);
        disk = next;
    }
    Bench::on(disk, ShardConfig::tiny())
}

fn crash_everywhere(model: Model, kind: Crash) {
    let work = workload();
    let mut config = SimConfig::new(11);
    config.model = model;
    let total = {
        let mut bench = Bench::on(empty_disk(config.clone()), ShardConfig::tiny()).expect("opens");
        let mut ledger = Ledger::default();
        run_noting(&mut bench, &work, &mut ledger);
        verify(&mut bench, &work, &mut ledger, "without a crash");
        bench.disk.changes()
    };
    assert!(total > 150, "{total} changes are too few to mean anything");
    for change in 1..=total {
        let mut config = config.clone();
        config.seed = change;
        let disk = empty_disk(config);
        let base = disk.changes();
        disk.configure(|config| config.crash_at = Some(base + change));
        let mut ledger = Ledger::default();
        let mut image = disk.clone();
        if let Ok(mut bench) = Bench::on(disk, ShardConfig::tiny()) {
            run_noting(&mut bench, &work, &mut ledger);
            image = bench.disk.crash(kind);
        } else {
            image = image.crash(kind);
        }
        let context = format!("{model:?}, {kind:?}, crash at change {change}");
        // Every fifth one crashes once more while it recovers.
        let again = change
            .is_multiple_of(5)
            .then_some(image.changes() + change % 17 + 1);
        let opened = reopen(&image, again, kind);
        let mut bench = opened.unwrap_or_else(|error| panic!("{context}: {error}"));
        verify(&mut bench, &work, &mut ledger, &context);
    }
}

#[test]
fn every_crash_point_ext4_power_cut() {
    crash_everywhere(Model::Ext4, Crash::PowerCut);
}

#[test]
fn every_crash_point_weak_power_cut() {
    crash_everywhere(Model::Weak, Crash::PowerCut);
}

#[test]
fn every_crash_point_kill() {
    crash_everywhere(Model::Ext4, Crash::Kill);
}

/// Random work, random crashes, one store over many lives; the seed is in the failure.
#[test]
fn random_lives() {
    for seed in 1..=40u64 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut config = SimConfig::new(seed);
        config.model = if rng.bool() { Model::Ext4 } else { Model::Weak };
        config.slow_one_in = [0, 10, 50][rng.usize(..3)];
        config.short_one_in = [0, 7][rng.usize(..2)];
        let mut image = empty_disk(config);
        let mut ledger = Ledger::default();
        let mut work: Vec<Delivery> = Vec::new();
        for life in 0..5 {
            let context = format!("seed {seed}, life {life}");
            let opened = Bench::on(image.clone(), ShardConfig::tiny());
            let mut bench = opened.unwrap_or_else(|error| panic!("{context}: {error}"));
            verify_only(&mut bench, &work, &mut ledger, &context);
            let base = bench.disk.changes();
            bench
                .disk
                .configure(|config| config.crash_at = Some(base + rng.u64(1..400)));
            let from = work.len() as u64;
            let fresh: Vec<Delivery> = (from..from + rng.u64(5..60))
                .map(|number| Delivery {
                    number,
                    users: (0..rng.usize(1..4))
                        .map(|_| format!("user{}", rng.u8(..9)))
                        .fold(Vec::new(), |mut users, name| {
                            if !users.contains(&name) {
                                users.push(name);
                            }
                            users
                        }),
                    text: message(number, [100, 900, 3_000, 9_000][rng.usize(..4)]),
                })
                .collect();
            run_noting(&mut bench, &fresh, &mut ledger);
            work.extend(fresh);
            let kind = if rng.bool() {
                Crash::PowerCut
            } else {
                Crash::Kill
            };
            image = bench.disk.crash(kind);
        }
    }
}

/// Mailboxes against the ledger, without the retries.
fn verify_only(bench: &mut Bench, work: &[Delivery], ledger: &mut Ledger, context: &str) {
    let mut by_user: BTreeMap<&String, Vec<&Delivery>> = BTreeMap::new();
    for delivery in work {
        for name in &delivery.users {
            by_user.entry(name).or_default().push(delivery);
        }
    }
    for (name, deliveries) in by_user {
        let found = bench.mailbox(name);
        for delivery in deliveries {
            let copies = found
                .values()
                .filter(|(found, _)| *found == guid(delivery.number));
            let copies: Vec<_> = copies.collect();
            assert!(
                copies.len() <= 1,
                "{context}: {name} has mail {} twice",
                delivery.number
            );
            let key = (name.clone(), delivery.number);
            if let Some(uid) = ledger.acknowledged.get(&key) {
                assert_eq!(
                    copies.len(),
                    1,
                    "{context}: {name} lost mail {}",
                    delivery.number
                );
                let same = found
                    .get(uid)
                    .is_some_and(|(found, _)| *found == guid(delivery.number));
                assert!(same, "{context}: uid of {key:?}");
            }
            for (_, bytes) in copies {
                assert_eq!(
                    bytes, &delivery.text,
                    "{context}: bytes of {}",
                    delivery.number
                );
            }
        }
    }
    let report = bench.check();
    assert!(report.is_sound(), "{context}: {:?}", report.findings);
}
