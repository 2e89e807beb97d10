//! List: fresh from all nodes, page by page.

use crate::host::{Host, SECOND, container, pid, process, record};
use calls::pm::{Done, List, Process, Report, Started, order};
use calls::vfs::Count;
use calls::wire::Wire;
use dvk::server::Gone;
use m3ipc::errno::numbers::{EINVAL, EIO};
use m3ipc::{CallId, NodeId};
use pm_server::limits::{ORDERS_PER_NODE, REPORT_WAIT, SNAPSHOT_LIFE};

const ALL: List = List { from: 0, size: 1 << 17 };

fn start(host: &mut Host) -> CallId {
    host.send(process(1, 9), ALL, b"")
}

/// Pid, node and command of each record; `None` while the list waits.
fn listed(host: &Host, call: CallId) -> Option<Vec<(u32, u16, String)>> {
    let (Count { count }, payload) = host.answer::<List>(call)?.unwrap();
    let all = records(&payload);
    assert_eq!(count, all.len() as u64);
    Some(all.into_iter().map(|(process, command)| (process.pid, process.node, command)).collect())
}

fn pids(host: &Host, call: CallId) -> Option<Vec<u32>> {
    listed(host, call).map(|all| all.into_iter().map(|(pid, ..)| pid).collect())
}

fn records(mut payload: &[u8]) -> Vec<(Process, String)> {
    let mut all = Vec::new();
    while let Some(process) = Process::get(payload) {
        let (command, rest) = payload[Process::SIZE..].split_at(usize::from(process.command_len));
        all.push((process, String::from_utf8(command.to_vec()).unwrap()));
        payload = rest;
    }
    assert!(payload.is_empty());
    all
}

/// The order to report that a node has; all others first.
fn report_order(host: &mut Host, node: u16) -> u64 {
    let given = host.order(node).expect("the list asks every node");
    assert_eq!(given.kind, order::REPORT);
    given.id
}

#[test]
fn every_node_is_asked_and_the_answer_is_in_the_order_of_pids() {
    let mut host = Host::with_nodes(2);
    host.started(2, pid(2, 7));
    let call = start(&mut host);
    let (first, second) = (report_order(&mut host, 1), report_order(&mut host, 2));
    host.report(2, second, &[pid(2, 8), pid(2, 2)]);
    assert!(host.waits(call));
    host.report(1, first, &[pid(1, 3)]);
    let expected = [
        (pid(1, 3), 1, "init".to_owned()),
        (pid(2, 2), 2, "init".to_owned()),
        (pid(2, 7), 2, "cat -".to_owned()),
        (pid(2, 8), 2, "init".to_owned()),
    ];
    assert_eq!(listed(&host, call), Some(expected.to_vec()));
}

#[test]
fn without_nodes_the_list_is_empty() {
    let mut host = Host::new();
    let call = start(&mut host);
    assert_eq!(pids(&host, call), Some(vec![]));
}

#[test]
fn a_report_replaces_what_was_reported_before_and_adds_to_what_was_started() {
    let mut host = Host::with_nodes(1);
    let row = Started { pid: pid(1, 7), ppid: 3, pgid: 4, sid: 5, node: 1 };
    host.call(container(1), row, b"sh\0-c\0x").unwrap();
    host.report(1, 0, &[pid(1, 8), pid(1, 9)]);
    let details = Process {
        pid: pid(1, 7),
        ppid: 30,
        pgid: 40,
        sid: 50,
        uid: 60,
        node: 99,
        state: b'D',
        command_len: 2,
        start: 70,
        cpu_ms: 80,
    };
    let payload = [&details.bytes()[..], b"ls", &record(pid(1, 9), b"init")].concat();
    let call = start(&mut host);
    let id = report_order(&mut host, 1);
    host.call(container(1), Report { id, node: 1 }, &payload).unwrap();
    let (_, payload) = host.answer::<List>(call).unwrap().unwrap();
    let told = records(&payload);
    assert_eq!(told[0], (Process { node: 1, ..details }, "ls".to_owned()));
    assert_eq!(told[1].0.pid, pid(1, 9));
    assert_eq!(told.len(), 2);
}

#[test]
fn a_node_that_does_not_answer_delays_the_list_but_does_not_stop_it() {
    let mut host = Host::with_nodes(2);
    host.report(2, 0, &[pid(2, 7)]);
    let call = start(&mut host);
    let first = report_order(&mut host, 1);
    let late = report_order(&mut host, 2);
    host.report(1, first, &[pid(1, 7)]);
    host.pass(REPORT_WAIT - 1);
    assert!(host.waits(call));
    host.pass(1);
    assert_eq!(pids(&host, call), Some(vec![pid(1, 7), pid(2, 7)]));
    host.report(2, late, &[pid(2, 8)]);
    let call = start(&mut host);
    host.pass(REPORT_WAIT);
    assert_eq!(pids(&host, call), Some(vec![pid(1, 7), pid(2, 8)]), "the late report was used");
}

