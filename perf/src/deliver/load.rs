//! The generator's loop: one thread, epoll over nonblocking sockets, a timer for what is due.
//!
//! It shares two cores with the daemon under test, so it must be cheap: letters are made before, a
//! turn asks the clock once, and many messages go out in one write. It never spins: a spinning
//! generator would take the core that the daemon needs.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::link::{Blocked, Link, READ_BYTES};
use super::plan::{Plan, Serials};
use super::session::{Answer, Mail, Outcome};
use super::tally::{Tally, Watched};
use crate::letters::Letters;
use crate::schedule::Arrivals;

const TIMER_TOKEN: u64 = u64::MAX;

/// Threads have serial numbers of their own: their number stands in the highest byte.
const SERIAL_THREAD_SHIFT: u32 = 56;

/// A thread's part of the load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    /// Which thread, from 0.
    pub(crate) thread: usize,
    /// How many there are.
    pub(crate) threads: usize,
    /// Messages in flight of this thread.
    pub(crate) places: usize,
}

/// A message under way, or a free place for one.
#[derive(Debug, Default)]
struct Place {
    /// The message; `None` if the place is free.
    sealed: Option<Bytes>,
    /// Which letter it is.
    letter: usize,
    serial: u64,
    due: Duration,
    /// Users not answered yet.
    recipients: Vec<Option<usize>>,
    waiting: usize,
    failed: usize,
}

struct Port {
    link: Link,
    alive: bool,
    dirty: bool,
    asks_writable: bool,
}

struct Worker<'a> {
    plan: &'a Plan,
    share: Share,
    ports: Vec<Port>,
    epoll: Epoll,
    timer: TimerFd,
    armed: Option<Duration>,
    begin: Instant,
    arrivals: Option<Arrivals>,
    random: fastrand::Rng,
    letters: Letters,
    places: Vec<Place>,
    free: VecDeque<usize>,
    drawn: Vec<usize>,
    bytes_sent: u64,
    tally: Tally,
}

/// Runs a thread's share over greeted links, place `i` on link `i` modulo their count, and returns
/// its account. A broken connection is an error in the account; `Err` is a fault of this machine.
pub(crate) fn run(
    plan: &Plan,
    share: Share,
    links: Vec<Link>,
    begin: Instant,
) -> anyhow::Result<Tally> {
    let mut worker = Worker::new(plan, share, links, begin)?;
    let mut buffer = vec![0; READ_BYTES];
    let mut answers = Vec::new();
    let mut events = vec![EpollEvent::empty(); 256];
    loop {
        let elapsed = begin.elapsed();
        let more = worker.start_due(elapsed);
        worker.flush()?;
        if worker.is_over(elapsed) {
            break;
        }
        worker.arm(more, elapsed)?;
        let count = match worker.epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(errno).context("cannot wait for sockets"),
        };
        for event in events.iter().take(count) {
            worker.on_event(*event, &mut buffer, &mut answers);
        }
    }
    Ok(worker.close())
}

/// Why no message is started now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    /// An answer has to come first, or the run has ended.
    Answer,
    /// The next is due at this time.
    Due(Duration),
}

