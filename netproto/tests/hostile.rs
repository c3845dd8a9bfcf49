//! What a session does when the other side is wrong: it says why, ends, and stays within bounds.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use bytes::{Bytes, BytesMut};
use ringpost_netproto::error::{DecodeError, Violation};
use ringpost_netproto::frame::{FrameHeader, Kind, Opcode, RequestId, Status};
use ringpost_netproto::id::NodeId;
use ringpost_netproto::limits::{
    BACKLOG_BYTES_HARD, BACKLOG_BYTES_SOFT, CREDIT_BYTES_MIN, REQUESTS_IN_FLIGHT_MAX,
    STREAM_PIECE_BYTES_MAX,
};
use ringpost_netproto::message::deliver::{BodyForm, DeliverRequest, RecipientReply};
use ringpost_netproto::session::Config;
use ringpost_netproto::session::client::{self, ClientSession, NotReady};
use ringpost_netproto::session::server::{self, ServerSession};
use ringpost_netproto::version::{ClusterId, Hello, Role, StoreId};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use support::pair::{Pair, drain};
use support::samples::{self, body_frame, frame, one_frame, request, response};

/// A server that has shaken hands with us.
fn server() -> ServerSession {
    server_as(Hello::new(Role::Node))
}

fn server_as(hello: Hello) -> ServerSession {
    let mut server = ServerSession::new(Config::new(hello));
    server
        .handle_input(samples::hello_frame(&Hello::new(Role::Client)))
        .unwrap();
    assert_eq!(server.poll_event(), Some(server::Event::Connected));
    drop(drain(|| server.poll_transmit()));
    server
}

/// A client that has shaken hands with us.
fn client() -> ClientSession {
    let mut client = ClientSession::new(Config::new(Hello::new(Role::Client)));
    client
        .handle_input(samples::hello_frame(&Hello::new(Role::Node)))
        .unwrap();
    assert_eq!(client.poll_event(), Some(client::Event::Connected));
    drop(drain(|| client.poll_transmit()));
    client
}

fn goaway_of(bytes: &Bytes) -> (Status, String) {
    let frame = one_frame(bytes);
    assert_eq!(
        (frame.kind, frame.opcode()),
        (Kind::OneWay, Some(Opcode::GoAway))
    );
    (
        frame.status(),
        String::from_utf8(frame.payload.to_vec()).unwrap(),
    )
}

/// Feeds `input`; the server must end with this violation and say so.
fn server_refuses(mut server: ServerSession, input: Bytes, wanted: &Violation) {
    assert_eq!(server.handle_input(input).as_ref(), Err(wanted));
    assert!(server.is_ended());
    let (status, text) = goaway_of(&drain(|| server.poll_transmit()));
    assert_eq!((status, text), (wanted.status(), wanted.to_string()));
    assert_eq!(
        server.handle_input(Bytes::from_static(b"x")),
        Err(Violation::Ended)
    );
    assert!(server.poll_transmit().is_none(), "it says so once");
}

fn client_refuses(mut client: ClientSession, input: Bytes, wanted: &Violation) {
    assert_eq!(client.handle_input(input).as_ref(), Err(wanted));
    let (status, text) = goaway_of(&drain(|| client.poll_transmit()));
    assert_eq!((status, text), (wanted.status(), wanted.to_string()));
    assert_eq!(
        (client.in_flight_count(), client.ping()),
        (0, Err(NotReady::Closed))
    );
}

fn deliver_frame(id: u64, form: BodyForm, body: &[u8]) -> Bytes {
    frame(request(Opcode::Deliver, id), |out| {
        let meta_len = samples::deliver_request().encode(form, out);
        out.extend_from_slice(body);
        meta_len
    })
}

fn piece(opcode: Opcode, id: u64, body: &[u8]) -> Bytes {
    body_frame(
        FrameHeader::new(Kind::StreamData, opcode, RequestId::new(id)),
        body,
    )
}

