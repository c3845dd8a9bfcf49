//! `import`: mail of other programs, brought along with its flags and dates.
//!
//! What makes it safe to run again, whatever ended it: each message has an id, made of user, mailbox,
//! content, and the how-manieth of equal ones in its source it is. The id becomes the message's guid
//! in the store. A run first lists the guids that the user has, and leaves out what is among them; what
//! was under way when an earlier run ended, the node recognises by the id. So the store alone is the
//! state: there is no file that could be lost, or be ahead of it.

mod report;
mod sources;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::hash::Hasher as _;
use std::io::{self, Cursor, Read, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use ringpost_netproto::frame::{Status, Verdict};
use ringpost_netproto::id::Guid;
use ringpost_netproto::message::append::{AppendRequest, Missing};
use ringpost_netproto::message::{MailboxRef, escaped};
use siphasher::sip128::{Hasher128 as _, SipHasher24};

use self::report::Tally;
use self::sources::{Kind, Missed, Source};
use super::node::Node;
use super::options::{Global, Import as Options, MboxFlavour};
use super::{Failure, Output};
use crate::client::appends::{Appends, Undone};
use crate::client::{ClientError, plain};
use crate::exit::Code;
use crate::import::Mail;
use crate::import::flavour::{Flavour, survey};
use crate::import::maildir::{Messages, Unread, open};
use crate::import::mbox::{Item, Mbox};

/// So much of a standard input is looked at before its flavour is decided.
const SAMPLE_BYTES: u64 = 32 << 20;

/// So often a Maildir is listed, to find what came meanwhile.
const LISTINGS_MAX: usize = 8;

/// What an import leads to is named up to so many messages of a user.
const NAMED_MAX: u64 = 1_000;

/// Imports what the options name.
pub fn import(global: &Global, options: &Options, output: &mut Output) -> Result<Code, Failure> {
    let missed = Missed::default();
    let users = sources::find(options, &missed)?;
    let mut node = if options.dry_run {
        None
    } else {
        Some(Node::connect(global)?)
    };
    let mut all = Vec::with_capacity(users.len());
    for (user, sources) in users {
        let existing = match &mut node {
            Some(node) => node.guids(&user)?,
            None => Vec::new(),
        };
        let key = node.as_ref().map_or([0; 16], Node::store_key);
        let mut import = Import {
            appends: Appends::new(std::time::Duration::from_secs(global.timeout)),
            node: node.as_mut(),
            user,
            key,
            existing,
            taken: (sources.len() > 1).then(Vec::new),
            equal: BTreeMap::new(),
            flavour: options.mbox_flavour,
            bar: progress(),
            tally: Tally::default(),
            stopped: false,
        };
        for source in &sources {
            import.source(source)?;
        }
        import.finish()?;
        import.bar.finish_and_clear();
        let Import { user, tally, .. } = import;
        report::user(&user, &tally, options.dry_run, output)?;
        all.push(tally);
    }
    if options.tree.is_some() {
        report::total(&all, options.dry_run, output)?;
    }
    let whole = missed.count() == 0 && all.iter().all(Tally::is_whole);
    Ok(if whole { Code::Done } else { Code::Failed })
}

/// On standard error, and only if that is a terminal: indicatif sees to it.
fn progress() -> ProgressBar {
    let bar = ProgressBar::new(0);
    let template = "{prefix} {bytes} of {total_bytes} {wide_bar} {bytes_per_sec}, {eta} left {msg}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// Where a message came from, for a complaint.
#[derive(Clone, Debug)]
struct Place {
    path: Rc<Path>,
    /// In an mbox.
    offset: Option<u64>,
}

/// A message on its way.
#[derive(Clone, Debug)]
struct Offered {
    place: Place,
    bytes: u64,
    id: u128,
}

/// The import of one user.
struct Import<'a> {
    /// `None` in a dry run.
    node: Option<&'a mut Node>,
    user: String,
    /// Of the ids: nobody who sends mail knows it, so that nobody can make two messages one.
    key: [u8; 16],
    /// Guids that the user has, ascending.
    existing: Vec<u128>,
    /// Ids of what was taken out of the source at hand, where there are several: it may be in the next one
    /// too.
    taken: Option<Vec<u128>>,
    /// How often each content came in the source at hand.
    equal: BTreeMap<u128, u32>,
    flavour: MboxFlavour,
    appends: Appends<Offered>,
    bar: ProgressBar,
    tally: Tally,
    /// The node takes nothing for this user.
    stopped: bool,
}

impl Import<'_> {
    fn source(&mut self, source: &Source) -> Result<(), Failure> {
        self.equal.clear();
        if let Some(taken) = &mut self.taken {
            self.existing.append(taken);
            self.existing.sort_unstable();
        }
        self.bar
            .set_prefix(format!("{} {}", self.user, source.folder));
        let path: Rc<Path> = Rc::from(source.path.as_path());
        match source.kind {
            Kind::Stdin => {
                let mut sample = Vec::new();
                let read = io::stdin()
                    .lock()
                    .take(SAMPLE_BYTES)
                    .read_to_end(&mut sample);
                read.map_err(|error| said(&path, &plain(&error)))?;
                let flavour = self.flavour_of(&path, &sample[..])?;
                let input = Cursor::new(sample).chain(io::stdin().lock());
                self.mbox(&path, &source.folder, Mbox::new(input, flavour))
            }
            Kind::Mbox => match open(&source.path) {
                Ok((file, about)) => self.file(&path, &source.folder, file, about.len()),
                Err(unread) => {
                    self.left_out(&Place { path, offset: None }, &words(&unread));
                    Ok(())
                }
            },
            Kind::Maildir => self.maildir(source),
        }
    }

    fn file(
        &mut self,
        path: &Rc<Path>,
        folder: &str,
        mut file: File,
        len: u64,
    ) -> Result<(), Failure> {
        self.bar.set_length(len);
        self.bar.set_position(0);
        let flavour = self.flavour_of(path, &file)?;
        file.rewind().map_err(|error| said(path, &plain(&error)))?;
        self.mbox(path, folder, Mbox::new(file, flavour))
    }

    /// As the options say, or by evidence.
    fn flavour_of(&mut self, path: &Path, input: impl Read) -> Result<Flavour, Failure> {
        let given = match self.flavour {
            MboxFlavour::Auto => None,
            MboxFlavour::Mboxrd => Some(Flavour::Mboxrd),
            MboxFlavour::Mboxo => Some(Flavour::Mboxo),
            MboxFlavour::Mboxcl => Some(Flavour::Mboxcl),
            MboxFlavour::Mboxcl2 => Some(Flavour::Mboxcl2),
        };
        let (flavour, why) = match given {
            Some(flavour) => (flavour, "as the command line says".to_owned()),
            None => survey(input)
                .map_err(|error| said(path, &plain(&error)))?
                .flavour(),
        };
        self.tally
            .flavours
            .push((path.to_owned(), flavour.name(), why));
        Ok(flavour)
    }

    fn mbox<R: Read>(
        &mut self,
        path: &Rc<Path>,
        folder: &str,
        mut mbox: Mbox<R>,
    ) -> Result<(), Failure> {
        while !self.stopped {
            let place = |offset| Place {
                path: Rc::clone(path),
                offset,
            };
            match mbox.next_item() {
                Ok(None) => break,
                Ok(Some((offset, Item::Mail(mail)))) => {
                    self.offer(folder, mail, place(Some(offset)))?;
                }
                Ok(Some((_, Item::FolderData))) => self.tally.folder_data += 1,
                Ok(Some((offset, Item::TooLarge { bytes }))) => {
                    let why = format!("the message is too large: {bytes} bytes");
                    self.left_out(&place(Some(offset)), &why);
                }
                Err(error) => {
                    self.left_out(&place(None), &error.to_string());
                    break;
                }
            }
            self.bar.set_position(mbox.offset());
        }
        self.finish()
    }

    fn maildir(&mut self, source: &Source) -> Result<(), Failure> {
        let failed = |error: &io::Error| said(&source.path, &plain(error));
        let mut messages = Messages::list(&source.path).map_err(|error| failed(&error))?;
        let mut read = BTreeSet::new();
        for _ in 0..LISTINGS_MAX {
            let mut names = messages.names();
            names.retain(|name| !read.contains(name));
            if names.is_empty() {
                break;
            }
            for name in names {
                if self.stopped {
                    return self.finish();
                }
                let found = messages.read(&name);
                let place = Place {
                    path: Rc::from(messages.path_of(&name)),
                    offset: None,
                };
                match found {
                    Ok(mail) => {
                        let len = len_u64(mail.bytes.len());
                        self.offer(&source.folder, mail, place)?;
                        self.bar.inc_length(len);
                        self.bar.inc(len);
                    }
                    Err(Unread::Gone) => self.tally.gone += 1,
                    Err(unread) => self.left_out(&place, &words(&unread)),
                }
                read.insert(name);
            }
            messages.list_again().map_err(|error| failed(&error))?;
        }
        self.finish()
    }

    /// Sends a message, unless the user has it.
    fn offer(&mut self, folder: &str, mail: Mail, place: Place) -> Result<(), Failure> {
        let content = self.hash(&[&mail.bytes]);
        let equal = self.equal.entry(content).or_default();
        let number = *equal;
        *equal += 1;
        // Both spellings of INBOX are one, and accounts are found in any case.
        let user = self.user.to_ascii_lowercase();
        let id = self.hash(&[
            user.as_bytes(),
            folder.as_bytes(),
            &number.to_le_bytes(),
            &content.to_le_bytes(),
        ]);
        let len = len_u64(mail.bytes.len());
        if self.existing.binary_search(&id).is_ok() {
            self.tally.there += 1;
            return Ok(());
        }
        let Some(node) = &mut self.node else {
            self.tally.count(len);
            if let Some(taken) = &mut self.taken {
                taken.push(id);
            }
            return Ok(());
        };
        let request = AppendRequest {
            user: Bytes::copy_from_slice(self.user.as_bytes()),
            mailbox: MailboxRef::Name(Bytes::copy_from_slice(folder.as_bytes())),
            missing: Missing::Create,
            sender: usable(&mail.sender),
            flags: mail.flags,
            keywords: mail.keywords.into_iter().map(Bytes::from).collect(),
            internal_date: mail.date,
            dedupe_id: Some(Guid::new(id.to_le_bytes())),
            deadline_ms: 0,
            size_hint: Some(len),
        };
        let body = Bytes::from(mail.bytes);
        let offered = Offered {
            place,
            bytes: len,
            id,
        };
        let sent = self.appends.push(node.client_mut(), offered, request, body);
        sent.map_err(interrupted)?;
        self.settle()
    }

    fn hash(&self, parts: &[&[u8]]) -> u128 {
        let mut hasher = SipHasher24::new_with_key(&self.key);
        for part in parts {
            hasher.write(&len_u64(part.len()).to_le_bytes());
            hasher.write(part);
        }
        u128::from_le_bytes(hasher.finish128().as_bytes())
    }

    /// Counts what was answered.
    fn settle(&mut self) -> Result<(), Failure> {
        for answer in self.appends.take_done() {
            match answer {
                Ok((offered, reply)) => {
                    if let Some(taken) = &mut self.taken {
                        taken.push(offered.id);
                    }
                    if reply.status == Status::Ok {
                        self.tally.count(offered.bytes);
                    } else {
                        self.tally.there += 1;
                    }
                }
                Err(undone) => self.undone(undone)?,
            }
        }
        Ok(())
    }

    fn undone(&mut self, undone: Undone<Offered>) -> Result<(), Failure> {
        let Undone { sent, status, text } = undone;
        match status {
            Status::Lost | Status::Stopping => Err(Failure::Said(format!(
                "{text} ({status}); run it again, it goes on where it was"
            ))),
            // A mailbox has 64 keywords; the message is worth more than they.
            Status::Invalid if !sent.request.keywords.is_empty() => {
                self.tally.without_keywords += 1;
                let mut request = sent.request;
                request.keywords.clear();
                let Some(node) = &mut self.node else {
                    return Ok(());
                };
                self.appends
                    .push(node.client_mut(), sent.tag, request, sent.body)
                    .map_err(interrupted)
            }
            Status::NoUser | Status::Unsupported => {
                if !self.stopped {
                    self.left_out(&sent.tag.place, &format!("{text} ({status})"));
                }
                self.stopped = true;
                Ok(())
            }
            status => {
                let hint = match status.verdict() {
                    Verdict::Later => "; run it again later",
                    Verdict::Done | Verdict::Never => "",
                };
                self.left_out(&sent.tag.place, &format!("{text} ({status}){hint}"));
                Ok(())
            }
        }
    }

    /// Waits for all answers.
    fn finish(&mut self) -> Result<(), Failure> {
        loop {
            if let Some(node) = &mut self.node {
                self.appends
                    .finish(node.client_mut())
                    .map_err(interrupted)?;
            }
            let before = self.tally.without_keywords;
            self.settle()?;
            if self.tally.without_keywords == before {
                return Ok(());
            }
        }
    }

    fn left_out(&mut self, place: &Place, why: &str) {
        self.tally.left_out += 1;
        if self.tally.left_out > NAMED_MAX {
            return;
        }
        let path = place.path.display();
        let line = match place.offset {
            Some(offset) => format!("ringpost: {path}, byte {offset}: left out: {why}"),
            None => format!("ringpost: {path}: left out: {why}"),
        };
        self.bar
            .suspend(|| drop(writeln!(io::stderr(), "{}", escaped(line.as_bytes()))));
    }
}

/// A sender that the protocol takes.
fn usable(sender: &[u8]) -> Bytes {
    if sender.len() > ringpost_netproto::limits::ADDRESS_BYTES_MAX {
        Bytes::new()
    } else {
        Bytes::copy_from_slice(sender)
    }
}

fn words(unread: &Unread) -> String {
    match unread {
        Unread::Gone => "it was removed".to_owned(),
        Unread::NotAFile => "it is not a file, and no symbolic link is followed".to_owned(),
        Unread::TooLarge(bytes) => format!("the message is too large: {bytes} bytes"),
        Unread::Io(error) => plain(error),
    }
}

fn said(path: &Path, why: &str) -> Failure {
    Failure::Said(format!("{}: {why}", path.display()))
}

/// The connection is gone in the middle.
#[expect(clippy::needless_pass_by_value, reason = "it is given to map_err")]
fn interrupted(error: ClientError) -> Failure {
    Failure::Said(format!("{error}; run it again, it goes on where it was"))
}

fn len_u64(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// Where standard input is named.
fn stdin_path() -> PathBuf {
    PathBuf::from("standard input")
}
