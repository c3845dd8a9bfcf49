//! Stage files: large messages being received (storage.md 7). The bytes go to a file of their own
//! as they come, through the page cache; the store line is written last, then one sync makes the
//! file fit to be linked into mailboxes. Nothing names a stage file before that, so whatever a crash
//! leaves behind is removed at the next start.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use ringpost_netproto::id::{Guid, MailboxId, WallNs};

use super::Shard;
use super::append::line_flags;
use crate::canary::{self, Canary};
use crate::error::{CorruptReason, IoError};
use crate::format::crc;
use crate::format::info::Msg;
use crate::format::store_line::{STORE_LINE_BYTES, StoreLine};
use crate::io::{Done, Failed, FileId, Io, Op, OpenMode, RelPath};
use crate::large::StagedBody;
use crate::limits::{PREFIX_BYTES_MAX, STAGE_WRITE_BYTES_MAX, STAGES_MAX, STORED_BYTES_MAX};
use crate::mbox;
use crate::ops::{Purpose, unreachable_done};
use crate::prepare::Summary;
use crate::request::{BusyReason, Event, Refused, StageId, Ticket};

/// Write-back is started for each so many bytes, so that the sync at the end finds little to do.
const WRITEBACK_BYTES: u64 = 1 << 20;

/// All stage files of a shard.
#[derive(Default)]
pub(super) struct Stages {
    open: BTreeMap<StageId, Stage>,
    named: u64,
}

/// A message being received.
struct Stage {
    path: RelPath,
    file: Option<FileId>,
    sender: Bytes,
    internal_date: WallNs,
    prefix_len: u64,
    /// Stored bytes written so far.
    staged: u64,
    written_back: u64,
    step: Step,
    /// What another node says of it, if it is a copy of that node's file.
    taken: Option<Taken>,
    /// Forgotten by its caller while an op was in flight: it goes when that ends.
    dropped: bool,
}

/// A large message of another node on its way here: its prefix is taken over as it is.
struct Taken {
    prefix: Bytes,
    /// The end of the prefix.
    line: StoreLine,
    /// Of the stored bytes so far.
    crc: u32,
}

/// What is awaited.
enum Step {
    Idle,
    Opening(Ticket),
    Writing(Ticket, u64),
    Copying(Ticket, RelPath),
    Reopening(Ticket, u32),
    /// With what it will be handed out, unless it is a copy of another node's file.
    Finishing(Ticket, Option<Box<Finish>>, Left),
    /// Given out or refused: only the name is left.
    Done,
}

/// The last writes of a stage file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Left {
    /// Prefix and final newline: so many writes are awaited.
    Writes(u8),
    Sync,
}

struct Finish {
    summary: Summary,
    cache: Bytes,
}

impl Stages {
    /// Whether a path is that of a finished copy of the file that holds a message.
    pub(super) fn has_taken(&self, path: &RelPath, msg: &Msg) -> bool {
        let mut done = self
            .open
            .values()
            .filter(|stage| matches!(stage.step, Step::Done));
        let found = done.find(|stage| stage.path == *path && !stage.dropped);
        found
            .and_then(|stage| stage.taken.as_ref())
            .is_some_and(|taken| {
                taken.line.stored_len == msg.stored_len
                    && taken.line.stored_crc == msg.stored_crc
                    && taken.prefix.len() == usize::from(msg.skip)
            })
    }
}

impl<I: Io> Shard<I> {
    pub(super) fn stage_begin(
        &mut self,
        ticket: Ticket,
        size_hint: Option<u64>,
        sender: &Bytes,
        internal_date: WallNs,
    ) -> Result<(), Refused> {
        if size_hint.is_some_and(|bytes| bytes > self.config.message_bytes_max) {
            return Err(Refused::TooLarge);
        }
        let prefix_len = mbox::from_line(sender, internal_date).len() + STORE_LINE_BYTES;
        self.stage_open(ticket, prefix_len, |stage| {
            stage.sender = sender.clone();
            stage.internal_date = internal_date;
        })
    }

