//! The `From_` line of other programs' mbox files: its sender and its date, in the forms that are
//! met: asctime (RFC 4155), with a zone in front of or behind the year, without seconds, with
//! `remote from`, Thunderbird's `-` for the sender.

use jiff::civil::DateTime;
use jiff::tz::Offset;
use ringpost_netproto::id::WallNs;

use super::date_of;

/// A longer line is text.
const LINE_BYTES_MAX: usize = 2_048;

/// What it begins with.
pub const FROM: &[u8] = b"From ";

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// What such a line says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FromLine {
    /// Empty for the null sender.
    pub sender: Vec<u8>,
    /// Taken as UTC if there is no zone, as RFC 4155 has it. `None` before 1970.
    pub date: Option<WallNs>,
}

/// `None` if `line`, with or without its end, is none: a text that begins with "From " has no date.
pub fn parse(line: &[u8]) -> Option<FromLine> {
    let rest = line.strip_prefix(FROM)?;
    if line.len() > LINE_BYTES_MAX {
        return None;
    }
    let words: Vec<&[u8]> = rest
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty())
        .collect();
    // The sender may have blanks, and may be left out.
    let at = (0..words.len()).find_map(|at| moment(words.get(at..)?).map(|when| (at, when)));
    let (month_at, seconds) = at?;
    let names = words.get(..month_at).unwrap_or_default();
    let sender = match names {
        [] => &b""[..],
        [only] if is_weekday(only) => b"",
        [first, ..] => first,
    };
    let null = sender == b"-" || sender.eq_ignore_ascii_case(b"MAILER-DAEMON");
    Some(FromLine {
        sender: if null { Vec::new() } else { sender.to_vec() },
        date: date_of(seconds),
    })
}

fn is_weekday(word: &[u8]) -> bool {
    let days: [&[u8]; 7] = [b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat", b"Sun"];
    days.iter().any(|day| day.eq_ignore_ascii_case(word))
}

/// Seconds since 1970 of `Mmm dd hh:mm[:ss] [zone] yyyy [zone]` at the start of `words`.
fn moment(words: &[&[u8]]) -> Option<i64> {
    let [month, day, time, behind @ ..] = words else {
        return None;
    };
    let month = MONTHS
        .iter()
        .position(|name| name.as_bytes().eq_ignore_ascii_case(month))?;
    let month = i8::try_from(month + 1).ok()?;
    let day: i8 = number(day)?;
    let mut parts = time.split(|byte| *byte == b':');
    let hour: i8 = number(parts.next()?)?;
    let minute: i8 = number(parts.next()?)?;
    let second: i8 = parts.next().map_or(Some(0), number)?;
    let near = behind.get(..4).unwrap_or(behind);
    let year_at = near.iter().position(|word| is_year(word))?;
    let year: i16 = number(near.get(year_at)?)?;
    let zone = near.iter().find_map(|word| zone(word)).unwrap_or(0);
    let date = DateTime::new(year, month, day, hour, minute, second.min(59), 0).ok()?;
    let offset = Offset::from_seconds(zone).ok()?;
    Some(offset.to_timestamp(date).ok()?.as_second())
}

fn number<T: std::str::FromStr>(word: &[u8]) -> Option<T> {
    let digits = !word.is_empty() && word.iter().all(u8::is_ascii_digit);
    digits
        .then(|| std::str::from_utf8(word).ok()?.parse().ok())
        .flatten()
}

fn is_year(word: &[u8]) -> bool {
    word.len() == 4 && number::<i16>(word).is_some_and(|year| year >= 1900)
}

/// Seconds east of UTC of `+hhmm`.
fn zone(word: &[u8]) -> Option<i32> {
    let (sign, digits) = word.split_first()?;
    let sign = match sign {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (hours, minutes) = digits.split_at_checked(2)?;
    if minutes.len() != 2 {
        return None;
    }
    let (hours, minutes): (i32, i32) = (number(hours)?, number(minutes)?);
    Some(sign * (hours * 3_600 + minutes * 60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_that_are_met() {
        let (jan, with) = (1_704_164_645, |sender: &str, seconds: i64| {
            Some((sender.to_owned(), seconds))
        });
        for (line, want) in [
            ("From a@b Tue Jan  2 03:04:05 2024", with("a@b", jan)),
            ("From a@b Tue Jan  2 03:04:05 2024\r\n", with("a@b", jan)),
            ("From - Tue Jan 02 03:04:05 2024", with("", jan)),
            ("From MAILER-DAEMON Tue Jan  2 03:04:05 2024", with("", jan)),
            ("From a@b Tue Jan  2 04:04:05 +0100 2024", with("a@b", jan)),
            (
                "From a@b  Tue Jan  2 02:04:05 2024 -0100 remote from c",
                with("a@b", jan),
            ),
            ("From a@b Tue Jan  2 03:04:05 GMT 2024", with("a@b", jan)),
            ("From a@b Tue Jan  2 03:04 2024", with("a@b", jan - 5)),
            ("From \"a b\"@c Tue Jan  2 03:04:05 2024", with("\"a", jan)),
            ("From Tue Jan  2 03:04:05 2024", with("", jan)),
            ("From here on we know", None),
            ("From a@b", None),
            ("From a@b Jan 2", None),
            ("From a@b Tue Jan 32 03:04:05 2024", None),
            ("From a@b Tue Jan  2 25:04:05 2024", None),
            ("From: a@b Tue Jan  2 03:04:05 2024", None),
            (">From a@b Tue Jan  2 03:04:05 2024", None),
        ] {
            let found = parse(line.as_bytes()).map(|line| {
                let seconds = line.date.expect("after 1970").value() / 1_000_000_000;
                let sender = String::from_utf8(line.sender).unwrap();
                (sender, i64::try_from(seconds).unwrap())
            });
            assert_eq!(found, want, "{line}");
        }
    }
}
