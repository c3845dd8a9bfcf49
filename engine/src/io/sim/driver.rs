//! One core's [`Io`] on a simulated disk.

use super::disk::SimDisk;
use super::state::State;
use super::steps::Handle;
use crate::io::{AlignedBuf, Completion, Io, Op, Token};

/// A simulated disk as one core sees it. Virtual time passes with `poll` and `wait`.
#[derive(Debug)]
pub struct SimIo {
    disk: SimDisk,
    id: u32,
    /// Submitted, not started: that happens at the next poll.
    queued: Vec<(Op, Token, Option<Handle>)>,
    /// Refused at once.
    finished: Vec<Completion>,
    /// Submitted, completion not taken.
    in_flight: usize,
}

impl SimIo {
    pub(super) fn new(disk: SimDisk, id: u32) -> Self {
        Self {
            disk,
            id,
            queued: Vec::new(),
            finished: Vec::new(),
            in_flight: 0,
        }
    }

    /// The disk it works on.
    pub fn disk(&self) -> SimDisk {
        self.disk.clone()
    }

    fn start_queued(&mut self) {
        let mut state = self.disk.0.borrow_mut();
        for (op, token, handle) in self.queued.drain(..) {
            state.start(self.id, op, token, handle);
        }
    }
}

impl Io for SimIo {
    fn submit(&mut self, op: Op, token: Token) -> Result<(), Op> {
        let mut state = self.disk.0.borrow_mut();
        if self.in_flight >= state.config.ops_max {
            return Err(op);
        }
        self.in_flight += 1;
        let handle = match op {
            Op::Close { file } => state.close(file, self.id),
            _ => op.file().and_then(|file| state.handle(file, self.id)),
        };
        match State::refuse(&op, handle.as_ref()) {
            Ok(()) => self.queued.push((op, token, handle)),
            Err(errno) => {
                let error = op.error(handle.as_ref().map(|handle| &handle.path), errno);
                let result = Err(op.into_failed(error));
                self.finished.push(Completion { token, result });
            }
        }
        Ok(())
    }

    fn poll(&mut self, out: &mut Vec<Completion>) {
        self.start_queued();
        let before = out.len();
        out.append(&mut self.finished);
        let mut state = self.disk.0.borrow_mut();
        let now = state.passed();
        state.run_until(now);
        out.append(&mut state.take_mail(self.id));
        self.in_flight -= out.len() - before;
    }

    fn wait(&mut self) {
        self.start_queued();
        let mut state = self.disk.0.borrow_mut();
        while self.finished.is_empty() && !state.has_mail(self.id) && state.is_busy(self.id) {
            state.run_next();
        }
    }

    fn log_bufs(&mut self, count: usize, bytes: usize) -> Vec<AlignedBuf> {
        (0..count).map(|_| AlignedBuf::zeroed(bytes)).collect()
    }
}

impl Drop for SimIo {
    /// Like the real one it waits for what was started, and forgets what was not.
    fn drop(&mut self) {
        // Not while a panic inside the disk unwinds.
        if let Ok(mut state) = self.disk.0.try_borrow_mut() {
            state.abandon(self.id);
        }
    }
}
