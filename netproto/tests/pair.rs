//! Two sessions over a link without sockets: what both do when both are right.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use bytes::Bytes;
use ringpost_netproto::frame::{RequestId, Status};
use ringpost_netproto::id::Uid;
use ringpost_netproto::limits::{
    BACKLOG_BYTES_SOFT, CREDIT_BYTES_MIN, HELD_BYTES_MAX, INLINE_BODY_BYTES_MAX,
    READS_IN_FLIGHT_MAX, REQUESTS_IN_FLIGHT_MAX, STREAM_PIECE_BYTES_MAX,
};
use ringpost_netproto::message::deliver::DeliverRequest;
use ringpost_netproto::session::client::{self, ClientSession, NotReady};
use ringpost_netproto::session::server::{self, RecipientReply, ServerSession};
use ringpost_netproto::version::{Hello, Role};

use support::pair::{Cut, Pair, drain};
use support::samples;

fn stored(uid: u32) -> RecipientReply {
    RecipientReply {
        uid: Some(Uid::new(uid)),
        ..RecipientReply::new(Status::Ok)
    }
}

/// For one recipient.
fn to_bob() -> DeliverRequest {
    let mut request = samples::deliver_request();
    request.recipients.truncate(1);
    request
}

/// Bytes that differ from place to place.
fn pattern(len: usize) -> Bytes {
    (0..len)
        .map(|at| u8::try_from((at * 31 + at / 251) % 256).unwrap())
        .collect()
}

/// A granted window of the least size, so that tests reach its end.
fn narrow() -> Hello {
    Hello {
        credit_bytes: CREDIT_BYTES_MIN,
        ..Hello::new(Role::Node)
    }
}

/// What a server heard of one message.
#[derive(Debug, Default, PartialEq)]
struct Heard {
    bytes: Vec<u8>,
    ended: bool,
    aborted: bool,
}

/// The messages in `events`, their bytes joined; releases them at once if asked.
fn hear(pair: &mut Pair, messages: &mut Vec<(RequestId, Heard)>) {
    for event in pair.server_events() {
        match event {
            server::Event::DeliverBegin { id, .. } => messages.push((id, Heard::default())),
            server::Event::DeliverData { id, data } => {
                pair.server.release(id, u64::try_from(data.len()).unwrap());
                of(messages, id).bytes.extend_from_slice(&data);
            }
            server::Event::DeliverEnd { id } => of(messages, id).ended = true,
            server::Event::DeliverAborted { id } => of(messages, id).aborted = true,
            other => panic!("{other:?}"),
        }
    }
}

fn of(messages: &mut [(RequestId, Heard)], wanted: RequestId) -> &mut Heard {
    let found = messages.iter_mut().find(|(id, _)| *id == wanted);
    &mut found.expect("a message that began").1
}

#[test]
fn both_learn_who_is_there() {
    let mut pair = Pair::new(Hello::new(Role::Shim), samples::node_hello());
    assert_eq!(
        pair.client.deliver(&to_bob(), Bytes::new()),
        Err(NotReady::Handshake)
    );
    assert_eq!(pair.client.ping(), Err(NotReady::Handshake));
    pair.run().unwrap();
    assert_eq!(pair.client.peer(), Some(&samples::node_hello()));
    assert_eq!(pair.server.peer(), Some(&Hello::new(Role::Shim)));
}

/// The ids of one request of each sort.
struct Asked {
    deliver: RequestId,
    mailboxes: RequestId,
    list: RequestId,
    fetch: RequestId,
    status: RequestId,
    ping: RequestId,
}

fn ask_everything(client: &mut ClientSession) -> Asked {
    let [list, _] = samples::list_requests();
    let body = Bytes::from_static(samples::BODY);
    Asked {
        deliver: client.deliver(&samples::deliver_request(), body).unwrap(),
        mailboxes: client.mailboxes(b"bob").unwrap(),
        list: client.list(&list).unwrap(),
        fetch: client.fetch(&samples::fetch_request()).unwrap(),
        status: client.status().unwrap(),
        ping: client.ping().unwrap(),
    }
}

