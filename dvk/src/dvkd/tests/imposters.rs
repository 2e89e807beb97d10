//! Links whose other side is the test itself: what a daemon does when a node with a valid certificate goes wrong.

use super::*;
use crate::dvkd::certificate::Subject;
use crate::frame::{self, Answer, HEADER, Request, VERSION};
use crate::limits::{CONGESTED, FORGERIES_LOGGED, FRAME_MAX, HANDSHAKES_PER_ADDRESS, SMALL_MAX};
use m3ipc::limits::CHANNELS_PER_PEER;
use std::io;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::sync::atomic::AtomicUsize;

/// A node of the cluster whose daemon has ended, and whose place the test takes.
pub(super) struct Imposter {
    node: u16,
    to: u16,
    configs: tls::Configs,
    /// Of the node it talks to.
    expected: Subject,
    address: SocketAddr,
}

impl Imposter {
    pub(super) fn of(cluster: &mut Cluster, node: usize, to: usize) -> Imposter {
        let numbers = (u16::try_from(node).unwrap(), u16::try_from(to).unwrap());
        let membership = cluster.membership(node);
        let (configs, expected) = (membership.configs(), membership.subject(numbers.1));
        let address = cluster.configs[to - 1].listen;
        cluster.stop(node);
        Imposter { node: numbers.0, to: numbers.1, configs, expected, address }
    }

    fn connect(&self) -> tls::Tls {
        let stream = TcpStream::connect(self.address).unwrap();
        tls::connect(&self.configs, stream, self.expected, soon()).unwrap().0
    }

    /// A link: its two tracks, up.
    pub(super) fn link(&self) -> [tls::Tls; 2] {
        Track::ALL.map(|track| {
            let tls = self.connect();
            tls.write_all_by(&hello_on(track, self.node, self.to), soon()).unwrap();
            let hello = read_frame(&tls);
            assert!(matches!(frame::decode(&hello).unwrap().0.frame, Frame::Hello(_)));
            tls
        })
    }
}

/// The tracks of a link that is alive for as long as this lasts, however slow the test is.
struct Lively<'a> {
    tracks: [&'a tls::Tls; 2],
    /// Frames of two threads are not mixed.
    turn: Mutex<()>,
    is_over: AtomicBool,
}

impl<'a> Lively<'a> {
    fn new(small: &'a tls::Tls, bulk: &'a tls::Tls) -> Lively<'a> {
        Lively { tracks: [small, bulk], turn: Mutex::default(), is_over: AtomicBool::new(false) }
    }

    /// Gives signs of life until `over` is dropped.
    fn keep<'s>(
        &'s self,
        scope: &'s std::thread::Scope<'s, '_>,
        shared: &'s crate::dvkd::node::Shared,
    ) -> Over<'s> {
        scope.spawn(|| {
            while !self.is_over.load(Ordering::SeqCst) {
                for track in self.tracks {
                    // Of one that has ended, nobody wants any.
                    self.try_write(track, &ping()).ok();
                }
                shared.nap(Duration::from_millis(100));
            }
        });
        Over(&self.is_over)
    }

    fn write(&self, track: &tls::Tls, bytes: &[u8]) {
        self.try_write(track, bytes).unwrap();
    }

    fn try_write(&self, track: &tls::Tls, bytes: &[u8]) -> io::Result<()> {
        let _turn = locked(&self.turn);
        track.write_all_by(bytes, soon())
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

fn read_frame(tls: &tls::Tls) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    tls.read_exact_by(&mut bytes, soon()).unwrap();
    let length = u32::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    assert!(length <= FRAME_MAX);
    bytes.resize(length, 0);
    tls.read_exact_by(&mut bytes[4..], soon()).unwrap();
    bytes
}

/// The next request on a track. What daemons say to each other, and signs of life, are passed over.
fn read_request(tls: &tls::Tls) -> Vec<u8> {
    loop {
        let bytes = read_frame(tls);
        if let Ok((Packet { frame: Frame::Request(_), .. }, _)) = frame::decode(&bytes) {
            return bytes;
        }
    }
}

