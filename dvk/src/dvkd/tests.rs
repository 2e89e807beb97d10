//! Daemons, links, a server process and clients together, on the loopback interface.

mod compression;
mod imposters;
mod programs;
mod sessions;
mod system;

use super::*;
use crate::dvkd::certificate::{Clock, seconds};
use crate::frame::{Frame, Hello, Packet, Track};
use crate::host::solo;
use crate::limits::{CERTIFICATE_LIFE, HANDSHAKE_TIMEOUT};
use crate::server::{Call, Context, Gone, Nanos, Server};
use crate::store::Store;
use m3ipc::bell::Bell;
use m3ipc::channel::SharedChannel;
use m3ipc::client::{Identity, Process};
use m3ipc::connection::Connection;
use m3ipc::door::{Ask, ask, kind};
use m3ipc::limits::{LANES, PAYLOAD_MAX};
use m3ipc::port::Signals;
use m3ipc::{CallId, Cred, DcId, Endpoint, IpcError, Message, NodeId, Rights, Sendrec, Tag, Wait};
use rustix::fd::AsFd;
use std::net::TcpStream;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

/// Answers the request's payload.
const ECHO: u16 = 0x100;
/// Adds one to a counter, once per call, and answers it.
const ADD: u16 = 0x101;
/// The counter.
const GET: u16 = 0x102;
/// Waits for the next `RELEASE`.
const KEEP: u16 = 0x103;
const RELEASE: u16 = 0x104;
/// The caller's credentials, encoded, and its endpoint.
const WHO: u16 = 0x105;
/// How many calls are kept.
const KEPT: u16 = 0x106;

/// The server of these tests.
struct Toy {
    kept: Vec<CallId>,
}

