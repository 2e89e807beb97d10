//! The two walks of ARCHITECTURE.md, hop by hop: what one call of a program on node B costs when its server is on node A.
//!
//! Both kernels, the servers, `libdvsposix` and the file agent are the real ones. This file stands for what carries
//! between them: doors, lanes and the wire. Each hop is one line of the trace, so a second round trip, a frame that only
//! acknowledges, or a question about where the server is makes the comparison fail.

use calls::Row;
use calls::ipc::{SemOpen, SemPost, SemWait};
use calls::vfs::{Create, Lookup, Open, Read, Write};
use dvk::frame::{Frame, Track, decode};
use dvk::kernel::{Asker, Config, Dc, Input, Kernel, LinkId, Output, Role};
use dvk::lanes::Hosted;
use dvk::limits::PING_EVERY;
use dvk::server::{Answers, Call, Context, Nanos, Server};
use dvk::store::MemoryStore;
use ipc_server::IpcServer;
use libdvsposix::deadline::Deadline;
use libdvsposix::sem;
use m3ipc::{CallId, Cred, DcId, Endpoint, IpcError, Message, NodeId, Sendrec, Tag, Wait};
use mount::agent::{Agent, Caller, Entry, NewMode, Place};
use mount::vos_agent::VosAgent;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use vfs_server::VfsServer;

/// The servers' node, and the program's.
const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const DC: DcId = DcId(1);
const LINK: LinkId = LinkId(1);
const O_CREAT: u32 = 0o100;
const ROOT: Caller = Caller { pid: 0, uid: 0, gid: 0, request: 0 };
const USER: Caller = Caller { pid: 0, uid: 1000, gid: 1000, request: 0 };

/// A server on node A with its store.
struct Service {
    endpoint: Endpoint,
    hosted: Hosted<Box<dyn Server + Send>>,
    store: MemoryStore,
}

/// An answer that has come back to its lane.
type Landed = (Message, Vec<u8>);

/// Two nodes, what is under way between them, and what has happened.
struct Cluster {
    now: Nanos,
    kernels: BTreeMap<NodeId, Kernel>,
    services: BTreeMap<u32, Service>,
    wire: VecDeque<(NodeId, Vec<u8>)>,
    /// Calls that came over a lane of the server's own node.
    direct: BTreeSet<CallId>,
    landed: BTreeMap<CallId, Landed>,
    askers: u64,
    trace: Vec<String>,
}

impl Cluster {
    /// Both nodes are up and linked, and the servers are bound.
    fn new() -> Cluster {
        let mut cluster = Cluster {
            now: 0,
            kernels: BTreeMap::from([(A, kernel(A)), (B, kernel(B))]),
            services: BTreeMap::new(),
            wire: VecDeque::new(),
            direct: BTreeSet::new(),
            landed: BTreeMap::new(),
            askers: 0,
            trace: Vec::new(),
        };
        let (a, b) = (
            cluster.kernels[&A].hello(B).expect("both are of the cluster"),
            cluster.kernels[&B].hello(A).expect("both are of the cluster"),
        );
        cluster.step(A, Input::LinkUp { link: LINK, sent: &a, received: &b });
        cluster.step(B, Input::LinkUp { link: LINK, sent: &b, received: &a });
        let mut store = MemoryStore::default();
        let vfs = VfsServer::open(&mut store, 0).expect("a new store");
        cluster.start(Endpoint::VFS, Box::new(vfs), store);
        let store = MemoryStore::default();
        let ipc = IpcServer::open(&store);
        cluster.start(Endpoint::IPC, Box::new(ipc), store);
        cluster.trace.clear();
        cluster
    }

    fn start(&mut self, as_whom: Endpoint, server: Box<dyn Server + Send>, store: MemoryStore) {
        let hosted = Hosted::open(server, &store).expect("a new store");
        let asker = self.asker();
        let (role, number) = (Role::Server(as_whom.index()), as_whom.index());
        let hello = Input::Hello { asker, dc: DC, role, pid: number, nonce: 0, privileged: true };
        let out = self.step_kernel(A, hello);
        let Some(Output::Welcome { endpoint, .. }) = out.first() else { panic!("{out:?}") };
        self.services.insert(number, Service { endpoint: *endpoint, hosted, store });
        for output in out {
            self.carry_out(A, output);
        }
    }

