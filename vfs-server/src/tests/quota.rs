//! Quotas of directory trees: what they refuse, what they count, and that they count right whatever happens.

use crate::keys::{self, Inode};
use crate::limits::{SOLE_SPACE, TREE_DEPTH_MAX, TREE_WALK_BATCH};
use crate::linux::{O_TRUNC, RENAME_EXCHANGE};
use crate::tests::driver::{Client, Got, ROOT, USER, World};
use crate::tests::fsck;
use crate::tests::leases::agent;
use crate::tests::model::a_path;
use calls::vfs::{
    FILE_SIZE_MAX, FsStats, NO_LIMIT, Open, Opened, Quota, Quotas, SetAttr, SetQuota, Setattr,
    Statfs, attributes, set,
};
use calls::wire::Wire;
use dvk::server::Server;
use m3ipc::Cred;
use m3ipc::errno::numbers::{
    EDQUOT, EFBIG, ELOOP, ENOENT, ENOTDIR, EOPNOTSUPP, EPERM, ESTALE, EXDEV,
};
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};

/// The administrator.
const ADMIN: Client = Client { cred: Cred::ROOT, ..ROOT };

fn give(w: &mut World, path: &str, bytes: u64, inodes: u64) -> Got<()> {
    let ino = w.stat(&ROOT, path)?.ino;
    w.call(&ADMIN, &SetQuota { ino, bytes, inodes, remove: 0 }, &[]).map(drop)
}

fn clear(w: &mut World, path: &str) -> Got<()> {
    let ino = w.stat(&ROOT, path)?.ino;
    w.call(&ADMIN, &SetQuota { ino, bytes: 0, inodes: 0, remove: 1 }, &[]).map(drop)
}

fn all(w: &mut World) -> Vec<Quota> {
    let mut found: Vec<Quota> = Vec::new();
    loop {
        let after = found.last().map_or(0, |quota| quota.tree);
        let (_, payload) = w.call(&ADMIN, &Quotas { after }, &[]).unwrap();
        let batch: Option<Vec<Quota>> = payload.chunks(Quota::SIZE).map(Quota::get).collect();
        match batch.unwrap() {
            batch if batch.is_empty() => return found,
            batch => found.extend(batch),
        }
    }
}

impl World {
    fn walk_anew(&mut self, path: &str) {
        let ino = self.stat(&ROOT, path).unwrap().ino;
        self.input(|server, cx| server.trees.walk(ino, cx));
    }
}

/// Bytes and inodes that the tree of `path` has.
fn used(w: &mut World, path: &str) -> (u64, u64) {
    let ino = w.stat(&ROOT, path).unwrap().ino;
    let quota = all(w).into_iter().find(|quota| quota.ino == ino).unwrap();
    (quota.bytes, quota.inodes)
}

fn statfs(w: &mut World, path: &str) -> FsStats {
    let ino = w.stat(&ROOT, path).unwrap().ino;
    let (_, payload) = w.call(&USER, &Statfs { ino }, &[]).unwrap();
    FsStats::get(&payload).unwrap()
}

