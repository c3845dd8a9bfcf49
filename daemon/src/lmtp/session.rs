//! One LMTP connection (RFC 2033, with PIPELINING, ENHANCEDSTATUSCODES, 8BITMIME, SIZE and CHUNKING).
//!
//! The caller hands in what it read and gets events; where an event asks something, the session
//! takes no more input until it is answered, so pipelined commands queue in the caller's buffer and
//! replies cannot overtake each other. After the dot there is one reply per accepted RCPT, in the
//! order of the RCPTs, each sent as soon as it and those before it are known. Timeouts and the
//! deadline of a delivery are the caller's.

use bytes::Bytes;
use memchr::memchr;

use super::command::{self, Command, Last};
use super::data::{Dots, Piece};
use super::reply::Reply;
use crate::address::Address;

/// A command line with its line end; RFC 5321 4.5.3.1.4 asks for 512 and more with extensions.
const LINE_BYTES_MAX: usize = 4_096;

/// What a session needs to know.
#[derive(Clone, Debug)]
pub struct LmtpConfig {
    /// How the node calls itself.
    pub hostname: String,
    /// Announced by SIZE, and compared with a client's announcement. The count that holds is the
    /// caller's, who sees the bytes.
    pub message_bytes_max: u64,
    /// Accepted recipients of one message.
    pub recipients_max: usize,
    /// So many bad commands end the connection.
    pub bad_commands_max: u32,
}

/// What a client says of its message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BodyType {
    /// Nothing, or BODY=7BIT. What comes is stored as it is all the same.
    SevenBit,
    /// BODY=8BITMIME (RFC 6152).
    EightBitMime,
}

/// What the client wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event<'a> {
    /// Does this recipient exist, and is there room? Answer by [`Session::rcpt_reply`].
    Rcpt {
        /// Which of the accepted recipients it will be, from 0, if it is accepted.
        index: usize,
        /// A well-formed address.
        address: Address,
    },
    /// A message begins, for at least one accepted recipient.
    MessageBegin {
        /// Envelope sender as it came, without brackets; empty for the null sender.
        sender: Bytes,
        /// Its announced size in bytes, at most `message_bytes_max`.
        size: Option<u64>,
        /// As announced.
        body: BodyType,
    },
    /// Its next bytes.
    Data(&'a [u8]),
    /// It is complete. Answer each accepted recipient by [`Session::message_reply`].
    MessageEnd,
    /// The transaction is over without a message: forget the accepted recipients, and what came of
    /// the message if it has begun. Nothing is to be answered.
    MessageAbort,
    /// Send what there is to send, then close.
    Quit,
}

/// What is being waited for, or read.
#[derive(Debug)]
enum At {
    /// Command lines.
    Command,
    /// The answer to a recipient.
    RcptReply,
    /// A message behind DATA.
    Data(Dots),
    /// The bytes of a BDAT; nobody wants them if there is no recipient.
    Chunk { left: u64, len: u64, last: Last },
    /// The answers to a message.
    MessageReplies,
    /// The end of the connection.
    Closed,
}

/// Mail between MAIL and its end.
#[derive(Debug)]
struct Transaction {
    sender: Bytes,
    size: Option<u64>,
    body: BodyType,
    /// Accepted recipients.
    recipients_count: usize,
    /// A first BDAT came.
    begun: Begun,
}

/// Whether a message has begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Begun {
    Yes,
    No,
}

/// The server's end of one connection.
#[derive(Debug)]
pub struct Session {
    config: LmtpConfig,
    at: At,
    /// A command line that is not complete.
    line: Vec<u8>,
    /// The line is too long: what comes up to its end is dropped.
    skipping: bool,
    greeted: bool,
    transaction: Option<Transaction>,
    /// Answers to the message, by recipient; those in front of `replies_sent` are sent.
    replies: Vec<Option<Reply>>,
    replies_sent: usize,
    bad_commands_count: u32,
    out: Vec<u8>,
}

/// What a step came to.
enum Step<'a> {
    Event(Event<'a>),
    /// Look again.
    On,
    /// More input, or an answer, is needed.
    Wait,
}

