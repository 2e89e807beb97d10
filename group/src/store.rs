//! The log and the state machine on a disk.
//!
//! Order of writes: what openraft is told to be stored has been synced before, and every write stands behind
//! all earlier ones. The state machine is memory; after a start it is the last snapshot and the log behind it.

use crate::command::{decode, encode};
use crate::disk::{Batch, Disk};
use crate::limits::{COMMAND_MAX, SNAPSHOT_MAX};
use crate::signal::Signal;
use crate::state::{SNAPSHOT_VERSION, State};
use crate::types::{
    Entry, LogId, Membership, RaftId, Reply, Snapshot, SnapshotMeta, StorageError, Types, Vote,
};
use openraft::storage::{LogFlushed, RaftLogStorage, RaftStateMachine};
use openraft::{
    EntryPayload, LogState, OptionalSend, RaftLogReader, RaftSnapshotBuilder, StorageIOError,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Version of everything else: what is in a snapshot is also in the log.
const FORMAT: &[u8] = b"format";
const VOTE: &[u8] = b"vote";
const COMMITTED: &[u8] = b"committed";
const PURGED: &[u8] = b"purged";
const SNAPSHOT: &[u8] = b"snapshot";
const LOG: &[u8] = b"log/";
/// Behind every key of the log.
const LOG_END: &[u8] = b"log0";

/// Bytes of log entries that are read at once: what travels in one frame.
const READ_MAX: usize = COMMAND_MAX;

/// Bytes of an entry beyond its command, and of the other records but the snapshot: memberships list all nodes.
const RECORD_MAX: usize = COMMAND_MAX + (64 << 10);

/// The log and the vote.
#[derive(Clone)]
pub(crate) struct LogStore {
    disk: Arc<dyn Disk>,
    /// The last entry, or the last that was.
    last: Arc<Mutex<Option<LogId>>>,
}

/// The state, and what openraft wants to know of it.
#[derive(Clone)]
pub(crate) struct StateStore {
    disk: Arc<dyn Disk>,
    applied: Arc<Mutex<Applied>>,
    /// Index of the last applied entry, for those who wait for a change.
    changed: Arc<Signal>,
}

#[derive(Debug, Default)]
struct Applied {
    state: State,
    last: Option<LogId>,
    membership: Membership,
}

/// Opens the log and the state of a node.
///
/// # Errors
/// The disk failed, or what is on it is damaged or of another version.
pub(crate) fn open(disk: Arc<dyn Disk>) -> io::Result<(LogStore, StateStore)> {
    check_format(&*disk)?;
    let mut applied = Applied::default();
    if let Some((meta, bytes)) =
        read::<(SnapshotMeta, Vec<u8>)>(&*disk, SNAPSHOT, 2 * SNAPSHOT_MAX)?
    {
        applied = Applied::from_snapshot(&meta, &bytes)?;
    }
    let index = applied.last.map_or(0, |last| last.index);
    let changed = Arc::new(Signal::new(index));
    let state = StateStore { disk: disk.clone(), applied: Arc::new(Mutex::new(applied)), changed };
    let log = LogStore { disk, last: Arc::default() };
    log.look()?;
    Ok((log, state))
}

/// Another version's commands may decode, as something else. An empty store becomes one of this version.
fn check_format(disk: &dyn Disk) -> io::Result<()> {
    let found = match read::<u32>(disk, FORMAT, RECORD_MAX)? {
        Some(SNAPSHOT_VERSION) => return Ok(()),
        Some(other) => format!("format {other}"),
        None if disk.last_before(&[], &[u8::MAX])?.is_none() => {
            return disk.write(vec![pair(FORMAT, &SNAPSHOT_VERSION)], true);
        }
        None => "a format without a number".to_owned(),
    };
    Err(io::Error::other(format!(
        "the group's store has {found}, this dvs reads format {SNAPSHOT_VERSION}: go on with the dvs that wrote it"
    )))
}

fn read<T: DeserializeOwned>(disk: &dyn Disk, key: &[u8], limit: usize) -> io::Result<Option<T>> {
    let Some(bytes) = disk.get(key)? else { return Ok(None) };
    decode(&bytes, limit).map(Some).map_err(|error| {
        let key = String::from_utf8_lossy(key);
        io::Error::other(format!("the group's store is damaged at {key}: {error}"))
    })
}

fn pair<T: Serialize>(key: &[u8], value: &T) -> (Vec<u8>, Option<Vec<u8>>) {
    (key.to_vec(), Some(encode(value)))
}

/// Big-endian, so that the order of the keys is the order of the log.
fn log_key(index: u64) -> Vec<u8> {
    [LOG, &index.to_be_bytes()].concat()
}

impl LogStore {
    /// The last entry of the log: of two logs the one whose last is greater is the later one.
    pub(crate) fn last(&self) -> Option<LogId> {
        *self.lock_last()
    }

    fn lock_last(&self) -> MutexGuard<'_, Option<LogId>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds what is on the disk.
    fn look(&self) -> io::Result<LogState<Types>> {
        let purged: Option<LogId> = read(&*self.disk, PURGED, RECORD_MAX)?;
        let last = match self.disk.last_before(LOG, LOG_END)? {
            Some((_, value)) => {
                let entry: Entry = decode(&value, RECORD_MAX).map_err(io::Error::other)?;
                Some(entry.log_id)
            }
            None => purged,
        };
        *self.lock_last() = last;
        Ok(LogState { last_purged_log_id: purged, last_log_id: last })
    }

    fn log_from(&self, first: &[u8], end: &[u8], bytes_max: usize) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut damage = None;
        self.disk.range(first, end, &mut |_, value| {
            bytes += value.len();
            if bytes > bytes_max && !entries.is_empty() {
                return false;
            }
            match decode(value, RECORD_MAX) {
                Ok(entry) => entries.push(entry),
                Err(error) => damage = Some(error),
            }
            damage.is_none()
        })?;
        damage.map_or(Ok(entries), |error| Err(io::Error::other(error)))
    }

    /// Removals of the entries from `first` up to and without `end`.
    fn removals(&self, first: &[u8], end: &[u8]) -> io::Result<Batch> {
        let mut batch = Batch::new();
        self.disk.range(first, end, &mut |key, _| {
            batch.push((key.to_vec(), None));
            true
        })?;
        Ok(batch)
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let first = match range.start_bound() {
            Bound::Included(index) => log_key(*index),
            Bound::Excluded(index) => log_key(index.saturating_add(1)),
            Bound::Unbounded => log_key(0),
        };
        let end = match range.end_bound() {
            Bound::Included(index) => log_key(index.saturating_add(1)),
            Bound::Excluded(index) => log_key(*index),
            Bound::Unbounded => LOG_END.to_vec(),
        };
        if end <= first {
            return Ok(Vec::new());
        }
        Ok(self
            .log_from(&first, &end, usize::MAX)
            .map_err(|error| StorageIOError::read_logs(&error))?)
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        let entries = self
            .log_from(&log_key(start), &log_key(end), READ_MAX)
            .map_err(|error| StorageIOError::read_logs(&error))?;
        // What is read here goes to another node. openraft 0.9 does not keep what a leader of yesterday still wants to send from
        // being purged, and would send what is left as if it came next.
        let is_whole = entries.first().is_none_or(|first| first.log_id.index == start);
        Ok(if is_whole { entries } else { Vec::new() })
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError> {
        Ok(self.look().map_err(|error| StorageIOError::read_logs(&error))?)
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let written = self.disk.write(vec![pair(VOTE, vote)], true);
        Ok(written.map_err(|error| StorageIOError::write_vote(&error))?)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        let vote = read(&*self.disk, VOTE, RECORD_MAX);
        Ok(vote.map_err(|error| StorageIOError::read_vote(&error))?)
    }

    /// Not synced: it only says how far the log may be applied at once after a start.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        let Some(committed) = committed else { return Ok(()) };
        let written = self.disk.write(vec![pair(COMMITTED, &committed)], false);
        Ok(written.map_err(|error| StorageIOError::write(&error))?)
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        let committed = read(&*self.disk, COMMITTED, RECORD_MAX);
        Ok(committed.map_err(|error| StorageIOError::read(&error))?)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<Types>,
    ) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut last = self.last();
        let batch = entries.into_iter().map(|entry| {
            last = Some(entry.log_id);
            pair(&log_key(entry.log_id.index), &entry)
        });
        // On stable storage before the callback: only then may it be counted for a majority.
        match self.disk.write(batch.collect(), true) {
            Ok(()) => {
                *self.lock_last() = last;
                callback.log_io_completed(Ok(()));
            }
            Err(error) => {
                let copy = io::Error::new(error.kind(), error.to_string());
                callback.log_io_completed(Err(copy));
                return Err(StorageIOError::write_logs(&error).into());
            }
        }
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let batch = self.removals(&log_key(log_id.index), LOG_END);
        let written = batch.and_then(|batch| self.disk.write(batch, true));
        let looked = written.and_then(|()| self.look().map(drop));
        Ok(looked.map_err(|error| StorageIOError::write_logs(&error))?)
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let batch = self.removals(LOG, &log_key(log_id.index.saturating_add(1)));
        let written = batch.and_then(|mut batch| {
            batch.push(pair(PURGED, &log_id));
            self.disk.write(batch, true)
        });
        let looked = written.and_then(|()| self.look().map(drop));
        Ok(looked.map_err(|error| StorageIOError::write_logs(&error))?)
    }
}

