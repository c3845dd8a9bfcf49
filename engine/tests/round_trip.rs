//! What is encoded is decoded: every structure on disk with random values, whole frames of random
//! records, and each of them refused, or read as it was, after any change of a byte that its checksum
//! covers.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[expect(
    dead_code,
    reason = "goldens are read and written by the test beside this one"
)]
mod support;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use ringpost_engine::format::dedupe::{DedupeEntry, DedupeHeader};
use ringpost_engine::format::folders::{Folder, Folders};
use ringpost_engine::format::frame::{FRAME_HEADER_BYTES, FrameHeader, FrameKind};
use ringpost_engine::format::info::{
    Change, ChangeKind, InfoHeader, Keyword, Mailbox, MailboxOp, Msg, Retire, Run, Runs, Seed,
    SpecialUse,
};
use ringpost_engine::format::log_file::LogFileHeader;
use ringpost_engine::format::parts::{self, EpochEnd, EpochStart, Health, PartitionState};
use ringpost_engine::format::record::{
    BodyParts, DeliverParts, Encoder, Head, Payload, RecordType, Records, SwapParts, Tally, chain,
};
use ringpost_engine::format::store_file::StoreFile;
use ringpost_engine::format::store_line::StoreLine;
use ringpost_engine::format::superblock::{Shutdown, Superblock};
use ringpost_engine::format::{Version, crc};
use ringpost_engine::position::Lsn;
use ringpost_netproto::id::{
    Epoch, Guid, MailboxId, Modseq, NodeId, PartitionId, Uid, UidValidity, UserHash, WallNs,
};
use ringpost_netproto::placement::{HashKey, PartitionCount};

use support::{LOG_ID, SALT, STORE};

/// Counters of the log end at 2^62.
const COUNTER: std::ops::Range<u64> = 0..1 << 62;

fn name() -> impl Strategy<Value = String> {
    "[ -~\u{a0}-\u{2fff}\u{1f600}]{1,60}"
}

fn seed() -> impl Strategy<Value = Seed> {
    any::<(u64, u32)>().prop_map(|(user, generation)| Seed {
        user: UserHash::new(user),
        generation,
    })
}

prop_compose! {
    fn msg()(
        ids in (1..=u32::MAX, 1..=u32::MAX, any::<u64>(), any::<u64>(), any::<u32>()),
        offset in 0..1u64 << 60,
        lengths in (0u32..1 << 27, any::<Index>(), any::<Index>(), any::<Index>()),
        skip in 0u16..=512,
        bits in (any::<u8>(), any::<u32>(), any::<u64>()),
        times in (any::<u64>(), any::<Option<i64>>()),
        sums in (any::<u32>(), any::<[u8; 16]>(), any::<u32>(), any::<u32>()),
    ) -> Msg {
        let (stored_len, header, lines, quoted) = lengths;
        let below = |index: Index, most: u32| {
            u32::try_from(index.index(usize::try_from(most).unwrap() + 1)).unwrap()
        };
        let lines_count = below(lines, stored_len);
        Msg {
            format_flags: u16::from(bits.0) & 0xDF,
            mailbox: MailboxId::new(ids.0),
            uid: Uid::new(ids.1),
            modseq: Modseq::new(ids.2),
            lsn: Lsn::new(ids.3),
            segment: ids.4,
            offset,
            stored_len,
            skip,
            header_len: below(header, stored_len),
            lines_count,
            quoted_count: below(quoted, lines_count),
            rfc822_size: sums.3,
            internal_date: WallNs::new(times.0),
            date_s: times.1.filter(|date| *date != i64::MIN),
            system_flags: bits.1,
            stored_crc: sums.0,
            keywords: bits.2,
            guid: Guid::new(sums.1),
            held_for: sums.2,
        }
    }
}

