//! Locks between programs: who gets them, who waits, in which order, and who must not wait.

use crate::limits::RANGES_PER_OWNER_MAX;
use crate::tests::driver::{File, Got, MATE, USER, World, setlkw};
use calls::vfs::Lock;
use m3ipc::CallId;
use m3ipc::errno::numbers::{EAGAIN, EBADF, EDEADLK, EINTR, ENOLCK};
use proptest::prelude::{Strategy, any, prop_assert_eq, prop_oneof, proptest};
use std::collections::BTreeMap;

const END: u64 = i64::MAX as u64;

fn read(owner: u64, start: u64, end: u64) -> Lock {
    Lock { owner, start, end, pid: 0, kind: 0 }
}

fn write(owner: u64, start: u64, end: u64) -> Lock {
    Lock { kind: 1, ..read(owner, start, end) }
}

fn unlock(owner: u64, start: u64, end: u64) -> Lock {
    Lock { kind: 2, ..read(owner, start, end) }
}

/// Two files, each open on two nodes.
fn world() -> (World, [File; 2], [File; 2]) {
    let mut w = World::new();
    for path in ["/a", "/b"] {
        w.put(&USER, path, 0o666, b"").unwrap();
    }
    let a = [&USER, &MATE].map(|client| w.open(client, "/a", 2).unwrap());
    let b = [&USER, &MATE].map(|client| w.open(client, "/b", 2).unwrap());
    (w, a, b)
}

/// What has become of a call: no answer yet, or this one.
fn state(w: &mut World, id: CallId) -> Option<Got<()>> {
    w.answer(id).map(|answer| answer.map(drop))
}

#[test]
fn readers_share_writers_exclude_and_owners_of_different_nodes_are_different() {
    let (mut w, [a, far], _) = world();
    w.lock(&a, read(1, 0, 9), 0).unwrap();
    w.lock(&far, read(1, 5, 20), 0).unwrap();
    assert_eq!(w.lock(&a, write(1, 9, 9), 0), Err(EAGAIN));
    assert_eq!(w.lock(&a, write(1, 0, 4), 0), Ok(()));
    assert_eq!(w.lock(&far, read(1, 4, 4), 0), Err(EAGAIN));
    assert_eq!(w.lock(&far, unlock(1, 5, 9), 0), Ok(()));
    assert_eq!(w.lock(&a, write(1, 9, 9), 0), Ok(()));
    assert_eq!(w.lock(&far, read(1, 10, END), 0), Ok(()));
}

#[test]
fn getlk_tells_the_first_lock_in_the_way_and_flock_is_not() {
    let (mut w, [a, far], _) = world();
    w.lock(&a, Lock { pid: 77, ..write(1, 100, 109) }, 0).unwrap();
    w.lock(&a, Lock { pid: 78, ..write(2, 50, 59) }, 0).unwrap();
    w.lock(&a, write(3, 0, END), 1).unwrap();
    let found = w.getlk(&far, read(1, 0, END)).unwrap();
    assert_eq!(found, Lock { owner: 2, start: 50, end: 59, pid: 78, kind: 1 });
    assert_eq!(w.getlk(&far, read(1, 60, END)).unwrap().pid, 77);
    assert_eq!(w.getlk(&a, write(1, 100, 109)).unwrap().kind, 2, "one's own is not in the way");
    assert_eq!(w.getlk(&far, write(1, 60, 99)).unwrap(), unlock(1, 60, 99));
}

#[test]
fn a_lock_without_a_pid_is_reported_for_the_caller() {
    let (mut w, [a, far], _) = world();
    w.lock(&a, write(1, 0, 0), 0).unwrap();
    assert_eq!(w.getlk(&far, write(1, 0, 0)).unwrap().pid, USER.cred.pid);
}

