//! msgget, msgsnd, msgrcv, msgctl.

use crate::host::{EPOCH, Host, Process, SECOND, on_node, root, user};
use calls::ipc::{MsgCtl, MsgGet, MsgReceive, MsgSend, MsgStat, Perm, SetPerm, Value};
use calls::wire::Wire;
use dvk::server::Gone;
use ipc_server::flags::{
    IPC_CREAT, IPC_EXCL, IPC_INFO, IPC_NOWAIT, IPC_PRIVATE, IPC_RMID, IPC_SET, IPC_STAT, MSG_COPY,
    MSG_EXCEPT, MSG_INFO, MSG_NOERROR, MSG_STAT, MSG_STAT_ANY,
};
use ipc_server::limits::{MSGMAX, MSGMNB, MSGMNB_CEILING};
use m3ipc::errno::numbers::{E2BIG, EACCES, EAGAIN, EEXIST, EIDRM, EINVAL, ENOENT, ENOMSG, EPERM};
use m3ipc::{CallId, NodeId};
use proptest::prelude::*;

fn get(host: &mut Host, process: Process, key: i32, flags: u32) -> Result<i32, i32> {
    host.call(process, MsgGet { key, flags }, b"").map(|(Value { value }, _)| value)
}

fn queue(host: &mut Host) -> i32 {
    get(host, root(1), IPC_PRIVATE, 0o600).unwrap()
}

/// A queue with these messages: type and text.
fn filled(host: &mut Host, messages: &[(i64, &[u8])]) -> i32 {
    let id = queue(host);
    for (kind, text) in messages {
        assert_eq!(send(host, root(1), id, *kind, text), Ok(()));
    }
    id
}

fn send(host: &mut Host, process: Process, id: i32, kind: i64, text: &[u8]) -> Result<(), i32> {
    host.call(process, MsgSend { id, kind, flags: IPC_NOWAIT }, text).map(|_| ())
}

fn start_send(host: &mut Host, process: Process, id: i32, kind: i64, text: &[u8]) -> CallId {
    host.send(process, MsgSend { id, kind, flags: 0 }, text)
}

type Got = Result<(i64, Vec<u8>), i32>;

fn receive(host: &mut Host, id: i32, kind: i64, size: u64, flags: u32) -> Got {
    let call = start_receive(host, root(1), id, kind, size, flags | IPC_NOWAIT);
    got(host, call).expect("it does not wait")
}

fn start_receive(
    host: &mut Host,
    process: Process,
    id: i32,
    kind: i64,
    size: u64,
    flags: u32,
) -> CallId {
    host.send(process, MsgReceive { id, kind, size, flags }, b"")
}

fn got(host: &Host, call: CallId) -> Option<Got> {
    let answer = host.answer::<MsgReceive>(call)?;
    Some(answer.map(|(received, text)| {
        assert_eq!(received.len, text.len() as u64);
        (received.kind, text)
    }))
}

fn ctl(
    host: &mut Host,
    process: Process,
    id: i32,
    command: i32,
    payload: &[u8],
) -> Result<(i32, Vec<u8>), i32> {
    let row = MsgCtl { id, command };
    host.call(process, row, payload).map(|(Value { value }, payload)| (value, payload))
}

fn stat(host: &mut Host, id: i32) -> MsgStat {
    let (_, bytes) = ctl(host, root(99), id, IPC_STAT, b"").unwrap();
    MsgStat::get(&bytes).unwrap()
}

fn limit(bytes_max: u64) -> [u8; SetPerm::SIZE] {
    SetPerm { uid: 5, gid: 100, mode: 0o600, bytes_max }.bytes()
}

#[test]
fn msgget_follows_key_and_flags() {
    let table = [
        (7, 0, Ok(())),
        (7, IPC_CREAT, Ok(())),
        (7, IPC_CREAT | IPC_EXCL, Err(EEXIST)),
        (8, 0, Err(ENOENT)),
        (8, IPC_CREAT | IPC_EXCL, Ok(())),
        (IPC_PRIVATE, 0, Ok(())),
        (IPC_PRIVATE, IPC_EXCL, Ok(())),
    ];
    for (key, flags, expected) in table {
        let mut host = Host::new();
        let old = get(&mut host, root(1), 7, IPC_CREAT | 0o600).unwrap();
        let found = get(&mut host, root(2), key, flags);
        assert_eq!(found.map(|_| ()), expected, "{key} {flags:o}");
        assert_eq!(found == Ok(old), key == 7 && expected.is_ok());
    }
}

