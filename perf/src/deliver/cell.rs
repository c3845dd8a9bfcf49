//! One cell of a run: a daemon of its own, the load, its metrics before and after, the comparison
//! with what is stored, and the daemon's orderly end.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::attic::Attic;
use super::echo::EchoSession;
use super::fake::{Dialect, Fake};
use super::link::Link;
use super::lmtp::{LmtpSession, Transfer};
use super::load::{self, Share};
use super::mda;
use super::node::NodeSession;
use super::plan::Plan;
use super::session::Session;
use super::tally::Tally;
use super::verify::{self, Verification};
use super::window::{self, CHECKPOINTS, Window};
use crate::address::Address;
use crate::daemon::{Daemon, Setup};
use crate::letters::Size;
use crate::process::{CpuTime, MachineTime, resident_bytes_max};
use crate::programs::Programs;
use crate::scrape::Metrics;

const GREETING_MAX: Duration = Duration::from_secs(10);

/// A daemon fills its first log files before it serves.
const START_MAX: Duration = Duration::from_mins(2);

/// The end of a daemon includes a checkpoint of everything that was delivered.
const STOP_MAX: Duration = Duration::from_mins(2);

/// Which door is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Via {
    /// The node protocol, many messages in flight on a connection.
    Node,
    /// LMTP, one message in flight on a connection.
    Lmtp,
    /// One ringpost-deliver per message.
    Mda,
}

impl Via {
    /// As on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Lmtp => "lmtp",
            Self::Mda => "mda",
        }
    }
}

/// How the generator reaches the door.
#[derive(Clone, Debug)]
pub(crate) struct Reach {
    /// Which door.
    pub(crate) via: Via,
    /// LMTP: DATA or BDAT.
    pub(crate) transfer: Transfer,
    /// Connections in all.
    pub(crate) connections: usize,
    /// Generator threads.
    pub(crate) threads: usize,
    /// For [`Via::Mda`].
    pub(crate) deliver: Option<PathBuf>,
}

/// Where the daemon comes from.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// Started for the cell.
    Own(Own),
    /// Running already.
    Named {
        /// The door that is measured.
        door: Address,
        /// The node protocol, to compare what is stored.
        node: Option<Address>,
        /// Metrics.
        admin: Option<Address>,
    },
    /// The generator's own fake.
    Fake,
}

/// A daemon that a cell starts.
#[derive(Clone, Debug)]
pub(crate) struct Own {
    /// The programs.
    pub(crate) programs: Programs,
    /// Its data goes below this folder.
    pub(crate) scratch: PathBuf,
    /// `KEY=VALUE`.
    pub(crate) settings: Vec<String>,
    /// Whether the folder stays.
    pub(crate) keep: Keep,
    /// Where it goes otherwise.
    pub(crate) attic: Attic,
    /// Who looks on.
    pub(crate) witness: Option<Witness>,
}

/// Looks at a loaded daemon from the opening of the window on, from a thread of its own. It should
/// end before the load does.
#[derive(Clone)]
pub(crate) struct Witness(Arc<dyn Fn(Pid) -> anyhow::Result<()> + Send + Sync>);

impl Witness {
    /// Calls `look` with the daemon's id.
    pub(crate) fn new(look: impl Fn(Pid) -> anyhow::Result<()> + Send + Sync + 'static) -> Self {
        Self(Arc::new(look))
    }
}

impl std::fmt::Debug for Witness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Witness")
    }
}

/// Whether a scratch folder stays after the run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Keep {
    /// It does.
    Yes,
    /// It is removed.
    No,
}

