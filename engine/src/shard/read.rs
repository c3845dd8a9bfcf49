//! Reading: mailboxes, pages of a list, changes, snapshots (storage.md 8.2, 8.3). What needs bytes of
//! messages is in `fetch`.
//!
//! A read waits until its user's index is loaded; then it sees what is durable, pending or
//! materialised alike.

use std::sync::Arc;

use bytes::Bytes;
use ringpost_netproto::id::MailboxId;
use ringpost_netproto::placement::UserKey;

use super::Shard;
use super::fetch::Fetch;
use super::load::Wants;
use crate::error::{Corrupt, CorruptReason};
use crate::format::info::{ALL_CRLF, Msg, NO_FINAL_NEWLINE};
use crate::index::{IndexEntry, above};
use crate::io::Io;
use crate::limits::LIST_ENTRIES_MAX;
use crate::request::{
    BusyReason, Event, ListEntry, ListPage, MailboxStatus, More, Refused, Ticket,
};
use crate::tail::MailboxTail;
use crate::user::{State, User, Waiter};

/// A read that is not answered yet.
pub(super) struct Read {
    pub(super) sink: Sink,
    /// `None` for one whose user is loaded.
    key: Option<UserKey>,
    pub(super) user: usize,
    /// Of those who read the user's files.
    reader: u64,
    pub(super) what: Wanted,
}

/// Who gets what is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sink {
    /// The caller.
    Ticket(Ticket),
    /// A copy: index of the change, and the message's place in its step.
    Copy(usize, usize),
}

/// What is read.
#[derive(Clone, Debug)]
pub(super) enum Wanted {
    Mailboxes,
    List(Page),
    Fetch(Fetch),
    Changes {
        page: Page,
        since: u64,
    },
    Watch {
        mailbox: Option<MailboxId>,
        since: u64,
    },
    Snapshot(MailboxId),
}

/// A page of a mailbox.
#[derive(Clone, Copy, Debug)]
pub(super) struct Page {
    pub(super) mailbox: MailboxId,
    pub(super) after: u32,
    pub(super) entries_max: usize,
}

impl Page {
    pub(super) fn new(mailbox: MailboxId, after: u32, entries_max: u32) -> Self {
        Self {
            mailbox,
            after,
            entries_max: crate::format::index(entries_max.clamp(1, LIST_ENTRIES_MAX)),
        }
    }
}

impl<I: Io> Shard<I> {
    /// Takes a read over; it runs now if the user's index is there.
    pub(super) fn submit_read(
        &mut self,
        ticket: Ticket,
        key: &UserKey,
        what: Wanted,
    ) -> Result<(), Refused> {
        if !self.identity.owns(key) {
            return Err(Refused::WrongShard);
        }
        let user = self.users.by_key(key);
        if self.user_queue_is_full(user) {
            return Err(Refused::Busy(BusyReason::UserQueue));
        }
        let read = self.open_read(Sink::Ticket(ticket), user, Some(key.clone()), what);
        self.want_index(read);
        Ok(())
    }

    /// Opens a read of a user, which stays in memory for it.
    pub(super) fn open_read(
        &mut self,
        sink: Sink,
        user: usize,
        key: Option<UserKey>,
        what: Wanted,
    ) -> usize {
        self.users.get_mut(user).pins += 1;
        let reader = self.begin_reader(user);
        self.reads.insert(Read {
            sink,
            key,
            user,
            reader,
            what,
        })
    }

    /// Runs a read now if the user's index is there, else when it is.
    fn want_index(&mut self, read: usize) {
        let Some(Read {
            user,
            key: Some(key),
            ..
        }) = self.reads.get(read)
        else {
            return;
        };
        let (index, key) = (*user, key.clone());
        if self.has_index(index, Waiter::Read(read), &key) {
            self.run_read(read);
        }
    }

    /// Whether a user's index is loaded, or known to be damaged; if not, the waiter is told later.
    pub(super) fn has_index(&mut self, index: usize, waiter: Waiter, key: &UserKey) -> bool {
        let user = self.users.get_mut(index);
        let loaded = user.name.is_some() && user.live().is_some_and(|live| live.index.is_some());
        if loaded || matches!(user.state, State::Repairing(_)) {
            return true;
        }
        user.waiting.push_back(waiter);
        self.start_load(index, Some(key));
        false
    }

