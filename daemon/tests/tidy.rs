//! Tripwires over the whole tree (STYLE.md 12): few, without dependencies, about a second, each with a
//! message that says what to do. One goes in when the same slip was made twice, and goes out when it
//! only annoys.
//!
//! Held elsewhere: OPERATING.md against keys, metrics and exit codes (`operating.rs` beside this),
//! FORMAT.md and PROTOCOL.md against the structs (beside those), what fuzz targets replay
//! (`fuzz/tests/corpus.rs`).
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Files above 800 lines, each with the reason why it is not two.
const LONG: &[(&str, &str)] = &[];
const LINES_MAX: usize = 800;

/// The only files with unsafe code; all other crates forbid it, `engine` denies it (STYLE.md 6).
const UNSAFE: &[&str] = &[
    "engine/src/io/buf.rs",
    "engine/src/io/nice.rs",
    "engine/src/io/ring.rs",
];

/// Which file alone may name a crate, so that it can be replaced behind it.
const BEHIND: &[(&str, &str)] = &[
    ("io_uring", "engine/src/io/ring.rs"),
    ("tokio_uring", "daemon/src/rt.rs"),
];

/// Folders of the workspace, as paths in documents begin.
const FOLDERS: &[&str] = &[
    "engine/",
    "netproto/",
    "daemon/",
    "fuzz/",
    "perf/",
    "tests/",
    "docs/",
    ".ci/",
];

struct File {
    /// From the top of the tree.
    path: String,
    text: String,
}

impl File {
    fn is(&self, extension: &str) -> bool {
        Path::new(&self.path)
            .extension()
            .is_some_and(|e| e == extension)
    }

    /// Numbered lines of code: comments on a line of their own are left out.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().enumerate();
        lines
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
            .map(|(index, line)| (index + 1, line))
    }

    /// Numbered lines of Markdown outside of fenced blocks.
    fn prose(&self) -> impl Iterator<Item = (usize, &str)> {
        let mut fenced = false;
        let lines = self.text.lines().enumerate();
        lines
            .filter(move |(_, line)| {
                let fence = line.trim_start().starts_with("```");
                fenced ^= fence;
                !fenced && !fence
            })
            .map(|(index, line)| (index + 1, line))
    }
}

fn top() -> PathBuf {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR"));
    crates.parent().unwrap().to_owned()
}

/// Sources and documents; not what was built, what somebody's daemon left, or bytes for tests.
fn files() -> Vec<File> {
    const SKIPPED: &[&str] = &["target", "ringpost-data", "corpus", "artifacts", "fixtures"];
    const READ: &[&str] = &["rs", "md", "toml", "py", "sh", "roff", "1", "5", "8"];
    let top = top();
    let mut found = Vec::new();
    let mut folders = vec![top.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                let hidden = name.starts_with('.') && name != ".ci";
                if !hidden && !SKIPPED.contains(&name.as_str()) {
                    folders.push(path);
                }
                continue;
            }
            let extension = path.extension().and_then(|e| e.to_str());
            if extension.map_or(name == "run", |e| READ.contains(&e))
                && let Ok(bytes) = fs::read(&path)
            {
                found.push(File {
                    path: path.strip_prefix(&top).unwrap().display().to_string(),
                    text: String::from_utf8_lossy(&bytes).into_owned(),
                });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(found.len() > 100, "the tree is at {}", top.display());
    found
}

fn none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

/// Whether `word` stands in `line` as a path's beginning or in a `use`.
fn names_crate(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let own = !before.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
        let after = &line[at + word.len()..];
        own && (after.starts_with("::") || (line.contains("use ") && after.starts_with(';')))
    })
}

/// What stands between backquotes on a line.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

