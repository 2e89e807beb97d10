//! Endpoints that move, and where nodes believe that they are.

use super::*;

/// A pair with the endpoint 70 of node 1, a backup of it on node 2, and a client on each node.
pub(super) struct Moving {
    pub(super) pair: Pair,
    pub(super) mover: Endpoint,
    clients: [Endpoint; 2],
}

/// `takes_over`: the backup does, when the endpoint dies.
pub(super) fn moving(takes_over: bool) -> Moving {
    let mut pair = Pair::new();
    let mover = pair.at(N1).bind(BLUE, Role::Peer(70), 30);
    pair.welcome(N2, Role::Backup(mover, takes_over), 31);
    let clients = [N1, N2].map(|node| pair.at(node).bind(BLUE, Role::Peer(0), 32));
    pair.settle();
    Moving { pair, mover, clients }
}

impl Moving {
    pub(super) fn order(&mut self, node: NodeId, order: Order) -> Vec<Output> {
        let (to, from) = (self.mover, self.clients[usize::from(node.0) - 1]);
        let bench = self.pair.at(node);
        let asker = bench.asker();
        let out = bench.step(Input::Order { asker, dc: BLUE, from, to, order, privileged: true });
        let mut out = self.pair.sort(node, out);
        let (one, two) = self.pair.settle();
        out.extend(one);
        out.extend(two);
        out
    }

    /// The process stops, and what had not been received is said.
    pub(super) fn stop(&mut self, unreceived: &[Message]) {
        self.order(N1, Order::Start);
        let to = self.mover;
        for call in unreceived {
            self.pair.at(N1).step(Input::Unreceived { dc: BLUE, to, id: id(call) });
        }
        let out = self.pair.at(N1).step(Input::Frozen { dc: BLUE, endpoint: to });
        assert_eq!(told(&out), [Ok(to)]);
    }
}

/// The calls that are delivered, and whether they are told to have been received before.
fn received(out: &[Output]) -> Vec<(i64, bool)> {
    let received = |output: &Output| match output {
        Output::Deliver { message, .. } => {
            let sequence = i64::try_from(message.tag.sequence()).unwrap();
            Some((sequence, message.status & m3ipc::port::RECEIVED != 0))
        }
        _ => None,
    };
    out.iter().filter_map(received).collect()
}

#[test]
fn what_waits_goes_where_the_endpoint_goes_and_what_was_received_is_said_to_be() {
    let mut moving = moving(false);
    let (mover, [near, far]) = (moving.mover, moving.clients);
    let calls = [message(far, 0, 1), message(far, 1, 2), message(far, 2, 3)];
    for call in &calls[..2] {
        moving.pair.call(N2, mover, call);
    }
    assert_eq!(delivered(&moving.pair.settle().0), [1, 2]);
    moving.stop(&calls[..1]);
    moving.pair.call(N2, mover, &calls[2]);
    let channel = moving.pair.at(N1).open(BLUE, near, mover);
    assert_eq!(channels(&channel), [(near, mover, Some(N1))], "held by the daemon meanwhile");
    assert!(moving.pair.call(N1, mover, &message(near, 0, 9)).is_empty());
    let out = moving.order(N1, Order::Commit { node: N2, backup: Endpoint::NONE });
    let promoted = |output: &Output| matches!(output, Output::Promote { inherits: true, .. });
    assert!(out.iter().any(promoted), "{out:?}");
    let mut all = received(&out);
    all.sort_unstable();
    assert_eq!(all, [(1, false), (2, true), (3, false), (9, false)]);
    assert!(ended(&out).is_empty(), "nobody sees an error: {out:?}");
    for call in calls.iter().chain([&message(near, 0, 9)]) {
        moving.pair.answer_here(N2, mover, call);
    }
    let (one, two) = moving.pair.settle();
    assert_eq!(ended(&one).len() + ended(&two).len(), 1, "the far ones had theirs at once");
    assert_eq!(moving.pair.at(N2).kernel.own_call_count(), 0);
}

#[test]
fn a_node_that_was_down_or_has_forgotten_learns_where_an_endpoint_is() {
    let mut moving = moving(false);
    let mover = moving.mover;
    moving.stop(&[]);
    let commit = Order::Commit { node: N2, backup: Endpoint::NONE };
    assert_eq!(told(&moving.order(N1, commit)), [Ok(mover)]);
    // Its home starts again, and knows nothing until the group has told it.
    moving.pair.nodes.insert(N1, Bench::new(N1, 3));
    let client = moving.pair.at(N1).bind(BLUE, Role::Peer(0), 40);
    moving.pair.stand(N1, Some(3));
    let entry = *moving.pair.group.log().last().unwrap();
    moving.pair.learn(N1, entry);
    moving.pair.connect();
    moving.pair.settle();
    let out = moving.pair.at(N1).open(BLUE, client, mover);
    assert_eq!(channels(&out), [(client, mover, Some(N2))]);
    assert_eq!(refusals(&moving.pair.at(N1).hello(BLUE, Role::Peer(70), 41, 0)), [IpcError::InUse]);
    // And it is told of what came after, when they have given each other up.
    moving.pair.disconnect();
    for node in [N1, N2] {
        moving.pair.wait(node, NODE_DOWN_AFTER + 1);
    }
    moving.pair.died(N2, mover);
    moving.pair.connect();
    moving.pair.settle();
    let out = moving.pair.at(N1).open(BLUE, client, mover);
    assert_eq!(refusals(&out), [IpcError::Stale]);
    let again = moving.pair.at(N1).bind(BLUE, Role::Peer(70), 42);
    assert!(again.generation > mover.generation);
}

