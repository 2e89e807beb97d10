//! What is done for snapshots that have been removed: what they keep goes to others, or is dropped, and blobs that nobody sees are merged.

use super::layers::{self, Merge};
use super::versions::Versions;
use crate::keys::{self, stage};
use crate::limits::{SNAPSHOT_CHUNKS_BATCH, SNAPSHOT_KEYS_BATCH};
use dvk::store::StoreError;

impl Versions<'_> {
    /// Does a little of what is to be done for removed snapshots.
    pub(super) fn clear_up(&mut self) -> std::result::Result<(), StoreError> {
        self.let_go();
        let going = self.snapshots.list.iter().filter(|(_, taken)| taken.is_going());
        let going: Vec<u64> = going.map(|(number, _)| *number).collect();
        for number in going {
            if self.clear_up_some(number) {
                return Ok(());
            }
            self.store.remove(&keys::snapshot(number));
            self.snapshots.list.remove(&number);
        }
        // The latest first: what is to go from an earlier one to it goes on with it then.
        let mut merges = self.snapshots.merges.iter().rev();
        let Some(blob) = merges.find(|blob| !self.snapshots.failed.contains(blob)).copied() else {
            self.snapshots.failed.clear();
            return if self.snapshots.merges.is_empty() { Ok(()) } else { Err(StoreError::Io) };
        };
        let mut merge = self.snapshots.merging.remove(&blob).unwrap_or(Merge::of(blob));
        match self.merge_some(&mut merge, SNAPSHOT_CHUNKS_BATCH) {
            Ok(true) => {
                if self.snapshots.end_merge(blob) {
                    self.store.remove(&keys::merge(blob));
                }
                self.snapshots.pause = 0;
            }
            outcome => {
                self.snapshots.merging.insert(blob, merge);
                // What cannot be read, or has no room, must not be in the way of others.
                if outcome.is_err() {
                    self.snapshots.failed.insert(blob);
                }
            }
        }
        Ok(())
    }

    /// What snapshots alone had that were removed in a round which has been committed need not stay: between two ticks there is a commit.
    fn let_go(&mut self) {
        let removed = self.snapshots.list.iter();
        let removed = removed.filter(|(_, taken)| taken.is_removed() && !taken.is_going());
        let removed: Vec<u64> = removed.map(|(number, _)| *number).collect();
        for number in removed {
            let ticks = self.snapshots.ticks.entry(number).or_default();
            *ticks += 1;
            if *ticks < 2 {
                continue;
            }
            self.snapshots.ticks.remove(&number);
            if let Some(taken) = self.snapshots.list.get_mut(&number) {
                taken.record.stage = stage::GOING;
                self.store.put(&keys::snapshot(number), &taken.bytes());
            }
        }
    }

    /// Gives some of what snapshot `number` keeps to the one before it, or drops it. False: it keeps nothing.
    fn clear_up_some(&mut self, number: u64) -> bool {
        let (from, to) = keys::all_kept(number);
        let found = layers::first(self.store, &from, &to, SNAPSHOT_KEYS_BATCH);
        let before = self.snapshots.list.range(..number).next_back();
        let before = before.map(|(number, taken)| (*number, taken.record.ino_limit));
        for (key, value) in &found {
            let kept = keys::kept_key(key);
            let owner = keys::owner(kept).unwrap_or(u64::MAX);
            let heir = before.filter(|(before, ino_limit)| {
                owner < *ino_limit && self.store.get(&keys::kept(*before, kept)).is_none()
            });
            if let Some((heir, _)) = heir {
                self.store.put(&keys::kept(heir, kept), value);
            } else if kept.first() == Some(&b'B')
                && let Some(blob) = layers::kept_blob(value, owner)
            {
                // What is damaged stays, and is in nobody's way.
                self.drop_blob(blob).ok();
            }
            self.store.remove(key);
        }
        !found.is_empty()
    }
}