#[test]
fn bytes_and_inodes_beyond_a_quota_are_refused_and_what_is_freed_can_be_used_at_once() {
    let mut w = World::new();
    w.mkdir(&ROOT, "/t", 0o777).unwrap();
    give(&mut w, "/t", 3 * 4096, 4).unwrap();
    let file = w.create(&USER, "/t/a", 0o644, 2).unwrap();
    // As much as there is room for, then the error.
    assert_eq!(w.write(&file, 4096, &[1; 20_000]), Ok(8192));
    assert_eq!(w.write(&file, 3 * 4096, b"x"), Err(EDQUOT));
    assert_eq!(w.write(&file, 0, &[2; 4096]), Ok(4096), "what is there can be written");
    assert_eq!(w.ftruncate(&file, 3 * 4096 + 1).map(drop), Err(EDQUOT));
    assert_eq!(w.ftruncate(&file, FILE_SIZE_MAX + 1).map(drop), Err(EFBIG));
    assert_eq!(w.fallocate(&file, 3 * 4096, 1, 8), Err(EOPNOTSUPP));
    assert_eq!(w.truncate(&USER, "/t/a", 1 << 40).map(drop), Err(EDQUOT));
    assert_eq!(w.fallocate(&file, 3 * 4096, 1, 0), Err(EDQUOT));
    assert_eq!(w.fallocate(&file, 3 * 4096, 1, 1), Ok(()), "it does not become longer");
    assert_eq!(w.copy((&file, 0), (&file, 3 * 4096), 10), Err(EDQUOT));
    assert_eq!(w.fstat(&file).unwrap().size, 3 * 4096);
    w.ftruncate(&file, 2 * 4096 + 1).unwrap();
    assert_eq!(
        w.copy((&file, 0), (&file, 2 * 4096 + 1), 8000),
        Ok(4095),
        "as far as there is room"
    );
    // Inodes of every kind.
    w.mkdir(&USER, "/t/d", 0o755).unwrap();
    w.symlink(&USER, "/t/d/l", "x").unwrap();
    assert_eq!(w.create(&USER, "/t/b", 0o644, 1).map(drop), Err(EDQUOT));
    assert_eq!(w.mkdir(&USER, "/t/d/b", 0o755).map(drop), Err(EDQUOT));
    assert_eq!(w.symlink(&USER, "/t/b", "x").map(drop), Err(EDQUOT));
    assert_eq!(w.mknod(&USER, "/t/b", 0o010_644, 0).map(drop), Err(EDQUOT));
    assert_eq!(w.tmpfile(&USER, "/t", 0o644, 2).map(drop), Err(EDQUOT));
    w.link(&USER, "/t/a", "/t/b").unwrap();
    w.create(&USER, "/free", 0o644, 1).unwrap();
    assert_eq!(used(&mut w, "/t"), (3 * 4096, 4));
    w.unlink(&USER, "/t/d/l").unwrap();
    assert_eq!(used(&mut w, "/t").1, 3);
    w.create(&USER, "/t/c", 0o644, 1).unwrap();
    w.unlink(&USER, "/t/a").unwrap();
    w.unlink(&USER, "/t/b").unwrap();
    let other = w.open(&USER, "/t/c", 1).unwrap();
    assert_eq!(w.write(&other, 0, b"x"), Err(EDQUOT), "it is open");
    w.release(&file).unwrap();
    assert_eq!(w.write(&other, 0, b"x"), Ok(1));
    assert_eq!(used(&mut w, "/t"), (4096, 3));
    w.restart();
    assert_eq!(used(&mut w, "/t"), (4096, 3));
}

#[test]
fn only_the_administrator_gives_quotas_and_only_to_directories() {
    let mut w = World::new();
    w.put(&USER, "/f", 0o644, b"x").unwrap();
    let row = |ino, remove| SetQuota { ino, bytes: NO_LIMIT, inodes: NO_LIMIT, remove };
    for client in [&ROOT, &USER] {
        assert_eq!(w.call(client, &row(1, 0), &[]), Err(EPERM), "{client:?}");
    }
    assert_eq!(give(&mut w, "/f", 1, 1), Err(ENOTDIR));
    assert_eq!(clear(&mut w, "/"), Err(ENOENT));
    assert_eq!(w.call(&ADMIN, &row(99, 0), &[]), Err(ESTALE));
    let gone = w.mkdir(&ROOT, "/d", 0o755).unwrap().ino;
    let held = w.open(&ROOT, "/d", 0o200_000).unwrap();
    w.rmdir(&ROOT, "/d").unwrap();
    assert_eq!(w.call(&ADMIN, &row(gone, 0), &[]), Err(ESTALE));
    w.release(&held).unwrap();
    let mut path = String::new();
    for depth in 0..TREE_DEPTH_MAX {
        path += "/d";
        w.mkdir(&ROOT, &path, 0o755).unwrap();
        assert_eq!(give(&mut w, &path, NO_LIMIT, NO_LIMIT), Ok(()), "{depth}");
    }
    path += "/d";
    w.mkdir(&ROOT, &path, 0o755).unwrap();
    assert_eq!(give(&mut w, &path, NO_LIMIT, NO_LIMIT), Err(ELOOP));
    assert_eq!(all(&mut w).len(), TREE_DEPTH_MAX);
    assert_eq!(w.call(&USER, &Quotas { after: 0 }, &[]), Err(EPERM));
}

