//! The life of messages in mailboxes: flags, expunge, copy, move. One fact a test, on the simulated
//! disk, over checkpoints and crashes.
mod testkit;

use ringpost_engine::config::ShardConfig;
use ringpost_engine::format::info::{ANSWERED, DELETED, FLAGGED, SEEN};
use ringpost_engine::io::sim::Crash;
use ringpost_engine::limits::KEYWORDS_MAX;
use ringpost_engine::request::{
    Event, FlagOp, Flags, Limit, QuotaLimits, Refused, Request, UidSet, Which,
};
use ringpost_netproto::id::MailboxId;
use testkit::client::{dir, filled, flags, in_every_state, large_files, lines, uids};
use testkit::{Bench, message, user};

const INBOX: MailboxId = MailboxId::INBOX;
const SENT: MailboxId = MailboxId::SENT;

#[test]
fn flags_are_added_removed_and_replaced() {
    let mut bench = filled(5);
    let changed = bench
        .store(
            "bob",
            INBOX,
            UidSet::range(1, 3),
            FlagOp::Add,
            flags(SEEN, &["$Junk"]),
        )
        .unwrap();
    assert_eq!(changed.uids, UidSet::range(1, 3));
    let first = changed.modseq;
    let changed = bench
        .store(
            "bob",
            INBOX,
            uids(&[2, 9]),
            FlagOp::Replace,
            flags(FLAGGED, &["work"]),
        )
        .unwrap();
    assert_eq!(changed.uids, uids(&[2]));
    assert!(changed.modseq > first);
    bench
        .store(
            "bob",
            INBOX,
            uids(&[3]),
            FlagOp::Remove,
            flags(SEEN, &["$JUNK", "never"]),
        )
        .unwrap();
    in_every_state(bench, |bench| {
        let found = bench.flags_of("bob", INBOX);
        assert_eq!(found[&1], (SEEN, vec!["$Junk".to_owned()]));
        assert_eq!(found[&2], (FLAGGED, vec!["work".to_owned()]));
        assert_eq!(found[&3], (0, vec![]));
        assert_eq!(found[&4], (0, vec![]));
        let status = bench.status("bob", INBOX);
        assert_eq!(status.unseen_count, 4);
        assert_eq!(status.keywords.len(), 2, "{:?}", status.keywords);
    });
}

#[test]
fn a_store_that_changes_nothing_makes_no_record() {
    let mut bench = filled(2);
    let set = UidSet::all();
    bench
        .store("bob", INBOX, set.clone(), FlagOp::Add, Flags::system(SEEN))
        .unwrap();
    let before = bench.status("bob", INBOX).highest_modseq;
    let frames = bench.shard.metrics().frames;
    let changed = bench
        .store("bob", INBOX, set, FlagOp::Add, Flags::system(SEEN))
        .unwrap();
    assert!(changed.uids.is_empty());
    assert_eq!(changed.modseq.value(), before);
    assert_eq!(bench.shard.metrics().frames, frames);
}

#[test]
fn a_conditional_store_leaves_alone_what_changed_since() {
    let mut bench = filled(3);
    let since = bench.status("bob", INBOX).highest_modseq;
    bench
        .store("bob", INBOX, uids(&[2]), FlagOp::Add, Flags::system(SEEN))
        .unwrap();
    let what = (FlagOp::Add, Flags::system(FLAGGED));
    let changed = bench
        .store_since("bob", INBOX, UidSet::all(), what, Some(since))
        .unwrap();
    assert_eq!(changed.uids, uids(&[1, 3]));
    assert_eq!(changed.modified, uids(&[2]));
    assert_eq!(bench.flags_of("bob", INBOX)[&2].0, SEEN);
}

#[test]
fn expunged_messages_are_gone_and_their_uids_never_come_back() {
    let mut bench = filled(6);
    let expunged = bench.expunge("bob", INBOX, uids(&[2, 3, 6])).unwrap();
    assert_eq!(expunged.uids, uids(&[2, 3, 6]));
    let again = bench.expunge("bob", INBOX, uids(&[2, 3, 6])).unwrap();
    assert!(again.uids.is_empty());
    in_every_state(bench, |bench| {
        assert_eq!(bench.uids_of("bob", INBOX), [1, 4, 5]);
        assert_eq!(bench.fetch("bob", 2).unwrap_err(), Refused::NoSuchMessage);
        let status = bench.status("bob", INBOX);
        assert_eq!((status.messages_count, status.uidnext), (3, 7));
        assert!(status.highest_modseq >= expunged.modseq.value());
    });
    let mut bench = filled(2);
    bench.expunge("bob", INBOX, UidSet::all()).unwrap();
    bench.checkpoint();
    let mut bench = bench.crash(Crash::PowerCut);
    bench.deliver(&["bob"], 9, &message(9, 200));
    assert_eq!(bench.uids_of("bob", INBOX), [3]);
}

