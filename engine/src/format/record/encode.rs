//! Records into a batch. The bytes of a message are copied once and not read again: their CRC is
//! the caller's, and goes into the frame's by combination.

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use super::super::info::{MSG_FIXED_BYTES, MsgFixed, SLOT};
use super::super::{crc, pad8};
use super::{Head, RECORD_HEADER_BYTES, RawBody, RawDeliver, RawDeliverFile};
use super::{RecordType, SwapParts, chain};
use crate::limits::CACHE_SLOTS_MAX;

/// What a batch holds so far. Kept beside the buffer between groups.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Tally {
    /// Bytes of records: the next record's offset in the payload.
    pub payload_len: usize,
    /// Number of records.
    pub records_count: u32,
    /// CRC of the records.
    pub payload_crc: u32,
}

/// Where a record went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placed {
    /// Of its header, in bytes from the payload's start.
    pub at: usize,
    /// With header and padding.
    pub len: usize,
    /// The partition's chain after it.
    pub chain: u32,
}

/// A message, shared by the DELIVERs behind it.
#[derive(Clone, Copy, Debug)]
pub struct BodyParts<'a> {
    /// The header cache: at most 15 slots of 64 bytes.
    pub cache: &'a [u8],
    /// The stored message.
    pub stored: &'a [u8],
    /// Its CRC.
    pub stored_crc: u32,
}

/// What a DELIVER says beside its header.
#[derive(Clone, Copy, Debug)]
pub struct DeliverParts<'a> {
    /// The MSG run, sealed. It has the segment and the offset.
    pub fixed: &'a MsgFixed,
    /// `From_` line and store line.
    pub prefix: &'a [u8],
    /// Where the group's BODY went ([`Placed::at`]).
    pub body_at: usize,
}

/// Bytes of a BODY record.
pub const fn body_len(cache_len: usize, stored_len: usize) -> usize {
    pad8(RECORD_HEADER_BYTES + size_of::<RawBody>() + cache_len + stored_len + 1)
}

/// Bytes of a DELIVER record.
pub const fn deliver_len(prefix_len: usize) -> usize {
    pad8(RECORD_HEADER_BYTES + size_of::<RawDeliver>() + prefix_len)
}

/// Bytes of a `DELIVER_FILE` record.
pub const fn deliver_file_len(cache_len: usize) -> usize {
    RECORD_HEADER_BYTES + size_of::<RawDeliverFile>() + cache_len
}

/// Bytes of a FLAGS, EXPUNGE, MAILBOX or KEYWORD record.
pub const fn runs_len(runs_len: usize) -> usize {
    RECORD_HEADER_BYTES + runs_len
}

/// Bytes of a `USER_CREATE` record.
pub const fn name_len(name_len: usize) -> usize {
    pad8(RECORD_HEADER_BYTES + 2 + name_len)
}

/// Appends records to the payload of a batch. The caller made sure, by the `*_len` functions, that
/// they fit; a record that does not is a bug and panics.
#[derive(Debug)]
pub struct Encoder<'a> {
    payload: &'a mut [u8],
    tally: Tally,
}

impl<'a> Encoder<'a> {
    /// Goes on behind what `tally` counts; `payload` begins with the batch's first record.
    pub fn resume(payload: &'a mut [u8], tally: Tally) -> Self {
        Self { payload, tally }
    }

    /// What the batch holds now.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// A BODY. `head` is [`Head::unowned`] with the stored CRC.
    pub fn body(&mut self, head: &Head, parts: &BodyParts<'_>) -> Placed {
        let fields = RawBody {
            stored_len: U32::new(u32_of(parts.stored.len())),
            cache_slots: cache_slots(parts.cache.len()),
            reserved: [0; 3],
        };
        let head = Head {
            body_crc: parts.stored_crc,
            ..*head
        };
        let len = body_len(parts.cache.len(), parts.stored.len());
        let Tally { payload_crc, .. } = self.tally;
        let mut writer = self.begin(&head, RecordType::Body, len);
        writer.put(fields.as_bytes());
        writer.put(parts.cache);
        let front = writer.at;
        writer.put(parts.stored);
        writer.put(b"\n");
        writer.pad();
        let record = writer.record;
        let (before, after) = (
            record.get(..front).unwrap_or_default(),
            record.get(front + parts.stored.len()..).unwrap_or_default(),
        );
        let crc = crc::extend(payload_crc, before);
        let stored_len = u64::from(fields.stored_len.get());
        let crc = crc::extend(crc::combine(crc, parts.stored_crc, stored_len), after);
        self.end(len, crc, 0)
    }

    /// A DELIVER.
    pub fn deliver(&mut self, head: &Head, parts: &DeliverParts<'_>) -> Placed {
        let distance = self
            .tally
            .payload_len
            .checked_sub(parts.body_at)
            .expect("a BODY stands before its DELIVERs");
        let mut fields = RawDeliver {
            offset: U64::new(parts.fixed.offset()),
            segment: U32::new(parts.fixed.segment()),
            distance: U32::new(u32_of(distance)),
            prefix_len: U16::new(u16::try_from(parts.prefix.len()).expect("limits bound it")),
            cache_slots: parts.fixed.cache_slots(),
            reserved: [0; 5],
            fixed: [0; MSG_FIXED_BYTES],
        };
        super::super::write_prefix(parts.fixed, &mut fields.fixed);
        let len = deliver_len(parts.prefix.len());
        self.plain(
            head,
            RecordType::Deliver,
            len,
            &[fields.as_bytes(), parts.prefix],
        )
    }

