//! The end that answers. Requests come out as events and are answered in any order by id.
//!
//! An id that is no longer open (answered, cancelled, connection gone) is ignored by all methods:
//! a caller that answers late need not know. Credit for a message's bytes goes back to the peer
//! when the caller says so ([`ServerSession::release`]) or with the answer.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;

use bytes::{Bytes, BytesMut};

use super::Config;
use super::client::check_piece;
use super::link::{Incoming, Link, Phase, Side, expect_kind, unexpected};
use crate::error::Violation;
use crate::frame::{Frame, FrameHeader, Kind, Opcode, Status, Verdict};
use crate::limits::{BACKLOG_BYTES_SOFT, READS_IN_FLIGHT_MAX, REQUESTS_IN_FLIGHT_MAX};
use crate::message::append::{AppendBody, AppendReply, AppendRequest};
use crate::message::backup::BackupRequest;
use crate::message::deliver::{DeliverBody, DeliverRequest};
use crate::message::fetch::{self, FetchRequest};
use crate::message::list::{ListEntry, ListPage, ListRequest};
use crate::message::mailbox::{self, MailboxStatus};
use crate::message::report::ReportField;
use crate::message::scrub;
use crate::message::stream::{BodySum, decode_end};
use crate::message::{Fault, bounded_text};
use crate::version::Hello;

pub use crate::frame::RequestId;
pub use crate::message::deliver::RecipientReply;

/// What the peer wants.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The handshake is done; [`ServerSession::peer`] says who is there.
    Connected,
    /// A message begins. Answer with `deliver_reply` or `fail`, at once or after its end.
    DeliverBegin {
        /// To answer it.
        id: RequestId,
        /// All but its bytes. Recipients are to be checked one by one.
        request: DeliverRequest,
    },
    /// A message for a mailbox begins; its bytes come as those of a delivery. Answer with
    /// `append_reply` or `fail`, at once or after its end.
    AppendBegin {
        /// To answer it.
        id: RequestId,
        /// All but its bytes.
        request: AppendRequest,
    },
    /// Its next bytes; some may still come for a message that was answered before its end.
    DeliverData {
        /// Of the message.
        id: RequestId,
        /// A slice of what was given to `handle_input`, if it came whole.
        data: Bytes,
    },
    /// All its bytes came; length and checksum were compared.
    DeliverEnd {
        /// Of the message.
        id: RequestId,
    },
    /// It will not come to its end: forget it. Nothing is to be answered.
    DeliverAborted {
        /// Of the message.
        id: RequestId,
    },
    /// Answer with `list_reply` or `fail`.
    List {
        /// To answer it.
        id: RequestId,
        /// What is wanted.
        request: ListRequest,
    },
    /// Answer with `mailboxes_reply` or `fail`.
    Mailboxes {
        /// To answer it.
        id: RequestId,
        /// Canonical user name.
        user: Bytes,
    },
    /// Answer with `fetch_begin`, `fetch_data`, `fetch_end`, or `fail`.
    Fetch {
        /// To answer it.
        id: RequestId,
        /// What is wanted.
        request: FetchRequest,
    },
    /// Nobody waits for it any more: forget it. Nothing is to be answered.
    FetchAborted {
        /// Of the fetch.
        id: RequestId,
    },
    /// Answer with `status_reply` or `fail`.
    Status {
        /// To answer it.
        id: RequestId,
    },
    /// Answer with `backup_reply` or `fail`.
    Backup {
        /// To answer it.
        id: RequestId,
        /// What is wanted.
        request: BackupRequest,
    },
    /// Answer with `scrub_reply` or `fail`.
    Scrub {
        /// To answer it.
        id: RequestId,
        /// Canonical user name; `None`: all that the node has.
        user: Option<Bytes>,
    },
    /// The peer will make no more requests.
    GoAway {
        /// Why, in one number.
        status: Status,
        /// A sentence for a log, printable.
        text: String,
    },
}