#[test]
fn only_deleted_messages_are_expunged_if_so_asked() {
    let mut bench = filled(4);
    bench
        .store(
            "bob",
            INBOX,
            uids(&[1, 3]),
            FlagOp::Add,
            Flags::system(DELETED),
        )
        .unwrap();
    assert_eq!(bench.status("bob", INBOX).deleted_count, 2);
    let expunged = bench
        .expunge_which("bob", INBOX, UidSet::range(2, 4), Which::Deleted)
        .unwrap();
    assert_eq!(expunged.uids, uids(&[3]));
    assert_eq!(bench.uids_of("bob", INBOX), [1, 2, 4]);
    assert_eq!(bench.status("bob", INBOX).deleted_count, 1);
}

#[test]
fn a_change_is_durable_when_it_is_answered_and_whole_or_absent_before() {
    let mut answered = 0;
    for crash_at in 1..12 {
        let mut bench = filled(2);
        bench.submit(mark(&["new"])).unwrap();
        bench.submit(expunge_second()).unwrap();
        let base = bench.disk.changes();
        bench
            .disk
            .configure(|config| config.crash_at = Some(base + crash_at));
        bench.settle();
        let told = |wanted: fn(&Event) -> bool| bench.events.iter().any(wanted);
        let stored = told(|event| matches!(event, Event::FlagsStored { result: Ok(_), .. }));
        let expunged = told(|event| matches!(event, Event::Expunged { result: Ok(_), .. }));
        answered += u32::from(stored) + u32::from(expunged);
        let mut bench = bench.crash(Crash::PowerCut);
        let found = bench.flags_of("bob", INBOX);
        let marked = found[&1] == (SEEN, vec!["new".to_owned()]);
        assert!(marked || found[&1] == (0, vec![]), "half of it: {found:?}");
        assert!(marked || !stored);
        assert!(!found.contains_key(&2) || !expunged);
        assert_eq!(
            bench.status("bob", INBOX).keywords.len(),
            usize::from(marked)
        );
    }
    assert!(answered > 0);
}

#[test]
fn a_change_is_not_seen_before_it_is_durable() {
    let mut bench = filled(2);
    bench.submit(mark(&["new"])).unwrap();
    let stored = |bench: &Bench| {
        let is_it = |event: &Event| matches!(event, Event::FlagsStored { .. });
        bench.events.iter().any(is_it)
    };
    let mut looks = 0;
    while !stored(&bench) {
        bench.poll();
        let list = Request::List {
            user: user("bob"),
            mailbox: INBOX,
            after: 0,
            entries_max: 10,
        };
        let ticket = bench.submit(list).unwrap();
        bench.poll();
        let page = bench.events.iter().find_map(|event| match event {
            Event::Listed { ticket: of, result } if *of == ticket => result.as_ref().ok(),
            _ => None,
        });
        if let Some(page) = page.filter(|_| !stored(&bench)) {
            looks += 1;
            assert_eq!((page.entries[0].flags, page.entries[0].keywords), (0, 0));
            assert!(page.status.keywords.is_empty());
        }
        bench.pass_time();
    }
    assert!(looks > 0, "nobody looked in time");
}

fn mark(keywords: &[&str]) -> Request {
    Request::Store {
        user: user("bob"),
        mailbox: INBOX,
        uids: uids(&[1]),
        op: FlagOp::Add,
        flags: flags(SEEN, keywords),
        unchanged_since: None,
    }
}

fn expunge_second() -> Request {
    Request::Expunge {
        user: user("bob"),
        mailbox: INBOX,
        uids: uids(&[2]),
        which: Which::All,
    }
}

#[test]
fn many_changes_of_one_user_are_taken_in_their_order() {
    let mut bench = filled(3);
    for number in 0..40u32 {
        let op = if number % 2 == 0 {
            FlagOp::Add
        } else {
            FlagOp::Remove
        };
        bench
            .submit(Request::Store {
                user: user("bob"),
                mailbox: INBOX,
                uids: UidSet::all(),
                op,
                flags: Flags::system(SEEN),
                unchanged_since: None,
            })
            .unwrap();
        bench.append(
            &["bob"],
            100 + u64::from(number),
            &message(100 + u64::from(number), 200),
        );
    }
    bench.settle();
    let found = bench.flags_of("bob", INBOX);
    assert_eq!(found.len(), 43);
    let modseqs: Vec<_> = bench
        .events
        .iter()
        .filter_map(|event| match event {
            Event::FlagsStored { result, .. } => Some(result.as_ref().unwrap().modseq),
            _ => None,
        })
        .collect();
    assert_eq!(modseqs.len(), 40);
    assert!(modseqs.is_sorted());
    assert!(found.range(..=3).all(|(_, (flags, _))| *flags == 0));
    let report = bench.check();
    assert!(report.is_sound(), "{:?}", report.findings);
}

