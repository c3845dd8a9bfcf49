//! One core: a pinned thread with a runtime, a shard, and the connections that were handed to it.
//!
//! Tasks put requests to the shard with [`Core::ask`]; all that is ready in a turn is collected, then
//! one `Core::turn` polls the shard, which seals what was collected as one batch. Answers come from
//! the turn or from the mesh, never from within `ask`, so no state is borrowed twice. What waits for
//! an answer is a [`Waiter`]: this core's deliveries and readers, or another core.
//!
//! Nothing here blocks and no `RefCell` is borrowed across an await.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ringpost_engine::request::{Event, MonotonicNs, Notice, Now, Refused, Request};
use ringpost_netproto::id::Guid;
use ringpost_netproto::placement::{HashKey, PartitionCount, UserKey, core_of};
use ringpost_netproto::version::StoreId;
use slab::Slab;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use crate::bodies::Bodies;
use crate::clock;
use crate::config::Config;
use crate::conn::{self, Connection};
use crate::delivery::{self, Delivery, Part};
use crate::delivery_id::RandomIds;
use crate::gate::Gates;
use crate::gather::{GATHER_NS_MAX, Returns};
use crate::letter::{Answer, CoreReport, Door, DoorReport, Guest, Letter, Settings, Word};
use crate::mesh::{Endpoint, Wake};
use crate::rt;
use crate::shard_host::ShardHost;
use crate::status;

/// How often connections are looked at for time-outs.
const TICK: Duration = Duration::from_millis(500);

/// So many rounds without new mail end the gathering of a batch.
const EMPTY_ROUNDS: u32 = 2;

/// With more letters than this waiting for slower cores, sockets are not read.
const MESH_BACKLOG_MAX: usize = 1_024;

/// Who waits for a shard's answer.
pub enum Waiter {
    /// A message of this core.
    Delivery(Rc<Delivery>, Part),
    /// A reading request of this core.
    Reader(Rc<dyn Reader>, u64),
    /// Another core, which keeps the real waiter in this slot.
    Remote(usize, usize),
    /// The control thread waits for the drain.
    Drain,
    /// Nobody.
    Nobody,
}

/// Something that asks a shard for mail or status.
pub trait Reader {
    /// The answer to its request `tag`.
    fn answered(&self, tag: u64, answer: Answer);

    /// The reports that it asked for with [`Core::ask_reports`].
    fn reported(&self, tag: u64, reports: Vec<CoreReport>);
}

/// What a core's thread starts with.
pub struct Seat {
    /// Its end of the mesh; endpoint `cores` is the control thread.
    pub endpoint: Endpoint<Letter>,
    /// How many cores there are.
    pub cores: usize,
    /// The configuration.
    pub config: Arc<Config>,
    /// What may be reloaded.
    pub settings: Arc<Settings>,
    /// The store's hash key.
    pub hash_key: HashKey,
    /// The store's partitions.
    pub partitions: PartitionCount,
    /// The store's uuid.
    pub store_id: Option<StoreId>,
    /// What each core says of new mail.
    pub gates: Arc<Gates>,
    /// Entropy for ids.
    pub entropy: [u8; 16],
}

