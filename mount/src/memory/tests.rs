//! What is remembered is what everybody else would see, and no longer than that.

use super::*;
use crate::limits::{HOT, LENT_FOR_MAX, LENT_PER_SHARD_MAX, NAME_GOES_IN, NAME_LENT_FOR, QUIET};
use proptest::prelude::{any, prop_assert_eq, prop_oneof, proptest};
use std::ops::Range;

const LEASE: Duration = Duration::from_secs(3600);
const ALL: Leased = Leased { name: search::EVERYBODY, attr: attributes::KEPT, owner: 0 };

fn on() -> Memory {
    let memory = Memory::default();
    memory.begin_session(Instant::now(), LEASE);
    memory
}

fn attr(ino: u64) -> Attr {
    Attr { ino, size: 7, ..Attr::default() }
}

#[test]
fn who_has_asked_before_something_was_over_is_told_so() {
    let memory = on();
    let asked = memory.asked();
    let until = memory.until(5);
    assert!(memory.is_as_asked(5, asked));
    drop(until);
    assert!(!memory.is_as_asked(5, asked) && memory.is_as_asked(5, memory.asked()));
}

#[test]
fn of_a_directory_that_was_made_here_all_names_are_known() {
    const DIR: u64 = 64;
    let made = || {
        let memory = on();
        let asked = memory.asked();
        let attr = Attr { ino: DIR, mode: S_IFDIR | 0o755, ..Attr::default() };
        memory.keep_attr(asked, attributes::KEPT, attr);
        memory.keep_empty(asked, attributes::KEPT, attr);
        assert_eq!(memory.name(DIR, b"any", 9), None, "it may have a list");
        memory.keep_empty(asked, attributes::KEPT | attributes::PLAIN, attr);
        memory
    };
    let is_missing = |memory: &Memory, name: &[u8]| {
        memory.name(DIR, name, 9) == Some(Found::Missing) && memory.is_missing(DIR, name)
    };
    let memory = made();
    assert!(is_missing(&memory, b"any") && is_missing(&memory, &[b'x'; NAME_MAX]));
    assert_eq!(memory.name(DIR, &[b'x'; NAME_MAX + 1], 9), None, "that is an error");
    let change = memory.change(DIR);
    memory.change_name(DIR, b"a");
    assert_eq!(memory.name(DIR, b"any", 9), None, "while it is being changed");
    change.keep_names(&[(b"a", ALL, 5), (b"b", ALL, 0)]);
    drop(change);
    assert!(is_missing(&memory, b"any") && is_missing(&memory, b"b"));
    assert!(!memory.is_missing(DIR, b"a"));
    // What has come of a change is not known.
    drop(memory.change(DIR));
    assert_eq!(memory.name(DIR, b"any", 9), None);
    assert!(is_missing(&memory, b"b"));
    // Its names have been forgotten, to make room.
    let memory = made();
    let change = memory.change(DIR);
    let asked = memory.asked();
    for number in 0..2 * INODES_PER_SHARD_MAX as u64 {
        memory.keep_attr(asked, ALL.attr, attr((1000 + number) * SHARDS as u64));
    }
    change.keep_names(&[(b"a", ALL, 0), (b"b", ALL, 5)]);
    drop(change);
    assert_eq!(memory.name(DIR, b"any", 9), None);
    let memory = made();
    memory.forget(DIR);
    assert_eq!(memory.name(DIR, b"any", 9), None, "it was recalled");
}

#[test]
fn what_was_told_with_a_lease_is_known_until_it_is_recalled() {
    let memory = on();
    let asked = memory.asked();
    memory.keep_attr(asked, ALL.attr, attr(5));
    memory.keep_name(asked, (2, b"x"), ALL, 5);
    memory.keep_name(asked, (2, b"no"), ALL, 0);
    assert_eq!(memory.name(2, b"x", 9), Some(Found::Inode(attr(5))));
    assert_eq!(memory.name(2, b"no", 9), Some(Found::Missing));
    assert_eq!((memory.name(2, b"y", 9), memory.attr(2)), (None, None));
    memory.forget(5);
    assert_eq!(
        (memory.name(2, b"x", 9), memory.attr(5)),
        (None, None),
        "a name without attributes"
    );
    memory.keep_attr(asked, ALL.attr, attr(5));
    assert_eq!(memory.attr(5), None, "it was asked for before the recall");
    memory.keep_attr(memory.asked(), ALL.attr, attr(5));
    assert_eq!(memory.name(2, b"x", 9), Some(Found::Inode(attr(5))));
    memory.forget(2);
    assert_eq!(memory.name(2, b"no", 9), None);
    assert_eq!(memory.attr(5), Some(attr(5)));
}

