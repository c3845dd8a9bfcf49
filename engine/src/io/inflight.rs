//! Ops between `submit` and their completion. A [`Slot`] owns the whole op with its buffers and path
//! strings, and the open file, until the kernel's completion ends its interest: not a drop, not a
//! cancel, not a `Close` does. The table has as many places as the completion queue, so that queue
//! cannot overflow.
//!
//! What to do after a completion (go on after a short transfer, try again, finish) is decided here,
//! without a kernel; [`ring`](super::ring) translates slots to submission entries.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use bytes::Bytes;
use slab::Slab;

use super::{Completion, Done, FileId, Op, OpenMode, RelPath, Token};
use crate::error::IoError;

/// EAGAIN, EINTR and transfers without progress in a row before an op fails. None is expected on a
/// regular file; the bound keeps a broken device from becoming an endless loop.
const ATTEMPTS_MAX: u32 = 64;

/// Bytes of a block as a buffer index.
const BLOCK: usize = 4096;

/// An open file; closed when the table and every op in flight let go of it.
#[derive(Debug)]
pub(crate) struct OpenFile {
    pub(crate) fd: OwnedFd,
    pub(crate) path: RelPath,
}

/// Names a slot in a completion: its place below, its generation above.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Key(pub(crate) u64);

impl Key {
    fn new(index: usize, generation: u32) -> Self {
        Self(u64::from(generation) << 32 | index as u64)
    }

    fn index(self) -> usize {
        usize::try_from(self.0 & u64::from(u32::MAX)).expect("32 bits fit a usize")
    }

    fn generation(self) -> u32 {
        u32::try_from(self.0 >> 32).expect("32 bits")
    }
}

/// One op in flight.
#[derive(Debug)]
pub(crate) struct Slot {
    generation: u32,
    pub(crate) token: Token,
    pub(crate) op: Op,
    /// Of ops on an open file.
    pub(crate) file: Option<Rc<OpenFile>>,
    /// Where `Read` reads to.
    pub(crate) data: Vec<u8>,
    /// The open directory of `SyncDir` in its second half.
    pub(crate) dir: Option<OwnedFd>,
    /// Whether the kernel may hold pointers into this slot.
    pub(crate) in_kernel: bool,
    /// Whether `Open` still asks for `O_NOATIME`, which is refused on files of others.
    pub(crate) noatime: bool,
    /// Bytes transferred.
    done: usize,
    attempts: u32,
}

/// What the kernel said, with the descriptor already owned.
#[derive(Debug)]
pub(crate) enum Gain {
    Fd(OwnedFd),
    Count(usize),
}

/// What follows a completion.
#[derive(Debug)]
pub(crate) enum Step {
    /// Hand it to the kernel again, from [`Slot::resume`].
    Again,
    /// It succeeded.
    Finished,
    /// It succeeded with a new descriptor.
    Opened(OwnedFd),
    /// It failed with this errno.
    Failed(i32),
}

impl Slot {
    /// Bytes after which the next transfer starts: block-aligned for `O_DIRECT`.
    pub(crate) fn resume(&self) -> usize {
        match self.op {
            Op::LogWrite { .. } | Op::LogRead { .. } => self.done - self.done % BLOCK,
            _ => self.done,
        }
    }

    /// Takes the kernel's answer in.
    pub(crate) fn step(&mut self, result: Result<Gain, i32>) -> Step {
        match result {
            Err(errno @ (libc::EAGAIN | libc::EINTR)) => self.again(errno),
            Err(errno) => self.refused(errno),
            Ok(Gain::Fd(fd)) if matches!(self.op, Op::SyncDir { .. }) => {
                self.dir = Some(fd);
                Step::Again
            }
            Ok(Gain::Fd(fd)) => Step::Opened(fd),
            Ok(Gain::Count(count)) => self.transferred(count),
        }
    }

    fn again(&mut self, errno: i32) -> Step {
        self.attempts += 1;
        if self.attempts > ATTEMPTS_MAX {
            Step::Failed(errno)
        } else {
            Step::Again
        }
    }

