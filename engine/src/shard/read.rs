//! Reading: mailboxes, pages of a list, and messages, pending or materialised alike (storage.md 8.2).
//!
//! A pending body comes from memory or from the log; others from their segment by one read. What is
//! read whole is checked against its CRC and its store line before it is given out; bytes that fail
//! are never served.

use std::sync::Arc;

use bytes::Bytes;
use ringpost_netproto::id::{MailboxId, Uid};
use ringpost_netproto::placement::UserKey;

use super::Shard;
use super::load::Wants;
use super::publish::message_of;
use crate::error::{Corrupt, CorruptReason, IoError};
use crate::format::crc;
use crate::format::info::{ALL_CRLF, Msg, NO_FINAL_NEWLINE, OWN_FILE};
use crate::format::store_line::{STORE_LINE_BYTES, StoreLine};
use crate::index::IndexEntry;
use crate::io::{AlignedBuf, Done, Failed, FileId, Io, Op, OpenMode, RelPath};
use crate::limits::{BLOCK_BYTES, FETCH_BYTES_MAX, LIST_ENTRIES_MAX};
use crate::ops::{Purpose, unreachable_done};
use crate::pending::What;
use crate::request::{
    Event, Fetched, ListEntry, ListPage, MailboxStatus, More, Notice, Refused, Ticket,
};
use crate::user::{Existence, MailboxTail, State, Waiter};

/// A read that is not answered yet.
pub(super) struct Read {
    ticket: Ticket,
    key: UserKey,
    user: usize,
    what: Wanted,
}

/// What is read.
#[derive(Clone, Debug)]
enum Wanted {
    Mailboxes,
    List {
        mailbox: MailboxId,
        after: u32,
        entries_max: u32,
    },
    Fetch(Fetch),
}

#[derive(Clone, Debug)]
struct Fetch {
    mailbox: MailboxId,
    uid: Uid,
    stored_offset: u64,
    bytes_max: u32,
    step: Step,
    /// Times it began again because the bytes moved from the log to a file meanwhile.
    tries: u32,
}

