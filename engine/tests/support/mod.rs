//! One value of every structure on disk, with another number in each field, so that two fields that
//! changed places are seen.

pub(crate) mod files;

use ringpost_engine::format::dedupe::{DedupeEntry, DedupeHeader};
use ringpost_engine::format::folders::{Folder, Folders};
use ringpost_engine::format::frame::{FRAME_HEADER_BYTES, FrameHeader, FrameKind};
use ringpost_engine::format::info::{
    self, Change, ChangeKind, FIRST_SLOT, InfoHeader, Keyword, Mailbox, MailboxOp, Msg, MsgFixed,
    Retire, Seed, SpecialUse,
};
use ringpost_engine::format::log_file::LogFileHeader;
use ringpost_engine::format::parts::{self, EpochEnd, EpochStart, Health, PartitionState};
use ringpost_engine::format::record::{
    BodyParts, DeliverParts, Encoder, Group, Head, RecordType, SwapParts, Tally,
};
use ringpost_engine::format::store_file::{StoreFile, StoreId};
use ringpost_engine::format::store_line::StoreLine;
use ringpost_engine::format::superblock::{Shutdown, Superblock};
use ringpost_engine::format::{Version, crc};
use ringpost_engine::position::Lsn;
use ringpost_netproto::id::{
    Epoch, Guid, MailboxId, Modseq, NodeId, PartitionId, Uid, UidValidity, UserHash, WallNs,
};
use ringpost_netproto::placement::{HashKey, PartitionCount};

pub(crate) const STORE: StoreId = StoreId::new(*b"\x01store-identity\xFE");
pub(crate) const LOG_ID: u32 = 0x17;
pub(crate) const SALT: u64 = 0x5A17_5A17_0000_0001;
pub(crate) const PREVIOUS_CRC: u32 = 0x0F0E_0D0C;
pub(crate) const LSN: Lsn = Lsn::new(0x0012_3000);
pub(crate) const USER: UserHash = UserHash::new(0xABC1_2345_6789_DEF0);
pub(crate) const SEED: Seed = Seed {
    user: USER,
    generation: 3,
};
pub(crate) const DEDUPE_NEXT: u64 = 11;
pub(crate) const PARTS_SEQUENCE: u64 = 0x21;

/// A header cache as `header_cache::encode` writes it: `From: a@b` and an empty subject.
pub(crate) fn cache() -> Vec<u8> {
    let mut cache = vec![3, 0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0];
    cache.extend_from_slice(b"a@b");
    cache.resize(64, 0);
    cache
}

pub(crate) const STORED: &[u8] = b"From: a@b\nSubject:\n\n>From here\n";

pub(crate) fn superblock() -> Superblock {
    Superblock {
        store: STORE,
        node: NodeId::new(0x31),
        log_id: LOG_ID,
        sequence: 0x32,
        shutdown: Shutdown::Clean,
        partitions: PartitionCount::new(4096).unwrap(),
        storage_generation: 0x33,
        boots: 0x34,
        checkpoint_lsn: Lsn::new(0x35_000),
        previous_crc: 0x36,
        key_check: 0x37,
        map_revision: 0x38,
        oldest_log_sequence: 0x39,
        newest_log_sequence: 0x3A,
        dedupe_next: 0x3B,
        written_at: WallNs::new(0x3C),
        parts_sequence: 0x3D,
        newer: None,
    }
}

pub(crate) fn log_file() -> LogFileHeader {
    LogFileHeader {
        store: STORE,
        log_id: LOG_ID,
        sequence: 0x41,
        salt: SALT,
        start_lsn: Lsn::new(0x42_000),
        previous_salt: 0x43,
        armed_at: WallNs::new(0x44),
        version: Version::OURS,
    }
}