/// A request, and its number on its track.
fn request_in(bytes: &[u8]) -> (u64, Request<'_>) {
    let (packet, _) = frame::decode(bytes).unwrap();
    let Frame::Request(request) = packet.frame else { panic!("{packet:?}") };
    (packet.sequence, request)
}

/// What the receiver of a request would say.
fn answer_to<'a>(request: &Request<'_>, payload: &'a [u8]) -> Frame<'a> {
    let Request { dc, to: source, message, .. } = *request;
    let (tag, to) = (message.tag, message.source);
    let payload_len = u32::try_from(payload.len()).unwrap();
    let message = Message { source, tag, payload_len, ..Message::request(message.call) };
    Frame::Answer(Answer { dc, to, message, payload })
}

fn ping() -> Vec<u8> {
    Packet::alone(Frame::Ping { sent: 1 }).encode()
}

/// Reads what has come; has the other side ended the connection?
pub(super) fn is_ended(tls: &tls::Tls) -> bool {
    let soon = Instant::now() + Duration::from_millis(50);
    loop {
        match tls.read_exact_by(&mut [0], soon) {
            Ok(()) if Instant::now() < soon => {}
            Ok(()) => return false,
            Err(error) => return error.kind() != io::ErrorKind::TimedOut,
        }
    }
}

/// All that the daemons of this program say in their logs.
fn log() -> String {
    static LOG: OnceLock<Arc<Mutex<Vec<u8>>>> = OnceLock::new();
    let log = LOG.get_or_init(|| {
        let log = Arc::<Mutex<Vec<u8>>>::default();
        let writer = Writer(log.clone());
        let lines = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone());
        lines.init();
        log
    });
    String::from_utf8(locked(log).clone()).unwrap()
}

#[derive(Clone)]
struct Writer(Arc<Mutex<Vec<u8>>>);

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        locked(&self.0).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn lines_with(words: &[&str]) -> usize {
    log().lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
}

/// Says at its end that it is over, also if that is a failure.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_node_that_only_begins_links_does_not_keep_its_address_from_making_one() {
    let mut cluster = Cluster::start(2);
    cluster.wait_for_links();
    let imposter = Imposter::of(&mut cluster, 1, 2);
    // Each is heard, and waits for its second half; the one before does not any more.
    let begun: Vec<tls::Tls> = (0..)
        .take(2 * HANDSHAKES_PER_ADDRESS)
        .map(|half| {
            let tls = imposter.connect();
            tls.write_all_by(&hello_for(100 + half, Track::Small, 1, 2), soon()).unwrap();
            assert!(matches!(
                frame::decode(&read_frame(&tls)).unwrap().0.frame,
                Frame::Hello(Hello { pair, .. }) if pair == 100 + half
            ));
            tls
        })
        .collect();
    imposter.link();
    wait_until("those that were begun are ended", || begun.iter().all(is_ended));
}

#[test]
fn a_small_call_does_not_wait_for_bulk_ones_that_nobody_reads() {
    let mut cluster = Cluster::start(2);
    cluster.wait_for_links();
    let [small, bulk] = Imposter::of(&mut cluster, 1, 2).link();
    // One process: a program that says hello again is another one.
    let client = cluster.client(2);
    let lively = Lively::new(&small, &bulk);
    std::thread::scope(|scope| {
        let over = lively.keep(scope, &cluster.daemon(2).shared);
        for _ in 0..4 {
            scope.spawn(|| client.call(ECHO, &[7; PAYLOAD_MAX]));
        }
        wait_until("the bulk requests are on their way", || {
            cluster.daemon(2).status().counters.calls_out == 4
        });
        let asked = scope.spawn(|| client.call(GET, b"small"));
        let bytes = read_request(&small);
        let (received, request) = request_in(&bytes);
        assert_eq!((request.message.call, request.payload), (GET, &b"small"[..]));
        let answer = answer_to(&request, b"ok");
        let packet = Packet { sequence: 1, received, ..Packet::alone(answer) };
        lively.write(&small, &packet.encode());
        assert_eq!(asked.join().unwrap().unwrap(), b"ok");
        // Now they are read. None may be taken before the small frames that were sent first.
        for sequence in 1..=4 {
            let bytes = read_request(&bulk);
            let (packet, _) = frame::decode(&bytes).unwrap();
            assert_eq!((packet.sequence, packet.after), (sequence, 0));
            assert!(packet.frame.is_bulk());
        }
        // Whoever still waits hears that the node is gone.
        drop(over);
    });
}

