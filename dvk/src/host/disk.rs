//! `DiskStore`: a server's state on this node's disk: the map in fjall, each blob in a file.
//!
//! ```text
//! STORE/lock     held while a server has it open
//! STORE/map/     fjall: its journal is the write-ahead log, its tables are the snapshot
//! STORE/blobs/   one sparse file per blob
//! STORE/scrubbed its time is when all was last compared with its checksums
//! ```
//! What a round of calls puts into the map is kept in memory (`get` and `range` see it) and committed as one batch.
//! A blob's removal is a row of the same batch; its file is unlinked only after that batch is on stable storage,
//! so a crash or power failure never leaves an inode without its data.

mod keep_up;

use super::blobs::{Blobs, fsync_directory};
use super::checksums::{CHUNK, Checksums, Window};
use super::scrub::Scrub;
use super::upkeep::Upkeep;
use super::{journal, manifest};
use crate::limits::{FORGET_MAX, MAP_CACHE, MAP_JOURNALS, MAP_MEMTABLE, REMOVED_BLOBS_MAX};
use crate::lock_file;
use crate::server::Nanos;
use crate::store::{Health, MemoryStore, Store, StoreError};
use anyhow::{Context, Result, ensure};
use fjall::config::PartitioningPolicy;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::{Bound, ControlFlow};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A store on disk. See the file's head.
pub struct DiskStore {
    database: Database,
    map: Keyspace,
    /// Keys: blobs (big-endian) that the map no longer refers to, but whose files may still be there.
    removed: Keyspace,
    blobs: Blobs,
    checksums: Checksums,
    upkeep: Upkeep,
    /// When to look again for what has lain still.
    still_at: Nanos,
    summing: Option<Summing>,
    /// Removed blobs that have more sums than can be removed at once, and from which chunk on.
    forgetting: BTreeMap<u64, u64>,
    scrub: Option<Scrub>,
    scrub_at: Nanos,
    /// Bytes that the last scrub has compared, and how many have ended.
    checked: u64,
    /// Parts that it could not look at.
    unchecked: u64,
    scrubs: u64,
    is_map_damaged: bool,
    /// When that was, which the file's time says as well.
    last_scrub: Option<SystemTime>,
    scrubbed: PathBuf,
    keep_up_at: Nanos,
    /// This round's writes; `None` removes.
    round: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    /// Blobs removed in this round (`true`), or taken into use again (`false`).
    round_removed: BTreeMap<u64, bool>,
    /// What `removed` has.
    committed_removed: BTreeSet<u64>,
    /// Has anything been committed since the last sync?
    unsynced: bool,
    _lock: File,
}

/// How far it has come to hand out what is to be summed.
#[derive(Clone, Copy, Debug, Default)]
struct Summing {
    also_young: bool,
    behind: Option<Window>,
}

/// What unwinds from a server whose store has failed in the middle of a call. There is no answer to give:
/// the host stops, and dvkd starts the server again from the store.
#[derive(Debug)]
pub struct StoreFailure(pub String);

impl std::fmt::Debug for DiskStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskStore").field("round", &self.round.len()).finish_non_exhaustive()
    }
}

/// A store whose rounds can be made to last.
pub trait Durable: Store {
    /// Makes what was put since the last commit one batch that survives the end of this process.
    ///
    /// # Errors
    /// The disk failed or is full; the server cannot go on.
    fn commit(&mut self) -> Result<()>;
    /// As `commit_sync`, and nothing will be done with it any more: what the next one should know is written.
    ///
    /// # Errors
    /// As `commit`.
    fn finish(&mut self) -> Result<()>;
    /// As `commit`, and it survives the end of the machine.
    ///
    /// # Errors
    /// As `commit`.
    fn commit_sync(&mut self) -> Result<()>;
    /// Is there tidying to do when time allows?
    fn wants_sweep(&self) -> bool;
    /// Does it.
    ///
    /// # Errors
    /// As `commit`.
    fn sweep(&mut self) -> Result<()>;
    /// When it wants to be looked after, if ever.
    fn keep_up_at(&self) -> Option<Nanos>;
    /// Looks after it, between two rounds.
    ///
    /// # Errors
    /// As `commit`.
    fn keep_up(&mut self, now: Nanos) -> Result<()>;
}

