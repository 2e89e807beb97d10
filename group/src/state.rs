//! The replicated state: what all nodes know, as a value that commands change.
//!
//! It does no I/O, reads no clock and draws no randomness: the same commands in the same order make the same
//! state and the same answers everywhere. Time is in the commands. Who has to wait (for a lock, a turn, the
//! others at a barrier) is told [`Done::Waiting`] and looks at the state again when it changes.

mod barrier;
mod kv;
mod line;
mod multicast;
mod session;
mod tables;

pub use barrier::Passage;
pub use kv::{Changes, Entry, Event, Range};
pub use line::Holder;
pub use multicast::{Debt, Delivery, Item, Member, View};
pub use tables::{Dc, Node, Place, home};

use crate::command::{
    Answer, ClientId, Command, DecodeError, Done, Limit, Millis, Op, Refusal, TableOp, decode,
    encode,
};
use crate::limits::{DC_NAMES_MAX, HOLDS_MAX, NAME_MAX, NAMES_MAX, SNAPSHOT_MAX};
use crate::realm::Realm;
use barrier::Barrier;
use kv::Kv;
use line::Line;
use multicast::Groups;
use serde::{Deserialize, Serialize};
use session::Sessions;
use std::collections::{BTreeMap, BTreeSet};
use tables::Tables;

/// Version of a snapshot's format, the first thing in it, and of the log's, as both hold the same types.
pub const SNAPSHOT_VERSION: u32 = 6;

/// The state of the system group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    now: Millis,
    serial: Serial,
    sessions: Sessions,
    kv: Kv,
    locks: BTreeMap<String, Line>,
    elections: BTreeMap<String, Line>,
    barriers: BTreeMap<String, Barrier>,
    groups: Groups,
    tables: Tables,
    /// What each session holds, to find it when the session ends. Made anew from the rest by `restore`.
    #[serde(skip)]
    holds: Holds,
}

/// The source of everything that must never repeat: sessions, fencing tokens, epochs, generations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Serial(u64);

impl Serial {
    pub(crate) fn next(&mut self) -> u64 {
        // A thousand a second for half a billion years.
        self.0 = self.0.wrapping_add(1);
        self.0
    }
}

/// Something that ends with its session.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Hold {
    Key(Vec<u8>),
    Lock(String),
    Election(String),
    Barrier(String),
    Group(String),
    Node(u16),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Holds(BTreeMap<ClientId, BTreeSet<Hold>>);

impl Holds {
    fn check(&self, client: ClientId) -> Result<(), Refusal> {
        let count = self.0.get(&client).map_or(0, BTreeSet::len);
        bounded(count + 1, HOLDS_MAX, Limit::Holds)
    }

    fn of(&self, client: ClientId) -> impl Iterator<Item = &Hold> {
        self.0.get(&client).into_iter().flatten()
    }

    fn insert(&mut self, client: ClientId, hold: Hold) {
        self.0.entry(client).or_default().insert(hold);
    }

    fn remove(&mut self, client: ClientId, hold: &Hold) {
        if let Some(holds) = self.0.get_mut(&client) {
            holds.remove(hold);
            if holds.is_empty() {
                self.0.remove(&client);
            }
        }
    }
}

impl State {
    /// Carries out one command. Time passes first: sessions that are due by then have ended when it is done.
    pub fn apply(&mut self, command: Command) -> Answer {
        self.now = self.now.max(command.now);
        for client in self.sessions.due(self.now) {
            self.end(client);
        }
        let Command { from, client, sequence, acked, op, .. } = command;
        match op {
            Op::Tick => return Ok(Done::Fine),
            Op::Open { nonce, ttl, realm } => return self.open(from, nonce, ttl, realm),
            Op::Alive { signs } => return Ok(self.sessions.keep_alive(&signs)),
            // It happens once, by its epoch.
            Op::Table(op @ TableOp::Place { .. }) => return self.table(client, op),
            _ => {}
        }
        self.sessions.speaks(client, from)?;
        match op {
            Op::Close => {
                self.end(client);
                return Ok(Done::Fine);
            }
            Op::Acknowledge { group, number } => {
                return self.groups.acknowledge(client, &group, number);
            }
            _ => {}
        }
        if let Some(answer) = self.sessions.earlier_answer(client, sequence, acked)? {
            return answer;
        }
        let answer = self.execute(client, op);
        self.sessions.remember(client, sequence, &answer);
        answer
    }

