//! One user: what is good of index, segments and `folders` becomes a new generation of the index; what
//! is not goes to `lost/`, by name. Nothing of the user is in the log only by then.
//!
//! In order: copies of what is damaged into `lost/`; new segments; the new info file under its part
//! name, and its rename, which is the commit; `folders`; the old files into `lost/`. A crash anywhere
//! leaves either the old state or the new one, and files that the next repair sets aside.

mod act;
mod find;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ringpost_netproto::id::{MailboxId, Modseq, Uid, UidValidity, WallNs};

use super::Outcome;
use super::hand::Hand;
use super::index::{Folder, Index, Known, Reader};
use super::segment::{Judged, Key, read_piece};
use crate::check::{Lost, ReadTree, Redo, UserId, What, hex8, info_of, is_unborn, segment_of};
use crate::error::{CorruptReason, IoError};
use crate::format::folders::{FOLDERS_BYTES_MAX, Folders};
use crate::format::info::{Change, ChangeKind, SpecialUse};
use crate::format::store_file::StoreFile;
use crate::io::{RelPath, Step};
use crate::limits::INFO_BYTES_MAX;
use crate::position::Lsn;

/// Uids that are passed over where an index lost runs: nobody knows whether they were given out.
const UID_GAP: u32 = 1_000;

/// Modseqs of an opening begin with its number times 2 to this (storage.md 8.3).
const MODSEQ_EPOCH_SHIFT: u32 = 40;

/// The name of a user, if the files or the log tell it.
pub(super) fn name_of(tree: &dyn ReadTree, redo: &Redo, id: UserId) -> Option<Vec<u8>> {
    let in_log = redo.users.get(&id).and_then(|user| {
        user.entries.iter().find_map(|entry| match &entry.what {
            What::Create(name) => Some(name.clone()),
            _ => None,
        })
    });
    let in_folders = || {
        let bytes = tree.read(&id.dir().folders(), 0, FOLDERS_BYTES_MAX + 1);
        Folders::decode(&bytes.ok()?)
            .ok()
            .map(|folders| folders.user)
    };
    in_log.or_else(in_folders)
}

/// Writes `folders` anew, if the index is whole enough to say what is in it.
pub(super) fn folders_step(tree: &dyn ReadTree, id: UserId) -> Option<Step> {
    let index = index_of(tree, id)?;
    let header = index.header.as_ref().filter(|_| !index.has_lost())?;
    Some(Step::Replace {
        path: id.dir().folders(),
        data: Bytes::from(index.folders_file(&header.name).encode()),
    })
}

/// Whether a user has files of large messages whose records are nowhere, once the log is written into
/// the files. In service they would be removed: they were promised to nobody, unless the log lost that.
pub(super) fn has_orphans(tree: &dyn ReadTree, id: UserId) -> bool {
    let names = tree.list(&id.dir()).unwrap_or_default();
    names.iter().any(|(name, _)| is_orphan(name))
}

fn is_orphan(name: &str) -> bool {
    name.strip_suffix(".part")
        .is_some_and(|stem| hex8(stem).is_some())
}

/// The index of a user as far as it can be read.
pub(super) fn index_of(tree: &dyn ReadTree, id: UserId) -> Option<Index> {
    let dir = id.dir();
    let names = tree.list(&dir).ok()?;
    let current = names
        .iter()
        .filter_map(|(name, size)| Some((info_of(name)?, *size)));
    let (generation, size) = current.max()?;
    let bytes = read_all(tree, &dir.info(generation), size.min(INFO_BYTES_MAX));
    let reader = Reader {
        tree,
        id,
        dir: &dir,
        generation,
    };
    Some(reader.read(&bytes))
}

/// A user being repaired.
pub(super) struct User<'a> {
    pub(super) hand: &'a mut dyn Hand,
    pub(super) store: &'a StoreFile,
    pub(super) id: UserId,
    pub(super) dir: RelPath,
    pub(super) now: WallNs,
    /// Where the user's log ends.
    pub(super) base_lsn: Lsn,
    /// How often that log was opened: the top of modseqs.
    pub(super) boots: u32,
    /// Whether that log lost records.
    pub(super) lossy: bool,
    pub(super) out: &'a mut Outcome,
}

/// What the files of a user say together.
struct Gathered {
    names: BTreeMap<String, u64>,
    generation: Option<u32>,
    index: Index,
    folders: Option<Folders>,
    name: Vec<u8>,
    /// Whether the index must be written anew.
    changed: bool,
    /// Segments to be written anew: the old one, its messages in their order.
    rewrites: Vec<(u32, Judged, Vec<Key>)>,
    /// Files that go to `lost/`.
    aside: BTreeSet<String>,
    lost: Vec<Lost>,
    taken: u64,
}

