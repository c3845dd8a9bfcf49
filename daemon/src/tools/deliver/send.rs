//! One message from a [`Source`] through the node protocol, in constant memory.
//!
//! A message of up to 64 KiB is read before the daemon is called and goes out as one frame; a
//! longer one is streamed while it is read. Once its first byte went out nothing is tried again
//! here: the MTA does that, with the same bytes, and the store knows them.

use std::io;
use std::os::fd::AsFd as _;

use bytes::{Bytes, BytesMut};
use ringpost_netproto::frame::{Status, Verdict};
use ringpost_netproto::limits::{INLINE_BODY_BYTES_MAX, QUEUE_ID_BYTES_MAX, READY_BYTES_TARGET};
use ringpost_netproto::message::deliver::{DeliverRecipient, DeliverRequest, RecipientReply};
use ringpost_netproto::session::client::{Event, RequestId};
use ringpost_netproto::version::Role;

use super::options::Envelope;
use super::source::Source;
use crate::client::{Address, Client, ClientError, Deadline, Patience, Turn, plain};

/// Why there are no replies.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The message could not be read to its end.
    #[error("cannot read the message: {}", plain(.0))]
    Input(#[source] io::Error),
    /// No answer of the daemon.
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl SendError {
    /// The status that decides the exit code.
    pub fn status(&self) -> Status {
        match self {
            Self::Input(_) => Status::Cancelled,
            Self::Client(error) => error.status(),
        }
    }
}

/// When to stop waiting.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For the daemon's answer.
    pub delivery: Deadline,
    /// For a daemon to appear.
    pub connect: Deadline,
}

/// Delivers what is in `source`: one reply per recipient, in their order. An error leaves the rest
/// of the source unread.
pub fn send(
    source: &mut Source,
    envelope: &Envelope,
    address: &Address,
    limits: Limits,
) -> Result<Vec<RecipientReply>, SendError> {
    let head = read_head(source, limits.delivery)?;
    let patience = Patience::Until(limits.connect);
    let mut client = Client::connect(address, Role::Shim, limits.delivery, patience)?;
    let size_hint = source
        .is_ended()
        .then(|| u64::try_from(head.len()).unwrap_or(u64::MAX));
    let request = envelope.request(limits.delivery, size_hint);
    if source.is_ended() {
        return Ok(client.deliver(&request, &head, limits.delivery)?);
    }
    let mut session = Streaming {
        client: &mut client,
        source,
        deadline: limits.delivery,
    };
    session.run(&request, head)
}

/// Up to a little more than what fits one frame; all of the message, or its beginning.
fn read_head(source: &mut Source, deadline: Deadline) -> Result<Bytes, SendError> {
    let mut head = BytesMut::new();
    while head.len() <= INLINE_BODY_BYTES_MAX {
        match source.next(deadline) {
            Ok(Some(piece)) => head.extend_from_slice(&piece),
            Ok(None) => break,
            Err(error) => return Err(SendError::Input(error)),
        }
    }
    Ok(head.freeze())
}

impl Envelope {
    /// As the protocol has it.
    fn request(&self, deadline: Deadline, size_hint: Option<u64>) -> DeliverRequest {
        let queue_id = self.queue_id.get(..QUEUE_ID_BYTES_MAX);
        DeliverRequest {
            sender: Bytes::copy_from_slice(&self.sender),
            recipients: self
                .recipients
                .iter()
                .map(|address| DeliverRecipient {
                    address: Bytes::copy_from_slice(address),
                    mailbox: self.mailbox.as_deref().map(Bytes::copy_from_slice),
                })
                .collect(),
            queue_id: Bytes::copy_from_slice(queue_id.unwrap_or(&self.queue_id)),
            deadline_ms: deadline.remaining_ms(),
            size_hint,
        }
    }
}

/// Replies before the end of the message can only be refusals: nobody can have stored what we did
/// not send.
fn early(replies: Vec<RecipientReply>) -> Result<Vec<RecipientReply>, SendError> {
    if replies
        .iter()
        .any(|reply| reply.status.verdict() == Verdict::Done)
    {
        return Err(SendError::Client(ClientError::Failed {
            status: Status::Internal,
            text: "the node answered before the end of the message".to_owned(),
        }));
    }
    Ok(replies)
}

/// A message on its way while it is being read.
struct Streaming<'a> {
    client: &'a mut Client,
    source: &'a mut Source,
    deadline: Deadline,
}

impl Streaming<'_> {
    fn run(
        &mut self,
        request: &DeliverRequest,
        head: Bytes,
    ) -> Result<Vec<RecipientReply>, SendError> {
        let session = self.client.session_mut();
        let id = session.deliver_begin(request).map_err(ClientError::from)?;
        session.deliver_data(id, head).map_err(ClientError::from)?;
        let mut open = true;
        loop {
            if let Some(replies) = self.answer(id)? {
                return if open { early(replies) } else { Ok(replies) };
            }
            let session = self.client.session_mut();
            if open && self.source.is_ended() {
                session.deliver_end(id);
                open = false;
            }
            let hungry = open && session.transmit_backlog() < READY_BYTES_TARGET;
            let other = hungry.then(|| self.source.as_fd());
            if self.client.turn(other, self.deadline)? == Turn::Other {
                let piece = self.source.read().map_err(SendError::Input)?;
                let session = self.client.session_mut();
                for piece in piece.into_iter().filter(|piece| !piece.is_empty()) {
                    session.deliver_data(id, piece).map_err(ClientError::from)?;
                }
            }
        }
    }

    /// The replies, if they are there; they may come before the end of the message.
    fn answer(&mut self, id: RequestId) -> Result<Option<Vec<RecipientReply>>, SendError> {
        while let Some(event) = self.client.session_mut().poll_event() {
            match event {
                Event::Delivered { id: of, replies } if of == id => return Ok(Some(replies)),
                Event::Failed {
                    id: of,
                    status,
                    text,
                } if of == id => return Err(ClientError::Failed { status, text }.into()),
                _ => {}
            }
        }
        Ok(None)
    }
}
