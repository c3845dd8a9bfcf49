//! A store in service among files that somebody or something harmed: what is damaged is named with file and
//! offset and what to do, nothing untrue is served, and the other users never notice. What a repair makes
//! of the same files is in `repair.rs`.
mod flipkit;
mod testkit;

use bytes::Bytes;
use flipkit::{Image, Mail, USERS, mail, small_store};
use ringpost_engine::config::ShardConfig;
use ringpost_engine::format::crc;
use ringpost_engine::format::log_file::LogFileHeader;
use ringpost_engine::format::store_file::StoreId;
use ringpost_engine::mbox::{View, restore};
use ringpost_engine::request::{Outcome, Refused};
use ringpost_netproto::id::MailboxId;
use testkit::{Bench, check_disk, message, user};

/// The store, drained: everything is in the users' files.
fn drained() -> Image {
    let mut bench = Bench::on(small_store().disk(), ShardConfig::tiny()).expect("it opens");
    bench.drain();
    Image::of(&bench.disk)
}

fn file_of(name: &str, file: &str) -> String {
    let user = user(name);
    let dir = ringpost_engine::io::RelPath::user_dir(user.partition(), user.hash(), 0);
    format!("{dir}/{file}")
}

/// File, offset and what to do stand in the sentence.
fn names(refused: &Refused, file: &str, what: &str) {
    let said = refused.to_string();
    for word in [file, " at offset ", "`ringpost repair`"] {
        assert!(
            said.contains(word),
            "{what}: {word:?} is missing in {said:?}"
        );
    }
}

/// What the store says of a user whose files were harmed; each answer is true or names the file.
#[derive(Default, Debug)]
struct Seen {
    whole: usize,
    damaged: usize,
    refused: bool,
    /// Neither served nor refused: the index does not know them.
    unknown: usize,
}

/// Serves a harmed store. `harmed` are the users whose files were touched, `file` what has to be named.
fn serve(image: &Image, held: &Mail, harmed: &[&str], file: &str, what: &str) -> Seen {
    let disk = image.disk();
    let mut bench = Bench::on(disk.clone(), ShardConfig::tiny()).expect("the store opens");
    let mut seen = Seen::default();
    for name in USERS {
        let wanted = held.iter().filter(|((user, _), _)| *user == name);
        let is_harmed = harmed.contains(&name);
        let page = match bench.list(name) {
            Ok(page) => page,
            Err(refused @ (Refused::Repairing(_) | Refused::Damaged(_))) if is_harmed => {
                names(&refused, file, what);
                seen.refused = true;
                continue;
            }
            Err(other) => panic!("{what}: {name}: {other}"),
        };
        let listed: Vec<u32> = page.entries.iter().map(|entry| entry.uid.value()).collect();
        for ((_, uid), (_, text)) in wanted {
            if !listed.contains(uid) {
                assert!(is_harmed, "{what}: {name} {uid} is gone");
                seen.unknown += 1;
                continue;
            }
            match whole(&mut bench, name, *uid) {
                Ok(found) => {
                    assert_eq!(found, *text, "{what}: {name} {uid} is not what came in");
                    seen.whole += usize::from(is_harmed);
                }
                Err(refused @ (Refused::Damaged(_) | Refused::Repairing(_))) if is_harmed => {
                    names(&refused, file, what);
                    seen.damaged += 1;
                }
                Err(other) => panic!("{what}: {name} {uid}: {other}"),
            }
        }
    }
    for name in USERS {
        let outcomes = bench.deliver(&[name], 500, &message(500, 600));
        match outcomes.first().expect("one recipient") {
            Outcome::Stored { .. } => {}
            Outcome::Refused(refused @ Refused::Repairing(_)) if harmed.contains(&name) => {
                names(refused, "p/", what);
            }
            other => panic!("{what}: {name}: {other:?}"),
        }
    }
    seen
}

