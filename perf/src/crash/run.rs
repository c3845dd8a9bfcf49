//! One store through the rounds of a rig: starts, verification, load, blows, the verdict.

#![expect(
    clippy::print_stdout,
    reason = "a rig speaks to whoever runs it, and its last line is read by scripts"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::Common;
use super::fuse::Taped;
use super::ledger::Ledger;
use super::letter::Door;
use super::load::{Again, End, Fresh, Letter, Load};
use super::reader::Reader;
use crate::daemon::{Daemon, Setup};
use crate::loop_disk::Disk;
use crate::programs::Programs;
use crate::workload::Users;

/// Users at the first round; each round adds some, so that users are created under load as well.
pub(super) const USERS_FIRST: usize = 40;
/// See [`USERS_FIRST`].
pub(super) const USERS_PER_ROUND: usize = 2;

/// Messages of earlier rounds that a round fetches again.
const READ_AGAIN_COUNT: usize = 100;

/// A daemon whose disk is gone has to end within this (DESIGN.md decision 11).
const END_PATIENCE: Duration = Duration::from_secs(15);

/// From the start of the process until it serves.
const START_MAX: Duration = Duration::from_mins(2);

/// Retries of what is answered with "later" after a restart.
const RETRIES_MAX: usize = 50;

/// Refusals of a daemon that lost its disk that are listened to.
const DYING_REFUSALS_MAX: u64 = 500;

/// What the blow is.
pub(super) enum Ground {
    /// SIGKILL.
    Kill,
    /// The file system is shut down.
    Power(Disk),
    /// SIGKILL, and then crashes of a disk with a record.
    Taped(Taped),
}

/// One recovery: how long it took and how much log there was.
struct Recovery {
    took: Duration,
    /// 0 if the core count changed: the old layout is recovered first and not counted.
    log_bytes: u64,
}

/// The state of a rig.
pub(super) struct Run<'a> {
    /// What was asked for.
    pub(super) common: &'a Common,
    programs: &'a Programs,
    ground: Ground,
    /// How the next daemon is started.
    pub(super) setup: Setup,
    users: &'a Users,
    /// What is true.
    pub(super) ledger: Ledger,
    /// Of the letters.
    pub(super) seed: u64,
    /// Draws everything else.
    pub(super) random: fastrand::Rng,
    serials: [u64; 2],
    refusals: BTreeMap<String, u64>,
    recoveries: Vec<Recovery>,
    read_again_count: u64,
    interrupted_count: u32,
    cores: u8,
}

fn setup(programs: &Programs, folder: &Path, ground: &Ground) -> anyhow::Result<Setup> {
    let sockets = folder.join("s");
    std::fs::create_dir(&sockets)?;
    let data = match ground {
        Ground::Kill => folder.join("data"),
        Ground::Power(disk) => disk.folder().join("data"),
        Ground::Taped(taped) => taped.folder().join("data"),
    };
    Ok(Setup {
        ringpostd: programs.ringpostd.clone(),
        data,
        sockets,
        log: folder.join("ringpostd.log"),
        settings: Vec::new(),
        start_max: START_MAX,
    })
}

