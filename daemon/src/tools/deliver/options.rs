//! How the shim is called (mail.md 3.1), and the check of what was asked.
//!
//! Values are bytes: an MTA hands over what the sender of a mail wrote, so a recipient may begin
//! with a dash or be no UTF-8. The daemon judges addresses, not we; only what cannot be sent at all
//! is an error here.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

/// Where the daemon listens if nothing else is said.
pub const SOCKET_DEFAULT: &str = "/run/ringpost/node";

/// Below Postfix's limit of 1,000 s for a command, after which it would bounce.
const TIMEOUT_SECONDS_MAX: u64 = 900;

/// Deliver a message from standard input to mailboxes of a Ringpost node.
#[derive(Parser, Clone, Debug)]
#[command(
    name = "ringpost-deliver",
    version,
    about = "Deliver a message from standard input to mailboxes of a Ringpost node",
    long_about = "Reads one message from standard input to its end and delivers it to the named \
                  recipients through the Ringpost daemon of this host. Exits 0 only when the \
                  message is on stable storage for all of them. Whenever in doubt it exits 75, so \
                  that the mail system tries again later; the daemon recognises the repetition \
                  and stores nothing twice."
)]
pub struct Options {
    /// Recipient: user or user+detail, with or without @domain; may be repeated
    #[arg(short = 'd', value_name = "ADDR", allow_hyphen_values = true)]
    pub to: Vec<OsString>,

    /// Envelope sender; <>, empty and MAILER-DAEMON mean the null sender; the last one counts
    #[arg(short = 'f', value_name = "ADDR", allow_hyphen_values = true)]
    pub from: Vec<OsString>,

    /// Mailbox to deliver to; overrides the recipient's detail; one recipient only
    #[arg(
        short = 'm',
        visible_short_alias = 'a',
        value_name = "NAME",
        allow_hyphen_values = true
    )]
    pub mailbox: Option<OsString>,

    /// The mail system's queue id, for logs and traces
    #[arg(short = 'q', value_name = "ID", allow_hyphen_values = true)]
    pub queue_id: Option<OsString>,

    /// Take recipient, sender and queue id from the environment, as Exim and Postfix set it
    #[arg(short = 'e')]
    pub environment: bool,

    /// Speak LMTP on standard input and output
    #[arg(short = 'l', conflicts_with_all = ["to", "from", "mailbox", "queue_id", "environment", "words"])]
    pub lmtp: bool,

    /// The daemon's socket: a path, unix:PATH or HOST:PORT
    #[arg(long, value_name = "PATH", default_value = SOCKET_DEFAULT)]
    pub socket: PathBuf,

    /// Give up after this long, with exit code 75 (with -l: per answer of the daemon)
    #[arg(long, value_name = "SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u64).range(1..=TIMEOUT_SECONDS_MAX))]
    pub timeout: u64,

    /// More recipients, after --
    #[arg(last = true, value_name = "ADDR")]
    pub words: Vec<OsString>,
}

/// The environment variables that `-e` reads, as Exim's pipe transport and Postfix's local(8) set
/// them.
#[derive(Clone, Default, Debug)]
pub struct Environment {
    /// RECIPIENT.
    pub recipient: Option<OsString>,
    /// SENDER; empty for the null sender.
    pub sender: Option<OsString>,
    /// `MESSAGE_ID`: Exim's queue id.
    pub message_id: Option<OsString>,
}

/// One message's envelope, ready to be sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Envelope {
    /// At least one; none is empty. In the order given.
    pub recipients: Vec<Vec<u8>>,
    /// Empty for the null sender.
    pub sender: Vec<u8>,
    /// Overrides the recipient's detail.
    pub mailbox: Option<Vec<u8>>,
    /// For logs.
    pub queue_id: Vec<u8>,
}

/// Why a call cannot be served. Temporary for an MTA: a person will mend its configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// Neither `-d` nor words behind `--` nor `-e`.
    #[error("no recipient: use -d ADDR, or -e with RECIPIENT in the environment")]
    NoRecipient,
    /// An address of no bytes.
    #[error("a recipient is empty")]
    EmptyRecipient,
    /// `-e` without its variable.
    #[error("-e was given, but RECIPIENT is not in the environment")]
    NoRecipientVariable,
    /// `-m` names one mailbox of one user.
    #[error("-m takes exactly one recipient")]
    MailboxOfMany,
    /// `-m ''`.
    #[error("the mailbox name of -m is empty")]
    EmptyMailbox,
}

impl Options {
    /// All of `--timeout`.
    pub fn deadline(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }

