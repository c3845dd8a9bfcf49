//! A frame: one log write. 80 bytes of header, then records, padded with zeros to 4096.
//!
//! `header_crc` binds the payload's CRC to salt and LSN and chains the frames, so that recovery can
//! tell a torn tail, a former use of the file, and damage apart (storage.md 6.1).

use ringpost_netproto::id::WallNs;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use super::{Layout, crc, read_prefix};
use crate::error::CorruptReason;
use crate::limits::{BLOCK_BYTES, FRAME_BYTES_MAX};
use crate::position::Lsn;

/// Of each frame.
pub const MAGIC: [u8; 4] = *b"RPF1";

/// Bytes before the records.
pub const FRAME_HEADER_BYTES: usize = 80;

/// Where `header_crc` begins to cover.
const COVERED_FROM: usize = 8;

/// Flag: an idle log vouches for its last frame.
const NOOP: u32 = 1;
/// Flag: the rest of the file is unused.
const SKIP: u32 = 2;

on_disk! {
    struct Raw, "frame header", 80 {
        0 magic: [u8; 4],
        4 header_crc: U32,
        8 salt: U64,
        16 lsn: U64,
        24 flushed_lsn: U64,
        32 durable_lsn: U64,
        40 frame_len: U32,
        44 payload_len: U32,
        48 records_count: U32,
        52 flags: U32,
        56 previous_crc: U32,
        60 payload_crc: U32,
        64 wall: U64,
        72 map_revision: U64,
    }
}

const _: () = assert!(size_of::<Raw>() == FRAME_HEADER_BYTES);

pub(super) const LAYOUT: Layout = Raw::LAYOUT;

/// What a frame is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameKind {
    /// Whole groups of records.
    Records,
    /// No records: vouches for the frame before it by its `flushed_lsn`. 4096 bytes.
    Noop,
    /// No records: the next frame is the first of the next file. Only its first 4096 bytes are
    /// written; `frame_len` reaches to the successor's `start_lsn`.
    Skip,
}

/// The header of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// Of the log file.
    pub salt: u64,
    /// Where the frame starts.
    pub lsn: Lsn,
    /// What was on the medium when it was sealed.
    pub flushed_lsn: Lsn,
    /// The least position that was on all copies at that time.
    pub durable_lsn: Lsn,
    /// Bytes to the next frame, a multiple of 4096.
    pub frame_len: u32,
    /// Bytes of records.
    pub payload_len: u32,
    /// Number of records.
    pub records_count: u32,
    /// What it is for.
    pub kind: FrameKind,
    /// `header_crc` of the frame before it; 0 for the first of a log.
    pub previous_crc: u32,
    /// CRC of the records.
    pub payload_crc: u32,
    /// Wall clock.
    pub wall: WallNs,
    /// The partition map in force.
    pub map_revision: u64,
    /// Of these fields; set by `seal` and `open`.
    pub header_crc: u32,
}

/// Why bytes are not the frame that was expected. Recovery tells these apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// No frame begins here: the magic value is absent, or fewer than 80 bytes are.
    #[error("no frame begins here")]
    NotAFrame,
    /// The header is damaged or torn.
    #[error("the frame header's checksum does not match")]
    HeaderChecksum,
    /// The checksum holds, but no writer produces these values.
    #[error("impossible frame header: {0}")]
    Impossible(&'static str),
    /// A whole header of a former use of the file.
    #[error("the frame belongs to a former use of the file")]
    OtherSalt,
    /// A whole header that belongs elsewhere in this file.
    #[error("the frame belongs to another position")]
    OtherLsn,
    /// A whole header whose predecessor is another frame than the one before it.
    #[error("the frame follows another frame")]
    OtherPredecessor,
    /// The header is good; the records are damaged or torn, or not all there.
    #[error("the frame's records are damaged")]
    Payload,
}

impl FrameError {
    /// The same for a report.
    pub fn reason(self) -> CorruptReason {
        match self {
            Self::NotAFrame => CorruptReason::Magic,
            Self::HeaderChecksum | Self::Payload => CorruptReason::Checksum,
            Self::Impossible(what) => CorruptReason::Value(what),
            Self::OtherSalt | Self::OtherLsn | Self::OtherPredecessor => CorruptReason::Identity,
        }
    }
}

impl FrameHeader {
    /// Length of a frame with that many bytes of records: header and payload, padded to 4096.
    pub fn frame_len_of(payload_len: u32) -> u64 {
        (FRAME_HEADER_BYTES as u64 + u64::from(payload_len)).next_multiple_of(BLOCK_BYTES)
    }

