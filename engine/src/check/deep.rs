//! The deepest level: what another program sees in a segment, and what the index says of a message
//! against the message itself.

use bytes::Bytes;

use super::derive::Deriver;
use super::fold::Entry;
use super::tree::Window;
use super::{Checker, Severity};
use crate::error::{CorruptReason, IoError};
use crate::format::crc;
use crate::format::info::{ALL_CRLF, EIGHT_BIT, MIXED_LINE_ENDS, NO_FINAL_NEWLINE, QUOTED};
use crate::io::RelPath;
use crate::mbox::{Item, Scanner, State};

/// Format flags that follow from the message.
const DERIVED_FLAGS: u16 = ALL_CRLF | MIXED_LINE_ENDS | NO_FINAL_NEWLINE | QUOTED | EIGHT_BIT;

impl Checker<'_> {
    /// Reads a segment as any reader of mboxes would; `entries` are its messages in their order.
    pub(super) fn parsed(&mut self, path: &RelPath, size: u64, entries: &[&Entry]) {
        let mut items = Vec::new();
        let mut scanner = Scanner::new();
        let mut window = Window::new(self.tree, path);
        let mut offset = 0;
        while offset < size {
            let Ok(bytes) = window.some(offset, size - offset) else {
                // The walk over the messages said so already.
                return;
            };
            if bytes.is_empty() {
                return;
            }
            scanner.push(bytes, &mut items);
            offset += u64::try_from(bytes.len()).expect("a mebibyte");
        }
        scanner.finish(&mut items);
        let mut found = items.iter().filter_map(|item| match item {
            Item::Message(found) if found.state == State::Whole => Some(found),
            _ => None,
        });
        for entry in entries.iter().filter(|entry| entry.alive) {
            let msg = &entry.msg;
            let same = found
                .by_ref()
                .find(|found| found.offset >= msg.offset)
                .is_some_and(|found| {
                    found.offset == msg.offset
                        && found.prefix_len == u64::from(msg.skip)
                        && found.body_len == u64::from(msg.stored_len)
                });
            if !same {
                let what = "the index and the messages that an mbox reader finds";
                self.damage(path, msg.offset, CorruptReason::Disagree(what));
                return;
            }
        }
    }

    /// What the index says of a message whose checksum holds, against the message. It is derived data:
    /// a difference is no loss.
    pub(super) fn derived(&mut self, path: &RelPath, window: &mut Window<'_>, entry: &Entry) {
        match derived_equals(window, entry) {
            Ok(true) => {}
            Ok(false) => {
                let what = "the index and what the message says of itself";
                let reason = CorruptReason::Disagree(what);
                self.found(Severity::Minor, path, entry.msg.offset, reason);
            }
            Err(error) => self.finding(Severity::Damage, error.corrupt()),
        }
    }
}

fn derived_equals(window: &mut Window<'_>, entry: &Entry) -> Result<bool, IoError> {
    let msg = &entry.msg;
    let mut deriver = Deriver::new(msg.format_flags, msg.stored_len);
    let mut offset = msg.offset + u64::from(msg.skip);
    let mut left = u64::from(msg.stored_len);
    while left > 0 {
        let bytes = window.some(offset, left)?;
        if bytes.is_empty() {
            return Ok(false);
        }
        let count = u64::try_from(bytes.len()).expect("a mebibyte");
        deriver.push(&Bytes::copy_from_slice(bytes));
        offset += count;
        left -= count;
    }
    let Some(body) = deriver.finish() else {
        return Ok(true);
    };
    let summary = &body.summary;
    Ok(summary.format_flags == msg.format_flags & DERIVED_FLAGS
        && summary.stored_crc == msg.stored_crc
        && summary.header_len == msg.header_len
        && summary.lines_count == msg.lines_count
        && summary.quoted_count == msg.quoted_count
        && summary.rfc822_size == msg.rfc822_size
        && summary.date_s == msg.date_s
        && entry
            .cache_crc
            .is_none_or(|known| known == crc::of(&body.cache)))
}
