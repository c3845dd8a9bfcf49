//! Replays every corpus file through its target, and checks that targets, folders, dictionaries and
//! libFuzzer's programs belong together.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use ringpost_fuzz::TARGETS;

fn here(folder: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(folder)
}

/// Names in a folder of this crate without their extension.
fn names(folder: &str) -> BTreeSet<String> {
    fs::read_dir(here(folder))
        .expect(folder)
        .map(|entry| {
            let path = entry.expect(folder).path();
            let name = path.file_stem().and_then(|name| name.to_str());
            name.expect("names are ASCII").to_owned()
        })
        .collect()
}

fn targets() -> BTreeSet<String> {
    TARGETS
        .iter()
        .map(|target| target.name.to_owned())
        .collect()
}

#[test]
fn every_seed_and_every_past_crash_is_survived() {
    for target in TARGETS {
        let folder = here("corpus").join(target.name);
        let mut count = 0;
        for entry in fs::read_dir(&folder).expect(target.name) {
            let path = entry.unwrap().path();
            let input = fs::read(&path).unwrap();
            let survived = std::panic::catch_unwind(|| (target.run)(&input));
            assert!(survived.is_ok(), "{}", path.display());
            count += 1;
        }
        assert!(count > 0, "{} has no seeds", folder.display());
    }
}

#[test]
fn every_cut_and_every_flipped_byte_of_a_seed_is_survived() {
    for target in TARGETS {
        for entry in fs::read_dir(here("corpus").join(target.name)).unwrap() {
            let input = fs::read(entry.unwrap().path()).unwrap();
            let step = input.len().div_ceil(64).max(1);
            for at in (0..input.len()).step_by(step) {
                (target.run)(&input[..at]);
                let mut bad = input.clone();
                bad[at] = !bad[at];
                (target.run)(&bad);
            }
        }
    }
}

#[test]
fn every_folder_and_every_program_has_a_target() {
    assert_eq!(names("corpus"), targets());
    assert_eq!(names("fuzz_targets"), targets());
    let manifest = fs::read_to_string(here("Cargo.toml")).unwrap();
    for target in TARGETS {
        let path = format!("path = \"fuzz_targets/{}.rs\"", target.name);
        assert!(manifest.contains(&path), "Cargo.toml lacks {path}");
    }
    let dictionaries = names("dict");
    assert!(dictionaries.is_subset(&targets()), "{dictionaries:?}");
}
