//! Bytes of messages, for callers and for copies (storage.md 8.2).
//!
//! A pending body comes from memory or from the log; others from their segment by one read. What is
//! read whole is checked against its CRC and its store line before it is given out; bytes that fail
//! are never served.

use std::sync::Arc;

use bytes::Bytes;
use ringpost_netproto::id::{MailboxId, Uid};

use super::Shard;
use super::publish::message_of;
use super::read::{Read, Sink, Wanted, bad_index, list_entry};
use crate::error::{Corrupt, CorruptReason, IoError};
use crate::format::crc;
use crate::format::info::{MSG_FIXED_BYTES, Msg, OWN_FILE};
use crate::format::store_line::{STORE_LINE_BYTES, StoreLine};
use crate::index::IndexEntry;
use crate::io::{AlignedBuf, Done, Failed, FileId, Io, Op, OpenMode, RelPath};
use crate::limits::{BLOCK_BYTES, FETCH_BYTES_MAX};
use crate::mbox;
use crate::ops::{Purpose, unreachable_done};
use crate::pending::What;
use crate::request::{Event, Fetched, Notice, Refused};
use crate::user::Hold;

/// A message, or a piece of it, being read.
#[derive(Clone, Debug)]
pub(super) struct Fetch {
    mailbox: MailboxId,
    uid: Uid,
    /// Of that snapshot, else as it is now.
    snapshot: Option<u64>,
    stored_offset: u64,
    bytes_max: u32,
    step: Step,
    /// Times it began again because the bytes moved to another file meanwhile.
    tries: u32,
}

impl Fetch {
    /// At most `bytes_max` bytes of the stored form from an offset on.
    pub(super) fn new(
        (mailbox, uid): (MailboxId, Uid),
        snapshot: Option<u64>,
        stored_offset: u64,
        bytes_max: u32,
    ) -> Self {
        Self {
            mailbox,
            uid,
            snapshot,
            stored_offset,
            bytes_max: bytes_max.clamp(1, FETCH_BYTES_MAX),
            step: Step::Find,
            tries: 0,
        }
    }
}

/// Where a fetch is.
#[derive(Clone, Debug)]
enum Step {
    Find,
    Log {
        msg: Msg,
        lead: usize,
        prefix: Bytes,
    },
    Open {
        msg: Msg,
        path: RelPath,
        other: Option<RelPath>,
    },
    Bytes {
        msg: Msg,
        path: RelPath,
        file: FileId,
        from: u64,
    },
}

/// What was read of a message.
pub(super) struct Got {
    pub(super) msg: Msg,
    /// Stored bytes.
    pub(super) stored: Bytes,
    /// `From_` line and store line, where they were at hand.
    pub(super) prefix: Bytes,
}

impl<I: Io> Shard<I> {
    /// Looks where a message is and begins to read it.
    pub(super) fn find(&mut self, read: usize, user_index: usize, fetch: &Fetch) {
        let user = self.users.get(user_index);
        let found = if let Some(snapshot) = fetch.snapshot {
            self.snapshot_entry(snapshot, fetch.uid)
        } else {
            let index = user.live().and_then(|live| live.index.as_ref());
            let found = index.and_then(|index| index.find(fetch.mailbox, fetch.uid));
            found.ok_or(Refused::NoSuchMessage)
        };
        let msg = match found.map(IndexEntry::msg) {
            Ok(Ok(msg)) => msg,
            Ok(Err(reason)) => {
                let corrupt = bad_index(user, reason);
                self.damaged(read, corrupt);
                return;
            }
            Err(refused) => {
                self.fetched(read, Err(refused));
                return;
            }
        };
        let frozen = if user.frozen_written {
            &[][..]
        } else {
            &user.frozen
        };
        let unwritten = user
            .pending
            .iter()
            .rev()
            .chain(frozen.iter().rev())
            .find(|entry| {
                message_of(entry).is_some_and(|(mailbox, uid, _, _)| {
                    (mailbox, uid) == (fetch.mailbox, fetch.uid)
                })
            });
        let dir = user.dir();
        match unwritten.map(|entry| &entry.what) {
            Some(What::Small(mail)) if mail.body.is_some() => {
                let body = mail.body.clone().expect("just asked");
                let prefix = mail.head.slice(MSG_FIXED_BYTES..);
                let Some(stored) = body.memory() else {
                    self.read_log(read, (msg, prefix), &body);
                    return;
                };
                let got = Got {
                    msg,
                    stored: piece_of(&stored, fetch),
                    prefix,
                };
                self.fetched(read, Ok(got));
            }
            Some(What::Large(mail)) => {
                let path = dir.segment_part(mail.segment);
                let other = Some(dir.large(msg.segment, msg.mailbox, msg.uid));
                self.open_file(read, msg, path, other);
            }
            _ if msg.format_flags & OWN_FILE != 0 => {
                let path = dir.large(msg.segment, msg.mailbox, msg.uid);
                self.open_file(read, msg, path, None);
            }
            // A compaction is giving its files their names.
            _ if user.hold == Hold::Naming => {
                let path = dir.segment_part(msg.segment);
                self.open_file(read, msg, path, Some(dir.segment(msg.segment)));
            }
            _ => self.open_file(read, msg, dir.segment(msg.segment), None),
        }
    }

