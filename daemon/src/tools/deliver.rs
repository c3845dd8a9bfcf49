//! `ringpost-deliver`: what an MTA calls where only a program can be named (mail.md 3).
//!
//! It exits 0 only after the daemon's durable answer, 75 whenever in doubt (STYLE.md 5.6), and reads
//! standard input to its end before any exit: Postfix takes an exit code for what it is only when it
//! could write the whole message.
#![expect(
    clippy::print_stdout,
    reason = "a program at its edge: help goes to standard output"
)]

pub mod guard;
pub mod input;
pub mod lmtp;
pub mod options;
pub mod send;
pub mod source;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::time::Duration;

use clap::Parser as _;
use ringpost_netproto::message::deliver::RecipientReply;
use ringpost_netproto::message::printable;

pub use self::options::Options;
use self::options::{Envelope, Environment};
use self::send::{Limits, SendError, send};
use self::source::{Input, Source};
use crate::client::{Address, Deadline, plain};
use crate::exit::{Code, Outcome, combine, outcome};

/// For a daemon to appear, but never more than half of `--timeout`.
const CONNECT: Duration = Duration::from_secs(5);

/// How long standard input is read to its end after a call that made no sense.
const DRAIN: Duration = Duration::from_mins(1);

/// So many parts in ten of `--timeout` are for the delivery; in the rest a message that met its
/// deadline is still read to its end.
const DELIVERY_TENTHS: u32 = 8;

/// One line for standard error and the exit code it explains.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Failure {
    code: Code,
    line: String,
}

impl Failure {
    /// RFC 3463 X.3.5: the system is not configured rightly.
    fn call(text: &str) -> Self {
        Self {
            code: Code::TempFail,
            line: format!("4.3.5 {text}"),
        }
    }

    fn temporary(text: &str) -> Self {
        Self {
            code: Code::TempFail,
            line: format!("4.3.0 {text}"),
        }
    }
}

/// The whole program; `words` are its arguments with its name. The caller exits with the result.
pub fn run(words: impl IntoIterator<Item = OsString>) -> Code {
    guard::arm();
    let stdin = match io::stdin().as_fd().try_clone_to_owned() {
        Ok(descriptor) => Source::new(descriptor),
        Err(error) => return tell(&Failure::temporary(&plain(&error))),
    };
    match Options::try_parse_from(words) {
        Ok(options) if options.lmtp => run_lmtp(&options, stdin.without_cut()),
        Ok(options) => run_options(&options, stdin),
        Err(error) => refuse_call(&error, stdin),
    }
}

fn run_options(options: &Options, mut stdin: Source) -> Code {
    guard::arm_alarm(options.deadline());
    let whole = Deadline::after(options.deadline());
    let limits = Limits {
        delivery: Deadline::after(options.deadline() * DELIVERY_TENTHS / 10),
        connect: Deadline::after(CONNECT.min(options.deadline() / 2)),
    };
    let environment = Environment {
        recipient: std::env::var_os("RECIPIENT"),
        sender: std::env::var_os("SENDER"),
        message_id: std::env::var_os("MESSAGE_ID"),
    };
    let address = Address::from_path(&options.socket);
    let result = options
        .envelope(&environment)
        .map_err(|error| usage(&error.to_string(), &stdin))
        .and_then(|envelope| deliver(&mut stdin, &envelope, &address, limits));
    if stdin.input().is_ok_and(|input| input != Input::Terminal) {
        stdin.drain(whole);
    }
    match result {
        Ok(()) => Code::Done,
        Err(failure) => tell(&failure),
    }
}

/// `-l`: both ends of the conversation must be there.
fn run_lmtp(options: &Options, mut stdin: Source) -> Code {
    let mut stdout = io::stdout().lock();
    let output = source::kind(&stdout);
    let both = [stdin.input(), output];
    if both
        .iter()
        .any(|kind| !matches!(kind, Ok(Input::Message | Input::Terminal)))
    {
        return tell(&Failure::temporary(
            "-l needs an open standard input and output",
        ));
    }
    let address = Address::from_path(&options.socket);
    match lmtp::converse(&mut stdin, &mut stdout, &address, options.deadline()) {
        Ok(()) => Code::Done,
        Err((code, line)) => tell(&Failure { code, line }),
    }
}

fn deliver(
    stdin: &mut Source,
    envelope: &Envelope,
    address: &Address,
    limits: Limits,
) -> Result<(), Failure> {
    match stdin.input() {
        Ok(Input::Nothing) => {
            return Err(Failure::temporary(
                "standard input is closed or /dev/null: there is no message",
            ));
        }
        Ok(Input::Terminal | Input::Message) => {}
        Err(error) => {
            return Err(Failure::temporary(&format!(
                "standard input: {}",
                plain(&error)
            )));
        }
    }
    let replies =
        send(stdin, envelope.clone(), address, limits).map_err(|error| failed(&error, address))?;
    judge(envelope, &replies)
}

