//! A segment against the index: which messages are whole and where, which are not, and which the index
//! does not know.
//!
//! A message counts as whole if its checksum holds, whatever stands in front of it: `From_` line and
//! store line are made again from the index. Where a mail tool moved messages about they are found by
//! their store lines; a file whose line ends were converted is read with LF.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use memchr::memmem;
use ringpost_netproto::id::{MailboxId, Uid};

use super::index::Known;
use crate::check::{ReadTree, Window, message, stored_crc};
use crate::error::{CorruptReason, IoError};
use crate::format::info::Msg;
use crate::format::store_line::StoreLine;
use crate::io::RelPath;
use crate::limits::BLOCK_BYTES;
use crate::mbox::{Found, Item, Scanner, State};

pub(super) type Key = (MailboxId, Uid);

/// Segments above this are not read with other line ends.
const CONVERT_BYTES_MAX: u64 = 1 << 30;

/// A message that is whole.
#[derive(Clone, Debug)]
pub(super) struct Good {
    /// Of its `From_` line: where its old prefix is, in bytes from the file's start.
    pub(super) prefix_at: u64,
    pub(super) prefix_len: u64,
    /// Of the message as stored.
    pub(super) stored_at: u64,
}

/// A message, or a stretch, that is not.
#[derive(Clone, Debug)]
pub(super) struct Bad {
    /// `None`: nothing says which message it was.
    pub(super) key: Option<Key>,
    pub(super) guid: Option<ringpost_netproto::id::Guid>,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) reason: CorruptReason,
}

/// What is in a segment.
#[derive(Clone, Debug, Default)]
pub(super) struct Judged {
    /// All is as the index says: the file stays as it is.
    pub(super) is_clean: bool,
    /// Nothing of it is as the index says: a file of somebody else.
    pub(super) is_foreign: bool,
    /// Of the index's messages that are alive.
    pub(super) good: BTreeMap<Key, Good>,
    pub(super) bad: Vec<Bad>,
    /// Whole messages that the index does not know.
    pub(super) unknown: Vec<(StoreLine, Good)>,
    /// The file with LF, if it had other line ends: what the places count in.
    pub(super) converted: Option<Bytes>,
}

impl Judged {
    /// A piece of the file that the places count in.
    pub(super) fn read(
        &self,
        tree: &dyn ReadTree,
        path: &RelPath,
        (offset, len): (u64, u64),
    ) -> Result<Vec<u8>, IoError> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        match &self.converted {
            None => tree.read(path, offset, len),
            Some(bytes) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX);
                let rest = bytes.get(from..).unwrap_or_default();
                Ok(rest.get(..len).unwrap_or(rest).to_vec())
            }
        }
    }
}

/// Judges the segment at `path` of `size` bytes; `indexed` are its messages, alive and dead.
/// `validity` gives the uidvalidity of a mailbox.
pub(super) fn judge(
    tree: &dyn ReadTree,
    (path, size): (&RelPath, u64),
    indexed: &[(Key, &Known)],
    validity: &dyn Fn(MailboxId) -> u32,
) -> Judged {
    if is_clean(tree, (path, size), indexed, validity) {
        return Judged {
            is_clean: true,
            ..Judged::default()
        };
    }
    let judged = Judge { tree, path, size }.judge(indexed);
    let alive = indexed.iter().any(|(_, known)| known.alive);
    if !judged.good.is_empty() || !judged.unknown.is_empty() || size > CONVERT_BYTES_MAX {
        return judged;
    }
    let bytes = read_anyhow(tree, path, size);
    if memmem::find(&bytes, b"\r\nX-Ringpost: 1 ").is_none() {
        return judged;
    }
    let converted = Bytes::from(with_lf(&bytes));
    let one = OneFile(&converted);
    let size = u64::try_from(converted.len()).expect("an index has at most 64 bits");
    let mut again = Judge {
        tree: &one,
        path,
        size,
    }
    .judge(indexed);
    if again.good.is_empty() && (alive || again.unknown.is_empty()) {
        return judged;
    }
    again.converted = Some(converted);
    again
}