/// Where a fetch is.
#[derive(Clone, Debug)]
enum Step {
    Find,
    Log {
        msg: Msg,
        lead: usize,
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

impl<I: Io> Shard<I> {
    pub(super) fn submit_mailboxes(
        &mut self,
        ticket: Ticket,
        user: &UserKey,
    ) -> Result<(), Refused> {
        self.submit_read(ticket, user, Wanted::Mailboxes)
    }

    pub(super) fn submit_list(
        &mut self,
        ticket: Ticket,
        user: &UserKey,
        mailbox: MailboxId,
        after: u32,
        entries_max: u32,
    ) -> Result<(), Refused> {
        let entries_max = entries_max.clamp(1, LIST_ENTRIES_MAX);
        self.submit_read(
            ticket,
            user,
            Wanted::List {
                mailbox,
                after,
                entries_max,
            },
        )
    }

    pub(super) fn submit_fetch(
        &mut self,
        ticket: Ticket,
        user: &UserKey,
        mailbox: MailboxId,
        uid: Uid,
        (stored_offset, bytes_max): (u64, u32),
    ) -> Result<(), Refused> {
        let bytes_max = bytes_max.clamp(1, FETCH_BYTES_MAX);
        let fetch = Fetch {
            mailbox,
            uid,
            stored_offset,
            bytes_max,
            step: Step::Find,
            tries: 0,
        };
        self.submit_read(ticket, user, Wanted::Fetch(fetch))
    }

    fn submit_read(&mut self, ticket: Ticket, key: &UserKey, what: Wanted) -> Result<(), Refused> {
        if !self.identity.owns(key) {
            return Err(Refused::WrongShard);
        }
        let user = self.users.by_key(key);
        if self.user_queue_is_full(user) {
            return Err(Refused::Busy(crate::request::BusyReason::UserQueue));
        }
        self.users.get_mut(user).pins += 1;
        let read = self.reads.insert(Read {
            ticket,
            key: key.clone(),
            user,
            what,
        });
        self.want_index(read);
        Ok(())
    }

    /// Runs a read now if the user's index is there, else when it is.
    fn want_index(&mut self, read: usize) {
        let Some(Read { user, key, .. }) = self.reads.get(read) else {
            return;
        };
        let (index, key) = (*user, key.clone());
        let user = self.users.get_mut(index);
        let loaded = user.name.is_some() && user.live().is_some_and(|live| live.index.is_some());
        if loaded || matches!(user.state, State::Repairing(_)) {
            self.run_read(read);
        } else {
            user.waiting.push_back(Waiter::Read(read));
            self.start_load(index, &key);
        }
    }

    pub(super) fn read_wants(&self, read: usize, name: Option<&[u8]>) -> Wants {
        let same = self
            .reads
            .get(read)
            .is_none_or(|read| name.is_none_or(|name| name == read.key.name()));
        if same { Wants::This } else { Wants::Other }
    }

    /// The user turned out to have another name: ask for the next ordinal.
    pub(super) fn read_moves(&mut self, read: usize) {
        let Some(open) = self.reads.get(read) else {
            return;
        };
        let (from, key) = (open.user, open.key.clone());
        let to = self.users.by_key(&key);
        self.users.get_mut(to).pins += 1;
        self.users.unpin(from);
        if let Some(open) = self.reads.get_mut(read) {
            open.user = to;
        }
        self.want_index(read);
    }

    /// The user is loaded, or cannot be.
    pub(super) fn run_read(&mut self, read: usize) {
        let Some(Read { user, what, .. }) = self.reads.get(read) else {
            return;
        };
        let (user, what) = (*user, what.clone());
        let refused = match &self.users.get(user).state {
            State::Live(live) if live.tail.existence == Existence::Absent => {
                Some(Refused::NoSuchUser)
            }
            State::Live(_) => None,
            State::Repairing(corrupt) => Some(Refused::Repairing(Arc::clone(corrupt))),
            State::Unloaded | State::Loading => unreachable!("it was just loaded"),
        };
        match what {
            Wanted::Mailboxes => {
                let result = refused.map_or_else(|| Ok(self.statuses(user)), Err);
                let ticket = self.close_read(read);
                self.answer(Event::Mailboxes { ticket, result });
            }
            Wanted::List {
                mailbox,
                after,
                entries_max,
            } => {
                let page = |shard: &Self| shard.page(user, mailbox, after, entries_max);
                let result = refused.map_or_else(|| page(self), Err);
                let ticket = self.close_read(read);
                self.answer(Event::Listed { ticket, result });
            }
            Wanted::Fetch(fetch) => match refused {
                Some(refused) => self.fetched(read, Err(refused)),
                None => self.find(read, user, &fetch),
            },
        }
        self.index_bytes -= self.users.take_forgotten_bytes();
        let max = self.config.index_bytes_max;
        if self.index_bytes > max {
            self.index_bytes = self.users.shrink_indexes(self.index_bytes, max);
        }
    }

    fn close_read(&mut self, read: usize) -> Ticket {
        let Read { ticket, user, .. } = self.reads.remove(read);
        self.users.unpin(user);
        let absent = |live: &crate::user::Live| live.tail.existence == Existence::Absent;
        if self.users.get(user).live().is_some_and(absent) {
            self.users.forget_if_idle(user);
        }
        ticket
    }

    fn statuses(&self, user: usize) -> Vec<MailboxStatus> {
        let live = self.users.get(user).live();
        let mailboxes = live.into_iter().flat_map(|live| &live.tail.mailboxes);
        let mut statuses: Vec<_> = mailboxes.map(MailboxTail::status).collect();
        statuses.sort_by_key(|status| status.mailbox);
        statuses
    }

    fn page(
        &self,
        user: usize,
        mailbox: MailboxId,
        after: u32,
        entries_max: u32,
    ) -> Result<ListPage, Refused> {
        let live = self.users.get(user).live().ok_or(Refused::NoSuchUser)?;
        let tail = live.tail.mailbox(mailbox).ok_or(Refused::NoSuchMailbox)?;
        let all = live
            .index
            .as_ref()
            .map_or(&[][..], |index| index.mailbox(mailbox));
        let first = all.partition_point(|entry| entry.uid.value() <= after);
        let rest = all.get(first..).unwrap_or_default();
        let count = rest.len().min(crate::format::index(entries_max));
        let page = rest.get(..count).unwrap_or_default();
        let entries: Result<Vec<_>, _> = page
            .iter()
            .map(|entry| Ok(list_entry(&entry.msg()?, entry.cache.clone())))
            .collect();
        let entries = entries.map_err(|reason: CorruptReason| {
            let file = self
                .users
                .get(user)
                .dir()
                .info(live.tail.generation)
                .to_string();
            Refused::Damaged(Arc::new(Corrupt {
                file,
                offset: 0,
                reason,
            }))
        })?;
        let more = if count < rest.len() {
            More::Yes
        } else {
            More::No
        };
        Ok(ListPage {
            status: tail.status(),
            entries,
            more,
        })
    }

    /// Looks where a message is and begins to read it.
    fn find(&mut self, read: usize, user_index: usize, fetch: &Fetch) {
        let user = self.users.get(user_index);
        let index = user.live().and_then(|live| live.index.as_ref());
        let found = index.and_then(|index| index.find(fetch.mailbox, fetch.uid));
        let Some(msg) = found.map(IndexEntry::msg) else {
            self.fetched(read, Err(Refused::NoSuchMessage));
            return;
        };
        let msg = match msg {
            Ok(msg) => msg,
            Err(reason) => {
                let file = user.dir().to_string();
                self.damaged(
                    read,
                    Corrupt {
                        file,
                        offset: 0,
                        reason,
                    },
                );
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
                match body.memory() {
                    Some(stored) => {
                        let piece = piece_of(&stored, fetch);
                        self.fetched(read, Ok(answer(&msg, piece)));
                    }
                    None => self.read_log(read, msg, &body),
                }
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
    fn read_log(&mut self, read: usize, msg: Msg, body: &crate::pending::PendingBody) {
        let (file, offset) = self.log.files().place(body.lsn);
        let start = offset / BLOCK_BYTES * BLOCK_BYTES;
        let end = (offset + u64::from(body.stored_len)).next_multiple_of(BLOCK_BYTES);
        let len = usize::try_from(end - start).expect("a body in the log is small");
        let lead = usize::try_from(offset - start).expect("below 4096");
        self.metrics.bodies_reread += 1;
        self.set_step(read, Step::Log { msg, lead });
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
            (Step::Log { msg, lead }, Ok(Done::Read { buf, count })) => {
                let len = crate::format::index(msg.stored_len);
                let bytes = buf.get(..count).and_then(|read| read.get(lead..lead + len));
                match bytes {
                    Some(stored) if crc::of(stored) == msg.stored_crc => {
                        let piece = piece_of(&Bytes::copy_from_slice(stored), &fetch);
                        self.fetched(read, Ok(answer(&msg, piece)));
                    }
                    _ => self.again(read, user, &fetch, &msg),
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
                    Ok(stored) => self.fetched(read, Ok(answer(&msg, stored))),
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

    /// The bytes in the log were replaced while they were read: by now they are in a segment.
    fn again(&mut self, read: usize, user: usize, fetch: &Fetch, msg: &Msg) {
        if fetch.tries > 0 {
            let file = self.users.get(user).dir().segment(msg.segment).to_string();
            let reason = CorruptReason::Checksum;
            self.damaged(
                read,
                Corrupt {
                    file,
                    offset: msg.offset,
                    reason,
                },
            );
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

    /// The stored bytes of what was read, checked as far as that can be done.
    fn check_bytes(
        &mut self,
        fetch: &Fetch,
        msg: &Msg,
        bytes: &Bytes,
    ) -> Result<Bytes, CorruptReason> {
        if !is_whole(fetch, msg) {
            self.metrics.unverified_reads += 1;
            let left = u64::from(msg.stored_len).saturating_sub(fetch.stored_offset);
            let want = left.min(u64::from(fetch.bytes_max));
            let got = u64::try_from(bytes.len()).expect("an index has at most 64 bits");
            return if got == want {
                Ok(bytes.clone())
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
            Ok(stored)
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

    fn fetched(&mut self, read: usize, result: Result<Fetched, Refused>) {
        let ticket = self.close_read(read);
        self.answer(Event::Fetched { ticket, result });
    }

    /// After a fatal error.
    pub(super) fn refuse_reads(&mut self) {
        let open: Vec<usize> = self.reads.iter().map(|(index, _)| index).collect();
        for index in open {
            self.refuse_read(index, Refused::Stopped);
        }
    }

    /// Answers a read, whatever it is, with a refusal.
    pub(super) fn refuse_read(&mut self, read: usize, why: Refused) {
        let Some(Read { what, .. }) = self.reads.get(read) else {
            return;
        };
        let what = what.clone();
        let ticket = self.close_read(read);
        self.answer(match what {
            Wanted::Mailboxes => Event::Mailboxes {
                ticket,
                result: Err(why),
            },
            Wanted::List { .. } => Event::Listed {
                ticket,
                result: Err(why),
            },
            Wanted::Fetch(_) => Event::Fetched {
                ticket,
                result: Err(why),
            },
        });
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

fn answer(msg: &Msg, stored: Bytes) -> Fetched {
    Fetched {
        stored,
        stored_len: u64::from(msg.stored_len),
        format_flags: msg.format_flags,
        stored_crc: msg.stored_crc,
        entry: list_entry(msg, Bytes::new()),
    }
}

fn list_entry(msg: &Msg, cache: Bytes) -> ListEntry {
    // What restoring takes off and puts back: one `>` a quoted line, CRs, the added newline.
    let stored = u64::from(msg.stored_len).saturating_sub(u64::from(msg.quoted_count));
    let all_crlf = msg.format_flags & ALL_CRLF != 0;
    let crs = if all_crlf {
        u64::from(msg.lines_count)
    } else {
        0
    };
    let newline = match (msg.format_flags & NO_FINAL_NEWLINE != 0, all_crlf) {
        (false, _) => 0,
        (true, false) => 1,
        (true, true) => 2,
    };
    ListEntry {
        uid: msg.uid,
        modseq: msg.modseq,
        flags: msg.system_flags,
        internal_date: msg.internal_date,
        rfc822_size: msg.rfc822_size,
        received_size: (stored + crs).saturating_sub(newline),
        guid: msg.guid,
        date_s: msg.date_s,
        cache,
    }
}
