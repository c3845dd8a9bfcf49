//! A node as its clients see it: what goes in comes back byte for byte, one answer per recipient,
//! and bad input gets a clear answer with nothing lost.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod testkit;

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use nix::sys::signal::Signal;
use ringpost_netproto::frame::Status;
use testkit::{Lmtp, Scratch, stamped, until};

/// Messages that break mbox readers, or stores that touch what they keep.
fn odd_messages() -> Vec<Vec<u8>> {
    let mut messages: Vec<Vec<u8>> = [
        &b""[..],
        b"\r\n",
        b"Subject: header only\r\n",
        b"no header at all\r\n",
        b"Subject: x\r\n\r\nno final newline",
        b"Subject: x\r\n\r\nends in CR\r",
        b"Subject: x\n\nbare LF\n",
        b"Subject: x\r\n\r\nbare\rCR and \0NUL and \xff\r\n",
        b"Subject: x\r\n\r\nmixed\nends\r\n",
        b"From x\r\nFrom: y\r\n\r\nFrom z\r\n>From a\r\n>>From b\r\nFrom",
        b"Subject: x\r\n\r\n.\r\n..\r\n.x\r\n",
        b"X-Ringpost: 1 forged\r\nContent-Length: 5\r\nStatus: RO\r\nX-UID: 9\r\n\r\nbody\r\n\r\n\r\n",
    ]
    .iter()
    .map(|message| message.to_vec())
    .collect();
    messages.push([b"Subject: x\r\n\r\n", &b"y".repeat(1 << 20)[..], b"\r\n"].concat());
    messages.push(
        [
            b"Subject: x\r\n\r\n",
            &b">".repeat(10_000)[..],
            b"From x\r\n",
        ]
        .concat(),
    );
    for len in [131_071, 131_072, 131_073] {
        messages.push(
            b"Subject: x\n\n"
                .iter()
                .copied()
                .chain((0..len).map(|_| b'z'))
                .collect(),
        );
    }
    // Large, first CRLF only, then a bare LF: what was staged is rewritten.
    let lines = b"From the middle of a large message\r\n".repeat(20_000);
    messages.push([&lines[..], b"bare\n", &lines[..]].concat());
    messages
}

fn without_return_path(message: &[u8]) -> &[u8] {
    let end = message.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    assert!(message.starts_with(b"Return-Path: <sender@example.test>"));
    message.get(end..).unwrap()
}

#[test]
fn odd_messages_come_back_byte_for_byte_through_both_doors_and_a_restart() {
    let scratch = Scratch::new();
    let daemon = scratch.start_with(&["return_path=off"]);
    let mut client = daemon.client();
    let mut lmtp = daemon.lmtp();
    for (at, message) in odd_messages().iter().enumerate() {
        let replies = client.deliver(&["node@example.test"], message);
        assert_eq!(replies[0].status, Status::Ok, "message {at}");
        let replies = lmtp.deliver_bdat(&["lmtp@example.test"], message);
        assert!(
            replies[0].starts_with("250 2.0.0 "),
            "message {at}: {}",
            replies[0]
        );
    }
    let check = |client: &mut testkit::NodeClient| {
        for user in ["node@example.test", "lmtp@example.test"] {
            for (uid, message) in (1..).zip(odd_messages()) {
                assert!(
                    client.fetch(user, uid) == message,
                    "message {uid} of {user}"
                );
            }
        }
    };
    check(&mut client);
    drop((client, lmtp));
    assert_eq!(daemon.stop().code(), Some(0));
    let daemon = scratch.start();
    check(&mut daemon.client());
    daemon.kill();
    let daemon = scratch.start();
    check(&mut daemon.client());
}

#[test]
fn data_takes_dots_off_and_a_return_path_is_added() {
    let scratch = Scratch::new();
    let daemon = scratch.start();
    let message = b"Subject: x\r\n\r\n.\r\n..\r\n.hidden\r\nlast\r\n";
    let replies = daemon.lmtp().deliver(&["bob@example.test"], message);
    assert!(replies[0].ends_with(" stored"), "{}", replies[0]);
    let got = daemon.client().fetch("bob@example.test", 1);
    assert_eq!(without_return_path(&got), message);
}

