//! Bytes to frames and back, incrementally.
//!
//! Promises: a length is believed only after the header's checksum and reserved only after it was
//! compared with its bound; a frame that lies whole in one pushed buffer is a slice of it, not a
//! copy; the payload is read once, for its checksum. At most one payload is held beside what the
//! caller pushed and has not taken out. Any bytes give frames or an error, never a panic.

use alloc::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, IntoBytes};

use crate::error::DecodeError;
use crate::frame::{Frame, FrameHeader, HEADER_BYTES, Kind, MAGIC};
use crate::limits::PAYLOAD_BYTES_CEILING;
use crate::wire::wire_len;

/// Takes bytes in any pieces, gives frames.
#[derive(Debug)]
pub struct Decoder {
    /// Pushed and not yet looked at; none is empty.
    chunks: VecDeque<Bytes>,
    /// The first bytes of a header that lies across pieces.
    head: [u8; HEADER_BYTES],
    head_len: usize,
    /// A header that was checked and whose payload is not complete.
    header: Option<(FrameHeader, Kind)>,
    /// The first bytes of a payload that lies across pieces.
    body: BytesMut,
    payload_bytes_max: u32,
    failed: Option<DecodeError>,
}

impl Decoder {
    /// Accepts payloads of at most `payload_bytes_max` bytes (and never above the ceiling).
    pub fn new(payload_bytes_max: u32) -> Self {
        Self {
            chunks: VecDeque::new(),
            head: [0; HEADER_BYTES],
            head_len: 0,
            header: None,
            body: BytesMut::new(),
            payload_bytes_max: payload_bytes_max.min(PAYLOAD_BYTES_CEILING),
            failed: None,
        }
    }

    /// Another bound for the frames from here on, once HELLO said so.
    pub fn set_payload_bytes_max(&mut self, payload_bytes_max: u32) {
        self.payload_bytes_max = payload_bytes_max.min(PAYLOAD_BYTES_CEILING);
    }

    /// Adds what was received. Take all frames out before pushing more: what is pushed is kept.
    pub fn push(&mut self, input: Bytes) {
        if !input.is_empty() && self.failed.is_none() {
            self.chunks.push_back(input);
        }
    }

    /// Bytes held: pushed ones, and what is reserved for an unfinished payload.
    pub fn buffered_bytes(&self) -> usize {
        let pushed: usize = self.chunks.iter().map(Bytes::len).sum();
        pushed + self.head_len + self.body.capacity()
    }

    /// The next whole frame, `None` if more bytes are needed. An error is final: the same one
    /// comes again.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator has no errors that stay, and ends at its first None"
    )]
    pub fn next(&mut self) -> Result<Option<Frame>, DecodeError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.advance().inspect_err(|error| {
            self.failed = Some(*error);
            self.chunks.clear();
            self.body = BytesMut::new();
        })
    }

    fn advance(&mut self) -> Result<Option<Frame>, DecodeError> {
        let (header, kind) = match self.header {
            Some(checked) => checked,
            None => match self.take_header() {
                // Whoever speaks another protocol may wait for an answer before it says more.
                None => return self.check_magic().map(|()| None),
                Some(header) => {
                    let kind = check_header(&header, self.payload_bytes_max)?;
                    self.header = Some((header, kind));
                    (header, kind)
                }
            },
        };
        let wanted = usize::try_from(header.payload_len.get()).unwrap_or(usize::MAX);
        let Some(payload) = self.take_payload(wanted) else {
            return Ok(None);
        };
        let (found, computed) = (header.payload_crc.get(), crc32fast::hash(&payload));
        if found != computed {
            return Err(DecodeError::PayloadCrc { found, computed });
        }
        self.header = None;
        Ok(Some(Frame {
            header,
            kind,
            payload,
        }))
    }

    /// Of a header that is not complete.
    fn check_magic(&self) -> Result<(), DecodeError> {
        let begun = self.head.get(..self.head_len).unwrap_or_default();
        match begun.first_chunk() {
            Some(found) if *found != MAGIC => Err(DecodeError::Magic { found: *found }),
            _ => Ok(()),
        }
    }

    fn take_header(&mut self) -> Option<FrameHeader> {
        while let Some(chunk) = self.chunks.front_mut() {
            if self.head_len == 0
                && let Ok((header, _)) = FrameHeader::read_from_prefix(chunk)
            {
                chunk.advance(HEADER_BYTES);
                self.drop_empty_front();
                return Some(header);
            }
            let free = self.head.get_mut(self.head_len..).unwrap_or_default();
            let taken = free.len().min(chunk.len());
            for (to, from) in free.iter_mut().zip(chunk.iter()) {
                *to = *from;
            }
            chunk.advance(taken);
            self.head_len += taken;
            self.drop_empty_front();
            if self.head_len == HEADER_BYTES {
                self.head_len = 0;
                return FrameHeader::read_from_bytes(&self.head).ok();
            }
        }
        None
    }

    fn take_payload(&mut self, wanted: usize) -> Option<Bytes> {
        if wanted == 0 {
            return Some(Bytes::new());
        }
        while let Some(chunk) = self.chunks.front_mut() {
            if self.body.is_empty() && chunk.len() >= wanted {
                let whole = chunk.split_to(wanted);
                self.drop_empty_front();
                return Some(whole);
            }
            if self.body.is_empty() {
                self.body = BytesMut::with_capacity(wanted);
            }
            let taken = (wanted - self.body.len()).min(chunk.len());
            self.body.extend_from_slice(&chunk.split_to(taken));
            self.drop_empty_front();
            if self.body.len() == wanted {
                return Some(core::mem::take(&mut self.body).freeze());
            }
        }
        None
    }

    fn drop_empty_front(&mut self) {
        if self.chunks.front().is_some_and(Bytes::is_empty) {
            self.chunks.pop_front();
        }
    }
}

