//! semget, semop, semtimedop, semctl, and SEM_UNDO.

use crate::host::{EPOCH, Host, Process, SECOND, on_node, root, user};
use calls::ipc::{FOREVER, Perm, SemCtl, SemGet, SemOp, SemOps, SemStat, SetPerm, Value};
use calls::wire::Wire;
use dvk::server::Gone;
use ipc_server::flags::{
    GETALL, GETNCNT, GETPID, GETVAL, GETZCNT, IPC_CREAT, IPC_EXCL, IPC_INFO, IPC_NOWAIT,
    IPC_PRIVATE, IPC_RMID, IPC_SET, IPC_STAT, SEM_INFO, SEM_STAT, SEM_STAT_ANY, SEM_UNDO, SETALL,
    SETVAL,
};
use ipc_server::limits::{SEMMSL, SEMOPM};
use m3ipc::errno::numbers::{
    E2BIG, EACCES, EAGAIN, EEXIST, EFBIG, EIDRM, EINVAL, ENOENT, EPERM, ERANGE,
};
use m3ipc::{CallId, NodeId};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const NOWAIT: u16 = 0o4000;

fn get(host: &mut Host, process: Process, key: i32, count: u32, flags: u32) -> Result<i32, i32> {
    host.call(process, SemGet { key, count, flags }, b"").map(|(Value { value }, _)| value)
}

/// A private set with these values.
fn set(host: &mut Host, process: Process, values: &[u16]) -> i32 {
    let count = u32::try_from(values.len()).unwrap();
    let id = get(host, process, IPC_PRIVATE, count, 0o600).unwrap();
    ctl(host, process, id, 0, SETALL, 0, &shorts(values)).unwrap();
    id
}

