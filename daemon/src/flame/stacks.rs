//! Stacks as `perf script` prints them, folded into one tree per thread, and these as text.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// From here on addresses are the kernel's (x86-64 and aarch64: the upper half).
const KERNEL_FROM: u64 = 1 << 63;

/// Threads by name; those of one name are one.
pub type Threads = BTreeMap<String, Frame>;

/// A frame with what it called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// Samples, or microseconds, in it and all below.
    pub count: u64,
    /// In it alone.
    pub own: u64,
    /// What it called, by name.
    pub called: BTreeMap<Name, Self>,
}

/// A function, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// As perf names it.
    pub text: String,
    /// Whether it runs in the kernel.
    pub side: Side,
}

/// Whose code it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// The daemon's, or a library's.
    User,
    /// The kernel's.
    Kernel,
}

impl Frame {
    /// Adds a stack, outermost frame first.
    fn add(&mut self, stack: impl Iterator<Item = Name>, count: u64) {
        self.count += count;
        let mut frame = self;
        for name in stack {
            frame = frame.called.entry(name).or_default();
            frame.count += count;
        }
        frame.own += count;
    }

    /// How many frames the deepest stack has.
    pub fn depth(&self) -> usize {
        let below = self.called.values().map(|frame| frame.depth() + 1);
        below.max().unwrap_or(0)
    }

    /// Counts by function: in it alone, and in it and all below, where a recursion counts once.
    pub fn totals(&self) -> BTreeMap<Name, (u64, u64)> {
        let mut totals = BTreeMap::new();
        self.add_totals(&mut Vec::new(), &mut totals);
        totals
    }

    fn add_totals<'a>(
        &'a self,
        above: &mut Vec<&'a Name>,
        totals: &mut BTreeMap<Name, (u64, u64)>,
    ) {
        for (name, frame) in &self.called {
            let total = totals.entry(name.clone()).or_default();
            total.0 += frame.own;
            if !above.contains(&name) {
                total.1 += frame.count;
            }
            above.push(name);
            frame.add_totals(above, totals);
            above.pop();
        }
    }
}

/// Folds the output of `perf script -F comm,tid,ip,sym`: a line with a thread's name and id, its
/// frames from the inside out, an empty line.
pub fn fold(script: &str) -> Threads {
    let mut threads = Threads::new();
    for sample in script.split("\n\n") {
        let mut lines = sample.lines().filter(|line| !line.trim().is_empty());
        let Some((thread, _id)) = lines.next().and_then(|head| head.trim().rsplit_once(' ')) else {
            continue;
        };
        let stack: Vec<Name> = lines.filter_map(frame).collect();
        let root = threads.entry(thread.trim().to_owned()).or_default();
        root.add(stack.into_iter().rev(), 1);
    }
    threads
}

/// Folds the output of `perf script -F comm,tid,time,event,ip,sym --show-switch-events` of
/// `sched:sched_switch`: a thread that leaves the processor gives its stack, then a line `OUT`, and `IN`
/// when it runs again. What counts is the time between, us; one that did not come back counts nothing.
pub fn fold_waits(script: &str) -> Threads {
    let mut threads = Threads::new();
    let mut away: BTreeMap<u64, Away> = BTreeMap::new();
    let mut stack: Option<(u64, Vec<Name>)> = None;
    for line in script.lines() {
        if line.starts_with(char::is_whitespace) && !line.trim().is_empty() {
            let known = stack.as_mut().zip(frame(line));
            if let Some(((_, stack), frame)) = known {
                stack.push(frame);
            }
            continue;
        }
        let Some(event) = Event::read(line) else {
            continue;
        };
        match event.what {
            What::Stack => stack = Some((event.id, Vec::new())),
            What::Out(leave) => {
                let taken = stack.take().filter(|(id, _)| *id == event.id);
                let mut stack = taken.map(|(_, stack)| stack).unwrap_or_default();
                if leave == Leave::Pushed {
                    stack.insert(0, Name::of_kernel("(somebody else runs)"));
                }
                away.insert(
                    event.id,
                    Away {
                        at_us: event.at_us,
                        stack,
                    },
                );
            }
            What::In => {
                if let Some(Away { at_us, stack }) = away.remove(&event.id) {
                    let root = threads.entry(event.thread.to_owned()).or_default();
                    let waited = event.at_us.saturating_sub(at_us);
                    root.add(stack.into_iter().rev(), waited);
                }
            }
        }
    }
    threads
}

