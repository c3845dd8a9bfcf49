//! Held mail: accepted for a partition whose primary cannot be reached, or rescued from records that
//! are cut off, until the primary has it (cluster.md 5.4, 6.2, 6.4; docs/decisions/0017-held-mail.md).
//!
//! It lies in the *held box* of its partition: a user of this node alone, whose records have no number
//! in the partition's stream and count as soon as they are on this medium. The box has a mailbox for
//! each user, and below it one for each folder that an address asked for by name. Nobody reads it but
//! whoever hands its mail back:
//!
//! 1. [`Request::Hold`](crate::request::Request::Hold) here; the sender is told "250".
//! 2. [`Request::Mailboxes`](crate::request::Request::Mailboxes) of [`box_of`], then `List` and
//!    `Fetch`: [`addressee`] says whose it is, [`Fetched`](crate::request::Fetched) the rest.
//! 3. `Append` at the primary with [`Dedupe::Whole`](crate::request::Dedupe): stored, or known there.
//! 4. Once that is answered, `Expunge` here, and
//!    [`MailboxChange::DeleteEmpty`](crate::request::MailboxChange) behind the last message.
//!
//! A crash between two of these repeats them; the delivery id makes that harmless.

use std::fmt::Write as _;

use ringpost_netproto::id::PartitionId;
use ringpost_netproto::placement::{HashKey, PartitionCount, UserKey};

use crate::mailbox_name::{NameFault, SEPARATOR, canonical};

/// What the names of held boxes begin with. No address has a space.
const BOX: &str = " held mail ";

/// What a mailbox of a held box begins with, before the user's name.
const TO: &str = "to:";

/// Whose a mailbox of a held box is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Addressee {
    /// The canonical name.
    pub user: Vec<u8>,
    /// The folder that the address asked for by name.
    pub folder: Option<String>,
}

/// The held box of a partition: the first of the numbered names that hashes there.
pub fn box_of(partition: PartitionId, key: &HashKey, partitions: PartitionCount) -> UserKey {
    let names = (0u64..).map(|number| format!("{BOX}{number}"));
    let mut keys = names.filter_map(|name| UserKey::new(name.as_bytes(), key, partitions));
    let found = keys.find(|key| key.partition() == partition);
    // A partition of the store gets one in so many hashes as there are partitions.
    found.expect("a keyed hash meets every partition")
}

/// Whether a user is a held box.
pub fn is_box(user: &[u8]) -> bool {
    user.starts_with(BOX.as_bytes())
}

/// The mailbox of a held box for a user's mail: the name with everything but letters, digits and a few
/// signs as `=` and two hex digits. Refused if that is longer than a mailbox name can be.
pub fn mailbox_of(user: &[u8], folder: Option<&str>) -> Result<String, NameFault> {
    let mut name = String::from(TO);
    for byte in user {
        if byte.is_ascii_alphanumeric() || b"@.+-_".contains(byte) {
            name.push(char::from(*byte));
        } else {
            write!(name, "={byte:02X}").expect("a string takes everything");
        }
    }
    if let Some(folder) = folder {
        name.push(SEPARATOR);
        name.push_str(folder);
    }
    canonical(&name)
}

/// The opposite; `None` for mailboxes that a held box has as any user.
pub fn addressee(mailbox: &str) -> Option<Addressee> {
    let rest = mailbox.strip_prefix(TO)?;
    let (name, folder) = match rest.split_once(SEPARATOR) {
        Some((name, folder)) => (name, Some(folder.to_owned())),
        None => (rest, None),
    };
    let mut user = Vec::with_capacity(name.len());
    let mut bytes = name.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'=' {
            user.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
        user.push(u8::try_from(high * 16 + low).ok()?);
    }
    Some(Addressee { user, folder })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_partition_has_a_box_of_its_own() {
        let key = HashKey::new([7; 16]);
        let partitions = PartitionCount::new(64).expect("a power of two");
        let mut names = std::collections::BTreeSet::new();
        for number in 0..64 {
            let partition = PartitionId::new(number);
            let held = box_of(partition, &key, partitions);
            assert_eq!(held.partition(), partition);
            assert!(is_box(held.name()));
            names.insert(held.name().to_vec());
        }
        assert_eq!(names.len(), 64);
        assert!(!is_box(b"bob@example.org"));
    }

    #[test]
    fn names_come_back_out_of_mailboxes() {
        let users: [&[u8]; 5] = [
            b"bob@example.org",
            b"INBOX",
            b"a/b=c@example.org",
            b"\xff\x00 \xc3\xa4",
            b"..",
        ];
        for user in users {
            for folder in [None, Some("Lists/rust"), Some("a b")] {
                let mailbox = mailbox_of(user, folder).expect("a short name");
                let found = addressee(&mailbox).expect("a mailbox for a user");
                assert_eq!(found.user, user);
                assert_eq!(found.folder.as_deref(), folder);
            }
        }
        assert_eq!(addressee("INBOX"), None);
        assert_eq!(addressee("to:a=G0"), None);
        assert_eq!(mailbox_of(&[b' '; 255], None), Err(NameFault::TooLong));
    }
}
