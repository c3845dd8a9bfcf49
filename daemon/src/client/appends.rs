//! Many appends in flight over one connection: what an import needs to be as fast as the node.
//!
//! They are sent in order and mostly get their uids in it; behind a message that travels as a stream
//! nothing is sent until it is answered, so that later ones do not overtake it. What a node puts off
//! (busy, too late) is sent again after a while. An append that has no answer when the connection
//! ends may have been done: its id tells.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use ringpost_netproto::frame::{RequestId, Status};
use ringpost_netproto::limits::INLINE_BODY_BYTES_MAX;
use ringpost_netproto::message::append::{AppendReply, AppendRequest};
use ringpost_netproto::session::client::{Event, NotReady};

use super::{Client, ClientError, Deadline, pause};

/// Appends without an answer. A batch of the log holds as many small ones.
const OPEN_MAX: usize = 256;

/// Bytes of them: the window that a node grants.
const BYTES_MAX: usize = 8 << 20;

/// Written at the latest behind so many bytes.
const WRITE_BYTES: usize = 64 << 10;

/// And behind so many appends.
const WRITE_COUNT: usize = 16;

/// So often an append that is put off is sent again.
const TRIES_MAX: u32 = 100;

/// What is sent, and for whom.
#[derive(Clone, Debug)]
pub struct Sent<T> {
    /// The caller's name for it.
    pub tag: T,
    /// All but its bytes.
    pub request: AppendRequest,
    /// Its bytes.
    pub body: Bytes,
    tries: u32,
}

/// An append that was not done.
#[derive(Debug)]
pub struct Undone<T> {
    /// What it was.
    pub sent: Sent<T>,
    /// What to do about it.
    pub status: Status,
    /// Why, as a sentence; may be empty.
    pub text: String,
}

/// The appends of one connection.
#[derive(Debug)]
pub struct Appends<T> {
    open: BTreeMap<RequestId, Sent<T>>,
    again: VecDeque<Sent<T>>,
    done: Vec<Result<(T, AppendReply), Undone<T>>>,
    /// Bytes without an answer.
    bytes: usize,
    /// Bytes and appends that may not be written yet.
    unwritten: (usize, usize),
    /// A stream that nothing may overtake.
    stream: Option<RequestId>,
    goaway: Option<(Status, String)>,
    patience: Duration,
}

impl<T> Appends<T> {
    /// None yet. `patience`: for each answer.
    pub fn new(patience: Duration) -> Self {
        Self {
            open: BTreeMap::new(),
            again: VecDeque::new(),
            done: Vec::new(),
            bytes: 0,
            unwritten: (0, 0),
            stream: None,
            goaway: None,
            patience,
        }
    }

    /// Sends one, when there is room for it.
    pub fn push(
        &mut self,
        client: &mut Client,
        tag: T,
        request: AppendRequest,
        body: Bytes,
    ) -> Result<(), ClientError> {
        let full = |open: &Self| {
            open.open.len() >= OPEN_MAX
                || open.bytes > 0 && open.bytes + body.len() > BYTES_MAX
                || open.stream.is_some()
                || !open.again.is_empty()
        };
        while full(self) {
            self.wait(client)?;
        }
        self.send(
            client,
            Sent {
                tag,
                request,
                body,
                tries: 0,
            },
        )
    }

    /// Waits until all are answered.
    pub fn finish(&mut self, client: &mut Client) -> Result<(), ClientError> {
        while !self.open.is_empty() || !self.again.is_empty() {
            self.wait(client)?;
        }
        Ok(())
    }

    /// What was answered since it was asked last.
    pub fn take_done(&mut self) -> Vec<Result<(T, AppendReply), Undone<T>>> {
        std::mem::take(&mut self.done)
    }

    fn send(&mut self, client: &mut Client, sent: Sent<T>) -> Result<(), ClientError> {
        if let Some((status, text)) = &self.goaway {
            return Err(client.goaway(*status, text.clone()));
        }
        let id = loop {
            let session = client.session_mut();
            match session.append(&sent.request, sent.body.clone()) {
                Ok(id) => break id,
                Err(NotReady::Credit | NotReady::Backlog | NotReady::InFlight) => {
                    client.turn(Deadline::after(self.patience))?;
                    self.events(client);
                }
                Err(never) => return Err(never.into()),
            }
        };
        self.bytes += sent.body.len();
        self.unwritten.0 += sent.body.len();
        self.unwritten.1 += 1;
        if sent.body.len() > INLINE_BODY_BYTES_MAX {
            self.stream = Some(id);
        }
        self.open.insert(id, sent);
        if self.unwritten.0 >= WRITE_BYTES || self.unwritten.1 >= WRITE_COUNT {
            self.unwritten = (0, 0);
            client.advance()?;
            self.events(client);
        }
        Ok(())
    }

    /// Gets on: an answer, or a second try of what was put off.
    fn wait(&mut self, client: &mut Client) -> Result<(), ClientError> {
        if self.open.is_empty() && !self.again.is_empty() {
            pause(Deadline::after(self.patience)).map_err(|source| client.io(source))?;
            // In their order; what is put off once more waits for the next time.
            for sent in std::mem::take(&mut self.again) {
                self.send(client, sent)?;
            }
        }
        self.unwritten = (0, 0);
        client.turn(Deadline::after(self.patience))?;
        self.events(client);
        Ok(())
    }

    fn events(&mut self, client: &mut Client) {
        while let Some(event) = client.session_mut().poll_event() {
            match event {
                Event::Appended { id, reply } => {
                    if let Some(sent) = self.close(id) {
                        self.done.push(Ok((sent.tag, reply)));
                    }
                }
                Event::Failed { id, status, text } => {
                    let Some(mut sent) = self.close(id) else {
                        continue;
                    };
                    sent.tries += 1;
                    let later = matches!(status, Status::Busy | Status::Deadline);
                    if later && sent.tries < TRIES_MAX {
                        self.again.push_back(sent);
                    } else {
                        self.done.push(Err(Undone { sent, status, text }));
                    }
                }
                Event::GoAway { status, text } => self.goaway = Some((status, text)),
                _ => {}
            }
        }
    }

    fn close(&mut self, id: RequestId) -> Option<Sent<T>> {
        let sent = self.open.remove(&id)?;
        self.bytes -= sent.body.len();
        if self.stream == Some(id) {
            self.stream = None;
        }
        Some(sent)
    }
}
