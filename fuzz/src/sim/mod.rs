//! The simulator: one node with all its shards on a simulated disk, random work, faults and crashes,
//! and an oracle that knows what was promised (storage.md 12).
//!
//! Everything comes from one seed: limits and manners of the disk (`knobs`), work (`work`,
//! `upload`), when and how the disk fails, when the machine stops. Time is the disk's virtual time.
//! The same seed gives the same trace, byte for byte. A seed is a handful of lives: open, look at
//! everybody, work, stop by a crash, a fatal error or a drain; what the next life finds is held
//! against what the earlier ones were told (`oracle`, `look`).

mod asked;
mod copy;
mod knobs;
mod life;
mod look;
mod mail;
mod mend;
mod model;
pub(crate) mod node;
mod oracle;
mod past;
mod rot;
mod upload;
mod work;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use fastrand::Rng;
use ringpost_engine::canary::Canary;
use ringpost_engine::io::sim::SimDisk;
use ringpost_engine::request::{Event, Notice, Refused, Request, SnapshotId, Ticket};
use ringpost_netproto::id::Uid;

use asked::{Asked, To};
use knobs::{Hazards, Knobs};
use model::{Verdict, ensure};
use node::Node;
use oracle::{Kept, Oracle, Place};
use upload::Upload;
use work::Draft;

/// Polls at once that a shard may ask for, one behind the other, while nothing completes.
const RESTLESS_MAX: u32 = 200;

/// Turns in which everything has to be answered.
const TURNS_MAX: u32 = 100_000;

/// What a seed did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Stats {
    /// Power cuts and kills.
    pub crashes: u64,
    /// Of them in a recovery.
    pub recovery_crashes: u64,
    /// Requests.
    pub operations: u64,
    /// Messages acknowledged as stored.
    pub stored: u64,
    /// Fatal errors.
    pub fatal: u64,
    /// Compactions that ended.
    pub compactions: u64,
    /// Checkpoints that ended.
    pub checkpoints: u64,
    /// Wounds of the medium.
    pub wounds: u64,
    /// Changes of the number of cores that ended.
    pub layouts: u64,
    /// Copies of a working node that were held against the model.
    pub copies: u64,
    /// Users who were looked at as of a moment in the past.
    pub looks_back: u64,
    /// Repairs, those that were cut off included.
    pub repairs: u64,
}

impl Stats {
    /// Adds another seed's.
    pub fn add(&mut self, other: &Self) {
        self.crashes += other.crashes;
        self.recovery_crashes += other.recovery_crashes;
        self.operations += other.operations;
        self.stored += other.stored;
        self.fatal += other.fatal;
        self.compactions += other.compactions;
        self.checkpoints += other.checkpoints;
        self.wounds += other.wounds;
        self.layouts += other.layouts;
        self.copies += other.copies;
        self.looks_back += other.looks_back;
        self.repairs += other.repairs;
    }
}

/// A seed that found something.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// Which.
    pub seed: u64,
    /// What does not hold.
    pub what: String,
    /// What happened, if a trace was wanted.
    pub trace: String,
}

/// Whether a line is kept for each request, answer and step of the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trace {
    /// It is.
    Kept,
    /// It is not.
    No,
}

/// Which part of what can happen to a store a seed is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum World {
    /// Work, crashes and faults, and what else the seed draws (`Hazards` in `knobs.rs`).
    Whole,
    /// Work, crashes and faults alone.
    Plain,
    /// Little but appends, in many lives that end when the log has written a few frames.
    ShortLives,
}

impl World {
    /// Where a planted bug does something soon.
    pub fn of(canary: Canary) -> Self {
        match canary {
            Canary::LayoutUndrained
            | Canary::IdsLeftBehind
            | Canary::FilesNotHeld
            | Canary::EndToldEarly
            | Canary::CarriedNotOwed
            | Canary::ExpungesFirst => Self::Whole,
            Canary::TornFileReused => Self::ShortLives,
            _ => Self::Plain,
        }
    }
}

/// Runs a seed; its figures and trace, or what it found. A panic of the engine is the caller's to
/// catch.
pub fn run(world: World, seed: u64, trace: Trace) -> Result<(Stats, String), Failure> {
    let mut sim = Sim::new(world, seed, trace);
    let verdict = sim.lives();
    let text = sim.trace.take().unwrap_or_default();
    match verdict {
        Ok(()) => Ok((sim.stats, text)),
        Err(what) => Err(Failure {
            seed,
            what,
            trace: text,
        }),
    }
}