/// One message of the INBOX, all pieces of it.
fn whole(bench: &mut Bench, name: &str, uid: u32) -> Result<Bytes, Refused> {
    let first = bench.fetch(name, uid)?;
    let mut stored = first.stored.to_vec();
    while (stored.len() as u64) < first.stored_len {
        let next = bench.fetch_piece(name, uid, stored.len() as u64, u32::MAX)?;
        stored.extend_from_slice(&next.stored);
    }
    if crc::of(&stored) != first.stored_crc {
        // Whoever reads in pieces compares it at the end (FORMAT.md, `request::Fetched`).
        let reason = ringpost_engine::error::CorruptReason::Checksum;
        let file = "p/, found by the reader".to_owned();
        let offset = 0;
        return Err(Refused::Damaged(std::sync::Arc::new(
            ringpost_engine::error::Corrupt {
                file,
                offset,
                reason,
            },
        )));
    }
    Ok(restore(
        &stored.into(),
        first.format_flags,
        View::AsReceived,
    ))
}

fn harmed(image: &Image, harm: impl FnOnce(&mut Image)) -> Image {
    let mut image = image.clone();
    harm(&mut image);
    image
}

/// The checker names it as well, and says what to do.
fn is_found(image: &Image, file: &str, what: &str) {
    let report = check_disk(&image.disk());
    let said: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
    let named = |said: &String| said.contains(file) && said.contains("ringpost repair");
    assert!(said.iter().any(named), "{what}: {said:?}");
}

#[test]
fn a_segment_cut_short_costs_what_was_cut_off() {
    let image = drained();
    let held = mail(image.disk());
    let path = file_of("bob", "00000001.mbox");
    let len = image.clone().bytes_mut(&path).len();
    let mut worst = 0;
    for cut in (0..len).step_by(61).chain([len - 1]) {
        let image = harmed(&image, |image| image.bytes_mut(&path).truncate(cut));
        let what = format!("{path} cut at {cut}");
        is_found(&image, &path, &what);
        let seen = serve(&image, &held, &["bob"], &path, &what);
        assert_eq!(seen.unknown, 0, "{what}: {seen:?}");
        // The index says how long it is: nothing may be appended until it is repaired.
        assert!(seen.refused || seen.damaged > 0, "{what}: {seen:?}");
        worst += usize::from(seen.refused);
    }
    assert!(worst > 10, "{worst}");
}

#[test]
fn files_of_two_users_changed_places() {
    let image = drained();
    let held = mail(image.disk());
    for file in ["00000001.mbox", "info.00000001", "folders"] {
        let (bob, eve) = (file_of("bob", file), file_of("eve", file));
        let image = harmed(&image, |image| {
            let moved = image.0.insert(bob.clone(), image.0[&eve].clone()).flatten();
            image.0.insert(eve.clone(), moved);
        });
        is_found(&image, &bob, file);
        is_found(&image, &eve, file);
        let seen = serve(&image, &held, &["bob", "eve"], file, file);
        match file {
            "info.00000001" => assert!(seen.refused && seen.whole == 0, "{seen:?}"),
            // Derived text: nobody reads it in service.
            "folders" => assert_eq!((seen.damaged, seen.unknown), (0, 0), "{seen:?}"),
            // One is shorter than its index says and refused; of the other the small ones are.
            _ => assert!(seen.refused && seen.damaged >= 4, "{seen:?}"),
        }
    }
}

#[test]
fn a_segment_edited_by_hand_or_with_other_line_ends() {
    let image = drained();
    let held = mail(image.disk());
    let path = file_of("bob", "00000001.mbox");
    let text = String::from_utf8(image.clone().bytes_mut(&path).clone()).expect("ASCII");
    let second = text
        .match_indices("From sender@")
        .nth(1)
        .expect("there are more")
        .0;
    let at = text[second..].find("Subject:").expect("a header") + second;
    for (what, edited, whole) in [
        ("CRLF", text.replace('\n', "\r\n"), 0),
        (
            "a status line",
            format!("{}Status: RO\n{}", &text[..at], &text[at..]),
            1,
        ),
        ("a word changed", text.replacen("mail 2", "mail X", 1), 5),
        (
            "a line at the end",
            format!("{text}From me\n\nhello\n\n"),
            6,
        ),
    ] {
        let image = harmed(&image, |image| {
            *image.bytes_mut(&path) = edited.into_bytes();
        });
        is_found(&image, &path, what);
        let seen = serve(&image, &held, &["bob"], &path, what);
        // The large ones have files of their own.
        assert!(seen.refused || seen.whole == whole + 2, "{what}: {seen:?}");
    }
}

