//! The walk over a payload whose sum does not hold: from record to record that something proves.

use bytes::Bytes;
use memchr::memmem;
use ringpost_netproto::id::{Guid, MailboxId, PartitionId, UserHash};

use super::Checker;
use super::records::{Walk, check_msg, record_at};
use super::redo::{At, UserId};
use super::salvage::{BLOCK, Damaged, Lost};
use super::segment::{prefix, stored_in_memory};
use crate::error::CorruptReason;
use crate::format::crc;
use crate::format::frame::{FRAME_HEADER_BYTES, FrameHeader};
use crate::format::info::Run;
use crate::format::record::{
    BODY_STORED_AT, Deliver, Group, Head, Payload, RECORD_HEADER_BYTES, Record, Records,
};
use crate::format::store_line::{STORE_LINE_BYTES, StoreLine};

/// What a DELIVER says, and how much of it holds.
pub(super) enum Judged {
    /// All of it.
    Whole,
    /// Its message is whole; its run, or the header cache, is not.
    Bytes,
    /// Its message is not whole.
    Lost(CorruptReason),
}

/// Goes over a damaged payload.
pub(super) struct Picker<'a> {
    pub(super) damaged: &'a Damaged<'a>,
    pub(super) payload: &'a [u8],
    /// Since where no record was proved.
    pub(super) bad_from: Option<usize>,
    /// Messages of the payload that a DELIVER names: where their BODY is.
    pub(super) named: Vec<usize>,
    /// Records of the group so far.
    pub(super) group: Vec<(Record<'a>, At, Judged)>,
    /// Whether a record of the group is not whole.
    pub(super) group_lost: bool,
    pub(super) lost: Vec<Lost>,
    /// Stretches without a store line, by where they begin: perhaps the BODY of a DELIVER that is whole.
    pub(super) fragments: Vec<(usize, Lost)>,
}

impl<'a> Picker<'a> {
    /// Looks at one place; gives the length of the record there, if something proves it.
    pub(super) fn step(
        &mut self,
        checker: &Checker<'_>,
        walk: &mut Walk<'_>,
        at: usize,
    ) -> Option<usize> {
        let contiguous = self.bad_from.is_none();
        let record = Records::at(self.payload, at).ok()?;
        let judged = self.judge(checker, walk, &record, contiguous)?;
        self.close(walk, at);
        let len = record.bytes.len();
        let goes_on = record.head.group == Group::GoesOn;
        if let Judged::Lost(reason) = &judged {
            self.lose(&record, reason.clone());
        }
        if !matches!(record.payload, Payload::Body(_)) && !record.payload.is_of_no_user() {
            let body = match &record.payload {
                Payload::Deliver(deliver) => {
                    self.named.push(deliver.body_at);
                    let at = deliver.body_at + body_skip(deliver);
                    record_at(self.damaged.offset, at)
                }
                _ => 0,
            };
            let at = At {
                path: walk.redo.path(&self.damaged.file.path),
                offset: record_at(self.damaged.offset, at),
                len: u32::try_from(len).expect("a stretch of 64 MiB"),
                body,
                lsn: self.damaged.lsn,
            };
            self.group.push((record, at, judged));
        }
        if !goes_on {
            self.end_group(walk);
        }
        Some(len)
    }

    /// Whether a frame of a former use of the file begins at `at`.
    pub(super) fn is_former_use(&self, at: usize) -> bool {
        (FRAME_HEADER_BYTES + at).is_multiple_of(BLOCK)
            && self
                .payload
                .get(at..)
                .and_then(|bytes| FrameHeader::open(bytes).ok())
                .is_some_and(|frame| frame.salt != self.damaged.header.salt)
    }

    /// If nothing but zeros is between `at` and the end of the block: where the records of the next
    /// frame would begin.
    pub(super) fn frame_end(&self, at: usize) -> Option<usize> {
        let end = (FRAME_HEADER_BYTES + at).next_multiple_of(BLOCK) - FRAME_HEADER_BYTES;
        let rest = self.payload.get(at..end)?;
        (self.group.is_empty() && rest.iter().all(|byte| *byte == 0))
            .then_some(end + FRAME_HEADER_BYTES)
    }

