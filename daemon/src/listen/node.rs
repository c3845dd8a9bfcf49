//! The node protocol's door: a server session of `ringpost-netproto` on one side, deliveries and
//! shards on the other.
//!
//! Recipients are looked up one by one; a message goes to those that exist. Its answer is one frame
//! with one outcome per recipient, sent when the last is known or when its deadline has passed.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};

use bytes::Bytes;
use ringpost_engine::request::{MonotonicNs, Refused};
use ringpost_netproto::frame::Status;
use ringpost_netproto::id::NodeId;
use ringpost_netproto::limits::BACKLOG_BYTES_SOFT;
use ringpost_netproto::message::deliver::{DeliverRecipient, DeliverRequest, RecipientReply};
use ringpost_netproto::session::Config;
use ringpost_netproto::session::server::{Event, RequestId, ServerSession};
use ringpost_netproto::version::{Hello, Role};

use crate::address::Address;
use crate::conn::{Readiness, Session, Wire};
use crate::core_loop::{Core, Phase};
use crate::delivery::{Delivery, Envelope, Mailee, Result as Outcome, Sink};
use crate::letter::{Door, Trust};
use crate::lmtp;

mod append;
mod backup;
mod read;

use append::{Folders, Waiting};
use backup::Backups;
use read::Reads;

/// A message's answer comes after this at the latest (mail.md 4); the append goes on.
const ANSWER_NS_MAX: u64 = 30_000_000_000;

/// Above so many bytes of messages being received, a core takes no new ones.
pub(super) const RECEIVING_BYTES_MAX: u64 = 256 << 20;

/// One connection.
pub struct NodeSession {
    core: Rc<Core>,
    wire: Rc<Wire>,
    trust: Trust,
    peer: String,
    me: Weak<Self>,
    session: RefCell<ServerSession>,
    messages: RefCell<BTreeMap<RequestId, Message>>,
    reads: RefCell<Reads>,
    folders: RefCell<Folders>,
    backups: RefCell<Backups>,
    input_ended: Cell<bool>,
    closing: Cell<bool>,
}

/// A message on its way.
struct Message {
    /// `None` while its mailbox is looked for.
    delivery: Option<Rc<Delivery>>,
    /// Set for an append.
    waiting_append: Option<Waiting>,
    replies: Vec<RecipientReply>,
    /// Which reply stands for which recipient of the delivery.
    places: Vec<usize>,
    waiting: usize,
    /// Bytes whose credit is kept back, since the disk is behind.
    unreleased: u64,
    ended_at: Option<MonotonicNs>,
    deadline_ns: u64,
}

impl NodeSession {
    /// For a connection that was just accepted.
    pub fn new(core: &Rc<Core>, wire: &Rc<Wire>, trust: Trust, peer: String) -> Rc<Self> {
        let hello = Hello {
            core: u16::try_from(core.index).ok(),
            node: Some(NodeId::new(core.config.node_id)),
            store: core.store_id,
            ..Hello::new(Role::Node)
        };
        Rc::new_cyclic(|me| Self {
            core: Rc::clone(core),
            wire: Rc::clone(wire),
            trust,
            peer,
            me: Weak::clone(me),
            session: RefCell::new(ServerSession::new(Config::new(hello))),
            messages: RefCell::default(),
            reads: RefCell::default(),
            folders: RefCell::default(),
            backups: RefCell::default(),
            input_ended: Cell::new(false),
            closing: Cell::new(false),
        })
    }

    fn me(&self) -> Rc<Self> {
        self.me.upgrade().expect("it is called through an Rc")
    }

    /// Takes events as long as there are some.
    fn take_events(&self) {
        loop {
            let event = self.session.borrow_mut().poll_event();
            let Some(event) = event else { return };
            self.take_event(event);
        }
    }

    fn take_event(&self, event: Event) {
        match event {
            Event::Connected => {}
            Event::DeliverBegin { id, request } => self.begin(id, request),
            Event::AppendBegin { id, request } => self.append(id, request),
            Event::DeliverData { id, data } if self.keeps(id, &data) => {}
            Event::DeliverData { id, data } => self.data(id, &data),
            Event::DeliverEnd { id } => self.end(id),
            Event::DeliverAborted { id } => {
                let message = self.messages.borrow_mut().remove(&id);
                if let Some(Message {
                    delivery: Some(delivery),
                    ..
                }) = message
                {
                    delivery.abandon();
                }
            }
            Event::GoAway { status, text } => {
                tracing::debug!(peer = self.peer, %status, text, "the peer goes away");
            }
            Event::Backup { id, request } => self.backup(id, request),
            other => self.take_read(other),
        }
    }

    /// Why no message of this size is taken now, whoever it is for.
    fn refusal(&self, size_hint: Option<u64>) -> Option<(Status, &'static str)> {
        if self.core.phase() > Phase::Open {
            Some((Status::Stopping, "the node is stopping"))
        } else if self.core.receiving_bytes() > RECEIVING_BYTES_MAX {
            Some((Status::Busy, "busy: memory"))
        } else if size_hint.is_some_and(|size| size > self.core.config.message_bytes_max) {
            Some((Status::TooBig, "the message is larger than the limit"))
        } else {
            None
        }
    }

