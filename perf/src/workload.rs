//! Who gets mail and what it looks like: made before the clock runs, by seed.
//!
//! A message has the header that an MTA hands over and a body of words. Serial numbers stand in
//! its Received and Message-ID fields: a [`Letter`] gets new ones in place before each sending, so
//! no two sendings are alike and the duplicate filter (mail.md 5) never meets a known one, unless
//! repeating is what is asked for.

use anyhow::ensure;
use bytes::{Bytes, BytesMut};

/// Envelope sender of every message.
pub(crate) const SENDER: &str = "ada@example.net";

/// Where a line ends: CRLF as LMTP has it, LF as a shim gets it from an MTA.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LineEnd {
    /// Carriage return and line feed.
    CrLf,
    /// Line feed.
    Lf,
}

impl LineEnd {
    fn text(self) -> &'static str {
        match self {
            Self::CrLf => "\r\n",
            Self::Lf => "\n",
        }
    }
}

const SERIAL_DIGITS: usize = 16;
const SERIAL_MARK: &str = "0123456789abcdef";
const RUN_MARK: &str = "fedcba9876543210";

/// In the order in which they are left out when a message is to be very short.
const FIELDS: [&str; 7] = [
    "Received: by mail.perf.test (Postfix) id 0123456789abcdef",
    "Message-ID: <fedcba9876543210.0123456789abcdef@example.net>",
    "From: Ada Example <ada@example.net>",
    "Subject: Re: figures for this week, and a question about the next",
    "Date: Mon, 23 Nov 2026 21:39:13 +0100",
    "To: list@perf.test",
    "MIME-Version: 1.0",
];

const WORDS: [&str; 24] = [
    "the", "mail", "of", "disk", "and", "a", "letter", "to", "write", "batch", "is", "node", "for",
    "queue", "in", "we", "journal", "that", "durable", "with", "answer", "on", "receive", "store",
];

const LINE_BYTES_MAX: usize = 72;

/// The shortest message: one Received field with its serial, the empty line, and a line of body.
pub(crate) const BYTES_MIN: usize = 72;

/// A message whose serial numbers can be replaced in place. Ends with a line end; no line begins
/// with a dot, so that LMTP need not stuff it; one letter in eight has a line that mbox must quote.
#[derive(Clone, Debug)]
pub(crate) struct Letter {
    bytes: BytesMut,
    serial_offsets: Vec<usize>,
}

impl Letter {
    /// `size` bytes in all; `run` tells one run's messages from another's.
    pub(crate) fn new(size: usize, line_end: LineEnd, run: u64, seed: u64) -> anyhow::Result<Self> {
        ensure!(
            size >= BYTES_MIN,
            "a message has at least {BYTES_MIN} bytes"
        );
        let eol = line_end.text();
        let mut text = String::with_capacity(size + LINE_BYTES_MAX);
        for field in FIELDS {
            if text.len() + field.len() + 3 * eol.len() < size {
                text.push_str(field);
                text.push_str(eol);
            }
        }
        text.push_str(eol);
        let mut random = fastrand::Rng::with_seed(seed);
        if random.u8(..) < 32 && text.len() + 64 < size {
            text.push_str("From here on it is quoted.");
            text.push_str(eol);
        }
        while text.len() < size {
            push_line(&mut text, &mut random);
            text.push_str(eol);
        }
        // The header left room for a letter and a line end, so only body is cut here.
        text.truncate(size - eol.len());
        while text.ends_with('\r') {
            text.pop();
            text.push('x');
        }
        text.push_str(eol);

        let text = text.replace(RUN_MARK, &format!("{run:016x}"));
        let serial_offsets = text
            .match_indices(SERIAL_MARK)
            .map(|(offset, _)| offset)
            .collect();
        Ok(Self {
            bytes: BytesMut::from(text.as_str()),
            serial_offsets,
        })
    }

