//! What a process has used, from /proc (`proc_pid_stat(5)`, `proc_pid_status(5)`).

use std::time::Duration;

use nix::unistd::{Pid, SysconfVar, sysconf};

/// CPU time of a process, all its threads together, in steps of a clock tick (10 ms).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct CpuTime {
    /// Of the process itself.
    pub(crate) own: Duration,
    /// Of its children that were waited for.
    pub(crate) children: Duration,
}

impl CpuTime {
    /// `None` if the process is gone.
    pub(crate) fn of(pid: Pid) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let ticks_per_s = sysconf(SysconfVar::CLK_TCK).ok().flatten()?;
        Self::parse(&stat, u64::try_from(ticks_per_s).ok()?)
    }

    fn parse(stat: &str, ticks_per_s: u64) -> Option<Self> {
        // The second field is a name in parentheses that may hold blanks and parentheses.
        let (_, fields) = stat.rsplit_once(") ")?;
        let mut ticks = fields
            .split(' ')
            .skip(11)
            .map(|field| field.parse::<u64>().ok());
        let mut pair = || {
            let ticks = ticks.next()?? + ticks.next()??;
            Some(Duration::from_millis(
                ticks.saturating_mul(1000) / ticks_per_s.max(1),
            ))
        };
        Some(Self {
            own: pair()?,
            children: pair()?,
        })
    }

    /// What was used since `before`.
    #[must_use]
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            own: self.own.saturating_sub(before.own),
            children: self.children.saturating_sub(before.children),
        }
    }
}

/// The most memory that the process has had resident, in bytes.
pub(crate) fn resident_bytes_max(pid: Pid) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_an_odd_name() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 50 30 20 20 0";
        let time = CpuTime::parse(stat, 100).unwrap();
        assert_eq!(time.own, Duration::from_secs(2));
        assert_eq!(time.children, Duration::from_millis(500));
        assert_eq!(CpuTime::parse("7 (a) S 1", 100), None);
    }

    #[test]
    fn this_process_can_be_asked() {
        let time = CpuTime::of(Pid::this()).unwrap();
        assert!(time.since(time) == CpuTime::default());
        assert!(resident_bytes_max(Pid::this()).unwrap() > 1 << 20);
    }
}
