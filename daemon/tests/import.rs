//! `ringpost import` against a real daemon: what is brought along is there once, byte for byte, with
//! flags and dates, however often and wherever it was interrupted.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod testkit;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use bytes::Bytes;
use nix::sys::signal::Signal;
use ringpost_netproto::frame::Status;
use ringpost_netproto::id::{Guid, MailboxId, WallNs};
use ringpost_netproto::message::MailboxRef;
use ringpost_netproto::message::append::{AppendReply, AppendRequest, Made, Missing};
use ringpost_netproto::message::list::{ListEntry, ListRequest, More};
use ringpost_netproto::session::client::Event;
use testkit::{Daemon, Scratch, until};

const FROM_A: &str = "From a@b Tue Jan  2 03:04:05 2024\n";

/// Of that line.
const DATE: u64 = 1_704_164_645_000_000_000;

const SEEN: u32 = 1;

fn ringpost(daemon: &Daemon) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost"));
    command.arg("--to").arg(&daemon.node).stdin(Stdio::null());
    command
}

fn run(daemon: &Daemon, words: &[&str]) -> (Output, String) {
    let output = ringpost(daemon).arg("import").args(words).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    (output, said)
}

/// Runs it and expects nothing to be left out.
fn import(daemon: &Daemon, words: &[&str]) -> String {
    let (output, said) = run(daemon, words);
    assert!(output.status.success(), "{said}{output:?}");
    said
}

fn deadline() -> ringpost_daemon::client::Deadline {
    ringpost_daemon::client::Deadline::after(testkit::BOUND)
}

/// Every message of a user by mailbox, in order of their uids.
fn mail(daemon: &Daemon, user: &str) -> BTreeMap<String, Vec<(ListEntry, Vec<u8>)>> {
    let mut client = daemon.client();
    let client = client.inner();
    let mut all = BTreeMap::new();
    let mailboxes = match client.mailboxes(user.as_bytes(), deadline()) {
        Err(error) if error.status() == Status::NoUser => return all,
        other => other.unwrap(),
    };
    for mailbox in mailboxes {
        let by_id = MailboxRef::Id(mailbox.mailbox);
        let (mut found, mut after_uid) = (Vec::new(), 0);
        loop {
            let request = ListRequest {
                user: Bytes::copy_from_slice(user.as_bytes()),
                mailbox: by_id.clone(),
                after_uid,
                entries_max: 1_000,
            };
            let page = client.list(&request, deadline()).unwrap();
            for entry in page.entries {
                after_uid = entry.uid.value();
                let request = ringpost_netproto::message::fetch::FetchRequest {
                    user: Bytes::copy_from_slice(user.as_bytes()),
                    mailbox: by_id.clone(),
                    uid: entry.uid,
                };
                let (id, _) = client.fetch(&request, deadline()).unwrap();
                let mut bytes = Vec::new();
                while let Some(piece) = client.fetched(id, deadline()).unwrap() {
                    bytes.extend_from_slice(&piece);
                }
                found.push((entry, bytes));
            }
            if page.more == More::No {
                break;
            }
        }
        let name = String::from_utf8(mailbox.name.to_vec()).unwrap();
        all.insert(name, found);
    }
    all
}

fn texts(daemon: &Daemon, user: &str, folder: &str) -> Vec<Vec<u8>> {
    let mut all = mail(daemon, user);
    let found = all.remove(folder).unwrap_or_default();
    found.into_iter().map(|(_, text)| text).collect()
}

fn append(daemon: &Daemon, request: &AppendRequest, body: Bytes) -> Result<AppendReply, Status> {
    let mut client = daemon.client();
    let client = client.inner();
    let id = client.session_mut().append(request, body).unwrap();
    loop {
        match client.next_event(deadline()).unwrap() {
            Event::Appended { id: of, reply } if of == id => return Ok(reply),
            Event::Failed { id: of, status, .. } if of == id => return Err(status),
            _ => {}
        }
    }
}

