//! Messages that the simulator sends: of every shape of line end, quoting and ending that the stored
//! form has to undo, each with its own guid.

use std::sync::Arc;

use bytes::Bytes;
use fastrand::Rng;
use ringpost_engine::prepare::{PrepareOptions, PreparedBody, Preparer, Push};
use ringpost_netproto::id::Guid;

/// One message that was or will be sent, perhaps more than once.
#[derive(Clone, Debug)]
pub(super) struct Mail {
    /// As a client sends it, and gets it back.
    pub(super) bytes: Bytes,
    /// The delivery id.
    pub(super) guid: Guid,
    /// As the engine is to store it.
    pub(super) body: Arc<PreparedBody>,
}

pub(super) fn preparer() -> Preparer {
    Preparer::new(PrepareOptions {
        message_bytes_max: 1 << 20,
        return_path: None,
        content_key: [3; 16],
    })
}

impl Mail {
    /// The message with this number, of about `bytes` bytes.
    pub(super) fn draw(rng: &mut Rng, number: usize, bytes: usize) -> Self {
        let text = text(rng, number, bytes);
        let mut preparer = preparer();
        let pushed = preparer.push(&text).expect("far below the limit");
        assert_eq!(pushed, Push::Buffered, "nothing was taken out");
        let mut guid = [0; 16];
        rng.fill(&mut guid);
        Self {
            bytes: Bytes::from(text),
            guid: Guid::new(guid),
            body: Arc::new(preparer.finish().body),
        }
    }
}

fn text(rng: &mut Rng, number: usize, bytes: usize) -> Vec<u8> {
    // Mostly CRLF; LF alone; both.
    let ends: &[&str] = match rng.u8(..6) {
        0 => &["\n"],
        1 => &["\n", "\r\n"],
        _ => &["\r\n"],
    };
    let mut text = Vec::new();
    let mut line = |rng: &mut Rng, content: &[u8]| {
        text.extend_from_slice(content);
        text.extend_from_slice(rng.choice(ends).copied().unwrap_or("\n").as_bytes());
        text.len()
    };
    if rng.u8(..8) > 0 {
        line(rng, b"Received: by sim");
        line(rng, format!("Subject: mail {number}").as_bytes());
        line(rng, b"From: a@b.test");
        if rng.bool() {
            line(rng, b"Date: Thu, 1 Jan 2026 00:00:00 +0000");
        }
        line(rng, b"");
    }
    let mut len = 0;
    let mut count = 0;
    while len < bytes {
        count += 1;
        len = match rng.u8(..16) {
            0 => line(rng, b"From here on it must be quoted"),
            1 => line(rng, b">From that was quoted before"),
            2 => line(rng, b""),
            3 => line(rng, b"eight bits: \xe4\xf6\xfc and \0"),
            4 => line(rng, b"a bare \r in the midst"),
            _ => line(rng, format!("line {count} of mail {number}").as_bytes()),
        };
    }
    if rng.u8(..5) == 0 {
        text.extend_from_slice(b"no newline at the end");
    }
    text
}
