//! `ringpost profile`: which process it records, what it writes, what it says when it cannot. perf(1) is a
//! script here that notes how it is called and prints stacks.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod testkit;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use testkit::Scratch;

const PERF: &str = r#"#!/bin/sh
case $1 in
record)
    echo "$@" >"$CALLS"
    ;;
script)
    printf 'core 0    71 \n\t55d000001000 seal\n\t55d000002000 serve\n\n'
    printf 'core 0    71 \n\tffffffff81000010 copy+0x10\n\t55d000002000 serve\n\n'
    ;;
esac
"#;

fn profile(scratch: &Scratch, data: &Path, words: &[&str]) -> Output {
    let bin = scratch.path("bin");
    std::fs::create_dir_all(&bin).unwrap();
    let perf = bin.join("perf");
    std::fs::write(&perf, PERF).unwrap();
    std::fs::set_permissions(&perf, PermissionsExt::from_mode(0o755)).unwrap();
    Command::new(env!("CARGO_BIN_EXE_ringpost"))
        .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
        .env("CALLS", scratch.path("calls"))
        .arg("--data")
        .arg(data)
        .arg("profile")
        .args(words)
        .output()
        .unwrap()
}

#[test]
fn a_running_node_is_recorded_and_drawn() {
    let scratch = Scratch::new();
    let daemon = scratch.start();
    let pid = std::fs::read_to_string(scratch.data().join("LOCK")).unwrap();
    let (first, second) = (scratch.path("first"), scratch.path("second"));
    let words = [&first.display().to_string(), "--seconds", "1"];
    let made = profile(&scratch, &scratch.data(), &words);
    assert_eq!(made.status.code(), Some(0), "{made:?}");
    let calls = std::fs::read_to_string(scratch.path("calls")).unwrap();
    assert!(calls.contains(&format!("-p {} ", pid.trim())), "{calls}");
    assert!(calls.ends_with("sleep 1\n"), "{calls}");
    let table = String::from_utf8(made.stdout).unwrap();
    assert!(
        table.contains("core 0: 2 samples, 100.0 % of all"),
        "{table}"
    );
    assert!(table.contains("| 50.0 % | 50.0 % | `seal` |"), "{table}");
    let stacks = std::fs::read_to_string(first.join("stacks.txt")).unwrap();
    assert_eq!(stacks, "core 0;serve;copy_[k] 1\ncore 0;serve;seal 1\n");
    assert!(first.join("core-0.svg").is_file());

    let earlier = first.display().to_string();
    let words = [&second.display().to_string(), "--diff", &earlier];
    let made = profile(&scratch, &scratch.data(), &words);
    assert_eq!(made.status.code(), Some(0), "{made:?}");
    assert!(second.join("core-0-diff.svg").is_file());
    assert!(daemon.stop().success());
}

#[test]
fn without_a_daemon_it_says_so() {
    let scratch = Scratch::new();
    assert!(scratch.start().stop().success());
    let refused = profile(&scratch, &scratch.data(), &["out"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("no daemon has"), "{said}");
    assert!(!scratch.path("calls").exists());
}