/// A request without its answer.
#[derive(Debug)]
struct Open {
    opcode: Opcode,
    /// Credit that its answer gives back.
    charged: u64,
    stage: Stage,
}

/// How far it is.
#[derive(Debug)]
enum Stage {
    /// A message, its bytes still coming. An append has one recipient.
    Receiving {
        recipients_count: usize,
        sum: BodySum,
    },
    /// A message, whole.
    Received { recipients_count: usize },
    /// A reading request.
    Read(Turn),
    /// A fetch whose bytes are on their way.
    Streaming,
}

/// Whether a reading request was handed out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Turn {
    Waiting,
    Taken,
}

/// The accepting end of a connection.
#[derive(Debug)]
pub struct ServerSession {
    link: Link,
    events: VecDeque<Event>,
    /// Reading requests that were not handed out yet.
    reads: VecDeque<Event>,
    reads_taken_count: usize,
    open: BTreeMap<RequestId, Open>,
    draining: bool,
}

impl ServerSession {
    /// A connection that was just accepted.
    pub fn new(config: Config) -> Self {
        Self {
            link: Link::new(config, Side::Acceptor),
            events: VecDeque::new(),
            reads: VecDeque::new(),
            reads_taken_count: 0,
            open: BTreeMap::new(),
            draining: false,
        }
    }

    /// Takes what was read from the connection. An error is final: write what `poll_transmit` still
    /// gives, then close; unfinished messages and fetches come out as aborted.
    pub fn handle_input(&mut self, input: Bytes) -> Result<(), Violation> {
        let result = self.link.push(input).and_then(|()| self.read_frames());
        result.inspect_err(|violation| {
            self.link.end(violation);
            self.abort_all();
        })
    }

    /// The connection was closed or cut. Unfinished messages and fetches come out as aborted; whole
    /// messages go on, their answers are ignored.
    pub fn handle_close(&mut self) {
        self.link.close();
        self.abort_all();
    }