#[test]
fn what_is_there_already_is_counted_little_by_little_and_all_around_it() {
    let mut w = World::new();
    w.mkdir(&ROOT, "/t", 0o777).unwrap();
    w.mkdir(&ROOT, "/t/in", 0o777).unwrap();
    give(&mut w, "/t/in", NO_LIMIT, NO_LIMIT).unwrap();
    w.put(&ROOT, "/t/in/f", 0o644, &[1; 5000]).unwrap();
    let many = 3 * TREE_WALK_BATCH as u64;
    for number in 0..many {
        w.put(&ROOT, &format!("/t/{number}"), 0o644, b"x").unwrap();
    }
    give(&mut w, "/t", 4096, 1).unwrap();
    assert!(all(&mut w).iter().all(|quota| quota.is_counting == 1));
    w.clock = w.server.deadline().unwrap();
    w.tick();
    let (_, some) = used(&mut w, "/t");
    assert!(some > 1 && some < many, "{some}");
    fsck::check(&mut w);
    w.restart();
    // What is made meanwhile is counted, and there is more than there may be.
    assert_eq!(w.create(&ROOT, "/t/new", 0o644, 1).map(drop), Err(EDQUOT));
    w.pass(10);
    assert!(all(&mut w).iter().all(|quota| quota.is_counting == 0));
    assert_eq!(used(&mut w, "/t"), ((many + 2) * 4096, many + 3));
    assert_eq!(used(&mut w, "/t/in"), (8192, 2));
    assert_eq!(w.server.deadline(), None);
    // The outer one refuses as well.
    assert_eq!(w.create(&ROOT, "/t/in/new", 0o644, 1).map(drop), Err(EDQUOT));
    clear(&mut w, "/t").unwrap();
    w.pass(10);
    w.create(&ROOT, "/t/in/new", 0o644, 1).unwrap();
    assert_eq!((all(&mut w).len(), used(&mut w, "/t/in")), (1, (8192, 3)));
    clear(&mut w, "/t/in").unwrap();
    w.pass(10);
    assert!(all(&mut w).is_empty() && w.server.trees.is_empty());
}

