//! What a checkpoint writes for one user (storage.md 5): segments, names and ends of large files, then
//! the index, then the text copy of its mailboxes. All places come from the records, so that writing
//! them again is harmless.

use std::collections::BTreeMap;

use bytes::Bytes;
use ringpost_netproto::id::{MailboxId, Uid, WallNs};

use super::append::FIRST_MAILBOXES;
use crate::canary::{self, Canary};
use crate::format::folders::{Folder, Folders};
use crate::format::info::{ChangeKind, InfoHeader, MSG_FIXED_BYTES, MailboxOp, Run, Runs};
use crate::format::{Reserved, Version};
use crate::index::DeadFile;
use crate::io::{Piece, RelPath, Step, Work, WorkSync};
use crate::log::{Keep, Log};
use crate::pending::{Entry, PendingBody, What};
use crate::position::Lsn;
use crate::request::UidRange;
use crate::tail::{Existence, MailboxTail, Tail};
use crate::user::{Lag, User};

/// The writes into segments as a work that is never synced, if that bug is planted.
pub(super) fn planted(steps: Vec<Step>) -> (Vec<Step>, Option<Work>) {
    if !canary::on(Canary::IndexAheadOfData) {
        return (steps, None);
    }
    let of_segment = |step: &Step| match step {
        Step::Write { path, .. } => path.as_str().strip_suffix(".mbox").is_some(),
        _ => false,
    };
    let (segments, steps) = steps.into_iter().partition(of_segment);
    let sync = WorkSync::Later;
    (
        steps,
        Some(Work {
            steps: segments,
            sync,
        }),
    )
}

/// Bytes that a step writes.
pub(super) fn step_bytes(step: &Step) -> u64 {
    let Step::Write { pieces, .. } = step else {
        return 0;
    };
    pieces.iter().map(Piece::len).sum()
}

/// What a checkpoint does for one user.
pub(super) struct Todo {
    pub(super) steps: Vec<Step>,
    /// Dead files that a snapshot needs: to be removed when it is closed.
    pub(super) kept: Vec<DeadFile>,
}

/// The writes of one user.
pub(super) struct Steps<'a, G> {
    log: &'a Log<G>,
    user: &'a User,
    /// Whether files of dead messages stay.
    keep: Keep,
    /// Whether they go into the archive.
    retires: Keep,
    /// Messages that the frozen records themselves expunge, and mailboxes that they remove.
    gone: Gone,
}

/// What records make dead.
#[derive(Default)]
pub(super) struct Gone {
    ranges: Vec<(MailboxId, UidRange)>,
    mailboxes: Vec<MailboxId>,
}

impl Gone {
    /// What the unwritten records of a user make dead.
    pub(super) fn unwritten(user: &User) -> Self {
        let mut gone = Self::default();
        each_run(user, user.unwritten(), |run| gone.take(run));
        gone
    }

    fn take(&mut self, run: &Run<'_>) {
        match run {
            Run::Change(change) if change.kind == ChangeKind::Expunge => {
                let range = UidRange {
                    low: change.uid_low.value(),
                    high: change.uid_high.value(),
                };
                self.ranges.push((change.mailbox, range));
            }
            Run::Mailbox(run) if run.op == MailboxOp::Delete => self.mailboxes.push(run.mailbox),
            _ => {}
        }
    }

    pub(super) fn has(&self, mailbox: MailboxId, uid: Uid) -> bool {
        let in_range = |(of, range): &(MailboxId, UidRange)| *of == mailbox && range.contains(uid);
        self.mailboxes.contains(&mailbox) || self.ranges.iter().any(in_range)
    }
}

impl<'a, G> Steps<'a, G> {
    /// With [`Keep::Yes`] the files of dead messages stay: somebody copies.
    /// With `retires` those of large messages are left where they are: they go into the archive once
    /// this checkpoint has ended.
    pub(super) fn new(log: &'a Log<G>, user: &'a User, keep: Keep, retires: Keep) -> Self {
        let mut steps = Self {
            log,
            user,
            keep,
            retires,
            gone: Gone::default(),
        };
        let mut gone = Gone::default();
        steps.each_run(|run| gone.take(run));
        steps.gone = gone;
        steps
    }

    pub(super) fn all(&self) -> Todo {
        let dir = self.user.dir();
        let mut steps = Vec::new();
        let mut kept = Vec::new();
        let created = self.created();
        if created.is_some() {
            steps.push(Step::MakeDir(dir.clone()));
        }
        self.swaps(&dir, &mut steps);
        self.segments(&dir, &mut steps);
        self.large(&dir, &mut steps, &mut kept);
        self.info(&dir, created, &mut steps);
        steps.extend(self.folders(&dir));
        Todo { steps, kept }
    }

