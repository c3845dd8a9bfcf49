//! What must hold of every answer (storage.md 12.2). The model changes with acknowledgements and with
//! what readers were shown, in the order in which the node gave them; whatever it cannot know is a
//! doubt, and the next look at the user (`look.rs`) has to explain it.

use std::collections::{BTreeMap, BTreeSet};

use ringpost_engine::format::info::DELETED;
use ringpost_engine::request::{
    Changed, Copied, Event, MailboxChange, MailboxChanged, Outcome, Refused, Which,
};
use ringpost_netproto::id::{Guid, Uid};

use super::asked::{Asked, Chosen, NewFlags, To};
use super::mail::Mail;
use super::model::{Folder, Known, Marks, Message, Person, Verdict, ensure};

/// Which refusals the world excuses.
#[derive(Clone, Default, Debug)]
pub(super) struct Excuses {
    /// The disk gave errors, or what is on it was hurt: damage may be named.
    pub(super) hurt: bool,
    /// The disk is or was full.
    pub(super) full: bool,
    /// Bytes on the medium may be wrong: a piece of a message is not held against a checksum
    /// (storage.md 8.2), a whole one is.
    pub(super) rotten: bool,
    /// Directories of users whose index could not be read: `folders`, which is made from it, may lag
    /// until a repair.
    pub(super) unread: BTreeSet<String>,
    /// Files whose bytes on the medium were hurt: damage that names one, or its directory, may be.
    pub(super) wounds: Vec<String>,
}

impl Excuses {
    /// Whether damage of this file was done on purpose.
    pub(super) fn is_wounded(&self, file: &str) -> bool {
        let folder = |path: &str| path.rsplit_once('/').map(|(folder, _)| folder.to_owned());
        let user = |path: &str| path.starts_with("p/").then(|| folder(path)).flatten();
        // Recipients of a large message share its bytes, under names of their own; so does the archive.
        let large = |path: &str| path.matches('.').count() >= 3 || path.contains(".part");
        self.wounds.iter().any(|wound| {
            wound == file
                || user(wound).is_some_and(|dir| file.starts_with(&dir))
                || (large(wound) && large(file))
        })
    }
}

/// A request by shard and ticket.
pub(super) type Place = (usize, u64);

/// What a snapshot showed when it was opened.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) shard: usize,
    pub(super) id: ringpost_engine::request::SnapshotId,
    pub(super) who: usize,
    /// Mail by uid.
    pub(super) mails: BTreeMap<u32, usize>,
    /// Messages, those that were not acknowledged yet included.
    pub(super) count: usize,
    pub(super) is_open: bool,
}

/// The model and what is asked of the node.
pub(super) struct Oracle {
    pub(super) people: Vec<Person>,
    pub(super) mails: Vec<Mail>,
    pub(super) by_guid: BTreeMap<Guid, usize>,
    pub(super) open: BTreeMap<Place, Asked>,
    pub(super) snapshots: Vec<Kept>,
    pub(super) excuses: Excuses,
    /// Messages acknowledged as stored so far, and copies that were asked for.
    pub(super) stored: u64,
    /// Places that were given out in the window of duplicates, at most: of deliveries, and of copies,
    /// which a restart finds in the log and takes for such.
    pub(super) places: u64,
    /// Deliveries that the window of duplicates certainly holds.
    pub(super) window: u64,
}

impl Oracle {
    pub(super) fn new(users: usize, window: u64) -> Self {
        Self {
            people: (0..users).map(Person::new).collect(),
            mails: Vec::new(),
            by_guid: BTreeMap::new(),
            open: BTreeMap::new(),
            snapshots: Vec::new(),
            excuses: Excuses::default(),
            stored: 0,
            places: 0,
            window,
        }
    }

    pub(super) fn person(&self, who: usize) -> &Person {
        self.people.get(who).expect("drawn below their count")
    }

    pub(super) fn person_mut(&mut self, who: usize) -> &mut Person {
        self.people.get_mut(who).expect("drawn below their count")
    }

    pub(super) fn mail(&self, mail: usize) -> &Mail {
        self.mails.get(mail).expect("only what was drawn is sent")
    }

    /// Requests that may change what this user has and are not answered, those of earlier lives too.
    pub(super) fn under_way(&self, who: usize) -> Vec<&Asked> {
        let doubts = self.person(who).doubts.iter();
        let open = self.open.values().filter(|asked| asked.changes(who));
        doubts.chain(open).collect()
    }

