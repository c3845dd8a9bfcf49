//! A directory that no daemon uses is read as the daemon would serve it, and nothing in it changes.
mod fixturekit;
mod flipkit;
mod testkit;

use std::collections::BTreeMap;

use fixturekit::{folder, load, names, sha256};
use flipkit::{Image, path_of};
use ringpost_engine::config::ShardConfig;
use ringpost_engine::io::sim::Crash;
use ringpost_engine::offline::{Offline, OfflineError, OfflineUser};
use ringpost_engine::request::More;
use ringpost_netproto::id::{MailboxId, Uid};
use serde_json::{Value, json};
use testkit::client::in_every_state;
use testkit::{Bench, message};

fn text(user: &OfflineUser<'_>, mailbox: MailboxId, uid: u32) -> Result<Vec<u8>, OfflineError> {
    let mut text = Vec::new();
    user.fetch(mailbox, Uid::new(uid), &mut |_, piece| {
        text.extend_from_slice(&piece);
        true
    })?;
    Ok(text)
}

/// A user as `expected.json` has it, read page by page.
fn seen(user: &OfflineUser<'_>) -> Value {
    let mailboxes = user.mailboxes().into_iter().map(|status| {
        let mut entries = Vec::new();
        loop {
            let after = entries.last().map_or(0, |entry: &Value| {
                u32::try_from(entry["uid"].as_u64().expect("a number")).expect("a uid")
            });
            let page = user.list(status.mailbox, after, 3).expect("it is listed");
            for entry in page.entries {
                let uid = entry.uid.value();
                let text = text(user, status.mailbox, uid).expect("it is whole");
                assert_eq!(text.len() as u64, entry.received_size);
                entries.push(json!({
                    "uid": uid,
                    "modseq": entry.modseq.value(),
                    "flags": entry.flags,
                    "sha256": sha256::hex(&text),
                }));
            }
            if page.more == More::No {
                break;
            }
        }
        json!({"name": status.name, "uidnext": status.uidnext, "messages": entries})
    });
    mailboxes.collect()
}

/// The same of what was recorded.
fn wanted(mailboxes: &Value) -> Value {
    let mailboxes = mailboxes.as_array().expect("not refused").iter();
    mailboxes
        .map(|mailbox| {
            let messages = mailbox["messages"].as_array().expect("a list").iter();
            let messages: Vec<Value> = messages
                .map(|message| {
                    json!({
                        "uid": message["uid"],
                        "modseq": message["modseq"],
                        "flags": message["flags"],
                        "sha256": message["sha256"],
                    })
                })
                .collect();
            json!({"name": mailbox["name"], "uidnext": mailbox["uidnext"], "messages": messages})
        })
        .collect()
}

#[test]
fn every_fixture_is_read_as_it_was_served() {
    let mut users = 0;
    for name in names() {
        let path = folder().join(&name);
        let disk = load(&path.join("store")).disk();
        let before = Image::of(&disk);
        let recorded = std::fs::read(path.join("expected.json")).expect("it is there");
        let recorded: Value = serde_json::from_slice(&recorded).expect("JSON");
        let offline = Offline::open(&disk, &mut |_| {}).expect("STORE is whole");
        assert!(
            offline.damages().is_empty(),
            "{name}: {:?}",
            offline.damages()
        );
        for (user, held) in recorded["users"].as_object().expect("an object") {
            users += 1;
            match offline.user(user.as_bytes()) {
                Ok(found) => assert_eq!(seen(&found), wanted(held), "{name}: {user}"),
                Err(OfflineError::Damaged(corrupt)) => {
                    assert_eq!(held["refused"]["file"], json!(corrupt.file), "{name}");
                    assert_eq!(held["refused"]["offset"], json!(corrupt.offset), "{name}");
                }
                Err(other) => panic!("{name}: {user}: {other}"),
            }
        }
        let nobody = offline.user(b"nobody").err();
        assert_eq!(nobody, Some(OfflineError::NoSuchUser), "{name}");
        assert_eq!(
            Image::of(&disk).0,
            before.0,
            "{name}: something was written"
        );
    }
    assert!(users > 15, "{users}");
}

/// Pending, materialised, killed, cut off: the same mail, with the bytes that the shard gives.
#[test]
fn what_a_shard_serves_is_what_is_read() {
    let mut bench = Bench::new(ShardConfig::tiny());
    bench.deliver(&["bob", "eve"], 1, &message(1, 300));
    bench.checkpoint();
    bench.deliver(&["bob"], 2, &message(2, 3_000));
    bench.deliver_large(&["bob", "eve"], 3, &message(3, 9_000));
    in_every_state(bench, |bench| {
        let disk = bench.disk.clone();
        let offline = Offline::open(&disk, &mut |_| {}).expect("STORE is whole");
        for name in ["bob", "eve"] {
            let user = offline.user(name.as_bytes()).expect("it is there");
            let mut read = BTreeMap::new();
            let page = user.list(MailboxId::INBOX, 0, 100).expect("listed");
            for entry in page.entries {
                let uid = entry.uid.value();
                let text = text(&user, MailboxId::INBOX, uid).expect("whole");
                read.insert(uid, (entry.guid, bytes::Bytes::from(text)));
            }
            assert_eq!(read, bench.mailbox(name), "{name}");
        }
    });
}

#[test]
fn a_damaged_message_is_named_and_the_others_are_read() {
    let mut bench = Bench::new(ShardConfig::tiny());
    for number in 1..=3 {
        bench.deliver(&["bob"], number, &message(number, 700));
    }
    bench.drain();
    let disk = bench.disk.crash(Crash::PowerCut);
    let dir = testkit::client::dir("bob");
    let segment = dir.segment(1);
    assert!(disk.flip(&segment, 400, 0x10));
    let offline = Offline::open(&disk, &mut |_| {}).expect("STORE is whole");
    let user = offline.user(b"bob").expect("the index is whole");
    let Err(OfflineError::Damaged(corrupt)) = text(&user, MailboxId::INBOX, 1) else {
        panic!("it is not as it was written");
    };
    assert_eq!(corrupt.file, segment.as_str());
    for uid in [2, 3] {
        let found = text(&user, MailboxId::INBOX, uid).expect("it is whole");
        assert_eq!(found, message(u64::from(uid), 700));
    }
    for (mailbox, uid, why) in [
        (MailboxId::INBOX, 9, OfflineError::NoSuchMessage),
        (MailboxId::new(77), 1, OfflineError::NoSuchMailbox),
    ] {
        assert_eq!(text(&user, mailbox, uid), Err(why));
    }
}

/// Acknowledged mail that is damaged in the log: said, and the rest is read.
#[test]
fn a_damaged_log_is_said() {
    let mut bench = Bench::new(ShardConfig::tiny());
    bench.deliver(&["bob"], 1, &message(1, 700));
    bench.deliver(&["eve"], 2, &message(2, 700));
    flipkit::idle(&mut bench);
    let disk = bench.disk.crash(Crash::PowerCut);
    for at in [4_096 + 900, 4_096 + 901] {
        assert!(disk.flip(&path_of("log/00/0001.log"), at, 0xFF));
    }
    let offline = Offline::open(&disk, &mut |_| {}).expect("STORE is whole");
    let said: Vec<_> = offline
        .damages()
        .iter()
        .map(|found| found.corrupt.file.as_str())
        .collect();
    assert!(said.contains(&"log/00/0001.log"), "{said:?}");
    let eve = offline.user(b"eve").expect("its record is whole");
    assert_eq!(text(&eve, MailboxId::INBOX, 1), Ok(message(2, 700)));
}