    fn is_pinned(&self, segment: u32) -> bool {
        self.keep == Keep::Yes || self.user.is_pinned(segment)
    }

    /// Names for large messages, and the end of those that are expunged: their records are durable,
    /// which is all the evidence an unlink needs. A message that came and went since the last
    /// checkpoint gets no name, unless a snapshot reads it: were the checkpoint done again after a crash,
    /// there would be nothing left to rename.
    fn large(&self, dir: &RelPath, steps: &mut Vec<Step>, kept: &mut Vec<DeadFile>) {
        for entry in &self.user.frozen {
            match &entry.what {
                What::Large(mail) => {
                    let from = dir.segment_part(mail.segment);
                    let to = dir.large(mail.segment, mail.mailbox, mail.uid);
                    let gone = self.gone.has(mail.mailbox, mail.uid);
                    let stays = self.is_pinned(mail.segment) || self.retires == Keep::Yes;
                    if !gone || self.user.is_pinned(mail.segment) {
                        steps.push(Step::Rename { from, to });
                    } else if !stays {
                        steps.push(Step::Unlink(from));
                        steps.push(Step::Unlink(to));
                    }
                    if gone && stays {
                        kept.push(DeadFile {
                            segment: mail.segment,
                            mailbox: mail.mailbox,
                            uid: mail.uid,
                        });
                    }
                }
                What::Dead(files) => {
                    for dead in files {
                        if self.is_pinned(dead.segment) || self.retires == Keep::Yes {
                            kept.push(*dead);
                        } else {
                            let path = dir.large(dead.segment, dead.mailbox, dead.uid);
                            steps.push(Step::Unlink(path));
                        }
                    }
                }
                _ => {}
            }
        }
    }

    /// The names of a new generation: before any write that would make a file of that name.
    fn swaps(&self, dir: &RelPath, steps: &mut Vec<Step>) {
        for entry in &self.user.frozen {
            if let What::Swap(swap) = &entry.what
                && !canary::on(Canary::SwapPassed)
            {
                let renames = swap.renames(dir);
                steps.extend(renames.map(|(from, to)| Step::Rename { from, to }));
            }
        }
    }

    /// Name and position of the create record, if it is in this checkpoint.
    fn created(&self) -> Option<(&Bytes, Lsn)> {
        self.user.frozen.iter().find_map(|entry| match &entry.what {
            What::Create { name, lsn } => Some((name, *lsn)),
            _ => None,
        })
    }

    /// One write per segment: messages of a mailbox lie one behind the other.
    fn segments(&self, dir: &RelPath, steps: &mut Vec<Step>) {
        let mut open: BTreeMap<u32, (u64, u64, Vec<Piece>)> = BTreeMap::new();
        for entry in &self.user.frozen {
            let What::Small(mail) = &entry.what else {
                continue;
            };
            let Some(body) = &mail.body else { continue };
            let prefix = mail.head.slice(MSG_FIXED_BYTES..);
            let len = prefix.len() + crate::format::index(body.stored_len) + 1;
            let len = u64::try_from(len).expect("a small message");
            let (at, end, pieces) =
                open.entry(mail.segment)
                    .or_insert((mail.offset, mail.offset, Vec::new()));
            if *end != mail.offset {
                let path = dir.segment(mail.segment);
                let pieces = std::mem::take(pieces);
                steps.push(Step::Write {
                    path,
                    offset: *at,
                    pieces,
                });
                *at = mail.offset;
            }
            *end = mail.offset + len;
            pieces.push(Piece::Bytes(prefix));
            pieces.push(
                body.memory()
                    .map_or_else(|| self.in_log(body), Piece::Bytes),
            );
            pieces.push(Piece::Bytes(Bytes::from_static(b"\n")));
        }
        for (segment, (offset, _, pieces)) in open {
            steps.push(Step::Write {
                path: dir.segment(segment),
                offset,
                pieces,
            });
        }
    }

    /// A body that left memory: the flusher reads it from the log.
    fn in_log(&self, body: &PendingBody) -> Piece {
        let (path, offset) = self.log.path_of(body.lsn);
        Piece::Log {
            path,
            offset,
            len: body.stored_len,
            crc: body.stored_crc,
        }
    }

