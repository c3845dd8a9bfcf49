//! What a shard promises, one fact a test, on the simulated disk.
mod testkit;

use ringpost_engine::config::ShardConfig;
use ringpost_engine::io::sim::{Among, Crash, StepError};
use ringpost_engine::request::{Event, Outcome, Refused, Request};
use testkit::{Bench, message, user};

fn stored_uid(outcome: &Outcome) -> u32 {
    match outcome {
        Outcome::Stored { uid, .. } => uid.value(),
        other => panic!("not stored: {other:?}"),
    }
}

#[test]
fn a_message_comes_back_byte_for_byte_pending_and_materialised() {
    let mut bench = Bench::new(ShardConfig::tiny());
    let text = message(1, 700);
    assert_eq!(stored_uid(&bench.deliver(&["bob"], 1, &text)[0]), 1);
    assert_eq!(bench.mailbox("bob")[&1].1, text);
    bench.checkpoint();
    assert_eq!(bench.mailbox("bob")[&1].1, text);
    let report = bench.check();
    assert!(report.is_sound(), "{:?}", report.findings);
}

#[test]
fn an_answer_comes_only_after_the_frame_is_durable() {
    let mut bench = Bench::new(ShardConfig::tiny());
    bench.append(&["bob"], 1, &message(1, 300));
    let writes = bench.disk.log_writes();
    while !bench
        .events
        .iter()
        .any(|event| matches!(event, Event::Appended { .. }))
    {
        bench.poll();
        bench.pass_time();
    }
    assert!(bench.disk.log_writes() > writes);
    let bench = bench.crash(Crash::PowerCut);
    let mut bench = bench;
    assert_eq!(bench.mailbox("bob").len(), 1);
}

#[test]
fn many_appends_share_one_frame() {
    let mut bench = Bench::new(ShardConfig::tiny());
    bench.deliver(&["bob"], 1, &message(1, 100));
    let before = bench.shard.metrics().frames;
    for number in 2..12 {
        bench.append(&["bob"], number, &message(number, 100));
    }
    bench.settle();
    let frames = bench.shard.metrics().frames - before;
    assert!(frames <= 2, "{frames} frames for ten appends of one turn");
    assert_eq!(bench.mailbox("bob").len(), 11);
}