impl Applied {
    fn from_snapshot(meta: &SnapshotMeta, bytes: &[u8]) -> io::Result<Applied> {
        let state = State::restore(bytes).map_err(io::Error::other)?;
        Ok(Applied { state, last: meta.last_log_id, membership: meta.last_membership.clone() })
    }
}

impl StateStore {
    fn applied(&self) -> MutexGuard<'_, Applied> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the state as this node has it now. `look` must not look again.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.applied().state)
    }

    /// Index of the last applied entry, and all later ones.
    pub(crate) fn changes(&self) -> &Signal {
        &self.changed
    }

    fn tell(&self, applied: &Applied) {
        self.changed.set(applied.last.map_or(0, |last| last.index));
    }
}

impl RaftSnapshotBuilder<Types> for StateStore {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let (meta, bytes) = {
            let applied = self.applied();
            let id = applied.last.map_or_else(String::new, |last| last.to_string());
            let meta = SnapshotMeta {
                last_log_id: applied.last,
                last_membership: applied.membership.clone(),
                snapshot_id: id,
            };
            (meta, applied.state.snapshot())
        };
        let written = self.disk.write(vec![pair(SNAPSHOT, &(&meta, &bytes))], true);
        written.map_err(|error| StorageIOError::write_snapshot(None, &error))?;
        Ok(Snapshot { meta, snapshot: Box::new(bytes) })
    }
}

