//! bind, unbind, wait for both, getep, information.

use crate::cluster::{Cluster, NEVER, NOWAIT, SHORT, wait_until, well_known};
use dvk_client::{Bound, Endpoint, IpcError, Message, NodeId};
use std::process::{Child, Command, Stdio};
use std::thread::scope;

const SOCKET: &str = "DVK_TEST_SOCKET";

/// Not a test by itself: a process that binds itself when it is told to, and answers one request.
#[test]
fn child_process() {
    let Some(socket) = std::env::var_os(SOCKET) else { return };
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    let bound = Bound::bind(Some(socket.as_ref()), 0).unwrap();
    let got = bound.rcvrqst(&mut [], NEVER).unwrap();
    bound.reply(got.message.source, &got.message, b"").unwrap();
    // Until it is killed.
    bound.receive(Endpoint::ANY, &mut [], None).ok();
}

struct Guard(Child);

impl Guard {
    fn start(cluster: &Cluster) -> Guard {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "bind::child_process"])
            .env(SOCKET, cluster.socket(1))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn();
        Guard(child.unwrap())
    }

    /// It binds itself now.
    fn release(&mut self) {
        drop(self.0.stdin.take());
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn a_number_is_one_endpoints_at_a_time_and_its_owners_differ() {
    let cluster = Cluster::start();
    let first = cluster.bind_as(1, 70);
    let name = first.endpoint();
    assert_eq!((name.slot, name.node()), (well_known(1, 70).slot, NodeId(1)));
    let taken = Bound::bind(Some(&cluster.socket(1)), 70);
    assert_eq!(taken.err(), Some(IpcError::InUse));
    assert_eq!(Bound::bind(Some(&cluster.socket(1)), 1024).err(), Some(IpcError::NotBound));
    cluster.bind_as(2, 70);
    first.unbind().unwrap();
    let other = cluster.bind(1);
    other.wait_unbind(well_known(1, 70), NEVER).unwrap();
    let second = cluster.bind_as(1, 70);
    assert!(second.endpoint().generation > name.generation);
    assert_eq!(other.notify(name, 1), Err(IpcError::Stale));
    other.notify(well_known(1, 70), 5).unwrap();
    assert_eq!(
        second.receive(Endpoint::ANY, &mut [], NEVER).unwrap().message.source,
        other.endpoint()
    );
}

#[test]
fn wait_bind_and_wait_unbind_see_every_node() {
    let cluster = Cluster::start();
    for node in [1, 2] {
        let name = well_known(node, 71);
        let waiter = cluster.bind(1);
        assert_eq!(waiter.wait_bind(name, NOWAIT), Err(IpcError::WouldBlock));
        assert_eq!(waiter.wait_bind(name, SHORT), Err(IpcError::TimedOut));
        assert_eq!(waiter.wait_unbind(name, NOWAIT), Ok(()));
        scope(|threads| {
            let waits = threads.spawn(|| waiter.wait_bind(name, NEVER));
            let bound = cluster.bind_as(node.into(), 71);
            assert_eq!(waits.join().unwrap(), Ok(bound.endpoint()), "node {node}");
            assert_eq!(waiter.wait_bind(name, NOWAIT), Ok(bound.endpoint()));
            assert_eq!(waiter.wait_unbind(name, NOWAIT), Err(IpcError::WouldBlock));
            assert_eq!(waiter.wait_unbind(bound.endpoint(), SHORT), Err(IpcError::TimedOut));
            let gone = threads.spawn(|| waiter.wait_unbind(name, NEVER));
            let stale = bound.endpoint();
            drop(bound);
            assert_eq!(gone.join().unwrap(), Ok(()));
            assert_eq!(waiter.wait_bind(stale, NEVER), Err(IpcError::Stale));
        });
    }
    let waiter = cluster.bind(1);
    let nowhere = well_known(9, 71);
    assert_eq!(waiter.wait_bind(nowhere, NEVER), Err(IpcError::NotBound));
}

#[test]
fn waiting_for_a_node_ends_when_it_goes_down() {
    let mut cluster = Cluster::start();
    let waiter = cluster.bind(1);
    let far = cluster.bind(2).endpoint();
    let bound = cluster.bind_as(2, 72);
    scope(|threads| {
        let binds = threads.spawn(|| waiter.wait_bind(well_known(2, 73), NEVER));
        let unbinds = threads.spawn(|| waiter.wait_unbind(bound.endpoint(), NEVER));
        assert_eq!(waiter.wait_unbind(far, NEVER), Ok(()));
        cluster.stop(2);
        assert_eq!(binds.join().unwrap(), Err(IpcError::NodeDown));
        assert_eq!(unbinds.join().unwrap(), Err(IpcError::NodeDown));
    });
    assert_eq!(waiter.wait_bind(well_known(2, 73), NEVER), Err(IpcError::NodeDown));
}

#[test]
fn a_process_may_be_bound_by_another_and_binds_itself_later() {
    let cluster = Cluster::start();
    let manager = cluster.bind(1);
    let mut child = Guard::start(&cluster);
    let pid = child.0.id();
    assert_eq!(manager.getep(pid), Err(IpcError::NotBound));
    let bound = manager.bind_other(pid, 74).unwrap();
    assert_eq!(manager.bind_other(pid, 74), Err(IpcError::InUse));
    assert_eq!(manager.getep(pid), Ok(bound));
    assert_eq!(manager.wait_bind(well_known(1, 74), NOWAIT), Err(IpcError::WouldBlock));
    scope(|threads| {
        let call = threads.spawn(|| {
            let mut request = Message::request(0x1001);
            manager.sendrec(bound, &mut request, b"", &mut [], NEVER).map(|_| request.source)
        });
        child.release();
        assert_eq!(call.join().unwrap(), Ok(bound));
    });
    assert_eq!(manager.wait_bind(well_known(1, 74), NEVER), Ok(bound));
    drop(child);
    assert_eq!(manager.wait_unbind(bound, NEVER), Ok(()));
    assert_eq!(manager.bind_other(pid, 75), Err(IpcError::Stale), "the process is dead");
}

#[test]
fn a_killed_process_is_unbound_and_an_unbound_one_hears_nothing_more() {
    let cluster = Cluster::start();
    let manager = cluster.bind(1);
    let mut child = Guard::start(&cluster);
    child.release();
    wait_until("it is bound", || manager.getep(child.0.id()).is_ok());
    let bound = manager.getep(child.0.id()).unwrap();
    drop(child);
    assert_eq!(manager.wait_unbind(bound, NEVER), Ok(()));
    let victim = cluster.bind(1);
    scope(|threads| {
        let receives = threads.spawn(|| victim.receive(Endpoint::ANY, &mut [], NEVER));
        manager.unbind_other(victim.endpoint()).unwrap();
        assert_eq!(receives.join().unwrap(), Err(IpcError::NotBound));
    });
    assert_eq!(manager.unbind_other(victim.endpoint()), Err(IpcError::Stale));
}

#[test]
fn whoever_is_unbound_while_it_waits_for_an_answer_is_told() {
    let cluster = Cluster::start();
    let manager = cluster.bind(1);
    for node in [1, 2] {
        let (victim, server) = (cluster.bind(1), cluster.bind(node));
        let name = server.endpoint();
        scope(|threads| {
            let call = || victim.sendrec(name, &mut Message::request(0x1001), &[], &mut [], NEVER);
            let calls = threads.spawn(call);
            server.rcvrqst(&mut [], NEVER).unwrap();
            manager.unbind_other(victim.endpoint()).unwrap();
            assert_eq!(calls.join().unwrap(), Err(IpcError::NotBound), "node {node}");
        });
        let again = victim.sendrec(name, &mut Message::request(0x1001), &[], &mut [], NEVER);
        assert_eq!(again, Err(IpcError::NotBound));
    }
}

#[test]
fn information_is_about_the_dc_its_nodes_and_its_endpoints() {
    let cluster = Cluster::start();
    let one = cluster.bind_as(1, 76);
    let dc = one.dc_info().unwrap();
    assert_eq!((dc.dc, dc.node, dc.node_count, dc.endpoint_count), (1, 1, 3, 1));
    let info = one.endpoint_info(well_known(1, 76)).unwrap();
    assert_eq!((info.endpoint, info.pid), (one.endpoint(), std::process::id()));
    assert_eq!(one.node_info(NodeId(1)).unwrap().link, 1);
    assert_eq!(one.node_info(NodeId(2)).unwrap().link, 2);
    assert_eq!(one.node_info(NodeId(4)), Err(IpcError::NotBound));
    assert_eq!(one.endpoint_info(well_known(1, 77)), Err(IpcError::NotBound));
}
