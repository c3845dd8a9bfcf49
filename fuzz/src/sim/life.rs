//! The lives of a node: how it opens, is looked at, works, and ends.

use std::collections::BTreeMap;

use ringpost_engine::check::{Severity, check};
use ringpost_engine::error::{CorruptReason, OpenError};
use ringpost_engine::io::sim::{Among, Crash, StepError};
use ringpost_engine::request::{Event, ListEntry, MailboxStatus, More, Refused, Request};
use ringpost_netproto::id::{MailboxId, Modseq};

use super::asked::Asked;
use super::knobs::Kind;
use super::look::Seen;
use super::model::{Verdict, ensure};
use super::node::{self, Node};
use super::{Sim, TURNS_MAX};

/// Turns within which a watch has to be woken when everything else is answered: as many as a slow
/// disk takes for a few reads.
const LATE_MAX: u32 = 2_000;

/// What a mail client kept of a mailbox: flags and keyword bits by uid, as of a modseq.
#[derive(Clone, Debug)]
pub(super) struct Client {
    modseq: u64,
    messages: BTreeMap<u32, (u32, u64)>,
}

impl Sim {
    /// All of a seed.
    pub(super) fn lives(&mut self) -> Verdict {
        for _life in 0..self.knobs.lives {
            self.draw_faults();
            if self.open()? {
                self.postpone_sync_fault();
                self.live()?;
            }
            self.end_life()?;
        }
        self.last_life()
    }

    /// What goes wrong with the disk in this life.
    fn draw_faults(&mut self) {
        self.oracle.excuses.hurt = !self.disk.wounds().is_empty();
        self.oracle.excuses.full = false;
        self.repair_disk();
        let base = self.disk.changes();
        if self.rng.u8(..8) > 0 {
            let change = base + self.rng.u64(1..self.knobs.changes_max);
            self.disk.configure(|config| config.crash_at = Some(change));
        }
        let one_in = self.knobs.fault_one_in;
        if one_in == 0 || self.rng.u32(..one_in) > 0 {
            return;
        }
        let rng = &mut self.rng;
        let at = rng.u64(1..250);
        let errno = if rng.bool() {
            libc::ENOSPC
        } else {
            libc::EDQUOT
        };
        let files = self.disk.tree();
        let used: u64 = files.iter().filter_map(|(_, bytes)| *bytes).sum();
        let inodes = u64::try_from(files.len()).unwrap_or(0);
        match rng.u8(..8) {
            0..=2 => {
                let classes = [
                    Among::Steps,
                    Among::Reads,
                    Among::Writes,
                    Among::Names,
                    Among::Syncs,
                ];
                let among = rng.choice(classes).unwrap_or(Among::Steps);
                let errno = libc::EIO;
                let error = StepError { among, at, errno };
                self.disk.configure(|config| config.error_at = Some(error));
            }
            3..=4 => {
                let at = rng.u64(1..40);
                self.disk
                    .configure(|config| config.sync_error_at = Some(at));
            }
            5 => {
                let room = used + rng.u64(..300_000);
                self.disk.configure(|config| {
                    config.capacity_bytes = Some(room);
                    config.full_errno = errno;
                });
                self.oracle.excuses.full = true;
            }
            6 => {
                let room = inodes + rng.u64(..12);
                self.disk.configure(|config| config.inodes_max = Some(room));
                self.oracle.excuses.full = true;
            }
            _ => {
                let links = rng.u32(2..4);
                self.disk.configure(|config| config.links_max = Some(links));
            }
        }
        self.say(|_| "this life has a fault".to_owned());
    }

    /// Syncs that fail while the store opens are those of the log. Most others are of checkpoints, which
    /// come later: so most of the faults drawn do, too.
    fn postpone_sync_fault(&mut self) {
        let at = self.disk.syncs() + self.rng.u64(1..12);
        let is_late = self.rng.u8(..4) > 0;
        self.disk.configure(|config| {
            if is_late {
                config.sync_error_at = config.sync_error_at.map(|_| at);
            }
        });
    }

