//! A host in miniature: delivers calls, keeps what is unanswered, can crash and start again.

use calls::Row;
use calls::pm::{Await, Done, Exited, Join, Order, Process, Report, Started};
use calls::wire::Wire;
use dvk::server::{Answers, Call, Context, Gone, Nanos, Server};
use dvk::store::MemoryStore;
use m3ipc::{CallId, Cred, Endpoint, IpcError, Message, NodeId, Tag};
use pm_server::PmServer;
use pm_server::limits::PIDS_PER_NODE;
use std::collections::BTreeMap;

/// What a call came to: the reply and its payload, or the errno.
pub(crate) type Result<R> = std::result::Result<(<R as Row>::Reply, Vec<u8>), i32>;

/// Seconds since the epoch when the clock shows 0.
pub(crate) const EPOCH: u64 = 1_000_000;
pub(crate) const SECOND: Nanos = 1_000_000_000;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller {
    pub(crate) endpoint: Endpoint,
    pub(crate) cred: Cred,
}

/// An ordinary process of a node, of user 5.
pub(crate) fn process(node: u16, index: u32) -> Caller {
    let endpoint = Endpoint::new(NodeId(node), index, 1);
    Caller { endpoint, cred: Cred::new(pid(node, index), 5, 100) }
}

/// The container of a node.
pub(crate) fn container(node: u16) -> Caller {
    Caller { endpoint: Endpoint::container(NodeId(node)), cred: Cred::ROOT }
}

/// A pid of a node's own range.
pub(crate) fn pid(node: u16, index: u32) -> u32 {
    u32::from(node) * PIDS_PER_NODE + index
}

#[derive(Clone, Debug)]
struct Sent {
    cred: Cred,
    message: Message,
    payload: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Host {
    server: PmServer,
    pub(crate) store: MemoryStore,
    pub(crate) now: Nanos,
    sequence: u64,
    open: BTreeMap<u64, (CallId, Sent)>,
    answers: BTreeMap<CallId, (Message, Vec<u8>)>,
    /// Every call that got its answer, in the order of the answers.
    pub(crate) order: Vec<CallId>,
}

impl Host {
    pub(crate) fn new() -> Host {
        let store = MemoryStore::default();
        Host {
            server: PmServer::open(&store),
            store,
            now: 5 * SECOND,
            sequence: 0,
            open: BTreeMap::new(),
            answers: BTreeMap::new(),
            order: Vec::new(),
        }
    }

    /// Sends a call; its answer may be there already or come later.
    pub(crate) fn send<R: Row>(&mut self, caller: Caller, row: R, payload: &[u8]) -> CallId {
        let mut message = Message::request(R::NUMBER);
        row.put(&mut message.args);
        self.send_raw(caller, message, payload)
    }

    pub(crate) fn send_raw(&mut self, caller: Caller, message: Message, payload: &[u8]) -> CallId {
        self.sequence += 1;
        let id = CallId { source: caller.endpoint, tag: Tag::new(0, self.sequence) };
        let sent = Sent { cred: caller.cred, message, payload: payload.to_vec() };
        self.open.insert(self.sequence, (id, sent.clone()));
        self.deliver(id, &sent);
        id
    }

    /// Delivers a call that still waits once more, as a link that was broken may do.
    pub(crate) fn repeat(&mut self, id: CallId) {
        let (_, sent) = self.open[&id.tag.sequence()].clone();
        self.deliver(id, &sent);
    }

    fn deliver(&mut self, id: CallId, sent: &Sent) {
        let Sent { cred, message, payload } = sent;
        self.input(|server, cx| server.serve(&Call { id, cred, message, payload }, cx));
    }

    /// A call that is answered at once.
    pub(crate) fn call<R: Row>(&mut self, caller: Caller, row: R, payload: &[u8]) -> Result<R> {
        let id = self.send(caller, row, payload);
        self.answer::<R>(id).expect("the call is answered at once")
    }

    /// The answer of a call, if there is one already.
    pub(crate) fn answer<R: Row>(&self, id: CallId) -> Option<Result<R>> {
        let (message, payload) = self.answers.get(&id)?;
        let outcome = message.outcome().expect("the server answers by itself");
        let reply = outcome.map_err(|errno| errno.errno).map(|()| {
            let reply = R::Reply::get(&message.args).expect("the answer is the row's");
            (reply, payload.clone())
        });
        Some(reply)
    }

    pub(crate) fn waits(&self, id: CallId) -> bool {
        self.open.contains_key(&id.tag.sequence())
    }