    fn asker(&mut self) -> Asker {
        self.askers += 1;
        Asker(self.askers)
    }

    fn step_kernel(&mut self, node: NodeId, input: Input<'_>) -> Vec<Output> {
        let mut out = Vec::new();
        self.kernels.get_mut(&node).expect("A or B").step(self.now, input, &mut out);
        out
    }

    /// One input to a kernel, and everything that follows from it on both nodes.
    fn step(&mut self, node: NodeId, input: Input<'_>) {
        for output in self.step_kernel(node, input) {
            self.carry_out(node, output);
        }
        self.carry();
    }

    /// Carries what is on the wire, and what follows from it, until nothing is.
    fn carry(&mut self) {
        while let Some((to, bytes)) = self.wire.pop_front() {
            let (packet, length) = decode(&bytes).expect("a whole frame");
            assert_eq!(length, bytes.len());
            let from = if to == A { B } else { A };
            self.trace.push(describe(from, to, packet.received, &packet.frame));
            // All that the walks send is small.
            let track = Track::Small;
            let packet = Input::Packet { node: from, link: LINK, track, packet: &packet };
            for output in self.step_kernel(to, packet) {
                self.carry_out(to, output);
            }
        }
    }

    fn carry_out(&mut self, node: NodeId, output: Output) {
        let dvkd = name_of(node);
        match output {
            Output::Send { node: to, bytes, .. } => self.wire.push_back((to, bytes.to_vec())),
            Output::Deliver { to, cred, message, payload, .. } => {
                let server = to.index();
                self.note(format!("{dvkd} -> {}: {}", server_name(server), row(message.call)));
                self.serve(server, cred, message, &payload);
            }
            Output::AnswerLocal { id, message, payload, .. } => {
                self.note(format!("{dvkd} -> program: answer, {} bytes", payload.len()));
                self.landed.insert(id, (message, payload.to_vec()));
            }
            Output::Gone { to, gone, number, .. } => {
                self.input(to.index(), |hosted, cx| hosted.told(number, gone, cx));
            }
            Output::Welcome { .. } => self.note(format!("{dvkd} -> program: WELCOME")),
            Output::Channel { via, .. } => {
                let receiver =
                    via.map_or("the server".into(), |via| format!("{dvkd} for {}", name_of(via)));
                self.note(format!("{dvkd} -> program: CHANNEL, its receiver is {receiver}"));
            }
            other => self.note(format!("{dvkd}: {other:?}")),
        }
    }

    /// A request has come to a server on one of its channels.
    fn serve(&mut self, server: u32, cred: Cred, message: Message, payload: &[u8]) {
        let id = CallId { source: message.source, tag: message.tag };
        let call = Call { id, cred: &cred, message: &message, payload };
        self.input(server, |hosted, cx| hosted.request(&call, cx));
    }

    fn input(
        &mut self,
        server: u32,
        input: impl FnOnce(&mut Hosted<Box<dyn Server + Send>>, &mut Context<'_>),
    ) {
        let service = self.services.get_mut(&server).expect("it was started");
        let from = service.endpoint;
        let mut answers = Answers::default();
        let (now, store) = (self.now, &mut service.store);
        let mut cx = Context { now, wall: 0, entropy: 1, store, answers: &mut answers };
        input(&mut service.hosted, &mut cx);
        for answer in answers.list {
            let (id, message, payload) = (answer.to, answer.message, answer.payload);
            let to = if self.direct.remove(&id) { "program" } else { name_of(A) };
            let (who, bytes) = (server_name(server), payload.len());
            self.note(format!("{who} -> {to}: answer, {bytes} bytes"));
            if to == "program" {
                self.landed.insert(id, (message, payload));
                continue;
            }
            let input =
                Input::LocalAnswer { dc: DC, from, id, message: &message, payload: &payload };
            for output in self.step_kernel(A, input) {
                self.carry_out(A, output);
            }
        }
    }

    fn note(&mut self, line: String) {
        self.trace.push(line);
    }
}

fn lock(cluster: &Mutex<Cluster>) -> MutexGuard<'_, Cluster> {
    cluster.lock().expect("a test is one thread")
}

