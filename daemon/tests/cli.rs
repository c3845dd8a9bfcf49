//! `ringpost` as a person and a script see it: output, one line of complaint, exit code. The node is
//! fake; foreign readers (Python's mailbox) judge the export.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod fake_node;

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use bytes::Bytes;
use fake_node::{Connection, FakeNode};
use ringpost_engine::header_cache;
use ringpost_engine::prepare::{PrepareOptions, Preparer};
use ringpost_netproto::frame::{RequestId, Status};
use ringpost_netproto::id::{Guid, MailboxId, Modseq, Uid, UidValidity, WallNs};
use ringpost_netproto::message::MailboxRef;
use ringpost_netproto::message::fetch::FetchRequest;
use ringpost_netproto::message::list::{ListEntry, ListPage, ListRequest, More};
use ringpost_netproto::message::mailbox::MailboxStatus;
use ringpost_netproto::message::report::ReportField;
use ringpost_netproto::session::server::{Event, ServerSession};

/// Messages made to break mbox readers. Uids count from 1.
const MESSAGES: [&[u8]; 9] = [
    b"Return-Path: <ann@a.test>\r\nSubject: one\r\n\r\nhello\r\n",
    b"Subject: two\n\nFrom here\n>From there\n>>From afar\nFrom\n",
    b"From bob\nSubject: three\n\nFrom nobody Mon Jan  1 00:00:00 2024\n\nSubject: not a message\n",
    b"Subject: four\nContent-Length: 100000\n\nno end",
    b"",
    b"Subject: six\n\n\n\n\nFrom x\n\n\n",
    b"\n\nno header\nFrom y\n",
    b"Subject: eight\n\nNUL \0 and \xff and bare \r and mixed\r\nFrom z\r\n\n",
    b"Subject: =?utf-8?q?nine?= \x1b[31m\n\nlast",
];

/// The uid whose bytes are damaged.
const DAMAGED: u32 = 5_000;

/// How many entries the node puts into a page, so that there are several.
const PAGE: usize = 2;

fn cache(message: &[u8]) -> Bytes {
    let mut preparer = Preparer::new(PrepareOptions {
        message_bytes_max: 1 << 20,
        return_path: None,
        content_key: [0; 16],
    });
    preparer.push(message).unwrap();
    let cache = preparer.finish().body.cache;
    assert!(header_cache::decode(&cache).is_ok());
    cache
}

fn entry(uid: u32, message: &[u8]) -> ListEntry {
    ListEntry {
        uid: Uid::new(uid),
        modseq: Modseq::new(u64::from(uid)),
        flags: 0,
        internal_date: WallNs::new(1_700_000_000_000_000_000),
        rfc822_size: 0,
        received_size: message.len().try_into().unwrap(),
        guid: Guid::new([7; 16]),
        date_s: None,
        cache: cache(message),
    }
}

fn mailbox(id: u32, name: &'static str, messages_count: u32) -> MailboxStatus {
    MailboxStatus {
        mailbox: MailboxId::new(id),
        name: Bytes::from(name),
        uidvalidity: UidValidity::new(1),
        uidnext: messages_count + 1,
        highest_modseq: 9,
        messages_count,
        bytes: 100,
    }
}

/// Uid and bytes of what a mailbox of this node holds.
fn content(mailbox: &MailboxRef) -> Option<Vec<(u32, &'static [u8])>> {
    let inbox = MailboxRef::Name(Bytes::from("INBOX"));
    if *mailbox == inbox || *mailbox == MailboxRef::Id(MailboxId::INBOX) {
        return Some((1..).zip(MESSAGES).collect());
    }
    let drafts = MailboxRef::Id(MailboxId::new(3));
    (*mailbox == drafts).then(|| vec![(1, &b"Subject: draft\n\nx\n"[..]), (DAMAGED, b"never seen")])
}

/// A node with one user, bob.
fn bobs_node() -> FakeNode {
    FakeNode::start(|mut connection| serve(&mut connection))
}

