//! Who leads: the register moves the lead, and a new primary makes sure of it (cluster.md 5.3).

use ringpost_engine::request::{Copy, Event, PartitionTail, Refused, Replicate, Request, StreamId};
use ringpost_netproto::id::{Epoch, PartitionId};

use super::tails::{common, last_of, messages_above, shares};
use super::{Outstanding, Register, USERS, World, all_partitions};
use crate::refill::{Earlier, catch_up, fence};

impl World {
    /// The register moves the lead of a node that is down, or of any, to its copy. All copies are in
    /// sync in this world: nothing counts before both have it.
    pub(super) fn fail_over(&mut self) {
        for partition in all_partitions() {
            if !self.registers[&partition].in_sync {
                // Nobody else has what counts.
                continue;
            }
            let down = !self.nodes[self.registers[&partition].primary].is_up();
            if down || self.rng.u32(..6) == 0 {
                let register = self.registers.get_mut(&partition).expect("one each");
                register.epoch += 1;
                (register.primary, register.copy) = (register.copy, register.primary);
            }
        }
    }

    /// Who leads and can reach the other makes sure of the lead, and of a stream.
    pub(super) fn lead(&mut self) -> Result<(), String> {
        for partition in all_partitions() {
            let Register {
                epoch,
                primary,
                copy,
                in_sync,
            } = self.registers[&partition];
            if !self.nodes[primary].is_up() {
                continue;
            }
            let leads = self.nodes[primary].leads.get(&partition).copied();
            let connected = self.stream_of(primary, copy).is_some();
            let fresh = leads.is_none_or(|leads| leads < epoch);
            if !in_sync {
                match (fresh, self.nodes[copy].is_up()) {
                    (true, _) if self.rng.u32(..4) == 0 => self.lead_alone(partition)?,
                    (false, true) if self.rng.u32(..6) == 0 => self.catch_up(partition)?,
                    _ => {}
                }
                continue;
            }
            if !self.nodes[copy].is_up() {
                if fresh && !connected && self.rng.u32(..12) == 0 {
                    if self.rng.bool() {
                        self.lead_unheard(partition)?;
                    } else {
                        self.lead_alone(partition)?;
                    }
                }
                continue;
            }
            if !fresh && connected {
                continue;
            }
            if self.rng.u32(..3) != 0 {
                continue;
            }
            if !connected {
                self.drop_link(primary, copy);
                let stream = StreamId::new(self.next_stream);
                self.next_stream += 1;
                self.streams
                    .insert(stream, (primary, copy, Outstanding::new()));
                // All partitions that it leads towards that node go over it.
                for other in all_partitions() {
                    let register = self.registers[&other];
                    let same = (register.primary, register.copy) == (primary, copy);
                    let led = self.nodes[primary].leads.get(&other) == Some(&register.epoch);
                    if same && led && register.in_sync {
                        self.agree(other, primary, copy)?;
                        let bench = self.nodes[primary].up().expect("it is up");
                        let now = bench.now();
                        bench.shard.set_copy(now, other, Copy::Stream(stream));
                        self.take_events(primary)?;
                    }
                }
            }
            if fresh {
                self.take_lead(partition)?;
            }
        }
        Ok(())
    }

    /// T4 while the other is down: all that counts is here, and nothing new counts before the other is
    /// back, whatever it has then.
    fn lead_unheard(&mut self, partition: PartitionId) -> Result<(), String> {
        let register = self.registers.get_mut(&partition).expect("one each");
        register.epoch += 1;
        let Register {
            epoch,
            primary,
            copy,
            ..
        } = *register;
        let stream = StreamId::new(self.next_stream);
        self.next_stream += 1;
        self.streams
            .insert(stream, (primary, copy, Outstanding::new()));
        self.submit_lead(primary, partition, (epoch, Copy::Stream(stream), 0))
    }

    /// T4 while the other is down, which leaves the in-sync set: what counts is here alone from now on.
    fn lead_alone(&mut self, partition: PartitionId) -> Result<(), String> {
        let register = self.registers.get_mut(&partition).expect("one each");
        register.epoch += 1;
        register.in_sync = false;
        let Register { epoch, primary, .. } = *register;
        self.submit_lead(primary, partition, (epoch, Copy::None, 0))
    }

    /// A copy that was away gets what counts by other means, and is in sync again (T3).
    fn catch_up(&mut self, partition: PartitionId) -> Result<(), String> {
        let Register {
            epoch,
            primary,
            copy,
            ..
        } = self.registers[&partition];
        if self.nodes[primary]
            .leading
            .values()
            .any(|of| *of == partition)
        {
            // What waits there may count, and be shown, in a moment.
            return Ok(());
        }
        self.nodes[copy].leads.remove(&partition);
        drop(self.ask(copy, fence(partition, epoch))?);
        // Whether its tail is the primary's too, nobody knows any more.
        let theirs = self.tail(copy, partition);
        self.cut_copy(partition, copy, &theirs, theirs.shown_pseq)?;
        let at = (partition, Epoch::new(epoch));
        let Ok([ours, theirs]) = self.nodes.get_disjoint_mut([primary, copy]) else {
            return Err("a node is its own copy".to_owned());
        };
        let (ours, theirs) = (ours.up().expect("up"), theirs.up().expect("up"));
        let caught_up = catch_up(ours, theirs, at, &USERS, Earlier::Unknown);
        match caught_up {
            Ok(()) => {
                // Before anything else happens at the primary. Without a stream the next connection says
                // which.
                let silent = StreamId::new(u32::MAX);
                let stream = self.stream_of(primary, copy).unwrap_or(silent);
                let bench = self.nodes[primary].up().expect("it is up");
                let now = bench.now();
                bench.shard.set_copy(now, partition, Copy::Stream(stream));
                let register = self.registers.get_mut(&partition).expect("one each");
                register.in_sync = true;
            }
            // Mail came meanwhile: another time.
            Err(why) if why.contains("stand still") || why.contains("later") => {}
            Err(why) => return Err(format!("{partition}: {why}")),
        }
        self.take_events(primary)?;
        self.take_events(copy)
    }

