//! One user out of a backup, into a node that runs: what its mailboxes lack, with flags, keywords, date
//! and guid. What is there stays as it is, so that a restore that was cut off is done again.
//!
//! With a moment the backup is taken to it with the node's log (`ringpost_engine::offline`), which is read
//! beside the node as a backup does, and held meanwhile.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use ringpost_engine::backup::LiveTree;
use ringpost_engine::check::DirTree;
use ringpost_engine::offline::{Offline, OfflineUser};
use ringpost_engine::request::{ListEntry, MailboxStatus, More};
use ringpost_netproto::frame::Status;
use ringpost_netproto::limits::LIST_ENTRIES_MAX;
use ringpost_netproto::message::append::{AppendRequest, Missing};
use ringpost_netproto::message::{MailboxRef, escaped};
use serde_json::json;

use super::moment;
use crate::client::{Deadline, pause};
use crate::exit::Code;
use crate::tools::cli::backup::{Source, refuse_incomplete, user_of};
use crate::tools::cli::check::Bar;
use crate::tools::cli::node::{Node, bytes, refused};
use crate::tools::cli::options::Global;
use crate::tools::cli::show::json as print_json;
use crate::tools::cli::{Failure, Form, Output};

/// So long a message is offered to a node that is busy.
const BUSY: Duration = Duration::from_mins(1);

/// Counts of one mailbox.
#[derive(Clone, Copy, Default)]
struct Counts {
    restored: u64,
    there: u64,
    damaged: u64,
    refused: u64,
}

/// Whose mail, and into which mailboxes.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Canonical name.
    pub user: &'a OsStr,
    /// Below it instead of where it was.
    pub folder: Option<&'a OsStr>,
    /// As it was then instead of when the backup was made.
    pub at: Option<&'a str>,
}

/// Puts the mail of a user in the backup `from` that the node lacks into the mailboxes where it was, or
/// into mailboxes of these names below the folder that is wanted.
pub fn user(
    global: &Global,
    from: &Path,
    wanted: Wanted<'_>,
    output: &mut Output,
) -> Result<Code, Failure> {
    let Wanted { user, folder, at } = wanted;
    refuse_incomplete(from)?;
    refuse_others(from, user)?;
    let at = at
        .map(|at| moment::parse(at, Timestamp::now(), &TimeZone::system()))
        .transpose()?;
    if let Some(at) = at {
        moment::refuse_younger(from, at)?;
    }
    // Nobody reads for minutes to be told that no node runs.
    drop(Node::connect(global)?);
    let mut held = at.map(|_| Source::open(global)).transpose()?;
    let live = held.as_ref().map(|source| LiveTree::new(source.data()));
    let tree = DirTree::new(from);
    // The node holds its files only as long as it hears of us.
    let mut lost = None;
    let mut tick = |bar: &Bar, progress| {
        bar.show(progress);
        if let Some(source) = &mut held
            && let Err(failure) = source.tick()
        {
            lost.get_or_insert(failure);
        }
    };
    let bar = Bar::new();
    let offline = Offline::open(&tree, &mut |progress| tick(&bar, progress));
    bar.end();
    let offline = offline.map_err(|error| said(from, &error))?;
    let found = match (&live, at) {
        (Some(live), Some(at)) => {
            let bar = Bar::new();
            let found = offline.user_at(user.as_bytes(), (live, at), &mut |progress| {
                tick(&bar, progress);
            });
            bar.end();
            found.map_err(|error| said(from, &error))?
        }
        _ => offline
            .user(user.as_bytes())
            .map_err(|error| said(from, &error))?,
    };
    if let Some(failure) = lost {
        return Err(failure);
    }
    // Only now: a node ends a connection that says nothing for minutes.
    let mut node = Node::connect(global)?;
    let left_out = Restore {
        node: &mut node,
        found: &found,
        user,
        bar: &ProgressBar::new(0),
        held: held.as_mut(),
    }
    .all(folder, output)?;
    if let Some(source) = held {
        source.let_go()?;
    }
    let whole = left_out == 0 && offline.damages().is_empty();
    Ok(if whole { Code::Done } else { Code::Failed })
}

/// Refuses a backup that is another user's alone.
fn refuse_others(from: &Path, user: &OsStr) -> Result<(), Failure> {
    match user_of(from) {
        Some(whose) if *whose != *user.to_string_lossy() => Err(Failure::Said(format!(
            "{} is a backup of {whose} alone: nothing of {} is in it",
            from.display(),
            user.display()
        ))),
        _ => Ok(()),
    }
}

fn said(from: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::Said(format!("{}: {error}", from.display()))
}

fn say(name: &[u8], counts: Counts, output: &mut Output) -> Result<(), Failure> {
    let name = ringpost_netproto::message::printable(name);
    let Counts {
        restored,
        there,
        damaged,
        refused,
    } = counts;
    if output.form == Form::Json {
        return print_json(
            output,
            &json!({
                "mailbox": name,
                "restored": restored,
                "there_already": there,
                "damaged": damaged,
                "refused": refused,
            }),
        );
    }
    write!(
        output.writer,
        "{name}: {restored} restored, {there} there already"
    )?;
    if damaged > 0 {
        write!(output.writer, ", {damaged} DAMAGED in the backup")?;
    }
    if refused > 0 {
        write!(output.writer, ", {refused} REFUSED by the node")?;
    }
    writeln!(output.writer)?;
    Ok(())
}