    fn refused(&mut self, errno: i32) -> Step {
        match (&self.op, errno) {
            (Op::MakeDir { .. }, libc::EEXIST) | (Op::Unlink { .. }, libc::ENOENT) => {
                Step::Finished
            }
            (Op::Open { .. }, libc::EPERM) if self.noatime => {
                self.noatime = false;
                Step::Again
            }
            (Op::LogWrite { .. }, libc::ECANCELED) => {
                unreachable!("log writes are neither linked nor cancelled: {self:?}")
            }
            _ => Step::Failed(errno),
        }
    }

    fn transferred(&mut self, count: usize) -> Step {
        let (len, reads) = match &self.op {
            Op::LogWrite { len, .. } => (*len, false),
            Op::LogRead { len, .. } | Op::Read { len, .. } => (*len, true),
            Op::Write { data, .. } => (data.len(), false),
            _ => return Step::Finished,
        };
        let total = self.resume() + count;
        assert!(total <= len, "the kernel moved {total} of {len} bytes");
        if total == len {
            self.done = total;
            return Step::Finished;
        }
        if total <= self.done {
            // Nothing more came: the end of the file for a reader, and no progress for a writer.
            return if reads {
                Step::Finished
            } else {
                match self.again(libc::EIO) {
                    Step::Again if count > 0 => Step::Again,
                    _ => Step::Failed(libc::EIO),
                }
            };
        }
        self.done = total;
        self.attempts = 0;
        Step::Again
    }

    /// The completion of a failure.
    pub(crate) fn fail(self, errno: i32) -> Completion {
        let path = self.file.as_ref().map(|file| &file.path);
        let error = self.op.error(path, errno);
        self.fail_with(error)
    }

    /// The completion of a failure that is already described.
    pub(crate) fn fail_with(self, error: IoError) -> Completion {
        Completion {
            token: self.token,
            result: Err(self.op.into_failed(error)),
        }
    }

    /// The completion of a success that is not an `Open`.
    pub(crate) fn finish(mut self) -> Completion {
        let done = match self.op {
            Op::LogWrite { buf, .. } => Done::Buf(buf),
            Op::LogRead { buf, .. } => Done::Read {
                buf,
                count: self.done,
            },
            Op::Read { .. } => {
                self.data.truncate(self.done);
                Done::Bytes(Bytes::from(self.data))
            }
            _ => Done::Nothing,
        };
        Completion {
            token: self.token,
            result: Ok(done),
        }
    }
}

/// The table.
#[derive(Debug)]
pub(crate) struct InFlight {
    slots: Slab<Slot>,
    capacity: usize,
    generation: u32,
}

impl InFlight {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            slots: Slab::with_capacity(capacity),
            capacity,
            generation: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Takes an op over; the caller has looked for room.
    pub(crate) fn insert(&mut self, token: Token, op: Op, file: Option<Rc<OpenFile>>) -> Key {
        assert!(self.slots.len() < self.capacity, "more ops than places");
        self.generation = self.generation.wrapping_add(1);
        let data = match op {
            Op::Read { len, .. } => vec![0; len],
            _ => Vec::new(),
        };
        let noatime = matches!(
            op,
            Op::Open {
                mode: OpenMode::Read,
                ..
            }
        );
        let index = self.slots.insert(Slot {
            generation: self.generation,
            token,
            op,
            file,
            data,
            dir: None,
            in_kernel: false,
            noatime,
            done: 0,
            attempts: 0,
        });
        Key::new(index, self.generation)
    }

    /// The slot of a key. A key of an op that ended is a bug: a completion came twice.
    pub(crate) fn slot(&mut self, key: Key) -> &mut Slot {
        self.slots
            .get_mut(key.index())
            .filter(|slot| slot.generation == key.generation())
            .unwrap_or_else(|| panic!("a completion for no op in flight: {key:?}"))
    }

    /// Ends an op.
    pub(crate) fn remove(&mut self, key: Key) -> Slot {
        self.slot(key);
        self.slots.remove(key.index())
    }

    /// Planted by `ring::mutants`: all slots, whoever still needs them.
    #[cfg(test)]
    pub(crate) fn take_all(&mut self) -> Vec<Slot> {
        self.slots.drain().collect()
    }

