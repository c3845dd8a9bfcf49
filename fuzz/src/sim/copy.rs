//! Backups of a node that works: a copy is made beside it, of everything or of one user, between whatever
//! else goes on; then it is opened as a store, on as many cores as that machine has, and held against what
//! the node had promised (storage.md 8.6).
//!
//! What a copy promises: while each shard holds the backup, every step of it can be done, and when all of
//! them held it to the end, it is what a crash leaves at the moment at which the logs' ends were told. All that
//! was answered by then is in it, nothing that was asked later; what was under way then may be. One of a
//! user has that user alone, and no message that only others got. Delivery ids are in a whole copy; in that
//! of a user only those that its log has.
//!
//! Not simulated: the daemon's side of it (`daemon/src/backup`), which is files and a socket.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use ringpost_engine::backup::{BackupError, Copier, Next, Target};
use ringpost_engine::check::ReadTree;
use ringpost_engine::error::IoError;
use ringpost_engine::io::RelPath;
use ringpost_engine::io::sim::{SimConfig, SimDisk};
use ringpost_engine::position::Lsn;
use ringpost_engine::request::{Event, Refused, Request};

use super::Sim;
use super::asked::Asked;
use super::knobs::Hazards;
use super::model::{Person, Verdict, ensure};
use super::node::Node;
use super::oracle::Oracle;
use super::past::Past;

/// What time passes on the disk while a file is read or a directory listed, at most.
const READ_NS_MAX: u64 = 400_000;

/// Steps of a copy that never ends.
const STEPS_MAX: u32 = 20_000;

/// A backup that shards hold.
#[derive(Debug)]
pub(super) struct Backup {
    id: u64,
    lease_ns: u64,
    /// When the lease of each shard runs out.
    until_ns: BTreeMap<usize, u64>,
    /// Where each log ended when its shard was asked last.
    ends: BTreeMap<usize, Lsn>,
    /// Whom the copy has to have, as of these ends.
    people: BTreeMap<usize, Person>,
}

/// A disk that works while it is read.
struct Working {
    disk: SimDisk,
    rng: RefCell<Rng>,
}

impl Working {
    fn pass(&self) {
        let ns = self.rng.borrow_mut().u64(..READ_NS_MAX);
        self.disk.advance(ns);
    }
}

impl ReadTree for Working {
    fn list(&self, dir: &RelPath) -> Result<Vec<(String, u64)>, IoError> {
        self.pass();
        ReadTree::list(&self.disk, dir)
    }

    fn read(&self, file: &RelPath, offset: u64, len: usize) -> Result<Vec<u8>, IoError> {
        self.pass();
        ReadTree::read(&self.disk, file, offset, len)
    }
}

/// A copy in memory.
#[derive(Default)]
struct Files {
    dirs: BTreeSet<RelPath>,
    by_name: BTreeMap<RelPath, Vec<u8>>,
    /// Blanks of a user's copy are holes.
    sparse: bool,
}

impl Target for Files {
    fn make_dir(&mut self, dir: &RelPath) -> Result<(), IoError> {
        self.dirs.insert(dir.clone());
        Ok(())
    }

    fn write(&mut self, file: &RelPath, offset: u64, data: &[u8]) -> Result<(), IoError> {
        let bytes = self.by_name.entry(file.clone()).or_default();
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        assert!(from <= bytes.len() || self.sparse, "a hole in {file}");
        bytes.resize(from, 0);
        bytes.extend_from_slice(data);
        Ok(())
    }

    fn link(&mut self, from: &RelPath, to: &RelPath) -> Result<bool, IoError> {
        let bytes = self.by_name.get(from).cloned().unwrap_or_default();
        self.by_name.insert(to.clone(), bytes);
        Ok(true)
    }
}

impl Files {
    /// On a disk of a machine on which as much time has passed.
    fn disk(&self, config: &SimConfig, now_ns: u64) -> SimDisk {
        let disk = SimDisk::new(config.clone());
        disk.advance(now_ns);
        for dir in &self.dirs {
            disk.put_dir(dir);
        }
        for (path, bytes) in &self.by_name {
            disk.put(path, bytes);
        }
        disk
    }
}

