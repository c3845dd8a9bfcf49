//! Header fields that mail programs add to messages in an mbox for themselves: they become flags and
//! keywords, and are dropped, since they are the file's and not the message's. Documented in
//! ringpost(1) and OPERATING.md.
//!
//! `Status` (R read), `X-Status` (A answered, F flagged, D deleted, T draft), `X-Keywords`, and
//! without a meaning here `X-UID`, `X-IMAP` and `X-IMAPbase`; where lengths are trusted, the last
//! `Content-Length`.

use ringpost_engine::format::info::{ANSWERED, DELETED, DRAFT, FLAGGED, SEEN};
use ringpost_engine::request::is_keyword;

use super::Mail;

/// Fields are looked for in so many bytes of a header.
const HEADER_BYTES_MAX: usize = 1 << 20;

/// A message has at most as many keywords as a mailbox.
const KEYWORDS_MAX: usize = 64;

/// Whether the last `Content-Length` belongs to the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lengths {
    /// The flavour has them.
    OfTheFile,
    /// They are the message's.
    OfTheMessage,
}

/// What a message turned out to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Mail.
    Message,
    /// The pseudo message in which some servers keep data of the whole mailbox: not mail.
    Folder,
}

/// One field of a header: where it lies, its end included.
struct Field<'a> {
    name: &'a [u8],
    start: usize,
    value_at: usize,
    end: usize,
}

impl Field<'_> {
    /// Its value, continued lines and all.
    fn value<'a>(&self, message: &'a [u8]) -> &'a [u8] {
        let value = message.get(self.value_at..self.end).unwrap_or_default();
        value.trim_ascii()
    }
}

/// The fields up to the first empty line; none if the text does not begin with one.
fn fields(message: &[u8]) -> Vec<Field<'_>> {
    let header = message.get(..HEADER_BYTES_MAX).unwrap_or(message);
    let mut found: Vec<Field<'_>> = Vec::new();
    let mut at = 0;
    while let Some(rest) = header.get(at..).filter(|rest| !rest.is_empty()) {
        let end = at + memchr::memchr(b'\n', rest).map_or(rest.len(), |lf| lf + 1);
        let line = header.get(at..end).unwrap_or_default();
        let colon = memchr::memchr(b':', line);
        match (line.first(), found.last_mut(), colon) {
            _ if is_blank(line) => break,
            (Some(b' ' | b'\t'), Some(last), _) => last.end = end,
            (_, _, Some(colon)) => found.push(Field {
                name: line.get(..colon).unwrap_or_default().trim_ascii_end(),
                start: at,
                value_at: at + colon + 1,
                end,
            }),
            (_, None, None) => break,
            (_, Some(_), None) => {}
        }
        at = end;
    }
    found
}

/// Whether a line, with its end, is empty.
pub(super) fn is_blank(line: &[u8]) -> bool {
    matches!(line, b"\n" | b"\r\n")
}

/// The value of the last `Content-Length` in a header.
pub(super) fn content_length(header: &[u8]) -> Option<usize> {
    let found = fields(header);
    let last = found
        .iter()
        .rfind(|field| field.name.eq_ignore_ascii_case(b"Content-Length"))?;
    let value = last.value(header);
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    digits
        .then(|| std::str::from_utf8(value).ok()?.parse().ok())
        .flatten()
}