const OK: Reply = Reply::new(250, "2.0.0", "ok");
const SENDER_OK: Reply = Reply::new(250, "2.1.0", "sender ok");
const BYE: Reply = Reply::new(221, "2.0.0", "bye");
const VRFY: Reply = Reply::new(252, "2.1.5", "send the mail, RCPT tells");
const HELP: Reply = Reply::new(214, "2.0.0", "see RFC 2033");
const LONG_LINE: Reply = Reply::new(500, "5.5.2", "line too long");
const SAY_LHLO: Reply = Reply::new(503, "5.5.1", "say LHLO first");
const NESTED_MAIL: Reply = Reply::new(503, "5.5.1", "a transaction is open");
const NO_MAIL: Reply = Reply::new(503, "5.5.1", "say MAIL first");
const NO_RCPT: Reply = Reply::new(503, "5.5.1", "no recipient was accepted");
const IN_BDAT: Reply = Reply::new(
    503,
    "5.5.1",
    "only BDAT, NOOP, RSET and QUIT inside a message",
);
const TOO_MANY_RCPT: Reply = Reply::new(452, "4.5.3", "too many recipients in one message");
const TOO_LARGE: Reply = Reply::new(552, "5.3.4", "the message is larger than the limit");
const TOO_MANY_BAD: Reply = Reply::new(421, "4.7.0", "too many bad commands, closing");

impl Session {
    /// A connection that was accepted: the greeting is ready to be sent.
    pub fn new(config: LmtpConfig) -> Self {
        let out = format!("220 {} LMTP ringpost\r\n", config.hostname).into_bytes();
        Self {
            config,
            at: At::Command,
            line: Vec::new(),
            skipping: false,
            greeted: false,
            transaction: None,
            replies: Vec::new(),
            replies_sent: 0,
            bad_commands_count: 0,
            out,
        }
    }

