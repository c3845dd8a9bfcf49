//! Files and names of a simulated disk: what readers see, what is durable, and what lies between.
//! No time, no chance; [`crash`](super::crash) draws fates over this.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::config::{Model, Wound};

/// What the medium writes whole: old or new, never torn.
pub(super) const SECTOR: u64 = 512;

/// A file, whatever its names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct InodeId(u64);

/// What a name stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Node {
    Dir,
    File(InodeId),
}

/// A completed write that is not durable.
#[derive(Clone, Debug)]
pub(super) struct Written {
    /// Its place in the order of everything.
    pub(super) seq: u64,
    pub(super) offset: u64,
    pub(super) data: Bytes,
}

impl Written {
    pub(super) fn end(&self) -> u64 {
        self.offset + self.data.len() as u64
    }
}

/// Content of a file.
#[derive(Clone, Default, Debug)]
pub(super) struct Inode {
    /// What readers see.
    pub(super) cache: Vec<u8>,
    /// What the medium has.
    pub(super) durable: Vec<u8>,
    /// Completed, in order, not durable.
    pub(super) pending: Vec<Written>,
    /// Sectors that cannot be read.
    pub(super) bad: BTreeSet<u64>,
}

/// A change of names. Each concerns one directory, but for a rename in [`Model::Ext4`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum NameChange {
    MakeDir(String),
    Add(String, InodeId),
    Remove(String),
    Rename(String, String, InodeId),
}

/// A log write that a killed process left in the device's queue.
#[derive(Clone, Debug)]
pub(super) struct Late {
    pub(super) inode: InodeId,
    pub(super) offset: u64,
    pub(super) data: Bytes,
    /// It lands after so many more steps of the disk, or at a sync.
    pub(super) steps: u32,
}

/// What there can be.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Limits {
    pub(super) inodes_max: Option<u64>,
    pub(super) links_max: Option<u32>,
}

/// All of it.
#[derive(Clone, Debug)]
pub(super) struct Store {
    pub(super) model: Model,
    pub(super) inodes: BTreeMap<InodeId, Inode>,
    /// What readers see. The root is not in it.
    pub(super) names: BTreeMap<String, Node>,
    pub(super) durable_names: BTreeMap<String, Node>,
    /// Done, in order, not durable.
    pub(super) changes: Vec<(u64, NameChange)>,
    pub(super) late: Vec<Late>,
    pub(super) limits: Limits,
    pub(super) wounds: Vec<Wound>,
    next_inode: u64,
    seq: u64,
}

/// A 64-bit position as an index; the simulated files are small.
pub(super) fn size(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a simulated file fits the memory")
}

/// Overwrites or extends `target`, zeros between.
pub(super) fn overlay(target: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let (start, end) = (size(offset), size(offset) + data.len());
    if target.len() < end {
        target.resize(end, 0);
    }
    if let Some(range) = target.get_mut(start..end) {
        range.copy_from_slice(data);
    }
}

/// The part of `data` from `offset`, at most `len` bytes.
pub(super) fn part(data: &[u8], offset: u64, len: usize) -> &[u8] {
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let rest = data.get(start..).unwrap_or_default();
    rest.get(..len).unwrap_or(rest)
}

/// The directory of a name; the root is the empty string.
pub(super) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// A name without `.` components.
pub(super) fn plain(path: &str) -> String {
    let components: Vec<_> = path
        .split('/')
        .filter(|component| !matches!(*component, "" | "."))
        .collect();
    components.join("/")
}

impl Inode {
    /// A file that is wholly durable, for setting up.
    pub(super) fn durable(data: &[u8]) -> Self {
        Self {
            cache: data.to_vec(),
            durable: data.to_vec(),
            ..Self::default()
        }
    }

    /// EIO if one of these bytes lies in a bad sector.
    pub(super) fn check_readable(&self, offset: u64, len: usize) -> Result<(), i32> {
        let end = offset.saturating_add(len as u64).div_ceil(SECTOR);
        match self.bad.range(offset / SECTOR..end).next() {
            Some(_) => Err(libc::EIO),
            None => Ok(()),
        }
    }

