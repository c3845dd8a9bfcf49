//! What is whole in a damaged stretch of the log. The frame's checksum does not hold any more, but
//! runs, messages, store lines, names and the chain have their own: each record is taken that they
//! prove. What they do not prove is passed over and named.
//!
//! If one byte of a frame's structure is wrong, its sum tells which, and every record proves it. The
//! text of a message is never put right that way: its damage costs the message.

use std::fmt;

use bytes::Bytes;
use memchr::memmem;
use ringpost_netproto::id::{Guid, MailboxId, UserHash};

use super::Checker;
use super::files::LogFile;
use super::frames::read_damaged;
use super::log::LogSurvey;
use super::mend;
use super::records::{Walk, check_msg, record_at};
use super::redo::{At, UserId};
use super::segment::{prefix, stored_in_memory};
use crate::error::CorruptReason;
use crate::format::crc;
use crate::format::frame::{FRAME_HEADER_BYTES, FrameHeader};
use crate::format::info::Run;
use crate::format::log_file::LogFileHeader;
use crate::format::record::{
    BODY_STORED_AT, Deliver, Group, Payload, RECORD_HEADER_BYTES, Record, Records,
};
use crate::format::store_line::{STORE_LINE_BYTES, StoreLine};
use crate::limits::BLOCK_BYTES;
use crate::position::Lsn;

/// A damaged stretch is looked through in pieces of this.
pub(super) const MEND_BYTES_MAX: usize = 64 << 20;

/// Frames begin at multiples of this.
const BLOCK: usize = {
    assert!(BLOCK_BYTES == 4096);
    4096
};

/// A stretch of a log file that is damaged.
pub(super) struct Damaged<'a> {
    pub(super) file: &'a LogFile,
    pub(super) header: &'a LogFileHeader,
    /// In the file.
    pub(super) offset: u64,
    pub(super) lsn: Lsn,
    /// The next frame, or the end of the file.
    pub(super) end: Lsn,
    /// Its frame's header, if that is whole.
    pub(super) whole: Option<FrameHeader>,
    /// Of the frame before it, if that is known.
    pub(super) previous: Option<u32>,
    /// What the frame behind it says of this one.
    pub(super) follower_crc: Option<u32>,
    pub(super) reason: CorruptReason,
}

/// A message that was acknowledged and is not whole any more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lost {
    /// Whose, if the damage left that: partition, hash, ordinal as in the directory's name.
    pub(crate) user: Option<UserId>,
    /// The user's name, if known.
    pub name: Option<Box<[u8]>>,
    /// Which mailbox; 0 if that is not known.
    pub mailbox: MailboxId,
    /// Its number there; 0 if that is not known.
    pub uid: u32,
    /// Its identity.
    pub guid: Guid,
    /// The damaged file, relative to the data directory.
    pub file: String,
    /// Where in it, in bytes from its start.
    pub offset: u64,
    /// What does not hold.
    pub reason: CorruptReason,
    /// What is left of it: the message as stored, or the record.
    pub bytes: Bytes,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.name, self.directory()) {
            (Some(name), _) => write!(f, "{}", name.escape_ascii())?,
            (None, Some(dir)) => write!(f, "the user of {dir}")?,
            (None, None) => f.write_str("a user who is not known")?,
        }
        match (self.mailbox, self.uid) {
            (_, 0) => f.write_str(", a message")?,
            (MailboxId::INBOX, uid) => write!(f, ", INBOX, uid {uid}")?,
            (mailbox, uid) => write!(f, ", mailbox {mailbox}, uid {uid}")?,
        }
        if self.guid != Guid::new([0; 16]) {
            write!(f, ", guid {}", self.guid)?;
        }
        write!(
            f,
            ": {} at offset {}: {}",
            self.file, self.offset, self.reason
        )
    }
}

impl Lost {
    /// The user's directory, if the damage left its name.
    pub fn directory(&self) -> Option<String> {
        self.user.map(|id| id.dir().to_string())
    }
}

