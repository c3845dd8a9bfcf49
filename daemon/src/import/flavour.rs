//! Which mbox flavour a file has, by evidence in it (mail.md 6.3).
//!
//! * `Content-Length`: in nearly every message, and where it points to, the next `From_` line or the
//!   end of the file stands: mboxcl or mboxcl2. Then `From ` lines that stand unquoted inside such
//!   bodies say mboxcl2.
//! * `>From ` alone says nothing, and needs nothing: mboxrd and mboxo are undone alike.
//! * `>>From ` and longer: a text that was quoted in a mail has neighbours with as many `>`. If they
//!   have one less, the writer added one (mboxrd); if they have as many, it did not (mboxo).
//!   Without neighbours that speak, mboxrd: it is the flavour that does such lines at all.

use std::io::{Read, Result};

use super::bookkeeping::{content_length, is_blank};
use super::from_line::{self, FROM};
use super::window::Window;

/// A header is looked at up to here for a `Content-Length`.
const HEADER_BYTES_MAX: usize = 256 << 10;

/// How far behind its place a `From_` line may stand: an empty line or two.
const SLACK_BYTES: u64 = 4;

/// How lines that begin with "From " are told from the start of the next message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flavour {
    /// `>*From ` gets one more `>`: undone exactly.
    Mboxrd,
    /// `From ` gets a `>`: undone but for text that began with `>From ` before.
    Mboxo,
    /// As mboxo, with `Content-Length`.
    Mboxcl,
    /// `Content-Length` and no quoting.
    Mboxcl2,
}

impl Flavour {
    /// As on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mboxrd => "mboxrd",
            Self::Mboxo => "mboxo",
            Self::Mboxcl => "mboxcl",
            Self::Mboxcl2 => "mboxcl2",
        }
    }

    /// Whether lengths are trusted.
    pub(super) const fn has_lengths(self) -> bool {
        matches!(self, Self::Mboxcl | Self::Mboxcl2)
    }
}

/// What was seen in a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Evidence {
    /// `From_` lines that begin a message.
    pub messages: u64,
    /// `Content-Length` that points to the next message or the end.
    pub lengths_right: u64,
    /// `Content-Length` that points elsewhere.
    pub lengths_wrong: u64,
    /// `From_` lines inside a body whose length is right.
    pub inside: u64,
    /// Lines `>From `.
    pub quoted_once: u64,
    /// Lines `>>From ` and longer.
    pub quoted_more: u64,
    /// Of them, those that say that a `>` was added to what had some.
    pub says_rd: u64,
    /// Quoted lines that say that none was added.
    pub says_o: u64,
    /// `>From ` in a text that is not a quotation.
    pub says_added: u64,
}

impl Evidence {
    /// The flavour, and why, as a sentence for the report.
    pub fn flavour(&self) -> (Flavour, String) {
        let Self {
            messages,
            lengths_right: right,
            lengths_wrong: wrong,
            ..
        } = *self;
        if right > 0 && right * 10 >= messages * 9 && wrong * 10 <= right {
            let lengths =
                format!("{right} of {messages} messages have a Content-Length that is right");
            return if self.inside == 0 && self.says_added > self.says_o {
                (
                    Flavour::Mboxcl,
                    format!("{lengths}, and lines \">From \" are quoted"),
                )
            } else {
                (Flavour::Mboxcl2, lengths)
            };
        }
        match (self.quoted_once, self.quoted_more) {
            (0, 0) => (
                Flavour::Mboxrd,
                "no line is quoted, so that mboxrd and mboxo are the same".to_owned(),
            ),
            (once, 0) if self.says_o <= self.says_added => (
                Flavour::Mboxrd,
                format!(
                    "{once} lines \">From \" and none with more, so that mboxrd and mboxo are undone alike"
                ),
            ),
            (_, more) if self.says_o > self.says_rd.max(self.says_added) => (
                Flavour::Mboxo,
                format!(
                    "{} quoted lines stand among lines with as many \">\" ({more} with two or more)",
                    self.says_o
                ),
            ),
            (_, more) => (
                Flavour::Mboxrd,
                format!(
                    "{more} lines \">>From \", of which {} stand among lines with one \">\" less",
                    self.says_rd
                ),
            ),
        }
    }
}

/// `>` in front of a line, and whether `From ` follows.
pub(super) fn quotes(line: &[u8]) -> (usize, bool) {
    let count = line.iter().take_while(|byte| **byte == b'>').count();
    let behind = line.get(count..).unwrap_or_default();
    (count, behind.starts_with(FROM))
}

/// How deep in a quotation a neighbour is. An empty line does not say; nor does one that is quoted
/// with a blank behind its `>`, since a line beside it would be `> From `.
pub(super) fn depth(line: &[u8]) -> Option<usize> {
    let (count, _) = quotes(line);
    let blank = line.get(count) == Some(&b' ');
    (!line.trim_ascii().is_empty() && (count == 0 || !blank)).then_some(count)
}

