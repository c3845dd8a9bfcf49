//! What mail clients lean on: appends with flags, quotas, the change feed, watches, snapshots.
mod testkit;

use ringpost_engine::config::ShardConfig;
use ringpost_engine::format::info::{FLAGGED, SEEN};
use ringpost_engine::io::sim::Crash;
use ringpost_engine::request::{
    Admit, Body, Dedupe, FlagOp, Flags, Horizon, More, Outcome, QuotaLimits, Refused, Request,
    UidSet,
};
use ringpost_netproto::id::MailboxId;
use testkit::client::{filled, flags, in_every_state, large_files, uids};
use testkit::{Bench, message, prepare, user};

const INBOX: MailboxId = MailboxId::INBOX;
const SENT: MailboxId = MailboxId::SENT;

#[test]
fn a_client_appends_into_any_mailbox_with_flags_and_date() {
    let mut bench = filled(1);
    let drafts = bench.create("bob", "Drafts").unwrap();
    let given = flags(SEEN | FLAGGED, &["$Label1"]);
    let text = message(7, 150);
    for _ in 0..2 {
        // Equal bytes under an equal guid are two messages here.
        let outcome = bench.client_append(
            "bob",
            drafts,
            (7, &text),
            given.clone(),
            QuotaLimits::default(),
        );
        assert!(matches!(outcome, Outcome::Stored { .. }), "{outcome:?}");
    }
    let bad = flags(0, &["a b"]);
    let outcome = bench.client_append("bob", drafts, (8, &text), bad, QuotaLimits::default());
    assert_eq!(outcome, Outcome::Refused(Refused::BadKeyword));
    in_every_state(bench, |bench| {
        let found = bench.flags_of("bob", drafts);
        assert_eq!(found.len(), 2);
        assert_eq!(found[&1], (SEEN | FLAGGED, vec!["$Label1".to_owned()]));
        assert_eq!(bench.text_of("bob", drafts, 2), text);
        let page = bench.list_of("bob", drafts).unwrap();
        assert_eq!(
            page.entries[0].internal_date.value(),
            1_000_000_000_000_000_007
        );
        assert_eq!(page.status.unseen_count, 0);
    });
}

/// An append that is sent again, since its connection was cut, is there once; whether the first copy
/// is durable or on its way. Ids that callers make do not push out those of deliveries.
#[test]
fn an_append_with_a_recent_id_is_stored_once() {
    let mut bench = filled(1);
    let drafts = bench.create("bob", "Drafts").unwrap();
    let text = message(7, 150);
    let append = |bench: &mut Bench, number, mailbox| {
        let how = (QuotaLimits::default(), Dedupe::Recent);
        bench.client_append_of(("bob", mailbox), (number, &text), Flags::default(), how)
    };
    let tickets = [7, 7, 8].map(|number| append(&mut bench, number, drafts));
    bench.settle();
    let [first, again, other] = tickets.map(|ticket| bench.outcomes(ticket).remove(0));
    let Outcome::Stored {
        uid, uidvalidity, ..
    } = first
    else {
        panic!("{first:?}");
    };
    assert_eq!(uidvalidity, bench.status("bob", drafts).uidvalidity);
    assert!(
        matches!(again, Outcome::Duplicate { uid: of, uidvalidity: valid, .. } if (of, valid) == (uid, uidvalidity)),
        "{again:?}"
    );
    assert!(matches!(other, Outcome::Stored { .. }), "{other:?}");
    for number in 100..100 + 2 * bench.config.dedupe_entries {
        append(&mut bench, number, drafts);
    }
    let later = append(&mut bench, 7, drafts);
    let elsewhere = append(&mut bench, 7, INBOX);
    let delivered = bench.append(&["bob"], 1, &message(1, 300));
    bench.settle();
    let outcome = |ticket| bench.outcomes(ticket).remove(0);
    assert!(matches!(outcome(later), Outcome::Duplicate { .. }));
    assert!(matches!(outcome(elsewhere), Outcome::Stored { .. }));
    assert!(matches!(outcome(delivered), Outcome::Duplicate { .. }));
}

