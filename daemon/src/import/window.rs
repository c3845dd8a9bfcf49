//! Bytes of an input with a look ahead: a buffer that grows to what is asked for and no further.

use std::io::{ErrorKind, Read, Result};

/// One read.
const READ_BYTES: usize = 64 << 10;

/// Lines are told apart up to here; a longer one is text, whatever it begins with.
pub(super) const LINE_BYTES_MAX: usize = 64 << 10;

/// The input from where it stands.
#[derive(Debug)]
pub(super) struct Window<R> {
    input: R,
    buffer: Vec<u8>,
    start: usize,
    offset: u64,
    ended: bool,
}

/// A line, or as much of one as is looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Line {
    /// With its end; 0 at the end of the input.
    pub(super) len: usize,
    /// Whether it is all of it.
    pub(super) whole: bool,
}

impl<R: Read> Window<R> {
    pub(super) fn new(input: R) -> Self {
        Self {
            input,
            buffer: Vec::new(),
            start: 0,
            offset: 0,
            ended: false,
        }
    }

    /// Bytes passed so far.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// What is in the buffer.
    pub(super) fn rest(&self) -> &[u8] {
        self.buffer.get(self.start..).unwrap_or_default()
    }

    /// The first `len` bytes of it.
    pub(super) fn head(&self, len: usize) -> &[u8] {
        let rest = self.rest();
        rest.get(..len).unwrap_or(rest)
    }

    /// What lies behind the first `len` bytes, as far as it is in the buffer.
    pub(super) fn behind(&self, len: usize) -> &[u8] {
        self.rest().get(len..).unwrap_or_default()
    }

    /// Reads until `len` bytes are in the buffer or the input ends. Returns how many are.
    pub(super) fn ensure(&mut self, len: usize) -> Result<usize> {
        while !self.ended && self.rest().len() < len {
            if self.start > 0 {
                self.buffer.drain(..self.start);
                self.start = 0;
            }
            let had = self.buffer.len();
            let want = READ_BYTES.max(len - had);
            self.buffer.resize(had + want.min(8 * READ_BYTES), 0);
            let room = self.buffer.get_mut(had..).unwrap_or_default();
            let read = loop {
                match self.input.read(room) {
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    other => break other,
                }
            };
            let read = match read {
                Ok(read) => read,
                Err(error) => {
                    self.buffer.truncate(had);
                    return Err(error);
                }
            };
            self.buffer.truncate(had + read);
            self.ended = read == 0;
        }
        Ok(self.rest().len())
    }

    /// Goes on behind the first `len` bytes.
    pub(super) fn pass(&mut self, len: usize) {
        let len = len.min(self.rest().len());
        self.start += len;
        self.offset += u64::try_from(len).unwrap_or(u64::MAX);
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
            // What one long message needed is not kept for all that follow.
            self.buffer.shrink_to(8 * READ_BYTES);
        }
    }

    /// The line that begins here.
    pub(super) fn line(&mut self) -> Result<Line> {
        self.line_behind(0)
    }

    /// The line that begins `at` bytes from here.
    pub(super) fn line_behind(&mut self, at: usize) -> Result<Line> {
        let mut look = 512;
        loop {
            let here = self.ensure(at + look)?;
            let rest = self.behind(at);
            let rest = rest.get(..LINE_BYTES_MAX).unwrap_or(rest);
            if let Some(lf) = memchr::memchr(b'\n', rest) {
                return Ok(Line {
                    len: lf + 1,
                    whole: true,
                });
            }
            let ended = here < at + look;
            if ended || rest.len() >= LINE_BYTES_MAX {
                return Ok(Line {
                    len: rest.len(),
                    whole: ended && at + rest.len() == here,
                });
            }
            look *= 4;
        }
    }
}
