//! What both ends of a connection share: the handshake, frames that concern the connection itself,
//! credit, request ids of the peer, and the end.

use alloc::string::{String, ToString};

use bytes::Bytes;
use zerocopy::little_endian::U16;

use super::Config;
use super::credit::Credit;
use super::outbox::Outbox;
use crate::codec::Decoder;
use crate::error::Violation;
use crate::frame::{Built, Frame, FrameHeader, Kind, Opcode, RequestId, Status};
use crate::limits::{BACKLOG_BYTES_HARD, PAYLOAD_BYTES_BEFORE_HELLO};
use crate::message::printable;
use crate::version::Hello;
use zerocopy::IntoBytes;

/// How far a connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// The peer's HELLO has not come.
    Handshake,
    /// Requests may flow.
    Open,
    /// Over, by whatever side.
    Ended,
}

/// Which end this is: it decides whose request ids are odd.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    /// Opened the connection; speaks first.
    Dialer,
    /// Accepted it.
    Acceptor,
}

/// What came in, when the link did not deal with it alone.
#[derive(Debug)]
pub(super) enum Incoming {
    /// The handshake is done.
    Connected,
    /// The peer takes no new requests, and why.
    GoAway { status: Status, text: String },
    /// A frame of a built opcode that concerns a request.
    Frame(Frame, Opcode),
}

/// One end of a connection.
#[derive(Debug)]
pub(super) struct Link {
    decoder: Decoder,
    pub(super) outbox: Outbox,
    config: Config,
    side: Side,
    phase: Phase,
    peer: Option<Hello>,
    last_peer_id: RequestId,
}

impl Link {
    pub(super) fn new(config: Config, side: Side) -> Self {
        // The window that counts is the one that the HELLO grants, bounds applied.
        let granted = config.hello.to_payload().credit_bytes.get();
        let credit = Credit::new(u32::try_from(granted).unwrap_or(u32::MAX));
        let mut link = Self {
            decoder: Decoder::new(PAYLOAD_BYTES_BEFORE_HELLO),
            outbox: Outbox::new(credit),
            config,
            side,
            phase: Phase::Handshake,
            peer: None,
            last_peer_id: RequestId::NONE,
        };
        if side == Side::Dialer {
            link.send_hello();
        }
        link
    }

    pub(super) const fn phase(&self) -> Phase {
        self.phase
    }

    pub(super) const fn peer(&self) -> Option<&Hello> {
        self.peer.as_ref()
    }

    /// The highest request id the peer has used.
    pub(super) const fn last_peer_id(&self) -> RequestId {
        self.last_peer_id
    }

    /// Takes what was received; then ask [`next`](Self::next).
    pub(super) fn push(&mut self, input: Bytes) -> Result<(), Violation> {
        if self.phase == Phase::Ended {
            return Err(Violation::Ended);
        }
        let waiting = self.outbox.ready_bytes();
        if waiting > BACKLOG_BYTES_HARD {
            return Err(Violation::Backlog(waiting));
        }
        self.decoder.push(input);
        Ok(())
    }

    /// The next thing that concerns the session.
    pub(super) fn next(&mut self) -> Result<Option<Incoming>, Violation> {
        while self.phase != Phase::Ended
            && let Some(frame) = self.decoder.next()?
        {
            if let Some(incoming) = self.dispatch(frame)? {
                return Ok(Some(incoming));
            }
        }
        Ok(None)
    }

    /// Ends the connection by this side's decision; the sentence goes out as GOAWAY.
    pub(super) fn end(&mut self, violation: &Violation) {
        if self.phase != Phase::Ended {
            self.send_goaway(violation.status(), &violation.to_string());
        }
        self.close();
    }

    /// Says that no new requests are taken.
    pub(super) fn send_goaway(&mut self, status: Status, text: &str) {
        let header =
            FrameHeader::new(Kind::OneWay, Opcode::GoAway, RequestId::NONE).with_status(status);
        self.outbox.text_frame(header, text);
    }

    /// The connection is gone.
    pub(super) fn close(&mut self) {
        self.phase = Phase::Ended;
        self.outbox.streams_clear();
    }

    /// Answers a request with a status and a text alone. `charged` is its cost.
    pub(super) fn fail(
        &mut self,
        id: RequestId,
        opcode: Opcode,
        charged: u64,
        why: (Status, &str),
    ) {
        self.outbox.credit.give_back(charged);
        let header = FrameHeader::new(Kind::Response, opcode, id).with_status(why.0);
        self.outbox.text_frame(header, why.1);
    }

