//! The kernel, one and two at a time. Whole clusters under fault are the simulator's.

use super::{
    Asker, Config, Dc, Entry, Event, Input, Kernel, LinkError, LinkId, NodeState, Order, Output,
    Role, Steer,
};
use crate::frame::{Frame, Hello, Packet, Request, Track, decode};
use crate::limits::{
    CALLS_PER_NODE, CALLS_PER_USER, LINK_SILENCE, NODE_DOWN_AFTER, PARKED_MAX, PING_EVERY,
    RECEIVED_FRAMES, SERVER_WAIT, UNTOLD_MAX,
};
use crate::server::{Gone, Nanos};
use crate::sim::system_group::{Group, Proposal};
use bytes::Bytes;
use m3ipc::rights::{Allowed, Rights, level};
use m3ipc::{CallId, Cred, DcId, Endpoint, IpcError, Message, NodeId, Tag};
use std::collections::{BTreeMap, BTreeSet};

mod fence;
mod moves;
mod replicas;
mod tracks;

const N1: NodeId = NodeId(1);
const N2: NodeId = NodeId(2);
const N3: NodeId = NodeId(3);
/// Spans the nodes 1 and 2, with VFS on 1 and IPC on 2.
const BLUE: DcId = DcId(1);
/// Only on node 1.
const RED: DcId = DcId(2);

fn config(node: NodeId, incarnation: u64) -> Config {
    let dc = |id, nodes: &[NodeId], servers: &[(u32, NodeId)]| Dc {
        id,
        nodes: nodes.iter().copied().collect(),
        servers: servers.iter().copied().collect(),
    };
    Config {
        node,
        incarnation,
        first_generation: u32::try_from(incarnation).unwrap(),
        peers: BTreeSet::from([N1, N2, N3]),
        dcs: vec![dc(BLUE, &[N1, N2], &[(1, N1), (3, N2)]), dc(RED, &[N1], &[(1, N1)])],
    }
}

/// One kernel, its clock and what it said last.
struct Bench {
    kernel: Kernel,
    incarnation: u64,
    now: Nanos,
    askers: u64,
}

impl Bench {
    fn new(node: NodeId, incarnation: u64) -> Bench {
        let kernel = Kernel::new(config(node, incarnation), 0);
        Bench { kernel, incarnation, now: 0, askers: 0 }
    }

    fn step(&mut self, input: Input<'_>) -> Vec<Output> {
        let mut out = Vec::new();
        self.kernel.step(self.now, input, &mut out);
        out
    }

    /// Time goes on; every deadline on the way is kept.
    fn wait(&mut self, time: Nanos) -> Vec<Output> {
        let end = self.now + time;
        let mut out = Vec::new();
        while let Some(deadline) = self.kernel.next_deadline().filter(|deadline| *deadline <= end) {
            self.now = self.now.max(deadline);
            let before = self.kernel.next_deadline();
            out.extend(self.step(Input::Tick));
            assert_ne!(
                self.kernel.next_deadline(),
                before,
                "a deadline that does not go away spins"
            );
        }
        self.now = end;
        out
    }

    fn asker(&mut self) -> Asker {
        self.askers += 1;
        Asker(self.askers)
    }

    fn hello(&mut self, dc: DcId, role: Role, pid: u32, nonce: u64) -> Vec<Output> {
        let asker = self.asker();
        self.step(Input::Hello { asker, dc, role, pid, nonce, privileged: true })
    }

    fn bind(&mut self, dc: DcId, role: Role, pid: u32) -> Endpoint {
        let out = self.hello(dc, role, pid, 0);
        let welcome = out.iter().find_map(|output| match output {
            Output::Welcome { endpoint, .. } => Some(*endpoint),
            _ => None,
        });
        welcome.unwrap_or_else(|| panic!("not welcome: {out:?}"))
    }

    fn open(&mut self, dc: DcId, from: Endpoint, to: Endpoint) -> Vec<Output> {
        let asker = self.asker();
        self.step(Input::Open { asker, dc, from, to })
    }

    fn died(&mut self, dc: DcId, endpoint: Endpoint) -> Vec<Output> {
        self.step(Input::Died { dc, endpoint })
    }

    fn request(
        &mut self,
        dc: DcId,
        to: Endpoint,
        message: &Message,
        payload: &[u8],
    ) -> Vec<Output> {
        self.step(Input::LocalRequest { dc, to, cred: &Cred::ROOT, message, payload })
    }
}

fn message(source: Endpoint, lane: u16, sequence: u64) -> Message {
    Message { source, tag: Tag::new(lane, sequence), ..Message::request(0x300) }
}

fn id(message: &Message) -> CallId {
    CallId { source: message.source, tag: message.tag }
}

fn refusals(out: &[Output]) -> Vec<IpcError> {
    let refused = |output: &Output| match output {
        Output::Refused { error, .. } => Some(*error),
        _ => None,
    };
    out.iter().filter_map(refused).collect()
}

fn channels(out: &[Output]) -> Vec<(Endpoint, Endpoint, Option<NodeId>)> {
    let channel = |output: &Output| match output {
        Output::Channel { requester, receiver, via, .. } => Some((*requester, *receiver, *via)),
        _ => None,
    };
    out.iter().filter_map(channel).collect()
}

/// Who is told that who is gone.
fn gone(out: &[Output]) -> Vec<(Endpoint, Gone)> {
    let gone = |output: &Output| match output {
        Output::Gone { to, gone, .. } => Some((*to, *gone)),
        _ => None,
    };
    out.iter().filter_map(gone).collect()
}

/// The numbers of those deaths.
fn numbers(out: &[Output]) -> Vec<u64> {
    let number = |output: &Output| match output {
        Output::Gone { number, .. } => Some(*number),
        _ => None,
    };
    out.iter().filter_map(number).collect()
}

/// How calls of the node ended.
fn ended(out: &[Output]) -> Vec<(u64, Result<(), IpcError>)> {
    let ended = |output: &Output| match output {
        Output::AnswerLocal { id, message, .. } => {
            assert_eq!(message.tag, id.tag);
            Some((id.tag.sequence(), message.outcome().map(|_| ())))
        }
        _ => None,
    };
    out.iter().filter_map(ended).collect()
}

/// What receivers of the node were handed: sequences of calls, or of cancels (negative).
fn delivered(out: &[Output]) -> Vec<i64> {
    let delivered = |output: &Output| match output {
        Output::Deliver { message, .. } => Some(i64::try_from(message.tag.sequence()).unwrap()),
        Output::DeliverCancel { id, .. } => Some(-i64::try_from(id.tag.sequence()).unwrap()),
        _ => None,
    };
    out.iter().filter_map(delivered).collect()
}

fn dropped(out: &[Output]) -> Vec<LinkError> {
    let dropped = |output: &Output| match output {
        Output::DropLink { reason, .. } => Some(*reason),
        _ => None,
    };
    out.iter().filter_map(dropped).collect()
}

fn sent(out: &[Output]) -> Vec<Bytes> {
    let sent = |output: &Output| match output {
        Output::Send { bytes, .. } => Some(bytes.clone()),
        _ => None,
    };
    out.iter().filter_map(sent).collect()
}

#[test]
fn a_process_that_says_hello_again_is_the_same_and_after_exec_another() {
    let mut one = Bench::new(N1, 1);
    let vfs = one.bind(BLUE, Role::Server(1), 10);
    let first = one.bind(BLUE, Role::Process, 20);
    assert_eq!(one.bind(BLUE, Role::Process, 20), first);
    assert_eq!(
        refusals(&one.hello(BLUE, Role::Agent, 20, 0)),
        [IpcError::Denied],
        "one program, one role"
    );
    one.open(BLUE, first, Endpoint::VFS);
    let out = one.hello(BLUE, Role::Process, 20, 1);
    assert_eq!(gone(&out), [(vfs, Gone::Endpoint(first))]);
    let Some(Output::Welcome { endpoint: second, .. }) = out.last() else { panic!("{out:?}") };
    assert_ne!(*second, first);
    assert_eq!(refusals(&one.open(BLUE, first, Endpoint::VFS)), [IpcError::Stale]);
    assert_eq!(one.kernel.endpoints(BLUE).count(), 2);
    assert!(one.died(BLUE, first).is_empty(), "the death of one long gone is no news");
}

#[test]
fn roles_with_power_are_for_the_daemons_user_and_slots_for_one() {
    let mut one = Bench::new(N1, 1);
    for role in [Role::Server(1), Role::Container, Role::Agent] {
        let (asker, pid) = (one.asker(), 5);
        let out =
            one.step(Input::Hello { asker, dc: BLUE, role, pid, nonce: 0, privileged: false });
        assert_eq!(refusals(&out), [IpcError::Denied], "{role:?}");
    }
    one.bind(BLUE, Role::Server(1), 10);
    for (dc, role, error) in [
        (BLUE, Role::Server(1), IpcError::Denied),
        (BLUE, Role::Server(3), IpcError::Denied),
        (BLUE, Role::Server(9), IpcError::Denied),
        (DcId(9), Role::Process, IpcError::NotBound),
    ] {
        assert_eq!(refusals(&one.hello(dc, role, 11, 0)), [error], "{dc:?} {role:?}");
    }
    assert_eq!(
        one.kernel.servers(BLUE).map(|server| server.bound.is_some()).collect::<Vec<_>>(),
        [true, false]
    );
}

