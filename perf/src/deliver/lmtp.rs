//! LMTP (RFC 2033) from the client's side, with PIPELINING: the envelope and DATA go out in one
//! write, then the message, then one reply per recipient. One message at a time per connection.
//! SMTP (RFC 5321) is the same with EHLO and one reply for all recipients, for an MTA in front.

use std::collections::VecDeque;
use std::fmt::Write as _;

use anyhow::{bail, ensure};
use bytes::Bytes;

use super::session::{Answer, Mail, Outcome, Session};
use crate::workload::SENDER;

/// A reply line is shorter (RFC 5321 4.5.3.1.5 has 512; ours carry a sentence).
const LINE_BYTES_MAX: usize = 4096;

/// How the message travels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Transfer {
    /// DATA, 354, the message, a dot: what Postfix does.
    Data,
    /// BDAT LAST (RFC 3030) in the same write as the envelope: one round trip.
    Bdat,
}

/// Which of the two is spoken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Dialect {
    /// LHLO, a reply for each recipient.
    Lmtp,
    /// EHLO, one reply for all.
    Smtp,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Greeting,
    Hello,
    Idle,
    /// The reply to MAIL is next.
    Mail,
    /// The reply to this RCPT is next.
    Rcpt(usize),
    /// The 354 is next.
    Data,
    /// The reply for this position among the accepted recipients is next.
    Dot(usize),
}

/// A connection to an LMTP server.
#[derive(Debug)]
pub(crate) struct LmtpSession {
    transfer: Transfer,
    dialect: Dialect,
    state: State,
    line: Vec<u8>,
    queue: VecDeque<Bytes>,
    slot: usize,
    recipients_count: usize,
    /// Positions whose RCPT was taken.
    accepted: Vec<usize>,
    /// The message, until the 354.
    message: Bytes,
    /// Why MAIL was refused.
    mail_refused: Option<String>,
    pipelining: bool,
    /// Whether MAIL may say how long the message is (RFC 1870): not every server knows it.
    sizes: bool,
}

impl LmtpSession {
    /// Before the server's greeting.
    pub(crate) fn new(transfer: Transfer) -> Self {
        Self::speaking(Dialect::Lmtp, transfer)
    }

    /// The same for a server of either kind.
    pub(crate) fn speaking(dialect: Dialect, transfer: Transfer) -> Self {
        Self {
            transfer,
            dialect,
            state: State::Greeting,
            line: Vec::new(),
            queue: VecDeque::new(),
            slot: 0,
            recipients_count: 0,
            accepted: Vec::new(),
            message: Bytes::new(),
            mail_refused: None,
            pipelining: false,
            sizes: false,
        }
    }

    fn on_line(&mut self, line: &str, answers: &mut Vec<Answer>) -> anyhow::Result<()> {
        let code: u16 = match line.get(..3).map(str::parse) {
            Some(Ok(code)) => code,
            _ => bail!("not an LMTP reply: {line:?}"),
        };
        let last = line.as_bytes().get(3) != Some(&b'-');
        if self.state == State::Hello {
            let word = line.get(4..).unwrap_or_default();
            self.pipelining |= word == "PIPELINING";
            self.sizes |= word.split(' ').next() == Some("SIZE");
        }
        if !last {
            return Ok(());
        }
        ensure!(code != 421, "the server closes: {line}");
        let good = (200..300).contains(&code);
        match self.state {
            State::Greeting => {
                ensure!(code == 220, "greeted with: {line}");
                let hello: &[u8] = match self.dialect {
                    Dialect::Lmtp => b"LHLO perf.test\r\n",
                    Dialect::Smtp => b"EHLO perf.test\r\n",
                };
                self.queue.push_back(Bytes::from_static(hello));
                self.state = State::Hello;
            }
            State::Hello => {
                ensure!(good, "the hello was answered: {line}");
                ensure!(self.pipelining, "the server does not offer PIPELINING");
                self.state = State::Idle;
            }
            State::Idle => bail!("a reply to nothing: {line}"),
            State::Mail => {
                self.mail_refused = (!good).then(|| line.to_owned());
                self.state = State::Rcpt(0);
            }
            State::Rcpt(position) => self.on_rcpt(position, good, line, answers),
            State::Data => self.on_data(code, line, answers)?,
            State::Dot(position) => self.on_dot(position, good, line, answers),
        }
        Ok(())
    }

    fn on_dot(&mut self, position: usize, good: bool, line: &str, answers: &mut Vec<Answer>) {
        let replied = match self.dialect {
            Dialect::Lmtp => position + 1,
            Dialect::Smtp => self.accepted.len(),
        };
        // With BDAT and no recipient taken there is one reply for nobody (503).
        for &recipient in self.accepted.get(position..replied).unwrap_or_default() {
            let outcome = if good {
                stored(line)
            } else {
                Outcome::Refused(line.to_owned())
            };
            self.answer(recipient, outcome, answers);
        }
        self.state = if replied < self.accepted.len() {
            State::Dot(replied)
        } else {
            State::Idle
        };
    }