/// A call of a process of node 1, on its lane with that number; 64 lanes are a process's.
fn call_frame(number: usize, call: u16, payload: &[u8]) -> Frame<'_> {
    let slot = 100 + u32::try_from(number / LANES).unwrap();
    let source = Endpoint::new(NodeId(1), slot, 1);
    let tag = Tag::new(u16::try_from(number % LANES).unwrap(), 1);
    let payload_len = u32::try_from(payload.len()).unwrap();
    let message = Message { source, tag, payload_len, ..Message::request(call) };
    let (dc, to, cred) = (DcId(1), Endpoint::server(1), Cred::ROOT);
    Frame::Request(Request { dc, to, cred, message, payload })
}

/// Reads a track until it brings an answer; false if it has ended.
fn read_answer(tls: &tls::Tls) -> bool {
    loop {
        let mut length = [0; 4];
        if tls.read_exact_by(&mut length, soon()).is_err() {
            return false;
        }
        let mut bytes = vec![0; u32::from_le_bytes(length) as usize];
        bytes[..4].copy_from_slice(&length);
        if tls.read_exact_by(&mut bytes[4..], soon()).is_err() {
            return false;
        }
        if matches!(frame::decode(&bytes), Ok((Packet { frame: Frame::Answer(_), .. }, _))) {
            return true;
        }
    }
}

#[test]
fn large_answers_that_a_node_does_not_confirm_wait_in_their_lanes_and_small_ones_do_not() {
    const CALLS: usize = 400;
    /// So many of the largest are more than may be kept.
    const KEPT: usize = CONGESTED / PAYLOAD_MAX;
    // One container with its servers here, and one with its servers there.
    let other = Dc { id: 2, name: "other".into(), nodes: vec![1, 2], home: 1, maps: Vec::new() };
    let mut cluster = Cluster::start_as(2, &[other], |config| config.dcs[0].home = 2);
    cluster.wait_for_links();
    let [small, bulk] = Imposter::of(&mut cluster, 1, 2).link();
    let store = cluster.dir.path().join("toy");
    let _server = Guard::start("server", &cluster.socket(2), &store);
    let lively = Lively::new(&small, &bulk);
    let answers = AtomicUsize::new(0);
    let shared = &cluster.daemon(2).shared;
    let held = || shared.with(|node| node.held.len());
    std::thread::scope(|scope| {
        let over = lively.keep(scope, shared);
        // All is read, and nothing confirmed.
        scope.spawn(|| {
            while read_answer(&bulk) {
                answers.fetch_add(1, Ordering::SeqCst);
            }
        });
        for (number, sequence) in (0..CALLS).zip(1..) {
            let frame = call_frame(number, ECHO, &[7; PAYLOAD_MAX]);
            lively.write(&bulk, &Packet { sequence, ..Packet::alone(frame) }.encode());
        }
        let answered = || answers.load(Ordering::SeqCst);
        wait_until("the others wait", || held() > 0 && held() + answered() == CALLS);
        assert!((KEPT - 1..=KEPT + 1).contains(&answered()), "{}", answered());
        let packet = Packet { sequence: 1, ..Packet::alone(call_frame(CALLS, GET, b"")) };
        lively.write(&small, &packet.encode());
        assert!(read_answer(&small), "what is small does not wait");
        assert_eq!(held() + answered(), CALLS);
        // A request that waits as well can be given up: nobody has heard of it.
        let client = client(&cluster.configs[1].socket("other"));
        let wait = Wait { timeout_ms: Some(30), ..Wait::FOREVER };
        let given_up = client.call_for(ECHO, &[7; PAYLOAD_MAX], wait);
        assert_eq!((given_up, held() + answered()), (Err(IpcError::TimedOut), CALLS + 1));
        // What is confirmed makes room for the others.
        let received_bulk = answered() as u64;
        let packet = Packet { received_bulk, ..Packet::alone(Frame::Ping { sent: 1 }) };
        lively.write(&bulk, &packet.encode());
        wait_until("all have come", || answered() == CALLS);
        assert_eq!(held(), 0);
        drop(over);
        bulk.end_writing().unwrap();
    });
}

