//! Received bytes to stored bytes: line ends and `From ` quoting, in pieces of any size.
//!
//! What cannot be decided at the end of a piece is held back: a CR (is an LF behind it?) and the
//! beginning of `From ` at a line's start. The `>` of a quoted line goes in front of its `From `,
//! behind the `>` it has: the same bytes as in front of them all, and nothing longer is held back.

use memchr::memchr;

use super::header::HeaderScan;

/// What a line must begin with, behind any number of `>`, to be quoted.
const FROM: &[u8; 5] = b"From ";

/// How lines have ended so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ends {
    /// No line has ended.
    Unknown,
    /// All with LF: stored as they are.
    Lf,
    /// All with CRLF: stored as LF.
    Crlf,
    /// Mixed, the first with LF: stored as they are.
    MixedLfFirst,
    /// Mixed, the first with CRLF: stored as they are.
    MixedCrlfFirst,
}

/// One line end as received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Lf,
    Crlf,
}

/// Where in a line the next byte falls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    /// Behind `>`s only, and this many bytes of `From `, which are held back.
    Start(usize),
    /// Behind anything else.
    Middle,
}

/// The conversion of one message.
#[derive(Debug)]
pub(super) struct Lines {
    /// Converted and not taken yet.
    pub(super) stored: Vec<u8>,
    /// Bytes of the stored form that were taken.
    pub(super) taken_len: u64,
    pub(super) ends: Ends,
    /// Lines ended by LF or CRLF.
    pub(super) ends_count: u32,
    /// Lines ended by CRLF.
    pub(super) crlf_count: u32,
    pub(super) quoted_count: u32,
    /// The header's fields and, once its empty line has come, its end.
    pub(super) header: HeaderScan,
    header_end: Option<HeaderEnd>,
    at: At,
    /// The line has a byte.
    open: bool,
    cr_held: bool,
    /// Bytes were taken as LF that turned out to have been CRLF among others.
    pub(super) expand_taken: bool,
    /// Lines that are ours, in front.
    prepended_count: u32,
}

/// The end of the header in the stored form.
#[derive(Clone, Copy, Debug)]
struct HeaderEnd {
    len: u64,
    lines_count: u32,
}

impl Lines {
    pub(super) fn new() -> Self {
        Self {
            stored: Vec::new(),
            taken_len: 0,
            ends: Ends::Unknown,
            ends_count: 0,
            crlf_count: 0,
            quoted_count: 0,
            header: HeaderScan::new(),
            header_end: None,
            at: At::Start(0),
            open: false,
            cr_held: false,
            expand_taken: false,
            prepended_count: 0,
        }
    }

    /// Converts one piece.
    pub(super) fn push(&mut self, piece: &[u8]) {
        let mut rest = piece;
        if self.cr_held {
            let Some(first) = rest.first() else { return };
            self.cr_held = false;
            if *first == b'\n' {
                self.line_end(End::Crlf);
                rest = rest.get(1..).unwrap_or_default();
            } else {
                self.content(b"\r");
            }
        }
        self.stored.reserve(rest.len());
        loop {
            rest = self.plain(rest);
            let Some((line, behind)) = split_line(rest) else {
                break;
            };
            rest = behind;
            let (line, end) = line
                .strip_suffix(b"\r")
                .map_or((line, End::Lf), |line| (line, End::Crlf));
            self.content(line);
            self.line_end(end);
        }
        if let Some(before) = rest.strip_suffix(b"\r") {
            self.cr_held = true;
            rest = before;
        }
        self.content(rest);
    }