/// A core's state, shared by its tasks.
pub struct Core {
    /// Which one.
    pub index: usize,
    /// How many there are; also the control thread's place in the mesh.
    pub cores: usize,
    /// The configuration.
    pub config: Arc<Config>,
    /// The store's hash key.
    pub hash_key: HashKey,
    /// The store's partitions.
    pub partitions: PartitionCount,
    /// The store's uuid.
    pub store_id: Option<StoreId>,
    /// What each core says of new mail.
    gates: Arc<Gates>,
    /// From here on a message goes through a stage file.
    pub large_bytes: usize,
    settings: RefCell<Arc<Settings>>,
    host: RefCell<ShardHost>,
    /// Who waits for which ticket.
    tickets: RefCell<BTreeMap<u64, Waiter>>,
    /// Answers that the next turn gives.
    refused: RefCell<Vec<(Waiter, Refused)>>,
    endpoint: RefCell<Endpoint<Letter>>,
    /// Who waits for another core, by slot.
    remote: RefCell<Slab<Waiter>>,
    /// Who waits for the reports of all cores, by slot.
    surveys: RefCell<Slab<Survey>>,
    connections: RefCell<Slab<Rc<Connection>>>,
    /// Wakes the turn.
    busy: Notify,
    stopped: Notify,
    phase: Cell<Phase>,
    returns: Cell<Returns>,
    ids: RefCell<RandomIds>,
    bodies: RefCell<Bodies>,
    doors: [Cell<DoorReport>; 2],
    receiving_bytes: Cell<u64>,
    pressure_logged: Cell<MonotonicNs>,
}

struct Survey {
    reader: Rc<dyn Reader>,
    tag: u64,
    reports: Vec<CoreReport>,
}

/// How far a core is on its way out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Phase {
    /// Serving.
    Open,
    /// No new transactions.
    Closing,
    /// The shard drains or has drained.
    Draining,
    /// The thread ends.
    Stopping,
}

impl Core {
    fn new(seat: Seat, host: ShardHost) -> Rc<Self> {
        let large_bytes = seat.config.shard_config().large_bytes;
        let memory = seat.config.memory_at_start();
        Rc::new(Self {
            index: seat.endpoint.index(),
            cores: seat.cores,
            config: seat.config,
            hash_key: seat.hash_key,
            partitions: seat.partitions,
            store_id: seat.store_id,
            gates: seat.gates,
            large_bytes: usize::try_from(large_bytes).unwrap_or(usize::MAX),
            settings: RefCell::new(seat.settings),
            host: RefCell::new(host),
            tickets: RefCell::default(),
            refused: RefCell::default(),
            endpoint: RefCell::new(seat.endpoint),
            remote: RefCell::default(),
            surveys: RefCell::default(),
            connections: RefCell::default(),
            busy: Notify::new(),
            stopped: Notify::new(),
            phase: Cell::new(Phase::Open),
            returns: Cell::new(Returns::NONE),
            ids: RefCell::new(RandomIds::new(seat.entropy)),
            bodies: RefCell::new(Bodies::start(memory)),
            doors: [Cell::default(), Cell::default()],
            receiving_bytes: Cell::new(0),
            pressure_logged: Cell::new(MonotonicNs::new(0)),
        })
    }

    /// The time.
    pub fn now(&self) -> Now {
        clock::now()
    }

