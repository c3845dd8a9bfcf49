//! `compaction`: what compaction costs those who deliver meanwhile. One shard over the real ring, no
//! sockets; slices without and with compaction alternate in one run, so that both see the same disk.
//!
//! Mail arrives at moments fixed beforehand (open loop): a stall is counted. In a slice with
//! compaction one user after the other, each with half of its mail expunged, is compacted at the
//! default rate; how long one was under way is measured, too.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use ringpost_engine::config::ShardConfig;
use ringpost_engine::request::{Event, Outcome, Request, Ticket, UidSet, Which};
use ringpost_netproto::id::MailboxId;
use ringpost_netproto::placement::UserKey;
use serde::Serialize;

use crate::engine::{Engine, ticket_of};
use crate::environment::Environment;
use crate::hist::{Latencies, LatencySummary};
use crate::process::MachineTime;
use crate::programs;

/// Messages in flight while the store is filled.
const FILL_IN_FLIGHT: usize = 256;

/// Users who get mail in the slices.
const RECIPIENTS: usize = 1_000;

/// Bytes of a message in a mailbox that is compacted.
const OLD_BYTES: usize = 16 << 10;

/// Measure deliveries with and without compaction, in turn
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Deliveries a second
    #[arg(long, default_value_t = 1_000)]
    rate: u32,

    /// Bytes of a delivered message
    #[arg(long, default_value_t = 4_096, value_parser = clap::value_parser!(u32).range(64..=100_000))]
    size: u32,

    /// Pairs of slices
    #[arg(long, default_value_t = 4)]
    pairs: u32,

    /// Seconds of a slice
    #[arg(long, default_value_t = 8)]
    seconds: u32,

    /// Folder for the store [beside this program]
    #[arg(long, value_name = "FOLDER")]
    scratch: Option<PathBuf>,
}

/// The line of the run.
#[derive(Serialize)]
struct Line<'a> {
    kind: &'static str,
    #[serde(flatten)]
    environment: &'a Environment,
    rate: u32,
    size: u32,
    pairs: u32,
    seconds: u32,
    without: LatencySummary,
    with: LatencySummary,
    p99_ratio: f64,
    /// Of the slices with compaction: the share in which one was under way.
    compacting_share: f64,
    compactions: u64,
    compact_copied_bytes: u64,
    late_checkpoints: u64,
    /// The part of the processors' time that the hypervisor withheld.
    stolen_share: Option<f64>,
}

struct Bench {
    engine: Engine,
    body: Vec<u8>,
    number: u64,
    recipients: Vec<UserKey>,
    random: fastrand::Rng,
    events: Vec<(usize, Event)>,
}

/// Runs it.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    ensure!(
        args.rate > 0 && args.pairs > 0 && args.seconds > 0,
        "at least 1 of each"
    );
    let beside = programs::folder()?;
    let scratch = args.scratch.as_ref().unwrap_or(&beside);
    let folder = tempfile::Builder::new()
        .prefix("ringpost-perf.")
        .tempdir_in(scratch)
        .with_context(|| format!("--scratch {}", scratch.display()))?;
    let environment = Environment::look(folder.path(), &programs::workspace())?;
    let config = ShardConfig {
        // Only what this run asks for.
        compact_bytes_min: 1 << 40,
        scrub_interval_ns: None,
        checkpoint_interval_ns: 2_000_000_000,
        ..ShardConfig::default()
    };
    let engine = Engine::open(&folder.path().join("data"), &config)?;
    let mut recipients = Vec::new();
    for user in 0..RECIPIENTS {
        recipients.push(engine.user(&format!("recipient{user}"))?);
    }
    let mut bench = Bench {
        engine,
        body: letter(usize::try_from(args.size)?),
        number: 0,
        recipients,
        random: fastrand::Rng::with_seed(1),
        events: Vec::new(),
    };
    // Each slice has a second more to do than it lasts.
    let bytes_per_user = config.compact_bytes_per_s * 2;
    let users = (args.seconds + 1) * args.pairs;
    let mut old = Vec::new();
    for user in 0..users {
        old.push(bench.engine.user(&format!("old{user}"))?);
    }
    let messages = usize::try_from(bytes_per_user)? / OLD_BYTES;
    bench.fill(&old, messages)?;
    let (mut without, mut with) = (Latencies::new(), Latencies::new());
    let mut compacting = Duration::ZERO;
    let span = Duration::from_secs(u64::from(args.seconds));
    let before = bench.engine.metrics(0);
    let machine = MachineTime::now();
    for users in old.chunks(usize::try_from(args.seconds + 1)?) {
        bench.halve(users, messages)?;
        bench.slice(args.rate, span, &mut without, &[])?;
        compacting += bench.slice(args.rate, span, &mut with, users)?;
    }
    let machine = MachineTime::now().zip(machine);
    let after = bench.engine.metrics(0);
    let (without, with) = (without.summary(), with.summary());
    let line = Line {
        kind: "compaction",
        environment: &environment,
        rate: args.rate,
        size: args.size,
        pairs: args.pairs,
        seconds: args.seconds,
        p99_ratio: with.p99_us / without.p99_us,
        without,
        with,
        compacting_share: compacting.as_secs_f64() / (span * args.pairs).as_secs_f64(),
        compactions: after.compactions - before.compactions,
        compact_copied_bytes: after.compact_copied_bytes - before.compact_copied_bytes,
        late_checkpoints: after.checkpoints - before.checkpoints,
        stolen_share: machine.and_then(|(now, before)| now.stolen_since(before)),
    };
    bench.engine.drain()?;
    writeln!(std::io::stdout(), "{}", serde_json::to_string(&line)?)?;
    Ok(ExitCode::SUCCESS)
}

