//! Every bound of the engine with its reason; const assertions relate neighbours (storage.md 4.4).
//! What an operator or a test may change is in [`config`](crate::config); these are its ceilings.

/// Log frames, log files and `O_DIRECT` buffers lie on this: the largest common block size, and no
/// block with acknowledged data is ever written again (storage.md 3.5).
pub const BLOCK_BYTES: u64 = 4096;

/// A frame on disk is at most this; the default limit of a batch is 1 MiB.
pub const FRAME_BYTES_MAX: u64 = 4 << 20;

/// A stored message: the length field has 31 usable bits so that sums fit 64 bits anywhere.
pub const STORED_BYTES_MAX: u64 = (2 << 30) - 1;

/// Recipients of one group; RFC 5321 4.5.3.1.8 asks for 100, Postfix sends up to 1,000.
pub const RECIPIENTS_MAX: usize = 1_000;

/// Header cache slots (64 B) behind the two fixed slots of a MSG run: `extra` is 4 bits plus reserve.
pub const CACHE_SLOTS_MAX: usize = 15;

/// Bytes of an info slot.
pub const SLOT_BYTES: u64 = 64;

/// The `From_` line and the store line of a message are at most this: a sender of 320 bytes, each
/// escaped to three, and 24 of date, and the 128 of the store line.
pub const PREFIX_BYTES_MAX: usize = 1_280;

/// Bytes handed out by one `Fetch`, and read by one `Op::Read`.
pub const FETCH_BYTES_MAX: u32 = 1 << 20;

/// Entries of one page of `List`.
pub const LIST_ENTRIES_MAX: u32 = 1_000;

/// Bytes of one `StageWrite`.
pub const STAGE_WRITE_BYTES_MAX: usize = 1 << 20;

/// Stage files open at a time per shard; each is a connection that sends a large message.
pub const STAGES_MAX: usize = 1_024;

/// Requests without an answer, per shard (storage.md 4.4).
pub const TICKETS_MAX: usize = 65_536;

/// Requests that wait for one user's state to load.
pub const USER_QUEUE_MAX: usize = 1_024;

/// Mailboxes of one user: names are compared one by one, and a rename of all has to fit a frame.
pub const MAILBOXES_MAX: usize = 4_096;

/// Keywords of one mailbox: each is a bit of 64.
pub const KEYWORDS_MAX: usize = 64;

/// Ranges of a set of uids in one request: 128 KiB, of which each ticket may hold one.
pub const UID_RANGES_MAX: usize = 16_384;

/// Snapshots open at a time per shard; each is an IMAP session in a mailbox.
pub const SNAPSHOTS_MAX: usize = 16_384;

/// Watches that wait, per shard; each is a ticket.
pub const WATCHES_MAX: usize = 32_768;
const _: () = assert!(
    WATCHES_MAX <= TICKETS_MAX / 2,
    "watches leave tickets for others"
);

/// A backup that nobody ends or prolongs is over after this: six hours (storage.md 8.6).
pub const BACKUP_LEASE_NS_MAX: u64 = 6 * 3_600 * 1_000_000_000;

/// Messages of one step of a copy: so many bodies are read, or links made, side by side.
pub const COPY_STEP_MAX: usize = 64;

/// Bytes of an info file: 2^32 slots could be addressed, a load must stay bounded.
pub const INFO_BYTES_MAX: u64 = 4 << 30;

/// Segment and info descriptors kept open for reading, per shard.
pub const OPEN_FILES_MAX: usize = 1_024;

/// Ids of appends that are remembered in memory ([`crate::request::Dedupe::Recent`]): 16 connections
/// with as many requests in flight as one may have.
pub const RECENT_ENTRIES: u64 = 16_384;

/// The oldest unanswered append may be this old before new mail is refused (a slow disk gives 451,
/// not a hang).
pub const APPEND_AGE_MAX_NS: u64 = 5_000_000_000;

/// An idle shard writes a NOOP frame after this, so that the last frame is vouched for (6.2).
pub const NOOP_AFTER_NS: u64 = 5_000_000;

/// At most one NOOP frame in this time.
pub const NOOP_INTERVAL_NS: u64 = 100_000_000;

/// The largest record set of one group must fit a frame beside the largest small message.
const DELIVER_BYTES_MAX: u64 = 216 + PREFIX_BYTES_MAX as u64 + 8;
const _: () = assert!(
    FRAME_BYTES_MAX >= DELIVER_BYTES_MAX * RECIPIENTS_MAX as u64 + (1 << 20) + 2 * BLOCK_BYTES,
    "a group with the most recipients and the largest small message fits the largest frame"
);
