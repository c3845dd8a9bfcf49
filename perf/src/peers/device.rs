//! What the block device below a folder was asked for, by whoever: the same way for all systems
//! (Documentation/block/stat.rst). So nothing else should write to it meanwhile.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

const SECTOR_BYTES: u64 = 512;

/// The device of a file system.
#[derive(Debug)]
pub(crate) struct Device {
    stat: Option<PathBuf>,
    folder: std::fs::File,
}

/// Since the device was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct DeviceCounts {
    /// Flush requests completed.
    pub(crate) flushes: u64,
    /// Bytes of writes completed.
    pub(crate) written_bytes: u64,
}

impl Device {
    /// The one below `folder`. A file system without a device has no counts.
    pub(crate) fn of(folder: &Path) -> anyhow::Result<Self> {
        let file = std::fs::File::open(folder)
            .with_context(|| format!("cannot open {}", folder.display()))?;
        let number = file.metadata()?.dev();
        let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
        let block = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        // Flushes are counted for the whole disk only.
        let disk = if block.join("partition").exists() {
            block.canonicalize()?.join("..")
        } else {
            block
        };
        let stat = disk.join("stat");
        Ok(Self {
            stat: stat.exists().then_some(stat),
            folder: file,
        })
    }

    /// Makes everything durable that is still in the page cache (`syncfs(2)`).
    pub(crate) fn sync(&self) -> anyhow::Result<()> {
        nix::unistd::syncfs(&self.folder).context("cannot sync the scratch folder's file system")
    }

    /// Its counts now.
    pub(crate) fn counts(&self) -> Option<DeviceCounts> {
        parse(&std::fs::read_to_string(self.stat.as_ref()?).ok()?)
    }
}

impl DeviceCounts {
    /// The difference.
    #[must_use]
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            flushes: self.flushes.saturating_sub(before.flushes),
            written_bytes: self.written_bytes.saturating_sub(before.written_bytes),
        }
    }
}

fn parse(stat: &str) -> Option<DeviceCounts> {
    let fields: Vec<u64> = stat
        .split_whitespace()
        .map_while(|field| field.parse().ok())
        .collect();
    Some(DeviceCounts {
        flushes: *fields.get(15)?,
        written_bytes: fields.get(6)?.checked_mul(SECTOR_BYTES)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sectors_and_flushes_are_found() {
        let stat = "   11882  4540 2464442 22747 2953 24143 3210312 15799 0 8308 39151 3850 34 133520 603 35 1";
        let counts = parse(stat).unwrap();
        assert_eq!(counts.flushes, 35);
        assert_eq!(counts.written_bytes, 3_210_312 * 512);
        let later = DeviceCounts {
            flushes: 40,
            written_bytes: counts.written_bytes + 1,
        };
        let difference = later.since(counts);
        assert_eq!((difference.flushes, difference.written_bytes), (5, 1));
        // Kernels before 5.5 do not count flushes.
        assert_eq!(parse("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15"), None);
    }

    #[test]
    fn a_folder_without_a_device_has_no_counts() {
        let device = Device::of(Path::new("/proc/self")).unwrap();
        assert_eq!(device.counts(), None);
    }
}