fn answer_everything(server: &mut ServerSession, asked: &Asked) {
    server.status_reply(asked.status, &samples::fields());
    server.fetch_begin(asked.fetch, &samples::entry(7, b"not sent"));
    server.fetch_data(asked.fetch, Bytes::from_static(samples::BODY));
    server.fetch_end(asked.fetch);
    server.list_reply(asked.list, &samples::page());
    server.mailboxes_reply(asked.mailboxes, &[samples::mailbox_status()]);
    server.deliver_reply(asked.deliver, &samples::replies());
}

fn wanted_of_server(asked: &Asked) -> Vec<server::Event> {
    let data = Bytes::from_static(samples::BODY);
    let [list, _] = samples::list_requests();
    let id = asked.deliver;
    vec![
        server::Event::DeliverBegin {
            id,
            request: samples::deliver_request(),
        },
        server::Event::DeliverData { id, data },
        server::Event::DeliverEnd { id },
        server::Event::Mailboxes {
            id: asked.mailboxes,
            user: "bob".into(),
        },
        server::Event::List {
            id: asked.list,
            request: list,
        },
        server::Event::Fetch {
            id: asked.fetch,
            request: samples::fetch_request(),
        },
        server::Event::Status { id: asked.status },
    ]
}

fn wanted_of_client(asked: &Asked) -> Vec<client::Event> {
    let data = Bytes::from_static(samples::BODY);
    let bytes = u64::try_from(data.len()).unwrap();
    let (mailboxes, id) = (vec![samples::mailbox_status()], asked.fetch);
    vec![
        client::Event::Pong { id: asked.ping },
        client::Event::Status {
            id: asked.status,
            fields: samples::fields(),
        },
        client::Event::FetchBegin {
            id,
            entry: samples::entry(7, b""),
        },
        client::Event::Listed {
            id: asked.list,
            page: samples::page(),
        },
        client::Event::Mailboxes {
            id: asked.mailboxes,
            mailboxes,
        },
        client::Event::Delivered {
            id: asked.deliver,
            replies: samples::replies(),
        },
        client::Event::FetchData { id, data },
        client::Event::FetchEnd { id, bytes },
    ]
}

/// Every answer, with the bytes on their way cut in every manner that matters.
#[test]
fn all_requests_are_answered_through_any_cut() {
    let cuts = [1, 63, 64, 65, 1_000].map(Cut::Every);
    for cut in cuts.into_iter().chain([Cut::Whole]) {
        let mut pair = Pair::connected();
        pair.cut = cut;
        let asked = ask_everything(&mut pair.client);
        pair.run().unwrap();
        assert_eq!(pair.server_events(), wanted_of_server(&asked), "{cut:?}");
        answer_everything(&mut pair.server, &asked);
        pair.run().unwrap();
        assert_eq!(pair.client_events(), wanted_of_client(&asked), "{cut:?}");
        let open = (pair.client.in_flight_count(), pair.server.in_flight_count());
        assert_eq!(open, (0, 0));
    }
}

#[test]
fn pipelined_requests_are_answered_in_any_order() {
    let mut random = fastrand::Rng::with_seed(42);
    let mut pair = Pair::connected();
    let mut open: Vec<(RequestId, u32)> = Vec::new();
    let (mut sent, mut answered) = (0u32, 0u32);
    while answered < 20_000 {
        while sent < 20_000 && open.len() < 300 {
            let id = pair
                .client
                .deliver(&to_bob(), pattern(random.usize(..2_000)))
                .unwrap();
            open.push((id, sent));
            sent += 1;
        }
        pair.move_to_server().unwrap();
        drop(pair.server_events());
        random.shuffle(&mut open);
        for (id, number) in open.drain(random.usize(..open.len())..) {
            pair.server.deliver_reply(id, &[stored(number + 1)]);
            pair.move_to_client().unwrap();
            let replies = vec![stored(number + 1)];
            let event = pair.client.poll_event();
            assert_eq!(event, Some(client::Event::Delivered { id, replies }));
            answered += 1;
        }
    }
    assert_eq!(pair.client.in_flight_count(), 0);
}

