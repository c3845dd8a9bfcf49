//! Doing what was decided about a user.

use std::collections::BTreeMap;

use bytes::Bytes;
use ringpost_netproto::id::MailboxId;

use super::{Gathered, User};
use crate::check::Lost;
use crate::error::IoError;
use crate::format::info::{Msg, OWN_FILE};
use crate::format::store_line::{STORE_LINE_FLAGS, StoreLine};
use crate::io::{Piece, RelPath, Step};
use crate::mbox;
use crate::repair::generation::{Made, encode};
use crate::repair::lost;
use crate::repair::segment::{Judged, Key};

/// Bytes written at once.
const CHUNK: usize = 4 << 20;

impl User<'_> {
    /// Does what was decided.
    pub(super) fn act(&mut self, mut user: Gathered) -> Result<(), IoError> {
        let owner = lost::word(&user.name);
        self.keep_lost(&user, &owner)?;
        if user.changed {
            self.rewrite(&mut user)?;
            self.write_index(&user)?;
        }
        self.write_folders(&user)?;
        for name in &user.aside {
            let Some(path) = self.dir.entry(name) else {
                continue;
            };
            let to = lost::set_aside(self.hand, &path, &owner)?;
            let file = path.to_string();
            let whole = |lost: &&Lost| lost.file == file && lost.bytes.is_empty();
            for lost in user.lost.iter().filter(whole) {
                self.out.kept(lost, &to);
            }
            self.out.did(file, format!("moved to {to}"));
        }
        for lost in user.lost {
            self.out.lose(lost);
        }
        Ok(())
    }

    /// Copies of what is left of damaged messages.
    fn keep_lost(&mut self, user: &Gathered, owner: &str) -> Result<(), IoError> {
        for lost in user.lost.iter().filter(|lost| !lost.bytes.is_empty()) {
            let name = lost::name_of(owner, lost);
            let path = lost::keep(self.hand, &name, &lost.bytes)?;
            self.out.kept(lost, &path);
        }
        Ok(())
    }

    /// Writes the good messages of damaged segments into new ones.
    fn rewrite(&mut self, user: &mut Gathered) -> Result<(), IoError> {
        for (old, judged, keys) in std::mem::take(&mut user.rewrites) {
            let mut by_mailbox: BTreeMap<MailboxId, Vec<Key>> = BTreeMap::new();
            for key in keys {
                by_mailbox.entry(key.0).or_default().push(key);
            }
            for keys in by_mailbox.into_values() {
                let segment = user.index.next_segment;
                user.index.next_segment = segment.saturating_add(1);
                self.copy(user, (old, &judged), segment, &keys)?;
            }
        }
        Ok(())
    }

    fn copy(
        &mut self,
        user: &mut Gathered,
        (old, judged): (u32, &Judged),
        segment: u32,
        keys: &[Key],
    ) -> Result<(), IoError> {
        let part = self.dir.segment_part(segment);
        let mut last = self.dir.segment(segment);
        self.hand.apply(vec![Step::Unlink(part.clone())])?;
        let mut offset = 0;
        let mut chunk = Vec::new();
        let mut chunk_at = 0;
        for key in keys {
            let validity = user.validity(key.0);
            let (Some(known), Some(good)) =
                (user.index.messages.get_mut(key), judged.good.get(key))
            else {
                continue;
            };
            let own = known.msg.format_flags & OWN_FILE != 0;
            let from = if own {
                last = self.dir.large(segment, key.0, key.1);
                self.dir.large(old, key.0, key.1)
            } else {
                self.dir.segment(old)
            };
            // Unreadable, it costs the sender in the From_ line; an error here would end the whole repair.
            let at = (good.prefix_at, good.prefix_len);
            let before = judged.read(self.hand, &from, at).unwrap_or_default();
            let prefix = prefix_of(&known.msg, validity, &before);
            known.msg.segment = segment;
            known.msg.offset = offset;
            known.msg.skip = u16::try_from(prefix.len()).expect("at most 1280");
            offset += known.msg.segment_bytes();
            chunk.extend_from_slice(&prefix);
            let mut done = 0;
            let len = u64::from(known.msg.stored_len);
            while done < len {
                let piece = (len - done).min(1 << 20);
                let at = (good.stored_at + done, piece);
                let bytes = judged.read(self.hand, &from, at)?;
                if bytes.is_empty() {
                    break;
                }
                done += u64::try_from(bytes.len()).expect("a mebibyte");
                chunk.extend_from_slice(&bytes);
                if chunk.len() >= CHUNK {
                    chunk_at += self.write_chunk(&part, chunk_at, &mut chunk)?;
                }
            }
            chunk.push(b'\n');
        }
        self.write_chunk(&part, chunk_at, &mut chunk)?;
        self.hand.apply(vec![Step::Rename {
            from: part,
            to: last.clone(),
        }])?;
        self.out.did(
            last.to_string(),
            format!(
                "made of the {} whole messages of its predecessor",
                keys.len()
            ),
        );
        Ok(())
    }

    fn write_chunk(
        &mut self,
        path: &RelPath,
        offset: u64,
        chunk: &mut Vec<u8>,
    ) -> Result<u64, IoError> {
        let data = Bytes::from(std::mem::take(chunk));
        let len = u64::try_from(data.len()).expect("an index has at most 64 bits");
        self.hand.apply(vec![Step::Write {
            path: path.clone(),
            offset,
            pieces: vec![Piece::Bytes(data)],
        }])?;
        Ok(len)
    }

    /// Writes the new generation; its rename is the commit.
    fn write_index(&mut self, user: &Gathered) -> Result<(), IoError> {
        let generation = user.generation.map_or(1, |known| known.saturating_add(1));
        let tombstones_from = match &user.index.header {
            Some(header) if !user.index.has_lost() => header.tombstones_from,
            _ => user.index.modseq,
        };
        let bytes = encode(
            &user.index,
            &Made {
                id: self.id,
                generation,
                name: &user.name,
                now: self.now,
                base_lsn: self.base_lsn,
                tombstones_from,
            },
        );
        let part = self.dir.info_part(generation);
        let last = self.dir.info(generation);
        self.hand.apply(vec![Step::Unlink(part.clone())])?;
        let mut offset = 0;
        for chunk in bytes.chunks(CHUNK) {
            offset += self.write_chunk(&part, offset, &mut chunk.to_vec())?;
        }
        self.hand.apply(vec![Step::Rename {
            from: part,
            to: last.clone(),
        }])?;
        self.out.users += 1;
        self.out.taken += user.taken;
        self.out.did(last.to_string(), user.story());
        if let Some(old) = user.generation {
            let path = self.dir.info(old);
            let owner = lost::word(&user.name);
            let to = lost::set_aside(self.hand, &path, &owner)?;
            self.out.did(path.to_string(), format!("moved to {to}"));
        }
        Ok(())
    }

    fn write_folders(&mut self, user: &Gathered) -> Result<(), IoError> {
        let wanted = user.index.folders_file(&user.name);
        if user.folders.as_ref() == Some(&wanted) {
            return Ok(());
        }
        let path = self.dir.folders();
        let data = Bytes::from(wanted.encode());
        self.hand.apply(vec![Step::Replace {
            path: path.clone(),
            data,
        }])?;
        self.out
            .did(path.to_string(), "written anew from the index".to_owned());
        Ok(())
    }
}

/// `From_` line and store line of a message, the sender as it stands in the old one.
fn prefix_of(msg: &Msg, validity: u32, before: &[u8]) -> Vec<u8> {
    let sender = before
        .strip_prefix(b"From ")
        .and_then(|rest| rest.split(|byte| matches!(byte, b' ' | b'\n')).next())
        .filter(|sender| sender.iter().all(|byte| (0x21..=0x7E).contains(byte)))
        .filter(|sender| sender.len() <= 960)
        .unwrap_or_default();
    let own = msg.format_flags & OWN_FILE != 0;
    let line = StoreLine {
        mailbox: if own { MailboxId::new(0) } else { msg.mailbox },
        uidvalidity: if own { 0 } else { validity },
        uid: if own { 0 } else { msg.uid.value() },
        guid: msg.guid,
        internal_date: msg.internal_date,
        stored_len: msg.stored_len,
        stored_crc: msg.stored_crc,
        format_flags: u8::try_from(msg.format_flags & STORE_LINE_FLAGS).expect("5 bits"),
    };
    mbox::prefix(sender, msg.internal_date, &line)
}