impl Durable for DiskStore {
    fn commit(&mut self) -> Result<()> {
        DiskStore::commit(self)
    }
    fn commit_sync(&mut self) -> Result<()> {
        DiskStore::commit_sync(self)
    }
    fn finish(&mut self) -> Result<()> {
        DiskStore::finish(self)
    }
    fn wants_sweep(&self) -> bool {
        DiskStore::wants_sweep(self)
    }
    fn sweep(&mut self) -> Result<()> {
        DiskStore::sweep(self)
    }
    fn keep_up_at(&self) -> Option<Nanos> {
        Some(self.keep_up_at)
    }
    fn keep_up(&mut self, now: Nanos) -> Result<()> {
        DiskStore::keep_up(self, now)
    }
}

/// Memory lasts as long as the process: there is nothing to do.
impl Durable for MemoryStore {
    fn commit(&mut self) -> Result<()> {
        Ok(())
    }
    fn commit_sync(&mut self) -> Result<()> {
        Ok(())
    }
    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
    fn wants_sweep(&self) -> bool {
        false
    }
    fn sweep(&mut self) -> Result<()> {
        Ok(())
    }
    fn keep_up_at(&self) -> Option<Nanos> {
        None
    }
    fn keep_up(&mut self, _: Nanos) -> Result<()> {
        Ok(())
    }
}

impl DiskStore {
    /// Opens the store in `directory`, which is made if it is not there.
    ///
    /// # Errors
    /// One sentence: in use by another server, damaged (file and offset), not readable.
    pub fn open(directory: &Path) -> Result<DiskStore> {
        DiskStore::open_sized(directory, MAP_MEMTABLE)
    }

    /// As [`DiskStore::open`]; what is in memory becomes a table when it has `memtable` bytes. Fewer than usual, to see many tables
    /// in a short test.
    ///
    /// # Errors
    /// As there.
    pub fn open_sized(directory: &Path, memtable: u64) -> Result<DiskStore> {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let lock = lock(directory)?;
        let path = directory.join("map");
        let scrubbed = directory.join("scrubbed");
        if prepare(&path)? {
            // There is nothing in it that could be compared.
            std::fs::write(&scrubbed, b"")
                .with_context(|| format!("cannot write {}", scrubbed.display()))?;
        }
        let database = Database::builder(&path)
            // Else what is in memory waits for compactions, and grows.
            .worker_threads(2)
            .cache_size(MAP_CACHE)
            .max_journaling_size(MAP_JOURNALS)
            // The round's commit says when.
            .manual_journal_persist(true)
            .open()
            .with_context(|| format!("cannot open the map in {}", path.display()))?;
        let options = || {
            // In one piece, as they are by default in all tables but the largest, filters have megabytes: a cache has room for a
            // few, and each look for what is not there would read one.
            let in_parts = PartitioningPolicy::new([false, true]);
            KeyspaceCreateOptions::default()
                .max_memtable_size(memtable)
                .manual_journal_persist(true)
                .filter_block_partitioning_policy(in_parts.clone())
                .index_block_partitioning_policy(in_parts)
        };
        let map = database
            .keyspace("map", options)
            .with_context(|| format!("cannot open {}", path.display()))?;
        let removed = database
            .keyspace("removed", options)
            .with_context(|| format!("cannot open {}", path.display()))?;
        let checksums = Checksums::open(&database, options)?;
        let blobs = Blobs::open(directory.join("blobs"))?;
        // fjall does not flush the directory in which it has made those of its trees.
        for made in [path.join("keyspaces"), path, directory.to_path_buf()] {
            fsync_directory(&made)?;
        }
        let mut store = DiskStore {
            database,
            map,
            removed,
            blobs,
            checksums,
            upkeep: Upkeep::default(),
            still_at: 0,
            summing: None,
            forgetting: BTreeMap::new(),
            scrub: None,
            scrub_at: 0,
            checked: 0,
            unchecked: 0,
            scrubs: 0,
            is_map_damaged: false,
            last_scrub: scrubbed.metadata().and_then(|found| found.modified()).ok(),
            scrubbed,
            keep_up_at: 0,
            round: BTreeMap::new(),
            round_removed: BTreeMap::new(),
            committed_removed: BTreeSet::new(),
            unsynced: true,
            _lock: lock,
        };
        store.finish_removals()?;
        Ok(store)
    }

