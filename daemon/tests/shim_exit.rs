//! `ringpost-deliver` as an MTA sees it: exit code, one line of standard error, and an input that is
//! read to its end (mail.md 3.2). The node is fake, so that it can do what a real one never does.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "measures that the deadline is kept; helpers of tests are tests"
)]

mod fake_node;

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fake_node::{Arrived, BOUND, FakeNode, socket_in};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringpost_netproto::frame::Status;
use ringpost_netproto::session::server::Event;

const MESSAGE: &[u8] = b"Received: from x; Mon, 1 Jan 2024 00:00:00 +0000\nSubject: x\n\nhello\n";

/// More than a pipe holds and than one frame holds.
fn long_message() -> Vec<u8> {
    let mut message = b"Subject: long\n\n".to_vec();
    for line in 0..60_000 {
        message.extend_from_slice(format!("line {line} of a long message\r\n").as_bytes());
    }
    message
}

/// What became of a call.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    stderr: String,
    /// Whether the caller could write all of its message.
    drained: Result<(), io::ErrorKind>,
    took: Duration,
}

fn spawn(socket: &Path, words: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_ringpost-deliver"))
        .arg("--socket")
        .arg(socket)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env_clear()
        .spawn()
        .unwrap()
}

/// Writes `message` like an MTA and collects the end.
fn finish(mut child: Child, message: &[u8]) -> Ended {
    let start = Instant::now();
    let drained = child
        .stdin
        .take()
        .map_or(Ok(()), |mut stdin| stdin.write_all(message))
        .map_err(|error| error.kind());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"", "nothing on standard output");
    Ended {
        code: output.status.code(),
        stderr: String::from_utf8(output.stderr).unwrap(),
        drained,
        took: start.elapsed(),
    }
}

fn deliver(socket: &Path, words: &[&str], message: &[u8]) -> Ended {
    finish(spawn(socket, words), message)
}

/// The whole message was taken, the code is `code`, and there is one line that says why.
fn assert_failed(ended: &Ended, code: i32, line: &str) {
    assert_eq!(ended.code, Some(code), "{ended:?}");
    assert_eq!(ended.drained, Ok(()), "{ended:?}");
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    assert!(ended.stderr.contains(line), "{ended:?} lacks {line:?}");
}

#[test]
fn stored_and_duplicate_are_0_and_silent() {
    for status in [&[Status::Ok][..], &[Status::OkDuplicate], &[Status::OkHeld]] {
        let node = FakeNode::start({
            move |mut connection| {
                connection.receive(|session, id, _| {
                    session.deliver_reply(
                        id,
                        &[ringpost_netproto::message::deliver::RecipientReply::new(
                            status[0],
                        )],
                    );
                });
            }
        });
        let ended = deliver(
            &node.socket(),
            &["-d", "bob+box", "-f", "a@b", "-q", "Q1"],
            MESSAGE,
        );
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
        let arrived = node.next_arrived();
        assert_eq!(arrived.body, MESSAGE);
        assert_eq!(arrived.request.recipients[0].address, "bob+box");
        assert_eq!(arrived.request.sender, "a@b");
        assert_eq!(arrived.request.queue_id, "Q1");
        assert_eq!(arrived.request.size_hint, Some(MESSAGE.len() as u64));
        assert!(arrived.request.deadline_ms > 1_000);
    }
}