impl User<'_> {
    /// Repairs the user. `from_log` are messages that the log lost.
    pub(super) fn repair(mut self, mut from_log: Vec<Lost>) -> Result<(), IoError> {
        let Some(mut user) = self.gather()? else {
            return Ok(());
        };
        // A checkpoint may have written it and not have said so: then the files are what counts.
        from_log.retain(|lost| !user.index.is_alive(lost.mailbox, Uid::new(lost.uid)));
        user.changed |= !from_log.is_empty() || user.index.bad_header.is_some();
        user.changed |= !user.index.bad.is_empty();
        self.shared(&mut user);
        self.large(&mut user);
        self.missing(&mut user);
        self.unexplained(&mut user);
        if self.lossy {
            self.orphans(&mut user);
        }
        let name: Box<[u8]> = Box::from(&user.name[..]);
        user.lost.extend(from_log.into_iter().map(|lost| Lost {
            name: Some(name.clone()),
            ..lost
        }));
        self.settle(&mut user);
        self.act(user)
    }

    fn gather(&mut self) -> Result<Option<Gathered>, IoError> {
        let names: BTreeMap<String, u64> = match self.hand.list(&self.dir) {
            Ok(names) => names.into_iter().collect(),
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        if names.keys().all(|name| is_unborn(name)) {
            return Ok(None);
        }
        let generation = names.keys().filter_map(|name| info_of(name)).max();
        let mut index = Index {
            bad_header: Some(CorruptReason::Truncated),
            ..Index::default()
        };
        if let Some(generation) = generation {
            let path = self.dir.info(generation);
            let size = names.get(path.file_name()).copied().unwrap_or(0);
            let bytes = read_all(self.hand, &path, size.min(INFO_BYTES_MAX));
            let reader = Reader {
                tree: self.hand,
                id: self.id,
                dir: &self.dir,
                generation,
            };
            index = reader.read(&bytes);
        }
        let path = self.dir.folders();
        let folders = self.hand.read(&path, 0, FOLDERS_BYTES_MAX + 1);
        let folders = folders.ok().and_then(|bytes| Folders::decode(&bytes).ok());
        let names_of = [
            index.header.as_ref().map(|header| header.name.to_vec()),
            folders.as_ref().map(|folders| folders.user.clone()),
        ];
        let ours = |name: &Vec<u8>| self.store.key.user_hash(name) == self.id.user;
        let Some(name) = names_of.into_iter().flatten().find(ours) else {
            self.out.did(
                self.dir.to_string(),
                "left as it is: neither the index nor `folders` tell whose it is; restore this \
                 directory from a backup"
                    .to_owned(),
            );
            return Ok(None);
        };
        let mut user = Gathered {
            names,
            generation,
            index,
            folders,
            name,
            changed: false,
            rewrites: Vec::new(),
            aside: BTreeSet::new(),
            lost: Vec::new(),
            taken: 0,
        };
        user.add_folders();
        Ok(Some(user))
    }

    /// What follows for the index from all that was found: tombstones of what is lost, uids and modseqs
    /// that cannot have been given out.
    fn settle(&self, user: &mut Gathered) {
        let unsure = user.index.has_lost();
        let mut modseq = user.index.modseq + 1;
        if unsure {
            // Above whatever the lost runs may have had: each opening begins with its own number there.
            let known = user.index.modseq >> MODSEQ_EPOCH_SHIFT;
            let next = known.max(u64::from(self.boots)) + 1;
            modseq = modseq.max(next << MODSEQ_EPOCH_SHIFT);
        }
        if !user.changed {
            return;
        }
        let index = &mut user.index;
        for lost in user.lost.iter().filter(|lost| lost.uid > 0) {
            let uid = Uid::new(lost.uid);
            index.expunges.push(Change {
                kind: ChangeKind::Expunge,
                mailbox: lost.mailbox,
                uid_low: uid,
                uid_high: uid,
                modseq: Modseq::new(modseq),
                lsn: Lsn::new(0),
                system_flags: 0,
                keywords: 0,
                time: self.now,
            });
            if let Some(folder) = index.folders.get_mut(&lost.mailbox) {
                folder.uidnext = folder.uidnext.max(lost.uid.saturating_add(1));
            }
        }
        for ((mailbox, uid), known) in &mut index.messages {
            if known.msg.modseq.value() == 0 {
                known.msg.modseq = Modseq::new(modseq);
            }
            if let Some(folder) = index.folders.get_mut(mailbox) {
                folder.uidnext = folder.uidnext.max(uid.value().saturating_add(1));
            }
        }
        let validities = index
            .folders
            .values()
            .map(|folder| folder.uidvalidity.value());
        index.uidvalidity_max = index.uidvalidity_max.max(validities.max().unwrap_or(0));
        for folder in index.folders.values_mut() {
            if folder.modseq == 0 {
                folder.modseq = modseq;
            }
            if unsure {
                folder.uidnext = folder.uidnext.saturating_add(UID_GAP);
            }
        }
        index.modseq = modseq;
        let in_names = user
            .names
            .keys()
            .filter_map(|name| segment_of(name).or_else(|| hex8(name.strip_suffix(".part")?)));
        let above = in_names.max().unwrap_or(0).saturating_add(1);
        index.next_segment = index.next_segment.max(above).max(1);
    }
}

