//! LMTP's door: the session of [`crate::lmtp`] on one side, a delivery at a time on the other.
//!
//! Replies after the dot go out one by one as recipients are answered. While an answer is owed the
//! socket is not read, so a client that pipelines fills the kernel's buffers and not ours.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use bytes::Bytes;
use ringpost_engine::limits::RECIPIENTS_MAX;
use ringpost_engine::request::{BusyReason, MonotonicNs, Refused};
use ringpost_netproto::frame::Status;

use super::node::RECEIVING_BYTES_MAX;
use crate::address::Address;
use crate::conn::{Readiness, Session, Wire};
use crate::core_loop::{Core, Phase};
use crate::delivery::{Delivery, Envelope, Mailee, Result as Outcome, Sink};
use crate::letter::Door;
use crate::lmtp::{self, Event, LmtpConfig, Reply};

/// The dot is answered within this (mail.md 4); the append goes on.
const ANSWER_NS_MAX: u64 = 30_000_000_000;

/// So many bad commands end a connection (mail.md 4).
const BAD_COMMANDS_MAX: u32 = 20;

/// One connection.
pub struct LmtpDoor {
    core: Rc<Core>,
    wire: Rc<Wire>,
    peer: String,
    me: Weak<Self>,
    session: RefCell<lmtp::Session>,
    /// What was read and not taken.
    input: RefCell<Bytes>,
    /// The accepted recipients of the open transaction.
    users: RefCell<Vec<Mailee>>,
    delivery: RefCell<Option<Rc<Delivery>>>,
    /// Tells this transaction's answers from late ones.
    tag: Cell<u64>,
    ended_at: Cell<Option<MonotonicNs>>,
    pumping: Cell<bool>,
    input_ended: Cell<bool>,
    closing: Cell<bool>,
}

impl LmtpDoor {
    /// For a connection that was just accepted.
    pub fn new(core: &Rc<Core>, wire: &Rc<Wire>, peer: String) -> Rc<Self> {
        let config = LmtpConfig {
            hostname: hostname(),
            message_bytes_max: core.config.message_bytes_max,
            recipients_max: RECIPIENTS_MAX,
            bad_commands_max: BAD_COMMANDS_MAX,
        };
        Rc::new_cyclic(|me| Self {
            core: Rc::clone(core),
            wire: Rc::clone(wire),
            peer,
            me: Weak::clone(me),
            session: RefCell::new(lmtp::Session::new(config)),
            input: RefCell::default(),
            users: RefCell::default(),
            delivery: RefCell::default(),
            tag: Cell::new(0),
            ended_at: Cell::new(None),
            pumping: Cell::new(false),
            input_ended: Cell::new(false),
            closing: Cell::new(false),
        })
    }

    /// Takes what was read as far as the session and the disk let it.
    fn pump(&self) {
        if self.pumping.replace(true) {
            return;
        }
        let bytes = std::mem::take(&mut *self.input.borrow_mut());
        let mut rest = &bytes[..];
        while !self.is_blocked() {
            self.close_if_due();
            let event = self.session.borrow_mut().next_event(&mut rest);
            let Some(event) = event else { break };
            self.take_event(event);
        }
        *self.input.borrow_mut() = bytes.slice(bytes.len() - rest.len()..);
        self.close_if_due();
        self.pumping.set(false);
    }

    fn take_event(&self, event: Event<'_>) {
        match event {
            Event::Rcpt { index, address } => {
                let reply = self.recipient(index, &address);
                self.session.borrow_mut().rcpt_reply(&reply);
            }
            Event::MessageBegin { sender, size, .. } => {
                self.tag.set(self.tag.get() + 1);
                self.ended_at.set(None);
                let envelope = Envelope {
                    sender,
                    users: std::mem::take(&mut self.users.borrow_mut()),
                    size_hint: size,
                    door: Door::Lmtp,
                    filing: None,
                };
                let me = self.me.upgrade().expect("it is called through an Rc");
                let delivery = Delivery::begin(&self.core, me, self.tag.get(), envelope);
                *self.delivery.borrow_mut() = Some(delivery);
            }
            Event::Data(content) => {
                if let Some(delivery) = &*self.delivery.borrow() {
                    delivery.push(content);
                }
            }
            Event::MessageEnd => {
                self.ended_at.set(Some(self.core.now().monotonic));
                let delivery = self.delivery.borrow().clone();
                if let Some(delivery) = delivery {
                    delivery.end();
                }
            }
            Event::MessageAbort => self.abandon(),
            Event::Quit => {}
        }
    }