prop_compose! {
    fn change()(
        expunge in any::<bool>(),
        uids in (1..=u32::MAX, 1..=u32::MAX),
        numbers in any::<(u32, u64, u64, u32, u64, u64)>(),
    ) -> Change {
        Change {
            kind: if expunge { ChangeKind::Expunge } else { ChangeKind::Flags },
            mailbox: MailboxId::new(numbers.0),
            uid_low: Uid::new(uids.0.min(uids.1)),
            uid_high: Uid::new(uids.0.max(uids.1)),
            modseq: Modseq::new(numbers.1),
            lsn: Lsn::new(numbers.2),
            system_flags: numbers.3,
            keywords: numbers.4,
            time: WallNs::new(numbers.5),
        }
    }
}

/// Without the name, which it borrows.
fn mailbox() -> impl Strategy<Value = Mailbox<'static>> {
    let op = prop_oneof![
        Just(MailboxOp::Create),
        Just(MailboxOp::Rename),
        Just(MailboxOp::Delete),
        Just(MailboxOp::Subscribe),
        Just(MailboxOp::Unsubscribe),
        Just(MailboxOp::Snapshot),
    ];
    let special_use = prop_oneof![Just(SpecialUse::None), Just(SpecialUse::Trash)];
    let ids = (1..=u32::MAX, 1..=u32::MAX, 1..=u32::MAX);
    let numbers = any::<(u64, u64, u64, u64)>();
    (op, special_use, ids, numbers).prop_map(|(op, special_use, ids, numbers)| Mailbox {
        op,
        special_use,
        mailbox: MailboxId::new(ids.0),
        uidvalidity: UidValidity::new(ids.1),
        modseq: Modseq::new(numbers.0),
        lsn: Lsn::new(numbers.1),
        uidnext: ids.2,
        highest_modseq: numbers.2,
        time: WallNs::new(numbers.3),
        name: "",
    })
}

/// A run of any kind, with what it needs to be encoded.
#[derive(Clone, Debug)]
enum Any {
    Msg(Box<Msg>, Vec<u8>),
    Change(Change),
    Mailbox(Mailbox<'static>, String),
    Keyword(u8, String),
    Retire(Vec<u32>),
}

fn any_run() -> impl Strategy<Value = Any> {
    let cache = (0usize..=15).prop_flat_map(|slots| vec(any::<u8>(), slots * 64));
    prop_oneof![
        (msg(), cache).prop_map(|(msg, cache)| Any::Msg(Box::new(msg), cache)),
        change().prop_map(Any::Change),
        (mailbox(), name()).prop_map(|(mailbox, name)| Any::Mailbox(mailbox, name)),
        (0u8..64, name()).prop_map(|(bit, name)| Any::Keyword(bit, name)),
        vec(any::<u32>(), 1..80).prop_map(Any::Retire),
    ]
}

impl Any {
    fn encode(&self, seed: Seed, slot: u32, out: &mut Vec<u8>) {
        match self {
            Self::Msg(msg, cache) => {
                let slots = u8::try_from(cache.len() / 64).unwrap();
                let fixed = msg.fixed(slots).seal(seed, slot, crc::of(cache));
                out.extend_from_slice(fixed.bytes());
                out.extend_from_slice(cache);
            }
            Self::Change(change) => change.encode(seed, slot, out),
            Self::Mailbox(mailbox, name) => Mailbox { name, ..*mailbox }.encode(seed, slot, out),
            Self::Keyword(bit, name) => keyword(*bit, name).encode(seed, slot, out),
            Self::Retire(segments) => Retire::encode(segments, seed, slot, out),
        }
    }

    fn is(&self, run: &Run<'_>) -> bool {
        match (self, run) {
            (Self::Msg(wanted, bytes), Run::Msg { msg, cache, .. }) => {
                **wanted == *msg && bytes == cache
            }
            (Self::Change(wanted), Run::Change(change)) => wanted == change,
            (Self::Mailbox(wanted, name), Run::Mailbox(mailbox)) => {
                Mailbox { name, ..*wanted } == *mailbox
            }
            (Self::Keyword(bit, name), Run::Keyword(found)) => keyword(*bit, name) == *found,
            (Self::Retire(wanted), Run::Retire(found)) => {
                found.segments().eq(wanted.iter().copied())
            }
            _ => false,
        }
    }
}

fn keyword(bit: u8, name: &str) -> Keyword<'_> {
    Keyword {
        bit,
        name,
        ..support::keyword()
    }
}

