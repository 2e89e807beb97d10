//! kill(2) through the containers, and the containers' own calls.

use crate::host::{Host, container, pid, process};
use calls::pm::{Await, Done, Exited, Join, Kill, Order, Report, Started, order};
use dvk::server::Gone;
use m3ipc::errno::numbers::{EAGAIN, EINVAL, EIO, EPERM, ESRCH};
use m3ipc::{CallId, NodeId};
use pm_server::limits::{AWAITS_PER_NODE, ORDERS_PER_NODE};

const TERM: u32 = 15;

fn kill(host: &mut Host, pid: i32) -> CallId {
    host.send(process(1, 1), Kill { pid, signal: TERM }, b"")
}

/// `None` while the call waits.
fn outcome(host: &Host, call: CallId) -> Option<Result<(), i32>> {
    host.answer::<Kill>(call).map(|answer| answer.map(|_| ()))
}

fn signed(pid: u32) -> i32 {
    i32::try_from(pid).unwrap()
}

#[test]
fn only_a_nodes_own_container_speaks_for_it() {
    let row = Started { pid: 5, ppid: 1, pgid: 5, sid: 5, node: 2 };
    for caller in [process(2, 1), container(1), container(0)] {
        let mut host = Host::with_nodes(2);
        let refused = [
            host.call(caller, Join { node: 2 }, b"").map(|_| ()),
            host.call(caller, Await { node: 2 }, b"").map(|_| ()),
            host.call(caller, row, b"x").map(|_| ()),
            host.call(caller, Report { id: 0, node: 2 }, b"").map(|_| ()),
        ];
        assert_eq!(refused, [Err(EPERM); 4], "{caller:?}");
    }
    let mut host = Host::with_nodes(2);
    for caller in [process(2, 1), container(0)] {
        assert_eq!(host.call(caller, Done { id: 1, errno: 0 }, b""), Err(EPERM));
        assert_eq!(host.call(caller, Exited { pid: 1, status: 0 }, b""), Err(EPERM));
    }
}

#[test]
fn who_has_not_joined_is_told_to() {
    let mut host = Host::new();
    let row = Started { pid: 5, ppid: 1, pgid: 5, sid: 5, node: 2 };
    assert_eq!(host.call(container(2), Await { node: 2 }, b""), Err(ESRCH));
    assert_eq!(host.call(container(2), row, b"x"), Err(ESRCH));
    assert_eq!(host.call(container(2), Report { id: 0, node: 2 }, b""), Err(ESRCH));
}

#[test]
fn a_kill_is_checked_before_anybody_is_told() {
    let table = [
        (signed(pid(2, 7)), 65, Err(EINVAL)),
        (0, TERM, Err(EINVAL)),
        (i32::MIN, TERM, Err(ESRCH)),
        (7, TERM, Err(ESRCH)),
        (signed(pid(3, 7)), TERM, Err(ESRCH)),
        (signed(pid(2, 0)), TERM, Err(ESRCH)),
        (i32::MAX, 0, Err(ESRCH)),
    ];
    for (pid, signal, expected) in table {
        let mut host = Host::with_nodes(2);
        let row = Kill { pid, signal };
        assert_eq!(host.call(process(1, 1), row, b"").map(|_| ()), expected, "{pid} {signal}");
        assert_eq!((host.order(1), host.order(2)), (None, None));
    }
}

#[test]
fn the_nodes_container_delivers_the_signal_and_its_answer_is_the_kills() {
    for errno in [0, ESRCH, EPERM] {
        for signal in [0, TERM, 64] {
            let mut host = Host::with_nodes(2);
            let row = Kill { pid: signed(pid(2, 7)), signal };
            let call = host.send(process(1, 1), row, b"");
            let given = host.order(2).unwrap();
            let expected = Order { kind: order::KILL, pid: row.pid, signal, uid: 5, ..given };
            assert_eq!(given, expected);
            assert!(host.waits(call));
            host.done(2, given.id, errno);
            let expected = if errno == 0 { Ok(()) } else { Err(errno) };
            assert_eq!(outcome(&host, call), Some(expected));
        }
    }
}