    /// Takes the short way with lines of the body that are all there and end like those before them:
    /// nearly all do. Gives what is behind them.
    fn plain<'a>(&mut self, piece: &'a [u8]) -> &'a [u8] {
        if self.open || self.header_end.is_none() {
            return piece;
        }
        let crlf = match self.ends {
            Ends::Lf => false,
            Ends::Crlf => true,
            Ends::Unknown | Ends::MixedLfFirst | Ends::MixedCrlfFirst => return piece,
        };
        let mut rest = piece;
        let mut ends_count = 0;
        while let Some((line, behind)) = split_line(rest) {
            if line.ends_with(b"\r") != crlf {
                break;
            }
            let marks = quotes_before_from(line);
            if let Some(marks) = marks {
                let (run, from) = line.split_at(marks);
                self.stored.extend_from_slice(run);
                self.stored.push(b'>');
                self.stored.extend_from_slice(from);
                self.quoted_count += 1;
            } else {
                self.stored.extend_from_slice(line);
            }
            match self.stored.last_mut() {
                Some(cr) if crlf => *cr = b'\n',
                _ => self.stored.push(b'\n'),
            }
            ends_count += 1;
            rest = behind;
        }
        self.ends_count += ends_count;
        if crlf {
            self.crlf_count += ends_count;
        }
        rest
    }

    /// Bytes of a line, without its end.
    fn content(&mut self, piece: &[u8]) {
        let Some(first) = piece.first() else { return };
        self.open = true;
        if self.header_end.is_none() {
            self.header.part(piece);
        }
        let rest = match self.at {
            At::Middle => piece,
            At::Start(0) if !matches!(first, b'F' | b'>') => {
                self.at = At::Middle;
                piece
            }
            At::Start(matched) => self.line_start(piece, matched),
        };
        self.stored.extend_from_slice(rest);
    }

    /// Goes over `>`s and `From `; gives what is behind them, to be stored as it is.
    fn line_start<'a>(&mut self, piece: &'a [u8], mut matched: usize) -> &'a [u8] {
        let mut rest = piece;
        if matched == 0 {
            let marks = rest.iter().take_while(|byte| **byte == b'>').count();
            let (run, behind) = rest.split_at(marks);
            self.stored.extend_from_slice(run);
            rest = behind;
        }
        while let Some((byte, behind)) = rest.split_first() {
            if FROM.get(matched) != Some(byte) {
                self.at = At::Middle;
                self.release(matched);
                return rest;
            }
            rest = behind;
            matched += 1;
            if matched == FROM.len() {
                self.at = At::Middle;
                self.stored.push(b'>');
                self.quoted_count += 1;
                self.release(matched);
                return rest;
            }
        }
        self.at = At::Start(matched);
        rest
    }

    /// Stores what was held back of `From `.
    fn release(&mut self, matched: usize) {
        self.stored
            .extend_from_slice(FROM.get(..matched).unwrap_or_default());
    }

    fn release_held(&mut self) {
        if let At::Start(matched) = self.at {
            self.release(matched);
        }
        self.at = At::Start(0);
    }

    fn line_end(&mut self, end: End) {
        self.release_held();
        let ends = match (self.ends, end) {
            (Ends::Unknown | Ends::Lf, End::Lf) => Ends::Lf,
            (Ends::Unknown | Ends::Crlf, End::Crlf) => Ends::Crlf,
            (Ends::Lf, End::Crlf) => Ends::MixedLfFirst,
            (Ends::Crlf, End::Lf) => Ends::MixedCrlfFirst,
            (mixed, _) => mixed,
        };
        if ends != self.ends {
            if ends == Ends::MixedCrlfFirst {
                self.expand();
            }
            self.ends = ends;
        }
        self.ends_count += 1;
        if end == End::Crlf {
            self.crlf_count += 1;
            if ends != Ends::Crlf {
                self.stored.push(b'\r');
            }
        }
        self.stored.push(b'\n');
        if self.header_end.is_none() {
            if self.open {
                self.header.line_end();
            } else {
                self.header_end = Some(HeaderEnd {
                    len: self.stored_len(),
                    lines_count: self.lines_count(),
                });
            }
        }
        self.open = false;
    }

    /// Puts the CRs back: every line so far was ended by CRLF.
    fn expand(&mut self) {
        let before = self.stored.len();
        self.stored = expanded(&self.stored);
        let here = self.stored.len() - before;
        let taken = u64::from(self.lines_count()) - len_u64(here);
        self.taken_len += taken;
        self.expand_taken = taken > 0;
        if let Some(end) = &mut self.header_end {
            end.len += u64::from(end.lines_count);
        }
    }

    /// A line that is ours, ended like the message's first.
    pub(super) fn prepend(&mut self, line: &[u8]) {
        debug_assert!(
            self.stored.is_empty() && self.taken_len == 0,
            "it comes first"
        );
        self.stored.extend_from_slice(line);
        self.stored.push(b'\n');
        self.prepended_count += 1;
    }

    /// Length of the stored form so far.
    pub(super) fn stored_len(&self) -> u64 {
        self.taken_len + len_u64(self.stored.len())
    }

    /// Ended lines of the stored form so far.
    pub(super) fn lines_count(&self) -> u32 {
        self.ends_count + self.prepended_count
    }

    /// Ends the message; whether a final LF had to be added.
    pub(super) fn finish(&mut self) -> FinalLine {
        if std::mem::take(&mut self.cr_held) {
            self.content(b"\r");
        }
        self.release_held();
        if self.open {
            self.stored.push(b'\n');
            FinalLine::Ended
        } else {
            FinalLine::AsReceived
        }
    }

    /// Length of the header with its empty line, or of all there is.
    pub(super) fn header_len(&self) -> u64 {
        self.header_end.map_or(self.stored_len(), |end| end.len)
    }
}

/// Whether the last line had to be ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FinalLine {
    /// It was ended, or there is none.
    AsReceived,
    /// An LF was added.
    Ended,
}

/// A length in memory as one on disk.
pub(super) fn len_u64(len: usize) -> u64 {
    u64::try_from(len).expect("usize has at most 64 bits")
}

/// The next line without its LF, and what is behind it.
fn split_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (line, rest) = bytes.split_at_checked(memchr(b'\n', bytes)?)?;
    Some((line, rest.get(1..)?))
}

/// Of a whole line that has to be quoted, how many `>` stand in front of its `From `.
fn quotes_before_from(line: &[u8]) -> Option<usize> {
    if !matches!(line.first(), Some(b'F' | b'>')) {
        return None;
    }
    let marks = line.iter().take_while(|byte| **byte == b'>').count();
    let from = line.get(marks..).unwrap_or_default();
    from.starts_with(FROM).then_some(marks)
}

/// `bytes` with a CR in front of each LF.
pub(super) fn expanded(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + bytes.len() / 32 + 64);
    let mut rest = bytes;
    while let Some((line, behind)) = split_line(rest) {
        out.extend_from_slice(line);
        out.extend_from_slice(b"\r\n");
        rest = behind;
    }
    out.extend_from_slice(rest);
    out
}
