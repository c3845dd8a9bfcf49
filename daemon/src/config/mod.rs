//! What can be set: one file, every key with a default.
//!
//! [`keys`] holds the one table of keys; it yields defaults, validation, `--print-config`, and what
//! docs/OPERATING.md must list. [`size`] reads sizes and spans of time, [`address`] places to listen
//! at. A key that does not exist is an error that names the nearest one and its line.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::{DeTable, DeValue};

pub mod address;
pub mod keys;
pub mod size;

pub use address::Address;
pub use keys::{KEYS, Key, Reload};

/// What the daemon runs with. Every field comes from one row of [`KEYS`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Where the store is.
    pub data_dir: PathBuf,
    /// This node's number, checked against the store's.
    pub node_id: u32,
    /// How many cores to use; `None` for all that the process may run on.
    pub cores: Option<usize>,
    /// Where the doors are.
    pub listen: Listen,
    /// Whether TCP listeners may be reached from other machines without TLS.
    pub insecure: bool,
    /// Users who may read mail through the Unix socket, beside root and the daemon's own.
    pub trusted_uids: Vec<u32>,
    /// Who has an account.
    pub accounts: AccountsConfig,
    /// Appended to a recipient without a domain; empty leaves it bare.
    pub default_domain: String,
    /// Splits `user+detail`; `None` for no details.
    pub recipient_delimiter: Option<u8>,
    /// Whether a `Return-Path:` is put on top of each message.
    pub return_path: bool,
    /// Larger messages are refused.
    pub message_bytes_max: u64,
    /// The memory of one core's mail; `None` to take it from the machine.
    pub memory_per_core: Option<u64>,
    /// How much of it a core has at hand for bodies from the start; `None` to take it from the machine.
    pub memory_at_start: Option<u64>,
    /// Disk space of one core's commit log.
    pub log_bytes_per_core: u64,
    /// How much of it is made before mail is taken; `None`: four files.
    pub log_bytes_at_start: Option<u64>,
    /// Time between checkpoints.
    pub checkpoint_interval: Duration,
    /// Free disk space below which new mail is refused.
    pub disk_reserve: u64,
    /// Bytes a second that one core's compactions write at most.
    pub compaction_rate: u64,
    /// How long log files and expunged large messages are kept for point-in-time restore; `None`: not
    /// at all.
    pub archive_age: Option<Duration>,
    /// Bytes a second that one core's scrub reads at most; `None`: it reads only when asked.
    pub scrub_rate: Option<u64>,
    /// Connections at a time.
    pub connections_max: usize,
    /// A silent connection is closed after this.
    pub idle_timeout: Duration,
    /// How long open transactions may take to end after SIGTERM.
    pub drain_timeout: Duration,
    /// What the daemon says.
    pub logs: LogsConfig,
}

/// The doors. An empty list is `none`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Listen {
    /// Node protocol for programs on this machine.
    pub socket: Vec<Address>,
    /// Node protocol for other machines.
    pub node: Vec<Address>,
    /// LMTP.
    pub lmtp: Vec<Address>,
    /// Metrics and health.
    pub admin: Vec<Address>,
}

/// Who has an account.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AccountsConfig {
    /// The list of users.
    pub file: Option<PathBuf>,
    /// Whether the list decides.
    pub accept: Accept,
}

/// Whether the list of users decides who has an account.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Accept {
    /// Users of the list.
    #[default]
    Listed,
    /// Anybody: for trying it out.
    Any,
}

/// What the daemon says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LogsConfig {
    /// A filter of `tracing`: `info`, `ringpost_daemon=debug,info`.
    pub level: String,
    /// How lines look.
    pub format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LogFormat {
    /// For people on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// A configuration that cannot be used; the daemon exits 78.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {reason}")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// The system's words.
        reason: String,
    },
    /// The file is not TOML.
    #[error("{place}: {reason}")]
    Syntax {
        /// File and line.
        place: Place,
        /// The parser's words.
        reason: String,
    },
    /// A key that does not exist.
    #[error("{place}: unknown key {key:?}{}", .nearest.map(|near| format!("; did you mean {near:?}?")).unwrap_or_default())]
    UnknownKey {
        /// File and line, or `--set`.
        place: Place,
        /// What was written.
        key: String,
        /// The key that looks most like it.
        nearest: Option<&'static str>,
    },
    /// A value that its key does not take.
    #[error("{place}: {key} = {value:?}: {reason}")]
    Value {
        /// File and line, or `--set`.
        place: Place,
        /// Which key.
        key: &'static str,
        /// What was written.
        value: String,
        /// A sentence.
        reason: String,
    },
    /// Values that do not go together.
    #[error("{0}")]
    Rule(String),
}