impl Sim {
    /// Makes a copy between work that goes on, and holds it against the model.
    pub(super) fn back_up(&mut self) -> Verdict {
        let rng = &mut self.hazard_rng;
        let only = rng.bool().then(|| rng.usize(..self.knobs.users));
        let lease_ns = rng.choice([20_000_000, 2_000_000_000, 60_000_000_000]);
        self.backup = Some(Backup {
            id: rng.u64(..),
            lease_ns: lease_ns.unwrap_or(20_000_000),
            until_ns: BTreeMap::new(),
            ends: BTreeMap::new(),
            people: BTreeMap::new(),
        });
        let mut files = Files {
            sparse: only.is_some(),
            ..Files::default()
        };
        let done = if self.hold()? {
            self.copy(&mut files, only)?
        } else {
            false
        };
        let held = self.let_go()?;
        let Some(backup) = self.backup.take() else {
            return Ok(());
        };
        self.say(|_| format!("a copy of {only:?}: {done}, held: {held}"));
        if !(done && held) {
            return Ok(());
        }
        self.stats.copies += 1;
        if let Some(who) = only {
            self.has_nobody_else(&files, who)?;
        }
        let config = SimConfig {
            seed: self.hazard_rng.u64(..),
            trace: self.knobs.disk.trace,
            ..self.knobs.disk.clone()
        };
        let now_ns = self.disk.now_ns();
        if self.hazards.archive && (self.past.is_none() || self.hazard_rng.bool()) {
            self.past = Some(Past::new(files.disk(&config, now_ns), only));
            self.has_holes = false;
        }
        let disk = files.disk(&config, now_ns);
        self.restore(disk, backup.people, only)
            .map_err(|what| format!("a copy of {only:?}: {what}"))
    }

    /// Begins the backup of every shard, or prolongs it; whether all of them hold it.
    fn hold(&mut self) -> Result<bool, String> {
        let count = self.node.as_ref().map_or(0, Node::count);
        for shard in 0..count {
            let now_ns = self.disk.now_ns();
            let Some(backup) = &mut self.backup else {
                return Ok(false);
            };
            let (id, lease_ns) = (backup.id, backup.lease_ns);
            let until_ns = now_ns + lease_ns;
            backup.until_ns.entry(shard).or_insert(until_ns);
            let draft = (shard, Request::BackupBegin { id, lease_ns }, Asked::Backup);
            match self.ask(draft)? {
                Some(Event::BackupBegun { result: Ok(_), .. }) => {
                    if let Some(backup) = &mut self.backup {
                        backup.until_ns.insert(shard, until_ns);
                    }
                }
                Some(Event::BackupBegun {
                    result: Err(Refused::NoSuchBackup),
                    ..
                }) => {
                    self.may_be_given_up(shard)?;
                    return Ok(false);
                }
                _ => return Ok(false),
            }
        }
        Ok(count > 0 && !self.is_over())
    }

    /// A backup that a shard does not know any more: its lease is over, or the disk is to blame.
    pub(super) fn may_be_given_up(&mut self, shard: usize) -> Verdict {
        self.excuse();
        let now_ns = self.disk.now_ns();
        let until = self.backup.as_ref();
        let until = until.and_then(|backup| backup.until_ns.get(&shard));
        let late = until.is_none_or(|until| *until <= now_ns);
        let excuses = &self.oracle.excuses;
        ensure!(
            late || excuses.hurt || excuses.full,
            "a backup was given up before its time"
        );
        Ok(())
    }

    /// A shard told where its log ends. What was answered until now is in a copy up to there.
    pub(super) fn backup_begun(&mut self, shard: usize, event: &Event) {
        let Event::BackupBegun {
            result: Ok(end), ..
        } = event
        else {
            return;
        };
        let mine: Vec<usize> = (0..self.knobs.users)
            .filter(|who| self.owner(*who) == shard)
            .collect();
        let Some(backup) = &mut self.backup else {
            return;
        };
        backup.ends.insert(shard, *end);
        for who in mine {
            let mut person = self.oracle.person(who).clone();
            let open = self.oracle.open.values();
            let open = open.filter(|asked| asked.changes(who));
            person.doubts.extend(open.cloned());
            backup.people.insert(who, person);
        }
    }

    /// Ends the backup of every shard; whether all of them held it until now.
    fn let_go(&mut self) -> Result<bool, String> {
        let id = self.backup.as_ref().map_or(0, |backup| backup.id);
        let count = self.node.as_ref().map_or(0, Node::count);
        let mut held = true;
        for shard in 0..count {
            let draft = (shard, Request::BackupEnd { id }, Asked::Backup);
            let ended = self.ask(draft)?;
            held &= matches!(ended, Some(Event::BackupEnded { result: Ok(_), .. }));
        }
        Ok(held && !self.is_over())
    }

