//! Appends between two sessions, and what a server does with wrong ones: lengths that lie, parts over
//! their limits, pieces under another opcode.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use bytes::{Bytes, BytesMut};
use ringpost_netproto::error::Violation;
use ringpost_netproto::frame::{FrameHeader, Kind, Opcode, RequestId, Status};
use ringpost_netproto::limits::INLINE_BODY_BYTES_MAX;
use ringpost_netproto::message::append::{AppendReply, AppendRequest};
use ringpost_netproto::message::deliver::BodyForm;
use ringpost_netproto::session::Config;
use ringpost_netproto::session::client::{self, NotReady};
use ringpost_netproto::session::server::{Event, ServerSession};
use ringpost_netproto::version::{Hello, Role};

use support::pair::{Cut, Pair, drain};
use support::samples::{self, body_frame, frame, one_frame, request};

/// Length of the meta struct.
const META: usize = 80;

fn server() -> ServerSession {
    let mut server = ServerSession::new(Config::new(Hello::new(Role::Node)));
    server
        .handle_input(samples::hello_frame(&Hello::new(Role::Client)))
        .unwrap();
    assert_eq!(server.poll_event(), Some(Event::Connected));
    drop(drain(|| server.poll_transmit()));
    server
}

fn append_frame(id: u64, form: BodyForm, body: &[u8]) -> Bytes {
    frame(request(Opcode::Append, id), |out| {
        let meta_len = samples::append_request().encode(form, out);
        out.extend_from_slice(body);
        meta_len
    })
}

fn piece(opcode: Opcode, id: u64) -> Bytes {
    let header = FrameHeader::new(Kind::StreamData, opcode, RequestId::new(id));
    body_frame(header, b"x")
}

/// Inline and streamed, stored and known before, with the bytes on their way cut in every manner.
#[test]
fn appends_are_answered_through_any_cut() {
    let cuts = [1, 63, 64, 65, 1_000].map(Cut::Every);
    for cut in cuts.into_iter().chain([Cut::Whole]) {
        let mut pair = Pair::connected();
        pair.cut = cut;
        for (len, status) in [
            (0, Status::Ok),
            (20, Status::OkDuplicate),
            (INLINE_BODY_BYTES_MAX + 1, Status::Ok),
        ] {
            let body = Bytes::from(vec![b'x'; len]);
            let request = samples::append_request();
            let id = pair.client.append(&request, body.clone()).unwrap();
            pair.run().unwrap();
            let mut events = pair.server_events().into_iter();
            assert_eq!(events.next(), Some(Event::AppendBegin { id, request }));
            assert_eq!(events.next_back(), Some(Event::DeliverEnd { id }));
            let mut came = Vec::new();
            for event in events {
                let Event::DeliverData { data, .. } = event else {
                    panic!("{event:?}");
                };
                came.extend_from_slice(&data);
            }
            assert!(came == body, "{cut:?}");
            let reply = AppendReply {
                status,
                ..samples::append_reply()
            };
            pair.server.append_reply(id, &reply);
            pair.run().unwrap();
            assert_eq!(
                pair.client_events(),
                [client::Event::Appended { id, reply }]
            );
        }
        let open = (pair.client.in_flight_count(), pair.server.in_flight_count());
        assert_eq!(open, (0, 0));
    }
}

#[test]
fn lengths_that_lie_end_the_connection() {
    let whole = one_frame(&append_frame(1, BodyForm::Inline, samples::BODY));
    // sender_len, keywords_count, keywords_len, and the length of the first keyword.
    let keywords = META + 3 + 12 + 18;
    for (at, value) in [
        (3, 0x10),
        (9, 1),
        (10, 1),
        (10, 3),
        (13, 1),
        (15, 1),
        (keywords, 200),
        (keywords + 1, 1),
    ] {
        let mut payload = BytesMut::from(&whole.payload[..]);
        payload[at] = value;
        let input = frame(request(Opcode::Append, 1), |out| {
            out.extend_from_slice(&payload);
            META
        });
        let mut server = server();
        let result = server.handle_input(input);
        let malformed = matches!(
            result,
            Err(Violation::Malformed {
                opcode: "APPEND",
                ..
            })
        );
        assert!(malformed, "{at}: {result:?}");
        assert!(server.poll_event().is_none(), "nothing of it came out");
    }
    let mut behind = server();
    let result = behind.handle_input(append_frame(1, BodyForm::Streamed, b"behind"));
    let what = "bytes behind its end";
    let opcode = "APPEND";
    assert_eq!(result, Err(Violation::Malformed { opcode, what }));
}