    /// How much of a record holds; `None` if nothing proves that it is one.
    fn judge(
        &self,
        checker: &Checker<'_>,
        walk: &Walk<'_>,
        record: &Record<'a>,
        contiguous: bool,
    ) -> Option<Judged> {
        let head = &record.head;
        match &record.payload {
            Payload::Body(body) => {
                // A body whose text is damaged is told apart from no body by its place.
                let whole = crc::of(body.stored) == head.body_crc;
                (whole || contiguous).then_some(Judged::Whole)
            }
            Payload::Noop | Payload::Epoch | Payload::Truncate | Payload::Promise => {
                contiguous.then_some(Judged::Whole)
            }
            _ if walk.owns(head).is_err() || !self.is_of_now(&record.payload) => None,
            Payload::Deliver(deliver) => self.judge_deliver(checker, walk, record, deliver),
            Payload::DeliverFile(file) => {
                let msg = (file.fixed, &file.msg);
                check_msg(file.msg.lsn, head, msg, file.cache)
                    .is_ok()
                    .then_some(Judged::Whole)
            }
            Payload::UserCreate(name) => {
                (walk.store.key.user_hash(name) == head.user).then_some(Judged::Whole)
            }
            // Nothing but its place speaks for it.
            Payload::InfoSwap(_) => contiguous.then_some(Judged::Whole),
            // Decoding held their runs against their checksums.
            Payload::Flags(_) | Payload::Expunge(_) | Payload::Mailbox(_) | Payload::Keyword(_) => {
                Some(Judged::Whole)
            }
        }
    }

    /// Whether the runs of a record are of a frame of this stretch: behind the log's end there may be
    /// records of a former use of the file.
    fn is_of_now(&self, payload: &Payload<'_>) -> bool {
        let here = self.damaged.lsn..self.damaged.end;
        match payload {
            Payload::Deliver(deliver) => here.contains(&deliver.msg.lsn),
            Payload::DeliverFile(file) => here.contains(&file.msg.lsn),
            Payload::Flags(runs)
            | Payload::Expunge(runs)
            | Payload::Mailbox(runs)
            | Payload::Keyword(runs) => runs.clone().all(|run| match run.run {
                Ok(Run::Change(change)) => here.contains(&change.lsn),
                Ok(Run::Mailbox(mailbox)) => here.contains(&mailbox.lsn),
                Ok(Run::Keyword(keyword)) => here.contains(&keyword.lsn),
                Ok(_) => true,
                Err(_) => false,
            }),
            Payload::Body(_)
            | Payload::UserCreate(_)
            | Payload::InfoSwap(_)
            | Payload::Epoch
            | Payload::Truncate
            | Payload::Noop
            | Payload::Promise => true,
        }
    }

    fn judge_deliver(
        &self,
        checker: &Checker<'_>,
        walk: &Walk<'_>,
        record: &Record<'a>,
        deliver: &Deliver<'a>,
    ) -> Option<Judged> {
        let msg = &deliver.msg;
        prefix(deliver.prefix, msg, None).ok()?;
        let stored = stored_of(self.payload, deliver);
        let text = match stored {
            Some((_, stored)) => stored_in_memory(stored, msg),
            None => Err(CorruptReason::Truncated),
        };
        let cache = stored.map_or(&[][..], |(cache, _)| cache);
        let run = check_msg(msg.lsn, &record.head, (deliver.fixed, msg), cache);
        let known = || {
            let id = UserId::of(&record.head);
            walk.redo.users.contains_key(&id) || checker.tree.list(&id.dir()).is_ok()
        };
        match (run, text) {
            (Ok(()), Ok(())) => Some(Judged::Whole),
            (Ok(()), Err(reason)) => Some(Judged::Lost(reason)),
            (Err(_), text) if known() => Some(match text {
                Ok(()) => Judged::Bytes,
                Err(reason) => Judged::Lost(reason),
            }),
            (Err(_), _) => None,
        }
    }

    /// Takes the records of a group that is over. If one of them is not whole, an expunge in the same
    /// group is left out: it may be the other half of a move.
    pub(super) fn end_group(&mut self, walk: &mut Walk<'_>) {
        let lost = std::mem::take(&mut self.group_lost);
        for (record, at, judged) in std::mem::take(&mut self.group) {
            // A hole or a wrong sum in the chain is expected here.
            drop(walk.chains.follow(&record));
            let id = UserId::of(&record.head);
            let user = walk.redo.users.entry(id).or_default();
            match (judged, &record.payload) {
                (_, Payload::Expunge(_)) if lost => {}
                (Judged::Whole, _) => user.add(&record, at),
                (Judged::Bytes, Payload::Deliver(deliver)) => {
                    user.add_bytes(deliver.msg, record.head.generation, at);
                }
                (Judged::Bytes | Judged::Lost(_), _) => {}
            }
        }
    }

    fn lose(&mut self, record: &Record<'a>, reason: CorruptReason) {
        self.group_lost = true;
        let Payload::Deliver(deliver) = &record.payload else {
            return;
        };
        let stored = stored_of(self.payload, deliver).map(|(_, stored)| stored);
        let at = deliver.body_at + body_skip(deliver);
        self.lost.push(Lost {
            user: Some(UserId::of(&record.head)),
            validity: None,
            name: None,
            mailbox: deliver.msg.mailbox,
            uid: deliver.msg.uid.value(),
            guid: deliver.msg.guid,
            file: self.damaged.file.path.to_string(),
            offset: record_at(self.damaged.offset, at),
            reason,
            bytes: Bytes::copy_from_slice(stored.unwrap_or_default()),
        });
    }

