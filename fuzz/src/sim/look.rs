//! Looks at what readers are shown: pages, messages, snapshots, and a whole user against the model.

use std::collections::{BTreeMap, BTreeSet};

use ringpost_engine::format::info::{DELETED, SEEN};
use ringpost_engine::mbox::{View, restore};
use ringpost_engine::request::{
    Fetched, ListEntry, ListPage, MailboxChange, MailboxStatus, More, Refused, Subscribed,
};
use ringpost_netproto::id::Uid;

use super::asked::{Asked, Chosen, To};
use super::model::{FIRST, Folder, Known, Marks, Message, Verdict, ensure};
use super::oracle::Oracle;

/// A user as readers see it.
pub(super) type Seen = Vec<(MailboxStatus, Vec<ListEntry>)>;

/// Changes of flags under way that are told apart. Each may double the states that a message may be in, and
/// among so many hardly any would be wrong.
const STORES_MAX: usize = 8;

/// Where a message may have come from that nobody acknowledged.
#[derive(Clone, PartialEq, Eq, Default)]
struct Sources {
    /// It may have had one of these flags there.
    marks: BTreeSet<Marks>,
    /// It may have come from a message that is gone, whose flags are not known.
    gone: bool,
}

impl Sources {
    fn is_empty(&self) -> bool {
        self.marks.is_empty() && !self.gone
    }

    fn with(&mut self, marks: Marks) {
        self.marks.insert(marks);
    }

    fn extend(&mut self, other: Option<&Self>) {
        if let Some(other) = other {
            self.marks.extend(other.marks.iter().cloned());
            self.gone |= other.gone;
        }
    }
}

/// Flags of an entry by name.
fn marks_of(status: &MailboxStatus, entry: &ListEntry) -> Marks {
    let words = status.keywords.iter().enumerate();
    let set = words.filter(|(bit, _)| entry.keywords >> bit & 1 == 1);
    Marks {
        system: entry.flags,
        words: set.map(|(_, word)| word.to_lowercase()).collect(),
    }
}

impl Oracle {
    /// The mail that an entry shows, which has to be one that was sent, with its sizes.
    fn mail_of(&self, entry: &ListEntry) -> Result<usize, String> {
        let uid = entry.uid;
        let mail = self.by_guid.get(&entry.guid);
        let Some(mail) = mail.copied() else {
            return Err(format!("uid {uid} has a guid that nobody sent"));
        };
        let summary = &self.mail(mail).body.summary;
        ensure!(
            entry.rfc822_size == summary.rfc822_size
                && entry.received_size == summary.received_len
                && entry.date_s == summary.date_s
                && entry.guid == self.mail(mail).guid,
            "sizes or date of uid {uid}, mail {mail}: {entry:?} for {summary:?}"
        );
        Ok(mail)
    }

    /// Whether nobody can tell what flags the messages of a user have.
    fn is_vague(&self, who: usize) -> bool {
        let stores = |asked: &&&Asked| matches!(asked, Asked::Store(..));
        self.person(who).vague || self.under_way(who).iter().filter(stores).count() > STORES_MAX
    }

    /// What flags a message may have: those known, and those after any of the changes under way; those
    /// known alone if nobody can tell.
    fn marks_possible(&self, who: usize, mailbox: u32, uid: u32, known: &Marks) -> BTreeSet<Marks> {
        let uid = Uid::new(uid);
        let mut possible = BTreeSet::from([known.clone()]);
        if self.is_vague(who) {
            return possible;
        }
        // Twice: in any order of two.
        for asked in self.under_way(who).iter().chain(&self.under_way(who)) {
            if let Asked::Store(of, flags) = asked
                && of.mailbox == mailbox
                && of.uids.contains(uid)
            {
                let more: Vec<Marks> = possible.iter().map(|marks| marks.after(flags)).collect();
                possible.extend(more);
            }
        }
        possible
    }

