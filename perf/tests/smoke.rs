//! The program as it is called: it runs, prints, and what it prints can be read. No thresholds on
//! wall time; the generator's own fake stands in for the daemon.

use std::process::{Command, Output};

use serde_json::Value;

fn perf(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringpost-perf"));
    command
        .args(arguments)
        .output()
        .expect("the program was built for this test")
}

/// The lines of standard output as JSON.
fn lines(output: &Output) -> Vec<Value> {
    let text = std::str::from_utf8(&output.stdout).expect("standard output is text");
    text.lines()
        .map(|line| serde_json::from_str(line).expect("a line of JSON"))
        .collect()
}

#[test]
fn a_matrix_prints_a_line_for_each_cell_and_a_table() {
    let output = perf(&[
        "deliver",
        "--to",
        "fake",
        "--seconds",
        "0.1",
        "--warm-up",
        "0",
        "--users",
        "100",
        "--size",
        "512,4096",
        "--in-flight",
        "1,8",
        "--json",
    ]);
    let table = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{table}");
    let lines = lines(&output);
    let cell = |line: &Value| (line["size"].as_u64(), line["in_flight"].as_u64());
    let cells: Vec<_> = lines.iter().map(cell).collect();
    let want = [(512, 1), (512, 8), (4096, 1), (4096, 8)];
    assert_eq!(
        cells,
        want.map(|(size, in_flight)| (Some(size), Some(in_flight)))
    );
    assert!(
        lines
            .iter()
            .all(|line| line["good"] == true && line["kind"] == "deliver")
    );
    assert!(
        lines
            .iter()
            .all(|line| line["messages_per_s"].as_f64() > Some(0.0))
    );
    assert!(
        table.contains("messages/s") && table.contains("4 KiB"),
        "{table}"
    );
}

#[test]
fn open_loop_and_lmtp_are_one_option_away() {
    let output = perf(&[
        "deliver",
        "--to",
        "fake",
        "--via",
        "lmtp",
        "--rate",
        "500",
        "--seconds",
        "0.2",
        "--warm-up",
        "0",
        "--users",
        "100",
        "--in-flight",
        "8",
        "--no-limits",
    ]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text
        .lines()
        .last()
        .expect("the table is followed by a line");
    let line: Value = serde_json::from_str(line).expect("a line of JSON");
    assert_eq!(line["rate"].as_f64(), Some(500.0));
}

#[test]
fn disk_prints_every_size_and_depth() {
    let folder = env!("CARGO_TARGET_TMPDIR");
    let output = perf(&["disk", "--seconds", "0.01", "--scratch", folder, "--json"]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let line = lines(&output).remove(0);
    assert_eq!(line["rows"].as_array().map(Vec::len), Some(18));
    assert!(line["flush_us"].as_f64() > Some(0.0));
}

#[test]
fn nonsense_ends_with_one_and_a_sentence() {
    let output = perf(&["deliver", "--to", "fake", "--in-flight", "0"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--in-flight"));
}
