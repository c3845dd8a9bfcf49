//! Why `io_uring` cannot be used here, in one sentence that says what to change.

use crate::error::OpenError;

/// What the sentence depends on besides the errno.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Surroundings {
    /// `kernel.io_uring_disabled`, if the kernel has that setting.
    pub(crate) disabled: Option<u8>,
    /// Soft limit of open files.
    pub(crate) open_files: u64,
    /// Soft limit of locked memory in bytes.
    pub(crate) locked_bytes: u64,
}

impl Surroundings {
    pub(crate) fn look() -> Self {
        use nix::sys::resource::{Resource, getrlimit};
        let soft = |resource| getrlimit(resource).map_or(0, |(soft, _)| soft);
        let setting = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
        Self {
            disabled: setting.ok().and_then(|text| text.trim().parse().ok()),
            open_files: soft(Resource::RLIMIT_NOFILE),
            locked_bytes: soft(Resource::RLIMIT_MEMLOCK),
        }
    }
}

/// The error for a ring that could not be made.
pub(crate) fn no_ring(errno: i32, around: Surroundings) -> OpenError {
    let reason = match (errno, around.disabled) {
        (libc::EPERM, Some(2)) => "the setting kernel.io_uring_disabled is 2; allow it with \
             `sysctl kernel.io_uring_disabled=0`"
            .to_owned(),
        (libc::EPERM, Some(1)) => "the setting kernel.io_uring_disabled is 1; put this user into \
             the group of kernel.io_uring_group, or run `sysctl kernel.io_uring_disabled=0`"
            .to_owned(),
        (libc::EPERM | libc::EACCES, _) => "a seccomp filter, container or security module \
             forbids it; allow the system calls io_uring_setup, io_uring_enter and \
             io_uring_register to this process"
            .to_owned(),
        (libc::ENOSYS, _) => "the kernel does not have it, or a sandbox hides it; use Linux 6.0 \
             or newer with CONFIG_IO_URING, and allow the system call io_uring_setup"
            .to_owned(),
        (libc::EMFILE, _) => format!(
            "the limit of {} open files is reached; raise it (`ulimit -n`, LimitNOFILE= in a \
             systemd unit)",
            around.open_files
        ),
        (libc::ENFILE, _) => "the whole system has no file descriptors left; raise the setting \
             fs.file-max"
            .to_owned(),
        (libc::ENOMEM, _) => format!(
            "there is no memory for its queues; if the limit of locked memory ({} bytes) is the \
             cause, raise it (`ulimit -l`, LimitMEMLOCK= in a systemd unit)",
            around.locked_bytes
        ),
        (libc::EINVAL, _) => "the kernel is too old; use Linux 6.0 or newer".to_owned(),
        (errno, _) => format!(
            "its set-up failed: {} (errno {errno})",
            nix::errno::Errno::from_raw(errno).desc()
        ),
    };
    OpenError::NoRing { reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_has_a_sentence_that_says_what_to_change() {
        for (errno, disabled, expected) in [
            (libc::EPERM, Some(2), "sysctl kernel.io_uring_disabled=0"),
            (libc::EPERM, Some(1), "kernel.io_uring_group"),
            (libc::EPERM, Some(0), "seccomp"),
            (libc::EPERM, None, "seccomp"),
            (libc::ENOSYS, None, "CONFIG_IO_URING"),
            (libc::EMFILE, Some(0), "limit of 1024 open files"),
            (libc::ENFILE, Some(0), "fs.file-max"),
            (libc::ENOMEM, Some(0), "65536 bytes"),
            (libc::EINVAL, Some(0), "6.0"),
            (libc::EIO, Some(0), "errno 5"),
        ] {
            let around = Surroundings {
                disabled,
                open_files: 1024,
                locked_bytes: 65536,
            };
            let text = no_ring(errno, around).to_string();
            assert!(text.starts_with("io_uring cannot be used: "), "{text}");
            assert!(text.contains(expected), "{text}");
            assert!(!text.contains('\n') && !text.contains("  "), "{text}");
        }
    }
}
