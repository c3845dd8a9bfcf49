//! How threads share a processor: helpers yield to cores, so that a checkpoint never delays an answer, and a
//! core that wakes does not wait for a long turn of somebody else.
//!
//! A file of its own because the calls have no safe wrapper in our crates.
#![expect(unsafe_code, reason = "no safe wrapper of these calls in nix")]

/// Turn of a core, ns: the shortest that Linux gives.
const TURN_NS: u64 = 100_000;

/// Makes the calling thread alone nicer by `nice` (Linux counts `PRIO_PROCESS` 0 per thread).
/// Failing to is harmless and ignored: it only ever lowers the priority.
pub(super) fn lower_priority(nice: i32) {
    // SAFETY: no memory is passed.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
}

/// Asks for short turns on the processor for the calling thread: when it wakes it comes before threads
/// with longer ones; its share stays what it was (EEVDF, Linux 6.12 on). Needs no privilege. Failing to
/// is harmless and ignored; an older kernel takes the call and does as before.
pub fn short_turns() {
    let Some(mut attr) = attributes() else { return };
    attr.sched_runtime = TURN_NS;
    let attr: *const libc::sched_attr = &raw const attr;
    // SAFETY: the kernel reads `attr.size` bytes at `attr`, which has as many.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, attr, 0) };
}

/// Of the calling thread.
fn attributes() -> Option<libc::sched_attr> {
    let size = u32::try_from(size_of::<libc::sched_attr>()).expect("48");
    let mut attr = libc::sched_attr {
        size,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    let to: *mut libc::sched_attr = &raw mut attr;
    // SAFETY: the kernel writes at most `size` bytes at `to`, which has as many.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, to, size, 0) };
    (result == 0).then_some(attr)
}

#[cfg(test)]
mod tests {
    #[test]
    fn short_turns_are_the_calling_threads_alone_and_keep_its_priority() {
        let of_here = || super::attributes().unwrap();
        let before = of_here();
        let there = std::thread::spawn(move || {
            super::lower_priority(3);
            super::short_turns();
            of_here()
        });
        let there = there.join().unwrap();
        // Linux before 6.12 says 0 for both.
        assert!(there.sched_runtime == super::TURN_NS || before.sched_runtime == 0);
        assert_eq!(there.sched_nice, before.sched_nice + 3);
        assert_eq!(there.sched_policy, before.sched_policy);
        assert_eq!(of_here().sched_runtime, before.sched_runtime);
    }

    #[test]
    fn only_the_calling_thread_becomes_nicer() {
        let nice_of = |stat: String| {
            let behind_name = stat.rsplit_once(") ").unwrap().1.to_owned();
            behind_name
                .split(' ')
                .nth(16)
                .unwrap()
                .parse::<i32>()
                .unwrap()
        };
        let here = move || nice_of(std::fs::read_to_string("/proc/thread-self/stat").unwrap());
        let before = here();
        let there = std::thread::spawn(move || {
            super::lower_priority(7);
            here()
        });
        assert_eq!(there.join().unwrap(), 7);
        assert_eq!(here(), before);
    }
}
