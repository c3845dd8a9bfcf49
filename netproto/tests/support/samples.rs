//! One sample of every frame of the protocol, with every field set to something of its own.

use bytes::{Bytes, BytesMut};
use ringpost_netproto::codec::{self, Decoder};
use ringpost_netproto::frame::{Frame, FrameHeader, Kind, Opcode, RequestId, Status, flags};
use ringpost_netproto::id::{Guid, MailboxId, Modseq, NodeId, Uid, UidValidity, WallNs};
use ringpost_netproto::limits::PAYLOAD_BYTES_CEILING;
use ringpost_netproto::message::MailboxRef;
use ringpost_netproto::message::append::{AppendReply, AppendRequest, Made, Missing};
use ringpost_netproto::message::backup::BackupRequest;
use ringpost_netproto::message::deliver::{
    BodyForm, DeliverRecipient, DeliverRequest, RecipientReply,
};
use ringpost_netproto::message::fetch::{self, FetchRequest};
use ringpost_netproto::message::list::{ListEntry, ListPage, ListRequest, More};
use ringpost_netproto::message::mailbox::{self, MailboxStatus};
use ringpost_netproto::message::report::ReportField;
use ringpost_netproto::message::scrub;
use ringpost_netproto::message::stream::BodySum;
use ringpost_netproto::version::{ClusterId, Hello, Role, StoreId};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

/// Decodes what has to be one frame.
pub(crate) fn one_frame(bytes: &[u8]) -> Frame {
    let mut decoder = Decoder::new(PAYLOAD_BYTES_CEILING);
    decoder.push(Bytes::copy_from_slice(bytes));
    let frame = decoder.next().expect("a frame").expect("a whole frame");
    assert_eq!(decoder.next(), Ok(None));
    frame
}

/// Encodes a frame whose payload is what `write` appends.
pub(crate) fn frame(header: FrameHeader, write: impl FnOnce(&mut BytesMut) -> usize) -> Bytes {
    let mut out = BytesMut::new();
    codec::encode(&mut out, header, write, &[]);
    out.freeze()
}

/// A frame whose payload is `body` alone.
pub(crate) fn body_frame(header: FrameHeader, body: &[u8]) -> Bytes {
    frame(header, |out| {
        out.extend_from_slice(body);
        0
    })
}

pub(crate) fn request(opcode: Opcode, id: u64) -> FrameHeader {
    FrameHeader::new(Kind::Request, opcode, RequestId::new(id))
}

pub(crate) fn response(opcode: Opcode, id: u64) -> FrameHeader {
    FrameHeader::new(Kind::Response, opcode, RequestId::new(id))
}

pub(crate) fn hello_frame(hello: &Hello) -> Bytes {
    let payload = hello.to_payload();
    frame(
        FrameHeader::new(Kind::OneWay, Opcode::Hello, RequestId::NONE),
        |out| {
            out.extend_from_slice(payload.as_bytes());
            payload.as_bytes().len()
        },
    )
}

pub(crate) fn node_hello() -> Hello {
    Hello {
        core: Some(3),
        features: 0x0102_0304_0506_0708,
        cluster: ClusterId::new(*b"cluster-identity"),
        node: Some(NodeId::new(17)),
        node_epoch: 0x1112_1314_1516_1718,
        store: StoreId::new(*b"store-identity.."),
        store_generation: 5,
        payload_bytes_max: 2 << 20,
        map_revision: 99,
        map_hash: 0x2122_2324_2526_2728,
        nonce: std::array::from_fn(|at| u8::try_from(at).unwrap() + 1),
        ..Hello::new(Role::Node)
    }
}

pub(crate) fn deliver_request() -> DeliverRequest {
    DeliverRequest {
        sender: Bytes::from_static(b"alice@example.test"),
        recipients: vec![
            DeliverRecipient {
                address: Bytes::from_static(b"bob+lists@example.test"),
                mailbox: None,
            },
            DeliverRecipient {
                address: Bytes::from_static(b"\"o'b$x\"@\xff\0"),
                mailbox: Some(Bytes::from_static("B\u{fc}ro".as_bytes())),
            },
        ],
        queue_id: Bytes::from_static(b"4cB1xZ2kqz1Yz"),
        deadline_ms: 30_000,
        size_hint: Some(21),
    }
}

