//! Made the stores under `engine/tests/fixtures`: `cargo run -p ringpost-engine --example fixtures -- DIR`
//! writes them into a new directory. For the next version of the format; what is in the tree is never
//! written again, and nothing here refuses that better than an existing directory does.
#![expect(
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a program for people, over stores that it made itself"
)]

#[path = "../tests/fixturekit/mod.rs"]
mod fixturekit;
#[path = "../tests/flipkit/mod.rs"]
mod flipkit;
#[path = "../tests/testkit/mod.rs"]
mod testkit;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use flipkit::{Image, idle};
use ringpost_engine::config::ShardConfig;
use ringpost_engine::format::info::{ANSWERED, FLAGGED, SEEN};
use ringpost_engine::io::RelPath;
use ringpost_engine::io::sim::{Crash, SimConfig, SimDisk};
use ringpost_engine::repair::repair;
use ringpost_engine::request::{Body, FlagOp, Flags, MailboxChange, QuotaLimits, Request, UidSet};
use ringpost_netproto::id::{MailboxId, WallNs};
use serde_json::{Value, json};
use testkit::client::uids;
use testkit::{Bench, empty_disk, empty_disk_of, message, user};

const NOW: WallNs = WallNs::new(1_769_904_000_000_000_000);

/// Compacts when asked only.
fn config() -> ShardConfig {
    ShardConfig {
        compact_bytes_min: 1 << 40,
        ..ShardConfig::tiny()
    }
}

fn bench() -> Bench {
    Bench::on(empty_disk(SimConfig::new(1)), config()).expect("an empty store opens")
}

/// One of each kind of message: line ends, quoting, final newline, bytes, size.
const ODD: [&[u8]; 8] = [
    b"Subject: LF\n\nplain\n",
    b"Subject: no final newline\r\n\r\nFrom here on\r\n>From there\r\nend",
    b"Subject: mixed\r\n\nFrom a bare LF\r\nand\rCR\n",
    b"Subject: quoted\r\n\r\n>>>From deep\r\nFrom \r\n>Fromage\r\n",
    b"Subject: 8-bit\r\n\r\ngr\xFC\xDFe \x00 nul\r\n",
    b"",
    b"no header at all",
    b"From: a@b.test\r\nTo: c@d.test\r\nSubject: folded\r\n over two\r\nDate: Thu, 1 Jan 2026 00:00:00 +0000\r\n\
      Message-ID: <1@b.test>\r\nIn-Reply-To: <0@b.test>\r\n\r\nHello.\r\n",
];

/// Small, odd and large mail, some of it for two.
fn fill(bench: &mut Bench, from: u64) -> u64 {
    let mut number = from;
    for odd in ODD {
        number += 1;
        bench.deliver(&["bob"], number, odd);
    }
    for users in [&["bob", "eve"][..], &["eve"]] {
        number += 1;
        bench.deliver(users, number, &message(number, 900));
    }
    number += 1;
    bench.deliver_large(&["bob", "eve"], number, &message(number, 5_000));
    number
}

fn crash(mut bench: Bench, kind: Crash) -> SimDisk {
    bench.disk.crash(kind)
}

/// Stopped in peace.
fn clean() -> Image {
    let mut bench = bench();
    fill(&mut bench, 0);
    bench.drain();
    Image::of(&bench.disk)
}

/// Some mail in its files, the rest in the log only, and with it a user of whom nothing else is there.
fn killed() -> Image {
    let mut bench = bench();
    let number = fill(&mut bench, 0);
    bench.checkpoint();
    let number = fill(&mut bench, number);
    bench.deliver(&["dan"], number + 1, &message(number + 1, 300));
    bench.deliver_large(&["dan"], number + 2, &message(number + 2, 6_000));
    idle(&mut bench);
    Image::of(&crash(bench, Crash::PowerCut))
}

/// The last frame is there without its end: the power went while it was written.
fn torn() -> SimDisk {
    let mut bench = bench();
    bench.deliver(&["bob"], 1, &message(1, 600));
    bench.checkpoint();
    bench.deliver(&["bob", "eve"], 2, &message(2, 600));
    idle(&mut bench);
    let before = Image::of(&bench.disk);
    // A message of two blocks, of which the second did not arrive.
    bench.deliver(&["bob"], 3, &message(3, 3_900));
    let disk = crash(bench, Crash::PowerCut);
    let path = RelPath::log_file(0, 1);
    let old = before.0[path.as_str()].clone().expect("a file");
    let mut new = disk.read(&path).expect("the log");
    let changed: Vec<usize> = (0..new.len()).filter(|at| new[*at] != old[*at]).collect();
    let (first, last) = (changed[0] / 4_096, changed[changed.len() - 1] / 4_096);
    assert_eq!(last, first + 1, "a frame of two blocks");
    new[last * 4_096..].copy_from_slice(&old[last * 4_096..]);
    disk.put(&path, &new);
    disk
}