    /// Where a message may have come from that nobody acknowledged: an append or a copy under way. A
    /// copy may have taken what another request under way put there and nobody has seen, so that this
    /// goes on until nothing is added.
    fn explained(&self, who: usize, mailbox: u32, mail: usize) -> Option<Sources> {
        let under_way = self.under_way(who);
        let vague = self.is_vague(who);
        let mut unseen: BTreeMap<u32, Sources> = BTreeMap::new();
        loop {
            let before = unseen.clone();
            for asked in &under_way {
                match asked {
                    Asked::Append { mail: sent, to } if *sent == mail => {
                        let to = to.iter().filter(|to| self.may_come(who, mail, to));
                        for to in to {
                            let marks = Marks::new(to.system, &to.words);
                            unseen.entry(to.mailbox).or_default().with(marks);
                        }
                    }
                    Asked::Copy { of, to, .. } => {
                        let mut sources = self.copied_from(who, of, mail);
                        sources.extend(unseen.get(&of.mailbox));
                        if !sources.is_empty() {
                            unseen.entry(*to).or_default().extend(Some(&sources));
                        }
                    }
                    Asked::Store(of, flags) if !vague => {
                        // Its uid is not known, so that it may be one of those.
                        if let Some(sources) = unseen.get_mut(&of.mailbox) {
                            let more = sources.marks.iter().map(|marks| marks.after(flags));
                            let more: Vec<Marks> = more.collect();
                            sources.marks.extend(more);
                        }
                    }
                    _ => {}
                }
            }
            if unseen == before {
                return unseen.remove(&mailbox);
            }
        }
    }

    /// Whether a delivery under way may put a message there: not if its id is known.
    fn may_come(&self, who: usize, mail: usize, to: &To) -> bool {
        let known = self.person(who).ids.get(&(to.mailbox, mail));
        let again = known.is_some_and(|known| known.at + self.window >= self.places);
        to.who == who && !(to.once && again)
    }

    /// Copies of a mail that are or were among the messages chosen, as far as they are known.
    fn copied_from(&self, who: usize, of: &Chosen, mail: usize) -> Sources {
        let person = self.person(who);
        let folder = person.folders.get(&of.mailbox);
        let folder = folder.or_else(|| person.buried.get(&of.mailbox));
        let mut sources = Sources::default();
        for (uid, was) in folder.into_iter().flat_map(|folder| &folder.past) {
            if *was != mail || !of.uids.contains(Uid::new(*uid)) {
                continue;
            }
            match folder.and_then(|folder| folder.messages.get(uid)) {
                Some(message) => {
                    let marks = self.marks_possible(who, of.mailbox, *uid, &message.marks);
                    sources.marks.extend(marks);
                }
                None => sources.gone = true,
            }
        }
        sources
    }

    /// Entries of a mailbox, those of the uids above `after` and up to `upto`. What is shown and not
    /// acknowledged is durable all the same, and part of the model from here on.
    fn entries(
        &mut self,
        who: usize,
        (status, entries): (&MailboxStatus, &[ListEntry]),
        (after, upto): (u32, u32),
    ) -> Verdict {
        let mailbox = status.mailbox.value();
        let name = format!("{} of {}", status.name, self.person(who).name);
        let mut last = after;
        let mut shown = BTreeSet::new();
        for entry in entries {
            let uid = entry.uid.value();
            ensure!(uid > last && uid <= upto, "{name}: uid {uid} after {last}");
            last = uid;
            shown.insert(uid);
            let mail = self
                .mail_of(entry)
                .map_err(|what| format!("{name}: {what}"))?;
            let marks = marks_of(status, entry);
            let folder = self.person(who).folders.get(&mailbox);
            let folder = folder.ok_or_else(|| format!("{name} is not known"))?;
            if let Some(known) = folder.messages.get(&uid) {
                ensure!(
                    known.mail == mail,
                    "{name}: uid {uid} is mail {mail}, not {}",
                    known.mail
                );
                ensure!(
                    entry.modseq.value() >= known.modseq,
                    "{name}: modseq of uid {uid} went back to {} from {}",
                    entry.modseq,
                    known.modseq
                );
                let possible = self.marks_possible(who, mailbox, uid, &known.marks);
                ensure!(
                    self.is_vague(who) || possible.contains(&marks),
                    "{name}: flags of uid {uid} are {marks:?}, not one of {possible:?}"
                );
                continue;
            }
            let came = self.came(who, mailbox, (mail, marks), entry);
            came.map_err(|what| format!("{name}: {what}"))?;
        }
        let folder = self.person(who).folders.get(&mailbox).expect("as above");
        for uid in folder.messages.keys() {
            ensure!(
                shown.contains(uid)
                    || *uid <= after
                    || *uid > upto
                    || self.may_be_gone(who, mailbox, *uid),
                "{name}: uid {uid}, mail {:?}, is lost",
                folder.messages.get(uid).map(|message| message.mail)
            );
        }
        Ok(())
    }