fn kernel(node: NodeId) -> Kernel {
    let nodes = BTreeSet::from([A, B]);
    let servers = BTreeMap::from([(Endpoint::VFS.slot, A), (Endpoint::IPC.slot, A)]);
    let dcs = vec![Dc { id: DC, nodes: nodes.clone(), servers }];
    let incarnation = u64::from(node.0);
    Kernel::new(Config { node, incarnation, first_generation: 1, peers: nodes, dcs }, 0)
}

fn name_of(node: NodeId) -> &'static str {
    if node == A { "dvkd A" } else { "dvkd B" }
}

fn server_name(number: u32) -> &'static str {
    if Endpoint::server(number) == Endpoint::VFS { "vfs-server" } else { "ipc-server" }
}

fn row(call: u16) -> &'static str {
    let rows = [
        (SemOpen::NUMBER, SemOpen::NAME),
        (SemWait::NUMBER, SemWait::NAME),
        (SemPost::NUMBER, SemPost::NAME),
        (Lookup::NUMBER, Lookup::NAME),
        (Create::NUMBER, Create::NAME),
        (Open::NUMBER, Open::NAME),
        (Read::NUMBER, Read::NAME),
        (Write::NUMBER, Write::NAME),
    ];
    rows.iter().find(|(number, _)| *number == call).map_or("another call", |(_, name)| name)
}

/// A frame on the wire. `received` in its header is all the acknowledgement there is.
fn describe(from: NodeId, to: NodeId, received: u64, frame: &Frame<'_>) -> String {
    let what = match frame {
        Frame::Request(request) => {
            format!("Request {}, {} bytes", row(request.message.call), request.payload.len())
        }
        Frame::Answer(answer) => {
            format!("Answer {}, {} bytes", row(answer.message.call), answer.payload.len())
        }
        other => format!("{other:?}"),
    };
    format!("{} => {}: {what}, received {received}", name_of(from), name_of(to))
}

/// The client half in a process: it says hello and opens a channel once, then each call is one lane.
#[derive(Clone)]
struct Program {
    cluster: Arc<Mutex<Cluster>>,
    node: NodeId,
    role: Role,
    client: Arc<Mutex<Client>>,
}

/// What a client remembers.
#[derive(Default)]
struct Client {
    endpoint: Option<Endpoint>,
    /// Slots of the servers it has a channel with.
    channels: BTreeSet<u32>,
    /// Number of its last call.
    sequence: u64,
}

impl Program {
    fn new(cluster: &Arc<Mutex<Cluster>>, node: NodeId, role: Role) -> Program {
        Program { cluster: cluster.clone(), node, role, client: Arc::default() }
    }

    fn agent(cluster: &Arc<Mutex<Cluster>>, node: NodeId) -> VosAgent<Program> {
        VosAgent::new(Program::new(cluster, node, Role::Agent))
    }

    fn cluster(&self) -> MutexGuard<'_, Cluster> {
        lock(&self.cluster)
    }

    /// Puts a call on a lane; its name.
    fn post(&self, to: Endpoint, message: &Message, send: &[&[u8]]) -> CallId {
        let mut cluster = self.cluster();
        let (source, sequence) = self.connect(&mut cluster, to);
        let tag = Tag::new(0, sequence);
        let id = CallId { source, tag };
        let bytes = send.concat();
        // An agent's channel is trusted: dvkd, or the server, takes the credentials off.
        let (cred, payload) = match self.role {
            Role::Agent => Cred::decode(&bytes).expect("an agent puts them there"),
            _ => (Cred::new(100, 1000, 1000), &bytes[..]),
        };
        let payload_len = u32::try_from(payload.len()).expect("a small payload");
        let message = Message { source, tag, payload_len, ..*message };
        if self.node == A {
            cluster.note(format!("program -> {}: {}", server_name(to.index()), row(message.call)));
            cluster.direct.insert(id);
            cluster.serve(to.index(), cred, message, payload);
            cluster.carry();
        } else {
            cluster.note(format!("program -> {}: {}", name_of(self.node), row(message.call)));
            let input = Input::LocalRequest { dc: DC, to, cred: &cred, message: &message, payload };
            cluster.step(self.node, input);
        }
        id
    }

    /// Takes an answer off its lane.
    fn take(&self, id: CallId) -> Option<Landed> {
        self.cluster().landed.remove(&id)
    }

    fn connect(&self, cluster: &mut Cluster, to: Endpoint) -> (Endpoint, u64) {
        let client = &mut *self.client.lock().expect("a test is one thread");
        let dvkd = name_of(self.node);
        let from = *client.endpoint.get_or_insert_with(|| {
            let asker = cluster.asker();
            let pid = 100 + u32::try_from(cluster.askers).expect("few askers");
            cluster.note(format!("program -> {dvkd}: HELLO"));
            let (dc, role) = (DC, self.role);
            let hello = Input::Hello { asker, dc, role, pid, nonce: 0, privileged: true };
            cluster.step(self.node, hello);
            let endpoints = cluster.kernels[&self.node].endpoints(DC);
            endpoints
                .filter(|bound| bound.pid == pid)
                .map(|bound| bound.endpoint)
                .next()
                .expect("it was welcome")
        });
        if client.channels.insert(to.slot) {
            let asker = cluster.asker();
            cluster.note(format!("program -> {dvkd}: OPEN {}", server_name(to.index())));
            cluster.step(self.node, Input::Open { asker, dc: DC, from, to });
        }
        client.sequence += 1;
        (from, client.sequence)
    }
}

