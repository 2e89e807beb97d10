//! Crashes of the server, deaths of its callers: what stays and what goes.

use crate::linux::{O_APPEND, O_EXCL};
use crate::tests::driver::{ALIEN, Got, MATE, ROOT, USER, World};
use crate::tests::errors::world;
use crate::{UnknownStore, VfsServer, keys};
use calls::vfs::Lock;
use dvk::server::Gone;
use dvk::store::{MemoryStore, Store};
use m3ipc::NodeId;
use m3ipc::errno::numbers::{EAGAIN, EBADF, ENOENT, ESTALE};

const WRITE_ALL: Lock = Lock { owner: 1, start: 0, end: i64::MAX as u64, pid: 0, kind: 1 };

#[test]
fn open_files_nameless_files_and_locks_survive_a_crash_of_the_server() {
    let mut w = world();
    let file = w.open(&USER, "/u/f", 2 | O_APPEND).unwrap();
    let other = w.open(&USER, "/u/f", 2).unwrap();
    w.lock(&file, Lock { start: 5, end: 9, ..WRITE_ALL }, 0).unwrap();
    w.lock(&file, WRITE_ALL, 1).unwrap();
    w.unlink(&USER, "/u/f").unwrap();
    w.restart();
    w.pass(10);
    w.write(&file, 0, b"!").unwrap();
    assert_eq!(w.read(&file, 0, 9).unwrap(), b"hello!", "and it still appends");
    assert_eq!(w.lock(&other, Lock { owner: 2, ..WRITE_ALL }, 0), Err(EAGAIN));
    assert_eq!(w.lock(&other, Lock { owner: 2, start: 0, end: 4, ..WRITE_ALL }, 0), Ok(()));
    assert_eq!(w.lock(&other, Lock { owner: 2, ..WRITE_ALL }, 1), Err(EAGAIN));
    assert_eq!(w.server.holders(), [USER.endpoint]);
    w.release(&file).unwrap();
    w.release(&other).unwrap();
    w.restart();
    w.pass(10);
    assert_eq!(w.getattr(&USER, file.ino).map(drop), Err(ESTALE));
}

#[test]
fn a_file_made_without_a_name_survives_a_crash_and_may_get_one_while_it_is_open() {
    let mut w = world();
    let free = w.tmpfile(&USER, "/u/d", 0o640, 2).unwrap();
    let bound = w.tmpfile(&USER, "/u/d", 0o640, 2 | O_EXCL).unwrap();
    let closed = w.tmpfile(&USER, "/u/d", 0o640, 2).unwrap();
    w.write(&free, 0, b"kept").unwrap();
    w.restart();
    w.release(&closed).unwrap();
    assert_eq!(w.link_ino(&USER, closed.ino, "/u/late").map(drop), Err(ENOENT), "it is closed");
    w.pass(10);
    assert_eq!(w.getattr(&USER, closed.ino).map(drop), Err(ESTALE));
    assert_eq!(w.getattr(&USER, free.ino).unwrap().nlink, 0);
    assert_eq!(w.link_ino(&USER, bound.ino, "/u/no").map(drop), Err(ENOENT));
    assert_eq!(w.link_ino(&USER, free.ino, "/u/named").unwrap().nlink, 1);
    w.unlink(&USER, "/u/named").unwrap();
    assert_eq!(w.link_ino(&USER, free.ino, "/u/again").map(drop), Err(ENOENT), "it had a name");
    assert_eq!(w.read(&free, 0, 9).unwrap(), b"kept");
    w.release(&free).unwrap();
    w.restart();
    w.pass(10);
    assert_eq!(w.getattr(&USER, free.ino).map(drop), Err(ESTALE));
}

#[test]
fn a_waiting_call_is_forgotten_by_a_crash_and_waits_again_when_it_comes_again() {
    let mut w = world();
    let file = w.open(&USER, "/u/f", 2).unwrap();
    w.lock(&file, WRITE_ALL, 0).unwrap();
    let lost = w.lock_wait(&file, Lock { owner: 2, ..WRITE_ALL }, 0);
    w.restart();
    let again = w.lock_wait(&file, Lock { owner: 2, ..WRITE_ALL }, 0);
    w.flush(&file, 1).unwrap();
    assert!(w.answer(lost).is_none());
    w.answer(again).unwrap().unwrap();
}