#[test]
fn an_impossible_errno_of_a_container_is_an_error_of_its_own() {
    for errno in [-1, 4096, i32::MIN] {
        let mut host = Host::with_nodes(2);
        let call = kill(&mut host, signed(pid(2, 7)));
        let given = host.order(2).unwrap();
        host.done(2, given.id, errno);
        assert_eq!(outcome(&host, call), Some(Err(EIO)));
    }
}

#[test]
fn the_table_knows_better_than_the_number() {
    let mut host = Host::with_nodes(3);
    host.started(3, pid(2, 7));
    host.started(1, 42);
    kill(&mut host, signed(pid(2, 7)));
    kill(&mut host, 42);
    assert!(host.order(2).is_none());
    assert_eq!(host.order(3).map(|order| order.pid), Some(signed(pid(2, 7))));
    assert_eq!(host.order(1).map(|order| order.pid), Some(42));
}

#[test]
fn a_waiting_container_gets_orders_as_they_come_one_per_call() {
    let mut host = Host::with_nodes(1);
    let calls: Vec<_> = (0..3).map(|_| host.send(container(1), Await { node: 1 }, b"")).collect();
    let pids: Vec<i32> = (1..=4).map(|index| signed(pid(1, index))).collect();
    for pid in &pids {
        kill(&mut host, *pid);
    }
    let last = host.order(1).unwrap();
    let fetched = calls.iter().map(|call| host.answer::<Await>(*call).unwrap().unwrap().0);
    let fetched: Vec<i32> = fetched.chain([last]).map(|order| order.pid).collect();
    assert_eq!(fetched, pids);
    assert_eq!(host.order(1), None);
}

#[test]
fn waiting_calls_and_orders_of_a_node_are_bounded() {
    let mut host = Host::with_nodes(2);
    for _ in 0..AWAITS_PER_NODE {
        assert!({
            let call = host.send(container(2), Await { node: 2 }, b"");
            host.waits(call)
        });
    }
    assert_eq!(host.call(container(2), Await { node: 2 }, b""), Err(EAGAIN));
    for _ in 0..ORDERS_PER_NODE {
        let call = kill(&mut host, signed(pid(1, 7)));
        assert!(host.waits(call));
    }
    let refused = kill(&mut host, signed(pid(1, 7)));
    assert_eq!(outcome(&host, refused), Some(Err(EAGAIN)));
    let given = host.order(1).unwrap();
    host.done(1, given.id, 0);
    let accepted = kill(&mut host, signed(pid(1, 7)));
    assert!(host.waits(accepted));
}

#[test]
fn everybody_or_a_group_is_told_on_all_nodes_and_the_best_answer_counts() {
    let table = [
        ([0, ESRCH, EPERM], Ok(())),
        ([ESRCH, ESRCH, 0], Ok(())),
        ([ESRCH, EPERM, ESRCH], Err(EPERM)),
        ([EIO, EPERM, ESRCH], Err(EPERM)),
        ([ESRCH, EIO, ESRCH], Err(EIO)),
        ([ESRCH, ESRCH, ESRCH], Err(ESRCH)),
    ];
    for (errnos, expected) in table {
        for target in [-1, -signed(pid(2, 7))] {
            let mut host = Host::with_nodes(3);
            let call = kill(&mut host, target);
            for (node, errno) in (1..).zip(errnos) {
                assert!(host.waits(call));
                let given = host.order(node).unwrap();
                assert_eq!((given.kind, given.pid), (order::KILL, target));
                host.done(node, given.id, errno);
            }
            assert_eq!(outcome(&host, call), Some(expected), "{errnos:?}");
        }
    }
    let mut host = Host::new();
    let call = kill(&mut host, -1);
    assert_eq!(outcome(&host, call), Some(Err(ESRCH)), "there is no node");
}