#[test]
fn lmtp_over_tcp_is_the_same_door() {
    let scratch = Scratch::new();
    let daemon = scratch.start_with(&["listen.lmtp=127.0.0.1:0"]);
    let (_, status) = daemon.page("/status");
    assert!(status.contains("\"cores\""), "{status}");
    let words = daemon.words();
    let address = words
        .split("\"lmtp\":\"")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap();
    let mut lmtp = Lmtp::over_tcp(address);
    assert!(lmtp.reply().starts_with("220 "));
    assert!(lmtp.say("LHLO test").starts_with("250 "));
    assert!(lmtp.deliver(&["bob@example.test"], b"x\r\n")[0].starts_with("250 "));
    assert_eq!(daemon.client().count("bob@example.test"), 1);
}

#[test]
fn a_message_for_many_users_is_answered_for_each_whatever_core_owns_them() {
    let scratch = Scratch::new();
    let daemon = scratch.start_with(&["cores=3"]);
    let users: Vec<String> = (0..200)
        .map(|number| format!("user{number}@example.test"))
        .collect();
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    let replies = daemon.lmtp().deliver(&users, &stamped("many"));
    assert!(
        replies.iter().all(|reply| reply.ends_with(" stored")),
        "{replies:?}"
    );
    let large = [
        stamped("large"),
        b"line of a large message\r\n".repeat(20_000),
    ]
    .concat();
    let replies = daemon.client().deliver(&users, &large);
    assert!(
        replies.iter().all(|reply| reply.status == Status::Ok),
        "{replies:?}"
    );
    let mut client = daemon.client();
    for user in users {
        assert_eq!(client.count(user), 2, "{user}");
        assert!(
            without_return_path(&client.fetch(user, 2)) == large,
            "{user}"
        );
    }
    let stored = "ringpost_deliveries_total{door=\"lmtp\",outcome=\"stored\"}";
    assert!((daemon.metric(stored) - 200.0).abs() < 0.5);
}

#[test]
fn a_repeated_recipient_gets_one_copy_and_two_answers() {
    let scratch = Scratch::new();
    let daemon = scratch.start();
    let twice = ["bob@example.test", "BOB@example.test"];
    // A detail that names no mailbox is INBOX too, but only the shard knows that.
    let detailed = ["bob@example.test", "BOB+detail@example.test"];
    let sent = [
        (twice, b"Subject: x\r\n\r\n".to_vec()),
        (detailed, stamped("x")),
    ];
    for (count, (recipients, message)) in (1..).zip(sent) {
        let replies = daemon.lmtp().deliver(&recipients, &message);
        assert!(
            replies.iter().all(|reply| reply.starts_with("250 ")),
            "{replies:?}"
        );
        assert_eq!(daemon.client().count("bob@example.test"), count);
    }
}

#[test]
fn mail_goes_into_the_mailbox_that_m_or_the_detail_names() {
    let scratch = Scratch::new();
    let daemon = scratch.start();
    let mut client = daemon.client();
    let mut lmtp = daemon.lmtp();
    // The first one meets a user who is not there yet.
    let into = ["Sent", "sent", "inbox", "Nowhere", ".."];
    for (at, mailbox) in into.iter().enumerate() {
        let message = stamped(&format!("{at}"));
        let reply = client.deliver_into("bob@example.test", mailbox, &message);
        assert_eq!(reply.status, Status::Ok, "{mailbox}");
    }
    // -m wins over the detail.
    let reply = client.deliver_into("bob+Nowhere@example.test", "Sent", &stamped("m"));
    assert_eq!(reply.status, Status::Ok);
    for recipient in ["bob+Sent@example.test", "bob+Lists@example.test"] {
        let replies = lmtp.deliver(&[recipient], &stamped(recipient));
        assert!(replies[0].starts_with("250 "), "{}", replies[0]);
    }
    let wanted = [("INBOX".to_owned(), 4), ("Sent".to_owned(), 4)];
    assert_eq!(client.mailboxes("bob@example.test"), wanted);

    // One message for two mailboxes of a user is two messages; its retry is none.
    let both = ["bob+Sent@example.test", "bob@example.test"];
    let replies = client.deliver(&both, &stamped("both"));
    assert!(replies.iter().all(|reply| reply.status == Status::Ok));
    let replies = client.deliver(&both, &stamped("both"));
    let duplicates = replies.iter().filter(|r| r.status == Status::OkDuplicate);
    assert_eq!(duplicates.count(), 2);
    let wanted = [("INBOX".to_owned(), 5), ("Sent".to_owned(), 5)];
    assert_eq!(client.mailboxes("bob@example.test"), wanted);
}