fn to(user: &str, folder: &str) -> AppendRequest {
    AppendRequest {
        user: Bytes::copy_from_slice(user.as_bytes()),
        mailbox: MailboxRef::Name(Bytes::copy_from_slice(folder.as_bytes())),
        missing: Missing::Create,
        sender: Bytes::new(),
        flags: SEEN,
        keywords: vec![Bytes::from_static(b"$Label1")],
        internal_date: Some(WallNs::new(DATE)),
        dedupe_id: Some(Guid::new([7; 16])),
        deadline_ms: 0,
        size_hint: None,
    }
}

#[test]
fn an_append_makes_its_mailbox_and_is_there_once() {
    let scratch = Scratch::new();
    let daemon = scratch.start();
    let text = Bytes::from_static(b"Subject: x\r\n\r\nfrom a client\r\n");
    let first = append(&daemon, &to("bob", "Archive/2024"), text.clone()).unwrap();
    assert_eq!((first.status, first.made), (Status::Ok, Made::Yes));
    assert_eq!((first.uid.value(), first.guid), (1, Guid::new([7; 16])));
    let again = append(&daemon, &to("bob", "Archive/2024"), text.clone()).unwrap();
    assert_eq!((again.status, again.made), (Status::OkDuplicate, Made::No));
    assert_eq!(
        (again.uid, again.uidvalidity),
        (first.uid, first.uidvalidity)
    );
    // Large ones go through a stage file.
    let large = Bytes::from(vec![b'x'; 700_000]);
    let other = append(&daemon, &to("bob", "Sent"), large.clone()).unwrap();
    assert_eq!(other.mailbox, MailboxId::SENT);
    let refuse = AppendRequest {
        missing: Missing::Refuse,
        ..to("bob", "Nowhere")
    };
    assert_eq!(
        append(&daemon, &refuse, text.clone()),
        Err(Status::NoMailbox)
    );
    let odd = to("bob", "a//b");
    assert_eq!(append(&daemon, &odd, text.clone()), Err(Status::NoMailbox));
    let word = AppendRequest {
        keywords: vec![Bytes::from_static(b"two words")],
        ..to("bob", "Sent")
    };
    assert_eq!(append(&daemon, &word, text.clone()), Err(Status::Invalid));
    let all = mail(&daemon, "bob");
    let [(entry, found)] = &all["Archive/2024"][..] else {
        panic!("{all:?}");
    };
    assert_eq!(found, &text);
    assert_eq!(
        (entry.flags, entry.internal_date),
        (SEEN, WallNs::new(DATE))
    );
    let (entry, found) = &all["Sent"][0];
    assert!(found == &large && entry.internal_date.value() == DATE);
    assert_eq!(all.values().map(Vec::len).sum::<usize>(), 2);
}

#[test]
fn only_accounts_are_appended_to() {
    let scratch = Scratch::new();
    fs::write(scratch.path("users"), "bob\n").unwrap();
    let users = format!("accounts.file={}", scratch.path("users").display());
    let daemon = Daemon::start(&scratch, &[&users]).unwrap();
    fs::write(scratch.path("in"), format!("{FROM_A}\nx\n\n")).unwrap();
    let file = scratch.path("in").display().to_string();
    let (output, _) = run(&daemon, &["alice", &file]);
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(words.contains("no such account"), "{words}");
    import(&daemon, &["bob", &file]);
}