    fn set_step(&mut self, read: usize, to: Step) {
        if let Some(Read {
            what: Wanted::Fetch(fetch),
            ..
        }) = self.reads.get_mut(read)
        {
            fetch.step = to;
        }
    }

    /// Reads a body from the log, past the page cache, on whole blocks.
    fn read_log(
        &mut self,
        read: usize,
        (msg, prefix): (Msg, Bytes),
        body: &crate::pending::PendingBody,
    ) {
        let (file, offset) = self.log.files().place(body.lsn);
        let start = offset / BLOCK_BYTES * BLOCK_BYTES;
        let end = (offset + u64::from(body.stored_len)).next_multiple_of(BLOCK_BYTES);
        let len = usize::try_from(end - start).expect("a body in the log is small");
        let lead = usize::try_from(offset - start).expect("below 4096");
        self.metrics.bodies_reread += 1;
        self.set_step(read, Step::Log { msg, lead, prefix });
        let buf = AlignedBuf::zeroed(len);
        self.ops.start(
            Op::LogRead {
                file,
                offset: start,
                buf,
                len,
            },
            Purpose::Fetch(read),
        );
    }

    fn open_file(&mut self, read: usize, msg: Msg, path: RelPath, other: Option<RelPath>) {
        let user = self.reads.get(read).map(|open| self.users.get(open.user));
        let known = user.and_then(|user| {
            let message = (msg.mailbox, msg.uid);
            self.scrubber.quarantined(user, message, &path)
        });
        if let Some(corrupt) = known {
            self.fetched(read, Err(Refused::Damaged(corrupt)));
            return;
        }
        let op = Op::Open {
            path: path.clone(),
            mode: OpenMode::Read,
        };
        self.set_step(read, Step::Open { msg, path, other });
        self.ops.start(op, Purpose::Fetch(read));
    }

