//! A data directory: made, locked, identified, and opened shard by shard (storage.md 2, 6.4).
//!
//! This is the part that runs before any ring: plain, blocking calls on a handful of files. It
//! refuses to touch a directory that is not a store, belongs to another node, is in use, or lies
//! where a store cannot keep its promise. Locks are taken on `LOCK`, a file of its own, since STORE
//! is replaced by rename when the number of logs changes.
#![expect(
    clippy::disallowed_methods,
    reason = "runs before there is an Io, and waits for a dying process between tries of the lock"
)]

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::statvfs::{FsFlags, statvfs};
use ringpost_netproto::id::{NodeId, PartitionId};
use ringpost_netproto::placement::{HashKey, PartitionCount};

use crate::check::{DirTree, ReadTree};
use crate::config::ShardConfig;
use crate::error::{Corrupt, IoError, OpenError};
use crate::format::Version;
use crate::format::store_file::{LOGS_MAX, STORE_BYTES_MAX, StoreFile, StoreId};
use crate::io::flusher::{Dir, do_now};
use crate::io::{Io, RelPath, Step};
use crate::layout::{Hand, Layout, Shards};
use crate::request::Now;
use crate::shard::ShardIdentity;

/// Tries to lock, and the pause between two: `io_uring` keeps a dead process's files busy until its
/// last operation ends.
const LOCK_TRIES: u32 = 5;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Names that may lie in a directory that is to become a store.
const HARMLESS: [&str; 3] = ["LOCK", "run", "lost+found"];

/// Magic numbers of file systems that other machines write too (statfs(2)).
const NETWORK_FILE_SYSTEMS: [(i64, &str); 6] = [
    (0x6969, "NFS"),
    (0xFF53_4D42, "CIFS"),
    (0xFE53_4D42, "SMB2"),
    (0x0102_1997, "9P"),
    (0x00C3_6400, "Ceph"),
    (0x5346_414F, "AFS"),
];

/// How a store is opened or made.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// This node's id; another one in STORE is refused.
    pub node: NodeId,
    /// Partitions of a new store.
    pub partitions: PartitionCount,
    /// Shards wanted: one per core, 1 to 256.
    pub logs: u32,
    /// Entropy for a new store: 16 bytes of uuid, 16 of hash key.
    pub entropy: [u8; 32],
}

/// An open, locked data directory.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    layout: Layout,
    /// Released when the store is dropped or the process ends.
    _lock: Flock<File>,
}

impl Store {
    /// Opens the store in `path`, or makes one if the directory is empty or missing.
    pub fn open(path: &Path, options: &StoreOptions) -> Result<Self, OpenError> {
        let unusable = |reason: String| OpenError::Unusable {
            path: path.display().to_string(),
            reason,
        };
        if !(1..=LOGS_MAX).contains(&options.logs) {
            return Err(unusable(format!(
                "{} cores; 1 to {LOGS_MAX} are possible",
                options.logs
            )));
        }
        make_dir(path)?;
        check_file_system(path)?;
        let lock = lock(path)?;
        let file = match read_store_file(path)? {
            Some(file) => file,
            None => create(path, options)?,
        };
        // Also of a store that was there: whoever made it may have been killed before this.
        sync_dir(path)?;
        if let Some(parent) = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            sync_dir(parent)?;
        }
        if file.node != options.node {
            return Err(OpenError::OtherNode {
                path: path.display().to_string(),
                found: file.node.value(),
                expected: options.node.value(),
            });
        }
        let store = Self {
            path: path.to_owned(),
            layout: Layout::new(file, options.logs),
            _lock: lock,
        };
        store.layout.settle(&mut Blocking::new(path)?)?;
        Ok(store)
    }

    /// The store's identity.
    pub fn id(&self) -> StoreId {
        self.layout.file().store
    }

    /// The hash key, which also keys delivery ids.
    pub fn key(&self) -> HashKey {
        self.layout.file().key
    }

    /// Number of partitions, fixed when the store was made.
    pub fn partitions(&self) -> PartitionCount {
        self.layout.file().partitions
    }

    /// Number of logs: shards to open.
    pub fn logs(&self) -> u32 {
        self.layout.file().logs
    }

    /// The data directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the shard with this number is part of.
    pub fn identity(&self, log_id: u32) -> ShardIdentity {
        self.layout.identity(log_id)
    }

    /// Whether the number of cores changed since the last run: then [`Self::change_layout`] comes
    /// before any shard is opened.
    pub fn needs_new_layout(&self) -> bool {
        self.layout.is_due()
    }

    /// Goes over to the number of cores that was asked for (see [`Layout::change`]). `make_io` gives
    /// an `Io` on the data directory for each log in turn.
    pub fn change_layout<I: Io>(
        &mut self,
        config: &ShardConfig,
        seed: [u8; 16],
        make_io: impl FnMut() -> Result<I, OpenError>,
        now: impl FnMut() -> Now,
    ) -> Result<(), OpenError> {
        let mut hand = Blocking::new(&self.path)?;
        let shards = Shards {
            config,
            seed,
            make_io,
            now,
        };
        let changed = self.layout.change(&mut hand, shards);
        changed.map_err(|error| match error {
            OpenError::Unusable { reason, .. } => OpenError::Unusable {
                path: self.path.display().to_string(),
                reason,
            },
            error => error,
        })
    }
}

