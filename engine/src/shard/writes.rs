//! What a checkpoint writes for one user (storage.md 5): segments, then the index, then the text copy
//! of its mailboxes. All places come from the records, so that writing them again is harmless.

use std::collections::BTreeMap;

use bytes::Bytes;
use ringpost_netproto::id::WallNs;

use crate::canary::{self, Canary};
use crate::format::folders::{Folder, Folders};
use crate::format::info::{InfoHeader, MSG_FIXED_BYTES, Mailbox, Run, Runs};
use crate::format::{Reserved, Version};
use crate::io::{Piece, RelPath, Step, Work, WorkSync};
use crate::pending::{Entry, PendingBody, What};
use crate::position::Lsn;
use crate::user::User;

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

/// The writes of one user.
pub(super) struct Steps<'a, G> {
    pub(super) log: &'a crate::log::Log<G>,
    pub(super) user: &'a User,
}

impl<G> Steps<'_, G> {
    /// All of them, in order.
    pub(super) fn all(&self) -> Vec<Step> {
        let dir = self.user.dir();
        let mut steps = Vec::new();
        let created = self.created();
        if created.is_some() {
            steps.push(Step::MakeDir(dir.clone()));
        }
        self.swaps(&dir, &mut steps);
        self.segments(&dir, &mut steps);
        for entry in &self.user.frozen {
            if let What::Large(mail) = &entry.what {
                let from = dir.segment_part(mail.segment);
                let to = dir.large(mail.segment, mail.mailbox, mail.uid);
                steps.push(Step::Rename { from, to });
            }
        }
        self.info(&dir, created, &mut steps);
        if let Some(data) = self.folders() {
            let path = dir.folders();
            // A new user has no older copy to keep until this one is durable.
            steps.push(if created.is_some() {
                Step::Write {
                    path,
                    offset: 0,
                    pieces: vec![Piece::Bytes(data)],
                }
            } else {
                Step::Replace { path, data }
            });
        }
        steps
    }

    /// The names of a new generation: before any write that would make a file of that name.
    fn swaps(&self, dir: &RelPath, steps: &mut Vec<Step>) {
        for entry in &self.user.frozen {
            if let What::Swap(swap) = &entry.what {
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

    /// The mailbox runs in this checkpoint.
    fn mailbox_runs(&self) -> impl Iterator<Item = Mailbox<'_>> {
        let seed = self.user.seed(self.user.generation());
        let runs = self
            .user
            .frozen
            .iter()
            .filter_map(|entry: &Entry| match &entry.what {
                What::Runs(runs) => Some((runs, entry.slot)),
                _ => None,
            });
        runs.flat_map(move |(bytes, slot)| Runs::new(bytes, seed, slot).reserved(Reserved::Unknown))
            .filter_map(|run| match run.run {
                Ok(Run::Mailbox(mailbox)) => Some(mailbox),
                _ => None,
            })
    }

    /// The header of a new user: made of what its records say alone, so that redo writes the same.
    fn header(&self, name: &Bytes, lsn: Lsn) -> Bytes {
        let header = InfoHeader {
            user: self.user.hash,
            ordinal: self.user.ordinal,
            generation: 1,
            created_at: self
                .mailbox_runs()
                .next()
                .map_or(WallNs::new(0), |run| run.time),
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

    /// The text copy of the mailboxes, if this checkpoint changes them.
    fn folders(&self) -> Option<Bytes> {
        self.mailbox_runs().next()?;
        let (name, mailboxes) = match (self.created(), self.user.live()) {
            (Some((name, _)), _) => {
                let folder = |run: Mailbox<'_>| Folder {
                    mailbox: run.mailbox,
                    uidvalidity: run.uidvalidity,
                    name: run.name.to_owned(),
                };
                (name.to_vec(), self.mailbox_runs().map(folder).collect())
            }
            (None, Some(live)) => {
                let folder = |tail: &crate::user::MailboxTail| Folder {
                    mailbox: tail.mailbox,
                    uidvalidity: tail.uidvalidity,
                    name: tail.name.to_string(),
                };
                let name = self.user.name.as_ref()?.to_vec();
                (name, live.tail.mailboxes.iter().map(folder).collect())
            }
            (None, None) => return None,
        };
        Some(Bytes::from(
            Folders {
                user: name,
                mailboxes,
            }
            .encode(),
        ))
    }
}