    /// The next bytes to write, in order.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        self.link.outbox.poll()
    }

    /// Bytes that wait to be written. While this is above `BACKLOG_BYTES_SOFT`, read nothing from
    /// the peer and add nothing to a fetch.
    pub fn transmit_backlog(&self) -> usize {
        self.link.outbox.backlog()
    }

    /// The next event. Reading requests wait while too many of them or too many bytes are on their
    /// way, so ask again after answers and writes.
    pub fn poll_event(&mut self) -> Option<Event> {
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        if self.reads_taken_count >= READS_IN_FLIGHT_MAX
            || self.transmit_backlog() >= BACKLOG_BYTES_SOFT
        {
            return None;
        }
        let event = self.reads.pop_front()?;
        if let Event::List { id, .. }
        | Event::Mailboxes { id, .. }
        | Event::Fetch { id, .. }
        | Event::Status { id }
        | Event::Backup { id, .. }
        | Event::Scrub { id, .. } = &event
            && let Some(open) = self.open.get_mut(id)
        {
            open.stage = Stage::Read(Turn::Taken);
            self.reads_taken_count += 1;
        }
        Some(event)
    }

    /// Who dialed; `None` before [`Event::Connected`].
    pub const fn peer(&self) -> Option<&Hello> {
        self.link.peer()
    }

    /// Whether the connection is over for this session; what `poll_transmit` has is to be written.
    pub fn is_ended(&self) -> bool {
        self.link.phase() == Phase::Ended
    }

    /// Whether `id` still waits for its answer.
    pub fn is_open(&self, id: RequestId) -> bool {
        self.open.contains_key(&id)
    }

    /// Requests without an answer.
    pub fn in_flight_count(&self) -> usize {
        self.open.len()
    }

    /// Takes no new requests: they are answered STOPPING. Those in flight go on.
    pub fn drain(&mut self, status: Status, text: &str) {
        if !self.draining && !self.is_ended() {
            self.draining = true;
            self.link.send_goaway(status, text);
        }
    }

    /// So many bytes of this message are durable or dropped: the peer may send as many. Due at the
    /// latest for what goes above `HELD_BYTES_MAX` of a message whose end has not come, else a
    /// message larger than the window never ends; the rest comes with the answer.
    pub fn release(&mut self, id: RequestId, bytes: u64) {
        if let Some(open) = self.open.get_mut(&id) {
            let bytes = bytes.min(open.charged);
            open.charged -= bytes;
            self.link.outbox.credit.give_back(bytes);
        }
    }

    /// Answers a message: one outcome per recipient, in their order.
    ///
    /// # Panics
    /// If there are more or fewer outcomes than recipients.
    pub fn deliver_reply(&mut self, id: RequestId, replies: &[RecipientReply]) {
        let Some(Open {
            stage:
                Stage::Receiving {
                    recipients_count, ..
                }
                | Stage::Received { recipients_count },
            opcode: Opcode::Deliver,
            ..
        }) = self.open.get(&id)
        else {
            return;
        };
        assert_eq!(
            replies.len(),
            *recipients_count,
            "outcomes and recipients of request {id}"
        );
        self.answer(id, |out| RecipientReply::encode_all(replies, out));
    }

    /// Answers a message for a mailbox that is durable there.
    ///
    /// # Panics
    /// If the status of `reply` is not *done*: [`fail`](Self::fail) is for those.
    pub fn append_reply(&mut self, id: RequestId, reply: &AppendReply) {
        assert_eq!(
            reply.status.verdict(),
            Verdict::Done,
            "an append that is not done has no reply"
        );
        if self
            .open
            .get(&id)
            .is_some_and(|open| open.opcode == Opcode::Append)
        {
            self.answer_with(id, reply.status, |out| reply.encode(out));
        }
    }

    /// Answers [`Event::List`].
    pub fn list_reply(&mut self, id: RequestId, page: &ListPage) {
        self.answer_read(id, Opcode::List, |out| page.encode(out));
    }

    /// Answers [`Event::Mailboxes`].
    pub fn mailboxes_reply(&mut self, id: RequestId, mailboxes: &[MailboxStatus]) {
        self.answer_read(id, Opcode::MailboxList, |out| {
            MailboxStatus::encode_all(mailboxes, out)
        });
    }

    /// Answers [`Event::Status`].
    pub fn status_reply(&mut self, id: RequestId, fields: &[ReportField]) {
        self.answer_read(id, Opcode::Status, |out| {
            ReportField::encode_all(fields, out)
        });
    }

    /// Answers [`Event::Backup`].
    pub fn backup_reply(&mut self, id: RequestId, fields: &[ReportField]) {
        self.answer_read(id, Opcode::Backup, |out| {
            ReportField::encode_all(fields, out)
        });
    }

    /// Answers [`Event::Scrub`].
    pub fn scrub_reply(&mut self, id: RequestId, fields: &[ReportField]) {
        self.answer_read(id, Opcode::Scrub, |out| {
            ReportField::encode_all(fields, out)
        });
    }

    /// Begins the answer to [`Event::Fetch`]: the message, its header cache left out.
    pub fn fetch_begin(&mut self, id: RequestId, entry: &ListEntry) {
        if let Some(open) = self.open.get_mut(&id)
            && open.opcode == Opcode::Fetch
            && matches!(open.stage, Stage::Read(_))
        {
            open.stage = Stage::Streaming;
            let charged = core::mem::take(&mut open.charged);
            self.link.outbox.credit.give_back(charged);
            let header = FrameHeader::new(Kind::Response, Opcode::Fetch, id);
            let write = |out: &mut BytesMut| fetch::encode_head(entry, out);
            self.link.outbox.frame(header, write, Bytes::new());
            self.link.outbox.stream_open(id, Opcode::Fetch);
        }
    }

    /// The next bytes of the message as it was received. Look at `transmit_backlog` before.
    pub fn fetch_data(&mut self, id: RequestId, data: Bytes) {
        if self.is_streaming(id) {
            self.link.outbox.stream_push(id, data);
        }
    }

    /// That was all of the message.
    pub fn fetch_end(&mut self, id: RequestId) {
        if self.is_streaming(id) {
            self.close(id);
            self.link.outbox.stream_end(id);
        }
    }

    /// Answers a request with a failure, or breaks a fetch off.
    pub fn fail(&mut self, id: RequestId, status: Status, text: &str) {
        let streaming = self.is_streaming(id);
        let Some(open) = self.close(id) else {
            return;
        };
        if streaming {
            self.link.outbox.stream_drop(id);
            self.break_off(id, status, text);
        } else {
            self.link
                .fail(id, open.opcode, open.charged, (status, text));
        }
    }

    /// A stream end that says why there is no more.
    fn break_off(&mut self, id: RequestId, status: Status, text: &str) {
        let header = FrameHeader::new(Kind::StreamEnd, Opcode::Fetch, id).with_status(status);
        let write = |out: &mut BytesMut| {
            let meta_len = BodySum::default().encode_end(out);
            out.extend_from_slice(bounded_text(text).as_bytes());
            meta_len
        };
        self.link.outbox.frame(header, write, Bytes::new());
    }

    fn is_streaming(&self, id: RequestId) -> bool {
        self.open
            .get(&id)
            .is_some_and(|open| matches!(open.stage, Stage::Streaming))
    }

    fn answer_read(
        &mut self,
        id: RequestId,
        opcode: Opcode,
        write: impl FnOnce(&mut BytesMut) -> usize,
    ) {
        if self.open.get(&id).is_some_and(|open| open.opcode == opcode) {
            self.answer(id, write);
        }
    }

    fn answer(&mut self, id: RequestId, write: impl FnOnce(&mut BytesMut) -> usize) {
        self.answer_with(id, Status::Ok, write);
    }

    fn answer_with(
        &mut self,
        id: RequestId,
        status: Status,
        write: impl FnOnce(&mut BytesMut) -> usize,
    ) {
        if let Some(open) = self.close(id) {
            self.link.outbox.credit.give_back(open.charged);
            let header = FrameHeader::new(Kind::Response, open.opcode, id).with_status(status);
            self.link.outbox.frame(header, write, Bytes::new());
        }
    }

    /// Takes a request out of the books.
    fn close(&mut self, id: RequestId) -> Option<Open> {
        let open = self.open.remove(&id)?;
        if matches!(open.stage, Stage::Read(Turn::Taken) | Stage::Streaming) {
            self.reads_taken_count -= 1;
        }
        Some(open)
    }

    fn read_frames(&mut self) -> Result<(), Violation> {
        while let Some(incoming) = self.link.next()? {
            match incoming {
                Incoming::Connected => self.events.push_back(Event::Connected),
                Incoming::GoAway { status, text } => {
                    self.events.push_back(Event::GoAway { status, text });
                }
                Incoming::Frame(frame, opcode) => match frame.kind {
                    Kind::Request => self.on_request(&frame, opcode)?,
                    Kind::StreamData => self.on_data(&frame, opcode)?,
                    Kind::StreamEnd => self.on_end(&frame, opcode)?,
                    Kind::Cancel => self.on_cancel(&frame, opcode)?,
                    Kind::Response => return Err(Violation::NoSuchRequest(frame.id())),
                    Kind::OneWay => return Err(unexpected(&frame, opcode)),
                },
            }
        }
        Ok(())
    }

    fn on_request(&mut self, frame: &Frame, opcode: Opcode) -> Result<(), Violation> {
        let (id, cost) = (frame.id(), u64::from(frame.header.payload_len.get()));
        if self.open.len() >= REQUESTS_IN_FLIGHT_MAX {
            return Err(Violation::TooManyRequests);
        }
        if self.draining {
            let why = (Status::Stopping, "the node takes no new requests");
            self.link.fail(id, opcode, cost, why);
            return Ok(());
        }
        let taken = if frame.header.op_version == 1 {
            self.take_request(frame, opcode)
        } else {
            Err(Fault::Refused(
                Status::Unsupported,
                "this version of the request is not supported",
            ))
        };
        match taken {
            Ok(()) => Ok(()),
            Err(Fault::Refused(status, text)) => {
                self.link.fail(id, opcode, cost, (status, text));
                Ok(())
            }
            Err(fault @ Fault::Malformed(_)) => Err(fault.violation(opcode)),
        }
    }

    fn take_request(&mut self, frame: &Frame, opcode: Opcode) -> Result<(), Fault> {
        let id = frame.id();
        let stage = match opcode {
            Opcode::Deliver => self.take_message(frame)?,
            Opcode::Append => self.take_append(frame)?,
            Opcode::List => {
                let request = ListRequest::decode(frame)?;
                self.reads.push_back(Event::List { id, request });
                Stage::Read(Turn::Waiting)
            }
            Opcode::MailboxList => {
                let user = mailbox::decode_request(frame)?;
                self.reads.push_back(Event::Mailboxes { id, user });
                Stage::Read(Turn::Waiting)
            }
            Opcode::Fetch => {
                let request = FetchRequest::decode(frame)?;
                self.reads.push_back(Event::Fetch { id, request });
                Stage::Read(Turn::Waiting)
            }
            Opcode::Status => {
                self.reads.push_back(Event::Status { id });
                Stage::Read(Turn::Waiting)
            }
            Opcode::Backup => {
                let request = BackupRequest::decode(frame)?;
                self.reads.push_back(Event::Backup { id, request });
                Stage::Read(Turn::Waiting)
            }
            Opcode::Scrub => {
                let user = scrub::decode_request(frame)?;
                self.reads.push_back(Event::Scrub { id, user });
                Stage::Read(Turn::Waiting)
            }
            _ => {
                return Err(Fault::Refused(
                    Status::Unsupported,
                    "this opcode has no requests",
                ));
            }
        };
        let charged = u64::from(frame.header.payload_len.get());
        self.open.insert(
            id,
            Open {
                opcode,
                charged,
                stage,
            },
        );
        Ok(())
    }

    fn take_message(&mut self, frame: &Frame) -> Result<Stage, Fault> {
        let id = frame.id();
        let (request, body) = DeliverRequest::decode(frame)?;
        let recipients_count = request.recipients.len();
        self.events.push_back(Event::DeliverBegin { id, request });
        let inline = match body {
            DeliverBody::Inline(data) => Some(data),
            DeliverBody::Streamed => None,
        };
        Ok(self.take_body(id, recipients_count, inline))
    }

    fn take_append(&mut self, frame: &Frame) -> Result<Stage, Fault> {
        let id = frame.id();
        let (request, body) = AppendRequest::decode(frame)?;
        self.events.push_back(Event::AppendBegin { id, request });
        let inline = match body {
            AppendBody::Inline(data) => Some(data),
            AppendBody::Streamed => None,
        };
        Ok(self.take_body(id, 1, inline))
    }

    fn take_body(
        &mut self,
        id: RequestId,
        recipients_count: usize,
        inline: Option<Bytes>,
    ) -> Stage {
        let Some(data) = inline else {
            return Stage::Receiving {
                recipients_count,
                sum: BodySum::default(),
            };
        };
        if !data.is_empty() {
            self.events.push_back(Event::DeliverData { id, data });
        }
        self.events.push_back(Event::DeliverEnd { id });
        Stage::Received { recipients_count }
    }

    fn on_data(&mut self, frame: &Frame, opcode: Opcode) -> Result<(), Violation> {
        let (id, cost) = (frame.id(), u64::from(frame.header.payload_len.get()));
        check_piece(frame, opcode, self.stream_opcode(id, opcode))?;
        let Some(open) = self.open.get_mut(&id) else {
            self.check_late(id)?;
            self.link.outbox.credit.give_back(cost);
            return Ok(());
        };
        let Stage::Receiving { sum, .. } = &mut open.stage else {
            return Err(unexpected(frame, opcode));
        };
        sum.add(frame.payload.len(), frame.header.payload_crc.get());
        open.charged += cost;
        let data = frame.payload.clone();
        self.events.push_back(Event::DeliverData { id, data });
        Ok(())
    }

    fn on_end(&mut self, frame: &Frame, opcode: Opcode) -> Result<(), Violation> {
        let id = frame.id();
        if opcode != self.stream_opcode(id, opcode) {
            return Err(unexpected(frame, opcode));
        }
        let Some(open) = self.open.get_mut(&id) else {
            return self.check_late(id);
        };
        let Stage::Receiving {
            recipients_count,
            sum,
        } = &open.stage
        else {
            return Err(unexpected(frame, opcode));
        };
        let end = decode_end(frame).map_err(|fault| fault.violation(opcode))?;
        if frame.status() != Status::Ok || !sum.matches(&end) {
            return Err(Violation::StreamMismatch { id });
        }
        open.stage = Stage::Received {
            recipients_count: *recipients_count,
        };
        self.events.push_back(Event::DeliverEnd { id });
        Ok(())
    }

    /// The opcode that frames of a body have: that of an open request's body; of one that was
    /// answered meanwhile, whichever came, if it is one of them.
    fn stream_opcode(&self, id: RequestId, came: Opcode) -> Opcode {
        match (self.open.get(&id).map(|open| open.opcode), came) {
            (Some(Opcode::Append), _) | (None, Opcode::Append) => Opcode::Append,
            _ => Opcode::DeliverBody,
        }
    }

    /// What a message has no end for, and a fetch nobody wants, is dropped; all else is answered as
    /// if nothing was said.
    fn on_cancel(&mut self, frame: &Frame, opcode: Opcode) -> Result<(), Violation> {
        expect_kind(frame, opcode, Kind::Cancel)?;
        let id = frame.id();
        if opcode != Opcode::Cancel {
            return Err(unexpected(frame, opcode));
        }
        let Some(open) = self.open.get(&id) else {
            return self.check_late(id);
        };
        match open.stage {
            Stage::Received { .. } => return Ok(()),
            Stage::Receiving { .. } => self.events.push_back(Event::DeliverAborted { id }),
            Stage::Read(Turn::Waiting) => self.reads.retain(|read| read_id(read) != Some(id)),
            Stage::Read(Turn::Taken) if open.opcode != Opcode::Fetch => return Ok(()),
            Stage::Read(Turn::Taken) | Stage::Streaming => {
                self.events.push_back(Event::FetchAborted { id });
            }
        }
        self.fail(id, Status::Cancelled, "cancelled");
        Ok(())
    }

    /// Frames for a request that was answered meanwhile cross the answer on the wire.
    fn check_late(&self, id: RequestId) -> Result<(), Violation> {
        if id <= self.link.last_peer_id() && id.value() % 2 == 1 {
            Ok(())
        } else {
            Err(Violation::NoSuchRequest(id))
        }
    }

    fn abort_all(&mut self) {
        self.reads.clear();
        self.reads_taken_count = 0;
        for (id, open) in core::mem::take(&mut self.open) {
            match open.stage {
                Stage::Receiving { .. } => self.events.push_back(Event::DeliverAborted { id }),
                Stage::Streaming => self.events.push_back(Event::FetchAborted { id }),
                Stage::Read(Turn::Taken) if open.opcode == Opcode::Fetch => {
                    self.events.push_back(Event::FetchAborted { id });
                }
                Stage::Read(_) | Stage::Received { .. } => {}
            }
        }
    }
}

/// The request of a read event.
fn read_id(event: &Event) -> Option<RequestId> {
    match event {
        Event::List { id, .. }
        | Event::Mailboxes { id, .. }
        | Event::Fetch { id, .. }
        | Event::Status { id }
        | Event::Backup { id, .. }
        | Event::Scrub { id, .. } => Some(*id),
        _ => None,
    }
}
