//! Reads the header of a message while it arrives: the first value of each cached field, and whether
//! an MTA stamped a `Received:`. Keeps at most what the header cache holds of each field, however
//! long the header is, and does not care where the pieces are cut.

use std::ops::Range;

use crate::header_cache::{Extent, FIELDS_COUNT, Field, Fields, VALUES_BYTES_MAX, Value};
use crate::prepare::ReceivedField;

/// Longer names are not those of a cached field.
const NAME_BYTES_MAX: usize = 16;

/// Where in a header line the scan stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    /// Before its first byte.
    Start,
    /// In what may be a field's name.
    Name,
    /// In the value of the field `current`, or of none that matters.
    Value,
}

/// The scan of one header.
#[derive(Debug)]
pub(super) struct HeaderScan {
    at: At,
    name: [u8; NAME_BYTES_MAX],
    name_len: usize,
    current: Option<Field>,
    /// The values found, one behind the other: the pieces of a value arrive together.
    bytes: Vec<u8>,
    found: [Option<(Range<usize>, Extent)>; FIELDS_COUNT],
    received: ReceivedField,
}

/// What a field name means to the scan.
enum Known {
    Cached(Field),
    Received,
    Other,
}

fn known(name: &[u8]) -> Known {
    let name = name.trim_ascii_end();
    if name.eq_ignore_ascii_case(b"Received") {
        return Known::Received;
    }
    Field::ALL
        .into_iter()
        .find(|field| name.eq_ignore_ascii_case(field.name().as_bytes()))
        .map_or(Known::Other, Known::Cached)
}

impl HeaderScan {
    pub(super) fn new() -> Self {
        Self {
            at: At::Start,
            name: [0; NAME_BYTES_MAX],
            name_len: 0,
            current: None,
            bytes: Vec::new(),
            found: [const { None }; FIELDS_COUNT],
            received: ReceivedField::Absent,
        }
    }

    /// A piece of a header line, without its line end.
    pub(super) fn part(&mut self, piece: &[u8]) {
        let Some(first) = piece.first() else { return };
        if self.at == At::Start {
            self.at = if matches!(first, b' ' | b'\t') {
                At::Value
            } else {
                self.current = None;
                self.name_len = 0;
                At::Name
            };
        }
        match self.at {
            At::Name => self.name(piece),
            At::Start | At::Value => self.value(piece),
        }
    }

    /// The line has ended; the next may continue its field.
    pub(super) fn line_end(&mut self) {
        self.at = At::Start;
    }

    fn name(&mut self, piece: &[u8]) {
        let room = self.name.get_mut(self.name_len..).unwrap_or_default();
        let mut taken = 0;
        for (to, from) in room.iter_mut().zip(piece) {
            if *from == b':' {
                break;
            }
            *to = *from;
            taken += 1;
        }
        self.name_len += taken;
        match piece.get(taken..).and_then(<[u8]>::split_first) {
            None => {}
            Some((b':', value)) => {
                self.field();
                self.at = At::Value;
                self.value(value);
            }
            Some(_) => self.at = At::Value,
        }
    }

    /// A name is complete: is its value of interest?
    fn field(&mut self) {
        match known(self.name.get(..self.name_len).unwrap_or_default()) {
            Known::Received => self.received = ReceivedField::Present,
            Known::Other => {}
            Known::Cached(field) => {
                let at = self.bytes.len();
                let first = self.found.get_mut(field.index()).filter(|f| f.is_none());
                if let Some(first) = first {
                    *first = Some((at..at, Extent::Whole));
                    self.current = Some(field);
                }
            }
        }
    }

    fn value(&mut self, piece: &[u8]) {
        let Some(field) = self.current else { return };
        let Some(Some((range, extent))) = self.found.get_mut(field.index()) else {
            return;
        };
        let piece = if range.start == range.end {
            piece.trim_ascii_start()
        } else {
            piece
        };
        let room = VALUES_BYTES_MAX - range.len();
        let kept = piece.get(..room).unwrap_or(piece);
        if kept.len() < piece.len() {
            *extent = Extent::Cut;
        }
        self.bytes.extend_from_slice(kept);
        range.end += kept.len();
    }

    /// Whether a `Received:` was seen.
    pub(super) fn received(&self) -> ReceivedField {
        self.received
    }

    /// What was found.
    pub(super) fn fields(&self) -> Fields<'_> {
        Fields::new(self.found.each_ref().map(|found| {
            let (range, extent) = found.as_ref()?;
            let bytes = self.bytes.get(range.clone())?;
            let bytes = match extent {
                Extent::Whole => bytes.trim_ascii_end(),
                Extent::Cut => bytes,
            };
            Some(Value {
                bytes,
                extent: *extent,
            })
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(header: &[u8], piece_len: usize) -> HeaderScan {
        let mut scan = HeaderScan::new();
        for line in header.split(|byte| *byte == b'\n') {
            line.chunks(piece_len).for_each(|piece| scan.part(piece));
            scan.line_end();
        }
        scan
    }

    #[test]
    fn fields_are_unfolded_and_the_first_counts_in_pieces_of_any_size() {
        let header = b"RECEIVED: by x\nX-Other-Name-That-Is-Long: no\nsubject:  one\n two\t\n\
                       Subject: no\nFrom : a@b\nTo:\n c@d\nno colon\n more\nDate: \nmessage-id:<1@x>";
        for piece_len in 1..header.len() {
            let scan = scan(header, piece_len);
            let fields = scan.fields();
            assert_eq!(scan.received(), ReceivedField::Present);
            assert_eq!(fields.bytes(Field::Subject), b"one two");
            assert_eq!(fields.bytes(Field::From), b"a@b");
            assert_eq!(fields.bytes(Field::To), b"c@d");
            assert_eq!(fields.bytes(Field::MessageId), b"<1@x>");
            assert!(
                fields
                    .value(Field::Date)
                    .is_some_and(|v| v.bytes.is_empty())
            );
            assert_eq!(fields.value(Field::InReplyTo), None);
        }
    }

    #[test]
    fn a_value_without_end_keeps_a_bounded_beginning() {
        let mut header = b"Subject: ".to_vec();
        header.resize(100_000, b'x');
        let scan = scan(&header, 4096);
        let value = scan.fields().value(Field::Subject).expect("present");
        assert_eq!(
            (value.bytes.len(), value.extent),
            (VALUES_BYTES_MAX, Extent::Cut)
        );
        assert_eq!(scan.received(), ReceivedField::Absent);
    }
}
