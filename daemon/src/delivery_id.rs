//! The identity of a delivery: the same bytes from the same sender for the same mailbox have the
//! same id on every node, so that a retry is recognised wherever it arrives (mail.md 5).

use std::hash::Hasher as _;

use ringpost_netproto::id::{Guid, MailboxId};
use ringpost_netproto::placement::{HashKey, UserKey};
use siphasher::sip128::{Hasher128 as _, SipHasher24};

/// The key as the engine's content hash takes it.
pub fn key_bytes(key: &HashKey) -> [u8; 16] {
    key.bytes()
}

/// SipHash-2-4-128 under the cluster's key. Fields of variable length are preceded by their length,
/// so that no two lists of fields are the same bytes.
///
/// It stands in the index and in the window of deliveries, and every node makes it for itself: another
/// hash, here or of the content, would store again what an older version has stored already.
pub fn delivery_id(
    key: &HashKey,
    user: &UserKey,
    mailbox: MailboxId,
    sender: &[u8],
    content_hash: &[u8; 16],
) -> Guid {
    assert_ne!(
        content_hash, &[0; 16],
        "the content of a delivery is hashed"
    );
    let mut hasher = SipHasher24::new_with_key(&key.bytes());
    let mut field = |bytes: &[u8]| {
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        hasher.write(&len.to_le_bytes());
        hasher.write(bytes);
    };
    field(user.name());
    field(&mailbox.value().to_le_bytes());
    field(sender);
    field(content_hash);
    Guid::new(hasher.finish128().as_bytes())
}

/// Ids for deliveries that are not filtered: `SipHash` of a counter under a key of this process.
#[derive(Debug)]
pub struct RandomIds {
    key: [u8; 16],
    next: u64,
}

impl RandomIds {
    /// With 16 bytes of entropy.
    pub const fn new(key: [u8; 16]) -> Self {
        Self { key, next: 0 }
    }

    /// An id that was not given before.
    pub fn make(&mut self) -> Guid {
        self.next += 1;
        let mut hasher = SipHasher24::new_with_key(&self.key);
        hasher.write(&self.next.to_le_bytes());
        Guid::new(hasher.finish128().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use ringpost_netproto::placement::PARTITIONS_DEFAULT;

    use super::*;

    #[test]
    fn every_field_counts_and_none_runs_into_the_next() {
        let key = HashKey::new([3; 16]);
        let id = |user: &str, sender: &str, content: u8| {
            let user = UserKey::new(user.as_bytes(), &key, PARTITIONS_DEFAULT).expect("a name");
            delivery_id(
                &key,
                &user,
                MailboxId::INBOX,
                sender.as_bytes(),
                &[content; 16],
            )
        };
        let base = id("bob", "ann", 1);
        assert_eq!(base, id("bob", "ann", 1));
        for other in [
            id("bobx", "ann", 1),
            id("bob", "ann2", 1),
            id("bob", "ann", 2),
        ] {
            assert_ne!(base, other);
        }
        assert_ne!(id("ab", "c", 1), id("a", "bc", 1));
    }

    /// Made by an independent implementation of SipHash-2-4-128. A change here is one of the format:
    /// retries would not be recognised across an upgrade.
    #[test]
    fn ids_stay_what_they_are() {
        let key = HashKey::new(std::array::from_fn(|i| u8::try_from(i).expect("below 16")));
        let user = UserKey::new(b"bob@a.test", &key, PARTITIONS_DEFAULT).expect("a name");
        let content = std::array::from_fn(|i| u8::try_from(0xF0 + i).expect("a byte"));
        let id = delivery_id(&key, &user, MailboxId::INBOX, b"ann@b.test", &content);
        assert_eq!(
            id.bytes(),
            [
                0x48, 0xb8, 0xef, 0xb6, 0xda, 0x7e, 0x50, 0x07, 0xe9, 0x1c, 0x72, 0xdc, 0x27, 0xfe,
                0x62, 0x97
            ]
        );
    }

    #[test]
    fn random_ids_differ() {
        let mut ids = RandomIds::new([1; 16]);
        assert_ne!(ids.make(), ids.make());
    }
}