#[test]
fn channels_are_opened_within_a_container_to_those_who_receive() {
    let mut one = Bench::new(N1, 1);
    let vfs = one.bind(BLUE, Role::Server(1), 10);
    let container = one.bind(BLUE, Role::Container, 11);
    let client = one.bind(BLUE, Role::Process, 20);
    let peer = one.bind(BLUE, Role::Peer(0), 21);
    let red = one.bind(RED, Role::Peer(0), 22);
    let there = Endpoint::new(N2, 1, 1);
    for (to, receiver, via) in [
        (Endpoint::VFS, vfs, None),
        (vfs, vfs, None),
        (Endpoint::container(N1), container, None),
        (peer, peer, None),
        (Endpoint::IPC, Endpoint::IPC, Some(N2)),
        (Endpoint::container(N2), Endpoint::container(N2), Some(N2)),
        (there, there, Some(N2)),
    ] {
        assert_eq!(channels(&one.open(BLUE, client, to)), [(client, receiver, via)], "{to:?}");
    }
    for (dc, from, to, error) in [
        (BLUE, peer, client, IpcError::Denied),
        (BLUE, peer, peer, IpcError::Denied),
        (BLUE, client, Endpoint { generation: 9, ..vfs }, IpcError::Stale),
        (BLUE, client, Endpoint { generation: 9, ..peer }, IpcError::Stale),
        (BLUE, client, Endpoint { generation: 0, ..peer }, IpcError::Stale),
        (BLUE, client, Endpoint::PM, IpcError::NotBound),
        (BLUE, client, Endpoint::NONE, IpcError::NotBound),
        (BLUE, client, Endpoint::ANY, IpcError::NotBound),
        (BLUE, client, Endpoint::new(N3, 1, 1), IpcError::NotBound),
        (RED, red, Endpoint::container(N2), IpcError::NotBound),
        (RED, peer, red, IpcError::Stale),
        (DcId(9), client, Endpoint::VFS, IpcError::NotBound),
    ] {
        assert_eq!(refusals(&one.open(dc, from, to)), [error], "{dc:?} {from:?} {to:?}");
    }
}

#[test]
fn an_open_waits_for_the_server_but_not_for_ever() {
    let mut one = Bench::new(N1, 1);
    let client = one.bind(BLUE, Role::Process, 20);
    let other = one.bind(BLUE, Role::Process, 21);
    assert!(one.open(BLUE, client, Endpoint::VFS).is_empty());
    assert_eq!(refusals(&one.wait(SERVER_WAIT)), [IpcError::DestinationDied]);
    one.open(BLUE, client, Endpoint::VFS);
    one.open(BLUE, other, Endpoint::VFS);
    let asker = Asker(one.askers);
    one.step(Input::Withdraw { asker });
    let out = one.hello(BLUE, Role::Server(1), 10, 0);
    assert_eq!(channels(&out).len(), 1);
    let Some(Output::Welcome { endpoint: vfs, .. }) = out.first() else { panic!("{out:?}") };
    let out = one.died(BLUE, *vfs);
    let closed =
        Output::CloseChannels { dc: BLUE, receiver: *vfs, error: IpcError::DestinationDied };
    assert_eq!(out, [closed]);
    one.open(BLUE, client, Endpoint::VFS);
    assert_eq!(refusals(&one.died(BLUE, client)), [IpcError::Stale], "who is dead does not wait");
    for _ in 0..PARKED_MAX {
        assert!(one.open(BLUE, other, Endpoint::VFS).is_empty());
    }
    assert_eq!(refusals(&one.open(BLUE, other, Endpoint::VFS)), [IpcError::Exhausted]);
}

#[test]
fn a_server_hears_of_all_deaths_of_its_clients_even_those_it_missed() {
    let mut one = Bench::new(N1, 7);
    let out = one.hello(BLUE, Role::Server(1), 10, 0);
    let Some(Output::Welcome { endpoint: vfs, .. }) = out.first().cloned() else {
        panic!("{out:?}")
    };
    let nodes = [(vfs, Gone::Node(N1)), (vfs, Gone::Node(N2))];
    assert_eq!(gone(&out), nodes, "its store may know callers of an earlier incarnation");
    let first = numbers(&out);
    assert!(first[0] > 7 << 32, "above those of earlier incarnations");
    let clients: Vec<Endpoint> = (20..24).map(|pid| one.bind(BLUE, Role::Process, pid)).collect();
    for client in &clients[..3] {
        one.open(BLUE, *client, Endpoint::VFS);
    }
    assert_eq!(gone(&one.died(BLUE, clients[0])), [(vfs, Gone::Endpoint(clients[0]))]);
    one.died(BLUE, vfs);
    assert!(gone(&one.died(BLUE, clients[1])).is_empty());
    assert!(gone(&one.died(BLUE, clients[3])).is_empty(), "never was a client");
    let out = one.hello(BLUE, Role::Server(1), 11, 0);
    let Some(Output::Welcome { endpoint: next, .. }) = out.first().cloned() else {
        panic!("{out:?}")
    };
    // The last owner may have been killed before it had done anything about the first.
    let told =
        [Gone::Node(N1), Gone::Node(N2), Gone::Endpoint(clients[0]), Gone::Endpoint(clients[1])];
    assert_eq!(gone(&out), told.map(|gone| (next, gone)));
    assert!(numbers(&out).is_sorted() && numbers(&out)[0] == first[0], "a death keeps its number");
    assert_eq!(
        gone(&one.died(BLUE, clients[2])),
        [(next, Gone::Endpoint(clients[2]))],
        "a client of the last owner, though it has not called this one"
    );
}

#[test]
fn a_peer_that_dies_ends_its_channels_and_its_slot_starts_clean() {
    let mut one = Bench::new(N1, 1);
    let client = one.bind(BLUE, Role::Process, 20);
    let peer = one.bind(BLUE, Role::Peer(0), 21);
    one.open(BLUE, client, peer);
    let closed =
        Output::CloseChannels { dc: BLUE, receiver: peer, error: IpcError::DestinationDied };
    assert_eq!(one.died(BLUE, peer), [closed]);
    assert_eq!(refusals(&one.open(BLUE, client, peer)), [IpcError::Stale]);
    assert!(one.died(BLUE, client).is_empty());
}

/// Two kernels and the wires between them.
struct Pair {
    nodes: BTreeMap<NodeId, Bench>,
    /// Bytes under way, by sender.
    wires: BTreeMap<NodeId, Vec<(Track, Bytes)>>,
    link: u64,
    group: Group,
    /// What it is asked for.
    proposals: Vec<Proposal>,
}

impl Pair {
    fn new() -> Pair {
        let mut pair = Pair {
            nodes: BTreeMap::from([(N1, Bench::new(N1, 1)), (N2, Bench::new(N2, 2))]),
            wires: BTreeMap::new(),
            link: 0,
            group: Group::default(),
            proposals: Vec::new(),
        };
        pair.stand(N1, Some(1));
        pair.stand(N2, Some(2));
        pair.connect();
        pair
    }

    /// A node is up with the group, in that life, or not: both learn that.
    fn stand(&mut self, node: NodeId, life: Option<u64>) -> Vec<Output> {
        self.group.set_up(node, life);
        let up = self.group.up().clone();
        let mut all = Vec::new();
        for node in [N1, N2] {
            let out = self.at(node).step(Input::Standing { until: Nanos::MAX, up: &up });
            all.extend(self.sort(node, out));
        }
        all
    }

    fn at(&mut self, node: NodeId) -> &mut Bench {
        self.nodes.get_mut(&node).unwrap()
    }

    /// What both did, without what they sent, which is now under way.
    fn sort(&mut self, node: NodeId, out: Vec<Output>) -> Vec<Output> {
        let sent = out.iter().filter_map(|output| match output {
            Output::Send { track, bytes, .. } => Some((*track, bytes.clone())),
            _ => None,
        });
        self.wires.entry(node).or_default().extend(sent);
        let life = self.nodes[&node].incarnation;
        self.proposals.extend(out.iter().filter_map(|output| match *output {
            Output::Propose { entry, expected, .. } => {
                Some(Proposal { node, incarnation: life, life, entry, expected })
            }
            _ => None,
        }));
        let is_done =
            |output: &Output| !matches!(output, Output::Send { .. } | Output::Propose { .. });
        out.into_iter().filter(is_done).collect()
    }

    fn hellos(&self) -> (Hello, Hello) {
        (self.nodes[&N1].kernel.hello(N2).unwrap(), self.nodes[&N2].kernel.hello(N1).unwrap())
    }

    /// Binds a process, and what other nodes are told of that is under way.
    fn welcome(&mut self, node: NodeId, role: Role, pid: u32) {
        let out = self.at(node).hello(BLUE, role, pid, 0);
        assert!(refusals(&out).is_empty(), "{out:?}");
        self.sort(node, out);
    }

    fn link_up(&mut self, node: NodeId, sent: &Hello, received: &Hello) -> Vec<Output> {
        let link = LinkId(self.link);
        let out = self.at(node).step(Input::LinkUp { link, sent, received });
        self.sort(node, out)
    }

    /// A new connection; what was under way on the old one is lost.
    fn connect(&mut self) -> (Vec<Output>, Vec<Output>) {
        self.disconnect();
        let (one, two) = self.hellos();
        (self.link_up(N1, &one, &two), self.link_up(N2, &two, &one))
    }

    fn disconnect(&mut self) {
        for node in [N1, N2] {
            self.link_down(node);
        }
        self.wires.clear();
        self.link += 1;
    }

    fn link_down(&mut self, node: NodeId) -> Vec<Output> {
        let (other, link) = (NodeId(3 - node.0), LinkId(self.link));
        self.at(node).step(Input::LinkDown { node: other, link })
    }

    /// All that `from` has sent arrives.
    fn arrive(&mut self, from: NodeId) -> Vec<Output> {
        let mut out = Vec::new();
        for (track, bytes) in self.wires.remove(&from).unwrap_or_default() {
            out.extend(self.take(from, track, &bytes));
        }
        self.sort(NodeId(3 - from.0), out)
    }

    /// One frame of `from` arrives.
    fn take(&mut self, from: NodeId, track: Track, bytes: &Bytes) -> Vec<Output> {
        let (to, link) = (NodeId(3 - from.0), LinkId(self.link));
        let (packet, used) = decode(bytes).unwrap();
        assert_eq!(used, bytes.len());
        assert!(!self.at(to).kernel.is_early(from, track, &packet), "{packet:?}");
        self.at(to).step(Input::Packet { node: from, link, track, packet: &packet })
    }

    /// What `from` has sent on one track arrives, before what is on the other.
    fn arrive_on(&mut self, from: NodeId, first: Track) -> Vec<Output> {
        let all = self.wires.remove(&from).unwrap_or_default();
        let (now, later) = all.into_iter().partition::<Vec<_>, _>(|(track, _)| *track == first);
        let mut out = Vec::new();
        for (track, bytes) in now {
            out.extend(self.take(from, track, &bytes));
        }
        self.wires.insert(from, later);
        self.sort(NodeId(3 - from.0), out)
    }