/// A record of any type; a BODY comes with its DELIVERs.
#[derive(Clone, Debug)]
enum Wanted {
    Body(Vec<u8>, Vec<u8>, Vec<(Box<Msg>, Vec<u8>)>),
    File(Box<Msg>, Vec<u8>),
    Flags(Vec<Change>),
    Mailbox(Mailbox<'static>, String),
    User(String),
    Swap(u32, Vec<u32>, Vec<u32>),
    Noop,
}

fn wanted() -> impl Strategy<Value = Wanted> {
    let cache = || (0usize..=4).prop_flat_map(|slots| vec(any::<u8>(), slots * 64));
    let delivers = vec((msg().prop_map(Box::new), vec(any::<u8>(), 0..300)), 1..4);
    prop_oneof![
        (cache(), vec(any::<u8>(), 0..3_000), delivers)
            .prop_map(|(cache, stored, delivers)| Wanted::Body(cache, stored, delivers)),
        (msg().prop_map(Box::new), cache()).prop_map(|(msg, cache)| Wanted::File(msg, cache)),
        vec(change(), 1..5).prop_map(Wanted::Flags),
        (mailbox(), name()).prop_map(|(mailbox, name)| Wanted::Mailbox(mailbox, name)),
        name().prop_map(Wanted::User),
        (
            1..u32::MAX,
            vec(any::<u32>(), 0..9),
            vec(any::<u32>(), 0..9)
        )
            .prop_map(|(generation, new, retired)| Wanted::Swap(generation, new, retired)),
        Just(Wanted::Noop),
    ]
}

/// Header fields that a record of this message must agree with.
fn head_of(msg: &Msg, chain: u32) -> Head {
    Head {
        mailbox: msg.mailbox,
        uid: msg.uid.value(),
        modseq: msg.modseq,
        body_crc: msg.stored_crc,
        ..support::head(9, 7, chain)
    }
}

fn local() -> Head {
    Head {
        pseq: 0,
        chain: 0,
        ..support::head(0, 0, 0)
    }
}

/// Encodes all, each record behind the other's chain.
fn encode(all: &[Wanted], payload: &mut [u8]) -> Tally {
    let mut encoder = Encoder::resume(payload, Tally::default());
    let mut link = 0;
    for one in all {
        link = match one {
            Wanted::Body(cache, stored, delivers) => {
                let parts = BodyParts {
                    cache,
                    stored,
                    stored_crc: crc::of(stored),
                };
                let group = support::head(0, 0, 0).group;
                let body = encoder.body(&Head::unowned(group, 0), &parts);
                let mut last = link;
                for (msg, prefix) in delivers {
                    let msg = as_delivered(msg, stored, prefix);
                    let slots = u8::try_from(cache.len() / 64).unwrap();
                    let head = head_of(&msg, last);
                    let parts = DeliverParts {
                        fixed: &msg.fixed(slots),
                        prefix,
                        body_at: body.at,
                    };
                    last = encoder.deliver(&head, &parts).chain;
                }
                last
            }
            Wanted::File(msg, cache) => {
                let slots = u8::try_from(cache.len() / 64).unwrap();
                let head = head_of(msg, link);
                encoder.deliver_file(&head, &msg.fixed(slots), cache).chain
            }
            Wanted::Flags(changes) => {
                let head = support::head(20, 8, link);
                let mut runs = Vec::new();
                for (slot, change) in (20..).zip(changes) {
                    change.encode(support::SEED, slot, &mut runs);
                }
                encoder.runs(&head, RecordType::Flags, &runs).chain
            }
            Wanted::Mailbox(mailbox, name) => {
                let mut run = Vec::new();
                Mailbox { name, ..*mailbox }.encode(support::SEED, 30, &mut run);
                let head = support::head(30, 9, link);
                encoder.runs(&head, RecordType::Mailbox, &run).chain
            }
            Wanted::User(name) => {
                let head = support::head(0, 1, link);
                encoder.user_create(&head, name.as_bytes()).chain
            }
            Wanted::Swap(generation, new, retired) => {
                let parts = SwapParts {
                    generation: *generation,
                    slots: 77,
                    new,
                    retired,
                };
                encoder.info_swap(&local(), &parts);
                link
            }
            Wanted::Noop => {
                encoder.noop(&Head::unowned(local().group, 0));
                link
            }
        };
    }
    encoder.tally()
}

fn as_delivered(msg: &Msg, stored: &[u8], prefix: &[u8]) -> Msg {
    Msg {
        stored_crc: crc::of(stored),
        skip: u16::try_from(prefix.len()).unwrap(),
        ..*msg
    }
}

/// Compares what comes out with what went in, and the chain from record to record.
fn compare(all: &[Wanted], payload: &[u8]) {
    let mut link = 0;
    let mut records = Records::new(payload).map(|record| {
        let record = record.unwrap();
        if record.head.pseq != 0 {
            link = chain(link, record.bytes);
            assert_eq!(record.head.chain, link);
        }
        record
    });
    for one in all {
        let record = records.next().unwrap();
        match (one, record.payload) {
            (Wanted::Body(cache, stored, delivers), Payload::Body(body)) => {
                assert_eq!((body.cache, body.stored), (&cache[..], &stored[..]));
                assert_eq!(record.head.body_crc, crc::of(stored));
                assert!(payload[body.stored_at..].starts_with(stored));
                for (msg, prefix) in delivers {
                    let Payload::Deliver(deliver) = records.next().unwrap().payload else {
                        panic!("no DELIVER");
                    };
                    assert_eq!(deliver.msg, as_delivered(msg, stored, prefix));
                    assert_eq!((deliver.prefix, deliver.body_at), (&prefix[..], record.at));
                }
            }
            (Wanted::File(msg, cache), Payload::DeliverFile(file)) => {
                assert_eq!((&file.msg, file.cache), (&**msg, &cache[..]));
            }
            (Wanted::Flags(changes), Payload::Flags(runs)) => {
                let found: Vec<_> = runs.map(|run| run.run.unwrap()).collect();
                let wanted: Vec<_> = changes.iter().copied().map(Run::Change).collect();
                assert_eq!(found, wanted);
            }
            (Wanted::Mailbox(mailbox, name), Payload::Mailbox(runs)) => {
                let found: Vec<_> = runs.map(|run| run.run.unwrap()).collect();
                assert_eq!(found, [Run::Mailbox(Mailbox { name, ..*mailbox })]);
            }
            (Wanted::User(name), Payload::UserCreate(found)) => assert_eq!(name.as_bytes(), found),
            (Wanted::Swap(generation, new, retired), Payload::InfoSwap(swap)) => {
                assert_eq!((swap.generation, swap.slots), (*generation, 77));
                assert!(swap.new_segments().eq(new.iter().copied()));
                assert!(swap.retired_segments().eq(retired.iter().copied()));
            }
            (Wanted::Noop, Payload::Noop) => {}
            (wanted, found) => panic!("{wanted:?} became {found:?}"),
        }
    }
    assert!(records.next().is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn frames_of_any_records_come_back(all in vec(wanted(), 0..12), change in any::<(Index, u8)>()) {
        let mut frame = vec![0; 256 << 10];
        let tally = encode(&all, &mut frame[FRAME_HEADER_BYTES..]);
        let payload_len = u32::try_from(tally.payload_len).unwrap();
        let frame_len = FrameHeader::frame_len_of(payload_len);
        frame.truncate(usize::try_from(frame_len).unwrap());
        let mut header = FrameHeader {
            payload_len,
            records_count: tally.records_count,
            payload_crc: tally.payload_crc,
            ..support::frame_header(FrameKind::Records, u32::try_from(frame_len).unwrap())
        };
        frame[..FRAME_HEADER_BYTES].copy_from_slice(&header.seal());

        let opened = FrameHeader::open_at(&frame, header.salt, header.lsn, header.previous_crc);
        prop_assert_eq!(opened, Ok(header));
        let payload = header.payload(&frame).unwrap();
        prop_assert_eq!(payload.len(), tally.payload_len);
        prop_assert_eq!(Records::new(payload).count(), usize::try_from(tally.records_count).unwrap());
        compare(&all, payload);

        // Padding apart, no byte may be another one.
        let at = change.0.index(FRAME_HEADER_BYTES + tally.payload_len);
        let was = std::mem::replace(&mut frame[at], change.1);
        if was != change.1 {
            let whole = FrameHeader::open(&frame).and_then(|header| header.payload(&frame).map(drop));
            prop_assert!(whole.is_err(), "byte {at}");
        }
    }

    #[test]
    fn runs_come_back_in_their_place_alone(runs in vec(any_run(), 1..12), seed in seed(), first in 8u32..1 << 20, other in 1u32..9) {
        let mut bytes = Vec::new();
        let mut slots = Vec::new();
        for run in &runs {
            slots.push(first + u32::try_from(bytes.len() / 64).unwrap());
            run.encode(seed, *slots.last().unwrap(), &mut bytes);
        }
        let found: Vec<_> = Runs::new(&bytes, seed, first).collect();
        prop_assert_eq!(found.iter().map(|run| run.slot).collect::<Vec<_>>(), slots);
        for (wanted, found) in runs.iter().zip(&found) {
            prop_assert!(wanted.is(found.run.as_ref().unwrap()), "{wanted:?}: {found:?}");
        }
        // Nowhere else: another slot, generation or user.
        let next = Seed { generation: seed.generation.wrapping_add(other), ..seed };
        let neighbour = Seed { user: UserHash::new(seed.user.value() ^ u64::from(other)), ..seed };
        for (seed, first) in [(seed, first + other), (next, first), (neighbour, first)] {
            prop_assert!(Runs::new(&bytes, seed, first).all(|run| run.run.is_err()));
        }
    }

    #[test]
    fn frame_headers_come_back(kind in 0u8..3, lsn in 0..1u64 << 40, back in any::<(u16, u16)>(), payload_len in 0u32..4 << 20, numbers in any::<(u64, u32, u32, u64, u64)>()) {
        let lsn = lsn * 4096;
        let flushed = lsn.saturating_sub(u64::from(back.0) * 4096);
        let mut header = FrameHeader {
            salt: numbers.0,
            lsn: Lsn::new(lsn),
            flushed_lsn: Lsn::new(flushed),
            durable_lsn: Lsn::new(flushed.saturating_sub(u64::from(back.1) * 4096)),
            previous_crc: numbers.1,
            wall: WallNs::new(numbers.3),
            map_revision: numbers.4,
            ..support::frame_header(FrameKind::Noop, 4096)
        };
        match kind {
            0 => {
                let payload_len = payload_len.min((4 << 20) - 80);
                header.kind = FrameKind::Records;
                header.payload_len = payload_len;
                header.frame_len = u32::try_from(FrameHeader::frame_len_of(payload_len)).unwrap();
                header.payload_crc = numbers.2;
                header.records_count = payload_len / 64;
            }
            1 => {}
            _ => {
                header.kind = FrameKind::Skip;
                header.frame_len = (payload_len / 4096 + 1) * 4096;
            }
        }
        let bytes = header.seal();
        prop_assert_eq!(FrameHeader::open(&bytes), Ok(header));
    }

    #[test]
    fn superblocks_come_back(numbers in (COUNTER, COUNTER, COUNTER, COUNTER), free in any::<(u32, u32, u32, u32, u64)>(), more in any::<(u64, u64, u64)>(), boots in 0..u32::MAX, partitions in 0u32..=16, clean in any::<bool>(), at in any::<Index>(), value in any::<u8>()) {
        let superblock = Superblock {
            node: NodeId::new(free.0),
            sequence: numbers.0,
            shutdown: if clean { Shutdown::Clean } else { Shutdown::Open },
            partitions: PartitionCount::new(1 << partitions).unwrap(),
            storage_generation: free.1,
            boots,
            checkpoint_lsn: Lsn::new(numbers.1 / 4096 * 4096),
            previous_crc: free.2,
            key_check: free.3,
            map_revision: free.4,
            oldest_log_sequence: more.0,
            newest_log_sequence: more.1,
            dedupe_next: numbers.2,
            written_at: WallNs::new(more.2),
            parts_sequence: numbers.3,
            ..support::superblock()
        };
        let mut bytes = superblock.seal();
        prop_assert_eq!(Superblock::open(bytes.as_slice(), STORE, LOG_ID), Ok(superblock.clone()));
        let at = at.index(bytes.len());
        if std::mem::replace(&mut bytes[at], value) != value {
            prop_assert!(Superblock::open(bytes.as_slice(), STORE, LOG_ID).is_err(), "byte {at}");
        }
    }

    #[test]
    fn headers_of_files_come_back(counters in (COUNTER, COUNTER), free in any::<(u64, u64, u64, u64)>(), ids in any::<(u32, u32, u32, u32)>(), name in vec(any::<u8>(), 1..=255), capacity in 1u64..1 << 20) {
        let log = LogFileHeader {
            sequence: counters.0,
            salt: free.0 | 1,
            start_lsn: Lsn::new(counters.1 / 4096 * 4096),
            previous_salt: free.1,
            armed_at: WallNs::new(free.2),
            ..support::log_file()
        };
        prop_assert_eq!(LogFileHeader::open(log.seal().as_slice(), STORE, LOG_ID), Ok(log));

        let info = InfoHeader {
            user: UserHash::new(free.0),
            ordinal: ids.0,
            generation: ids.1,
            created_at: WallNs::new(free.1),
            base_lsn: Lsn::new(free.2),
            base_modseq: free.3,
            tombstones_from: counters.0,
            next_segment: ids.2,
            uidvalidity_max: ids.3,
            name: name.into_boxed_slice(),
            version: Version::OURS,
        };
        prop_assert_eq!(InfoHeader::open(&info.seal(), info.user, info.ordinal, info.generation), Ok(info));

        let dedupe = DedupeHeader {
            logs: ids.0,
            capacity,
            base_next: free.3,
            ..support::dedupe_header()
        };
        prop_assert_eq!(DedupeHeader::open(dedupe.seal().as_slice(), STORE, LOG_ID), Ok(dedupe));
    }

    #[test]
    fn entries_come_back(numbers in any::<(u32, u64, u32, u32, u32)>(), uid in 1..=u32::MAX, guid in any::<[u8; 16]>(), sequence in any::<u64>(), line in any::<(u32, u32, u64, u32)>(), flags in 0u8..0x20) {
        let entry = DedupeEntry {
            time_s: numbers.0,
            user: UserHash::new(numbers.1),
            ordinal: numbers.2,
            mailbox: MailboxId::new(numbers.3),
            guid: Guid::new(guid),
            uid: Uid::new(uid),
            body_crc: numbers.4,
        };
        let bytes = entry.seal(sequence);
        prop_assert_eq!(DedupeEntry::open(&bytes, sequence), Ok(entry));
        prop_assert!(DedupeEntry::open(&bytes, sequence.wrapping_add(1)).is_err());

        let line = StoreLine {
            mailbox: MailboxId::new(numbers.3),
            uidvalidity: line.0,
            uid,
            guid: Guid::new(guid),
            internal_date: WallNs::new(line.2),
            stored_len: line.1,
            stored_crc: line.3,
            format_flags: flags,
        };
        let guid = guid.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
        let formatted = format!(
            "X-Ringpost: 1 m={:08x} v={:08x} u={uid:08x} g={guid} d={:016x} l={:08x} c={:08x} e={flags:02x}\n",
            numbers.3, line.uidvalidity, line.internal_date.value(), line.stored_len, line.stored_crc,
        );
        prop_assert_eq!(&line.encode()[..], formatted.as_bytes());
        prop_assert_eq!(StoreLine::decode(&line.encode()), Ok(line));
    }

    #[test]
    fn folders_come_back(user in vec(any::<u8>(), 1..=255), names in vec(name(), 0..20), first in any::<u16>(), step in 1u32..9) {
        let mailboxes = (u32::from(first)..).step_by(usize::try_from(step).unwrap()).zip(names).map(|(id, name)| Folder {
            mailbox: MailboxId::new(id),
            uidvalidity: UidValidity::new(id.wrapping_mul(0x9E37_79B9)),
            name,
        });
        let folders = Folders { user, mailboxes: mailboxes.collect() };
        prop_assert_eq!(Folders::decode(&folders.encode()), Ok(folders));
    }

    #[test]
    fn partitions_come_back(sequence in any::<u64>(), states in vec((any::<(u16, bool, u32, u32, u64, u64, u64)>(), vec((0u32..1 << 31, any::<bool>(), any::<u64>()), 0..=18)), 0..30), at in any::<Index>(), value in any::<u8>()) {
        let states: Vec<_> = states.into_iter().map(|(numbers, history)| PartitionState {
            partition: PartitionId::new(numbers.0),
            health: if numbers.1 { Health::Damaged } else { Health::Whole },
            promised: Epoch::new(numbers.2),
            chain: numbers.3,
            pseq: numbers.4,
            commit_pseq: numbers.5,
            oldest_pseq: numbers.6,
            history: history.into_iter().map(|(epoch, unclean, first_pseq)| EpochStart {
                epoch: Epoch::new(epoch),
                end: if unclean { EpochEnd::Unclean } else { EpochEnd::Clean },
                first_pseq,
            }).collect(),
        }).collect();
        let mut bytes = parts::encode(STORE, LOG_ID, sequence, &states);
        prop_assert_eq!(parts::decode(&bytes, STORE, LOG_ID), Ok((sequence, states)));
        let at = at.index(bytes.len());
        if std::mem::replace(&mut bytes[at], value) != value {
            prop_assert!(parts::decode(&bytes, STORE, LOG_ID).is_err(), "byte {at}");
        }
    }

    #[test]
    fn store_files_come_back(store in any::<[u8; 16]>(), node in any::<u32>(), key in any::<[u8; 16]>(), logs in 1u32..=256, partitions in 0u32..=16) {
        let file = StoreFile {
            store: ringpost_engine::format::store_file::StoreId::new(store),
            node: NodeId::new(node),
            partitions: PartitionCount::new(1 << partitions).unwrap(),
            logs,
            key: HashKey::new(key),
            ..support::store_file()
        };
        prop_assert_eq!(StoreFile::decode(&file.encode()), Ok(file));
    }
}

#[test]
fn a_frame_of_another_use_of_the_file_is_not_this_one() {
    let header = support::frame_header(FrameKind::Noop, 4096);
    let bytes = { header }.seal();
    let open = |salt, lsn, previous| FrameHeader::open_at(&bytes, salt, lsn, previous);
    let (lsn, previous) = (header.lsn, header.previous_crc);
    assert!(open(SALT, lsn, previous).is_ok());
    assert!(open(SALT + 1, lsn, previous).is_err());
    assert!(open(SALT, Lsn::new(lsn.value() + 4096), previous).is_err());
    assert!(open(SALT, lsn, previous + 1).is_err());
}
