//! Links: requests and confirmations in order, with delay, until the link is cut.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ringpost_engine::position::Lsn;
use ringpost_engine::request::{
    Refused, Replicate, Request, SealedItem, StageId, StreamId, Ticket,
};
use ringpost_netproto::id::PartitionId;

use super::tails::chains;
use super::{Confirm, Letter, World};

/// Of the MSG run in a `DELIVER_FILE`, and `skip` in it (FORMAT.md).
const DELIVER_FILE_FIXED_AT: usize = 72;
const MSG_SKIP_AT: usize = 52;

impl World {
    pub(super) fn ship(&mut self, node: usize, upto: Option<Lsn>, items: Vec<SealedItem>) {
        let mut sent: BTreeMap<StreamId, BTreeSet<PartitionId>> = BTreeMap::new();
        for item in items {
            let Some((_, to, _)) = self.streams.get(&item.stream) else {
                continue;
            };
            let to = *to;
            let stream = item.stream;
            sent.entry(stream)
                .or_default()
                .insert(item.records.partition);
            let confirm = Confirm { stream, upto };
            let files = self.files_of(node, &item.records);
            self.send(node, to, Letter::Records(item.records, files, confirm));
        }
        let Some(upto) = upto else { return };
        for (stream, partitions) in sent {
            if let Some((_, _, outstanding)) = self.streams.get_mut(&stream) {
                outstanding.push_back((upto, partitions));
            }
        }
    }

    pub(super) fn send(&mut self, from: usize, to: usize, letter: Letter) {
        if !self.dead.get(&(from, to)).copied().unwrap_or(false) {
            self.links.entry((from, to)).or_default().push_back(letter);
        }
    }

    /// One letter arrives.
    pub(super) fn carry(&mut self) -> Result<(), String> {
        let filled: Vec<_> = self
            .links
            .iter()
            .filter(|(_, letters)| !letters.is_empty())
            .map(|(link, _)| *link)
            .collect();
        if filled.is_empty() {
            return Ok(());
        }
        let (from, to) = filled[self.rng.usize(..filled.len())];
        let letter = self
            .links
            .get_mut(&(from, to))
            .and_then(VecDeque::pop_front);
        let letter = letter.expect("it was there");
        match letter {
            Letter::Records(mut records, files, confirm) => {
                let partition = records.partition;
                let Some(stages) = self.take_files(to, &mut records, files)? else {
                    self.disconnect(confirm.stream);
                    return Ok(());
                };
                let node = &mut self.nodes[to];
                let Some(bench) = node.up() else {
                    return Ok(());
                };
                match bench.submit(Request::Replicate(Box::new(records))) {
                    Ok(ticket) => {
                        node.copies.insert(ticket, (from, confirm, partition));
                        node.stages.insert(ticket, stages);
                    }
                    Err(Refused::BadRecords(reason)) => {
                        return Err(format!("records are no records: {reason}"));
                    }
                    Err(_) => self.disconnect(confirm.stream),
                }
            }
            Letter::Ack(confirm, partition, result) => {
                self.confirmed(to, confirm, partition, &result);
            }
        }
        Ok(())
    }

    pub(super) fn confirmed(
        &mut self,
        node: usize,
        confirm: Confirm,
        partition: PartitionId,
        result: &Result<u64, Refused>,
    ) {
        let now = match self.nodes[node].up() {
            Some(bench) => bench.now(),
            None => return,
        };
        // It has more than it was asked about: the chain tells whether that is ours.
        if let Err(Refused::Gap { pseq, chain }) = result {
            let ours = chains(&self.tail(node, partition)).get(pseq).copied();
            if ours == Some(*chain) && self.streams.contains_key(&confirm.stream) {
                let bench = self.nodes[node].up().expect("it is up");
                bench.shard.copied_to(now, partition, *pseq);
                return;
            }
        }
        let Ok(pseq) = result else {
            // It is behind, or ahead of us: the next connection finds out.
            self.disconnect(confirm.stream);
            return;
        };
        let Some((_, _, outstanding)) = self.streams.get_mut(&confirm.stream) else {
            return;
        };
        let Some(bench) = self.nodes[node].bench.as_mut() else {
            return;
        };
        let Some(upto) = confirm.upto else {
            bench.shard.copied_to(now, partition, *pseq);
            return;
        };
        if let Some(frame) = outstanding.iter_mut().find(|(end, _)| *end == upto) {
            // Which may be said twice.
            frame.1.remove(&partition);
        }
        let mut done = None;
        while outstanding.front().is_some_and(|(_, left)| left.is_empty()) {
            done = outstanding.pop_front();
        }
        if let Some((end, _)) = done {
            bench.shard.copied(now, confirm.stream, end);
        }
    }

