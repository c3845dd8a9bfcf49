//! A tree with changes laid over it that nobody wrote: what a repair would leave. `--dry-run` runs the
//! whole repair on it, and the question whether a user needs one is asked of it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::hand::Hand;
use crate::check::ReadTree;
use crate::error::IoError;
use crate::io::{Piece, RelPath, Step};

/// A file of the layer.
#[derive(Clone, Debug)]
enum Entry {
    /// Not there any more, or moved.
    Gone,
    File {
        /// Where its first bytes come from, if from the tree below.
        below: Option<RelPath>,
        /// How many of them.
        below_len: u64,
        len: u64,
        /// In order; later ones cover earlier ones.
        writes: Vec<(u64, Bytes)>,
    },
}

/// A tree and what was laid over it.
pub(crate) struct Layer<'a> {
    base: &'a dyn ReadTree,
    files: BTreeMap<RelPath, Entry>,
    dirs: BTreeSet<RelPath>,
}

impl<'a> Layer<'a> {
    pub(crate) fn new(base: &'a dyn ReadTree) -> Self {
        Self {
            base,
            files: BTreeMap::new(),
            dirs: BTreeSet::new(),
        }
    }

    /// Size of a file below.
    fn below(&self, path: &RelPath) -> Option<u64> {
        let names = self.base.list(&path.parent()).ok()?;
        let place = names.binary_search_by(|(name, _)| (**name).cmp(path.file_name()));
        place
            .ok()
            .and_then(|place| names.get(place))
            .map(|(_, bytes)| *bytes)
    }

    /// The entry of a file, made of the one below if there is none.
    fn entry(&mut self, path: &RelPath) -> Entry {
        if let Some(entry) = self.files.get(path) {
            return entry.clone();
        }
        match self.below(path) {
            Some(len) => Entry::File {
                below: Some(path.clone()),
                below_len: len,
                len,
                writes: Vec::new(),
            },
            None => Entry::Gone,
        }
    }

    fn write(&mut self, path: &RelPath, offset: u64, data: Bytes) {
        let end = offset + u64::try_from(data.len()).expect("an index has at most 64 bits");
        let mut entry = self.entry(path);
        if matches!(entry, Entry::Gone) {
            entry = Entry::File {
                below: None,
                below_len: 0,
                len: 0,
                writes: Vec::new(),
            };
        }
        if let Entry::File { len, writes, .. } = &mut entry {
            *len = end.max(*len);
            writes.push((offset, data));
        }
        self.files.insert(path.clone(), entry);
    }

    fn step(&mut self, step: Step) -> Result<(), IoError> {
        match step {
            Step::MakeDir(path) => {
                self.dirs.insert(path);
            }
            Step::Write {
                path,
                mut offset,
                pieces,
            } => {
                for piece in pieces {
                    let data = self.piece(piece)?;
                    let len = u64::try_from(data.len()).expect("an index has at most 64 bits");
                    self.write(&path, offset, data);
                    offset += len;
                }
            }
            Step::Replace { path, data } => {
                self.files.insert(path.clone(), Entry::Gone);
                self.write(&path, 0, data);
            }
            Step::Rename { from, to } => {
                let entry = self.entry(&from);
                if matches!(entry, Entry::File { .. }) {
                    self.files.insert(to, entry);
                    self.files.insert(from, Entry::Gone);
                }
            }
            Step::Unlink(path) => {
                self.files.insert(path, Entry::Gone);
            }
        }
        Ok(())
    }

    fn piece(&self, piece: Piece) -> Result<Bytes, IoError> {
        let (path, offset, len) = match piece {
            Piece::Bytes(data) => return Ok(data),
            Piece::Log {
                path, offset, len, ..
            } => (path, offset, u64::from(len)),
            Piece::Message {
                path,
                offset,
                skip,
                line,
            } => {
                let len = u64::from(skip) + u64::from(line.stored_len) + 1;
                (path, offset, len)
            }
        };
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        self.read(&path, offset, len).map(Bytes::from)
    }
}

impl ReadTree for Layer<'_> {
    fn list(&self, dir: &RelPath) -> Result<Vec<(String, u64)>, IoError> {
        let made = self.dirs.contains(dir) || self.files.keys().any(|path| path.parent() == *dir);
        let mut names: BTreeMap<String, u64> = match self.base.list(dir) {
            Ok(names) => names.into_iter().collect(),
            Err(error) if error.is_not_found() && made => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        for (path, entry) in self.files.iter().filter(|(path, _)| path.parent() == *dir) {
            match entry {
                Entry::Gone => names.remove(path.file_name()),
                Entry::File { len, .. } => names.insert(path.file_name().to_owned(), *len),
            };
        }
        for path in self.dirs.iter().filter(|path| path.parent() == *dir) {
            names.entry(path.file_name().to_owned()).or_insert(0);
        }
        Ok(names.into_iter().collect())
    }

    fn read(&self, file: &RelPath, offset: u64, len: usize) -> Result<Vec<u8>, IoError> {
        let (below, below_len, total, writes) = match self.files.get(file) {
            None => return self.base.read(file, offset, len),
            Some(Entry::Gone) => {
                return Err(IoError {
                    operation: "read",
                    path: file.to_string(),
                    offset,
                    len: 0,
                    errno: libc::ENOENT,
                });
            }
            Some(Entry::File {
                below,
                below_len,
                len,
                writes,
            }) => (below, *below_len, *len, writes),
        };
        let there = usize::try_from(total.saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = len.min(there);
        let mut out = Vec::new();
        if let Some(below) = below {
            let most = usize::try_from(below_len.saturating_sub(offset)).unwrap_or(usize::MAX);
            if most > 0 {
                out = self.base.read(below, offset, len.min(most))?;
            }
        }
        out.resize(len, 0);
        for (at, data) in writes {
            cover(&mut out, offset, *at, data);
        }
        Ok(out)
    }
}

impl Hand for Layer<'_> {
    fn apply(&mut self, steps: Vec<Step>) -> Result<(), IoError> {
        steps.into_iter().try_for_each(|step| self.step(step))
    }
}

/// Puts what `data` at `at` of the file has of a piece that begins at `offset` into it.
fn cover(piece: &mut [u8], offset: u64, at: u64, data: &[u8]) {
    let skip = usize::try_from(offset.saturating_sub(at)).unwrap_or(usize::MAX);
    let from = usize::try_from(at.saturating_sub(offset)).unwrap_or(usize::MAX);
    let Some(data) = data.get(skip..) else { return };
    let Some(place) = piece.get_mut(from..) else {
        return;
    };
    for (to, byte) in place.iter_mut().zip(data) {
        *to = *byte;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_covered_wherever_it_begins() {
        for (offset, at) in [(0, 0), (0, 3), (3, 0), (5, 2), (9, 0), (0, 9)] {
            let mut piece = [b'.'; 4];
            cover(&mut piece, offset, at, b"abcdef");
            for (place, byte) in (offset..).zip(piece) {
                let expected = if (at..at + 6).contains(&place) {
                    b"abcdef"[usize::try_from(place - at).unwrap()]
                } else {
                    b'.'
                };
                assert_eq!(byte, expected, "{offset} {at} {place}");
            }
        }
    }
}
