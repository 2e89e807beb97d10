//! Sole writers: who becomes one, what it may do later, and what becomes of that.

use crate::limits::{FILE_SIZE_MAX, LEASE, SOLE_SPACE, SPACE_KNOWN};
use crate::linux::{O_CREAT, O_DIRECT, O_DSYNC};
use crate::tests::driver::{ALIEN, Client, Got, MATE, ROOT, USER, World, attr};
use crate::tests::errors::world;
use crate::tests::leases::{agent, message};
use calls::vfs::{
    Attr, Closed, Created, Getattr, Lookup, NO_LIMIT, Open, Opened, Paged, PutOff, ReadPages,
    Recalls, Releases, SetAttr, SetQuota, TakeSnapshot, Time, Unlink, WriteBack, WrittenBack,
    attributes, pages, set,
};
use calls::wire::Wire;
use dvk::server::Gone;
use dvk::store::Store;
use m3ipc::errno::numbers::{EBADF, EDQUOT, EFBIG, EINVAL, EIO, EPERM};
use m3ipc::{CallId, Cred};

const WRITE: u32 = 1;
const READ_WRITE: u32 = 2;

/// `agent` as it speaks for a user.
fn speaking(agent: &Client, user: &Client) -> Client {
    Client { cred: Cred::new(user.cred.pid, user.cred.uid, user.cred.gid), ..*agent }
}

fn part(age: u32, kind: u8, offset: u64, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap();
    [&PutOff { offset, age, len, kind }.bytes()[..], data].concat()
}

fn write(age: u32, offset: u64, data: &[u8]) -> Vec<u8> {
    part(age, PutOff::WRITE, offset, data)
}

fn change(age: u32, change: SetAttr) -> Vec<u8> {
    part(age, PutOff::SET, 0, &change.bytes())
}

fn mode(mode: u32) -> SetAttr {
    SetAttr { valid: set::MODE, mode, ..SetAttr::default() }
}

fn nanos(time: Time) -> u64 {
    u64::try_from(time.seconds).unwrap() * 1_000_000_000 + u64::from(time.nanos)
}

impl World {
    /// Opens inode `ino`; the handle, and whether the agent has become its sole writer.
    fn open_sole(&mut self, agent: &Client, ino: u64, flags: u32) -> (u64, bool) {
        let (Opened { fh, attr }, payload) = self.call(agent, &Open { ino, flags }, &[]).unwrap();
        let is_sole = attr & attributes::SOLE != 0;
        assert_eq!(Attr::get(&payload).map(|attr| attr.ino), is_sole.then_some(ino));
        (fh, is_sole)
    }

    fn write_back(
        &mut self,
        agent: &Client,
        (ino, fh): (u64, u64),
        parts: &[Vec<u8>],
    ) -> Got<(WrittenBack, Attr)> {
        let (reply, payload) =
            self.call(agent, &WriteBack { fh, ino, sync: 0 }, &parts.concat())?;
        Ok((reply, Attr::get(&payload).unwrap()))
    }

    fn getattr_later(&mut self, client: &Client, ino: u64) -> CallId {
        self.send(client, message(&Getattr { ino, fh: 0 }), &[])
    }

    fn size_told(&mut self, call: CallId) -> Option<u64> {
        self.answer(call).map(|told| attr(((), told.unwrap().1)).size)
    }
}

#[test]
fn a_quota_is_not_asked_of_what_was_promised_but_of_holes() {
    let mut w = World::new();
    w.mkdir(&ROOT, "/t", 0o777).unwrap();
    let tree = w.stat(&ROOT, "/t").unwrap().ino;
    let quota = |bytes| SetQuota { ino: tree, bytes, inodes: NO_LIMIT, remove: 0 };
    let admin = Client { cred: Cred::ROOT, ..ROOT };
    w.call(&admin, &quota(1 << 30), &[]).unwrap();
    let ino = w.put(&ROOT, "/t/f", 0o666, b"data").unwrap();
    w.pass(10);
    w.begin(&agent(1));
    let (Opened { fh, attr }, _) =
        w.call(&agent(1), &Open { ino, flags: READ_WRITE }, &[]).unwrap();
    assert!(attr & attributes::SOLE != 0);
    w.call(&admin, &quota(4096), &[]).unwrap();
    let parts = [write(0, 4, &[1; 5000]), write(0, 1 << 40, b"x"), write(0, 0, b"y")];
    let (reply, attr) = w.write_back(&agent(1), (ino, fh), &parts).unwrap();
    assert_eq!((i32::from(reply.errno), attr.size), (EDQUOT, 5004));
    assert_eq!(reply.attr & attributes::SOLE, 0, "nothing more is promised");
}