struct Restore<'a> {
    node: &'a mut Node,
    found: &'a OfflineUser<'a>,
    user: &'a OsStr,
    bar: &'a ProgressBar,
    /// The log that is read.
    held: Option<&'a mut Source>,
}

impl Restore<'_> {
    /// Every mailbox; how many messages are not where they should be now.
    fn all(&mut self, folder: Option<&OsStr>, output: &mut Output) -> Result<u64, Failure> {
        let mailboxes = self.found.mailboxes();
        let count = mailboxes.iter().map(|m| u64::from(m.messages_count)).sum();
        self.bar.set_length(count);
        let template = "{pos} of {len} messages {wide_bar} {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
        let mut left_out = 0;
        for mailbox in &mailboxes {
            let name = match folder {
                Some(folder) => [folder.as_bytes(), b"/", mailbox.name.as_bytes()].concat(),
                None => mailbox.name.clone().into_bytes(),
            };
            let counts = self.mailbox(mailbox, &Bytes::from(name.clone()))?;
            left_out += counts.damaged + counts.refused;
            say(&name, counts, output)?;
        }
        self.bar.finish_and_clear();
        Ok(left_out)
    }

    fn mailbox(&mut self, mailbox: &MailboxStatus, name: &Bytes) -> Result<Counts, Failure> {
        let to = MailboxRef::Name(name.clone());
        let mut there = self.node.guids_in(self.user, &to)?;
        let mut counts = Counts::default();
        let mut after = 0;
        loop {
            let page = self
                .found
                .list(mailbox.mailbox, after, LIST_ENTRIES_MAX)
                .map_err(|error| Failure::Said(error.to_string()))?;
            for entry in &page.entries {
                after = entry.uid.value();
                self.bar.inc(1);
                if let Some(held) = &mut self.held {
                    held.tick()?;
                }
                if there.insert(entry.guid.bytes()) {
                    self.message(mailbox, &to, entry, &mut counts)?;
                } else {
                    counts.there += 1;
                }
            }
            if page.more == More::No || page.entries.is_empty() {
                return Ok(counts);
            }
        }
    }

    fn message(
        &mut self,
        mailbox: &MailboxStatus,
        to: &MailboxRef,
        entry: &ListEntry,
        counts: &mut Counts,
    ) -> Result<(), Failure> {
        let mut message = Vec::new();
        let fetched = self
            .found
            .fetch(mailbox.mailbox, entry.uid, &mut |_, data| {
                message.extend_from_slice(&data);
                true
            });
        if let Err(error) = fetched {
            counts.damaged += 1;
            left_out(mailbox, entry, &error);
            return Ok(());
        }
        let is_set = |bit: &usize| entry.keywords >> bit & 1 == 1;
        let keywords = mailbox.keywords.iter().enumerate();
        let keywords = keywords.filter(|(bit, _)| is_set(bit));
        let mut request = AppendRequest {
            user: bytes(self.user),
            mailbox: to.clone(),
            missing: Missing::Create,
            sender: Bytes::new(),
            flags: entry.flags,
            keywords: keywords
                .map(|(_, word)| Bytes::copy_from_slice(word.as_bytes()))
                .collect(),
            internal_date: Some(entry.internal_date),
            dedupe_id: Some(entry.guid),
            deadline_ms: 0,
            size_hint: u64::try_from(message.len()).ok(),
        };
        let message = Bytes::from(message);
        let patience = Deadline::after(BUSY);
        loop {
            match self.node.append(&request, &message) {
                Ok(Status::OkDuplicate) => counts.there += 1,
                Ok(_) => counts.restored += 1,
                // A mailbox has 64 keywords; the message is worth more than they.
                Err(error) if error.status() == Status::Invalid && !request.keywords.is_empty() => {
                    request.keywords.clear();
                    continue;
                }
                Err(error) if error.status() == Status::Busy && pause(patience).is_ok() => continue,
                Err(error) if [Status::TooBig, Status::Invalid].contains(&error.status()) => {
                    counts.refused += 1;
                    left_out(mailbox, entry, &error);
                }
                Err(error) => return Err(refused(&error, self.user, Some(to))),
            }
            break;
        }
        Ok(())
    }
}

/// Says which message is not restored, and why.
fn left_out(mailbox: &MailboxStatus, entry: &ListEntry, why: &dyn std::fmt::Display) {
    let uid = entry.uid.value();
    let line = format!("ringpost: {}, uid {uid}: left out: {why}", mailbox.name);
    // Whoever closed standard error does not want to know.
    drop(writeln!(std::io::stderr(), "{}", escaped(line.as_bytes())));
}

/// Guids of messages.
pub(in crate::tools::cli) type Guids = BTreeSet<[u8; 16]>;