#[test]
fn every_status_has_its_code() {
    for (statuses, code, line) in [
        (&[Status::NoUser][..], 67, "5.1.1 bob: no such user"),
        (&[Status::TooBig], 65, "5.3.4 bob: the message is larger"),
        (
            &[Status::QuotaRefused],
            69,
            "5.2.2 bob: the mailbox is over quota",
        ),
        (
            &[Status::DisabledRefused],
            69,
            "5.2.1 bob: the account is disabled",
        ),
        (&[Status::Quota], 75, "4.2.2 bob: the mailbox is over quota"),
        (&[Status::DiskFull], 75, "4.3.1 bob: the disk is full"),
        (&[Status::Busy], 75, "4.3.0 bob: the node is busy"),
        (&[Status::NoDirectory], 75, "4.4.3 bob"),
        (&[Status::Unknown(999)], 75, "4.3.0 bob"),
        (&[Status::Ok, Status::Busy], 75, "4.3.0 ann"),
        (&[Status::NoUser, Status::Ok], 67, "5.1.1 bob"),
        (&[Status::NoUser, Status::DiskFull], 75, "4.3.1 ann"),
    ] {
        let node = FakeNode::answering(statuses);
        let words = ["-d", "bob", "--", "ann"];
        let words = if statuses.len() == 2 {
            &words[..]
        } else {
            &words[..2]
        };
        assert_failed(&deliver(&node.socket(), words, MESSAGE), code, line);
    }
}

#[test]
fn any_bytes_arrive_as_they_are() {
    let long = long_message();
    for message in [
        &b""[..],
        b"no headers, no newline",
        b"A: b\r\n\r\n.\r\n..\r\n\0\xff\r\rFrom x\n>From y\n",
        b"From : x@y\n\nold\n",
        &long,
        &long[..65_536],
        &long[..65_537],
    ] {
        let node = FakeNode::answering(&[Status::Ok]);
        let ended = deliver(&node.socket(), &["-d", "bob"], message);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(
            node.next_arrived().body == message,
            "{} bytes",
            message.len()
        );
    }
}

#[test]
fn an_envelope_line_is_cut_off() {
    let node = FakeNode::answering(&[Status::Ok]);
    let message = [b"From ann Mon Jan  1 00:00:00 2024\n".as_slice(), MESSAGE].concat();
    assert_eq!(
        deliver(&node.socket(), &["-d", "bob"], &message).code,
        Some(0)
    );
    assert_eq!(node.next_arrived().body, MESSAGE);
}

#[test]
fn an_absent_daemon_is_75_within_the_deadline() {
    let nowhere = tempfile::tempdir().unwrap();
    let socket = nowhere.path().join("node");
    let words = ["-d", "bob", "--timeout", "1"];
    let ended = deliver(&socket, &words, &long_message());
    assert_failed(&ended, 75, "node: no such file or directory");
    assert!(ended.stderr.starts_with("4.3.0 /"), "{ended:?}");
    assert!(ended.took < BOUND / 2, "{ended:?}");
    drop(UnixListener::bind(&socket).unwrap());
    let ended = deliver(&socket, &words, &long_message());
    assert_failed(&ended, 75, "node: connection refused");
}

#[test]
fn a_daemon_that_comes_back_gets_the_message() {
    let directory = tempfile::tempdir().unwrap();
    let child = spawn(&socket_in(directory.path()), &["-d", "bob"]);
    let mut first = true;
    let node = FakeNode::start_in(directory, move |mut connection| {
        // Gone again in the middle of the handshake, then back.
        if !std::mem::take(&mut first) {
            connection.receive(|session, id, _| {
                session.deliver_reply(
                    id,
                    &[ringpost_netproto::message::deliver::RecipientReply::new(
                        Status::Ok,
                    )],
                );
            });
        }
    });
    let ended = finish(child, MESSAGE);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    assert_eq!(node.next_arrived().body, MESSAGE);
}

#[test]
fn a_silent_daemon_is_75_at_the_deadline() {
    for message in [MESSAGE, &long_message()] {
        let node = FakeNode::start(|mut connection| {
            // Accepts, says nothing, reads nothing, until the shim hangs up.
            let mut byte = [0];
            while connection.stream.read(&mut byte).is_ok_and(|read| read > 0) {}
        });
        let ended = deliver(&node.socket(), &["-d", "bob", "--timeout", "1"], message);
        assert_eq!(ended.code, Some(75), "{ended:?}");
        assert!(ended.stderr.contains("no answer in time"), "{ended:?}");
        assert!(ended.took >= Duration::from_millis(500), "{ended:?}");
        assert!(ended.took < BOUND / 2, "{ended:?}");
    }
}

