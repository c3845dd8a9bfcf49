//! The rigs of what is no delivery: compaction under load, repair, import, each cut at a random moment.
//!
//! What no protocol asks for yet is done by a child that opens the store itself ([`super::life`]) and
//! tells over a pipe what it was told. Afterwards: what was stored and not to be expunged is there
//! once, under its uid, with its bytes; what is expunged does not come back; nothing else is there.
//!
//! A repair that is cut is run again; then the store has to hold what it holds after a repair that
//! was left alone. An import has a daemon (`import`), and is run again as well.

#![expect(
    clippy::print_stdout,
    reason = "a rig speaks to whoever runs it, and its last line is read by scripts"
)]

mod import;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use super::Common;
use super::life::USERS;
use crate::loop_disk::{self, Disk};
use crate::programs::Programs;

/// A child whose disk is gone ends within this.
const END_PATIENCE: Duration = Duration::from_secs(20);

/// Until the child has opened its store and stored its first message.
const FIRST_MAX: Duration = Duration::from_mins(2);

/// Messages of a store that is damaged and repaired.
const REPAIR_MESSAGES: u64 = 1_200;

/// Bytes that are flipped in it.
const REPAIR_FLIPS: usize = 12;

/// What is under way when the power goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Task {
    /// Deliveries to a daemon.
    Deliver,
    /// Mail, expunges and compactions, in the engine.
    Compact,
    /// `ringpost repair` of a damaged store.
    Repair,
    /// `ringpost import` of an mbox into a running daemon.
    Import,
}

/// What is true of one user.
#[derive(Clone, Debug, Default)]
struct Mailbox {
    /// Uid and serial of what was stored.
    kept: BTreeMap<u32, u64>,
    /// Submitted, without an answer.
    doubtful: BTreeSet<u64>,
    /// Expunges submitted, without an answer.
    going: Vec<(u32, u32)>,
    /// Uids that an expunge took for good.
    gone: BTreeSet<u32>,
}

/// The state of a rig.
pub(super) struct Lives<'a> {
    common: &'a Common,
    programs: &'a Programs,
    disk: Disk,
    folder: PathBuf,
    seed: u64,
    random: fastrand::Rng,
    boxes: Vec<Mailbox>,
    serial: u64,
    stored: u64,
    expunged: u64,
    compactions: u64,
    struck_in_compaction: u32,
    struck_in_repair: u32,
    struck_in_import: u32,
    violations: Vec<String>,
}

impl<'a> Lives<'a> {
    pub(super) fn new(
        common: &'a Common,
        programs: &'a Programs,
        disk: Disk,
        folder: &Path,
        seed: u64,
    ) -> Self {
        Self {
            common,
            programs,
            disk,
            folder: folder.to_owned(),
            seed,
            random: fastrand::Rng::with_seed(seed),
            boxes: vec![Mailbox::default(); USERS],
            serial: 1,
            stored: 0,
            expunged: 0,
            compactions: 0,
            struck_in_compaction: 0,
            struck_in_repair: 0,
            struck_in_import: 0,
            violations: Vec::new(),
        }
    }

    fn data(&self) -> PathBuf {
        self.disk.folder().join("data")
    }

    /// All rounds; whether nothing was lost, doubled or damaged.
    pub(super) fn all_rounds(&mut self, task: Task) -> anyhow::Result<bool> {
        for round in 1..=self.common.rounds {
            match task {
                Task::Compact | Task::Deliver => self.compaction_round(round),
                Task::Repair => self.repair_round(round),
                Task::Import => self.import_round(round),
            }
            .with_context(|| format!("round {round}"))?;
        }
        for sentence in self.violations.iter().take(20) {
            println!("VIOLATION {sentence}");
        }
        println!(
            "{} rounds: {} stored, {} expunged, {} compactions; cut in the middle of a compaction {} \
             times, of a repair {} times, of an import {} times; {} violations",
            self.common.rounds,
            self.stored,
            self.expunged,
            self.compactions,
            self.struck_in_compaction,
            self.struck_in_repair,
            self.struck_in_import,
            self.violations.len()
        );
        Ok(self.violations.is_empty())
    }

