//! Finding out what is good: segments and large files against the index of their user.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ringpost_netproto::id::{Guid, MailboxId, Modseq, Uid};

use super::{Gathered, User, is_orphan, large_of, read_all_from};
use crate::check::{
    Deriver, Lost, Window, hex8, info_of, is_unborn, message, segment_of, stored_crc,
};
use crate::error::CorruptReason;
use crate::format::info::{Msg, OWN_FILE, REBUILT};
use crate::format::store_line::{STORE_LINE_BYTES, STORE_LINE_FLAGS, StoreLine};
use crate::io::RelPath;
use crate::position::Lsn;
use crate::repair::index::Known;
use crate::repair::segment::{Good, Judged, Key, judge, read_piece};

impl User<'_> {
    /// The shared segments.
    pub(super) fn shared(&self, user: &mut Gathered) {
        let mut by_segment: BTreeMap<u32, Vec<(Key, Known)>> = BTreeMap::new();
        for (key, known) in &user.index.messages {
            if known.msg.format_flags & OWN_FILE == 0 {
                let of_segment = by_segment.entry(known.msg.segment).or_default();
                of_segment.push((*key, known.clone()));
            }
        }
        let shared = |name: &String| hex8(name.strip_suffix(".mbox")?);
        let segments: Vec<(u32, u64)> = user
            .names
            .iter()
            .filter_map(|(name, size)| Some((shared(name)?, *size)))
            .collect();
        for (segment, size) in segments {
            let mut indexed = by_segment.remove(&segment).unwrap_or_default();
            indexed.sort_by_key(|(_, known)| known.msg.offset);
            let indexed: Vec<(Key, &Known)> =
                indexed.iter().map(|(k, known)| (*k, known)).collect();
            let path = self.dir.segment(segment);
            let validity = |mailbox| user.validity(mailbox);
            let judged = judge(self.hand, (&path, size), &indexed, &validity);
            if judged.is_clean || (indexed.is_empty() && user.index.retired.contains(&segment)) {
                continue;
            }
            self.judged(user, segment, &path, judged);
        }
    }

    /// A segment that is not as the index says.
    fn judged(&self, user: &mut Gathered, segment: u32, path: &RelPath, judged: Judged) {
        let mut keys: Vec<Key> = judged.good.keys().copied().collect();
        let mut judged = judged;
        for bad in std::mem::take(&mut judged.bad) {
            let known = bad.key.and_then(|key| user.index.messages.get(&key));
            let indexed = known.is_some_and(|known| known.alive);
            let wanted = match bad.key {
                Some(key) => indexed || user.takes(key, None),
                None => true,
            };
            if wanted {
                let bytes = judged.read(self.hand, path, (bad.offset, bad.len));
                let (mailbox, uid) = bad.key.unwrap_or((MailboxId::new(0), Uid::new(0)));
                user.lost.push(Lost {
                    user: Some(self.id),
                    validity: None,
                    name: Some(Box::from(&user.name[..])),
                    mailbox,
                    uid: uid.value(),
                    guid: bad.guid.unwrap_or(Guid::new([0; 16])),
                    file: path.to_string(),
                    offset: bad.offset,
                    reason: bad.reason,
                    bytes: Bytes::from(bytes.unwrap_or_default()),
                });
            }
        }
        if !judged.is_foreign {
            for (line, good) in std::mem::take(&mut judged.unknown) {
                let key = (line.mailbox, Uid::new(line.uid));
                if !user.takes(key, Some(line.uidvalidity)) {
                    continue;
                }
                let at = (good.stored_at, u64::from(line.stored_len));
                let Ok(stored) = judged.read(self.hand, path, at) else {
                    continue;
                };
                if let Some(known) = derived(&line, key, segment, &Bytes::from(stored)) {
                    user.take(key, line.uidvalidity, known);
                    judged.good.insert(key, good);
                    keys.push(key);
                }
            }
        }
        user.changed = true;
        // What is dead in it goes with the old file.
        user.index.messages.retain(|key, known| {
            known.msg.format_flags & OWN_FILE != 0
                || known.msg.segment != segment
                || judged.good.contains_key(key)
        });
        user.aside.insert(path.file_name().to_owned());
        keys.sort_by_key(|key| judged.good.get(key).map(|good| good.prefix_at));
        if !keys.is_empty() {
            user.rewrites.push((segment, judged, keys));
        }
    }

    /// The files of large messages: those of the index, and those it does not know.
    pub(super) fn large(&self, user: &mut Gathered) {
        let names: Vec<(String, u64)> = user
            .names
            .iter()
            .filter(|(name, _)| large_of(name).is_some())
            .map(|(name, size)| (name.clone(), *size))
            .collect();
        for (name, size) in names {
            let Some((segment, mailbox, uid)) = large_of(&name) else {
                continue;
            };
            let path = self.dir.large(segment, mailbox, uid);
            let key = (mailbox, uid);
            let known = user.index.messages.get(&key).filter(|known| {
                known.msg.segment == segment && known.msg.format_flags & OWN_FILE != 0
            });
            match known.cloned() {
                Some(known) if known.alive => self.known_large(user, &path, size, &known),
                Some(_) => {}
                // Nothing in it was alive when it was given up.
                None if user.index.retired.contains(&segment) => {}
                None => self.unknown_large(user, &path, key, segment, size),
            }
        }
    }

    fn known_large(&self, user: &mut Gathered, path: &RelPath, size: u64, known: &Known) {
        let msg = &known.msg;
        let key = (msg.mailbox, msg.uid);
        let mut window = Window::new(self.hand, path);
        let len = msg.segment_bytes();
        let whole = message(&mut window, msg, 0).is_ok() && msg.offset == 0 && size == len;
        if whole {
            return;
        }
        user.changed = true;
        user.aside.insert(path.file_name().to_owned());
        let stored_at = msg.offset + u64::from(msg.skip);
        let sum = stored_crc(&mut window, stored_at, msg.stored_len);
        if sum == Ok(Some(msg.stored_crc)) {
            // Its message is whole: only what stands around it is written anew.
            let mut judged = Judged::default();
            judged.good.insert(
                key,
                Good {
                    prefix_at: msg.offset,
                    prefix_len: u64::from(msg.skip),
                    stored_at,
                },
            );
            user.rewrites.push((msg.segment, judged, vec![key]));
            return;
        }
        let reason = match sum {
            Ok(None) => CorruptReason::Truncated,
            Ok(Some(_)) => CorruptReason::Checksum,
            Err(error) => error.corrupt().reason,
        };
        user.index.messages.remove(&key);
        user.lost.push(Lost {
            user: Some(self.id),
            validity: None,
            name: Some(Box::from(&user.name[..])),
            mailbox: msg.mailbox,
            uid: msg.uid.value(),
            guid: msg.guid,
            file: path.to_string(),
            offset: 0,
            reason,
            // The whole file goes to `lost/`.
            bytes: Bytes::new(),
        });
    }

    fn unknown_large(
        &self,
        user: &mut Gathered,
        path: &RelPath,
        key: Key,
        segment: u32,
        size: u64,
    ) {
        if !user.takes(key, None) {
            return;
        }
        let Some((line, skip)) = self.large_line(path, size) else {
            return;
        };
        let mut window = Window::new(self.hand, path);
        let sum = stored_crc(&mut window, skip, line.stored_len);
        if sum != Ok(Some(line.stored_crc)) || size != skip + u64::from(line.stored_len) + 1 {
            user.lost.push(Lost {
                user: Some(self.id),
                validity: None,
                name: Some(Box::from(&user.name[..])),
                mailbox: key.0,
                uid: key.1.value(),
                guid: line.guid,
                file: path.to_string(),
                offset: 0,
                reason: CorruptReason::Checksum,
                bytes: Bytes::new(),
            });
            return;
        }
        let stored = read_all_from(self.hand, path, skip, u64::from(line.stored_len));
        if let Some(mut known) = derived(&line, key, segment, &Bytes::from(stored)) {
            known.msg.format_flags |= OWN_FILE;
            known.msg.skip = u16::try_from(skip).expect("at most 1280");
            user.take(key, 0, known);
            user.changed = true;
        }
    }

    /// Large messages whose records the log may have lost.
    pub(super) fn orphans(&self, user: &mut Gathered) {
        let names: Vec<(String, u64)> = user
            .names
            .iter()
            .filter(|(name, _)| is_orphan(name))
            .map(|(name, size)| (name.clone(), *size))
            .collect();
        for (name, size) in names {
            let Some(path) = self.dir.entry(&name) else {
                continue;
            };
            if let Some((line, _)) = self.large_line(&path, size) {
                user.lost.push(Lost {
                    user: Some(self.id),
                    validity: None,
                    name: Some(Box::from(&user.name[..])),
                    mailbox: MailboxId::new(0),
                    uid: 0,
                    guid: line.guid,
                    file: path.to_string(),
                    offset: 0,
                    reason: CorruptReason::Disagree("the log lost the record of this file"),
                    bytes: Bytes::new(),
                });
            }
            user.aside.insert(name);
        }
    }

    /// The store line of a large message's file, and where its message begins.
    fn large_line(&self, path: &RelPath, size: u64) -> Option<(StoreLine, u64)> {
        let most = u64::try_from(crate::limits::PREFIX_BYTES_MAX).expect("1280");
        let start = read_piece(self.hand, path, 0, size.min(most));
        let lf = memchr::memchr(b'\n', &start).map_or(0, |at| at + 1);
        let line = StoreLine::decode(start.get(lf..).unwrap_or_default()).ok()?;
        let skip = u64::try_from(lf + STORE_LINE_BYTES).expect("1280");
        Some((line, skip))
    }

    /// Messages whose files are not there.
    pub(super) fn missing(&self, user: &mut Gathered) {
        let gone: Vec<(Key, Msg)> = user
            .index
            .messages
            .iter()
            .filter(|(_, known)| {
                let msg = &known.msg;
                let path = if msg.format_flags & OWN_FILE == 0 {
                    self.dir.segment(msg.segment)
                } else {
                    self.dir.large(msg.segment, msg.mailbox, msg.uid)
                };
                known.alive && !user.names.contains_key(path.file_name())
            })
            .map(|(key, known)| (*key, known.msg))
            .collect();
        for (key, msg) in gone {
            user.changed = true;
            user.index.messages.remove(&key);
            user.lost.push(Lost {
                user: Some(self.id),
                validity: None,
                name: Some(Box::from(&user.name[..])),
                mailbox: msg.mailbox,
                uid: msg.uid.value(),
                guid: msg.guid,
                file: self.dir.segment(msg.segment).to_string(),
                offset: msg.offset,
                reason: CorruptReason::Truncated,
                bytes: Bytes::new(),
            });
        }
    }

    /// Files that the index does not name, now that it is known.
    pub(super) fn unexplained(&self, user: &mut Gathered) {
        let mut named = BTreeSet::new();
        for known in user.index.messages.values() {
            let msg = &known.msg;
            let path = if msg.format_flags & OWN_FILE == 0 {
                self.dir.segment(msg.segment)
            } else {
                self.dir.large(msg.segment, msg.mailbox, msg.uid)
            };
            named.insert(path.file_name().to_owned());
        }
        named.insert(self.dir.folders().file_name().to_owned());
        for name in user.names.keys() {
            let retired = segment_of(name).is_some_and(|id| user.index.retired.contains(&id));
            let explained =
                named.contains(name) || info_of(name).is_some() || retired || is_unborn(name);
            if !explained {
                user.aside.insert(name.clone());
            }
        }
    }
}

/// A message as an index would hold it, made of its store line and its text.
fn derived(line: &StoreLine, (mailbox, uid): Key, segment: u32, stored: &Bytes) -> Option<Known> {
    let flags = u16::from(line.format_flags);
    let mut deriver = Deriver::new(flags, line.stored_len);
    deriver.push(stored);
    let body = deriver.finish()?;
    let summary = body.summary;
    let msg = Msg {
        format_flags: flags & STORE_LINE_FLAGS | REBUILT,
        mailbox,
        uid,
        // Given when all is known.
        modseq: Modseq::new(0),
        lsn: Lsn::new(0),
        segment,
        offset: 0,
        stored_len: line.stored_len,
        skip: 0,
        header_len: summary.header_len.min(line.stored_len),
        lines_count: summary.lines_count.min(line.stored_len),
        quoted_count: summary.quoted_count.min(summary.lines_count),
        rfc822_size: summary.rfc822_size,
        internal_date: line.internal_date,
        date_s: summary.date_s,
        system_flags: 0,
        stored_crc: line.stored_crc,
        keywords: 0,
        guid: line.guid,
        held_for: 0,
    };
    Some(Known {
        msg,
        cache: body.cache.to_vec(),
        alive: true,
    })
}
