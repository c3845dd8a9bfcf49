//! The one table of statuses: what a response, a stream end or a GOAWAY says in one number.
//! Numbers only grow. One that a newer peer knows is kept as [`Status::Unknown`] and means "later".

use core::fmt;

/// What a status means to whoever wants to get rid of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is done, and durable where that was asked.
    Done,
    /// Not done; trying again may help. In doubt it is this one.
    Later,
    /// Not done, and the same request will not succeed.
    Never,
}

macro_rules! statuses {
    ($($(#[$attribute:meta])* $variant:ident = $number:literal $name:literal $verdict:ident,)+) => {
        /// The outcome of a request, or of one of its recipients.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        #[non_exhaustive]
        pub enum Status {
            $($(#[$attribute])* $variant,)+
            /// A number of a newer version.
            Unknown(u16),
        }

        impl Status {
            /// All that have a name, ascending by number.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The number on the wire.
            pub const fn wire(self) -> u16 {
                match self {
                    $(Self::$variant => $number,)+
                    Self::Unknown(wire) => wire,
                }
            }

            /// Every number is a status.
            pub const fn from_wire(wire: u16) -> Self {
                match wire {
                    $($number => Self::$variant,)+
                    _ => Self::Unknown(wire),
                }
            }

            /// Its name in PROTOCOL.md and in logs; `"UNKNOWN"` for a newer one.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                    Self::Unknown(_) => "UNKNOWN",
                }
            }

            /// Done, later or never.
            pub const fn verdict(self) -> Verdict {
                match self {
                    $(Self::$variant => Verdict::$verdict,)+
                    Self::Unknown(_) => Verdict::Later,
                }
            }
        }
    };
}

statuses! {
    /// Done.
    Ok = 0 "OK" Done,
    /// The same delivery was done before; the answer names the first copy.
    OkDuplicate = 1 "OK_DUPLICATE" Done,
    /// Durable, but held until the primary is back.
    OkHeld = 2 "OK_HELD" Done,
    /// The partition has another epoch.
    WrongEpoch = 16 "WRONG_EPOCH" Later,
    /// The sender is no longer primary.
    Fenced = 17 "FENCED" Later,
    /// Another node is primary.
    NotPrimary = 18 "NOT_PRIMARY" Later,
    /// A record before this one is missing.
    Gap = 19 "GAP" Later,
    /// No such account, or no address at all.
    NoUser = 20 "NO_USER" Never,
    /// Over quota, to be tried again.
    Quota = 21 "QUOTA" Later,
    /// A queue, log or memory share is full.
    Busy = 22 "BUSY" Later,
    /// The time was up.
    Deadline = 23 "DEADLINE" Later,
    /// The opcode, its version or a part of it is not known here.
    Unsupported = 24 "UNSUPPORTED" Later,
    /// Over the size limit of a message.
    TooBig = 25 "TOO_BIG" Never,
    /// What was asked for is damaged.
    Corrupt = 26 "CORRUPT" Later,
    /// Not enough copies are in sync.
    ShortCopies = 27 "SHORT_COPIES" Later,
    /// The user lives on another node.
    Moved = 28 "MOVED" Later,
    /// The request breaks a limit or makes no sense.
    Invalid = 29 "INVALID" Later,
    /// No such mailbox.
    NoMailbox = 30 "NO_MAILBOX" Never,
    /// No such message (any more).
    NoMessage = 31 "NO_MESSAGE" Never,
    /// Disk space or inodes are at the floor.
    DiskFull = 32 "DISK_FULL" Later,
    /// The node is stopping.
    Stopping = 33 "STOPPING" Later,
    /// The account is disabled, to be tried again.
    Disabled = 34 "DISABLED" Later,
    /// The requester gave up before the end.
    Cancelled = 35 "CANCELLED" Later,
    /// The directory cannot be asked whether the account exists.
    NoDirectory = 36 "NO_DIRECTORY" Later,
    /// Over quota, and the policy is to refuse.
    QuotaRefused = 37 "QUOTA_REFUSED" Never,
    /// The account is disabled, and the policy is to refuse.
    DisabledRefused = 38 "DISABLED_REFUSED" Never,
    /// The peer broke the protocol.
    Violation = 39 "VIOLATION" Later,
    /// No common protocol version.
    WrongVersion = 40 "WRONG_VERSION" Later,
    /// Another cluster, or another node than the one meant.
    WrongPeer = 41 "WRONG_PEER" Later,
    /// The connection ended first; what became of the request is not known. Made by the local
    /// session, never sent.
    Lost = 42 "LOST" Later,
    /// A fault of ours.
    Internal = 63 "INTERNAL" Later,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(wire) => write!(f, "UNKNOWN({wire})"),
            known => f.write_str(known.name()),
        }
    }
}
