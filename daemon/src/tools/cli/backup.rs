//! `backup`: a copy of a whole data directory, or of it what is one user's, of a running node or of one
//! that is stopped.
//!
//! A running node is asked to hold its files ([`BackupRequest`]); then the files are copied here, beside
//! it, and not through it. The copy is a data directory itself: `check` and `export` work on it, and a
//! daemon that opens it finds what a crash would have left. It counts once `BACKUP` lies in it; until
//! then there is `INCOMPLETE` instead.

use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use ringpost_engine::backup::{BackupError, Copier, Copy, LiveTree, Next, Progress};
use ringpost_engine::check::{DirTree, Level, Report, check_at};
use ringpost_engine::format::store_file::StoreFile;
use ringpost_engine::position::Lsn;
use ringpost_engine::request::MonotonicNs;
use ringpost_netproto::frame::Status;
use ringpost_netproto::message::backup::{BackupRequest, fields};
use ringpost_netproto::message::report::ReportField;
use serde_json::{Value, json};

use super::check::{Bar, Hold, lock};
use super::node::{Node, data_dir};
use super::options::{Depth, Global};
use super::show::{date, json as print_json};
use super::{Failure, Form, Output};
use crate::client::{ClientError, plain};
use crate::clock;
use crate::exit::Code;

pub mod target;

pub(super) use target::DirTarget;

/// In a finished copy: what it is.
pub(super) const MANIFEST: &str = "BACKUP";

/// In [`MANIFEST`]: whose copy it is, if it is one user's.
const USER: &str = "user";

/// In a copy that is being made, or whose making was cut off.
pub(super) const MARKER: &str = "INCOMPLETE";

/// A node lets go of its files if it hears nothing for so long.
const LEASE_S: u32 = 120;

/// So often it hears something, ns.
const PROLONG_EVERY_NS: u64 = 10_000_000_000;

impl From<BackupError> for Failure {
    fn from(error: BackupError) -> Self {
        Self::Said(error.to_string())
    }
}

/// Where the files are, and who holds them still.
pub(super) enum Source {
    /// A running node, by the id of the backup.
    Node {
        node: Box<Node>,
        id: u64,
        data: PathBuf,
        prolonged: MonotonicNs,
        ends: Vec<Lsn>,
    },
    /// Nobody: no daemon runs, and none will as long as the lock is held.
    Nobody {
        data: PathBuf,
        _lock: Option<nix::fcntl::Flock<std::fs::File>>,
    },
}

impl Source {
    /// The running node that the options name; if none answers, the data directory.
    pub(super) fn open(global: &Global) -> Result<Self, Failure> {
        let why = match Node::connect(global) {
            Ok(node) => return Self::hold(node, global),
            Err(why) => why,
        };
        if global.to.is_some() {
            return Err(why);
        }
        let data = data_dir(global);
        let lock = lock(&data, Hold::Shared, "ask it with --to ADDRESS, or stop it")?;
        Ok(Self::Nobody { data, _lock: lock })
    }

    fn hold(mut node: Node, global: &Global) -> Result<Self, Failure> {
        let report = node.status()?;
        let named = report.iter().find(|field| field.name == "data_dir");
        let data = match (&global.data, named) {
            (Some(data), _) => data.clone(),
            (None, Some(field)) => PathBuf::from(&field.value),
            (None, None) => data_dir(global),
        };
        if !data.join("STORE").is_file() {
            return Err(Failure::Said(format!(
                "{} is not the node's data directory, or cannot be read by this user: a backup is made on \
                 the node's machine, as its user or as root",
                data.display()
            )));
        }
        refuse_other_store(&data, &node)?;
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes)
            .map_err(|error| Failure::Said(format!("no random number for the backup: {error}")))?;
        let id = u64::from_le_bytes(bytes).max(1);
        let mut source = Self::Node {
            node: Box::new(node),
            id,
            data,
            prolonged: clock::monotonic(),
            ends: Vec::new(),
        };
        source.prolong()?;
        Ok(source)
    }

    pub(super) fn data(&self) -> &Path {
        match self {
            Self::Node { data, .. } | Self::Nobody { data, .. } => data,
        }
    }

    /// Asks the node to hold on; it says where its logs end.
    fn prolong(&mut self) -> Result<(), Failure> {
        if let Self::Node {
            node,
            id,
            prolonged,
            ends,
            ..
        } = self
        {
            let request = BackupRequest::Hold {
                id: *id,
                lease_s: LEASE_S,
            };
            let report = node.backup(request).map_err(|error| not_held(&error))?;
            *ends = log_ends(&report);
            *prolonged = clock::monotonic();
        }
        Ok(())
    }

    /// The same, if it is time to.
    pub(super) fn tick(&mut self) -> Result<(), Failure> {
        match self {
            Self::Node { prolonged, .. }
                if clock::monotonic().since(*prolonged) > PROLONG_EVERY_NS =>
            {
                self.prolong()
            }
            _ => Ok(()),
        }
    }

    /// Where the logs end now; empty if they do not grow.
    pub(super) fn ends(&mut self) -> Result<Vec<Lsn>, Failure> {
        self.prolong()?;
        Ok(match self {
            Self::Node { ends, .. } => ends.clone(),
            Self::Nobody { .. } => Vec::new(),
        })
    }

    /// The copy is made. An error if it was not held to the end.
    pub(super) fn let_go(self) -> Result<(), Failure> {
        if let Self::Node { mut node, id, .. } = self {
            let ended = node.backup(BackupRequest::End { id });
            ended.map_err(|error| not_held(&error))?;
        }
        Ok(())
    }
}

