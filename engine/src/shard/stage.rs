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
use crate::error::IoError;
use crate::format::store_line::{STORE_LINE_BYTES, StoreLine};
use crate::io::{Done, Failed, FileId, Io, Op, OpenMode, RelPath};
use crate::large::StagedBody;
use crate::limits::{STAGE_WRITE_BYTES_MAX, STAGES_MAX, STORED_BYTES_MAX};
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
    /// Forgotten by its caller while an op was in flight: it goes when that ends.
    dropped: bool,
}

/// What is awaited.
enum Step {
    Idle,
    Opening(Ticket),
    Writing(Ticket, u64),
    Copying(Ticket, RelPath),
    Reopening(Ticket, u32),
    Finishing(Ticket, Box<Finish>, Left),
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

impl<I: Io> Shard<I> {
    pub(super) fn stage_begin(
        &mut self,
        ticket: Ticket,
        size_hint: Option<u64>,
        sender: &Bytes,
        internal_date: WallNs,
    ) -> Result<(), Refused> {
        self.accepts_mail()?;
        if size_hint.is_some_and(|bytes| bytes > self.config.message_bytes_max) {
            return Err(Refused::TooLarge);
        }
        if self.disk_is_full() {
            return Err(Refused::DiskFull);
        }
        if self.stages.open.len() >= STAGES_MAX {
            return Err(Refused::Busy(BusyReason::Stages));
        }
        let stage = StageId(self.stages.named);
        self.stages.named += 1;
        let path = RelPath::stage(self.identity.log_id, stage.0);
        let from_len = mbox::from_line(sender, internal_date).len();
        let prefix_len = from_len + STORE_LINE_BYTES;
        self.ops.start(
            Op::Open {
                path: path.clone(),
                mode: OpenMode::Create,
            },
            Purpose::Stage(stage),
        );
        self.stages.open.insert(
            stage,
            Stage {
                path,
                file: None,
                sender: sender.clone(),
                internal_date,
                prefix_len: u64::try_from(prefix_len).expect("limits bound it"),
                staged: 0,
                written_back: 0,
                step: Step::Opening(ticket),
                dropped: false,
            },
        );
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
        stage.step = Step::Writing(ticket, len);
        let offset = stage.prefix_len + stage.staged;
        self.ops
            .start(Op::Write { file, offset, data }, Purpose::Stage(id));
        Ok(())
    }

    pub(super) fn stage_expand(&mut self, ticket: Ticket, id: StageId) -> Result<(), Refused> {
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
        let (stage, file) = self.idle_stage(id)?;
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
        let end = stage.prefix_len + stage.staged;
        stage.step = Step::Finishing(ticket, Box::new(Finish { summary, cache }), Left::Writes(2));
        let newline = Bytes::from_static(b"\n");
        let data = Bytes::from(prefix);
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
                    self.staged(id, ticket, *finish);
                } else {
                    stage.step = Step::Finishing(ticket, finish, Left::Sync);
                    let file = stage.file.expect("it was just written");
                    self.ops.start(Op::Sync { file }, Purpose::Stage(id));
                }
            }
            (Step::Finishing(ticket, finish, Left::Sync), Done::Nothing) => {
                self.metrics.flushes += 1;
                self.staged(id, ticket, *finish);
            }
            (_, other) => unreachable_done(&other),
        }
        Ok(())
    }

    fn staged(&mut self, id: StageId, ticket: Ticket, finish: Finish) {
        let Some(stage) = self.stages.open.get_mut(&id) else {
            return;
        };
        stage.step = Step::Done;
        if let Some(file) = stage.file.take() {
            self.ops.start(Op::Close { file }, Purpose::Tidy);
        }
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
            Step::Finishing(ticket, _, _) => Some(Event::Staged {
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
