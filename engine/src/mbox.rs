//! mboxrd, both ways: the `From_` line in front of a stored message, its way back to the bytes that
//! came in, the walk over a segment or any other mbox, and the mbox that `export` writes (mail.md
//! 6.3). Pure functions over bytes; they never panic on what a file holds.

mod export;
mod from_line;
mod restore;
mod scan;

pub use export::{EXPORT_END, export_from_line};
pub use from_line::{FROM_LINE_BYTES_MAX, from_line, prefix, sender_of};
pub(crate) use from_line::{prefix_room, put_prefix};
pub use restore::{Restorer, View, restore};
pub use scan::{Found, Item, Scanner, State, scan};

/// What the first line of every message in an mbox begins with.
const FROM: &[u8; 5] = b"From ";
