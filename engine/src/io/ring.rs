//! The real disk: one raw ring per core, made and used on that core's thread only (storage.md 10).
//!
//! Whatever the kernel may read or write lives in a slot of `inflight` until its completion; this
//! file only turns slots into submission entries and completions into steps of slots. Ops without an
//! opcode go to the node's [`Helpers`]; both sources wake the same eventfd and come out of the same
//! `poll`. Dropping the ring cancels what can be cancelled, waits for every completion, and if they
//! do not come leaks the memory on purpose: the kernel may still write there.
//!
//! Left out: `SQPOLL` and `IOPOLL` (two cores), links and drains (order is by completions),
//! registered files (no gain measured worth the table).
#![expect(
    unsafe_code,
    reason = "entries of the submission queue carry raw pointers"
)]

use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::mpsc::{Receiver, channel};

use io_uring::squeue::Entry;
use io_uring::types::{CancelBuilder, Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{Builder, IoUring, Probe, opcode};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::buf::Registered;
use super::flusher::{Answer, Dir, Helpers, Job, Reply};
use super::inflight::{Files, Gain, InFlight, Key, OpenFile, Slot, Step};
use super::refusal::{Surroundings, no_ring};
use super::{AlignedBuf, Completion, Done, Io, Op, OpenMode, RelPath, Token};
use crate::error::OpenError;

/// `user_data` of the cancel at the end; no op's key, whose place never has all bits set.
const CANCEL: u64 = u64::MAX;

/// Waits of 100 ms for operations that the kernel cannot cancel (an fsync that runs) before their
/// memory is leaked: a disk that takes longer is gone.
const DRAIN_WAITS_MAX: u32 = 600;

/// Places of the queues under a small limit of locked memory: one page each.
const ENTRIES_MIN: (u32, u32) = (64, 128);

/// Below this limit of locked memory a ring is made small from the start: a full one takes 56 KiB,
/// and 64 KiB, the default of older systems, must do for all rings of all cores.
const LOCKED_BYTES_AMPLE: u64 = 1 << 20;

/// How often, and how many ms each time, to wait for memory that is about to be given back.
const FREED_WAITS_MAX: u32 = 20;
const FREED_WAIT_MS: u8 = 25;

/// Rings of this process, to tell whose registered buffer a buffer is.
static RINGS: AtomicU64 = AtomicU64::new(0);

/// How a ring is made. The defaults are those of storage.md 10.
#[derive(Clone, Debug)]
pub struct UringOptions {
    /// Places of the submission queue: what one system call hands over.
    pub submission_entries: u32,
    /// Places of the completion queue, and so the ops in flight.
    pub completion_entries: u32,
    /// Kernel workers for what would block: on regular files, and on anything else.
    pub workers_max: [u32; 2],
    /// Whether the log buffers are registered with the kernel, where its limits allow.
    pub register_log_bufs: bool,
}

impl Default for UringOptions {
    fn default() -> Self {
        Self {
            submission_entries: 256,
            completion_entries: 2048,
            workers_max: [4, 8],
            register_log_bufs: true,
        }
    }
}

/// A flag of the set-up and how it is asked for.
type Flag = (&'static str, fn(&mut Builder) -> &mut Builder);

/// The flags we want, newest first: an old kernel refuses from the front.
const FLAGS: [Flag; 6] = [
    ("NO_SQARRAY", |builder| builder.setup_no_sqarray()),
    ("SINGLE_ISSUER", |builder| builder.setup_single_issuer()),
    ("TASKRUN_FLAG", |builder| builder.setup_taskrun_flag()),
    ("COOP_TASKRUN", |builder| builder.setup_coop_taskrun()),
    ("SUBMIT_ALL", |builder| builder.setup_submit_all()),
    ("CLAMP", |builder| builder.setup_clamp()),
];

/// The opcodes without which there is no engine.
const OPCODES: [(&str, u8); 13] = [
    ("OPENAT", opcode::OpenAt::CODE),
    ("CLOSE", opcode::Close::CODE),
    ("READ", opcode::Read::CODE),
    ("READ_FIXED", opcode::ReadFixed::CODE),
    ("WRITE", opcode::Write::CODE),
    ("WRITE_FIXED", opcode::WriteFixed::CODE),
    ("FSYNC", opcode::Fsync::CODE),
    ("SYNC_FILE_RANGE", opcode::SyncFileRange::CODE),
    ("LINKAT", opcode::LinkAt::CODE),
    ("UNLINKAT", opcode::UnlinkAt::CODE),
    ("RENAMEAT", opcode::RenameAt::CODE),
    ("MKDIRAT", opcode::MkDirAt::CODE),
    ("ASYNC_CANCEL", opcode::AsyncCancel::CODE),
];

/// The disk of one core. Not `Send`: the kernel holds it to the thread that made it.
///
/// It needs nothing but a directory, so a measurement can use it alone:
///
/// ```
/// use ringpost_engine::io::{Done, Helpers, Io, Op, RelPath, Token, UringIo, UringOptions};
///
/// let dir = tempfile::tempdir()?;
/// let helpers = Helpers::start(dir.path())?;
/// let mut io = UringIo::new(&UringOptions::default(), &helpers)?;
/// let path = RelPath::root().entry("scratch.log").expect("a plain name");
/// let op = Op::LogCreate { path, bytes: 1 << 20 };
/// io.submit(op, Token(7)).expect("the table of ops in flight has room");
/// let mut finished = Vec::new();
/// while finished.is_empty() {
///     io.wait();
///     io.poll(&mut finished);
/// }
/// assert!(matches!(finished[0].result, Ok(Done::Nothing)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct UringIo {
    /// Dropped by hand, after the last completion or never.
    ring: ManuallyDrop<IoUring>,
    number: u64,
    /// Ops in flight at most: the places of the completion queue.
    capacity: usize,
    register_log_bufs: bool,
    notes: Vec<String>,
    dir: Arc<Dir>,
    in_flight: InFlight,
    /// Slots the kernel may hold pointers into.
    in_kernel: usize,
    files: Files,
    /// To be handed to the kernel.
    ready: VecDeque<Key>,
    /// To be handed to the caller.
    finished: Vec<Completion>,
    /// Completions copied out of the queue, so that no other code runs while it is read.
    reaped: Vec<(u64, i32)>,
    event: Arc<EventFd>,
    helpers: Helpers,
    reply: Reply,
    answers: Receiver<Answer>,
    /// Jobs with the helper threads.
    helping: usize,
    /// Transfers that were short, or asked to be tried again.
    continued: u64,
    #[cfg(test)]
    mutant: mutants::Mutant,
}

impl std::fmt::Debug for UringIo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UringIo")
            .field("number", &self.number)
            .field("in_flight", &self.in_flight.len())
            .finish_non_exhaustive()
    }
}

