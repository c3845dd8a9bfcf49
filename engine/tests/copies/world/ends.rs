//! How a run ends, and the oracle: what was acknowledged or seen is there, once, byte for byte, and
//! both copies of a partition say the same.

use std::collections::BTreeMap;

use ringpost_engine::mbox::{View, restore};
use ringpost_engine::request::{Copy, Event, Replicate, Request};
use ringpost_netproto::id::{Epoch, Guid, MailboxId, PartitionId, Uid};

use super::{End, Node, Register, USERS, World, all_partitions};
use crate::testkit::{Bench, guid, message, user};

impl World {
    /// Everybody is up and connected; all that is under way ends.
    pub(super) fn heal(&mut self) -> Result<(), String> {
        for from in 0..self.nodes.len() {
            for to in 0..from {
                self.drop_link(from, to);
            }
        }
        for _round in 0..3_000 {
            if self.is_quiet() {
                break;
            }
            self.restart()?;
            self.lead()?;
            for node in 0..self.nodes.len() {
                self.turn(node)?;
            }
            for _letter in 0..8 {
                self.carry()?;
            }
            self.hand_back()?;
            for partition in all_partitions() {
                if self.rng.u32(..20) == 0 {
                    self.tell_what_counts(partition)?;
                }
            }
        }
        if !self.is_quiet() {
            return Err(format!("it does not come to rest: {}", self.unrest()));
        }
        for partition in all_partitions() {
            if !self.tell_what_counts(partition)? {
                return Err(format!("{partition} does not end alike"));
            }
        }
        for name in USERS {
            let Register { primary, copy, .. } = self.registers[&user(name).partition()];
            let (ours, theirs) = (self.state(primary, name), self.state(copy, name));
            if ours != theirs {
                return Err(format!("{name} differs: {ours:?} and {theirs:?}"));
            }
            self.compare(primary, name)?;
        }
        for node in 0..self.nodes.len() {
            let bench = self.nodes[node].up().expect("it is up");
            bench.checkpoint();
            self.crash(node);
        }
        self.restart()?;
        for name in USERS {
            let primary = self.registers[&user(name).partition()].primary;
            let compared = self.compare(primary, name);
            compared.map_err(|found| format!("after the last restart: {found}"))?;
        }
        Ok(())
    }

    /// What counts at a primary that leads is told to its copy, as a stream without mail does now and
    /// then; whether that took it.
    fn tell_what_counts(&mut self, partition: PartitionId) -> Result<bool, String> {
        let Register {
            primary,
            copy,
            epoch,
            in_sync,
        } = self.registers[&partition];
        let leads = self.nodes[primary].leads.get(&partition) == Some(&epoch);
        if !(in_sync && leads && self.nodes[copy].is_up()) {
            return Ok(false);
        }
        let ours = self.tail(primary, partition);
        let last = Replicate {
            partition,
            epoch: Epoch::new(epoch),
            prev_pseq: ours.shown_pseq,
            prev_chain: ours.shown_chain,
            items: Vec::new(),
            commit_pseq: ours.shown_pseq,
        };
        let told = self.ask(copy, Request::Replicate(Box::new(last)))?;
        Ok(matches!(
            told,
            Some(Event::Replicated { result: Ok(_), .. })
        ))
    }

    /// Whether everybody is there, who leads knows it, and nothing waits or is on its way.
    fn is_quiet(&mut self) -> bool {
        let up = self.nodes.iter().all(Node::is_up);
        let sent = self.links.values().any(|letters| !letters.is_empty());
        let answered = |node: &Node| node.bench.as_ref().is_some_and(Bench::is_answered);
        let answered = self.nodes.iter().all(answered);
        up && !sent
            && answered
            && !self.is_holding()
            && all_partitions().all(|partition| {
                let Register {
                    epoch,
                    primary,
                    in_sync,
                    ..
                } = self.registers[&partition];
                in_sync
                    && self.nodes[primary].leads.get(&partition) == Some(&epoch)
                    && self.tail(primary, partition).waiting.is_empty()
            })
    }

    /// What still moves.
    fn unrest(&mut self) -> String {
        let mut found = String::new();
        for partition in all_partitions() {
            let register = self.registers[&partition];
            let tail = self.tail(register.primary, partition);
            let (shown, waiting) = (tail.shown_pseq, tail.waiting.len());
            let leads = self.nodes[register.primary].leads.get(&partition);
            found.push_str(&format!(
                "{partition}: {register:?} {leads:?} {shown} {waiting}; "
            ));
        }
        for (number, node) in self.nodes.iter().enumerate() {
            let bench = node.bench.as_ref();
            let (mails, copies) = (node.mails.len(), node.copies.len());
            let mut open = bench.map(Bench::unanswered).unwrap_or_default();
            open.truncate(10);
            found.push_str(&format!(
                "node {number}: {open:?}, {mails} mails, {copies} copies; "
            ));
        }
        found
    }

