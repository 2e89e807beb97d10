//! Locks and elections: a line of clients, the first of them holds.

use super::{Hold, Serial, State, bounded, leave_line, name_fits};
use crate::command::{Answer, ClientId, Done, Limit, Refusal};
use crate::limits::{LINE_MAX, VALUE_MAX};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Who holds a lock or leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub client: ClientId,
    /// Fencing token of a lock, epoch of a leader: greater than that of every earlier one.
    pub token: u64,
    /// What the leader says of itself; empty for locks.
    pub value: Vec<u8>,
    /// How many wait behind it.
    pub waiting: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Line {
    /// Of the one in front.
    token: u64,
    line: VecDeque<(ClientId, Vec<u8>)>,
}

impl State {
    pub(super) fn lock(&mut self, client: ClientId, name: String, wait: bool) -> Answer {
        name_fits(&name, &self.locks)?;
        if let Some(line) = self.locks.get(&name) {
            if let Some(token) = line.token_of(client) {
                return Ok(Done::Locked { fence: token });
            }
            if line.contains(client) {
                return Ok(Done::Waiting);
            }
            if !wait {
                return Err(Refusal::Taken);
            }
            line.has_room()?;
        }
        self.holds.check(client)?;
        self.holds.insert(client, Hold::Lock(name.clone()));
        let line = self.locks.entry(name).or_default();
        line.enter(client, Vec::new(), &mut self.serial);
        Ok(line.token_of(client).map_or(Done::Waiting, |fence| Done::Locked { fence }))
    }

    pub(super) fn unlock(&mut self, client: ClientId, name: &str) -> Answer {
        if !self.locks.get(name).is_some_and(|line| line.contains(client)) {
            return Err(Refusal::NotHeld);
        }
        self.holds.remove(client, &Hold::Lock(name.to_owned()));
        leave_line(&mut self.locks, name, client, &mut self.serial);
        Ok(Done::Fine)
    }

    pub(super) fn campaign(&mut self, client: ClientId, name: String, value: Vec<u8>) -> Answer {
        name_fits(&name, &self.elections)?;
        bounded(value.len(), VALUE_MAX, Limit::ValueBytes)?;
        if let Some(line) = self.elections.get_mut(&name) {
            if line.contains(client) {
                line.say(client, value);
                let token = line.token_of(client);
                return Ok(token.map_or(Done::Waiting, |epoch| Done::Elected { epoch }));
            }
            line.has_room()?;
        }
        self.holds.check(client)?;
        self.holds.insert(client, Hold::Election(name.clone()));
        let line = self.elections.entry(name).or_default();
        line.enter(client, value, &mut self.serial);
        Ok(line.token_of(client).map_or(Done::Waiting, |epoch| Done::Elected { epoch }))
    }

    pub(super) fn resign(&mut self, client: ClientId, name: &str) -> Answer {
        if !self.elections.get(name).is_some_and(|line| line.contains(client)) {
            return Err(Refusal::NotHeld);
        }
        self.holds.remove(client, &Hold::Election(name.to_owned()));
        leave_line(&mut self.elections, name, client, &mut self.serial);
        Ok(Done::Fine)
    }

    /// Who has the lock.
    pub fn lock_holder(&self, name: &str) -> Option<Holder> {
        self.locks.get(name).and_then(Line::holder)
    }

    /// Does the client wait for the lock, or have it?
    pub fn is_in_lock_line(&self, name: &str, client: ClientId) -> bool {
        self.locks.get(name).is_some_and(|line| line.contains(client))
    }

    /// The fencing token, if the client has the lock.
    pub fn lock_token(&self, name: &str, client: ClientId) -> Option<u64> {
        self.locks.get(name)?.token_of(client)
    }

    /// The epoch, if the client leads.
    pub fn epoch(&self, name: &str, client: ClientId) -> Option<u64> {
        self.elections.get(name)?.token_of(client)
    }

    /// Who leads.
    pub fn leader(&self, name: &str) -> Option<Holder> {
        self.elections.get(name).and_then(Line::holder)
    }

    /// Is the client a candidate, or the leader?
    pub fn is_candidate(&self, name: &str, client: ClientId) -> bool {
        self.elections.get(name).is_some_and(|line| line.contains(client))
    }
}

impl Line {
    fn enter(&mut self, client: ClientId, value: Vec<u8>, serial: &mut Serial) {
        if self.line.is_empty() {
            self.token = serial.next();
        }
        self.line.push_back((client, value));
    }

    /// The next in line gets a token of its own.
    pub(super) fn leave(&mut self, client: ClientId, serial: &mut Serial) {
        let held = self.token_of(client).is_some();
        self.line.retain(|(other, _)| *other != client);
        if held && !self.line.is_empty() {
            self.token = serial.next();
        }
    }

    fn say(&mut self, client: ClientId, value: Vec<u8>) {
        if let Some(place) = self.line.iter_mut().find(|(other, _)| *other == client) {
            place.1 = value;
        }
    }

    fn has_room(&self) -> Result<(), Refusal> {
        bounded(self.line.len() + 1, LINE_MAX, Limit::Line)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.line.is_empty()
    }

    pub(super) fn clients(&self) -> impl Iterator<Item = ClientId> {
        self.line.iter().map(|(client, _)| *client)
    }

    fn contains(&self, client: ClientId) -> bool {
        self.clients().any(|other| other == client)
    }

    /// The token, if the client is in front.
    fn token_of(&self, client: ClientId) -> Option<u64> {
        self.line.front().is_some_and(|(front, _)| *front == client).then_some(self.token)
    }

    fn holder(&self) -> Option<Holder> {
        let (client, value) = self.line.front()?;
        let waiting = self.line.len() - 1;
        Some(Holder { client: *client, token: self.token, value: value.clone(), waiting })
    }
}
