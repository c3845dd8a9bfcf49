//! Repair of a data directory that no daemon uses (storage.md 8.6): what is whole is served again, what
//! is not is named and set aside in `lost/`. Behind `ringpost repair`.
//!
//! First what every log holds is written into the files, as checkpoints would; damaged frames give what
//! is whole in them. Then each user who is not sound gets a new generation of the index, made of its
//! good runs and of the store lines in the segments. Nothing is deleted. New files are written aside,
//! synced and renamed, so that a crash leaves a store on which the next run does the rest; a store that
//! is sound is left alone.
//!
//! [`plan`] does the same to a picture of the directory, so that what it tells is what [`repair`] does.

mod generation;
pub(crate) mod hand;
mod index;
pub(crate) mod layer;
mod log;
mod lost;
pub(crate) mod redo;
mod segment;
mod store;
mod user;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;
use ringpost_netproto::id::{PartitionId, WallNs};

use crate::check::{
    Checker, FINDINGS_MAX, LogState, LogSurvey, Lost, OwedBy, Progress, ReadTree, Redo, Severity,
    UserId,
};
use crate::error::{Corrupt, CorruptReason, IoError};
use crate::format::store_file::StoreFile;
use crate::io::{Io, RelPath, Step};
use crate::position::Lsn;
use hand::{Disk, Hand};
use layer::Layer;

/// Something that a repair did, or would do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Action {
    /// The file, relative to the data directory.
    pub file: String,
    /// What became of it: the rest of the sentence.
    pub what: String,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file, self.what)
    }
}

/// A message that could not be saved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LostMessage {
    /// Whose, which, where it was, and why it is lost.
    pub lost: Lost,
    /// The file of `lost/` that has what is left of it, if anything is.
    pub kept: Option<String>,
}

impl fmt::Display for LostMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.lost)?;
        match &self.kept {
            Some(kept) => write!(f, "; what is left of it is in {kept}"),
            None => Ok(()),
        }
    }
}

/// What a repair did, or would do.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Repaired {
    /// At most [`FINDINGS_MAX`], in order.
    pub actions: Vec<Action>,
    /// Actions that were not kept.
    pub actions_left_off: u64,
    /// Messages that could not be saved, likewise.
    pub lost: Vec<LostMessage>,
    /// Lost messages that were not kept here.
    pub lost_left_off: u64,
    /// Users whose index was made anew.
    pub users: u64,
    /// Messages that were found in segments and not in the index.
    pub taken: u64,
}

impl Repaired {
    /// Whether there was nothing to do.
    pub fn is_nothing(&self) -> bool {
        self.actions.is_empty() && self.lost.is_empty()
    }
}

/// Why a repair could not be done.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepairError {
    /// The file system said no; what was done so far stays, and a second run does the rest.
    #[error("{0}; nothing is lost by that: run repair again when the cause is gone")]
    Io(#[from] IoError),
    /// Without STORE nothing can be read: it holds the key of the directories' names.
    #[error("{0}; take STORE from a backup of this directory, nothing else has what is in it")]
    NoStore(Corrupt),
    /// A newer program wrote it.
    #[error("{0}; use the version of Ringpost that wrote it")]
    Newer(Corrupt),
}

/// What is collected on the way.
#[derive(Debug, Default)]
struct Outcome {
    repaired: Repaired,
    kept: BTreeMap<(String, u64, u32), String>,
    users: u64,
    taken: u64,
}

impl Outcome {
    fn did(&mut self, file: String, what: String) {
        if self.repaired.actions.len() < FINDINGS_MAX {
            self.repaired.actions.push(Action { file, what });
        } else {
            self.repaired.actions_left_off += 1;
        }
    }

    fn kept(&mut self, lost: &Lost, path: &RelPath) {
        let key = (lost.file.clone(), lost.offset, lost.uid);
        self.kept.insert(key, path.to_string());
    }

    fn lose(&mut self, mut lost: Lost) {
        let kept = self
            .kept
            .remove(&(lost.file.clone(), lost.offset, lost.uid));
        // They were written, or they are large.
        lost.bytes = Bytes::new();
        if self.repaired.lost.len() < FINDINGS_MAX {
            self.repaired.lost.push(LostMessage { lost, kept });
        } else {
            self.repaired.lost_left_off += 1;
        }
    }
}