#[test]
fn recipients_of_one_message_share_its_body() {
    let mut bench = Bench::new(ShardConfig::tiny());
    let names: Vec<String> = (0..6).map(|number| format!("user{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let text = message(1, 3_000);
    let outcomes = bench.deliver(&names, 1, &text);
    assert_eq!(outcomes.len(), names.len());
    let payload = bench.shard.metrics().payload_bytes;
    assert!(
        payload < 2 * 3_000 + 6 * 1_500,
        "{payload} bytes of records"
    );
    for name in names {
        assert_eq!(bench.mailbox(name)[&1].1, text, "{name}");
    }
}

#[test]
fn a_repeated_delivery_is_answered_like_the_first_also_after_restart() {
    let mut bench = Bench::new(ShardConfig::tiny());
    let text = message(1, 200);
    bench.deliver(&["bob"], 1, &text);
    let again = bench.deliver(&["bob"], 1, &text);
    assert!(
        matches!(again[0], Outcome::Duplicate { uid, .. } if uid.value() == 1),
        "{again:?}"
    );
    let mut bench = bench.crash(Crash::PowerCut);
    let again = bench.deliver(&["bob"], 1, &text);
    assert!(matches!(again[0], Outcome::Duplicate { .. }), "{again:?}");
    bench.checkpoint();
    let mut bench = bench.crash(Crash::PowerCut);
    let again = bench.deliver(&["bob"], 1, &text);
    assert!(matches!(again[0], Outcome::Duplicate { .. }), "{again:?}");
    assert_eq!(bench.mailbox("bob").len(), 1);
}

#[test]
fn a_duplicate_of_a_delivery_in_flight_waits_for_it() {
    let mut bench = Bench::new(ShardConfig::tiny());
    let text = message(1, 200);
    let first = bench.append(&["bob"], 1, &text);
    let second = bench.append(&["bob", "bob"], 1, &text);
    bench.settle();
    assert_eq!(stored_uid(&bench.outcomes(first)[0]), 1);
    for outcome in bench.outcomes(second) {
        assert!(matches!(outcome, Outcome::Duplicate { uid, .. } if uid.value() == 1));
    }
    let both = bench.append(&["eve", "eve"], 2, &message(2, 200));
    bench.settle();
    let outcomes = bench.outcomes(both);
    assert_eq!(stored_uid(&outcomes[0]), 1);
    assert!(
        matches!(outcomes[1], Outcome::Duplicate { .. }),
        "{outcomes:?}"
    );
}

#[test]
fn an_id_with_other_content_is_no_duplicate() {
    let mut bench = Bench::new(ShardConfig::tiny());
    bench.deliver(&["bob"], 1, &message(1, 200));
    let other = bench.deliver(&["bob"], 1, &message(2, 200));
    assert_eq!(stored_uid(&other[0]), 2);
}

#[test]
fn large_messages_have_a_file_of_their_own() {
    let mut bench = Bench::new(ShardConfig::tiny());
    let text = message(1, 20_000);
    let outcomes = bench.deliver_large(&["bob", "eve"], 1, &text);
    assert_eq!(stored_uid(&outcomes[0]), 1);
    assert_eq!(stored_uid(&outcomes[1]), 1);
    assert_eq!(bench.mailbox("bob")[&1].1, text);
    let mut bench = bench.crash(Crash::PowerCut);
    assert_eq!(bench.mailbox("bob")[&1].1, text);
    bench.checkpoint();
    assert_eq!(bench.mailbox("eve")[&1].1, text);
    let report = bench.check();
    assert!(report.is_sound(), "{:?}", report.findings);
    let again = bench.deliver_large(&["bob"], 1, &text);
    assert!(matches!(again[0], Outcome::Duplicate { .. }), "{again:?}");
    let mut bench = bench.crash(Crash::PowerCut);
    assert_eq!(bench.mailbox("bob").len(), 1);
}

#[test]
fn mixed_line_ends_late_in_a_large_message_are_kept() {
    let mut bench = Bench::new(ShardConfig::tiny());
    let mut text = message(1, 20_000);
    text.extend_from_slice(b"bare\nand crlf\r\nend");
    let outcomes = bench.deliver_large(&["bob"], 1, &text);
    assert_eq!(stored_uid(&outcomes[0]), 1);
    assert_eq!(bench.mailbox("bob")[&1].1, text);
    bench.checkpoint();
    assert_eq!(bench.mailbox("bob")[&1].1, text);
}

#[test]
fn the_log_is_recycled_and_bounded() {
    let mut bench = Bench::new(ShardConfig::tiny());
    for number in 0..600 {
        let name = format!("user{}", number % 7);
        let outcomes = bench.deliver(&[&name], number, &message(number, 900));
        assert!(
            matches!(outcomes[0], Outcome::Stored { .. }),
            "mail {number}: {outcomes:?}"
        );
    }
    assert!(bench.shard.metrics().checkpoints > 3);
    let capacity = bench.shard.metrics().log_capacity_bytes;
    assert!(capacity <= 4 * 64 * 1024, "{capacity} bytes of log");
    for name in 0..7 {
        let mailbox = bench.mailbox(&format!("user{name}"));
        assert!(mailbox.len() >= 600 / 7);
        assert_eq!(
            mailbox.keys().max().copied(),
            u32::try_from(mailbox.len()).ok()
        );
    }
    let report = bench.check();
    assert!(report.is_sound(), "{:?}", report.findings);
}

#[test]
fn a_burst_beyond_every_budget_is_stored_or_refused_never_hung() {
    let mut bench = Bench::new(ShardConfig::tiny());
    let mut tickets = Vec::new();
    for number in 0..500 {
        let name = format!("user{}", number % 11);
        tickets.push((
            number,
            name.clone(),
            bench.append(&[&name], number, &message(number, 700)),
        ));
    }
    bench.settle();
    let mut stored = 0;
    for (_, _, ticket) in &tickets {
        match &bench.outcomes(*ticket)[0] {
            Outcome::Stored { .. } => stored += 1,
            Outcome::Refused(Refused::Busy(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(stored > 100, "{stored} stored");
    let found: usize = (0..11)
        .map(|name| bench.mailbox(&format!("user{name}")).len())
        .sum();
    assert_eq!(found, stored);
}

#[test]
fn a_clean_shutdown_leaves_nothing_to_replay() {
    let mut bench = Bench::new(ShardConfig::tiny());
    for number in 0..20 {
        bench.deliver(&["bob"], number, &message(number, 300));
    }
    bench.drain();
    let refused = bench.submit(Request::Checkpoint);
    assert!(matches!(refused, Err(Refused::Stopped)));
    let mut bench = bench.crash(Crash::PowerCut);
    assert_eq!(bench.shard.metrics().recovered_records, 0);
    assert_eq!(bench.mailbox("bob").len(), 20);
}

#[test]
fn users_come_and_go_from_memory() {
    let mut bench = Bench::new(ShardConfig::tiny());
    for number in 0..60 {
        let name = format!("user{}", number % 30);
        bench.deliver(&[&name], number, &message(number, 200));
        bench.checkpoint();
    }
    assert!(bench.shard.metrics().users_resident <= 8);
    for name in 0..30 {
        let mailbox = bench.mailbox(&format!("user{name}"));
        assert_eq!(mailbox.keys().copied().collect::<Vec<_>>(), [1, 2]);
    }
}

#[test]
fn what_was_never_there_is_said_so() {
    let mut bench = Bench::new(ShardConfig::tiny());
    assert_eq!(bench.list("nobody").unwrap_err(), Refused::NoSuchUser);
    bench.deliver(&["bob"], 1, &message(1, 100));
    assert_eq!(bench.fetch("bob", 2).unwrap_err(), Refused::NoSuchMessage);
}

#[test]
fn damage_in_a_segment_costs_that_message_only() {
    let mut bench = Bench::new(ShardConfig::tiny());
    for number in 1..=3 {
        bench.deliver(&["bob"], number, &message(number, 400));
    }
    bench.checkpoint();
    let dir =
        ringpost_engine::io::RelPath::user_dir(user("bob").partition(), user("bob").hash(), 0);
    let bytes = bench
        .disk
        .read(&dir.segment(1))
        .expect("the segment exists");
    let second = bytes
        .windows(6)
        .position(|part| part == b"mail 2")
        .expect("its subject");
    assert!(bench.disk.flip(&dir.segment(1), second as u64, 0x20));
    assert!(matches!(bench.fetch("bob", 2), Err(Refused::Damaged(_))));
    assert!(bench.fetch("bob", 1).is_ok());
    assert!(bench.fetch("bob", 3).is_ok());
    assert!(!bench.check().is_sound());
}

#[test]
fn a_full_disk_refuses_and_keeps_what_was_promised() {
    let mut bench = Bench::new(ShardConfig::tiny());
    bench.deliver(&["bob"], 1, &message(1, 500));
    bench
        .disk
        .configure(|config| config.capacity_bytes = Some(0));
    bench.append(&["bob"], 2, &message(2, 500));
    bench.settle();
    bench.submit(Request::Checkpoint).expect("taken");
    for _ in 0..200 {
        bench.poll();
        bench.pass_time();
    }
    let ticket = bench.append(&["bob"], 3, &message(3, 500));
    for _ in 0..200 {
        bench.poll();
        bench.pass_time();
    }
    assert_eq!(
        bench.outcomes(ticket),
        [Outcome::Refused(Refused::DiskFull)]
    );
    bench.disk.configure(|config| config.capacity_bytes = None);
    // The shard looks at the disk again now and then.
    for _ in 0..200 {
        bench.poll();
        bench.pass_time();
    }
    let outcomes = bench.deliver(&["bob"], 3, &message(3, 500));
    assert!(
        matches!(outcomes[0], Outcome::Stored { .. }),
        "{outcomes:?}"
    );
    assert!(bench.mailbox("bob").len() >= 2);
}

/// Whatever fails, and whoever waits for what: one answer each, then the reason.
#[test]
fn every_ticket_is_answered_once_when_the_shard_stops() {
    let mut stopped = 0;
    let mut refused = [0, 0];
    for fault in 1..=60 {
        for on_sync in [true, false] {
            let mut bench = Bench::new(ShardConfig::tiny());
            bench.deliver(&["bob", "eve"], 1, &message(1, 900));
            let (syncs, among) = (bench.disk.syncs(), Among::Writes);
            bench.disk.configure(|config| {
                if on_sync {
                    config.sync_error_at = Some(syncs + fault);
                } else {
                    let (at, errno) = (fault, libc::EIO);
                    config.error_at = Some(StepError { among, at, errno });
                }
            });
            bench.append(&["bob"], 2, &message(2, 900));
            bench.submit(Request::Checkpoint).expect("taken");
            for _turn in 0..fault {
                bench.poll();
                bench.pass_time();
            }
            // Behind the running checkpoint, or behind the end of the shard.
            for request in [Request::Checkpoint, Request::Drain] {
                drop(bench.submit(request));
            }
            // Panics if a ticket is answered twice or never.
            bench.settle();
            let fatal = bench
                .events
                .iter()
                .filter(|event| matches!(event, Event::Fatal(_)));
            if fatal.count() == 0 {
                continue;
            }
            stopped += 1;
            assert!(
                matches!(bench.events.last(), Some(Event::Fatal(_))),
                "{:?}",
                bench.events.last()
            );
            assert_eq!(bench.shard.metrics().tickets, 0);
            for event in &bench.events {
                match event {
                    Event::Checkpointed {
                        result: Err(why), ..
                    } => {
                        assert_eq!(*why, Refused::Stopped);
                        refused[0] += 1;
                    }
                    Event::Drained {
                        result: Err(why), ..
                    } => {
                        assert_eq!(*why, Refused::Stopped);
                        refused[1] += 1;
                    }
                    _ => {}
                }
            }
            let late = bench
                .submit(Request::Checkpoint)
                .expect_err("it is stopped");
            assert_eq!(late, Refused::Stopped);
        }
    }
    assert!(
        stopped > 5 && refused[0] > 5 && refused[1] > 5,
        "{stopped} {refused:?}"
    );
}