#[test]
fn requests_in_flight_are_bounded() {
    let mut pair = Pair::connected();
    for _ in 0..REQUESTS_IN_FLIGHT_MAX {
        pair.client
            .deliver(&to_bob(), Bytes::from_static(b"x"))
            .unwrap();
    }
    assert_eq!(pair.client.status(), Err(NotReady::InFlight));
    pair.run().unwrap();
    pair.server.deliver_reply(RequestId::new(99), &[stored(1)]);
    pair.run().unwrap();
    pair.client.status().expect("one was answered");
    pair.run().expect("the server counts the same way");
}

#[test]
fn credit_runs_out_and_comes_back_with_the_answers() {
    let mut pair = Pair::connected_as(Hello::new(Role::Client), narrow());
    let mut ids = Vec::new();
    let refused = loop {
        match pair
            .client
            .deliver(&to_bob(), pattern(INLINE_BODY_BYTES_MAX))
        {
            Ok(id) => ids.push(id),
            Err(why) => break why,
        }
        assert!(ids.len() < 20);
    };
    assert_eq!((refused, ids.len()), (NotReady::Credit, 16));
    pair.run().unwrap();
    drop(pair.server_events());
    assert_eq!(pair.client.status(), Err(NotReady::Credit));
    pair.client.ping().expect("a ping is free");
    pair.server.deliver_reply(ids[7], &[stored(1)]);
    pair.run().unwrap();
    pair.client
        .deliver(&to_bob(), pattern(10))
        .expect("its credit came with the answer");
}

#[test]
fn a_streamed_body_larger_than_the_window_arrives_when_it_is_released() {
    let body = pattern(10 * usize::try_from(CREDIT_BYTES_MIN).unwrap() + 12_345);
    for cut in [Cut::Whole, Cut::Every(10_007)] {
        let mut pair = Pair::connected_as(Hello::new(Role::Client), narrow());
        pair.cut = cut;
        let id = pair.client.deliver(&to_bob(), body.clone()).unwrap();
        let mut messages = Vec::new();
        while messages
            .last()
            .is_none_or(|(_, heard): &(_, Heard)| !heard.ended)
        {
            assert!(pair.move_to_server().unwrap() > 0, "it stands still");
            hear(&mut pair, &mut messages);
            pair.move_to_client().unwrap();
        }
        assert!(messages.len() == 1 && messages[0].1.bytes == body);
        pair.server.deliver_reply(id, &[stored(1)]);
        pair.run().unwrap();
        let replies = vec![stored(1)];
        assert_eq!(
            pair.client_events(),
            [client::Event::Delivered { id, replies }]
        );
    }
}

#[test]
fn a_body_that_is_not_released_stops_within_one_frame_of_the_window() {
    let mut pair = Pair::connected_as(Hello::new(Role::Client), narrow());
    let window = usize::try_from(CREDIT_BYTES_MIN).unwrap();
    pair.client.deliver(&to_bob(), pattern(5 * window)).unwrap();
    pair.run().unwrap();
    let mut held = 0;
    for event in pair.server_events() {
        if let server::Event::DeliverData { data, .. } = event {
            held += data.len();
        }
    }
    assert!(
        (window..=window + STREAM_PIECE_BYTES_MAX).contains(&held),
        "{held}"
    );
    assert_eq!(
        pair.client.deliver(&to_bob(), Bytes::new()),
        Err(NotReady::Credit)
    );
}

/// More streams than the window has room for, each held by the server until its end (up to
/// `HELD_BYTES_MAX`): without a bound on streams under way they would starve each other.
#[test]
fn many_streams_that_are_held_until_their_end_all_arrive() {
    let mut pair = Pair::connected_as(Hello::new(Role::Client), narrow());
    let body = pattern(HELD_BYTES_MAX);
    let mut sources: Vec<_> = (0..60)
        .map(|_| (pair.client.deliver_begin(&to_bob()).unwrap(), body.clone()))
        .collect();
    let mut answered_count = 0;
    for round in 0.. {
        assert!(round < 1_000, "they starve: {answered_count} answered");
        // Small pieces in turn: every stream has begun before the first has ended.
        for (id, source) in &mut sources {
            let piece = source.slice(..source.len().min(16 << 10));
            if !piece.is_empty() && pair.client.deliver_data(*id, piece.clone()).is_ok() {
                *source = source.slice(piece.len()..);
                if source.is_empty() {
                    pair.client.deliver_end(*id);
                }
            }
        }
        pair.run().unwrap();
        for event in pair.server_events() {
            if let server::Event::DeliverEnd { id } = event {
                pair.server.deliver_reply(id, &[stored(1)]);
                answered_count += 1;
            }
        }
        if answered_count == sources.len() {
            return;
        }
    }
}

