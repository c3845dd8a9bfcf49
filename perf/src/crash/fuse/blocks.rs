//! The contents of a disk in memory, sparse and cheap to copy: blocks are shared between copies until
//! one of them writes.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of a block here; no block size of any file system.
const BLOCK_BYTES: usize = 4096;

/// What a device writes whole or not at all.
pub(super) const SECTOR_BYTES: usize = 512;

type Block = [u8; BLOCK_BYTES];

/// A disk. What was never written is zeros.
#[derive(Clone, Debug, Default)]
pub(super) struct Blocks {
    blocks: BTreeMap<u64, Arc<Block>>,
}

impl Blocks {
    /// Puts `bytes` at `offset`.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (index, within, piece) in pieces(offset, bytes.len()) {
            let Some(piece) = bytes.get(piece) else {
                continue;
            };
            let block = self
                .blocks
                .entry(index)
                .or_insert_with(|| Arc::new([0; BLOCK_BYTES]));
            let end = within + piece.len();
            if let Some(place) = Arc::make_mut(block).get_mut(within..end) {
                place.copy_from_slice(piece);
            }
        }
    }

    /// Makes `len` bytes at `offset` zeros.
    pub(super) fn zero(&mut self, offset: u64, len: usize) {
        for (index, within, piece) in pieces(offset, len) {
            if piece.len() == BLOCK_BYTES {
                self.blocks.remove(&index);
            } else if let Some(block) = self.blocks.get_mut(&index)
                && let Some(place) = Arc::make_mut(block).get_mut(within..within + piece.len())
            {
                place.fill(0);
            }
        }
    }

    /// `len` bytes from `offset` on.
    pub(super) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        for (index, within, piece) in pieces(offset, len) {
            let source = self
                .blocks
                .get(&index)
                .and_then(|block| block.get(within..within + piece.len()));
            if let (Some(source), Some(place)) = (source, bytes.get_mut(piece)) {
                place.copy_from_slice(source);
            }
        }
        bytes
    }

    /// Memory that it would take if it shared nothing.
    pub(super) fn bytes(&self) -> u64 {
        let block = u64::try_from(BLOCK_BYTES).unwrap_or(u64::MAX);
        u64::try_from(self.blocks.len()).map_or(u64::MAX, |count| count.saturating_mul(block))
    }

    /// Every block that was written, with its offset.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let block = u64::try_from(BLOCK_BYTES).unwrap_or(u64::MAX);
        self.blocks
            .iter()
            .map(move |(index, bytes)| (index * block, bytes.as_slice()))
    }
}

/// Cuts a range at block borders: number of the block, place within it, place in the range.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let block = u64::try_from(BLOCK_BYTES).unwrap_or(u64::MAX);
    let mut index = offset / block;
    let mut within = usize::try_from(offset % block).unwrap_or(0);
    let mut done = 0;
    std::iter::from_fn(move || {
        let count = (BLOCK_BYTES - within).min(len - done);
        let piece = (index, within, done..done + count);
        index += 1;
        within = 0;
        done += count;
        (count > 0).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_copies_are_apart() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut blocks = Blocks::default();
        let mut plain = vec![0u8; 64 << 10];
        for _ in 0..500 {
            let start = random.usize(..plain.len());
            let len = random.usize(..12_000).min(plain.len() - start);
            let place = &mut plain[start..start + len];
            if random.bool() {
                random.fill(place);
                blocks.write(start as u64, place);
            } else {
                place.fill(0);
                blocks.zero(start as u64, len);
            }
        }
        assert_eq!(blocks.read(0, plain.len()), plain);
        assert_eq!(blocks.read(4095, 8194), plain[4095..][..8194]);

        let copy = blocks.clone();
        blocks.write(10, b"x");
        assert_eq!(copy.read(0, plain.len()), plain);
        assert_eq!(blocks.read(10, 1), b"x");
        assert!(blocks.bytes() <= 64 << 10);
        blocks.zero(0, 64 << 10);
        assert_eq!(blocks.iter().count(), 0);
    }
}
