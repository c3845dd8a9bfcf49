//! What reached the disk, in order: every write and every flush has a mark for its begin and one for
//! its end, and a crash is a place between two marks.
//!
//! The promise of a disk with a volatile cache: a flush that ended makes durable whatever had ended
//! before it began. Everything else that had begun is in the cache, or on its way, and may be there, not
//! there, or there in part, sector by sector. What began after the crash is not there.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, MutexGuard, PoisonError};
use std::time::Duration;

use super::blocks::{Blocks, SECTOR_BYTES};
use crate::crash::ledger::Mark;

#[expect(
    clippy::disallowed_types,
    reason = "the kernel's requests arrive on several threads; each holds it for one copy"
)]
type Mutex<T> = std::sync::Mutex<T>;

/// How long a write that lingers waits for a flush to overtake it.
const LINGER_MAX: Duration = Duration::from_millis(2);

/// What was done.
#[derive(Clone, Debug)]
pub(super) enum Deed {
    /// Bytes at an offset.
    Write(u64, Arc<[u8]>),
    /// That many zeros at an offset.
    Zero(u64, usize),
    /// Make durable what ended before.
    Flush,
}

/// A deed and its time. `end` is `Mark::MAX` until it ended.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) begin: Mark,
    pub(super) end: Mark,
    pub(super) deed: Deed,
}

#[derive(Debug)]
struct State {
    blocks: Blocks,
    events: Vec<Event>,
    flushes_ended: u64,
    lingering: u32,
}

/// A disk that remembers. Shared by the threads that serve it.
#[derive(Debug)]
pub(super) struct Tape {
    marks: Arc<AtomicU64>,
    state: Mutex<State>,
    flushed: Condvar,
    /// One write in so many waits for a flush to overtake it; 0: none.
    linger_one_in: u64,
}

impl Tape {
    /// A disk with these contents. One write in `linger_one_in` stays in flight until a flush that began
    /// later has ended, if that comes soon; 0 is never.
    pub(super) fn new(base: Blocks, linger_one_in: u64) -> Self {
        Self {
            marks: Arc::new(AtomicU64::new(0)),
            state: Mutex::new(State {
                blocks: base,
                events: Vec::new(),
                flushes_ended: 0,
                lingering: 0,
            }),
            flushed: Condvar::new(),
            linger_one_in,
        }
    }

