//! The messages of a user in the order of their bytes, and how what was read is compared with the
//! index: piece by piece, so that memory is one piece whatever a message has.

use std::collections::BTreeSet;

use ringpost_netproto::id::{Guid, MailboxId, Uid};

use super::super::compact::{Contents, Life};
use crate::error::CorruptReason;
use crate::format::crc;
use crate::format::info::OWN_FILE;
use crate::format::store_line::{STORE_LINE_BYTES, StoreLine};
use crate::io::RelPath;

/// A message whose bytes are in a file.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) mailbox: MailboxId,
    pub(super) uid: Uid,
    pub(super) guid: Guid,
    pub(super) segment: u32,
    own_file: OwnFile,
    /// Of the `From_` line.
    pub(super) offset: u64,
    skip: u16,
    stored_len: u32,
    stored_crc: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum OwnFile {
    Yes,
    No,
}

impl Target {
    pub(super) fn path(&self, dir: &RelPath) -> RelPath {
        match self.own_file {
            OwnFile::Yes => dir.large(self.segment, self.mailbox, self.uid),
            OwnFile::No => dir.segment(self.segment),
        }
    }

    /// Whether both are in one file.
    pub(super) fn shares_file(&self, other: &Self) -> bool {
        self.segment == other.segment && self.own_file == OwnFile::No
    }

    /// Bytes of `From_` line, store line and message.
    pub(super) fn len(&self) -> u64 {
        u64::from(self.skip) + u64::from(self.stored_len)
    }
}

/// What is there of a user's messages, less those that are in the log only.
pub(super) fn targets(
    contents: &Contents,
    unwritten: &BTreeSet<(MailboxId, Uid)>,
) -> Result<Vec<Target>, CorruptReason> {
    let mut out = Vec::new();
    for message in &contents.messages {
        let key = (message.mailbox, message.uid);
        if message.life == Life::Gone || unwritten.contains(&key) {
            continue;
        }
        let (msg, _) = contents.values(message)?;
        out.push(Target {
            mailbox: msg.mailbox,
            uid: msg.uid,
            guid: msg.guid,
            segment: msg.segment,
            own_file: if msg.format_flags & OWN_FILE != 0 {
                OwnFile::Yes
            } else {
                OwnFile::No
            },
            offset: msg.offset,
            skip: msg.skip,
            stored_len: msg.stored_len,
            stored_crc: msg.stored_crc,
        });
    }
    out.sort_by_key(|target| (target.segment, target.offset));
    Ok(out)
}

/// What was read of one message so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    prefix: Vec<u8>,
    crc: u32,
    got: u64,
}

/// What a piece did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fed {
    /// More is to come.
    More,
    /// That was all of it.
    Whole,
}

impl Progress {
    /// Bytes taken in so far.
    pub(super) fn got(&self) -> u64 {
        self.got
    }

    /// Takes what follows of `target`.
    pub(super) fn feed(&mut self, target: &Target, bytes: &[u8]) -> (Fed, u64) {
        let left = target.len() - self.got;
        let take = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let bytes = bytes.get(..take).unwrap_or_default();
        let lead = usize::from(target.skip).saturating_sub(self.prefix.len());
        let (prefix, stored) = bytes.split_at(lead.min(bytes.len()));
        self.prefix.extend_from_slice(prefix);
        self.crc = crc::extend(self.crc, stored);
        let taken = u64::try_from(take).expect("an index has at most 64 bits");
        self.got += taken;
        let fed = if self.got == target.len() {
            Fed::Whole
        } else {
            Fed::More
        };
        (fed, taken)
    }

    /// Whether the whole of it is what the index says.
    pub(super) fn verdict(&self, target: &Target) -> Result<(), CorruptReason> {
        let line = self
            .prefix
            .len()
            .checked_sub(STORE_LINE_BYTES)
            .and_then(|at| self.prefix.get(at..))
            .ok_or(CorruptReason::Length)?;
        let line = StoreLine::decode(line)?;
        let same = (line.stored_len, line.stored_crc) == (target.stored_len, target.stored_crc)
            && match target.own_file {
                OwnFile::Yes => true,
                OwnFile::No => {
                    (line.mailbox, line.uid, line.guid)
                        == (target.mailbox, target.uid.value(), target.guid)
                }
            };
        if !same {
            return Err(CorruptReason::Disagree("store line and index"));
        }
        if self.crc == target.stored_crc {
            Ok(())
        } else {
            Err(CorruptReason::Checksum)
        }
    }
}

#[cfg(test)]
mod tests {
    use ringpost_netproto::id::WallNs;

    use super::*;

    const FROM: &[u8] = b"From a Thu Jan  1 00:00:00 1970\n";

    fn target(stored: &[u8]) -> (Target, Vec<u8>) {
        let target = Target {
            mailbox: MailboxId::INBOX,
            uid: Uid::new(3),
            guid: Guid::new([4; 16]),
            segment: 1,
            own_file: OwnFile::No,
            offset: 0,
            skip: u16::try_from(FROM.len() + STORE_LINE_BYTES).unwrap(),
            stored_len: u32::try_from(stored.len()).unwrap(),
            stored_crc: crc::of(stored),
        };
        let line = StoreLine {
            mailbox: target.mailbox,
            uidvalidity: 1,
            uid: 3,
            guid: target.guid,
            internal_date: WallNs::new(0),
            stored_len: target.stored_len,
            stored_crc: target.stored_crc,
            format_flags: 0,
        };
        let bytes = [FROM, &line.encode(), stored].concat();
        (target, bytes)
    }

    fn read(target: &Target, bytes: &[u8], piece: usize) -> Result<(), CorruptReason> {
        let mut progress = Progress::default();
        let mut rest = bytes;
        loop {
            let (now, _) = rest.split_at(piece.min(rest.len()));
            let (fed, taken) = progress.feed(target, now);
            if fed == Fed::Whole {
                return progress.verdict(target);
            }
            rest = &rest[usize::try_from(taken).unwrap()..];
        }
    }

    #[test]
    fn pieces_of_any_length_say_the_same() {
        let (target, mut bytes) = target(b"Subject: x\n\nbody\n");
        bytes.extend_from_slice(b"\nFrom the next");
        for piece in 1..bytes.len() {
            assert_eq!(read(&target, &bytes, piece), Ok(()), "pieces of {piece}");
        }
    }

    #[test]
    fn every_flipped_bit_of_message_and_line_is_seen() {
        let (target, bytes) = target(b"body\n");
        for at in FROM.len()..bytes.len() {
            for bit in 0..8 {
                let mut bad = bytes.clone();
                bad[at] ^= 1 << bit;
                let verdict = read(&target, &bad, 7);
                let line = StoreLine::decode(&bad[FROM.len()..][..STORE_LINE_BYTES]);
                // Date, validity and flags of the line: the index tells them, no reader takes them
                // from here.
                let harmless = line.is_ok_and(|line| {
                    (line.mailbox, line.uid, line.guid) == (target.mailbox, 3, target.guid)
                        && (line.stored_len, line.stored_crc)
                            == (target.stored_len, target.stored_crc)
                        && bad.ends_with(b"body\n")
                });
                assert_eq!(verdict.is_ok(), harmless, "byte {at} bit {bit}");
            }
        }
        let mut other = target;
        other.uid = Uid::new(4);
        assert!(read(&other, &bytes, 9).is_err(), "the line of another uid");
    }
}