/// Whoever makes ids asks for a message because it did not see it: one that was expunged or moved in the
/// meantime is stored again, and not answered as there.
#[test]
fn an_append_whose_message_went_is_stored_again() {
    let mut bench = filled(1);
    let drafts = bench.create("bob", "Drafts").unwrap();
    let text = message(7, 150);
    let append = |bench: &mut Bench, number| {
        let how = (QuotaLimits::default(), Dedupe::Recent);
        let to = ("bob", drafts);
        let ticket = bench.client_append_of(to, (number, &text), Flags::default(), how);
        bench.settle();
        bench.outcomes(ticket).remove(0)
    };
    for number in [7, 8, 9] {
        let outcome = append(&mut bench, number);
        assert!(matches!(outcome, Outcome::Stored { .. }), "{outcome:?}");
    }
    bench.expunge("bob", drafts, uids(&[2])).unwrap();
    // As the caller did: it reads the index.
    assert_eq!(bench.list_of("bob", drafts).unwrap().entries.len(), 2);
    let again = append(&mut bench, 8);
    assert!(
        matches!(again, Outcome::Stored { uid, .. } if uid.value() == 4),
        "{again:?}"
    );
    for number in [7, 8, 9] {
        let outcome = append(&mut bench, number);
        assert!(matches!(outcome, Outcome::Duplicate { .. }), "{outcome:?}");
    }
}

#[test]
fn the_change_feed_tells_what_came_changed_and_went() {
    let mut bench = filled(6);
    let since = bench.status("bob", INBOX).highest_modseq;
    bench
        .store(
            "bob",
            INBOX,
            uids(&[2, 5]),
            FlagOp::Add,
            Flags::system(SEEN),
        )
        .unwrap();
    bench.expunge("bob", INBOX, uids(&[3, 5])).unwrap();
    bench.deliver(&["bob"], 7, &message(7, 200));
    in_every_state(bench, |bench| {
        let page = bench.changes("bob", INBOX, since, (0, 100)).unwrap();
        let changed: Vec<_> = page.changed.iter().map(|entry| entry.uid.value()).collect();
        assert_eq!(changed, [2, 7]);
        assert_eq!(page.vanished, uids(&[3, 5]));
        assert_eq!(page.horizon, Horizon::Known);
        assert_eq!((page.more, page.upto), (More::No, 7));
        let next = page.status.highest_modseq;
        let page = bench.changes("bob", INBOX, next, (0, 100)).unwrap();
        assert!(page.changed.is_empty() && page.vanished.is_empty());
        // In pages of one.
        let (mut changed, mut vanished, mut after) = (Vec::new(), UidSet::none(), 0);
        loop {
            let page = bench.changes("bob", INBOX, since, (after, 1)).unwrap();
            changed.extend(page.changed.iter().map(|entry| entry.uid.value()));
            vanished = vanished.iter().chain(page.vanished.iter()).collect();
            if page.more == More::No {
                break;
            }
            assert!(page.upto > after, "it must get on");
            after = page.upto;
        }
        assert_eq!(changed, [2, 7]);
        assert_eq!(vanished, uids(&[3, 5]));
    });
}

