//! Snapshots: what they show, what they refuse, and that nothing of them is left when they are gone. (What they show whatever happens: `model.rs`.)

use crate::limits::{SPACE_KNOWN, SPACE_RESERVE};
use crate::linux::{O_APPEND, O_TRUNC, SEEK_DATA, SEEK_HOLE};
use crate::tests::driver::{ALIEN, Client, Got, MATE, ROOT, USER, World};
use crate::tests::fsck;
use crate::tests::leases::agent;
use calls::vfs::{
    IN_SNAPSHOT, Lookup, NO_LIMIT, RemoveSnapshot, SetQuota, Setxattr, SnapshotHead, Snapshots,
    TakeSnapshot,
};
use calls::wire::Wire;
use dvk::server::Server;
use dvk::store::{Store, StoreError};
use m3ipc::Cred;
use m3ipc::errno::numbers::{
    EACCES, EEXIST, EINVAL, EISDIR, ENAMETOOLONG, ENOENT, ENOSPC, ENOTEMPTY, EPERM, EROFS, ESTALE,
    EXDEV,
};

/// The administrator.
const ADMIN: Client = Client { cred: Cred::ROOT, ..ROOT };

pub(crate) fn take(w: &mut World, name: &str) -> Got<()> {
    w.call(&ADMIN, &TakeSnapshot {}, name.as_bytes()).map(drop)
}

pub(crate) fn remove(w: &mut World, name: &str) -> Got<()> {
    w.call(&ADMIN, &RemoveSnapshot {}, name.as_bytes()).map(drop)
}

/// Names, and which are going.
fn list(w: &mut World) -> Vec<(String, bool)> {
    let mut found = Vec::new();
    let mut after = 0;
    loop {
        let (_, payload) = w.call(&USER, &Snapshots { after }, &[]).unwrap();
        if payload.is_empty() {
            return found;
        }
        let mut rest = &payload[..];
        while let Some(head) = SnapshotHead::get(rest) {
            let (name, tail) = rest[SnapshotHead::SIZE..].split_at(head.name_len.into());
            found.push((String::from_utf8(name.to_vec()).unwrap(), head.is_going != 0));
            (after, rest) = (head.number, tail);
        }
    }
}

#[test]
fn a_snapshot_shows_the_tree_as_it_was() {
    let mut w = World::new();
    w.mkdir(&USER, "/d", 0o750).unwrap();
    w.put(&USER, "/d/f", 0o640, b"before").unwrap();
    w.setxattr(&USER, "/d/f", "user.a", b"old", 0).unwrap();
    w.symlink(&USER, "/d/l", "f").unwrap();
    w.link(&USER, "/d/f", "/d/g").unwrap();
    let (dir, file) = (w.stat(&USER, "/d").unwrap(), w.stat(&USER, "/d/f").unwrap());
    take(&mut w, "one").unwrap();

    w.put(&USER, "/d/f", 0o600, b"and afterwards").unwrap();
    w.chmod(&USER, "/d/f", 0o600).unwrap();
    w.setxattr(&USER, "/d/f", "user.a", b"new", 0).unwrap();
    w.setxattr(&USER, "/d/f", "user.b", b"new", 0).unwrap();
    w.unlink(&USER, "/d/l").unwrap();
    w.rename(&USER, "/d/g", "/h", 0).unwrap();
    w.mkdir(&USER, "/d/new", 0o755).unwrap();
    take(&mut w, "two").unwrap();
    w.unlink(&USER, "/d/f").unwrap();
    w.unlink(&USER, "/h").unwrap();
    w.rmdir(&USER, "/d/new").unwrap();
    w.rmdir(&USER, "/d").unwrap();
    w.pass(5);
    w.restart();

    assert_eq!(w.ls(&USER, "/").unwrap(), Vec::<String>::new(), "it is not listed");
    assert_eq!(w.ls(&USER, "/.snapshots").unwrap(), ["one", "two"]);
    assert_eq!(w.ls(&USER, "/.snapshots/one").unwrap(), ["d"]);
    assert_eq!(w.ls(&USER, "/.snapshots/one/d").unwrap(), ["f", "l", "g"]);
    assert_eq!(w.ls(&USER, "/.snapshots/two").unwrap(), ["d", "h"]);
    assert_eq!(w.ls(&USER, "/.snapshots/two/d").unwrap(), ["f", "new"]);
    for (path, content) in
        [("one/d/f", "before"), ("one/d/g", "before"), ("two/h", "and afterwards")]
    {
        let path = format!("/.snapshots/{path}");
        assert_eq!(w.cat(&USER, &path).unwrap(), content.as_bytes(), "{path}");
    }
    assert_eq!(w.readlink(&USER, "/.snapshots/one/d/l").unwrap(), "f");
    let value = |w: &mut World, path: &str, name: &str| {
        w.getxattr(&USER, path, name, 100).map(|(_, value)| value)
    };
    assert_eq!(value(&mut w, "/.snapshots/one/d/f", "user.a").unwrap(), b"old");
    assert_eq!(value(&mut w, "/.snapshots/two/d/f", "user.a").unwrap(), b"new");
    assert_eq!(w.listxattr(&USER, "/.snapshots/one/d/f", 100).unwrap().1, b"user.a\0");
    assert_eq!(w.listxattr(&USER, "/.snapshots/two/d/f", 100).unwrap().1, b"user.a\0user.b\0");

    let (then, was) = (w.stat(&USER, "/.snapshots/one/d/f").unwrap(), file);
    assert_eq!(then.ino & !IN_SNAPSHOT & ((1 << 40) - 1), was.ino);
    assert_eq!(calls::vfs::Attr { ino: was.ino, ..then }, was);
    let then = w.stat(&USER, "/.snapshots/one/d").unwrap();
    assert_eq!(calls::vfs::Attr { ino: dir.ino, ..then }, dir);
    assert_eq!(w.cat(&MATE, "/.snapshots/one/d/f").unwrap(), b"before", "a reader of the group");
}