    /// A sector that is written again can be read again.
    fn mend(&mut self, offset: u64, len: usize) {
        let end = (offset + len as u64).div_ceil(SECTOR);
        self.bad
            .retain(|sector| !(offset / SECTOR..end).contains(sector));
    }

    /// Makes what was written up to `seq` durable. Sectors that a failed sync marked clean stay as
    /// they are on the medium.
    fn persist(&mut self, seq: u64) {
        let durable = &mut self.durable;
        self.pending.retain(|written| {
            let keep = written.seq > seq;
            if !keep {
                overlay(durable, written.offset, &written.data);
            }
            keep
        });
    }
}

impl NameChange {
    fn concerns_dir(&self, dir: &str) -> bool {
        match self {
            Self::MakeDir(path) => path == dir || parent(path) == dir,
            Self::Add(path, _) | Self::Remove(path) => parent(path) == dir,
            Self::Rename(from, to, _) => parent(from) == dir || parent(to) == dir,
        }
    }

    /// Whether its entry lies in `dir`.
    fn is_in(&self, dir: &str) -> bool {
        match self {
            Self::MakeDir(path) | Self::Add(path, _) | Self::Remove(path) => parent(path) == dir,
            Self::Rename(from, _, _) => parent(from) == dir,
        }
    }

    fn concerns_inode(&self, id: InodeId) -> bool {
        matches!(self, Self::Add(_, inode) | Self::Rename(_, _, inode) if *inode == id)
    }

    pub(super) fn apply(&self, names: &mut BTreeMap<String, Node>) {
        match self {
            Self::MakeDir(path) => {
                names.insert(path.clone(), Node::Dir);
            }
            Self::Add(path, inode) => {
                names.insert(path.clone(), Node::File(*inode));
            }
            Self::Remove(path) => {
                names.remove(path);
            }
            Self::Rename(from, to, inode) => {
                names.remove(from);
                names.insert(to.clone(), Node::File(*inode));
            }
        }
    }
}

impl Store {
    pub(super) fn new(model: Model) -> Self {
        Self {
            model,
            inodes: BTreeMap::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            changes: Vec::new(),
            late: Vec::new(),
            limits: Limits::default(),
            wounds: Vec::new(),
            next_inode: 1,
            seq: 0,
        }
    }

    /// Everything done so far has a number up to this.
    pub(super) fn seq(&self) -> u64 {
        self.seq
    }

    fn change(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.seq += 1;
        self.changes.push((self.seq, change));
    }

    pub(super) fn inode(&self, id: InodeId) -> &Inode {
        self.inodes.get(&id).expect("inodes go at a crash only")
    }

    pub(super) fn inode_mut(&mut self, id: InodeId) -> &mut Inode {
        self.inodes.get_mut(&id).expect("inodes go at a crash only")
    }

    /// ENOENT or ENOTDIR unless the directory of `path` is one.
    fn check_parent(&self, path: &str) -> Result<(), i32> {
        self.check_dir(parent(path))
    }

    pub(super) fn check_dir(&self, dir: &str) -> Result<(), i32> {
        let mut upto = 0;
        loop {
            if upto >= dir.len() {
                return Ok(());
            }
            let rest = dir.get(upto..).unwrap_or_default();
            let end = rest.find('/').map_or(dir.len(), |place| upto + place);
            match dir.get(..end).and_then(|prefix| self.names.get(prefix)) {
                None => return Err(libc::ENOENT),
                Some(Node::File(_)) => return Err(libc::ENOTDIR),
                Some(Node::Dir) => upto = end + 1,
            }
        }
    }

    pub(super) fn lookup(&self, path: &str) -> Result<Node, i32> {
        if path.is_empty() {
            return Ok(Node::Dir);
        }
        self.check_parent(path)?;
        self.names.get(path).copied().ok_or(libc::ENOENT)
    }

