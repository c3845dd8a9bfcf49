//! The fates a crash draws for all that is not durable.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;

use super::config::{Crash, Fate, Harsh, Model, SimConfig};
use super::steps::Act;
use super::store::{Inode, InodeId, Late, Node, SECTOR, Store, overlay, parent, part, size};

/// What a harsh device garbles whole.
const BLOCK: u64 = 4096;

/// Steps of the disk within which a killed process's write lands: as many as a recovery of a small log
/// takes, so that some come when it has read the file.
const LATE_STEPS: u32 = 96;

/// How much of a set of pending things is kept.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kept {
    Nothing,
    All,
    Some,
}

impl Kept {
    /// The ends are likely, since they are what a program is most often wrong about.
    fn draw(fate: Fate, rng: &mut Rng) -> Self {
        match fate {
            Fate::Least => Self::Nothing,
            Fate::Most => Self::All,
            Fate::Drawn => match rng.u8(..4) {
                0 => Self::Nothing,
                1 => Self::All,
                _ => Self::Some,
            },
        }
    }

    /// For one thing of a set.
    fn one(self, rng: &mut Rng) -> bool {
        match self {
            Self::Nothing => false,
            Self::All => true,
            Self::Some => rng.bool(),
        }
    }
}

/// Turns the store into what is found after the crash. `limbo` are the steps that were going on.
pub(super) fn crash(
    store: &mut Store,
    limbo: &[Act],
    kind: Crash,
    config: &SimConfig,
    rng: &mut Rng,
) {
    for act in limbo {
        overtake(store, act, kind, config, rng);
    }
    if kind == Crash::Kill {
        return;
    }
    for late in std::mem::take(&mut store.late) {
        tear(store, &late, config, rng);
    }
    keep_names(store, config.fate, rng);
    let mut garbled = Vec::new();
    for (id, inode) in &mut store.inodes {
        let dirty = dirty_blocks(inode);
        persist_by_chance(inode, config.model, config.fate, rng);
        if config.harsh == Harsh::Yes && !dirty.is_empty() && rng.u8(..8) == 0 {
            let block = dirty.get(rng.usize(..dirty.len())).copied().unwrap_or(0);
            if let Some(len) = garble(inode, block * BLOCK, rng) {
                garbled.push((*id, block * BLOCK, len));
            }
        }
        inode.cache.clone_from(&inode.durable);
    }
    for (id, offset, len) in garbled {
        store.wound(id, offset, len);
    }
    forget_unnamed(store);
}

/// Blocks that write-back may have been busy with.
fn dirty_blocks(inode: &Inode) -> Vec<u64> {
    let blocks: BTreeSet<u64> = inode
        .pending
        .iter()
        .flat_map(|written| written.offset / BLOCK..written.end().div_ceil(BLOCK))
        .collect();
    blocks.into_iter().collect()
}

/// Turns what the medium has of a block into garbage; how many bytes that were.
fn garble(inode: &mut Inode, offset: u64, rng: &mut Rng) -> Option<u64> {
    let end = size(offset + BLOCK).min(inode.durable.len());
    let block = inode.durable.get_mut(size(offset)..end)?;
    rng.fill(block);
    (!block.is_empty()).then_some(block.len() as u64)
}

/// A step that fails did a part of its work, or nothing.
pub(super) fn in_part(store: &mut Store, act: &Act, config: &SimConfig, rng: &mut Rng) {
    match act {
        Act::WriteDirect(inode, _, offset, data) => {
            let late = Late {
                inode: *inode,
                offset: *offset,
                data: data.clone(),
                steps: rng.u32(..LATE_STEPS),
            };
            tear(store, &late, config, rng);
        }
        Act::WriteFile(..) => overtake(store, act, Crash::Kill, config, rng),
        _ => {}
    }
}

/// A step that was going on happened, or in part, or not.
fn overtake(store: &mut Store, act: &Act, kind: Crash, config: &SimConfig, rng: &mut Rng) {
    let kept = Kept::draw(config.fate, rng);
    match act {
        Act::Look => {}
        Act::WriteDirect(inode, _, offset, data) => {
            let late = Late {
                inode: *inode,
                offset: *offset,
                data: data.clone(),
                steps: rng.u32(..LATE_STEPS),
            };
            match (kind, kept) {
                (_, Kept::All) => store.write_durable(*inode, *offset, data),
                (Crash::Kill, Kept::Some) => store.late.push(late),
                (Crash::Kill, Kept::Nothing) => {}
                (Crash::PowerCut, _) => tear(store, &late, config, rng),
            }
        }
        Act::WriteFile(inode, _, offset, data) => {
            let len = match kept {
                Kept::Nothing => 0,
                Kept::All => data.len(),
                Kept::Some => rng.usize(..=data.len()),
            };
            store.write(*inode, *offset, data.slice(..len));
        }
        other => {
            if kept.one(rng) {
                // What it would have answered, nobody hears.
                let since = store.seq();
                store.act(other, since, None).ok();
            }
        }
    }
}

