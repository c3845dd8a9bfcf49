//! What is cut off was promised to nobody, unless a person promoted a node that lacked it: so its
//! messages are held until the primary says that it has them (cluster.md 6.2).

use std::sync::Arc;

use bytes::Bytes;
use ringpost_netproto::id::PartitionId;
use ringpost_netproto::placement::UserKey;

use crate::canary::{self, Canary};
use crate::format::info::{MSG_FIXED_BYTES, Msg};
use crate::format::record::{
    DELIVER_FILE_FIXED_AT, DELIVER_FIXED_AT, Payload, RecordType, Records,
};
use crate::format::store_line::STORE_LINE_FLAGS;
use crate::io::Io;
use crate::large::StagedBody;
use crate::mbox;
use crate::prepare::{PreparedBody, ReceivedField, Summary};
use crate::request::{
    AppendGroup, Body, Dedupe, Flags, Now, Origin, Outcome, QuotaLimits, Recipient, Refused,
    Shipped, StageId,
};
use crate::shard::Shard;
use crate::shard::append::Asker;
use crate::user::State;

/// How far it is.
#[derive(Default)]
pub(in crate::shard) struct Rescue {
    /// Messages on their way.
    open_count: usize,
    /// Why one of them could not be held.
    refused: Option<Refused>,
}

impl Rescue {
    pub(super) fn is_open(&self) -> bool {
        self.open_count > 0
    }
}

impl<I: Io> Shard<I> {
    /// Holds the messages of a partition's records above `pseq`; `None` while that goes on.
    pub(super) fn rescue(
        &mut self,
        now: Now,
        partition: PartitionId,
        pseq: u64,
    ) -> Option<Result<(), Refused>> {
        if canary::on(Canary::CutWithoutHold) {
            return Some(Ok(()));
        }
        if let Some(rescue) = &mut self.copies.place(partition).rescue {
            if rescue.open_count > 0 {
                return None;
            }
            let refused = rescue.refused.clone();
            if refused.is_some() {
                self.copies.place(partition).rescue = None;
            }
            return Some(refused.map_or(Ok(()), Err));
        }
        let kept = &self.copies.place(partition).kept;
        let above = kept.iter().filter(|kept| kept.mark.pseq > pseq);
        let above: Vec<Shipped> = above.map(|kept| kept.shipped.clone()).collect();
        let mut groups = Vec::new();
        let mut is_loading = false;
        for shipped in &above {
            match self.group_of(shipped) {
                Wanted::Nothing => {}
                Wanted::Group(group) => groups.push(group),
                Wanted::Refused(refused) => return Some(Err(refused)),
                Wanted::Name(user) => {
                    is_loading = true;
                    self.start_load(user, None);
                }
            }
        }
        if is_loading {
            return None;
        }
        let mut rescue = Rescue {
            open_count: groups.len(),
            refused: None,
        };
        for group in groups {
            if let Err(refused) = self.submit_hold(now, Asker::Cut(partition), group) {
                rescue.open_count -= 1;
                rescue.refused = Some(refused);
            }
        }
        let is_done = rescue.open_count == 0 && rescue.refused.is_none();
        self.copies.place(partition).rescue = Some(rescue);
        is_done.then_some(Ok(()))
    }

    /// One of them is held, or could not be.
    pub(in crate::shard) fn rescued(&mut self, partition: PartitionId, outcomes: Vec<Outcome>) {
        let Some(rescue) = &mut self.copies.place(partition).rescue else {
            return;
        };
        rescue.open_count -= 1;
        for outcome in outcomes {
            if let Outcome::Refused(refused) = outcome {
                rescue.refused = Some(refused);
            }
        }
        self.copies.turns.push_back(partition);
    }