#[test]
fn an_incremental_message_is_what_its_pieces_were() {
    let mut pair = Pair::connected();
    let id = pair.client.deliver_begin(&to_bob()).unwrap();
    let body = pattern(300_000);
    let mut messages = Vec::new();
    for len in [0, 1, 2, 63, 4_096, 100_000, 195_838] {
        let already: usize = messages
            .iter()
            .map(|(_, heard): &(_, Heard)| heard.bytes.len())
            .sum();
        let piece = body.slice(already..already + len);
        pair.client.deliver_data(id, piece).unwrap();
        pair.run().unwrap();
        hear(&mut pair, &mut messages);
    }
    assert!(!messages[0].1.ended);
    pair.client.deliver_end(id);
    pair.client.deliver_end(id);
    pair.client
        .deliver_data(id, Bytes::from_static(b"too late"))
        .unwrap();
    pair.run().unwrap();
    hear(&mut pair, &mut messages);
    assert_eq!(messages.len(), 1);
    assert!(messages[0].1.ended && messages[0].1.bytes == body[..]);
}

#[test]
fn a_message_refused_early_is_not_sent_to_its_end() {
    let mut pair = Pair::connected_as(Hello::new(Role::Client), narrow());
    let body = pattern(50 << 20);
    let id = pair.client.deliver(&to_bob(), body.clone()).unwrap();
    pair.move_to_server().unwrap();
    pair.server
        .fail(id, Status::TooBig, "the message is larger than the limit");
    let moved = pair.move_to_client().unwrap();
    assert!(moved < 1_000);
    assert!(matches!(
        pair.client.poll_event(),
        Some(client::Event::Failed {
            status: Status::TooBig,
            ..
        })
    ));
    assert_eq!(
        (
            pair.client.transmit_backlog(),
            pair.client.in_flight_count()
        ),
        (0, 0)
    );
    assert!(!pair.server.is_open(id));
    // All credit is back: a whole window fits again.
    let again = pair
        .client
        .deliver(&to_bob(), body.slice(..1 << 20))
        .unwrap();
    pair.run().unwrap();
    assert!(
        pair.server_events()
            .contains(&server::Event::DeliverEnd { id: again })
    );
}

/// Pieces that crossed the early answer on the wire are dropped and their credit comes back.
#[test]
fn pieces_that_cross_an_early_answer_are_dropped() {
    let mut pair = Pair::connected_as(Hello::new(Role::Client), narrow());
    for _ in 0..50 {
        let id = pair.client.deliver_begin(&to_bob()).unwrap();
        pair.move_to_server().unwrap();
        pair.server.fail(id, Status::Quota, "over quota");
        pair.client.deliver_data(id, pattern(200_000)).unwrap();
        pair.client.deliver_end(id);
        pair.move_to_server().unwrap();
        pair.run().unwrap();
    }
    let events = pair.client_events();
    assert_eq!(events.len(), 50);
    assert!(
        !pair
            .server_events()
            .iter()
            .any(|event| matches!(event, server::Event::DeliverData { .. }))
    );
}

#[test]
fn an_unfinished_message_can_be_cancelled() {
    let mut pair = Pair::connected();
    let id = pair.client.deliver_begin(&to_bob()).unwrap();
    pair.client.deliver_data(id, pattern(1_000)).unwrap();
    pair.run().unwrap();
    pair.client.deliver_data(id, pattern(1_000)).unwrap();
    pair.client.cancel(id);
    pair.client.cancel(id);
    pair.run().unwrap();
    let mut messages = Vec::new();
    hear(&mut pair, &mut messages);
    let heard = &messages[0].1;
    assert!(heard.aborted && !heard.ended && heard.bytes.len() == 1_000);
    pair.server.deliver_reply(id, &[stored(1)]);
    pair.run().unwrap();
    assert!(matches!(
        pair.client_events()[..],
        [client::Event::Failed {
            status: Status::Cancelled,
            ..
        }]
    ));
}