    fn send_hello(&mut self) {
        let hello = self.config.hello.to_payload();
        self.outbox.frame(
            FrameHeader::new(Kind::OneWay, Opcode::Hello, RequestId::NONE),
            |out| {
                out.extend_from_slice(hello.as_bytes());
                hello.as_bytes().len()
            },
            Bytes::new(),
        );
    }

    fn dispatch(&mut self, frame: Frame) -> Result<Option<Incoming>, Violation> {
        let opcode = frame.opcode();
        match (opcode, self.phase) {
            (Some(Opcode::GoAway), _) => {
                expect_kind(&frame, Opcode::GoAway, Kind::OneWay)?;
                return Ok(Some(self.on_goaway(&frame)));
            }
            (Some(Opcode::Hello), Phase::Handshake) => {
                expect_kind(&frame, Opcode::Hello, Kind::OneWay)?;
                return self.on_hello(&frame).map(Some);
            }
            (Some(Opcode::Hello), _) => return Err(Violation::HelloTwice),
            (_, Phase::Handshake) => return Err(Violation::HelloMissing),
            _ => {}
        }
        self.outbox.credit.returned(frame.header.credit.get())?;
        if matches!(frame.kind, Kind::Request | Kind::StreamData) {
            self.outbox
                .credit
                .received(frame.header.payload_len.get())?;
        }
        if frame.kind == Kind::Request {
            self.check_peer_id(frame.id())?;
        }
        match opcode.filter(|opcode| opcode.built() == Built::Yes) {
            Some(Opcode::Credit) => {
                expect_kind(&frame, Opcode::Credit, Kind::OneWay)?;
                Ok(None)
            }
            Some(Opcode::Ping) if frame.kind == Kind::Request => {
                let cost = frame.header.payload_len.get();
                self.outbox.credit.give_back(cost.into());
                let pong = FrameHeader::new(Kind::Response, Opcode::Ping, frame.id());
                self.outbox.text_frame(pong, "");
                Ok(None)
            }
            Some(opcode) => Ok(Some(Incoming::Frame(frame, opcode))),
            None => self.on_unknown(&frame).map(|()| None),
        }
    }

    fn on_hello(&mut self, frame: &Frame) -> Result<Incoming, Violation> {
        let peer = Hello::from_payload(&frame.payload, &self.config.hello)?;
        self.config
            .hello
            .check_peer(&peer, self.config.expected_node)?;
        self.decoder
            .set_payload_bytes_max(self.config.hello.to_payload().payload_bytes_max.get());
        self.outbox.credit.granted(peer.credit_bytes);
        self.peer = Some(peer);
        self.phase = Phase::Open;
        if self.side == Side::Acceptor {
            self.send_hello();
        }
        Ok(Incoming::Connected)
    }

    fn on_goaway(&mut self, frame: &Frame) -> Incoming {
        if self.phase == Phase::Handshake {
            self.close();
        }
        Incoming::GoAway {
            status: frame.status(),
            text: printable(&frame.payload),
        }
    }

    /// What only a newer peer knows is answered if it asks, and else passed over.
    fn on_unknown(&mut self, frame: &Frame) -> Result<(), Violation> {
        let cost = u64::from(frame.header.payload_len.get());
        match frame.kind {
            Kind::Request => {
                self.outbox.credit.give_back(cost);
                let mut header = FrameHeader::new(Kind::Response, Opcode::Ping, frame.id())
                    .with_status(Status::Unsupported);
                header.opcode = U16::new(frame.header.opcode.get());
                self.outbox
                    .text_frame(header, "this opcode is not supported");
            }
            Kind::StreamData => self.outbox.credit.give_back(cost),
            Kind::Response => return Err(Violation::NoSuchRequest(frame.id())),
            Kind::OneWay | Kind::StreamEnd | Kind::Cancel => {}
        }
        Ok(())
    }

    fn check_peer_id(&mut self, id: RequestId) -> Result<(), Violation> {
        let odd = id.value() % 2 == 1;
        let theirs = odd == (self.side == Side::Acceptor);
        if !theirs || id <= self.last_peer_id {
            return Err(Violation::RequestIdOrder {
                found: id,
                last: self.last_peer_id,
            });
        }
        self.last_peer_id = id;
        Ok(())
    }
}

/// A frame of another kind than its opcode has is a violation.
pub(super) fn expect_kind(frame: &Frame, opcode: Opcode, kind: Kind) -> Result<(), Violation> {
    if frame.kind == kind {
        Ok(())
    } else {
        Err(unexpected(frame, opcode))
    }
}

/// A frame that does not belong there.
pub(super) fn unexpected(frame: &Frame, opcode: Opcode) -> Violation {
    Violation::Unexpected {
        opcode: opcode.name(),
        kind: frame.kind,
    }
}
