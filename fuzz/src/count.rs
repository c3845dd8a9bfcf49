//! Work of a given amount, for whoever counts its instructions (`ringpost-perf counters`): the same in
//! every run, without clock, threads or system calls that matter. What twice the work costs more is what
//! it costs.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use ringpost_engine::config::ShardConfig;
use ringpost_engine::format::crc;
use ringpost_engine::format::store_file::StoreId;
use ringpost_engine::format::store_line::StoreLine;
use ringpost_engine::io::sim::{Crash, SimConfig, SimDisk};
use ringpost_engine::io::{AlignedBuf, Completion, Done, Io, Op, SimIo, Token};
use ringpost_engine::mbox::{prefix, scan};
use ringpost_engine::prepare::{PrepareOptions, PreparedBody, Preparer, Push};
use ringpost_engine::request::{
    AppendGroup, Body, Dedupe, Event, Flags, MonotonicNs, Origin, Outcome, QuotaLimits, Recipient,
    Request,
};
use ringpost_engine::{Shard, ShardIdentity};
use ringpost_netproto::codec::{Decoder, encode_frame};
use ringpost_netproto::frame::{Frame, FrameHeader, Kind, Opcode, RequestId};
use ringpost_netproto::id::{Guid, MailboxId, NodeId, WallNs};
use ringpost_netproto::placement::{HashKey, PartitionCount, UserKey};

use crate::sim::node::{empty_disk, now_of};

/// Of a message.
const MESSAGE_BYTES: usize = 4_096;
/// Messages in flight.
const IN_FLIGHT: u64 = 64;
const USERS: u64 = 1_000;

/// A kind of work and its unit.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// For command lines and results.
    pub name: &'static str,
    /// Of what the amount is.
    pub unit: &'static str,
    run: fn(u64),
    /// What is done before and not counted, if it grows with the amount.
    before: Option<fn(u64)>,
}

/// All of them.
pub const CASES: &[Case] = &[
    Case::new("crc", "MiB", checksum),
    Case::new("frame", "frame of 4 KiB", frames),
    Case::new("prepare", "message of 4 KiB", prepares),
    Case::new("prepare-filed", "message of 4 KiB", prepares_filed),
    Case::new("scan", "MiB of mbox", scans),
    Case::new("append", "message of 4 KiB", appends),
    Case::new("append-shard", "message of 4 KiB", appends_without_disk),
    Case {
        name: "recovery",
        unit: "MiB of log",
        run: |count| recover(&crashed(count)),
        before: Some(|count| drop(crashed(count))),
    },
];

impl Case {
    const fn new(name: &'static str, unit: &'static str, run: fn(u64)) -> Self {
        Self {
            name,
            unit,
            run,
            before: None,
        }
    }

    /// Does so much of it.
    pub fn run(&self, count: u64) {
        (self.run)(count);
    }

    /// Only what is not counted.
    pub fn run_before(&self, count: u64) {
        if let Some(before) = self.before {
            before(count);
        }
    }
}

/// A message as an MTA hands it over: a header, words, one line in eight that mbox quotes.
fn message(number: u64) -> Vec<u8> {
    let mut text = format!(
        "Received: from a.test by b.test id {number:016x}\r\nFrom: A <a@a.test>\r\nTo: B <b@b.test>\r\n\
         Subject: message {number}\r\nDate: Thu, 1 Jan 2026 00:00:00 +0000\r\n\
         Message-ID: <{number:x}@a.test>\r\n\r\n"
    )
    .into_bytes();
    for line in 0u64.. {
        if text.len() >= MESSAGE_BYTES {
            break;
        }
        let start = if line.is_multiple_of(8) { "From " } else { "" };
        let words = format!("{start}line {line} of words that are neither long nor short\r\n");
        text.extend_from_slice(words.as_bytes());
    }
    text
}

fn preparer() -> Preparer {
    Preparer::new(PrepareOptions {
        message_bytes_max: 1 << 20,
        return_path: None,
        content_key: [3; 16],
    })
}

