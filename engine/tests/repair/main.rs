//! Repair of whole stores: each way to harm one, what must be left, what must be named; and a crash at
//! each change of a repair.
#[path = "../flipkit/mod.rs"]
mod flipkit;
mod log;
#[path = "../testkit/mod.rs"]
mod testkit;

use std::collections::BTreeMap;

use flipkit::{Damage, Image, USERS, judge, judge_after, mail, path_of, small_store};
use ringpost_engine::check::Severity;
use ringpost_engine::format::crc;
use ringpost_engine::format::info::INFO_HEADER_BYTES;
use ringpost_engine::io::sim::{Crash, SimConfig};
use ringpost_engine::repair::{RepairError, Repaired, plan, repair};
use ringpost_engine::request::{FlagOp, MailboxChange, Request, Subscribed};
use ringpost_netproto::id::{MailboxId, WallNs};
use testkit::client::{flags, uids};
use testkit::{check_disk, user};

const NOW: WallNs = WallNs::new(1_769_904_000_000_000_000);

/// The store, drained: everything is in the users' files.
fn drained() -> Image {
    let disk = small_store().disk();
    let mut bench = testkit::Bench::on(disk, ringpost_engine::config::ShardConfig::tiny())
        .expect("the store opens");
    bench.drain();
    Image::of(&bench.disk)
}

/// A file of a user.
fn file_of(name: &str, file: &str) -> String {
    let user = user(name);
    let dir = ringpost_engine::io::RelPath::user_dir(user.partition(), user.hash(), 0);
    format!("{dir}/{file}")
}

fn harmed(image: &Image, harm: impl FnOnce(&mut Image)) -> Image {
    let mut image = image.clone();
    harm(&mut image);
    image
}

/// Uids of a user's messages that a repair named as lost.
fn lost_of(repaired: &Repaired, name: &str) -> Vec<u32> {
    let of = |lost: &&ringpost_engine::repair::LostMessage| {
        lost.lost.name.as_deref() == Some(name.as_bytes())
    };
    repaired
        .lost
        .iter()
        .filter(of)
        .map(|lost| lost.lost.uid)
        .collect()
}

#[test]
fn a_sound_store_is_left_alone() {
    for image in [small_store(), drained()] {
        let held = mail(image.disk());
        let verdict = judge(&image, &held, "nothing");
        assert!(verdict.repaired.is_nothing(), "{:?}", verdict.repaired);
    }
}

#[test]
fn an_index_cut_anywhere_loses_no_message() {
    let image = drained();
    let held = mail(image.disk());
    for name in ["bob", "eve"] {
        let path = file_of(name, "info.00000001");
        let len = image.clone().bytes_mut(&path).len();
        let cuts = (0..len)
            .step_by(101)
            .chain((0..len).step_by(64))
            .chain([len - 1]);
        for cut in cuts {
            let image = harmed(&image, |image| image.bytes_mut(&path).truncate(cut));
            let verdict = judge(&image, &held, &format!("{path} cut at {cut}"));
            assert!(verdict.missing.is_empty(), "{cut}: {:?}", verdict.repaired);
        }
    }
}

#[test]
fn an_index_that_is_gone_or_of_another_version_is_made_from_the_segments() {
    let image = drained();
    let held = mail(image.disk());
    let path = file_of("bob", "info.00000001");
    let zeros = harmed(&image, |image| image.bytes_mut(&path).fill(0));
    let gone = harmed(&image, |image| drop(image.0.remove(&path)));
    let newer = harmed(&image, |image| {
        let bytes = image.bytes_mut(&path);
        bytes[12] = 2;
        let sum = crc::of(&bytes[12..512]);
        bytes[8..12].copy_from_slice(&sum.to_le_bytes());
    });
    let bare = harmed(&gone, |image| {
        // Not even the names of the mailboxes.
        let folders = image.bytes_mut(&file_of("bob", "folders"));
        let text = String::from_utf8(folders.clone()).expect("text");
        let lines: Vec<&str> = text.lines().take(2).collect();
        let text = format!("{}\n", lines.join("\n"));
        *folders = format!("{text}crc {:08x}\n", crc::of(text.as_bytes())).into_bytes();
    });
    for (what, image) in [
        ("zeros", zeros),
        ("gone", gone),
        ("newer", newer),
        ("bare", bare),
    ] {
        let verdict = judge(&image, &held, what);
        assert!(verdict.missing.is_empty(), "{what}: {:?}", verdict.repaired);
        assert!(verdict.repaired.taken > 0, "{what}: {:?}", verdict.repaired);
    }
}

