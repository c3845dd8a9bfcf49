//! The offline checker: reads a whole data directory and says what does not hold (storage.md 8,
//! STYLE.md 8.6). It is behind `ringpost check`, and runs after every crash of the rigs and of the
//! simulator.
//!
//! It changes nothing and shares no code with the running store but `format` and what is pure, so that
//! it is a second opinion. Nobody may write to the directory meanwhile. Records that are in the log only are laid
//! over the index, as recovery does; what a crash leaves behind is told apart from damage. Memory is
//! bounded by the largest user's index and the records above the checkpoint.

mod deep;
mod derive;
mod files;
mod fold;
mod frames;
mod log;
pub(crate) mod mend;
mod pick;
mod records;
mod redo;
mod salvage;
mod segment;
mod tree;
mod user;

use std::fmt;

use ringpost_netproto::id::PartitionId;

use crate::error::{Corrupt, CorruptReason};
use crate::format::store_file::{STORE_BYTES_MAX, StoreFile};
use crate::io::RelPath;

pub(crate) use derive::Deriver;
pub(crate) use files::FileState;
pub(crate) use log::{LogState, LogSurvey};
pub(crate) use redo::{At, Entry, Redo, UserId, UserRedo as OwedBy, What};
pub use salvage::Lost;
pub(crate) use segment::{message, prefix, stored_crc};
pub(crate) use tree::Window;
pub use tree::{DirTree, ReadTree};
pub(crate) use user::{hex8, info_of, is_unborn, segment_of};

/// More findings than this are counted but not kept.
pub const FINDINGS_MAX: usize = 10_000;

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    /// What a crash leaves behind in its course: a torn tail, an older superblock copy.
    Expected,
    /// Derived data that is rebuilt without loss, or a file that nothing explains.
    Minor,
    /// Mail, or what is needed to find it, is not as it was written.
    Damage,
}

/// One thing that does not hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// File, offset, reason.
    pub corrupt: Corrupt,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Expected => "expected after a crash",
            Severity::Minor => "minor",
            Severity::Damage => "DAMAGE",
        };
        write!(f, "{severity}: {}; {}", self.corrupt, self.advice())
    }
}

impl Finding {
    /// What to do about it.
    pub fn advice(&self) -> &'static str {
        let Corrupt { file, reason, .. } = &self.corrupt;
        match (self.severity, reason) {
            (_, CorruptReason::Version { .. }) => "use the version of Ringpost that wrote it",
            (
                _,
                CorruptReason::Unreadable {
                    errno: libc::ENOENT,
                },
            )
            | (Severity::Damage, _)
                if file == "STORE" =>
            {
                "`ringpost repair` can put one wrong byte right; else take STORE from a backup"
            }
            (_, CorruptReason::Unreadable { .. }) => {
                "look at the device (dmesg, smartctl), copy the directory to another one as far as it \
                 can be read, and run `ringpost repair` there"
            }
            (Severity::Expected, _) => "nothing is to be done, the next start takes care of it",
            (Severity::Minor, CorruptReason::Disagree("the index does not name this file")) => {
                "`ringpost repair` moves it to lost/"
            }
            (Severity::Minor, CorruptReason::Disagree(_)) => {
                "no message is affected; what lists and searches show of it may be wrong"
            }
            (Severity::Minor, _) => "no message is affected; it is made anew in service",
            (Severity::Damage, _) => {
                "`ringpost repair --dry-run` tells what can be saved, `ringpost repair` saves it"
            }
        }
    }
}

/// What was read and what does not hold.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Report {
    /// Files looked into.
    pub files: u64,
    /// Users, those that are in the log only included.
    pub users: u64,
    /// Live messages, those that are in the log only included.
    pub messages: u64,
    /// Stored bytes of these.
    pub bytes: u64,
    /// At most [`FINDINGS_MAX`], in the order of the walk.
    pub findings: Vec<Finding>,
    /// Findings that were not kept.
    pub findings_left_off: u64,
    /// The worst severity met, of those left off too.
    pub worst: Option<Severity>,
    /// Messages that were acknowledged and are not whole; at most [`FINDINGS_MAX`]. Each is a finding
    /// of its file too.
    pub lost: Vec<Lost>,
}

impl Report {
    /// Whether no mail is damaged. Minor and expected findings do not count.
    pub fn is_sound(&self) -> bool {
        self.worst.is_none_or(|worst| worst < Severity::Damage)
    }
}

/// How far a check has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Logs and partitions that are done.
    pub done: u64,
    /// Logs and partitions in all.
    pub of: u64,
    /// Live messages so far.
    pub messages: u64,
    /// Their stored bytes.
    pub bytes: u64,
}

/// How deep a check looks. Each level does what the ones before it do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// Headers, runs, names and lengths, and the log: all but the messages in segments.
    Structure,
    /// Every checksum: each message is read.
    Checksums,
    /// Each segment is parsed as an mbox, and what the index says of a message is computed again.
    Full,
}