#[test]
fn the_way_up_leads_out_of_a_snapshot() {
    let mut w = World::new();
    w.mkdir(&USER, "/d", 0o755).unwrap();
    take(&mut w, "s").unwrap();
    let all = w.stat(&USER, "/.snapshots").unwrap().ino;
    let root = w.stat(&USER, "/.snapshots/s").unwrap().ino;
    let dir = w.stat(&USER, "/.snapshots/s/d").unwrap().ino;
    assert_eq!(w.lookup_in(&USER, dir, "..").unwrap().ino, root);
    assert_eq!(w.lookup_in(&USER, root, "..").unwrap().ino, all);
    assert_eq!(w.lookup_in(&USER, all, "..").unwrap().ino, 1);
    assert_eq!(w.stat(&USER, "/.snapshots/s/.snapshots").map(drop), Err(ENOENT));
    let open = w.open(&USER, "/.snapshots", 0).unwrap();
    let numbers: Vec<u64> =
        w.readdir(&open, 0, 1000).unwrap().iter().map(|(entry, _)| entry.ino).collect();
    assert_eq!(numbers, [all, 1, root]);
}

#[test]
fn nothing_of_a_snapshot_can_be_changed() {
    let mut w = World::new();
    w.mkdir(&USER, "/d", 0o777).unwrap();
    w.put(&USER, "/d/f", 0o666, b"x").unwrap();
    w.put(&USER, "/f", 0o666, b"x").unwrap();
    take(&mut w, "s").unwrap();
    let s = "/.snapshots/s";
    for who in [&ROOT, &USER] {
        let f = &format!("{s}/d/f");
        for flags in [1, 2, O_TRUNC, 2 | O_APPEND] {
            assert_eq!(w.open(who, f, flags).map(drop), Err(EROFS), "{flags:o}");
        }
        assert_eq!(w.create(who, f, 0o644, 2).map(drop), Err(EROFS));
        assert_eq!(w.create(who, &format!("{s}/d/n"), 0o644, 2).map(drop), Err(EROFS));
        assert_eq!(w.mkdir(who, &format!("{s}/n"), 0o755).map(drop), Err(EROFS));
        assert_eq!(w.mknod(who, &format!("{s}/n"), 0o644, 0).map(drop), Err(EROFS));
        assert_eq!(w.symlink(who, &format!("{s}/n"), "x").map(drop), Err(EROFS));
        assert_eq!(w.tmpfile(who, &format!("{s}/d"), 0o644, 2).map(drop), Err(EROFS));
        assert_eq!(w.link(who, "/f", &format!("{s}/n")).map(drop), Err(EROFS));
        assert_eq!(w.link(who, f, "/n").map(drop), Err(EXDEV));
        assert_eq!(w.unlink(who, f), Err(EROFS));
        assert_eq!(w.rename(who, f, "/n", 0), Err(EROFS));
        assert_eq!(w.rename(who, "/f", &format!("{s}/n"), 0), Err(EROFS));
        assert_eq!(w.chmod(who, f, 0o600), Err(EROFS));
        assert_eq!(w.truncate(who, f, 0).map(drop), Err(EROFS));
        assert_eq!(w.setxattr(who, f, "user.a", b"x", 0), Err(EROFS));
        assert_eq!(w.access(who, f, 2), Err(EROFS));
        assert_eq!(w.access(who, f, 4), Ok(()));
    }
    for name in ["/.snapshots", s] {
        assert_eq!(w.rmdir(&ROOT, name), Err(ENOTEMPTY));
        assert_eq!(w.rename(&ROOT, name, "/n", 0), Err(EROFS));
        assert_eq!(w.rename(&ROOT, "/d", name, 0), Err(ENOTEMPTY));
        assert_eq!(w.unlink(&ROOT, name), Err(EISDIR));
    }
    assert_eq!(w.mkdir(&ROOT, "/.snapshots", 0o755).map(drop), Err(EEXIST));
    assert_eq!(w.mkdir(&ROOT, "/.snapshots/new", 0o755).map(drop), Err(EROFS));
    let ino = w.stat(&ROOT, &format!("{s}/d")).unwrap().ino;
    let quota = SetQuota { ino, bytes: 4096, inodes: NO_LIMIT, remove: 0 };
    assert_eq!(w.call(&ADMIN, &quota, &[]).map(drop), Err(EROFS));
    // Reading leaves no trace either.
    let before = w.stat(&ROOT, &format!("{s}/d/f")).unwrap();
    w.pass(100_000);
    assert_eq!(w.cat(&USER, &format!("{s}/d/f")).unwrap(), b"x");
    assert_eq!(w.stat(&ROOT, &format!("{s}/d/f")).unwrap(), before);
}

