//! Figures for people: aligned columns, thousands, times in the unit that fits.

use std::fmt::Write as _;

/// Lines of right-aligned columns below their heads, two blanks apart, without trailing blanks.
pub(crate) fn render(heads: &[&str], rows: &[Vec<String>]) -> String {
    let heads: Vec<String> = heads.iter().map(|&head| head.to_owned()).collect();
    let width = |column: usize| {
        let cells = rows
            .iter()
            .chain([&heads])
            .filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let mut text = String::new();
    for row in std::iter::once(&heads).chain(rows) {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:>width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// `12,345`, or with decimals below 100: `12.3`, `0.123`.
pub(crate) fn number(value: f64) -> String {
    if !value.is_finite() {
        return "-".to_owned();
    }
    match value.abs() {
        size if size >= 99.95 || size == 0.0 => thousands(&format!("{value:.0}")),
        size if size >= 9.995 => format!("{value:.1}"),
        size if size >= 0.9995 => format!("{value:.2}"),
        size if size >= 0.0995 => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    }
}

/// The same for what may be unknown.
pub(crate) fn maybe(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), number)
}

/// A whole number with its thousands apart.
pub(crate) fn count(value: u64) -> String {
    thousands(&value.to_string())
}

fn thousands(digits: &str) -> String {
    let (sign, digits) = digits
        .strip_prefix('-')
        .map_or(("", digits), |rest| ("-", rest));
    let mut text = String::from(sign);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Microseconds as `95 us`, `1.23 ms` or `2.50 s`.
pub(crate) fn time(us: f64) -> String {
    match us {
        us if us < 999.5 => format!("{us:.0} us"),
        us if us < 9_995.0 => format!("{:.2} ms", us / 1e3),
        us if us < 999_500.0 => format!("{:.1} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

/// Bytes as `512`, `4 KiB`, `1.5 MiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    let mut text = String::new();
    let (value, unit) = match bytes {
        0..1024 => (bytes, ""),
        1024..1_048_576 => (bytes * 10 / 1024, " KiB"),
        1_048_576..1_073_741_824 => (bytes / 1024 * 10 / 1024, " MiB"),
        _ => (bytes / 1_048_576 * 10 / 1024, " GiB"),
    };
    let written = match (unit, value % 10) {
        ("", _) => write!(text, "{value}"),
        (_, 0) => write!(text, "{}{unit}", value / 10),
        (_, tenths) => write!(text, "{}.{tenths}{unit}", value / 10),
    };
    written.expect("a String takes everything");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_to_the_right() {
        let rows = [
            vec!["node".to_owned(), "1".to_owned()],
            vec!["lmtp".to_owned(), "12,345".to_owned()],
        ];
        assert_eq!(
            render(&["via", "n"], &rows),
            " via       n\nnode       1\nlmtp  12,345\n"
        );
    }

    #[test]
    fn numbers_have_three_digits_or_their_thousands() {
        for (value, want) in [
            (0.0, "0"),
            (0.01234, "0.0123"),
            (0.5, "0.500"),
            (1.234, "1.23"),
            (99.94, "99.9"),
            (99.96, "100"),
            (1234.5, "1,234"),
            (1_234_567.0, "1,234,567"),
            (-1234.0, "-1,234"),
            (f64::INFINITY, "-"),
        ] {
            assert_eq!(number(value), want);
        }
        assert_eq!(maybe(None), "-");
        assert_eq!(count(1000), "1,000");
    }

    #[test]
    fn times_and_bytes_have_units() {
        for (us, want) in [
            (95.4, "95 us"),
            (1234.0, "1.23 ms"),
            (45_600.0, "45.6 ms"),
            (2.5e6, "2.50 s"),
        ] {
            assert_eq!(time(us), want);
        }
        for (size, want) in [
            (512, "512"),
            (4096, "4 KiB"),
            (1536, "1.5 KiB"),
            (3 << 20, "3 MiB"),
            (5 << 30, "5 GiB"),
        ] {
            assert_eq!(bytes(size), want);
        }
    }
}
