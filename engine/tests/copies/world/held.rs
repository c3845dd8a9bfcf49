//! Held mail finds its way to the primary: each holder hands back on its own, and nobody hears of it
//! twice.

use ringpost_engine::request::{Outcome, Request};
use ringpost_netproto::id::Guid;

use super::{USERS, World, all_partitions};
use crate::held::{Item, done, handed_back, held};
use crate::testkit::{guid, user};

impl World {
    /// A node that is up sends something that it holds to who leads.
    pub(super) fn hand_back(&mut self) -> Result<(), String> {
        let node = self.rng.usize(..self.nodes.len());
        if !self.nodes[node].is_up() {
            return Ok(());
        }
        for partition in all_partitions() {
            let primary = self.registers[&partition].primary;
            if !self.nodes[primary].is_up() {
                continue;
            }
            let bench = self.nodes[node].up().expect("just looked");
            let items = held(bench, partition);
            self.take_events(node)?;
            let Some(item) = self.rng.choice(&items).cloned() else {
                continue;
            };
            let bench = self.nodes[primary].up().expect("just looked");
            if let Ok(ticket) = bench.submit(Request::Append(handed_back(&item))) {
                self.handed.insert((primary, ticket), (node, item));
            }
        }
        Ok(())
    }

    /// The primary said what became of it.
    pub(super) fn handed_back(
        &mut self,
        (holder, item): (usize, &Item),
        outcomes: &[Outcome],
    ) -> Result<(), String> {
        let uid = match outcomes {
            [Outcome::Stored { uid, .. } | Outcome::Duplicate { uid, .. }] => uid.value(),
            _ => return Ok(()),
        };
        let name = USERS.into_iter().find(|name| **name == item.user);
        let name = name.ok_or_else(|| format!("mail of {} was held", item.user))?;
        self.saw(name, uid, item.guid)?;
        if let Some(bench) = self.nodes[holder].up() {
            done(bench, user(name).partition(), item);
        }
        Ok(())
    }

    /// Whether anybody holds anything, or hands it back.
    pub(super) fn is_holding(&mut self) -> bool {
        let mut is_holding = !self.handed.is_empty();
        for node in &mut self.nodes {
            let Some(bench) = node.up() else { continue };
            for partition in all_partitions() {
                is_holding |= !held(bench, partition).is_empty();
            }
        }
        is_holding
    }

    /// What was answered as held, or was cut off somewhere, is among a user's mail.
    pub(super) fn compare_held(&self, name: &str, there: &[Guid]) -> Result<(), String> {
        let held = self.held.iter().filter(|(of, _)| *of == name);
        let held = held.map(|(_, number)| guid(*number));
        let rescued = self.rescued.iter().filter(|(of, _)| *of == name);
        let rescued = rescued.map(|(_, bytes)| Guid::new(*bytes));
        for wanted in held.chain(rescued) {
            if !there.contains(&wanted) {
                return Err(format!("mail {wanted} of {name} was held and is lost"));
            }
        }
        Ok(())
    }
}
