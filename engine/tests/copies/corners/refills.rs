//! The same of catching up.

use super::*;

/// T1: an absent user whose folders fill the frame but for less than what makes its first mailboxes.
#[test]
fn room_for_an_absent_user() {
    let mut primary = primary_with(1, 1);
    let all = statuses(&mut primary);
    for count in (1..200).step_by(7) {
        let mut many = all.clone();
        for number in 0..count {
            let mut one = all[0].clone();
            one.mailbox = MailboxId::new(1_000 + number);
            one.uidvalidity = UidValidity::new(1_000 + number);
            one.name = format!("box{number}");
            many.push(one);
        }
        // The frame has to be empty of others: each with a copy of its own.
        let mut copy = open(2);
        follow(&mut copy, partition(), 1);
        match copy.ask(request(refill(many, 1))) {
            Some(Event::Refilled { result: Ok(_), .. }) => {}
            other => panic!("{count}: {other:?}"),
        }
    }
}

#[test]
fn resume_at_the_end_of_numbers() {
    let mut copy = open(2);
    follow(&mut copy, partition(), 1);
    let refused = copy.submit(resume(u64::MAX, 5));
    assert!(matches!(refused, Err(Refused::Diverged { .. })));
    lead(&mut copy, partition(), 2, Copy::None);
}

#[test]
fn an_expunge_is_not_older_than_at_the_primary() {
    let mut primary = primary_with(1, 8);
    let mut copy = open(2);
    follow(&mut copy, partition(), 1);
    refill::catch_up(&mut primary, &mut copy, at(), &[ANN], Earlier::Unknown).expect("brought");
    primary.ask(mark_seen(user(ANN), MailboxId::INBOX));
    // What a client has seen.
    let since = statuses(&mut primary)[0].highest_modseq;
    let expunge = Request::Expunge {
        user: user(ANN),
        mailbox: MailboxId::INBOX,
        uids: [(1, 1)].into_iter().collect(),
        which: Which::All,
    };
    primary.ask(expunge);
    let there = primary
        .changes(ANN, MailboxId::INBOX, since, (0, 100))
        .expect("there");
    assert_eq!(there.vanished.ranges().len(), 1);
    refill::catch_up(&mut primary, &mut copy, at(), &[ANN], Earlier::Whole).expect("brought");
    let here = copy
        .changes(ANN, MailboxId::INBOX, since, (0, 100))
        .expect("there");
    assert_eq!(here.vanished, there.vanished, "a client never hears of it");
}

#[test]
fn a_message_above_the_primarys() {
    let mut primary = primary_with(1, 1);
    let mut copy = primary_with(2, 1);
    copy.deliver(&[ANN], 77, &message(77, 300));
    for number in 10..20 {
        let body = Flags {
            system: SEEN,
            keywords: Vec::new(),
        };
        let _ = number;
        for op in [FlagOp::Add, FlagOp::Remove] {
            primary.ask(Request::Store {
                user: user(ANN),
                mailbox: MailboxId::INBOX,
                uids: UidSet::all(),
                op,
                flags: body.clone(),
                unchanged_since: None,
            });
        }
    }
    follow(&mut copy, partition(), 2);
    lead(&mut primary, partition(), 2, Copy::None);
    let result = refill::catch_up(
        &mut primary,
        &mut copy,
        (partition(), Epoch::new(2)),
        &[ANN],
        Earlier::Unknown,
    );
    let (a, b) = (
        primary.list(ANN).unwrap().entries.len(),
        copy.list(ANN).unwrap().entries.len(),
    );
    assert!(result.is_err() || a == b, "{a} {b}");
}