    fn compaction_round(&mut self, round: u32) -> anyhow::Result<()> {
        let moment = Duration::from_millis(self.random.u64(5..=self.common.window_ms));
        let mut child = self.life(&["load", &self.seed.to_string(), &self.serial.to_string()])?;
        let output = child.stdout.take().context("a pipe")?;
        let (sender, lines) = mpsc::channel::<String>();
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut told = Vec::new();
        let begun = Instant::now();
        while !told.iter().any(|line: &String| line.starts_with("k ")) {
            let left = FIRST_MAX.saturating_sub(begun.elapsed());
            told.push(
                lines
                    .recv_timeout(left)
                    .context("the child stores nothing")?,
            );
        }
        let strike = Instant::now() + moment;
        while let Some(left) = strike.checked_duration_since(Instant::now()) {
            if let Ok(line) = lines.recv_timeout(left) {
                told.push(line);
            }
        }
        self.disk.cut_power()?.wait()?;
        end(&mut child)?;
        told.extend(lines.iter());
        if reader.join().is_err() {
            bail!("the thread that reads the child's words failed");
        }
        self.disk.power_up()?;
        let compacting = self.learn(&told)?;
        self.struck_in_compaction += u32::from(compacting);
        self.check(round)?;
        let found = self.read()?;
        self.compare(round, &found);
        println!(
            "round {round}: struck after {} ms, {} facts told, {} messages there, {}",
            moment.as_millis(),
            told.len(),
            found.len(),
            if compacting {
                "in a compaction"
            } else {
                "between compactions"
            }
        );
        Ok(())
    }

    /// Takes in what the child said. Whether a compaction was under way at the end.
    fn learn(&mut self, told: &[String]) -> anyhow::Result<bool> {
        let mut compacting = BTreeSet::new();
        for line in told {
            let words: Vec<&str> = line.split(' ').collect();
            let number = |at: usize| -> anyhow::Result<u64> {
                let word = words
                    .get(at)
                    .with_context(|| format!("a short line: {line}"))?;
                word.parse()
                    .with_context(|| format!("not a number: {line}"))
            };
            if words.first() == Some(&"n") || words.first() == Some(&"r") {
                self.violations.push(format!("the store said: {line}"));
                continue;
            }
            let user = usize::try_from(number(1)?)?;
            let found = self.boxes.get_mut(user).with_context(|| line.clone())?;
            match words.first().copied().unwrap_or_default() {
                "s" => {
                    let serial = number(2)?;
                    self.serial = self.serial.max(serial + 1);
                    found.doubtful.insert(serial);
                }
                "k" => {
                    let (uid, serial) = (u32::try_from(number(2)?)?, number(3)?);
                    found.doubtful.remove(&serial);
                    found.kept.insert(uid, serial);
                    self.stored += 1;
                }
                "x" => found
                    .going
                    .push((u32::try_from(number(2)?)?, u32::try_from(number(3)?)?)),
                "g" => {
                    let (low, high) = (u32::try_from(number(2)?)?, u32::try_from(number(3)?)?);
                    found.going.retain(|range| *range != (low, high));
                    let gone: Vec<u32> =
                        found.kept.range(low..=high).map(|(uid, _)| *uid).collect();
                    for uid in gone {
                        found.kept.remove(&uid);
                        found.gone.insert(uid);
                        self.expunged += 1;
                    }
                }
                "C" => {
                    compacting.insert(user);
                }
                "c" => {
                    compacting.remove(&user);
                    self.compactions += u64::from(number(2)? > 0);
                }
                _ => bail!("the child said {line:?}"),
            }
        }
        Ok(!compacting.is_empty())
    }