    /// The stream between two nodes, if they are connected.
    fn stream_of(&self, primary: usize, copy: usize) -> Option<StreamId> {
        let mut streams = self.streams.iter();
        let found = streams.find(|(_, (from, to, _))| (*from, *to) == (primary, copy));
        found.map(|(stream, _)| *stream)
    }

    /// T5, T4 or T6: a new epoch, what the copy has is taken back, then the barrier.
    pub(super) fn take_lead(&mut self, partition: PartitionId) -> Result<(), String> {
        let register = self.registers.get_mut(&partition).expect("one each");
        register.epoch += 1;
        let Register {
            epoch,
            primary,
            copy,
            ..
        } = *register;
        let epoch = Epoch::new(epoch);
        // The old primary hears of it first or last; here it is fenced by what it is sent.
        self.nodes[copy].leads.remove(&partition);
        if self.rng.bool() {
            let bench = self.nodes[copy].up().expect("it is up");
            let now = bench.now();
            bench.shard.set_copy(now, partition, Copy::Follows);
        }
        // Its tail is promised to nobody else while it is read: it learns the epoch.
        let ours = self.tail(primary, partition);
        let (last, _) = last_of(&ours);
        drop(self.ask(copy, fence(partition, epoch.value()))?);
        self.take_back(partition, (primary, copy), (epoch, last))?;
        self.agree(partition, primary, copy)?;
        let stream = self.stream_of(primary, copy).expect("just made");
        let peers_pseq = last_of(&self.tail(copy, partition)).0;
        let copy = Copy::Stream(stream);
        self.submit_lead(primary, partition, (epoch.value(), copy, peers_pseq))
    }

    /// Has a node lead a partition.
    fn submit_lead(
        &mut self,
        node: usize,
        partition: PartitionId,
        (epoch, copy, peers_pseq): (u32, Copy, u64),
    ) -> Result<(), String> {
        let lead = Request::Lead {
            partition,
            epoch: Epoch::new(epoch),
            copy,
            peers_pseq,
        };
        let bench = self.nodes[node].up().expect("it is up");
        let ticket = match bench.submit(lead) {
            Ok(ticket) => ticket,
            Err(refused) => return Err(format!("the lead of {partition}: {refused}")),
        };
        bench.poll();
        self.nodes[node].leading.insert(ticket, partition);
        self.take_events(node)?;
        self.nodes[node].leads.insert(partition, epoch);
        Ok(())
    }

    /// What the copy has above `last` goes back to the primary, as far as it continues what is there.
    fn take_back(
        &mut self,
        partition: PartitionId,
        (primary, copy): (usize, usize),
        (epoch, last): (Epoch, u64),
    ) -> Result<(), String> {
        let theirs = self.tail(copy, partition);
        for records in &theirs.waiting {
            let end = records.prev_pseq + records.items.len() as u64;
            if end <= last {
                continue;
            }
            let mut records = Replicate {
                epoch,
                commit_pseq: 0,
                ..records.clone()
            };
            let ours = self.tail(primary, partition);
            let files = self.files_of(copy, &records);
            let stages = self.take_files(primary, &mut records, files)?;
            let back = self.ask(primary, Request::Replicate(Box::new(records)))?;
            self.drop_taken(primary, stages.unwrap_or_default());
            match back {
                Some(Event::Replicated { result: Ok(_), .. }) => {}
                // Its tail is another one: it goes, ours stays.
                Some(Event::Replicated {
                    result: Err(Refused::Diverged { .. } | Refused::Gap { .. }),
                    ..
                }) if shares(&ours, &theirs) => break,
                other => {
                    return Err(format!(
                        "the lead of {partition} is not taken back: {other:?}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// The copy's tail that the primary does not have is cut off.
    pub(super) fn agree(
        &mut self,
        partition: PartitionId,
        primary: usize,
        copy: usize,
    ) -> Result<(), String> {
        let (ours, theirs) = (self.tail(primary, partition), self.tail(copy, partition));
        let (last, _) = last_of(&theirs);
        let common = common(&ours, &theirs);
        if last <= common {
            return Ok(());
        }
        let bench = self.nodes[copy].up().expect("it is up");
        let now = bench.now();
        bench.shard.set_copy(now, partition, Copy::Follows);
        self.cut_copy(partition, copy, &theirs, common)
    }

    fn cut_copy(
        &mut self,
        partition: PartitionId,
        copy: usize,
        theirs: &PartitionTail,
        pseq: u64,
    ) -> Result<(), String> {
        let cut_off = messages_above(theirs, pseq);
        match self.ask(copy, Request::Disown { partition, pseq })? {
            Some(Event::Disowned { result: Ok(_), .. }) => {
                self.rescued.extend(cut_off);
                Ok(())
            }
            other => Err(format!("{partition} is not cut at {pseq}: {other:?}")),
        }
    }

    pub(super) fn tail(&mut self, node: usize, partition: PartitionId) -> PartitionTail {
        let bench = self.nodes[node].up().expect("it is up");
        bench.shard.partition_tail(partition).expect("its own")
    }
}
