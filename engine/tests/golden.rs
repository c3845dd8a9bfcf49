//! The bytes of every structure are those of `tests/golden/*.hex` for ever: they decode, re-encode
//! identically, and no flipped bit in them goes unnoticed, but for the places that FORMAT.md names.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod support;

use std::ops::Range;

use proptest::prelude::*;
use ringpost_engine::error::CorruptReason;
use ringpost_engine::format::dedupe::{DedupeEntry, DedupeHeader};
use ringpost_engine::format::folders::Folders;
use ringpost_engine::format::frame::{FRAME_HEADER_BYTES, FrameError, FrameHeader, FrameKind};
use ringpost_engine::format::info::{
    ChangeKind, FIRST_SLOT, INFO_HEADER_BYTES, InfoHeader, Run, RunAt, Runs, Seed,
};
use ringpost_engine::format::log_file::LogFileHeader;
use ringpost_engine::format::record::{Payload, Record, Records, chain};
use ringpost_engine::format::store_file::{StoreFile, StoreId};
use ringpost_engine::format::store_line::StoreLine;
use ringpost_engine::format::superblock::{Pair, Superblock};
use ringpost_engine::format::{crc, parts};
use ringpost_netproto::id::UserHash;

use support::files::{dump, golden, golden_path};
use support::{LOG_ID, LSN, PREVIOUS_CRC, SALT, SEED, STORE, USER};

/// All goldens with what the program writes today.
fn samples() -> Vec<(&'static str, Vec<u8>)> {
    let noop = support::frame_header(FrameKind::Noop, 4096).seal().to_vec();
    let skip = support::frame_header(FrameKind::Skip, 0x50_000)
        .seal()
        .to_vec();
    vec![
        ("superblock", support::superblock().seal().to_vec()),
        ("log_file", support::log_file().seal().to_vec()),
        ("frame", support::frame()),
        ("frame_swap", support::frame_swap()),
        ("frame_partition", support::frame_partition()),
        ("frame_noop", noop),
        ("frame_skip", skip),
        ("info", support::info()),
        ("store_line", support::store_line().encode().to_vec()),
        ("dedupe", support::dedupe()),
        ("parts", support::parts()),
        ("folders", support::folders().encode()),
        ("store", support::store_file().encode()),
    ]
}

/// For a new structure only: a golden that exists is never written again.
#[test]
#[ignore = "writes the files of new structures"]
fn write_missing_goldens() {
    for (name, bytes) in samples() {
        if !golden_path(name).exists() {
            std::fs::write(golden_path(name), dump(&bytes)).unwrap();
        }
    }
}

#[test]
fn the_program_writes_the_golden_bytes() {
    for (name, bytes) in samples() {
        assert_eq!(dump(&bytes), dump(&golden(name)), "{name}");
    }
    let files = std::fs::read_dir(golden_path("x").parent().unwrap()).unwrap();
    assert_eq!(files.count(), samples().len(), "each golden has a test");
}

/// Every single flipped bit outside of `unprotected` must make `whole` false.
fn each_flip_is_noticed(bytes: &[u8], unprotected: &[Range<usize>], whole: impl Fn(&[u8]) -> bool) {
    assert!(whole(bytes));
    let mut bad = bytes.to_vec();
    for at in 0..bytes.len() {
        if unprotected.iter().any(|range| range.contains(&at)) {
            continue;
        }
        for bit in 0..8 {
            bad[at] ^= 1 << bit;
            assert!(!whole(&bad), "byte {at}, bit {bit}");
            bad[at] ^= 1 << bit;
        }
    }
    for len in 0..bytes.len() {
        let cut_is_padding = unprotected
            .iter()
            .any(|r| r.contains(&len) && r.end == bytes.len());
        assert!(cut_is_padding || !whole(&bytes[..len]), "cut at {len}");
    }
}

#[test]
fn superblock() {
    let bytes = golden("superblock");
    let read = Superblock::open(&bytes, STORE, LOG_ID).unwrap();
    assert_eq!(read, support::superblock());
    each_flip_is_noticed(&bytes, &[], |b| Superblock::open(b, STORE, LOG_ID).is_ok());
    let other = StoreId::new([9; 16]);
    for result in [
        Superblock::open(&bytes, other, LOG_ID),
        Superblock::open(&bytes, STORE, LOG_ID + 1),
    ] {
        assert_eq!(result, Err(CorruptReason::Identity));
    }
}

