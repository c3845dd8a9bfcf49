//! A ring begins what was submitted only when it is polled, and wakes nobody before. So a shard may
//! not leave anything submitted and not polled, unless it asks to be polled again at once.

mod testkit;

use std::cell::Cell;
use std::rc::Rc;

use ringpost_engine::Shard;
use ringpost_engine::config::ShardConfig;
use ringpost_engine::io::sim::{SimConfig, SimIo};
use ringpost_engine::io::{AlignedBuf, Completion, Io, Op, Token};
use ringpost_engine::request::{Body, Event, Request};
use testkit::{Bench, empty_disk, identity, message, now_of, prepare};

/// Counts what was submitted since the last poll.
struct Queued {
    inner: SimIo,
    queued: Rc<Cell<usize>>,
}

impl Io for Queued {
    fn submit(&mut self, op: Op, token: Token) -> Result<(), Op> {
        self.inner.submit(op, token)?;
        self.queued.set(self.queued.get() + 1);
        Ok(())
    }

    fn poll(&mut self, out: &mut Vec<Completion>) {
        self.queued.set(0);
        self.inner.poll(out);
    }

    fn wait(&mut self) {
        self.queued.set(0);
        self.inner.wait();
    }

    fn log_bufs(&mut self, count: usize, bytes: usize) -> Vec<AlignedBuf> {
        self.inner.log_bufs(count, bytes)
    }
}

#[test]
fn no_op_waits_for_somebody_elses_wake_up() {
    let disk = empty_disk(SimConfig::new(1));
    let queued = Rc::new(Cell::new(0));
    let io = Queued {
        inner: disk.io(),
        queued: Rc::clone(&queued),
    };
    let config = ShardConfig::tiny();
    let opened = Shard::open(io, identity(0, 1), config, [5; 16], now_of(&disk));
    let mut shard = opened.expect("an empty store opens");
    let mut events = Vec::new();
    for number in 1..200 {
        let body = Body::Small(prepare(&message(number, 400)));
        let group = Bench::group(&["bob", "alice"], number, body);
        let now = now_of(&disk);
        shard.submit(now, Request::Append(group)).expect("taken");
        let mut answered = false;
        for _turn in 0..10_000 {
            let now = now_of(&disk);
            // As the daemon does: gather first, then seal.
            shard.poll_and_gather(now, &mut events);
            shard.poll(now, &mut events);
            let due = shard.next_deadline().is_some_and(|at| at <= now.monotonic);
            assert!(queued.get() == 0 || due, "{} ops not begun", queued.get());
            answered |= events
                .drain(..)
                .any(|event| matches!(event, Event::Appended { .. }));
            if answered {
                break;
            }
            let to = disk.next_due_ns().expect("something is in flight");
            disk.advance(to.saturating_sub(disk.now_ns()).max(1));
        }
        assert!(answered, "message {number} was not answered");
    }
}
