//! The control thread: doors, admin pages, signals, and the order of start and end.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal as NixSignal};
use sd_notify::NotifyState;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, LocalSet, spawn_local};

use super::{Mail, NodeError, Start, open_files_max, show};
use crate::accounts::Accounts;
use crate::admin::{self, Source, Survey};
use crate::config::{Address, Config, ConfigError, Reload};
use crate::letter::{CoreReport, Door, Guest, Letter, Place, Settings, Word};
use crate::listen::passed::{Kind, Name, Passed};
use crate::listen::{self, Listener};
use crate::lmtp::Reply;
use crate::mesh::Wake;
use crate::rt::{self, Socket};
use crate::status;

/// A core that does not answer for so long is not alive (mail.md 11).
const REPORT_PATIENCE: Duration = Duration::from_secs(10);

/// After a fatal error, for replies that are on their way.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Connections that were cut off end within this.
const CUT_OFF_PATIENCE: Duration = Duration::from_secs(5);

/// Between tries to accept while there is no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// systemd is told to wait for so long, again and again, while the log is replayed.
const RECOVERY_STEP: Duration = Duration::from_secs(5);

/// Of the open-file limit, what connections may not take: logs, segments, the doors themselves.
const OPEN_FILES_RESERVE: u64 = 256;

/// Where a node listens, with real ports.
#[derive(Clone, Debug, Default)]
pub struct Doors {
    /// The node protocol on this machine.
    pub socket: Vec<Address>,
    /// The node protocol.
    pub node: Vec<Address>,
    /// LMTP.
    pub lmtp: Vec<Address>,
    /// HTTP.
    pub admin: Vec<Address>,
}

struct Control {
    config: Arc<Config>,
    cores: usize,
    settings: RefCell<Arc<Settings>>,
    endpoint: RefCell<Mail>,
    surveys: RefCell<BTreeMap<usize, Gathering>>,
    next_survey: Cell<usize>,
    words: mpsc::UnboundedSender<(usize, Word)>,
    closing: Cell<bool>,
    next_core: Cell<usize>,
    places: Arc<()>,
    connections_max: usize,
    /// Connections turned away since the last that was not: only the first is logged.
    turned_away: Cell<u64>,
}

struct Gathering {
    reports: Vec<CoreReport>,
    done: oneshot::Sender<Vec<CoreReport>>,
}

/// Listeners with their protocol; `None` is HTTP.
type Listeners = Vec<(Option<Door>, Listener)>;

type Words = mpsc::UnboundedReceiver<(usize, Word)>;

pub(super) fn run(
    config: &Arc<Config>,
    settings: Arc<Settings>,
    endpoint: Mail,
    start: Start,
) -> Result<(), NodeError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(NodeError::system("start the control thread's runtime"))?;
    LocalSet::new().block_on(
        &runtime,
        main(Arc::clone(config), settings, endpoint, start),
    )
}

async fn main(
    config: Arc<Config>,
    settings: Arc<Settings>,
    endpoint: Mail,
    start: Start,
) -> Result<(), NodeError> {
    let (sender, mut words) = mpsc::unbounded_channel();
    let cores = endpoint.index();
    let wake =
        rt::watch(endpoint.wake_handle()).map_err(NodeError::system("wait for an eventfd"))?;
    let share = usize::try_from(open_files_max().saturating_sub(OPEN_FILES_RESERVE) / 2);
    let connections_max = config
        .connections_max
        .min(share.unwrap_or(usize::MAX).max(16));
    let control = Rc::new(Control {
        config,
        cores,
        settings: RefCell::new(settings),
        endpoint: RefCell::new(endpoint),
        surveys: RefCell::default(),
        next_survey: Cell::new(0),
        words: sender,
        closing: Cell::new(false),
        next_core: Cell::new(0),
        places: Arc::new(()),
        connections_max,
        turned_away: Cell::new(0),
    });
    let letters = spawn_local(read_mail(Rc::clone(&control), wake));
    let end = control.live(&mut words, start).await;
    control.send_all(|| Letter::Stop);
    control.endpoint.borrow_mut().flush();
    letters.abort();
    end
}