#[test]
fn a_watch_ends_with_the_first_change() {
    let mut bench = filled(1);
    let sent = bench.watch("bob", Some(SENT), 0);
    let now = bench.status("bob", INBOX).highest_modseq;
    let known = bench.watch("bob", Some(INBOX), now - 1);
    let inbox = bench.watch("bob", Some(INBOX), now);
    let any = bench.watch("bob", None, now);
    let other = bench.watch("nobody", None, 0);
    while bench.woken(other).is_none() {
        bench.poll();
        bench.pass_time();
    }
    assert_eq!(bench.woken(other), Some(Err(Refused::NoSuchUser)));
    assert_eq!(bench.woken(known).unwrap().unwrap().value(), now);
    assert!(bench.woken(inbox).is_none() && bench.woken(any).is_none());
    bench.create("bob", "new").unwrap();
    assert!(bench.woken(any).unwrap().unwrap().value() > now);
    assert!(bench.woken(inbox).is_none());
    let any = bench.woken(any).unwrap().unwrap().value();
    let stored = bench.store("bob", INBOX, uids(&[1]), FlagOp::Add, Flags::system(SEEN));
    assert_eq!(bench.woken(inbox), Some(Ok(stored.unwrap().modseq)));
    assert!(any < bench.status("bob", INBOX).highest_modseq);
    assert!(bench.woken(sent).is_none());
    let now = bench.now();
    bench
        .shard
        .submit(now, Request::Unwatch { watch: sent })
        .unwrap();
    bench.poll();
    assert_eq!(bench.woken(sent), Some(Err(Refused::Cancelled)));
    let new = bench.statuses("bob").unwrap()[2].mailbox;
    let gone = bench.watch("bob", Some(new), 0);
    let kept = bench.watch("bob", Some(SENT), 0);
    bench.delete("bob", new).unwrap();
    assert_eq!(bench.woken(gone), Some(Err(Refused::NoSuchMailbox)));
    assert_eq!(bench.shard.metrics().watches, 1);
    bench.drain();
    assert_eq!(bench.woken(kept), Some(Err(Refused::Stopped)));
}

#[test]
fn a_snapshot_stays_readable_while_others_write() {
    let mut bench = filled(3);
    bench.deliver_large(&["bob"], 4, &message(4, 20_000));
    bench.checkpoint();
    bench.deliver_large(&["bob"], 5, &message(5, 9_000));
    let snapshot = bench.snapshot("bob", INBOX).unwrap();
    assert_eq!(snapshot.uids, UidSet::range(1, 5));
    bench.expunge("bob", INBOX, UidSet::range(2, 5)).unwrap();
    bench
        .store("bob", INBOX, uids(&[1]), FlagOp::Add, Flags::system(SEEN))
        .unwrap();
    bench.deliver(&["bob"], 6, &message(6, 300));
    bench.checkpoint();
    bench.checkpoint();
    assert_eq!(bench.uids_of("bob", INBOX), [1, 6]);
    let page = bench.snapshot_list(&snapshot).unwrap();
    let flags: Vec<_> = page
        .entries
        .iter()
        .map(|e| (e.uid.value(), e.flags))
        .collect();
    assert_eq!(flags, [(1, 0), (2, 0), (3, 0), (4, 0), (5, 0)]);
    assert_eq!(bench.snapshot_text(&snapshot, 3).unwrap(), message(3, 300));
    assert_eq!(
        bench.snapshot_text(&snapshot, 4).unwrap(),
        message(4, 20_000)
    );
    assert_eq!(
        bench.snapshot_text(&snapshot, 5).unwrap(),
        message(5, 9_000)
    );
    assert_eq!(
        bench.snapshot_text(&snapshot, 6),
        Err(Refused::NoSuchMessage)
    );
    assert_eq!(large_files(&bench, "bob").len(), 2);
    bench.snapshot_close(&snapshot);
    for _ in 0..3 {
        bench.poll();
        bench.pass_time();
    }
    assert!(large_files(&bench, "bob").is_empty());
    assert_eq!(
        bench.snapshot_list(&snapshot).unwrap_err(),
        Refused::NoSuchSnapshot
    );
    let report = bench.check();
    assert!(report.is_sound(), "{:?}", report.findings);
}

