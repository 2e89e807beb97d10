//! Each call's errors, as Linux gives them: tables of what is tried and what comes of it.

use crate::limits::{FILE_SIZE_MAX, LINK_MAX, XATTR_SIZE_MAX};
use crate::linux::{
    FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, O_APPEND, O_CREAT, O_DIRECTORY, O_EXCL, O_NOATIME,
    O_TMPFILE_BIT, O_TRUNC, RENAME_EXCHANGE, RENAME_NOREPLACE, S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO,
    S_IFLNK, S_IFREG, S_IFSOCK, SEEK_DATA, SEEK_HOLE, XATTR_CREATE, XATTR_REPLACE,
};
use crate::tests::driver::{ALIEN, Client, Got, MATE, ROOT, USER, World};
use calls::vfs::{
    Getattr, Getlk, Lock, Mkdir, Open, ROOT_INO, Read, Readlink, Rename, SetAttr, Setattr, Setlk,
    Statfs, Symlink, set,
};
use m3ipc::Message;
use m3ipc::errno::numbers::{
    E2BIG, EACCES, EAGAIN, EBADF, EBUSY, EEXIST, EFBIG, EINVAL, EISDIR, ELOOP, EMLINK,
    ENAMETOOLONG, ENODATA, ENOENT, ENOSPC, ENOSYS, ENOTDIR, ENOTEMPTY, ENXIO, EOPNOTSUPP, EPERM,
    ERANGE, ESTALE,
};

