//! The shard's own files: both copies of the superblock, headers of the log files that recovery would
//! need. What does not fit is looked at a second time; then it is named, and a checkpoint asked for,
//! which writes a superblock and lets the log files go.

use std::collections::VecDeque;
use std::sync::Arc;

use super::super::Shard;
use super::{Damage, Moved, PIECE_BYTES};
use crate::error::{Corrupt, CorruptReason};
use crate::format::log_file::{LOG_HEADER_BYTES, LogFileHeader};
use crate::format::superblock::{Pair, SUPERBLOCK_BYTES};
use crate::io::{AlignedBuf, Done, Failed, FileId, Io, Op, RelPath};
use crate::ops::unreachable_done;
use crate::request::Now;

/// How far the look at the shard's own files is.
pub(super) struct Own {
    /// `None`: not begun.
    left: Option<VecDeque<Item>>,
    reading: Option<Item>,
    found: Vec<Damage>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Look {
    First,
    Second,
}

#[derive(Clone, Debug)]
struct Item {
    what: What,
    look: Look,
}

#[derive(Clone, Debug)]
enum What {
    /// With its sequence when the read began.
    Super(u64),
    Header {
        number: u32,
        file: FileId,
        header: LogFileHeader,
    },
}

impl Own {
    pub(super) fn new() -> Self {
        Self {
            left: None,
            reading: None,
            found: Vec::new(),
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.reading.is_none() && self.left.as_ref().is_some_and(VecDeque::is_empty)
    }
}

impl<I: Io> Shard<I> {
    pub(super) fn step_own(&mut self, now: Now) -> Moved {
        let sequence = self.superblock.sequence;
        let headers = self.log.files().armed_headers();
        let buf = self
            .scrubber
            .buf
            .take()
            .unwrap_or_else(|| AlignedBuf::zeroed(PIECE_BYTES));
        let super_file = self.super_file;
        let Some(pass) = &mut self.scrubber.pass else {
            return Moved::No;
        };
        let left = pass.own.left.get_or_insert_with(|| {
            let headers = headers.map(|(number, file, header)| What::Header {
                number,
                file,
                header,
            });
            let look = Look::First;
            std::iter::once(What::Super(sequence))
                .chain(headers)
                .map(|what| Item { what, look })
                .collect()
        });
        let Some(item) = left.pop_front() else {
            return Moved::No;
        };
        let (file, len) = match &item.what {
            What::Super(_) => (super_file, 2 * SUPERBLOCK_BYTES),
            What::Header { file, .. } => (*file, LOG_HEADER_BYTES),
        };
        pass.own.reading = Some(item);
        self.pay_scrub(now, 1);
        self.scrub_op(Op::LogRead {
            file,
            offset: 0,
            buf,
            len,
        });
        Moved::Yes
    }

    /// One of them is read.
    pub(super) fn own_read(&mut self, result: Result<Done, Failed>) {
        let item = self.scrubber.pass.as_mut();
        let Some(item) = item.and_then(|pass| pass.own.reading.take()) else {
            return;
        };
        let verdict = match result {
            Ok(Done::Read { buf, count }) => {
                let bytes = buf.get(..count).unwrap_or_default();
                self.metrics.scrub_bytes += u64::try_from(count).unwrap_or(0);
                let verdict = self.own_verdict(&item.what, bytes);
                self.scrubber.buf = Some(buf);
                verdict
            }
            Ok(other) => unreachable_done(&other),
            Err(failed) => {
                self.scrubber.buf = failed.buf;
                let errno = failed.error.errno;
                let bad = Bad {
                    offset: failed.error.offset,
                    reason: CorruptReason::Unreadable { errno },
                };
                // Its handle was closed when it left the log.
                if self.is_recycled(&item.what) {
                    Ok(())
                } else {
                    Err(bad)
                }
            }
        };
        let log_id = self.identity.log_id;
        let sequence = self.superblock.sequence;
        let mut damaged = false;
        let Some(pass) = &mut self.scrubber.pass else {
            return;
        };
        if let Err(bad) = verdict {
            if item.look == Look::First {
                let what = match item.what {
                    What::Super(_) => What::Super(sequence),
                    header @ What::Header { .. } => header,
                };
                let look = Look::Second;
                let left = pass.own.left.get_or_insert_default();
                left.push_front(Item { what, look });
            } else {
                let path = match item.what {
                    What::Super(_) => RelPath::superblock(log_id),
                    What::Header { number, .. } => RelPath::log_file(log_id, number),
                };
                pass.own.found.push(Damage {
                    user: Arc::from(&[][..]),
                    message: None,
                    corrupt: Arc::new(Corrupt {
                        file: path.to_string(),
                        offset: bad.offset,
                        reason: bad.reason,
                    }),
                });
                damaged = true;
            }
        }
        if damaged {
            self.checkpoint.want();
        }
        self.end_own();
    }

    /// All of them are read: what is known is what was found.
    fn end_own(&mut self) {
        let Some(pass) = &mut self.scrubber.pass else {
            return;
        };
        if !pass.own.is_done() {
            return;
        }
        let found = std::mem::take(&mut pass.own.found);
        let old = std::mem::replace(&mut self.scrubber.known.own, found.clone());
        for damage in found {
            if !old.contains(&damage) {
                self.tell_damage(damage);
            }
        }
    }

    /// Whether a log file has another header by now, or left the log for a backup or the archive.
    fn is_recycled(&self, what: &What) -> bool {
        let What::Header { number, header, .. } = what else {
            return false;
        };
        let mut armed = self.log.files().armed_headers();
        !armed.any(|(other, _, now)| (other, now) == (*number, *header))
    }

    /// What is wrong with what was read. A file that was written meanwhile has a new life.
    fn own_verdict(&self, what: &What, bytes: &[u8]) -> Result<(), Bad> {
        match what {
            What::Super(sequence) => {
                if *sequence != self.superblock.sequence || self.checkpoint.is_writing_super() {
                    return Ok(());
                }
                let second = u64::try_from(SUPERBLOCK_BYTES).expect("4096");
                let bad = |copy: u64, reason| Bad {
                    offset: copy * second,
                    reason,
                };
                let pair = Pair::open(bytes, self.identity.store, self.identity.log_id)
                    .map_err(|(reason, _)| bad(0, reason))?;
                let other = u64::from(pair.current_copy == 0);
                if let Some(reason) = pair.other {
                    return Err(bad(other, reason));
                }
                if pair.current.sequence != self.superblock.sequence {
                    let reason = CorruptReason::Disagree("the superblock and the running store");
                    return Err(bad(1 - other, reason));
                }
                Ok(())
            }
            What::Header { header, .. } => {
                if self.is_recycled(what) {
                    return Ok(());
                }
                let bad = |reason| Bad { offset: 0, reason };
                let read = LogFileHeader::open(bytes, self.identity.store, self.identity.log_id)
                    .map_err(bad)?;
                if read == *header {
                    Ok(())
                } else {
                    Err(bad(CorruptReason::Disagree(
                        "the header and the running store",
                    )))
                }
            }
        }
    }
}

/// What is wrong, and where.
struct Bad {
    offset: u64,
    reason: CorruptReason,
}
