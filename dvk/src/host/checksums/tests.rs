//! Disks that return something else than what was written to them.

use super::*;
use crate::host::disk::DiskStore;
use crate::limits::{SCRUB_EVERY, SCRUB_PAUSE, STILL_AFTER};
use crate::server::Nanos;
use crate::store::{Health, Store};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const BLOB: u64 = 1;

/// A folder in memory, if there is such a place: others measure time while these tests flush.
pub(crate) fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn file(directory: &Path) -> PathBuf {
    directory.join("blobs/01/0000000000000001")
}

/// A store with a blob of so many blocks, all different, that have their sums.
fn summed(directory: &Path, blocks: u64) -> DiskStore {
    let mut store = DiskStore::open(directory).unwrap();
    for block in 0..blocks {
        store.blob_write(BLOB, block * BLOCK, &bytes(block)).unwrap();
    }
    store.sum_all().unwrap();
    store
}

fn bytes(block: u64) -> Vec<u8> {
    (0..BLOCK).map(|at| u8::try_from((at * 7 + block) % 251).unwrap()).collect()
}

fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

fn read(store: &DiskStore, offset: u64, length: u64) -> Result<Vec<u8>, StoreError> {
    let mut buffer = vec![0; to_usize(length)];
    let count = store.blob_read(BLOB, offset, &mut buffer)?;
    buffer.truncate(count);
    Ok(buffer)
}

/// Looks after a store as often as it wants to be, and `pause` of its time later each time, until it is as it should be.
fn keep_up(store: &mut DiskStore, now: &mut Nanos, pause: Nanos, until: impl Fn(&Health) -> bool) {
    while !until(&store.health()) {
        store.keep_up(*now).unwrap();
        *now += pause;
        std::thread::yield_now();
    }
}

#[test]
fn a_flipped_bit_is_an_error_of_its_block_alone_until_that_is_written_anew() {
    let directory = in_memory();
    let mut store = summed(directory.path(), 40);
    flip(&file(directory.path()), 5 * BLOCK + 17);
    for _ in 0..2 {
        for block in 0..40 {
            let expected = if block == 5 { Err(StoreError::Io) } else { Ok(bytes(block)) };
            assert_eq!(read(&store, block * BLOCK, BLOCK), expected, "block {block}");
        }
        // In parts of it, and over it.
        assert_eq!(read(&store, 5 * BLOCK, 1), Err(StoreError::Io));
        assert_eq!(read(&store, 6 * BLOCK - 1, 1), Err(StoreError::Io));
        assert_eq!(read(&store, 4 * BLOCK, 3 * BLOCK), Err(StoreError::Io));
        assert_eq!(store.health().damage, [Damage { blob: BLOB, offset: 5 * BLOCK }]);
        // It is not forgotten with the process.
        drop(store);
        store = DiskStore::open(directory.path()).unwrap();
    }
    // Nor does it become good by what is written beside it.
    assert_eq!(store.blob_write(BLOB, 5 * BLOCK, &[1; 100]), Err(StoreError::Io));
    assert_eq!(store.blob_write(BLOB, 7 * BLOCK, &bytes(7)), Err(StoreError::Io));
    assert_eq!(store.blob_truncate(BLOB, 5 * BLOCK + 1), Err(StoreError::Io));
    store.blob_write(BLOB, 33 * BLOCK, &bytes(33)).unwrap();
    assert_eq!(read(&store, 5 * BLOCK, BLOCK), Err(StoreError::Io));
    store.blob_write(BLOB, 5 * BLOCK, &bytes(5)).unwrap();
    assert_eq!(read(&store, 0, 40 * BLOCK).unwrap(), (0..40).flat_map(bytes).collect::<Vec<_>>());
    assert_eq!(store.health().damage, []);
}