impl Control {
    async fn live(self: &Rc<Self>, words: &mut Words, mut start: Start) -> Result<(), NodeError> {
        let mut signals = Signals::new().map_err(NodeError::system("catch signals"))?;
        // Doors are bound before recovery so that a wrong address shows at once, and connections
        // that come meanwhile wait in the kernel.
        let (listeners, doors) = self.bind(&mut start.passed)?;
        if !self.await_serving(words, &mut signals).await? {
            return Ok(());
        }
        let mut tasks = self.accept(listeners);
        if let Some(period) = sd_notify::watchdog_enabled() {
            tasks.push(spawn_local(feed_watchdog(Rc::clone(self), period)));
        }
        tell_systemd(&[NotifyState::Ready]);
        tracing::info!(
            cores = self.cores,
            socket = show(&doors.socket),
            node = show(&doors.node),
            lmtp = show(&doors.lmtp),
            admin = show(&doors.admin),
            "serving"
        );
        (start.ready)(&doors);
        loop {
            tokio::select! {
                biased;
                Some((core, word)) = words.recv() => self.take_word(core, word).await?,
                signal = signals.next() => match signal {
                    Sign::Reload => self.reload(&*start.reload),
                    Sign::End => break,
                },
            }
        }
        self.end(words, &mut signals, tasks).await
    }

    /// Until all shards are open. False: a signal came first.
    async fn await_serving(
        &self,
        words: &mut Words,
        signals: &mut Signals,
    ) -> Result<bool, NodeError> {
        let mut serving = 0;
        while serving < self.cores {
            let step = u32::try_from(RECOVERY_STEP.as_micros()).unwrap_or(u32::MAX);
            tell_systemd(&[
                NotifyState::ExtendTimeoutUsec(step.saturating_mul(3)),
                NotifyState::Status(&format!("opening: {serving} of {} cores", self.cores)),
            ]);
            tokio::select! {
                biased;
                Some((core, word)) = words.recv() => match word {
                    Word::Serving => serving += 1,
                    other => self.take_word(core, other).await?,
                },
                sign = signals.next() => if matches!(sign, Sign::End) {
                    return Ok(false);
                },
                () = tokio::time::sleep(RECOVERY_STEP) => {}
            }
        }
        tell_systemd(&[NotifyState::Status("serving")]);
        Ok(true)
    }

    /// A word that is not waited for.
    async fn take_word(&self, core: usize, word: Word) -> Result<(), NodeError> {
        match word {
            Word::Fatal(fatal) => {
                self.closing.set(true);
                tokio::time::sleep(LAST_WORDS).await;
                Err(NodeError::Fatal(fatal))
            }
            Word::OpenFailed(error) => {
                tracing::debug!(core, "the shard cannot be opened");
                Err(NodeError::Open(error))
            }
            Word::Serving | Word::Quiet | Word::Drained => Ok(()),
        }
    }

    fn bind(&self, passed: &mut Passed) -> Result<(Listeners, Doors), NodeError> {
        let mut listeners = Vec::new();
        let mut doors = Doors::default();
        let listen = &self.config.listen;
        let (node, lmtp) = (Some(Door::Node), Some(Door::Lmtp));
        let (unix, tcp, both) = (
            &[Kind::Unix][..],
            &[Kind::Tcp][..],
            &[Kind::Unix, Kind::Tcp][..],
        );
        let lists = [
            (node, (Name::Node, unix), &listen.socket, &mut doors.socket),
            (node, (Name::Node, tcp), &listen.node, &mut doors.node),
            (lmtp, (Name::Lmtp, both), &listen.lmtp, &mut doors.lmtp),
            (None, (Name::Admin, both), &listen.admin, &mut doors.admin),
        ];
        for (door, (name, kinds), addresses, bound) in lists {
            let given = passed.of_door(name, kinds, &self.config);
            let mut found = given.map_err(NodeError::Listen)?;
            if found.is_empty() {
                for address in addresses {
                    found.push(Listener::bind(address).map_err(NodeError::Listen)?);
                }
            }
            bound.extend(found.iter().filter_map(Listener::address));
            listeners.extend(found.into_iter().map(|listener| (door, listener)));
        }
        Ok((listeners, doors))
    }

    fn accept(self: &Rc<Self>, listeners: Listeners) -> Vec<JoinHandle<()>> {
        let spawn = |(door, listener)| match door {
            Some(door) => spawn_local(accept_guests(Rc::clone(self), door, listener)),
            None => spawn_local(accept_admin(Rc::clone(self), listener)),
        };
        listeners.into_iter().map(spawn).collect()
    }

    fn welcome(&self, door: Door, socket: Socket) {
        let place = Place(Arc::clone(&self.places));
        // Two counts are not guests: `places` itself and the one just made.
        if Arc::strong_count(&self.places) - 2 >= self.connections_max {
            self.turn_away(door, &socket);
            return;
        }
        self.turned_away.set(0);
        let (peer, trust) = listen::introduce(&socket, &self.config);
        let core = self.next_core.get();
        self.next_core.set((core + 1) % self.cores);
        let guest = Guest {
            socket,
            door,
            peer,
            trust,
            place,
        };
        self.endpoint
            .borrow_mut()
            .send(core, Letter::Guest(Box::new(guest)));
    }