#[test]
fn from_one_tree_to_another_files_move_with_what_they_count_and_full_directories_do_not() {
    let mut w = World::new();
    for path in ["/a", "/b", "/a/full", "/a/empty", "/b/root"] {
        w.mkdir(&ROOT, path, 0o777).unwrap();
    }
    w.put(&ROOT, "/a/full/f", 0o644, b"x").unwrap();
    w.put(&ROOT, "/a/f", 0o644, &[1; 8192]).unwrap();
    w.put(&ROOT, "/a/two", 0o644, b"x").unwrap();
    w.put(&ROOT, "/old", 0o644, b"x").unwrap();
    w.link(&ROOT, "/old", "/a/old").unwrap();
    for (path, bytes) in [("/a", NO_LIMIT), ("/b", 2 * 4096), ("/b/root", NO_LIMIT)] {
        give(&mut w, path, bytes, NO_LIMIT).unwrap();
    }
    w.pass(1);
    w.link(&ROOT, "/a/two", "/a/names").unwrap();
    assert_eq!(w.link(&ROOT, "/a/f", "/b/f").map(drop), Err(EXDEV));
    for (old, new) in
        [("/a/full", "/b/full"), ("/a/two", "/b/two"), ("/b/root", "/root"), ("/a/full", "/full")]
    {
        assert_eq!(w.rename(&ROOT, old, new, 0), Err(EXDEV), "{old}");
    }
    assert_eq!(w.rename(&ROOT, "/a/f", "/b/root", RENAME_EXCHANGE), Err(EXDEV));
    w.rename(&ROOT, "/a/full", "/a/other", 0).unwrap();
    assert_eq!(w.link(&ROOT, "/old", "/new").map(drop), Err(EXDEV), "it is counted below /a");
    assert_eq!(w.rename(&ROOT, "/a/old", "/b/old", 0), Err(EXDEV));
    assert_eq!(used(&mut w, "/a"), (5 * 4096, 7));
    w.unlink(&ROOT, "/old").unwrap();
    w.unlink(&ROOT, "/a/old").unwrap();
    w.rename(&ROOT, "/a/empty", "/b/empty", 0).unwrap();
    w.rename(&ROOT, "/a/f", "/b/f", 0).unwrap();
    assert_eq!((used(&mut w, "/a"), used(&mut w, "/b")), ((2 * 4096, 4), (2 * 4096, 4)));
    w.put(&ROOT, "/one", 0o644, b"x").unwrap();
    assert_eq!(w.rename(&ROOT, "/one", "/b/one", 0), Err(EDQUOT));
    assert_eq!(w.rename(&ROOT, "/one", "/b/empty/one", 0), Err(EDQUOT), "it has come along");
    // Within it, or to what it is within, it needs no room.
    w.rename(&ROOT, "/b/f", "/b/root/f", 0).unwrap();
    assert_eq!((used(&mut w, "/b"), used(&mut w, "/b/root")), ((2 * 4096, 4), (2 * 4096, 2)));
    w.rename(&ROOT, "/b/root/f", "/b/f", 0).unwrap();
    // What gives way makes room.
    w.put(&ROOT, "/large", 0o644, &[1; 8193]).unwrap();
    for flags in [0, RENAME_EXCHANGE] {
        assert_eq!(w.rename(&ROOT, "/large", "/b/f", flags), Err(EDQUOT));
    }
    w.rename(&ROOT, "/b/f", "/one", RENAME_EXCHANGE).unwrap();
    assert_eq!(used(&mut w, "/b"), (4096, 4));
    w.put(&ROOT, "/b/g", 0o644, b"x").unwrap();
    w.rename(&ROOT, "/one", "/b/root/g", 0).unwrap_err();
    w.put(&ROOT, "/small", 0o644, b"x").unwrap();
    w.rename(&ROOT, "/small", "/b/f", 0).unwrap();
    w.unlink(&ROOT, "/b/g").unwrap();
    // A directory that goes takes its quota along.
    w.rmdir(&ROOT, "/b/root").unwrap();
    w.pass(1);
    assert_eq!((all(&mut w).len(), used(&mut w, "/b")), (2, (4096, 3)));
}

#[test]
fn a_file_with_names_in_several_trees_stays_where_it_is_counted_until_its_only_name_is_moved() {
    let mut w = World::new();
    for path in ["/a", "/b"] {
        w.mkdir(&ROOT, path, 0o777).unwrap();
    }
    for name in ["f", "g"] {
        w.put(&ROOT, &format!("/a/{name}"), 0o644, b"x").unwrap();
        w.link(&ROOT, &format!("/a/{name}"), &format!("/b/{name}")).unwrap();
    }
    give(&mut w, "/a", 4096, NO_LIMIT).unwrap();
    w.pass(1);
    give(&mut w, "/b", NO_LIMIT, NO_LIMIT).unwrap();
    w.pass(1);
    let both = |w: &mut World| (used(w, "/a"), used(w, "/b"));
    assert_eq!(both(&mut w), ((0, 1), (8192, 3)));
    // Nobody gets it out of there, or into where it is not counted, by more names.
    for new in ["/a/more", "/more"] {
        assert_eq!(w.link(&ROOT, "/a/f", new).map(drop), Err(EXDEV));
        assert_eq!(w.rename(&ROOT, "/b/f", new, 0), Err(EXDEV));
    }
    w.link(&ROOT, "/a/f", "/b/more").unwrap();
    w.rename(&ROOT, "/a/f", "/a/other", 0).unwrap();
    assert_eq!(both(&mut w), ((0, 1), (8192, 3)));
    for path in ["/b/f", "/b/more", "/b/g"] {
        w.unlink(&ROOT, path).unwrap();
    }
    assert_eq!(both(&mut w), ((0, 1), (8192, 3)), "where it has no name any more");
    w.rename(&ROOT, "/a/other", "/a/f", 0).unwrap();
    assert_eq!(both(&mut w), ((4096, 2), (4096, 2)));
    assert_eq!(w.rename(&ROOT, "/a/g", "/a/other", 0), Err(EDQUOT));
    w.rename(&ROOT, "/a/g", "/b/g", 0).unwrap();
    w.link(&ROOT, "/a/f", "/a/as any other").unwrap();
}

