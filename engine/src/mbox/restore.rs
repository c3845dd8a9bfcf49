//! Stored bytes back to the bytes that came in, or to their CRLF view, in pieces of any size.
//! Where nothing is to be undone the stored bytes pass through as they are, shared and not copied.

use bytes::Bytes;
use memchr::memchr;

use super::FROM;
use crate::format::info::{ALL_CRLF, MIXED_LINE_ENDS, NO_FINAL_NEWLINE, QUOTED};

/// Which bytes are wanted (storage.md 8.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum View {
    /// Exactly what came in.
    AsReceived,
    /// The same with each LF that has no CR in front given one: IMAP and POP3. Its length is
    /// RFC822.SIZE. A missing final newline is missing here too.
    Crlf,
}

/// Which LF get a CR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum AddCr {
    No,
    Each,
    WhereNone,
}

/// Where in a line the next byte falls, if lines are to be unquoted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    Start,
    /// Behind `>`s, one of which is held back, and so many bytes of `From `, held back too.
    Marks(usize),
    Middle,
}

/// Gives one stored message back, from its start.
#[derive(Debug)]
pub struct Restorer {
    add_cr: AddCr,
    unquote: bool,
    /// Stored bytes that are still to come and to be given back.
    left: u64,
    at: At,
    cr_last: bool,
}

impl Restorer {
    /// For a message with these format flags and this length of its stored form.
    pub fn new(format_flags: u16, stored_len: u64, view: View) -> Self {
        let has = |flag| format_flags & flag != 0;
        Self {
            add_cr: match view {
                _ if has(ALL_CRLF) => AddCr::Each,
                View::AsReceived => AddCr::No,
                View::Crlf if has(MIXED_LINE_ENDS) => AddCr::WhereNone,
                View::Crlf => AddCr::Each,
            },
            unquote: has(QUOTED),
            left: stored_len.saturating_sub(u64::from(has(NO_FINAL_NEWLINE))),
            at: At::Start,
            cr_last: false,
        }
    }

    /// Whether stored bytes are given back as they are, perhaps without their last.
    pub fn is_identity(&self) -> bool {
        self.add_cr == AddCr::No && !self.unquote
    }

    /// What the next stored bytes give. Bytes beyond the message's length are left out.
    pub fn push(&mut self, stored: &Bytes) -> Bytes {
        let len = usize::try_from(self.left).map_or(stored.len(), |left| left.min(stored.len()));
        self.left -= u64::try_from(len).expect("usize has at most 64 bits");
        if self.is_identity() {
            return stored.slice(..len);
        }
        let mut out = Vec::with_capacity(len + len / 16 + 16);
        self.convert(stored.get(..len).unwrap_or(stored), &mut out);
        if self.left == 0 {
            self.release(&mut out);
        }
        Bytes::from(out)
    }

    fn convert(&mut self, stored: &[u8], out: &mut Vec<u8>) {
        let mut rest = stored;
        while let Some((line, behind)) =
            memchr(b'\n', rest).and_then(|at| rest.split_at_checked(at))
        {
            self.content(line, out);
            self.release(out);
            let add = match self.add_cr {
                AddCr::No => false,
                AddCr::Each => true,
                AddCr::WhereNone => !self.cr_last,
            };
            out.extend_from_slice(if add { b"\r\n" } else { b"\n" });
            self.at = At::Start;
            self.cr_last = false;
            rest = behind.get(1..).unwrap_or_default();
        }
        self.content(rest, out);
    }

    fn content(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        let Some(last) = piece.last() else { return };
        self.cr_last = *last == b'\r';
        let mut rest = piece;
        if self.unquote && self.at != At::Middle {
            rest = self.line_start(piece, out);
        }
        out.extend_from_slice(rest);
    }

    /// Goes over `>`s and `From `; gives what is behind them, to be handed on as it is.
    fn line_start<'a>(&mut self, piece: &'a [u8], out: &mut Vec<u8>) -> &'a [u8] {
        let mut rest = piece;
        if self.at == At::Start {
            let Some(behind) = piece.strip_prefix(b">") else {
                self.at = At::Middle;
                return piece;
            };
            self.at = At::Marks(0);
            rest = behind;
        }
        if self.at == At::Marks(0) {
            let more = rest.iter().take_while(|byte| **byte == b'>').count();
            let (run, behind) = rest.split_at(more);
            out.extend_from_slice(run);
            rest = behind;
        }
        while let At::Marks(matched) = self.at {
            let Some((byte, behind)) = rest.split_first() else {
                return rest;
            };
            if FROM.get(matched) != Some(byte) {
                self.release(out);
            } else if matched + 1 == FROM.len() {
                self.at = At::Middle;
                out.extend_from_slice(FROM);
                rest = behind;
            } else {
                self.at = At::Marks(matched + 1);
                rest = behind;
            }
        }
        rest
    }

    /// The line is not a quoted one: gives what was held back.
    fn release(&mut self, out: &mut Vec<u8>) {
        if let At::Marks(matched) = self.at {
            out.push(b'>');
            out.extend_from_slice(FROM.get(..matched).unwrap_or_default());
        }
        self.at = At::Middle;
    }
}

/// A whole message at once.
pub fn restore(stored: &Bytes, format_flags: u16, view: View) -> Bytes {
    let len = u64::try_from(stored.len()).expect("usize has at most 64 bits");
    Restorer::new(format_flags, len, view).push(stored)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_copied_where_nothing_is_undone() {
        let stored = Bytes::from_static(b"a\nb\n");
        for flags in [0, MIXED_LINE_ENDS, NO_FINAL_NEWLINE] {
            let given = restore(&stored, flags, View::AsReceived);
            assert_eq!(given.as_ptr(), stored.as_ptr());
        }
        assert_eq!(restore(&stored, NO_FINAL_NEWLINE, View::AsReceived), "a\nb");
    }

    #[test]
    fn flags_are_undone() {
        for (stored, flags, received, crlf) in [
            (&b"a\nb\n"[..], 0, &b"a\nb\n"[..], &b"a\r\nb\r\n"[..]),
            (b"a\nb\n", ALL_CRLF, b"a\r\nb\r\n", b"a\r\nb\r\n"),
            (b"a\r\nb\n", MIXED_LINE_ENDS, b"a\r\nb\n", b"a\r\nb\r\n"),
            (b"a\r\n", ALL_CRLF, b"a\r\r\n", b"a\r\r\n"),
            (b"a\r\n", NO_FINAL_NEWLINE, b"a\r", b"a\r"),
            (
                b">From x\n>>From y\n>From",
                QUOTED,
                b"From x\n>From y\n>From",
                b"From x\r\n>From y\r\n>From",
            ),
            (b"> \n>>\n", QUOTED, b"> \n>>\n", b"> \r\n>>\r\n"),
            (b">From\n", QUOTED | NO_FINAL_NEWLINE, b">From", b">From"),
            (b">From x\n", 0, b">From x\n", b">From x\r\n"),
            (b"", 0, b"", b""),
            (b"", NO_FINAL_NEWLINE, b"", b""),
        ] {
            let stored = Bytes::from_static(stored);
            assert_eq!(restore(&stored, flags, View::AsReceived), received);
            assert_eq!(restore(&stored, flags, View::Crlf), crlf);
        }
    }
}