    /// Everything arrives, until nothing is under way. What node 1 did, what node 2 did.
    fn settle(&mut self) -> (Vec<Output>, Vec<Output>) {
        let (mut one, mut two) = (Vec::new(), Vec::new());
        while self.wires.values().any(|wire| !wire.is_empty()) || !self.proposals.is_empty() {
            two.extend(self.arrive(N1));
            one.extend(self.arrive(N2));
            for proposal in std::mem::take(&mut self.proposals) {
                let (first, second) = self.decide(&proposal);
                one.extend(first);
                two.extend(second);
            }
        }
        (one, two)
    }

    /// The group does what it is asked for, or refuses, and all that are concerned learn that.
    fn decide(&mut self, proposal: &Proposal) -> (Vec<Output>, Vec<Output>) {
        let Proposal { node, entry, expected, .. } = *proposal;
        if let Some(entry) = self.group.decide(proposal) {
            return (self.learn(N1, entry), self.learn(N2, entry));
        }
        // The answer is later than what it answers.
        let up = self.group.up().clone();
        let mut out = self.at(node).step(Input::Standing { until: Nanos::MAX, up: &up });
        let input =
            Input::Unplaced { dc: BLUE, slot: entry.endpoint.slot, expected, is_full: false };
        out.extend(self.at(node).step(input));
        let out = self.sort(node, out);
        if node == N1 { (out, Vec::new()) } else { (Vec::new(), out) }
    }

    fn learn(&mut self, node: NodeId, entry: Entry) -> Vec<Output> {
        let out = self.at(node).step(Input::Placed { dc: BLUE, entry });
        self.sort(node, out)
    }

    fn wait(&mut self, node: NodeId, time: Nanos) -> Vec<Output> {
        let out = self.at(node).wait(time);
        self.sort(node, out)
    }

    fn call(&mut self, from: NodeId, to: Endpoint, message: &Message) -> Vec<Output> {
        let out = self.at(from).request(BLUE, to, message, &[]);
        self.sort(from, out)
    }

    fn answer(&mut self, node: NodeId, from: Endpoint, request: &Message) {
        let message = Message::request(request.call);
        let out = self.at(node).step(Input::LocalAnswer {
            dc: BLUE,
            from,
            id: id(request),
            message: &message,
            payload: &[],
        });
        let rest = self.sort(node, out);
        assert!(rest.is_empty(), "{rest:?}");
    }

    /// The same, where a caller of the same node may get it at once.
    fn answer_here(&mut self, node: NodeId, from: Endpoint, request: &Message) {
        let message = Message::request(request.call);
        let (dc, id, payload) = (BLUE, id(request), &[][..]);
        let input = Input::LocalAnswer { dc, from, id, message: &message, payload };
        let out = self.at(node).step(input);
        self.sort(node, out);
    }

    fn cancel(&mut self, node: NodeId, to: Endpoint, call: &Message) -> Vec<Output> {
        let out = self.at(node).step(Input::LocalCancel { dc: BLUE, to, id: id(call) });
        self.sort(node, out)
    }

    fn died(&mut self, node: NodeId, endpoint: Endpoint) -> Vec<Output> {
        let out = self.at(node).died(BLUE, endpoint);
        self.sort(node, out)
    }
}

/// A pair with IPC bound on node 2 and a client on node 1.
fn pair() -> (Pair, Endpoint, Endpoint) {
    let mut pair = Pair::new();
    let ipc = pair.at(N2).bind(BLUE, Role::Server(3), 10);
    let client = pair.at(N1).bind(BLUE, Role::Process, 20);
    pair.settle();
    (pair, client, ipc)
}

#[test]
fn a_call_reaches_the_server_of_another_node_and_its_answer_comes_back() {
    let (mut pair, client, ipc) = pair();
    let cred = Cred::new(7, 1000, 100).with_groups([4]);
    let message = Message { payload_len: 3, ..message(client, 5, 1) };
    let out = pair.at(N1).step(Input::LocalRequest {
        dc: BLUE,
        to: Endpoint::IPC,
        cred: &cred,
        message: &message,
        payload: b"abc",
    });
    assert!(pair.sort(N1, out).is_empty());
    let out = pair.arrive(N1);
    let payload = Bytes::from_static(b"abc");
    assert_eq!(out, [Output::Deliver { dc: BLUE, to: ipc, cred, message, payload }]);
    let reply = Message { status: 11, payload_len: 2, ..Message::request(0x300) };
    let out = pair.at(N2).step(Input::LocalAnswer {
        dc: BLUE,
        from: ipc,
        id: id(&message),
        message: &reply,
        payload: b"ok",
    });
    pair.sort(N2, out);
    let (out, _) = pair.settle();
    let [Output::AnswerLocal { dc: BLUE, from, id: answered, message: reply, payload }] = &out[..]
    else {
        panic!("{out:?}")
    };
    assert_eq!(
        (*from, *answered, reply.status, &payload[..]),
        (Endpoint::IPC, id(&message), 11, &b"ok"[..])
    );
    assert_eq!((reply.source, reply.tag), (ipc, message.tag));
    for (node, peer) in [(N1, N2), (N2, N1)] {
        let info = pair.at(node).kernel.nodes().find(|info| info.node == peer).unwrap();
        assert_eq!((info.calls_in, info.calls_out), (0, 0));
        assert!(matches!(info.state, NodeState::Up { round_trip: Some(_), .. }), "{info:?}");
    }
}

/// Breaks the link at every point of a call and connects again: it is executed once and answered once.
#[test]
fn a_link_that_breaks_anywhere_loses_nothing_and_doubles_nothing() {
    for breaks in 0..16u32 {
        let (mut pair, client, ipc) = pair();
        let request = message(client, 0, 1);
        pair.call(N1, Endpoint::IPC, &request);
        let (mut done, mut executed) = (Vec::new(), Vec::new());
        for round in 0..6 {
            if breaks & 1 << round != 0 {
                pair.connect();
            }
            let out = if round % 2 == 0 { pair.arrive(N1) } else { pair.arrive(N2) };
            for sequence in delivered(&out) {
                executed.push(sequence);
                pair.answer(N2, ipc, &request);
            }
            done.extend(ended(&out));
        }
        assert_eq!((executed, done), (vec![1], vec![(1, Ok(()))]), "breaks {breaks:#b}");
    }
}

#[test]
fn a_call_waits_for_a_link_and_ends_when_the_node_is_given_up() {
    let (mut pair, client, ipc) = pair();
    pair.disconnect();
    let call = message(client, 0, 1);
    assert!(pair.call(N1, Endpoint::IPC, &call).is_empty());
    assert!(ended(&pair.wait(N1, NODE_DOWN_AFTER - 1)).is_empty());
    assert_eq!(ended(&pair.wait(N1, 1)), [(1, Err(IpcError::NodeDown))]);
    let out = pair.call(N1, Endpoint::IPC, &message(client, 0, 2));
    assert_eq!(ended(&out), [(2, Err(IpcError::NodeDown))], "it is known to be down");
    // Node 2 has noticed nothing yet; it must agree that all that was is over.
    let (one, two) = pair.connect();
    assert_eq!((gone(&one), gone(&two)), (vec![], vec![(ipc, Gone::Node(N1))]));
    pair.call(N1, Endpoint::IPC, &message(client, 0, 3));
    assert_eq!(delivered(&pair.settle().1), [3]);
}

#[test]
fn a_node_given_up_forgets_the_calls_it_had_here() {
    let (mut pair, client, ipc) = pair();
    let old = message(client, 0, 1);
    pair.call(N1, Endpoint::IPC, &old);
    pair.settle();
    pair.disconnect();
    assert_eq!(gone(&pair.wait(N2, NODE_DOWN_AFTER)), [(ipc, Gone::Node(N1))]);
    let vfs = pair.at(N1).bind(BLUE, Role::Server(1), 11);
    let (one, two) = pair.connect();
    assert_eq!(ended(&one), [(1, Err(IpcError::NodeDown))], "node 1 learns it from the Hello");
    assert_eq!(gone(&one), [(vfs, Gone::Node(N2))]);
    assert_eq!(gone(&two), []);
    pair.answer(N2, ipc, &old);
    assert_eq!(ended(&pair.settle().0), [], "a late answer is nobody's");
}

#[test]
fn a_revoked_node_is_given_up_at_once_and_servers_hear_of_its_end() {
    let (mut pair, client, ipc) = pair();
    pair.call(N1, Endpoint::IPC, &message(client, 0, 1));
    pair.settle();
    let out = pair.at(N2).step(Input::NodeRevoked { node: N1 });
    assert_eq!(dropped(&out), [LinkError::Revoked]);
    assert_eq!(gone(&out), [(ipc, Gone::Node(N1))]);
    assert!(matches!(pair.at(N2).kernel.nodes().next().unwrap().state, NodeState::Down { .. }));
}

#[test]
fn a_node_whose_machine_says_that_nobody_listens_is_given_up_at_once_if_it_was_there() {
    let (mut pair, client, _) = pair();
    pair.call(N1, Endpoint::IPC, &message(client, 0, 1));
    let refused = Input::NodeRefused { node: N2 };
    assert_eq!(pair.at(N1).step(refused), [], "there is a link: who was asked?");
    pair.disconnect();
    let out = pair.at(N1).step(refused);
    assert_eq!(ended(&out), [(1, Err(IpcError::NodeDown))]);
    assert_eq!(pair.at(N1).step(refused), [], "it is down already");
    // One that has not been met yet is about to start.
    pair.at(N1).step(Input::NodeJoined { node: NodeId(9) });
    pair.at(N1).step(Input::NodeRefused { node: NodeId(9) });
    let state = pair.at(N1).kernel.nodes().find(|info| info.node == NodeId(9)).unwrap().state;
    assert!(matches!(state, NodeState::Lost { .. }), "{state:?}");
    // If it was there all the same, both agree that all that was is over.
    let (_, two) = pair.connect();
    assert_eq!(gone(&two).len(), 1, "{two:?}");
}

#[test]
fn a_node_that_joins_is_waited_for_and_joins_once() {
    let (mut pair, _, _) = pair();
    let nine = NodeId(9);
    assert!(pair.at(N1).kernel.hello(nine).is_none());
    for node in [nine, nine, N1, N2] {
        assert_eq!(pair.at(N1).step(Input::NodeJoined { node }), []);
    }
    assert!(pair.at(N1).kernel.hello(nine).is_some() && pair.at(N1).kernel.hello(N1).is_none());
    let states: Vec<_> = pair.at(N1).kernel.nodes().map(|info| (info.node, info.state)).collect();
    assert!(matches!(states[0], (N2, NodeState::Up { .. })), "what was there stays: {states:?}");
    let last = states.last().unwrap();
    assert!(matches!(*last, (node, NodeState::Lost { .. }) if node == nine), "{states:?}");
}

