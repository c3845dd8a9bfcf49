//! `ringpostd`: the daemon of a node. Reads the configuration, runs the node, says how it ended.
#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what a person who starts it by hand reads comes from this file"
)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use ringpost_daemon::config::{Config, ConfigError, Place, keys};
use ringpost_daemon::exit::Code;
use ringpost_daemon::listen::passed::Passed;
use ringpost_daemon::logs;
use ringpost_daemon::node::{self, Doors, Start};

/// Cores allocate and free messages of many sizes on every turn; glibc gives pages back and takes
/// them again (mprotect, page faults) where this one keeps them (docs/decisions).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A durable mail store: takes mail over LMTP and the node protocol, keeps it in mbox files.
#[derive(Parser, Clone, Debug)]
#[command(name = "ringpostd", version)]
struct Options {
    /// Configuration file (TOML); without it every key has its default
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Where the mail is (the key `data_dir`)
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// Try it out: any user exists (`accounts.accept = "any"`)
    #[arg(long = "try")]
    try_out: bool,

    /// Set any key of the configuration; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,

    /// Print a configuration file with every key, its default and what it means
    #[arg(long)]
    print_config: bool,
}

impl Options {
    fn config(&self) -> Result<Config, ConfigError> {
        let mut config = match &self.config {
            Some(path) => Config::read(path)?,
            None => Config::default(),
        };
        if self.try_out {
            config.set(Place::CommandLine("--try"), "accounts.accept", "any")?;
        }
        if let Some(data) = &self.data {
            config.data_dir.clone_from(data);
        }
        for option in &self.set {
            config.set_option(option)?;
        }
        config.finish()
    }
}

/// A bug ends the process, also in builds that unwind: a runtime would swallow the panic of a task and
/// go on without it. Recovery is the tested path.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

fn main() -> ExitCode {
    abort_on_panic();
    let options = Options::parse();
    if options.print_config {
        print!("{}", keys::documented());
        return Code::Done.into();
    }
    let config = match options.config() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("ringpostd: {error}");
            return Code::Config.into();
        }
    };
    logs::start(&config.logs);
    let try_out = options.try_out;
    let data = config.data_dir.clone();
    #[expect(
        clippy::disallowed_methods,
        reason = "systemd says it in the environment, which is read before there are threads"
    )]
    let names = std::env::var("LISTEN_FDNAMES");
    let passed = match Passed::take(names.as_deref().ok()) {
        Ok(passed) => passed,
        Err(sentence) => {
            eprintln!("ringpostd: {sentence}");
            return Code::Config.into();
        }
    };
    let start = Start {
        passed,
        reload: Box::new(move || options.config()),
        ready: Box::new(move |doors| {
            if try_out {
                print!("{}", welcome(doors, &data));
            }
        }),
    };
    match node::run(config, start) {
        Ok(()) => Code::Done.into(),
        Err(error) => {
            eprintln!("ringpostd: {error}");
            let code = if error.is_configuration() {
                Code::Config
            } else {
                Code::Failed
            };
            code.into()
        }
    }
}

/// Where it listens and what to type next.
fn welcome(doors: &Doors, data: &Path) -> String {
    let mut text = String::from("Ringpost takes mail for anybody. It listens at\n");
    let rows = [
        ("node protocol", doors.socket.iter().chain(&doors.node)),
        ("LMTP", doors.lmtp.iter().chain(&[])),
        ("metrics", doors.admin.iter().chain(&[])),
    ];
    for (name, addresses) in rows {
        for address in addresses {
            text.extend([format!("  {name:<14} {address}\n")]);
        }
    }
    let data = data.display();
    text.push_str("and the mail is in\n");
    text.extend([format!("  {data}\nSend a message, then look at it:\n")]);
    if let Some(address) = doors.socket.first() {
        let path = address.to_string();
        let path = path.strip_prefix("unix:").unwrap_or(&path);
        text.extend([format!(
            "  printf 'Subject: hello\\n\\nIt works.\\n' | \
             ringpost-deliver --socket {path} -d bob@example.test\n"
        )]);
    }
    text.extend([format!(
        "  ringpost --data {data} list bob@example.test\n\
         \x20 ringpost --data {data} export bob@example.test\n"
    )]);
    text
}
