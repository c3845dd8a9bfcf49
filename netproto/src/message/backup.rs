//! BACKUP: holds a node's data directory so that it can be copied while mail goes on. The answer is a
//! report, as of STATUS.

use bytes::BytesMut;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use super::{Fault, Reader};
use crate::frame::{Frame, Status};
use crate::wire::wire_struct;

wire_struct! {
    /// BACKUP, request.
    pub struct BackupMeta [16] {
        /// Chosen by whoever copies, at random; not 0.
        0 id: U64,
        /// Seconds until it ends by itself; 0 to end it.
        8 lease_s: U32,
        /// 1: begin it, or give it more time; 2: end it.
        12 what: U16,
        /// Sent 0.
        14 reserved: U16,
    }
}

/// What is wanted of a backup.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackupRequest {
    /// Begin it, or give it more time.
    Hold {
        /// Which.
        id: u64,
        /// Seconds until it ends by itself.
        lease_s: u32,
    },
    /// It is copied, or given up.
    End {
        /// Which.
        id: u64,
    },
}

impl BackupRequest {
    /// Appends the payload; returns the length of the meta struct.
    pub fn encode(&self, out: &mut BytesMut) -> usize {
        let (id, lease_s, what) = match *self {
            Self::Hold { id, lease_s } => (id, lease_s, 1),
            Self::End { id } => (id, 0, 2),
        };
        let meta = BackupMeta {
            id: U64::new(id),
            lease_s: U32::new(lease_s),
            what: U16::new(what),
            reserved: U16::new(0),
        };
        out.extend_from_slice(meta.as_bytes());
        size_of::<BackupMeta>()
    }

    /// Reads a payload.
    pub fn decode(frame: &Frame) -> Result<Self, Fault> {
        let (meta, reader) = Reader::new::<BackupMeta>(frame)?;
        reader.finish()?;
        let (id, lease_s) = (meta.id.get(), meta.lease_s.get());
        match meta.what.get() {
            1 => Ok(Self::Hold { id, lease_s }),
            2 => Ok(Self::End { id }),
            _ => Err(Fault::Refused(
                Status::Unsupported,
                "a backup is begun or ended, and this is neither",
            )),
        }
    }
}

/// Names of the fields of an answer, for those who read it.
pub mod fields {
    /// Where log `log_id` ends by now, as a plain number: `log.3.end`.
    pub const LOG_PREFIX: &str = "log.";
    /// Behind the log's number.
    pub const LOG_END: &str = ".end";
    /// Bytes of log files that were held.
    pub const HELD_BYTES: &str = "held_bytes";
}
