//! The machine that a figure was taken on: a number without it is no result (STYLE.md 9.2).

use std::path::Path;
use std::process::Command;

use anyhow::Context as _;
use serde::Serialize;

use crate::programs;
use crate::table;

/// Goes into every JSON line.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Environment {
    /// Processor model, as the kernel names it.
    pub(crate) machine: String,
    /// Cores this process may use.
    pub(crate) cores: usize,
    /// Bytes of memory.
    pub(crate) memory_bytes: u64,
    /// Release of the running kernel.
    pub(crate) kernel: String,
    /// File system type of the scratch folder.
    pub(crate) fs: String,
    /// Its mount options.
    pub(crate) fs_options: String,
    /// Its device.
    pub(crate) device: String,
    /// Commit of the sources, with `+` behind it if files were changed since.
    pub(crate) commit: String,
    /// Cargo's profile of this program and so of those beside it: the folder they lie in.
    pub(crate) profile: String,
    /// Seconds since 1970 at the start.
    pub(crate) time_s: u64,
}

impl Environment {
    /// Looks around. `folder` is where the data will be.
    pub(crate) fn look(folder: &Path, sources: &Path) -> anyhow::Result<Self> {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let mount = Mount::of(folder, &read("/proc/self/mountinfo"))?;
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Ok(Self {
            machine: field(&read("/proc/cpuinfo"), "model name").to_owned(),
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory_bytes: memory_bytes(&read("/proc/meminfo")),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            fs: mount.kind,
            fs_options: mount.options,
            device: mount.device,
            commit: commit(sources),
            profile: profile()?,
            time_s: since.map_or(0, |since| since.as_secs()),
        })
    }

    /// For people.
    pub(crate) fn sentence(&self) -> String {
        format!(
            "{}, {} cores, {}, Linux {}; {} on {}; commit {} ({})",
            self.machine,
            self.cores,
            table::bytes(self.memory_bytes),
            self.kernel,
            self.fs,
            self.device,
            self.commit,
            self.profile
        )
    }
}

/// `dist`, `release` or `debug`.
fn profile() -> anyhow::Result<String> {
    let folder = programs::folder()?;
    let name = folder
        .file_name()
        .context("the programs lie in no folder")?;
    Ok(name.to_string_lossy().into_owned())
}

/// The value of a `name : value` line.
fn field<'a>(text: &'a str, name: &str) -> &'a str {
    let value = |line: &'a str| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    };
    text.lines().find_map(value).unwrap_or("unknown")
}

fn memory_bytes(meminfo: &str) -> u64 {
    let total = field(meminfo, "MemTotal");
    let kib = total
        .split(' ')
        .next()
        .and_then(|number| number.parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

fn commit(sources: &Path) -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git")
            .arg("-C")
            .arg(sources)
            .args(arguments)
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success().then_some(text)
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "unknown".to_owned();
    };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]);
    if changed.is_some_and(|changed| changed.is_empty()) {
        commit
    } else {
        format!("{commit}+")
    }
}

/// The mount that holds a path (`proc_pid_mountinfo(5)`).
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    kind: String,
    device: String,
    options: String,
}

impl Mount {
    fn of(folder: &Path, mountinfo: &str) -> anyhow::Result<Self> {
        let folder = folder
            .canonicalize()
            .with_context(|| format!("cannot find {}", folder.display()))?;
        let mut best: Option<(usize, Self)> = None;
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else {
                continue;
            };
            let Some(point) = left.split(' ').nth(4) else {
                continue;
            };
            let mut right = right.split(' ');
            let (Some(kind), Some(device)) = (right.next(), right.next()) else {
                continue;
            };
            // Of two mounts on one point the later one is seen.
            let deeper = best.as_ref().is_none_or(|(len, _)| point.len() >= *len);
            if deeper && folder.starts_with(point) {
                let mount = Self {
                    kind: kind.to_owned(),
                    device: device.to_owned(),
                    options: right.next().unwrap_or("").to_owned(),
                };
                best = Some((point.len(), mount));
            }
        }
        let none = || format!("{} is on no known file system", folder.display());
        best.map(|(_, mount)| mount).with_context(none)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deepest_mount_wins() {
        let mountinfo = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard\n\
30 22 0:25 / /proc rw - proc proc rw\n\
31 22 0:26 / /u rw - tmpfs none rw\n";
        let mount = Mount::of(Path::new("/usr"), mountinfo).unwrap();
        assert_eq!(
            (mount.kind.as_str(), mount.device.as_str()),
            ("ext4", "/dev/vda")
        );
        assert_eq!(mount.options, "rw,discard");
        assert_eq!(
            Mount::of(Path::new("/proc/self"), mountinfo).unwrap().kind,
            "proc"
        );
        assert!(Mount::of(Path::new("/no/such/folder"), mountinfo).is_err());
    }

    #[test]
    fn this_machine_can_be_described() {
        let here = Environment::look(&std::env::temp_dir(), &programs::workspace()).unwrap();
        assert!(here.cores > 0 && here.memory_bytes > 1 << 20);
        assert!(!here.kernel.is_empty() && !here.fs.is_empty());
        // Tests run in the folder below the profile's.
        assert!(!["", "deps"].contains(&here.profile.as_str()));
    }
}
