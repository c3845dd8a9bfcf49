//! A store on a real disk: what opens, what is refused and in which words, and a changing number of
//! cores, each time without a clean shutdown.
#![allow(
    clippy::disallowed_methods,
    clippy::allow_attributes,
    reason = "the test looks at the directory from outside"
)]
mod testkit;

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use ringpost_engine::Shard;
use ringpost_engine::check::{DirTree, check};
use ringpost_engine::config::{Copies, ShardConfig};
use ringpost_engine::error::OpenError;
use ringpost_engine::format::log_file::LogFileHeader;
use ringpost_engine::format::parts::PartitionState;
use ringpost_engine::format::store_file::{StoreFile, StoreId};
use ringpost_engine::io::{Helpers, Io, RelPath, UringIo, UringOptions};
use ringpost_engine::mbox::{View, restore};
use ringpost_engine::prepare::Push;
use ringpost_engine::request::{Body, Event, MonotonicNs, Now, Outcome, Refused, Request, Ticket};
use ringpost_engine::store::{Store, StoreOptions};
use ringpost_netproto::id::{Guid, MailboxId, NodeId, PartitionId, WallNs};
use ringpost_netproto::placement::core_of;
use testkit::{Bench, KEY, guid, message, partitions, prepare, preparer, ticket_of, user};

/// 2026-01-01T00:00:00Z.
const WALL: u64 = 1_767_225_600_000_000_000;

fn options(node: u32, logs: u32) -> StoreOptions {
    let mut entropy = [9; 32];
    entropy[16..].copy_from_slice(&KEY.bytes());
    StoreOptions {
        node: NodeId::new(node),
        partitions: partitions(),
        logs,
        entropy,
    }
}

/// A clock that goes on with every look: what is measured here is bytes, not time.
#[derive(Default)]
struct Clock(u64);

impl Clock {
    fn now(&mut self) -> Now {
        self.0 += 1_000;
        Now {
            monotonic: MonotonicNs::new(self.0),
            wall: WallNs::new(WALL + self.0),
        }
    }
}

/// A running node without sockets.
struct Node {
    store: Store,
    shards: Vec<Shard<UringIo>>,
    clock: Clock,
}

fn ring(dir: &Path) -> Result<UringIo, OpenError> {
    UringIo::new(&UringOptions::default(), &Helpers::start(dir)?)
}

impl Node {
    fn start(dir: &Path, logs: u32) -> Result<Self, OpenError> {
        Self::start_with(dir, logs, &ShardConfig::tiny())
    }

    fn start_with(dir: &Path, logs: u32, config: &ShardConfig) -> Result<Self, OpenError> {
        let mut store = Store::open(dir, &options(1, logs))?;
        let mut clock = Clock::default();
        if store.needs_new_layout() {
            store.change_layout(config, [4; 16], || ring(dir), || clock.now())?;
        }
        let open = |log_id| {
            let identity = store.identity(log_id);
            Shard::open(ring(dir)?, identity, config.clone(), [5; 16], clock.now())
        };
        let shards = (0..store.logs()).map(open).collect::<Result<_, _>>()?;
        Ok(Self {
            store,
            shards,
            clock,
        })
    }

    fn shard_of(&self, name: &str) -> usize {
        core_of(user(name).partition(), self.shards.len())
    }

    /// Submits to a shard and waits for the answer.
    fn ask(&mut self, shard: usize, request: Request) -> Result<Event, Refused> {
        let shard = self.shards.get_mut(shard).expect("a shard of the node");
        let ticket: Ticket = shard.submit(self.clock.now(), request)?;
        let mut events = Vec::new();
        for _turn in 0..100_000 {
            shard.poll(self.clock.now(), &mut events);
            let place = events
                .iter()
                .position(|event| ticket_of(event) == Some(ticket));
            if let Some(place) = place {
                return Ok(events.swap_remove(place));
            }
            if shard.io_mut().in_flight() > 0 {
                shard.io_mut().wait();
            } else if let Some(due) = shard.next_deadline() {
                self.clock.0 = self.clock.0.max(due.value());
            }
        }
        panic!("no answer: {events:?}");
    }

    fn append(&mut self, name: &str, number: u64, body: Body) -> Outcome {
        let group = Bench::group(&[name], number, body);
        let event = self.ask(self.shard_of(name), Request::Append(group));
        match event.expect("taken") {
            Event::Appended { mut outcomes, .. } => outcomes.swap_remove(0),
            other => panic!("{other:?}"),
        }
    }