    pub(super) fn disconnect(&mut self, stream: StreamId) {
        if let Some((from, to, _)) = self.streams.remove(&stream) {
            self.drop_link(from, to);
        }
    }

    /// A connection is gone in both directions, and all streams on it.
    pub(super) fn drop_link(&mut self, from: usize, to: usize) {
        for link in [(from, to), (to, from)] {
            self.links.remove(&link);
            self.dead.remove(&link);
        }
        let (a, b) = (from, to);
        self.streams
            .retain(|_, (from, to, _)| (*from, *to) != (a, b) && (*from, *to) != (b, a));
    }

    /// A connection breaks, or one direction of it begins to lose silently.
    pub(super) fn cut(&mut self) {
        let from = self.rng.usize(..self.nodes.len());
        let to = (from + self.rng.usize(1..self.nodes.len())) % self.nodes.len();
        if self.rng.bool() {
            self.drop_link(from, to);
        } else {
            self.dead.insert((from, to), true);
        }
    }

    /// The bytes of the large messages among records, as they lie on the sender's disk.
    pub(super) fn files_of(&self, node: usize, records: &Replicate) -> Vec<Vec<u8>> {
        let bench = self.nodes[node].bench.as_ref().expect("it is up");
        let files = records.items.iter().filter_map(|item| item.file.as_ref());
        let read = files.map(|path| {
            bench
                .disk
                .read(path)
                .expect("it waits, so its file is there")
        });
        read.collect()
    }

    /// Puts them into stage files of the receiver; `None` if it is down, or has no room for them.
    pub(super) fn take_files(
        &mut self,
        node: usize,
        records: &mut Replicate,
        files: Vec<Vec<u8>>,
    ) -> Result<Option<Vec<StageId>>, String> {
        let Some(bench) = self.nodes[node].up() else {
            return Ok(None);
        };
        let mut stages = Vec::new();
        let large = records.items.iter_mut().filter(|item| item.file.is_some());
        for (item, bytes) in large.zip(files) {
            let skip_at = DELIVER_FILE_FIXED_AT + MSG_SKIP_AT;
            let skip = item.record[skip_at..skip_at + 2]
                .try_into()
                .expect("two bytes");
            let (prefix, stored) = bytes.split_at(usize::from(u16::from_le_bytes(skip)));
            let stored = &stored[..stored.len() - 1];
            let Some((stage, path)) = bench.take_file(prefix, stored) else {
                return Ok(None);
            };
            stages.push(stage);
            item.file = Some(path);
        }
        self.take_events(node)?;
        Ok(Some(stages))
    }

    /// A request is answered: what it brought is linked, or refused.
    pub(super) fn drop_stages(&mut self, node: usize, ticket: Ticket) {
        let stages = self.nodes[node].stages.remove(&ticket);
        self.drop_taken(node, stages.unwrap_or_default());
    }

    pub(super) fn drop_taken(&mut self, node: usize, stages: Vec<StageId>) {
        let Some(bench) = self.nodes[node].up() else {
            return;
        };
        let now = bench.now();
        for stage in stages {
            drop(bench.shard.submit(now, Request::StageDrop { stage }));
        }
    }
}