impl Server for Toy {
    fn serve(&mut self, call: &Call<'_>, cx: &mut Context<'_>) {
        let reply = Message::request(call.message.call);
        match call.message.call {
            ECHO => cx.answer(call.id, reply, call.payload),
            ADD => {
                let value = count(cx.store) + 1;
                cx.store.put(b"count", &value.to_le_bytes());
                cx.answer(call.id, reply, value.to_le_bytes());
            }
            GET => cx.answer(call.id, reply, count(cx.store).to_le_bytes()),
            KEEP => self.kept.push(call.id),
            RELEASE => {
                for kept in std::mem::take(&mut self.kept) {
                    cx.answer(kept, Message::request(KEEP), []);
                }
                cx.answer(call.id, reply, []);
            }
            WHO => {
                let mut cred = [0; m3ipc::cred::CRED_SIZE_MAX];
                let len = call.cred.encode(&mut cred);
                let mut payload = cred[..len].to_vec();
                payload.extend(call.id.source.to_bits().to_le_bytes());
                cx.answer(call.id, reply, payload);
            }
            KEPT => cx.answer(call.id, reply, (self.kept.len() as u64).to_le_bytes()),
            other => cx.end(call.id, other, IpcError::Protocol),
        }
    }
    fn cancel(&mut self, id: CallId, cx: &mut Context<'_>) {
        if let Some(at) = self.kept.iter().position(|kept| *kept == id) {
            self.kept.remove(at);
            cx.end(id, KEEP, IpcError::Interrupted);
        }
    }
    fn gone(&mut self, gone: Gone, _: &mut Context<'_>) {
        self.kept.retain(|kept| match gone {
            Gone::Endpoint(endpoint) => kept.source != endpoint,
            Gone::Node(node) => kept.source.node() != node,
        });
    }
    fn tick(&mut self, _: &mut Context<'_>) {}
    fn deadline(&self) -> Option<Nanos> {
        None
    }
    fn once(&self, message: &Message) -> bool {
        message.call == ADD
    }
}

fn count(store: &dyn Store) -> u64 {
    store.get(b"count").map_or(0, |value| u64::from_le_bytes(value.try_into().unwrap()))
}

const CHILD_SOCKET: &str = "DVK_TEST_SOCKET";
const CHILD_STORE: &str = "DVK_TEST_STORE";
const CHILD_ROLE: &str = "DVK_TEST_ROLE";

/// Not a test by itself: the body of the processes that the tests start.
#[test]
fn child_process() {
    let Some(socket) = std::env::var_os(CHILD_SOCKET).map(PathBuf::from) else { return };
    match std::env::var(CHILD_ROLE).as_deref() {
        Ok("server") => {
            let store = PathBuf::from(std::env::var_os(CHILD_STORE).unwrap());
            solo::run(1, &socket, &store, |_| Ok(Toy { kept: Vec::new() })).unwrap();
        }
        Ok("holder") => programs::hold(&socket),
        Ok("keeper") => {
            // Waits in the server until it is killed.
            client(&socket).call(KEEP, &[]).ok();
        }
        other => panic!("{other:?}"),
    }
}

/// A child process, killed at the latest when the test ends.
struct Guard(Child);

impl Guard {
    fn start(role: &str, socket: &Path, store: &Path) -> Guard {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "dvkd::tests::child_process"])
            .env(CHILD_ROLE, role)
            .env(CHILD_SOCKET, socket)
            .env(CHILD_STORE, store)
            .stdout(Stdio::null())
            .spawn();
        Guard(child.unwrap())
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A clock that goes only when it is told to.
#[derive(Debug)]
pub(super) struct TestClock(AtomicU64);

impl TestClock {
    fn forward(&self, time: Duration) {
        self.0.fetch_add(time.as_secs(), Ordering::SeqCst);
    }
}

impl rustls::time_provider::TimeProvider for TestClock {
    fn current_time(&self) -> Option<rustls::pki_types::UnixTime> {
        let seconds = self.0.load(Ordering::SeqCst);
        Some(rustls::pki_types::UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

/// A clock that stands at so many seconds after 1970.
pub(super) fn clock_at(seconds: u64) -> Clock {
    Arc::new(TestClock(AtomicU64::new(seconds)))
}

/// A cluster of daemons; the servers of its container are at home on node 1.
struct Cluster {
    dir: tempfile::TempDir,
    configs: Vec<Config>,
    daemons: Vec<Option<Daemon>>,
    /// Of all daemons; it stands at the time of the start.
    clock: Arc<TestClock>,
}

impl Cluster {
    fn start(nodes: u16) -> Cluster {
        Cluster::start_with(nodes, &[])
    }

    /// With more containers than the one of all nodes.
    fn start_with(nodes: u16, more: &[Dc]) -> Cluster {
        Cluster::start_as(nodes, more, |_| {})
    }

    /// With configurations that have been changed.
    fn start_as(nodes: u16, more: &[Dc], change: impl Fn(&mut Config)) -> Cluster {
        let lab = Dc {
            id: 1,
            name: "lab".into(),
            nodes: (1..=nodes).collect(),
            home: 1,
            maps: Vec::new(),
        };
        let dcs = [&[lab], more].concat();
        let dir = tempfile::tempdir().unwrap();
        let ports: Vec<_> = (0..nodes).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses: Vec<_> = ports.iter().map(|port| port.local_addr().unwrap()).collect();
        drop(ports);
        let mut configs: Vec<Config> = (1..=nodes)
            .map(|node| Config {
                node,
                name: format!("n{node}"),
                listen: addresses[usize::from(node) - 1],
                run: dir.path().join(format!("run{node}")),
                store: dir.path().join(format!("store{node}")),
                credentials: Some(dir.path().join(format!("credentials{node}"))),
                command: Vec::new(),
                servers_inside: false,
                compression: Packing::Never,
                dcs: dcs.iter().filter(|dc| dc.nodes.contains(&node)).cloned().collect(),
            })
            .collect();
        configs.iter_mut().for_each(change);
        let places = configs.iter().map(|config| {
            let Config { node, name, listen, credentials, .. } = config.clone();
            (Peer { node, name, address: listen }, credentials.unwrap())
        });
        found(&places.collect::<Vec<_>>()).unwrap();
        let clock = Arc::new(TestClock(AtomicU64::new(seconds(&system_clock()))));
        let mut cluster = Cluster { dir, configs, daemons: Vec::new(), clock };
        for config in cluster.configs.clone() {
            cluster.daemons.push(Some(cluster.start_daemon(config)));
        }
        cluster
    }

    fn start_daemon(&self, config: Config) -> Daemon {
        Daemon::start_at(config, self.clock.clone()).unwrap()
    }

    fn membership(&self, node: usize) -> &Membership {
        &self.daemon(node).shared.linking.as_ref().unwrap().membership
    }

    /// The nodes to which `node` has a link.
    fn linked(&self, node: usize) -> Vec<u16> {
        let status = self.daemon(node).status();
        status.nodes[1..].iter().filter(|one| one.up).map(|one| one.node).collect()
    }

    fn wait_for_links(&self) {
        for (node, daemon) in (1..).zip(&self.daemons) {
            let Some(daemon) = daemon else { continue };
            let all = || daemon.status().nodes.iter().all(|one| one.up);
            wait_until(&format!("node {node} has all links"), all);
        }
    }

    fn socket(&self, node: usize) -> PathBuf {
        self.configs[node - 1].socket("lab")
    }

    fn server(&self) -> Guard {
        Guard::start("server", &self.socket(1), &self.dir.path().join("toy"))
    }

    fn client(&self, node: usize) -> Client {
        client(&self.socket(node))
    }

    fn daemon(&self, node: usize) -> &Daemon {
        self.daemons[node - 1].as_ref().unwrap()
    }

    fn stop(&mut self, node: usize) {
        self.daemons[node - 1].take().unwrap().stop();
    }

    fn cut_links(&self) {
        for daemon in self.daemons.iter().flatten() {
            daemon.shared.with(|node| node.links.values().for_each(|link| link.close()));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            if let Some(daemon) = daemon.take() {
                daemon.stop();
            }
        }
    }
}

/// A client of the toy server.
struct Client(Process);

fn client(socket: &Path) -> Client {
    Client(Process::new(Identity::new(kind::PROCESS, 0, socket.as_os_str().as_bytes())))
}

impl Client {
    fn call(&self, call: u16, payload: &[u8]) -> Result<Vec<u8>, IpcError> {
        self.call_for(call, payload, Wait::FOREVER)
    }

    fn call_for(&self, call: u16, payload: &[u8], wait: Wait) -> Result<Vec<u8>, IpcError> {
        let mut message = Message::request(call);
        let mut answer = vec![0; PAYLOAD_MAX];
        let len =
            self.0.sendrec(Endpoint::server(1), &mut message, &[payload], &mut answer, wait)?;
        answer.truncate(len);
        Ok(answer)
    }

    fn number(&self, call: u16) -> u64 {
        u64::from_le_bytes(self.call(call, &[]).unwrap().try_into().unwrap())
    }
}

/// Waits until `condition`; ten seconds are "never".
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < limit, "never: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_local_call_reaches_the_server_with_the_callers_true_credentials() {
    let cluster = Cluster::start(1);
    let _server = cluster.server();
    let client = cluster.client(1);
    assert_eq!(client.call(ECHO, b"hello").unwrap(), b"hello");
    let who = client.call(WHO, &[]).unwrap();
    let (cred, source) = Cred::decode(&who).unwrap();
    let (endpoint, node) = client.0.whoami().unwrap();
    assert_eq!((cred.pid, cred.uid), (std::process::id(), rustix::process::getuid().as_raw()));
    assert_eq!(source, endpoint.to_bits().to_le_bytes());
    assert_eq!((node, endpoint.node()), (NodeId(1), NodeId(1)));
}

#[test]
fn a_call_from_another_node_is_a_call_like_any_other() {
    let cluster = Cluster::start(2);
    let _server = cluster.server();
    let client = cluster.client(2);
    for len in [0, 1, 5000, PAYLOAD_MAX] {
        let payload: Vec<u8> = (0..len).map(|index| u8::try_from(index % 251).unwrap()).collect();
        assert_eq!(client.call(ECHO, &payload).unwrap(), payload);
    }
    let who = client.call(WHO, &[]).unwrap();
    let (cred, source) = Cred::decode(&who).unwrap();
    assert_eq!(cred.pid, std::process::id());
    assert_eq!(source, client.0.whoami().unwrap().0.to_bits().to_le_bytes());
    assert_eq!(client.call(0x1ff, &[]), Err(IpcError::Protocol));
    let status = cluster.daemon(2).status();
    assert!(status.nodes.iter().all(|node| node.up), "{status:?}");
    assert!(status.counters.calls_out >= 5 && status.counters.protocol_errors == 0, "{status:?}");
}

#[test]
fn every_add_counts_once_although_the_server_is_killed_and_links_are_cut() {
    let cluster = Cluster::start(2);
    let mut server = cluster.server();
    let clients = [cluster.client(1), cluster.client(2)];
    let done = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for client in &clients {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !stop.load(Ordering::SeqCst) {
                        client.call(ADD, &[]).unwrap();
                        done.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        }
        for round in 0..6 {
            let before = done.load(Ordering::SeqCst);
            wait_until("calls get on", || done.load(Ordering::SeqCst) > before + 200);
            if round % 2 == 0 {
                server.kill();
                server = cluster.server();
            } else {
                cluster.cut_links();
            }
        }
        stop.store(true, Ordering::SeqCst);
    });
    assert_eq!(clients[0].number(GET), done.load(Ordering::SeqCst));
}

#[test]
fn a_call_given_up_ends_at_once_on_any_node_and_the_lane_is_free_again() {
    let cluster = Cluster::start(2);
    let _server = cluster.server();
    for node in [1, 2] {
        let client = cluster.client(node);
        for _ in 0..3 {
            let wait = Wait { timeout_ms: Some(20), signals: Signals::Ignore };
            assert_eq!(client.call_for(KEEP, &[], wait), Err(IpcError::TimedOut), "node {node}");
        }
        assert_eq!(client.number(KEPT), 0);
    }
}

#[test]
fn more_calls_wait_than_a_channel_has_lanes() {
    let cluster = Cluster::start(2);
    let _server = cluster.server();
    let client = cluster.client(2);
    let waiters = 2 * LANES + 10;
    std::thread::scope(|scope| {
        for _ in 0..waiters {
            scope.spawn(|| client.call(KEEP, &[]).unwrap());
        }
        wait_until("all are kept", || client.number(KEPT) == waiters as u64);
        client.call(RELEASE, &[]).unwrap();
    });
    assert_eq!(client.number(KEPT), 0);
}

#[test]
fn a_client_that_is_killed_while_it_waits_is_forgotten_by_the_server() {
    let cluster = Cluster::start(2);
    let _server = cluster.server();
    for node in [1, 2] {
        let client = cluster.client(node);
        let mut keeper = Guard::start("keeper", &cluster.socket(node), cluster.dir.path());
        wait_until("the call is kept", || client.number(KEPT) == 1);
        keeper.kill();
        wait_until("the call is forgotten", || client.number(KEPT) == 0);
    }
    assert_eq!(cluster.daemon(1).status().dcs[0].endpoints, 2, "the server and this process");
}

#[test]
fn kept_calls_of_other_nodes_survive_the_server() {
    let cluster = Cluster::start(2);
    let mut server = cluster.server();
    let (one, two) = (cluster.client(1), cluster.client(2));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| two.call(KEEP, &[]));
        wait_until("the call is kept", || one.number(KEPT) == 1);
        server.kill();
        server = cluster.server();
        wait_until("the call is kept again", || one.number(KEPT) == 1);
        one.call(RELEASE, &[]).unwrap();
        assert_eq!(waiting.join().unwrap(), Ok(vec![]));
    });
}

