//! What SysV semaphore sets and queues share: identifiers, keys, the rules of semget(2) and msgget(2).

use crate::flags::{IPC_CREAT, IPC_EXCL, IPC_PRIVATE};
use crate::limits::SYSV_IDS_MAX;
use crate::permission::{sysv_allows, sysv_owns};
use crate::record;
use calls::ipc::{Perm, SetPerm};
use calls::wire::Wire;
use dvk::store::Store;
use m3ipc::errno::numbers::{EEXIST, EINVAL, ENOENT, ENOSPC};
use m3ipc::{Cred, Errno};
use std::collections::BTreeMap;

/// Factor of the sequence number in an identifier (IPCMNI).
const INDICES: u32 = 1 << 15;
/// Sequence numbers before they begin again: identifiers are not negative.
const SEQUENCES: u32 = 1 << 16;

/// A SysV object: who may use it, and the object itself.
#[derive(Debug)]
pub(crate) struct Entry<T> {
    pub(crate) perm: Perm,
    pub(crate) body: T,
}

/// All objects of one kind by their index. An identifier is index + sequence number × 32 768; each
/// new object has the next sequence number, so an identifier is not used again for 65 536 of them.
#[derive(Debug)]
pub(crate) struct Table<T> {
    entries: BTreeMap<u32, Entry<T>>,
    keys: BTreeMap<i32, u32>,
    next_sequence: u32,
    /// The record of `next_sequence`.
    letter: u8,
}

/// The index in an identifier.
pub(crate) fn index_of(id: i32) -> u32 {
    id.cast_unsigned() % INDICES
}

impl<T> Table<T> {
    /// The table with what the store has of it, but for the entries: see `restore`.
    pub(crate) fn open(store: &dyn Store, letter: u8) -> Table<T> {
        let sequences = record::all::<u32, 1>(store, b'n');
        let own = sequences.iter().find(|([kind], _)| *kind == u64::from(letter));
        let next_sequence = own.map_or(0, |(_, sequence)| *sequence);
        Table { entries: BTreeMap::new(), keys: BTreeMap::new(), next_sequence, letter }
    }

    /// Puts back an entry that was in the store.
    pub(crate) fn restore(&mut self, index: u32, perm: Perm, body: T) {
        if perm.key != IPC_PRIVATE {
            self.keys.insert(perm.key, index);
        }
        self.entries.insert(index, Entry { perm, body });
    }

    /// The identifier of what semget or msgget finds; none if it is to make one.
    pub(crate) fn find(
        &self,
        key: i32,
        flags: u32,
        cred: &Cred,
        check: impl Fn(&T) -> Result<(), Errno>,
    ) -> Result<Option<i32>, Errno> {
        if key == IPC_PRIVATE {
            return Ok(None);
        }
        let Some(index) = self.keys.get(&key) else {
            return if flags & IPC_CREAT != 0 { Ok(None) } else { Err(Errno::new(ENOENT)) };
        };
        if flags & IPC_CREAT != 0 && flags & IPC_EXCL != 0 {
            return Err(Errno::new(EEXIST));
        }
        let entry = &self.entries[index];
        check(&entry.body)?;
        sysv_allows(&entry.perm, cred, flags & 0o777)?;
        Ok(Some(self.id(*index)))
    }

    /// Adds a new object, returns its identifier.
    pub(crate) fn add(
        &mut self,
        key: i32,
        flags: u32,
        cred: &Cred,
        body: T,
        store: &mut dyn Store,
    ) -> Result<i32, Errno> {
        let free = |index: &u32| !self.entries.contains_key(index);
        let index = (0..SYSV_IDS_MAX).find(free).ok_or(Errno::new(ENOSPC))?;
        let seq = self.next_sequence;
        self.next_sequence = (seq + 1) % SEQUENCES;
        record::put(store, b'n', &[u64::from(self.letter)], &self.next_sequence);
        let (uid, gid, mode) = (cred.uid, cred.gid, flags & 0o777);
        self.restore(index, Perm { key, uid, gid, cuid: uid, cgid: gid, mode, seq }, body);
        Ok(self.id(index))
    }

    /// The identifier of the object at `index`.
    pub(crate) fn id(&self, index: u32) -> i32 {
        (self.entries[&index].perm.seq * INDICES + index).cast_signed()
    }

    /// The object with identifier `id`.
    pub(crate) fn get(&self, id: i32) -> Result<&Entry<T>, Errno> {
        let found = self.entries.get(&index_of(id)).filter(|_| id >= 0);
        let found = found.filter(|entry| entry.perm.seq == id.cast_unsigned() / INDICES);
        found.ok_or(Errno::new(EINVAL))
    }

    pub(crate) fn get_mut(&mut self, id: i32) -> Result<&mut Entry<T>, Errno> {
        self.get(id)?;
        Ok(self.entries.get_mut(&index_of(id)).expect("looked up a line ago"))
    }

    /// The identifier at a place of the table: what SEM_STAT and MSG_STAT go through.
    pub(crate) fn id_at(&self, place: i32) -> Result<i32, Errno> {
        let index = u32::try_from(place).map_err(|_| Errno::new(EINVAL))? % INDICES;
        let found = self.entries.contains_key(&index).then(|| self.id(index));
        found.ok_or(Errno::new(EINVAL))
    }

    /// The highest place that is used, 0 if none is: what IPC_INFO returns.
    pub(crate) fn highest(&self) -> i32 {
        self.entries.last_key_value().map_or(0, |(index, _)| index.cast_signed())
    }

    pub(crate) fn remove(&mut self, id: i32) {
        if let Some(entry) = self.entries.remove(&index_of(id)) {
            self.keys.remove(&entry.perm.key);
        }
    }

    /// IPC_SET: what all kinds have in common.
    pub(crate) fn set_perm(
        &mut self,
        id: i32,
        cred: &Cred,
        payload: &[u8],
    ) -> Result<SetPerm, Errno> {
        let entry = self.get_mut(id)?;
        sysv_owns(&entry.perm, cred)?;
        let set = SetPerm::get(payload).ok_or(Errno::new(EINVAL))?;
        // The kernel has no user or group -1.
        if set.uid == u32::MAX || set.gid == u32::MAX {
            return Err(Errno::new(EINVAL));
        }
        Ok(set)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (i32, &Entry<T>)> {
        self.entries.iter().map(|(index, entry)| (self.id(*index), entry))
    }

    pub(crate) fn count(&self) -> usize {
        self.entries.len()
    }
}

impl<T> Entry<T> {
    pub(crate) fn give(&mut self, set: &SetPerm) {
        (self.perm.uid, self.perm.gid, self.perm.mode) = (set.uid, set.gid, set.mode & 0o777);
    }
}
