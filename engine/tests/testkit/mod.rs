//! A shard on a simulated disk, and what a test wants of it: append, settle, read back, crash.
#![allow(
    dead_code,
    clippy::allow_attributes,
    reason = "each test binary uses its own part of the kit; an expect would fail in the others"
)]

pub(crate) mod backup;
pub(crate) mod client;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use ringpost_engine::check::{Report, check};
use ringpost_engine::config::ShardConfig;
use ringpost_engine::error::OpenError;
use ringpost_engine::format::store_file::{StoreFile, StoreId};
use ringpost_engine::io::RelPath;
use ringpost_engine::io::sim::{Crash, SimConfig, SimDisk, SimIo};
use ringpost_engine::large::StagedBody;
use ringpost_engine::mbox::{View, restore};
use ringpost_engine::prepare::{PrepareOptions, PreparedBody, Preparer, Push};
use ringpost_engine::request::{
    AppendGroup, Body, Dedupe, Event, Fetched, Flags, ListPage, MonotonicNs, Now, Origin, Outcome,
    QuotaLimits, Recipient, Refused, Request, StageId, Ticket,
};
use ringpost_engine::{Shard, ShardIdentity};
use ringpost_netproto::id::{Guid, MailboxId, NodeId, PartitionId, Uid, WallNs};
use ringpost_netproto::placement::{HashKey, PartitionCount, UserKey};

pub(crate) const KEY: HashKey = HashKey::new([7; 16]);
const PARTITIONS: u32 = 4;
/// 2026-01-01T00:00:00Z.
const WALL: u64 = 1_767_225_600_000_000_000;

pub(crate) fn partitions() -> PartitionCount {
    PartitionCount::new(PARTITIONS).expect("a power of two")
}

pub(crate) fn user(name: &str) -> UserKey {
    UserKey::new(name.as_bytes(), &KEY, partitions()).expect("a good name")
}

pub(crate) fn guid(number: u64) -> Guid {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    bytes[8..].copy_from_slice(&number.to_le_bytes());
    Guid::new(bytes)
}

pub(crate) fn preparer() -> Preparer {
    Preparer::new(PrepareOptions {
        message_bytes_max: 64 << 20,
        return_path: None,
        content_key: [3; 16],
    })
}

pub(crate) fn prepare(message: &[u8]) -> Arc<PreparedBody> {
    let mut preparer = preparer();
    assert_eq!(
        preparer.push(message).expect("within the limit"),
        Push::Buffered
    );
    Arc::new(preparer.finish().body)
}

/// A message that names itself, of about `bytes` bytes.
pub(crate) fn message(number: u64, bytes: usize) -> Vec<u8> {
    let mut text = format!(
        "Received: by test\r\nFrom: a@b.test\r\nSubject: mail {number}\r\n\r\n\
         From here on it is body {number}\r\n"
    )
    .into_bytes();
    let mut line = 0;
    while text.len() < bytes {
        text.extend_from_slice(format!("line {line} of mail {number}\r\n").as_bytes());
        line += 1;
    }
    text
}

pub(crate) fn identity(log_id: u32, logs: u32) -> ShardIdentity {
    ShardIdentity {
        store: StoreId::new([9; 16]),
        node: NodeId::new(1),
        log_id,
        logs,
        partitions: partitions(),
        key: KEY,
    }
}

/// A disk with the directories and the STORE file of an empty store with one log.
pub(crate) fn empty_disk(config: SimConfig) -> SimDisk {
    empty_disk_of(config, 1)
}

/// The same with more logs.
pub(crate) fn empty_disk_of(config: SimConfig, logs: u32) -> SimDisk {
    let disk = SimDisk::new(config);
    disk.put_dir(&RelPath::log_dir(0).parent());
    disk.put_dir(&RelPath::stage(0, 0).parent());
    for partition in 0..PARTITIONS {
        let partition = u16::try_from(partition).expect("few");
        disk.put_dir(&RelPath::partition_dir(PartitionId::new(partition)));
    }
    let file = StoreFile {
        version: ringpost_engine::format::Version::OURS,
        store: StoreId::new([9; 16]),
        node: NodeId::new(1),
        partitions: partitions(),
        logs,
        key: KEY,
        newer: Vec::new(),
    };
    let store = RelPath::root().entry("STORE").expect("a plain name");
    disk.put(&store, &file.encode());
    disk
}

pub(crate) fn now_of(disk: &SimDisk) -> Now {
    let ns = disk.now_ns();
    Now {
        monotonic: MonotonicNs::new(ns),
        wall: WallNs::new(WALL + ns),
    }
}