fn serve(connection: &mut Connection) {
    while let Some(event) = connection.next_event() {
        let session = &mut connection.session;
        match event {
            Event::Status { id } => {
                let field = |name: &str, value: &str| ReportField {
                    name: name.into(),
                    value: value.into(),
                };
                session.status_reply(id, &[field("node", "1"), field("log.used", "3 %")]);
            }
            Event::Mailboxes { id, user } if user == "bob" => {
                session.mailboxes_reply(id, &[mailbox(1, "INBOX", 9), mailbox(3, "Drafts", 2)]);
            }
            Event::List { id, request } if request.user == "bob" => list(session, id, &request),
            Event::Fetch { id, request } if request.user == "bob" => fetch(session, id, &request),
            Event::Mailboxes { id, .. } | Event::List { id, .. } | Event::Fetch { id, .. } => {
                session.fail(id, Status::NoUser, "");
            }
            _ => {}
        }
        connection.flush();
    }
}

fn list(session: &mut ServerSession, id: RequestId, request: &ListRequest) {
    let Some(content) = content(&request.mailbox) else {
        return session.fail(id, Status::NoMailbox, "");
    };
    let mut entries: Vec<_> = content
        .into_iter()
        .filter(|(uid, _)| *uid > request.after_uid)
        .map(|(uid, message)| entry(uid, message))
        .collect();
    let more = if entries.len() > PAGE {
        More::Yes
    } else {
        More::No
    };
    entries.truncate(PAGE);
    let status = mailbox(1, "INBOX", 9);
    session.list_reply(
        id,
        &ListPage {
            status,
            entries,
            more,
        },
    );
}

fn fetch(session: &mut ServerSession, id: RequestId, request: &FetchRequest) {
    let content = content(&request.mailbox).unwrap_or_default();
    let uid = request.uid.value();
    let Some((_, message)) = content.into_iter().find(|(known, _)| *known == uid) else {
        return session.fail(id, Status::NoMessage, "");
    };
    session.fetch_begin(id, &entry(uid, message));
    for piece in message.chunks(7) {
        session.fetch_data(id, Bytes::from_static(piece));
    }
    if uid == DAMAGED {
        session.fail(id, Status::Corrupt, "a checksum does not match");
    } else {
        session.fetch_end(id);
    }
}

