//! Who may, and what a change of owner, mode or content does to the mode and the times.

use crate::linux::{O_NOATIME, S_IFREG, S_ISGID, S_ISUID};
use crate::tests::driver::{ALIEN, Client, Got, MATE, ROOT, USER, World, now};
use crate::tests::errors::world;
use calls::vfs::{Attr, Create, Mkdir, ROOT_INO, SetAttr, Time, set};
use calls::wire::Wire;
use m3ipc::Cred;
use m3ipc::errno::numbers::{EACCES, EPERM};

#[test]
fn the_umask_is_applied_here_and_mkdir_takes_no_set_ids() {
    let mut w = world();
    let row = Create { parent: ROOT_INO, forgotten: 0, mode: 0o6777, umask: 0o027, flags: 0 };
    let (_, payload) = w.call(&USER, &row, b"file").unwrap();
    assert_eq!(Attr::get(&payload).unwrap().mode, S_IFREG | 0o6750);
    let row = Mkdir { parent: ROOT_INO, mode: 0o7777, umask: 0o022 };
    let (_, payload) = w.call(&USER, &row, b"dir").unwrap();
    assert_eq!(Attr::get(&payload).unwrap().mode & 0o7777, 0o1755);
}

#[test]
fn a_list_decides_survives_a_crash_and_goes_with_its_file() {
    let value = |named: u8, mask: u8| {
        let entry = |tag: u8, permissions: u8, id: u32| {
            [&[tag, 0, permissions, 0], &id.to_le_bytes()[..]].concat()
        };
        let none = u32::MAX;
        let entries =
            [(1, 7, none), (2, named, 1002), (4, 0, none), (16, mask, none), (32, 0, none)];
        let entries = entries.map(|(tag, permissions, id)| entry(tag, permissions, id));
        [&2u32.to_le_bytes()[..], &entries.concat()].concat()
    };
    let (access, default) = ("system.posix_acl_access", "system.posix_acl_default");
    let mut w = world();
    w.setxattr(&USER, "/u/f", access, &value(6, 4), 0).unwrap();
    w.setxattr(&USER, "/u/d", default, &value(7, 7), 0).unwrap();
    w.restart();
    let check = |w: &mut World, who: &Client, path: &str, want: u32| {
        let may =
            [4, 2, 1].into_iter().filter(|mask| w.access(who, path, *mask).is_ok()).sum::<u32>();
        assert_eq!(may, want, "{who:?} {path}");
    };
    check(&mut w, &ALIEN, "/u/f", 4);
    check(&mut w, &MATE, "/u/f", 0);
    assert_eq!(w.chmod(&USER, "/u/f", 0o760), Ok(0o760));
    check(&mut w, &ALIEN, "/u/f", 6);
    // The umask is not asked where there is a default, and a directory passes it on.
    let parent = w.stat(&USER, "/u/d").unwrap().ino;
    w.call(&USER, &Mkdir { parent, mode: 0o777, umask: 0o077 }, b"x").unwrap();
    w.put(&USER, "/u/d/x/f", 0o666, b"").unwrap();
    assert_eq!(w.stat(&USER, "/u/d/x").unwrap().mode & 0o7777, 0o770);
    check(&mut w, &ALIEN, "/u/d/x", 7);
    check(&mut w, &ALIEN, "/u/d/x/f", 6);
    check(&mut w, &MATE, "/u/d/x", 0);
    w.removexattr(&USER, "/u/d/x", access).unwrap();
    check(&mut w, &ALIEN, "/u/d/x", 0);
    // Writing another's file takes its privileges, not its list.
    w.chmod(&USER, "/u/f", 0o4760).unwrap();
    let file = w.open(&ALIEN, "/u/f", 2).unwrap();
    w.write(&file, 0, b"x").unwrap();
    assert_eq!(w.stat(&USER, "/u/f").unwrap().mode & 0o7777, 0o760);
    check(&mut w, &ALIEN, "/u/f", 6);
    w.release(&file).unwrap();
    w.unlink(&USER, "/u/f").unwrap();
    w.pass(10);
}