/// What a user can do to be counted nowhere while the walk is under way.
#[test]
fn a_walk_ends_whatever_is_moved_meanwhile() {
    let mut w = World::new();
    for path in ["/p", "/p/b", "/p/a", "/p/a/s"] {
        w.mkdir(&ROOT, path, 0o777).unwrap();
    }
    for number in 0..3 * TREE_WALK_BATCH {
        w.put(&ROOT, &format!("/p/b/{number}"), 0o644, b"").unwrap();
    }
    w.put(&ROOT, "/out", 0o644, b"").unwrap();
    give(&mut w, "/p", NO_LIMIT, NO_LIMIT).unwrap();
    let tree = |w: &mut World, path: &str| {
        let ino = w.stat(&ROOT, path).unwrap().ino;
        w.server.inodes.find(ino, &w.store).unwrap().unwrap().tree
    };
    // From where it is counted right to where nothing is yet, to be walked once more.
    while tree(&mut w, "/p/b") == 0 {
        assert_eq!(tree(&mut w, "/p/a/s"), 0, "it comes later");
        w.clock = w.server.deadline().unwrap();
        w.tick();
    }
    assert_eq!(tree(&mut w, "/p/a/s"), 0);
    assert_eq!(w.rename(&ROOT, "/p/b", "/p/a/s/b", 0), Err(EXDEV));
    w.pass(1);
    w.rename(&ROOT, "/p/b", "/p/a/s/b", 0).unwrap();
    assert_eq!(w.server.deadline(), None);
    // A file from outside may be what a walk has yet to come to, and is counted inside then; but not the other way round.
    give(&mut w, "/p/a/s", NO_LIMIT, NO_LIMIT).unwrap();
    w.link(&ROOT, "/out", "/p/in").unwrap();
    assert_eq!(w.link(&ROOT, "/out", "/again").map(drop), Err(EXDEV));
    assert_eq!(w.link(&ROOT, "/p/in", "/again").map(drop), Err(EXDEV));
}

#[test]
fn a_walk_may_end_at_any_name() {
    for count in TREE_WALK_BATCH - 3..TREE_WALK_BATCH + 3 {
        let mut w = World::new();
        for number in 0..count {
            w.put(&ROOT, &format!("/{number}"), 0o644, b"").unwrap();
        }
        for turn in 0..4 {
            if turn % 2 == 0 { give(&mut w, "/", NO_LIMIT, NO_LIMIT) } else { clear(&mut w, "/") }
                .unwrap();
            w.pass(1);
            assert_eq!(w.server.deadline(), None);
        }
    }
}

/// What has no name yet may get one wherever there is room.
#[test]
fn a_file_without_a_name_is_counted_where_it_gets_one() {
    let mut w = World::new();
    w.mkdir(&ROOT, "/t", 0o777).unwrap();
    let file = w.tmpfile(&ROOT, "/t", 0o644, 2).unwrap();
    w.write(&file, 0, &[1; 8192]).unwrap();
    give(&mut w, "/t", 4096, NO_LIMIT).unwrap();
    w.pass(1);
    assert_eq!(w.link_ino(&ROOT, file.ino, "/t/f").map(drop), Err(EDQUOT));
    w.ftruncate(&file, 1).unwrap();
    w.link_ino(&ROOT, file.ino, "/t/f").unwrap();
    assert_eq!(used(&mut w, "/t"), (4096, 2));
    w.release(&file).unwrap();
}