#[test]
fn a_user_whose_name_nothing_tells_is_left_for_a_person() {
    let image = drained();
    let image = harmed(&image, |image| {
        drop(image.0.remove(&file_of("bob", "info.00000001")));
        drop(image.0.remove(&file_of("bob", "folders")));
    });
    let disk = image.disk();
    let repaired = repair(&disk, disk.io(), NOW, &mut |_| {}).expect("nothing else is wrong");
    let dir = file_of("bob", "");
    let said = repaired
        .actions
        .iter()
        .find(|action| dir.strip_prefix(&action.file) == Some("/"));
    let said = said.expect("it is said").to_string();
    assert!(
        said.contains("restore this directory from a backup"),
        "{said}"
    );
    let before = mail_of(&drained().disk(), &["eve", "dan"]);
    assert_eq!(mail_of(&disk, &["eve", "dan"]), before);
}

/// Messages of some users, counted in a store that may refuse the others.
fn mail_of(disk: &ringpost_engine::io::sim::SimDisk, users: &[&'static str]) -> Vec<u32> {
    let config = ringpost_engine::config::ShardConfig::tiny();
    let mut bench = testkit::Bench::on(disk.clone(), config).expect("it opens");
    users
        .iter()
        .flat_map(|user| bench.mailbox(user).into_keys().collect::<Vec<_>>())
        .collect()
}

#[test]
fn a_segment_cut_short_loses_what_was_cut_off() {
    let image = drained();
    let held = mail(image.disk());
    let path = file_of("bob", "00000001.mbox");
    let len = image.clone().bytes_mut(&path).len();
    let mut missing = 0;
    for cut in (0..len).step_by(97).chain([len - 1]) {
        let image = harmed(&image, |image| image.bytes_mut(&path).truncate(cut));
        let verdict = judge(&image, &held, &format!("{path} cut at {cut}"));
        let lost = lost_of(&verdict.repaired, "bob");
        assert_eq!(
            lost.len(),
            verdict.missing.len(),
            "{cut}: {:?}",
            verdict.repaired
        );
        missing = missing.max(lost.len());
        assert!(lost_of(&verdict.repaired, "eve").is_empty(), "{cut}");
    }
    assert_eq!(
        missing, 6,
        "cut at 0: the small ones; the large ones have files of their own"
    );
}

#[test]
fn a_segment_with_other_line_ends_is_read_all_the_same() {
    let image = drained();
    let held = mail(image.disk());
    let path = file_of("bob", "00000001.mbox");
    let image = harmed(&image, |image| {
        let bytes = image.bytes_mut(&path);
        let text = String::from_utf8(bytes.clone()).expect("the messages are ASCII");
        *bytes = text.replace('\n', "\r\n").into_bytes();
    });
    assert_eq!(check_disk(&image.disk()).worst, Some(Severity::Damage));
    let verdict = judge(&image, &held, "CRLF");
    assert!(verdict.missing.is_empty(), "{:?}", verdict.repaired);
}

#[test]
fn a_segment_edited_by_a_mail_tool_costs_the_messages_it_touched() {
    let image = drained();
    let held = mail(image.disk());
    let path = file_of("bob", "00000001.mbox");
    let text = String::from_utf8(image.clone().bytes_mut(&path).clone()).expect("ASCII");
    let starts: Vec<usize> = text
        .match_indices("From sender@")
        .map(|(at, _)| at)
        .collect();
    // A status line in the header of the second, as mutt writes it.
    let at = text[starts[1]..].find("Subject:").expect("a header") + starts[1];
    let flagged = format!("{}Status: RO\n{}", &text[..at], &text[at..]);
    // The third is taken out.
    let deleted = format!("{}{}", &text[..starts[2]], &text[starts[3]..]);
    // One is put in between.
    let strange = "From me Thu Jan  1 00:00:00 1970\nSubject: mine\n\nhello\n\n";
    let added = format!("{}{strange}{}", &text[..starts[1]], &text[starts[1]..]);
    for (what, edited, lost) in [
        ("flagged", flagged, vec![2]),
        ("deleted", deleted, vec![3]),
        ("added", added, vec![]),
    ] {
        let image = harmed(&image, |image| {
            *image.bytes_mut(&path) = edited.into_bytes();
        });
        let verdict = judge(&image, &held, what);
        let mut named = lost_of(&verdict.repaired, "bob");
        named.retain(|uid| *uid > 0);
        assert_eq!(named, lost, "{what}: {:?}", verdict.repaired);
    }
}

#[test]
fn a_sector_of_zeros_costs_the_messages_in_it() {
    let image = small_store();
    let held = mail(image.disk());
    for (name, size) in image.files() {
        if name == "STORE" {
            // More than one byte of it cannot be made good.
            continue;
        }
        for at in (0..size).step_by(512) {
            let zeroed = harmed(&image, |image| {
                let bytes = image.bytes_mut(&name);
                let end = (at + 512).min(bytes.len());
                bytes[at..end].fill(0);
            });
            if zeroed.0 == image.0 {
                continue;
            }
            let verdict = judge_after(
                &zeroed,
                &held,
                &format!("{name} zeroed at {at}"),
                Damage::Sector,
            );
            assert!(verdict.missing.len() <= 3, "{name} at {at}: {verdict:?}");
        }
    }
}

#[test]
fn superblocks_both_torn_are_made_from_the_log() {
    let image = small_store();
    let held = mail(image.disk());
    for (what, harm) in [
        (
            "torn",
            (|bytes: &mut Vec<u8>| {
                bytes[100..4_096].fill(0xEE);
                bytes[4_196..].fill(0xEE);
            }) as fn(&mut Vec<u8>),
        ),
        ("zeros", |bytes| bytes.fill(0)),
        ("cut", |bytes| bytes.truncate(17)),
        ("empty", Vec::clear),
    ] {
        let image = harmed(&image, |image| harm(image.bytes_mut("log/00/super")));
        let verdict = judge(&image, &held, what);
        assert!(verdict.missing.is_empty(), "{what}: {:?}", verdict.repaired);
    }
}

#[test]
fn one_torn_superblock_is_an_everyday_thing() {
    let image = small_store();
    let held = mail(image.disk());
    for copy in [0, 4_096] {
        let image = harmed(&image, |image| {
            image.bytes_mut("log/00/super")[copy + 80..copy + 4_096].fill(0xEE);
        });
        let verdict = judge(&image, &held, &format!("copy at {copy}"));
        assert!(verdict.missing.is_empty(), "{:?}", verdict.repaired);
    }
}

/// A file that a compaction gave up and a crash left there stays dead, whatever of the index is lost: whoever
/// took its message over would lose it when the file goes.
#[test]
fn files_that_a_compaction_gave_up_stay_dead() {
    let name = USERS[0];
    let [dead, index] =
        ["00000001.00000001.00000001.mbox", "info.00000002"].map(|file| file_of(name, file));
    let mut config = SimConfig::new(1);
    config.poll_ns = 1_000;
    let disk = testkit::empty_disk(config);
    let config = ringpost_engine::config::ShardConfig::tiny();
    let mut bench = testkit::Bench::on(disk, config).expect("opens");
    bench.deliver_large(&[name], 1, &testkit::message(1, 9_000));
    bench.deliver(&[name], 2, &testkit::message(2, 300));
    bench.checkpoint();
    let gone = bench.expunge(name, MailboxId::INBOX, uids(&[1]));
    gone.expect("it is there");
    let compact = Request::Compact { user: user(name) };
    bench.submit(compact).expect("taken");
    let mut polls = 0;
    while bench.disk.read(&path_of(&index)).is_none() {
        bench.poll();
        polls += 1;
        assert!(polls < 100_000, "there is no new index");
    }
    let image = Image::of(&bench.disk.crash(Crash::Kill));
    assert!(image.0.contains_key(&dead), "it went with the old index");
    let held = mail(image.disk());
    assert_eq!(held.len(), 1);
    let size = image.0[&index].as_ref().map_or(0, Vec::len);
    for slot in (INFO_HEADER_BYTES..size).step_by(64) {
        let image = harmed(&image, |image| {
            image.bytes_mut(&index)[slot..slot + 64].fill(0xEE);
        });
        let verdict = judge(&image, &held, &format!("the slot at {slot}"));
        assert!(verdict.missing.is_empty(), "{:?}", verdict.repaired);
    }
}

/// What was expunged stays away: the new generation of an index says of its messages, of which some
/// lie in segments that live on, what the old one said.
#[test]
fn a_new_index_does_not_bring_back_what_was_expunged() {
    let mut bench = testkit::Bench::on(
        small_store().disk(),
        ringpost_engine::config::ShardConfig::tiny(),
    )
    .expect("the store opens");
    let inbox = MailboxId::INBOX;
    let all = bench.uids_of("bob", inbox);
    assert!(all.len() > 6, "{all:?}");
    // Small ones, and a large one.
    let gone = bench.expunge("bob", inbox, uids(&[2, 4, 5]));
    assert_eq!(gone.map(|changed| changed.uids), Ok(uids(&[2, 4, 5])));
    let flagged = bench.store("bob", inbox, uids(&all), FlagOp::Add, flags(8, &[]));
    flagged.expect("there are others");
    bench.drain();
    let image = Image::of(&bench.disk);
    let held = mail(image.disk());
    let info = file_of("bob", "info.00000001");
    let image = harmed(&image, |image| image.bytes_mut(&info)[100] ^= 1);
    let verdict = judge(&image, &held, "one byte of the header");
    assert!(verdict.missing.is_empty(), "{:?}", verdict.repaired);
    assert_eq!(verdict.repaired.users, 1, "{:?}", verdict.repaired);
}

/// A compaction carries what is in the log only into the new generation; its segment may not be there yet.
#[test]
fn mail_in_the_log_outlives_a_compaction_and_a_repair() {
    let mut carried = 0;
    for turns in 0..30 {
        let mut bench = testkit::Bench::new(ringpost_engine::config::ShardConfig {
            compact_bytes_min: 1 << 40,
            checkpoint_interval_ns: u64::MAX / 4,
            ..ringpost_engine::config::ShardConfig::tiny()
        });
        for number in 1..=4 {
            bench.deliver(&["bob", "eve"], number, &testkit::message(number, 600));
        }
        bench.checkpoint();
        let gone = bench.expunge("bob", MailboxId::INBOX, uids(&[1, 2, 3, 4]));
        gone.expect("taken");
        let compact = Request::Compact { user: user("bob") };
        bench.submit(compact).expect("taken");
        for _turn in 0..turns {
            bench.poll();
            bench.pass_time();
        }
        bench.append(&["bob"], 5, &testkit::message(5, 300));
        bench.settle();
        let image = Image::of(&bench.disk);
        let new = image.0.contains_key(&file_of("bob", "info.00000002"));
        let segment = image.0.contains_key(&file_of("bob", "00000002.mbox"));
        carried += usize::from(new && !segment);
        let held = mail(image.disk());
        assert_eq!(held.len(), 5);
        let what = format!("mail after {turns} turns");
        let verdict = judge(&image, &held, &what);
        assert!(
            verdict.repaired.is_nothing(),
            "{what}: {:?}",
            verdict.repaired
        );
        let eve = file_of("eve", "info.00000001");
        let image = harmed(&image, |image| image.bytes_mut(&eve)[100] ^= 1);
        let verdict = judge(&image, &held, &what);
        assert!(verdict.missing.is_empty(), "{what}: {:?}", verdict.repaired);
    }
    assert!(carried > 0, "no compaction had mail in the log only");
}

#[test]
fn without_store_nothing_is_touched() {
    let image = small_store();
    let newer = harmed(&image, |image| {
        let bytes = image.bytes_mut("STORE");
        let text = String::from_utf8(bytes.clone()).expect("text");
        let text = text.replace("ringpost store 1.0", "ringpost store 2.0");
        let text = &text[..text.len() - "crc 01234567\n".len()];
        *bytes = format!("{text}crc {:08x}\n", crc::of(text.as_bytes())).into_bytes();
    });
    let cut = harmed(&image, |image| image.bytes_mut("STORE").truncate(40));
    for image in [newer, cut] {
        let disk = image.disk();
        let error = repair(&disk, disk.io(), NOW, &mut |_| {}).expect_err("there is no key");
        let fits = matches!(error, RepairError::NoStore(_) | RepairError::Newer(_));
        assert!(
            fits && error.to_string().starts_with("STORE at offset 0: "),
            "{error}"
        );
        assert_eq!(Image::of(&disk).0, image.0);
    }
}

/// A crash at each change of a repair, under both models of names, and the repair after it.
#[test]
fn a_repair_that_crashes_anywhere_is_done_by_the_next() {
    let image = small_store();
    let held = mail(image.disk());
    let info = file_of("bob", "info.00000001");
    let segment = file_of("eve", "00000001.mbox");
    let image = harmed(&image, |image| {
        image.bytes_mut(&info)[700] ^= 0xFF;
        image.bytes_mut(&info)[701] ^= 0xFF;
        image.bytes_mut(&segment)[300] ^= 1;
    });
    let whole = judge(&image, &held, "without a crash");
    assert_eq!(whole.missing.len(), 1);
    for weak in [false, true] {
        let mut change = 1;
        loop {
            let disk = image.disk();
            disk.configure(|config| {
                let new = SimConfig::new(change).crash_at(change);
                *config = if weak { new.weak() } else { new };
            });
            let result = repair(&disk, disk.io(), NOW, &mut |_| {});
            if !disk.is_crashed() {
                result.expect("nothing went wrong");
                break;
            }
            let mut disk = disk;
            let kind = if change % 2 == 0 {
                Crash::Kill
            } else {
                Crash::PowerCut
            };
            let after = Image::of(&disk.crash(kind));
            let what = format!("weak {weak}, crash at {change}");
            let disk = after.disk();
            let again = repair(&disk, disk.io(), NOW, &mut |_| {});
            let again = again.unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(check_disk(&disk).is_sound(), "{what}: {again:?}");
            let rest = plan(&disk, NOW, &mut |_| {}).expect("it can be read");
            assert!(rest.is_nothing(), "{what}: {rest:?}");
            let lost = disk.list(&path_of("lost"));
            let kept = lost
                .iter()
                .any(|(name, _)| name.starts_with("eve.INBOX.uid-1.damaged"));
            assert!(kept, "{what}: {lost:?}");
            let left = mail(disk);
            let missing: BTreeMap<_, _> = held
                .iter()
                .filter(|(key, _)| !left.contains_key(key))
                .collect();
            assert_eq!(missing.len(), 1, "{what}: {missing:?}");
            change += 1;
        }
        assert!(change > 20, "{change} changes");
    }
}

/// A repair that was killed has done what the next one finds done, and a power cut takes nothing of it
/// back.
#[test]
fn what_a_killed_repair_did_is_durable_with_the_next() {
    let folders = file_of("bob", "folders");
    let image = harmed(&drained(), |image| image.bytes_mut(&folders)[10] ^= 1);
    let held = mail(image.disk());
    for seed in 1..20 {
        let mut change = 1;
        loop {
            let mut disk = image.disk();
            disk.configure(|config| *config = SimConfig::new(seed).weak().crash_at(change));
            let result = repair(&disk, disk.io(), NOW, &mut |_| {});
            if !disk.is_crashed() {
                result.expect("nothing went wrong");
                break;
            }
            let disk_now = disk.crash(Crash::Kill);
            let result = repair(&disk_now, disk_now.io(), NOW, &mut |_| {});
            result.expect("nothing goes wrong any more");
            disk = disk_now;
            let disk = disk.crash(Crash::PowerCut);
            let report = check_disk(&disk);
            let what = format!("seed {seed}, crash at {change}");
            assert!(report.is_sound(), "{what}: {:?}", report.findings);
            assert_eq!(mail(disk), held, "{what}");
            change += 1;
        }
    }
}

/// A subscription outlives a rename, a compaction and a repair.
#[test]
fn a_new_index_keeps_subscriptions() {
    let mut bench = testkit::Bench::new(ringpost_engine::config::ShardConfig::tiny());
    bench.deliver(&["bob"], 1, &testkit::message(1, 600));
    let mailbox = bench.create("bob", "a").expect("it is new");
    let subscribe = MailboxChange::Subscribe { mailbox };
    bench.change("bob", subscribe).expect("it is there");
    bench.rename("bob", "a", "b").expect("it is there");
    let gone = bench.expunge("bob", MailboxId::INBOX, uids(&[1]));
    gone.expect("it is there");
    bench.checkpoint();
    let compact = Request::Compact { user: user("bob") };
    bench.submit(compact).expect("taken");
    bench.settle();
    bench.drain();
    let image = Image::of(&bench.disk);
    let info = file_of("bob", "info.00000002");
    let image = harmed(&image, |image| image.bytes_mut(&info)[100] ^= 1);
    let disk = image.disk();
    repair(&disk, disk.io(), NOW, &mut |_| {}).expect("one byte of a header");
    let config = ringpost_engine::config::ShardConfig::tiny();
    let mut bench = testkit::Bench::on(disk, config).expect("it was repaired");
    let status = bench.status("bob", mailbox);
    assert_eq!((&*status.name, status.subscribed), ("b", Subscribed::Yes));
}

/// Repairs that are cut off one behind the other do not write over the state of the partitions that the
/// superblock still names.
#[test]
fn a_repair_that_crashes_twice_leaves_the_state_of_partitions() {
    let info = file_of("bob", "info.00000001");
    let image = harmed(&drained(), |image| {
        image.bytes_mut(&info)[700] ^= 0xFF;
        image.bytes_mut(&info)[701] ^= 0xFF;
    });
    for (first, second) in (1..12).flat_map(|first| (1..12).map(move |second| (first, second))) {
        let mut disk = image.disk();
        for at in [first, second] {
            disk.configure(|config| *config = SimConfig::new(at).crash_at(at));
            repair(&disk, disk.io(), NOW, &mut |_| {}).expect_err("it crashes");
            disk = Image::of(&disk.crash(Crash::Kill)).disk();
        }
        let report = check_disk(&disk);
        let of_log = report.findings.iter().find(|finding| {
            finding.severity == Severity::Damage && finding.corrupt.file.starts_with("log/")
        });
        assert_eq!(of_log, None, "crashes at {first} and {second}");
    }
}
