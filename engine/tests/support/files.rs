//! The files under `tests/golden`: bytes as text.

use std::fmt::Write;
use std::path::PathBuf;

pub(crate) fn golden_path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(format!("{name}.hex"))
}

/// `length <n>`, then `<offset>: <32 bytes>`; lines of zeros are left out.
pub(crate) fn dump(bytes: &[u8]) -> String {
    let mut out = format!("length {}\n", bytes.len());
    for (line, chunk) in bytes.chunks(32).enumerate() {
        if chunk.iter().any(|byte| *byte != 0) {
            write!(out, "{:06x}: ", line * 32).unwrap();
            for byte in chunk {
                write!(out, "{byte:02x}").unwrap();
            }
            out.push('\n');
        }
    }
    out
}

fn undump(text: &str) -> Vec<u8> {
    let mut lines = text.lines();
    let len = lines.next().unwrap().strip_prefix("length ").unwrap();
    let mut out = vec![0; len.parse().unwrap()];
    for line in lines {
        let (offset, digits) = line.split_once(": ").unwrap();
        let offset = usize::from_str_radix(offset, 16).unwrap();
        for (at, pair) in digits.as_bytes().chunks(2).enumerate() {
            let pair = std::str::from_utf8(pair).unwrap();
            out[offset + at] = u8::from_str_radix(pair, 16).unwrap();
        }
    }
    out
}

pub(crate) fn golden(name: &str) -> Vec<u8> {
    let path = golden_path(name);
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    undump(&text)
}
