//! One message in its segment: `From_` line, store line, stored bytes, the empty line behind.

use memchr::memchr;
use ringpost_netproto::id::{MailboxId, WallNs};

use super::tree::Window;
use crate::error::{CorruptReason, IoError};
use crate::format::crc;
use crate::format::info::{Msg, OWN_FILE};
use crate::format::store_line::{STORE_LINE_BYTES, STORE_LINE_FLAGS, StoreLine};
use crate::mbox::from_line;

/// What does not hold of a message's bytes, and where; or the file could not be read.
pub(crate) enum Bad {
    At(u64, CorruptReason),
    Io(IoError),
}

impl From<IoError> for Bad {
    fn from(error: IoError) -> Self {
        Self::Io(error)
    }
}

/// Checks the message that `msg` says is at `msg.offset`.
pub(crate) fn message(window: &mut Window<'_>, msg: &Msg, uidvalidity: u32) -> Result<(), Bad> {
    let at = msg.offset;
    let skip = usize::from(msg.skip);
    let bytes = window.at(at, skip)?;
    if bytes.len() < skip {
        return Err(Bad::At(at, CorruptReason::Truncated));
    }
    prefix(bytes, msg, Some(uidvalidity))
        .map_err(|(offset, reason)| Bad::At(at + offset, reason))?;
    let stored_at = at + u64::from(msg.skip);
    stored(window, stored_at, msg)?;
    let end = stored_at + u64::from(msg.stored_len);
    match window.at(end, 1)? {
        b"\n" => Ok(()),
        [] => Err(Bad::At(end, CorruptReason::Truncated)),
        _ => Err(Bad::At(
            end,
            CorruptReason::Value("no empty line behind a message"),
        )),
    }
}

/// Checks `From_` line and store line; the offset of an error counts from their start.
/// `uidvalidity` is that of the mailbox, if it is known.
pub(crate) fn prefix(
    bytes: &[u8],
    msg: &Msg,
    uidvalidity: Option<u32>,
) -> Result<(), (u64, CorruptReason)> {
    let (from, line) = bytes
        .len()
        .checked_sub(STORE_LINE_BYTES)
        .and_then(|at| bytes.split_at_checked(at))
        .ok_or((0, CorruptReason::Length))?;
    let line_at = u64::from(msg.skip).saturating_sub(128);
    let found = StoreLine::decode(line).map_err(|reason| (line_at, reason))?;
    if !is_from_line(from, found.internal_date) {
        return Err((
            0,
            CorruptReason::Value("no From_ line in front of a message"),
        ));
    }
    let flags = u8::try_from(msg.format_flags & STORE_LINE_FLAGS).expect("5 bits");
    let mut expected = StoreLine {
        mailbox: msg.mailbox,
        uidvalidity: uidvalidity.unwrap_or(found.uidvalidity),
        uid: msg.uid.value(),
        guid: msg.guid,
        internal_date: msg.internal_date,
        stored_len: msg.stored_len,
        stored_crc: msg.stored_crc,
        format_flags: flags,
    };
    if msg.format_flags & OWN_FILE != 0 {
        // Perhaps shared by several users, each with a guid and a date of its own.
        expected.mailbox = MailboxId::new(0);
        expected.uidvalidity = 0;
        expected.uid = 0;
        expected.guid = found.guid;
        expected.internal_date = found.internal_date;
    }
    if found == expected {
        Ok(())
    } else {
        Err((
            line_at,
            CorruptReason::Disagree("the store line and the index"),
        ))
    }
}

/// `From <sender> <date>` and LF, the sender printable, the date that of the store line.
fn is_from_line(line: &[u8], date: WallNs) -> bool {
    let null = from_line(b"", date);
    let end = null.strip_prefix(b"From MAILER-DAEMON").unwrap_or_default();
    let sender = line
        .strip_prefix(b"From ")
        .and_then(|rest| rest.strip_suffix(end));
    sender.is_some_and(|sender| {
        !sender.is_empty() && sender.iter().all(|byte| (0x21..=0x7E).contains(byte))
    })
}

