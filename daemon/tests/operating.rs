//! docs/OPERATING.md and the manual pages list what there is: every key, metric, exit code and
//! option, and nothing that there is not.

use std::collections::BTreeSet;
use std::process::Command;

use ringpost_daemon::admin::metrics;
use ringpost_daemon::config::{KEYS, Reload};
use ringpost_daemon::exit::Code;

const OPERATING: &str = include_str!("../../docs/OPERATING.md");

/// The cells of the table rows whose first cell is one word in backquotes.
fn rows() -> Vec<Vec<&'static str>> {
    OPERATING
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect()
}

fn bare(cell: &str) -> &str {
    cell.trim_matches('`')
}

#[test]
fn every_key_stands_there_with_its_default() {
    let rows = rows();
    let keys: Vec<_> = rows.iter().filter(|row| row.len() == 4).collect();
    assert_eq!(keys.len(), KEYS.len(), "as many rows as keys");
    for key in KEYS {
        let row = keys.iter().find(|row| bare(row[0]) == key.name);
        let row = row.unwrap_or_else(|| panic!("{} is missing in OPERATING.md", key.name));
        assert_eq!(bare(row[1]), key.default, "default of {}", key.name);
        let applied = match key.reload {
            Reload::Live => "reload",
            Reload::Restart => "restart",
        };
        assert_eq!(row[2], applied, "{}", key.name);
    }
}

#[test]
fn every_metric_stands_there() {
    let listed: BTreeSet<String> = rows()
        .iter()
        .map(|row| bare(row[0]))
        .filter(|name| name.starts_with("ringpost_"))
        .map(str::to_owned)
        .collect();
    let there: BTreeSet<String> = metrics::names().into_iter().collect();
    assert_eq!(listed, there);
}

#[test]
fn every_exit_code_stands_there() {
    for code in [
        Code::Done,
        Code::Usage,
        Code::DataErr,
        Code::NoUser,
        Code::Unavailable,
        Code::TempFail,
    ] {
        let row = format!("\n| {} | ", code.status());
        assert!(OPERATING.contains(&row), "{code:?}");
    }
    for (program, codes) in [
        (
            "`ringpostd`",
            [Code::Done, Code::Failed, Code::Misused, Code::Config].as_slice(),
        ),
        ("`ringpost`", &[Code::Done, Code::Failed, Code::Misused]),
    ] {
        let line = OPERATING
            .lines()
            .find(|line| line.starts_with(&format!("{program}: ")))
            .unwrap();
        for code in codes {
            assert!(line.contains(&format!(" {} ", code.status())), "{line}");
        }
    }
}

/// The long options of a help text or a page, without backslashes.
fn long_options(text: &str) -> BTreeSet<String> {
    text.replace('\\', "")
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
        .filter_map(|word| word.strip_prefix("--"))
        .filter(|word| word.starts_with(|c: char| c.is_ascii_lowercase()))
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_daemons_page_has_its_options() {
    let output = Command::new(env!("CARGO_BIN_EXE_ringpostd"))
        .arg("--help")
        .output()
        .unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let page = include_str!("../src/tools/man/ringpostd.8");
    assert_eq!(long_options(&help), long_options(page));
}