#[test]
fn a_receiver_that_keeps_thousands_of_calls_of_a_node_gets_the_next_as_well() {
    // More than a program may have open with one receiver: they are many programs'.
    const CALLS: usize = LANES * CHANNELS_PER_PEER + 100;
    let mut cluster = Cluster::start_as(2, &[], |config| config.dcs[0].home = 2);
    cluster.wait_for_links();
    let [small, bulk] = Imposter::of(&mut cluster, 1, 2).link();
    let store = cluster.dir.path().join("toy");
    let _server = Guard::start("server", &cluster.socket(2), &store);
    let lively = Lively::new(&small, &bulk);
    std::thread::scope(|scope| {
        let _over = lively.keep(scope, &cluster.daemon(2).shared);
        let kept = (0..CALLS).map(|number| call_frame(number, KEEP, b""));
        for (frame, sequence) in kept.chain([call_frame(CALLS, KEPT, b"")]).zip(1..) {
            lively.write(&small, &Packet { sequence, ..Packet::alone(frame) }.encode());
        }
        loop {
            let bytes = read_frame(&small);
            if let Ok((Packet { frame: Frame::Answer(answer), .. }, _)) = frame::decode(&bytes) {
                assert_eq!(answer.message.outcome().map(|_| ()), Ok(()));
                assert_eq!((answer.message.call, answer.payload), (KEPT, &CALLS.to_le_bytes()[..]));
                break;
            }
        }
    });
}

#[test]
fn a_bulk_frame_that_comes_early_waits_for_the_small_one_that_was_sent_first() {
    let mut cluster = Cluster::start(2);
    cluster.wait_for_links();
    let [small, bulk] = Imposter::of(&mut cluster, 1, 2).link();
    let client = cluster.client(2);
    let lively = Lively::new(&small, &bulk);
    std::thread::scope(|scope| {
        let _over = lively.keep(scope, &cluster.daemon(2).shared);
        let long = scope.spawn(|| client.call(ECHO, b"long"));
        let bytes = read_request(&small);
        let (_, first) = request_in(&bytes);
        let short = scope.spawn(|| client.call(GET, b"short"));
        let bytes = read_request(&small);
        let (received, second) = request_in(&bytes);
        let bytes = vec![7; SMALL_MAX + 1];
        let answer = answer_to(&first, &bytes);
        let packet = Packet { sequence: 1, received, after: 1, ..Packet::alone(answer) };
        lively.write(&bulk, &packet.encode());
        let is_held = |node: &mut crate::dvkd::node::Node| {
            node.links.values().any(|link| link.bulk.is_held())
        };
        wait_until("it waits", || cluster.daemon(2).shared.with(is_held));
        assert!(!long.is_finished());
        let answer = answer_to(&second, b"ok");
        let packet = Packet { sequence: 1, received, ..Packet::alone(answer) };
        lively.write(&small, &packet.encode());
        assert_eq!(short.join().unwrap().unwrap(), b"ok");
        assert_eq!(long.join().unwrap().unwrap(), bytes);
    });
}

