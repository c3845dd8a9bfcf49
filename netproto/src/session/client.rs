//! The end that asks: shim, load generator, reader, operator's tool, a node that passes mail on.
//!
//! Every accepted request gets exactly one final event: an answer or [`Event::Failed`]. After a cut
//! connection that is [`Status::Lost`]: what became of the request is not known, and the same
//! message may be sent again, because the store knows its delivery id.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;

use bytes::{Bytes, BytesMut};

use super::Config;
use super::link::{Incoming, Link, Phase, Side, unexpected};
use crate::error::Violation;
use crate::frame::{Frame, FrameHeader, Kind, Opcode, Status, Verdict, flags};
use crate::limits::{
    BACKLOG_BYTES_SOFT, INLINE_BODY_BYTES_MAX, REQUESTS_IN_FLIGHT_MAX, STREAM_PIECE_BYTES_MAX,
};
use crate::message::append::{AppendReply, AppendRequest};
use crate::message::backup::BackupRequest;
use crate::message::deliver::{BodyForm, DeliverRequest};
use crate::message::fetch::{self, FetchRequest};
use crate::message::list::{ListEntry, ListPage, ListRequest};
use crate::message::mailbox::{self, MailboxStatus};
use crate::message::report::ReportField;
use crate::message::scrub;
use crate::message::stream::{BodySum, decode_end};
use crate::message::{Fault, printable};
use crate::version::Hello;

pub use crate::frame::RequestId;
pub use crate::message::deliver::RecipientReply as DeliverReply;

