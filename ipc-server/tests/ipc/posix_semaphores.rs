//! sem_open, sem_close, sem_unlink, sem_wait, sem_post, sem_getvalue.

use crate::host::{Host, Process, SECOND, on_node, root, user};
use calls::ipc::{
    FOREVER, Object, SemClose, SemGetvalue, SemOpen, SemPost, SemUnlink, SemWait, Value,
};
use dvk::server::Gone;
use ipc_server::flags::{O_CREAT, O_EXCL};
use ipc_server::limits::{LINGER, SEM_VALUE_MAX};
use m3ipc::NodeId;
use m3ipc::errno::numbers::{
    EACCES, EAGAIN, EEXIST, EINVAL, ENAMETOOLONG, ENOENT, EOVERFLOW, ETIMEDOUT,
};

fn open(host: &mut Host, process: Process, name: &str, flags: u32, value: u32) -> Result<u64, i32> {
    let row = SemOpen { flags, mode: 0o600, value };
    host.call(process, row, name.as_bytes()).map(|(Object { id }, _)| id)
}

fn make(host: &mut Host, process: Process, value: u32) -> u64 {
    open(host, process, "/s", O_CREAT, value).unwrap()
}

fn unlink(host: &mut Host, process: Process, name: &str) -> Result<(), i32> {
    host.call(process, SemUnlink {}, name.as_bytes()).map(|_| ())
}

fn post(host: &mut Host, process: Process, id: u64) -> Result<(), i32> {
    host.call(process, SemPost { id }, b"").map(|_| ())
}

fn try_wait(host: &mut Host, process: Process, id: u64) -> Result<(), i32> {
    host.call(process, SemWait { id, wait_ns: 0 }, b"").map(|_| ())
}

fn value(host: &mut Host, process: Process, id: u64) -> Result<i32, i32> {
    host.call(process, SemGetvalue { id }, b"").map(|(Value { value }, _)| value)
}

#[test]
fn opening_follows_the_flags_and_the_name() {
    let long = format!("/{}", "x".repeat(252));
    let table = [
        ("/old", 0, 0, Ok(())),
        ("/old", O_CREAT, 9, Ok(())),
        ("/old", O_CREAT, SEM_VALUE_MAX + 1, Ok(())),
        ("/old", O_EXCL, 0, Ok(())),
        ("/old", O_CREAT | O_EXCL, 0, Err(EEXIST)),
        ("/old", O_CREAT | O_EXCL, SEM_VALUE_MAX + 1, Err(EINVAL)),
        ("/new", 0, 0, Err(ENOENT)),
        ("/new", O_EXCL, 0, Err(ENOENT)),
        ("/new", O_CREAT, SEM_VALUE_MAX + 1, Err(EINVAL)),
        ("/new", O_CREAT, SEM_VALUE_MAX, Ok(())),
        ("/new", O_CREAT | O_EXCL, 1, Ok(())),
        ("", O_CREAT, 0, Err(EINVAL)),
        ("/", O_CREAT, 0, Err(EINVAL)),
        ("/a/b", O_CREAT, 0, Err(EINVAL)),
        (&long, O_CREAT, 0, Err(ENAMETOOLONG)),
    ];
    for (name, flags, value, expected) in table {
        let mut host = Host::new();
        open(&mut host, root(1), "/old", O_CREAT, 3).unwrap();
        let opened = open(&mut host, root(2), name, flags, value).map(|_| ());
        assert_eq!(opened, expected, "{name} {flags:o} {value}");
    }
}

#[test]
fn one_name_is_one_semaphore_and_keeps_its_value() {
    let mut host = Host::new();
    let id = make(&mut host, root(1), 3);
    assert_eq!(open(&mut host, root(2), "/s", O_CREAT, 7), Ok(id));
    assert_eq!(value(&mut host, root(2), id), Ok(3));
}

#[test]
fn the_mode_decides_who_opens_and_the_owner_who_unlinks() {
    let table = [
        (0o600, user(2, 5), true, true),
        (0o600, user(2, 6), false, false),
        (0o660, user(2, 6), true, false),
        (0o640, user(2, 6), false, false),
        (0o666, user(2, 6), true, false),
        (0o006, user(2, 6), false, false),
        (0o000, root(2), true, true),
    ];
    for (mode, process, opens, unlinks) in table {
        let mut host = Host::new();
        let row = SemOpen { flags: O_CREAT, mode, value: 1 };
        assert!(host.call(user(1, 5), row, b"/s").is_ok(), "the maker is not asked for its rights");
        let opened = open(&mut host, process, "/s", 0, 0).map(|_| ());
        assert_eq!(opened, if opens { Ok(()) } else { Err(EACCES) }, "{mode:o} {process:?}");
        let unlinked = unlink(&mut host, process, "/s");
        assert_eq!(unlinked, if unlinks { Ok(()) } else { Err(EACCES) }, "{mode:o} {process:?}");
    }
}