    fn deliver(&mut self, name: &str, number: u64) -> Outcome {
        let body = Body::Small(prepare(&small(number)));
        self.append(name, number, body)
    }

    fn deliver_large(&mut self, name: &str, number: u64) -> Outcome {
        let shard = self.shard_of(name);
        let begin = Request::StageBegin {
            size_hint: None,
            sender: Bytes::from_static(b"sender@example.test"),
            internal_date: WallNs::new(WALL),
        };
        let Ok(Event::StageBegun {
            result: Ok(stage), ..
        }) = self.ask(shard, begin)
        else {
            panic!("no stage");
        };
        let mut preparer = preparer();
        let pushed = preparer.push(&large(number)).expect("within the limit");
        assert_eq!(pushed, Push::Buffered);
        let body = preparer.finish().body;
        let data = body.stored.clone();
        let written = self.ask(shard, Request::StageWrite { stage, data });
        assert!(
            matches!(written, Ok(Event::StageWritten { result: Ok(()), .. })),
            "{written:?}"
        );
        let finish = Request::StageFinish {
            stage,
            summary: Box::new(body.summary.clone()),
            cache: body.cache.clone(),
            guid: guid(number),
        };
        let Ok(Event::Staged {
            result: Ok(staged), ..
        }) = self.ask(shard, finish)
        else {
            panic!("not staged");
        };
        let outcome = self.append(name, number, Body::Staged(staged));
        let now = self.clock.now();
        let shard = self.shards.get_mut(shard).expect("a shard of the node");
        let dropped = shard.submit(now, Request::StageDrop { stage });
        dropped.expect("taken");
        outcome
    }

    /// Every message of a user's INBOX as received, by uid.
    fn mailbox(&mut self, name: &str) -> BTreeMap<u32, (Guid, Bytes)> {
        let shard = self.shard_of(name);
        let list = Request::List {
            user: user(name),
            mailbox: MailboxId::INBOX,
            after: 0,
            entries_max: 1_000,
        };
        let page = match self.ask(shard, list) {
            Ok(Event::Listed { result, .. }) => result,
            other => panic!("{other:?}"),
        };
        let page = match page {
            Err(Refused::NoSuchUser) => return BTreeMap::new(),
            page => page.expect("the mailbox can be listed"),
        };
        let mut found = BTreeMap::new();
        for entry in page.entries {
            let fetch = Request::Fetch {
                user: user(name),
                mailbox: MailboxId::INBOX,
                uid: entry.uid,
                stored_offset: 0,
                bytes_max: u32::MAX,
            };
            let fetched = match self.ask(shard, fetch) {
                Ok(Event::Fetched { result, .. }) => result.expect("a listed message"),
                other => panic!("{other:?}"),
            };
            let bytes = restore(&fetched.stored, fetched.format_flags, View::AsReceived);
            found.insert(entry.uid.value(), (entry.guid, bytes));
        }
        found
    }
}

fn small(number: u64) -> Vec<u8> {
    message(number, 600)
}

fn large(number: u64) -> Vec<u8> {
    message(number, 9_000)
}

const USERS: [&str; 9] = [
    "ann", "bob", "cat", "dan", "eve", "fay", "gus", "hal", "ivy",
];

/// A directory with a store of one log that got one message and was not shut down.
fn used_store() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let mut node = Node::start(dir.path(), 1).expect("a new store");
    assert!(matches!(node.deliver("bob", 1), Outcome::Stored { .. }));
    dir
}

fn refusal(dir: &Path) -> String {
    match Node::start(dir, 1) {
        Ok(_) => panic!("it opened"),
        Err(error) => error.to_string(),
    }
}

fn sound(dir: &Path) -> u64 {
    let report = check(&DirTree::new(dir), &mut |_progress| {});
    assert!(report.is_sound(), "{:?}", report.findings);
    report.messages
}

#[test]
fn a_new_store_opens_and_keeps_its_mail_through_a_hard_end() {
    let dir = used_store();
    let mut node = Node::start(dir.path(), 1).expect("it opens again");
    assert_eq!(node.mailbox("bob")[&1], (guid(1), Bytes::from(small(1))));
    assert!(matches!(node.deliver("bob", 1), Outcome::Duplicate { .. }));
    let outcome = node.deliver("bob", 2);
    assert!(matches!(outcome, Outcome::Stored { uid, .. } if uid.value() == 2));
    drop(node);
    assert_eq!(sound(dir.path()), 2);
    let names = |path: &str| std::fs::read_dir(dir.path().join(path)).unwrap().count();
    assert_eq!(names("p"), 4, "a directory per partition");
}