#[test]
fn those_who_wait_get_it_in_the_order_they_came() {
    let (mut w, [a, far], _) = world();
    w.lock(&a, write(1, 0, 9), 0).unwrap();
    let waiting: Vec<CallId> =
        (2..6).map(|owner| w.lock_wait(&far, write(owner, 0, 9), 0)).collect();
    let beside = w.lock_wait(&far, write(9, 10, 19), 0);
    assert_eq!(state(&mut w, beside), Some(Ok(())), "nobody is in its way");
    for (at, id) in waiting.iter().enumerate() {
        assert_eq!(state(&mut w, *id), None);
        let holder = if at == 0 { &a } else { &far };
        w.lock(holder, unlock(at as u64 + 1, 0, 9), 0).unwrap();
        assert_eq!(state(&mut w, *id), Some(Ok(())));
        for later in &waiting[at + 1..] {
            assert_eq!(state(&mut w, *later), None);
        }
    }
}

#[test]
fn a_release_lets_in_all_readers_that_fit() {
    let (mut w, [a, far], _) = world();
    w.lock(&a, write(1, 0, 9), 0).unwrap();
    let readers = [2, 3].map(|owner| w.lock_wait(&far, read(owner, 0, 9), 0));
    let writer = w.lock_wait(&far, write(4, 5, 5), 0);
    w.lock(&a, read(1, 0, 9), 0).unwrap();
    assert_eq!(
        readers.map(|id| state(&mut w, id)),
        [Some(Ok(())), Some(Ok(()))],
        "a downgrade is a release"
    );
    assert_eq!(state(&mut w, writer), None);
    w.flush(&far, 2).unwrap();
    w.flush(&far, 3).unwrap();
    assert_eq!(state(&mut w, writer), None);
    w.flush(&a, 1).unwrap();
    assert_eq!(state(&mut w, writer), Some(Ok(())));
}

#[test]
fn a_signal_ends_the_wait_and_only_the_wait() {
    let (mut w, [a, far], _) = world();
    w.lock(&a, write(1, 0, 9), 0).unwrap();
    let [first, second] = [2, 3].map(|owner| w.lock_wait(&far, write(owner, 0, 9), 0));
    w.cancel(first);
    assert_eq!(state(&mut w, first), Some(Err(EINTR)));
    w.cancel(first);
    w.lock(&a, unlock(1, 0, 9), 0).unwrap();
    w.cancel(second);
    assert_eq!(state(&mut w, second), Some(Ok(())), "too late: it was granted");
    assert_eq!(w.lock(&a, read(1, 0, 0), 0), Err(EAGAIN));
}

#[test]
fn a_waiting_call_that_comes_again_still_waits_once() {
    let (mut w, [a, far], _) = world();
    w.lock(&a, write(1, 0, 9), 0).unwrap();
    let id = w.lock_wait(&far, write(1, 0, 9), 0);
    w.send_as(id, &MATE, setlkw(&far, 0), &write(1, 0, 9).bytes());
    w.release(&a).unwrap();
    assert_eq!(state(&mut w, id), Some(Ok(())), "the driver refuses two answers");
}

#[test]
fn closing_any_descriptor_drops_a_programs_record_locks_and_nothing_else() {
    let (mut w, [a, far], _) = world();
    let second = w.open(&USER, "/a", 0).unwrap();
    w.lock(&a, write(1, 0, 9), 0).unwrap();
    w.lock(&a, write(2, 10, 19), 0).unwrap();
    w.lock(&a, write(1, 0, END), 1).unwrap();
    w.flush(&second, 1).unwrap();
    assert_eq!(w.lock(&far, write(1, 0, 9), 0), Ok(()));
    assert_eq!(w.lock(&far, write(1, 10, 10), 0), Err(EAGAIN));
    assert_eq!(w.lock(&far, write(1, 0, END), 1), Err(EAGAIN));
}

