//! The handle of a simulated disk: crashes, switches, and a look at what is on it.

use std::cell::RefCell;
use std::rc::Rc;

use fastrand::Rng;

use super::config::{Crash, SimConfig, Wound};
use super::driver::SimIo;
use super::medium;
use super::state::State;
use super::store::{Inode, Node, SECTOR, Store, plain};
use crate::io::RelPath;

/// A handle of a simulated disk that outlives the `Io`s on it. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct SimDisk(pub(super) Rc<RefCell<State>>);

impl SimDisk {
    /// An empty disk.
    pub fn new(config: SimConfig) -> Self {
        let rng = Rng::with_seed(config.seed);
        let store = Store::new(config.model);
        Self::with(config, rng, 0, store)
    }

    fn with(config: SimConfig, rng: Rng, now_ns: u64, store: Store) -> Self {
        Self(Rc::new(RefCell::new(State::new(
            config, rng, now_ns, store,
        ))))
    }

    /// A further `Io` on it, as of another core.
    pub fn io(&self) -> SimIo {
        let id = self.0.borrow_mut().new_io();
        SimIo::new(self.clone(), id)
    }

    /// Ends the machine or the process now, or at the crash point that was reached, and gives the
    /// image to restart from. Everything on this disk fails from here on. Call it before dropping
    /// the `Io`s, which wait for their ops; call it again for another fate of the same moment.
    #[must_use]
    pub fn crash(&mut self, kind: Crash) -> Self {
        let (config, rng, now_ns, store) = self.0.borrow_mut().crash(kind);
        Self::with(config, rng, now_ns, store)
    }

    /// Changes switches. One-shot switches go on counting from where the disk is.
    pub fn configure(&self, change: impl FnOnce(&mut SimConfig)) {
        change(&mut self.0.borrow_mut().config);
    }

    /// Whether the crash point was reached or [`crash`](Self::crash) called.
    pub fn is_crashed(&self) -> bool {
        self.0.borrow().frozen
    }

    /// Changes so far: the crash points passed.
    pub fn changes(&self) -> u64 {
        self.0.borrow().counted.changes
    }

    /// Steps so far, reads included.
    pub fn steps(&self) -> u64 {
        self.0.borrow().counted.steps
    }

    /// Syncs so far.
    pub fn syncs(&self) -> u64 {
        self.0.borrow().counted.syncs
    }

    /// Errors given so far that no program could have avoided: those of switches, and a full disk.
    pub fn faults(&self) -> u64 {
        self.0.borrow().counted.faults
    }

    /// Ops in flight, of all its `Io`s.
    pub fn in_flight(&self) -> usize {
        self.0.borrow().in_flight()
    }

    /// Ops that were in flight when their `Io` was dropped, while the disk was not frozen.
    pub fn dropped(&self) -> u64 {
        self.0.borrow().counted.dropped
    }

    /// What went wrong on the medium so far, in earlier lives too.
    pub fn wounds(&self) -> Vec<Wound> {
        self.0.borrow().store.wounds.clone()
    }

    /// Log writes so far.
    pub fn log_writes(&self) -> u64 {
        self.0.borrow().counted.log_writes
    }

    /// Virtual time.
    pub fn now_ns(&self) -> u64 {
        self.0.borrow().now_ns
    }

    /// When the next step of an op in flight is due.
    pub fn next_due_ns(&self) -> Option<u64> {
        self.0.borrow().next_due_ns()
    }

    /// Lets virtual time pass; ops that become due are done.
    pub fn advance(&self, ns: u64) {
        self.0.borrow_mut().advance(ns);
    }

    /// The trace so far: a line per step, if it is kept.
    pub fn trace(&self) -> String {
        self.0.borrow().trace.clone()
    }

    /// The trace since the last call.
    pub fn take_trace(&self) -> String {
        std::mem::take(&mut self.0.borrow_mut().trace)
    }

    /// Names and sizes in a directory, sorted by name; empty if there is none.
    pub fn list(&self, dir: &RelPath) -> Vec<(String, u64)> {
        self.0.borrow().store.list(&plain(dir.as_str()))
    }

    /// Every name with its size in bytes, `None` for directories; sorted.
    pub fn tree(&self) -> Vec<(String, Option<u64>)> {
        let state = self.0.borrow();
        let size = |node: &Node| match node {
            Node::Dir => None,
            Node::File(id) => Some(state.store.inode(*id).cache.len() as u64),
        };
        let names = state.store.names.iter();
        names
            .map(|(path, node)| (path.clone(), size(node)))
            .collect()
    }