pub(crate) const BODY: &[u8] = b"Subject: x\r\n\r\nhello\n";

pub(crate) fn replies() -> Vec<RecipientReply> {
    vec![
        RecipientReply {
            status: Status::OkDuplicate,
            uid: Some(Uid::new(7)),
            guid: Some(Guid::new(*b"0123456789abcdef")),
            text: Bytes::new(),
        },
        RecipientReply {
            text: Bytes::from_static(b"no such account"),
            ..RecipientReply::new(Status::NoUser)
        },
    ]
}

pub(crate) fn mailbox_status() -> MailboxStatus {
    MailboxStatus {
        mailbox: MailboxId::INBOX,
        name: Bytes::from_static(b"INBOX"),
        uidvalidity: UidValidity::new(0x5152_5354),
        uidnext: 12,
        highest_modseq: 0x6162_6364_6566_6768,
        messages_count: 3,
        bytes: 0x7172_7374,
    }
}

pub(crate) fn entry(uid: u32, cache: &'static [u8]) -> ListEntry {
    ListEntry {
        uid: Uid::new(uid),
        modseq: Modseq::new(0x0a0b_0c0d),
        flags: 0b101,
        internal_date: WallNs::new(1_700_000_000_123_456_789),
        rfc822_size: 22,
        received_size: 21,
        guid: Guid::new(*b"fedcba9876543210"),
        date_s: Some(-1),
        cache: Bytes::from_static(cache),
    }
}

pub(crate) fn page() -> ListPage {
    ListPage {
        status: mailbox_status(),
        entries: vec![
            entry(7, b"header cache"),
            ListEntry {
                date_s: None,
                ..entry(9, b"")
            },
        ],
        more: More::Yes,
    }
}

pub(crate) fn list_requests() -> [ListRequest; 2] {
    [
        ListRequest {
            user: Bytes::from_static(b"bob"),
            mailbox: MailboxRef::Id(MailboxId::SENT),
            after_uid: 6,
            entries_max: 100,
        },
        ListRequest {
            user: Bytes::from_static(b"bob"),
            mailbox: MailboxRef::Name(Bytes::from_static(b"Lists/rust")),
            after_uid: 0,
            entries_max: 1,
        },
    ]
}

pub(crate) fn append_request() -> AppendRequest {
    AppendRequest {
        user: Bytes::from_static(b"bob"),
        mailbox: MailboxRef::Name(Bytes::from_static(b"Archive/2024")),
        missing: Missing::Create,
        sender: Bytes::from_static(b"alice@example.test"),
        flags: 0b1_0001,
        keywords: vec![
            Bytes::from_static(b"$Forwarded"),
            Bytes::from_static(b"junk"),
        ],
        internal_date: Some(WallNs::new(1_700_000_000_000_000_000)),
        dedupe_id: Some(Guid::new(*b"an import's name")),
        deadline_ms: 60_000,
        size_hint: Some(20),
    }
}

/// Everything that can be left out is.
pub(crate) fn bare_append() -> AppendRequest {
    AppendRequest {
        mailbox: MailboxRef::Id(MailboxId::SENT),
        missing: Missing::Refuse,
        sender: Bytes::new(),
        keywords: Vec::new(),
        internal_date: None,
        dedupe_id: None,
        deadline_ms: 0,
        size_hint: None,
        ..append_request()
    }
}

pub(crate) fn append_reply() -> AppendReply {
    AppendReply {
        status: Status::Ok,
        uid: Uid::new(7),
        uidvalidity: UidValidity::new(0x5152_5354),
        mailbox: MailboxId::new(9),
        made: Made::Yes,
        guid: Guid::new(*b"an import's name"),
    }
}

pub(crate) fn fetch_request() -> FetchRequest {
    FetchRequest {
        user: Bytes::from_static(b"bob"),
        mailbox: MailboxRef::Id(MailboxId::INBOX),
        uid: Uid::new(7),
    }
}

