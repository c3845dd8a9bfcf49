//! `scale`: how a node bears what grows for years: messages in one mailbox, or mailboxes in one
//! store. Delivers in steps; after each the daemon is stopped and started, so that the first answers
//! come from a cold store (the kernel's cache stays warm), and the price of each kind of request, the
//! memory and the bytes on disk are written down beside those of the step before. What is touched may
//! cost in proportion to its size; nothing else may.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use ringpost_daemon::client::{Client, Deadline, Patience};
use ringpost_engine::config::ShardConfig;
use ringpost_engine::request as engine;
use ringpost_engine::request::{Request, UidSet, Which};
use ringpost_netproto::frame::Status;
use ringpost_netproto::id::{MailboxId, Uid};
use ringpost_netproto::message::MailboxRef;
use ringpost_netproto::message::deliver::{DeliverRecipient, DeliverRequest};
use ringpost_netproto::message::fetch::FetchRequest;
use ringpost_netproto::message::list::ListRequest;
use ringpost_netproto::session::client::{Event, NotReady};
use ringpost_netproto::version::Role;
use serde::Serialize;

use crate::address::Address;
use crate::daemon::{Daemon, Setup};
use crate::engine::Engine;
use crate::environment::Environment;
use crate::process::resident_bytes_max;
use crate::programs::{self, Programs, Rebuild};
use crate::table;
use crate::workload::{Letter, LineEnd, SENDER, Users};

/// For each answer: a mailbox of a million messages may have to be read first.
const PATIENCE: Duration = Duration::from_mins(5);

/// Messages without an answer.
const IN_FLIGHT: usize = 256;

/// Entries of a page: what a mail program asks for.
const PAGE: u32 = 100;

/// Mailboxes or messages that are asked for, for each median.
const SAMPLES: usize = 31;

/// What grows.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum What {
    /// One mailbox.
    Messages,
    /// The store: each user gets one message.
    Users,
}

/// Grow a mailbox, or a store, and measure every step
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// What grows
    #[arg(value_enum)]
    what: What,

    /// How many at the end
    #[arg(long, default_value_t = 1_000_000)]
    count: usize,

    /// In how many steps
    #[arg(long, default_value_t = 5)]
    steps: usize,

    /// Bytes of a message
    #[arg(long, default_value_t = 512)]
    size: usize,

    /// Folder for the daemon's data [beside this program]
    #[arg(long, value_name = "FOLDER")]
    scratch: Option<PathBuf>,

    /// Setting for the daemon, as in its configuration; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,

    /// Take the programs as they are
    #[arg(long)]
    no_build: bool,

    /// Standard output gets the JSON lines alone, the table goes to standard error
    #[arg(long)]
    json: bool,
}

/// One step: a line of `results/*.ndjson`.
#[derive(Serialize)]
struct Step<'a> {
    kind: &'static str,
    #[serde(flatten)]
    environment: &'a Environment,
    what: What,
    size: usize,
    count: usize,
    /// Messages a second, in this step.
    deliver_per_s: f64,
    /// SIGTERM to the end: everything is written to its mailbox.
    drain_s: f64,
    /// Start of the process until it serves.
    start_s: f64,
    /// The first page of a mailbox that is not in memory (median, over users), milliseconds.
    list_cold_ms: f64,
    /// A page once more (median).
    list_warm_ms: f64,
    /// A whole message (median).
    fetch_ms: f64,
    /// One message delivered to a mailbox that is in memory (median).
    deliver_ms: f64,
    /// One expunge of a tenth of what the step brought, and the compaction that follows, without its
    /// throttle (users: medians of one user each, of its only message), milliseconds.
    expunge_ms: f64,
    compact_ms: f64,
    /// Bytes of messages that it copied, and that the files became smaller by.
    compact_copied_bytes: u64,
    compact_freed_bytes: u64,
    /// Most memory of this program, which compacts without a daemon, so far.
    compact_resident_bytes: u64,
    /// Most memory of the process that served these answers, and of the one that took the mail.
    asked_resident_bytes: u64,
    loaded_resident_bytes: u64,
    /// On disk, without the log.
    mail_disk_bytes: u64,
    /// Apparent sizes: segments, and indexes.
    segment_bytes: u64,
    info_bytes: u64,
}

