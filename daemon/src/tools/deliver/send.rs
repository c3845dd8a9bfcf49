//! One message from a [`Source`] through the node protocol, in constant memory.
//!
//! A message of up to 64 KiB is read before the daemon is called and goes out as one frame; a
//! longer one is streamed while it is read. Once its first byte went out nothing is tried again
//! here: the MTA does that, with the same bytes, and the store knows them.

use std::io;

use bytes::{Bytes, BytesMut};
use ringpost_netproto::frame::{Status, Verdict};
use ringpost_netproto::limits::{INLINE_BODY_BYTES_MAX, QUEUE_ID_BYTES_MAX, READY_BYTES_TARGET};
use ringpost_netproto::message::deliver::{DeliverRecipient, DeliverRequest, RecipientReply};
use ringpost_netproto::session::client::{Event, RequestId};
use ringpost_netproto::version::Role;

use super::options::Envelope;
use super::source::Source;
use crate::client::{Address, Client, ClientError, Deadline, Patience, plain};

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

/// Delivers what is in `source`: one reply per recipient, in their order. If the node refuses all of
/// it early, or fails, the rest of the source is left unread.
pub fn send(
    source: &mut Source,
    envelope: Envelope,
    address: &Address,
    limits: Limits,
) -> Result<Vec<RecipientReply>, SendError> {
    let mut outgoing = Outgoing::new(envelope, address.clone());
    while let Some(piece) = source.next(limits.delivery).map_err(SendError::Input)? {
        if let Some(replies) = outgoing.push(&piece, limits)? {
            return Ok(replies);
        }
    }
    outgoing.finish(limits)
}

/// One message on its way. Dropped before its end, it is not delivered.
#[derive(Debug)]
pub struct Outgoing {
    envelope: Envelope,
    address: Address,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The beginning of the message; the node was not called.
    Head(BytesMut),
    /// In the middle of a stream.
    Streaming(Box<Client>, RequestId),
}

impl Outgoing {
    /// Nothing is sent yet.
    pub fn new(envelope: Envelope, address: Address) -> Self {
        Self {
            envelope,
            address,
            state: State::Head(BytesMut::new()),
        }
    }

    /// Takes the next bytes, waiting while the node takes none. Replies are an early refusal: the
    /// rest of the message is not wanted. After them, or an error, nothing more may be pushed.
    pub fn push(
        &mut self,
        piece: &Bytes,
        limits: Limits,
    ) -> Result<Option<Vec<RecipientReply>>, SendError> {
        match &mut self.state {
            State::Head(head) if head.len() + piece.len() <= INLINE_BODY_BYTES_MAX => {
                head.extend_from_slice(piece);
                return Ok(None);
            }
            State::Head(head) => {
                let head = std::mem::take(head).freeze();
                let mut client = Box::new(self.connect(limits)?);
                let request = self.envelope.request(limits.delivery, None);
                let session = client.session_mut();
                let id = session.deliver_begin(&request).map_err(ClientError::from)?;
                session.deliver_data(id, head).map_err(ClientError::from)?;
                session
                    .deliver_data(id, piece.clone())
                    .map_err(ClientError::from)?;
                self.state = State::Streaming(client, id);
            }
            State::Streaming(client, id) => client
                .session_mut()
                .deliver_data(*id, piece.clone())
                .map_err(ClientError::from)?,
        }
        self.settle(limits)
    }

    /// Moves bytes until the node keeps up.
    fn settle(&mut self, limits: Limits) -> Result<Option<Vec<RecipientReply>>, SendError> {
        let State::Streaming(client, id) = &mut self.state else {
            return Ok(None);
        };
        client.advance()?;
        loop {
            if let Some(replies) = answer(client, *id)? {
                return early(replies).map(Some);
            }
            if client.session_mut().transmit_backlog() < READY_BYTES_TARGET {
                return Ok(None);
            }
            client.turn(limits.delivery)?;
        }
    }

    /// That was all: one reply per recipient, in their order.
    pub fn finish(mut self, limits: Limits) -> Result<Vec<RecipientReply>, SendError> {
        match &mut self.state {
            State::Head(head) => {
                let body = std::mem::take(head).freeze();
                let mut client = self.connect(limits)?;
                let size = u64::try_from(body.len()).ok();
                let request = self.envelope.request(limits.delivery, size);
                Ok(client.deliver(&request, &body, limits.delivery)?)
            }
            State::Streaming(client, id) => {
                client.session_mut().deliver_end(*id);
                loop {
                    if let Some(replies) = answer(client, *id)? {
                        return Ok(replies);
                    }
                    client.turn(limits.delivery)?;
                }
            }
        }
    }

    fn connect(&self, limits: Limits) -> Result<Client, ClientError> {
        let patience = Patience::Until(limits.connect);
        Client::connect(&self.address, Role::Shim, limits.delivery, patience)
    }
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

/// The replies, if they are there; they may come before the end of the message.
fn answer(client: &mut Client, id: RequestId) -> Result<Option<Vec<RecipientReply>>, SendError> {
    while let Some(event) = client.session_mut().poll_event() {
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