/// Where a walk is in a message.
#[derive(Default)]
struct Walk {
    evidence: Evidence,
    /// Of the message at hand; `None` behind its empty line.
    header: Option<Vec<u8>>,
    /// Where its `Content-Length` says that it ends.
    target: Option<u64>,
    /// `From_` lines passed on the way there.
    passed: u64,
    above: Option<usize>,
}

/// Reads a file, or the beginning of one.
pub fn survey(input: impl Read) -> Result<Evidence> {
    let mut window = Window::new(input);
    let mut walk = Walk::default();
    let mut at_start = true;
    let mut blank_above = true;
    loop {
        let line = window.line()?;
        if line.len == 0 {
            break;
        }
        let below = if at_start && quotes(window.head(line.len)) != (0, false) && line.whole {
            let next = window.line_behind(line.len)?;
            Some(next.len)
        } else {
            None
        };
        let offset = window.offset();
        let bytes = window.head(line.len);
        if at_start {
            let behind = window.behind(line.len);
            let behind = behind.get(..below.unwrap_or(0)).unwrap_or_default();
            walk.line(offset, bytes, behind, blank_above);
            blank_above = is_blank(bytes);
            walk.above = depth(bytes);
        }
        at_start = line.whole && bytes.ends_with(b"\n");
        window.pass(line.len);
    }
    walk.end(window.offset());
    Ok(walk.evidence)
}

impl Walk {
    fn line(&mut self, offset: u64, line: &[u8], below: &[u8], blank_above: bool) {
        let (count, from) = quotes(line);
        let begins = count == 0 && from && begins_message(line, below, blank_above);
        if begins && self.landed(offset, true) {
            self.evidence.messages += 1;
            self.header = Some(Vec::new());
            return;
        }
        if !begins {
            self.landed(offset, false);
        }
        if let Some(header) = &mut self.header {
            if is_blank(line) {
                let found = content_length(header).and_then(|len| u64::try_from(len).ok());
                let end = offset + u64::try_from(line.len()).unwrap_or(u64::MAX);
                self.target = found.and_then(|len| end.checked_add(len));
                self.header = None;
            } else if header.len() + line.len() <= HEADER_BYTES_MAX {
                header.extend_from_slice(line);
            }
        }
        if from && count > 0 {
            self.quoted(count, depth(below));
        }
    }

    /// Compares where the walk is with where the length points. Whether a `From_` line here begins a
    /// message.
    fn landed(&mut self, offset: u64, begins: bool) -> bool {
        let Some(target) = self.target else {
            return begins;
        };
        if begins && offset < target {
            self.passed += 1;
            return false;
        }
        let near = offset >= target && offset - target <= SLACK_BYTES;
        if near && begins {
            self.evidence.lengths_right += 1;
            self.evidence.inside += self.passed;
        } else if offset > target.saturating_add(SLACK_BYTES) {
            self.evidence.lengths_wrong += 1;
            self.evidence.messages += self.passed;
        } else {
            return begins;
        }
        self.target = None;
        self.passed = 0;
        begins
    }

    /// The end of the input: a length may point here.
    fn end(&mut self, offset: u64) {
        let Some(target) = self.target else {
            return;
        };
        if offset >= target && offset - target <= SLACK_BYTES {
            self.evidence.lengths_right += 1;
            self.evidence.inside += self.passed;
        } else {
            self.evidence.lengths_wrong += 1;
            self.evidence.messages += self.passed;
        }
    }

    fn quoted(&mut self, count: usize, below: Option<usize>) {
        let evidence = &mut self.evidence;
        let near = |depth: usize| self.above == Some(depth) || below == Some(depth);
        if count == 1 {
            evidence.quoted_once += 1;
            evidence.says_added += u64::from(near(0) && !near(1));
        } else {
            evidence.quoted_more += 1;
            evidence.says_rd += u64::from(near(count - 1) && !near(count));
        }
        evidence.says_o += u64::from(near(count) && !near(count - 1));
    }
}

/// Whether a `From_` line begins a message: behind an empty line (or at the start), or in front of a
/// header, since not all writers put an empty line behind a message.
pub(super) fn begins_message(line: &[u8], below: &[u8], blank_above: bool) -> bool {
    from_line::parse(line).is_some() && (blank_above || is_field(below))
}

/// Whether a line looks like a header field.
fn is_field(line: &[u8]) -> bool {
    let name = line
        .iter()
        .take_while(|byte| byte.is_ascii_graphic() && **byte != b':')
        .count();
    name > 0 && line.get(name) == Some(&b':')
}

#[cfg(test)]
mod tests;
