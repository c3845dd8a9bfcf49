//! A copy that lacks what counts already: its users become what the primary says, then the stream goes
//! on.

use ringpost_engine::config::ShardConfig;
use ringpost_engine::format::info::{FLAGGED, SEEN, SpecialUse};
use ringpost_engine::io::sim::{Crash, SimConfig};
use ringpost_engine::mbox::{View, restore};
use ringpost_engine::request::{
    Body, ChangesPage, Copy, Event, FlagOp, Flags, Given, ListEntry, MailboxChange, MailboxStatus,
    More, Outcome, Refilled, Refused, Replicate, Request, StreamId, UidSet, UserState, Which,
};
use ringpost_netproto::id::{Epoch, MailboxId, Modseq, PartitionId, Uid};

use crate::restart::{asked, quiet};
use crate::testkit::{Bench, empty_disk, message, prepare, user};

const PEER: StreamId = StreamId::new(7);
const ANN: &str = "ann";
/// Mail of so many bytes has a file of its own.
const LARGE_BYTES: usize = 4 << 10;

/// What is known of an earlier pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Earlier {
    /// It ended: the copy has all up to its highest modseqs.
    Whole,
    /// Nothing: messages may have been brought of which others with lower modseqs were not.
    Unknown,
}

/// Brings what a copy lacks of a partition; it follows, and nothing waits there.
pub(crate) fn catch_up(
    primary: &mut Bench,
    copy: &mut Bench,
    (partition, epoch): (PartitionId, Epoch),
    names: &[&str],
    earlier: Earlier,
) -> Result<(), String> {
    let place = |bench: &Bench| {
        let tail = bench.shard.partition_tail(partition).expect("its own");
        (tail.shown_pseq, tail.shown_chain)
    };
    let before = place(primary);
    let of_it = names
        .iter()
        .filter(|name| user(name).partition() == partition);
    let refilled = refill_users(primary, copy, epoch, of_it.copied(), earlier);
    if place(primary) != before {
        return Err("the primary did not stand still".to_owned());
    }
    refilled?;
    let (pseq, chain) = before;
    let resume = Request::Resume {
        partition,
        epoch,
        pseq,
        chain,
    };
    match copy.ask(resume) {
        Some(Event::Resumed { result: Ok(()), .. }) if place(copy) == before => Ok(()),
        None => Err("later".to_owned()),
        other => Err(format!("{partition} does not go on: {other:?}")),
    }
}

/// The first part of it: the stream does not go on yet.
pub(crate) fn refill_users<'a>(
    primary: &mut Bench,
    copy: &mut Bench,
    epoch: Epoch,
    names: impl Iterator<Item = &'a str>,
    earlier: Earlier,
) -> Result<(), String> {
    for name in names {
        let mailboxes = match mailboxes(primary, name) {
            Ok(mailboxes) => mailboxes,
            Err(Refused::NoSuchUser) => continue,
            Err(refused) => return Err(format!("{name} at the primary: {refused}")),
        };
        for status in &mailboxes {
            let mailbox = status.mailbox;
            refill_mailbox(primary, copy, name, (epoch, &mailboxes, mailbox), earlier)?;
        }
    }
    Ok(())
}

fn mailboxes(bench: &mut Bench, name: &str) -> Result<Vec<MailboxStatus>, Refused> {
    match bench.ask(Request::Mailboxes { user: user(name) }) {
        Some(Event::Mailboxes { result, .. }) => result,
        // The disk crashed.
        None => Err(Refused::Stopped),
        other => panic!("{other:?}"),
    }
}

fn refill_mailbox(
    primary: &mut Bench,
    copy: &mut Bench,
    name: &str,
    (epoch, all, mailbox): (Epoch, &[MailboxStatus], MailboxId),
    earlier: Earlier,
) -> Result<(), String> {
    let known = mailboxes(copy, name).unwrap_or_default().into_iter();
    let known = known.filter(|known| known.mailbox == mailbox);
    let known = known.map(|known| known.highest_modseq).max();
    let since = known.filter(|_| earlier == Earlier::Whole).unwrap_or(0);
    let mut after = 0;
    loop {
        let changes = Request::Changes {
            user: user(name),
            mailbox,
            since: Modseq::new(since),
            after,
            entries_max: 3,
        };
        let page = match primary.ask(changes) {
            Some(Event::Changes {
                result: Ok(page), ..
            }) => page,
            other => return Err(format!("changes of {name}: {other:?}")),
        };
        refill_page(primary, copy, name, (epoch, all, mailbox), &page)?;
        after = page.upto;
        if page.more == More::No {
            return Ok(());
        }
    }
}