/// Checks the stored bytes: their checksum, that no line is a `From_` line, and the LF at the end.
fn stored(window: &mut Window<'_>, at: u64, msg: &Msg) -> Result<(), Bad> {
    let mut left = u64::from(msg.stored_len);
    let mut offset = at;
    let mut sum = 0;
    let mut lines = Lines::default();
    while left > 0 {
        let bytes = window.some(offset, left)?;
        if bytes.is_empty() {
            return Err(Bad::At(offset, CorruptReason::Truncated));
        }
        sum = crc::extend(sum, bytes);
        lines.feed(bytes);
        let count = u64::try_from(bytes.len()).expect("a window is a mebibyte");
        left -= count;
        offset += count;
    }
    if sum != msg.stored_crc {
        return Err(Bad::At(at, CorruptReason::Checksum));
    }
    lines.check(msg).map_err(|reason| Bad::At(at, reason))
}

/// The CRC of stored bytes; `None` if the file ends before them.
pub(crate) fn stored_crc(
    window: &mut Window<'_>,
    at: u64,
    stored_len: u32,
) -> Result<Option<u32>, IoError> {
    let mut left = u64::from(stored_len);
    let mut offset = at;
    let mut sum = 0;
    while left > 0 {
        let bytes = window.some(offset, left)?;
        if bytes.is_empty() {
            return Ok(None);
        }
        sum = crc::extend(sum, bytes);
        let count = u64::try_from(bytes.len()).expect("a window is a mebibyte");
        left -= count;
        offset += count;
    }
    Ok(Some(sum))
}

/// As [`stored`], for a message in memory.
pub(super) fn stored_in_memory(bytes: &[u8], msg: &Msg) -> Result<(), CorruptReason> {
    if u32::try_from(bytes.len()) != Ok(msg.stored_len) {
        return Err(CorruptReason::Length);
    }
    if crc::of(bytes) != msg.stored_crc {
        return Err(CorruptReason::Checksum);
    }
    let mut lines = Lines::default();
    lines.feed(bytes);
    lines.check(msg)
}

/// Looks at the start of each line, over any cuts.
struct Lines {
    /// At the start of a line, how many bytes of `From ` were seen; `None` further on.
    matched: Option<usize>,
    from_count: u64,
    count: u64,
    last: u8,
}

impl Default for Lines {
    fn default() -> Self {
        Self {
            matched: Some(0),
            from_count: 0,
            count: 0,
            last: b'\n',
        }
    }
}

impl Lines {
    fn feed(&mut self, bytes: &[u8]) {
        const FROM: &[u8] = b"From ";
        self.last = *bytes.last().unwrap_or(&self.last);
        let mut rest = bytes;
        loop {
            while let Some(matched) = self.matched {
                let Some((byte, behind)) = rest.split_first() else {
                    return;
                };
                if FROM.get(matched) == Some(byte) {
                    rest = behind;
                    self.matched = Some(matched + 1).filter(|count| *count < FROM.len());
                    self.from_count += u64::from(self.matched.is_none());
                } else {
                    self.matched = None;
                }
            }
            let Some(end) = memchr(b'\n', rest) else {
                return;
            };
            rest = rest.get(end + 1..).unwrap_or_default();
            self.count += 1;
            self.matched = Some(0);
        }
    }

    fn check(&self, msg: &Msg) -> Result<(), CorruptReason> {
        if self.from_count > 0 {
            return Err(CorruptReason::Value("an unquoted From_ line in a message"));
        }
        if self.last != b'\n' {
            return Err(CorruptReason::Value(
                "a stored message without LF at its end",
            ));
        }
        if self.count != u64::from(msg.lines_count) {
            return Err(CorruptReason::Disagree(
                "the message and its count of lines",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_lines_are_seen_over_every_cut() {
        let text = b"From a\n>From b\nFrom\nFrom c\nx From d\n";
        for cut in 0..=text.len() {
            let mut lines = Lines::default();
            lines.feed(&text[..cut]);
            lines.feed(&text[cut..]);
            assert_eq!((lines.from_count, lines.count), (2, 5), "cut at {cut}");
        }
    }

    #[test]
    fn from_lines_have_a_sender_and_a_date() {
        let epoch = WallNs::new(0);
        assert!(is_from_line(b"From a@b Thu Jan  1 00:00:00 1970\n", epoch));
        for bad in [
            &b"From a@b Thu Jan  1 00:00:00 1970"[..],
            b"From a@b Thu Jan  1 00:00:01 1970\n",
            b"From Thu Jan  1 00:00:00 1970\n",
            b"From  Thu Jan  1 00:00:00 1970\n",
            b">From a@b Thu Jan  1 00:00:00 1970\n",
            b"From a\xe4b Thu Jan  1 00:00:00 1970\n",
            b"",
        ] {
            assert!(!is_from_line(bad, epoch), "{}", bad.escape_ascii());
        }
    }
}