/// Why a request was not taken. Nothing was sent.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotReady {
    /// The peer's HELLO has not come. Try again after [`Event::Connected`].
    #[error("the connection is not open yet")]
    Handshake,
    /// The peer has to make durable or drop some first. Try again after more input.
    #[error("no credit is left")]
    Credit,
    /// Too many requests without an answer. Try again after one is answered.
    #[error("too many requests are in flight")]
    InFlight,
    /// Too much waits to be written. Try again when `transmit_backlog` went down.
    #[error("too much waits to be written")]
    Backlog,
    /// The connection takes no new requests: dial again.
    #[error("the connection is closed for new requests")]
    Closed,
    /// The request breaks a limit and will never be taken.
    #[error("{0}")]
    Invalid(&'static str),
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Event {
    /// Requests may be made; [`ClientSession::peer`] says who is there.
    Connected,
    /// A delivery is answered. One outcome per recipient, in their order.
    Delivered {
        /// Of the request.
        id: RequestId,
        /// As many as there were recipients.
        replies: Vec<DeliverReply>,
    },
    /// A message is in its mailbox, durably.
    Appended {
        /// Of the request.
        id: RequestId,
        /// Where it is.
        reply: AppendReply,
    },
    /// A page of a mailbox.
    Listed {
        /// Of the request.
        id: RequestId,
        /// The page.
        page: ListPage,
    },
    /// The mailboxes of a user.
    Mailboxes {
        /// Of the request.
        id: RequestId,
        /// Ascending by id.
        mailboxes: Vec<MailboxStatus>,
    },
    /// A message's bytes follow.
    FetchBegin {
        /// Of the request.
        id: RequestId,
        /// The message, without its header cache.
        entry: ListEntry,
    },
    /// The next bytes.
    FetchData {
        /// Of the request.
        id: RequestId,
        /// As received by the store.
        data: Bytes,
    },
    /// All bytes came; length and checksum were compared.
    FetchEnd {
        /// Of the request.
        id: RequestId,
        /// How many.
        bytes: u64,
    },
    /// A node's report about itself.
    Status {
        /// Of the request.
        id: RequestId,
        /// Name and value.
        fields: Vec<ReportField>,
    },
    /// A backup was begun, prolonged or ended.
    Backup {
        /// Of the request.
        id: RequestId,
        /// Name and value.
        fields: Vec<ReportField>,
    },
    /// A scrub that was asked for is done.
    Scrubbed {
        /// Of the request.
        id: RequestId,
        /// Name and value.
        fields: Vec<ReportField>,
    },
    /// The peer is alive.
    Pong {
        /// Of the ping.
        id: RequestId,
    },
    /// The request as a whole failed. Of a fetch, what came before is void.
    Failed {
        /// Of the request.
        id: RequestId,
        /// What to do about it: `status.verdict()`.
        status: Status,
        /// A sentence for a log, printable.
        text: String,
    },
    /// The peer takes no new requests; those in flight may still be answered.
    GoAway {
        /// Why, in one number.
        status: Status,
        /// A sentence for a log, printable.
        text: String,
    },
}

/// A request without its final event.
#[derive(Debug)]
struct Open {
    wants: Wants,
    cancelled: bool,
}

/// What its answer has to be.
#[derive(Debug)]
enum Wants {
    Deliver { recipients_count: usize },
    Append,
    List,
    Mailboxes,
    FetchHead,
    FetchBody(BodySum),
    Report,
    Backup,
    Scrub,
    Pong,
}

impl Wants {
    const fn opcode(&self) -> Opcode {
        match self {
            Self::Deliver { .. } => Opcode::Deliver,
            Self::Append => Opcode::Append,
            Self::List => Opcode::List,
            Self::Mailboxes => Opcode::MailboxList,
            Self::FetchHead | Self::FetchBody(_) => Opcode::Fetch,
            Self::Report => Opcode::Status,
            Self::Backup => Opcode::Backup,
            Self::Scrub => Opcode::Scrub,
            Self::Pong => Opcode::Ping,
        }
    }
}

/// The dialing end of a connection.
#[derive(Debug)]
pub struct ClientSession {
    link: Link,
    events: VecDeque<Event>,
    open: BTreeMap<RequestId, Open>,
    next_id: u64,
    going_away: bool,
}

impl ClientSession {
    /// A new connection; HELLO waits in `poll_transmit`.
    pub fn new(config: Config) -> Self {
        Self {
            link: Link::new(config, Side::Dialer),
            events: VecDeque::new(),
            open: BTreeMap::new(),
            next_id: 1,
            going_away: false,
        }
    }

    /// Takes what was read from the connection. An error is final: write what `poll_transmit` still
    /// gives, then close; all requests fail as [`Status::Lost`].
    pub fn handle_input(&mut self, input: Bytes) -> Result<(), Violation> {
        let result = self.link.push(input).and_then(|()| self.read_frames());
        result.inspect_err(|violation| {
            self.link.end(violation);
            self.lose_requests();
        })
    }

    /// The connection was closed or cut. Requests without an answer fail as [`Status::Lost`].
    pub fn handle_close(&mut self) {
        self.link.close();
        self.lose_requests();
    }

    /// The next bytes to write, in order.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        self.link.outbox.poll()
    }

    /// Bytes that wait to be written.
    pub fn transmit_backlog(&self) -> usize {
        self.link.outbox.backlog()
    }

    /// The next event. Taking a [`Event::FetchData`] lets the peer send as much again.
    pub fn poll_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        if let Event::FetchData { data, .. } = &event {
            self.give_back(data.len());
        }
        Some(event)
    }

    /// Who answered; `None` before [`Event::Connected`].
    pub const fn peer(&self) -> Option<&Hello> {
        self.link.peer()
    }

    /// Whether the connection is over for this session; what `poll_transmit` has is to be written.
    pub fn is_ended(&self) -> bool {
        self.link.phase() == Phase::Ended
    }

    /// Requests without their final event.
    pub fn in_flight_count(&self) -> usize {
        self.open.len()
    }

    /// Delivers a whole message. Up to `INLINE_BODY_BYTES_MAX` it travels in one frame, above as a
    /// stream; either way `body` is not copied if it is large. Answered by [`Event::Delivered`].
    pub fn deliver(
        &mut self,
        request: &DeliverRequest,
        body: Bytes,
    ) -> Result<RequestId, NotReady> {
        if body.len() > INLINE_BODY_BYTES_MAX {
            let id = self.deliver_begin(request)?;
            self.link.outbox.stream_push(id, body);
            self.link.outbox.stream_end(id);
            return Ok(id);
        }
        request.check().map_err(NotReady::Invalid)?;
        let id = self.admit()?;
        let header = FrameHeader::new(Kind::Request, Opcode::Deliver, id)
            .with_deadline_ms(request.deadline_ms);
        let write = |out: &mut BytesMut| request.encode(BodyForm::Inline, out);
        self.link.outbox.frame(header, write, body);
        self.expect(
            id,
            Wants::Deliver {
                recipients_count: request.recipients.len(),
            },
        );
        Ok(id)
    }

    /// Begins a message whose bytes come piece by piece. A message that turned out to be small is
    /// better given to [`deliver`](Self::deliver) whole: one frame instead of three.
    pub fn deliver_begin(&mut self, request: &DeliverRequest) -> Result<RequestId, NotReady> {
        request.check().map_err(NotReady::Invalid)?;
        let id = self.admit()?;
        let header = FrameHeader::new(Kind::Request, Opcode::Deliver, id)
            .with_deadline_ms(request.deadline_ms);
        let write = |out: &mut BytesMut| request.encode(BodyForm::Streamed, out);
        self.link.outbox.frame(header, write, Bytes::new());
        self.link.outbox.stream_open(id, Opcode::DeliverBody);
        self.expect(
            id,
            Wants::Deliver {
                recipients_count: request.recipients.len(),
            },
        );
        Ok(id)
    }

    /// The next bytes of a message. Taken and ignored if it is answered already (refused early).
    /// Above the backlog, a message of which nothing waits still gets one piece taken: it may be
    /// the one whose end the others wait for.
    pub fn deliver_data(&mut self, id: RequestId, data: Bytes) -> Result<(), NotReady> {
        if self.transmit_backlog() >= BACKLOG_BYTES_SOFT && self.link.outbox.stream_waits(id) {
            return Err(NotReady::Backlog);
        }
        self.link.outbox.stream_push(id, data);
        Ok(())
    }

    /// That was all of the message.
    pub fn deliver_end(&mut self, id: RequestId) {
        self.link.outbox.stream_end(id);
    }

    /// Appends a whole message to a mailbox; in one frame or as a stream, as
    /// [`deliver`](Self::deliver) does. Answered by [`Event::Appended`].
    pub fn append(&mut self, request: &AppendRequest, body: Bytes) -> Result<RequestId, NotReady> {
        if body.len() > INLINE_BODY_BYTES_MAX {
            let id = self.append_begin(request)?;
            self.link.outbox.stream_push(id, body);
            self.link.outbox.stream_end(id);
            return Ok(id);
        }
        self.append_frame(request, BodyForm::Inline, body)
    }

    /// Begins an append whose bytes come piece by piece, with [`deliver_data`](Self::deliver_data)
    /// and [`deliver_end`](Self::deliver_end) as those of a delivery.
    pub fn append_begin(&mut self, request: &AppendRequest) -> Result<RequestId, NotReady> {
        let id = self.append_frame(request, BodyForm::Streamed, Bytes::new())?;
        self.link.outbox.stream_open(id, Opcode::Append);
        Ok(id)
    }

    fn append_frame(
        &mut self,
        request: &AppendRequest,
        form: BodyForm,
        body: Bytes,
    ) -> Result<RequestId, NotReady> {
        request.check().map_err(NotReady::Invalid)?;
        let id = self.admit()?;
        let header = FrameHeader::new(Kind::Request, Opcode::Append, id)
            .with_deadline_ms(request.deadline_ms);
        let write = |out: &mut BytesMut| request.encode(form, out);
        self.link.outbox.frame(header, write, body);
        self.expect(id, Wants::Append);
        Ok(id)
    }

    /// Asks for a page of a mailbox. [`Event::Listed`].
    pub fn list(&mut self, request: &ListRequest) -> Result<RequestId, NotReady> {
        self.ask(Wants::List, |out| request.encode(out))
    }

    /// Asks for the mailboxes of `user`. [`Event::Mailboxes`].
    pub fn mailboxes(&mut self, user: &[u8]) -> Result<RequestId, NotReady> {
        self.ask(Wants::Mailboxes, |out| mailbox::encode_request(user, out))
    }

    /// Asks for a message. [`Event::FetchBegin`], data, [`Event::FetchEnd`].
    pub fn fetch(&mut self, request: &FetchRequest) -> Result<RequestId, NotReady> {
        self.ask(Wants::FetchHead, |out| request.encode(out))
    }

    /// Asks the node for its report. [`Event::Status`].
    pub fn status(&mut self) -> Result<RequestId, NotReady> {
        self.ask(Wants::Report, |_| 0)
    }

    /// Begins, prolongs or ends a backup. [`Event::Backup`].
    pub fn backup(&mut self, request: BackupRequest) -> Result<RequestId, NotReady> {
        self.ask(Wants::Backup, |out| request.encode(out))
    }

    /// Asks the node to scrub a user, or all that it has. [`Event::Scrubbed`], perhaps hours later.
    pub fn scrub(&mut self, user: Option<&[u8]>) -> Result<RequestId, NotReady> {
        self.ask(Wants::Scrub, |out| scrub::encode_request(user, out))
    }

    /// Asks whether the peer is alive; needs no credit. [`Event::Pong`].
    pub fn ping(&mut self) -> Result<RequestId, NotReady> {
        let id = self.admit_free()?;
        let header = FrameHeader::new(Kind::Request, Opcode::Ping, id);
        self.link.outbox.frame(header, |_| 0, Bytes::new());
        self.expect(id, Wants::Pong);
        Ok(id)
    }

    /// Gives a request up. Best effort: its final event still comes and tells the outcome, which
    /// for a delivery may be that it is done.
    pub fn cancel(&mut self, id: RequestId) {
        let Some(open) = self.open.get_mut(&id) else {
            return;
        };
        if !open.cancelled {
            open.cancelled = true;
            self.link.outbox.stream_drop(id);
            let header = FrameHeader::new(Kind::Cancel, Opcode::Cancel, id);
            self.link.outbox.frame(header, |_| 0, Bytes::new());
        }
    }

    fn ask(
        &mut self,
        wants: Wants,
        write: impl FnOnce(&mut BytesMut) -> usize,
    ) -> Result<RequestId, NotReady> {
        let id = self.admit()?;
        let header = FrameHeader::new(Kind::Request, wants.opcode(), id);
        self.link.outbox.frame(header, write, Bytes::new());
        self.expect(id, wants);
        Ok(id)
    }

    /// The next id, if a request that costs may be made.
    fn admit(&mut self) -> Result<RequestId, NotReady> {
        if self.link.phase() == Phase::Open {
            if !self.link.outbox.credit.may_send() {
                return Err(NotReady::Credit);
            }
            if self.transmit_backlog() >= BACKLOG_BYTES_SOFT {
                return Err(NotReady::Backlog);
            }
        }
        self.admit_free()
    }

    fn admit_free(&mut self) -> Result<RequestId, NotReady> {
        match self.link.phase() {
            Phase::Handshake => Err(NotReady::Handshake),
            Phase::Ended => Err(NotReady::Closed),
            Phase::Open if self.going_away => Err(NotReady::Closed),
            Phase::Open if self.open.len() >= REQUESTS_IN_FLIGHT_MAX => Err(NotReady::InFlight),
            Phase::Open => Ok(RequestId::new(self.next_id)),
        }
    }

    fn expect(&mut self, id: RequestId, wants: Wants) {
        self.next_id += 2;
        self.open.insert(
            id,
            Open {
                wants,
                cancelled: false,
            },
        );
    }

    fn read_frames(&mut self) -> Result<(), Violation> {
        while let Some(incoming) = self.link.next()? {
            match incoming {
                Incoming::Connected => self.events.push_back(Event::Connected),
                Incoming::GoAway { status, text } => {
                    self.going_away = true;
                    self.events.push_back(Event::GoAway { status, text });
                }
                Incoming::Frame(frame, opcode) => match frame.kind {
                    Kind::Response => self.on_response(&frame, opcode)?,
                    Kind::StreamData => self.on_data(&frame, opcode)?,
                    Kind::StreamEnd => self.on_end(&frame, opcode)?,
                    Kind::Request => {
                        let cost = u64::from(frame.header.payload_len.get());
                        let why = (Status::Unsupported, "a client answers no requests");
                        self.link.fail(frame.id(), opcode, cost, why);
                    }
                    Kind::OneWay | Kind::Cancel => return Err(unexpected(&frame, opcode)),
                },
            }
        }
        Ok(())
    }

    fn on_response(&mut self, frame: &Frame, opcode: Opcode) -> Result<(), Violation> {
        let id = frame.id();
        let open = self.open.get(&id).ok_or(Violation::NoSuchRequest(id))?;
        if open.wants.opcode() != opcode || matches!(open.wants, Wants::FetchBody(_)) {
            return Err(unexpected(frame, opcode));
        }
        let status = frame.status();
        let event = if status.verdict() == Verdict::Done {
            answer(id, &open.wants, frame).map_err(|fault| fault.violation(opcode))?
        } else {
            let text = printable(&frame.payload);
            Event::Failed { id, status, text }
        };
        if let (Event::FetchBegin { .. }, Some(open)) = (&event, self.open.get_mut(&id)) {
            open.wants = Wants::FetchBody(BodySum::default());
            if open.cancelled {
                return Ok(());
            }
        } else {
            self.link.outbox.stream_drop(id);
            self.open.remove(&id);
        }
        self.events.push_back(event);
        Ok(())
    }

    fn on_data(&mut self, frame: &Frame, opcode: Opcode) -> Result<(), Violation> {
        let id = frame.id();
        let open = self.open.get_mut(&id).ok_or(Violation::NoSuchRequest(id))?;
        let Wants::FetchBody(sum) = &mut open.wants else {
            return Err(unexpected(frame, opcode));
        };
        check_piece(frame, opcode, Opcode::Fetch)?;
        sum.add(frame.payload.len(), frame.header.payload_crc.get());
        if open.cancelled {
            self.give_back(frame.payload.len());
        } else {
            let data = frame.payload.clone();
            self.events.push_back(Event::FetchData { id, data });
        }
        Ok(())
    }

    fn on_end(&mut self, frame: &Frame, opcode: Opcode) -> Result<(), Violation> {
        let id = frame.id();
        let open = self.open.get(&id).ok_or(Violation::NoSuchRequest(id))?;
        let Wants::FetchBody(sum) = &open.wants else {
            return Err(unexpected(frame, opcode));
        };
        if opcode != Opcode::Fetch {
            return Err(unexpected(frame, opcode));
        }
        let status = frame.status();
        let event = if status.verdict() != Verdict::Done {
            let text = printable(&frame.body());
            Event::Failed { id, status, text }
        } else if !sum.matches(&decode_end(frame).map_err(|fault| fault.violation(opcode))?) {
            return Err(Violation::StreamMismatch { id });
        } else if open.cancelled {
            let text = String::from("cancelled");
            let status = Status::Cancelled;
            Event::Failed { id, status, text }
        } else {
            let bytes = sum.len();
            Event::FetchEnd { id, bytes }
        };
        self.open.remove(&id);
        self.events.push_back(event);
        Ok(())
    }

    fn give_back(&mut self, bytes: usize) {
        let bytes = u64::try_from(bytes).expect("a usize has at most 64 bits");
        self.link.outbox.credit.give_back(bytes);
    }

    fn lose_requests(&mut self) {
        let lost = core::mem::take(&mut self.open);
        self.events.extend(lost.into_keys().map(|id| Event::Failed {
            id,
            status: Status::Lost,
            text: String::from("the connection ended before the answer"),
        }));
    }
}