pub(crate) fn fields() -> Vec<ReportField> {
    let field = |name: &str, value: &str| ReportField {
        name: name.into(),
        value: value.into(),
    };
    vec![field("log.used_bytes", "4096"), field("state", "ready")]
}

pub(crate) fn body_sum() -> BodySum {
    let mut sum = BodySum::default();
    sum.add(BODY.len(), crc32fast::hash(BODY));
    sum
}

/// A header in which every field is set, beside those of connection and payload.
fn full_header() -> FrameHeader {
    let mut header = request(Opcode::Deliver, 0x0000_0001_0000_0001).with_deadline_ms(30_000);
    header.flags = U16::new(flags::URGENT | flags::RETRY);
    header.partition = U32::new(0x0abc);
    header.epoch = U32::new(5);
    header.pseq = U64::new(0x3132_3334_3536_3738);
    header.credit = U32::new(4096);
    header.map_lo = U16::new(0x4142);
    header
}

/// The connection's own frames, by the name of their golden file.
fn connection() -> Vec<(&'static str, Bytes)> {
    let one_way = |opcode| FrameHeader::new(Kind::OneWay, opcode, RequestId::NONE);
    let mut credit = one_way(Opcode::Credit);
    credit.credit = U32::new(2 << 20);
    let goaway = one_way(Opcode::GoAway).with_status(Status::Stopping);
    let cancel = FrameHeader::new(Kind::Cancel, Opcode::Cancel, RequestId::new(9));
    vec![
        ("hello_shim", hello_frame(&Hello::new(Role::Shim))),
        ("hello_node", hello_frame(&node_hello())),
        ("goaway", body_frame(goaway, b"the node is stopping")),
        ("ping", body_frame(request(Opcode::Ping, 3), b"")),
        ("pong", body_frame(response(Opcode::Ping, 3), b"")),
        ("credit", body_frame(credit, b"")),
        ("cancel", body_frame(cancel, b"")),
    ]
}

fn deliver() -> Vec<(&'static str, Bytes)> {
    let id = RequestId::new(5);
    let message = deliver_request();
    let unknown_size = DeliverRequest {
        sender: Bytes::new(),
        size_hint: None,
        ..deliver_request()
    };
    let mut inline = BytesMut::new();
    let encode = |out: &mut BytesMut| message.encode(BodyForm::Inline, out);
    codec::encode(&mut inline, full_header(), encode, BODY);
    inline.extend_from_slice(BODY);
    let refused = response(Opcode::Deliver, 5).with_status(Status::Busy);
    vec![
        ("deliver_inline", inline.freeze()),
        (
            "deliver_streamed",
            frame(
                request(Opcode::Deliver, 5).with_deadline_ms(unknown_size.deadline_ms),
                |out| unknown_size.encode(BodyForm::Streamed, out),
            ),
        ),
        (
            "deliver_data",
            body_frame(
                FrameHeader::new(Kind::StreamData, Opcode::DeliverBody, id),
                BODY,
            ),
        ),
        (
            "deliver_end",
            frame(
                FrameHeader::new(Kind::StreamEnd, Opcode::DeliverBody, id),
                |out| body_sum().encode_end(out),
            ),
        ),
        (
            "deliver_reply",
            frame(response(Opcode::Deliver, 5), |out| {
                RecipientReply::encode_all(&replies(), out)
            }),
        ),
        ("deliver_refused", body_frame(refused, b"busy: log")),
    ]
}