#[test]
fn what_is_wrong_behind_a_frame_that_comes_early_ends_the_link_when_that_is_taken() {
    let mut cluster = Cluster::start(2);
    cluster.wait_for_links();
    let [small, bulk] = Imposter::of(&mut cluster, 1, 2).link();
    let client = cluster.client(2);
    let lively = Lively::new(&small, &bulk);
    std::thread::scope(|scope| {
        let _over = lively.keep(scope, &cluster.daemon(2).shared);
        // Whether it gets the answer that is followed by garbage does not matter.
        let long = scope.spawn(|| client.call(ECHO, b"long").ok());
        let bytes = read_request(&small);
        let (_, first) = request_in(&bytes);
        let short = scope.spawn(|| client.call(GET, b"short"));
        let bytes = read_request(&small);
        let (received, second) = request_in(&bytes);
        let payload = vec![7; SMALL_MAX + 1];
        let answer = answer_to(&first, &payload);
        let packet = Packet { sequence: 1, received, after: 1, ..Packet::alone(answer) };
        lively.write(&bulk, &[packet.encode(), vec![0xff; HEADER]].concat());
        let is_held = |node: &mut crate::dvkd::node::Node| {
            node.links.values().any(|link| link.bulk.is_held())
        };
        wait_until("it waits", || cluster.daemon(2).shared.with(is_held));
        let answer = answer_to(&second, b"ok");
        let packet = Packet { sequence: 1, received, ..Packet::alone(answer) };
        lively.write(&small, &packet.encode());
        assert_eq!(short.join().unwrap().unwrap(), b"ok");
        wait_until("the link ends, though the small track is lively", || is_ended(&bulk));
        long.join().unwrap();
    });
}

#[test]
fn a_track_that_stalls_or_half_closes_or_drips_ends_its_link_and_disturbs_no_other() {
    let mut cluster = Cluster::start(3);
    let _server = cluster.server();
    cluster.wait_for_links();
    let client = cluster.client(3);
    client.call(ECHO, b"before").unwrap();
    let imposter = Imposter::of(&mut cluster, 2, 3);
    let limit = Duration::from_secs(8);
    for (bad, good) in [(0, 1), (1, 0)] {
        for fault in ["stalls", "drips", "half-closes"] {
            let tracks = imposter.link();
            let ping = ping();
            wait_until("the link is up", || {
                for track in &tracks {
                    track.write_all_by(&ping, soon()).unwrap();
                    // Who never reads what it is told loses its link, too.
                    assert!(!is_ended(track));
                }
                cluster.linked(3).contains(&2)
            });
            let begin = Instant::now();
            if fault == "half-closes" {
                tracks[bad].end_writing().unwrap();
            }
            let mut drip = ping[..ping.len() - 1].iter();
            // The other track is as lively as can be.
            while !is_ended(&tracks[bad]) || !is_ended(&tracks[good]) {
                tracks[good].write_all_by(&ping, soon()).ok();
                if fault == "drips" {
                    drip.next().map(|byte| tracks[bad].write_all_by(&[*byte], soon()).ok());
                }
                assert!(begin.elapsed() < limit, "track {bad} {fault}, and the link is there");
            }
            // All others have gone on meanwhile.
            assert_eq!(client.call(ECHO, b"after").unwrap(), b"after");
            wait_until("it is over", || cluster.linked(3) == [1]);
        }
    }
}

/// The error of the next answer on a track.
fn read_refusal(tls: &tls::Tls) -> Option<IpcError> {
    loop {
        let bytes = read_frame(tls);
        if let Ok((Packet { frame: Frame::Answer(answer), .. }, _)) = frame::decode(&bytes) {
            return answer.message.outcome().err();
        }
    }
}

