//! `ringpost-deliver -l`: LMTP on standard input and output, each message passed on over the node
//! protocol, each recipient with a reply of its own (RFC 2033 4.2).
//!
//! Whether an account exists is known only to the node, which is asked when the message is there: so
//! every well-formed recipient is accepted at RCPT and an unknown one is refused after the dot. The
//! same goes for the size. A node that does not answer is 451 for all recipients, and the
//! conversation goes on.

use std::io::{self, Write};
use std::time::Duration;

use bytes::Bytes;
use ringpost_netproto::frame::Status;
use ringpost_netproto::limits::RECIPIENTS_MAX;
use ringpost_netproto::message::deliver::RecipientReply;

use super::options::Envelope;
use super::send::{Limits, Outgoing};
use super::source::Source;
use super::{CONNECT, guard};
use crate::client::{Address, Deadline, plain};
use crate::exit::Code;
use crate::lmtp::{Event, LmtpConfig, Reply, Session};

/// How long the MTA may be silent (RFC 5321 4.5.3.2.7).
const IDLE: Duration = Duration::from_mins(5);

/// The largest limit that can be configured. The node's own is applied by the node.
const MESSAGE_BYTES_MAX: u64 = (1 << 30) - 1;

/// As at the daemon's own door (mail.md 4).
const BAD_COMMANDS_MAX: u32 = 20;

/// Says what the conversation ended with, for standard error.
pub type Ended = Result<(), (Code, String)>;

/// Holds the conversation to its end. Standard output is `out`.
pub fn converse(
    source: &mut Source,
    out: &mut dyn Write,
    address: &Address,
    patience: Duration,
) -> Ended {
    let mut conversation = Conversation {
        session: Session::new(LmtpConfig {
            hostname: hostname(),
            message_bytes_max: MESSAGE_BYTES_MAX,
            recipients_max: RECIPIENTS_MAX,
            bad_commands_max: BAD_COMMANDS_MAX,
        }),
        address,
        patience,
        recipients: Vec::new(),
        message: Message::None,
    };
    let temporary = |text: String| (Code::TempFail, format!("4.3.0 {text}"));
    loop {
        // For a standard output that nobody reads.
        guard::arm_alarm(IDLE.saturating_add(patience));
        conversation
            .flush(out)
            .map_err(|error| temporary(format!("standard output: {}", plain(&error))))?;
        if conversation.session.is_closed() {
            return Ok(());
        }
        match source.next(Deadline::after(IDLE)) {
            Ok(Some(piece)) => conversation
                .take(&piece, out)
                .map_err(|error| temporary(format!("standard output: {}", plain(&error))))?,
            Ok(None) if conversation.session.is_idle() => return Ok(()),
            Ok(None) => {
                return Err(temporary(
                    "standard input ended inside a transaction".into(),
                ));
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                conversation.session.close(&Reply::idle());
            }
            Err(error) => return Err(temporary(format!("standard input: {}", plain(&error)))),
        }
    }
}

/// The name in the greeting; nobody relies on it.
fn hostname() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| "localhost".to_owned())
}

struct Conversation<'a> {
    session: Session,
    address: &'a Address,
    patience: Duration,
    /// Accepted, in their order.
    recipients: Vec<Vec<u8>>,
    message: Message,
}

/// The message that is being received.
enum Message {
    None,
    Outgoing(Box<Outgoing>),
    /// Its end is known already: what comes is dropped.
    Answered(Vec<RecipientReply>),
    /// The same for all recipients.
    Failed(Status),
}

impl Conversation<'_> {
    fn flush(&mut self, out: &mut dyn Write) -> io::Result<()> {
        while let Some(bytes) = self.session.poll_transmit() {
            out.write_all(&bytes)?;
        }
        out.flush()
    }

    /// Lets the session go over `piece`, and answers it at once.
    fn take(&mut self, piece: &Bytes, out: &mut dyn Write) -> io::Result<()> {
        let mut input: &[u8] = piece;
        while let Some(event) = self.session.next_event(&mut input) {
            match event {
                Event::Rcpt { index, address } => {
                    self.recipients.truncate(index);
                    self.recipients.push(address.to_string().into_bytes());
                    self.session.rcpt_reply(&Reply::recipient_ok());
                }
                Event::MessageBegin { sender, .. } => {
                    self.message = Message::Outgoing(Box::new(Outgoing::new(
                        Envelope {
                            recipients: self.recipients.clone(),
                            sender: sender.to_vec(),
                            mailbox: None,
                            queue_id: Vec::new(),
                        },
                        self.address.clone(),
                    )));
                }
                Event::Data(data) => {
                    let data = Bytes::copy_from_slice(data);
                    self.data(&data);
                }
                Event::MessageEnd => {
                    // What waits to be said must not wait for the node.
                    self.flush(out)?;
                    self.end();
                }
                Event::MessageAbort => self.message = Message::None,
                Event::Quit => {}
            }
        }
        Ok(())
    }

    fn data(&mut self, data: &Bytes) {
        let limits = self.limits();
        if let Message::Outgoing(outgoing) = &mut self.message {
            match outgoing.push(data, limits) {
                Ok(None) => {}
                Ok(Some(replies)) => self.message = Message::Answered(replies),
                Err(error) => self.message = Message::Failed(error.status()),
            }
        }
    }

    fn end(&mut self) {
        let limits = self.limits();
        let replies = match std::mem::replace(&mut self.message, Message::None) {
            Message::Outgoing(outgoing) => outgoing.finish(limits).map_err(|error| error.status()),
            Message::Answered(replies) => Ok(replies),
            Message::Failed(status) => Err(status),
            Message::None => Err(Status::Internal),
        };
        for index in 0..self.recipients.len() {
            let reply = match &replies {
                Ok(replies) => replies
                    .get(index)
                    .map_or_else(|| Reply::of(Status::Internal), reply),
                Err(status) => Reply::of(*status),
            };
            self.session.message_reply(index, reply);
        }
        self.recipients.clear();
    }

    fn limits(&self) -> Limits {
        Limits {
            delivery: Deadline::after(self.patience),
            connect: Deadline::after(CONNECT.min(self.patience / 2)),
        }
    }
}

/// As the daemon's own door would say it.
fn reply(reply: &RecipientReply) -> Reply {
    match (reply.status, reply.guid) {
        (Status::Ok, Some(guid)) => Reply::stored(guid),
        (Status::OkDuplicate, Some(guid)) => Reply::duplicate(guid),
        (status, _) => Reply::of(status),
    }
}
