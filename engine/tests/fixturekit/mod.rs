//! Whole stores as some version wrote them, and what they hold: `tests/fixtures/VERSION/NAME/store` is a
//! data directory, `expected.json` beside it says what a reader finds in it. The example `fixtures` made
//! them, once; none is ever edited. For the test that opens them and for that example.
#![allow(
    dead_code,
    clippy::allow_attributes,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "helpers of tests are tests; test and example each use their own part of the kit"
)]

pub(crate) mod sha256;

use std::fs;
use std::path::{Path, PathBuf};

use ringpost_engine::check::Severity;
use ringpost_engine::config::ShardConfig;
use ringpost_engine::format::store_file::StoreFile;
use ringpost_engine::io::sim::SimDisk;
use ringpost_engine::mbox::{View, restore};
use ringpost_engine::request::{Event, ListEntry, MailboxStatus, Refused, Request, Subscribed};
use ringpost_netproto::id::PartitionId;
use serde_json::{Map, Value, json};

use crate::flipkit::Image;
use crate::testkit::{Bench, check_disk, user};

/// Where the stores of this version are.
pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1.0")
}

/// The stores, by name.
pub(crate) fn names() -> Vec<String> {
    let entries = fs::read_dir(folder()).expect("the fixtures are there");
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// Reads a store's files. Git keeps no empty directories: those that belong to any store are added.
pub(crate) fn load(root: &Path) -> Image {
    let mut image = Image::default();
    collect(root, "", &mut image);
    for dir in ["log", "stage", "p"] {
        image.0.entry(dir.to_owned()).or_insert(None);
    }
    let count = store_file(&image).partitions.value();
    for partition in 0..count {
        let partition = PartitionId::new(u16::try_from(partition).unwrap());
        let dir = ringpost_engine::io::RelPath::partition_dir(partition);
        image.0.entry(dir.as_str().to_owned()).or_insert(None);
    }
    image
}

fn collect(root: &Path, below: &str, image: &mut Image) {
    for entry in fs::read_dir(root.join(below)).expect("a directory of a fixture") {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let path = if below.is_empty() {
            name
        } else {
            format!("{below}/{name}")
        };
        if entry.file_type().unwrap().is_dir() {
            image.0.insert(path.clone(), None);
            collect(root, &path, image);
        } else {
            let bytes = fs::read(entry.path()).unwrap();
            image.0.insert(path, Some(bytes));
        }
    }
}

/// Writes a store's files below `root`, which must not exist.
pub(crate) fn save(image: &Image, root: &Path) -> std::io::Result<()> {
    for (name, bytes) in &image.0 {
        let path = root.join(name);
        match bytes {
            None => fs::create_dir_all(path)?,
            Some(bytes) => {
                fs::create_dir_all(path.parent().expect("below the root"))?;
                fs::write(path, bytes)?;
            }
        }
    }
    Ok(())
}

fn store_file(image: &Image) -> StoreFile {
    let bytes = image.0["STORE"].as_ref().expect("a file");
    StoreFile::decode(bytes).expect("of this version")
}

/// What the engine serves of a store, and what the checker says of it.
pub(crate) fn state(image: &Image, users: &[&str]) -> Value {
    let disk = image.disk();
    let report = check_disk(&disk);
    let findings: Vec<Value> = report
        .findings
        .iter()
        .map(|finding| {
            json!({
                "severity": match finding.severity {
                    Severity::Expected => "expected",
                    Severity::Minor => "minor",
                    Severity::Damage => "damage",
                },
                "file": finding.corrupt.file,
                "offset": finding.corrupt.offset,
            })
        })
        .collect();
    json!({"users": served(&disk, users), "findings": findings})
}

/// What the engine serves: by user the mailboxes, or that it is refused.
pub(crate) fn served(disk: &SimDisk, users: &[&str]) -> Value {
    let mut benches = open(disk);
    let mut all = Map::new();
    for name in users {
        let bench = bench_of(&mut benches, name);
        all.insert((*name).to_owned(), of_user(bench, name));
    }
    Value::Object(all)
}

/// A bench for each log of the store.
pub(crate) fn open(disk: &SimDisk) -> Vec<Bench> {
    let logs = store_file(&Image::of(disk)).logs;
    let bench = |log| Bench::on_log(disk.clone(), ShardConfig::tiny(), log, logs);
    (0..logs).map(|log| bench(log).expect("it opens")).collect()
}

/// The bench that has a user.
pub(crate) fn bench_of<'a>(benches: &'a mut [Bench], name: &str) -> &'a mut Bench {
    let log = usize::from(user(name).partition().value()) % benches.len();
    &mut benches[log]
}

fn of_user(bench: &mut Bench, name: &str) -> Value {
    match bench.statuses(name) {
        Ok(statuses) => statuses
            .iter()
            .map(|status| of_mailbox(bench, name, status))
            .collect(),
        Err(Refused::Repairing(corrupt)) => {
            json!({"refused": {"file": corrupt.file, "offset": corrupt.offset}})
        }
        Err(other) => panic!("{name}: {other}"),
    }
}

fn of_mailbox(bench: &mut Bench, name: &str, status: &MailboxStatus) -> Value {
    let page = bench.list_of(name, status.mailbox).expect("it is listed");
    let messages: Vec<Value> = page
        .entries
        .iter()
        .map(|entry| of_message(bench, name, status, entry))
        .collect();
    json!({
        "name": status.name,
        "id": status.mailbox.value(),
        "uidvalidity": status.uidvalidity.value(),
        "uidnext": status.uidnext,
        "highest_modseq": status.highest_modseq,
        "subscribed": status.subscribed == Subscribed::Yes,
        "messages": messages,
    })
}

fn of_message(bench: &mut Bench, name: &str, status: &MailboxStatus, entry: &ListEntry) -> Value {
    let mut stored = Vec::new();
    let text = loop {
        let ticket = bench
            .submit(Request::Fetch {
                user: user(name),
                mailbox: status.mailbox,
                uid: entry.uid,
                stored_offset: stored.len() as u64,
                bytes_max: u32::MAX,
            })
            .expect("taken");
        bench.settle();
        let fetched = bench.events.iter().find_map(|event| match event {
            Event::Fetched { ticket: of, result } if *of == ticket => Some(result.clone()),
            _ => None,
        });
        let fetched = fetched.expect("answered").expect("it is whole");
        stored.extend_from_slice(&fetched.stored);
        if stored.len() as u64 >= fetched.stored_len {
            break restore(&stored.into(), fetched.format_flags, View::AsReceived);
        }
    };
    let words = status.keywords.iter().enumerate();
    let words: Vec<&str> = words
        .filter(|(bit, _)| entry.keywords >> bit & 1 == 1)
        .map(|(_, word)| &**word)
        .collect();
    json!({
        "uid": entry.uid.value(),
        "guid": entry.guid.to_string(),
        "modseq": entry.modseq.value(),
        "flags": entry.flags,
        "keywords": words,
        "size": text.len(),
        "rfc822_size": entry.rfc822_size,
        "sha256": sha256::hex(&text),
    })
}
