//! Sizes (`64 MiB`) and spans of time (`60 s`) as people write them.

use std::time::Duration;

const SIZES: [(&str, u64); 8] = [
    ("", 1),
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
];

const SPANS: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1_000),
    ("min", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

fn split(text: &str) -> Result<(u64, &str), String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '_')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number = number.replace('_', "");
    let number = number
        .parse()
        .map_err(|error| format!("{number:?} is not a number: {error}"))?;
    Ok((number, unit.trim()))
}

fn parse(text: &str, units: &[(&str, u64)]) -> Result<u64, String> {
    let (number, unit) = split(text.trim())?;
    let known = || {
        let names: Vec<_> = units
            .iter()
            .map(|(name, _)| *name)
            .filter(|n| !n.is_empty())
            .collect();
        format!("the unit is one of {}", names.join(", "))
    };
    let (_, factor) = units
        .iter()
        .find(|(name, _)| *name == unit)
        .ok_or_else(known)?;
    let value = number
        .checked_mul(*factor)
        .ok_or("the number is too large")?;
    if value == 0 {
        return Err("zero has no meaning here".to_owned());
    }
    Ok(value)
}

/// Bytes, above 0.
pub fn parse_size(text: &str) -> Result<u64, String> {
    parse(text, &SIZES)
}

/// A span of time, above 0, in whole milliseconds.
pub fn parse_span(text: &str) -> Result<Duration, String> {
    parse(text, &SPANS).map(Duration::from_millis)
}

/// With the largest unit that divides it.
pub fn show_size(bytes: u64) -> String {
    let units = [("GiB", 1_u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    units
        .iter()
        .find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor))
        .map_or_else(
            || format!("{bytes} B"),
            |(name, factor)| format!("{} {name}", bytes / factor),
        )
}

/// In seconds where they are whole.
pub fn show_span(span: Duration) -> String {
    if span.subsec_nanos() == 0 {
        format!("{} s", span.as_secs())
    } else {
        format!("{} ms", span.as_millis())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_spans_are_read_with_and_without_blanks() {
        for (text, want) in [
            ("64 MiB", 64 << 20),
            ("64MiB", 64 << 20),
            ("1_000", 1000),
            ("2 kB", 2000),
            ("7 B", 7),
        ] {
            assert_eq!(parse_size(text), Ok(want), "{text}");
        }
        assert_eq!(parse_span("60 s"), Ok(Duration::from_mins(1)));
        assert_eq!(parse_span("5min"), Ok(Duration::from_mins(5)));
        for bad in [
            "",
            "MiB",
            "64 Mib",
            "-1",
            "0",
            "0 MiB",
            "99999999999999 GiB",
            "1.5 GiB",
        ] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
        assert!(parse_span("60").is_err(), "a span needs its unit");
    }

    #[test]
    fn what_is_shown_reads_back() {
        for bytes in [1, 1023, 1024, 64 << 20, 3 << 30, (1 << 30) + 1] {
            assert_eq!(parse_size(&show_size(bytes)), Ok(bytes));
        }
        for span in [Duration::from_millis(250), Duration::from_hours(1)] {
            assert_eq!(parse_span(&show_span(span)), Ok(span));
        }
    }
}
