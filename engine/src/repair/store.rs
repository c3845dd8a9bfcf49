//! STORE, if one byte of it is wrong. It holds the hash key, which stands nowhere else: more cannot be
//! made good.

use crate::check::{ReadTree, mend};
use crate::error::CorruptReason;
use crate::format::store_file::{STORE_BYTES_MAX, StoreFile};
use crate::format::superblock::{Pair, SUPERBLOCK_BYTES};
use crate::io::RelPath;

/// Longer ones are no STORE of today: each change costs a look at the whole file.
const BYTES_MAX: usize = 2_048;

/// The STORE file, whole or made good; whether it has to be written.
pub(super) fn read(tree: &dyn ReadTree) -> Result<(StoreFile, Written), CorruptReason> {
    let path = RelPath::store();
    let bytes = tree
        .read(&path, 0, STORE_BYTES_MAX + 1)
        .map_err(|error| error.corrupt().reason)?;
    let reason = match StoreFile::decode(&bytes) {
        Ok(store) => return Ok((store, Written::Already)),
        Err(reason @ CorruptReason::Version { .. }) => return Err(reason),
        Err(reason) => reason,
    };
    if bytes.len() > BYTES_MAX {
        return Err(reason);
    }
    let mut found: Option<StoreFile> = None;
    for at in 0..bytes.len() {
        for bits in 1..=u8::MAX {
            let candidate = mend::changed(&bytes, (at, bits));
            let Ok(store) = StoreFile::decode(&candidate) else {
                continue;
            };
            // Key and checksum agree; the logs know the store and the key too.
            if agrees(tree, &store) && found.replace(store).is_some() {
                return Err(reason);
            }
        }
    }
    found.map(|store| (store, Written::Anew)).ok_or(reason)
}

/// Whether a superblock of one of its logs says the same.
fn agrees(tree: &dyn ReadTree, store: &StoreFile) -> bool {
    (0..store.logs).any(|log_id| {
        let path = RelPath::superblock(log_id);
        let bytes = tree.read(&path, 0, 2 * SUPERBLOCK_BYTES);
        bytes.is_ok_and(|bytes| {
            Pair::open(&bytes, store.store, log_id).is_ok_and(|pair| {
                let current = pair.current;
                current.key_check == store.key.check()
                    && current.partitions == store.partitions
                    && current.node == store.node
            })
        })
    })
}

/// Whether a file is on disk as it must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Written {
    Already,
    /// It has to be written.
    Anew,
}
