//! What an import reads: which files and Maildirs, for whom, into which mailboxes.
//!
//! A tree has a directory or a file per user: `USER/Maildir`, `USER` itself a Maildir, `USER/mbox`,
//! `USER/mail/` and `USER/Mail/` full of mbox files, `USER.mbox`, or an mbox called `USER`; and, if
//! `USER` is a domain (it has a dot and no mail), the same below it for `user@domain`.

use std::cell::Cell;
use std::fs::DirEntry;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use ringpost_netproto::message::escaped;

use super::super::Failure;
use super::super::options::{Format, Import as Options};
use super::{said, stdin_path};
use crate::client::plain;
use crate::import::maildir::{self, SYMBOLIC_LINK, is_maildir};
use crate::import::names;

/// Folders of mbox files are followed so deep.
const DEPTH_MAX: usize = 16;

/// Of a directory in a tree.
const NO_MAIL: &str = "no mail is recognised in it";

/// How it is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Mbox,
    Maildir,
    Stdin,
}

/// One thing to read, into one mailbox.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Source {
    pub(super) kind: Kind,
    pub(super) path: PathBuf,
    pub(super) folder: String,
}

/// What was found and is not read, though there may be mail in it; each was named.
#[derive(Debug, Default)]
pub(super) struct Missed(Cell<u64>);

impl Missed {
    /// How many.
    pub(super) fn count(&self) -> u64 {
        self.0.get()
    }

    fn name(&self, path: &Path, why: &str) {
        // A link leads to what is read under its own name, or is nobody's mail.
        if why != SYMBOLIC_LINK {
            self.0.set(self.0.get() + 1);
        }
        // Whoever named it may not be whose terminal this is.
        let line = format!("ringpost: {}: passed over: {why}", path.display());
        drop(writeln!(io::stderr(), "{}", escaped(line.as_bytes())));
    }
}

/// What the options name, by user.
pub(super) fn find(
    options: &Options,
    missed: &Missed,
) -> Result<Vec<(String, Vec<Source>)>, Failure> {
    if let Some(tree) = &options.tree {
        return of_tree(tree, missed);
    }
    let utf8 = |word: Option<&std::ffi::OsString>, what: &str| {
        let word = word.and_then(|word| word.to_str());
        word.map(str::to_owned)
            .ok_or_else(|| Failure::Misused(format!("{what} is not UTF-8")))
    };
    let user = utf8(options.user.as_ref(), "the user")?;
    let folder = utf8(Some(&options.folder), "the folder")?;
    let folder = if folder.eq_ignore_ascii_case("INBOX") {
        "INBOX".to_owned()
    } else {
        folder
    };
    let stdin = options.path.as_os_str() == "-";
    if stdin && options.format == Format::Maildir {
        let line = "a Maildir is a directory: it cannot come from standard input";
        return Err(Failure::Misused(line.to_owned()));
    }
    let sources = if stdin {
        vec![Source {
            kind: Kind::Stdin,
            path: stdin_path(),
            folder,
        }]
    } else {
        of_path(&options.path, options.format, &folder, missed)?
    };
    Ok(vec![(user, sources)])
}

/// What a person named: a link there is meant.
fn of_path(
    path: &Path,
    format: Format,
    folder: &str,
    missed: &Missed,
) -> Result<Vec<Source>, Failure> {
    let path = &path
        .canonicalize()
        .map_err(|error| said(path, &plain(&error)))?;
    let is_dir = path.is_dir();
    let mut sources = Vec::new();
    match format {
        Format::Maildir if !is_dir => return Err(said(path, "a Maildir is a directory")),
        Format::Auto | Format::Maildir if is_maildir(path) => {
            maildir(path, folder, missed, &mut sources)?;
        }
        Format::Maildir => {
            return Err(said(
                path,
                "neither cur nor new is in it: this is no Maildir",
            ));
        }
        Format::Auto | Format::Mbox if is_dir => mboxes(path, folder, (0, missed), &mut sources)?,
        Format::Auto | Format::Mbox => sources.push(Source {
            kind: Kind::Mbox,
            path: path.clone(),
            folder: folder.to_owned(),
        }),
    }
    if sources.is_empty() {
        return Err(said(
            path,
            "no mail is in it: neither cur and new, nor files",
        ));
    }
    Ok(sources)
}

/// `name` below `folder`, where INBOX is the top.
fn below(folder: &str, name: &str) -> String {
    if folder == "INBOX" {
        name.to_owned()
    } else {
        format!("{folder}/{name}")
    }
}

fn maildir(
    path: &Path,
    folder: &str,
    missed: &Missed,
    out: &mut Vec<Source>,
) -> Result<(), Failure> {
    let tree = maildir::folders(path).map_err(|error| said(path, &plain(&error)))?;
    for (passed, why) in tree.passed {
        missed.name(&passed, why);
    }
    out.extend(tree.folders.into_iter().map(|found| Source {
        kind: Kind::Maildir,
        path: found.path,
        folder: match found.name {
            Some(name) => below(folder, &name),
            None => folder.to_owned(),
        },
    }));
    Ok(())
}