#[test]
fn a_mailbox_has_64_keywords_and_no_more() {
    let mut bench = filled(1);
    for number in 0..KEYWORDS_MAX {
        let word = format!("k{number}");
        bench
            .store("bob", INBOX, uids(&[1]), FlagOp::Add, flags(0, &[&word]))
            .unwrap();
    }
    let one_more = bench.store("bob", INBOX, uids(&[1]), FlagOp::Add, flags(0, &["more"]));
    assert_eq!(one_more.unwrap_err(), Refused::Limit(Limit::Keywords));
    let known = bench.store(
        "bob",
        INBOX,
        uids(&[1]),
        FlagOp::Replace,
        flags(0, &["K63"]),
    );
    assert_eq!(known.unwrap().uids, uids(&[1]));
    let bad = bench.store(
        "bob",
        INBOX,
        uids(&[1]),
        FlagOp::Add,
        flags(0, &["two words"]),
    );
    assert_eq!(bad.unwrap_err(), Refused::BadKeyword);
    in_every_state(bench, |bench| {
        assert_eq!(
            bench.flags_of("bob", INBOX)[&1],
            (0, vec!["k63".to_owned()])
        );
    });
}

#[test]
fn copies_keep_bytes_flags_keywords_date_and_guid() {
    let mut bench = filled(4);
    bench
        .store(
            "bob",
            INBOX,
            uids(&[2]),
            FlagOp::Add,
            flags(SEEN | ANSWERED, &["a", "b"]),
        )
        .unwrap();
    let archive = bench.create("bob", "Archive").unwrap();
    bench
        .store("bob", INBOX, uids(&[3]), FlagOp::Add, flags(0, &["b"]))
        .unwrap();
    let copied = bench
        .copy("bob", INBOX, uids(&[2, 3, 77]), archive)
        .unwrap();
    let pairs: Vec<_> = copied
        .pairs
        .iter()
        .map(|(a, b)| (a.value(), b.value()))
        .collect();
    assert_eq!(pairs, [(2, 1), (3, 2)]);
    assert!(copied.failed.is_empty());
    in_every_state(bench, |bench| {
        assert_eq!(bench.uids_of("bob", INBOX), [1, 2, 3, 4]);
        let found = bench.flags_of("bob", archive);
        assert_eq!(
            found[&1],
            (SEEN | ANSWERED, vec!["a".to_owned(), "b".to_owned()])
        );
        assert_eq!(found[&2], (0, vec!["b".to_owned()]));
        assert_eq!(bench.text_of("bob", archive, 1), message(2, 300));
        let there = bench.list_of("bob", archive).unwrap();
        let here = bench.list_of("bob", INBOX).unwrap();
        assert_eq!(there.entries[0].guid, here.entries[1].guid);
        assert_eq!(
            there.entries[0].internal_date,
            here.entries[1].internal_date
        );
        assert_eq!(there.entries[0].cache, here.entries[1].cache);
        assert_eq!(there.status.uidvalidity, copied.uidvalidity);
    });
}

#[test]
fn a_move_takes_messages_from_one_mailbox_to_the_other() {
    let mut bench = filled(40);
    bench.checkpoint();
    for number in 41..=60 {
        bench.deliver(&["bob"], number, &message(number, 900));
    }
    let moved = bench
        .move_to("bob", INBOX, UidSet::range(2, 60), SENT)
        .unwrap();
    assert_eq!(moved.pairs.len(), 59);
    in_every_state(bench, |bench| {
        assert_eq!(bench.uids_of("bob", INBOX), [1]);
        assert_eq!(bench.uids_of("bob", SENT), (1..=59).collect::<Vec<_>>());
        assert_eq!(bench.text_of("bob", SENT, 1), message(2, 300));
        assert_eq!(bench.text_of("bob", SENT, 59), message(60, 900));
        assert_eq!(bench.status("bob", INBOX).messages_count, 1);
    });
}