/// As [`run`], of a program that unwinds: a panic is a failure.
pub fn run_catching(world: World, seed: u64, trace: Trace) -> Result<(Stats, String), Failure> {
    let run = std::panic::catch_unwind(|| run(world, seed, trace));
    run.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(Failure {
            seed,
            what: format!("panic: {}", text.unwrap_or_default()),
            trace: String::new(),
        })
    })
}

/// One seed's world.
struct Sim {
    rng: Rng,
    knobs: Knobs,
    hazards: Hazards,
    /// Draws what is the hazards'.
    hazard_rng: Rng,
    /// Cores that the node is to have.
    logs: u32,
    oracle: Oracle,
    disk: SimDisk,
    node: Option<Node>,
    /// Wall clocks are off by so much.
    skew_ns: i64,
    /// The node stopped after a fatal error.
    stopped: bool,
    uploads: Vec<Upload>,
    /// Finishes that wait for the last piece, by upload.
    finishes: BTreeMap<usize, (usize, Request)>,
    /// Uploads of large messages that are being appended, by mail.
    appending: BTreeMap<usize, usize>,
    /// Deliveries, for retries.
    sent: Vec<(usize, Vec<To>)>,
    /// Polls asked for at once, one behind the other.
    restless: u32,
    /// Steps of the disk at the last look.
    steps_seen: u64,
    /// The ticket whose answer is waited for, and the answer.
    wanted: Option<Place>,
    answer: Option<Event>,
    /// The backup under way.
    backup: Option<copy::Backup>,
    /// A backup of a node that archives.
    past: Option<past::Past>,
    /// The disk may have kept a log file or a large message out of the archive.
    has_holes: bool,
    /// What a client knew of a mailbox: by user, mailbox and uidvalidity.
    clients: BTreeMap<(usize, u32, u32), life::Client>,
    stats: Stats,
    trace: Option<String>,
}

