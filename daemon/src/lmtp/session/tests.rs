//! Transcripts: what a client says, what it is answered, what the caller learns; in pieces of any
//! size the same.
use proptest::prelude::*;
use ringpost_netproto::frame::Status;
use ringpost_netproto::id::Guid;

use super::*;

fn config() -> LmtpConfig {
    LmtpConfig {
        hostname: "mx.example.test".to_owned(),
        message_bytes_max: 1_000,
        recipients_max: 3,
        bad_commands_max: 5,
    }
}

/// A caller that takes everybody but `no`, stores for everybody but `busy`, answers recipients of a
/// message last to first, and writes down what it learns.
struct Caller {
    session: Session,
    /// Answers to come for the message, by accepted recipient.
    recipients: Vec<Reply>,
    /// What a client would have read.
    sent: Vec<u8>,
    learnt: Vec<String>,
    message: Vec<u8>,
}

impl Caller {
    fn new() -> Self {
        let mut caller = Self {
            session: Session::new(config()),
            recipients: Vec::new(),
            sent: Vec::new(),
            learnt: Vec::new(),
            message: Vec::new(),
        };
        caller.push(b"");
        caller
    }

    /// Hands over one piece; keeps nothing back, since this caller answers at once.
    fn push(&mut self, piece: &[u8]) {
        let mut input = piece;
        loop {
            while let Some(event) = self.session.next_event(&mut input) {
                self.event(&event);
            }
            if let Some(bytes) = self.session.poll_transmit() {
                self.sent.extend_from_slice(&bytes);
            }
            if input.is_empty() || self.session.is_closed() {
                return;
            }
            assert!(
                self.session.takes_input(),
                "every event is answered at once"
            );
        }
    }

    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Rcpt { index, address } => {
                assert_eq!(*index, self.recipients.len());
                let (at_rcpt, at_end) = match address.local() {
                    b"no" => (Reply::of(Status::NoUser), None),
                    b"busy" => (Reply::recipient_ok(), Some(Reply::of(Status::Busy))),
                    _ => {
                        let stored = Reply::stored(Guid::new([1; 16]));
                        (Reply::recipient_ok(), Some(stored))
                    }
                };
                self.session.rcpt_reply(&at_rcpt);
                self.recipients.extend(at_end);
            }
            Event::MessageBegin { sender, size, body } => {
                let sender = String::from_utf8_lossy(sender).into_owned();
                self.learnt
                    .push(format!("from <{sender}> {size:?} {body:?}"));
            }
            Event::Data(data) => self.message.extend_from_slice(data),
            Event::MessageEnd => {
                let message = std::mem::take(&mut self.message);
                self.learnt.push(message.escape_ascii().to_string());
                for (index, reply) in self.recipients.drain(..).enumerate().rev() {
                    self.session.message_reply(index, reply);
                }
            }
            Event::MessageAbort => {
                self.message.clear();
                self.recipients.clear();
                self.learnt.push("abort".to_owned());
            }
            Event::Quit => self.learnt.push("quit".to_owned()),
        }
    }

    /// The codes of the replies, continuation lines left out.
    fn codes(&self) -> String {
        let text = String::from_utf8(self.sent.clone()).expect("replies are ASCII");
        assert!(text.is_empty() || text.ends_with("\r\n"));
        let codes: Vec<_> = text
            .split_terminator("\r\n")
            .filter(|line| line.as_bytes().get(3) == Some(&b' '))
            .map(|line| line.split_at(3).0)
            .collect();
        codes.join(" ")
    }
}