/// Whether each message is where the index says, and nothing else is there.
fn is_clean(
    tree: &dyn ReadTree,
    (path, size): (&RelPath, u64),
    indexed: &[(Key, &Known)],
    validity: &dyn Fn(MailboxId) -> u32,
) -> bool {
    let mut window = Window::new(tree, path);
    let mut end = 0;
    let mut mailbox = None;
    for ((owner, _), known) in indexed {
        let msg = &known.msg;
        let other = mailbox.replace(*owner).is_some_and(|other| other != *owner);
        if msg.offset != end || other {
            return false;
        }
        end += msg.segment_bytes();
        if known.alive && message(&mut window, msg, validity(msg.mailbox)).is_err() {
            return false;
        }
    }
    end == size && end > 0
}

struct Judge<'a> {
    tree: &'a dyn ReadTree,
    path: &'a RelPath,
    size: u64,
}

/// What the walk over a file met, to be asked for.
struct Met {
    items: Vec<Item>,
    /// By what its store line says: places in `items`, whole messages before others.
    by_key: BTreeMap<Key, usize>,
}

impl Met {
    fn new(items: Vec<Item>) -> Self {
        let mut by_key = BTreeMap::new();
        for whole in [true, false] {
            for (place, item) in items.iter().enumerate() {
                if let Item::Message(found) = item
                    && let Some(line) = &found.store
                    && (found.state == State::Whole) == whole
                {
                    let key = (line.mailbox, Uid::new(line.uid));
                    by_key.entry(key).or_insert(place);
                }
            }
        }
        Self { items, by_key }
    }

    fn get(&self, key: Key) -> Option<&Found> {
        match self.items.get(*self.by_key.get(&key)?)? {
            Item::Message(found) => Some(found),
            Item::Junk { .. } => None,
        }
    }

    fn has_whole(&self) -> bool {
        self.items.iter().any(|item| match item {
            Item::Message(found) => found.state == State::Whole,
            Item::Junk { .. } => false,
        })
    }
}

/// Stretches that are accounted for: end by start.
#[derive(Default)]
struct Taken(BTreeMap<u64, u64>);

impl Taken {
    fn add(&mut self, from: u64, to: u64) {
        let end = self.0.entry(from).or_default();
        *end = to.max(*end);
    }

    /// Whether a stretch that was added has a byte of this one. The stretches are messages of one file
    /// and seldom overlap: the one before and the next tell.
    fn overlaps(&self, from: u64, to: u64) -> bool {
        let before = self.0.range(..=from).next_back();
        before.is_some_and(|(_, end)| *end > from) || self.0.range(from..to).next().is_some()
    }
}

