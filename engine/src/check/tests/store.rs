//! A small store in memory, made by hand from `format`: one user who is checkpointed and has more in
//! the log, one who is in the log only.

use std::collections::BTreeMap;

use ringpost_netproto::id::{
    Epoch, Guid, MailboxId, Modseq, NodeId, PartitionId, Uid, UidValidity, WallNs,
};
use ringpost_netproto::placement::{HashKey, PartitionCount, UserKey};

use super::super::ReadTree;
use crate::error::IoError;
use crate::format::dedupe::{DedupeEntry, DedupeHeader};
use crate::format::folders::{Folder, Folders};
use crate::format::frame::{FRAME_HEADER_BYTES, FrameHeader, FrameKind};
use crate::format::info::{
    Change, ChangeKind, InfoHeader, Mailbox, MailboxOp, Msg, MsgFixed, OWN_FILE, Seed, SpecialUse,
};
use crate::format::log_file::LogFileHeader;
use crate::format::parts::{self, Health, PartitionState};
use crate::format::record::{BodyParts, DeliverParts, Encoder, Group, Head, RecordType, Tally};
use crate::format::store_file::{StoreFile, StoreId};
use crate::format::store_line::StoreLine;
use crate::format::superblock::{Shutdown, Superblock};
use crate::format::{Version, crc};
use crate::io::RelPath;
use crate::mbox;
use crate::position::Lsn;

pub(super) const STORE: StoreId = StoreId::new([7; 16]);
const VALIDITY: u32 = 0x6512_3456;
const DATE: WallNs = WallNs::new(1_700_000_000_000_000_000);
/// Frames before this are below the checkpoint.
pub(super) const CHECKPOINT: u64 = 8192;
pub(super) const LOG_FILE_BYTES: usize = 64 << 10;

/// Files by path; directories are those that hold something, and those named.
#[derive(Clone, Default)]
pub(super) struct MemTree {
    pub(super) files: BTreeMap<String, Vec<u8>>,
    pub(super) dirs: Vec<String>,
}

impl ReadTree for MemTree {
    fn list(&self, dir: &RelPath) -> Result<Vec<(String, u64)>, IoError> {
        let inside = |path: &str| {
            let rest = path.strip_prefix(dir.as_str())?.strip_prefix('/')?;
            Some(rest.split('/').next()?.to_owned())
        };
        let mut names = BTreeMap::new();
        for path in &self.dirs {
            names.extend(inside(path).map(|name| (name, 0)));
        }
        for (path, bytes) in &self.files {
            let size = u64::try_from(bytes.len()).unwrap();
            let is_file = path
                .rsplit_once('/')
                .is_some_and(|(parent, _)| parent == dir.as_str());
            names.extend(inside(path).map(|name| (name, if is_file { size } else { 0 })));
        }
        if names.is_empty() && !self.dirs.contains(&dir.to_string()) {
            return Err(missing("list", dir));
        }
        Ok(names.into_iter().collect())
    }

    fn read(&self, file: &RelPath, offset: u64, len: usize) -> Result<Vec<u8>, IoError> {
        let bytes = self
            .files
            .get(file.as_str())
            .ok_or_else(|| missing("read", file))?;
        let from = usize::try_from(offset).unwrap().min(bytes.len());
        let end = (from + len).min(bytes.len());
        Ok(bytes[from..end].to_vec())
    }
}

fn missing(operation: &'static str, path: &RelPath) -> IoError {
    IoError {
        operation,
        path: path.to_string(),
        offset: 0,
        len: 0,
        errno: libc::ENOENT,
    }
}

pub(super) fn key() -> HashKey {
    HashKey::new([3; 16])
}

pub(super) fn partitions() -> PartitionCount {
    PartitionCount::new(4).unwrap()
}

fn user(name: &str) -> UserKey {
    UserKey::new(name.as_bytes(), &key(), partitions()).unwrap()
}

pub(super) fn user_dir(name: &str) -> RelPath {
    let user = user(name);
    RelPath::user_dir(user.partition(), user.hash(), 0)
}

fn seed(user: &UserKey) -> Seed {
    Seed {
        user: user.hash(),
        generation: 1,
    }
}

/// A message of the store: the number is its uid and makes its text. None of its fields is cached.
pub(super) fn stored(uid: u32) -> Vec<u8> {
    format!("X-Number: {uid}\n\n>From {uid} and so on\n").into_bytes()
}

/// What the store holds of a message.
struct Mail {
    msg: Msg,
    prefix: Vec<u8>,
    stored: Vec<u8>,
}

