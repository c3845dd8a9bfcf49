//! Walks a segment, or any mbox, and says where each message lies and whether it is whole. For
//! check, rebuild and export; the walk needs no index and goes on behind damage.
//!
//! A line that begins with `From ` starts a message: in a segment all others are quoted. The store
//! line behind it gives length and CRC, which are proved by the bytes; a `From ` line before that
//! length is reached proves the length, or what was between, wrong. Behind a message there is an
//! empty line and then the next, or the end; anything else is reported as junk, and the walk goes on
//! at the next `From ` that stands behind an LF or a NUL (lost sectors read as zeros).

use memchr::memmem::Finder;

use super::FROM;
use super::from_line::FROM_LINE_BYTES_MAX;
use crate::format::crc;
use crate::format::store_line::{STORE_LINE_BYTES, StoreLine};

/// What the walk meets, in the order of the file and without gaps but for empty lines.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Item {
    /// A message.
    Message(Found),
    /// Bytes that belong to no message.
    Junk {
        /// Bytes from the start of the file.
        offset: u64,
        /// How many.
        len: u64,
    },
}

/// A message in an mbox.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// Of its `From_` line: bytes from the start of the file.
    pub offset: u64,
    /// Bytes of `From_` line and store line, if it has one.
    pub prefix_len: u64,
    /// Bytes of the message behind the prefix, without the empty line that ends it.
    pub body_len: u64,
    /// Its store line, if it has one that can be read.
    pub store: Option<StoreLine>,
    /// Whether it is all there.
    pub state: State,
}

/// Whether a message is all there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Length and CRC are those of the store line.
    Whole,
    /// The length is that of the store line, the CRC is not.
    Changed,
    /// The next message, or the end of the file, comes before the store line's length is reached.
    Short,
    /// There is no store line to prove it by: another program's mbox, or a damaged line.
    Unproved,
}

/// Where the walk stands.
#[derive(Debug)]
enum At {
    /// In front of, or looking for, a `From_` line; what was passed since this offset is junk.
    Seek { junk_from: u64 },
    /// At a `From_` line.
    Prefix,
    /// In a message with a store line.
    Proved {
        found: Found,
        store: StoreLine,
        crc: u32,
    },
    /// In a message without.
    Unproved(Found),
    /// Where the empty line behind a message is.
    Behind,
}

/// Whether a step got on, or waits for bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    On,
    Wait,
}

/// Whether bytes may follow.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    Reached,
}

/// The walk, over pieces of any size. Keeps little more than one prefix in memory, and copies no
/// more of a piece than that.
#[derive(Debug)]
pub struct Scanner {
    at: At,
    /// Bytes that were pushed and not passed.
    held: Vec<u8>,
    /// Where the first byte that was not passed lies in the file.
    offset: u64,
    /// The two bytes in front of it.
    before: [u8; 2],
    /// Finds `From `: to prepare the search takes longer than a short message.
    from: Finder<'static>,
}

impl Default for Scanner {
    fn default() -> Self {
        Self::new()
    }
}

/// What of a `From ` can stand at the end of a piece without being seen.
const UNSEEN: usize = FROM.len() - 1;

/// With so many bytes in front of it the walk gets on, whatever they are: a whole prefix.
const AHEAD: usize = FROM_LINE_BYTES_MAX + STORE_LINE_BYTES;
const _: () = assert!(AHEAD > UNSEEN);

impl Scanner {
    /// At the start of a file.
    pub fn new() -> Self {
        Self {
            at: At::Seek { junk_from: 0 },
            held: Vec::new(),
            offset: 0,
            before: [b'\n'; 2],
            from: Finder::new(FROM),
        }
    }

    /// Takes the next bytes of the file; appends what has come to its end.
    pub fn push(&mut self, piece: &[u8], out: &mut Vec<Item>) {
        let mut piece = piece;
        while !self.held.is_empty() && !piece.is_empty() {
            let (next, behind) = piece.split_at(piece.len().min(AHEAD));
            let mut held = std::mem::take(&mut self.held);
            held.extend_from_slice(next);
            let left = self.walk(&held, End::Open, out).len();
            if let Some(passed) = next.len().checked_sub(left) {
                piece = piece.get(passed..).unwrap_or_default();
                held.clear();
            } else {
                piece = behind;
                held.drain(..held.len() - left);
            }
            self.held = held;
        }
        let left = self.walk(piece, End::Open, out);
        self.held.extend_from_slice(left);
    }

    /// The file has ended; appends the rest.
    pub fn finish(mut self, out: &mut Vec<Item>) {
        let held = std::mem::take(&mut self.held);
        self.walk(&held, End::Reached, out);
    }