    /// The operations that happen once.
    fn execute(&mut self, client: ClientId, op: Op) -> Answer {
        match op {
            Op::Put { key, value, lease } => self.put(client, key, value, lease),
            Op::Delete { key } => self.delete(&key),
            Op::Swap { key, expected, value, lease } => {
                self.swap(client, key, expected, value, lease)
            }
            Op::Lock { name, wait } => self.lock(client, name, wait),
            Op::Unlock { name } => self.unlock(client, &name),
            Op::Campaign { name, value } => self.campaign(client, name, value),
            Op::Resign { name } => self.resign(client, &name),
            Op::Arrive { name, parties } => self.arrive(client, name, parties),
            Op::Abandon { name } => self.abandon(client, &name),
            Op::Join { group } => self.join(client, group),
            Op::Leave { group } => self.leave(client, &group),
            Op::Cast { group, bytes } => self.groups.cast(client, &group, bytes),
            Op::GiveState { group, view, bytes } => {
                self.groups.give_state(client, &group, view, bytes)
            }
            Op::Table(op) => self.table(client, op),
            Op::Grant { ttl } => {
                let lease = self.sessions.grant(client, ttl, self.now, &mut self.serial)?;
                Ok(Done::Opened { client: lease })
            }
            Op::Renew { lease, ends } => self.renew(client, lease, ends),
            // Dealt with before: they have no number in the session.
            Op::Tick | Op::Open { .. } | Op::Alive { .. } | Op::Close | Op::Acknowledge { .. } => {
                Ok(Done::Fine)
            }
        }
    }

    fn open(&mut self, from: u64, nonce: u64, ttl: Millis, realm: Realm) -> Answer {
        let client = self.sessions.open(from, nonce, ttl, realm, self.now, &mut self.serial)?;
        Ok(Done::Opened { client })
    }

    fn renew(&mut self, client: ClientId, lease: ClientId, ends: bool) -> Answer {
        self.sessions.is_lease_of(client, lease)?;
        if !ends {
            return self.sessions.prolong(lease, self.now);
        }
        self.end(lease);
        Ok(Done::Fine)
    }

    /// Ends a session, or a lease, and everything it holds.
    fn end(&mut self, client: ClientId) {
        self.sessions.remove(client);
        for hold in self.holds.0.remove(&client).unwrap_or_default() {
            match hold {
                Hold::Key(key) => self.kv.expire(&key),
                Hold::Lock(name) => leave_line(&mut self.locks, &name, client, &mut self.serial),
                Hold::Election(name) => {
                    leave_line(&mut self.elections, &name, client, &mut self.serial);
                }
                Hold::Barrier(name) => self.leave_barrier(client, &name),
                Hold::Group(name) => {
                    self.groups.remove_member(client, &name);
                }
                Hold::Node(node) => self.tables.down(node, &mut self.serial),
            }
        }
    }

    /// The group's time as of the last command.
    pub fn now(&self) -> Millis {
        self.now
    }

    /// When the next session ends if it gives no sign of life.
    pub fn deadline(&self) -> Option<Millis> {
        self.sessions.deadline()
    }

    /// How long a session lives after a sign of life, and when it ends without another; none if it has ended.
    pub fn life_of(&self, client: ClientId) -> Option<(Millis, Millis)> {
        self.sessions.life_of(client)
    }

    /// Does the session live?
    pub fn is_alive(&self, client: ClientId) -> bool {
        self.sessions.alive(client).is_ok()
    }

    /// Whose session it is; none if it has ended.
    pub fn realm_of(&self, client: ClientId) -> Option<Realm> {
        self.sessions.realm_of(client)
    }

    /// Number of sessions.
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// The whole state as bytes.
    pub fn snapshot(&self) -> Vec<u8> {
        let mut bytes = SNAPSHOT_VERSION.to_le_bytes().to_vec();
        bytes.extend(encode(self));
        bytes
    }