#[test]
fn unlinking_what_is_not_there_is_an_error() {
    let long = format!("/{}", "x".repeat(252));
    for (name, expected) in [("/s", ENOENT), ("", ENOENT), ("/a/b", ENOENT), (&long, ENAMETOOLONG)]
    {
        assert_eq!(unlink(&mut Host::new(), root(1), name), Err(expected), "{name}");
    }
}

#[test]
fn a_value_goes_down_to_zero_and_up_to_the_maximum() {
    let mut host = Host::new();
    let id = make(&mut host, root(1), 2);
    assert_eq!(try_wait(&mut host, root(1), id), Ok(()));
    assert_eq!(try_wait(&mut host, root(1), id), Ok(()));
    assert_eq!(try_wait(&mut host, root(1), id), Err(EAGAIN));
    let full = open(&mut host, root(1), "/full", O_CREAT, SEM_VALUE_MAX).unwrap();
    assert_eq!(post(&mut host, root(1), full), Err(EOVERFLOW));
    assert_eq!(value(&mut host, root(1), full), Ok(i32::MAX));
}

#[test]
fn each_post_wakes_the_one_that_has_waited_longest() {
    let mut host = Host::new();
    let id = make(&mut host, root(1), 0);
    let row = SemWait { id, wait_ns: FOREVER };
    let waiters: Vec<_> = (2..6).map(|index| host.send(root(index), row, b"")).collect();
    assert_eq!(value(&mut host, root(1), id), Ok(0));
    for woken in 0..waiters.len() {
        post(&mut host, root(1), id).unwrap();
        let waiting = waiters.iter().filter(|call| host.waits(**call)).count();
        assert_eq!(waiting, waiters.len() - woken - 1);
        assert!(!host.waits(waiters[woken]), "waiter {woken} is the longest waiting");
    }
    assert_eq!(value(&mut host, root(1), id), Ok(0), "no post was left over");
}

#[test]
fn a_wait_ends_at_its_deadline_and_leaves_its_place() {
    let mut host = Host::new();
    let id = make(&mut host, root(1), 0);
    let short = host.send(root(2), SemWait { id, wait_ns: SECOND }, b"");
    let long = host.send(root(3), SemWait { id, wait_ns: 2 * SECOND }, b"");
    host.pass(SECOND - 1);
    assert!(host.waits(short));
    host.pass(1);
    assert_eq!(host.answer::<SemWait>(short), Some(Err(ETIMEDOUT)));
    post(&mut host, root(1), id).unwrap();
    assert_eq!(host.answer::<SemWait>(long), Some(Ok(((), vec![]))));
}

#[test]
fn an_interrupted_wait_takes_no_post() {
    let mut host = Host::new();
    let id = make(&mut host, root(1), 0);
    let first = host.send(root(2), SemWait { id, wait_ns: FOREVER }, b"");
    let second = host.send(root(3), SemWait { id, wait_ns: FOREVER }, b"");
    host.cancel(first);
    assert!(host.was_interrupted(first));
    post(&mut host, root(1), id).unwrap();
    assert!(!host.waits(second));
    host.cancel(second);
    assert!(!host.was_interrupted(second), "its answer was under way");
}

#[test]
fn a_dead_waiter_takes_no_post() {
    let mut host = Host::new();
    let id = make(&mut host, root(1), 0);
    host.send(root(2), SemWait { id, wait_ns: FOREVER }, b"");
    host.send(on_node(2, 1, 0), SemWait { id, wait_ns: FOREVER }, b"");
    host.dies(root(2));
    host.gone(Gone::Node(NodeId(2)));
    post(&mut host, root(1), id).unwrap();
    assert_eq!(value(&mut host, root(1), id), Ok(1));
}

#[test]
fn a_call_that_arrives_twice_while_it_waits_waits_once() {
    let mut host = Host::new();
    let id = make(&mut host, root(1), 0);
    let wait = host.send(root(2), SemWait { id, wait_ns: FOREVER }, b"");
    host.repeat(wait);
    post(&mut host, root(1), id).unwrap();
    assert!(!host.waits(wait));
    post(&mut host, root(1), id).unwrap();
    assert_eq!(value(&mut host, root(1), id), Ok(1));
}

