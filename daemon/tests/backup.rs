//! Backups of a real daemon under load: copied while mail arrives, restored elsewhere, compared.
#![expect(
    clippy::disallowed_types,
    clippy::unwrap_used,
    reason = "helpers of tests are tests, and senders share what they were told"
)]

mod testkit;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use ringpost_netproto::message::backup::BackupRequest;
use testkit::{Daemon, Scratch, stamped, until};

/// As without any setting: where `--data` looks for it.
const SOCKET: &str = "listen.socket=unix:run/node";

const USERS: [&str; 5] = ["ann", "bob", "cyd", "dan", "eve"];

/// A daemon whose socket is where `--data` looks for it.
fn start(scratch: &Scratch) -> Daemon {
    let mut daemon = scratch.start_with(&[SOCKET, "checkpoint_interval=1s", "return_path=off"]);
    daemon.node = scratch.data().join("run/node");
    daemon
}

fn ringpost(data: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringpost"))
        .arg("--data")
        .arg(data)
        .args(words)
        .output()
        .unwrap()
}

fn done(data: &Path, words: &[&str]) -> String {
    let output = ringpost(data, words);
    assert_eq!(output.status.code(), Some(0), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What a refused command says.
fn refused(data: &Path, words: &[&str]) -> String {
    let output = ringpost(data, words);
    assert_eq!(output.status.code(), Some(1), "{words:?}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// Acknowledged messages by user.
type Told = BTreeMap<String, BTreeSet<Vec<u8>>>;

/// Delivers to everybody until it is told to stop.
fn deliver(daemon: &Daemon, sender: usize, told: &Mutex<Told>, stop: &AtomicBool) {
    let mut client = daemon.client();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) && number < 600 {
        number += 1;
        let user = format!("{}@v.test", USERS.get(number % USERS.len()).unwrap());
        let mut message = stamped(&format!("{sender} {number}"));
        if number % 9 == 0 {
            // A file of its own, one in two for two users.
            message.resize(160 << 10, b'x');
            message.extend_from_slice(b"\r\n");
        }
        let replies = client.deliver(&[&user], &message);
        if replies.iter().all(|reply| reply.uid.is_some()) {
            let mut told = told.lock().unwrap();
            assert!(told.entry(user).or_default().insert(message));
        }
    }
}

/// All mail of a daemon's users.
fn all_mail(daemon: &Daemon) -> BTreeMap<String, Vec<Vec<u8>>> {
    let mut client = daemon.client();
    let mut found = BTreeMap::new();
    for user in USERS {
        let user = format!("{user}@v.test");
        let count = u32::try_from(client.count(&user)).unwrap();
        let mail: Vec<_> = (1..=count).map(|uid| client.fetch(&user, uid)).collect();
        found.insert(user, mail);
    }
    found
}

#[test]
fn a_node_is_copied_while_it_serves_and_comes_back_elsewhere() {
    let scratch = Scratch::new();
    let data = scratch.data();
    let daemon = start(&scratch);
    let (told, stop) = (Mutex::new(Told::new()), AtomicBool::new(false));
    let copy = scratch.path("copy");
    let copy_name = copy.display().to_string();
    let before = std::thread::scope(|scope| {
        for sender in 0..3 {
            let (daemon, told, stop) = (&daemon, &told, &stop);
            scope.spawn(move || deliver(daemon, sender, told, stop));
        }
        until("some mail", || {
            told.lock()
                .unwrap()
                .values()
                .map(BTreeSet::len)
                .sum::<usize>()
                > 300
        });
        let before = told.lock().unwrap().clone();
        let made = ringpost(&data, &["backup", &copy_name]);
        stop.store(true, Ordering::Relaxed);
        assert_eq!(made.status.code(), Some(0), "{made:?}");
        let line = String::from_utf8(made.stdout).unwrap();
        assert!(line.contains("complete"), "{line}");
        before
    });
    let manifest = std::fs::read_to_string(copy.join("BACKUP")).unwrap();
    assert!(manifest.contains("ringpost-backup 1"), "{manifest}");
    assert!(!copy.join("INCOMPLETE").exists());
    assert!(daemon.metric("ringpost_backups") < 1.0);
    let again = refused(&data, &["backup", &copy_name]);
    assert!(again.contains("is not empty"), "{again}");
    assert!(daemon.stop().success());

    let elsewhere = Scratch::new();
    let restored = done(&elsewhere.data(), &["restore", "--from", &copy_name]);
    assert!(restored.contains("can be started"), "{restored}");
    let daemon = start(&elsewhere);
    let found = all_mail(&daemon);
    let after = told.into_inner().unwrap();
    for (user, mail) in &found {
        let unique: BTreeSet<_> = mail.iter().cloned().collect();
        assert_eq!(unique.len(), mail.len(), "{user} has mail twice");
        assert!(unique.is_superset(&before[user]), "{user} lost mail");
        // Sent when the copy was made, and perhaps answered after.
        assert!(unique.len() <= after[user].len() + 3);
    }
    let message = stamped("new mail");
    daemon.client().deliver(&["ann@v.test"], &message);
    assert!(daemon.stop().success());
    done(&elsewhere.data(), &["check"]);
}

#[test]
fn a_stopped_node_is_copied_too_and_bad_targets_are_named() {
    let scratch = Scratch::new();
    let data = scratch.data();
    let daemon = start(&scratch);
    daemon.client().deliver(&["ann@v.test"], &stamped("one"));
    // Killed: what is in the log only has to be in the copy.
    daemon.kill();
    let copy = scratch.path("copy");
    let copy_name = copy.display().to_string();
    let line = done(&data, &["backup", &copy_name, "--json"]);
    assert!(line.contains("\"messages\":1"), "{line}");
    std::fs::write(copy.join("INCOMPLETE"), b"").unwrap();
    let unfinished = refused(&scratch.path("x"), &["restore", "--from", &copy_name]);
    assert!(unfinished.contains("was not finished"), "{unfinished}");
    let nothing = refused(&scratch.path("x"), &["restore", "--from", "/usr/share"]);
    assert!(nothing.contains("no backup"), "{nothing}");
    std::fs::remove_file(copy.join("INCOMPLETE")).unwrap();
    let full = refused(&data, &["restore", "--from", &copy_name]);
    assert!(full.contains("is not empty"), "{full}");
    let no_node = refused(
        &scratch.path("nowhere"),
        &["backup", &scratch.path("b").display().to_string()],
    );
    assert!(no_node.contains("STORE"), "{no_node}");
    assert!(!scratch.path("b").join("INCOMPLETE").exists());
}

#[test]
fn a_backup_ends_with_its_connection() {
    let scratch = Scratch::new();
    let daemon = start(&scratch);
    let mut client = daemon.client();
    let deadline = ringpost_daemon::client::Deadline::after(testkit::BOUND);
    let hold = BackupRequest::Hold { id: 7, lease_s: 60 };
    client.inner().backup(hold, deadline).unwrap();
    until("the gauge", || daemon.metric("ringpost_backups") > 0.0);
    let other = refused(
        &scratch.data(),
        &["backup", &scratch.path("copy").display().to_string()],
    );
    assert!(other.contains("another backup"), "{other}");
    drop(client);
    until("its end", || daemon.metric("ringpost_backups") < 1.0);
    done(
        &scratch.data(),
        &["backup", &scratch.path("copy").display().to_string()],
    );
}

#[test]
fn one_users_mail_comes_back_once() {
    let scratch = Scratch::new();
    let data = scratch.data();
    let daemon = start(&scratch);
    let mail = ["one", "two", "three"].map(stamped);
    let large = [stamped("large"), vec![b'x'; 300 << 10], b"\r\n".to_vec()].concat();
    for message in mail.iter().chain([&large]) {
        daemon
            .client()
            .deliver(&["ann@v.test", "bob@v.test"], message);
    }
    let copy = scratch.path("copy").display().to_string();
    done(&data, &["backup", &copy]);
    let there = done(&data, &["restore", "bob@v.test", "--from", &copy]);
    assert!(
        there.contains("INBOX: 0 restored, 4 there already"),
        "{there}"
    );
    assert!(daemon.stop().success());

    let elsewhere = Scratch::new();
    let daemon = start(&elsewhere);
    let restore = |words: &[&str]| {
        let all = [&["restore", "bob@v.test", "--from", &copy], words].concat();
        done(&elsewhere.data(), &all)
    };
    let first = restore(&[]);
    assert!(first.contains("INBOX: 4 restored, 0 there"), "{first}");
    let again = restore(&[]);
    assert!(again.contains("INBOX: 0 restored, 4 there"), "{again}");
    let below = restore(&["--folder", "Old"]);
    assert!(below.contains("Old/INBOX: 4 restored"), "{below}");
    let mut client = daemon.client();
    assert_eq!(client.count("bob@v.test"), 4);
    for (uid, message) in (1..).zip(mail.iter().chain([&large])) {
        assert_eq!(client.fetch("bob@v.test", uid), *message, "uid {uid}");
    }
    let nobody = refused(
        &elsewhere.data(),
        &["restore", "eve@v.test", "--from", &copy],
    );
    assert!(nobody.contains("no such user"), "{nobody}");
    // The backup itself can be read.
    let mbox = done(Path::new(&copy), &["export", "bob@v.test"]);
    assert_eq!(mbox.matches("Subject: ").count(), 4, "{mbox}");
    assert!(daemon.stop().success());
}

/// A node with other limits takes what it can, and what it does not take is named.
#[test]
fn a_message_that_the_node_refuses_stops_no_restore() {
    let scratch = Scratch::new();
    let daemon = start(&scratch);
    let large = [stamped("large"), vec![b'x'; 300 << 10], b"\r\n".to_vec()].concat();
    for message in [&stamped("one"), &large, &stamped("two")] {
        daemon.client().deliver(&["bob@v.test"], message);
    }
    let copy = scratch.path("copy").display().to_string();
    done(&scratch.data(), &["backup", &copy]);
    assert!(daemon.stop().success());

    let elsewhere = Scratch::new();
    let mut daemon = elsewhere.start_with(&[SOCKET, "message_bytes_max=200 KiB"]);
    daemon.node = elsewhere.data().join("run/node");
    let words = ["restore", "bob@v.test", "--from", &copy];
    let output = ringpost(&elsewhere.data(), &words);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(
        told.contains("2 restored, 0 there already, 1 REFUSED"),
        "{told}"
    );
    let named = String::from_utf8(output.stderr).unwrap();
    assert!(named.contains("INBOX, uid 2: left out"), "{named}");
    assert_eq!(daemon.client().count("bob@v.test"), 2);
    assert!(daemon.stop().success());
}

/// A copy of a damaged store is finished, and says so: all that is whole can be had back.
#[test]
fn a_damaged_store_is_copied_and_comes_back_as_it_is() {
    let scratch = Scratch::new();
    let data = scratch.data();
    let daemon = start(&scratch);
    for text in ["one", "two"] {
        daemon.client().deliver(&["bob@v.test"], &stamped(text));
    }
    assert!(daemon.stop().success());
    let segment = segments(&data).pop().unwrap();
    let mut bytes = std::fs::read(&segment).unwrap();
    let at = bytes.len() - 4;
    bytes[at] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let copy = scratch.path("copy");
    let output = ringpost(&data, &["backup", &copy.display().to_string()]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(!copy.join("INCOMPLETE").exists());
    let manifest = std::fs::read_to_string(copy.join("BACKUP")).unwrap();
    assert!(manifest.contains("\"sound\": false"), "{manifest}");
    let elsewhere = Scratch::new();
    let daemon = start(&elsewhere);
    let words = [
        "restore",
        "bob@v.test",
        "--from",
        &copy.display().to_string(),
    ];
    let output = ringpost(&elsewhere.data(), &words);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(daemon.client().count("bob@v.test"), 1);
    assert!(daemon.stop().success());
    // The node as a whole: what is damaged is said, and the rest is served.
    let again = Scratch::new();
    let words = ["restore", "--from", &copy.display().to_string()];
    let output = ringpost(&again.data(), &words);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.contains("DAMAGED"), "{told}");
    let daemon = start(&again);
    assert_eq!(daemon.client().count("bob@v.test"), 2);
    assert!(daemon.stop().success());
}

/// The mbox files of a data directory.
fn segments(directory: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(segments(&path));
        } else if path.extension().is_some_and(|ending| ending == "mbox") {
            found.push(path);
        }
    }
    found
}

/// Two nodes of two machines keep their data under the same path: what lies here is not what was asked.
#[test]
fn another_nodes_directory_is_not_taken_for_the_one_that_answered() {
    let (here, there) = (Scratch::new(), Scratch::new());
    let daemon = start(&there);
    let moved = there.path("moved");
    std::fs::rename(there.data(), &moved).unwrap();
    assert!(start(&here).stop().success());
    std::fs::rename(here.data(), there.data()).unwrap();
    let copy = there.path("copy");
    let output = Command::new(env!("CARGO_BIN_EXE_ringpost"))
        .arg("--to")
        .arg(moved.join("run/node"))
        .arg("backup")
        .arg(&copy)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("of another store"), "{told}");
    assert!(!copy.join("BACKUP").exists());
    assert!(daemon.stop().success());
}