/// The client's bytes, the codes it reads, what the caller learns.
const TRANSCRIPTS: &[(&str, &str, &[&str])] = &[
    ("", "220", &[]),
    ("LHLO c\r\nQUIT\r\n", "220 250 221", &["quit"]),
    ("EHLO c\r\nHELO c\r\n", "220 500 500", &[]),
    (
        "LHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<bob@d>\r\nDATA\r\nS: x\r\n\r\n..\r\n.\r\nQUIT\r\n",
        "220 250 250 250 354 250 221",
        &[
            "from <a@b> None SevenBit",
            "S: x\\r\\n\\r\\n.\\r\\n",
            "quit",
        ],
    ),
    (
        "LHLO c\nMAIL FROM:<> SIZE=1000 BODY=8BITMIME\nRCPT TO:<bob>\nRCPT TO:<no@d>\n\
         RCPT TO:<busy@d>\nRCPT TO:<bob>\nRCPT TO:<carl>\nDATA\r\n\r\n.\r\nNOOP\r\n",
        "220 250 250 250 550 250 250 452 354 250 451 250 250",
        &["from <> Some(1000) EightBitMime", "\\r\\n"],
    ),
    (
        "LHLO c\r\nMAIL FROM:<a> SIZE=1001\r\nRCPT TO:<bob>\r\nDATA\r\n",
        "220 250 552 503 503",
        &[],
    ),
    (
        "LHLO c\r\nMAIL FROM:<a>\r\nMAIL FROM:<b>\r\nDATA\r\nRCPT TO:<no>\r\nDATA\r\nRSET\r\nRCPT TO:<x>\r\n",
        "220 250 250 503 503 550 503 250 503",
        &[],
    ),
    (
        "MAIL FROM:<a>\r\nRCPT TO:<a>\r\nDATA\r\nFROB\r\n\r\nLHLO c\r\n",
        "220 503 503 503 500 421",
        &["quit"],
    ),
    (
        "LHLO c\r\nMAIL FROM:<a>\r\nRCPT TO:<bob>\r\nRCPT TO:<no>\r\nRCPT TO:<busy>\r\nBDAT 4\r\n.\r\n.\
         BDAT 0\r\nBDAT 3 LAST\r\nx\r\nMAIL FROM:<c>\r\nRCPT TO:<bob>\r\nBDAT 0 LAST\r\nNOOP\r\n",
        "220 250 250 250 550 250 250 250 250 451 250 250 250 250",
        &[
            "from <a> None SevenBit",
            ".\\r\\n.x\\r\\n",
            "from <c> None SevenBit",
            "",
        ],
    ),
    // A BDAT LAST without an accepted recipient has no reply; its bytes are no commands.
    (
        "LHLO c\r\nMAIL FROM:<a>\r\nRCPT TO:<no>\r\nBDAT 6\r\nQUIT\r\nBDAT 6 LAST\r\nQUIT\r\nNOOP\r\n",
        "220 250 250 550 503 250",
        &[],
    ),
    ("BDAT 6 LAST\r\nQUIT\r\nNOOP\r\n", "220 503 250", &[]),
    (
        "LHLO c\r\nMAIL FROM:<a>\r\nRCPT TO:<bob>\r\nBDAT 1\r\nxRCPT TO:<bob>\r\nDATA\r\nRSET\r\n\
         MAIL FROM:<b>\r\nRCPT TO:<bob>\r\nBDAT 1\r\nyLHLO c\r\nNOOP\r\n",
        "220 250 250 250 250 503 503 250 250 250 250 250 250",
        &[
            "from <a> None SevenBit",
            "abort",
            "from <b> None SevenBit",
            "abort",
        ],
    ),
    // Recipients of a transaction that was given up are not those of the next.
    (
        "LHLO c\r\nMAIL FROM:<a>\r\nRCPT TO:<busy>\r\nRSET\r\nMAIL FROM:<b>\r\nRCPT TO:<bob>\r\n\
         DATA\r\n.\r\n",
        "220 250 250 250 250 250 250 354 250",
        &["abort", "from <b> None SevenBit", ""],
    ),
    // Data that only looks like its end.
    (
        "LHLO c\r\nMAIL FROM:<a>\r\nRCPT TO:<bob>\r\nDATA\r\na\n.\nb\n.\r\nc\r.\r\nMAIL FROM:<x>\r\n.\r\n",
        "220 250 250 250 354 250",
        &[
            "from <a> None SevenBit",
            "a\\n.\\nb\\n.\\r\\nc\\r.\\r\\nMAIL FROM:<x>\\r\\n",
        ],
    ),
    (
        "LHLO c\r\nMAIL FROM:<a>\r\nRCPT TO:<bob>\r\nDATA\r\nnever ends",
        "220 250 250 250 354",
        &["from <a> None SevenBit"],
    ),
    (
        "HELP\r\nVRFY x\r\nRSET\r\nSTARTTLS\r\n",
        "220 214 252 250 502",
        &[],
    ),
];

#[test]
fn transcripts_are_answered_alike_however_they_are_cut() {
    for (client, codes, learnt) in TRANSCRIPTS {
        let client = client.as_bytes();
        let mut whole = Caller::new();
        whole.push(client);
        assert_eq!(whole.codes(), *codes, "{}", client.escape_ascii());
        assert_eq!(whole.learnt, *learnt, "{}", client.escape_ascii());
        for cut in 0..=client.len() {
            let mut caller = Caller::new();
            let (one, two) = client.split_at(cut);
            caller.push(one);
            caller.push(two);
            assert_eq!(
                caller.sent,
                whole.sent,
                "cut at {cut}: {}",
                client.escape_ascii()
            );
            assert_eq!(caller.learnt, whole.learnt);
        }
        let mut caller = Caller::new();
        client.chunks(1).for_each(|piece| caller.push(piece));
        assert_eq!(
            caller.sent,
            whole.sent,
            "byte by byte: {}",
            client.escape_ascii()
        );
        assert_eq!(caller.learnt, whole.learnt);
    }
}

fn feed(session: &mut Session, text: &str) -> String {
    let mut input = text.as_bytes();
    while session.next_event(&mut input).is_some() {}
    sent(session)
}

fn sent(session: &mut Session) -> String {
    let bytes = session.poll_transmit().unwrap_or_default();
    String::from_utf8(bytes.to_vec()).expect("replies are ASCII")
}