fn refill_page(
    primary: &mut Bench,
    copy: &mut Bench,
    name: &str,
    (epoch, all, mailbox): (Epoch, &[MailboxStatus], MailboxId),
    page: &ChangesPage,
) -> Result<(), String> {
    let mut mailboxes = all.to_vec();
    // As of the page, which may be later than the list.
    for status in mailboxes.iter_mut().filter(|one| one.mailbox == mailbox) {
        *status = page.status.clone();
    }
    for _round in 0..100 {
        let state = UserState {
            epoch,
            mailboxes: mailboxes.clone(),
            mailbox,
            changed: page.changed.clone(),
            vanished: page.vanished.clone(),
            more: page.more,
        };
        let refill = Request::Refill {
            user: user(name),
            state: Box::new(state),
        };
        let (missing, more) = match copy.ask(refill) {
            Some(Event::Refilled {
                result: Ok(Refilled { missing, more, .. }),
                ..
            }) => (missing, more),
            None => return Err("later".to_owned()),
            other => return Err(format!("{name} is not refilled: {other:?}")),
        };
        if missing.is_empty() && more == More::No {
            return Ok(());
        }
        for uid in missing {
            let entry = page.changed.iter().find(|entry| entry.uid == uid);
            bring(primary, copy, name, mailbox, entry.expect("of the page"))?;
        }
    }
    Err(format!("{name} lacks what was brought"))
}

fn bring(
    primary: &mut Bench,
    copy: &mut Bench,
    name: &str,
    mailbox: MailboxId,
    entry: &ListEntry,
) -> Result<(), String> {
    let fetch = Request::Fetch {
        user: user(name),
        mailbox,
        uid: entry.uid,
        stored_offset: 0,
        bytes_max: 1 << 20,
    };
    let Some(Event::Fetched { result, .. }) = primary.ask(fetch) else {
        return Err(format!("uid {} of {name} is not fetched", entry.uid));
    };
    let fetched = result.map_err(|refused| format!("uid {} of {name}: {refused}", entry.uid))?;
    let bytes = restore(&fetched.stored, fetched.format_flags, View::AsReceived);
    let body = if bytes.len() < LARGE_BYTES {
        Body::Small(prepare(&bytes))
    } else {
        Body::Staged(copy.stage(0, &bytes).ok_or("no room for a stage file")?)
    };
    let mut group = Bench::group(&[name], 0, body);
    group.sender = fetched.sender;
    for recipient in &mut group.recipients {
        recipient.mailbox = mailbox;
        recipient.guid = entry.guid;
        recipient.internal_date = entry.internal_date;
        recipient.flags.system = entry.flags;
    }
    let given = vec![Given {
        uid: entry.uid,
        modseq: entry.modseq,
        keywords: entry.keywords,
    }];
    let Some(Event::Appended { outcomes, .. }) = copy.ask(Request::RefillMail { group, given })
    else {
        return Err("a message is not taken: later".to_owned());
    };
    match outcomes[..] {
        [Outcome::Stored { uid, .. } | Outcome::Duplicate { uid, .. }] if uid == entry.uid => {
            Ok(())
        }
        _ => Err(format!("uid {} of {name}: {outcomes:?}", entry.uid)),
    }
}

/// Everything a client sees of a user.
fn state(bench: &mut Bench, name: &str) -> String {
    let mut all = String::new();
    for status in mailboxes(bench, name).unwrap_or_default() {
        let list = Request::List {
            user: user(name),
            mailbox: status.mailbox,
            after: 0,
            entries_max: 1_000,
        };
        let Some(Event::Listed { result, .. }) = bench.ask(list) else {
            panic!("not listed");
        };
        let entries = result.expect("it is there").entries;
        all.push_str(&format!("{status:?} {entries:?}\n"));
    }
    all
}

fn partition() -> PartitionId {
    user(ANN).partition()
}

fn open(seed: u64, config: ShardConfig) -> Bench {
    Bench::on(empty_disk(SimConfig::new(seed)), config).expect("opens")
}

fn lead_alone(bench: &mut Bench, epoch: u32) {
    let lead = Request::Lead {
        partition: partition(),
        epoch: Epoch::new(epoch),
        copy: Copy::None,
        peers_pseq: 0,
    };
    bench.submit(lead).expect("taken");
    quiet(bench);
}

/// Another node leads in this epoch.
pub(crate) fn fence(partition: PartitionId, epoch: u32) -> Request {
    Request::Replicate(Box::new(Replicate {
        partition,
        epoch: Epoch::new(epoch),
        prev_pseq: 0,
        prev_chain: 0,
        items: Vec::new(),
        commit_pseq: 0,
    }))
}

fn follow(bench: &mut Bench, epoch: u32) {
    bench.ask(fence(partition(), epoch));
}

