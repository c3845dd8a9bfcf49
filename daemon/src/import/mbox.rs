//! Reads an mbox of another program, message by message, with one message in memory at a time.
//!
//! A message begins at a `From_` line with a date, behind an empty line or in front of a header; where
//! lengths are trusted ([`Flavour::Mboxcl`], [`Flavour::Mboxcl2`]), a message with a
//! `Content-Length` at whose end the next one begins is taken by it. Quoting is undone as the
//! flavour has it, line ends stay as they are.

use std::io::{self, Read};

use super::bookkeeping::{Kind, Lengths, content_length, is_blank, take};
use super::flavour::{Flavour, begins_message, depth, quotes};
use super::from_line::{self, FROM, FromLine};
use super::window::Window;
use super::{MESSAGE_BYTES_MAX, Mail};

/// Bytes of a first line that an error shows.
const SHOWN_BYTES: usize = 60;

/// Why a file cannot be read as an mbox.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MboxError {
    /// It does not begin like one.
    #[error(
        "byte {offset}: an mbox begins with a line \"From SENDER DATE\", and here stands \"{found}\"; \
         if it is an mbox all the same, cut off what is in front of its first message"
    )]
    NotMbox {
        /// Of the line.
        offset: u64,
        /// Its beginning, escaped.
        found: String,
    },
    /// It cannot be read.
    #[error("byte {offset}: {source}")]
    Io {
        /// Where the walk was.
        offset: u64,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// What stands in an mbox.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Item {
    /// A message.
    Mail(Mail),
    /// Data of another server about the whole folder: not mail.
    FolderData,
    /// A message above [`MESSAGE_BYTES_MAX`]; it was passed over.
    TooLarge {
        /// Its length in the file.
        bytes: u64,
    },
}

/// The walk.
#[derive(Debug)]
pub struct Mbox<R> {
    window: Window<R>,
    flavour: Flavour,
    bytes_max: usize,
    /// Messages passed.
    passed: u64,
}

/// A message while its lines come.
struct Body {
    bytes: Vec<u8>,
    /// All of it, also what was not kept.
    len: u64,
    /// Bytes of its last line, if that is empty.
    blank_end: usize,
    above: Option<usize>,
    in_header: bool,
}

impl<R: Read> Mbox<R> {
    /// At the start of a file.
    pub fn new(input: R, flavour: Flavour) -> Self {
        Self {
            window: Window::new(input),
            flavour,
            bytes_max: MESSAGE_BYTES_MAX,
            passed: 0,
        }
    }

    /// With another limit for one message.
    #[must_use]
    pub fn with_bytes_max(mut self, bytes_max: usize) -> Self {
        self.bytes_max = bytes_max;
        self
    }

    /// Bytes of the file behind which the walk is.
    pub fn offset(&self) -> u64 {
        self.window.offset()
    }

    /// The next message and where its `From_` line stands; `None` at the end. An error is final.
    pub fn next_item(&mut self) -> Result<Option<(u64, Item)>, MboxError> {
        let item = self.step();
        item.map_err(|error| match error {
            Error::Not(found) => MboxError::NotMbox {
                offset: self.window.offset(),
                found,
            },
            Error::Io(source) => MboxError::Io {
                offset: self.window.offset(),
                source,
            },
        })
    }

    fn step(&mut self) -> Result<Option<(u64, Item)>, Error> {
        let Some((offset, from)) = self.begin()? else {
            return Ok(None);
        };
        self.passed += 1;
        let mut body = self.header()?;
        let by_length = self.flavour.has_lengths() && self.by_length(&mut body)?;
        if !by_length {
            while self.line(&mut body)? {}
            let keep = body.bytes.len().saturating_sub(body.blank_end);
            if body.len <= len_u64(self.bytes_max) {
                body.bytes.truncate(keep);
            }
        }
        if body.len > len_u64(self.bytes_max) {
            return Ok(Some((offset, Item::TooLarge { bytes: body.len })));
        }
        let mut mail = Mail {
            bytes: body.bytes,
            date: from.date,
            sender: from.sender,
            ..Mail::default()
        };
        let lengths = if self.flavour.has_lengths() {
            Lengths::OfTheFile
        } else {
            Lengths::OfTheMessage
        };
        Ok(Some(match take(&mut mail, lengths) {
            // Programs put it first; further down it is somebody's mail.
            Kind::Folder if self.passed == 1 => (offset, Item::FolderData),
            Kind::Folder | Kind::Message => (offset, Item::Mail(mail)),
        }))
    }