/// A request that failed as a whole.
fn failed(error: &SendError, address: &Address) -> Failure {
    let Outcome {
        code,
        enhanced,
        reason,
    } = outcome(error.status());
    let line = match error {
        SendError::Client(crate::client::ClientError::Failed { text, .. })
            if text.is_empty() || text == reason =>
        {
            format!("{enhanced} {address}: {reason}")
        }
        SendError::Client(crate::client::ClientError::Failed { text, .. }) => {
            format!("{enhanced} {address}: {reason}: {text}")
        }
        other => format!("{enhanced} {other}"),
    };
    Failure { code, line }
}

/// The one code for all recipients, and the first of them that made it so.
fn judge(envelope: &Envelope, replies: &[RecipientReply]) -> Result<(), Failure> {
    let outcomes: Vec<Outcome> = replies.iter().map(|reply| outcome(reply.status)).collect();
    let Some(worst) = outcomes.iter().copied().reduce(combine) else {
        return Err(Failure::temporary(
            "the node gave no answer for any recipient",
        ));
    };
    if worst.code == Code::Done {
        return Ok(());
    }
    let mut alike = envelope
        .recipients
        .iter()
        .zip(replies)
        .zip(&outcomes)
        .filter(|(_, outcome)| outcome.code == worst.code);
    let Some(((address, reply), first)) = alike.next() else {
        return Err(Failure::temporary("the node answered for other recipients"));
    };
    let Outcome {
        code,
        enhanced,
        reason,
    } = *first;
    let mut line = format!("{enhanced} {}: {reason}", printable(address));
    if !reply.text.is_empty() && reply.text != reason {
        line.push_str(": ");
        line.push_str(&printable(&reply.text));
    }
    let more = alike.count();
    if more > 0 {
        line = format!("{line} (and {more} more)");
    }
    Err(Failure { code, line })
}

/// A call that cannot be served: 64 for a person at a terminal, who sends no message.
fn usage(text: &str, stdin: &Source) -> Failure {
    let mut failure = Failure::call(text);
    if stdin.input().is_ok_and(|input| input == Input::Terminal) {
        failure.code = Code::Usage;
    }
    failure
}

/// Help, version, or options that make no sense. Even help is no success if a message came with
/// it: an MTA that called us like this must not believe it delivered.
fn refuse_call(error: &clap::Error, mut stdin: Source) -> Code {
    guard::arm_alarm(DRAIN);
    let input = stdin.input().unwrap_or(Input::Message);
    if !error.use_stderr() {
        print!("{error}");
        if input != Input::Message {
            return Code::Done;
        }
    }
    let failure = if error.use_stderr() {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default();
        usage(first.strip_prefix("error: ").unwrap_or(first), &stdin)
    } else {
        Failure::call("help was asked for, but a message came: it was not delivered")
    };
    if input != Input::Terminal {
        stdin.drain(Deadline::after(DRAIN));
    }
    tell(&failure)
}

/// The one line. If nobody reads standard error, the code has to do.
fn tell(failure: &Failure) -> Code {
    drop(writeln!(io::stderr(), "{}", failure.line));
    failure.code
}

#[cfg(test)]
mod tests {
    use ringpost_netproto::frame::Status;

    use super::*;

    fn envelope(recipients: &[&str]) -> Envelope {
        Envelope {
            recipients: recipients.iter().map(|to| to.as_bytes().to_vec()).collect(),
            sender: Vec::new(),
            mailbox: None,
            queue_id: Vec::new(),
        }
    }

    fn judged(rows: &[(&str, Status, &'static str)]) -> Result<(), Failure> {
        let to: Vec<&str> = rows.iter().map(|(to, ..)| *to).collect();
        let replies: Vec<_> = rows
            .iter()
            .map(|(_, status, text)| RecipientReply {
                text: text.as_bytes().into(),
                ..RecipientReply::new(*status)
            })
            .collect();
        judge(&envelope(&to), &replies)
    }

    #[test]
    fn the_line_names_who_made_the_code() {
        for (rows, code, line) in [
            (
                &[("ann", Status::Ok, ""), ("bob", Status::NoUser, "")][..],
                Code::NoUser,
                "5.1.1 bob: no such user",
            ),
            (
                &[("ann", Status::NoUser, ""), ("b\x07b", Status::Busy, "log")],
                Code::TempFail,
                "4.3.0 b\\u{7}b: the node is busy: log",
            ),
            (
                &[("ann", Status::TooBig, ""), ("bob", Status::TooBig, "")],
                Code::DataErr,
                "5.3.4 ann: the message is larger than the limit (and 1 more)",
            ),
        ] {
            let line = line.to_owned();
            assert_eq!(judged(rows), Err(Failure { code, line }));
        }
        let stored = [("a", Status::Ok, ""), ("b", Status::OkDuplicate, "")];
        assert_eq!(judged(&stored), Ok(()));
        assert!(judged(&[]).is_err());
    }
}
