//! The scrub on a simulated disk (storage.md 8.6): rot is found within one pass, nothing whole is ever
//! called damaged, whatever goes on meanwhile, and a crash in it changes nothing.

mod testkit;

use std::collections::BTreeSet;

use ringpost_engine::config::ShardConfig;
use ringpost_engine::error::CorruptReason;
use ringpost_engine::io::RelPath;
use ringpost_engine::io::sim::{Crash, SimConfig};
use ringpost_engine::request::{
    Body, Damage, Event, MonotonicNs, Notice, Refused, Request, ScrubWhat, Scrubbed, Ticket,
    UidSet, Which,
};
use ringpost_netproto::id::MailboxId;
use testkit::{Bench, empty_disk, guid, message, prepare, ticket_of, user};

const BOB: &str = "bob";
const USERS: [&str; 6] = [BOB, "eve", "joe", "amy", "kim", "zoe"];
const SECOND_NS: u64 = 1_000_000_000;

/// One pass behind the other, as fast as they go.
fn restless() -> ShardConfig {
    ShardConfig {
        scrub_interval_ns: Some(1),
        scrub_bytes_per_s: 1 << 40,
        ..ShardConfig::tiny()
    }
}

fn dir_of(name: &str) -> RelPath {
    let key = user(name);
    RelPath::user_dir(key.partition(), key.hash(), 0)
}

fn scrub(bench: &mut Bench, what: ScrubWhat) -> Result<Scrubbed, Refused> {
    let ticket = bench.submit(Request::Scrub { what })?;
    bench.settle();
    answer(bench, ticket)
}

fn answer(bench: &Bench, ticket: Ticket) -> Result<Scrubbed, Refused> {
    let mut events = bench.events.iter();
    match events.find(|event| ticket_of(event) == Some(ticket)) {
        Some(Event::Scrubbed { result, .. }) => result.clone(),
        other => panic!("{other:?}"),
    }
}

fn pass(bench: &mut Bench) -> Scrubbed {
    scrub(bench, ScrubWhat::All).expect("a pass")
}

fn damages(bench: &Bench) -> Vec<Damage> {
    bench.shard.damages().cloned().collect()
}

/// Notices of damage so far, from scrubs or others.
fn alarms(bench: &Bench) -> Vec<String> {
    let events = bench.events.iter();
    let alarms = events.filter_map(|event| match event {
        Event::Notice(Notice::Damaged(damage)) => Some(format!("{damage:?}")),
        Event::Notice(Notice::Corrupt(corrupt)) => Some(format!("{corrupt:?}")),
        _ => None,
    });
    alarms.collect()
}

/// Mail of all users, one large message each, some of it expunged, in its files.
fn filled(config: ShardConfig) -> Bench {
    let mut bench = Bench::new(config);
    for (number, name) in (0..24).zip(USERS.iter().cycle()) {
        let bytes = usize::try_from(300 + 211 * (number % 7)).expect("short");
        bench.deliver(&[*name], number, &message(number, bytes));
    }
    for (number, name) in (100..).zip(USERS) {
        bench.deliver_large(&[name], number, &message(number, 9_000));
    }
    for name in USERS {
        expunge(&mut bench, name, 2);
    }
    bench.settle();
    bench.checkpoint();
    bench
}

fn expunge(bench: &mut Bench, name: &str, uid: u32) {
    let expunge = Request::Expunge {
        user: user(name),
        mailbox: MailboxId::INBOX,
        uids: UidSet::range(uid, uid),
        which: Which::All,
    };
    // Refused once it is gone.
    let _ticket = bench.submit(expunge).expect("taken");
}

#[test]
fn a_pass_reads_everything_and_finds_nothing_wrong() {
    let mut bench = filled(ShardConfig::tiny());
    let done = pass(&mut bench);
    assert_eq!((done.users, done.messages, done.damaged), (6, 24, 0));
    assert!(done.bytes > 6 * 9_000, "{done:?}");
    let metrics = *bench.shard.metrics();
    assert_eq!((metrics.scrub_passes, metrics.scrub_running), (1, 0));
    assert!(metrics.scrub_pass_ns > 0 && metrics.scrub_ended_at_ns > 0);
    assert_eq!(alarms(&bench), [] as [String; 0]);
    assert!(bench.check().is_sound());
}

