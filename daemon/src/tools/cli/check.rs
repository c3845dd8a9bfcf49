//! `check`: every checksum of a data directory, segment against index, the log's chain. Offline: it
//! holds the store's lock meanwhile, so that no daemon starts on what it reads.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use ringpost_engine::check::{DirTree, Level, Progress, Report, Severity, check_at};
use serde_json::json;

use super::node::data_dir;
use super::options::{Depth, Global};
use super::show::json;
use super::{Failure, Form, Output};
use crate::client::plain;
use crate::exit::Code;

/// What makes a directory a data directory (storage.md 2.1).
const STORE: &str = "STORE";

/// What a running daemon holds locked; its process id is in it.
const LOCK: &str = "LOCK";

/// Bytes of a process id as text, and more.
const PID_BYTES_MAX: u64 = 16;

/// Checks the data directory that the options name.
pub fn check(global: &Global, depth: Depth, output: &mut Output) -> Result<Code, Failure> {
    if global.to.is_some() {
        return Err(Failure::Misused(
            "check reads files: it takes --data DIR, not --to".to_owned(),
        ));
    }
    let data = data_dir(global);
    let lock = lock(&data, Hold::Shared, STOP_FIRST)?;
    let bar = Bar::new();
    let level = match depth {
        Depth::Structure => Level::Structure,
        Depth::Checksums => Level::Checksums,
        Depth::Full => Level::Full,
    };
    let tree = DirTree::new(&data);
    let report = check_at(&tree, level, &mut |progress| bar.show(progress));
    bar.end();
    drop(lock);
    say(&data, &report, output)?;
    Ok(if report.is_sound() {
        Code::Done
    } else {
        Code::Failed
    })
}

/// A bar on a terminal, nothing elsewhere.
pub(super) struct Bar(ProgressBar);

impl Bar {
    pub(super) fn new() -> Self {
        let bar = ProgressBar::new(0);
        let template = "{pos} of {len} parts {wide_bar} {msg} messages, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self(bar)
    }

    pub(super) fn show(&self, progress: Progress) {
        self.0.set_length(progress.of);
        self.0.set_position(progress.done);
        self.0.set_message(progress.messages.to_string());
    }

    pub(super) fn end(self) {
        self.0.finish_and_clear();
    }
}

/// What to do about whoever uses a directory that is to be checked or repaired.
pub(super) const STOP_FIRST: &str = "stop that first, or take a copy";

/// Who may work on the directory meanwhile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Hold {
    /// Whoever only reads.
    Shared,
    /// Nobody.
    Alone,
}

/// Two checks may run, a check and a daemon may not, a repair and anything else may not. A copy without
/// the lock's file is nobody's: it may be read, and who changes it makes the file.
pub(super) fn lock(data: &Path, hold: Hold, advice: &str) -> Result<Option<Flock<File>>, Failure> {
    let failed =
        |name: &str, why: &str| Failure::Said(format!("{}: {why}", data.join(name).display()));
    let store = std::fs::metadata(data.join(STORE)).map_err(|error| match error.kind() {
        ErrorKind::NotFound if data.join("log").is_dir() && data.join("p").is_dir() => {
            Failure::Said(format!(
                "{} has lost its {STORE} file, and nothing else has what is in it (the key of the \
                 users' directories): take it from a backup of this directory",
                data.display()
            ))
        }
        ErrorKind::NotFound => Failure::Said(format!(
            "{} is not a data directory of Ringpost: it has no {STORE} file",
            data.display()
        )),
        _ => failed(STORE, &plain(&error)),
    })?;
    let mut options = OpenOptions::new();
    options.read(true);
    if hold == Hold::Alone {
        // A copy has none; but a daemon that starts meanwhile would make one.
        options.write(true).create(true).mode(0o600);
    }
    let file = match options.open(data.join(LOCK)) {
        Ok(file) => {
            if hold == Hold::Alone {
                // The daemon's, also if root made it. Only root can say so, and need not for others.
                fchown(&file, Some(store.uid()), Some(store.gid())).ok();
            }
            file
        }
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(LOCK, &plain(&error))),
    };
    let how = match hold {
        Hold::Shared => FlockArg::LockSharedNonblock,
        Hold::Alone => FlockArg::LockExclusiveNonblock,
    };
    match Flock::lock(file, how) {
        Ok(lock) => Ok(Some(lock)),
        Err((file, Errno::EWOULDBLOCK)) => {
            // The number only helps to find the daemon; without it the sentence holds as well.
            let pid = pid_in(file);
            Err(Failure::Said(format!(
                "a daemon runs on {}, or somebody repairs or checks it (process {}); {advice}",
                data.display(),
                pid.map_or("unknown".into(), |pid| pid.to_string()),
            )))
        }
        Err((_, errno)) => Err(failed(LOCK, errno.desc())),
    }
}

fn pid_in(lock: File) -> Option<u32> {
    let mut pid = String::new();
    lock.take(PID_BYTES_MAX).read_to_string(&mut pid).ok()?;
    pid.trim().parse().ok()
}

/// The process that has a data directory open, if one has.
pub(super) fn daemon_of(data: &Path) -> Option<u32> {
    let file = OpenOptions::new().read(true).open(data.join(LOCK)).ok()?;
    let (file, _) = Flock::lock(file, FlockArg::LockSharedNonblock).err()?;
    pid_in(file)
}

fn say(data: &Path, report: &Report, output: &mut Output) -> Result<(), Failure> {
    if output.form == Form::Json {
        return json(
            output,
            &json!({
                "data": data.display().to_string(),
                "sound": report.is_sound(),
                "files": report.files,
                "users": report.users,
                "messages": report.messages,
                "bytes": report.bytes,
                "findings_left_off": report.findings_left_off,
                "findings": report.findings.iter().map(|finding| json!({
                    "severity": severity(finding.severity),
                    "problem": finding.corrupt.to_string(),
                    "advice": finding.advice(),
                })).collect::<Vec<_>>(),
                "damaged_messages": report.lost.iter().map(super::repair::message).collect::<Vec<_>>(),
            }),
        );
    }
    for finding in &report.findings {
        writeln!(output.writer, "{finding}")?;
    }
    for lost in &report.lost {
        writeln!(output.writer, "damaged message: {lost}")?;
    }
    if report.findings_left_off > 0 {
        writeln!(
            output.writer,
            "and {} more findings",
            report.findings_left_off
        )?;
    }
    let verdict = if report.is_sound() {
        "no damage"
    } else {
        "DAMAGED"
    };
    writeln!(
        output.writer,
        "{}: {verdict}; {} users, {} messages, {} bytes, {} files",
        data.display(),
        report.users,
        report.messages,
        report.bytes,
        report.files,
    )?;
    Ok(())
}

fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Expected => "expected",
        Severity::Minor => "minor",
        Severity::Damage => "damage",
    }
}
