//! What is done to an inode, as long as it is under way: meanwhile nothing of it is taken for true.

use super::{Memory, Shard, slot};
use calls::vfs::{Attr, Leased, Parent, Time};
use std::sync::atomic::Ordering;

/// A change of an inode that is under way: nothing of it is remembered until it is over, but what the change itself has made of it,
/// if nothing else has happened to it meanwhile.
#[derive(Debug)]
#[must_use]
pub(crate) struct Change<'a> {
    pub(super) memory: &'a Memory,
    /// 0: none.
    pub(super) ino: u64,
    /// When it began.
    pub(super) stamp: u64,
    /// All names of the directory were known.
    pub(super) had_all: bool,
}

/// An inode that is being read.
#[derive(Debug)]
#[must_use]
pub(crate) struct Reading<'a> {
    pub(super) memory: &'a Memory,
    /// If its access time may change by that.
    pub(super) ino: Option<u64>,
    /// When it began.
    pub(super) stamp: u64,
    /// The access time by now, if it has been told.
    pub(super) atime: Option<Time>,
}

impl Reading<'_> {
    /// The server has told when the inode was read last.
    pub(crate) fn tell(&mut self, atime: Time) {
        self.atime = Some(atime);
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let Some(ino) = self.ino else { return };
        let mut shard = self.memory.shard(ino);
        let mark = &mut shard.slots[slot(ino)];
        mark.read = self.memory.next_stamp();
        let is_alone = mark.changing == 0 && mark.stamp <= self.stamp;
        let known = shard.inodes.get_mut(&ino).filter(|known| !known.is_read);
        let mut has_changed = false;
        if let Some(known) = known {
            match (&mut known.attr, self.atime.filter(|_| is_alone)) {
                (Some(attr), Some(atime)) => {
                    has_changed = attr.atime != atime;
                    attr.atime = atime;
                }
                _ => (known.is_read, has_changed) = (true, true),
            }
        }
        let is_lent = has_changed && shard.lent.get(&ino).is_some_and(|lent| lent.until != 0);
        drop(shard);
        if let (true, Some(kernel)) = (is_lent, self.memory.kernel.get()) {
            kernel.forget(ino);
        }
    }
}

/// Something that is done to an inode, and does not change what is known of it.
#[derive(Debug)]
#[must_use]
pub(crate) struct Until<'a> {
    pub(super) memory: &'a Memory,
    pub(super) ino: u64,
}

impl Drop for Until<'_> {
    fn drop(&mut self) {
        self.memory.shard(self.ino).happened(self.ino, self.memory.next_stamp());
    }
}

impl Change<'_> {
    /// The inode; 0: none.
    pub(crate) fn ino(&self) -> u64 {
        self.ino
    }

    /// When it began.
    pub(crate) fn stamp(&self) -> u64 {
        self.stamp
    }

    /// Has nothing else happened to inode `ino` since it began?
    pub(crate) fn is_all_of(&self, ino: u64) -> bool {
        self.ino == ino && self.is_alone(&self.memory.shard(ino))
    }

    /// Has nothing else happened to the inode since it began? Then what the server has told is what is.
    fn is_alone(&self, shard: &Shard) -> bool {
        let slot = &shard.slots[slot(self.ino)];
        slot.changing == 1
            && slot.stamp == self.stamp
            && self.memory.floor.load(Ordering::SeqCst) <= self.stamp
            && self.memory.has_session()
    }

    /// As [`Memory::keep_name`], in the directory that was changed.
    pub(crate) fn keep_name(&self, name: &[u8], leased: Leased, ino: u64) {
        self.keep_names(&[(name, leased, ino)]);
    }

    /// As [`Change::keep_name`], all names that were changed. (Between two of them the directory would be taken to be known whole.)
    pub(crate) fn keep_names(&self, names: &[(&[u8], Leased, u64)]) {
        let mut shard = self.memory.shard(self.ino);
        if names.iter().any(|(_, leased, _)| leased.name == 0) || !self.is_alone(&shard) {
            return;
        }
        shard.make_room();
        // If not, it has been forgotten meanwhile, with its other names.
        let has_others = shard.inodes.contains_key(&self.ino);
        for (name, leased, ino) in names {
            self.memory.insert_name(&mut shard, (self.ino, name), *leased, *ino);
        }
        if let Some(known) = shard.inodes.get_mut(&self.ino) {
            known.has_all = self.had_all && has_others;
        }
    }

    /// As [`Change::keep_attr`], of the directory that was changed.
    pub(crate) fn keep_parent(&self, parent: Option<Parent>) {
        if let Some(Parent { leased, attr }) = parent {
            self.keep_attr(leased, attr);
        }
    }

    /// As [`Memory::keep_attr`], of the inode that was changed.
    pub(crate) fn keep_attr(&self, leased: u8, attr: Attr) {
        let mut shard = self.memory.shard(self.ino);
        if leased != 0 && attr.ino == self.ino && self.is_alone(&shard) {
            shard.insert_attr(self.stamp, leased, attr);
        }
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        if self.ino != 0 {
            let mut shard = self.memory.shard(self.ino);
            shard.happened(self.ino, self.memory.next_stamp());
            shard.slots[slot(self.ino)].changing -= 1;
        }
    }
}
