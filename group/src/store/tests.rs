//! openraft's own tests of a store, and what a power failure between two writes leaves.

use super::*;
use crate::command::{ClientId, Command, Op};
use crate::disk::{FjallDisk, MemoryDisk};
use openraft::testing::{StoreBuilder, Suite};
use tempfile::TempDir;

struct OnDisk;

impl StoreBuilder<Types, LogStore, StateStore, TempDir> for OnDisk {
    async fn build(&self) -> Result<(TempDir, LogStore, StateStore), StorageError> {
        let directory = tempfile::tempdir().unwrap();
        let disk = Arc::new(FjallDisk::open(directory.path()).unwrap());
        let (log, state) = open(disk).unwrap();
        Ok((directory, log, state))
    }
}

struct InMemory;

impl StoreBuilder<Types, LogStore, StateStore> for InMemory {
    async fn build(&self) -> Result<((), LogStore, StateStore), StorageError> {
        let (log, state) = open(Arc::new(MemoryDisk::default())).unwrap();
        Ok(((), log, state))
    }
}

#[test]
fn the_store_on_disk_is_what_openraft_expects() {
    Suite::test_all(OnDisk).unwrap();
}

#[test]
fn the_store_in_memory_is_what_openraft_expects() {
    Suite::test_all(InMemory).unwrap();
}

fn entry(index: u64, term: u64) -> Entry {
    let op = Op::Put { key: index.to_be_bytes().to_vec(), value: vec![1], lease: None };
    let command =
        Command { now: index, from: 1, client: ClientId(1), sequence: index, acked: 0, op };
    let log_id = LogId::new(openraft::CommittedLeaderId::new(term, 1), index);
    Entry { log_id, payload: EntryPayload::Normal(command) }
}

#[test]
fn a_store_of_another_version_is_refused_before_anything_in_it_is_read() {
    let disk = Arc::new(MemoryDisk::default());
    open(disk.clone()).unwrap();
    disk.write(vec![pair(VOTE, &Vote::new(3, 2))], true).unwrap();
    open(disk.clone()).unwrap();
    let refused = |disk: Arc<MemoryDisk>, says: &str| {
        let error = open(disk).err().unwrap().to_string();
        assert!(error.contains(says), "{error}");
    };
    let other = SNAPSHOT_VERSION - 1;
    // Not even to find that it is damaged.
    let batch = vec![pair(FORMAT, &other), (SNAPSHOT.to_vec(), Some(vec![0xff]))];
    disk.write(batch, true).unwrap();
    refused(disk, &format!("has format {other}, this dvs reads format {SNAPSHOT_VERSION}"));
    let disk = Arc::new(MemoryDisk::default());
    disk.write(vec![pair(VOTE, &Vote::new(3, 2))], true).unwrap();
    refused(disk, "a format without a number");
}

#[test]
fn what_is_sent_to_another_node_has_no_entry_left_out() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (mut log, _) = open(Arc::new(MemoryDisk::default())).unwrap();
        let batch = (0..6).map(|index| pair(&log_key(index), &entry(index, 1))).collect();
        log.disk.write(batch, true).unwrap();
        let first = async |log: &mut LogStore, start| {
            let entries = log.limited_get_log_entries(start, 6).await.unwrap();
            entries.first().map(|entry| entry.log_id.index)
        };
        assert_eq!(first(&mut log, 2).await, Some(2));
        log.purge(entry(3, 1).log_id).await.unwrap();
        assert_eq!((first(&mut log, 2).await, first(&mut log, 4).await), (None, Some(4)));
    });
}

#[test]
fn a_store_on_disk_is_the_same_when_it_is_opened_again() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let vote = Vote::new(3, 2);
    runtime.block_on(async {
        let (mut log, mut state) =
            open(Arc::new(FjallDisk::open(directory.path()).unwrap())).unwrap();
        log.save_vote(&vote).await.unwrap();
        let batch = (1..=4).map(|index| pair(&log_key(index), &entry(index, 3))).collect();
        log.disk.write(batch, true).unwrap();
        state.apply((1..=3).map(|index| entry(index, 3))).await.unwrap();
        state.build_snapshot().await.unwrap();
        log.purge(entry(2, 3).log_id).await.unwrap();
    });
    runtime.block_on(async {
        let (mut log, mut state) =
            open(Arc::new(FjallDisk::open(directory.path()).unwrap())).unwrap();
        assert_eq!(log.read_vote().await.unwrap(), Some(vote));
        let found = log.get_log_state().await.unwrap();
        assert_eq!(found.last_purged_log_id, Some(entry(2, 3).log_id));
        assert_eq!(found.last_log_id, Some(entry(4, 3).log_id));
        assert_eq!(log.try_get_log_entries(0..).await.unwrap(), [entry(3, 3), entry(4, 3)]);
        assert_eq!(state.applied_state().await.unwrap().0, Some(entry(3, 3).log_id));
        let snapshot = state.get_current_snapshot().await.unwrap().unwrap();
        assert_eq!(*snapshot.snapshot, state.look(State::snapshot));
    });
}

/// A power failure after each write of a run, with as many of the unsynced ones kept as may be: the vote that was
/// saved, and the entries that were reported as stored, are there; the log has no gap.
#[test]
fn whatever_write_the_power_fails_at_what_was_reported_is_there() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for writes in 0..11 {
        for kept in 0..3 {
            runtime.block_on(power_failure(writes, kept));
        }
    }
}

async fn power_failure(writes: u64, kept: usize) {
    let disk = Arc::new(MemoryDisk::default());
    disk.fail_after(writes);
    let Ok((mut log, mut state)) = open(disk.clone()) else {
        assert_eq!(writes, 0, "of the writes only the first is made when it is opened");
        open(Arc::new(disk.crash(kept))).unwrap();
        return;
    };
    let (mut vote, mut last, mut first) = (None, 0, 1);
    // A failed step ends the node, as openraft does.
    let run = async {
        for term in 1..=2 {
            log.save_vote(&Vote::new(term, 1)).await?;
            vote = Some(Vote::new(term, 1));
            for index in last + 1..=last + 2 {
                openraft::storage::RaftLogStorageExt::blocking_append(
                    &mut log,
                    [entry(index, term)],
                )
                .await?;
                last = index;
            }
            log.save_committed(Some(entry(last, term).log_id)).await?;
            state.apply([entry(last, term)]).await?;
        }
        state.build_snapshot().await?;
        log.purge(entry(2, 1).log_id).await?;
        first = 3;
        Ok::<(), StorageError>(())
    };
    let ended = run.await;
    assert_eq!(ended.is_err(), writes < 11, "eleven writes are all that it takes");
    let (mut log, _) = open(Arc::new(disk.crash(kept))).unwrap();
    assert_eq!(log.read_vote().await.unwrap(), vote);
    let entries = log.try_get_log_entries(0..).await.unwrap();
    let indexes: Vec<u64> = entries.iter().map(|entry| entry.log_id.index).collect();
    assert_eq!(indexes, (first..=last).collect::<Vec<_>>());
}
