//! `lost/`: what a repair sets aside, under names that say whose it is. Nothing there is ever written
//! over, and the same bytes are not put there twice.

use bytes::Bytes;
use ringpost_netproto::id::MailboxId;

use super::hand::Hand;
use crate::check::{Lost, UserId};
use crate::error::IoError;
use crate::format::folders::escaped;
use crate::io::{Piece, RelPath, Step};

/// Characters of a user's or mailbox's name in a file name.
const WORD_CHARS_MAX: usize = 60;

/// Tries for a name that is free.
const NAMES_MAX: u32 = 100_000;

/// A name's part of a file name: printable, without slash, cut.
pub(super) fn word(name: &[u8]) -> String {
    let text = escaped(name).replace('/', "%2F");
    let text: String = text.chars().take(WORD_CHARS_MAX).collect();
    if text.starts_with('.') {
        format!("%2E{}", text.get(1..).unwrap_or_default())
    } else {
        text
    }
}

/// Whose something is, in a file name.
pub(super) fn owner(name: Option<&[u8]>, id: UserId) -> String {
    name.map_or_else(|| id.dir().file_name().to_owned(), word)
}

/// The file name for what is left of a message.
pub(super) fn name_of(owner: &str, lost: &Lost) -> String {
    if lost.uid == 0 {
        let file = lost.file.rsplit('/').next().unwrap_or_default();
        return format!("{owner}.{file}.at-{}.damaged", lost.offset);
    }
    let mailbox = match lost.mailbox {
        MailboxId::INBOX => "INBOX".to_owned(),
        MailboxId::SENT => "Sent".to_owned(),
        other => format!("mailbox-{other}"),
    };
    format!("{owner}.{mailbox}.uid-{}.damaged", lost.uid)
}

/// Moves a file of the data directory to `lost/`; gives its new name.
pub(super) fn set_aside(
    hand: &mut dyn Hand,
    path: &RelPath,
    owner: &str,
) -> Result<RelPath, IoError> {
    let wanted = format!("{owner}.{}", path.file_name());
    let to = free_name(hand, &wanted, None)?;
    let from = path.clone();
    hand.apply(vec![
        Step::MakeDir(RelPath::lost_dir()),
        Step::Rename {
            from,
            to: to.clone(),
        },
    ])?;
    Ok(to)
}

/// Puts bytes into a file of `lost/`; gives its name.
pub(super) fn keep(hand: &mut dyn Hand, wanted: &str, bytes: &Bytes) -> Result<RelPath, IoError> {
    let path = free_name(hand, wanted, Some(bytes))?;
    let known = hand.list(&RelPath::lost_dir()).unwrap_or_default();
    if known.iter().any(|(name, _)| name == path.file_name()) {
        return Ok(path);
    }
    hand.apply(vec![
        Step::MakeDir(RelPath::lost_dir()),
        Step::Write {
            path: path.clone(),
            offset: 0,
            pieces: vec![Piece::Bytes(bytes.clone())],
        },
    ])?;
    Ok(path)
}

/// `wanted`, with a number behind it if that name is taken by other bytes than these.
fn free_name(hand: &dyn Hand, wanted: &str, bytes: Option<&Bytes>) -> Result<RelPath, IoError> {
    let dir = RelPath::lost_dir();
    let names = match hand.list(&dir) {
        Ok(names) => names,
        Err(error) if error.is_not_found() => Vec::new(),
        Err(error) => return Err(error),
    };
    let size = bytes.map(|bytes| u64::try_from(bytes.len()).unwrap_or(u64::MAX));
    for number in 1..NAMES_MAX {
        let name = if number == 1 {
            wanted.to_owned()
        } else {
            format!("{wanted}.{number}")
        };
        let path = RelPath::lost(&name);
        let there = names.iter().find(|(other, _)| *other == name);
        let Some((_, len)) = there else {
            return Ok(path);
        };
        if let Some(bytes) = bytes
            && Some(*len) == size
            && hand
                .read(&path, 0, bytes.len())
                .is_ok_and(|there| there == **bytes)
        {
            return Ok(path);
        }
    }
    Err(IoError {
        operation: "find a free name in",
        path: dir.to_string(),
        offset: 0,
        len: 0,
        errno: libc::EEXIST,
    })
}