    pub(super) fn file(&self, path: &str) -> Result<InodeId, i32> {
        match self.lookup(path)? {
            Node::File(id) => Ok(id),
            Node::Dir => Err(libc::EISDIR),
        }
    }

    /// A new empty file; a file of that name loses it.
    pub(super) fn create(&mut self, path: &str) -> Result<InodeId, i32> {
        if self.lookup(path).is_ok_and(|node| node == Node::Dir) {
            return Err(libc::EISDIR);
        }
        self.check_parent(path)?;
        self.check_count()?;
        let id = InodeId(self.next_inode);
        self.next_inode += 1;
        self.inodes.insert(id, Inode::default());
        self.change(NameChange::Add(path.to_owned(), id));
        Ok(id)
    }

    fn check_count(&self) -> Result<(), i32> {
        match self.limits.inodes_max {
            Some(max) if self.count() >= max => Err(libc::ENOSPC),
            _ => Ok(()),
        }
    }

    fn check_links(&self, id: InodeId) -> Result<(), i32> {
        let Some(max) = self.limits.links_max else {
            return Ok(());
        };
        let links = self.names.values().filter(|node| **node == Node::File(id));
        if links.count() as u64 >= u64::from(max) {
            Err(libc::EMLINK)
        } else {
            Ok(())
        }
    }

    /// Files and directories.
    pub(super) fn count(&self) -> u64 {
        self.names.len() as u64
    }

    /// A name of a file.
    pub(super) fn name_of(&self, id: InodeId) -> Option<&str> {
        let mut names = self.names.iter();
        names
            .find(|(_, node)| **node == Node::File(id))
            .map(|(name, _)| name.as_str())
    }

    /// Remembers damage.
    pub(super) fn wound(&mut self, id: InodeId, offset: u64, len: u64) {
        let path = self.name_of(id).unwrap_or_default().to_owned();
        self.wounds.push(Wound { path, offset, len });
    }

    pub(super) fn make_dir(&mut self, path: &str) -> Result<(), i32> {
        match self.lookup(path) {
            Ok(_) => return Ok(()),
            Err(libc::ENOENT) => self.check_parent(path)?,
            Err(errno) => return Err(errno),
        }
        self.check_count()?;
        self.change(NameChange::MakeDir(path.to_owned()));
        Ok(())
    }

    pub(super) fn link(&mut self, from: &str, to: &str) -> Result<(), i32> {
        let Node::File(id) = self.lookup(from)? else {
            return Err(libc::EPERM);
        };
        match self.lookup(to) {
            Ok(_) => Err(libc::EEXIST),
            Err(libc::ENOENT) => {
                self.check_parent(to)?;
                self.check_links(id)?;
                self.change(NameChange::Add(to.to_owned(), id));
                Ok(())
            }
            Err(errno) => Err(errno),
        }
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) -> Result<(), i32> {
        let id = self.file(from)?;
        self.check_parent(to)?;
        match self.names.get(to) {
            Some(Node::Dir) => return Err(libc::EISDIR),
            // Two names of one file: nothing happens (rename(2)).
            Some(Node::File(other)) if *other == id => return Ok(()),
            _ => {}
        }
        let (from, to) = (from.to_owned(), to.to_owned());
        if self.model == Model::Weak && parent(&from) != parent(&to) {
            self.change(NameChange::Add(to, id));
            self.change(NameChange::Remove(from));
        } else {
            self.change(NameChange::Rename(from, to, id));
        }
        Ok(())
    }

