//! Moves bytes between a socket and a session; nothing else.
//!
//! Each connection has two tasks: one reads and gives the session what came, one writes what the
//! session has to say. Neither ever drops an operation in flight. A time-out, and the end of the
//! daemon, is a `shutdown(2)`, which ends both. The reader waits while the session says so: its peer
//! does not read replies, or the disk is behind.

use std::cell::Cell;
use std::net::Shutdown;
use std::rc::Rc;

use bytes::Bytes;
use ringpost_engine::request::MonotonicNs;
use tokio::sync::Notify;

use crate::core_loop::Core;
use crate::letter::{Door, Guest, Place};
use crate::listen;
use crate::rt::{self, Stream};

/// A read of a connection that sends little: a 4 KiB message with its frame fits.
const READ_BYTES_MIN: usize = 8 << 10;

/// A read of a connection that fills smaller ones.
const READ_BYTES_MAX: usize = 256 << 10;

/// So many reads in a row that a small buffer would have held end the large ones.
const SMALL_READS: u32 = 64;

/// One write gathers up to about this much.
const WRITE_BYTES_TARGET: usize = 256 << 10;

/// What a protocol does with a connection's bytes. Called from one thread, never from within itself.
pub trait Session {
    /// Bytes that came.
    fn receive(&self, bytes: Bytes);

    /// The peer sends no more; what it asked for may still be answered.
    fn end_of_input(&self);

    /// Whether the socket should be read.
    fn readiness(&self) -> Readiness;

    /// Appends bytes to write, up to about `target` in all.
    fn transmit(&self, out: &mut Vec<u8>, target: usize);

    /// Whether the connection is to be closed once `transmit` has nothing more.
    fn is_finished(&self) -> bool;

    /// Called now and then, for deadlines. `idle_ns`: nothing came for so long.
    fn tick(&self, now: MonotonicNs, idle_ns: u64);

    /// Take no new transactions and finish when nothing is open.
    fn close_when_done(&self);

    /// The connection is gone.
    fn lost(&self);
}

/// Whether a socket should be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Readiness {
    /// Read on.
    Read,
    /// Wait for [`Wire::read_on`].
    Wait,
    /// Never again.
    Stop,
}

/// What a session knows of its socket.
#[derive(Debug)]
pub struct Wire {
    stream: Stream,
    /// Wakes the writer.
    written: Notify,
    /// Wakes the reader.
    readable: Notify,
    heard_at: Cell<MonotonicNs>,
    writing_since: Cell<Option<MonotonicNs>>,
    tasks: Cell<u8>,
}

impl Wire {
    /// There may be something to transmit.
    pub fn write(&self) {
        self.written.notify_one();
    }

    /// The session may have become ready to read.
    pub fn read_on(&self) {
        self.readable.notify_one();
    }
}

/// An open connection.
pub struct Connection {
    wire: Rc<Wire>,
    session: Rc<dyn Session>,
    key: usize,
    door: Door,
    _place: Place,
}

/// Begins to serve a guest. `key` is its place among the core's connections.
pub fn open(core: &Rc<Core>, guest: Guest, key: usize) -> Rc<Connection> {
    let wire = Rc::new(Wire {
        stream: Stream::new(guest.socket),
        written: Notify::new(),
        readable: Notify::new(),
        heard_at: Cell::new(core.now().monotonic),
        writing_since: Cell::new(None),
        tasks: Cell::new(2),
    });
    let session = listen::session(guest.door, core, &wire, guest.trust, guest.peer);
    let connection = Rc::new(Connection {
        wire,
        session,
        key,
        door: guest.door,
        _place: guest.place,
    });
    rt::spawn(read(Rc::clone(core), Rc::clone(&connection)));
    rt::spawn(write(Rc::clone(core), Rc::clone(&connection)));
    connection
}

impl Connection {
    /// The session may have become ready to read.
    pub fn read_on(&self) {
        self.wire.read_on();
    }

    /// Ends it after its open transactions.
    pub fn close_when_done(&self) {
        self.session.close_when_done();
        self.wire.write();
    }

    /// Ends it now.
    pub fn cut_off(&self) {
        self.wire.stream.shutdown(Shutdown::Both);
        self.wire.written.notify_one();
        self.wire.readable.notify_one();
    }

    /// Deadlines of the session, and of a peer that does not read.
    pub fn tick(&self, now: MonotonicNs, idle_ns_max: u64) {
        if self
            .wire
            .writing_since
            .get()
            .is_some_and(|since| now.since(since) > idle_ns_max)
        {
            tracing::debug!(
                door = self.door.name(),
                "a peer does not read its replies; cut off"
            );
            self.cut_off();
            return;
        }
        self.session.tick(now, now.since(self.wire.heard_at.get()));
    }

    /// One of the two tasks has ended; the last one takes the connection out of the books.
    fn task_ended(&self, core: &Core) {
        self.wire.tasks.set(self.wire.tasks.get() - 1);
        if self.wire.tasks.get() == 0 {
            core.farewell(self.key, self.door);
        }
    }
}

async fn read(core: Rc<Core>, connection: Rc<Connection>) {
    let Connection { wire, session, .. } = &*connection;
    let mut read_bytes = READ_BYTES_MIN;
    let mut small_reads = 0;
    loop {
        match session.readiness() {
            Readiness::Read if core.is_behind() => {
                wire.readable.notified().await;
                continue;
            }
            Readiness::Read => {}
            Readiness::Wait => {
                wire.readable.notified().await;
                continue;
            }
            Readiness::Stop => break,
        }
        let (result, buf) = wire.stream.read(Vec::with_capacity(read_bytes)).await;
        match result {
            Ok(count) if count > 0 => {
                wire.heard_at.set(core.now().monotonic);
                small_reads = if count < READ_BYTES_MIN {
                    small_reads + 1
                } else {
                    0
                };
                if count >= read_bytes {
                    read_bytes = (read_bytes * 4).min(READ_BYTES_MAX);
                } else if small_reads >= SMALL_READS {
                    read_bytes = READ_BYTES_MIN;
                }
                session.receive(Bytes::from(buf));
                wire.write();
            }
            _ => break,
        }
    }
    session.end_of_input();
    wire.write();
    connection.task_ended(&core);
}

async fn write(core: Rc<Core>, connection: Rc<Connection>) {
    let Connection { wire, session, .. } = &*connection;
    let mut out = Vec::new();
    loop {
        out.clear();
        session.transmit(&mut out, WRITE_BYTES_TARGET);
        if out.is_empty() {
            if session.is_finished() {
                break;
            }
            if out.capacity() > WRITE_BYTES_TARGET / 4 {
                out = Vec::new();
            }
            wire.written.notified().await;
            continue;
        }
        wire.writing_since.set(Some(core.now().monotonic));
        let result;
        (result, out) = wire.stream.write_all(out).await;
        wire.writing_since.set(None);
        if result.is_err() {
            break;
        }
        wire.read_on();
    }
    wire.stream.shutdown(Shutdown::Both);
    session.lost();
    wire.read_on();
    connection.task_ended(&core);
}