    /// Accounts and what else may be reloaded.
    pub fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.borrow())
    }

    /// The core whose shard has a user's mail.
    pub fn owner(&self, user: &UserKey) -> usize {
        core_of(user.partition(), self.cores)
    }

    /// Why new mail for this user would be refused, whatever it is: asked when a recipient is named.
    pub fn refusal(&self, user: &UserKey) -> Option<Refused> {
        self.gates.refusal(self.owner(user))
    }

    /// A user by canonical name.
    pub fn user(&self, name: &[u8]) -> Option<UserKey> {
        UserKey::new(name, &self.hash_key, self.partitions)
    }

    /// An id that no other delivery has.
    pub fn random_guid(&self) -> Guid {
        self.ids.borrow_mut().make()
    }

    /// A finished body, in memory that is kept for it.
    pub fn hold_body(&self, body: Bytes) -> Bytes {
        self.bodies.borrow_mut().hold(body)
    }

    /// How far it is on its way out.
    pub fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Whether sockets should wait, since another core is behind.
    pub fn is_behind(&self) -> bool {
        self.endpoint.borrow().backlog() > MESH_BACKLOG_MAX
    }

    /// Asks the shard of `owner`. The answer goes to `waiter`, later.
    pub fn ask(&self, owner: usize, request: Request, waiter: Waiter) {
        if owner == self.index {
            self.ask_here(request, waiter);
        } else {
            let slot = self.remote.borrow_mut().insert(waiter);
            let letter = Letter::Ask {
                slot,
                request: Box::new(request),
            };
            self.endpoint.borrow_mut().send(owner, letter);
        }
    }

    fn ask_here(&self, request: Request, waiter: Waiter) {
        match self.host.borrow_mut().submit(self.now(), request) {
            Ok(ticket) => {
                if !matches!(waiter, Waiter::Nobody) {
                    self.tickets.borrow_mut().insert(ticket.value(), waiter);
                }
            }
            Err(refused) => self.refused.borrow_mut().push((waiter, refused)),
        }
        self.busy.notify_one();
    }

    /// A request to this core's shard that has no answer.
    pub fn tell(&self, request: Request) {
        self.ask_here(request, Waiter::Nobody);
    }

    /// Asks all cores for their numbers; they come to [`Reader::reported`], in order of the cores.
    pub fn ask_reports(&self, reader: Rc<dyn Reader>, tag: u64) {
        let survey = Survey {
            reader,
            tag,
            reports: vec![self.report()],
        };
        let slot = self.surveys.borrow_mut().insert(survey);
        for core in (0..self.cores).filter(|core| *core != self.index) {
            self.endpoint.borrow_mut().send(core, Letter::Report(slot));
        }
        self.finish_survey(slot);
    }

    fn finish_survey(&self, slot: usize) {
        let mut surveys = self.surveys.borrow_mut();
        if surveys
            .get(slot)
            .is_some_and(|survey| survey.reports.len() == self.cores)
        {
            let mut survey = surveys.remove(slot);
            drop(surveys);
            survey.reports.sort_by_key(|report| report.core);
            survey.reader.reported(survey.tag, survey.reports);
        }
    }

    /// Polls the shard and gives out what came. A batch that has room stays open.
    fn turn(&self, events: &mut Vec<Event>) {
        self.host.borrow_mut().poll_and_gather(self.now(), events);
        self.give_out(events);
    }

    /// Lets the open batch go to the disk.
    fn seal(&self, events: &mut Vec<Event>) {
        let now = self.now();
        self.returns.set(self.returns.get().sealed(now.monotonic));
        self.host.borrow_mut().poll(now, events);
        self.give_out(events);
    }

    fn give_out(&self, events: &mut Vec<Event>) {
        let says = self.host.borrow().takes_mail(self.now());
        self.gates.set(self.index, &says);
        let refused = std::mem::take(&mut *self.refused.borrow_mut());
        for (waiter, refused) in refused {
            self.give(waiter, Answer::Refused(refused));
        }
        let appended = |event: &&Event| matches!(event, Event::Appended { .. });
        let answered = events.iter().filter(appended).count();
        for event in events.drain(..) {
            self.route(event);
        }
        if answered > 0 {
            self.expect_returns(answered);
        }
    }

    fn expect_returns(&self, answered: usize) {
        let answered = u64::try_from(answered).unwrap_or(u64::MAX);
        let taken = self.host.borrow().taken();
        let now = self.now().monotonic;
        self.returns
            .set(self.returns.get().answered(answered, taken, now));
    }

    fn route(&self, event: Event) {
        let ticket = match &event {
            Event::Appended { ticket, .. }
            | Event::StageBegun { ticket, .. }
            | Event::StageWritten { ticket, .. }
            | Event::StageExpanded { ticket, .. }
            | Event::Staged { ticket, .. }
            | Event::Mailboxes { ticket, .. }
            | Event::Listed { ticket, .. }
            | Event::Fetched { ticket, .. }
            | Event::MailboxChanged { ticket, .. }
            | Event::BackupBegun { ticket, .. }
            | Event::BackupEnded { ticket, .. }
            | Event::Scrubbed { ticket, .. }
            | Event::Checkpointed { ticket, .. }
            | Event::Drained { ticket, .. } => *ticket,
            Event::Notice(notice) => return self.log_notice(notice),
            Event::Fatal(fatal) => {
                tracing::error!(core = self.index, %fatal, "the store stops");
                return self.say(Word::Fatal(fatal.clone()));
            }
            other => {
                tracing::debug!(core = self.index, ?other, "an event of a newer engine");
                return;
            }
        };
        let waiter = self.tickets.borrow_mut().remove(&ticket.value());
        if let Some(waiter) = waiter {
            self.give(waiter, Answer::Event(event));
        }
    }

    fn give(&self, waiter: Waiter, answer: Answer) {
        match waiter {
            Waiter::Delivery(delivery, part) => delivery.answered(part, answer),
            Waiter::Reader(reader, tag) => reader.answered(tag, answer),
            Waiter::Remote(core, slot) => {
                let letter = Letter::Answer {
                    slot,
                    answer: Box::new(answer),
                };
                self.endpoint.borrow_mut().send(core, letter);
            }
            Waiter::Drain => match answer {
                // The reason is on its way as `Word::Fatal`.
                Answer::Event(Event::Drained { result: Err(_), .. }) => {}
                _ => self.say(Word::Drained),
            },
            Waiter::Nobody => {}
        }
    }

    /// To the control thread.
    fn say(&self, word: Word) {
        self.endpoint
            .borrow_mut()
            .send(self.cores, Letter::Word(Box::new(word)));
    }

    fn log_notice(&self, notice: &Notice) {
        let core = self.index;
        match notice {
            Notice::Corrupt(corrupt) => tracing::error!(
                core,
                %corrupt,
                "damaged bytes are not served; stop the daemon and run `ringpost repair --dry-run`"
            ),
            Notice::Damaged(damage) => tracing::error!(
                core,
                damage = status::damage(damage),
                "the scrub found damage; it is not served"
            ),
            Notice::DiskLow {
                free_bytes,
                floor_bytes,
            } => {
                tracing::warn!(core, free_bytes, floor_bytes, "free disk space is low");
            }
            Notice::Pressure(reason) => {
                let now = self.now().monotonic;
                if now.since(self.pressure_logged.get()) > 10_000_000_000 {
                    self.pressure_logged.set(now);
                    tracing::warn!(core, %reason, "new mail is refused for the time being");
                }
            }
            Notice::BackupGivenUp { reason } => {
                tracing::warn!(
                    core,
                    reason,
                    "a backup, or the archive of the log, is cut short"
                );
            }
            Notice::Unreferenced { path } => {
                tracing::warn!(core, path, "a file that no index explains; left alone");
            }
            other => tracing::warn!(core, ?other, "notice"),
        }
    }

    fn receive(self: &Rc<Self>, from: usize, letter: Letter) {
        match letter {
            Letter::Ask { slot, request } => self.ask_here(*request, Waiter::Remote(from, slot)),
            Letter::Answer { slot, answer } => {
                let waiter = self.remote.borrow_mut().remove(slot);
                self.give(waiter, *answer);
            }
            Letter::Guest(guest) => self.welcome(*guest),
            Letter::Settings(settings) => *self.settings.borrow_mut() = settings,
            Letter::Report(number) => {
                let report = Box::new(self.report());
                self.endpoint
                    .borrow_mut()
                    .send(from, Letter::Reported(number, report));
            }
            Letter::Reported(slot, report) => {
                if let Some(survey) = self.surveys.borrow_mut().get_mut(slot) {
                    survey.reports.push(*report);
                }
                self.finish_survey(slot);
            }
            Letter::CloseDoors => {
                self.phase.set(self.phase.get().max(Phase::Closing));
                self.each_connection(|connection| connection.close_when_done());
                self.say_if_quiet();
            }
            Letter::CutOff => self.each_connection(|connection| connection.cut_off()),
            Letter::Drain => {
                self.phase.set(self.phase.get().max(Phase::Draining));
                self.ask_here(Request::Drain, Waiter::Drain);
            }
            Letter::Stop => {
                self.phase.set(Phase::Stopping);
                self.each_connection(|connection| connection.cut_off());
                self.stopped.notify_one();
            }
            Letter::Word(word) => unreachable!("words go to the control thread: {word:?}"),
        }
    }

    fn welcome(self: &Rc<Self>, guest: Guest) {
        if self.phase.get() > Phase::Open {
            return;
        }
        self.count_door(guest.door, |door| {
            door.accepted += 1;
            door.connections += 1;
        });
        let mut connections = self.connections.borrow_mut();
        let entry = connections.vacant_entry();
        let connection = conn::open(self, guest, entry.key());
        entry.insert(connection);
    }

    /// A connection is gone.
    pub(crate) fn farewell(&self, key: usize, door: Door) {
        let gone = self.connections.borrow_mut().try_remove(key);
        self.count_door(door, |door| door.connections -= 1);
        drop(gone);
        self.say_if_quiet();
        self.stopped.notify_one();
    }

    fn say_if_quiet(&self) {
        if self.phase.get() == Phase::Closing && self.connections.borrow().is_empty() {
            self.say(Word::Quiet);
        }
    }

    fn each_connection(&self, act: impl Fn(&Rc<Connection>)) {
        let all: Vec<_> = self
            .connections
            .borrow()
            .iter()
            .map(|(_, connection)| Rc::clone(connection))
            .collect();
        all.iter().for_each(act);
    }

    fn report(&self) -> CoreReport {
        CoreReport {
            core: self.index,
            shard: self.host.borrow().metrics(),
            damaged: self.host.borrow().damaged(),
            doors: [self.doors[0].get(), self.doors[1].get()],
            asked: self.remote.borrow().len(),
            mesh_backlog: self.endpoint.borrow().backlog(),
            receiving_bytes: self.receiving_bytes.get(),
            monotonic_ns: self.now().monotonic.value(),
        }
    }

    fn count_door(&self, door: Door, count: impl FnOnce(&mut DoorReport)) {
        let cell = match door {
            Door::Node => &self.doors[0],
            Door::Lmtp => &self.doors[1],
        };
        let mut report = cell.get();
        count(&mut report);
        cell.set(report);
    }

    pub(crate) fn count_received(&self, door: Door, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.count_door(door, |report| report.received_bytes += bytes);
    }

    pub(crate) fn count_result(&self, door: Door, result: &delivery::Result) {
        self.count_door(door, |report| match result {
            delivery::Result::Stored { .. } => report.stored += 1,
            delivery::Result::Duplicate { .. } => report.duplicate += 1,
            delivery::Result::TooLarge => report.rejected += 1,
            delivery::Result::Refused(_) | delivery::Result::Late => report.deferred += 1,
        });
    }

    pub(crate) fn recount_receiving(&self, before: u64, after: u64) {
        let sum = self.receiving_bytes.get() - before + after;
        self.receiving_bytes.set(sum);
    }

    /// Bytes of messages being received on this core.
    pub fn receiving_bytes(&self) -> u64 {
        self.receiving_bytes.get()
    }
}

