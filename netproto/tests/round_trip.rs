//! Messages of any content come back as they were; payloads of any content give a fault.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use bytes::{Bytes, BytesMut};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use ringpost_netproto::frame::{Frame, FrameHeader, Kind, Opcode, RequestId, Status, flags};
use ringpost_netproto::id::{Guid, MailboxId, Modseq, Uid, UidValidity, WallNs};
use ringpost_netproto::message::append::{AppendBody, AppendReply, AppendRequest, Made, Missing};
use ringpost_netproto::message::deliver::{
    BodyForm, DeliverBody, DeliverRecipient, DeliverRequest, RecipientReply,
};
use ringpost_netproto::message::fetch::{self, FetchRequest};
use ringpost_netproto::message::list::{ListEntry, ListPage, ListRequest, More};
use ringpost_netproto::message::mailbox::{self, MailboxStatus};
use ringpost_netproto::message::report::ReportField;
use ringpost_netproto::message::stream::{BodySum, decode_end};
use ringpost_netproto::message::{Fault, MailboxRef, printable};
use zerocopy::little_endian::U16;

use support::samples::{self, frame, one_frame, request, response};

fn bytes(len: std::ops::RangeInclusive<usize>) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), len).prop_map(Bytes::from)
}

prop_compose! {
    fn recipient()(address in bytes(0..=321), mailbox in option::of(bytes(0..=256))) -> DeliverRecipient {
        DeliverRecipient { address, mailbox }
    }
}

prop_compose! {
    fn deliver()(
        sender in bytes(0..=320),
        recipients in vec(recipient(), 1..20),
        queue_id in bytes(0..=64),
        deadline_ms in any::<u32>(),
        size_hint in option::of(0..u64::MAX),
    ) -> DeliverRequest {
        DeliverRequest { sender, recipients, queue_id, deadline_ms, size_hint }
    }
}

prop_compose! {
    fn append()(
        who in (bytes(1..=255), mailbox_ref(), any::<bool>(), bytes(0..=320)),
        flags in any::<u32>(),
        keywords in vec(bytes(1..=255), 0..=64),
        internal_date in option::of(1..u64::MAX),
        id in option::of(any::<[u8; 15]>()),
        deadline_ms in any::<u32>(),
        size_hint in option::of(0..u64::MAX),
    ) -> AppendRequest {
        let (user, mailbox, create, sender) = who;
        AppendRequest {
            user,
            mailbox,
            missing: if create { Missing::Create } else { Missing::Refuse },
            sender,
            flags,
            keywords,
            internal_date: internal_date.map(WallNs::new),
            dedupe_id: id.map(|some| {
                let mut all = [1; 16];
                all[1..].copy_from_slice(&some);
                Guid::new(all)
            }),
            deadline_ms,
            size_hint,
        }
    }
}

prop_compose! {
    fn reply()(status in any::<u16>(), uid in option::of(1..u32::MAX), guid in option::of(any::<[u8; 15]>()), text in bytes(0..=256)) -> RecipientReply {
        let guid = guid.map(|some| {
            let mut all = [1; 16];
            all[1..].copy_from_slice(&some);
            Guid::new(all)
        });
        RecipientReply { status: Status::from_wire(status), uid: uid.map(Uid::new), guid, text }
    }
}

prop_compose! {
    fn mailbox_status()(
        numbers in any::<(u32, u32, u32, u64, u32, u64)>(),
        name in bytes(0..=255),
    ) -> MailboxStatus {
        MailboxStatus {
            mailbox: MailboxId::new(numbers.0),
            name,
            uidvalidity: UidValidity::new(numbers.1),
            uidnext: numbers.2,
            highest_modseq: numbers.3,
            messages_count: numbers.4,
            bytes: numbers.5,
        }
    }
}

