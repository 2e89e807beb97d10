//! The bytes of files, names without files, files without names, and listing what changes meanwhile.

use crate::limits::FILE_SIZE_MAX;
use crate::linux::{
    FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE, O_APPEND, O_DIRECTORY,
    O_DSYNC, O_EXCL, O_NOATIME, O_TRUNC, RENAME_EXCHANGE, SEEK_DATA, SEEK_HOLE,
};
use crate::tests::driver::{ALIEN, MATE, ROOT, USER, World};
use crate::tests::errors::world;
use crate::tests::fsck;
use calls::vfs::{FsStats, Health, NO_SCRUB, ROOT_INO, Scrub, Statfs, WRITE_APPEND, WRITE_AT};
use calls::wire::Wire;
use dvk::host::disk::DiskStore;
use dvk::store::Store;
use m3ipc::errno::numbers::{EBADF, EFBIG, EINVAL, ENOENT, ENXIO, EPERM, ESTALE};
use std::collections::BTreeSet;

#[test]
fn the_root_is_everybodys_and_sticky() {
    let mut w = World::new();
    let root = w.stat(&USER, "/").unwrap();
    assert_eq!((root.ino, root.mode, root.nlink, root.uid), (ROOT_INO, 0o041_777, 2, 0));
    assert_eq!(w.stat(&USER, "/..").unwrap().ino, ROOT_INO);
    w.put(&USER, "/f", 0o644, b"").unwrap();
}

#[test]
fn what_was_written_is_read_on_every_node() {
    let mut w = world();
    let writer = w.open(&USER, "/u/f", 2).unwrap();
    let reader = w.open(&ALIEN, "/u/f", 0).unwrap();
    assert_eq!(w.write(&writer, 3, b"p me"), Ok(4));
    assert_eq!(w.read(&reader, 0, 99).unwrap(), b"help me");
    assert_eq!(w.read(&reader, 5, 1).unwrap(), b"m");
    assert_eq!(w.read(&reader, 7, 9).unwrap(), b"");
    assert_eq!(w.fstat(&reader).unwrap().size, 7);
}

#[test]
fn a_gap_reads_as_zeros_also_where_there_was_something_before() {
    let mut w = world();
    let file = w.open(&USER, "/u/f", 2).unwrap();
    w.write(&file, 0, &[7; 100]).unwrap();
    w.ftruncate(&file, 10).unwrap();
    w.ftruncate(&file, 50).unwrap();
    assert_eq!(w.read(&file, 0, 99).unwrap(), [&[7; 10][..], &[0; 40]].concat());
    w.ftruncate(&file, 5).unwrap();
    w.write(&file, 60, b"x").unwrap();
    assert_eq!(w.read(&file, 0, 99).unwrap(), [&[7; 5][..], &[0; 55], b"x"].concat());
    w.ftruncate(&file, 0).unwrap();
    w.fallocate(&file, 0, 20, 0).unwrap();
    assert_eq!(w.read(&file, 0, 99).unwrap(), [0; 20]);
}

#[test]
fn a_crash_between_a_blob_and_its_commit_shows_nothing() {
    let mut w = world();
    let file = w.open(&USER, "/u/f", 2).unwrap();
    w.crash_in(|w| assert_eq!(w.write(&file, 5, &[9; 50]), Ok(50)));
    assert_eq!(w.read(&file, 0, 99).unwrap(), b"hello", "the size in the map is the truth");
    w.ftruncate(&file, 8).unwrap();
    assert_eq!(w.read(&file, 0, 99).unwrap(), b"hello\0\0\0");
    let mut w = world();
    let file = w.open(&USER, "/u/f", 2).unwrap();
    w.crash_in(|w| assert_eq!(w.ftruncate(&file, 2).unwrap().size, 2));
    assert_eq!(w.read(&file, 0, 99).unwrap(), b"hello");
    w.crash_in(|w| w.rename(&USER, "/u/d/f", "/u/f", 0).unwrap());
    w.release(&file).unwrap();
    w.crash_in(|w| w.rename(&USER, "/u/d/f", "/u/f", 0).unwrap());
    assert_eq!(
        w.cat(&USER, "/u/f").unwrap(),
        b"hello",
        "a replaced file is whole until the commit"
    );
    assert_eq!(w.cat(&USER, "/u/d/f").unwrap(), b"deep");
}

