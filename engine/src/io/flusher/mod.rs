//! The node's helper threads: what the kernel has no opcode for, and what would keep a core waiting.
//!
//! Three threads, shared by all cores: the **flusher** (Materialise, `SyncTree`), the **maker**
//! (`LogCreate`, `CopyExpanded`: long, and nobody's checkpoint should wait behind them) and the
//! **lookup** (`ListDir`, `ReadFile`, `FreeSpace`: short, and never behind a checkpoint). The first
//! two are niced. Each takes jobs in the order they came, from all cores, and answers through the
//! core's own channel and eventfd. What bounds the queues is the table of ops in flight of each core.
//!
//! Every job is answered exactly once, also when its thread dies of a bug. The threads end when the
//! last handle is gone, with all jobs answered.

mod compact;
mod dir;
mod lookup;
mod maker;
mod materialise;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use nix::sys::eventfd::EventFd;

use super::nice::lower_priority;
use super::{Done, Op, Step, Work, WorkSync};
use crate::error::IoError;

#[cfg(feature = "sim")]
pub(crate) use compact::{bounded, damaged, prove};
pub(crate) use dir::Dir;
#[cfg(feature = "sim")]
pub(crate) use maker::expand;

/// Does steps in order, on the caller's thread, for what runs before there is a ring; all of them are
/// durable when it returns.
pub(crate) fn do_now(dir: &Dir, steps: Vec<Step>) -> Result<(), IoError> {
    let sync = WorkSync::Each;
    materialise::run(dir, &[Work { steps, sync }], &AtomicBool::new(false)).map(drop)
}

/// How much nicer the flusher and the maker are than a core.
const NICE: i32 = 10;

/// Handle of the helper threads of one data directory. Clones share them; make one per node and
/// hand it to each core's [`UringIo::new`](super::ring::UringIo::new).
#[derive(Clone, Debug)]
pub struct Helpers(Arc<Threads>);

impl Helpers {
    /// Opens the data directory and starts the threads. The directory stays open until the last
    /// handle is gone, so that `SyncTree` hears of every write-back error since now.
    pub fn start(data_dir: &Path) -> Result<Self, IoError> {
        let dir = Arc::new(Dir::open_root(data_dir)?);
        let mut threads = Threads {
            dir: Arc::clone(&dir),
            queues: None,
            handles: Vec::with_capacity(3),
        };
        let queues = Queues {
            flusher: threads.spawn("rp-flusher", |jobs, dir| Flusher::new(dir).run(&jobs))?,
            maker: threads.spawn("rp-maker", |jobs, dir| {
                lower_priority(NICE);
                serve(&jobs, |op| maker::run(dir, op));
            })?,
            lookup: threads.spawn("rp-lookup", |jobs, dir| {
                serve(&jobs, |op| lookup::run(dir, op));
            })?,
        };
        threads.queues = Some(queues);
        Ok(Self(Arc::new(threads)))
    }

    /// The data directory.
    pub(crate) fn dir(&self) -> &Arc<Dir> {
        &self.0.dir
    }

    /// Queues a job with the thread for its op.
    pub(crate) fn send(&self, job: Job) {
        let queues = self.0.queues.as_ref().expect("set before anybody sends");
        let queue = match job.op {
            Some(Op::Materialise(_) | Op::SyncTree) => &queues.flusher,
            Some(Op::LogCreate { .. } | Op::CopyExpanded { .. }) => &queues.maker,
            _ => &queues.lookup,
        };
        // A dead thread hands the job back, and its drop answers it.
        drop(queue.send(job));
    }
}

#[derive(Debug)]
struct Queues {
    flusher: Sender<Job>,
    maker: Sender<Job>,
    lookup: Sender<Job>,
}

#[derive(Debug)]
struct Threads {
    dir: Arc<Dir>,
    queues: Option<Queues>,
    handles: Vec<JoinHandle<()>>,
}

