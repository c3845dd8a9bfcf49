//! The limit of the sockets: messages of the same size against a reply of 64 bytes, through the
//! same loop, over the same number of connections, with nothing behind it.

use std::collections::VecDeque;

use anyhow::{Context as _, ensure};
use bytes::Bytes;

use super::session::{Answer, Mail, Outcome, Session};

/// Bytes of a reply: about what the node protocol answers.
pub(crate) const REPLY_BYTES: usize = 64;

/// A connection to the echo of [`Dialect::Echo`](super::fake::Dialect).
#[derive(Debug, Default)]
pub(crate) struct EchoSession {
    queue: VecDeque<Bytes>,
    /// Under way, in order, with their recipients' count.
    slots: VecDeque<(usize, usize)>,
    reply_bytes: usize,
}

impl Session for EchoSession {
    fn room(&self) -> usize {
        usize::MAX
    }

    fn submit(&mut self, mail: &Mail<'_>) -> anyhow::Result<()> {
        ensure!(!mail.bytes.is_empty(), "an echo of nothing");
        self.slots.push_back((mail.slot, mail.recipients.len()));
        self.queue.push_back(mail.bytes.clone());
        Ok(())
    }

    fn receive(&mut self, input: &[u8], answers: &mut Vec<Answer>) -> anyhow::Result<()> {
        self.reply_bytes += input.len();
        while self.reply_bytes >= REPLY_BYTES {
            self.reply_bytes -= REPLY_BYTES;
            let (slot, recipients_count) = self
                .slots
                .pop_front()
                .context("an answer to nothing that was asked")?;
            answers.extend((0..recipients_count).map(|recipient| Answer {
                slot,
                recipient,
                outcome: Outcome::Stored,
            }));
        }
        Ok(())
    }

    fn transmit(&mut self) -> Option<Bytes> {
        self.queue.pop_front()
    }
}
