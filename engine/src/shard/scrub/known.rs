//! What the scrub knows to be damaged, and its file (FORMAT.md, scrub).

use std::collections::BTreeMap;
use std::sync::Arc;

use ringpost_netproto::id::{Guid, MailboxId, Uid};

use crate::error::{Corrupt, CorruptReason};
use crate::format::scrub::{DAMAGED_MAX, DamagedPlace, ScrubPlace};
use crate::request::{Damage, DamagedMessage};

/// A message of a user, or mailbox and uid 0 for its index.
type Key = (ScrubPlace, MailboxId, Uid);

/// The index of a user as a key.
const INDEX: (MailboxId, Uid) = (MailboxId::new(0), Uid::new(0));

/// Damaged places, kept from being served. At most [`DAMAGED_MAX`] have names.
#[derive(Debug, Default)]
pub(in crate::shard) struct Known {
    places: BTreeMap<Key, Damage>,
    /// Of the shard's own files; found anew with each pass.
    pub(super) own: Vec<Damage>,
}

fn key_of(place: ScrubPlace, damage: &Damage) -> Key {
    let (mailbox, uid) = damage
        .message
        .map_or(INDEX, |message| (message.mailbox, message.uid));
    (place, mailbox, uid)
}

impl Known {
    /// As a file tells it.
    pub(super) fn from_file(damaged: Vec<DamagedPlace>) -> Self {
        let places = damaged.into_iter().map(|found| {
            let key = (found.place, found.mailbox, found.uid);
            let message = (key.1, key.2) != INDEX;
            let damage = Damage {
                user: Arc::from(found.user),
                message: message.then_some(DamagedMessage {
                    mailbox: found.mailbox,
                    uid: found.uid,
                    guid: found.guid,
                }),
                corrupt: Arc::new(Corrupt {
                    file: found.file,
                    offset: found.offset,
                    reason: CorruptReason::Quarantined,
                }),
            };
            (key, damage)
        });
        Self {
            places: places.collect(),
            own: Vec::new(),
        }
    }

    /// For the file.
    pub(super) fn to_file(&self) -> Vec<DamagedPlace> {
        let place = |((place, mailbox, uid), damage): (&Key, &Damage)| DamagedPlace {
            place: *place,
            mailbox: *mailbox,
            uid: *uid,
            guid: damage
                .message
                .map_or(Guid::new([0; 16]), |message| message.guid),
            offset: damage.corrupt.offset,
            file: damage.corrupt.file.clone(),
            user: damage.user.to_vec(),
        };
        self.places.iter().map(place).collect()
    }

    /// Users of whom something is known, each once.
    pub(super) fn users(&self) -> Vec<ScrubPlace> {
        let mut users: Vec<_> = self.places.keys().map(|(place, ..)| *place).collect();
        users.dedup();
        users
    }

    /// What is damaged of a user now. Gives what was not known before.
    pub(super) fn replace(&mut self, place: ScrubPlace, found: Vec<Damage>) -> Vec<Damage> {
        // With a damaged index nobody knows which messages are whole.
        let blind = found.iter().any(|damage| damage.message.is_none());
        let before: Vec<Key> = self.of(place).map(|(key, _)| *key).collect();
        let old: BTreeMap<Key, Damage> = before
            .into_iter()
            .filter_map(|key| Some((key, self.places.remove(&key)?)))
            .collect();
        if blind {
            self.places.extend(old.clone());
        }
        let mut news = Vec::new();
        for damage in found {
            let key = key_of(place, &damage);
            if !old.contains_key(&key) {
                news.push(damage.clone());
            }
            if self.places.len() < DAMAGED_MAX || self.places.contains_key(&key) {
                self.places.insert(key, damage);
            }
        }
        news
    }

    fn of(&self, place: ScrubPlace) -> impl Iterator<Item = (&Key, &Damage)> {
        let first = (place, MailboxId::new(0), Uid::new(0));
        let known = self.places.range(first..);
        known.take_while(move |(key, _)| key.0 == place)
    }

    /// How many damaged places of a user are known.
    pub(super) fn count_of(&self, place: ScrubPlace) -> u64 {
        u64::try_from(self.of(place).count()).unwrap_or(u64::MAX)
    }

    /// How many in all.
    pub(super) fn count(&self) -> u64 {
        u64::try_from(self.places.len() + self.own.len()).unwrap_or(u64::MAX)
    }

    /// Whether a message was found damaged, and where.
    pub(super) fn message(
        &self,
        place: ScrubPlace,
        mailbox: MailboxId,
        uid: Uid,
    ) -> Option<&Arc<Corrupt>> {
        if self.places.is_empty() {
            return None;
        }
        let found = self.places.get(&(place, mailbox, uid))?;
        Some(&found.corrupt)
    }

    /// All of it, by user.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Damage> {
        self.own.iter().chain(self.places.values())
    }
}

#[cfg(test)]
mod tests {
    use ringpost_netproto::id::{PartitionId, UserHash};

    use super::*;

    fn place(hash: u64) -> ScrubPlace {
        ScrubPlace {
            partition: PartitionId::new(0),
            hash: UserHash::new(hash),
            ordinal: 0,
        }
    }

    fn damage(uid: Option<u32>) -> Damage {
        Damage {
            user: Arc::from(&b"bob"[..]),
            message: uid.map(|uid| DamagedMessage {
                mailbox: MailboxId::INBOX,
                uid: Uid::new(uid),
                guid: Guid::new([1; 16]),
            }),
            corrupt: Arc::new(Corrupt {
                file: "f".to_owned(),
                offset: 1,
                reason: CorruptReason::Checksum,
            }),
        }
    }

    #[test]
    fn only_what_is_new_is_told_and_what_is_whole_again_is_forgotten() {
        let mut known = Known::default();
        let two = vec![damage(Some(1)), damage(Some(2))];
        assert_eq!(known.replace(place(1), two.clone()), two);
        known.replace(place(2), vec![damage(Some(1))]);
        assert!(known.replace(place(1), vec![damage(Some(2))]).is_empty());
        assert_eq!((known.count_of(place(1)), known.count()), (1, 2));
        assert!(
            known
                .message(place(1), MailboxId::INBOX, Uid::new(1))
                .is_none()
        );
        known.replace(place(1), Vec::new());
        assert_eq!(known.users(), [place(2)]);
    }

    #[test]
    fn a_damaged_index_keeps_what_was_known() {
        let mut known = Known::default();
        known.replace(place(1), vec![damage(Some(1))]);
        assert_eq!(known.replace(place(1), vec![damage(None)]).len(), 1);
        assert_eq!(known.count(), 2);
    }

    #[test]
    fn a_restart_knows_the_same_places() {
        let mut known = Known::default();
        known.replace(place(1), vec![damage(None), damage(Some(7))]);
        let again = Known::from_file(known.to_file());
        let places = |known: &Known| known.iter().map(|found| found.message).collect::<Vec<_>>();
        assert_eq!(places(&again), places(&known));
        let found = again.message(place(1), MailboxId::INBOX, Uid::new(7));
        assert_eq!(found.unwrap().reason, CorruptReason::Quarantined);
    }
}
