//! A store without its daemon: all shards of a data directory on one thread, over the real ring. For
//! what no protocol asks for yet (expunge, compaction), and for figures without sockets.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use nix::poll::{PollFd, PollFlags};
use ringpost_daemon::clock;
use ringpost_engine::Shard;
use ringpost_engine::config::ShardConfig;
use ringpost_engine::io::{Helpers, UringIo, UringOptions};
use ringpost_engine::metrics::Metrics;
use ringpost_engine::prepare::{PrepareOptions, PreparedBody, Preparer, Push};
use ringpost_engine::request::{
    AppendGroup, Body, Dedupe, Event, Flags, ListEntry, More, Origin, QuotaLimits, Recipient,
    Request, Ticket,
};
use ringpost_engine::store::{Store, StoreOptions};
use ringpost_netproto::id::{Guid, MailboxId, NodeId};
use ringpost_netproto::placement::{PartitionCount, UserKey, core_of};

/// At the longest between two looks at a shard that says nothing.
const LOOK_PERIOD_NS: u64 = 20_000_000;

/// Entries of one page of a list.
const PAGE: u32 = 1_000;

/// An open store.
pub(crate) struct Engine {
    shards: Vec<Shard<UringIo>>,
    events: Vec<Event>,
    content_key: [u8; 16],
    store: Store,
    _helpers: Helpers,
}

impl Engine {
    /// Opens the store in `data`, with as many shards as it has; makes one with one shard if there is
    /// none. Replays the logs.
    pub(crate) fn open(data: &Path, config: &ShardConfig) -> anyhow::Result<Self> {
        let mut entropy = [0; 32];
        entropy.fill_with(|| fastrand::u8(..));
        let options = StoreOptions {
            node: NodeId::new(1),
            partitions: PartitionCount::new(4096).context("4096 is a power of two")?,
            logs: 1,
            entropy,
        };
        let store = Store::open(data, &options)?;
        let helpers = Helpers::start(data)?;
        let mut shards = Vec::new();
        for log_id in 0..store.logs() {
            let io = UringIo::new(&UringOptions::default(), &helpers)?;
            let identity = store.identity(log_id);
            let mut seed = [0; 16];
            seed.fill_with(|| fastrand::u8(..));
            shards.push(Shard::open(
                io,
                identity,
                config.clone(),
                seed,
                clock::now(),
            )?);
        }
        Ok(Self {
            shards,
            events: Vec::new(),
            content_key: store.key().bytes(),
            store,
            _helpers: helpers,
        })
    }

    /// A user by canonical name.
    pub(crate) fn user(&self, name: &str) -> anyhow::Result<UserKey> {
        let key = UserKey::new(name.as_bytes(), &self.store.key(), self.store.partitions());
        key.with_context(|| format!("{name:?} is no name"))
    }

    fn owner(&mut self, user: &UserKey) -> anyhow::Result<(usize, &mut Shard<UringIo>)> {
        let owner = core_of(user.partition(), self.shards.len());
        let shard = self
            .shards
            .get_mut(owner)
            .context("a shard for each core")?;
        Ok((owner, shard))
    }

    /// Asks the shard of `user`; gives which that is, and the ticket there.
    pub(crate) fn submit(
        &mut self,
        user: &UserKey,
        request: Request,
    ) -> anyhow::Result<(usize, Ticket)> {
        let (owner, shard) = self.owner(user)?;
        let ticket = shard.submit(clock::now(), request);
        Ok((
            owner,
            ticket.map_err(|refused| anyhow::anyhow!("{refused}"))?,
        ))
    }

    /// Moves all shards on; what came, with the shard it came from.
    pub(crate) fn poll(&mut self, out: &mut Vec<(usize, Event)>) -> anyhow::Result<()> {
        for (place, shard) in self.shards.iter_mut().enumerate() {
            shard.poll(clock::now(), &mut self.events);
            for event in self.events.drain(..) {
                if let Event::Fatal(fatal) = event {
                    bail!("the store stops: {fatal}");
                }
                out.push((place, event));
            }
        }
        Ok(())
    }