#[test]
fn rot_in_any_index_or_message_is_found_within_one_pass() {
    let mut bench = filled(ShardConfig::tiny());
    bench.drain();
    let disk = bench.disk.clone();
    drop(bench);
    let mut flips = 0;
    for name in [BOB, "zoe"] {
        for (file, bytes) in disk.list(&dir_of(name)) {
            let path = dir_of(name).entry(&file).expect("a plain name");
            let info = file.starts_with("info.");
            if !info && file.strip_suffix(".mbox").is_none() {
                continue;
            }
            for offset in (0..bytes).step_by(101) {
                let text = disk.read(&path).expect("it is there");
                let at = usize::try_from(offset).expect("short");
                if !info && !is_proved(&text, at) {
                    continue;
                }
                // The guid in a file of its own is the message's, not that of each recipient.
                if file.len() > "00000001.mbox".len() && offset < 220 {
                    continue;
                }
                flips += 1;
                assert!(disk.flip(&path, offset, 0x04));
                // A store that was just opened has nothing of it in memory.
                let mut bench = Bench::on(disk.clone(), ShardConfig::tiny()).expect("it opens");
                pass(&mut bench);
                let found = damages(&bench);
                assert_eq!(found.len(), 1, "{path} at {offset}: {found:?}");
                let (damage, at) = (&found[0], found[0].corrupt.offset);
                assert_eq!(damage.corrupt.file, path.as_str());
                // A damaged index does not even tell whose it is.
                let tells = damage.message.is_none() && damage.user.is_empty();
                assert!(tells || &damage.user[..] == name.as_bytes(), "{damage:?}");
                assert_eq!(damage.message.is_none(), info, "{damage:?}");
                assert!(at <= offset, "{path} at {offset}: named {at}");
                assert!(disk.flip(&path, offset, 0x04));
                let done = scrub(&mut bench, ScrubWhat::User(user(name))).expect("a visit");
                assert_eq!(done.damaged, 0, "{path} at {offset} is whole again");
                assert_eq!(damages(&bench), []);
                bench.drain();
            }
        }
    }
    assert!(flips > 60, "{flips} flips");
}

/// Whether a byte of a segment is one that a checksum or the index vouches for: not of a `From_` line,
/// of the line between messages, of a dead message.
fn is_proved(text: &[u8], offset: usize) -> bool {
    let text = String::from_utf8_lossy(text);
    let mut at = 0;
    for part in text.split_inclusive("\n\nFrom sender@") {
        let part_end = at + part.len();
        if offset < part_end {
            let from_line = part.find("X-Ringpost:").unwrap_or(part.len());
            let own = part.find("u=00000002").is_none();
            let end = part.len()
                - if part.ends_with("From sender@") {
                    14
                } else {
                    2
                };
            let line = &part[from_line..];
            let dates = from_line + line.find("d=").unwrap_or(0);
            let dates = dates..dates + 19;
            let flags = from_line + line.find("e=").unwrap_or(0);
            let flags = flags..flags + 5;
            let valid = from_line + line.find(" v=").unwrap_or(0);
            let valid = valid..valid + 12;
            let place = offset - at;
            let told = [dates, flags, valid]
                .iter()
                .any(|range| range.contains(&place));
            return own && place >= from_line && place < end && !told;
        }
        at = part_end;
    }
    false
}

#[test]
fn a_damaged_message_is_named_and_not_served_in_any_way() {
    let mut bench = filled(ShardConfig::tiny());
    let large = RelPath::large(
        &dir_of(BOB),
        2,
        MailboxId::INBOX,
        ringpost_netproto::id::Uid::new(5),
    );
    let large = if bench.disk.len(&large).is_some() {
        large
    } else {
        let files = bench.disk.list(&dir_of(BOB));
        let found = files
            .iter()
            .find(|(name, _)| name.ends_with(".00000005.mbox"));
        let (name, _) = found.expect("a large message");
        dir_of(BOB).entry(name).expect("a plain name")
    };
    let before = bench.mailbox(BOB);
    assert!(bench.disk.flip(&large, 5_000, 0x01));
    // A piece that no checksum covers is served as long as nobody knows.
    assert!(bench.fetch_piece(BOB, 5, 10, 100).is_ok());
    assert_eq!(pass(&mut bench).damaged, 1);
    let found = damages(&bench);
    let named = found[0].message.expect("a message");
    assert_eq!((named.uid.value(), named.guid), (5, guid(100)));
    assert_eq!(found[0].corrupt.file, large.as_str());
    assert_eq!(found[0].corrupt.reason, CorruptReason::Checksum);
    assert_eq!(alarms(&bench).len(), 1, "{:?}", alarms(&bench));
    for (from, len) in [(0, u32::MAX), (10, 100)] {
        let fetched = bench.fetch_piece(BOB, 5, from, len);
        assert!(matches!(fetched, Err(Refused::Damaged(_))), "{fetched:?}");
    }
    for uid in before.keys().filter(|uid| **uid != 5) {
        assert!(bench.fetch(BOB, *uid).is_ok(), "uid {uid}");
    }
    // Known is not told again.
    assert_eq!(pass(&mut bench).damaged, 1);
    assert_eq!(alarms(&bench).len(), 1);

    // It is known after a crash, too.
    let mut bench = bench.crash(Crash::PowerCut);
    assert_eq!(
        damages(&bench)[0].corrupt.reason,
        CorruptReason::Quarantined
    );
    let fetched = bench.fetch_piece(BOB, 5, 10, 100);
    assert!(matches!(fetched, Err(Refused::Damaged(_))), "{fetched:?}");
    let large_again = large.clone();
    assert!(bench.disk.flip(&large_again, 5_000, 0x01));
    assert_eq!(pass(&mut bench).damaged, 0);
    assert_eq!(bench.mailbox(BOB), before);
}

