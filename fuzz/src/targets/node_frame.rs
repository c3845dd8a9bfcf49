//! Frames of the node protocol and every message in them: total decode, pieces change nothing.

use bytes::Bytes;
use ringpost_netproto::codec::{Decoder, encode_frame};
use ringpost_netproto::error::DecodeError;
use ringpost_netproto::frame::Frame;
use ringpost_netproto::limits::PAYLOAD_BYTES_DEFAULT;
use ringpost_netproto::message::append::{AppendReply, AppendRequest};
use ringpost_netproto::message::deliver::{DeliverRequest, RecipientReply};
use ringpost_netproto::message::fetch::{FetchRequest, decode_head};
use ringpost_netproto::message::list::{ListPage, ListRequest};
use ringpost_netproto::message::mailbox::{MailboxStatus, decode_request};
use ringpost_netproto::message::report::ReportField;
use ringpost_netproto::message::stream::decode_end;
use ringpost_netproto::version::{Hello, Role};

use super::pieces;
use crate::seal;

/// The first byte is the length of pieces, the rest what the peer sends.
pub fn run(input: &[u8]) {
    let Some((piece_len, bytes)) = pieces(input) else {
        return;
    };
    check(bytes, piece_len);
    check(&seal::node_frames(bytes), piece_len);
}

fn check(bytes: &[u8], piece_len: usize) {
    let (whole, end) = frames(bytes, bytes.len().max(1));
    assert_eq!(frames(bytes, piece_len), (whole.clone(), end));
    let mut encoded = Vec::new();
    for frame in &whole {
        encoded.extend_from_slice(&encode_frame(frame));
        messages(frame);
    }
    assert_eq!(frames(&encoded, 4096).0, whole);
}

fn frames(bytes: &[u8], piece_len: usize) -> (Vec<Frame>, Option<DecodeError>) {
    let mut decoder = Decoder::new(PAYLOAD_BYTES_DEFAULT);
    let mut frames = Vec::new();
    for piece in bytes.chunks(piece_len) {
        decoder.push(Bytes::copy_from_slice(piece));
        loop {
            match decoder.next() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
        assert!(decoder.buffered_bytes() <= 128 + 2 * (1 << 20));
    }
    (frames, None)
}

/// Each decoder on each frame, whatever its opcode says.
fn messages(frame: &Frame) {
    let some = [
        DeliverRequest::decode(frame).is_ok(),
        RecipientReply::decode_all(frame, 2).is_ok(),
        AppendRequest::decode(frame).is_ok(),
        AppendReply::decode(frame).is_ok(),
        FetchRequest::decode(frame).is_ok(),
        decode_head(frame).is_ok(),
        ListRequest::decode(frame).is_ok(),
        ListPage::decode(frame).is_ok(),
        MailboxStatus::decode_all(frame).is_ok(),
        decode_request(frame).is_ok(),
        ReportField::decode_all(frame).is_ok(),
        decode_end(frame).is_ok(),
        Hello::from_payload(&frame.payload, &Hello::new(Role::Node)).is_ok(),
    ];
    std::hint::black_box(some);
}