#[test]
fn appends_of_two_nodes_never_overwrite_each_other() {
    let mut w = world();
    w.put(&USER, "/t/log", 0o666, b"").unwrap();
    let files = [&USER, &MATE].map(|client| w.open(client, "/t/log", O_APPEND | 1).unwrap());
    for at in 0..10 {
        for file in &files {
            // Each believes to know the end; only the server does.
            w.write(file, at, b"ab").unwrap();
        }
    }
    assert_eq!(w.cat(&USER, "/t/log").unwrap(), b"ab".repeat(20));
    w.write(&files[0], WRITE_AT | 3, b"X").unwrap();
    let file = w.open(&USER, "/t/log", 1).unwrap();
    w.write(&file, WRITE_APPEND, b"end").unwrap();
    assert_eq!(w.cat(&USER, "/t/log").unwrap(), [b"abaX", &b"ab".repeat(18)[..], b"end"].concat());
}

#[test]
fn truncation_on_open_empties_and_creation_does_not() {
    let mut w = world();
    w.create(&USER, "/u/f", 0o600, 1).unwrap();
    assert_eq!(w.cat(&USER, "/u/f").unwrap(), b"hello");
    let file = w.open(&USER, "/u/f", O_TRUNC | 1).unwrap();
    assert_eq!(w.fstat(&file).unwrap().size, 0);
    w.write(&file, 0, b"new").unwrap();
    w.create(&USER, "/u/f", 0o600, 1 | O_TRUNC).unwrap();
    let attr = w.stat(&USER, "/u/f").unwrap();
    assert_eq!((attr.size, attr.mode & 0o7777), (0, 0o644), "the mode is for new files");
}

#[test]
fn holes_are_punched_zeroed_and_found() {
    let mut w = world();
    let file = w.open(&USER, "/u/f", 2).unwrap();
    w.write(&file, 0, &[1; 20]).unwrap();
    w.fallocate(&file, 5, 5, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE).unwrap();
    w.fallocate(&file, 18, 10, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE).unwrap();
    let want = [&[1; 5][..], &[0; 5], &[1; 8], &[0; 2]].concat();
    assert_eq!(w.read(&file, 0, 99).unwrap(), want);
    w.fallocate(&file, 19, 5, FALLOC_FL_ZERO_RANGE).unwrap();
    assert_eq!(w.read(&file, 0, 99).unwrap(), [&want[..], &[0; 4]].concat());
    w.fallocate(&file, 0, 40, FALLOC_FL_KEEP_SIZE).unwrap();
    assert_eq!(w.fstat(&file).unwrap().size, 24);
    w.ftruncate(&file, 1 << 40).unwrap();
    assert_eq!(w.seek(&file, 3, SEEK_DATA), Ok(3));
    let hole = w.seek(&file, 3, SEEK_HOLE).unwrap();
    assert!((20..=24).contains(&hole), "{hole}");
    assert_eq!(w.seek(&file, 1 << 30, SEEK_HOLE), Ok(1 << 30));
}

#[test]
fn holes_of_sparse_files_on_disk_are_found() {
    const MIB: u64 = 1 << 20;
    let directory = tempfile::tempdir().unwrap();
    let mut w = World::with_blobs(Box::new(DiskStore::open(directory.path()).unwrap()));
    let file = w.create(&USER, "/f", 0o644, 2).unwrap();
    w.write(&file, 2 * MIB, &[1; 4096]).unwrap();
    w.ftruncate(&file, 1 << 40).unwrap();
    assert_eq!(w.seek(&file, 0, SEEK_HOLE), Ok(0));
    assert_eq!(w.seek(&file, 0, SEEK_DATA), Ok(2 * MIB));
    assert_eq!(w.seek(&file, 2 * MIB, SEEK_HOLE), Ok(2 * MIB + 4096));
    assert_eq!(w.seek(&file, 3 * MIB, SEEK_DATA), Err(ENXIO));
    assert_eq!(w.seek(&file, 3 * MIB, SEEK_HOLE), Ok(3 * MIB));
    assert!(w.fstat(&file).unwrap().blocks < 100, "a terabyte that is not there");
    w.fallocate(&file, 2 * MIB, 4096, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE).unwrap();
    assert_eq!(w.seek(&file, 0, SEEK_DATA), Err(ENXIO));
}