    /// An op of a fetch ended: the next step, or the answer.
    #[expect(
        clippy::too_many_lines,
        reason = "one arm a step, in the order of a fetch's life"
    )]
    pub(super) fn fetch_step(&mut self, read: usize, result: Result<Done, Failed>) {
        let Some(Read {
            what: Wanted::Fetch(fetch),
            user,
            ..
        }) = self.reads.get(read)
        else {
            if let Ok(Done::Opened { file, .. }) = result {
                self.ops.start(Op::Close { file }, Purpose::Tidy);
            }
            return;
        };
        let (fetch, user) = (fetch.clone(), *user);
        match (fetch.step.clone(), result) {
            (Step::Log { msg, lead, prefix }, Ok(Done::Read { buf, count })) => {
                let len = crate::format::index(msg.stored_len);
                let bytes = buf.get(..count).and_then(|read| read.get(lead..lead + len));
                match bytes {
                    Some(stored) if crc::of(stored) == msg.stored_crc => {
                        let got = Got {
                            msg,
                            stored: piece_of(&Bytes::copy_from_slice(stored), &fetch),
                            prefix,
                        };
                        self.fetched(read, Ok(got));
                    }
                    _ => {
                        // The bytes in the log were replaced meanwhile: they are in a segment.
                        let file = self.users.get(user).dir().segment(msg.segment).to_string();
                        let corrupt = Corrupt {
                            file,
                            offset: msg.offset,
                            reason: CorruptReason::Checksum,
                        };
                        self.again(read, user, &fetch, corrupt);
                    }
                }
            }
            (Step::Open { msg, path, .. }, Ok(Done::Opened { file, .. })) => {
                let whole = is_whole(&fetch, &msg);
                let skip = u64::from(msg.skip);
                let (lead, stored_from) = if whole {
                    (skip, 0)
                } else {
                    (0, fetch.stored_offset)
                };
                let from = msg.offset + skip + stored_from - lead;
                let left = u64::from(msg.stored_len).saturating_sub(stored_from);
                let len = lead + left.min(u64::from(fetch.bytes_max));
                let len = usize::try_from(len).expect("at most 1 MiB and a prefix");
                self.set_step(
                    read,
                    Step::Bytes {
                        msg,
                        path,
                        file,
                        from,
                    },
                );
                self.ops.start(
                    Op::Read {
                        file,
                        offset: from,
                        len,
                    },
                    Purpose::Fetch(read),
                );
            }
            (
                Step::Open {
                    msg,
                    other: Some(other),
                    ..
                },
                Err(failed),
            ) if failed.error.is_not_found() => {
                self.open_file(read, msg, other, None);
            }
            // Compacted or expunged since its place was looked up.
            (Step::Open { .. }, Err(failed)) if failed.error.is_not_found() => {
                self.again(read, user, &fetch, failed.error.corrupt());
            }
            (
                Step::Bytes {
                    msg,
                    path,
                    file,
                    from,
                },
                Ok(Done::Bytes(bytes)),
            ) => {
                self.ops.start(Op::Close { file }, Purpose::Tidy);
                match self.check_bytes(&fetch, &msg, &bytes) {
                    Ok((prefix, stored)) => {
                        let got = Got {
                            msg,
                            stored,
                            prefix,
                        };
                        self.fetched(read, Ok(got));
                    }
                    Err(reason) => {
                        let file = path.to_string();
                        self.damaged(
                            read,
                            Corrupt {
                                file,
                                offset: from,
                                reason,
                            },
                        );
                    }
                }
            }
            (step, Err(failed)) => {
                if let Step::Bytes { file, .. } = step {
                    self.ops.start(Op::Close { file }, Purpose::Tidy);
                }
                self.unreadable(read, &failed.error);
            }
            (_, Ok(other)) => unreachable_done(&other),
        }
    }

    /// The bytes are not where they were: looks once more before it says that they are damaged.
    fn again(&mut self, read: usize, user: usize, fetch: &Fetch, corrupt: Corrupt) {
        if fetch.tries > 0 {
            self.damaged(read, corrupt);
            return;
        }
        let fetch = Fetch {
            tries: 1,
            step: Step::Find,
            ..fetch.clone()
        };
        if let Some(open) = self.reads.get_mut(read) {
            open.what = Wanted::Fetch(fetch.clone());
        }
        self.find(read, user, &fetch);
    }

    /// Prefix and stored bytes of what was read, checked as far as that can be done.
    fn check_bytes(
        &mut self,
        fetch: &Fetch,
        msg: &Msg,
        bytes: &Bytes,
    ) -> Result<(Bytes, Bytes), CorruptReason> {
        if !is_whole(fetch, msg) {
            self.metrics.unverified_reads += 1;
            let left = u64::from(msg.stored_len).saturating_sub(fetch.stored_offset);
            let want = left.min(u64::from(fetch.bytes_max));
            let got = u64::try_from(bytes.len()).expect("an index has at most 64 bits");
            return if got == want {
                Ok((Bytes::new(), bytes.clone()))
            } else {
                Err(CorruptReason::Truncated)
            };
        }
        let skip = usize::from(msg.skip);
        if bytes.len() < skip + crate::format::index(msg.stored_len) {
            return Err(CorruptReason::Truncated);
        }
        let line = skip
            .checked_sub(STORE_LINE_BYTES)
            .and_then(|at| bytes.get(at..skip))
            .ok_or(CorruptReason::Length)?;
        let line = StoreLine::decode(line)?;
        let own_file = msg.format_flags & OWN_FILE != 0;
        if line.stored_len != msg.stored_len || (!own_file && line.guid != msg.guid) {
            return Err(CorruptReason::Disagree("store line and index"));
        }
        let stored = bytes.slice(skip..skip + crate::format::index(msg.stored_len));
        if crc::of(&stored) == msg.stored_crc {
            Ok((bytes.slice(..skip), stored))
        } else {
            Err(CorruptReason::Checksum)
        }
    }

    fn unreadable(&mut self, read: usize, error: &IoError) {
        self.damaged(read, error.corrupt());
    }

    fn damaged(&mut self, read: usize, corrupt: Corrupt) {
        self.metrics.corrupt += 1;
        let corrupt = Arc::new(corrupt);
        self.events
            .push(Event::Notice(Notice::Corrupt(Arc::clone(&corrupt))));
        self.fetched(read, Err(Refused::Damaged(corrupt)));
    }

    /// A fetch ended.
    pub(super) fn fetched(&mut self, read: usize, result: Result<Got, Refused>) {
        match self.end_read(read) {
            Sink::Ticket(ticket) => {
                let result = result.map(|got| answer(&got));
                self.answer(Event::Fetched { ticket, result });
            }
            Sink::Copy(change, place) => self.copy_read(change, place, result),
        }
    }
}

/// Whether one read gets the whole message and the store line before it.
fn is_whole(fetch: &Fetch, msg: &Msg) -> bool {
    let bytes = u64::from(msg.stored_len) + u64::from(msg.skip);
    fetch.stored_offset == 0
        && msg.stored_len <= fetch.bytes_max
        && bytes <= u64::from(FETCH_BYTES_MAX)
}

/// The asked piece of a body in memory, shared.
fn piece_of(stored: &Bytes, fetch: &Fetch) -> Bytes {
    let from = usize::try_from(fetch.stored_offset)
        .unwrap_or(usize::MAX)
        .min(stored.len());
    let end = from
        .saturating_add(crate::format::index(fetch.bytes_max))
        .min(stored.len());
    stored.slice(from..end)
}

fn answer(got: &Got) -> Fetched {
    let msg = &got.msg;
    Fetched {
        stored: got.stored.clone(),
        stored_len: u64::from(msg.stored_len),
        format_flags: msg.format_flags,
        stored_crc: msg.stored_crc,
        entry: list_entry(msg, Bytes::new()),
        held_for: MailboxId::new(msg.held_for),
        sender: Bytes::copy_from_slice(mbox::sender_of(&got.prefix)),
    }
}
