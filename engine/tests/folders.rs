//! Mailboxes made, renamed, removed, subscribed to; over checkpoints and crashes.
mod testkit;

use ringpost_engine::config::ShardConfig;
use ringpost_engine::format::folders::Folders;
use ringpost_engine::format::info::SpecialUse;
use ringpost_engine::io::sim::Crash;
use ringpost_engine::limits::MAILBOXES_MAX;
use ringpost_engine::mailbox_name::NameFault;
use ringpost_engine::request::{
    Flags, Limit, MailboxChange, Outcome, QuotaLimits, Refused, Request, Subscribed, UidSet,
};
use ringpost_netproto::id::MailboxId;
use testkit::client::{dir, filled, in_every_state};
use testkit::{Bench, message, user};

const INBOX: MailboxId = MailboxId::INBOX;
const SENT: MailboxId = MailboxId::SENT;

#[test]
fn a_user_begins_with_inbox_and_sent_and_makes_more() {
    let mut bench = Bench::new(ShardConfig::tiny());
    assert_eq!(bench.statuses("bob").unwrap_err(), Refused::NoSuchUser);
    let work = bench.create("bob", "Work/2026").unwrap();
    assert_eq!(
        bench.create("bob", "Work/2026").unwrap_err(),
        Refused::Exists
    );
    assert_eq!(bench.create("bob", "inbox").unwrap_err(), Refused::Exists);
    let below = bench.create("bob", "Inbox/lists/").unwrap();
    assert_ne!(work, below);
    in_every_state(bench, |bench| {
        assert_eq!(
            bench.names("bob"),
            ["INBOX", "Sent", "Work/2026", "INBOX/lists"]
        );
        let statuses = bench.statuses("bob").unwrap();
        assert_eq!(statuses[1].special_use, SpecialUse::Sent);
        assert_eq!(statuses[2].uidnext, 1);
        assert!(statuses.iter().all(|status| status.uidvalidity.value() > 0));
    });
}

#[test]
fn odd_names_are_refused_and_harm_nothing() {
    let mut bench = filled(1);
    let long = "x".repeat(300);
    for (name, fault) in [
        ("", NameFault::Empty),
        ("..", NameFault::Dots),
        ("a/./b", NameFault::Dots),
        ("a\0b", NameFault::Control),
        ("a\r\n", NameFault::Control),
        (&*long, NameFault::TooLong),
        ("//", NameFault::EmptyLevel),
        ("/a", NameFault::EmptyLevel),
    ] {
        assert_eq!(
            bench.create("bob", name).unwrap_err(),
            Refused::BadName(fault),
            "{name:?}"
        );
    }
    bench.create("bob", "a").unwrap();
    let refused = bench.rename("bob", "a", "a/b").unwrap_err();
    assert_eq!(refused, Refused::BadName(NameFault::BelowItself));
    let refused = bench.rename("bob", "a", "b/").unwrap_err();
    assert_eq!(refused, Refused::BadName(NameFault::EmptyLevel));
    let refused = bench.rename("bob", "InBox", "b").unwrap_err();
    assert_eq!(refused, Refused::BadName(NameFault::Inbox));
    assert_eq!(
        bench.rename("bob", "none", "b").unwrap_err(),
        Refused::NoSuchMailbox
    );
    assert_eq!(
        bench.rename("bob", "a", "Sent").unwrap_err(),
        Refused::Exists
    );
    assert_eq!(bench.rename("bob", "a", "a").unwrap_err(), Refused::Exists);
    let refused = bench.delete("bob", INBOX).unwrap_err();
    assert_eq!(refused, Refused::BadName(NameFault::Inbox));
    assert_eq!(
        bench.delete("bob", MailboxId::new(99)).unwrap_err(),
        Refused::NoSuchMailbox
    );
    assert_eq!(bench.names("bob"), ["INBOX", "Sent", "a"]);
}