    /// As [`Self::stage_begin`], for the copy of another node's file.
    pub(super) fn stage_take(&mut self, ticket: Ticket, prefix: Bytes) -> Result<(), Refused> {
        let line_at = prefix.len().saturating_sub(STORE_LINE_BYTES);
        let line = StoreLine::decode(prefix.get(line_at..).unwrap_or_default());
        let line = line.map_err(Refused::BadRecords)?;
        if line_at == 0 || prefix.len() > PREFIX_BYTES_MAX {
            return Err(Refused::BadRecords(CorruptReason::Length));
        }
        if u64::from(line.stored_len) > STORED_BYTES_MAX {
            return Err(Refused::TooLarge);
        }
        let crc = 0;
        self.stage_open(ticket, prefix.len(), |stage| {
            stage.taken = Some(Taken { prefix, line, crc });
        })
    }

    /// Begins a stage file whose prefix has so many bytes; `fill` says the rest.
    fn stage_open(
        &mut self,
        ticket: Ticket,
        prefix_len: usize,
        fill: impl FnOnce(&mut Stage),
    ) -> Result<(), Refused> {
        self.accepts_mail()?;
        if self.disk_is_full() {
            return Err(Refused::DiskFull);
        }
        if self.stages.open.len() >= STAGES_MAX {
            return Err(Refused::Busy(BusyReason::Stages));
        }
        let stage = StageId(self.stages.named);
        self.stages.named += 1;
        let path = RelPath::stage(self.identity.log_id, stage.0);
        self.ops.start(
            Op::Open {
                path: path.clone(),
                mode: OpenMode::Create,
            },
            Purpose::Stage(stage),
        );
        let mut found = Stage {
            path,
            file: None,
            sender: Bytes::new(),
            internal_date: WallNs::new(0),
            prefix_len: u64::try_from(prefix_len).expect("limits bound it"),
            staged: 0,
            written_back: 0,
            step: Step::Opening(ticket),
            taken: None,
            dropped: false,
        };
        fill(&mut found);
        self.stages.open.insert(stage, found);
        Ok(())
    }

    /// The stage file, if it is open and idle; else the caller broke the order of calls.
    fn idle_stage(&mut self, stage: StageId) -> Result<(&mut Stage, FileId), Refused> {
        let stage = self.stages.open.get_mut(&stage).ok_or(Refused::Stopped)?;
        assert!(
            matches!(stage.step, Step::Idle),
            "a stage file takes one request at a time"
        );
        let file = stage.file.expect("an idle stage file is open");
        Ok((stage, file))
    }

    pub(super) fn stage_write(
        &mut self,
        ticket: Ticket,
        id: StageId,
        data: Bytes,
    ) -> Result<(), Refused> {
        assert!(
            data.len() <= STAGE_WRITE_BYTES_MAX,
            "a stage write of {} bytes",
            data.len()
        );
        if self.disk_is_full() {
            return Err(Refused::DiskFull);
        }
        let (stage, file) = self.idle_stage(id)?;
        let len = u64::try_from(data.len()).expect("at most 1 MiB");
        if stage.staged + len > STORED_BYTES_MAX {
            return Err(Refused::TooLarge);
        }
        if let Some(taken) = &mut stage.taken {
            taken.crc = crc::extend(taken.crc, &data);
        }
        stage.step = Step::Writing(ticket, len);
        let offset = stage.prefix_len + stage.staged;
        self.ops
            .start(Op::Write { file, offset, data }, Purpose::Stage(id));
        Ok(())
    }

    pub(super) fn stage_expand(&mut self, ticket: Ticket, id: StageId) -> Result<(), Refused> {
        self.made_here(id)?;
        let renamed = self.stages.named;
        self.stages.named += 1;
        let to = RelPath::stage(self.identity.log_id, renamed);
        let (stage, file) = self.idle_stage(id)?;
        let (from, skip) = (stage.path.clone(), stage.prefix_len);
        stage.step = Step::Copying(ticket, to.clone());
        self.ops.start(Op::Close { file }, Purpose::Tidy);
        self.ops
            .start(Op::CopyExpanded { from, to, skip }, Purpose::Stage(id));
        Ok(())
    }

    pub(super) fn stage_finish(
        &mut self,
        ticket: Ticket,
        id: StageId,
        summary: Summary,
        cache: Bytes,
        guid: Guid,
    ) -> Result<(), Refused> {
        self.made_here(id)?;
        let (stage, _) = self.idle_stage(id)?;
        assert_eq!(
            stage.staged, summary.stored_len,
            "the stage file holds the stored form"
        );
        let line = StoreLine {
            mailbox: MailboxId::new(0),
            uidvalidity: 0,
            uid: 0,
            guid,
            internal_date: stage.internal_date,
            stored_len: u32::try_from(summary.stored_len).expect("bounded while it was written"),
            stored_crc: summary.stored_crc,
            format_flags: line_flags(summary.format_flags),
        };
        let prefix = mbox::prefix(&stage.sender, stage.internal_date, &line);
        let finish = Some(Box::new(Finish { summary, cache }));
        self.write_ends(ticket, id, Bytes::from(prefix), finish)
    }

