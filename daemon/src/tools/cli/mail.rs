//! `folders`, `list`, `show`: what is in a mailbox.

use std::ffi::OsStr;
use std::io::Write as _;

use ringpost_engine::header_cache::{self, Field, Fields};
use ringpost_netproto::id::Uid;
use ringpost_netproto::message::MailboxRef;
use ringpost_netproto::message::list::ListEntry;
use ringpost_netproto::message::mailbox::MailboxStatus;
use ringpost_netproto::message::printable;
use serde_json::json;

use super::node::{Mail, bytes, pages};
use super::show::{date, json, text};
use super::{Failure, Form, Output};

/// Characters of a sender on a terminal.
const FROM_WIDTH: usize = 32;

/// Characters of a subject on a terminal.
const SUBJECT_WIDTH: usize = 60;

/// The mailboxes of a user.
pub fn folders(mail: &mut dyn Mail, user: &OsStr, output: &mut Output) -> Result<(), Failure> {
    for mailbox in mail.mailboxes(user)? {
        folder(&mailbox, output)?;
    }
    Ok(())
}

fn folder(mailbox: &MailboxStatus, output: &mut Output) -> Result<(), Failure> {
    let name = printable(&mailbox.name);
    let (messages, bytes) = (mailbox.messages_count, mailbox.bytes);
    match output.form {
        Form::Json => json(
            output,
            &json!({
                "name": name,
                "id": mailbox.mailbox.value(),
                "messages": messages,
                "bytes": bytes,
                "uidvalidity": mailbox.uidvalidity.value(),
                "uidnext": mailbox.uidnext,
                "highest_modseq": mailbox.highest_modseq,
            }),
        )?,
        Form::Terminal => writeln!(output.writer, "{messages:>8}  {bytes:>12}  {name}")?,
        Form::Tabs => writeln!(output.writer, "{messages}\t{bytes}\t{name}")?,
    }
    Ok(())
}

/// The messages of a mailbox, oldest first.
pub fn list(
    mail: &mut dyn Mail,
    (user, folder): (&OsStr, &OsStr),
    output: &mut Output,
) -> Result<(), Failure> {
    pages(mail, user, &MailboxRef::Name(bytes(folder)), |_, page| {
        page.entries
            .iter()
            .try_for_each(|entry| message(entry, output))
    })
}

fn message(entry: &ListEntry, output: &mut Output) -> Result<(), Failure> {
    // A cache that cannot be read only leaves its columns empty: the message itself is whole.
    let fields = header_cache::decode(&entry.cache).unwrap_or_default();
    let at = date(entry.internal_date);
    let (uid, size) = (entry.uid.value(), entry.received_size);
    let value = |field, width| text(fields.bytes(field), width);
    match output.form {
        Form::Json => json(output, &message_json(entry, &fields))?,
        Form::Terminal => {
            let from = value(Field::From, Some(FROM_WIDTH));
            let subject = value(Field::Subject, Some(SUBJECT_WIDTH));
            writeln!(
                output.writer,
                "{uid:>8}  {at}  {size:>10}  {from:FROM_WIDTH$}  {subject}"
            )?;
        }
        Form::Tabs => {
            let (from, subject) = (value(Field::From, None), value(Field::Subject, None));
            writeln!(output.writer, "{uid}\t{at}\t{size}\t{from}\t{subject}")?;
        }
    }
    Ok(())
}

fn message_json(entry: &ListEntry, fields: &Fields<'_>) -> serde_json::Value {
    let field = |field| fields.value(field).map(|value| printable(value.bytes));
    json!({
        "uid": entry.uid.value(),
        "internal_date": date(entry.internal_date),
        "size": entry.received_size,
        "rfc822_size": entry.rfc822_size,
        "guid": entry.guid.to_string(),
        "modseq": entry.modseq.value(),
        "flags": entry.flags,
        "from": field(Field::From),
        "to": field(Field::To),
        "subject": field(Field::Subject),
        "date": field(Field::Date),
        "message_id": field(Field::MessageId),
        "in_reply_to": field(Field::InReplyTo),
    })
}

/// One message, byte for byte. If it turns out to be damaged, what was written is void and the
/// command fails.
pub fn show(
    mail: &mut dyn Mail,
    (user, folder): (&OsStr, &OsStr),
    uid: u32,
    output: &mut Output,
) -> Result<(), Failure> {
    let mailbox = MailboxRef::Name(bytes(folder));
    mail.fetch(user, &mailbox, Uid::new(uid), &mut |_, data| {
        output.writer.write_all(&data)?;
        Ok(())
    })
    .map(drop)
    .map_err(|error| error.into_failure(user, &mailbox))
}