#[test]
fn a_rename_takes_the_children_along() {
    let mut bench = filled(1);
    let a = bench.create("bob", "a").unwrap();
    for name in ["a/b", "a/b/c", "ab", "d/e", "z"] {
        bench.create("bob", name).unwrap();
    }
    bench.copy("bob", INBOX, UidSet::all(), a).unwrap();
    let before = bench.status("bob", a);
    bench.rename("bob", "a", "x/y").unwrap();
    bench.rename("bob", "d", "f").unwrap();
    assert_eq!(
        bench.rename("bob", "z", "x/y/b").unwrap_err(),
        Refused::Exists
    );
    in_every_state(bench, |bench| {
        let names = bench.names("bob");
        assert_eq!(
            names,
            ["INBOX", "Sent", "x/y", "x/y/b", "x/y/b/c", "ab", "f/e", "z"]
        );
        let after = bench.status("bob", a);
        assert_eq!(after.uidvalidity, before.uidvalidity);
        assert_eq!(after.messages_count, 1);
    });
}

#[test]
fn a_removed_mailbox_is_gone_and_its_numbers_are_not_given_again() {
    let mut bench = filled(2);
    let old = bench.create("bob", "tmp").unwrap();
    bench.copy("bob", INBOX, UidSet::all(), old).unwrap();
    let before = bench.status("bob", old);
    bench.delete("bob", old).unwrap();
    assert_eq!(
        bench.list_of("bob", old).unwrap_err(),
        Refused::NoSuchMailbox
    );
    let outcome = bench.client_append(
        "bob",
        old,
        (5, &message(5, 100)),
        Flags::default(),
        QuotaLimits::default(),
    );
    assert_eq!(outcome, Outcome::Refused(Refused::NoSuchMailbox));
    bench.checkpoint();
    let mut bench = bench.crash(Crash::PowerCut);
    let new = bench.create("bob", "tmp").unwrap();
    assert!(new > old);
    in_every_state(bench, |bench| {
        let after = bench.status("bob", new);
        assert!(after.uidvalidity > before.uidvalidity);
        assert_eq!((after.messages_count, after.uidnext), (0, 1));
        assert_eq!(bench.status("bob", INBOX).messages_count, 2);
    });
}

#[test]
fn folders_says_what_the_mailboxes_are_called() {
    let read = |bench: &Bench| {
        let bytes = bench.disk.read(&dir("bob").folders()).expect("it is there");
        let folders = Folders::decode(&bytes).expect("it is whole");
        folders
            .mailboxes
            .into_iter()
            .map(|folder| folder.name)
            .collect::<Vec<_>>()
    };
    let mut bench = filled(1);
    bench.create("bob", "a").unwrap();
    bench.checkpoint();
    assert_eq!(read(&bench), ["INBOX", "Sent", "a"]);
    let b = bench.create("bob", "b").unwrap();
    bench.rename("bob", "a", "c").unwrap();
    // A checkpoint by a shard that has not read the user.
    let mut bench = bench.crash(Crash::PowerCut);
    bench.checkpoint();
    assert_eq!(read(&bench), ["INBOX", "Sent", "c", "b"]);
    bench.delete("bob", b).unwrap();
    bench.checkpoint();
    assert_eq!(read(&bench), ["INBOX", "Sent", "c"]);
    assert!(bench.check().is_sound());
}

#[test]
fn subscriptions_are_kept() {
    let mut bench = filled(1);
    bench
        .change("bob", MailboxChange::Subscribe { mailbox: INBOX })
        .unwrap();
    bench
        .change("bob", MailboxChange::Subscribe { mailbox: SENT })
        .unwrap();
    bench
        .change("bob", MailboxChange::Unsubscribe { mailbox: SENT })
        .unwrap();
    in_every_state(bench, |bench| {
        assert_eq!(bench.status("bob", INBOX).subscribed, Subscribed::Yes);
        assert_eq!(bench.status("bob", SENT).subscribed, Subscribed::No);
    });
}

#[test]
fn a_user_has_so_many_mailboxes_and_no_more() {
    let mut config = ShardConfig::tiny();
    config.pending_records_max = 20_000;
    config.log_files_max = 64;
    config.checkpoint_interval_ns = 1_000_000_000_000;
    let mut bench = Bench::new(config);
    for number in 2..MAILBOXES_MAX {
        let change = MailboxChange::Create {
            name: format!("m{number}"),
            special_use: SpecialUse::None,
        };
        let user = user("bob");
        bench.submit(Request::Mailbox { user, change }).unwrap();
        if number % 512 == 0 {
            bench.settle();
        }
    }
    bench.settle();
    assert_eq!(bench.statuses("bob").unwrap().len(), MAILBOXES_MAX);
    let refused = bench.create("bob", "one more").unwrap_err();
    assert_eq!(refused, Refused::Limit(Limit::Mailboxes));
}