#[test]
fn each_bit_of_a_block_counts_and_so_does_where_it_is() {
    let directory = in_memory();
    let store = summed(directory.path(), 3);
    let path = file(directory.path());
    for offset in (0..3 * BLOCK).step_by(61) {
        flip(&path, offset);
        assert_eq!(read(&store, 0, 3 * BLOCK), Err(StoreError::Io), "byte {offset}");
        flip(&path, offset);
    }
    assert!(read(&store, 0, 3 * BLOCK).is_ok());
    // The disk has written a block to another's place.
    let blob = OpenOptions::new().write(true).open(&path).unwrap();
    blob.write_all_at(&bytes(2), BLOCK).unwrap();
    assert_eq!(read(&store, BLOCK, BLOCK), Err(StoreError::Io));
    // It has lost blocks: those of a file that is too short are not zeros.
    blob.write_all_at(&bytes(1), BLOCK).unwrap();
    blob.set_len(2 * BLOCK).unwrap();
    assert_eq!(read(&store, 0, 2 * BLOCK).unwrap().len(), to_usize(2 * BLOCK));
    assert_eq!(read(&store, 0, 3 * BLOCK), Err(StoreError::Io));
    assert_eq!(read(&store, 2 * BLOCK, 1), Err(StoreError::Io));
}

#[test]
fn a_small_damaged_file_can_be_written_anew_and_removed() {
    let directory = in_memory();
    let mut store = DiskStore::open(directory.path()).unwrap();
    store.blob_write(BLOB, 0, b"a line\n").unwrap();
    store.sum_all().unwrap();
    flip(&file(directory.path()), 3);
    assert_eq!(read(&store, 0, 7), Err(StoreError::Io));
    assert_eq!(store.blob_write(BLOB, 7, b"another\n"), Err(StoreError::Io));
    store.blob_write(BLOB, 0, b"a line\n").unwrap();
    store.blob_write(BLOB, 7, b"another\n").unwrap();
    assert_eq!(read(&store, 0, 100).unwrap(), b"a line\nanother\n");
    store.sum_all().unwrap();
    flip(&file(directory.path()), 3);
    assert_eq!(read(&store, 0, 7), Err(StoreError::Io));
    store.blob_remove(BLOB);
    store.commit_sync().unwrap();
    assert_eq!((read(&store, 0, 7), store.health().damage), (Ok(vec![]), vec![]));
    // The number can be another's.
    store.blob_write(BLOB, 0, b"anew").unwrap();
    store.sum_all().unwrap();
    assert_eq!(read(&store, 0, 7).unwrap(), b"anew");
}

#[test]
fn what_changes_while_it_is_summed_is_summed_another_time() {
    let directory = in_memory();
    let mut store = summed(directory.path(), 2);
    let path = file(directory.path());
    let mut now = 0;
    // Too young, then still and asked for, then changed before the sums are taken up.
    store.blob_write(BLOB, 0, &bytes(9)).unwrap();
    for _ in 0..2 {
        store.keep_up(now).unwrap();
        now += STILL_AFTER;
    }
    store.blob_write(BLOB, 0, &bytes(8)).unwrap();
    keep_up(&mut store, &mut now, STILL_AFTER, |health| health.fresh == 0);
    assert_eq!(read(&store, 0, BLOCK).unwrap(), bytes(8));
    flip(&path, 1);
    assert_eq!(read(&store, 0, BLOCK), Err(StoreError::Io));
}

#[test]
fn windows_are_dirty_one_by_one_and_holes_cost_nothing() {
    let directory = in_memory();
    let mut store = DiskStore::open(directory.path()).unwrap();
    let far = [0, WINDOW - BLOCK, WINDOW, 1000 * WINDOW + 5 * CHUNK];
    for place in far {
        store.blob_write(BLOB, place, &bytes(place / BLOCK)).unwrap();
    }
    assert_eq!(store.health().fresh, 3);
    store.sum_all().unwrap();
    assert_eq!(store.health().fresh, 0);
    store.blob_write(BLOB, WINDOW, &[1]).unwrap();
    assert_eq!(store.health().fresh, 1);
    // Cut all but the first block: two windows have sums that do not hold any more.
    store.blob_truncate(BLOB, BLOCK).unwrap();
    assert_eq!(store.health().fresh, 3);
    store.blob_truncate(BLOB, 2000 * WINDOW).unwrap();
    store.sum_all().unwrap();
    assert_eq!(store.health().fresh, 0);
    for place in far {
        let expected = if place == 0 { bytes(0) } else { vec![0; to_usize(BLOCK)] };
        assert_eq!(read(&store, place, BLOCK).unwrap(), expected);
    }
    store.blob_punch(BLOB, 0, u64::MAX).unwrap();
    assert_eq!(read(&store, 0, BLOCK).unwrap(), vec![0; to_usize(BLOCK)]);
}

