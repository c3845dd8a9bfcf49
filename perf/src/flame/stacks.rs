//! Stacks as `perf script` prints them, folded into one tree per thread.

use std::collections::BTreeMap;

/// From here on addresses are the kernel's (x86-64 and aarch64: the upper half).
const KERNEL_FROM: u64 = 1 << 63;

/// A frame with what it called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Samples in it and all below.
    pub(crate) samples: u64,
    /// Samples in it alone.
    pub(crate) own: u64,
    /// What it called, by name.
    pub(crate) called: BTreeMap<Name, Self>,
}

/// A function, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name {
    /// As perf names it.
    pub(crate) text: String,
    /// Whether it runs in the kernel.
    pub(crate) side: Side,
}

/// Whose code it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    /// The daemon's, or a library's.
    User,
    /// The kernel's.
    Kernel,
}

impl Frame {
    /// Counts a stack, outermost frame first.
    fn count(&mut self, stack: impl Iterator<Item = Name>) {
        self.samples += 1;
        let mut frame = self;
        for name in stack {
            frame = frame.called.entry(name).or_default();
            frame.samples += 1;
        }
        frame.own += 1;
    }

    /// How many frames the deepest stack has.
    pub(crate) fn depth(&self) -> usize {
        let below = self.called.values().map(|frame| frame.depth() + 1);
        below.max().unwrap_or(0)
    }

    /// Samples by function: in it alone, and in it and all below, where a recursion counts once.
    pub(crate) fn totals(&self) -> BTreeMap<Name, (u64, u64)> {
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
                total.1 += frame.samples;
            }
            above.push(name);
            frame.add_totals(above, totals);
            above.pop();
        }
    }
}

/// Folds the output of `perf script -F comm,tid,ip,sym`: a line with a thread's name and id, its
/// frames from the inside out, an empty line. Threads of one name are one.
pub(crate) fn fold(script: &str) -> BTreeMap<String, Frame> {
    let mut threads: BTreeMap<String, Frame> = BTreeMap::new();
    for sample in script.split("\n\n") {
        let mut lines = sample.lines().filter(|line| !line.trim().is_empty());
        let Some((thread, _id)) = lines.next().and_then(|head| head.trim().rsplit_once(' ')) else {
            continue;
        };
        let stack: Vec<Name> = lines.filter_map(frame).collect();
        let root = threads.entry(thread.trim().to_owned()).or_default();
        root.count(stack.into_iter().rev());
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
        assert_eq!((core.samples, core.own, core.depth()), (2, 0, 3));
        let grow = &core.called[&user("main::{closure#0}")].called[&user("grow")];
        assert_eq!((grow.samples, grow.own), (2, 1));
        let (kernel, _) = grow.called.first_key_value().unwrap();
        assert_eq!(
            (kernel.text.as_str(), kernel.side),
            ("clear_page", Side::Kernel)
        );
        assert_eq!(threads["rp-flusher"].samples, 1);
    }

    #[test]
    fn a_recursion_counts_once() {
        let mut root = Frame::default();
        root.count(["a", "b", "a"].map(user).into_iter());
        root.count(["a"].map(user).into_iter());
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
}