impl Mail {
    /// A message at `offset` of segment 1, or with a file of its own.
    fn new(uid: u32, lsn: u64, offset: u64, large: Option<u32>) -> Self {
        let stored = stored(uid);
        let guid = Guid::new([u8::try_from(uid).unwrap(); 16]);
        let line = StoreLine {
            mailbox: MailboxId::new(u32::from(large.is_none())),
            uidvalidity: if large.is_some() { 0 } else { VALIDITY },
            uid: if large.is_some() { 0 } else { uid },
            guid,
            internal_date: DATE,
            stored_len: u32::try_from(stored.len()).unwrap(),
            stored_crc: crc::of(&stored),
            format_flags: 9,
        };
        let prefix = mbox::prefix(b"eve@example.test", DATE, &line);
        let msg = Msg {
            format_flags: if large.is_some() { 9 | OWN_FILE } else { 9 },
            mailbox: MailboxId::INBOX,
            uid: Uid::new(uid),
            modseq: Modseq::new(u64::from(uid) + 1),
            lsn: Lsn::new(lsn),
            segment: large.unwrap_or(1),
            offset,
            stored_len: line.stored_len,
            skip: u16::try_from(prefix.len()).unwrap(),
            header_len: 13,
            lines_count: 3,
            quoted_count: 1,
            rfc822_size: 33,
            internal_date: DATE,
            date_s: None,
            system_flags: 0,
            stored_crc: line.stored_crc,
            keywords: 0,
            guid,
            held_for: 0,
        };
        Self {
            msg,
            prefix,
            stored,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        [&self.prefix[..], &self.stored, b"\n"].concat()
    }

    fn fixed(&self, user: &UserKey, slot: u32) -> MsgFixed {
        self.msg.fixed(0).seal(seed(user), slot, 0)
    }
}

fn inbox(lsn: u64) -> Mailbox<'static> {
    Mailbox {
        op: MailboxOp::Create,
        special_use: SpecialUse::None,
        mailbox: MailboxId::INBOX,
        uidvalidity: UidValidity::new(VALIDITY),
        modseq: Modseq::new(1),
        lsn: Lsn::new(lsn),
        uidnext: 1,
        highest_modseq: 0,
        time: DATE,
        name: "INBOX",
    }
}

/// The log being written: chained frames, chained records.
struct Log {
    file: Vec<u8>,
    pos: u64,
    previous_crc: u32,
    chains: BTreeMap<PartitionId, (u64, u32)>,
}

const SALT: u64 = 0x1234_5678_9ABC_DEF0;

impl Log {
    fn new() -> Self {
        let header = LogFileHeader {
            store: STORE,
            log_id: 0,
            sequence: 1,
            salt: SALT,
            start_lsn: Lsn::new(0),
            previous_salt: 0,
            armed_at: DATE,
            version: Version::OURS,
        };
        let mut file = header.seal().to_vec();
        file.resize(LOG_FILE_BYTES, 0);
        Self {
            file,
            pos: 0,
            previous_crc: 0,
            chains: BTreeMap::new(),
        }
    }

    fn frame(&mut self, kind: FrameKind, fill: impl FnOnce(&mut Records<'_>)) {
        let mut payload = vec![0; 8192];
        let mut records = Records {
            encoder: Encoder::resume(&mut payload, Tally::default()),
            chains: &mut self.chains,
        };
        fill(&mut records);
        let tally = records.encoder.tally();
        let payload_len = u32::try_from(tally.payload_len).unwrap();
        let mut header = FrameHeader {
            salt: SALT,
            lsn: Lsn::new(self.pos),
            flushed_lsn: Lsn::new(self.pos),
            durable_lsn: Lsn::new(self.pos),
            frame_len: u32::try_from(FrameHeader::frame_len_of(payload_len)).unwrap(),
            payload_len,
            records_count: tally.records_count,
            kind,
            previous_crc: self.previous_crc,
            payload_crc: tally.payload_crc,
            wall: DATE,
            map_revision: 0,
            header_crc: 0,
        };
        let at = usize::try_from(4096 + self.pos).unwrap();
        let sealed = header.seal();
        self.file[at..at + 80].copy_from_slice(&sealed);
        let payload = &payload[..tally.payload_len];
        let at = at + FRAME_HEADER_BYTES;
        self.file[at..at + payload.len()].copy_from_slice(payload);
        self.pos = header.end().value();
        self.previous_crc = header.header_crc;
    }
}

struct Records<'a> {
    encoder: Encoder<'a>,
    chains: &'a mut BTreeMap<PartitionId, (u64, u32)>,
}