#[test]
fn a_refill_of_a_held_box() {
    // Both hold mail for the partition; who carries the users of the primary over carries its box too.
    let mut primary = open(1);
    let now = primary.now();
    primary.shard.set_copy(now, partition(), Copy::Follows);
    let mut copy = open(2);
    follow(&mut copy, partition(), 1);
    for (bench, number) in [(&mut primary, 1), (&mut copy, 2)] {
        let hold = Request::Hold(Bench::group(
            &[ANN],
            number,
            Body::Small(prepare(&message(number, 300))),
        ));
        bench.ask(hold);
    }
    assert_eq!(held(&mut copy, partition()).len(), 1);
    let key = held_box(partition());
    let Some(Event::Mailboxes { result, .. }) =
        primary.ask(Request::Mailboxes { user: key.clone() })
    else {
        panic!()
    };
    let mut all = result.expect("there");
    all.truncate(2);
    for one in &mut all {
        one.highest_modseq = 0;
    }
    let here = copy.ask(Request::Mailboxes { user: key.clone() });
    let Some(Event::Mailboxes { result, .. }) = here else {
        panic!()
    };
    for (one, here) in all.iter_mut().zip(result.expect("there")) {
        one.uidvalidity = here.uidvalidity;
    }
    let refused = copy.submit(Request::Refill {
        user: key,
        state: Box::new(refill(all, 1)),
    });
    assert_eq!(refused, Err(Refused::NoSuchUser));
    assert_eq!(
        held(&mut copy, partition()).len(),
        1,
        "acknowledged as held, and gone"
    );
}

/// A user whose mailboxes need more than one frame.
#[test]
fn many_folders() {
    let mut primary = primary_with(1, 1);
    for number in 0..120 {
        primary.create(ANN, &format!("box{number}")).expect("made");
    }
    let mut copy = open(2);
    follow(&mut copy, partition(), 1);
    refill::catch_up(&mut primary, &mut copy, at(), &[ANN], Earlier::Unknown).expect("brought");
}

#[test]
fn many_messages_went() {
    let mut primary = primary_with(1, 150);
    let mut copy = open(2);
    follow(&mut copy, partition(), 1);
    refill::catch_up(&mut primary, &mut copy, at(), &[ANN], Earlier::Unknown).expect("brought");
    primary.ask(Request::Expunge {
        user: user(ANN),
        mailbox: MailboxId::INBOX,
        uids: UidSet::all(),
        which: Which::All,
    });
    refill::catch_up(&mut primary, &mut copy, at(), &[ANN], Earlier::Unknown)
        .expect("brought again");
}

/// A copy that was led when it should not have been, and has more than messages to show for it.
#[test]
fn flags_that_the_primary_never_had() {
    let mut primary = primary_with(1, 2);
    let mut copy = open(2);
    follow(&mut copy, partition(), 1);
    refill::catch_up(&mut primary, &mut copy, at(), &[ANN], Earlier::Unknown).expect("brought");
    lead(&mut copy, partition(), 2, Copy::None);
    copy.ask(mark_seen(user(ANN), MailboxId::INBOX));
    for number in 3..12 {
        primary.deliver(&[ANN], number, &message(number, 300));
    }
    lead(&mut primary, partition(), 3, Copy::None);
    follow(&mut copy, partition(), 3);
    let at = (partition(), Epoch::new(3));
    let result = refill::catch_up(&mut primary, &mut copy, at, &[ANN], Earlier::Unknown);
    let why = result.expect_err("it is another past");
    assert!(why.contains("Diverged"), "{why}");
}