impl UringIo {
    /// Makes the ring on the calling thread, which is the only one that may use it.
    /// [`OpenError::NoRing`] says in a sentence what forbids it and what to change.
    pub fn new(options: &UringOptions, helpers: &Helpers) -> Result<Self, OpenError> {
        let mut notes = Vec::new();
        let fail = |error: &std::io::Error| {
            no_ring(error.raw_os_error().unwrap_or(0), Surroundings::look())
        };
        let ring = set_up(options, &mut notes).map_err(|error| fail(&error))?;
        probe(&ring, fail)?;
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| fail(&errno.into()))?;
        let event = Arc::new(event);
        ring.submitter()
            .register_eventfd(event.as_fd().as_raw_fd())
            .map_err(|error| fail(&error))?;
        let mut workers = options.workers_max;
        if let Err(error) = ring.submitter().register_iowq_max_workers(&mut workers) {
            notes.push(format!(
                "the number of kernel workers is not bounded: {error}"
            ));
        }
        let (sender, answers) = channel();
        let capacity = usize::try_from(ring.params().cq_entries()).expect("u32 fits a usize");
        Ok(Self {
            ring: ManuallyDrop::new(ring),
            number: RINGS.fetch_add(1, Ordering::Relaxed),
            capacity,
            register_log_bufs: options.register_log_bufs,
            notes,
            dir: Arc::clone(helpers.dir()),
            in_flight: InFlight::new(capacity),
            in_kernel: 0,
            files: Files::default(),
            ready: VecDeque::with_capacity(capacity),
            finished: Vec::new(),
            reaped: Vec::new(),
            helpers: helpers.clone(),
            reply: Reply {
                answers: sender,
                event: Arc::clone(&event),
                stopped: Arc::new(AtomicBool::new(false)),
            },
            event,
            answers,
            helping: 0,
            continued: 0,
            #[cfg(test)]
            mutant: mutants::Mutant::None,
        })
    }

    /// Becomes readable when a completion may be there, of the ring or of a helper thread. Call
    /// [`clear_event`](Self::clear_event) before the `poll` that follows, never after.
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Makes the event unreadable until the next completion.
    pub fn clear_event(&self) {
        // EAGAIN: it was not readable.
        self.event.read().ok();
    }

    /// What this kernel or its limits refused, a sentence each, for the log at start.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Ops that have no completion yet.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len() + self.finished.len()
    }

    /// Ops handed to the kernel once more: after a short transfer, EAGAIN or EINTR, a refused
    /// `O_NOATIME`, or for the second half of a `SyncDir`. A metric.
    pub fn continued(&self) -> u64 {
        self.continued
    }

    /// Hands over, reaps, takes answers, until nothing is left to hand over.
    fn turn(&mut self) {
        loop {
            let short = self.hand_over();
            self.reap();
            self.take_answers();
            if self.ready.is_empty() || short {
                return;
            }
        }
    }

    /// Fills the submission queue and enters the kernel if there is a reason to. Events are off
    /// meanwhile: what completes here is reaped next, and should not wake us once more. Says whether
    /// the kernel was short of memory and took nothing.
    fn hand_over(&mut self) -> bool {
        let mut short = false;
        self.ring.completion().disable_eventfd();
        loop {
            while !self.ring.submission().is_full()
                && let Some(key) = self.ready.pop_front()
            {
                self.push(key);
            }
            let queue = self.ring.submission();
            if queue.is_empty() && !queue.taskrun() && !queue.cq_overflow() {
                break;
            }
            drop(queue);
            match self.ring.submit() {
                Ok(_) if self.ready.is_empty() => break,
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM) => {
                        // The kernel is short of memory; the entries stay in the queue. Nothing else
                        // may be in flight to wake the caller.
                        self.event.write(1).ok();
                        short = true;
                        break;
                    }
                    _ => panic!("io_uring_enter on ring {}: {error}", self.number),
                },
            }
        }
        self.ring.completion().enable_eventfd();
        // A completion after this line signals the event; one before it is seen by `reap`.
        fence(Ordering::SeqCst);
        short
    }

    /// Puts one slot into the submission queue, which has room.
    fn push(&mut self, key: Key) {
        let slot = self.in_flight.slot(key);
        let Some(entry) = build(slot, &self.dir, self.number) else {
            // A close of a file that another op still holds: the last of them closes it.
            self.finished.push(self.in_flight.remove(key).finish());
            return;
        };
        slot.in_kernel = true;
        self.in_kernel += 1;
        let entry = entry.user_data(key.0);
        // SAFETY: all that the entry points to (buffer, path strings, descriptor) is owned by the
        // slot, which stays in `in_flight` until the completion of this key is reaped; the slab may
        // move slots, but what they point to is on the heap. The test is `drop_with_work_in_flight`
        // in `conformance`, under AddressSanitizer.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        assert!(pushed.is_ok(), "the submission queue has room");
        #[cfg(test)]
        self.mutant.after_push(self.in_flight.slot(key));
    }

    /// Copies completions out and steps their slots.
    fn reap(&mut self) {
        let mut reaped = std::mem::take(&mut self.reaped);
        let queue = self.ring.completion();
        assert_eq!(queue.overflow(), 0, "the completion queue has room for all");
        reaped.extend(queue.map(|entry| (entry.user_data(), entry.result())));
        for (key, result) in reaped.drain(..) {
            self.completed(Key(key), result);
        }
        self.reaped = reaped;
    }

    fn completed(&mut self, key: Key, result: i32) {
        self.in_kernel -= 1;
        let slot = self.in_flight.slot(key);
        slot.in_kernel = false;
        match slot.step(gain(slot, result)) {
            Step::Again => {
                self.continued += 1;
                self.ready.push_back(key);
            }
            Step::Finished => self.finished.push(self.in_flight.remove(key).finish()),
            Step::Failed(errno) => self.finished.push(self.in_flight.remove(key).fail(errno)),
            Step::Opened(fd) => {
                let slot = self.in_flight.remove(key);
                self.finished.push(opened(&mut self.files, slot, fd));
            }
        }
    }

    fn take_answers(&mut self) {
        while self.helping > 0
            && let Ok((key, result)) = self.answers.try_recv()
        {
            self.helping -= 1;
            let slot = self.in_flight.remove(Key(key));
            self.finished.push(match result {
                Ok(done) => Completion {
                    token: slot.token,
                    result: Ok(done),
                },
                Err(error) => slot.fail_with(error),
            });
        }
    }

    /// Cancels what can be cancelled and waits for the completions of all that the kernel holds.
    fn drain(&mut self) {
        if self.in_kernel == 0 {
            return;
        }
        let all = opcode::AsyncCancel2::new(CancelBuilder::any().all());
        let all = all.build().user_data(CANCEL);
        let wait = Timespec::new().nsec(100_000_000);
        let mut cancelled = false;
        for _ in 0..DRAIN_WAITS_MAX {
            if !cancelled {
                // SAFETY: a cancel points to nothing.
                cancelled = unsafe { self.ring.submission().push(&all) }.is_ok();
            }
            // Errors are timeouts and signals; what counts is what is reaped.
            drop(
                self.ring
                    .submitter()
                    .submit_with_args(1, &SubmitArgs::new().timespec(&wait)),
            );
            let reaped: Vec<_> = self.ring.completion().collect();
            for entry in reaped {
                if entry.user_data() != CANCEL {
                    let key = Key(entry.user_data());
                    let slot = self.in_flight.slot(key);
                    // A descriptor that was opened meanwhile is closed by this drop.
                    drop(gain(slot, entry.result()));
                    drop(self.in_flight.remove(key));
                    self.in_kernel -= 1;
                }
            }
            if self.in_kernel == 0 {
                return;
            }
        }
    }
}