fn change(bench: &mut Bench, request: Request) {
    let answered = bench.ask(request);
    let refused = matches!(
        answered,
        Some(
            Event::FlagsStored { result: Err(_), .. }
                | Event::Expunged { result: Err(_), .. }
                | Event::MailboxChanged { result: Err(_), .. }
        ) | None
    );
    assert!(!refused, "{answered:?}");
}

fn mailbox(bench: &mut Bench, name: &str) -> MailboxId {
    let all = mailboxes(bench, ANN).expect("it is there");
    let found = all.into_iter().find(|status| status.name == name);
    found.expect("it was made").mailbox
}

/// What lives leave: folders, flags, words, gaps, a large message.
fn live(bench: &mut Bench, from: u64) {
    for number in from..from + 7 {
        bench.deliver(&[ANN], number, &message(number, 300));
    }
    let body = Body::Staged(
        bench
            .stage(from + 7, &message(from + 7, 9_000))
            .expect("room"),
    );
    let group = Bench::group(&[ANN], from + 7, body);
    bench.ask(Request::Append(group));
    let make = MailboxChange::Create {
        name: format!("box{from}"),
        special_use: SpecialUse::None,
    };
    change(
        bench,
        Request::Mailbox {
            user: user(ANN),
            change: make,
        },
    );
    let folder = mailbox(bench, &format!("box{from}"));
    change(
        bench,
        Request::Mailbox {
            user: user(ANN),
            change: MailboxChange::Subscribe { mailbox: folder },
        },
    );
    bench.ask(Request::Copy {
        user: user(ANN),
        from: MailboxId::INBOX,
        uids: UidSet::all(),
        to: folder,
        quota: ringpost_engine::request::QuotaLimits::default(),
    });
    for (uids, system, word) in [((2, 4), SEEN, "word"), ((3, 9), FLAGGED, "$Forwarded")] {
        change(
            bench,
            Request::Store {
                user: user(ANN),
                mailbox: MailboxId::INBOX,
                uids: [uids].into_iter().collect(),
                op: FlagOp::Add,
                flags: Flags {
                    system,
                    keywords: vec![format!("{word}{from}").as_str().into()],
                },
                unchanged_since: None,
            },
        );
    }
    change(
        bench,
        Request::Expunge {
            user: user(ANN),
            mailbox: MailboxId::INBOX,
            uids: [(1, 1), (5, 6)].into_iter().collect(),
            which: Which::All,
        },
    );
}

/// The first folder gets another name, then it goes.
fn end_of_folders(primary: &mut Bench, round: u64) {
    if round == 1 {
        let old = mailbox(primary, "box1");
        for change_of in [
            MailboxChange::Unsubscribe { mailbox: old },
            MailboxChange::Rename {
                from: "box1".to_owned(),
                to: "other".to_owned(),
            },
        ] {
            change(
                primary,
                Request::Mailbox {
                    user: user(ANN),
                    change: change_of,
                },
            );
        }
    }
    if round == 2 {
        let old = mailbox(primary, "other");
        change(
            primary,
            Request::Mailbox {
                user: user(ANN),
                change: MailboxChange::Delete { mailbox: old },
            },
        );
    }
}

