//! `ringpost`: the operator's tool. It asks a running node over the node protocol; `check`, `repair`,
//! `backup` and `restore` work on files, and with `--data` mail is read from them if no daemon runs there. Answers go to standard output (with `--json` one object a line), everything else to
//! standard error, so that a pipe carries what was asked for and nothing else.

pub mod backup;
pub mod check;
pub mod export;
pub mod files;
pub mod import;
pub mod mail;
pub mod node;
pub mod options;
pub mod profile;
pub mod repair;
pub mod restore;
pub mod scrub;
pub mod show;

use std::ffi::OsString;
use std::io::{self, BufWriter, IsTerminal as _, StdoutLock, Write as _};
use std::path::Path;

use clap::Parser as _;
use ringpost_netproto::message::escaped;

use self::node::{Mail, Node, Source};
pub use self::options::Options;
use self::options::{Command, ConfigCommand};
use self::repair::Mode;
use self::scrub::Wish;
use crate::client::{ClientError, plain};
use crate::config::Config;
use crate::exit::Code;

/// Why a command could not be done.
#[derive(Debug)]
pub enum Failure {
    /// Nobody reads our output any more: no reason to complain.
    Quiet,
    /// A line for standard error.
    Said(String),
    /// The command line asks for what cannot be; a line for standard error.
    Misused(String),
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Said(error.to_string())
    }
}

impl From<io::Error> for Failure {
    /// Of writing to standard output: all other errors are given words where they arise.
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::Quiet
        } else {
            Self::Said(format!("standard output: {}", plain(&error)))
        }
    }
}

/// How an answer looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// Columns for a person.
    Terminal,
    /// Columns with a tab between, for scripts.
    Tabs,
    /// One JSON object a line.
    Json,
}

/// Standard output, and how answers look on it.
#[derive(Debug)]
pub struct Output {
    /// To be flushed before a command is done.
    pub writer: BufWriter<StdoutLock<'static>>,
    /// As the options and the kind of output say.
    pub form: Form,
}

/// The whole program; `words` are its arguments with its name. The caller exits with the result.
pub fn run(words: impl IntoIterator<Item = OsString>) -> Code {
    let options = match Options::try_parse_from(words) {
        Ok(options) => options,
        Err(error) => {
            // Help on a closed output is nobody's loss.
            drop(error.print());
            return if error.use_stderr() {
                Code::Misused
            } else {
                Code::Done
            };
        }
    };
    let stdout = io::stdout();
    let form = match (options.global.json, stdout.is_terminal()) {
        (true, _) => Form::Json,
        (false, true) => Form::Terminal,
        (false, false) => Form::Tabs,
    };
    let mut output = Output {
        writer: BufWriter::with_capacity(64 << 10, stdout.lock()),
        form,
    };
    let result = obey(&options, &mut output).and_then(|code| {
        output.writer.flush()?;
        Ok(code)
    });
    match result {
        Ok(code) => code,
        Err(Failure::Quiet) => Code::Failed,
        Err(Failure::Said(line)) => tell(Code::Failed, &line),
        Err(Failure::Misused(line)) => tell(Code::Misused, &line),
    }
}

fn obey(options: &Options, output: &mut Output) -> Result<Code, Failure> {
    match &options.command {
        Command::Status => show::status(&mut Node::connect(&options.global)?, output)?,
        Command::Folders { .. }
        | Command::List { .. }
        | Command::Show { .. }
        | Command::Export { .. } => {
            return match Source::find(&options.global)? {
                Source::Node(mut node) => read(&options.command, &mut *node, output),
                Source::Files(data) => {
                    files::with(&data, |files| read(&options.command, files, output))
                }
            };
        }
        Command::Import(import) => return import::import(&options.global, import, output),
        Command::Backup {
            directory,
            user,
            verify,
        } => {
            let what = (user.as_deref(), *verify);
            return backup::backup(&options.global, directory, what, output);
        }
        Command::Restore {
            user: Some(user),
            from,
            folder,
            at,
            ..
        } => {
            let wanted = restore::Wanted {
                user,
                folder: folder.as_deref(),
                at: at.as_deref(),
            };
            return restore::user(&options.global, from, wanted, output);
        }
        Command::Restore { from, verify, .. } => {
            return restore::node(&options.global, from, *verify, output);
        }
        Command::Check { level } => return check::check(&options.global, *level, output),
        Command::Repair { dry_run } => {
            let mode = if *dry_run { Mode::Plan } else { Mode::Do };
            return repair::repair(&options.global, mode, output);
        }
        Command::Scrub { now, user } => {
            let wish = match user {
                Some(user) => Wish::User(user),
                None if *now => Wish::All,
                None => Wish::Known,
            };
            return scrub::scrub(&options.global, wish, output);
        }
        Command::Profile(wish) => return profile::profile(&options.global, wish, output),
        Command::Config {
            command: ConfigCommand::Check { file },
        } => {
            Config::read(file)
                .and_then(Config::finish)
                .map_err(|error| Failure::Said(error.to_string()))?;
            writeln!(output.writer, "{}: no errors", file.display())?;
        }
        Command::Man { directory } => man(directory, output)?,
    }
    Ok(Code::Done)
}

fn man(directory: &Path, output: &mut Output) -> Result<(), Failure> {
    let pages = super::man::write_pages(directory)
        .map_err(|error| Failure::Said(format!("{}: {}", directory.display(), plain(&error))))?;
    for page in pages {
        writeln!(output.writer, "{}", page.display())?;
    }
    Ok(())
}

/// The commands that show mail, wherever it is.
fn read(command: &Command, mail: &mut dyn Mail, output: &mut Output) -> Result<Code, Failure> {
    match command {
        Command::Folders { user } => mail::folders(mail, user, output)?,
        Command::List { user, folder } => mail::list(mail, (user, folder), output)?,
        Command::Show { user, uid, folder } => mail::show(mail, (user, folder), *uid, output)?,
        Command::Export { user, folder } => {
            return export::export(mail, user, folder.as_deref(), output);
        }
        other => unreachable!("{other:?} shows no mail"),
    }
    Ok(Code::Done)
}

/// One line on standard error, if there is one.
fn tell(code: Code, line: &str) -> Code {
    // There may be names in it that strangers gave.
    let line = format!("ringpost: {line}");
    drop(writeln!(io::stderr(), "{}", escaped(line.as_bytes())));
    code
}