#[test]
fn a_scrub_finds_what_nobody_reads_and_sums_what_has_no_sums() {
    let directory = in_memory();
    let mut store = summed(directory.path(), 100);
    for blob in 2..600 {
        store.blob_write(blob, 0, &blob.to_be_bytes()).unwrap();
    }
    store.commit().unwrap();
    // As in a store of before there were checksums.
    store.checksums_mut().dirty.clear();
    flip(&file(directory.path()), 99 * BLOCK);
    let health = store.scrub_all().unwrap();
    assert_eq!(health.damage, [Damage { blob: BLOB, offset: 99 * BLOCK }]);
    assert_eq!((health.checked, health.fresh), ((4 + 598) * CHUNK, 0));
    assert_eq!((health.scrubs, health.percent, health.is_map_damaged), (1, None, false));
    // What is mended is well the next time, and nothing is without sums any more.
    flip(&file(directory.path()), 99 * BLOCK);
    let health = store.scrub_all().unwrap();
    assert_eq!((health.checked, health.damage), ((4 + 598) * CHUNK, vec![]));
    // A file that is not there any more is damage, unless its blob was removed.
    for blob in 2..600 {
        store.blob_remove(blob);
    }
    store.commit_sync().unwrap();
    std::fs::remove_file(file(directory.path())).unwrap();
    let health = store.scrub_all().unwrap();
    assert_eq!(health.damage.iter().map(|damage| damage.blob).collect::<Vec<_>>(), [BLOB; 4]);
    assert_eq!(health.checked, 4 * CHUNK);
}

#[test]
fn what_cannot_be_looked_at_is_not_said_to_be_damaged() {
    let directory = in_memory();
    let mut store = summed(directory.path(), 1);
    std::fs::remove_file(file(directory.path())).unwrap();
    std::fs::create_dir(file(directory.path())).unwrap();
    let health = store.scrub_all().unwrap();
    // Neither when it is listed, nor when it is compared.
    assert_eq!((health.checked, health.unchecked, health.damage), (0, 2, vec![]));
}

#[test]
fn what_the_disk_has_lost_behind_a_write_stays_an_error() {
    let directory = in_memory();
    let mut store = summed(directory.path(), 32);
    let blob = OpenOptions::new().write(true).open(file(directory.path())).unwrap();
    blob.set_len(2 * BLOCK).unwrap();
    let all: Vec<u8> = (0..3).flat_map(bytes).collect();
    assert_eq!(store.blob_write(BLOB, 0, &all), Err(StoreError::Io));
    assert_eq!(read(&store, 20 * BLOCK, BLOCK), Err(StoreError::Io));
    // Also the last part of a block.
    let directory = in_memory();
    let mut store = summed(directory.path(), 2);
    store.blob_write(BLOB, 2 * BLOCK, &[1; 2048]).unwrap();
    store.sum_all().unwrap();
    let blob = OpenOptions::new().write(true).open(file(directory.path())).unwrap();
    blob.set_len(2 * BLOCK).unwrap();
    assert_eq!(store.blob_write(BLOB, 2 * BLOCK, &[2; 8]), Err(StoreError::Io));
}

#[test]
fn zeros_that_were_written_are_summed_as_well() {
    let directory = in_memory();
    let mut store = DiskStore::open(directory.path()).unwrap();
    store.blob_write(BLOB, 0, &vec![0; to_usize(2 * CHUNK)]).unwrap();
    store.sum_all().unwrap();
    flip(&file(directory.path()), CHUNK + 5);
    assert_eq!(read(&store, 0, CHUNK).unwrap(), vec![0; to_usize(CHUNK)]);
    assert_eq!(read(&store, CHUNK, 1), Err(StoreError::Io));
}

