//! What the node protocol's door reads: mailboxes, pages, messages, the node's status.
//!
//! A message comes from the shard in pieces of up to 1 MiB; the next piece is asked for when the
//! peer has taken the earlier ones. A long message's checksum is compared when its last piece has
//! come; if it does not match, the fetch is broken off instead of ended.

use std::collections::BTreeMap;

use bytes::Bytes;
use ringpost_engine::format::crc;
use ringpost_engine::limits::FETCH_BYTES_MAX;
use ringpost_engine::mbox::{Restorer, View};
use ringpost_engine::request::{
    self as engine, Event as Answered, Fetched, Refused, Request, ScrubWhat, Scrubbed,
};
use ringpost_netproto::frame::Status;
use ringpost_netproto::id::{MailboxId, Uid};
use ringpost_netproto::limits::BACKLOG_BYTES_SOFT;
use ringpost_netproto::message::MailboxRef;
use ringpost_netproto::message::list::ListRequest;
use ringpost_netproto::placement::UserKey;
use ringpost_netproto::session::server::{Event, RequestId};

use super::{Folders, NodeSession, status_of};
use crate::address::Address;
use crate::core_loop::{Reader, Waiter};
use crate::letter::{Answer, CoreReport, Trust};
use crate::reading::{list_entry, list_page, mailbox_status};
use crate::status;

/// Reading requests that are under way.
#[derive(Default)]
pub(super) struct Reads(BTreeMap<RequestId, Read>);

struct Read {
    /// `None` for a status, which no user owns.
    user: Option<UserKey>,
    want: Want,
}

/// What is wanted, and how far it is.
enum Want {
    Mailboxes,
    /// The mailbox was given by name, and its id is asked for first.
    Named(Bytes, Box<Self>),
    List {
        mailbox: MailboxId,
        after: u32,
        entries_max: u32,
    },
    Fetch(Fetch),
    Status,
    Scrub(Scrub),
}

/// A scrub that was asked for.
struct Scrub {
    /// Cores that have not answered.
    waiting: usize,
    done: Scrubbed,
    /// The first core that would not.
    refused: Option<Refused>,
}

struct Fetch {
    mailbox: MailboxId,
    uid: Uid,
    /// Set by the first piece.
    restorer: Option<Restorer>,
    /// Of what came so far.
    crc: u32,
    offset: u64,
    /// A piece was asked for.
    asked: bool,
}

impl Reads {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

impl NodeSession {
    pub(super) fn take_read(&self, event: Event) {
        match event {
            Event::Mailboxes { id, user } => self.start(id, &user, Want::Mailboxes, None),
            Event::List { id, request } => {
                let ListRequest {
                    user,
                    mailbox,
                    after_uid,
                    entries_max,
                } = request;
                let want = Want::List {
                    mailbox: MailboxId::INBOX,
                    after: after_uid,
                    entries_max,
                };
                self.start(id, &user, want, Some(mailbox));
            }
            Event::Fetch { id, request } => {
                let fetch = Fetch {
                    mailbox: MailboxId::INBOX,
                    uid: request.uid,
                    restorer: None,
                    crc: 0,
                    offset: 0,
                    asked: false,
                };
                self.start(id, &request.user, Want::Fetch(fetch), Some(request.mailbox));
            }
            Event::FetchAborted { id } => {
                self.reads.borrow_mut().0.remove(&id);
            }
            Event::Status { id } => {
                let read = Read {
                    user: None,
                    want: Want::Status,
                };
                self.reads.borrow_mut().0.insert(id, read);
                self.core.ask_reports(self.me(), id.value());
            }
            Event::Scrub { id, user } => self.scrub(id, user.as_ref()),
            other => tracing::debug!(?other, "an event of a newer session"),
        }
    }

    fn start(&self, id: RequestId, user: &Bytes, want: Want, mailbox: Option<MailboxRef>) {
        if self.trust != Trust::Read {
            let text = "this user may only deliver (trusted_uids)";
            return self.session.borrow_mut().fail(id, Status::NoUser, text);
        }
        let Some(user) = self.reader_user(user) else {
            return self
                .session
                .borrow_mut()
                .fail(id, Status::NoUser, "no such user");
        };
        let want = match mailbox {
            None => want,
            Some(MailboxRef::Id(mailbox)) => want.in_mailbox(mailbox),
            Some(MailboxRef::Name(name)) if name.eq_ignore_ascii_case(b"INBOX") => want,
            Some(MailboxRef::Name(name)) => Want::Named(name, Box::new(want)),
        };
        self.reads.borrow_mut().0.insert(
            id,
            Read {
                user: Some(user),
                want,
            },
        );
        self.ask(id);
    }

    /// As deliveries would find the user; else the name as it is, so that the mail of an account that
    /// is no longer listed can still be read.
    fn reader_user(&self, name: &[u8]) -> Option<UserKey> {
        let account = Address::parse(name).ok().and_then(|address| {
            self.core
                .settings()
                .accounts
                .resolve(address.local(), address.domain())
        });
        match account {
            Some(account) => self.core.user(&account.name),
            None => self.core.user(name),
        }
    }

