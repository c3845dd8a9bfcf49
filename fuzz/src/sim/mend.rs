//! Repair of a store, cut off by crashes and done again (storage.md 8.6, `engine/src/repair.rs`).
//!
//! What it promises, however often a repair is cut off:
//!
//! * What a crash alone left is sound, and a repair leaves it alone.
//! * If a bit of `folders` or of an index's header goes bad besides, nothing at all is lost: not a flag, and
//!   nothing expunged is back. The store lives on as if nothing had been, under the same oracle.
//! * What rot hurt elsewhere, one bit or one sector, is sound afterwards, and the next repair has nothing to do:
//!   the store opens, everybody is served, and a message that is not there any more was named by a dry run
//!   before one of the tries. Never is anything shown that nobody sent, or with other bytes. Flags may be older
//!   than they were and expunged messages may be back, since the log or the index that knew is what was hurt.
//!
//! A repair that the disk fails, by an error or for want of room, is cut off like one that crashes.
//!
//! Not simulated: repair of what lost more than that (`engine/tests/repair` does sectors of zeros, files
//! that are gone, and both superblocks), and of what cannot be read.

use std::collections::BTreeSet;

use ringpost_engine::check::check;
use ringpost_engine::format::info::INFO_HEADER_BYTES;
use ringpost_engine::io::sim::{Among, StepError};
use ringpost_engine::repair::{LostMessage, RepairError, Repaired, plan, repair};
use ringpost_engine::request::Event;
use ringpost_netproto::id::Guid;

use super::Sim;
use super::asked::Asked;
use super::model::{Person, Verdict, ensure};
use super::node::now_of;
use super::rot::plain_path;

/// Tries of a repair that are cut off, at most.
const CRASHES_MAX: u32 = 4;

/// Of a message of which not so much is left.
const UNKNOWN: Guid = Guid::new([0; 16]);

impl Sim {
    /// After a crash: the store is sound, and there is nothing to repair. Then now and then a byte goes
    /// bad that something else proves, and a repair gives all back.
    pub(super) fn repair_after_crash(&mut self) -> Verdict {
        self.repair_disk();
        let planned = self.planned()?;
        let is_read = self.oracle.excuses.unread.is_empty();
        ensure!(
            planned.is_nothing() || !is_read,
            "a repair finds something to do after a crash: {planned:?}"
        );
        ensure!(planned.lost.is_empty(), "a crash lost {:?}", planned.lost);
        if is_read && self.hazard_rng.bool() {
            self.harm();
        }
        let lost = self.repair_through()?;
        ensure!(lost.is_empty(), "a repair gave up {lost:?}");
        self.disk.forget_wounds();
        Ok(())
    }

    /// Flips a bit in what is derived or proved: `folders`, or the header of an index.
    fn harm(&mut self) {
        let tree = self.disk.tree().into_iter();
        let derived = |path: &String| path.ends_with("/folders") || path.contains("/info.");
        let files = tree.map(|(path, _)| path).filter(derived);
        let files: Vec<String> = files.filter(|path| !path.contains(".part")).collect();
        let Some(path) = self.hazard_rng.choice(files) else {
            return;
        };
        let Some(file) = plain_path(&path) else {
            return;
        };
        let bytes = self.disk.read(&file).unwrap_or_default();
        let head = bytes.len().min(INFO_HEADER_BYTES);
        let at = self.hazard_rng.usize(..head.max(1));
        let mask = 1 << self.hazard_rng.u32(..8);
        let offset = u64::try_from(at).unwrap_or(0);
        if self.disk.flip(&file, offset, mask) {
            self.say(|_| format!("harmed {path} at {offset}"));
        }
    }

    /// What a repair would do.
    fn planned(&self) -> Result<Repaired, String> {
        let now = now_of(&self.disk, self.skew_ns).wall;
        let planned = plan(&self.disk, now, &mut |_progress| {});
        planned.map_err(|error| format!("a dry run of a repair ends: {error}"))
    }

