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

use super::blobs::{Blobs, fsync_directory};
use super::checksums::{CHUNK, Checksums, Window};
use super::scrub::{Scrub, Step};
use super::upkeep::{Found, Job, Upkeep};
use super::{journal, manifest};
use crate::limits::{
    FORGET_MAX, MAP_CACHE, MAP_JOURNALS, MAP_MEMTABLE, REMOVED_BLOBS_MAX, SCRUB_EVERY, SCRUB_PAUSE,
    STILL_AFTER, UPKEEP_LOOK, UPKEEP_LOOK_MAX, UPKEEP_LOOK_URGENT, UPKEEP_OPEN_MAX,
};
use crate::lock_file;
use crate::server::Nanos;
use crate::store::{Health, MemoryStore, Store, StoreError};
use anyhow::{Context, Result, ensure};
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
            .worker_threads(1)
            .cache_size(MAP_CACHE)
            .max_journaling_size(MAP_JOURNALS)
            // The round's commit says when.
            .manual_journal_persist(true)
            .open()
            .with_context(|| format!("cannot open the map in {}", path.display()))?;
        let options = || {
            KeyspaceCreateOptions::default()
                .max_memtable_size(memtable)
                .manual_journal_persist(true)
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

    /// Gives checksums to what has lain still, and goes on with a scrub: between two rounds.
    ///
    /// # Errors
    /// As [`DiskStore::commit`].
    pub fn keep_up(&mut self, now: Nanos) -> Result<()> {
        let mut has_more = self.take_all_found()?;
        // One after the other, so that a scrub has its turn.
        let is_idle = |store: &DiskStore| store.summing.is_none() && store.upkeep.open() == 0;
        if now >= self.scrub_at && is_idle(self) && self.scrub.is_some() {
            self.go_on_with_scrub();
            let is_patient = self.scrub.as_ref().is_some_and(|scrub| !scrub.is_urgent);
            self.scrub_at = now + if is_patient { SCRUB_PAUSE } else { 0 };
        }
        if now >= self.still_at && self.summing.is_none() && (self.scrub.is_none() || is_idle(self))
        {
            self.still_at = now + STILL_AFTER;
            self.summing = Some(Summing::default());
            self.begin_scrub_if_due();
        }
        let mut batch = self.database.batch().durability(Some(PersistMode::Buffer));
        let mut most = FORGET_MAX;
        while most > 0
            && let Some((blob, from)) = self.forgetting.pop_first()
        {
            self.forget(blob, from, &mut most, &mut batch)?;
        }
        self.write_found(batch)?;
        has_more |= !self.forgetting.is_empty();
        self.sum_still()?;
        self.keep_up_at = if has_more {
            now
        } else if self.upkeep.open() > 0 {
            let is_urgent = self.scrub.as_ref().is_some_and(|scrub| scrub.is_urgent);
            now + if is_urgent { UPKEEP_LOOK_URGENT } else { UPKEEP_LOOK }
        } else if self.scrub.is_some() {
            self.scrub_at
        } else {
            self.still_at
        };
        Ok(())
    }

    /// Takes up what the thread has found, not too much at once. True: there may be more.
    fn take_all_found(&mut self) -> Result<bool> {
        let mut batch = self.database.batch().durability(Some(PersistMode::Buffer));
        let mut count = 0;
        while count < UPKEEP_LOOK_MAX
            && let Some(found) = self.upkeep.found()?
        {
            if let Found::Data { blob, range } = found {
                // It asks the database which sums there are.
                self.write_found(batch)?;
                batch = self.database.batch().durability(Some(PersistMode::Buffer));
                if !self.is_removed(blob)
                    && let Err(error) = self.checksums.take_up(blob, &range)
                {
                    self.map_damaged(&error);
                }
            } else {
                self.take_found(found, &mut batch)?;
            }
            count += 1;
        }
        self.write_found(batch)?;
        Ok(count == UPKEEP_LOOK_MAX)
    }

    fn write_found(&mut self, batch: OwnedWriteBatch) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        self.unsynced = true;
        batch.commit().context("cannot write the journal (is the disk full?)")
    }

    fn begin_scrub_if_due(&mut self) {
        let since = |last| seconds_since(last, SystemTime::now());
        if self.scrub.is_none()
            && self.last_scrub.is_none_or(|last| since(last) >= SCRUB_EVERY.as_secs())
        {
            self.begin_scrub(false);
        }
    }

    fn begin_scrub(&mut self, is_urgent: bool) {
        self.scrub = Some(Scrub::begin(is_urgent));
        self.is_map_damaged = false;
    }

    /// Gives checksums to all that has changed, at once, and waits for that: for those who want to see what comes of it.
    ///
    /// # Errors
    /// As [`DiskStore::commit`].
    pub fn sum_all(&mut self) -> Result<()> {
        self.commit()?;
        self.summing = Some(Summing { also_young: true, behind: None });
        while self.summing.is_some() || self.upkeep.open() > 0 {
            self.sum_still()?;
            let mut batch = self.database.batch().durability(Some(PersistMode::Buffer));
            if let Some(found) = self.upkeep.wait()? {
                self.take_found(found, &mut batch)?;
            }
            self.write_found(batch)?;
        }
        Ok(())
    }

    /// Compares everything, and waits for that: for those who want to see what comes of it. Returns what is known then.
    ///
    /// # Errors
    /// As [`DiskStore::commit`].
    pub fn scrub_all(&mut self) -> Result<Health> {
        self.commit()?;
        let before = self.scrubs;
        Store::scrub(self);
        while self.scrubs == before && self.scrub.is_some() {
            let now = self.scrub_at;
            self.keep_up(now)?;
            std::thread::yield_now();
        }
        Ok(self.health())
    }

    #[cfg(test)]
    pub(super) fn batch(&self) -> OwnedWriteBatch {
        self.database.batch()
    }

    #[cfg(test)]
    pub(super) fn checksums_mut(&mut self) -> &mut Checksums {
        &mut self.checksums
    }

    /// Hands out what is to be summed, as much as the thread can do in a while.
    fn sum_still(&mut self) -> Result<()> {
        let Some(Summing { also_young, behind }) = self.summing else { return Ok(()) };
        let most = UPKEEP_OPEN_MAX.saturating_sub(self.upkeep.open());
        if most == 0 {
            return Ok(());
        }
        let (still, behind) = self.checksums.take_still(behind, also_young, most);
        self.summing = behind.map(|window| Summing { also_young, behind: Some(window) });
        for still in still {
            self.upkeep.ask(Job::Sum { path: self.blobs.path(still.window.0), still })?;
        }
        Ok(())
    }

    fn take_found(&mut self, found: Found, batch: &mut OwnedWriteBatch) -> Result<()> {
        match found {
            Found::Summed { still, summed: Some(summed) } => {
                if let Err(error) = self.checksums.put_summed(&still, &summed, batch) {
                    self.checksums.put_back(&still);
                    self.map_damaged(&error);
                }
            }
            Found::Summed { still, summed: None } => self.checksums.put_back(&still),
            Found::Checked { blob, chunk, row, outcome } => {
                if !self.is_removed(blob)
                    && let Some(scrub) = &mut self.scrub
                {
                    scrub.compared(&self.checksums, (blob, chunk), &row, &outcome);
                }
            }
            Found::Listed { missed } => {
                if let Some(scrub) = &mut self.scrub {
                    scrub.unchecked += missed;
                }
            }
            Found::Data { .. } => {}
        }
        Ok(())
    }

    /// Whoever needs what is there gets an error as well; the others go on.
    fn map_damaged(&mut self, error: &anyhow::Error) {
        tracing::error!("the map is damaged, or cannot be read: {error:#}");
        self.is_map_damaged = true;
    }

    fn go_on_with_scrub(&mut self) {
        let Some(scrub) = &mut self.scrub else { return };
        match scrub.go_on(&self.checksums, &self.map, &self.blobs, &mut self.upkeep) {
            Ok(Step::More) => return,
            Ok(Step::Sum) => {
                self.summing = Some(Summing { also_young: true, behind: None });
                return;
            }
            // If that fails the next scrub comes early: after the next start.
            Ok(Step::Over) => {
                if let Err(error) = std::fs::write(&self.scrubbed, b"") {
                    tracing::warn!("cannot write {}: {error}", self.scrubbed.display());
                }
            }
            // So it does when this one has not come to its end.
            Err(error) => self.map_damaged(&error),
        }
        let Some(scrub) = self.scrub.take() else { return };
        (self.checked, self.unchecked) = (scrub.checked * CHUNK, scrub.unchecked);
        self.scrubs += 1;
        self.last_scrub = Some(SystemTime::now());
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

/// Bytes of the file by which fjall knows its databases, which it writes in two parts.
const VERSION: u64 = 4;

/// Makes sure that fjall can open the database, or create one. True: there is none yet.
fn prepare(path: &Path) -> Result<bool> {
    let created = path.join("version").metadata().is_ok_and(|version| version.len() >= VERSION);
    if created {
        manifest::check_all(path)?;
        journal::check_all(path)?;
        return Ok(false);
    }
    // fjall makes the first tree after that file: a crash interrupted the creation, and there is nothing in it yet.
    let begun = path.join("keyspaces").join("0").exists();
    ensure!(!begun, "{} is damaged: its file `version` is missing", path.display());
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot begin again with {}", path.display()))
        }
        _ => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    #[derive(Clone, Debug)]
    enum Step {
        Put(u8, u8),
        Remove(u8),
        Write(u8, u32, u8),
        Truncate(u8, u32),
        Punch(u8, u32, u32),
        RemoveBlob(u8),
        Commit,
        CommitSync,
        Sweep,
        SumAll,
        Scrub,
        Finish,
        Reopen,
    }

    /// In a blob: in its first blocks, or where one row of checksums ends and the next begins.
    fn place() -> impl Strategy<Value = u32> {
        prop_oneof![3 => 0..9000_u32, 1 => 126_000..140_000_u32, 1 => Just(4096), 1 => Just(131_072)]
    }

    fn step() -> impl Strategy<Value = Step> {
        let blob = || 0..4_u8;
        prop_oneof![
            4 => (any::<u8>(), any::<u8>()).prop_map(|(key, value)| Step::Put(key % 32, value)),
            2 => any::<u8>().prop_map(|key| Step::Remove(key % 32)),
            4 => (blob(), place(), any::<u8>()).prop_map(|(blob, at, len)| Step::Write(blob, at, len)),
            1 => (blob(), place()).prop_map(|(blob, len)| Step::Truncate(blob, len)),
            1 => (blob(), place(), 0..9000_u16).prop_map(|(blob, at, len)| Step::Punch(blob, at, len.into())),
            1 => blob().prop_map(Step::RemoveBlob),
            2 => Just(Step::Commit),
            1 => Just(Step::CommitSync),
            1 => Just(Step::Sweep),
            2 => Just(Step::SumAll),
            1 => Just(Step::Scrub),
            1 => Just(Step::Finish),
            1 => Just(Step::Reopen),
        ]
    }

    fn change(store: &mut dyn Store, step: &Step) {
        match *step {
            Step::Put(key, value) => store.put(&[b'k', key], &vec![value; usize::from(value)]),
            Step::Remove(key) => store.remove(&[b'k', key]),
            Step::Write(blob, at, len) => {
                store.blob_write(blob.into(), at.into(), &vec![len; len.into()]).unwrap()
            }
            Step::Truncate(blob, len) => store.blob_truncate(blob.into(), len.into()).unwrap(),
            Step::Punch(blob, at, len) => {
                store.blob_punch(blob.into(), at.into(), len.into()).unwrap()
            }
            Step::RemoveBlob(blob) => store.blob_remove(blob.into()),
            Step::Commit | Step::CommitSync | Step::Sweep | Step::SumAll => {}
            Step::Scrub | Step::Finish | Step::Reopen => {}
        }
    }

    fn pairs(store: &dyn Store, from: &[u8], to: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut pairs = Vec::new();
        store.range(from, to, &mut |key, value| {
            pairs.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        });
        pairs
    }

    fn blob(store: &dyn Store, blob: u64) -> Vec<u8> {
        let mut buffer = vec![0xee; 150_000];
        let count = store.blob_read(blob, 0, &mut buffer).unwrap();
        buffer.truncate(count);
        buffer
    }

    fn compare(disk: &DiskStore, memory: &MemoryStore) {
        assert_eq!(pairs(disk, b"", b"z"), pairs(memory, b"", b"z"));
        assert_eq!(pairs(disk, &[b'k', 7], &[b'k', 20]), pairs(memory, &[b'k', 7], &[b'k', 20]));
        for key in 0..32 {
            assert_eq!(disk.get(&[b'k', key]), memory.get(&[b'k', key]));
        }
        for number in 0..4 {
            assert_eq!(blob(disk, number), blob(memory, number));
            for (offset, length) in [(4000, 200), (4096, 8192), (131_000, 5000), (131_072, 1)] {
                let read = |store: &dyn Store| {
                    let mut buffer = vec![0xee; length];
                    let count = store.blob_read(number, offset, &mut buffer).unwrap();
                    (count, buffer)
                };
                assert_eq!(read(disk), read(memory));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn a_store_on_disk_is_a_store_in_memory_that_survives(steps in proptest::collection::vec(step(), 1..60)) {
            let dir = crate::host::checksums::tests::in_memory();
            let mut disk = DiskStore::open(dir.path()).unwrap();
            let mut memory = MemoryStore::default();
            for step in &steps {
                change(&mut disk, step);
                change(&mut memory, step);
                match step {
                    Step::Commit => disk.commit().unwrap(),
                    Step::CommitSync => disk.commit_sync().unwrap(),
                    Step::Sweep => disk.sweep().unwrap(),
                    Step::SumAll => disk.sum_all().unwrap(),
                    Step::Scrub => assert_eq!(disk.scrub_all().unwrap().damage, []),
                    Step::Finish => {
                        disk.finish().unwrap();
                        drop(disk);
                        disk = DiskStore::open(dir.path()).unwrap();
                    }
                    Step::Reopen => {
                        disk.commit().unwrap();
                        drop(disk);
                        disk = DiskStore::open(dir.path()).unwrap();
                    }
                    _ => {}
                }
                compare(&disk, &memory);
            }
        }
    }

    #[test]
    fn what_was_not_committed_is_gone_after_a_restart_and_its_removed_blobs_are_still_there() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = DiskStore::open(dir.path()).unwrap();
        store.put(b"inode", b"1");
        store.blob_write(1, 0, b"data").unwrap();
        store.commit().unwrap();
        store.remove(b"inode");
        store.blob_remove(1);
        assert_eq!((store.get(b"inode"), blob(&store, 1)), (None, vec![]));
        drop(store);
        let store = DiskStore::open(dir.path()).unwrap();
        assert_eq!((store.get(b"inode"), blob(&store, 1)), (Some(b"1".to_vec()), b"data".to_vec()));
    }

    #[test]
    fn a_removed_blob_is_unlinked_by_a_sync_not_before_and_by_the_next_start_at_the_latest() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("blobs/01/0000000000000001");
        let mut store = DiskStore::open(dir.path()).unwrap();
        for round in 0..2 {
            store.blob_write(1, 0, b"data").unwrap();
            store.commit().unwrap();
            store.blob_remove(1);
            store.commit().unwrap();
            assert!(file.exists() && store.wants_sweep() && blob(&store, 1).is_empty());
            if round == 0 {
                store.sweep().unwrap();
            } else {
                drop(store);
                store = DiskStore::open(dir.path()).unwrap();
            }
            assert!(!file.exists() && !store.wants_sweep());
        }
    }

    #[test]
    fn holes_are_holes() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = DiskStore::open(dir.path()).unwrap();
        store.blob_write(1, 1 << 20, &[7; 8192]).unwrap();
        let end = (1 << 20) + 8192;
        assert_eq!(store.blob_seek(1, 0, false), Some(1 << 20));
        assert_eq!(store.blob_seek(1, 0, true), Some(0));
        assert_eq!(store.blob_seek(1, 1 << 20, true), Some(end));
        assert_eq!((store.blob_seek(1, end, true), store.blob_seek(2, 0, true)), (None, None));
        let used = store.blob_used(1);
        assert!((8192..65536).contains(&used), "{used}");
        store.blob_punch(1, 1 << 20, u64::MAX).unwrap();
        assert_eq!(store.blob_seek(1, 0, false), None);
        assert_eq!(blob(&store, 1), vec![0; 150_000]);
        assert_eq!(store.blob_write(1, u64::MAX - 1, b"xx"), Err(StoreError::Full));
        assert_eq!(store.blob_truncate(1, u64::MAX), Err(StoreError::Full));
    }

    #[test]
    fn more_blobs_than_open_files_are_all_there() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = DiskStore::open(dir.path()).unwrap();
        let count = BLOBS_OPEN + 50;
        for number in 0..count {
            store.blob_write(number, 0, &number.to_be_bytes()).unwrap();
            store.blob_sync(number);
        }
        store.commit_sync().unwrap();
        for number in 0..count {
            assert_eq!(blob(&store, number), number.to_be_bytes());
        }
    }

    const BLOBS_OPEN: u64 = crate::limits::BLOB_FILES_OPEN as u64;

    #[test]
    fn a_store_is_opened_once() {
        let dir = tempfile::tempdir().unwrap();
        let _store = DiskStore::open(dir.path()).unwrap();
        let error = format!("{:#}", DiskStore::open(dir.path()).unwrap_err());
        assert!(error.contains("in use by another server"), "{error}");
    }

    #[test]
    fn an_interrupted_creation_begins_again_and_a_missing_version_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let map = dir.path().join("map");
        std::fs::create_dir_all(&map).unwrap();
        std::fs::write(map.join("0.jnl"), b"").unwrap();
        drop(DiskStore::open(dir.path()).unwrap());
        std::fs::remove_file(map.join("version")).unwrap();
        let error = format!("{:#}", DiskStore::open(dir.path()).unwrap_err());
        assert!(error.contains("is damaged: its file `version` is missing"), "{error}");
    }

    #[test]
    fn a_torn_tail_loses_the_last_round_only_and_a_flipped_byte_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = DiskStore::open(dir.path()).unwrap();
        for round in 0..10_u8 {
            store.put(&[round], &[round; 100]);
            store.put(b"last", &[round]);
            store.commit().unwrap();
        }
        drop(store);
        let path = dir.path().join("map/0.jnl");
        let written = std::fs::read(&path).unwrap();
        let end = written.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        std::fs::write(&path, &written[..end - 1]).unwrap();
        let store = DiskStore::open(dir.path()).unwrap();
        assert_eq!((store.get(b"last"), store.get(&[9])), (Some(vec![8]), None));
        drop(store);
        let mut flipped = written;
        flipped[end / 2] ^= 1;
        std::fs::write(&path, &flipped).unwrap();
        let error = format!("{:#}", DiskStore::open(dir.path()).unwrap_err());
        assert!(error.contains("0.jnl is damaged at offset"), "{error}");
    }

    /// The child of the next test: the limit of a file's size stands for a full disk.
    #[test]
    fn child_whose_disk_is_full() {
        let Some(directory) = std::env::var_os(FULL) else { return };
        let mut store = DiskStore::open(Path::new(&directory)).unwrap();
        store.put(b"before", b"1");
        store.commit_sync().unwrap();
        let limit = rustix::process::Rlimit { current: Some(65_536), maximum: None };
        rustix::process::setrlimit(rustix::process::Resource::Fsize, limit).unwrap();
        // Without the signal the write fails with EFBIG.
        nix::sys::signal::SigSet::from_iter([nix::sys::signal::Signal::SIGXFSZ])
            .thread_block()
            .unwrap();
        assert_eq!(store.blob_write(1, 65_536, b"x"), Err(StoreError::Full));
        assert_eq!(store.blob_write(1, 0, b"x"), Ok(()));
        store.put(b"large", &[7; 200_000]);
        let error = format!("{:#}", store.commit().unwrap_err());
        assert!(error.contains("is the disk full?"), "{error}");
    }

    const FULL: &str = "DVK_DISK_TEST_FULL";

    #[test]
    fn a_full_disk_is_an_error_of_the_write_or_of_the_commit_and_the_store_opens_again() {
        let dir = tempfile::tempdir().unwrap();
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "host::disk::tests::child_whose_disk_is_full"])
            .env(FULL, dir.path())
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        let store = DiskStore::open(dir.path()).unwrap();
        assert_eq!((store.get(b"before"), store.get(b"large")), (Some(b"1".to_vec()), None));
    }

    const CHILD: &str = "DVK_DISK_TEST_CHILD";

    /// The child of the next test: commits a counter and says so, for ever.
    #[test]
    fn child_that_commits_and_acknowledges() {
        let Some(directory) = std::env::var_os(CHILD) else { return };
        let mut store = DiskStore::open(Path::new(&directory)).unwrap();
        for count in 1_u64.. {
            store.put(b"count", &count.to_be_bytes());
            store.put(&count.to_be_bytes(), &[1; 100]);
            store.blob_write(count % 10, 0, &count.to_be_bytes()).unwrap();
            if count % 10 == 0 { store.commit_sync() } else { store.commit() }.unwrap();
            match count % 14 {
                5 => store.sum_all().unwrap(),
                12 => assert_eq!(store.scrub_all().unwrap().damage, []),
                _ => {}
            }
            println!("ack {count}");
        }
    }

    #[test]
    fn what_was_acknowledged_survives_kill_9() {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..5 {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "--nocapture",
                    "host::disk::tests::child_that_commits_and_acknowledges",
                ])
                .env(CHILD, dir.path())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let mut acknowledged = 0_u64;
            let mut seen = 0;
            for line in lines.map_while(Result::ok) {
                if let Some(count) =
                    line.rsplit_once("ack ").and_then(|(_, count)| count.parse().ok())
                {
                    acknowledged = count;
                    seen += 1;
                }
                if seen == 100 + round * 7 {
                    child.kill().unwrap();
                }
            }
            child.wait().unwrap();
            assert!(seen >= 100, "the child died on its own");
            let store = DiskStore::open(dir.path()).unwrap();
            let count = u64::from_be_bytes(store.get(b"count").unwrap().try_into().unwrap());
            assert!(count >= acknowledged, "{count} of {acknowledged}");
            for key in 1..=count {
                assert!(store.get(&key.to_be_bytes()).is_some(), "key {key} of {count}");
            }
            let found = u64::from_be_bytes(blob(&store, acknowledged % 10).try_into().unwrap());
            assert!(found >= acknowledged);
            // The next child counts from 1 again.
            drop(store);
            std::fs::remove_dir_all(dir.path()).unwrap();
            std::fs::create_dir_all(dir.path()).unwrap();
        }
    }
}