/// What [`repair`] would do to `tree`. `now` goes into what would be written.
pub fn plan(
    tree: &dyn ReadTree,
    now: WallNs,
    progress: &mut dyn FnMut(Progress),
) -> Result<Repaired, RepairError> {
    let mut out = Outcome::default();
    let Some(job) = Job::new(tree, now, &mut out)? else {
        return Ok(out.repaired);
    };
    let sick = job.sick_users(progress)?;
    if job.is_sound() && sick.is_empty() && out.repaired.is_nothing() {
        return Ok(out.repaired);
    }
    let mut layer = Layer::new(tree);
    job.close_logs(&mut layer, &mut out)?;
    for id in sick {
        let mut layer = Layer::new(tree);
        layer.apply(job.owed(id)?)?;
        job.heal(&mut layer, id, &mut out)?;
    }
    job.nameless(&mut Layer::new(tree), &mut out)?;
    Ok(out.finish())
}

/// Repairs the directory that `tree` reads and `io` writes. Nobody else may use it. `now` goes into
/// what is written. `progress` is called after each partition that was looked through.
pub fn repair<I: Io>(
    tree: &dyn ReadTree,
    io: I,
    now: WallNs,
    progress: &mut dyn FnMut(Progress),
) -> Result<Repaired, RepairError> {
    let mut disk = Disk::new(tree, io);
    // A repair that was killed may have left names that are not durable yet: where it was done there is
    // nothing to do for this one, and it would say so.
    disk.sync()?;
    let mut out = Outcome::default();
    let Some(job) = Job::new(tree, now, &mut out)? else {
        return Ok(out.repaired);
    };
    let sick = job.sick_users(progress)?;
    if job.is_sound() && sick.is_empty() && out.repaired.is_nothing() {
        return Ok(out.repaired);
    }
    job.write_store(&mut disk)?;
    for id in job.redo.users.keys() {
        let steps = job.owed(*id)?;
        disk.apply(steps)?;
    }
    job.keep_lost(&mut disk)?;
    job.close_logs(&mut disk, &mut out)?;
    for id in sick {
        job.heal(&mut disk, id, &mut out)?;
    }
    job.nameless(&mut disk, &mut out)?;
    Ok(out.finish())
}

impl Outcome {
    fn finish(self) -> Repaired {
        Repaired {
            users: self.users,
            taken: self.taken,
            ..self.repaired
        }
    }
}

/// Everything that is known before anything is changed.
struct Job<'a> {
    tree: &'a dyn ReadTree,
    now: WallNs,
    store: StoreFile,
    store_file: store::Written,
    logs: Vec<LogSurvey>,
    redo: Redo,
    /// Messages that the logs lost, by user.
    lost: BTreeMap<UserId, Vec<Lost>>,
    /// Those of nobody.
    nameless: Vec<Lost>,
}

impl<'a> Job<'a> {
    /// `None` for a directory that a crash left before it was a store.
    fn new(
        tree: &'a dyn ReadTree,
        now: WallNs,
        out: &mut Outcome,
    ) -> Result<Option<Self>, RepairError> {
        let path = RelPath::store();
        let corrupt = |reason| Corrupt {
            file: path.to_string(),
            offset: 0,
            reason,
        };
        let (store, store_file) = store::read(tree).map_err(|reason| match reason {
            CorruptReason::Version { .. } => RepairError::Newer(corrupt(reason)),
            reason => RepairError::NoStore(corrupt(reason)),
        })?;
        if store_file == store::Written::Anew {
            out.did(path.to_string(), "one wrong byte was put right".to_owned());
        }
        let mut redo = Redo::default();
        let mut checker = Checker::new(tree);
        let mut logs = Vec::new();
        for log_id in checker.log_ids(store.logs) {
            logs.extend(checker.log(&store, log_id, &mut redo));
        }
        for finding in &checker.report.findings {
            let corrupt = &finding.corrupt;
            if let CorruptReason::Version { .. } = &corrupt.reason {
                return Err(RepairError::Newer(corrupt.clone()));
            }
            if finding.severity == Severity::Damage {
                let what = format!("damaged at offset {}: {}", corrupt.offset, corrupt.reason);
                out.did(corrupt.file.clone(), what);
            }
        }
        let mut job = Self {
            tree,
            now,
            store,
            store_file,
            logs,
            redo,
            lost: BTreeMap::new(),
            nameless: Vec::new(),
        };
        job.share_lost();
        job.find_owners()?;
        Ok(Some(job))
    }