/// A thread that does not run.
struct Away {
    at_us: u64,
    /// From the inside out.
    stack: Vec<Name>,
}

/// A line of `perf script` about a thread.
struct Event<'a> {
    thread: &'a str,
    id: u64,
    at_us: u64,
    what: What,
}

enum What {
    /// Its stack follows.
    Stack,
    Out(Leave),
    In,
}

/// Why a thread left the processor.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leave {
    /// It waits for something.
    Waits,
    /// It would have gone on.
    Pushed,
}

impl<'a> Event<'a> {
    /// `name id seconds.microseconds: event`.
    fn read(line: &'a str) -> Option<Self> {
        let (head, event) = line.split_once(": ")?;
        let (head, at) = head.trim().rsplit_once(' ')?;
        let (thread, id) = head.trim().rsplit_once(' ')?;
        let (seconds, fraction) = at.trim().split_once('.')?;
        let fraction: u64 = fraction.get(..6)?.parse().ok()?;
        let seconds: u64 = seconds.parse().ok()?;
        let event = event.trim();
        let what = if event.starts_with("sched:sched_switch") {
            What::Stack
        } else if event.ends_with("SWITCH IN") {
            What::In
        } else if event.ends_with("OUT preempt") {
            What::Out(Leave::Pushed)
        } else if event.ends_with("OUT") {
            What::Out(Leave::Waits)
        } else {
            return None;
        };
        Some(Self {
            thread: thread.trim(),
            id: id.parse().ok()?,
            at_us: seconds.checked_mul(1_000_000)?.checked_add(fraction)?,
            what,
        })
    }
}

impl Name {
    fn of_kernel(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            side: Side::Kernel,
        }
    }
}

/// Behind the names of the kernel's functions, as other tools for such text have it.
const KERNEL_MARK: &str = "_[k]";

/// The threads as text, a line per stack: `thread;outermost;...;innermost count`.
pub fn write(threads: &Threads) -> String {
    let mut text = String::new();
    for (thread, root) in threads {
        write_below(&plain(thread), root, &mut text);
    }
    text
}

fn write_below(path: &str, frame: &Frame, text: &mut String) {
    if frame.own > 0 {
        writeln!(text, "{path} {}", frame.own).expect("a String takes everything");
    }
    for (name, called) in &frame.called {
        let mark = match name.side {
            Side::Kernel => KERNEL_MARK,
            Side::User => "",
        };
        let path = format!("{path};{}{mark}", plain(&name.text));
        write_below(&path, called, text);
    }
}

/// A name without what separates names.
fn plain(name: &str) -> String {
    name.replace([';', '\n'], ":")
}

/// Reads the text of [`write()`] back; lines that are none count nothing.
pub fn read(text: &str) -> Threads {
    let mut threads = Threads::new();
    for line in text.lines() {
        let Some((path, count)) = line.rsplit_once(' ') else {
            continue;
        };
        let (Ok(count), (thread, stack)) =
            (count.parse(), path.split_once(';').unwrap_or((path, "")))
        else {
            continue;
        };
        let names = stack.split(';').filter(|name| !name.is_empty());
        let names = names.map(|name| match name.strip_suffix(KERNEL_MARK) {
            Some(name) => Name::of_kernel(name),
            None => Name {
                text: name.to_owned(),
                side: Side::User,
            },
        });
        let root = threads.entry(thread.to_owned()).or_default();
        root.add(names, count);
    }
    threads
}