/// What came of a cell.
#[derive(Debug)]
pub(crate) struct Findings {
    /// The generator's account. Its letters are used up by the comparison.
    pub(crate) tally: Tally,
    /// What the daemon's metrics gained since the window opened.
    pub(crate) metrics: Option<Metrics>,
    /// Checkpoints that ended before.
    pub(crate) warm_up_checkpoints: Option<f64>,
    /// What the daemon used since the window opened.
    pub(crate) daemon_cpu: Option<CpuTime>,
    /// What the generator used since then; children are the shims.
    pub(crate) generator_cpu: CpuTime,
    /// The part of the processors' time that the hypervisor withheld since then.
    pub(crate) stolen_share: Option<f64>,
    /// The daemon's memory at its highest.
    pub(crate) daemon_bytes_max: Option<u64>,
    /// Load and drain together.
    pub(crate) elapsed: Duration,
    /// From the daemon's start until it served.
    pub(crate) start: Option<Duration>,
    /// From SIGTERM to its end.
    pub(crate) stop: Option<Duration>,
    /// The comparison, if the store can be asked.
    pub(crate) verification: Option<Verification>,
    /// What went wrong besides.
    pub(crate) faults: Vec<String>,
}

/// Runs a cell. `Err` means that there is no figure.
pub(crate) fn run(plan: &Plan, reach: &Reach, target: &Target) -> anyhow::Result<Findings> {
    match target {
        Target::Own(own) => run_own(plan, reach, own),
        Target::Named { door, node, admin } => {
            let sides = Sides {
                door: door.clone(),
                node: node.clone(),
                admin: admin.clone(),
                pid: None,
                witness: None,
            };
            measure(plan, reach, &sides)
        }
        Target::Fake => {
            let sockets = socket_folder()?;
            let dialect = match reach.via {
                Via::Node | Via::Mda => Dialect::Node,
                Via::Lmtp => Dialect::Lmtp,
            };
            let fake = Fake::start(sockets.path(), dialect)?;
            let sides = Sides {
                door: fake.address(),
                node: None,
                admin: None,
                pid: None,
                witness: None,
            };
            measure(plan, reach, &sides)
        }
    }
}

fn run_own(plan: &Plan, reach: &Reach, own: &Own) -> anyhow::Result<Findings> {
    let scratch = folder(&own.scratch, own.keep, &own.attic)?;
    let sockets = socket_folder()?;
    let setup = Setup {
        ringpostd: own.programs.ringpostd.clone(),
        data: scratch.path.join("data"),
        sockets: sockets.path().to_owned(),
        log: scratch.path.join("ringpostd.log"),
        settings: own.settings.clone(),
        start_max: START_MAX,
    };
    let daemon = Daemon::start(&setup).inspect_err(|_| scratch.keep())?;
    let doors = daemon.doors().clone();
    let sides = Sides {
        door: match reach.via {
            Via::Node | Via::Mda => Address::from(doors.node.as_path()),
            Via::Lmtp => Address::from(doors.lmtp.as_path()),
        },
        node: Some(Address::from(doors.node.as_path())),
        admin: Some(Address::from(doors.admin.as_path())),
        pid: Some(daemon.pid()),
        witness: own.witness.clone(),
    };
    let mut findings = measure(plan, reach, &sides)
        .inspect_err(|_| scratch.keep())
        .with_context(|| format!("the daemon's log is {}", setup.log.display()))?;
    findings.start = Some(daemon.started_in());
    stop(daemon, &mut findings);
    let good = findings
        .verification
        .as_ref()
        .is_none_or(Verification::is_good);
    if !good || !findings.faults.is_empty() {
        scratch.keep();
        let kept = format!("log and data are kept in {}", scratch.path.display());
        findings.faults.push(kept);
    }
    Ok(findings)
}

/// Requests and replies per second of a bare socket: the cell's sizes and connections, nothing
/// stored.
pub(crate) fn echo_per_s(plan: &Plan, connections: usize, each: Duration) -> anyhow::Result<f64> {
    let mut plan = plan.clone();
    plan.pace = crate::schedule::Pace::Closed;
    plan.window = Window::at(Duration::ZERO, each);
    let sockets = socket_folder()?;
    let size = plan.size.mean();
    plan.size = Size::Bytes(size);
    let fake = Fake::start(sockets.path(), Dialect::Echo { size })?;
    let session = || -> Box<dyn Session> { Box::new(EchoSession::default()) };
    let links = connect(&fake.address(), connections, &session)?;
    let tally = load(&plan, 1, links, Instant::now())?;
    ensure!(
        tally.errors_count() == 0,
        "the echo failed: {:?}",
        tally.errors
    );
    Ok(per_second(tally.messages, each))
}