    /// Until something completes or is due, at most `longest`.
    pub(crate) fn wait(&mut self, longest: Duration) -> anyhow::Result<()> {
        let now = clock::monotonic();
        let due = self.shards.iter().filter_map(Shard::next_deadline).min();
        let due = due.map_or(LOOK_PERIOD_NS, |due| {
            due.value().saturating_sub(now.value())
        });
        let longest = u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX);
        let ns = due.min(LOOK_PERIOD_NS).min(longest);
        let wait = nix::sys::time::TimeSpec::from_duration(Duration::from_nanos(ns));
        if ns == 0 {
            return Ok(());
        }
        let ios: Vec<&UringIo> = self
            .shards
            .iter_mut()
            .map(|shard| &*shard.io_mut())
            .collect();
        let mut fds: Vec<_> = ios
            .iter()
            .map(|io| PollFd::new(io.event_fd(), PollFlags::POLLIN))
            .collect();
        match nix::poll::ppoll(&mut fds, Some(wait), None) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => bail!("cannot wait for the ring: {errno}"),
        }
        for io in ios {
            io.clear_event();
        }
        Ok(())
    }

    /// Asks and waits for the answer; other events are dropped.
    pub(crate) fn ask(&mut self, user: &UserKey, request: Request) -> anyhow::Result<Event> {
        let (owner, ticket) = self.submit(user, request)?;
        let mut events = Vec::new();
        loop {
            self.poll(&mut events)?;
            for (place, event) in events.drain(..) {
                if place == owner && ticket_of(&event) == Some(ticket) {
                    return Ok(event);
                }
            }
            self.wait(Duration::from_secs(1))?;
        }
    }

    /// Every message of a user's INBOX, by uid.
    pub(crate) fn list(&mut self, user: &UserKey) -> anyhow::Result<Vec<ListEntry>> {
        let mut all: Vec<ListEntry> = Vec::new();
        loop {
            let request = Request::List {
                user: user.clone(),
                mailbox: MailboxId::INBOX,
                after: all.last().map_or(0, |entry| entry.uid.value()),
                entries_max: PAGE,
            };
            let Event::Listed { result, .. } = self.ask(user, request)? else {
                bail!("another answer than a list");
            };
            match result {
                Ok(page) => {
                    all.extend(page.entries);
                    if page.more == More::No {
                        return Ok(all);
                    }
                }
                Err(ringpost_engine::request::Refused::NoSuchUser) => return Ok(all),
                Err(refused) => bail!("no list: {refused}"),
            }
        }
    }

    /// The message as an append takes it.
    pub(crate) fn prepare(&self, message: &[u8]) -> anyhow::Result<Arc<PreparedBody>> {
        let mut preparer = Preparer::new(PrepareOptions {
            message_bytes_max: 64 << 20,
            return_path: None,
            content_key: self.content_key,
        });
        let push = preparer.push(message)?;
        ensure!(push == Push::Buffered, "a message of the small kind");
        Ok(Arc::new(preparer.finish().body))
    }

    /// A delivery to one user, under an id of its own.
    pub(crate) fn append(user: &UserKey, number: u64, body: Arc<PreparedBody>) -> Request {
        let mut guid = [0x5a; 16];
        let (low, _) = guid.split_at_mut(8);
        low.copy_from_slice(&number.to_le_bytes());
        Request::Append(AppendGroup {
            body: Body::Small(body),
            sender: Bytes::from_static(b"perf@rig.test"),
            recipients: vec![Recipient {
                user: user.clone(),
                mailbox: MailboxId::INBOX,
                folder: None,
                guid: Guid::new(guid),
                dedupe: Dedupe::Yes,
                internal_date: clock::wall(),
                flags: Flags::default(),
                quota: QuotaLimits::default(),
            }],
            origin: Origin::Delivery,
        })
    }

    /// The numbers of one shard.
    pub(crate) fn metrics(&self, shard: usize) -> Metrics {
        self.shards
            .get(shard)
            .map_or_else(Metrics::default, |shard| *shard.metrics())
    }

    /// Writes everything into its files and marks the logs clean.
    pub(crate) fn drain(mut self) -> anyhow::Result<()> {
        let mut open = Vec::new();
        for (place, shard) in self.shards.iter_mut().enumerate() {
            let ticket = shard.submit(clock::now(), Request::Drain);
            open.push((
                place,
                ticket.map_err(|refused| anyhow::anyhow!("{refused}"))?,
            ));
        }
        let mut events = Vec::new();
        while !open.is_empty() {
            self.poll(&mut events)?;
            for (place, event) in events.drain(..) {
                open.retain(|asked| ticket_of(&event).is_none_or(|it| (place, it) != *asked));
            }
            self.wait(Duration::from_secs(1))?;
        }
        Ok(())
    }
}

/// The ticket that an event answers, of those that are asked for here.
pub(crate) fn ticket_of(event: &Event) -> Option<Ticket> {
    match event {
        Event::Appended { ticket, .. }
        | Event::Listed { ticket, .. }
        | Event::Fetched { ticket, .. }
        | Event::Expunged { ticket, .. }
        | Event::Compacted { ticket, .. }
        | Event::Checkpointed { ticket, .. }
        | Event::Drained { ticket, .. } => Some(*ticket),
        _ => None,
    }
}