impl Checker<'_> {
    /// Takes what is whole of a damaged stretch, and names what is not. Gives where the walk goes on,
    /// and the header CRC of the frame before that, if it is known.
    pub(super) fn salvage(
        &mut self,
        survey: &mut LogSurvey,
        walk: &mut Walk<'_>,
        damaged: &Damaged<'_>,
    ) -> (Lsn, Option<u32>) {
        let bytes = read_damaged(self, damaged);
        let behind = bytes.get(FRAME_HEADER_BYTES..).unwrap_or_default();
        let Some(frame) = damaged.whole.or_else(|| restored(&bytes, damaged)) else {
            self.pick(survey, walk, damaged, behind, Length::Unknown);
            return (damaged.end, damaged.follower_crc);
        };
        let len = crate::format::index(frame.payload_len).min(behind.len());
        let payload = behind.get(..len).unwrap_or_default();
        if let Some(good) = mended(walk, damaged, &frame, payload) {
            let at = damaged.offset + len_u64(FRAME_HEADER_BYTES);
            walk.redo.mend(&damaged.file.path, at, good.clone());
            let place = (damaged.file, damaged.header);
            self.records(walk, place, &frame, (damaged.offset, &good));
        } else {
            self.pick(survey, walk, damaged, payload, Length::Known);
        }
        (frame.end().min(damaged.end), Some(frame.header_crc))
    }

    /// Goes over a payload whose sum does not hold.
    fn pick(
        &mut self,
        survey: &mut LogSurvey,
        walk: &mut Walk<'_>,
        damaged: &Damaged<'_>,
        payload: &[u8],
        length: Length,
    ) {
        walk.chains.broken = true;
        let mut picker = Picker {
            damaged,
            payload,
            bad_from: None,
            named: Vec::new(),
            group: Vec::new(),
            group_lost: false,
            lost: Vec::new(),
            fragments: Vec::new(),
        };
        let mut at = 0;
        while at + RECORD_HEADER_BYTES <= payload.len() {
            match picker.step(self, walk, at) {
                Some(len) => at += len,
                None => picker.bad_from = Some(picker.bad_from.unwrap_or(at)),
            }
            if picker.bad_from.is_some() {
                at += 8;
                if length == Length::Unknown && picker.is_former_use(at) {
                    break;
                }
            } else if length == Length::Unknown
                && let Some(next) = picker.frame_end(at)
            {
                // Behind the frame: another one whose header is damaged, or nothing of this use.
                at = next;
                if picker.step(self, walk, at).is_none() {
                    break;
                }
            }
        }
        picker.close(if length == Length::Known {
            payload.len()
        } else {
            at.min(payload.len())
        });
        picker.end_group(walk);
        let Picker {
            mut lost,
            fragments,
            named,
            ..
        } = picker;
        let unexplained = |(from, _): &(usize, Lost)| !named.contains(from);
        lost.extend(
            fragments
                .into_iter()
                .filter(unexplained)
                .map(|(_, lost)| lost),
        );
        for lost in lost {
            self.lose(lost.clone());
            survey.lost.push(lost);
        }
    }
}

/// Whether it is known how long a payload is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Length {
    Known,
    Unknown,
}

/// The frame header with one byte put right, if that makes everything fit.
fn restored(bytes: &[u8], damaged: &Damaged<'_>) -> Option<FrameHeader> {
    let header = bytes.get(..FRAME_HEADER_BYTES)?;
    let payload = bytes.get(FRAME_HEADER_BYTES..)?;
    for at in 0..header.len() {
        for bits in 1..=u8::MAX {
            let candidate = mend::changed(header, (at, bits));
            let Ok(frame) = FrameHeader::open(&candidate) else {
                continue;
            };
            let fits = frame.salt == damaged.header.salt
                && frame.lsn == damaged.lsn
                && frame.end() <= damaged.end
                && damaged
                    .previous
                    .is_none_or(|previous| previous == frame.previous_crc)
                && damaged
                    .follower_crc
                    .is_none_or(|crc| frame.end() < damaged.end || crc == frame.header_crc);
            let len = crate::format::index(frame.payload_len);
            let whole = payload
                .get(..len)
                .is_some_and(|payload| crc::of(payload) == frame.payload_crc);
            if fits && whole {
                return Some(frame);
            }
        }
    }
    None
}

/// The payload, if one byte of its structure was wrong and every record proves that.
fn mended(
    walk: &Walk<'_>,
    damaged: &Damaged<'_>,
    frame: &FrameHeader,
    payload: &[u8],
) -> Option<Vec<u8>> {
    let sum = crc::of(payload);
    if sum == frame.payload_crc {
        return Some(payload.to_vec());
    }
    mend::one_byte(payload.len(), sum, frame.payload_crc)
        .into_iter()
        .map(|change| (change.0, mend::changed(payload, change)))
        .find(|(at, candidate)| is_proved(walk, damaged, frame, candidate, *at))
        .map(|(_, candidate)| candidate)
}

/// Whether each record of a payload holds, and the byte at `at` is not of a message's text.
fn is_proved(
    walk: &Walk<'_>,
    damaged: &Damaged<'_>,
    frame: &FrameHeader,
    payload: &[u8],
    at: usize,
) -> bool {
    let mut count = 0;
    for record in Records::new(payload).reserved(damaged.header.version.reserved()) {
        let Ok(record) = record else { return false };
        count += 1;
        if walk.check(frame.lsn, payload, &record).is_err() {
            return false;
        }
        if let Payload::Body(body) = &record.payload
            && (body.stored_at..body.stored_at + body.stored.len()).contains(&at)
        {
            return false;
        }
    }
    count == frame.records_count
}

