//! `export`: a user's mail as one mboxrd file on standard output.
//!
//! A message is written when all of it came and its checksum held, so that a damaged one is left
//! out, named on standard error, and nothing else is missing. One message is in memory at a time.

use std::ffi::OsStr;
use std::io::Write as _;

use indicatif::{ProgressBar, ProgressStyle};
use ringpost_engine::limits::STORED_BYTES_MAX;
use ringpost_engine::mbox::{EXPORT_END, export_from_line};
use ringpost_engine::prepare::{PrepareOptions, Preparer};
use ringpost_netproto::frame::Status;
use ringpost_netproto::id::Uid;
use ringpost_netproto::message::mailbox::MailboxStatus;
use ringpost_netproto::message::{MailboxRef, printable};

use super::node::{FetchError, Mail, bytes, name, pages};
use super::{Failure, Output};
use crate::client::ClientError;
use crate::exit::Code;

/// Exports one mailbox, or all of them in the order of their ids. `Code::Failed` if messages were
/// left out.
pub fn export(
    mail: &mut dyn Mail,
    user: &OsStr,
    folder: Option<&OsStr>,
    output: &mut Output,
) -> Result<Code, Failure> {
    let mut mailboxes = mail.mailboxes(user)?;
    if let Some(folder) = folder {
        let wanted = bytes(folder);
        mailboxes.retain(|mailbox| is_named(mailbox, &wanted));
        if mailboxes.is_empty() {
            let (user, folder) = (name(user), name(folder));
            return Err(Failure::Said(format!("{user} has no mailbox {folder:?}")));
        }
    }
    let count = mailboxes
        .iter()
        .map(|mailbox| u64::from(mailbox.messages_count))
        .sum();
    let mut export = Export {
        user,
        progress: progress(count),
        left_off_count: 0,
        output,
    };
    for mailbox in &mailboxes {
        export.mailbox(mail, mailbox)?;
    }
    export.progress.finish_and_clear();
    Ok(if export.left_off_count == 0 {
        Code::Done
    } else {
        Code::Failed
    })
}

/// INBOX in any case (RFC 9051 5.1), other names as they are.
fn is_named(mailbox: &MailboxStatus, wanted: &[u8]) -> bool {
    mailbox.name == wanted
        || mailbox.name.eq_ignore_ascii_case(b"INBOX") && wanted.eq_ignore_ascii_case(b"INBOX")
}

/// On standard error, and only if that is a terminal: indicatif sees to it.
fn progress(count: u64) -> ProgressBar {
    let bar = ProgressBar::new(count);
    let template = "{pos} of {len} messages {wide_bar} {per_sec}, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

struct Export<'a> {
    user: &'a OsStr,
    progress: ProgressBar,
    left_off_count: u64,
    output: &'a mut Output,
}

impl Export<'_> {
    fn mailbox(&mut self, mail: &mut dyn Mail, mailbox: &MailboxStatus) -> Result<(), Failure> {
        let by_id = MailboxRef::Id(mailbox.mailbox);
        let user = self.user;
        pages(mail, user, &by_id, |mail, page| {
            for entry in &page.entries {
                self.message(mail, mailbox, entry.uid)?;
                self.progress.inc(1);
            }
            Ok(())
        })
    }

    fn message(
        &mut self,
        mail: &mut dyn Mail,
        mailbox: &MailboxStatus,
        uid: Uid,
    ) -> Result<(), Failure> {
        let by_id = MailboxRef::Id(mailbox.mailbox);
        let mut preparer = preparer();
        let fetched = mail.fetch(self.user, &by_id, uid, &mut |_, data| {
            preparer
                .push(&data)
                .map(drop)
                .map_err(|error| Failure::Said(error.to_string()))
        });
        let entry = match fetched {
            Ok(entry) => entry,
            Err(FetchError::Client(ClientError::Failed {
                status: Status::NoMessage,
                ..
            })) => {
                return Ok(()); // expunged since the page was made
            }
            Err(FetchError::Client(ClientError::Failed { status, text }))
                if is_of_message(status) =>
            {
                self.left_off_count += 1;
                let (user, folder) = (name(self.user), printable(&mailbox.name));
                let line =
                    format!("ringpost: {user}, {folder}, uid {uid} is left out: {text} ({status})");
                self.progress
                    .suspend(|| drop(writeln!(std::io::stderr(), "{line}")));
                return Ok(());
            }
            Err(other) => return Err(other.into_failure(self.user, &by_id)),
        };
        let stored = preparer.finish().body.stored;
        let writer = &mut self.output.writer;
        writer.write_all(&export_from_line(&stored, entry.internal_date))?;
        writer.write_all(&stored)?;
        writer.write_all(EXPORT_END)?;
        Ok(())
    }
}

/// A failure that concerns one message; the next may well be whole.
fn is_of_message(status: Status) -> bool {
    matches!(status, Status::Corrupt | Status::Internal)
}

/// Makes the stored form again: quoted, LF where all ends were CRLF.
fn preparer() -> Preparer {
    Preparer::new(PrepareOptions {
        message_bytes_max: STORED_BYTES_MAX / 2,
        return_path: None,
        content_key: [0; 16],
    })
    .without_content_hash()
}