    pub(super) fn read_wants(&self, read: usize, name: Option<&[u8]>) -> Wants {
        let key = self.reads.get(read).and_then(|read| read.key.as_ref());
        Wants::compare(key, name)
    }

    /// The user turned out to have another name: ask for the next ordinal.
    pub(super) fn read_moves(&mut self, read: usize) {
        let Some(Read {
            user,
            key: Some(key),
            reader,
            ..
        }) = self.reads.get(read)
        else {
            return;
        };
        let (from, key, reader) = (*user, key.clone(), *reader);
        let to = self.users.by_key(&key);
        self.users.get_mut(to).pins += 1;
        self.end_reader(from, reader);
        self.users.unpin(from);
        let reader = self.begin_reader(to);
        if let Some(open) = self.reads.get_mut(read) {
            open.user = to;
            open.reader = reader;
        }
        self.want_index(read);
    }

    /// The user is loaded, or cannot be.
    pub(super) fn run_read(&mut self, read: usize) {
        let Some(Read { user, what, .. }) = self.reads.get(read) else {
            return;
        };
        let (user, what) = (*user, what.clone());
        match (readable(self.users.get(user)), what) {
            (Err(refused), _) => self.refuse_read(read, refused),
            (Ok(()), Wanted::Mailboxes) => {
                let result = Ok(self.statuses(user));
                let ticket = self.close_read(read);
                self.answer(Event::Mailboxes { ticket, result });
            }
            (Ok(()), Wanted::List(page)) => {
                let result = self.page(user, page);
                let ticket = self.close_read(read);
                self.answer(Event::Listed { ticket, result });
            }
            (Ok(()), Wanted::Changes { page, since }) => {
                let result = self.changes_page(user, page, since);
                let ticket = self.close_read(read);
                self.answer(Event::Changes { ticket, result });
            }
            (Ok(()), Wanted::Fetch(fetch)) => self.find(read, user, &fetch),
            (Ok(()), Wanted::Watch { mailbox, since }) => self.watch(read, user, mailbox, since),
            (Ok(()), Wanted::Snapshot(mailbox)) => {
                let result = self.open_snapshot(user, mailbox);
                let ticket = self.close_read(read);
                self.answer(Event::SnapshotOpened { ticket, result });
            }
        }
        self.trim_indexes(user);
    }

    /// Drops indexes that nobody holds, as far as they are too many; not that of the user who was just
    /// served, who is likely to ask again: one that is larger than all may be would else be read from
    /// disk for every page of it.
    pub(super) fn trim_indexes(&mut self, served: usize) {
        self.index_bytes -= self.users.take_forgotten_bytes();
        let max = self.config.index_bytes_max;
        if self.index_bytes > max {
            self.index_bytes = self.users.shrink_indexes(self.index_bytes, max, served);
        }
    }

    /// Ends a read that a caller waits for.
    pub(super) fn close_read(&mut self, read: usize) -> Ticket {
        match self.end_read(read) {
            Sink::Ticket(ticket) => ticket,
            Sink::Copy(..) => unreachable!("a copy reads messages only"),
        }
    }

    /// Ends a read.
    pub(super) fn end_read(&mut self, read: usize) -> Sink {
        let Read {
            sink, user, reader, ..
        } = self.reads.remove(read);
        self.end_reader(user, reader);
        self.users.unpin(user);
        self.users.forget_if_absent(user);
        sink
    }

    fn statuses(&self, user: usize) -> Vec<MailboxStatus> {
        let live = self.users.get(user).live();
        let mailboxes = live.into_iter().flat_map(|live| live.tail.visible());
        let mut statuses: Vec<_> = mailboxes.map(MailboxTail::status).collect();
        statuses.sort_by_key(|status| status.mailbox);
        statuses
    }