impl<'a> Run<'a> {
    /// Works in `folder`.
    pub(super) fn new(
        common: &'a Common,
        programs: &'a Programs,
        users: &'a Users,
        folder: &Path,
        ground: Ground,
        seed: u64,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            common,
            programs,
            setup: setup(programs, folder, &ground)?,
            ground,
            users,
            ledger: Ledger::new(seed, users.count()),
            seed,
            random: fastrand::Rng::with_seed(seed),
            serials: [0, 1],
            refusals: BTreeMap::new(),
            recoveries: Vec::new(),
            read_again_count: 0,
            interrupted_count: 0,
            cores: 2,
        })
    }

    /// Whether nothing was lost, doubled or damaged.
    pub(super) fn is_whole(&self) -> bool {
        self.ledger.violations.is_none()
    }

    /// All rounds, and the last look.
    pub(super) fn all_rounds(&mut self) -> anyhow::Result<()> {
        if let Ground::Taped(_) = self.ground
            && let Ground::Taped(mut taped) = std::mem::replace(&mut self.ground, Ground::Kill)
        {
            return taped.all_rounds(self);
        }
        for round in 1..=self.common.rounds {
            self.round(round)
                .with_context(|| format!("round {round}"))?;
        }
        self.last_look().context("after the last round")
    }

    fn round(&mut self, round: u32) -> anyhow::Result<()> {
        self.settle();
        let mut daemon = self.start()?;
        if round > 1 {
            self.verify(&daemon)?;
        }
        let before = self.ledger.acknowledged;
        let moment = Duration::from_millis(self.random.u64(5..=self.common.window_ms));
        self.load_and_strike(&mut daemon, round, moment)?;
        self.after_the_blow(daemon)?;
        if round.is_multiple_of(self.common.check_every) {
            self.check(round)?;
        }
        let last = self.recoveries.last();
        println!(
            "round {round}: struck after {} ms, {} acknowledged; it had started in {} ms, log {}",
            moment.as_millis(),
            self.ledger.acknowledged - before,
            last.map_or(0, |recovery| recovery.took.as_millis()),
            last.map_or_else(String::new, |recovery| mib(recovery.log_bytes)),
        );
        Ok(())
    }

    /// Draws how the daemon of this round is set up: the store must not care.
    pub(super) fn settle(&mut self) {
        if self.random.u8(..4) == 0 {
            self.cores = 3 - self.cores;
        }
        let cores = self.cores;
        let interval = if self.random.bool() { "300 ms" } else { "60 s" };
        self.setup.settings = vec![
            format!("cores={cores}"),
            format!("checkpoint_interval={interval}"),
            "return_path=off".to_owned(),
            "log_bytes_per_core=256 MiB".to_owned(),
            "disk_reserve=16 MiB".to_owned(),
            "logs.level=warn".to_owned(),
        ];
    }

    /// Starts the daemon, one time in four after a start that is killed somewhere on its way.
    pub(super) fn start(&mut self) -> anyhow::Result<Daemon> {
        if self.random.u8(..4) == 0 && matches!(self.ground, Ground::Kill) {
            self.setup.start_max = Duration::from_millis(self.random.u64(1..60));
            if let Ok(early) = Daemon::start(&self.setup) {
                early.kill()?;
            }
            self.setup.start_max = START_MAX;
            self.interrupted_count += 1;
        }
        let daemon = Daemon::start(&self.setup)?;
        let mut reader = Reader::connect(daemon.doors(), self.users)?;
        let used = reader
            .report("recovered.bytes")?
            .context("the node's report has no recovered.bytes")?;
        self.recoveries.push(Recovery {
            took: daemon.started_in(),
            log_bytes: used.parse().context("recovered.bytes is no number")?,
        });
        Ok(daemon)
    }

    /// Reads what is new, sends again what is in doubt, reads that, and some old messages.
    pub(super) fn verify(&mut self, daemon: &Daemon) -> anyhow::Result<()> {
        let mut reader = Reader::connect(daemon.doors(), self.users)?;
        reader.read_new(&mut self.ledger)?;
        self.ledger.after_restart();
        self.retry(daemon)?;
        reader.read_new(&mut self.ledger)?;
        self.ledger.after_retries();

        let mut sample = Vec::with_capacity(READ_AGAIN_COUNT);
        for _ in 0..READ_AGAIN_COUNT {
            let user = self.random.usize(..self.users.count());
            if let Some(inbox) = self.ledger.inboxes().get(user)
                && !inbox.known.is_empty()
            {
                let place = self.random.usize(..inbox.known.len());
                sample.extend(inbox.known.get(place).map(|known| (user, *known)));
            }
        }
        self.read_again_count += reader.read_again(&mut self.ledger, sample.into_iter())?;
        Ok(())
    }

    fn retry(&mut self, daemon: &Daemon) -> anyhow::Result<()> {
        let mut left = self.ledger.to_retry(&mut self.random);
        for _ in 0..RETRIES_MAX {
            if left.is_empty() {
                return Ok(());
            }
            let letters = left
                .into_iter()
                .map(|(serial, recipients)| Letter { serial, recipients });
            let (node, lmtp) = letters.partition(|letter| Door::of(letter.serial) == Door::Node);
            let mut again = Again {
                ledger: &mut self.ledger,
                node,
                lmtp,
                refused: BTreeMap::new(),
            };
            let mut load = Load::connect(daemon.doors(), self.seed, self.users, 4)?;
            match load.run(&mut again, Instant::now() + START_MAX)? {
                End::Idle => {}
                end => bail!("retries ended with {end:?}"),
            }
            left = again
                .refused
                .into_iter()
                .map(|(serial, (recipients, why))| {
                    *self.refusals.entry(why).or_default() += 1;
                    (serial, recipients)
                })
                .collect();
        }
        bail!("{} messages were refused {RETRIES_MAX} times", left.len())
    }

    /// Load from all connections; the blow falls at `moment`; then until the last connection is dead.
    pub(super) fn load_and_strike(
        &mut self,
        daemon: &mut Daemon,
        round: u32,
        moment: Duration,
    ) -> anyhow::Result<()> {
        let round = usize::try_from(round)?;
        let mut load = Load::connect(
            daemon.doors(),
            self.seed,
            self.users,
            self.common.connections,
        )?;
        let mut post = Fresh {
            ledger: &mut self.ledger,
            random: &mut self.random,
            serials: &mut self.serials,
            users_count: USERS_FIRST + USERS_PER_ROUND * round,
            refusals: &mut self.refusals,
            refusals_left: u64::MAX,
        };
        match load.run(&mut post, Instant::now() + moment)? {
            End::Deadline => {}
            end => bail!("the load ended before the blow: {end:?}"),
        }
        match &self.ground {
            Ground::Kill | Ground::Taped(_) => {
                nix::sys::signal::kill(daemon.pid(), nix::sys::signal::Signal::SIGKILL)?;
                match load.run(&mut post, Instant::now() + END_PATIENCE)? {
                    End::AllDead => Ok(()),
                    end => bail!("connections outlived the daemon: {end:?}"),
                }
            }
            Ground::Power(disk) => {
                let mut plug = disk.cut_power()?;
                post.refusals_left = DYING_REFUSALS_MAX;
                let end = load.run(&mut post, Instant::now() + END_PATIENCE)?;
                let pulled = plug.wait()?;
                if !pulled.success() {
                    bail!("the file system was not shut down ({pulled})");
                }
                if end == End::Deadline || !daemon.wait_end(END_PATIENCE)? {
                    self.ledger.violations.other(|| {
                        format!("{END_PATIENCE:?} after its disk went the daemon still serves")
                    });
                }
                Ok(())
            }
        }
    }

    fn after_the_blow(&mut self, daemon: Daemon) -> anyhow::Result<()> {
        daemon.kill()?;
        match &mut self.ground {
            Ground::Kill | Ground::Taped(_) => Ok(()),
            Ground::Power(disk) => disk.power_up(),
        }
    }

    /// `ringpost check` on the folder as it lies there.
    pub(super) fn check(&mut self, round: u32) -> anyhow::Result<()> {
        let output = Command::new(&self.programs.ringpost)
            .arg("--data")
            .arg(&self.setup.data)
            .arg("check")
            .stdin(Stdio::null())
            .output()
            .context("cannot start ringpost")?;
        if !output.status.success() {
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said).into_owned();
            self.ledger.violations.other(|| {
                let end: Vec<&str> = said.lines().rev().take(8).collect();
                format!("ringpost check after round {round}: {}", end.join(" | "))
            });
        }
        Ok(())
    }

    /// Verifies the last round, reads every message of all rounds, stops in order, checks.
    fn last_look(&mut self) -> anyhow::Result<()> {
        let daemon = self.start()?;
        self.verify(&daemon)?;
        let all: Vec<_> = self
            .ledger
            .inboxes()
            .iter()
            .enumerate()
            .flat_map(|(user, inbox)| inbox.known.iter().map(move |known| (user, *known)))
            .collect();
        let mut reader = Reader::connect(daemon.doors(), self.users)?;
        self.read_again_count += reader.read_again(&mut self.ledger, all.into_iter())?;
        drop(reader);
        let status = daemon.stop(START_MAX)?;
        if !status.success() {
            self.ledger
                .violations
                .other(|| format!("after SIGTERM the daemon ended with {status}"));
        }
        self.check(self.common.rounds)
    }

    /// What was counted, and the violations.
    pub(super) fn print_verdict(&self) {
        let ledger = &self.ledger;
        println!(
            "{} deliveries acknowledged, {} in doubt of which {} were there, {} old messages read \
             again, {} starts interrupted",
            ledger.acknowledged,
            ledger.doubtful,
            ledger.doubtful_found,
            self.read_again_count,
            self.interrupted_count,
        );
        let mut took: Vec<_> = self.recoveries.iter().map(|one| one.took).collect();
        took.sort_unstable();
        let mut log: Vec<_> = self.recoveries.iter().map(|one| one.log_bytes).collect();
        log.sort_unstable();
        if let (Some(least), Some(median), Some(most)) =
            (took.first(), took.get(took.len() / 2), took.last())
        {
            println!("start to serving: min {least:.1?}, median {median:.1?}, max {most:.1?}");
        }
        if let (Some(&least), Some(&median), Some(&most)) =
            (log.first(), log.get(log.len() / 2), log.last())
        {
            println!(
                "log read by recovery: min {}, median {}, max {}",
                mib(least),
                mib(median),
                mib(most)
            );
        }
        for (why, count) in self.refusals.iter().take(8) {
            println!("answered later: {count} x {why}");
        }
        let violations = &ledger.violations;
        for sentence in &violations.sentences {
            println!("VIOLATION {sentence}");
        }
        println!(
            "{} lost, {} doubled, {} damaged, {} other violations",
            violations.lost, violations.doubled, violations.damaged, violations.other
        );
    }
}

/// For people.
pub(super) fn mib(bytes: u64) -> String {
    let tenths = bytes * 10 / (1 << 20);
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}