    /// The content of a file as a reader sees it.
    pub fn read(&self, path: &RelPath) -> Option<Vec<u8>> {
        let state = self.0.borrow();
        let id = state.store.file(&plain(path.as_str())).ok()?;
        Some(state.store.inode(id).cache.clone())
    }

    /// The length of a file in bytes.
    pub fn len(&self, path: &RelPath) -> Option<u64> {
        let state = self.0.borrow();
        let id = state.store.file(&plain(path.as_str())).ok()?;
        Some(state.store.inode(id).cache.len() as u64)
    }

    /// Puts a durable file there, with its directories; for setting up.
    pub fn put(&self, path: &RelPath, data: &[u8]) {
        let path = plain(path.as_str());
        let mut state = self.0.borrow_mut();
        let store = &mut state.store;
        for (end, _) in path.match_indices('/') {
            if let Some(dir) = path.get(..end) {
                store
                    .make_dir(dir)
                    .expect("the names of a fixture fit together");
            }
        }
        let id = store
            .create(&path)
            .expect("the names of a fixture fit together");
        *store.inode_mut(id) = Inode::durable(data);
        store.sync_tree(u64::MAX);
    }

    /// Makes a durable directory, with those above it; for setting up.
    pub fn put_dir(&self, path: &RelPath) {
        let path = plain(path.as_str());
        let mut state = self.0.borrow_mut();
        let ends: Vec<_> = path.match_indices('/').map(|(end, _)| end).collect();
        for end in ends.into_iter().chain([path.len()]) {
            if let Some(dir) = path.get(..end) {
                let made = state.store.make_dir(dir);
                made.expect("the names of a fixture fit together");
            }
        }
        state.store.sync_tree(u64::MAX);
    }

    /// What was hurt so far was put right: it is no excuse any more.
    pub fn forget_wounds(&self) {
        self.0.borrow_mut().store.wounds.clear();
    }

    /// Bit rot in one byte; `false` if there is no such byte.
    pub fn flip(&self, path: &RelPath, offset: u64, mask: u8) -> bool {
        self.hurt(path, offset, 1, |inode| {
            medium::flip(inode, offset, mask);
        })
    }

    /// A sector of one file lies over another one, as if it had been written to the wrong place; `false`
    /// if they are not there or alike.
    pub fn stray(&self, (from, from_at): (&RelPath, u64), (to, to_at): (&RelPath, u64)) -> bool {
        let sector = |path, at: u64| {
            let bytes = self.read(path)?;
            let start = usize::try_from(at / SECTOR * SECTOR).ok()?;
            let end = bytes.len().min(start + usize::try_from(SECTOR).ok()?);
            bytes.get(start..end).map(<[u8]>::to_vec)
        };
        let (Some(new), Some(old)) = (sector(from, from_at), sector(to, to_at)) else {
            return false;
        };
        let len = new.len().min(old.len());
        let (new, old) = (new.get(..len), old.get(..len));
        let start = to_at / SECTOR * SECTOR;
        match new {
            Some(bytes) if len > 0 && new != old => {
                self.hurt(to, start, bytes.len() as u64, |inode| {
                    medium::replace(inode, start, bytes);
                })
            }
            _ => false,
        }
    }

    /// The sector of a byte cannot be read any more until it is written again; `false` if there is
    /// no such byte.
    pub fn spoil(&self, path: &RelPath, offset: u64) -> bool {
        self.hurt(path, offset, 1, |inode| {
            inode.bad.insert(offset / SECTOR);
        })
    }

    /// Whether all of these bytes of a file can be read.
    pub fn is_readable(&self, path: &RelPath, offset: u64, len: usize) -> bool {
        let state = self.0.borrow();
        let inode = state.store.file(&plain(path.as_str()));
        inode.is_ok_and(|id| state.store.inode(id).check_readable(offset, len).is_ok())
    }

    fn hurt(&self, path: &RelPath, offset: u64, len: u64, hurt: impl FnOnce(&mut Inode)) -> bool {
        let mut state = self.0.borrow_mut();
        let store = &mut state.store;
        match store.file(&plain(path.as_str())) {
            Ok(id) if offset < store.inode(id).cache.len() as u64 => {
                hurt(store.inode_mut(id));
                store.wound(id, offset, len);
                true
            }
            _ => false,
        }
    }
}