#[test]
fn a_sector_that_cannot_be_read_costs_what_lies_in_it() {
    let mut bench = filled(ShardConfig::tiny());
    let segment = dir_of("eve").segment(1);
    assert!(bench.disk.spoil(&segment, 0));
    pass(&mut bench);
    let found = damages(&bench);
    assert!(!found.is_empty());
    for damage in &found {
        assert_eq!(damage.corrupt.file, segment.as_str());
        let reason = &damage.corrupt.reason;
        assert!(
            matches!(reason, CorruptReason::Unreadable { .. }),
            "{reason:?}"
        );
    }
    for name in USERS.iter().filter(|name| **name != "eve") {
        assert!(bench.mailbox(name).len() == 4, "{name}");
    }
}

#[test]
fn a_file_that_is_gone_is_damage_of_each_message_in_it() {
    let mut bench = filled(ShardConfig::tiny());
    let index = dir_of("joe").info(1);
    let bytes = bench.disk.len(&index).expect("an index");
    let text = bench.disk.read(&index).expect("an index");
    // Half of the index is lost: the user is in memory, so only the disk can tell.
    bench.disk.put(
        &index,
        &text[..usize::try_from(bytes / 2).expect("short") / 64 * 64],
    );
    let done = scrub(&mut bench, ScrubWhat::User(user("joe"))).expect("a visit");
    assert_eq!(done.damaged, 1);
    assert_eq!(damages(&bench)[0].corrupt.reason, CorruptReason::Truncated);
    assert_eq!(damages(&bench)[0].message, None);
}

#[test]
fn rot_in_superblock_and_log_headers_is_named() {
    let mut bench = filled(ShardConfig::tiny());
    pass(&mut bench);
    for (path, offset) in [
        (RelPath::superblock(0), 100),
        (RelPath::superblock(0), 4096 + 3_000),
        (RelPath::log_file(0, 1), 60),
    ] {
        if path == RelPath::log_file(0, 1) && bench.disk.len(&path).is_none() {
            continue;
        }
        let armed = path != RelPath::log_file(0, 1)
            || bench.disk.read(&path).expect("a log file")[..8] == *b"RINGLOG1";
        assert!(bench.disk.flip(&path, offset, 0x20));
        pass(&mut bench);
        let found = damages(&bench);
        if armed && !found.is_empty() {
            assert_eq!(found[0].corrupt.file, path.as_str());
            assert!(found[0].user.is_empty());
        } else {
            assert_ne!(path, RelPath::superblock(0), "not found");
        }
        assert!(bench.disk.flip(&path, offset, 0x20));
        // Both copies of the superblock are written anew.
        for number in 0..2 {
            bench.deliver(&[BOB], 900 + number + offset, &message(number, 300));
            bench.checkpoint();
        }
        pass(&mut bench);
        assert_eq!(damages(&bench), []);
    }
}

/// A small generator, so that a seed tells everything.
struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

