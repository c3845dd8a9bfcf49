//! A cluster of shards: a register that never errs, links that are cut, nodes that crash. The
//! register says who leads each partition in which epoch; an old primary learns it late.
//!
//! A link carries requests in order, with delay, until it is cut: then what was on its way is lost,
//! and each direction may go on losing before anybody notices (half-open). Confirmations come twice
//! now and then. Who leads asks the other for its tail before it gives out a number.

mod ends;
mod held;
mod lead;
mod links;
mod tails;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use fastrand::Rng;
use ringpost_engine::config::{Copies, ShardConfig};
use ringpost_engine::format::info::{FLAGGED, SEEN, SpecialUse};
use ringpost_engine::io::sim::{Crash, SimConfig};
use ringpost_engine::position::Lsn;
use ringpost_engine::request::{
    Body, Event, FlagOp, Flags, MailboxChange, Outcome, Refused, Replicate, Request, StageId,
    StreamId, Ticket, UidSet,
};
use ringpost_netproto::id::{Guid, MailboxId, PartitionId};

use crate::held::Item;
use crate::testkit::{Bench, empty_disk, guid, message, prepare, ticket_of, user};

const PARTITIONS: u16 = 4;
/// Mail of so many bytes has a file of its own.
const LARGE_BYTES: usize = 4 << 10;
const USERS: [&str; 6] = ["ann", "bob", "cid", "dot", "eve", "fay"];

/// How a run ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// Everybody comes back; then both copies of a partition are the same.
    Heal,
    /// One node's disk is gone.
    Loss,
}

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) nodes: usize,
    pub(crate) end: End,
    pub(crate) steps: u64,
    /// Instead of crashes by chance.
    pub(crate) crash_at: Option<(u64, usize)>,
}

impl Plan {
    pub(crate) fn new(nodes: usize, end: End) -> Self {
        Self {
            nodes,
            end,
            steps: 220,
            crash_at: None,
        }
    }
}

/// What the register says of a partition.
#[derive(Clone, Copy, Debug)]
struct Register {
    epoch: u32,
    primary: usize,
    copy: usize,
    /// Else the primary alone has what counts.
    in_sync: bool,
}

/// Something on a link.
enum Letter {
    /// With the files that its large messages are in.
    Records(Replicate, Vec<Vec<u8>>, Confirm),
    Ack(Confirm, PartitionId, Result<u64, Refused>),
}

/// What a confirmation is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Confirm {
    stream: StreamId,
    /// Of the frame; `None` for what was shipped again.
    upto: Option<Lsn>,
}

/// Frames of a stream that are not wholly confirmed: position, and the partitions that are left.
type Outstanding = VecDeque<(Lsn, BTreeSet<PartitionId>)>;

