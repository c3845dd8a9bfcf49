//! The one table of keys: names, defaults, what they mean, how they are set and shown.

use std::fmt::Write as _;
use std::path::PathBuf;

use ringpost_engine::config::{ArchiveLimits, CheckpointSync, ShardConfig};

use super::address::{Address, show_list};
use super::size::{parse_size, parse_span, show_size, show_span};
use super::{Accept, AccountsConfig, Config, Listen, LogFormat, LogsConfig};

/// One key of the configuration.
pub struct Key {
    /// With its table: `listen.lmtp`.
    pub name: &'static str,
    /// As `--set` would write it.
    pub default: &'static str,
    /// Whole sentences for the file and docs/OPERATING.md.
    pub doc: &'static str,
    /// What SIGHUP does about it.
    pub reload: Reload,
    pub(super) set: fn(&mut Config, &str) -> Result<(), String>,
    /// The value of a configuration as `--set` would write it.
    pub show: fn(&Config) -> String,
}

/// When a changed value takes effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reload {
    /// At SIGHUP.
    Live,
    /// At the next start.
    Restart,
}

/// Below this a core's log could not hold a checkpoint and the mail that arrives meanwhile.
const LOG_BYTES_MIN: u64 = 16 << 20;

/// Below this a core could not hold its buffers and one large batch.
const MEMORY_MIN: u64 = 64 << 20;

/// Slower than this a mailbox of a gibibyte would take a day.
const COMPACTION_RATE_MIN: u64 = 64 << 10;

/// How fast a scrub is that somebody asks for where none runs by itself.
const SCRUB_RATE_ASKED: u64 = 8 << 20;

/// Most cores that one node uses: a log id has two digits.
const CORES_MAX: usize = 255;

