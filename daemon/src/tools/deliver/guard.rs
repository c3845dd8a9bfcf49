//! No end of the shim but the chosen one: whatever kills it becomes exit code 75 (STYLE.md 5.6).
//!
//! Exim bounces a mail whose pipe command dies by a signal (mail.md 3.2), and a release build aborts
//! on panic. So the panic hook exits 75, and so does the handler of every signal that would end the
//! process and can be caught; SIGABRT among them, since that is how an allocation fails. An alarm a
//! little behind the deadline catches whatever blocks outside our own waiting, such as a full
//! standard error. SIGPIPE is ignored by the runtime: a broken pipe is an error of `write`.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use signal_hook::consts::{
    SIGABRT, SIGALRM, SIGBUS, SIGHUP, SIGINT, SIGPROF, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2,
    SIGVTALRM, SIGXCPU, SIGXFSZ,
};

use crate::exit::Code;

const SIGNALS: [i32; 13] = [
    SIGABRT, SIGALRM, SIGBUS, SIGHUP, SIGINT, SIGPROF, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2,
    SIGVTALRM, SIGXCPU, SIGXFSZ,
];

/// How far behind the deadline the alarm rings.
const ALARM_BEHIND_SECONDS: u32 = 2;

/// Turns panics and signals of this process into exit code 75 from here on. To be called first.
///
/// A signal that cannot be registered keeps its default; that is no reason to refuse mail.
pub fn arm() {
    std::panic::set_hook(Box::new(|panic| {
        say(&format!("4.3.0 ringpost-deliver: internal error: {panic}"));
        signal_hook::low_level::exit(Code::TempFail.status());
    }));
    let always = Arc::new(AtomicBool::new(true));
    for signal in SIGNALS {
        let registered = signal_hook::flag::register_conditional_shutdown(
            signal,
            Code::TempFail.status(),
            Arc::clone(&always),
        );
        if let Err(error) = registered {
            say(&format!(
                "ringpost-deliver: signal {signal} keeps its default: {error}"
            ));
        }
    }
}

/// Rings the alarm, which exits 75, a little after `deadline`.
pub fn arm_alarm(deadline: Duration) {
    let seconds = u32::try_from(deadline.as_secs()).unwrap_or(u32::MAX);
    nix::unistd::alarm::set(seconds.saturating_add(ALARM_BEHIND_SECONDS));
}

/// A line on standard error, if there is one: `eprintln!` would panic.
fn say(line: &str) {
    drop(writeln!(std::io::stderr(), "{line}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs one of the ignored tests below in a process of its own and returns its exit code.
    fn status_of(name: &str) -> Option<i32> {
        let test = format!("tools::deliver::guard::tests::{name}");
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", &test])
            .output()
            .unwrap();
        output.status.code()
    }

    #[test]
    fn panics_signals_and_aborts_exit_75() {
        for name in ["panicking", "terminated", "aborting", "alarmed"] {
            assert_eq!(status_of(name), Some(75), "{name}");
        }
    }

    #[test]
    #[ignore = "a child of the test above"]
    fn panicking() {
        arm();
        panic!("as planned");
    }

    #[test]
    #[ignore = "a child of the test above"]
    fn terminated() {
        arm();
        signal_hook::low_level::raise(SIGTERM).unwrap();
    }

    #[test]
    #[ignore = "a child of the test above"]
    fn aborting() {
        arm();
        std::process::abort();
    }

    #[test]
    #[ignore = "a child of the test above"]
    fn alarmed() {
        arm();
        arm_alarm(Duration::ZERO);
        std::thread::park();
    }
}
