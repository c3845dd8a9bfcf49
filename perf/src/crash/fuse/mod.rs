//! The rig with a disk that remembers: a FUSE server serves one file, a loop device makes a disk of it,
//! a file system and a store stand on that, and every write and flush of the disk is recorded. Then
//! crashes are tried at many places of the record: what was flushed is there, the rest by chance, torn
//! at sectors (storage.md 12.3, item 8).
//!
//! An answer is noted with the record's length at that moment. A crash at a later place has to have
//! the message; a crash before the message was sent cannot. In between it is in doubt.
//!
//! A rig that finds nothing proves nothing: first a flushed file is looked for on the record, last two
//! losses are planted and have to be found.

#![expect(
    clippy::print_stdout,
    reason = "a rig speaks to whoever runs it, and its last lines are read by scripts"
)]

mod bench;
mod blocks;
mod server;
mod tape;

use std::io::Write as _;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use self::bench::{Stand, Writes};
use self::blocks::Blocks;
use self::tape::{Image, Plant, Recording};
use super::ledger::{Ledger, Mark};
use super::letter;
use super::run::{Run, mib};
use crate::loop_disk::{self as disk, FileSystem, NoDisk};

/// Rounds until a fresh file system: disks are in memory.
const ROUNDS_PER_STORE: u32 = 8;

/// Flushes of which the one with the most unflushed writes is taken.
const CUTS_COMPARED: usize = 6;

/// The name and the mark of the file that shows that flushes arrive.
const PROBE: (&str, &[u8]) = ("probe", b"ringpost: does a flush reach the disk?");

/// The rig's state and counts.
pub(super) struct Taped {
    stand: Stand,
    folder: PathBuf,
    images_per_round: u32,
    random: fastrand::Rng,
    /// An empty file system.
    fresh: Blocks,
    /// What the next round begins with.
    base: Blocks,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    images: u32,
    in_recovery: u32,
    refused: u32,
    flushes: usize,
    writes: usize,
    overtaken: usize,
    unflushed: usize,
    torn: usize,
    planted: u32,
    planted_found: u32,
    largest_bytes: u64,
}

/// The places of a round on its record.
struct Places {
    /// The store served.
    ready: Mark,
    /// The load began.
    loaded: Mark,
    /// The daemon was dead.
    struck: Mark,
}

impl Taped {
    /// Makes a file system below `folder` and sees to it that flushes arrive.
    pub(super) fn create(
        kind: FileSystem,
        folder: &Path,
        images_per_round: u32,
        seed: u64,
    ) -> anyhow::Result<Result<Self, NoDisk>> {
        if let Err(why) = disk::own_namespace() {
            return Ok(Err(why));
        }
        let stand = Stand::new(kind, folder)?;
        let fresh = match stand.format() {
            Ok(fresh) => fresh,
            Err(why) => return Ok(Err(NoDisk(format!("{why:#}")))),
        };
        for writes in [Writes::InTurn, Writes::Many] {
            probe(&stand, &fresh, writes)?;
        }
        println!("flushed files are on the record, and the flush is behind them");
        Ok(Ok(Self {
            stand,
            folder: folder.to_owned(),
            images_per_round,
            random: fastrand::Rng::with_seed(seed ^ 0x7a9e),
            base: fresh.clone(),
            fresh,
            counts: Counts::default(),
        }))
    }

    /// Where the file system is mounted.
    pub(super) fn folder(&self) -> &Path {
        self.stand.folder()
    }

    /// All rounds, then the planted faults.
    pub(super) fn all_rounds(&mut self, run: &mut Run<'_>) -> anyhow::Result<()> {
        let rounds = run.common.rounds;
        for round in 1..=rounds {
            self.round(run, round, rounds)
                .with_context(|| format!("round {round}"))?;
        }
        self.print();
        let counts = &self.counts;
        ensure!(
            counts.refused <= counts.images / 4,
            "most crashes left the file system unreadable"
        );
        ensure!(
            counts.planted_found == counts.planted,
            "a planted loss was not found: the rig is blind"
        );
        Ok(())
    }