    /// The steps of a copy, and work between them; whether there is one in the end.
    fn copy(&mut self, files: &mut Files, only: Option<usize>) -> Result<bool, String> {
        let source = Working {
            disk: self.disk.clone(),
            rng: RefCell::new(self.hazard_rng.fork()),
        };
        let busy = self.hazard_rng.u32(1..10);
        let begun = match only {
            None => Copier::new(&source, files),
            Some(who) => Copier::of_user(&source, files, self.oracle.person(who).name.as_bytes()),
        };
        let mut copier = match begun {
            Ok(copier) => copier,
            Err(error) => return self.copy_failed(&error),
        };
        for _step in 0..STEPS_MAX {
            match copier.step(files) {
                Ok(Next::More) => {}
                Ok(Next::Mark) => {
                    if !self.hold()? {
                        return Ok(false);
                    }
                    let ends = self.backup.as_ref().map(|backup| &backup.ends);
                    let ends: Vec<Lsn> = ends
                        .into_iter()
                        .flat_map(BTreeMap::values)
                        .copied()
                        .collect();
                    copier.mark(&ends);
                }
                Ok(Next::Done(_)) => return Ok(true),
                Err(BackupError::NoSuchUser) => return self.nobody_was_there(only),
                Err(error) => return self.copy_failed(&error),
            }
            if self.hazard_rng.u32(..10) < busy {
                self.step()?;
            }
            for _turn in 0..self.hazard_rng.u32(..12) {
                self.turn()?;
            }
            if self.is_over() || !self.prolong()? {
                return Ok(false);
            }
        }
        Err("a copy that never ends".to_owned())
    }

    /// Asks for more time when half of it is over, but for once in a while.
    fn prolong(&mut self) -> Result<bool, String> {
        let Some(backup) = &self.backup else {
            return Ok(false);
        };
        let until_ns = backup.until_ns.values().min().copied().unwrap_or(0);
        let due = until_ns <= self.disk.now_ns() + backup.lease_ns / 2;
        if !due || self.hazard_rng.u8(..16) == 0 {
            return Ok(true);
        }
        // What the copy is to have is as of the ends that it was told.
        let told = (backup.ends.clone(), backup.people.clone());
        let held = self.hold()?;
        if let Some(backup) = &mut self.backup {
            (backup.ends, backup.people) = told;
        }
        Ok(held)
    }

    /// A step that could not be done: somebody did not hold the backup any more.
    fn copy_failed(&mut self, error: &BackupError) -> Result<bool, String> {
        let held = self.hold()?;
        ensure!(
            !held || self.oracle.excuses.hurt,
            "a copy cannot be made, and the backup is held: {error}"
        );
        Ok(false)
    }

    /// A copy of nobody: nothing of that user was acknowledged when its end was told.
    fn nobody_was_there(&self, only: Option<usize>) -> Result<bool, String> {
        let people = self.backup.as_ref().map(|backup| &backup.people);
        let person = only.and_then(|who| people?.get(&who));
        ensure!(
            person.is_none_or(|person| !person.exists()),
            "{only:?} is not found by who copies"
        );
        Ok(false)
    }

    /// No file of a user's copy holds a message that only others got.
    fn has_nobody_else(&self, files: &Files, only: usize) -> Verdict {
        let mut mine = BTreeSet::new();
        for (mail, to) in &self.sent {
            mine.extend(to.iter().any(|to| to.who == only).then_some(*mail));
        }
        for (mail, _) in &self.sent {
            let mark = format!("Subject: mail {mail}\n").into_bytes();
            let stored = &self.oracle.mail(*mail).body.stored;
            let holds = |bytes: &[u8]| bytes.windows(mark.len()).any(|part| part == mark);
            if mine.contains(mail) || !holds(stored) {
                continue;
            }
            let found = files.by_name.iter().find(|(_, bytes)| holds(bytes));
            ensure!(
                found.is_none(),
                "a copy of user {only} has mail {mail}, which others got, in {:?}",
                found.map(|(path, _)| path)
            );
        }
        Ok(())
    }

    /// Opens a copy as a store, looks at everybody, and lives on it.
    fn restore(
        &mut self,
        disk: SimDisk,
        people: BTreeMap<usize, Person>,
        only: Option<usize>,
    ) -> Verdict {
        let mut oracle = Oracle::new(self.knobs.users, self.oracle.window);
        for (who, mut person) in people {
            if only.is_none_or(|only| only == who) {
                if only.is_some() {
                    person
                        .perhaps
                        .extend(std::mem::take(&mut person.ids).into_keys());
                }
                *oracle.person_mut(who) = person;
            }
        }
        oracle.mails.clone_from(&self.oracle.mails);
        oracle.by_guid.clone_from(&self.oracle.by_guid);
        oracle
            .excuses
            .unread
            .clone_from(&self.oracle.excuses.unread);
        (oracle.stored, oracle.places) = (self.oracle.stored, self.oracle.places);
        let hazards = Hazards {
            copies: false,
            archive: false,
            repairs: false,
            ..self.hazards.clone()
        };
        let mut knobs = self.knobs.clone();
        (knobs.logs, knobs.rots) = (self.logs, false);
        let mut copy = Self::on(disk, (knobs, hazards), oracle, &mut self.hazard_rng);
        copy.trace = self.trace.take();
        copy.sent.clone_from(&self.sent);
        let verdict = copy.restored_life();
        self.trace = copy.trace.take();
        verdict
    }

    fn restored_life(&mut self) -> Verdict {
        self.whole_round()?;
        if self.rng.bool() {
            self.work()?;
        }
        self.crash();
        self.whole_round()
    }
}