#[test]
fn a_node_that_goes_down_ends_the_calls_that_wait_for_it() {
    let mut cluster = Cluster::start(2);
    let server = cluster.server();
    let client = cluster.client(2);
    assert_eq!(client.call(ECHO, b"x").unwrap(), b"x");
    drop(server);
    cluster.stop(1);
    assert_eq!(client.call(ECHO, b"x"), Err(IpcError::NodeDown));
    assert!(!cluster.daemon(2).status().nodes[1].up);
}

#[test]
fn garbage_at_the_door_closes_its_connection_and_disturbs_nobody() {
    let cluster = Cluster::start(1);
    let _server = cluster.server();
    let client = cluster.client(1);
    client.call(ECHO, b"before").unwrap();
    let path = cluster.socket(1);
    let hello = Ask::hello(kind::PROCESS, 0, 7);
    let open = Ask::open(Endpoint::server(1));
    let strange: Vec<Vec<u8>> = vec![
        vec![0xff; 31],
        vec![0; 32],
        vec![1; 4096],
        open.as_bytes().to_vec(),
        Ask { kind: 99, ..hello }.as_bytes().to_vec(),
        Ask { op: 77, ..hello }.as_bytes().to_vec(),
        Ask { kind: kind::SERVER, number: 1, ..hello }.as_bytes().to_vec(),
        Ask { kind: kind::PEER, ..hello }.as_bytes().to_vec(),
    ];
    for packet in strange {
        let connection = Connection::connect(path.as_os_str().as_bytes()).unwrap();
        rustix::net::send(&connection, &packet, rustix::net::SendFlags::NOSIGNAL).unwrap();
        assert_eq!(connection.hear().err(), Some(IpcError::NotBound), "{packet:?}");
    }
    // A bell that is none, and one that is not wanted.
    for kind in [kind::PEER, kind::PROCESS] {
        let connection = Connection::connect(path.as_os_str().as_bytes()).unwrap();
        let file = tempfile::tempfile().unwrap();
        let asked = Ask { kind, ..hello };
        assert_eq!(connection.hello(asked, Some(file.as_fd())).err(), Some(IpcError::NotBound));
    }
    assert_eq!(client.call(ECHO, b"after").unwrap(), b"after");
    assert!(cluster.daemon(1).status().counters.protocol_errors >= 8);
}