/// Every key.
pub const KEYS: &[Key] = &[
    Key {
        name: "data_dir",
        default: "ringpost-data",
        doc: "Where the mail is. Made at the first start.",
        reload: Reload::Restart,
        set: |config, text| not_empty(text).map(|text| config.data_dir = PathBuf::from(text)),
        show: |config| config.data_dir.display().to_string(),
    },
    Key {
        name: "node_id",
        default: "1",
        doc: "The number of this node. A data directory of another node is refused.",
        reload: Reload::Restart,
        set: |config, text| number(text, 1, u32::MAX).map(|value| config.node_id = value),
        show: |config| config.node_id.to_string(),
    },
    Key {
        name: "cores",
        default: "auto",
        doc: "How many cores to use, one thread on each. `auto` takes all that the process may run \
              on. It may change between runs.",
        reload: Reload::Restart,
        set: |config, text| {
            config.cores = auto(text, |text| number(text, 1, CORES_MAX))?;
            Ok(())
        },
        show: |config| {
            config
                .cores
                .map_or_else(|| "auto".to_owned(), |cores| cores.to_string())
        },
    },
    Key {
        name: "listen.socket",
        default: "unix:run/node",
        doc: "The node protocol for programs on this machine: ringpost-deliver and ringpost. A \
              comma-separated list of unix:PATH and host:port, or `none`; relative paths lie in \
              data_dir. Root, the daemon's own user and trusted_uids may read mail here, others \
              only deliver.",
        reload: Reload::Restart,
        set: |config, text| Address::parse_list(text).map(|list| config.listen.socket = list),
        show: |config| show_list(&config.listen.socket),
    },
    Key {
        name: "listen.node",
        default: "none",
        doc: "The node protocol over TCP. Whoever can connect here can read all mail, since there \
              are no passwords yet: hence `none`.",
        reload: Reload::Restart,
        set: |config, text| Address::parse_list(text).map(|list| config.listen.node = list),
        show: |config| show_list(&config.listen.node),
    },
    Key {
        name: "listen.lmtp",
        default: "unix:run/lmtp, 127.0.0.1:4024",
        doc: "LMTP (RFC 2033) for the MTA.",
        reload: Reload::Restart,
        set: |config, text| Address::parse_list(text).map(|list| config.listen.lmtp = list),
        show: |config| show_list(&config.listen.lmtp),
    },
    Key {
        name: "listen.admin",
        default: "127.0.0.1:4026",
        doc: "Metrics and health over HTTP: /metrics, /livez, /readyz, /status.",
        reload: Reload::Restart,
        set: |config, text| Address::parse_list(text).map(|list| config.listen.admin = list),
        show: |config| show_list(&config.listen.admin),
    },
    Key {
        name: "insecure",
        default: "false",
        doc: "Allows TCP addresses that other machines can reach. There is no encryption and there \
              are no passwords yet.",
        reload: Reload::Restart,
        set: |config, text| switch(text).map(|value| config.insecure = value),
        show: |config| config.insecure.to_string(),
    },
    Key {
        name: "trusted_uids",
        default: "none",
        doc: "System users, by number, who may read mail through listen.socket: a comma-separated \
              list, or `none`.",
        reload: Reload::Restart,
        set: |config, text| uids(text).map(|list| config.trusted_uids = list),
        show: |config| show_uids(&config.trusted_uids),
    },
    Key {
        name: "accounts.file",
        default: "none",
        doc: "Who has an account: one canonical address a line; empty lines and lines with # are \
              skipped. Read again at SIGHUP.",
        reload: Reload::Live,
        set: |config, text| {
            config.accounts.file = (text != "none")
                .then(|| not_empty(text))
                .transpose()?
                .map(PathBuf::from);
            Ok(())
        },
        show: |config| {
            let file = config.accounts.file.as_ref();
            file.map_or_else(|| "none".to_owned(), |path| path.display().to_string())
        },
    },
    Key {
        name: "accounts.accept",
        default: "listed",
        doc: "`listed` takes mail for the users of accounts.file, `any` for anybody: for trying it \
              out.",
        reload: Reload::Live,
        set: |config, text| {
            config.accounts.accept =
                word(text, &[("listed", Accept::Listed), ("any", Accept::Any)])?;
            Ok(())
        },
        show: |config| match config.accounts.accept {
            Accept::Listed => "listed".to_owned(),
            Accept::Any => "any".to_owned(),
        },
    },
    Key {
        name: "default_domain",
        default: "none",
        doc: "The domain of a recipient that has none; `none` leaves the name bare.",
        reload: Reload::Live,
        set: |config, text| {
            let domain = if text == "none" { "" } else { not_empty(text)? };
            config.default_domain = domain.to_ascii_lowercase();
            Ok(())
        },
        show: |config| none_if_empty(&config.default_domain),
    },
    Key {
        name: "recipient_delimiter",
        default: "+",
        doc: "One character that splits user+detail, or `none`.",
        reload: Reload::Live,
        set: |config, text| delimiter(text).map(|value| config.recipient_delimiter = value),
        show: |config| match config.recipient_delimiter {
            Some(byte) => char::from(byte).to_string(),
            None => "none".to_owned(),
        },
    },
    Key {
        name: "return_path",
        default: "on",
        doc: "Whether a Return-Path: line with the envelope sender is put on top of each message \
              that does not begin with one (RFC 5321 4.4). `off` keeps exactly what came in.",
        reload: Reload::Live,
        set: |config, text| switch(text).map(|value| config.return_path = value),
        show: |config| on_off(config.return_path),
    },
    Key {
        name: "message_bytes_max",
        default: "64 MiB",
        doc: "Larger messages are refused for good (552 5.3.4).",
        reload: Reload::Restart,
        set: |config, text| {
            let bytes = parse_size(text)?;
            if !((128 << 10)..=(1 << 30) - 1).contains(&bytes) {
                return Err("from 128 KiB to below 1 GiB".to_owned());
            }
            config.message_bytes_max = bytes;
            Ok(())
        },
        show: |config| show_size(config.message_bytes_max),
    },
    Key {
        name: "memory_per_core",
        default: "auto",
        doc: "Memory for the mail of one core. `auto` is 1280 MiB, or half of the machine's \
              memory divided by the cores if that is less.",
        reload: Reload::Restart,
        set: |config, text| {
            config.memory_per_core = auto(text, |text| at_least(parse_size(text)?, MEMORY_MIN))?;
            Ok(())
        },
        show: |config| {
            config
                .memory_per_core
                .map_or_else(|| "auto".to_owned(), show_size)
        },
    },
    Key {
        name: "memory_at_start",
        default: "auto",
        doc: "How much of that is taken at the start for messages that wait for a checkpoint, so that \
              mail does not pay for fresh memory. `auto` is a sixteenth of the machine's memory \
              divided by the cores; never more than their share of `memory_per_core`, two fifths.",
        reload: Reload::Restart,
        set: |config, text| {
            config.memory_at_start = auto(text, parse_size)?;
            Ok(())
        },
        show: |config| {
            config
                .memory_at_start
                .map_or_else(|| "auto".to_owned(), show_size)
        },
    },
    Key {
        name: "log_bytes_per_core",
        default: "2 GiB",
        doc: "Disk space of one core's commit log: what may arrive while a checkpoint runs.",
        reload: Reload::Restart,
        set: |config, text| {
            config.log_bytes_per_core = at_least(parse_size(text)?, LOG_BYTES_MIN)?;
            Ok(())
        },
        show: |config| show_size(config.log_bytes_per_core),
    },
    Key {
        name: "log_bytes_at_start",
        default: "auto",
        doc: "How much of that is there before mail is taken; the rest is made when it is needed, \
              which doubles what the disk has to write meanwhile. `auto` is four files, an eighth.",
        reload: Reload::Restart,
        set: |config, text| {
            config.log_bytes_at_start = auto(text, |text| at_least(parse_size(text)?, 1))?;
            Ok(())
        },
        show: |config| {
            config
                .log_bytes_at_start
                .map_or_else(|| "auto".to_owned(), show_size)
        },
    },
    Key {
        name: "checkpoint_interval",
        default: "60 s",
        doc: "Mail reaches the mbox files at the latest after this.",
        reload: Reload::Restart,
        set: |config, text| parse_span(text).map(|span| config.checkpoint_interval = span),
        show: |config| show_span(config.checkpoint_interval),
    },
    Key {
        name: "disk_reserve",
        default: "1 GiB",
        doc: "With less free disk space new mail is refused for the time being (452 4.3.1).",
        reload: Reload::Restart,
        set: |config, text| parse_size(text).map(|bytes| config.disk_reserve = bytes),
        show: |config| show_size(config.disk_reserve),
    },
    Key {
        name: "compaction_rate",
        default: "8 MiB",
        doc: "How many bytes a second one core writes at most to make mailboxes smaller from which \
              mail was deleted.",
        reload: Reload::Restart,
        set: |config, text| {
            config.compaction_rate = at_least(parse_size(text)?, COMPACTION_RATE_MIN)?;
            Ok(())
        },
        show: |config| show_size(config.compaction_rate),
    },
    Key {
        name: "scrub_rate",
        default: "8 MiB",
        doc: "How many bytes a second one core reads at most to compare all mail with its checksums, \
              once a day. `off`: only when `ringpost scrub` asks for it.",
        reload: Reload::Restart,
        set: |config, text| {
            config.scrub_rate = (text != "off")
                .then(|| at_least(parse_size(text)?, COMPACTION_RATE_MIN))
                .transpose()?;
            Ok(())
        },
        show: |config| {
            config
                .scrub_rate
                .map_or_else(|| "off".to_owned(), show_size)
        },
    },
    Key {
        name: "archive_age",
        default: "off",
        doc: "How long the log and large messages that are expunged are kept in DATA/archive, so that \
              `ringpost restore USER --at TIME` can take a backup to any moment since: longer than \
              the time between two backups. What is older goes, and before the disk is full the \
              oldest. `off`: nothing is kept.",
        reload: Reload::Restart,
        set: |config, text| {
            config.archive_age = (text != "off").then(|| parse_span(text)).transpose()?;
            Ok(())
        },
        show: |config| {
            config
                .archive_age
                .map_or_else(|| "off".to_owned(), show_span)
        },
    },
    Key {
        name: "connections_max",
        default: "10000",
        doc: "Connections at a time, all doors together, and never more than half of the open-file \
              limit. Further ones are closed at once.",
        reload: Reload::Restart,
        set: |config, text| number(text, 1, 1_000_000).map(|value| config.connections_max = value),
        show: |config| config.connections_max.to_string(),
    },
    Key {
        name: "idle_timeout",
        default: "300 s",
        doc: "A connection that is silent for this long is closed (RFC 5321 4.5.3.2.7).",
        reload: Reload::Restart,
        set: |config, text| parse_span(text).map(|span| config.idle_timeout = span),
        show: |config| show_span(config.idle_timeout),
    },
    Key {
        name: "drain_timeout",
        default: "20 s",
        doc: "After SIGTERM, how long open transactions may take to end.",
        reload: Reload::Live,
        set: |config, text| parse_span(text).map(|span| config.drain_timeout = span),
        show: |config| show_span(config.drain_timeout),
    },
    Key {
        name: "logs.level",
        default: "info",
        doc: "What is logged, on standard error: error, warn, info, debug, or a filter such as \
              `ringpost_daemon=debug,info`.",
        reload: Reload::Restart,
        set: |config, text| {
            let filter = tracing_subscriber::EnvFilter::try_new(text);
            filter.map_err(|error| error.to_string())?;
            text.clone_into(&mut config.logs.level);
            Ok(())
        },
        show: |config| config.logs.level.clone(),
    },
    Key {
        name: "logs.format",
        default: "auto",
        doc: "`human`, `json`, or `auto`: human on a terminal, JSON otherwise.",
        reload: Reload::Restart,
        set: |config, text| {
            let words = [
                ("auto", LogFormat::Auto),
                ("human", LogFormat::Human),
                ("json", LogFormat::Json),
            ];
            config.logs.format = word(text, &words)?;
            Ok(())
        },
        show: |config| match config.logs.format {
            LogFormat::Auto => "auto".to_owned(),
            LogFormat::Human => "human".to_owned(),
            LogFormat::Json => "json".to_owned(),
        },
    },
];