    fn page(&self, user: usize, page: Page) -> Result<ListPage, Refused> {
        let user = self.users.get(user);
        let live = user.live().ok_or(Refused::NoSuchUser)?;
        let tail = live.tail.visible_mailbox(page.mailbox);
        let status = tail.ok_or(Refused::NoSuchMailbox)?.status();
        let index = live.index.as_ref();
        let entries = index.map_or(&[][..], |index| index.mailbox(page.mailbox));
        list(user, status, entries, page)
    }

    /// Ends a watch whose user is not loaded yet.
    pub(super) fn cancel_watch_read(&mut self, ticket: Ticket) {
        let sink = Sink::Ticket(ticket);
        let is_it = |read: &Read| read.sink == sink && matches!(read.what, Wanted::Watch { .. });
        let Some((read, open)) = self.reads.iter().find(|(_, read)| is_it(read)) else {
            return;
        };
        let user = self.users.get_mut(open.user);
        user.waiting.retain(|waiter| *waiter != Waiter::Read(read));
        self.refuse_read(read, Refused::Cancelled);
    }

    /// Ends all of them.
    pub(super) fn refuse_watch_reads(&mut self) {
        let watches = |read: &Read| matches!(read.what, Wanted::Watch { .. });
        let open = self.reads.iter().filter(|(_, read)| watches(read));
        let open: Vec<_> = open.map(|(index, read)| (index, read.user)).collect();
        for (read, user) in open {
            let user = self.users.get_mut(user);
            user.waiting.retain(|waiter| *waiter != Waiter::Read(read));
            self.refuse_read(read, Refused::Stopped);
        }
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
        if let Wanted::Fetch(_) = what {
            self.fetched(read, Err(why));
            return;
        }
        let what = what.clone();
        let ticket = self.close_read(read);
        self.answer(match what {
            Wanted::Mailboxes => Event::Mailboxes {
                ticket,
                result: Err(why),
            },
            Wanted::List(_) | Wanted::Fetch(_) => Event::Listed {
                ticket,
                result: Err(why),
            },
            Wanted::Changes { .. } => Event::Changes {
                ticket,
                result: Err(why),
            },
            Wanted::Watch { .. } => Event::Woken {
                ticket,
                result: Err(why),
            },
            Wanted::Snapshot(_) => Event::SnapshotOpened {
                ticket,
                result: Err(why),
            },
        });
    }
}

/// Whether a loaded user has something to be read.
pub(super) fn readable(user: &User) -> Result<(), Refused> {
    match &user.state {
        State::Live(live) if live.tail.visible().next().is_none() => Err(Refused::NoSuchUser),
        State::Live(_) => Ok(()),
        State::Repairing(corrupt) => Err(Refused::Repairing(Arc::clone(corrupt))),
        State::Unloaded | State::Loading => unreachable!("it was just loaded"),
    }
}

/// A page of a mailbox's messages.
pub(super) fn list(
    user: &User,
    status: MailboxStatus,
    entries: &[IndexEntry],
    page: Page,
) -> Result<ListPage, Refused> {
    let mut rest = above(entries, page.after);
    let taken = rest.by_ref().take(page.entries_max);
    let entries: Result<Vec<_>, _> = taken
        .map(|entry| Ok(list_entry(&entry.msg()?, entry.cache.clone())))
        .collect();
    let entries = entries.map_err(|reason| Refused::Damaged(Arc::new(bad_index(user, reason))))?;
    let more = match rest.next() {
        Some(_) => More::Yes,
        None => More::No,
    };
    Ok(ListPage {
        status,
        entries,
        more,
    })
}

/// A run of a user's index is not what it was when it was loaded.
pub(super) fn bad_index(user: &User, reason: CorruptReason) -> Corrupt {
    let generation = user.live().map_or(1, |live| live.tail.generation);
    Corrupt {
        file: user.dir().info(generation).to_string(),
        offset: 0,
        reason,
    }
}

/// What a list shows of a message.
pub(crate) fn list_entry(msg: &Msg, cache: Bytes) -> ListEntry {
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
        keywords: msg.keywords,
        internal_date: msg.internal_date,
        rfc822_size: msg.rfc822_size,
        received_size: (stored + crs).saturating_sub(newline),
        guid: msg.guid,
        date_s: msg.date_s,
        cache,
    }
}