#[test]
fn a_process_that_lives_in_another_container_is_not_let_in() {
    let cluster = Cluster::start(1);
    let _server = cluster.server();
    let enter = |kind| {
        let connection = Connection::connect(cluster.socket(1).as_os_str().as_bytes()).unwrap();
        connection.hello(Ask::hello(kind, 0, 77), None).err()
    };
    let confined = &cluster.daemon(1).shared.confined;
    confined.started(std::process::id(), DcId(2));
    for kind in [kind::PROCESS, kind::CONTAINER] {
        assert_eq!(enter(kind), Some(IpcError::Denied));
    }
    confined.ended(std::process::id());
    confined.started(std::process::id(), DcId(1));
    assert_eq!(cluster.client(1).call(ECHO, b"in its own").unwrap(), b"in its own");
}

#[test]
fn a_notification_does_not_keep_a_server_awake_that_takes_none() {
    let cluster = Cluster::start(1);
    let _server = cluster.server();
    let connection = Connection::connect(cluster.socket(1).as_os_str().as_bytes()).unwrap();
    connection.hello(Ask::hello(kind::PROCESS, 0, 7), None).unwrap();
    let opened = connection.open(Endpoint::server(1)).unwrap();
    let channel = SharedChannel::map(opened.channel.as_fd()).unwrap();
    let ringer = m3ipc::bell::Ringer::map(opened.bell.as_fd()).unwrap();
    channel.notify(7).unwrap();
    // What is not taken out stays news: the server would never sleep again.
    let deadline = Instant::now() + Duration::from_secs(10);
    while channel.has_news() {
        assert!(Instant::now() < deadline, "the notification is still there");
        let _heard = ringer.ring();
        std::thread::yield_now();
    }
}

#[test]
fn a_server_takes_nothing_from_a_channel_that_was_closed_whatever_is_written_into_it() {
    let cluster = Cluster::start(1);
    let _server = cluster.server();
    let other = cluster.client(1);
    let connection = Connection::connect(cluster.socket(1).as_os_str().as_bytes()).unwrap();
    let (_bell, bell) = Bell::create().unwrap();
    let endpoint =
        connection.hello(Ask::hello(kind::PEER, 0, 7), Some(bell.as_fd())).unwrap().endpoint;
    let opened = connection.open(Endpoint::server(1)).unwrap();
    let channel = SharedChannel::map(opened.channel.as_fd()).unwrap();
    let ringer = m3ipc::bell::Ringer::map(opened.bell.as_fd()).unwrap();
    let add = |sequence| {
        let message = Message { tag: Tag::new(0, sequence), ..Message::request(ADD) };
        channel.post(0, &message, &[]).unwrap();
        assert!(ringer.ring());
    };
    add(1);
    wait_until("it is answered", || channel.is_answered(0, Tag::new(0, 1)));
    assert_eq!(other.number(GET), 1);
    let rights = Rights { calls: 0, ..Rights::of_level(m3ipc::rights::level::USER) };
    let mut ask = Ask::new(ask::SET_RIGHTS, endpoint);
    ask.data[..size_of::<Rights>()].copy_from_slice(rights.as_bytes());
    connection.ask(&ask, None).unwrap();
    wait_until("it is closed", || channel.closed().is_some());
    // A channel of later: the server has heard of everything before.
    let third = Connection::connect(cluster.socket(1).as_os_str().as_bytes()).unwrap();
    third.hello(Ask::hello(kind::PEER, 0, 8), Some(bell.as_fd())).unwrap();
    let opened_later = third.open(Endpoint::server(1)).unwrap();
    let later = SharedChannel::map(opened_later.channel.as_fd()).unwrap();
    later.post(0, &Message { tag: Tag::new(0, 1), ..Message::request(GET) }, &[]).unwrap();
    assert!(ringer.ring());
    wait_until("it is answered", || later.is_answered(0, Tag::new(0, 1)));
    // Where it says that it is closed, behind magic and version.
    std::fs::File::from(opened.channel).write_all_at(&[0; 4], 8).unwrap();
    assert_eq!(channel.closed(), None);
    add(2);
    assert_eq!(other.number(ADD), 2);
    assert!(!channel.is_answered(0, Tag::new(0, 2)));
}