    /// The answer to a recipient, who is remembered if it exists.
    fn recipient(&self, index: usize, address: &Address) -> Reply {
        let mut users = self.users.borrow_mut();
        users.truncate(index);
        if self.core.phase() > Phase::Open {
            return Reply::of(Status::Stopping);
        }
        if self.core.receiving_bytes() > RECEIVING_BYTES_MAX {
            return Reply::refused(&Refused::Busy(BusyReason::Stages));
        }
        let settings = self.core.settings();
        let account = settings.accounts.resolve(address.local(), address.domain());
        let found = account.and_then(|account| {
            let user = self.core.user(&account.name)?;
            Some((user, account.detail.unwrap_or_default()))
        });
        match found {
            Some((user, wish)) => {
                if let Some(refused) = self.core.refusal(&user) {
                    return Reply::refused(&refused);
                }
                users.push(Mailee::new(user, &wish));
                Reply::recipient_ok()
            }
            None => Reply::of(Status::NoUser),
        }
    }

    fn is_blocked(&self) -> bool {
        self.delivery
            .borrow()
            .as_ref()
            .is_some_and(|delivery| delivery.is_blocked())
    }

    /// Between transactions, a connection that is to end says so.
    fn close_if_due(&self) {
        let mut session = self.session.borrow_mut();
        if self.closing.get() && session.is_idle() {
            session.close(&Reply::shutting_down());
        }
    }

    fn abandon(&self) {
        if let Some(delivery) = self.delivery.borrow_mut().take() {
            delivery.abandon();
        }
    }
}

impl Sink for LmtpDoor {
    fn delivered(&self, tag: u64, index: usize, outcome: &Outcome) {
        if tag != self.tag.get() {
            return;
        }
        let reply = match outcome {
            Outcome::Stored { guid, .. } => Reply::stored(*guid),
            Outcome::Duplicate { guid, .. } => Reply::duplicate(*guid),
            Outcome::Refused(refused) => Reply::refused(refused),
            Outcome::TooLarge => Reply::of(Status::TooBig),
            Outcome::Late => Reply::of(Status::Deadline),
        };
        let mut session = self.session.borrow_mut();
        session.message_reply(index, reply);
        let goes_on = session.takes_input();
        drop(session);
        if goes_on {
            *self.delivery.borrow_mut() = None;
            self.ended_at.set(None);
            self.pump();
            self.wire.read_on();
        }
        self.wire.write();
    }

    fn unblocked(&self, tag: u64) {
        if tag == self.tag.get() && !self.is_blocked() {
            self.pump();
            self.wire.read_on();
            self.wire.write();
        }
    }
}

impl Session for LmtpDoor {
    fn receive(&self, bytes: Bytes) {
        let mut input = self.input.borrow_mut();
        *input = if input.is_empty() {
            bytes
        } else {
            [&input[..], &bytes].concat().into()
        };
        drop(input);
        self.pump();
    }

    fn end_of_input(&self) {
        self.input_ended.set(true);
    }

    fn readiness(&self) -> Readiness {
        let session = self.session.borrow();
        if session.is_closed() || self.input_ended.get() {
            Readiness::Stop
        } else if session.takes_input() && self.input.borrow().is_empty() {
            Readiness::Read
        } else {
            Readiness::Wait
        }
    }

    fn transmit(&self, out: &mut Vec<u8>, _target: usize) {
        if let Some(bytes) = self.session.borrow_mut().poll_transmit() {
            out.extend_from_slice(&bytes);
        }
    }

    fn is_finished(&self) -> bool {
        let session = self.session.borrow();
        let all_taken = session.takes_input() && self.input.borrow().is_empty();
        session.is_closed() || (self.input_ended.get() && all_taken)
    }

    fn tick(&self, now: MonotonicNs, idle_ns: u64) {
        if self
            .ended_at
            .get()
            .is_some_and(|at| now.since(at) > ANSWER_NS_MAX)
        {
            let delivery = self.delivery.borrow().clone();
            if let Some(delivery) = delivery {
                delivery.expire();
            }
            return;
        }
        let idle_max = u64::try_from(self.core.config.idle_timeout.as_nanos()).unwrap_or(u64::MAX);
        let waits_for_peer = self.ended_at.get().is_none() && !self.is_blocked();
        if idle_ns > idle_max && waits_for_peer && !self.session.borrow().is_closed() {
            tracing::debug!(peer = self.peer, "idle for too long; closed");
            self.abandon();
            self.session.borrow_mut().close(&Reply::idle());
            self.wire.write();
        }
    }

    fn close_when_done(&self) {
        self.closing.set(true);
        self.close_if_due();
        self.wire.write();
    }

    fn lost(&self) {
        self.abandon();
        self.tag.set(self.tag.get() + 1);
        // Replies may be owed still. Nobody takes them, and nobody will say that reading goes on.
        self.input_ended.set(true);
    }
}

fn hostname() -> String {
    let name = nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok());
    name.filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".to_owned())
}