#[test]
fn a_store_can_be_made_beside_what_a_mount_point_has() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("lost+found")).unwrap();
    std::fs::create_dir(dir.path().join("run")).unwrap();
    let below = dir.path().join("not/yet/there");
    Node::start(dir.path(), 1).expect("an empty file system");
    Node::start(&below, 1).expect("directories are made");
}

#[test]
fn another_nodes_directory_is_refused() {
    let dir = used_store();
    let error = Store::open(dir.path(), &options(2, 1)).unwrap_err();
    let path = dir.path().display();
    assert_eq!(
        error.to_string(),
        format!("{path} belongs to node 1, the configuration says node 2")
    );
}

#[test]
fn a_directory_of_something_else_is_refused_and_left_alone() {
    for beside in ["", "p", "log", "stage", "STORE.new"] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("thesis.tex"), "mine").unwrap();
        if !beside.is_empty() {
            std::fs::create_dir(dir.path().join(beside)).unwrap();
        }
        let path = dir.path().display();
        assert_eq!(
            refusal(dir.path()),
            format!("{path}: it holds \"thesis.tex\" and no store; give an empty directory"),
            "beside {beside:?}"
        );
        assert!(!dir.path().join("STORE").exists());
    }
}

#[test]
fn a_half_made_store_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["log", "stage", "p", "p/0000"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    std::fs::write(dir.path().join("STORE.new"), "half").unwrap();
    Node::start(dir.path(), 1).expect("nothing was in it");
}

#[test]
fn mail_without_its_store_file_is_refused() {
    let dir = used_store();
    std::fs::remove_file(dir.path().join("STORE")).unwrap();
    let path = dir.path().display();
    assert_eq!(
        refusal(dir.path()),
        format!("{path}: it holds mail but its STORE file is missing; restore STORE from a copy")
    );
}

#[test]
fn a_damaged_store_file_is_refused() {
    let dir = used_store();
    let path = dir.path().join("STORE");
    let whole = std::fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x01;
        std::fs::write(&path, &bytes).unwrap();
        let error = Store::open(dir.path(), &options(1, 1)).unwrap_err();
        assert!(matches!(error, OpenError::Corrupt(_)), "{at}: {error}");
        std::fs::write(&path, &whole[..at]).unwrap();
        let error = Store::open(dir.path(), &options(1, 1)).unwrap_err();
        assert!(matches!(error, OpenError::Corrupt(_)), "{at}: {error}");
    }
    std::fs::write(&path, &whole[..whole.len() - 3]).unwrap();
    let sentence = refusal(dir.path());
    assert!(sentence.starts_with("STORE at offset 0: "), "{sentence}");
    assert!(
        sentence.ends_with(", or restore the data directory from a copy or a backup"),
        "{sentence}"
    );
    std::fs::write(&path, &whole).unwrap();
    Node::start(dir.path(), 1).expect("whole again");
}

#[test]
fn another_major_version_or_feature_is_refused_by_name() {
    let dir = used_store();
    let path = dir.path().join("STORE");
    let mut file = StoreFile::decode(&std::fs::read(&path).unwrap()).unwrap();
    file.version.incompat = 1 << 7;
    std::fs::write(&path, file.encode()).unwrap();
    let sentence = refusal(dir.path());
    assert!(sentence.contains("unknown features 0x80"), "{sentence}");
    file.version.incompat = 0;
    let text = String::from_utf8(file.encode()).unwrap();
    let (body, _) = text.rsplit_once("crc").expect("its last line");
    let body = body.replacen("store 1.", "store 9.", 1);
    let sum = crc32fast::hash(body.as_bytes());
    std::fs::write(&path, format!("{body}crc {sum:08x}\n")).unwrap();
    let sentence = refusal(dir.path());
    assert!(
        sentence.contains("written by format 9.0") && sentence.contains("reads format 1.x"),
        "{sentence}"
    );
}