#[test]
fn a_retry_is_a_duplicate_through_any_door_and_after_a_restart() {
    let scratch = Scratch::new();
    let daemon = scratch.start();
    let message = stamped("once");
    let first = daemon.lmtp().deliver(&["bob@example.test"], &message);
    assert!(first[0].ends_with(" stored"), "{first:?}");
    let again = daemon.lmtp().deliver(&["bob@example.test"], &message);
    assert!(again[0].ends_with(" duplicate"), "{again:?}");
    let again = daemon.client().deliver(&["bob@example.test"], &message);
    assert_eq!(again[0].status, Status::OkDuplicate);
    assert_eq!(again[0].uid.unwrap().value(), 1);
    daemon.kill();
    let daemon = scratch.start();
    let again = daemon.client().deliver(&["bob@example.test"], &message);
    assert_eq!(again[0].status, Status::OkDuplicate);
    assert_eq!(daemon.stop().code(), Some(0));
    let daemon = scratch.start_with(&["cores=1"]);
    let again = daemon.client().deliver(&["bob@example.test"], &message);
    assert_eq!(again[0].status, Status::OkDuplicate);
    assert_eq!(daemon.client().count("bob@example.test"), 1);
}

#[test]
fn bytes_without_a_stamp_are_kept_twice() {
    let scratch = Scratch::new();
    let daemon = scratch.start();
    let mut client = daemon.client();
    for _ in 0..2 {
        let replies = client.deliver(&["bob@example.test"], b"Subject: by hand\n\nx\n");
        assert_eq!(replies[0].status, Status::Ok);
    }
    assert_eq!(client.count("bob@example.test"), 2);
}

#[test]
fn unknown_users_are_refused_and_the_others_get_their_mail() {
    let scratch = Scratch::new();
    let users = scratch.path("users");
    std::fs::write(&users, "bob@example.test\n").unwrap();
    let file = format!("accounts.file={}", users.display());
    let daemon = scratch.start_with(&[
        "accounts.accept=listed",
        &file,
        "default_domain=example.test",
    ]);
    let mut lmtp = daemon.lmtp();
    let replies = lmtp.envelope(&[
        "eve@example.test",
        "bob",
        "Bob+x@EXAMPLE.test",
        "b@other.test",
    ]);
    let codes: Vec<&str> = replies.iter().map(|reply| &reply[..9]).collect();
    assert_eq!(codes, ["550 5.1.1", "250 2.1.5", "250 2.1.5", "550 5.1.1"]);
    assert!(lmtp.say("DATA").starts_with("354 "));
    lmtp.send(b"Subject: x\r\n.\r\n");
    assert!(lmtp.reply().starts_with("250 ") && lmtp.reply().starts_with("250 "));
    let replies = daemon
        .client()
        .deliver(&["eve@example.test", "bob"], b"x\n");
    let statuses: Vec<_> = replies.iter().map(|reply| reply.status).collect();
    assert_eq!(statuses, [Status::NoUser, Status::Ok]);
    let replies = daemon
        .client()
        .deliver(&["eve@example.test"], &b"x\n".repeat(500_000));
    assert_eq!(replies[0].status, Status::NoUser);

    std::fs::write(&users, "bob@example.test\neve@example.test\n").unwrap();
    daemon.signal(Signal::SIGHUP);
    until("the new list", || daemon.metric("ringpost_accounts") > 1.5);
    until("the new user", || {
        let replies = daemon.client().deliver(&["eve@example.test"], b"x\n");
        replies[0].status == Status::Ok
    });
}

