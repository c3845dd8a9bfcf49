//! A cluster of shards: a register that never errs, links that are cut, nodes that crash. The
//! register says who leads each partition in which epoch; an old primary learns it late.
//!
//! A link carries requests in order, with delay, until it is cut: then what was on its way is lost,
//! and each direction may go on losing before anybody notices (half-open). Confirmations come twice
//! now and then. Who leads asks the other for its tail before it gives out a number.

mod ends;
mod tails;

use std::collections::{BTreeMap, VecDeque};

use fastrand::Rng;
use ringpost_engine::config::{Copies, ShardConfig};
use ringpost_engine::format::info::{FLAGGED, SEEN, SpecialUse};
use ringpost_engine::io::sim::{Crash, SimConfig};
use ringpost_engine::position::Lsn;
use ringpost_engine::request::{
    Body, Copy, Event, FlagOp, Flags, MailboxChange, Outcome, PartitionTail, Refused, Replicate,
    Request, SealedItem, StreamId, Ticket, UidSet,
};
use ringpost_netproto::id::{Epoch, Guid, MailboxId, PartitionId};

use tails::{chains, common, last_of, shares};

use crate::testkit::{Bench, empty_disk, guid, message, prepare, ticket_of, user};

const PARTITIONS: u16 = 4;
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
}

/// Something on a link.
enum Letter {
    Records(Replicate, Confirm),
    Ack(Confirm, PartitionId, Result<u64, Refused>),
}

/// What a confirmation is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Confirm {
    stream: StreamId,
    /// Of the frame; `None` for what was shipped again.
    upto: Option<Lsn>,
}

/// Frames of a stream that are not wholly confirmed: position, and how many partitions are left.
type Outstanding = VecDeque<(Lsn, usize)>;

