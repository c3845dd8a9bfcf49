//! The three programs together: the shim delivers to a real daemon, `ringpost` reads it back, and
//! `check` looks at the files.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod testkit;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use testkit::Scratch;

const MESSAGE: &[u8] = b"Received: from x; Mon, 1 Jan 2024 00:00:00 +0000\r\n\
Subject: the only one\r\n\r\nFrom here\r\nto there";

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

fn deliver(data: &Path, words: &[&str], message: &[u8]) -> Option<i32> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ringpost-deliver"))
        .arg("--socket")
        .arg(data.join("run/node"))
        .args(words)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(message).unwrap();
    child.wait().unwrap().code()
}

fn lines(output: &Output) -> usize {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).lines().count()
}

/// Every mbox below a directory.
fn segments(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(segments(&path));
        } else if path.extension().is_some_and(|end| end == "mbox") {
            found.push(path);
        }
    }
    found
}

#[test]
fn a_retry_is_stored_once_also_after_a_kill() {
    let scratch = Scratch::new();
    let data = scratch.data();
    let words = ["-d", "bob@v.test", "-f", "ann@a.test"];
    let daemon = scratch.start_with(&[SOCKET]);
    assert_eq!(deliver(&data, &words, MESSAGE), Some(0));
    assert_eq!(deliver(&data, &words, MESSAGE), Some(0));
    daemon.kill();
    assert_eq!(
        deliver(&data, &["-d", "bob@v.test", "--timeout", "1"], MESSAGE),
        Some(75)
    );
    let daemon = scratch.start_with(&[SOCKET]);
    assert_eq!(deliver(&data, &words, MESSAGE), Some(0));
    assert_eq!(lines(&ringpost(&data, &["list", "bob@v.test"])), 1);
    let shown = ringpost(&data, &["show", "bob@v.test", "1"]).stdout;
    assert_eq!(shown, [b"Return-Path: <ann@a.test>\r\n", MESSAGE].concat());
    let exported = ringpost(&data, &["export", "bob@v.test"]).stdout;
    let exported = String::from_utf8(exported).unwrap();
    assert!(exported.starts_with("From ann@a.test "), "{exported}");
    assert!(
        exported.ends_with("\n>From here\nto there\n\n"),
        "{exported}"
    );
    assert!(daemon.stop().success());
}

#[test]
fn check_leaves_a_running_daemon_alone_and_finds_a_flipped_bit() {
    let scratch = Scratch::new();
    let data = scratch.data();
    let output = ringpost(&data, &["check"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("is not a data directory"), "{said}");
    let daemon = scratch.start_with(&[SOCKET]);
    assert_eq!(deliver(&data, &["-d", "bob@v.test"], MESSAGE), Some(0));
    let output = ringpost(&data, &["check"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains(&format!("(process {})", daemon.pid())),
        "{said}"
    );
    assert!(daemon.stop().success());
    let output = ringpost(&data, &["check", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report = String::from_utf8(output.stdout).unwrap();
    assert!(
        report.contains("\"messages\":1") && report.contains("\"sound\":true"),
        "{report}"
    );
    let segments = segments(&data);
    assert_eq!(segments.len(), 1, "{segments:?}");
    let mut bytes = std::fs::read(&segments[0]).unwrap();
    let at = bytes.windows(4).position(|four| four == b"only").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&segments[0], bytes).unwrap();
    let output = ringpost(&data, &["check"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report = String::from_utf8(output.stdout).unwrap();
    assert!(
        report.contains("DAMAGE") && report.contains(".mbox"),
        "{report}"
    );
}

#[test]
fn unknown_users_and_large_messages_have_their_codes() {
    let scratch = Scratch::new();
    let data = scratch.data();
    let users = scratch.path("users");
    std::fs::write(&users, "bob@v.test\n").unwrap();
    let file = format!("accounts.file={}", users.display());
    let settings = [
        SOCKET,
        "accounts.accept=listed",
        &file,
        "message_bytes_max=128 KiB",
    ];
    let daemon = scratch.start_with(&settings);
    assert_eq!(deliver(&data, &["-d", "bob@v.test"], MESSAGE), Some(0));
    assert_eq!(deliver(&data, &["-d", "carol@v.test"], MESSAGE), Some(67));
    assert_eq!(
        deliver(&data, &["-d", "bob@v.test", "-d", "x@v.test"], MESSAGE),
        Some(67)
    );
    let large = vec![b'x'; 200_000];
    assert_eq!(deliver(&data, &["-d", "bob@v.test"], &large), Some(65));
    for odd in [
        "../../etc/passwd",
        "b\u{f6}b@v.test",
        "a b@v.test",
        "@",
        &"x".repeat(300),
    ] {
        assert_eq!(deliver(&data, &["-d", odd], MESSAGE), Some(67), "{odd}");
    }
    assert!(daemon.stop().success());
}