#[test]
fn sources_say_what_they_are_and_stay_short() {
    let mut complaints = Vec::new();
    for file in files().iter().filter(|file| file.is("rs")) {
        let path = &file.path;
        if !file.text.starts_with("//!") {
            complaints.push(format!(
                "{path}: begin with `//!`: what it owns, what it promises"
            ));
        }
        let lines = file.text.lines().count();
        let listed = LONG.iter().any(|(long, _)| long == path);
        if lines > LINES_MAX && !listed {
            complaints.push(format!(
                "{path}: {lines} lines; take the noun out that wants out, or list it in tidy.rs"
            ));
        }
        if lines <= LINES_MAX && listed {
            complaints.push(format!("{path}: {lines} lines; take it off the list"));
        }
    }
    none(&complaints);
}

#[test]
fn everything_is_ascii() {
    let mut complaints = Vec::new();
    for file in &files() {
        for (index, line) in file.text.lines().enumerate() {
            if !line.is_ascii() {
                complaints.push(format!(
                    "{}:{}: write it in ASCII (an escape, in code): {line}",
                    file.path,
                    index + 1
                ));
            }
        }
    }
    none(&complaints);
}

#[test]
fn unsafe_code_stays_where_it_is() {
    let marks = ["{", "fn", "impl", "extern", "trait"].map(|what| ["unsafe", what].join(" "));
    let mut with = BTreeSet::new();
    let mut complaints = Vec::new();
    for file in files().iter().filter(|file| file.is("rs")) {
        for (number, line) in file.code() {
            if marks.iter().any(|mark| line.contains(mark)) {
                with.insert(file.path.clone());
                if !UNSAFE.contains(&file.path.as_str()) {
                    complaints.push(format!(
                        "{}:{number}: unsafe belongs into {UNSAFE:?}",
                        file.path
                    ));
                }
            }
        }
        let parts: Vec<_> = file.path.split('/').collect();
        let lint = match parts.as_slice() {
            ["engine", "src", "lib.rs"] => "#![deny(unsafe_code)]",
            [_, "src", "lib.rs" | "main.rs"] | [_, "src", "bin", _] => "#![forbid(unsafe_code)]",
            _ => continue,
        };
        if !file.text.contains(lint) {
            complaints.push(format!("{}: say {lint} at its head", file.path));
        }
    }
    for path in UNSAFE {
        if !with.contains(*path) {
            complaints.push(format!(
                "{path}: no unsafe left; take it off the list in tidy.rs"
            ));
        }
    }
    let ci = fs::read_to_string(top().join(".ci/run")).unwrap();
    let asan = ci
        .split("stage_asan()")
        .nth(1)
        .and_then(|rest| rest.split("\n}").next());
    if !asan.is_some_and(|stage| stage.contains("ringpost-engine")) {
        complaints.push(".ci/run: the stage asan has to cover ringpost-engine".into());
    }
    none(&complaints);
}

#[test]
fn a_crate_that_may_be_replaced_is_named_in_one_file() {
    let mut complaints = Vec::new();
    for file in files().iter().filter(|file| file.is("rs")) {
        for (number, line) in file.code() {
            for (name, home) in BEHIND {
                if names_crate(line, name) && file.path != *home {
                    complaints.push(format!(
                        "{}:{number}: only {home} may name {name}",
                        file.path
                    ));
                }
            }
        }
    }
    none(&complaints);
}

#[test]
fn links_in_documents_resolve() {
    let mut complaints = Vec::new();
    for file in files().iter().filter(|file| file.is("md")) {
        let folder = top().join(&file.path).parent().unwrap().to_owned();
        for (number, line) in file.prose() {
            for link in line.split("](").skip(1) {
                let target = link.split([')', '#']).next().unwrap();
                if target.is_empty() || target.contains(':') {
                    continue;
                }
                if !folder.join(target).exists() {
                    complaints.push(format!("{}:{number}: {target} does not exist", file.path));
                }
            }
        }
    }
    none(&complaints);
}

