//! The ledger against faults that are made up.

use super::*;

const SEED: u64 = 3;

/// Three messages, none of them empty, to users 0 and 1.
fn ledger() -> (Ledger, Vec<u64>) {
    let serials: Vec<u64> = (0..100)
        .filter(|serial| !letter::is_empty(SEED, *serial))
        .take(3)
        .collect();
    let mut ledger = Ledger::new(SEED, 2);
    for &serial in &serials {
        ledger.sent(serial, &[0, 1]);
        ledger.acknowledged(serial, 0, Duplicate::No);
    }
    (ledger, serials)
}

fn find(ledger: &mut Ledger, user: usize, uid: u32, serial: u64) {
    ledger.found(user, uid, &letter::content(SEED, serial));
}

#[test]
fn whole_round_without_fault_leaves_no_violation() {
    let (mut ledger, serials) = ledger();
    for (uid, &serial) in (1..).zip(&serials) {
        find(&mut ledger, 0, uid, serial);
    }
    find(&mut ledger, 1, 1, serials[2]);
    ledger.after_restart();
    assert_eq!((ledger.doubtful, ledger.doubtful_found), (3, 1));
    let retries = ledger.to_retry(&mut fastrand::Rng::with_seed(1));
    assert_eq!(retries.len(), 3);
    for &serial in &serials {
        ledger.retried(serial, 0, Duplicate::Yes);
        let known = serial == serials[2];
        ledger.retried(
            serial,
            1,
            if known { Duplicate::Yes } else { Duplicate::No },
        );
    }
    find(&mut ledger, 1, 2, serials[0]);
    find(&mut ledger, 1, 5, serials[1]);
    ledger.counted(0, 9, 3);
    ledger.counted(1, 9, 3);
    ledger.after_retries();
    assert!(ledger.violations.is_none(), "{:?}", ledger.violations);
}

#[test]
fn each_fault_is_seen() {
    let (mut lost, serials) = ledger();
    find(&mut lost, 0, 1, serials[0]);
    find(&mut lost, 0, 2, serials[2]);
    lost.after_restart();
    assert_eq!(lost.violations.lost, 1);

    let (mut doubled, serials) = ledger();
    find(&mut doubled, 0, 1, serials[0]);
    find(&mut doubled, 0, 2, serials[0]);
    assert_eq!(doubled.violations.doubled, 1);

    let (mut damaged, serials) = ledger();
    let mut bytes = letter::content(SEED, serials[0]);
    *bytes.last_mut().unwrap() ^= 1;
    damaged.found(0, 1, &bytes);
    damaged.found(0, 2, b"no mark at all");
    assert_eq!(damaged.violations.damaged, 2);

    let (mut order, serials) = ledger();
    find(&mut order, 0, 1, serials[1]);
    find(&mut order, 0, 2, serials[0]);
    find(&mut order, 0, 3, serials[2]);
    order.after_restart();
    assert_eq!(order.violations.other, 1, "{:?}", order.violations);

    let (mut uids, serials) = ledger();
    find(&mut uids, 0, 2, serials[0]);
    find(&mut uids, 0, 2, serials[1]);
    uids.counted(0, 9, 3);
    uids.counted(0, 10, 2);
    assert_eq!(uids.violations.other, 3, "{:?}", uids.violations);

    let (mut again, serials) = ledger();
    find(&mut again, 0, 1, serials[0]);
    again.retried(serials[0], 0, Duplicate::No);
    again.retried(serials[1], 0, Duplicate::Yes);
    assert_eq!(again.violations.other, 2);
    let known = again.inboxes()[0].known[0];
    again.read_again(0, known, None);
    again.read_again(0, known, Some(b"x"));
    assert_eq!(again.violations.lost, 1);
    assert_eq!(again.violations.damaged, 1);
}