#[test]
fn parts_over_a_limit_are_refused_and_the_connection_lives() {
    let mut server = server();
    let sample = samples::append_request;
    let mut refused = |id: u64, asked: &AppendRequest, change: &[(usize, u8)]| {
        let mut payload = BytesMut::new();
        asked.encode(BodyForm::Streamed, &mut payload);
        for (at, value) in change {
            payload[*at] = *value;
        }
        let input = frame(request(Opcode::Append, id), |out| {
            out.extend_from_slice(&payload);
            META
        });
        server.handle_input(input).unwrap();
        // Its pieces cross the refusal.
        server.handle_input(piece(Opcode::Append, id)).unwrap();
        assert!(server.poll_event().is_none());
        one_frame(&server.poll_transmit().unwrap()).status()
    };
    let nobody = AppendRequest {
        user: Bytes::new(),
        ..sample()
    };
    assert_eq!(refused(1, &nobody, &[]), Status::NoUser);
    let many = AppendRequest {
        keywords: vec![Bytes::from_static(b"x"); 65],
        ..sample()
    };
    assert_eq!(refused(3, &many, &[]), Status::Invalid);
    let empty = AppendRequest {
        keywords: vec![Bytes::new()],
        ..sample()
    };
    assert_eq!(refused(5, &empty, &[]), Status::Invalid);
    let sender = AppendRequest {
        sender: Bytes::from(vec![b'x'; 321]),
        ..sample()
    };
    assert_eq!(refused(7, &sender, &[]), Status::Invalid);
    assert_eq!(refused(9, &sample(), &[(20, 2)]), Status::Unsupported);
}

#[test]
fn a_client_does_not_send_what_breaks_a_limit() {
    let mut pair = Pair::connected();
    let many = AppendRequest {
        keywords: vec![Bytes::from_static(b"x"); 65],
        ..samples::append_request()
    };
    let refused = pair.client.append(&many, Bytes::new());
    assert!(matches!(refused, Err(NotReady::Invalid(_))), "{refused:?}");
    assert_eq!(pair.client.in_flight_count(), 0);
}

/// Each stream has the opcode of its request.
#[test]
fn pieces_under_another_opcode_end_the_connection() {
    for (asked, came) in [
        (Opcode::Append, Opcode::DeliverBody),
        (Opcode::Deliver, Opcode::Append),
    ] {
        let mut server = server();
        let begin = frame(request(asked, 1), |out| match asked {
            Opcode::Append => samples::append_request().encode(BodyForm::Streamed, out),
            _ => samples::deliver_request().encode(BodyForm::Streamed, out),
        });
        server.handle_input(begin).unwrap();
        let result = server.handle_input(piece(came, 1));
        let wanted = Violation::Unexpected {
            opcode: came.name(),
            kind: Kind::StreamData,
        };
        assert_eq!(result, Err(wanted));
        server.poll_event();
        let id = RequestId::new(1);
        assert_eq!(server.poll_event(), Some(Event::DeliverAborted { id }));
    }
}

#[test]
fn an_append_that_is_given_up_before_its_end_is_dropped() {
    let mut pair = Pair::connected();
    let id = pair
        .client
        .append_begin(&samples::append_request())
        .unwrap();
    pair.client.deliver_data(id, "half".into()).unwrap();
    pair.run().unwrap();
    pair.client.cancel(id);
    pair.run().unwrap();
    let last = pair.server_events().pop();
    assert_eq!(last, Some(Event::DeliverAborted { id }));
    assert_eq!(
        (pair.client.in_flight_count(), pair.server.in_flight_count()),
        (0, 0)
    );
}
