//! What is taken off the front of standard input: an mbox envelope line, and nothing else.
//!
//! Some MTAs (Postfix's `mailbox_command`, sendmail's flag `n` left out) put a `From_` line before
//! the message. It is an envelope and is cut off (mail.md 3.1). `From : x@y` is an old form of a
//! header field and stays. Every other byte passes as it is; in doubt nothing is cut.

/// Blanks behind `From` that are looked through for a colon. Real lines have one to four; beyond
/// this the line is content, so that nothing can be lost by a guess.
const BLANKS_MAX: usize = 256;

const MARK: &[u8] = b"From ";

/// Takes the envelope line off a stream of chunks, holding at most a few hundred bytes.
#[derive(Debug)]
pub struct EnvelopeCut {
    state: State,
    held: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Everything so far matches `From ` and perhaps more blanks; it is held.
    Matching,
    /// In an envelope line, up to its LF.
    Cutting,
    /// The rest is the message.
    Passing,
}

impl EnvelopeCut {
    /// At the first byte of the input.
    pub fn new() -> Self {
        Self {
            state: State::Matching,
            held: Vec::new(),
        }
    }

    /// Cuts nothing.
    pub fn passing() -> Self {
        Self {
            state: State::Passing,
            held: Vec::new(),
        }
    }

    /// The message bytes that `chunk` adds: first the returned vector (what was held back, nearly
    /// always empty), then the returned rest of `chunk`.
    pub fn push<'a>(&mut self, chunk: &'a [u8]) -> (Vec<u8>, &'a [u8]) {
        let mut rest = chunk;
        while self.state == State::Matching {
            let Some((&byte, tail)) = rest.split_first() else {
                return (Vec::new(), rest);
            };
            match self.judge(byte) {
                State::Matching => {
                    self.held.push(byte);
                    rest = tail;
                }
                State::Cutting => {
                    self.held = Vec::new();
                    self.state = State::Cutting;
                }
                State::Passing => {
                    self.state = State::Passing;
                    return (std::mem::take(&mut self.held), rest);
                }
            }
        }
        if self.state == State::Cutting {
            let Some(end) = rest.iter().position(|&byte| byte == b'\n') else {
                return (Vec::new(), &[]);
            };
            self.state = State::Passing;
            rest = rest.get(end + 1..).unwrap_or_default();
        }
        (Vec::new(), rest)
    }

    /// At the end of the input: what is still held, unless it is `From ` and nothing more.
    pub fn finish(self) -> Vec<u8> {
        if self.state == State::Matching && self.held.len() < MARK.len() {
            return self.held;
        }
        Vec::new()
    }

    fn judge(&self, byte: u8) -> State {
        match MARK.get(self.held.len()) {
            Some(&want) if want == byte => State::Matching,
            Some(_) => State::Passing,
            None if byte == b':' || self.held.len() >= BLANKS_MAX => State::Passing,
            None if byte == b' ' || byte == b'\t' => State::Matching,
            None => State::Cutting,
        }
    }
}

impl Default for EnvelopeCut {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The message left of `input` when it arrives in chunks of `size` bytes.
    fn cut(input: &[u8], size: usize) -> Vec<u8> {
        let mut cut = EnvelopeCut::new();
        let mut message = Vec::new();
        for chunk in input.chunks(size) {
            let (held, rest) = cut.push(chunk);
            message.extend_from_slice(&held);
            message.extend_from_slice(rest);
        }
        message.extend_from_slice(&cut.finish());
        message
    }

    #[test]
    fn only_an_envelope_line_is_cut_off() {
        let long = [b"From ".as_slice(), &[b' '; 300], b"x\nbody\n"].concat();
        let rows: &[(&[u8], &[u8])] = &[
            (
                b"From bob Mon Jan  1 00:00:00 2024\nSubject: x\n\nhi\n",
                b"Subject: x\n\nhi\n",
            ),
            (b"From bob\r\nA: b\r\n", b"A: b\r\n"),
            (b"From  bob\n", b""),
            (b"From \nA: b\n", b"A: b\n"),
            (b"From bob without an end", b""),
            (b"From ", b""),
            (b"From a\nFrom b\n", b"From b\n"),
            (b"From : x@y\n\n", b"From : x@y\n\n"),
            (b"From \t : x@y\n\n", b"From \t : x@y\n\n"),
            (b"From: x@y\n\n", b"From: x@y\n\n"),
            (b"From\tx\n", b"From\tx\n"),
            (b"From", b"From"),
            (b"Fro\nm", b"Fro\nm"),
            (b">From x\n", b">From x\n"),
            (b"\nFrom x\n", b"\nFrom x\n"),
            (b"", b""),
            (b"\0\xff", b"\0\xff"),
            (&long, &long),
        ];
        for (input, want) in rows {
            for size in 1..=input.len().max(1) {
                assert_eq!(cut(input, size), *want, "{input:?} in chunks of {size}");
            }
        }
    }
}
