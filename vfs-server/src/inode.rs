//! Inodes: finding them, changing them, and what stat(2) says of them.

use crate::VfsServer;
use crate::answer::{Result, err};
use crate::keys::{self, Inode, mark};
use crate::limits::{INODE_CACHE_MAX, PREFERRED_IO_SIZE};
use crate::linux::{S_IFDIR, S_IFMT, S_IFREG, S_ISGID, S_ISUID, S_IXGRP};
use crate::permission;
use crate::snapshot::is_in_snapshot;
use calls::vfs::{Attr, Time};
use dvk::server::Context;
use dvk::store::Store;
use m3ipc::Cred;
use m3ipc::errno::numbers::{ENOENT, ENOTDIR, ESTALE};
use std::collections::BTreeMap;

/// Name of the attribute that gives an executable capabilities.
pub(crate) const CAPABILITY: &[u8] = b"security.capability";

impl VfsServer {
    /// Inode `ino`.
    ///
    /// # Errors
    /// ESTALE if it is no more. A kernel that gets it looks the path up again, which a program that
    /// opens a file while another node replaces it depends on.
    pub(crate) fn inode(&mut self, ino: u64, cx: &Context<'_>) -> Result<Inode> {
        match self.inodes.find(ino, cx.store)? {
            Some(inode) => Ok(inode),
            None => err(ESTALE),
        }
    }

    /// Directory `ino`, for a call that names something in it.
    ///
    /// # Errors
    /// ENOENT if it is no more (there is nothing in a removed directory), ENOTDIR.
    pub(crate) fn directory(&mut self, ino: u64, cx: &Context<'_>) -> Result<Inode> {
        match self.inodes.find(ino, cx.store)? {
            Some(inode) if inode.is_directory() => Ok(inode),
            Some(_) => err(ENOTDIR),
            None => err(ENOENT),
        }
    }

    /// Stores a changed inode.
    pub(crate) fn save(&mut self, inode: &Inode, cx: &mut Context<'_>) {
        if !self.trees.is_empty() {
            // What cannot be read is counted nowhere.
            let before = self.inodes.find(inode.ino, cx.store).ok().flatten();
            self.trees.count(before.as_ref(), Some(inode), cx.store);
        }
        self.inodes.put(inode, cx.store);
    }
}

impl Inode {
    pub(crate) fn kind(&self) -> u32 {
        self.mode & S_IFMT
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.kind() == S_IFDIR
    }

    pub(crate) fn is_regular(&self) -> bool {
        self.kind() == S_IFREG
    }

    /// It has neither an access control list nor capabilities.
    pub(crate) fn is_plain(&self) -> bool {
        self.marks & (mark::ACL_ACCESS | mark::ACL_DEFAULT | mark::CAPABILITY) == 0
    }

    /// The type as readdir(3) gives it (DT_*).
    pub(crate) fn entry_kind(&self) -> u8 {
        u8::try_from(self.kind() >> 12).expect("a type has four bits")
    }

    /// Contents have changed at `wall`.
    pub(crate) fn modified(&mut self, wall: u64) {
        self.mtime = time(wall);
        self.ctime = self.mtime;
    }

    /// Contents have been read at `wall`. Says whether that is worth storing, as mount option
    /// relatime has it: if the last access is older than the last change, or than a day.
    pub(crate) fn accessed(&mut self, wall: u64) -> bool {
        const DAY: i64 = 24 * 60 * 60;
        let now = time(wall);
        let order = |time: Time| (time.seconds, time.nanos);
        let stale = order(self.atime) <= order(self.mtime)
            || order(self.atime) <= order(self.ctime)
            || now.seconds.saturating_sub(self.atime.seconds) >= DAY;
        let changes = stale && self.atime != now;
        if changes {
            self.atime = now;
        }
        changes
    }

    /// Whoever changes a program's file must not thereby write what runs with another's rights.
    pub(crate) fn drop_privileges(&mut self, cred: &Cred, store: &mut dyn Store) {
        if cred.uid != 0 {
            self.drop_set_ids(cred);
        }
        self.drop_capability(store);
    }

    /// Clears setuid, and setgid where it means running with a group or the caller is not of the
    /// group (without execute permission for the group it once meant mandatory locking).
    pub(crate) fn drop_set_ids(&mut self, cred: &Cred) {
        self.mode &= !S_ISUID;
        if self.mode & S_IXGRP != 0 || !permission::group(self.gid, cred) {
            self.mode &= !S_ISGID;
        }
    }

    pub(crate) fn drop_capability(&mut self, store: &mut dyn Store) {
        if self.marks & mark::CAPABILITY != 0 {
            store.remove(&keys::xattr(self.ino, CAPABILITY));
            self.marks &= !mark::CAPABILITY;
        }
    }