#[test]
fn fsync_and_synchronous_writes_wait_for_the_disk() {
    let mut w = world();
    let file = w.open(&USER, "/u/f", 2).unwrap();
    w.write(&file, 0, b"x").unwrap();
    assert!(!w.sync);
    w.fsync(&file).unwrap();
    assert!(w.sync && w.store.synced == [file.ino]);
    let file = w.open(&USER, "/u/f", 2 | O_DSYNC).unwrap();
    w.write(&file, 0, b"x").unwrap();
    assert!(w.sync && w.store.synced.len() == 2);
    let dir = w.open(&USER, "/u/d", O_DIRECTORY).unwrap();
    w.fsync(&dir).unwrap();
    assert!(w.sync && w.store.synced.len() == 2);
}

#[test]
fn a_file_without_a_name_lives_until_its_last_handle() {
    let mut w = world();
    let files = [&USER, &ALIEN].map(|client| w.open(client, "/u/f", 0).unwrap());
    w.unlink(&USER, "/u/f").unwrap();
    w.pass(10);
    for file in &files {
        assert_eq!(w.fstat(file).unwrap().nlink, 0);
        assert_eq!(w.read(file, 0, 9).unwrap(), b"hello");
        w.release(file).unwrap();
    }
    w.pass(10);
    assert_eq!(w.getattr(&USER, files[0].ino).map(drop), Err(ESTALE));
    assert_eq!(w.store.blob_used(files[0].ino), 0);
}

#[test]
fn a_name_just_replaced_can_still_be_opened_by_who_has_looked_it_up() {
    let mut w = world();
    let ino = w.stat(&USER, "/u/f").unwrap().ino;
    w.rename(&USER, "/u/d/f", "/u/f", 0).unwrap();
    let file = w.open_ino(&MATE, ino, 0).unwrap();
    fsck::check(&mut w);
    w.pass(10);
    w.restart();
    assert_eq!(w.read(&file, 0, 9).unwrap(), b"hello");
    w.release(&file).unwrap();
    w.pass(10);
    assert_eq!(w.open_ino(&MATE, ino, 0).map(drop), Err(ESTALE));
}

#[test]
fn inode_and_handle_numbers_are_never_used_again() {
    let mut w = World::new();
    let (mut inos, mut handles) = (BTreeSet::new(), BTreeSet::new());
    for at in 0..20 {
        let file = w.create(&USER, "/f", 0o644, O_EXCL).unwrap();
        assert!(inos.insert(file.ino) && handles.insert(file.fh));
        w.unlink(&USER, "/f").unwrap();
        w.release(&file).unwrap();
        if at % 3 == 0 {
            w.pass(10);
            w.restart();
        }
    }
}

#[test]
fn link_counts_follow_names_and_subdirectories() {
    let mut w = world();
    let nlink = |w: &mut World, path: &str| w.stat(&ROOT, path).unwrap().nlink;
    assert_eq!(nlink(&mut w, "/u"), 4);
    w.rename(&USER, "/u/d/e", "/u/e", 0).unwrap();
    assert_eq!([nlink(&mut w, "/u"), nlink(&mut w, "/u/d")], [5, 2]);
    w.rename(&USER, "/u/e", "/u/empty", 0).unwrap();
    assert_eq!(nlink(&mut w, "/u"), 4);
    w.rename(&USER, "/u/f", "/u/d", RENAME_EXCHANGE).unwrap();
    assert_eq!([nlink(&mut w, "/u"), nlink(&mut w, "/u/d")], [4, 1]);
    w.mkdir(&USER, "/u/f/sub", 0o755).unwrap();
    w.put(&USER, "/u/x", 0o644, b"x").unwrap();
    w.rename(&USER, "/u/x", "/u/f/sub", RENAME_EXCHANGE).unwrap();
    assert_eq!([nlink(&mut w, "/u"), nlink(&mut w, "/u/f")], [5, 2]);
    assert_eq!(w.stat(&USER, "/u/x/..").unwrap().ino, w.stat(&USER, "/u").unwrap().ino);
}