#[test]
fn what_is_put_off_is_done_in_order_and_at_the_time_of_the_program() {
    let mut w = world();
    let a = agent(1);
    w.begin(&a);
    let ino = w.stat(&ROOT, "/u/f").unwrap().ino;
    let (fh, is_sole) = w.open_sole(&a, ino, READ_WRITE);
    assert!(is_sole);
    w.pass(100);
    let before = w.getattr(&a, ino).unwrap();
    let parts = [
        write(30_000_000, 0, b"12345"),
        change(20_000_000, mode(0o600)),
        write(25_000_000, 3, b"xyz"),
    ];
    let (written, told) = w.write_back(&a, (ino, fh), &parts).unwrap();
    let at = w.clock;
    assert_eq!((written.errno, written.attr & attributes::SOLE), (0, attributes::SOLE));
    assert_eq!((told.size, told.mode & 0o777), (before.size.max(6), 0o600));
    assert_eq!(w.cat(&a, "/u/f").unwrap()[..6], *b"123xyz");
    // No part is earlier than one before it.
    assert_eq!(told.mtime, told.ctime);
    assert_eq!(at - nanos(told.mtime), 20_000_000_000);
    // Nor than what was there, unless that is to come: then now it is.
    let (_, told) = w.write_back(&a, (ino, fh), &[write(u32::MAX, 0, b"-")]).unwrap();
    assert_eq!(at - nanos(told.mtime), 20_000_000_000);
    w.clock -= 50_000_000_000;
    let (_, told) = w.write_back(&a, (ino, fh), &[write(5, 0, b"+")]).unwrap();
    assert_eq!(nanos(told.mtime), w.clock, "the clock was put back");
}

#[test]
fn whoever_looks_waits_until_it_is_written_back() {
    let mut w = world();
    let (a, b) = (agent(1), agent(2));
    let session = w.begin(&a);
    w.begin(&b);
    let dir = w.stat(&ROOT, "/u").unwrap().ino;
    let (created, payload) = w
        .call(
            &speaking(&a, &USER),
            &calls::vfs::Create {
                parent: dir,
                forgotten: 0,
                mode: 0o644,
                umask: 0,
                flags: WRITE | O_CREAT,
            },
            b"new",
        )
        .unwrap();
    let (Created { fh, attr: leased, .. }, ino) = (created, Attr::get(&payload).unwrap().ino);
    assert_ne!(leased & attributes::SOLE, 0);
    let poll = w.send(&a, message(&Recalls { session, forgotten: 0 }), &[]);
    let looks = [
        w.getattr_later(&ROOT, ino),
        w.getattr_later(&b, ino),
        w.send(&b, message(&Lookup { parent: dir }), b"new"),
        w.send(&USER, message(&Open { ino, flags: 0 }), &[]),
    ];
    assert!(looks.iter().all(|call| w.answer(*call).is_none()));
    // What does not tell of it waits for nobody.
    assert!(w.ls(&ROOT, "/u").unwrap().contains(&"new".to_string()));
    let (told, _) = w.answer(poll).unwrap().unwrap();
    let batch = calls::vfs::Recalled::get(&told.args).unwrap().batch;
    w.write_back(&a, (ino, fh), &[write(0, 0, b"seven..")]).unwrap();
    assert!(looks.iter().all(|call| w.answer(*call).is_none()), "it has not forgotten it");
    w.send(&a, message(&Recalls { session, forgotten: batch }), &[]);
    for look in &looks[..3] {
        assert_eq!(w.size_told(*look), Some(7));
    }
    assert!(w.answer(looks[3]).unwrap().is_ok());
    // It is over.
    assert_eq!(w.write_back(&a, (ino, fh), &[write(0, 0, b"x")]), Err(EIO));
    assert_eq!(w.cat(&ROOT, "/u/new").unwrap(), b"seven..");
}

