//! What an LMTP server answers: code, enhanced code (RFC 3463) and text. The one table from what
//! became of a recipient to a reply; its enhanced codes and sentences are those of
//! [`exit::outcome`], so that a reply and an exit code never tell two stories (mail.md 4).
//!
//! A 5xx destroys mail. It stands for what the sender or an operator decided, never for a fault of
//! ours: what is not known here is 451.

use std::borrow::Cow;

use ringpost_engine::request::Refused;
use ringpost_netproto::frame::Status;
use ringpost_netproto::id::Guid;

use crate::address::AddressError;
use crate::exit;

/// Bytes of text in a reply; RFC 5321 4.5.3.1.5 allows 512 in a line.
const TEXT_BYTES_MAX: usize = 450;

/// One reply, of one line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reply {
    code: u16,
    enhanced: &'static str,
    text: Cow<'static, str>,
}

impl Reply {
    /// A reply with a fixed text.
    pub(super) const fn new(code: u16, enhanced: &'static str, text: &'static str) -> Self {
        Self {
            code,
            enhanced,
            text: Cow::Borrowed(text),
        }
    }

    /// The three digits.
    pub const fn code(&self) -> u16 {
        self.code
    }

    /// Whether it accepts.
    pub const fn is_positive(&self) -> bool {
        self.code < 400
    }

    /// RCPT: the account exists.
    pub const fn recipient_ok() -> Self {
        Self::new(250, "2.1.5", "recipient ok")
    }

    /// RCPT: the text is no address.
    pub fn bad_recipient(why: AddressError) -> Self {
        let (code, enhanced) = match why {
            AddressError::EightBit => (553, "5.6.7"),
            _ => (501, "5.1.3"),
        };
        Self::new(code, enhanced, "").with_text(why.to_string())
    }

    /// After the dot: on stable storage.
    pub fn stored(guid: Guid) -> Self {
        Self::new(250, "2.0.0", "").with_text(format!("{guid} stored"))
    }

    /// After the dot: on stable storage since an earlier delivery.
    pub fn duplicate(guid: Guid) -> Self {
        Self::new(250, "2.0.0", "").with_text(format!("{guid} duplicate"))
    }

    /// The reply for a status.
    pub fn of(status: Status) -> Self {
        let outcome = exit::outcome(status);
        let code = match outcome.enhanced {
            "2.0.0" => 250,
            "4.2.1" => 450,
            "4.2.2" | "4.3.1" => 452,
            "5.1.1" | "5.2.1" => 550,
            "5.2.2" | "5.3.4" => 552,
            _ => 451,
        };
        Self::new(code, outcome.enhanced, outcome.reason)
    }

    /// The reply for a refusal of the engine; tells which bound was met.
    pub fn refused(refused: &Refused) -> Self {
        let reply = Self::of(status(refused));
        match refused {
            Refused::Busy(_) => reply.with_text(refused.to_string()),
            _ => reply,
        }
    }

    /// Nothing came for too long; the connection ends (RFC 5321 4.5.3.2.7).
    pub const fn idle() -> Self {
        Self::new(421, "4.4.2", "no command for too long, closing")
    }

    /// The node stops; said between transactions, the connection ends.
    pub const fn shutting_down() -> Self {
        Self::new(421, "4.3.2", "the node is stopping, try again")
    }

    /// The connection is one too many.
    pub const fn too_many_connections() -> Self {
        Self::new(421, "4.7.0", "too many connections, try again")
    }

    fn with_text(self, text: String) -> Self {
        Self {
            text: Cow::Owned(text),
            ..self
        }
    }

    /// Appends the line. Text that is not printable ASCII, or too long, does not break it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("{} {} ", self.code, self.enhanced).as_bytes());
        let printable = |byte: u8| match byte {
            b' '..=b'~' => byte,
            _ => b'?',
        };
        out.extend(self.text.bytes().take(TEXT_BYTES_MAX).map(printable));
        out.extend_from_slice(b"\r\n");
    }
}

/// The status that stands for a refusal of the engine to take a delivery. `NoSuchMailbox` and its
/// like are about reading; met by a delivery they are a fault of ours, hence temporary.
pub const fn status(refused: &Refused) -> Status {
    match refused {
        Refused::Busy(_) => Status::Busy,
        Refused::DiskFull => Status::DiskFull,
        Refused::OverQuota { .. } => Status::Quota,
        Refused::TooLarge => Status::TooBig,
        Refused::Repairing(_) | Refused::Damaged(_) => Status::Corrupt,
        Refused::WrongShard => Status::NotPrimary,
        Refused::Stopped => Status::Stopping,
        _ => Status::Internal,
    }
}

#[cfg(test)]
mod tests {
    use ringpost_engine::request::BusyReason;
    use ringpost_netproto::frame::Verdict;

    use super::*;

    #[test]
    fn the_class_of_a_reply_is_that_of_its_status() {
        for &status in Status::ALL {
            let Reply { code, enhanced, .. } = Reply::of(status);
            let class = match status.verdict() {
                Verdict::Done => 2,
                Verdict::Later => 4,
                Verdict::Never if matches!(status, Status::NoMailbox | Status::NoMessage) => 4,
                Verdict::Never => 5,
            };
            assert_eq!(code / 100, class, "{status}");
            assert!(enhanced.starts_with(&class.to_string()), "{status}");
        }
        assert_eq!(Reply::of(Status::from_wire(9_999)).code, 451);
    }

    #[test]
    fn the_table_is_that_of_the_design() {
        let guid = Guid::new([0xAB; 16]);
        let stored = format!("250 2.0.0 {} stored\r\n", "ab".repeat(16));
        for (reply, line) in [
            (Reply::stored(guid), stored.as_str()),
            (Reply::of(Status::NoUser), "550 5.1.1 no such user\r\n"),
            (
                Reply::of(Status::TooBig),
                "552 5.3.4 the message is larger than the limit\r\n",
            ),
            (
                Reply::refused(&Refused::Busy(BusyReason::Log)),
                "451 4.3.0 busy: log\r\n",
            ),
            (
                Reply::refused(&Refused::DiskFull),
                "452 4.3.1 the disk is full\r\n",
            ),
            (
                Reply::refused(&Refused::OverQuota {
                    bytes: 9,
                    messages: 1,
                }),
                "452 4.2.2 the mailbox is over quota\r\n",
            ),
            (
                Reply::of(Status::NoDirectory),
                "451 4.4.3 the directory cannot be asked\r\n",
            ),
            (
                Reply::bad_recipient(AddressError::SourceRoute),
                "501 5.1.3 source routes are not supported\r\n",
            ),
        ] {
            let mut out = Vec::new();
            reply.encode(&mut out);
            assert_eq!(String::from_utf8_lossy(&out), line);
        }
        for (status, code) in [
            (Status::Quota, 452),
            (Status::QuotaRefused, 552),
            (Status::Disabled, 450),
            (Status::DisabledRefused, 550),
            (Status::Deadline, 451),
        ] {
            assert_eq!(Reply::of(status).code, code);
        }
    }

    #[test]
    fn text_cannot_break_the_line() {
        let mut out = Vec::new();
        Reply::new(250, "2.0.0", "")
            .with_text(format!("a\r\n550 x\u{e4}{}", "y".repeat(1_000)))
            .encode(&mut out);
        assert!(out.len() < 512 && out.ends_with(b"\r\n"));
        assert_eq!(memchr::memchr_iter(b'\n', &out).count(), 1);
    }
}