    /// A message that is shown and was not acknowledged.
    fn came(
        &mut self,
        who: usize,
        mailbox: u32,
        (mail, marks): (usize, Marks),
        entry: &ListEntry,
    ) -> Verdict {
        let uid = entry.uid.value();
        let folder = self.person(who).folders.get(&mailbox);
        let known = folder.is_some_and(|folder| folder.past.contains_key(&uid));
        ensure!(!known, "uid {uid} came back");
        let Some(sources) = self.explained(who, mailbox, mail) else {
            return Err(format!("nobody put mail {mail} there as uid {uid}"));
        };
        let changed = |marks| self.marks_possible(who, mailbox, uid, marks);
        let possible: BTreeSet<Marks> = sources.marks.iter().flat_map(changed).collect();
        ensure!(
            sources.gone || self.is_vague(who) || possible.contains(&marks),
            "flags of the new uid {uid} are {marks:?}, not one of {possible:?}"
        );
        // Changes that they have already may be answered later: those make no difference then.
        let message = Message {
            mail,
            marks,
            modseq: entry.modseq.value(),
        };
        let at = self.places;
        let once = self.is_once(who, mailbox, mail);
        let late = self.is_copied(who, mailbox) || self.is_doubted(who, mailbox, mail);
        let person = self.person_mut(who);
        let folder = person.folders.get_mut(&mailbox);
        let folder = folder.ok_or_else(|| "the mailbox is not known".to_owned())?;
        folder.put(uid, message, late)?;
        if once {
            person.ids.insert((mailbox, mail), Known { at });
        }
        Ok(())
    }

    /// Whether a delivery that is looked up is under way there.
    fn is_once(&self, who: usize, mailbox: u32, mail: usize) -> bool {
        self.under_way(who).iter().any(|asked| match asked {
            Asked::Append { mail: sent, to } => {
                let same = |to: &To| to.who == who && to.mailbox == mailbox && to.once;
                *sent == mail && to.iter().any(same)
            }
            _ => false,
        })
    }

    /// Whether messages may be copied to a mailbox.
    fn is_copied(&self, who: usize, mailbox: u32) -> bool {
        let copies = |asked: &&Asked| matches!(asked, Asked::Copy { to, .. } if *to == mailbox);
        self.under_way(who).iter().any(copies)
    }

    /// Whether a delivery that nobody will answer any more may have put a message there.
    fn is_doubted(&self, who: usize, mailbox: u32, mail: usize) -> bool {
        self.person(who).doubts.iter().any(|asked| match asked {
            Asked::Append { mail: sent, to } => {
                *sent == mail && to.iter().any(|to| to.who == who && to.mailbox == mailbox)
            }
            _ => false,
        })
    }