    fn begin(&self, id: RequestId, request: DeliverRequest) {
        let refusal = self.refusal(request.size_hint);
        let mut replies = Vec::with_capacity(request.recipients.len());
        let mut places = Vec::with_capacity(request.recipients.len());
        let mut users = Vec::with_capacity(request.recipients.len());
        for recipient in &request.recipients {
            let found = match refusal {
                Some((status, text)) => Err((status, text)),
                None => self.find(recipient),
            };
            match found {
                Ok(user) => {
                    places.push(replies.len());
                    users.push(user);
                    replies.push(RecipientReply::new(Status::Internal));
                }
                Err((status, text)) => replies.push(RecipientReply {
                    text: Bytes::from_static(text.as_bytes()),
                    ..RecipientReply::new(status)
                }),
            }
        }
        let waiting = users.len();
        if waiting == 0 {
            self.session.borrow_mut().deliver_reply(id, &replies);
            return;
        }
        let envelope = Envelope {
            sender: request.sender,
            users,
            size_hint: request.size_hint,
            door: Door::Node,
            filing: None,
        };
        let deadline_ns = deadline_ns(request.deadline_ms);
        let delivery = Delivery::begin(&self.core, self.me(), id.value(), envelope);
        let message = Message {
            delivery: Some(delivery),
            waiting_append: None,
            replies,
            places,
            waiting,
            unreleased: 0,
            ended_at: None,
            deadline_ns,
        };
        self.messages.borrow_mut().insert(id, message);
    }

    /// The user of a recipient, or why there is none.
    fn find(&self, recipient: &DeliverRecipient) -> Result<Mailee, (Status, &'static str)> {
        const UNKNOWN: (Status, &str) = (Status::NoUser, "no such user");
        recipient.check()?;
        let settings = self.core.settings();
        let Ok(address) = Address::parse(&recipient.address) else {
            return Err((Status::NoUser, "this is no address"));
        };
        let account = settings.accounts.resolve(address.local(), address.domain());
        let account = account.ok_or(UNKNOWN)?;
        let user = self.core.user(&account.name).ok_or(UNKNOWN)?;
        if let Some(refused) = self.core.refusal(&user) {
            return Err((status_of(&refused), "no room for new mail now, try again"));
        }
        let detail = account.detail.unwrap_or_default();
        Ok(Mailee::new(
            user,
            recipient.mailbox.as_deref().unwrap_or(&detail),
        ))
    }

    fn data(&self, id: RequestId, data: &[u8]) {
        let len = u64::try_from(data.len()).unwrap_or(u64::MAX);
        let delivery = self
            .messages
            .borrow()
            .get(&id)
            .and_then(|open| open.delivery.clone());
        let blocked = delivery.is_some_and(|delivery| {
            delivery.push(data);
            delivery.is_blocked()
        });
        if blocked {
            if let Some(open) = self.messages.borrow_mut().get_mut(&id) {
                open.unreleased += len;
            }
        } else {
            self.session.borrow_mut().release(id, len);
        }
    }

    fn end(&self, id: RequestId) {
        let delivery = self.messages.borrow_mut().get_mut(&id).and_then(|open| {
            open.ended_at = Some(self.core.now().monotonic);
            open.delivery.clone()
        });
        if let Some(delivery) = delivery {
            delivery.end();
        }
    }

    /// Nothing is open and nothing more will be.
    fn is_idle(&self) -> bool {
        self.messages.borrow().is_empty()
            && self.reads.borrow().is_empty()
            && self.backups.borrow().is_empty()
    }
}

impl Sink for NodeSession {
    fn delivered(&self, tag: u64, index: usize, outcome: &Outcome) {
        let id = RequestId::new(tag);
        let mut messages = self.messages.borrow_mut();
        let Some(open) = messages.get_mut(&id) else {
            return;
        };
        if let Some(append) = open.waiting_append.take() {
            messages.remove(&id);
            drop(messages);
            return self.appended(id, &append, outcome);
        }
        let reply = open
            .places
            .get(index)
            .and_then(|place| open.replies.get_mut(*place));
        *reply.expect("the delivery has as many recipients as were found") = reply_of(outcome);
        open.waiting -= 1;
        if open.waiting > 0 {
            return;
        }
        let done = messages.remove(&id).expect("just seen");
        drop(messages);
        self.session.borrow_mut().deliver_reply(id, &done.replies);
        self.take_events();
        self.wire.write();
    }

    fn unblocked(&self, tag: u64) {
        let id = RequestId::new(tag);
        let mut messages = self.messages.borrow_mut();
        if let Some(open) = messages.get_mut(&id)
            && open
                .delivery
                .as_ref()
                .is_none_or(|delivery| !delivery.is_blocked())
        {
            let bytes = std::mem::take(&mut open.unreleased);
            drop(messages);
            self.session.borrow_mut().release(id, bytes);
            self.wire.write();
        }
    }
}