#[test]
fn an_unlinked_semaphore_serves_its_holders_until_the_last_is_gone() {
    let mut host = Host::new();
    let id = make(&mut host, root(1), 1);
    open(&mut host, root(2), "/s", 0, 0).unwrap();
    unlink(&mut host, root(1), "/s").unwrap();
    assert_eq!(open(&mut host, root(3), "/s", 0, 0), Err(ENOENT));
    let other = open(&mut host, root(3), "/s", O_CREAT, 5).unwrap();
    assert_ne!(other, id, "the name is free for another one");
    host.dies(root(1));
    host.pass(2 * LINGER);
    assert_eq!(value(&mut host, root(2), id), Ok(1), "process 2 still holds it");
    host.call(root(2), SemClose { id }, b"").unwrap();
    host.pass(2 * LINGER);
    assert_eq!(value(&mut host, root(2), id), Err(EINVAL));
    assert_eq!(value(&mut host, root(3), other), Ok(5));
}

#[test]
fn a_forked_child_is_a_holder_from_its_first_use() {
    let mut host = Host::new();
    let id = make(&mut host, root(1), 1);
    unlink(&mut host, root(1), "/s").unwrap();
    host.dies(root(1));
    host.pass(LINGER / 2);
    assert_eq!(value(&mut host, root(2), id), Ok(1), "a child that is still starting");
    host.pass(2 * LINGER);
    assert_eq!(value(&mut host, root(2), id), Ok(1), "now it holds it");
    host.dies(root(2));
    host.pass(2 * LINGER);
    assert_eq!(value(&mut host, root(3), id), Err(EINVAL));
}

#[test]
fn the_end_of_a_node_leaves_no_child_that_could_come() {
    let mut host = Host::new();
    let id = make(&mut host, on_node(2, 1, 0), 1);
    unlink(&mut host, root(1), "/s").unwrap();
    host.gone(Gone::Node(NodeId(2)));
    assert_eq!(value(&mut host, root(1), id), Err(EINVAL));
}

#[test]
fn a_named_semaphore_needs_no_holder() {
    let mut host = Host::new();
    let id = make(&mut host, root(1), 1);
    host.dies(root(1));
    host.pass(2 * LINGER);
    host.restart();
    host.pass(2 * LINGER);
    assert_eq!(open(&mut host, root(2), "/s", 0, 0), Ok(id));
}

#[test]
fn what_is_opened_twice_is_held_until_it_is_closed_twice() {
    let mut host = Host::new();
    let id = make(&mut host, root(1), 1);
    assert_eq!(make(&mut host, root(1), 1), id);
    unlink(&mut host, root(1), "/s").unwrap();
    host.call(root(1), SemClose { id }, b"").unwrap();
    host.pass(2 * LINGER);
    assert_eq!(host.call(root(1), SemClose { id }, b""), Ok(((), vec![])));
    host.pass(2 * LINGER);
    assert_eq!(host.call(root(1), SemClose { id }, b""), Err(EINVAL));
}

#[test]
fn values_holders_and_waiters_survive_a_restart() {
    let mut host = Host::new();
    let id = make(&mut host, root(1), 3);
    let empty = open(&mut host, root(1), "/empty", O_CREAT, 0).unwrap();
    try_wait(&mut host, root(1), id).unwrap();
    unlink(&mut host, root(1), "/s").unwrap();
    let waiters: Vec<_> = (2..4)
        .map(|index| host.send(root(index), SemWait { id: empty, wait_ns: FOREVER }, b""))
        .collect();
    host.restart();
    host.pass(2 * LINGER);
    assert_eq!(value(&mut host, root(1), id), Ok(2), "process 1 holds the unlinked one");
    post(&mut host, root(1), empty).unwrap();
    assert!(!host.waits(waiters[0]) && host.waits(waiters[1]));
}

#[test]
fn an_object_that_only_lingers_at_a_crash_ends_a_minute_after_the_restart() {
    let mut host = Host::new();
    let id = make(&mut host, root(1), 3);
    unlink(&mut host, root(1), "/s").unwrap();
    host.dies(root(1));
    host.restart();
    host.pass(LINGER - 1);
    assert_eq!(value(&mut host, root(2), id), Ok(3));
    host.dies(root(2));
    host.restart();
    host.pass(LINGER + 1);
    assert_eq!(value(&mut host, root(2), id), Err(EINVAL));
}

#[test]
fn what_is_gone_leaves_nothing_in_the_store() {
    let mut host = Host::new();
    let empty = format!("{:?}", host.store);
    let id = make(&mut host, root(1), 3);
    assert_ne!(format!("{:?}", host.store), empty);
    value(&mut host, root(2), id).unwrap();
    unlink(&mut host, root(1), "/s").unwrap();
    host.gone(Gone::Node(NodeId(1)));
    assert_eq!(format!("{:?}", host.store), empty);
}