    /// The envelope, from options and, with `-e`, `environment`. Options win over variables,
    /// except that their recipients add up.
    pub fn envelope(&self, environment: &Environment) -> Result<Envelope, CallError> {
        let mut recipients: Vec<Vec<u8>> = self
            .to
            .iter()
            .chain(&self.words)
            .map(|word| word.clone().into_vec())
            .collect();
        let mut sender = self.from.last().cloned();
        let mut queue_id = self.queue_id.clone();
        if self.environment {
            match &environment.recipient {
                Some(recipient) => recipients.push(recipient.clone().into_vec()),
                None if recipients.is_empty() => return Err(CallError::NoRecipientVariable),
                None => {}
            }
            sender = sender.or_else(|| environment.sender.clone());
            queue_id = queue_id.or_else(|| environment.message_id.clone());
        }
        if recipients.is_empty() {
            return Err(CallError::NoRecipient);
        }
        if recipients.iter().any(Vec::is_empty) {
            return Err(CallError::EmptyRecipient);
        }
        let mailbox = self.mailbox.clone().map(OsStringExt::into_vec);
        if mailbox.as_ref().is_some_and(Vec::is_empty) {
            return Err(CallError::EmptyMailbox);
        }
        if mailbox.is_some() && recipients.len() > 1 {
            return Err(CallError::MailboxOfMany);
        }
        Ok(Envelope {
            recipients,
            sender: sender.map(|sender| path(&sender)).unwrap_or_default(),
            mailbox,
            queue_id: queue_id.map(OsStringExt::into_vec).unwrap_or_default(),
        })
    }
}

/// A sender without its angle brackets; empty for the forms of the null sender (pipe(8) hands it
/// over as `MAILER-DAEMON`).
fn path(sender: &OsStr) -> Vec<u8> {
    let bytes = sender.as_bytes();
    let bare = bytes
        .strip_prefix(b"<")
        .and_then(|rest| rest.strip_suffix(b">"))
        .unwrap_or(bytes);
    if bare.eq_ignore_ascii_case(b"MAILER-DAEMON") {
        return Vec::new();
    }
    bare.to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Options, clap::Error> {
        Options::try_parse_from([&["ringpost-deliver"], words].concat())
    }

    fn envelope(words: &[&str]) -> Result<Envelope, CallError> {
        parse(words).unwrap().envelope(&Environment::default())
    }

    #[test]
    fn definition_holds() {
        use clap::CommandFactory as _;
        Options::command().debug_assert();
    }

    #[test]
    fn recipients_come_from_options_and_words() {
        let envelope = envelope(&["-d", "bob", "-d", "-x@y", "--", "ann+l", "-d"]).unwrap();
        let want: Vec<&[u8]> = vec![b"bob", b"-x@y", b"ann+l", b"-d"];
        assert_eq!(envelope.recipients, want);
    }

    #[test]
    fn the_last_sender_counts_and_null_has_four_forms() {
        for (words, want) in [
            (&["-d", "b", "-f", "a@b", "-f", "c@d"][..], "c@d"),
            (&["-d", "b", "-f", "<a@b>"], "a@b"),
            (&["-d", "b", "-f", "<>"], ""),
            (&["-d", "b", "-f", ""], ""),
            (&["-d", "b", "-f", "MAILER-DAEMON"], ""),
            (&["-d", "b"], ""),
        ] {
            assert_eq!(
                envelope(words).unwrap().sender,
                want.as_bytes(),
                "{words:?}"
            );
        }
    }

    #[test]
    fn what_cannot_be_sent_is_named() {
        for (words, want) in [
            (&[][..], CallError::NoRecipient),
            (&["-f", "a@b"], CallError::NoRecipient),
            (&["-d", ""], CallError::EmptyRecipient),
            (&["-e"], CallError::NoRecipientVariable),
            (
                &["-m", "Lists", "-d", "a", "-d", "b"],
                CallError::MailboxOfMany,
            ),
            (&["-m", "", "-d", "a"], CallError::EmptyMailbox),
        ] {
            assert_eq!(envelope(words), Err(want), "{words:?}");
        }
    }

    #[test]
    fn environment_is_read_unchanged() {
        let options = parse(&["-e"]).unwrap();
        let environment = Environment {
            recipient: Some("o'b$x+box@v.test".into()),
            sender: Some(String::new().into()),
            message_id: Some("1abc".into()),
        };
        let envelope = options.envelope(&environment).unwrap();
        assert_eq!(envelope.recipients, [b"o'b$x+box@v.test".to_vec()]);
        assert_eq!(envelope.sender, b"");
        assert_eq!(envelope.queue_id, b"1abc");
    }

    #[test]
    fn lmtp_takes_socket_and_timeout_only() {
        assert!(parse(&["-l", "--socket", "/x", "--timeout", "5"]).is_ok());
        for words in [
            &["-l", "-d", "bob"][..],
            &["-l", "-e"],
            &["-l", "--", "bob"],
        ] {
            assert!(parse(words).is_err(), "{words:?}");
        }
        assert!(parse(&["-d", "b", "--timeout", "0"]).is_err());
        assert!(parse(&["-d", "b", "--timeout", "901"]).is_err());
    }
}
