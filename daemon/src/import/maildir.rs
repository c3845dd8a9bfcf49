//! Reads a Maildir: folders of a Maildir++ and of nested directories, flags of file names, keywords
//! of Dovecot, dates.
//!
//! Other programs go on using it meanwhile. A file is known by its unique name (what stands in front
//! of `:2,`): one that is gone when it is to be read is looked for again, since a changed flag renames
//! it, and a listing can be made again to find what came. `tmp` is not looked into, and no symbolic
//! link is followed.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{DirEntry, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::libc::{ELOOP, O_CLOEXEC, O_NOFOLLOW, O_NONBLOCK};
use ringpost_engine::format::info::{ANSWERED, DELETED, DRAFT, FLAGGED, SEEN};
use ringpost_engine::request::is_keyword;

use super::bookkeeping::add_keyword;
use super::{MESSAGE_BYTES_MAX, Mail, date_of, names};

/// Why a link is passed over.
pub const SYMBOLIC_LINK: &str = "a symbolic link is not followed";

/// Nested folders are followed so deep.
const DEPTH_MAX: usize = 16;

/// A list of keywords is read up to here.
const KEYWORDS_BYTES_MAX: u64 = 64 << 10;

/// A date in a file name below this is none: 1990.
const NAME_DATE_MIN: i64 = 631_152_000;

/// A name in a Maildir: what does not change, and what says its flags.
type Unique = OsString;

/// One folder.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Folder {
    /// Mailbox name; `None` for the Maildir itself.
    pub name: Option<String>,
    /// Where `cur` and `new` are.
    pub path: PathBuf,
}

/// What was found in a tree.
#[derive(Debug, Default)]
pub struct Tree {
    /// Ascending by path, the Maildir itself first.
    pub folders: Vec<Folder>,
    /// What was not followed: a path and why.
    pub passed: Vec<(PathBuf, &'static str)>,
}

/// Why a message was not read.
#[derive(Debug)]
pub enum Unread {
    /// It was removed meanwhile.
    Gone,
    /// It is not a file.
    NotAFile,
    /// It is above [`MESSAGE_BYTES_MAX`].
    TooLarge(u64),
    /// The kernel's answer.
    Io(io::Error),
}

/// Whether a directory is a Maildir.
pub fn is_maildir(path: &Path) -> bool {
    ["cur", "new"]
        .iter()
        .any(|name| is_directory(&path.join(name)))
}

fn is_directory(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.is_dir())
}

/// The folders of a Maildir.
pub fn folders(root: &Path) -> io::Result<Tree> {
    let mut tree = Tree::default();
    look(root, None, 0, &mut tree)?;
    tree.folders.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(tree)
}

fn look(path: &Path, name: Option<&str>, depth: usize, tree: &mut Tree) -> io::Result<()> {
    if is_maildir(path) {
        tree.folders.push(Folder {
            name: name.map(ToOwned::to_owned),
            path: path.to_owned(),
        });
    }
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let own = entry.file_name();
        if [OsStr::new("cur"), OsStr::new("new"), OsStr::new("tmp")].contains(&&*own) {
            continue;
        }
        let kind = entry.file_type()?;
        let below = entry.path();
        if kind.is_symlink() {
            tree.passed.push((below, SYMBOLIC_LINK));
            continue;
        }
        if !kind.is_dir() {
            continue;
        }
        let Some(word) = own.to_str() else {
            tree.passed
                .push((below, "the name of the folder is not UTF-8"));
            continue;
        };
        let word = match word.strip_prefix('.') {
            Some(plus) => names::of_maildir(plus),
            None => names::of_maildir(&word.replace('.', "\u{0}")).replace('\u{0}', "."),
        };
        let name = match name {
            Some(parent) => format!("{parent}/{word}"),
            None => word,
        };
        if depth < DEPTH_MAX {
            look(&below, Some(&name), depth + 1, tree)?;
        } else {
            tree.passed.push((below, "folders are nested too deep"));
        }
    }
    Ok(())
}

/// The messages of a folder while they are read.
#[derive(Debug)]
pub struct Messages {
    path: PathBuf,
    /// Path of each, as of the last listing.
    found: BTreeMap<Unique, PathBuf>,
    keywords: Vec<String>,
}

impl Messages {
    /// Lists a folder.
    pub fn list(path: &Path) -> io::Result<Self> {
        let mut messages = Self {
            path: path.to_owned(),
            found: BTreeMap::new(),
            keywords: keywords(path),
        };
        messages.list_again()?;
        Ok(messages)
    }

    /// Lists it again; keywords may have come as well.
    pub fn list_again(&mut self) -> io::Result<()> {
        self.keywords = keywords(&self.path);
        let mut found = BTreeMap::new();
        // `new` first: a message that moves to `cur` meanwhile is found in one of them.
        for sub in ["new", "cur"] {
            let directory = self.path.join(sub);
            if !is_directory(&directory) {
                continue;
            }
            for entry in std::fs::read_dir(&directory)? {
                add(&entry?, &mut found);
            }
        }
        self.found = found;
        Ok(())
    }

    /// The unique names, by date of arrival as the names tell, then by name.
    pub fn names(&self) -> Vec<Unique> {
        let mut names: Vec<Unique> = self.found.keys().cloned().collect();
        names.sort_by_cached_key(|name| (name_date(name), name.clone()));
        names
    }