/// What is tried in a world made by [`world`], and the errno (0: it succeeds).
type Case = (&'static str, fn(&mut World) -> Got<()>, i32);

/// Each case has a world of its own.
fn check(cases: &[Case]) {
    for (what, attempt, want) in cases {
        let mut world = world();
        assert_eq!(attempt(&mut world).err().unwrap_or(0), *want, "{what}");
    }
}

/// Directories of the superuser (`/r`), of the user (`/u`), of everybody (`/t`, sticky), and one
/// that only its owner, the superuser, may search (`/p`); files of all types in `/u`.
pub(crate) fn world() -> World {
    let mut w = World::new();
    for (path, mode) in [("/r", 0o755), ("/u", 0o755), ("/t", 0o1777), ("/p", 0o700)] {
        w.mkdir(&ROOT, path, mode).unwrap();
    }
    w.chown(&ROOT, "/u", Some(1000), Some(100)).unwrap();
    w.put(&ROOT, "/r/f", 0o600, b"root").unwrap();
    w.put(&ROOT, "/r/x", 0o711, b"program").unwrap();
    w.put(&ROOT, "/p/f", 0o644, b"private").unwrap();
    w.put(&USER, "/u/f", 0o644, b"hello").unwrap();
    w.mkdir(&USER, "/u/d", 0o755).unwrap();
    w.mkdir(&USER, "/u/d/e", 0o755).unwrap();
    w.put(&USER, "/u/d/f", 0o600, b"deep").unwrap();
    w.mkdir(&USER, "/u/empty", 0o755).unwrap();
    w.symlink(&USER, "/u/l", "f").unwrap();
    w.mknod(&USER, "/u/fifo", S_IFIFO | 0o644, 0).unwrap();
    w.put(&MATE, "/t/mate", 0o666, b"mate").unwrap();
    w.mkdir(&MATE, "/t/mated", 0o777).unwrap();
    w
}

const LONG: &str = "/u/xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\
xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\
xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";

fn long() -> String {
    LONG.chars().take(3 + 256).collect()
}

fn longest() -> String {
    LONG.chars().take(3 + 255).collect()
}

#[test]
fn lookup_says_what_is_in_the_way() {
    check(&[
        ("a file", |w| w.stat(&USER, "/u/f").map(drop), 0),
        ("a link itself", |w| w.stat(&USER, "/u/l").map(drop), 0),
        ("dot", |w| w.stat(&USER, "/u/.").map(drop), 0),
        ("dot dot", |w| w.stat(&USER, "/u/..").map(drop), 0),
        ("nothing", |w| w.stat(&USER, "/u/none").map(drop), ENOENT),
        ("below nothing", |w| w.stat(&USER, "/u/none/f").map(drop), ENOENT),
        ("below a file", |w| w.stat(&USER, "/u/f/f").map(drop), ENOTDIR),
        ("below a link", |w| w.stat(&USER, "/u/l/f").map(drop), ENOTDIR),
        ("no search permission", |w| w.stat(&USER, "/p/f").map(drop), EACCES),
        ("not even for what is not there", |w| w.stat(&USER, "/p/none").map(drop), EACCES),
        ("the superuser", |w| w.stat(&ROOT, "/p/f").map(drop), 0),
        ("an empty name", |w| w.stat(&USER, "/u/").map(drop), ENOENT),
        ("a name too long", |w| w.stat(&USER, &long()).map(drop), ENAMETOOLONG),
        ("a NUL", |w| w.stat(&USER, "/u/a\0b").map(drop), EINVAL),
        ("a slash", |w| w.lookup_in(&USER, ROOT_INO, "u/f").map(drop), EINVAL),
        ("an inode that never was", |w| w.lookup_in(&USER, 999_999, "f").map(drop), ENOENT),
    ]);
}

#[test]
fn getattr_of_a_lost_inode_is_stale_and_of_a_lost_handle_bad() {
    check(&[
        ("the root", |w| w.getattr(&ALIEN, ROOT_INO).map(drop), 0),
        ("never was", |w| w.getattr(&USER, 999_999).map(drop), ESTALE),
        ("inode 0", |w| w.getattr(&USER, 0).map(drop), ESTALE),
        (
            "no such handle",
            |w| w.call(&USER, &Getattr { ino: ROOT_INO, fh: 77 }, &[]).map(drop),
            EBADF,
        ),
        ("statfs", |w| w.call(&USER, &Statfs { ino: ROOT_INO }, &[]).map(drop), 0),
        ("readlink of a file", |w| w.readlink(&USER, "/u/f").map(drop), EINVAL),
        (
            "readlink of nothing",
            |w| w.call(&USER, &Readlink { ino: 999_999 }, &[]).map(drop),
            ESTALE,
        ),
    ]);
}

#[test]
fn making_a_name_needs_a_free_name_and_a_writable_directory() {
    type Maker = fn(&mut World, &Client, &str) -> Got<()>;
    const MAKERS: [Maker; 5] = [
        |w, c, path| w.mkdir(c, path, 0o755).map(drop),
        |w, c, path| w.mknod(c, path, S_IFIFO | 0o644, 0).map(drop),
        |w, c, path| w.symlink(c, path, "target").map(drop),
        |w, c, path| w.link(c, "/t/mate", path).map(drop),
        |w, c, path| w.create(c, path, 0o644, O_EXCL).map(drop),
    ];
    for (at, make) in MAKERS.into_iter().enumerate() {
        for (client, path, want) in [
            (&USER, "/u/new", 0),
            (&MATE, "/t/new", 0),
            (&USER, longest().as_str(), 0),
            (&USER, "/u/f", EEXIST),
            (&USER, "/u/d", EEXIST),
            (&USER, "/u/l", EEXIST),
            (&USER, "/u/.", EEXIST),
            (&USER, "/u/..", EEXIST),
            (&USER, "/u/none/new", ENOENT),
            (&USER, "/u/f/new", ENOTDIR),
            (&USER, "/u/", ENOENT),
            (&USER, long().as_str(), ENAMETOOLONG),
            (&USER, "/p/new", EACCES),
            (&USER, "/r/new", EACCES),
            // That it is there already comes first.
            (&USER, "/r/f", EEXIST),
            (&MATE, "/u/new", EACCES),
            (&ROOT, "/u/new", 0),
        ] {
            let got = make(&mut world(), client, path).err().unwrap_or(0);
            assert_eq!(got, want, "maker {at}: {} {path}", client.cred.uid);
        }
    }
}

#[test]
fn a_removed_directory_takes_no_new_names_and_has_none() {
    let mut w = world();
    let parent = w.stat(&USER, "/u/empty").unwrap().ino;
    let dir = w.open(&USER, "/u/empty", O_DIRECTORY).unwrap();
    w.rmdir(&USER, "/u/empty").unwrap();
    let mkdir = Mkdir { parent, mode: 0o755, umask: 0 };
    assert_eq!(w.call(&USER, &mkdir, b"x"), Err(ENOENT));
    assert_eq!(w.lookup_in(&USER, parent, "x").map(drop), Err(ENOENT));
    assert_eq!(w.readdir(&dir, 0, 1000).map(drop), Err(ENOENT));
    assert_eq!(w.fstat(&dir).unwrap().nlink, 0);
    w.release(&dir).unwrap();
    w.pass(10);
    assert_eq!(w.call(&USER, &mkdir, b"x"), Err(ENOENT), "also when it is forgotten");
    assert_eq!(w.getattr(&USER, parent).map(drop), Err(ESTALE));
}

#[test]
fn mknod_makes_devices_for_the_superuser_only() {
    check(&[
        ("a file", |w| w.mknod(&USER, "/u/n", S_IFREG | 0o644, 0).map(drop), 0),
        ("no type is a file", |w| w.mknod(&USER, "/u/n", 0o644, 0).map(drop), 0),
        ("a socket", |w| w.mknod(&USER, "/u/n", S_IFSOCK | 0o644, 0).map(drop), 0),
        ("a character device", |w| w.mknod(&USER, "/u/n", S_IFCHR | 0o644, 0x103).map(drop), EPERM),
        ("a block device", |w| w.mknod(&USER, "/u/n", S_IFBLK | 0o644, 0).map(drop), EPERM),
        ("a whiteout", |w| w.mknod(&USER, "/u/n", S_IFCHR, 0).map(drop), 0),
        ("a directory", |w| w.mknod(&ROOT, "/u/n", S_IFDIR | 0o755, 0).map(drop), EPERM),
        ("a link", |w| w.mknod(&ROOT, "/u/n", S_IFLNK | 0o755, 0).map(drop), EINVAL),
        (
            "a device of root",
            |w| {
                w.mknod(&ROOT, "/u/n", S_IFCHR | 0o600, 0x103)
                    .map(|attr| assert_eq!(attr.rdev, 0x103))
            },
            0,
        ),
    ]);
}

#[test]
fn a_symbolic_link_has_a_target_of_1_to_4095_bytes() {
    check(&[
        ("empty", |w| w.symlink(&USER, "/u/n", "").map(drop), ENOENT),
        (
            "longest",
            |w| w.symlink(&USER, "/u/n", &"x".repeat(4095)).map(|attr| assert_eq!(attr.size, 4095)),
            0,
        ),
        ("too long", |w| w.symlink(&USER, "/u/n", &"x".repeat(4096)).map(drop), ENAMETOOLONG),
        ("NUL", |w| w.symlink(&USER, "/u/n", "a\0").map(drop), EINVAL),
        (
            "name_len too long",
            |w| w.call(&USER, &Symlink { parent: ROOT_INO, name_len: 9 }, b"short").map(drop),
            EINVAL,
        ),
    ]);
}

#[test]
fn link_refuses_directories_and_what_has_no_name_or_too_many() {
    check(&[
        ("a directory", |w| w.link(&ROOT, "/u/d", "/u/n").map(drop), EPERM),
        (
            "a link itself",
            |w| w.link(&USER, "/u/l", "/u/n").map(|attr| assert_eq!(attr.nlink, 2)),
            0,
        ),
        (
            "without a name",
            |w| {
                let file = w.open(&USER, "/u/f", 0)?;
                let new_parent = w.stat(&USER, "/u")?.ino;
                w.unlink(&USER, "/u/f")?;
                w.call(&USER, &calls::vfs::Link { ino: file.ino, new_parent }, b"n").map(drop)
            },
            ENOENT,
        ),
    ]);
    let mut w = world();
    for at in 1..LINK_MAX {
        w.link(&USER, "/u/f", &format!("/u/{at}")).unwrap();
    }
    assert_eq!(w.link(&USER, "/u/f", "/u/last").map(drop), Err(EMLINK));
    w.unlink(&USER, "/u/17").unwrap();
    w.link(&USER, "/u/f", "/u/last").unwrap();
}

#[test]
fn unlink_and_rmdir_know_files_from_directories() {
    check(&[
        ("unlink", |w| w.unlink(&USER, "/u/f"), 0),
        (
            "unlink a link",
            |w| w.unlink(&USER, "/u/l").and_then(|()| w.stat(&USER, "/u/f").map(drop)),
            0,
        ),
        ("unlink nothing", |w| w.unlink(&USER, "/u/none"), ENOENT),
        ("unlink a directory", |w| w.unlink(&USER, "/u/d"), EISDIR),
        ("unlink dot", |w| w.unlink(&USER, "/u/."), EISDIR),
        ("unlink below a file", |w| w.unlink(&USER, "/u/f/f"), ENOTDIR),
        ("unlink in another's directory", |w| w.unlink(&MATE, "/u/f"), EACCES),
        ("ENOENT comes before EACCES", |w| w.unlink(&MATE, "/u/none"), ENOENT),
        ("EACCES comes before EISDIR", |w| w.unlink(&MATE, "/u/d"), EACCES),
        ("rmdir", |w| w.rmdir(&USER, "/u/empty"), 0),
        ("rmdir nothing", |w| w.rmdir(&USER, "/u/none"), ENOENT),
        ("rmdir a file", |w| w.rmdir(&USER, "/u/f"), ENOTDIR),
        ("rmdir a link", |w| w.rmdir(&USER, "/u/l"), ENOTDIR),
        ("rmdir what is not empty", |w| w.rmdir(&USER, "/u/d"), ENOTEMPTY),
        ("rmdir dot", |w| w.rmdir(&USER, "/u/empty/."), EINVAL),
        ("rmdir dot dot", |w| w.rmdir(&USER, "/u/empty/.."), ENOTEMPTY),
        ("rmdir in another's directory", |w| w.rmdir(&MATE, "/u/empty"), EACCES),
    ]);
}

#[test]
fn rename_moves_replaces_and_refuses() {
    check(&[
        ("move", |w| w.rename(&USER, "/u/f", "/u/d/new", 0), 0),
        (
            "to itself",
            |w| w.rename(&USER, "/u/f", "/u/f", 0).and_then(|()| w.stat(&USER, "/u/f").map(drop)),
            0,
        ),
        (
            "to another name of the same",
            |w| {
                w.link(&USER, "/u/f", "/u/g")?;
                w.rename(&USER, "/u/f", "/u/g", 0)?;
                w.stat(&USER, "/u/f").map(drop)
            },
            0,
        ),
        ("replace a file", |w| w.rename(&USER, "/u/f", "/u/d/f", 0), 0),
        ("replace a link", |w| w.rename(&USER, "/u/f", "/u/l", 0), 0),
        ("replace an empty directory", |w| w.rename(&USER, "/u/d", "/u/empty", 0), 0),
        (
            "replace a directory with something in it",
            |w| w.rename(&USER, "/u/empty", "/u/d", 0),
            ENOTEMPTY,
        ),
        ("a directory over a file", |w| w.rename(&USER, "/u/d", "/u/f", 0), ENOTDIR),
        ("a file over a directory", |w| w.rename(&USER, "/u/f", "/u/empty", 0), EISDIR),
        ("nothing", |w| w.rename(&USER, "/u/none", "/u/new", 0), ENOENT),
        ("to nowhere", |w| w.rename(&USER, "/u/f", "/u/none/new", 0), ENOENT),
        ("below a file", |w| w.rename(&USER, "/u/d", "/u/f/new", 0), ENOTDIR),
        ("into itself", |w| w.rename(&USER, "/u/d", "/u/d/new", 0), EINVAL),
        ("below itself", |w| w.rename(&USER, "/u/d", "/u/d/e/new", 0), EINVAL),
        ("over its own parent", |w| w.rename(&USER, "/u/d/e", "/u/d", 0), ENOTEMPTY),
        ("over what is above it", |w| w.rename(&ROOT, "/u/d/f", "/u", 0), ENOTEMPTY),
        ("dot", |w| w.rename(&USER, "/u/.", "/u/new", 0), EBUSY),
        ("to dot dot", |w| w.rename(&USER, "/u/f", "/u/d/..", 0), EBUSY),
        ("too long", |w| w.rename(&USER, "/u/f", &long(), 0), ENAMETOOLONG),
        ("from another's directory", |w| w.rename(&MATE, "/u/f", "/t/f", 0), EACCES),
        ("into another's directory", |w| w.rename(&MATE, "/t/mate", "/u/g", 0), EACCES),
        (
            "a directory one may not write, elsewhere",
            |w| {
                w.chmod(&USER, "/u/d", 0o555)?;
                w.rename(&USER, "/u/d", "/t/d", 0)
            },
            EACCES,
        ),
        (
            "a directory one may not write, in place",
            |w| {
                w.chmod(&USER, "/u/d", 0o555)?;
                w.rename(&USER, "/u/d", "/u/d2", 0)
            },
            0,
        ),
        ("noreplace", |w| w.rename(&USER, "/u/f", "/u/new", RENAME_NOREPLACE), 0),
        ("noreplace, there", |w| w.rename(&USER, "/u/f", "/u/l", RENAME_NOREPLACE), EEXIST),
        ("noreplace, itself", |w| w.rename(&USER, "/u/f", "/u/f", RENAME_NOREPLACE), EEXIST),
        ("exchange", |w| w.rename(&USER, "/u/f", "/u/d", RENAME_EXCHANGE), 0),
        (
            "exchange a directory one may not write, elsewhere",
            |w| {
                w.put(&USER, "/t/file", 0o644, b"")?;
                w.chmod(&USER, "/u/d", 0o555)?;
                w.rename(&USER, "/t/file", "/u/d", RENAME_EXCHANGE)
            },
            EACCES,
        ),
        ("exchange with nothing", |w| w.rename(&USER, "/u/f", "/u/new", RENAME_EXCHANGE), ENOENT),
        (
            "exchange with what is below",
            |w| w.rename(&USER, "/u/d", "/u/d/e", RENAME_EXCHANGE),
            EINVAL,
        ),
        (
            "exchange with what is above",
            |w| w.rename(&USER, "/u/d/e", "/u/d", RENAME_EXCHANGE),
            EINVAL,
        ),
        ("unknown flags", |w| w.rename(&USER, "/u/f", "/u/new", 4), EINVAL),
        ("both flags", |w| w.rename(&USER, "/u/f", "/u/new", 3), EINVAL),
        (
            "name_len too long",
            |w| {
                let row = Rename {
                    parent: ROOT_INO,
                    new_parent: ROOT_INO,
                    forgotten: 0,
                    new_forgotten: 0,
                    name_len: 99,
                    flags: 0,
                };
                w.call(&ROOT, &row, b"uv").map(drop)
            },
            EINVAL,
        ),
        ("sticky, another's file", |w| w.rename(&USER, "/t/mate", "/t/mine", 0), EPERM),
        ("sticky, over another's file", |w| w.rename(&USER, "/u/f", "/t/mate", 0), EPERM),
        ("sticky, one's own", |w| w.rename(&MATE, "/t/mate", "/t/mine", 0), 0),
        ("sticky, the superuser", |w| w.rename(&ROOT, "/t/mate", "/t/mine", 0), 0),
    ]);
}

#[test]
fn open_checks_type_then_permission_then_owner() {
    check(&[
        ("read", |w| w.open(&ALIEN, "/u/f", 0).map(drop), 0),
        ("write", |w| w.open(&ALIEN, "/u/f", 1).map(drop), EACCES),
        ("truncate needs write permission", |w| w.open(&ALIEN, "/u/f", O_TRUNC).map(drop), EACCES),
        ("mode 3 needs both", |w| w.open(&ALIEN, "/u/f", 3).map(drop), EACCES),
        ("a directory", |w| w.open(&ALIEN, "/u/d", O_DIRECTORY).map(drop), 0),
        ("a directory to write", |w| w.open(&USER, "/u/d", 1).map(drop), EISDIR),
        ("a directory to truncate", |w| w.open(&USER, "/u/d", O_TRUNC).map(drop), EISDIR),
        ("a directory to create", |w| w.open(&USER, "/u/d", O_CREAT).map(drop), EISDIR),
        ("a file as a directory", |w| w.open(&USER, "/u/f", O_DIRECTORY).map(drop), ENOTDIR),
        ("a link as a directory", |w| w.open(&USER, "/u/l", O_DIRECTORY).map(drop), ELOOP),
        ("a link", |w| w.open(&USER, "/u/l", 0).map(drop), ELOOP),
        ("a pipe, which kernels keep", |w| w.open(&USER, "/u/fifo", 0).map(drop), ENXIO),
        ("noatime of the owner", |w| w.open(&USER, "/u/f", O_NOATIME).map(drop), 0),
        ("noatime of another", |w| w.open(&ALIEN, "/u/f", O_NOATIME).map(drop), EPERM),
        ("noatime of root", |w| w.open(&ROOT, "/u/f", O_NOATIME).map(drop), 0),
        (
            "tmpfile by open",
            |w| w.open(&USER, "/u/d", O_TMPFILE_BIT | O_DIRECTORY | 2).map(drop),
            EOPNOTSUPP,
        ),
        ("tmpfile", |w| w.tmpfile(&USER, "/u/d", 0o644, 2).map(drop), 0),
        ("tmpfile to read", |w| w.tmpfile(&USER, "/u/d", 0o644, 0).map(drop), EINVAL),
        ("tmpfile in a file", |w| w.tmpfile(&USER, "/u/f", 0o644, 2).map(drop), ENOTDIR),
        ("tmpfile in another's directory", |w| w.tmpfile(&ALIEN, "/u", 0o644, 2).map(drop), EACCES),
        ("a program to read", |w| w.open(&USER, "/r/x", 0).map(drop), EACCES),
        ("a program to execute", |w| w.open(&USER, "/r/x", 0x20).map(drop), 0),
        ("no program to execute", |w| w.open(&ROOT, "/u/f", 0x20).map(drop), EACCES),
        ("lost", |w| w.call(&USER, &Open { ino: 999_999, flags: 0 }, &[]).map(drop), ESTALE),
        ("create over a file", |w| w.create(&USER, "/u/f", 0o644, 1).map(drop), 0),
        ("create over another's file", |w| w.create(&ALIEN, "/u/f", 0o644, 1).map(drop), EACCES),
        ("create over a directory", |w| w.create(&USER, "/u/d", 0o644, 0).map(drop), EISDIR),
        ("create over dot", |w| w.create(&USER, "/u/.", 0o644, 0).map(drop), EISDIR),
        ("create over a link", |w| w.create(&USER, "/u/l", 0o644, 0).map(drop), ELOOP),
        ("create a directory", |w| w.create(&USER, "/u/n", 0o644, O_DIRECTORY).map(drop), EINVAL),
        ("a new file may be unreadable", |w| w.create(&USER, "/u/n", 0, 2).map(drop), 0),
    ]);
}

#[test]
fn a_handle_serves_its_opener_its_inode_and_its_mode_only() {
    check(&[
        (
            "read through a reader",
            |w| w.open(&USER, "/u/f", 0).and_then(|file| w.read(&file, 0, 9)).map(drop),
            0,
        ),
        (
            "write through a reader",
            |w| w.open(&USER, "/u/f", 0).and_then(|file| w.write(&file, 0, b"x")).map(drop),
            EBADF,
        ),
        (
            "read through a writer",
            |w| w.open(&USER, "/u/f", 1).and_then(|file| w.read(&file, 0, 9)).map(drop),
            EBADF,
        ),
        (
            "read through mode 3",
            |w| w.open(&USER, "/u/f", 3).and_then(|file| w.read(&file, 0, 9)).map(drop),
            EBADF,
        ),
        (
            "write through mode 3",
            |w| w.open(&USER, "/u/f", 3).and_then(|file| w.write(&file, 0, b"x")).map(drop),
            EBADF,
        ),
        (
            "ftruncate through a reader",
            |w| w.open(&USER, "/u/f", 0).and_then(|file| w.ftruncate(&file, 0)).map(drop),
            EINVAL,
        ),
        (
            "fallocate through a reader",
            |w| w.open(&USER, "/u/f", 0).and_then(|file| w.fallocate(&file, 0, 1, 0)),
            EBADF,
        ),
        (
            "read a directory",
            |w| w.open(&USER, "/u/d", 0).and_then(|file| w.read(&file, 0, 9)).map(drop),
            EISDIR,
        ),
        (
            "list a file",
            |w| w.open(&USER, "/u/f", 0).and_then(|file| w.readdir(&file, 0, 99)).map(drop),
            ENOTDIR,
        ),
        (
            "list in too little room",
            |w| w.open(&USER, "/u", 0).and_then(|file| w.readdir(&file, 0, 9)).map(drop),
            EINVAL,
        ),
        (
            "closed",
            |w| {
                let file = w.open(&USER, "/u/f", 0)?;
                w.release(&file)?;
                w.release(&file)
            },
            EBADF,
        ),
        (
            "of another inode",
            |w| {
                let file = w.open(&USER, "/u/f", 0)?;
                w.call(&USER, &Read { fh: file.fh, ino: ROOT_INO, offset: 0, size: 9 }, &[])
                    .map(drop)
            },
            EBADF,
        ),
        (
            "of another endpoint",
            |w| {
                let file = w.open(&USER, "/u/f", 0)?;
                w.call(&MATE, &Read { fh: file.fh, ino: file.ino, offset: 0, size: 9 }, &[])
                    .map(drop)
            },
            EBADF,
        ),
    ]);
}

#[test]
fn offsets_and_sizes_at_the_edge_are_refused_without_being_allocated() {
    const TOP: u64 = i64::MAX as u64;
    check(&[
        (
            "read far behind the end",
            |w| {
                w.open(&USER, "/u/f", 0)
                    .and_then(|file| w.read(&file, TOP, 9))
                    .map(|data| assert_eq!(data, b""))
            },
            0,
        ),
        (
            "read at no off_t",
            |w| w.open(&USER, "/u/f", 0).and_then(|file| w.read(&file, TOP + 1, 9)).map(drop),
            EINVAL,
        ),
        (
            "read more than fits a message",
            |w| {
                w.open(&USER, "/u/f", 0)
                    .and_then(|file| w.read(&file, 0, u32::MAX))
                    .map(|data| assert_eq!(data, b"hello"))
            },
            0,
        ),
        (
            "write at the limit",
            |w| {
                w.open(&USER, "/u/f", 1)
                    .and_then(|file| w.write(&file, FILE_SIZE_MAX, b"x"))
                    .map(drop)
            },
            EFBIG,
        ),
        (
            "write at the top",
            |w| w.open(&USER, "/u/f", 1).and_then(|file| w.write(&file, TOP, b"x")).map(drop),
            EFBIG,
        ),
        (
            "write nothing at the top",
            |w| w.open(&USER, "/u/f", 1).and_then(|file| w.write(&file, TOP, b"")).map(drop),
            0,
        ),
        (
            "truncate to the limit",
            |w| {
                w.truncate(&USER, "/u/f", FILE_SIZE_MAX)
                    .map(|attr| assert_eq!(attr.size, FILE_SIZE_MAX))
            },
            0,
        ),
        ("truncate beyond", |w| w.truncate(&USER, "/u/f", FILE_SIZE_MAX + 1).map(drop), EFBIG),
        ("truncate to the top", |w| w.truncate(&USER, "/u/f", TOP).map(drop), EFBIG),
        ("truncate to no off_t", |w| w.truncate(&USER, "/u/f", u64::MAX).map(drop), EINVAL),
        ("truncate a directory", |w| w.truncate(&USER, "/u/d", 0).map(drop), EISDIR),
        ("truncate a pipe", |w| w.truncate(&USER, "/u/fifo", 0).map(drop), EINVAL),
        (
            "fallocate nothing",
            |w| w.open(&USER, "/u/f", 1).and_then(|file| w.fallocate(&file, 0, 0, 0)),
            EINVAL,
        ),
        (
            "fallocate a negative length",
            |w| w.open(&USER, "/u/f", 1).and_then(|file| w.fallocate(&file, 0, TOP + 1, 0)),
            EINVAL,
        ),
        (
            "fallocate at no off_t",
            |w| w.open(&USER, "/u/f", 1).and_then(|file| w.fallocate(&file, u64::MAX, 1, 0)),
            EINVAL,
        ),
        (
            "fallocate to the top",
            |w| w.open(&USER, "/u/f", 1).and_then(|file| w.fallocate(&file, TOP, TOP, 0)),
            EFBIG,
        ),
        (
            "fallocate more than there is",
            |w| w.open(&USER, "/u/f", 1).and_then(|file| w.fallocate(&file, 0, 1 << 43, 0)),
            ENOSPC,
        ),
        (
            "punch without keep",
            |w| {
                w.open(&USER, "/u/f", 1)
                    .and_then(|file| w.fallocate(&file, 0, 9, FALLOC_FL_PUNCH_HOLE))
            },
            EOPNOTSUPP,
        ),
        (
            "punch behind the end",
            |w| {
                w.open(&USER, "/u/f", 1).and_then(|file| {
                    w.fallocate(&file, 99, 9, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)
                })
            },
            0,
        ),
        (
            "collapse",
            |w| w.open(&USER, "/u/f", 1).and_then(|file| w.fallocate(&file, 0, 4096, 8)),
            EOPNOTSUPP,
        ),
        (
            "seek data at the end",
            |w| w.open(&USER, "/u/f", 0).and_then(|file| w.seek(&file, 5, SEEK_DATA)).map(drop),
            ENXIO,
        ),
        (
            "seek hole at the end",
            |w| w.open(&USER, "/u/f", 0).and_then(|file| w.seek(&file, 5, SEEK_HOLE)).map(drop),
            ENXIO,
        ),
        (
            "seek from the start",
            |w| w.open(&USER, "/u/f", 0).and_then(|file| w.seek(&file, 0, 0)).map(drop),
            EINVAL,
        ),
    ]);
}

#[test]
fn a_write_across_the_limit_is_cut_at_it() {
    let mut w = world();
    // The store in memory has less room than the limit is; only the arithmetic is looked at.
    let file = w.open(&USER, "/u/f", O_APPEND | 1).unwrap();
    w.truncate(&USER, "/u/f", FILE_SIZE_MAX).unwrap();
    assert_eq!(w.write(&file, 0, b"xy"), Err(EFBIG));
    w.truncate(&USER, "/u/f", FILE_SIZE_MAX - 1).unwrap();
    assert_eq!(w.write(&file, 0, b"xy"), Err(ENOSPC));
    assert_eq!(w.stat(&USER, "/u/f").unwrap().size, FILE_SIZE_MAX - 1);
}

#[test]
fn setattr_refuses_what_is_malformed() {
    fn change(w: &mut World, change: SetAttr) -> Got<()> {
        w.setattr(&USER, "/u/f", change).map(drop)
    }
    check(&[
        ("nothing", |w| change(w, SetAttr::default()), 0),
        ("unknown bits", |w| change(w, SetAttr { valid: 1 << 20, ..SetAttr::default() }), EINVAL),
        ("no such user", |w| w.chown(&ROOT, "/u/f", Some(u32::MAX), None).map(drop), EINVAL),
        ("no such group", |w| w.chown(&ROOT, "/u/f", None, Some(u32::MAX)).map(drop), EINVAL),
        (
            "nanoseconds",
            |w| {
                let atime = calls::vfs::Time { seconds: 0, nanos: 1_000_000_000 };
                change(w, SetAttr { valid: set::ATIME, atime, ..SetAttr::default() })
            },
            EINVAL,
        ),
        ("chmod of a link", |w| w.chmod(&USER, "/u/l", 0o600).map(drop), EOPNOTSUPP),
        (
            "a cut payload",
            |w| w.call(&USER, &Setattr { ino: ROOT_INO, fh: 0 }, b"short").map(drop),
            EINVAL,
        ),
        (
            "a lost inode",
            |w| {
                w.call(&USER, &Setattr { ino: 999_999, fh: 0 }, &SetAttr::default().bytes())
                    .map(drop)
            },
            ESTALE,
        ),
    ]);
}

#[test]
fn access_answers_for_the_caller() {
    check(&[
        ("exists", |w| w.access(&ALIEN, "/u/f", 0), 0),
        ("read", |w| w.access(&ALIEN, "/u/f", 4), 0),
        ("write", |w| w.access(&ALIEN, "/u/f", 2), EACCES),
        ("execute", |w| w.access(&ROOT, "/u/f", 1), EACCES),
        ("enter", |w| w.access(&ALIEN, "/u", 1), 0),
        ("enter what is private", |w| w.access(&ALIEN, "/p", 1), EACCES),
        ("unknown bits", |w| w.access(&ROOT, "/u", 8), EINVAL),
    ]);
}

#[test]
fn extended_attributes_obey_their_namespaces_and_limits() {
    check(&[
        (
            "set and get",
            |w| {
                w.setxattr(&USER, "/u/f", "user.a", b"value", 0)?;
                w.getxattr(&ALIEN, "/u/f", "user.a", 5)
                    .map(|got| assert_eq!(got, (5, b"value".to_vec())))
            },
            0,
        ),
        (
            "ask for the length",
            |w| {
                w.setxattr(&USER, "/u/d", "user.a", b"value", 0)?;
                w.getxattr(&USER, "/u/d", "user.a", 0).map(|got| assert_eq!(got, (5, Vec::new())))
            },
            0,
        ),
        (
            "too little room",
            |w| {
                w.setxattr(&USER, "/u/f", "user.a", b"value", 0)?;
                w.getxattr(&USER, "/u/f", "user.a", 4).map(drop)
            },
            ERANGE,
        ),
        (
            "list",
            |w| {
                w.setxattr(&USER, "/u/f", "user.b", b"", 0)?;
                w.setxattr(&USER, "/u/f", "user.a", b"", 0)?;
                w.setxattr(&ROOT, "/u/f", "trusted.t", b"", 0)?;
                assert_eq!(w.listxattr(&USER, "/u/f", 14)?.1, b"user.a\0user.b\0");
                assert_eq!(w.listxattr(&ROOT, "/u/f", 0)?.0, 24);
                w.listxattr(&USER, "/u/f", 13).map(drop)
            },
            ERANGE,
        ),
        ("nothing there", |w| w.getxattr(&USER, "/u/f", "user.a", 0).map(drop), ENODATA),
        ("remove nothing", |w| w.removexattr(&USER, "/u/f", "user.a"), ENODATA),
        (
            "remove",
            |w| {
                w.setxattr(&USER, "/u/f", "user.a", b"value", 0)?;
                w.removexattr(&USER, "/u/f", "user.a")?;
                w.getxattr(&USER, "/u/f", "user.a", 0).map(drop)
            },
            ENODATA,
        ),
        (
            "create what is there",
            |w| {
                w.setxattr(&USER, "/u/f", "user.a", b"", XATTR_CREATE)?;
                w.setxattr(&USER, "/u/f", "user.a", b"", XATTR_CREATE)
            },
            EEXIST,
        ),
        (
            "replace what is not",
            |w| w.setxattr(&USER, "/u/f", "user.a", b"", XATTR_REPLACE),
            ENODATA,
        ),
        ("unknown flags", |w| w.setxattr(&USER, "/u/f", "user.a", b"", 4), EINVAL),
        ("no permission to write", |w| w.setxattr(&ALIEN, "/u/f", "user.a", b"", 0), EACCES),
        ("no permission to read", |w| w.getxattr(&ALIEN, "/r/f", "user.a", 0).map(drop), EACCES),
        ("a link", |w| w.setxattr(&USER, "/u/l", "user.a", b"", 0), EPERM),
        ("a pipe", |w| w.setxattr(&USER, "/u/fifo", "user.a", b"", 0), EPERM),
        ("a pipe to read", |w| w.getxattr(&USER, "/u/fifo", "user.a", 0).map(drop), ENODATA),
        ("another's sticky directory", |w| w.setxattr(&USER, "/t", "user.a", b"", 0), EPERM),
        ("trusted of a user", |w| w.setxattr(&USER, "/u/f", "trusted.a", b"", 0), EPERM),
        (
            "trusted read by a user",
            |w| {
                w.setxattr(&ROOT, "/u/f", "trusted.a", b"", 0)?;
                w.getxattr(&USER, "/u/f", "trusted.a", 0).map(drop)
            },
            ENODATA,
        ),
        ("security of a user", |w| w.setxattr(&USER, "/u/f", "security.a", b"", 0), EPERM),
        (
            "security read by a user",
            |w| {
                w.setxattr(&ROOT, "/r/f", "security.a", b"x", 0)?;
                w.getxattr(&USER, "/r/f", "security.a", 0).map(drop)
            },
            0,
        ),
        (
            "an access control list that is none",
            |w| w.setxattr(&USER, "/u/f", "system.posix_acl_access", b"x", 0),
            EINVAL,
        ),
        (
            "an access control list of another's file",
            |w| w.setxattr(&ALIEN, "/u/f", "system.posix_acl_access", &[2, 0, 0, 0], 0),
            EPERM,
        ),
        (
            "an access control list that is not there",
            |w| w.removexattr(&USER, "/u/f", "system.posix_acl_access"),
            0,
        ),
        ("another system attribute", |w| w.setxattr(&ROOT, "/u/f", "system.a", b"", 0), EOPNOTSUPP),
        ("no namespace", |w| w.setxattr(&ROOT, "/u/f", "a", b"", 0), EOPNOTSUPP),
        ("no name in it", |w| w.setxattr(&ROOT, "/u/f", "user.", b"", 0), EINVAL),
        ("no name", |w| w.setxattr(&ROOT, "/u/f", "", b"", 0), ERANGE),
        (
            "too long a name",
            |w| w.setxattr(&USER, "/u/f", &format!("user.{}", "x".repeat(251)), b"", 0),
            ERANGE,
        ),
        (
            "the longest name",
            |w| w.setxattr(&USER, "/u/f", &format!("user.{}", "x".repeat(250)), b"", 0),
            0,
        ),
        (
            "the largest value",
            |w| w.setxattr(&USER, "/u/f", "user.a", &[7; XATTR_SIZE_MAX - 6], 0),
            0,
        ),
        (
            "the largest value again",
            |w| {
                w.setxattr(&USER, "/u/f", "user.a", &[7; XATTR_SIZE_MAX - 6], 0)?;
                w.setxattr(&USER, "/u/f", "user.a", &[8; XATTR_SIZE_MAX - 6], XATTR_REPLACE)
            },
            0,
        ),
        (
            "too large a value",
            |w| w.setxattr(&USER, "/u/f", "user.a", &[7; XATTR_SIZE_MAX + 1], 0),
            E2BIG,
        ),
        (
            "too many",
            |w| {
                w.setxattr(&USER, "/u/f", "user.a", &[7; XATTR_SIZE_MAX - 6], 0)?;
                w.setxattr(&USER, "/u/f", "user.b", b"x", 0)
            },
            ENOSPC,
        ),
    ]);
}

#[test]
fn a_lock_has_a_kind_a_range_and_a_handle() {
    const LOCK: Lock = Lock { owner: 1, start: 0, end: 9, pid: 7, kind: 0 };
    fn locked(w: &mut World, flags: u32, lock: Lock) -> Got<()> {
        let file = w.open(&USER, "/u/f", flags)?;
        w.lock(&file, lock, 0)
    }
    check(&[
        ("read", |w| locked(w, 0, LOCK), 0),
        ("write without writing", |w| locked(w, 0, Lock { kind: 1, ..LOCK }), EBADF),
        ("read without reading", |w| locked(w, 1, LOCK), EBADF),
        ("unlock", |w| locked(w, 0, Lock { kind: 2, ..LOCK }), 0),
        ("no kind", |w| locked(w, 0, Lock { kind: 3, ..LOCK }), EINVAL),
        ("backwards", |w| locked(w, 0, Lock { start: 10, ..LOCK }), EINVAL),
        ("beyond off_t", |w| locked(w, 0, Lock { end: 1 << 63, ..LOCK }), EINVAL),
        (
            "no handle",
            |w| {
                w.call(&USER, &Setlk { ino: ROOT_INO, fh: 9, wait: 0, flock: 0 }, &LOCK.bytes())
                    .map(drop)
            },
            EBADF,
        ),
        (
            "ask without a handle",
            |w| w.call(&USER, &Getlk { ino: ROOT_INO, fh: 9 }, &LOCK.bytes()).map(drop),
            EBADF,
        ),
        (
            "ask for no lock",
            |w| {
                let file = w.open(&USER, "/u/f", 0)?;
                w.getlk(&file, Lock { kind: 2, ..LOCK }).map(drop)
            },
            EINVAL,
        ),
        (
            "taken",
            |w| {
                let file = w.open(&USER, "/u/f", 2)?;
                w.lock(&file, LOCK, 0)?;
                w.lock(&file, Lock { owner: 2, kind: 1, ..LOCK }, 0)
            },
            EAGAIN,
        ),
    ]);
}

#[test]
fn an_unknown_call_is_enosys() {
    let mut w = world();
    for number in [0, 1, 0xff, 0x100, 0x1ff, 0x300, u16::MAX] {
        let id = w.send(&ROOT, Message::request(number), &[]);
        assert_eq!(w.answer(id).unwrap().map(drop), Err(ENOSYS), "{number:x}");
    }
}