/// A window with sums and a chunk that has been written since; another chunk of it goes bad, and then the server ends.
fn ended_with_a_dirty_window(directory: &Path, is_orderly: bool) -> DiskStore {
    let mut store = summed(directory, 40);
    store.blob_write(BLOB, 33 * BLOCK, &bytes(1)).unwrap();
    store.commit().unwrap();
    flip(&file(directory), 2 * BLOCK);
    if is_orderly {
        store.finish().unwrap();
    }
    drop(store);
    DiskStore::open(directory).unwrap()
}

#[test]
fn after_an_orderly_end_it_is_known_what_has_changed() {
    let directory = in_memory();
    let mut store = ended_with_a_dirty_window(directory.path(), true);
    for _ in 0..2 {
        assert_eq!(read(&store, 2 * BLOCK, BLOCK), Err(StoreError::Io));
        assert_eq!(read(&store, 33 * BLOCK, BLOCK).unwrap(), bytes(1));
        store.sum_all().unwrap();
    }
    // What was known does not hold for the next end.
    store.blob_write(BLOB, 33 * BLOCK, &bytes(3)).unwrap();
    store.finish().unwrap();
    drop(store);
    let mut store = DiskStore::open(directory.path()).unwrap();
    let all: Vec<u8> = (100..132).flat_map(bytes).collect();
    store.blob_write(BLOB, 0, &all).unwrap();
    drop(store);
    let store = DiskStore::open(directory.path()).unwrap();
    assert_eq!(read(&store, 0, 32 * BLOCK).unwrap(), all);
}

#[test]
fn after_a_crash_what_may_have_been_changed_is_not_an_error() {
    let directory = in_memory();
    let mut store = ended_with_a_dirty_window(directory.path(), false);
    // Who could know that it was the disk?
    assert_ne!(read(&store, 2 * BLOCK, BLOCK).unwrap(), bytes(2));
    store.sum_all().unwrap();
    assert_ne!(read(&store, 2 * BLOCK, BLOCK).unwrap(), bytes(2));
}

#[test]
fn a_crash_behind_a_write_to_what_a_scrub_has_taken_up_shows_no_damage() {
    let directory = in_memory();
    let (path, copied) = (directory.path().join("store"), directory.path().join("copy"));
    let mut store = summed(&path, 32);
    // From before there were checksums.
    let blob = OpenOptions::new().write(true).open(file(&path)).unwrap();
    blob.write_all_at(&bytes(5), CHUNK).unwrap();
    store.checksums_mut().take_up(BLOB, &(CHUNK..CHUNK + BLOCK)).unwrap();
    store.blob_write(BLOB, 0, &bytes(6)).unwrap();
    // Nothing is committed; what follows is what a successor finds.
    copy(&path, &copied);
    let store = DiskStore::open(&copied).unwrap();
    assert_eq!(read(&store, 0, BLOCK).unwrap(), bytes(6));
}

#[test]
fn sums_of_a_blob_that_is_gone_are_not_taken_for_those_of_another() {
    let directory = in_memory();
    let mut store = DiskStore::open(directory.path()).unwrap();
    store.blob_write(BLOB, 0, &bytes(1)).unwrap();
    store.commit().unwrap();
    let (still, _) = store.checksums_mut().take_still(None, true, 10);
    let rows = [(0, sum(BLOB, 0, &bytes(1)))].into();
    store.blob_remove(BLOB);
    store.commit_sync().unwrap();
    store.blob_write(BLOB, 0, &bytes(2)).unwrap();
    store.checksums_mut().take_still(None, false, 10);
    let mut batch = store.batch();
    let summed = Summed { rows, ..Summed::default() };
    store.checksums_mut().put_summed(&still[0], &summed, &mut batch).unwrap();
    batch.commit().unwrap();
    store.checksums_mut().take_still(None, false, 10);
    assert_eq!(read(&store, 0, BLOCK).unwrap(), bytes(2));
}