    /// Counts the marks. Read when an answer arrives, it is behind everything the answer rests on.
    pub(super) fn marks(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.marks)
    }

    /// The disk as a reader sees it.
    pub(super) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        self.lock().blocks.read(offset, len)
    }

    /// Takes a write; returns when it may be answered.
    pub(super) fn write(&self, offset: u64, bytes: &[u8]) {
        if bytes.iter().all(|byte| *byte == 0) {
            self.zero(offset, bytes.len());
            return;
        }
        let mut state = self.lock();
        state.blocks.write(offset, bytes);
        let event = self.begin(&mut state, Deed::Write(offset, Arc::from(bytes)));
        // Never more than one: it keeps a thread, and flushes want one.
        let lingers = self.linger_one_in > 0
            && state.lingering == 0
            && state
                .events
                .get(event)
                .is_some_and(|event| event.begin % self.linger_one_in == 0);
        if lingers {
            state.lingering += 1;
            let before = state.flushes_ended;
            let (after, _) = self
                .flushed
                .wait_timeout_while(state, LINGER_MAX, |state| state.flushes_ended == before)
                .unwrap_or_else(PoisonError::into_inner);
            state = after;
            state.lingering -= 1;
        }
        self.end(&mut state, event);
    }

    /// Zeros, also where the file system asked for a hole.
    pub(super) fn zero(&self, offset: u64, len: usize) {
        let mut state = self.lock();
        state.blocks.zero(offset, len);
        let event = self.begin(&mut state, Deed::Zero(offset, len));
        self.end(&mut state, event);
    }

    /// Takes a flush; what ended before is durable once this returned.
    pub(super) fn flush(&self) {
        let mut state = self.lock();
        let event = self.begin(&mut state, Deed::Flush);
        self.end(&mut state, event);
        state.flushes_ended += 1;
        drop(state);
        self.flushed.notify_all();
    }

    /// The disk as it is.
    pub(super) fn blocks(&self) -> Blocks {
        self.lock().blocks.clone()
    }

    /// What happened so far, on the disk that was there first.
    pub(super) fn recording(&self, base: Blocks) -> Recording {
        Recording {
            base,
            events: self.lock().events.clone(),
        }
    }

    fn begin(&self, state: &mut State, deed: Deed) -> usize {
        let begin = self.marks.fetch_add(1, Ordering::AcqRel);
        state.events.push(Event {
            begin,
            end: Mark::MAX,
            deed,
        });
        state.events.len() - 1
    }

    fn end(&self, state: &mut State, event: usize) {
        let end = self.marks.fetch_add(1, Ordering::AcqRel);
        if let Some(event) = state.events.get_mut(event) {
            event.end = end;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a crash does beyond its place; all but `None` are planted faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Plant {
    /// The disk keeps its promise.
    None,
    /// One write that was flushed is not there: the event of this number.
    DropFlushed(usize),
    /// Flushes that began at this mark or later were answered and not made.
    LyingFlush(Mark),
}

/// How a crash treats what was not flushed. One per image, so that extremes occur.
#[derive(Clone, Copy, Debug)]
struct Fates {
    /// Of 4: kept whole.
    kept: u8,
    /// Of 4: torn, if not kept; the rest is dropped.
    torn: u8,
}

/// A disk after a crash.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) blocks: Blocks,
    /// Writes before the crash that no flush covered.
    pub(super) unflushed_count: usize,
    /// Of these, there in part.
    pub(super) torn_count: usize,
}

/// A tape that ended, and what was on the disk when it began.
#[derive(Debug)]
pub(super) struct Recording {
    base: Blocks,
    /// By begin.
    pub(super) events: Vec<Event>,
}

impl Recording {
    /// The disk after a crash at `cut`: what is durable, and of the rest what `random` leaves.
    pub(super) fn image(&self, cut: Mark, random: &mut fastrand::Rng, plant: Plant) -> Image {
        let mut image = Image {
            blocks: self.base.clone(),
            unflushed_count: 0,
            torn_count: 0,
        };
        let durable = self.durable_before(cut, plant);
        let fates = match plant {
            Plant::LyingFlush(_) => Fates { kept: 0, torn: 0 },
            Plant::None | Plant::DropFlushed(_) => Fates {
                kept: random.u8(0..=4),
                torn: random.u8(0..=4),
            },
        };
        let before = self.events.partition_point(|event| event.begin < cut);
        for (number, event) in self.events.iter().take(before).enumerate() {
            if plant == Plant::DropFlushed(number) {
                continue;
            }
            if event.end < durable {
                image.apply(&event.deed);
            } else if !matches!(event.deed, Deed::Flush) {
                image.unflushed_count += 1;
                if random.u8(..4) < fates.kept {
                    image.apply(&event.deed);
                } else if random.u8(..4) < fates.torn {
                    image.torn_count += 1;
                    image.tear(&event.deed, random);
                }
            }
        }
        image
    }

    /// What ended before this mark is durable in a crash at `cut`.
    fn durable_before(&self, cut: Mark, plant: Plant) -> Mark {
        let honest = |event: &&Event| match plant {
            Plant::LyingFlush(from) => event.begin < from,
            Plant::None | Plant::DropFlushed(_) => true,
        };
        self.events
            .iter()
            .filter(|event| matches!(event.deed, Deed::Flush) && event.end < cut)
            .filter(honest)
            .map(|event| event.begin)
            .max()
            .unwrap_or(0)
    }

    /// Writes that a crash at `cut` may lose.
    pub(super) fn unflushed_count(&self, cut: Mark) -> usize {
        let durable = self.durable_before(cut, Plant::None);
        self.events
            .iter()
            .take_while(|event| event.begin < cut)
            .filter(|event| event.end >= durable && !matches!(event.deed, Deed::Flush))
            .count()
    }

    /// Writes that were still in flight when a flush that began later had ended.
    pub(super) fn overtaken_count(&self) -> usize {
        self.events
            .iter()
            .enumerate()
            .filter(|(_, event)| !matches!(event.deed, Deed::Flush))
            .filter(|(number, event)| {
                self.events
                    .iter()
                    .skip(number + 1)
                    .take_while(|later| later.begin < event.end)
                    .any(|later| matches!(later.deed, Deed::Flush) && later.end < event.end)
            })
            .count()
    }

    /// Flushes that began in this range.
    pub(super) fn flushes(&self, range: std::ops::Range<Mark>) -> impl Iterator<Item = &Event> {
        self.events
            .iter()
            .filter(move |event| matches!(event.deed, Deed::Flush) && range.contains(&event.begin))
    }

    /// The last write from `from` on that holds `needle` and is durable in a crash at `cut`.
    pub(super) fn last_durable(
        &self,
        from: Mark,
        cut: Mark,
        mut holds: impl FnMut(&[u8]) -> bool,
    ) -> Option<usize> {
        let durable = self.durable_before(cut, Plant::None);
        self.events
            .iter()
            .enumerate()
            .rev()
            .filter(|(_, event)| event.begin >= from && event.end < durable)
            .find(|(_, event)| matches!(&event.deed, Deed::Write(_, bytes) if holds(bytes)))
            .map(|(number, _)| number)
    }

    /// Whether a flush began after the last write that holds `needle` had ended, and ended.
    pub(super) fn flushed_after(&self, holds: impl FnMut(&[u8]) -> bool) -> bool {
        self.last_durable(0, Mark::MAX, holds).is_some()
    }
}

impl Image {
    fn apply(&mut self, deed: &Deed) {
        match deed {
            Deed::Write(offset, bytes) => self.blocks.write(*offset, bytes),
            Deed::Zero(offset, len) => self.blocks.zero(*offset, *len),
            Deed::Flush => {}
        }
    }

    /// Each sector by the toss of a coin.
    fn tear(&mut self, deed: &Deed, random: &mut fastrand::Rng) {
        let sector = u64::try_from(SECTOR_BYTES).unwrap_or(u64::MAX);
        match deed {
            Deed::Write(offset, bytes) => {
                for (number, piece) in (0..).zip(bytes.chunks(SECTOR_BYTES)) {
                    if random.bool() {
                        self.blocks.write(offset + number * sector, piece);
                    }
                }
            }
            Deed::Zero(offset, len) => {
                let mut done = 0;
                for number in 0.. {
                    if done >= *len {
                        break;
                    }
                    let count = SECTOR_BYTES.min(len - done);
                    if random.bool() {
                        self.blocks.zero(offset + number * sector, count);
                    }
                    done += count;
                }
            }
            Deed::Flush => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Offset and letter of each kilobyte written, `F` between them.
    fn tape(script: &str) -> Recording {
        let tape = Tape::new(Blocks::default(), 0);
        for (offset, letter) in (0..).step_by(1024).zip(script.bytes()) {
            if letter == b'F' {
                tape.flush();
            } else {
                tape.write(offset, &[letter; 1024]);
            }
        }
        tape.recording(Blocks::default())
    }

    fn letters(image: &Image, count: usize) -> Vec<Vec<u8>> {
        let bytes = image.blocks.read(0, count * 1024);
        bytes.chunks(512).map(<[u8]>::to_vec).collect()
    }

    #[test]
    fn flushed_writes_are_there_and_the_rest_is_anything() {
        let recording = tape("abFcdFe");
        let (mut dropped, mut kept, mut torn) = (0, 0, 0);
        for seed in 0..200 {
            // Between the begin and the end of the second flush.
            let mut random = fastrand::Rng::with_seed(seed);
            let image = recording.image(11, &mut random, Plant::None);
            assert_eq!(image.unflushed_count, 2);
            assert_eq!(recording.unflushed_count(11), 2);
            let sectors = letters(&image, 7);
            assert!(sectors[..2].iter().all(|sector| sector[..] == [b'a'; 512]));
            assert!(sectors[2..4].iter().all(|sector| sector[..] == [b'b'; 512]));
            assert!(sectors[12..].iter().all(|sector| sector[..] == [0; 512]));
            match (sectors[6][0], sectors[7][0]) {
                (0, 0) => dropped += 1,
                (b'c', b'c') => kept += 1,
                (0, b'c') | (b'c', 0) => torn += 1,
                other => panic!("{other:?}"),
            }
        }
        assert!(dropped > 20 && kept > 20 && torn > 10);
        // The second flush has ended.
        let mut random = fastrand::Rng::with_seed(1);
        let image = recording.image(12, &mut random, Plant::None);
        assert_eq!((image.unflushed_count, image.torn_count), (0, 0));
        assert_eq!(letters(&image, 7)[8], [b'd'; 512]);
    }

    #[test]
    fn write_in_flight_while_a_flush_runs_is_not_covered_by_it() {
        let recording = Recording {
            base: Blocks::default(),
            events: vec![
                Event {
                    begin: 0,
                    end: 3,
                    deed: Deed::Write(0, Arc::from([b'a'; 512])),
                },
                Event {
                    begin: 1,
                    end: 2,
                    deed: Deed::Flush,
                },
            ],
        };
        let mut random = fastrand::Rng::with_seed(1);
        let image = recording.image(4, &mut random, Plant::None);
        assert_eq!(image.unflushed_count, 1);
        assert_eq!(recording.overtaken_count(), 1);
        assert!(!recording.flushed_after(|bytes| bytes.contains(&b'a')));
    }

    #[test]
    fn planted_faults_lose_what_was_flushed() {
        let recording = tape("abFcF");
        let holds = |bytes: &[u8]| bytes.contains(&b'b');
        let number = recording.last_durable(0, 10, holds).unwrap();
        let mut random = fastrand::Rng::with_seed(1);
        let image = recording.image(10, &mut random, Plant::DropFlushed(number));
        assert_eq!(letters(&image, 5)[2], [0; 512]);
        assert_eq!(letters(&image, 5)[6], [b'c'; 512]);

        let image = recording.image(10, &mut random, Plant::LyingFlush(5));
        assert_eq!(letters(&image, 5)[2], [b'b'; 512]);
        assert_eq!(letters(&image, 5)[6], [0; 512]);
        assert!(recording.flushed_after(|bytes| bytes.contains(&b'c')));
        assert_eq!(recording.flushes(0..6).count(), 1);
    }

    #[test]
    fn lingering_write_is_overtaken_by_a_flush() {
        let tape = Arc::new(Tape::new(Blocks::default(), 1));
        let writer = {
            let tape = Arc::clone(&tape);
            std::thread::spawn(move || tape.write(0, b"x"))
        };
        while !writer.is_finished() {
            tape.flush();
        }
        writer.join().unwrap();
        tape.flush();
        let events = tape.recording(Blocks::default()).events;
        let write = events
            .iter()
            .find(|event| matches!(event.deed, Deed::Write(..)))
            .unwrap();
        assert!(write.end > write.begin && write.end != Mark::MAX);
        assert_eq!(tape.read(0, 1), b"x");
    }
}
