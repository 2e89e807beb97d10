//! A disk that forgets what was not committed when its server is killed, and what was not synced when the power fails.
//!
//! As the real one (`host::disk`): the map changes a round at a time; blobs change at once, but a removed blob stays until
//! the removal is on stable storage.

use super::Random;
use crate::store::{MemoryStore, Store, StoreError};
use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::ops::ControlFlow;

/// Rounds that may be unsynced: a real disk writes back after some seconds.
const UNSYNCED_ROUNDS: usize = 64;

/// The store of a simulated server.
#[derive(Debug, Default)]
pub struct CrashStore {
    memory: MemoryStore,
    /// What undoes this round, and the rounds committed since the last sync.
    round: Vec<Undo>,
    unsynced: VecDeque<Vec<Undo>>,
    /// Blobs removed in this round.
    removed: BTreeSet<u64>,
}

#[derive(Debug)]
enum Undo {
    Key(Vec<u8>, Option<Vec<u8>>),
    Blob(u64, Vec<u8>),
}

impl CrashStore {
    /// The round's changes of the map are there to stay, whatever is killed; with `sync` whatever fails.
    pub fn commit(&mut self, sync: bool) {
        for blob in std::mem::take(&mut self.removed) {
            self.remember_blob(blob);
            self.memory.blob_remove(blob);
        }
        self.unsynced.push_back(std::mem::take(&mut self.round));
        if sync {
            self.unsynced.clear();
        }
        while self.unsynced.len() > UNSYNCED_ROUNDS {
            self.unsynced.pop_front();
        }
    }

    /// The server is killed in the middle of a round: files keep what was written to them.
    pub fn kill(&mut self) {
        self.removed.clear();
        let (keys, blobs) = std::mem::take(&mut self.round)
            .into_iter()
            .partition(|undo| matches!(undo, Undo::Key(..)));
        self.undo(keys);
        // What undoes the blobs is still needed if the power fails too.
        self.round = blobs;
        self.commit(false);
    }

    /// The power fails: of the rounds since the last sync only the first few are on the disk.
    pub fn power_failure(&mut self, random: &mut Random) {
        self.kill();
        let kept = random.index(self.unsynced.len() + 1);
        for round in self.unsynced.split_off(kept).into_iter().rev() {
            self.undo(round);
        }
    }

    /// Keys of the map, for checks of what is left in it.
    pub fn keys(&self, prefix: &[u8]) -> usize {
        let mut count = 0;
        self.memory.range(prefix, &[0xff; 16], &mut |key, _| {
            count += usize::from(key.starts_with(prefix));
            ControlFlow::Continue(())
        });
        count
    }

    fn undo(&mut self, round: Vec<Undo>) {
        for undo in round.into_iter().rev() {
            match undo {
                Undo::Key(key, Some(value)) => self.memory.put(&key, &value),
                Undo::Key(key, None) => self.memory.remove(&key),
                Undo::Blob(blob, data) => {
                    self.memory.blob_remove(blob);
                    self.memory.blob_write(blob, 0, &data).expect("it was there before");
                }
            }
        }
    }

    fn remember_key(&mut self, key: &[u8]) {
        self.round.push(Undo::Key(key.to_vec(), self.memory.get(key)));
    }

    fn remember_blob(&mut self, blob: u64) {
        let length = usize::try_from(self.memory.blob_used(blob)).expect("it is in memory");
        let mut data = vec![0; length];
        self.memory.blob_read(blob, 0, &mut data).expect("memory does not fail");
        self.round.push(Undo::Blob(blob, data));
    }

    /// A blob removed and used again in one round starts empty.
    fn revive(&mut self, blob: u64) {
        if self.removed.remove(&blob) {
            self.remember_blob(blob);
            self.memory.blob_remove(blob);
        }
    }
}

impl Store for CrashStore {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.memory.get(key)
    }

    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.remember_key(key);
        self.memory.put(key, value);
    }

    fn remove(&mut self, key: &[u8]) {
        self.remember_key(key);
        self.memory.remove(key);
    }

    fn range(
        &self,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) {
        self.memory.range(from, to, visit);
    }

    fn blob_read(&self, blob: u64, offset: u64, buffer: &mut [u8]) -> Result<usize, StoreError> {
        if self.removed.contains(&blob) {
            return Ok(0);
        }
        self.memory.blob_read(blob, offset, buffer)
    }

    fn blob_write(&mut self, blob: u64, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        self.revive(blob);
        self.remember_blob(blob);
        self.memory.blob_write(blob, offset, data)
    }

    fn blob_truncate(&mut self, blob: u64, length: u64) -> Result<(), StoreError> {
        self.revive(blob);
        self.remember_blob(blob);
        self.memory.blob_truncate(blob, length)
    }

    fn blob_punch(&mut self, blob: u64, offset: u64, length: u64) -> Result<(), StoreError> {
        self.revive(blob);
        self.remember_blob(blob);
        self.memory.blob_punch(blob, offset, length)
    }

    fn blob_seek(&self, blob: u64, offset: u64, hole: bool) -> Option<u64> {
        if self.removed.contains(&blob) { None } else { self.memory.blob_seek(blob, offset, hole) }
    }

    fn blob_used(&self, blob: u64) -> u64 {
        if self.removed.contains(&blob) { 0 } else { self.memory.blob_used(blob) }
    }

    fn blob_remove(&mut self, blob: u64) {
        self.removed.insert(blob);
    }

    fn blob_sync(&mut self, _: u64) {}

    fn space(&self) -> (u64, u64) {
        self.memory.space()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(store: &CrashStore) -> Vec<u8> {
        let mut data = vec![0; 10];
        let length = store.blob_read(1, 0, &mut data).unwrap();
        data.truncate(length);
        data
    }

    #[test]
    fn a_killed_server_loses_its_round_and_keeps_what_it_wrote_to_files() {
        let mut store = CrashStore::default();
        store.put(b"a", b"1");
        store.blob_write(1, 0, b"one").unwrap();
        store.commit(false);
        store.put(b"a", b"2");
        store.put(b"b", b"2");
        store.blob_write(1, 3, b"two").unwrap();
        store.blob_remove(1);
        assert_eq!(blob(&store), b"");
        store.kill();
        assert_eq!((store.get(b"a"), store.get(b"b")), (Some(b"1".to_vec()), None));
        assert_eq!(blob(&store), b"onetwo");
    }

    #[test]
    fn a_power_failure_loses_a_suffix_of_what_was_not_synced() {
        let mut lost = BTreeSet::new();
        for seed in 0..50 {
            let mut store = CrashStore::default();
            for round in 0..6u8 {
                store.put(b"a", &[round]);
                store.blob_write(1, 0, &[round]).unwrap();
                store.commit(round == 2);
            }
            store.power_failure(&mut Random::new(seed));
            let value = store.get(b"a").unwrap();
            assert_eq!(value, blob(&store));
            lost.insert(value[0]);
        }
        assert_eq!(lost.into_iter().collect::<Vec<_>>(), [2, 3, 4, 5]);
    }
}
