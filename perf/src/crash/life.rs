//! A store that lives: mail comes, goes, and is compacted, as fast as it can. A process of its own,
//! since it has to die with its disk; what it was told stands on its standard output before anybody
//! may believe it, one line a fact:
//!
//! ```text
//! s USER SERIAL        a message is submitted       k USER UID SERIAL   it is stored
//! x USER LOW HIGH      an expunge is submitted      g USER LOW HIGH     it is durable
//! C USER               a compaction is asked for    c USER BYTES        it ended; bytes freed
//! ```
//! `read` opens the same store and says what is there: `h USER UID SERIAL`, or `b USER UID why`.

#![expect(
    clippy::print_stdout,
    reason = "its output is the record that the rig compares with the store"
)]

use std::collections::BTreeMap;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ringpost_engine::config::ShardConfig;
use ringpost_engine::limits::FETCH_BYTES_MAX;
use ringpost_engine::mbox::{View, restore};
use ringpost_engine::request::{Event, Fetched, Outcome, Request, Ticket, UidSet, Which};
use ringpost_netproto::id::{MailboxId, Uid};
use ringpost_netproto::placement::UserKey;

use super::letter;
use crate::engine::Engine;

/// Few, so that each is compacted often.
pub(super) const USERS: usize = 6;

/// Messages in flight.
const IN_FLIGHT: usize = 24;

/// With this many messages a user loses half of them.
const CROWDED: usize = 60;

/// Larger ones take another way in, which the other rigs go.
const BYTES_MAX: usize = 100 << 10;

/// What the child does.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Life {
    /// Appends, expunges and compacts until it is stopped.
    Load {
        /// The store; made if it is missing.
        data: PathBuf,
        /// Of the letters.
        seed: u64,
        /// The first serial.
        from: u64,
        /// Ends in order after so many messages.
        #[arg(long)]
        count: Option<u64>,
    },
    /// Says what is in the store.
    Read {
        /// The store.
        data: PathBuf,
        /// Of the letters.
        seed: u64,
    },
}

/// Runs the child.
pub(crate) fn run(life: &Life) -> anyhow::Result<()> {
    match life {
        Life::Load {
            data,
            seed,
            from,
            count,
        } => load(data, *seed, *from, count.unwrap_or(u64::MAX)),
        Life::Read { data, seed } => read(data, *seed),
    }
}

/// Small files and frequent checkpoints: everything happens often.
fn config() -> ShardConfig {
    ShardConfig {
        log_file_bytes: 8 << 20,
        segment_bytes_max: 512 << 10,
        checkpoint_interval_ns: 150_000_000,
        reserve_bytes: 1 << 20,
        compact_bytes_per_s: 64 << 20,
        compact_bytes_min: 4 << 10,
        scrub_interval_ns: Some(1),
        scrub_bytes_per_s: 64 << 20,
        ..ShardConfig::default()
    }
}

/// The serial's message, if it is of the kind that this rig sends.
pub(super) fn content(seed: u64, serial: u64) -> Option<Vec<u8>> {
    let bytes = letter::content(seed, serial);
    (!letter::is_empty(seed, serial) && bytes.len() < BYTES_MAX).then_some(bytes)
}

enum Open {
    Append(usize, u64),
    Expunge(usize, u32, u32),
    Compact(usize),
}

struct Load {
    engine: Engine,
    keys: Vec<UserKey>,
    /// Uids that are there, by user, ascending.
    there: Vec<Vec<u32>>,
    open: BTreeMap<Ticket, Open>,
    appends: usize,
    /// An expunge or a compaction of this user is open.
    busy: Vec<[bool; 2]>,
    out: BufWriter<std::io::Stdout>,
}

/// A user's name.
pub(super) fn user(number: usize) -> String {
    format!("life{number}")
}

fn keys(engine: &Engine) -> anyhow::Result<Vec<UserKey>> {
    (0..USERS)
        .map(|number| engine.user(&user(number)))
        .collect()
}

fn load(data: &Path, seed: u64, from: u64, count: u64) -> anyhow::Result<()> {
    let mut engine = Engine::open(data, &config())?;
    let keys = keys(&engine)?;
    let mut there = Vec::new();
    for key in &keys {
        let entries = engine.list(key)?;
        there.push(entries.iter().map(|entry| entry.uid.value()).collect());
    }
    let mut load = Load {
        engine,
        keys,
        there,
        open: BTreeMap::new(),
        appends: 0,
        busy: vec![[false; 2]; USERS],
        out: BufWriter::new(std::io::stdout()),
    };
    let mut random = fastrand::Rng::with_seed(seed ^ from);
    let mut serial = from;
    let mut sent = 0;
    let mut events = Vec::new();
    loop {
        while load.appends < IN_FLIGHT && sent < count {
            if let Some(bytes) = content(seed, serial) {
                load.append(random.usize(..USERS), serial, &bytes)?;
                sent += 1;
            }
            serial += 1;
        }
        for user in 0..USERS {
            load.thin_out(user, &mut random)?;
        }
        // Whoever reads it knows of everything before the store can have it.
        load.out.flush()?;
        load.engine.poll(&mut events)?;
        for (_, event) in events.drain(..) {
            load.take(event)?;
        }
        load.out.flush()?;
        if sent == count && load.open.is_empty() {
            return load.engine.drain();
        }
        load.engine.wait(Duration::from_millis(5))?;
    }
}