/// Reads everything in `tree` at the deepest level. `progress` is called after each log and each
/// partition.
pub fn check(tree: &dyn ReadTree, progress: &mut dyn FnMut(Progress)) -> Report {
    check_at(tree, Level::Full, progress)
}

/// As [`check`], as deep as `level` says.
pub fn check_at(tree: &dyn ReadTree, level: Level, progress: &mut dyn FnMut(Progress)) -> Report {
    let mut checker = Checker::new(tree);
    checker.level = level;
    if let Some(store) = checker.store_file() {
        checker.everything(&store, progress);
    }
    checker.report
}

/// The walk's state: where to read and what was found.
pub(crate) struct Checker<'a> {
    tree: &'a dyn ReadTree,
    pub(crate) report: Report,
    /// Findings of damage.
    damages: u64,
    level: Level,
}

impl<'a> Checker<'a> {
    pub(crate) fn new(tree: &'a dyn ReadTree) -> Self {
        Self {
            tree,
            report: Report::default(),
            damages: 0,
            level: Level::Checksums,
        }
    }

    /// A message that is not whole.
    fn lose(&mut self, lost: Lost) {
        if self.report.lost.len() < FINDINGS_MAX {
            self.report.lost.push(lost);
        }
    }

    fn finding(&mut self, severity: Severity, corrupt: Corrupt) {
        let finding = Finding { severity, corrupt };
        self.report.worst = self.report.worst.max(Some(severity));
        self.damages += u64::from(severity == Severity::Damage);
        if self.report.findings.len() < FINDINGS_MAX {
            self.report.findings.push(finding);
        } else {
            self.report.findings_left_off += 1;
        }
    }

    fn found(&mut self, severity: Severity, file: &RelPath, offset: u64, reason: CorruptReason) {
        let file = file.to_string();
        self.finding(
            severity,
            Corrupt {
                file,
                offset,
                reason,
            },
        );
    }

    fn damage(&mut self, file: &RelPath, offset: u64, reason: CorruptReason) {
        self.found(Severity::Damage, file, offset, reason);
    }

    /// The names in a directory; a failure is a finding.
    fn list(&mut self, dir: &RelPath) -> Option<Vec<(String, u64)>> {
        match self.tree.list(dir) {
            Ok(names) => Some(names),
            Err(error) => {
                self.finding(Severity::Damage, error.corrupt());
                None
            }
        }
    }

    /// A piece of a file, short only at its end; a failure is a finding.
    fn read(&mut self, file: &RelPath, offset: u64, len: usize) -> Option<Vec<u8>> {
        self.report.files += u64::from(offset == 0);
        match self.tree.read(file, offset, len) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                self.finding(Severity::Damage, error.corrupt());
                None
            }
        }
    }

    pub(crate) fn store_file(&mut self) -> Option<StoreFile> {
        let path = RelPath::store();
        let bytes = self.read(&path, 0, STORE_BYTES_MAX + 1)?;
        match StoreFile::decode(&bytes) {
            Ok(store) => Some(store),
            Err(reason) => {
                self.damage(&path, 0, reason);
                None
            }
        }
    }

    fn everything(&mut self, store: &StoreFile, progress: &mut dyn FnMut(Progress)) {
        let mut redo = Redo::default();
        let partitions = u64::from(store.partitions.value());
        let of = u64::from(store.logs) + partitions;
        let mut done = 0;
        let mut step = |report: &Report| {
            done += 1;
            progress(Progress {
                done,
                of,
                messages: report.messages,
                bytes: report.bytes,
            });
        };
        for log_id in self.log_ids(store.logs) {
            drop(self.log(store, log_id, &mut redo));
            if log_id < store.logs {
                step(&self.report);
            }
        }
        let mut users = redo.users;
        for number in 0..store.partitions.value() {
            let number = u16::try_from(number).expect("at most 65,536 partitions");
            let partition = PartitionId::new(number);
            let rest = users.split_off(&UserId::first_behind(partition));
            self.partition(store, partition, std::mem::replace(&mut users, rest));
            step(&self.report);
        }
    }

    /// The logs in use, and those of more cores that once ran.
    pub(crate) fn log_ids(&mut self, logs: u32) -> Vec<u32> {
        let mut ids: Vec<u32> = (0..logs).collect();
        let names = self.list(&RelPath::log_dir(0).parent()).unwrap_or_default();
        for (name, _) in names {
            let id = u32::from_str_radix(&name, 16).ok();
            if let Some(id) = id.filter(|id| RelPath::log_dir(*id).file_name() == name)
                && id >= logs
            {
                ids.push(id);
            }
        }
        ids
    }
}

#[cfg(test)]
mod tests;
