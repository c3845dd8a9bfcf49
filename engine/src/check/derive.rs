//! What the index says of a message, computed again from the message: restored as it was received, and
//! prepared once more.

use bytes::Bytes;

use crate::limits::STORED_BYTES_MAX;
use crate::mbox::{Restorer, View};
use crate::prepare::{PrepareOptions, PreparedBody, Preparer};

/// Takes a stored message in pieces.
pub(crate) struct Deriver {
    restorer: Restorer,
    preparer: Preparer,
    /// Whether it is too large to be received.
    too_large: bool,
}

impl Deriver {
    /// Of a message with these format flags and this length.
    pub(crate) fn new(format_flags: u16, stored_len: u32) -> Self {
        Self {
            restorer: Restorer::new(format_flags, u64::from(stored_len), View::AsReceived),
            preparer: Preparer::new(PrepareOptions {
                message_bytes_max: STORED_BYTES_MAX,
                return_path: None,
                content_key: [0; 16],
            })
            .without_content_hash(),
            too_large: false,
        }
    }

    /// The next piece of the stored message.
    pub(crate) fn push(&mut self, stored: &Bytes) {
        if !self.too_large {
            let received = self.restorer.push(stored);
            self.too_large = self.preparer.push(&received).is_err();
        }
    }

    /// What a delivery of the message would have counted; `None` if it would have been refused.
    pub(crate) fn finish(self) -> Option<PreparedBody> {
        (!self.too_large).then(|| self.preparer.finish().body)
    }
}