    /// Blocks of 512 bytes that it has. Of the many files that are empty the disk is not asked.
    fn blocks(&self, store: &dyn Store) -> u64 {
        let has_some = self.is_regular() && self.size > 0;
        if has_some { store.blob_used(self.ino).div_ceil(512) } else { 0 }
    }

    /// What stat(2) says.
    pub(crate) fn attr(&self, store: &dyn Store) -> Attr {
        Attr {
            ino: self.ino,
            size: self.size,
            blocks: self.blocks(store),
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            mode: self.mode,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            block_size: PREFERRED_IO_SIZE,
        }
    }
}

/// `wall`, nanoseconds since the epoch, as a [`Time`].
pub(crate) fn time(wall: u64) -> Time {
    const SECOND: u64 = 1_000_000_000;
    let seconds = i64::try_from(wall / SECOND).expect("2^64 ns are 585 years");
    let nanos = u32::try_from(wall % SECOND).expect("less than a second");
    Time { seconds, nanos }
}

/// A bounded cache of inodes. All changes go through it to the store.
#[derive(Debug, Default)]
pub(crate) struct Inodes {
    cache: BTreeMap<u64, Inode>,
}

impl Inodes {
    pub(crate) fn find(&mut self, ino: u64, store: &dyn Store) -> Result<Option<Inode>> {
        if let Some(inode) = self.cache.get(&ino) {
            return Ok(Some(*inode));
        }
        let found = keys::read::<Inode>(store, &keys::inode(ino))?;
        if let Some(inode) = found {
            self.keep(inode);
        }
        Ok(found)
    }

    /// As [`Inodes::find`], of one that will not be looked for again soon.
    pub(crate) fn peek(&self, ino: u64, store: &dyn Store) -> Result<Option<Inode>> {
        match self.cache.get(&ino) {
            Some(inode) => Ok(Some(*inode)),
            None => Ok(keys::read::<Inode>(store, &keys::inode(ino))?),
        }
    }

    /// As [`Inodes::put`], of one that will not be looked for soon.
    pub(crate) fn put_uncached(&mut self, inode: &Inode, store: &mut dyn Store) {
        store.put(&keys::inode(inode.ino), &inode.bytes());
        if let Some(cached) = self.cache.get_mut(&inode.ino) {
            *cached = *inode;
        }
    }

    pub(crate) fn put(&mut self, inode: &Inode, store: &mut dyn Store) {
        store.put(&keys::inode(inode.ino), &inode.bytes());
        self.keep(*inode);
    }

    pub(crate) fn remove(&mut self, ino: u64, store: &mut dyn Store) {
        store.remove(&keys::inode(ino));
        self.cache.remove(&ino);
    }

    /// Inode `ino` has changed in the store.
    pub(crate) fn forget(&mut self, ino: u64) {
        self.cache.remove(&ino);
    }

    /// As [`Inodes::forget`], of those in snapshots.
    pub(crate) fn forget_snapshots(&mut self) {
        self.cache.retain(|ino, _| !is_in_snapshot(*ino));
    }

    /// A full cache is emptied: those in use are back after one `get` each, and nothing needs to
    /// be counted at every hit.
    fn keep(&mut self, inode: Inode) {
        if self.cache.len() >= INODE_CACHE_MAX && !self.cache.contains_key(&inode.ino) {
            self.cache.clear();
        }
        self.cache.insert(inode.ino, inode);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dvk::store::MemoryStore;

    #[test]
    fn the_access_time_moves_after_a_change_and_once_a_day() {
        const DAY: u64 = 86_400_000_000_000;
        let mut inode = Inode::default();
        inode.modified(10);
        assert!(inode.accessed(11), "older than the change");
        assert!(!inode.accessed(12));
        inode.modified(13);
        assert!(inode.accessed(14));
        assert!(!inode.accessed(14 + DAY - 1_000_000_000));
        assert!(inode.accessed(14 + DAY));
    }

    #[test]
    fn a_full_cache_forgets_nothing_that_was_stored() {
        let mut store = MemoryStore::default();
        let mut inodes = Inodes::default();
        let count = INODE_CACHE_MAX as u64 + 10;
        for ino in 1..=count {
            inodes.put(&Inode { ino, size: ino * 2, ..Inode::default() }, &mut store);
            assert!(inodes.cache.len() <= INODE_CACHE_MAX);
        }
        for ino in 1..=count {
            assert_eq!(inodes.find(ino, &store).unwrap().unwrap().size, ino * 2);
        }
        inodes.remove(7, &mut store);
        assert_eq!(inodes.find(7, &store).unwrap(), None);
    }
}