    /// The info file's header, if the user is new, and its runs.
    fn info(&self, dir: &RelPath, created: Option<(&Bytes, Lsn)>, steps: &mut Vec<Step>) {
        let path = dir.info(self.user.generation());
        let mut at = 0;
        let mut end = None;
        let mut pieces = Vec::new();
        let mut put = |offset: u64, bytes: Bytes, steps: &mut Vec<Step>| {
            if end.is_some_and(|end| end != offset) {
                let pieces = std::mem::take(&mut pieces);
                steps.push(Step::Write {
                    path: path.clone(),
                    offset: at,
                    pieces,
                });
                end = None;
            }
            if end.is_none() {
                at = offset;
            }
            end = Some(offset + u64::try_from(bytes.len()).expect("at most 64 bits"));
            pieces.push(Piece::Bytes(bytes));
        };
        if let Some((name, lsn)) = created {
            put(0, self.header(name, lsn), steps);
        }
        for entry in &self.user.frozen {
            let mut offset = entry.info_offset();
            for bytes in entry.runs() {
                if !bytes.is_empty() {
                    let len = u64::try_from(bytes.len()).expect("at most 64 bits");
                    put(offset, bytes, steps);
                    offset += len;
                }
            }
        }
        if !pieces.is_empty() {
            steps.push(Step::Write {
                path: path.clone(),
                offset: at,
                pieces,
            });
        }
    }

    /// Calls with each run in this checkpoint that is no message.
    fn each_run(&self, with: impl FnMut(&Run<'_>)) {
        each_run(self.user, self.user.frozen.iter(), with);
    }

    /// The header of a new user: made of what its records say alone, so that redo writes the same.
    fn header(&self, name: &Bytes, lsn: Lsn) -> Bytes {
        let mut created_at = None;
        self.each_run(|run| {
            if let Run::Mailbox(run) = run {
                created_at.get_or_insert(run.time);
            }
        });
        let header = InfoHeader {
            user: self.user.hash,
            ordinal: self.user.ordinal,
            generation: 1,
            created_at: created_at.unwrap_or(WallNs::new(0)),
            base_lsn: lsn,
            base_modseq: 0,
            tombstones_from: 0,
            next_segment: 1,
            uidvalidity_max: 0,
            name: Box::from(&name[..]),
            version: Version::OURS,
        };
        Bytes::copy_from_slice(&header.seal())
    }

    /// The text copy of the mailboxes, if this checkpoint changes them. Of a user in memory it may
    /// be ahead of the checkpoint, never of what is durable.
    fn folders(&self, dir: &RelPath) -> Option<Step> {
        if self.user.frozen_folders == Lag::No {
            return None;
        }
        let mut changed = Tail::blank(Existence::Created, true);
        let mut runs_count = 0;
        self.each_run(|run| {
            if let Run::Mailbox(run) = run {
                changed.apply_mailbox(run);
                runs_count += 1;
            }
        });
        let path = dir.folders();
        let created = self.created();
        if let Some((name, _)) = created
            && runs_count == FIRST_MAILBOXES.len()
        {
            // There is no older copy to keep, and whoever does this again writes the same bytes, or
            // more of them aside: so it needs no sync of its own.
            let data = text(name, &changed);
            return Some(Step::Write {
                path,
                offset: 0,
                pieces: vec![Piece::Bytes(data)],
            });
        }
        let data = match (self.user.live(), created) {
            (Some(_), _) => folders_of(self.user)?,
            (None, Some((name, _))) => text(name, &changed),
            (None, None) => return None,
        };
        Some(Step::Replace { path, data })
    }
}

/// Calls with each run of some entries of a user that is no message.
fn each_run<'a>(
    user: &User,
    entries: impl Iterator<Item = &'a Entry>,
    mut with: impl FnMut(&Run<'_>),
) {
    let seed = user.seed(user.generation());
    for entry in entries {
        if let What::Runs(bytes) = &entry.what {
            let runs = Runs::new(bytes, seed, entry.slot).reserved(Reserved::Unknown);
            for run in runs.filter_map(|run| run.run.ok()) {
                with(&run);
            }
        }
    }
}

/// The bytes of `folders`.
fn text(name: &[u8], tail: &Tail) -> Bytes {
    let folder = |tail: &MailboxTail| Folder {
        mailbox: tail.mailbox,
        uidvalidity: tail.uidvalidity,
        name: tail.name.to_string(),
    };
    let mut mailboxes: Vec<_> = tail.visible().map(folder).collect();
    mailboxes.sort_by_key(|folder| folder.mailbox);
    let folders = Folders {
        user: name.to_vec(),
        mailboxes,
    };
    Bytes::from(folders.encode())
}

/// The text copy of a loaded user's mailboxes as readers see them.
pub(super) fn folders_of(user: &User) -> Option<Bytes> {
    Some(text(user.name.as_ref()?, &user.live()?.tail))
}