#[test]
fn odd_recipients_get_their_answer() {
    let scratch = Scratch::new();
    let daemon = scratch.start();
    let mut lmtp = daemon.lmtp();
    assert!(lmtp.say("MAIL FROM:<>").starts_with("250 "));
    let long = "x".repeat(300);
    for (recipient, want) in [
        ("<>", "501 5.1.3"),
        ("<@a:bob@b>", "501 5.1.3"),
        ("<../../etc/passwd>", "501 5.1.3"),
        (&format!("<{long}@example.test>"), "501 5.1.3"),
        ("<\"a b\"@example.test>", "250 2.1.5"),
        ("<o'brien+x@example.test>", "250 2.1.5"),
    ] {
        let reply = lmtp.say(&format!("RCPT TO:{recipient}"));
        assert!(reply.starts_with(want), "{recipient}: {reply}");
    }
    for bytes in [
        &b"RCPT TO:<b\xc3\xb6b@x.test>\r\n"[..],
        b"RCPT TO:<a\0b@x.test>\r\n",
    ] {
        lmtp.send(bytes);
        let reply = lmtp.reply();
        assert!(reply.starts_with('5'), "{reply}");
    }
    let odd = ["", "../../x", "a\0b", "b\u{f6}b", &long, "ok@example.test"];
    let replies = daemon.client().deliver(&odd, b"x\n");
    let (last, others) = replies.split_last().unwrap();
    assert_eq!(last.status, Status::Ok);
    assert!(
        others.iter().all(|reply| reply.status == Status::NoUser),
        "{others:?}"
    );
}

#[test]
fn a_message_over_the_limit_is_refused_announced_or_not() {
    let scratch = Scratch::new();
    let daemon = scratch.start_with(&["message_bytes_max=1 MiB"]);
    let mut lmtp = daemon.lmtp();
    assert!(
        lmtp.say("MAIL FROM:<a@b.test> SIZE=1048577")
            .starts_with("552 5.3.4")
    );
    let message = b"a line of a message that is too long\r\n".repeat(40_000);
    let replies = lmtp.deliver(&["bob@example.test"], &message);
    assert!(replies[0].starts_with("552 5.3.4"), "{replies:?}");
    let replies = lmtp.deliver(&["bob@example.test"], b"short\r\n");
    assert!(replies[0].starts_with("250 "), "{replies:?}");
    let mut client = daemon.client();
    assert_eq!(
        client.deliver(&["bob@example.test"], &message)[0].status,
        Status::TooBig
    );
    assert_eq!(
        client.deliver(&["bob@example.test"], b"short\n")[0].status,
        Status::Ok
    );
    assert_eq!(client.count("bob@example.test"), 2);
}

#[test]
fn a_client_that_stops_in_the_middle_leaves_nothing() {
    let scratch = Scratch::new();
    let daemon = scratch.start();
    for large in [false, true] {
        let mut lmtp = daemon.lmtp();
        lmtp.envelope(&["bob@example.test"]);
        assert!(lmtp.say("DATA").starts_with("354 "));
        lmtp.send(b"Subject: half\r\n\r\n");
        if large {
            lmtp.send(&b"half of a large message\r\n".repeat(50_000));
        }
        drop(lmtp);
        let mut stream = UnixStream::connect(&daemon.node).unwrap();
        stream.write_all(b"RP").unwrap();
        drop(stream);
        let half = if large { 600_000 } else { 100 };
        daemon.client().deliver_half(&["bob@example.test"], half);
    }
    until("all connections to be gone", || {
        let node = daemon.metric("ringpost_connections{door=\"node\"}");
        node + daemon.metric("ringpost_connections{door=\"lmtp\"}") < 0.5
    });
    until("the stage to be empty", || {
        std::fs::read_dir(scratch.data().join("stage"))
            .unwrap()
            .next()
            .is_none()
    });
    assert_eq!(daemon.client().count("bob@example.test"), 0);
    assert!(daemon.metric("ringpost_receiving_bytes").abs() < 0.5);
}