/// The data directory without a ring: this thread does what the helpers' does.
struct Blocking {
    tree: DirTree,
    dir: Dir,
}

impl Blocking {
    fn new(path: &Path) -> Result<Self, IoError> {
        Ok(Self {
            tree: DirTree::new(path),
            dir: Dir::open_root(path)?,
        })
    }
}

impl ReadTree for Blocking {
    fn list(&self, dir: &RelPath) -> Result<Vec<(String, u64)>, IoError> {
        self.tree.list(dir)
    }

    fn read(&self, file: &RelPath, offset: u64, len: usize) -> Result<Vec<u8>, IoError> {
        self.tree.read(file, offset, len)
    }
}

impl Hand for Blocking {
    fn apply(&mut self, steps: Vec<Step>) -> Result<(), IoError> {
        do_now(&self.dir, steps)
    }
}

fn io_error(operation: &'static str, path: &str, error: &std::io::Error) -> IoError {
    let errno = error.raw_os_error().unwrap_or(libc::EIO);
    IoError {
        operation,
        path: path.to_owned(),
        offset: 0,
        len: 0,
        errno,
    }
}

fn make_dir(path: &Path) -> Result<(), OpenError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| io_error("create", &path.display().to_string(), &error))?;
    Ok(())
}

fn sync_dir(path: &Path) -> Result<(), OpenError> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(|error| io_error("fsync", &path.display().to_string(), &error))?;
    Ok(())
}

/// Refuses file systems that are read-only or shared with other machines.
fn check_file_system(path: &Path) -> Result<(), OpenError> {
    let name = path.display().to_string();
    let unusable = |reason: String| OpenError::Unusable {
        path: name.clone(),
        reason,
    };
    let failed = |errno: nix::Error| {
        let error = std::io::Error::from(errno);
        OpenError::from(io_error("statfs", &path.display().to_string(), &error))
    };
    if statvfs(path)
        .map_err(failed)?
        .flags()
        .contains(FsFlags::ST_RDONLY)
    {
        return Err(unusable(
            "the file system is read-only; mount it for writing".to_owned(),
        ));
    }
    let kind = nix::sys::statfs::statfs(path)
        .map_err(failed)?
        .filesystem_type();
    let network = NETWORK_FILE_SYSTEMS
        .iter()
        .find(|(magic, _)| nix::sys::statfs::FsType(*magic) == kind);
    match network {
        Some((_, kind)) => Err(unusable(format!(
            "it lies on {kind}, which other machines may write too; use a local file system"
        ))),
        None => Ok(()),
    }
}