/// A rate.
pub(crate) fn per_second(count: u64, time: Duration) -> f64 {
    let count = u32::try_from(count).map_or(f64::INFINITY, f64::from);
    count / time.as_secs_f64()
}

/// What a cell talks to.
struct Sides {
    door: Address,
    node: Option<Address>,
    admin: Option<Address>,
    pid: Option<Pid>,
    witness: Option<Witness>,
}

/// What the processes had used and counted at one moment.
#[derive(Default)]
struct Look {
    metrics: Option<Metrics>,
    daemon: Option<CpuTime>,
    generator: Option<CpuTime>,
    machine: Option<MachineTime>,
}

/// What was gained between two looks.
#[derive(Default)]
struct Gain {
    metrics: Option<Metrics>,
    daemon: Option<CpuTime>,
    generator: Option<CpuTime>,
    stolen_share: Option<f64>,
}

impl Look {
    fn since(&self, before: &Self) -> Gain {
        let cpu = |now: Option<CpuTime>, before: Option<CpuTime>| Some(now?.since(before?));
        let metrics = self.metrics.as_ref().zip(before.metrics.as_ref());
        let machine = self.machine.zip(before.machine);
        Gain {
            metrics: metrics.map(|(now, before)| now.since(before)),
            daemon: cpu(self.daemon, before.daemon),
            generator: cpu(self.generator, before.generator),
            stolen_share: machine.and_then(|(now, before)| now.stolen_since(before)),
        }
    }
}

impl Sides {
    fn scrape(&self) -> anyhow::Result<Option<Metrics>> {
        self.admin.as_ref().map(Metrics::scrape).transpose()
    }

    fn look(&self) -> anyhow::Result<Look> {
        Ok(Look {
            metrics: self.scrape()?,
            daemon: self.pid.and_then(CpuTime::of),
            generator: CpuTime::of(Pid::this()),
            machine: MachineTime::now(),
        })
    }
}

/// Waits for the window, and looks at its beginning; `None` if the load ended first.
fn opened(
    plan: &Plan,
    sides: &Sides,
    begin: Instant,
    start: Option<&Metrics>,
    stop: &Receiver<()>,
) -> anyhow::Result<Option<Look>> {
    let ask = || sides.scrape();
    let open = window::watch(plan.warm_up, &plan.window, begin, start, &ask, stop)?;
    let looked = open.then(|| sides.look()).transpose()?;
    if let (Some(witness), Some(pid), true) = (&sides.witness, sides.pid, open) {
        (witness.0)(pid)?;
    }
    Ok(looked)
}