#[test]
fn a_setgid_directory_gives_its_group_and_directories_the_bit() {
    let mut w = world();
    w.mkdir(&ROOT, "/s", 0o777).unwrap();
    w.chown(&ROOT, "/s", None, Some(500)).unwrap();
    w.chmod(&ROOT, "/s", 0o2777).unwrap();
    let dir = w.mkdir(&USER, "/s/d", 0o755).unwrap();
    assert_eq!((dir.uid, dir.gid, dir.mode & 0o7777), (1000, 500, 0o2755));
    w.put(&USER, "/s/f", 0o2775, b"").unwrap();
    let file = w.stat(&USER, "/s/f").unwrap();
    assert_eq!((file.gid, file.mode & 0o7777), (500, 0o775), "not of the group: no setgid program");
    let member = Client { cred: Cred::new(1, 1000, 100).with_groups([500]), ..USER };
    w.put(&member, "/s/g", 0o2775, b"").unwrap();
    assert_eq!(w.stat(&USER, "/s/g").unwrap().mode & 0o7777, 0o2775);
    let plain = w.mkdir(&USER, "/u/plain", 0o755).unwrap();
    assert_eq!((plain.gid, plain.mode & 0o7777), (100, 0o755));
}

#[test]
fn in_a_sticky_directory_only_owners_remove() {
    for (who, want) in [(&USER, Err(EPERM)), (&ALIEN, Err(EPERM)), (&MATE, Ok(())), (&ROOT, Ok(()))]
    {
        let mut w = world();
        assert_eq!(w.unlink(who, "/t/mate"), want, "{who:?}");
        assert_eq!(w.rmdir(who, "/t/mated"), want, "{who:?}");
    }
    let mut w = world();
    w.chown(&ROOT, "/t", Some(1002), None).unwrap();
    assert_eq!(w.unlink(&ALIEN, "/t/mate"), Ok(()), "the directory's owner may");
}

#[test]
fn chmod_is_the_owners_and_setgid_the_groups() {
    let mut w = world();
    assert_eq!(w.chmod(&USER, "/u/f", 0o4711), Ok(0o4711));
    assert_eq!(w.chmod(&USER, "/u/f", 0o2755), Ok(0o2755));
    assert_eq!(w.chmod(&MATE, "/u/f", 0o777), Err(EPERM));
    assert_eq!(w.chmod(&ROOT, "/u/f", 0o640), Ok(0o640));
    w.chown(&ROOT, "/u/f", None, Some(200)).unwrap();
    assert_eq!(w.chmod(&USER, "/u/f", 0o6755), Ok(0o4755), "not of the group any more");
    assert_eq!(w.chmod(&ROOT, "/u/f", 0o6755), Ok(0o6755));
    let mode = w.stat(&USER, "/u/f").unwrap().mode;
    assert_eq!(mode, S_IFREG | S_ISUID | S_ISGID | 0o755);
}

#[test]
fn chown_is_the_superusers_but_for_the_owners_groups() {
    let member = Client { cred: Cred::new(1, 1000, 100).with_groups([300]), ..USER };
    for (who, uid, gid, allowed) in [
        (&ROOT, Some(7), Some(8), true),
        (&USER, Some(1000), None, true),
        (&USER, Some(1001), None, false),
        (&USER, None, Some(100), true),
        (&USER, None, Some(300), false),
        (&member, None, Some(300), true),
        (&member, Some(1000), Some(300), true),
        (&MATE, None, Some(100), false),
        (&MATE, Some(1000), None, false),
    ] {
        let mut w = world();
        let got = w.chown(who, "/u/f", uid, gid).map(drop);
        assert_eq!(got, if allowed { Ok(()) } else { Err(EPERM) }, "{who:?} {uid:?} {gid:?}");
    }
}

