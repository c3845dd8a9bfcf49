//! `reading`: the same mail in our store and in others, read by as many clients at a time. Ours is asked
//! over the node protocol, which web-mail speaks, others over IMAP, which is what their web-mail speaks.
//!
//! Three kinds of work, one after the other, each for as long: a **visit** is a connection, the list of
//! INBOX and its newest message, of a user drawn by chance; a **list** is the whole of an INBOX that
//! stays open, with what a list of messages shows (flags, dates, size, From, Subject); a **fetch** is one
//! message of it, drawn by chance. Everything was just delivered and is in the kernel's cache. Each list
//! has to have all messages, each message its length, or the run ends with an error.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use clap::ValueEnum as _;
use ringpost_netproto::id::Uid;
use serde::Serialize;

use super::args::first_messages;
use super::imap::Imap;
use super::peer::{Door, ReadDoor, Running};
use super::run::{Bench, emit, progress, say};
use super::service::wait_until;
use super::system::System;
use crate::deliver::plan::{Plan, WATCHED_USERS_COUNT};
use crate::deliver::verify::Reader;
use crate::environment::Environment;
use crate::hist::{Latencies, LatencySummary};
use crate::letters::Size;
use crate::table;
use crate::workload::Users;

/// Measure reading against other mail stores: visits, lists and fetches, in turn, in one run
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Args {
    /// Systems, in this order
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "ringpost-node,dovecot-mdbox,dovecot-sdbox,dovecot-maildir,dovecot-mbox"
    )]
    only: Vec<System>,

    /// Bytes of a message
    #[arg(long, default_value_t = 4096)]
    size: usize,

    /// Accounts
    #[arg(long, default_value_t = 200)]
    users: usize,

    /// Messages that each has
    #[arg(long, default_value_t = 100)]
    messages: usize,

    /// Clients at a time
    #[arg(long, default_value_t = 16)]
    readers: usize,

    /// Measured seconds of each kind of work
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,

    /// Runs of each system; the table shows medians
    #[arg(long, default_value_t = 3)]
    rounds: usize,

    /// Of letters, users and messages drawn
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Folder for all data [beside this program]
    #[arg(long, value_name = "FOLDER")]
    scratch: Option<PathBuf>,

    /// Folder for downloaded packages, kept for the next call [target/peers-packages]
    #[arg(long, value_name = "FOLDER")]
    packages: Option<PathBuf>,

    /// Setting for our daemon, as in its configuration; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,

    /// Take our programs as they are, even if their sources changed since
    #[arg(long)]
    no_build: bool,

    /// Keep the scratch folders
    #[arg(long)]
    keep: bool,

    /// Standard output gets the JSON lines alone, the table goes to standard error
    #[arg(long)]
    json: bool,
}

impl Args {
    fn check(&self) -> anyhow::Result<()> {
        ensure!(
            (1..=1000).contains(&self.messages),
            "--messages is 1 to 1000"
        );
        ensure!(
            (1..=1000).contains(&self.readers) && self.readers <= self.users,
            "--readers is 1 to 1000 and at most --users: each keeps a mailbox open"
        );
        for system in &self.only {
            ensure!(
                system.is_read(),
                "{} has no server to read from; there are: {}",
                system.name(),
                System::value_variants()
                    .iter()
                    .filter(|system| system.is_read())
                    .map(|system| system.name())
                    .collect::<Vec<_>>()
                    .join(", ")
            );
        }
        self.bench().check()
    }

    fn bench(&self) -> super::args::Args {
        super::args::Args {
            only: self.only.clone(),
            size: vec![Size::Bytes(self.size)],
            in_flight: vec![self.readers],
            users: self.users,
            seconds: self.seconds,
            warm_up: 0.0,
            rounds: self.rounds,
            mib_max: 8192,
            watched: WATCHED_USERS_COUNT,
            seed: self.seed,
            scratch: self.scratch.clone(),
            packages: self.packages.clone(),
            settings: self.settings.clone(),
            no_limits: true,
            no_build: self.no_build,
            keep: self.keep,
            out: None,
            json: self.json,
        }
    }
}