/// Runs all steps.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    ensure!((1..=1_000).contains(&args.steps), "--steps is 1 to 1,000");
    ensure!(
        (args.steps..=100_000_000).contains(&args.count),
        "--count is at least --steps and at most 100,000,000"
    );
    let rebuild = if args.no_build {
        Rebuild::Never
    } else {
        Rebuild::IfStale
    };
    let programs = Programs::locate(rebuild)?;
    let beside = programs::folder()?;
    let scratch = args.scratch.as_ref().unwrap_or(&beside);
    let folder = tempfile::Builder::new()
        .prefix("ringpost-perf.")
        .tempdir_in(scratch)
        .with_context(|| format!("--scratch {}", scratch.display()))?;
    let sockets = tempfile::tempdir()?;
    let environment = Environment::look(folder.path(), &programs::workspace())?;
    let setup = Setup {
        ringpostd: programs.ringpostd,
        data: folder.path().join("data"),
        sockets: sockets.path().to_owned(),
        log: folder.path().join("log"),
        settings: args.set.clone(),
        start_max: Duration::from_mins(10),
    };
    let mut run = Run {
        args,
        setup,
        users: Users::new(
            "u",
            match args.what {
                What::Messages => 1,
                What::Users => args.count,
            },
        ),
        letter: Letter::new(args.size, LineEnd::Lf, 1, 1)?,
        serial: 0,
        random: fastrand::Rng::with_seed(1),
        gone: 0,
    };
    let mut rows = Vec::new();
    let mut done = 0;
    for step in 1..=args.steps {
        let upto = args.count * step / args.steps;
        let line = run.step(&environment, done, upto)?;
        done = upto;
        let json = serde_json::to_string(&line)?;
        if args.json {
            writeln!(std::io::stdout(), "{json}")?;
        }
        rows.push(line.row());
    }
    let page = format!(
        "{}\n{}",
        environment.sentence(),
        table::render(&HEADS, &rows)
    );
    if args.json {
        write!(std::io::stderr(), "{page}")?;
    } else {
        write!(std::io::stdout(), "{page}")?;
    }
    Ok(ExitCode::SUCCESS)
}

const HEADS: [&str; 15] = [
    "count",
    "deliver/s",
    "drain",
    "start",
    "list cold",
    "list warm",
    "fetch",
    "deliver 1",
    "expunge",
    "compact",
    "memory, load",
    "memory, ask",
    "memory, compact",
    "segments",
    "indexes",
];

impl Step<'_> {
    fn row(&self) -> Vec<String> {
        vec![
            table::count(u64::try_from(self.count).unwrap_or(u64::MAX)),
            table::number(self.deliver_per_s),
            table::time(self.drain_s * 1e6),
            table::time(self.start_s * 1e6),
            table::time(self.list_cold_ms * 1e3),
            table::time(self.list_warm_ms * 1e3),
            table::time(self.fetch_ms * 1e3),
            table::time(self.deliver_ms * 1e3),
            table::time(self.expunge_ms * 1e3),
            table::time(self.compact_ms * 1e3),
            table::bytes(self.loaded_resident_bytes),
            table::bytes(self.asked_resident_bytes),
            table::bytes(self.compact_resident_bytes),
            table::bytes(self.segment_bytes),
            table::bytes(self.info_bytes),
        ]
    }
}

struct Run<'a> {
    args: &'a Args,
    setup: Setup,
    users: Users,
    letter: Letter,
    serial: u64,
    random: fastrand::Rng,
    /// So many of the oldest messages, or of the first users, are expunged.
    gone: usize,
}

/// What an expunge and its compaction took and did.
#[derive(Default)]
struct Thinned {
    expunge: Vec<Duration>,
    compact: Vec<Duration>,
    copied_bytes: u64,
    freed_bytes: u64,
}