    /// Passes empty lines and the `From_` line.
    fn begin(&mut self) -> Result<Option<(u64, FromLine)>, Error> {
        loop {
            let line = self.window.line()?;
            let bytes = self.window.head(line.len);
            if line.len == 0 {
                return Ok(None);
            }
            if is_blank(bytes) {
                self.window.pass(line.len);
                continue;
            }
            let Some(from) = from_line::parse(bytes) else {
                let shown = bytes.get(..SHOWN_BYTES).unwrap_or(bytes);
                return Err(Error::Not(shown.escape_ascii().to_string()));
            };
            let offset = self.window.offset();
            self.window.pass(line.len);
            return Ok(Some((offset, from)));
        }
    }

    /// The lines up to and with the first empty one.
    fn header(&mut self) -> Result<Body, Error> {
        let mut body = Body {
            bytes: Vec::new(),
            len: 0,
            blank_end: 0,
            above: None,
            in_header: true,
        };
        while body.in_header && self.line(&mut body)? {}
        Ok(body)
    }

    /// Takes the next line, or a piece of one. `false`: the message is at its end.
    fn line(&mut self, body: &mut Body) -> Result<bool, Error> {
        let line = self.window.line()?;
        if line.len == 0 {
            return Ok(false);
        }
        let (count, from) = quotes(self.window.head(line.len));
        let mut below = 0;
        if from && line.whole {
            below = self.window.line_behind(line.len)?.len;
        }
        let bytes = self.window.head(line.len);
        let behind = self.window.behind(line.len);
        let behind = behind.get(..below).unwrap_or_default();
        let at_start = body.len == 0;
        let blank_above = at_start || body.blank_end > 0;
        if count == 0 && from && begins_message(bytes, behind, blank_above) {
            return Ok(false);
        }
        let quoted = from && is_quoted(self.flavour, count, body.above, depth(behind));
        body.blank_end = if is_blank(bytes) { line.len } else { 0 };
        body.above = depth(bytes);
        let text = bytes.get(usize::from(quoted)..).unwrap_or_default();
        body.in_header &= !is_blank(bytes);
        body.put(text, self.bytes_max);
        self.window.pass(line.len);
        // The rest of a line that is longer than is looked at is text, whatever it begins with.
        let mut ended = line.whole;
        while !ended {
            let line = self.window.line()?;
            body.put(self.window.head(line.len), self.bytes_max);
            self.window.pass(line.len);
            ended = line.whole || line.len == 0;
        }
        Ok(true)
    }

    /// Takes the body by its length, if that is right.
    fn by_length(&mut self, body: &mut Body) -> Result<bool, Error> {
        if body.blank_end == 0 {
            return Ok(false);
        }
        let Some(len) = content_length(&body.bytes).filter(|len| *len <= self.bytes_max) else {
            return Ok(false);
        };
        if self.window.ensure(len)? < len {
            return Ok(false);
        }
        let mut behind = len;
        for _ in 0..3 {
            let line = self.window.line_behind(behind)?;
            let rest = self.window.behind(behind);
            let bytes = rest.get(..line.len).unwrap_or_default();
            if line.len == 0 || bytes.starts_with(FROM) && from_line::parse(bytes).is_some() {
                self.take_body(len, body);
                return Ok(true);
            }
            if !is_blank(bytes) {
                return Ok(false);
            }
            behind += line.len;
        }
        Ok(false)
    }

    fn take_body(&mut self, len: usize, body: &mut Body) {
        let text = self.window.head(len);
        if self.flavour == Flavour::Mboxcl2 {
            body.put(text, self.bytes_max);
        } else {
            let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
            let mut above = None;
            for (at, line) in lines.iter().enumerate() {
                let (count, from) = quotes(line);
                let below = lines.get(at + 1).and_then(|line| depth(line));
                let quoted = from && is_quoted(self.flavour, count, above, below);
                let line_text = line.get(usize::from(quoted)..).unwrap_or_default();
                body.put(line_text, self.bytes_max);
                above = depth(line);
            }
        }
        self.window.pass(len);
    }
}

impl Body {
    fn put(&mut self, text: &[u8], bytes_max: usize) {
        self.len += len_u64(text.len());
        if self.len <= len_u64(bytes_max) {
            self.bytes.extend_from_slice(text);
        } else {
            self.bytes = Vec::new();
        }
    }
}

/// Whether a line of `count` `>` and `From ` has one that the writer added.
fn is_quoted(flavour: Flavour, count: usize, above: Option<usize>, below: Option<usize>) -> bool {
    match flavour {
        Flavour::Mboxrd => count > 0,
        // A text that began so itself shows by its neighbours in a quotation.
        Flavour::Mboxo | Flavour::Mboxcl => count == 1 && above != Some(1) && below != Some(1),
        Flavour::Mboxcl2 => false,
    }
}

enum Error {
    Not(String),
    Io(io::Error),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn len_u64(len: usize) -> u64 {
    u64::try_from(len).expect("usize has at most 64 bits")
}

#[cfg(test)]
mod tests;