impl<'a> Worker<'a> {
    fn new(plan: &'a Plan, share: Share, links: Vec<Link>, begin: Instant) -> anyhow::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("cannot make an epoll")?;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC)
            .context("cannot make a timer")?;
        epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, TIMER_TOKEN))?;
        for (index, link) in links.iter().enumerate() {
            let token = u64::try_from(index)?;
            epoll.add(link, EpollEvent::new(EpollFlags::EPOLLIN, token))?;
        }
        let port = |link| Port {
            link,
            alive: true,
            dirty: false,
            asks_writable: false,
        };
        let thread = u64::try_from(share.thread)?;
        let seed = plan
            .seed
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .wrapping_add(thread);
        Ok(Self {
            plan,
            share,
            ports: links.into_iter().map(port).collect(),
            epoll,
            timer,
            armed: None,
            begin,
            arrivals: Arrivals::new(plan.pace, u32::try_from(share.threads)?, seed),
            random: fastrand::Rng::with_seed(seed),
            letters: plan.letters(share.thread, share.places)?,
            places: (0..share.places).map(|_| Place::default()).collect(),
            free: (0..share.places).collect(),
            drawn: Vec::new(),
            bytes_sent: 0,
            tally: Tally::new(plan.users.count()),
        })
    }

    /// Starts all that is due and finds a place.
    fn start_due(&mut self, elapsed: Duration) -> Next {
        if elapsed >= self.plan.end() || self.tally.capped {
            return Next::Answer;
        }
        let mut full = Vec::new();
        let mut next = Next::Answer;
        while let Some(slot) = self.free.pop_front() {
            match self.room(slot) {
                None => continue,
                Some(0) => {
                    full.push(slot);
                    continue;
                }
                Some(_) => {}
            }
            let due = match &mut self.arrivals {
                None => elapsed,
                Some(arrivals) => {
                    let Some(due) = arrivals.take(elapsed) else {
                        next = Next::Due(arrivals.peek());
                        full.push(slot);
                        break;
                    };
                    due
                }
            };
            self.start(slot, due, elapsed);
            if self.tally.capped {
                break;
            }
        }
        self.free.extend(full);
        next
    }

    /// Room on the link of a place; `None` if the link is gone.
    fn room(&self, slot: usize) -> Option<usize> {
        let port = self.ports.get(slot % self.ports.len())?;
        port.alive.then(|| port.link.room())
    }

    fn start(&mut self, slot: usize, due: Duration, elapsed: Duration) {
        let index = slot % self.ports.len();
        let (Some(place), Some(port)) = (self.places.get_mut(slot), self.ports.get_mut(index))
        else {
            return;
        };
        let thread = u64::try_from(self.share.thread).unwrap_or(0) << SERIAL_THREAD_SHIFT;
        place.serial = match self.plan.serials {
            Serials::Fresh => thread | self.tally.sent,
            Serials::Repeated => thread,
        };
        self.plan
            .draw(self.tally.sent, &mut self.random, &mut self.drawn);
        place.recipients.clear();
        place
            .recipients
            .extend(self.drawn.iter().copied().map(Some));
        place.waiting = self.drawn.len();
        place.failed = 0;
        place.due = due;
        let (letter, bytes) = self.letters.seal(place.serial, &mut self.random);
        place.letter = letter;
        place.sealed = Some(bytes.clone());
        self.bytes_sent += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let mail = Mail {
            slot,
            bytes,
            recipients: &self.drawn,
            users: &self.plan.users,
        };
        let submitted = port.link.submit(&mail);
        port.dirty = true;
        self.tally.sent += 1;
        self.tally.late_max = self.tally.late_max.max(elapsed.saturating_sub(due));
        let threads = u64::try_from(self.share.threads).unwrap_or(1);
        self.tally.capped = self.bytes_sent >= self.plan.bytes_max / threads;
        if let Err(error) = submitted {
            self.lose(index, &format!("{error:#}"));
        }
    }

    /// Writes to every link that has something, and asks for writability where it is blocked.
    fn flush(&mut self) -> anyhow::Result<()> {
        for index in 0..self.ports.len() {
            let Some(port) = self.ports.get_mut(index) else {
                break;
            };
            if !port.alive || !std::mem::take(&mut port.dirty) {
                continue;
            }
            let blocked = match port.link.flush() {
                Ok(blocked) => blocked == Blocked::Yes,
                Err(error) => {
                    self.lose(index, &format!("{error:#}"));
                    continue;
                }
            };
            if port.asks_writable != blocked {
                port.asks_writable = blocked;
                let mut flags = EpollFlags::EPOLLIN;
                flags.set(EpollFlags::EPOLLOUT, blocked);
                let mut event = EpollEvent::new(flags, u64::try_from(index)?);
                self.epoll
                    .modify(&port.link, &mut event)
                    .context("cannot watch a socket")?;
            }
        }
        Ok(())
    }

    fn is_over(&self, elapsed: Duration) -> bool {
        let ended = elapsed >= self.plan.end() || self.tally.capped;
        let idle = self.places.iter().all(|place| place.sealed.is_none());
        let gone = self.ports.iter().all(|port| !port.alive);
        gone || (ended && (idle || elapsed >= self.plan.end().saturating_add(self.plan.drain_max)))
    }

    /// Sets the timer to the next moment at which something is to be done without an answer.
    fn arm(&mut self, next: Next, elapsed: Duration) -> anyhow::Result<()> {
        let end = self.plan.end();
        let wake = if elapsed >= end || self.tally.capped {
            end.saturating_add(self.plan.drain_max)
        } else if let Next::Due(due) = next {
            due.min(end)
        } else if self.plan.window.opening().is_none() {
            // Somebody may open it while no answer comes: the end is looked at each second.
            Duration::from_secs(elapsed.as_secs() + 1)
        } else {
            end
        };
        if self.armed == Some(wake) {
            return Ok(());
        }
        // 0 would disarm it.
        let left = wake
            .saturating_sub(self.begin.elapsed())
            .max(Duration::from_nanos(1));
        let expiration = Expiration::OneShot(TimeSpec::from(left));
        self.timer
            .set(expiration, TimerSetTimeFlags::empty())
            .context("cannot set a timer")?;
        self.armed = Some(wake);
        Ok(())
    }

    fn on_event(&mut self, event: EpollEvent, buffer: &mut [u8], answers: &mut Vec<Answer>) {
        if event.data() == TIMER_TOKEN {
            // It stays readable until it is set again, which the next turn does.
            self.armed = None;
            return;
        }
        let index = usize::try_from(event.data()).unwrap_or(usize::MAX);
        let Some(port) = self.ports.get_mut(index).filter(|port| port.alive) else {
            return;
        };
        port.dirty = true;
        let received = port.link.receive(buffer, answers);
        let elapsed = self.begin.elapsed();
        for answer in answers.drain(..) {
            self.on_answer(&answer, elapsed);
        }
        if let Err(error) = received {
            self.lose(index, &format!("{error:#}"));
        }
    }

    fn on_answer(&mut self, answer: &Answer, elapsed: Duration) {
        let Some(place) = self.places.get_mut(answer.slot) else {
            return;
        };
        let user = place
            .recipients
            .get_mut(answer.recipient)
            .and_then(Option::take);
        let Some(user) = user else {
            self.tally
                .count_error("an answer to nothing that was asked", 1);
            return;
        };
        let to = Watched {
            user,
            letter: place.letter,
            serial: place.serial,
        };
        self.tally
            .count_recipient(self.plan, to, &answer.outcome, elapsed);
        place.failed += usize::from(!self.plan.is_success(&answer.outcome));
        place.waiting -= 1;
        if place.waiting == 0 {
            if place.failed == 0 {
                self.tally.count_message(self.plan, place.due, elapsed);
            }
            if let Some(sealed) = place.sealed.take() {
                self.letters.put_back(place.letter, sealed);
            }
            self.free.push_back(answer.slot);
        }
    }

    /// A connection is gone: what was under way on it is in doubt, its places are not used again.
    fn lose(&mut self, index: usize, why: &str) {
        if let Some(port) = self.ports.get_mut(index) {
            port.alive = false;
            // It fails only if the descriptor is not watched, which is as good.
            self.epoll.delete(&port.link).ok();
        }
        let step = self.ports.len();
        for slot in (index..self.places.len()).step_by(step) {
            self.give_up(slot, why);
        }
    }

    fn give_up(&mut self, slot: usize, why: &str) {
        let Some(place) = self.places.get_mut(slot) else {
            return;
        };
        let Some(sealed) = place.sealed.take() else {
            return;
        };
        self.letters.put_back(place.letter, sealed);
        let refused = Outcome::Refused(why.to_owned());
        for user in place.recipients.drain(..).flatten() {
            let to = Watched {
                user,
                letter: place.letter,
                serial: place.serial,
            };
            self.tally
                .count_recipient(self.plan, to, &refused, Duration::MAX);
        }
    }

    fn close(mut self) -> Tally {
        let why = format!("no answer within {:?} after the run", self.plan.drain_max);
        for slot in 0..self.places.len() {
            self.give_up(slot, &why);
        }
        let elapsed = self.begin.elapsed();
        self.tally.count_overdue(self.plan, self.arrivals, elapsed);
        self.tally.close(self.letters.into_all());
        self.tally
    }
}

#[cfg(test)]
mod tests;