impl Run<'_> {
    /// Grows from `from` to `upto`, restarts, and asks.
    fn step<'e>(
        &mut self,
        environment: &'e Environment,
        from: usize,
        upto: usize,
    ) -> anyhow::Result<Step<'e>> {
        let daemon = Daemon::start(&self.setup)?;
        let mut client = connect(&daemon)?;
        let begun = Instant::now();
        self.fill(&mut client, from, upto)?;
        let fill_s = begun.elapsed().as_secs_f64();
        drop(client);
        let loaded_resident_bytes = resident_bytes_max(daemon.pid()).unwrap_or(0);
        let begun = Instant::now();
        stop(daemon)?;
        let drain_s = begun.elapsed().as_secs_f64();

        let daemon = Daemon::start(&self.setup)?;
        let start_s = daemon.started_in().as_secs_f64();
        let mut client = connect(&daemon)?;
        let asked = self.ask(&mut client, upto)?;
        drop(client);
        let asked_resident_bytes = resident_bytes_max(daemon.pid()).unwrap_or(0);
        stop(daemon)?;
        let mut thinned = self.thin_out(upto - from)?;
        let sizes = Sizes::of(&self.setup.data.join("p"))?;
        let count = f64::from(u32::try_from(upto - from)?);
        Ok(Step {
            kind: "scale",
            environment,
            what: self.args.what,
            size: self.args.size,
            count: upto,
            deliver_per_s: count / fill_s,
            drain_s,
            start_s,
            list_cold_ms: asked.list_cold,
            list_warm_ms: asked.list_warm,
            fetch_ms: asked.fetch,
            deliver_ms: asked.deliver,
            expunge_ms: median_ms(&mut thinned.expunge),
            compact_ms: median_ms(&mut thinned.compact),
            compact_copied_bytes: thinned.copied_bytes,
            compact_freed_bytes: thinned.freed_bytes,
            compact_resident_bytes: resident_bytes_max(nix::unistd::getpid()).unwrap_or(0),
            asked_resident_bytes,
            loaded_resident_bytes,
            mail_disk_bytes: sizes.disk,
            segment_bytes: sizes.segments,
            info_bytes: sizes.infos,
        })
    }

    /// Expunges and compacts, in the engine: there is no door for it.
    fn thin_out(&mut self, grown: usize) -> anyhow::Result<Thinned> {
        let config = ShardConfig {
            compact_bytes_min: 1 << 40,
            compact_bytes_per_s: 1 << 40,
            scrub_interval_ns: None,
            ..ShardConfig::default()
        };
        let mut engine = Engine::open(&self.setup.data, &config)?;
        let mut thinned = Thinned::default();
        let (turns, each) = match self.args.what {
            What::Messages => (1, (grown / 10).max(1)),
            What::Users => (SAMPLES.min(grown / 2), 1),
        };
        for _ in 0..turns {
            let (place, low) = match self.args.what {
                What::Messages => (0, self.gone + 1),
                What::Users => (self.gone, 1),
            };
            let name = String::from_utf8(self.user(place).to_vec())?;
            let user = engine.user(&name)?;
            let high = u32::try_from(low + each - 1)?;
            let request = Request::Expunge {
                user: user.clone(),
                mailbox: MailboxId::INBOX,
                uids: UidSet::range(u32::try_from(low)?, high),
                which: Which::All,
            };
            let begun = Instant::now();
            let answer = engine.ask(&user, request)?;
            thinned.expunge.push(begun.elapsed());
            let engine::Event::Expunged { result: Ok(_), .. } = answer else {
                bail!("no expunge: {answer:?}");
            };
            engine.ask(&user, Request::Checkpoint)?;
            let begun = Instant::now();
            let answer = engine.ask(&user, Request::Compact { user: user.clone() })?;
            thinned.compact.push(begun.elapsed());
            let engine::Event::Compacted {
                result: Ok(done), ..
            } = answer
            else {
                bail!("no compaction: {answer:?}");
            };
            thinned.copied_bytes += done.copied_bytes;
            thinned.freed_bytes += done.freed_bytes;
            self.gone += each;
        }
        engine.drain()?;
        Ok(thinned)
    }

    fn user(&self, place: usize) -> Bytes {
        self.users.shared_name(match self.args.what {
            What::Messages => 0,
            What::Users => place,
        })
    }

    /// Closed loop on one connection.
    fn fill(&mut self, client: &mut Client, from: usize, upto: usize) -> anyhow::Result<()> {
        let bar =
            ProgressBar::new(u64::try_from(upto - from)?).with_style(ProgressStyle::with_template(
                "{bar:40} {human_pos} of {human_len} delivered, {eta} left",
            )?);
        let mut next = from;
        let mut open = 0;
        while next < upto || open > 0 {
            while next < upto && open < IN_FLIGHT {
                let (request, body) = self.message(next);
                match client.session_mut().deliver(&request, body) {
                    Ok(_) => {
                        next += 1;
                        open += 1;
                    }
                    Err(NotReady::Credit | NotReady::InFlight | NotReady::Backlog) => break,
                    Err(error) => return Err(error).context("the session takes no message"),
                }
            }
            match client.next_event(Deadline::after(PATIENCE))? {
                Event::Delivered { replies, .. } => {
                    open -= 1;
                    bar.inc(1);
                    let stored = replies.iter().all(|reply| reply.status == Status::Ok);
                    ensure!(stored, "a message was not stored: {replies:?}");
                }
                Event::Failed { status, text, .. } => {
                    bail!("a message was refused: {} {text}", status.name())
                }
                Event::GoAway { text, .. } => bail!("the daemon goes away: {text}"),
                _ => {}
            }
        }
        bar.finish_and_clear();
        Ok(())
    }

    fn message(&mut self, place: usize) -> (DeliverRequest, Bytes) {
        self.serial += 1;
        let sealed = self.letter.seal(self.serial);
        let body = Bytes::copy_from_slice(&sealed);
        self.letter.take_back(sealed);
        let request = DeliverRequest {
            sender: Bytes::from_static(SENDER.as_bytes()),
            recipients: vec![DeliverRecipient {
                address: self.user(place),
                mailbox: None,
            }],
            queue_id: Bytes::new(),
            deadline_ms: 0,
            size_hint: u64::try_from(body.len()).ok(),
        };
        (request, body)
    }

    fn ask(&mut self, client: &mut Client, count: usize) -> anyhow::Result<Asked> {
        let mut asked = Samples::default();
        for sample in 0..SAMPLES {
            let place = match self.args.what {
                What::Messages => 0,
                What::Users => self.random.usize(self.gone.min(count - 1)..count),
            };
            let user = self.user(place);
            let last = match self.args.what {
                What::Messages => count,
                What::Users => 1,
            };
            let after = match self.args.what {
                What::Messages => self.random.usize(self.gone..last),
                What::Users => 0,
            };
            let page = |after: usize| -> anyhow::Result<ListRequest> {
                Ok(ListRequest {
                    user: user.clone(),
                    mailbox: MailboxRef::Id(MailboxId::INBOX),
                    after_uid: u32::try_from(after)?,
                    entries_max: PAGE,
                })
            };
            // One mailbox is cold only once.
            if sample == 0 || self.args.what == What::Users {
                let begun = Instant::now();
                let first = client.list(&page(0)?, Deadline::after(PATIENCE))?;
                asked.list_cold.push(begun.elapsed());
                ensure!(!first.entries.is_empty(), "a mailbox has lost its mail");
            }
            let begun = Instant::now();
            let listed = client.list(&page(after)?, Deadline::after(PATIENCE))?;
            asked.list_warm.push(begun.elapsed());
            let wanted = u32::try_from(last - after)?.min(PAGE);
            ensure!(
                listed.entries.len() >= usize::try_from(wanted)?,
                "a page behind uid {after} has {} of {wanted} messages",
                listed.entries.len()
            );
            let begun = Instant::now();
            let uid = Uid::new(u32::try_from(after + 1)?);
            let bytes = fetch(client, &user, uid)?;
            asked.fetch.push(begun.elapsed());
            ensure!(bytes >= self.args.size, "message {uid} came back short");
        }
        // Not counted in `count`: these come on top, in mailboxes that are in memory now.
        for _ in 0..SAMPLES {
            let (request, body) = self.message(0);
            let begun = Instant::now();
            client.deliver(&request, &body, Deadline::after(PATIENCE))?;
            asked.deliver.push(begun.elapsed());
        }
        Ok(Asked {
            list_cold: median_ms(&mut asked.list_cold),
            list_warm: median_ms(&mut asked.list_warm),
            fetch: median_ms(&mut asked.fetch),
            deliver: median_ms(&mut asked.deliver),
        })
    }
}