/// Node 1 gives node 2 up; then connections break in the middle of the Hellos.
#[test]
fn half_a_handshake_leaves_both_sides_able_to_agree() {
    for (first, second) in [(N1, N2), (N2, N1)] {
        let (mut pair, client, ipc) = pair();
        pair.call(N1, Endpoint::IPC, &message(client, 0, 1));
        pair.settle();
        pair.disconnect();
        assert_eq!(ended(&pair.wait(N1, NODE_DOWN_AFTER)).len(), 1);
        let (mut told, mut done) = (0, Vec::new());
        for node in [first, second, first] {
            pair.disconnect();
            let (one, two) = pair.hellos();
            let out = if node == N1 {
                pair.link_up(N1, &one, &two)
            } else {
                pair.link_up(N2, &two, &one)
            };
            told += gone(&out).iter().filter(|(to, _)| *to == ipc).count();
            let sequence = 10 + told as u64;
            done.extend(ended(&pair.call(N1, Endpoint::IPC, &message(client, 1, sequence))));
        }
        let (_, two) = pair.connect();
        told += gone(&two).len();
        assert_eq!(told, 1, "{first:?} first");
        let (_, two) = pair.settle();
        let sum = delivered(&two).len() + done.len();
        assert!(sum > 0 && dropped(&two).is_empty(), "{first:?} first: {two:?}");
    }
}

#[test]
fn a_node_that_restarted_is_another_one() {
    let (mut pair, client, _) = pair();
    pair.call(N1, Endpoint::IPC, &message(client, 0, 1));
    let vfs = pair.at(N1).bind(BLUE, Role::Server(1), 11);
    let there = pair.at(N2).bind(BLUE, Role::Process, 12);
    pair.call(N2, Endpoint::VFS, &message(there, 0, 1));
    pair.settle();
    pair.nodes.insert(N2, Bench::new(N2, 22));
    let (one, two) = pair.connect();
    assert_eq!(ended(&one), [(1, Err(IpcError::NodeDown))]);
    assert_eq!((gone(&one), gone(&two)), (vec![(vfs, Gone::Node(N2))], vec![]));
    let info = pair.at(N1).kernel.nodes().find(|info| info.node == N2).unwrap();
    assert_eq!((info.incarnation, info.calls_in), (22, 0));
    assert_ne!(pair.at(N2).bind(BLUE, Role::Process, 12), there, "no endpoint names two processes");
}

#[test]
fn a_killed_server_gets_its_open_calls_again_in_order_with_their_cancels() {
    let (mut pair, client, ipc) = pair();
    let calls: Vec<Message> =
        (1..5).map(|n| message(client, u16::try_from(n).unwrap(), n)).collect();
    for call in &calls {
        pair.call(N1, Endpoint::IPC, call);
    }
    assert_eq!(delivered(&pair.settle().1), [1, 2, 3, 4]);
    pair.answer(N2, ipc, &calls[1]);
    assert_eq!(ended(&pair.settle().0), [(2, Ok(()))]);
    let closed =
        Output::CloseChannels { dc: BLUE, receiver: ipc, error: IpcError::DestinationDied };
    assert_eq!(pair.died(N2, ipc), [closed]);
    pair.cancel(N1, Endpoint::IPC, &calls[2]);
    pair.cancel(N1, Endpoint::IPC, &calls[1]);
    let late = message(client, 9, 9);
    pair.call(N1, Endpoint::IPC, &late);
    assert_eq!(pair.settle(), (vec![], vec![]), "the one who decides is not there");
    let out = pair.at(N2).hello(BLUE, Role::Server(3), 11, 0);
    assert_eq!(delivered(&out), [1, 3, -3, 4, 9]);
    let Some(Output::Welcome { endpoint: next, .. }) = out.first().cloned() else {
        panic!("{out:?}")
    };
    pair.answer(N2, ipc, &late);
    assert_eq!(ended(&pair.settle().0), [], "the dead one answers no more");
    pair.answer(N2, next, &late);
    assert_eq!(ended(&pair.settle().0), [(9, Ok(()))]);
    pair.died(N2, next);
    let mut one = Vec::new();
    for _ in 0..SERVER_WAIT / PING_EVERY {
        for node in [N1, N2] {
            pair.wait(node, PING_EVERY);
        }
        one.extend(pair.settle().0);
    }
    let died = Err(IpcError::DestinationDied);
    assert!(dropped(&one).is_empty());
    assert_eq!(ended(&one), [(1, died), (3, died), (4, died)]);
}

#[test]
fn the_death_of_a_caller_is_told_where_it_has_called_once() {
    let (mut pair, client, ipc) = pair();
    let silent = pair.at(N1).bind(BLUE, Role::Process, 21);
    pair.call(N1, Endpoint::IPC, &message(client, 0, 1));
    pair.settle();
    pair.died(N1, client);
    pair.died(N1, silent);
    pair.connect();
    let (one, two) = pair.settle();
    assert_eq!((gone(&two), one), (vec![(ipc, Gone::Endpoint(client))], vec![]));
    pair.answer(N2, ipc, &message(client, 0, 1));
    assert_eq!(pair.settle().0, [], "nobody waits for it");

    let next = pair.at(N1).bind(BLUE, Role::Process, 22);
    pair.call(N1, Endpoint::IPC, &message(next, 0, 1));
    pair.settle();
    pair.died(N2, ipc);
    pair.died(N1, next);
    pair.settle();
    let out = pair.at(N2).hello(BLUE, Role::Server(3), 11, 0);
    let heard = gone(&out).iter().filter(|(_, gone)| *gone == Gone::Endpoint(next)).count();
    assert_eq!(
        (heard, delivered(&out)),
        (1, vec![]),
        "the next server hears of it, and not of the call"
    );
}

#[test]
fn calls_to_who_is_not_there_end_with_the_reason() {
    let (mut pair, client, _) = pair();
    let plain = pair.at(N2).bind(BLUE, Role::Process, 30);
    for (n, (to, error)) in [
        (plain, IpcError::Denied),
        (Endpoint { generation: 99, ..plain }, IpcError::Stale),
        (Endpoint { generation: 99, ..Endpoint::IPC }, IpcError::Stale),
        (Endpoint::new(N2, 77, 2), IpcError::Stale),
        (Endpoint::VFS, IpcError::NotBound),
        (Endpoint::PM, IpcError::NotBound),
        (Endpoint::new(N3, 1, 1), IpcError::NotBound),
    ]
    .into_iter()
    .enumerate()
    {
        let mut out = pair.call(N1, to, &message(client, 0, n as u64 + 1));
        out.extend(pair.settle().0);
        assert_eq!(ended(&out), [(n as u64 + 1, Err(error))], "{to:?}");
    }
    let long = Message { payload_len: 9, ..message(client, 0, 50) };
    let out = pair.at(N1).request(BLUE, Endpoint::IPC, &long, b"short");
    assert_eq!(ended(&out), [(50, Err(IpcError::TooLarge))]);
    let out = pair.call(N1, Endpoint::IPC, &message(Endpoint::new(N1, 99, 1), 0, 1));
    assert_eq!(ended(&out), [(1, Err(IpcError::Stale))]);
}

#[test]
fn a_peer_of_another_node_that_dies_ends_the_calls_it_had() {
    let (mut pair, client, _) = pair();
    let peer = pair.at(N2).bind(BLUE, Role::Peer(0), 31);
    pair.call(N1, peer, &message(client, 0, 1));
    assert_eq!(delivered(&pair.settle().1), [1]);
    pair.died(N2, peer);
    assert_eq!(ended(&pair.settle().0), [(1, Err(IpcError::DestinationDied))]);
}

#[test]
fn one_lane_has_one_call_open() {
    let (mut pair, client, ipc) = pair();
    pair.call(N1, Endpoint::IPC, &message(client, 0, 5));
    assert!(
        pair.call(N1, Endpoint::IPC, &message(client, 0, 5)).is_empty(),
        "sent twice is one call"
    );
    assert_eq!(
        ended(&pair.call(N1, Endpoint::IPC, &message(client, 0, 4))),
        [(4, Err(IpcError::Stale))]
    );
    assert_eq!(
        ended(&pair.call(N1, Endpoint::IPC, &message(client, 0, 6))),
        [(5, Err(IpcError::Interrupted))]
    );
    assert_eq!(delivered(&pair.settle().1), [5, 6]);
    pair.answer(N2, ipc, &message(client, 0, 5));
    pair.answer(N2, ipc, &message(client, 0, 6));
    assert_eq!(ended(&pair.settle().0), [(6, Ok(()))]);
}

#[test]
fn notifications_go_to_who_is_there() {
    let (mut pair, client, _) = pair();
    let peer = pair.at(N2).bind(BLUE, Role::Peer(0), 31);
    let near = pair.at(N1).bind(BLUE, Role::Peer(0), 32);
    let from = pair.at(N1).bind(BLUE, Role::Peer(0), 33);
    for (to, there) in [(peer, true), (near, true), (Endpoint { generation: 99, ..peer }, false)] {
        let out = pair.at(N1).step(Input::LocalNotify { dc: BLUE, from, to, value: 7 });
        let mut out = pair.sort(N1, out);
        let (one, two) = pair.settle();
        out.extend(one);
        out.extend(two);
        let notify = Output::DeliverNotify { dc: BLUE, to, from, value: 7 };
        assert_eq!(out.contains(&notify), there, "{to:?} {out:?}");
    }
    // An ordinary process has no right to.
    let out = pair.at(N1).step(Input::LocalNotify { dc: BLUE, from: client, to: near, value: 7 });
    assert!(out.is_empty(), "{out:?}");
}

/// Sends node 2 one frame as node 1 would, and returns what it does.
fn forged(pair: &mut Pair, sequence: u64, frame: Frame<'_>) -> Vec<Output> {
    let (node, link, now) = (N1, LinkId(pair.link), 0);
    let bytes = Packet { sequence, ..Packet::alone(frame) }.encode();
    let (packet, _) = decode(&bytes).unwrap();
    let two = pair.at(N2);
    two.now = two.now.max(now);
    two.step(Input::Packet { node, link, track: Track::Small, packet: &packet })
}