    /// Forgets what the kernel never saw. For the end of a ring.
    pub(crate) fn retain_in_kernel(&mut self) {
        self.slots.retain(|_, slot| slot.in_kernel);
    }
}

/// Handles of open files. A handle that was closed is never another file.
#[derive(Debug, Default)]
pub(crate) struct Files {
    open: Slab<(u32, Rc<OpenFile>)>,
    generation: u32,
    /// Planted by `ring::mutants`: a handle is believed whatever its generation.
    #[cfg(test)]
    pub(crate) believes_stale: bool,
}

impl Files {
    pub(crate) fn insert(&mut self, file: OpenFile) -> FileId {
        self.generation = self.generation.wrapping_add(1);
        let index = self.open.insert((self.generation, Rc::new(file)));
        FileId(Key::new(index, self.generation).0)
    }

    pub(crate) fn find(&self, id: FileId) -> Option<Rc<OpenFile>> {
        let key = Key(id.0);
        #[cfg(test)]
        if self.believes_stale {
            return self.open.get(key.index()).map(|(_, file)| Rc::clone(file));
        }
        self.open
            .get(key.index())
            .filter(|(generation, _)| *generation == key.generation())
            .map(|(_, file)| Rc::clone(file))
    }

    pub(crate) fn remove(&mut self, id: FileId) -> Option<Rc<OpenFile>> {
        let file = self.find(id)?;
        self.open.remove(Key(id.0).index());
        Some(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::AlignedBuf;

    fn slot(op: Op) -> Slot {
        let mut table = InFlight::new(1);
        let key = table.insert(Token(1), op, None);
        table.remove(key)
    }

    fn log_write() -> Slot {
        slot(Op::LogWrite {
            file: FileId(0),
            offset: 0,
            buf: AlignedBuf::zeroed(16384),
            len: 16384,
        })
    }

    #[test]
    fn a_short_log_write_goes_on_from_the_last_block_reached() {
        let mut slot = log_write();
        assert!(matches!(slot.step(Ok(Gain::Count(5000))), Step::Again));
        assert_eq!(slot.resume(), 4096);
        assert!(matches!(slot.step(Ok(Gain::Count(12288))), Step::Finished));
    }

    #[test]
    fn a_log_write_without_progress_fails_in_the_end() {
        let mut slot = log_write();
        assert!(matches!(
            slot.step(Ok(Gain::Count(0))),
            Step::Failed(libc::EIO)
        ));
        let mut slot = log_write();
        let tries =
            (0..1000).take_while(|_| matches!(slot.step(Ok(Gain::Count(512))), Step::Again));
        assert!(tries.count() < 100);
    }

    #[test]
    fn a_direct_read_ends_where_the_file_ends() {
        let mut slot = slot(Op::LogRead {
            file: FileId(0),
            offset: 0,
            buf: AlignedBuf::zeroed(8192),
            len: 8192,
        });
        assert!(matches!(slot.step(Ok(Gain::Count(4608))), Step::Again));
        assert_eq!(slot.resume(), 4096);
        assert!(matches!(slot.step(Ok(Gain::Count(512))), Step::Finished));
        assert!(matches!(
            slot.finish().result,
            Ok(Done::Read { count: 4608, .. })
        ));
    }

    #[test]
    fn eagain_is_tried_again_but_not_for_ever() {
        let mut slot = slot(Op::Read {
            file: FileId(0),
            offset: 0,
            len: 10,
        });
        for _ in 0..ATTEMPTS_MAX {
            assert!(matches!(slot.step(Err(libc::EAGAIN)), Step::Again));
        }
        assert!(matches!(slot.step(Err(libc::EAGAIN)), Step::Failed(_)));
    }

    #[test]
    #[should_panic(expected = "a completion for no op in flight")]
    fn a_stale_generation_is_a_bug() {
        let mut table = InFlight::new(2);
        let sync = || Op::SyncDir {
            path: RelPath::root(),
        };
        let old = table.insert(Token(1), sync(), None);
        table.remove(old);
        let new = table.insert(Token(2), sync(), None);
        assert_eq!(new.index(), old.index());
        table.slot(old);
    }
}