pub(crate) fn store_line() -> StoreLine {
    StoreLine {
        mailbox: MailboxId::INBOX,
        uidvalidity: 0x6512_3456,
        uid: 7,
        guid: guid(),
        internal_date: WallNs::new(1_700_000_000_123_456_789),
        stored_len: u32::try_from(STORED.len()).unwrap(),
        stored_crc: crc::of(STORED),
        format_flags: 0x09,
    }
}

pub(crate) fn guid() -> Guid {
    Guid::new(core::array::from_fn(|i| 0xE0 + u8::try_from(i).unwrap()))
}

pub(crate) fn prefix() -> Vec<u8> {
    let mut prefix = b"From a@b Tue Nov 14 22:13:20 2023\n".to_vec();
    prefix.extend_from_slice(&store_line().encode());
    prefix
}

pub(crate) fn msg() -> Msg {
    Msg {
        format_flags: 0x09,
        mailbox: MailboxId::INBOX,
        uid: Uid::new(7),
        modseq: Modseq::new(0x51),
        lsn: LSN,
        segment: 0x52,
        offset: 0x53,
        stored_len: u32::try_from(STORED.len()).unwrap(),
        skip: u16::try_from(prefix().len()).unwrap(),
        header_len: 20,
        lines_count: 4,
        quoted_count: 1,
        rfc822_size: 34,
        internal_date: WallNs::new(1_700_000_000_123_456_789),
        date_s: Some(-5),
        system_flags: info::SEEN | info::FLAGGED,
        stored_crc: crc::of(STORED),
        keywords: 0x5A,
        guid: guid(),
        held_for: 0x5B,
    }
}

pub(crate) fn fixed(slot: u32) -> MsgFixed {
    msg().fixed(1).seal(SEED, slot, crc::of(&cache()))
}

pub(crate) fn mailbox() -> Mailbox<'static> {
    Mailbox {
        op: MailboxOp::Create,
        special_use: SpecialUse::Junk,
        mailbox: MailboxId::new(3),
        uidvalidity: UidValidity::new(0x6512_3457),
        modseq: Modseq::new(0x61),
        lsn: LSN,
        uidnext: 0x62,
        highest_modseq: 0x63,
        time: WallNs::new(0x64),
        name: "Archiv/\u{dc}bung",
    }
}

pub(crate) fn keyword() -> Keyword<'static> {
    Keyword {
        mailbox: MailboxId::INBOX,
        bit: 63,
        modseq: Modseq::new(0x65),
        lsn: LSN,
        name: "$Forwarded",
    }
}

pub(crate) fn change(kind: ChangeKind) -> Change {
    Change {
        kind,
        mailbox: MailboxId::INBOX,
        uid_low: Uid::new(2),
        uid_high: Uid::new(9),
        modseq: Modseq::new(0x66),
        lsn: LSN,
        system_flags: info::ANSWERED,
        keywords: 0x67,
        time: WallNs::new(0x68),
    }
}

pub(crate) fn info_header() -> InfoHeader {
    InfoHeader {
        user: USER,
        ordinal: 2,
        generation: SEED.generation,
        created_at: WallNs::new(0x71),
        base_lsn: Lsn::new(0x72),
        base_modseq: 0x73,
        tombstones_from: 0x74,
        next_segment: 0x75,
        uidvalidity_max: 0x76,
        name: Box::from(&b"bob@example.test"[..]),
        version: Version::OURS,
    }
}

/// Header and one run of each kind.
pub(crate) fn info() -> Vec<u8> {
    let mut out = info_header().seal().to_vec();
    let slot = |out: &Vec<u8>| u32::try_from(out.len() / 64).unwrap();
    assert_eq!(slot(&out), FIRST_SLOT);
    mailbox().encode(SEED, slot(&out), &mut out);
    let at = slot(&out);
    out.extend_from_slice(fixed(at).bytes());
    out.extend_from_slice(&cache());
    change(ChangeKind::Flags).encode(SEED, slot(&out), &mut out);
    change(ChangeKind::Expunge).encode(SEED, slot(&out), &mut out);
    keyword().encode(SEED, slot(&out), &mut out);
    Retire::encode(&[0x81, 0x82, 0x83], SEED, slot(&out), &mut out);
    out
}