#[test]
fn nothing_is_kept_of_what_changes_meanwhile() {
    let memory = on();
    let before = memory.asked();
    memory.keep_attr(before, ALL.attr, attr(5));
    memory.keep_name(before, (2, b"x"), ALL, 5);
    memory.keep_name(before, (2, b"y"), ALL, 6);
    let change = memory.change(2);
    assert_eq!(memory.change_name(2, b"x"), 5);
    assert_eq!(memory.change_name(2, b"x"), 0);
    assert_eq!(memory.name(2, b"y", 0), None, "its attributes are not known");
    memory.keep_attr(memory.asked(), ALL.attr, attr(6));
    assert!(memory.name(2, b"y", 0).is_some(), "another name of the directory stays");
    memory.keep_name(memory.asked(), (2, b"x"), ALL, 5);
    memory.keep_attr(memory.asked(), ALL.attr, attr(2));
    assert_eq!((memory.name(2, b"x", 0), memory.attr(2)), (None, None));
    let during = memory.asked();
    drop(change);
    for asked in [before, during] {
        memory.keep_attr(asked, ALL.attr, attr(2));
        assert_eq!(memory.attr(2), None, "it may be what was before the change");
    }
    memory.keep_attr(memory.asked(), ALL.attr, attr(2));
    assert!(memory.attr(2).is_some());
    drop(memory.change_rights(2));
    assert_eq!(memory.name(2, b"y", 0), None, "others may search it now");
}

#[test]
fn what_a_change_has_made_is_kept_if_nothing_else_has_happened() {
    let kept = |meanwhile: &dyn Fn(&Memory)| {
        let memory = on();
        let change = memory.change(2);
        meanwhile(&memory);
        change.keep_name(b"x", ALL, 5);
        change.keep_attr(ALL.attr, attr(2));
        change.keep_attr(ALL.attr, attr(6));
        drop(change);
        memory.keep_attr(memory.asked(), ALL.attr, attr(5));
        let found = (memory.name(2, b"x", 9), memory.attr(2), memory.attr(6));
        assert_eq!(found.2, None, "another's");
        assert_eq!(found.0.is_some(), found.1.is_some());
        found.0 == Some(Found::Inode(attr(5))) && found.1 == Some(attr(2))
    };
    assert!(kept(&|_| ()));
    assert!(kept(&|memory| memory.forget(3)));
    assert!(!kept(&|memory| memory.forget(2)), "it was recalled");
    assert!(!kept(&|memory| drop(memory.change(2))), "another has changed it");
    assert!(!kept(&|memory| std::mem::forget(memory.change(2))), "another is changing it");
    assert!(!kept(&|memory| memory.begin_session(Instant::now(), LEASE)), "another session's");
    assert!(!kept(&|memory| memory.end_session()));
    let memory = on();
    let change = memory.change(2);
    change.keep_name(b"x", Leased { name: 0, ..ALL }, 0);
    assert_eq!(memory.name(2, b"x", 0), None, "it may not be");
    let other = memory.change(2);
    drop(change);
    other.keep_name(b"x", ALL, 0);
    assert_eq!(memory.name(2, b"x", 0), None, "which came first is not known");
}