#[test]
fn a_node_speaks_only_for_itself() {
    let own = Endpoint::new(N1, 1, 1);
    for source in [Endpoint::new(N2, 2000, 1), Endpoint::new(N3, 1, 1), Endpoint::IPC] {
        let request = Request {
            dc: BLUE,
            to: Endpoint::IPC,
            cred: Cred::ROOT,
            message: message(source, 0, 1),
            payload: &[],
        };
        for frame in [
            Frame::Request(request),
            Frame::Cancel { dc: BLUE, to: Endpoint::IPC, id: id(&request.message) },
            Frame::Gone { dc: BLUE, to: Endpoint::IPC, gone: source },
            Frame::Notify { dc: BLUE, from: source, to: Endpoint::IPC, value: 1 },
        ] {
            let (mut pair, _, ipc) = pair();
            let out = forged(&mut pair, 1, frame);
            let forged = LinkError::Forged { dc: BLUE, endpoint: source };
            assert_eq!(dropped(&out), [forged], "{frame:?}");
            assert_eq!(gone(&out), [(ipc, Gone::Node(N1))], "its word is worth nothing any more");
            assert!(delivered(&out).is_empty());
        }
    }
    let (mut pair, _, _) = pair();
    let fine = message(own, 0, 1);
    let request =
        Request { dc: BLUE, to: Endpoint::IPC, cred: Cred::ROOT, message: fine, payload: &[] };
    assert_eq!(delivered(&forged(&mut pair, 1, Frame::Request(request))), [1]);
    let server = Request { message: message(Endpoint::VFS, 0, 1), ..request };
    assert_eq!(delivered(&forged(&mut pair, 2, Frame::Request(server))), [1], "node 1 has VFS");
}

#[test]
fn nothing_crosses_a_container() {
    // Node 1 makes frames for a container that node 2 is not in, and for one that does not exist.
    let (mut pair, _, _) = pair();
    let own = Endpoint::new(N1, 1, 1);
    for (n, dc) in [RED, DcId(9)].into_iter().enumerate() {
        let sequence = 3 * n as u64;
        let request = Request {
            dc,
            to: Endpoint::VFS,
            cred: Cred::ROOT,
            message: message(own, 0, 1),
            payload: &[],
        };
        let said =
            Output::Forged { node: N1, dc, endpoint: own, forgery: super::Forgery::Elsewhere };
        let out = forged(&mut pair, sequence + 1, Frame::Request(request));
        assert_eq!((delivered(&out), sent(&out).len()), (vec![], 1), "it is refused");
        assert!(out.contains(&said), "the operator is told");
        let death = Frame::Gone { dc, to: Endpoint::VFS, gone: own };
        assert_eq!(forged(&mut pair, sequence + 2, death), std::slice::from_ref(&said));
        let notify = Frame::Notify { dc, from: own, to: Endpoint::VFS, value: 1 };
        assert_eq!(forged(&mut pair, sequence + 3, notify), [said]);
    }
    // And node 2 makes one for the container of node 1 alone.
    let vfs = pair.at(N1).bind(RED, Role::Server(1), 40);
    let link = LinkId(pair.link);
    let there = Endpoint::new(N2, 1, 2);
    for (n, frame) in [
        Frame::Request(Request {
            dc: RED,
            to: Endpoint::VFS,
            cred: Cred::ROOT,
            message: message(there, 0, 1),
            payload: &[],
        }),
        Frame::Gone { dc: RED, to: Endpoint::VFS, gone: there },
        Frame::Notify { dc: RED, from: there, to: vfs, value: 1 },
    ]
    .into_iter()
    .enumerate()
    {
        let packet = Packet { sequence: n as u64 + 1, ..Packet::alone(frame) };
        let track = Track::Small;
        let out = pair.at(N1).step(Input::Packet { node: N2, link, track, packet: &packet });
        let forgery = super::Forgery::Outsider;
        let said = Output::Forged { node: N2, dc: RED, endpoint: there, forgery };
        assert!(out.contains(&said), "{out:?}");
        let harmless = |output: &Output| *output == said || matches!(output, Output::Send { .. });
        assert!(out.iter().all(harmless), "{out:?}");
    }
}

#[test]
fn a_link_out_of_order_is_dropped() {
    let ping = Frame::Ping { sent: 1 };
    let hello = Frame::Hello(Bench::new(N1, 1).kernel.hello(N2).unwrap());
    let gone = Frame::Gone { dc: BLUE, to: Endpoint::IPC, gone: Endpoint::new(N1, 1, 1) };
    let early = Packet { sequence: 1, after: 5, ..Packet::alone(gone) };
    for (track, packet, reason) in [
        (
            Track::Small,
            Packet { sequence: 2, ..Packet::alone(gone) },
            LinkError::Gap { got: 2, expected: 1 },
        ),
        (
            Track::Bulk,
            Packet { sequence: 2, ..Packet::alone(gone) },
            LinkError::Gap { got: 2, expected: 1 },
        ),
        (Track::Bulk, early, LinkError::Gap { got: 5, expected: 1 }),
        (
            Track::Small,
            Packet { received: 1, ..Packet::alone(ping) },
            LinkError::ReceivedTooMany { got: 1, sent: 0 },
        ),
        (
            Track::Small,
            Packet { received_bulk: 1, ..Packet::alone(ping) },
            LinkError::ReceivedTooMany { got: 1, sent: 0 },
        ),
        (Track::Bulk, Packet::alone(hello), LinkError::SecondHello),
    ] {
        let (mut pair, _, _) = pair();
        let link = LinkId(pair.link);
        let out = pair.at(N2).step(Input::Packet { node: N1, link, track, packet: &packet });
        assert_eq!(dropped(&out), [reason]);
        let packet = &Packet { sequence: 1, ..packet };
        let out = pair.at(N2).step(Input::Packet { node: N1, link, track, packet });
        assert_eq!(out, [], "the link is forgotten");
        pair.connect();
        let (one, two) = pair.settle();
        assert!(
            dropped(&one).is_empty() && dropped(&two).is_empty(),
            "the next session starts clean"
        );
    }
}

#[test]
fn hellos_that_do_not_fit_make_no_link() {
    let (mut pair, client, _) = pair();
    let (one, two) = pair.hellos();
    let drop = |out: &[Output]| dropped(out);
    pair.link += 1;
    assert_eq!(drop(&pair.link_up(N1, &one, &Hello { to: N3, ..two })), [LinkError::WrongNode]);
    assert_eq!(drop(&pair.link_up(N1, &one, &Hello { node: N3, ..two })), [LinkError::WrongNode]);
    assert_eq!(
        drop(&pair.link_up(N1, &one, &Hello { node: NodeId(9), ..two })),
        [LinkError::WrongNode]
    );
    assert_eq!(drop(&pair.link_up(N1, &Hello { epoch: 9, ..one }, &two)), [LinkError::Outdated]);
    assert!(
        pair.at(N1).kernel.hello(NodeId(9)).is_none() && pair.at(N1).kernel.hello(N1).is_none()
    );
    // A Hello made before the session it does not know had confirmed frames.
    pair.link -= 1;
    pair.call(N1, Endpoint::IPC, &message(client, 0, 1));
    pair.settle();
    pair.wait(N2, PING_EVERY);
    pair.settle();
    pair.link += 1;
    let old = Hello { peer_incarnation: 0, peer_epoch: 0, received: 0, ..two };
    assert_eq!(drop(&pair.link_up(N1, &one, &old)), [LinkError::Outdated]);
    pair.link -= 1;
    pair.call(N1, Endpoint::IPC, &message(client, 1, 2));
    assert_eq!(delivered(&pair.settle().1), [2], "the link that was there goes on");
}

#[test]
fn a_link_is_kept_alive_and_a_silent_one_dropped() {
    let (mut pair, _, _) = pair();
    let of_track = |pair: &Pair, which: Track| -> Vec<Bytes> {
        let of = |(track, bytes): &(Track, Bytes)| (*track == which).then(|| bytes.clone());
        pair.wires[&N1].iter().filter_map(of).collect()
    };
    let pings = |out: &[Bytes]| {
        out.iter().filter(|b| matches!(decode(b).unwrap().0.frame, Frame::Ping { .. })).count()
    };
    assert_eq!(dropped(&pair.wait(N1, LINK_SILENCE - 1)), []);
    let most = usize::try_from((LINK_SILENCE - 1) / PING_EVERY).unwrap();
    assert_eq!(pings(&of_track(&pair, Track::Small)), most);
    let alive = |b: &Bytes| decode(b).unwrap().0.frame == Frame::Received;
    assert_eq!(of_track(&pair, Track::Bulk).iter().filter(|b| alive(b)).count(), most);
    assert_eq!(dropped(&pair.wait(N1, 1)), [LinkError::Silent]);
    assert!(matches!(pair.at(N1).kernel.nodes().next().unwrap().state, NodeState::Lost { .. }));
    pair.wait(N1, NODE_DOWN_AFTER);
    assert!(matches!(pair.at(N1).kernel.nodes().next().unwrap().state, NodeState::Down { .. }));
    pair.at(N1)
        .kernel
        .nodes()
        .for_each(|info| assert!(matches!(info.state, NodeState::Down { .. })));
    assert_eq!(pair.at(N1).kernel.next_deadline(), None, "nothing spins");
}

#[test]
fn a_new_connection_replaces_the_old_one() {
    let (mut pair, client, _) = pair();
    pair.call(N1, Endpoint::IPC, &message(client, 0, 1));
    pair.link += 1;
    let (one, two) = pair.hellos();
    assert_eq!(dropped(&pair.link_up(N1, &one, &two)), [LinkError::Replaced]);
    assert_eq!(dropped(&pair.link_up(N2, &two, &one)), [LinkError::Replaced]);
    let old = LinkId(pair.link - 1);
    pair.at(N1).step(Input::LinkDown { node: N2, link: old });
    assert!(
        matches!(pair.at(N1).kernel.nodes().next().unwrap().state, NodeState::Up { .. }),
        "the end of the old one is no news"
    );
    assert_eq!(delivered(&pair.settle().1), [1], "sent on both, taken once");
}