#[test]
fn chown_clears_set_ids_of_files_even_for_the_superuser() {
    for (before, after) in [(0o6755, 0o755), (0o4755, 0o755), (0o2755, 0o755), (0o1755, 0o1755)] {
        let mut w = world();
        w.chmod(&ROOT, "/u/f", before).unwrap();
        assert_eq!(w.chown(&ROOT, "/u/f", Some(7), None), Ok(after), "{before:o}");
    }
    let mut w = world();
    w.chmod(&ROOT, "/u/f", 0o2644).unwrap();
    assert_eq!(w.chown(&USER, "/u/f", None, Some(100)), Ok(0o2644), "no execute bit: no program");
    w.chmod(&ROOT, "/u/d", 0o2755).unwrap();
    assert_eq!(w.chown(&ROOT, "/u/d", None, Some(7)), Ok(0o2755), "a directory's setgid stays");
}

#[test]
fn writing_and_truncating_drop_privileges_unless_by_the_superuser() {
    for (client, kept) in [(&MATE, false), (&ROOT, true)] {
        let mut w = world();
        w.chmod(&USER, "/u/f", 0o6777).unwrap();
        let file = w.open(client, "/u/f", 1).unwrap();
        w.write(&file, 0, b"").unwrap();
        assert_eq!(w.stat(&USER, "/u/f").unwrap().mode & 0o7777, 0o6777, "nothing written");
        w.write(&file, 0, b"x").unwrap();
        let want = if kept { 0o6777 } else { 0o777 };
        assert_eq!(w.stat(&USER, "/u/f").unwrap().mode & 0o7777, want);
        w.chmod(&USER, "/u/f", 0o6777).unwrap();
        w.truncate(client, "/u/f", 1).unwrap();
        assert_eq!(w.stat(&USER, "/u/f").unwrap().mode & 0o7777, want);
    }
}

#[test]
fn writing_drops_file_capabilities_and_chown_too() {
    let mut w = world();
    let changes: [fn(&mut World) -> Got<()>; 3] = [
        |w| w.put(&ROOT, "/u/f", 0, b"new").map(drop),
        |w| w.chown(&ROOT, "/u/f", Some(7), None).map(drop),
        |w| w.truncate(&ROOT, "/u/f", 1).map(drop),
    ];
    for change in changes {
        w.setxattr(&ROOT, "/u/f", "security.capability", b"caps", 0).unwrap();
        w.setxattr(&ROOT, "/u/f", "security.other", b"label", 0).unwrap();
        change(&mut w).unwrap();
        assert_eq!(w.listxattr(&ROOT, "/u/f", 100).unwrap().1, b"security.other\0");
    }
}

#[test]
fn times_are_the_owners_and_now_is_for_who_may_write() {
    const NOW: u32 = set::ATIME_NOW | set::MTIME_NOW;
    const THEN: u32 = set::ATIME | set::MTIME;
    for (who, mode, valid, want) in [
        (&USER, 0o444, NOW, Ok(())),
        (&USER, 0o444, THEN, Ok(())),
        (&MATE, 0o664, NOW, Ok(())),
        (&MATE, 0o664, NOW | THEN, Ok(())),
        (&MATE, 0o664, THEN, Err(EPERM)),
        (&MATE, 0o664, set::MTIME_NOW, Err(EPERM)),
        (&MATE, 0o664, set::ATIME | set::MTIME_NOW, Err(EPERM)),
        (&MATE, 0o664, set::SIZE | set::MTIME_NOW, Ok(())),
        (&MATE, 0o664, set::SIZE | set::MTIME, Err(EPERM)),
        (&MATE, 0o644, NOW, Err(EACCES)),
        (&ROOT, 0o000, THEN, Ok(())),
    ] {
        let mut w = world();
        w.chmod(&USER, "/u/f", mode).unwrap();
        let change = SetAttr { valid, ..SetAttr::default() };
        assert_eq!(w.setattr(who, "/u/f", change).map(drop), want, "{who:?} {mode:o} {valid:x}");
    }
}