impl Sendrec for Program {
    fn sendrec(
        &self,
        to: Endpoint,
        message: &mut Message,
        send: &[&[u8]],
        receive: &mut [u8],
        _: Wait,
    ) -> Result<usize, IpcError> {
        let id = self.post(to, message, send);
        let (answer, payload) = self.take(id).expect("the call is not kept");
        receive[..payload.len()].copy_from_slice(&payload);
        *message = answer;
        Ok(payload.len())
    }
}

fn cluster() -> Arc<Mutex<Cluster>> {
    Arc::new(Mutex::new(Cluster::new()))
}

/// Compares what has happened since the last look.
fn check(cluster: &Arc<Mutex<Cluster>>, expected: &[&str]) {
    let trace = std::mem::take(&mut lock(cluster).trace);
    assert_eq!(trace, expected, "{}", trace.join("\n"));
}

/// As `check`; ARCHITECTURE.md quotes these lines.
fn check_quoted(cluster: &Arc<Mutex<Cluster>>, expected: &[&str]) {
    let quotation: String = expected.iter().map(|line| format!("    {line}\n")).collect();
    let page = include_str!("../../ARCHITECTURE.md");
    assert!(page.contains(&quotation), "ARCHITECTURE.md does not quote\n{quotation}");
    check(cluster, expected);
}

/// No frame follows a call later on: the next one's header acknowledges it, or the next ping's.
fn check_silence(cluster: &Arc<Mutex<Cluster>>) {
    {
        let mut cluster = lock(cluster);
        cluster.now += PING_EVERY - 1;
        cluster.step(A, Input::Tick);
        cluster.step(B, Input::Tick);
    }
    check(cluster, &[]);
}

#[test]
fn sem_wait_is_one_round_trip_of_six_messages() {
    let cluster = cluster();
    let program = Program::new(&cluster, B, Role::Process);
    let id = sem::open(&program, b"/walk", O_CREAT, 0o600, 2).expect("the walk is on its way");
    // Its first call: where ipc-server is, dvkd B knows from the directory.
    check(
        &cluster,
        &[
            "program -> dvkd B: HELLO",
            "dvkd B -> program: WELCOME",
            "program -> dvkd B: OPEN ipc-server",
            "dvkd B -> program: CHANNEL, its receiver is dvkd B for dvkd A",
            "program -> dvkd B: SemOpen",
            "dvkd B => dvkd A: Request SemOpen, 5 bytes, received 0",
            "dvkd A -> ipc-server: SemOpen",
            "ipc-server -> dvkd A: answer, 0 bytes",
            "dvkd A => dvkd B: Answer SemOpen, 0 bytes, received 1",
            "dvkd B -> program: answer, 0 bytes",
        ],
    );
    sem::wait(&program, id, Deadline::Never).expect("the walk is on its way");
    check_quoted(
        &cluster,
        &[
            "program -> dvkd B: SemWait",
            "dvkd B => dvkd A: Request SemWait, 0 bytes, received 1",
            "dvkd A -> ipc-server: SemWait",
            "ipc-server -> dvkd A: answer, 0 bytes",
            "dvkd A => dvkd B: Answer SemWait, 0 bytes, received 2",
            "dvkd B -> program: answer, 0 bytes",
        ],
    );
    check_silence(&cluster);
}

