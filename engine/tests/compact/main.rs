//! Compaction on a simulated disk (storage.md 8.5): a crash at each change of it, random lives against a
//! model, room, readers, damage. What a new generation's files say in detail is tested beside
//! their writer.
#[path = "../testkit/mod.rs"]
mod testkit;

mod crash;
mod damage;
mod lives;
mod readers;
mod ring;
mod room;

use std::collections::BTreeMap;

use bytes::Bytes;
use ringpost_engine::config::ShardConfig;
use ringpost_engine::io::RelPath;
use ringpost_engine::io::sim::SimDisk;
use ringpost_engine::request::{
    Body, Changed, Compacted, Event, FlagOp, Flags, Refused, Request, Ticket, UidSet, Which,
};
use ringpost_netproto::id::{Guid, MailboxId};
use testkit::{Bench, message, prepare, ticket_of, user};

/// The one user of most tests.
const BOB: &str = "bob";

/// Everything by its uid: guid and bytes as received.
type Mailbox = BTreeMap<u32, (Guid, Bytes)>;

/// Compacts when asked only.
fn by_request() -> ShardConfig {
    ShardConfig {
        compact_bytes_min: 1 << 40,
        ..ShardConfig::tiny()
    }
}

fn dir_of(name: &str) -> RelPath {
    let key = user(name);
    RelPath::user_dir(key.partition(), key.hash(), 0)
}

/// Names and sizes in the user's directory.
fn files(disk: &SimDisk) -> Vec<(String, u64)> {
    disk.list(&dir_of(BOB))
}

/// Those that end so.
fn files_of(disk: &SimDisk, end: &str) -> Vec<String> {
    let names = files(disk).into_iter().map(|(name, _)| name);
    names.filter(|name| name.ends_with(end)).collect()
}

/// Bytes of all of the user's files.
fn bytes(disk: &SimDisk) -> u64 {
    files(disk).iter().map(|(_, bytes)| bytes).sum()
}

/// The answer to a ticket, if it is there.
fn answer(bench: &Bench, ticket: Ticket) -> Option<&Event> {
    let mut events = bench.events.iter();
    events.find(|event| ticket_of(event) == Some(ticket))
}

fn expunge(uids: UidSet) -> Request {
    Request::Expunge {
        user: user(BOB),
        mailbox: MailboxId::INBOX,
        uids,
        which: Which::All,
    }
}

fn expunged(bench: &mut Bench, uids: UidSet) -> Result<Changed, Refused> {
    let ticket = bench.submit(expunge(uids))?;
    bench.settle();
    match answer(bench, ticket) {
        Some(Event::Expunged { result, .. }) => result.clone(),
        other => panic!("{other:?}"),
    }
}

fn store_flags(system: u32, uids: UidSet) -> Request {
    Request::Store {
        user: user(BOB),
        mailbox: MailboxId::INBOX,
        uids,
        op: FlagOp::Replace,
        flags: Flags::system(system),
        unchanged_since: None,
    }
}

fn compact() -> Request {
    Request::Compact { user: user(BOB) }
}

fn compacted(bench: &mut Bench) -> Result<Compacted, Refused> {
    let ticket = bench.submit(compact())?;
    bench.settle();
    match answer(bench, ticket) {
        Some(Event::Compacted { result, .. }) => result.clone(),
        other => panic!("{other:?}"),
    }
}

/// Submits a message without waiting for its answer.
fn append(bench: &mut Bench, number: u64, bytes: usize) -> Result<Ticket, Refused> {
    let body = Body::Small(prepare(&message(number, bytes)));
    bench.submit(Request::Append(Bench::group(&[BOB], number, body)))
}

/// Polls until nothing happens any more: what nobody asked for is done, too.
fn rest(bench: &mut Bench) {
    for _turn in 0..400 {
        bench.poll();
        bench.pass_time();
    }
    bench.settle();
}

/// The checker finds no damage.
fn assert_sound(disk: &SimDisk, context: &str) {
    let report = testkit::check_disk(disk);
    assert!(
        report.is_sound(),
        "{context}: {:?} of {:?}",
        report.findings,
        files(disk)
    );
}