pub(crate) fn head(slot: u32, pseq: u64, chain: u32) -> Head {
    Head {
        group: Group::GoesOn,
        partition: PartitionId::new(0xABC),
        user: USER,
        ordinal: 2,
        mailbox: MailboxId::INBOX,
        modseq: Modseq::new(0x51),
        uid: 7,
        generation: SEED.generation,
        slot,
        body_crc: crc::of(STORED),
        pseq,
        epoch: Epoch::new(0x91),
        chain,
    }
}

/// A frame with one record of each type, header included, padded.
pub(crate) fn frame() -> Vec<u8> {
    let mut out = vec![0; 4096];
    let mut encoder = Encoder::resume(&mut out[FRAME_HEADER_BYTES..], Tally::default());
    let chain = 0xC0FF_EE00;
    let chain = encoder
        .user_create(&head(0, 1, chain), b"bob@example.test")
        .chain;
    let mut runs = Vec::new();
    mailbox().encode(SEED, 8, &mut runs);
    let chain = encoder
        .runs(&head(8, 2, chain), RecordType::Mailbox, &runs)
        .chain;
    let body = encoder.body(
        &Head::unowned(Group::GoesOn, crc::of(STORED)),
        &BodyParts {
            cache: &cache(),
            stored: STORED,
            stored_crc: crc::of(STORED),
        },
    );
    let parts = DeliverParts {
        fixed: &fixed(10),
        prefix: &prefix(),
        body_at: body.at,
    };
    let chain = encoder.deliver(&head(10, 3, chain), &parts).chain;
    let chain = encoder
        .deliver_file(&head(13, 4, chain), &fixed(13), &cache())
        .chain;
    let mut runs = Vec::new();
    change(ChangeKind::Flags).encode(SEED, 16, &mut runs);
    let chain = encoder
        .runs(&head(16, 5, chain), RecordType::Flags, &runs)
        .chain;
    let mut runs = Vec::new();
    change(ChangeKind::Expunge).encode(SEED, 17, &mut runs);
    let chain = encoder
        .runs(&head(17, 6, chain), RecordType::Expunge, &runs)
        .chain;
    let mut runs = Vec::new();
    keyword().encode(SEED, 18, &mut runs);
    encoder.runs(&head(18, 7, chain), RecordType::Keyword, &runs);
    encoder.noop(&Head::unowned(Group::Ends, 0));
    let tally = encoder.tally();
    finished(out, tally)
}

/// A frame with the commit of a compaction, header included, padded.
pub(crate) fn frame_swap() -> Vec<u8> {
    let mut out = vec![0; 4096];
    let mut encoder = Encoder::resume(&mut out[FRAME_HEADER_BYTES..], Tally::default());
    let mut head = head(0, 0, 0);
    head.group = Group::Ends;
    let parts = SwapParts {
        generation: 4,
        slots: 0x91,
        new: &[0x84, 0x85],
        retired: &[0x81, 0x82, 0x83],
    };
    encoder.info_swap(&head, &parts);
    let tally = encoder.tally();
    finished(out, tally)
}

/// A frame with what belongs to a partition as a whole: a barrier, a cut, a promise.
pub(crate) fn frame_partition() -> Vec<u8> {
    let mut out = vec![0; 4096];
    let mut encoder = Encoder::resume(&mut out[FRAME_HEADER_BYTES..], Tally::default());
    let head = |epoch, pseq, chain| {
        Head::of_partition(PartitionId::new(0xABC), Epoch::new(epoch), pseq, chain)
    };
    encoder.of_partition(&head(0x92, 8, 0xC0FF_EE01), RecordType::Epoch);
    encoder.of_partition(&head(0x93, 6, 0xC0FF_EE02), RecordType::Truncate);
    encoder.of_partition(&head(0x94, 0, 0), RecordType::Promise);
    let tally = encoder.tally();
    finished(out, tally)
}