    /// Unlinks the blobs that a crash left between the commit and the unlink.
    fn finish_removals(&mut self) -> Result<()> {
        for guard in self.removed.iter() {
            let key = guard.key().context("cannot read the map")?;
            let key = <[u8; 8]>::try_from(&*key).context("a strange row in the map")?;
            self.committed_removed.insert(u64::from_be_bytes(key));
        }
        self.sweep()
    }

    /// Ends a round: all its effects are in the journal, and survive the end of this process.
    ///
    /// # Errors
    /// The disk failed or is full. The store must not be used any more.
    pub fn commit(&mut self) -> Result<()> {
        self.write(PersistMode::Buffer)?;
        if self.committed_removed.len() >= REMOVED_BLOBS_MAX {
            self.sweep()?;
        }
        Ok(())
    }

    /// Ends a round: all effects of this and of earlier rounds, and the blobs marked by `blob_sync`, are on
    /// stable storage.
    ///
    /// # Errors
    /// As [`DiskStore::commit`].
    pub fn commit_sync(&mut self) -> Result<()> {
        self.blobs.sync_marked()?;
        if self.round_is_empty() && !self.unsynced {
            return self.unlink_removed();
        }
        self.write(PersistMode::SyncData)?;
        self.checksums.synced();
        self.unsynced = false;
        self.unlink_removed()
    }

    /// Ends the last round, in an orderly way: the next server then knows which bytes have no checksums.
    ///
    /// # Errors
    /// As [`DiskStore::commit`].
    pub fn finish(&mut self) -> Result<()> {
        self.commit_sync()?;
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncData));
        self.checksums.write_end(&mut batch);
        batch.commit().context("cannot write the journal (is the disk full?)")
    }

    /// Is there a file to unlink? `sweep` then wants to be called soon, not at once.
    pub fn wants_sweep(&self) -> bool {
        !self.committed_removed.is_empty()
    }

    /// Gives the space of removed blobs back. Ends the round.
    ///
    /// # Errors
    /// As [`DiskStore::commit`].
    pub fn sweep(&mut self) -> Result<()> {
        if self.wants_sweep() { self.commit_sync() } else { Ok(()) }
    }

    fn round_is_empty(&self) -> bool {
        self.round.is_empty() && self.round_removed.is_empty() && self.checksums.round_is_empty()
    }

    fn write(&mut self, mode: PersistMode) -> Result<()> {
        let full = "cannot write the journal (is the disk full?)";
        if self.round_is_empty() {
            if mode != PersistMode::Buffer {
                self.database.persist(mode).context(full)?;
            }
            return Ok(());
        }
        let mut batch = self.database.batch().durability(Some(mode));
        for (key, value) in std::mem::take(&mut self.round) {
            match value {
                Some(value) => batch.insert(&self.map, key, value),
                None => batch.remove(&self.map, key),
            }
        }
        for (blob, removed) in std::mem::take(&mut self.round_removed) {
            if removed {
                batch.insert(&self.removed, blob.to_be_bytes(), []);
                self.committed_removed.insert(blob);
            } else if self.committed_removed.remove(&blob) {
                batch.remove(&self.removed, blob.to_be_bytes());
            }
        }
        self.checksums.write_round(&mut batch);
        batch.commit().context(full)?;
        self.unsynced = true;
        Ok(())
    }

    /// After a sync: the map on stable storage does not refer to these any more.
    fn unlink_removed(&mut self) -> Result<()> {
        let revived = |blob: &u64| self.round_removed.get(blob) == Some(&false);
        let (kept, gone) = std::mem::take(&mut self.committed_removed)
            .into_iter()
            .partition::<BTreeSet<_>, _>(revived);
        self.committed_removed = kept;
        if gone.is_empty() {
            return Ok(());
        }
        let mut batch = self.database.batch().durability(Some(PersistMode::Buffer));
        let mut most = FORGET_MAX;
        for blob in gone {
            self.blobs.remove(blob)?;
            self.forget(blob, 0, &mut most, &mut batch)?;
        }
        // If this is lost, the next start unlinks them once more.
        batch.commit().context("cannot write the journal (is the disk full?)")
    }

    /// Removes the sums of a blob that is gone, from chunk `from` on, or those that can be removed at once.
    fn forget(
        &mut self,
        blob: u64,
        from: u64,
        most: &mut usize,
        batch: &mut OwnedWriteBatch,
    ) -> Result<()> {
        match self.checksums.forget(blob, from, most, batch)? {
            // Its row stays, so that a successor goes on if this one does not.
            Some(next) => drop(self.forgetting.insert(blob, next)),
            None => batch.remove(&self.removed, blob.to_be_bytes()),
        }
        Ok(())
    }

    /// Is the blob removed, for those who look at it now?
    fn is_removed(&self, blob: u64) -> bool {
        let committed =
            || self.committed_removed.contains(&blob) || self.forgetting.contains_key(&blob);
        self.round_removed.get(&blob).copied().unwrap_or_else(committed)
    }

    /// A blob that is changed after it was removed begins empty.
    fn revive(&mut self, blob: u64) -> Result<(), StoreError> {
        if self.is_removed(blob) {
            let all = 0..u64::MAX;
            self.checksums.before_cut(&self.database, &self.blobs, blob, &all)?;
            self.blobs.truncate(blob, 0)?;
            // Its sums are not to be forgotten any more: these are another's.
            if self.forgetting.remove(&blob).is_some() {
                self.committed_removed.insert(blob);
            }
            self.round_removed.insert(blob, false);
        }
        Ok(())
    }

    /// Tries `change`; if there is no space, gives that of removed blobs back and tries again.
    fn with_space(
        &mut self,
        change: impl Fn(&mut Blobs) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        match change(&mut self.blobs) {
            // Only what is committed may go: this round is not over.
            Err(StoreError::Full) if self.wants_sweep() => {
                or_unwind(
                    self.database.persist(PersistMode::SyncData).context("cannot sync the journal"),
                );
                self.checksums.synced();
                or_unwind(self.unlink_removed());
                change(&mut self.blobs)
            }
            result => result,
        }
    }
}

