//! Every outcome of a delivery and the exit code that stands for it: one table (mail.md 3.2).
//!
//! An MTA bounces at most codes. 75 is the only one that Postfix, Exim and sendmail all retry, so it
//! is the answer whenever mail might still be delivered later; 65, 67 and 69 are for mail refused
//! for good, 0 only for mail that is on stable storage.

use std::process::ExitCode;

use ringpost_netproto::frame::Status;

/// The exit codes of the three programs; sysexits(3) where they have a name there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Code {
    /// 0: done. Of the shim: on stable storage.
    Done,
    /// 1: `ringpost` could not do what was asked, or `check` found damage.
    Failed,
    /// 2: `ringpost` was called wrongly.
    Misused,
    /// 64 (`EX_USAGE`): the shim was called wrongly, by a person at a terminal.
    Usage,
    /// 65 (`EX_DATAERR`): the message itself is refused for good.
    DataErr,
    /// 67 (`EX_NOUSER`): no such account.
    NoUser,
    /// 69 (`EX_UNAVAILABLE`): the account takes no mail, for good.
    Unavailable,
    /// 75 (`EX_TEMPFAIL`): everything else; the MTA tries again.
    TempFail,
    /// 78 (`EX_CONFIG`): `ringpostd` cannot start with this configuration or kernel.
    Config,
}

impl Code {
    /// The number the parent process sees.
    pub const fn status(self) -> i32 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Misused => 2,
            Self::Usage => 64,
            Self::DataErr => 65,
            Self::NoUser => 67,
            Self::Unavailable => 69,
            Self::TempFail => 75,
            Self::Config => 78,
        }
    }
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(u8::try_from(code.status()).expect("all codes are below 128"))
    }
}

/// What one recipient's answer means to the MTA that called the shim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// The exit code, if this were the only recipient.
    pub code: Code,
    /// RFC 3463; pipe(8) lets it override the exit code's own (mail.md 2.1).
    pub enhanced: &'static str,
    /// For a person, without a full stop.
    pub reason: &'static str,
}

/// A row of the table below.
const fn row(code: Code, enhanced: &'static str, reason: &'static str) -> Outcome {
    Outcome {
        code,
        enhanced,
        reason,
    }
}

/// The table: the exit code of a delivery's status. Whatever is not named is temporary.
pub const fn outcome(status: Status) -> Outcome {
    use Code::{DataErr, Done, NoUser, TempFail, Unavailable};
    match status {
        Status::Ok => row(Done, "2.0.0", "stored"),
        Status::OkDuplicate => row(Done, "2.0.0", "stored before"),
        Status::OkHeld => row(Done, "2.0.0", "held for its primary"),
        Status::TooBig => row(DataErr, "5.3.4", "the message is larger than the limit"),
        Status::NoUser => row(NoUser, "5.1.1", "no such user"),
        Status::QuotaRefused => row(Unavailable, "5.2.2", "the mailbox is over quota"),
        Status::DisabledRefused => row(Unavailable, "5.2.1", "the account is disabled"),
        Status::Quota => row(TempFail, "4.2.2", "the mailbox is over quota"),
        Status::Disabled => row(TempFail, "4.2.1", "the account is disabled"),
        Status::Busy => row(TempFail, "4.3.0", "the node is busy"),
        Status::DiskFull => row(TempFail, "4.3.1", "the disk is full"),
        Status::Stopping => row(TempFail, "4.3.2", "the node is stopping"),
        Status::NoDirectory => row(TempFail, "4.4.3", "the directory cannot be asked"),
        Status::Deadline => row(TempFail, "4.3.0", "no answer in time"),
        Status::Lost => row(
            TempFail,
            "4.3.0",
            "the connection was lost before the answer",
        ),
        Status::ShortCopies => row(TempFail, "4.3.0", "not enough copies are in sync"),
        Status::WrongVersion => row(TempFail, "4.3.0", "the node speaks another version"),
        Status::Invalid => row(TempFail, "4.3.0", "the node cannot take such a delivery"),
        _ => row(TempFail, "4.3.0", "the node could not deliver"),
    }
}

/// The one code for several recipients: a temporary failure makes all of them come again (the
/// duplicate filter swallows what is stored by now); else any refusal makes a bounce.
#[must_use]
pub fn combine(first: Outcome, second: Outcome) -> Outcome {
    if second.weight() > first.weight() {
        second
    } else {
        first
    }
}

impl Outcome {
    const fn weight(self) -> u8 {
        match self.code {
            Code::Done => 0,
            Code::NoUser => 1,
            Code::DataErr => 2,
            Code::Unavailable => 3,
            _ => 4,
        }
    }
}

#[cfg(test)]
mod tests {
    use ringpost_netproto::frame::Verdict;

    use super::*;

    #[test]
    fn codes_agree_with_the_verdicts_of_the_protocol() {
        for &status in Status::ALL {
            let code = outcome(status).code;
            match status.verdict() {
                Verdict::Done => assert_eq!(code, Code::Done, "{status}"),
                Verdict::Later => assert_eq!(code, Code::TempFail, "{status}"),
                // About reading, never an answer to a delivery: a retry, not a bounce.
                Verdict::Never if matches!(status, Status::NoMailbox | Status::NoMessage) => {
                    assert_eq!(code, Code::TempFail, "{status}");
                }
                Verdict::Never => assert!(
                    matches!(code, Code::DataErr | Code::NoUser | Code::Unavailable),
                    "{status}"
                ),
            }
        }
        assert_eq!(outcome(Status::from_wire(9_999)).code, Code::TempFail);
    }

    #[test]
    fn enhanced_codes_have_the_class_of_their_exit_code() {
        for &status in Status::ALL {
            let Outcome { code, enhanced, .. } = outcome(status);
            let class = match code {
                Code::Done => "2.",
                Code::TempFail => "4.",
                _ => "5.",
            };
            assert!(enhanced.starts_with(class), "{status}: {enhanced}");
        }
    }

    #[test]
    fn a_temporary_failure_outweighs_all_others() {
        let (ok, gone) = (outcome(Status::Ok), outcome(Status::NoUser));
        let (busy, full) = (outcome(Status::Busy), outcome(Status::QuotaRefused));
        for (one, other, want) in [
            (ok, gone, Code::NoUser),
            (ok, busy, Code::TempFail),
            (gone, busy, Code::TempFail),
            (full, busy, Code::TempFail),
            (gone, full, Code::Unavailable),
            (ok, ok, Code::Done),
        ] {
            assert_eq!(combine(one, other).code, want);
            assert_eq!(combine(other, one).code, want);
        }
    }
}
