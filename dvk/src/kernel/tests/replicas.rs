//! Replicas, requests that are passed on, nodes that a container leaves, and notifications in another's name.

use super::*;
use m3ipc::message::RELAYED;
use m3ipc::rights::call;

const NUMBER: u32 = 80;
const ALL: Endpoint = Endpoint::replicated(NUMBER);

/// Channels over the daemon that are to be closed.
fn retired(out: &[Output]) -> Vec<Endpoint> {
    let retired = |output: &Output| match output {
        Output::Retire { to, .. } => Some(*to),
        _ => None,
    };
    out.iter().filter_map(retired).collect()
}

fn notified(out: &[Output]) -> Vec<(Endpoint, Endpoint, u64)> {
    let notified = |output: &Output| match output {
        Output::DeliverNotify { to, from, value, .. } => Some((*from, *to, *value)),
        _ => None,
    };
    out.iter().filter_map(notified).collect()
}

impl Pair {
    fn step(&mut self, node: NodeId, input: Input<'_>) -> Vec<Output> {
        let out = self.at(node).step(input);
        self.sort(node, out)
    }

    fn bind(&mut self, node: NodeId, role: Role, pid: u32) -> (Endpoint, Vec<Output>) {
        let out = self.at(node).hello(BLUE, role, pid, 0);
        let out = self.sort(node, out);
        let welcome = out.iter().find_map(|output| match output {
            Output::Welcome { endpoint, .. } => Some(*endpoint),
            _ => None,
        });
        (welcome.unwrap(), out)
    }

    /// With whom a process of `node` that opens a channel to `to` has it.
    fn opens(&mut self, node: NodeId, from: Endpoint, to: Endpoint) -> Result<Endpoint, IpcError> {
        let out = self.at(node).open(BLUE, from, to);
        match channels(&out).first() {
            Some((_, receiver, _)) => Ok(*receiver),
            None => Err(refusals(&out)[0]),
        }
    }

    fn steer(&mut self, node: NodeId, other: NodeId, steer: Steer) -> Vec<Output> {
        let asker = self.at(node).asker();
        let dc = BLUE;
        self.step(node, Input::Steer { asker, dc, node: other, steer, privileged: true })
    }
}

/// A client on each node, and the replicas bound: on the second node, then on the first.
fn replicas() -> (Pair, [Endpoint; 2], [Endpoint; 2]) {
    let mut pair = Pair::new();
    let clients = [N1, N2].map(|node| pair.bind(node, Role::Process, 20).0);
    let two = pair.bind(N2, Role::Replica(NUMBER), 30).0;
    pair.settle();
    assert_eq!(pair.opens(N1, clients[0], ALL), Ok(two));
    let (one, out) = pair.bind(N1, Role::Replica(NUMBER), 30);
    assert_eq!(retired(&out), [two], "who is beside the new one leaves the other");
    pair.settle();
    (pair, clients, [one, two])
}

#[test]
fn each_node_has_its_own_replica_and_the_others_when_that_is_gone() {
    let (mut pair, clients, replicas) = replicas();
    for (at, node) in [N1, N2].into_iter().enumerate() {
        assert_eq!(pair.opens(node, clients[at], ALL), Ok(replicas[at]));
        assert_eq!(pair.opens(node, clients[at], replicas[1 - at]), Ok(replicas[1 - at]));
    }
    let out = pair.died(N1, replicas[0]);
    assert_eq!(retired(&out), [replicas[0]]);
    let (_, two) = pair.settle();
    assert_eq!(retired(&two), [replicas[0]]);
    assert_eq!(pair.opens(N1, clients[0], ALL), Ok(replicas[1]));
    // Bound again, it is another, and a late word of the first does not hurt it.
    let again = pair.bind(N1, Role::Replica(NUMBER), 31).0;
    pair.settle();
    assert_eq!(pair.opens(N1, clients[0], ALL), Ok(again));
    pair.died(N2, replicas[1]);
    pair.settle();
    assert_eq!(pair.opens(N2, clients[1], ALL), Ok(again));
    pair.died(N1, again);
    pair.settle();
    assert_eq!(pair.opens(N2, clients[1], ALL), Err(IpcError::NotBound));
}

#[test]
fn the_replicas_of_a_node_go_and_come_with_it() {
    let (mut pair, clients, replicas) = replicas();
    pair.died(N1, replicas[0]);
    pair.settle();
    pair.disconnect();
    let out = pair.wait(N1, NODE_DOWN_AFTER + 1);
    assert_eq!(retired(&out), [replicas[1]]);
    assert_eq!(pair.opens(N1, clients[0], ALL), Err(IpcError::NotBound));
    pair.wait(N2, NODE_DOWN_AFTER + 1);
    pair.connect();
    pair.settle();
    assert_eq!(pair.opens(N1, clients[0], ALL), Ok(replicas[1]), "a new session is told of it");
}

