//! Where the log, the vote and the snapshot are: an ordered map with batches that survive a power failure.

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Keys with their new values; none deletes.
pub type Batch = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// An ordered map.
pub trait Disk: Send + Sync + 'static {
    /// # Errors
    /// The disk failed.
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>>;

    /// Shows the pairs from `from` up to and without `to` in order, until `each` returns false.
    ///
    /// # Errors
    /// The disk failed.
    fn range(
        &self,
        from: &[u8],
        to: &[u8],
        each: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> io::Result<()>;

    /// The last pair before `to`.
    ///
    /// # Errors
    /// The disk failed.
    fn last_before(&self, from: &[u8], to: &[u8]) -> io::Result<Option<(Vec<u8>, Vec<u8>)>>;

    /// Writes all or nothing, behind what was written before. With `sync` it, and all before it, is on
    /// stable storage when this returns.
    ///
    /// # Errors
    /// The disk failed or is full. What of the batch is there after a crash is not known.
    fn write(&self, batch: Batch, sync: bool) -> io::Result<()>;
}

/// A directory, with fjall.
pub struct FjallDisk {
    database: Database,
    map: Keyspace,
}

impl std::fmt::Debug for FjallDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FjallDisk")
    }
}

impl FjallDisk {
    /// # Errors
    /// The directory cannot be made or read, or what is in it is damaged.
    pub fn open(directory: &Path) -> io::Result<FjallDisk> {
        let database = Database::builder(directory)
            .worker_threads(1)
            .cache_size(4 << 20)
            .manual_journal_persist(true)
            .open()
            .map_err(io::Error::other)?;
        let options = || {
            KeyspaceCreateOptions::default().max_memtable_size(8 << 20).manual_journal_persist(true)
        };
        let map = database.keyspace("group", options).map_err(io::Error::other)?;
        Ok(FjallDisk { database, map })
    }
}

impl Disk for FjallDisk {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.map.get(key).map_err(io::Error::other)?.map(|value| value.to_vec()))
    }

    fn range(
        &self,
        from: &[u8],
        to: &[u8],
        each: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> io::Result<()> {
        for pair in self.map.range(from..to) {
            let (key, value) = pair.into_inner().map_err(io::Error::other)?;
            if !each(&key, &value) {
                break;
            }
        }
        Ok(())
    }

    fn last_before(&self, from: &[u8], to: &[u8]) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
        let Some(pair) = self.map.range(from..to).next_back() else { return Ok(None) };
        let (key, value) = pair.into_inner().map_err(io::Error::other)?;
        Ok(Some((key.to_vec(), value.to_vec())))
    }

    fn write(&self, batch: Batch, sync: bool) -> io::Result<()> {
        let mode = if sync { PersistMode::SyncData } else { PersistMode::Buffer };
        if batch.is_empty() {
            return self.database.persist(mode).map_err(io::Error::other);
        }
        let mut write = self.database.batch().durability(Some(mode));
        for (key, value) in batch {
            match value {
                Some(value) => write.insert(&self.map, key, value),
                None => write.remove(&self.map, key),
            }
        }
        write.commit().map_err(io::Error::other)
    }
}

/// Memory that behaves as a disk does in a power failure: what was not synced may be lost, from some
/// write on. For the simulation.
#[derive(Debug, Default)]
pub struct MemoryDisk(Mutex<Memory>);

#[derive(Debug, Default)]
struct Memory {
    map: BTreeMap<Vec<u8>, Vec<u8>>,
    synced: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Batches since the last sync.
    unsynced: Vec<Batch>,
    /// How many more writes succeed before the power fails.
    writes_left: Option<u64>,
    writes: u64,
}

impl MemoryDisk {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After so many writes from now the power fails: that write, and all after it, do nothing.
    pub fn fail_after(&self, writes: u64) {
        self.memory().writes_left = Some(writes);
    }

    /// How many writes there were.
    pub fn writes(&self) -> u64 {
        self.memory().writes
    }

    /// The disk after a power failure: of the writes since the last sync only the first `kept` are there.
    /// This one does not work any more.
    pub fn crash(&self, kept: usize) -> MemoryDisk {
        let mut memory = self.memory();
        memory.writes_left = Some(0);
        let mut map = memory.synced.clone();
        for batch in memory.unsynced.iter().take(kept) {
            put(&mut map, batch);
        }
        MemoryDisk(Mutex::new(Memory { synced: map.clone(), map, ..Memory::default() }))
    }
}

fn put(map: &mut BTreeMap<Vec<u8>, Vec<u8>>, batch: &Batch) {
    for (key, value) in batch {
        match value {
            Some(value) => map.insert(key.clone(), value.clone()),
            None => map.remove(key),
        };
    }
}

impl Disk for MemoryDisk {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        Ok(self.memory().map.get(key).cloned())
    }

    fn range(
        &self,
        from: &[u8],
        to: &[u8],
        each: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> io::Result<()> {
        for (key, value) in self.memory().map.range(from.to_vec()..to.to_vec()) {
            if !each(key, value) {
                break;
            }
        }
        Ok(())
    }

    fn last_before(&self, from: &[u8], to: &[u8]) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
        let memory = self.memory();
        let last = memory.map.range(from.to_vec()..to.to_vec()).next_back();
        Ok(last.map(|(key, value)| (key.clone(), value.clone())))
    }

    fn write(&self, batch: Batch, sync: bool) -> io::Result<()> {
        let memory = &mut *self.memory();
        if let Some(left) = &mut memory.writes_left {
            if *left == 0 {
                return Err(io::Error::other("the power has failed"));
            }
            *left -= 1;
        }
        memory.writes += 1;
        put(&mut memory.map, &batch);
        memory.unsynced.push(batch);
        if sync {
            for batch in std::mem::take(&mut memory.unsynced) {
                put(&mut memory.synced, &batch);
            }
        }
        Ok(())
    }
}