struct Node {
    bench: Option<Bench>,
    /// As long as it is down.
    disk: Option<ringpost_engine::io::sim::SimDisk>,
    /// What it believes: partitions it leads, and in which epoch.
    leads: BTreeMap<PartitionId, u32>,
    /// Deliveries that wait: user, number.
    mails: BTreeMap<Ticket, (&'static str, u64)>,
    /// Requests of another node's, and what is to be confirmed.
    copies: BTreeMap<Ticket, (usize, Confirm, PartitionId)>,
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
                mails: BTreeMap::new(),
                copies: BTreeMap::new(),
                events_seen: 0,
            }
        };
        let registers = all_partitions().map(|partition| {
            let primary = usize::from(partition.value()) % plan.nodes;
            let register = Register {
                epoch: 0,
                primary,
                copy: (primary + 1) % plan.nodes,
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
            seen: BTreeMap::new(),
            sizes: BTreeMap::new(),
        }
    }

    /// Plays the plan; the number of acknowledged mails, or the promise that was broken.
    pub(crate) fn run(&mut self) -> Result<u64, String> {
        for step in 0..self.plan.steps {
            if let Some((at, node)) = self.plan.crash_at {
                if step == at {
                    self.crash(node)?;
                }
            } else if self.rng.u32(..60) == 0 {
                let node = self.rng.usize(..self.nodes.len());
                self.crash(node)?;
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
        let size = self.rng.usize(100..1_500);
        let size = *self.sizes.entry(number).or_insert(size);
        let node = match self.rng.u32(..4) {
            0 => self.rng.usize(..self.nodes.len()),
            _ => self.registers[&partition].primary,
        };
        let node = &mut self.nodes[node];
        let Some(bench) = node.up() else { return };
        let body = Body::Small(prepare(&message(number, size)));
        let group = Bench::group(&[name], number, body);
        if let Ok(ticket) = bench.submit(Request::Append(group)) {
            node.mails.insert(ticket, (name, number));
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
                Event::Led {
                    result: Err(refused),
                    ..
                } if refused != Refused::Stopped => {
                    if !matches!(refused, Refused::Fenced { .. }) {
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

    fn ship(&mut self, node: usize, upto: Option<Lsn>, items: Vec<SealedItem>) {
        let mut counts: BTreeMap<StreamId, usize> = BTreeMap::new();
        for item in items {
            let Some((_, to, _)) = self.streams.get(&item.stream) else {
                continue;
            };
            let to = *to;
            *counts.entry(item.stream).or_default() += 1;
            let stream = item.stream;
            let confirm = Confirm { stream, upto };
            self.send(node, to, Letter::Records(item.records, confirm));
        }
        let Some(upto) = upto else { return };
        for (stream, count) in counts {
            if let Some((_, _, outstanding)) = self.streams.get_mut(&stream) {
                outstanding.push_back((upto, count));
            }
        }
    }

    fn send(&mut self, from: usize, to: usize, letter: Letter) {
        if !self.dead.get(&(from, to)).copied().unwrap_or(false) {
            self.links.entry((from, to)).or_default().push_back(letter);
        }
    }

    /// One letter arrives.
    fn carry(&mut self) -> Result<(), String> {
        let filled: Vec<_> = self
            .links
            .iter()
            .filter(|(_, letters)| !letters.is_empty())
            .map(|(link, _)| *link)
            .collect();
        if filled.is_empty() {
            return Ok(());
        }
        let (from, to) = filled[self.rng.usize(..filled.len())];
        let letter = self
            .links
            .get_mut(&(from, to))
            .and_then(VecDeque::pop_front);
        let letter = letter.expect("it was there");
        match letter {
            Letter::Records(records, confirm) => {
                let partition = records.partition;
                let node = &mut self.nodes[to];
                let Some(bench) = node.up() else {
                    return Ok(());
                };
                match bench.submit(Request::Replicate(Box::new(records))) {
                    Ok(ticket) => {
                        node.copies.insert(ticket, (from, confirm, partition));
                    }
                    Err(Refused::BadRecords(reason)) => {
                        return Err(format!("records are no records: {reason}"));
                    }
                    Err(_) => {}
                }
            }
            Letter::Ack(confirm, partition, result) => {
                self.confirmed(to, confirm, partition, result);
            }
        }
        Ok(())
    }

    fn confirmed(
        &mut self,
        node: usize,
        confirm: Confirm,
        partition: PartitionId,
        result: Result<u64, Refused>,
    ) {
        let now = match self.nodes[node].up() {
            Some(bench) => bench.now(),
            None => return,
        };
        // It has more than it was asked about: the chain tells whether that is ours.
        if let Err(Refused::Gap { pseq, chain }) = &result {
            let ours = chains(&self.tail(node, partition)).get(pseq).copied();
            if ours == Some(*chain) && self.streams.contains_key(&confirm.stream) {
                let bench = self.nodes[node].up().expect("it is up");
                bench.shard.copied_to(now, partition, *pseq);
                return;
            }
        }
        let Ok(pseq) = result else {
            // It is behind, or ahead of us: the next connection finds out.
            self.disconnect(confirm.stream);
            return;
        };
        let Some((_, _, outstanding)) = self.streams.get_mut(&confirm.stream) else {
            return;
        };
        let Some(bench) = self.nodes[node].bench.as_mut() else {
            return;
        };
        let Some(upto) = confirm.upto else {
            bench.shard.copied_to(now, partition, pseq);
            return;
        };
        if let Some(frame) = outstanding.iter_mut().find(|(end, _)| *end == upto) {
            frame.1 = frame.1.saturating_sub(1);
        }
        let mut done = None;
        while outstanding.front().is_some_and(|(_, left)| *left == 0) {
            done = outstanding.pop_front();
        }
        if let Some((end, _)) = done {
            bench.shard.copied(now, confirm.stream, end);
        }
    }

    fn disconnect(&mut self, stream: StreamId) {
        if let Some((from, to, _)) = self.streams.remove(&stream) {
            self.drop_link(from, to);
        }
    }

    /// A connection is gone in both directions, and all streams on it.
    fn drop_link(&mut self, from: usize, to: usize) {
        for link in [(from, to), (to, from)] {
            self.links.remove(&link);
            self.dead.remove(&link);
        }
        let (a, b) = (from, to);
        self.streams
            .retain(|_, (from, to, _)| (*from, *to) != (a, b) && (*from, *to) != (b, a));
    }

    /// A connection breaks, or one direction of it begins to lose silently.
    fn cut(&mut self) {
        let from = self.rng.usize(..self.nodes.len());
        let to = (from + self.rng.usize(1..self.nodes.len())) % self.nodes.len();
        if self.rng.bool() {
            self.drop_link(from, to);
        } else {
            self.dead.insert((from, to), true);
        }
    }

    fn crash(&mut self, node: usize) -> Result<(), String> {
        let Some(bench) = self.nodes[node].bench.take() else {
            return Ok(());
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
        found.mails.clear();
        found.copies.clear();
        found.events_seen = 0;
        for other in 0..self.nodes.len() {
            if other != node {
                self.drop_link(node, other);
            }
        }
        Ok(())
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

    /// The register moves the lead of a node that is down, or of any, to its copy. All copies are in
    /// sync in this world: nothing counts before both have it.
    fn fail_over(&mut self) {
        for partition in all_partitions() {
            let down = !self.nodes[self.registers[&partition].primary].is_up();
            if down || self.rng.u32(..6) == 0 {
                let register = self.registers.get_mut(&partition).expect("one each");
                register.epoch += 1;
                (register.primary, register.copy) = (register.copy, register.primary);
            }
        }
    }

    /// Who leads and can reach the other makes sure of the lead, and of a stream.
    fn lead(&mut self) -> Result<(), String> {
        for partition in all_partitions() {
            let Register {
                epoch,
                primary,
                copy,
            } = self.registers[&partition];
            if !self.nodes[primary].is_up() || !self.nodes[copy].is_up() {
                continue;
            }
            let leads = self.nodes[primary].leads.get(&partition).copied();
            let connected = self
                .streams
                .values()
                .any(|(from, to, _)| (*from, *to) == (primary, copy));
            let fresh = leads.is_none_or(|leads| leads < epoch);
            if !fresh && connected {
                continue;
            }
            if self.rng.u32(..3) != 0 {
                continue;
            }
            if !connected {
                self.drop_link(primary, copy);
                let stream = StreamId::new(self.next_stream);
                self.next_stream += 1;
                self.streams
                    .insert(stream, (primary, copy, Outstanding::new()));
                // All partitions that it leads towards that node go over it.
                for other in all_partitions() {
                    let register = self.registers[&other];
                    let same = (register.primary, register.copy) == (primary, copy);
                    let led = self.nodes[primary].leads.get(&other) == Some(&register.epoch);
                    if same && led {
                        self.agree(other, primary, copy)?;
                        let bench = self.nodes[primary].up().expect("it is up");
                        let now = bench.now();
                        bench.shard.set_copy(now, other, Copy::Stream(stream));
                        self.take_events(primary)?;
                    }
                }
            }
            if fresh {
                self.take_lead(partition)?;
            }
        }
        Ok(())
    }

    /// T5, T4 or T6: a new epoch, what the copy has is taken back, then the barrier.
    fn take_lead(&mut self, partition: PartitionId) -> Result<(), String> {
        let register = self.registers.get_mut(&partition).expect("one each");
        register.epoch += 1;
        let Register {
            epoch,
            primary,
            copy,
        } = *register;
        let epoch = Epoch::new(epoch);
        // The old primary hears of it first or last; here it is fenced by what it is sent.
        self.nodes[copy].leads.remove(&partition);
        if self.rng.bool() {
            let bench = self.nodes[copy].up().expect("it is up");
            let now = bench.now();
            bench.shard.set_copy(now, partition, Copy::Follows);
        }
        // Its tail is promised to nobody else while it is read: it learns the epoch.
        let ours = self.tail(primary, partition);
        let (last, chain) = last_of(&ours);
        let fence = Replicate {
            partition,
            epoch,
            prev_pseq: 0,
            prev_chain: 0,
            items: Vec::new(),
            commit_pseq: 0,
        };
        drop(self.ask(copy, Request::Replicate(Box::new(fence)))?);
        let theirs = self.tail(copy, partition);
        for records in &theirs.waiting {
            let end = records.prev_pseq + records.items.len() as u64;
            if end <= last {
                continue;
            }
            let records = Replicate {
                epoch,
                commit_pseq: 0,
                ..records.clone()
            };
            let ours = self.tail(primary, partition);
            let back = self.ask(primary, Request::Replicate(Box::new(records)))?;
            match back {
                Some(Event::Replicated { result: Ok(_), .. }) => {}
                // Its tail is another one: it goes, ours stays.
                Some(Event::Replicated {
                    result: Err(Refused::Diverged { .. } | Refused::Gap { .. }),
                    ..
                }) if shares(&ours, &theirs) => break,
                other => {
                    return Err(format!(
                        "the lead of {partition} is not taken back: {other:?}"
                    ));
                }
            }
        }
        let _before = (last, chain);
        self.agree(partition, primary, copy)?;
        let stream = self
            .streams
            .iter()
            .find(|(_, (from, to, _))| (*from, *to) == (primary, copy))
            .map(|(stream, _)| *stream)
            .expect("just made");
        let peers_pseq = last_of(&self.tail(copy, partition)).0;
        let bench = self.nodes[primary].up().expect("it is up");
        let lead = Request::Lead {
            partition,
            epoch,
            copy: Copy::Stream(stream),
            peers_pseq,
        };
        if let Err(refused) = bench.submit(lead) {
            return Err(format!("the lead of {partition}: {refused}"));
        }
        bench.poll();
        self.take_events(primary)?;
        self.nodes[primary].leads.insert(partition, epoch.value());
        Ok(())
    }

    /// The copy's tail that the primary does not have is cut off.
    fn agree(&mut self, partition: PartitionId, primary: usize, copy: usize) -> Result<(), String> {
        let (ours, theirs) = (self.tail(primary, partition), self.tail(copy, partition));
        let (last, _) = last_of(&theirs);
        let common = common(&ours, &theirs);
        if last <= common {
            return Ok(());
        }
        let bench = self.nodes[copy].up().expect("it is up");
        let now = bench.now();
        bench.shard.set_copy(now, partition, Copy::Follows);
        let cut = Request::Disown {
            partition,
            pseq: common,
        };
        match self.ask(copy, cut)? {
            Some(Event::Disowned { result: Ok(_), .. }) => Ok(()),
            other => Err(format!(
                "{partition} is not cut at {common} of {last}: {other:?}"
            )),
        }
    }

    fn tail(&mut self, node: usize, partition: PartitionId) -> PartitionTail {
        let bench = self.nodes[node].up().expect("it is up");
        bench.shard.partition_tail(partition).expect("its own")
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
            let found = place.map(|place| bench.events.swap_remove(place));
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
