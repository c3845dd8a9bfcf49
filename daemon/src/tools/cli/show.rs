//! `status`, and how values look: dates, sizes, names of strangers.

use std::io::Write as _;

use ringpost_netproto::id::WallNs;
use ringpost_netproto::message::printable;
use ringpost_netproto::message::report::ReportField;

use super::node::Node;
use super::{Failure, Form, Output};

/// The node's state.
pub fn status(node: &mut Node, output: &mut Output) -> Result<(), Failure> {
    fields(node.status()?, output)
}

/// A report.
pub fn fields(fields: Vec<ReportField>, output: &mut Output) -> Result<(), Failure> {
    if output.form == Form::Json {
        let object: serde_json::Map<String, serde_json::Value> = fields
            .into_iter()
            .map(|field| (field.name, number_or_text(field.value)))
            .collect();
        return json(output, &serde_json::Value::Object(object));
    }
    let width = fields.iter().map(|field| field.name.len()).max();
    for field in &fields {
        match output.form {
            Form::Terminal => writeln!(
                output.writer,
                "{:width$}  {}",
                field.name,
                field.value,
                width = width.unwrap_or(0)
            )?,
            Form::Tabs | Form::Json => {
                writeln!(output.writer, "{}\t{}", field.name, field.value)?;
            }
        }
    }
    Ok(())
}

/// One line of JSON.
pub fn json(output: &mut Output, value: &serde_json::Value) -> Result<(), Failure> {
    writeln!(output.writer, "{value}")?;
    Ok(())
}

/// A report's values are text; whole numbers become numbers in JSON.
fn number_or_text(value: String) -> serde_json::Value {
    value.parse::<u64>().map_or_else(
        |_| serde_json::Value::String(value),
        serde_json::Value::from,
    )
}

/// To the second, in UTC; empty for what is no date.
pub fn date(at: WallNs) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(at.value())).map_or_else(
        |_| String::new(),
        |at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    )
}

/// A header's value on one line, without what would move a terminal's cursor; at most `width`
/// characters with their end marked, if that is given.
pub fn text(value: &[u8], width: Option<usize>) -> String {
    let text = printable(value);
    match width {
        Some(width) if text.chars().count() > width => {
            let mut cut: String = text.chars().take(width.saturating_sub(3)).collect();
            cut.push_str("...");
            cut
        }
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_utc() {
        assert_eq!(
            date(WallNs::new(1_700_000_000_000_000_000)),
            "2023-11-14T22:13:20Z"
        );
        assert_eq!(date(WallNs::new(0)), "1970-01-01T00:00:00Z");
    }

    #[test]
    fn strangers_text_stays_on_its_line() {
        assert_eq!(text(b"a\x1b[2Jb\n", None), "a\\u{1b}[2Jb\\n");
        assert_eq!(
            text("gr\u{fc}n und blau".as_bytes(), Some(8)),
            "gr\u{fc}n ..."
        );
        assert_eq!(text(b"short", Some(8)), "short");
    }

    #[test]
    fn numbers_are_numbers_in_json() {
        assert_eq!(number_or_text("12".into()), serde_json::json!(12));
        assert_eq!(number_or_text("1.2".into()), serde_json::json!("1.2"));
    }
}