/// The body of a core's thread: opens the shard, serves until it is told to stop.
pub fn serve(mut seat: Seat, open: impl FnOnce() -> Result<ShardHost, OpenFailure>) {
    let control = seat.cores;
    let host = match open() {
        Ok(host) => host,
        Err(failure) => {
            let word = Box::new(Word::OpenFailed(failure));
            seat.endpoint.send(control, Letter::Word(word));
            return;
        }
    };
    let core = Core::new(seat, host);
    let end = rt::run(main_task(Rc::clone(&core)));
    if let Err(error) = end {
        core.say(Word::OpenFailed(crate::shard_host::no_ring(&error)));
    }
}

/// Why a shard could not be opened.
pub type OpenFailure = ringpost_engine::error::OpenError;

async fn main_task(core: Rc<Core>) {
    let wake = core.endpoint.borrow().wake_handle();
    let wake = rt::watch(wake).expect("an eventfd can be polled");
    let event = core
        .host
        .borrow_mut()
        .event_fd()
        .expect("the ring's eventfd can be shared");
    let event = rt::watch(event).expect("an eventfd can be polled");
    rt::spawn(read_mail(Rc::clone(&core), wake));
    rt::spawn(tick(Rc::clone(&core)));
    core.say(Word::Serving);
    turns(&core, &event).await;
}

