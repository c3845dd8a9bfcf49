//! An LMTP client that says anything, in any pieces: the same replies and the same messages.

use ringpost_daemon::lmtp::{Event, LmtpConfig, Reply, Session};
use ringpost_netproto::frame::Status;

use super::pieces;

/// The first byte is the length of pieces, the rest what the client says.
pub fn run(input: &[u8]) {
    let Some((piece_len, client)) = pieces(input) else {
        return;
    };
    let whole = converse(client, client.len().max(1));
    let cut = converse(client, piece_len);
    assert_eq!(whole, cut);
    assert!(whole.sent.len() <= 200 + 200 * client.len());
    assert!(whole.messages.iter().map(Vec::len).sum::<usize>() <= client.len());
}

/// What came of a conversation.
#[derive(PartialEq, Eq, Debug, Default)]
struct Told {
    sent: Vec<u8>,
    messages: Vec<Vec<u8>>,
}

/// Accepts recipients whose local part has an even length; answers messages last to first.
fn converse(client: &[u8], piece_len: usize) -> Told {
    let mut session = Session::new(LmtpConfig {
        hostname: "mx.example.test".to_owned(),
        message_bytes_max: 1_000,
        recipients_max: 4,
        bad_commands_max: 20,
    });
    let mut told = Told::default();
    let mut accepted = 0;
    let mut message = Vec::new();
    for piece in client.chunks(piece_len) {
        let mut rest = piece;
        while let Some(event) = session.next_event(&mut rest) {
            match event {
                Event::Rcpt { index, address } => {
                    assert_eq!(index, accepted);
                    if address.local().len().is_multiple_of(2) {
                        accepted += 1;
                        session.rcpt_reply(&Reply::recipient_ok());
                    } else {
                        session.rcpt_reply(&Reply::of(Status::NoUser));
                    }
                }
                Event::MessageBegin { .. } => assert!(accepted > 0 && message.is_empty()),
                Event::Data(data) => message.extend_from_slice(data),
                Event::MessageEnd => {
                    told.messages.push(std::mem::take(&mut message));
                    for index in (0..accepted).rev() {
                        assert!(!session.takes_input());
                        session.message_reply(index, Reply::of(Status::Ok));
                    }
                    accepted = 0;
                }
                Event::MessageAbort => {
                    message.clear();
                    accepted = 0;
                }
                Event::Quit => assert!(session.is_closed()),
            }
        }
        assert!(rest.is_empty() || session.is_closed());
    }
    while let Some(bytes) = session.poll_transmit() {
        told.sent.extend_from_slice(&bytes);
    }
    told
}