    fn on_rcpt(&mut self, position: usize, good: bool, line: &str, answers: &mut Vec<Answer>) {
        if good {
            self.accepted.push(position);
        } else {
            // A refused MAIL makes every RCPT 503: its own words say more.
            let why = self.mail_refused.clone().unwrap_or_else(|| line.to_owned());
            self.answer(position, Outcome::Refused(why), answers);
        }
        self.state = match self.transfer {
            _ if position + 1 < self.recipients_count => State::Rcpt(position + 1),
            Transfer::Data => State::Data,
            Transfer::Bdat => State::Dot(0),
        };
    }

    fn on_data(&mut self, code: u16, line: &str, answers: &mut Vec<Answer>) -> anyhow::Result<()> {
        let message = std::mem::take(&mut self.message);
        if code == 354 {
            ensure!(
                !self.accepted.is_empty(),
                "354 without an accepted recipient"
            );
            self.queue.push_back(message);
            self.queue.push_back(Bytes::from_static(b".\r\n"));
            self.state = State::Dot(0);
        } else {
            for recipient in std::mem::take(&mut self.accepted) {
                self.answer(recipient, Outcome::Refused(line.to_owned()), answers);
            }
            self.state = State::Idle;
        }
        Ok(())
    }

    fn answer(&self, recipient: usize, outcome: Outcome, answers: &mut Vec<Answer>) {
        answers.push(Answer {
            slot: self.slot,
            recipient,
            outcome,
        });
    }
}

/// LMTP answers a duplicate like the first delivery; the daemon says so in the text.
fn stored(line: &str) -> Outcome {
    if line.to_ascii_lowercase().contains("duplicate") {
        Outcome::Duplicate
    } else {
        Outcome::Stored
    }
}

impl Session for LmtpSession {
    fn room(&self) -> usize {
        usize::from(self.state == State::Idle)
    }

    fn submit(&mut self, mail: &Mail<'_>) -> anyhow::Result<()> {
        ensure!(self.state == State::Idle, "a message is under way");
        let mut envelope = String::with_capacity(64 + 40 * mail.recipients.len());
        let size = mail.bytes.len();
        write!(envelope, "MAIL FROM:<{SENDER}>")?;
        if self.sizes {
            write!(envelope, " SIZE={size}")?;
        }
        envelope.push_str("\r\n");
        for &user in mail.recipients {
            write!(envelope, "RCPT TO:<{}>\r\n", mail.users.name(user))?;
        }
        match self.transfer {
            Transfer::Data => {
                envelope.push_str("DATA\r\n");
                self.message = mail.bytes.clone();
                self.queue.push_back(envelope.into());
            }
            Transfer::Bdat => {
                write!(envelope, "BDAT {size} LAST\r\n")?;
                self.queue.push_back(envelope.into());
                self.queue.push_back(mail.bytes.clone());
            }
        }
        self.slot = mail.slot;
        self.recipients_count = mail.recipients.len();
        self.accepted.clear();
        self.mail_refused = None;
        self.state = State::Mail;
        Ok(())
    }

    fn receive(&mut self, mut input: &[u8], answers: &mut Vec<Answer>) -> anyhow::Result<()> {
        while let Some(at) = input.iter().position(|&byte| byte == b'\n') {
            let (head, tail) = input.split_at(at);
            let mut line = std::mem::take(&mut self.line);
            line.extend_from_slice(head);
            let text = String::from_utf8_lossy(&line);
            self.on_line(text.trim_end(), answers)?;
            line.clear();
            self.line = line;
            input = tail.get(1..).unwrap_or_default();
        }
        ensure!(
            self.line.len() + input.len() <= LINE_BYTES_MAX,
            "a reply line without end"
        );
        self.line.extend_from_slice(input);
        Ok(())
    }