    /// Goes as far as it can; gives the bytes that were not passed.
    fn walk<'a>(&mut self, bytes: &'a [u8], end: End, out: &mut Vec<Item>) -> &'a [u8] {
        let mut rest = bytes;
        while self.step(&mut rest, end, out) == Step::On {}
        rest
    }

    fn step(&mut self, rest: &mut &[u8], end: End, out: &mut Vec<Item>) -> Step {
        match std::mem::replace(&mut self.at, At::Behind) {
            At::Seek { junk_from } => self.seek(rest, junk_from, end, out),
            At::Prefix => self.prefix(rest, end),
            At::Proved { found, store, crc } => self.proved(rest, (found, store, crc), end, out),
            At::Unproved(found) => self.unproved(rest, found, end, out),
            At::Behind => self.behind(rest, end),
        }
    }

    /// Passes `len` bytes of the rest; gives them.
    fn pass<'a>(&mut self, rest: &mut &'a [u8], len: usize) -> &'a [u8] {
        let (passed, behind) = rest.split_at(len.min(rest.len()));
        self.before = match passed {
            [.., one, two] => [*one, *two],
            [one] => [self.before[1], *one],
            [] => self.before,
        };
        *rest = behind;
        self.offset += len_u64(passed.len());
        passed
    }

    /// The first `From ` at a line's start in the first `len` bytes of the rest.
    fn boundary(&self, rest: &[u8], len: usize, breaks: &[u8]) -> Option<usize> {
        let rest = rest.get(..len).unwrap_or(rest);
        self.from.find_iter(rest).find(|at| {
            let before = at.checked_sub(1).and_then(|before| rest.get(before));
            breaks.contains(before.unwrap_or(&self.before[1]))
        })
    }

    fn seek(&mut self, rest: &mut &[u8], junk_from: u64, end: End, out: &mut Vec<Item>) -> Step {
        let found = self.boundary(rest, usize::MAX, b"\n\0");
        self.pass(rest, found.unwrap_or(plain_len(rest, end)));
        if found.is_none() && (end == End::Open || self.offset == junk_from) {
            self.at = At::Seek { junk_from };
            return Step::Wait;
        }
        if self.offset > junk_from {
            out.push(Item::Junk {
                offset: junk_from,
                len: self.offset - junk_from,
            });
        }
        self.at = match found {
            Some(_) => At::Prefix,
            None => At::Seek {
                junk_from: self.offset,
            },
        };
        Step::On
    }

    fn prefix(&mut self, rest: &mut &[u8], end: End) -> Step {
        let start = rest.get(..FROM_LINE_BYTES_MAX).unwrap_or(rest);
        let complete = end == End::Reached || rest.len() >= AHEAD;
        let Some(lf) = memchr::memchr(b'\n', start) else {
            if !complete {
                self.at = At::Prefix;
                return Step::Wait;
            }
            self.at = At::Seek {
                junk_from: self.offset,
            };
            self.pass(rest, FROM.len());
            return Step::On;
        };
        let behind = rest.get(lf + 1..).unwrap_or_default();
        if !complete && behind.len() < STORE_LINE_BYTES {
            self.at = At::Prefix;
            return Step::Wait;
        }
        let store = StoreLine::decode(behind).ok();
        let prefix_len = lf + 1 + store.map_or(0, |_line| STORE_LINE_BYTES);
        let found = Found {
            offset: self.offset,
            prefix_len: len_u64(prefix_len),
            body_len: 0,
            store,
            state: State::Unproved,
        };
        self.pass(rest, prefix_len);
        self.at = match store {
            Some(store) => At::Proved {
                found,
                store,
                crc: 0,
            },
            None => At::Unproved(found),
        };
        Step::On
    }

    fn proved(
        &mut self,
        rest: &mut &[u8],
        (mut found, store, crc): (Found, StoreLine, u32),
        end: End,
        out: &mut Vec<Item>,
    ) -> Step {
        let left = u64::from(store.stored_len) - found.body_len;
        let here = rest.len();
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        let window = left.saturating_add(UNSEEN).min(here);
        let boundary = self.boundary(rest, window, b"\n").filter(|at| *at < left);
        let all = window < here || left.saturating_add(UNSEEN) == here || end == End::Reached;
        let len = match boundary {
            Some(at) => at,
            None if all => left.min(here),
            None => plain_len(rest, end).min(left),
        };
        let crc = crc::extend(crc, self.pass(rest, len));
        found.body_len += len_u64(len);
        if boundary.is_none() && !all {
            self.at = At::Proved { found, store, crc };
            return Step::Wait;
        }
        found.state = match len == left {
            true if crc == store.stored_crc => State::Whole,
            true => State::Changed,
            false => State::Short,
        };
        self.at = match found.state {
            State::Short => At::Seek {
                junk_from: self.offset,
            },
            _ => At::Behind,
        };
        out.push(Item::Message(found));
        Step::On
    }

    fn unproved(
        &mut self,
        rest: &mut &[u8],
        mut found: Found,
        end: End,
        out: &mut Vec<Item>,
    ) -> Step {
        let boundary = self.boundary(rest, usize::MAX, b"\n");
        let len = boundary.unwrap_or(plain_len(rest, end));
        self.pass(rest, len);
        found.body_len += len_u64(len);
        if boundary.is_none() && end == End::Open {
            self.at = At::Unproved(found);
            return Step::Wait;
        }
        if found.body_len > 0 && self.before == [b'\n'; 2] {
            found.body_len -= 1;
        }
        out.push(Item::Message(found));
        self.at = At::Seek {
            junk_from: self.offset,
        };
        Step::On
    }

    fn behind(&mut self, rest: &mut &[u8], end: End) -> Step {
        match rest.first() {
            None if end == End::Open => {
                self.at = At::Behind;
                return Step::Wait;
            }
            Some(b'\n') => {
                self.pass(rest, 1);
            }
            _ => {}
        }
        self.at = At::Seek {
            junk_from: self.offset,
        };
        Step::On
    }
}

/// Bytes that can be passed when no boundary was found in the rest.
fn plain_len(rest: &[u8], end: End) -> usize {
    let unseen = if end == End::Open { UNSEEN } else { 0 };
    rest.len().saturating_sub(unseen)
}

fn len_u64(len: usize) -> u64 {
    u64::try_from(len).expect("usize has at most 64 bits")
}

/// A whole file at once.
pub fn scan(file: &[u8]) -> Vec<Item> {
    let mut out = Vec::new();
    let mut scanner = Scanner::new();
    scanner.push(file, &mut out);
    scanner.finish(&mut out);
    out
}

#[cfg(test)]
mod tests;