impl Io for UringIo {
    fn submit(&mut self, op: Op, token: Token) -> Result<(), Op> {
        if self.in_flight() >= self.capacity {
            return Err(op);
        }
        let file = match op {
            Op::Close { file } => self.files.remove(file),
            _ => op.file().and_then(|file| self.files.find(file)),
        };
        let checked = match (op.file(), &file) {
            (Some(_), None) => Err(libc::EBADF),
            _ => op.check(),
        };
        let idle = matches!(op, Op::StartWriteback { len: 0, .. });
        if op.is_for_helpers() && checked.is_ok() {
            self.help(op, token);
            return Ok(());
        }
        let key = self.in_flight.insert(token, op, file);
        match checked {
            Err(errno) => self.finished.push(self.in_flight.remove(key).fail(errno)),
            Ok(()) if idle => self.finished.push(self.in_flight.remove(key).finish()),
            Ok(()) => self.ready.push_back(key),
        }
        Ok(())
    }

    fn poll(&mut self, out: &mut Vec<Completion>) {
        self.turn();
        out.append(&mut self.finished);
    }

    fn wait(&mut self) {
        if self.in_flight() == 0 {
            return;
        }
        self.turn();
        if self.finished.is_empty() {
            let mut fds = [PollFd::new(self.event.as_fd(), PollFlags::POLLIN)];
            // EINTR is as good as an event: the caller polls and waits again.
            nix::poll::poll(&mut fds, PollTimeout::NONE).ok();
            self.clear_event();
        }
    }