    /// The message under this serial, to be given back by [`Self::take_back`]. The letter is empty
    /// meanwhile.
    pub(crate) fn seal(&mut self, serial: u64) -> Bytes {
        let digits = format!("{serial:016x}");
        for &offset in &self.serial_offsets {
            if let Some(place) = self.bytes.get_mut(offset..offset + SERIAL_DIGITS) {
                place.copy_from_slice(digits.as_bytes());
            }
        }
        std::mem::take(&mut self.bytes).freeze()
    }

    /// Takes the memory back; copies only if somebody still holds the sealed bytes.
    pub(crate) fn take_back(&mut self, sealed: Bytes) {
        self.bytes = sealed
            .try_into_mut()
            .unwrap_or_else(|shared| BytesMut::from(shared.as_ref()));
    }
}

fn push_line(text: &mut String, random: &mut fastrand::Rng) {
    let start = text.len();
    loop {
        let word = WORDS
            .get(random.usize(..WORDS.len()))
            .copied()
            .unwrap_or("mail");
        if text.len() - start + word.len() + 1 > LINE_BYTES_MAX {
            return;
        }
        if text.len() > start {
            text.push(' ');
        }
        text.push_str(word);
    }
}

/// The accounts of a run, named by their number.
#[derive(Clone, Debug)]
pub(crate) struct Users(Vec<Bytes>);

impl Users {
    /// `count` of them, at least 1.
    pub(crate) fn new(prefix: &str, count: usize) -> Self {
        let name = |index| Bytes::from(format!("{prefix}{index:07}"));
        Self((0..count.max(1)).map(name).collect())
    }

    /// The same, with `@domain` behind each name.
    pub(crate) fn in_domain(prefix: &str, count: usize, domain: &str) -> Self {
        let name = |index| Bytes::from(format!("{prefix}{index:07}@{domain}"));
        Self((0..count.max(1)).map(name).collect())
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// The name of a user; `index` is below [`Self::count`].
    pub(crate) fn name(&self, index: usize) -> &str {
        let name = self.0.get(index).map(Bytes::as_ref).unwrap_or_default();
        std::str::from_utf8(name).expect("names are made of ASCII")
    }

    /// The same, shared.
    pub(crate) fn shared_name(&self, index: usize) -> Bytes {
        self.0.get(index).cloned().unwrap_or_default()
    }

    /// `count` different users (fewer if there are not so many), evenly spread, or the first of them as
    /// popular as is said.
    pub(crate) fn draw(
        &self,
        count: usize,
        popularity: Option<&Popularity>,
        random: &mut fastrand::Rng,
        drawn: &mut Vec<usize>,
    ) {
        drawn.clear();
        let count = count.min(self.0.len());
        // A block behind a random start: recipients need only differ, placement hashes names.
        let first = match popularity {
            Some(popularity) => popularity.draw(random),
            None => random.usize(..self.0.len()),
        };
        drawn.extend((0..count).map(|step| (first + step) % self.0.len()));
    }
}

/// How often each user gets mail, by Zipf's law: the n-th in proportion to n to the power of minus the
/// exponent.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Popularity {
    /// Zipf's.
    pub(crate) exponent: f64,
    /// Of the users up to each: the last is the sum of all.
    shares: Vec<f64>,
}

impl Popularity {
    /// Of so many users, at least 1.
    pub(crate) fn zipf(count: usize, exponent: f64) -> Self {
        let mut sum = 0.0;
        let share = |rank: u32| {
            sum += f64::from(rank).powf(-exponent);
            sum
        };
        let count = u32::try_from(count.max(1)).unwrap_or(u32::MAX);
        Self {
            exponent,
            shares: (1..=count).map(share).collect(),
        }
    }

