//! Flips each byte of each file of a small store in turn, repairs it, opens it and compares it with what
//! it held: `cargo run --release -p ringpost-engine --example flip`. With arguments: the bits to flip, in
//! hexadecimal (`01 80 ff`); without, one bit. Ends with figures, or by panic at the first byte that costs
//! more than one message, or a message that is not named.
#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a program for people, with a clock"
)]

#[path = "../tests/flipkit/mod.rs"]
mod flipkit;
#[path = "../tests/testkit/mod.rs"]
mod testkit;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Instant;

use flipkit::{Image, Mail, flip, mail, small_store};

/// What came of the flips of one kind of file.
#[derive(Clone, Copy, Default, Debug)]
struct Tally {
    flips: u64,
    harmless: u64,
    mended: u64,
    lost: u64,
}

/// The kind of a file: its name without numbers.
fn kind_of(name: &str) -> &'static str {
    match name.rsplit('/').next().unwrap_or_default() {
        "STORE" => "STORE",
        "super" => "super",
        "dedupe" => "dedupe",
        "folders" => "folders",
        name if name.starts_with("parts") => "parts",
        name if name.starts_with("info") => "info",
        name if name.strip_suffix(".log").is_some() => "log",
        name if name.matches('.').count() > 1 => "large mbox",
        name if name.strip_suffix(".mbox").is_some() => "mbox",
        name if name.strip_suffix(".part").is_some() => "part",
        _ => "other",
    }
}

/// Every `of`-th byte of every file from `from` on.
fn share(
    image: &Image,
    held: &Mail,
    (from, of): (usize, usize),
    bits: u8,
) -> BTreeMap<&'static str, Tally> {
    let mut tallies: BTreeMap<&'static str, Tally> = BTreeMap::new();
    for (name, size) in image.files() {
        for at in (from..size).step_by(of) {
            let verdict = flip(image, held, (&name, at, bits));
            let missing = verdict.missing.len();
            assert!(missing <= 1, "{name} at {at} ^ {bits:#04x}: {verdict:?}");
            let tally = tallies.entry(kind_of(&name)).or_default();
            tally.flips += 1;
            if verdict.repaired.is_nothing() {
                tally.harmless += 1;
            } else if missing == 0 {
                tally.mended += 1;
            } else {
                tally.lost += 1;
            }
        }
    }
    tallies
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let mut masks = Vec::new();
    for word in &words {
        match u8::from_str_radix(word, 16) {
            Ok(bits) if bits != 0 => masks.push(bits),
            _ => {
                println!("{word:?} is no byte to flip; give hexadecimal bits, as 01 or ff");
                return ExitCode::from(2);
            }
        }
    }
    if masks.is_empty() {
        masks.push(0x10);
    }
    let image = small_store();
    let held = mail(image.disk());
    let bytes: usize = image.files().iter().map(|(_, size)| size).sum();
    println!(
        "a store of {} files, {bytes} bytes, {} messages; bits {masks:02x?}",
        image.files().len(),
        held.len()
    );
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let began = Instant::now();
    let mut all: BTreeMap<&'static str, Tally> = BTreeMap::new();
    for bits in masks {
        let shares: Vec<_> = std::thread::scope(|scope| {
            let work = |from| {
                let (image, held) = (&image, &held);
                scope.spawn(move || share(image, held, (from, threads), bits))
            };
            let workers: Vec<_> = (0..threads).map(work).collect();
            let ended = workers.into_iter().map(std::thread::ScopedJoinHandle::join);
            ended
                .map(|share| share.expect("a share that panicked ended the process"))
                .collect()
        });
        for (kind, tally) in shares.into_iter().flatten() {
            let sum = all.entry(kind).or_default();
            sum.flips += tally.flips;
            sum.harmless += tally.harmless;
            sum.mended += tally.mended;
            sum.lost += tally.lost;
        }
    }
    println!(
        "{:>12} {:>9} {:>9} {:>9} {:>9}",
        "file", "flips", "harmless", "mended", "lost one"
    );
    let mut sum = Tally::default();
    for (kind, tally) in all {
        let Tally {
            flips,
            harmless,
            mended,
            lost,
        } = tally;
        println!("{kind:>12} {flips:>9} {harmless:>9} {mended:>9} {lost:>9}");
        sum.flips += flips;
        sum.lost += lost;
    }
    println!(
        "{} flips in {:.0} s: {} cost one message, which was named; none cost more",
        sum.flips,
        began.elapsed().as_secs_f64(),
        sum.lost
    );
    ExitCode::SUCCESS
}
