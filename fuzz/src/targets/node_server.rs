//! The answering end of the node protocol, with a peer that sends anything after a good HELLO.

use bytes::Bytes;
use ringpost_netproto::frame::Status;
use ringpost_netproto::id::{Guid, MailboxId, Uid, UidValidity};
use ringpost_netproto::message::append::{AppendReply, Made};
use ringpost_netproto::session::Config;
use ringpost_netproto::session::client::ClientSession;
use ringpost_netproto::session::server::{Event, RecipientReply, ServerSession};
use ringpost_netproto::version::{Hello, Role};

use super::pieces;
use crate::seal;

/// The first byte is the length of pieces, the rest what the client sends behind its HELLO.
pub fn run(input: &[u8]) {
    let Some((piece_len, bytes)) = pieces(input) else {
        return;
    };
    serve(bytes, piece_len);
    serve(&seal::node_frames(bytes), piece_len);
}

fn serve(bytes: &[u8], piece_len: usize) {
    let mut server = ServerSession::new(Config::new(Hello::new(Role::Node)));
    let mut client = ClientSession::new(Config::new(Hello::new(Role::Shim)));
    while let Some(hello) = client.poll_transmit() {
        server.handle_input(hello).expect("a good HELLO");
    }
    events(&mut server);
    for piece in bytes.chunks(piece_len) {
        if server.handle_input(Bytes::copy_from_slice(piece)).is_err() {
            assert!(server.is_ended());
            break;
        }
        events(&mut server);
    }
    server.handle_close();
    events(&mut server);
    assert!(server.is_ended());
}

const APPENDED: AppendReply = AppendReply {
    status: Status::OkDuplicate,
    uid: Uid::new(1),
    uidvalidity: UidValidity::new(1),
    mailbox: MailboxId::INBOX,
    made: Made::No,
    guid: Guid::new([1; 16]),
};

/// Answers every request at once, some with what they asked, some with a failure.
fn events(server: &mut ServerSession) {
    let mut open = Vec::new();
    while let Some(event) = server.poll_event() {
        match event {
            Event::DeliverBegin { id, request } => open.push((id, request.recipients.len())),
            Event::AppendBegin { id, request } if request.keywords.is_empty() => {
                server.append_reply(id, &APPENDED);
            }
            Event::DeliverData { id, data } => {
                server.release(id, u64::try_from(data.len()).expect("fits"));
            }
            Event::DeliverEnd { id } => {
                if let Some((_, count)) = open.iter().find(|(begun, _)| *begun == id) {
                    let replies = vec![RecipientReply::new(Status::Ok); *count];
                    server.deliver_reply(id, &replies);
                }
                server.fail(id, Status::Busy, "busy");
            }
            Event::List { id, .. } => server.fail(id, Status::NoMailbox, "none"),
            Event::Mailboxes { id, .. } => server.mailboxes_reply(id, &[]),
            Event::Fetch { id, .. } => server.fail(id, Status::NoMessage, ""),
            Event::Status { id } => server.status_reply(id, &[]),
            Event::Scrub { id, .. } => server.scrub_reply(id, &[]),
            _ => {}
        }
        while server.poll_transmit().is_some() {}
    }
    while server.poll_transmit().is_some() {}
}