#[test]
fn a_snapshot_waits_for_all_that_was_put_off_and_nothing_more_is_put_off_meanwhile() {
    let mut w = world();
    let (a, b) = (agent(1), agent(2));
    let session = w.begin(&a);
    w.begin(&b);
    let ino = w.stat(&ROOT, "/u/f").unwrap().ino;
    let other = w.stat(&ROOT, "/r/f").unwrap().ino;
    let (fh, is_sole) = w.open_sole(&a, ino, READ_WRITE);
    assert!(is_sole);
    let poll = w.send(&a, message(&Recalls { session, forgotten: 0 }), &[]);
    let admin = Client { cred: Cred::ROOT, ..ALIEN };
    let taken = w.send(&admin, message(&TakeSnapshot {}), b"s");
    assert!(w.answer(taken).is_none());
    let (second, is_sole) = w.open_sole(&b, other, READ_WRITE);
    assert!(!is_sole, "or it would have to be waited for, too");
    w.call(&b, &calls::vfs::Release { fh: second, ino: other }, &[]).unwrap();
    let (told, _) = w.answer(poll).unwrap().unwrap();
    let batch = calls::vfs::Recalled::get(&told.args).unwrap().batch;
    w.write_back(&a, (ino, fh), &[write(0, 0, b"HE")]).unwrap();
    assert!(w.answer(taken).is_none(), "it has not forgotten it");
    w.send(&a, message(&Recalls { session, forgotten: batch }), &[]);
    w.answer(taken).unwrap().unwrap();
    w.put(&USER, "/u/f", 0o644, b"later").unwrap();
    assert_eq!(w.cat(&USER, "/.snapshots/s/u/f").unwrap(), b"HEllo");
    assert!(!w.open_sole(&b, other, READ_WRITE).1, "a change of it needs room of its own");
    let new = w.put(&USER, "/u/new", 0o644, b"").unwrap();
    assert!(w.open_sole(&b, new, READ_WRITE).1, "it is over");
    // Who asked for it goes, or an agent: others may put off again some time.
    w.send(&admin, message(&TakeSnapshot {}), b"t");
    w.gone(Gone::Endpoint(admin.endpoint));
    w.pass(10);
    let new = w.put(&USER, "/u/newer", 0o644, b"").unwrap();
    w.begin(&a);
    assert!(w.open_sole(&a, new, READ_WRITE).1);
}

#[test]
fn nobody_is_the_sole_writer_of_what_others_know() {
    let mut w = world();
    let (a, b) = (agent(1), agent(2));
    let ino = w.stat(&ROOT, "/u/f").unwrap().ino;
    assert!(!w.open_sole(&a, ino, WRITE).1, "it has no session");
    w.begin(&a);
    for flags in [0, WRITE | O_DSYNC, WRITE | O_DIRECT] {
        assert!(!w.open_sole(&a, ino, flags).1, "{flags:o}");
    }
    let (first, is_sole) = w.open_sole(&a, ino, WRITE);
    assert!(is_sole && !w.open_sole(&a, ino, WRITE).1, "one handle at a time");
    w.call(&a, &calls::vfs::Release { fh: first, ino }, &[]).unwrap();
    let (second, is_sole) = w.open_sole(&a, ino, WRITE);
    assert!(is_sole, "its own lease is in nobody's way");
    w.call(&a, &calls::vfs::Release { fh: second, ino }, &[]).unwrap();
    // Pages, even its own.
    w.begin(&a);
    let (fh, _) = w.open_sole(&a, ino, 0);
    let read = ReadPages { fh, ino, offset: 0, size: 4096, exclusive: 0, waits: pages::ALWAYS };
    assert_eq!(w.call(&a, &read, &[]).unwrap().0.kept, pages::KEPT);
    assert!(!w.open_sole(&a, ino, WRITE).1, "its kernel has pages");
    w.begin(&a);
    // Another's lease.
    w.begin(&b);
    w.getattr(&b, ino).unwrap();
    assert!(!w.open_sole(&a, ino, WRITE).1, "another remembers it");
    w.begin(&b);
    // What must be known of it to write it.
    w.chmod(&ROOT, "/u/f", 0o644).unwrap();
    let list = [2u32.to_le_bytes().to_vec(), acl()].concat();
    w.setxattr(&ROOT, "/u/f", "system.posix_acl_access", &list, 0).unwrap();
    assert!(!w.open_sole(&a, ino, WRITE).1, "it has an access control list");
    w.removexattr(&ROOT, "/u/f", "system.posix_acl_access").unwrap();
    // Room, for what is put off.
    w.begin(&a);
    let (_, free) = w.store.space();
    w.store.free = Some(SOLE_SPACE);
    w.clock += SPACE_KNOWN;
    assert!(!w.open_sole(&a, ino, WRITE).1, "some of that is kept back");
    w.store.free = Some(free);
    w.clock += SPACE_KNOWN;
    let (fh, is_sole) = w.open_sole(&a, ino, WRITE);
    assert!(is_sole);
    w.store.free = Some(SOLE_SPACE);
    w.clock += SPACE_KNOWN;
    let (written, _) = w.write_back(&a, (ino, fh), &[write(0, 0, b"x")]).unwrap();
    assert_eq!((written.errno, written.attr & attributes::SOLE), (0, 0), "no more is put off");
    assert_eq!(w.write_back(&a, (ino, fh), &[write(0, 0, b"x")]), Err(EIO));
    w.store.free = Some(free);
}