fn shorts(values: &[u16]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn op(number: u16, op: i32, flags: u16) -> SemOp {
    SemOp { number, op, flags }
}

fn start(host: &mut Host, process: Process, id: i32, ops: &[SemOp], wait_ns: u64) -> CallId {
    let payload: Vec<u8> = ops.iter().flat_map(SemOp::bytes).collect();
    host.send(process, SemOps { id, wait_ns }, &payload)
}

/// A semop(2); `None` if it waits.
fn semop(host: &mut Host, process: Process, id: i32, ops: &[SemOp]) -> Option<Result<(), i32>> {
    let call = start(host, process, id, ops, FOREVER);
    outcome(host, call)
}

fn outcome(host: &Host, call: CallId) -> Option<Result<(), i32>> {
    host.answer::<SemOps>(call).map(|answer| answer.map(|_| ()))
}

fn ctl(
    host: &mut Host,
    process: Process,
    id: i32,
    number: i32,
    command: i32,
    value: i32,
    payload: &[u8],
) -> Result<(i32, Vec<u8>), i32> {
    let row = SemCtl { id, number, command, value };
    host.call(process, row, payload).map(|(Value { value }, payload)| (value, payload))
}

fn ask(host: &mut Host, id: i32, number: i32, command: i32) -> i32 {
    ctl(host, root(99), id, number, command, 0, b"").unwrap().0
}

fn values(host: &mut Host, id: i32) -> Vec<u16> {
    let (_, bytes) = ctl(host, root(99), id, 0, GETALL, 0, b"").unwrap();
    bytes.as_chunks::<2>().0.iter().map(|value| u16::from_le_bytes(*value)).collect()
}

fn stat(host: &mut Host, id: i32) -> SemStat {
    let (_, bytes) = ctl(host, root(99), id, 0, IPC_STAT, 0, b"").unwrap();
    SemStat::get(&bytes).unwrap()
}

#[test]
fn semget_follows_key_count_and_flags() {
    let table = [
        (7, 2, 0, Ok(())),
        (7, 0, 0, Ok(())),
        (7, 3, 0, Err(EINVAL)),
        (7, 2, IPC_CREAT, Ok(())),
        (7, 2, IPC_EXCL, Ok(())),
        (7, 2, IPC_CREAT | IPC_EXCL, Err(EEXIST)),
        (7, 3, IPC_CREAT | IPC_EXCL, Err(EEXIST)),
        (8, 1, 0, Err(ENOENT)),
        (8, 0, IPC_CREAT, Err(EINVAL)),
        (8, 1, IPC_CREAT | IPC_EXCL, Ok(())),
        (8, SEMMSL, IPC_CREAT, Ok(())),
        (8, SEMMSL + 1, IPC_CREAT, Err(EINVAL)),
        (7, SEMMSL + 1, 0, Err(EINVAL)),
        (IPC_PRIVATE, 1, 0, Ok(())),
        (IPC_PRIVATE, 0, 0, Err(EINVAL)),
    ];
    for (key, count, flags, expected) in table {
        let mut host = Host::new();
        let old = get(&mut host, root(1), 7, 2, IPC_CREAT | 0o600).unwrap();
        let found = get(&mut host, root(2), key, count, flags | 0o600);
        assert_eq!(found.map(|_| ()), expected, "{key} {count} {flags:o}");
        if let Ok(id) = found {
            assert_eq!(id == old, key == 7);
        }
    }
}

#[test]
fn an_identifier_is_not_used_again_soon_not_even_after_a_restart() {
    let mut host = Host::new();
    let mut seen = BTreeSet::new();
    for round in 0..200 {
        let id = get(&mut host, root(1), IPC_PRIVATE, 1, 0o600).unwrap();
        assert!(id >= 0 && seen.insert(id), "round {round}: {id} again");
        ctl(&mut host, root(1), id, 0, IPC_RMID, 0, b"").unwrap();
        assert_eq!(ctl(&mut host, root(1), id, 0, GETVAL, 0, b""), Err(EINVAL));
        if round % 10 == 0 {
            host.restart();
        }
    }
}

#[test]
fn permissions_follow_mode_owner_and_creator() {
    let (owner, member, stranger) =
        (user(2, 5), user(3, 6), Process { cred: m3ipc::Cred::new(4, 7, 7), ..user(4, 7) });
    let table = [
        (0o600, owner, 1, None),
        (0o400, owner, 0, Some(Ok(()))),
        (0o400, owner, 1, Some(Err(EACCES))),
        (0o640, member, 0, Some(Ok(()))),
        (0o640, member, 1, Some(Err(EACCES))),
        (0o602, stranger, 1, None),
        (0o602, stranger, 0, Some(Err(EACCES))),
        (0o000, root(5), 1, None),
    ];
    for (mode, process, by, refused) in table {
        let mut host = Host::new();
        let id = get(&mut host, user(1, 5), 7, 1, IPC_CREAT | mode).unwrap();
        let expected = refused.unwrap_or(Ok(()));
        let done = semop(&mut host, process, id, &[op(0, by, 0)]);
        assert_eq!(done, Some(expected), "{mode:o} {process:?}");
    }
    let mut host = Host::new();
    let id = get(&mut host, user(1, 5), 7, 1, IPC_CREAT | 0o640).unwrap();
    assert_eq!(get(&mut host, member, 7, 1, 0o400), Ok(id));
    assert_eq!(get(&mut host, member, 7, 1, 0o600), Err(EACCES));
    assert_eq!(get(&mut host, stranger, 7, 1, 0), Ok(id), "it asks for no right");
    assert_eq!(ctl(&mut host, member, id, 0, GETVAL, 0, b"").map(|_| ()), Ok(()));
    assert_eq!(ctl(&mut host, stranger, id, 0, GETVAL, 0, b""), Err(EACCES));
    assert_eq!(ctl(&mut host, stranger, id, 0, GETALL, 0, b""), Err(EACCES));
    assert_eq!(ctl(&mut host, stranger, id, 0, IPC_STAT, 0, b""), Err(EACCES));
    assert!(ctl(&mut host, stranger, id & 0x7fff, 0, SEM_STAT_ANY, 0, b"").is_ok());
    assert_eq!(ctl(&mut host, member, id, 0, SETVAL, 1, b""), Err(EACCES));
    assert_eq!(ctl(&mut host, member, id, 0, SETALL, 1, &shorts(&[1])), Err(EACCES));
    assert_eq!(ctl(&mut host, member, id, 0, IPC_RMID, 0, b""), Err(EPERM));
    assert_eq!(ctl(&mut host, owner, id, 0, IPC_RMID, 0, b"").map(|_| ()), Ok(()));
}

#[test]
fn a_semop_is_checked_before_it_is_tried() {
    let mut host = Host::new();
    let id = set(&mut host, root(1), &[1, 1]);
    let many = vec![op(0, 0, NOWAIT); SEMOPM];
    let too_many = vec![op(9, 0, NOWAIT); SEMOPM + 1];
    let table = [
        (id, &[][..], EINVAL),
        (id, &many, EAGAIN),
        (id, &too_many, E2BIG),
        (-1, &too_many, E2BIG),
        (-1, &many, EINVAL),
        (id + 1, &many, EINVAL),
        (id + 32768, &many, EINVAL),
        (id, &[op(2, 1, 0)], EFBIG),
        (id, &[op(1, 1, 0), op(2, -9, 0)], EFBIG),
        (id, &[op(0, 32_767, 0)], ERANGE),
        (id, &[op(0, 32_766, 0), op(0, 1, 0)], ERANGE),
        (id, &[op(0, i32::MAX, SEM_UNDO)], ERANGE),
        (id, &[op(0, -2, NOWAIT)], EAGAIN),
        (id, &[op(0, i32::MIN, NOWAIT | SEM_UNDO)], EAGAIN),
        (id, &[op(1, -1, 0), op(0, 0, NOWAIT)], EAGAIN),
    ];
    for (id, ops, expected) in table {
        assert_eq!(semop(&mut host, root(1), id, ops), Some(Err(expected)), "{id} {ops:?}");
    }
    assert_eq!(values(&mut host, id), [1, 1], "nothing was done by halves");
    let row = SemOps { id, wait_ns: FOREVER };
    assert_eq!(host.call(root(1), row, &[0; 9]), Err(EINVAL), "not a whole number of operations");
}

#[test]
fn operations_are_done_in_their_order_all_or_none() {
    let table = [
        (vec![op(0, -1, 0), op(0, 1, 0)], Some(vec![1, 0])),
        (vec![op(1, 1, 0), op(1, -1, 0)], Some(vec![1, 0])),
        (vec![op(1, -1, 0), op(1, 1, 0)], None),
        (vec![op(0, -1, 0), op(0, 0, 0), op(0, 2, 0)], Some(vec![2, 0])),
        (vec![op(0, -1, 0), op(1, -1, 0)], None),
        (vec![op(0, 0, 0)], None),
        (vec![op(1, 0, 0), op(1, 5, 0)], Some(vec![1, 5])),
    ];
    for (ops, after) in table {
        let mut host = Host::new();
        let id = set(&mut host, root(1), &[1, 0]);
        let done = semop(&mut host, root(2), id, &ops);
        assert_eq!(done, after.as_ref().map(|_| Ok(())), "{ops:?}");
        assert_eq!(values(&mut host, id), after.unwrap_or(vec![1, 0]), "{ops:?}");
    }
}

#[test]
fn waiting_operations_are_retried_in_the_order_of_their_arrival() {
    let mut host = Host::new();
    let id = set(&mut host, root(1), &[0, 0]);
    let both = start(&mut host, root(2), id, &[op(0, -1, 0), op(1, -1, 0)], FOREVER);
    let first = start(&mut host, root(3), id, &[op(0, -1, 0)], FOREVER);
    let second = start(&mut host, root(4), id, &[op(0, -1, 0)], FOREVER);
    assert_eq!(semop(&mut host, root(1), id, &[op(0, 1, 0)]), Some(Ok(())));
    assert_eq!(outcome(&host, first), Some(Ok(())), "the first that can go on");
    assert!(host.waits(both) && host.waits(second));
    semop(&mut host, root(1), id, &[op(0, 1, 0), op(1, 1, 0)]);
    assert_eq!(outcome(&host, both), Some(Ok(())), "it has waited longest");
    assert!(host.waits(second));
}

#[test]
fn those_that_wait_for_zero_are_served_at_the_zero() {
    let mut host = Host::new();
    let id = set(&mut host, root(1), &[2]);
    let zero = start(&mut host, root(2), id, &[op(0, 0, 0)], FOREVER);
    let then_up = start(&mut host, root(3), id, &[op(0, 0, 0), op(0, 3, 0)], FOREVER);
    let again = start(&mut host, root(4), id, &[op(0, 0, 0)], FOREVER);
    semop(&mut host, root(1), id, &[op(0, -1, 0)]);
    assert!(host.waits(zero));
    semop(&mut host, root(1), id, &[op(0, -1, 0)]);
    for call in [zero, again, then_up] {
        assert_eq!(outcome(&host, call), Some(Ok(())));
    }
    assert_eq!(values(&mut host, id), [3]);
}

#[test]
fn a_waiting_operation_that_meets_another_obstacle_is_told() {
    let mut host = Host::new();
    let id = set(&mut host, root(1), &[0, 1]);
    let ops = [op(0, -1, 0), op(1, 0, NOWAIT)];
    let call = start(&mut host, root(2), id, &ops, FOREVER);
    assert!(host.waits(call));
    semop(&mut host, root(1), id, &[op(0, 1, 0)]);
    assert_eq!(outcome(&host, call), Some(Err(EAGAIN)));
    let ops = [op(0, -2, 0), op(1, 32_767, 0)];
    let call = start(&mut host, root(2), id, &ops, FOREVER);
    semop(&mut host, root(1), id, &[op(0, 1, 0)]);
    assert_eq!(outcome(&host, call), Some(Err(ERANGE)));
    assert_eq!(values(&mut host, id), [2, 1]);
}

#[test]
fn a_wait_ends_at_its_deadline_with_eagain() {
    let mut host = Host::new();
    let id = set(&mut host, root(1), &[0]);
    let now = start(&mut host, root(2), id, &[op(0, -1, 0)], 0);
    assert_eq!(outcome(&host, now), Some(Err(EAGAIN)));
    let later = start(&mut host, root(2), id, &[op(0, -1, 0)], SECOND);
    host.pass(SECOND - 1);
    assert!(host.waits(later));
    host.pass(1);
    assert_eq!(outcome(&host, later), Some(Err(EAGAIN)));
}

#[test]
fn counts_and_pids_are_told() {
    let mut host = Host::new();
    let id = set(&mut host, root(1), &[0, 5]);
    start(&mut host, root(2), id, &[op(0, -1, 0), op(1, -1, 0)], FOREVER);
    start(&mut host, root(3), id, &[op(0, -1, 0)], FOREVER);
    start(&mut host, root(4), id, &[op(1, 0, 0)], FOREVER);
    let counts: Vec<i32> = [(0, GETNCNT), (1, GETNCNT), (0, GETZCNT), (1, GETZCNT)]
        .map(|(number, command)| ask(&mut host, id, number, command))
        .to_vec();
    assert_eq!(counts, [2, 0, 0, 1], "a call waits for its first obstacle");
    assert_eq!((ask(&mut host, id, 0, GETVAL), ask(&mut host, id, 1, GETVAL)), (0, 5));
    semop(&mut host, root(7), id, &[op(1, 1, 0)]);
    assert_eq!((ask(&mut host, id, 0, GETPID), ask(&mut host, id, 1, GETPID)), (1, 7));
    for (number, command) in [(2, GETVAL), (-1, GETVAL), (2, GETPID), (2, GETNCNT), (-1, GETZCNT)] {
        assert_eq!(ctl(&mut host, root(1), id, number, command, 0, b""), Err(EINVAL));
    }
}

#[test]
fn setting_values_is_checked_and_wakes() {
    let mut host = Host::new();
    let id = set(&mut host, root(1), &[0, 0]);
    let table = [
        (0, SETVAL, -1, vec![], ERANGE),
        (0, SETVAL, 32_768, vec![], ERANGE),
        (2, SETVAL, 1, vec![], EINVAL),
        (-1, SETVAL, 1, vec![], EINVAL),
        (0, SETALL, 0, shorts(&[1]), EINVAL),
        (0, SETALL, 0, shorts(&[1, 2, 3]), EINVAL),
        (0, SETALL, 0, vec![1, 0, 2], EINVAL),
        (0, SETALL, 0, shorts(&[1, 32_768]), ERANGE),
        (0, 77, 0, vec![], EINVAL),
        (0, IPC_SET, 0, vec![1; 8], EINVAL),
    ];
    for (number, command, value, payload, expected) in table {
        let done = ctl(&mut host, root(1), id, number, command, value, &payload);
        assert_eq!(done, Err(expected), "{number} {command} {value}");
    }
    for (id, value, expected) in
        [(-1, -1, EINVAL), (-1, 1, EINVAL), (999, -1, ERANGE), (999, 1, EINVAL)]
    {
        assert_eq!(
            ctl(&mut host, root(1), id, 0, SETVAL, value, b""),
            Err(expected),
            "{id} {value}"
        );
    }
    let one = start(&mut host, root(2), id, &[op(0, -1, 0)], FOREVER);
    ctl(&mut host, root(1), id, 0, SETVAL, 3, b"").unwrap();
    assert_eq!(outcome(&host, one), Some(Ok(())));
    let other = start(&mut host, root(2), id, &[op(1, -4, 0)], FOREVER);
    ctl(&mut host, root(1), id, 0, SETALL, 0, &shorts(&[7, 4])).unwrap();
    assert_eq!(outcome(&host, other), Some(Ok(())));
    assert_eq!(values(&mut host, id), [7, 0]);
}

#[test]
fn removal_tells_who_waits() {
    let mut host = Host::new();
    let empty = format!("{:?}", host.store);
    let id = get(&mut host, root(1), 7, 40, IPC_CREAT | 0o600).unwrap();
    semop(&mut host, root(1), id, &[op(39, 1, SEM_UNDO)]);
    let waits = start(&mut host, root(2), id, &[op(0, -1, 0)], FOREVER);
    ctl(&mut host, root(1), id, 0, IPC_RMID, 0, b"").unwrap();
    assert_eq!(outcome(&host, waits), Some(Err(EIDRM)));
    assert_eq!(semop(&mut host, root(1), id, &[op(0, 1, 0)]), Some(Err(EINVAL)));
    assert_eq!(get(&mut host, root(1), 7, 1, 0), Err(ENOENT));
    host.dies(root(1));
    let left = format!("{:?}", host.store);
    assert!(left.len() < empty.len() + 100, "only the next sequence number is left: {left}");
}

#[test]
fn status_tells_owner_times_and_size_and_can_be_set() {
    let mut host = Host::new();
    let id = get(&mut host, user(1, 5), 7, 3, IPC_CREAT | 0o640).unwrap();
    let now = i64::try_from(EPOCH + host.now / SECOND).unwrap();
    let perm = Perm { key: 7, uid: 5, gid: 100, cuid: 5, cgid: 100, mode: 0o640, seq: 0 };
    let made = SemStat { perm, semaphores: 3, otime: 0, ctime: now };
    assert_eq!(stat(&mut host, id), made);
    host.pass(10 * SECOND);
    semop(&mut host, root(1), id, &[op(0, 0, 0)]);
    assert_eq!(stat(&mut host, id).otime, now + 10);
    host.pass(10 * SECOND);
    let give = SetPerm { uid: 6, gid: 9, mode: 0o7777, bytes_max: 0 };
    assert_eq!(ctl(&mut host, user(2, 6), id, 0, IPC_SET, 0, &give.bytes()), Err(EPERM));
    ctl(&mut host, user(1, 5), id, 0, IPC_SET, 0, &give.bytes()).unwrap();
    host.restart();
    let perm = Perm { uid: 6, gid: 9, mode: 0o777, ..perm };
    let given = SemStat { perm, otime: now + 10, ctime: now + 20, ..made };
    assert_eq!(stat(&mut host, id), given);
    let nobody = SetPerm { uid: u32::MAX, ..give };
    assert_eq!(ctl(&mut host, user(1, 5), id, 0, IPC_SET, 0, &nobody.bytes()), Err(EINVAL));
    let (by_index, _) = ctl(&mut host, root(1), id & 0x7fff, 0, SEM_STAT, 0, b"").unwrap();
    assert_eq!(by_index, id);
    assert_eq!(ctl(&mut host, root(1), 5, 0, SEM_STAT, 0, b""), Err(EINVAL));
    for command in [IPC_INFO, SEM_INFO] {
        let (highest, info) = ctl(&mut host, root(1), 0, 0, command, 0, b"").unwrap();
        assert_eq!((highest, info.len()), (0, 40));
    }
}

#[test]
fn undo_values_are_added_when_a_process_dies() {
    let mut host = Host::new();
    let id = set(&mut host, root(1), &[5, 0]);
    semop(&mut host, root(2), id, &[op(0, -3, SEM_UNDO), op(1, 4, SEM_UNDO)]);
    semop(&mut host, root(2), id, &[op(0, 1, 0), op(1, -1, SEM_UNDO)]);
    let waits = start(&mut host, root(3), id, &[op(0, -6, 0)], FOREVER);
    assert_eq!(values(&mut host, id), [3, 3]);
    host.restart();
    host.dies(root(2));
    assert_eq!(outcome(&host, waits), Some(Ok(())), "3 + 3 are enough");
    assert_eq!(values(&mut host, id), [0, 0]);
    assert_eq!(ask(&mut host, id, 1, GETPID), 2, "the dead process changed it last");
    host.dies(root(2));
    assert_eq!(values(&mut host, id), [0, 0], "once");
}

#[test]
fn undo_never_leaves_the_range_of_values() {
    let mut host = Host::new();
    let id = set(&mut host, root(1), &[0, 32_767]);
    semop(&mut host, root(2), id, &[op(0, 5, SEM_UNDO), op(1, -5, SEM_UNDO)]);
    semop(&mut host, root(1), id, &[op(0, -4, 0), op(1, 4, 0)]);
    host.dies(root(2));
    assert_eq!(values(&mut host, id), [0, 32_767]);
}

#[test]
fn undo_values_have_a_range_too() {
    let mut host = Host::new();
    let id = set(&mut host, root(1), &[32_767]);
    for _ in 0..2 {
        semop(&mut host, root(2), id, &[op(0, -32_767, SEM_UNDO)]);
        ctl(&mut host, root(1), id, 0, SETVAL, 0, b"").unwrap();
        semop(&mut host, root(2), id, &[op(0, 32_767, SEM_UNDO)]);
        semop(&mut host, root(1), id, &[op(0, -32_767, 0)]);
        assert_eq!(semop(&mut host, root(2), id, &[op(0, 2, SEM_UNDO)]), Some(Err(ERANGE)));
        assert_eq!(semop(&mut host, root(2), id, &[op(0, 1, SEM_UNDO)]), Some(Ok(())));
        ctl(&mut host, root(1), id, 0, SETVAL, 32_767, b"").unwrap();
    }
}

#[test]
fn setting_a_value_clears_its_undo_values() {
    let mut host = Host::new();
    let id = set(&mut host, root(1), &[5, 5]);
    semop(&mut host, root(2), id, &[op(0, -1, SEM_UNDO), op(1, -1, SEM_UNDO)]);
    ctl(&mut host, root(1), id, 0, SETVAL, 2, b"").unwrap();
    host.dies(root(2));
    assert_eq!(values(&mut host, id), [2, 5]);
    semop(&mut host, root(3), id, &[op(0, -1, SEM_UNDO), op(1, -1, SEM_UNDO)]);
    ctl(&mut host, root(1), id, 0, SETALL, 0, &shorts(&[8, 8])).unwrap();
    host.restart();
    host.dies(root(3));
    assert_eq!(values(&mut host, id), [8, 8]);
}

#[test]
fn the_end_of_a_node_undoes_for_all_its_processes() {
    let mut host = Host::new();
    let id = set(&mut host, root(1), &[9]);
    for (node, index) in [(1, 2), (2, 1), (2, 2), (3, 1)] {
        semop(&mut host, on_node(node, index, 0), id, &[op(0, -1, SEM_UNDO)]);
    }
    let waits = start(&mut host, on_node(2, 3, 0), id, &[op(0, -9, 0)], FOREVER);
    host.gone(Gone::Node(NodeId(2)));
    assert_eq!(values(&mut host, id), [7]);
    assert!(!host.waits(waits) && outcome(&host, waits).is_none(), "the dead need no answer");
}

#[test]
fn an_undo_of_a_waiting_operation_counts_when_it_is_done() {
    let mut host = Host::new();
    let id = set(&mut host, root(1), &[0]);
    start(&mut host, root(2), id, &[op(0, -1, SEM_UNDO)], FOREVER);
    semop(&mut host, root(1), id, &[op(0, 1, 0)]);
    assert_eq!(values(&mut host, id), [0]);
    host.dies(root(2));
    assert_eq!(values(&mut host, id), [1]);
}

/// A model by brute force: it tries on a copy, and after every change looks at all waiters anew.
#[derive(Default)]
struct Model {
    values: Vec<i32>,
    undo: BTreeMap<u32, BTreeMap<usize, i32>>,
    waiting: Vec<(u32, Vec<SemOp>)>,
    /// Who was answered what, in order.
    answers: Vec<(u32, Result<(), i32>)>,
}

impl Model {
    fn attempt(&mut self, process: u32, ops: &[SemOp]) -> Option<Result<(), i32>> {
        let (mut values, mut undo) = (self.values.clone(), self.undo.clone());
        for op in ops {
            let number = usize::from(op.number);
            if (op.op == 0 && values[number] != 0) || values[number] + op.op < 0 {
                return (u32::from(op.flags) & IPC_NOWAIT != 0).then_some(Err(EAGAIN));
            }
            values[number] += op.op;
            if values[number] > 32_767 {
                return Some(Err(ERANGE));
            }
            if op.flags & SEM_UNDO != 0 {
                *undo.entry(process).or_default().entry(number).or_default() -= op.op;
            }
        }
        (self.values, self.undo) = (values, undo);
        Some(Ok(()))
    }

    fn settle(&mut self) {
        'again: loop {
            for only_zeros in [true, false] {
                for place in 0..self.waiting.len() {
                    let (process, ops) = self.waiting[place].clone();
                    if ops.iter().all(|op| op.op == 0) != only_zeros {
                        continue;
                    }
                    if let Some(answer) = self.attempt(process, &ops) {
                        self.waiting.remove(place);
                        self.answers.push((process, answer));
                        continue 'again;
                    }
                }
            }
            return;
        }
    }

    fn semop(&mut self, process: u32, ops: Vec<SemOp>) {
        match self.attempt(process, &ops) {
            Some(answer) => self.answers.push((process, answer)),
            None => self.waiting.push((process, ops)),
        }
        self.settle();
    }

    fn dies(&mut self, process: u32) {
        self.waiting.retain(|(waiter, _)| *waiter != process);
        for (number, adjust) in self.undo.remove(&process).unwrap_or_default() {
            self.values[number] = (self.values[number] + adjust).clamp(0, 32_767);
        }
        self.settle();
    }
}