fn ringpost(data: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringpost"))
        .arg("--data")
        .arg(data)
        .args(words)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stderr, b"", "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The code and the one line of complaint.
fn complaint(output: &Output) -> (Option<i32>, String) {
    let line = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(line.lines().count(), 1, "{output:?}");
    (output.status.code(), line)
}

#[test]
fn status_and_folders_are_for_scripts_and_json() {
    let node = bobs_node();
    let data = node.data();
    assert_eq!(
        stdout(&ringpost(data, &["status"])),
        "node\t1\nlog.used\t3 %\n"
    );
    assert_eq!(
        stdout(&ringpost(data, &["status", "--json"])),
        "{\"log.used\":\"3 %\",\"node\":1}\n"
    );
    assert_eq!(
        stdout(&ringpost(data, &["folders", "bob"])),
        "9\t100\tINBOX\n2\t100\tDrafts\n"
    );
    let folders = stdout(&ringpost(data, &["folders", "bob", "--json"]));
    assert_eq!(folders.lines().count(), 2);
    assert!(folders.contains("\"uidvalidity\":1"), "{folders}");
    let socket = node.socket();
    let to = ["--to", socket.to_str().unwrap(), "status"];
    let output = Command::new(env!("CARGO_BIN_EXE_ringpost"))
        .args(to)
        .output()
        .unwrap();
    assert!(stdout(&output).starts_with("node\t1"));
}

#[test]
fn a_list_crosses_its_pages_and_escapes_strangers_text() {
    let node = bobs_node();
    let list = stdout(&ringpost(node.data(), &["list", "bob"]));
    let lines: Vec<_> = list.lines().collect();
    assert_eq!(lines.len(), MESSAGES.len());
    assert_eq!(lines[0], "1\t2023-11-14T22:13:20Z\t50\t\tone");
    assert!(lines[8].ends_with("nine?= \\u{1b}[31m"), "{}", lines[8]);
    let json = stdout(&ringpost(node.data(), &["--json", "list", "bob"]));
    assert_eq!(json.lines().count(), MESSAGES.len());
    assert!(
        json.lines().next().unwrap().contains("\"subject\":\"one\""),
        "{json}"
    );
}

#[test]
fn show_gives_the_bytes_that_came_in() {
    let node = bobs_node();
    for (uid, message) in (1..).zip(MESSAGES) {
        let output = ringpost(node.data(), &["show", "bob", &format!("{uid}")]);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(output.stdout, message);
    }
}

#[test]
fn what_does_not_exist_is_1_and_named() {
    let node = bobs_node();
    for (words, line) in [
        (&["folders", "carol"][..], "ringpost: no such user: carol\n"),
        (
            &["list", "bob", "--folder", "Junk"],
            "ringpost: bob has no mailbox \"Junk\"\n",
        ),
        (
            &["show", "bob", "77"],
            "ringpost: no such message in \"INBOX\" of bob\n",
        ),
        (
            &["export", "bob", "--folder", "Junk"],
            "ringpost: bob has no mailbox \"Junk\"\n",
        ),
    ] {
        let complaint = complaint(&ringpost(node.data(), words));
        assert_eq!(complaint, (Some(1), line.to_owned()), "{words:?}");
    }
}

#[test]
fn a_wrong_command_line_is_2() {
    let nowhere = tempfile::tempdir().unwrap();
    for words in [
        &["nonsense"][..],
        &["list"],
        &["show", "bob", "0"],
        &["--to", "x", "status"],
    ] {
        let output = ringpost(nowhere.path(), words);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
}

#[test]
fn without_a_daemon_the_socket_is_named() {
    let nowhere = tempfile::tempdir().unwrap();
    let (code, line) = complaint(&ringpost(nowhere.path(), &["status"]));
    assert_eq!(code, Some(1));
    assert!(
        line.contains("run/node: no such file or directory; is the daemon running?"),
        "{line}"
    );
}

#[test]
fn a_closed_pipe_is_no_complaint() {
    let node = bobs_node();
    let mut child = Command::new(env!("CARGO_BIN_EXE_ringpost"))
        .arg("--data")
        .arg(node.data())
        .args(["list", "bob"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut said = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert_eq!(said, "");
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn one_damaged_message_does_not_end_an_export() {
    let node = bobs_node();
    let output = ringpost(node.data(), &["export", "bob", "--folder", "Drafts"]);
    let (code, line) = complaint(&output);
    assert_eq!(code, Some(1));
    assert!(
        line.contains("bob, Drafts, uid 5000 is left out: a checksum does not match"),
        "{line}"
    );
    assert_eq!(
        output.stdout,
        b"From MAILER-DAEMON Tue Nov 14 22:13:20 2023\nSubject: draft\n\nx\n\n"
    );
}

/// Prints each message's sender and subject, as Python's own mbox reader splits them.
const PYTHON: &str = "
import mailbox, sys
for message in mailbox.mbox(sys.argv[1], create=False):
    print(message.get_from().split(' ')[0], message['Subject'])
";

#[test]
fn python_reads_an_export_with_the_same_count_and_subjects() {
    let node = bobs_node();
    let output = ringpost(node.data(), &["export", "bob", "--folder", "inbox"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stderr, b"");
    let file = node.data().join("export.mbox");
    std::fs::write(&file, &output.stdout).unwrap();
    let Ok(python) = Command::new("python3")
        .args(["-c", PYTHON])
        .arg(&file)
        .output()
    else {
        println!("skipped: python3 is not installed");
        return;
    };
    let read = stdout(&python);
    let lines: Vec<_> = read.lines().collect();
    assert_eq!(lines.len(), MESSAGES.len(), "{read}");
    assert_eq!(lines[0], "ann@a.test one");
    assert_eq!(lines[1], "MAILER-DAEMON two");
    assert_eq!(lines[3], "MAILER-DAEMON four");
    assert_eq!(lines[5], "MAILER-DAEMON six");
    assert_eq!(lines[7], "MAILER-DAEMON eight");
}