#[test]
fn the_last_close_drops_what_was_locked_through_it() {
    let (mut w, [a, far], _) = world();
    w.lock(&a, write(1, 0, 9), 0).unwrap();
    w.lock(&a, write(2, 0, END), 1).unwrap();
    let waiting = [w.lock_wait(&far, write(1, 0, 9), 0), w.lock_wait(&far, write(1, 0, 9), 1)];
    w.lock(&far, write(4, 10, 19), 0).unwrap();
    let own = w.lock_wait(&a, write(3, 10, 19), 0);
    w.release(&a).unwrap();
    assert_eq!(waiting.map(|id| state(&mut w, id)), [Some(Ok(())), Some(Ok(()))]);
    assert_eq!(state(&mut w, own), Some(Err(EBADF)), "every call ends");
}

/// A kernel names a new open file as one that it has closed, and says later that it has.
#[test]
fn a_flock_is_the_open_files_whatever_its_owner_is_called() {
    let (mut w, [a, far], _) = world();
    let next = w.open(&USER, "/a", 2).unwrap();
    w.lock(&a, write(7, 0, END), 1).unwrap();
    assert_eq!(w.lock(&next, write(7, 0, END), 1), Err(EAGAIN), "the other has it still");
    let waiting = w.lock_wait(&next, write(7, 0, END), 1);
    w.release(&a).unwrap();
    assert_eq!(state(&mut w, waiting), Some(Ok(())));
    assert_eq!(w.lock(&far, write(1, 0, END), 1), Err(EAGAIN));
    w.release(&next).unwrap();
    assert_eq!(w.lock(&far, write(1, 0, END), 1), Ok(()));
}

#[test]
fn flock_converts_by_giving_up_first() {
    let (mut w, [a, far], _) = world();
    w.lock(&a, read(1, 0, END), 1).unwrap();
    w.lock(&far, read(1, 0, END), 1).unwrap();
    let upgrade = w.lock_wait(&a, write(1, 0, END), 1);
    assert_eq!(state(&mut w, upgrade), None);
    // The other upgrade finds the lock given up, and is not a deadlock.
    assert_eq!(w.lock(&far, write(1, 0, END), 1), Err(EAGAIN), "the first was let in meanwhile");
    assert_eq!(state(&mut w, upgrade), Some(Ok(())));
    w.lock(&a, write(1, 0, END), 1).unwrap();
    w.lock(&a, read(1, 7, 8), 1).unwrap();
    assert_eq!(w.lock(&far, read(1, 0, END), 1), Ok(()), "a downgrade lets others in");
    w.lock(&far, unlock(1, 7, 8), 1).unwrap();
    w.lock(&a, write(1, 7, 8), 1).unwrap();
    assert_eq!(w.lock(&far, read(1, 0, 3), 1), Err(EAGAIN), "the whole file, whatever is said");
    assert_eq!(w.lock(&far, write(5, 0, END), 0), Ok(()), "and not seen by record locks");
}

#[test]
fn a_whole_file_lock_needs_no_access_mode_as_flock_has_none() {
    let (mut w, _, _) = world();
    let reader = w.open(&USER, "/a", 0).unwrap();
    assert_eq!(w.lock(&reader, write(1, 0, END), 1), Ok(()));
    assert_eq!(w.lock(&reader, write(1, 0, END), 0), Ok(()));
    assert_eq!(w.lock(&reader, write(1, 0, 5), 0), Err(EBADF));
}

