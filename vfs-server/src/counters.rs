//! Numbers that are given out once and never again, even across a crash, without a write for each.
//!
//! The store holds a limit that no number given out has reached; it is raised by a block at a time,
//! in the same round as the first number of the block, so both are committed or neither. What is
//! left of a block at a crash is skipped.

use crate::keys::{self, Corrupt, Counters};
use crate::limits::NUMBER_BLOCK;
use calls::vfs::ROOT_INO;
use dvk::store::Store;

/// The server's counters.
#[derive(Debug)]
pub(crate) struct Numbers {
    stored: Counters,
    next_ino: u64,
    next_fh: u64,
}

impl Numbers {
    /// Goes on behind the limits in the store, or at the beginning.
    pub(crate) fn open(store: &dyn Store) -> Result<Numbers, Corrupt> {
        let first = Counters { ino_limit: ROOT_INO, fh_limit: 1, inodes: 0 };
        let stored = keys::read(store, keys::COUNTERS)?.unwrap_or(first);
        Ok(Numbers { stored, next_ino: stored.ino_limit, next_fh: stored.fh_limit })
    }

    /// The number of a new inode.
    pub(crate) fn new_inode(&mut self, store: &mut dyn Store) -> u64 {
        let ino = self.next_ino;
        self.next_ino += 1;
        if ino >= self.stored.ino_limit {
            self.stored.ino_limit = ino + NUMBER_BLOCK;
        }
        self.stored.inodes += 1;
        self.save(store);
        ino
    }

    /// An inode is destroyed.
    pub(crate) fn inode_gone(&mut self, store: &mut dyn Store) {
        self.stored.inodes = self.stored.inodes.saturating_sub(1);
        self.save(store);
    }

    /// No inode has had this number, or a greater one.
    pub(crate) fn ino_end(&self) -> u64 {
        self.next_ino
    }

    /// The number of a new handle.
    pub(crate) fn new_handle(&mut self, store: &mut dyn Store) -> u64 {
        let fh = self.next_fh;
        self.next_fh += 1;
        if fh >= self.stored.fh_limit {
            self.stored.fh_limit = fh + NUMBER_BLOCK;
            self.save(store);
        }
        fh
    }

    /// How many inodes there are.
    pub(crate) fn inodes(&self) -> u64 {
        self.stored.inodes
    }

    fn save(&self, store: &mut dyn Store) {
        store.put(keys::COUNTERS, &self.stored.bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dvk::store::MemoryStore;

    #[test]
    fn no_number_comes_twice_across_restarts() {
        let mut store = MemoryStore::default();
        let (mut last_ino, mut last_fh) = (0, 0);
        for round in 0..5 {
            let mut numbers = Numbers::open(&store).unwrap();
            for _ in 0..round * NUMBER_BLOCK / 2 + 1 {
                let (ino, fh) = (numbers.new_inode(&mut store), numbers.new_handle(&mut store));
                assert!(ino > last_ino && fh > last_fh, "{ino} {fh}");
                (last_ino, last_fh) = (ino, fh);
            }
        }
    }
}
