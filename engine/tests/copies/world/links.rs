//! Links: requests and confirmations in order, with delay, until the link is cut.

use std::collections::{BTreeMap, VecDeque};

use ringpost_engine::position::Lsn;
use ringpost_engine::request::{Refused, Request, SealedItem, StreamId};
use ringpost_netproto::id::PartitionId;

use super::tails::chains;
use super::{Confirm, Letter, World};

impl World {
    pub(super) fn ship(&mut self, node: usize, upto: Option<Lsn>, items: Vec<SealedItem>) {
        let mut counts: BTreeMap<StreamId, usize> = BTreeMap::new();
        for item in items {
            let Some((_, to, _)) = self.streams.get(&item.stream) else {
                continue;
            };
            let to = *to;
            *counts.entry(item.stream).or_default() += 1;
            let stream = item.stream;
            let confirm = Confirm { stream, upto };
            self.send(node, to, Letter::Records(item.records, confirm));
        }
        let Some(upto) = upto else { return };
        for (stream, count) in counts {
            if let Some((_, _, outstanding)) = self.streams.get_mut(&stream) {
                outstanding.push_back((upto, count));
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
            Letter::Records(records, confirm) => {
                let partition = records.partition;
                let node = &mut self.nodes[to];
                let Some(bench) = node.up() else {
                    return Ok(());
                };
                match bench.submit(Request::Replicate(Box::new(records))) {
                    Ok(ticket) => {
                        node.copies.insert(ticket, (from, confirm, partition));
                    }
                    Err(Refused::BadRecords(reason)) => {
                        return Err(format!("records are no records: {reason}"));
                    }
                    Err(_) => {}
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
            frame.1 = frame.1.saturating_sub(1);
        }
        let mut done = None;
        while outstanding.front().is_some_and(|(_, left)| *left == 0) {
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
}
