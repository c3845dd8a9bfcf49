//! The node protocol from the client's side: many messages in flight on a connection.

use std::collections::{BTreeMap, VecDeque};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use ringpost_netproto::frame::Status;
use ringpost_netproto::message::deliver::{DeliverRecipient, DeliverRequest};
use ringpost_netproto::message::printable;
use ringpost_netproto::session::Config;
use ringpost_netproto::session::client::{ClientSession, DeliverReply, Event, NotReady, RequestId};
use ringpost_netproto::version::{Hello, Role};

use super::session::{Answer, Mail, Outcome, Session};
use crate::workload::SENDER;

/// A connection to a node's socket.
#[derive(Debug)]
pub(crate) struct NodeSession {
    session: ClientSession,
    slots: BTreeMap<RequestId, Sent>,
    /// Messages that wait for credit; while there are any, there is no room.
    waiting: VecDeque<Waiting>,
    connected: bool,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    slot: usize,
    recipients_count: usize,
}

#[derive(Debug)]
struct Waiting {
    slot: usize,
    request: DeliverRequest,
    body: Bytes,
}

impl NodeSession {
    /// Says hello as a shim, which is what MTAs use.
    pub(crate) fn new() -> Self {
        Self {
            session: ClientSession::new(Config::new(Hello::new(Role::Shim))),
            slots: BTreeMap::new(),
            waiting: VecDeque::new(),
            connected: false,
        }
    }

    /// Gives messages that wait to the protocol, as far as it takes them.
    fn send_waiting(&mut self) -> anyhow::Result<()> {
        while let Some(waiting) = self.waiting.pop_front() {
            match self.session.deliver(&waiting.request, waiting.body.clone()) {
                Ok(id) => {
                    let sent = Sent {
                        slot: waiting.slot,
                        recipients_count: waiting.request.recipients.len(),
                    };
                    self.slots.insert(id, sent);
                }
                Err(NotReady::Credit | NotReady::InFlight | NotReady::Backlog) => {
                    self.waiting.push_front(waiting);
                    return Ok(());
                }
                Err(error) => return Err(error).context("the session takes no message"),
            }
        }
        Ok(())
    }

    fn on_event(&mut self, event: Event, answers: &mut Vec<Answer>) -> anyhow::Result<()> {
        match event {
            Event::Connected => self.connected = true,
            Event::Delivered { id, replies } => {
                let sent = self.take(id)?;
                answers.extend(replies.iter().enumerate().map(|(recipient, reply)| Answer {
                    slot: sent.slot,
                    recipient,
                    outcome: outcome(reply),
                }));
            }
            Event::Failed { id, status, text } => {
                let sent = self.take(id)?;
                let refused = Outcome::Refused(format!("{} {text}", status.name()));
                answers.extend((0..sent.recipients_count).map(|recipient| Answer {
                    slot: sent.slot,
                    recipient,
                    outcome: refused.clone(),
                }));
            }
            Event::GoAway { status, text } => bail!("the server says {}: {text}", status.name()),
            other => bail!("an answer to nothing that was asked: {other:?}"),
        }
        Ok(())
    }

    fn take(&mut self, id: RequestId) -> anyhow::Result<Sent> {
        self.slots
            .remove(&id)
            .with_context(|| format!("an answer to request {id:?}"))
    }
}

fn outcome(reply: &DeliverReply) -> Outcome {
    match reply.status {
        Status::Ok | Status::OkHeld => Outcome::Stored,
        Status::OkDuplicate => Outcome::Duplicate,
        status => Outcome::Refused(format!("{} {}", status.name(), printable(&reply.text))),
    }
}

impl Session for NodeSession {
    fn room(&self) -> usize {
        if self.connected && self.waiting.is_empty() {
            usize::MAX
        } else {
            0
        }
    }

    fn submit(&mut self, mail: &Mail<'_>) -> anyhow::Result<()> {
        let recipient = |&user: &usize| DeliverRecipient {
            address: mail.users.shared_name(user),
            mailbox: None,
        };
        self.waiting.push_back(Waiting {
            slot: mail.slot,
            request: DeliverRequest {
                sender: Bytes::from_static(SENDER.as_bytes()),
                recipients: mail.recipients.iter().map(recipient).collect(),
                queue_id: Bytes::new(),
                deadline_ms: 0,
                size_hint: u64::try_from(mail.bytes.len()).ok(),
            },
            body: mail.bytes.clone(),
        });
        self.send_waiting()
    }