prop_compose! {
    fn entry()(
        numbers in any::<(u32, u64, u32, u64, u32, u64)>(),
        guid in any::<[u8; 16]>(),
        date_s in any::<Option<i64>>(),
        cache in bytes(0..=960),
    ) -> ListEntry {
        ListEntry {
            uid: Uid::new(numbers.0),
            modseq: Modseq::new(numbers.1),
            flags: numbers.2,
            internal_date: WallNs::new(numbers.3),
            rfc822_size: numbers.4,
            received_size: numbers.5,
            guid: Guid::new(guid),
            date_s,
            cache,
        }
    }
}

fn mailbox_ref() -> impl Strategy<Value = MailboxRef> {
    prop_oneof![
        any::<u32>().prop_map(|id| MailboxRef::Id(MailboxId::new(id))),
        bytes(1..=255).prop_map(MailboxRef::Name),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn deliver_requests_come_back(message in deliver(), body in bytes(0..=2_000)) {
        let header = request(Opcode::Deliver, 1).with_deadline_ms(message.deadline_ms);
        let inline = one_frame(&frame(header, |out| {
            let meta_len = message.encode(BodyForm::Inline, out);
            out.extend_from_slice(&body);
            meta_len
        }));
        prop_assert_eq!(
            DeliverRequest::decode(&inline),
            Ok((message.clone(), DeliverBody::Inline(body)))
        );
        let streamed = one_frame(&frame(header, |out| message.encode(BodyForm::Streamed, out)));
        prop_assert_eq!(DeliverRequest::decode(&streamed), Ok((message, DeliverBody::Streamed)));
    }

    #[test]
    fn appends_come_back(message in append(), body in bytes(0..=2_000)) {
        let header = request(Opcode::Append, 1).with_deadline_ms(message.deadline_ms);
        let inline = one_frame(&frame(header, |out| {
            let meta_len = message.encode(BodyForm::Inline, out);
            out.extend_from_slice(&body);
            meta_len
        }));
        let wanted = Ok((message.clone(), AppendBody::Inline(body)));
        prop_assert_eq!(AppendRequest::decode(&inline), wanted);
        let streamed = one_frame(&frame(header, |out| message.encode(BodyForm::Streamed, out)));
        prop_assert_eq!(AppendRequest::decode(&streamed), Ok((message, AppendBody::Streamed)));
    }

    #[test]
    fn append_replies_come_back(numbers in any::<(u32, u32, u32)>(), made in any::<bool>(), again in any::<bool>(), guid in any::<[u8; 16]>()) {
        let reply = AppendReply {
            status: if again { Status::OkDuplicate } else { Status::Ok },
            uid: Uid::new(numbers.0),
            uidvalidity: UidValidity::new(numbers.1),
            mailbox: MailboxId::new(numbers.2),
            made: if made { Made::Yes } else { Made::No },
            guid: Guid::new(guid),
        };
        let header = response(Opcode::Append, 1).with_status(reply.status);
        let encoded = one_frame(&frame(header, |out| reply.encode(out)));
        prop_assert_eq!(AppendReply::decode(&encoded), Ok(reply));
    }

    #[test]
    fn replies_come_back(replies in vec(reply(), 0..30)) {
        let encoded = one_frame(&frame(response(Opcode::Deliver, 1), |out| RecipientReply::encode_all(&replies, out)));
        let count = replies.len();
        prop_assert!(RecipientReply::decode_all(&encoded, count + 1).is_err());
        prop_assert_eq!(RecipientReply::decode_all(&encoded, count), Ok(replies));
    }

    #[test]
    fn lists_come_back(status in mailbox_status(), entries in vec(entry(), 0..20), more in any::<bool>(), user in bytes(1..=255), mailbox in mailbox_ref(), numbers in any::<(u32, u32)>()) {
        let page = ListPage { status, entries, more: if more { More::Yes } else { More::No } };
        let encoded = one_frame(&frame(response(Opcode::List, 1), |out| page.encode(out)));
        prop_assert_eq!(ListPage::decode(&encoded), Ok(page));
        let asked = ListRequest { user, mailbox, after_uid: numbers.0, entries_max: numbers.1 };
        let encoded = one_frame(&frame(request(Opcode::List, 1), |out| asked.encode(out)));
        prop_assert_eq!(ListRequest::decode(&encoded), Ok(asked));
    }

    #[test]
    fn mailboxes_come_back(mailboxes in vec(mailbox_status(), 0..20), user in bytes(1..=255)) {
        let encoded = one_frame(&frame(response(Opcode::MailboxList, 1), |out| MailboxStatus::encode_all(&mailboxes, out)));
        prop_assert_eq!(MailboxStatus::decode_all(&encoded), Ok(mailboxes));
        let encoded = one_frame(&frame(request(Opcode::MailboxList, 1), |out| mailbox::encode_request(&user, out)));
        prop_assert_eq!(mailbox::decode_request(&encoded), Ok(user));
    }

    #[test]
    fn fetches_come_back(entry in entry(), user in bytes(1..=255), mailbox in mailbox_ref(), uid in any::<u32>()) {
        let encoded = one_frame(&frame(response(Opcode::Fetch, 1), |out| fetch::encode_head(&entry, out)));
        let head = ListEntry { cache: Bytes::new(), ..entry };
        prop_assert_eq!(fetch::decode_head(&encoded), Ok(head));
        let asked = FetchRequest { user, mailbox, uid: Uid::new(uid) };
        let encoded = one_frame(&frame(request(Opcode::Fetch, 1), |out| asked.encode(out)));
        prop_assert_eq!(FetchRequest::decode(&encoded), Ok(asked));
    }

    #[test]
    fn a_sum_joined_from_pieces_is_that_of_the_whole(pieces in vec(bytes(1..=300), 0..20)) {
        let mut sum = BodySum::default();
        for piece in &pieces {
            sum.add(piece.len(), crc32fast::hash(piece));
        }
        let whole = pieces.concat();
        prop_assert_eq!(sum.crc(), crc32fast::hash(&whole));
        prop_assert_eq!(sum.len(), u64::try_from(whole.len()).unwrap());
    }

    /// No payload makes a decoder panic, whatever its meta length says.
    #[test]
    fn any_payload_is_survived(payload in vec(prop_oneof![any::<u8>(), Just(0u8), Just(1u8), Just(255u8)], 0..300), meta_len in 0usize..300) {
        let meta_len = meta_len.min(payload.len());
        decode_as_everything(&one_frame(&frame(request(Opcode::Deliver, 1), |out| {
            out.extend_from_slice(&payload);
            meta_len
        })));
    }

    /// Nor does a true payload in which a few bytes were changed.
    #[test]
    fn any_changed_payload_is_survived(which in any::<prop::sample::Index>(), changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let all = samples::all();
        let (_, sample) = which.get(&all);
        let sample = one_frame(sample);
        let mut payload = BytesMut::from(&sample.payload[..]);
        for (at, value) in &changes {
            if !payload.is_empty() {
                let at = at.index(payload.len());
                payload[at] = *value;
            }
        }
        decode_as_everything(&Frame { payload: payload.freeze(), ..sample });
    }

    #[test]
    fn printable_text_has_no_control_characters(text in bytes(0..=400)) {
        prop_assert!(!printable(&text).chars().any(char::is_control));
    }
}

fn decode_as_everything(frame: &Frame) {
    drop(DeliverRequest::decode(frame));
    drop(RecipientReply::decode_all(frame, 2));
    drop(AppendRequest::decode(frame));
    drop(AppendReply::decode(frame).map_err(|fault| fault.violation(Opcode::Append)));
    drop(ListRequest::decode(frame));
    drop(ListPage::decode(frame));
    drop(mailbox::decode_request(frame));
    drop(MailboxStatus::decode_all(frame));
    drop(FetchRequest::decode(frame));
    drop(fetch::decode_head(frame));
    drop(decode_end(frame).map_err(|fault| fault.violation(Opcode::Fetch)));
    drop(ReportField::decode_all(frame));
}

/// A longer meta struct is a newer writer's: its tail is passed over, unless its flag forbids.
#[test]
fn a_meta_struct_may_grow_at_its_end() {
    let grown = |flag: u16| {
        let mut header = request(Opcode::List, 1);
        header.flags = U16::new(flag);
        let [asked, _] = samples::list_requests();
        let mut plain = BytesMut::new();
        let meta_len = asked.encode(&mut plain);
        one_frame(&frame(header, |out| {
            out.extend_from_slice(&plain[..meta_len]);
            out.extend_from_slice(b"newer");
            out.extend_from_slice(&plain[meta_len..]);
            meta_len + 5
        }))
    };
    let [asked, _] = samples::list_requests();
    assert_eq!(ListRequest::decode(&grown(0)), Ok(asked));
    assert!(matches!(
        ListRequest::decode(&grown(flags::MUST_UNDERSTAND)),
        Err(Fault::Refused(Status::Unsupported, _))
    ));
}

/// A shorter one is an older writer's: what is missing is zero.
#[test]
fn a_meta_struct_may_be_shorter() {
    let short = one_frame(&frame(request(Opcode::List, 1), |out| {
        out.extend_from_slice(&[3, 0, 0xff, 0xff, 1, 0, 0, 0]);
        out.extend_from_slice(b"bob");
        8
    }));
    let asked = ListRequest::decode(&short).unwrap();
    assert_eq!((asked.after_uid, asked.entries_max), (0, 0));
    assert_eq!(asked.mailbox, MailboxRef::Id(MailboxId::INBOX));
}

/// Rows of an answer may grow as well: their length is in the answer.
#[test]
fn rows_may_grow_at_their_end() {
    let mut plain = BytesMut::new();
    RecipientReply::encode_all(&[RecipientReply::new(Status::Ok)], &mut plain);
    let grown = one_frame(&frame(response(Opcode::Deliver, 1), |out| {
        out.extend_from_slice(&plain[..4]);
        out.extend_from_slice(&[24 + 3, 0, 0, 0]);
        out.extend_from_slice(&plain[8..]);
        out.extend_from_slice(b"new");
        8
    }));
    assert_eq!(
        RecipientReply::decode_all(&grown, 1),
        Ok(vec![RecipientReply::new(Status::Ok)])
    );
}

#[test]
fn recipients_over_their_limits_are_seen_and_refused_one_by_one() {
    let recipient = |address: usize, mailbox: Option<usize>| DeliverRecipient {
        address: Bytes::from(vec![b'a'; address]),
        mailbox: mailbox.map(|len| Bytes::from(vec![b'm'; len])),
    };
    let message = DeliverRequest {
        recipients: vec![
            recipient(320, Some(255)),
            recipient(321, None),
            recipient(1_000_000, None),
            recipient(0, None),
            recipient(1, Some(256)),
            recipient(1, Some(100_000)),
            recipient(1, Some(0)),
        ],
        ..samples::deliver_request()
    };
    let encoded = frame(request(Opcode::Deliver, 1), |out| {
        message.encode(BodyForm::Streamed, out)
    });
    assert!(
        encoded.len() < 3_000,
        "long ones are cut before they are sent"
    );
    let (message, _) = DeliverRequest::decode(&one_frame(&encoded)).unwrap();
    let statuses: Vec<_> = message
        .recipients
        .iter()
        .map(|recipient| recipient.check().err().map(|(status, _)| status))
        .collect();
    let (user, mailbox) = (Some(Status::NoUser), Some(Status::NoMailbox));
    assert_eq!(
        statuses,
        [None, user, user, user, mailbox, mailbox, mailbox]
    );
}

/// Requests with everything at its limit fit the least frame that a peer may allow; the constants
/// in `limits` say so, and this is the proof that they were added up right.
#[test]
fn the_largest_messages_fit_the_least_frame() {
    let max = usize::try_from(ringpost_netproto::limits::PAYLOAD_BYTES_DEFAULT).unwrap();
    let fits = |frame: &Frame| assert!(frame.payload.len() <= max, "{}", frame.payload.len());
    let long = |len: usize| Bytes::from(vec![b'x'; len]);
    let message = DeliverRequest {
        sender: long(320),
        queue_id: long(64),
        recipients: vec![
            DeliverRecipient {
                address: long(400),
                mailbox: Some(long(300)),
            };
            1_000
        ],
        ..samples::deliver_request()
    };
    let largest = one_frame(&frame(request(Opcode::Deliver, 1), |out| {
        let meta_len = message.encode(BodyForm::Inline, out);
        out.extend_from_slice(&long(65_536));
        meta_len
    }));
    fits(&largest);
    assert!(DeliverRequest::decode(&largest).is_ok());
    let reply = RecipientReply {
        text: long(300),
        ..RecipientReply::new(Status::Ok)
    };
    fits(&one_frame(&frame(response(Opcode::Deliver, 1), |out| {
        RecipientReply::encode_all(&vec![reply; 1_000], out)
    })));
    let status = MailboxStatus {
        name: long(300),
        ..samples::mailbox_status()
    };
    let page = ListPage {
        status: status.clone(),
        entries: vec![
            ListEntry {
                cache: long(960),
                ..samples::entry(1, b"")
            };
            1_001
        ],
        more: More::No,
    };
    let listed = one_frame(&frame(response(Opcode::List, 1), |out| page.encode(out)));
    fits(&listed);
    let sent = ListPage::decode(&listed).unwrap();
    assert_eq!((sent.entries.len(), sent.more), (1_000, More::Yes));
    fits(&one_frame(&frame(
        response(Opcode::MailboxList, 1),
        |out| MailboxStatus::encode_all(&vec![status; 3_001], out),
    )));
    let field = ReportField {
        name: "x".repeat(300),
        value: "\u{e9}".repeat(300),
    };
    let report = one_frame(&frame(response(Opcode::Status, 1), |out| {
        ReportField::encode_all(&vec![field; 1_001], out)
    }));
    fits(&report);
    assert_eq!(ReportField::decode_all(&report).unwrap().len(), 1_000);
}

/// A count above its limit is refused before anything is reserved for it.
#[test]
fn counts_that_lie_are_refused() {
    let lies = |bytes: &[u8]| {
        one_frame(&frame(
            FrameHeader::new(Kind::Response, Opcode::List, RequestId::new(1)),
            |out| {
                out.extend_from_slice(bytes);
                bytes.len()
            },
        ))
    };
    let huge = lies(&[0xff; 32]);
    assert!(matches!(
        DeliverRequest::decode(&huge),
        Err(Fault::Refused(Status::Invalid, _))
    ));
    assert!(matches!(ListPage::decode(&huge), Err(Fault::Malformed(_))));
    assert!(matches!(
        MailboxStatus::decode_all(&huge),
        Err(Fault::Malformed(_))
    ));
    assert!(matches!(
        ReportField::decode_all(&huge),
        Err(Fault::Malformed(_))
    ));
    let rows_of_nothing = lies(&[0xe8, 3, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    assert!(matches!(
        RecipientReply::decode_all(&rows_of_nothing, 1_000),
        Err(Fault::Malformed(_))
    ));
}

#[test]
fn the_largest_append_fits_the_least_frame() {
    let max = usize::try_from(ringpost_netproto::limits::PAYLOAD_BYTES_DEFAULT).unwrap();
    let long = |len: usize| Bytes::from(vec![b'x'; len]);
    let append = AppendRequest {
        user: long(255),
        mailbox: MailboxRef::Name(long(300)),
        sender: long(320),
        keywords: vec![long(255); 64],
        ..samples::append_request()
    };
    let largest = one_frame(&frame(request(Opcode::Append, 1), |out| {
        let meta_len = append.encode(BodyForm::Inline, out);
        out.extend_from_slice(&long(65_536));
        meta_len
    }));
    assert!(largest.payload.len() <= max);
}