#[derive(Clone, Debug)]
enum Step {
    Semop(u32, Vec<SemOp>),
    Set(u16, u16),
    Dies(u32),
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let flags = prop::sample::select(vec![0, 0, 0, NOWAIT, SEM_UNDO, SEM_UNDO, SEM_UNDO | NOWAIT]);
    let one = (0u16..3, -2i32..3, flags).prop_map(|(number, by, flags)| op(number, by, flags));
    let ops = prop::collection::vec(one, 1..4);
    let step = prop_oneof![
        8 => (2u32..7, ops).prop_map(|(process, ops)| Step::Semop(process, ops)),
        1 => (0u16..3, 0u16..3).prop_map(|(number, value)| Step::Set(number, value)),
        1 => (2u32..7).prop_map(Step::Dies),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_history_agrees_with_the_model(steps in steps()) {
        let mut host = Host::new();
        let id = set(&mut host, root(1), &[0, 1, 2]);
        let mut model = Model { values: vec![0, 1, 2], ..Model::default() };
        let mut calls: BTreeMap<CallId, u32> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Semop(process, ops) => {
                    // A process that waits makes no other call.
                    if model.waiting.iter().any(|(waiter, _)| *waiter == process) {
                        continue;
                    }
                    model.semop(process, ops.clone());
                    calls.insert(start(&mut host, root(process), id, &ops, FOREVER), process);
                }
                Step::Set(number, value) => {
                    model.values[usize::from(number)] = i32::from(value);
                    for undo in model.undo.values_mut() {
                        undo.remove(&usize::from(number));
                    }
                    let (number, value) = (i32::from(number), i32::from(value));
                    ctl(&mut host, root(1), id, number, SETVAL, value, b"").unwrap();
                    model.settle();
                }
                Step::Dies(process) => {
                    model.dies(process);
                    host.dies(root(process));
                }
                Step::Restart => host.restart(),
            }
            let now: Vec<i32> = values(&mut host, id).into_iter().map(i32::from).collect();
            prop_assert_eq!(&now, &model.values);
        }
        // The answer of a call comes before those of the calls that it lets go on, or after them:
        // only each process's own order, and the order among those that waited, mean anything.
        for process in 2..7 {
            let answers = host.order.iter().filter(|call| calls.get(call) == Some(&process));
            let answers: Vec<_> = answers.map(|call| outcome(&host, *call).unwrap()).collect();
            let expected = model.answers.iter().filter(|(who, _)| *who == process);
            prop_assert_eq!(answers, expected.map(|(_, answer)| *answer).collect::<Vec<_>>());
        }
        let waiting = calls.keys().filter(|call| host.waits(**call)).count();
        prop_assert_eq!(waiting, model.waiting.len());
    }
}