pub(crate) struct Bench {
    pub(crate) disk: SimDisk,
    pub(crate) shard: Shard<SimIo>,
    pub(crate) config: ShardConfig,
    pub(crate) events: Vec<Event>,
    open: BTreeSet<Ticket>,
}

impl Bench {
    pub(crate) fn new(config: ShardConfig) -> Self {
        Self::on(empty_disk(SimConfig::new(1)), config).expect("an empty store opens")
    }

    pub(crate) fn on(disk: SimDisk, config: ShardConfig) -> Result<Self, OpenError> {
        Self::on_log(disk, config, 0, 1)
    }

    /// One shard of a store that has several.
    pub(crate) fn on_log(
        disk: SimDisk,
        config: ShardConfig,
        log_id: u32,
        logs: u32,
    ) -> Result<Self, OpenError> {
        let now = now_of(&disk);
        let identity = identity(log_id, logs);
        let shard = Shard::open(disk.io(), identity, config.clone(), [5; 16], now)?;
        Ok(Self {
            disk,
            shard,
            config,
            events: Vec::new(),
            open: BTreeSet::new(),
        })
    }

    pub(crate) fn now(&self) -> Now {
        now_of(&self.disk)
    }

    pub(crate) fn submit(&mut self, request: Request) -> Result<Ticket, Refused> {
        let now = self.now();
        let ticket = self.shard.submit(now, request)?;
        self.open.insert(ticket);
        Ok(ticket)
    }

    pub(crate) fn group(users: &[&str], number: u64, body: Body) -> AppendGroup {
        let recipient = |name: &&str| Recipient {
            user: user(name),
            mailbox: MailboxId::INBOX,
            folder: None,
            guid: guid(number),
            dedupe: Dedupe::Yes,
            internal_date: WallNs::new(WALL + number * 1_000_000_000),
            flags: Flags::default(),
            quota: QuotaLimits::default(),
        };
        AppendGroup {
            body,
            sender: Bytes::from_static(b"sender@example.test"),
            recipients: users.iter().map(recipient).collect(),
            origin: Origin::Delivery,
        }
    }

    /// Submits a small message with the given number as its delivery id.
    pub(crate) fn append(&mut self, users: &[&str], number: u64, message: &[u8]) -> Ticket {
        let body = Body::Small(prepare(message));
        self.submit(Request::Append(Self::group(users, number, body)))
            .expect("taken")
    }

    /// Polls until every submitted request is answered.
    pub(crate) fn settle(&mut self) {
        for _turn in 0..200_000 {
            self.poll();
            if self.open.is_empty() || self.disk.is_crashed() {
                return;
            }
            self.pass_time();
        }
        panic!("requests without an answer: {:?}", self.open);
    }

    pub(crate) fn poll(&mut self) {
        let from = self.events.len();
        let now = self.now();
        self.shard.poll(now, &mut self.events);
        for event in self.events.iter().skip(from) {
            if let Some(ticket) = ticket_of(event) {
                assert!(self.open.remove(&ticket), "answered twice: {event:?}");
            }
        }
    }

    /// Whether every request is answered.
    pub(crate) fn is_answered(&self) -> bool {
        self.open.is_empty()
    }

    /// Those that are not.
    pub(crate) fn unanswered(&self) -> Vec<Ticket> {
        self.open.iter().copied().collect()
    }

    /// To the next completion or deadline.
    pub(crate) fn pass_time(&mut self) {
        let due = self.disk.next_due_ns();
        let deadline = self.shard.next_deadline().map(MonotonicNs::value);
        let now = self.disk.now_ns();
        let to = [due, deadline]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(now + 1_000_000);
        self.disk.advance(to.saturating_sub(now).max(1));
    }

    /// The outcomes of an append that was answered.
    pub(crate) fn outcomes(&self, ticket: Ticket) -> Vec<Outcome> {
        let found = self.events.iter().find_map(|event| match event {
            Event::Appended {
                ticket: other,
                outcomes,
            } if *other == ticket => Some(outcomes),
            _ => None,
        });
        found.expect("it was answered").clone()
    }

    /// The same, if it was answered.
    pub(crate) fn try_outcomes(&self, ticket: Ticket) -> Option<Vec<Outcome>> {
        self.events.iter().find_map(|event| match event {
            Event::Appended {
                ticket: other,
                outcomes,
            } if *other == ticket => Some(outcomes.clone()),
            _ => None,
        })
    }

    pub(crate) fn deliver(&mut self, users: &[&str], number: u64, message: &[u8]) -> Vec<Outcome> {
        let ticket = self.append(users, number, message);
        self.settle();
        self.outcomes(ticket)
    }