fn unexpected(opcode: Opcode, kind: Kind) -> Violation {
    let opcode = opcode.name();
    Violation::Unexpected { opcode, kind }
}

#[test]
fn a_foreign_protocol_is_told_apart_at_once() {
    for (input, found) in [
        (&b"LHLO"[..], *b"LHLO"),
        (b"GET ", *b"GET "),
        (b"\x16\x03\x01\0", [0x16, 3, 1, 0]),
    ] {
        // Four bytes are enough: who waits for our greeting sends no more.
        let input = BytesMut::from(input);
        let wanted = Violation::Decode(DecodeError::Magic { found });
        server_refuses(
            ServerSession::new(Config::new(Hello::new(Role::Node))),
            input.freeze(),
            &wanted,
        );
    }
}

#[test]
fn nothing_comes_before_hello() {
    let fresh = || ServerSession::new(Config::new(Hello::new(Role::Node)));
    server_refuses(
        fresh(),
        body_frame(request(Opcode::Ping, 1), b""),
        &Violation::HelloMissing,
    );
    server_refuses(
        fresh(),
        body_frame(request(Opcode::Deliver, 1), &[0; 200]),
        &Violation::HelloMissing,
    );
    let large = DecodeError::PayloadTooLong {
        found: 257,
        max: 256,
    };
    server_refuses(
        fresh(),
        body_frame(request(Opcode::Deliver, 1), &[0; 257]),
        &large.into(),
    );
    let hello = samples::hello_frame(&Hello::new(Role::Client));
    server_refuses(server(), hello.clone(), &Violation::HelloTwice);
    client_refuses(client(), hello, &Violation::HelloTwice);
}

#[test]
fn a_wrong_version_is_named_on_both_sides() {
    let newer = Hello {
        version_min: 2,
        version_max: 3,
        ..Hello::new(Role::Client)
    };
    let mut pair = Pair::new(newer, Hello::new(Role::Node));
    let violation = pair.run().unwrap_err();
    let (ours_min, ours_max, theirs_min, theirs_max) = (1, 1, 2, 3);
    assert_eq!(
        violation,
        Violation::Version {
            ours_min,
            ours_max,
            theirs_min,
            theirs_max
        }
    );
    assert_eq!(violation.status(), Status::WrongVersion);
    pair.move_to_client().unwrap();
    assert_eq!(
        pair.client_events(),
        [client::Event::GoAway {
            status: Status::WrongVersion,
            text: violation.to_string()
        }]
    );
    assert!(pair.client.is_ended() && pair.server.is_ended());
    assert_eq!(pair.client.ping(), Err(NotReady::Closed));
    assert_eq!(
        violation.to_string(),
        "no common protocol version: this side speaks 1 to 1, the peer 2 to 3"
    );
}

#[test]
fn a_wider_range_of_versions_meets_in_the_middle() {
    let wider = Hello {
        version_max: 9,
        ..Hello::new(Role::Client)
    };
    let pair = Pair::connected_as(wider, Hello::new(Role::Node));
    let (client, server) = (pair.server.peer().unwrap(), pair.client.peer().unwrap());
    assert_eq!((client.version_max, client.common_version(server)), (9, 1));
}

#[test]
fn wrong_peers_are_refused() {
    let in_cluster = |bytes: &[u8; 16]| Hello {
        cluster: ClusterId::new(*bytes),
        ..samples::node_hello()
    };
    let run = |client: Hello, server: Hello| Pair::new(client, server).run();
    let (ours, other) = (in_cluster(&[1; 16]), in_cluster(&[2; 16]));
    assert_eq!(run(ours.clone(), other), Err(Violation::OtherCluster));
    assert_eq!(run(ours.clone(), ours.clone()), Err(Violation::OwnIdentity));
    let copied = Hello {
        node: Some(NodeId::new(99)),
        ..ours.clone()
    };
    assert_eq!(
        run(ours.clone(), copied.clone()),
        Err(Violation::OwnIdentity)
    );
    let sound = Hello {
        store: StoreId::new([9; 16]),
        ..copied
    };
    assert_eq!(run(ours.clone(), sound), Ok(()));
    assert_eq!(
        run(Hello::new(Role::Shim), ours.clone()),
        Ok(()),
        "a shim knows no cluster"
    );
    let mut client = ClientSession::new(Config {
        expected_node: Some(NodeId::new(4)),
        ..Config::new(Hello::new(Role::Client))
    });
    let (expected, found) = (4, 17);
    assert_eq!(
        client.handle_input(samples::hello_frame(&ours)),
        Err(Violation::OtherNode { expected, found })
    );
}