/// With its header.
fn finished(mut frame: Vec<u8>, tally: Tally) -> Vec<u8> {
    let mut header = frame_header(FrameKind::Records, 4096);
    header.payload_len = u32::try_from(tally.payload_len).unwrap();
    header.records_count = tally.records_count;
    header.payload_crc = tally.payload_crc;
    frame[..FRAME_HEADER_BYTES].copy_from_slice(&header.seal());
    frame
}

pub(crate) fn frame_header(kind: FrameKind, frame_len: u32) -> FrameHeader {
    FrameHeader {
        salt: SALT,
        lsn: LSN,
        flushed_lsn: Lsn::new(LSN.value() - 4096),
        durable_lsn: Lsn::new(LSN.value() - 8192),
        frame_len,
        payload_len: 0,
        records_count: 0,
        kind,
        previous_crc: PREVIOUS_CRC,
        payload_crc: 0,
        wall: WallNs::new(0xA1),
        map_revision: 0xA2,
        header_crc: 0,
    }
}

pub(crate) fn dedupe_header() -> DedupeHeader {
    DedupeHeader {
        store: STORE,
        log_id: LOG_ID,
        logs: 0x18,
        capacity: 4,
        base_next: 8,
    }
}

pub(crate) fn dedupe_entry(sequence: u64) -> DedupeEntry {
    DedupeEntry {
        time_s: 0xB1,
        user: USER,
        ordinal: 0xB2,
        mailbox: MailboxId::new(0xB3),
        guid: guid(),
        uid: Uid::new(u32::try_from(sequence).unwrap()),
        body_crc: 0xB4,
    }
}

/// A ring of 4 with sequences 8, 9 and 10: the last place was never written.
pub(crate) fn dedupe() -> Vec<u8> {
    let mut out = dedupe_header().seal().to_vec();
    for sequence in 8..DEDUPE_NEXT {
        out.extend_from_slice(&dedupe_entry(sequence).seal(sequence));
    }
    out
}

pub(crate) fn partitions() -> Vec<PartitionState> {
    let start = |epoch, end, first_pseq| EpochStart {
        epoch: Epoch::new(epoch),
        end,
        first_pseq,
    };
    let damaged = PartitionState {
        partition: PartitionId::new(0xABC),
        health: Health::Damaged,
        promised: Epoch::new(0xC1),
        chain: 0xC2,
        pseq: 0xC3,
        commit_pseq: 0xC4,
        oldest_pseq: 0xC5,
        history: vec![start(1, EpochEnd::Unclean, 1), start(2, EpochEnd::Clean, 9)],
    };
    let fresh = PartitionState {
        partition: PartitionId::new(0x17),
        health: Health::Whole,
        history: Vec::new(),
        ..damaged.clone()
    };
    vec![damaged, fresh]
}

pub(crate) fn parts() -> Vec<u8> {
    parts::encode(STORE, LOG_ID, PARTS_SEQUENCE, &partitions())
}

pub(crate) fn store_file() -> StoreFile {
    StoreFile {
        version: Version::OURS,
        store: STORE,
        node: NodeId::new(31),
        partitions: PartitionCount::new(4096).unwrap(),
        logs: 2,
        key: HashKey::new(core::array::from_fn(|i| u8::try_from(i).unwrap())),
        newer: Vec::new(),
    }
}

pub(crate) fn folders() -> Folders {
    let folder = |mailbox, uidvalidity, name: &str| Folder {
        mailbox: MailboxId::new(mailbox),
        uidvalidity: UidValidity::new(uidvalidity),
        name: name.to_owned(),
    };
    Folders {
        user: b"bob@example.test".to_vec(),
        mailboxes: vec![
            folder(1, 0x6512_3456, "INBOX"),
            folder(3, 0x6512_3457, "100% \u{dc}bung"),
        ],
    }
}