/// The entries of a list with one user.
fn acl() -> Vec<u8> {
    let entry = |tag: u16, id: u32| {
        [&tag.to_le_bytes()[..], &4u16.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let none = u32::MAX;
    [entry(1, none), entry(2, 1001), entry(4, none), entry(16, none), entry(32, none)].concat()
}

#[test]
fn only_the_sole_writer_writes_back_and_only_what_its_program_may() {
    let mut w = world();
    let (a, b) = (agent(1), agent(2));
    w.begin(&a);
    let ino = w.stat(&ROOT, "/u/f").unwrap().ino;
    let (fh, _) = w.open_sole(&speaking(&a, &USER), ino, READ_WRITE);
    let other = w.open_sole(&a, ino, READ_WRITE).0;
    let one = [write(0, 0, b"x")];
    assert_eq!(w.write_back(&b, (ino, fh), &one), Err(EBADF), "another's handle");
    assert_eq!(w.write_back(&USER, (ino, fh), &one), Err(EBADF));
    assert_eq!(
        w.write_back(&a, (ino, other), &one),
        Err(EIO),
        "a handle that is not the sole writer's"
    );
    let size = SetAttr { valid: set::SIZE, size: 1, ..SetAttr::default() };
    for malformed in [
        vec![7],
        change(0, size),
        part(0, 9, 0, b""),
        part(0, PutOff::SET, 0, b"short"),
        write(0, 0, b"four")[..PutOff::SIZE + 3].to_vec(),
    ] {
        let all = [write(0, 0, b"not this"), malformed];
        assert_eq!(w.write_back(&a, (ino, fh), &all), Err(EINVAL), "{all:?}");
    }
    let content = w.cat(&a, "/u/f").unwrap();
    assert!(!content.starts_with(b"not"));
    // The first error is told; what is written after a write that fails is not, what has nothing to do with an error is done.
    let alien = speaking(&a, &ALIEN);
    let parts = [change(0, mode(0o777)), write(0, 0, b"!")];
    let (written, told) = w.write_back(&alien, (ino, fh), &parts).unwrap();
    assert_eq!((i32::from(written.errno), told.mode & 0o777), (EPERM, 0o644));
    assert_eq!(w.cat(&a, "/u/f").unwrap(), [b"!", &content[1..]].concat());
    w.write_back(&a, (ino, fh), &[write(0, 0, &content[..1])]).unwrap();
    let parts = [
        write(0, FILE_SIZE_MAX - 1, b"xy"),
        write(0, 0, b"skipped"),
        change(0, mode(0o600)),
        write(0, u64::MAX, b"z"),
    ];
    let (written, told) = w.write_back(&speaking(&a, &USER), (ino, fh), &parts).unwrap();
    assert_eq!((i32::from(written.errno), told.mode & 0o777), (EFBIG, 0o600));
    assert_eq!(w.cat(&a, "/u/f").unwrap(), content);
    let (_, told) = w.write_back(&a, (ino, fh), &[write(0, 1 << 40, b"")]).unwrap();
    assert_eq!(told.size, content.len() as u64, "nothing was written");
}

#[test]
fn who_is_given_up_may_write_back_until_somebody_has_looked() {
    for looks in [false, true] {
        let mut w = world();
        let a = agent(1);
        w.begin(&a);
        let ino = w.stat(&ROOT, "/u/f").unwrap().ino;
        let (fh, _) = w.open_sole(&a, ino, WRITE);
        w.pass(1 + LEASE / 1_000_000_000);
        if looks {
            w.getattr(&ROOT, ino).unwrap();
        }
        let outcome = w.write_back(&a, (ino, fh), &[write(0, 0, b"late")]).map(drop);
        assert_eq!(outcome, if looks { Err(EIO) } else { Ok(()) });
    }
}

#[test]
fn the_sole_writer_outlives_the_server_and_ends_with_its_agent() {
    let mut w = world();
    let a = agent(1);
    w.begin(&a);
    let ino = w.stat(&ROOT, "/u/f").unwrap().ino;
    let (fh, _) = w.open_sole(&a, ino, WRITE);
    w.restart();
    let look = w.getattr_later(&ROOT, ino);
    assert_eq!(w.size_told(look), None, "a may have put something off");
    w.write_back(&a, (ino, fh), &[write(0, 0, b"it has: all of this")]).unwrap();
    assert_eq!(w.size_told(look), None);
    w.begin(&a);
    assert_eq!(w.size_told(look), Some(19));
    assert_eq!(
        w.write_back(&a, (ino, fh), &[write(0, 0, b"x")]),
        Err(EIO),
        "that was another session"
    );
    // What an agent that is gone has put off is gone.
    w.clock += 10_000_000_000;
    w.begin(&a);
    let (_, is_sole) = w.open_sole(&a, ino, WRITE);
    assert!(is_sole);
    w.gone(Gone::Endpoint(a.endpoint));
    w.restart();
    assert_eq!(w.getattr(&ROOT, ino).unwrap().size, 19);
}

#[test]
fn a_name_is_taken_away_by_what_its_file_is_by_now() {
    let mut w = world();
    let a = agent(1);
    let session = w.begin(&a);
    let root = w.stat(&ROOT, "/").unwrap().ino;
    w.put(&MATE, "/hers", 0o644, b"x").unwrap();
    let ino = w.stat(&ROOT, "/hers").unwrap().ino;
    let (fh, is_sole) = w.open_sole(&a, ino, WRITE);
    assert!(is_sole);
    // In a sticky directory. It is given to another, which is put off.
    let unlink = w.send(&USER, message(&Unlink { parent: root, forgotten: 0 }), b"hers");
    assert!(w.answer(unlink).is_none(), "it may be USER's by now");
    let to = SetAttr { valid: set::UID, uid: USER.cred.uid, ..SetAttr::default() };
    w.write_back(&speaking(&a, &ROOT), (ino, fh), &[change(0, to)]).unwrap();
    let poll = w.send(&a, message(&Recalls { session, forgotten: 0 }), &[]);
    let (told, _) = w.answer(poll).unwrap().unwrap();
    let batch = calls::vfs::Recalled::get(&told.args).unwrap().batch;
    w.send(&a, message(&Recalls { session, forgotten: batch }), &[]);
    assert!(w.answer(unlink).unwrap().is_ok());
}

#[test]
fn several_files_are_closed_at_once_each_by_itself() {
    let mut w = world();
    let (a, b) = (agent(1), agent(2));
    let ino = w.stat(&ROOT, "/u/f").unwrap().ino;
    let [one, two] = [w.open_sole(&a, ino, 0).0, w.open_sole(&a, ino, 0).0];
    let his = w.open_sole(&b, ino, 0).0;
    let closed = [(one, ino), (999, ino), (his, ino), (two, ino + 1)];
    let payload: Vec<u8> =
        closed.iter().flat_map(|(fh, ino)| Closed { fh: *fh, ino: *ino }.bytes()).collect();
    assert_eq!(w.call(&a, &Releases {}, &payload[1..]).map(drop), Err(EINVAL));
    w.call(&a, &Releases {}, &payload).unwrap();
    let mut is_open = |client: &Client, fh| w.call(client, &Getattr { ino, fh }, &[]).is_ok();
    assert_eq!([is_open(&a, one), is_open(&a, two), is_open(&b, his)], [false, true, true]);
}

#[test]
fn who_has_a_lease_reads_what_it_has_opened_by_itself() {
    let mut w = world();
    let a = agent(1);
    let ino = w.stat(&ROOT, "/u/f").unwrap().ino;
    let read = ReadPages { fh: 0, ino, offset: 0, size: 4096, exclusive: 0, waits: pages::ALWAYS };
    assert_eq!(w.call(&USER, &read, &[]).map(drop), Err(EBADF), "a program");
    let session = w.begin(&a);
    assert_eq!(w.call(&a, &read, &[]).map(drop), Err(EBADF), "it knows nothing of it");
    w.getattr(&a, ino).unwrap();
    w.pass(1);
    let (Paged { kept, atime }, data) = w.call(&a, &read, &[]).unwrap();
    assert_eq!((kept, data), (pages::KEPT, w.cat(&a, "/u/f").unwrap()));
    assert_eq!(atime, w.getattr(&a, ino).unwrap().atime);
    // Until it has said that it forgets it.
    let poll = w.send(&a, message(&Recalls { session, forgotten: 0 }), &[]);
    let chmod = w.send(&ROOT, message(&calls::vfs::Setattr { ino, fh: 0 }), &mode(0).bytes());
    assert!(w.answer(chmod).is_none());
    assert!(w.call(&a, &read, &[]).is_ok());
    let (told, _) = w.answer(poll).unwrap().unwrap();
    let batch = calls::vfs::Recalled::get(&told.args).unwrap().batch;
    w.send(&a, message(&Recalls { session, forgotten: batch }), &[]);
    assert!(w.answer(chmod).unwrap().is_ok());
    assert_eq!(w.call(&a, &read, &[]).map(drop), Err(EBADF));
}
