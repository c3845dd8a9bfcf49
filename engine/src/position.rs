//! Positions in a shard's log, each fact a type of its own (storage.md 1.2).
//!
//! `CheckpointedTo <= VisibleTo <= DurableTo <= FlushedTo <= WrittenTo` holds at every step and is
//! asserted in `commit`. No type converts into another: a positive answer is built from a
//! [`DurableTo`], so that an early acknowledgement does not compile.

use std::fmt;

/// A byte position in one shard's endless log payload. Log files and frames lie on multiples of
/// 4096 of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Lsn(u64);

impl Lsn {
    /// Wraps the plain position.
    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    /// The plain position, as it stands on disk.
    pub const fn value(self) -> u64 {
        self.0
    }

    /// The position `bytes` further on.
    #[must_use]
    pub const fn after(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Declares a position that only this crate can make.
macro_rules! position {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub struct $name(Lsn);

        impl $name {
            pub(crate) const fn new(lsn: Lsn) -> Self {
                Self(lsn)
            }

            /// Everything below this position has the property.
            pub const fn lsn(self) -> Lsn {
                self.0
            }
        }
    };
}

position!(
    /// Handed to the kernel; proves nothing. Made by `commit` on submit.
    WrittenTo
);
position!(
    /// On this node's medium. Made by `commit` on completion.
    FlushedTo
);
position!(
    /// On as many copies as the policy asks; the only source of an answer. Made by `commit`.
    DurableTo
);
position!(
    /// Published to readers. Made by `commit` after publishing.
    VisibleTo
);
position!(
    /// Durable in segments and info; its log may be reused. Made by `checkpoint` after its sync.
    CheckpointedTo
);