    /// One disk is gone: the others serve alone, in a later epoch.
    pub(super) fn lose(&mut self) -> Result<(), String> {
        let lost = self.rng.usize(..self.nodes.len());
        let mut registers = self.registers.values();
        if registers.any(|register| !register.in_sync && register.primary == lost) {
            // That loses what counts there alone.
            return Ok(());
        }
        self.crash(lost);
        self.nodes[lost].disk = None;
        self.restart()?;
        for partition in all_partitions() {
            let Register {
                primary,
                copy,
                epoch,
                ..
            } = self.registers[&partition];
            let left = if primary == lost { copy } else { primary };
            if self.nodes[left].leads.get(&partition) == Some(&epoch) {
                // It leads already: the policy says that it may go on alone.
                let bench = self.nodes[left].up().expect("it is up");
                let now = bench.now();
                bench.shard.set_copy(now, partition, Copy::None);
                continue;
            }
            let lead = Request::Lead {
                partition,
                epoch: Epoch::new(epoch + 2),
                copy: Copy::None,
                peers_pseq: 0,
            };
            match self.ask(left, lead)? {
                Some(Event::Led { result: Ok(_), .. }) => {}
                other => return Err(format!("{partition} is not led alone: {other:?}")),
            }
        }
        for node in 0..self.nodes.len() {
            for _round in 0..40 {
                self.turn(node)?;
            }
        }
        for name in USERS {
            let Register { primary, copy, .. } = self.registers[&user(name).partition()];
            let left = if primary == lost { copy } else { primary };
            self.compare(left, name)?;
        }
        Ok(())
    }

    /// Everything a client sees of a user.
    fn state(&mut self, node: usize, name: &'static str) -> String {
        let statuses = Request::Mailboxes { user: user(name) };
        let Ok(Some(Event::Mailboxes { result, .. })) = self.ask(node, statuses) else {
            return "not answered".to_owned();
        };
        let Ok(statuses) = result else {
            return format!("{result:?}");
        };
        let mut state = String::new();
        for status in statuses {
            let list = Request::List {
                user: user(name),
                mailbox: status.mailbox,
                after: 0,
                entries_max: 1_000,
            };
            let page = self.ask(node, list);
            let Ok(Some(Event::Listed { result, .. })) = page else {
                return "not answered".to_owned();
            };
            state.push_str(&format!(
                "{status:?} {:?}\n",
                result.map(|page| page.entries)
            ));
        }
        state
    }

    /// What was promised or seen is there, once, byte for byte.
    fn compare(&mut self, node: usize, name: &'static str) -> Result<(), String> {
        let list = Request::List {
            user: user(name),
            mailbox: MailboxId::INBOX,
            after: 0,
            entries_max: 1_000,
        };
        let Some(Event::Listed { result, .. }) = self.ask(node, list)? else {
            return Err(format!("{name} is not listed"));
        };
        let entries = result.map(|page| page.entries).unwrap_or_default();
        let there: BTreeMap<u32, Guid> = entries
            .iter()
            .map(|entry| (entry.uid.value(), entry.guid))
            .collect();
        let mut guids: Vec<Guid> = there.values().copied().collect();
        guids.sort_by_key(|guid| guid.bytes());
        guids.dedup();
        if guids.len() != there.len() {
            return Err(format!("a mail of {name} is there twice: {there:?}"));
        }
        let seen = self.seen.iter().filter(|((of, _), _)| *of == name);
        for ((_, uid), guid) in seen {
            if there.get(uid) != Some(guid) {
                return Err(format!(
                    "{name}: uid {uid} was {guid} and is {:?}",
                    there.get(uid)
                ));
            }
        }
        let promised: Vec<(u64, u32)> = self
            .acknowledged
            .iter()
            .filter(|((of, _), _)| *of == name)
            .map(|((_, number), uid)| (*number, *uid))
            .collect();
        for (number, uid) in promised {
            if there.get(&uid) != Some(&guid(number)) {
                return Err(format!("mail {number} of {name} (uid {uid}) is lost"));
            }
            self.compare_bytes(node, name, (number, uid))?;
        }
        if self.plan.end == End::Heal {
            self.compare_held(name, &guids)?;
        }
        Ok(())
    }

    fn compare_bytes(
        &mut self,
        node: usize,
        name: &'static str,
        (number, uid): (u64, u32),
    ) -> Result<(), String> {
        let fetch = Request::Fetch {
            user: user(name),
            mailbox: MailboxId::INBOX,
            uid: Uid::new(uid),
            stored_offset: 0,
            bytes_max: 1 << 20,
        };
        let Some(Event::Fetched { result, .. }) = self.ask(node, fetch)? else {
            return Err(format!("uid {uid} of {name} is not fetched"));
        };
        let fetched = result.map_err(|refused| format!("uid {uid} of {name}: {refused}"))?;
        let bytes = restore(&fetched.stored, fetched.format_flags, View::AsReceived);
        let size = self.sizes[&number];
        if bytes == message(number, size) {
            Ok(())
        } else {
            Err(format!("mail {number} of {name} has other bytes"))
        }
    }
}