    fn transmit(&mut self) -> Option<Bytes> {
        self.queue.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Users;

    fn open(transfer: Transfer) -> LmtpSession {
        let mut session = LmtpSession::new(transfer);
        assert_eq!(session.room(), 0);
        assert!(say(&mut session, "220 hi\r\n").is_empty());
        assert_eq!(sent(&mut session), "LHLO perf.test\r\n");
        assert!(say(&mut session, "250-x\r\n250-PIPELINING\r\n250 SIZE 1000\r\n").is_empty());
        assert_eq!(session.room(), 1);
        session
    }

    fn say(session: &mut LmtpSession, text: &str) -> Vec<Answer> {
        let mut answers = Vec::new();
        // Byte by byte: every split point is met.
        for byte in text.as_bytes() {
            session
                .receive(std::slice::from_ref(byte), &mut answers)
                .unwrap();
        }
        answers
    }

    fn sent(session: &mut LmtpSession) -> String {
        let pieces = std::iter::from_fn(|| session.transmit());
        pieces
            .map(|piece| String::from_utf8(piece.to_vec()).unwrap())
            .collect()
    }

    fn submit(session: &mut LmtpSession, recipients: &[usize]) {
        let users = Users::new("u", 9);
        let bytes = Bytes::from_static(b"a: b\r\n\r\nx\r\n");
        let mail = Mail {
            slot: 5,
            bytes,
            recipients,
            users: &users,
        };
        session.submit(&mail).unwrap();
    }

    fn answer(recipient: usize, outcome: Outcome) -> Answer {
        Answer {
            slot: 5,
            recipient,
            outcome,
        }
    }

    #[test]
    fn envelope_and_data_go_out_at_once_and_each_recipient_is_answered() {
        let mut session = open(Transfer::Data);
        submit(&mut session, &[1, 2, 3]);
        assert_eq!(
            sent(&mut session),
            "MAIL FROM:<ada@example.net> SIZE=11\r\nRCPT TO:<u0000001>\r\n\
             RCPT TO:<u0000002>\r\nRCPT TO:<u0000003>\r\nDATA\r\n"
        );
        let refused = Outcome::Refused("550 5.1.1 who?".to_owned());
        assert_eq!(
            say(
                &mut session,
                "250 ok\r\n250 ok\r\n550 5.1.1 who?\r\n250 ok\r\n354 go\r\n"
            ),
            [answer(1, refused)]
        );
        assert_eq!(sent(&mut session), "a: b\r\n\r\nx\r\n.\r\n");
        assert_eq!(session.room(), 0);
        assert_eq!(
            say(&mut session, "250 2.0.0 ok\r\n250 2.0.0 duplicate\r\n"),
            [answer(0, Outcome::Stored), answer(2, Outcome::Duplicate)]
        );
        assert_eq!(session.room(), 1);
    }

    #[test]
    fn refused_mail_refuses_all_in_its_own_words() {
        let mut session = open(Transfer::Data);
        submit(&mut session, &[1, 2]);
        let answers = say(
            &mut session,
            "451 4.3.0 busy\r\n503 a\r\n503 b\r\n503 c\r\n",
        );
        let refused = || Outcome::Refused("451 4.3.0 busy".to_owned());
        assert_eq!(answers, [answer(0, refused()), answer(1, refused())]);
        assert_eq!(session.room(), 1);
    }

    #[test]
    fn smtp_has_one_reply_for_all_and_no_size_where_none_was_offered() {
        let mut session = LmtpSession::speaking(Dialect::Smtp, Transfer::Data);
        say(&mut session, "220 hi\r\n");
        assert_eq!(sent(&mut session), "EHLO perf.test\r\n");
        say(&mut session, "250-x\r\n250 PIPELINING\r\n");
        submit(&mut session, &[1, 2]);
        assert!(sent(&mut session).starts_with("MAIL FROM:<ada@example.net>\r\nRCPT"));
        say(&mut session, "250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n");
        sent(&mut session);
        assert_eq!(
            say(&mut session, "250 2.0.0 queued\r\n"),
            [answer(0, Outcome::Stored), answer(1, Outcome::Stored)]
        );
        assert_eq!(session.room(), 1);
    }

    #[test]
    fn bdat_needs_one_round_trip() {
        let mut session = open(Transfer::Bdat);
        submit(&mut session, &[4]);
        let text = sent(&mut session);
        assert!(
            text.ends_with("BDAT 11 LAST\r\na: b\r\n\r\nx\r\n"),
            "{text}"
        );
        let answers = say(&mut session, "250 a\r\n250 b\r\n250 c\r\n");
        assert_eq!(answers, [answer(0, Outcome::Stored)]);
        submit(&mut session, &[4]);
        let answers = say(&mut session, "250 a\r\n450 b\r\n503 c\r\n");
        assert_eq!(answers, [answer(0, Outcome::Refused("450 b".to_owned()))]);
        assert_eq!(session.room(), 1);
    }

    #[test]
    fn nonsense_ends_the_connection() {
        for (lines, why) in [
            ("554 go away\r\n", "greeted"),
            ("220 a\r\n250 SIZE\r\n", "PIPELINING"),
            ("220 a\r\n421 4.3.2 bye\r\n", "closes"),
            ("hello\r\n", "not an LMTP reply"),
        ] {
            let mut session = LmtpSession::new(Transfer::Data);
            let error = session
                .receive(lines.as_bytes(), &mut Vec::new())
                .unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
        let mut session = open(Transfer::Data);
        assert!(session.receive(b"250 why\r\n", &mut Vec::new()).is_err());
        assert!(session.receive(&[b'2'; 5000], &mut Vec::new()).is_err());
    }
}