#[test]
fn sending_is_checked() {
    let mut host = Host::new();
    let id = queue(&mut host);
    let (most, too_much) = (vec![1; MSGMAX], vec![1; MSGMAX + 1]);
    let table = [
        (id, 1, &most[..], Ok(())),
        (id, 1, &too_much, Err(EINVAL)),
        (id, 0, b"", Err(EINVAL)),
        (id, -1, b"", Err(EINVAL)),
        (id + 1, 1, b"", Err(EINVAL)),
        (id + 32_768, 1, b"", Err(EINVAL)),
        (-1, 1, b"", Err(EINVAL)),
        (id, i64::MAX, &most, Ok(())),
        (id, 1, b"x", Err(EAGAIN)),
        (id, 1, b"", Ok(())),
    ];
    for (id, kind, text, expected) in table {
        assert_eq!(send(&mut host, root(1), id, kind, text), expected, "{id} {kind}");
    }
}

#[test]
fn the_type_and_the_flags_choose_the_message() {
    let (any, copy) = (MSG_NOERROR, MSG_COPY);
    let table: [(i64, u64, u32, Got); 17] = [
        (0, 9, 0, Ok((3, b"three".to_vec()))),
        (2, 9, 0, Ok((2, b"two".to_vec()))),
        (9, 9, 0, Err(ENOMSG)),
        (-1, 9, 0, Ok((1, b"one".to_vec()))),
        (-3, 9, 0, Ok((1, b"one".to_vec()))),
        (i64::MIN, 9, 0, Ok((1, b"one".to_vec()))),
        (3, 9, MSG_EXCEPT, Ok((2, b"two".to_vec()))),
        (0, 9, MSG_EXCEPT, Ok((3, b"three".to_vec()))),
        (-3, 9, MSG_EXCEPT, Ok((1, b"one".to_vec()))),
        (0, 4, 0, Err(E2BIG)),
        (0, 4, any, Ok((3, b"thre".to_vec()))),
        (0, 0, any, Ok((3, vec![]))),
        (0, 1 << 63, 0, Err(EINVAL)),
        (1, 9, copy, Ok((2, b"two".to_vec()))),
        (4, 9, copy, Err(ENOMSG)),
        (0, 9, copy | MSG_EXCEPT, Err(EINVAL)),
        (0, 2, copy, Err(E2BIG)),
    ];
    for (kind, size, flags, expected) in table {
        let mut host = Host::new();
        let messages: [(i64, &[u8]); 4] =
            [(3, b"three"), (2, b"two"), (1, b"one"), (1, b"another one")];
        let id = filled(&mut host, &messages);
        host.restart();
        let answer = receive(&mut host, id, kind, size, flags);
        assert_eq!(answer, expected, "{kind} {size} {flags:o}");
        let taken = u64::from(answer.is_ok() && flags & copy == 0);
        assert_eq!(stat(&mut host, id).messages, 4 - taken);
    }
    let mut host = Host::new();
    let id = filled(&mut host, &[(1, b"x")]);
    let waiting_copy = start_receive(&mut host, root(1), id, 0, 9, copy);
    assert_eq!(got(&host, waiting_copy), Some(Err(EINVAL)));
}

#[test]
fn a_message_goes_to_the_first_receiver_that_wants_it() {
    let mut host = Host::new();
    let id = queue(&mut host);
    let two = start_receive(&mut host, root(2), id, 2, 9, 0);
    let small = start_receive(&mut host, root(3), id, 0, 1, 0);
    let up_to = start_receive(&mut host, root(4), id, -5, 9, 0);
    let any = start_receive(&mut host, root(5), id, 0, 9, 0);
    send(&mut host, root(1), id, 7, b"seven").unwrap();
    assert_eq!(got(&host, small), Some(Err(E2BIG)), "it wanted it, but has no room");
    assert_eq!(got(&host, any), Some(Ok((7, b"seven".to_vec()))));
    send(&mut host, root(1), id, 2, b"two").unwrap();
    assert_eq!(got(&host, two), Some(Ok((2, b"two".to_vec()))));
    send(&mut host, root(1), id, 5, b"five").unwrap();
    assert_eq!(got(&host, up_to), Some(Ok((5, b"five".to_vec()))));
    let status = stat(&mut host, id);
    assert_eq!((status.messages, status.last_send_pid, status.last_receive_pid), (0, 1, 4));
}