#[test]
fn a_whole_message_cannot_be_cancelled_and_its_answer_tells() {
    let mut pair = Pair::connected();
    let id = pair.client.deliver(&to_bob(), pattern(10)).unwrap();
    pair.client.cancel(id);
    pair.run().unwrap();
    let events = pair.server_events();
    assert_eq!(events.last(), Some(&server::Event::DeliverEnd { id }));
    pair.server.deliver_reply(id, &[stored(9)]);
    pair.run().unwrap();
    let replies = vec![stored(9)];
    assert_eq!(
        pair.client_events(),
        [client::Event::Delivered { id, replies }]
    );
}

#[test]
fn a_fetch_is_bounded_by_what_its_reader_takes() {
    let mut pair = Pair::connected_as(
        Hello {
            credit_bytes: CREDIT_BYTES_MIN,
            ..Hello::new(Role::Client)
        },
        Hello::new(Role::Node),
    );
    let body = pattern(6 << 20);
    let id = pair.client.fetch(&samples::fetch_request()).unwrap();
    pair.run().unwrap();
    drop(pair.server_events());
    pair.server.fetch_begin(id, &samples::entry(7, b""));
    pair.server.fetch_data(id, body.clone());
    pair.server.fetch_end(id);
    let moved = pair.move_to_client().unwrap();
    let window = usize::try_from(CREDIT_BYTES_MIN).unwrap();
    assert!(moved < window + STREAM_PIECE_BYTES_MAX + 4_096, "{moved}");
    assert!(pair.server.transmit_backlog() > 4 << 20);
    assert!(pair.server.poll_event().is_none());
    let mut found = Vec::new();
    let total = loop {
        match pair.client.poll_event() {
            Some(client::Event::FetchBegin { .. }) => {}
            Some(client::Event::FetchData { data, .. }) => found.extend_from_slice(&data),
            Some(client::Event::FetchEnd { bytes, .. }) => break bytes,
            None => pair.run().unwrap(),
            other => panic!("{other:?}"),
        }
    };
    assert!(found == body && total == 6 << 20);
    assert_eq!(pair.server.transmit_backlog(), 0);
}

#[test]
fn a_fetch_can_be_cancelled_and_broken_off() {
    let mut pair = Pair::connected();
    let ids: Vec<_> = (0..3)
        .map(|_| pair.client.fetch(&samples::fetch_request()).unwrap())
        .collect();
    pair.run().unwrap();
    drop(pair.server_events());
    for id in &ids {
        pair.server.fetch_begin(*id, &samples::entry(7, b""));
        pair.server.fetch_data(*id, pattern(1_000));
    }
    pair.run().unwrap();
    pair.client.cancel(ids[0]);
    pair.run().unwrap();
    assert_eq!(
        pair.server_events(),
        [server::Event::FetchAborted { id: ids[0] }]
    );
    pair.server.fetch_data(ids[0], pattern(1_000));
    pair.server.fetch_end(ids[0]);
    pair.server
        .fail(ids[1], Status::Corrupt, "a block\nis damaged");
    pair.server.fetch_end(ids[2]);
    pair.run().unwrap();
    let ends: Vec<_> = pair
        .client_events()
        .into_iter()
        .filter_map(|event| match event {
            client::Event::Failed { id, status, text } => Some((id, Some((status, text)))),
            client::Event::FetchEnd { id, .. } => Some((id, None)),
            _ => None,
        })
        .collect();
    let failed = |status, text: &str| Some((status, text.to_owned()));
    assert_eq!(
        ends,
        [
            (ids[0], failed(Status::Cancelled, "cancelled")),
            (ids[1], failed(Status::Corrupt, "a block\\nis damaged")),
            (ids[2], None),
        ]
    );
}

