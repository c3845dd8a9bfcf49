//! The reader of other programs' mbox files: messages lie in order inside the file, hold no more than
//! it, and how the file is read in pieces changes nothing.

use std::io::{Read, Result};

use ringpost_daemon::import::flavour::{Flavour, survey};
use ringpost_daemon::import::mbox::{Item, Mbox};

use super::pieces;

/// A file that is read in pieces.
struct Pieces<'a> {
    rest: &'a [u8],
    len: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, into: &mut [u8]) -> Result<usize> {
        let len = self.len.min(into.len());
        let mut head = self.rest.get(..len).unwrap_or(self.rest);
        let read = head.read(into)?;
        self.rest = self.rest.get(read..).unwrap_or_default();
        Ok(read)
    }
}

/// The first byte is the length of pieces, the rest the file.
pub fn run(input: &[u8]) {
    let Some((len, file)) = pieces(input) else {
        return;
    };
    let cut = || Pieces { rest: file, len };
    let evidence = survey(file).expect("memory can be read");
    assert_eq!(survey(cut()).expect("memory can be read"), evidence);
    std::hint::black_box(evidence.flavour());
    for flavour in [
        Flavour::Mboxrd,
        Flavour::Mboxo,
        Flavour::Mboxcl,
        Flavour::Mboxcl2,
    ] {
        let whole = items(file, flavour);
        assert_eq!(items(cut(), flavour), whole);
        let mut at = None;
        let mut sum = 0;
        for (offset, item) in &whole.0 {
            assert!(at.is_none_or(|at| *offset > at), "{flavour:?}");
            at = Some(*offset);
            if let Item::Mail(mail) = item {
                sum += mail.bytes.len();
            }
        }
        assert!(sum <= file.len());
    }
}

/// What came before the end or an error, and the error.
fn items(input: impl Read, flavour: Flavour) -> (Vec<(u64, Item)>, Option<String>) {
    let mut mbox = Mbox::new(input, flavour).with_bytes_max(512);
    let mut found = Vec::new();
    loop {
        match mbox.next_item() {
            Ok(Some(item)) => found.push(item),
            Ok(None) => return (found, None),
            Err(error) => return (found, Some(error.to_string())),
        }
    }
}
