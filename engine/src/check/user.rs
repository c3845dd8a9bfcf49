//! One partition, one user: the index, folded with what the log holds, against the segments, the
//! file names and `folders`.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ringpost_netproto::id::{PartitionId, UserHash};

use super::fold::{Entry, Fold, slot_at};
use super::redo::{UserId, UserRedo};
use super::segment::{Bad, message};
use super::tree::Window;
use super::{Checker, Level, Lost, Severity};
use crate::error::CorruptReason;
use crate::format::Reserved;
use crate::format::folders::{FOLDERS_BYTES_MAX, Folders};
use crate::format::info::{FIRST_SLOT, INFO_HEADER_BYTES, InfoHeader, OWN_FILE, Runs, Seed};
use crate::format::store_file::StoreFile;
use crate::io::RelPath;
use crate::limits::INFO_BYTES_MAX;

/// What is looked at.
pub(super) struct Place<'a> {
    id: UserId,
    dir: RelPath,
    pub(super) redo: &'a UserRedo,
    /// Name and size of each entry of the directory.
    names: BTreeMap<String, u64>,
}

impl Place<'_> {
    fn has(&self, path: &RelPath) -> bool {
        self.names.contains_key(path.file_name())
    }

    /// The info file of a generation. One that a record in the log made may have its part name.
    fn info(&self, generation: u32) -> RelPath {
        let last = self.dir.info(generation);
        let swapped = self.redo.swap.is_some() && generation == self.redo.generation;
        if swapped && !self.has(&last) {
            self.dir.info_part(generation)
        } else {
            last
        }
    }

    /// A shared segment; likewise.
    fn segment(&self, segment: u32) -> RelPath {
        let last = self.dir.segment(segment);
        let swap = self.redo.swap.as_ref();
        if swap.is_some_and(|swap| swap.made.contains(&segment)) && !self.has(&last) {
            self.dir.segment_part(segment)
        } else {
            last
        }
    }
}

