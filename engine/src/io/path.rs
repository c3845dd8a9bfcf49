//! Names in the data directory (storage.md 2.1). Only this file spells them.

use std::ffi::{CStr, CString};
use std::fmt;

use ringpost_netproto::id::{MailboxId, PartitionId, Uid, UserHash};

/// A path relative to the data directory, without `..`, as the kernel takes it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelPath(CString);

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_string_lossy())
    }
}

impl RelPath {
    /// Every name the engine makes is ASCII and has no NUL.
    fn new(name: String) -> Self {
        Self(CString::new(name).expect("names are made of digits, letters, dots and slashes"))
    }

    /// For system calls.
    pub fn as_c_str(&self) -> &CStr {
        &self.0
    }

    /// For messages and for `std::fs`.
    pub fn as_str(&self) -> &str {
        self.0.to_str().expect("names are ASCII")
    }

    /// The directory that holds this entry; the data directory itself is `.`.
    #[must_use]
    pub fn parent(&self) -> Self {
        let name = self.as_str();
        Self::new(
            name.rsplit_once('/')
                .map_or(".", |(parent, _)| parent)
                .to_owned(),
        )
    }

    /// The last component.
    pub fn file_name(&self) -> &str {
        let name = self.as_str();
        name.rsplit_once('/').map_or(name, |(_, last)| last)
    }

    /// This name with a suffix, for files written aside.
    #[must_use]
    pub fn with_suffix(&self, suffix: &str) -> Self {
        Self::new(format!("{self}{suffix}"))
    }

    /// An entry of a directory that was listed; `None` if the name is not plain ASCII or is special.
    pub fn entry(&self, name: &str) -> Option<Self> {
        let plain = name.is_ascii() && !name.is_empty() && !name.contains(['/', '\0']);
        (plain && name != "." && name != "..").then(|| Self::new(format!("{self}/{name}")))
    }

    /// The data directory.
    pub fn root() -> Self {
        Self::new(".".to_owned())
    }

    /// `STORE`: what the data directory is.
    pub fn store() -> Self {
        Self::new("STORE".to_owned())
    }

    /// `lost`: what a repair set aside.
    pub fn lost_dir() -> Self {
        Self::new("lost".to_owned())
    }

    /// `lost/<name>`. The name is ASCII and has no slash.
    pub fn lost(name: &str) -> Self {
        Self::new(format!("lost/{name}"))
    }

    /// `log/<id>`: one shard's log.
    pub fn log_dir(log_id: u32) -> Self {
        Self::new(format!("log/{log_id:02x}"))
    }

    /// `log/<id>/super`.
    pub fn superblock(log_id: u32) -> Self {
        Self::new(format!("log/{log_id:02x}/super"))
    }

    /// `log/<id>/<NNNN>.log`.
    pub fn log_file(log_id: u32, number: u32) -> Self {
        Self::new(format!("log/{log_id:02x}/{number:04}.log"))
    }

    /// `log/<id>/dedupe`.
    pub fn dedupe(log_id: u32) -> Self {
        Self::new(format!("log/{log_id:02x}/dedupe"))
    }

    /// `log/<id>/parts.<0|1>`.
    pub fn parts(log_id: u32, copy: u8) -> Self {
        Self::new(format!("log/{log_id:02x}/parts.{copy}"))
    }

    /// `archive`: log files that left the log.
    pub fn archive_root() -> Self {
        Self::new("archive".to_owned())
    }

    /// `archive/<id>`: those of one shard.
    pub fn archive_dir(log_id: u32) -> Self {
        Self::new(format!("archive/{log_id:02x}"))
    }

    /// `archive/<id>/<sequence>-<seconds>.log`: a log file kept since that second of 1970.
    pub fn archived(log_id: u32, sequence: u64, at_s: u64) -> Self {
        Self::new(format!(
            "archive/{log_id:02x}/{sequence:016x}-{at_s:010x}.log"
        ))
    }

    /// `archive/<id>/<sequence>.held`: a log file held for a backup that runs.
    pub fn held(log_id: u32, sequence: u64) -> Self {
        Self::new(format!("archive/{log_id:02x}/{sequence:016x}.held"))
    }

