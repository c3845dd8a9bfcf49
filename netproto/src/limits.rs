//! Every bound of the protocol with its reason; const assertions relate neighbours.
//! Both sides know these numbers: what one side may send, the other can hold.

/// A frame's payload is at most this, whatever HELLO says: one connection never makes the other
/// side reserve more at once.
pub const PAYLOAD_BYTES_CEILING: u32 = 4 << 20;

/// What a side accepts unless configured otherwise, and the least it may announce: every message
/// with all its parts at their limits fits, so no sender has to cut a request in two.
pub const PAYLOAD_BYTES_DEFAULT: u32 = 1 << 20;

/// Before HELLO only HELLO and GOAWAY may come: strangers get no more memory than that.
pub const PAYLOAD_BYTES_BEFORE_HELLO: u32 = 256;

/// A message up to this long travels inside its DELIVER frame; above it, as a stream, so that other
/// requests get their turn between its pieces.
pub const INLINE_BODY_BYTES_MAX: usize = 64 << 10;

/// One piece of a stream: 0.2 ms of a 10 Gbit/s link, so nobody waits long behind it.
pub const STREAM_PIECE_BYTES_MAX: usize = 256 << 10;

/// Recipients of one DELIVER: Postfix takes up to 1,000 per message (`smtpd_recipient_limit`), and the
/// engine's group has the same bound.
pub const RECIPIENTS_MAX: usize = 1_000;

/// Bytes of an address: 64 of local part, `@`, 255 of domain (RFC 5321 4.5.3.1). A longer one is
/// refused by itself; the other recipients of the request are not affected.
pub const ADDRESS_BYTES_MAX: usize = 320;

/// Bytes of a mailbox name in UTF-8.
pub const MAILBOX_NAME_BYTES_MAX: usize = 255;

/// Bytes of a user name: what [`placement`](crate::placement) takes.
pub const USER_BYTES_MAX: usize = crate::placement::NAME_BYTES_MAX;

/// Bytes of an MTA's queue id, for logs and traces; Postfix's long ids have 20.
pub const QUEUE_ID_BYTES_MAX: usize = 64;

/// Bytes of a sentence in a reply or a GOAWAY: a line of a log.
pub const TEXT_BYTES_MAX: usize = 256;

/// Requests without an answer per connection. Each costs a map entry on both sides.
pub const REQUESTS_IN_FLIGHT_MAX: usize = 1_024;

/// Reading requests (list, mailboxes, fetch, status) a server hands out at a time: each answer may
/// be a frame of the largest size, and the rest waits as the few bytes it came as.
pub const READS_IN_FLIGHT_MAX: usize = 16;

/// Entries of one page of a list; the engine's `LIST_ENTRIES_MAX`.
pub const LIST_ENTRIES_MAX: usize = 1_000;

/// Bytes of the header cache of one list entry: the engine's 15 slots of 64.
pub const HEADER_CACHE_BYTES_MAX: usize = 15 * 64;

/// Mailboxes in one answer.
pub const MAILBOXES_MAX: usize = 3_000;

/// Keywords of one message: the engine's `KEYWORDS_MAX`, which is a mailbox's.
pub const KEYWORDS_MAX: usize = 64;

/// Bytes of a keyword; the engine's bound.
pub const KEYWORD_BYTES_MAX: usize = 255;

/// Fields of a status report.
pub const REPORT_FIELDS_MAX: usize = 1_000;

/// Bytes that a side lets the other send before it gives some back: enough for 10 Gbit/s at 6 ms
/// until durable (cluster.md 9.3).
pub const CREDIT_BYTES_DEFAULT: u32 = 8 << 20;

/// Less would let one request of the largest size stall the connection again and again.
pub const CREDIT_BYTES_MIN: u32 = 1 << 20;

/// A window above this is a lie or a unit mixed up.
pub const CREDIT_BYTES_MAX: u32 = 1 << 30;

/// Small frames are gathered into one buffer of about this size: one write for many of them.
pub const COALESCE_BYTES: usize = 64 << 10;

/// A body of at least this goes out as the shared bytes it is; below it, a copy is cheaper than
/// another write.
pub const PASS_THROUGH_BYTES_MIN: usize = 16 << 10;

