//! Standard input as a message: read in pieces, never more than one in memory, to its end.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bytes::Bytes;
use nix::poll::{PollFd, PollFlags};
use nix::sys::stat::SFlag;

use super::input::EnvelopeCut;
use crate::client::{Deadline, Ready, wait};

/// One read. A pipe gives at most this by default.
const PIECE_BYTES: usize = 64 << 10;

/// major and minor of /dev/null (Documentation/admin-guide/devices.txt).
const DEV_NULL: (u64, u64) = (1, 3);

/// A message that comes through a descriptor.
#[derive(Debug)]
pub struct Source {
    file: File,
    /// `None` behind the last byte.
    cut: Option<EnvelopeCut>,
    piece: Box<[u8]>,
}

/// Whether a descriptor can hold a message at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Input {
    /// A pipe, a file, a socket: a message, though it may have no bytes.
    Message,
    /// A person types.
    Terminal,
    /// /dev/null, which the runtime also puts in place of a closed descriptor: nobody sent a
    /// message of no bytes, somebody sent no message.
    Nothing,
}

impl Source {
    /// Reads from `descriptor` from now on.
    pub fn new(descriptor: OwnedFd) -> Self {
        Self {
            file: File::from(descriptor),
            cut: Some(EnvelopeCut::new()),
            piece: vec![0; PIECE_BYTES].into_boxed_slice(),
        }
    }

    /// The same without looking for an envelope line: the input is no message.
    #[must_use]
    pub fn without_cut(self) -> Self {
        Self {
            cut: Some(EnvelopeCut::passing()),
            ..self
        }
    }

    /// What kind of input it is.
    pub fn input(&self) -> io::Result<Input> {
        kind(&self.file)
    }

    /// The next piece, not empty, without its envelope line; `None` at the end. Blocks until
    /// `deadline`, then fails with `TimedOut`.
    pub fn next(&mut self, deadline: Deadline) -> io::Result<Option<Bytes>> {
        while self.cut.is_some() {
            self.wait(deadline)?;
            if let Some(piece) = self.read()?.filter(|piece| !piece.is_empty()) {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }

    /// Reads once, which does not block once the descriptor is readable: `None` at the end, perhaps
    /// no bytes before it.
    pub fn read(&mut self) -> io::Result<Option<Bytes>> {
        let Some(cut) = &mut self.cut else {
            return Ok(None);
        };
        let read = match self.file.read(&mut self.piece) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                return Ok(Some(Bytes::new()));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Ok(Some(Bytes::new()));
            }
            other => other?,
        };
        if read == 0 {
            let held = self.cut.take().map(EnvelopeCut::finish).unwrap_or_default();
            return Ok(Some(Bytes::from(held)).filter(|held| !held.is_empty()));
        }
        let (mut held, rest) = cut.push(self.piece.get(..read).unwrap_or_default());
        if held.is_empty() {
            return Ok(Some(Bytes::copy_from_slice(rest)));
        }
        held.extend_from_slice(rest);
        Ok(Some(Bytes::from(held)))
    }

    /// Whether the last byte was read.
    pub fn is_ended(&self) -> bool {
        self.cut.is_none()
    }

    /// Reads and drops all that is left, so that the MTA sees its message taken before our exit
    /// code. Whatever goes wrong, the exit code does not depend on it.
    pub fn drain(&mut self, deadline: Deadline) {
        while let Ok(Some(_)) = self.next(deadline) {}
    }

    fn wait(&self, deadline: Deadline) -> io::Result<()> {
        let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)];
        match wait(&mut fds, deadline)? {
            Ready::Yes => Ok(()),
            Ready::No => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// What a descriptor is good for.
pub fn kind(descriptor: &(impl AsFd + io::IsTerminal)) -> io::Result<Input> {
    if descriptor.is_terminal() {
        return Ok(Input::Terminal);
    }
    let stat = nix::sys::stat::fstat(descriptor)?;
    let format = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
    let is_device = format == SFlag::S_IFCHR;
    let number = (
        nix::sys::stat::major(stat.st_rdev),
        nix::sys::stat::minor(stat.st_rdev),
    );
    if is_device && number == DEV_NULL {
        return Ok(Input::Nothing);
    }
    Ok(Input::Message)
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Duration;

    use super::*;

    fn source(reader: impl Into<OwnedFd>) -> Source {
        Source::new(reader.into())
    }

    #[test]
    fn a_message_comes_without_its_envelope_line() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer
            .write_all(b"From bob now\nSubject: x\n\nbody")
            .unwrap();
        drop(writer);
        let mut source = source(reader);
        let deadline = Deadline::after(Duration::from_secs(10));
        assert_eq!(source.input().unwrap(), Input::Message);
        assert_eq!(
            source.next(deadline).unwrap().unwrap(),
            "Subject: x\n\nbody"
        );
        assert_eq!(source.next(deadline).unwrap(), None);
        assert!(source.is_ended());
    }

    #[test]
    fn a_few_bytes_that_were_held_come_at_the_end() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"Fro").unwrap();
        drop(writer);
        let mut source = source(reader);
        let deadline = Deadline::after(Duration::from_secs(10));
        assert_eq!(source.next(deadline).unwrap().unwrap(), "Fro");
        assert_eq!(source.next(deadline).unwrap(), None);
    }

    #[test]
    fn a_writer_that_never_ends_meets_the_deadline() {
        let (reader, writer) = io::pipe().unwrap();
        let mut source = source(reader);
        let error = source
            .next(Deadline::after(Duration::from_millis(10)))
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(writer);
    }

    #[test]
    fn dev_null_is_no_message() {
        let null = std::fs::OpenOptions::new()
            .read(true)
            .open("/dev/null")
            .unwrap();
        assert_eq!(source(null).input().unwrap(), Input::Nothing);
    }
}