/// Takes the file's fields out of `mail.bytes` and their meaning into its flags and keywords.
pub fn take(mail: &mut Mail, lengths: Lengths) -> Kind {
    let mut drop: Vec<(usize, usize)> = Vec::new();
    // Anybody can send a message with one of them.
    let (mut has_field, mut has_subject) = (false, false);
    let mut length_at = None;
    let mut words: Vec<String> = Vec::new();
    let mut flags = 0;
    for field in fields(&mail.bytes) {
        let named = |name: &str| field.name.eq_ignore_ascii_case(name.as_bytes());
        let place = (field.start, field.end);
        let value = field.value(&mail.bytes);
        if named("Status") || named("X-Status") {
            flags |= flags_of(value, named("X-Status"));
            drop.push(place);
        } else if named("X-Keywords") {
            let value = String::from_utf8_lossy(value);
            words.extend(value.split_ascii_whitespace().map(ToOwned::to_owned));
            drop.push(place);
        } else if named("X-UID") || named("X-IMAP") || named("X-IMAPbase") {
            drop.push(place);
            has_field |= !named("X-UID");
        } else if named("Subject") {
            has_subject |= value.ends_with(b"FOLDER INTERNAL DATA");
        } else if named("Content-Length") {
            length_at = Some(place);
        }
    }
    if lengths == Lengths::OfTheFile {
        drop.extend(length_at);
        drop.sort_unstable();
    }
    for (start, end) in drop.into_iter().rev() {
        mail.bytes.drain(start..end);
    }
    mail.flags |= flags;
    words.retain(|word| is_keyword(word));
    for word in words {
        add_keyword(mail, word);
    }
    if has_field && has_subject {
        Kind::Folder
    } else {
        Kind::Message
    }
}

/// Adds a keyword that the message does not have yet; case does not tell them apart.
pub(super) fn add_keyword(mail: &mut Mail, word: String) {
    let known = mail
        .keywords
        .iter()
        .any(|known| known.eq_ignore_ascii_case(&word));
    if !known && mail.keywords.len() < KEYWORDS_MAX {
        mail.keywords.push(word);
    }
}

fn flags_of(value: &[u8], of_x_status: bool) -> u32 {
    value.iter().fold(0, |flags, letter| {
        flags
            | match letter {
                b'R' => SEEN,
                b'A' if of_x_status => ANSWERED,
                b'F' if of_x_status => FLAGGED,
                b'D' if of_x_status => DELETED,
                b'T' if of_x_status => DRAFT,
                _ => 0,
            }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(bytes: &[u8], lengths: Lengths) -> (Mail, Kind) {
        let mut mail = Mail {
            bytes: bytes.to_vec(),
            ..Mail::default()
        };
        let kind = take(&mut mail, lengths);
        (mail, kind)
    }

    #[test]
    fn what_the_file_added_becomes_flags_and_goes() {
        let (mail, kind) = taken(
            b"Subject: x\nStatus: RO\nX-Status: AF\nX-Keywords: $Forwarded junk JUNK\n (bad\nX-UID: 7\nContent-Length: 5\n\nStatus: R\n",
            Lengths::OfTheMessage,
        );
        assert_eq!(kind, Kind::Message);
        assert_eq!(mail.bytes, b"Subject: x\nContent-Length: 5\n\nStatus: R\n");
        assert_eq!(mail.flags, SEEN | ANSWERED | FLAGGED);
        assert_eq!(mail.keywords, ["$Forwarded", "junk"]);
        let (mail, _) = taken(
            b"Content-Length: 9\r\nA: b\r\nContent-Length: 5\r\n\r\n",
            Lengths::OfTheFile,
        );
        assert_eq!(mail.bytes, b"Content-Length: 9\r\nA: b\r\n\r\n");
    }

    #[test]
    fn data_of_a_folder_is_no_mail() {
        let text = b"From: MAILER-DAEMON\nSubject: DON'T DELETE THIS MESSAGE -- FOLDER INTERNAL DATA\nX-IMAP: 1 2\n\nx\n";
        assert_eq!(taken(text, Lengths::OfTheMessage).1, Kind::Folder);
        for text in [
            &b"Subject: Re: FOLDER INTERNAL DATA\n\nx\n"[..],
            b"X-IMAP: 1 2\nSubject: hello\n\nx\n",
            b"Subject: FOLDER INTERNAL DATA\nX-UID: 1\n\nx\n",
        ] {
            assert_eq!(taken(text, Lengths::OfTheMessage).1, Kind::Message);
        }
    }

    #[test]
    fn a_text_without_header_stays_as_it_is() {
        for text in [
            &b""[..],
            b"no header\nStatus: R\n",
            b"\nStatus: R\n",
            b"Status",
        ] {
            assert_eq!(taken(text, Lengths::OfTheFile).0.bytes, text);
        }
    }
}
