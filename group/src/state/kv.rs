//! Keys and values: one revision for the whole store, counted up by each change.

use super::{Hold, Holds, State, bounded, shared};
use crate::command::{Answer, ClientId, Done, Limit, Refusal};
use crate::limits::{
    DC_KEYS_MAX, DC_KV_BYTES_MAX, HISTORY_BYTES_MAX, HISTORY_MAX, KEY_MAX, KEYS_MAX, KV_BYTES_MAX,
    RANGE_BYTES_MAX, RANGE_MAX, VALUE_MAX,
};
use crate::realm::Realm;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

/// A key's value and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub value: Vec<u8>,
    /// The revision that made the key, and the last that changed it.
    pub created: u64,
    pub modified: u64,
    /// How often it was changed since it was made, from 1.
    pub version: u64,
    /// The session that the key ends with.
    pub lease: Option<ClientId>,
}

/// A change of a key, as a watcher sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub revision: u64,
    pub key: Vec<u8>,
    /// None: it was deleted, or its lease ended.
    pub value: Option<Vec<u8>>,
}

/// Keys in order, as of `revision`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Range {
    pub revision: u64,
    pub entries: Vec<(Vec<u8>, Entry)>,
    /// There are more behind the last.
    pub more: bool,
}

/// Changes in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub events: Vec<Event>,
    /// Ask for the following from here.
    pub next: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kv {
    revision: u64,
    keys: BTreeMap<Vec<u8>, Entry>,
    history: VecDeque<Event>,
    /// The last revision that the history has lost.
    forgotten: u64,
    /// Bytes of keys and values, now and in the history.
    #[serde(skip)]
    bytes: usize,
    #[serde(skip)]
    history_bytes: usize,
    /// Keys and bytes of each container.
    #[serde(skip)]
    shares: BTreeMap<Realm, Share>,
}

/// Keys and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Share {
    keys: usize,
    bytes: usize,
}

impl State {
    pub(super) fn put(&mut self, key: Vec<u8>, value: Vec<u8>, lease: Option<ClientId>) -> Answer {
        if let Some(lease) = lease {
            self.sessions.alive(lease)?;
            let held = self.kv.keys.get(&key).is_some_and(|entry| entry.lease == Some(lease));
            if !held {
                self.holds.check(lease)?;
            }
        }
        self.kv.fits(&key, &value)?;
        let before = self.kv.keys.get(&key).map(|entry| entry.lease);
        if let Some(old) = before.flatten() {
            self.holds.remove(old, &Hold::Key(key.clone()));
        }
        if let Some(lease) = lease {
            self.holds.insert(lease, Hold::Key(key.clone()));
        }
        self.kv.store(key, value, lease);
        Ok(Done::Changed { revision: self.kv.revision, found: before.is_some() })
    }

    pub(super) fn delete(&mut self, key: &[u8]) -> Answer {
        let Some(entry) = self.kv.keys.get(key) else {
            return Ok(Done::Changed { revision: self.kv.revision, found: false });
        };
        if let Some(lease) = entry.lease {
            self.holds.remove(lease, &Hold::Key(key.to_vec()));
        }
        self.kv.expire(key);
        Ok(Done::Changed { revision: self.kv.revision, found: true })
    }

    pub(super) fn swap(
        &mut self,
        key: Vec<u8>,
        expected: u64,
        value: Option<Vec<u8>>,
        lease: Option<ClientId>,
    ) -> Answer {
        let revision = self.kv.keys.get(&key).map_or(0, |entry| entry.modified);
        if revision != expected {
            return Err(Refusal::Revision { revision });
        }
        match value {
            Some(value) => self.put(key, value, lease),
            None => self.delete(&key),
        }
    }

    /// The last change of the store.
    pub fn revision(&self) -> u64 {
        self.kv.revision
    }

    pub fn get(&self, key: &[u8]) -> Option<&Entry> {
        self.kv.keys.get(key)
    }

    /// Keys from `start` up to and without `end` (to the last if there is none), `limit` at most.
    pub fn range(&self, start: &[u8], end: Option<&[u8]>, limit: usize) -> Range {
        let mut range = Range { revision: self.kv.revision, ..Range::default() };
        if end.is_some_and(|end| end <= start) {
            return range;
        }
        let end = end.map_or(Bound::Unbounded, Bound::Excluded);
        let mut bytes = 0;
        for (key, entry) in self.kv.keys.range::<[u8], _>((Bound::Included(start), end)) {
            bytes += key.len() + entry.value.len();
            let full = range.entries.len() >= limit.min(RANGE_MAX)
                || (bytes > RANGE_BYTES_MAX && !range.entries.is_empty());
            if full {
                range.more = true;
                break;
            }
            range.entries.push((key.clone(), entry.clone()));
        }
        range
    }

