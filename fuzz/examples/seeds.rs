//! Writes the seeds of all targets into `corpus/`: the golden bytes of formats and protocol, and a
//! few small texts. Run it after a format changed: `cargo run -p ringpost-fuzz --example seeds`.
//! Files of other names, such as past crashes, are left alone.

use std::fs;
use std::path::{Path, PathBuf};

use ringpost_engine::format::crc;
use ringpost_engine::format::store_line::StoreLine;
use ringpost_engine::header_cache::{Extent, Fields, Value, encode};
use ringpost_engine::mbox::prefix;
use ringpost_netproto::id::{Guid, MailboxId, WallNs};

fn main() -> std::io::Result<()> {
    goldens()?;
    protocol()?;
    texts("address", ADDRESSES)?;
    pieces("lmtp", LMTP)?;
    pieces("message", MESSAGES)?;
    pieces("import_mbox", MBOXES)?;
    segments()?;
    caches()
}

fn here() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn seed(target: &str, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let folder = here().join("corpus").join(target);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(name), bytes)
}

/// Each text as it is.
fn texts(target: &str, seeds: &[(&str, &str)]) -> std::io::Result<()> {
    seeds
        .iter()
        .try_for_each(|(name, text)| seed(target, name, text.as_bytes()))
}

/// Each text behind a byte that asks for pieces of 7.
fn pieces(target: &str, seeds: &[(&str, &str)]) -> std::io::Result<()> {
    seeds
        .iter()
        .try_for_each(|(name, text)| seed(target, name, format!("\x07{text}").as_bytes()))
}

/// The bytes of a golden file: `length N`, then lines of offset and digits; what is left out is
/// zero.
fn golden(path: &Path) -> std::io::Result<Vec<u8>> {
    let text = fs::read_to_string(path)?;
    let mut lines = text.lines();
    let length = lines.next().and_then(|line| line.strip_prefix("length "));
    let length = length.and_then(|length| length.parse().ok());
    let mut bytes = vec![0; length.expect("a golden file begins with its length")];
    for line in lines {
        let (offset, digits) = line.split_once(": ").expect("an offset and digits");
        let offset = usize::from_str_radix(offset, 16).expect("an offset");
        for (index, pair) in digits.as_bytes().chunks(2).enumerate() {
            let pair = std::str::from_utf8(pair).expect("ASCII");
            let byte = u8::from_str_radix(pair, 16).expect("two digits");
            *bytes.get_mut(offset + index).expect("below the length") = byte;
        }
    }
    Ok(bytes)
}

fn goldens() -> std::io::Result<()> {
    let folder = here().join("../engine/tests/golden");
    for (target, name) in [
        ("dedupe", "dedupe"),
        ("folders", "folders"),
        ("info", "info"),
        ("log_file", "log_file"),
        ("log_frame", "frame"),
        ("log_frame", "frame_noop"),
        ("log_frame", "frame_skip"),
        ("parts", "parts"),
        ("store_file", "store"),
        ("store_line", "store_line"),
        ("superblock", "superblock"),
    ] {
        let bytes = golden(&folder.join(format!("{name}.hex")))?;
        seed(target, name, &bytes)?;
    }
    let copy = golden(&folder.join("superblock.hex"))?;
    seed("superblock", "pair", &copy.repeat(2))
}

/// Every golden frame alone, and as the peer of each side would send it.
fn protocol() -> std::io::Result<()> {
    let folder = here().join("../netproto/tests/golden");
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        names.push(entry?.path());
    }
    names.sort();
    for path in names {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let bytes = [&[64], golden(&path)?.as_slice()].concat();
        let from_node = name.contains("reply") || name.starts_with("fetch_") || name == "pong";
        let sides: &[&str] = match name.as_ref() {
            "goaway" | "credit" => &["node_server", "node_client"],
            _ if from_node || name == "deliver_refused" => &["node_client"],
            _ if name.starts_with("hello") => &[],
            _ => &["node_server"],
        };
        for target in sides.iter().chain(&["node_frame"]) {
            seed(target, &name, &bytes)?;
        }
    }
    Ok(())
}

fn stored(uid: u32, stored: &[u8]) -> Vec<u8> {
    let store = StoreLine {
        mailbox: MailboxId::INBOX,
        uidvalidity: 1,
        uid,
        guid: Guid::new([9; 16]),
        internal_date: WallNs::new(1),
        stored_len: u32::try_from(stored.len()).expect("small"),
        stored_crc: crc::of(stored),
        format_flags: 0,
    };
    let mut out = prefix(b"a@b", WallNs::new(0), &store);
    out.extend_from_slice(stored);
    out.push(b'\n');
    out
}

