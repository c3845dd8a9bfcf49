//! How a large message gets to its stage file: what to ask of the shard next. Values in, values out;
//! [`delivery`](crate::delivery) does the asking.
//!
//! A stage takes one request at a time; bytes that come meanwhile gather for the next write. Line ends that turn out to be mixed have the staged bytes rewritten before
//! anything else is taken (storage.md 7).

use std::collections::VecDeque;

use bytes::Bytes;
use ringpost_engine::limits::STAGE_WRITE_BYTES_MAX;
use ringpost_engine::prepare::Preparer;
use ringpost_engine::request::{Event, Refused, StageId};

use crate::letter::Answer;

/// A write is worth its overhead from here on.
const WRITE_BYTES: usize = 256 << 10;

/// Writes without an answer: the shard's rule.
const WRITES_MAX: usize = 1;

/// With more than this in memory the connection is not read.
const BEHIND_BYTES: usize = 2 << 20;

const _: () = assert!(WRITE_BYTES <= STAGE_WRITE_BYTES_MAX);
const _: () = assert!(BEHIND_BYTES >= 2 * WRITE_BYTES);

/// What to ask of the shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Want {
    /// `StageBegin`.
    Begin,
    /// `StageWrite`.
    Write(StageId, Bytes),
    /// `StageExpand`.
    Expand(StageId),
    /// `StageFinish`.
    Finish(StageId),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Stage {
    /// The message is small so far.
    #[default]
    Unused,
    /// It is not, and nothing was asked yet.
    Needed,
    Beginning,
    Open(StageId),
    Expanding(StageId),
    Finishing(StageId),
    Finished(StageId),
    Gone,
}

/// The way of one message to its stage file.
#[derive(Debug, Default)]
pub struct Spill {
    stage: Stage,
    queue: VecDeque<Bytes>,
    queued_bytes: usize,
    writes_open: usize,
    expand_wanted: bool,
    drop_wanted: bool,
    failure: Option<Refused>,
}

impl Spill {
    /// Whether the message fits memory.
    pub fn is_unused(&self) -> bool {
        self.stage == Stage::Unused
    }

    /// Whether a request is open.
    pub fn is_busy(&self) -> bool {
        self.writes_open > 0
            || matches!(
                self.stage,
                Stage::Beginning | Stage::Expanding(_) | Stage::Finishing(_)
            )
    }

    /// Whether too much waits in memory, with what the preparer holds.
    pub fn is_behind(&self, buffered_len: usize) -> bool {
        !self.is_unused() && self.queued_bytes + buffered_len > BEHIND_BYTES
    }

    /// Why it failed, if it did.
    pub fn failure(&self) -> Option<Refused> {
        self.failure.clone()
    }

    /// The preparer may not be finished while staged bytes are rewritten, or are about to be.
    pub fn allows_finish(&self) -> bool {
        !self.expand_wanted && !matches!(self.stage, Stage::Expanding(_))
    }

    /// The line ends turned out to be mixed.
    pub fn expand(&mut self) {
        self.expand_wanted = true;
    }

    /// Takes what is worth writing.
    pub fn take(&mut self, preparer: &mut Preparer, large_bytes: usize) {
        let buffered = preparer.buffered_len();
        match self.stage {
            Stage::Unused if buffered >= large_bytes => self.stage = Stage::Needed,
            Stage::Open(_) if self.allows_finish() && buffered >= WRITE_BYTES => {
                self.queue_up(preparer.take_stored());
            }
            _ => {}
        }
    }

    /// The rest of the stored form, at the end of the message.
    pub fn put(&mut self, rest: &Bytes, large_bytes: usize) {
        if self.stage == Stage::Unused {
            if rest.len() < large_bytes {
                return;
            }
            self.stage = Stage::Needed;
        }
        self.queue_up(rest.clone());
    }

    fn queue_up(&mut self, mut data: Bytes) {
        self.queued_bytes += data.len();
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(STAGE_WRITE_BYTES_MAX));
            self.queue.push_back(piece);
        }
    }

    /// The next request, if one can be made. `ended`: everything was put.
    pub fn next(&mut self, ended: bool) -> Option<Want> {
        if self.drop_wanted || self.failure.is_some() {
            return None;
        }
        match self.stage {
            Stage::Needed => {
                self.stage = Stage::Beginning;
                Some(Want::Begin)
            }
            Stage::Open(stage) => {
                if self.writes_open < WRITES_MAX
                    && let Some(data) = self.queue.pop_front()
                {
                    self.queued_bytes -= data.len();
                    self.writes_open += 1;
                    return Some(Want::Write(stage, data));
                }
                if self.writes_open > 0 || !self.queue.is_empty() {
                    return None;
                }
                if self.expand_wanted {
                    self.expand_wanted = false;
                    self.stage = Stage::Expanding(stage);
                    return Some(Want::Expand(stage));
                }
                ended.then(|| {
                    self.stage = Stage::Finishing(stage);
                    Want::Finish(stage)
                })
            }
            _ => None,
        }
    }

    /// A begin or write was answered, or any request refused.
    pub fn answered(&mut self, answer: Answer) {
        let refused = match answer {
            Answer::Event(Event::StageBegun { result, .. }) => match result {
                Ok(stage) => {
                    self.stage = Stage::Open(stage);
                    None
                }
                Err(refused) => {
                    self.stage = Stage::Gone;
                    Some(refused)
                }
            },
            Answer::Event(Event::StageWritten { result, .. }) => {
                self.writes_open = self.writes_open.saturating_sub(1);
                result.err()
            }
            Answer::Event(
                Event::StageExpanded {
                    result: Err(refused),
                    ..
                }
                | Event::Staged {
                    result: Err(refused),
                    ..
                },
            ) => {
                self.reopen();
                Some(refused)
            }
            Answer::Event(other) => unreachable!("not about a stage: {other:?}"),
            Answer::Refused(refused) => {
                match self.stage {
                    Stage::Beginning => self.stage = Stage::Gone,
                    Stage::Expanding(_) | Stage::Finishing(_) => self.reopen(),
                    _ => self.writes_open = self.writes_open.saturating_sub(1),
                }
                Some(refused)
            }
        };
        if self.failure.is_none() {
            self.failure = refused;
        }
    }

    fn reopen(&mut self) {
        if let Stage::Expanding(stage) | Stage::Finishing(stage) = self.stage {
            self.stage = Stage::Open(stage);
        }
    }

    /// The staged bytes are rewritten.
    pub fn expanded(&mut self) {
        self.reopen();
    }

    /// The stage file is durable.
    pub fn staged(&mut self) {
        if let Stage::Finishing(stage) = self.stage {
            self.stage = Stage::Finished(stage);
        }
    }

    /// The stage file is not needed any more; gives it once, when no request about it is open. Called
    /// again after each answer.
    pub fn drop_stage(&mut self) -> Option<StageId> {
        self.drop_wanted = true;
        self.queue.clear();
        self.queued_bytes = 0;
        if self.is_busy() {
            return None;
        }
        match std::mem::replace(&mut self.stage, Stage::Gone) {
            Stage::Open(stage) | Stage::Finished(stage) => Some(stage),
            _ => None,
        }
    }
}