    /// The state that [`State::snapshot`] has written.
    ///
    /// # Errors
    /// The bytes have another version or are no snapshot.
    pub fn restore(bytes: &[u8]) -> Result<State, RestoreError> {
        let (version, rest) = bytes.split_first_chunk::<4>().ok_or(DecodeError::Malformed)?;
        let version = u32::from_le_bytes(*version);
        if version != SNAPSHOT_VERSION {
            return Err(RestoreError::Version { version });
        }
        let mut state: State = decode(rest, SNAPSHOT_MAX)?;
        state.rebuild();
        Ok(state)
    }

    /// Makes what is not in a snapshot.
    fn rebuild(&mut self) {
        let mut holds = Holds::default();
        self.sessions.rebuild();
        self.kv.rebuild(&mut holds);
        for (name, line) in &self.locks {
            line.clients().for_each(|client| holds.insert(client, Hold::Lock(name.clone())));
        }
        for (name, line) in &self.elections {
            line.clients().for_each(|client| holds.insert(client, Hold::Election(name.clone())));
        }
        for (name, barrier) in &self.barriers {
            barrier.clients().for_each(|client| holds.insert(client, Hold::Barrier(name.clone())));
        }
        self.groups.rebuild(&mut holds);
        self.tables.rebuild(&mut holds);
        self.holds = holds;
    }
}

/// Why bytes are no snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    #[error("snapshot version {version}, this dvs reads {SNAPSHOT_VERSION}")]
    Version { version: u32 },
    #[error("snapshot: {0}")]
    Bytes(#[from] DecodeError),
}

/// Is `count` within a limit?
fn bounded(count: usize, limit: usize, what: Limit) -> Result<(), Refusal> {
    if count > limit { Err(Refusal::Limit { what, limit: limit as u64 }) } else { Ok(()) }
}

/// Is `count` within the share of `realm`, if it is a container's?
fn shared(realm: Realm, count: usize, limit: usize, what: Limit) -> Result<(), Refusal> {
    if realm != Realm::System && count > limit {
        return Err(Refusal::Quota { what, limit: limit as u64 });
    }
    Ok(())
}

/// Is `count`, of all containers, within what they have together?
fn together(realm: Realm, count: usize, limit: usize, what: Limit) -> Result<(), Refusal> {
    if realm != Realm::System && count > limit {
        return Err(Refusal::Quotas { what, limit: limit as u64 });
    }
    Ok(())
}

/// Is it a name?
fn is_name(name: &str) -> Result<(), Refusal> {
    let (_, plain) = Realm::of_name(name);
    if plain.is_empty() {
        return Err(Refusal::Limit { what: Limit::NameBytes, limit: NAME_MAX as u64 });
    }
    bounded(plain.len(), NAME_MAX, Limit::NameBytes)
}

/// Is it a name, and may there be one more?
fn name_fits<T>(name: &str, of: &BTreeMap<String, T>) -> Result<(), Refusal> {
    is_name(name)?;
    if of.contains_key(name) {
        return Ok(());
    }
    let (realm, _) = Realm::of_name(name);
    shared(realm, count_of(realm, of) + 1, DC_NAMES_MAX, Limit::Names)?;
    bounded(of.len() + 1, NAMES_MAX, Limit::Names)
}

/// How many of these names are a container's. There are some hundred at most, and only a new name is counted.
fn count_of<T>(realm: Realm, of: &BTreeMap<String, T>) -> usize {
    let Some(head) = realm.name_head() else { return 0 };
    of.range(head.clone()..).take_while(|(name, _)| name.starts_with(&head)).count()
}

/// Takes a client out of a line; nobody's line is forgotten.
fn leave_line(
    lines: &mut BTreeMap<String, Line>,
    name: &str,
    client: ClientId,
    serial: &mut Serial,
) {
    let Some(line) = lines.get_mut(name) else { return };
    line.leave(client, serial);
    if line.is_empty() {
        lines.remove(name);
    }
}

#[cfg(test)]
mod tests;
