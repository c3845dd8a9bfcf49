//! A backup that runs, and the archive of log files (storage.md 8.6).
//!
//! Whoever copies the data directory while mail goes on needs two things of the shard. Files of a user
//! keep their names, and dead ones stay: no compaction begins, nothing is unlinked. And the log from the superblock that was copied on stays: a
//! log file that a checkpoint passes is not armed again, it leaves the log by a hard link into
//! `archive/` and the end of its old name. Then every other file may be copied at any moment, in any
//! order: each holds at least the state at that checkpoint, and the log has the rest.
//!
//! The same way is the archive's: with `ShardConfig::archive` every log file goes there, and stays
//! until it is too old or there are too many. So do the files of large messages that are expunged: the
//! log does not hold their bytes. What a crash leaves: files held for a backup go at the
//! next start, since nobody copies any more; archived ones stay, and one that has both names loses
//! that of the log, so that it is never armed again.
//!
//! When the number of cores fell, nobody writes the archives of the logs that are over; a shard looks after
//! those that it shares with them modulo the number of logs, as if their files were its own.
//!
//! Mail comes first. When the disk is nearly full the backup is given up, then the oldest archived files
//! go; new mail is refused only when that did not help.

use std::collections::{BTreeMap, VecDeque};

use super::{Phase, Shard};
use crate::canary::{self, Canary};
use crate::config::ArchiveLimits;
use crate::error::IoError;
use crate::index::DeadFile;
use crate::io::{Done, Failed, Io, Op, RelPath};
use crate::limits::BACKUP_LEASE_NS_MAX;
use crate::log::{Held, Keep};
use crate::ops::{Ops, Purpose, unreachable_done};
use crate::request::{BusyReason, Event, MonotonicNs, Notice, Now, Refused, Ticket};

/// What a shard keeps for those who copy.
pub(super) struct Backups {
    log_id: u32,
    limits: Option<ArchiveLimits>,
    running: Option<Running>,
    /// The backup that was over last. Who prolongs it too late must not get another one under its id, and
    /// take files of before and after the gap for one copy.
    over: Option<u64>,
    dirs: Dirs,
    moving: Option<Moving>,
    /// By their numbers.
    leaving: BTreeMap<u64, Leaving>,
    leaving_next: u64,
    /// In `archive/`, oldest first.
    files: VecDeque<Kept>,
    bytes: u64,
    /// Wall clock, in seconds.
    now_s: u64,
    listing: Listing,
}

/// Whether `files` is all that lies in `archive/`: large messages come there without their size.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Listing {
    Known,
    /// Something came since the last look.
    Wanted,
    Running,
}

/// A backup.
struct Running {
    id: u64,
    until: MonotonicNs,
    step: Step,
}