    /// What is there: user, uid, serial; `None` for damage.
    fn read(&mut self) -> anyhow::Result<Vec<(usize, u32, Option<u64>)>> {
        let data = self.data();
        self.read_at(&data)
    }

    fn read_at(&self, data: &Path) -> anyhow::Result<Vec<(usize, u32, Option<u64>)>> {
        let output = Command::new(std::env::current_exe()?)
            .args(["crash", "life", "read"])
            .arg(data)
            .arg(self.seed.to_string())
            .stderr(Stdio::inherit())
            .output()
            .context("cannot start the reader")?;
        ensure!(
            output.status.success(),
            "the store cannot be read: {}",
            output.status
        );
        let text = String::from_utf8(output.stdout)?;
        let mut found = Vec::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let &[kind, user, uid, serial, ..] = &words[..] else {
                bail!("the reader said {line:?}");
            };
            let serial = if kind == "h" {
                Some(serial.parse()?)
            } else {
                None
            };
            found.push((user.parse()?, uid.parse()?, serial));
        }
        Ok(found)
    }

    /// Holds what is there against what was told, and goes on from what is there.
    fn compare(&mut self, round: u32, found: &[(usize, u32, Option<u64>)]) {
        let violations = &mut self.violations;
        for (user, truth) in self.boxes.iter_mut().enumerate() {
            let mut left = truth.kept.clone();
            let mut there = BTreeMap::new();
            for (_, uid, serial) in found.iter().filter(|(owner, ..)| *owner == user) {
                let Some(serial) = *serial else {
                    violations.push(format!("round {round}: damaged: user {user} uid {uid}"));
                    continue;
                };
                if truth.gone.contains(uid) {
                    violations.push(format!("round {round}: came back: user {user} uid {uid}"));
                }
                match left.remove(uid) {
                    Some(kept) if kept == serial => {}
                    Some(kept) => violations.push(format!(
                        "round {round}: user {user} uid {uid} is {serial}, not {kept}"
                    )),
                    None if truth.doubtful.contains(&serial) => {}
                    None => violations.push(format!(
                        "round {round}: doubled or never sent: user {user} uid {uid} serial {serial}"
                    )),
                }
                if there.values().any(|other| *other == serial) {
                    violations.push(format!(
                        "round {round}: doubled: user {user} serial {serial}"
                    ));
                }
                there.insert(*uid, serial);
            }
            let going = |uid: &u32| {
                let mut going = truth.going.iter();
                going.any(|(low, high)| (low..=high).contains(&uid))
            };
            for uid in left.keys().filter(|uid| !going(uid)) {
                violations.push(format!("round {round}: lost: user {user} uid {uid}"));
            }
            // An expunge is whole or absent.
            for (low, high) in &truth.going {
                let of = |uids: &BTreeMap<u32, u64>| uids.range(low..=high).count();
                let (before, after) = (of(&truth.kept), of(&there));
                if after != 0 && after != before {
                    violations.push(format!(
                        "round {round}: half an expunge: user {user} {low}..={high}"
                    ));
                }
            }
            let gone: Vec<u32> = left.keys().copied().collect();
            truth.gone.extend(gone);
            truth.kept = there;
            truth.doubtful.clear();
            truth.going.clear();
        }
    }

    fn life(&self, words: &[&str]) -> anyhow::Result<Child> {
        let (what, rest) = words.split_first().context("a word")?;
        Command::new(std::env::current_exe()?)
            .args(["crash", "life", what])
            .arg(self.data())
            .args(rest)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start the child")
    }

    fn ringpost(&self, data: &Path, word: &str) -> Command {
        let mut command = Command::new(&self.programs.ringpost);
        command
            .arg("--data")
            .arg(data)
            .arg(word)
            .stdin(Stdio::null());
        command
    }

    fn check(&mut self, round: u32) -> anyhow::Result<()> {
        let output = self.ringpost(&self.data(), "check").output()?;
        if !output.status.success() {
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said).into_owned();
            let end: Vec<&str> = said.lines().rev().take(6).collect();
            self.violations.push(format!(
                "ringpost check after round {round}: {}",
                end.join(" | ")
            ));
        }
        Ok(())
    }

    /// A new store each round: filled, damaged, repaired twice, once with a cut.
    fn repair_round(&mut self, round: u32) -> anyhow::Result<()> {
        let (data, whole) = (self.data(), self.folder.join("whole"));
        for old in [&data, &whole] {
            if old.exists() {
                std::fs::remove_dir_all(old)?;
            }
        }
        let count = REPAIR_MESSAGES.to_string();
        let from = self.serial.to_string();
        let seed = self.seed.to_string();
        let mut child = self.life(&["load", &seed, &from, "--count", &count])?;
        let output = child.stdout.take().context("a pipe")?;
        let told: Vec<String> = BufReader::new(output).lines().collect::<Result<_, _>>()?;
        ensure!(
            child.wait()?.success(),
            "the child that fills the store failed"
        );
        self.boxes = vec![Mailbox::default(); USERS];
        self.learn(&told)?;
        self.damage(&data)?;
        copy_tree(&data, &whole)?;
        run(Command::new("sync").arg("-f").arg(&data))?;

        let begun = Instant::now();
        let alone = self.ringpost(&whole, "repair").output()?;
        let took = begun.elapsed();
        let moment = took.mul_f64(self.random.f64());
        let mut repair = self.ringpost(&data, "repair");
        let mut repair = repair.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        pause(moment);
        let cut = repair.try_wait()?.is_none();
        self.disk.cut_power()?.wait()?;
        end(&mut repair)?;
        self.disk.power_up()?;
        self.struck_in_repair += u32::from(cut);
        let again = self.ringpost(&data, "repair").output()?;
        if again.status.code() != Some(0) && again.status.code() != Some(1) {
            self.violations.push(format!(
                "round {round}: the repair after the cut ended with {}: {}",
                again.status,
                String::from_utf8_lossy(&again.stderr)
            ));
        }
        self.check(round)?;
        let (with, without) = (self.read()?, self.read_at(&whole)?);
        if with != without {
            self.violations.push(format!(
                "round {round}: {} messages after a repair with a cut, {} after one without",
                with.len(),
                without.len()
            ));
        }
        println!(
            "round {round}: {} after {} of {} ms, {} messages, repair alone ended with {}",
            if cut { "cut" } else { "was done" },
            moment.as_millis(),
            took.as_millis(),
            with.len(),
            alone.status
        );
        Ok(())
    }

    /// Flips bytes of files that hold mail.
    fn damage(&mut self, data: &Path) -> anyhow::Result<()> {
        let mut files = Vec::new();
        let mut folders = vec![data.join("p")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder)? {
                let entry = entry?;
                let about = entry.metadata()?;
                if about.is_dir() {
                    folders.push(entry.path());
                } else if about.len() > 0 {
                    files.push(entry.path());
                }
            }
        }
        files.sort();
        for _ in 0..REPAIR_FLIPS {
            let place = self.random.usize(..files.len());
            let path = files.get(place).context("a store with files")?;
            let mut bytes = std::fs::read(path)?;
            let at = self.random.usize(..bytes.len());
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << self.random.u8(..8);
            }
            std::fs::write(path, bytes)?;
        }
        Ok(())
    }
}

fn copy_tree(from: &Path, to: &Path) -> anyhow::Result<()> {
    run(Command::new("cp").arg("-a").arg(from).arg(to))
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    loop_disk::run(command)
}

/// Waits for a process whose disk is gone; one that does not end is killed.
fn end(child: &mut Child) -> anyhow::Result<()> {
    let begun = Instant::now();
    while child.try_wait()?.is_none() {
        if begun.elapsed() > END_PATIENCE {
            child.kill()?;
            child.wait()?;
            break;
        }
        pause(Duration::from_millis(5));
    }
    Ok(())
}

fn pause(time: Duration) {
    std::thread::park_timeout(time);
}