#[test]
fn waiting_in_a_circle_is_refused_across_files_and_nodes() {
    let (mut w, a, b) = world();
    w.lock(&a[0], write(1, 0, 0), 0).unwrap();
    w.lock(&b[1], write(1, 0, 0), 0).unwrap();
    w.lock(&a[0], write(3, 7, 7), 0).unwrap();
    let far_waits = w.lock_wait(&a[1], write(1, 0, 0), 0);
    assert_eq!(state(&mut w, far_waits), None);
    let third_waits = w.lock_wait(&b[0], read(3, 0, 9), 0);
    assert_eq!(state(&mut w, third_waits), None, "a chain is no circle");
    let circle = w.lock_wait(&b[0], write(1, 0, 0), 0);
    assert_eq!(state(&mut w, circle), Some(Err(EDEADLK)));
    let long_circle = w.lock_wait(&a[0], write(1, 7, 7), 0);
    assert_eq!(state(&mut w, long_circle), Some(Err(EDEADLK)), "1 → 3 → far 1 → 1");
    assert_eq!(
        w.lock(&b[0], write(1, 0, 0), 0),
        Err(EAGAIN),
        "without waiting there is no deadlock"
    );
    w.lock(&a[0], unlock(1, 0, 0), 0).unwrap();
    assert_eq!(state(&mut w, far_waits), Some(Ok(())));
    let now_fine = w.lock_wait(&b[0], write(1, 0, 0), 0);
    assert_eq!(state(&mut w, now_fine), None);
}

#[test]
fn two_upgrades_of_one_shared_range_are_a_deadlock() {
    let (mut w, [a, far], _) = world();
    w.lock(&a, read(1, 0, 9), 0).unwrap();
    w.lock(&far, read(1, 0, 9), 0).unwrap();
    let first = w.lock_wait(&a, write(1, 0, 9), 0);
    let second = w.lock_wait(&far, write(1, 0, 9), 0);
    assert_eq!((state(&mut w, first), state(&mut w, second)), (None, Some(Err(EDEADLK))));
    w.flush(&far, 1).unwrap();
    assert_eq!(state(&mut w, first), Some(Ok(())));
}

#[test]
fn an_owner_has_so_many_ranges_and_no_more() {
    let (mut w, [a, _], _) = world();
    let count = RANGES_PER_OWNER_MAX as u64;
    for at in 0..count {
        w.lock(&a, write(1, at * 2, at * 2), 0).unwrap();
    }
    assert_eq!(w.lock(&a, write(1, count * 2, count * 2), 0), Err(ENOLCK));
    assert_eq!(w.lock(&a, write(1, 1, 1), 0), Ok(()), "merging makes them fewer");
    assert_eq!(w.lock(&a, unlock(1, 1, 1), 0), Ok(()));
    assert_eq!(w.lock(&a, unlock(1, 0, END), 0), Ok(()));
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Set { owner: usize, lock: Lock, wait: bool },
    Cancel { owner: usize },
    Flush { owner: usize },
    Restart,
}

const OWNERS: usize = 4;
const BYTES: usize = 8;

fn a_step() -> impl Strategy<Value = Step> {
    let set = (0..OWNERS, 0..BYTES as u64, 0..BYTES as u64, 0..3_u32, any::<bool>());
    prop_oneof![
        12 => set.prop_map(|(owner, a, b, kind, wait)| {
            let lock = Lock { owner: 0, start: a.min(b), end: a.max(b), pid: 0, kind };
            Step::Set { owner, lock, wait }
        }),
        1 => (0..OWNERS).prop_map(|owner| Step::Cancel { owner }),
        1 => (0..OWNERS).prop_map(|owner| Step::Flush { owner }),
        1 => any::<()>().prop_map(|()| Step::Restart),
    ]
}

/// Locks byte by byte; one call at most waits for each owner.
#[derive(Default)]
struct Model {
    bytes: [BTreeMap<usize, u32>; BYTES],
    queue: Vec<(usize, Lock)>,
}

impl Model {
    fn range(lock: &Lock) -> std::ops::RangeInclusive<usize> {
        usize::try_from(lock.start).unwrap()..=usize::try_from(lock.end).unwrap()
    }

    fn blockers(&self, owner: usize, lock: &Lock) -> Vec<usize> {
        let held = self.bytes[Model::range(lock)].iter().flatten();
        let blocking =
            held.filter(|(other, kind)| **other != owner && (**kind == 1 || lock.kind == 1));
        blocking.map(|(other, _)| *other).collect()
    }

