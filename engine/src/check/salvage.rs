//! What is whole in a damaged stretch of the log. The frame's checksum does not hold any more, but
//! runs, messages, store lines, names and the chain have their own: each record is taken that they
//! prove. What they do not prove is passed over and named.
//!
//! If one byte of a frame's structure is wrong, its sum tells which, and every record proves it. The
//! text of a message is never put right that way: its damage costs the message.

use std::fmt;

use bytes::Bytes;
use ringpost_netproto::id::{Guid, MailboxId};

use super::Checker;
use super::files::LogFile;
use super::frames::read_damaged;
use super::log::LogSurvey;
use super::mend;
use super::pick::Picker;
use super::records::Walk;
use super::redo::UserId;
use crate::error::CorruptReason;
use crate::format::crc;
use crate::format::frame::{FRAME_HEADER_BYTES, FrameHeader};
use crate::format::log_file::LogFileHeader;
use crate::format::record::{Payload, RECORD_HEADER_BYTES, Records};
use crate::limits::BLOCK_BYTES;
use crate::position::Lsn;

/// A damaged stretch is looked through in pieces of this.
pub(super) const MEND_BYTES_MAX: usize = 64 << 20;

/// Frames begin at multiples of this.
pub(super) const BLOCK: usize = {
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
    /// The uidvalidity of its mailbox, if only a store line tells of it.
    pub(crate) validity: Option<u32>,
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
        let end = match length {
            Length::Known => payload.len(),
            Length::Unknown => at.min(payload.len()),
        };
        picker.close(walk, end);
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

fn len_u64(len: usize) -> u64 {
    u64::try_from(len).expect("an index has at most 64 bits")
}