    /// Takes faults back that last.
    pub(super) fn repair_disk(&self) {
        self.disk.configure(|config| {
            config.capacity_bytes = None;
            config.inodes_max = None;
            config.links_max = None;
            config.error_at = None;
            config.sync_error_at = None;
            config.crash_at = None;
        });
    }

    /// Opens the store. Now and then the machine stops in that, and again in the next try. `false`:
    /// it does not open with this life's faults.
    fn open(&mut self) -> Result<bool, String> {
        for attempt in 0..4 {
            if attempt < 3 && self.rng.u8(..3) == 0 {
                let change = self.disk.changes() + self.rng.u64(1..30);
                self.disk.configure(|config| config.crash_at = Some(change));
            }
            let mut seed = [0; 16];
            self.rng.fill(&mut seed);
            match self.open_with(seed) {
                Ok(()) => return Ok(true),
                Err(_) if self.disk.is_crashed() => {
                    self.stats.recovery_crashes += 1;
                    self.crash();
                }
                Err(error) if self.disk.faults() > 0 || self.is_short_of_room(&error) => {
                    self.crash();
                    self.repair_disk();
                }
                Err(error) => return Err(format!("the store does not open: {error}")),
            }
        }
        Ok(false)
    }

    /// Opens the store with as many cores as it is to have now.
    pub(super) fn open_with(&mut self, seed: [u8; 16]) -> Result<(), OpenError> {
        if self.hazards.cores && self.hazard_rng.bool() {
            // One more than there are partitions: a core may have none.
            self.logs = self.hazard_rng.u32(1..=node::PARTITIONS + 1);
        }
        let (logs, skew) = (self.logs, self.skew_ns);
        let was = node::logs_of(&self.disk)?;
        if was != logs {
            self.oracle.interleave(was.into());
        }
        let opened = Node::open(&self.disk, &self.knobs.shard, logs, (seed, skew));
        let done = opened.as_ref().map(drop);
        if self.hazards.cores && self.disk.faults() > 0 {
            // The old number of cores writes a checkpoint first, and nobody hears whom it could not read.
            let people = self.oracle.people.iter();
            let dirs = people.map(|person| node::dir_of(&person.key).to_string());
            self.oracle
                .excuses
                .unread
                .extend(dirs.collect::<Vec<String>>());
        }
        self.say(|sim| {
            if sim.hazards.cores {
                format!("opened with {logs} cores: {done:?}")
            } else {
                format!("opened: {done:?}")
            }
        });
        let node = opened?;
        self.stats.layouts += u64::from(node.is_new_layout());
        self.node = Some(node);
        Ok(())
    }

    /// Whether a change of the number of cores waited for room that a full disk does not have.
    fn is_short_of_room(&self, error: &OpenError) -> bool {
        let no_room = matches!(error, OpenError::Io(error) if error.is_no_space());
        no_room && self.oracle.excuses.full
    }

    /// A look at everybody whose state is in doubt and at some others; then work; then a look at all.
    fn live(&mut self) -> Verdict {
        self.disk_is_sound()?;
        let all = self.rng.bool();
        for who in 0..self.knobs.users {
            let doubtful = !self.oracle.person(who).doubts.is_empty();
            if doubtful || all || self.rng.bool() {
                self.look_at(who)?;
            }
        }
        self.work()?;
        if self.rng.bool() {
            self.settle()?;
            for who in 0..self.knobs.users {
                self.look_at(who)?;
            }
            self.remember();
        }
        Ok(())
    }

    pub(super) fn work(&mut self) -> Verdict {
        let steps = self.rng.u32(..self.knobs.steps_max);
        for _step in 0..steps {
            if self.is_over() {
                return Ok(());
            }
            self.step()?;
            if self.hazards.copies && !self.oracle.excuses.rotten && self.hazard_rng.u8(..16) == 0 {
                self.back_up()?;
            }
        }
        Ok(())
    }

