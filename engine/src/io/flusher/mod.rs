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

/// Bytes that a checkpoint may leave in the page cache for its sync. Were all of them left to it, they
/// would go to the disk at once, and the durable writes of the logs would stand behind them for seconds
/// (decision 0019).
const UNSYNCED_MAX: u64 = 4 << 20;

/// Bytes that the file system writes besides for a user: blocks of directories and inodes, roughly.
const WORK_BYTES: u64 = 8 << 10;

/// The thread of checkpoints.
struct Flusher<'a> {
    dir: &'a Dir,
    /// Bytes written since the last syncfs, roughly.
    unsynced: u64,
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
            unsynced: 0,
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
                Op::Materialise(works) => self.materialise(&works, &stopped),
                other => unreachable!("not for the flusher: {other:?}"),
            });
        }
    }

    /// What waits for a sync goes first, if it is much.
    fn materialise(&mut self, works: &[Work], stopped: &AtomicBool) -> Result<Done, IoError> {
        let early = self.unsynced >= UNSYNCED_MAX;
        if early {
            self.sync()?;
        }
        match materialise::run(self.dir, works, stopped)? {
            Done::Materialised { bytes, syncs } => {
                let later = works.iter().filter(|work| work.sync == WorkSync::Later);
                let later = u64::try_from(later.count()).expect("an index has at most 64 bits");
                if later > 0 {
                    self.unsynced += bytes + later * WORK_BYTES;
                }
                let syncs = syncs + u64::from(early);
                Ok(Done::Materialised { bytes, syncs })
            }
            other => Ok(other),
        }
    }

    /// One syncfs. None succeeds behind one that failed.
    fn sync(&mut self) -> Result<(), IoError> {
        if self.failed.is_none() {
            self.failed = self.dir.syncfs().err();
        }
        self.unsynced = 0;
        self.failed.clone().map_or(Ok(()), Err)
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
        let result = self.sync();
        for job in group {
            job.run(|_| result.clone().map(|()| Done::Nothing));
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::io::{Piece, RelPath};

    #[test]
    fn little_of_a_checkpoint_is_left_to_its_sync() {
        let folder = tempfile::tempdir().unwrap();
        let dir = Dir::open_root(folder.path()).unwrap();
        let mut flusher = Flusher::new(&dir);
        let mut written = |sync: WorkSync| {
            let step = Step::Write {
                path: RelPath::store(),
                offset: 0,
                pieces: vec![Piece::Bytes(Bytes::from(vec![7; 1 << 20]))],
            };
            let steps = vec![step];
            let works = [Work { steps, sync }];
            match flusher.materialise(&works, &AtomicBool::new(false)) {
                Ok(Done::Materialised { syncs, .. }) => (syncs, flusher.unsynced >> 20),
                other => panic!("{other:?}"),
            }
        };
        let mut seen = [WorkSync::Later; 6].map(&mut written).to_vec();
        seen.push(written(WorkSync::Each));
        assert_eq!(
            seen,
            [(0, 1), (0, 2), (0, 3), (0, 4), (1, 1), (0, 2), (2, 2)],
            "syncs of each work (its own are of the file and the name), MiB that wait for one"
        );
    }

    #[test]
    fn a_sync_that_failed_is_told_to_all_that_come_behind_it() {
        let folder = tempfile::tempdir().unwrap();
        let dir = Dir::open_root(folder.path()).unwrap();
        let mut flusher = Flusher::new(&dir);
        flusher.failed = Some(dir.error("sync", 0, 0, libc::EIO));
        flusher.unsynced = UNSYNCED_MAX;
        let early = flusher.materialise(&[], &AtomicBool::new(false));
        assert_eq!(early.unwrap_err().errno, libc::EIO);
        assert_eq!(flusher.sync().unwrap_err().errno, libc::EIO);
    }
}
