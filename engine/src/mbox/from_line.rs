//! The `From_` line: `From <sender> <Www Mmm dd hh:mm:ss yyyy>`, the date in UTC as C's asctime
//! writes it (RFC 4155, qmail's mbox(5)). ASCII only: Python's mailbox raises on other bytes.

use jiff::Timestamp;
use jiff::tz::Offset;
use ringpost_netproto::id::WallNs;

use crate::format::store_line::{STORE_LINE_BYTES, StoreLine};
use crate::limits::PREFIX_BYTES_MAX;

/// Bytes of a sender that are written; RFC 5321 4.5.3.1 allows 254 in a path.
const SENDER_BYTES_MAX: usize = 320;

/// What stands for the null sender.
const NULL_SENDER: &[u8] = b"MAILER-DAEMON";

/// Bytes of a `From_` line with its LF at most: every byte of the sender may take three.
pub const FROM_LINE_BYTES_MAX: usize = "From ".len() + 3 * SENDER_BYTES_MAX + 1 + 24 + 1;
const _: () = assert!(FROM_LINE_BYTES_MAX + STORE_LINE_BYTES <= PREFIX_BYTES_MAX);

const WEEKDAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// The line with its LF. An empty `sender` is the null sender, written as `MAILER-DAEMON`. Any byte
/// that is not printable ASCII, and a blank, becomes `%` and two digits; what lies beyond 320 bytes
/// is left out.
pub fn from_line(sender: &[u8], date: WallNs) -> Vec<u8> {
    let mut line = Vec::with_capacity("From ".len() + sender.len().max(13) + 26);
    write(sender, date, &mut line);
    line
}

/// `From_` line and store line: what stands in front of a stored message in a segment.
pub fn prefix(sender: &[u8], date: WallNs, store: &StoreLine) -> Vec<u8> {
    let mut prefix = Vec::with_capacity(prefix_room(sender));
    put_prefix(sender, date, store, &mut prefix);
    prefix
}

/// Appends a [`prefix`] to `out`.
pub(crate) fn put_prefix(sender: &[u8], date: WallNs, store: &StoreLine, out: &mut Vec<u8>) {
    write(sender, date, out);
    out.extend_from_slice(&store.encode());
}

/// Bytes of a [`prefix`], unless bytes of the sender have to be escaped or left out.
pub(crate) fn prefix_room(sender: &[u8]) -> usize {
    let sender_len = match sender.len() {
        0 => NULL_SENDER.len(),
        len => len,
    };
    "From ".len() + sender_len + " Www Mmm dd hh:mm:ss yyyy\n".len() + STORE_LINE_BYTES
}

/// The sender as a `From_` line has it: [`from_line`] makes the same of it again. Empty for the null
/// sender, and where there is no such line.
pub fn sender_of(prefix: &[u8]) -> &[u8] {
    let rest = prefix.strip_prefix(super::FROM).unwrap_or_default();
    let sender = rest.split(|byte| *byte == b' ').next().unwrap_or_default();
    if sender == NULL_SENDER {
        return b"";
    }
    sender
}

fn write(sender: &[u8], date: WallNs, out: &mut Vec<u8>) {
    out.extend_from_slice(super::FROM);
    if sender.is_empty() {
        out.extend_from_slice(NULL_SENDER);
    }
    for byte in sender.iter().take(SENDER_BYTES_MAX) {
        match byte {
            b'!'..=b'~' => out.push(*byte),
            _ => out.extend_from_slice(format!("%{byte:02X}").as_bytes()),
        }
    }
    out.push(b' ');
    asctime(date, out);
    out.push(b'\n');
}

/// The 24 characters of asctime, put together by hand: every recipient of every message has a line,
/// and the formatting of the standard library took a fortieth of a core's time.
fn asctime(date: WallNs, out: &mut Vec<u8>) {
    let at = Timestamp::from_nanosecond(i128::from(date.value()))
        .expect("64 bits of nanoseconds end in the year 2554");
    let at = Offset::UTC.to_datetime(at);
    let name = |names: &[&'static str], one_based: i8| {
        let index = usize::try_from(one_based - 1).expect("days and months start at 1");
        names.get(index).expect("7 days, 12 months").as_bytes()
    };
    let digits = |number: i8| {
        let number = number.unsigned_abs();
        [b'0' + number / 10, b'0' + number % 10]
    };
    let century = |years: i16| digits(i8::try_from(years).expect("at most 4 digits"));
    let [tens, ones] = digits(at.day());
    let tens = if tens == b'0' { b' ' } else { tens };
    for part in [
        name(&WEEKDAYS, at.weekday().to_monday_one_offset()),
        b" ",
        name(&MONTHS, at.month()),
        &[b' ', tens, ones, b' '],
        &digits(at.hour()),
        b":",
        &digits(at.minute()),
        b":",
        &digits(at.second()),
        b" ",
        &century(at.year() / 100),
        &century(at.year() % 100),
    ] {
        out.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_those_of_asctime() {
        for (sender, seconds, want) in [
            (&b"a@b"[..], 0, "From a@b Thu Jan  1 00:00:00 1970\n"),
            (
                b"",
                1_709_210_096,
                "From MAILER-DAEMON Thu Feb 29 12:34:56 2024\n",
            ),
            (
                b"a b\r\n\xe4@x",
                1_700_000_000,
                "From a%20b%0D%0A%E4@x Tue Nov 14 22:13:20 2023\n",
            ),
        ] {
            let line = from_line(sender, WallNs::new(seconds * 1_000_000_000));
            assert_eq!(
                line.escape_ascii().to_string(),
                want.escape_default().to_string()
            );
        }
        let last = from_line(b"x", WallNs::new(u64::MAX));
        assert!(last.ends_with(b" 2554\n"));
        for sender in [&b"a@b"[..], b"", b"a b\r\n\xe4@x"] {
            let line = from_line(sender, WallNs::new(0));
            assert_eq!(from_line(sender_of(&line), WallNs::new(0)), line);
        }
        for odd in [&b""[..], b"From", b"X-Ringpost: 1"] {
            assert_eq!(sender_of(odd), b"");
        }
    }

    #[test]
    fn a_prefix_fills_its_room() {
        let line = StoreLine::decode(
            b"X-Ringpost: 1 m=00000001 v=00000002 u=00000003 g=00000000000000000000000000000004 \
              d=0000000000000005 l=00000006 c=00000007 e=08\n",
        )
        .expect("a store line");
        for sender in [&b"a@b"[..], b"", b"somebody.with.a.name@example.test"] {
            let prefix = prefix(sender, WallNs::new(5), &line);
            assert_eq!(
                (prefix.len(), prefix.capacity()),
                (prefix_room(sender), prefix.len())
            );
            assert!(prefix.ends_with(&line.encode()));
        }
    }

    #[test]
    fn the_longest_line_fits_its_limit() {
        let line = from_line(&[0xFF; 1_000], WallNs::new(0));
        assert_eq!(line.len(), FROM_LINE_BYTES_MAX);
    }
}