/// A message on its way as every other: shipped, confirmed, committed.
fn by_the_stream(primary: &mut Bench, copy: &mut Bench, number: u64) {
    let now = primary.now();
    primary.shard.set_copy(now, partition(), Copy::Stream(PEER));
    primary.append(&[ANN], number, &message(number, 300));
    quiet(primary);
    let tail = primary.shard.partition_tail(partition()).expect("its own");
    assert_eq!(tail.waiting.len(), 1);
    for records in tail.waiting {
        let records = Replicate {
            commit_pseq: u64::MAX,
            ..records
        };
        match copy.ask(Request::Replicate(Box::new(records))) {
            Some(Event::Replicated { result: Ok(_), .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    let now = primary.now();
    primary.shard.copied_to(now, partition(), u64::MAX);
    quiet(primary);
    quiet(copy);
}

/// From nothing, and again after more of everything, with restarts of the copy in between; then the
/// stream goes on, and at last the copy leads.
#[test]
fn a_copy_is_brought_up_and_the_stream_goes_on() {
    let (mut primary, mut copy) = (open(1, asked()), open(2, asked()));
    lead_alone(&mut primary, 1);
    let at = (partition(), Epoch::new(1));
    for round in 0..3 {
        live(&mut primary, 100 * round + 1);
        end_of_folders(&mut primary, round);
        follow(&mut copy, 1);
        catch_up(&mut primary, &mut copy, at, &[ANN], Earlier::Whole).expect("it is brought up");
        assert_eq!(
            state(&mut primary, ANN),
            state(&mut copy, ANN),
            "round {round}"
        );
        if round == 1 {
            copy.checkpoint();
        }
        copy = copy.crash(Crash::PowerCut);
        assert!(copy.check().is_sound(), "{:?}", copy.check().findings);
        assert_eq!(
            state(&mut primary, ANN),
            state(&mut copy, ANN),
            "round {round}"
        );
    }
    by_the_stream(&mut primary, &mut copy, 900);
    assert_eq!(state(&mut primary, ANN), state(&mut copy, ANN));
    let mut copy = copy.crash(Crash::Kill);
    lead_alone(&mut copy, 2);
    assert_eq!(primary.mailbox(ANN), copy.mailbox(ANN), "byte for byte");
    let next = primary.mailbox(ANN).keys().max().expect("there is mail") + 1;
    let outcomes = copy.deliver(&[ANN], 901, &message(901, 300));
    assert!(
        matches!(outcomes[..], [Outcome::Stored { uid, .. }] if uid == Uid::new(next)),
        "{outcomes:?}"
    );
}

/// Whenever the power fails, what was brought is there or not, and doing it again ends alike.
#[test]
fn it_may_be_interrupted_anywhere() {
    let mut primary = open(3, asked());
    lead_alone(&mut primary, 1);
    live(&mut primary, 1);
    let at = (partition(), Epoch::new(1));
    let whole = state(&mut primary, ANN);
    let mut crashes_count = 0;
    for step in (5..160).step_by(4) {
        let mut config = SimConfig::new(step);
        config.crash_at = Some(step);
        let disk = empty_disk(config);
        let opened = Bench::on(disk.clone(), asked());
        let crashed = opened.is_err() || {
            let mut copy = opened.expect("just asked");
            follow(&mut copy, 1);
            let result = catch_up(&mut primary, &mut copy, at, &[ANN], Earlier::Unknown);
            result.is_err() || copy.disk.is_crashed()
        };
        crashes_count += u32::from(crashed);
        let mut disk = disk;
        let disk = disk.crash(Crash::PowerCut);
        let mut copy = Bench::on(disk, asked()).expect("opens after a crash");
        assert!(copy.check().is_sound(), "{:?}", copy.check().findings);
        follow(&mut copy, 1);
        catch_up(&mut primary, &mut copy, at, &[ANN], Earlier::Unknown).expect("it is brought up");
        assert_eq!(state(&mut copy, ANN), whole, "crash at {step}");
    }
    assert!(crashes_count > 15, "{crashes_count}");
}

#[test]
fn nothing_is_refilled_where_another_thing_counts() {
    let (mut primary, mut copy) = (open(4, asked()), open(5, asked()));
    lead_alone(&mut primary, 1);
    live(&mut primary, 1);
    let all = mailboxes(&mut primary, ANN).expect("it is there");
    let refill = |epoch| Request::Refill {
        user: user(ANN),
        state: Box::new(UserState {
            epoch: Epoch::new(epoch),
            mailboxes: all.clone(),
            mailbox: MailboxId::INBOX,
            changed: Vec::new(),
            vanished: UidSet::default(),
            more: More::Yes,
        }),
    };
    let resume = |epoch, pseq| Request::Resume {
        partition: partition(),
        epoch: Epoch::new(epoch),
        pseq,
        chain: 5,
    };
    let fenced = |bench: &mut Bench, request: Request| match bench.submit(request) {
        Err(Refused::Fenced { .. }) => true,
        Err(_) => false,
        Ok(ticket) => {
            bench.settle();
            bench.events.iter().any(|event| {
                matches!(event, Event::Refilled { ticket: of, result: Err(Refused::Fenced { .. }) }
                    | Event::Resumed { ticket: of, result: Err(Refused::Fenced { .. }) }
                    if *of == ticket)
            })
        }
    };
    // Who leads, and who was told nothing.
    assert!(fenced(&mut primary, refill(1)));
    assert!(fenced(&mut primary, resume(1, 900)));
    assert!(fenced(&mut copy, refill(1)));
    // A primary of before.
    follow(&mut copy, 3);
    assert!(fenced(&mut copy, refill(2)));
    assert!(fenced(&mut copy, resume(2, 900)));
    // Back is not on.
    let onward = copy.ask(resume(3, 9));
    assert!(matches!(
        onward,
        Some(Event::Resumed { result: Ok(()), .. })
    ));
    let back = copy.ask(resume(3, 8));
    assert!(matches!(
        back,
        Some(Event::Resumed {
            result: Err(Refused::Diverged { pseq: 9 }),
            ..
        })
    ));
    let copy = copy.crash(Crash::PowerCut);
    let tail = copy.shard.partition_tail(partition()).expect("its own");
    assert_eq!((tail.shown_pseq, tail.shown_chain), (9, 5));
    assert!(copy.check().is_sound(), "{:?}", copy.check().findings);
}
