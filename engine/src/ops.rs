//! Operations in flight and what each was for: the one place where a shard meets its [`Io`].
//!
//! Every op started here ends in exactly one ([`Purpose`], result) pair. An op that the `Io` has no
//! room for waits in order; nothing is dropped.

use std::collections::VecDeque;

use slab::Slab;

use crate::error::IoError;
use crate::io::{AlignedBuf, Completion, Done, Failed, Io, Op, Token};
use crate::request::StageId;

/// What an op was for. The shard looks here when it ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    /// A frame; its number in the order of sealing.
    Frame(u64),
    /// The header of a log file that is being armed.
    Arm(usize),
    /// A log file of zeros is being made; its number.
    LogMake(u32),
    /// A log file just made is being opened; its number.
    LogOpen(u32),
    /// The superblock of a checkpoint.
    Super,
    /// The directory of a user being loaded; index in the table of users.
    UserDir(usize),
    /// The info file of a user being loaded.
    UserInfo(usize),
    /// A file of a new generation of a user being loaded gets its name.
    UserRename(usize),
    /// A part file that no record names of a user being loaded goes.
    UserUnlink(usize),
    /// Users being materialised; number of the work.
    Materialise(u64),
    /// The delivery ids and partition states of a checkpoint.
    Tables,
    /// The file system at the end of a checkpoint.
    SyncTree,
    /// A step of a stage file.
    Stage(StageId),
    /// A step of a large append; index in its table.
    Large(usize),
    /// A step of a fetch; index in its table.
    Fetch(usize),
    /// A link of a copy, or their sync; index of the change, and which.
    Copy(usize, usize),
    /// A step of the compaction that runs.
    Compact,
    /// A step of a log file's way into the archive.
    Archive,
    /// A step of the way of a large message's file into the archive: of that number.
    Leave(u64),
    /// A look into the archive.
    ArchiveList,
    /// A step of the scrub.
    Scrub,
    /// The scrub's file.
    ScrubFile,
    /// Free space.
    Space,
    /// Tidying whose failure harms nothing: closing, unlinking what no record names.
    Tidy,
    /// The one op of a blocking step while a shard opens.
    Opening,
}

/// The end of an op.
pub(crate) struct Ended {
    pub(crate) purpose: Purpose,
    pub(crate) result: Result<Done, Failed>,
}

/// An [`Io`] with names for what is in flight.
pub(crate) struct Ops<I> {
    io: I,
    purposes: Slab<Purpose>,
    waiting: VecDeque<(Op, Token)>,
    completions: Vec<Completion>,
    /// Ops were started since the last poll.
    fresh: bool,
}

impl<I: Io> Ops<I> {
    pub(crate) fn new(io: I) -> Self {
        Self {
            io,
            purposes: Slab::new(),
            waiting: VecDeque::new(),
            completions: Vec::new(),
            fresh: false,
        }
    }

    /// The `Io` itself, for what is no op.
    pub(crate) fn io_mut(&mut self) -> &mut I {
        &mut self.io
    }

    /// Starts an op, or queues it behind those that wait for room.
    pub(crate) fn start(&mut self, op: Op, purpose: Purpose) {
        let key = self.purposes.insert(purpose);
        let token = Token(u64::try_from(key).expect("an index has at most 64 bits"));
        self.waiting.push_back((op, token));
        self.push_waiting();
        self.fresh = true;
    }

    /// Whether ops were started since the last [`Self::poll`]: the `Io` may not have begun them.
    pub(crate) fn has_fresh(&self) -> bool {
        self.fresh
    }

    /// Ops that have not ended.
    pub(crate) fn in_flight(&self) -> usize {
        self.purposes.len()
    }

    fn push_waiting(&mut self) {
        while let Some((op, token)) = self.waiting.pop_front() {
            if let Err(op) = self.io.submit(op, token) {
                self.waiting.push_front((op, token));
                return;
            }
        }
    }

    /// Appends the ops that have ended to `out`.
    pub(crate) fn poll(&mut self, out: &mut Vec<Ended>) {
        self.push_waiting();
        self.fresh = false;
        self.io.poll(&mut self.completions);
        for Completion { token, result } in self.completions.drain(..) {
            let key = usize::try_from(token.0).unwrap_or(usize::MAX);
            let purpose = self.purposes.try_remove(key);
            let purpose = purpose.expect("the Io completed an op that was not in flight");
            out.push(Ended { purpose, result });
        }
        self.push_waiting();
    }

    /// Runs one op to its end, while nothing else is in flight (opening a shard).
    pub(crate) fn run(&mut self, op: Op) -> Result<Done, Failed> {
        assert_eq!(
            self.in_flight(),
            0,
            "a blocking step while ops are in flight"
        );
        self.start(op, Purpose::Opening);
        let mut ended = Vec::new();
        loop {
            self.poll(&mut ended);
            if let Some(ended) = ended.pop() {
                return ended.result;
            }
            self.io.wait();
        }
    }

    /// As [`Self::run`], for ops whose buffer is not wanted back after a failure.
    pub(crate) fn run_plain(&mut self, op: Op) -> Result<Done, IoError> {
        self.run(op).map_err(|failed| failed.error)
    }

    /// Reads a piece of a log file or superblock while a shard opens; gives the buffer back.
    pub(crate) fn run_read(
        &mut self,
        file: crate::io::FileId,
        offset: u64,
        buf: AlignedBuf,
    ) -> Result<(AlignedBuf, usize), IoError> {
        let len = buf.len();
        match self.run_plain(Op::LogRead {
            file,
            offset,
            buf,
            len,
        })? {
            Done::Read { buf, count } => Ok((buf, count)),
            other => unreachable_done(&other),
        }
    }
}

/// An `Io` that answers an op with another op's result is a bug.
pub(crate) fn unreachable_done(done: &Done) -> ! {
    panic!("the Io answered an op with another kind of result: {done:?}")
}