    /// Asks the shard for what a request needs next.
    fn ask(&self, id: RequestId) {
        let mut reads = self.reads.borrow_mut();
        let Some(Read {
            user: Some(user),
            want,
        }) = reads.0.get_mut(&id)
        else {
            return;
        };
        let user = user.clone();
        let owner = self.core.owner(&user);
        let request = match want {
            Want::Mailboxes | Want::Named(..) => Request::Mailboxes { user },
            Want::List {
                mailbox,
                after,
                entries_max,
            } => Request::List {
                user,
                mailbox: *mailbox,
                after: *after,
                entries_max: *entries_max,
            },
            Want::Fetch(fetch) => {
                fetch.asked = true;
                Request::Fetch {
                    user,
                    mailbox: fetch.mailbox,
                    uid: fetch.uid,
                    stored_offset: fetch.offset,
                    bytes_max: FETCH_BYTES_MAX,
                }
            }
            Want::Status | Want::Scrub(_) => return,
        };
        drop(reads);
        self.core
            .ask(owner, request, Waiter::Reader(self.me(), id.value()));
    }

    /// Asks for the next pieces of fetches, if the peer has taken enough.
    pub(super) fn go_on_reading(&self) {
        if self.session.borrow().transmit_backlog() >= BACKLOG_BYTES_SOFT {
            return;
        }
        let stalled: Vec<_> = self
            .reads
            .borrow()
            .0
            .iter()
            .filter(|(_, read)| matches!(&read.want, Want::Fetch(fetch) if !fetch.asked))
            .map(|(id, _)| *id)
            .collect();
        for id in stalled {
            self.ask(id);
        }
    }

    /// Asks the core of a user, or all of them, to scrub.
    fn scrub(&self, id: RequestId, user: Option<&Bytes>) {
        if self.trust != Trust::Read {
            let text = "this user may only deliver (trusted_uids)";
            return self.session.borrow_mut().fail(id, Status::NoUser, text);
        }
        let asked: Vec<(usize, ScrubWhat)> = match user {
            None => (0..self.core.cores)
                .map(|core| (core, ScrubWhat::All))
                .collect(),
            Some(name) => match self.reader_user(name) {
                Some(user) => vec![(self.core.owner(&user), ScrubWhat::User(user))],
                None => return self.fail(id, Status::NoUser, "no such user"),
            },
        };
        let scrub = Scrub {
            waiting: asked.len(),
            done: Scrubbed::default(),
            refused: None,
        };
        let read = Read {
            user: None,
            want: Want::Scrub(scrub),
        };
        self.reads.borrow_mut().0.insert(id, read);
        for (core, what) in asked {
            let waiter = Waiter::Reader(self.me(), id.value());
            self.core.ask(core, Request::Scrub { what }, waiter);
        }
    }

    /// One core answered; when all have, the reports name what is damaged.
    fn scrubbed(&self, id: RequestId, result: Result<Scrubbed, Refused>) {
        let mut reads = self.reads.borrow_mut();
        let Some(Read {
            want: Want::Scrub(scrub),
            ..
        }) = reads.0.get_mut(&id)
        else {
            return;
        };
        scrub.waiting -= 1;
        match result {
            Ok(done) => {
                scrub.done.users += done.users;
                scrub.done.messages += done.messages;
                scrub.done.bytes += done.bytes;
                scrub.done.damaged += done.damaged;
            }
            Err(refused) => {
                scrub.refused.get_or_insert(refused);
            }
        }
        if scrub.waiting > 0 {
            return;
        }
        let refused = scrub.refused.take();
        drop(reads);
        match refused {
            Some(refused) => self.fail(id, status_of(&refused), &refused.to_string()),
            None => self.core.ask_reports(self.me(), id.value()),
        }
    }

    fn is_scrub(&self, id: RequestId) -> bool {
        let reads = self.reads.borrow();
        let read = reads.0.get(&id);
        read.is_some_and(|read| matches!(read.want, Want::Scrub(_)))
    }

    /// Nobody waits for a scrub when the doors close.
    pub(super) fn end_scrubs(&self) {
        let mut reads = self.reads.borrow_mut();
        let scrubs = reads.0.iter();
        let scrubs = scrubs.filter(|(_, read)| matches!(read.want, Want::Scrub(_)));
        let scrubs: Vec<_> = scrubs.map(|(id, _)| *id).collect();
        for id in scrubs {
            reads.0.remove(&id);
            let text = "the node is stopping";
            self.session.borrow_mut().fail(id, Status::Stopping, text);
        }
    }

    fn fail(&self, id: RequestId, status: Status, text: &str) {
        self.reads.borrow_mut().0.remove(&id);
        self.session.borrow_mut().fail(id, status, text);
    }