/// What lies here may be another node's, under the same name as on the one that was asked.
fn refuse_other_store(data: &Path, node: &Node) -> Result<(), Failure> {
    let path = data.join("STORE");
    let bytes = std::fs::read(&path).map_err(|error| failed(&path, &error))?;
    let here = StoreFile::decode(&bytes)
        .map_err(|reason| Failure::Said(format!("{}: {reason}", path.display())))?;
    if here.store.bytes() == node.store_key() {
        return Ok(());
    }
    Err(Failure::Said(format!(
        "{} is not the data directory of the node that answered, but of another store: a backup is made on \
         the node's machine",
        data.display()
    )))
}

fn not_held(error: &ClientError) -> Failure {
    Failure::Said(match error.status() {
        Status::NoMessage => {
            "the node did not hold its files to the end (its log says why): the copy is \
                              not complete"
                .to_owned()
        }
        Status::Busy => "another backup runs on this node; try again when it is done".to_owned(),
        Status::NoUser => {
            "the node lets only root, its own user and trusted_uids make a backup".to_owned()
        }
        Status::DiskFull => {
            "the node's disk is too full to hold files for a backup; make room first".to_owned()
        }
        _ => error.to_string(),
    })
}

/// `log.N.end` of each log, by N.
fn log_ends(report: &[ReportField]) -> Vec<Lsn> {
    let mut ends: Vec<(usize, Lsn)> = report
        .iter()
        .filter_map(|field| {
            let number = field.name.strip_prefix(fields::LOG_PREFIX)?;
            let number = number.strip_suffix(fields::LOG_END)?.parse().ok()?;
            Some((number, Lsn::new(field.value.parse().ok()?)))
        })
        .collect();
    ends.sort_by_key(|(number, _)| *number);
    ends.into_iter().map(|(_, end)| end).collect()
}

/// Copies the node's whole data directory, or what is the user's of it, into `to` and checks the copy.
pub fn backup(
    global: &Global,
    to: &Path,
    (user, verify): (Option<&OsStr>, Depth),
    output: &mut Output,
) -> Result<Code, Failure> {
    let mut target = DirTarget::begin(to)?;
    match make(global, to, (user, verify), &mut target) {
        Ok(made) => {
            say(to, &made, output)?;
            Ok(if made.report.is_sound() {
                Code::Done
            } else {
                Code::Failed
            })
        }
        Err(failure) => {
            target.remove();
            Err(failure)
        }
    }
}

/// A copy that was made and checked.
struct Made<'a> {
    user: Option<&'a OsStr>,
    copy: Copy,
    report: Report,
    /// When it began and ended, ns of the wall clock.
    span: (u64, u64),
}

fn make<'a>(
    global: &Global,
    to: &Path,
    (user, verify): (Option<&'a OsStr>, Depth),
    target: &mut DirTarget,
) -> Result<Made<'a>, Failure> {
    let mut source = Source::open(global)?;
    let begun = clock::wall().value();
    let tree = LiveTree::new(source.data());
    let copy = copy(&tree, user, target, &mut source)?;
    source.let_go()?;
    let span = (begun, clock::wall().value());
    target.sync()?;
    let made = Made {
        user,
        copy,
        report: verified(to, verify),
        span,
    };
    // A copy of a damaged store is whole as a copy: all else can be had back from it.
    let mut manifest = manifest(&made);
    if let Some(manifest) = manifest.as_object_mut() {
        manifest.insert("verified".to_owned(), json!(level(verify)));
        manifest.insert("sound".to_owned(), json!(made.report.is_sound()));
    }
    target.finish(MANIFEST, format!("{manifest:#}\n").as_bytes())?;
    Ok(made)
}