#[test]
fn bytes_that_are_no_frame_end_the_connection_and_nothing_else() {
    let scratch = Scratch::new();
    let daemon = scratch.start();
    let garbage: [&[u8]; 4] = [
        b"QUIT\r\n",
        &[0xFF; 4_096],
        &[0; 200],
        b"GET / HTTP/1.1\r\nHost: a-web-browser-that-lost-its-way.example.test\r\n\r\n",
    ];
    for bytes in garbage {
        let mut stream = UnixStream::connect(&daemon.node).unwrap();
        stream.set_read_timeout(Some(testkit::BOUND)).unwrap();
        stream.write_all(bytes).unwrap();
        let mut said = Vec::new();
        let end = stream.read_to_end(&mut said);
        assert!(end.is_ok() || end.unwrap_err().kind() == std::io::ErrorKind::ConnectionReset);
    }
    assert_eq!(
        daemon.client().deliver(&["bob@example.test"], b"x\n")[0].status,
        Status::Ok
    );
}

#[test]
fn a_client_that_never_reads_is_not_read_any_more_and_then_cut_off() {
    let scratch = Scratch::new();
    let daemon = scratch.start_with(&["idle_timeout=1 s"]);
    let mut lmtp = daemon.lmtp();
    // Each NOOP has a reply that nobody reads; the daemon must stop, not grow.
    let noops = b"NOOP\r\n".repeat(1_000);
    let mut sent = 0_usize;
    while lmtp.try_send(&noops).is_ok() {
        sent += noops.len();
        assert!(
            sent < 64 << 20,
            "the daemon reads on although nobody reads its replies"
        );
    }
    assert_eq!(
        daemon.client().deliver(&["bob@example.test"], b"x\n")[0].status,
        Status::Ok
    );
}

#[test]
fn a_silent_client_is_told_so_and_closed() {
    let scratch = Scratch::new();
    let daemon = scratch.start_with(&["idle_timeout=1 s"]);
    let mut lmtp = daemon.lmtp();
    assert!(lmtp.rest().starts_with("421 4.4.2 "));
    let mut lmtp = daemon.lmtp();
    lmtp.envelope(&["bob@example.test"]);
    assert!(lmtp.say("DATA").starts_with("354 "));
    lmtp.send(b"Subject: half\r\n");
    assert!(lmtp.rest().starts_with("421 4.4.2 "));
    let mut stream = UnixStream::connect(&daemon.node).unwrap();
    let mut said = Vec::new();
    stream.read_to_end(&mut said).unwrap();
    assert_eq!(daemon.client().count("bob@example.test"), 0);
}

#[test]
fn pipelined_transactions_are_answered_in_order() {
    let scratch = Scratch::new();
    let daemon = scratch.start();
    let mut lmtp = daemon.lmtp();
    let transaction = b"MAIL FROM:<a@b.test>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\n";
    for number in 0..20 {
        lmtp.send(
            &[
                &transaction[..],
                format!("Subject: {number}\r\n.\r\n").as_bytes(),
            ]
            .concat(),
        );
    }
    lmtp.send(b"QUIT\r\n");
    for _ in 0..20 {
        for want in ["250 2.1.0", "250 2.1.5", "354 ", "250 2.0.0"] {
            let reply = lmtp.reply();
            assert!(reply.starts_with(want), "{reply}");
        }
    }
    assert!(lmtp.rest().starts_with("221 "));
    assert_eq!(daemon.client().count("bob@example.test"), 20);
}

#[test]
fn a_client_that_ends_writing_still_gets_its_answers() {
    let scratch = Scratch::new();
    let daemon = scratch.start();
    let mut lmtp = daemon.lmtp();
    lmtp.send(b"MAIL FROM:<>\r\nRCPT TO:<bob@example.test>\r\nDATA\r\nx\r\n.\r\n");
    lmtp.end_writing();
    let said = lmtp.rest();
    assert_eq!(said.lines().count(), 4, "{said}");
    assert!(said.ends_with(" stored\r\n"), "{said}");
}