#[derive(Default)]
struct Samples {
    list_cold: Vec<Duration>,
    list_warm: Vec<Duration>,
    fetch: Vec<Duration>,
    deliver: Vec<Duration>,
}

/// Medians, milliseconds.
struct Asked {
    list_cold: f64,
    list_warm: f64,
    fetch: f64,
    deliver: f64,
}

fn median_ms(samples: &mut [Duration]) -> f64 {
    samples.sort_unstable();
    let middle = samples.get(samples.len() / 2);
    middle.map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}

fn connect(daemon: &Daemon) -> anyhow::Result<Client> {
    let node = Address::Unix(daemon.doors().node.clone());
    let deadline = Deadline::after(PATIENCE);
    Client::connect(&(&node).into(), Role::Client, deadline, Patience::None)
        .context("cannot reach the daemon")
}

fn stop(daemon: Daemon) -> anyhow::Result<()> {
    let status = daemon.stop(Duration::from_mins(10))?;
    ensure!(status.success(), "the daemon ended with {status}");
    Ok(())
}

/// Bytes of a fetched message.
fn fetch(client: &mut Client, user: &Bytes, uid: Uid) -> anyhow::Result<usize> {
    let request = FetchRequest {
        user: user.clone(),
        mailbox: MailboxRef::Id(MailboxId::INBOX),
        uid,
    };
    let (id, _) = client.fetch(&request, Deadline::after(PATIENCE))?;
    let mut bytes = 0;
    while let Some(piece) = client.fetched(id, Deadline::after(PATIENCE))? {
        bytes += piece.len();
    }
    Ok(bytes)
}