    /// The recent deliveries of so many logs come into one order, perhaps: each is at most so many
    /// times as far from its end as it was from that of its own.
    pub(super) fn interleave(&mut self, logs: u64) {
        for known in self
            .people
            .iter_mut()
            .flat_map(|person| person.ids.values_mut())
        {
            let back = (self.places - known.at + 1).saturating_mul(logs);
            known.at = self.places.saturating_sub(back);
        }
    }

    /// A request that nobody will answer any more.
    pub(super) fn unanswered(&mut self, asked: &Asked) {
        if let Asked::Copy { of, .. } = asked {
            // However much of it is in the log.
            let folder = self.person(of.who).folders.get(&of.mailbox);
            let count = folder.map_or(0, |folder| folder.messages.len());
            self.places += u64::try_from(count).unwrap_or(0);
        }
        for (who, person) in self.people.iter_mut().enumerate() {
            if asked.changes(who) {
                person.doubts.push(asked.clone());
            }
        }
    }

    /// Takes an answer in.
    pub(super) fn answered(&mut self, asked: &Asked, event: &Event) -> Verdict {
        match (asked, event) {
            (Asked::Append { mail, to }, Event::Appended { outcomes, .. }) => {
                ensure!(
                    outcomes.len() == to.len(),
                    "{} outcomes for {} recipients",
                    outcomes.len(),
                    to.len()
                );
                for (to, outcome) in to.iter().zip(outcomes) {
                    self.appended(*mail, to, outcome)?;
                }
                Ok(())
            }
            (Asked::Store(of, flags), Event::FlagsStored { result, .. }) => match result {
                Ok(changed) => self.flags_stored(of, flags, changed),
                Err(refused) => self.change_refused(asked, of.who, Some(of.mailbox), refused),
            },
            (Asked::Expunge(of, which), Event::Expunged { result, .. }) => match result {
                Ok(changed) => self.expunged(of, *which, changed),
                Err(refused) => self.change_refused(asked, of.who, Some(of.mailbox), refused),
            },
            (Asked::Copy { of, to, moves, .. }, Event::Copied { result, .. }) => match result {
                Ok(copied) => self.copied(of, *to, *moves, copied),
                Err(Refused::NoSuchMailbox) if self.may_lack(of.who, *to) => Ok(()),
                Err(refused) => self.change_refused(asked, of.who, Some(of.mailbox), refused),
            },
            (Asked::Mailbox { who, change }, Event::MailboxChanged { result, .. }) => {
                match result {
                    Ok(changed) => self.mailbox_changed(*who, change, changed),
                    Err(refused) => self.mailbox_refused(asked, *who, change, refused),
                }
            }
            _ => self.read(asked, event),
        }
    }