fn letter(bytes: usize) -> Vec<u8> {
    let mut letter = b"Subject: compaction\n\n".to_vec();
    while letter.len() < bytes {
        letter.extend_from_slice(b"a line of text that is as long as lines of mail often are\n");
    }
    letter.truncate(bytes - 1);
    letter.push(b'\n');
    letter
}

fn stored(event: &Event) -> anyhow::Result<bool> {
    match event {
        Event::Appended { outcomes, .. } => match outcomes.first() {
            Some(Outcome::Stored { .. }) => Ok(true),
            other => bail!("a message was not stored: {other:?}"),
        },
        _ => Ok(false),
    }
}

impl Bench {
    fn append(&mut self, user: &UserKey, bytes: &[u8]) -> anyhow::Result<Ticket> {
        self.number += 1;
        let body = self.engine.prepare(bytes)?;
        let request = Engine::append(user, self.number, body);
        Ok(self.engine.submit(user, request)?.1)
    }

    /// Mail for everybody, in its files.
    fn fill(&mut self, users: &[UserKey], messages: usize) -> anyhow::Result<()> {
        let body = letter(OLD_BYTES);
        let recipients = self.recipients.clone();
        let old = users
            .iter()
            .flat_map(|user| std::iter::repeat_n(user, messages));
        let mut next = recipients.iter().chain(old).peekable();
        let mut open = 0;
        while next.peek().is_some() || open > 0 {
            while open < FILL_IN_FLIGHT
                && let Some(user) = next.next()
            {
                self.append(user, &body)?;
                open += 1;
            }
            open -= self.turn(Duration::from_millis(50))?;
        }
        self.checkpoint()
    }

    /// Polls, counts what was stored, waits.
    fn turn(&mut self, longest: Duration) -> anyhow::Result<usize> {
        let mut count = 0;
        self.engine.poll(&mut self.events)?;
        for (_, event) in self.events.drain(..) {
            count += usize::from(stored(&event)?);
        }
        if count == 0 {
            self.engine.wait(longest)?;
        }
        Ok(count)
    }

    fn checkpoint(&mut self) -> anyhow::Result<()> {
        let user = self.recipients.first().context("recipients")?.clone();
        self.engine.ask(&user, Request::Checkpoint).map(drop)
    }

    /// Expunges every second message.
    fn halve(&mut self, users: &[UserKey], messages: usize) -> anyhow::Result<()> {
        for user in users {
            let uids: UidSet = (1..=u32::try_from(messages)?)
                .step_by(2)
                .map(|uid| (uid, uid))
                .collect();
            let request = Request::Expunge {
                user: user.clone(),
                mailbox: MailboxId::INBOX,
                uids,
                which: Which::All,
            };
            let Event::Expunged { result, .. } = self.engine.ask(user, request)? else {
                bail!("another answer than an expunge");
            };
            result.map_err(|refused| anyhow::anyhow!("no expunge: {refused}"))?;
        }
        self.checkpoint()
    }

    /// Deliveries at fixed moments for `span`, while `users` are compacted. How long that was.
    fn slice(
        &mut self,
        rate: u32,
        span: Duration,
        latencies: &mut Latencies,
        users: &[UserKey],
    ) -> anyhow::Result<Duration> {
        let mut compacting = BTreeSet::new();
        for user in users {
            let request = Request::Compact { user: user.clone() };
            compacting.insert(self.engine.submit(user, request)?.1);
        }
        let begun = Instant::now();
        let mut under_way = Duration::ZERO;
        let mut open: BTreeMap<Ticket, Instant> = BTreeMap::new();
        let body = self.body.clone();
        let mut sent: u32 = 0;
        let gap = Duration::from_secs(1) / rate;
        loop {
            let due = begun + gap * sent;
            let now = Instant::now();
            let over = due.duration_since(begun) >= span;
            if over && open.is_empty() {
                break;
            }
            if !over && now >= due {
                let place = self.random.usize(..self.recipients.len());
                let user = self.recipients.get(place).context("a recipient")?.clone();
                let ticket = self.append(&user, &body)?;
                open.insert(ticket, due);
                sent += 1;
                // All that is due shares a batch.
                if begun + gap * sent <= now {
                    continue;
                }
            }
            self.engine.poll(&mut self.events)?;
            for (_, event) in self.events.drain(..) {
                let ticket = ticket_of(&event);
                if let Some(due) = ticket.and_then(|ticket| open.remove(&ticket)) {
                    stored(&event)?;
                    latencies.record(due.elapsed());
                } else if let Some(ticket) = ticket
                    && compacting.remove(&ticket)
                {
                    if let Event::Compacted {
                        result: Err(refused),
                        ..
                    } = &event
                    {
                        bail!("no compaction: {refused}");
                    }
                    under_way = begun.elapsed().min(span);
                }
            }
            let next = if over {
                Duration::from_millis(1)
            } else {
                gap * sent
            };
            let left = (begun + next).saturating_duration_since(Instant::now());
            self.engine.wait(if over { next } else { left })?;
        }
        if !compacting.is_empty() {
            under_way = span;
        }
        // The next slice is without.
        while !compacting.is_empty() {
            self.engine.poll(&mut self.events)?;
            for (_, event) in self.events.drain(..) {
                if let Some(ticket) = ticket_of(&event) {
                    compacting.remove(&ticket);
                }
            }
            self.engine.wait(Duration::from_millis(20))?;
        }
        Ok(under_way)
    }
}