    /// A page that came while work went on.
    pub(super) fn listed(
        &mut self,
        who: usize,
        mailbox: u32,
        (after, entries_max): (u32, u32),
        page: &ListPage,
    ) -> Verdict {
        let status = &page.status;
        ensure!(status.mailbox.value() == mailbox, "another mailbox's page");
        let count = u32::try_from(page.entries.len()).unwrap_or(u32::MAX);
        ensure!(count <= entries_max, "{count} entries of {entries_max}");
        if !self.person(who).exists() {
            let brings = |asked: &&Asked| asked.changes(who);
            ensure!(
                self.under_way(who).iter().any(brings),
                "user {who} came from nowhere"
            );
            self.person_mut(who).born();
        }
        if !self.person(who).folders.contains_key(&mailbox) {
            // A mailbox that is made and not acknowledged; its name was asked for.
            return Ok(());
        }
        let last = page.entries.last().map_or(after, |entry| entry.uid.value());
        let upto = match page.more {
            More::Yes => last,
            More::No => u32::MAX,
        };
        self.entries(who, (status, &page.entries), (after, upto))?;
        self.numbers(who, status)
    }

    /// Numbers of a mailbox that never go back.
    fn numbers(&mut self, who: usize, status: &MailboxStatus) -> Verdict {
        let person = self.person_mut(who);
        let name = format!("{} of {}", status.name, person.name);
        let uidvalidity = status.uidvalidity.value();
        person.uidvalidity_max = person.uidvalidity_max.max(uidvalidity);
        let folder = person.folders.get_mut(&status.mailbox.value());
        let Some(folder) = folder else { return Ok(()) };
        if folder.uidvalidity == 0 {
            folder.uidvalidity = uidvalidity;
        }
        ensure!(
            folder.uidvalidity == uidvalidity && uidvalidity > 0,
            "{name}: UIDVALIDITY {} became {uidvalidity}",
            folder.uidvalidity
        );
        ensure!(
            status.uidnext >= folder.uidnext,
            "{name}: UIDNEXT {} went back to {}",
            folder.uidnext,
            status.uidnext
        );
        folder.uidnext = status.uidnext;
        ensure!(
            status.highest_modseq >= folder.highest_modseq,
            "{name}: HIGHESTMODSEQ {} went back to {}",
            folder.highest_modseq,
            status.highest_modseq
        );
        folder.highest_modseq = status.highest_modseq;
        Ok(())
    }

    /// Bytes of a message, or of a piece of it.
    pub(super) fn fetched(
        &self,
        mail: Option<usize>,
        (offset, bytes_max): (u64, u32),
        fetched: &Fetched,
    ) -> Verdict {
        let shown = self.mail_of(&fetched.entry)?;
        ensure!(
            mail.is_none_or(|mail| mail == shown),
            "mail {shown} was fetched for {mail:?}"
        );
        let mail = self.mail(shown);
        let summary = &mail.body.summary;
        let stored = &mail.body.stored;
        let from = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(stored.len());
        let len = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        let end = from.saturating_add(len).min(stored.len());
        let unchecked = self.excuses.rotten && fetched.stored.len() < stored.len();
        ensure!(
            (unchecked || stored.get(from..end) == Some(&*fetched.stored))
                && fetched.stored_len == summary.stored_len
                && fetched.stored_crc == summary.stored_crc,
            "bytes of mail {shown} from {offset} on are not those sent"
        );
        if fetched.stored.len() == stored.len() {
            let bytes = restore(&fetched.stored, fetched.format_flags, View::AsReceived);
            ensure!(
                bytes == mail.bytes,
                "mail {shown} does not come back as sent"
            );
            let crlf = restore(&fetched.stored, fetched.format_flags, View::Crlf);
            ensure!(
                u32::try_from(crlf.len()) == Ok(summary.rfc822_size),
                "mail {shown} has {} octets with CRLF, not {}",
                crlf.len(),
                summary.rfc822_size
            );
        }
        Ok(())
    }

    pub(super) fn snapshot_listed(
        &self,
        snapshot: usize,
        result: &Result<ListPage, Refused>,
    ) -> Verdict {
        let kept = self.snapshots.get(snapshot).expect("asked of one that is");
        let page = match result {
            Ok(page) => page,
            Err(Refused::NoSuchSnapshot) if !kept.is_open => return Ok(()),
            Err(refused) => return self.excused(refused),
        };
        let mut shown = BTreeMap::new();
        for entry in &page.entries {
            shown.insert(entry.uid.value(), self.mail_of(entry)?);
        }
        let known = kept.mails.iter();
        let same = known
            .into_iter()
            .all(|(uid, mail)| shown.get(uid) == Some(mail));
        ensure!(
            same && shown.len() == kept.count,
            "a snapshot of user {} shows {shown:?}, not {:?}",
            kept.who,
            kept.mails
        );
        Ok(())
    }

