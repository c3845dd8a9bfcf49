//! The loop against a scripted LMTP server on a thread: what it counts is what happened.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use super::*;
use crate::address::Address;
use crate::deliver::lmtp::{LmtpSession, Transfer};
use crate::deliver::window::Window;
use crate::schedule::Pace;
use crate::workload::LineEnd;

/// How the server behaves.
#[derive(Clone, Copy)]
enum Manner {
    Good,
    /// Every third message gets 451 after the dot.
    Busy,
    /// Closes in place of the tenth message's reply.
    Closes,
    /// The tenth message's reply never comes.
    Silent,
}

fn serve(stream: &UnixStream, manner: Manner) -> std::io::Result<u64> {
    let mut out = stream;
    let mut lines = BufReader::new(stream).lines();
    let mut next = || lines.next().transpose();
    let mut stored = 0;
    out.write_all(b"220 hi\r\n")?;
    while let Some(line) = next()? {
        match line.get(..4) {
            Some("LHLO") => out.write_all(b"250-hi\r\n250 PIPELINING\r\n")?,
            Some("DATA") => {
                out.write_all(b"354 go\r\n")?;
                while next()?.is_some_and(|line| line != ".") {}
                stored += 1;
                match manner {
                    Manner::Busy if stored % 3 == 0 => out.write_all(b"451 4.3.0 busy\r\n")?,
                    Manner::Closes if stored == 10 => return Ok(stored),
                    Manner::Silent if stored == 10 => while next()?.is_some() {},
                    _ => out.write_all(b"250 2.0.0 stored\r\n")?,
                }
            }
            _ => out.write_all(b"250 ok\r\n")?,
        }
    }
    Ok(stored)
}

/// Runs `plan` over `links_count` links and returns the account and the messages the server saw.
fn against(manner: Manner, plan: &Plan, links_count: usize) -> (Tally, u64) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lmtp");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::scope(|scope| {
        let servers: Vec<_> = (0..links_count)
            .map(|_| {
                let link = connect(&path);
                let (stream, _) = listener.accept().unwrap();
                (
                    link,
                    scope.spawn(move || serve(&stream, manner).unwrap_or(0)),
                )
            })
            .collect();
        let (mut links, servers): (Vec<_>, Vec<_>) = servers.into_iter().unzip();
        for link in &mut links {
            link.greet(Duration::from_secs(10)).unwrap();
        }
        let share = Share {
            thread: 0,
            threads: 1,
            places: plan.in_flight,
        };
        let tally = run(plan, share, links, Instant::now()).unwrap();
        let seen = servers
            .into_iter()
            .map(|server| server.join().unwrap())
            .sum();
        (tally, seen)
    })
}

fn connect(path: &Path) -> Link {
    Link::connect(
        &Address::from(path),
        Box::new(LmtpSession::new(Transfer::Data)),
    )
    .unwrap()
}

fn plan() -> Plan {
    let mut plan = Plan::tiny(50);
    plan.line_end = LineEnd::CrLf;
    plan.window = Window::at(Duration::ZERO, Duration::from_millis(200));
    plan
}

#[test]
fn closed_loop_counts_what_the_server_stored() {
    let (tally, seen) = against(Manner::Good, &plan(), 4);
    assert!(seen > 10);
    assert_eq!(tally.recipients_all, seen);
    assert_eq!(tally.sent, seen);
    assert_eq!(tally.errors_count(), 0, "{:?}", tally.errors);
    assert_eq!(
        tally
            .stored_by_user
            .iter()
            .map(|&n| u64::from(n))
            .sum::<u64>(),
        seen
    );
    let watched: usize = tally.watched.iter().map(|(_, watched)| watched.len()).sum();
    assert!(watched > 0 && tally.watched_all);
    assert_eq!(tally.latencies.summary().count, seen);
}

#[test]
fn the_cap_on_bytes_ends_the_run() {
    let mut plan = plan();
    plan.window = Window::at(Duration::ZERO, Duration::from_mins(1));
    plan.bytes_max = 100 * 512;
    let (tally, seen) = against(Manner::Good, &plan, 2);
    assert!(tally.capped);
    assert_eq!(seen, 100);
    assert_eq!(tally.recipients_all, 100);
}

#[test]
fn temporary_failures_are_counted_by_text_and_are_no_success() {
    let (tally, seen) = against(Manner::Busy, &plan(), 1);
    assert_eq!(tally.errors.get("451 4.3.0 busy"), Some(&(seen / 3)));
    assert_eq!(tally.recipients_all, seen - seen / 3);
    assert_eq!(tally.latencies.summary().count, seen - seen / 3);
    let doubtful: u32 = tally.doubtful_by_user.iter().sum();
    assert_eq!(u64::from(doubtful), seen / 3);
}

#[test]
fn a_lost_connection_leaves_its_message_in_doubt_and_ends_the_run() {
    let mut plan = plan();
    plan.window = Window::at(Duration::ZERO, Duration::from_mins(1));
    plan.in_flight = 1;
    let (tally, _) = against(Manner::Closes, &plan, 1);
    assert_eq!(tally.recipients_all, 9);
    assert_eq!(
        tally.errors.get("the server closed the connection"),
        Some(&1)
    );
    assert_eq!(tally.doubtful_by_user.iter().sum::<u32>(), 1);
}

#[test]
fn an_answer_that_never_comes_is_an_error_after_the_drain() {
    let mut plan = plan();
    plan.in_flight = 1;
    plan.drain_max = Duration::from_millis(50);
    let (tally, _) = against(Manner::Silent, &plan, 1);
    assert_eq!(tally.recipients_all, 9);
    let (text, count) = tally.errors.first_key_value().unwrap();
    assert!(text.starts_with("no answer within"), "{text}");
    assert_eq!(*count, 1);
}

#[test]
fn open_loop_keeps_its_rate_and_counts_from_the_due_time() {
    let mut plan = plan();
    plan.bytes_max = 1 << 30;
    plan.pace = Pace::Open { rate: 1000.0 };
    plan.window = Window::at(Duration::ZERO, Duration::from_millis(500));
    let (tally, seen) = against(Manner::Good, &plan, 4);
    // 500 expected, standard deviation 22; a busy machine sends late but sends.
    assert!((380..620).contains(&seen), "{seen}");
    assert_eq!(tally.recipients_all, seen);

    // One place and a rate beyond reach: latency grows with the backlog, not the service time.
    plan.in_flight = 1;
    plan.pace = Pace::Open { rate: 1e6 };
    let (tally, seen) = against(Manner::Good, &plan, 1);
    // All that was due counts, sent or not: about 500,000, waiting 250 ms in the median.
    assert!(
        tally.overdue > 100_000 && tally.overdue + seen > 400_000,
        "{}",
        tally.overdue
    );
    let summary = tally.latencies.summary();
    assert_eq!(summary.count, tally.overdue + seen);
    assert!(summary.p50_us > 100_000.0, "{summary:?}");
}