    pub(crate) fn checkpoint(&mut self) {
        self.submit(Request::Checkpoint).expect("taken");
        self.settle();
    }

    pub(crate) fn drain(&mut self) {
        self.submit(Request::Drain).expect("taken");
        self.settle();
    }

    pub(crate) fn list(&mut self, name: &str) -> Result<ListPage, Refused> {
        let request = Request::List {
            user: user(name),
            mailbox: MailboxId::INBOX,
            after: 0,
            entries_max: 1_000,
        };
        let ticket = self.submit(request)?;
        self.settle();
        let found = self.events.iter().find_map(|event| match event {
            Event::Listed {
                ticket: other,
                result,
            } if *other == ticket => Some(result),
            _ => None,
        });
        found.expect("it was answered").clone()
    }

    pub(crate) fn fetch(&mut self, name: &str, uid: u32) -> Result<Fetched, Refused> {
        self.fetch_piece(name, uid, 0, u32::MAX)
    }

    pub(crate) fn fetch_piece(
        &mut self,
        name: &str,
        uid: u32,
        stored_offset: u64,
        bytes_max: u32,
    ) -> Result<Fetched, Refused> {
        let request = Request::Fetch {
            user: user(name),
            mailbox: MailboxId::INBOX,
            uid: Uid::new(uid),
            stored_offset,
            bytes_max,
        };
        let ticket = self.submit(request)?;
        self.settle();
        let found = self.events.iter().find_map(|event| match event {
            Event::Fetched {
                ticket: other,
                result,
            } if *other == ticket => Some(result),
            _ => None,
        });
        found.expect("it was answered").clone()
    }

    /// Every message of a user's INBOX as received: guid and bytes, by uid.
    pub(crate) fn mailbox(&mut self, name: &str) -> BTreeMap<u32, (Guid, Bytes)> {
        let page = match self.list(name) {
            Err(Refused::NoSuchUser) => return BTreeMap::new(),
            other => other.expect("the mailbox can be listed"),
        };
        let mut found = BTreeMap::new();
        for entry in page.entries {
            let uid = entry.uid.value();
            let fetched = self
                .fetch(name, uid)
                .expect("a listed message can be fetched");
            let stored = self.whole(name, uid, &fetched);
            let bytes = restore(&stored, fetched.format_flags, View::AsReceived);
            let len = u64::try_from(bytes.len()).expect("short");
            assert_eq!(len, entry.received_size, "received size of uid {uid}");
            found.insert(uid, (entry.guid, bytes));
        }
        found
    }

    fn whole(&mut self, name: &str, uid: u32, first: &Fetched) -> Bytes {
        let mut stored = first.stored.to_vec();
        while (stored.len() as u64) < first.stored_len {
            let next = self.fetch_piece(name, uid, stored.len() as u64, u32::MAX);
            stored.extend_from_slice(&next.expect("the rest can be fetched").stored);
        }
        Bytes::from(stored)
    }

    /// A power cut or kill now; the store is opened again from what is left.
    pub(crate) fn crash(mut self, kind: Crash) -> Self {
        let disk = self.disk.crash(kind);
        let config = self.config.clone();
        drop(self);
        Self::on(disk, config).expect("a store opens after a crash")
    }

    /// What the offline checker says of the disk as it is.
    pub(crate) fn check(&self) -> Report {
        check_disk(&self.disk)
    }
}

pub(crate) fn check_disk(disk: &SimDisk) -> Report {
    check(disk, &mut |_progress| {})
}

pub(crate) fn ticket_of(event: &Event) -> Option<Ticket> {
    match event {
        Event::Appended { ticket, .. }
        | Event::StageBegun { ticket, .. }
        | Event::StageWritten { ticket, .. }
        | Event::StageExpanded { ticket, .. }
        | Event::Staged { ticket, .. }
        | Event::StageSealed { ticket, .. }
        | Event::Mailboxes { ticket, .. }
        | Event::Listed { ticket, .. }
        | Event::Fetched { ticket, .. }
        | Event::FlagsStored { ticket, .. }
        | Event::Expunged { ticket, .. }
        | Event::Copied { ticket, .. }
        | Event::MailboxChanged { ticket, .. }
        | Event::Changes { ticket, .. }
        | Event::SnapshotOpened { ticket, .. }
        | Event::Compacted { ticket, .. }
        | Event::BackupBegun { ticket, .. }
        | Event::BackupEnded { ticket, .. }
        | Event::Scrubbed { ticket, .. }
        | Event::Replicated { ticket, .. }
        | Event::Led { ticket, .. }
        | Event::Disowned { ticket, .. }
        | Event::Refilled { ticket, .. }
        | Event::Resumed { ticket, .. }
        | Event::Checkpointed { ticket, .. }
        | Event::Drained { ticket, .. } => Some(*ticket),
        _ => None,
    }
}