impl Sim {
    fn new(world: World, seed: u64, trace: Trace) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut knobs = Knobs::draw(&mut rng, seed);
        knobs.disk.trace = trace == Trace::Kept;
        let (mut hazards, mut hazard_rng) = Hazards::draw(seed);
        if world != World::Whole {
            hazards = Hazards::default();
        }
        if world == World::ShortLives {
            knobs.short_lives();
        }
        if hazards.archive {
            knobs.archive();
        }
        let disk = node::empty_disk(knobs.disk.clone(), knobs.logs);
        let oracle = Oracle::new(knobs.users, knobs.shard.dedupe_entries / 2);
        let mut sim = Self::on(disk, (knobs, hazards), oracle, &mut hazard_rng);
        (sim.rng, sim.hazard_rng) = (rng, hazard_rng);
        sim.trace = (trace == Trace::Kept).then(String::new);
        sim.say(|sim| format!("seed {seed}: {:?}, {:?}", sim.knobs, sim.hazards));
        sim
    }

    /// The world of a store on a disk, of which `oracle` knows what is there.
    fn on(
        disk: SimDisk,
        (knobs, hazards): (Knobs, Hazards),
        oracle: Oracle,
        rng: &mut Rng,
    ) -> Self {
        Self {
            rng: rng.fork(),
            hazard_rng: rng.fork(),
            logs: knobs.logs,
            knobs,
            hazards,
            oracle,
            disk,
            node: None,
            skew_ns: 0,
            stopped: false,
            uploads: Vec::new(),
            finishes: BTreeMap::new(),
            appending: BTreeMap::new(),
            sent: Vec::new(),
            restless: 0,
            steps_seen: 0,
            wanted: None,
            answer: None,
            backup: None,
            past: None,
            has_holes: false,
            clients: BTreeMap::new(),
            stats: Stats::default(),
            trace: None,
        }
    }

    /// Adds a line to the trace.
    fn say(&mut self, line: impl FnOnce(&Self) -> String) {
        if let Some(mut trace) = self.trace.take() {
            trace.push_str(&self.disk.take_trace());
            writeln!(trace, "{:>12} {}", self.disk.now_ns(), line(self))
                .expect("a String takes everything");
            self.trace = Some(trace);
        }
    }

    /// The shard of a user.
    fn owner(&self, who: usize) -> usize {
        let key = &self.oracle.person(who).key;
        self.node.as_ref().map_or(0, |node| node.owner(key))
    }

    /// Whether this life can do nothing any more.
    fn is_over(&self) -> bool {
        self.stopped || self.disk.is_crashed()
    }

    /// Hands a request over.
    fn submit(&mut self, draft: Draft) -> Verdict {
        self.submit_one(draft).map(drop)
    }

    fn submit_one(&mut self, (shard, request, asked): Draft) -> Result<Option<Place>, String> {
        let Some(node) = &mut self.node else {
            return Ok(None);
        };
        self.stats.operations += 1;
        let taken = node.submit(shard, request);
        self.say(|_| format!("shard {shard}: {asked:?} -> {taken:?}"));
        match taken {
            Ok(ticket) => {
                let place = (shard, ticket.value());
                self.oracle.asks(place, asked);
                Ok(Some(place))
            }
            Err(refused) => {
                // Refused here, nothing of it was done.
                if let Asked::Stage { upload } = asked {
                    self.drop_stage(upload)?;
                }
                match refused {
                    Refused::NoSuchSnapshot => {}
                    Refused::NoSuchBackup => self.may_be_given_up(shard)?,
                    refused => {
                        self.excuse();
                        self.oracle.excused(&refused)?;
                    }
                }
                Ok(None)
            }
        }
    }

    /// Hands a request over that nobody answers.
    fn tell(&mut self, shard: usize, request: Request) -> Result<(), Refused> {
        let Some(node) = &mut self.node else {
            return Ok(());
        };
        node.submit(shard, request).map(drop)
    }

    fn close_snapshot(&mut self, shard: usize, snapshot: SnapshotId) {
        // Refused by a shard that stopped, which has let it go.
        self.tell(shard, Request::SnapshotClose { snapshot }).ok();
    }

    /// What the disk did that excuses refusals.
    fn excuse(&mut self) {
        self.oracle.excuses.hurt |= self.disk.faults() > 0 || self.disk.is_crashed();
    }

    /// One round of the node's loop, and the time to the next.
    fn turn(&mut self) -> Verdict {
        self.poll()?;
        self.pass_time()
    }

    /// To the next completion or deadline. A shard that wants to be polled at once, again and again,
    /// would burn its core.
    fn pass_time(&mut self) -> Verdict {
        let Some(node) = &self.node else {
            return Ok(());
        };
        // What the disk did meanwhile is what it asked for.
        let steps = self.disk.steps();
        let moved = std::mem::replace(&mut self.steps_seen, steps) != steps;
        if node.is_restless() && !moved {
            self.restless += 1;
            ensure!(
                self.restless < RESTLESS_MAX,
                "a shard wants to be polled at once, {} times one behind the other",
                self.restless
            );
        } else {
            self.restless = 0;
        }
        node.pass_time();
        Ok(())
    }

    fn poll(&mut self) -> Verdict {
        let mut events = Vec::new();
        let Some(node) = &mut self.node else {
            return Ok(());
        };
        node.poll(&mut events);
        self.excuse();
        let mut fatal = Vec::new();
        for (shard, event) in events {
            self.say(|_| format!("shard {shard}: {}", line_of(&event)));
            if let Event::Fatal(error) = &event {
                ensure!(self.oracle.excuses.hurt, "fatal without a fault: {error}");
                self.stopped = true;
                self.stats.fatal += 1;
                fatal.push(shard);
                continue;
            }
            self.take(shard, event)?;
        }
        for shard in fatal {
            let rest = self.oracle.open.range((shard, 0)..(shard + 1, 0)).next();
            ensure!(
                rest.is_none(),
                "shard {shard} stopped and did not answer {rest:?}"
            );
        }
        Ok(())
    }

    fn take(&mut self, shard: usize, event: Event) -> Verdict {
        if let Event::Notice(notice) = &event {
            return self.notice(notice);
        }
        let Some(ticket) = ticket_of(&event) else {
            return Err(format!("an event of an unknown kind: {event:?}"));
        };
        let place = (shard, ticket.value());
        let Some(asked) = self.oracle.open.remove(&place) else {
            return Err(format!("answered unasked, or twice: {}", line_of(&event)));
        };
        let verdict = self.oracle.answered(&asked, &event);
        verdict.map_err(|what| format!("{what}; asked {asked:?}, answered {}", line_of(&event)))?;
        match &asked {
            Asked::Stage { upload } => match self.finish_upload(*upload) {
                Some(verdict) if is_written(&event) => verdict?,
                _ => self.upload_went_on(*upload, &event)?,
            },
            Asked::Append { mail, .. } => {
                if let Some(upload) = self.appending.remove(mail) {
                    self.drop_stage(upload)?;
                }
            }
            Asked::Backup => self.backup_begun(shard, &event),
            Asked::SnapshotOpen { who, mailbox } => {
                self.snapshot_opened(shard, *who, *mailbox, &event);
            }
            _ => {}
        }
        if self.wanted == Some(place) {
            self.wanted = None;
            self.answer = Some(event);
        }
        Ok(())
    }

    fn snapshot_opened(&mut self, shard: usize, who: usize, mailbox: u32, event: &Event) {
        let Event::SnapshotOpened {
            result: Ok(snapshot),
            ..
        } = event
        else {
            return;
        };
        let folder = self.oracle.person(who).folders.get(&mailbox);
        let known = |uid: &u32| folder.and_then(|folder| folder.past.get(uid)).copied();
        let uids: Vec<u32> = snapshot.uids.iter().map(Uid::value).collect();
        let mails = uids.iter().filter_map(|uid| Some((*uid, known(uid)?)));
        let kept = Kept {
            shard,
            id: snapshot.id,
            who,
            mails: mails.collect(),
            count: uids.len(),
            is_open: true,
        };
        self.oracle.snapshots.push(kept);
    }

    fn notice(&mut self, notice: &Notice) -> Verdict {
        self.has_holes |= matches!(notice, Notice::BackupGivenUp { .. });
        let world = &mut self.oracle.excuses;
        if let Notice::Corrupt(corrupt) = notice {
            // An index, or the directory that was to be listed for it.
            let dir = corrupt.file.split("/info.").next().unwrap_or_default();
            world.unread.insert(dir.to_owned());
        }
        let excused = match notice {
            Notice::Corrupt(corrupt) => world.hurt || world.is_wounded(&corrupt.file),
            Notice::Damaged(_) => world.hurt || !world.wounds.is_empty(),
            Notice::Unreferenced { path } => world.hurt || world.is_wounded(path),
            Notice::DiskLow { .. } => world.full,
            _ => true,
        };
        ensure!(excused, "a notice without a reason: {notice:?}");
        Ok(())
    }

    /// Asks and waits; `None` if the node ends before, or takes no more.
    fn ask(&mut self, draft: Draft) -> Result<Option<Event>, String> {
        self.answer = None;
        let Some(place) = self.submit_one(draft)? else {
            return Ok(None);
        };
        self.wanted = Some(place);
        for _turn in 0..TURNS_MAX {
            self.poll()?;
            if let Some(event) = self.answer.take() {
                return Ok(Some(event));
            }
            if self.is_over() {
                self.wanted = None;
                return Ok(None);
            }
            self.pass_time()?;
        }
        Err(format!("no answer to {:?}", self.oracle.open.get(&place)))
    }
}