    /// `archive/<id>/<user>.<file>-<seconds>.mbox`: an expunged large message that had the path
    /// `p/<partition>/<user>/<file>.mbox`, kept since that second of 1970. `None` if that is not the
    /// path of one.
    pub fn archived_large(&self, log_id: u32, at_s: u64) -> Option<Self> {
        let name = self.file_name().strip_suffix(".mbox")?;
        (name.split('.').count() == 3).then(|| {
            let user = self.parent();
            let user = user.file_name();
            Self::new(format!(
                "archive/{log_id:02x}/{user}.{name}-{at_s:010x}.mbox"
            ))
        })
    }

    /// `log/<id>/scrub`.
    pub fn scrub(log_id: u32) -> Self {
        Self::new(format!("log/{log_id:02x}/scrub"))
    }

    /// `stage/<core>-<seq>.part`: a large message being received.
    pub fn stage(log_id: u32, sequence: u64) -> Self {
        Self::new(format!("stage/{log_id:02x}-{sequence:016x}.part"))
    }

    /// `p/<partition>`.
    pub fn partition_dir(partition: PartitionId) -> Self {
        Self::new(format!("p/{partition}"))
    }

    /// `p/<partition>/<hash>-<ordinal>`: all of one user.
    pub fn user_dir(partition: PartitionId, hash: UserHash, ordinal: u32) -> Self {
        Self::new(format!("p/{partition}/{hash}-{ordinal}"))
    }

    /// `info.<generation>` of a user directory.
    #[must_use]
    pub fn info(&self, generation: u32) -> Self {
        Self::new(format!("{self}/info.{generation:08x}"))
    }

    /// `info.<generation>.part` of a user directory: not committed by a record yet.
    #[must_use]
    pub fn info_part(&self, generation: u32) -> Self {
        Self::new(format!("{self}/info.{generation:08x}.part"))
    }

    /// `folders` of a user directory.
    #[must_use]
    pub fn folders(&self) -> Self {
        Self::new(format!("{self}/folders"))
    }

    /// `<segment>.mbox` of a user directory.
    #[must_use]
    pub fn segment(&self, segment: u32) -> Self {
        Self::new(format!("{self}/{segment:08x}.mbox"))
    }

    /// `<segment>.<mailbox>.<uid>.mbox` of a user directory: one large message.
    #[must_use]
    pub fn large(&self, segment: u32, mailbox: MailboxId, uid: Uid) -> Self {
        Self::new(format!(
            "{self}/{segment:08x}.{mailbox}.{:08x}.mbox",
            uid.value()
        ))
    }

    /// `<segment>.part` of a user directory: not committed by a record yet.
    #[must_use]
    pub fn segment_part(&self, segment: u32) -> Self {
        Self::new(format!("{self}/{segment:08x}.part"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_design() {
        let user = RelPath::user_dir(
            PartitionId::new(0xABC),
            UserHash::new(0xABC0_0000_0000_0001),
            0,
        );
        assert_eq!(user.as_str(), "p/0abc/abc0000000000001-0");
        assert_eq!(
            user.info(1).as_str(),
            "p/0abc/abc0000000000001-0/info.00000001"
        );
        assert_eq!(
            user.large(3, MailboxId::INBOX, Uid::new(255)).file_name(),
            "00000003.00000001.000000ff.mbox"
        );
        let large = user.large(3, MailboxId::INBOX, Uid::new(255));
        assert_eq!(
            large.archived_large(1, 0xFF).as_ref().map(RelPath::as_str),
            Some("archive/01/abc0000000000001-0.00000003.00000001.000000ff-00000000ff.mbox")
        );
        assert_eq!(user.segment(3).archived_large(1, 0xFF), None);
        assert_eq!(user.parent().as_str(), "p/0abc");
        assert_eq!(RelPath::superblock(1).as_str(), "log/01/super");
        assert_eq!(RelPath::log_file(1, 12).parent(), RelPath::log_dir(1));
    }

    #[test]
    fn a_listed_name_cannot_leave_its_directory() {
        let dir = RelPath::log_dir(0);
        for bad in ["", ".", "..", "a/b", "\u{e4}", "a\0"] {
            assert_eq!(dir.entry(bad), None);
        }
        assert!(dir.entry("0001.log").is_some());
    }
}