/// The log went on behind such an end, in another file.
fn went_on() -> Image {
    let mut bench = Bench::on(torn(), config()).expect("a torn end is no damage");
    bench.deliver(&["eve"], 4, &message(4, 600));
    let mut bench = bench.crash(Crash::Kill);
    bench.deliver(&["bob"], 5, &message(5, 600));
    idle(&mut bench);
    Image::of(&crash(bench, Crash::PowerCut))
}

/// Folders, flags, keywords, copies, moves, expunges.
fn lived() -> Bench {
    let mut bench = bench();
    let inbox = MailboxId::INBOX;
    let number = fill(&mut bench, 0);
    let work = bench.create("bob", "Work/2026").expect("made");
    let odd = bench.create("bob", "gr\u{fc}n & 100% \"x\"").expect("made");
    let gone = bench.create("bob", "gone").expect("made");
    bench.checkpoint();
    bench
        .copy("bob", inbox, UidSet::range(1, 4), work)
        .expect("copied");
    bench.copy("bob", inbox, uids(&[10]), odd).expect("copied");
    bench.copy("bob", inbox, uids(&[1]), gone).expect("copied");
    bench
        .move_to("bob", inbox, uids(&[2, 11]), odd)
        .expect("moved");
    bench
        .rename("bob", "Work/2026", "Archive/2026")
        .expect("renamed");
    bench.delete("bob", gone).expect("deleted");
    bench
        .change("bob", MailboxChange::Subscribe { mailbox: odd })
        .expect("subscribed");
    bench
        .change("bob", MailboxChange::Subscribe { mailbox: work })
        .expect("subscribed");
    bench
        .change("bob", MailboxChange::Unsubscribe { mailbox: work })
        .expect("unsubscribed");
    let flags = |system, words: &[&str]| testkit::client::flags(system, words);
    bench
        .store(
            "bob",
            inbox,
            UidSet::range(1, 6),
            FlagOp::Add,
            flags(SEEN, &["$Forwarded", "blue"]),
        )
        .expect("stored");
    bench
        .store(
            "bob",
            inbox,
            uids(&[3]),
            FlagOp::Remove,
            flags(SEEN, &["blue"]),
        )
        .expect("stored");
    bench
        .store(
            "bob",
            odd,
            uids(&[1]),
            FlagOp::Replace,
            flags(FLAGGED, &["red"]),
        )
        .expect("stored");
    more_and_less(&mut bench, number);
    bench.checkpoint();
    bench
}

/// More mail, and some of all of it expunged.
fn more_and_less(bench: &mut Bench, number: u64) {
    let inbox = MailboxId::INBOX;
    for more in 1..=6 {
        bench.deliver(
            &["bob", "eve"],
            number + more,
            &message(number + more, 1_500),
        );
    }
    bench
        .expunge("bob", inbox, uids(&[4, 5, 7, 12, 13, 14]))
        .expect("expunged");
    bench
        .expunge("eve", inbox, UidSet::range(1, 5))
        .expect("expunged");
}

/// A new generation in its files; more of everything in the log only.
fn lives() -> Image {
    let mut bench = lived();
    for name in ["bob", "eve"] {
        compact(&mut bench, name);
    }
    bench.checkpoint();
    let inbox = MailboxId::INBOX;
    bench
        .store(
            "bob",
            inbox,
            uids(&[6, 15]),
            FlagOp::Add,
            Flags::system(ANSWERED),
        )
        .expect("stored");
    bench.expunge("bob", inbox, uids(&[8])).expect("expunged");
    bench.client_append(
        "eve",
        MailboxId::SENT,
        (90, &message(90, 300)),
        testkit::client::flags(SEEN, &["mine"]),
        QuotaLimits::default(),
    );
    bench.create("eve", "later").expect("made");
    bench.deliver(&["bob", "eve"], 91, &message(91, 700));
    idle(&mut bench);
    Image::of(&crash(bench, Crash::PowerCut))
}

fn compact(bench: &mut Bench, name: &str) {
    bench
        .submit(Request::Compact { user: user(name) })
        .expect("taken");
    bench.settle();
}

/// A new generation that counts by its record alone, mail before and behind it.
fn swapped() -> Image {
    let mut bench = lived();
    bench.deliver(&["bob", "eve"], 80, &message(80, 700));
    bench.deliver_large(&["bob"], 81, &message(81, 5_000));
    compact(&mut bench, "bob");
    bench.deliver(&["bob"], 82, &message(82, 700));
    let inbox = MailboxId::INBOX;
    bench
        .store(
            "bob",
            inbox,
            uids(&[1]),
            FlagOp::Add,
            Flags::system(FLAGGED),
        )
        .expect("stored");
    idle(&mut bench);
    Image::of(&crash(bench, Crash::PowerCut))
}

