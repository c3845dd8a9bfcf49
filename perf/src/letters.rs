//! How large messages are, and the letters of a generator thread, one for each message under way.

use std::collections::BTreeMap;
use std::str::FromStr;

use bytes::Bytes;
use serde::{Serialize, Serializer};

use crate::table;
use crate::workload::{BYTES_MIN, Letter, LineEnd};

/// Bytes of a message, header and line ends included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Size {
    /// All have so many.
    Bytes(usize),
    /// Drawn for each: [`MIX`].
    Mix,
}

/// Of [`MIX_COUNT`] messages so many have so many bytes: half have 8 KiB or less, and one in 25 brings
/// half of all bytes, as attachments do. It is our idea of mail, no survey's.
const MIX: [(usize, usize); 8] = [
    (100, 1_536),
    (200, 3_072),
    (250, 8_192),
    (200, 20_480),
    (150, 49_152),
    (60, 122_880),
    (35, 491_520),
    (5, 3_145_728),
];

const MIX_COUNT: usize = 1_000;

impl Size {
    /// In the mean.
    pub(crate) fn mean(self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Mix => {
                MIX.iter()
                    .map(|(count, bytes)| count * bytes)
                    .sum::<usize>()
                    / MIX_COUNT
            }
        }
    }

    /// The same as a number of bytes.
    pub(crate) fn mean_u64(self) -> u64 {
        u64::try_from(self.mean()).unwrap_or(u64::MAX)
    }

    /// As in tables.
    pub(crate) fn label(self) -> String {
        match self {
            Self::Bytes(_) => table::bytes(self.mean_u64()),
            Self::Mix => self.to_string(),
        }
    }

    fn draw(self, random: &mut fastrand::Rng) -> usize {
        let Self::Mix = self else {
            return self.mean();
        };
        let mut left = random.usize(..MIX_COUNT);
        for (count, bytes) in MIX {
            if left < count {
                return bytes;
            }
            left -= count;
        }
        self.mean()
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "mix" {
            return Ok(Self::Mix);
        }
        let Ok(bytes) = text.parse() else {
            return Err("it is a number of bytes, or `mix`".to_owned());
        };
        if bytes < BYTES_MIN {
            return Err(format!("too small for a header: at least {BYTES_MIN}"));
        }
        Ok(Self::Bytes(bytes))
    }
}

/// As on the command line.
impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{bytes}"),
            Self::Mix => f.write_str("mix"),
        }
    }
}

/// A number, or `"mix"`.
impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Bytes(_) => serializer.serialize_u64(self.mean_u64()),
            Self::Mix => serializer.collect_str(self),
        }
    }
}

/// The letters of a thread.
#[derive(Debug)]
pub(crate) struct Letters {
    size: Size,
    line_end: LineEnd,
    run: u64,
    seed: u64,
    /// Empty while they are under way.
    all: Vec<Letter>,
    /// Those that are not, by bytes.
    free: BTreeMap<usize, Vec<usize>>,
}

impl Letters {
    /// `places` of them, made now if all are of one size, else as they are wanted. `run` tells one run's
    /// messages from another's.
    pub(crate) fn new(
        (size, line_end): (Size, LineEnd),
        (run, seed): (u64, u64),
        places: usize,
    ) -> anyhow::Result<Self> {
        let mut letters = Self {
            size,
            line_end,
            run,
            seed,
            all: Vec::new(),
            free: BTreeMap::new(),
        };
        if let Size::Bytes(bytes) = size {
            let made = (0..places).map(|_| letters.make(bytes));
            let mut made = made.collect::<anyhow::Result<Vec<_>>>()?;
            made.reverse();
            letters.free.insert(bytes, made);
        }
        Ok(letters)
    }

    fn make(&mut self, bytes: usize) -> anyhow::Result<usize> {
        let index = self.all.len();
        let seed = self.seed.wrapping_add(u64::try_from(index)?);
        let letter = Letter::new(bytes, self.line_end, self.run, seed)?;
        self.all.push(letter);
        Ok(index)
    }

    /// A message under this serial, and the number of its letter, to be given back by
    /// [`Self::put_back`].
    pub(crate) fn seal(&mut self, serial: u64, random: &mut fastrand::Rng) -> (usize, Bytes) {
        let bytes = self.size.draw(random);
        let index = match self.free.get_mut(&bytes).and_then(Vec::pop) {
            Some(index) => index,
            None => self.make(bytes).expect("its size was looked at before"),
        };
        let letter = self.all.get_mut(index).expect("a number of one of them");
        (index, letter.seal(serial))
    }

    /// Its answer is there.
    pub(crate) fn put_back(&mut self, index: usize, sealed: Bytes) {
        if let Some(letter) = self.all.get_mut(index) {
            self.free.entry(sealed.len()).or_default().push(index);
            letter.take_back(sealed);
        }
    }

    /// All of them, by number.
    pub(crate) fn into_all(self) -> Vec<Letter> {
        self.all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_what_was_asked_for() {
        assert_eq!("4096".parse(), Ok(Size::Bytes(4096)));
        assert_eq!("mix".parse(), Ok(Size::Mix));
        for bad in ["10", "-1", "4 KiB", "mixed", ""] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
        assert_eq!(serde_json::to_value(Size::Mix).unwrap(), "mix");
        assert_eq!(serde_json::to_value(Size::Bytes(512)).unwrap(), 512);
    }

    #[test]
    fn the_mix_is_drawn_in_its_shares() {
        assert_eq!(MIX.iter().map(|(count, _)| count).sum::<usize>(), MIX_COUNT);
        let mut random = fastrand::Rng::with_seed(1);
        let mut counts = BTreeMap::new();
        for _message in 0..100 * MIX_COUNT {
            *counts.entry(Size::Mix.draw(&mut random)).or_insert(0usize) += 1;
        }
        for (count, bytes) in MIX {
            let drawn = counts.get(&bytes).copied().unwrap_or(0);
            let wanted = 100 * count;
            assert!(drawn.abs_diff(wanted) < wanted / 5, "{bytes}: {drawn}");
        }
        let sum: usize = counts.iter().map(|(bytes, count)| bytes * count).sum();
        let mean = sum / (100 * MIX_COUNT);
        assert!(
            mean.abs_diff(Size::Mix.mean()) < Size::Mix.mean() / 10,
            "{mean}"
        );
    }

    #[test]
    fn letters_under_way_are_different_ones_and_come_back() {
        let mut random = fastrand::Rng::with_seed(2);
        for size in [Size::Bytes(600), Size::Mix] {
            let mut letters = Letters::new((size, LineEnd::Lf), (1, 1), 4).unwrap();
            let mut made_count = 0;
            for round in 0..50 {
                let sealed: Vec<_> = (0..4).map(|_| letters.seal(round, &mut random)).collect();
                let mut numbers: Vec<_> = sealed.iter().map(|(index, _)| *index).collect();
                numbers.sort_unstable();
                numbers.dedup();
                assert_eq!(numbers.len(), 4);
                for (index, bytes) in sealed {
                    letters.put_back(index, bytes);
                }
                made_count = letters.all.len();
            }
            assert!(made_count <= 4 * MIX.len(), "{made_count}");
            assert!(size == Size::Mix || made_count == 4);
        }
    }
}