#[test]
fn a_client_that_never_reads_blocks_nobody() {
    let cluster = Cluster::start(1);
    let _server = cluster.server();
    let connection = Connection::connect(cluster.socket(1).as_os_str().as_bytes()).unwrap();
    connection.hello(Ask::hello(kind::PROCESS, 0, 7), None).unwrap();
    // Its answers are channels; it asks until it is refused, and reads nothing.
    while connection.ask(&Ask::open(Endpoint::server(1)), None).is_ok() {}
    assert_eq!(cluster.client(1).call(ECHO, b"x").unwrap(), b"x");
}

#[test]
fn a_process_gets_channels_up_to_a_limit() {
    let cluster = Cluster::start(2);
    let _server = cluster.server();
    for node in [1, 2] {
        let connection = Connection::connect(cluster.socket(node).as_os_str().as_bytes()).unwrap();
        connection.hello(Ask::hello(kind::PROCESS, 0, 7), None).unwrap();
        for _ in 0..m3ipc::limits::CHANNELS_PER_PEER {
            connection.open(Endpoint::server(1)).unwrap();
        }
        assert_eq!(connection.open(Endpoint::server(1)).err(), Some(IpcError::Exhausted));
        assert_eq!(connection.open(Endpoint::server(9)).err(), Some(IpcError::NotBound));
    }
}

#[test]
fn garbage_on_a_link_ends_that_link_only() {
    let cluster = Cluster::start(2);
    let _server = cluster.server();
    let client = cluster.client(2);
    client.call(ECHO, b"before").unwrap();
    for garbage in [&[0xff; 100][..], &[0; 100], b"GET / HTTP/1.1\r\n\r\n"] {
        let mut stream = TcpStream::connect(cluster.configs[0].listen).unwrap();
        stream.write_all(garbage).unwrap();
        let mut rest = Vec::new();
        std::io::Read::read_to_end(&mut stream, &mut rest).ok();
        // An alert at most (RFC 8446, 6): nothing of what a node says.
        assert!(rest.is_empty() || rest.len() == 7 && rest[0] == 21, "{rest:?}");
    }
    // One that connects and says nothing holds nobody up.
    let _silent = TcpStream::connect(cluster.configs[0].listen).unwrap();
    assert_eq!(client.call(ECHO, b"after").unwrap(), b"after");
}

#[test]
fn a_daemon_that_cannot_start_says_why() {
    let cluster = Cluster::start(1);
    let config = cluster.configs[0].clone();
    let check = |config: Config, says: &str| {
        let error = format!("{:#}", Daemon::start(config).unwrap_err());
        assert!(error.contains(says), "{error:?} does not say {says:?}");
    };
    check(config.clone(), "another dvkd runs in");
    let elsewhere = Config { run: cluster.dir.path().join("other"), ..config.clone() };
    check(elsewhere.clone(), "cannot listen at 127.0.0.1:");
    std::fs::create_dir_all(&elsewhere.run).unwrap();
    std::fs::write(elsewhere.socket("lab"), "x").unwrap();
    let listen = "127.0.0.1:0".parse().unwrap();
    check(Config { listen, ..elsewhere }, "is there and is no socket");
    check(Config { node: 0, ..config }, "node 0 is not in");
}

#[test]
fn a_socket_that_a_dead_daemon_left_is_replaced_and_endpoints_are_never_given_out_twice() {
    let mut cluster = Cluster::start(1);
    let config = cluster.configs[0].clone();
    let before = cluster.client(1).0.whoami().unwrap().0;
    cluster.stop(1);
    // What kill -9 leaves.
    drop(door::bind(&config.socket("lab")).unwrap());
    drop(UnixListener::bind(config.admin_socket()).unwrap());
    std::fs::write(config.run.join("lock"), "").unwrap();
    cluster.daemons[0] = Some(cluster.start_daemon(config));
    let after = cluster.client(1).0.whoami().unwrap().0;
    assert!(
        after.generation > before.generation || after.slot != before.slot,
        "{before:?} {after:?}"
    );
}

#[test]
fn an_admin_is_told_the_status_and_waits_for_the_stop() {
    let mut cluster = Cluster::start(2);
    let run = cluster.configs[0].run.clone();
    wait_until("the link is up", || admin::status(&run).unwrap().nodes[1].up);
    let status = admin::status(&run).unwrap();
    assert_eq!((status.node, status.dcs[0].name.as_str()), (1, "lab"));
    let daemon = cluster.daemons[0].take().unwrap();
    let asked = std::thread::spawn(move || admin::stop(&run));
    daemon.wish.wait();
    assert!(!asked.is_finished());
    daemon.stop();
    asked.join().unwrap().unwrap();
    let error = format!("{:#}", admin::status(&cluster.configs[0].run).unwrap_err());
    assert!(error.contains("no dvkd answers at"), "{error}");
}

