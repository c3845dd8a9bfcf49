//! The bytes behind DATA (RFC 5321 4.5.2): dots are taken off, and only CRLF.CRLF ends them. A bare
//! LF or CR is content, so `LF.LF` and `LF.CRLF` end nothing: what one program takes for the end and
//! another for text is how mail is smuggled. Nothing is copied.

use memchr::memmem;

/// Where in the data the next byte falls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Dots {
    /// At the beginning, or behind CRLF.
    LineStart,
    /// In a line.
    Text,
    /// In a line, behind a CR.
    Cr,
    /// Behind a dot at a line's start, which is held back.
    Dot,
    /// Behind a dot and a CR, both held back.
    DotCr,
}

/// What the next bytes of the data are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Piece<'a> {
    /// Bytes of the message.
    Content(&'a [u8]),
    /// The dot: the message is complete.
    End,
}

impl Dots {
    /// Takes bytes off the front of `input`; `None` when all are taken and more are needed.
    pub(super) fn next<'a>(&mut self, input: &mut &'a [u8]) -> Option<Piece<'a>> {
        loop {
            let (first, behind) = input.split_first()?;
            match (*self, *first) {
                (Self::LineStart, b'.') => {
                    *self = Self::Dot;
                    *input = behind;
                }
                (Self::Dot, b'\r') => {
                    *self = Self::DotCr;
                    *input = behind;
                }
                (Self::DotCr, b'\n') => {
                    *self = Self::LineStart;
                    *input = behind;
                    return Some(Piece::End);
                }
                (Self::DotCr, _) => {
                    *self = Self::Cr;
                    return Some(Piece::Content(b"\r"));
                }
                (Self::Cr, b'\n') => {
                    let (content, behind) = input.split_at(1);
                    *self = Self::LineStart;
                    *input = behind;
                    return Some(Piece::Content(content));
                }
                (Self::LineStart | Self::Text | Self::Cr | Self::Dot, _) => {
                    return Some(Piece::Content(self.text(input)));
                }
            }
        }
    }

    /// Text up to the next CRLF that has a dot behind it, or all there is.
    fn text<'a>(&mut self, input: &mut &'a [u8]) -> &'a [u8] {
        let len = memmem::find(input, b"\r\n.").map_or(input.len(), |at| at + 2);
        let (content, behind) = input.split_at(len);
        *input = behind;
        *self = match content {
            [.., b'\r', b'\n'] => Self::LineStart,
            [.., b'\r'] => Self::Cr,
            _ => Self::Text,
        };
        content
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The message, and what stands behind its dot; `None` if it has not come to its end.
    fn decode(wire: &[u8], piece_len: usize) -> (Vec<u8>, Option<Vec<u8>>) {
        let mut dots = Dots::LineStart;
        let mut message = Vec::new();
        let mut pieces = wire.chunks(piece_len.max(1));
        while let Some(mut input) = pieces.next() {
            while let Some(piece) = dots.next(&mut input) {
                match piece {
                    Piece::Content(content) => message.extend_from_slice(content),
                    Piece::End => {
                        let rest = pieces.flatten().copied();
                        return (message, Some(input.iter().copied().chain(rest).collect()));
                    }
                }
            }
        }
        (message, None)
    }

    #[test]
    fn only_crlf_dot_crlf_ends_the_data() {
        for (wire, message, rest) in [
            (&b".\r\nQUIT"[..], &b""[..], Some(&b"QUIT"[..])),
            (b"a\r\n.\r\n", b"a\r\n", Some(b"")),
            (b"..\r\n...x\r\n.\r\n", b".\r\n..x\r\n", Some(b"")),
            (b".x\r\n.\r\n.\r\n", b"x\r\n", Some(b".\r\n")),
            (
                b"a\n.\nb\n.\r\nc\r\n.\nd\r\n.\r\n",
                b"a\n.\nb\n.\r\nc\r\n\nd\r\n",
                Some(b""),
            ),
            (
                b"a\r.\r\nb\r\n.\r\r\n.\r\n",
                b"a\r.\r\nb\r\n\r\r\n",
                Some(b""),
            ),
            (b".\r.\r\n.\r\n", b"\r.\r\n", Some(b"")),
            (b"a\r\r\n.\r\n", b"a\r\r\n", Some(b"")),
            (b"a\r\n.\r", b"a\r\n", None),
            (b"a", b"a", None),
        ] {
            for piece_len in 1..=wire.len() {
                let (got, end) = decode(wire, piece_len);
                assert_eq!(got, message, "{} by {piece_len}", wire.escape_ascii());
                assert_eq!(
                    end.as_deref(),
                    rest,
                    "{} by {piece_len}",
                    wire.escape_ascii()
                );
            }
        }
    }

    proptest! {
        #[test]
        fn what_a_client_stuffs_comes_back(
            text in "([.]|\r\n|\r|\n|x){0,30}",
            piece_len in 1usize..8,
        ) {
            let message = format!("{text}\r\n");
            let stuffed = message.replace("\r\n.", "\r\n..");
            let dot = if stuffed.starts_with('.') { "." } else { "" };
            let wire = format!("{dot}{stuffed}.\r\nNOOP");
            let (got, rest) = decode(wire.as_bytes(), piece_len);
            prop_assert_eq!(got, message.into_bytes());
            prop_assert_eq!(rest, Some(b"NOOP".to_vec()));
        }
    }
}