#[test]
fn an_mbox_comes_with_flags_and_dates_and_only_once() {
    let scratch = Scratch::new();
    let daemon = scratch.start();
    let large = "y".repeat(300_000);
    let file = format!(
        "{FROM_A}Subject: one\nStatus: RO\n\n>From here\n>>From there\n\n\
         {FROM_A}Subject: same\n\ntwice\n\n{FROM_A}Subject: same\n\ntwice\n\n\
         {FROM_A}Subject: large\n\n{large}\n\n{FROM_A}Subject: crlf\r\n\r\nlast\r\n"
    );
    fs::write(scratch.path("in"), &file).unwrap();
    let path = scratch.path("in").display().to_string();
    let dry = import(&daemon, &["bob", &path, "--dry-run"]);
    assert!(
        dry.contains("5 messages") && dry.contains("to import"),
        "{dry}"
    );
    assert!(mail(&daemon, "bob").is_empty());
    let said = import(&daemon, &["bob", &path, "--folder", "Old/mail"]);
    assert!(
        said.contains("5 messages") && said.contains("mboxrd"),
        "{said}"
    );
    let want = [
        b"Subject: one\n\nFrom here\n>From there\n".to_vec(),
        b"Subject: same\n\ntwice\n".to_vec(),
        b"Subject: same\n\ntwice\n".to_vec(),
        format!("Subject: large\n\n{large}\n").into_bytes(),
        b"Subject: crlf\r\n\r\nlast\r\n".to_vec(),
    ];
    assert_eq!(texts(&daemon, "bob", "Old/mail"), want);
    let all = mail(&daemon, "bob");
    let flags: Vec<_> = all["Old/mail"]
        .iter()
        .map(|(entry, _)| entry.flags)
        .collect();
    assert_eq!(flags, [SEEN, 0, 0, 0, 0]);
    assert!(
        all["Old/mail"]
            .iter()
            .all(|(entry, _)| entry.internal_date.value() == DATE)
    );
    // Again, with more in it: only that is new. From standard input as from a file.
    let longer = format!("{file}\n{FROM_A}Subject: six\n\nx\n\n");
    let mut command = ringpost(&daemon);
    command.args(["--json", "import", "bob", "-", "--folder", "Old/mail"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(longer.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("\"already_there\":5"), "{said}");
    assert!(said.contains("\"imported\":1"), "{said}");
    assert_eq!(texts(&daemon, "bob", "Old/mail").len(), 6);
}

#[test]
fn what_is_no_mbox_is_named() {
    let scratch = Scratch::new();
    let daemon = scratch.start();
    fs::write(scratch.path("in"), b"\x7fELF\x02\x01\x01\0\0").unwrap();
    let path = scratch.path("in").display().to_string();
    let (output, said) = run(&daemon, &["bob", &path]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("0 messages"), "{said}");
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(words.contains(&path) && words.contains("byte 0"), "{words}");
    let (output, _) = run(&daemon, &["bob", "/nonexistent/x"]);
    assert_eq!(output.status.code(), Some(1));
    let empty = scratch.path("empty");
    fs::create_dir(&empty).unwrap();
    let (output, _) = run(&daemon, &["bob", &empty.display().to_string()]);
    assert_eq!(output.status.code(), Some(1));
}

fn maildir(path: &Path, files: &[(&str, &str)]) {
    for sub in ["cur", "new", "tmp"] {
        fs::create_dir_all(path.join(sub)).unwrap();
    }
    for (name, text) in files {
        fs::write(path.join(name), text).unwrap();
    }
}

#[test]
fn a_tree_of_users_comes_with_folders() {
    let scratch = Scratch::new();
    let daemon = scratch.start();
    let tree = scratch.path("tree");
    let bob = tree.join("bob/Maildir");
    maildir(
        &bob,
        &[("cur/1600000000.a:2,S", "a"), ("new/1600000001.b", "b")],
    );
    maildir(&bob.join(".Archive.2024"), &[("cur/1600000002.c:2,F", "c")]);
    fs::write(tree.join("bob/mbox"), format!("{FROM_A}\nold\n\n")).unwrap();
    fs::write(tree.join("ann.mbox"), format!("{FROM_A}\nann's\n\n")).unwrap();
    fs::create_dir_all(tree.join("v.test/eve/mail/Lists")).unwrap();
    let mbox = |text: &str| format!("{FROM_A}\n{text}\n\n");
    fs::write(tree.join("v.test/eve/mail/inbox"), mbox("eve's")).unwrap();
    fs::write(tree.join("v.test/eve/mail/Lists/rust"), mbox("list")).unwrap();
    let said = import(&daemon, &["--tree", &tree.display().to_string()]);
    assert!(said.contains("3 users: 7 messages"), "{said}");
    assert_eq!(
        texts(&daemon, "bob", "INBOX"),
        [&b"a"[..], b"b", b"\nold\n"]
    );
    assert_eq!(texts(&daemon, "bob", "Archive/2024"), [b"c"]);
    assert_eq!(texts(&daemon, "ann", "INBOX"), [b"\nann's\n"]);
    assert_eq!(texts(&daemon, "eve@v.test", "INBOX"), [b"\neve's\n"]);
    assert_eq!(texts(&daemon, "eve@v.test", "Lists/rust"), [b"\nlist\n"]);
    let all = mail(&daemon, "bob");
    assert_eq!(
        all["INBOX"][0].0.internal_date.value(),
        1_600_000_000_000_000_000
    );
    assert_eq!(
        (all["INBOX"][0].0.flags, all["INBOX"][1].0.flags),
        (SEEN, 0)
    );
    // The owner goes on using it: one is read, one is new, one is gone.
    fs::rename(
        bob.join("new/1600000001.b"),
        bob.join("cur/1600000001.b:2,S"),
    )
    .unwrap();
    fs::remove_file(bob.join("cur/1600000000.a:2,S")).unwrap();
    fs::write(bob.join("new/1700000000.d"), "d").unwrap();
    let said = import(&daemon, &["--tree", &tree.display().to_string()]);
    assert!(said.contains("3 users: 1 messages"), "{said}");
    assert_eq!(texts(&daemon, "bob", "INBOX").len(), 4);
}

/// What two sources of a user share comes once; what is passed over is named so that no terminal obeys it.
#[test]
fn two_sources_of_a_user_give_a_message_once() {
    let scratch = Scratch::new();
    let daemon = scratch.start();
    let tree = scratch.path("tree");
    fs::create_dir_all(tree.join("bob")).unwrap();
    let mbox = |texts: &[&str]| -> String {
        let one = |text: &&str| format!("{FROM_A}\n{text}\n\n");
        texts.iter().map(one).collect()
    };
    fs::write(tree.join("bob/mbox"), mbox(&["a", "b", "b"])).unwrap();
    fs::write(tree.join("bob.mbox"), mbox(&["b", "c", "a"])).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", tree.join("\x1b]0;owned\x07")).unwrap();
    let words = ["--tree", &tree.display().to_string()];
    for words in [&[words[0], words[1], "--dry-run"][..], &words] {
        let (output, said) = run(&daemon, words);
        assert!(said.contains("bob: 4 messages"), "{said}");
        assert!(said.contains("2 already there"), "{said}");
        let named = String::from_utf8_lossy(&output.stderr);
        assert!(named.contains("a symbolic link is not followed"), "{named}");
        assert!(!named.contains(['\x1b', '\x07']), "{named:?}");
    }
    let found = texts(&daemon, "bob", "INBOX");
    assert_eq!(found.len(), 4, "{found:?}");
}

/// What may be mail and is not read is named, and the exit code says that something is missing.
#[test]
fn what_is_passed_over_is_named_and_counts() {
    use std::os::unix::ffi::OsStrExt as _;
    let scratch = Scratch::new();
    let daemon = scratch.start();
    let tree = scratch.path("tree");
    let bob = tree.join("bob/Maildir");
    maildir(&bob, &[("cur/1600000000.a:2,S", "a")]);
    let words = ["--tree", &tree.display().to_string()];
    import(&daemon, &words);
    let odd = std::ffi::OsStr::from_bytes(b".caf\xe9");
    for (path, why) in [
        (bob.join(odd), "not UTF-8"),
        (tree.join("ann/mdbox"), "no mail is recognised in it"),
        (tree.join("v.test/eve/dbox"), "no mail is recognised in it"),
    ] {
        fs::create_dir_all(path.join("cur")).unwrap();
        let (output, said) = run(&daemon, &words);
        assert_eq!(output.status.code(), Some(1), "{path:?}: {said}");
        let named = String::from_utf8_lossy(&output.stderr);
        assert!(named.contains(why), "{path:?}: {named}");
        let top = path.strip_prefix(&tree).unwrap().iter().next().unwrap();
        let below = if top == "bob" { path } else { tree.join(top) };
        fs::remove_dir_all(below).unwrap();
    }
    import(&daemon, &words);
}

/// Killed anywhere, and so is the daemon: run again, everything is there once and in order.
#[test]
fn an_import_that_is_killed_goes_on_where_it_was() {
    let scratch = Scratch::new();
    let count: usize = 3_000;
    let message = |number: usize| format!("Subject: {number}\n\n{}\n", "z".repeat(number % 700));
    let text: Vec<_> = (0..count)
        .map(|number| format!("{FROM_A}{}\n", message(number)))
        .collect();
    fs::write(scratch.path("in"), text.concat()).unwrap();
    let path = scratch.path("in").display().to_string();
    let mut daemon = scratch.start();
    let stored = |daemon: &Daemon| {
        let mut client = daemon.client();
        let found = client.inner().mailboxes(b"bob", deadline());
        let found = found.unwrap_or_default();
        found
            .iter()
            .map(|mailbox| mailbox.messages_count)
            .sum::<u32>()
    };
    for (round, kill_daemon) in [(1, false), (2, true), (3, false), (4, true)] {
        let mut child = ringpost(&daemon)
            .args(["import", "bob", &path])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut ended = false;
        until("some of it is stored", || {
            ended = child.try_wait().unwrap().is_some();
            ended || stored(&daemon) >= round * 300
        });
        if kill_daemon {
            daemon.signal(Signal::SIGKILL);
            daemon.wait();
            let code = child.wait().unwrap().code();
            assert!(ended || code == Some(1), "{code:?}");
            daemon = scratch.start();
        } else {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
    import(&daemon, &["bob", &path]);
    let mut found = texts(&daemon, "bob", "INBOX");
    let mut want: Vec<_> = (0..count)
        .map(|number| message(number).into_bytes())
        .collect();
    assert_eq!(found.len(), want.len());
    found.sort();
    want.sort();
    assert!(found == want, "every message is there once");
}

/// Python writes mbox files (mboxo) and Maildirs; what is read is what it was given.
#[test]
fn what_python_writes_comes_back() {
    const SCRIPT: &str = r"
import mailbox, random, sys
rng = random.Random(int(sys.argv[2]))
words = ['', 'From the start', 'text', ' From', 'Subject: in the text', '> quoted', 'x' * 300]
box = mailbox.mbox(sys.argv[1] + '/mbox')
folder = mailbox.Maildir(sys.argv[1] + '/Maildir')
for number in range(40):
    lines = [rng.choice(words) for _ in range(rng.randrange(12))]
    text = 'Subject: %d\n\n' % number + ''.join(line + '\n' for line in lines)
    data = text.encode()
    open('%s/want.%02d' % (sys.argv[1], number), 'wb').write(data)
    message = mailbox.mboxMessage(data)
    message.set_from('a@b', True)
    if number % 2:
        message.set_flags('RF')
    box.add(message)
    other = mailbox.MaildirMessage(data)
    other.set_subdir('cur')
    other.set_flags('S' if number % 2 else '')
    other.set_date(1600000000 + number)
    folder.add(other)
box.flush()
";
    let scratch = Scratch::new();
    let daemon = scratch.start();
    let directory = scratch.path("python");
    fs::create_dir(&directory).unwrap();
    let place = directory.display().to_string();
    let output = Command::new("python3")
        .args(["-c", SCRIPT, &place, "11"])
        .output();
    let Ok(output) = output else {
        return; // no Python here; tests/real-servers has it
    };
    assert!(output.status.success(), "{output:?}");
    import(&daemon, &["bob", &format!("{place}/mbox")]);
    import(&daemon, &["ann", &format!("{place}/Maildir")]);
    let want: Vec<_> = (0..40)
        .map(|number| fs::read(directory.join(format!("want.{number:02}"))).unwrap())
        .collect();
    for (user, flagged) in [("bob", SEEN | 4), ("ann", SEEN)] {
        let mut all = mail(&daemon, user);
        let mut found = all.remove("INBOX").unwrap();
        if user == "ann" {
            found.sort_by_key(|(entry, _)| entry.internal_date);
        }
        for (number, ((entry, text), want)) in found.iter().zip(&want).enumerate() {
            assert_eq!(
                String::from_utf8_lossy(text),
                String::from_utf8_lossy(want),
                "{user} {number}"
            );
            assert_eq!(entry.flags, if number % 2 == 1 { flagged } else { 0 });
        }
        assert_eq!(found.len(), want.len());
    }
}
