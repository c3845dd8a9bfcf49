//! What a medium does that confirms and does not keep: lost, misdirected and rotten sectors.
//!
//! Whatever is hurt is remembered as a [`Wound`](super::Wound), so that a test can tell damage that
//! was done on purpose from damage that a program did.

use fastrand::Rng;

use super::config::Sector;
use super::steps::Act;
use super::store::{Inode, InodeId, Node, SECTOR, Store, overlay, part, plain, size};

/// Bytes on their way to the medium.
#[derive(Debug)]
pub(super) struct Transfer {
    inode: InodeId,
    /// Sectors that are written.
    sectors: Vec<u64>,
    /// What the medium had before.
    old: Vec<u8>,
    /// Past the cache: readers see the medium.
    direct: bool,
}

/// What a step would bring to the medium, if anything. Of a sync of everything, one file.
pub(super) fn transfer(store: &Store, act: &Act, since: u64) -> Option<Transfer> {
    match act {
        Act::WriteDirect(id, _, offset, data) => {
            let end = (offset + data.len() as u64).div_ceil(SECTOR);
            Some(Transfer {
                inode: *id,
                sectors: (offset / SECTOR..end).collect(),
                old: store.inode(*id).durable.clone(),
                direct: true,
            })
        }
        Act::SyncFile(id, _) => dirty(store, *id, since),
        Act::SyncPath(path) => dirty(store, store.file(&plain(path.as_str())).ok()?, since),
        Act::SyncTree => store.inodes.keys().find_map(|id| dirty(store, *id, since)),
        _ => None,
    }
}

fn dirty(store: &Store, id: InodeId, since: u64) -> Option<Transfer> {
    let inode = store.inode(id);
    let due = inode.pending.iter().filter(|written| written.seq <= since);
    let mut sectors: Vec<u64> = due
        .flat_map(|written| written.offset / SECTOR..written.end().div_ceil(SECTOR))
        .collect();
    sectors.sort_unstable();
    sectors.dedup();
    (!sectors.is_empty()).then(|| Transfer {
        inode: id,
        sectors,
        old: inode.durable.clone(),
        direct: false,
    })
}

/// A whole log write that is confirmed and not done.
pub(super) fn lose(store: &mut Store, act: &Act) {
    if let Act::WriteDirect(id, _, offset, data) = act {
        store.wound(*id, *offset, data.len() as u64);
    }
}

/// One sector of a transfer that was just done is taken back, and perhaps put elsewhere.
pub(super) fn spoil_sector(store: &mut Store, transfer: &Transfer, how: Sector, rng: &mut Rng) {
    let Some(sector) = transfer
        .sectors
        .get(rng.usize(..transfer.sectors.len().max(1)))
    else {
        return;
    };
    let (start, id) = (sector * SECTOR, transfer.inode);
    let inode = store.inode_mut(id);
    let new = part(&inode.durable, start, size(SECTOR)).to_vec();
    let mut old = part(&transfer.old, start, size(SECTOR)).to_vec();
    old.resize(new.len(), 0);
    overlay(&mut inode.durable, start, &old);
    if transfer.direct {
        overlay(&mut inode.cache, start, &old);
    }
    store.wound(id, start, new.len() as u64);
    if how == Sector::Misdirected
        && let Some((target, offset)) = elsewhere(store, rng)
    {
        let inode = store.inode_mut(target);
        let len = new.len().min(inode.durable.len() - size(offset));
        let piece = new.get(..len).unwrap_or_default();
        overlay(&mut inode.durable, offset, piece);
        overlay(&mut inode.cache, offset, piece);
        store.wound(target, offset, len as u64);
    }
}

/// A sector of some file that has a name, is durable there and not about to be written.
fn elsewhere(store: &Store, rng: &mut Rng) -> Option<(InodeId, u64)> {
    let files: Vec<InodeId> = store
        .names
        .values()
        .filter_map(|node| match node {
            Node::File(id) => Some(*id),
            Node::Dir => None,
        })
        .filter(|id| {
            let inode = store.inode(*id);
            inode.pending.is_empty() && !inode.durable.is_empty()
        })
        .collect();
    let id = *files.get(rng.usize(..files.len().max(1)))?;
    let sectors = (store.inode(id).durable.len() as u64).div_ceil(SECTOR);
    Some((id, rng.u64(..sectors) * SECTOR))
}

/// Puts bytes onto the medium and into the cache.
pub(super) fn replace(inode: &mut Inode, offset: u64, bytes: &[u8]) {
    overlay(&mut inode.cache, offset, bytes);
    overlay(&mut inode.durable, offset, bytes);
}

/// Bit rot: flips bits of a byte on the medium and in the cache.
pub(super) fn flip(inode: &mut Inode, offset: u64, mask: u8) {
    let at = size(offset);
    for image in [&mut inode.cache, &mut inode.durable] {
        if let Some(byte) = image.get_mut(at) {
            *byte ^= mask;
        }
    }
}
