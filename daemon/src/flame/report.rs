//! What is written of a recording: a picture and a table per thread, the stacks as text, and what is
//! other than in an earlier one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use super::stacks::{self, Frame, Threads};
use super::{Clock, FlameError, svg};

/// Functions of a thread in a table.
const FRAMES_SHOWN: usize = 20;

/// Functions of a thread in a table of differences.
const CHANGES_SHOWN: usize = 12;

/// Smaller changes are none, points of a hundred.
const CHANGE_MIN: f64 = 0.05;

/// Threads with less than this share get no picture.
const THREAD_SHARE_MIN: f64 = 0.005;

/// Threads, and what was counted of them.
#[derive(Debug)]
pub struct Report {
    /// By name.
    pub threads: Threads,
    /// What was counted.
    pub clock: Clock,
}

impl Report {
    /// Writes pictures and `stacks.txt` into a folder; gives the tables in Markdown.
    ///
    /// # Errors
    /// Nothing can be written there.
    pub fn write(&self, folder: &Path) -> Result<String, FlameError> {
        let stacks = folder.join(stacks_file(self.clock));
        put(&stacks, &stacks::write(&self.threads))?;
        let mut text = String::new();
        self.each(|name, root, share| {
            let unit = self.clock.unit();
            let percent = share * 100.0;
            let title = format!("{name}: {} {unit}, {percent:.1} % of all", root.count);
            let file = folder.join(picture_file(name, self.clock.suffix()));
            put(&file, &svg::draw(&title, root, unit))?;
            writeln!(text, "{title}, {}\n\n{}", file.display(), top(root))?;
            Ok(())
        })?;
        Ok(text)
    }

    /// Whether a folder has an earlier recording of the same kind.
    pub fn is_also_in(&self, old: &Path) -> bool {
        old.join(stacks_file(self.clock)).is_file()
    }

    /// Writes pictures of the difference to an earlier recording of the same kind, whose folder `old` is;
    /// gives the functions whose share changed most.
    ///
    /// # Errors
    /// There is no recording in `old`, or nothing can be written.
    pub fn write_difference(&self, old: &Path, folder: &Path) -> Result<String, FlameError> {
        let path = old.join(stacks_file(self.clock));
        let before = std::fs::read_to_string(&path).map_err(|error| {
            FlameError(format!(
                "{}: {error}; an earlier recording has it",
                path.display()
            ))
        })?;
        let before = stacks::read(&before);
        let mut text = String::new();
        let nothing = Frame::default();
        self.each(|name, root, _share| {
            let was = before.get(name).unwrap_or(&nothing);
            let file = folder.join(picture_file(name, &format!("{}-diff", self.clock.suffix())));
            let title = format!("{name}: red takes a larger share than before, blue a smaller one");
            put(
                &file,
                &svg::draw_difference(&title, root, was, self.clock.unit()),
            )?;
            writeln!(text, "{name}, {}\n\n{}", file.display(), changes(root, was))?;
            Ok(())
        })?;
        Ok(text)
    }

    /// Each thread that is worth a picture, the busiest first, with its share.
    fn each(
        &self,
        mut of: impl FnMut(&str, &Frame, f64) -> Result<(), Unwritten>,
    ) -> Result<(), FlameError> {
        let all: u64 = self.threads.values().map(|frame| frame.count).sum();
        let mut threads: Vec<_> = self.threads.iter().collect();
        threads.sort_by_key(|(_, frame)| std::cmp::Reverse(frame.count));
        for (name, root) in threads {
            let share = share(root.count, all);
            if share >= THREAD_SHARE_MIN {
                of(name, root, share).map_err(|Unwritten(error)| error)?;
            }
        }
        Ok(())
    }
}

/// Of a picture or a table.
struct Unwritten(FlameError);

impl From<FlameError> for Unwritten {
    fn from(error: FlameError) -> Self {
        Self(error)
    }
}

impl From<std::fmt::Error> for Unwritten {
    fn from(error: std::fmt::Error) -> Self {
        Self(FlameError(error.to_string()))
    }
}

fn stacks_file(clock: Clock) -> String {
    format!("stacks{}.txt", clock.suffix())
}

fn picture_file(thread: &str, suffix: &str) -> String {
    format!("{}{suffix}.svg", thread.replace(['/', ' '], "-"))
}