impl Records<'_> {
    fn head(&mut self, user: &UserKey, slot: u32, group: Group) -> Head {
        let (pseq, chain) = self.chains.entry(user.partition()).or_default();
        *pseq += 1;
        Head {
            group,
            partition: user.partition(),
            user: user.hash(),
            ordinal: 0,
            mailbox: MailboxId::INBOX,
            modseq: Modseq::new(1),
            uid: 0,
            generation: 1,
            slot,
            body_crc: 0,
            pseq: *pseq,
            epoch: Epoch::new(1),
            chain: *chain,
        }
    }

    fn chained(&mut self, user: &UserKey, chain: u32) {
        self.chains.entry(user.partition()).or_default().1 = chain;
    }

    fn create(&mut self, user: &UserKey, lsn: u64) {
        let head = self.head(user, 0, Group::GoesOn);
        let placed = self.encoder.user_create(&head, user.name());
        self.chained(user, placed.chain);
        let head = self.head(user, 8, Group::GoesOn);
        let mut runs = Vec::new();
        inbox(lsn).encode(seed(user), 8, &mut runs);
        let placed = self.encoder.runs(&head, RecordType::Mailbox, &runs);
        self.chained(user, placed.chain);
    }

    fn expunge(&mut self, user: &UserKey, uid: u32, lsn: u64, slot: u32) {
        let mut runs = Vec::new();
        expunge(uid, lsn).encode(seed(user), slot, &mut runs);
        let head = self.head(user, slot, Group::Ends);
        let placed = self.encoder.runs(&head, RecordType::Expunge, &runs);
        self.chained(user, placed.chain);
    }

    fn msg_head(&mut self, user: &UserKey, mail: &Mail, slot: u32) -> Head {
        Head {
            modseq: mail.msg.modseq,
            uid: mail.msg.uid.value(),
            body_crc: mail.msg.stored_crc,
            ..self.head(user, slot, Group::Ends)
        }
    }

    fn deliver(&mut self, user: &UserKey, mail: &Mail, slot: u32) {
        let body = self.encoder.body(
            &Head::unowned(Group::GoesOn, mail.msg.stored_crc),
            &BodyParts {
                cache: &[],
                stored: &mail.stored,
                stored_crc: mail.msg.stored_crc,
            },
        );
        let head = self.msg_head(user, mail, slot);
        let fixed = mail.fixed(user, slot);
        let parts = DeliverParts {
            fixed: &fixed,
            prefix: &mail.prefix,
            body_at: body.at,
        };
        let placed = self.encoder.deliver(&head, &parts);
        self.chained(user, placed.chain);
    }

    fn deliver_file(&mut self, user: &UserKey, mail: &Mail, slot: u32) {
        let head = self.msg_head(user, mail, slot);
        let placed = self
            .encoder
            .deliver_file(&head, &mail.fixed(user, slot), &[]);
        self.chained(user, placed.chain);
    }
}

fn expunge(uid: u32, lsn: u64) -> Change {
    Change {
        kind: ChangeKind::Expunge,
        mailbox: MailboxId::INBOX,
        uid_low: Uid::new(uid),
        uid_high: Uid::new(uid),
        modseq: Modseq::new(50),
        lsn: Lsn::new(lsn),
        system_flags: 0,
        keywords: 0,
        time: DATE,
    }
}

/// Live messages of [`sound`].
pub(super) const MESSAGES: u64 = 6;

/// Bob has uids 1 to 3, 4 (large, expunged with its file) and 5 (large) in files; 6 (small), 7 (large)
/// and the expunge of 2 are in the log. Eve has uid 1 in the log.
pub(super) fn sound() -> MemTree {
    let mut tree = MemTree::default();
    let (bob, eve) = (user("bob"), user("eve"));
    let mut log = Log::new();
    // Below the checkpoint: nobody reads it again.
    log.frame(FrameKind::Records, |records| records.create(&bob, 0));
    log.frame(FrameKind::Noop, |_| {});
    assert_eq!(log.pos, CHECKPOINT);
    let seed_crc = log.previous_crc;
    let parts = parts_of(&log);

    let first = Mail::new(1, 0, 0, None);
    let second = Mail::new(2, 0, first.msg.segment_bytes(), None);
    let at = second.msg.offset + second.msg.segment_bytes();
    let third = Mail::new(3, 0, at, None);
    let at = at + third.msg.segment_bytes();
    let (fourth, fifth) = (Mail::new(4, 0, 0, Some(2)), Mail::new(5, 0, 0, Some(3)));
    let mut info = header(&bob).seal().to_vec();
    inbox(0).encode(seed(&bob), 8, &mut info);
    for (mail, slot) in [&first, &second, &third, &fourth, &fifth]
        .into_iter()
        .zip([10, 12, 14, 16, 18])
    {
        info.extend_from_slice(mail.fixed(&bob, slot).bytes());
    }
    expunge(4, 0).encode(seed(&bob), 20, &mut info);
    let dir = user_dir("bob");
    let segment: Vec<u8> = [&first, &second, &third]
        .iter()
        .flat_map(|mail| mail.bytes())
        .collect();
    tree.put(&dir.info(1), info);
    tree.put(&dir.segment(1), segment);
    tree.put(&dir.large(3, MailboxId::INBOX, Uid::new(5)), fifth.bytes());
    tree.put(&dir.folders(), folders("bob"));

    let sixth = Mail::new(6, CHECKPOINT, at, None);
    log.frame(FrameKind::Records, |records| {
        records.deliver(&bob, &sixth, 21);
    });
    let lsn = log.pos;
    let (seventh, hers) = (Mail::new(7, lsn, 0, Some(4)), Mail::new(1, lsn, 0, None));
    log.frame(FrameKind::Records, |records| {
        records.deliver_file(&bob, &seventh, 23);
        records.create(&eve, lsn);
        records.deliver(&eve, &hers, 10);
    });
    let lsn = log.pos;
    log.frame(FrameKind::Records, |records| {
        records.expunge(&bob, 2, lsn, 25);
    });
    log.frame(FrameKind::Noop, |_| {});
    tree.put(&dir.segment_part(4), seventh.bytes());
    tree.rest(log, seed_crc, &parts);
    tree
}