#[test]
fn of_two_superblocks_the_newer_whole_one_counts() {
    let old = support::superblock();
    let mut new = old.clone();
    new.sequence += 1;
    let pair = |a: &[u8], b: &[u8]| Pair::open(&[a, b].concat(), STORE, LOG_ID);
    let (a, b) = (old.seal(), new.seal());
    let read = pair(&a[..], &b[..]).unwrap();
    assert_eq!(
        (read.current_copy, read.current, read.other),
        (1, new.clone(), None)
    );
    let read = pair(&b[..], &a[..]).unwrap();
    assert_eq!((read.current_copy, read.current), (0, new));
    let read = pair(&a[..], &[0; 4096]).unwrap();
    assert_eq!(read.current, old);
    assert_eq!(read.other, Some(CorruptReason::Magic));
    assert!(pair(&[0; 4096], &[0; 4096]).is_err());
    assert!(pair(&[], &[]).is_err());
}

#[test]
fn log_file() {
    let bytes = golden("log_file");
    let read = LogFileHeader::open(&bytes, STORE, LOG_ID).unwrap();
    assert_eq!(read, support::log_file());
    each_flip_is_noticed(&bytes, &[], |b| {
        LogFileHeader::open(b, STORE, LOG_ID).is_ok()
    });
    assert_eq!(
        LogFileHeader::open(&[0; 4096], STORE, LOG_ID),
        Err(CorruptReason::Magic)
    );
    assert_eq!(
        LogFileHeader::open(&bytes, STORE, LOG_ID + 1),
        Err(CorruptReason::Identity)
    );
}

fn open_frame(bytes: &[u8]) -> Result<(FrameHeader, &[u8]), FrameError> {
    let header = FrameHeader::open_at(bytes, SALT, LSN, PREVIOUS_CRC)?;
    let payload = header.payload(bytes)?;
    Ok((header, payload))
}

#[test]
fn frames() {
    let bytes = golden("frame");
    let (header, payload) = open_frame(&bytes).unwrap();
    let padding = FRAME_HEADER_BYTES + payload.len()..bytes.len();
    each_flip_is_noticed(&bytes, &[padding], |b| open_frame(b).is_ok());
    assert_eq!(header.end(), LSN.after(4096));
    assert_eq!(Records::new(payload).count(), header.records_count as usize);
    for (name, kind) in [
        ("frame_noop", FrameKind::Noop),
        ("frame_skip", FrameKind::Skip),
    ] {
        let bytes = golden(name);
        assert_eq!(open_frame(&bytes).unwrap().0.kind, kind);
        each_flip_is_noticed(&bytes, &[], |b| open_frame(b).is_ok());
    }
}

#[test]
fn what_is_no_frame_of_this_place_is_told_apart() {
    let bytes = golden("frame");
    let open = |salt, lsn, crc| FrameHeader::open_at(&bytes, salt, lsn, crc).map(|_| ());
    assert_eq!(open(SALT, LSN, PREVIOUS_CRC), Ok(()));
    assert_eq!(
        open(SALT + 1, LSN, PREVIOUS_CRC),
        Err(FrameError::OtherSalt)
    );
    assert_eq!(
        open(SALT, LSN.after(4096), PREVIOUS_CRC),
        Err(FrameError::OtherLsn)
    );
    assert_eq!(open(SALT, LSN, 0), Err(FrameError::OtherPredecessor));
    assert_eq!(FrameHeader::open(&[0; 4096]), Err(FrameError::NotAFrame));
    let mut bad = bytes.clone();
    bad[20] ^= 1;
    assert_eq!(open_frame(&bad).unwrap_err(), FrameError::HeaderChecksum);
    let mut bad = bytes.clone();
    bad[FRAME_HEADER_BYTES] ^= 1;
    assert_eq!(open_frame(&bad).unwrap_err(), FrameError::Payload);
}

