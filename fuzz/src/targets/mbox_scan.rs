//! The walk over an mbox: items lie in order inside the file, and pieces change nothing.

use ringpost_engine::mbox::{Item, Scanner, State, scan};

use super::pieces;

/// The first byte is the length of pieces, the rest the file.
pub fn run(input: &[u8]) {
    let Some((piece_len, file)) = pieces(input) else {
        return;
    };
    let whole = scan(file);
    let mut cut = Vec::new();
    let mut scanner = Scanner::new();
    for piece in file.chunks(piece_len) {
        scanner.push(piece, &mut cut);
    }
    scanner.finish(&mut cut);
    assert_eq!(cut, whole);
    let mut at = 0;
    for item in whole {
        let (offset, len) = match item {
            Item::Junk { offset, len } => (offset, len),
            Item::Message(found) => {
                if found.state == State::Whole {
                    let store = found.store.expect("proved by its store line");
                    assert_eq!(found.body_len, u64::from(store.stored_len));
                }
                (found.offset, found.prefix_len + found.body_len)
            }
        };
        assert!(offset >= at && offset - at <= 1, "gaps are empty lines");
        assert!(len > 0);
        at = offset + len;
    }
    let end = u64::try_from(file.len()).expect("fits");
    assert!(at <= end && end - at <= 1);
}
