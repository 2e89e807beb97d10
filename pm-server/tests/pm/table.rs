//! Started, Exited, Report, Wait.

use crate::host::{Host, container, pid, process, record};
use calls::pm::{Ended, Report, Started, Wait, order};
use dvk::server::Gone;
use m3ipc::errno::numbers::{EINVAL, ESRCH};
use m3ipc::{CallId, NodeId};
use pm_server::limits::{ENDED_MAX, WATCH_INTERVAL};

fn wait(host: &mut Host, pid: u32) -> CallId {
    host.send(process(1, 9), Wait { pid }, b"")
}

/// `None` while the call waits.
fn status(host: &Host, call: CallId) -> Option<Result<i32, i32>> {
    host.answer::<Wait>(call).map(|answer| answer.map(|(Ended { status, .. }, _)| status))
}

/// What a new wait says at once.
fn ask(host: &mut Host, pid: u32) -> Option<Result<i32, i32>> {
    let call = wait(host, pid);
    status(host, call)
}

#[test]
fn a_wait_ends_with_the_process_whoever_comes_first() {
    let mut host = Host::with_nodes(2);
    let seven = pid(2, 7);
    assert_eq!(ask(&mut host, seven), Some(Err(ESRCH)), "the table never had it");
    host.started(2, seven);
    let early = [wait(&mut host, seven), wait(&mut host, seven)];
    host.restart();
    host.exited(2, seven, 0x300);
    for call in early {
        assert_eq!(status(&host, call), Some(Ok(0x300)));
    }
    host.restart();
    assert_eq!(ask(&mut host, seven), Some(Ok(0x300)), "it is remembered");
}

#[test]
fn the_end_of_a_node_ends_its_processes_as_killed() {
    for (gone, joined_again) in [
        (Some(Gone::Node(NodeId(2))), false),
        (Some(Gone::Endpoint(container(2).endpoint)), true),
        (None, true),
    ] {
        let mut host = Host::with_nodes(2);
        host.started(1, pid(1, 7));
        host.started(2, pid(2, 7));
        let (here, there) = (wait(&mut host, pid(1, 7)), wait(&mut host, pid(2, 7)));
        if let Some(gone) = gone {
            host.gone(gone);
        }
        if joined_again {
            host.join(2);
        }
        assert_eq!(status(&host, there), Some(Ok(9)), "{gone:?}");
        assert!(host.waits(here));
        assert_eq!(ask(&mut host, pid(2, 7)), Some(Ok(9)));
    }
}

#[test]
fn who_waits_can_be_interrupted_and_can_die() {
    let mut host = Host::with_nodes(1);
    host.started(1, pid(1, 7));
    let interrupted = wait(&mut host, pid(1, 7));
    host.cancel(interrupted);
    assert!(host.was_interrupted(interrupted));
    wait(&mut host, pid(1, 7));
    host.dies(process(1, 9));
    host.exited(1, pid(1, 7), 0);
}

#[test]
fn a_pid_that_no_process_can_have_is_refused() {
    for pid in [0, 1 << 31, u32::MAX] {
        let mut host = Host::with_nodes(1);
        let row = Started { pid, ppid: 1, pgid: 1, sid: 1, node: 1 };
        assert_eq!(host.call(container(1), row, b"x"), Err(EINVAL));
        let payload = record(pid, b"x");
        assert_eq!(host.call(container(1), Report { id: 0, node: 1 }, &payload), Err(EINVAL));
        host.exited(1, pid, 0);
        assert_eq!(ask(&mut host, pid), Some(Err(ESRCH)));
    }
}

#[test]
fn the_exit_of_one_nodes_process_is_not_that_of_anothers() {
    let mut host = Host::with_nodes(2);
    host.started(1, 4242);
    host.started(2, 4242);
    let call = wait(&mut host, 4242);
    host.exited(1, 4242, 5);
    assert!(host.waits(call), "node 2 has it now");
    host.report(1, 0, &[4242]);
    host.exited(2, 4242, 6);
    assert_eq!(status(&host, call), Some(Ok(6)));
}

#[test]
fn what_only_a_report_shows_is_watched_while_somebody_waits() {
    let mut host = Host::with_nodes(2);
    host.report(2, 0, &[pid(2, 8), pid(2, 9)]);
    let call = wait(&mut host, pid(2, 8));
    host.pass(0);
    let first = host.order(2).expect("it asks at once");
    assert_eq!(first.kind, order::REPORT);
    host.pass(3 * WATCH_INTERVAL);
    assert_eq!(host.order(2), None, "not again before there is an answer");
    host.report(2, first.id, &[pid(2, 8), pid(2, 9)]);
    host.pass(WATCH_INTERVAL);
    let second = host.order(2).expect("it asks again");
    assert!(host.waits(call));
    host.report(2, second.id, &[pid(2, 9)]);
    assert_eq!(status(&host, call), Some(Err(ESRCH)), "how it ended only its parent knows");
    host.pass(3 * WATCH_INTERVAL);
    assert_eq!(host.order(2), None, "nobody waits any more");
}

#[test]
fn what_a_container_has_started_ends_only_by_its_word() {
    let mut host = Host::with_nodes(1);
    host.started(1, pid(1, 7));
    let call = wait(&mut host, pid(1, 7));
    host.report(1, 0, &[]);
    assert!(host.waits(call));
    host.pass(3 * WATCH_INTERVAL);
    assert_eq!(host.order(1), None, "there is nothing to watch");
}

#[test]
fn statuses_are_remembered_up_to_a_bound() {
    let mut host = Host::with_nodes(1);
    let most = u32::try_from(ENDED_MAX).unwrap();
    for index in 1..=most + 1 {
        host.exited(1, pid(1, index), 1);
    }
    for restarts in [false, true] {
        if restarts {
            host.restart();
        }
        assert_eq!(ask(&mut host, pid(1, 1)), Some(Err(ESRCH)));
        assert_eq!(ask(&mut host, pid(1, 2)), Some(Ok(1)));
        assert_eq!(ask(&mut host, pid(1, most + 1)), Some(Ok(1)));
    }
}