/// One line of `results/*.ndjson`.
#[derive(Clone, Debug, Serialize)]
struct Report {
    kind: &'static str,
    #[serde(flatten)]
    environment: Environment,
    system: String,
    version: String,
    size: usize,
    users: usize,
    messages: usize,
    readers: usize,
    seconds: f64,
    round: usize,
    settings: Vec<String>,
    seed: u64,
    #[serde(flatten)]
    figures: Figures,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Figures {
    visits: Figure,
    lists: Figure,
    fetches: Figure,
}

/// Of one kind of work.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Figure {
    per_s: f64,
    latency: LatencySummary,
    /// CPU time of the system under test, microseconds each.
    cpu_us: f64,
}

/// Runs the call.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    args.check()?;
    let mut bench = Bench::new(&args.bench())?;
    bench.lay_out(&args.only)?;
    let mut reports = Vec::new();
    for round in 1..=args.rounds {
        for &system in &args.only {
            progress(&format!("round {round}: {}", system.name()));
            let plan = bench.plan(Size::Bytes(args.size), args.readers)?;
            let figures = bench
                .with(system, args.readers, |running| {
                    measure(args, &plan, &bench, running)
                })
                .with_context(|| format!("{} cannot be measured", system.name()))?;
            let report = Report {
                kind: "reading",
                environment: bench.environment().clone(),
                system: system.name(),
                version: bench.version(system)?,
                size: args.size,
                users: args.users,
                messages: args.messages,
                readers: args.readers,
                seconds: args.seconds,
                round,
                settings: args.settings.clone(),
                seed: args.seed,
                figures,
            };
            if args.json {
                emit(&report)?;
            }
            reports.push(report);
        }
    }
    let sentence = bench.environment().sentence();
    say(
        args.json,
        &format!("\n{sentence}\n\n{}\n", table(&args.only, &reports)),
    )?;
    if !args.json {
        reports.iter().try_for_each(emit)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Fills the mailboxes, reads, and ends the system.
fn measure(
    args: &Args,
    plan: &Plan,
    bench: &Bench,
    running: Box<dyn Running>,
) -> anyhow::Result<Figures> {
    let door = running.door();
    let reads = running.reads().context("nothing to read from")?;
    fill(args, plan, &door, running.as_ref())?;
    bench.sync()?;
    let library = Library {
        reads,
        users: &plan.users,
        messages: args.messages,
        size: args.size,
        seconds: Duration::from_secs_f64(args.seconds),
        seed: args.seed,
    };
    let mut figures = Figures::default();
    for (work, figure) in [
        (Work::Visits, &mut figures.visits),
        (Work::Lists, &mut figures.lists),
        (Work::Fetches, &mut figures.fetches),
    ] {
        *figure = library.read(work, args.readers, running.as_ref())?;
    }
    running.stop()?;
    Ok(figures)
}

/// The same number of messages to each user, in turn.
fn fill(args: &Args, plan: &Plan, door: &Door, running: &dyn Running) -> anyhow::Result<()> {
    let once = first_messages(plan, door.line_end());
    let messages = u64::try_from(args.messages)?;
    let tally = door.drive(&Plan {
        bytes_max: once.bytes_max.saturating_mul(messages),
        ..once
    })?;
    ensure!(
        tally.errors_count() == 0,
        "messages were refused: {:?}",
        tally.errors
    );
    let uneven = tally
        .stored_by_user
        .iter()
        .position(|&count| u64::from(count) != messages);
    ensure!(
        uneven.is_none(),
        "user {uneven:?} did not get {messages} messages"
    );
    wait_until(plan.drain_max, || running.is_idle()).context("mail is still queued")
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Work {
    Visits,
    Lists,
    Fetches,
}

/// What is read.
struct Library<'a> {
    reads: ReadDoor,
    users: &'a Users,
    messages: usize,
    size: usize,
    seconds: Duration,
    seed: u64,
}

impl Library<'_> {
    /// All readers at a time.
    fn read(&self, work: Work, readers: usize, running: &dyn Running) -> anyhow::Result<Figure> {
        let ready = &Barrier::new(readers + 1);
        let (latencies, before, begin) = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..readers)
                .map(|number| scope.spawn(move || self.reader(work, number, ready)))
                .collect();
            ready.wait();
            let (before, begin) = (running.cpu(), Instant::now());
            let ended = threads.into_iter().map(|thread| {
                let joined = thread.join();
                joined.unwrap_or_else(|_| anyhow::bail!("a reader panicked"))
            });
            let latencies = ended.collect::<anyhow::Result<Vec<Latencies>>>()?;
            anyhow::Ok((latencies, before?, begin))
        })?;
        let elapsed = begin.elapsed();
        let cpu = running.cpu()?.saturating_sub(before);
        let mut all = Latencies::new();
        for one in &latencies {
            all.merge(one);
        }
        let latency = all.summary();
        ensure!(latency.count > 0, "{work:?}: nothing was read in time");
        let count = f64::from(u32::try_from(latency.count).unwrap_or(u32::MAX));
        let tenths = |value: f64| (value * 10.0).round() / 10.0;
        Ok(Figure {
            per_s: tenths(count / elapsed.as_secs_f64()),
            latency,
            cpu_us: tenths(cpu.as_secs_f64() * 1e6 / count),
        })
    }

    /// One of them: opens a mailbox, waits for the others, and reads until its time is over.
    fn reader(&self, work: Work, number: usize, ready: &Barrier) -> anyhow::Result<Latencies> {
        let mut random = fastrand::Rng::with_seed(self.seed ^ u64::try_from(number)? << 32);
        let mut latencies = Latencies::new();
        let opened = self.visit(number).and_then(|mut visit| {
            self.list(&mut visit)?;
            Ok(visit)
        });
        ready.wait();
        let mut visit = opened?;
        let begin = Instant::now();
        while begin.elapsed() < self.seconds {
            let user = random.usize(..self.users.count());
            let message = random.usize(..self.messages);
            let before = Instant::now();
            match work {
                Work::Visits => {
                    visit = self.visit(user)?;
                    self.list(&mut visit)?;
                    self.fetch(&mut visit, self.messages - 1)?;
                }
                Work::Lists => self.list(&mut visit)?,
                Work::Fetches => self.fetch(&mut visit, message)?,
            }
            latencies.record(before.elapsed());
        }
        Ok(latencies)
    }

    fn visit(&self, user: usize) -> anyhow::Result<Visit> {
        Ok(match &self.reads {
            ReadDoor::Node(address) => Visit::Node {
                reader: Reader::connect(address)?,
                user: self.users.shared_name(user),
                uids: Vec::new(),
            },
            ReadDoor::Imap(address) => Visit::Imap(Imap::open(address, self.users.name(user))?),
        })
    }

    fn list(&self, visit: &mut Visit) -> anyhow::Result<()> {
        let found = match visit {
            Visit::Node { reader, user, uids } => {
                *uids = reader.inbox(user)?;
                uids.len()
            }
            Visit::Imap(imap) => imap.list()?,
        };
        let messages = self.messages;
        ensure!(
            found == messages,
            "a list has {found} of {messages} messages"
        );
        Ok(())
    }

    /// By its place in the mailbox, from 0.
    fn fetch(&self, visit: &mut Visit, place: usize) -> anyhow::Result<()> {
        let message = match visit {
            Visit::Node { reader, user, uids } => {
                let uid = uids.get(place).context("it was not listed")?;
                reader.fetch(user, *uid)?
            }
            Visit::Imap(imap) => imap.fetch(u32::try_from(place + 1)?)?,
        };
        // Line ends and lines on top are the store's own.
        ensure!(
            message.len() >= self.size,
            "a message of {} bytes came back with {}",
            self.size,
            message.len()
        );
        Ok(())
    }
}