#[test]
fn senders_wait_for_room_and_a_short_message_may_pass_a_long_one() {
    let mut host = Host::new();
    let id = filled(&mut host, &[(1, &[0; MSGMAX]), (2, &[0; MSGMAX - 10])]);
    let long = start_send(&mut host, root(2), id, 3, &[3; 100]);
    let short = start_send(&mut host, root(3), id, 4, &[4; 20]);
    assert!(host.waits(long) && host.waits(short));
    assert_eq!(receive(&mut host, id, 2, 8192, 0).map(|got| got.0), Ok(2));
    assert!(!host.waits(long) && !host.waits(short));
    let order: Vec<_> = (0..3).map(|_| receive(&mut host, id, 0, 8192, 0).unwrap().0).collect();
    assert_eq!(order, [1, 3, 4]);
    let id = filled(&mut host, &[(1, &[0; MSGMAX]), (2, &[0; MSGMAX - 10]), (5, &[0; 10])]);
    let long = start_send(&mut host, root(2), id, 3, &[3; 100]);
    let short = start_send(&mut host, root(3), id, 4, &[4; 10]);
    receive(&mut host, id, 5, 8192, 0).unwrap();
    assert!(host.waits(long) && !host.waits(short));
    host.dies(root(2));
    receive(&mut host, id, 1, 8192, 0).unwrap();
    assert_eq!(receive(&mut host, id, 3, 8192, 0), Err(ENOMSG), "its sender died");
}

#[test]
fn empty_messages_count_too() {
    let mut host = Host::new();
    let id = queue(&mut host);
    ctl(&mut host, root(1), id, IPC_SET, &limit(3)).unwrap();
    for _ in 0..3 {
        send(&mut host, root(1), id, 1, b"").unwrap();
    }
    assert_eq!(send(&mut host, root(1), id, 1, b""), Err(EAGAIN));
}

#[test]
fn removal_tells_who_waits_and_leaves_nothing() {
    let mut host = Host::new();
    let gone = queue(&mut host);
    ctl(&mut host, root(1), gone, IPC_RMID, b"").unwrap();
    let empty = host.store.clone();
    let id = get(&mut host, root(1), 7, IPC_CREAT | 0o600).unwrap();
    ctl(&mut host, root(1), id, IPC_SET, &limit(1)).unwrap();
    send(&mut host, root(1), id, 1, b"x").unwrap();
    let sender = start_send(&mut host, root(2), id, 1, b"y");
    let receiver = start_receive(&mut host, root(3), id, 5, 9, 0);
    ctl(&mut host, root(1), id, IPC_RMID, b"").unwrap();
    assert_eq!(host.answer::<MsgSend>(sender), Some(Err(EIDRM)));
    assert_eq!(got(&host, receiver), Some(Err(EIDRM)));
    assert_eq!(receive(&mut host, id, 0, 9, 0), Err(EINVAL));
    assert_eq!(get(&mut host, root(1), 7, 0), Err(ENOENT));
    assert_eq!(format!("{:?}", host.store).len(), format!("{empty:?}").len());
}

#[test]
fn permissions_follow_mode_owner_and_creator() {
    let mut host = Host::new();
    let id = get(&mut host, user(1, 5), 7, IPC_CREAT | 0o620).unwrap();
    let row = MsgReceive { id, kind: 0, size: 9, flags: IPC_NOWAIT };
    assert_eq!(send(&mut host, user(2, 6), id, 1, b"x"), Ok(()));
    assert_eq!(host.call(user(2, 6), row, b""), Err(EACCES));
    assert_eq!(get(&mut host, user(2, 6), 7, 0o600), Err(EACCES));
    assert_eq!(ctl(&mut host, user(2, 6), id, IPC_STAT, b""), Err(EACCES));
    assert_eq!(ctl(&mut host, user(2, 6), id & 0x7fff, MSG_STAT, b""), Err(EACCES));
    assert!(ctl(&mut host, user(2, 6), id & 0x7fff, MSG_STAT_ANY, b"").is_ok());
    assert_eq!(ctl(&mut host, user(2, 6), id, IPC_RMID, b""), Err(EPERM));
    assert_eq!(ctl(&mut host, user(2, 6), id, IPC_SET, &limit(1)), Err(EPERM));
    assert_eq!(ctl(&mut host, user(1, 5), id, IPC_SET, &limit(MSGMNB + 1)), Err(EPERM));
    assert_eq!(ctl(&mut host, root(1), id, IPC_SET, &limit(MSGMNB_CEILING + 1)), Err(EINVAL));
    assert_eq!(ctl(&mut host, root(1), id, IPC_SET, &[0; 19]), Err(EINVAL));
    assert_eq!(ctl(&mut host, root(1), id, 99, b""), Err(EINVAL));
    assert!(ctl(&mut host, root(1), id, IPC_SET, &limit(MSGMNB_CEILING)).is_ok());
}