#[test]
fn an_index_of_zeros_of_another_version_or_gone() {
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
    for (what, image) in [("zeros", zeros), ("gone", gone), ("newer", newer)] {
        let seen = serve(&image, &held, &["bob"], &path, what);
        assert!(seen.refused && seen.whole == 0, "{what}: {seen:?}");
        let report = check_disk(&image.disk());
        let named = report
            .findings
            .iter()
            .any(|found| found.corrupt.file == path);
        assert!(named, "{what}: {:?}", report.findings);
    }
}

#[test]
fn an_index_cut_anywhere() {
    let image = drained();
    let held = mail(image.disk());
    let path = file_of("bob", "info.00000001");
    let len = image.clone().bytes_mut(&path).len();
    let mut refused = 0;
    let ends = (0..len).step_by(64).flat_map(|at| [at, at + 1, at + 63]);
    for cut in (0..len).step_by(7).chain(ends) {
        let image = harmed(&image, |image| image.bytes_mut(&path).truncate(cut));
        let what = format!("{path} cut at {cut} of {len}");
        let seen = serve(&image, &held, &["bob"], &path, &what);
        refused += usize::from(seen.refused);
        assert!(seen.refused || seen.unknown > 0, "{what}: {seen:?}");
        let report = check_disk(&image.disk());
        assert!(!report.is_sound(), "{what}");
    }
    assert!(refused > len / 14, "{refused} of {len}");
}

/// Log files of a store that filled several, nothing of which was checkpointed.
fn long_log() -> (Image, Mail, Vec<String>) {
    let mut config = ShardConfig::tiny();
    config.checkpoint_interval_ns = u64::MAX / 4;
    config.log_files_max = 8;
    config.pending_bytes_max = 1 << 20;
    config.pending_records_max = 10_000;
    let mut bench = Bench::new(config);
    for (number, name) in (1..=30).zip(USERS.into_iter().cycle()) {
        bench.deliver(&[name], number, &message(number, 3_500));
    }
    flipkit::idle(&mut bench);
    let image = Image::of(&bench.disk);
    let held = mail(image.disk());
    let sequence = |bytes: &Vec<u8>| {
        let header = LogFileHeader::open(bytes.get(..4_096)?, StoreId::new([9; 16]), 0);
        header.ok().map(|header| header.sequence)
    };
    let files = image
        .0
        .iter()
        .filter_map(|(name, bytes)| Some((sequence(bytes.as_ref()?)?, name.clone())));
    let mut files: Vec<_> = files.collect();
    files.sort();
    let files = files.into_iter().map(|(_, name)| name).collect();
    (image, held, files)
}

/// It does not start, changes nothing, and says why; or it has all of the mail.
fn starts_or_says(image: &Image, held: &Mail, what: &str) -> bool {
    let disk = image.disk();
    match Bench::on(disk.clone(), ShardConfig::tiny()).map(drop) {
        Ok(()) => {
            let found = mail(image.disk());
            let gone: Vec<_> = held.keys().filter(|key| !found.contains_key(key)).collect();
            assert!(gone.is_empty(), "{what}: it starts without {gone:?}");
            assert!(found == *held, "{what}: something is not as it was");
            true
        }
        Err(error) => {
            let said = error.to_string();
            for word in ["log/00", " at offset ", "`ringpost repair`"] {
                assert!(
                    said.contains(word),
                    "{what}: {word:?} is missing in {said:?}"
                );
            }
            assert_eq!(Image::of(&disk).0, image.0, "{what}: something was written");
            false
        }
    }
}