#[test]
fn a_round_that_was_not_committed_has_not_happened() {
    let mut w = world();
    let changes: [fn(&mut World) -> Got<()>; 7] = [
        |w| w.mkdir(&USER, "/u/n", 0o755).map(drop),
        |w| w.put(&USER, "/u/n", 0o644, b"new").map(drop),
        |w| w.rename(&USER, "/u/d", "/u/empty", 0),
        |w| w.unlink(&USER, "/u/f"),
        |w| w.open(&USER, "/u/f", 0).map(drop),
        |w| w.setxattr(&USER, "/u/f", "user.a", b"x", 0),
        |w| w.truncate(&USER, "/u/f", 0).map(drop),
    ];
    let names = w.ls(&USER, "/u").unwrap();
    for (at, change) in changes.into_iter().enumerate() {
        w.crash_in(|w| change(w).unwrap());
        assert_eq!(w.ls(&USER, "/u").unwrap(), names, "change {at}");
        assert_eq!(w.cat(&USER, "/u/f").unwrap(), b"hello", "change {at}");
        assert_eq!(w.server.holders(), [], "change {at}");
    }
}

#[test]
fn who_is_gone_leaves_no_handle_no_lock_and_no_nameless_file() {
    for gone in [Gone::Endpoint(MATE.endpoint), Gone::Node(NodeId(2))] {
        let mut w = world();
        w.chmod(&USER, "/u/f", 0o666).unwrap();
        let [mine, theirs] = [&USER, &MATE].map(|client| w.open(client, "/u/f", 2).unwrap());
        let theirs_second = w.open(&MATE, "/u/f", 2).unwrap();
        let nameless = w.open(&MATE, "/t/mate", 0).unwrap();
        w.unlink(&MATE, "/t/mate").unwrap();
        w.lock(&theirs, WRITE_ALL, 0).unwrap();
        w.lock(&theirs, WRITE_ALL, 1).unwrap();
        let theirs_too = w.lock_wait(&theirs_second, Lock { owner: 9, ..WRITE_ALL }, 0);
        let waiting = w.lock_wait(&mine, WRITE_ALL, 0);
        w.gone(Gone::Endpoint(ALIEN.endpoint));
        assert!(w.answer(waiting).is_none());
        w.gone(gone);
        w.answer(waiting).unwrap().unwrap();
        assert!(w.answer(theirs_too).is_none());
        w.lock(&mine, WRITE_ALL, 1).unwrap();
        assert_eq!(w.read(&theirs, 0, 9), Err(EBADF));
        assert_eq!(w.server.holders(), [USER.endpoint]);
        w.pass(10);
        assert_eq!(w.getattr(&ROOT, nameless.ino).map(drop), Err(ESTALE));
    }
}

#[test]
fn a_store_of_another_version_is_refused_untouched() {
    for (version, want) in [(&b"\x63\0\0\0"[..], Some(99)), (b"\x01", None), (b"", None)] {
        let mut store = MemoryStore::default();
        store.put(keys::VERSION_KEY, version);
        let refused = VfsServer::open(&mut store, 0).map(drop);
        assert_eq!(refused, Err(UnknownStore { version: want }));
        assert!(!UnknownStore { version: want }.to_string().is_empty());
        assert_eq!(store.get(keys::COUNTERS), None);
    }
}

#[test]
fn a_damaged_record_is_eio_for_those_who_need_it_and_for_nobody_else() {
    let mut w = world();
    let ino = w.stat(&USER, "/u/f").unwrap().ino;
    let whole = w.store.get(&keys::inode(ino)).unwrap();
    w.restart();
    w.store.put(&keys::inode(ino), &whole[..10]);
    assert_eq!(w.stat(&USER, "/u/f").map(drop), Err(m3ipc::errno::numbers::EIO));
    assert_eq!(w.cat(&USER, "/u/d/f").unwrap(), b"deep");
    w.store.put(&keys::inode(ino), &whole);
}

#[test]
fn a_store_without_access_control_lists_is_taken_over() {
    let mut w = world();
    let before = w.stat(&USER, "/u/f").unwrap();
    w.store.put(keys::VERSION_KEY, &keys::OLDEST_VERSION.to_le_bytes());
    w.restart();
    assert_eq!(w.store.get(keys::VERSION_KEY), Some(keys::VERSION.to_le_bytes().to_vec()));
    assert_eq!(w.stat(&USER, "/u/f").unwrap(), before);
}