impl Session for NodeSession {
    fn receive(&self, bytes: Bytes) {
        let result = self.session.borrow_mut().handle_input(bytes);
        if let Err(violation) = result {
            tracing::info!(peer = self.peer, %violation, "a peer broke the node protocol");
        }
        self.take_events();
    }

    fn end_of_input(&self) {
        self.input_ended.set(true);
    }

    fn readiness(&self) -> Readiness {
        let session = self.session.borrow();
        if session.is_ended() || self.input_ended.get() {
            Readiness::Stop
        } else if session.transmit_backlog() > BACKLOG_BYTES_SOFT {
            Readiness::Wait
        } else {
            Readiness::Read
        }
    }

    fn transmit(&self, out: &mut Vec<u8>, target: usize) {
        let mut session = self.session.borrow_mut();
        while out.len() < target
            && let Some(bytes) = session.poll_transmit()
        {
            out.extend_from_slice(&bytes);
        }
        drop(session);
        if !self.reads.borrow().is_empty() {
            self.go_on_reading();
            self.take_events();
            if self.session.borrow().transmit_backlog() > 0 {
                self.wire.write();
            }
        }
    }

    fn is_finished(&self) -> bool {
        if self.session.borrow().is_ended() {
            return true;
        }
        // A message whose end can come no more is waited for by nobody.
        let answers_owed = self
            .messages
            .borrow()
            .values()
            .any(|open| open.ended_at.is_some());
        let only_halves =
            !answers_owed && self.reads.borrow().is_empty() && self.backups.borrow().is_empty();
        (self.input_ended.get() && only_halves) || (self.closing.get() && self.is_idle())
    }

    fn tick(&self, now: MonotonicNs, idle_ns: u64) {
        let late: Vec<_> = self
            .messages
            .borrow()
            .values()
            .filter(|open| {
                open.ended_at
                    .is_some_and(|at| now.since(at) > open.deadline_ns)
            })
            .filter_map(|open| open.delivery.clone())
            .collect();
        for delivery in late {
            delivery.expire();
        }
        let idle_max = u64::try_from(self.core.config.idle_timeout.as_nanos()).unwrap_or(u64::MAX);
        let receiving = self
            .messages
            .borrow()
            .values()
            .any(|open| open.ended_at.is_none());
        if idle_ns > idle_max && (self.is_idle() || receiving) {
            self.session
                .borrow_mut()
                .drain(Status::Deadline, "idle for too long");
            self.session.borrow_mut().handle_close();
            self.take_events();
            self.closing.set(true);
            self.wire.write();
        }
    }

    fn close_when_done(&self) {
        self.end_scrubs();
        self.session
            .borrow_mut()
            .drain(Status::Stopping, "the node is stopping");
        self.closing.set(true);
        self.wire.write();
    }

    fn lost(&self) {
        self.session.borrow_mut().handle_close();
        self.take_events();
        self.messages.borrow_mut().clear();
        self.reads.borrow_mut().clear();
        self.let_backup_go();
    }
}

/// When a message is answered at the latest, from its end on.
fn deadline_ns(deadline_ms: u32) -> u64 {
    match deadline_ms {
        0 => ANSWER_NS_MAX,
        ms => (u64::from(ms) * 1_000_000).min(ANSWER_NS_MAX),
    }
}

fn reply_of(outcome: &Outcome) -> RecipientReply {
    match outcome {
        Outcome::Stored { uid, guid, .. } => RecipientReply {
            uid: Some(*uid),
            guid: Some(*guid),
            ..RecipientReply::new(Status::Ok)
        },
        Outcome::Duplicate { uid, guid, .. } => RecipientReply {
            uid: Some(*uid),
            guid: Some(*guid),
            ..RecipientReply::new(Status::OkDuplicate)
        },
        Outcome::TooLarge => RecipientReply {
            text: Bytes::from_static(b"the message is larger than the limit"),
            ..RecipientReply::new(Status::TooBig)
        },
        Outcome::Late => RecipientReply {
            text: Bytes::from_static(b"the deadline has passed"),
            ..RecipientReply::new(Status::Deadline)
        },
        Outcome::Refused(refused) => RecipientReply {
            text: Bytes::from(refused.to_string()),
            ..RecipientReply::new(lmtp::status(refused))
        },
    }
}

/// The one table of refusals for readers; deliveries have [`lmtp::status`].
pub(super) fn status_of(refused: &Refused) -> Status {
    match refused {
        Refused::Busy(_) => Status::Busy,
        Refused::DiskFull => Status::DiskFull,
        Refused::OverQuota { .. } => Status::Quota,
        Refused::NoSuchMailbox => Status::NoMailbox,
        Refused::NoSuchUser => Status::NoUser,
        Refused::NoSuchMessage => Status::NoMessage,
        Refused::TooLarge => Status::TooBig,
        Refused::Repairing(_) | Refused::Damaged(_) => Status::Corrupt,
        Refused::Stopped => Status::Stopping,
        _ => Status::Internal,
    }
}
