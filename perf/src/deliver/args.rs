//! The command line of `deliver`, checked, and the plans it stands for.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;

use super::attic::Attic;
use super::cell::{Keep, Own, Reach, Target, Via};
use super::lmtp::Transfer;
use super::plan::{Plan, Serials, Visit, WATCHED_USERS_COUNT};
use super::window::{WarmUp, WarmUpArg, Window};
use crate::address::Address;
use crate::letters::Size;
use crate::programs::{Programs, Rebuild};
use crate::schedule::Pace;
use crate::workload::{LineEnd, Popularity, Users};

/// What tells the cells of a call apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CellKey {
    /// Door.
    pub(crate) via: Via,
    /// Bytes of a message.
    pub(crate) size: Size,
    /// Messages without an answer.
    pub(crate) in_flight: usize,
}

/// Connections of the node protocol if nothing is said.
const CONNECTIONS_DEFAULT: usize = 16;

/// Bytes of all letters of a cell, which are made before it: not more than this.
const LETTERS_BYTES_MAX: usize = 2 << 30;

/// Deliver messages to a daemon and measure it
#[derive(clap::Args, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "switches of a command line")]
pub(crate) struct Args {
    /// Door: the node protocol, LMTP, or one ringpost-deliver per message; several make a matrix
    #[arg(long, value_enum, value_delimiter = ',', default_value = "node")]
    pub(crate) via: Vec<Via>,

    /// Bytes of a message, or `mix`: from 1.5 KiB to 3 MiB; several make a matrix
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "4096",
        value_name = "BYTES|mix"
    )]
    pub(crate) size: Vec<Size>,

    /// Messages sent and not answered; several make a matrix
    #[arg(long, value_delimiter = ',', default_value = "64")]
    pub(crate) in_flight: Vec<usize>,

    /// Accounts that get mail
    #[arg(long, default_value_t = 30_000)]
    pub(crate) users: usize,

    /// Measured seconds of each cell
    #[arg(long, default_value_t = 10.0)]
    pub(crate) seconds: f64,

    /// Seconds of load before that, or `checkpoint`: until the first one has ended
    #[arg(long, default_value = "1", value_name = "SECONDS|checkpoint")]
    pub(crate) warm_up: WarmUpArg,

    /// With `--warm-up checkpoint`: seconds that it may take at most
    #[arg(long, default_value_t = 60.0, value_name = "SECONDS")]
    pub(crate) warm_up_max: f64,

    /// Open loop: messages due per second, whatever is answered (closed loop without it)
    #[arg(long)]
    pub(crate) rate: Option<f64>,

    /// Recipients of each message
    #[arg(long, default_value_t = 1)]
    pub(crate) recipients: usize,

    /// Zipf's law: the n-th account gets mail in proportion to n to the power of minus this (evenly
    /// without it)
    #[arg(long, value_name = "EXPONENT", value_parser = zipf_exponent)]
    pub(crate) zipf: Option<f64>,

    /// Connections [node: at most 16; lmtp: one for each message in flight]
    #[arg(long)]
    pub(crate) connections: Option<usize>,

    /// Threads of the generator
    #[arg(long, default_value_t = 1)]
    pub(crate) threads: usize,

    /// unix:PATH or HOST:PORT of a running daemon's door, or `fake`: the generator's own ceiling
    #[arg(long)]
    pub(crate) to: Option<String>,

    /// With --to: the node protocol's address, to compare what is stored [--via node, mda: --to]
    #[arg(long, requires = "to")]
    pub(crate) node: Option<Address>,

    /// With --to: the address of the daemon's metrics
    #[arg(long, requires = "to")]
    pub(crate) admin: Option<Address>,

    /// Begin of the users' names [one of this run's own]; for a daemon that knows its users
    #[arg(long)]
    pub(crate) user_prefix: Option<String>,

    /// Folder for the daemon's data; it decides which disk is measured [beside this program]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) scratch: Option<PathBuf>,

    /// Setting for the daemon, as in its configuration; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", conflicts_with = "to")]
    pub(crate) settings: Vec<String>,

    /// Send the same letters again and again: the duplicate filter at work
    #[arg(long)]
    pub(crate) repeat: bool,

    /// LMTP: BDAT in place of DATA
    #[arg(long)]
    pub(crate) bdat: bool,

    /// Of users, letters and due times
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,

    /// A cell ends early when so much was sent
    #[arg(long, default_value_t = 16_384)]
    pub(crate) mib_max: u64,

    /// Seconds that answers may take after a cell's end
    #[arg(long, default_value_t = 30.0)]
    pub(crate) drain: f64,

    /// Leave out the limits of disk and sockets
    #[arg(long)]
    pub(crate) no_limits: bool,

    /// Take the programs as they are, even if their sources changed since
    #[arg(long)]
    pub(crate) no_build: bool,

    /// Keep the scratch folders
    #[arg(long)]
    pub(crate) keep: bool,

    /// Standard output gets the JSON lines alone, the table goes to standard error
    #[arg(long)]
    pub(crate) json: bool,
}

