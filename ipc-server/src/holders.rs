//! Which processes hold an object (a semaphore, an open queue description) that has no life of its own.
//!
//! Processes inherit what they hold, and the server learns of it only when the child uses it: then
//! the child becomes a holder. So an object does not end with its last known holder but lingers
//! ([`LINGER`]) unless that holder's whole node is gone, which takes its children along.

use crate::limits::LINGER;
use crate::record;
use crate::waiting::sources;
use dvk::server::{Gone, Nanos};
use dvk::store::Store;
use m3ipc::Endpoint;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug)]
pub(crate) struct Holders {
    letter: u8,
    /// How often a process has opened an object.
    counts: BTreeMap<(u64, Endpoint), u32>,
    held: BTreeSet<(Endpoint, u64)>,
    /// Objects without holders, and when they end; 0 if that is to be decided at the next tick.
    lingering: BTreeMap<u64, Nanos>,
    ends: BTreeSet<(Nanos, u64)>,
}

impl Holders {
    pub(crate) fn open(store: &dyn Store, letter: u8) -> Holders {
        let mut holders = Holders {
            letter,
            counts: BTreeMap::new(),
            held: BTreeSet::new(),
            lingering: BTreeMap::new(),
            ends: BTreeSet::new(),
        };
        for ([object, process], count) in record::all(store, letter) {
            let process = Endpoint::from_bits(process);
            holders.counts.insert((object, process), count);
            holders.held.insert((process, object));
        }
        holders
    }

    /// `process` has opened `object` once more.
    pub(crate) fn opened(&mut self, store: &mut dyn Store, object: u64, process: Endpoint) {
        let count = self.counts.get(&(object, process)).map_or(1, |count| count.saturating_add(1));
        self.set(store, object, process, count);
    }

    /// `process` uses `object`, which it may have inherited.
    pub(crate) fn used(&mut self, store: &mut dyn Store, object: u64, process: Endpoint) {
        if !self.counts.contains_key(&(object, process)) {
            self.set(store, object, process, 1);
        }
    }

    fn set(&mut self, store: &mut dyn Store, object: u64, process: Endpoint, count: u32) {
        self.counts.insert((object, process), count);
        self.held.insert((process, object));
        self.recover(object);
        record::put(store, self.letter, &[object, process.to_bits()], &count);
    }

    /// `process` has closed `object` once.
    pub(crate) fn closed(&mut self, store: &mut dyn Store, object: u64, process: Endpoint) {
        match self.counts.get(&(object, process)) {
            None => {}
            Some(1) => self.remove(store, object, process),
            Some(count) => {
                let count = count - 1;
                self.set(store, object, process, count);
            }
        }
    }

    fn remove(&mut self, store: &mut dyn Store, object: u64, process: Endpoint) {
        self.counts.remove(&(object, process));
        self.held.remove(&(process, object));
        record::remove(store, self.letter, &[object, process.to_bits()]);
    }

    pub(crate) fn is_held(&self, object: u64) -> bool {
        self.of(object).next().is_some()
    }

    fn of(&self, object: u64) -> impl Iterator<Item = Endpoint> {
        let (first, last) = (Endpoint::from_bits(0), Endpoint::from_bits(u64::MAX));
        self.counts.range((object, first)..=(object, last)).map(|((_, process), _)| *process)
    }

    /// Takes everything from who is gone; returns the objects that now have no holder.
    pub(crate) fn gone(&mut self, store: &mut dyn Store, gone: Gone) -> Vec<u64> {
        let sources = sources(gone);
        let held = self.held.range((*sources.start(), 0)..=(*sources.end(), u64::MAX));
        let held: Vec<(Endpoint, u64)> = held.copied().collect();
        let mut objects = BTreeSet::new();
        for (process, object) in held {
            self.remove(store, object, process);
            objects.insert(object);
        }
        objects.into_iter().filter(|object| !self.is_held(*object)).collect()
    }

    /// The object has no holder and ends `LINGER` from now; without a `now`, from the next tick.
    pub(crate) fn linger(&mut self, object: u64, now: Option<Nanos>) {
        self.recover(object);
        let end = now.map_or(0, |now| now.saturating_add(LINGER));
        self.lingering.insert(object, end);
        self.ends.insert((end, object));
    }

    /// The object has a holder again, or is no more.
    fn recover(&mut self, object: u64) {
        if let Some(end) = self.lingering.remove(&object) {
            self.ends.remove(&(end, object));
        }
    }

    pub(crate) fn lingers(&self, object: u64) -> bool {
        self.lingering.contains_key(&object)
    }

    pub(crate) fn deadline(&self) -> Option<Nanos> {
        self.ends.first().map(|(end, _)| *end)
    }

    /// The objects that have lingered long enough.
    pub(crate) fn expired(&mut self, now: Nanos) -> Vec<u64> {
        let undecided: Vec<(Nanos, u64)> = self.ends.range(..=(0, u64::MAX)).copied().collect();
        for (_, object) in undecided {
            self.linger(object, Some(now));
        }
        self.ends.range(..=(now, u64::MAX)).map(|(_, object)| *object).collect()
    }

    /// The objects that only linger: what a limit that is reached takes first.
    pub(crate) fn all_lingering(&self) -> Vec<u64> {
        self.lingering.keys().copied().collect()
    }

    /// The object has ended.
    pub(crate) fn forget(&mut self, store: &mut dyn Store, object: u64) {
        self.recover(object);
        let processes: Vec<Endpoint> = self.of(object).collect();
        for process in processes {
            self.remove(store, object, process);
        }
    }
}