impl Load {
    fn append(&mut self, user: usize, serial: u64, bytes: &[u8]) -> anyhow::Result<()> {
        let Some(key) = self.keys.get(user) else {
            return Ok(());
        };
        let body = self.engine.prepare(bytes)?;
        let request = Engine::append(key, serial, body);
        writeln!(self.out, "s {user} {serial}")?;
        let (_, ticket) = self.engine.submit(key, request)?;
        self.open.insert(ticket, Open::Append(user, serial));
        self.appends += 1;
        Ok(())
    }

    /// Expunges some of a user that has too much, and has it compacted.
    fn thin_out(&mut self, user: usize, random: &mut fastrand::Rng) -> anyhow::Result<()> {
        let (Some(key), Some(there), Some([expunging, compacting])) = (
            self.keys.get(user),
            self.there.get(user),
            self.busy.get_mut(user),
        ) else {
            return Ok(());
        };
        if there.len() >= CROWDED && !*expunging {
            let first = random.usize(..there.len() / 2);
            let last = first + random.usize(1..there.len() / 2);
            if let (Some(&low), Some(&high)) = (there.get(first), there.get(last)) {
                writeln!(self.out, "x {user} {low} {high}")?;
                let request = Request::Expunge {
                    user: key.clone(),
                    mailbox: MailboxId::INBOX,
                    uids: UidSet::range(low, high),
                    which: Which::All,
                };
                let (_, ticket) = self.engine.submit(key, request)?;
                self.open.insert(ticket, Open::Expunge(user, low, high));
                *expunging = true;
            }
        }
        if !*compacting && !there.is_empty() {
            writeln!(self.out, "C {user}")?;
            let request = Request::Compact { user: key.clone() };
            let (_, ticket) = self.engine.submit(key, request)?;
            self.open.insert(ticket, Open::Compact(user));
            *compacting = true;
        }
        Ok(())
    }

    fn take(&mut self, event: Event) -> anyhow::Result<()> {
        let open = crate::engine::ticket_of(&event).and_then(|ticket| self.open.remove(&ticket));
        match (open, event) {
            (Some(Open::Append(user, serial)), Event::Appended { outcomes, .. }) => {
                self.appends -= 1;
                match outcomes.first() {
                    Some(Outcome::Stored { uid, .. } | Outcome::Duplicate { uid, .. }) => {
                        let uid = uid.value();
                        writeln!(self.out, "k {user} {uid} {serial}")?;
                        if let Some(there) = self.there.get_mut(user) {
                            there.push(uid);
                        }
                    }
                    other => writeln!(self.out, "r {user} {serial} {other:?}")?,
                }
            }
            (Some(Open::Expunge(user, low, high)), Event::Expunged { result, .. }) => {
                result.map_err(|refused| anyhow::anyhow!("no expunge: {refused}"))?;
                writeln!(self.out, "g {user} {low} {high}")?;
                if let Some(there) = self.there.get_mut(user) {
                    there.retain(|uid| !(low..=high).contains(uid));
                }
                if let Some([expunging, _]) = self.busy.get_mut(user) {
                    *expunging = false;
                }
            }
            (Some(Open::Compact(user)), Event::Compacted { result, .. }) => {
                let freed = result.map_or(0, |done| done.freed_bytes);
                writeln!(self.out, "c {user} {freed}")?;
                if let Some([_, compacting]) = self.busy.get_mut(user) {
                    *compacting = false;
                }
            }
            (None, Event::Notice(notice)) => {
                let said = format!("{notice:?}");
                let bad = said.starts_with("Damaged") || said.starts_with("Corrupt");
                // A disk that is gone answers EIO.
                if bad && !said.contains("errno: 5 }") {
                    writeln!(self.out, "n {said}")?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn read(data: &Path, seed: u64) -> anyhow::Result<()> {
    let mut engine = Engine::open(data, &config())?;
    for (user, key) in keys(&engine)?.iter().enumerate() {
        for entry in engine.list(key)? {
            let uid = entry.uid.value();
            match fetch(&mut engine, key, entry.uid)? {
                Ok(fetched) => {
                    let bytes = restore(&fetched.stored, fetched.format_flags, View::AsReceived);
                    match letter::serial(seed, &bytes) {
                        Some(serial) if letter::content(seed, serial) == bytes => {
                            println!("h {user} {uid} {serial}");
                        }
                        _ => println!("b {user} {uid} other bytes than were sent"),
                    }
                }
                Err(refused) => println!("b {user} {uid} {refused}"),
            }
        }
    }
    engine.drain()
}

fn fetch(
    engine: &mut Engine,
    key: &UserKey,
    uid: Uid,
) -> anyhow::Result<Result<Fetched, ringpost_engine::request::Refused>> {
    let request = Request::Fetch {
        user: key.clone(),
        mailbox: MailboxId::INBOX,
        uid,
        stored_offset: 0,
        bytes_max: FETCH_BYTES_MAX,
    };
    match engine.ask(key, request)? {
        Event::Fetched { result, .. } => Ok(result),
        other => anyhow::bail!("another answer than a message: {other:?}"),
    }
}