fn measure(plan: &Plan, reach: &Reach, sides: &Sides) -> anyhow::Result<Findings> {
    let before_counts = match &sides.node {
        Some(node) if sides.pid.is_none() => verify::counts(node, &plan.users)?,
        _ => vec![0; plan.users.count()],
    };
    let links = match reach.via {
        Via::Mda => Vec::new(),
        Via::Node => connect(&sides.door, reach.connections, &|| {
            Box::new(NodeSession::new())
        })?,
        Via::Lmtp => connect(&sides.door, reach.connections, &|| {
            Box::new(LmtpSession::new(reach.transfer))
        })?,
    };
    let mut faults = Vec::new();
    let mut note = |what: &str, error: anyhow::Error| faults.push(format!("{what}: {error:#}"));
    let start = sides.scrape()?;
    let begin = Instant::now();
    let (tally, opened) = std::thread::scope(|scope| {
        let (hold, stop) = channel();
        let start = start.as_ref();
        let watcher = scope.spawn(move || opened(plan, sides, begin, start, &stop));
        let tally = match (reach.via, &reach.deliver) {
            (Via::Mda, Some(program)) => {
                let calls = |users: &[&str]| mda::shim(program, &sides.door, users);
                mda::run(plan, &calls, begin)
            }
            (Via::Mda, None) => Err(anyhow::anyhow!("ringpost-deliver was not found")),
            (Via::Node | Via::Lmtp, _) => load(plan, reach.threads, links, begin),
        };
        drop(hold);
        let opened = watcher
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (tally, opened)
    });
    let (mut tally, elapsed) = (tally?, begin.elapsed());
    let opened = opened.and_then(|opened| opened.context("the load ended in the warm-up"));
    let opened = opened.map_err(|error| note("nothing was measured", error));
    let opened = opened.unwrap_or_default();
    let end = sides.look().map_err(|error| note("metrics", error));
    let gained = end.unwrap_or_default().since(&opened);
    let warm_up = opened.metrics.as_ref().zip(start);
    let warm_up = warm_up.map(|(opened, start)| opened.since(&start));
    let verification = sides.node.as_ref().and_then(|node| {
        let verified = verify::verify(node, plan, &mut tally, &before_counts);
        verified
            .map_err(|error| note("comparison with the store", error))
            .ok()
    });
    Ok(Findings {
        tally,
        metrics: gained.metrics,
        warm_up_checkpoints: warm_up.and_then(|gained| gained.sum(CHECKPOINTS, "")),
        daemon_cpu: gained.daemon,
        generator_cpu: gained.generator.unwrap_or_default(),
        stolen_share: gained.stolen_share,
        daemon_bytes_max: sides.pid.and_then(resident_bytes_max),
        elapsed,
        start: None,
        stop: None,
        verification,
        faults,
    })
}

/// Greeted connections to a door.
pub(crate) fn connect(
    door: &Address,
    connections: usize,
    session: &dyn Fn() -> Box<dyn Session>,
) -> anyhow::Result<Vec<Link>> {
    let greeted = |_| {
        let mut link = Link::connect(door, session())?;
        link.greet(GREETING_MAX)
            .with_context(|| format!("at {door}"))?;
        Ok(link)
    };
    (0..connections).map(greeted).collect()
}

/// Divides links and places over the threads, runs them, and adds their accounts up.
pub(crate) fn load(
    plan: &Plan,
    threads: usize,
    links: Vec<Link>,
    begin: Instant,
) -> anyhow::Result<Tally> {
    let threads = threads.clamp(1, links.len().max(1));
    let mut shares: Vec<Vec<Link>> = (0..threads).map(|_| Vec::new()).collect();
    for (index, link) in links.into_iter().enumerate() {
        if let Some(share) = shares.get_mut(index % threads) {
            share.push(link);
        }
    }
    let tallies: Vec<anyhow::Result<Tally>> = std::thread::scope(|scope| {
        let run = |(thread, links): (usize, Vec<Link>)| {
            let share = Share {
                thread,
                threads,
                places: (plan.in_flight + threads - 1 - thread) / threads,
            };
            scope.spawn(move || load::run(plan, share, links, begin))
        };
        let handles: Vec<_> = shares.into_iter().enumerate().map(run).collect();
        let join = |handle: std::thread::ScopedJoinHandle<'_, anyhow::Result<Tally>>| {
            handle
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        handles.into_iter().map(join).collect()
    });
    let mut all = Tally::new(plan.users.count());
    for tally in tallies {
        all.merge(tally?);
    }
    Ok(all)
}

fn stop(daemon: Daemon, findings: &mut Findings) {
    let begin = Instant::now();
    match daemon.stop(STOP_MAX) {
        Ok(status) if status.success() => findings.stop = Some(begin.elapsed()),
        Ok(status) => findings
            .faults
            .push(format!("the daemon ended with {status}")),
        Err(error) => findings.faults.push(format!("{error:#}")),
    }
}

