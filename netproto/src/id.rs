//! Ids that stand on the wire and on disk alike. Each is a type of its own, so that a uid cannot be
//! passed where a modseq is meant; none converts into another.

use core::fmt;

/// Declares a transparent newtype over an unsigned integer, with `new` and `value`.
macro_rules! id {
    ($(#[$doc:meta])* $name:ident($int:ty), $format:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $name($int);

        impl $name {
            /// Wraps the plain number.
            pub const fn new(value: $int) -> Self {
                Self(value)
            }

            /// The plain number, as it stands on wire and disk.
            pub const fn value(self) -> $int {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }
    };
}

id!(
    /// One of the `P` equal slices of the user hash space (4,096 by default, at most 65,536).
    PartitionId(u16), "{:04x}"
);
id!(
    /// A mailbox of one user. Never reused; 1 is INBOX, 2 is Sent.
    MailboxId(u32), "{:08x}"
);
id!(
    /// A message's number within its mailbox: ascending, never reused (RFC 9051 2.3.1.1). Not 0.
    Uid(u32), "{}"
);
id!(
    /// The validity of a mailbox's uids (RFC 9051 2.3.1.1). Not 0.
    UidValidity(u32), "{}"
);
id!(
    /// A user's change counter, 63 bits, one per group (RFC 7162 3.1).
    Modseq(u64), "{}"
);
id!(
    /// SipHash-2-4 of the canonical user name under the cluster's key.
    UserHash(u64), "{:016x}"
);
id!(
    /// Nanoseconds since 1970-01-01T00:00:00Z.
    WallNs(u64), "{}"
);
id!(
    /// A node of the cluster; never used again after its removal.
    NodeId(u32), "{}"
);
id!(
    /// The epoch of a partition: grows with every change of its primary or its in-sync set.
    Epoch(u32), "{}"
);

impl MailboxId {
    /// Where mail arrives.
    pub const INBOX: Self = Self(1);
    /// Where web-mail keeps what was sent (the thesis's `ID.sent`).
    pub const SENT: Self = Self(2);
    /// Mail that waits for its primary (cluster.md 6.4); hidden from users.
    pub const HELD: Self = Self(0xFFFF_FFFF);
}

/// The identity of a message's content for one recipient, 128 bits: the delivery id (mail.md 5), or
/// random where a delivery is not filtered for duplicates.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Guid([u8; 16]);

impl Guid {
    /// Wraps the 16 bytes.
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes, as they stand on wire and disk.
    pub const fn bytes(self) -> [u8; 16] {
        self.0
    }
}

impl fmt::Display for Guid {
    /// 32 lower-case hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