#[test]
fn log_files_missing_doubled_or_of_another_store() {
    let (image, held, files) = long_log();
    assert!(files.len() >= 3, "{files:?}");
    for (place, name) in files.iter().enumerate() {
        let what = format!("{name}, the {place}. of {}", files.len());
        let missing = harmed(&image, |image| drop(image.0.remove(name)));
        let started = starts_or_says(&missing, &held, &format!("without {what}"));
        // The last one was armed and nothing is in it yet.
        let last = place + 1 == files.len();
        assert!(!started || last, "without {what}");
        let zeros = harmed(&image, |image| image.bytes_mut(name).fill(0));
        let started = starts_or_says(&zeros, &held, &format!("{what} of zeros"));
        assert!(!started || last, "{what} of zeros");
        let doubled = harmed(&image, |image| {
            let bytes = image.0[name].clone();
            image.0.insert("log/00/0042.log".to_owned(), bytes);
        });
        starts_or_says(&doubled, &held, &format!("{what} twice"));
        let strange = harmed(&image, |image| {
            let bytes = image.bytes_mut(name);
            let mut header = LogFileHeader::open(bytes, StoreId::new([9; 16]), 0).expect("armed");
            header.store = StoreId::new([8; 16]);
            bytes[..4_096].copy_from_slice(header.seal().as_slice());
        });
        let started = starts_or_says(&strange, &held, &format!("{what} of another store"));
        assert!(!started || last, "{what} of another store");
    }
}

#[test]
fn superblocks_both_torn_are_refused_and_one_is_not() {
    let image = small_store();
    let held = mail(image.disk());
    let tear = |copies: &[usize]| {
        harmed(&image, |image| {
            for copy in copies {
                image.bytes_mut("log/00/super")[copy + 80..copy + 4_096].fill(0xEE);
            }
        })
    };
    assert!(starts_or_says(&tear(&[0]), &held, "the first"));
    assert!(starts_or_says(&tear(&[4_096]), &held, "the second"));
    assert!(!starts_or_says(&tear(&[0, 4_096]), &held, "both"));
}

/// Every odd character: it is a name or it is not, and what is a name survives all that befalls a store.
#[test]
fn a_mailbox_name_with_every_odd_character() {
    let mut config = ShardConfig::tiny();
    config.pending_records_max = 100_000;
    config.index_bytes_max = 4 << 20;
    let mut bench = Bench::new(config);
    bench.deliver(&["bob"], 1, &message(1, 300));
    let odd = "\u{a0}\u{ad}\u{df}\u{e9}\u{301}\u{200b}\u{200f}\u{202e}\u{2028}\u{2029}\u{feff}\u{fffd}\
               \u{1f4e7}\u{10ffff}\u{85}\u{7f}";
    let (mut made, mut refused) = (Vec::new(), 0);
    for character in (0_u8..0x80)
        .map(char::from)
        .filter(|c| *c != '/')
        .chain(odd.chars())
    {
        for name in [
            format!("a{character}b"),
            format!("{character}x"),
            format!("x{character}"),
        ] {
            match bench.create("bob", &name) {
                Ok(_) => made.push(name),
                Err(Refused::Exists) => {}
                Err(why @ Refused::BadName(_)) => {
                    assert!(why.to_string().contains("mailbox name"), "{name:?}: {why}");
                    refused += 1;
                }
                Err(other) => panic!("{name:?}: {other}"),
            }
        }
    }
    assert!(made.len() > 200 && refused > 90, "{} {refused}", made.len());
    let is_there = |bench: &mut Bench, when: &str| {
        let names = bench.names("bob");
        for name in &made {
            assert!(names.contains(name), "{when}: {name:?} is gone");
        }
    };
    is_there(&mut bench, "made");
    let mut bench = bench.crash(ringpost_engine::io::sim::Crash::PowerCut);
    is_there(&mut bench, "crashed");
    bench.drain();
    let report = bench.check();
    assert!(report.is_sound(), "{:?}", report.findings);
    // Without an index the names come from `folders`, which has them as text.
    let image = harmed(&Image::of(&bench.disk), |image| {
        drop(image.0.remove(&file_of("bob", "info.00000001")));
    });
    let disk = image.disk();
    let now = ringpost_netproto::id::WallNs::new(1_769_904_000_000_000_000);
    ringpost_engine::repair::repair(&disk, disk.io(), now, &mut |_| {}).expect("repaired");
    let mut bench = Bench::on(disk, ShardConfig::tiny()).expect("it opens");
    is_there(&mut bench, "repaired");
    assert_eq!(bench.uids_of("bob", MailboxId::INBOX), [1]);
}