#[test]
fn a_daemon_that_never_answers_a_whole_message_is_75() {
    let node = FakeNode::start(|mut connection| connection.receive(|_, _, _| {}));
    let words = ["-d", "bob", "--timeout", "1"];
    assert_failed(
        &deliver(&node.socket(), &words, &long_message()),
        75,
        "no answer in time",
    );
    assert_failed(
        &deliver(&node.socket(), &words, MESSAGE),
        75,
        "no answer in time",
    );
}

#[test]
fn a_daemon_killed_half_way_is_75() {
    let node = FakeNode::start(|mut connection| {
        while let Some(event) = connection.next_event() {
            if matches!(event, Event::DeliverData { .. }) {
                return;
            }
        }
    });
    for message in [MESSAGE, &long_message()] {
        let ended = deliver(&node.socket(), &["-d", "bob"], message);
        assert_failed(&ended, 75, "4.3.0 /");
        assert!(ended.took < BOUND / 2, "{ended:?}");
    }
}

#[test]
fn an_early_refusal_reads_the_rest() {
    for (status, code) in [
        (Status::TooBig, 65),
        (Status::DiskFull, 75),
        (Status::Ok, 75),
    ] {
        let node = FakeNode::start(move |mut connection| {
            while let Some(event) = connection.next_event() {
                if let Event::DeliverBegin { id, .. } = event {
                    let reply = ringpost_netproto::message::deliver::RecipientReply::new(status);
                    connection.session.deliver_reply(id, &[reply]);
                }
            }
        });
        let ended = deliver(&node.socket(), &["-d", "bob"], &long_message());
        assert_failed(&ended, code, "");
    }
}

#[test]
fn a_refused_request_says_why() {
    let node = FakeNode::start(|mut connection| {
        connection.receive(|session, id, _| session.fail(id, Status::Busy, "the log is full"));
    });
    let ended = deliver(&node.socket(), &["-d", "bob"], MESSAGE);
    assert_failed(&ended, 75, "the node is busy: the log is full");
}

#[test]
fn garbage_and_other_versions_are_75() {
    let garbage = FakeNode::start(|mut connection| {
        drop(
            connection
                .stream
                .write_all(&b"220 mail.example ESMTP\r\n".repeat(9)),
        );
        let mut rest = Vec::new();
        drop(connection.stream.read_to_end(&mut rest));
    });
    let ended = deliver(&garbage.socket(), &["-d", "bob"], &long_message());
    assert_failed(&ended, 75, "not a frame of this protocol");
    let newer = FakeNode::start(|mut connection| {
        let mut hello =
            ringpost_netproto::version::Hello::new(ringpost_netproto::version::Role::Node);
        (hello.version_min, hello.version_max) = (900, 901);
        connection.session = ringpost_netproto::session::server::ServerSession::new(
            ringpost_netproto::session::Config::new(hello),
        );
        while connection.next_event().is_some() {}
    });
    let ended = deliver(&newer.socket(), &["-d", "bob"], MESSAGE);
    assert_failed(&ended, 75, "no common protocol version");
}

#[test]
fn a_signal_is_75() {
    for signal in [
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGABRT,
        Signal::SIGALRM,
    ] {
        let node = FakeNode::start(|mut connection| {
            while let Some(event) = connection.next_event() {
                if matches!(event, Event::DeliverEnd { .. }) {
                    connection.mark();
                }
            }
        });
        let mut child = spawn(&node.socket(), &["-d", "bob"]);
        child.stdin.take().unwrap().write_all(MESSAGE).unwrap();
        node.await_mark();
        kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
        let ended = finish(child, b"");
        assert_eq!(ended.code, Some(75), "{signal}: {ended:?}");
    }
}