    /// Takes bytes off the front of `input` up to the next event. `None`: all are taken, or the
    /// session waits for an answer ([`Session::takes_input`]); what is left of `input` then is to be
    /// handed in again, with what is read later behind it.
    pub fn next_event<'a>(&mut self, input: &mut &'a [u8]) -> Option<Event<'a>> {
        loop {
            let step = match &mut self.at {
                At::RcptReply | At::MessageReplies | At::Closed => Step::Wait,
                At::Command => self.command_bytes(input),
                At::Data(dots) => match dots.next(input) {
                    None => Step::Wait,
                    Some(Piece::Content(content)) => Step::Event(Event::Data(content)),
                    Some(Piece::End) => self.message_end(),
                },
                At::Chunk { .. } => self.chunk_bytes(input),
            };
            match step {
                Step::Event(event) => return Some(event),
                Step::On => {}
                Step::Wait => return None,
            }
        }
    }

    /// Whether more input would get anywhere: `false` while an answer is owed by the caller, and
    /// after the end.
    pub fn takes_input(&self) -> bool {
        matches!(self.at, At::Command | At::Data(_) | At::Chunk { .. })
    }

    /// Whether the connection can be closed without harm: no transaction is open.
    pub fn is_idle(&self) -> bool {
        self.transaction.is_none() && matches!(self.at, At::Command)
    }

    /// Whether the last reply is written; close when it is sent.
    pub fn is_closed(&self) -> bool {
        matches!(self.at, At::Closed)
    }

    /// Envelope sender of the open transaction; empty for the null sender.
    pub fn sender(&self) -> &[u8] {
        self.transaction.as_ref().map_or(&[], |mail| &mail.sender)
    }

    /// Announced size of the open transaction's message in bytes.
    pub fn size_hint(&self) -> Option<u64> {
        self.transaction.as_ref().and_then(|mail| mail.size)
    }

    /// Answers the last [`Event::Rcpt`].
    pub fn rcpt_reply(&mut self, reply: &Reply) {
        assert!(
            matches!(self.at, At::RcptReply),
            "no recipient was asked about"
        );
        self.at = At::Command;
        if let Some(mail) = &mut self.transaction
            && reply.is_positive()
        {
            mail.recipients_count += 1;
        }
        reply.encode(&mut self.out);
    }

    /// Answers for accepted recipient `index` after [`Event::MessageEnd`]. The first answer counts;
    /// later ones, and those for a message that is answered, are ignored.
    pub fn message_reply(&mut self, index: usize, reply: Reply) {
        let open = matches!(self.at, At::MessageReplies);
        let Some(slot) = self
            .replies
            .get_mut(index)
            .filter(|slot| open && slot.is_none())
        else {
            return;
        };
        *slot = Some(reply);
        while let Some(Some(reply)) = self.replies.get(self.replies_sent) {
            reply.encode(&mut self.out);
            self.replies_sent += 1;
        }
        if self.replies_sent == self.replies.len() {
            self.at = At::Command;
            self.bad_commands_count = 0;
        }
    }

    /// Ends the connection with a 421, for example [`Reply::idle`].
    pub fn close(&mut self, reply: &Reply) {
        if !self.is_closed() {
            reply.encode(&mut self.out);
            self.at = At::Closed;
        }
    }

    /// Bytes to be sent, all that there are.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        (!self.out.is_empty()).then(|| Bytes::from(std::mem::take(&mut self.out)))
    }

    /// Collects a line and does what it says.
    fn command_bytes<'a>(&mut self, input: &mut &'a [u8]) -> Step<'a> {
        let Some(at) = memchr(b'\n', input) else {
            if self.line.len() + input.len() >= LINE_BYTES_MAX {
                self.skipping = true;
                self.line.clear();
            }
            if !self.skipping {
                self.line.extend_from_slice(input);
            }
            *input = &[];
            return Step::Wait;
        };
        let (end, behind) = input.split_at(at);
        *input = behind.get(1..).unwrap_or_default();
        let too_long = self.line.len() + end.len() >= LINE_BYTES_MAX;
        if std::mem::take(&mut self.skipping) || too_long {
            self.line.clear();
            return self.bad(&LONG_LINE);
        }
        if self.line.is_empty() {
            return self.line(end);
        }
        let mut line = std::mem::take(&mut self.line);
        line.extend_from_slice(end);
        let step = self.line(&line);
        line.clear();
        self.line = line;
        step
    }

    /// One line without its LF.
    fn line<'a>(&mut self, line: &[u8]) -> Step<'a> {
        let command = match command::parse(line.strip_suffix(b"\r").unwrap_or(line)) {
            Ok(command) => command,
            Err(reply) => return self.bad(&reply),
        };
        let in_message = self
            .transaction
            .as_ref()
            .is_some_and(|mail| mail.begun == Begun::Yes);
        match command {
            Command::Noop => self.say(&OK),
            Command::Vrfy => self.say(&VRFY),
            Command::Help => self.say(&HELP),
            Command::Quit => {
                BYE.encode(&mut self.out);
                self.at = At::Closed;
                Step::Event(Event::Quit)
            }
            Command::Rset => {
                OK.encode(&mut self.out);
                self.reset()
            }
            Command::Lhlo => self.lhlo(),
            Command::Bdat { len, last } => self.bdat(len, last),
            _ if !self.greeted => self.bad(&SAY_LHLO),
            _ if in_message => self.bad(&IN_BDAT),
            Command::Mail { sender, size, body } => self.mail(sender, size, body),
            Command::Rcpt(address) => self.rcpt(address),
            Command::Data => self.data(),
        }
    }

    fn say<'a>(&mut self, reply: &Reply) -> Step<'a> {
        reply.encode(&mut self.out);
        Step::On
    }

    /// Answers a command that makes no sense; too many of them end the connection.
    fn bad<'a>(&mut self, reply: &Reply) -> Step<'a> {
        self.bad_commands_count += 1;
        if self.bad_commands_count < self.config.bad_commands_max {
            return self.say(reply);
        }
        TOO_MANY_BAD.encode(&mut self.out);
        self.at = At::Closed;
        Step::Event(Event::Quit)
    }

    /// Forgets the transaction.
    fn reset<'a>(&mut self) -> Step<'a> {
        match self.transaction.take() {
            Some(mail) if mail.recipients_count > 0 => Step::Event(Event::MessageAbort),
            _ => Step::On,
        }
    }

    fn lhlo<'a>(&mut self) -> Step<'a> {
        self.greeted = true;
        let lines = format!(
            "250-{}\r\n250-PIPELINING\r\n250-ENHANCEDSTATUSCODES\r\n250-8BITMIME\r\n\
             250-SIZE {}\r\n250 CHUNKING\r\n",
            self.config.hostname, self.config.message_bytes_max
        );
        self.out.extend_from_slice(lines.as_bytes());
        self.reset()
    }

    fn mail<'a>(&mut self, sender: &[u8], size: Option<u64>, body: BodyType) -> Step<'a> {
        if self.transaction.is_some() {
            return self.bad(&NESTED_MAIL);
        }
        if size.is_some_and(|size| size > self.config.message_bytes_max) {
            return self.say(&TOO_LARGE);
        }
        self.transaction = Some(Transaction {
            sender: Bytes::copy_from_slice(sender),
            size,
            body,
            recipients_count: 0,
            begun: Begun::No,
        });
        self.say(&SENDER_OK)
    }

    fn rcpt<'a>(&mut self, address: Address) -> Step<'a> {
        let Some(mail) = &self.transaction else {
            return self.bad(&NO_MAIL);
        };
        if mail.recipients_count >= self.config.recipients_max {
            return self.say(&TOO_MANY_RCPT);
        }
        let index = mail.recipients_count;
        self.at = At::RcptReply;
        Step::Event(Event::Rcpt { index, address })
    }

    fn data<'a>(&mut self) -> Step<'a> {
        match &mut self.transaction {
            None => self.bad(&NO_MAIL),
            Some(mail) if mail.recipients_count == 0 => self.bad(&NO_RCPT),
            Some(mail) => {
                self.out.extend_from_slice(b"354 end with CRLF.CRLF\r\n");
                self.at = At::Data(Dots::LineStart);
                Step::Event(mail.begin())
            }
        }
    }

    /// The bytes of a chunk follow whatever the reply will be (RFC 3030 4.2).
    fn bdat<'a>(&mut self, len: u64, last: Last) -> Step<'a> {
        self.at = At::Chunk {
            left: len,
            len,
            last,
        };
        match &mut self.transaction {
            Some(mail) if mail.recipients_count > 0 && mail.begun == Begun::No => {
                Step::Event(mail.begin())
            }
            _ => Step::On,
        }
    }

    fn chunk_bytes<'a>(&mut self, input: &mut &'a [u8]) -> Step<'a> {
        let At::Chunk { left, len, last } = &mut self.at else {
            return Step::Wait;
        };
        let (len, last) = (*len, *last);
        let wanted = self
            .transaction
            .as_ref()
            .is_some_and(|mail| mail.begun == Begun::Yes);
        if *left > 0 {
            let here = usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
            let (content, behind) = input.split_at(here);
            *input = behind;
            *left -= u64::try_from(here).expect("usize has at most 64 bits");
            return match (content.is_empty(), wanted) {
                (true, _) => Step::Wait,
                (false, true) => Step::Event(Event::Data(content)),
                (false, false) => Step::On,
            };
        }
        match (wanted, last) {
            (true, Last::Yes) => self.message_end(),
            (true, Last::No) => {
                self.at = At::Command;
                let text = format!("250 2.0.0 {len} bytes taken\r\n");
                self.out.extend_from_slice(text.as_bytes());
                Step::On
            }
            // One reply per accepted recipient: none (RFC 2033 4.3). The transaction is over.
            (false, Last::Yes) if self.transaction.is_some() => {
                self.at = At::Command;
                self.reset()
            }
            (false, _) => {
                self.at = At::Command;
                let named = self.transaction.is_some();
                self.bad(&if named { NO_RCPT } else { NO_MAIL })
            }
        }
    }

    fn message_end<'a>(&mut self) -> Step<'a> {
        let mail = self.transaction.take();
        let count = mail.map_or(0, |mail| mail.recipients_count);
        self.replies.clear();
        self.replies.resize(count, None);
        self.replies_sent = 0;
        self.at = At::MessageReplies;
        Step::Event(Event::MessageEnd)
    }
}

impl Transaction {
    fn begin<'a>(&mut self) -> Event<'a> {
        self.begun = Begun::Yes;
        Event::MessageBegin {
            sender: self.sender.clone(),
            size: self.size,
            body: self.body,
        }
    }
}

#[cfg(test)]
mod tests;