/// Copies, prolongs the hold, shows how far it is.
fn copy(
    tree: &LiveTree,
    user: Option<&OsStr>,
    target: &mut DirTarget,
    source: &mut Source,
) -> Result<Copy, Failure> {
    let mut copier = match user {
        Some(user) => Copier::of_user(tree, target, user.as_bytes())?,
        None => Copier::new(tree, target)?,
    };
    let bar = CopyBar::new();
    loop {
        match copier.step(target)? {
            Next::More => source.tick()?,
            Next::Mark => copier.mark(&source.ends()?),
            Next::Done(copy) => {
                bar.end();
                return Ok(*copy);
            }
        }
        bar.show(copier.progress());
    }
}

/// What a check of a copy finds.
pub(super) fn verified(copy: &Path, depth: Depth) -> Report {
    let bar = Bar::new();
    let level = match depth {
        Depth::Structure => Level::Structure,
        Depth::Checksums => Level::Checksums,
        Depth::Full => Level::Full,
    };
    let report = check_at(&DirTree::new(copy), level, &mut |progress| {
        bar.show(progress);
    });
    bar.end();
    report
}

fn level(verify: Depth) -> &'static str {
    match verify {
        Depth::Structure => "structure",
        Depth::Checksums => "checksums",
        Depth::Full => "full",
    }
}

fn manifest(made: &Made<'_>) -> Value {
    let Made {
        user,
        copy,
        report,
        span,
    } = made;
    let at = |ns| date(ringpost_netproto::id::WallNs::new(ns));
    let mut manifest = json!({
        "format": "ringpost-backup 1",
        "version": env!("CARGO_PKG_VERSION"),
        "store": copy.store.store.to_string(),
        "node": copy.store.node.value(),
        "begun": at(span.0),
        "ended": at(span.1),
        "logs": copy.logs.iter().map(|log| json!({
            "log": log.log_id,
            "checkpoint": log.checkpoint_lsn.value(),
            "end": log.end.value(),
        })).collect::<Vec<_>>(),
        "files": copy.progress.files,
        "bytes": copy.progress.bytes,
        "users": report.users,
        "messages": report.messages,
    });
    if let (Some(user), Some(manifest)) = (user, manifest.as_object_mut()) {
        manifest.insert(USER.to_owned(), json!(user.to_string_lossy()));
    }
    manifest
}

fn say(to: &Path, made: &Made<'_>, output: &mut Output) -> Result<(), Failure> {
    let Made { copy, report, .. } = made;
    for finding in &report.findings {
        if output.form != Form::Json {
            writeln!(output.writer, "{finding}")?;
        }
    }
    let verdict = if report.is_sound() {
        "complete"
    } else {
        "DAMAGED, as its source is: see `ringpost check` and `ringpost repair`"
    };
    if output.form == Form::Json {
        let mut value = manifest(made);
        if let Some(value) = value.as_object_mut() {
            value.insert("backup".to_owned(), json!(to.display().to_string()));
            value.insert("sound".to_owned(), json!(report.is_sound()));
        }
        return print_json(output, &value);
    }
    let what = match made.user {
        Some(user) => format!("{} alone", user.display()),
        None => format!("{} users", report.users),
    };
    writeln!(
        output.writer,
        "{}: {verdict}; {what}, {} messages, {} files, {} bytes",
        to.display(),
        report.messages,
        copy.progress.files,
        copy.progress.bytes,
    )?;
    Ok(())
}

/// A bar on a terminal, nothing elsewhere.
pub(super) struct CopyBar(ProgressBar);

impl CopyBar {
    pub(super) fn new() -> Self {
        let bar = ProgressBar::new(0);
        let template = "{pos} of {len} parts copied {wide_bar} {msg}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self(bar)
    }

    pub(super) fn show(&self, progress: Progress) {
        self.0.set_length(progress.of);
        self.0.set_position(progress.done);
        let bytes = indicatif::HumanBytes(progress.bytes);
        self.0
            .set_message(format!("{} files, {bytes}", progress.files));
    }

    pub(super) fn end(self) {
        self.0.finish_and_clear();
    }
}

/// Whether a directory holds a copy that was not finished.
pub(super) fn refuse_incomplete(copy: &Path) -> Result<(), Failure> {
    if copy.join(MARKER).exists() {
        return Err(Failure::Said(format!(
            "{} is a copy that was not finished: it cannot be restored; use another one",
            copy.display()
        )));
    }
    if !copy.join("STORE").is_file() {
        return Err(Failure::Said(format!(
            "{} is no backup of a node: it has no STORE file",
            copy.display()
        )));
    }
    Ok(())
}

/// Whose a copy is, if it is one user's.
pub(super) fn user_of(copy: &Path) -> Option<String> {
    let text = std::fs::read(copy.join(MANIFEST)).ok()?;
    let manifest: Value = serde_json::from_slice(&text).ok()?;
    Some(manifest.get(USER)?.as_str()?.to_owned())
}

/// A sentence about a file of the tool's own.
pub(super) fn failed(path: &Path, error: &std::io::Error) -> Failure {
    Failure::Said(format!("{}: {}", path.display(), plain(error)))
}