/// Everything that can be said of a header before its payload is there.
fn check_header(header: &FrameHeader, payload_bytes_max: u32) -> Result<Kind, DecodeError> {
    if header.magic != MAGIC {
        return Err(DecodeError::Magic {
            found: header.magic,
        });
    }
    let (found, computed) = (header.header_crc.get(), header.computed_crc());
    if found != computed {
        return Err(DecodeError::HeaderCrc { found, computed });
    }
    let payload = header.payload_len.get();
    if payload > payload_bytes_max {
        return Err(DecodeError::PayloadTooLong {
            found: payload,
            max: payload_bytes_max,
        });
    }
    let meta = header.meta_len.get();
    if meta > payload {
        return Err(DecodeError::MetaTooLong { meta, payload });
    }
    Kind::from_wire(header.kind).ok_or(DecodeError::Kind { found: header.kind })
}

/// Appends a frame to `out`: `header` with lengths and checksums filled in, then what `write` puts
/// there. `write` returns the length of the meta struct it began with. `tail` is the end of the
/// payload: it is counted and summed up but *not* appended, so that a large body can follow as the
/// shared bytes it is. Returns the checksum of the payload.
///
/// # Panics
/// If the payload is above the ceiling, or `write` returns more than it wrote: bugs of the caller.
pub fn encode(
    out: &mut BytesMut,
    mut header: FrameHeader,
    write: impl FnOnce(&mut BytesMut) -> usize,
    tail: &[u8],
) -> u32 {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    let meta_len = write(out);
    let (head, payload) = out
        .get_mut(start..)
        .and_then(|frame| frame.split_at_mut_checked(HEADER_BYTES))
        .expect("write only appends");
    let payload_len = payload.len() + tail.len();
    assert!(
        meta_len <= payload_len,
        "meta of {meta_len} bytes in a payload of {payload_len}"
    );
    let crc = if tail.is_empty() {
        crc32fast::hash(payload)
    } else {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(payload);
        hasher.update(tail);
        hasher.finalize()
    };
    header.payload_len = U32::new(wire_len(payload_len));
    assert!(
        header.payload_len.get() <= PAYLOAD_BYTES_CEILING,
        "a payload of {payload_len} bytes"
    );
    header.meta_len = U32::new(wire_len(meta_len));
    header.payload_crc = U32::new(crc);
    header.header_crc = U32::new(header.computed_crc());
    head.copy_from_slice(header.as_bytes());
    crc
}

/// Encodes a received frame again, byte for byte.
pub fn encode_frame(frame: &Frame) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER_BYTES + frame.payload.len());
    let meta_len = frame.meta().len();
    encode(
        &mut out,
        frame.header,
        |out| {
            out.extend_from_slice(&frame.payload);
            meta_len
        },
        &[],
    );
    out.freeze()
}