    fn log_bufs(&mut self, count: usize, bytes: usize) -> Vec<AlignedBuf> {
        let mut bufs: Vec<_> = (0..count).map(|_| AlignedBuf::zeroed(bytes)).collect();
        if !self.register_log_bufs || bufs.is_empty() {
            return bufs;
        }
        let table: Vec<_> = bufs
            .iter_mut()
            .map(|buf| libc::iovec {
                iov_base: buf.as_mut_ptr().cast(),
                iov_len: buf.len(),
            })
            .collect();
        // SAFETY: each range is one whole live buffer. The kernel pins its pages until the ring ends,
        // and uses them only for an op that names the index, which only that very buffer can: when it
        // is freed nobody can name it any more.
        let registered = unsafe { self.ring.submitter().register_buffers(&table) };
        match registered {
            Ok(()) => {
                for (buf, index) in bufs.iter_mut().zip(0..) {
                    buf.set_registered(Registered {
                        ring: self.number,
                        index,
                    });
                }
            }
            Err(error) => self.notes.push(format!(
                "the log buffers are not registered with the kernel ({error}; the limit of locked \
                 memory is {} bytes); plain writes are used",
                Surroundings::look().locked_bytes
            )),
        }
        bufs
    }
}

impl UringIo {
    /// The ring once more, so that the end of this one does not end the kernel's.
    #[cfg(test)]
    fn another_handle(&self) -> OwnedFd {
        // SAFETY: the descriptor is open for as long as `self`, and is borrowed for this call.
        let ring = unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) };
        ring.try_clone_to_owned().expect("a descriptor is free")
    }

    /// Gives an op to a helper thread. Its slot keeps the token; the op travels.
    fn help(&mut self, op: Op, token: Token) {
        let key = self.in_flight.insert(token, Op::FreeSpace, None);
        self.helping += 1;
        self.helpers.send(Job::new(op, key.0, self.reply.clone()));
    }
}