    fn round(&mut self, run: &mut Run<'_>, round: u32, rounds: u32) -> anyhow::Result<()> {
        let first = (round - 1).is_multiple_of(ROUNDS_PER_STORE);
        if first {
            self.base = self.fresh.clone();
            run.ledger.forget_store();
        }
        let before = run.ledger.fork();
        let (recording, places) = self.record(run, round, first, round == rounds)?;
        let acknowledged = run.ledger.acknowledged;
        self.counts.flushes += recording.flushes(0..Mark::MAX).count();
        self.counts.writes += recording.events.len();
        self.counts.overtaken += recording.overtaken_count();

        if round == rounds {
            self.plant(run, &recording, &places)?;
        }
        for number in 1..=self.images_per_round {
            let last = number == self.images_per_round;
            let recovery = !last && self.random.u8(..5) == 0;
            let (cut, ledger) = if recovery {
                self.counts.in_recovery += 1;
                (self.cut(&recording, 0..places.ready), before.clone())
            } else {
                let cut = self.cut(&recording, places.loaded..places.struck);
                (cut, run.ledger.fork_at(cut))
            };
            let image = recording.image(cut, &mut self.random, Plant::None);
            self.counts.unflushed += image.unflushed_count;
            self.counts.torn += image.torn_count;
            self.counts.largest_bytes = self.counts.largest_bytes.max(image.blocks.bytes());
            let of = format!("round {round}, image {number}, crash at {cut}");
            let disk = image.blocks.clone();
            let tried = self.try_image(run, &image.blocks, ledger.fork())?;
            self.count(run, &image, tried.as_ref(), &of)?;
            if last && tried.is_some() {
                run.ledger.continue_from(ledger);
                self.base = disk;
            } else if last {
                // Nothing to go on with but another store.
                self.base = self.fresh.clone();
                run.ledger.forget_store();
            }
        }
        println!(
            "round {round}: {} acknowledged so far, {} flushes, {} images",
            acknowledged,
            recording.flushes(places.loaded..places.struck).count(),
            self.images_per_round,
        );
        Ok(())
    }

    /// A round as it really goes: start, verification, load, SIGKILL, unmount.
    fn record(
        &mut self,
        run: &mut Run<'_>,
        round: u32,
        first: bool,
        last: bool,
    ) -> anyhow::Result<(Recording, Places)> {
        run.settle();
        let mut moment = Duration::from_millis(self.random.u64(5..=run.common.window_ms));
        if last {
            // What is to be lost must be in the log alone, and there must be something.
            run.setup
                .settings
                .push("checkpoint_interval=60 s".to_owned());
            moment = Duration::from_millis(run.common.window_ms);
        }
        let writes = if self.random.bool() {
            Writes::InTurn
        } else {
            Writes::Many
        };
        let bench = match self.stand.mount(self.base.clone(), writes)? {
            Ok(bench) => bench,
            Err(why) => bail!("a disk that could be mounted cannot be mounted again: {why}"),
        };
        let marks = bench.tape.marks();
        let now = || marks.load(Ordering::Acquire);
        run.ledger.marks = Some(bench.tape.marks());
        let mut daemon = run.start()?;
        let ready = now();
        if !first {
            run.verify(&daemon)?;
        }
        let loaded = now();
        run.load_and_strike(&mut daemon, round, moment)?;
        daemon.kill()?;
        let struck = now();
        run.ledger.marks = None;
        let places = Places {
            ready,
            loaded,
            struck,
        };
        Ok((bench.take_down()?, places))
    }

    /// A place for a crash. Three times in four the one of some flushes, between begin and end, at
    /// which most is unflushed; else anywhere.
    fn cut(&mut self, recording: &Recording, range: Range<Mark>) -> Mark {
        let flushes: Vec<Mark> = recording
            .flushes(range.clone())
            .map(|flush| flush.begin + 1)
            .collect();
        if flushes.is_empty() || self.random.u8(..4) == 0 {
            return self.random.u64(range.start..=range.end);
        }
        let drawn = (0..CUTS_COMPARED).filter_map(|_| {
            flushes
                .get(self.random.usize(..flushes.len()))
                .map(|cut| (recording.unflushed_count(*cut), *cut))
        });
        drawn.max().map_or(range.end, |(_, cut)| cut)
    }

    /// Mounts a disk after a crash, starts a store on it and compares. `None`: the file system did not
    /// mount, which is no fault of the store's.
    fn try_image(
        &mut self,
        run: &mut Run<'_>,
        disk: &Blocks,
        ledger: Ledger,
    ) -> anyhow::Result<Option<Ledger>> {
        let bench = match self.stand.mount(disk.clone(), Writes::InTurn)? {
            Ok(bench) => bench,
            Err(why) => {
                println!("not mounted: {why}");
                return Ok(None);
            }
        };
        let truth = std::mem::replace(&mut run.ledger, ledger);
        let read = self.read_back(run);
        let mut ledger = std::mem::replace(&mut run.ledger, truth);
        if let Err(error) = read {
            ledger.violations.other(|| format!("{error:#}"));
        }
        bench.take_down()?;
        Ok(Some(ledger))
    }

