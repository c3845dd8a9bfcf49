//! Letters between cores: a bounded single-producer single-consumer queue per ordered pair, and an
//! eventfd that wakes a receiver only if it sleeps (storage.md 11).
//!
//! A letter never waits in [`Endpoint::send`]: if the queue is full it goes to the sender's own
//! overflow, which [`Endpoint::flush`] empties as the receiver makes room. The overflow is bounded by
//! what the sender has open; whoever produces more asks [`Endpoint::backlog`] and stops reading
//! sockets. Order within a pair is kept.
//!
//! The wake-up: a receiver sets `parked`, fences, looks once more and then sleeps; a sender pushes,
//! fences, and writes the eventfd only if it took `parked` back. One of both sees the other. The same
//! handshake in the other direction (`hungry`) tells a sender that its full queue has room.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use rtrb::{Consumer, Producer, PushError, RingBuffer};

/// Letters in one queue (Seastar's figure).
const LETTERS_MAX: usize = 128;

/// How an endpoint is woken.
#[derive(Debug)]
pub struct Wake {
    parked: AtomicBool,
    event: EventFd,
}

impl AsRawFd for Wake {
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

impl Wake {
    fn new() -> nix::Result<Arc<Self>> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Arc::new(Self {
            parked: AtomicBool::new(false),
            event,
        }))
    }

    /// Wakes the receiver if it sleeps, or is about to.
    fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.parked.load(Ordering::Relaxed) && self.parked.swap(false, Ordering::SeqCst) {
            // EAGAIN: the counter is full, so the receiver is awake in any case.
            let result = self.event.write(1);
            assert!(
                matches!(result, Ok(_) | Err(Errno::EAGAIN)),
                "eventfd: {result:?}"
            );
        }
    }

    /// Takes the wake-ups that came. Called when the eventfd is readable.
    pub fn clear(&self) {
        let result = self.event.read();
        assert!(
            matches!(result, Ok(_) | Err(Errno::EAGAIN)),
            "eventfd: {result:?}"
        );
    }
}

struct Out<T> {
    ring: Producer<T>,
    overflow: VecDeque<T>,
    /// Set by the sender when the ring was full; taken by the receiver when it made room.
    hungry: Arc<AtomicBool>,
    peer: Arc<Wake>,
}

struct In<T> {
    ring: Consumer<T>,
    hungry: Arc<AtomicBool>,
    peer: Arc<Wake>,
}

/// One thread's end of the mesh.
pub struct Endpoint<T> {
    index: usize,
    outs: Vec<Option<Out<T>>>,
    ins: Vec<Option<In<T>>>,
    wake: Arc<Wake>,
}

impl<T> std::fmt::Debug for Endpoint<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint")
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

/// Makes `count` endpoints, each connected with every other.
pub fn mesh<T>(count: usize) -> nix::Result<Vec<Endpoint<T>>> {
    let wakes: Vec<_> = (0..count).map(|_| Wake::new()).collect::<Result<_, _>>()?;
    let mut ends: Vec<_> = wakes
        .iter()
        .enumerate()
        .map(|(index, wake)| Endpoint {
            index,
            outs: (0..count).map(|_| None).collect(),
            ins: (0..count).map(|_| None).collect(),
            wake: Arc::clone(wake),
        })
        .collect();
    for from in 0..count {
        for to in (0..count).filter(|to| *to != from) {
            let (producer, consumer) = RingBuffer::new(LETTERS_MAX);
            let hungry = Arc::new(AtomicBool::new(false));
            let wake_of = |index: usize| Arc::clone(wakes.get(index).expect("below count"));
            let out = Out {
                ring: producer,
                overflow: VecDeque::new(),
                hungry: Arc::clone(&hungry),
                peer: wake_of(to),
            };
            let inward = In {
                ring: consumer,
                hungry,
                peer: wake_of(from),
            };
            *slot(&mut ends, from, to) = Some(out);
            let receiver = ends.get_mut(to).and_then(|end| end.ins.get_mut(from));
            *receiver.expect("below count") = Some(inward);
        }
    }
    Ok(ends)
}

fn slot<T>(ends: &mut [Endpoint<T>], from: usize, to: usize) -> &mut Option<Out<T>> {
    ends.get_mut(from)
        .and_then(|end| end.outs.get_mut(to))
        .expect("below count")
}

impl<T> Endpoint<T> {
    /// Which one this is.
    pub const fn index(&self) -> usize {
        self.index
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.outs.len()
    }

    /// For waiting until it is readable.
    pub fn wake_handle(&self) -> Arc<Wake> {
        Arc::clone(&self.wake)
    }

    fn out(&mut self, to: usize) -> &mut Out<T> {
        let out = self.outs.get_mut(to).and_then(Option::as_mut);
        out.expect("another endpoint of this mesh")
    }

    /// Sends a letter to another endpoint.
    pub fn send(&mut self, to: usize, letter: T) {
        let out = self.out(to);
        if out.overflow.is_empty() {
            match out.ring.push(letter) {
                Ok(()) => out.peer.wake(),
                Err(PushError::Full(letter)) => {
                    out.overflow.push_back(letter);
                    out.flush();
                }
            }
        } else {
            out.overflow.push_back(letter);
        }
    }

