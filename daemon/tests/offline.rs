//! `ringpost --data DIR` on the files of a daemon that was killed: the mail that it would serve, what is in
//! the log only included; and nothing on disk changes.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod testkit;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use testkit::{Scratch, stamped};

fn ringpost(data: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringpost"))
        .arg("--data")
        .arg(data)
        .args(words)
        .output()
        .unwrap()
}

/// What was written to standard output by a command that succeeded.
fn said(data: &Path, words: &[&str]) -> String {
    let output = ringpost(data, words);
    assert_eq!(output.status.code(), Some(0), "{words:?}: {output:?}");
    assert!(output.stderr.is_empty(), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Exit code and complaint of one that did not.
fn refused(data: &Path, words: &[&str]) -> (Option<i32>, String) {
    let output = ringpost(data, words);
    let line = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.stdout.is_empty(), "{words:?}: {output:?}");
    (output.status.code(), line)
}

/// Every file below a directory: what it holds and when it was changed.
fn files(directory: &Path) -> BTreeMap<PathBuf, (Vec<u8>, std::time::SystemTime)> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(files(&entry.path()));
        } else if kind.is_file() {
            let changed = entry.metadata().unwrap().modified().unwrap();
            found.insert(
                entry.path(),
                (std::fs::read(entry.path()).unwrap(), changed),
            );
        }
    }
    found
}

const COMMANDS: [&[&str]; 6] = [
    &["list", "bob@v.test"],
    &["--json", "list", "eve@v.test"],
    &["--json", "folders", "bob@v.test"],
    &["show", "bob@v.test", "1"],
    &["export", "bob@v.test"],
    &["export", "bob@v.test", "--folder", "inbox"],
];

#[test]
fn the_files_of_a_killed_daemon_are_read_as_it_served_them() {
    let scratch = Scratch::new();
    let data = scratch.data();
    // Where `--data` finds it, and mail stays in the log.
    let settings = ["listen.socket=unix:run/node", "checkpoint_interval=1 h"];
    let daemon = scratch.start_with(&settings);
    let mut lmtp = daemon.lmtp();
    for number in 0..5 {
        let message = stamped(&format!("number {number}"));
        lmtp.deliver(&["bob@v.test", "eve@v.test"], &message);
    }
    let mut large = stamped("large");
    large.extend(b"a line of the large one\r\n".repeat(9_000));
    lmtp.deliver(&["bob@v.test"], &large);
    let served = COMMANDS.map(|words| said(&data, words));
    assert_eq!(served[0].lines().count(), 6, "{}", served[0]);
    daemon.kill();
    let before = files(&data);
    let read = COMMANDS.map(|words| said(&data, words));
    for ((words, served), read) in COMMANDS.iter().zip(&served).zip(&read) {
        assert_eq!(served, read, "{words:?}");
    }
    assert!(files(&data) == before, "reading changed something on disk");
    for (words, why) in [
        (&["list", "dan@v.test"][..], "no such user: dan@v.test"),
        (&["show", "bob@v.test", "77"], "no such message"),
        (
            &["list", "bob@v.test", "--folder", "no"],
            "has no mailbox \"no\"",
        ),
        (&["status"], "is the daemon running?"),
    ] {
        let (code, line) = refused(&data, words);
        assert_eq!(code, Some(1), "{words:?}: {line}");
        assert!(line.contains(why), "{words:?}: {line}");
    }
    // Stopped in peace and served again: the same.
    assert!(scratch.start_with(&settings).stop().success());
    assert_eq!(COMMANDS.map(|words| said(&data, words)), served);
}

#[test]
fn a_daemon_that_listens_elsewhere_is_not_read_behind_its_back() {
    let scratch = Scratch::new();
    let daemon = scratch.start();
    let (code, line) = refused(&scratch.data(), &["list", "bob@v.test"]);
    assert_eq!(code, Some(1), "{line}");
    let pid = format!("(process {})", daemon.pid());
    assert!(
        line.contains(&pid) && line.contains("--to ADDRESS"),
        "{line}"
    );
    assert!(daemon.stop().success());
    let (code, line) = refused(&scratch.path("nowhere"), &["list", "bob@v.test"]);
    assert_eq!(code, Some(1), "{line}");
    assert!(
        line.contains("is not a data directory of Ringpost"),
        "{line}"
    );
}

#[test]
fn a_damaged_message_is_left_out_of_an_export_and_named() {
    let scratch = Scratch::new();
    let data = scratch.data();
    let daemon = scratch.start();
    for number in 0..3 {
        let message = stamped(&format!("number {number}"));
        daemon.lmtp().deliver(&["bob@v.test"], &message);
    }
    assert!(daemon.stop().success());
    let (path, (mut bytes, _)) = files(&data)
        .into_iter()
        .find(|(path, _)| path.extension().is_some_and(|end| end == "mbox"))
        .unwrap();
    let text = b"Subject: number 1";
    let at = bytes.windows(text.len()).position(|w| w == text).unwrap();
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let output = ringpost(&data, &["export", "bob@v.test"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let line = String::from_utf8_lossy(&output.stderr).into_owned();
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    assert!(
        line.contains("uid 2 is left out") && line.contains(&name),
        "{line}"
    );
    assert!(line.contains("at offset"), "{line}");
    let export = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        export.contains("number 0") && export.contains("number 2"),
        "{export}"
    );
    assert!(!export.contains("number 1"), "{export}");
}