fn prepared(mut preparer: Preparer, text: &[u8]) -> PreparedBody {
    let pushed = preparer.push(text).expect("far below the limit");
    assert_eq!(pushed, Push::Buffered, "nothing was taken out");
    preparer.finish().body
}

fn checksum(count: u64) {
    let bytes = vec![7; 1 << 20];
    for _ in 0..count {
        std::hint::black_box(crc::of(std::hint::black_box(&bytes)));
    }
}

fn frames(count: u64) {
    let payload = Bytes::from(message(1));
    let mut out = BytesMut::new();
    for number in 0..count {
        let id = RequestId::new(number + 1);
        let frame = Frame {
            header: FrameHeader::new(Kind::Request, Opcode::Deliver, id),
            kind: Kind::Request,
            payload: payload.clone(),
        };
        out.extend_from_slice(&encode_frame(&frame));
        let mut decoder = Decoder::new(1 << 20);
        decoder.push(out.split().freeze());
        let came = decoder.next().expect("it was just encoded");
        assert!(came.is_some_and(|came| came.payload == payload));
    }
}

fn prepares(count: u64) {
    let text = message(1);
    for _ in 0..count {
        let body = prepared(preparer(), std::hint::black_box(&text));
        assert!(body.summary.quoted_count > 0);
    }
}

/// As for an import or an APPEND, whose retries are not known by their content.
fn prepares_filed(count: u64) {
    let text = message(1);
    for _ in 0..count {
        let preparer = preparer().without_content_hash();
        let body = prepared(preparer, std::hint::black_box(&text));
        assert!(body.summary.quoted_count > 0);
    }
}

fn scans(count: u64) {
    let body = prepared(preparer(), &message(1));
    let summary = &body.summary;
    let line = StoreLine {
        mailbox: MailboxId::INBOX,
        uidvalidity: 1,
        uid: 1,
        guid: Guid::new([1; 16]),
        internal_date: WallNs::new(0),
        stored_len: u32::try_from(summary.stored_len).expect("4 KiB"),
        stored_crc: summary.stored_crc,
        format_flags: u8::try_from(summary.format_flags & 0x1f).expect("five bits"),
    };
    let one = [
        &prefix(b"a@a.test", WallNs::new(0), &line),
        &body.stored[..],
        b"\n",
    ]
    .concat();
    let copies = (1 << 20) / one.len();
    let file = one.repeat(copies);
    for _ in 0..count {
        assert_eq!(scan(std::hint::black_box(&file)).len(), copies);
    }
}

fn config() -> ShardConfig {
    ShardConfig {
        log_file_bytes: 4 << 20,
        log_files_initial: 2,
        log_files_max: 64,
        pending_bytes_max: 256 << 20,
        dedupe_entries: 1 << 14,
        reserve_bytes: 0,
        checkpoint_interval_ns: 1 << 60,
        scrub_interval_ns: None,
        ..ShardConfig::default()
    }
}

const KEY: HashKey = HashKey::new([7; 16]);

fn partitions() -> PartitionCount {
    PartitionCount::new(4).expect("a power of two")
}

/// A shard on a simulated disk, and the time that passes for it.
struct Node<I: Io> {
    disk: SimDisk,
    shard: Shard<I>,
}

impl<I: Io> Node<I> {
    fn open(disk: &SimDisk, io: I, config: ShardConfig) -> Self {
        let identity = ShardIdentity {
            store: StoreId::new([9; 16]),
            node: NodeId::new(1),
            log_id: 0,
            logs: 1,
            partitions: partitions(),
            key: KEY,
        };
        let shard = Shard::open(io, identity, config, [5; 16], now_of(disk, 0));
        Self {
            disk: disk.clone(),
            shard: shard.expect("the store opens"),
        }
    }