    /// Closes a connection that is one too many; says so where the protocol has words for it.
    fn turn_away(&self, door: Door, socket: &Socket) {
        if self.turned_away.replace(self.turned_away.get() + 1) == 0 {
            let most = self.connections_max;
            tracing::warn!(
                door = door.name(),
                most,
                "too many connections; more are closed"
            );
        }
        if door == Door::Lmtp {
            let mut words = Vec::new();
            Reply::too_many_connections().encode(&mut words);
            if let Err(error) = socket.say(&words) {
                tracing::debug!(%error, "a connection that is one too many");
            }
        }
    }

    fn send_all(&self, letter: impl Fn() -> Letter) {
        let mut endpoint = self.endpoint.borrow_mut();
        (0..self.cores).for_each(|core| endpoint.send(core, letter()));
    }

    /// Doors close, transactions finish, shards drain.
    async fn end(
        &self,
        words: &mut Words,
        signals: &mut Signals,
        tasks: Vec<JoinHandle<()>>,
    ) -> Result<(), NodeError> {
        tell_systemd(&[NotifyState::Stopping, NotifyState::Status("draining")]);
        tracing::info!("draining");
        self.closing.set(true);
        for task in tasks {
            task.abort();
        }
        self.send_all(|| Letter::CloseDoors);
        let mut quiet = 0;
        let patience = tokio::time::sleep(self.config.drain_timeout);
        tokio::pin!(patience);
        let mut cut = false;
        while quiet < self.cores {
            tokio::select! {
                biased;
                Some((core, word)) = words.recv() => match word {
                    Word::Quiet => quiet += 1,
                    other => self.take_word(core, other).await?,
                },
                sign = signals.next(), if !cut => if matches!(sign, Sign::End) {
                    patience.as_mut().reset(tokio::time::Instant::now());
                },
                () = &mut patience => {
                    if cut {
                        tracing::warn!("connections that were cut off are still there");
                        break;
                    }
                    cut = true;
                    tracing::warn!("connections are cut off");
                    self.send_all(|| Letter::CutOff);
                    patience.as_mut().reset(tokio::time::Instant::now() + CUT_OFF_PATIENCE);
                }
            }
        }
        self.send_all(|| Letter::Drain);
        let mut drained = 0;
        while drained < self.cores {
            match words.recv().await {
                Some((_, Word::Drained)) => drained += 1,
                Some((core, word)) => self.take_word(core, word).await?,
                None => break,
            }
        }
        tracing::info!("drained; every message is in its mailbox");
        Ok(())
    }

    fn reload(&self, read: &dyn Fn() -> Result<Config, ConfigError>) {
        let begun = NotifyState::monotonic_usec_now();
        match begun {
            Ok(begun) => tell_systemd(&[NotifyState::Reloading, begun]),
            Err(_) => tell_systemd(&[NotifyState::Reloading]),
        }
        match read() {
            Ok(config) => self.replace_settings(&config),
            Err(error) => tracing::error!(%error, "not reloaded; the old configuration stays"),
        }
        tell_systemd(&[NotifyState::Ready]);
    }

    fn replace_settings(&self, config: &Config) {
        let fixed = Config {
            cores: self.config.cores,
            ..config.clone()
        };
        let changed = self.config.differences(&fixed);
        let restart: Vec<_> = changed
            .iter()
            .filter(|key| key.reload == Reload::Restart)
            .map(|key| key.name)
            .collect();
        if !restart.is_empty() {
            tracing::warn!(
                keys = restart.join(", "),
                "these take effect at the next start"
            );
        }
        match Accounts::load(config) {
            Ok(accounts) => {
                let users = accounts.users_count();
                let settings = Arc::new(Settings {
                    accounts,
                    return_path: config.return_path,
                });
                *self.settings.borrow_mut() = Arc::clone(&settings);
                self.send_all(|| Letter::Settings(Arc::clone(&settings)));
                tracing::info!(users, "reloaded");
            }
            Err(error) => tracing::error!(%error, "not reloaded; the old accounts stay"),
        }
    }

    /// The cores' numbers; fewer than there are cores if some do not answer.
    async fn reports(&self) -> Vec<CoreReport> {
        let number = self.next_survey.get();
        self.next_survey.set(number + 1);
        let (done, receiver) = oneshot::channel();
        self.surveys.borrow_mut().insert(
            number,
            Gathering {
                reports: Vec::new(),
                done,
            },
        );
        self.send_all(|| Letter::Report(number));
        let answer = tokio::time::timeout(REPORT_PATIENCE, receiver).await;
        let left = self.surveys.borrow_mut().remove(&number);
        let mut reports = match answer {
            Ok(Ok(reports)) => reports,
            _ => left.map(|gathering| gathering.reports).unwrap_or_default(),
        };
        reports.sort_by_key(|report| report.core);
        reports
    }