/// A session with `count` accepted recipients whose message has come.
fn with_message(count: usize) -> Session {
    let mut session = Session::new(config());
    feed(&mut session, "LHLO c\r\nMAIL FROM:<a@b> SIZE=7\r\n");
    for _ in 0..count {
        feed(&mut session, "RCPT TO:<bob>\r\n");
        session.rcpt_reply(&Reply::recipient_ok());
    }
    feed(&mut session, "DATA\r\nx\r\n.\r\n");
    session
}

#[test]
fn the_greeting_names_every_extension() {
    let mut session = Session::new(config());
    assert_eq!(sent(&mut session), "220 mx.example.test LMTP ringpost\r\n");
    assert_eq!(
        feed(&mut session, "LHLO c\r\n"),
        "250-mx.example.test\r\n250-PIPELINING\r\n250-ENHANCEDSTATUSCODES\r\n250-8BITMIME\r\n\
         250-SIZE 1000\r\n250 CHUNKING\r\n"
    );
}

#[test]
fn replies_go_out_in_order_each_as_soon_as_it_can() {
    let mut session = with_message(3);
    assert!(!session.takes_input() && !session.is_idle());
    session.message_reply(1, Reply::of(Status::Busy));
    assert_eq!(sent(&mut session), "");
    session.message_reply(0, Reply::of(Status::Ok));
    assert_eq!(
        sent(&mut session),
        "250 2.0.0 stored\r\n451 4.3.0 the node is busy\r\n"
    );
    session.message_reply(0, Reply::of(Status::Busy));
    session.message_reply(9, Reply::of(Status::Busy));
    assert_eq!(sent(&mut session), "");
    session.message_reply(2, Reply::of(Status::Ok));
    assert_eq!(sent(&mut session), "250 2.0.0 stored\r\n");
    assert!(session.takes_input() && session.is_idle());
    session.message_reply(2, Reply::of(Status::Ok));
    assert_eq!(sent(&mut session), "");
}

#[test]
fn input_waits_while_an_answer_is_owed() {
    let mut session = Session::new(config());
    feed(&mut session, "LHLO c\r\nMAIL FROM:<a@b> SIZE=7\r\n");
    let mut input = &b"RCPT TO:<bob>\r\nNOOP\r\n"[..];
    assert!(matches!(
        session.next_event(&mut input),
        Some(Event::Rcpt { index: 0, .. })
    ));
    assert_eq!(session.next_event(&mut input), None);
    assert_eq!((input, session.takes_input()), (&b"NOOP\r\n"[..], false));
    assert_eq!(
        (session.sender(), session.size_hint()),
        (&b"a@b"[..], Some(7))
    );
    session.rcpt_reply(&Reply::recipient_ok());
    assert_eq!(session.next_event(&mut input), None);
    assert!(input.is_empty());
    assert!(sent(&mut session).ends_with("250 2.1.5 recipient ok\r\n250 2.0.0 ok\r\n"));
}

#[test]
fn long_lines_are_refused_and_their_rest_is_no_command() {
    let longest = format!("NOOP {}\r\n", "x".repeat(4_089));
    let long = format!("NOOP {}\r\nNOOP\r\n", "x".repeat(4_090));
    for piece_len in [1, 100, 4_095, 4_096, 4_097, 10_000] {
        let mut caller = Caller::new();
        for text in [&longest, &long] {
            text.as_bytes()
                .chunks(piece_len)
                .for_each(|piece| caller.push(piece));
        }
        assert_eq!(caller.codes(), "220 250 500 250", "by {piece_len}");
    }
}

#[test]
fn a_close_is_said_once() {
    let mut session = with_message(1);
    sent(&mut session);
    session.close(&Reply::idle());
    session.close(&Reply::shutting_down());
    session.message_reply(0, Reply::of(Status::Ok));
    assert_eq!(
        sent(&mut session),
        "421 4.4.2 no command for too long, closing\r\n"
    );
    assert!(session.is_closed());
    assert_eq!(feed(&mut session, "NOOP\r\n"), "");
}

proptest! {
    #[test]
    fn any_bytes_are_taken_and_answered_in_bounds(
        words in proptest::collection::vec(
            prop_oneof![
                proptest::sample::select(vec![
                    "LHLO c\r\n", "MAIL FROM:<a@b>\r\n", "RCPT TO:<bob>\r\n", "RCPT TO:<no>\r\n",
                    "DATA\r\n", ".\r\n", "BDAT 5\r\n", "BDAT 5 LAST\r\n", "RSET\r\n", "\r\n", "x",
                ]).prop_map(|word| word.as_bytes().to_vec()),
                proptest::collection::vec(any::<u8>(), 0..6),
            ],
            0..40,
        ),
        piece_len in 1usize..9,
    ) {
        let client = words.concat();
        let mut whole = Caller::new();
        whole.push(&client);
        let mut pieces = Caller::new();
        client.chunks(piece_len).for_each(|piece| pieces.push(piece));
        prop_assert_eq!(&pieces.sent, &whole.sent);
        prop_assert_eq!(&pieces.learnt, &whole.learnt);
        prop_assert_eq!(&pieces.message, &whole.message);
        prop_assert!(whole.sent.len() <= 200 + 150 * client.len());
    }
}