/// Whether any file below a directory has these bytes.
fn holds(dir: &Path, bytes: &[u8]) -> bool {
    std::fs::read_dir(dir).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return holds(&path, bytes);
        }
        // The node's sockets are there too.
        if !path.is_file() {
            return false;
        }
        let found = std::fs::read(&path).unwrap();
        memchr::memmem::find(&found, bytes).is_some()
    })
}

#[test]
fn a_backup_of_one_user_is_the_users_alone() {
    let scratch = Scratch::new();
    let data = scratch.data();
    let daemon = start(&scratch);
    let large = [stamped("large"), vec![b'x'; 300 << 10], b"\r\n".to_vec()].concat();
    for number in 0..30 {
        let both = ["ann@v.test", "bob@v.test"];
        daemon
            .client()
            .deliver(&both, &stamped(&format!("both {number}")));
        daemon
            .client()
            .deliver(&both[..1], &stamped(&format!("secret {number}")));
    }
    daemon.client().deliver(&["bob@v.test"], &large);
    let copy = scratch.path("copy");
    let copy_name = copy.display().to_string();
    let made = done(&data, &["backup", "--user", "bob@v.test", &copy_name]);
    assert!(made.contains("bob@v.test alone, 31 messages"), "{made}");
    for mark in ["secret", "ann@v.test"] {
        assert!(holds(&data, mark.as_bytes()), "{mark}");
        assert!(!holds(&copy, mark.as_bytes()), "{mark}");
    }
    done(&copy, &["check", "--level", "full"]);
    let mbox = done(&copy, &["export", "bob@v.test"]);
    assert_eq!(mbox.matches("Subject: both").count(), 30, "{mbox}");

    let absent = scratch.path("absent").display().to_string();
    let nobody = refused(&data, &["backup", "--user", "eve@v.test", &absent]);
    assert!(nobody.contains("no such user"), "{nobody}");
    assert!(!scratch.path("absent").join("STORE").exists());
    let node = refused(&scratch.path("x"), &["restore", "--from", &copy_name]);
    assert!(node.contains("bob@v.test alone"), "{node}");
    let other = refused(&data, &["restore", "ann@v.test", "--from", &copy_name]);
    assert!(other.contains("nothing of ann@v.test"), "{other}");
    let there = done(&data, &["restore", "bob@v.test", "--from", &copy_name]);
    assert!(there.contains("INBOX: 0 restored, 31 there"), "{there}");
    assert!(daemon.stop().success());
    let elsewhere = Scratch::new();
    let daemon = start(&elsewhere);
    let came = done(
        &elsewhere.data(),
        &["restore", "bob@v.test", "--from", &copy_name],
    );
    assert!(came.contains("INBOX: 31 restored, 0 there"), "{came}");
    assert_eq!(daemon.client().fetch("bob@v.test", 31), large);
    assert!(daemon.stop().success());
}

