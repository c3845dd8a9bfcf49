//! `--via mda`: one `ringpost-deliver` per message, N at a time, as an MTA's pipe(8) does it. Peers
//! are run by it as well: any program that takes a message on its standard input.

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;

use super::plan::{Plan, Serials};
use super::session::Outcome;
use super::tally::{Tally, Watched};
use crate::address::Address;
use crate::letters::Letters;
use crate::schedule::Arrivals;
use crate::workload::SENDER;

#[expect(
    clippy::disallowed_types,
    reason = "threads that fork and wait share their account; it is locked for a microsecond"
)]
type Lock<T> = std::sync::Mutex<T>;

/// What the threads share.
struct Shared {
    arrivals: Option<Arrivals>,
    random: fastrand::Rng,
    letters: Letters,
    tally: Tally,
    bytes_sent: u64,
}

/// A message to be sent by a thread.
struct Task {
    due: Duration,
    /// The number of its letter, and the message.
    letter: usize,
    bytes: Bytes,
    serial: u64,
    recipients: Vec<usize>,
}

/// Makes the call of a program for a message to these users.
pub(crate) type Calls<'a> = dyn Fn(&[&str]) -> Command + Sync + 'a;

/// Runs `plan.in_flight` threads until the end and returns their account.
pub(crate) fn run(plan: &Plan, calls: &Calls<'_>, begin: Instant) -> anyhow::Result<Tally> {
    let shared = Lock::new(Shared {
        arrivals: Arrivals::new(plan.pace, 1, plan.seed),
        random: fastrand::Rng::with_seed(plan.seed),
        letters: plan.letters(0, plan.in_flight)?,
        tally: Tally::new(plan.users.count()),
        bytes_sent: 0,
    });
    std::thread::scope(|scope| {
        for _sender in 0..plan.in_flight {
            scope.spawn(|| send(plan, &shared, calls, begin));
        }
    });
    let shared = shared
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut tally = shared.tally;
    tally.count_overdue(plan, shared.arrivals, begin.elapsed());
    tally.close(shared.letters.into_all());
    Ok(tally)
}

/// The call of `ringpost-deliver` at a node's socket.
pub(crate) fn shim(program: &Path, node: &Address, users: &[&str]) -> Command {
    let mut command = Command::new(program);
    let socket = match node {
        Address::Unix(path) => path.as_os_str().to_owned(),
        Address::Tcp(name) => name.into(),
    };
    command.arg("--socket").arg(socket).args(["-f", SENDER]);
    for user in users {
        command.arg("-d").arg(user);
    }
    command
}

/// One thread: takes a task, waits until it is due, runs the program.
fn send(plan: &Plan, shared: &Lock<Shared>, calls: &Calls<'_>, begin: Instant) {
    loop {
        let task = lock(shared).next(plan, begin.elapsed());
        let Some(task) = task else {
            return;
        };
        // Nothing can be answered earlier than it is due, and the thread has nothing else to do.
        std::thread::sleep(task.due.saturating_sub(begin.elapsed()));
        let late = begin.elapsed().saturating_sub(task.due);
        let names = task.recipients.iter().map(|&user| plan.users.name(user));
        let mut command = calls(&names.collect::<Vec<_>>());
        let outcome = match deliver(&mut command, &task.bytes) {
            Ok(outcome) => outcome,
            Err(error) => Outcome::Refused(format!("{error:#}")),
        };
        let elapsed = begin.elapsed();
        let mut shared = lock(shared);
        shared.tally.late_max = shared.tally.late_max.max(late);
        let (letter, serial) = (task.letter, task.serial);
        for &user in &task.recipients {
            let to = Watched {
                user,
                letter,
                serial,
            };
            shared.tally.count_recipient(plan, to, &outcome, elapsed);
        }
        if plan.is_success(&outcome) {
            shared.tally.count_message(plan, task.due, elapsed);
        }
        shared.letters.put_back(letter, task.bytes);
    }
}

fn lock(shared: &Lock<Shared>) -> std::sync::MutexGuard<'_, Shared> {
    shared
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Shared {
    fn next(&mut self, plan: &Plan, elapsed: Duration) -> Option<Task> {
        let due = match &mut self.arrivals {
            None => elapsed,
            Some(arrivals) => arrivals.peek(),
        };
        if due >= plan.end() || elapsed >= plan.end() || self.tally.capped {
            return None;
        }
        if let Some(arrivals) = &mut self.arrivals {
            arrivals.take(due);
        }
        let mut recipients = Vec::new();
        plan.draw(self.tally.sent, &mut self.random, &mut recipients);
        let serial = match plan.serials {
            Serials::Fresh => self.tally.sent,
            Serials::Repeated => 0,
        };
        self.tally.sent += 1;
        let (letter, bytes) = self.letters.seal(serial, &mut self.random);
        self.bytes_sent += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.tally.capped = self.bytes_sent >= plan.bytes_max;
        Some(Task {
            due,
            letter,
            bytes,
            serial,
            recipients,
        })
    }
}

/// Runs the program with the message on its standard input. Its exit code is for all recipients.
fn deliver(command: &mut Command, message: &[u8]) -> anyhow::Result<Outcome> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    // A program that gives up early closes its input; its exit code says more than EPIPE.
    drop(feed(&mut child, message));
    let output = child
        .wait_with_output()
        .context("cannot wait for the program")?;
    if output.status.success() {
        return Ok(Outcome::Stored);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().next().unwrap_or("");
    Ok(Outcome::Refused(format!("{}: {said}", output.status)))
}

fn feed(child: &mut Child, message: &[u8]) -> std::io::Result<()> {
    child
        .stdin
        .take()
        .map_or(Ok(()), |mut stdin| stdin.write_all(message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deliver::window::Window;

    fn run_script(plan: &Plan, script: &'static str) -> Tally {
        let shared = Lock::new(Shared {
            arrivals: Arrivals::new(plan.pace, 1, plan.seed),
            random: fastrand::Rng::with_seed(plan.seed),
            letters: plan.letters(0, 1).unwrap(),
            tally: Tally::new(plan.users.count()),
            bytes_sent: 0,
        });
        let command = |users: &[&str]| {
            assert_eq!(users.len(), 1);
            let mut command = Command::new("sh");
            command.args(["-c", script, "sh"]);
            command
        };
        send(plan, &shared, &command, Instant::now());
        shared.into_inner().unwrap().tally
    }

    #[test]
    fn exit_code_zero_is_stored_and_anything_else_is_told() {
        let mut plan = Plan::tiny(4);
        plan.bytes_max = 3 * 512;
        plan.window = Window::at(Duration::ZERO, Duration::from_mins(1));
        let tally = run_script(&plan, "test $(wc -c) = 512");
        assert_eq!((tally.sent, tally.recipients_all), (3, 3));
        assert_eq!(tally.latencies.summary().count, 3);

        let tally = run_script(&plan, "echo 4.3.0 not now >&2; exit 75");
        let (text, count) = tally.errors.first_key_value().unwrap();
        assert!(
            text.contains("75") && text.contains("4.3.0 not now"),
            "{text}"
        );
        assert_eq!((*count, tally.doubtful_by_user.iter().sum::<u32>()), (3, 3));
    }

    #[test]
    fn open_loop_waits_for_the_due_time() {
        let mut plan = Plan::tiny(4);
        plan.pace = crate::schedule::Pace::Open { rate: 100.0 };
        plan.window = Window::at(Duration::ZERO, Duration::from_millis(200));
        let tally = run_script(&plan, "exit 0");
        assert!(tally.sent < 60, "{}", tally.sent);
    }
}