#[test]
fn frames_are_kept_until_received_and_no_longer() {
    let (mut pair, client, ipc) = pair();
    for sequence in 1..=2 * RECEIVED_FRAMES {
        pair.call(N1, Endpoint::IPC, &message(client, 0, sequence));
        pair.settle();
        pair.answer(N2, ipc, &message(client, 0, sequence));
        pair.settle();
    }
    // Answers confirm requests; of the answers themselves few are unconfirmed.
    pair.connect();
    let resent = |wire: &[(Track, Bytes)]| {
        wire.iter().filter(|(_, bytes)| decode(bytes).unwrap().0.sequence != 0).count() as u64
    };
    assert_eq!(resent(&pair.wires[&N1]), 0);
    assert!(resent(&pair.wires[&N2]) <= 1, "the last answer");
    // One-way traffic is confirmed without a word of the other side's own.
    let peer = pair.at(N2).bind(BLUE, Role::Peer(0), 31);
    for value in 0..=RECEIVED_FRAMES {
        let out = pair.at(N1).step(Input::LocalNotify { dc: BLUE, from: client, to: peer, value });
        pair.sort(N1, out);
        pair.settle();
    }
    pair.connect();
    assert!(resent(&pair.wires[&N1]) <= 1);
}

#[test]
fn open_calls_are_bounded() {
    let (mut pair, client, ipc) = pair();
    for lane in 0..=u16::MAX {
        assert!(pair.call(N1, Endpoint::IPC, &message(client, lane, 1)).is_empty());
    }
    assert_eq!(CALLS_PER_NODE, usize::from(u16::MAX) + 1);
    let other = pair.at(N1).bind(BLUE, Role::Process, 21);
    assert_eq!(
        ended(&pair.call(N1, Endpoint::IPC, &message(other, 0, 1))),
        [(1, Err(IpcError::Exhausted))]
    );
    assert_eq!(delivered(&pair.settle().1).len(), CALLS_PER_NODE);
    // A node that does not keep to it is refused too.
    let sequence = 1 + CALLS_PER_NODE as u64;
    let request = Request {
        dc: BLUE,
        to: Endpoint::IPC,
        cred: Cred::ROOT,
        message: message(other, 0, 1),
        payload: &[],
    };
    let out = forged(&mut pair, sequence, Frame::Request(request));
    assert_eq!((delivered(&out), sent(&out).len()), (vec![], 1));
    pair.died(N1, client);
    let gone_frame = Frame::Gone { dc: BLUE, to: Endpoint::IPC, gone: client };
    assert_eq!(gone(&forged(&mut pair, sequence + 1, gone_frame)), [(ipc, Gone::Endpoint(client))]);
    assert_eq!(pair.at(N2).kernel.nodes().next().unwrap().calls_in, 0);
}

#[test]
fn one_user_does_not_use_up_the_calls_that_all_may_have_open() {
    let (mut pair, client, _) = pair();
    let (one, other) = (Cred::new(7, 1000, 100), Cred::new(8, 1001, 100));
    let call = |pair: &mut Pair, cred: &Cred, lane: usize| {
        let message = message(client, u16::try_from(lane).unwrap(), 1);
        let (dc, to, payload) = (BLUE, Endpoint::IPC, &[][..]);
        let input = Input::LocalRequest { dc, to, cred, message: &message, payload };
        let out = pair.at(N1).step(input);
        ended(&pair.sort(N1, out))
    };
    for lane in 0..CALLS_PER_USER {
        assert_eq!(call(&mut pair, &one, lane), []);
    }
    let refused = [(1, Err(IpcError::Exhausted))];
    assert_eq!(call(&mut pair, &one, CALLS_PER_USER), refused);
    assert_eq!(call(&mut pair, &other, CALLS_PER_USER), []);
    // The other node goes by the same, if this one did not.
    assert_eq!(delivered(&pair.settle().1).len(), CALLS_PER_USER + 1);
    let forge = |pair: &mut Pair, sequence: usize, cred: Cred| {
        let message = message(client, u16::try_from(sequence).unwrap(), 1);
        let request = Request { dc: BLUE, to: Endpoint::IPC, cred, message, payload: &[] };
        let out = forged(pair, sequence as u64, Frame::Request(request));
        (delivered(&out).len(), sent(&out).len())
    };
    assert_eq!(forge(&mut pair, CALLS_PER_USER + 2, one), (0, 1), "an answer");
    assert_eq!(forge(&mut pair, CALLS_PER_USER + 3, other), (1, 0));
    // Who ends has none.
    pair.died(N1, client);
    assert_eq!(pair.at(N1).kernel.nodes().next().unwrap().calls_out, 0);
    let again = pair.at(N1).bind(BLUE, Role::Process, 21);
    let first = message(again, 0, 1);
    let (dc, to, payload) = (BLUE, Endpoint::IPC, &[][..]);
    let input = Input::LocalRequest { dc, to, cred: &one, message: &first, payload };
    assert_eq!(ended(&pair.at(N1).step(input)), []);
}

#[test]
fn what_is_kept_for_a_node_that_does_not_listen_is_bounded() {
    let (mut pair, client, _) = pair();
    let message = |lane| Message { payload_len: 128 * 1024, ..message(client, lane, 1) };
    let payload = vec![0; 128 * 1024];
    let mut lane = 0;
    let out = loop {
        let out = pair.at(N1).request(BLUE, Endpoint::IPC, &message(lane), &payload);
        lane += 1;
        if !ended(&out).is_empty() {
            break out;
        }
    };
    assert_eq!(ended(&out), [(1, Err(IpcError::Exhausted))]);
    assert!((512..520).contains(&lane), "64 MiB: {lane}");
}

#[test]
fn deaths_that_nobody_can_be_told_of_are_bounded() {
    let (mut pair, _, ipc) = pair();
    pair.died(N2, ipc);
    for n in 0..=u32::try_from(UNTOLD_MAX).unwrap() {
        let frame = Frame::Gone { dc: BLUE, to: Endpoint::IPC, gone: Endpoint::new(N1, 1 + n, 1) };
        let out = forged(&mut pair, 1 + u64::from(n), frame);
        let expected = if n as usize == UNTOLD_MAX { vec![LinkError::Exhausted] } else { vec![] };
        assert_eq!(dropped(&out), expected);
    }
    let out = pair.at(N2).hello(BLUE, Role::Server(3), 11, 0);
    assert_eq!(gone(&out).iter().map(|(_, gone)| *gone).collect::<Vec<_>>(), [Gone::Node(N1)]);
}

#[test]
fn a_container_that_stops_ends_everything_in_it_and_nothing_else() {
    let (mut pair, client, _) = pair();
    let red = pair.at(N1).bind(RED, Role::Process, 50);
    pair.at(N1).bind(RED, Role::Server(1), 51);
    pair.call(N1, Endpoint::IPC, &message(client, 0, 1));
    pair.settle();
    pair.at(N1).open(BLUE, client, Endpoint::VFS);
    let out = pair.at(N2).step(Input::DcStop { dc: BLUE });
    let out = pair.sort(N2, out);
    assert!(matches!(out[..], [Output::CloseChannels { .. }]), "{out:?}");
    assert_eq!(ended(&pair.settle().0), [(1, Err(IpcError::DestinationDied))]);
    let out = pair.at(N1).step(Input::DcStop { dc: BLUE });
    assert_eq!(refusals(&out), [IpcError::Stale]);
    assert_eq!(refusals(&pair.at(N1).open(BLUE, client, Endpoint::VFS)), [IpcError::NotBound]);
    assert_eq!(channels(&pair.at(N1).open(RED, red, Endpoint::VFS)).len(), 1);
    let dc = config(N1, 1).dcs[0].clone();
    pair.at(N1).step(Input::DcStart { dc: &dc });
    let next = pair.at(N1).bind(BLUE, Role::Process, 20);
    assert!(next.slot == client.slot && next.generation > client.generation, "{next:?}");
}

#[test]
fn a_container_spans_a_node_that_joins_as_soon_as_it_is_told_so() {
    let (mut pair, _, _) = pair();
    let nodes = BTreeSet::from([N1, N2]);
    let red = Dc { nodes: nodes.clone(), ..config(N1, 1).dcs[1].clone() };
    pair.at(N2).step(Input::DcStart { dc: &red });
    let vfs = pair.at(N1).bind(RED, Role::Server(1), 40);
    let client = pair.at(N2).bind(RED, Role::Process, 41);
    let call = |pair: &mut Pair, sequence: u64| {
        let out = pair.at(N2).request(RED, Endpoint::VFS, &message(client, 0, sequence), &[]);
        pair.sort(N2, out);
        pair.settle()
    };
    let (_, out) = call(&mut pair, 1);
    assert_eq!(ended(&out), [(1, Err(IpcError::Denied))], "node 1 does not know yet");
    let own = pair.at(N1).bind(RED, Role::Process, 42);
    assert_eq!(refusals(&pair.at(N1).open(RED, own, client)), [IpcError::NotBound]);
    pair.at(N1).step(Input::DcSpan { dc: RED, nodes: &nodes });
    let (out, _) = call(&mut pair, 2);
    assert!(matches!(out[..], [Output::Deliver { to, .. }] if to == vfs), "{out:?}");
    assert_eq!(channels(&pair.at(N1).open(RED, own, client)).len(), 1);
}

/// Anything in any order: from the daemon what it may say, from the other nodes whatever is a frame.
struct Walk {
    bench: Bench,
    random: crate::sim::Random,
    /// Calls of this node that are open, by receiver.
    open: BTreeSet<(DcId, u32, CallId)>,
    ended: u64,
    links: BTreeMap<NodeId, LinkId>,
    /// Of the last entry of the directory.
    epoch: u64,
    /// What the group was asked for and has not answered: container, slot, expected epoch.
    asked: Vec<(DcId, u32, u64)>,
}

