//! One thread, many connections, and a moment at which the ground is pulled away.
//!
//! After the cut the loop goes on until every connection is dead: an answer that was written before
//! the end still counts, and whoever forgets it makes a lost message look like one in doubt.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::ledger::{Duplicate, Ledger};
use super::letter::{self, Door};
use crate::address::Address;
use crate::daemon::Doors;
use crate::deliver::link::{Blocked, Link, READ_BYTES};
use crate::deliver::lmtp::{LmtpSession, Transfer};
use crate::deliver::node::NodeSession;
use crate::deliver::session::{Answer, Mail, Outcome};
use crate::workload::Users;

/// Messages in flight on a connection of the node protocol; LMTP has one.
const NODE_IN_FLIGHT_MAX: usize = 4;

/// For the handshake of one connection.
const GREETING_MAX: Duration = Duration::from_secs(20);

/// What is to be sent over a door.
#[derive(Debug)]
pub(crate) struct Letter {
    /// Its number, and so its bytes and its door.
    pub(crate) serial: u64,
    /// Users by number.
    pub(crate) recipients: Vec<usize>,
}

/// Where the letters of a load come from and where their answers go.
pub(crate) trait Post {
    /// The next letter for this door; `None` if there is none (any more).
    fn next(&mut self, door: Door) -> Option<Letter>;

    /// What became of one recipient. A letter without an answer is in doubt.
    fn answered(&mut self, letter: &Letter, position: usize, outcome: &Outcome);
}

struct Connection {
    link: Link,
    door: Door,
    letters: BTreeMap<usize, Waiting>,
    next_slot: usize,
    blocked: Blocked,
    writable: Writable,
}

/// Whether the peer still takes bytes. If not, what it said before may still be in the socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Writable {
    Yes,
    No,
}

struct Waiting {
    letter: Letter,
    answers_left: usize,
}

/// The connections of one load.
pub(crate) struct Load<'a> {
    seed: u64,
    users: &'a Users,
    connections: Vec<Connection>,
    buffer: Vec<u8>,
}

/// Why a load ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// Nothing more to send and every letter answered.
    Idle,
    /// The deadline came.
    Deadline,
    /// The last connection died.
    AllDead,
}

impl<'a> Load<'a> {
    /// `count` connections, half of them to each door.
    pub(crate) fn connect(
        doors: &Doors,
        seed: u64,
        users: &'a Users,
        count: usize,
    ) -> anyhow::Result<Self> {
        let mut connections = Vec::with_capacity(count);
        for number in 0..count {
            let (door, path, session): (_, _, Box<dyn crate::deliver::session::Session>) =
                if number.is_multiple_of(2) {
                    (Door::Node, &doors.node, Box::new(NodeSession::new()))
                } else {
                    let session = LmtpSession::new(if number % 4 == 1 {
                        Transfer::Data
                    } else {
                        Transfer::Bdat
                    });
                    (Door::Lmtp, &doors.lmtp, Box::new(session))
                };
            let mut link = Link::connect(&Address::from(path.as_path()), session)?;
            link.greet(GREETING_MAX)?;
            connections.push(Connection {
                link,
                door,
                letters: BTreeMap::new(),
                next_slot: 0,
                blocked: Blocked::No,
                writable: Writable::Yes,
            });
        }
        Ok(Self {
            seed,
            users,
            connections,
            buffer: vec![0; READ_BYTES],
        })
    }

    /// Sends and receives until one of the ends. May be called again after `Deadline`.
    pub(crate) fn run(&mut self, post: &mut impl Post, deadline: Instant) -> anyhow::Result<End> {
        loop {
            self.send(post)?;
            if self.connections.is_empty() {
                return Ok(End::AllDead);
            }
            if self.connections.iter().all(|one| one.letters.is_empty()) {
                return Ok(End::Idle);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(End::Deadline);
            }
            self.wait(left)?;
            self.receive(post)?;
        }
    }

    fn send(&mut self, post: &mut impl Post) -> anyhow::Result<()> {
        let (seed, users) = (self.seed, self.users);
        let open = |connection: &&mut Connection| connection.writable == Writable::Yes;
        for connection in self.connections.iter_mut().filter(open) {
            while connection.link.room() > 0 && connection.letters.len() < NODE_IN_FLIGHT_MAX {
                let Some(letter) = post.next(connection.door) else {
                    break;
                };
                ensure!(
                    Door::of(letter.serial) == connection.door,
                    "letter {} went to the wrong door",
                    letter.serial
                );
                let mail = Mail {
                    slot: connection.next_slot,
                    bytes: Bytes::from(letter::content(seed, letter.serial)),
                    recipients: &letter.recipients,
                    users,
                };
                connection.link.submit(&mail)?;
                let answers_left = letter.recipients.len();
                connection.letters.insert(
                    connection.next_slot,
                    Waiting {
                        letter,
                        answers_left,
                    },
                );
                connection.next_slot += 1;
            }
            if let Ok(blocked) = connection.link.flush() {
                connection.blocked = blocked;
            } else {
                connection.writable = Writable::No;
                connection.blocked = Blocked::No;
            }
        }
        Ok(())
    }

