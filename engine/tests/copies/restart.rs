//! What a restart finds that no copy confirmed: what it shows, keeps, and waits for.

use ringpost_engine::config::{Copies, ShardConfig};
use ringpost_engine::format::info::{FLAGGED, SEEN};
use ringpost_engine::io::sim::{Crash, SimConfig};
use ringpost_engine::request::{
    Body, Copy, Event, FlagOp, Flags, Outcome, Refused, Request, StreamId, UidSet,
};
use ringpost_netproto::id::{Epoch, MailboxId};

use crate::testkit::{Bench, empty_disk, message, prepare, user};

const PEER: StreamId = StreamId::new(7);
const ANN: &str = "ann";

pub(crate) fn asked() -> ShardConfig {
    ShardConfig {
        copies: Copies::Asked,
        ..ShardConfig::tiny()
    }
}

pub(crate) fn quiet(bench: &mut Bench) {
    for _turn in 0..200 {
        bench.poll();
        bench.pass_time();
    }
}

/// It leads, with a stream that nobody reads.
pub(crate) fn lead(bench: &mut Bench, epoch: u32, copy: Copy) {
    let lead = Request::Lead {
        partition: user(ANN).partition(),
        epoch: Epoch::new(epoch),
        copy,
        peers_pseq: 0,
    };
    bench.submit(lead).expect("taken");
    quiet(bench);
}

/// The peer has everything.
pub(crate) fn confirm(bench: &mut Bench) {
    let now = bench.now();
    let partition = user(ANN).partition();
    bench.shard.copied_to(now, partition, u64::MAX);
    quiet(bench);
}

fn store(bench: &mut Bench, system: u32) {
    let request = Request::Store {
        user: user(ANN),
        mailbox: MailboxId::INBOX,
        uids: UidSet::all(),
        op: FlagOp::Add,
        flags: Flags {
            system,
            keywords: Vec::new(),
        },
        unchanged_since: None,
    };
    bench.submit(request).expect("taken");
    // Not for long: a change is refused when it waits for seconds.
    for _turn in 0..5 {
        bench.poll();
        bench.pass_time();
    }
}

/// It counted, it was shown; whatever moment of the checkpoint behind it the power fails in, the next
/// start has it once.
#[test]
fn a_checkpoint_writes_only_what_the_log_says_to_count() {
    for step in 0..120 {
        let mut bench = Bench::on(empty_disk(SimConfig::new(step)), asked()).expect("opens");
        lead(&mut bench, 1, Copy::Stream(PEER));
        for number in 1..4 {
            bench.append(&[ANN], number, &message(number, 300));
            for _turn in 0..4 {
                bench.poll();
                bench.pass_time();
            }
        }
        let now = bench.now();
        let partition = user(ANN).partition();
        bench.shard.copied_to(now, partition, u64::MAX);
        bench.submit(Request::Checkpoint).expect("taken");
        for _turn in 0..step {
            bench.poll();
            bench.pass_time();
        }
        let mut bench = bench.crash(Crash::Kill);
        let shown = bench.list(ANN).map_or(0, |page| page.entries.len());
        lead(&mut bench, 2, Copy::None);
        let page = bench.list(ANN).expect("it counted");
        assert!(shown <= page.entries.len());
        let request = Request::Mailboxes { user: user(ANN) };
        bench.submit(request).expect("taken");
        bench.settle();
        let counted = bench.events.iter().rev().find_map(|event| match event {
            Event::Mailboxes { result, .. } => result
                .as_ref()
                .ok()?
                .first()
                .map(|inbox| inbox.messages_count),
            _ => None,
        });
        let listed = u32::try_from(page.entries.len()).expect("few");
        assert_eq!((listed, counted), (3, Some(3)), "step {step}");
    }
}

/// Its bytes are in a part file that only the log names.
#[test]
fn a_large_message_that_nobody_confirmed_keeps_its_file() {
    let mut bench = Bench::on(empty_disk(SimConfig::new(1)), asked()).expect("opens");
    lead(&mut bench, 1, Copy::Stream(PEER));
    confirm(&mut bench);
    let large = message(1, 40_000);
    let body = Body::Staged(bench.stage(1, &large).expect("there is room"));
    let group = Bench::group(&[ANN], 1, body);
    bench.submit(Request::Append(group)).expect("taken");
    quiet(&mut bench);
    let mut bench = bench.crash(Crash::PowerCut);
    assert_eq!(bench.list(ANN).err(), Some(Refused::NoSuchUser));
    quiet(&mut bench);
    lead(&mut bench, 2, Copy::None);
    let found = bench.mailbox(ANN);
    let bytes: Vec<_> = found.values().map(|(_, bytes)| bytes.clone()).collect();
    assert_eq!(bytes, [large]);
}