    /// The nodes 1..=count join.
    pub(crate) fn with_nodes(count: u16) -> Host {
        let mut host = Host::new();
        for node in 1..=count {
            host.join(node);
        }
        host
    }

    pub(crate) fn join(&mut self, node: u16) {
        self.call(container(node), Join { node }, b"").unwrap();
    }

    /// A container has started a process.
    pub(crate) fn started(&mut self, node: u16, pid: u32) {
        let row = Started { pid, ppid: 1, pgid: pid, sid: pid, node };
        self.call(container(node), row, b"cat\0-").unwrap();
    }

    pub(crate) fn exited(&mut self, node: u16, pid: u32, status: i32) {
        self.call(container(node), Exited { pid, status }, b"").unwrap();
    }

    /// The next order of a node, if there is one. None is left waiting.
    pub(crate) fn order(&mut self, node: u16) -> Option<Order> {
        let call = self.send(container(node), Await { node }, b"");
        if self.waits(call) {
            self.cancel(call);
            return None;
        }
        Some(self.answer::<Await>(call).unwrap().unwrap().0)
    }

    /// A container has carried out an order.
    pub(crate) fn done(&mut self, node: u16, id: u64, errno: i32) {
        self.call(container(node), Done { id, errno }, b"").unwrap();
    }

    /// A container reports these processes.
    pub(crate) fn report(&mut self, node: u16, id: u64, pids: &[u32]) {
        let payload: Vec<u8> = pids.iter().flat_map(|pid| record(*pid, b"init")).collect();
        self.call(container(node), Report { id, node }, &payload).unwrap();
    }

    /// The message and payload that answered a call.
    pub(crate) fn raw_answer(&self, id: CallId) -> Option<&(Message, Vec<u8>)> {
        self.answers.get(&id)
    }

    pub(crate) fn cancel(&mut self, id: CallId) {
        self.input(|server, cx| server.cancel(id, cx));
    }

    pub(crate) fn was_interrupted(&self, id: CallId) -> bool {
        let answer = self.answers.get(&id);
        answer.is_some_and(|(message, _)| message.outcome() == Err(IpcError::Interrupted))
    }

    pub(crate) fn dies(&mut self, caller: Caller) {
        self.gone(Gone::Endpoint(caller.endpoint));
    }

    pub(crate) fn gone(&mut self, gone: Gone) {
        self.open.retain(|_, (id, _)| match gone {
            Gone::Endpoint(endpoint) => id.source != endpoint,
            Gone::Node(node) => id.source.node() != node,
        });
        self.input(|server, cx| server.gone(gone, cx));
    }

    /// Time passes, with a tick at each deadline of the server on the way.
    pub(crate) fn pass(&mut self, time: Nanos) {
        let end = self.now + time;
        while let Some(deadline) = self.server.deadline().filter(|deadline| *deadline <= end) {
            self.now = self.now.max(deadline);
            self.input(|server, cx| server.tick(cx));
            let next = self.server.deadline();
            assert!(next.is_none_or(|next| next > self.now), "a tick settles what is due");
        }
        self.now = end;
    }

    /// kill -9 of the server; a new one opens the store and gets what was not answered again.
    pub(crate) fn restart(&mut self) {
        self.crash();
        let open: Vec<(CallId, Sent)> = self.open.values().cloned().collect();
        for (id, sent) in open {
            self.deliver(id, &sent);
        }
    }

    /// As `restart`, but no call has arrived again yet.
    pub(crate) fn crash(&mut self) {
        self.server = PmServer::open(&self.store);
    }

    fn input(&mut self, act: impl FnOnce(&mut PmServer, &mut Context<'_>)) {
        let mut answers = Answers::default();
        let mut cx = Context {
            now: self.now,
            wall: EPOCH * SECOND + self.now,
            // An odd factor: different for every call, and reproducible.
            entropy: self.sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            store: &mut self.store,
            answers: &mut answers,
        };
        act(&mut self.server, &mut cx);
        for answer in answers.list {
            let sequence = answer.to.tag.sequence();
            let (id, _) = self.open.remove(&sequence).expect("only open calls are answered, once");
            assert_eq!(id, answer.to);
            assert!(answer.payload.len() <= m3ipc::limits::PAYLOAD_MAX);
            self.order.push(id);
            self.answers.insert(id, (answer.message, answer.payload));
        }
    }
}

/// One process of a report.
pub(crate) fn record(pid: u32, command: &[u8]) -> Vec<u8> {
    let command_len = u8::try_from(command.len()).unwrap();
    let process = Process { pid, ppid: 1, uid: 5, state: b'S', command_len, ..Process::default() };
    [&process.bytes()[..], command].concat()
}