/// What lies below a folder.
#[derive(Default)]
struct Sizes {
    disk: u64,
    segments: u64,
    infos: u64,
}

impl Sizes {
    fn of(folder: &Path) -> anyhow::Result<Self> {
        let mut sizes = Self::default();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            let entries = std::fs::read_dir(&folder);
            for entry in entries.with_context(|| format!("cannot read {}", folder.display()))? {
                let entry = entry?;
                let about = entry.metadata()?;
                sizes.disk += about.blocks() * 512;
                let name = entry.file_name();
                let name = name.to_string_lossy();
                if about.is_dir() {
                    folders.push(entry.path());
                } else if name.starts_with("info.") {
                    sizes.infos += about.len();
                } else if name.ends_with(".mbox") {
                    sizes.segments += about.len();
                }
            }
        }
        Ok(sizes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_tell_segments_from_indexes() {
        let folder = tempfile::tempdir().unwrap();
        let user = folder.path().join("0001/00ff-0");
        std::fs::create_dir_all(&user).unwrap();
        std::fs::write(user.join("info.00000001"), [0; 10]).unwrap();
        std::fs::write(user.join("00000001.mbox"), [0; 300]).unwrap();
        std::fs::write(user.join("folders"), [0; 5]).unwrap();
        let sizes = Sizes::of(folder.path()).unwrap();
        assert_eq!((sizes.segments, sizes.infos), (300, 10));
        assert!(sizes.disk >= 315);
    }

    #[test]
    fn the_median_is_the_middle() {
        let mut samples = [5, 1, 9].map(Duration::from_millis);
        assert!((median_ms(&mut samples) - 5.0).abs() < 1e-9);
    }
}