    /// To the next completion or deadline.
    fn pass_time(&self) {
        let now = self.disk.now_ns();
        let deadline = self.shard.next_deadline().map(MonotonicNs::value);
        let to = [self.disk.next_due_ns(), deadline].into_iter().flatten();
        let to = to.min().unwrap_or(now + 1_000_000);
        self.disk.advance(to.saturating_sub(now).max(1));
    }
}

/// A disk that answers the writes of frames and keeps none of them, so that what is counted is the
/// shard's work alone. Log files have to be there from the start: to make them is the disk's.
struct Unwritten {
    inner: SimIo,
    answered: Vec<Completion>,
}

impl Io for Unwritten {
    fn submit(&mut self, op: Op, token: Token) -> Result<(), Op> {
        let Op::LogWrite { buf, .. } = op else {
            return self.inner.submit(op, token);
        };
        let result = Ok(Done::Buf(buf));
        self.answered.push(Completion { token, result });
        Ok(())
    }

    fn poll(&mut self, out: &mut Vec<Completion>) {
        out.append(&mut self.answered);
        self.inner.poll(out);
    }

    fn wait(&mut self) {
        if self.answered.is_empty() {
            self.inner.wait();
        }
    }

    fn log_bufs(&mut self, count: usize, bytes: usize) -> Vec<AlignedBuf> {
        self.inner.log_bufs(count, bytes)
    }
}

/// Takes `count` messages, so many at a time, each durable when it is answered.
fn take<I: Io>(mut node: Node<I>, count: u64) {
    let text = message(1);
    let body = prepared(preparer(), &text);
    let (mut sent, mut answered) = (0, 0);
    let mut events = Vec::new();
    while answered < count {
        while sent < count && sent - answered < IN_FLIGHT {
            let mut guid = [0; 16];
            guid.get_mut(..8)
                .expect("16 bytes")
                .copy_from_slice(&sent.to_le_bytes());
            let group = AppendGroup {
                body: Body::Small(Arc::new(body.clone())),
                sender: Bytes::from_static(b"a@a.test"),
                recipients: vec![Recipient {
                    user: UserKey::new(
                        format!("user{}", sent % USERS).as_bytes(),
                        &KEY,
                        partitions(),
                    )
                    .expect("a good name"),
                    mailbox: MailboxId::INBOX,
                    folder: None,
                    guid: Guid::new(guid),
                    dedupe: Dedupe::Yes,
                    internal_date: WallNs::new(sent),
                    flags: Flags::default(),
                    quota: QuotaLimits::default(),
                }],
                origin: Origin::Delivery,
            };
            let submitted = node
                .shard
                .submit(now_of(&node.disk, 0), Request::Append(group));
            submitted.expect("there is room");
            sent += 1;
        }
        node.shard.poll(now_of(&node.disk, 0), &mut events);
        for event in events.drain(..) {
            if let Event::Appended { outcomes, .. } = event {
                let stored = outcomes
                    .iter()
                    .all(|outcome| matches!(outcome, Outcome::Stored { .. }));
                assert!(stored, "{outcomes:?}");
                answered += 1;
            }
        }
        node.pass_time();
    }
}

fn disk() -> SimDisk {
    empty_disk(SimConfig::new(1), 1)
}

fn open(disk: &SimDisk) -> Node<SimIo> {
    Node::open(disk, disk.io(), config())
}

fn appends(count: u64) {
    take(open(&disk()), count);
}

fn appends_without_disk(count: u64) {
    let config = ShardConfig {
        log_file_bytes: 8 << 20,
        log_files_initial: 6,
        ..config()
    };
    let disk = disk();
    let io = Unwritten {
        inner: disk.io(),
        answered: Vec::new(),
    };
    take(Node::open(&disk, io, config), count);
}

/// A disk after a kill, with so many MiB of log that a start has to read.
fn crashed(mib: u64) -> SimDisk {
    // A message of 4 KiB takes 4.8 KiB of log, here.
    let mut disk = disk();
    take(open(&disk), mib * (1 << 20) / 4_900);
    disk.crash(Crash::Kill)
}

fn recover(disk: &SimDisk) {
    drop(open(disk));
}