#[test]
fn who_waits_for_replicas_is_told_of_any_and_of_the_end_of_the_last() {
    let mut pair = Pair::new();
    let client = pair.bind(N1, Role::Process, 20).0;
    let (_, out) = pair.at(N1).ask(client, ALL, Event::Bound, Some(0));
    assert_eq!(told(&out), [Err(IpcError::WouldBlock)]);
    assert_eq!(told(&pair.at(N1).ask(client, ALL, Event::Unbound, None).1), [Ok(Endpoint::NONE)]);
    assert!(told(&pair.at(N1).ask(client, ALL, Event::Bound, None).1).is_empty());
    let two = pair.bind(N2, Role::Replica(NUMBER), 30).0;
    assert_eq!(told(&pair.settle().0), [Ok(two)]);
    let one = pair.bind(N1, Role::Replica(NUMBER), 30).0;
    assert!(told(&pair.at(N1).ask(client, ALL, Event::Unbound, None).1).is_empty());
    assert!(told(&pair.died(N1, one)).is_empty());
    pair.died(N2, two);
    assert_eq!(told(&pair.settle().0), [Ok(Endpoint::NONE)]);
}

#[test]
fn a_node_tells_only_of_its_own_replicas_and_only_of_its_containers() {
    let (mut pair, clients, replicas) = replicas();
    let forged = Endpoint { generation: 9, ..replicas[1] };
    let frames = [
        Frame::Replica { dc: BLUE, endpoint: forged, is_over: false },
        Frame::Replica { dc: BLUE, endpoint: replicas[1], is_over: true },
        Frame::Replica { dc: RED, endpoint: replicas[0], is_over: false },
    ];
    for (at, frame) in frames.into_iter().enumerate() {
        let sequence = pair.at(N2).kernel.hello(N1).unwrap().received + 1;
        let out = super::forged(&mut pair, sequence, frame);
        assert!(out.is_empty(), "{at}: {out:?}");
    }
    assert_eq!(pair.opens(N2, clients[1], ALL), Ok(replicas[1]));
    let red = pair.at(N1).bind(RED, Role::Process, 50);
    let out = pair.at(N1).open(RED, red, ALL);
    assert_eq!(refusals(&out), [IpcError::NotBound]);
}

#[test]
fn replicas_are_privileged_have_a_number_of_their_own_and_do_not_move() {
    let mut one = Bench::new(N1, 1);
    let asker = one.asker();
    let role = Role::Replica(NUMBER);
    let out = one.step(Input::Hello { asker, dc: BLUE, role, pid: 5, nonce: 0, privileged: false });
    assert_eq!(refusals(&out), [IpcError::Denied]);
    for number in [0, 1, m3ipc::limits::SYSTEM_MAX, m3ipc::limits::WELL_KNOWN_MAX + 1] {
        assert_eq!(
            refusals(&one.hello(BLUE, Role::Replica(number), 6, 0)),
            [IpcError::NotBound],
            "{number}"
        );
    }
    let replica = one.bind(BLUE, role, 7);
    assert_eq!(replica.slot, Endpoint::well_known(N1, NUMBER).slot);
    for taken in [role, Role::Peer(NUMBER)] {
        assert_eq!(refusals(&one.hello(BLUE, taken, 8, 0)), [IpcError::InUse]);
    }
    let (asker, dc, from, to) = (one.asker(), BLUE, replica, replica);
    let order = Order::Start;
    let out = one.step(Input::Order { asker, dc, from, to, order, privileged: true });
    assert_eq!(refusals(&out), [IpcError::Denied]);
}

#[test]
fn only_who_may_passes_the_request_of_another_node_on() {
    let mut pair = Pair::new();
    let client = pair.bind(N1, Role::Peer(0), 20).0;
    let relay = pair.bind(N2, Role::Peer(0), 30).0;
    for (calls, wanted) in
        [(call::ALL, Ok(())), (call::ALL & !call::RELAY, Err(IpcError::Protocol))]
    {
        let rights = Rights { calls, ..Rights::of_level(level::SERVER) };
        let (asker, dc, to) = (pair.at(N2).asker(), BLUE, relay);
        pair.step(N2, Input::SetRights { asker, dc, to, rights: &rights, privileged: true });
        let request = message(client, 0, u64::from(calls));
        pair.call(N1, relay, &request);
        pair.settle();
        let passed = Message { status: RELAYED, ..Message::request(request.call) };
        let (from, id) = (relay, id(&request));
        let input = Input::LocalAnswer { dc, from, id, message: &passed, payload: &[] };
        pair.step(N2, input);
        let (out, _) = pair.settle();
        let ends: Vec<_> = ended(&out).into_iter().map(|(_, end)| end.map_err(|_| ())).collect();
        let statuses: Vec<u16> = out
            .iter()
            .filter_map(|output| match output {
                Output::AnswerLocal { message, .. } => Some(message.status),
                _ => None,
            })
            .collect();
        let status = wanted.map_or_else(IpcError::status, |()| RELAYED);
        assert_eq!((ends.len(), statuses), (1, vec![status]));
    }
}