    #[expect(clippy::too_many_lines, reason = "one arm a kind of question")]
    /// What readers were shown, and the rest.
    fn read(&mut self, asked: &Asked, event: &Event) -> Verdict {
        match (asked, event) {
            (Asked::Mailboxes { who }, Event::Mailboxes { result, .. }) => {
                self.readable(*who, None, None, result.as_ref().err())
            }
            (
                Asked::List {
                    who,
                    mailbox,
                    after,
                    entries_max,
                },
                Event::Listed { result, .. },
            ) => match result {
                Ok(page) => self.listed(*who, *mailbox, (*after, *entries_max), page),
                Err(refused) => self.readable(*who, Some(*mailbox), None, Some(refused)),
            },
            (
                Asked::Fetch {
                    who,
                    mailbox,
                    uid,
                    offset,
                    bytes_max,
                },
                Event::Fetched { result, .. },
            ) => match result {
                Ok(fetched) => {
                    let folder = self.person(*who).folders.get(mailbox);
                    let mail = folder.and_then(|folder| folder.past.get(uid)).copied();
                    self.fetched(mail, (*offset, *bytes_max), fetched)
                }
                Err(refused) => self.readable(*who, Some(*mailbox), Some(*uid), Some(refused)),
            },
            (Asked::Changes { who, mailbox }, Event::Changes { result, .. }) => {
                self.readable(*who, Some(*mailbox), None, result.as_ref().err())
            }
            (
                Asked::Watch {
                    who,
                    mailbox,
                    since,
                },
                Event::Woken { result, .. },
            ) => match result {
                Ok(modseq) => {
                    ensure!(modseq.value() > *since, "woken at {modseq} for {since}");
                    Ok(())
                }
                Err(Refused::Cancelled) => Ok(()),
                Err(refused) => self.readable(*who, *mailbox, None, Some(refused)),
            },
            (Asked::SnapshotOpen { who, mailbox }, Event::SnapshotOpened { result, .. }) => {
                self.readable(*who, Some(*mailbox), None, result.as_ref().err())
            }
            (Asked::SnapshotList { snapshot }, Event::Listed { result, .. }) => {
                self.snapshot_listed(*snapshot, result)
            }
            (Asked::SnapshotFetch { snapshot, uid }, Event::Fetched { result, .. }) => {
                self.snapshot_fetched(*snapshot, *uid, result)
            }
            (Asked::Compact, Event::Compacted { result, .. }) => match result {
                Ok(_) | Err(Refused::NoSuchUser) => Ok(()),
                Err(refused) => self.excused(refused),
            },
            (Asked::Look, Event::Listed { result, .. }) => match result {
                Ok(_) => Ok(()),
                Err(refused) => self.excused(refused),
            },
            (Asked::Checkpoint, Event::Checkpointed { result, .. })
            | (Asked::Drain, Event::Drained { result, .. }) => match result {
                Ok(()) => Ok(()),
                Err(refused) => self.excused(refused),
            },
            (
                Asked::Backup,
                Event::BackupBegun {
                    result: Err(refused),
                    ..
                }
                | Event::BackupEnded {
                    result: Err(refused),
                    ..
                },
            ) if *refused != Refused::NoSuchBackup => self.excused(refused),
            // Whether a backup may be unknown, who asked looks at.
            (Asked::Backup, Event::BackupBegun { .. } | Event::BackupEnded { .. })
            | (
                Asked::Stage { .. },
                Event::StageBegun { .. }
                | Event::StageWritten { .. }
                | Event::StageExpanded { .. }
                | Event::Staged { .. },
            ) => Ok(()),
            (asked, event) => Err(format!("{asked:?} was answered by {event:?}")),
        }
    }

    /// Whether a refusal that has nothing to do with what is there may be.
    pub(super) fn excused(&self, refused: &Refused) -> Verdict {
        let excused = match refused {
            Refused::Busy(_) | Refused::Stopped => true,
            Refused::DiskFull => self.excuses.full || self.excuses.hurt,
            Refused::Repairing(corrupt) | Refused::Damaged(corrupt) => {
                self.excuses.hurt || self.excuses.is_wounded(&corrupt.file)
            }
            _ => false,
        };
        ensure!(excused, "refused without a reason: {refused:?}");
        Ok(())
    }

    /// Whether a mailbox may be missing.
    pub(super) fn may_lack(&self, who: usize, mailbox: u32) -> bool {
        let leaves = |asked: &&Asked| {
            matches!(asked, Asked::Mailbox { change: MailboxChange::Delete { mailbox: gone }, .. }
                if gone.value() == mailbox)
        };
        !self.person(who).folders.contains_key(&mailbox) || self.under_way(who).iter().any(leaves)
    }

    /// Whether a message may be missing.
    pub(super) fn may_be_gone(&self, who: usize, mailbox: u32, uid: u32) -> bool {
        let uid = Uid::new(uid);
        let takes = |asked: &&Asked| match asked {
            Asked::Expunge(of, _) => of.mailbox == mailbox && of.uids.contains(uid),
            Asked::Copy { of, moves, .. } => {
                *moves && of.mailbox == mailbox && of.uids.contains(uid)
            }
            Asked::Mailbox {
                change: MailboxChange::Delete { mailbox: gone },
                ..
            } => gone.value() == mailbox,
            _ => false,
        };
        self.under_way(who).iter().any(takes)
    }

