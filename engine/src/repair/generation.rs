//! A new generation of a user's info file, as FORMAT.md describes it.

use std::collections::BTreeMap;

use ringpost_netproto::id::{MailboxId, Modseq, WallNs};

use super::index::{Folder, Index};
use crate::canary::{self, Canary};
use crate::check::UserId;
use crate::format::Version;
use crate::format::crc;
use crate::format::info::{
    FIRST_SLOT, InfoHeader, Keyword, Mailbox, MailboxOp, RETIRE_COUNT_MAX, Retire, SLOT, Seed,
    move_run,
};
use crate::position::Lsn;

/// What the header of a new generation says beside what its runs do.
pub(super) struct Made<'a> {
    pub(super) id: UserId,
    pub(super) generation: u32,
    pub(super) name: &'a [u8],
    pub(super) now: WallNs,
    /// Records below are in it.
    pub(super) base_lsn: Lsn,
    pub(super) tombstones_from: u64,
}

/// The whole file. Expunges of `index` are written as they are, its messages alive and dead.
pub(super) fn encode(index: &Index, made: &Made<'_>) -> Vec<u8> {
    let header = InfoHeader {
        user: made.id.user,
        ordinal: made.id.ordinal,
        generation: made.generation,
        created_at: made.now,
        base_lsn: made.base_lsn,
        base_modseq: index.modseq,
        tombstones_from: made.tombstones_from,
        next_segment: index.next_segment.max(1),
        uidvalidity_max: index.uidvalidity_max,
        name: Box::from(made.name),
        version: Version::OURS,
    };
    let mut writer = Writer {
        seed: header.seed(),
        out: header.seal().to_vec(),
    };
    let mut highest: BTreeMap<MailboxId, u64> = BTreeMap::new();
    for ((mailbox, _), known) in &index.messages {
        let modseq = highest.entry(*mailbox).or_default();
        *modseq = known.msg.modseq.value().max(*modseq);
    }
    let last = index.folders.keys().next_back().copied();
    for (mailbox, folder) in &index.folders {
        let modseq = highest.get(mailbox).copied();
        // A deleted one whose messages still lie in a segment has to be known as such.
        if folder.alive || Some(*mailbox) == last || modseq.is_some() {
            writer.folder(*mailbox, folder, modseq.unwrap_or(0));
        }
    }
    for ((mailbox, bit), (modseq, name)) in &index.keywords {
        let slot = writer.slot();
        let run = Keyword {
            mailbox: *mailbox,
            bit: *bit,
            modseq: Modseq::new(*modseq),
            lsn: Lsn::new(0),
            name,
        };
        run.encode(writer.seed, slot, &mut writer.out);
    }
    let retired: Vec<u32> = index.retired.iter().copied().collect();
    for segments in retired.chunks(RETIRE_COUNT_MAX) {
        let slot = writer.slot();
        Retire::encode(segments, writer.seed, slot, &mut writer.out);
    }
    if canary::on(Canary::ExpungesFirst) {
        writer.expunges(index);
    }
    let mut messages: Vec<_> = index.messages.values().collect();
    messages.sort_by_key(|known| (known.msg.mailbox, known.msg.segment, known.msg.offset));
    for known in messages {
        let cache = if known.alive { &known.cache[..] } else { &[] };
        let slots = u8::try_from(cache.len() / SLOT).expect("at most 15 slots");
        let slot = writer.slot();
        let fixed = known.msg.fixed(slots);
        let fixed = fixed.seal(writer.seed, slot, crc::of(cache));
        writer.out.extend_from_slice(fixed.bytes());
        writer.out.extend_from_slice(cache);
    }
    if !canary::on(Canary::ExpungesFirst) {
        writer.expunges(index);
    }
    for run in &index.unknown {
        let slot = writer.slot();
        move_run(run, writer.seed, slot, &mut writer.out);
    }
    writer.out
}

struct Writer {
    seed: Seed,
    out: Vec<u8>,
}

impl Writer {
    fn slot(&self) -> u32 {
        let slot = u32::try_from(self.out.len() / SLOT).expect("an info file is at most 4 GiB");
        assert!(slot >= FIRST_SLOT, "the header comes first");
        slot
    }

    /// Behind the messages: an expunge takes away what stands before it.
    fn expunges(&mut self, index: &Index) {
        for change in &index.expunges {
            let slot = self.slot();
            let mut change = *change;
            change.lsn = Lsn::new(0);
            change.encode(self.seed, slot, &mut self.out);
        }
    }

    fn folder(&mut self, mailbox: MailboxId, folder: &Folder, highest_modseq: u64) {
        let run = |op| Mailbox {
            op,
            special_use: folder.special_use,
            mailbox,
            uidvalidity: folder.uidvalidity,
            modseq: Modseq::new(folder.modseq),
            lsn: Lsn::new(0),
            uidnext: folder.uidnext,
            highest_modseq,
            time: folder.time,
            name: &folder.name,
        };
        let subscribed = folder.subscribed.then_some(MailboxOp::Subscribe);
        let deleted = (!folder.alive).then_some(MailboxOp::Delete);
        let ops = [Some(MailboxOp::Snapshot), subscribed, deleted];
        for op in ops.into_iter().flatten() {
            let slot = self.slot();
            run(op).encode(self.seed, slot, &mut self.out);
        }
    }
}