    fn draw(&self, random: &mut fastrand::Rng) -> usize {
        let sum = self.shares.last().copied().unwrap_or(0.0);
        let at = random.f64() * sum;
        let user = self.shares.partition_point(|share| *share <= at);
        user.min(self.shares.len().saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_user_is_as_popular_as_zipf_says() {
        let users = Users::new("u", 1_000);
        let popularity = Popularity::zipf(1_000, 1.0);
        let mut random = fastrand::Rng::with_seed(1);
        let (mut drawn, mut seen) = (Vec::new(), vec![0_u32; 1_000]);
        for _ in 0..100_000 {
            users.draw(1, Some(&popularity), &mut random, &mut drawn);
            seen[drawn[0]] += 1;
        }
        // The harmonic number of 1,000 is 7.485.
        assert!((13_000..13_800).contains(&seen[0]), "{}", seen[0]);
        assert!((6_400..7_000).contains(&seen[1]), "{}", seen[1]);
        assert!(seen[999] < 60, "{}", seen[999]);
    }

    #[test]
    fn letters_have_the_size_asked_for_and_whole_lines() {
        for size in (BYTES_MIN..700).chain([4096, 32_768, 262_144]) {
            for (line_end, eol) in [(LineEnd::Lf, "\n"), (LineEnd::CrLf, "\r\n")] {
                let mut letter =
                    Letter::new(size, line_end, 1, u64::try_from(size).unwrap()).unwrap();
                let bytes = letter.seal(0);
                let text = std::str::from_utf8(&bytes).unwrap();
                assert_eq!(text.len(), size);
                assert!(text.ends_with(eol), "{size}");
                assert!(
                    text.contains(&format!("{eol}{eol}")),
                    "{size}: no end of header"
                );
                assert!(text.starts_with("Received: "));
                assert_eq!(
                    text.matches('\r').count(),
                    if eol == "\n" {
                        0
                    } else {
                        text.matches('\n').count()
                    }
                );
                assert!(!text.split(eol).any(|line| line.starts_with('.')));
            }
        }
        assert!(Letter::new(BYTES_MIN - 1, LineEnd::Lf, 1, 1).is_err());
    }

    #[test]
    fn serials_change_both_fields_in_place() {
        let mut letter = Letter::new(4096, LineEnd::CrLf, 0xabc, 1).unwrap();
        let first = letter.seal(1);
        let text = String::from_utf8(first.to_vec()).unwrap();
        assert!(text.contains("id 0000000000000001\r\n"));
        assert!(text.contains("<0000000000000abc.0000000000000001@"));
        let memory = first.as_ptr();
        letter.take_back(first);
        let second = letter.seal(0xffff_ffff_ffff_ffff);
        assert_eq!(second.as_ptr(), memory, "no copy was made");
        assert!(
            String::from_utf8(second.to_vec())
                .unwrap()
                .contains(".ffffffffffffffff@")
        );
        let kept = second.clone();
        letter.take_back(second);
        let third = letter.seal(3);
        assert_ne!(kept, third);
    }

    #[test]
    fn some_letters_need_quoting() {
        let quoted = (0..64)
            .filter(|&seed| {
                let bytes = Letter::new(2048, LineEnd::Lf, 1, seed).unwrap().seal(1);
                bytes.windows(6).any(|window| window == b"\nFrom ")
            })
            .count();
        assert!((2..20).contains(&quoted), "{quoted}");
    }

    #[test]
    fn drawn_users_differ_and_spread() {
        let users = Users::new("u", 100);
        let mut random = fastrand::Rng::with_seed(1);
        let (mut drawn, mut seen) = (Vec::new(), vec![0; 100]);
        for _ in 0..2000 {
            users.draw(5, None, &mut random, &mut drawn);
            let mut sorted = drawn.clone();
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!(sorted.len(), 5);
            for &user in &drawn {
                seen[user] += 1;
            }
        }
        assert!(seen.iter().all(|&count| count > 40));
        users.draw(1000, None, &mut random, &mut drawn);
        assert_eq!(drawn.len(), 100);
        assert_eq!(users.name(7), "u0000007");
    }
}