#[test]
fn the_sums_of_a_large_blob_go_bit_by_bit_also_over_a_restart() {
    let directory = in_memory();
    let mut store = DiskStore::open(directory.path()).unwrap();
    let chunks = 2 * crate::limits::FORGET_MAX as u64 + 10;
    for chunk in 0..chunks {
        store.blob_write(BLOB, chunk * CHUNK, &[1]).unwrap();
    }
    store.sum_all().unwrap();
    let rows = |store: &mut DiskStore| {
        store.checksums_mut().rows_behind(None, usize::MAX).unwrap().len() as u64
    };
    assert_eq!(rows(&mut store), chunks);
    store.blob_remove(BLOB);
    store.commit_sync().unwrap();
    assert!(!store.wants_sweep() && rows(&mut store) > 0);
    drop(store);
    let mut store = DiskStore::open(directory.path()).unwrap();
    let left = rows(&mut store);
    assert!(left > 0 && left < chunks, "{left}");
    // Meanwhile it is gone for who looks, and its number can be another's.
    assert_eq!((read(&store, 0, 1), store.health().damage), (Ok(vec![]), vec![]));
    store.blob_write(BLOB, 0, b"new").unwrap();
    store.commit().unwrap();
    for now in 0..2 {
        store.keep_up(now).unwrap();
    }
    store.sum_all().unwrap();
    drop(store);
    let mut store = DiskStore::open(directory.path()).unwrap();
    assert_eq!(read(&store, 0, 10).unwrap(), b"new");
    assert_eq!(rows(&mut store), 1);
    // And without that it goes on by itself.
    for chunk in 0..chunks {
        store.blob_write(BLOB, chunk * CHUNK, &[1]).unwrap();
    }
    store.sum_all().unwrap();
    store.blob_remove(BLOB);
    store.commit_sync().unwrap();
    for now in 0..2 {
        store.keep_up(now).unwrap();
    }
    assert_eq!(rows(&mut store), 0);
    drop(store);
    assert!(!DiskStore::open(directory.path()).unwrap().wants_sweep());
}

#[test]
fn a_weekly_scrub_begins_by_itself_and_takes_its_time() {
    let directory = in_memory();
    let store = summed(directory.path(), 1);
    let long_ago = std::time::SystemTime::now() - SCRUB_EVERY;
    let scrubbed = OpenOptions::new().write(true).open(directory.path().join("scrubbed")).unwrap();
    scrubbed.set_modified(long_ago).unwrap();
    assert_eq!(scrubbed.metadata().unwrap().modified().unwrap(), long_ago);
    drop(store);
    let mut store = DiskStore::open(directory.path()).unwrap();
    let mut now = STILL_AFTER;
    store.keep_up(now).unwrap();
    assert_eq!(store.health().percent, Some(0));
    let start = now;
    keep_up(&mut store, &mut now, SCRUB_PAUSE / 4, |health| health.percent.is_none());
    // At least a pause for each directory.
    assert!(now - start >= 256 * SCRUB_PAUSE, "{now}");
    assert!(store.health().last > 0);
}

#[test]
fn any_byte_of_the_map_that_is_changed_is_noticed() {
    let directory = in_memory();
    let path = directory.path().join("store");
    let key = |number: u32| [b"k", &number.to_be_bytes()[..]].concat();
    // One by one, and all at once.
    let all = |store: &DiskStore| {
        let mut pairs = Vec::new();
        for number in 0..200 {
            pairs.extend(store.get(&key(number)).map(|value| (key(number), value)));
        }
        store.range(b"", b"z", &mut |key, value| {
            pairs.push((key.to_vec(), value.to_vec()));
            std::ops::ControlFlow::Continue(())
        });
        pairs
    };
    let mut store = DiskStore::open_sized(&path, 16 << 10).unwrap();
    for round in 0..40_u8 {
        for number in 0..40 {
            store.put(&key((u32::from(round) * 5 + number * 7) % 200), &[round; 90]);
        }
        store.commit_sync().unwrap();
    }
    store.write_table();
    let truth = all(&store);
    drop(store);
    let (mut refused, mut seen, mut unread) = (0, 0, 0);
    let place = directory.path().join("damaged");
    for (number, original) in files(&path).into_iter().enumerate() {
        let name = original.strip_prefix(&path).unwrap();
        // The journal is longer than what is in it.
        let length = original.metadata().unwrap().len().min(40_000);
        for offset in (number as u64 % 7..length).step_by(to_usize((length / 4).max(1))) {
            copy(&path, &place);
            flip(&place.join(name), offset);
            let looked =
                std::panic::catch_unwind(|| DiskStore::open(&place).map(|store| all(&store)));
            match looked {
                Ok(Ok(found)) => {
                    assert!(found == truth, "byte {offset} of {}", name.display());
                    unread += 1;
                }
                Ok(Err(_)) => refused += 1,
                Err(cause) => {
                    let failure = cause.downcast_ref::<crate::host::disk::StoreFailure>();
                    assert!(failure.is_some(), "byte {offset} of {}", name.display());
                    seen += 1;
                }
            }
            std::fs::remove_dir_all(&place).unwrap();
        }
    }
    assert!(refused > 10 && seen > 0, "{refused} refused, {seen} seen, {unread} not read");
}