impl Drop for UringIo {
    fn drop(&mut self) {
        self.reply.stopped.store(true, Ordering::Release);
        #[cfg(test)]
        let waits = self.mutant.waits(&mut self.in_flight, &mut self.in_kernel);
        #[cfg(not(test))]
        let waits = true;
        if waits {
            self.drain();
        }
        while self.helping > 0 && self.answers.recv().is_ok() {
            self.helping -= 1;
        }
        if self.in_kernel == 0 {
            // SAFETY: nothing of the kernel's is left, and the field is not used after this.
            unsafe { ManuallyDrop::drop(&mut self.ring) };
        } else {
            // The kernel may write to this memory at any later time.
            self.in_flight.retain_in_kernel();
            let lost = std::mem::replace(&mut self.in_flight, InFlight::new(0));
            Box::leak(Box::new(lost));
        }
    }
}

/// Makes the ring, smaller where the limit of locked memory asks for it: since Linux 6.13 the queues
/// of a user without `CAP_IPC_LOCK` count against it, and the daemon's other rings need room beside
/// this one.
fn set_up(options: &UringOptions, notes: &mut Vec<String>) -> std::io::Result<IoUring> {
    let wanted = (options.submission_entries, options.completion_entries);
    let smallest = (wanted.0.min(ENTRIES_MIN.0), wanted.1.min(ENTRIES_MIN.1));
    let around = Surroundings::look();
    let limited = around.locked_bytes < LOCKED_BYTES_AMPLE && !nix::unistd::geteuid().is_root();
    let mut entries = if limited { smallest } else { wanted };
    let mut waits = 0;
    loop {
        match with_flags(entries, notes) {
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {
                if entries != smallest {
                    entries = (
                        (entries.0 / 2).max(smallest.0),
                        (entries.1 / 2).max(smallest.1),
                    );
                } else if waits < FREED_WAITS_MAX {
                    // The kernel gives the memory of a dead process's rings back a little later.
                    waits += 1;
                    nix::poll::poll(&mut [], FREED_WAIT_MS).ok();
                } else {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
            Ok(ring) => {
                if entries != wanted {
                    notes.push(format!(
                        "the limit of locked memory is {} bytes, so at most {} operations of a \
                         core are in flight instead of {}; raise it (`ulimit -l`, LimitMEMLOCK= \
                         in a systemd unit)",
                        around.locked_bytes, entries.1, wanted.1
                    ));
                }
                return Ok(ring);
            }
        }
    }
}

/// Makes the ring with as many of the flags as the kernel takes, and names the others.
fn with_flags(entries: (u32, u32), notes: &mut Vec<String>) -> std::io::Result<IoUring> {
    let mut refused = 0;
    loop {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(entries.1).dontfork();
        for (_, set) in FLAGS.iter().skip(refused) {
            set(&mut builder);
        }
        match builder.build(entries.0) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && refused < FLAGS.len() => {
                refused += 1;
            }
            Err(error) => return Err(error),
            Ok(ring) => {
                notes.extend(FLAGS.iter().take(refused).map(|(name, _)| {
                    format!("this kernel does not take the io_uring flag {name}; done without")
                }));
                return Ok(ring);
            }
        }
    }
}

/// Checks that every opcode is there.
fn probe(ring: &IoUring, fail: impl Fn(&std::io::Error) -> OpenError) -> Result<(), OpenError> {
    let mut probe = Probe::new();
    ring.submitter()
        .register_probe(&mut probe)
        .map_err(|error| fail(&error))?;
    let missing: Vec<_> = OPCODES
        .iter()
        .filter(|(_, code)| !probe.is_supported(*code))
        .map(|(name, _)| *name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(OpenError::NoRing {
        reason: format!(
            "the kernel lacks {}; use Linux 6.0 or newer",
            missing.join(", ")
        ),
    })
}

/// What a completion says, with a descriptor in it owned at once.
fn gain(slot: &Slot, result: i32) -> Result<Gain, i32> {
    let opens = match slot.op {
        Op::Open { .. } => true,
        Op::SyncDir { .. } => slot.dir.is_none(),
        _ => false,
    };
    match usize::try_from(result) {
        Err(_) => Err(-result),
        // SAFETY: the kernel made this descriptor for this op, whose completion is seen once.
        Ok(_) if opens => Ok(Gain::Fd(unsafe { OwnedFd::from_raw_fd(result) })),
        Ok(count) => Ok(Gain::Count(count)),
    }
}

/// Puts a new file into the table. Its size is in memory, so fstat does not block.
fn opened(files: &mut Files, slot: Slot, fd: OwnedFd) -> Completion {
    let stat = match nix::sys::stat::fstat(&fd) {
        Ok(stat) if stat.st_mode & libc::S_IFMT == libc::S_IFDIR => return slot.fail(libc::EISDIR),
        Ok(stat) => stat,
        Err(errno) => return slot.fail(errno as i32),
    };
    let token = slot.token;
    let Op::Open { path, .. } = slot.op else {
        unreachable!("only an open gives a descriptor");
    };
    let file = files.insert(OpenFile { fd, path });
    let bytes = u64::try_from(stat.st_size).unwrap_or(0);
    Completion {
        token,
        result: Ok(Done::Opened { file, bytes }),
    }
}

/// The submission entry for a slot; `None` for a close that has nothing to close yet.
fn build(slot: &mut Slot, dir: &Dir, ring: u64) -> Option<Entry> {
    let resume = slot.resume();
    let at = Fd(dir.as_fd().as_raw_fd());
    if let Op::Close { .. } = slot.op {
        let file = slot
            .file
            .take()
            .and_then(|file| Rc::try_unwrap(file).ok())?;
        return Some(opcode::Close::new(Fd(file.fd.into_raw_fd())).build());
    }
    let fd = slot.file.as_ref().map(|file| file.fd.as_raw_fd());
    let fd = || Fd(fd.expect("an op on a file was given its file"));
    Some(match &mut slot.op {
        Op::Open { path, mode } => open_entry(at, path, *mode, slot.noatime),
        Op::LogWrite {
            offset, buf, len, ..
        } => log_entry(fd(), buf, resume..*len, *offset, ring, Way::Write),
        Op::LogRead {
            offset, buf, len, ..
        } => log_entry(fd(), buf, resume..*len, *offset, ring, Way::Read),
        Op::Read { offset, len, .. } => {
            let rest = slot
                .data
                .get_mut(resume..*len)
                .expect("made in this length");
            opcode::Read::new(fd(), rest.as_mut_ptr(), count(rest.len()))
                .offset(*offset + resume as u64)
                .build()
        }
        Op::Write { offset, data, .. } => {
            let rest = data.get(resume..).expect("it goes on inside its data");
            opcode::Write::new(fd(), rest.as_ptr(), count(rest.len()))
                .offset(*offset + resume as u64)
                .build()
        }
        Op::StartWriteback { offset, len, .. } => {
            // A hint: what is beyond 4 GiB is left to the kernel's own write-back.
            let len = u32::try_from(*len).unwrap_or(u32::MAX);
            opcode::SyncFileRange::new(fd(), len)
                .offset(*offset)
                .flags(libc::SYNC_FILE_RANGE_WRITE)
                .build()
        }
        Op::Sync { .. } => opcode::Fsync::new(fd()).flags(FsyncFlags::DATASYNC).build(),
        Op::SyncDir { path } => match &slot.dir {
            Some(dir) => opcode::Fsync::new(Fd(dir.as_raw_fd())).build(),
            None => opcode::OpenAt::new(at, path.as_c_str().as_ptr())
                .flags(libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC)
                .build(),
        },
        Op::MakeDir { path } => opcode::MkDirAt::new(at, path.as_c_str().as_ptr())
            .mode(0o700)
            .build(),
        Op::Link { from, to } => {
            opcode::LinkAt::new(at, from.as_c_str().as_ptr(), at, to.as_c_str().as_ptr()).build()
        }
        Op::Rename { from, to } => {
            opcode::RenameAt::new(at, from.as_c_str().as_ptr(), at, to.as_c_str().as_ptr()).build()
        }
        Op::Unlink { path } => opcode::UnlinkAt::new(at, path.as_c_str().as_ptr()).build(),
        other => unreachable!("not for the ring: {other:?}"),
    })
}

fn open_entry(at: Fd, path: &RelPath, mode: OpenMode, noatime: bool) -> Entry {
    let flags = match mode {
        OpenMode::Read if noatime => libc::O_RDONLY | libc::O_NOATIME,
        OpenMode::Read => libc::O_RDONLY,
        OpenMode::Log => libc::O_RDWR | libc::O_DIRECT,
        OpenMode::Create => libc::O_RDWR | libc::O_CREAT | libc::O_EXCL,
        OpenMode::Edit => libc::O_RDWR,
    };
    opcode::OpenAt::new(at, path.as_c_str().as_ptr())
        .flags(flags | libc::O_CLOEXEC)
        .mode(0o600)
        .build()
}

/// Direction of a log transfer.
#[derive(Clone, Copy)]
enum Way {
    Read,
    Write,
}

/// A transfer of the part `range` of a log buffer, of which the whole lies at `offset`.
fn log_entry(
    fd: Fd,
    buf: &mut AlignedBuf,
    range: std::ops::Range<usize>,
    offset: u64,
    ring: u64,
    way: Way,
) -> Entry {
    let registered = buf
        .registered()
        .filter(|registered| registered.ring == ring);
    let offset = offset + range.start as u64;
    let part = buf.get_mut(range).expect("checked before it was queued");
    let (start, len) = (part.as_mut_ptr(), count(part.len()));
    match (way, registered) {
        (Way::Write, Some(place)) => opcode::WriteFixed::new(fd, start, len, place.index)
            .offset(offset)
            .rw_flags(libc::RWF_DSYNC)
            .build(),
        (Way::Write, None) => opcode::Write::new(fd, start, len)
            .offset(offset)
            .rw_flags(libc::RWF_DSYNC)
            .build(),
        (Way::Read, Some(place)) => opcode::ReadFixed::new(fd, start, len, place.index)
            .offset(offset)
            .build(),
        (Way::Read, None) => opcode::Read::new(fd, start, len).offset(offset).build(),
    }
}

/// A length as the kernel takes it.
fn count(len: usize) -> u32 {
    u32::try_from(len).expect("every op is below 4 GiB")
}

#[cfg(test)]
mod mutants;
#[cfg(test)]
pub(crate) mod tests;