#[test]
fn times_can_be_before_the_epoch_and_the_change_time_cannot_be_set() {
    let mut w = world();
    let atime = Time { seconds: -5, nanos: 999_999_999 };
    let mtime = Time { seconds: i64::MAX, nanos: 0 };
    let change = SetAttr { valid: set::ATIME | set::MTIME, atime, mtime, ..SetAttr::default() };
    let attr = w.setattr(&USER, "/u/f", change).unwrap();
    assert_eq!((attr.atime, attr.mtime, attr.ctime), (atime, mtime, now(&w)));
}

#[test]
fn every_change_moves_the_times_it_should() {
    type Change = fn(&mut World) -> Got<()>;
    let cases: [(&str, Change, &str, [bool; 2]); 14] = [
        ("write", |w| w.put(&USER, "/u/f", 0, b"x").map(drop), "/u/f", [true, true]),
        ("truncate", |w| w.truncate(&USER, "/u/f", 3).map(drop), "/u/f", [true, true]),
        ("chmod", |w| w.chmod(&USER, "/u/f", 0o600).map(drop), "/u/f", [false, true]),
        ("chown", |w| w.chown(&USER, "/u/f", None, Some(100)).map(drop), "/u/f", [false, true]),
        ("link: the file", |w| w.link(&USER, "/u/f", "/u/g").map(drop), "/u/f", [false, true]),
        ("link: the directory", |w| w.link(&USER, "/u/f", "/u/g").map(drop), "/u", [true, true]),
        ("rename: the file", |w| w.rename(&USER, "/u/f", "/u/d/g", 0), "/u/d/g", [false, true]),
        ("rename: the old directory", |w| w.rename(&USER, "/u/f", "/u/d/g", 0), "/u", [true, true]),
        (
            "rename: the new directory",
            |w| w.rename(&USER, "/u/f", "/u/d/g", 0),
            "/u/d",
            [true, true],
        ),
        ("unlink: the directory", |w| w.unlink(&USER, "/u/f"), "/u", [true, true]),
        (
            "unlink: the other name",
            |w| {
                w.link(&USER, "/u/d/f", "/u/d/g").unwrap();
                w.unlink(&USER, "/u/d/g")
            },
            "/u/d/f",
            [false, true],
        ),
        ("setxattr", |w| w.setxattr(&USER, "/u/f", "user.a", b"", 0), "/u/f", [false, true]),
        ("open", |w| w.open(&USER, "/u/f", 2).map(drop), "/u/f", [false, false]),
        ("exchange", |w| w.rename(&USER, "/u/f", "/u/d/f", 2), "/u/f", [false, true]),
    ];
    for (what, change, path, [mtime, ctime]) in cases {
        let mut w = world();
        w.pass(1);
        let before = now(&w);
        change(&mut w).unwrap();
        let attr = w.stat(&USER, path).unwrap();
        let later = |time: Time| (time.seconds, time.nanos) > (before.seconds, before.nanos);
        assert_eq!([later(attr.mtime), later(attr.ctime)], [mtime, ctime], "{what}");
    }
}

#[test]
fn reading_moves_the_access_time_unless_told_not_to() {
    let mut w = world();
    let file = w.open(&USER, "/u/f", O_NOATIME).unwrap();
    let before = w.stat(&USER, "/u/f").unwrap().atime;
    w.read(&file, 0, 9).unwrap();
    assert_eq!(w.stat(&USER, "/u/f").unwrap().atime, before);
    w.cat(&USER, "/u/f").unwrap();
    assert_ne!(w.stat(&USER, "/u/f").unwrap().atime, before);
}

#[test]
fn once_says_which_calls_must_not_be_repeated() {
    use calls::Row;
    use dvk::server::Server;
    let w = World::new();
    let once = |number| w.server.once(&m3ipc::Message::request(number));
    assert!(once(calls::vfs::Write::NUMBER) && once(calls::vfs::Setlk::NUMBER));
    assert!(!once(calls::vfs::Read::NUMBER) && !once(0xffff));
}
