//! Random work of several clients at once, without waiting for answers, over crashes; one client keeps
//! a cache by the change feed alone. The cache must always equal the mailbox: what the feed leaves
//! out, or a crash takes back, would show. Counts, uids and modseqs are compared on the way.
#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "helpers of tests are tests"
)]
mod testkit;

use std::collections::BTreeMap;

use ringpost_engine::config::ShardConfig;
use ringpost_engine::format::info::{DELETED, FLAGGED, SEEN, SpecialUse};
use ringpost_engine::io::sim::{Crash, Model, SimConfig};
use ringpost_engine::request::{
    Body, FlagOp, MailboxChange, More, QuotaLimits, Refused, Request, UidSet, Which,
};
use ringpost_netproto::id::MailboxId;
use testkit::client::{flags, uids};
use testkit::{Bench, empty_disk, message, prepare, user};

const USERS: [&str; 3] = ["ann", "bob", "eve"];

/// What a client knows of a mailbox.
#[derive(Default)]
struct Cache {
    /// Uid -> flags, keywords, modseq.
    messages: BTreeMap<u32, (u32, u64, u64)>,
    highest: u64,
    uidnext: u32,
    uidvalidity: u32,
}

type Caches = BTreeMap<(&'static str, MailboxId), Cache>;

/// Brings the caches up to date by the feed and compares them with lists.
fn sync(bench: &mut Bench, caches: &mut Caches, rng: &mut fastrand::Rng, context: &str) {
    for name in USERS {
        let statuses = match bench.statuses(name) {
            Ok(statuses) => statuses,
            Err(Refused::NoSuchUser) => continue,
            Err(other) => panic!("{context}: {name}: {other}"),
        };
        caches.retain(|(of, mailbox), _| {
            *of != name || statuses.iter().any(|status| status.mailbox == *mailbox)
        });
        for status in statuses {
            let cache = caches.entry((name, status.mailbox)).or_default();
            let since = cache.highest;
            let (mut after, mut first) = (0, None);
            loop {
                let entries_max = rng.u32(1..20);
                let page = bench
                    .changes(name, status.mailbox, since, (after, entries_max))
                    .unwrap_or_else(|refused| panic!("{context}: {name}: {refused}"));
                for uid in page.vanished.iter() {
                    cache.messages.remove(&uid.value());
                }
                for entry in &page.changed {
                    let known = (entry.flags, entry.keywords, entry.modseq.value());
                    cache.messages.insert(entry.uid.value(), known);
                }
                first.get_or_insert(page.status.highest_modseq);
                if page.more == More::No {
                    break;
                }
                assert!(page.upto > after, "{context}: the feed stands still");
                after = page.upto;
            }
            let list = bench.list_of(name, status.mailbox).expect("it is there");
            assert_eq!(list.more, More::No, "{context}: more than a page");
            let found: BTreeMap<_, _> = list
                .entries
                .iter()
                .map(|entry| {
                    let known = (entry.flags, entry.keywords, entry.modseq.value());
                    (entry.uid.value(), known)
                })
                .collect();
            assert_eq!(found, cache.messages, "{context}: {name} {}", status.name);
            let count = |wanted: &dyn Fn(u32) -> bool| {
                let found = found.values().filter(|(flags, _, _)| wanted(*flags));
                u32::try_from(found.count()).unwrap()
            };
            assert_eq!(status.messages_count, count(&|_| true));
            assert_eq!(status.unseen_count, count(&|flags| flags & SEEN == 0));
            assert_eq!(status.deleted_count, count(&|flags| flags & DELETED != 0));
            let bytes: u64 = list.entries.iter().map(|e| u64::from(e.rfc822_size)).sum();
            assert_eq!(status.bytes, bytes, "{context}: {name} {}", status.name);
            assert!(
                status.uidnext >= cache.uidnext,
                "{context}: uidnext went back"
            );
            assert!(
                status.highest_modseq >= since,
                "{context}: modseq went back"
            );
            let validity = status.uidvalidity.value();
            assert!(cache.uidvalidity == 0 || cache.uidvalidity == validity);
            cache.highest = first.expect("at least one page");
            cache.uidnext = status.uidnext;
            cache.uidvalidity = validity;
        }
    }
}

#[expect(clippy::too_many_lines, reason = "one arm a kind of request")]
/// A request that somebody might make; mailboxes are those of the caches.
fn request(caches: &Caches, rng: &mut fastrand::Rng, number: u64) -> Request {
    let name = USERS[rng.usize(..USERS.len())];
    let known: Vec<_> = caches.iter().filter(|((of, _), _)| *of == name).collect();
    let pick = |rng: &mut fastrand::Rng| {
        let ids: Vec<_> = known.iter().map(|((_, mailbox), _)| *mailbox).collect();
        rng.choice(ids).unwrap_or(MailboxId::INBOX)
    };
    let mailbox = pick(rng);
    let some = match rng.u8(..4) {
        0 => UidSet::all(),
        1 => UidSet::range(rng.u32(1..60), rng.u32(1..60)),
        _ => uids(&[rng.u32(1..60), rng.u32(1..60), rng.u32(1..60)]),
    };
    let user = user(name);
    match rng.u8(..20) {
        0..=7 => {
            let text = message(number, [100, 700, 2_500][rng.usize(..3)]);
            let mut group = Bench::group(&[name], number, Body::Small(prepare(&text)));
            group.recipients[0].mailbox = mailbox;
            if rng.bool() {
                group.recipients[0].flags = flags(FLAGGED, &["fresh"]);
            }
            Request::Append(group)
        }
        8..=11 => Request::Store {
            user,
            mailbox,
            uids: some,
            op: [FlagOp::Add, FlagOp::Remove, FlagOp::Replace][rng.usize(..3)],
            flags: flags(
                [SEEN, DELETED, SEEN | FLAGGED, 0][rng.usize(..4)],
                [&[][..], &["one"], &["two", "one"]][rng.usize(..3)],
            ),
            unchanged_since: None,
        },
        12..=13 => Request::Expunge {
            user,
            mailbox,
            uids: some,
            which: [Which::All, Which::Deleted][rng.usize(..2)],
        },
        14 => Request::Copy {
            user,
            from: mailbox,
            uids: UidSet::range(1, rng.u32(1..10)),
            to: pick(rng),
            quota: QuotaLimits::default(),
        },
        15..=16 => Request::Move {
            user,
            from: mailbox,
            uids: some,
            to: pick(rng),
        },
        17 => Request::Mailbox {
            user,
            change: MailboxChange::Create {
                name: format!("m{}/n{}", rng.u8(..3), rng.u8(..3)),
                special_use: SpecialUse::None,
            },
        },
        18 => Request::Mailbox {
            user,
            change: MailboxChange::Rename {
                from: format!("m{}", rng.u8(..3)),
                to: format!("m{}", rng.u8(..3)),
            },
        },
        _ if rng.bool() => Request::Mailbox {
            user,
            change: MailboxChange::Delete { mailbox },
        },
        _ => Request::Checkpoint,
    }
}

#[test]
fn a_cache_kept_by_the_feed_equals_the_mailbox_over_crashes() {
    let mut answered = 0;
    for seed in 1..=40u64 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut config = SimConfig::new(seed);
        config.model = if rng.bool() { Model::Ext4 } else { Model::Weak };
        config.slow_one_in = [0, 10][rng.usize(..2)];
        let mut image = empty_disk(config);
        let mut caches = Caches::new();
        let mut number = 0;
        for life in 0..4 {
            let context = format!("seed {seed}, life {life}");
            let opened = Bench::on(image.clone(), ShardConfig::tiny());
            let mut bench = opened.unwrap_or_else(|error| panic!("{context}: {error}"));
            sync(&mut bench, &mut caches, &mut rng, &context);
            let report = bench.check();
            assert!(report.is_sound(), "{context}: {:?}", report.findings);
            for round in 0..rng.u32(1..6) {
                if rng.bool() {
                    number += 1;
                    let name = USERS[rng.usize(..USERS.len())];
                    bench.deliver_large(&[name], number, &message(number, 9_000));
                }
                for _ in 0..rng.u32(1..25) {
                    number += 1;
                    let request = request(&caches, &mut rng, number);
                    drop(bench.submit(request));
                    if rng.u8(..4) == 0 {
                        bench.poll();
                    }
                }
                bench.settle();
                let context = format!("{context}, round {round}");
                sync(&mut bench, &mut caches, &mut rng, &context);
            }
            answered += bench.shard.metrics().changes;
            let base = bench.disk.changes();
            bench
                .disk
                .configure(|config| config.crash_at = Some(base + rng.u64(1..30)));
            for _ in 0..40 {
                number += 1;
                let request = request(&caches, &mut rng, number);
                drop(bench.submit(request));
                bench.poll();
            }
            bench.settle();
            let kind = [Crash::PowerCut, Crash::Kill][rng.usize(..2)];
            image = bench.disk.crash(kind);
        }
    }
    assert!(answered > 1_000, "{answered} changes prove little");
}