impl Checker<'_> {
    /// Checks all users of a partition; `redo` has those with records above the checkpoint.
    pub(super) fn partition(
        &mut self,
        store: &StoreFile,
        partition: PartitionId,
        mut redo: BTreeMap<UserId, UserRedo>,
    ) {
        let dir = RelPath::partition_dir(partition);
        for (name, _) in self.list(&dir).unwrap_or_default() {
            let Some(id) = UserId::named(partition, &name) else {
                if let Some(path) = dir.entry(&name) {
                    let reason = CorruptReason::Value("not the name of a user's directory");
                    self.found(Severity::Minor, &path, 0, reason);
                }
                continue;
            };
            if store.partitions.partition(id.user) != partition {
                self.damage(&id.dir(), 0, CorruptReason::Identity);
            }
            let redo = redo.remove(&id).unwrap_or_default();
            self.user(store, id, &redo);
        }
        for (id, redo) in redo {
            if redo.created.is_none() {
                self.damage(&id.dir(), 0, CorruptReason::Truncated);
            }
            let names = BTreeMap::new();
            let place = Place {
                id,
                dir: id.dir(),
                redo: &redo,
                names,
            };
            self.index(store, &place, &[], None);
        }
    }

    pub(crate) fn user(&mut self, store: &StoreFile, id: UserId, redo: &UserRedo) {
        let dir = id.dir();
        let Some(names) = self.list(&dir) else { return };
        let names = names.into_iter().collect();
        let place = Place {
            id,
            dir,
            redo,
            names,
        };
        if redo.is_empty() && place.names.keys().all(|name| is_unborn(name)) {
            // Made for a record that never came.
            return;
        }
        let current = match &place.redo.swap {
            Some(_) => Some(place.redo.generation),
            None => place.names.keys().filter_map(|name| info_of(name)).max(),
        };
        let Some(generation) = current else {
            if redo.created.is_none() {
                self.damage(&place.dir.info(1), 0, CorruptReason::Truncated);
            }
            self.index(store, &place, &[], None);
            return;
        };
        let path = place.info(generation);
        let size = place.names.get(path.file_name()).copied().unwrap_or(0);
        let swap = place.redo.swap.as_ref();
        if swap.is_some_and(|swap| size < slot_at(swap.slots)) {
            self.damage(&path, size, CorruptReason::Truncated);
        }
        if size > INFO_BYTES_MAX {
            self.damage(&path, 0, CorruptReason::Length);
            return;
        }
        let len = usize::try_from(size).unwrap_or(usize::MAX);
        let Some(bytes) = self.read(&path, 0, len) else {
            return;
        };
        self.index(store, &place, &bytes, Some(generation));
    }

    /// Folds the info file (empty if there is none) and redo, and checks all that it names.
    fn index(&mut self, store: &StoreFile, place: &Place<'_>, bytes: &[u8], found: Option<u32>) {
        self.report.users += 1;
        let generation = found.unwrap_or(place.redo.generation);
        let path = place.info(generation);
        if !place.redo.runs.is_empty() && place.redo.generation != generation {
            self.damage(
                &path,
                36,
                CorruptReason::Disagree("the log and the info's generation"),
            );
        }
        let mut name = place.redo.created.clone();
        let mut reserved = Reserved::Zero;
        let id = &place.id;
        match InfoHeader::open(bytes, id.user, id.ordinal, generation) {
            Ok(header) => {
                reserved = header.version.reserved();
                if store.key.user_hash(&header.name) != id.user {
                    self.damage(&path, 88, CorruptReason::Identity);
                }
                name = Some(header.name.into_vec());
            }
            Err(_) if name.is_some() => {}
            Err(reason) if found.is_some() => self.damage(&path, 0, reason),
            Err(_) => {}
        }
        let seed = Seed {
            user: id.user,
            generation,
        };
        let runs = bytes.get(INFO_HEADER_BYTES..).unwrap_or_default();
        let runs = Runs::new(runs, seed, FIRST_SLOT).reserved(reserved);
        let mut fold = self.fold(place, &path, runs);
        fold.name = name.as_deref().map(Box::from);
        self.segments(place, &path, &fold);
        self.folders(place, &fold, name.as_deref());
        for entry in fold.messages.values().filter(|entry| entry.alive) {
            self.report.messages += 1;
            self.report.bytes += u64::from(entry.msg.stored_len);
        }
    }

    /// Every message of the index in its segment, every byte of a segment in the index.
    fn segments(&mut self, place: &Place<'_>, info: &RelPath, fold: &Fold) {
        let mut segments: BTreeMap<u32, Vec<&Entry>> = BTreeMap::new();
        let mut named = BTreeSet::new();
        for entry in fold.messages.values() {
            if entry.msg.format_flags & OWN_FILE != 0 {
                named.insert(self.large(place, fold, entry));
            } else {
                segments.entry(entry.msg.segment).or_default().push(entry);
            }
        }
        for (segment, mut entries) in segments {
            entries.sort_by_key(|entry| entry.msg.offset);
            let path = place.segment(segment);
            named.insert(path.file_name().to_owned());
            self.segment(place, fold, info, &path, &entries);
        }
        for name in place.names.keys() {
            let explained = named.contains(name)
                || name == place.dir.folders().file_name()
                || info_of(name).is_some()
                || segment_of(name).is_some_and(|segment| fold.retired.contains(&segment))
                || is_unborn(name);
            if !explained && let Some(path) = place.dir.entry(name) {
                let severity = match segment_of(name) {
                    // Of a user whose index lost its end, or of an unlink that did not happen.
                    Some(_) => Severity::Damage,
                    None => Severity::Minor,
                };
                let reason = CorruptReason::Disagree("the index does not name this file");
                self.found(severity, &path, 0, reason);
            }
        }
    }

    fn segment(
        &mut self,
        place: &Place<'_>,
        fold: &Fold,
        info: &RelPath,
        path: &RelPath,
        entries: &[&Entry],
    ) {
        let size = place.names.get(path.file_name()).copied();
        let dead = entries.iter().all(|entry| !entry.alive);
        if size.is_none() && dead {
            return;
        }
        let mut window = Window::new(self.tree, path);
        self.report.files += u64::from(size.is_some());
        let mut end = 0;
        let mut mailbox = None;
        for entry in entries {
            let msg = &entry.msg;
            if mailbox
                .replace(msg.mailbox)
                .is_some_and(|other| other != msg.mailbox)
            {
                let reason = CorruptReason::Value("two mailboxes in one segment");
                self.damage(info, entry.info_at, reason);
            }
            if msg.offset < end {
                let reason = CorruptReason::Value("two messages in one place of a segment");
                self.damage(info, entry.info_at, reason);
            } else if msg.offset > end {
                let reason = CorruptReason::Disagree("the index does not explain these bytes");
                self.damage(path, end, reason);
            }
            end = end.max(msg.offset + msg.segment_bytes());
            if !entry.pending {
                let validity = fold.uidvalidity(msg.mailbox);
                // The bytes of an expunged message are nobody's loss, nor need they be there.
                let severity = if entry.alive {
                    Severity::Damage
                } else {
                    Severity::Minor
                };
                if entry.alive || size.is_some_and(|size| size >= end) {
                    let at = (severity, path, size);
                    self.message((place, fold), at, &mut window, entry, validity);
                }
            } else if entry.alive {
                self.pending_validity(place, fold, info, entry);
            }
        }
        if self.level == Level::Full && entries.iter().all(|entry| !entry.pending) {
            self.parsed(path, size.unwrap_or(0), entries);
        }
        if size.is_some_and(|size| size > end) {
            let reason = CorruptReason::Disagree("the index does not explain these bytes");
            self.damage(path, end, reason);
        }
    }

    fn message(
        &mut self,
        owner: (&Place<'_>, &Fold),
        (severity, path, size): (Severity, &RelPath, Option<u64>),
        window: &mut Window<'_>,
        entry: &Entry,
        uidvalidity: u32,
    ) {
        let msg = &entry.msg;
        let there = size.is_some_and(|size| {
            self.level > Level::Structure || size >= msg.offset + msg.segment_bytes()
        });
        if !there {
            self.found(severity, path, msg.offset, CorruptReason::Truncated);
            self.not_whole(owner, (path, msg.offset, CorruptReason::Truncated), entry);
            return;
        }
        if self.level == Level::Structure {
            return;
        }
        match message(window, msg, uidvalidity) {
            Ok(()) if self.level == Level::Full => self.derived(path, window, entry),
            Ok(()) => {}
            Err(Bad::At(offset, reason)) => {
                self.found(severity, path, offset, reason.clone());
                // What stands before and behind it can be made again.
                if offset >= msg.offset + u64::from(msg.skip)
                    && offset < msg.offset + msg.segment_bytes() - 1
                {
                    self.not_whole(owner, (path, offset, reason), entry);
                }
            }
            Err(Bad::Io(error)) => self.finding(severity, error.corrupt()),
        }
    }

    /// Names a message that is not whole.
    fn not_whole(
        &mut self,
        (place, fold): (&Place<'_>, &Fold),
        (path, offset, reason): (&RelPath, u64, CorruptReason),
        entry: &Entry,
    ) {
        if !entry.alive {
            return;
        }
        self.lose(Lost {
            user: Some(place.id),
            validity: None,
            name: fold.name.clone(),
            mailbox: entry.msg.mailbox,
            uid: entry.msg.uid.value(),
            guid: entry.msg.guid,
            file: path.to_string(),
            offset,
            reason,
            bytes: Bytes::new(),
        });
    }

    /// A pending message's store line was compared with its record, but for the uidvalidity.
    fn pending_validity(&mut self, place: &Place<'_>, fold: &Fold, info: &RelPath, entry: &Entry) {
        let msg = &entry.msg;
        let found = place.redo.validities.get(&(msg.mailbox, msg.uid));
        if found.is_some_and(|found| *found != fold.uidvalidity(msg.mailbox)) {
            let reason = CorruptReason::Disagree("the store line and the mailbox's uidvalidity");
            self.damage(info, entry.info_at, reason);
        }
    }

    /// A large message: its file, or while its record is in the log perhaps still the part file.
    /// Gives the name that the index explains.
    fn large(&mut self, place: &Place<'_>, fold: &Fold, entry: &Entry) -> String {
        let msg = &entry.msg;
        let last = place.dir.large(msg.segment, msg.mailbox, msg.uid);
        let part = place.dir.segment_part(msg.segment);
        let path = if !place.has(&last) && entry.pending && place.has(&part) {
            &part
        } else {
            &last
        };
        let size = place.names.get(path.file_name()).copied();
        if entry.alive {
            let mut window = Window::new(self.tree, path);
            self.report.files += u64::from(size.is_some());
            let validity = fold.uidvalidity(msg.mailbox);
            let at = (Severity::Damage, path, size);
            self.message((place, fold), at, &mut window, entry, validity);
            let end = msg.offset + msg.segment_bytes();
            if msg.offset != 0 || size.is_some_and(|size| size > end) {
                let reason = CorruptReason::Disagree("the index and the length of a large file");
                self.damage(path, end, reason);
            }
        }
        last.file_name().to_owned()
    }

    /// `folders` says what the index says, unless a change of mailboxes is in the log only.
    fn folders(&mut self, place: &Place<'_>, fold: &Fold, name: Option<&[u8]>) {
        let path = place.dir.folders();
        let Some(name) = name.filter(|_| !place.redo.changes_mailboxes()) else {
            return;
        };
        if !place.has(&path) {
            self.damage(&path, 0, CorruptReason::Truncated);
            return;
        }
        let Some(bytes) = self.read(&path, 0, FOLDERS_BYTES_MAX + 1) else {
            return;
        };
        let folders = match Folders::decode(&bytes) {
            Ok(folders) => folders,
            Err(reason) => {
                self.damage(&path, 0, reason);
                return;
            }
        };
        let alive = fold.mailboxes.iter().filter(|(_, mailbox)| mailbox.alive);
        let same = folders.user == name
            && folders
                .mailboxes
                .iter()
                .map(|f| (&f.mailbox, f.uidvalidity, &f.name))
                .eq(alive.map(|(id, mailbox)| (id, mailbox.uidvalidity, &mailbox.name)));
        if !same {
            self.damage(&path, 0, CorruptReason::Disagree("folders and the index"));
        }
    }
}

impl UserId {
    /// The user of a directory name; only the form that the engine writes.
    pub(crate) fn named(partition: PartitionId, name: &str) -> Option<Self> {
        let (hash, ordinal) = name.split_once('-')?;
        let user = UserHash::new(u64::from_str_radix(hash, 16).ok()?);
        let id = Self {
            partition,
            user,
            ordinal: ordinal.parse().ok()?,
        };
        (id.dir().file_name() == name).then_some(id)
    }
}

/// Whether a file was never promised to anybody.
pub(crate) fn is_unborn(name: &str) -> bool {
    name.rsplit_once('.')
        .is_some_and(|(_, end)| end == "part" || end == "new")
}

/// The generation of an info file's name.
pub(crate) fn info_of(name: &str) -> Option<u32> {
    hex8(name.strip_prefix("info.")?)
}

/// The segment of a segment's name, shared or of one message.
pub(crate) fn segment_of(name: &str) -> Option<u32> {
    let mut parts = name.strip_suffix(".mbox")?.split('.').map(hex8);
    let segment = parts.next()??;
    parts.all(|part| part.is_some()).then_some(segment)
}

/// Exactly 8 lower-case digits.
pub(crate) fn hex8(text: &str) -> Option<u32> {
    let value = u32::from_str_radix(text, 16).ok()?;
    (format!("{value:08x}") == text).then_some(value)
}