struct Node {
    bench: Option<Bench>,
    /// As long as it is down.
    disk: Option<ringpost_engine::io::sim::SimDisk>,
    /// What it believes: partitions it leads, and in which epoch.
    leads: BTreeMap<PartitionId, u32>,
    /// Leads that are not answered.
    leading: BTreeMap<Ticket, PartitionId>,
    /// Deliveries that wait: user, number.
    mails: BTreeMap<Ticket, (&'static str, u64)>,
    /// The same, to be held.
    holds: BTreeMap<Ticket, (&'static str, u64)>,
    /// Requests of another node's, and what is to be confirmed.
    copies: BTreeMap<Ticket, (usize, Confirm, PartitionId)>,
    /// Stage files of such a request: they go with its answer.
    stages: BTreeMap<Ticket, Vec<StageId>>,
    events_seen: usize,
}

pub(crate) struct World {
    rng: Rng,
    plan: Plan,
    nodes: Vec<Node>,
    registers: BTreeMap<PartitionId, Register>,
    links: BTreeMap<(usize, usize), VecDeque<Letter>>,
    /// Directions that lose everything until the link is made anew.
    dead: BTreeMap<(usize, usize), bool>,
    streams: BTreeMap<StreamId, (usize, usize, Outstanding)>,
    next_stream: u32,
    next_mail: u64,
    /// Of each acknowledged mail its uid.
    acknowledged: BTreeMap<(&'static str, u64), u32>,
    /// Mail that was answered as held: it reaches the primary, once.
    held: BTreeSet<(&'static str, u64)>,
    /// Messages of records that were cut off, by user: they do too.
    rescued: BTreeSet<(&'static str, [u8; 16])>,
    /// Held mail on its way to a primary: who holds it, and what.
    handed: BTreeMap<(usize, Ticket), (usize, Item)>,
    /// What a reader of a primary, or of a node that came back, saw.
    seen: BTreeMap<(&'static str, u32), Guid>,
    sizes: BTreeMap<u64, usize>,
}

fn config() -> ShardConfig {
    ShardConfig {
        copies: Copies::Asked,
        log_files_max: 40,
        pending_records_max: 1_024,
        pending_bytes_max: 1 << 20,
        dedupe_entries: 256,
        tails_max: 16,
        ..ShardConfig::tiny()
    }
}

fn all_partitions() -> impl Iterator<Item = PartitionId> {
    (0..PARTITIONS).map(PartitionId::new)
}

impl Node {
    fn up(&mut self) -> Option<&mut Bench> {
        self.bench.as_mut()
    }

    fn is_up(&self) -> bool {
        self.bench.is_some()
    }
}

impl World {
    pub(crate) fn new(seed: u64, plan: &Plan) -> Self {
        let node = |number: usize| {
            let disk = empty_disk(SimConfig::new(seed * 16 + number as u64));
            Node {
                bench: Some(Bench::on(disk, config()).expect("an empty store opens")),
                disk: None,
                leads: BTreeMap::new(),
                leading: BTreeMap::new(),
                mails: BTreeMap::new(),
                holds: BTreeMap::new(),
                copies: BTreeMap::new(),
                stages: BTreeMap::new(),
                events_seen: 0,
            }
        };
        let registers = all_partitions().map(|partition| {
            let primary = usize::from(partition.value()) % plan.nodes;
            let register = Register {
                epoch: 0,
                primary,
                copy: (primary + 1) % plan.nodes,
                in_sync: true,
            };
            (partition, register)
        });
        Self {
            rng: Rng::with_seed(seed),
            plan: plan.clone(),
            nodes: (0..plan.nodes).map(node).collect(),
            registers: registers.collect(),
            links: BTreeMap::new(),
            dead: BTreeMap::new(),
            streams: BTreeMap::new(),
            next_stream: 1,
            next_mail: 1,
            acknowledged: BTreeMap::new(),
            held: BTreeSet::new(),
            rescued: BTreeSet::new(),
            handed: BTreeMap::new(),
            seen: BTreeMap::new(),
            sizes: BTreeMap::new(),
        }
    }

    /// Plays the plan; the number of acknowledged mails, or the promise that was broken.
    pub(crate) fn run(&mut self) -> Result<u64, String> {
        for step in 0..self.plan.steps {
            if let Some((at, node)) = self.plan.crash_at {
                if step == at {
                    self.crash(node);
                }
            } else if self.rng.u32(..60) == 0 {
                let node = self.rng.usize(..self.nodes.len());
                self.crash(node);
            }
            self.step()?;
        }
        match self.plan.end {
            End::Heal => self.heal()?,
            End::Loss => self.lose()?,
        }
        Ok(self.acknowledged.len() as u64)
    }

    fn step(&mut self) -> Result<(), String> {
        match self.rng.u32(..100) {
            0..=29 => self.deliver(),
            30..=35 => self.change(),
            36..=65 => self.carry()?,
            66..=90 => {
                let node = self.rng.usize(..self.nodes.len());
                self.turn(node)?;
            }
            91..=92 => self.cut(),
            93..=95 => self.restart()?,
            96 => self.fail_over(),
            97 => self.checkpoint(),
            98 => self.hand_back()?,
            _ => self.look()?,
        }
        self.lead()?;
        Ok(())
    }

    /// Mail for somebody, at the node that leads, or thinks so, or at any.
    fn deliver(&mut self) {
        let name = USERS[self.rng.usize(..USERS.len())];
        let partition = user(name).partition();
        let number = match self.rng.u32(..8) {
            // A retry: it may be answered as a duplicate, never get two places.
            0 if self.next_mail > 1 => self.rng.u64(1..self.next_mail),
            _ => {
                self.next_mail += 1;
                self.next_mail - 1
            }
        };
        let size = match self.rng.u32(..6) {
            0 => self.rng.usize(6_000..9_000),
            _ => self.rng.usize(100..1_500),
        };
        let size = *self.sizes.entry(number).or_insert(size);
        let node = match self.rng.u32(..4) {
            0 => self.rng.usize(..self.nodes.len()),
            _ => self.registers[&partition].primary,
        };
        let node = &mut self.nodes[node];
        let Some(bench) = node.up() else { return };
        let body = if size < LARGE_BYTES {
            Body::Small(prepare(&message(number, size)))
        } else {
            match bench.stage(number, &message(number, size)) {
                Some(staged) => Body::Staged(staged),
                None => return,
            }
        };
        let group = Bench::group(&[name], number, body);
        let append = bench.submit(Request::Append(group.clone()));
        if let Ok(ticket) = append {
            node.mails.insert(ticket, (name, number));
        } else if self.rng.bool()
            && let Ok(ticket) = bench.submit(Request::Hold(group))
        {
            node.holds.insert(ticket, (name, number));
        }
    }

    /// Something that is no mail. Its fate is seen in the comparison at the end.
    fn change(&mut self) {
        let name = USERS[self.rng.usize(..USERS.len())];
        let partition = user(name).partition();
        let request = match self.rng.u32(..4) {
            0 => Request::Mailbox {
                user: user(name),
                change: MailboxChange::Create {
                    name: format!("box{}", self.rng.u32(..5)),
                    special_use: SpecialUse::None,
                },
            },
            kind => Request::Store {
                user: user(name),
                mailbox: MailboxId::INBOX,
                uids: UidSet::all(),
                op: if kind == 1 {
                    FlagOp::Add
                } else {
                    FlagOp::Replace
                },
                flags: Flags {
                    system: if self.rng.bool() { SEEN } else { FLAGGED },
                    keywords: vec![format!("word{}", self.rng.u32(..3)).as_str().into()],
                },
                unchanged_since: None,
            },
        };
        let primary = self.registers[&partition].primary;
        if let Some(bench) = self.nodes[primary].up() {
            // A refusal is an answer too.
            drop(bench.submit(request));
        }
    }

    fn checkpoint(&mut self) {
        let node = self.rng.usize(..self.nodes.len());
        if let Some(bench) = self.nodes[node].up() {
            drop(bench.submit(Request::Checkpoint));
        }
    }

    /// One node goes on for a while.
    fn turn(&mut self, node: usize) -> Result<(), String> {
        for _round in 0..4 {
            let Some(bench) = self.nodes[node].up() else {
                return Ok(());
            };
            bench.poll();
            self.take_events(node)?;
            if let Some(bench) = self.nodes[node].up() {
                bench.pass_time();
            }
        }
        Ok(())
    }

    fn take_events(&mut self, node: usize) -> Result<(), String> {
        let from = self.nodes[node].events_seen;
        let Some(bench) = self.nodes[node].up() else {
            return Ok(());
        };
        let events: Vec<Event> = bench.events.drain(from..).collect();
        for event in events {
            match event {
                Event::Appended { ticket, outcomes } => self.answered(node, ticket, &outcomes)?,
                Event::Sealed { upto, items, .. } => self.ship(node, Some(upto), items),
                Event::ShippedAgain { item } => self.ship(node, None, vec![item]),
                Event::Replicated { ticket, result } => {
                    self.drop_stages(node, ticket);
                    let Some((to, confirm, partition)) = self.nodes[node].copies.remove(&ticket)
                    else {
                        continue;
                    };
                    let result = result.map(|done| done.pseq);
                    if let Err(Refused::BadRecords(reason)) = &result {
                        return Err(format!("records are no records: {reason}"));
                    }
                    let twice = self.rng.u32(..6) == 0;
                    for _time in 0..=usize::from(twice) {
                        self.send(node, to, Letter::Ack(confirm, partition, result.clone()));
                    }
                }
                Event::Led { ticket, result } => {
                    self.nodes[node].leading.remove(&ticket);
                    if let Err(refused) = result
                        && !matches!(refused, Refused::Stopped | Refused::Fenced { .. })
                    {
                        return Err(format!("node {node} leads not: {refused}"));
                    }
                }
                Event::Fatal(fatal) => return Err(format!("node {node}: {fatal:?}")),
                _ => {}
            }
        }
        Ok(())
    }

    /// A delivery is answered: what is promised is kept.
    fn answered(
        &mut self,
        node: usize,
        ticket: Ticket,
        outcomes: &[Outcome],
    ) -> Result<(), String> {
        if let Some(mail) = self.nodes[node].holds.remove(&ticket) {
            if let [Outcome::Stored { .. } | Outcome::Duplicate { .. }] = outcomes {
                self.held.insert(mail);
            }
            return Ok(());
        }
        if let Some((holder, item)) = self.handed.remove(&(node, ticket)) {
            return self.handed_back((holder, &item), outcomes);
        }
        let Some((name, number)) = self.nodes[node].mails.remove(&ticket) else {
            return Ok(());
        };
        let uid = match outcomes.first() {
            Some(Outcome::Stored { uid, .. } | Outcome::Duplicate { uid, .. }) => uid.value(),
            _ => return Ok(()),
        };
        self.saw(name, uid, guid(number))?;
        match self.acknowledged.insert((name, number), uid) {
            Some(before) if before != uid => Err(format!(
                "mail {number} of {name} was acknowledged as uid {before} and as {uid}"
            )),
            _ => Ok(()),
        }
    }

    /// A uid means one message for ever.
    fn saw(&mut self, name: &'static str, uid: u32, guid: Guid) -> Result<(), String> {
        match self.seen.insert((name, uid), guid) {
            Some(before) if before != guid => Err(format!(
                "uid {uid} of {name} was given twice: {before}, {guid}"
            )),
            _ => Ok(()),
        }
    }

    fn crash(&mut self, node: usize) {
        let Some(bench) = self.nodes[node].bench.take() else {
            return;
        };
        let kind = if self.rng.bool() {
            Crash::PowerCut
        } else {
            Crash::Kill
        };
        let mut disk = bench.disk.clone();
        let image = disk.crash(kind);
        drop(bench);
        let found = &mut self.nodes[node];
        found.disk = Some(image);
        found.leads.clear();
        found.leading.clear();
        found.mails.clear();
        found.holds.clear();
        found.copies.clear();
        found.stages.clear();
        found.events_seen = 0;
        self.handed.retain(|(primary, _), _| *primary != node);
        for other in 0..self.nodes.len() {
            if other != node {
                self.drop_link(node, other);
            }
        }
    }

    fn restart(&mut self) -> Result<(), String> {
        for node in 0..self.nodes.len() {
            let Some(disk) = self.nodes[node].disk.take() else {
                continue;
            };
            let report = crate::testkit::check_disk(&disk);
            if !report.is_sound() {
                return Err(format!("node {node} after a crash: {:?}", report.findings));
            }
            let opened = Bench::on(disk, config());
            let bench = opened.map_err(|error| format!("node {node} opens: {error}"))?;
            self.nodes[node].bench = Some(bench);
            // A connection to it while it was down never was one.
            for other in (0..self.nodes.len()).filter(|other| *other != node) {
                self.drop_link(node, other);
            }
            // Readers come at once.
            for name in USERS {
                self.look_at(node, name)?;
            }
            if self.rng.bool() {
                // And so does mail, before anybody said who leads.
                let name = USERS[self.rng.usize(..USERS.len())];
                self.deliver_at(node, name);
            }
        }
        Ok(())
    }

    fn deliver_at(&mut self, node: usize, name: &'static str) {
        let number = self.next_mail;
        self.next_mail += 1;
        self.sizes.insert(number, 300);
        let found = &mut self.nodes[node];
        let Some(bench) = found.up() else { return };
        let body = Body::Small(prepare(&message(number, 300)));
        if let Ok(ticket) = bench.submit(Request::Append(Bench::group(&[name], number, body))) {
            found.mails.insert(ticket, (name, number));
        }
    }

    /// A request and its answer, while that node alone goes on.
    fn ask(&mut self, node: usize, request: Request) -> Result<Option<Event>, String> {
        let bench = self.nodes[node].up().expect("it is up");
        let Ok(ticket) = bench.submit(request) else {
            return Ok(None);
        };
        for _turn in 0..20_000 {
            let bench = self.nodes[node].up().expect("it is up");
            bench.poll();
            let place = bench
                .events
                .iter()
                .position(|event| ticket_of(event) == Some(ticket));
            let found = place.map(|place| bench.events.remove(place));
            // Events keep their order but for the one that was asked for.
            if found.is_some() {
                self.take_events(node)?;
                return Ok(found);
            }
            self.take_events(node)?;
            self.nodes[node].up().expect("it is up").pass_time();
        }
        Err(format!("node {node} does not answer"))
    }

    /// Somebody reads at the primary.
    fn look(&mut self) -> Result<(), String> {
        let name = USERS[self.rng.usize(..USERS.len())];
        let primary = self.registers[&user(name).partition()].primary;
        if self.nodes[primary].is_up() {
            self.look_at(primary, name)?;
        }
        Ok(())
    }

    fn look_at(&mut self, node: usize, name: &'static str) -> Result<(), String> {
        let list = Request::List {
            user: user(name),
            mailbox: MailboxId::INBOX,
            after: 0,
            entries_max: 1_000,
        };
        let Some(Event::Listed { result, .. }) = self.ask(node, list)? else {
            return Ok(());
        };
        for entry in result.map(|page| page.entries).unwrap_or_default() {
            self.saw(name, entry.uid.value(), entry.guid)?;
        }
        Ok(())
    }
}