#[test]
fn a_directory_in_use_is_refused_with_the_holders_pid() {
    let dir = used_store();
    let first = Node::start(dir.path(), 1).expect("free");
    let pid = std::process::id();
    let path = dir.path().display();
    assert_eq!(
        refusal(dir.path()),
        format!("{path} is in use by a running daemon (process {pid})")
    );
    drop(first);
    Node::start(dir.path(), 1).expect("free again");
}

#[test]
fn an_impossible_number_of_cores_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for logs in [0, 257] {
        let error = Store::open(dir.path(), &options(1, logs)).unwrap_err();
        let sentence = error.to_string();
        assert!(
            sentence.ends_with(&format!("{logs} cores; 1 to 256 are possible")),
            "{sentence}"
        );
    }
}

fn overwrite(dir: &Path, file: &RelPath, offset: u64, bytes: &[u8]) {
    let path = dir.join(file.as_str());
    let file = std::fs::OpenOptions::new().write(true).open(path);
    let file = file.expect("a file of the store");
    file.write_all_at(bytes, offset).expect("room");
}

#[test]
fn one_torn_superblock_is_survived_and_two_are_refused() {
    let dir = used_store();
    let path = RelPath::superblock(0);
    let whole = std::fs::read(dir.path().join(path.as_str())).unwrap();
    for copy in [0, 4096] {
        overwrite(dir.path(), &path, copy + 40, &[0xEE; 300]);
        let mut node = Node::start(dir.path(), 1).expect("one copy is good");
        assert_eq!(node.mailbox("bob").len(), 1);
        drop(node);
        overwrite(dir.path(), &path, 0, &whole);
    }
    for copy in [0, 4096] {
        overwrite(dir.path(), &path, copy + 40, &[0xEE; 300]);
    }
    assert_eq!(
        refusal(dir.path()),
        "log/00/super at offset 0: the checksum does not match; \
         run `ringpost repair` (`--dry-run` first), \
         or restore the data directory from a copy or a backup"
    );
    for copy in [0, 4096] {
        overwrite(dir.path(), &path, copy, &[0; 4096]);
    }
    let sentence = refusal(dir.path());
    assert!(
        sentence.contains("the magic value is missing"),
        "{sentence}"
    );
    std::fs::remove_file(dir.path().join(path.as_str())).unwrap();
    let sentence = refusal(dir.path());
    assert!(sentence.contains("the data ends too early"), "{sentence}");
}

#[test]
fn a_log_file_of_another_store_is_refused() {
    let dir = used_store();
    let file = RelPath::log_file(0, 1);
    let bytes = std::fs::read(dir.path().join(file.as_str())).unwrap();
    let id = StoreId::new([9; 16]);
    let mut header = LogFileHeader::open(&bytes, id, 0).expect("the first one is armed");
    header.store = StoreId::new([8; 16]);
    overwrite(dir.path(), &file, 0, header.seal().as_slice());
    let sentence = refusal(dir.path());
    assert!(
        sentence.contains(file.as_str()) && sentence.contains("belongs to another place"),
        "{sentence}"
    );
}

/// Mail at each step, a hard end behind it, another number of cores; and every time all of it is
/// there once and known as delivered.
#[test]
fn the_number_of_cores_changes_without_a_clean_shutdown() {
    let dir = tempfile::tempdir().unwrap();
    let mut sent: Vec<(&str, u64, Vec<u8>)> = Vec::new();
    let mut number = 0_u64;
    for logs in [1, 3, 2, 4, 1] {
        let mut node = Node::start(dir.path(), logs).expect("it opens");
        assert_eq!(node.store.logs(), logs);
        assert!(!node.store.needs_new_layout());
        for (name, number, text) in &sent {
            let outcome = if text.len() > 4_096 {
                node.deliver_large(name, *number)
            } else {
                node.deliver(name, *number)
            };
            assert!(
                matches!(outcome, Outcome::Duplicate { .. }),
                "{logs} logs, mail {number} to {name}: {outcome:?}"
            );
        }
        let users: &[&str] = if logs == 4 { &USERS[3..7] } else { &USERS };
        for name in users {
            number += 1;
            let (outcome, text) = if number.is_multiple_of(3) {
                (node.deliver_large(name, number), large(number))
            } else {
                (node.deliver(name, number), small(number))
            };
            assert!(matches!(outcome, Outcome::Stored { .. }), "{outcome:?}");
            sent.push((name, number, text));
        }
        for name in USERS {
            let found = node.mailbox(name);
            let uids: Vec<u32> = found.keys().copied().collect();
            let expected: Vec<_> = sent
                .iter()
                .filter(|(other, ..)| *other == name)
                .map(|(_, number, text)| (guid(*number), Bytes::from(text.clone())))
                .collect();
            assert_eq!(uids, (1..).take(expected.len()).collect::<Vec<u32>>());
            assert_eq!(found.into_values().collect::<Vec<_>>(), expected, "{name}");
        }
        drop(node);
        assert_eq!(sound(dir.path()), sent.len() as u64, "{logs} logs");
    }
}