#[test]
fn who_holds_on_to_what_is_removed_has_it_counted_or_does_not_get_it_back() {
    let mut w = World::new();
    w.mkdir(&ROOT, "/t", 0o777).unwrap();
    give(&mut w, "/t", 4 * 4096, NO_LIMIT).unwrap();
    let ino = w.put(&ROOT, "/t/a", 0o666, &[1; 3 * 4096]).unwrap();
    w.unlink(&ROOT, "/t/a").unwrap();
    assert_eq!(used(&mut w, "/t"), (0, 1));
    let again = w.open_ino(&USER, ino, 2).unwrap();
    assert_eq!(used(&mut w, "/t"), (3 * 4096, 2));
    assert_eq!(w.write(&again, 3 * 4096, &[1; 8192]), Ok(4096));
    w.release(&again).unwrap();
    w.put(&ROOT, "/t/b", 0o666, b"x").unwrap();
    assert_eq!(w.open_ino(&USER, ino, 2 | O_TRUNC).map(drop), Err(ESTALE), "there is no room");
    // Making it longer does not bring it back.
    let longer = SetAttr { valid: set::SIZE, size: 5 * 4096, ..SetAttr::default() };
    w.call(&ROOT, &Setattr { ino, fh: 0 }, &longer.bytes()).map(drop).unwrap();
    assert_eq!(used(&mut w, "/t"), (4096, 2));
    w.unlink(&ROOT, "/t/b").unwrap();
    assert_eq!(w.open_ino(&USER, ino, 2).map(drop), Err(ESTALE));
    w.pass(1);
    assert_eq!(w.getattr(&ROOT, ino).map(drop), Err(ESTALE));
}

#[test]
fn who_begins_one_walk_anew_all_the_time_holds_up_no_other() {
    let mut w = World::new();
    for path in ["/a", "/a/old", "/a/q", "/a/q/x"] {
        w.mkdir(&ROOT, path, 0o777).unwrap();
    }
    for number in 0..3 * TREE_WALK_BATCH {
        w.put(&ROOT, &format!("/a/old/{number}"), 0o644, b"").unwrap();
    }
    give(&mut w, "/a", NO_LIMIT, NO_LIMIT).unwrap();
    let inner = w.stat(&ROOT, "/a/q/x").unwrap().ino;
    let mut ticks = 0;
    while w.server.inodes.find(inner, &w.store).unwrap().unwrap().tree == 0 {
        w.clock = w.server.deadline().unwrap();
        w.tick();
        // Counted anew, as one in another tree and back would be.
        w.walk_anew("/a/old");
        ticks += 1;
        assert!(ticks < 20, "it never comes to its turn");
    }
}

#[test]
fn walks_of_many_directories_are_few_at_a_time() {
    let mut w = World::new();
    for number in 0..2 * TREE_WALK_BATCH {
        w.mkdir(&ROOT, &format!("/{number}"), 0o755).unwrap();
        w.mkdir(&ROOT, &format!("/{number}/in"), 0o755).unwrap();
        w.put(&ROOT, &format!("/{number}/in/f"), 0o644, b"").unwrap();
    }
    give(&mut w, "/", NO_LIMIT, NO_LIMIT).unwrap();
    while let Some(deadline) = w.server.trees.deadline() {
        assert!(w.server.trees.walk_count() < 20);
        w.clock = deadline;
        w.tick();
    }
    assert_eq!(used(&mut w, "/"), (0, 1 + 6 * TREE_WALK_BATCH as u64));
}

#[test]
fn df_tells_what_the_tree_may_have() {
    let mut w = World::new();
    let whole = statfs(&mut w, "/");
    w.mkdir(&ROOT, "/t", 0o777).unwrap();
    give(&mut w, "/t", 100 * 4096, 50).unwrap();
    w.put(&ROOT, "/t/f", 0o644, &[1; 10 * 4096]).unwrap();
    for path in ["/t", "/t/f"] {
        let stats = statfs(&mut w, path);
        assert_eq!((stats.blocks, stats.blocks_free, stats.blocks_available), (100, 90, 90));
        assert_eq!((stats.files, stats.files_free), (50, 48));
    }
    assert_eq!(statfs(&mut w, "/").blocks, whole.blocks);
    give(&mut w, "/", NO_LIMIT, 20).unwrap();
    w.pass(1);
    assert_eq!((statfs(&mut w, "/t").files, statfs(&mut w, "/t").files_free), (20, 17));
    assert_eq!(statfs(&mut w, "/").blocks, whole.blocks);
}

