//! What an import tells at its end.

use std::io::Write as _;
use std::path::PathBuf;

use ringpost_netproto::message::printable;
use serde_json::json;

use super::super::show::json;
use super::super::{Failure, Form, Output};

/// What became of one user's messages.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) messages: u64,
    pub(super) bytes: u64,
    /// The store had them, from an earlier run.
    pub(super) there: u64,
    /// Named on standard error.
    pub(super) left_out: u64,
    /// Removed by their owner before they were read.
    pub(super) gone: u64,
    /// Imported without keywords, since the mailbox has too many or has others.
    pub(super) without_keywords: u64,
    /// Pseudo messages of other servers.
    pub(super) folder_data: u64,
    /// File, flavour, why.
    pub(super) flavours: Vec<(PathBuf, &'static str, String)>,
}

impl Tally {
    pub(super) fn count(&mut self, bytes: u64) {
        self.messages += 1;
        self.bytes += bytes;
    }

    /// Whether nothing was left out.
    pub(super) fn is_whole(&self) -> bool {
        self.left_out == 0
    }

    fn sentence(&self, dry_run: bool) -> String {
        let done = if dry_run { "to import" } else { "imported" };
        let mut text = format!("{} messages ({} bytes) {done}", self.messages, self.bytes);
        for (count, what) in [
            (self.there, "already there"),
            (self.left_out, "left out"),
            (self.gone, "removed meanwhile"),
            (self.without_keywords, "without their keywords"),
            (self.folder_data, "data of a folder, no mail"),
        ] {
            if count > 0 {
                text = format!("{text}, {count} {what}");
            }
        }
        text
    }

    fn value(&self, user: Option<&str>, dry_run: bool) -> serde_json::Value {
        let flavours: Vec<_> = self
            .flavours
            .iter()
            .map(|(path, flavour, why)| {
                json!({ "path": path.to_string_lossy(), "flavour": flavour, "why": why })
            })
            .collect();
        json!({
            "user": user,
            "dry_run": dry_run,
            "imported": self.messages,
            "bytes": self.bytes,
            "already_there": self.there,
            "left_out": self.left_out,
            "removed_meanwhile": self.gone,
            "without_keywords": self.without_keywords,
            "folder_data": self.folder_data,
            "mboxes": flavours,
        })
    }
}

/// The report of one user.
pub(super) fn user(
    user: &str,
    tally: &Tally,
    dry_run: bool,
    output: &mut Output,
) -> Result<(), Failure> {
    if output.form == Form::Json {
        return json(output, &tally.value(Some(user), dry_run));
    }
    let user = printable(user.as_bytes());
    writeln!(output.writer, "{user}: {}", tally.sentence(dry_run))?;
    for (path, flavour, why) in &tally.flavours {
        let path = printable(path.to_string_lossy().as_bytes());
        writeln!(output.writer, "  {path}: {flavour} ({why})")?;
    }
    output.writer.flush()?;
    Ok(())
}

/// The sum of a tree.
pub(super) fn total(all: &[Tally], dry_run: bool, output: &mut Output) -> Result<(), Failure> {
    let mut sum = Tally::default();
    for one in all {
        sum.messages += one.messages;
        sum.bytes += one.bytes;
        sum.there += one.there;
        sum.left_out += one.left_out;
        sum.gone += one.gone;
        sum.without_keywords += one.without_keywords;
        sum.folder_data += one.folder_data;
    }
    if output.form == Form::Json {
        return json(output, &sum.value(None, dry_run));
    }
    let users = all.len();
    writeln!(output.writer, "{users} users: {}", sum.sentence(dry_run))?;
    Ok(())
}