#[test]
fn a_hello_that_makes_no_sense_is_refused() {
    let refused = |change: &dyn Fn(&mut [u8])| {
        let mut payload = BytesMut::from(Hello::new(Role::Client).to_payload().as_bytes());
        change(&mut payload);
        let header = FrameHeader::new(Kind::OneWay, Opcode::Hello, RequestId::NONE);
        let mut server = ServerSession::new(Config::new(Hello::new(Role::Node)));
        let result = server.handle_input(body_frame(header, &payload));
        matches!(result, Err(Violation::HelloInvalid(_)))
    };
    assert!(refused(&|hello| hello[0] = 0), "version 0");
    assert!(refused(&|hello| hello[0] = 2), "lowest above highest");
    assert!(refused(&|hello| hello[4] = 4), "role");
    assert!(refused(&|hello| hello[5] = 1), "reserved");
    assert!(refused(&|hello| hello[191] = 1), "zeros");
    assert!(refused(&|hello| hello[36..40].fill(0)), "frame too small");
    assert!(
        refused(&|hello| hello[36..40].fill(0x7f)),
        "frame too large"
    );
    assert!(refused(&|hello| hello[72..80].fill(0)), "no credit");
    assert!(refused(&|hello| hello[72..80].fill(0x7f)), "endless credit");
    assert!(
        !refused(&|hello| (hello[2], hello[191]) = (2, 1)),
        "a newer one may use the zeros"
    );
    let header = FrameHeader::new(Kind::OneWay, Opcode::Hello, RequestId::NONE);
    let mut server = ServerSession::new(Config::new(Hello::new(Role::Node)));
    let short = server.handle_input(body_frame(header, &[1; 191]));
    assert_eq!(short, Err(Violation::HelloInvalid("it is too short")));
}

#[test]
fn request_ids_ascend_and_are_odd() {
    for id in [0, 2, u64::MAX - 1] {
        let wanted = Violation::RequestIdOrder {
            found: RequestId::new(id),
            last: RequestId::NONE,
        };
        server_refuses(
            server(),
            body_frame(request(Opcode::Ping, id), b""),
            &wanted,
        );
    }
    for second in [3, 5] {
        let mut server = server();
        server
            .handle_input(body_frame(request(Opcode::Ping, 5), b""))
            .unwrap();
        drop(drain(|| server.poll_transmit()));
        let wanted = Violation::RequestIdOrder {
            found: RequestId::new(second),
            last: RequestId::new(5),
        };
        server_refuses(
            server,
            body_frame(request(Opcode::Ping, second), b""),
            &wanted,
        );
    }
}

#[test]
fn lengths_inside_a_payload_that_lie_end_the_connection() {
    let whole = one_frame(&deliver_frame(1, BodyForm::Inline, samples::BODY));
    // recipients_count, recipients_len, sender_len, queue_id_len, and a row's two lengths.
    let rows = 32 + 18 + 13;
    for (at, value) in [
        (0, 3),
        (0, 1),
        (4, 1),
        (7, 1),
        (9, 1),
        (11, 1),
        (rows + 1, 1),
        (rows + 3, 1),
    ] {
        let mut payload = BytesMut::from(&whole.payload[..]);
        payload[at] = value;
        let input = frame(request(Opcode::Deliver, 1), |out| {
            out.extend_from_slice(&payload);
            32
        });
        let mut server = server();
        let result = server.handle_input(input);
        assert!(
            matches!(
                result,
                Err(Violation::Malformed {
                    opcode: "DELIVER",
                    ..
                })
            ),
            "{at}: {result:?}"
        );
        assert!(server.poll_event().is_none(), "nothing of it came out");
    }
    let behind = deliver_frame(1, BodyForm::Streamed, b"behind");
    let what = "bytes behind its end";
    let opcode = "DELIVER";
    server_refuses(server(), behind, &Violation::Malformed { opcode, what });
}

