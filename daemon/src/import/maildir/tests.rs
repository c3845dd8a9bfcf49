//! Trees as other programs make them, and as they change while they are read.

use std::fs;
use std::os::unix::fs::symlink;

use super::*;

fn maildir(path: &Path) {
    for sub in ["cur", "new", "tmp"] {
        fs::create_dir_all(path.join(sub)).unwrap();
    }
}

fn named(tree: &Tree) -> Vec<Option<&str>> {
    tree.folders
        .iter()
        .map(|folder| folder.name.as_deref())
        .collect()
}

#[test]
fn folders_are_found_and_links_are_not_followed() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("Maildir");
    maildir(&root);
    for name in [
        ".Sent",
        ".Archive.2024",
        ".Gel&APY-scht",
        "nested",
        "nested/v1.2",
    ] {
        maildir(&root.join(name));
    }
    symlink("/etc", root.join(".Linked")).unwrap();
    let tree = folders(&root).unwrap();
    let mut names = named(&tree);
    names.sort_unstable();
    let want = [
        "Archive/2024",
        "Gel\u{f6}scht",
        "Sent",
        "nested",
        "nested/v1.2",
    ];
    assert_eq!(names, [vec![None], want.map(Some).to_vec()].concat());
    assert_eq!(tree.passed.len(), 1);
}

#[test]
fn flags_keywords_and_dates_come_from_names_and_times() {
    let scratch = tempfile::tempdir().unwrap();
    maildir(scratch.path());
    fs::write(
        scratch.path().join("dovecot-keywords"),
        "0 $Label1\n2 junk\n",
    )
    .unwrap();
    let name = "1700000000.M1P2.host,S=3,W=4";
    fs::write(scratch.path().join(format!("cur/{name}:2,FPRSac")), "one").unwrap();
    fs::write(scratch.path().join("new/1600000000.x"), "two").unwrap();
    fs::write(scratch.path().join("tmp/1500000000.x"), "never").unwrap();
    let mut messages = Messages::list(scratch.path()).unwrap();
    let names = messages.names();
    assert_eq!(names, [OsStr::new("1600000000.x"), OsStr::new(name)]);
    let mail = messages.read(&names[1]).unwrap();
    assert_eq!(mail.bytes, b"one");
    assert_eq!(mail.flags, FLAGGED | ANSWERED | SEEN);
    assert_eq!(mail.keywords, ["$Forwarded", "$Label1", "junk"]);
    // The files are as old as this test: the names are older.
    assert_eq!(mail.date, date_of(1_700_000_000));
}

#[test]
fn a_message_that_is_renamed_is_found_and_one_that_is_gone_is_told() {
    let scratch = tempfile::tempdir().unwrap();
    maildir(scratch.path());
    let at = |name: &str| scratch.path().join(name);
    for name in ["new/1.a", "new/2.b", "cur/3.c:2,"] {
        fs::write(at(name), name).unwrap();
    }
    let mut messages = Messages::list(scratch.path()).unwrap();
    let names = messages.names();
    fs::rename(at("new/1.a"), at("cur/1.a:2,S")).unwrap();
    fs::remove_file(at("new/2.b")).unwrap();
    fs::rename(at("cur/3.c:2,"), at("cur/3.c:2,F")).unwrap();
    let first = messages.read(&names[0]).unwrap();
    assert_eq!((&first.bytes[..], first.flags), (&b"new/1.a"[..], SEEN));
    assert!(matches!(messages.read(&names[1]), Err(Unread::Gone)));
    assert_eq!(messages.read(&names[2]).unwrap().flags, FLAGGED);
}

#[test]
fn what_is_no_file_is_not_read() {
    let scratch = tempfile::tempdir().unwrap();
    maildir(scratch.path());
    symlink("/etc/hostname", scratch.path().join("cur/1.a:2,")).unwrap();
    let fifo = scratch.path().join("cur/2.b:2,");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::create_dir(scratch.path().join("cur/3.c:2,")).unwrap();
    let mut messages = Messages::list(scratch.path()).unwrap();
    for name in messages.names() {
        let read = messages.read(&name);
        assert!(matches!(read, Err(Unread::NotAFile)), "{name:?} {read:?}");
    }
}