#[test]
fn a_message_is_copied_and_moved_within_its_mailbox() {
    let mut bench = filled(2);
    bench.copy("bob", INBOX, uids(&[1]), INBOX).unwrap();
    bench.move_to("bob", INBOX, uids(&[2]), INBOX).unwrap();
    in_every_state(bench, |bench| {
        assert_eq!(bench.uids_of("bob", INBOX), [1, 3, 4]);
        assert_eq!(bench.text_of("bob", INBOX, 3), message(1, 300));
        assert_eq!(bench.text_of("bob", INBOX, 4), message(2, 300));
    });
}

#[test]
fn large_messages_are_copied_by_link_and_their_files_go_with_them() {
    for checkpoint in [false, true] {
        let mut bench = Bench::new(ShardConfig::tiny());
        let text = message(1, 20_000);
        bench.deliver_large(&["bob"], 1, &text);
        if checkpoint {
            bench.checkpoint();
        }
        bench.copy("bob", INBOX, uids(&[1]), SENT).unwrap();
        bench.move_to("bob", SENT, uids(&[1]), INBOX).unwrap();
        bench.expunge("bob", INBOX, uids(&[1])).unwrap();
        in_every_state(bench, |bench| {
            assert_eq!(bench.uids_of("bob", INBOX), [2]);
            assert!(bench.uids_of("bob", SENT).is_empty());
            let first = bench.fetch_of("bob", INBOX, 2).unwrap();
            // Each CRLF is stored as LF, and one line is quoted.
            assert_eq!(first.stored_len, text.len() as u64 - lines(&text) + 1);
        });
    }
}

#[test]
fn the_file_of_an_expunged_large_message_is_removed() {
    // Before its first checkpoint, after it, and over a crash at each of these moments.
    for (first, second, crash) in [
        (false, true, false),
        (true, true, false),
        (false, true, true),
        (true, true, true),
        (true, false, true),
    ] {
        let mut bench = Bench::new(ShardConfig::tiny());
        bench.deliver_large(&["bob"], 1, &message(1, 20_000));
        if first {
            bench.checkpoint();
        }
        bench.expunge("bob", INBOX, uids(&[1])).unwrap();
        if crash {
            bench = bench.crash(Crash::PowerCut);
        }
        if second {
            bench.checkpoint();
        }
        // Where the checkpoint did not know the name, loading the user does.
        assert!(bench.uids_of("bob", INBOX).is_empty());
        bench.poll();
        bench.pass_time();
        bench.poll();
        let left = large_files(&bench, "bob");
        assert!(left.is_empty(), "{first} {second} {crash}: {left:?}");
        let report = bench.check();
        assert!(report.is_sound(), "{:?}", report.findings);
        let mut bench = bench.crash(Crash::PowerCut);
        bench.checkpoint();
        assert!(bench.uids_of("bob", INBOX).is_empty());
    }
}

#[test]
fn what_names_nothing_is_refused_for_its_reason() {
    let mut bench = filled(1);
    let add = |bench: &mut Bench, name: &str, mailbox| {
        bench.store(
            name,
            mailbox,
            UidSet::all(),
            FlagOp::Add,
            Flags::system(SEEN),
        )
    };
    assert_eq!(
        add(&mut bench, "eve", INBOX).unwrap_err(),
        Refused::NoSuchUser
    );
    let none = MailboxId::new(77);
    assert_eq!(
        add(&mut bench, "bob", none).unwrap_err(),
        Refused::NoSuchMailbox
    );
    assert_eq!(
        bench.expunge("bob", none, UidSet::all()).unwrap_err(),
        Refused::NoSuchMailbox
    );
    let to = bench.copy("bob", INBOX, UidSet::all(), none).unwrap_err();
    assert_eq!(to, Refused::NoSuchMailbox);
    let empty = bench.expunge("bob", INBOX, UidSet::none()).unwrap();
    assert!(empty.uids.is_empty());
    assert_eq!(
        bench.copy("bob", INBOX, uids(&[9]), SENT).unwrap().pairs,
        []
    );
    assert_eq!(
        bench.changes("eve", INBOX, 0, (0, 9)).unwrap_err(),
        Refused::NoSuchUser
    );
    assert_eq!(
        bench.snapshot("bob", none).unwrap_err(),
        Refused::NoSuchMailbox
    );
    assert!(bench.shard.metrics().changes_refused >= 4);
}