/// What the old primary may have answered stands before what the new one decides.
#[test]
fn a_change_is_decided_after_what_waits_for_a_copy() {
    let mut bench = Bench::on(empty_disk(SimConfig::new(1)), asked()).expect("opens");
    lead(&mut bench, 1, Copy::Stream(PEER));
    bench.append(&[ANN], 1, &message(1, 300));
    quiet(&mut bench);
    confirm(&mut bench);
    store(&mut bench, SEEN);
    let now = bench.now();
    let partition = user(ANN).partition();
    bench.shard.set_copy(now, partition, Copy::Follows);
    lead(&mut bench, 2, Copy::Stream(PEER));
    store(&mut bench, FLAGGED);
    confirm(&mut bench);
    confirm(&mut bench);
    assert!(bench.is_answered(), "{:?}", bench.unanswered());
    let page = bench.list(ANN).expect("it is there");
    let flags: Vec<u32> = page.entries.iter().map(|entry| entry.flags).collect();
    assert_eq!(flags, [SEEN | FLAGGED]);
}

/// A lead that ends on its way to the medium is answered.
#[test]
fn a_barrier_that_is_overtaken_is_refused() {
    let mut bench = Bench::on(empty_disk(SimConfig::new(1)), asked()).expect("opens");
    let partition = user(ANN).partition();
    let lead = Request::Lead {
        partition,
        epoch: Epoch::new(1),
        copy: Copy::Stream(PEER),
        peers_pseq: 0,
    };
    let ticket = bench.submit(lead).expect("taken");
    // In the log's hands, and not on the medium yet.
    bench.poll();
    let now = bench.now();
    bench.shard.set_copy(now, partition, Copy::Follows);
    quiet(&mut bench);
    let cut = Request::Disown { partition, pseq: 0 };
    bench.submit(cut).expect("taken");
    quiet(&mut bench);
    assert!(bench.is_answered(), "{:?}", bench.unanswered());
    let fenced = bench.events.iter().any(|event| {
        matches!(event, Event::Led { ticket: of, result: Err(Refused::Fenced { .. }) } if *of == ticket)
    });
    assert!(fenced);
}

/// Mail waits for a word after a restart, as long as copies are asked for.
#[test]
fn nothing_is_taken_before_somebody_says_who_leads() {
    let mut bench = Bench::on(empty_disk(SimConfig::new(1)), asked()).expect("opens");
    let group = Bench::group(&[ANN], 1, Body::Small(prepare(&message(1, 300))));
    let refused = bench.submit(Request::Append(group)).err();
    assert!(
        matches!(refused, Some(Refused::Fenced { .. })),
        "{refused:?}"
    );
    lead(&mut bench, 1, Copy::None);
    let ticket = bench.append(&[ANN], 1, &message(1, 300));
    quiet(&mut bench);
    assert!(matches!(
        bench.outcomes(ticket)[..],
        [Outcome::Stored { .. }]
    ));
}

/// A node stops though its peer is away; what waits goes on waiting.
#[test]
fn a_drain_ends_while_records_wait_for_copies() {
    let mut bench = Bench::on(empty_disk(SimConfig::new(1)), asked()).expect("opens");
    lead(&mut bench, 1, Copy::Stream(PEER));
    confirm(&mut bench);
    bench.append(&[ANN], 1, &message(1, 300));
    quiet(&mut bench);
    let mut bench = bench.crash(Crash::Kill);
    let waiting = bench.shard.unconfirmed_count();
    assert!(waiting >= 3, "a user, its mailboxes, a mail: {waiting}");
    bench.drain();
    let mut bench = bench.crash(Crash::PowerCut);
    assert_eq!(bench.shard.unconfirmed_count(), waiting);
    assert_eq!(bench.list(ANN).err(), Some(Refused::NoSuchUser));
    lead(&mut bench, 2, Copy::None);
    assert_eq!(bench.mailbox(ANN).len(), 1);
}
