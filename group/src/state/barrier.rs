//! Barriers: so many arrive, then all go on; one who dies before that breaks it for the others.

use super::{Hold, State, bounded, name_fits};
use crate::command::{Answer, ClientId, Done, Limit, Refusal};
use crate::limits::LINE_MAX;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// How it went with one who has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Passage {
    /// Others are still missing.
    Waiting,
    /// All have arrived.
    Passed,
    /// One of them died or went away before all were there.
    Broken,
}

/// The parties that have arrived since it was last passed or broken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Barrier {
    generation: u64,
    parties: u32,
    arrived: BTreeSet<ClientId>,
    /// How earlier generations ended for those who were in them and live: the last of each client.
    ended: BTreeMap<ClientId, (u64, Passage)>,
}

impl State {
    pub(super) fn arrive(&mut self, client: ClientId, name: String, parties: u32) -> Answer {
        name_fits(&name, &self.barriers)?;
        bounded(parties as usize, LINE_MAX, Limit::Line)?;
        if parties == 0 {
            return Err(Refusal::Parties { parties: 1 });
        }
        match self.barriers.get(&name) {
            // An empty one is for as many as the first of the next generation says.
            Some(barrier) if barrier.parties != parties && !barrier.arrived.is_empty() => {
                return Err(Refusal::Parties { parties: barrier.parties });
            }
            Some(barrier) if barrier.arrived.contains(&client) => {
                return Ok(Done::Arrived { generation: barrier.generation });
            }
            Some(barrier) if barrier.ended.contains_key(&client) => {}
            Some(barrier) => {
                // Who has been at it before is remembered until it leaves, dies, or comes again.
                bounded(barrier.clients().count() + 1, LINE_MAX, Limit::Line)?;
                self.holds.check(client)?;
            }
            None => self.holds.check(client)?,
        }
        self.holds.insert(client, Hold::Barrier(name.clone()));
        let serial = &mut self.serial;
        let barrier = self.barriers.entry(name).or_insert_with(|| Barrier {
            generation: serial.next(),
            parties,
            arrived: BTreeSet::new(),
            ended: BTreeMap::new(),
        });
        barrier.parties = parties;
        barrier.ended.remove(&client);
        barrier.arrived.insert(client);
        let generation = barrier.generation;
        if barrier.arrived.len() >= parties as usize {
            barrier.end(Passage::Passed, serial.next());
        }
        Ok(Done::Arrived { generation })
    }

    pub(super) fn abandon(&mut self, client: ClientId, name: &str) -> Answer {
        // Who has passed cannot undo it: the others have passed too.
        if !self.is_at_barrier(name, client) {
            return Err(Refusal::NotHeld);
        }
        self.holds.remove(client, &Hold::Barrier(name.to_owned()));
        self.leave_barrier(client, name);
        Ok(Done::Fine)
    }

    /// One of those at the barrier has gone.
    pub(super) fn leave_barrier(&mut self, client: ClientId, name: &str) {
        let Some(barrier) = self.barriers.get_mut(name) else { return };
        if barrier.arrived.remove(&client) {
            barrier.end(Passage::Broken, self.serial.next());
        }
        barrier.ended.remove(&client);
        if barrier.clients().next().is_none() {
            self.barriers.remove(name);
        }
    }

    /// Does the client wait at the barrier?
    pub fn is_at_barrier(&self, name: &str, client: ClientId) -> bool {
        self.barriers.get(name).is_some_and(|barrier| barrier.arrived.contains(&client))
    }

    /// How it went with a client that has arrived as one of this generation; none if it is not known
    /// (any more): the client has arrived again, or has ended.
    pub fn passage(&self, name: &str, client: ClientId, generation: u64) -> Option<Passage> {
        let barrier = self.barriers.get(name)?;
        if barrier.generation == generation && barrier.arrived.contains(&client) {
            return Some(Passage::Waiting);
        }
        let (ended, passage) = barrier.ended.get(&client)?;
        (*ended == generation).then_some(*passage)
    }
}

impl Barrier {
    fn end(&mut self, passage: Passage, next: u64) {
        for client in std::mem::take(&mut self.arrived) {
            self.ended.insert(client, (self.generation, passage));
        }
        self.generation = next;
    }

    pub(super) fn clients(&self) -> impl Iterator<Item = ClientId> {
        self.arrived.iter().chain(self.ended.keys()).copied()
    }
}