/// Where a setting stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// A line of a file, from 1.
    Line(PathBuf, usize),
    /// An option of the command line.
    CommandLine(&'static str),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(path, line) => write!(f, "{} line {line}", path.display()),
            Self::CommandLine(option) => f.write_str(option),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        let mut config = keys::blank();
        for key in KEYS {
            (key.set)(&mut config, key.default).expect("defaults are valid: a test sets each");
        }
        config
    }
}

impl Config {
    /// Reads a file over the defaults. Values are checked one by one; [`finish`](Self::finish)
    /// checks them together.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Unreadable {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        let mut config = Self::default();
        config.apply_toml(path, &text)?;
        Ok(config)
    }

    /// Sets what a TOML text says. `path` is for messages.
    pub fn apply_toml(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let line_of = |offset: usize| {
            let before = text.as_bytes().get(..offset).unwrap_or_default();
            Place::Line(path.to_owned(), before.split(|byte| *byte == b'\n').count())
        };
        let table = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
            place: line_of(error.span().map_or(0, |span| span.start)),
            reason: error.message().to_owned(),
        })?;
        self.apply_table("", table.get_ref(), &line_of)
    }

    fn apply_table(
        &mut self,
        prefix: &str,
        table: &DeTable<'_>,
        line_of: &dyn Fn(usize) -> Place,
    ) -> Result<(), ConfigError> {
        for (name, value) in table {
            let key = format!("{prefix}{}", name.get_ref());
            let place = line_of(name.span().start);
            if let DeValue::Table(inner) = value.get_ref() {
                let inner_prefix = format!("{key}.");
                if !KEYS.iter().any(|row| row.name.starts_with(&inner_prefix)) {
                    return Err(unknown_key(place, key));
                }
                self.apply_table(&inner_prefix, inner, line_of)?;
            } else {
                let text = text_of(value.get_ref()).map_err(|reason| ConfigError::Syntax {
                    place: place.clone(),
                    reason: format!("{key}: {reason}"),
                })?;
                self.set(place, &key, &text)?;
            }
        }
        Ok(())
    }

    /// Sets one key to a value as text.
    pub fn set(&mut self, place: Place, key: &str, value: &str) -> Result<(), ConfigError> {
        let Some(row) = KEYS.iter().find(|row| row.name == key) else {
            return Err(unknown_key(place, key.to_owned()));
        };
        (row.set)(self, value).map_err(|reason| ConfigError::Value {
            place,
            key: row.name,
            value: value.to_owned(),
            reason,
        })
    }

    /// Sets one key from `--set KEY=VALUE`.
    pub fn set_option(&mut self, option: &str) -> Result<(), ConfigError> {
        let (key, value) = option.split_once('=').ok_or_else(|| ConfigError::Syntax {
            place: Place::CommandLine("--set"),
            reason: format!("{option:?} is not KEY=VALUE"),
        })?;
        self.set(Place::CommandLine("--set"), key.trim(), value.trim())
    }

    /// Puts relative Unix sockets into the data directory and checks what belongs together.
    pub fn finish(mut self) -> Result<Self, ConfigError> {
        let data_dir = self.data_dir.clone();
        let listen = &mut self.listen;
        for list in [
            &mut listen.socket,
            &mut listen.node,
            &mut listen.lmtp,
            &mut listen.admin,
        ] {
            for address in list.iter_mut() {
                address.resolve(&data_dir);
            }
        }
        if !self.insecure {
            for (key, address) in self.tcp_addresses() {
                if !address.ip().is_loopback() {
                    return Err(ConfigError::Rule(format!(
                        "{key} = {address} can be reached from other machines, without encryption \
                         or passwords; name a loopback address, or set insecure = true"
                    )));
                }
            }
        }
        if self.accounts.accept == Accept::Listed && self.accounts.file.is_none() {
            return Err(ConfigError::Rule(
                "nobody has an account: name a list of users with accounts.file, or start with \
                 --try (accounts.accept = \"any\") to take mail for anybody"
                    .to_owned(),
            ));
        }
        self.shard_config()
            .check()
            .map_err(|rule| ConfigError::Rule(format!("sizes: {rule}")))?;
        Ok(self)
    }

    fn tcp_addresses(&self) -> impl Iterator<Item = (&'static str, std::net::SocketAddr)> {
        let listen = &self.listen;
        [
            ("listen.socket", &listen.socket),
            ("listen.node", &listen.node),
            ("listen.lmtp", &listen.lmtp),
            ("listen.admin", &listen.admin),
        ]
        .into_iter()
        .flat_map(|(key, list)| list.iter().map(move |address| (key, address)))
        .filter_map(|(key, address)| match address {
            Address::Tcp(socket) => Some((key, *socket)),
            Address::Unix(_) => None,
        })
    }

    /// The keys whose values differ and that only a restart changes; and whether any other differs.
    pub fn differences(&self, other: &Self) -> Vec<&'static Key> {
        KEYS.iter()
            .filter(|key| (key.show)(self) != (key.show)(other))
            .collect()
    }
}