/// A directory of mbox files, each a folder.
fn mboxes(
    path: &Path,
    folder: &str,
    (depth, missed): (usize, &Missed),
    out: &mut Vec<Source>,
) -> Result<(), Failure> {
    for entry in entries(path)? {
        let Some((name, kind)) = named(&entry, missed) else {
            continue;
        };
        let inbox = depth == 0 && names::is_inbox(&name);
        let into = match (inbox, folder, depth) {
            (true, ..) => folder.to_owned(),
            (false, "INBOX", 0) => names::of_file(&name).to_owned(),
            _ => format!("{folder}/{}", names::of_file(&name)),
        };
        if kind.is_file() && !is_index(&name) {
            out.push(Source {
                kind: Kind::Mbox,
                path: entry.path(),
                folder: into,
            });
        } else if kind.is_dir() && depth < DEPTH_MAX {
            mboxes(&entry.path(), &into, (depth + 1, missed), out)?;
        } else if kind.is_dir() {
            missed.name(&entry.path(), "it lies too deep");
        }
    }
    Ok(())
}

/// Indexes of Thunderbird and others that stand beside the mail.
fn is_index(name: &str) -> bool {
    [".msf", ".lock", ".dat", ".cmeta", ".ibex", ".index"]
        .iter()
        .any(|ending| name.ends_with(ending))
}

fn of_tree(tree: &Path, missed: &Missed) -> Result<Vec<(String, Vec<Source>)>, Failure> {
    let mut users = Vec::new();
    for entry in entries(tree)? {
        let Some((name, kind)) = named(&entry, missed) else {
            continue;
        };
        let found = of_user(&entry, (&name, kind), missed)?;
        let is_domain = found.is_none() && kind.is_dir() && name.contains('.');
        if found.is_none() && kind.is_dir() && !is_domain {
            missed.name(&entry.path(), NO_MAIL);
        }
        users.extend(found);
        if !is_domain {
            continue;
        }
        for below in entries(&entry.path())? {
            let Some((local, kind)) = named(&below, missed) else {
                continue;
            };
            match of_user(&below, (&local, kind), missed)? {
                Some((user, sources)) => users.push((format!("{user}@{name}"), sources)),
                None if kind.is_dir() => missed.name(&below.path(), NO_MAIL),
                None => {}
            }
        }
    }
    if users.is_empty() {
        let why = "no user's mail is in it: USER/Maildir, USER/mbox, USER/mail/, USER.mbox or USER";
        return Err(said(tree, why));
    }
    // Of `bob` and `bob.mbox` each is bob's.
    users.sort_by(|(a, _), (b, _)| a.cmp(b));
    users.dedup_by(|(later, more), (earlier, sources)| {
        let same = later == earlier;
        if same {
            sources.append(more);
        }
        same
    });
    Ok(users)
}

fn of_user(
    entry: &DirEntry,
    (name, kind): (&str, std::fs::FileType),
    missed: &Missed,
) -> Result<Option<(String, Vec<Source>)>, Failure> {
    let path = entry.path();
    let mut sources = Vec::new();
    let mbox = |path: PathBuf| Source {
        kind: Kind::Mbox,
        path,
        folder: "INBOX".to_owned(),
    };
    if kind.is_file() {
        if is_index(name) {
            return Ok(None);
        }
        sources.push(mbox(path));
        let user = name.strip_suffix(".mbox").unwrap_or(name);
        return Ok(Some((user.to_owned(), sources)));
    }
    if is_maildir(&path) {
        maildir(&path, "INBOX", missed, &mut sources)?;
    } else {
        let below = path.join("Maildir");
        if is_maildir(&below) && is_plain(&below, true) {
            maildir(&below, "INBOX", missed, &mut sources)?;
        }
        if is_plain(&path.join("mbox"), false) {
            sources.push(mbox(path.join("mbox")));
        }
        for folders in ["mail", "Mail"] {
            if is_plain(&path.join(folders), true) {
                mboxes(&path.join(folders), "INBOX", (0, missed), &mut sources)?;
            }
        }
    }
    Ok((!sources.is_empty()).then(|| (name.to_owned(), sources)))
}

fn is_plain(path: &Path, directory: bool) -> bool {
    path.symlink_metadata().is_ok_and(|found| {
        if directory {
            found.is_dir()
        } else {
            found.is_file()
        }
    })
}

fn entries(path: &Path) -> Result<Vec<DirEntry>, Failure> {
    let failed = |error: &io::Error| said(path, &plain(error));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|error| failed(&error))? {
        found.push(entry.map_err(|error| failed(&error))?);
    }
    found.sort_by_key(DirEntry::file_name);
    Ok(found)
}

/// Name and kind of what is looked at; what is hidden or a link is not.
fn named(entry: &DirEntry, missed: &Missed) -> Option<(String, std::fs::FileType)> {
    let kind = entry.file_type().ok()?;
    let name = entry.file_name();
    let Some(name) = name.to_str() else {
        missed.name(&entry.path(), "its name is not UTF-8");
        return None;
    };
    if kind.is_symlink() {
        missed.name(&entry.path(), SYMBOLIC_LINK);
    }
    let seen = !name.starts_with('.') && (kind.is_file() || kind.is_dir());
    seen.then(|| (name.to_owned(), kind))
}
