//! Lower priority for a helper thread, so that a checkpoint never delays an answer.
//!
//! A file of its own because the call has no safe wrapper in our crates.
#![expect(unsafe_code, reason = "setpriority has no safe wrapper in nix")]

/// Makes the calling thread alone nicer by `nice` (Linux counts `PRIO_PROCESS` 0 per thread).
/// Failing to is harmless and ignored: it only ever lowers the priority.
pub(super) fn lower_priority(nice: i32) {
    // SAFETY: no memory is passed.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
}

#[cfg(test)]
mod tests {
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