    pub(super) fn unlink(&mut self, path: &str) -> Result<(), i32> {
        match self.file(path) {
            Ok(_) => {
                self.change(NameChange::Remove(path.to_owned()));
                Ok(())
            }
            Err(libc::ENOENT) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// A buffered write.
    pub(super) fn write(&mut self, id: InodeId, offset: u64, data: Bytes) {
        self.seq += 1;
        let seq = self.seq;
        let inode = self.inode_mut(id);
        inode.mend(offset, data.len());
        overlay(&mut inode.cache, offset, &data);
        inode.pending.push(Written { seq, offset, data });
    }

    /// A write past the cache that is durable at once; what was buffered goes out before it.
    pub(super) fn write_durable(&mut self, id: InodeId, offset: u64, data: &[u8]) {
        let inode = self.inode_mut(id);
        inode.persist(u64::MAX);
        inode.mend(offset, data.len());
        overlay(&mut inode.cache, offset, data);
        overlay(&mut inode.durable, offset, data);
    }

    /// Cuts or extends; only of files whose length is synced before anybody relies on it.
    pub(super) fn truncate(&mut self, id: InodeId, bytes: u64) {
        let inode = self.inode_mut(id);
        inode.persist(u64::MAX);
        inode.cache.resize(size(bytes), 0);
        inode.durable.resize(size(bytes), 0);
    }

    /// Lands what a killed process left behind, in one file or in all.
    pub(super) fn land(&mut self, which: impl Fn(&Late) -> bool) {
        let (land, keep) = std::mem::take(&mut self.late).into_iter().partition(which);
        self.late = keep;
        let land: Vec<Late> = land;
        for late in land {
            self.write_durable(late.inode, late.offset, &late.data);
        }
    }

    /// fdatasync: what was done up to `seq`.
    pub(super) fn sync(&mut self, id: InodeId, seq: u64) {
        self.land(|late| late.inode == id);
        self.inode_mut(id).persist(seq);
        if self.model == Model::Ext4 {
            self.commit_through(seq, |change| change.concerns_inode(id));
        }
    }

    /// fsync of a directory.
    pub(super) fn sync_dir(&mut self, dir: &str, seq: u64) {
        match self.model {
            Model::Ext4 => self.commit_through(seq, |change| change.concerns_dir(dir)),
            Model::Weak => {
                let names = &mut self.durable_names;
                self.changes.retain(|(done, change)| {
                    let keep = *done > seq || !change.is_in(dir);
                    if !keep {
                        change.apply(names);
                    }
                    keep
                });
            }
        }
    }

    /// syncfs.
    pub(super) fn sync_tree(&mut self, seq: u64) {
        self.land(|_| true);
        for inode in self.inodes.values_mut() {
            inode.persist(seq);
        }
        self.commit_through(seq, |_| true);
    }

    /// The journal commits in order: everything before the last change that counts.
    fn commit_through(&mut self, seq: u64, counts: impl Fn(&NameChange) -> bool) {
        let last = self
            .changes
            .iter()
            .rposition(|(done, change)| *done <= seq && counts(change));
        if let Some(last) = last {
            for (_, change) in self.changes.drain(..=last) {
                change.apply(&mut self.durable_names);
            }
        }
    }

    /// Entries of a directory with their sizes.
    pub(super) fn list(&self, dir: &str) -> Vec<(String, u64)> {
        let prefix = match dir {
            "" => String::new(),
            dir => format!("{dir}/"),
        };
        let mut listing: Vec<_> = self
            .names
            .range(prefix.clone()..)
            .take_while(|(path, _)| path.starts_with(&prefix))
            .filter_map(|(path, node)| {
                let name = path.strip_prefix(&prefix)?;
                (!name.contains('/')).then(|| (name.to_owned(), self.bytes(*node)))
            })
            .collect();
        listing.sort_unstable();
        listing
    }

    fn bytes(&self, node: Node) -> u64 {
        match node {
            Node::Dir => 0,
            Node::File(id) => self.inode(id).cache.len() as u64,
        }
    }

    /// Bytes of all files that have a name.
    pub(super) fn used(&self) -> u64 {
        let mut ids: Vec<_> = self
            .names
            .values()
            .filter_map(|node| match node {
                Node::Dir => None,
                Node::File(id) => Some(*id),
            })
            .collect();
        ids.sort_unstable();
        ids.dedup();
        ids.into_iter().map(|id| self.bytes(Node::File(id))).sum()
    }
}
