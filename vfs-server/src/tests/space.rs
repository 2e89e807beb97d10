//! A disk that is full or broken: the call fails, nothing else changes, and deleting helps at once.

use crate::limits::{RECLAIM_BATCH, SPACE_RESERVE};
use crate::tests::driver::{ROOT, USER, World};
use crate::tests::errors::world;
use calls::vfs::Setxattr;
use dvk::server::Server;
use dvk::store::{Store, StoreError};
use m3ipc::errno::numbers::{EIO, ENOSPC, ESTALE};

#[test]
fn the_reserve_is_refused_to_growing_calls_and_not_to_shrinking_ones() {
    let mut w = world();
    let file = w.open(&USER, "/u/f", 2).unwrap();
    w.restart(); // forgets how much was free
    w.store.free = Some(SPACE_RESERVE);
    assert_eq!(w.write(&file, 0, b"x"), Err(ENOSPC));
    assert_eq!(w.mkdir(&USER, "/u/n", 0o755).map(drop), Err(ENOSPC));
    assert_eq!(w.create(&USER, "/u/n", 0o644, 1).map(drop), Err(ENOSPC));
    assert_eq!(w.symlink(&USER, "/u/n", "x").map(drop), Err(ENOSPC));
    assert_eq!(w.link(&USER, "/u/f", "/u/n").map(drop), Err(ENOSPC));
    assert_eq!(w.setxattr(&USER, "/u/f", "user.a", b"", 0), Err(ENOSPC));
    assert_eq!(w.read(&file, 0, 9).unwrap(), b"hello");
    assert_eq!(w.rename(&USER, "/u/f", "/u/g", 0), Ok(()));
    assert_eq!(w.ftruncate(&file, 1).map(|attr| attr.size), Ok(1));
    assert_eq!(w.unlink(&USER, "/u/g"), Ok(()));
    w.store.free = Some(SPACE_RESERVE + 4096);
    assert_eq!(w.write(&file, 0, &[1; 4096]), Ok(4096));
    w.store.free = Some(SPACE_RESERVE);
    assert_eq!(w.write(&file, 0, b"x"), Err(ENOSPC), "it asks again when the grant is used up");
}

#[test]
fn a_failed_write_leaves_the_file_as_it_was() {
    for (broken, want) in [(StoreError::Full, ENOSPC), (StoreError::Io, EIO)] {
        let mut w = world();
        w.chmod(&USER, "/u/f", 0o4644).unwrap();
        let file = w.open(&USER, "/u/f", 2).unwrap();
        let before = w.fstat(&file).unwrap();
        w.store.broken = Some(broken);
        assert_eq!(w.write(&file, 0, b"x"), Err(want));
        assert_eq!(w.fallocate(&file, 0, 3, 3), Err(want));
        assert_eq!(w.fstat(&file).unwrap(), before);
        assert_eq!(w.read(&file, 0, 9).unwrap(), b"hello");
    }
}

#[test]
fn deleting_makes_room_for_the_next_write_at_once() {
    let mut w = World::new();
    let (total, _) = w.store.space();
    let ino = w.put(&ROOT, "/big", 0o644, &[1; 100_000]).unwrap();
    assert_eq!(w.store.blob_used(ino), 100_000);
    w.unlink(&ROOT, "/big").unwrap();
    assert_eq!(w.store.blob_used(ino), 100_000, "not in the round that deletes");
    // A call that finds the disk full looks for what can be reclaimed before it gives up, and what
    // it finds is free even if the store has not given it back to the disk yet.
    let file = w.create(&ROOT, "/new", 0o644, 1).unwrap();
    w.restart();
    w.store.free = Some(0);
    assert_eq!(w.write(&file, 0, &[0; 99_000]), Ok(99_000));
    assert_eq!(w.store.blob_used(ino), 0);
    assert_eq!(w.write(&file, 0, &[0; 2_000]), Err(ENOSPC));
    w.store.free = Some(total);
    assert_eq!(w.write(&file, 0, &[0; 2_000]), Ok(2_000));
}

/// Who looks for room may find the inode that it is for.
#[test]
fn an_attribute_does_not_bring_an_inode_back() {
    for name in ["user.a", "system.posix_acl_access"] {
        let mut w = World::new();
        let ino = w.put(&ROOT, "/f", 0o644, &[1; 100_000]).unwrap();
        w.unlink(&ROOT, "/f").unwrap();
        w.restart();
        w.store.free = Some(0);
        let row = Setxattr { ino, name_len: name.len().try_into().unwrap(), flags: 0 };
        let value = [
            &2_u32.to_le_bytes()[..],
            &[1, 0, 6, 0],
            &[0xff; 4],
            &[4, 0, 4, 0],
            &[0xff; 4],
            &[32, 0, 4, 0],
            &[0xff; 4],
        ]
        .concat();
        let payload = [name.as_bytes(), &value].concat();
        assert_eq!(w.call(&ROOT, &row, &payload).map(drop), Err(ESTALE), "{name}");
    }
}

#[test]
fn garbage_outlives_the_tick_that_may_be_in_its_own_round() {
    let mut w = World::new();
    let ino = w.put(&USER, "/f", 0o644, b"data").unwrap();
    w.put(&USER, "/g", 0o644, b"data").unwrap();
    w.unlink(&USER, "/g").unwrap();
    w.clock = w.server.deadline().unwrap();
    w.unlink(&USER, "/f").unwrap();
    w.tick();
    assert_eq!(w.store.blob_used(ino), 4);
    w.clock = w.server.deadline().unwrap();
    w.tick();
    assert_eq!(w.store.blob_used(ino), 0);
}

#[test]
fn garbage_is_reclaimed_in_later_ticks_a_few_at_a_time_and_then_the_server_is_idle() {
    let mut w = World::new();
    let count = RECLAIM_BATCH * 3;
    let inos: Vec<u64> =
        (0..count).map(|at| w.put(&USER, &format!("/f{at}"), 0o644, b"data").unwrap()).collect();
    assert_eq!(w.server.deadline(), None, "nothing to do, nothing to wake up for");
    for at in 0..count {
        w.unlink(&USER, &format!("/f{at}")).unwrap();
    }
    assert!(w.server.deadline().is_some());
    w.restart();
    assert!(w.server.deadline().is_some(), "it is known after a crash");
    w.pass(10);
    assert!(inos.iter().all(|ino| w.store.blob_used(*ino) == 0));
    assert_eq!(w.server.deadline(), None);
}

/// A crash in the round that makes it shorter once more, and that gives back what it lost the first time, must not cost what is committed.
#[test]
fn only_what_was_given_up_long_ago_is_cut() {
    let mut w = World::new();
    w.put(&USER, "/f", 0o644, &[1; 100]).unwrap();
    w.truncate(&USER, "/f", 50).unwrap();
    w.clock = w.server.deadline().unwrap();
    w.tick();
    w.clock = w.server.deadline().unwrap();
    w.crash_in(|w| {
        w.truncate(&USER, "/f", 10).unwrap();
        w.tick();
    });
    assert_eq!(w.cat(&USER, "/f").unwrap(), [1; 50]);
}

#[test]
fn a_shortened_file_gives_back_its_space() {
    let mut w = World::new();
    let ino = w.put(&USER, "/f", 0o644, &[1; 10_000]).unwrap();
    w.truncate(&USER, "/f", 10).unwrap();
    w.pass(10);
    assert_eq!(w.store.blob_used(ino), 10);
    w.truncate(&USER, "/f", 1 << 40).unwrap();
    w.pass(10);
    assert_eq!(w.store.blob_used(ino), 10, "a hole costs nothing");
}