#[test]
fn nothing_is_put_off_where_a_quota_leaves_too_little_room() {
    let mut w = World::new();
    let writer = Client { cred: USER.cred, ..agent(1) };
    w.mkdir(&ROOT, "/t", 0o777).unwrap();
    for (bytes, may) in [(NO_LIMIT, true), (SOLE_SPACE - 4096, false), (SOLE_SPACE, true)] {
        give(&mut w, "/t", bytes, NO_LIMIT).unwrap();
        let ino = w.put(&ROOT, "/t/f", 0o666, b"").unwrap();
        w.pass(2);
        w.begin(&agent(1));
        let (Opened { attr, fh }, _) = w.call(&writer, &Open { ino, flags: 1 }, &[]).unwrap();
        assert_eq!(attr & attributes::SOLE != 0, may, "{bytes}");
        w.release(&crate::tests::driver::File { fh, ino, client: writer }).unwrap();
        // Its session lapses.
        w.pass(10);
    }
}

#[derive(Clone, Debug)]
enum Op {
    Mkdir(String),
    Put(String, u16),
    Hold(String),
    Release(usize),
    Truncate(String, u16),
    Link(String, String),
    Unlink(String),
    Rmdir(String),
    Rename(String, String, u32),
    Set(String, u64, u64),
    Clear(String),
    Tick,
    Pass,
    Restart,
    Crash(Box<Op>),
}

fn an_op() -> impl Strategy<Value = Op> {
    let limit = || prop_oneof![Just(NO_LIMIT), 0..9_u64];
    let place = || prop_oneof![4 => a_path(), 1 => Just("/".to_owned())];
    let change = prop_oneof![
        4 => a_path().prop_map(Op::Mkdir),
        4 => (a_path(), 0..12_000_u16).prop_map(|(path, size)| Op::Put(path, size)),
        1 => a_path().prop_map(Op::Hold),
        1 => any::<usize>().prop_map(Op::Release),
        1 => (a_path(), 0..12_000_u16).prop_map(|(path, size)| Op::Truncate(path, size)),
        2 => (a_path(), a_path()).prop_map(|(old, new)| Op::Link(old, new)),
        2 => a_path().prop_map(Op::Unlink),
        1 => a_path().prop_map(Op::Rmdir),
        6 => (a_path(), a_path(), 0..3_u32).prop_map(|(old, new, flags)| Op::Rename(old, new, flags)),
        4 => (place(), limit(), limit()).prop_map(|(path, blocks, inodes)| Op::Set(path, blocks, inodes)),
        2 => place().prop_map(Op::Clear),
        3 => Just(Op::Tick),
        1 => Just(Op::Pass),
    ]
    .boxed();
    let crash = change.clone().prop_map(|op| Op::Crash(Box::new(op)));
    prop_oneof![16 => change, 1 => Just(Op::Restart), 2 => crash]
}