#[test]
fn empty_messages_are_counted() {
    let serial = (0..1_000)
        .find(|serial| letter::is_empty(SEED, *serial))
        .unwrap();
    let mut ledger = Ledger::new(SEED, 1);
    ledger.sent(serial, &[0]);
    ledger.acknowledged(serial, 0, Duplicate::No);
    ledger.counted(0, 1, 0);
    assert_eq!(ledger.violations.lost, 1);
    ledger.found(0, 1, b"");
    ledger.found(0, 2, b"");
    ledger.counted(0, 1, 2);
    assert_eq!(ledger.violations.doubled, 1);
    assert!(ledger.to_retry(&mut fastrand::Rng::with_seed(1)).is_empty());
}

/// The marks of a disk at hand.
fn recorded() -> (Ledger, Arc<AtomicU64>) {
    let mut ledger = Ledger::new(SEED, 2);
    let marks = Arc::new(AtomicU64::new(0));
    ledger.marks = Some(Arc::clone(&marks));
    (ledger, marks)
}

#[test]
fn crash_between_answers_makes_doubt_of_the_later_and_nothing_of_the_unsent() {
    let (mut ledger, marks) = recorded();
    let (_, serials) = self::ledger();
    for (mark, &serial) in (10..).step_by(10).zip(&serials) {
        marks.store(mark, Ordering::Release);
        ledger.sent(serial, &[0]);
        marks.store(mark + 5, Ordering::Release);
        ledger.acknowledged(serial, 0, Duplicate::No);
    }
    // The second was sent and not answered, the third was not sent.
    let mut fork = ledger.fork_at(24);
    assert!(fork.is_due(serials[0]));
    assert!(!fork.is_due(serials[1]) && ledger.is_due(serials[1]));
    find(&mut fork, 0, 1, serials[0]);
    fork.after_restart();
    assert!(fork.violations.is_none());
    assert_eq!((fork.doubtful, fork.doubtful_found), (1, 0));
    find(&mut fork, 0, 2, serials[2]);
    assert_eq!(fork.violations.other, 1, "from the future");

    // An answer at the cut rests on what is before it.
    let mut fork = ledger.fork_at(25);
    find(&mut fork, 0, 1, serials[0]);
    fork.after_restart();
    assert_eq!(fork.violations.lost, 1);
    ledger.absorb(&fork, "try 1");
    assert_eq!(ledger.violations.lost, 1);
    assert!(ledger.violations.sentences[0].starts_with("try 1: user 0"));

    let fork = ledger.fork_at(24);
    ledger.continue_from(fork);
    assert!(!ledger.is_due(serials[1]));
    assert_eq!((ledger.acknowledged, ledger.violations.lost), (3, 1));
    ledger.forget_store();
    assert!(!ledger.is_due(serials[0]));
}

#[test]
fn message_is_due_when_every_recipient_has_the_answer() {
    let (_, serials) = ledger();
    let mut ledger = Ledger::new(SEED, 2);
    ledger.sent(serials[0], &[0, 1]);
    ledger.acknowledged(serials[0], 0, Duplicate::No);
    assert!(!ledger.is_due(serials[0]), "its bytes lie in two logs");
    ledger.acknowledged(serials[0], 1, Duplicate::No);
    assert!(ledger.is_due(serials[0]));
}

#[test]
fn empty_messages_are_counted_up_to_the_crash() {
    let mut empty = (0..10_000).filter(|serial| letter::is_empty(SEED, *serial));
    let (first, second) = (empty.next().unwrap(), empty.next().unwrap());
    let (mut ledger, marks) = recorded();
    ledger.sent(first, &[0, 1]);
    marks.store(5, Ordering::Release);
    ledger.acknowledged(first, 0, Duplicate::No);
    ledger.acknowledged(first, 1, Duplicate::No);
    ledger.sent(second, &[0]);
    marks.store(9, Ordering::Release);
    ledger.acknowledged(second, 0, Duplicate::No);

    let mut early = ledger.fork_at(4);
    early.counted(0, 1, 0);
    early.counted(1, 1, 0);
    assert!(early.violations.is_none());
    let mut middle = ledger.fork_at(5);
    middle.counted(0, 1, 0);
    assert_eq!(middle.violations.lost, 1);
    let mut late = ledger.fork_at(9);
    late.counted(0, 1, 0);
    assert_eq!(late.violations.lost, 2);
}