#[test]
fn nothing_whole_is_called_damaged_while_mail_comes_and_goes() {
    let mut passes = 0;
    let mut compactions = 0;
    for seed in 0..12 {
        let mut draw = Draw(seed);
        let config = ShardConfig {
            compact_bytes_min: 1,
            ..restless()
        };
        let disk = empty_disk(SimConfig::new(seed));
        let mut bench = Bench::on(disk, config).expect("an empty store opens");
        // Beyond the rest after a start.
        bench.disk.advance(61 * SECOND_NS);
        for number in 0..160 {
            let name = USERS[usize::try_from(draw.below(3)).expect("few")];
            match draw.below(10) {
                0..=5 => {
                    let bytes = usize::try_from(200 + draw.below(2_000)).expect("few");
                    let body = Body::Small(prepare(&message(number, bytes)));
                    let append = Request::Append(Bench::group(&[name], number, body));
                    drop(bench.submit(append));
                }
                6 => drop(bench.try_deliver_large(&[name], number, &message(number, 6_000))),
                7 | 8 => {
                    let low = u32::try_from(1 + draw.below(40)).expect("few");
                    let request = Request::Expunge {
                        user: user(name),
                        mailbox: MailboxId::INBOX,
                        uids: UidSet::range(low, low + u32::try_from(draw.below(6)).expect("few")),
                        which: Which::All,
                    };
                    drop(bench.submit(request));
                }
                _ => drop(bench.submit(Request::Compact { user: user(name) })),
            }
            for _turn in 0..draw.below(8) {
                bench.poll();
                bench.pass_time();
            }
        }
        bench.settle();
        for _turn in 0..2_000 {
            bench.poll();
            bench.pass_time();
        }
        bench.settle();
        let metrics = *bench.shard.metrics();
        passes += metrics.scrub_passes;
        compactions += metrics.compactions;
        assert_eq!(alarms(&bench), [] as [String; 0], "seed {seed}");
        bench.drain();
        assert!(bench.check().is_sound(), "seed {seed}");
    }
    assert!(passes > 120, "{passes} passes");
    assert!(compactions > 24, "{compactions} compactions");
}

#[test]
fn a_crash_at_any_change_while_it_scrubs_loses_nothing() {
    let run = |config: SimConfig| {
        let disk = empty_disk(config);
        let mut acknowledged = BTreeSet::new();
        let Ok(mut bench) = Bench::on(disk.clone(), restless()) else {
            return (disk, acknowledged);
        };
        bench.disk.advance(61 * SECOND_NS);
        for number in 0..14 {
            let body = Body::Small(prepare(&message(number, 700)));
            let Ok(ticket) = bench.submit(Request::Append(Bench::group(&[BOB], number, body)))
            else {
                break;
            };
            bench.settle();
            if bench.try_outcomes(ticket).is_some_and(|all| {
                matches!(all[0], ringpost_engine::request::Outcome::Stored { .. })
            }) {
                acknowledged.insert(number);
            }
            if number % 5 == 4 {
                drop(bench.submit(Request::Checkpoint));
                bench.settle();
            }
            for _turn in 0..20 {
                bench.poll();
                bench.pass_time();
            }
        }
        (disk, acknowledged)
    };
    let (whole, _) = run(SimConfig::new(3));
    let changes = whole.changes();
    let mut saved = 0;
    for change in (1..changes).step_by(3) {
        let (mut disk, acknowledged) = run(SimConfig::new(3).weak().crash_at(change));
        let disk = disk.crash(Crash::PowerCut);
        saved += u64::from(disk.len(&RelPath::scrub(0)).is_some());
        let mut bench = Bench::on(disk, restless()).expect("it opens");
        let guids: Vec<_> = bench
            .mailbox(BOB)
            .into_values()
            .map(|(guid, _)| guid)
            .collect();
        for number in &acknowledged {
            let count = guids
                .iter()
                .filter(|found| **found == guid(*number))
                .count();
            assert_eq!(count, 1, "message {number} after change {change}");
        }
        pass(&mut bench);
        assert_eq!(damages(&bench), [], "change {change}");
        assert!(bench.check().is_sound(), "change {change}");
    }
    assert!(saved > 10, "the file was there after {saved} crashes");
}

#[test]
fn a_pass_goes_on_where_it_was_after_a_restart() {
    let slow = ShardConfig {
        scrub_interval_ns: Some(24 * 3_600 * SECOND_NS),
        scrub_bytes_per_s: 200,
        ..ShardConfig::tiny()
    };
    let mut bench = filled(slow.clone());
    while bench.shard.metrics().scrub_users < 2 {
        bench.poll();
        bench.pass_time();
    }
    // The position is written once a minute.
    bench.disk.advance(61 * SECOND_NS);
    while bench.shard.metrics().scrub_users < 3 {
        bench.poll();
        bench.pass_time();
    }
    bench.drain();
    assert!(bench.disk.len(&RelPath::scrub(0)).is_some());
    let mut bench = Bench::on(bench.disk.clone(), slow).expect("it opens");
    while bench.shard.metrics().scrub_passes == 0 {
        bench.poll();
        bench.pass_time();
    }
    let metrics = bench.shard.metrics();
    assert!(
        (3..6).contains(&metrics.scrub_users),
        "{} users",
        metrics.scrub_users
    );
    // The next one is a day away.
    let due = bench.shard.next_deadline().map(MonotonicNs::value);
    assert!(
        due.is_none_or(|due| due > bench.disk.now_ns() + 23 * 3_600 * SECOND_NS),
        "{due:?}"
    );
}

