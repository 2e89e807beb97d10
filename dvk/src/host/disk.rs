//! `DiskStore`: a server's state on this node's disk: the map in fjall, each blob in a file.
//!
//! ```text
//! STORE/lock     held while a server has it open
//! STORE/map/     fjall: its journal is the write-ahead log, its tables are the snapshot
//! STORE/blobs/   one sparse file per blob
//! ```
//! What a round of calls puts into the map is kept in memory (`get` and `range` see it) and committed as one batch.
//! A blob's removal is a row of the same batch; its file is unlinked only after that batch is on stable storage,
//! so a crash or power failure never leaves an inode without its data.

use super::blobs::{Blobs, fsync_directory};
use super::journal;
use crate::limits::{MAP_CACHE, MAP_JOURNALS, MAP_MEMTABLE, REMOVED_BLOBS_MAX};
use crate::lock_file;
use crate::store::{MemoryStore, Store, StoreError};
use anyhow::{Context, Result, ensure};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::{Bound, ControlFlow};
use std::path::Path;

/// A store on disk. See the file's head.
pub struct DiskStore {
    database: Database,
    map: Keyspace,
    /// Keys: blobs (big-endian) that the map no longer refers to, but whose files may still be there.
    removed: Keyspace,
    blobs: Blobs,
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
}

impl Durable for DiskStore {
    fn commit(&mut self) -> Result<()> {
        DiskStore::commit(self)
    }
    fn commit_sync(&mut self) -> Result<()> {
        DiskStore::commit_sync(self)
    }
    fn wants_sweep(&self) -> bool {
        DiskStore::wants_sweep(self)
    }
    fn sweep(&mut self) -> Result<()> {
        DiskStore::sweep(self)
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
    fn wants_sweep(&self) -> bool {
        false
    }
    fn sweep(&mut self) -> Result<()> {
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
        prepare(&path)?;
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
            return Ok(());
        }
        self.write(PersistMode::SyncData)?;
        self.unsynced = false;
        self.unlink_removed()
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
        self.round.is_empty() && self.round_removed.is_empty()
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
        for blob in gone {
            self.blobs.remove(blob)?;
            batch.remove(&self.removed, blob.to_be_bytes());
        }
        // If this is lost, the next start unlinks them once more.
        batch.commit().context("cannot write the journal (is the disk full?)")
    }

    /// Is the blob removed, for those who look at it now?
    fn is_removed(&self, blob: u64) -> bool {
        let committed = || self.committed_removed.contains(&blob);
        self.round_removed.get(&blob).copied().unwrap_or_else(committed)
    }

    /// A blob that is changed after it was removed begins empty.
    fn revive(&mut self, blob: u64) -> Result<(), StoreError> {
        if self.is_removed(blob) {
            self.blobs.truncate(blob, 0)?;
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
        if self.is_removed(blob) { Ok(0) } else { self.blobs.read(blob, offset, buffer) }
    }

    fn blob_write(&mut self, blob: u64, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        self.revive(blob)?;
        self.with_space(|blobs| blobs.write(blob, offset, data))
    }

    fn blob_truncate(&mut self, blob: u64, length: u64) -> Result<(), StoreError> {
        self.revive(blob)?;
        self.with_space(|blobs| blobs.truncate(blob, length))
    }

    fn blob_punch(&mut self, blob: u64, offset: u64, length: u64) -> Result<(), StoreError> {
        if self.is_removed(blob) {
            return Ok(());
        }
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
}

/// Unwinds to the host with the failure. No panic: nothing is wrong with the program.
fn or_unwind<T>(result: Result<T>) -> T {
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

/// Makes sure that fjall can open the database, or creates one.
fn prepare(path: &Path) -> Result<()> {
    let created = path.join("version").metadata().is_ok_and(|version| version.len() >= VERSION);
    if created {
        return journal::check_all(path);
    }
    // fjall makes the first tree after that file: a crash interrupted the creation, and there is nothing in it yet.
    let begun = path.join("keyspaces").join("0").exists();
    ensure!(!begun, "{} is damaged: its file `version` is missing", path.display());
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot begin again with {}", path.display()))
        }
        _ => Ok(()),
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
        Write(u8, u16, u8),
        Truncate(u8, u16),
        Punch(u8, u16, u16),
        RemoveBlob(u8),
        Commit,
        CommitSync,
        Sweep,
        Reopen,
    }

    fn step() -> impl Strategy<Value = Step> {
        let blob = || 0..4_u8;
        prop_oneof![
            4 => (any::<u8>(), any::<u8>()).prop_map(|(key, value)| Step::Put(key % 32, value)),
            2 => any::<u8>().prop_map(|key| Step::Remove(key % 32)),
            4 => (blob(), 0..9000_u16, any::<u8>()).prop_map(|(blob, at, len)| Step::Write(blob, at, len)),
            1 => (blob(), 0..9000_u16).prop_map(|(blob, len)| Step::Truncate(blob, len)),
            1 => (blob(), 0..9000_u16, 0..9000_u16).prop_map(|(blob, at, len)| Step::Punch(blob, at, len)),
            1 => blob().prop_map(Step::RemoveBlob),
            2 => Just(Step::Commit),
            1 => Just(Step::CommitSync),
            1 => Just(Step::Sweep),
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
            Step::Commit | Step::CommitSync | Step::Sweep | Step::Reopen => {}
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
        let mut buffer = vec![0xee; 20_000];
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
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn a_store_on_disk_is_a_store_in_memory_that_survives(steps in proptest::collection::vec(step(), 1..60)) {
            let dir = tempfile::tempdir().unwrap();
            let mut disk = DiskStore::open(dir.path()).unwrap();
            let mut memory = MemoryStore::default();
            for step in &steps {
                change(&mut disk, step);
                change(&mut memory, step);
                match step {
                    Step::Commit => disk.commit().unwrap(),
                    Step::CommitSync => disk.commit_sync().unwrap(),
                    Step::Sweep => disk.sweep().unwrap(),
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
        assert_eq!(blob(&store, 1), vec![0; 20_000]);
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