#[test]
fn sem_wait_that_blocks_costs_no_message_more() {
    let cluster = cluster();
    let poster = Program::new(&cluster, A, Role::Process);
    let id = sem::open(&poster, b"/walk", O_CREAT, 0o666, 0).expect("the walk is on its way");
    let waiter = Program::new(&cluster, B, Role::Process);
    assert_eq!(sem::open(&waiter, b"/walk", 0, 0, 0), Ok(id));
    lock(&cluster).trace.clear();

    let mut message = Message::request(SemWait::NUMBER);
    SemWait { id, wait_ns: calls::ipc::FOREVER }.put(&mut message.args);
    let call = waiter.post(Endpoint::IPC, &message, &[]);
    check(
        &cluster,
        &[
            "program -> dvkd B: SemWait",
            "dvkd B => dvkd A: Request SemWait, 0 bytes, received 1",
            "dvkd A -> ipc-server: SemWait",
        ],
    );
    assert!(waiter.take(call).is_none(), "the call is kept");

    sem::post(&poster, id).expect("the walk is on its way");
    check(
        &cluster,
        &[
            "program -> ipc-server: SemPost",
            "ipc-server -> dvkd A: answer, 0 bytes",
            "ipc-server -> program: answer, 0 bytes",
            "dvkd A => dvkd B: Answer SemWait, 0 bytes, received 2",
            "dvkd B -> program: answer, 0 bytes",
        ],
    );
    let (answer, _) = waiter.take(call).expect("the post ends the wait");
    assert_eq!(answer.outcome(), Ok(Ok(())));
    check_silence(&cluster);
}

#[test]
fn open_and_read_are_one_round_trip_for_each_request_of_the_kernel() {
    let cluster = cluster();
    let entry = Entry { parent: 1, name: b"walk" };
    let maker = Program::agent(&cluster, A);
    let new = NewMode { mode: 0o644, umask: 0 };
    let (_, file) = maker.create(ROOT, entry, new, 2).expect("the walk is on its way");
    maker.write(ROOT, file, Place::Offset(0), b"hello world").expect("the walk is on its way");
    let door = Program::agent(&cluster, B);
    door.lookup(USER, entry).expect("the walk is on its way");
    lock(&cluster).trace.clear();

    // open(2) of one name below the mount: the kernel asks what it is, since it may not remember, and opens it.
    let found = door.lookup(USER, entry).expect("the walk is on its way");
    let ino = found.told.expect("it is there").attr.ino;
    let (fh, _) = door.open(USER, ino, 0).expect("the walk is on its way");
    check_quoted(
        &cluster,
        &[
            "program -> dvkd B: Lookup",
            "dvkd B => dvkd A: Request Lookup, 4 bytes, received 1",
            "dvkd A -> vfs-server: Lookup",
            "vfs-server -> dvkd A: answer, 84 bytes",
            "dvkd A => dvkd B: Answer Lookup, 84 bytes, received 2",
            "dvkd B -> program: answer, 84 bytes",
            "program -> dvkd B: Open",
            "dvkd B => dvkd A: Request Open, 0 bytes, received 2",
            "dvkd A -> vfs-server: Open",
            "vfs-server -> dvkd A: answer, 0 bytes",
            "dvkd A => dvkd B: Answer Open, 0 bytes, received 3",
            "dvkd B -> program: answer, 0 bytes",
        ],
    );
    // read(2): the data ride in the answer, as long as they are and not as long as was asked for.
    let mut buffer = [0; 4096];
    let file = mount::agent::OpenFile { ino, fh };
    assert_eq!(door.read(USER, file, 0, &mut buffer), Ok(11));
    assert_eq!(&buffer[..11], b"hello world");
    check_quoted(
        &cluster,
        &[
            "program -> dvkd B: Read",
            "dvkd B => dvkd A: Request Read, 0 bytes, received 3",
            "dvkd A -> vfs-server: Read",
            "vfs-server -> dvkd A: answer, 11 bytes",
            "dvkd A => dvkd B: Answer Read, 11 bytes, received 4",
            "dvkd B -> program: answer, 11 bytes",
        ],
    );
    check_silence(&cluster);
}