#[test]
fn a_listing_meets_every_lasting_name_once_whatever_happens_meanwhile() {
    let mut w = World::new();
    w.mkdir(&USER, "/d", 0o755).unwrap();
    for at in 0..50 {
        w.put(&USER, &format!("/d/keep{at}"), 0o644, b"").unwrap();
        w.put(&USER, &format!("/d/lose{at}"), 0o644, b"").unwrap();
    }
    let dir = w.open(&USER, "/d", O_DIRECTORY).unwrap();
    let mut seen = Vec::new();
    let (mut cookie, mut step) = (0, 0);
    loop {
        let batch = w.readdir(&dir, cookie, 80).unwrap();
        let Some((last, _)) = batch.last() else { break };
        cookie = last.next;
        seen.extend(
            batch.into_iter().map(|(_, name)| name).filter(|name| name.starts_with("keep")),
        );
        // The entry the cookie points at, others, new ones, and one that comes to be another file.
        w.unlink(&USER, &format!("/d/lose{step}")).ok();
        w.put(&USER, &format!("/d/new{step}"), 0o644, b"").unwrap();
        w.rename(&USER, &format!("/d/new{step}"), &format!("/d/keep{}", 49 - step % 50), 0)
            .unwrap();
        step += 1;
        if step == 20 {
            w.restart();
        }
        assert!(step < 200, "it ends though names are made all the time");
    }
    seen.sort();
    let mut want: Vec<String> = (0..50).map(|at| format!("keep{at}")).collect();
    want.sort();
    assert_eq!(seen, want);
}

#[test]
fn a_listing_begins_with_dot_and_dot_dot_and_knows_types() {
    let mut w = world();
    let dir = w.open(&USER, "/u", O_DIRECTORY).unwrap();
    let entries = w.readdir(&dir, 0, 4096).unwrap();
    let kinds: Vec<(&str, u8)> =
        entries.iter().map(|(entry, name)| (&name[..], entry.kind)).collect();
    assert_eq!(
        kinds,
        [(".", 4), ("..", 4), ("f", 8), ("d", 4), ("empty", 4), ("l", 10), ("fifo", 1)]
    );
    assert_eq!((entries[0].0.ino, entries[1].0.ino), (dir.ino, ROOT_INO));
    for (at, (entry, _)) in entries.iter().enumerate() {
        let rest = w.readdir(&dir, entry.next, 4096).unwrap();
        assert_eq!(rest[..], entries[at + 1..], "from every cookie");
    }
    assert_eq!(w.readdir(&dir, u64::MAX, 4096), Ok(Vec::new()));
}

#[test]
fn rename_carries_a_whole_tree_and_its_parent_link() {
    let mut w = world();
    w.rename(&USER, "/u/d", "/t/moved", 0).unwrap();
    assert_eq!(w.cat(&USER, "/t/moved/f").unwrap(), b"deep");
    assert_eq!(w.stat(&USER, "/u/d").map(drop), Err(ENOENT));
    let (parent, up) =
        (w.stat(&USER, "/t").unwrap().ino, w.stat(&USER, "/t/moved/..").unwrap().ino);
    assert_eq!(parent, up);
    assert_eq!(w.readlink(&USER, "/u/l").unwrap(), "f");
}