#[test]
fn who_waits_where_an_endpoint_has_ended_hears_of_the_next_one_at_its_home() {
    let mut moving = moving(false);
    let (mover, clients) = (moving.mover, moving.clients);
    moving.stop(&[]);
    let commit = Order::Commit { node: N2, backup: Endpoint::NONE };
    assert_eq!(told(&moving.order(N1, commit)), [Ok(mover)]);
    // It has ended there, and the group has not heard of that yet.
    moving.pair.died(N2, mover);
    let name = Endpoint { generation: 0, ..mover };
    for (node, client) in [N1, N2].into_iter().zip(clients) {
        let (_, out) = moving.pair.at(node).ask(client, name, Event::Bound, None);
        assert_eq!(told(&moving.pair.sort(node, out)), []);
    }
    moving.pair.settle();
    moving.pair.welcome(N1, Role::Peer(70), 50);
    let (one, two) = moving.pair.settle();
    let next = moving.pair.at(N1).kernel.endpoint(BLUE, name).unwrap().endpoint;
    // Who waits on node 1 was told with the welcome.
    assert_eq!((told(&one), told(&two)), (vec![], vec![Ok(next)]));
    assert_eq!(moving.pair.at(N1).kernel.await_count(), 0);
}

#[test]
fn a_rollback_delivers_what_waited_and_who_is_not_ready_is_refused() {
    let mut moving = moving(false);
    let (mover, [_, far]) = (moving.mover, moving.clients);
    assert_eq!(told(&moving.order(N1, Order::Rollback)), [Err(IpcError::NotWaiting)]);
    assert_eq!(told(&moving.order(N2, Order::Rollback)), [Err(IpcError::NotWaiting)]);
    moving.stop(&[]);
    moving.pair.call(N2, mover, &message(far, 0, 1));
    moving.pair.settle();
    assert_eq!(told(&moving.order(N2, Order::Start)), [Err(IpcError::Moved)]);
    let nowhere = Order::Commit { node: N1, backup: Endpoint::NONE };
    assert_eq!(told(&moving.order(N2, nowhere)), [Err(IpcError::NotBound)]);
    let out = moving.order(N2, Order::Rollback);
    assert_eq!((told(&out), received(&out)), (vec![Ok(mover)], vec![(1, false)]));
}

#[test]
fn a_process_that_does_not_stop_goes_on_and_a_migration_that_is_forgotten_ends() {
    let mut moving = moving(false);
    moving.order(N1, Order::Start);
    let out = moving.pair.wait(N1, crate::limits::FREEZE_WAIT);
    assert_eq!(told(&out), [Err(IpcError::TimedOut)]);
    assert!(out.contains(&Output::Thaw { dc: BLUE, endpoint: moving.mover }));
    moving.stop(&[]);
    let out = moving.pair.wait(N1, crate::limits::MIGRATION_MAX);
    assert!(out.contains(&Output::Thaw { dc: BLUE, endpoint: moving.mover }));
}

#[test]
fn nobody_is_believed_to_be_an_endpoint_that_is_not_known_to_be_there() {
    let (mut pair, _, _) = pair();
    let claimed = Endpoint::new(N2, 70, 9);
    let request = Request {
        dc: BLUE,
        to: Endpoint::IPC,
        cred: Cred::ROOT,
        message: message(claimed, 0, 1),
        payload: &[],
    };
    let out = forged(&mut pair, 1, Frame::Request(request));
    assert!(delivered(&out).is_empty() && dropped(&out).is_empty(), "refused: {out:?}");
    let notify = Frame::Notify { dc: BLUE, from: claimed, to: Endpoint::IPC, value: 1 };
    let forgery = crate::kernel::Forgery::NotThere;
    let said = Output::Forged { node: N1, dc: BLUE, endpoint: claimed, forgery };
    assert_eq!(forged(&mut pair, 2, notify), [said]);
    // Not even if it says that it knows better: only the group is believed.
    let bound = pair.at(N2).bind(BLUE, Role::Peer(70), 50);
    let (dc, endpoint, epoch) = (BLUE, claimed, 7);
    assert_eq!(forged(&mut pair, 3, Frame::Entry { dc, endpoint, epoch }), []);
    assert_eq!(forged(&mut pair, 4, Frame::Noted { dc, endpoint, epoch }), []);
    assert_eq!(pair.at(N2).kernel.endpoint(BLUE, bound).map(|info| info.endpoint), Ok(bound));
    assert_eq!(pair.at(N2).kernel.place_of(BLUE, bound), N2);
}
