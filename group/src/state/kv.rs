//! Keys and values: in each realm one revision, counted up by each change, and the changes that are remembered.

use super::{Hold, Holds, State, bounded, shared, together};
use crate::command::{Answer, ClientId, Done, Limit, Refusal};
use crate::limits::{
    DC_HISTORY_BYTES_MAX, DC_HISTORY_MAX, DC_KEYS_MAX, DC_KV_BYTES_MAX, DCS_KEYS_MAX,
    DCS_KV_BYTES_MAX, HISTORY_BYTES_MAX, HISTORY_MAX, KEY_MAX, KEYS_MAX, KV_BYTES_MAX,
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
    keys: BTreeMap<Vec<u8>, Entry>,
    /// Of each realm that has ever had a key. (How many containers there are, the administrator says.)
    pasts: BTreeMap<Realm, Past>,
    /// Of all keys, and of those of each realm.
    #[serde(skip)]
    all: Share,
    #[serde(skip)]
    shares: BTreeMap<Realm, Share>,
    /// Bytes of all histories.
    #[serde(skip)]
    history_bytes: usize,
}

/// The changes of a realm: none sees how much others do, or has its own forgotten for theirs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Past {
    revision: u64,
    history: VecDeque<Event>,
    /// The last revision that the history has lost.
    forgotten: u64,
    #[serde(skip)]
    bytes: usize,
}

/// Keys and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Share {
    keys: usize,
    bytes: usize,
}

static NOTHING: Past = Past { revision: 0, history: VecDeque::new(), forgotten: 0, bytes: 0 };

impl State {
    pub(super) fn put(
        &mut self,
        client: ClientId,
        key: Vec<u8>,
        value: Vec<u8>,
        lease: Option<ClientId>,
    ) -> Answer {
        if let Some(lease) = lease {
            if lease != client {
                self.sessions.is_lease_of(client, lease)?;
            }
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
        let (realm, _) = Realm::of_key(&key);
        self.kv.store(key, value, lease);
        Ok(Done::Changed { revision: self.revision(realm), found: before.is_some() })
    }

    pub(super) fn delete(&mut self, key: &[u8]) -> Answer {
        let (realm, _) = Realm::of_key(key);
        let Some(entry) = self.kv.keys.get(key) else {
            return Ok(Done::Changed { revision: self.revision(realm), found: false });
        };
        if let Some(lease) = entry.lease {
            self.holds.remove(lease, &Hold::Key(key.to_vec()));
        }
        self.kv.expire(key);
        Ok(Done::Changed { revision: self.revision(realm), found: true })
    }

    pub(super) fn swap(
        &mut self,
        client: ClientId,
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
            Some(value) => self.put(client, key, value, lease),
            None => self.delete(&key),
        }
    }

    /// Deletes the keys of a realm that is no more, and what is remembered of them.
    pub(super) fn delete_realm(&mut self, realm: Realm) {
        let (start, end) = realm.bounds(b"", None);
        let end = end.map_or(Bound::Unbounded, Bound::Excluded);
        let range = self.kv.keys.range((Bound::Included(start), end));
        let keys: Vec<Vec<u8>> = range.map(|(key, _)| key.clone()).collect();
        for key in keys {
            // That it was there is no news.
            self.delete(&key).ok();
        }
        if let Some(past) = self.kv.pasts.remove(&realm) {
            self.kv.history_bytes -= past.bytes;
        }
    }

    /// The last change of a realm's keys.
    pub fn revision(&self, realm: Realm) -> u64 {
        self.kv.past(realm).revision
    }

    pub fn get(&self, key: &[u8]) -> Option<&Entry> {
        self.kv.keys.get(key)
    }

