//! STATUS: a node's report about itself, as pairs of name and value for people and scripts.

use alloc::string::String;
use alloc::vec::Vec;

use bytes::BytesMut;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32};

use super::{Fault, Reader, bounded_text, printable};
use crate::frame::Frame;
use crate::limits::{REPORT_FIELDS_MAX, TEXT_BYTES_MAX};
use crate::wire::{wire_len, wire_struct};

wire_struct! {
    /// STATUS, response: then each row with its name and value behind it.
    pub struct ReportMeta [8] {
        /// At most `REPORT_FIELDS_MAX`.
        0 rows_count: U32,
        /// Sent 0.
        4 reserved: U32,
    }
}

wire_struct! {
    /// One field of a report.
    pub struct ReportRow [4] {
        /// Bytes of its name.
        0 name_len: U16,
        /// Bytes of its value.
        2 value_len: U16,
    }
}

/// One field of a report.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReportField {
    /// Lower case, with dots: `log.used_bytes`. At most `TEXT_BYTES_MAX` bytes.
    pub name: String,
    /// For people; numbers are plain. At most `TEXT_BYTES_MAX` bytes.
    pub value: String,
}

impl ReportField {
    /// Appends the payload of a response; of more than `REPORT_FIELDS_MAX` the first. Returns the
    /// length of the meta struct.
    pub fn encode_all(fields: &[Self], out: &mut BytesMut) -> usize {
        let sent = fields.get(..REPORT_FIELDS_MAX).unwrap_or(fields);
        let meta = ReportMeta {
            rows_count: U32::new(wire_len(sent.len())),
            reserved: U32::new(0),
        };
        out.extend_from_slice(meta.as_bytes());
        for field in sent {
            let (name, value) = (bounded_text(&field.name), bounded_text(&field.value));
            let row = ReportRow {
                name_len: U16::new(wire_len(name.len())),
                value_len: U16::new(wire_len(value.len())),
            };
            out.extend_from_slice(row.as_bytes());
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(value.as_bytes());
        }
        size_of::<ReportMeta>()
    }

    /// Reads the payload of a response. Control characters are escaped.
    pub fn decode_all(frame: &Frame) -> Result<Vec<Self>, Fault> {
        let (meta, mut reader) = Reader::new::<ReportMeta>(frame)?;
        let count = usize::try_from(meta.rows_count.get()).unwrap_or(usize::MAX);
        if count > REPORT_FIELDS_MAX {
            return Err(Fault::Malformed("more than 1,000 fields"));
        }
        let mut fields = Vec::with_capacity(count);
        for _ in 0..count {
            let row: ReportRow = reader.take_row(size_of::<ReportRow>())?;
            let lengths = [row.name_len.get(), row.value_len.get()].map(usize::from);
            if lengths.iter().any(|len| *len > TEXT_BYTES_MAX) {
                return Err(Fault::Malformed("a field of more than 256 bytes"));
            }
            let [name_len, value_len] = lengths;
            let name = reader.take(name_len, "a field's name is cut off")?;
            let value = reader.take(value_len, "a field's value is cut off")?;
            fields.push(Self {
                name: printable(&name),
                value: printable(&value),
            });
        }
        reader.finish()?;
        Ok(fields)
    }
}
