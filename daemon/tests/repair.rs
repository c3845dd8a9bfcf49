//! `ringpost repair` on the directory of a real daemon: told first, done once, served again.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod testkit;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use testkit::Scratch;

/// As without any setting: where `--data` looks for it.
const SOCKET: &str = "listen.socket=unix:run/node";

fn ringpost(data: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringpost"))
        .arg("--data")
        .arg(data)
        .args(words)
        .output()
        .unwrap()
}

fn deliver(data: &Path, number: u32) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ringpost-deliver"))
        .arg("--socket")
        .arg(data.join("run/node"))
        .args(["-d", "bob@v.test"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let message = format!("Subject: number {number}\r\n\r\nthe text of number {number}\r\n");
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(message.as_bytes()).unwrap();
    drop(stdin);
    assert!(child.wait().unwrap().success());
}

/// Every file below a directory.
fn files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(files(&entry.path()));
        } else if kind.is_file() {
            found.insert(entry.path(), std::fs::read(entry.path()).unwrap());
        }
    }
    found
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn a_damaged_message_is_named_set_aside_and_the_rest_is_served() {
    let scratch = Scratch::new();
    let data = scratch.data();
    let daemon = scratch.start_with(&[SOCKET]);
    for number in 1..=3 {
        deliver(&data, number);
    }
    let output = ringpost(&data, &["repair"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let refused = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(refused.contains("a daemon runs"), "{refused}");
    assert!(daemon.stop().success());

    let sound = ringpost(&data, &["repair"]);
    assert_eq!(sound.status.code(), Some(0), "{sound:?}");
    assert!(said(&sound).contains("nothing to repair"), "{sound:?}");

    let (path, mut bytes) = files(&data)
        .into_iter()
        .find(|(path, _)| path.extension().is_some_and(|end| end == "mbox"))
        .unwrap();
    let text = b"the text of number 2";
    let at = bytes.windows(text.len()).position(|w| w == text).unwrap();
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let check = ringpost(&data, &["check", "--level", "checksums"]);
    assert_eq!(check.status.code(), Some(1), "{check:?}");
    assert!(said(&check).contains("repair --dry-run"), "{check:?}");
    let shallow = ringpost(&data, &["check", "--level", "structure"]);
    assert_eq!(shallow.status.code(), Some(0), "{shallow:?}");

    let before = files(&data);
    let planned = ringpost(&data, &["repair", "--dry-run"]);
    assert_eq!(planned.status.code(), Some(1), "{planned:?}");
    assert_eq!(files(&data), before, "a dry run changes nothing");
    // As in a copy: a daemon that starts meanwhile would make it.
    std::fs::remove_file(data.join("LOCK")).unwrap();
    let repaired = ringpost(&data, &["repair"]);
    assert_eq!(repaired.status.code(), Some(1), "{repaired:?}");
    assert!(data.join("LOCK").exists(), "a repair holds the lock");
    let lost = |output: &Output| -> Vec<String> {
        let lost = said(output);
        let lost = lost.lines().filter(|line| line.starts_with("LOST: "));
        lost.map(str::to_owned).collect()
    };
    assert_eq!(lost(&planned), lost(&repaired));
    let [line] = &lost(&repaired)[..] else {
        panic!("{repaired:?}");
    };
    assert!(line.contains("bob@v.test, INBOX, uid 2"), "{line}");
    let kept = data.join("lost/bob@v.test.INBOX.uid-2.damaged");
    let kept = std::fs::read(kept).unwrap();
    assert!(kept.windows(10).any(|w| w == b"f number 2"));

    assert_eq!(ringpost(&data, &["check"]).status.code(), Some(0));
    let again = ringpost(&data, &["repair", "--json"]);
    assert_eq!(again.status.code(), Some(0), "{again:?}");
    assert!(said(&again).contains("\"actions\":[]"), "{again:?}");
    let daemon = scratch.start_with(&[SOCKET]);
    let listed = said(&ringpost(&data, &["list", "bob@v.test"]));
    assert_eq!(listed.lines().count(), 2, "{listed}");
    assert!(
        listed.contains("number 1") && listed.contains("number 3"),
        "{listed}"
    );
    assert!(daemon.stop().success());
}

#[test]
fn a_scrub_names_what_rotted_and_only_that_is_not_served() {
    let scratch = Scratch::new();
    let data = scratch.data();
    let settings = [SOCKET, "scrub_rate=off"];
    let daemon = scratch.start_with(&settings);
    for number in 1..=3 {
        deliver(&data, number);
    }
    assert!(daemon.stop().success());
    let (path, mut bytes) = files(&data)
        .into_iter()
        .find(|(path, _)| path.extension().is_some_and(|end| end == "mbox"))
        .unwrap();
    let text = b"the text of number 2";
    let at = bytes.windows(text.len()).position(|w| w == text).unwrap();
    bytes[at] ^= 1;
    std::fs::write(&path, &bytes).unwrap();

    let daemon = scratch.start_with(&settings);
    let idle = ringpost(&data, &["scrub"]);
    assert_eq!(idle.status.code(), Some(0), "{idle:?}");
    let pass = ringpost(&data, &["scrub", "--now"]);
    assert_eq!(pass.status.code(), Some(1), "{pass:?}");
    let said = said(&pass);
    assert!(said.contains("scrub.messages\t3"), "{pass:?}");
    assert!(said.contains("scrub.damaged\t1"), "{said}");
    let named = ["bob@v.test mailbox 1 uid 2", "00000001.mbox at offset"];
    for words in named {
        assert!(said.contains(words), "{said}");
        let status = ringpost(&data, &["status"]);
        assert!(self::said(&status).contains(words), "{status:?}");
    }
    assert!(daemon.metric("ringpost_scrub_damaged") > 0.0);
    let shown = |uid: &str| ringpost(&data, &["show", "bob@v.test", uid]);
    assert_eq!(shown("2").status.code(), Some(1));
    assert!(self::said(&shown("3")).contains("the text of number 3"));
    let nobody = ringpost(&data, &["scrub", "nobody@v.test"]);
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("no such user"));

    bytes[at] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let again = ringpost(&data, &["scrub", "bob@v.test"]);
    assert_eq!(again.status.code(), Some(0), "{again:?}");
    assert!(self::said(&shown("2")).contains("the text of number 2"));
    assert!(daemon.words().contains("the scrub found damage"));
    assert!(daemon.stop().success());
}