    fn apply(&mut self, owner: usize, lock: &Lock) {
        for byte in &mut self.bytes[Model::range(lock)] {
            byte.remove(&owner);
            if lock.kind != 2 {
                byte.insert(owner, lock.kind);
            }
        }
    }

    /// Is `owner` reached from any of these by waiting?
    fn reaches(&self, from: &[usize], owner: usize, depth: usize) -> bool {
        depth <= OWNERS
            && from.iter().any(|at| {
                let waits = self.queue.iter().filter(|(waiting, _)| waiting == at);
                *at == owner
                    || waits
                        .clone()
                        .any(|(at, lock)| self.reaches(&self.blockers(*at, lock), owner, depth + 1))
            })
    }

    /// Lets in whoever can, in order, until nobody can; returns them.
    fn grant(&mut self) -> Vec<usize> {
        let mut granted = Vec::new();
        while let Some(at) =
            self.queue.iter().position(|(owner, lock)| self.blockers(*owner, lock).is_empty())
        {
            let (owner, lock) = self.queue.remove(at);
            self.apply(owner, &lock);
            granted.push(owner);
        }
        granted
    }
}

proptest! {
    #[test]
    fn locks_are_granted_refused_and_awaited_as_a_lock_per_byte_says(
        steps in proptest::collection::vec(a_step(), 1..60),
    ) {
        let mut w = World::new();
        w.put(&USER, "/f", 0o666, b"").unwrap();
        let files = [&USER, &MATE].map(|client| w.open(client, "/f", 2).unwrap());
        let mut model = Model::default();
        let mut waiting: BTreeMap<usize, CallId> = BTreeMap::new();
        for step in steps {
            match step {
                // A program that waits does nothing else.
                Step::Set { owner, .. } | Step::Flush { owner } if waiting.contains_key(&owner) => continue,
                Step::Set { owner, lock, wait } => {
                    let (file, number) = (&files[owner % 2], owner as u64);
                    let lock = Lock { owner: number, ..lock };
                    let blockers = if lock.kind == 2 { Vec::new() } else { model.blockers(owner, &lock) };
                    let want = if blockers.is_empty() {
                        model.apply(owner, &lock);
                        Some(Ok(()))
                    } else if !wait {
                        Some(Err(EAGAIN))
                    } else if model.reaches(&blockers, owner, 0) {
                        Some(Err(EDEADLK))
                    } else {
                        model.queue.push((owner, lock));
                        None
                    };
                    let got = if wait {
                        let id = w.lock_wait(file, lock, 0);
                        let got = state(&mut w, id);
                        if got.is_none() {
                            waiting.insert(owner, id);
                        }
                        got
                    } else {
                        Some(w.lock(file, lock, 0))
                    };
                    prop_assert_eq!(got, want, "{:?} {:?}", owner, lock);
                }
                Step::Cancel { owner } => {
                    if let Some(id) = waiting.remove(&owner) {
                        w.cancel(id);
                        prop_assert_eq!(state(&mut w, id), Some(Err(EINTR)));
                        model.queue.retain(|(waiting, _)| *waiting != owner);
                    }
                }
                Step::Flush { owner } => {
                    w.flush(&files[owner % 2], owner as u64).unwrap();
                    model.apply(owner, &unlock(0, 0, BYTES as u64 - 1));
                }
                Step::Restart => {
                    w.restart();
                    waiting.clear();
                    model.queue.clear();
                }
            }
            for owner in model.grant() {
                let id = waiting.remove(&owner).unwrap();
                prop_assert_eq!(state(&mut w, id), Some(Ok(())), "{} is let in", owner);
            }
            for (owner, id) in &waiting {
                prop_assert_eq!(state(&mut w, *id), None, "{} waits", owner);
            }
        }
    }
}