    pub(super) fn snapshot_fetched(
        &self,
        snapshot: usize,
        uid: u32,
        result: &Result<Fetched, Refused>,
    ) -> Verdict {
        let kept = self.snapshots.get(snapshot).expect("asked of one that is");
        match result {
            Ok(fetched) => {
                let mail = kept.mails.get(&uid).copied();
                self.fetched(mail, (0, u32::MAX), fetched)
            }
            Err(Refused::NoSuchSnapshot) if !kept.is_open => Ok(()),
            Err(refused) => self.excused(refused),
        }
    }

    /// A whole user against the model, when nothing is under way but what nobody will answer. Then
    /// the model is what was seen.
    pub(super) fn reconcile(&mut self, who: usize, seen: Option<&Seen>) -> Verdict {
        let name = self.person(who).name.clone();
        let Some(seen) = seen else {
            ensure!(!self.person(who).exists(), "{name} is lost");
            self.settled(who, &Vec::new());
            return Ok(());
        };
        if !self.person(who).exists() {
            ensure!(
                !self.person(who).doubts.is_empty(),
                "{name} came from nowhere"
            );
        }
        self.mailboxes(who, seen)?;
        for (status, entries) in seen {
            self.entries(who, (status, entries), (0, u32::MAX))?;
            self.numbers(who, status)?;
            sums(status, entries).map_err(|what| format!("{} of {name}: {what}", status.name))?;
        }
        self.moves_are_whole(who, seen)?;
        self.settled(who, seen);
        Ok(())
    }

    /// Names and ids of the mailboxes: as known, or as after the one change that is in doubt.
    fn mailboxes(&mut self, who: usize, seen: &Seen) -> Verdict {
        let person = self.person_mut(who);
        let names = seen.iter();
        let found: BTreeMap<String, u32> = names
            .map(|(status, _)| (status.name.clone(), status.mailbox.value()))
            .collect();
        ensure!(found.len() == seen.len(), "{}: a name twice", person.name);
        let first = || FIRST.iter().map(|(id, name)| ((*name).to_owned(), *id));
        let mut candidates = vec![person.names_after(None)];
        if !person.exists() {
            candidates = vec![first().collect()];
        }
        let doubts = person.doubts.iter();
        let changes: Vec<MailboxChange> = doubts
            .filter_map(|asked| match asked {
                Asked::Mailbox { change, .. } => Some(change.clone()),
                _ => None,
            })
            .collect();
        for change in &changes {
            candidates.push(person.names_after(Some(change)));
        }
        let fits = |wanted: &BTreeMap<String, u32>| {
            let ids = wanted.iter().zip(&found);
            wanted.len() == found.len()
                && ids
                    .into_iter()
                    .all(|((name, id), (other, is))| name == other && (id == is || *id == 0))
        };
        ensure!(
            candidates.iter().any(fits),
            "{} has the mailboxes {found:?}, not one of {candidates:?}",
            person.name
        );
        person.born();
        let lost = |id: &u32| !found.values().any(|is| is == id);
        let gone: Vec<u32> = person.folders.keys().copied().filter(lost).collect();
        for id in gone {
            person.bury(id);
        }
        for (status, _) in seen {
            let (id, uidvalidity) = (status.mailbox.value(), status.uidvalidity.value());
            if !person.folders.contains_key(&id) {
                ensure!(
                    uidvalidity > person.uidvalidity_max,
                    "{}: UIDVALIDITY {uidvalidity} is not above {}",
                    person.name,
                    person.uidvalidity_max
                );
            }
            let new = Folder::new(&status.name, uidvalidity);
            let folder = person.folders.entry(id).or_insert(new);
            folder.name.clone_from(&status.name);
            let is = status.subscribed == Subscribed::Yes;
            let in_doubt = changes.iter().any(|change| {
                matches!(change, MailboxChange::Subscribe { mailbox } | MailboxChange::Unsubscribe { mailbox }
                    if mailbox.value() == id)
            });
            ensure!(
                in_doubt || folder.subscribed.is_none_or(|known| known == is),
                "{}: {} lost its subscription, or got one",
                person.name,
                status.name
            );
            folder.subscribed = Some(is);
        }
        Ok(())
    }