/// `address name`, the name with an offset perhaps.
fn frame(line: &str) -> Option<Name> {
    let (address, name) = line.trim().split_once(' ')?;
    let address = u64::from_str_radix(address, 16).ok()?;
    let name = name.rsplit_once("+0x").map_or(name, |(name, _)| name);
    let side = if address >= KERNEL_FROM {
        Side::Kernel
    } else {
        Side::User
    };
    // Without a symbol an address of code that lives elsewhere says nothing.
    let text = name.trim().to_owned();
    Some(Name { text, side })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = "\
core 0    71 \n\
\tffffffff81000010 clear_page+0x10\n\
\t    55d000001000 grow\n\
\t    55d000002000 main::{closure#0}\n\
\n\
core 0    71 \n\
\t    55d000001004 grow\n\
\t    55d000002000 main::{closure#0}\n\
\n\
rp-flusher    72 \n\
\t    7f0000000000 [unknown]\n\
\n\
";

    fn user(text: &str) -> Name {
        Name {
            text: text.to_owned(),
            side: Side::User,
        }
    }

    #[test]
    fn samples_become_a_tree_per_thread() {
        let threads = fold(SCRIPT);
        assert_eq!(threads.len(), 2);
        let core = &threads["core 0"];
        assert_eq!((core.count, core.own, core.depth()), (2, 0, 3));
        let grow = &core.called[&user("main::{closure#0}")].called[&user("grow")];
        assert_eq!((grow.count, grow.own), (2, 1));
        let (kernel, _) = grow.called.first_key_value().unwrap();
        assert_eq!(
            (kernel.text.as_str(), kernel.side),
            ("clear_page", Side::Kernel)
        );
        assert_eq!(threads["rp-flusher"].count, 1);
    }

    #[test]
    fn a_recursion_counts_once() {
        let mut root = Frame::default();
        root.add(["a", "b", "a"].map(user).into_iter(), 1);
        root.add(["a"].map(user).into_iter(), 1);
        let totals = root.totals();
        assert_eq!(totals[&user("a")], (2, 2));
        assert_eq!(totals[&user("b")], (0, 1));
    }

    #[test]
    fn nothing_and_nonsense_give_no_thread() {
        for text in ["", "\n\n\n", "onlyaword\n\n"] {
            assert!(fold(text).is_empty(), "{text:?}");
        }
        assert_eq!(fold("a 1\n\tnohex name\n")["a"].own, 1);
    }

    #[test]
    fn time_away_from_the_processor_counts_by_its_stack() {
        let script = "\
core 0 14425  10.000100: PERF_RECORD_SWITCH IN         \n\
core 0 14425  10.000200: sched:sched_switch: \n\
\tffffffff821f8298 __schedule\n\
\t    55d000002000 wait_for_mail\n\
\n\
core 0 14425  10.000210: PERF_RECORD_SWITCH OUT        \n\
rp-flusher 7  10.000300: sched:sched_switch: \n\
\t    55d000003000 write\n\
\n\
rp-flusher 7  10.000300: PERF_RECORD_SWITCH OUT preempt\n\
core 0 14425  10.000710: PERF_RECORD_SWITCH IN         \n\
rp-flusher 7  11.000300: PERF_RECORD_SWITCH IN         \n\
rp-flusher 7  11.000400: PERF_RECORD_SWITCH OUT        \n";
        let threads = fold_waits(script);
        let core = &threads["core 0"];
        assert_eq!((core.count, core.depth()), (500, 2));
        assert!(core.called.contains_key(&user("wait_for_mail")));
        let flusher = &threads["rp-flusher"];
        assert_eq!(
            flusher.count, 1_000_000,
            "it did not come back from the last"
        );
        let write = &flusher.called[&user("write")];
        let (pushed, _) = write.called.first_key_value().unwrap();
        assert_eq!(pushed.text, "(somebody else runs)");
    }

    #[test]
    fn text_and_back_is_the_same() {
        let threads = fold(SCRIPT);
        assert_eq!(read(&write(&threads)), threads);
        for text in ["", "x", "a;b c\n", "a;b 18446744073709551616\n"] {
            assert!(read(text).is_empty(), "{text:?}");
        }
    }
}