#[test]
fn requests_over_a_limit_are_refused_and_the_connection_lives() {
    let mut server = server();
    let mut refused = |header: FrameHeader, payload: &[u8], meta_len: usize| {
        let input = frame(header, |out| {
            out.extend_from_slice(payload);
            meta_len
        });
        server.handle_input(input).unwrap();
        let answer = one_frame(&drain(|| server.poll_transmit()));
        assert_eq!(answer.id(), RequestId::new(header.request_id.get()));
        assert!(server.poll_event().is_none() && !answer.payload.is_empty());
        assert_eq!(server.in_flight_count(), 0);
        (answer.opcode(), answer.status())
    };
    let mut none = [0; 32];
    assert_eq!(
        refused(request(Opcode::Deliver, 1), &none, 32),
        (Some(Opcode::Deliver), Status::Invalid)
    );
    none[..4].copy_from_slice(&[0xe9, 3, 0, 0]);
    assert_eq!(
        refused(request(Opcode::Deliver, 3), &none, 32),
        (Some(Opcode::Deliver), Status::Invalid)
    );
    let long_sender = DeliverRequest {
        sender: Bytes::from(vec![b'x'; 321]),
        ..samples::deliver_request()
    };
    let mut payload = BytesMut::new();
    long_sender.encode(BodyForm::Streamed, &mut payload);
    assert_eq!(
        refused(request(Opcode::Deliver, 5), &payload, 32).1,
        Status::Invalid
    );
    assert_eq!(
        refused(request(Opcode::MailboxList, 7), &[0; 8], 8).1,
        Status::NoUser
    );
    assert_eq!(
        refused(request(Opcode::Search, 9), b"reserved", 0),
        (Some(Opcode::Search), Status::Unsupported)
    );
    let mut unknown = request(Opcode::Ping, 11);
    unknown.opcode = U16::new(60_000);
    assert_eq!(refused(unknown, b"", 0), (None, Status::Unsupported));
    let mut newer = request(Opcode::Status, 13);
    newer.op_version = 2;
    assert_eq!(refused(newer, b"", 0).1, Status::Unsupported);
    // Pieces of what was refused are dropped.
    server
        .handle_input(piece(Opcode::DeliverBody, 5, b"x"))
        .unwrap();
    server
        .handle_input(deliver_frame(15, BodyForm::Inline, b"x"))
        .unwrap();
    assert!(server.poll_event().is_some());
}

#[test]
fn frames_that_do_not_belong_end_the_connection() {
    let cases = [
        (
            piece(Opcode::DeliverBody, 1, b"x"),
            Violation::NoSuchRequest(RequestId::new(1)),
        ),
        (
            body_frame(response(Opcode::Ping, 1), b""),
            Violation::NoSuchRequest(RequestId::new(1)),
        ),
        (
            body_frame(
                FrameHeader::new(Kind::Cancel, Opcode::Cancel, RequestId::new(7)),
                b"",
            ),
            Violation::NoSuchRequest(RequestId::new(7)),
        ),
        (
            body_frame(
                FrameHeader::new(Kind::OneWay, Opcode::Deliver, RequestId::NONE),
                b"",
            ),
            unexpected(Opcode::Deliver, Kind::OneWay),
        ),
        (
            body_frame(request(Opcode::Credit, 1), b""),
            unexpected(Opcode::Credit, Kind::Request),
        ),
        (
            body_frame(request(Opcode::GoAway, 1), b""),
            unexpected(Opcode::GoAway, Kind::Request),
        ),
        (
            piece(Opcode::Fetch, 1, b"x"),
            unexpected(Opcode::Fetch, Kind::StreamData),
        ),
    ];
    for (input, wanted) in cases {
        server_refuses(server(), input, &wanted);
    }
    let mut inline = server();
    inline
        .handle_input(deliver_frame(1, BodyForm::Inline, b"x"))
        .unwrap();
    let wanted = unexpected(Opcode::DeliverBody, Kind::StreamData);
    server_refuses(inline, piece(Opcode::DeliverBody, 1, b"x"), &wanted);
}

