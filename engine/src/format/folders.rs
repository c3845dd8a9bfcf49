//! `folders`: who a user directory belongs to and what its mailboxes are called, as text. With the
//! segments' store lines it is all that a rebuild of the index needs.

use std::fmt::Write;

use ringpost_netproto::id::{MailboxId, UidValidity};
use ringpost_netproto::placement::NAME_BYTES_MAX;

use super::text;
use crate::error::CorruptReason;

/// First line.
const TITLE: &str = "ringpost folders 1";

/// The file is at most this long.
pub const FOLDERS_BYTES_MAX: usize = text::TEXT_BYTES_MAX;

/// What `folders` says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Folders {
    /// The canonical user name.
    pub user: Vec<u8>,
    /// Ascending by id.
    pub mailboxes: Vec<Folder>,
}

/// One mailbox.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Folder {
    /// Its id.
    pub mailbox: MailboxId,
    /// Validity of its uids.
    pub uidvalidity: UidValidity,
    /// UTF-8.
    pub name: String,
}

impl Folders {
    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = format!("{TITLE}\nuser ");
        text::escape(&self.user, &mut out);
        out.push('\n');
        for folder in &self.mailboxes {
            let validity = folder.uidvalidity.value();
            write!(out, "mailbox {} {validity:08x} ", folder.mailbox)
                .expect("a String takes everything");
            text::escape(folder.name.as_bytes(), &mut out);
            out.push('\n');
        }
        text::seal(out).into_bytes()
    }

    /// Reads the file; only the form that `encode` writes.
    pub fn decode(bytes: &[u8]) -> Result<Self, CorruptReason> {
        let body = text::open(bytes)?;
        let mut lines = body.strip_suffix('\n').unwrap_or(body).split('\n');
        if lines.next() != Some(TITLE) {
            return Err(CorruptReason::Magic);
        }
        let user = lines
            .next()
            .and_then(|line| line.strip_prefix("user "))
            .and_then(text::unescape)
            .filter(|name| (1..=NAME_BYTES_MAX).contains(&name.len()))
            .ok_or(CorruptReason::Value("no user name in folders"))?;
        let mailboxes = lines
            .map(|line| folder(line).ok_or(CorruptReason::Value("not a line of folders")))
            .collect::<Result<Vec<_>, _>>()?;
        if !mailboxes.is_sorted_by(|a, b| a.mailbox < b.mailbox) {
            return Err(CorruptReason::Value("mailboxes are not ascending"));
        }
        Ok(Self { user, mailboxes })
    }
}

/// A name as it stands in the file: printable ASCII.
pub fn escaped(name: &[u8]) -> String {
    let mut out = String::new();
    text::escape(name, &mut out);
    out
}

/// `mailbox <8 hex> <8 hex> <escaped name>`.
fn folder(line: &str) -> Option<Folder> {
    let mut words = line.strip_prefix("mailbox ")?.split(' ');
    let (id, validity, name) = (words.next()?, words.next()?, words.next()?);
    let name = String::from_utf8(text::unescape(name)?).ok()?;
    if words.next().is_some() || name.is_empty() {
        return None;
    }
    Some(Folder {
        mailbox: MailboxId::new(text::hex_u32(id.as_bytes())?),
        uidvalidity: UidValidity::new(text::hex_u32(validity.as_bytes())?),
        name,
    })
}
