//! The command line of `peers`, checked, and the plans it stands for.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use clap::ValueEnum as _;

use super::peer::Door;
use super::system::System;
use crate::deliver::plan::{Plan, Serials, Visit, WATCHED_USERS_COUNT};
use crate::deliver::window::{WarmUp, Window};
use crate::letters::Size;
use crate::schedule::Pace;
use crate::workload::{LineEnd, Users};

/// Answers may take so long after a run's end; an MTA's queue too.
const DRAIN_MAX: Duration = Duration::from_mins(2);

/// Measure the daemon against other mail stores, in turn, in one run
#[derive(clap::Args, Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "switches of a command line")]
pub(crate) struct Args {
    /// Systems, in this order (default: all)
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) only: Vec<System>,

    /// Bytes of a message; several make a matrix
    #[arg(long, value_delimiter = ',', default_value = "4096")]
    pub(crate) size: Vec<Size>,

    /// Messages sent and not answered; several make a matrix
    #[arg(long, value_delimiter = ',', default_value = "16,64")]
    pub(crate) in_flight: Vec<usize>,

    /// Accounts that get mail; each has one message before the clock runs
    #[arg(long, default_value_t = 1000)]
    pub(crate) users: usize,

    /// Measured seconds of each run
    #[arg(long, default_value_t = 5.0)]
    pub(crate) seconds: f64,

    /// Seconds of load before that
    #[arg(long, default_value_t = 0.5)]
    pub(crate) warm_up: f64,

    /// Runs of each system; tables show the median by rate
    #[arg(long, default_value_t = 3)]
    pub(crate) rounds: usize,

    /// A run ends early when so much was sent
    #[arg(long, default_value_t = 8192)]
    pub(crate) mib_max: u64,

    /// Users whose mailboxes are read back and compared, at most
    #[arg(long, default_value_t = WATCHED_USERS_COUNT)]
    pub(crate) watched: usize,

    /// Of users and letters
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,

    /// Folder for all data; it decides which disk is measured [beside this program]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) scratch: Option<PathBuf>,

    /// Folder for downloaded packages, kept for the next call [target/peers-packages]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) packages: Option<PathBuf>,

    /// Setting for our daemon, as in its configuration; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) settings: Vec<String>,

    /// Leave out the limits of disk and sockets
    #[arg(long)]
    pub(crate) no_limits: bool,

    /// Take our programs as they are, even if their sources changed since
    #[arg(long)]
    pub(crate) no_build: bool,

    /// Keep the scratch folders
    #[arg(long)]
    pub(crate) keep: bool,

    /// Folder for peers.ndjson, peers.csv, peers.md and peers.svg
    #[arg(long, value_name = "FOLDER")]
    pub(crate) out: Option<PathBuf>,

    /// Standard output gets the JSON lines alone, the table goes to standard error
    #[arg(long)]
    pub(crate) json: bool,
}

impl Args {
    /// Refuses what makes no sense, in a sentence.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        ensure!(self.users > 0, "--users is above 0");
        ensure!((1..=99).contains(&self.rounds), "--rounds is 1 to 99");
        ensure!(self.watched > 0, "--watched is above 0");
        ensure!(
            (0.01..=3600.0).contains(&self.seconds),
            "--seconds is 0.01 to 3600"
        );
        ensure!(
            (0.0..=600.0).contains(&self.warm_up),
            "--warm-up is 0 to 600"
        );
        ensure!(
            self.mib_max > 0 && self.mib_max < 1 << 30,
            "--mib-max is above 0 and below 2^30"
        );
        for &size in &self.size {
            ensure!(size.mean() <= 64 << 20, "--size is at most 64 MiB");
        }
        for &in_flight in &self.in_flight {
            ensure!(
                (1..=1000).contains(&in_flight),
                "--in-flight is 1 to 1000: peers fork a process for each"
            );
        }
        Ok(())
    }

    /// What is compared.
    pub(crate) fn systems(&self) -> Vec<System> {
        if self.only.is_empty() {
            System::value_variants().to_vec()
        } else {
            self.only.clone()
        }
    }

    /// Sizes with numbers in flight, in the order of the table.
    pub(crate) fn cells(&self) -> Vec<(Size, usize)> {
        let sizes = self.size.iter();
        sizes
            .flat_map(|&size| self.in_flight.iter().map(move |&n| (size, n)))
            .collect()
    }

    /// A run's plan. Its `run` number is its own.
    pub(crate) fn plan(&self, size: Size, in_flight: usize, door: &Door, run: u64) -> Plan {
        let warm_up = Duration::from_secs_f64(self.warm_up);
        Plan {
            users: Users::new("u", self.users),
            size,
            line_end: door.line_end(),
            recipients: 1,
            visit: Visit::Drawn,
            pace: Pace::Closed,
            in_flight,
            warm_up: WarmUp::Time(warm_up),
            window: Window::at(warm_up, Duration::from_secs_f64(self.seconds)),
            drain_max: DRAIN_MAX,
            seed: self.seed,
            run,
            serials: Serials::Fresh,
            watched_users: self.watched,
            bytes_max: self.mib_max << 20,
        }
    }
}

/// The load before the clock: one message to each user, so that no run pays for making mailboxes.
pub(crate) fn first_messages(plan: &Plan, line_end: LineEnd) -> Plan {
    let users = u64::try_from(plan.users.count()).unwrap_or(u64::MAX);
    let size = plan.size.mean_u64();
    Plan {
        visit: Visit::InTurn,
        // All alike, so that the bound is met by the last one.
        size: Size::Bytes(plan.size.mean()),
        line_end,
        warm_up: WarmUp::Time(Duration::ZERO),
        window: Window::at(Duration::ZERO, Duration::from_mins(30)),
        in_flight: plan.in_flight.clamp(1, 16),
        // The last message meets this bound.
        bytes_max: users.saturating_mul(size),
        run: !plan.run,
        ..plan.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> Args {
        Cli::parse_from(std::iter::once("perf").chain(line.split_whitespace())).args
    }

    #[test]
    fn systems_are_named_and_all_of_them_without_a_name() {
        let args = parse("--only ringpost-node,dovecot-mdbox --size 512,4096 --in-flight 16");
        args.check().unwrap();
        assert_eq!(args.systems(), [System::RingpostNode, System::DovecotMdbox]);
        let sizes = [512, 4096].map(Size::Bytes);
        assert_eq!(args.cells(), sizes.map(|size| (size, 16)));
        assert_eq!(parse("").systems(), System::value_variants());
        assert!(Cli::try_parse_from(["perf", "--only", "exchange"]).is_err());
    }

    #[test]
    fn nonsense_is_refused_in_a_sentence() {
        for (line, word) in [
            ("--users 0", "users"),
            ("--rounds 0", "rounds"),
            ("--watched 0", "watched"),
            ("--seconds 0", "seconds"),
            ("--warm-up 601", "warm-up"),
            ("--size 67108865", "size"),
            ("--in-flight 1001", "in-flight"),
            ("--mib-max 0", "mib-max"),
        ] {
            let error = parse(line).check().unwrap_err();
            assert!(error.to_string().contains(word), "{line}: {error}");
        }
    }

    #[test]
    fn first_messages_end_when_each_user_has_one() {
        let plan = Plan::tiny(7);
        let first = first_messages(&plan, LineEnd::CrLf);
        assert_eq!(first.bytes_max, 7 * 512);
        assert_eq!(
            (first.visit, first.line_end),
            (Visit::InTurn, LineEnd::CrLf)
        );
        assert_ne!(first.run, plan.run);
    }
}