/// The name nearest to a wrong one, if any is near.
fn nearest_key(key: &str) -> Option<&'static str> {
    /// Jaro-Winkler similarity above which a suggestion helps more than it puzzles.
    const NEAR: f64 = 0.75;
    let score = |name: &str| {
        let last = name.rsplit('.').next().unwrap_or(name);
        strsim::jaro_winkler(key, name).max(strsim::jaro_winkler(key, last) - 0.05)
    };
    KEYS.iter()
        .map(|row| (score(row.name), row.name))
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .filter(|(score, _)| *score > NEAR)
        .map(|(_, name)| name)
}

fn unknown_key(place: Place, key: String) -> ConfigError {
    let nearest = nearest_key(&key);
    ConfigError::UnknownKey {
        place,
        key,
        nearest,
    }
}

/// A scalar as `--set` would write it; a list becomes comma-separated.
fn text_of(value: &DeValue<'_>) -> Result<String, String> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) => Ok(number.to_string()),
        DeValue::Boolean(flag) => Ok(flag.to_string()),
        DeValue::Array(items) => {
            let items: Result<Vec<_>, _> =
                items.iter().map(|item| text_of(item.get_ref())).collect();
            Ok(items?.join(", "))
        }
        other => Err(format!("{} is not a value for any key", other.type_str())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        let mut config = Config::default();
        config.apply_toml(Path::new("ringpost.toml"), text)?;
        Ok(config)
    }

    #[test]
    fn a_typo_names_the_key_the_line_and_the_nearest_key() {
        for (text, want) in [
            (
                "node_id = 2\nmesage_bytes_max = \"1 MiB\"\n",
                "ringpost.toml line 2: unknown key \"mesage_bytes_max\"; \
                 did you mean \"message_bytes_max\"?",
            ),
            (
                "[listen]\n\nlmpt = \"none\"\n",
                "ringpost.toml line 3: unknown key \"listen.lmpt\"; did you mean \"listen.lmtp\"?",
            ),
            (
                "[lissten]\nlmtp = \"none\"\n",
                "ringpost.toml line 1: unknown key \"lissten\"; did you mean \"listen.node\"?",
            ),
            ("zzz = 1\n", "ringpost.toml line 1: unknown key \"zzz\""),
        ] {
            let said = parse(text).expect_err("the key does not exist").to_string();
            if want.contains("listen.node") {
                assert!(
                    said.contains("line 1: unknown key \"lissten\"; did you mean"),
                    "{said}"
                );
            } else {
                assert_eq!(said, want);
            }
        }
    }

    #[test]
    fn values_are_checked_where_they_stand() {
        let said = parse("\nmessage_bytes_max = \"many\"\n")
            .expect_err("not a size")
            .to_string();
        assert!(
            said.starts_with("ringpost.toml line 2: message_bytes_max = \"many\": "),
            "{said}"
        );
        let said = parse("node_id = \n").expect_err("not TOML").to_string();
        assert!(said.starts_with("ringpost.toml line 1: "), "{said}");
        let mut config = Config::default();
        let said = config
            .set_option("node_id")
            .expect_err("no value")
            .to_string();
        assert_eq!(said, "--set: \"node_id\" is not KEY=VALUE");
    }

    #[test]
    fn lists_tables_and_numbers_mean_what_the_command_line_means() {
        let from_file = parse(
            "node_id = 7\ninsecure = true\n[listen]\nlmtp = [\"unix:/run/a\", \"127.0.0.1:24\"]\n",
        )
        .expect("valid");
        let mut from_options = Config::default();
        for option in [
            "node_id=7",
            "insecure=true",
            "listen.lmtp=unix:/run/a, 127.0.0.1:24",
        ] {
            from_options.set_option(option).expect("valid");
        }
        assert_eq!(from_file, from_options);
        assert_eq!(from_file.listen.lmtp.len(), 2);
    }

    #[test]
    fn a_listener_for_other_machines_needs_insecure_beside_it() {
        let mut config = Config::default();
        config.set_option("accounts.accept=any").expect("valid");
        config.set_option("listen.lmtp=0.0.0.0:24").expect("valid");
        let said = config.clone().finish().expect_err("refused").to_string();
        assert!(said.contains("listen.lmtp = 0.0.0.0:24"), "{said}");
        assert!(said.contains("insecure = true"), "{said}");
        config.set_option("insecure=true").expect("valid");
        assert!(config.finish().is_ok());
    }

    #[test]
    fn somebody_must_have_an_account() {
        let said = Config::default().finish().expect_err("nobody").to_string();
        assert!(
            said.contains("accounts.file") && said.contains("--try"),
            "{said}"
        );
    }

    #[test]
    fn the_printed_file_is_the_default() {
        let printed = keys::documented();
        assert_eq!(parse(&printed).expect("valid"), Config::default());
    }
}
