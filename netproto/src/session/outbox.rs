//! What waits to be written: small frames gathered in one buffer, large bodies as the shared bytes
//! they are, streams that take turns while there is credit.

use alloc::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};
use zerocopy::little_endian::U32;

use super::credit::Credit;
use crate::codec;
use crate::frame::{FrameHeader, HEADER_BYTES, Kind, Opcode, RequestId, Status};
use crate::limits::{
    COALESCE_BYTES, PASS_THROUGH_BYTES_MIN, READY_BYTES_TARGET, STREAM_PIECE_BYTES_MAX,
};
use crate::message::stream::BodySum;

/// Room that is asked for at a time, so that few frames grow the buffer and an idle connection
/// keeps little.
const GROW_BYTES: usize = 8 << 10;

/// Frames and streams in line.
#[derive(Debug)]
pub(super) struct Outbox {
    pub(super) credit: Credit,
    /// Closed buffers, in order.
    ready: VecDeque<Bytes>,
    ready_bytes: usize,
    /// The buffer that grows; behind `ready`.
    open: BytesMut,
    streams: BTreeMap<RequestId, Stream>,
    stream_bytes: usize,
    /// Streams under way, in the order of their turns; at most `Credit::streams_max`.
    turns: VecDeque<RequestId>,
    /// Streams that wait until another one ended, in the order of their requests.
    waiting: VecDeque<RequestId>,
}

/// A body on its way.
#[derive(Debug)]
struct Stream {
    opcode: Opcode,
    pieces: VecDeque<Bytes>,
    sum: BodySum,
    ended: bool,
    /// Whether it was put in line, which its first bytes do.
    listed: bool,
}

impl Outbox {
    pub(super) fn new(credit: Credit) -> Self {
        Self {
            credit,
            ready: VecDeque::new(),
            ready_bytes: 0,
            open: BytesMut::new(),
            streams: BTreeMap::new(),
            stream_bytes: 0,
            turns: VecDeque::new(),
            waiting: VecDeque::new(),
        }
    }

    /// Puts a frame in line. `write` appends the start of the payload and returns the length of its
    /// meta struct; `tail` is the rest of the payload. Credit that is owed goes along.
    pub(super) fn frame(
        &mut self,
        mut header: FrameHeader,
        write: impl FnOnce(&mut BytesMut) -> usize,
        tail: Bytes,
    ) -> Sent {
        header.credit = U32::new(self.credit.take_owed());
        let start = self.open.len();
        if self.open.capacity() - start < 2 * HEADER_BYTES {
            self.open.reserve(GROW_BYTES);
        }
        let payload_crc = codec::encode(&mut self.open, header, write, &tail);
        let payload_bytes = self.open.len() - start - HEADER_BYTES + tail.len();
        if tail.len() >= PASS_THROUGH_BYTES_MIN {
            self.close_buffer();
            self.ready_bytes += tail.len();
            self.ready.push_back(tail);
        } else {
            self.open.extend_from_slice(&tail);
            if self.open.len() >= COALESCE_BYTES {
                self.close_buffer();
            }
        }
        if costs(header.kind) {
            self.credit.spend(payload_bytes);
        }
        Sent { payload_crc }
    }

    /// A frame without meta whose payload is a short text.
    pub(super) fn text_frame(&mut self, header: FrameHeader, text: &str) {
        let text = crate::message::bounded_text(text);
        self.frame(
            header,
            |out| {
                out.extend_from_slice(text.as_bytes());
                0
            },
            Bytes::new(),
        );
    }

    /// Begins the stream of a request; its first frame is already in line.
    pub(super) fn stream_open(&mut self, id: RequestId, opcode: Opcode) {
        self.streams.insert(
            id,
            Stream {
                opcode,
                pieces: VecDeque::new(),
                sum: BodySum::default(),
                ended: false,
                listed: false,
            },
        );
    }

