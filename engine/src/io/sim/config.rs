//! The switches of a simulated disk.

/// Which names and sizes a crash may keep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Model {
    /// Metadata persists in order; a sync of a file takes its name along; data before size.
    Ext4,
    /// Any subset; names are sure after `SyncDir` only.
    Weak,
}

/// What a crash does with what is not durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Drawn for each item.
    Drawn,
    /// All of it is lost.
    Least,
    /// All of it is kept.
    Most,
}

/// How a process or machine ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crash {
    /// Caches are gone.
    PowerCut,
    /// Caches stay; log writes in flight may still land.
    Kill,
}

/// Which steps a fault is counted among.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Among {
    /// All of them, reads too.
    Steps,
    /// Those that look only: open, read, list.
    Reads,
    /// Those that move bytes of files.
    Writes,
    /// Those that make, move or remove names.
    Names,
    /// Those that make something durable by asking for it.
    Syncs,
}

/// A step that fails and is not done; a write does a part of its bytes first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StepError {
    /// What is counted.
    pub among: Among,
    /// The k-th of these.
    pub at: u64,
    /// With which errno.
    pub errno: i32,
}

/// What the medium does with one sector of a transfer that it confirms.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sector {
    /// Leaves the old content.
    Lost,
    /// Writes it over another sector, of this file or another, and leaves the old content here.
    Misdirected,
}

/// Which blocks of 4096 bytes in flight at a power cut may become garbage, old bytes in them too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Harsh {
    /// None: each sector of 512 bytes is old or new.
    No,
    /// Those of log writes. Nothing durable is in them: frames and headers have blocks of their own,
    /// and of two superblocks one is written.
    Direct,
    /// All.
    Yes,
}

/// Bytes on the medium that are not what was written there.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Wound {
    /// The file, by a name it had then; empty if it had none.
    pub path: String,
    /// Bytes from its start.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// A simulated disk's behaviour. One-shot switches count from the making of the disk, from 1.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SimConfig {
    /// Of every draw.
    pub seed: u64,
    /// What a crash may keep.
    pub model: Model,
    /// What becomes of the rest.
    pub fate: Fate,
    /// Ops in flight of one `Io`.
    pub ops_max: usize,
    /// Virtual ns that pass with each `poll`.
    pub poll_ns: u64,
    /// One step in so many takes `slow_factor` times as long; 0 is never.
    pub slow_one_in: u32,
    /// How much longer a slow step takes.
    pub slow_factor: u64,
    /// One transfer in so many is short first; 0 is never.
    pub short_one_in: u32,
    /// One step fails.
    pub error_at: Option<StepError>,
    /// The k-th sync fails with EIO, its pages are marked clean, its cache may be evicted.
    pub sync_error_at: Option<u64>,
    /// Room for file contents in bytes; the bytes that fit are written, then it is `full_errno`.
    pub capacity_bytes: Option<u64>,
    /// ENOSPC, or EDQUOT.
    pub full_errno: i32,
    /// Files there can be; one more is `full_errno`.
    pub inodes_max: Option<u64>,
    /// Names that a file can have; one more is EMLINK.
    pub links_max: Option<u32>,
    /// The k-th log write is confirmed and not done.
    pub lost_write_at: Option<u64>,
    /// The k-th transfer to the medium (a log write, a file that a sync finds dirty) goes wrong in
    /// one sector.
    pub sector_at: Option<(u64, Sector)>,
    /// What a power cut may turn into garbage.
    pub harsh: Harsh,
    /// The disk freezes before the k-th change (reads do not count).
    pub crash_at: Option<u64>,
    /// Whether a line is kept for each step.
    pub trace: bool,
}

impl SimConfig {
    /// A disk without faults but for what a crash does.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            model: Model::Ext4,
            fate: Fate::Drawn,
            ops_max: 512,
            poll_ns: 20_000,
            slow_one_in: 0,
            slow_factor: 50,
            short_one_in: 0,
            error_at: None,
            sync_error_at: None,
            capacity_bytes: None,
            full_errno: libc::ENOSPC,
            inodes_max: None,
            links_max: None,
            lost_write_at: None,
            sector_at: None,
            harsh: Harsh::No,
            crash_at: None,
            trace: false,
        }
    }

    /// The same disk under [`Model::Weak`].
    #[must_use]
    pub fn weak(mut self) -> Self {
        self.model = Model::Weak;
        self
    }

    /// The same disk with a crash before its k-th change.
    #[must_use]
    pub fn crash_at(mut self, change: u64) -> Self {
        self.crash_at = Some(change);
        self
    }

    /// What holds for the image after a crash: the one-shot switches are spent.
    pub(super) fn after_crash(&self, seed: u64) -> Self {
        Self {
            seed,
            error_at: None,
            sync_error_at: None,
            lost_write_at: None,
            sector_at: None,
            crash_at: None,
            ..self.clone()
        }
    }
}