#[test]
fn nodes_that_die_join_anew_fail_or_talk_nonsense_do_not_hold_up_the_list() {
    type Event = fn(&mut Host, u64);
    let events: [Event; 5] = [
        |host, _| host.gone(Gone::Node(NodeId(2))),
        |host, _| host.gone(Gone::Endpoint(container(2).endpoint)),
        |host, _| host.join(2),
        |host, id| drop(host.call(container(2), Done { id, errno: EIO }, b"").unwrap()),
        |host, id| {
            let row = Report { id, node: 2 };
            assert_eq!(host.call(container(2), row, b"nonsense"), Err(EINVAL));
        },
    ];
    for (number, event) in events.into_iter().enumerate() {
        let mut host = Host::with_nodes(2);
        let call = start(&mut host);
        let (first, second) = (report_order(&mut host, 1), report_order(&mut host, 2));
        host.report(1, first, &[pid(1, 7)]);
        assert!(host.waits(call));
        event(&mut host, second);
        assert_eq!(pids(&host, call), Some(vec![pid(1, 7)]), "event {number}");
    }
}

#[test]
fn lists_at_the_same_time_share_a_report_that_has_not_begun() {
    let mut host = Host::with_nodes(1);
    let (one, other) = (start(&mut host), start(&mut host));
    let shared = report_order(&mut host, 1);
    assert_eq!(host.order(1), None);
    let later = start(&mut host);
    let own = report_order(&mut host, 1);
    host.report(1, shared, &[]);
    assert!(!host.waits(one) && !host.waits(other));
    assert!(host.waits(later), "it is to see what has changed since the report began");
    host.report(1, own, &[pid(1, 7)]);
    assert_eq!(pids(&host, later), Some(vec![pid(1, 7)]));
}

#[test]
fn a_list_that_nobody_waits_for_orders_nothing() {
    let mut host = Host::with_nodes(1);
    let interrupted = start(&mut host);
    host.cancel(interrupted);
    assert!(host.was_interrupted(interrupted));
    assert_eq!(host.order(1), None);
    start(&mut host);
    host.dies(process(1, 9));
    assert_eq!(host.order(1), None);
    let timed_out = start(&mut host);
    host.pass(REPORT_WAIT);
    assert!(!host.waits(timed_out));
    assert_eq!(host.order(1), None);
}

#[test]
fn hanging_containers_do_not_make_lists_impossible() {
    let mut host = Host::with_nodes(1);
    for _ in 0..ORDERS_PER_NODE + 10 {
        let call = start(&mut host);
        host.order(1).expect("the container fetches the order, and hangs");
        host.pass(REPORT_WAIT);
        assert_eq!(pids(&host, call), Some(vec![]));
    }
}

#[test]
fn pages_of_one_caller_belong_together() {
    let mut host = Host::with_nodes(1);
    let many: Vec<u32> = (1..=100).map(|index| pid(1, index)).collect();
    host.report(1, 0, &many);
    let size = 500;
    let first = host.send(process(1, 9), List { from: 0, size }, b"");
    let id = report_order(&mut host, 1);
    host.report(1, id, &many);
    let mut seen = Vec::new();
    let mut page = host.answer::<List>(first).unwrap().unwrap();
    while !page.1.is_empty() {
        assert!(page.1.len() <= 500);
        assert_eq!(page.0.count, 100);
        seen.extend(records(&page.1).into_iter().map(|(process, _)| process.pid));
        // Meanwhile everything changes.
        host.report(1, 0, &[pid(1, 1000)]);
        let from = u32::try_from(seen.len()).unwrap();
        page = host.call(process(1, 9), List { from, size }, b"").unwrap();
    }
    assert_eq!(seen, many);
    let other = host.send(process(1, 8), List { from: 50, size }, b"");
    assert!(host.waits(other), "another caller has seen no beginning");
    host.pass(SNAPSHOT_LIFE + SECOND);
    let late = host.send(process(1, 9), List { from: 50, size }, b"");
    assert!(host.waits(late), "after a while it is forgotten");
}

#[test]
fn the_table_survives_a_restart() {
    let mut host = Host::with_nodes(2);
    host.started(1, pid(1, 7));
    host.report(2, 0, &[pid(2, 8)]);
    host.exited(1, pid(1, 7), 0);
    host.started(1, pid(1, 9));
    let call = start(&mut host);
    host.restart();
    host.pass(REPORT_WAIT);
    assert_eq!(pids(&host, call), Some(vec![pid(1, 9), pid(2, 8)]));
}