#[test]
fn records_are_what_was_encoded() {
    let bytes = golden("frame");
    let (_, payload) = open_frame(&bytes).unwrap();
    let records: Vec<Record<'_>> = Records::new(payload).map(Result::unwrap).collect();
    let mut chained = 0xC0FF_EE00;
    for record in records.iter().filter(|record| record.head.pseq != 0) {
        chained = chain(chained, record.bytes);
        assert_eq!(record.head.chain, chained);
    }
    let [
        create,
        made,
        body,
        deliver,
        file,
        flags,
        expunge,
        keyword,
        noop,
    ] = &records[..]
    else {
        panic!("{} records", records.len());
    };
    assert_eq!(create.payload, Payload::UserCreate(b"bob@example.test"));
    let Payload::Body(b) = &body.payload else {
        panic!()
    };
    assert_eq!(
        (b.cache, b.stored),
        (&support::cache()[..], support::STORED)
    );
    assert!(payload[b.stored_at..].starts_with(support::STORED));
    assert_eq!(body.head.body_crc, crc::of(support::STORED));
    let Payload::Deliver(d) = &deliver.payload else {
        panic!()
    };
    assert_eq!((d.msg, d.prefix), (support::msg(), &support::prefix()[..]));
    assert_eq!(*d.fixed, support::fixed(10));
    assert_eq!(Records::at(payload, d.body_at).as_ref(), Ok(body));
    let Payload::DeliverFile(f) = &file.payload else {
        panic!()
    };
    assert_eq!((f.msg, f.cache), (support::msg(), &support::cache()[..]));
    let only = |runs: &Runs<'_>| match runs.clone().next().unwrap().run.unwrap() {
        Run::Change(change) => format!("{change:?}"),
        Run::Mailbox(mailbox) => format!("{mailbox:?}"),
        Run::Keyword(keyword) => format!("{keyword:?}"),
        other => panic!("{other:?}"),
    };
    let change = |kind| format!("{:?}", support::change(kind));
    let (Payload::Flags(flags), Payload::Expunge(expunge)) = (&flags.payload, &expunge.payload)
    else {
        panic!()
    };
    assert_eq!(only(flags), change(ChangeKind::Flags));
    assert_eq!(only(expunge), change(ChangeKind::Expunge));
    let (Payload::Mailbox(made), Payload::Keyword(keyword)) = (&made.payload, &keyword.payload)
    else {
        panic!()
    };
    assert_eq!(only(made), format!("{:?}", support::mailbox()));
    assert_eq!(only(keyword), format!("{:?}", support::keyword()));
    assert_eq!(noop.payload, Payload::Noop);
}

/// Their places are in the header, and no bit of it is without a meaning.
#[test]
fn what_belongs_to_a_partition_as_a_whole() {
    let bytes = golden("frame_partition");
    let (_, payload) = open_frame(&bytes).unwrap();
    let records: Vec<Record<'_>> = Records::new(payload).map(Result::unwrap).collect();
    let kinds: Vec<_> = records
        .iter()
        .map(|record| record.payload.clone())
        .collect();
    assert_eq!(kinds, [Payload::Epoch, Payload::Truncate, Payload::Promise]);
    let places: Vec<_> = records
        .iter()
        .map(|Record { head, .. }| (head.epoch.value(), head.pseq, head.chain))
        .collect();
    let barrier = chain(0xC0FF_EE01, records[0].bytes);
    assert_eq!(
        places,
        [(0x92, 8, barrier), (0x93, 6, 0xC0FF_EE02), (0x94, 0, 0)]
    );
    for record in &records {
        assert!(record.payload.is_of_no_user() && record.head.user == UserHash::new(0));
        assert_eq!(record.bytes.len(), 64);
    }
}

#[test]
fn the_commit_of_a_compaction() {
    let bytes = golden("frame_swap");
    let (_, payload) = open_frame(&bytes).unwrap();
    let records: Vec<Record<'_>> = Records::new(payload).map(Result::unwrap).collect();
    let [swap] = &records[..] else { panic!() };
    assert_eq!((swap.head.pseq, swap.head.chain), (0, 0));
    let Payload::InfoSwap(swap) = swap.payload else {
        panic!()
    };
    assert_eq!((swap.generation, swap.slots), (4, 0x91));
    assert_eq!(swap.new_segments().collect::<Vec<_>>(), [0x84, 0x85]);
    assert_eq!(
        swap.retired_segments().collect::<Vec<_>>(),
        [0x81, 0x82, 0x83]
    );
    // Counts that the bytes do not bear out are refused, however large.
    for (at, value) in [
        (72, 1u32),
        (72, u32::MAX),
        (76, 2),
        (76, u32::MAX),
        (64, 0),
        (68, 7),
    ] {
        let mut bad = payload.to_vec();
        bad[at..at + 4].copy_from_slice(&value.to_le_bytes());
        assert!(Records::new(&bad).next().unwrap().is_err(), "{at}: {value}");
    }
}