#[test]
fn the_end_of_a_node_or_its_container_answers_for_it() {
    let (node, alone) = (Gone::Node(NodeId(2)), Gone::Endpoint(container(2).endpoint));
    for gone in [node, alone] {
        for fetched in [false, true] {
            let mut host = Host::with_nodes(2);
            let one = kill(&mut host, signed(pid(2, 7)));
            let all = kill(&mut host, -1);
            if fetched {
                host.order(2).unwrap();
            }
            host.gone(gone);
            assert_eq!(outcome(&host, one), Some(Err(ESRCH)));
            assert!(host.waits(all), "node 1 has not answered");
            let given = host.order(1).unwrap();
            host.done(1, given.id, 0);
            assert_eq!(outcome(&host, all), Some(Ok(())));
            let call = kill(&mut host, signed(pid(2, 7)));
            assert_eq!(outcome(&host, call), Some(Err(ESRCH)));
        }
    }
}

#[test]
fn a_container_that_joins_again_has_no_orders_from_before() {
    let mut host = Host::with_nodes(2);
    let call = kill(&mut host, signed(pid(2, 7)));
    let waiting = host.send(container(1), Await { node: 1 }, b"");
    host.join(2);
    host.join(1);
    assert_eq!(outcome(&host, call), Some(Err(ESRCH)));
    assert_eq!(host.order(2), None);
    assert!(host.was_interrupted(waiting));
}

#[test]
fn answers_to_orders_of_others_or_of_the_past_change_nothing() {
    let mut host = Host::with_nodes(2);
    let call = kill(&mut host, signed(pid(2, 7)));
    let given = host.order(2).unwrap();
    host.done(1, given.id, 0);
    host.done(2, given.id.wrapping_add(1), 0);
    assert!(host.waits(call));
    host.done(2, given.id, 0);
    host.done(2, given.id, ESRCH);
    assert_eq!(outcome(&host, call), Some(Ok(())));
}

#[test]
fn a_signal_outlives_its_sender_and_is_not_interrupted() {
    let mut host = Host::with_nodes(2);
    let call = kill(&mut host, -1);
    host.cancel(call);
    assert!(host.waits(call), "kill(2) knows no EINTR");
    let first = host.order(1).unwrap();
    host.done(1, first.id, 0);
    host.dies(process(1, 1));
    let second = host.order(2).expect("the rest of the group is to get it, too");
    host.restart();
    host.done(2, second.id, 0);
}

#[test]
fn a_restart_neither_loses_nor_repeats_a_signal() {
    let mut host = Host::with_nodes(2);
    let waiting = kill(&mut host, signed(pid(2, 7)));
    host.restart();
    let first = host.order(2).expect("it was not fetched before the crash");
    host.restart();
    assert_eq!(host.order(2), None, "it was fetched before the crash");
    host.repeat(waiting);
    assert_eq!(host.order(2), None);
    host.done(2, first.id, EPERM);
    assert_eq!(outcome(&host, waiting), Some(Err(EPERM)));
}

#[test]
fn a_kill_that_is_done_before_its_call_arrives_again_is_answered_when_it_does() {
    let mut host = Host::with_nodes(2);
    let call = kill(&mut host, signed(pid(2, 7)));
    let given = host.order(2).unwrap();
    host.crash();
    host.done(2, given.id, 0);
    assert!(host.waits(call), "the host does not have it yet");
    host.crash();
    host.repeat(call);
    assert_eq!(outcome(&host, call), Some(Ok(())));
}

#[test]
fn what_is_answered_leaves_nothing_in_the_store() {
    let mut host = Host::with_nodes(2);
    let before = format!("{:?}", host.store);
    let call = kill(&mut host, -1);
    assert_ne!(format!("{:?}", host.store), before);
    for node in 1..=2 {
        let given = host.order(node).unwrap();
        host.done(node, given.id, 0);
    }
    assert!(!host.waits(call));
    assert_eq!(format!("{:?}", host.store), before);
}
