//! What a scrub is asked and what it finds (storage.md 8.6).

use std::sync::Arc;

use ringpost_netproto::id::{Guid, MailboxId, Uid};
use ringpost_netproto::placement::UserKey;

use crate::error::Corrupt;

/// What is to be read and compared with its checksums.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ScrubWhat {
    /// All that the shard has, from the start; a pass that runs begins anew.
    All,
    /// One user, before all others.
    User(UserKey),
}

/// What a scrub that was asked for did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Scrubbed {
    /// Users whose files were read.
    pub users: u64,
    /// Messages whose bytes were compared with their checksum and the index.
    pub messages: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Damaged places that are known of what was scrubbed.
    pub damaged: u64,
}

/// A damaged place: kept from being served until a repair, or until a scrub finds it whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    /// The canonical name; empty for the shard's own files.
    pub user: Arc<[u8]>,
    /// `None`: the user's index, or a file of the shard.
    pub message: Option<DamagedMessage>,
    /// File, offset, reason.
    pub corrupt: Arc<Corrupt>,
}

/// Which message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DamagedMessage {
    /// Its mailbox.
    pub mailbox: MailboxId,
    /// Its number there.
    pub uid: Uid,
    /// Identity of its content.
    pub guid: Guid,
}
