//! A store on disk is one in memory that survives: restarts, kills, a full disk.

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
        Step::Punch(blob, at, len) => store.blob_punch(blob.into(), at.into(), len.into()).unwrap(),
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
    // It is written in two parts, of which a power failure may leave either.
    for left in [&b""[..], b"FJL", b"FJL\0", b"\0\0\0\x03"] {
        std::fs::write(map.join("version"), left).unwrap();
        let error = format!("{:#}", DiskStore::open(dir.path()).unwrap_err());
        assert!(error.contains("is damaged: its file `version`"), "{left:?}: {error}");
        let other = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(other.path().join("map")).unwrap();
        std::fs::write(other.path().join("map/version"), left).unwrap();
        drop(DiskStore::open(other.path()).unwrap());
    }
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
            if let Some(count) = line.rsplit_once("ack ").and_then(|(_, count)| count.parse().ok())
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