impl Threads {
    fn spawn(
        &mut self,
        name: &str,
        body: impl FnOnce(Receiver<Job>, &Dir) + Send + 'static,
    ) -> Result<Sender<Job>, IoError> {
        let (sender, receiver) = channel();
        let dir = Arc::clone(&self.dir);
        let handle = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || body(receiver, &dir))
            .map_err(|error| {
                let errno = error.raw_os_error().unwrap_or(libc::EAGAIN);
                self.dir.error("start a helper thread for", 0, 0, errno)
            })?;
        self.handles.push(handle);
        Ok(sender)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // The threads end when no queue has a sender left.
        self.queues = None;
        for handle in self.handles.drain(..) {
            // A panic there was reported when it happened, and its jobs were answered.
            drop(handle.join());
        }
    }
}

/// An answer: the slot of the op and what came of it.
pub(crate) type Answer = (u64, Result<Done, IoError>);

/// Where answers of one core go.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) answers: Sender<Answer>,
    /// Signalled after each answer.
    pub(crate) event: Arc<EventFd>,
    /// Set when the core wants no more: queued jobs are answered unstarted.
    pub(crate) stopped: Arc<AtomicBool>,
}

/// An op for a helper thread.
#[derive(Debug)]
pub(crate) struct Job {
    /// Taken when it runs.
    pub(crate) op: Option<Op>,
    pub(crate) key: u64,
    pub(crate) reply: Reply,
    answered: bool,
}

impl Job {
    pub(crate) fn new(op: Op, key: u64, reply: Reply) -> Self {
        Self {
            op: Some(op),
            key,
            reply,
            answered: false,
        }
    }

    fn answer(&mut self, result: Result<Done, IoError>) {
        self.answered = true;
        // The core may be gone, and a full counter is readable anyway.
        drop(self.reply.answers.send((self.key, result)));
        self.reply.event.write(1).ok();
    }

    /// Runs it, unless the core wants no more.
    fn run(mut self, run: impl FnOnce(Op) -> Result<Done, IoError>) {
        if !self.reply.stopped.load(Ordering::Acquire)
            && let Some(op) = self.op.take()
        {
            self.answer(run(op));
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.answered {
            self.answer(Err(IoError {
                operation: "reach a helper thread for",
                path: ".".to_owned(),
                offset: 0,
                len: 0,
                errno: libc::ECANCELED,
            }));
        }
    }
}

/// Job after job until all senders are gone.
fn serve(jobs: &Receiver<Job>, mut run: impl FnMut(Op) -> Result<Done, IoError>) {
    for job in jobs {
        job.run(&mut run);
    }
}

/// The thread of checkpoints.
struct Flusher<'a> {
    dir: &'a Dir,
    /// The first failed syncfs. The kernel reports a write-back error once per descriptor, but every
    /// core's mail may be concerned: no later one succeeds (DESIGN.md decision 11).
    failed: Option<IoError>,
    /// Taken off the queue while looking for more of the same.
    next: VecDeque<Job>,
}

impl<'a> Flusher<'a> {
    fn new(dir: &'a Dir) -> Self {
        Self {
            dir,
            failed: None,
            next: VecDeque::new(),
        }
    }

    fn run(mut self, jobs: &Receiver<Job>) {
        lower_priority(NICE);
        while let Some(job) = self.next.pop_front().or_else(|| jobs.recv().ok()) {
            if matches!(job.op, Some(Op::SyncTree)) {
                self.sync_tree(job, jobs);
                continue;
            }
            let stopped = Arc::clone(&job.reply.stopped);
            job.run(|op| match op {
                Op::Materialise(works) => materialise::run(self.dir, &works, &stopped),
                other => unreachable!("not for the flusher: {other:?}"),
            });
        }
    }

    /// One syncfs answers all that wait for one, with nothing between them, in the queue.
    fn sync_tree(&mut self, first: Job, jobs: &Receiver<Job>) {
        let mut group = vec![first];
        while let Ok(job) = jobs.try_recv() {
            if matches!(job.op, Some(Op::SyncTree)) && self.next.is_empty() {
                group.push(job);
            } else {
                self.next.push_back(job);
                break;
            }
        }
        if self.failed.is_none() {
            self.failed = self.dir.syncfs().err();
        }
        for job in group {
            job.run(|_| match &self.failed {
                None => Ok(Done::Nothing),
                Some(error) => Err(error.clone()),
            });
        }
    }
}