fn append() -> Vec<(&'static str, Bytes)> {
    let id = RequestId::new(19);
    let (message, bare) = (append_request(), bare_append());
    let mut inline = BytesMut::new();
    let header = request(Opcode::Append, 19).with_deadline_ms(message.deadline_ms);
    let encode = |out: &mut BytesMut| message.encode(BodyForm::Inline, out);
    codec::encode(&mut inline, header, encode, BODY);
    inline.extend_from_slice(BODY);
    let duplicate = AppendReply {
        status: Status::OkDuplicate,
        made: Made::No,
        ..append_reply()
    };
    let reply = |status| response(Opcode::Append, 19).with_status(status);
    vec![
        ("append_inline", inline.freeze()),
        (
            "append_streamed",
            frame(request(Opcode::Append, 19), |out| {
                bare.encode(BodyForm::Streamed, out)
            }),
        ),
        (
            "append_data",
            body_frame(FrameHeader::new(Kind::StreamData, Opcode::Append, id), BODY),
        ),
        (
            "append_end",
            frame(
                FrameHeader::new(Kind::StreamEnd, Opcode::Append, id),
                |out| body_sum().encode_end(out),
            ),
        ),
        (
            "append_reply",
            frame(reply(Status::Ok), |out| append_reply().encode(out)),
        ),
        (
            "append_reply_duplicate",
            frame(reply(Status::OkDuplicate), |out| duplicate.encode(out)),
        ),
        (
            "append_reply_refused",
            body_frame(reply(Status::NoMailbox), b"no such mailbox"),
        ),
    ]
}

fn reading() -> Vec<(&'static str, Bytes)> {
    let [by_id, by_name] = list_requests();
    let id = RequestId::new(15);
    let broken = FrameHeader::new(Kind::StreamEnd, Opcode::Fetch, id).with_status(Status::Corrupt);
    vec![
        (
            "mailboxes",
            frame(request(Opcode::MailboxList, 7), |out| {
                mailbox::encode_request(b"bob", out)
            }),
        ),
        (
            "mailboxes_reply",
            frame(response(Opcode::MailboxList, 7), |out| {
                MailboxStatus::encode_all(&[mailbox_status(), mailbox_status()], out)
            }),
        ),
        (
            "list_by_id",
            frame(request(Opcode::List, 11), |out| by_id.encode(out)),
        ),
        (
            "list_by_name",
            frame(request(Opcode::List, 13), |out| by_name.encode(out)),
        ),
        (
            "list_reply",
            frame(response(Opcode::List, 11), |out| page().encode(out)),
        ),
        (
            "fetch",
            frame(request(Opcode::Fetch, 15), |out| {
                fetch_request().encode(out)
            }),
        ),
        (
            "fetch_reply",
            frame(response(Opcode::Fetch, 15), |out| {
                fetch::encode_head(&entry(7, b""), out)
            }),
        ),
        (
            "fetch_data",
            body_frame(FrameHeader::new(Kind::StreamData, Opcode::Fetch, id), BODY),
        ),
        (
            "fetch_end",
            frame(
                FrameHeader::new(Kind::StreamEnd, Opcode::Fetch, id),
                |out| body_sum().encode_end(out),
            ),
        ),
        (
            "fetch_broken_off",
            frame(broken, |out| {
                let meta_len = BodySum::default().encode_end(out);
                out.extend_from_slice(b"a segment is damaged");
                meta_len
            }),
        ),
        ("status", body_frame(request(Opcode::Status, 17), b"")),
        (
            "status_reply",
            frame(response(Opcode::Status, 17), |out| {
                ReportField::encode_all(&fields(), out)
            }),
        ),
    ]
}

fn operator() -> Vec<(&'static str, Bytes)> {
    vec![(
        "backup",
        frame(request(Opcode::Backup, 18), |out| {
            BackupRequest::Hold {
                id: 0x0102_0304_0506_0708,
                lease_s: 120,
            }
            .encode(out)
        }),
    )]
}

/// Every sample, by the name of its golden file.
pub(crate) fn all() -> Vec<(&'static str, Bytes)> {
    [
        connection(),
        deliver(),
        reading(),
        append(),
        operator(),
        scrubbing(),
    ]
    .concat()
}

fn scrubbing() -> Vec<(&'static str, Bytes)> {
    vec![
        (
            "scrub",
            frame(request(Opcode::Scrub, 19), |out| {
                scrub::encode_request(Some(b"bob"), out)
            }),
        ),
        (
            "scrub_reply",
            frame(response(Opcode::Scrub, 19), |out| {
                ReportField::encode_all(&fields(), out)
            }),
        ),
    ]
}