#[test]
fn the_chain_ignores_local_placement_and_nothing_else() {
    let bytes = golden("frame");
    let (_, payload) = open_frame(&bytes).unwrap();
    // Of the header: flags, generation, slot, chain. Of the payload: what FORMAT.md lists.
    let header = [5..6, 36..44, 60..64];
    for record in Records::new(payload).map(Result::unwrap) {
        let local: Vec<Range<usize>> = match record.payload {
            Payload::Body(_) | Payload::InfoSwap(_) | Payload::Noop => continue,
            Payload::Deliver(_) => vec![64..80, 88..92, 112..124, 128..136],
            Payload::DeliverFile(_) => vec![64..68, 72..76, 96..108, 112..120],
            Payload::UserCreate(_) => vec![],
            _ => vec![64..68, 88..96],
        };
        let whole = chain(1, record.bytes);
        for at in (0..record.bytes.len()).filter(|at| *at != 4) {
            let mut other = record.bytes.to_vec();
            other[at] ^= 0x40;
            let ignored = header.iter().chain(&local).any(|range| range.contains(&at));
            assert_eq!(
                chain(1, &other) == whole,
                ignored,
                "{:?} {at}",
                record.payload
            );
        }
        assert_ne!(chain(2, record.bytes), whole);
    }
}

fn runs(bytes: &[u8]) -> Vec<RunAt<'_>> {
    Runs::new(&bytes[INFO_HEADER_BYTES..], SEED, FIRST_SLOT).collect()
}

#[test]
fn info() {
    let bytes = golden("info");
    let open = |b: &[u8]| InfoHeader::open(b, USER, 2, 3);
    assert_eq!(open(&bytes), Ok(support::info_header()));
    each_flip_is_noticed(&bytes[..INFO_HEADER_BYTES], &[], |b| open(b).is_ok());
    for (user, ordinal, generation) in [(UserHash::new(1), 2, 3), (USER, 1, 3), (USER, 2, 4)] {
        assert_eq!(
            InfoHeader::open(&bytes, user, ordinal, generation),
            Err(CorruptReason::Identity)
        );
    }
    let read = runs(&bytes);
    assert_eq!(read.len(), 6);
    assert_eq!(read[0].run, Ok(Run::Mailbox(support::mailbox())));
    let Ok(Run::Msg { fixed, msg, cache }) = &read[1].run else {
        panic!()
    };
    assert_eq!(
        (**fixed, *msg, *cache),
        (support::fixed(10), support::msg(), &support::cache()[..])
    );
    assert_eq!(
        read[2].run,
        Ok(Run::Change(support::change(ChangeKind::Flags)))
    );
    assert_eq!(
        read[3].run,
        Ok(Run::Change(support::change(ChangeKind::Expunge)))
    );
    assert_eq!(read[4].run, Ok(Run::Keyword(support::keyword())));
    let Ok(Run::Retire(retire)) = &read[5].run else {
        panic!()
    };
    assert_eq!(retire.segments().collect::<Vec<_>>(), [0x81, 0x82, 0x83]);
}

/// The damage is in the slots that the bad item names; all other runs are read.
#[test]
fn a_damaged_run_costs_itself_only() {
    let bytes = golden("info");
    let good = runs(&bytes);
    let mut bad = bytes.clone();
    for at in INFO_HEADER_BYTES..bytes.len() {
        for bit in 0..8 {
            bad[at] ^= 1 << bit;
            let slot = u32::try_from(at / 64).unwrap();
            for (was, is) in good.iter().zip(runs(&bad)) {
                let hit = (was.slot..was.slot + was.slots).contains(&slot);
                assert_eq!((was.slot, was.slots), (is.slot, is.slots), "byte {at}");
                assert_eq!(is.run.is_err(), hit, "byte {at}, bit {bit}");
            }
            bad[at] ^= 1 << bit;
        }
    }
}