    fn receive(&mut self, input: &[u8], answers: &mut Vec<Answer>) -> anyhow::Result<()> {
        let taken = self.session.handle_input(Bytes::copy_from_slice(input));
        while let Some(event) = self.session.poll_event() {
            self.on_event(event, answers)?;
        }
        taken.context("the server broke the protocol")?;
        self.send_waiting()
    }

    fn transmit(&mut self) -> Option<Bytes> {
        self.session.poll_transmit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Users;
    use ringpost_netproto::session::server::{self, RecipientReply, ServerSession};

    struct Pair {
        client: NodeSession,
        server: ServerSession,
    }

    impl Pair {
        fn new() -> Self {
            Self {
                client: NodeSession::new(),
                server: ServerSession::new(Config::new(Hello::new(Role::Node))),
            }
        }

        /// Moves bytes both ways until nothing moves; the server answers by `reply`.
        fn run(&mut self, reply: impl Fn(usize) -> Vec<RecipientReply>) -> Vec<Answer> {
            let mut answers = Vec::new();
            let mut counts = BTreeMap::new();
            loop {
                let mut moved = false;
                while let Some(bytes) = self.client.transmit() {
                    self.server.handle_input(bytes).unwrap();
                    moved = true;
                    while let Some(event) = self.server.poll_event() {
                        match event {
                            server::Event::DeliverBegin { id, request } => {
                                counts.insert(id, request.recipients.len());
                            }
                            server::Event::DeliverEnd { id } => {
                                self.server.deliver_reply(id, &reply(counts[&id]));
                            }
                            _ => {}
                        }
                    }
                }
                while let Some(bytes) = self.server.poll_transmit() {
                    self.client.receive(&bytes, &mut answers).unwrap();
                    moved = true;
                }
                if !moved {
                    return answers;
                }
            }
        }

        fn submit(&mut self, slot: usize, size: usize, recipients: &[usize]) {
            let users = Users::new("u", 9);
            let bytes = Bytes::from(vec![b'x'; size]);
            let mail = Mail {
                slot,
                bytes,
                recipients,
                users: &users,
            };
            self.client.submit(&mail).unwrap();
        }
    }

    fn all_ok(count: usize) -> Vec<RecipientReply> {
        vec![RecipientReply::new(Status::Ok); count]
    }

    #[test]
    fn there_is_no_room_before_the_handshake() {
        let mut pair = Pair::new();
        assert_eq!(pair.client.room(), 0);
        assert!(pair.run(all_ok).is_empty());
        assert!(pair.client.room() > 0);
    }

    #[test]
    fn recipients_are_answered_one_by_one() {
        let mut pair = Pair::new();
        pair.run(all_ok);
        pair.submit(7, 100, &[1, 2, 3]);
        let answers = pair.run(|count| {
            let mut replies = all_ok(count);
            replies[1] = RecipientReply::new(Status::OkDuplicate);
            replies[2].status = Status::NoUser;
            replies[2].text = Bytes::from_static(b"who?");
            replies
        });
        let outcomes: Vec<_> = answers
            .iter()
            .map(|answer| answer.outcome.clone())
            .collect();
        let refused = Outcome::Refused("NO_USER who?".to_owned());
        assert_eq!(outcomes, [Outcome::Stored, Outcome::Duplicate, refused]);
        assert!(answers.iter().all(|answer| answer.slot == 7));
    }

    #[test]
    fn messages_beyond_the_credit_wait_and_all_are_answered() {
        let mut pair = Pair::new();
        pair.run(all_ok);
        let mut submitted = 0;
        while pair.client.room() > 0 && submitted < 100 {
            pair.submit(submitted, 256 << 10, &[1]);
            submitted += 1;
        }
        assert!(submitted < 100, "8 MiB of credit end somewhere");
        let mut slots: Vec<_> = pair.run(all_ok).iter().map(|answer| answer.slot).collect();
        slots.sort_unstable();
        assert_eq!(slots, (0..submitted).collect::<Vec<_>>());
        assert!(pair.client.room() > 0);
    }
}