#[test]
fn a_listing_is_known_as_long_as_its_directory_and_its_access_time_are_as_they_were() {
    let memory = on();
    let at = |seconds| Time { seconds, nanos: 0 };
    let now = seconds_now();
    let old = Attr { mode: S_IFDIR | 0o700, uid: 7, ..attr(2) };
    let young = Attr { atime: at(now), mtime: at(now - 9), ctime: at(now - 9), ..old };
    let keep = |attr: Attr, leased| {
        memory.keep_attr(memory.asked(), leased, attr);
        memory.keep_listing(memory.asked(), 2, b"entries");
    };
    let is_known = || memory.listing(2).is_some();
    keep(old, ALL.attr);
    assert!(!is_known(), "listing it is to change its access time");
    keep(young, ALL.attr);
    assert!(is_known() && memory.may_open_directory(2, 7) && memory.may_open_directory(2, 0));
    assert!(!memory.may_open_directory(2, 8));
    keep(young, ALL.attr | attributes::READABLE);
    assert!(memory.may_open_directory(2, 8));
    let asked = memory.asked();
    drop(memory.change(2));
    memory.keep_attr(memory.asked(), ALL.attr, young);
    memory.keep_listing(asked, 2, b"entries");
    assert!(!is_known() && !memory.may_open_directory(2, 0), "it has changed");
    keep(young, ALL.attr);
    memory.forget(2);
    memory.keep_attr(memory.asked(), ALL.attr, young);
    assert!(!is_known());
    keep(young, ALL.attr);
    memory.extend(Instant::now(), MARGIN);
    assert!(!is_known() && !memory.may_open_directory(2, 0), "the session may be over");
    memory.extend(Instant::now(), LEASE);
    keep(young, ALL.attr);
    for number in 1..=LISTINGS_PER_SHARD_MAX as u64 {
        memory.keep_listing(memory.asked(), 2, b"entries");
        memory.keep_listing(memory.asked(), 2 + number * SHARDS as u64, b"entries");
        let shard = memory.shard(2);
        let count = shard.inodes.values().filter(|known| known.listing.is_some()).count();
        assert_eq!(shard.listings, count);
        assert!(count <= LISTINGS_PER_SHARD_MAX);
    }
}

#[test]
fn a_session_that_is_over_or_may_be_tells_nothing() {
    let memory = Memory::default();
    let early = memory.asked();
    memory.keep_attr(early, ALL.attr, attr(5));
    assert_eq!(memory.attr(5), None, "there is no session");
    memory.begin_session(Instant::now(), LEASE);
    memory.keep_attr(early, ALL.attr, attr(5));
    assert_eq!(memory.attr(5), None, "it was asked for before the session");
    memory.keep_attr(memory.asked(), ALL.attr, attr(5));
    assert!(memory.attr(5).is_some());
    memory.extend(Instant::now(), MARGIN);
    assert_eq!(memory.attr(5), None, "it may be over");
    memory.extend(Instant::now(), LEASE);
    assert!(memory.attr(5).is_some(), "the server has gone on with it");
    let asked = memory.asked();
    memory.end_session();
    memory.begin_session(Instant::now(), LEASE);
    memory.keep_attr(asked, ALL.attr, attr(6));
    assert_eq!((memory.attr(5), memory.attr(6)), (None, None));
}

#[test]
fn names_are_told_to_those_who_may_search_their_directory() {
    let memory = on();
    let asked = memory.asked();
    let check = |name: u8, uid: u32, expected: bool| {
        memory.keep_name(asked, (2, b"x"), Leased { name, attr: 0, owner: 7 }, 0);
        assert_eq!(memory.name(2, b"x", uid).is_some(), expected, "{name} {uid}");
    };
    for (uid, bits) in
        [(0, [true, false, true]), (7, [false, true, true]), (8, [false, false, true])]
    {
        check(search::SUPERUSER, uid, bits[0]);
        check(search::OWNER, uid, bits[1]);
        check(search::EVERYBODY, uid, bits[2]);
    }
}

#[test]
fn reading_changes_an_access_time_that_is_old() {
    let memory = on();
    let at = |seconds| Time { seconds, nanos: 0 };
    let now = seconds_now();
    assert!(memory.read(5).ino.is_some(), "it is not known");
    for (atime, mtime, ctime, changes) in [
        (now - 10, now - 20, now - 20, false),
        (now - 20, now - 20, now - 30, true),
        (now - 20, now - 30, now - 10, true),
        (now - DAY, now - DAY - 9, now - DAY - 9, true),
    ] {
        let known = Attr { atime: at(atime), mtime: at(mtime), ctime: at(ctime), ..attr(5) };
        memory.keep_attr(memory.asked(), ALL.attr, known);
        let asked = memory.asked();
        assert_eq!(memory.read(5).ino.is_some(), changes);
        assert_eq!(memory.attr(5).is_none(), changes);
        memory.keep_attr(asked, ALL.attr, known);
        assert_eq!(memory.attr(5).is_none(), changes, "it was asked for before");
    }
}