#[test]
fn documents_name_files_and_tests_that_exist() {
    let files = files();
    let mut complaints = Vec::new();
    let told = ["README.md", "CHANGELOG.md"];
    for file in &files {
        let own = file.path.starts_with("docs/") || told.contains(&file.path.as_str());
        if !file.is("md") || !own {
            continue;
        }
        for (number, line) in file.prose() {
            for word in quoted(line) {
                let path = FOLDERS.iter().any(|folder| word.starts_with(folder));
                if path && !word.contains([' ', '*', '<', '{']) && !top().join(word).exists() {
                    complaints.push(format!("{}:{number}: there is no {word}", file.path));
                }
                let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
                let test = file.path == "docs/THESIS.md"
                    && word.matches('_').count() >= 2
                    && word.chars().all(plain);
                let begin = format!("fn {word}()");
                if test && !files.iter().any(|file| file.text.contains(&begin)) {
                    complaints.push(format!("{}:{number}: there is no test {word}", file.path));
                }
            }
        }
    }
    none(&complaints);
}

#[test]
fn sections_of_the_thesis_are_in_its_page() {
    let thesis = fs::read_to_string(top().join("docs/THESIS.md")).unwrap();
    let known: BTreeSet<&str> = thesis
        .split(|c: char| !c.is_ascii_digit() && c != '.')
        .map(|number| number.trim_matches('.'))
        .collect();
    let mut complaints = Vec::new();
    for file in files().iter().filter(|file| file.is("rs")) {
        for (index, line) in file.text.lines().enumerate() {
            if !line.trim_start().starts_with("//") || !line.to_lowercase().contains("thesis") {
                continue;
            }
            for number in line.split(|c: char| !c.is_ascii_digit() && c != '.') {
                let number = number.trim_matches('.');
                if number.matches('.').count() >= 2 && !known.contains(number) {
                    complaints.push(format!(
                        "{}:{}: docs/THESIS.md has no section {number}",
                        file.path,
                        index + 1
                    ));
                }
            }
        }
    }
    none(&complaints);
}

#[test]
fn fuzz_targets_have_seeds_and_goldens_are_opened() {
    let mut complaints = Vec::new();
    for entry in fs::read_dir(top().join("fuzz/fuzz_targets")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let seeds = fs::read_dir(top().join("fuzz/corpus").join(name));
        if !seeds.is_ok_and(|mut seeds| seeds.next().is_some()) {
            complaints.push(format!(
                "fuzz/corpus/{name}: no seeds; see fuzz/README.md for how they are made"
            ));
        }
    }
    let files = files();
    for package in ["engine", "netproto"] {
        let tests = format!("{package}/tests/");
        for entry in fs::read_dir(top().join(&tests).join("golden")).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap();
            let word = format!("\"{name}\"");
            let mut sources = files.iter().filter(|file| file.path.starts_with(&tests));
            if !sources.any(|file| file.text.contains(&word)) {
                complaints.push(format!("{tests}golden/{name}.hex: no test opens it"));
            }
        }
    }
    none(&complaints);
}

#[test]
fn no_path_of_somebodys_machine_is_left() {
    let here = top().canonicalize().unwrap().display().to_string();
    // A checkout directly below the root has too common a name to look for.
    let mut paths = vec![["", "root", ""].join("/"), ["", "home", ""].join("/")];
    if here.matches('/').count() >= 2 {
        paths.push(here);
    }
    let mut complaints = Vec::new();
    for file in &files() {
        for (index, line) in file.text.lines().enumerate() {
            for path in &paths {
                let own = |at: usize| {
                    let before = line[..at].chars().next_back();
                    !before.is_some_and(|c| c.is_ascii_alphanumeric() || "._-}".contains(c))
                };
                if line.match_indices(path.as_str()).any(|(at, _)| own(at)) {
                    complaints.push(format!(
                        "{}:{}: {path} is a path of one machine: take it out",
                        file.path,
                        index + 1
                    ));
                }
            }
        }
    }
    none(&complaints);
}
