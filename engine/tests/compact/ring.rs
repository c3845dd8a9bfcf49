//! The same over the real ring and a real directory: a compaction while mail arrives, and the checker.
#![allow(
    clippy::disallowed_methods,
    clippy::allow_attributes,
    reason = "the test looks at the directory from outside"
)]

use std::path::Path;

use ringpost_engine::Shard;
use ringpost_engine::check::{DirTree, check};
use ringpost_engine::config::ShardConfig;
use ringpost_engine::io::{Helpers, Io, UringIo, UringOptions};
use ringpost_engine::mbox::{View, restore};
use ringpost_engine::request::{Body, Event, MonotonicNs, Now, Outcome, Request, Ticket, UidSet};
use ringpost_engine::store::{Store, StoreOptions};
use ringpost_netproto::id::{MailboxId, NodeId, Uid, WallNs};

use super::testkit::{Bench, KEY, message, partitions, prepare, ticket_of, user};
use super::{BOB, by_request, compact, dir_of, expunge};

/// A shard on a real directory, its events, and a clock that goes on with every look.
struct Node {
    _store: Store,
    shard: Shard<UringIo>,
    events: Vec<Event>,
    clock: u64,
}

impl Node {
    fn start(dir: &Path, config: &ShardConfig) -> Self {
        let mut entropy = [9; 32];
        entropy[16..].copy_from_slice(&KEY.bytes());
        let options = StoreOptions {
            node: NodeId::new(1),
            partitions: partitions(),
            logs: 1,
            entropy,
        };
        let store = Store::open(dir, &options).expect("a store");
        let helpers = Helpers::start(dir).expect("threads");
        let io = UringIo::new(&UringOptions::default(), &helpers).expect("a ring");
        let now = Now {
            monotonic: MonotonicNs::new(0),
            wall: WallNs::new(1_767_225_600_000_000_000),
        };
        let shard = Shard::open(io, store.identity(0), config.clone(), [5; 16], now);
        Self {
            _store: store,
            shard: shard.expect("opens"),
            events: Vec::new(),
            clock: 0,
        }
    }

    fn now(&mut self) -> Now {
        self.clock += 1_000;
        Now {
            monotonic: MonotonicNs::new(self.clock),
            wall: WallNs::new(1_767_225_600_000_000_000 + self.clock),
        }
    }

    fn submit(&mut self, request: Request) -> Ticket {
        let now = self.now();
        self.shard.submit(now, request).expect("taken")
    }

    fn wait(&mut self, ticket: Ticket) -> Event {
        for _turn in 0..100_000 {
            let now = self.now();
            self.shard.poll(now, &mut self.events);
            let mut events = self.events.iter();
            if let Some(place) = events.position(|event| ticket_of(event) == Some(ticket)) {
                return self.events.swap_remove(place);
            }
            if self.shard.io_mut().in_flight() > 0 {
                self.shard.io_mut().wait();
            } else if let Some(due) = self.shard.next_deadline() {
                self.clock = self.clock.max(due.value());
            }
        }
        panic!("no answer: {:?}", self.events);
    }

    fn append(&mut self, number: u64) -> Ticket {
        let body = Body::Small(prepare(&message(number, 900)));
        self.submit(Request::Append(Bench::group(&[BOB], number, body)))
    }

    fn assert_stored(&mut self, ticket: Ticket) {
        let event = self.wait(ticket);
        let Event::Appended { outcomes, .. } = &event else {
            panic!("{event:?}");
        };
        assert!(
            matches!(outcomes[..], [Outcome::Stored { .. }]),
            "{outcomes:?}"
        );
    }

    fn checkpoint(&mut self) {
        let ticket = self.submit(Request::Checkpoint);
        self.wait(ticket);
    }

    /// Waits for what nobody waits for: a drop would leave dead files to the next load.
    fn rest(&mut self) {
        while self.shard.io_mut().in_flight() > 0 {
            self.shard.io_mut().wait();
            let now = self.now();
            self.shard.poll(now, &mut self.events);
        }
    }

    fn fetch(&mut self, uid: u32) -> Vec<u8> {
        let ticket = self.submit(Request::Fetch {
            user: user(BOB),
            mailbox: MailboxId::INBOX,
            uid: Uid::new(uid),
            stored_offset: 0,
            bytes_max: u32::MAX,
        });
        let Event::Fetched { result, .. } = self.wait(ticket) else {
            panic!("another answer");
        };
        let fetched = result.unwrap_or_else(|refused| panic!("uid {uid}: {refused}"));
        restore(&fetched.stored, fetched.format_flags, View::AsReceived).to_vec()
    }
}

fn assert_clean(dir: &Path, messages: u64) {
    let report = check(&DirTree::new(dir), &mut |_progress| {});
    assert_eq!(report.findings, [], "{}", dir.display());
    assert_eq!(report.messages, messages);
}

/// Of all files of the user.
fn bytes_on_disk(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir.join(dir_of(BOB).as_str()));
    let entries = entries.expect("the user's directory");
    // An unlink may come between the name and the look at it.
    let sizes = entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len()));
    sizes.sum()
}

#[test]
fn on_a_real_disk_the_checker_finds_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut node = Node::start(dir.path(), &by_request());
    for number in 0..40 {
        let ticket = node.append(number);
        node.assert_stored(ticket);
    }
    node.checkpoint();
    let ticket = node.submit(expunge(
        (2..=40).filter(|u| u % 4 != 1).map(|u| (u, u)).collect(),
    ));
    node.wait(ticket);
    node.checkpoint();
    let bytes = || bytes_on_disk(dir.path());
    let before = bytes();
    let compaction = node.submit(compact());
    let appends: Vec<_> = (100..130).map(|number| node.append(number)).collect();
    for ticket in appends {
        node.assert_stored(ticket);
    }
    let Event::Compacted { result, .. } = node.wait(compaction) else {
        panic!("another answer");
    };
    let done = result.expect("compacted");
    assert!(
        done.copied_bytes > 5_000 && done.freed_bytes > 20_000,
        "{done:?}"
    );
    for uid in (1..=40).step_by(4) {
        assert_eq!(
            node.fetch(uid),
            message(u64::from(uid) - 1, 900),
            "uid {uid}"
        );
    }
    for uid in 41..=70 {
        assert_eq!(
            node.fetch(uid),
            message(u64::from(uid) + 59, 900),
            "uid {uid}"
        );
    }
    // The record is in the log only, then in a checkpoint, then there is nothing but files.
    drop(node);
    assert_clean(dir.path(), 40);
    let mut node = Node::start(dir.path(), &by_request());
    assert_eq!(node.fetch(37), message(36, 900));
    node.checkpoint();
    let again = node.submit(compact());
    node.wait(again);
    let ticket = node.submit(Request::Drain);
    node.wait(ticket);
    drop(node);
    assert_clean(dir.path(), 40);
    assert!(bytes() < before + 30 * 1_500, "{} of {before}", bytes());
    let mut node = Node::start(dir.path(), &by_request());
    assert_eq!(node.fetch(1), message(0, 900));
    let ticket = node.submit(expunge(UidSet::all()));
    node.wait(ticket);
    let again = node.submit(compact());
    node.wait(again);
    node.checkpoint();
    node.rest();
    drop(node);
    assert_clean(dir.path(), 0);
    assert!(bytes() < 2_000, "{}", bytes());
}