/// What cannot be compared cannot be read, and nothing else is harmed: neither the store, nor what has other sums.
#[test]
fn a_byte_of_the_sums_that_is_changed_costs_what_they_are_of_at_most() {
    let directory = in_memory();
    let (path, place) = (directory.path().join("store"), directory.path().join("damaged"));
    let mut store = DiskStore::open_sized(&path, 16 << 10).unwrap();
    // The last byte of a chunk makes its row as long as rows get.
    let last = |chunk: u64| (chunk + 1) * CHUNK - 1;
    let chunks = 0..300;
    for chunk in chunks.clone() {
        store.blob_write(BLOB, last(chunk), &[7]).unwrap();
    }
    store.sum_all().unwrap();
    store.finish().unwrap();
    drop(store);
    // What is behind the limit of memory becomes a table when it is opened again.
    drop(DiskStore::open_sized(&path, 16 << 10).unwrap());
    let (mut refused, mut lost, mut harmless) = (0, 0, 0);
    for original in files(&path.join("map/keyspaces")) {
        let name = original.strip_prefix(&path).unwrap();
        let length = original.metadata().unwrap().len();
        for offset in (0..length).step_by(to_usize((length / 5).max(1))) {
            copy(&path.join("map"), &place.join("map"));
            std::os::unix::fs::symlink(path.join("blobs"), place.join("blobs")).unwrap();
            flip(&place.join(name), offset);
            match DiskStore::open_sized(&place, 16 << 10) {
                Err(_) => refused += 1,
                Ok(store) => {
                    let found = chunks.clone().map(|chunk| read(&store, last(chunk), 1));
                    let bad = found.filter(|found| *found != Ok(vec![7])).collect::<Vec<_>>();
                    assert!(bad.iter().all(|bad| *bad == Err(StoreError::Io)), "{bad:?}");
                    assert!(bad.len() < 150, "{} of {offset} in {}", bad.len(), name.display());
                    if bad.is_empty() { harmless += 1 } else { lost += 1 }
                }
            }
            std::fs::remove_file(place.join("blobs")).unwrap();
            std::fs::remove_dir_all(&place).unwrap();
        }
    }
    assert!(lost > 0, "{refused} refused, {lost} lost, {harmless} harmless");
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(self::files(&path)) } else { files.push(path) }
    }
    files.retain(|path| path.metadata().unwrap().len() > 0);
    files.sort();
    files
}

#[test]
fn a_set_of_chunks_is_what_its_ranges_are() {
    let all = Chunks::of(&(0..WINDOW), 0);
    assert_eq!(all, Chunks::ALL);
    assert_eq!(Chunks::of(&(0..u64::MAX), 77), Chunks::ALL);
    let some = Chunks::of(&(WINDOW - 1..WINDOW + CHUNK + 1), 1);
    assert_eq!(some.in_window(1).collect::<Vec<_>>(), [CHUNKS, CHUNKS + 1]);
    assert_eq!(
        Chunks::of(&(WINDOW - 1..WINDOW + CHUNK + 1), 0).in_window(0).collect::<Vec<_>>(),
        [63]
    );
    assert!(all.without(Chunks::ALL).is_empty() && some.has(1) && !some.has(2));
}
