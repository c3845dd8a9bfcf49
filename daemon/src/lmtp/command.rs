//! One command line to a command. Total: every line is a command or gets its reply.

use super::reply::Reply;
use super::session::BodyType;
use crate::address::{Address, AddressError};

/// A command with what it names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Command<'a> {
    Lhlo,
    Mail {
        sender: &'a [u8],
        size: Option<u64>,
        body: BodyType,
    },
    Rcpt(Address),
    Data,
    Bdat {
        len: u64,
        last: Last,
    },
    Rset,
    Noop,
    Vrfy,
    Help,
    Quit,
}

/// Whether a BDAT is the message's last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Last {
    Yes,
    No,
}

/// A sender is kept as it came, but not without bound (RFC 5321 4.5.3.1.3 asks for 256).
const SENDER_BYTES_MAX: usize = 512;

const UNKNOWN: Reply = Reply::new(500, "5.5.2", "command not recognised");
const NOT_LMTP: Reply = Reply::new(500, "5.5.1", "this is LMTP, say LHLO");
const NOT_HERE: Reply = Reply::new(502, "5.5.1", "command not implemented");
const ARGUMENT: Reply = Reply::new(501, "5.5.4", "syntax error in the argument");
const NO_ARGUMENT: Reply = Reply::new(501, "5.5.4", "no argument allowed");
const PARAMETER: Reply = Reply::new(555, "5.5.4", "parameter not recognised");
const SENDER_8BIT: Reply = Reply::new(553, "5.6.7", "the sender has a byte that is not ASCII");
const SENDER: Reply = Reply::new(501, "5.1.7", "the sender is not an address");

/// Reads a line without its line end.
pub(super) fn parse(line: &[u8]) -> Result<Command<'_>, Reply> {
    let line = line.trim_ascii_end();
    let end = line.iter().position(u8::is_ascii_whitespace);
    let (verb, rest) = line.split_at(end.unwrap_or(line.len()));
    let rest = rest.trim_ascii_start();
    let alone = |command| {
        if rest.is_empty() {
            Ok(command)
        } else {
            Err(NO_ARGUMENT)
        }
    };
    match verb.to_ascii_uppercase().as_slice() {
        b"LHLO" if rest.is_empty() => Err(ARGUMENT),
        b"LHLO" => Ok(Command::Lhlo),
        b"HELO" | b"EHLO" => Err(NOT_LMTP),
        b"MAIL" => mail(rest),
        b"RCPT" => rcpt(rest),
        b"DATA" => alone(Command::Data),
        b"BDAT" => bdat(rest),
        b"RSET" => alone(Command::Rset),
        b"NOOP" => Ok(Command::Noop),
        b"VRFY" => Ok(Command::Vrfy),
        b"HELP" => Ok(Command::Help),
        b"QUIT" => alone(Command::Quit),
        b"EXPN" | b"STARTTLS" | b"AUTH" | b"ETRN" | b"TURN" => Err(NOT_HERE),
        _ => Err(UNKNOWN),
    }
}

fn mail(rest: &[u8]) -> Result<Command<'_>, Reply> {
    let (sender, parameters) = path(rest, b"FROM:").ok_or(ARGUMENT)?;
    if !sender.is_ascii() {
        return Err(SENDER_8BIT);
    }
    if sender.len() > SENDER_BYTES_MAX || sender.iter().any(u8::is_ascii_control) {
        return Err(SENDER);
    }
    let mut size = None;
    let mut body = BodyType::SevenBit;
    for (name, value) in each_parameter(parameters) {
        match name.to_ascii_uppercase().as_slice() {
            b"SIZE" => size = Some(number(value).ok_or(ARGUMENT)?),
            b"BODY" if value.eq_ignore_ascii_case(b"7BIT") => body = BodyType::SevenBit,
            b"BODY" if value.eq_ignore_ascii_case(b"8BITMIME") => body = BodyType::EightBitMime,
            b"BODY" => return Err(ARGUMENT),
            b"AUTH" | b"RET" | b"ENVID" => {}
            _ => return Err(PARAMETER),
        }
    }
    Ok(Command::Mail { sender, size, body })
}

fn rcpt(rest: &[u8]) -> Result<Command<'_>, Reply> {
    let (recipient, parameters) = path(rest, b"TO:").ok_or(ARGUMENT)?;
    for (name, _) in each_parameter(parameters) {
        if !name.eq_ignore_ascii_case(b"NOTIFY") && !name.eq_ignore_ascii_case(b"ORCPT") {
            return Err(PARAMETER);
        }
    }
    Address::parse(recipient)
        .map(Command::Rcpt)
        .map_err(|why: AddressError| Reply::bad_recipient(why))
}

fn bdat(rest: &[u8]) -> Result<Command<'_>, Reply> {
    let mut words = rest
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty());
    let len = words.next().and_then(number).ok_or(ARGUMENT)?;
    let last = match words.next() {
        None => Last::No,
        Some(word) if word.eq_ignore_ascii_case(b"LAST") => Last::Yes,
        Some(_) => return Err(ARGUMENT),
    };
    match words.next() {
        None => Ok(Command::Bdat { len, last }),
        Some(_) => Err(ARGUMENT),
    }
}