    /// Tells the lost messages of the logs apart by user.
    fn share_lost(&mut self) {
        for lost in self.logs.iter().flat_map(|log| &log.lost) {
            let known = lost.user.filter(|id| {
                let ours = self.store.partitions.partition(id.user) == id.partition;
                ours && (self.redo.users.contains_key(id) || self.tree.list(&id.dir()).is_ok())
            });
            match known {
                Some(id) => self.lost.entry(id).or_default().push(lost.clone()),
                None => self.nameless.push(lost.clone()),
            }
        }
    }

    /// Whose the messages are of which only a store line is left: of the one user of the log who has
    /// that mailbox with that uidvalidity, and whose index lacks that uid. A hole in the records of a
    /// partition says where to look.
    fn find_owners(&mut self) -> Result<(), RepairError> {
        let unowned = std::mem::take(&mut self.nameless);
        let (asked, rest): (Vec<Lost>, Vec<Lost>) = unowned
            .into_iter()
            .partition(|lost| lost.validity.is_some());
        self.nameless = rest;
        if asked.is_empty() {
            return Ok(());
        }
        let mut owners: Vec<BTreeSet<UserId>> = vec![BTreeSet::new(); asked.len()];
        let holes = self.logs.iter().flat_map(|log| &log.chains.holes);
        let holes: BTreeSet<PartitionId> = holes.map(|(partition, _, _)| *partition).collect();
        for number in 0..self.store.partitions.value() {
            let partition = PartitionId::new(u16::try_from(number).expect("at most 65,536"));
            if !holes.is_empty() && !holes.contains(&partition) {
                continue;
            }
            for id in self.users_of(partition)? {
                let mut layer = Layer::new(self.tree);
                layer.apply(self.owed(id)?)?;
                let Some(index) = user::index_of(&layer, id) else {
                    continue;
                };
                for (lost, owners) in asked.iter().zip(&mut owners) {
                    if index.lacks(lost) {
                        owners.insert(id);
                    }
                }
            }
        }
        for (mut lost, owners) in asked.into_iter().zip(owners) {
            let mut owners = owners.into_iter();
            match (owners.next(), owners.next()) {
                (Some(id), None) => {
                    lost.user = Some(id);
                    self.lost.entry(id).or_default().push(lost);
                }
                _ => self.nameless.push(lost),
            }
        }
        Ok(())
    }

    /// The users of a partition, those that are in the log only included.
    fn users_of(&self, partition: PartitionId) -> Result<BTreeSet<UserId>, IoError> {
        let in_log = self.redo.users.keys();
        let mut ids: BTreeSet<UserId> = in_log
            .filter(|id| id.partition == partition)
            .copied()
            .collect();
        let names = match self.tree.list(&RelPath::partition_dir(partition)) {
            Ok(names) => names,
            Err(error) if error.is_not_found() => Vec::new(),
            Err(error) => return Err(error),
        };
        let users = names.iter();
        ids.extend(users.filter_map(|(name, _)| UserId::named(partition, name)));
        Ok(ids)
    }

    fn is_sound(&self) -> bool {
        self.store_file == store::Written::Already
            && self.logs.iter().all(|log| log.state == LogState::Sound)
    }

    fn log_of(&self, partition: PartitionId) -> Option<&LogSurvey> {
        let log_id = u32::from(partition.value()) % self.store.logs;
        self.logs.iter().find(|log| log.log_id == log_id)
    }

    /// What the log owes to a user's files.
    fn owed(&self, id: UserId) -> Result<Vec<Step>, IoError> {
        let nothing = OwedBy::default();
        let user = self.redo.users.get(&id);
        if user.is_none() {
            return Ok(Vec::new());
        }
        let user = user.unwrap_or(&nothing);
        let owed = redo::Owed {
            tree: self.tree,
            redo: &self.redo,
            id,
            user,
        };
        let mut steps = owed.steps()?;
        if user.changes_mailboxes() {
            let mut layer = Layer::new(self.tree);
            layer.apply(owed.steps()?)?;
            steps.extend(user::folders_step(&layer, id));
        }
        Ok(steps)
    }