    /// If one move is all that is in doubt, each message is in one place.
    fn moves_are_whole(&self, who: usize, seen: &Seen) -> Verdict {
        let person = self.person(who);
        let [
            Asked::Copy {
                of,
                to,
                moves: true,
                ..
            },
        ] = &*person.doubts
        else {
            return Ok(());
        };
        if of.mailbox == *to {
            return Ok(());
        }
        let there = |mailbox: u32, mail: usize| {
            let entries = seen
                .iter()
                .filter(|(status, _)| status.mailbox.value() == mailbox);
            let guid = self.mail(mail).guid;
            let entries = entries.flat_map(|(_, entries)| entries);
            entries.filter(|entry| entry.guid == guid).count()
        };
        let (Some(from), Some(target)) = (person.folders.get(&of.mailbox), person.folders.get(to))
        else {
            return Ok(());
        };
        for message in from.messages.values().map(|message| message.mail) {
            // Before the look both had what is acknowledged; the target has what was seen, too.
            let count = |folder: &Folder| {
                folder
                    .messages
                    .values()
                    .filter(|m| m.mail == message)
                    .count()
            };
            let source = there(of.mailbox, message);
            let came = count(target);
            ensure!(
                count(from) != 1 || came > 1 || source + came >= 1,
                "mail {message} of {} was lost on the move",
                person.name
            );
        }
        Ok(())
    }

    /// The model is what was seen, and nothing is in doubt.
    fn settled(&mut self, who: usize, seen: &Seen) {
        let person = self.person_mut(who);
        for (status, entries) in seen {
            let Some(folder) = person.folders.get_mut(&status.mailbox.value()) else {
                continue;
            };
            let shown: BTreeMap<u32, &ListEntry> = entries
                .iter()
                .map(|entry| (entry.uid.value(), entry))
                .collect();
            folder.messages.retain(|uid, _| shown.contains_key(uid));
            for (uid, message) in &mut folder.messages {
                if let Some(entry) = shown.get(uid) {
                    message.marks = marks_of(status, entry);
                    message.modseq = entry.modseq.value();
                }
            }
        }
        for asked in std::mem::take(&mut person.doubts) {
            if let Asked::Append { mail, to } = asked {
                // Stored, and gone by another doubt: its id stays.
                for to in to.iter().filter(|to| to.who == who) {
                    person.perhaps.insert((to.mailbox, mail));
                }
            }
        }
        person.vague = false;
    }
}

/// Counts and sums of a mailbox against its messages.
fn sums(status: &MailboxStatus, entries: &[ListEntry]) -> Verdict {
    let count = |is: &dyn Fn(&ListEntry) -> bool| {
        let count = entries.iter().filter(|entry| is(entry)).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    };
    let bytes: u64 = entries
        .iter()
        .map(|entry| u64::from(entry.rfc822_size))
        .sum();
    let highest = entries.iter().map(|entry| entry.modseq.value()).max();
    let last = entries.last().map_or(0, |entry| entry.uid.value());
    ensure!(
        status.messages_count == count(&|_| true)
            && status.unseen_count == count(&|entry| entry.flags & SEEN == 0)
            && status.deleted_count == count(&|entry| entry.flags & DELETED != 0)
            && status.bytes == bytes
            && status.highest_modseq >= highest.unwrap_or(0)
            && status.uidnext > last,
        "its numbers are not those of its messages: {status:?}"
    );
    Ok(())
}