    /// Keys from `start` up to and without `end` (to the last if there is none), `limit` at most. The revision is that
    /// of the realm of `start`.
    pub fn range(&self, start: &[u8], end: Option<&[u8]>, limit: usize) -> Range {
        let (realm, _) = Realm::of_key(start);
        let mut range = Range { revision: self.revision(realm), ..Range::default() };
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

    /// The changes of keys from `start` up to and without `end`, of the realm of `start`, beginning with the revision
    /// `from`.
    ///
    /// # Errors
    /// They are not remembered so far back: the first revision that can be asked for.
    pub fn changes(&self, start: &[u8], end: Option<&[u8]>, from: u64) -> Result<Changes, u64> {
        let past = self.kv.past(Realm::of_key(start).0);
        if from <= past.forgotten {
            return Err(past.forgotten.saturating_add(1));
        }
        let mut changes = Changes { events: Vec::new(), next: from };
        let mut bytes = 0;
        let first = past.history.partition_point(|event| event.revision < from);
        for event in past.history.range(first..) {
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
    fn past(&self, realm: Realm) -> &Past {
        self.pasts.get(&realm).unwrap_or(&NOTHING)
    }

    fn fits(&self, key: &[u8], value: &[u8]) -> Result<(), Refusal> {
        let (realm, plain) = Realm::of_key(key);
        bounded(plain.len(), KEY_MAX, Limit::KeyBytes)?;
        bounded(value.len(), VALUE_MAX, Limit::ValueBytes)?;
        let (more, old) = match self.keys.get(key) {
            Some(entry) => (0, key.len() + entry.value.len()),
            None => (1, 0),
        };
        let share = |realm| self.shares.get(&realm).copied().unwrap_or_default();
        let (own, system) = (share(realm), share(Realm::System));
        let bytes = |share: usize| share.saturating_sub(old) + key.len() + value.len();
        shared(realm, own.keys + more, DC_KEYS_MAX, Limit::Keys)?;
        together(realm, self.all.keys - system.keys + more, DCS_KEYS_MAX, Limit::Keys)?;
        shared(realm, bytes(own.bytes), DC_KV_BYTES_MAX, Limit::StoreBytes)?;
        let all = self.all.bytes - system.bytes;
        together(realm, bytes(all), DCS_KV_BYTES_MAX, Limit::StoreBytes)?;
        bounded(self.all.keys + more, KEYS_MAX, Limit::Keys)?;
        bounded(bytes(self.all.bytes), KV_BYTES_MAX, Limit::StoreBytes)
    }

    /// A key of so many bytes with its value is there.
    fn count(&mut self, key: &[u8], bytes: usize) {
        let (realm, _) = Realm::of_key(key);
        for share in [&mut self.all, self.shares.entry(realm).or_default()] {
            share.keys += 1;
            share.bytes += bytes;
        }
    }

    /// It is gone.
    fn discount(&mut self, key: &[u8], bytes: usize) {
        let (realm, _) = Realm::of_key(key);
        for share in [&mut self.all, self.shares.entry(realm).or_default()] {
            share.keys -= 1;
            share.bytes -= bytes;
        }
        self.shares.retain(|_, share| share.keys > 0);
    }

    fn store(&mut self, key: Vec<u8>, value: Vec<u8>, lease: Option<ClientId>) {
        let revision = self.record(key.clone(), Some(value.clone()));
        let (created, version) = match self.keys.get(&key) {
            Some(entry) => (entry.created, entry.version.saturating_add(1)),
            None => (revision, 1),
        };
        self.count(&key, key.len() + value.len());
        let entry = Entry { value, created, modified: revision, version, lease };
        if let Some(old) = self.keys.insert(key.clone(), entry) {
            self.discount(&key, key.len() + old.value.len());
        }
    }

    /// Deletes a key, if it is there.
    pub(super) fn expire(&mut self, key: &[u8]) {
        let Some(entry) = self.keys.remove(key) else { return };
        self.discount(key, key.len() + entry.value.len());
        self.record(key.to_vec(), None);
    }

    /// A change; returns its revision.
    fn record(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) -> u64 {
        let (realm, _) = Realm::of_key(&key);
        let past = self.pasts.entry(realm).or_default();
        past.revision = past.revision.saturating_add(1);
        let revision = past.revision;
        let event = Event { revision, key, value };
        past.bytes += event.len();
        self.history_bytes += event.len();
        past.history.push_back(event);
        let (count, bytes) = match realm {
            Realm::System => (HISTORY_MAX, HISTORY_BYTES_MAX),
            Realm::Dc(_) => (DC_HISTORY_MAX, DC_HISTORY_BYTES_MAX),
        };
        while past.history.len() > count || past.bytes > bytes {
            self.history_bytes -= past.forget();
        }
        while self.history_bytes > HISTORY_BYTES_MAX {
            // Whoever has most of it.
            let most = self.pasts.values_mut().max_by_key(|past| past.bytes);
            self.history_bytes -= most.map_or(self.history_bytes, Past::forget);
        }
        revision
    }

    pub(super) fn rebuild(&mut self, holds: &mut Holds) {
        let keys =
            self.keys.iter().map(|(key, entry)| (key.clone(), key.len() + entry.value.len()));
        for (key, bytes) in keys.collect::<Vec<_>>() {
            self.count(&key, bytes);
        }
        self.history_bytes = 0;
        for past in self.pasts.values_mut() {
            past.bytes = past.history.iter().map(Event::len).sum();
            self.history_bytes += past.bytes;
        }
        for (key, entry) in &self.keys {
            if let Some(lease) = entry.lease {
                holds.insert(lease, Hold::Key(key.clone()));
            }
        }
    }
}

impl Past {
    /// Forgets the oldest change; returns its bytes.
    fn forget(&mut self) -> usize {
        let Some(old) = self.history.pop_front() else { return 0 };
        self.forgotten = old.revision;
        self.bytes -= old.len();
        old.len()
    }
}