    /// One thing that somebody does, and some turns behind it.
    pub(super) fn step(&mut self) -> Verdict {
        let kind = self.knobs.kind(&mut self.rng);
        // These would wait until a backup ends by itself.
        let waits = matches!(kind, Kind::Compact | Kind::Settle);
        if self.backup.is_some() && waits && self.hazard_rng.u8(..8) > 0 {
            return Ok(());
        }
        match kind {
            Kind::Pause => {
                for _turn in 0..self.rng.u32(1..60) {
                    self.turn()?;
                }
            }
            Kind::Settle => {
                self.settle()?;
                self.clear_doubts()?;
            }
            Kind::Large => self.begin_upload()?,
            kind => {
                if let Some(draft) = self.draft(kind) {
                    self.submit(draft)?;
                }
            }
        }
        for _turn in 0..self.rng.u32(..=self.knobs.turns_max) {
            self.turn()?;
        }
        Ok(())
    }

    /// A look at those of whom a refused change may have done something.
    fn clear_doubts(&mut self) -> Verdict {
        for who in 0..self.knobs.users {
            if !self.oracle.person(who).doubts.is_empty() {
                self.look_at(who)?;
            }
        }
        Ok(())
    }

    /// Turns until everything but watches is answered.
    pub(super) fn settle(&mut self) -> Verdict {
        let mut late = 0;
        for turn in 0..TURNS_MAX {
            if self.is_over() {
                return Ok(());
            }
            let waits = |asked: &Asked| !matches!(asked, Asked::Watch { .. });
            if !self.oracle.open.values().any(waits) {
                // The user of a watch may still be on its way from the disk.
                late += 1;
                match self.watches_are_right() {
                    Err(_) if late < LATE_MAX => {}
                    verdict => return verdict,
                }
            }
            // Somebody makes room.
            if turn == 2_000 {
                self.disk.configure(|config| {
                    config.capacity_bytes = None;
                    config.inodes_max = None;
                });
            }
            self.turn()?;
        }
        Err(format!("no answer to {:?}", self.oracle.open))
    }

    /// No watch sleeps although something happened.
    fn watches_are_right(&self) -> Verdict {
        for asked in self.oracle.open.values() {
            if let Asked::Watch {
                who,
                mailbox: Some(mailbox),
                since,
            } = asked
            {
                let folder = self.oracle.person(*who).folders.get(mailbox);
                let modseq = folder.map_or(0, |folder| folder.highest_modseq);
                ensure!(
                    modseq <= *since,
                    "a watch of user {who} sleeps at {since}, with {modseq}"
                );
            }
        }
        Ok(())
    }

    /// All that readers can see of a user, against the model.
    pub(super) fn look_at(&mut self, who: usize) -> Verdict {
        if self.is_over() {
            return Ok(());
        }
        let user = self.oracle.person(who).key.clone();
        let shard = self.owner(who);
        let asked = Asked::Mailboxes { who };
        let request = Request::Mailboxes { user: user.clone() };
        let Some(Event::Mailboxes { result, .. }) = self.ask((shard, request, asked))? else {
            return Ok(());
        };
        let statuses = match result {
            Ok(statuses) => statuses,
            Err(Refused::NoSuchUser) => return self.oracle.reconcile(who, None),
            Err(_) => return Ok(()),
        };
        let mut seen = Seen::new();
        for status in statuses {
            match self.pages(who, status.mailbox)? {
                Some(mailbox) => seen.push(mailbox),
                None => return Ok(()),
            }
        }
        self.oracle.reconcile(who, Some(&seen))?;
        let all = self.rng.bool();
        for (status, entries) in &seen {
            for entry in entries {
                if all || self.rng.u8(..4) == 0 {
                    let (mailbox, uid) = (status.mailbox.value(), entry.uid.value());
                    let draft = self.fetch(who, mailbox, (uid, 0, u32::MAX));
                    self.ask(draft)?;
                }
            }
            self.client(who, (status, entries))?;
        }
        Ok(())
    }