/// Another partition's primary says nothing: what it sent waits, and a copy of this one is brought up
/// all the same, and stays so, whatever a restart makes of the log and a checkpoint of the restart.
#[test]
fn another_primary_is_silent() {
    let mut names = ["bob", "cid", "dot", "eve"].into_iter();
    let other = names.find(|name| user(name).partition() != partition());
    let other = other.expect("four partitions");
    let theirs = primary_waiting(6, user(other).partition(), 1, &[other, other], 50);
    let (mut copy, _, more) = first_and_more();
    follow(&mut copy, user(other).partition(), 1);
    replicate(&mut copy, &theirs, 0);
    // Counts, but behind what waits, so that no frame can say so.
    replicate(&mut copy, &more, u64::MAX);
    let last = last_of(&more);
    let waiting = copy.shard.unconfirmed_count();
    assert_eq!(waiting, usize::try_from(last_of(&theirs)).expect("a few"));
    let mut primary = primary_with(1, 3);
    let bring = |primary: &mut Bench, copy: &mut Bench, count: u64| {
        let from = primary.list(ANN).expect("it is there").entries.len() as u64;
        for number in from + 1..=from + count {
            primary.deliver(&[ANN], number, &message(number, 300));
        }
        let tail = primary.shard.partition_tail(partition()).expect("its own");
        refill::catch_up(primary, copy, at(), &[ANN], Earlier::Unknown).expect("brought");
        assert_eq!(shown(copy), shown(primary));
        tail.shown_pseq
    };
    // A pass that ends early.
    primary.deliver(&[ANN], 4, &message(4, 300));
    let names = [ANN].into_iter();
    let epoch = Epoch::new(1);
    refill::refill_users(&mut primary, &mut copy, epoch, names, Earlier::Unknown).expect("brought");
    let seen = copy.mailbox(ANN);
    assert_eq!(seen.len(), 4);
    let mut copy = copy.crash(Crash::PowerCut);
    assert_eq!(copy.mailbox(ANN), seen);
    assert_eq!(copy.shard.unconfirmed_count(), waiting);
    follow(&mut copy, partition(), 1);
    let mut place = bring(&mut primary, &mut copy, 3);
    assert!(place > last);
    for round in 0..6 {
        if round % 2 == 1 {
            copy.checkpoint();
        }
        let seen = copy.mailbox(ANN);
        copy = copy.crash([Crash::PowerCut, Crash::Kill][round % 2]);
        assert!(copy.check().is_sound(), "{:?}", copy.check().findings);
        assert_eq!(copy.mailbox(ANN), seen, "round {round}");
        let tail = copy.shard.partition_tail(partition()).expect("its own");
        assert_eq!((tail.shown_pseq, tail.waiting.len()), (place, 0));
        assert_eq!(copy.shard.unconfirmed_count(), waiting, "round {round}");
        follow(&mut copy, partition(), 1);
        if round > 2 {
            place = bring(&mut primary, &mut copy, 2);
        }
    }
    // At last it speaks.
    replicate(&mut copy, &theirs, u64::MAX);
    quiet(&mut copy);
    copy.checkpoint();
    let copy = copy.crash(Crash::PowerCut);
    assert_eq!(copy.shard.unconfirmed_count(), 0);
    assert!(copy.check().is_sound(), "{:?}", copy.check().findings);
}

#[test]
fn numbers_that_no_primary_gives_are_refused() {
    let mut primary = primary_with(1, 1);
    let all = statuses(&mut primary);
    let with = |change: &dyn Fn(&mut MailboxStatus)| {
        let mut all = all.clone();
        change(&mut all[1]);
        all
    };
    let odd = [
        with(&|one| one.mailbox = MailboxId::new(0)),
        with(&|one| one.mailbox = MailboxId::INBOX),
        with(&|one| one.uidvalidity = UidValidity::new(0)),
        with(&|one| one.uidvalidity = UidValidity::new(u32::MAX)),
        with(&|one| one.uidnext = 0),
        with(&|one| one.uidnext = u32::MAX),
        with(&|one| one.highest_modseq = u64::MAX),
    ];
    for (number, mailboxes) in odd.into_iter().enumerate() {
        let mut copy = open(2);
        follow(&mut copy, partition(), 1);
        let answer = copy.ask(request(refill(mailboxes, 1)));
        let refused = matches!(
            answer,
            Some(Event::Refilled {
                result: Err(Refused::Diverged { .. }),
                ..
            })
        );
        assert!(refused, "{number}: {answer:?}");
    }
}