    fn mailboxes(&self, id: RequestId, found: Vec<engine::MailboxStatus>) {
        let mut reads = self.reads.borrow_mut();
        let Some(read) = reads.0.remove(&id) else {
            return;
        };
        let Want::Named(name, want) = read.want else {
            drop(reads);
            let found: Vec<_> = found.into_iter().map(mailbox_status).collect();
            return self.session.borrow_mut().mailboxes_reply(id, &found);
        };
        let exact = |mailbox: &&engine::MailboxStatus| mailbox.name.as_bytes() == &name[..];
        let Some(mailbox) = found.iter().find(exact) else {
            drop(reads);
            return self.fail(id, Status::NoMailbox, "no such mailbox");
        };
        let want = want.in_mailbox(mailbox.mailbox);
        reads.0.insert(
            id,
            Read {
                user: read.user,
                want,
            },
        );
        drop(reads);
        self.ask(id);
    }

    fn listed(&self, id: RequestId, page: engine::ListPage) {
        let page = list_page(page);
        self.reads.borrow_mut().0.remove(&id);
        self.session.borrow_mut().list_reply(id, &page);
    }

    fn fetched(&self, id: RequestId, piece: Fetched) {
        let mut reads = self.reads.borrow_mut();
        let Some(Read {
            want: Want::Fetch(fetch),
            ..
        }) = reads.0.get_mut(&id)
        else {
            return;
        };
        fetch.asked = false;
        let mut session = self.session.borrow_mut();
        let restorer = fetch.restorer.get_or_insert_with(|| {
            session.fetch_begin(id, &list_entry(piece.entry));
            Restorer::new(piece.format_flags, piece.stored_len, View::AsReceived)
        });
        let whole = fetch.offset == 0;
        fetch.crc = crc::extend(fetch.crc, &piece.stored);
        fetch.offset += u64::try_from(piece.stored.len()).unwrap_or(u64::MAX);
        session.fetch_data(id, restorer.push(&piece.stored));
        let ended = fetch.offset >= piece.stored_len;
        if !ended && piece.stored.is_empty() {
            drop((session, reads));
            return self.fail(id, Status::Corrupt, "the message ends too early");
        }
        if !ended {
            return;
        }
        if whole || fetch.crc == piece.stored_crc {
            session.fetch_end(id);
            reads.0.remove(&id);
        } else {
            drop((session, reads));
            self.fail(
                id,
                Status::Corrupt,
                "the checksum of the message does not match",
            );
        }
    }
}

impl Want {
    fn in_mailbox(mut self, id: MailboxId) -> Self {
        match &mut self {
            Self::List { mailbox, .. } => *mailbox = id,
            Self::Fetch(fetch) => fetch.mailbox = id,
            Self::Mailboxes | Self::Named(..) | Self::Status | Self::Scrub(_) => {}
        }
        self
    }
}

impl Reader for NodeSession {
    fn answered(&self, tag: u64, answer: Answer) {
        if Folders::has(tag) {
            return self.folder_answered(tag, answer);
        }
        let id = RequestId::new(tag);
        let refused = match answer {
            Answer::Event(Answered::Mailboxes {
                result: Ok(found), ..
            }) => {
                self.mailboxes(id, found);
                None
            }
            Answer::Event(Answered::Listed {
                result: Ok(page), ..
            }) => {
                self.listed(id, page);
                None
            }
            Answer::Event(Answered::Fetched {
                result: Ok(piece), ..
            }) => {
                self.fetched(id, piece);
                None
            }
            Answer::Event(Answered::Scrubbed { result, .. }) => {
                self.scrubbed(id, result);
                None
            }
            Answer::Event(
                Answered::Mailboxes {
                    result: Err(refused),
                    ..
                }
                | Answered::Listed {
                    result: Err(refused),
                    ..
                }
                | Answered::Fetched {
                    result: Err(refused),
                    ..
                },
            )
            | Answer::Refused(refused) => {
                if self.is_scrub(id) {
                    self.scrubbed(id, Err(refused));
                    None
                } else {
                    Some(refused)
                }
            }
            Answer::Event(other) => unreachable!("not an answer to a reader: {other:?}"),
        };
        if let Some(refused) = refused {
            self.fail(id, status_of(&refused), &refused.to_string());
        }
        self.go_on_reading();
        self.take_events();
        self.wire.write();
    }

    fn reported(&self, tag: u64, reports: Vec<CoreReport>) {
        let id = RequestId::new(tag);
        let read = self.reads.borrow_mut().0.remove(&id);
        if let Some(Want::Scrub(scrub)) = read.map(|read| read.want) {
            let fields = status::scrubbed(&scrub.done, &reports);
            self.session.borrow_mut().scrub_reply(id, &fields);
        } else {
            let fields = status::fields(&self.core.config, &reports);
            self.session.borrow_mut().status_reply(id, &fields);
        }
        self.wire.write();
    }
}
