//! What is asked of a change, apart from whose it is.

use ringpost_netproto::id::{MailboxId, Modseq};
use ringpost_netproto::placement::UserKey;

use crate::request::{
    Event, FlagOp, Flags, MailboxChange, QuotaLimits, Refused, Request, Ticket, UidSet, UserState,
    Which,
};

/// What is asked.
pub(in crate::shard) enum Wish {
    Store {
        mailbox: MailboxId,
        uids: UidSet,
        op: FlagOp,
        flags: Flags,
        unchanged_since: Option<u64>,
    },
    Expunge {
        mailbox: MailboxId,
        uids: UidSet,
        which: Which,
    },
    Copy {
        from: MailboxId,
        uids: UidSet,
        to: MailboxId,
        moves: Moves,
    },
    Mailbox(MailboxChange),
    Refill(Box<UserState>),
}

/// Whether copied messages stay where they were.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::shard) enum Moves {
    Yes,
    /// And these bounds hold.
    No(QuotaLimits),
}

impl Wish {
    pub(super) fn ranges(&self) -> usize {
        match self {
            Self::Store { uids, .. } | Self::Expunge { uids, .. } | Self::Copy { uids, .. } => {
                uids.ranges().len()
            }
            Self::Mailbox(_) | Self::Refill(_) => 0,
        }
    }

    /// The mailbox that gets something, if it is one that exists.
    pub(super) fn target(&self) -> Option<MailboxId> {
        match self {
            Self::Store { mailbox, .. } | Self::Expunge { mailbox, .. } => Some(*mailbox),
            Self::Copy { to, .. } => Some(*to),
            Self::Mailbox(_) | Self::Refill(_) => None,
        }
    }

    pub(super) fn refusal(&self, ticket: Ticket, why: Refused) -> Event {
        match self {
            Self::Store { .. } => Event::FlagsStored {
                ticket,
                result: Err(why),
            },
            Self::Expunge { .. } => Event::Expunged {
                ticket,
                result: Err(why),
            },
            Self::Copy { .. } => Event::Copied {
                ticket,
                result: Err(why),
            },
            Self::Mailbox(_) => Event::MailboxChanged {
                ticket,
                result: Err(why),
            },
            Self::Refill(_) => Event::Refilled {
                ticket,
                result: Err(why),
            },
        }
    }
}

/// A change as it was asked for; whose it is stands beside it.
pub(in crate::shard) fn wish_of(request: Request) -> (UserKey, Wish) {
    match request {
        Request::Store {
            user,
            mailbox,
            uids,
            op,
            flags,
            unchanged_since,
        } => {
            let unchanged_since = unchanged_since.map(Modseq::value);
            let wish = Wish::Store {
                mailbox,
                uids,
                op,
                flags,
                unchanged_since,
            };
            (user, wish)
        }
        Request::Expunge {
            user,
            mailbox,
            uids,
            which,
        } => {
            let wish = Wish::Expunge {
                mailbox,
                uids,
                which,
            };
            (user, wish)
        }
        Request::Copy {
            user,
            from,
            uids,
            to,
            quota,
        } => {
            let moves = Moves::No(quota);
            let wish = Wish::Copy {
                from,
                uids,
                to,
                moves,
            };
            (user, wish)
        }
        Request::Move {
            user,
            from,
            uids,
            to,
        } => {
            let moves = Moves::Yes;
            let wish = Wish::Copy {
                from,
                uids,
                to,
                moves,
            };
            (user, wish)
        }
        Request::Mailbox { user, change } => (user, Wish::Mailbox(change)),
        Request::Refill { user, state } => (user, Wish::Refill(state)),
        other => unreachable!("dispatched before: {other:?}"),
    }
}
