//! Planted faults of the ring, and the tests that have to see them: a buffer that is let go of before
//! its completion, a drop that waits for nothing, a handle that is believed though it is stale. A test
//! that passes with one of these proves nothing without it.
//!
//! What a mutant frees too early is kept in a graveyard instead: the kernel writes where it was told
//! to, and the tests share their process with others.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;

use super::tests::{self, Scratch};
use super::*;
use crate::io::conformance::{self as body, Rig};
use crate::io::inflight::Slot;

/// What the ring does wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mutant {
    /// Nothing.
    None,
    /// Lets go of a buffer as soon as the kernel has its address.
    FreesBuffers,
    /// Ends without a cancel and without waiting for completions.
    WaitsForNothing,
    /// No fault: as if the kernel did not give an operation back in time.
    GivesUp,
}

thread_local! {
    /// Until the thread of the test ends.
    static GRAVEYARD: RefCell<Vec<Slot>> = const { RefCell::new(Vec::new()) };
    static BUFFERS: RefCell<Vec<Box<dyn std::any::Any>>> = const { RefCell::new(Vec::new()) };
}

/// What a hardened allocator would leave in memory that was freed.
const FREED: u8 = 0xa5;

impl Mutant {
    /// After the kernel was told of a slot.
    pub(super) fn after_push(self, slot: &mut Slot) {
        if self != Self::FreesBuffers {
            return;
        }
        let mut data = std::mem::take(&mut slot.data);
        slot.data = vec![0; data.len()];
        data.fill(FREED);
        bury(data);
        match &mut slot.op {
            Op::LogWrite { buf, .. } | Op::LogRead { buf, .. } => {
                let mut old = std::mem::replace(buf, AlignedBuf::zeroed(buf.len()));
                old.fill(FREED);
                bury(old);
            }
            Op::Write { data, .. } => {
                bury(std::mem::replace(data, Bytes::from(vec![0; data.len()])));
            }
            _ => {}
        }
    }

    /// At the drop: whether to wait for the kernel.
    pub(super) fn waits(self, in_flight: &mut InFlight, in_kernel: &mut usize) -> bool {
        if self == Self::WaitsForNothing {
            *in_kernel = 0;
            let mut slots = in_flight.take_all();
            for slot in &mut slots {
                drop(slot.file.take());
            }
            GRAVEYARD.with_borrow_mut(|graves| graves.append(&mut slots));
        }
        matches!(self, Self::None | Self::FreesBuffers)
    }
}

fn bury(buffer: impl std::any::Any) {
    BUFFERS.with_borrow_mut(|buffers| buffers.push(Box::new(buffer)));
}

/// A rig whose rings let go of their buffers.
struct FreesBuffers(Scratch);

impl Rig for FreesBuffers {
    type Io = UringIo;

    fn new() -> Self {
        Self(Scratch::new())
    }

    fn io(&mut self) -> UringIo {
        let mut io = self.0.io();
        io.mutant = Mutant::FreesBuffers;
        io
    }
}

/// A rig whose rings take stale handles.
struct TakesStale(Scratch);

impl Rig for TakesStale {
    type Io = UringIo;

    fn new() -> Self {
        Self(Scratch::new())
    }

    fn io(&mut self) -> UringIo {
        let mut io = self.0.io();
        io.files.believes_stale = true;
        io
    }
}

fn fails(test: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(test)).is_err()
}

#[test]
fn conformance_sees_a_buffer_freed_before_its_completion() {
    assert!(fails(body::reads_end_where_the_file_ends::<FreesBuffers>));
    assert!(fails(body::log_files_keep_what_is_written::<FreesBuffers>));
}

#[test]
fn conformance_sees_a_stale_handle_taken() {
    assert!(fails(
        body::a_closed_handle_is_never_another_file::<TakesStale>
    ));
}

#[test]
fn test_of_the_drop_sees_a_ring_that_waits_for_nothing() {
    for mutant in [Mutant::None, Mutant::WaitsForNothing] {
        let mut rig = Scratch::new();
        let mut io = rig.io();
        io.mutant = mutant;
        // As in the daemon that was forked from, or a kernel that is slow to end a ring.
        let kept = io.another_handle();
        let failed = fails(|| tests::reads_in_flight_end_with_the_ring(io));
        assert_eq!(failed, mutant == Mutant::WaitsForNothing, "{mutant:?}");
        drop(kept);
    }
}

#[test]
fn memory_of_an_operation_that_never_ends_is_kept() {
    let mut rig = Scratch::new();
    let mut io = rig.io();
    io.mutant = Mutant::GivesUp;
    let kept = io.another_handle();
    let (file, write) = tests::silent_pipe(&mut io);
    let read = |len| Op::Read {
        file,
        offset: 0,
        len,
    };
    io.submit(read(4096), Token(1)).unwrap();
    io.poll(&mut Vec::new());
    io.submit(read(8192), Token(2)).unwrap();
    let open = Rc::downgrade(&io.files.find(file).unwrap());
    drop(io);
    // The slot that the kernel knows is there with all it owns; the other one is not.
    assert_eq!(open.strong_count(), 1);
    // The read ends now, into memory that is nobody else's.
    assert_eq!(nix::unistd::write(&write, b"late").unwrap(), 4);
    drop(kept);
}