    /// Repairs, after as many tries as are cut off; all that was named as lost before any of them.
    fn repair_through(&mut self) -> Result<Vec<LostMessage>, String> {
        let mut lost = Vec::new();
        let crashes = self.hazard_rng.u32(..CRASHES_MAX);
        for tried in 0..=crashes {
            let planned = self.planned()?;
            self.say(|_| format!("planned: {planned:?}"));
            lost.extend(planned.lost);
            if tried < crashes {
                self.draw_end_of_repair();
            }
            let now = now_of(&self.disk, self.skew_ns).wall;
            let faults = self.disk.faults();
            let done = repair(&self.disk, self.disk.io(), now, &mut |_progress| {});
            self.say(|_| format!("repaired: {done:?}"));
            self.stats.repairs += 1;
            let failed = self.disk.faults() > faults;
            self.repair_disk();
            match done {
                _ if self.disk.is_crashed() => self.crash(),
                Ok(_) => break,
                Err(RepairError::Io(_)) if failed => self.crash(),
                Err(error) => return Err(format!("a repair ends: {error}")),
            }
        }
        let report = check(&self.disk, &mut |_progress| {});
        ensure!(
            report.is_sound(),
            "the checker finds after a repair: {:?}",
            report.findings
        );
        let rest = self.planned()?;
        ensure!(rest.is_nothing(), "a second repair would do {rest:?}");
        Ok(lost)
    }

    /// Draws what cuts a repair off: a crash, an error of the disk, or want of room.
    fn draw_end_of_repair(&mut self) {
        let rng = &mut self.hazard_rng;
        let at = rng.u64(1..40);
        let kind = rng.u8(..6);
        let change = self.disk.changes() + at;
        let tree = self.disk.tree();
        let used: u64 = tree.iter().filter_map(|(_, bytes)| *bytes).sum();
        let inodes = u64::try_from(tree.len()).unwrap_or(0);
        let among = rng.choice([Among::Steps, Among::Writes, Among::Names, Among::Syncs]);
        let error = StepError {
            among: among.unwrap_or(Among::Steps),
            at,
            errno: libc::EIO,
        };
        let (room, files) = (rng.u64(..8_000), rng.u64(..4));
        self.disk.configure(|config| match kind {
            0..=2 => config.crash_at = Some(change),
            3 => config.error_at = Some(error),
            4 => config.capacity_bytes = Some(used + room),
            _ => config.inodes_max = Some(inodes + files),
        });
    }

    /// Repairs what was hurt and looks at everybody; and again after a drain and a start.
    pub(super) fn mend(&mut self) -> Verdict {
        let wounds = std::mem::take(&mut self.oracle.excuses.wounds);
        let verdict = self.mended();
        verdict.map_err(|what| format!("repaired after {wounds:?}: {what}"))
    }

    fn mended(&mut self) -> Verdict {
        let lost = self.repair_through()?;
        self.disk.forget_wounds();
        for round in 0..2 {
            let opened = self.open_with([3; 16]);
            opened.map_err(|error| format!("the store does not open: {error}"))?;
            for who in 0..self.knobs.users {
                self.look_at_mended(who, &lost)?;
            }
            if round == 0 {
                self.drain()?;
                self.crash();
            }
        }
        Ok(())
    }

    fn look_at_mended(&mut self, who: usize, lost: &[LostMessage]) -> Verdict {
        let user = self.oracle.person(who).key.clone();
        let request = ringpost_engine::request::Request::Mailboxes { user };
        let draft = (self.owner(who), request, Asked::Mailboxes { who });
        let Some(Event::Mailboxes { result, .. }) = self.ask(draft)? else {
            return Ok(());
        };
        let mut shown = BTreeSet::new();
        for status in result.unwrap_or_default() {
            let Some((_, entries)) = self.pages(who, status.mailbox)? else {
                continue;
            };
            for entry in entries {
                let (mailbox, uid) = (status.mailbox.value(), entry.uid.value());
                shown.insert((mailbox, uid));
                let draft = self.fetch(who, mailbox, (uid, 0, u32::MAX));
                self.ask(draft)?;
            }
        }
        let person = self.oracle.person(who);
        for (mailbox, folder) in &person.folders {
            for (uid, message) in &folder.messages {
                let guid = self.oracle.mail(message.mail).guid;
                ensure!(
                    shown.contains(&(*mailbox, *uid))
                        || self.oracle.may_be_gone(who, *mailbox, *uid)
                        || lost.iter().any(|lost| is_it(lost, person, (*uid, guid))),
                    "uid {uid} of {} of {}, mail {}, is gone and was not named: {lost:?}",
                    folder.name,
                    person.name,
                    message.mail
                );
            }
        }
        Ok(())
    }
}

/// Whether this message was named, by as much as was left of it.
fn is_it(
    LostMessage { lost, .. }: &LostMessage,
    person: &Person,
    (uid, guid): (u32, Guid),
) -> bool {
    let name = lost.name.as_deref();
    let same = lost.guid == guid || (lost.guid == UNKNOWN && [0, uid].contains(&lost.uid));
    name.is_none_or(|name| name == person.name.as_bytes()) && same
}