/// Does it, if it can be done.
fn step(w: &mut World, files: &mut Vec<crate::tests::driver::File>, op: &Op) {
    match op {
        Op::Mkdir(path) => drop(w.mkdir(&ROOT, path, 0o777)),
        Op::Put(path, size) => {
            if let Ok(file) = w.create(&ROOT, path, 0o666, 2 | O_TRUNC) {
                w.write(&file, 0, &vec![1; (*size).into()]).ok();
                w.release(&file).unwrap();
            }
        }
        Op::Hold(path) => files.extend(w.create(&ROOT, path, 0o666, 2 | O_TRUNC)),
        Op::Release(index) if !files.is_empty() => {
            let file = files.remove(index % files.len());
            w.release(&file).unwrap();
        }
        Op::Release(_) => {}
        Op::Truncate(path, size) => drop(w.truncate(&ROOT, path, (*size).into())),
        Op::Link(old, new) => drop(w.link(&ROOT, old, new)),
        Op::Unlink(path) => drop(w.unlink(&ROOT, path)),
        Op::Rmdir(path) => drop(w.rmdir(&ROOT, path)),
        Op::Rename(old, new, flags) => drop(w.rename(&ROOT, old, new, *flags)),
        Op::Set(path, blocks, inodes) => {
            give(w, path, blocks.saturating_mul(4096), *inodes).ok();
        }
        Op::Clear(path) => drop(clear(w, path)),
        Op::Tick => {
            w.clock = w.server.deadline().map_or(w.clock, |deadline| w.clock.max(deadline));
            w.tick();
        }
        Op::Pass => w.pass(1),
        Op::Restart => w.restart(),
        Op::Crash(op) => {
            let held = files.clone();
            w.crash_in(|w| step(w, files, op));
            *files = held;
        }
    }
}

/// What each tree has that has more than it may.
fn excess(w: &mut World) -> Vec<(u64, u64, u64)> {
    let over = |quota: &Quota| {
        let (bytes, inodes) = (
            quota.bytes.saturating_sub(quota.bytes_limit),
            quota.inodes.saturating_sub(quota.inodes_limit),
        );
        (bytes > 0 || inodes > 0).then_some((quota.ino, bytes, inodes))
    };
    all(w).iter().filter_map(over).collect()
}

proptest! {
    #[test]
    fn whatever_is_done_trees_count_what_is_in_them_and_nothing_grows_beyond_its_quota(
        ops in proptest::collection::vec(an_op(), 1..80),
    ) {
        let mut w = World::new();
        let mut files = Vec::new();
        for op in &ops {
            let before = excess(&mut w);
            let is_counting = w.server.trees.deadline().is_some();
            step(&mut w, &mut files, op);
            fsck::check(&mut w);
            let is_counting = is_counting || w.server.trees.deadline().is_some();
            if !is_counting && !matches!(op, Op::Set(..) | Op::Clear(_) | Op::Crash(_) | Op::Restart) {
                for (ino, bytes, inodes) in excess(&mut w) {
                    let was = before.iter().any(|(tree, most, more)| {
                        *tree == ino && bytes <= *most && inodes <= *more
                    });
                    assert!(was, "{op:?} made {ino} {bytes} bytes and {inodes} inodes too many");
                }
            }
        }
        for file in files {
            w.release(&file).unwrap();
        }
        w.pass(10);
        fsck::check(&mut w);
        assert_eq!(w.server.trees.deadline(), None);
        check_places(&mut w, "", 0);
        // And all is forgotten with the last quota.
        for quota in all(&mut w) {
            w.call(&ADMIN, &SetQuota { ino: quota.ino, bytes: 0, inodes: 0, remove: 1 }, &[]).unwrap();
        }
        w.pass(10);
        // But for files that had names in several.
        let mut left = Vec::new();
        keys::collect(&w.store, &(vec![b'I'], vec![b'J']), |_, value| {
            left.extend(Inode::get(value).filter(|inode| inode.tree != 0 && !inode.is_spread()));
        });
        assert!(left.is_empty() && all(&mut w).is_empty(), "{left:?}");
    }
}

/// Every name below `path` is counted in the innermost tree around it, which is `tree` for `path` itself.
fn check_places(w: &mut World, path: &str, tree: u16) {
    let here = w.stat(&ROOT, if path.is_empty() { "/" } else { path }).unwrap();
    let own = all(w).into_iter().find(|quota| quota.ino == here.ino);
    let tree = own.map_or(tree, |quota| quota.tree);
    let inode = w.server.inodes.find(here.ino, &w.store).unwrap().unwrap();
    assert!(inode.tree == tree || inode.is_spread(), "{path}: {inode:?}");
    if inode.is_directory() {
        for name in w.ls(&ROOT, if path.is_empty() { "/" } else { path }).unwrap() {
            check_places(w, &format!("{path}/{name}"), tree);
        }
    }
}