/// What a DELIVER says, and how much of it holds.
enum Judged {
    /// All of it.
    Whole,
    /// Its message is whole; its run, or the header cache, is not.
    Bytes,
    /// Its message is not whole.
    Lost(CorruptReason),
}

/// Goes over a damaged payload.
struct Picker<'a> {
    damaged: &'a Damaged<'a>,
    payload: &'a [u8],
    /// Since where no record was proved.
    bad_from: Option<usize>,
    /// Messages of the payload that a DELIVER names: where their BODY is.
    named: Vec<usize>,
    /// Records of the group so far.
    group: Vec<(Record<'a>, At, Judged)>,
    /// Whether a record of the group is not whole.
    group_lost: bool,
    lost: Vec<Lost>,
    /// Stretches without a store line, by where they begin: perhaps the BODY of a DELIVER that is whole.
    fragments: Vec<(usize, Lost)>,
}

impl<'a> Picker<'a> {
    /// Looks at one place; gives the length of the record there, if something proves it.
    fn step(&mut self, checker: &Checker<'_>, walk: &mut Walk<'_>, at: usize) -> Option<usize> {
        let contiguous = self.bad_from.is_none();
        let record = Records::at(self.payload, at).ok()?;
        let judged = self.judge(checker, walk, &record, contiguous)?;
        self.close(at);
        let len = record.bytes.len();
        let goes_on = record.head.group == Group::GoesOn;
        if let Judged::Lost(reason) = &judged {
            self.lose(&record, reason.clone());
        }
        if !matches!(record.payload, Payload::Body(_) | Payload::Noop) {
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
    fn is_former_use(&self, at: usize) -> bool {
        (FRAME_HEADER_BYTES + at).is_multiple_of(BLOCK)
            && self
                .payload
                .get(at..)
                .and_then(|bytes| FrameHeader::open(bytes).ok())
                .is_some_and(|frame| frame.salt != self.damaged.header.salt)
    }

    /// If nothing but zeros is between `at` and the end of the block: where the records of the next
    /// frame would begin.
    fn frame_end(&self, at: usize) -> Option<usize> {
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
            Payload::Noop => contiguous.then_some(Judged::Whole),
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
            Payload::Body(_) | Payload::UserCreate(_) | Payload::InfoSwap(_) | Payload::Noop => {
                true
            }
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
    fn end_group(&mut self, walk: &mut Walk<'_>) {
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

    /// Nothing between `bad_from` and `at` was proved: names the messages whose store lines are there.
    fn close(&mut self, at: usize) {
        let Some(from) = self.bad_from.take() else {
            return;
        };
        let Some(bad) = self.payload.get(from..at) else {
            return;
        };
        self.group_lost = true;
        let line_start = b"X-Ringpost: 1 ";
        let mut named = false;
        for place in memmem::find_iter(bad, line_start) {
            let line = bad.get(place..place + STORE_LINE_BYTES).unwrap_or_default();
            let Ok(line) = StoreLine::decode(line) else {
                continue;
            };
            named = true;
            self.lost.push(self.fragment((from, bad), Some(&line)));
        }
        if !named && bad.iter().any(|byte| *byte != 0) {
            let fragment = self.fragment((from, bad), None);
            self.fragments.push((from, fragment));
        }
    }

    /// What is known of records that nothing proves.
    fn fragment(&self, (from, bad): (usize, &[u8]), line: Option<&StoreLine>) -> Lost {
        let user = bad
            .get(8..16)
            .and_then(|bytes| bytes.first_chunk())
            .map(|bytes| UserHash::new(u64::from_le_bytes(*bytes)));
        let partition = bad.get(6..8).and_then(|bytes| bytes.first_chunk());
        let user = user.zip(partition).map(|(user, partition)| UserId {
            partition: ringpost_netproto::id::PartitionId::new(u16::from_le_bytes(*partition)),
            user,
            ordinal: 0,
        });
        Lost {
            user: user.filter(|_| line.is_some()),
            name: None,
            mailbox: line.map_or(MailboxId::new(0), |line| line.mailbox),
            uid: line.map_or(0, |line| line.uid),
            guid: line.map_or(Guid::new([0; 16]), |line| line.guid),
            file: self.damaged.file.path.to_string(),
            offset: record_at(self.damaged.offset, from),
            reason: self.damaged.reason.clone(),
            bytes: Bytes::copy_from_slice(bad),
        }
    }
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

fn len_u64(len: usize) -> u64 {
    u64::try_from(len).expect("an index has at most 64 bits")
}