    /// The 80 bytes of the header; sets `header_crc`.
    pub fn seal(&mut self) -> [u8; FRAME_HEADER_BYTES] {
        let mut raw = Raw {
            magic: MAGIC,
            header_crc: U32::ZERO,
            salt: U64::new(self.salt),
            lsn: U64::new(self.lsn.value()),
            flushed_lsn: U64::new(self.flushed_lsn.value()),
            durable_lsn: U64::new(self.durable_lsn.value()),
            frame_len: U32::new(self.frame_len),
            payload_len: U32::new(self.payload_len),
            records_count: U32::new(self.records_count),
            flags: U32::new(match self.kind {
                FrameKind::Records => 0,
                FrameKind::Noop => NOOP,
                FrameKind::Skip => SKIP,
            }),
            previous_crc: U32::new(self.previous_crc),
            payload_crc: U32::new(self.payload_crc),
            wall: U64::new(self.wall.value()),
            map_revision: U64::new(self.map_revision),
        };
        self.header_crc = crc::of(raw.as_bytes().get(COVERED_FROM..).unwrap_or_default());
        raw.header_crc = U32::new(self.header_crc);
        let mut out = [0; FRAME_HEADER_BYTES];
        super::write_prefix(&raw, &mut out);
        out
    }

    /// A whole, possible header at the start of `bytes`, of whatever file and position.
    pub fn open(bytes: &[u8]) -> Result<Self, FrameError> {
        let raw: &Raw = read_prefix(bytes).map_err(|_short| FrameError::NotAFrame)?;
        if raw.magic != MAGIC {
            return Err(FrameError::NotAFrame);
        }
        let header_crc = crc::of(raw.as_bytes().get(COVERED_FROM..).unwrap_or_default());
        if header_crc != raw.header_crc.get() {
            return Err(FrameError::HeaderChecksum);
        }
        let kind = match raw.flags.get() {
            0 => FrameKind::Records,
            NOOP => FrameKind::Noop,
            SKIP => FrameKind::Skip,
            _ => return Err(FrameError::Impossible("unknown flags")),
        };
        let header = Self {
            salt: raw.salt.get(),
            lsn: Lsn::new(raw.lsn.get()),
            flushed_lsn: Lsn::new(raw.flushed_lsn.get()),
            durable_lsn: Lsn::new(raw.durable_lsn.get()),
            frame_len: raw.frame_len.get(),
            payload_len: raw.payload_len.get(),
            records_count: raw.records_count.get(),
            kind,
            previous_crc: raw.previous_crc.get(),
            payload_crc: raw.payload_crc.get(),
            wall: WallNs::new(raw.wall.get()),
            map_revision: raw.map_revision.get(),
            header_crc,
        };
        header.check_values().map_err(FrameError::Impossible)?;
        Ok(header)
    }

    /// As [`Self::open`], and the frame is the one expected at `lsn` of the file with `salt` behind
    /// the frame with `previous_crc`. The records are not looked at.
    pub fn open_at(
        bytes: &[u8],
        salt: u64,
        lsn: Lsn,
        previous_crc: u32,
    ) -> Result<Self, FrameError> {
        let header = Self::open(bytes)?;
        if header.salt != salt {
            return Err(FrameError::OtherSalt);
        }
        if header.lsn != lsn {
            return Err(FrameError::OtherLsn);
        }
        if header.previous_crc != previous_crc {
            return Err(FrameError::OtherPredecessor);
        }
        Ok(header)
    }

    /// The records of a frame of which `bytes` starts with the header, if they are whole.
    pub fn payload<'a>(&self, bytes: &'a [u8]) -> Result<&'a [u8], FrameError> {
        let payload = bytes
            .get(FRAME_HEADER_BYTES..)
            .and_then(|rest| rest.get(..super::index(self.payload_len)))
            .ok_or(FrameError::Payload)?;
        if crc::of(payload) == self.payload_crc {
            Ok(payload)
        } else {
            Err(FrameError::Payload)
        }
    }

    /// Where the next frame starts.
    pub fn end(&self) -> Lsn {
        self.lsn.after(u64::from(self.frame_len))
    }

    fn check_values(&self) -> Result<(), &'static str> {
        let frame_len = u64::from(self.frame_len);
        if !self.lsn.value().is_multiple_of(BLOCK_BYTES) {
            return Err("lsn is not a multiple of 4096");
        }
        if self.lsn.value().checked_add(frame_len).is_none() {
            return Err("the log ends before the frame");
        }
        if self.flushed_lsn > self.lsn {
            return Err("flushed_lsn is above the frame");
        }
        if self.durable_lsn > self.flushed_lsn {
            return Err("durable_lsn is above flushed_lsn");
        }
        if frame_len == 0 || !frame_len.is_multiple_of(BLOCK_BYTES) {
            return Err("frame_len is not a multiple of 4096");
        }
        match self.kind {
            FrameKind::Records => {
                if frame_len > FRAME_BYTES_MAX {
                    return Err("frame_len is above 4 MiB");
                }
                if frame_len != Self::frame_len_of(self.payload_len) {
                    return Err("frame_len and payload_len disagree");
                }
            }
            FrameKind::Noop | FrameKind::Skip => {
                if self.payload_len != 0 || self.records_count != 0 || self.payload_crc != 0 {
                    return Err("a NOOP or SKIP frame has records");
                }
                if self.kind == FrameKind::Noop && frame_len != BLOCK_BYTES {
                    return Err("a NOOP frame is not 4096 bytes");
                }
            }
        }
        Ok(())
    }
}