impl RaftStateMachine<Types> for StateStore {
    type SnapshotBuilder = StateStore;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Membership), StorageError> {
        let applied = self.applied();
        Ok((applied.last, applied.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Reply>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut applied = self.applied();
        let mut replies = Vec::new();
        for entry in entries {
            applied.last = Some(entry.log_id);
            replies.push(match entry.payload {
                EntryPayload::Normal(command) => Reply(applied.state.apply(command)),
                EntryPayload::Membership(membership) => {
                    applied.membership = Membership::new(Some(entry.log_id), membership);
                    Reply(Ok(crate::command::Done::Fine))
                }
                EntryPayload::Blank => Reply(Ok(crate::command::Done::Fine)),
            });
        }
        self.tell(&applied);
        Ok(replies)
    }

    async fn get_snapshot_builder(&mut self) -> StateStore {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Vec<u8>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Vec<u8>>,
    ) -> Result<(), StorageError> {
        let installed = Applied::from_snapshot(meta, &snapshot).and_then(|applied| {
            self.disk.write(vec![pair(SNAPSHOT, &(meta, &*snapshot))], true)?;
            Ok(applied)
        });
        let installed = installed.map_err(|error| {
            StorageIOError::<RaftId>::write_snapshot(Some(meta.signature()), &error)
        })?;
        let mut applied = self.applied();
        *applied = installed;
        self.tell(&applied);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        let snapshot = read::<(SnapshotMeta, Vec<u8>)>(&*self.disk, SNAPSHOT, 2 * SNAPSHOT_MAX);
        let snapshot = snapshot.map_err(|error| StorageIOError::read_snapshot(None, &error))?;
        Ok(snapshot.map(|(meta, bytes)| Snapshot { meta, snapshot: Box::new(bytes) }))
    }
}

#[cfg(test)]
mod tests;