#[test]
fn a_users_mail_of_a_moment_between_backups_comes_back() {
    let scratch = Scratch::new();
    let data = scratch.data();
    let settings = [
        SOCKET,
        "checkpoint_interval=1s",
        "return_path=off",
        "archive_age=1 d",
    ];
    let mut daemon = scratch.start_with(&settings);
    daemon.node = data.join("run/node");
    let large = [stamped("large"), vec![b'x'; 300 << 10], b"\r\n".to_vec()].concat();
    daemon.client().deliver(&["bob@v.test"], &stamped("one"));
    let copy = scratch.path("copy").display().to_string();
    done(&data, &["backup", &copy]);
    for message in [&stamped("two"), &large] {
        daemon.client().deliver(&["bob@v.test"], message);
    }
    // A user that the backup does not know, and a log file that a checkpoint passes.
    daemon.client().deliver(&["eve@v.test"], &stamped("hers"));
    let moment = jiff::Timestamp::now().to_string();
    daemon.client().deliver(&["bob@v.test"], &stamped("three"));
    let before = daemon.metric("ringpost_checkpoints_total");
    until("a checkpoint", || {
        daemon.metric("ringpost_checkpoints_total") > before
    });

    let restore = |user: &str, at: &str| {
        let words = ["restore", user, "--from", &copy, "--at", at];
        ringpost(&data, &[&words[..], &["--folder", "Old"]].concat())
    };
    let said = |output: Output| {
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let old = said(restore("bob@v.test", &moment));
    assert!(old.contains("Old/INBOX: 3 restored, 0 there"), "{old}");
    let again = said(restore("bob@v.test", &moment));
    assert!(again.contains("Old/INBOX: 0 restored, 3 there"), "{again}");
    let hers = said(restore("eve@v.test", &moment));
    assert!(hers.contains("Old/INBOX: 1 restored, 0 there"), "{hers}");
    let mbox = done(&data, &["export", "bob@v.test", "--folder", "Old/INBOX"]);
    for (subject, count) in [("one", 1), ("two", 1), ("large", 1), ("three", 0)] {
        let line = format!("Subject: {subject}\n");
        assert_eq!(mbox.matches(&line).count(), count, "{subject}");
    }
    for (at, why) in [
        ("1970-01-02", "take an older backup"),
        ("2999-01-01", "still to come"),
        ("noon", "not a time"),
    ] {
        let output = restore("bob@v.test", at);
        assert!(!output.status.success(), "{at}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains(why), "{at}: {text}");
    }
    assert!(daemon.stop().success());
}