#[test]
fn children_are_kept_running_and_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let script = "echo $$ >> $0.pids; exec tail -f /dev/null";
    let path = dir.path().join("child.sh");
    std::fs::write(&path, script).unwrap();
    let config = Config {
        node: 1,
        name: "n1".into(),
        listen: "127.0.0.1:0".parse().unwrap(),
        credentials: None,
        run: dir.path().join("run"),
        store: dir.path().join("store"),
        servers_inside: false,
        compression: Packing::Never,
        command: vec!["/bin/sh".into(), path.to_str().unwrap().into()],
        dcs: vec![Dc { id: 1, name: "lab".into(), nodes: vec![1], home: 1, maps: Vec::new() }],
    };
    let daemon = Daemon::start(config).unwrap();
    let pids =
        || daemon.status().dcs[0].children.iter().filter_map(|child| child.pid).collect::<Vec<_>>();
    wait_until("four children run", || pids().len() == 4);
    let victim = rustix::process::Pid::from_raw(i32::try_from(pids()[3]).unwrap()).unwrap();
    rustix::process::kill_process(victim, rustix::process::Signal::KILL).unwrap();
    wait_until("it is started again", || {
        daemon.status().dcs[0].children[3].restarts == 1 && pids().len() == 4
    });
    let status = daemon.status();
    let container = &status.dcs[0].children[3];
    assert_eq!((container.role.as_str(), container.bound), ("container", false));
    assert!(container.last_exit.as_deref().unwrap().contains("signal: 9"), "{container:?}");
    let last = pids();
    // These children do not listen to dvkd, so the servers must be killed; the test does not wait for that.
    for pid in &last[..3] {
        let pid = rustix::process::Pid::from_raw(i32::try_from(*pid).unwrap()).unwrap();
        locked(&daemon.shared.children).keepers.iter().for_each(|keeper| keeper.stop(None));
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
    daemon.stop();
    for pid in last {
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{pid} is still there");
    }
}

#[test]
fn a_server_that_is_told_to_stop_ends_well() {
    let cluster = Cluster::start(1);
    let mut server = cluster.server();
    let client = cluster.client(1);
    client.call(ADD, &[]).unwrap();
    cluster.daemon(1).shared.with(|node| node.door.stop_servers(None));
    assert!(server.0.wait().unwrap().success());
    let _server = cluster.server();
    assert_eq!(client.number(GET), 1);
}

#[test]
fn a_socket_that_somebody_listens_at_is_not_taken_away() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let _listener = door::bind(&path).unwrap();
    let error = format!("{:#}", door::bind(&path).unwrap_err());
    assert!(error.contains("is another dvkd running?"), "{error}");
}

#[test]
fn a_second_server_of_the_same_number_and_one_without_rights_are_refused() {
    let cluster = Cluster::start(1);
    let _server = cluster.server();
    let client = cluster.client(1);
    client.call(ECHO, &[]).unwrap();
    let (_bell, descriptor) = m3ipc::bell::Bell::create().unwrap();
    let connection = Connection::connect(cluster.socket(1).as_os_str().as_bytes()).unwrap();
    let hello = Ask::hello(kind::SERVER, 1, 9);
    assert!(connection.hello(hello, Some(descriptor.as_fd())).is_err());
    let hello = Ask::hello(kind::SERVER, 8, 9);
    let connection = Connection::connect(cluster.socket(1).as_os_str().as_bytes()).unwrap();
    assert_eq!(connection.hello(hello, Some(descriptor.as_fd())).err(), Some(IpcError::Denied));
}

/// A TLS connection to node `to` that shows the certificate of node `from`, past all that a daemon would check.
fn imposter(cluster: &Cluster, from: usize, to: usize) -> tls::Tls {
    let stream = TcpStream::connect(cluster.configs[to - 1].listen).unwrap();
    let membership = cluster.membership(from);
    let deadline = Instant::now() + Duration::from_secs(5);
    let expected = membership.subject(u16::try_from(to).unwrap());
    tls::connect(&membership.configs(), stream, expected, deadline).unwrap().0
}

#[test]
fn channels_count_for_their_user_until_their_process_is_gone() {
    let cluster = Cluster::start(2);
    cluster.wait_for_links();
    let _server = cluster.server();
    let asker = cluster.client(1);
    assert_eq!(asker.number(KEPT), 0);
    let user = (DcId(1), rustix::process::geteuid().as_raw());
    for node in [1, 2] {
        let counts = || {
            let shared = &cluster.daemon(node).shared;
            shared.with(|node| {
                [&node.channels_per_user, &node.proxies_per_user].map(|q| q.count(user))
            })
        };
        let before = counts();
        let mut keeper = Guard::start("keeper", &cluster.socket(node), Path::new(""));
        wait_until("its call is there", || asker.number(KEPT) == 1);
        let [local, to_others] = before;
        let with_it = if node == 1 { [local + 1, to_others] } else { [local, to_others + 1] };
        assert_eq!(counts(), with_it);
        keeper.kill();
        wait_until("it is gone", || counts() == before && asker.number(KEPT) == 0);
    }
}

/// The Hello on a track of a link that node `node` makes.
fn hello_on(track: Track, node: u16, to: u16) -> Vec<u8> {
    hello_for(5, track, node, to)
}

/// The Hello for a track of the link with this number.
fn hello_for(pair: u64, track: Track, node: u16, to: u16) -> Vec<u8> {
    let hello = Hello {
        node: NodeId(node),
        to: NodeId(to),
        incarnation: 77,
        epoch: 0,
        peer_incarnation: 0,
        peer_epoch: 0,
        received: 0,
        received_bulk: 0,
        track,
        pair,
        packs: false,
    };
    Packet::alone(Frame::Hello(hello)).encode()
}

fn hello(node: u16, to: u16) -> Vec<u8> {
    hello_on(Track::Small, node, to)
}

/// Reads until the other side ends the connection; returns how long that took.
fn time_until_dropped(tls: &tls::Tls) -> Duration {
    let begin = Instant::now();
    let deadline = begin + Duration::from_secs(10);
    let mut byte = [0];
    loop {
        match tls.read_exact_by(&mut byte, deadline) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut => panic!("never dropped"),
            Err(_) => return begin.elapsed(),
        }
    }
}