fn header(user: &UserKey) -> InfoHeader {
    InfoHeader {
        user: user.hash(),
        ordinal: 0,
        generation: 1,
        created_at: DATE,
        base_lsn: Lsn::new(0),
        base_modseq: 0,
        tombstones_from: 0,
        next_segment: 1,
        uidvalidity_max: 0,
        name: Box::from(user.name()),
        version: Version::OURS,
    }
}

fn folders(name: &str) -> Vec<u8> {
    let inbox = Folder {
        mailbox: MailboxId::INBOX,
        uidvalidity: UidValidity::new(VALIDITY),
        name: "INBOX".to_owned(),
    };
    Folders {
        user: name.as_bytes().to_vec(),
        mailboxes: vec![inbox],
    }
    .encode()
}

fn parts_of(log: &Log) -> Vec<PartitionState> {
    let state = |(partition, (pseq, chain)): (&PartitionId, &(u64, u32))| PartitionState {
        partition: *partition,
        health: Health::Whole,
        promised: Epoch::new(1),
        chain: *chain,
        pseq: *pseq,
        commit_pseq: *pseq,
        oldest_pseq: 1,
        history: Vec::new(),
    };
    log.chains.iter().map(state).collect()
}

pub(super) fn superblock(sequence: u64, previous_crc: u32) -> Superblock {
    Superblock {
        store: STORE,
        node: NodeId::new(1),
        log_id: 0,
        sequence,
        shutdown: Shutdown::Open,
        partitions: partitions(),
        storage_generation: 1,
        boots: 1,
        checkpoint_lsn: Lsn::new(CHECKPOINT),
        previous_crc,
        key_check: key().check(),
        map_revision: 0,
        oldest_log_sequence: 1,
        newest_log_sequence: 1,
        dedupe_next: 3,
        written_at: DATE,
        parts_sequence: 1,
        newer: None,
    }
}

impl MemTree {
    pub(super) fn put(&mut self, path: &RelPath, bytes: Vec<u8>) {
        self.files.insert(path.to_string(), bytes);
    }

    /// All that belongs to no user.
    fn rest(&mut self, log: Log, seed_crc: u32, states: &[PartitionState]) {
        let store = StoreFile {
            version: Version::OURS,
            store: STORE,
            node: NodeId::new(1),
            partitions: partitions(),
            logs: 1,
            key: key(),
            newer: Vec::new(),
        };
        self.put(&RelPath::store(), store.encode());
        let copies = [
            superblock(1, seed_crc).seal(),
            superblock(2, seed_crc).seal(),
        ];
        self.put(
            &RelPath::superblock(0),
            copies.iter().flat_map(|copy| copy.to_vec()).collect(),
        );
        self.put(&RelPath::log_file(0, 1), log.file);
        self.put(&RelPath::log_file(0, 2), vec![0; LOG_FILE_BYTES]);
        self.put(&RelPath::parts(0, 1), parts::encode(STORE, 0, 1, states));
        let ring = DedupeHeader {
            store: STORE,
            log_id: 0,
            logs: 1,
            capacity: 4,
            base_next: 0,
        };
        let mut dedupe = ring.seal().to_vec();
        for sequence in 0..3 {
            let entry = DedupeEntry {
                time_s: 1_700_000_000,
                user: user("bob").hash(),
                ordinal: 0,
                mailbox: MailboxId::INBOX,
                guid: Guid::new([9; 16]),
                uid: Uid::new(1),
                body_crc: 0,
            };
            dedupe.extend_from_slice(&entry.seal(sequence));
        }
        self.put(&RelPath::dedupe(0), dedupe);
        for number in 0..4 {
            self.dirs
                .push(RelPath::partition_dir(PartitionId::new(number)).to_string());
        }
    }
}