impl Gathered {
    /// Mailboxes that the index lost and `folders` names.
    fn add_folders(&mut self) {
        let folders = self.folders.as_ref();
        let folders = folders.filter(|folders| folders.user == self.name);
        for line in folders.map_or(&[][..], |folders| &folders.mailboxes) {
            let known = &mut self.index.folders;
            self.index.cut |= !known.contains_key(&line.mailbox);
            known.entry(line.mailbox).or_insert_with(|| Folder {
                uidvalidity: line.uidvalidity,
                name: line.name.clone(),
                special_use: use_of(line.mailbox),
                uidnext: 1,
                time: WallNs::new(0),
                modseq: 0,
                alive: true,
                subscribed: false,
            });
        }
        // Every user has two mailboxes at least.
        self.index.cut |= self.index.folders.is_empty();
    }

    fn validity(&self, mailbox: MailboxId) -> u32 {
        self.index
            .folders
            .get(&mailbox)
            .map_or(0, |folder| folder.uidvalidity.value())
    }

    /// Whether a message that the index does not know is one that it lost: not expunged, not of a
    /// deleted mailbox, not of somebody else. `validity` is that of its store line.
    fn takes(&self, (mailbox, uid): Key, validity: Option<u32>) -> bool {
        if mailbox.value() == 0
            || uid.value() == 0
            || self.index.messages.contains_key(&(mailbox, uid))
        {
            return false;
        }
        let fits = match self.index.folders.get(&mailbox) {
            Some(folder) => {
                folder.alive
                    && validity.is_none_or(|validity| validity == folder.uidvalidity.value())
            }
            None => self.index.has_lost(),
        };
        fits && !self.index.is_expunged(mailbox, uid)
    }

    /// Takes a message over; its mailbox is made if the index lost that too.
    fn take(&mut self, key: Key, validity: u32, known: Known) {
        let newest = self.index.uidvalidity_max;
        self.index.folders.entry(key.0).or_insert_with(|| Folder {
            uidvalidity: UidValidity::new(if validity == 0 {
                newest.saturating_add(1)
            } else {
                validity
            }),
            name: match key.0 {
                MailboxId::INBOX => "INBOX".to_owned(),
                MailboxId::SENT => "Sent".to_owned(),
                other => format!("Recovered-{other}"),
            },
            special_use: use_of(key.0),
            uidnext: 1,
            time: WallNs::new(0),
            modseq: 0,
            alive: true,
            subscribed: false,
        });
        self.index.messages.insert(key, known);
        self.taken += 1;
    }

    /// What was done about the index, in a sentence.
    fn story(&self) -> String {
        let mut why = Vec::new();
        if let Some(reason) = &self.index.bad_header {
            why.push(format!("the old header: {reason}"));
        }
        for bad in self.index.bad.iter().take(8) {
            let outcome = match (bad.mended, bad.empty) {
                (true, _) => "one byte was wrong and is put right",
                (false, true) => "empty: their records were lost",
                (false, false) => "damaged: of messages only flags are lost by that",
            };
            why.push(format!(
                "{} slots at offset {}, {outcome}",
                bad.slots, bad.offset
            ));
        }
        if self.index.bad.len() > 8 {
            why.push(format!("{} more bad runs", self.index.bad.len() - 8));
        }
        if self.taken > 0 {
            why.push(format!(
                "{} messages were taken over from their store lines, without flags",
                self.taken
            ));
        }
        if why.is_empty() {
            why.push("its segments changed".to_owned());
        }
        format!("a new generation of the index ({})", why.join("; "))
    }
}

/// Special use of the mailboxes that every user has.
fn use_of(mailbox: MailboxId) -> SpecialUse {
    if mailbox == MailboxId::SENT {
        SpecialUse::Sent
    } else {
        SpecialUse::None
    }
}

/// Segment, mailbox and uid of a large message's file name.
fn large_of(name: &str) -> Option<(u32, MailboxId, Uid)> {
    let mut parts = name.strip_suffix(".mbox")?.split('.').map(hex8);
    let segment = parts.next()??;
    let mailbox = MailboxId::new(parts.next()??);
    let uid = Uid::new(parts.next()??);
    parts.next().is_none().then_some((segment, mailbox, uid))
}

/// A whole file; what the device does not give is zeros.
fn read_all(hand: &dyn ReadTree, path: &RelPath, size: u64) -> Vec<u8> {
    read_all_from(hand, path, 0, size)
}

fn read_all_from(hand: &dyn ReadTree, path: &RelPath, from: u64, len: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let mut done = 0;
    while done < len {
        let piece = (len - done).min(1 << 20);
        let bytes = read_piece(hand, path, from + done, piece);
        if bytes.is_empty() {
            break;
        }
        done += u64::try_from(bytes.len()).expect("a mebibyte");
        out.extend(bytes);
    }
    out
}