#[test]
fn a_full_disk_can_be_emptied() {
    let mut bench = filled(3);
    bench.checkpoint();
    bench
        .disk
        .configure(|config| config.capacity_bytes = Some(0));
    bench.append(&["bob"], 8, &message(8, 500));
    bench.settle();
    bench.submit(Request::Checkpoint).unwrap();
    for _ in 0..100 {
        bench.poll();
        bench.pass_time();
    }
    let copy = Request::Copy {
        user: user("bob"),
        from: INBOX,
        uids: uids(&[1]),
        to: SENT,
        quota: QuotaLimits::default(),
    };
    let copy = bench.submit(copy).unwrap();
    let expunge = Request::Expunge {
        user: user("bob"),
        mailbox: INBOX,
        uids: uids(&[1]),
        which: Which::All,
    };
    let expunge = bench.submit(expunge).unwrap();
    for _ in 0..100 {
        bench.poll();
        bench.pass_time();
    }
    assert_eq!(bench.copied(copy).unwrap_err(), Refused::DiskFull);
    let done = bench.events.iter().any(
        |event| matches!(event, Event::Expunged { ticket, result: Ok(_) } if *ticket == expunge),
    );
    assert!(done, "an expunge needs no room");
    bench.disk.configure(|config| config.capacity_bytes = None);
    bench.settle();
    bench.checkpoint();
    assert!(bench.check().is_sound());
}

#[test]
fn damage_in_one_message_costs_a_copy_that_message_only() {
    let mut bench = filled(3);
    bench.checkpoint();
    let path = dir("bob").segment(1);
    let bytes = bench.disk.read(&path).unwrap();
    let place = bytes.windows(6).position(|part| part == b"mail 2").unwrap();
    assert!(bench.disk.flip(&path, place as u64, 0x20));
    let moved = bench.move_to("bob", INBOX, UidSet::all(), SENT).unwrap();
    assert_eq!(moved.pairs.len(), 2);
    assert_eq!(moved.failed.len(), 1);
    assert!(matches!(&moved.failed[0], (uid, Refused::Damaged(_)) if uid.value() == 2));
    assert_eq!(bench.uids_of("bob", INBOX), [2]);
}

#[test]
fn a_mailbox_filled_and_emptied_many_times_keeps_its_numbers_right() {
    let mut bench = Bench::new(ShardConfig::tiny());
    let mut highest = 0;
    for round in 0..60u64 {
        for number in 0..5 {
            let number = round * 5 + number;
            bench.deliver(&["bob"], number, &message(number, 200));
        }
        bench
            .store(
                "bob",
                INBOX,
                UidSet::all(),
                FlagOp::Add,
                Flags::system(DELETED),
            )
            .unwrap();
        bench
            .expunge_which("bob", INBOX, UidSet::all(), Which::Deleted)
            .unwrap();
        let status = bench.status("bob", INBOX);
        assert_eq!(
            (status.messages_count, status.bytes, status.deleted_count),
            (0, 0, 0)
        );
        assert_eq!(u64::from(status.uidnext), (round + 1) * 5 + 1);
        assert!(status.highest_modseq > highest);
        highest = status.highest_modseq;
        if round % 7 == 3 {
            bench = bench.crash(Crash::PowerCut);
        }
    }
    bench.checkpoint();
    assert!(bench.check().is_sound());
}

#[test]
fn a_user_whose_first_message_is_on_its_way_is_unknown_and_not_damaged() {
    for steps in 0..40 {
        let mut bench = Bench::new(ShardConfig::tiny());
        bench.append(&["bob"], 1, &message(1, 300));
        for _step in 0..steps {
            bench.poll();
            bench.pass_time();
        }
        match bench.list("bob") {
            Err(Refused::NoSuchUser) => {}
            found => assert_eq!(found.unwrap().entries.len(), 1, "after {steps} steps"),
        }
        let alarm = |event: &Event| matches!(event, Event::Notice(_));
        assert!(!bench.events.iter().any(alarm), "after {steps} steps");
        assert_eq!(bench.list("bob").unwrap().entries.len(), 1);
    }
}

#[test]
fn an_index_larger_than_all_may_be_is_read_once_for_one_reader() {
    let mut bench = Bench::new(ShardConfig::tiny());
    for number in 0..200 {
        bench.deliver(&["bob"], number, &message(number, 300));
    }
    bench.deliver(&["eve"], 1_000, &message(1_000, 300));
    bench.checkpoint();
    let mut steps_of = |name: &str| {
        let before = bench.disk.steps();
        bench.list(name).expect("it has mail");
        bench.disk.steps() - before
    };
    assert!(steps_of("bob") > 0, "it was not in memory");
    for _page in 0..3 {
        assert_eq!(steps_of("bob"), 0, "a page was read from disk");
    }
    // The next user's takes its place.
    assert!(steps_of("eve") > 0);
    assert!(steps_of("bob") > 0, "both were in memory");
}