#[test]
fn a_node_that_a_container_leaves_is_as_if_it_were_down_for_that_and_can_come_back() {
    let mut pair = Pair::new();
    // One without servers: neither node has anything that the other's part needs.
    let green = DcId(7);
    let dc = Dc { id: green, nodes: BTreeSet::from([N1, N2]), servers: BTreeMap::new() };
    for node in [N1, N2] {
        pair.at(node).step(Input::DcStart { dc: &dc });
    }
    let bind = |pair: &mut Pair, node: NodeId, role, pid| pair.at(node).bind(green, role, pid);
    let (ours, theirs) =
        (bind(&mut pair, N1, Role::Peer(0), 40), bind(&mut pair, N2, Role::Peer(0), 41));
    let steer = |pair: &mut Pair, node: NodeId, steer, privileged| {
        let asker = pair.at(N1).asker();
        pair.step(N1, Input::Steer { asker, dc: green, node, steer, privileged })
    };
    let request = |pair: &mut Pair, node: NodeId, to: Endpoint, message: &Message| {
        let out = pair.at(node).request(green, to, message, &[]);
        pair.sort(node, out)
    };
    // One call each way is open.
    let (out_call, in_call) = (message(ours, 0, 1), message(theirs, 0, 2));
    request(&mut pair, N1, theirs, &out_call);
    request(&mut pair, N2, ours, &in_call);
    pair.settle();
    assert_eq!(refusals(&steer(&mut pair, N2, Steer::Leave, false)), [IpcError::Denied]);
    assert_eq!(refusals(&steer(&mut pair, N1, Steer::Leave, true)), [IpcError::InUse]);
    assert_eq!(refusals(&steer(&mut pair, N3, Steer::Leave, true)), [IpcError::NotBound]);
    assert_eq!(refusals(&steer(&mut pair, N2, Steer::Enter, true)), [IpcError::InUse]);
    assert_eq!(refusals(&steer(&mut pair, NodeId(9), Steer::Enter, true)), [IpcError::NotBound]);
    assert_eq!(refusals(&pair.steer(N1, N2, Steer::Leave)), [IpcError::InUse], "its IPC is there");

    let out = steer(&mut pair, N2, Steer::Leave, true);
    assert_eq!(ended(&out), [(1, Err(IpcError::NodeDown))]);
    assert_eq!(gone(&out), [(ours, Gone::Node(N2))]);
    let (_, two) = pair.settle();
    assert_eq!(ended(&two), [(2, Err(IpcError::NodeDown))]);
    assert_eq!(gone(&two), [(theirs, Gone::Endpoint(ours))], "it has called there");
    let late = request(&mut pair, N1, theirs, &message(ours, 0, 3));
    assert_eq!(ended(&late), [(3, Err(IpcError::NotBound))]);
    request(&mut pair, N2, ours, &message(theirs, 0, 4));
    let (one, two) = pair.settle();
    assert!(delivered(&one).is_empty());
    assert_eq!(ended(&two), [(4, Err(IpcError::Denied))]);

    steer(&mut pair, N2, Steer::Enter, true);
    request(&mut pair, N1, theirs, &message(ours, 0, 5));
    request(&mut pair, N2, ours, &message(theirs, 0, 6));
    let (one, two) = pair.settle();
    assert_eq!((delivered(&one), delivered(&two)), (vec![6], vec![5]));
}

#[test]
fn a_notification_in_anothers_name_is_the_administrators_and_of_this_node() {
    let (mut pair, client, _) = pair();
    let source = pair.bind(N1, Role::Peer(0), 21).0;
    let (here, there) = (pair.bind(N1, Role::Peer(0), 22).0, pair.bind(N2, Role::Peer(0), 23).0);
    let mut notify = |source: Endpoint, to: Endpoint, privileged: bool| {
        let asker = pair.at(N1).asker();
        let (dc, value) = (BLUE, 5);
        let input = Input::NotifyAs { asker, dc, source, to, value, privileged };
        let mut out = pair.step(N1, input);
        out.extend(pair.settle().1);
        (told(&out), notified(&out))
    };
    assert_eq!(notify(source, here, true), (vec![Ok(source)], vec![(source, here, 5)]));
    assert_eq!(notify(source, there, true), (vec![Ok(source)], vec![(source, there, 5)]));
    let hardware = Endpoint::HARDWARE;
    assert_eq!(notify(hardware, here, true), (vec![Ok(hardware)], vec![(hardware, here, 5)]));
    for (source, to, privileged, error) in [
        (source, here, false, IpcError::Denied),
        (there, here, true, IpcError::NotBound),
        (client, here, true, IpcError::Denied),
        (hardware, there, true, IpcError::NotBound),
        (hardware, here, false, IpcError::Denied),
        // It makes calls, but receives nothing.
        (hardware, client, true, IpcError::Denied),
    ] {
        assert_eq!(notify(source, to, privileged), (vec![Err(error)], vec![]), "{source:?}");
    }
}