#[test]
fn quotas_count_what_is_kept_and_what_is_on_its_way() {
    let mut bench = Bench::new(ShardConfig::tiny());
    let text = message(1, 400);
    let size = text.len() as u64;
    let two = QuotaLimits {
        bytes_max: Some(2 * size),
        messages_max: None,
    };
    let one = |bench: &mut Bench| {
        let group = |number| {
            let body = Body::Small(prepare(&text));
            let mut group = Bench::group(&["bob"], number, body);
            group.recipients[0].quota = two;
            group
        };
        let tickets: Vec<_> = (0..4)
            .map(|number| bench.submit(Request::Append(group(number))).unwrap())
            .collect();
        bench.settle();
        let stored = |ticket: &&_| matches!(bench.outcomes(**ticket)[0], Outcome::Stored { .. });
        tickets.iter().filter(stored).count()
    };
    assert_eq!(one(&mut bench), 2, "four in one turn, room for two");
    let over = Refused::OverQuota {
        bytes: 2 * size,
        messages: 2,
    };
    let group = Bench::group(&["bob"], 9, Body::Small(prepare(&text)));
    let mut twice = group.clone();
    twice.recipients[0].quota = two;
    let ticket = bench.submit(Request::Append(twice)).unwrap();
    bench.settle();
    assert_eq!(bench.outcomes(ticket), [Outcome::Refused(over.clone())]);
    // A copy counts, a move does not, nor does anything that takes away.
    let copy = Request::Copy {
        user: user("bob"),
        from: INBOX,
        uids: uids(&[1]),
        to: SENT,
        quota: two,
    };
    let ticket = bench.submit(copy).unwrap();
    bench.settle();
    assert_eq!(bench.copied(ticket).unwrap_err(), over);
    bench.move_to("bob", INBOX, uids(&[1]), SENT).unwrap();
    let mut bench = bench.crash(Crash::PowerCut);
    bench.expunge("bob", SENT, uids(&[1])).unwrap();
    let outcome = |bench: &mut Bench, quota| {
        bench.client_append("bob", INBOX, (20, &text), Flags::default(), quota)
    };
    assert!(matches!(outcome(&mut bench, two), Outcome::Stored { .. }));
    let below = QuotaLimits {
        bytes_max: None,
        messages_max: Some(1),
    };
    assert!(matches!(
        outcome(&mut bench, below),
        Outcome::Refused(Refused::OverQuota { .. })
    ));
    assert_eq!(bench.uids_of("bob", INBOX).len(), 2, "what is there stays");
    bench
        .store(
            "bob",
            INBOX,
            UidSet::all(),
            FlagOp::Add,
            Flags::system(SEEN),
        )
        .unwrap();
    bench.delete("bob", SENT).unwrap();
    bench.expunge("bob", INBOX, UidSet::all()).unwrap();
    assert!(matches!(outcome(&mut bench, below), Outcome::Stored { .. }));
}

#[test]
fn a_recipient_over_quota_is_refused_before_the_bytes_come() {
    let mut bench = filled(2);
    let ask = |size_hint, messages_max| Admit {
        user: user("bob"),
        size_hint,
        quota: QuotaLimits {
            bytes_max: Some(2_000),
            messages_max,
        },
    };
    let now = bench.now();
    assert_eq!(bench.shard.admit(now, &ask(Some(100), None)), Ok(()));
    for over in [ask(Some(1_900), None), ask(None, Some(2))] {
        let refused = bench.shard.admit(now, &over);
        assert!(matches!(
            refused,
            Err(Refused::OverQuota { messages: 2, .. })
        ));
    }
}

#[test]
fn mail_to_one_user_twice_in_a_group_counts_twice() {
    let mut bench = filled(1);
    let body = Body::Small(prepare(&message(2, 100)));
    let mut group = Bench::group(&["bob", "bob"], 2, body);
    group.recipients[1].mailbox = SENT;
    for recipient in &mut group.recipients {
        recipient.quota.messages_max = Some(2);
    }
    let ticket = bench.submit(Request::Append(group)).unwrap();
    bench.settle();
    let outcomes = bench.outcomes(ticket);
    assert!(matches!(outcomes[0], Outcome::Stored { .. }));
    assert!(matches!(
        outcomes[1],
        Outcome::Refused(Refused::OverQuota { .. })
    ));
}
