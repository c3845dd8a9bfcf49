//! A nonblocking socket and the session behind it.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::{Buf as _, Bytes};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::session::{Answer, Mail, Session};
use crate::address::{Address, Stream};

/// Pieces of one writev.
const PIECES_MAX: usize = 64;

/// Bytes of one read.
pub(crate) const READ_BYTES: usize = 64 << 10;

/// One connection of the generator.
pub(crate) struct Link {
    stream: Stream,
    session: Box<dyn Session>,
    queue: VecDeque<Bytes>,
}

impl Link {
    /// Connects; the greeting is still to come.
    pub(crate) fn connect(address: &Address, session: Box<dyn Session>) -> anyhow::Result<Self> {
        let stream = address.connect()?;
        stream.make_nonblocking()?;
        Ok(Self {
            stream,
            session,
            queue: VecDeque::new(),
        })
    }

    /// Waits for the end of the greeting.
    pub(crate) fn greet(&mut self, patience: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + patience;
        let mut buffer = vec![0; READ_BYTES];
        loop {
            // What was received may ask for an answer of ours: written before the wait.
            self.receive(&mut buffer, &mut Vec::new())?;
            let blocked = self.flush()?;
            if self.session.room() > 0 {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("the server did not finish its greeting within {patience:?}");
            }
            let mut interest = PollFlags::POLLIN;
            interest.set(PollFlags::POLLOUT, blocked == Blocked::Yes);
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            poll(&mut [PollFd::new(self.stream.as_fd(), interest)], timeout)?;
        }
    }

    /// How many messages may be started.
    pub(crate) fn room(&self) -> usize {
        self.session.room()
    }

    /// Starts a message; [`Self::flush`] sends it.
    pub(crate) fn submit(&mut self, mail: &Mail<'_>) -> anyhow::Result<()> {
        self.session.submit(mail)
    }

    /// Writes what the session has, as far as the socket takes it.
    pub(crate) fn flush(&mut self) -> anyhow::Result<Blocked> {
        loop {
            while self.queue.len() < PIECES_MAX {
                let Some(piece) = self.session.transmit() else {
                    break;
                };
                self.queue.push_back(piece);
            }
            self.queue.retain(|piece| !piece.is_empty());
            if self.queue.is_empty() {
                return Ok(Blocked::No);
            }
            let mut slices = [IoSlice::new(&[]); PIECES_MAX];
            for (slice, piece) in slices.iter_mut().zip(&self.queue) {
                *slice = IoSlice::new(piece);
            }
            match self.stream.write_vectored(&slices) {
                Ok(count) => self.written(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Blocked::Yes),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("cannot write to the server"),
            }
        }
    }

    fn written(&mut self, mut count: usize) {
        while count > 0 {
            let Some(piece) = self.queue.front_mut() else {
                return;
            };
            let step = count.min(piece.len());
            piece.advance(step);
            count -= step;
            if piece.is_empty() {
                self.queue.pop_front();
            }
        }
    }

    /// Reads until the socket is empty. The end of the stream is an error.
    pub(crate) fn receive(
        &mut self,
        buffer: &mut [u8],
        answers: &mut Vec<Answer>,
    ) -> anyhow::Result<()> {
        loop {
            match self.stream.read(buffer) {
                Ok(0) => bail!("the server closed the connection"),
                Ok(count) => {
                    let input = buffer.get(..count).unwrap_or_default();
                    self.session.receive(input, answers)?;
                    if count < buffer.len() {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("cannot read from the server"),
            }
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Whether bytes wait for the socket to take them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Blocked {
    /// Ask for writability.
    Yes,
    /// All is written.
    No,
}