/// Streams are cut into frames only while less than this is ready to be written, so that an answer
/// made later does not queue behind a whole message.
pub const READY_BYTES_TARGET: usize = 512 << 10;

/// A stream takes its turns only while fewer than the peer's window divided by this are under way;
/// the others wait for one to end. A receiver may hold [`HELD_BYTES_MAX`] of each until its end, so
/// unfinished bodies never use up the whole window and one of them can always be finished.
pub const STREAM_WINDOW_SHARE_BYTES: u32 = 512 << 10;

/// Of a message whose end has not come, a receiver gives credit back for what is above this.
pub const HELD_BYTES_MAX: usize = 256 << 10;

/// A client takes no new request, and a server hands out no reading request, above this backlog.
pub const BACKLOG_BYTES_SOFT: usize = 4 << 20;

/// Above this backlog of finished frames (streams not counted) input is a violation: the caller
/// went on reading from a peer that reads nothing.
pub const BACKLOG_BYTES_HARD: usize = 64 << 20;

/// The longest DELIVER: its structs, sender, queue id, recipients (addresses and names are sent one
/// byte above their limit when they are too long, so that the server sees it), body.
const DELIVER_BYTES_MAX: usize = 32
    + ADDRESS_BYTES_MAX
    + QUEUE_ID_BYTES_MAX
    + RECIPIENTS_MAX * (4 + ADDRESS_BYTES_MAX + 1 + MAILBOX_NAME_BYTES_MAX + 1)
    + INLINE_BODY_BYTES_MAX;
const APPEND_BYTES_MAX: usize = 80
    + USER_BYTES_MAX
    + MAILBOX_NAME_BYTES_MAX
    + 1
    + ADDRESS_BYTES_MAX
    + KEYWORDS_MAX * (2 + KEYWORD_BYTES_MAX)
    + INLINE_BODY_BYTES_MAX;
const LIST_REPLY_BYTES_MAX: usize =
    48 + MAILBOX_NAME_BYTES_MAX + LIST_ENTRIES_MAX * (64 + HEADER_CACHE_BYTES_MAX);
const MAILBOXES_REPLY_BYTES_MAX: usize = 8 + MAILBOXES_MAX * (40 + MAILBOX_NAME_BYTES_MAX);
const REPORT_BYTES_MAX: usize = 8 + REPORT_FIELDS_MAX * (4 + 2 * TEXT_BYTES_MAX);
const REPLY_BYTES_MAX: usize = 8 + RECIPIENTS_MAX * (24 + TEXT_BYTES_MAX);
const _: () = assert!(PAYLOAD_BYTES_DEFAULT <= PAYLOAD_BYTES_CEILING);
const _: () = assert!(DELIVER_BYTES_MAX <= PAYLOAD_BYTES_DEFAULT as usize);
const _: () = assert!(APPEND_BYTES_MAX <= PAYLOAD_BYTES_DEFAULT as usize);
const _: () = assert!(LIST_REPLY_BYTES_MAX <= PAYLOAD_BYTES_DEFAULT as usize);
const _: () = assert!(MAILBOXES_REPLY_BYTES_MAX <= PAYLOAD_BYTES_DEFAULT as usize);
const _: () = assert!(REPORT_BYTES_MAX <= PAYLOAD_BYTES_DEFAULT as usize);
const _: () = assert!(REPLY_BYTES_MAX <= PAYLOAD_BYTES_DEFAULT as usize);
const _: () = assert!(STREAM_PIECE_BYTES_MAX <= PAYLOAD_BYTES_DEFAULT as usize);
const _: () = assert!(TEXT_BYTES_MAX <= PAYLOAD_BYTES_BEFORE_HELLO as usize);
const _: () = assert!(PAYLOAD_BYTES_DEFAULT <= CREDIT_BYTES_MIN);
const _: () = assert!(CREDIT_BYTES_MIN <= CREDIT_BYTES_DEFAULT);
const _: () = assert!(CREDIT_BYTES_DEFAULT <= CREDIT_BYTES_MAX);
const _: () = assert!(2 * HELD_BYTES_MAX <= STREAM_WINDOW_SHARE_BYTES as usize);
const _: () = assert!(CREDIT_BYTES_MIN / STREAM_WINDOW_SHARE_BYTES >= 2);
const _: () = assert!(PASS_THROUGH_BYTES_MIN < COALESCE_BYTES);