#[test]
fn what_is_remembered_is_bounded() {
    let memory = on();
    let asked = memory.asked();
    for number in 0..NAMES_PER_SHARD_MAX + 10 {
        memory.keep_name(asked, (2, number.to_string().as_bytes()), ALL, 0);
    }
    assert!(memory.shard(2).names <= NAMES_PER_SHARD_MAX);
    for number in 0..INODES_PER_SHARD_MAX as u64 + 10 {
        memory.keep_attr(asked, ALL.attr, attr(3 + number * SHARDS as u64));
    }
    assert!(memory.shard(3).inodes.len() <= INODES_PER_SHARD_MAX);
    assert!(memory.name(2, b"4100", 0).is_some());
}

/// A kernel that notes what it is to forget. It does not know inode 99 at first.
#[derive(Clone, Debug, Default)]
struct Forgetful(Arc<Mutex<Vec<u64>>>);

impl Kernel for Forgetful {
    fn forget(&self, ino: u64) -> bool {
        let mut forgotten = self.0.lock().unwrap();
        forgotten.push(ino);
        ino != 99 || forgotten.len() > 3
    }

    fn lose_pages(&self, ino: u64, _: &Range<u64>) {
        panic!("pages of {ino}");
    }

    fn grow(&self, ino: u64, _: u64) {
        panic!("size of {ino}");
    }
}