impl Walk {
    fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.random.index(list.len())]
    }

    fn small(&mut self) -> u16 {
        u16::try_from(self.random.below(4)).unwrap()
    }

    fn dc(&mut self) -> DcId {
        self.pick(&[BLUE, BLUE, BLUE, RED, DcId(9)])
    }

    fn endpoint(&mut self) -> Endpoint {
        let bound: Vec<Endpoint> =
            self.bench.kernel.endpoints(BLUE).map(|info| info.endpoint).collect();
        let node = self.pick(&[N1, N2, N3]);
        let any = Endpoint::new(node, self.small().into(), self.small().into());
        let server = self.pick(&[Endpoint::VFS, Endpoint::IPC, Endpoint::PM]);
        match self.random.below(3) {
            0 if !bound.is_empty() => self.pick(&bound),
            1 => server,
            _ => any,
        }
    }

    fn message(&mut self) -> Message {
        let (source, lane) = (self.endpoint(), self.small());
        message(source, lane, self.random.below(30))
    }

    fn frame(&mut self, node: NodeId) -> Frame<'static> {
        let (dc, to, mut message) = (self.dc(), self.endpoint(), self.message());
        if self.random.chance(980) {
            message.source = Endpoint::new(node, self.small().into(), 1);
        }
        let mobile = Endpoint::well_known(self.pick(&[N1, N2, N3]), 1 + u32::from(self.small()));
        let mobile = Endpoint { generation: 1 + u32::from(self.small()), ..mobile };
        let epoch = self.random.below(6);
        let order = self.order();
        match self.random.below(18) {
            9 => Frame::Order { dc, from: message.source, to, number: epoch, order },
            10 | 11 => Frame::Entry { dc, endpoint: mobile, epoch },
            12 => Frame::Noted { dc, endpoint: mobile, epoch },
            13 => {
                let rights = Rights::of_level(level::SERVER);
                Frame::Adopt { dc, endpoint: mobile, backup: Endpoint::NONE, epoch, rights }
            }
            14 => Frame::Adopted { dc, endpoint: mobile, epoch, status: 0 },
            15 => Frame::Moved { dc, to, id: id(&message), is_received: epoch == 1 },
            16 => Frame::StandBy { dc, to: mobile, backup: message.source, is_over: epoch == 1 },
            17 => Frame::Replica { dc, endpoint: mobile, is_over: epoch < 3 },
            0..=3 => Frame::Request(Request { dc, to, cred: Cred::ROOT, message, payload: &[] }),
            4 => Frame::Answer(crate::frame::Answer { dc, to, message, payload: &[] }),
            5 => Frame::Cancel { dc, to, id: id(&message) },
            6 => Frame::Gone { dc, to, gone: message.source },
            7 => Frame::Notify { dc, from: message.source, to, value: 1 },
            _ => self.pick(&[Frame::Ping { sent: 1 }, Frame::Pong { sent: 1 }, Frame::Received]),
        }
    }

    fn order(&mut self) -> Order {
        let node = self.pick(&[N1, N2, N3]);
        let commit = Order::Commit { node, backup: Endpoint::NONE };
        self.pick(&[Order::Start, Order::Start, Order::Rollback, commit, commit, Order::Wake])
    }

    fn step(&mut self) {
        self.bench.now += self.random.below(50_000_000);
        let (dc, to, message) = (self.dc(), self.endpoint(), self.message());
        let pid = self.small().into();
        let asker = self.bench.asker();
        let out = match self.random.below(22) {
            19 => self.placed(),
            20 => self.standing(),
            21 => self.unplaced(false),
            14 => {
                let order = self.order();
                let from = message.source;
                self.bench.step(Input::Order { asker, dc, from, to, order, privileged: true })
            }
            15 => self.bench.step(Input::Frozen { dc, endpoint: to }),
            16 => self.bench.step(Input::Unreceived { dc, to, id: id(&message) }),
            17 => self.bench.step(Input::Pending { dc, to, from: message.source, value: 1 }),
            18 if self.random.chance(50) => {
                let steer = self.pick(&[
                    Steer::Disconnect,
                    Steer::Down,
                    Steer::Connect,
                    Steer::Leave,
                    Steer::Enter,
                ]);
                let node = self.pick(&[N2, N3]);
                self.bench.step(Input::Steer { asker, dc, node, steer, privileged: true })
            }
            0 => self.bench.step(Input::Tick),
            1 | 2 => {
                let role = self.pick(&[
                    Role::Process,
                    Role::Peer(0),
                    Role::Server(1),
                    Role::Server(3),
                    Role::Container,
                    Role::Peer(1),
                    Role::Peer(2),
                    Role::Backup(Endpoint::new(N1, 1, 1), true),
                    Role::Backup(Endpoint::new(N2, 2, 1), true),
                    Role::Replica(64),
                ]);
                let nonce = self.random.below(2);
                self.bench.step(Input::Hello { asker, dc, role, pid, nonce, privileged: true })
            }
            3 => self.bench.step(Input::Open { asker, dc, from: message.source, to }),
            4 => self.bench.died(dc, to),
            5..=7 => {
                self.open.insert((dc, to.slot, id(&message)));
                self.bench.request(dc, to, &message, &[])
            }
            8 => self.bench.step(Input::LocalCancel { dc, to, id: id(&message) }),
            9 => self.bench.step(Input::LocalAnswer {
                dc,
                from: to,
                id: id(&message),
                message: &message,
                payload: &[],
            }),
            10 => self.link_up(),
            11 => {
                let node = self.pick(&[N2, N3]);
                let link = self.links.get(&node).copied().unwrap_or(LinkId(0));
                self.bench.step(Input::LinkDown { node, link })
            }
            _ => self.packet(),
        };
        self.check(&out);
    }

    /// The group has placed somebody somewhere, whatever it was asked for.
    fn placed(&mut self) -> Vec<Output> {
        self.epoch += 1;
        let endpoint = Endpoint::well_known(self.pick(&[N1, N2, N3]), 1 + u32::from(self.small()));
        let endpoint = Endpoint { generation: 1 + u32::from(self.small()), ..endpoint };
        let entry = Entry {
            endpoint,
            node: self.pick(&[N1, N1, N2, N3]),
            incarnation: 1 - u64::from(self.random.chance(100)),
            epoch: self.epoch,
            is_over: self.random.chance(200),
        };
        let dc = self.dc();
        self.bench.step(Input::Placed { dc, entry })
    }

    fn standing(&mut self) -> Vec<Output> {
        let nodes = [N1, N2, N3].into_iter().filter(|_| self.random.chance(700));
        let up: BTreeMap<NodeId, u64> = nodes.map(|node| (node, 1)).collect();
        let until = self.pick(&[0, Nanos::MAX, self.bench.now + 20_000_000]);
        self.bench.step(Input::Standing { until, up: &up })
    }

    /// The group refuses what it was asked for last.
    fn unplaced(&mut self, is_full: bool) -> Vec<Output> {
        let Some((dc, slot, expected)) = self.asked.pop() else { return Vec::new() };
        self.bench.step(Input::Unplaced { dc, slot, expected, is_full })
    }

    fn link_up(&mut self) -> Vec<Output> {
        let node = self.pick(&[N2, N3]);
        let link = LinkId(self.bench.askers);
        let Some(sent) = self.bench.kernel.hello(node) else { return Vec::new() };
        let received = Hello {
            node,
            to: N1,
            incarnation: u64::from(self.random.chance(50)),
            epoch: u64::from(self.random.chance(50)),
            peer_incarnation: u64::from(self.random.chance(50)),
            peer_epoch: sent.epoch,
            received: u64::from(self.random.chance(50)),
            received_bulk: 0,
            track: Track::Small,
            pair: 0,
            packs: false,
        };
        self.links.insert(node, link);
        self.bench.step(Input::LinkUp { link, sent: &sent, received: &received })
    }

    fn packet(&mut self) -> Vec<Output> {
        let node = self.pick(&[N2, N3]);
        let Some(link) = self.links.get(&node).copied() else { return Vec::new() };
        let frame = self.frame(node);
        let track = self.pick(&Track::ALL);
        // Mostly the one that is due: the Hello says how many have been received.
        let Some(hello) = self.bench.kernel.hello(node) else { return Vec::new() };
        let due = 1 + if track == Track::Bulk { hello.received_bulk } else { hello.received };
        let sequence = if !frame.is_sequenced() {
            0
        } else if self.random.chance(990) {
            due
        } else {
            1 + self.random.below(due + 2)
        };
        let received = if self.random.chance(990) { 0 } else { self.random.below(20) };
        let after = if track == Track::Bulk { self.random.below(hello.received + 1) } else { 0 };
        let packet = &Packet { sequence, received, after, ..Packet::alone(frame) };
        self.bench.step(Input::Packet { node, link, track, packet })
    }

    /// A call ends once, and only if it is open. (One that is sent twice while it is open is one call; a dead caller's may
    /// never end.)
    fn check(&mut self, out: &[Output]) {
        for output in out {
            if let Output::AnswerLocal { dc, from, id, .. } = output {
                assert!(
                    self.open.remove(&(*dc, from.slot, *id)),
                    "{id:?} of {dc:?} was not open: {out:?}"
                );
                self.ended += 1;
            }
            if let Output::Send { bytes, .. } = output {
                decode(bytes).unwrap();
            }
            if let Output::Propose { dc, entry, expected } = output {
                self.asked.push((*dc, entry.endpoint.slot, *expected));
            }
        }
    }
}

#[test]
fn no_input_makes_it_panic_or_end_a_call_twice() {
    let (mut ended, mut in_flight) = (0, 0);
    for seed in 0..200 {
        let mut walk = Walk {
            bench: Bench::new(N1, 1),
            random: crate::sim::Random::new(seed),
            open: BTreeSet::new(),
            ended: 0,
            links: BTreeMap::new(),
            epoch: 0,
            asked: Vec::new(),
        };
        for _ in 0..400 {
            walk.step();
        }
        in_flight +=
            walk.bench.kernel.nodes().map(|info| info.calls_in + info.calls_out).sum::<usize>();
        // When all is decided and it is left alone it gives up everybody, and nothing is open any more.
        let input = Input::Standing { until: Nanos::MAX, up: &BTreeMap::new() };
        let out = walk.bench.step(input);
        walk.check(&out);
        while !walk.asked.is_empty() {
            let out = walk.unplaced(true);
            walk.check(&out);
        }
        let out = walk.bench.wait(2 * crate::limits::MIGRATION_MAX);
        walk.check(&out);
        assert_eq!(walk.bench.kernel.next_deadline(), None, "seed {seed}");
        for info in walk.bench.kernel.nodes() {
            assert_eq!((info.calls_in, info.calls_out), (0, 0), "seed {seed}");
        }
        ended += walk.ended;
    }
    assert!(ended > 1_000 && in_flight > 100, "{ended} calls ended, {in_flight} were under way");
}