fn lock(path: &Path) -> Result<Flock<File>, OpenError> {
    let name = path.join("LOCK");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&name)
        .map_err(|error| io_error("open", &name.display().to_string(), &error))?;
    for tried in 1..=LOCK_TRIES {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                let pid = std::process::id().to_string();
                let written = lock
                    .set_len(0)
                    .and_then(|()| lock.write_all(pid.as_bytes()));
                written.map_err(|error| io_error("write", "LOCK", &error))?;
                return Ok(lock);
            }
            Err((back, _errno)) => file = back,
        }
        if tried < LOCK_TRIES {
            std::thread::sleep(LOCK_PAUSE);
        }
    }
    let mut text = String::new();
    let pid = file
        .take(16)
        .read_to_string(&mut text)
        .ok()
        .and_then(|_| text.trim().parse().ok());
    Err(OpenError::InUse {
        path: path.display().to_string(),
        pid: pid.unwrap_or(0),
    })
}

fn read_store_file(path: &Path) -> Result<Option<StoreFile>, OpenError> {
    let file = match File::open(path.join("STORE")) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("open", "STORE", &error).into()),
    };
    let mut bytes = Vec::new();
    let bytes_max = u64::try_from(STORE_BYTES_MAX).expect("64 KiB") + 1;
    file.take(bytes_max)
        .read_to_end(&mut bytes)
        .map_err(|error| io_error("read", "STORE", &error))?;
    let decoded = StoreFile::decode(&bytes);
    let corrupt = |reason| Corrupt {
        file: "STORE".to_owned(),
        offset: 0,
        reason,
    };
    Ok(Some(decoded.map_err(corrupt)?))
}

/// Makes a store in an empty directory; STORE is written last.
fn create(path: &Path, options: &StoreOptions) -> Result<StoreFile, OpenError> {
    let name = path.display().to_string();
    let failed = |error: std::io::Error| io_error("list", &path.display().to_string(), &error);
    let mut made_before = false;
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?.file_name();
        let entry = entry.to_string_lossy().into_owned();
        let ours = ["p", "log", "stage", "STORE.new"].contains(&entry.as_str());
        made_before |= ours;
        if !ours && !HARMLESS.contains(&entry.as_str()) {
            return Err(OpenError::Unusable {
                path: name,
                reason: format!("it holds {entry:?} and no store; give an empty directory"),
            });
        }
    }
    // A crash while a store was made leaves directories without mail; with mail it is no new store.
    if made_before && has_mail(path) {
        return Err(OpenError::Unusable {
            path: name,
            reason: "it holds mail but its STORE file is missing; restore STORE from a copy".into(),
        });
    }
    for dir in ["log", "stage", "p"] {
        make_dir(&path.join(dir))?;
    }
    for partition in 0..options.partitions.value() {
        let partition = u16::try_from(partition).expect("at most 65,536 partitions");
        let dir = RelPath::partition_dir(PartitionId::new(partition));
        make_dir(&path.join(dir.as_str()))?;
    }
    sync_dir(&path.join("p"))?;
    let (uuid, key) = options.entropy.split_at(16);
    let half = |bytes: &[u8]| *bytes.first_chunk::<16>().expect("half of 32 bytes");
    let file = StoreFile {
        version: Version::OURS,
        store: StoreId::new(half(uuid)),
        node: options.node,
        partitions: options.partitions,
        logs: options.logs,
        key: HashKey::new(half(key)),
        newer: Vec::new(),
    };
    write_store_file(path, &file)?;
    Ok(file)
}

/// Whether any user directory or log exists.
fn has_mail(path: &Path) -> bool {
    let filled = |dir: PathBuf| std::fs::read_dir(dir).is_ok_and(|mut dir| dir.next().is_some());
    let partitions = std::fs::read_dir(path.join("p"))
        .into_iter()
        .flatten()
        .flatten();
    filled(path.join("log")) || partitions.into_iter().any(|dir| filled(dir.path()))
}

fn write_store_file(path: &Path, file: &StoreFile) -> Result<(), OpenError> {
    write_durably(path, "STORE.new", &file.encode())?;
    std::fs::rename(path.join("STORE.new"), path.join("STORE"))
        .map_err(|error| io_error("rename", "STORE", &error))?;
    sync_dir(path)
}

/// Writes a small file (mode 0600) and syncs it and its directory.
fn write_durably(root: &Path, name: &str, bytes: &[u8]) -> Result<(), OpenError> {
    let path = root.join(name);
    let failed = |error: std::io::Error| io_error("write", name, &error);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&path).map_err(failed)?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(failed)?;
    sync_dir(path.parent().unwrap_or(root))
}