    /// The users who need a repair once the logs are written into the files.
    fn sick_users(&self, progress: &mut dyn FnMut(Progress)) -> Result<Vec<UserId>, RepairError> {
        let mut sick = Vec::new();
        let (mut messages, mut bytes) = (0, 0);
        let of = self.store.partitions.value();
        for number in 0..of {
            let partition = PartitionId::new(u16::try_from(number).expect("at most 65,536"));
            for id in self.users_of(partition)? {
                let mut layer = Layer::new(self.tree);
                layer.apply(self.owed(id)?)?;
                let mut checker = Checker::new(&layer);
                checker.user(&self.store, id, &OwedBy::default());
                messages += checker.report.messages;
                bytes += checker.report.bytes;
                let lossy = self.log_of(partition).is_some_and(LogSurvey::is_lossy);
                let orphans = lossy && user::has_orphans(&layer, id);
                if self.lost.contains_key(&id) || orphans || is_sick(&checker) {
                    sick.push(id);
                }
            }
            progress(Progress {
                done: u64::from(number) + 1,
                of: u64::from(of),
                messages,
                bytes,
            });
        }
        Ok(sick)
    }

    fn write_store(&self, hand: &mut dyn Hand) -> Result<(), IoError> {
        if self.store_file == store::Written::Already {
            return Ok(());
        }
        let data = Bytes::from(self.store.encode());
        let path = RelPath::store();
        hand.apply(vec![Step::Replace { path, data }])
    }

    /// What is left of messages that a log lost, before the log is closed.
    fn keep_lost(&self, hand: &mut dyn Hand) -> Result<(), IoError> {
        for (id, lost) in &self.lost {
            let name = user::name_of(self.tree, &self.redo, *id);
            for lost in lost {
                let name = lost::name_of(&lost::owner(name.as_deref(), *id), lost);
                lost::keep(hand, &name, &lost.bytes)?;
            }
        }
        Ok(())
    }

    fn close_logs(&self, hand: &mut dyn Hand, out: &mut Outcome) -> Result<(), IoError> {
        for survey in &self.logs {
            for (from, to) in &survey.gaps {
                out.did(
                    RelPath::log_dir(survey.log_id).to_string(),
                    format!("the positions {from} to {to} are missing, and whatever was there"),
                );
            }
            for (partition, first, last) in &survey.chains.holes {
                out.did(
                    RelPath::partition_dir(*partition).to_string(),
                    format!("its records {first} to {last} are lost with the log's"),
                );
            }
            log::Log {
                hand,
                store: &self.store,
                survey,
                redo: &self.redo,
                now: self.now,
            }
            .close(out)?;
        }
        Ok(())
    }

    fn heal(&self, hand: &mut dyn Hand, id: UserId, out: &mut Outcome) -> Result<(), IoError> {
        let log = self.log_of(id.partition);
        user::User {
            hand,
            store: &self.store,
            id,
            dir: id.dir(),
            now: self.now,
            base_lsn: log.map_or(Lsn::new(0), LogSurvey::next_lsn),
            boots: log.map_or(0, LogSurvey::boots),
            lossy: log.is_some_and(LogSurvey::is_lossy),
            out,
        }
        .repair(self.lost.get(&id).cloned().unwrap_or_default())
    }

    /// Remains in a log that no user could be found for.
    fn nameless(&self, hand: &mut dyn Hand, out: &mut Outcome) -> Result<(), IoError> {
        for lost in &self.nameless {
            let name = lost::name_of("unknown", lost);
            let path = lost::keep(hand, &name, &lost.bytes)?;
            out.kept(lost, &path);
            out.lose(lost.clone());
        }
        Ok(())
    }
}

/// Whether a check found what a repair is for.
fn is_sick(checker: &Checker<'_>) -> bool {
    let unexplained = CorruptReason::Disagree("the index does not name this file");
    checker.report.findings.iter().any(|finding| {
        finding.severity == Severity::Damage || finding.corrupt.reason == unexplained
    })
}
