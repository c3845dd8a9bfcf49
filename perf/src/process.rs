//! What a process has used, and what the machine was kept from using, from /proc (`proc_pid_stat(5)`,
//! `proc_pid_status(5)`, `proc_stat(5)`).

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

/// Time of all processors of this machine together, in clock ticks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct MachineTime {
    /// When one was to run and the hypervisor ran something else, or nothing: a limit of CPU that a
    /// machine has used up stops all its processors for the rest of a period of, by default, 100 ms.
    stolen: u64,
    all: u64,
}

impl MachineTime {
    /// `None` if the kernel does not say.
    pub(crate) fn now() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/stat").ok()?)
    }

    fn parse(stat: &str) -> Option<Self> {
        let fields = stat.lines().next()?.strip_prefix("cpu ")?;
        // user, nice, system, idle, iowait, irq, softirq, steal; guests' time is in the first two.
        let ticks = fields.split_ascii_whitespace().take(8);
        let ticks: Vec<u64> = ticks
            .map(|field| field.parse().ok())
            .collect::<Option<_>>()?;
        Some(Self {
            stolen: *ticks.get(7)?,
            all: ticks.iter().copied().fold(0, u64::saturating_add),
        })
    }

    /// The stolen part of all time since `before`, 0 to 1.
    pub(crate) fn stolen_since(self, before: Self) -> Option<f64> {
        let ticks =
            |now: u64, before: u64| u32::try_from(now.checked_sub(before)?).ok().map(f64::from);
        let all = ticks(self.all, before.all).filter(|all| *all > 0.0)?;
        Some(ticks(self.stolen, before.stolen)? / all)
    }
}

/// The stolen part of the machine's time, for people, where it is enough to make a tail: a hundredth.
pub(crate) fn stolen_remark(share: Option<f64>) -> Option<String> {
    let share = share.filter(|share| *share >= 0.01)?;
    Some(format!(
        "the hypervisor withheld {:.1} % of the processors' time meanwhile: its pauses are in the tail \
         of the latencies",
        share * 100.0
    ))
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
    fn stolen_time_is_a_share_of_all_processors() {
        let stat = "cpu  10 0 20 60 5 0 1 4 3 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        let before = MachineTime::parse(stat).unwrap();
        assert_eq!((before.stolen, before.all), (4, 100));
        let now = MachineTime::parse("cpu  60 0 20 60 5 0 1 54 53 0\n").unwrap();
        assert_eq!(now.stolen_since(before), Some(0.5));
        assert_eq!(before.stolen_since(before), None, "no time has gone by");
        assert_eq!(before.stolen_since(now), None, "the counters went back");
        assert_eq!(MachineTime::parse("cpu  1 2 3 4 5 6 7\n"), None, "no steal");
        assert_eq!(stolen_remark(Some(0.009)), None);
        assert!(stolen_remark(Some(0.058)).unwrap().contains(" 5.8 %"));
    }

    #[test]
    fn this_process_can_be_asked() {
        let time = CpuTime::of(Pid::this()).unwrap();
        assert!(time.since(time) == CpuTime::default());
        assert!(resident_bytes_max(Pid::this()).unwrap() > 1 << 20);
        assert!(MachineTime::now().unwrap().all > 0);
    }
}