/// How questions ended: with whom, or why not.
fn told(out: &[Output]) -> Vec<Result<Endpoint, IpcError>> {
    let told = |output: &Output| match output {
        Output::Done { endpoint, .. } => Some(Ok(*endpoint)),
        Output::Refused { error, .. } => Some(Err(*error)),
        _ => None,
    };
    out.iter().filter_map(told).collect()
}

impl Bench {
    fn ask(
        &mut self,
        from: Endpoint,
        to: Endpoint,
        event: Event,
        timeout: Option<Nanos>,
    ) -> (Asker, Vec<Output>) {
        let asker = self.asker();
        (asker, self.step(Input::Await { asker, dc: BLUE, from, to, event, timeout }))
    }
}

#[test]
fn who_waits_for_an_endpoint_of_its_node_is_told_when_it_comes_and_goes() {
    let mut one = Bench::new(N1, 1);
    let asker = one.bind(BLUE, Role::Peer(0), 20);
    let name = Endpoint::well_known(N1, 70);
    assert_eq!(told(&one.ask(asker, name, Event::Bound, Some(0)).1), [Err(IpcError::WouldBlock)]);
    assert_eq!(told(&one.ask(asker, name, Event::Unbound, None).1), [Ok(Endpoint::NONE)]);
    assert!(one.ask(asker, name, Event::Bound, None).1.is_empty());
    assert!(one.ask(asker, name, Event::Bound, Some(5)).1.is_empty());
    assert_eq!(told(&one.wait(5)), [Err(IpcError::TimedOut)]);
    let out = one.hello(BLUE, Role::Peer(70), 21, 0);
    let [Ok(bound)] = told(&out)[..] else { panic!("{out:?}") };
    assert_eq!(bound.slot, name.slot);
    assert_eq!(told(&one.ask(asker, name, Event::Bound, None).1), [Ok(bound)]);
    let (withdrawn, _) = one.ask(asker, name, Event::Unbound, None);
    assert!(one.step(Input::Withdraw { asker: withdrawn }).is_empty());
    one.ask(asker, bound, Event::Unbound, None);
    assert_eq!(told(&one.died(BLUE, bound)), [Ok(Endpoint::NONE)]);
    assert_eq!(told(&one.ask(asker, bound, Event::Bound, None).1), [Err(IpcError::Stale)]);
    assert_eq!(one.kernel.await_count(), 0, "nothing is left behind");
}

#[test]
fn questions_of_the_dead_and_of_a_container_that_is_over_are_forgotten() {
    let mut one = Bench::new(N1, 1);
    let asker = one.bind(BLUE, Role::Peer(0), 20);
    let stays = one.bind(BLUE, Role::Peer(0), 22);
    let name = Endpoint::well_known(N1, 70);
    one.ask(asker, name, Event::Bound, None);
    one.ask(asker, Endpoint::well_known(N2, 70), Event::Bound, Some(1000));
    one.died(BLUE, asker);
    assert_eq!(one.kernel.await_count(), 0);
    one.ask(stays, name, Event::Bound, None);
    let out = one.step(Input::DcStop { dc: BLUE });
    assert_eq!(refusals(&out), [IpcError::Stale]);
    assert_eq!(one.kernel.await_count(), 0);
}

#[test]
fn who_waits_for_an_endpoint_of_another_node_is_told_and_the_node_forgets_what_is_withdrawn() {
    let (mut pair, _, _) = pair();
    let asker = pair.at(N1).bind(BLUE, Role::Peer(0), 40);
    let name = Endpoint::well_known(N2, 70);
    let ask = |pair: &mut Pair, event, timeout| {
        let (asker, out) = pair.at(N1).ask(asker, name, event, timeout);
        let out = pair.sort(N1, out);
        let (mut one, _) = pair.settle();
        one.extend(out);
        (asker, one)
    };
    assert_eq!(told(&ask(&mut pair, Event::Bound, Some(0)).1), [Err(IpcError::WouldBlock)]);
    assert_eq!(told(&ask(&mut pair, Event::Unbound, None).1), [Ok(Endpoint::NONE)]);
    assert!(told(&ask(&mut pair, Event::Bound, None).1).is_empty());
    let (withdrawn, _) = ask(&mut pair, Event::Bound, None);
    let out = pair.at(N1).step(Input::Withdraw { asker: withdrawn });
    pair.sort(N1, out);
    pair.settle();
    assert_eq!((pair.at(N1).kernel.await_count(), pair.at(N2).kernel.await_count()), (1, 1));
    let out = pair.at(N2).hello(BLUE, Role::Peer(70), 41, 0);
    let Some(Output::Welcome { endpoint: bound, .. }) = out.first().cloned() else { panic!() };
    pair.sort(N2, out);
    assert_eq!(told(&pair.settle().0), [Ok(bound)]);
    assert!(told(&ask(&mut pair, Event::Unbound, None).1).is_empty());
    let out = pair.at(N2).died(BLUE, bound);
    pair.sort(N2, out);
    assert_eq!(told(&pair.settle().0), [Ok(Endpoint::NONE)]);
    assert_eq!((pair.at(N1).kernel.await_count(), pair.at(N2).kernel.await_count()), (0, 0));
}

#[test]
fn a_node_that_goes_down_ends_the_questions_about_it_and_those_it_has_asked() {
    let (mut pair, _, _) = pair();
    let here = pair.at(N1).bind(BLUE, Role::Peer(0), 40);
    let there = pair.at(N2).bind(BLUE, Role::Peer(0), 41);
    let (_, out) = pair.at(N1).ask(here, Endpoint::well_known(N2, 70), Event::Bound, None);
    pair.sort(N1, out);
    let (_, out) = pair.at(N2).ask(there, Endpoint::well_known(N1, 70), Event::Bound, None);
    pair.sort(N2, out);
    pair.settle();
    assert_eq!(pair.at(N1).kernel.await_count(), 2);
    let link = LinkId(pair.link);
    let one = pair.at(N1);
    one.step(Input::LinkDown { node: N2, link });
    let out = one.wait(NODE_DOWN_AFTER);
    assert_eq!(told(&out), [Err(IpcError::NodeDown)]);
    assert_eq!(one.kernel.await_count(), 0);
    let (_, out) = one.ask(here, Endpoint::well_known(N2, 70), Event::Bound, None);
    assert_eq!(told(&out), [Err(IpcError::NodeDown)], "at once");
}

#[test]
fn rights_are_the_administrators_and_open_or_close_the_way_to_others() {
    let mut one = Bench::new(N1, 1);
    let (from, to) = (one.bind(BLUE, Role::Peer(0), 20), one.bind(BLUE, Role::Peer(0), 21));
    let nothing = Rights { calls: 0, ..Rights::of_level(level::USER) };
    let mut set = |to, rights: &Rights, privileged| {
        let asker = one.asker();
        one.step(Input::SetRights { asker, dc: BLUE, to, rights, privileged })
    };
    assert_eq!(refusals(&set(from, &nothing, false)), [IpcError::Denied]);
    let deaf = Rights { from: Allowed::NOBODY, ..Rights::of_level(level::SERVER) };
    let out = set(to, &deaf, true);
    assert!(out.contains(&Output::Reopen { dc: BLUE, endpoint: to }));
    assert_eq!(refusals(&one.open(BLUE, from, to)), [IpcError::Denied]);
    let asker = one.asker();
    let rights = Rights::of_level(level::SERVER);
    one.step(Input::SetRights { asker, dc: BLUE, to, rights: &rights, privileged: true });
    assert_eq!(channels(&one.open(BLUE, from, to)), [(from, to, None)]);
    let asker = one.asker();
    one.step(Input::SetRights { asker, dc: BLUE, to: from, rights: &nothing, privileged: true });
    assert_eq!(refusals(&one.open(BLUE, from, to)), [IpcError::Denied]);
}

#[test]
fn a_link_that_is_cut_stays_so_until_it_is_wanted_again() {
    let (mut pair, client, _) = pair();
    let steer = |pair: &mut Pair, steer, privileged| {
        let bench = pair.at(N1);
        let asker = bench.asker();
        bench.step(Input::Steer { asker, dc: BLUE, node: N2, steer, privileged })
    };
    assert_eq!(refusals(&steer(&mut pair, Steer::Down, false)), [IpcError::Denied]);
    let out = steer(&mut pair, Steer::Disconnect, true);
    assert_eq!(dropped(&out), [LinkError::Cut]);
    assert!(pair.at(N1).kernel.hello(N2).is_none(), "no other is made");
    pair.call(N1, Endpoint::IPC, &message(client, 0, 1));
    steer(&mut pair, Steer::Connect, true);
    pair.connect();
    assert_eq!(delivered(&pair.settle().1), [1], "nothing is lost");
    let out = steer(&mut pair, Steer::Down, true);
    assert_eq!(ended(&out), [(1, Err(IpcError::NodeDown))]);
    assert!(pair.at(N1).kernel.nodes().any(|info| info.node == N2 && info.is_cut));
}

#[test]
fn whoever_gives_a_call_up_does_not_wait_for_a_link_unless_it_is_to_a_server() {
    let (mut pair, client, ipc) = pair();
    let peer = pair.at(N2).bind(BLUE, Role::Peer(70), 11);
    pair.settle();
    let calls = [1, 2, 3].map(|tag| message(client, tag.try_into().unwrap(), tag));
    pair.call(N1, peer, &calls[0]);
    pair.settle();
    assert_eq!(pair.cancel(N1, peer, &calls[0]), [], "the link is there: the other side knows");
    assert_eq!(ended(&pair.link_down(N1)), [(1, Err(IpcError::Interrupted))]);
    pair.call(N1, peer, &calls[1]);
    assert_eq!(ended(&pair.cancel(N1, peer, &calls[1])), [(2, Err(IpcError::Interrupted))]);
    pair.call(N1, Endpoint::IPC, &calls[2]);
    assert_eq!(pair.cancel(N1, Endpoint::IPC, &calls[2]), []);
    // What has been given up is executed or not; its answer is nobody's.
    pair.connect();
    let (one, two) = pair.settle();
    assert_eq!(delivered(&two), [-1, 2, -2, 3, -3]);
    assert!(ended(&one).is_empty(), "{one:?}");
    pair.answer(N2, peer, &calls[1]);
    pair.answer(N2, ipc, &calls[2]);
    assert_eq!(ended(&pair.settle().0), [(3, Ok(()))]);
}