    /// A whole mailbox, page by page; `None` if it is not shown.
    pub(super) fn pages(
        &mut self,
        who: usize,
        mailbox: MailboxId,
    ) -> Result<Option<(MailboxStatus, Vec<ListEntry>)>, String> {
        let mut entries = Vec::new();
        loop {
            let last = entries.last();
            let request = Request::List {
                user: self.oracle.person(who).key.clone(),
                mailbox,
                after: last.map_or(0, |entry: &ListEntry| entry.uid.value()),
                entries_max: 1_000,
            };
            // Its answer is held against the model with the rest of the user.
            let Some(Event::Listed {
                result: Ok(page), ..
            }) = self.ask((self.owner(who), request, Asked::Look))?
            else {
                return Ok(None);
            };
            entries.extend(page.entries);
            if page.more == More::No {
                return Ok(Some((page.status, entries)));
            }
        }
    }

    /// A client that was away asks what changed (RFC 7162), and then knows what is there.
    fn client(&mut self, who: usize, (status, entries): (&MailboxStatus, &[ListEntry])) -> Verdict {
        let mailbox = status.mailbox.value();
        let key = (who, mailbox, status.uidvalidity.value());
        let now: BTreeMap<u32, (u32, u64)> = entries
            .iter()
            .map(|entry| (entry.uid.value(), (entry.flags, entry.keywords)))
            .collect();
        if let Some(mut client) = self.clients.get(&key).cloned() {
            let since = client.modseq;
            let mut after = 0;
            loop {
                let request = Request::Changes {
                    user: self.oracle.person(who).key.clone(),
                    mailbox: MailboxId::new(mailbox),
                    since: Modseq::new(since),
                    after,
                    entries_max: self.rng.u32(1..20),
                };
                let asked = Asked::Changes { who, mailbox };
                let Some(Event::Changes {
                    result: Ok(page), ..
                }) = self.ask((self.owner(who), request, asked))?
                else {
                    return Ok(());
                };
                for entry in &page.changed {
                    client
                        .messages
                        .insert(entry.uid.value(), (entry.flags, entry.keywords));
                }
                let gone = |uid: &u32| {
                    page.vanished
                        .contains(ringpost_netproto::id::Uid::new(*uid))
                };
                client.messages.retain(|uid, _| !gone(uid));
                if page.more == More::No {
                    break;
                }
                ensure!(page.upto > after, "a page of changes without progress");
                after = page.upto;
            }
            ensure!(
                client.messages == now,
                "a client of {} of user {who} that knew it at {since} knows {:?}; there is {now:?}",
                status.name,
                client.messages
            );
        }
        if self.rng.bool() || !self.clients.contains_key(&key) {
            let client = Client {
                modseq: status.highest_modseq,
                messages: now,
            };
            self.clients.insert(key, client);
        }
        Ok(())
    }

    /// Ends a life: by a drain, or by a crash where it stands.
    fn end_life(&mut self) -> Verdict {
        let drains = self.knobs.drain_one_in > 0 && self.rng.u32(..self.knobs.drain_one_in) == 0;
        if drains && self.node.is_some() && !self.is_over() {
            self.drain()?;
        } else if self.rng.bool() {
            // What a process does after the machine stopped, nobody may believe.
            for _turn in 0..self.rng.u32(..40) {
                self.turn()?;
            }
        }
        self.crash();
        if self.hazards.repairs && self.hazard_rng.bool() {
            self.repair_after_crash()?;
        }
        Ok(())
    }

