//! `repair`: puts a data directory in order that no daemon uses, or says what that would be.

use std::io::Write as _;

use ringpost_engine::check::{DirTree, Lost};
use ringpost_engine::error::OpenError;
use ringpost_engine::io::Helpers;
use ringpost_engine::io::ring::{UringIo, UringOptions};
use ringpost_engine::repair::{RepairError, Repaired};
use serde_json::{Value, json};

use super::check::{Bar, Hold, STOP_FIRST, lock};
use super::node::data_dir;
use super::options::Global;
use super::show::json as print_json;
use super::{Failure, Form, Output};
use crate::clock;
use crate::exit::Code;

/// Whether anything is changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Says what would be done.
    Plan,
    /// Does it.
    Do,
}

impl From<RepairError> for Failure {
    fn from(error: RepairError) -> Self {
        Self::Said(error.to_string())
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        Self::Said(error.to_string())
    }
}

/// Repairs the data directory that the options name.
pub fn repair(global: &Global, mode: Mode, output: &mut Output) -> Result<Code, Failure> {
    if global.to.is_some() {
        return Err(Failure::Misused(
            "repair works on files: it takes --data DIR, not --to".to_owned(),
        ));
    }
    let data = data_dir(global);
    let hold = match mode {
        Mode::Plan => Hold::Shared,
        Mode::Do => Hold::Alone,
    };
    let lock = lock(&data, hold, STOP_FIRST)?;
    let bar = Bar::new();
    let tree = DirTree::new(&data);
    let now = clock::wall();
    let mut progress = |progress| bar.show(progress);
    let repaired = match mode {
        Mode::Plan => ringpost_engine::repair::plan(&tree, now, &mut progress),
        Mode::Do => {
            let helpers = Helpers::start(&data).map_err(OpenError::from)?;
            let io = UringIo::new(&UringOptions::default(), &helpers)?;
            ringpost_engine::repair::repair(&tree, io, now, &mut progress)
        }
    };
    bar.end();
    drop(lock);
    let repaired = repaired?;
    say(&data.display().to_string(), mode, &repaired, output)?;
    let fine = match mode {
        Mode::Plan => repaired.is_nothing(),
        Mode::Do => repaired.lost.is_empty(),
    };
    Ok(if fine { Code::Done } else { Code::Failed })
}

/// A damaged message as JSON.
pub(super) fn message(lost: &Lost) -> Value {
    json!({
        "user": lost.name.as_ref().map(|name| String::from_utf8_lossy(name)),
        "directory": lost.directory(),
        "mailbox": lost.mailbox.value(),
        "uid": lost.uid,
        "guid": lost.guid.to_string(),
        "file": lost.file,
        "offset": lost.offset,
        "reason": lost.reason.to_string(),
    })
}

fn say(data: &str, mode: Mode, repaired: &Repaired, output: &mut Output) -> Result<(), Failure> {
    if output.form == Form::Json {
        return print_json(
            output,
            &json!({
                "data": data,
                "dry_run": mode == Mode::Plan,
                "users": repaired.users,
                "messages_taken_over": repaired.taken,
                "actions": repaired.actions.iter().map(|action| json!({
                    "file": action.file,
                    "what": action.what,
                })).collect::<Vec<_>>(),
                "actions_left_off": repaired.actions_left_off,
                "lost": repaired.lost.iter().map(|lost| {
                    let mut value = message(&lost.lost);
                    if let Some(value) = value.as_object_mut() {
                        value.insert("kept".to_owned(), json!(lost.kept));
                    }
                    value
                }).collect::<Vec<_>>(),
                "lost_left_off": repaired.lost_left_off,
            }),
        );
    }
    for action in &repaired.actions {
        writeln!(output.writer, "{action}")?;
    }
    if repaired.actions_left_off > 0 {
        writeln!(output.writer, "and {} more", repaired.actions_left_off)?;
    }
    for lost in &repaired.lost {
        writeln!(output.writer, "LOST: {lost}")?;
    }
    if repaired.lost_left_off > 0 {
        writeln!(output.writer, "LOST: and {} more", repaired.lost_left_off)?;
    }
    if repaired.is_nothing() {
        writeln!(output.writer, "{data}: nothing to repair")?;
        return Ok(());
    }
    let verdict = match mode {
        Mode::Plan => "nothing was changed; a repair would do this",
        Mode::Do => "repaired",
    };
    let lost = u64::try_from(repaired.lost.len()).unwrap_or(u64::MAX) + repaired.lost_left_off;
    writeln!(
        output.writer,
        "{data}: {verdict}; {} indexes made anew, {} messages taken over from segments, {lost} lost",
        repaired.users, repaired.taken,
    )?;
    Ok(())
}