    /// Nothing between `bad_from` and `at` was proved: names the messages of which something is there.
    pub(super) fn close(&mut self, walk: &Walk<'_>, at: usize) {
        let Some(from) = self.bad_from.take() else {
            return;
        };
        let Some(bad) = self.payload.get(from..at) else {
            return;
        };
        self.group_lost = true;
        let glimpses = glimpses(walk, bad);
        if glimpses.is_empty() && bad.iter().any(|byte| *byte != 0) {
            let fragment = self.fragment((from, bad), &Glimpse::default());
            self.fragments.push((from, fragment));
        }
        for glimpse in glimpses {
            self.lost.push(self.fragment((from, bad), &glimpse));
        }
    }

    /// What is known of a record that nothing proves.
    fn fragment(&self, (from, bad): (usize, &[u8]), glimpse: &Glimpse) -> Lost {
        Lost {
            user: glimpse.user,
            validity: glimpse.validity.filter(|_| glimpse.user.is_none()),
            name: None,
            mailbox: MailboxId::new(glimpse.mailbox),
            uid: glimpse.uid,
            guid: Guid::new(glimpse.guid),
            file: self.damaged.file.path.to_string(),
            offset: record_at(self.damaged.offset, from),
            reason: self.damaged.reason.clone(),
            bytes: Bytes::copy_from_slice(bad),
        }
    }
}

/// What a stretch without a record still tells of a message.
#[derive(Clone, Copy, Default, Debug)]
struct Glimpse {
    user: Option<UserId>,
    mailbox: u32,
    uid: u32,
    guid: [u8; 16],
    validity: Option<u32>,
}

/// The messages that headers of DELIVERs and store lines in a stretch name.
fn glimpses(walk: &Walk<'_>, bad: &[u8]) -> Vec<Glimpse> {
    let mut found: Vec<Glimpse> = (0..bad.len())
        .step_by(8)
        .filter_map(|at| header_glimpse(walk, bad.get(at..)?))
        .collect();
    for place in memmem::find_iter(bad, b"X-Ringpost: 1 ") {
        let line = bad.get(place..place + STORE_LINE_BYTES).unwrap_or_default();
        let Ok(line) = StoreLine::decode(line) else {
            continue;
        };
        let same = |glimpse: &&mut Glimpse| {
            (glimpse.mailbox, glimpse.uid) == (line.mailbox.value(), line.uid)
        };
        let known = found.iter_mut().find(same);
        let user = known.as_ref().and_then(|known| known.user);
        let whole = Glimpse {
            user,
            mailbox: line.mailbox.value(),
            uid: line.uid,
            guid: line.guid.bytes(),
            validity: Some(line.uidvalidity),
        };
        match known {
            Some(known) => *known = whole,
            None => found.push(whole),
        }
    }
    found
}

/// What the header of a DELIVER or `DELIVER_FILE` says whose record is not whole.
fn header_glimpse(walk: &Walk<'_>, bytes: &[u8]) -> Option<Glimpse> {
    let number = |at: usize| {
        let bytes = bytes.get(at..)?.first_chunk()?;
        Some(u32::from_le_bytes(*bytes))
    };
    // FORMAT.md, record header; behind it the guid of the MSG run.
    let guid_at = match bytes.get(4)? {
        2 => RECORD_HEADER_BYTES + 24 + 104,
        3 => RECORD_HEADER_BYTES + 8 + 104,
        _ => return None,
    };
    let user = UserHash::new(u64::from_le_bytes(*bytes.get(8..)?.first_chunk()?));
    let partition = PartitionId::new(u16::from_le_bytes(*bytes.get(6..)?.first_chunk()?));
    let id = UserId {
        partition,
        user,
        ordinal: number(16)?,
    };
    let (mailbox, uid) = (number(20)?, number(32)?);
    let head = Head {
        partition,
        user,
        ..Head::unowned(Group::Ends, 0)
    };
    let fits = walk.owns(&head).is_ok() && user.value() != 0 && mailbox != 0 && uid != 0;
    let guid = bytes.get(guid_at..).and_then(|rest| rest.first_chunk());
    fits.then(|| Glimpse {
        user: Some(id),
        mailbox,
        uid,
        guid: guid.copied().unwrap_or_default(),
        validity: None,
    })
}

/// From a BODY record to its message, if it is that of `deliver`.
fn body_skip(deliver: &Deliver<'_>) -> usize {
    BODY_STORED_AT + usize::from(deliver.fixed.cache_slots()) * 64
}

/// Header cache and message of a DELIVER by their places: the BODY's header is not needed.
fn stored_of<'a>(payload: &'a [u8], deliver: &Deliver<'_>) -> Option<(&'a [u8], &'a [u8])> {
    let skip = body_skip(deliver);
    let rest = payload.get(deliver.body_at..)?;
    let len = crate::format::index(deliver.msg.stored_len);
    let stored = rest.get(skip..)?.get(..len)?;
    Some((rest.get(BODY_STORED_AT..skip)?, stored))
}