impl Forgetful {
    fn take(&self) -> Vec<u64> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// A memory whose kernel has been lent the attributes of inode 5, read a moment ago.
fn lent() -> (Memory, Forgetful, Attr) {
    let (memory, kernel) = (on(), Forgetful::default());
    memory.attach(Arc::new(kernel.clone()));
    let at = |seconds| Time { seconds, nanos: 0 };
    let now = seconds_now();
    let known = Attr { atime: at(now), mtime: at(now - 9), ctime: at(now - 9), ..attr(5) };
    memory.keep_attr(memory.asked(), ALL.attr, known);
    assert_eq!(memory.lend(&known, true).0, LENT_FOR_MAX);
    (memory, kernel, known)
}

#[test]
fn what_is_lent_is_taken_back_before_it_is_another() {
    let (memory, kernel, known) = lent();
    assert_eq!(memory.lend(&Attr { size: 8, ..known }, true).0, Duration::ZERO, "another");
    drop(memory.change(5));
    assert_eq!(kernel.take(), [5]);
    drop(memory.change(5));
    assert_eq!((kernel.take(), memory.lend(&known, true).0), (Vec::new(), Duration::ZERO));
    let (memory, kernel, known) = lent();
    memory.forget(5);
    assert_eq!((kernel.take(), memory.lend(&known, true).0), (vec![5], Duration::ZERO));
    let (memory, kernel, _) = lent();
    memory.end_session();
    assert_eq!(kernel.take(), [5]);
    let (memory, kernel, known) = lent();
    // Nothing is changed by reading what was read since.
    drop(memory.read(5));
    assert_eq!((kernel.take(), memory.attr(5)), (Vec::new(), Some(known)));
    let old = Attr { atime: Time::default(), ..known };
    memory.keep_attr(memory.asked(), ALL.attr, old);
    drop(memory.read(5));
    assert_eq!((kernel.take(), memory.attr(5)), (vec![5], None));
}

#[test]
fn a_reply_that_makes_an_inode_known_is_waited_for() {
    let (memory, kernel, _) = lent();
    let unknown = attr(99);
    memory.keep_attr(memory.asked(), ALL.attr, unknown);
    assert_eq!(memory.lend(&unknown, false).0, LENT_FOR_MAX);
    memory.forget(99);
    assert_eq!(kernel.take().len(), 4, "until it was there");
}

#[test]
fn names_are_lent_where_it_is_quiet_and_everybody_may_search() {
    let known_for = |memory: &mut Memory, time| memory.start -= time;
    let keep = |memory: &Memory, name| {
        let leased = Leased { name, ..ALL };
        memory.keep_name(memory.asked(), (2, b"x"), leased, 5);
        memory.keep_name(memory.asked(), (2, b"no"), leased, 0);
    };
    let lend = |memory: &Memory, name: &[u8], ino, is_settled| {
        let lent = memory.lend_name((2, name), ino, is_settled, 1);
        memory.told(1);
        lent
    };
    let (mut memory, _, _) = lent();
    keep(&memory, search::EVERYBODY);
    let many = |memory: &Memory| (0..HOT).map(|_| lend(memory, b"x", 5, true)).last();
    assert_eq!(many(&memory), Some(Duration::ZERO), "they have not been known for long");
    known_for(&mut memory, QUIET + NAME_LENT_FOR);
    assert_eq!(lend(&memory, b"x", 5, true), Duration::ZERO, "the first look for a while");
    assert_eq!(many(&memory), Some(NAME_LENT_FOR));
    assert_eq!(lend(&memory, b"no", 0, true), NAME_LENT_FOR);
    assert_eq!(lend(&memory, b"x", 5, false), Duration::ZERO, "more is to be done with it");
    for (name, ino) in [(&b"x"[..], 6), (b"no", 5), (b"y", 0)] {
        assert_eq!(lend(&memory, name, ino, true), Duration::ZERO, "not what is known");
    }
    let before = Instant::now();
    memory.forget(5);
    memory.wait_for_names(&[5]);
    assert!(before.elapsed() < NAME_GOES_IN, "no names are lent there");
    memory.wait_for_names(&[2]);
    assert!(before.elapsed() >= NAME_GOES_IN);
    keep(&memory, search::EVERYBODY);
    assert_eq!(many(&memory), Some(NAME_LENT_FOR));
    let before = Instant::now();
    memory.forget(5);
    memory.forget(2);
    memory.wait_for_names(&[5, 2]);
    assert!(before.elapsed() >= NAME_GOES_IN);
    assert_eq!(lend(&memory, b"x", 5, true), Duration::ZERO, "they are forgotten");
    keep(&memory, search::SUPERUSER | search::OWNER);
    known_for(&mut memory, QUIET + NAME_LENT_FOR);
    assert_eq!((many(&memory), many(&memory)), (Some(Duration::ZERO), Some(Duration::ZERO)));
    keep(&memory, search::EVERYBODY);
    memory.extend(Instant::now(), MARGIN);
    assert_eq!(many(&memory), Some(Duration::ZERO), "the session may be over");
}

#[test]
fn what_is_lent_is_bounded() {
    let (memory, _, _) = lent();
    let lend = |number: u64| {
        let known = attr(7 + number * SHARDS as u64);
        memory.keep_attr(memory.asked(), ALL.attr, known);
        // All of them fit what is remembered of inodes.
        memory.shard(7).inodes.retain(|ino, _| *ino == known.ino);
        memory.lend(&known, true).0
    };
    let count = LENT_PER_SHARD_MAX as u64;
    assert!((0..count).all(|number| lend(number) == LENT_FOR_MAX));
    assert_eq!((lend(count), lend(count - 1)), (Duration::ZERO, LENT_FOR_MAX));
    memory.forget(7);
    assert_eq!(lend(count), LENT_FOR_MAX);
}

proptest! {
    /// Names are counted as they come and go.
    #[test]
    fn names_are_counted(steps in proptest::collection::vec(
        (prop_oneof![4 => 0..4u8, 1 => 4..6u8], 0..3u64, any::<bool>()), 1..60,
    )) {
        let memory = on();
        for (what, place, which) in steps {
            let parent = 2 + place * SHARDS as u64;
            let name: &[u8] = if which { b"a" } else { b"b" };
            match what {
                0..=2 => memory.keep_name(memory.asked(), (parent, name), ALL, 9),
                3 => drop(memory.change_name(parent, name)),
                4 => memory.forget(parent),
                _ => drop(memory.change_rights(parent)),
            }
            let shard = memory.shard(2);
            let names: usize = shard.inodes.values().map(|known| known.names.len()).sum();
            prop_assert_eq!(shard.names, names);
        }
    }
}