fn segments() -> std::io::Result<()> {
    let one = stored(1, b"Subject: 1\n\n>From x\n");
    let two = stored(2, b"");
    let short = one.get(..150).unwrap_or(&one);
    for (name, parts) in [
        ("two", &[&[7], one.as_slice(), &two][..]),
        ("hole", &[&[7], &one, &[0; 64], &two]),
        ("torn", &[&[7], &two, short]),
        ("overwritten", &[&[7], short, &one]),
        (
            "other_program",
            &[b"\x07From a x\nSubject: 1\n\nx\n\nFrom b y\n\n"],
        ),
    ] {
        seed("mbox_scan", name, &parts.concat())?;
    }
    Ok(())
}

fn caches() -> std::io::Result<()> {
    let value = |bytes| {
        Some(Value {
            bytes,
            extent: Extent::Whole,
        })
    };
    let long = "x".repeat(2_000);
    for (name, fields) in [
        (
            "one",
            Fields::new([value(b"a@b"), None, None, None, None, None]),
        ),
        ("empty_values", Fields::new([value(b""); 6])),
        ("cut", Fields::new([value(long.as_bytes()); 6])),
    ] {
        seed("header_cache", name, &encode(&fields))?;
    }
    Ok(())
}

const ADDRESSES: &[(&str, &str)] = &[
    ("plain", "bob"),
    ("detail", "Bob+Box@Example.TEST."),
    ("quoted", "\"a b\\\"@c\"@d"),
    ("literal", "u@[IPv6:fe80::1]"),
    ("route", "@a,@b:u@c"),
    ("dots", "../../etc/passwd@d"),
];

const LMTP: &[(&str, &str)] = &[
    (
        "data",
        "LHLO c\r\nMAIL FROM:<a@b> SIZE=9 BODY=8BITMIME\r\nRCPT TO:<carl@d>\r\nRCPT TO:<bob>\r\n\
         DATA\r\nS: x\r\n\r\n..\r\n.\r\nQUIT\r\n",
    ),
    (
        "bdat",
        "LHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<carl>\r\nBDAT 4\r\n.\r\n.BDAT 3 LAST\r\nx\r\nRSET\r\n",
    ),
    (
        "smuggled",
        "LHLO c\r\nMAIL FROM:<a>\r\nRCPT TO:<carl>\r\nDATA\r\na\n.\nb\n.\r\nc\r.\r\n\r\n.\r\nNOOP\r\n",
    ),
    (
        "wrong_order",
        "EHLO c\r\nDATA\r\nLHLO c\r\nRCPT TO:<x>\r\nMAIL FROM:<a>\r\nMAIL FROM:<b>\r\nDATA\r\n",
    ),
    (
        "reset_between_recipients",
        "LHLO c\r\nMAIL FROM:<a>\r\nRCPT TO:<carl>\r\nRSET\r\nMAIL FROM:<b>\r\nRCPT TO:<carl>\r\n\
         DATA\r\n.\r\n",
    ),
    (
        "other_words",
        "HELP\r\nVRFY x\r\nNOOP\r\nSTARTTLS\r\n\0\r\nQUIT\r\n",
    ),
];

/// mbox files of other programs, by flavour.
const MBOXES: &[(&str, &str)] = &[
    (
        "mboxrd",
        "From a@b Tue Jan  2 03:04:05 2024\nSubject: x\nStatus: RO\n\n>one\n>>From two\n>three\n\nFrom - Tue Jan 02 03:04:05 2024\n\nlast\n\n",
    ),
    (
        "mboxo",
        "From a@b Tue Jan  2 03:04:05 +0100 2024\nX-Status: AF\nX-Keywords: a b\n\n>From the\n>one\n>From two\n\n",
    ),
    (
        "mboxcl2",
        "From a@b Tue Jan  2 03:04:05 2024\nContent-Length: 43\n\na\n\nFrom a@b Tue Jan  2 03:04:05 2024\nA: b\n\nx\n\nFrom a@b Tue Jan  2 03:04:05 2024 remote from c\nContent-Length: 2\n\nb\n\n",
    ),
    (
        "crlf",
        "From a@b Tue Jan  2 03:04:05 2024\r\nX-IMAP: 1 2\r\n\r\nx\r\n\r\nFrom a@b Tue Jan  2 03:04:05 2024\r\nX-UID: 1\r\n\r\n",
    ),
    ("none", "Subject: one message\n\nx\n"),
];

const MESSAGES: &[(&str, &str)] = &[
    ("empty", ""),
    (
        "crlf",
        "Received: x\r\nFrom: a@b\r\nSubject: one\r\n two\r\n\
         Date: Mon, 1 Jan 2024 10:00:00 +0000\r\n\r\nbody\r\n",
    ),
    ("quoted", "From x\n>From y\n>>From z\nFrom\n>From\n\nFrom "),
    ("mixed", "a\r\nb\r\n\r\nc\nd\r\n"),
    ("mixed_lf_first", "a\n\r\nb"),
    ("bare_cr", "a\rb\r\r\n\rc\r"),
    ("return_path", "Return-Path: <x@y>\r\n\r\n"),
    ("dots", ".\r\n..\r\n.x\r\n"),
];