/// Before any key is set. Never seen outside: every field has a key.
pub(super) fn blank() -> Config {
    Config {
        data_dir: PathBuf::new(),
        node_id: 0,
        cores: None,
        listen: Listen::default(),
        insecure: false,
        trusted_uids: Vec::new(),
        accounts: AccountsConfig::default(),
        default_domain: String::new(),
        recipient_delimiter: None,
        return_path: false,
        message_bytes_max: 0,
        memory_per_core: None,
        memory_at_start: None,
        log_bytes_per_core: 0,
        log_bytes_at_start: None,
        checkpoint_interval: std::time::Duration::ZERO,
        disk_reserve: 0,
        compaction_rate: 0,
        archive_age: None,
        scrub_rate: None,
        connections_max: 0,
        idle_timeout: std::time::Duration::ZERO,
        drain_timeout: std::time::Duration::ZERO,
        logs: LogsConfig::default(),
    }
}

/// A configuration file with every key at its default and what it means.
pub fn documented() -> String {
    let mut text = String::from("# ringpostd: every key with its default.\n");
    let mut table = "";
    let top = KEYS.iter().filter(|key| !key.name.contains('.'));
    let inner = KEYS.iter().filter(|key| key.name.contains('.'));
    for key in top.chain(inner) {
        let (key_table, name) = key.name.rsplit_once('.').unwrap_or(("", key.name));
        text.push('\n');
        if key_table != table {
            table = key_table;
            writeln!(text, "[{table}]").expect("a String takes everything");
        }
        for line in wrap(key.doc, 90) {
            writeln!(text, "# {line}").expect("a String takes everything");
        }
        let plain = key.default.bytes().all(|byte| byte.is_ascii_digit());
        let plain = plain || matches!(key.default, "true" | "false");
        let quote = if plain { "" } else { "\"" };
        writeln!(text, "{name} = {quote}{}{quote}", key.default)
            .expect("a String takes everything");
    }
    text
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("never empty");
        if !line.is_empty() && line.len() + 1 + word.len() > width {
            lines.push(word.to_owned());
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

impl Config {
    /// A part of the machine's memory for one core, if that can be seen.
    fn machine_share(&self, part: u64) -> Option<u64> {
        let cores = self.cores.unwrap_or_else(available_cores);
        let cores = u64::try_from(cores.max(1)).unwrap_or(u64::MAX);
        Some(machine_memory()? / part / cores)
    }

    /// Bytes that a core keeps at hand for bodies from the start.
    pub fn memory_at_start(&self) -> u64 {
        let asked = self.memory_at_start;
        let bytes = asked.or_else(|| self.machine_share(16)).unwrap_or(0);
        bytes.min(self.shard_config().pending_bytes_max)
    }

    /// The engine's settings for one core (storage.md 4.4).
    pub fn shard_config(&self) -> ShardConfig {
        let memory = self.memory_per_core.unwrap_or_else(|| {
            self.machine_share(2)
                .map_or(1280 << 20, |share| share.clamp(MEMORY_MIN, 1280 << 20))
        });
        let log_file_bytes = (self.log_bytes_per_core / 32).clamp(4 << 20, 64 << 20) >> 20 << 20;
        let files = |bytes: u64| u32::try_from(bytes / log_file_bytes).unwrap_or(u32::MAX);
        let files_max = files(self.log_bytes_per_core).clamp(4, 9_999);
        let files_initial = self.log_bytes_at_start.map_or(4, files);
        ShardConfig {
            log_file_bytes,
            log_files_initial: files_initial.clamp(2, files_max),
            log_files_max: files_max,
            message_bytes_max: self.message_bytes_max,
            pending_bytes_max: memory / 5 * 2,
            pending_records_max: memory * 16 / 100 / 200,
            index_bytes_max: memory / 5,
            tails_max: usize::try_from(memory / 20 / 192).unwrap_or(usize::MAX),
            dedupe_entries: (memory / 20 / 56).clamp(1 << 10, 1 << 20),
            checkpoint_interval_ns: u64::try_from(self.checkpoint_interval.as_nanos())
                .unwrap_or(u64::MAX),
            checkpoint_sync: CheckpointSync::Auto,
            reserve_bytes: self.disk_reserve,
            compact_bytes_per_s: self.compaction_rate,
            archive: self.archive_age.map(|age| ArchiveLimits {
                age_s: age.as_secs(),
                bytes: u64::MAX,
            }),
            scrub_bytes_per_s: self.scrub_rate.unwrap_or(SCRUB_RATE_ASKED),
            scrub_interval_ns: self
                .scrub_rate
                .and(ShardConfig::default().scrub_interval_ns),
            ..ShardConfig::default()
        }
    }
}

/// Cores this process may run on.
pub fn available_cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Bytes of memory, from /proc/meminfo.
fn machine_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

fn not_empty(text: &str) -> Result<&str, String> {
    if text.is_empty() || text.contains('\0') {
        return Err("must not be empty".to_owned());
    }
    Ok(text)
}

fn number<N>(text: &str, least: N, most: N) -> Result<N, String>
where
    N: std::str::FromStr<Err: std::fmt::Display> + Copy + PartialOrd + std::fmt::Display,
{
    let value: N = text.parse().map_err(|error| format!("{error}"))?;
    if value < least || value > most {
        return Err(format!("from {least} to {most}"));
    }
    Ok(value)
}

fn auto<T>(text: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>, String> {
    if text == "auto" {
        Ok(None)
    } else {
        parse(text).map(Some)
    }
}

fn at_least(bytes: u64, least: u64) -> Result<u64, String> {
    if bytes < least {
        return Err(format!("at least {}", show_size(least)));
    }
    Ok(bytes)
}

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "true" | "on" | "yes" => Ok(true),
        "false" | "off" | "no" => Ok(false),
        _ => Err("true or false, on or off".to_owned()),
    }
}

fn on_off(value: bool) -> String {
    if value { "on" } else { "off" }.to_owned()
}

fn none_if_empty(text: &str) -> String {
    if text.is_empty() { "none" } else { text }.to_owned()
}

fn word<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, String> {
    words
        .iter()
        .find(|(name, _)| *name == text)
        .map(|(_, value)| *value)
        .ok_or_else(|| {
            let names: Vec<_> = words.iter().map(|(name, _)| *name).collect();
            format!("one of {}", names.join(", "))
        })
}

fn delimiter(text: &str) -> Result<Option<u8>, String> {
    match text.as_bytes() {
        b"none" => Ok(None),
        [byte] if byte.is_ascii_graphic() && !matches!(byte, b'@' | b'"' | b'\\' | b'<' | b'>') => {
            Ok(Some(*byte))
        }
        _ => Err("one printable ASCII character such as + or -, or none".to_owned()),
    }
}

fn uids(text: &str) -> Result<Vec<u32>, String> {
    if matches!(text, "" | "none") {
        return Ok(Vec::new());
    }
    text.split(',')
        .map(|part| number(part.trim(), 0, u32::MAX))
        .collect()
}

fn show_uids(list: &[u32]) -> String {
    let words: Vec<_> = list.iter().map(u32::to_string).collect();
    none_if_empty(&words.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_set_and_show_themselves() {
        let config = Config::default();
        for key in KEYS {
            assert_eq!((key.show)(&config), key.default, "{}", key.name);
        }
        assert_eq!(config.shard_config().check(), Ok(()));
    }

    #[test]
    fn the_smallest_values_keep_the_engines_rules() {
        let mut config = Config::default();
        for option in [
            "memory_per_core=64 MiB",
            "log_bytes_per_core=16 MiB",
            "log_bytes_at_start=1",
        ] {
            config.set_option(option).expect("valid");
        }
        assert_eq!(config.shard_config().check(), Ok(()));
    }

    #[test]
    fn the_log_that_is_there_at_the_start_is_part_of_the_log() {
        let mut config = Config::default();
        for (bytes, files) in [("auto", 4), ("1 GiB", 16), ("8 GiB", 32)] {
            let option = format!("log_bytes_at_start={bytes}");
            config.set_option(&option).expect("valid");
            assert_eq!(config.shard_config().log_files_initial, files, "{bytes}");
        }
    }

    #[test]
    fn keys_stay_few_and_distinct() {
        assert!(KEYS.len() <= 29, "STYLE 7.7: aim below 25 keys");
        for (at, key) in KEYS.iter().enumerate() {
            assert!(KEYS.iter().skip(at + 1).all(|other| other.name != key.name));
        }
    }
}