/// A cancel that meets a fetch at each of its stages gives exactly one end.
#[test]
fn a_cancelled_fetch_ends_once_at_every_stage() {
    for stage in 0..5 {
        let mut pair = Pair::connected();
        let id = pair.client.fetch(&samples::fetch_request()).unwrap();
        pair.move_to_server().unwrap();
        if stage > 0 {
            assert_eq!(pair.server_events().len(), 1);
        }
        if stage > 1 {
            pair.server.fetch_begin(id, &samples::entry(7, b""));
        }
        if stage > 2 {
            pair.server.fetch_data(id, pattern(1_000_000));
        }
        if stage > 3 {
            pair.server.fetch_end(id);
        }
        pair.client.cancel(id);
        pair.move_to_server().unwrap();
        pair.run().unwrap();
        let ends = pair
            .client_events()
            .into_iter()
            .filter(|event| {
                matches!(
                    event,
                    client::Event::Failed {
                        status: Status::Cancelled,
                        ..
                    }
                )
            })
            .count();
        assert_eq!(ends, 1, "stage {stage}");
        assert_eq!(
            (pair.client.in_flight_count(), pair.server.in_flight_count()),
            (0, 0)
        );
        assert_eq!(
            pair.server.poll_event().is_some(),
            (1..4).contains(&stage),
            "stage {stage}"
        );
    }
}

#[test]
fn reading_requests_are_handed_out_a_few_at_a_time() {
    let mut pair = Pair::connected();
    let [asked, _] = samples::list_requests();
    for _ in 0..100 {
        pair.client.list(&asked).unwrap();
    }
    pair.run().unwrap();
    let mut answered = 0;
    while answered < 100 {
        let events = pair.server_events();
        assert_eq!(events.len(), READS_IN_FLIGHT_MAX.min(100 - answered));
        for event in events {
            let server::Event::List { id, .. } = event else {
                panic!("{event:?}");
            };
            pair.server.list_reply(id, &samples::page());
            answered += 1;
        }
    }
    pair.run().unwrap();
    assert_eq!(pair.client_events().len(), 100);
}

#[test]
fn a_draining_server_answers_what_is_in_flight_and_refuses_what_is_new() {
    let mut pair = Pair::connected();
    let early = pair.client.deliver(&to_bob(), pattern(10)).unwrap();
    pair.run().unwrap();
    let crossing = pair.client.deliver(&to_bob(), pattern(10)).unwrap();
    pair.server.drain(Status::Stopping, "the node is stopping");
    pair.server.drain(Status::Stopping, "again");
    pair.run().unwrap();
    pair.server.deliver_reply(early, &[stored(1)]);
    pair.run().unwrap();
    let events = pair.client_events();
    assert!(
        matches!(&events[0], client::Event::GoAway { status: Status::Stopping, text } if text == "the node is stopping")
    );
    assert!(
        matches!(&events[1], client::Event::Failed { id, status: Status::Stopping, .. } if *id == crossing)
    );
    assert!(matches!(&events[2], client::Event::Delivered { id, .. } if *id == early));
    assert_eq!(events.len(), 3);
    assert_eq!(pair.client.status(), Err(NotReady::Closed));
    assert_eq!(pair.server.in_flight_count(), 0);
}

