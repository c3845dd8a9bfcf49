//! `scrub`: how far the scrub of a shard is, and what it found damaged, as text. Derived data: a file
//! that cannot be read means that the next pass begins at the start.

use std::fmt::Write;

use ringpost_netproto::id::{Guid, MailboxId, PartitionId, Uid, UserHash, WallNs};
use ringpost_netproto::placement::NAME_BYTES_MAX;

use super::text;
use crate::error::CorruptReason;

/// First line.
const TITLE: &str = "ringpost scrub 1";

/// Damaged places that are kept by name; of more only the number is known until a repair.
pub const DAMAGED_MAX: usize = 1_024;

/// The file is at most this long: each place with two escaped names.
pub const SCRUB_BYTES_MAX: u64 = 2 << 20;

/// What `scrub` says.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ScrubFile {
    /// When the pass began that is under way.
    pub began: Option<WallNs>,
    /// Users up to this one are done in it, in the order of partition, hash, ordinal.
    pub position: Option<ScrubPlace>,
    /// When the last whole pass ended, and how long it took, in ns.
    pub ended: Option<(WallNs, u64)>,
    /// Ascending by user, mailbox and uid; at most [`DAMAGED_MAX`].
    pub damaged: Vec<DamagedPlace>,
}

/// A user's directory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ScrubPlace {
    /// Of the user.
    pub partition: PartitionId,
    /// Of the user.
    pub hash: UserHash,
    /// Of the user.
    pub ordinal: u32,
}

/// A message, or (mailbox and uid 0) a user's index, that is damaged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DamagedPlace {
    /// Whose.
    pub place: ScrubPlace,
    /// Which mailbox.
    pub mailbox: MailboxId,
    /// Which message.
    pub uid: Uid,
    /// Of the message.
    pub guid: Guid,
    /// In bytes from the start of `file`.
    pub offset: u64,
    /// Below the data directory.
    pub file: String,
    /// The canonical user name.
    pub user: Vec<u8>,
}

impl ScrubFile {
    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = format!("{TITLE}\n");
        let all = "a String takes everything";
        if let Some(began) = self.began {
            writeln!(out, "pass {:016x}", began.value()).expect(all);
        }
        if let Some(place) = self.position {
            out.push_str("position ");
            put_place(place, &mut out);
            out.push('\n');
        }
        if let Some((at, ns)) = self.ended {
            writeln!(out, "ended {:016x} {ns:016x}", at.value()).expect(all);
        }
        for damaged in self.damaged.iter().take(DAMAGED_MAX) {
            out.push_str("damaged ");
            put_place(damaged.place, &mut out);
            let (mailbox, uid) = (damaged.mailbox.value(), damaged.uid.value());
            let (guid, offset) = (damaged.guid, damaged.offset);
            write!(out, " {mailbox:08x} {uid:08x} {guid} {offset:016x} ").expect(all);
            text::escape(damaged.file.as_bytes(), &mut out);
            out.push(' ');
            text::escape(&damaged.user, &mut out);
            out.push('\n');
        }
        text::seal(out).into_bytes()
    }

    /// Reads the file; only the form that `encode` writes.
    pub fn decode(bytes: &[u8]) -> Result<Self, CorruptReason> {
        let body = text::open(bytes)?;
        let mut lines = body.strip_suffix('\n').unwrap_or(body).split('\n');
        if lines.next() != Some(TITLE) {
            return Err(CorruptReason::Magic);
        }
        let mut file = Self::default();
        for line in lines {
            file.line(line)
                .ok_or(CorruptReason::Value("not a line of scrub"))?;
        }
        let key = |damaged: &DamagedPlace| (damaged.place, damaged.mailbox, damaged.uid);
        if !file.damaged.is_sorted_by(|a, b| key(a) < key(b)) {
            return Err(CorruptReason::Value("damaged places are not ascending"));
        }
        Ok(file)
    }

    /// Takes a line in. Each kind stands once, in the order of `encode`.
    fn line(&mut self, line: &str) -> Option<()> {
        let mut words = line.split(' ');
        let kind = words.next()?;
        let before_damage = self.damaged.is_empty();
        match kind {
            "pass" if *self == Self::default() => {
                self.began = Some(WallNs::new(number(words.next())?));
            }
            "position" if self.position.is_none() && self.ended.is_none() && before_damage => {
                self.position = Some(take_place(&mut words)?);
            }
            "ended" if self.ended.is_none() && before_damage => {
                let at = WallNs::new(number(words.next())?);
                self.ended = Some((at, number(words.next())?));
            }
            "damaged" if self.damaged.len() < DAMAGED_MAX => {
                let place = take_place(&mut words)?;
                let mailbox = MailboxId::new(text::hex_u32(words.next()?.as_bytes())?);
                let uid = Uid::new(text::hex_u32(words.next()?.as_bytes())?);
                let guid = Guid::new(text::hex(words.next()?.as_bytes())?);
                let offset = number(words.next())?;
                let file = String::from_utf8(text::unescape(words.next()?)?).ok()?;
                let user = text::unescape(words.next()?)?;
                if user.len() > NAME_BYTES_MAX {
                    return None;
                }
                self.damaged.push(DamagedPlace {
                    place,
                    mailbox,
                    uid,
                    guid,
                    offset,
                    file,
                    user,
                });
            }
            _ => return None,
        }
        words.next().is_none().then_some(())
    }
}