/// With another number of cores a scrub went on at a partition that is another core's now, and loaded its users:
/// what the other core had on its way there was taken for what a crash had left.
#[test]
fn a_pass_leaves_the_users_of_other_cores_alone_when_their_number_changes() {
    let slow = ShardConfig {
        scrub_interval_ns: Some(24 * 3_600 * SECOND_NS),
        scrub_bytes_per_s: 200,
        ..ShardConfig::tiny()
    };
    for users in 1..6 {
        let mut bench = filled(slow.clone());
        while bench.shard.metrics().scrub_users < users {
            bench.poll();
            bench.pass_time();
        }
        bench.disk.advance(61 * SECOND_NS);
        while bench.shard.metrics().scrub_users <= users {
            bench.poll();
            bench.pass_time();
        }
        bench.drain();
        let coming = |name: &str| dir_of(name).segment_part(0x7F);
        for name in USERS {
            bench.disk.put(&coming(name), b"of a message on its way");
        }
        let opened = Bench::on_log(bench.disk.clone(), restless(), 0, 2);
        let mut bench = opened.expect("it opens");
        while bench.shard.metrics().scrub_passes < 2 {
            bench.poll();
            bench.pass_time();
        }
        for name in USERS {
            let ours = user(name).partition().value().is_multiple_of(2);
            let is_left = bench.disk.len(&coming(name)).is_some();
            assert_eq!(is_left, !ours, "{name}, after {users} users");
        }
    }
}

#[test]
fn it_is_never_faster_than_its_rate_and_leaves_no_user_in_memory() {
    let config = ShardConfig {
        scrub_bytes_per_s: 100_000,
        tails_max: 4,
        ..ShardConfig::tiny()
    };
    let mut bench = filled(config.clone());
    bench.drain();
    let mut bench = Bench::on(bench.disk.clone(), config).expect("it opens");
    let begun = bench.disk.now_ns();
    let done = pass(&mut bench);
    let took = bench.disk.now_ns() - begun;
    assert!(
        took >= done.bytes * SECOND_NS / 100_000,
        "{took} ns for {done:?}"
    );
    assert_eq!(bench.shard.metrics().users_resident, 0);
}

#[test]
fn who_asks_is_answered_once_and_a_drain_ends_it() {
    let mut bench = filled(ShardConfig {
        scrub_bytes_per_s: 1_000,
        ..ShardConfig::tiny()
    });
    let all = bench
        .submit(Request::Scrub {
            what: ScrubWhat::All,
        })
        .expect("taken");
    for _turn in 0..30 {
        bench.poll();
        bench.pass_time();
    }
    let what = ScrubWhat::User(user("kim"));
    let one = bench.submit(Request::Scrub { what }).expect("taken");
    let nobody = bench
        .submit(Request::Scrub {
            what: ScrubWhat::User(user("nobody")),
        })
        .expect("taken");
    while bench
        .events
        .iter()
        .all(|event| ticket_of(event) != Some(one))
    {
        bench.poll();
        bench.pass_time();
    }
    let done = answer(&bench, one).expect("a visit");
    assert_eq!((done.users, done.messages), (1, 4));
    assert_eq!(answer(&bench, nobody), Err(Refused::NoSuchUser));
    bench.drain();
    assert_eq!(answer(&bench, all), Err(Refused::Stopped));
}

/// Whoever asks for passes again and again keeps nobody from an answer.
#[test]
fn a_pass_that_somebody_waits_for_is_not_begun_anew() {
    let mut bench = filled(ShardConfig {
        scrub_bytes_per_s: 10_000,
        ..ShardConfig::tiny()
    });
    let ask = |bench: &mut Bench| {
        bench.submit(Request::Scrub {
            what: ScrubWhat::All,
        })
    };
    let first = ask(&mut bench).expect("taken");
    for turn in 0..20_000 {
        let mut events = bench.events.iter();
        if events.any(|event| ticket_of(event) == Some(first)) {
            break;
        }
        bench.poll();
        bench.pass_time();
        if turn % 10 == 9 {
            // Refused when too many wait.
            ask(&mut bench).ok();
        }
    }
    let done = answer(&bench, first).expect("a pass");
    assert!(done.messages > 0, "{done:?}");
}