#[test]
fn wrong_calls_are_75_and_read_their_input() {
    let node = FakeNode::answering(&[Status::Ok]);
    for (words, line) in [
        (&[][..], "no recipient"),
        (&["-d", ""], "a recipient is empty"),
        (&["-e"], "RECIPIENT is not in the environment"),
        (&["-m", "Box", "-d", "a", "-d", "b"], "-m takes exactly one"),
        (&["-Z"], "unexpected argument '-Z'"),
        (&["-d"], "a value is required"),
        (
            &["-d", "bob", "--timeout", "never"],
            "invalid value 'never'",
        ),
        (&["--help"], "a message came"),
    ] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ringpost-deliver"))
            .arg("--socket")
            .arg(node.socket())
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .env_clear()
            .spawn()
            .unwrap();
        let written = child.stdin.take().unwrap().write_all(&long_message());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(75), "{words:?}: {stderr}");
        assert!(written.is_ok(), "{words:?}: {written:?}");
        assert!(
            stderr.starts_with("4.3.5 ") && stderr.contains(line),
            "{words:?}: {stderr}"
        );
        assert_eq!(stderr.lines().count(), 1, "{words:?}: {stderr}");
    }
}

#[test]
fn no_input_is_no_message() {
    let node = FakeNode::answering(&[Status::Ok]);
    for redirection in ["<&-", "</dev/null", "<&- >&-", "<&- 2>&-"] {
        let script = format!("exec \"$0\" --socket \"$1\" -d bob {redirection}");
        let output = Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_ringpost-deliver")])
            .arg(node.socket())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(75), "{redirection}: {output:?}");
    }
}

#[test]
fn closed_standard_output_and_error_do_not_matter() {
    let node = FakeNode::answering(&[Status::Ok]);
    let script = "printf 'A: b\\n\\nx\\n' | \"$0\" --socket \"$1\" -d bob >&- 2>&-";
    let output = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_ringpost-deliver")])
        .arg(node.socket())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(node.next_arrived().body, b"A: b\n\nx\n");
}

#[test]
fn the_environment_of_an_mta_is_read() {
    let node = FakeNode::answering(&[Status::Ok]);
    let mut child = Command::new(env!("CARGO_BIN_EXE_ringpost-deliver"))
        .arg("--socket")
        .arg(node.socket())
        .args(["-e", "-m", "Lists"])
        .stdin(Stdio::piped())
        .env_clear()
        .envs([
            ("RECIPIENT", "o'b$x+box@v.test"),
            ("SENDER", ""),
            ("MESSAGE_ID", "1a-b"),
        ])
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(MESSAGE).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let request = node.next_arrived().request;
    assert_eq!(request.recipients[0].address, "o'b$x+box@v.test");
    assert_eq!(
        request.recipients[0].mailbox.as_deref(),
        Some(&b"Lists"[..])
    );
    assert_eq!(
        (&request.sender[..], &request.queue_id[..]),
        (&b""[..], &b"1a-b"[..])
    );
}

#[test]
fn a_message_that_never_ends_meets_the_deadline() {
    let node = FakeNode::answering(&[Status::Ok]);
    let mut child = spawn(&node.socket(), &["-d", "bob", "--timeout", "1"]);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(MESSAGE).unwrap();
    let ended = finish(child, b"");
    assert_eq!(ended.code, Some(75), "{ended:?}");
    assert!(ended.took < BOUND / 2, "{ended:?}");
    drop(stdin);
}