#[test]
fn pieces_that_are_empty_or_too_long_end_the_connection() {
    for len in [0, STREAM_PIECE_BYTES_MAX + 1] {
        let mut server = server();
        server
            .handle_input(deliver_frame(1, BodyForm::Streamed, b""))
            .unwrap();
        let result = server.handle_input(piece(Opcode::DeliverBody, 1, &vec![0; len]));
        assert!(matches!(result, Err(Violation::Malformed { .. })));
    }
}

/// Every piece is whole and the whole is not: missing, doubled, swapped, or a length that lies.
#[test]
fn a_stream_that_is_not_what_its_end_says_is_aborted() {
    let [one, two] = [b"first piece ".as_slice(), b"second piece"];
    let end = |len: u64, crc: u32| {
        let mut payload = [0; 16];
        payload[..8].copy_from_slice(U64::new(len).as_bytes());
        payload[8..12].copy_from_slice(U32::new(crc).as_bytes());
        let id = RequestId::new(1);
        frame(
            FrameHeader::new(Kind::StreamEnd, Opcode::DeliverBody, id),
            |out| {
                out.extend_from_slice(&payload);
                16
            },
        )
    };
    let crc = crc32fast::hash(&[one, two].concat());
    let cases: [(&[&[u8]], u64, bool); 6] = [
        (&[one, two], 24, true),
        (&[two, one], 24, false),
        (&[one], 24, false),
        (&[one, two, two], 24, false),
        (&[one, one], 24, false),
        (&[one, two], 23, false),
    ];
    for (pieces, len, sound) in cases {
        let mut server = server();
        server
            .handle_input(deliver_frame(1, BodyForm::Streamed, b""))
            .unwrap();
        for body in pieces {
            server
                .handle_input(piece(Opcode::DeliverBody, 1, body))
                .unwrap();
        }
        let id = RequestId::new(1);
        let result = server.handle_input(end(len, crc));
        let last = std::iter::from_fn(|| server.poll_event()).last();
        if sound {
            assert_eq!(
                (result, last),
                (Ok(()), Some(server::Event::DeliverEnd { id }))
            );
        } else {
            assert_eq!(result, Err(Violation::StreamMismatch { id }));
            assert_eq!(last, Some(server::Event::DeliverAborted { id }));
        }
    }
}

#[test]
fn a_client_that_exceeds_its_credit_is_cut_off() {
    let mut server = server_as(Hello {
        credit_bytes: CREDIT_BYTES_MIN,
        ..Hello::new(Role::Node)
    });
    server
        .handle_input(deliver_frame(1, BodyForm::Streamed, b""))
        .unwrap();
    let body = vec![7; STREAM_PIECE_BYTES_MAX];
    let mut held = 0;
    let violation = loop {
        match server.handle_input(piece(Opcode::DeliverBody, 1, &body)) {
            Ok(()) => held += body.len(),
            Err(violation) => break violation,
        }
    };
    assert_eq!(violation, Violation::CreditExceeded);
    let window = usize::try_from(CREDIT_BYTES_MIN).unwrap();
    assert!(held <= window + STREAM_PIECE_BYTES_MAX);
}