    #[expect(clippy::too_many_lines, reason = "one arm a kind of outcome")]
    /// An append's end for one recipient.
    fn appended(&mut self, mail: usize, to: &To, outcome: &Outcome) -> Verdict {
        let key = (to.mailbox, mail);
        match outcome {
            Outcome::Stored { uid, modseq, .. } => {
                let (places, window) = (self.places, self.window);
                let person = self.person_mut(to.who);
                let known = person.ids.get(&key).copied();
                ensure!(
                    !to.once || known.is_none_or(|known| known.at + window < places),
                    "mail {mail} of {} was stored twice: as {known:?} and as {uid}",
                    person.name
                );
                person.born();
                let name = person.name.clone();
                let known = Known { at: places };
                let Some(folder) = person.folders.get_mut(&to.mailbox) else {
                    return Err(format!(
                        "mail {mail} of {name} was stored in mailbox {} that is gone",
                        to.mailbox
                    ));
                };
                let message = Message {
                    mail,
                    marks: Marks::new(to.system, &to.words),
                    modseq: modseq.value(),
                };
                folder.put(uid.value(), message, false)?;
                if to.once {
                    person.ids.insert(key, known);
                }
                self.stored += 1;
                self.places += 1;
                self.within_quota(to, mail)
            }
            Outcome::Duplicate { uid, .. } => {
                let person = self.person(to.who);
                let folder = person.folders.get(&to.mailbox);
                let was = folder.and_then(|folder| folder.past.get(&uid.value()));
                ensure!(
                    to.once && (was == Some(&mail) || person.perhaps.contains(&key)),
                    "mail {mail} of {} is called a duplicate of uid {uid}, which was {was:?}",
                    person.name
                );
                Ok(())
            }
            Outcome::Refused(Refused::Stopped) => {
                let asked = Asked::Append {
                    mail,
                    to: vec![to.clone()],
                };
                self.person_mut(to.who).doubts.push(asked);
                Ok(())
            }
            Outcome::Refused(Refused::NoSuchMailbox) => {
                ensure!(
                    self.may_lack(to.who, to.mailbox),
                    "mailbox {} of user {} is not found",
                    to.mailbox,
                    to.who
                );
                Ok(())
            }
            Outcome::Refused(Refused::OverQuota { bytes, messages }) => {
                let size = u64::from(self.mail(mail).body.summary.rfc822_size);
                let over = to.quota.bytes_max.is_some_and(|max| bytes + size > max)
                    || to.quota.messages_max.is_some_and(|max| messages + 1 > max);
                ensure!(
                    over,
                    "over quota at {bytes} bytes in {messages} messages, with {:?}",
                    to.quota
                );
                self.counted(to, *bytes, *messages)
            }
            Outcome::Refused(refused) => self.excused(refused),
        }
    }

    /// What a stored message leaves of a quota.
    fn within_quota(&self, to: &To, mail: usize) -> Verdict {
        let (bytes, messages) = self.usage(to.who);
        let fits = to.quota.bytes_max.is_none_or(|max| bytes <= max)
            && to.quota.messages_max.is_none_or(|max| messages <= max);
        // Seen and not acknowledged, or gone and not acknowledged: the model is a step off.
        let quiet = self.under_way(to.who).is_empty();
        ensure!(
            fits || !quiet,
            "mail {mail} was stored over {:?}: {bytes} bytes in {messages} messages",
            to.quota
        );
        Ok(())
    }

    /// What the node counts for a user against what the model has, when nothing else was under way
    /// from the question to the answer.
    fn counted(&self, to: &To, bytes: u64, messages: u64) -> Verdict {
        let person = self.person(to.who);
        if to.alone == Some(person.changes) && person.doubts.is_empty() {
            let (known_bytes, known) = self.usage(to.who);
            ensure!(
                (bytes, messages) == (known_bytes, known),
                "{} is said to keep {bytes} bytes in {messages} messages, not {known_bytes} in {known}",
                person.name
            );
        }
        Ok(())
    }

    /// A request was taken.
    pub(super) fn asks(&mut self, place: Place, mut asked: Asked) {
        for who in 0..self.people.len() {
            if !asked.changes(who) {
                continue;
            }
            let alone = self.under_way(who).is_empty();
            let person = self.person_mut(who);
            person.changes += 1;
            let alone = alone.then_some(person.changes);
            if let Asked::Append { to, .. } = &mut asked {
                let mine = to.iter_mut().filter(|to| to.who == who);
                mine.for_each(|to| to.alone = alone);
            }
        }
        if let Asked::Copy { of, .. } = &asked {
            let count = self.folder_mut(of.who, of.mailbox).map_or(0, |folder| {
                let uids = folder.messages.keys();
                uids.filter(|uid| of.uids.contains(Uid::new(**uid))).count()
            });
            self.places += u64::try_from(count).unwrap_or(0);
        }
        self.open.insert(place, asked);
    }

    fn usage(&self, who: usize) -> (u64, u64) {
        let size = |mail: usize| u64::from(self.mail(mail).body.summary.rfc822_size);
        self.person(who).usage(size)
    }

    fn folder_mut(&mut self, who: usize, mailbox: u32) -> Result<&mut Folder, String> {
        let person = self.person_mut(who);
        let name = person.name.clone();
        person
            .folders
            .get_mut(&mailbox)
            .ok_or_else(|| format!("mailbox {mailbox} of {name} was changed and is gone"))
    }