#[test]
fn names_are_names_and_only_the_administrator_gives_them() {
    let mut w = World::new();
    let by = |w: &mut World, who: &Client, name: &str| {
        w.call(who, &TakeSnapshot {}, name.as_bytes()).map(drop)
    };
    assert_eq!(by(&mut w, &ROOT, "s"), Err(EPERM), "a program of user 0");
    assert_eq!(by(&mut w, &USER, "s"), Err(EPERM));
    assert_eq!(w.call(&USER, &RemoveSnapshot {}, b"s").map(drop), Err(EPERM));
    for (name, errno) in
        [("", ENOENT), (".", EEXIST), ("..", EEXIST), ("a/b", EINVAL), ("a\0", EINVAL)]
    {
        assert_eq!(take(&mut w, name), Err(errno), "{name:?}");
    }
    assert_eq!(take(&mut w, &"x".repeat(256)), Err(ENAMETOOLONG));
    take(&mut w, &"x".repeat(255)).unwrap();
    take(&mut w, "s").unwrap();
    assert_eq!(take(&mut w, "s"), Err(EEXIST));
    assert_eq!(remove(&mut w, "t"), Err(ENOENT));
    assert_eq!(list(&mut w), [("x".repeat(255), false), ("s".to_string(), false)]);
    remove(&mut w, "s").unwrap();
    assert_eq!(remove(&mut w, "s"), Err(ENOENT));
    // The name can be given again while the old one is going.
    assert_eq!(list(&mut w)[1], ("s".to_string(), true));
    take(&mut w, "s").unwrap();
    w.pass(1);
    assert_eq!(list(&mut w), [("x".repeat(255), false), ("s".to_string(), false)]);
}

#[test]
fn there_are_so_many_and_no_more() {
    let mut w = World::new();
    w.put(&USER, "/f", 0o644, b"0").unwrap();
    for number in 0..crate::limits::SNAPSHOTS_MAX {
        take(&mut w, &number.to_string()).unwrap();
        w.put(&USER, "/f", 0o644, format!("{}", number + 1).as_bytes()).unwrap();
    }
    assert_eq!(take(&mut w, "more"), Err(ENOSPC));
    for number in 0..crate::limits::SNAPSHOTS_MAX {
        let path = format!("/.snapshots/{number}/f");
        assert_eq!(w.cat(&USER, &path).unwrap(), number.to_string().as_bytes());
    }
    remove(&mut w, "7").unwrap();
    w.pass(1);
    take(&mut w, "more").unwrap();
    assert_eq!(w.cat(&USER, "/.snapshots/6/f").unwrap(), b"6");
    assert_eq!(w.cat(&USER, "/.snapshots/8/f").unwrap(), b"8");
}

#[test]
fn what_is_open_in_a_snapshot_that_is_removed_is_stale() {
    let mut w = World::new();
    w.put(&USER, "/f", 0o644, b"x").unwrap();
    take(&mut w, "s").unwrap();
    let file = w.open(&USER, "/.snapshots/s/f", 0).unwrap();
    let dir = w.open(&USER, "/.snapshots/s", 0).unwrap();
    assert_eq!(w.read(&file, 0, 10).unwrap(), b"x");
    remove(&mut w, "s").unwrap();
    assert_eq!(w.read(&file, 0, 10), Err(ESTALE));
    assert_eq!(w.fstat(&file).map(drop), Err(ESTALE));
    assert_eq!(w.readdir(&dir, 0, 100).map(drop), Err(ENOENT));
    w.restart();
    w.release(&file).unwrap();
    w.release(&dir).unwrap();
    assert_eq!(w.cat(&USER, "/f").unwrap(), b"x");
}