#[test]
fn credit_out_of_nothing_is_refused() {
    let mut header = FrameHeader::new(Kind::OneWay, Opcode::Credit, RequestId::NONE);
    header.credit = U32::new(1);
    server_refuses(
        server(),
        body_frame(header, b""),
        &Violation::CreditOverflow,
    );
    client_refuses(
        client(),
        body_frame(header, b""),
        &Violation::CreditOverflow,
    );
    header.credit = U32::new(u32::MAX);
    client_refuses(
        client(),
        body_frame(header, b""),
        &Violation::CreditOverflow,
    );
}

#[test]
fn too_many_requests_in_flight_end_the_connection() {
    let mut server = server();
    let mut id = 1;
    for _ in 0..REQUESTS_IN_FLIGHT_MAX {
        server
            .handle_input(body_frame(request(Opcode::Status, id), b""))
            .unwrap();
        id += 2;
    }
    server_refuses(
        server,
        body_frame(request(Opcode::Status, id), b""),
        &Violation::TooManyRequests,
    );
}

/// A client that asks for lists and never reads: its answers stop when a few MiB wait, although it
/// has a thousand requests in.
#[test]
fn a_client_that_never_reads_gets_bounded_answers() {
    let mut pair = Pair::connected();
    let [asked, _] = samples::list_requests();
    for _ in 0..1_000 {
        pair.client.list(&asked).unwrap();
    }
    pair.move_to_server().unwrap();
    let mut page = samples::page();
    let cache = Bytes::from(vec![b'x'; 960]);
    page.entries = vec![samples::entry(1, b""); 1_000];
    for entry in &mut page.entries {
        entry.cache = cache.clone();
    }
    let mut answered = 0;
    while let Some(event) = pair.server.poll_event() {
        let server::Event::List { id, .. } = event else {
            panic!("{event:?}");
        };
        pair.server.list_reply(id, &page);
        answered += 1;
    }
    assert!((1..10).contains(&answered), "{answered}");
    assert!(pair.server.transmit_backlog() < BACKLOG_BYTES_SOFT + (2 << 20));
    pair.move_to_client().unwrap();
    assert!(
        pair.server.poll_event().is_some(),
        "it goes on when it reads"
    );
}

/// Pings cost no credit; a caller that reads on and on for a peer that reads nothing is stopped.
#[test]
fn a_flood_of_pings_is_bounded() {
    let mut server = server();
    let mut id = 1;
    let violation = loop {
        let mut input = BytesMut::new();
        for _ in 0..1_000 {
            input.extend_from_slice(&body_frame(request(Opcode::Ping, id), b""));
            id += 2;
        }
        if let Err(violation) = server.handle_input(input.freeze()) {
            break violation;
        }
        assert!(server.transmit_backlog() < BACKLOG_BYTES_HARD + (1 << 20));
    };
    assert!(matches!(violation, Violation::Backlog(_)));
}

/// A server that takes everything and answers nothing: the client stops at its credit.
#[test]
fn a_server_that_never_answers_holds_no_more_than_the_window() {
    let mut client = client();
    let mut sent = 0;
    let refused = loop {
        match client.deliver(&samples::deliver_request(), Bytes::from(vec![7; 60_000])) {
            Ok(_) => sent += drain(|| client.poll_transmit()).len(),
            Err(why) => break why,
        }
    };
    assert_eq!(refused, NotReady::Credit);
    assert!(sent < (8 << 20) + (128 << 10), "{sent}");
    assert_eq!(client.transmit_backlog(), 0);
}

#[test]
fn answers_that_nobody_asked_for_end_the_connection() {
    let none = Violation::NoSuchRequest(RequestId::new(1));
    client_refuses(
        client(),
        body_frame(response(Opcode::Status, 1), b""),
        &none,
    );
    client_refuses(client(), piece(Opcode::Fetch, 1, b"x"), &none);
    let asked = || {
        let mut client = client();
        client.status().unwrap();
        drop(drain(|| client.poll_transmit()));
        client
    };
    let wanted = unexpected(Opcode::Ping, Kind::Response);
    client_refuses(asked(), body_frame(response(Opcode::Ping, 1), b""), &wanted);
    let wanted = unexpected(Opcode::Fetch, Kind::StreamData);
    client_refuses(asked(), piece(Opcode::Fetch, 1, b"x"), &wanted);
}