    /// A record as mail to its user, if it is a message.
    fn group_of(&mut self, shipped: &Shipped) -> Wanted {
        let read = self.read_record(&shipped.record, shipped.body.as_ref());
        let read = read.expect("it was encoded, or read, before");
        let Some(msg) = &read.msg else {
            return Wanted::Nothing;
        };
        let partition = read.head.partition;
        let user = self
            .users
            .by_ordinal(read.head.user, read.head.ordinal, partition);
        let found = self.users.get(user);
        let key = match (&found.name, &found.state) {
            (Some(name), _) => UserKey::new(name, &self.identity.key, self.identity.partitions),
            // It may be read another time.
            (None, State::Repairing(corrupt)) if corrupt.is_unreadable() => {
                return Wanted::Refused(Refused::Repairing(Arc::clone(corrupt)));
            }
            // Nobody knows whose it is; the load has said what is wrong.
            (None, State::Repairing(_)) => None,
            (None, _) => return Wanted::Name(user),
        };
        let Some(key) = key else {
            return Wanted::Nothing;
        };
        let Some((body, sender)) = body_of(shipped, read.kind, msg) else {
            return Wanted::Nothing;
        };
        Wanted::Group(AppendGroup {
            body,
            sender,
            recipients: vec![Recipient {
                user: key,
                mailbox: msg.mailbox,
                folder: None,
                guid: msg.guid,
                dedupe: Dedupe::Yes,
                internal_date: msg.internal_date,
                flags: Flags {
                    system: msg.system_flags,
                    // Bits of a mailbox that the box does not have.
                    keywords: Vec::new(),
                },
                quota: QuotaLimits::default(),
            }],
            origin: Origin::Delivery,
        })
    }
}

/// What a record that is cut off leaves.
enum Wanted {
    /// It is no message.
    Nothing,
    /// Mail.
    Group(AppendGroup),
    /// The name of this user first.
    Name(usize),
    /// Nothing now.
    Refused(Refused),
}

/// The message of a record, and its sender.
fn body_of(shipped: &Shipped, kind: RecordType, msg: &Msg) -> Option<(Body, Bytes)> {
    let summary = summary_of(msg);
    if kind == RecordType::Deliver {
        let whole = shipped.body.as_ref()?;
        let Payload::Body(parts) = Records::at(whole, 0).ok()?.payload else {
            return None;
        };
        let sender = mbox::sender_of(prefix_of(&shipped.record, msg));
        return Some((
            Body::Small(Arc::new(PreparedBody {
                // Not slices: what is pending must not keep a whole frame in memory.
                stored: Bytes::copy_from_slice(parts.stored),
                cache: Bytes::copy_from_slice(parts.cache),
                summary,
            })),
            Bytes::copy_from_slice(sender),
        ));
    }
    let cache = shipped
        .record
        .get(DELIVER_FILE_FIXED_AT + MSG_FIXED_BYTES..)?;
    let staged = StagedBody {
        // Nobody's: the file is the user's link to it, which stays until the cut.
        stage: StageId(u64::MAX),
        path: shipped.file.clone()?,
        summary,
        cache: Bytes::copy_from_slice(cache),
        prefix_len: msg.skip,
        internal_date: msg.internal_date,
    };
    // It stands in the file.
    Some((Body::Staged(Arc::new(staged)), Bytes::new()))
}

/// `From_` line and store line of a DELIVER.
fn prefix_of<'a>(record: &'a Bytes, msg: &Msg) -> &'a [u8] {
    let from = DELIVER_FIXED_AT + MSG_FIXED_BYTES;
    let prefix = record.get(from..from + usize::from(msg.skip));
    prefix.unwrap_or_default()
}

/// What was counted when the message came.
fn summary_of(msg: &Msg) -> Summary {
    let stored_len = u64::from(msg.stored_len);
    Summary {
        format_flags: msg.format_flags & STORE_LINE_FLAGS,
        stored_len,
        stored_crc: msg.stored_crc,
        header_len: msg.header_len,
        lines_count: msg.lines_count,
        quoted_count: msg.quoted_count,
        rfc822_size: msg.rfc822_size,
        received_len: 0,
        date_s: msg.date_s,
        content_hash: [0; 16],
        received_field: ReceivedField::Present,
    }
}
