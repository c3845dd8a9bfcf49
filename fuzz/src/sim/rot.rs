//! The medium goes wrong: bits rot, sectors are lost or written elsewhere, a log write is confirmed
//! and not done, blocks in flight turn into garbage. What was hurt is named or served whole; never are
//! wrong bytes served, and nobody else's mail is touched (storage.md 12.1).

use ringpost_engine::error::OpenError;
use ringpost_engine::io::RelPath;
use ringpost_engine::io::sim::{Harsh, Sector};
use ringpost_engine::limits::NOOP_INTERVAL_NS;

use super::Sim;
use super::model::{Verdict, ensure};

/// More than any scrub of a small store takes in two intervals.
const QUIET_TURNS_MAX: u32 = 2_000;

impl Sim {
    /// The last life of a seed whose medium goes wrong.
    pub(super) fn rot(&mut self) -> Verdict {
        self.repair_disk();
        self.oracle.excuses.hurt = false;
        self.oracle.excuses.full = false;
        ensure!(
            self.open_plainly()?,
            "the store does not open before the rot"
        );
        for who in 0..self.knobs.users {
            self.look_at(who)?;
        }
        let how = self.rng.u8(..10);
        let (at, misdirected) = (self.rng.u64(1..20), self.rng.bool());
        let sector = if misdirected {
            Sector::Misdirected
        } else {
            Sector::Lost
        };
        let (writes, counted) = (self.disk.log_writes() + at, at);
        match how {
            0 => self
                .disk
                .configure(|config| config.lost_write_at = Some(writes)),
            1 => self
                .disk
                .configure(|config| config.sector_at = Some((counted, sector))),
            2 => self.disk.configure(|config| config.harsh = Harsh::Yes),
            _ => {}
        }
        self.oracle.excuses.rotten = true;
        // What is read back in this life may be what was hurt in it.
        self.oracle.excuses.hurt = how < 2;
        self.work()?;
        self.settle()?;
        self.oracle.excuses.hurt = how < 2;
        // A quiet moment, in which at the most a scrub or a compaction goes on: the last frame is
        // vouched for.
        let until = self.disk.now_ns() + 2 * NOOP_INTERVAL_NS;
        for turn in 0..QUIET_TURNS_MAX {
            if turn >= 60 && self.disk.now_ns() >= until {
                break;
            }
            self.turn()?;
        }
        self.crash();
        let harsh = self.knobs.disk.harsh;
        self.disk.configure(|config| config.harsh = harsh);
        match how {
            0..=2 => {}
            3..=7 => self.flip(),
            _ => self.stray(),
        }
        let wounds = self.disk.wounds();
        self.stats.wounds += u64::try_from(wounds.len()).unwrap_or(0);
        let mut files: Vec<String> = wounds.into_iter().map(|wound| wound.path).collect();
        files.dedup();
        self.say(|_| format!("hurt: {files:?}"));
        self.oracle.excuses.wounds = files;
        self.oracle.excuses.hurt = false;
        if self.hazards.repairs && how > 2 {
            return self.mend();
        }
        self.live_on()
    }

    /// Flips a bit somewhere, mostly in a log.
    fn flip(&mut self) {
        let logs = self.rng.u8(..3) > 0;
        let tree = self.disk.tree();
        let wanted = |path: &str| {
            let log = path.starts_with("log/") && path.contains(".log");
            if logs { log } else { path != "STORE" }
        };
        let files = tree.into_iter();
        let files = files.filter(|(path, bytes)| bytes.is_some_and(|n| n > 0) && wanted(path));
        let files: Vec<String> = files.map(|(path, _)| path).collect();
        let Some(file) = self.rng.choice(files).and_then(|path| plain_path(&path)) else {
            return;
        };
        let bytes = self.disk.read(&file).unwrap_or_default();
        // Zeros behind the end of a log are not worth it.
        let used: Vec<usize> = (0..bytes.len())
            .filter(|at| bytes.get(*at).is_some_and(|byte| *byte != 0))
            .collect();
        let Some(at) = self.rng.choice(used) else {
            return;
        };
        let mask = 1 << self.rng.u32(..8);
        self.disk.flip(&file, u64::try_from(at).unwrap_or(0), mask);
    }

    /// Puts a sector of an index where another one belongs, of the same index or another one.
    fn stray(&mut self) {
        let is_index = |path: &String| path.contains("/info.");
        let tree = self.disk.tree().into_iter().map(|(path, _)| path);
        let files: Vec<RelPath> = tree
            .filter(is_index)
            .filter_map(|path| plain_path(&path))
            .collect();
        // Not every two sectors differ.
        for _attempt in 0..8 {
            let (Some(from), Some(to)) = (self.rng.choice(&files), self.rng.choice(&files)) else {
                return;
            };
            let bytes = |file| self.disk.len(file).unwrap_or(0).max(1);
            let places = (self.rng.u64(..bytes(from)), self.rng.u64(..bytes(to)));
            if self.disk.stray((from, places.0), (to, places.1)) {
                return;
            }
        }
    }

    /// Opens what was hurt: refused by a sentence that names it, or everybody is served.
    fn live_on(&mut self) -> Verdict {
        match self.open_with([2; 16]) {
            Ok(()) => {}
            Err(OpenError::LogDamaged(corrupt) | OpenError::Corrupt(corrupt)) => {
                // A chain of files that ends too early is named where it ends.
                let in_log = |file: &str| file.starts_with("log/");
                let wounds = &self.oracle.excuses.wounds;
                let named = self.oracle.excuses.is_wounded(&corrupt.file)
                    || (in_log(&corrupt.file) && wounds.iter().any(|wound| in_log(wound)));
                ensure!(named, "{corrupt} is named, hurt was {wounds:?}");
                return Ok(());
            }
            Err(error) => {
                return Err(format!(
                    "the store does not open after {:?}: {error}",
                    self.oracle.excuses.wounds
                ));
            }
        }
        for who in 0..self.knobs.users {
            self.look_at(who)?;
        }
        Ok(())
    }
}

pub(super) fn plain_path(path: &str) -> Option<RelPath> {
    let entry = |dir: Option<RelPath>, name| dir.and_then(|dir| dir.entry(name));
    path.split('/').fold(Some(RelPath::root()), entry)
}