#[test]
fn a_run_of_another_place_is_not_taken() {
    let bytes = golden("info");
    let all_bad = |seed, first| {
        Runs::new(&bytes[INFO_HEADER_BYTES..], seed, first).all(|run| run.run.is_err())
    };
    assert!(!all_bad(SEED, FIRST_SLOT));
    assert!(all_bad(SEED, FIRST_SLOT + 1));
    let other_user = Seed {
        user: UserHash::new(1),
        ..SEED
    };
    assert!(all_bad(other_user, FIRST_SLOT));
    let other_generation = Seed {
        generation: 4,
        ..SEED
    };
    assert!(all_bad(other_generation, FIRST_SLOT));
}

#[test]
fn a_torn_end_of_info_is_one_bad_stretch() {
    let bytes = golden("info");
    for len in INFO_HEADER_BYTES..bytes.len() {
        let read = runs(&bytes[..len]);
        let whole = read.iter().filter(|run| run.run.is_ok()).count();
        assert!(read.len() <= whole + 1, "cut at {len}");
    }
    let mut long = bytes.clone();
    long.extend_from_slice(&[0; 200]);
    let last = runs(&long).pop().unwrap();
    assert_eq!((last.slots, last.run), (4, Err(CorruptReason::Checksum)));
}

#[test]
fn store_line() {
    let bytes = golden("store_line");
    assert_eq!(StoreLine::decode(&bytes), Ok(support::store_line()));
    // A line has no checksum: each flip makes it something else, or no store line at all.
    each_flip_is_noticed(&bytes, &[], |b| {
        StoreLine::decode(b) == Ok(support::store_line())
    });
}

#[test]
fn dedupe() {
    let bytes = golden("dedupe");
    let header = DedupeHeader::open(&bytes, STORE, LOG_ID).unwrap();
    assert_eq!(header, support::dedupe_header());
    let whole = |b: &[u8]| {
        DedupeHeader::open(b, STORE, LOG_ID).is_ok()
            && (8..support::DEDUPE_NEXT).all(|sequence| {
                let at = usize::try_from(header.offset_of(sequence)).unwrap();
                let entry = b.get(at..).unwrap_or_default();
                DedupeEntry::open(entry, sequence) == Ok(support::dedupe_entry(sequence))
            })
    };
    each_flip_is_noticed(&bytes, &[], whole);
    let at = usize::try_from(header.offset_of(8)).unwrap();
    assert_eq!(header.offset_of(8), header.offset_of(12));
    assert_eq!(
        DedupeEntry::open(&bytes[at..], 12),
        Err(CorruptReason::Checksum)
    );
    assert_eq!(
        DedupeEntry::open(&[0; 48], 11),
        Err(CorruptReason::Checksum)
    );
}

#[test]
fn partition_state() {
    let bytes = golden("parts");
    let expected = Ok((support::PARTS_SEQUENCE, support::partitions()));
    assert_eq!(parts::decode(&bytes, STORE, LOG_ID), expected);
    each_flip_is_noticed(&bytes, &[], |b| parts::decode(b, STORE, LOG_ID).is_ok());
    assert_eq!(
        parts::decode(&bytes, STORE, LOG_ID + 1),
        Err(CorruptReason::Identity)
    );
}

#[test]
fn text_files() {
    let bytes = golden("folders");
    assert_eq!(Folders::decode(&bytes), Ok(support::folders()));
    each_flip_is_noticed(&bytes, &[], |b| Folders::decode(b).is_ok());
    let bytes = golden("store");
    assert_eq!(StoreFile::decode(&bytes), Ok(support::store_file()));
    each_flip_is_noticed(&bytes, &[], |b| StoreFile::decode(b).is_ok());
}

/// A 4096-byte header with one byte set, sealed again by the rule of FORMAT.md.
fn resealed(bytes: &[u8], at: usize, value: u8) -> Vec<u8> {
    let mut out = bytes.to_vec();
    out[at] = value;
    let crc = crc32fast::hash(&out[12..]);
    out[8..12].copy_from_slice(&crc.to_le_bytes());
    out
}