    fn flags_stored(&mut self, of: &Chosen, flags: &NewFlags, changed: &Changed) -> Verdict {
        let vague = self.person(of.who).vague;
        let folder = self.folder_mut(of.who, of.mailbox)?;
        for (uid, message) in &mut folder.messages {
            let id = Uid::new(*uid);
            let wanted = message.marks.after(flags);
            if changed.uids.contains(id) {
                ensure!(
                    of.uids.contains(id),
                    "flags of uid {uid} were not asked for"
                );
                message.marks = wanted;
            } else if changed.modified.contains(id) {
                ensure!(
                    flags.unchanged_since.is_some(),
                    "uid {uid} is called modified"
                );
            } else {
                let skipped = of.uids.contains(id) && *uid < of.floor;
                ensure!(
                    vague || !skipped || message.marks == wanted,
                    "flags of uid {uid} were not changed: {:?}, asked {flags:?}",
                    message.marks
                );
            }
        }
        folder.highest_modseq = folder.highest_modseq.max(changed.modseq.value());
        Ok(())
    }

    fn expunged(&mut self, of: &Chosen, which: Which, changed: &Changed) -> Verdict {
        let vague = self.person(of.who).vague;
        let folder = self.folder_mut(of.who, of.mailbox)?;
        for uid in changed.uids.iter() {
            ensure!(of.uids.contains(uid), "uid {uid} was expunged unasked");
            let gone = folder.messages.remove(&uid.value());
            let Some(gone) = gone else {
                return Err(format!("uid {uid} was expunged and not there"));
            };
            ensure!(
                vague || which == Which::All || gone.marks.system & DELETED != 0,
                "uid {uid} was expunged without \\Deleted"
            );
        }
        for (uid, message) in &folder.messages {
            let id = Uid::new(*uid);
            let wanted = which == Which::All || message.marks.system & DELETED != 0;
            ensure!(
                vague || !(wanted && of.uids.contains(id) && *uid < of.floor),
                "uid {uid} was left by an expunge"
            );
        }
        folder.highest_modseq = folder.highest_modseq.max(changed.modseq.value());
        Ok(())
    }

    fn copied(&mut self, of: &Chosen, to: u32, moves: bool, copied: &Copied) -> Verdict {
        // Asked for when the mailbox was smaller, it may have copied more than was counted then.
        self.places += u64::try_from(copied.pairs.len()).unwrap_or(0);
        let mut taken = Vec::new();
        let folder = self.folder_mut(of.who, of.mailbox)?;
        for (uid, message) in &folder.messages {
            let id = Uid::new(*uid);
            let pair = copied.pairs.iter().find(|(from, _)| *from == id);
            let failed = copied.failed.iter().any(|(from, _)| *from == id);
            if let Some((_, new)) = pair {
                ensure!(of.uids.contains(id), "uid {uid} was copied unasked");
                taken.push((*uid, new.value(), message.clone()));
            } else {
                ensure!(
                    failed || !(of.uids.contains(id) && *uid < of.floor),
                    "uid {uid} was not copied"
                );
            }
        }
        ensure!(
            taken.len() == copied.pairs.len(),
            "{:?} were copied, of {taken:?}",
            copied.pairs
        );
        for (uid, _, _) in &taken {
            if moves {
                folder.messages.remove(uid);
            }
        }
        let target = self.folder_mut(of.who, to)?;
        for (_, uid, mut message) in taken {
            message.modseq = 0;
            target.put(uid, message, true)?;
        }
        for (_, refused) in &copied.failed {
            if !matches!(refused, Refused::OverQuota { .. }) {
                self.excused(refused)?;
            }
        }
        Ok(())
    }