fn is_written(event: &Event) -> bool {
    matches!(event, Event::StageWritten { result: Ok(()), .. })
}

/// An event in short: positions and bytes are left out.
fn line_of(event: &Event) -> String {
    match event {
        Event::Fetched {
            ticket,
            result: Ok(fetched),
        } => format!(
            "Fetched {ticket:?}: uid {}, {} of {} bytes",
            fetched.entry.uid,
            fetched.stored.len(),
            fetched.stored_len
        ),
        Event::Staged { ticket, result } => {
            format!("Staged {ticket:?}: {:?}", result.as_ref().map(drop))
        }
        Event::Listed {
            ticket,
            result: Ok(page),
        } => {
            let uids: Vec<_> = page.entries.iter().map(|e| e.uid.value()).collect();
            format!(
                "Listed {ticket:?}: {} of {uids:?}, UIDNEXT {}, HIGHESTMODSEQ {}",
                page.status.name, page.status.uidnext, page.status.highest_modseq
            )
        }
        event => format!("{event:?}"),
    }
}

fn ticket_of(event: &Event) -> Option<Ticket> {
    match event {
        Event::Appended { ticket, .. }
        | Event::StageBegun { ticket, .. }
        | Event::StageWritten { ticket, .. }
        | Event::StageExpanded { ticket, .. }
        | Event::Staged { ticket, .. }
        | Event::Mailboxes { ticket, .. }
        | Event::Listed { ticket, .. }
        | Event::Fetched { ticket, .. }
        | Event::FlagsStored { ticket, .. }
        | Event::Expunged { ticket, .. }
        | Event::Copied { ticket, .. }
        | Event::MailboxChanged { ticket, .. }
        | Event::Changes { ticket, .. }
        | Event::Woken { ticket, .. }
        | Event::SnapshotOpened { ticket, .. }
        | Event::Compacted { ticket, .. }
        | Event::Checkpointed { ticket, .. }
        | Event::BackupBegun { ticket, .. }
        | Event::BackupEnded { ticket, .. }
        | Event::Drained { ticket, .. } => Some(*ticket),
        _ => None,
    }
}