    /// As [`Self::stage_finish`], of the copy of another node's file: it has to be what its store line
    /// says.
    pub(super) fn stage_seal(&mut self, ticket: Ticket, id: StageId) -> Result<(), Refused> {
        let (stage, _) = self.idle_stage(id)?;
        let Some(taken) = &stage.taken else {
            let reason = CorruptReason::Value("a stage file that was begun here");
            return Err(Refused::BadRecords(reason));
        };
        if stage.staged != u64::from(taken.line.stored_len) {
            return Err(Refused::BadRecords(CorruptReason::Length));
        }
        if taken.crc != taken.line.stored_crc {
            return Err(Refused::BadRecords(CorruptReason::Checksum));
        }
        let prefix = taken.prefix.clone();
        self.write_ends(ticket, id, prefix, None)
    }

    /// Refuses the copy of another node's file, whose prefix stands already.
    fn made_here(&self, id: StageId) -> Result<(), Refused> {
        match self.stages.open.get(&id) {
            Some(stage) if stage.taken.is_some() => {
                let reason = CorruptReason::Value("a stage file that another node began");
                Err(Refused::BadRecords(reason))
            }
            _ => Ok(()),
        }
    }

    /// The last writes: the prefix, and the newline that ends the message.
    fn write_ends(
        &mut self,
        ticket: Ticket,
        id: StageId,
        data: Bytes,
        finish: Option<Box<Finish>>,
    ) -> Result<(), Refused> {
        let (stage, file) = self.idle_stage(id)?;
        let end = stage.prefix_len + stage.staged;
        stage.step = Step::Finishing(ticket, finish, Left::Writes(2));
        let newline = Bytes::from_static(b"\n");
        self.ops.start(
            Op::Write {
                file,
                offset: end,
                data: newline,
            },
            Purpose::Stage(id),
        );
        self.ops.start(
            Op::Write {
                file,
                offset: 0,
                data,
            },
            Purpose::Stage(id),
        );
        Ok(())
    }

    /// Forgets a stage file; links that were made of it stay.
    pub(super) fn stage_drop(&mut self, id: StageId) {
        let Some(stage) = self.stages.open.get_mut(&id) else {
            return;
        };
        if !matches!(stage.step, Step::Idle | Step::Done) {
            // Its op owns the file until it ends.
            stage.dropped = true;
            return;
        }
        if let Some(stage) = self.stages.open.remove(&id) {
            if let Some(file) = stage.file {
                self.ops.start(Op::Close { file }, Purpose::Tidy);
            }
            self.ops
                .start(Op::Unlink { path: stage.path }, Purpose::Tidy);
        }
    }

    /// An op of a stage file ended. No space refuses the message; any other error is fatal.
    pub(super) fn stage_step(
        &mut self,
        id: StageId,
        result: Result<Done, Failed>,
    ) -> Result<(), IoError> {
        self.stage_ended(id, result)?;
        if self.stages.open.get(&id).is_some_and(|stage| stage.dropped) {
            self.stage_drop(id);
        }
        Ok(())
    }