/// One final event per request, also when the answer to it is what ends the connection.
#[test]
fn a_malformed_answer_loses_the_request_once() {
    let mut client = client();
    let first = client
        .deliver(&samples::deliver_request(), Bytes::new())
        .unwrap();
    let second = client.status().unwrap();
    let one_row_too_few = frame(response(Opcode::Deliver, 1), |out| {
        RecipientReply::encode_all(&[RecipientReply::new(Status::Ok)], out)
    });
    let result = client.handle_input(one_row_too_few);
    assert!(matches!(
        result,
        Err(Violation::Malformed {
            opcode: "DELIVER",
            ..
        })
    ));
    let lost: Vec<_> = std::iter::from_fn(|| client.poll_event())
        .map(|event| match event {
            client::Event::Failed {
                id,
                status: Status::Lost,
                ..
            } => id,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(lost, [first, second]);
}

#[test]
fn a_newer_status_is_kept_and_means_later() {
    let mut client = client();
    let id = client
        .deliver(&samples::deliver_request(), Bytes::new())
        .unwrap();
    let header = response(Opcode::Deliver, 1).with_status(Status::Unknown(777));
    client
        .handle_input(body_frame(header, b"something new"))
        .unwrap();
    let (status, text) = (Status::Unknown(777), "something new".to_owned());
    assert_eq!(
        client.poll_event(),
        Some(client::Event::Failed { id, status, text })
    );
}

#[test]
fn texts_of_a_peer_are_printable_and_short() {
    let mut client = client();
    client.status().unwrap();
    let mut text = b"\x1b[31mred\r\n\xff".to_vec();
    text.extend([b'x'; 10_000]);
    let header = response(Opcode::Status, 1).with_status(Status::Internal);
    client.handle_input(body_frame(header, &text)).unwrap();
    let Some(client::Event::Failed { text, .. }) = client.poll_event() else {
        panic!("it failed");
    };
    assert!(text.starts_with("\\u{1b}[31mred\\r\\n\\xffxxx"), "{text}");
    assert!(text.len() < 300);
}

/// Frames of all samples in any order, with any damage behind a right checksum: sessions answer,
/// refuse or end, and never panic.
#[test]
fn any_frames_are_survived() {
    let mut random = fastrand::Rng::with_seed(7);
    let samples: Vec<_> = samples::all()
        .into_iter()
        .map(|(_, bytes)| one_frame(&bytes))
        .collect();
    for round in 0..4_000 {
        let (mut server, mut client) = (server(), client());
        client.status().unwrap();
        client.fetch(&samples::fetch_request()).unwrap();
        client.deliver_begin(&samples::deliver_request()).unwrap();
        let mut id = 1;
        for _ in 0..6 {
            let mut any = samples[random.usize(..samples.len())].clone();
            any.header.request_id = U64::new(id);
            any.header.credit = U32::new(0);
            if random.bool() {
                id += 2;
            }
            let mut payload = BytesMut::from(&any.payload[..]);
            if !payload.is_empty() && random.u8(..) < 80 {
                let at = random.usize(..payload.len());
                payload[at] = random.u8(..);
            }
            let meta_len = any.meta().len();
            let input = frame(any.header, |out| {
                out.extend_from_slice(&payload);
                meta_len
            });
            let results = (
                server.handle_input(input.clone()),
                client.handle_input(input),
            );
            while let Some(event) = server.poll_event() {
                if let server::Event::Fetch { id, .. } = event {
                    server.fetch_begin(id, &samples::entry(1, b""));
                }
            }
            while client.poll_event().is_some() {}
            if results.0.is_err() && results.1.is_err() {
                break;
            }
        }
        server.handle_close();
        client.handle_close();
        assert_eq!(
            (server.in_flight_count(), client.in_flight_count()),
            (0, 0),
            "round {round}"
        );
    }
}