/// The event of a response that is no failure.
fn answer(id: RequestId, wants: &Wants, frame: &Frame) -> Result<Event, Fault> {
    Ok(match wants {
        Wants::Deliver { recipients_count } => Event::Delivered {
            id,
            replies: DeliverReply::decode_all(frame, *recipients_count)?,
        },
        Wants::Append => Event::Appended {
            id,
            reply: AppendReply::decode(frame)?,
        },
        Wants::List => Event::Listed {
            id,
            page: ListPage::decode(frame)?,
        },
        Wants::Mailboxes => Event::Mailboxes {
            id,
            mailboxes: MailboxStatus::decode_all(frame)?,
        },
        Wants::Report => Event::Status {
            id,
            fields: ReportField::decode_all(frame)?,
        },
        Wants::Backup => Event::Backup {
            id,
            fields: ReportField::decode_all(frame)?,
        },
        Wants::Scrub => Event::Scrubbed {
            id,
            fields: ReportField::decode_all(frame)?,
        },
        Wants::Pong => Event::Pong { id },
        Wants::FetchHead | Wants::FetchBody(_) => Event::FetchBegin {
            id,
            entry: fetch::decode_head(frame)?,
        },
    })
}

/// A piece has the opcode of its stream, no meta struct, and a length within bounds.
pub(super) fn check_piece(frame: &Frame, opcode: Opcode, wanted: Opcode) -> Result<(), Violation> {
    if opcode != wanted {
        return Err(unexpected(frame, opcode));
    }
    let fits = (1..=STREAM_PIECE_BYTES_MAX).contains(&frame.payload.len());
    let plain = frame.header.flags.get() & flags::COMPRESSED == 0;
    if fits && plain && frame.meta().is_empty() {
        return Ok(());
    }
    Err(Violation::Malformed {
        opcode: opcode.name(),
        what: "a piece has 1 to 262,144 bytes, not compressed, and no meta",
    })
}
