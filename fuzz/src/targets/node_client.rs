//! The asking end of the node protocol, with a node that answers anything after a good HELLO.

use bytes::Bytes;
use ringpost_netproto::id::{MailboxId, Uid};
use ringpost_netproto::message::MailboxRef;
use ringpost_netproto::message::append::{AppendRequest, Missing};
use ringpost_netproto::message::deliver::{DeliverRecipient, DeliverRequest};
use ringpost_netproto::message::fetch::FetchRequest;
use ringpost_netproto::message::list::ListRequest;
use ringpost_netproto::session::Config;
use ringpost_netproto::session::client::ClientSession;
use ringpost_netproto::session::server::ServerSession;
use ringpost_netproto::version::{Hello, Role};

use super::pieces;
use crate::seal;

/// The first byte is the length of pieces, the rest what the node sends behind its HELLO.
pub fn run(input: &[u8]) {
    let Some((piece_len, bytes)) = pieces(input) else {
        return;
    };
    ask(bytes, piece_len);
    ask(&seal::node_frames(bytes), piece_len);
}

fn ask(bytes: &[u8], piece_len: usize) {
    let mut client = ClientSession::new(Config::new(Hello::new(Role::Client)));
    let mut server = ServerSession::new(Config::new(Hello::new(Role::Node)));
    while let Some(hello) = client.poll_transmit() {
        server.handle_input(hello).expect("a good HELLO");
    }
    while let Some(hello) = server.poll_transmit() {
        client.handle_input(hello).expect("a good HELLO");
    }
    requests(&mut client);
    while client.poll_transmit().is_some() {}
    for piece in bytes.chunks(piece_len) {
        if client.handle_input(Bytes::copy_from_slice(piece)).is_err() {
            assert!(client.is_ended());
            break;
        }
        while client.poll_event().is_some() {}
        while client.poll_transmit().is_some() {}
    }
    client.handle_close();
    while client.poll_event().is_some() {}
    assert!(client.is_ended());
    assert_eq!(client.in_flight_count(), 0);
}

/// One of each, with the ids 1, 3, 5 and so on.
fn requests(client: &mut ClientSession) {
    let user = Bytes::from_static(b"bob");
    let mailbox = MailboxRef::Id(MailboxId::INBOX);
    let deliver = DeliverRequest {
        sender: Bytes::new(),
        recipients: vec![DeliverRecipient {
            address: user.clone(),
            mailbox: None,
        }],
        queue_id: Bytes::new(),
        deadline_ms: 0,
        size_hint: None,
    };
    let list = ListRequest {
        user: user.clone(),
        mailbox: mailbox.clone(),
        after_uid: 0,
        entries_max: 10,
    };
    let append = AppendRequest {
        user: user.clone(),
        mailbox: mailbox.clone(),
        missing: Missing::Create,
        sender: Bytes::new(),
        flags: 0,
        keywords: Vec::new(),
        internal_date: None,
        dedupe_id: None,
        deadline_ms: 0,
        size_hint: None,
    };
    let fetch = FetchRequest {
        user,
        mailbox,
        uid: Uid::new(1),
    };
    let ids = [
        client.deliver(&deliver, Bytes::from_static(b"x\n")),
        client.list(&list),
        client.mailboxes(b"bob"),
        client.fetch(&fetch),
        client.status(),
        client.ping(),
        client.append(&append, Bytes::from_static(b"x\n")),
    ];
    assert!(ids.iter().all(Result::is_ok), "{ids:?}");
}