/// An open mailbox.
#[expect(clippy::large_enum_variant, reason = "one a thread")]
enum Visit {
    Node {
        reader: Reader,
        user: Bytes,
        uids: Vec<Uid>,
    },
    Imap(Imap),
}

const HEADS: [&str; 13] = [
    "system",
    "visits/s",
    "p50",
    "p99",
    "CPU us",
    "lists/s",
    "p50",
    "p99",
    "CPU us",
    "fetches/s",
    "p50",
    "p99",
    "CPU us",
];

/// Medians by rate, of each kind of work for itself.
fn table(systems: &[System], reports: &[Report]) -> String {
    let row = |system: &System| {
        let name = system.name();
        let mine = || reports.iter().filter(|report| report.system == name);
        let median = |of: &dyn Fn(&Figures) -> Figure| {
            let mut figures: Vec<Figure> = mine().map(|report| of(&report.figures)).collect();
            figures.sort_by(|a, b| a.per_s.total_cmp(&b.per_s));
            let middle = figures.len().saturating_sub(1) / 2;
            figures.get(middle).copied().unwrap_or_default()
        };
        let kinds = [
            median(&|figures| figures.visits),
            median(&|figures| figures.lists),
            median(&|figures| figures.fetches),
        ];
        let cells = kinds.iter().flat_map(|figure| {
            [
                table::number(figure.per_s),
                table::time(figure.latency.p50_us),
                table::time(figure.latency.p99_us),
                table::number(figure.cpu_us),
            ]
        });
        std::iter::once(name).chain(cells).collect()
    };
    let rows: Vec<Vec<String>> = systems.iter().map(row).collect();
    table::render(&HEADS, &rows)
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

    fn report(system: System, per_s: f64) -> Report {
        let figure = Figure {
            per_s,
            ..Figure::default()
        };
        Report {
            kind: "reading",
            environment: Environment::default(),
            system: system.name(),
            version: "1".to_owned(),
            size: 4096,
            users: 2,
            messages: 2,
            readers: 1,
            seconds: 1.0,
            round: 1,
            settings: Vec::new(),
            seed: 1,
            figures: Figures {
                visits: figure,
                lists: figure,
                fetches: figure,
            },
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_in_a_sentence() {
        parse("").check().unwrap();
        for (line, word) in [
            ("--only procmail", "dovecot-mdbox"),
            ("--messages 0", "messages"),
            ("--readers 3 --users 2", "readers"),
            ("--rounds 0", "rounds"),
        ] {
            let error = parse(line).check().unwrap_err();
            assert!(error.to_string().contains(word), "{line}: {error}");
        }
    }

    #[test]
    fn table_has_the_median_of_each_system() {
        let (ours, other) = (System::RingpostNode, System::DovecotMdbox);
        let reports = [
            report(ours, 30.0),
            report(other, 3.0),
            report(ours, 10.0),
            report(ours, 20.0),
        ];
        let text = table(&[ours, other], &reports);
        let rows: Vec<Vec<&str>> = text
            .lines()
            .skip(1)
            .map(|line| line.split_whitespace().take(2).collect())
            .collect();
        assert_eq!(rows, [["ringpost-node", "20.0"], ["dovecot-mdbox", "3.00"]]);
    }

    /// Every field of a line is explained, by its own name.
    #[test]
    fn readme_explains_every_field() {
        let readme = include_str!("../../results/README.md");
        let part = readme.split("## Fields of `reading`").nth(1).unwrap();
        let value = serde_json::to_value(report(System::RingpostNode, 1.0)).unwrap();
        for name in value.as_object().unwrap().keys() {
            assert!(part.contains(&format!("`{name}`")), "{name}");
        }
    }
}
