//! Whole stores that version 1.0 wrote are opened, served, checkpointed and checked as on the day they were
//! made (STYLE.md 7.4). None is ever edited: a change that needs this is a new version of the format.
mod fixturekit;
mod flipkit;
mod testkit;

use std::fs;

use fixturekit::{bench_of, folder, load, names, open, served, sha256, state};
use flipkit::Image;
use ringpost_engine::repair::{plan, repair};
use ringpost_netproto::id::WallNs;
use serde_json::{Value, json};
use testkit::check_disk;

const NOW: WallNs = WallNs::new(1_769_904_000_000_000_000);

fn expected(name: &str) -> Value {
    let path = folder().join(name).join("expected.json");
    let text = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).expect("JSON")
}

fn users(expected: &Value) -> Vec<&str> {
    let users = expected["users"].as_object().expect("an object");
    users.keys().map(String::as_str).collect()
}

/// Every fixture with what is expected of it.
fn each(mut look: impl FnMut(&str, &Image, &Value)) {
    let names = names();
    assert!(names.len() >= 9, "{names:?}");
    for name in names {
        let image = load(&folder().join(&name).join("store"));
        look(&name, &image, &expected(&name));
    }
}

#[test]
fn sha256_is_that_of_the_standard() {
    let two_blocks = b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
    assert_eq!(
        [sha256::hex(b"abc"), sha256::hex(two_blocks)],
        [
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
        ]
    );
}

#[test]
fn every_store_is_served_as_it_was() {
    each(|name, image, expected| {
        let found = state(image, &users(expected));
        for part in ["users", "findings"] {
            assert_eq!(
                found[part], expected[part],
                "{name}: {part} is now\n{:#}\nand was\n{:#}",
                found[part], expected[part]
            );
        }
    });
}

/// What was in the log only goes into files that an earlier version began.
#[test]
fn every_store_is_checkpointed_and_opened_again() {
    each(|name, image, expected| {
        let disk = image.disk();
        let mut benches = open(&disk);
        for bench in &mut benches {
            bench.drain();
        }
        drop(benches);
        let users = users(expected);
        assert_eq!(served(&disk, &users), expected["users"], "{name}");
        let report = check_disk(&disk);
        let sound = expected.get("repaired").is_none();
        assert_eq!(report.is_sound(), sound, "{name}: {:?}", report.findings);
    });
}

#[test]
fn every_store_takes_more_mail() {
    each(|name, image, expected| {
        let disk = image.disk();
        let mut benches = open(&disk);
        for (user, held) in expected["users"].as_object().expect("an object") {
            let Some(uidnext) = held[0]["uidnext"].as_u64() else {
                continue;
            };
            let bench = bench_of(&mut benches, user);
            let text = testkit::message(1_000, 700);
            bench.deliver(&[user], 1_000, &text);
            let uid = u32::try_from(uidnext).unwrap();
            assert_eq!(bench.mailbox(user)[&uid].1, text, "{name}: {user}");
        }
    });
}

#[test]
fn a_sound_store_needs_no_repair_and_a_damaged_one_is_repaired() {
    each(|name, image, expected| {
        let disk = image.disk();
        let done = repair(&disk, disk.io(), NOW, &mut |_| {});
        let done = done.unwrap_or_else(|error| panic!("{name}: {error}"));
        let lost: Vec<u32> = done.lost.iter().map(|lost| lost.lost.uid).collect();
        let users = users(expected);
        let none = json!({"lost": [], "users": expected["users"]});
        let wanted = expected.get("repaired").unwrap_or(&none);
        let found = json!({"lost": lost, "users": served(&disk, &users)});
        assert_eq!(&found, wanted, "{name}: {done:?}");
        let again = plan(&disk, NOW, &mut |_| {}).expect("it can be read");
        assert!(again.is_nothing(), "{name}: {again:?}");
    });
}
