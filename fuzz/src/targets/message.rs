//! A message to its stored form and back: identical, however it is cut, taken and put together.

use bytes::Bytes;
use ringpost_engine::format::crc;
use ringpost_engine::header_cache;
use ringpost_engine::mbox::{Item, Restorer, State, View, prefix, restore, scan};
use ringpost_engine::prepare::{PrepareOptions, PreparedBody, Preparer, Push};

use ringpost_engine::format::store_line::StoreLine;
use ringpost_netproto::id::{Guid, MailboxId, WallNs};

use super::pieces;

/// The first byte is the length of pieces, the rest the message.
pub fn run(input: &[u8]) {
    let Some((piece_len, message)) = pieces(input) else {
        return;
    };
    let whole = prepare(message, message.len().max(1), None, Take::Never);
    check(message, &whole, piece_len);
    for take in [Take::Never, Take::Always, Take::EverySecond] {
        assert_eq!(prepare(message, piece_len, None, take), whole);
    }
    let marked = prepare(message, piece_len, Some(b"a@b"), Take::EverySecond);
    let given = restore(
        &marked.stored,
        marked.summary.format_flags,
        View::AsReceived,
    );
    assert!(given.ends_with(message));
    assert_eq!(marked.summary.content_hash, whole.summary.content_hash);
    in_a_segment(&whole);
}

#[derive(Clone, Copy)]
enum Take {
    Never,
    Always,
    EverySecond,
}

fn prepare(
    message: &[u8],
    piece_len: usize,
    return_path: Option<&'static [u8]>,
    take: Take,
) -> PreparedBody {
    let mut preparer = Preparer::new(PrepareOptions {
        message_bytes_max: 1 << 30,
        return_path: return_path.map(Bytes::from_static),
        content_key: [7; 16],
    });
    let mut taken = Vec::new();
    for (number, piece) in message.chunks(piece_len).enumerate() {
        if preparer.push(piece).expect("below the limit") == Push::ExpandSpilled {
            taken = expanded(&taken);
            let len = u64::try_from(taken.len()).expect("fits");
            preparer.expanded(crc::of(&taken), len);
        }
        let now = match take {
            Take::Never => false,
            Take::Always => true,
            Take::EverySecond => number % 2 == 0,
        };
        if now {
            taken.extend_from_slice(&preparer.take_stored());
        }
    }
    let mut body = preparer.finish().body;
    taken.extend_from_slice(&body.stored);
    body.stored = Bytes::from(taken);
    body
}

/// What the stage file of a large message does with what was staged.
fn expanded(stored: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for byte in stored {
        if *byte == b'\n' {
            out.push(b'\r');
        }
        out.push(*byte);
    }
    out
}

fn check(message: &[u8], body: &PreparedBody, piece_len: usize) {
    let summary = &body.summary;
    let flags = summary.format_flags;
    let given = restore(&body.stored, flags, View::AsReceived);
    assert_eq!(given, message);
    let crlf = restore(&body.stored, flags, View::Crlf);
    assert_eq!(
        u64::try_from(crlf.len()),
        Ok(u64::from(summary.rfc822_size))
    );
    assert_eq!(summary.stored_crc, crc::of(&body.stored));
    assert!(u64::from(summary.header_len) <= summary.stored_len);
    header_cache::decode(&body.cache).expect("just encoded");
    for (view, want) in [(View::AsReceived, given), (View::Crlf, crlf)] {
        let mut restorer = Restorer::new(flags, summary.stored_len, view);
        let mut out = Vec::new();
        for at in (0..body.stored.len()).step_by(piece_len) {
            let end = (at + piece_len).min(body.stored.len());
            out.extend_from_slice(&restorer.push(&body.stored.slice(at..end)));
        }
        assert_eq!(out, want);
    }
}

/// Two copies in a segment are found whole.
fn in_a_segment(body: &PreparedBody) {
    let store = StoreLine {
        mailbox: MailboxId::INBOX,
        uidvalidity: 1,
        uid: 1,
        guid: Guid::new([1; 16]),
        internal_date: WallNs::new(0),
        stored_len: u32::try_from(body.stored.len()).expect("small"),
        stored_crc: body.summary.stored_crc,
        format_flags: u8::try_from(body.summary.format_flags).expect("five bits"),
    };
    let mut one = prefix(b"a@b", WallNs::new(0), &store);
    one.extend_from_slice(&body.stored);
    one.push(b'\n');
    let items = scan(&one.repeat(2));
    assert_eq!(items.len(), 2);
    for item in items {
        assert!(matches!(item, Item::Message(found) if found.state == State::Whole));
    }
}