#[test]
fn new_permissions_and_limits_reach_those_who_wait() {
    let mut host = Host::new();
    let id = get(&mut host, user(1, 5), 7, IPC_CREAT | 0o666).unwrap();
    let receiver = start_receive(&mut host, user(2, 6), id, 9, 9, 0);
    let owner = start_receive(&mut host, user(3, 5), id, 9, 9, 0);
    ctl(&mut host, user(1, 5), id, IPC_SET, &limit(2)).unwrap();
    assert_eq!(got(&host, receiver), Some(Err(EACCES)));
    assert!(host.waits(owner));
    send(&mut host, user(1, 5), id, 1, b"xx").unwrap();
    let sender = start_send(&mut host, user(1, 5), id, 1, b"yy");
    assert!(host.waits(sender));
    ctl(&mut host, user(1, 5), id, IPC_SET, &limit(4)).unwrap();
    assert_eq!(host.answer::<MsgSend>(sender), Some(Ok(((), vec![]))));
}

#[test]
fn status_tells_counts_pids_and_times_also_after_a_restart() {
    let mut host = Host::new();
    let id = get(&mut host, user(1, 5), 7, IPC_CREAT | 0o640).unwrap();
    let now = i64::try_from(EPOCH + host.now / SECOND).unwrap();
    let perm = Perm { key: 7, uid: 5, gid: 100, cuid: 5, cgid: 100, mode: 0o640, seq: 0 };
    let made = MsgStat { perm, bytes_max: MSGMNB, ctime: now, ..MsgStat::default() };
    assert_eq!(stat(&mut host, id), made);
    host.pass(SECOND);
    send(&mut host, root(8), id, 1, b"four").unwrap();
    send(&mut host, root(9), id, 1, b"five!").unwrap();
    host.pass(SECOND);
    receive(&mut host, id, 0, 9, 0).unwrap();
    host.restart();
    let used = MsgStat {
        bytes: 5,
        messages: 1,
        last_send_pid: 9,
        last_receive_pid: 1,
        stime: now + 1,
        rtime: now + 2,
        ..made
    };
    assert_eq!(stat(&mut host, id), used);
    assert_eq!(ctl(&mut host, root(1), id & 0x7fff, MSG_STAT, b"").unwrap().0, id);
    for command in [IPC_INFO, MSG_INFO] {
        let (highest, info) = ctl(&mut host, root(1), 0, command, b"").unwrap();
        assert_eq!((highest, info.len()), (0, 32));
    }
}

#[test]
fn the_dead_and_the_interrupted_leave_the_line() {
    let mut host = Host::new();
    let id = queue(&mut host);
    let cancelled = start_receive(&mut host, root(2), id, 0, 9, 0);
    start_receive(&mut host, root(3), id, 0, 9, 0);
    start_receive(&mut host, on_node(2, 1, 0), id, 0, 9, 0);
    let last = start_receive(&mut host, root(4), id, 0, 9, 0);
    host.cancel(cancelled);
    host.dies(root(3));
    host.gone(Gone::Node(NodeId(2)));
    assert!(host.was_interrupted(cancelled));
    send(&mut host, root(1), id, 1, b"x").unwrap();
    assert_eq!(got(&host, last), Some(Ok((1, b"x".to_vec()))));
}

proptest! {
    /// Against the words of msgrcv(2), on a list.
    #[test]
    fn any_sequence_of_sends_and_receives_agrees_with_the_manual(
        steps in prop::collection::vec((any::<bool>(), -4i64..5, any::<bool>(), any::<bool>()), 1..60),
    ) {
        let mut host = Host::new();
        let id = queue(&mut host);
        let mut model: Vec<(i64, u8)> = Vec::new();
        for (number, (sends, kind, except, restarts)) in (0u8..).zip(steps) {
            if restarts {
                host.restart();
            }
            if sends {
                let kind = kind.abs() + 1;
                send(&mut host, root(1), id, kind, &[number]).unwrap();
                model.push((kind, number));
                continue;
            }
            let lowest = model.iter().map(|(kind, _)| *kind).filter(|one| *one <= -kind).min();
            let place = model.iter().position(|(one, _)| match kind {
                0 => true,
                kind if kind < 0 => Some(*one) == lowest,
                kind => (*one == kind) != except,
            });
            let expected = place.map(|place| model.remove(place)).ok_or(ENOMSG);
            let flags = if except { MSG_EXCEPT } else { 0 };
            let answer = receive(&mut host, id, kind, 9, flags);
            prop_assert_eq!(answer, expected.map(|(kind, number)| (kind, vec![number])));
        }
    }
}