/// Turns until told to stop. What is dropped by `select!` here are tokio's own futures, no operation
/// of a ring.
async fn turns(core: &Rc<Core>, event: &AsyncFd<crate::shard_host::RingEvent>) {
    let mut events = Vec::new();
    loop {
        core.turn(&mut events);
        if core.host.borrow().is_gathering() {
            gather(core).await;
            core.seal(&mut events);
        }
        if core.phase.get() == Phase::Stopping && core.connections.borrow().is_empty() {
            return;
        }
        let deadline = core.host.borrow().next_deadline();
        let now = core.now().monotonic;
        let wait = deadline.map_or(TICK, |at| Duration::from_nanos(at.since(now)).min(TICK));
        tokio::select! {
            biased;
            () = core.busy.notified() => {}
            ready = event.readable() => {
                let mut ready = ready.expect("the runtime lives");
                event.get_ref().clear();
                ready.clear_ready();
            }
            () = core.stopped.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Lets the other tasks of this core and the sockets have their turns as long as that brings mail for
/// the open batch, or those who were just answered may bring some: an idle core writes at once, a busy
/// one shares the price of a flush among more (decision 0014). No timer: the core never sleeps here.
async fn gather(core: &Rc<Core>) {
    let begun = core.now().monotonic;
    let mut taken = core.host.borrow().taken();
    let mut empty_rounds = 0;
    loop {
        rt::round().await;
        let now = core.now().monotonic;
        let now_taken = core.host.borrow().taken();
        if now_taken == taken {
            empty_rounds += 1;
        } else {
            empty_rounds = 0;
        }
        taken = now_taken;
        let due = core.returns.get().are_due(taken, now);
        if (empty_rounds >= EMPTY_ROUNDS && !due) || now.since(begun) >= GATHER_NS_MAX {
            return;
        }
        if empty_rounds > 0 {
            // Who is to send it may be waiting for this processor.
            std::thread::yield_now();
        }
    }
}

/// Takes letters as they come.
async fn read_mail(core: Rc<Core>, wake: AsyncFd<Arc<Wake>>) {
    let mut letters = Vec::new();
    loop {
        core.endpoint.borrow_mut().receive(&mut letters);
        for (from, letter) in letters.drain(..) {
            core.receive(from, letter);
        }
        let (caught_up, sleeps) = {
            let mut endpoint = core.endpoint.borrow_mut();
            let was_behind = endpoint.backlog() > MESH_BACKLOG_MAX;
            endpoint.flush();
            let caught_up = was_behind && endpoint.backlog() <= MESH_BACKLOG_MAX;
            (caught_up, endpoint.park())
        };
        if caught_up {
            core.each_connection(|connection| connection.read_on());
        }
        if sleeps {
            let mut ready = wake.readable().await.expect("the runtime lives");
            wake.get_ref().clear();
            ready.clear_ready();
        } else {
            tokio::task::yield_now().await;
        }
    }
}

/// Looks at connections for time-outs.
async fn tick(core: Rc<Core>) {
    let idle_max = u64::try_from(core.config.idle_timeout.as_nanos()).unwrap_or(u64::MAX);
    loop {
        tokio::time::sleep(TICK).await;
        let now = core.now().monotonic;
        core.each_connection(|connection| connection.tick(now, idle_max));
    }
}