#[derive(Clone, Copy)]
enum Step {
    /// A compaction ends first.
    Compaction(Ticket),
    /// The checkpoint with this number ends first.
    Checkpoint(Ticket, u64),
    Copying,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Dirs {
    Unmade,
    Made,
}

/// A log file on its way into `archive/`.
struct Moving {
    held: Held,
    to: RelPath,
    at_s: Option<u64>,
    step: Move,
}

#[derive(Clone, Copy)]
enum Move {
    Root,
    Dir,
    SyncTop,
    SyncRoot,
    Link,
    Sync,
    Unlink,
}

/// The file of a large message on its way into `archive/`. As with a log file, no old name ends before the
/// new one is durable: a rename into another directory may come apart in a power cut.
struct Leaving {
    /// One of these is its name.
    names: Vec<RelPath>,
    to: RelPath,
    /// Links that are not answered.
    links: usize,
    is_linked: bool,
}

/// A file in `archive/`.
#[derive(Clone)]
struct Kept {
    path: RelPath,
    bytes: u64,
    /// Archived in this second of 1970; `None` if it is held for a backup.
    at_s: Option<u64>,
}

/// Sequence and time of an archived log file.
fn archived_of(name: &str) -> Option<(u64, u64)> {
    let (sequence, at_s) = name.strip_suffix(".log")?.split_once('-')?;
    let sequence = u64::from_str_radix(sequence, 16).ok()?;
    Some((sequence, u64::from_str_radix(at_s, 16).ok()?))
}

/// Time of an archived file of either kind.
fn archived_at(name: &str) -> Option<u64> {
    let (_, at_s) = name.strip_suffix(".mbox")?.rsplit_once('-')?;
    u64::from_str_radix(at_s, 16).ok()
}

/// Names and sizes of the files in a directory; `None` if there is none.
fn list<I: Io>(ops: &mut Ops<I>, dir: &RelPath) -> Result<Option<Vec<(String, u64)>>, IoError> {
    match ops.run_plain(Op::ListDir { path: dir.clone() }) {
        Ok(Done::Listing(names)) => Ok(Some(names)),
        Ok(other) => unreachable_done(&other),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Oldest first; what is held for a backup comes before all.
fn sort(files: &mut VecDeque<Kept>) {
    files.make_contiguous().sort_by_key(|kept| kept.at_s);
}

/// The archived files that a listing of `archive/<id>` names.
fn kept_of(dir: &RelPath, names: &[(String, u64)]) -> VecDeque<Kept> {
    let kept = names.iter().filter_map(|(name, bytes)| {
        let log = archived_of(name).map(|(_, at_s)| at_s);
        Some(Kept {
            at_s: Some(log.or_else(|| archived_at(name))?),
            path: dir.entry(name)?,
            bytes: *bytes,
        })
    });
    kept.collect()
}

impl Backups {
    /// Looks into `archive/` while a shard opens, makes it if it is wanted, and removes what was held
    /// for a backup that a crash ended. Gives the sequence numbers of the archived files, too.
    pub(super) fn open<I: Io>(
        ops: &mut Ops<I>,
        (log_id, logs): (u32, u32),
        limits: Option<ArchiveLimits>,
    ) -> Result<(Self, Vec<u64>), IoError> {
        let dir = RelPath::archive_dir(log_id);
        // A killed process may have left names that are not durable yet, and a log file whose name is here
        // loses the one in the log.
        match ops.run_plain(Op::SyncDir { path: dir.clone() }) {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
        let found = list(ops, &dir)?;
        let mut dirs = found.as_ref().map_or(Dirs::Unmade, |_| Dirs::Made);
        let names = found.unwrap_or_default();
        if dirs == Dirs::Unmade && limits.is_some() {
            for path in [RelPath::archive_root(), dir.clone()] {
                ops.run_plain(Op::MakeDir { path })?;
            }
            for path in [RelPath::root(), RelPath::archive_root()] {
                ops.run_plain(Op::SyncDir { path })?;
            }
            dirs = Dirs::Made;
        }
        let mut sequences = Vec::new();
        for (name, _) in &names {
            sequences.extend(archived_of(name).map(|(sequence, _)| sequence));
            let is_held = name.strip_suffix(".held").is_some();
            if let Some(path) = dir.entry(name).filter(|_| is_held) {
                ops.run_plain(Op::Unlink { path })?;
            }
        }
        let mut files = kept_of(&dir, &names);
        let ids = match dirs {
            Dirs::Made => list(ops, &RelPath::archive_root())?.unwrap_or_default(),
            Dirs::Unmade => Vec::new(),
        };
        for (name, _) in ids {
            let id = u32::from_str_radix(&name, 16).unwrap_or(0);
            let over = RelPath::archive_dir(id);
            if id >= logs && id % logs == log_id && over.file_name() == name {
                files.extend(kept_of(&over, &list(ops, &over)?.unwrap_or_default()));
            }
        }
        sort(&mut files);
        let backups = Self {
            log_id,
            limits,
            running: None,
            over: None,
            dirs,
            moving: None,
            leaving: BTreeMap::new(),
            leaving_next: 0,
            bytes: files.iter().map(|kept| kept.bytes).sum(),
            files,
            now_s: 0,
            listing: Listing::Known,
        };
        Ok((backups, sequences))
    }

    /// Whether log files leave the log instead of being armed again.
    pub(super) fn keep(&self) -> Keep {
        if self.limits.is_some() || self.running.is_some() {
            Keep::Yes
        } else {
            Keep::No
        }
    }

    /// Whether somebody copies, or is about to.
    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Whether files of users stay under the names that they have.
    pub(super) fn holds_files(&self) -> bool {
        self.is_running() && !canary::on(Canary::FilesNotHeld)
    }

    /// Whether files of users stay although everything in them is dead.
    pub(super) fn files_kept(&self) -> Keep {
        if self.holds_files() {
            Keep::Yes
        } else {
            Keep::No
        }
    }

    /// Whether the files of expunged large messages go into the archive.
    pub(super) fn retires(&self) -> Keep {
        if self.limits.is_some() {
            Keep::Yes
        } else {
            Keep::No
        }
    }

    /// Whether no file is on its way.
    pub(super) fn is_quiet(&self) -> bool {
        self.moving.is_none() && self.leaving.is_empty() && self.listing != Listing::Running
    }

    /// Whether a checkpoint is waited for.
    pub(super) fn wants_checkpoint(&self) -> bool {
        let running = self.running.as_ref();
        running.is_some_and(|running| matches!(running.step, Step::Checkpoint(..)))
    }

    /// When the lease runs out.
    pub(super) fn due(&self) -> Option<MonotonicNs> {
        self.running.as_ref().map(|running| running.until)
    }

    /// Bytes in `archive/`.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn next_step(&mut self) -> Option<Op> {
        let moving = self.moving.as_ref()?;
        let log_id = self.log_id;
        let from = RelPath::log_file(log_id, moving.held.number);
        let to = moving.to.clone();
        Some(match moving.step {
            Move::Root => Op::MakeDir {
                path: RelPath::archive_root(),
            },
            Move::Dir => Op::MakeDir {
                path: RelPath::archive_dir(log_id),
            },
            Move::SyncTop => Op::SyncDir {
                path: RelPath::root(),
            },
            Move::SyncRoot => Op::SyncDir {
                path: RelPath::archive_root(),
            },
            Move::Link => Op::Link { from, to },
            Move::Sync => Op::SyncDir {
                path: RelPath::archive_dir(log_id),
            },
            Move::Unlink => Op::Unlink { path: from },
        })
    }

    /// The oldest archived file, if it is more than is kept.
    fn surplus(&mut self) -> Option<Kept> {
        let limits = self.limits?;
        let oldest = self.files.front()?;
        let age_s = self.now_s.saturating_sub(oldest.at_s?);
        (self.bytes > limits.bytes || age_s > limits.age_s)
            .then(|| self.files.pop_front())
            .flatten()
    }
}

impl<I: Io> Shard<I> {
    pub(super) fn backup_begin(
        &mut self,
        now: Now,
        ticket: Ticket,
        id: u64,
        lease_ns: u64,
    ) -> Result<(), Refused> {
        self.accepts_mail()?;
        let until = now.monotonic.after(lease_ns.min(BACKUP_LEASE_NS_MAX));
        if let Some(running) = &mut self.backups.running {
            if running.id != id || !matches!(running.step, Step::Copying) {
                return Err(Refused::Busy(BusyReason::Backup));
            }
            running.until = until;
            let mut end = self.positions.flushed_to().lsn();
            if canary::on(Canary::EndToldEarly) {
                end = self.superblock.checkpoint_lsn;
            }
            let result = Ok(end);
            self.answer(Event::BackupBegun { ticket, result });
            return Ok(());
        }
        if self.backups.over == Some(id) {
            return Err(Refused::NoSuchBackup);
        }
        if self.disk_is_full() || self.is_short_of_room() {
            return Err(Refused::DiskFull);
        }
        self.backups.running = Some(Running {
            id,
            until,
            step: Step::Compaction(ticket),
        });
        self.log.files_mut().keep(Keep::Yes);
        self.cancel_compaction(Refused::Busy(BusyReason::Backup));
        Ok(())
    }

    pub(super) fn backup_end(&mut self, ticket: Ticket, id: u64) -> Result<(), Refused> {
        let running = self.backups.running.as_ref();
        let copying =
            |running: &&Running| running.id == id && matches!(running.step, Step::Copying);
        running.filter(copying).ok_or(Refused::NoSuchBackup)?;
        let held = self.backups.files.iter();
        let held = held.filter(|kept| kept.at_s.is_none());
        let bytes = held.map(|kept| kept.bytes).sum();
        self.end_backup();
        let result = Ok(bytes);
        self.answer(Event::BackupEnded { ticket, result });
        Ok(())
    }

    /// Nobody copies any more: what was held for it goes, compactions may begin.
    fn end_backup(&mut self) {
        if let Some(running) = self.backups.running.take() {
            self.backups.over = Some(running.id);
        }
        let files = std::mem::take(&mut self.backups.files);
        let (kept, gone): (VecDeque<Kept>, _) =
            files.into_iter().partition(|kept| kept.at_s.is_some());
        self.backups.files = kept;
        let gone: Vec<Kept> = gone.into_iter().collect();
        for Kept { path, bytes, .. } in gone {
            self.backups.bytes -= bytes;
            self.ops.start(Op::Unlink { path }, Purpose::Tidy);
        }
        if self.backups.limits.is_none() {
            self.log.files_mut().keep(Keep::No);
        }
        for user in self.users.with_dead_files() {
            self.unlink_unpinned(user);
            self.sweep(user);
        }
        self.compactor.look_again();
    }

    /// A backup that cannot be held is over; who copies learns it with its next request.
    pub(super) fn give_backup_up(&mut self, reason: &'static str) {
        if self.backups.running.is_some() {
            self.refuse_backup();
            self.end_backup();
            self.events
                .push(Event::Notice(Notice::BackupGivenUp { reason }));
        }
    }

    /// Answers who waits for a backup to begin.
    pub(super) fn refuse_backup(&mut self) {
        let Some(running) = self.backups.running.take() else {
            return;
        };
        self.backups.over = Some(running.id);
        if let Step::Compaction(ticket) | Step::Checkpoint(ticket, _) = running.step {
            let result = Err(Refused::NoSuchBackup);
            self.answer(Event::BackupBegun { ticket, result });
        }
    }

    /// Goes on with what a backup waits for, and with files that leave the log.
    pub(super) fn tend_backup(&mut self, now: Now) {
        if matches!(self.phase, Phase::Stopped | Phase::Clean) {
            return;
        }
        let begun = self.checkpoint.begun();
        let ended = self.checkpoint.ended();
        let compacting = self.compactor.is_running();
        if let Some(running) = &mut self.backups.running {
            match running.step {
                Step::Compaction(ticket) if !compacting => {
                    running.step = Step::Checkpoint(ticket, begun + 1);
                }
                Step::Checkpoint(ticket, number) if ended >= number => {
                    running.step = Step::Copying;
                    let result = Ok(self.positions.flushed_to().lsn());
                    self.answer(Event::BackupBegun { ticket, result });
                }
                _ if running.until <= now.monotonic => {
                    self.give_backup_up("nobody prolonged its lease");
                }
                _ => {}
            }
        }
        self.backups.now_s = now.wall.value() / 1_000_000_000;
        self.move_next();
        self.look_into_archive();
        self.prune();
    }

    /// The file of an expunged large message goes: into the archive, if there is one. One that came
    /// and went between two checkpoints may still have its first name then.
    pub(super) fn part_with(&mut self, dir: &RelPath, dead: &DeadFile) {
        let last = dir.large(dead.segment, dead.mailbox, dead.uid);
        let first = dir.segment_part(dead.segment);
        self.retire(last, Some(first));
    }

    /// A file that nobody needs any more leaves its place; `first` is a name that it may still have.
    pub(super) fn retire(&mut self, path: RelPath, first: Option<RelPath>) {
        let backups = &mut self.backups;
        let at_s = backups.limits.map(|_| backups.now_s);
        let Some(to) = at_s.and_then(|at_s| path.archived_large(backups.log_id, at_s)) else {
            for path in first.into_iter().chain([path]) {
                self.ops.start(Op::Unlink { path }, Purpose::Tidy);
            }
            return;
        };
        if backups
            .leaving
            .values()
            .any(|leaving| leaving.names.contains(&path))
        {
            return;
        }
        let names: Vec<RelPath> = first.into_iter().chain([path]).collect();
        let number = backups.leaving_next;
        backups.leaving_next += 1;
        for from in &names {
            let (from, to) = (from.clone(), to.clone());
            self.ops
                .start(Op::Link { from, to }, Purpose::Leave(number));
        }
        let links = names.len();
        let leaving = Leaving {
            names,
            to,
            links,
            is_linked: false,
        };
        backups.leaving.insert(number, leaving);
    }

    /// A step of the way of a large message's file ended. What fails is left to the next load of its user,
    /// but for a sync: nobody knows then what is in the directory.
    pub(super) fn retire_step(
        &mut self,
        number: u64,
        result: Result<Done, Failed>,
    ) -> Result<(), IoError> {
        let backups = &mut self.backups;
        let Some(mut leaving) = backups.leaving.remove(&number) else {
            return Ok(());
        };
        if leaving.links > 0 {
            leaving.links -= 1;
            leaving.is_linked |= match &result {
                Ok(_) => true,
                Err(failed) => failed.error.is_exists(),
            };
            if leaving.links == 0 && leaving.is_linked {
                let path = leaving.to.parent();
                self.ops.start(Op::SyncDir { path }, Purpose::Leave(number));
            }
            if leaving.links > 0 || leaving.is_linked {
                backups.leaving.insert(number, leaving);
            }
            return Ok(());
        }
        result.map_err(|failed| failed.error)?;
        backups.listing = Listing::Wanted;
        if !backups.holds_files() {
            for path in leaving.names {
                self.ops.start(Op::Unlink { path }, Purpose::Tidy);
            }
        }
        Ok(())
    }

    /// Counts what came there without its size.
    fn look_into_archive(&mut self) {
        let backups = &mut self.backups;
        if backups.listing == Listing::Wanted && backups.moving.is_none() && !backups.is_running() {
            backups.listing = Listing::Running;
            let path = RelPath::archive_dir(backups.log_id);
            self.ops.start(Op::ListDir { path }, Purpose::ArchiveList);
        }
    }

    /// The archive was listed.
    pub(super) fn archive_listed(&mut self, result: Result<Done, Failed>) -> Result<(), IoError> {
        let names = match result {
            Ok(Done::Listing(names)) => names,
            Ok(other) => unreachable_done(&other),
            Err(failed) => return Err(failed.error),
        };
        let backups = &mut self.backups;
        if backups.listing == Listing::Running {
            backups.listing = Listing::Known;
        }
        // What a backup holds meanwhile is counted where it came, and nothing comes to logs that are over.
        let dir = RelPath::archive_dir(backups.log_id);
        let is_known = |kept: &Kept| kept.at_s.is_none() || kept.path.parent() != dir;
        let files = &mut backups.files;
        files.retain(is_known);
        files.extend(kept_of(&dir, &names));
        sort(files);
        backups.bytes = files.iter().map(|kept| kept.bytes).sum();
        Ok(())
    }

    /// Begins with the oldest file that leaves the log.
    fn move_next(&mut self) {
        if self.backups.moving.is_some() || self.backups.listing == Listing::Running {
            return;
        }
        if self.backups.keep() == Keep::No {
            self.log.files_mut().recycle_held();
            return;
        }
        let Some(held) = self.log.files().held() else {
            return;
        };
        let log_id = self.identity.log_id;
        let at_s = self.backups.limits.map(|_| self.backups.now_s);
        let to = match at_s {
            Some(at_s) => RelPath::archived(log_id, held.sequence, at_s),
            None => RelPath::held(log_id, held.sequence),
        };
        let step = match self.backups.dirs {
            Dirs::Unmade => Move::Root,
            Dirs::Made => Move::Link,
        };
        self.backups.moving = Some(Moving {
            held,
            to,
            at_s,
            step,
        });
        self.go_on_moving();
    }

    fn go_on_moving(&mut self) {
        if let Some(op) = self.backups.next_step() {
            self.ops.start(op, Purpose::Archive);
        }
    }

    /// A step of a file's way ended. An error is fatal for the shard: a file that may have two names
    /// must not be written again.
    pub(super) fn archive_step(&mut self, result: Result<Done, Failed>) -> Result<(), IoError> {
        let Some(moving) = &mut self.backups.moving else {
            return Ok(());
        };
        if let Err(failed) = result {
            let harmless = matches!(moving.step, Move::Root | Move::Dir | Move::Link);
            if !(harmless && failed.error.is_no_space()) {
                return Err(failed.error);
            }
            self.backups.moving = None;
            self.log.files_mut().recycle_held();
            self.space.refused = true;
            let reason = "no room to hold a log file";
            if self.backups.running.is_some() {
                self.give_backup_up(reason);
            } else {
                let notice = Notice::BackupGivenUp { reason };
                self.events.push(Event::Notice(notice));
            }
            self.make_room();
            return Ok(());
        }
        moving.step = match moving.step {
            Move::Root => Move::Dir,
            Move::Dir => Move::SyncTop,
            Move::SyncTop => Move::SyncRoot,
            Move::SyncRoot => {
                self.backups.dirs = Dirs::Made;
                Move::Link
            }
            Move::Link => Move::Sync,
            Move::Sync => Move::Unlink,
            Move::Unlink => {
                self.moved();
                return Ok(());
            }
        };
        self.go_on_moving();
        Ok(())
    }

    /// The file has its new name only.
    fn moved(&mut self) {
        let Some(Moving { held, to, at_s, .. }) = self.backups.moving.take() else {
            return;
        };
        let Held {
            index, file, bytes, ..
        } = held;
        self.log.files_mut().left(index);
        self.ops.start(Op::Close { file }, Purpose::Tidy);
        if at_s.is_none() && self.backups.running.is_none() {
            self.ops.start(Op::Unlink { path: to }, Purpose::Tidy);
            return;
        }
        self.backups.bytes += bytes;
        self.backups.files.push_back(Kept {
            path: to,
            bytes,
            at_s,
        });
    }

    /// Removes archived files that are too old or too many; none while somebody copies.
    fn prune(&mut self) {
        while !self.backups.is_running()
            && let Some(Kept { path, bytes, .. }) = self.backups.surplus()
        {
            self.backups.bytes -= bytes;
            self.ops.start(Op::Unlink { path }, Purpose::Tidy);
        }
    }

    /// Whether free space is below twice the floor.
    fn is_short_of_room(&self) -> bool {
        self.space.free_bytes < self.space.floor_bytes.saturating_mul(2)
    }

    /// Gives up what only helps to look back, before mail is put off.
    pub(super) fn make_room(&mut self) {
        if !(self.is_short_of_room() || self.disk_is_full()) {
            return;
        }
        self.give_backup_up("the disk is nearly full");
        let floor = self.space.floor_bytes.saturating_mul(2);
        let mut missing = floor.saturating_sub(self.space.free_bytes).max(1);
        let mut gave_up = false;
        while missing > 0
            && let Some(Kept { path, bytes, .. }) = self.backups.files.pop_front()
        {
            missing = missing.saturating_sub(bytes);
            self.backups.bytes -= bytes;
            self.ops.start(Op::Unlink { path }, Purpose::Tidy);
            gave_up = true;
        }
        if gave_up {
            let reason = "the disk is nearly full; the oldest archived log files go";
            self.events
                .push(Event::Notice(Notice::BackupGivenUp { reason }));
        }
    }
}