#[test]
fn nothing_is_left_of_snapshots_that_are_gone() {
    let mut w = World::new();
    for name in 0..20 {
        w.put(&USER, &format!("/{name}"), 0o644, &[1; 300]).unwrap();
    }
    for round in 0..4 {
        take(&mut w, &round.to_string()).unwrap();
        for name in 0..20 {
            let file = w.open(&USER, &format!("/{name}"), 2).unwrap();
            w.write(&file, round * 40 + name, &[2; 50]).unwrap();
            w.release(&file).unwrap();
        }
    }
    for name in 10..20 {
        w.unlink(&USER, &format!("/{name}")).unwrap();
    }
    for round in [2, 0, 3, 1] {
        remove(&mut w, &round.to_string()).unwrap();
        w.restart();
    }
    w.pass(60);
    assert!(w.server.snapshots.is_idle());
    let mut left = Vec::new();
    crate::keys::collect(&w.store, &(vec![0], vec![255]), |key, _| left.push(key[0]));
    assert!(!left.iter().any(|tag| b"SZMJ".contains(tag)), "{left:?}");
    assert_eq!(w.store.present.len(), 10);
    for name in 0..10 {
        let data = w.cat(&USER, &format!("/{name}")).unwrap();
        let is_new = |at: usize| {
            (0..4).any(|round| (40 * round + name..40 * round + name + 50).contains(&at))
        };
        assert!((0..300).all(|at| data[at] == if is_new(at) { 2 } else { 1 }), "{data:?}");
    }
}

#[test]
fn copies_are_on_the_disk_before_they_count_and_appends_copy_nothing() {
    let mut w = World::new();
    w.put(&USER, "/f", 0o644, &[1; 1000]).unwrap();
    take(&mut w, "s").unwrap();
    let file = w.open(&USER, "/f", 2).unwrap();
    w.write(&file, 1000, &[2; 100]).unwrap();
    assert!(!w.sync, "nothing was copied");
    w.store.synced.clear();
    w.write(&file, 70, &[2; 5]).unwrap();
    assert!(w.sync);
    assert_eq!(w.store.synced.len(), 1);
    w.write(&file, 72, &[3; 5]).unwrap();
    assert!(!w.sync, "it is its own now");
    w.write(&file, 128, &[2; 64]).unwrap();
    assert!(w.sync, "whole chunks, too: else zeros could be there after a power failure");
    w.put(&USER, "/small", 0o644, &[1; 50]).unwrap();
    take(&mut w, "t").unwrap();
    let small = w.open(&USER, "/small", 2).unwrap();
    w.write(&small, 3, b"x").unwrap();
    assert!(w.sync, "a copy");
    // What is where it was must be safe, too.
    w.store.synced.clear();
    w.fsync(&file).unwrap();
    assert_eq!(w.store.synced.len(), 2);
}

