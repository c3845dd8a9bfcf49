//! Mail of other programs, read to be brought along: mbox files of every flavour and Maildirs.
//!
//! Nothing here knows a node or a store, writes anything, or trusts what it reads: a file may be
//! anything, and a Maildir may change while it is read. What comes out are messages with what their
//! surroundings say of them: flags, keywords, date, sender.

pub mod bookkeeping;
pub mod flavour;
pub mod from_line;
pub mod maildir;
pub mod mbox;
pub mod names;
mod window;

use ringpost_netproto::id::WallNs;

/// A message and what its surroundings say of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Mail {
    /// As it was received, as far as can be told.
    pub bytes: Vec<u8>,
    /// System flags as the store has them.
    pub flags: u32,
    /// Words that are keywords, each once.
    pub keywords: Vec<String>,
    /// When it arrived.
    pub date: Option<WallNs>,
    /// Envelope sender, if it is known.
    pub sender: Vec<u8>,
}

/// A longer message is passed over: it would have to be in memory. Nodes take 64 MiB unless they are
/// told otherwise.
pub const MESSAGE_BYTES_MAX: usize = 256 << 20;

/// Whole seconds since 1970 as a date; `None` before that.
pub(crate) fn date_of(seconds: i64) -> Option<WallNs> {
    let seconds = u64::try_from(seconds).ok()?;
    seconds.checked_mul(1_000_000_000).map(WallNs::new)
}
