//! `STORE`: what a data directory is, as text. It holds the hash key, hence mode 0600.

use std::fmt;

use ringpost_netproto::id::NodeId;
use ringpost_netproto::placement::{HashKey, PartitionCount};

use super::{MAJOR, Reserved, Version, text};
use crate::error::CorruptReason;

/// The file is shorter than this.
pub const STORE_BYTES_MAX: usize = 64 << 10;

/// Logs of a store; a log directory has two hexadecimal digits.
pub const LOGS_MAX: u32 = 256;

/// Names a store for ever. 16 random bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct StoreId([u8; 16]);

impl StoreId {
    /// Wraps 16 bytes of entropy.
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes, as they stand in every file header.
    pub const fn bytes(self) -> [u8; 16] {
        self.0
    }
}

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What `STORE` says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoreFile {
    /// Minor version and feature bits of everything in the directory.
    pub version: Version,
    /// The store.
    pub store: StoreId,
    /// The node it belongs to.
    pub node: NodeId,
    /// Number of partitions, fixed at init.
    pub partitions: PartitionCount,
    /// Logs in use, 1 to [`LOGS_MAX`]: `log/00` to one below. Partition mod this is the log.
    pub logs: u32,
    /// Hash key of user names.
    pub key: HashKey,
    /// Lines of a newer minor version, without LF; kept.
    pub newer: Vec<String>,
}

impl StoreFile {
    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let key = StoreId(self.key.bytes());
        let mut out = format!(
            "ringpost store {MAJOR}.{}\nuuid {}\nnode {}\npartitions {}\nlogs {}\nkey {key}\n\
             key-check {:08x}\nincompat {:08x}\ncompat {:08x}\n",
            self.version.minor,
            self.store,
            self.node,
            self.partitions.value(),
            self.logs,
            self.key.check(),
            self.version.incompat,
            self.version.compat,
        );
        for line in &self.newer {
            out.push_str(line);
            out.push('\n');
        }
        text::seal(out).into_bytes()
    }

    /// Reads the file. Lines that a newer minor version added behind ours are kept.
    pub fn decode(bytes: &[u8]) -> Result<Self, CorruptReason> {
        if bytes.len() > STORE_BYTES_MAX {
            return Err(CorruptReason::Length);
        }
        if !bytes.starts_with(b"ringpost store ") {
            return Err(CorruptReason::Magic);
        }
        let body = text::open(bytes)?;
        let mut lines = body.strip_suffix('\n').unwrap_or(body).split('\n');
        let mut value = |name: &'static str| {
            lines
                .next()
                .and_then(|line| line.strip_prefix(name)?.strip_prefix(' '))
                .ok_or(CorruptReason::Value("a line of STORE is missing"))
        };
        let (major, minor) = value("ringpost store")
            .ok()
            .and_then(version_number)
            .ok_or(CorruptReason::Magic)?;
        super::check_version(major, minor, 0)?;
        let not = CorruptReason::Value;
        let store = text::hex(value("uuid")?.as_bytes()).ok_or(not("uuid in STORE"))?;
        let node = text::decimal(value("node")?).ok_or(not("node in STORE"))?;
        let partitions = text::decimal(value("partitions")?)
            .and_then(PartitionCount::new)
            .ok_or(not("partitions in STORE"))?;
        let logs = text::decimal(value("logs")?)
            .filter(|logs| (1..=LOGS_MAX).contains(logs))
            .ok_or(not("logs in STORE"))?;
        let key = text::hex(value("key")?.as_bytes()).ok_or(not("key in STORE"))?;
        let key = HashKey::new(key);
        let check = text::hex_u32(value("key-check")?.as_bytes());
        if check != Some(key.check()) {
            return Err(not("key and key-check in STORE disagree"));
        }
        let incompat = text::hex_u32(value("incompat")?.as_bytes());
        let incompat = incompat.ok_or(not("incompat in STORE"))?;
        let compat = text::hex_u32(value("compat")?.as_bytes());
        let version = Version {
            compat: compat.ok_or(not("compat in STORE"))?,
            ..super::check_version(major, minor, incompat)?
        };
        let newer: Vec<String> = lines.map(str::to_owned).collect();
        if version.reserved() == Reserved::Zero && !newer.is_empty() {
            return Err(not("an unknown line in STORE"));
        }
        Ok(Self {
            version,
            store: StoreId::new(store),
            node: NodeId::new(node),
            partitions,
            logs,
            key,
            newer,
        })
    }
}

/// `<major>.<minor>`.
fn version_number(text: &str) -> Option<(u8, u8)> {
    let (major, minor) = text.split_once('.')?;
    let number = |part| text::decimal(part).and_then(|value| u8::try_from(value).ok());
    Some((number(major)?, number(minor)?))
}
