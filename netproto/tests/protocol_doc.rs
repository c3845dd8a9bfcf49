//! PROTOCOL.md and the structs say the same: each offset table is a struct and each struct has its
//! table, row by row; so do the tables of opcodes, statuses and limits.

use ringpost_netproto::frame::{Built, Opcode, Status, Verdict};
use ringpost_netproto::limits;
use ringpost_netproto::version::{VERSION_MAX, VERSION_MIN};
use ringpost_netproto::wire::STRUCTS;

const DOC: &str = include_str!("../PROTOCOL.md");

/// The cells of the table rows under the heading that `matches`, its two head rows left out.
fn rows(matches: impl Fn(&str) -> bool) -> Vec<Vec<&'static str>> {
    DOC.lines()
        .skip_while(|line| !(line.starts_with('#') && matches(line)))
        .skip(1)
        .take_while(|line| !line.starts_with('#'))
        .filter(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect()
}

#[test]
fn each_struct_is_its_table() {
    for layout in STRUCTS {
        let heading = format!("### `{}`: {} bytes", layout.name, layout.bytes);
        let found: Vec<_> = rows(|line| line == heading)
            .into_iter()
            .map(|row| {
                let number = |at: usize| row[at].parse::<usize>().unwrap();
                (row[2], number(0), number(1))
            })
            .collect();
        let wanted: Vec<_> = layout
            .fields
            .iter()
            .map(|field| (field.name, field.offset, field.bytes))
            .collect();
        assert_eq!(found, wanted, "{heading}");
    }
}

#[test]
fn each_table_is_a_struct_and_in_the_same_order() {
    let documented: Vec<_> = DOC
        .lines()
        .filter(|line| line.starts_with("### `"))
        .map(|line| line.split('`').nth(1).unwrap())
        .collect();
    let built: Vec<_> = STRUCTS.iter().map(|layout| layout.name).collect();
    assert_eq!(documented, built);
}

#[test]
fn structs_have_no_gaps() {
    for layout in STRUCTS {
        let mut end = 0;
        for field in layout.fields {
            assert_eq!(field.offset, end, "{}.{}", layout.name, field.name);
            end += field.bytes;
        }
        assert_eq!(end, layout.bytes, "{}", layout.name);
    }
}

#[test]
fn opcodes_are_the_table() {
    let found: Vec<_> = rows(|line| line.contains("4. Opcodes"))
        .into_iter()
        .map(|row| (row[0].to_owned(), row[1], row[2]))
        .collect();
    let wanted: Vec<_> = Opcode::ALL
        .iter()
        .map(|opcode| {
            let built = match opcode.built() {
                Built::Yes => "yes",
                Built::Reserved => "reserved",
            };
            (opcode.wire().to_string(), opcode.name(), built)
        })
        .collect();
    assert_eq!(found, wanted);
    for opcode in Opcode::ALL {
        assert_eq!(Opcode::from_wire(opcode.wire()), Some(*opcode));
    }
}

#[test]
fn statuses_are_the_table() {
    let found: Vec<_> = rows(|line| line.contains("5. Statuses"))
        .into_iter()
        .map(|row| (row[0].to_owned(), row[1], row[2]))
        .collect();
    let wanted: Vec<_> = Status::ALL
        .iter()
        .map(|status| {
            let verdict = match status.verdict() {
                Verdict::Done => "done",
                Verdict::Later => "later",
                Verdict::Never => "never",
            };
            (status.wire().to_string(), status.name(), verdict)
        })
        .collect();
    assert_eq!(found, wanted);
    for status in Status::ALL {
        assert_eq!(Status::from_wire(status.wire()), *status);
    }
    assert_eq!(Status::from_wire(60_000), Status::Unknown(60_000));
    assert_eq!(Status::Unknown(60_000).verdict(), Verdict::Later);
}

#[test]
fn limits_are_the_table() {
    macro_rules! named {
        ($($name:ident)+) => { vec![$((stringify!($name), limits::$name.to_string()),)+] };
    }
    let wanted = named!(
        PAYLOAD_BYTES_CEILING PAYLOAD_BYTES_DEFAULT PAYLOAD_BYTES_BEFORE_HELLO INLINE_BODY_BYTES_MAX
        STREAM_PIECE_BYTES_MAX RECIPIENTS_MAX ADDRESS_BYTES_MAX MAILBOX_NAME_BYTES_MAX
        USER_BYTES_MAX QUEUE_ID_BYTES_MAX TEXT_BYTES_MAX REQUESTS_IN_FLIGHT_MAX LIST_ENTRIES_MAX
        HEADER_CACHE_BYTES_MAX MAILBOXES_MAX KEYWORDS_MAX KEYWORD_BYTES_MAX REPORT_FIELDS_MAX CREDIT_BYTES_MIN CREDIT_BYTES_MAX
        STREAM_WINDOW_SHARE_BYTES HELD_BYTES_MAX
    );
    let found: Vec<_> = rows(|line| line.contains("9. Limits"))
        .into_iter()
        .map(|row| (row[0], row[1].to_owned()))
        .collect();
    assert_eq!(found, wanted);
}

#[test]
fn every_version_spoken_has_a_line_of_history() {
    let history: Vec<_> = rows(|line| line.contains("10. History"))
        .into_iter()
        .map(|row| row[0].to_owned())
        .collect();
    let spoken: Vec<_> = (VERSION_MIN..=VERSION_MAX)
        .map(|version| version.to_string())
        .collect();
    assert_eq!(history, spoken);
}
