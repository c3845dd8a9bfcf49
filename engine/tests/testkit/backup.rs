//! Copies of a simulated disk that a shard goes on using.

use std::collections::{BTreeMap, BTreeSet};

use ringpost_engine::backup::{BackupError, Copier, Next, Target};
use ringpost_engine::error::IoError;
use ringpost_engine::io::RelPath;
use ringpost_engine::io::sim::{SimConfig, SimDisk};
use ringpost_engine::position::Lsn;
use ringpost_engine::request::{Event, MonotonicNs, Refused, Request};

use super::{Bench, ticket_of};

/// Longer than any test.
pub(crate) const LEASE_NS: u64 = 3_600_000_000_000;

/// A copy in memory.
#[derive(Default)]
pub(crate) struct Memory {
    dirs: BTreeSet<RelPath>,
    pub(crate) files: BTreeMap<RelPath, Vec<u8>>,
    /// Whether it is of one user: blanks are holes then, and of nobody else's.
    one_user: bool,
}

impl Target for Memory {
    fn make_dir(&mut self, dir: &RelPath) -> Result<(), IoError> {
        self.dirs.insert(dir.clone());
        Ok(())
    }

    fn write(&mut self, file: &RelPath, offset: u64, data: &[u8]) -> Result<(), IoError> {
        let bytes = self.files.entry(file.clone()).or_default();
        let from = usize::try_from(offset).expect("small");
        assert!(from <= bytes.len() || self.one_user, "a hole in {file}");
        bytes.resize(from, 0);
        bytes.extend_from_slice(data);
        Ok(())
    }

    fn link(&mut self, from: &RelPath, to: &RelPath) -> Result<bool, IoError> {
        let bytes = self.files.get(from).cloned().expect("it was copied");
        self.files.insert(to.clone(), bytes);
        Ok(true)
    }
}

impl Memory {
    /// For a copy of everything, or of a user.
    pub(crate) fn of(name: Option<&str>) -> Self {
        Self {
            one_user: name.is_some(),
            ..Self::default()
        }
    }

    pub(crate) fn into_disk(self) -> SimDisk {
        let disk = SimDisk::new(SimConfig::new(7));
        for dir in &self.dirs {
            disk.put_dir(dir);
        }
        for (path, bytes) in &self.files {
            disk.put(path, bytes);
        }
        disk
    }
}

pub(crate) fn turns(bench: &mut Bench, count: u32) {
    for _turn in 0..count {
        bench.poll();
        let now = bench.disk.now_ns();
        let soon = |at: u64| at < now + 10_000_000_000;
        let deadline = bench.shard.next_deadline().map(MonotonicNs::value);
        if deadline.is_some_and(soon) || bench.disk.next_due_ns().is_some_and(soon) {
            bench.pass_time();
        } else {
            // Not to the end of a lease.
            bench.disk.advance(1_000_000);
        }
    }
}

pub(crate) fn begin(bench: &mut Bench, id: u64) -> Result<Lsn, Refused> {
    let request = Request::BackupBegin {
        id,
        lease_ns: LEASE_NS,
    };
    let ticket = bench.submit(request)?;
    for _turn in 0..20_000 {
        turns(bench, 1);
        let mut events = bench.events.iter();
        if let Some(Event::BackupBegun { result, .. }) =
            events.find(|event| ticket_of(event) == Some(ticket))
        {
            return result.clone();
        }
    }
    panic!("a backup that never begins");
}

pub(crate) fn end(bench: &mut Bench, id: u64) -> Result<u64, Refused> {
    let ticket = bench.submit(Request::BackupEnd { id })?;
    bench.poll();
    let mut events = bench.events.iter();
    match events.find(|event| ticket_of(event) == Some(ticket)) {
        Some(Event::BackupEnded { result, .. }) => result.clone(),
        other => panic!("{other:?}"),
    }
}

/// A whole copy, made at once.
pub(crate) fn copied(bench: &mut Bench, id: u64) -> SimDisk {
    copied_of(bench, id, None).expect("a whole copy needs no user")
}

/// The same of a user; `None` if there is none of that name.
pub(crate) fn copied_of(bench: &mut Bench, id: u64, name: Option<&str>) -> Option<SimDisk> {
    bench.settle();
    let marked = begin(bench, id).expect("a backup begins");
    let source = bench.disk.clone();
    let mut copy = Memory::of(name);
    let mut copier = copier(&source, &mut copy, name);
    let found = loop {
        match copier.step(&mut copy) {
            Ok(Next::More) => {}
            Ok(Next::Mark) => copier.mark(&[marked]),
            Ok(Next::Done(_)) => break true,
            Err(BackupError::NoSuchUser) => break false,
            Err(error) => panic!("{error}"),
        }
    };
    end(bench, id).expect("it was held");
    found.then(|| copy.into_disk())
}

/// Of everything, or of a user.
pub(crate) fn copier<'a>(source: &'a SimDisk, copy: &mut Memory, name: Option<&str>) -> Copier<'a> {
    let begun = match name {
        Some(name) => Copier::of_user(source, copy, name.as_bytes()),
        None => Copier::new(source, copy),
    };
    begun.expect("STORE is whole")
}