fn zipf_exponent(text: &str) -> Result<f64, String> {
    let exponent = text.parse().ok();
    let exponent = exponent.filter(|exponent| (0.0..=5.0).contains(exponent));
    exponent.ok_or_else(|| "it is a number from 0 to 5".to_owned())
}

impl Args {
    /// Refuses what makes no sense, in a sentence.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let positive = |name, values: &[usize]| {
            let good = !values.is_empty() && values.iter().all(|&value| value > 0);
            ensure!(good, "--{name} is above 0");
            Ok(())
        };
        positive("in-flight", &self.in_flight)?;
        positive("users", &[self.users])?;
        positive("threads", &[self.threads])?;
        positive("connections", &[self.connections.unwrap_or(1)])?;
        ensure!(
            (1..=1000).contains(&self.recipients),
            "--recipients is 1 to 1000, as in one message of an MTA"
        );
        ensure!(
            self.recipients <= self.users,
            "--recipients {} are more than --users {}",
            self.recipients,
            self.users
        );
        for &size in &self.size {
            for &in_flight in &self.in_flight {
                ensure!(
                    size.mean().saturating_mul(in_flight) <= LETTERS_BYTES_MAX,
                    "--size {size} with --in-flight {in_flight} needs more than 2 GiB of memory"
                );
            }
        }
        for (name, value) in [("seconds", self.seconds), ("drain", self.drain)] {
            ensure!(
                (0.01..=86_400.0).contains(&value),
                "--{name} is 0.01 to 86,400"
            );
        }
        ensure!(
            (0.0..=3600.0).contains(&self.warm_up_max),
            "--warm-up-max is 0 to 3600"
        );
        let rate = self.rate.unwrap_or(1.0);
        ensure!((0.01..=1e6).contains(&rate), "--rate is 0.01 to 1,000,000");
        ensure!(
            self.mib_max > 0 && self.mib_max < 1 << 30,
            "--mib-max is above 0 and below 2^30"
        );
        if !self.via.contains(&Via::Lmtp) {
            ensure!(!self.bdat, "--bdat belongs to --via lmtp");
        }
        if self.via.contains(&Via::Mda) {
            ensure!(
                self.connections.is_none(),
                "--via mda has a process for each message"
            );
            ensure!(
                self.threads == 1,
                "--via mda has a thread for each message in flight"
            );
        }
        if self.to.as_ref().is_some_and(|to| to != "fake") {
            ensure!(self.via.len() == 1, "--to names one door");
            ensure!(
                self.warm_up != WarmUpArg::Checkpoint || self.admin.is_some(),
                "--warm-up checkpoint asks the daemon: name its --admin, too"
            );
        }
        Ok(())
    }

    /// Doors with sizes and numbers in flight, in the order of the table.
    pub(crate) fn cells(&self) -> Vec<CellKey> {
        let mut cells = Vec::new();
        for &via in &self.via {
            for &size in &self.size {
                cells.extend(self.in_flight.iter().map(|&in_flight| CellKey {
                    via,
                    size,
                    in_flight,
                }));
            }
        }
        cells
    }

    /// The window, as far as it is known before the load, and what opens it.
    fn window(&self) -> (WarmUp, Window) {
        let measured = Duration::from_secs_f64(self.seconds);
        match self.warm_up {
            WarmUpArg::Seconds(seconds) => {
                let time = Duration::from_secs_f64(seconds);
                (WarmUp::Time(time), Window::at(time, measured))
            }
            WarmUpArg::Checkpoint => {
                let longest = Duration::from_secs_f64(self.warm_up_max);
                (WarmUp::Checkpoint(longest), Window::unknown(measured))
            }
        }
    }

    /// A cell's plan. `run` is this call's own number.
    pub(crate) fn plan(&self, cell: CellKey, run: u64) -> Plan {
        let (warm_up, window) = self.window();
        let prefix = self
            .user_prefix
            .clone()
            .unwrap_or_else(|| format!("p{run:08x}-"));
        Plan {
            users: Users::new(&prefix, self.users),
            size: cell.size,
            line_end: match cell.via {
                Via::Lmtp => LineEnd::CrLf,
                Via::Node | Via::Mda => LineEnd::Lf,
            },
            recipients: self.recipients,
            visit: self.zipf.map_or(Visit::Drawn, |exponent| {
                Visit::Skewed(Arc::new(Popularity::zipf(self.users, exponent)))
            }),
            pace: self.rate.map_or(Pace::Closed, |rate| Pace::Open { rate }),
            in_flight: cell.in_flight,
            warm_up,
            window,
            drain_max: Duration::from_secs_f64(self.drain),
            seed: self.seed,
            run,
            serials: if self.repeat {
                Serials::Repeated
            } else {
                Serials::Fresh
            },
            watched_users: WATCHED_USERS_COUNT,
            bytes_max: self.mib_max << 20,
        }
    }

    /// How a cell reaches its door.
    pub(crate) fn reach(&self, cell: CellKey, programs: Option<&Programs>) -> Reach {
        let in_flight = cell.in_flight;
        let connections = match (cell.via, self.connections) {
            (Via::Mda, _) => 0,
            (_, Some(connections)) => connections.min(in_flight),
            (Via::Node, None) => in_flight.min(CONNECTIONS_DEFAULT),
            (Via::Lmtp, None) => in_flight,
        };
        Reach {
            via: cell.via,
            transfer: if self.bdat {
                Transfer::Bdat
            } else {
                Transfer::Data
            },
            connections,
            threads: self.threads,
            deliver: programs.map(|programs| programs.deliver.clone()),
        }
    }

    /// The programs, where the call needs some.
    pub(crate) fn programs(&self) -> anyhow::Result<Option<Programs>> {
        if self.to.is_some() && !self.via.contains(&Via::Mda) {
            return Ok(None);
        }
        let rebuild = if self.no_build {
            Rebuild::Never
        } else {
            Rebuild::IfStale
        };
        Programs::locate(rebuild).map(Some)
    }

    /// What is measured.
    pub(crate) fn target(
        &self,
        programs: Option<&Programs>,
        scratch: PathBuf,
    ) -> anyhow::Result<Target> {
        let Some(to) = &self.to else {
            return Ok(Target::Own(Own {
                programs: programs
                    .ok_or_else(|| anyhow::anyhow!("no daemon was found"))?
                    .clone(),
                scratch,
                settings: self.settings.clone(),
                keep: if self.keep { Keep::Yes } else { Keep::No },
                attic: Attic::default(),
                witness: None,
            }));
        };
        if to == "fake" {
            return Ok(Target::Fake);
        }
        let door: Address = to.parse()?;
        let node = self
            .node
            .clone()
            .or_else(|| (!self.via.contains(&Via::Lmtp)).then(|| door.clone()));
        Ok(Target::Named {
            door,
            node,
            admin: self.admin.clone(),
        })
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
    fn lists_make_a_matrix() {
        let args = parse("--via node,lmtp --size 512,4096 --in-flight 1,64");
        assert!(args.check().is_ok());
        let cells = args.cells();
        let cell = |via, size, in_flight| CellKey {
            via,
            size: Size::Bytes(size),
            in_flight,
        };
        assert_eq!(cells.len(), 8);
        assert_eq!(cells[1], cell(Via::Node, 512, 64));
        assert_eq!(cells[2], cell(Via::Node, 4096, 1));
        assert_eq!(cells[7], cell(Via::Lmtp, 4096, 64));
    }

    #[test]
    fn doors_have_their_connections_and_line_ends() {
        for (line, in_flight, connections, line_end) in [
            ("--via node", 64, 16, LineEnd::Lf),
            ("--via node", 4, 4, LineEnd::Lf),
            ("--via node --connections 2", 64, 2, LineEnd::Lf),
            ("--via lmtp", 64, 64, LineEnd::CrLf),
            ("--via mda", 64, 0, LineEnd::Lf),
        ] {
            let args = parse(line);
            let cell = CellKey {
                via: args.via[0],
                size: Size::Bytes(512),
                in_flight,
            };
            assert_eq!(args.reach(cell, None).connections, connections, "{line}");
            assert_eq!(args.plan(cell, 1).line_end, line_end, "{line}");
        }
    }

    #[test]
    fn nonsense_is_refused_in_a_sentence() {
        for (line, word) in [
            ("--in-flight 0", "in-flight"),
            ("--size 1000000 --in-flight 10000", "2 GiB"),
            ("--recipients 2 --users 1", "more than"),
            ("--recipients 1001", "1000"),
            ("--rate 0", "rate"),
            ("--seconds 0", "seconds"),
            ("--bdat", "lmtp"),
            ("--via mda --connections 3", "process"),
            ("--to unix:/n --via node,lmtp", "one door"),
            ("--to unix:/n --warm-up checkpoint", "--admin"),
        ] {
            let error = parse(line).check().unwrap_err();
            assert!(error.to_string().contains(word), "{line}: {error}");
        }
    }

    #[test]
    fn a_named_lmtp_door_is_compared_only_where_the_node_protocol_is_named_too() {
        let node_of = |line| match parse(line).target(None, PathBuf::new()).unwrap() {
            Target::Named { node, .. } => node.map(|node| node.to_string()),
            other => panic!("{other:?}"),
        };
        assert_eq!(node_of("--to unix:/n").as_deref(), Some("unix:/n"));
        assert_eq!(node_of("--via lmtp --to [::1]:24"), None);
        assert_eq!(
            node_of("--via lmtp --to [::1]:24 --node unix:/n").as_deref(),
            Some("unix:/n")
        );
        assert!(matches!(
            parse("--to fake").target(None, PathBuf::new()),
            Ok(Target::Fake)
        ));
    }
}