    fn read_back(&self, run: &mut Run<'_>) -> anyhow::Result<()> {
        run.settle();
        if (self.counts.images + 1).is_multiple_of(run.common.check_every) {
            run.check(self.counts.images + 1)?;
        }
        let daemon = run.start()?;
        run.verify(&daemon)?;
        daemon.kill()?;
        Ok(())
    }

    fn count(
        &mut self,
        run: &mut Run<'_>,
        image: &Image,
        tried: Option<&Ledger>,
        of: &str,
    ) -> anyhow::Result<()> {
        self.counts.images += 1;
        let Some(tried) = tried else {
            self.counts.refused += 1;
            return Ok(());
        };
        if !tried.violations.is_none() {
            let path = self.folder.join(format!("image-{}", self.counts.images));
            let file = std::fs::File::create(&path)?;
            file.set_len(bench::DISK_BYTES)?;
            for (offset, bytes) in image.blocks.iter() {
                file.write_all_at(bytes, offset)?;
            }
            println!("{of}: kept as {}", path.display());
        }
        run.ledger.absorb(tried, of);
        Ok(())
    }

    /// Two losses that a disk should not have allowed; each has to be found.
    fn plant(
        &mut self,
        run: &mut Run<'_>,
        recording: &Recording,
        places: &Places,
    ) -> anyhow::Result<()> {
        let ledger = run.ledger.fork_at(places.struck);
        let seed = run.seed;
        let holds = |bytes: &[u8]| letter::serials(seed, bytes).any(|one| ledger.is_due(one));
        let Some(event) = recording.last_durable(places.loaded, places.struck, holds) else {
            println!("nothing was acknowledged in the last round: no loss to plant");
            return Ok(());
        };
        let plants = [
            ("one flushed write dropped", Plant::DropFlushed(event)),
            (
                "flushes answered and not made",
                Plant::LyingFlush(places.loaded),
            ),
        ];
        for (name, plant) in plants {
            let image = recording.image(places.struck, &mut self.random, plant);
            let tried = self.try_image(run, &image.blocks, ledger.fork())?;
            self.counts.planted += 1;
            let found = tried.is_none_or(|tried| {
                println!(
                    "planted: {name}: {} lost, {} other violations",
                    tried.violations.lost, tried.violations.other
                );
                !tried.violations.is_none()
            });
            self.counts.planted_found += u32::from(found);
        }
        Ok(())
    }

    fn print(&self) {
        let Counts {
            images,
            in_recovery,
            refused,
            flushes,
            writes,
            overtaken,
            unflushed,
            torn,
            planted,
            planted_found,
            largest_bytes,
        } = &self.counts;
        println!(
            "{} images, {in_recovery} of them of a crash in recovery, {refused} refused by {}; \
             {writes} writes and flushes recorded, {flushes} flushes, {overtaken} writes \
             overtaken by one; {unflushed} writes unflushed \
             at a crash, {torn} of them torn; largest disk {}",
            images,
            self.stand.kind.name(),
            mib(*largest_bytes),
        );
        println!("{planted_found} of {planted} planted losses found");
    }
}

/// A file that is written and synced has to be on the record, and a flush behind it.
fn probe(stand: &Stand, fresh: &Blocks, writes: Writes) -> anyhow::Result<()> {
    let bench = match stand.mount(fresh.clone(), writes)? {
        Ok(bench) => bench,
        Err(why) => bail!("an empty file system does not mount: {why}"),
    };
    let (name, mark) = PROBE;
    let mut file = std::fs::File::create_new(stand.folder().join(name))?;
    file.write_all(mark)?;
    file.sync_data()?;
    drop(file);
    let holds = |bytes: &[u8]| bytes.windows(mark.len()).any(|window| window == mark);
    // Before unmounting, which flushes in any case.
    let recording = bench.tape.recording(Blocks::default());
    bench.take_down()?;
    ensure!(
        recording.flushed_after(holds),
        "a file was written and synced, and no flush is on the record behind it ({writes:?})"
    );
    Ok(())
}