fn put_place(place: ScrubPlace, out: &mut String) {
    let (partition, hash) = (place.partition.value(), place.hash.value());
    write!(out, "{partition:08x} {hash:016x} {:08x}", place.ordinal)
        .expect("a String takes everything");
}

fn take_place<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<ScrubPlace> {
    let partition = text::hex_u32(words.next()?.as_bytes())?;
    Some(ScrubPlace {
        partition: PartitionId::new(u16::try_from(partition).ok()?),
        hash: UserHash::new(number(words.next())?),
        ordinal: text::hex_u32(words.next()?.as_bytes())?,
    })
}

fn number(word: Option<&str>) -> Option<u64> {
    text::hex_u64(word?.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(hash: u64) -> ScrubPlace {
        ScrubPlace {
            partition: PartitionId::new(7),
            hash: UserHash::new(hash),
            ordinal: 1,
        }
    }

    fn damaged(hash: u64, uid: u32) -> DamagedPlace {
        DamagedPlace {
            place: place(hash),
            mailbox: MailboxId::INBOX,
            uid: Uid::new(uid),
            guid: Guid::new([0xAB; 16]),
            offset: 77,
            file: "p/0007/x-0/00000001.mbox".to_owned(),
            user: b"bob @\xff".to_vec(),
        }
    }

    fn full() -> ScrubFile {
        ScrubFile {
            began: Some(WallNs::new(5)),
            position: Some(place(9)),
            ended: Some((WallNs::new(3), 2)),
            damaged: vec![damaged(3, 4), damaged(3, 5), damaged(9, 1)],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let only_ended = ScrubFile {
            ended: Some((WallNs::new(3), 2)),
            ..ScrubFile::default()
        };
        for file in [ScrubFile::default(), only_ended, full()] {
            assert_eq!(ScrubFile::decode(&file.encode()), Ok(file));
        }
    }

    #[test]
    fn any_changed_or_missing_byte_is_refused() {
        let bytes = full().encode();
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(ScrubFile::decode(&bad).is_err(), "byte {at}");
            assert!(ScrubFile::decode(&bytes[..at]).is_err(), "{at} bytes");
        }
    }

    #[test]
    fn lines_stand_once_and_in_order() {
        let sealed = |text: &str| text::seal(text.to_owned()).into_bytes();
        let twice = "ringpost scrub 1\npass 0000000000000001\npass 0000000000000001\n";
        let late = "ringpost scrub 1\nended 0000000000000001 0000000000000001\n\
                    pass 0000000000000001\n";
        let long = "ringpost scrub 1\npass 0000000000000001 1\n";
        for text in [twice, late, long] {
            assert!(ScrubFile::decode(&sealed(text)).is_err(), "{text}");
        }
        let mut file = full();
        file.damaged.reverse();
        assert!(ScrubFile::decode(&file.encode()).is_err(), "not ascending");
    }
}