#[test]
fn lists_of_rights_are_those_of_the_snapshot_and_agents_remember_nothing_of_it() {
    let mut w = World::new();
    w.put(&USER, "/f", 0o640, b"x").unwrap();
    // Others may read: a list with an entry for a user.
    let entry = |tag: u16, rights: u16, id: u32| {
        [&tag.to_le_bytes()[..], &rights.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let list = [
        2u32.to_le_bytes().to_vec(),
        entry(1, 6, u32::MAX),
        entry(2, 4, ALIEN.cred.uid),
        entry(4, 4, u32::MAX),
        entry(0x10, 4, u32::MAX),
        entry(0x20, 0, u32::MAX),
    ]
    .concat();
    w.setxattr(&USER, "/f", "system.posix_acl_access", &list, 0).unwrap();
    take(&mut w, "s").unwrap();
    w.removexattr(&USER, "/f", "system.posix_acl_access").unwrap();
    w.chmod(&USER, "/f", 0o600).unwrap();
    assert_eq!(w.cat(&ALIEN, "/f"), Err(EACCES));
    assert_eq!(w.cat(&ALIEN, "/.snapshots/s/f").unwrap(), b"x");
    let a = agent(1);
    w.begin(&a);
    let all = w.stat(&a, "/.snapshots").unwrap();
    assert_eq!((all.nlink, all.size), (3, 1));
    let (leased, _) = w.call(&a, &Lookup { parent: all.ino }, b"s").unwrap();
    assert_eq!((leased.name, leased.attr), (0, 0), "nobody is told when it is removed");
    take(&mut w, "t").unwrap();
    assert_eq!(w.stat(&a, "/.snapshots").unwrap().nlink, 4);
    remove(&mut w, "s").unwrap();
    assert_eq!(w.stat(&a, "/.snapshots").unwrap().nlink, 3);
}

#[test]
fn holes_stay_holes() {
    let mut w = World::with_blobs(Box::new(sparse()));
    let file = w.create(&USER, "/f", 0o644, 2).unwrap();
    w.write(&file, 0, &[1; 4096]).unwrap();
    w.write(&file, 65_536, &[1; 4096]).unwrap();
    take(&mut w, "s").unwrap();
    w.fallocate(&file, 65_536, 4096, 3).unwrap();
    w.write(&file, 131_072, &[1; 4096]).unwrap();
    let seek = |w: &mut World, file, at, whence| w.seek(file, at, whence).unwrap();
    assert_eq!(seek(&mut w, &file, 0, SEEK_HOLE), 4096);
    assert_eq!(seek(&mut w, &file, 4096, SEEK_DATA), 131_072);
    assert_eq!(seek(&mut w, &file, 131_072, SEEK_HOLE), 135_168);
    let then = w.open(&USER, "/.snapshots/s/f", 0).unwrap();
    assert_eq!(seek(&mut w, &then, 4096, SEEK_DATA), 65_536);
    assert_eq!(seek(&mut w, &then, 65_536, SEEK_HOLE), 69_632);
}

fn sparse() -> impl Store {
    let directory = tempfile::tempdir().unwrap();
    // It is of no use any more when the test has ended.
    dvk::host::disk::DiskStore::open(&directory.keep()).unwrap()
}

#[test]
fn a_full_disk_fails_the_write_and_leaves_both_as_they_were() {
    for path in ["/small", "/large"] {
        let mut failures = 0;
        for succeed in 0..8 {
            let mut w = World::new();
            w.put(&USER, "/small", 0o644, &[1; 50]).unwrap();
            w.put(&USER, "/large", 0o644, &[1; 500]).unwrap();
            take(&mut w, "s").unwrap();
            let file = w.open(&USER, path, 2).unwrap();
            (w.store.broken, w.store.breaks_after) = (Some(StoreError::Full), succeed);
            let written = w.write(&file, 3, b"x");
            w.store.broken = None;
            let then = w.cat(&USER, &format!("/.snapshots/s{path}")).unwrap();
            let now = w.cat(&USER, path).unwrap();
            assert!(then.iter().all(|byte| *byte == 1));
            if written == Err(ENOSPC) {
                failures += 1;
                assert_eq!(now, then);
                fsck::check(&mut w);
                w.write(&file, 3, b"x").unwrap();
            }
            assert_eq!(w.cat(&USER, path).unwrap()[2..5], [1, b'x', 1]);
            w.release(&file).unwrap();
        }
        assert!((2..8).contains(&failures), "{path}: {failures}");
    }
}

#[test]
fn what_a_crash_has_left_under_a_number_is_not_found_in_the_next_blob_of_that_number() {
    let mut w = World::new();
    let file = w.create(&USER, "/f", 0o644, 2).unwrap();
    w.ftruncate(&file, 60).unwrap();
    take(&mut w, "s").unwrap();
    w.crash_in(|w| assert_eq!(w.write(&file, 0, &[7; 50]), Ok(50)));
    w.write(&file, 59, &[1]).unwrap();
    let mut zeros = vec![0; 60];
    assert_eq!(w.cat(&USER, "/.snapshots/s/f").unwrap(), zeros);
    zeros[59] = 1;
    assert_eq!(w.cat(&USER, "/f").unwrap(), zeros);
}

#[test]
fn what_a_crash_has_left_in_a_layer_is_not_found_when_its_chunk_becomes_the_layers_own() {
    let mut w = World::new();
    let file = w.create(&USER, "/f", 0o644, 2).unwrap();
    w.ftruncate(&file, 1000).unwrap();
    take(&mut w, "s").unwrap();
    w.write(&file, 500, &[1]).unwrap();
    w.crash_in(|w| assert_eq!(w.write(&file, 40, &[7; 20]), Ok(20)));
    w.write(&file, 33, &[1]).unwrap();
    let data = w.cat(&USER, "/f").unwrap();
    let set: Vec<usize> = (0..1000).filter(|at| data[*at] != 0).collect();
    assert_eq!(set, [33, 500]);
    assert_eq!(w.cat(&USER, "/.snapshots/s/f").unwrap(), [0; 1000]);
}

/// Keys of one tag.
fn count(w: &World, tag: u8) -> usize {
    let mut count = 0;
    crate::keys::collect(&w.store, &(vec![tag], vec![tag + 1]), |_, _| count += 1);
    count
}

#[test]
fn what_comes_and_goes_after_a_snapshot_leaves_nothing() {
    let mut w = World::new();
    w.put(&USER, "/f", 0o644, b"x").unwrap();
    take(&mut w, "s").unwrap();
    let made = |w: &mut World, number: u32| {
        w.put(&USER, "/lock", 0o644, b"").unwrap();
        w.rename(&USER, "/lock", "/other", 0).unwrap();
        w.unlink(&USER, "/other").unwrap();
        w.setxattr(&USER, "/f", &format!("user.{number}"), b"x", 0).unwrap();
        w.removexattr(&USER, "/f", &format!("user.{number}")).unwrap();
    };
    made(&mut w, 0);
    let kept = count(&w, b'Z');
    for number in 1..100 {
        made(&mut w, number);
    }
    w.pass(20);
    assert_eq!(count(&w, b'Z'), kept);
    assert_eq!(w.ls(&USER, "/.snapshots/s").unwrap(), ["f"]);
    w.put(&USER, "/lock", 0o644, b"").unwrap();
    assert_eq!(w.stat(&USER, "/.snapshots/s/lock").map(drop), Err(ENOENT));
    assert_eq!(w.listxattr(&USER, "/.snapshots/s/f", 100).unwrap().1, b"");
}

#[test]
fn what_had_no_name_or_was_made_later_is_not_in_a_snapshot() {
    let mut w = World::new();
    let file = w.create(&USER, "/f", 0o644, 2).unwrap();
    w.write(&file, 0, &[1; 500]).unwrap();
    w.setxattr(&USER, "/f", "user.a", b"x", 0).unwrap();
    w.unlink(&USER, "/f").unwrap();
    let unnamed = w.tmpfile(&USER, "/", 0o644, 2).unwrap();
    take(&mut w, "s").unwrap();
    let later = w.put(&USER, "/later", 0o644, b"later").unwrap();
    w.link_ino(&USER, unnamed.ino, "/named").unwrap();
    for ino in [file.ino, later] {
        let then = IN_SNAPSHOT | 1 << 40 | ino;
        assert_eq!(w.getattr(&USER, then).map(drop), Err(ESTALE));
        assert_eq!(w.open_ino(&USER, then, 0).map(drop), Err(ESTALE));
    }
    // What is written to it now is kept for nobody.
    w.write(&file, 100, b"x").unwrap();
    let row = Setxattr { ino: file.ino, name_len: 6, flags: 0 };
    w.call(&USER, &row, b"user.ay").unwrap();
    w.write(&unnamed, 100, b"x").unwrap();
    assert!(!w.sync && count(&w, b'B') == 0, "nothing was copied");
    w.release(&file).unwrap();
    w.pass(10);
    assert!(!w.store.present.contains(&file.ino), "it is kept for nobody");
    crate::keys::collect(&w.store, &(vec![b'Z'], vec![b'Z' + 1]), |key, _| {
        let kept = crate::keys::kept_key(key);
        assert_ne!(crate::keys::owner(kept), Some(file.ino), "{kept:?}");
    });
    let then = IN_SNAPSHOT | 1 << 40 | unnamed.ino;
    assert_eq!(w.getattr(&USER, then).map(drop), Err(ESTALE), "it had no name then");
    assert_eq!((count(&w, b'X'), count(&w, b'G')), (0, 0));
    w.release(&unnamed).unwrap();
}

#[test]
fn what_had_a_name_in_an_earlier_snapshot_stays_there() {
    let mut w = World::new();
    let file = w.create(&USER, "/f", 0o644, 2).unwrap();
    w.write(&file, 0, &[1; 500]).unwrap();
    take(&mut w, "one").unwrap();
    w.unlink(&USER, "/f").unwrap();
    take(&mut w, "two").unwrap();
    w.release(&file).unwrap();
    w.pass(10);
    assert_eq!(w.cat(&USER, "/.snapshots/one/f").unwrap(), [1; 500]);
    // What is made between two goes with the second.
    let between = w.put(&USER, "/g", 0o644, &[1; 500]).unwrap();
    take(&mut w, "three").unwrap();
    w.put(&USER, "/g", 0o644, b"").unwrap();
    w.pass(1);
    assert!(w.store.present.contains(&between));
    remove(&mut w, "three").unwrap();
    w.pass(1);
    assert!(!w.store.present.contains(&between));
    assert_eq!(w.ls(&USER, "/.snapshots").unwrap(), ["one", "two"]);
}

#[test]
fn a_snapshot_whose_removal_a_crash_undoes_is_as_it_was() {
    let mut w = World::new();
    w.put(&USER, "/f", 0o644, &[1; 500]).unwrap();
    take(&mut w, "s").unwrap();
    assert!(w.sync, "what was answered is there after a power failure");
    let file = w.open(&USER, "/f", 2).unwrap();
    w.crash_in(|w| {
        remove(w, "s").unwrap();
        assert!(w.sync);
        // One of the same round.
        w.tick();
        w.write(&file, 100, &[2; 50]).unwrap();
    });
    assert_eq!(w.cat(&USER, "/.snapshots/s/f").unwrap(), [1; 500]);
}

#[test]
fn a_file_that_is_one_hole_is_made_another_at_once() {
    const SIZE: u64 = 1 << 20;
    let mut w = World::with_blobs(Box::new(sparse()));
    let file = w.create(&USER, "/f", 0o644, 2).unwrap();
    w.ftruncate(&file, SIZE).unwrap();
    w.write(&file, 0, b"data").unwrap();
    take(&mut w, "s").unwrap();
    w.write(&file, SIZE / 2, b"data").unwrap();
    w.fallocate(&file, 0, SIZE, 3).unwrap();
    assert!(count(&w, b'M') < 40, "no bitmaps of holes");
    remove(&mut w, "s").unwrap();
    let before = w.clock;
    while !w.server.snapshots.is_idle() {
        w.clock = w.clock.max(w.server.deadline().unwrap());
        w.tick();
        assert!(w.clock - before < 10_000_000_000, "it goes through it chunk by chunk");
    }
    assert_eq!(w.read(&file, SIZE / 2, 4).unwrap(), [0; 4]);
}

#[test]
fn a_full_disk_stays_as_full_as_it_is() {
    let mut w = World::new();
    w.put(&USER, "/kept", 0o644, &[1; 100_000]).unwrap();
    w.put(&USER, "/f", 0o644, &[1; 500]).unwrap();
    take(&mut w, "s").unwrap();
    let file = w.open(&USER, "/f", 2).unwrap();
    w.write(&file, 100, b"x").unwrap();
    w.write(&file, 0, &[2; 96]).unwrap();
    w.truncate(&USER, "/kept", 0).unwrap();
    let new = w.create(&USER, "/new", 0o644, 1).unwrap();
    w.restart();
    let (total, free) = w.store.space();
    let reserve = SPACE_RESERVE.min(total / 16);
    w.store.free = Some(reserve);
    // What a snapshot has does not become free.
    assert_eq!(w.write(&new, 0, &[0; 99_000]), Err(ENOSPC));
    // Nor is the reserve there for copies, whoever makes them.
    assert_eq!(w.write(&file, 200, b"x"), Err(ENOSPC));
    remove(&mut w, "s").unwrap();
    // What the file has anew is given back, also if there is no room to copy the rest.
    w.store.free = Some(reserve / 2 + 10);
    w.pass(10);
    assert!(!w.server.snapshots.is_idle());
    let (parent, mut left) = (file.ino, [0; 160]);
    w.store.blob_read(parent, 0, &mut left).unwrap();
    assert_eq!(left.iter().position(|byte| *byte != 0), Some(128));
    // For that it may take of what others may not.
    w.store.free = Some(reserve / 2 + 50);
    w.pass(60);
    assert!(w.server.snapshots.is_idle());
    let data = w.cat(&USER, "/f").unwrap();
    assert!(data[..96] == [2; 96] && data[128..] == [1; 500 - 128]);
    w.store.free = Some(free);
    // What is kept of names and attributes takes the reserve, and not all of it.
    take(&mut w, "t").unwrap();
    w.store.free = Some(reserve / 2 - 1);
    w.clock += SPACE_KNOWN;
    assert_eq!(w.unlink(&USER, "/new"), Err(ENOSPC));
    assert_eq!(w.chmod(&USER, "/new", 0o600), Err(ENOSPC));
    assert_eq!(w.cat(&USER, "/f").unwrap().len(), 500);
    remove(&mut w, "t").unwrap();
    w.pass(1);
    w.unlink(&USER, "/new").unwrap();
}

#[test]
fn one_that_cannot_be_merged_is_not_in_the_way_of_others() {
    let mut w = World::new();
    for name in ["/a", "/b", "/c"] {
        w.put(&USER, name, 0o644, &[1; 500]).unwrap();
    }
    take(&mut w, "s").unwrap();
    for name in ["/a", "/b", "/c"] {
        let file = w.open(&USER, name, 2).unwrap();
        w.write(&file, 100, b"x").unwrap();
        w.release(&file).unwrap();
    }
    remove(&mut w, "s").unwrap();
    let bad = w.stat(&USER, "/c").unwrap().ino;
    w.store.unreadable = Some(bad);
    w.pass(60);
    assert_eq!(count(&w, b'J'), 1);
    assert_eq!(count(&w, b'S'), 0, "and another snapshot may have its name");
    w.store.unreadable = None;
    w.pass(60);
    assert_eq!(count(&w, b'J'), 0);
    assert_eq!(w.cat(&USER, "/c").unwrap()[99..102], [1, b'x', 1]);
}

#[test]
fn a_directory_of_that_name_that_an_older_server_has_made_is_in_the_way() {
    let mut w = World::new();
    w.put(&USER, "/x", 0o644, b"mine").unwrap();
    let entry = w.store.get(&crate::keys::entry(1, b"x")).unwrap();
    w.store.put(&crate::keys::entry(1, b".snapshots"), &entry);
    assert_eq!(take(&mut w, "s"), Err(EEXIST));
    assert_eq!(w.cat(&USER, "/.snapshots").unwrap(), b"mine");
    w.store.remove(&crate::keys::entry(1, b".snapshots"));
    take(&mut w, "s").unwrap();
}

#[test]
fn holes_are_merged_as_holes() {
    let mut w = World::new();
    w.store.is_sparse = true;
    let file = w.create(&USER, "/f", 0o644, 2).unwrap();
    w.write(&file, 0, &[1; 500]).unwrap();
    take(&mut w, "one").unwrap();
    w.fallocate(&file, 64, 96, 3).unwrap();
    take(&mut w, "two").unwrap();
    w.write(&file, 400, &[2]).unwrap();
    // Something in a chunk that is not the layer's own.
    w.crash_in(|w| assert_eq!(w.write(&file, 70, &[7; 20]), Ok(20)));
    let before = w.cat(&USER, "/f").unwrap();
    assert!(before[64..160] == [0; 96] && before[160..400] == [1; 240]);
    remove(&mut w, "two").unwrap();
    w.pass(5);
    assert!(w.server.snapshots.is_idle());
    assert_eq!(w.cat(&USER, "/f").unwrap(), before);
    assert_eq!(w.cat(&USER, "/.snapshots/one/f").unwrap(), [1; 500]);
    // The same where there is nothing below.
    let file = w.create(&USER, "/g", 0o644, 2).unwrap();
    w.ftruncate(&file, 500).unwrap();
    take(&mut w, "three").unwrap();
    w.write(&file, 400, &[2]).unwrap();
    w.crash_in(|w| assert_eq!(w.write(&file, 70, &[7; 20]), Ok(20)));
    remove(&mut w, "three").unwrap();
    w.pass(5);
    let data = w.cat(&USER, "/g").unwrap();
    assert_eq!(data.iter().position(|byte| *byte != 0), Some(400));
}

#[test]
fn what_was_cut_and_appended_between_two_snapshots_is_merged_as_it_is() {
    let mut w = World::new();
    let file = w.create(&USER, "/f", 0o644, 2).unwrap();
    w.write(&file, 0, &[1; 500]).unwrap();
    take(&mut w, "one").unwrap();
    w.truncate(&USER, "/f", 300).unwrap();
    w.write(&file, 300, &[2; 100]).unwrap();
    take(&mut w, "two").unwrap();
    w.write(&file, 10, &[3]).unwrap();
    let before = w.cat(&USER, "/f").unwrap();
    assert!(before[11..300] == [1; 289] && before[300..] == [2; 100]);
    remove(&mut w, "two").unwrap();
    w.pass(5);
    assert!(w.server.snapshots.is_idle());
    assert_eq!(w.cat(&USER, "/f").unwrap(), before);
    assert_eq!(w.cat(&USER, "/.snapshots/one/f").unwrap(), [1; 500]);
}

#[test]
fn a_long_directory_is_listed_once_and_in_its_order() {
    let mut w = World::new();
    let name = |number: u32| format!("f{number:02}");
    for number in 0..40 {
        w.put(&USER, &format!("/{}", name(number)), 0o644, b"").unwrap();
    }
    take(&mut w, "one").unwrap();
    for number in (0..40).step_by(2) {
        w.unlink(&USER, &format!("/{}", name(number))).unwrap();
    }
    take(&mut w, "two").unwrap();
    for number in (0..40).filter(|number| number % 3 == 1 && number % 2 == 1) {
        w.unlink(&USER, &format!("/{}", name(number))).unwrap();
    }
    for number in 40..60 {
        w.put(&USER, &format!("/{}", name(number)), 0o644, b"").unwrap();
    }
    let mut at_once = |path: &str| {
        let dir = w.open(&USER, path, 0).unwrap();
        let found = w.readdir(&dir, 2, 4096).unwrap();
        found.into_iter().map(|(_, name)| name).collect::<Vec<_>>()
    };
    let all: Vec<String> = (0..40).map(name).collect();
    assert_eq!(at_once("/.snapshots/one"), all);
    let odd: Vec<String> = (0..40).filter(|number| number % 2 == 1).map(name).collect();
    assert_eq!(at_once("/.snapshots/two"), odd);
    assert_eq!(w.ls(&USER, "/.snapshots/one").unwrap(), all, "a few at a time");
}

#[test]
fn a_file_of_layers_that_is_removed_frees_nothing_that_a_snapshot_has() {
    let mut w = World::new();
    w.put(&USER, "/kept", 0o644, &[1; 100_000]).unwrap();
    for (number, name) in ["s", "t"].into_iter().enumerate() {
        take(&mut w, name).unwrap();
        let file = w.open(&USER, "/kept", 2).unwrap();
        w.write(&file, 100 * number as u64, b"x").unwrap();
        w.release(&file).unwrap();
        if name == "s" {
            // Its bytes are in no blob of its own number then.
            remove(&mut w, "s").unwrap();
            w.pass(60);
            assert!(w.server.snapshots.is_idle());
        }
    }
    let new = w.create(&USER, "/new", 0o644, 1).unwrap();
    w.unlink(&USER, "/kept").unwrap();
    w.restart();
    let (total, _) = w.store.space();
    w.store.free = Some(SPACE_RESERVE.min(total / 16));
    assert_eq!(w.write(&new, 0, &[0; 99_000]), Err(ENOSPC));
    assert_eq!(w.cat(&USER, "/.snapshots/t/kept").unwrap()[..3], [b'x', 1, 1]);
}