    /// A clean end.
    pub(super) fn drain(&mut self) -> Verdict {
        let count = self.node.as_ref().map_or(0, Node::count);
        for shard in 0..count {
            self.submit((shard, Request::Drain, Asked::Drain))?;
        }
        self.settle()?;
        if self.is_over() {
            return Ok(());
        }
        ensure!(
            self.oracle.open.is_empty(),
            "drained, and no answer to {:?}",
            self.oracle.open
        );
        let open = self.node.as_ref().map_or(0, Node::tickets_open);
        ensure!(open == 0, "drained with {open} tickets");
        self.disk_is_sound()
    }

    /// The machine or the process stops. Whatever is open stays unanswered.
    pub(super) fn crash(&mut self) {
        let kind = if self.rng.bool() {
            Crash::PowerCut
        } else {
            Crash::Kill
        };
        self.say(|_| format!("{kind:?}"));
        self.stats.crashes += 1;
        if let Some(node) = &self.node {
            self.stats.compactions += node.metric(|metrics| metrics.compactions);
            self.stats.checkpoints += node.metric(|metrics| metrics.checkpoints);
        }
        self.has_holes |= self.oracle.excuses.full || self.disk.faults() > 0;
        let disk = self.disk.crash(kind);
        self.node = None;
        self.disk = disk;
        self.stopped = false;
        self.wanted = None;
        for asked in std::mem::take(&mut self.oracle.open).into_values() {
            self.oracle.unanswered(&asked);
        }
        self.uploads.clear();
        self.finishes.clear();
        self.appending.clear();
        self.oracle.snapshots.clear();
        self.backup = None;
        self.stats.stored = self.oracle.stored;
        self.skew_ns = if self.knobs.clock_back {
            self.rng.i64(-3_600_000_000_000..3_600_000_000_000)
        } else {
            0
        };
    }

    /// What the checker says: no damage, and no file that nothing explains.
    fn disk_is_sound(&mut self) -> Verdict {
        if self.oracle.excuses.hurt || self.is_over() {
            return Ok(());
        }
        let report = check(&self.disk, &mut |_progress| {});
        let lags = |file: &str| {
            let folder = file.strip_suffix("/folders");
            folder.is_some_and(|dir| self.oracle.excuses.unread.contains(dir))
        };
        let bad = report.findings.iter().find(|finding| {
            finding.severity == Severity::Damage && !lags(&finding.corrupt.file)
                || matches!(
                    finding.corrupt.reason,
                    CorruptReason::Disagree("the index does not name this file")
                )
        });
        ensure!(
            bad.is_none(),
            "the checker finds: {}",
            bad.map(ToString::to_string).unwrap_or_default()
        );
        Ok(())
    }

    /// Everything without a fault: look, checkpoint, look, drain, open, look.
    fn last_life(&mut self) -> Verdict {
        for round in 0..2 {
            self.whole_round()?;
            self.remember();
            if round == 0 {
                self.drain()?;
            }
            self.crash();
        }
        self.look_back()?;
        if self.knobs.rots { self.rot() } else { Ok(()) }
    }

    /// Opens the store, looks at everybody, makes a checkpoint, looks again; all without a fault.
    pub(super) fn whole_round(&mut self) -> Verdict {
        self.oracle.excuses.hurt = !self.disk.wounds().is_empty();
        self.oracle.excuses.full = false;
        self.repair_disk();
        ensure!(self.open_plainly()?, "the store does not open at last");
        for who in 0..self.knobs.users {
            self.look_at(who)?;
        }
        let count = self.node.as_ref().map_or(0, Node::count);
        for shard in 0..count {
            self.submit((shard, Request::Checkpoint, Asked::Checkpoint))?;
        }
        self.settle()?;
        self.disk_is_sound()?;
        for who in 0..self.knobs.users {
            let doubts = &self.oracle.person(who).doubts;
            ensure!(doubts.is_empty(), "still in doubt: {doubts:?}");
            self.look_at(who)?;
        }
        Ok(())
    }

    pub(super) fn open_plainly(&mut self) -> Result<bool, String> {
        let opened = self.open_with([1; 16]);
        opened.map_err(|error| format!("the store does not open: {error}"))?;
        Ok(true)
    }
}