    /// A `DELIVER_FILE`; `cache` is the header cache that `fixed` was sealed with.
    pub fn deliver_file(&mut self, head: &Head, fixed: &MsgFixed, cache: &[u8]) -> Placed {
        let mut fields = RawDeliverFile {
            segment: U32::new(fixed.segment()),
            reserved: [0; 4],
            fixed: [0; MSG_FIXED_BYTES],
        };
        super::super::write_prefix(fixed, &mut fields.fixed);
        let len = deliver_file_len(cache.len());
        self.plain(
            head,
            RecordType::DeliverFile,
            len,
            &[fields.as_bytes(), cache],
        )
    }

    /// FLAGS, EXPUNGE, MAILBOX or KEYWORD: sealed runs, exactly as they will stand in the info file
    /// from `head.slot` on.
    pub fn runs(&mut self, head: &Head, kind: RecordType, runs: &[u8]) -> Placed {
        assert!(
            !runs.is_empty() && runs.len().is_multiple_of(SLOT),
            "runs of {} bytes",
            runs.len()
        );
        self.plain(head, kind, runs_len(runs.len()), &[runs])
    }

    /// A `USER_CREATE`.
    pub fn user_create(&mut self, head: &Head, name: &[u8]) -> Placed {
        let count = U16::new(u16::try_from(name.len()).expect("a UserKey bounds it"));
        let len = name_len(name.len());
        self.plain(head, RecordType::UserCreate, len, &[count.as_bytes(), name])
    }

    /// An `INFO_SWAP`.
    pub fn info_swap(&mut self, head: &Head, parts: &SwapParts<'_>) -> Placed {
        let payload = parts.encode();
        let len = RECORD_HEADER_BYTES + payload.len();
        self.plain(head, RecordType::InfoSwap, len, &[&payload])
    }

    /// A NOOP.
    pub fn noop(&mut self, head: &Head) -> Placed {
        self.plain(head, RecordType::Noop, RECORD_HEADER_BYTES, &[])
    }

    /// An EPOCH, TRUNCATE or PROMISE.
    pub fn of_partition(&mut self, head: &Head, kind: RecordType) -> Placed {
        assert!(kind.is_of_partition(), "a {kind:?} is another record");
        self.plain(head, kind, RECORD_HEADER_BYTES, &[])
    }

    /// A record that is whole already, as [`super::localise`] made it: its chain stays.
    pub fn whole(&mut self, record: &[u8]) -> Placed {
        let from = self.tally.payload_len;
        let Tally { payload_crc, .. } = self.tally;
        self.payload
            .get_mut(from..from + record.len())
            .expect("the batch was checked for room before encoding")
            .copy_from_slice(record);
        let chain = record
            .get(..RECORD_HEADER_BYTES)
            .and_then(<[u8]>::last_chunk)
            .map_or(0, |chain| u32::from_le_bytes(*chain));
        self.end(record.len(), crc::extend(payload_crc, record), chain)
    }

    /// A record without a message body: written, chained, counted.
    fn plain(&mut self, head: &Head, kind: RecordType, len: usize, parts: &[&[u8]]) -> Placed {
        let Tally { payload_crc, .. } = self.tally;
        let mut writer = self.begin(head, kind, len);
        for part in parts {
            writer.put(part);
        }
        writer.pad();
        let record = writer.record;
        let mut after = 0;
        let chained = kind.is_replicated() && head.pseq > 0;
        if chained || kind == RecordType::Truncate {
            after = match kind {
                // It names a place in the chain and has none itself.
                RecordType::Truncate => head.chain,
                _ => chain(head.chain, record),
            };
            if let Some((_, field)) = record
                .get_mut(..RECORD_HEADER_BYTES)
                .and_then(<[u8]>::split_last_chunk_mut::<4>)
            {
                *field = after.to_le_bytes();
            }
        }
        let crc = crc::extend(payload_crc, record);
        self.end(len, crc, after)
    }

    fn begin(&mut self, head: &Head, kind: RecordType, len: usize) -> Writer<'_> {
        let from = self.tally.payload_len;
        let record = self
            .payload
            .get_mut(from..from + len)
            .expect("the batch was checked for room before encoding");
        let mut writer = Writer { record, at: 0 };
        writer.put(head.raw(kind, u32_of(len)).as_bytes());
        writer
    }

    fn end(&mut self, len: usize, payload_crc: u32, chain: u32) -> Placed {
        let at = self.tally.payload_len;
        self.tally = Tally {
            payload_len: at + len,
            records_count: self.tally.records_count + 1,
            payload_crc,
        };
        Placed { at, len, chain }
    }
}

/// One record being written.
struct Writer<'a> {
    record: &'a mut [u8],
    at: usize,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) {
        let to = self
            .record
            .get_mut(self.at..self.at + bytes.len())
            .expect("the length functions and the encoders agree");
        to.copy_from_slice(bytes);
        self.at += bytes.len();
    }

    fn pad(&mut self) {
        let rest = self.record.get_mut(self.at..).unwrap_or_default();
        assert!(rest.len() < 8, "a record of the wrong length");
        rest.fill(0);
    }
}

fn cache_slots(cache_len: usize) -> u8 {
    assert!(
        cache_len.is_multiple_of(SLOT) && cache_len <= CACHE_SLOTS_MAX * SLOT,
        "a header cache of {cache_len} bytes"
    );
    u8::try_from(cache_len / SLOT).expect("at most 15")
}

fn u32_of(len: usize) -> u32 {
    u32::try_from(len).expect("a frame is at most 4 MiB")
}