/// A folder that goes to the attic at the end, unless it is kept: by wish, or since something went
/// wrong.
pub(crate) struct Folder {
    /// Where it is.
    pub(crate) path: PathBuf,
    guard: Cell<Option<TempDir>>,
    attic: Attic,
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Some(guard) = self.guard.take() {
            self.attic.store(guard);
        }
    }
}

impl Folder {
    /// It stays.
    pub(crate) fn keep(&self) {
        if let Some(guard) = self.guard.take() {
            // The path is known already.
            drop(guard.keep());
        }
    }
}

/// A new folder below `parent`.
pub(crate) fn folder(parent: &Path, keep: Keep, attic: &Attic) -> anyhow::Result<Folder> {
    let made = tempfile::Builder::new()
        .prefix("ringpost-perf.")
        .tempdir_in(parent)
        .with_context(|| format!("cannot write to {}", parent.display()))?;
    let folder = Folder {
        path: made.path().to_owned(),
        guard: Cell::new(Some(made)),
        attic: attic.clone(),
    };
    if keep == Keep::Yes {
        folder.keep();
    }
    Ok(folder)
}

/// Sockets lie in the system's folder for temporary files: their paths must be short.
pub(crate) fn socket_folder() -> anyhow::Result<TempDir> {
    let made = tempfile::Builder::new().prefix("rp.").tempdir();
    made.context("cannot make a folder for sockets")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(via: Via, connections: usize, threads: usize) -> Reach {
        Reach {
            via,
            transfer: Transfer::Data,
            connections,
            threads,
            deliver: None,
        }
    }

    fn plan(in_flight: usize) -> Plan {
        let mut plan = Plan::tiny(100);
        plan.window = Window::at(Duration::ZERO, Duration::from_millis(200));
        plan.in_flight = in_flight;
        plan.bytes_max = 1 << 30;
        plan.line_end = crate::workload::LineEnd::CrLf;
        plan
    }

    #[test]
    fn fake_answers_every_message_of_every_protocol() {
        for (via, connections, threads) in [
            (Via::Node, 1, 1),
            (Via::Node, 4, 2),
            (Via::Lmtp, 8, 1),
            (Via::Lmtp, 8, 2),
        ] {
            let plan = plan(8);
            let findings = run(&plan, &reach(via, connections, threads), &Target::Fake).unwrap();
            let tally = &findings.tally;
            assert_eq!(tally.errors_count(), 0, "{via:?}: {:?}", tally.errors);
            assert!(tally.sent > 8, "{via:?}: {}", tally.sent);
            assert_eq!(tally.recipients_all, tally.sent, "{via:?}");
            assert!(findings.verification.is_none() && findings.metrics.is_none());
        }
    }

    #[test]
    fn large_messages_and_many_recipients_are_answered_too() {
        let mut plan = plan(16);
        plan.size = Size::Bytes(300_000);
        plan.recipients = 3;
        let findings = run(&plan, &reach(Via::Node, 2, 1), &Target::Fake).unwrap();
        assert_eq!(
            findings.tally.errors_count(),
            0,
            "{:?}",
            findings.tally.errors
        );
        assert_eq!(findings.tally.recipients_all, 3 * findings.tally.sent);
    }

    #[test]
    fn echo_gives_a_rate() {
        let rate = echo_per_s(&plan(16), 4, Duration::from_millis(100)).unwrap();
        assert!(rate > 100.0, "{rate}");
    }

    #[test]
    fn a_door_where_nobody_is_home_is_an_error_with_its_name() {
        let target = Target::Named {
            door: "unix:/nowhere/at/all".parse().unwrap(),
            node: None,
            admin: None,
        };
        let error = run(&plan(1), &reach(Via::Node, 1, 1), &target).unwrap_err();
        assert!(
            format!("{error:#}").contains("/nowhere/at/all"),
            "{error:#}"
        );
    }
}