#[test]
fn versions_are_refused_or_kept_by_the_rules() {
    let bytes = golden("superblock");
    let open = |b: &[u8]| Superblock::open(b, STORE, LOG_ID);
    let refused = |major, minor, incompat| {
        Err(CorruptReason::Version {
            major,
            minor,
            incompat,
        })
    };
    assert_eq!(open(&resealed(&bytes, 12, 2)), refused(2, 0, 0));
    assert_eq!(open(&resealed(&bytes, 17, 4)), refused(1, 0, 0x400));
    assert!(open(&resealed(&bytes, 21, 4)).is_ok());
    assert_eq!(
        open(&resealed(&bytes, 4000, 1)),
        Err(CorruptReason::Value("reserved bytes are not zero"))
    );
    // A newer minor version may use what is reserved here; it is written back as it was.
    let newer = resealed(&resealed(&bytes, 13, 1), 4000, 1);
    let read = open(&newer).unwrap();
    let again = open(&read.seal()[..]).unwrap();
    assert_eq!(again, read);
    assert_eq!(read.seal()[4000], 1);
    assert_eq!(read.seal()[13], 1);
}

#[test]
fn a_newer_store_file_keeps_its_lines() {
    let text = String::from_utf8(golden("store")).unwrap();
    let body = text.rsplit_once("crc ").unwrap().0;
    let seal = |body: String| format!("{body}crc {:08x}\n", crc32fast::hash(body.as_bytes()));
    let newer = seal(body.replace("store 1.0", "store 1.1") + "colour green\n");
    let read = StoreFile::decode(newer.as_bytes()).unwrap();
    assert_eq!(read.newer, ["colour green"]);
    assert_eq!(read.encode(), newer.as_bytes());
    assert!(StoreFile::decode(seal(format!("{body}colour green\n")).as_bytes()).is_err());
    let other = seal(body.replace("store 1.0", "store 2.0"));
    assert!(matches!(
        StoreFile::decode(other.as_bytes()),
        Err(CorruptReason::Version { major: 2, .. })
    ));
}

proptest! {
    /// Behind a good CRC anything may stand if a writer had a bug: nothing panics.
    #[test]
    fn records_of_any_bytes_end_or_give_a_reason(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let bytes = golden("frame");
        let header = FrameHeader::open(&bytes).unwrap();
        let mut payload = header.payload(&bytes).unwrap().to_vec();
        for (at, value) in &changes {
            let at = at.index(payload.len());
            payload[at] = *value;
        }
        for record in Records::new(&payload).flatten() {
            if let Payload::Deliver(deliver) = record.payload {
                let _body = Records::at(&payload, deliver.body_at);
            }
            let _chain = chain(0, record.bytes);
        }
    }

    #[test]
    fn runs_of_any_bytes_end_and_cover_every_slot(
        bytes in proptest::collection::vec(any::<u8>(), 0..2048),
    ) {
        let slots: u32 = Runs::new(&bytes, SEED, 8).map(|run| run.slots).sum();
        prop_assert_eq!(slots as usize, bytes.len().div_ceil(64));
    }

    #[test]
    fn runs_with_good_sums_and_any_values_never_panic(
        changes in proptest::collection::vec((0usize..192, any::<u8>()), 1..4),
        which in 0usize..6,
    ) {
        let mut bytes = golden("info");
        let at = runs(&bytes)[which].slot;
        let start = at as usize * 64;
        for (offset, value) in changes {
            let index = (start + offset).min(bytes.len() - 1);
            bytes[index] = value;
        }
        let end = start + (usize::from(bytes[start + 5]) + 1) * 64;
        if let Some(run) = bytes.get(start + 4..end) {
            let mut seed = USER.value().to_le_bytes().to_vec();
            seed.extend_from_slice(&SEED.generation.to_le_bytes());
            seed.extend_from_slice(&at.to_le_bytes());
            let sum = crc32fast::hash(&[&seed, run].concat());
            bytes[start..start + 4].copy_from_slice(&sum.to_le_bytes());
        }
        let _count = runs(&bytes).len();
    }

    #[test]
    fn any_bytes_are_refused_without_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        prop_assert!(FrameHeader::open(&bytes).is_err());
        prop_assert!(StoreLine::decode(&bytes).is_err());
        prop_assert!(Folders::decode(&bytes).is_err());
        prop_assert!(StoreFile::decode(&bytes).is_err());
        prop_assert!(parts::decode(&bytes, STORE, LOG_ID).is_err());
    }
}