/// A log write cut off by a power cut: sector by sector, old or new.
fn tear(store: &mut Store, late: &Late, config: &SimConfig, rng: &mut Rng) {
    let kept = Kept::draw(config.fate, rng);
    let len = late.data.len() as u64;
    let mut at = 0;
    while at < len {
        let sector = part(&late.data, at, size(SECTOR));
        if kept.one(rng) {
            store.write_durable(late.inode, late.offset + at, sector);
        }
        at += SECTOR;
    }
    if config.harsh != Harsh::No && kept == Kept::Some {
        let block = rng.u64(..len.div_ceil(BLOCK).max(1)) * BLOCK;
        let mut garbage = part(&late.data, block, size(BLOCK)).to_vec();
        rng.fill(&mut garbage);
        store.write_durable(late.inode, late.offset + block, &garbage);
    }
}

fn keep_names(store: &mut Store, fate: Fate, rng: &mut Rng) {
    let kept = Kept::draw(fate, rng);
    let changes = std::mem::take(&mut store.changes);
    let upto = match kept {
        Kept::Nothing => 0,
        Kept::All => changes.len(),
        Kept::Some => rng.usize(..=changes.len()),
    };
    let names = &mut store.durable_names;
    for (place, (_, change)) in changes.iter().enumerate() {
        let keep = match store.model {
            Model::Ext4 => place < upto,
            Model::Weak => kept.one(rng),
        };
        if keep {
            change.apply(names);
        }
    }
    // An entry whose directory was lost is lost with it.
    let mut found = BTreeMap::new();
    for (path, node) in std::mem::take(names) {
        let dir = parent(&path);
        if dir.is_empty() || found.get(dir) == Some(&Node::Dir) {
            found.insert(path, node);
        }
    }
    store.durable_names.clone_from(&found);
    store.names = found;
}

fn forget_unnamed(store: &mut Store) {
    let named: BTreeSet<InodeId> = store
        .names
        .values()
        .filter_map(|node| match node {
            Node::Dir => None,
            Node::File(id) => Some(*id),
        })
        .collect();
    store.inodes.retain(|id, _| named.contains(id));
}

/// Puts some of a file's pending writes onto the medium and forgets the others. Readers still see
/// the cache.
pub(super) fn persist_by_chance(inode: &mut Inode, model: Model, fate: Fate, rng: &mut Rng) {
    let pending = std::mem::take(&mut inode.pending);
    if pending.is_empty() {
        return;
    }
    let kept = Kept::draw(fate, rng);
    let old_size = inode.durable.len() as u64;
    let ends: Vec<u64> = std::iter::once(old_size)
        .chain(pending.iter().map(|written| written.end().max(old_size)))
        .collect();
    let last = ends.len() - 1;
    let cut = match kept {
        Kept::Nothing => return,
        Kept::All => last,
        Kept::Some => rng.usize(..=last),
    };
    let new_size = ends.iter().take(cut + 1).max().copied().unwrap_or(old_size);
    let mut sectors = BTreeSet::new();
    for written in &pending {
        sectors.extend(written.offset / SECTOR..written.end().div_ceil(SECTOR));
    }
    for sector in sectors {
        let (start, end) = (sector * SECTOR, (sector + 1) * SECTOR);
        let versions: Vec<_> = pending
            .iter()
            .filter(|written| written.offset < end && written.end() > start)
            .collect();
        let count = match kept {
            Kept::Some if model == Model::Weak || end <= old_size => rng.usize(..=versions.len()),
            // All of it, or data before size.
            _ => versions.len(),
        };
        for written in versions.into_iter().take(count) {
            let from = written.offset.max(start);
            let to = written.end().min(end).min(new_size);
            if from < to {
                let piece = part(&written.data, from - written.offset, size(to - from));
                overlay(&mut inode.durable, from, piece);
            }
        }
    }
    inode.durable.resize(size(new_size), 0);
}

/// A sync that failed: what the kernel had not written is marked clean all the same, and perhaps
/// thrown out of the cache. A later sync succeeds and proves nothing.
pub(super) fn fail_sync(
    store: &mut Store,
    only: Option<InodeId>,
    config: &SimConfig,
    rng: &mut Rng,
) {
    for (id, inode) in &mut store.inodes {
        if only.is_none_or(|only| only == *id) && !inode.pending.is_empty() {
            persist_by_chance(inode, config.model, config.fate, rng);
            if rng.bool() {
                inode.cache.clone_from(&inode.durable);
            }
        }
    }
}