/// Holds an LMTP conversation: all of `input` at once, as a pipelining client would.
fn lmtp(socket: &Path, input: &[u8]) -> (Option<i32>, Vec<String>, String) {
    let mut child = spawn(socket, &["-l", "--timeout", "2"]);
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    let replies = String::from_utf8(output.stdout).unwrap();
    (
        output.status.code(),
        replies.lines().map(str::to_owned).collect(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

const TRANSACTION: &[u8] = b"LHLO mta.test\r\n\
MAIL FROM:<ann@a.test> SIZE=100\r\n\
RCPT TO:<bob+box>\r\n\
RCPT TO:<\"c d\"@v.test>\r\n\
RCPT TO:<@bad\r\n\
DATA\r\n\
Return-Path: <ann@a.test>\r\n\
Subject: x\r\n\
\r\n\
..dot\r\n\
From here\r\n\
.\r\n";

#[test]
fn lmtp_answers_for_each_recipient() {
    let node = FakeNode::answering(&[Status::Ok, Status::NoUser]);
    let twice = [TRANSACTION, b"RSET\r\n", &TRANSACTION[15..], b"QUIT\r\n"].concat();
    let (code, replies, stderr) = lmtp(&node.socket(), &twice);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let codes: Vec<&str> = replies
        .iter()
        .filter(|line| line.as_bytes()[3] == b' ')
        .map(|line| line.get(..9).unwrap_or(line))
        .collect();
    let transaction = [
        "250 2.1.0",
        "250 2.1.5",
        "250 2.1.5",
        "501 5.5.4",
        "354 ",
        "250 2.0.0",
        "550 5.1.1",
    ];
    assert_eq!(codes.len(), 1 + 1 + 7 + 1 + 7 + 1, "{replies:#?}");
    for (at, want) in transaction.iter().enumerate() {
        let (first, second) = (codes[2 + at], codes[10 + at]);
        assert!(
            first[..3] == want[..3] && second[..3] == want[..3],
            "{replies:#?}"
        );
    }
    for _ in 0..2 {
        let Arrived { request, body } = node.next_arrived();
        assert_eq!(request.recipients[0].address, "bob+box");
        assert_eq!(request.recipients[1].address, "\"c d\"@v.test");
        assert_eq!(request.sender, "ann@a.test");
        let message = b"Return-Path: <ann@a.test>\r\nSubject: x\r\n\r\n.dot\r\nFrom here\r\n";
        assert_eq!(body, message);
    }
}

#[test]
fn lmtp_without_a_daemon_is_451_and_goes_on() {
    let nowhere = tempfile::tempdir().unwrap();
    let input = [TRANSACTION, b"QUIT\r\n"].concat();
    let (code, replies, _) = lmtp(&nowhere.path().join("node"), &input);
    assert_eq!(code, Some(0));
    let late = replies
        .iter()
        .filter(|line| line.starts_with("451 4.3.0 "))
        .count();
    assert_eq!(late, 2, "{replies:#?}");
    assert!(replies.last().unwrap().starts_with("221 "), "{replies:#?}");
}

#[test]
fn lmtp_streams_a_long_message_and_hears_an_early_refusal() {
    let node = FakeNode::answering(&[Status::Ok]);
    let message: Vec<u8> = long_message();
    let input = [
        &b"LHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<bob>\r\nDATA\r\n"[..],
        &message,
        b".\r\nQUIT\r\n",
    ]
    .concat();
    let (code, replies, _) = lmtp(&node.socket(), &input);
    assert_eq!(code, Some(0));
    assert!(
        replies.iter().any(|line| line.starts_with("250 2.0.0 ")),
        "{replies:#?}"
    );
    assert!(node.next_arrived().body == message);
    let node = FakeNode::start(|mut connection| {
        while let Some(event) = connection.next_event() {
            if let Event::DeliverBegin { id, .. } = event {
                connection.session.fail(id, Status::TooBig, "");
            }
        }
    });
    let (code, replies, _) = lmtp(&node.socket(), &input);
    assert_eq!(code, Some(0));
    assert!(
        replies.iter().any(|line| line.starts_with("552 5.3.4 ")),
        "{replies:#?}"
    );
}

#[test]
fn lmtp_that_ends_inside_a_transaction_delivers_nothing() {
    let node = FakeNode::answering(&[Status::Ok]);
    let cut = &TRANSACTION[..TRANSACTION.len() - 3];
    let (code, replies, stderr) = lmtp(&node.socket(), cut);
    assert_eq!(code, Some(75));
    assert!(stderr.contains("ended inside a transaction"), "{stderr}");
    assert!(replies.last().unwrap().starts_with("354"), "{replies:#?}");
    for redirection in ["<&-", ">&-", "</dev/null", ">/dev/null"] {
        let script = format!("echo QUIT | (exec \"$0\" --socket \"$1\" -l {redirection})");
        let output = Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_ringpost-deliver")])
            .arg(node.socket())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(75), "{redirection}: {output:?}");
    }
}