impl Store for DiskStore {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        match self.round.get(key) {
            Some(value) => value.clone(),
            None if key.is_empty() => None,
            None => or_unwind(self.map.get(key).context("cannot read the map"))
                .map(|value| value.to_vec()),
        }
    }

    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.round.insert(key.to_vec(), Some(value.to_vec()));
    }

    fn remove(&mut self, key: &[u8]) {
        self.round.insert(key.to_vec(), None);
    }

    fn range(
        &self,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) {
        if from >= to {
            return;
        }
        let mut stored = self
            .map
            .range(from..to)
            .map(|guard| or_unwind(guard.into_inner().context("cannot read the map")));
        let bounds = (Bound::Included(from), Bound::Excluded(to));
        let mut fresh = self.round.range::<[u8], _>(bounds).peekable();
        let mut next = stored.next();
        loop {
            // The smaller key goes first; for the same key this round's value counts.
            let flow = match (&next, fresh.peek()) {
                (None, None) => return,
                (Some((key, value)), other) if other.is_none_or(|(fresh, _)| **key < fresh[..]) => {
                    let flow = visit(key, value);
                    next = stored.next();
                    flow
                }
                (stored_pair, Some((key, value))) => {
                    let same = stored_pair.as_ref().is_some_and(|(stored, _)| **stored == key[..]);
                    let flow =
                        value.as_ref().map_or(ControlFlow::Continue(()), |value| visit(key, value));
                    fresh.next();
                    if same {
                        next = stored.next();
                    }
                    flow
                }
                (Some(_), None) => unreachable!("the first arm with a pair takes it"),
            };
            if flow.is_break() {
                return;
            }
        }
    }

    fn blob_read(&self, blob: u64, offset: u64, buffer: &mut [u8]) -> Result<usize, StoreError> {
        if self.is_removed(blob) {
            return Ok(0);
        }
        self.checksums.read(&self.blobs, blob, offset, buffer)
    }

    fn blob_write(&mut self, blob: u64, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        self.revive(blob)?;
        let range = offset..offset.saturating_add(data.len() as u64);
        self.checksums.before_write(&self.database, &self.blobs, blob, &range)?;
        self.with_space(|blobs| blobs.write(blob, offset, data))
    }

    fn blob_truncate(&mut self, blob: u64, length: u64) -> Result<(), StoreError> {
        self.revive(blob)?;
        if length < self.blobs.length(blob)? {
            let range = length..u64::MAX;
            self.checksums.before_cut(&self.database, &self.blobs, blob, &range)?;
        }
        self.with_space(|blobs| blobs.truncate(blob, length))
    }

    fn blob_punch(&mut self, blob: u64, offset: u64, length: u64) -> Result<(), StoreError> {
        if self.is_removed(blob) {
            return Ok(());
        }
        let range = offset..offset.saturating_add(length);
        self.checksums.before_cut(&self.database, &self.blobs, blob, &range)?;
        self.with_space(|blobs| blobs.punch(blob, offset, length))
    }

    fn blob_seek(&self, blob: u64, offset: u64, hole: bool) -> Option<u64> {
        if self.is_removed(blob) { None } else { self.blobs.seek(blob, offset, hole) }
    }

    fn blob_used(&self, blob: u64) -> u64 {
        if self.is_removed(blob) { 0 } else { self.blobs.used(blob) }
    }

    fn blob_remove(&mut self, blob: u64) {
        self.round_removed.insert(blob, true);
    }

    fn blob_sync(&mut self, blob: u64) {
        self.blobs.mark(blob);
    }

    fn space(&self) -> (u64, u64) {
        self.blobs.space()
    }

    fn scrub(&mut self) {
        // One that has begun for nobody may have passed what has changed since.
        if self.scrub.as_ref().is_none_or(|scrub| !scrub.is_urgent) {
            self.begin_scrub(true);
        }
        (self.scrub_at, self.keep_up_at) = (0, 0);
    }

    fn health(&self) -> Health {
        let percent = |scrub: &Scrub| scrub.percent(&self.checksums);
        Health {
            percent: self.scrub.as_ref().map(percent),
            scrubs: self.scrubs,
            checked: self.scrub.as_ref().map_or(self.checked, |scrub| scrub.checked * CHUNK),
            last: self.last_scrub.map_or(0, |time| seconds_since(SystemTime::UNIX_EPOCH, time)),
            fresh: self.checksums.dirty_count() as u64,
            unchecked: self.scrub.as_ref().map_or(self.unchecked, |scrub| scrub.unchecked),
            is_map_damaged: self.is_map_damaged,
            damage: self.checksums.damage(),
        }
    }
}

