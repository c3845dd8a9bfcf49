//! `restore`: a node's data directory out of a backup, or one user's mail into a node that runs.

use std::io::Write as _;
use std::path::Path;

use ringpost_engine::backup::{Copier, Next};
use ringpost_engine::check::DirTree;
use serde_json::json;

use super::backup::{CopyBar, DirTarget, refuse_incomplete, user_of, verified};
use super::node::data_dir;
use super::options::{Depth, Global};
use super::show::json as print_json;
use super::{Failure, Form, Output};
use crate::exit::Code;

mod moment;
pub mod user;

pub use user::{Wanted, user};

/// Copies a backup into the data directory that the options name, which is missing or empty, and checks
/// it. What a daemon finds there is what a crash at the time of the backup would have left.
pub fn node(
    global: &Global,
    from: &Path,
    verify: Depth,
    output: &mut Output,
) -> Result<Code, Failure> {
    if global.to.is_some() {
        return Err(Failure::Misused(
            "a node is restored into files: restore takes --data DIR, not --to".to_owned(),
        ));
    }
    refuse_incomplete(from)?;
    if let Some(user) = user_of(from) {
        return Err(Failure::Said(format!(
            "{} is a backup of {user} alone, not of a node; put it into a node that runs with `ringpost \
             restore {user} --from {}`",
            from.display(),
            from.display()
        )));
    }
    let data = data_dir(global);
    let mut target = DirTarget::begin(&data)?;
    let report = match copied(from, &data, verify, &mut target) {
        Ok(report) => report,
        Err(failure) => {
            target.remove();
            return Err(failure);
        }
    };
    for finding in &report.findings {
        if output.form != Form::Json {
            writeln!(output.writer, "{finding}")?;
        }
    }
    if output.form == Form::Json {
        print_json(
            output,
            &json!({
                "data": data.display().to_string(),
                "sound": report.is_sound(),
                "users": report.users,
                "messages": report.messages,
                "bytes": report.bytes,
            }),
        )?;
    } else {
        let verdict = if report.is_sound() {
            "restored; ringpostd can be started on it"
        } else {
            "restored and DAMAGED: run `ringpost repair` on it"
        };
        writeln!(
            output.writer,
            "{}: {verdict}; {} users, {} messages, {} bytes",
            data.display(),
            report.users,
            report.messages,
            report.bytes,
        )?;
    }
    Ok(if report.is_sound() {
        Code::Done
    } else {
        Code::Failed
    })
}

fn copied(
    from: &Path,
    data: &Path,
    verify: Depth,
    target: &mut DirTarget,
) -> Result<ringpost_engine::check::Report, Failure> {
    let tree = DirTree::new(from);
    let mut copier = Copier::new(&tree, target)?;
    let bar = CopyBar::new();
    loop {
        match copier.step(target)? {
            Next::More => {}
            Next::Mark => copier.mark(&[]),
            Next::Done(_) => break,
        }
        bar.show(copier.progress());
    }
    bar.end();
    target.sync()?;
    let report = verified(data, verify);
    target.unmark()?;
    Ok(report)
}