fn put(path: &Path, text: &str) -> Result<(), FlameError> {
    std::fs::write(path, text)
        .map_err(|error| FlameError(format!("cannot write {}: {error}", path.display())))
}

/// The functions of a thread that take the most alone, as a Markdown table.
fn top(root: &Frame) -> String {
    let totals = root.totals();
    let mut frames: Vec<_> = totals.iter().collect();
    frames.sort_by_key(|(_, (own, below))| std::cmp::Reverse((*own, *below)));
    let mut text = "| alone | with all below | function |\n|---|---|---|\n".to_owned();
    for (name, (own, below)) in frames.into_iter().take(FRAMES_SHOWN) {
        let percent = |part| share(part, root.count) * 100.0;
        let (own, below) = (percent(*own), percent(*below));
        writeln!(text, "| {own:.1} % | {below:.1} % | `{}` |", name.text)
            .expect("a String takes everything");
    }
    text
}

/// The functions whose own share changed most, as a Markdown table.
fn changes(root: &Frame, was: &Frame) -> String {
    let mut shares: BTreeMap<_, (f64, f64)> = BTreeMap::new();
    for (name, (own, _)) in was.totals() {
        shares.entry(name).or_default().0 = share(own, was.count) * 100.0;
    }
    for (name, (own, _)) in root.totals() {
        shares.entry(name).or_default().1 = share(own, root.count) * 100.0;
    }
    let mut changed: Vec<_> = shares.into_iter().collect();
    let size = |(was, now): &(f64, f64)| (now - was).abs();
    changed.retain(|(_, shares)| size(shares) >= CHANGE_MIN);
    changed.sort_by(|(_, one), (_, other)| size(other).total_cmp(&size(one)));
    let mut text = "| was | is | change | function, alone |\n|---|---|---|---|\n".to_owned();
    for (name, (was, now)) in changed.into_iter().take(CHANGES_SHOWN) {
        let change = now - was;
        writeln!(
            text,
            "| {was:.1} % | {now:.1} % | {change:+.1} | `{}` |",
            name.text
        )
        .expect("a String takes everything");
    }
    text
}

pub(super) fn share(part: u64, all: u64) -> f64 {
    float(part) / float(all.max(1))
}

/// Counts beyond 2^32 are as good as that.
pub(super) fn float(count: u64) -> f64 {
    u32::try_from(count).map_or(f64::from(u32::MAX), f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(script: &str) -> Report {
        Report {
            threads: stacks::fold(script),
            clock: Clock::Running,
        }
    }

    #[test]
    fn threads_get_pictures_and_tables_by_their_samples() {
        let mut script = "core 0 1\n\t10 inner\n\t20 outer\n\n".repeat(300);
        script.push_str("rare 2\n\t10 inner\n\n");
        let folder = tempfile::tempdir().unwrap();
        let text = report(&script).write(folder.path()).unwrap();
        assert!(folder.path().join("core-0.svg").is_file());
        let rare = folder.path().join("rare.svg");
        assert!(!rare.exists(), "below half a percent");
        assert!(text.contains("| 100.0 % | 100.0 % | `inner` |"), "{text}");
        assert!(text.contains("| 0.0 % | 100.0 % | `outer` |"), "{text}");
    }

    #[test]
    fn a_later_recording_says_what_changed() {
        let old = tempfile::tempdir().unwrap();
        let new = tempfile::tempdir().unwrap();
        let half = "core 0 1\n\t10 a\n\t20 outer\n\ncore 0 1\n\t10 b\n\t20 outer\n\n";
        report(half).write(old.path()).unwrap();
        let later = report("core 0 1\n\t10 b\n\t20 outer\n\n");
        let text = later.write_difference(old.path(), new.path()).unwrap();
        assert!(text.contains("| 50.0 % | 0.0 % | -50.0 | `a` |"), "{text}");
        assert!(
            text.contains("| 50.0 % | 100.0 % | +50.0 | `b` |"),
            "{text}"
        );
        let picture = std::fs::read_to_string(new.path().join("core-0-diff.svg")).unwrap();
        assert!(
            picture.contains("b: 1 samples, 100.00 %, was 50.00 %"),
            "{picture}"
        );
        assert!(later.is_also_in(old.path()) && !later.is_also_in(new.path()));
        let missing = later.write_difference(new.path(), new.path()).unwrap_err();
        assert!(missing.to_string().contains("stacks.txt"), "{missing}");
    }
}