#[test]
fn a_node_that_says_it_is_another_is_refused_and_one_that_is_honest_is_not() {
    let mut cluster = Cluster::start(3);
    cluster.wait_for_links();
    // Node 1's place is free; its session with node 3 would be the prize.
    cluster.stop(1);
    let soon = Instant::now() + Duration::from_secs(5);
    let liar = imposter(&cluster, 2, 3);
    liar.write_all_by(&hello(1, 3), soon).unwrap();
    let mut byte = [0];
    let error = liar.read_exact_by(&mut byte, soon).unwrap_err();
    assert_ne!(error.kind(), std::io::ErrorKind::TimedOut, "no Hello comes back");
    // The same certificate with its own number is answered by a Hello.
    let honest = imposter(&cluster, 2, 3);
    honest.write_all_by(&hello(2, 3), soon).unwrap();
    honest.read_exact_by(&mut byte, soon).unwrap();
}

#[test]
fn a_link_that_dawdles_is_dropped_within_its_time_and_the_others_stay() {
    let cluster = Cluster::start(3);
    let _server = cluster.server();
    cluster.wait_for_links();
    let client = cluster.client(2);
    client.call(ECHO, b"before").unwrap();
    let limit = HANDSHAKE_TIMEOUT + Duration::from_secs(4);
    // Nothing at all before the handshake; a byte now and then in it.
    for drip in [false, true] {
        let mut stream = TcpStream::connect(cluster.configs[2].listen).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let begin = Instant::now();
        // The beginning of a ClientHello that is never finished.
        let hello = [22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3];
        let mut bytes = hello.iter().chain(std::iter::repeat(&7));
        loop {
            if drip && stream.write_all(&[*bytes.next().unwrap()]).is_err() {
                break;
            }
            match std::io::Read::read(&mut stream, &mut [0; 64]) {
                Ok(0) => break,
                Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => break,
                _ => assert!(begin.elapsed() < limit, "drip {drip}"),
            }
        }
        assert!(begin.elapsed() >= HANDSHAKE_TIMEOUT / 2, "it had its time");
    }
    // After the handshake: no Hello; and a Hello, but only on one track.
    assert!(time_until_dropped(&imposter(&cluster, 2, 3)) < limit);
    let soon = Instant::now() + Duration::from_secs(5);
    let half = imposter(&cluster, 2, 3);
    half.write_all_by(&hello(2, 3), soon).unwrap();
    assert!(time_until_dropped(&half) < limit);
    let second = imposter(&cluster, 2, 3);
    second.write_all_by(&hello_on(Track::Bulk, 2, 3), soon).unwrap();
    assert!(time_until_dropped(&second) < limit);
    assert_eq!(client.call(ECHO, b"after").unwrap(), b"after");
}

#[test]
fn strangers_who_say_nothing_do_not_keep_nodes_out() {
    let cluster = Cluster::start(2);
    cluster.wait_for_links();
    let listen = cluster.configs[1].listen;
    let strangers: Vec<TcpStream> =
        (0..100).filter_map(|_| TcpStream::connect(listen).ok()).collect();
    cluster.cut_links();
    wait_until("the link is back", || cluster.linked(1) == [2]);
    drop(strangers);
}

#[test]
fn a_revoked_node_is_out_at_once_everywhere_and_stays_out() {
    let mut cluster = Cluster::start(3);
    cluster.wait_for_links();
    let run = |node: usize| cluster.configs[node - 1].run.clone();
    let refused = |result: Result<String>, says: &str| {
        let error = format!("{:#}", result.unwrap_err());
        assert!(error.contains(says), "{error}");
    };
    refused(admin::command(&run(2), Query::Revoke { node: 3 }), "is on node n1; ask there");
    refused(admin::command(&run(1), Query::Revoke { node: 1 }), "has the authority");
    refused(admin::command(&run(1), Query::Revoke { node: 9 }), "node 9 is not a member");
    let begin = Instant::now();
    admin::command(&run(1), Query::Revoke { node: 3 }).unwrap();
    wait_until("nobody has a link with node 3", || {
        cluster.linked(1) == [2] && cluster.linked(2) == [1] && cluster.linked(3).is_empty()
    });
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    refused(admin::command(&run(1), Query::Revoke { node: 3 }), "revoked already");
    // A new start does not help, not even with the old list of members, in which it is a member.
    let config = cluster.configs[2].clone();
    cluster.stop(3);
    cluster.daemons[2] = Some(cluster.start_daemon(config));
    let stream = TcpStream::connect(cluster.configs[1].listen).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    let configs = cluster.membership(3).configs();
    let tls = tls::connect(&configs, stream, cluster.membership(3).subject(2), deadline);
    let refusal = tls.and_then(|(tls, _)| Ok(tls.read_exact_by(&mut [0], deadline)?));
    let refusal = format!("{:#}", refusal.unwrap_err());
    assert!(refusal.contains("CertificateRevoked"), "{refusal}");
    // Nor does it help if the others start again: the list is on their disks.
    let config = cluster.configs[1].clone();
    cluster.stop(2);
    cluster.daemons[1] = Some(cluster.start_daemon(config));
    wait_until("node 2 is back", || cluster.linked(2) == [1]);
    assert!(cluster.membership(2).members().find(3).unwrap().revoked);
}