    /// Where a message was when it was last seen.
    pub fn path_of(&self, name: &OsStr) -> PathBuf {
        self.found
            .get(name)
            .cloned()
            .unwrap_or_else(|| self.path.join(name))
    }

    /// Reads a message; one that was renamed is looked for again.
    pub fn read(&mut self, name: &OsStr) -> Result<Mail, Unread> {
        for again in 0..4 {
            let Some(path) = self.found.get(name).cloned() else {
                return Err(Unread::Gone);
            };
            match read_file(&path) {
                Ok((bytes, about)) => return Ok(self.mail(&path, bytes, &about)),
                Err(Unread::Gone) if again < 3 => self.list_again().map_err(Unread::Io)?,
                Err(other) => return Err(other),
            }
        }
        Err(Unread::Gone)
    }

    fn mail(&self, path: &Path, bytes: Vec<u8>, about: &Metadata) -> Mail {
        let mut mail = Mail {
            bytes,
            ..Mail::default()
        };
        let file_name = path.file_name().unwrap_or_default();
        for letter in letters(file_name) {
            mail.flags |= match letter {
                b'S' => SEEN,
                b'R' => ANSWERED,
                b'F' => FLAGGED,
                b'T' => DELETED,
                b'D' => DRAFT,
                _ => 0,
            };
            let word = match letter {
                b'P' => Some("$Forwarded"),
                b'a'..=b'z' => self
                    .keywords
                    .get(usize::from(letter - b'a'))
                    .map(String::as_str),
                _ => None,
            };
            if let Some(word) = word.filter(|word| is_keyword(word)) {
                add_keyword(&mut mail, word.to_owned());
            }
        }
        // The time of the file is the message's date in Dovecot and Courier, unless the tree was
        // copied without it: then it is later than what the name says.
        let named = name_date(unique(file_name)).filter(|date| *date >= NAME_DATE_MIN);
        let seconds = named.map_or(about.mtime(), |named| named.min(about.mtime()));
        mail.date = date_of(seconds);
        mail
    }
}

fn add(entry: &DirEntry, found: &mut BTreeMap<Unique, PathBuf>) {
    let name = entry.file_name();
    if !name.as_bytes().starts_with(b".") {
        found.insert(unique(&name).to_owned(), entry.path());
    }
}

/// What stands in front of the flags. Where `:` cannot be in a name, others stand for it.
fn unique(name: &OsStr) -> &OsStr {
    let bytes = name.as_bytes();
    let at = bytes
        .windows(3)
        .position(|three| matches!(three, [b':' | b';' | b'!', b'2', b',']));
    OsStr::from_bytes(bytes.get(..at.unwrap_or(bytes.len())).unwrap_or(bytes))
}

/// The flags in a name.
fn letters(name: &OsStr) -> impl Iterator<Item = u8> {
    let at = unique(name).len() + 3;
    let flags = name.as_bytes().get(at..).unwrap_or_default();
    flags
        .iter()
        .copied()
        .take_while(u8::is_ascii_alphabetic)
        .collect::<Vec<_>>()
        .into_iter()
}

/// Seconds since 1970 at the start of a name.
fn name_date(name: &OsStr) -> Option<i64> {
    let digits = name.as_bytes().split(|byte| *byte == b'.').next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The keywords of `dovecot-keywords`, by letter.
fn keywords(path: &Path) -> Vec<String> {
    let mut words = vec![String::new(); 26];
    let Ok((file, _)) = open(&path.join("dovecot-keywords")) else {
        return words;
    };
    let mut text = String::new();
    if file
        .take(KEYWORDS_BYTES_MAX)
        .read_to_string(&mut text)
        .is_ok()
    {
        for line in text.lines() {
            if let Some((number, word)) = line.split_once(' ')
                && let Ok(number) = number.parse::<usize>()
                && let Some(place) = words.get_mut(number)
            {
                word.clone_into(place);
            }
        }
    }
    words
}

/// Opens a regular file that is reached by no symbolic link at its end; never waits for a FIFO.
pub fn open(path: &Path) -> Result<(File, Metadata), Unread> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)
        .open(path);
    let file = opened.map_err(|error| match error.kind() {
        ErrorKind::NotFound => Unread::Gone,
        _ if error.raw_os_error() == Some(ELOOP) => Unread::NotAFile,
        _ => Unread::Io(error),
    })?;
    let about = file.metadata().map_err(Unread::Io)?;
    if about.is_file() {
        Ok((file, about))
    } else {
        Err(Unread::NotAFile)
    }
}

fn read_file(path: &Path) -> Result<(Vec<u8>, Metadata), Unread> {
    let (file, about) = open(path)?;
    let bytes_max = u64::try_from(MESSAGE_BYTES_MAX).unwrap_or(u64::MAX);
    if about.len() > bytes_max {
        return Err(Unread::TooLarge(about.len()));
    }
    let mut bytes = Vec::new();
    file.take(bytes_max + 1)
        .read_to_end(&mut bytes)
        .map_err(Unread::Io)?;
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(Unread::TooLarge(about.len()));
    }
    Ok((bytes, about))
}

#[cfg(test)]
mod tests;
