//! The one table of opcodes. A number is never used again; what is reserved is named here so that
//! nobody takes it, and is answered UNSUPPORTED until it is built.

/// Whether this version speaks an opcode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Built {
    /// It does.
    Yes,
    /// The number is taken, the message does not exist yet.
    Reserved,
}

macro_rules! opcodes {
    ($($variant:ident = $number:literal $name:literal $built:ident,)+) => {
        /// What a frame is about. Names in PROTOCOL.md.
        #[expect(missing_docs, reason = "PROTOCOL.md section 4 says what each is, once")]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        #[non_exhaustive]
        pub enum Opcode {
            $($variant,)+
        }

        impl Opcode {
            /// All of them, ascending by number.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The number on the wire.
            pub const fn wire(self) -> u16 {
                match self {
                    $(Self::$variant => $number,)+
                }
            }

            /// `None` for a number that is not in the table.
            pub const fn from_wire(wire: u16) -> Option<Self> {
                match wire {
                    $($number => Some(Self::$variant),)+
                    _ => None,
                }
            }

            /// Its name in PROTOCOL.md and in logs.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// Whether this version speaks it.
            pub const fn built(self) -> Built {
                match self {
                    $(Self::$variant => Built::$built,)+
                }
            }
        }
    };
}

opcodes! {
    Hello = 1 "HELLO" Yes,
    Auth = 2 "AUTH" Reserved,
    AuthOk = 3 "AUTH_OK" Reserved,
    GoAway = 4 "GOAWAY" Yes,
    Ping = 5 "PING" Yes,
    Credit = 6 "CREDIT" Yes,
    Cancel = 7 "CANCEL" Yes,
    MapGet = 8 "MAP_GET" Reserved,
    MapPush = 9 "MAP_PUSH" Reserved,
    Deliver = 16 "DELIVER" Yes,
    DeliverBody = 17 "DELIVER_BODY" Yes,
    HoldPut = 18 "HOLD_PUT" Reserved,
    HandBack = 19 "HAND_BACK" Reserved,
    ReplHello = 32 "REPL_HELLO" Reserved,
    ReplAppend = 33 "REPL_APPEND" Reserved,
    ReplAck = 34 "REPL_ACK" Reserved,
    ReplHeartbeat = 35 "REPL_HEARTBEAT" Reserved,
    ReplTruncate = 36 "REPL_TRUNCATE" Reserved,
    ReplFence = 37 "REPL_FENCE" Reserved,
    Handover = 38 "HANDOVER" Reserved,
    BodyPut = 39 "BODY_PUT" Reserved,
    SyncDigest = 48 "SYNC_DIGEST" Reserved,
    SyncUsers = 49 "SYNC_USERS" Reserved,
    SyncFetch = 50 "SYNC_FETCH" Reserved,
    SegmentList = 51 "SEGMENT_LIST" Reserved,
    SegmentRead = 52 "SEGMENT_READ" Reserved,
    UserLocate = 64 "USER_LOCATE" Reserved,
    MailboxList = 65 "MAILBOX_LIST" Yes,
    Fetch = 66 "FETCH" Yes,
    Store = 67 "STORE" Reserved,
    Expunge = 68 "EXPUNGE" Reserved,
    Append = 69 "APPEND" Yes,
    Copy = 70 "COPY" Reserved,
    Watch = 71 "WATCH" Reserved,
    Authenticate = 72 "AUTHENTICATE" Reserved,
    Mailbox = 73 "MAILBOX" Reserved,
    Changes = 74 "CHANGES" Reserved,
    Move = 75 "MOVE" Reserved,
    Search = 76 "SEARCH" Reserved,
    List = 77 "LIST" Yes,
    MoveUserBegin = 80 "MOVE_USER_BEGIN" Reserved,
    MoveUserTail = 81 "MOVE_USER_TAIL" Reserved,
    MoveUserSwap = 82 "MOVE_USER_SWAP" Reserved,
    MoveUserDrop = 83 "MOVE_USER_DROP" Reserved,
    Status = 96 "STATUS" Yes,
    Trace = 97 "TRACE" Reserved,
    Backup = 98 "BACKUP" Yes,
    Scrub = 100 "SCRUB" Yes,
}
