//! The seam between the load loop and a protocol: bytes in, answers out, no sockets.

use bytes::Bytes;

use crate::workload::Users;

/// A message to be sent; `slot` names it in its answers.
#[derive(Debug)]
pub(crate) struct Mail<'a> {
    /// The caller's name for it, free for another message after its last answer.
    pub(crate) slot: usize,
    /// Header and body, whole lines.
    pub(crate) bytes: Bytes,
    /// Indexes into `users`, at least one.
    pub(crate) recipients: &'a [usize],
    /// The accounts.
    pub(crate) users: &'a Users,
}

/// What became of one recipient.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// Durable.
    Stored,
    /// The daemon knows this delivery already.
    Duplicate,
    /// Not stored, or in doubt: the status and its sentence.
    Refused(String),
}

/// One recipient's outcome.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Answer {
    /// Of the mail.
    pub(crate) slot: usize,
    /// Which of its recipients, by position.
    pub(crate) recipient: usize,
    /// What became of it.
    pub(crate) outcome: Outcome,
}

/// One connection's protocol. An error ends the connection.
pub(crate) trait Session: Send {
    /// How many messages may be started now; 0 before the greeting is over.
    fn room(&self) -> usize;

    /// Starts a message. Only if there is room.
    fn submit(&mut self, mail: &Mail<'_>) -> anyhow::Result<()>;

    /// Takes what came from the socket and appends the answers it completes.
    fn receive(&mut self, input: &[u8], answers: &mut Vec<Answer>) -> anyhow::Result<()>;

    /// The next piece to be written, if any. Pieces are written in this order, whole.
    fn transmit(&mut self) -> Option<Bytes>;
}