    fn wait(&self, patience: Duration) -> anyhow::Result<()> {
        let mut fds: Vec<PollFd<'_>> = self
            .connections
            .iter()
            .map(|connection| {
                let mut interest = PollFlags::POLLIN;
                interest.set(PollFlags::POLLOUT, connection.blocked == Blocked::Yes);
                PollFd::new(connection.link.as_fd(), interest)
            })
            .collect();
        let timeout = PollTimeout::try_from(patience + Duration::from_millis(1));
        match poll(&mut fds, timeout.unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno).context("cannot poll"),
        }
    }

    fn receive(&mut self, post: &mut impl Post) -> anyhow::Result<()> {
        let mut index = 0;
        while let Some(connection) = self.connections.get_mut(index) {
            match receive(connection, &mut self.buffer, post)? {
                Life::Alive => index += 1,
                Life::Dead => drop(self.connections.swap_remove(index)),
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Life {
    Alive,
    Dead,
}

/// Takes what is there. An answer to nothing is a fault of the server, not of the connection.
fn receive(
    connection: &mut Connection,
    buffer: &mut [u8],
    post: &mut impl Post,
) -> anyhow::Result<Life> {
    let mut answers: Vec<Answer> = Vec::new();
    let received = connection.link.receive(buffer, &mut answers);
    for answer in answers {
        let waiting = connection
            .letters
            .get_mut(&answer.slot)
            .context("an answer to a letter that has all its answers")?;
        post.answered(&waiting.letter, answer.recipient, &answer.outcome);
        waiting.answers_left = waiting
            .answers_left
            .checked_sub(1)
            .context("more answers than recipients")?;
        if waiting.answers_left == 0 {
            connection.letters.remove(&answer.slot);
        }
    }
    Ok(if received.is_ok() {
        Life::Alive
    } else {
        Life::Dead
    })
}

/// Turns an outcome into a fact for the ledger: `None` is doubt.
pub(crate) fn positive(outcome: &Outcome) -> Option<Duplicate> {
    match outcome {
        Outcome::Stored => Some(Duplicate::No),
        Outcome::Duplicate => Some(Duplicate::Yes),
        Outcome::Refused(_) => None,
    }
}

/// New letters without end, to users drawn by seed.
pub(crate) struct Fresh<'a> {
    /// Where they are noted.
    pub(crate) ledger: &'a mut Ledger,
    /// Draws recipients.
    pub(crate) random: &'a mut fastrand::Rng,
    /// The next serial of each door, even and odd.
    pub(crate) serials: &'a mut [u64; 2],
    /// Users that may be drawn.
    pub(crate) users_count: usize,
    /// "Later" was the answer, with the first reasons.
    pub(crate) refusals: &'a mut BTreeMap<String, u64>,
    /// After so many more refusals nothing new is sent: a dying daemon refuses as fast as it can, and
    /// each of these would have to be sent again.
    pub(crate) refusals_left: u64,
}

impl Post for Fresh<'_> {
    fn next(&mut self, door: Door) -> Option<Letter> {
        if self.refusals_left == 0 {
            return None;
        }
        let place = usize::from(door == Door::Lmtp);
        let serial = *self.serials.get(place)?;
        *self.serials.get_mut(place)? += 2;
        // One letter in ten goes to several users.
        let count = if self.random.u8(..10) == 0 {
            self.random.usize(2..=8)
        } else {
            1
        };
        let first = self.random.usize(..self.users_count);
        let recipients: Vec<usize> = (0..count.min(self.users_count))
            .map(|step| (first + step * 7) % self.users_count)
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect();
        self.ledger.sent(serial, &recipients);
        Some(Letter { serial, recipients })
    }

    fn answered(&mut self, letter: &Letter, position: usize, outcome: &Outcome) {
        match (positive(outcome), outcome) {
            (Some(duplicate), _) => self.ledger.acknowledged(letter.serial, position, duplicate),
            (None, Outcome::Refused(why)) => {
                *self.refusals.entry(why.clone()).or_default() += 1;
                self.refusals_left = self.refusals_left.saturating_sub(1);
            }
            (None, _) => {}
        }
    }
}

/// Letters that were sent before, each until it is taken.
pub(crate) struct Again<'a> {
    /// Where the answers are noted.
    pub(crate) ledger: &'a mut Ledger,
    /// What is left, by door.
    pub(crate) node: Vec<Letter>,
    /// As `node`.
    pub(crate) lmtp: Vec<Letter>,
    /// Letters that were refused this time.
    pub(crate) refused: BTreeMap<u64, (Vec<usize>, String)>,
}

impl Post for Again<'_> {
    fn next(&mut self, door: Door) -> Option<Letter> {
        match door {
            Door::Node => self.node.pop(),
            Door::Lmtp => self.lmtp.pop(),
        }
    }

    fn answered(&mut self, letter: &Letter, position: usize, outcome: &Outcome) {
        match (positive(outcome), outcome) {
            (Some(duplicate), _) => self.ledger.retried(letter.serial, position, duplicate),
            (None, Outcome::Refused(why)) => {
                let left = (letter.recipients.clone(), why.clone());
                self.refused.insert(letter.serial, left);
            }
            (None, _) => {}
        }
    }
}