#[test]
fn a_node_joins_with_a_token_once_and_the_others_connect_to_it_without_a_restart() {
    let mut cluster = Cluster::start(2);
    cluster.wait_for_links();
    let directory = cluster.configs[0].credentials.clone().unwrap();
    let token = create_token(&directory, Duration::from_secs(60)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = listener.local_addr().unwrap();
    drop(listener);
    let place = |name: &str| cluster.dir.path().join(name);
    let address = cluster.configs[0].listen;
    let attempt =
        |to, token: &Token, name: &str, at: &str| join(to, token, name, |_| own, &place(at));
    let refused = |result: Result<Joined>, says: &str| {
        let error = format!("{:#}", result.unwrap_err());
        assert!(error.contains(says), "{error}");
    };
    // What leaves the token as it is.
    refused(attempt(cluster.configs[1].listen, &token, "n3", "a"), "has not the authority");
    refused(attempt(address, &token, "n2", "b"), "there is a node \"n2\" already");
    let stranger = Token { authority: [1; 32], ..token.clone() };
    refused(attempt(address, &stranger, "n3", "c"), "for another DVS");
    refused(join(address, &token, "n3", |_| "0.0.0.0:1".parse().unwrap(), &place("d")), "--listen");
    let wrong = Token { secret: [1; 16], ..token.clone() };
    refused(attempt(address, &wrong, "n3", "e"), "not known here; create another one");
    let joined = attempt(address, &token, "n3", "credentials3").unwrap();
    assert_eq!((joined.node, joined.name.as_str(), joined.address), (3, "n3", own));
    refused(attempt(address, &token, "n4", "f"), "used already; create another one");
    let late = create_token(&directory, Duration::from_secs(60)).unwrap();
    cluster.clock.forward(Duration::from_secs(61));
    refused(attempt(address, &late, "n4", "g"), "has expired; create another one");
    let config = Config {
        node: joined.node,
        name: joined.name,
        listen: joined.address,
        credentials: Some(place("credentials3")),
        run: place("run3"),
        store: place("store3"),
        dcs: Vec::new(),
        ..cluster.configs[0].clone()
    };
    cluster.configs.push(config.clone());
    cluster.daemons.push(Some(cluster.start_daemon(config)));
    cluster.wait_for_links();
    assert_eq!((cluster.linked(1), cluster.linked(2)), (vec![2, 3], vec![1, 3]));
    assert_eq!(cluster.daemon(2).status().members_revision, 2);
}

#[test]
fn junk_from_one_that_wants_to_join_is_refused() {
    let cluster = Cluster::start(1);
    let address = cluster.configs[0].listen;
    let members = cluster.membership(1);
    let token = create_token(&cluster.configs[0].credentials.clone().unwrap(), HANDSHAKE_TIMEOUT);
    let pinned = token.unwrap().authority;
    for junk in [&[0xff; 4][..], &[4, 0, 0, 0, 9, 9, 9, 9], &[0, 0, 0, 0]] {
        let stream = TcpStream::connect(address).unwrap();
        let soon = Instant::now() + Duration::from_secs(5);
        let tls = tls::connect_to_join(stream, tls::Pinned(pinned), &system_clock(), soon).unwrap();
        tls.write_all_by(junk, soon).unwrap();
        time_until_dropped(&tls);
    }
    assert_eq!(members.members().revision, 1);
}

#[test]
fn certificates_are_renewed_over_links_that_stay_and_a_jump_of_the_clock_cuts_none() {
    let cluster = Cluster::start(2);
    cluster.wait_for_links();
    let links = |node: usize| {
        cluster.daemon(node).shared.with(|node| node.pumps.keys().copied().collect::<Vec<_>>())
    };
    wait_until("the links are read", || !links(1).is_empty() && !links(2).is_empty());
    let until = |node: usize| cluster.membership(node).validity().until;
    let before = (links(1), links(2), until(1), until(2));
    cluster.clock.forward(CERTIFICATE_LIFE / 2);
    (1..=2).for_each(|node| cluster.membership(node).poke());
    // Asked for by hand it comes at any time, and only if it was asked for.
    admin::command(&cluster.configs[1].run, Query::Renew).unwrap();
    assert!(until(2) > before.3);
    assert_eq!(until(1), before.2);
    // More than the whole life: both are renewed all the same, over the link that is there.
    for days in [25, 100, 4000] {
        let before = (until(1), until(2));
        cluster.clock.forward(Duration::from_secs(days * 24 * 3600));
        wait_until("both certificates are new", || {
            (1..=2).for_each(|node| cluster.membership(node).poke());
            until(1) > before.0 && until(2) > before.1
        });
    }
    assert_eq!((links(1), links(2)), (before.0, before.1), "the links are the same");
    // And new links can be made with what was renewed.
    cluster.cut_links();
    cluster.wait_for_links();
}

#[test]
fn a_member_cannot_change_the_list_of_members() {
    let cluster = Cluster::start(2);
    cluster.wait_for_links();
    let (one, two) = (cluster.membership(1), cluster.membership(2));
    assert!(two.revoke(1).is_err());
    let other = Cluster::start(2);
    let strange = other.membership(1).announcement();
    let Ok(control::Next::Control(control::Control::Members(document), _)) =
        control::next(&strange)
    else {
        panic!("an announcement is a list of members");
    };
    let error = format!("{:#}", one.adopt(document).unwrap_err());
    assert!(error.contains("not signed by this DVS"), "{error}");
    let own = one.announcement();
    let Ok(control::Next::Control(control::Control::Members(document), _)) = control::next(&own)
    else {
        panic!("an announcement is a list of members");
    };
    assert_eq!(one.adopt(document).unwrap(), None, "the same again is no news");
}