    /// Moves what did not fit into queues that have room again.
    pub fn flush(&mut self) {
        self.outs
            .iter_mut()
            .flatten()
            .filter(|out| !out.overflow.is_empty())
            .for_each(Out::flush);
    }

    /// Letters that wait because the receiver is behind.
    pub fn backlog(&self) -> usize {
        self.outs
            .iter()
            .flatten()
            .map(|out| out.overflow.len())
            .sum()
    }

    /// Appends the letters that came to `into`, at most one queue's worth from each sender.
    pub fn receive(&mut self, into: &mut Vec<(usize, T)>) {
        for (from, inward) in self.ins.iter_mut().enumerate() {
            let Some(inward) = inward else { continue };
            let mut count = 0;
            while count < LETTERS_MAX {
                let Ok(letter) = inward.ring.pop() else { break };
                into.push((from, letter));
                count += 1;
            }
            if count > 0 {
                fence(Ordering::SeqCst);
                if inward.hungry.load(Ordering::Relaxed)
                    && inward.hungry.swap(false, Ordering::SeqCst)
                {
                    inward.peer.wake();
                }
            }
        }
    }

    /// Announces sleep. True: nothing is there, wait for the eventfd. False: receive and flush.
    pub fn park(&mut self) -> bool {
        self.wake.parked.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let arrived = self
            .ins
            .iter()
            .flatten()
            .any(|inward| !inward.ring.is_empty());
        let room = self
            .outs
            .iter()
            .flatten()
            .any(|out| !out.overflow.is_empty() && !out.hungry.load(Ordering::SeqCst));
        if arrived || room {
            self.wake.parked.store(false, Ordering::SeqCst);
        }
        !(arrived || room)
    }
}

impl<T> Out<T> {
    fn flush(&mut self) {
        let mut pushed = false;
        while let Some(letter) = self.overflow.pop_front() {
            match self.ring.push(letter) {
                Ok(()) => pushed = true,
                Err(PushError::Full(letter)) => {
                    self.overflow.push_front(letter);
                    if self.hungry.swap(true, Ordering::SeqCst) {
                        break;
                    }
                    // Room that was made before `hungry` stood is seen by this second try.
                    fence(Ordering::SeqCst);
                }
            }
        }
        if pushed {
            self.peer.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::thread;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    /// Sleeps as a core does; a wake-up that is lost shows as a time-out.
    fn sleep<T>(end: &mut Endpoint<T>) {
        if end.park() {
            let wake = end.wake_handle();
            let mut fds = [PollFd::new(wake.event.as_fd(), PollFlags::POLLIN)];
            let ready = poll(&mut fds, PollTimeout::from(10_000_u16)).expect("poll works");
            assert_eq!(ready, 1, "a wake-up was lost");
            wake.clear();
        }
    }

    /// Sends `count` letters to each other endpoint in bursts, receives as many from each.
    fn exchange(mut end: Endpoint<u64>, count: u64) {
        let me = end.index();
        let others: Vec<_> = (0..end.count()).filter(|other| *other != me).collect();
        let mut sent = 0;
        let mut expected = vec![0; end.count()];
        let mut letters = Vec::new();
        loop {
            let burst = 1 + sent * 7 % 300;
            for _ in 0..burst.min(count - sent) {
                for other in &others {
                    end.send(*other, sent);
                }
                sent += 1;
            }
            end.flush();
            end.receive(&mut letters);
            for (from, letter) in letters.drain(..) {
                assert_eq!(letter, expected[from], "in order, none lost");
                expected[from] += 1;
            }
            let all = others.iter().all(|other| expected[*other] == count);
            if sent == count {
                if all && end.backlog() == 0 {
                    return;
                }
                sleep(&mut end);
            }
        }
    }

    #[test]
    fn letters_arrive_in_order_and_no_wake_up_is_lost() {
        let ends = mesh(3).expect("eventfds");
        let threads: Vec<_> = ends
            .into_iter()
            .map(|end| thread::spawn(move || exchange(end, 100_000)))
            .collect();
        for thread in threads {
            thread.join().expect("no assertion failed");
        }
    }

    #[test]
    fn a_full_queue_keeps_letters_until_there_is_room() {
        let mut ends = mesh(2).expect("eventfds");
        let mut receiver = ends.pop().expect("two");
        let mut sender = ends.pop().expect("two");
        for letter in 0..300 {
            sender.send(1, letter);
        }
        assert_eq!(sender.backlog(), 300 - LETTERS_MAX);
        assert!(sender.park(), "a full queue is waited for");
        let mut letters = Vec::new();
        receiver.receive(&mut letters);
        assert_eq!(letters.len(), LETTERS_MAX);
        assert_eq!(sender.wake.event.read(), Ok(1), "woken since there is room");
        sender.flush();
        receiver.receive(&mut letters);
        sender.flush();
        receiver.receive(&mut letters);
        let got: Vec<_> = letters.into_iter().map(|(_, letter)| letter).collect();
        assert_eq!(got, (0..300).collect::<Vec<_>>());
        assert!(receiver.park());
        sender.send(1, 300);
        assert_eq!(receiver.wake.event.read(), Ok(1));
    }
}