impl Bench {
    /// Receives a message into a stage file and appends it, piece by piece, as a connection would.
    pub(crate) fn deliver_large(
        &mut self,
        users: &[&str],
        number: u64,
        message: &[u8],
    ) -> Vec<Outcome> {
        self.try_deliver_large(users, number, message)
            .expect("the disk does not crash")
    }

    /// As [`Self::deliver_large`]; `None` if it was refused or the disk crashed on the way.
    pub(crate) fn try_deliver_large(
        &mut self,
        users: &[&str],
        number: u64,
        message: &[u8],
    ) -> Option<Vec<Outcome>> {
        let body = self.stage(number, message)?;
        let stage = body.stage;
        let group = Self::group(users, number, Body::Staged(body));
        let Event::Appended { outcomes, .. } = self.ask(Request::Append(group))? else {
            return None;
        };
        let now = self.now();
        let dropped = self.shard.submit(now, Request::StageDrop { stage });
        assert!(dropped.is_ok() || self.disk.is_crashed(), "{dropped:?}");
        self.poll();
        Some(outcomes)
    }

    /// An open stage file; `None` if it was refused or the disk crashed.
    pub(crate) fn stage_begin(&mut self) -> Option<StageId> {
        let begin = Request::StageBegin {
            size_hint: None,
            sender: Bytes::from_static(b"sender@example.test"),
            internal_date: WallNs::new(WALL),
        };
        let Event::StageBegun { result, .. } = self.ask(begin)? else {
            return None;
        };
        result.ok()
    }

    /// A message in a finished stage file; `None` if it was refused or the disk crashed on the way.
    pub(crate) fn stage(&mut self, number: u64, message: &[u8]) -> Option<Arc<StagedBody>> {
        let stage = self.stage_begin()?;
        let mut preparer = preparer();
        for chunk in message.chunks(3_001) {
            if preparer.push(chunk).expect("within the limit") == Push::ExpandSpilled {
                let expanded = self.ask(Request::StageExpand { stage })?;
                let Event::StageExpanded { result, .. } = expanded else {
                    return None;
                };
                let (crc, len) = result.ok()?;
                preparer.expanded(crc, len);
            }
            let data = preparer.take_stored();
            let written = self.ask(Request::StageWrite { stage, data })?;
            let Event::StageWritten { result: Ok(()), .. } = written else {
                return None;
            };
        }
        let body = preparer.finish().body;
        if !body.stored.is_empty() {
            let written = self.ask(Request::StageWrite {
                stage,
                data: body.stored.clone(),
            })?;
            let Event::StageWritten { result: Ok(()), .. } = written else {
                return None;
            };
        }
        let finish = Request::StageFinish {
            stage,
            summary: Box::new(body.summary.clone()),
            cache: body.cache.clone(),
            guid: guid(number),
        };
        let Event::Staged { result, .. } = self.ask(finish)? else {
            return None;
        };
        result.ok()
    }

    /// Submits a request and waits for its answer; `None` if there is none.
    pub(crate) fn ask(&mut self, request: Request) -> Option<Event> {
        let ticket = self.submit(request).ok()?;
        for _turn in 0..200_000 {
            self.poll();
            if !self.open.contains(&ticket) || self.disk.is_crashed() {
                break;
            }
            self.pass_time();
        }
        let mut events = self.events.iter();
        let place = events.position(|event| ticket_of(event) == Some(ticket))?;
        Some(self.events.remove(place))
    }

    /// Takes another node's file of a large message over, as a daemon would; `None` if it is refused
    /// or the disk crashed.
    pub(crate) fn take_file(&mut self, prefix: &[u8], stored: &[u8]) -> Option<(StageId, RelPath)> {
        let prefix = Bytes::copy_from_slice(prefix);
        let Event::StageBegun { result, .. } = self.ask(Request::StageTake { prefix })? else {
            return None;
        };
        let stage = result.ok()?;
        for chunk in stored.chunks(3_001) {
            let data = Bytes::copy_from_slice(chunk);
            let Event::StageWritten { result, .. } =
                self.ask(Request::StageWrite { stage, data })?
            else {
                return None;
            };
            result.ok()?;
        }
        let Event::StageSealed { result, .. } = self.ask(Request::StageSeal { stage })? else {
            return None;
        };
        Some((stage, result.ok()?))
    }
}
