//! What the rigs send: every byte follows from the run's seed and the message's serial number, so
//! nothing has to be kept to compare it with what the store gives back.
//!
//! An odd serial goes through LMTP: whole lines that end with CRLF and do not begin with a dot. An
//! even one goes through the node protocol and may hold anything: NUL, bare CR, no final newline, or
//! nothing at all. All but the empty ones have a Received field, without which the duplicate filter
//! leaves equal messages alone (mail.md 5).

use std::ops::Range;

/// The door of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Door {
    /// The node protocol.
    Node,
    /// LMTP.
    Lmtp,
}

impl Door {
    /// Where the message of this serial goes, always.
    pub(crate) fn of(serial: u64) -> Self {
        if serial.is_multiple_of(2) {
            Self::Node
        } else {
            Self::Lmtp
        }
    }
}

/// Sizes in bytes and how often of 1,000: around the limit where a message gets a file of its own
/// (128 KiB), and mostly small, so that many share a batch.
const SIZES: [(u32, Range<usize>); 6] = [
    (20, 0..1),
    (580, 150..1_500),
    (300, 1_500..12_000),
    (75, 12_000..60_000),
    (10, 130_000..132_000),
    (15, 60_000..300_000),
];

const PREFIX: &str = "Received: from rig.test by rig.test id ";
const ID_BYTES: usize = 33;

/// The bytes of message `serial`.
pub(crate) fn content(seed: u64, serial: u64) -> Vec<u8> {
    let mut random = rng(seed, serial);
    let size = draw_size(&mut random);
    if size == 0 && Door::of(serial) == Door::Node {
        return Vec::new();
    }
    let crlf = Door::of(serial) == Door::Lmtp || random.u8(..) < 64;
    let eol: &[u8] = if crlf { b"\r\n" } else { b"\n" };
    let mut bytes = Vec::with_capacity(size + 512);
    let fields = [
        format!("{PREFIX}{seed:016x}-{serial:016x}"),
        format!("Message-ID: <{seed:x}.{serial}@rig.test>"),
        format!("Subject: crash rig {serial}"),
    ];
    for field in fields {
        bytes.extend_from_slice(field.as_bytes());
        bytes.extend_from_slice(eol);
    }
    bytes.extend_from_slice(eol);
    while bytes.len() < size {
        push_line(&mut bytes, &mut random, Door::of(serial));
        bytes.extend_from_slice(eol);
    }
    if Door::of(serial) == Door::Node && random.u8(..) < 40 {
        bytes.pop();
    }
    bytes
}

/// Whether the message of this serial is empty, and so cannot be told from other empty ones.
pub(crate) fn is_empty(seed: u64, serial: u64) -> bool {
    Door::of(serial) == Door::Node && draw_size(&mut rng(seed, serial)) == 0
}

/// The serial that a message of this run carries.
pub(crate) fn serial(seed: u64, bytes: &[u8]) -> Option<u64> {
    let id = bytes.strip_prefix(PREFIX.as_bytes())?.get(..ID_BYTES)?;
    let (run, serial) = std::str::from_utf8(id).ok()?.split_once('-')?;
    (u64::from_str_radix(run, 16).ok()? == seed).then_some(())?;
    u64::from_str_radix(serial, 16).ok()
}

/// The serials of all messages of this run that begin somewhere in `bytes`.
pub(crate) fn serials(seed: u64, bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes
        .windows(PREFIX.len() + ID_BYTES)
        .filter(|window| window.starts_with(PREFIX.as_bytes()))
        .filter_map(move |window| serial(seed, window))
}

fn rng(seed: u64, serial: u64) -> fastrand::Rng {
    // Neighbouring seeds of this generator give alike first draws: spread them.
    fastrand::Rng::with_seed(seed ^ serial.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn draw_size(random: &mut fastrand::Rng) -> usize {
    let mut ticket = random.u32(..1_000);
    for (weight, range) in SIZES {
        if ticket < weight {
            return random.usize(range);
        }
        ticket -= weight;
    }
    0
}

/// A line without its end: mostly letters, now and then what an mbox must quote, and through the node
/// protocol any bytes.
fn push_line(bytes: &mut Vec<u8>, random: &mut fastrand::Rng, door: Door) {
    match random.u8(..32) {
        0 => bytes.extend_from_slice(b"From rig@rig.test Mon Nov  5 10:00:00 2001"),
        1 => bytes.extend_from_slice(b">>From the quoted"),
        2 => {}
        3 if door == Door::Node => {
            let start = bytes.len();
            bytes.resize(start + random.usize(..600), 0);
            random.fill(bytes.get_mut(start..).unwrap_or_default());
        }
        _ => {
            let start = bytes.len();
            bytes.resize(start + random.usize(..120), 0);
            let line = bytes.get_mut(start..).unwrap_or_default();
            random.fill(line);
            // 0x30 to 0x6f: digits and letters, no dot, no control character.
            for byte in line {
                *byte = (*byte & 0x3f) + 0x30;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_repeats_carries_its_serial_and_suits_its_door() {
        let mut empty_count = 0;
        for number in 0..2_000 {
            let bytes = content(7, number);
            assert_eq!(bytes, content(7, number));
            assert_eq!(bytes.is_empty(), is_empty(7, number), "{number}");
            if bytes.is_empty() {
                empty_count += 1;
                continue;
            }
            assert_eq!(serial(7, &bytes), Some(number));
            assert_eq!(serial(8, &bytes), None);
            if Door::of(number) == Door::Lmtp {
                assert!(bytes.ends_with(b"\r\n"));
                for line in bytes.split(|byte| *byte == b'\n') {
                    assert!(line.is_empty() || line.ends_with(b"\r"));
                    assert!(!line.starts_with(b"."));
                }
            }
        }
        assert!((5..60).contains(&empty_count), "{empty_count}");
        let two = [b"x".to_vec(), content(7, 1), content(7, 3)].concat();
        assert_eq!(serials(7, &two).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(serials(7, b"Received: ").next(), None);
        assert_eq!(serial(7, b"Received: from rig.test by rig.test id 7"), None);
    }

    #[test]
    fn all_sizes_are_drawn() {
        let mut random = fastrand::Rng::with_seed(1);
        let sizes: Vec<usize> = (0..5_000).map(|_| draw_size(&mut random)).collect();
        for (_, range) in SIZES {
            assert!(sizes.iter().any(|size| range.contains(size)), "{range:?}");
        }
    }
}