/// What stands between `name` and its angle brackets, and behind them. A blank behind the colon is
/// forgiven. A bracket in quotes is none (RFC 5321 4.1.2).
fn path<'a>(rest: &'a [u8], name: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let (given, rest) = rest.split_at_checked(name.len())?;
    let inner = rest.trim_ascii_start().strip_prefix(b"<")?;
    if !given.eq_ignore_ascii_case(name) {
        return None;
    }
    let mut quoted = false;
    let mut escaped = false;
    let end = inner.iter().position(|byte| {
        let closes = *byte == b'>' && !quoted;
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ => {}
        }
        closes
    })?;
    let (path, behind) = inner.split_at(end);
    let behind = behind.strip_prefix(b">")?;
    (behind.is_empty() || behind.starts_with(b" ")).then_some((path, behind))
}

/// `NAME=VALUE` or `NAME`, separated by blanks.
fn each_parameter(rest: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    rest.split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty())
        .map(|word| {
            let at = word.iter().position(|byte| *byte == b'=');
            let (name, value) = word.split_at(at.unwrap_or(word.len()));
            (name, value.get(1..).unwrap_or_default())
        })
}

/// Decimal digits that fit; RFC 1870 allows 20.
fn number(digits: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(digits).ok()?;
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mail_of(sender: &str, size: Option<u64>, body: BodyType) -> Command<'_> {
        Command::Mail {
            sender: sender.as_bytes(),
            size,
            body,
        }
    }

    #[test]
    fn lines_are_commands() {
        use BodyType::{EightBitMime, SevenBit};
        let bob = Address::parse(b"bob@example.test").expect("an address");
        for (line, command) in [
            ("lhlo mx.example.test", Command::Lhlo),
            ("MAIL FROM:<>", mail_of("", None, SevenBit)),
            ("Mail From: <a@b> ", mail_of("a@b", None, SevenBit)),
            (
                "MAIL FROM:<a@b> SIZE=1000 BODY=8BITMIME AUTH=<> RET=HDRS ENVID=x",
                mail_of("a@b", Some(1000), EightBitMime),
            ),
            (
                "MAIL FROM:<\"a>\\\"b\"@c> BODY=7bit",
                mail_of("\"a>\\\"b\"@c", None, SevenBit),
            ),
            ("MAIL FROM:<a..b@c>", mail_of("a..b@c", None, SevenBit)),
            ("RCPT TO:<bob@EXAMPLE.test>", Command::Rcpt(bob.clone())),
            (
                "rcpt to:<bob@example.test> NOTIFY=NEVER ORCPT=rfc822;x",
                Command::Rcpt(bob),
            ),
            ("DATA", Command::Data),
            (
                "BDAT 0 last",
                Command::Bdat {
                    len: 0,
                    last: Last::Yes,
                },
            ),
            (
                "BDAT 86",
                Command::Bdat {
                    len: 86,
                    last: Last::No,
                },
            ),
            ("rset", Command::Rset),
            ("NOOP whatever", Command::Noop),
            ("VRFY bob", Command::Vrfy),
            ("HELP", Command::Help),
            ("QUIT", Command::Quit),
        ] {
            assert_eq!(parse(line.as_bytes()), Ok(command), "{line}");
        }
    }

    #[test]
    fn other_lines_get_their_reply() {
        for (line, code) in [
            (&b""[..], 500),
            (b"\0", 500),
            (b"FROB", 500),
            (b"MAILFROM:<a>", 500),
            (b"EHLO x", 500),
            (b"HELO x", 500),
            (b"LHLO", 501),
            (b"MAIL", 501),
            (b"MAIL FROM:a@b", 501),
            (b"MAIL FROM:<a@b", 501),
            (b"MAIL FROM:<a@b>x", 501),
            (b"MAIL TO:<a@b>", 501),
            (b"MAIL FROM:<a@b> SIZE=", 501),
            (b"MAIL FROM:<a@b> SIZE=-1", 501),
            (b"MAIL FROM:<a@b> SIZE=99999999999999999999", 501),
            (b"MAIL FROM:<a@b> BODY=BINARYMIME", 501),
            (b"MAIL FROM:<a@b> SMTPUTF8", 555),
            (b"MAIL FROM:<\xc3\xa4@b>", 553),
            (b"MAIL FROM:<a\0@b>", 501),
            (b"RCPT TO:bob", 501),
            (b"RCPT TO:<>", 501),
            (b"RCPT TO:<@a:b@c>", 501),
            (b"RCPT TO:<../x@c>", 501),
            (b"RCPT TO:<\"x@c>", 501),
            (b"RCPT TO:<b\0b@c>", 501),
            (b"RCPT TO:<b\xc3\xb6b@c>", 553),
            (b"RCPT TO:<bob> FOO=1", 555),
            (b"DATA now", 501),
            (b"BDAT", 501),
            (b"BDAT x", 501),
            (b"BDAT 1 LASTLY", 501),
            (b"BDAT 1 LAST x", 501),
            (b"STARTTLS", 502),
        ] {
            let reply = parse(line).expect_err("no command");
            assert_eq!(reply.code(), code, "{}", line.escape_ascii());
        }
        let long = format!("RCPT TO:<{}>", "x".repeat(300));
        assert_eq!(parse(long.as_bytes()).expect_err("too long").code(), 501);
    }

    proptest! {
        #[test]
        fn any_line_is_a_command_or_gets_a_reply(
            verb in "LHLO|MAIL|RCPT|BDAT|DATA|.{0,3}",
            rest in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            let line = [verb.as_bytes(), b" ", &rest].concat();
            if let Err(reply) = parse(&line) {
                prop_assert!(reply.code() >= 500);
            }
        }
    }
}