/// They live in the log of their core alone.
#[test]
fn the_number_of_cores_stays_while_records_wait_for_copies() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut node = Node::start(dir.path(), 1).expect("it opens");
    let outcome = node.deliver("bob", 1);
    assert!(matches!(outcome, Outcome::Stored { .. }), "{outcome:?}");
    // No later frame says that it is on all copies.
    drop(node);
    let asked = ShardConfig {
        copies: Copies::Asked,
        ..ShardConfig::tiny()
    };
    let sentence = match Node::start_with(dir.path(), 2, &asked) {
        Ok(_) => panic!("the number of cores changed"),
        Err(error) => error.to_string(),
    };
    assert!(
        sentence.contains("log 00 holds") && sentence.contains("the number of cores stays 1"),
        "{sentence}"
    );
    let node = Node::start_with(dir.path(), 1, &asked).expect("with the old number it opens");
    assert!(
        node.shards
            .iter()
            .any(|shard| shard.unconfirmed_count() > 0)
    );
    drop(node);
    let mut node = Node::start(dir.path(), 2).expect("one copy was asked for");
    assert_eq!(node.mailbox("bob").len(), 1);
}

/// `log_file_bytes` follows from the configuration: another value must not cost a message.
#[test]
fn the_size_of_log_files_changes_without_a_clean_shutdown() {
    let dir = tempfile::tempdir().unwrap();
    let mut number = 0;
    for log_file_bytes in [64 << 10, 128 << 10, 48 << 10, 64 << 10] {
        let config = ShardConfig {
            log_file_bytes,
            checkpoint_interval_ns: u64::MAX,
            ..ShardConfig::tiny()
        };
        let mut node = Node::start_with(dir.path(), 1, &config).expect("it opens");
        assert_eq!(node.mailbox("bob").len() as u64, number);
        for _ in 0..24 {
            number += 1;
            let outcome = node.deliver("bob", number);
            assert!(matches!(outcome, Outcome::Stored { .. }), "{outcome:?}");
        }
        drop(node);
        assert_eq!(sound(dir.path()), number, "{log_file_bytes}");
    }
}

#[test]
fn partitions_keep_their_place_when_the_number_of_logs_changes() {
    let dir = tempfile::tempdir().expect("a directory");
    let all = || (0..partitions().value()).map(|number| u16::try_from(number).expect("few"));
    let mut known: BTreeMap<PartitionId, PartitionState> = BTreeMap::new();
    let mut number = 0;
    for logs in [2, 3, 1, 3, 3, 2] {
        let mut node = Node::start(dir.path(), logs).expect("it opens");
        let state = |node: &Node, id| {
            let shard = node.shards.get(core_of(id, node.shards.len()));
            let state = shard.expect("one of them").partition(id);
            state.expect("its own partition")
        };
        for id in all().map(PartitionId::new) {
            let (now, before) = (state(&node, id), known.get(&id));
            if let Some(before) = before {
                assert_eq!(&now, before, "partition {id} with {logs} logs");
            }
        }
        for name in USERS {
            number += 1;
            let outcome = node.deliver(name, number);
            assert!(matches!(outcome, Outcome::Stored { .. }), "{outcome:?}");
        }
        for id in all().map(PartitionId::new) {
            let state = state(&node, id);
            let epochs = state.history.iter().map(|start| start.epoch);
            assert!(
                epochs.is_sorted()
                    && state.history.last().map(|start| start.epoch) == Some(state.promised)
            );
            known.insert(id, state);
        }
        drop(node);
        assert_eq!(sound(dir.path()), number, "{logs} logs");
    }
    let records: u64 = known.values().map(|state| state.pseq).sum();
    let made = u64::try_from(2 * USERS.len()).expect("few");
    assert_eq!(records, number + made, "a record per message, two per user");
}