fn seconds_since(start: SystemTime, time: SystemTime) -> u64 {
    time.duration_since(start).map_or(0, |since| since.as_secs())
}

/// Unwinds to the host with the failure. No panic: nothing is wrong with the program.
pub(crate) fn or_unwind<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|error| {
        std::panic::resume_unwind(Box::new(StoreFailure(format!("{error:#}"))))
    })
}

fn lock(directory: &Path) -> Result<File> {
    let in_use = format!("the store {} is in use by another server", directory.display());
    lock_file::lock(directory, &in_use)
}

/// How the file begins by which fjall knows its databases; a version follows. It is written in two parts.
const MAGIC: &[u8] = b"FJL";

/// Makes sure that fjall can open the database, or create one. True: there is none yet.
fn prepare(path: &Path) -> Result<bool> {
    let version = std::fs::read(path.join("version")).unwrap_or_default();
    let created = matches!(version.strip_prefix(MAGIC), Some([number, ..]) if *number != 0);
    if created {
        manifest::check_all(path)?;
        journal::check_all(path)?;
        return Ok(false);
    }
    // fjall makes the first tree after that file: a crash interrupted the creation, and there is nothing in it yet.
    let begun = path.join("keyspaces").join("0").exists();
    ensure!(!begun, "{} is damaged: its file `version` is missing or cut", path.display());
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot begin again with {}", path.display()))
        }
        _ => Ok(true),
    }
}

#[cfg(test)]
impl DiskStore {
    /// What of the map is in memory becomes a table now: when it does so by itself depends on how busy the machine is.
    pub(crate) fn write_table(&self) {
        self.map.rotate_memtable_and_wait().unwrap();
    }
}

#[cfg(test)]
mod tests;
