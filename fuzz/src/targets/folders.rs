//! The text file `folders`: total decode, and one form only.

use ringpost_engine::format::folders::Folders;

use crate::seal;

/// The input is the file.
pub fn run(input: &[u8]) {
    check(input);
    check(&seal::text(input));
}

fn check(input: &[u8]) {
    if let Ok(folders) = Folders::decode(input) {
        assert_eq!(folders.encode(), input);
    }
}