#[test]
fn statfs_counts_inodes_and_space() {
    let mut w = world();
    let stats = |w: &mut World| {
        let (_, payload) = w.call(&USER, &Statfs { ino: ROOT_INO }, &[]).unwrap();
        FsStats::get(&payload).unwrap()
    };
    let before = stats(&mut w);
    w.put(&USER, "/u/new", 0o644, &[1; 8192]).unwrap();
    let after = stats(&mut w);
    assert_eq!(before.files_free - after.files_free, 1);
    assert_eq!(before.blocks_free - after.blocks_free, 2);
    assert!(after.blocks_available < after.blocks_free && after.blocks_free < after.blocks);
    assert_eq!((after.name_max, after.block_size), (255, 4096));
    assert_eq!(w.stat(&USER, "/u/new").unwrap().blocks, 16);
    w.unlink(&USER, "/u/new").unwrap();
    w.pass(10);
    assert_eq!(stats(&mut w).files_free, before.files_free);
}

#[test]
fn anybody_may_ask_how_well_files_are_stored_and_user_0_have_them_compared() {
    let mut w = world();
    assert_eq!(w.call(&USER, &Scrub { begin: 1 }, &[]).map(drop), Err(EPERM));
    for (cred, begin) in [(&USER, 0), (&ROOT, 1)] {
        let (count, payload) = w.call(cred, &Scrub { begin }, &[]).unwrap();
        let expected = Health { percent: NO_SCRUB, ..Health::default() };
        // A store in memory has nothing to compare.
        assert_eq!((count.count, Health::get(&payload)), (0, Some(expected)));
        assert_eq!(payload.len(), Health::SIZE);
    }
}

#[test]
fn a_range_is_copied_as_by_a_read_and_a_write() {
    let mut w = world();
    let source = w.open(&USER, "/u/f", 0).unwrap();
    let target = w.create(&USER, "/u/copy", 0o666, 2).unwrap();
    assert_eq!(w.copy((&source, 1), (&target, 2), 3), Ok(3));
    assert_eq!(w.cat(&USER, "/u/copy").unwrap(), b"\0\0ell");
    assert_eq!(w.copy((&source, 3), (&target, 0), 100), Ok(2), "to the end of the file");
    assert_eq!(w.cat(&USER, "/u/copy").unwrap(), b"loell");
    assert_eq!(w.copy((&source, 5), (&target, 0), 100), Ok(0));
    assert_eq!(w.copy((&target, 0), (&target, 3), 2), Ok(2));
    assert_eq!(w.cat(&USER, "/u/copy").unwrap(), b"loelo");
    for (from, to) in [(0, 1), (1, 0), (0, 0)] {
        assert_eq!(w.copy((&target, from), (&target, to), 2), Err(EINVAL), "they overlap");
    }
    assert_eq!(w.copy((&target, 0), (&source, 9), 2), Err(EBADF), "opened to read");
    let appending = w.open(&USER, "/u/copy", 2 | O_APPEND).unwrap();
    assert_eq!(w.copy((&source, 0), (&appending, 0), 2), Err(EBADF));
    assert_eq!(w.copy((&source, 0), (&target, u64::MAX), 2), Err(EINVAL));
    assert_eq!(w.copy((&source, u64::MAX), (&target, 0), 2), Err(EINVAL));
    assert_eq!(w.copy((&source, 0), (&target, FILE_SIZE_MAX), 2), Err(EFBIG));
    let atime = |w: &mut World| w.stat(&USER, "/u/f").unwrap().atime;
    let before = atime(&mut w);
    w.pass(2 * 24 * 60 * 60);
    let quiet = w.open(&USER, "/u/f", O_NOATIME).unwrap();
    assert_eq!(w.copy((&quiet, 0), (&target, 0), 1), Ok(1));
    assert_eq!(atime(&mut w), before);
    assert_eq!(w.copy((&source, 0), (&target, 0), 1), Ok(1));
    assert_ne!(atime(&mut w), before, "it has been read");
    // Zeros behind the end become a hole.
    let holes = w.create(&USER, "/u/holes", 0o666, 2).unwrap();
    w.truncate(&USER, "/u/holes", 1 << 20).unwrap();
    assert_eq!(w.copy((&holes, 0), (&target, 1 << 20), 1 << 20), Ok(1 << 20));
    let size = w.stat(&USER, "/u/copy").unwrap().size;
    assert_eq!((size, w.store.blob_used(target.ino) < 1 << 20), (2 << 20, true));
}