    #[expect(
        clippy::too_many_lines,
        reason = "one arm a step, in the order of a message's life"
    )]
    fn stage_ended(&mut self, id: StageId, result: Result<Done, Failed>) -> Result<(), IoError> {
        let Some(stage) = self.stages.open.get_mut(&id) else {
            return Ok(());
        };
        let step = std::mem::replace(&mut stage.step, Step::Idle);
        let done = match result {
            Ok(done) => done,
            Err(failed) if failed.error.is_no_space() => {
                self.space.refused = true;
                self.refuse_stage(id, &step, &Refused::DiskFull);
                return Ok(());
            }
            Err(failed) => {
                stage.step = step;
                return Err(failed.error);
            }
        };
        match (step, done) {
            (Step::Opening(ticket), Done::Opened { file, .. }) => {
                stage.file = Some(file);
                self.answer(Event::StageBegun {
                    ticket,
                    result: Ok(id),
                });
            }
            (Step::Writing(ticket, len), Done::Nothing) => {
                stage.staged += len;
                let (from, to) = (stage.written_back, stage.staged);
                if to - from >= WRITEBACK_BYTES {
                    stage.written_back = to;
                    let file = stage.file.expect("it was just written");
                    let offset = stage.prefix_len + from;
                    let op = Op::StartWriteback {
                        file,
                        offset,
                        len: to - from,
                    };
                    self.ops.start(op, Purpose::Tidy);
                }
                self.answer(Event::StageWritten {
                    ticket,
                    result: Ok(()),
                });
            }
            (Step::Copying(ticket, to), Done::Copied { crc, bytes }) => {
                let old = std::mem::replace(&mut stage.path, to.clone());
                stage.staged = bytes.saturating_sub(stage.prefix_len);
                stage.written_back = 0;
                stage.step = Step::Reopening(ticket, crc);
                self.ops.start(Op::Unlink { path: old }, Purpose::Tidy);
                let op = Op::Open {
                    path: to,
                    mode: OpenMode::Edit,
                };
                self.ops.start(op, Purpose::Stage(id));
            }
            (Step::Reopening(ticket, crc), Done::Opened { file, .. }) => {
                stage.file = Some(file);
                let staged = stage.staged;
                self.answer(Event::StageExpanded {
                    ticket,
                    result: Ok((crc, staged)),
                });
            }
            (Step::Finishing(ticket, finish, Left::Writes(left)), Done::Nothing) => {
                if left > 1 {
                    stage.step = Step::Finishing(ticket, finish, Left::Writes(left - 1));
                } else if canary::on(Canary::LoggedBeforeSync) {
                    self.staged(id, ticket, finish);
                } else {
                    stage.step = Step::Finishing(ticket, finish, Left::Sync);
                    let file = stage.file.expect("it was just written");
                    self.ops.start(Op::Sync { file }, Purpose::Stage(id));
                }
            }
            (Step::Finishing(ticket, finish, Left::Sync), Done::Nothing) => {
                self.metrics.flushes += 1;
                self.staged(id, ticket, finish);
            }
            (_, other) => unreachable_done(&other),
        }
        Ok(())
    }

    fn staged(&mut self, id: StageId, ticket: Ticket, finish: Option<Box<Finish>>) {
        let Some(stage) = self.stages.open.get_mut(&id) else {
            return;
        };
        stage.step = Step::Done;
        if let Some(file) = stage.file.take() {
            self.ops.start(Op::Close { file }, Purpose::Tidy);
        }
        let Some(finish) = finish else {
            let result = Ok(stage.path.clone());
            self.answer(Event::StageSealed { ticket, result });
            return;
        };
        let body = StagedBody {
            stage: id,
            path: stage.path.clone(),
            summary: finish.summary,
            cache: finish.cache,
            prefix_len: u16::try_from(stage.prefix_len).expect("limits bound it"),
            internal_date: stage.internal_date,
        };
        self.answer(Event::Staged {
            ticket,
            result: Ok(Arc::new(body)),
        });
    }

    fn refuse_stage(&mut self, id: StageId, step: &Step, why: &Refused) {
        let why = why.clone();
        let event = match step {
            Step::Opening(ticket) => Some(Event::StageBegun {
                ticket: *ticket,
                result: Err(why),
            }),
            Step::Writing(ticket, _) => Some(Event::StageWritten {
                ticket: *ticket,
                result: Err(why),
            }),
            Step::Copying(ticket, _) | Step::Reopening(ticket, _) => Some(Event::StageExpanded {
                ticket: *ticket,
                result: Err(why),
            }),
            Step::Finishing(ticket, Some(_), _) => Some(Event::Staged {
                ticket: *ticket,
                result: Err(why),
            }),
            Step::Finishing(ticket, None, _) => Some(Event::StageSealed {
                ticket: *ticket,
                result: Err(why),
            }),
            Step::Idle | Step::Done => None,
        };
        if let Some(event) = event {
            self.answer(event);
        }
        if let Some(stage) = self.stages.open.get_mut(&id) {
            stage.step = Step::Done;
        }
        self.stage_drop(id);
    }

    /// After a fatal error.
    pub(super) fn refuse_stages(&mut self) {
        let open: Vec<StageId> = self.stages.open.keys().copied().collect();
        for id in open {
            let Some(stage) = self.stages.open.get_mut(&id) else {
                continue;
            };
            let step = std::mem::replace(&mut stage.step, Step::Done);
            self.refuse_stage(id, &step, &Refused::Stopped);
        }
    }
}