#[test]
fn a_forged_frame_is_refused_and_said_but_no_flood_fills_the_log() {
    log();
    // A container that node 2 is not in.
    let other = Dc { id: 2, name: "other".into(), nodes: vec![1, 3], home: 3, maps: Vec::new() };
    let mut cluster = Cluster::start_with(3, &[other]);
    cluster.wait_for_links();
    let imposter = Imposter::of(&mut cluster, 2, 3);
    let [small, _bulk] = imposter.link();
    let own = Endpoint::new(NodeId(2), 1, 1);
    let request = |dc, sequence: u64, source| {
        let tag = m3ipc::Tag::new(0, sequence);
        let message = Message { source, tag, ..Message::request(ECHO) };
        let to = Endpoint::well_known(NodeId(3), 70);
        let frame =
            Frame::Request(Request { dc: DcId(dc), to, cred: Cred::ROOT, message, payload: &[] });
        Packet { sequence, ..Packet::alone(frame) }.encode()
    };
    let counters = || cluster.daemon(3).status().counters;
    // Of a container that node 3, or node 2, is not in; of an endpoint that is not there.
    let nobody = Endpoint::well_known(NodeId(1), 71);
    for (sequence, (dc, source, reason)) in (1..).zip([
        (808, own, "this node is not in that container"),
        (2, own, "the node is not in that container"),
        (1, nobody, "as far as this node knows, the endpoint is not there"),
    ]) {
        small.write_all_by(&request(dc, sequence, source), soon()).unwrap();
        assert!(read_refusal(&small).is_some());
        let words = ["a frame is refused", "node=2", &format!("dc={dc} "), reason];
        assert_eq!(lines_with(&words), 1, "{}", log());
        assert_eq!(counters().protocol_errors, sequence);
    }
    // To a process that is not there: everybody may try that, and hears so.
    small.write_all_by(&request(1, 4, own), soon()).unwrap();
    assert_eq!(read_refusal(&small), Some(IpcError::NotBound));
    const FLOOD: u64 = 1000;
    for sequence in 5..5 + FLOOD {
        small.write_all_by(&request(909, sequence, own), soon()).unwrap();
    }
    let all = 3 + FLOOD;
    wait_until("all are counted", || counters().protocol_errors >= all);
    let said = lines_with(&["a frame is refused", "node=2", "dc=909", "this node is not in"]);
    let most = FORGERIES_LOGGED as usize + 1;
    assert!((1..=most).contains(&said), "{said} lines");
    // In a container of both, for an endpoint of another node: the link is over as well.
    let forged = request(1, 5 + FLOOD, Endpoint::new(NodeId(1), 2000, 1));
    small.write_all_by(&forged, soon()).unwrap();
    time_until_dropped(&small);
    assert_eq!((counters().protocol_errors, counters().calls_in), (all + 1, 0));
    let reason = "a frame speaks in container 1 for endpoint";
    assert_eq!(lines_with(&["link dropped", "node=2", reason]), 1, "{}", log());
}

/// The Hello of a node that speaks another version.
fn hello_of_version(version: u8, node: u16, to: u16) -> Vec<u8> {
    let mut bytes = hello(node, to);
    bytes[HEADER + 4] = version;
    bytes
}

#[test]
fn nodes_of_two_versions_have_no_link_and_both_say_which_versions() {
    log();
    let mut cluster = Cluster::start(2);
    cluster.wait_for_links();
    let says = |theirs: u8| {
        let words = format!("link protocol version {theirs} on the other node, {VERSION} on this");
        lines_with(&["a connection is refused", &words]) > 0
    };
    // Who accepts. It says its Hello all the same, so that the other can say the same.
    let imposter = Imposter::of(&mut cluster, 1, 2);
    let old = imposter.connect();
    old.write_all_by(&hello_of_version(201, 1, 2), soon()).unwrap();
    let hello = read_frame(&old);
    assert_eq!(u32::from_le_bytes(*hello[HEADER + 4..].first_chunk().unwrap()), VERSION);
    time_until_dropped(&old);
    wait_until("it is in the log", || says(201));
    // Who connects.
    let mut cluster = Cluster::start(2);
    cluster.wait_for_links();
    let configs = cluster.membership(2).configs();
    let address = cluster.configs[1].listen;
    cluster.stop(2);
    let listener = std::net::TcpListener::bind(address).unwrap();
    // It has two connections under way.
    for stream in listener.incoming().take(2) {
        let Ok(tls::Accepted::Link(tls, _)) = tls::accept(&configs, stream.unwrap(), soon()) else {
            continue;
        };
        read_frame(&tls);
        tls.write_all_by(&hello_of_version(202, 2, 1), soon()).unwrap();
        break;
    }
    wait_until("it is in the log", || says(202));
    assert!(cluster.linked(1).is_empty());
}