    /// The changes of keys from `start` up to and without `end`, beginning with the revision `from`.
    ///
    /// # Errors
    /// They are not remembered so far back: the first revision that can be asked for.
    pub fn changes(&self, start: &[u8], end: Option<&[u8]>, from: u64) -> Result<Changes, u64> {
        if from <= self.kv.forgotten {
            return Err(self.kv.forgotten.saturating_add(1));
        }
        let mut changes = Changes { events: Vec::new(), next: from };
        let mut bytes = 0;
        let first = self.kv.history.partition_point(|event| event.revision < from);
        for event in self.kv.history.range(first..) {
            let key = event.key.as_slice();
            if key >= start && end.is_none_or(|end| key < end) {
                bytes += event.len();
                let full = changes.events.len() == RANGE_MAX
                    || (bytes > RANGE_BYTES_MAX && !changes.events.is_empty());
                if full {
                    break;
                }
                changes.events.push(event.clone());
            }
            changes.next = event.revision.saturating_add(1);
        }
        Ok(changes)
    }
}

impl Event {
    fn len(&self) -> usize {
        self.key.len() + self.value.as_ref().map_or(0, Vec::len)
    }
}

impl Kv {
    fn fits(&self, key: &[u8], value: &[u8]) -> Result<(), Refusal> {
        let (realm, plain) = Realm::of_key(key);
        bounded(plain.len(), KEY_MAX, Limit::KeyBytes)?;
        bounded(value.len(), VALUE_MAX, Limit::ValueBytes)?;
        let (more, old) = match self.keys.get(key) {
            Some(entry) => (0, key.len() + entry.value.len()),
            None => (1, 0),
        };
        bounded(self.keys.len() + more, KEYS_MAX, Limit::Keys)?;
        let bytes = self.bytes.saturating_sub(old) + key.len() + value.len();
        bounded(bytes, KV_BYTES_MAX, Limit::StoreBytes)?;
        let share = self.shares.get(&realm).copied().unwrap_or_default();
        shared(realm, share.keys + more, DC_KEYS_MAX, Limit::Keys)?;
        let bytes = share.bytes.saturating_sub(old) + key.len() + value.len();
        shared(realm, bytes, DC_KV_BYTES_MAX, Limit::StoreBytes)
    }

    /// A key of so many bytes with its value is there, or is gone.
    fn count(&mut self, key: &[u8], bytes: usize, is_there: bool) {
        let (realm, _) = Realm::of_key(key);
        let share = self.shares.entry(realm).or_default();
        if is_there {
            (share.keys, share.bytes) = (share.keys + 1, share.bytes + bytes);
            self.bytes += bytes;
            return;
        }
        share.keys = share.keys.saturating_sub(1);
        share.bytes = share.bytes.saturating_sub(bytes);
        if share.keys == 0 {
            self.shares.remove(&realm);
        }
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    fn store(&mut self, key: Vec<u8>, value: Vec<u8>, lease: Option<ClientId>) {
        self.revision = self.revision.saturating_add(1);
        let (created, version, old) = match self.keys.get(&key) {
            Some(entry) => {
                (entry.created, entry.version.saturating_add(1), key.len() + entry.value.len())
            }
            None => (self.revision, 1, 0),
        };
        if version > 1 {
            self.count(&key, old, false);
        }
        self.count(&key, key.len() + value.len(), true);
        self.record(key.clone(), Some(value.clone()));
        let entry = Entry { value, created, modified: self.revision, version, lease };
        self.keys.insert(key, entry);
    }

    /// Deletes a key, if it is there.
    pub(super) fn expire(&mut self, key: &[u8]) {
        let Some(entry) = self.keys.remove(key) else { return };
        self.count(key, key.len() + entry.value.len(), false);
        self.revision = self.revision.saturating_add(1);
        self.record(key.to_vec(), None);
    }

    fn record(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        let event = Event { revision: self.revision, key, value };
        self.history_bytes += event.len();
        self.history.push_back(event);
        while self.history.len() > HISTORY_MAX || self.history_bytes > HISTORY_BYTES_MAX {
            let Some(old) = self.history.pop_front() else { break };
            self.history_bytes = self.history_bytes.saturating_sub(old.len());
            self.forgotten = old.revision;
        }
    }

    pub(super) fn rebuild(&mut self, holds: &mut Holds) {
        let keys =
            self.keys.iter().map(|(key, entry)| (key.clone(), key.len() + entry.value.len()));
        for (key, bytes) in keys.collect::<Vec<_>>() {
            self.count(&key, bytes, true);
        }
        self.history_bytes = self.history.iter().map(Event::len).sum();
        for (key, entry) in &self.keys {
            if let Some(lease) = entry.lease {
                holds.insert(lease, Hold::Key(key.clone()));
            }
        }
    }
}