    /// Adds bytes; ignored if the stream is gone or ended.
    pub(super) fn stream_push(&mut self, id: RequestId, data: Bytes) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !stream.ended
            && !data.is_empty()
        {
            self.stream_bytes += data.len();
            stream.pieces.push_back(data);
            self.enlist(id);
        }
    }

    /// No more bytes come; the end follows the last of them.
    pub(super) fn stream_end(&mut self, id: RequestId) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.ended = true;
            self.enlist(id);
        }
    }

    /// Whether bytes of this stream wait.
    pub(super) fn stream_waits(&self, id: RequestId) -> bool {
        self.streams
            .get(&id)
            .is_some_and(|stream| !stream.pieces.is_empty())
    }

    fn enlist(&mut self, id: RequestId) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !stream.listed
        {
            stream.listed = true;
            self.waiting.push_back(id);
        }
    }

    /// Forgets what was not sent, and says nothing.
    pub(super) fn stream_drop(&mut self, id: RequestId) {
        if let Some(stream) = self.streams.remove(&id) {
            let bytes: usize = stream.pieces.iter().map(Bytes::len).sum();
            self.stream_bytes -= bytes;
            self.turns.retain(|other| *other != id);
            self.waiting.retain(|other| *other != id);
        }
    }

    /// Forgets all streams: nobody is there for them.
    pub(super) fn streams_clear(&mut self) {
        self.streams.clear();
        self.turns.clear();
        self.waiting.clear();
        self.stream_bytes = 0;
    }

    /// The next buffer to write.
    pub(super) fn poll(&mut self) -> Option<Bytes> {
        self.fill();
        if self.credit.owes_much() {
            let header = FrameHeader::new(Kind::OneWay, Opcode::Credit, RequestId::NONE);
            self.text_frame(header, "");
        }
        if let Some(buffer) = self.ready.pop_front() {
            self.ready_bytes -= buffer.len();
            return Some(buffer);
        }
        (!self.open.is_empty()).then(|| self.open.split().freeze())
    }

    /// Bytes of finished frames that wait.
    pub(super) fn ready_bytes(&self) -> usize {
        self.ready_bytes + self.open.len()
    }

    /// Bytes that wait, those of streams included.
    pub(super) fn backlog(&self) -> usize {
        self.ready_bytes() + self.stream_bytes
    }

    /// Lets streams take turns, a piece each, until enough is ready or none can go on.
    fn fill(&mut self) {
        let mut idle_count = 0;
        while self.ready_bytes() < READY_BYTES_TARGET {
            if self.turns.len() < self.credit.streams_max()
                && let Some(id) = self.waiting.pop_front()
            {
                self.turns.push_back(id);
                idle_count = 0;
            }
            if idle_count >= self.turns.len() {
                return;
            }
            let Some(id) = self.turns.pop_front() else {
                return;
            };
            match self.take_turn(id) {
                Turn::Sent => idle_count = 0,
                Turn::Idle => idle_count += 1,
                Turn::Ended => {
                    idle_count = 0;
                    continue;
                }
            }
            self.turns.push_back(id);
        }
    }

    /// Sends a piece, which costs, or the end, which does not.
    fn take_turn(&mut self, id: RequestId) -> Turn {
        let Some(stream) = self.streams.get_mut(&id) else {
            return Turn::Ended;
        };
        let opcode = stream.opcode;
        if stream.pieces.is_empty() {
            if !stream.ended {
                return Turn::Idle;
            }
            self.send_end(id, opcode);
            return Turn::Ended;
        }
        if !self.credit.may_send() {
            return Turn::Idle;
        }
        if let Some(piece) = next_piece(&mut stream.pieces) {
            self.send_piece(id, opcode, piece);
        }
        Turn::Sent
    }

    fn send_piece(&mut self, id: RequestId, opcode: Opcode, piece: Bytes) {
        let len = piece.len();
        self.stream_bytes -= len;
        let header = FrameHeader::new(Kind::StreamData, opcode, id);
        let sent = self.frame(header, |_| 0, piece);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.sum.add(len, sent.payload_crc);
        }
    }

    fn send_end(&mut self, id: RequestId, opcode: Opcode) {
        let Some(stream) = self.streams.remove(&id) else {
            return;
        };
        let header = FrameHeader::new(Kind::StreamEnd, opcode, id).with_status(Status::Ok);
        self.frame(header, |out| stream.sum.encode_end(out), Bytes::new());
    }

    fn close_buffer(&mut self) {
        if !self.open.is_empty() {
            let buffer = self.open.split().freeze();
            self.ready_bytes += buffer.len();
            self.ready.push_back(buffer);
        }
    }
}

/// What became of a stream's turn.
enum Turn {
    /// A piece is in line.
    Sent,
    /// It has nothing, or no credit for it.
    Idle,
    /// It is over.
    Ended,
}

/// What a frame turned out to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) payload_crc: u32,
}

/// Whether frames of a kind cost credit.
fn costs(kind: u8) -> bool {
    kind == Kind::Request.wire() || kind == Kind::StreamData.wire()
}

/// The next frame's worth of a stream.
fn next_piece(pieces: &mut VecDeque<Bytes>) -> Option<Bytes> {
    let first = pieces.front_mut()?;
    if first.len() > STREAM_PIECE_BYTES_MAX {
        return Some(first.split_to(STREAM_PIECE_BYTES_MAX));
    }
    pieces.pop_front()
}