#[test]
fn a_cut_connection_loses_requests_and_aborts_what_is_unfinished() {
    let mut pair = Pair::connected();
    let whole = pair.client.deliver(&to_bob(), pattern(10)).unwrap();
    let unfinished = pair.client.deliver_begin(&to_bob()).unwrap();
    pair.client.deliver_data(unfinished, pattern(10)).unwrap();
    let fetch = pair.client.fetch(&samples::fetch_request()).unwrap();
    pair.run().unwrap();
    drop(pair.server_events());
    pair.client.handle_close();
    pair.server.handle_close();
    pair.client.handle_close();
    assert_eq!(
        pair.server_events(),
        [
            server::Event::DeliverAborted { id: unfinished },
            server::Event::FetchAborted { id: fetch }
        ]
    );
    let lost: Vec<_> = pair
        .client_events()
        .into_iter()
        .map(|event| match event {
            client::Event::Failed {
                id,
                status: Status::Lost,
                ..
            } => id,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(lost, [whole, unfinished, fetch]);
    // The engine answers later, and nobody minds.
    pair.server.deliver_reply(whole, &[stored(1)]);
    pair.server.fetch_data(fetch, pattern(10));
    pair.server.fail(fetch, Status::Internal, "");
    assert!(pair.server.poll_transmit().is_none());
    assert_eq!(pair.client.ping(), Err(NotReady::Closed));
}

/// A link that is cut anywhere leaves a message that is whole or one that is aborted.
#[test]
fn a_cut_at_every_byte_leaves_no_half_message() {
    let mut pair = Pair::connected();
    let id = pair.client.deliver_begin(&to_bob()).unwrap();
    pair.client.deliver_data(id, pattern(200)).unwrap();
    pair.client.deliver_data(id, pattern(100)).unwrap();
    pair.client.deliver_end(id);
    let bytes = drain(|| pair.client.poll_transmit());
    for at in 0..=bytes.len() {
        let mut pair = Pair::connected();
        pair.server.handle_input(bytes.slice(..at)).unwrap();
        pair.server.handle_close();
        let mut messages = Vec::new();
        hear(&mut pair, &mut messages);
        if let Some((_, heard)) = messages.first() {
            assert!(heard.ended != heard.aborted, "cut at {at}");
            assert_eq!(heard.ended, at == bytes.len());
        }
    }
}

#[test]
fn a_large_body_goes_out_as_the_bytes_it_is() {
    let mut pair = Pair::connected();
    for len in [20_000, 60_000, 1_000_000] {
        let body = pattern(len);
        pair.client.deliver(&to_bob(), body.clone()).unwrap();
        let shared = std::iter::from_fn(|| pair.client.poll_transmit())
            .filter(|bytes| body.as_ptr_range().contains(&bytes.as_ptr()))
            .map(|bytes| bytes.len())
            .sum::<usize>();
        assert_eq!(shared, len);
    }
}

#[test]
fn small_requests_are_gathered_into_few_buffers() {
    let mut pair = Pair::connected();
    for _ in 0..1_000 {
        pair.client.deliver(&to_bob(), pattern(512)).unwrap();
    }
    let total = pair.client.transmit_backlog();
    let buffers: Vec<_> = std::iter::from_fn(|| pair.client.poll_transmit()).collect();
    assert!(
        buffers.len() <= total / (64 << 10) + 1,
        "{} buffers",
        buffers.len()
    );
    assert_eq!(buffers.iter().map(Bytes::len).sum::<usize>(), total);
    assert_eq!(pair.client.transmit_backlog(), 0);
}

#[test]
fn a_client_stops_at_its_backlog() {
    let mut pair = Pair::connected();
    let id = pair.client.deliver_begin(&to_bob()).unwrap();
    let piece = pattern(100_000);
    while pair.client.deliver_data(id, piece.clone()).is_ok() {
        assert!(pair.client.transmit_backlog() < BACKLOG_BYTES_SOFT + 200_000);
    }
    assert_eq!(
        pair.client.deliver_data(id, pattern(1)),
        Err(NotReady::Backlog)
    );
    assert_eq!(pair.client.status(), Err(NotReady::Backlog));
    pair.client.ping().expect("a ping is small");
}

#[test]
fn requests_that_break_a_limit_are_not_sent() {
    let mut pair = Pair::connected();
    let broken = |change: fn(&mut DeliverRequest)| {
        let mut request = to_bob();
        change(&mut request);
        request
    };
    for request in [
        broken(|request| request.recipients.clear()),
        broken(|request| request.recipients = vec![request.recipients[0].clone(); 1_001]),
        broken(|request| request.sender = pattern(321)),
        broken(|request| request.queue_id = pattern(65)),
    ] {
        let refused = pair.client.deliver(&request, Bytes::new());
        assert!(matches!(refused, Err(NotReady::Invalid(_))));
    }
    assert_eq!(pair.client.transmit_backlog(), 0);
    let user = pattern(256);
    let id = pair.client.mailboxes(&user).unwrap();
    pair.run().unwrap();
    assert!(matches!(
        &pair.client_events()[..],
        [client::Event::Failed { id: found, status: Status::NoUser, .. }] if *found == id
    ));
}