    fn reported(&self, number: usize, report: CoreReport) {
        let mut surveys = self.surveys.borrow_mut();
        let Some(gathering) = surveys.get_mut(&number) else {
            return;
        };
        gathering.reports.push(report);
        if gathering.reports.len() == self.cores
            && let Some(Gathering { reports, done }) = surveys.remove(&number)
            && done.send(reports).is_err()
        {
            tracing::debug!("nobody waits for the reports any more");
        }
    }

    /// Why no mail should be sent here.
    fn unready(&self, reports: &[CoreReport]) -> Option<String> {
        if self.closing.get() {
            return Some("draining".to_owned());
        }
        if reports.len() < self.cores {
            return Some(format!("{} of {} cores answer", reports.len(), self.cores));
        }
        let free = status::disk_free_bytes(reports);
        if free > 0 && free < self.config.disk_reserve {
            return Some(format!("disk: {free} bytes free, below disk_reserve"));
        }
        let full = reports.iter().find(|report| {
            let shard = &report.shard;
            shard.log_used_bytes > shard.log_capacity_bytes / 100 * 85
                && shard.log_capacity_bytes > 0
        });
        full.map(|report| format!("log of core {} is full", report.core))
    }
}

impl Source for Rc<Control> {
    async fn survey(&self) -> Survey {
        let reports = self.reports().await;
        let fields = status::fields(&self.config, &reports);
        Survey {
            unready: self.unready(&reports),
            cores: self.cores,
            status: fields
                .into_iter()
                .map(|field| (field.name, field.value))
                .collect(),
            users_count: self.settings.borrow().accounts.users_count(),
            reports,
        }
    }
}

async fn read_mail(control: Rc<Control>, wake: AsyncFd<Arc<Wake>>) {
    let mut letters = Vec::new();
    loop {
        control.endpoint.borrow_mut().receive(&mut letters);
        for (from, letter) in letters.drain(..) {
            match letter {
                Letter::Word(word) => {
                    if control.words.send((from, *word)).is_err() {
                        return;
                    }
                }
                Letter::Reported(number, report) => control.reported(number, *report),
                other => tracing::debug!(?other, "a letter that is not for the control thread"),
            }
        }
        let sleeps = {
            let mut endpoint = control.endpoint.borrow_mut();
            endpoint.flush();
            endpoint.park()
        };
        if sleeps {
            let mut ready = wake.readable().await.expect("the runtime lives");
            wake.get_ref().clear();
            ready.clear_ready();
        } else {
            tokio::task::yield_now().await;
        }
    }
}

async fn accept_guests(control: Rc<Control>, door: Door, listener: Listener) {
    let mut complained = false;
    loop {
        match listener.accept().await {
            Ok(socket) => {
                complained = false;
                control.welcome(door, socket);
            }
            Err(error) => {
                complain(&mut complained, &error);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn accept_admin(control: Rc<Control>, listener: Listener) {
    let mut complained = false;
    loop {
        let accepted = match &listener {
            Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                let control = Rc::clone(&control);
                drop(spawn_local(
                    async move { admin::serve(stream, &control).await },
                ));
            }),
            Listener::Unix(listener, _) => listener.accept().await.map(|(stream, _)| {
                let control = Rc::clone(&control);
                drop(spawn_local(
                    async move { admin::serve(stream, &control).await },
                ));
            }),
        };
        match accepted {
            Ok(()) => complained = false,
            Err(error) => {
                complain(&mut complained, &error);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// systemd hears of us only while every core answers (mail.md 11).
async fn feed_watchdog(control: Rc<Control>, period: Duration) {
    loop {
        tokio::time::sleep(period / 3).await;
        if control.reports().await.len() == control.cores {
            tell_systemd(&[NotifyState::Watchdog]);
        }
    }
}

fn complain(complained: &mut bool, error: &io::Error) {
    if !std::mem::replace(complained, true) {
        tracing::warn!(%error, "cannot accept connections; trying again");
    }
}

enum Sign {
    Reload,
    End,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        // Whoever started us may have blocked them, and a mask is inherited: the node would never
        // drain.
        let mut ours = SigSet::empty();
        for signal in [NixSignal::SIGTERM, NixSignal::SIGINT, NixSignal::SIGHUP] {
            ours.add(signal);
        }
        ours.thread_unblock()?;
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Sign {
        tokio::select! {
            _ = self.terminate.recv() => Sign::End,
            _ = self.interrupt.recv() => Sign::End,
            _ = self.hang_up.recv() => Sign::Reload,
        }
    }
}

fn tell_systemd(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "sd_notify");
    }
}