    fn mailbox_changed(
        &mut self,
        who: usize,
        change: &MailboxChange,
        changed: &MailboxChanged,
    ) -> Verdict {
        let person = self.person_mut(who);
        person.born();
        let id = changed.mailbox.value();
        match change {
            MailboxChange::Create { name, .. } => {
                let uidvalidity = changed.uidvalidity.value();
                ensure!(
                    uidvalidity > person.uidvalidity_max && !person.folders.contains_key(&id),
                    "{name} of {} got id {id} and uidvalidity {uidvalidity}, after {}",
                    person.name,
                    person.uidvalidity_max
                );
                person.uidvalidity_max = uidvalidity;
                person.folders.insert(id, Folder::new(name, uidvalidity));
            }
            MailboxChange::Rename { from, to } => {
                for folder in person.folders.values_mut() {
                    folder.name = super::model::renamed(&folder.name, from, to);
                }
            }
            MailboxChange::Delete { mailbox } | MailboxChange::DeleteEmpty { mailbox } => {
                ensure!(
                    person.bury(mailbox.value()),
                    "mailbox {mailbox} was removed twice"
                );
            }
            MailboxChange::Subscribe { mailbox } | MailboxChange::Unsubscribe { mailbox } => {
                let yes = matches!(change, MailboxChange::Subscribe { .. });
                self.folder_mut(who, mailbox.value())?.subscribed = Some(yes);
            }
        }
        Ok(())
    }

    fn mailbox_refused(
        &mut self,
        asked: &Asked,
        who: usize,
        change: &MailboxChange,
        refused: &Refused,
    ) -> Verdict {
        let person = self.person(who);
        let names = person.names_after(None);
        let fits = match (change, refused) {
            (MailboxChange::Create { name, .. }, Refused::Exists) => {
                names.contains_key(name) || FIRST_NAMES.contains(&name.as_str())
            }
            (MailboxChange::Rename { from, to }, Refused::Exists) => {
                from == to || names.keys().any(|name| name == to || name.starts_with(to))
            }
            (MailboxChange::Rename { from, .. }, Refused::NoSuchMailbox) => {
                !names.contains_key(from)
            }
            (MailboxChange::Rename { .. }, Refused::BadName(_)) => true,
            (
                MailboxChange::Delete { mailbox }
                | MailboxChange::Subscribe { mailbox }
                | MailboxChange::Unsubscribe { mailbox },
                Refused::NoSuchMailbox,
            ) => self.may_lack(who, mailbox.value()),
            (MailboxChange::Delete { mailbox }, Refused::BadName(_)) => mailbox.value() == 1,
            _ => false,
        };
        if fits || (*refused == Refused::NoSuchUser && !person.exists()) {
            return Ok(());
        }
        self.change_refused(asked, who, None, refused)
    }

    /// A change that was refused: for its subject's absence, for quota, or by what the world excuses;
    /// then parts of it may have been done.
    fn change_refused(
        &mut self,
        asked: &Asked,
        who: usize,
        mailbox: Option<u32>,
        refused: &Refused,
    ) -> Verdict {
        match refused {
            Refused::NoSuchUser => {
                ensure!(!self.person(who).exists(), "user {who} is not found");
            }
            Refused::NoSuchMailbox => {
                let lacks = mailbox.is_some_and(|mailbox| self.may_lack(who, mailbox));
                ensure!(lacks, "mailbox {mailbox:?} of user {who} is not found");
            }
            Refused::OverQuota { .. } => {
                let limited = matches!(asked, Asked::Copy { quota, .. }
                    if quota.bytes_max.is_some() || quota.messages_max.is_some());
                ensure!(limited, "{asked:?} is over quota");
            }
            refused => {
                self.excused(refused)?;
                let person = self.person_mut(who);
                person.doubts.push(asked.clone());
                person.vague = true;
            }
        }
        Ok(())
    }

    /// A read that was refused, or not.
    fn readable(
        &self,
        who: usize,
        mailbox: Option<u32>,
        uid: Option<u32>,
        refused: Option<&Refused>,
    ) -> Verdict {
        let person = self.person(who);
        match (refused, mailbox, uid) {
            (None, ..) => Ok(()),
            (Some(Refused::NoSuchUser), ..) => {
                ensure!(!person.exists(), "{} is not found", person.name);
                Ok(())
            }
            (Some(Refused::NoSuchMailbox), Some(mailbox), _) => {
                ensure!(
                    self.may_lack(who, mailbox),
                    "mailbox {mailbox} of {} is not found",
                    person.name
                );
                Ok(())
            }
            (Some(Refused::NoSuchMessage), Some(mailbox), Some(uid)) => {
                let folder = person.folders.get(&mailbox);
                let there = folder.is_some_and(|folder| folder.messages.contains_key(&uid));
                ensure!(
                    !there || self.may_be_gone(who, mailbox, uid),
                    "uid {uid} of {} is not found",
                    person.name
                );
                Ok(())
            }
            (Some(refused), ..) => self.excused(refused),
        }
    }
}

const FIRST_NAMES: [&str; 2] = ["INBOX", "Sent"];