impl Judge<'_> {
    fn judge(&self, indexed: &[(Key, &Known)]) -> Judged {
        let met = Met::new(self.items());
        let mut judged = Judged::default();
        let mut taken = Taken::default();
        let mut keys = BTreeSet::new();
        for (key, known) in indexed {
            let msg = &known.msg;
            keys.insert(*key);
            if !known.alive {
                taken.add(msg.offset, msg.offset + msg.segment_bytes());
                continue;
            }
            match self.find(*key, msg, &met) {
                Some(good) => {
                    let end = good.stored_at + u64::from(msg.stored_len) + 1;
                    taken.add(good.prefix_at, end);
                    judged.good.insert(*key, good);
                }
                None => judged.bad.push(self.bad(*key, msg, &met)),
            }
        }
        judged.is_foreign = judged.good.is_empty() && !judged.bad.is_empty() && met.has_whole();
        for bad in &judged.bad {
            taken.add(bad.offset, bad.offset + bad.len);
        }
        for item in &met.items {
            self.rest(item, &keys, &taken, &mut judged);
        }
        judged
    }

    /// The file as a walk over mboxes sees it.
    fn items(&self) -> Vec<Item> {
        let mut items = Vec::new();
        let mut scanner = Scanner::new();
        let mut offset = 0;
        while offset < self.size {
            let piece = (self.size - offset).min(1 << 20);
            let bytes = read_piece(self.tree, self.path, offset, piece);
            scanner.push(&bytes, &mut items);
            offset += piece;
        }
        scanner.finish(&mut items);
        items
    }

    /// Where a message of the index is, if it is whole.
    fn find(&self, key: Key, msg: &Msg, met: &Met) -> Option<Good> {
        let mut window = Window::new(self.tree, self.path);
        let stored_at = msg.offset + u64::from(msg.skip);
        if stored_crc(&mut window, stored_at, msg.stored_len).ok() == Some(Some(msg.stored_crc)) {
            return Some(Good {
                prefix_at: msg.offset,
                prefix_len: u64::from(msg.skip),
                stored_at,
            });
        }
        let found = met.get(key)?;
        let same = found.store.is_some_and(|line| {
            line.guid == msg.guid
                && line.stored_crc == msg.stored_crc
                && line.stored_len == msg.stored_len
        });
        (same && found.state == State::Whole).then(|| good(found))
    }

    /// A message of the index that is not whole, and what is left of it.
    fn bad(&self, key: Key, msg: &Msg, met: &Met) -> Bad {
        let here = met
            .get(key)
            .filter(|found| found.store.is_some_and(|line| line.guid == msg.guid))
            .map(|found| (found.offset, found.prefix_len + found.body_len));
        let there = self
            .size
            .saturating_sub(msg.offset)
            .min(msg.segment_bytes());
        let (offset, len) = here.unwrap_or((msg.offset, there));
        let reason = if self.size < msg.offset + msg.segment_bytes() && here.is_none() {
            CorruptReason::Truncated
        } else {
            CorruptReason::Checksum
        };
        Bad {
            key: Some(key),
            guid: Some(msg.guid),
            offset,
            len,
            reason,
        }
    }

    /// What the walk met beside the messages of the index.
    fn rest(&self, item: &Item, keys: &BTreeSet<Key>, taken: &Taken, judged: &mut Judged) {
        let (offset, len) = match item {
            Item::Message(found) => (found.offset, found.prefix_len + found.body_len),
            Item::Junk { offset, len } => (*offset, *len),
        };
        let covered = taken.overlaps(offset, offset + len);
        if let Item::Message(found) = item
            && let Some(line) = found.store
        {
            let key = (line.mailbox, Uid::new(line.uid));
            let known = keys.contains(&key);
            if found.state == State::Whole {
                if !covered && !known {
                    judged.unknown.push((line, good(found)));
                }
                return;
            }
            if !covered && !known {
                judged.bad.push(Bad {
                    key: Some(key),
                    guid: Some(line.guid),
                    offset,
                    len,
                    reason: CorruptReason::Checksum,
                });
            }
            return;
        }
        if covered {
            return;
        }
        let bytes = read_piece(self.tree, self.path, offset, len.min(1 << 20));
        if bytes.iter().any(|byte| !matches!(byte, 0 | b'\n' | b'\r')) {
            judged.bad.push(Bad {
                key: None,
                guid: None,
                offset,
                len,
                reason: CorruptReason::Value("bytes that are no message"),
            });
        }
    }
}

fn good(found: &Found) -> Good {
    Good {
        prefix_at: found.offset,
        prefix_len: found.prefix_len,
        stored_at: found.offset + found.prefix_len,
    }
}

/// A file in memory, whatever it is called.
struct OneFile<'a>(&'a Bytes);

impl ReadTree for OneFile<'_> {
    fn list(&self, _dir: &RelPath) -> Result<Vec<(String, u64)>, IoError> {
        Ok(Vec::new())
    }

    fn read(&self, _file: &RelPath, offset: u64, len: usize) -> Result<Vec<u8>, IoError> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = self.0.get(from..).unwrap_or_default();
        Ok(rest.get(..len).unwrap_or(rest).to_vec())
    }
}

/// CRLF as LF.
fn with_lf(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(at) = memmem::find(rest, b"\r\n") {
        out.extend_from_slice(rest.get(..at).unwrap_or_default());
        out.push(b'\n');
        rest = rest.get(at + 2..).unwrap_or_default();
    }
    out.extend_from_slice(rest);
    out
}

/// A piece of a file; what the device does not give is zeros.
pub(super) fn read_piece(tree: &dyn ReadTree, path: &RelPath, offset: u64, len: u64) -> Vec<u8> {
    let most = usize::try_from(len).unwrap_or(usize::MAX);
    if let Ok(bytes) = tree.read(path, offset, most) {
        return bytes;
    }
    let block = usize::try_from(BLOCK_BYTES).expect("4096");
    let mut out = Vec::new();
    while out.len() < most {
        let at = offset + u64::try_from(out.len()).expect("an index has at most 64 bits");
        let want = block.min(most - out.len());
        let read = tree.read(path, at, want).unwrap_or_else(|_| vec![0; want]);
        if read.is_empty() {
            break;
        }
        out.extend(read);
    }
    out
}

/// A whole file likewise.
fn read_anyhow(tree: &dyn ReadTree, path: &RelPath, size: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let mut offset = 0;
    while offset < size {
        let piece = (size - offset).min(1 << 20);
        out.extend(read_piece(tree, path, offset, piece));
        offset += piece;
    }
    out
}