/// What an interrupted reception and an interrupted compaction leave: nobody was promised it.
fn part_files() -> Image {
    for change in 1.. {
        let mut bench = lived();
        let body = Body::Staged(bench.stage(95, &message(95, 5_000)).expect("staged"));
        let from = bench.disk.changes();
        bench
            .disk
            .configure(|config| config.crash_at = Some(from + change));
        compact(&mut bench, "bob");
        assert!(bench.disk.is_crashed(), "it ended without part files");
        drop(body);
        let image = Image::of(&bench.disk.crash(Crash::Kill));
        let has = |end: &str| {
            image
                .files()
                .iter()
                .any(|(name, size)| name.ends_with(end) && *size > 512)
        };
        let segment = image.files().iter().any(|(name, size)| {
            name.starts_with("p/")
                && name.contains(".part")
                && !name.contains("info")
                && *size > 512
        });
        if has("info.00000002.part") && segment {
            assert!(
                image
                    .files()
                    .iter()
                    .any(|(name, _)| name.starts_with("stage/"))
            );
            return image;
        }
    }
    unreachable!("the loop ends by its assertion")
}

/// Two logs, each with its users.
fn two_logs() -> Image {
    let disk = empty_disk_of(SimConfig::new(1), 2);
    let names = ["bob", "eve", "dan", "amy"];
    for round in 0..2 {
        for log in 0..2 {
            let mut bench = Bench::on_log(disk.clone(), config(), log, 2).expect("it opens");
            let of_log = |name: &&&str| u32::from(user(name).partition().value()) % 2 == log;
            for (number, name) in (1..).zip(names.iter().filter(of_log)) {
                bench.deliver(
                    &[name],
                    round * 10 + number,
                    &message(round * 10 + number, 400),
                );
            }
            if round == 0 {
                bench.drain();
            } else {
                idle(&mut bench);
            }
        }
    }
    Image::of(&disk)
}

/// One message's run is not what its checksum says, in more than one byte.
fn bad_run(whole: &Image) -> Image {
    let mut image = whole.clone();
    let bob = user("bob");
    let path = RelPath::user_dir(bob.partition(), bob.hash(), 0).info(1);
    let bytes = image.bytes_mut(path.as_str());
    let at = (8 * 64..bytes.len())
        .step_by(64)
        .filter(|at| bytes[at + 4] == 1 && bytes[at + 5] > 0)
        .nth(3)
        .expect("a fourth message");
    bytes[at + 90] ^= 0xFF;
    bytes[at + 44] ^= 0xFF;
    image
}

fn expected(what: &str, image: &Image, users: &[&str], whole: Option<&Image>) -> Value {
    let mut expected = fixturekit::state(image, users);
    expected["what"] = json!(what);
    if let Some(whole) = whole {
        expected["before"] = fixturekit::state(whole, users)["users"].clone();
        let disk = image.disk();
        let repaired = repair(&disk, disk.io(), NOW, &mut |_| {}).expect("it can be repaired");
        expected["repaired"] = json!({
            "lost": repaired.lost.iter().map(|lost| lost.lost.uid).collect::<Vec<_>>(),
            "users": fixturekit::served(&disk, users),
        });
    }
    expected
}

/// A store to be written: its name, what it is, its files, who has mail in it.
type Fixture = (&'static str, &'static str, Image, &'static [&'static str]);

fn all(whole: &Image) -> [Fixture; 9] {
    let (three, two) = (&["bob", "dan", "eve"][..], &["bob", "eve"][..]);
    [
        (
            "bad-run",
            "one run of an index is damaged",
            bad_run(whole),
            two,
        ),
        ("clean", "stopped in peace", whole.clone(), two),
        (
            "killed",
            "mail in the log only, a user of whom nothing else is there",
            killed(),
            three,
        ),
        (
            "lives",
            "folders, flags, expunges, a compacted generation, more in the log only",
            lives(),
            two,
        ),
        (
            "part-files",
            "interrupted while receiving and compacting",
            part_files(),
            two,
        ),
        (
            "swapped",
            "a new generation that counts by its record in the log alone",
            swapped(),
            two,
        ),
        (
            "torn",
            "the last frame of the log is not whole",
            Image::of(&torn()),
            two,
        ),
        (
            "two-logs",
            "two logs, each with its users",
            two_logs(),
            &["amy", "bob", "dan", "eve"],
        ),
        (
            "went-on",
            "the log went on behind a torn end, in another file",
            went_on(),
            two,
        ),
    ]
}

fn main() -> ExitCode {
    let Some(out) = std::env::args().nth(1) else {
        println!("name a directory that does not exist yet; the fixtures are written into it");
        return ExitCode::from(2);
    };
    let out = Path::new(&out);
    if out.exists() {
        println!("{} exists; fixtures are never written over", out.display());
        return ExitCode::FAILURE;
    }
    let whole = clean();
    for (name, what, image, users) in &all(&whole) {
        let before = (*name == "bad-run").then_some(&whole);
        let expected = expected(what, image, users, before);
        let text = serde_json::to_string_pretty(&expected).expect("plain values");
        let written = fixturekit::save(image, &out.join(name).join("store"))
            .and_then(|()| fs::write(out.join(name).join("expected.json"), text + "\n"));
        if let Err(error) = written {
            println!("{}: {error}", out.join(name).display());
            return ExitCode::FAILURE;
        }
        println!("{name}: {} files", image.files().len());
    }
    ExitCode::SUCCESS
}
