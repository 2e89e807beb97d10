//! Links to the other nodes: who connects, the Hellos, and the threads that read.
//!
//! Of two nodes the one with the smaller number connects, the other accepts. It makes two connections, the tracks of the
//! link, and both sides take the link into use when both are there. A track's reader gives each frame to
//! the kernel and carries out what follows itself: an answer goes straight into the caller's lane. What is said about
//! members and certificates goes to a thread of its own, which may wait for the disk.

use super::certificate::{Subject, random};
use super::control::{self, Control, Next};
use super::dcs;
use super::link::{Link, Reading, Tracks};
use super::log_limit::LogLimit;
use super::membership::{Change, Membership, Renewal};
use super::node::{Node, Shared};
use super::packing::{self, Packing};
use super::proxy::Watcher;
use super::system::System;
use super::tls::{self, Accepted, Tls};
use crate::frame::{self, Frame, FrameError, Hello, Packet, Track};
use crate::host::solo::monotonic;
use crate::kernel::{Input, LinkId};
use crate::limits::{
    CONNECT_TIMEOUT, HANDSHAKE_TIMEOUT, HANDSHAKES_MAX, HANDSHAKES_PER_ADDRESS, JOINS_MAX,
    LINK_QUEUE, RECONNECT_MAX, RECONNECT_MIN, REFUSALS_EVERY, REFUSALS_LOGGED, RENEWAL_LOOK,
    RENEWAL_PAUSE,
};
use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::Bytes;
use m3ipc::NodeId;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

/// What a daemon has for links to other nodes.
#[derive(Debug)]
pub(super) struct Linking {
    pub(super) membership: Membership,
    /// The threads that keep links, by the node they connect to.
    connectors: Mutex<BTreeMap<u16, JoinHandle<()>>>,
    /// What came over links for the members thread.
    heard: SyncSender<Heard>,
    inbox: Mutex<Receiver<Heard>>,
    /// Connections that have not said Hello yet, by address.
    handshakes: Mutex<BTreeMap<IpAddr, usize>>,
    /// Nodes that are joining.
    joining: AtomicUsize,
    pub(super) system: System,
    /// How many refusals may be in the log.
    refusals: Mutex<LogLimit>,
    /// Links of which only the small track has come. One per node: who begins another has given the last one up, and must
    /// not keep the handshakes of its address.
    halves: Mutex<BTreeMap<NodeId, Half>>,
}

/// A small track that waits for its bulk one.
#[derive(Debug)]
struct Half {
    /// What this node has said on it.
    sent: Hello,
    waiting: SyncSender<Greeted>,
}

/// A message about members, and from whom it came.
#[derive(Debug)]
enum Heard {
    Members { from: u16, document: Vec<u8> },
    Renew { from: u16, request: Vec<u8> },
    Renewed { from: u16, certificate: Vec<u8> },
    NotRenewed { from: u16, why: Vec<u8> },
    Stop,
}

/// Such messages that wait: a node sends one when its link comes up, and when something changes.
const HEARD_MAX: usize = 256;

/// A connection that has not said Hello yet, counted until it is dropped.
#[derive(Debug)]
struct Handshake {
    shared: Arc<Shared>,
    address: IpAddr,
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let Some(linking) = &self.shared.linking else { return };
        let mut all = locked(&linking.handshakes);
        if let Some(count) = all.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.address);
            }
        }
    }
}

impl Linking {
    pub(super) fn new(membership: Membership) -> Linking {
        let (heard, inbox) = sync_channel(HEARD_MAX);
        Linking {
            membership,
            connectors: Mutex::default(),
            heard,
            inbox: Mutex::new(inbox),
            handshakes: Mutex::default(),
            joining: AtomicUsize::new(0),
            system: System::default(),
            refusals: Mutex::new(LogLimit::new(REFUSALS_LOGGED, REFUSALS_EVERY)),
            halves: Mutex::default(),
        }
    }

    /// Strangers who connect and say nothing must not use up the threads.
    fn admits(&self, address: IpAddr) -> bool {
        let mut all = locked(&self.handshakes);
        let total: usize = all.values().sum();
        let count = all.entry(address).or_default();
        let fine = total < HANDSHAKES_MAX && *count < HANDSHAKES_PER_ADDRESS;
        *count += usize::from(fine);
        if *count == 0 {
            all.remove(&address);
        }
        fine
    }

    /// The first half of that link, if it still waits.
    fn take_half(&self, node: NodeId, pair: u64) -> Option<Half> {
        let mut halves = locked(&self.halves);
        let is_it = halves.get(&node).is_some_and(|half| half.sent.pair == pair);
        if is_it { halves.remove(&node) } else { None }
    }

    /// Says in the log why a connection is refused, but not more often than somebody can read.
    fn log_refusal(&self, address: SocketAddr, error: &anyhow::Error) {
        let error = format!("{error:#}");
        match locked(&self.refusals).admit(monotonic()) {
            Some(unsaid) => tracing::warn!(%address, error, unsaid, "a connection is refused"),
            None => tracing::debug!(%address, error, "a connection is refused"),
        }
    }

    /// Ends the members thread, and waits for the threads that connect. They see that the daemon stops.
    pub(super) fn stop(&self) {
        // If there is no room, the thread has something to do and looks afterwards.
        self.heard.try_send(Heard::Stop).ok();
        self.system.stop();
        for (_, thread) in std::mem::take(&mut *locked(&self.connectors)) {
            if thread.join().is_err() {
                tracing::error!("a thread of dvkd has panicked");
            }
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Listens for the other nodes.
pub(super) fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).with_context(|| format!("cannot listen at {address}"))
}

/// The body of the thread that accepts connections.
pub(super) fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    let Some(linking) = &shared.linking else { return };
    while !shared.is_stopping() {
        let (stream, address) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) => {
                if !shared.is_stopping() {
                    tracing::warn!(%error, "cannot accept a link");
                    std::thread::sleep(RECONNECT_MIN);
                }
                continue;
            }
        };
        if shared.is_stopping() {
            return;
        }
        if !linking.admits(address.ip()) {
            continue;
        }
        let handshake = Handshake { shared: shared.clone(), address: address.ip() };
        let shared = shared.clone();
        let thread = Builder::new().name("link".into()).spawn(move || {
            let Some(linking) = &shared.linking else { return };
            match welcome(&shared, stream, handshake) {
                Ok(Some(met)) => {
                    let node = met.received.node;
                    met.run(&shared);
                    ask_for(&shared, linking, node);
                }
                Ok(None) => {}
                Err(error) => linking.log_refusal(address, &error),
            }
        });
        if let Err(error) = thread {
            tracing::error!(%error, "cannot start a thread");
        }
    }
}

/// Finds out who has connected. `None`: somebody who has joined, and is a node now; or the bulk track of a link, which has
/// been given to whom it is waited for by.
fn welcome(shared: &Arc<Shared>, stream: TcpStream, handshake: Handshake) -> Result<Option<Met>> {
    let linking = shared.linking.as_ref().context("this node has no links")?;
    let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
    let met = match tls::accept(&linking.membership.configs(), stream, deadline)? {
        Accepted::Link(tls, subject) => greet(shared, linking, tls, &subject, deadline)?,
        Accepted::Join(tls) => {
            join(shared, linking, &tls)?;
            None
        }
    };
    drop(handshake);
    Ok(met)
}

/// Hears somebody who wants to join.
fn join(shared: &Arc<Shared>, linking: &Linking, tls: &Tls) -> Result<()> {
    let is_free = linking.joining.fetch_add(1, Ordering::SeqCst) < JOINS_MAX;
    let result = if is_free {
        super::join::serve(&linking.membership, tls).map(|change| apply(shared, linking, &change))
    } else {
        super::join::refuse(tls, "too many nodes are joining just now; try again");
        Err(anyhow!("too many nodes are joining"))
    };
    linking.joining.fetch_sub(1, Ordering::SeqCst);
    result
}

/// Starts the threads that keep links to those of `nodes` that this one connects to: of two nodes the one with
/// the smaller number does.
pub(super) fn connect_to(shared: &Arc<Shared>, nodes: &[u16]) {
    let Some(linking) = &shared.linking else { return };
    for &node in nodes.iter().filter(|node| **node > shared.config.node) {
        let connecting = shared.clone();
        let mut connectors = locked(&linking.connectors);
        if shared.is_stopping() || connectors.contains_key(&node) {
            continue;
        }
        let thread = Builder::new().name("link".into()).spawn(move || connect(&connecting, node));
        match thread {
            Ok(thread) => drop(connectors.insert(node, thread)),
            Err(error) => tracing::error!(%error, "cannot start a thread"),
        }
    }
}

/// The body of the thread that keeps a link to `node`, which accepts, as long as that is a member.
fn connect(shared: &Arc<Shared>, node: u16) {
    let Some(linking) = &shared.linking else { return };
    let mut pause = RECONNECT_MIN;
    while !shared.is_stopping() {
        let members = linking.membership.members();
        let Some(member) = members.find(node).filter(|member| !member.revoked) else { return };
        match reach(shared, linking, node, member.address) {
            Ok(met) => {
                met.run(shared);
                pause = RECONNECT_MIN;
            }
            Err(error) => {
                if is_refusal(&error) {
                    shared.with(|state| state.step(Input::NodeRefused { node: NodeId(node) }));
                }
                tracing::debug!(node, error = format!("{error:#}"), "no link");
            }
        }
        shared.nap(pause);
        pause = (pause * 2).min(RECONNECT_MAX);
    }
}

/// Did the other machine say that nobody listens there?
fn is_refusal(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<std::io::Error>();
    cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::ConnectionRefused)
}

/// The link that `node` had made to this one is over, and `node` makes the next one. Whether its daemon has ended is
/// to be known before it is given up for its silence: its machine is asked, until there is a link again, or it is down.
fn ask_for(shared: &Shared, linking: &Linking, node: NodeId) {
    let mut pause = RECONNECT_MIN;
    while !shared.is_stopping() && shared.with(|state| state.kernel.is_lost(node)) {
        let members = linking.membership.members();
        let Some(member) = members.find(node.0).filter(|member| !member.revoked) else { return };
        match TcpStream::connect_timeout(&member.address, CONNECT_TIMEOUT).map(drop) {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                shared.with(|state| state.step(Input::NodeRefused { node }));
            }
            _ => {}
        }
        shared.nap(pause);
        pause = (pause * 2).min(RECONNECT_MAX);
    }
}

fn reach(shared: &Shared, linking: &Linking, node: u16, address: SocketAddr) -> Result<Met> {
    let stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).context("cannot connect")?;
    let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
    let membership = &linking.membership;
    let expected = membership.subject(node);
    let connect =
        |stream: TcpStream| tls::connect(&membership.configs(), stream, expected, deadline);
    let met = connect(stream).and_then(|first| {
        let stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
        meet(shared, NodeId(node), first, || connect(stream), deadline)
    });
    // A node that is not there is no news; one that is, but is not the right one, is.
    met.inspect_err(|error| {
        if error
            .downcast_ref::<std::io::Error>()
            .is_none_or(|io| io.kind() == ErrorKind::InvalidData)
        {
            linking.log_refusal(address, error);
        }
    })
}

/// The body of the thread that takes what other nodes say about members.
pub(super) fn hear_members(shared: &Arc<Shared>) {
    let Some(linking) = &shared.linking else { return };
    let inbox = locked(&linking.inbox);
    while let Ok(heard) = inbox.recv()
        && !shared.is_stopping()
    {
        if let Err(error) = hear(shared, linking, heard) {
            tracing::warn!(
                error = format!("{error:#}"),
                "what a node says about members is refused"
            );
        }
    }
}

fn hear(shared: &Arc<Shared>, linking: &Linking, heard: Heard) -> Result<()> {
    let membership = &linking.membership;
    let from_authority = |from: u16| {
        ensure!(from == membership.members().authority, "node {from} has not the authority");
        Ok(())
    };
    match heard {
        Heard::Members { from, document } => {
            let change =
                membership.adopt(&document).with_context(|| format!("from node {from}"))?;
            if let Some(change) = change {
                apply(shared, linking, &change);
            }
        }
        Heard::Renew { from, request } => {
            let answer = match membership.renew_for(from, &request) {
                Ok((certificate, change)) => {
                    apply(shared, linking, &change);
                    Control::Renewed(&certificate).encode()
                }
                Err(error) => Control::NotRenewed(format!("{error:#}").as_bytes()).encode(),
            };
            tell(shared, from, &answer);
        }
        Heard::Renewed { from, certificate } => {
            from_authority(from)?;
            membership.renewed(&certificate)?;
        }
        Heard::NotRenewed { from, why } => {
            from_authority(from)?;
            membership.refused(&why);
        }
        Heard::Stop => {}
    }
    Ok(())
}

/// The body of the thread that renews this node's certificate.
pub(super) fn renew(shared: &Arc<Shared>) {
    let Some(linking) = &shared.linking else { return };
    loop {
        match linking.membership.await_renewal(RENEWAL_LOOK) {
            Ok(Renewal::Stop) => return,
            Ok(Renewal::Later) => {}
            Ok(Renewal::Done(change)) => apply(shared, linking, &change),
            Ok(Renewal::Ask(node, request)) => {
                if !tell(shared, node, &request) {
                    tracing::warn!(
                        node,
                        "no link to the authority, which is to renew the certificate"
                    );
                }
                if linking.membership.await_answer(RENEWAL_LOOK) {
                    shared.nap(RENEWAL_PAUSE);
                }
            }
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "the certificate cannot be renewed");
                shared.nap(RENEWAL_LOOK);
            }
        }
    }
}

/// Acts on another list of members, and passes it on.
pub(super) fn apply(shared: &Arc<Shared>, linking: &Linking, change: &Change) {
    let announcement = linking.membership.announcement();
    dcs::follow(shared, linking);
    for node in &change.revoked {
        // Its last words from here, so that its log says why; it may be gone, or not listen.
        tell(shared, *node, &announcement);
    }
    let links: Vec<Tracks> = shared.with(|state| {
        for node in &change.joined {
            state.step(Input::NodeJoined { node: NodeId(*node) });
        }
        for node in &change.revoked {
            state.step(Input::NodeRevoked { node: NodeId(*node) });
        }
        let (out, rest): (Vec<&Pump>, Vec<&Pump>) =
            state.pumps.values().partition(|pump| change.revoked.contains(&pump.node.0));
        out.into_iter().for_each(|pump| pump.tracks.close());
        rest.into_iter().map(|pump| pump.tracks.clone()).collect()
    });
    for tracks in links {
        let link = tracks.for_length(announcement.len());
        link.send(announcement.clone());
        link.flush();
    }
    linking.system.members_changed(linking);
    connect_to(shared, &change.joined);
}

/// Sends something to a node; false if there is no link to it.
fn tell(shared: &Shared, node: u16, message: &Bytes) -> bool {
    let Some(tracks) = tracks_to(shared, node) else { return false };
    let link = tracks.for_length(message.len());
    link.send(message.clone());
    link.flush();
    true
}

fn tracks_to(shared: &Shared, node: u16) -> Option<Tracks> {
    shared.with(|state| {
        state.pumps.values().find(|pump| pump.node.0 == node).map(|pump| pump.tracks.clone())
    })
}

/// Sends something to a node that may get lost: if there is no link, or too much of it waits.
pub(super) fn offer(shared: &Shared, node: u16, message: Bytes) {
    if let Some(tracks) = tracks_to(shared, node) {
        let link = tracks.for_length(message.len());
        if link.offer(message) {
            link.flush();
        }
    }
}

/// A link on both of whose tracks both sides have said who they are.
struct Met {
    tracks: Tracks,
    sent: Hello,
    received: Hello,
    /// What came after the Hello, by track.
    rest: [Vec<u8>; 2],
}

/// A connection on which both have said who they are.
#[derive(Debug)]
struct Greeted {
    link: Arc<Link>,
    received: Hello,
    rest: Vec<u8>,
}

impl Met {
    fn new(sent: Hello, small: Greeted, bulk: Greeted) -> Met {
        let tracks = Tracks { small: small.link, bulk: bulk.link };
        Met { tracks, sent, received: small.received, rest: [small.rest, bulk.rest] }
    }
}

/// The Hello for a new link with `node`, on the small track.
fn hello_to(shared: &Shared, node: NodeId, pair: u64) -> Result<Hello> {
    let hello =
        shared.with(|state| state.kernel.hello(node)).context("a node that is not known")?;
    Ok(Hello { pair, packs: shared.config.compression != Packing::Never, ..hello })
}

/// Exchanges Hellos on both tracks of a link that this node makes to `node`; `connect` makes the second connection.
fn meet(
    shared: &Shared,
    node: NodeId,
    first: (Tls, Subject),
    connect: impl FnOnce() -> Result<(Tls, Subject)>,
    deadline: Instant,
) -> Result<Met> {
    let sent = hello_to(shared, node, u64::from_le_bytes(random()))?;
    let speak = |(tls, subject): (Tls, Subject), hello: Hello| -> Result<Greeted> {
        ensure!(
            subject.node == node.0,
            "node {} was expected, but the certificate is node {}'s",
            node.0,
            subject.node
        );
        let link = Arc::new(Link::new(hello.track, Box::new(tls), LINK_QUEUE));
        link.begin(hello);
        let (received, rest) = hear_hello(shared, &link, &subject, deadline)?;
        ensure!(
            (received.pair, received.track) == (hello.pair, hello.track),
            "it answers for another connection"
        );
        Ok(Greeted { link, received, rest })
    };
    let small = speak(first, sent)?;
    let bulk = speak(connect()?, Hello { track: Track::Bulk, ..sent })?;
    Ok(Met::new(sent, small, bulk))
}

/// Exchanges Hellos with the node that has connected and shown `subject`'s certificate, and waits for the second
/// connection of its link. `None`: this is a second one.
fn greet(
    shared: &Shared,
    linking: &Linking,
    tls: Tls,
    subject: &Subject,
    deadline: Instant,
) -> Result<Option<Met>> {
    let first = Arc::new(Link::new(Track::Small, Box::new(tls), LINK_QUEUE));
    let (received, rest) = hear_hello(shared, &first, subject, deadline)?;
    let node = received.node;
    ensure!(node.0 < shared.config.node, "node {} does not connect to this one", node.0);
    if received.track == Track::Bulk {
        let half = linking.take_half(node, received.pair);
        let Half { sent, waiting } =
            half.context("the second connection of a link that has no first")?;
        first.begin(Hello { track: Track::Bulk, ..sent });
        let link = Arc::into_inner(first).context("nobody else has it")?.into_bulk();
        // If it is not waited for any more, it ends here.
        waiting.try_send(Greeted { link: Arc::new(link), received, rest }).ok();
        return Ok(None);
    }
    let sent = hello_to(shared, node, received.pair)?;
    let (waiting, second) = sync_channel(1);
    let half = Half { sent, waiting };
    // If another one waits, it hears that nobody will come.
    let before = locked(&linking.halves).insert(node, half);
    ensure!(
        before.is_none_or(|before| before.sent.pair != received.pair),
        "a link that is being made already"
    );
    first.begin(sent);
    let bulk = second.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    linking.take_half(node, received.pair);
    let bulk = bulk.context("the second connection of its link has not come")?;
    Ok(Some(Met::new(sent, Greeted { link: first, received, rest }, bulk)))
}

/// Waits for the Hello of the node with `subject`'s certificate; returns it and the bytes that came after it. A node of
/// another version is told this one's, so that both can say what is wrong.
fn hear_hello(
    shared: &Shared,
    link: &Link,
    subject: &Subject,
    deadline: Instant,
) -> Result<(Hello, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let count = link.read_by(&mut chunk, deadline).context("no Hello")?;
        ensure!(count > 0, "the connection was closed");
        bytes.extend_from_slice(&chunk[..count]);
        let (hello, used) = match frame::decode(&bytes) {
            Ok((Packet { frame: Frame::Hello(hello), .. }, used)) => (hello, used),
            Ok(_) => bail!("the first frame is no Hello"),
            // A Hello is short: who announces more is not one of us.
            Err(FrameError::Incomplete { need }) if need <= chunk.len() => continue,
            Err(error @ FrameError::Version { .. }) => {
                if let Ok(hello) = hello_to(shared, NodeId(subject.node), 0) {
                    link.begin(hello);
                }
                return Err(error).with_context(|| format!("node {}", subject.node));
            }
            Err(error) => return Err(error.into()),
        };
        ensure!(
            hello.node.0 == subject.node,
            "it says it is node {}, but its certificate is node {}'s",
            hello.node.0,
            subject.node
        );
        ensure!(hello.to.0 == shared.config.node, "it wants to talk to node {}", hello.to.0);
        return Ok((hello, bytes.split_off(used)));
    }
}

impl Met {
    /// Takes the link into use until it ends.
    fn run(self, shared: &Arc<Shared>) {
        let Met { tracks, sent, received, rest: [rest, bulk_rest] } = self;
        let node = received.node;
        let Some(linking) = &shared.linking else { return };
        let number = shared.with(|state| {
            let number = state.new_link();
            // Revoked since its certificate was looked at.
            if linking.membership.members().check(node.0).is_err() {
                tracks.close();
                return number;
            }
            state.links.insert(number, tracks.clone());
            state.step(Input::LinkUp { link: number, sent: &sent, received: &received });
            if shared.is_stopping() {
                tracks.close();
            }
            number
        });
        log_news(shared, |unsaid| tracing::info!(node = node.0, unsaid, "link up"));
        let packs = sent.packs && received.packs;
        if packs {
            tracks.pack(shared.config.compression);
        }
        let pump = Pump { link: tracks.small.clone(), tracks: tracks.clone(), node, number, packs };
        let reason = match pump.start_others(shared, bulk_rest) {
            Ok(threads) => {
                let reason = pump.run(shared, rest);
                tracks.close();
                threads.into_iter().filter_map(|thread| thread.join().err()).for_each(|_| {
                    tracing::error!("a thread of a link has panicked");
                });
                reason
            }
            Err(error) => error.to_string(),
        };
        tracks.close();
        shared.with(|state| {
            state.links.remove(&number);
            state.step(Input::LinkDown { node, link: number });
        });
        if !shared.is_stopping() {
            log_news(shared, |unsaid| tracing::info!(node = node.0, reason, unsaid, "link down"));
        }
    }
}

/// Says something about links in the log, unless there is too much of it.
fn log_news(shared: &Shared, line: impl FnOnce(u64)) {
    if let Some(unsaid) = shared.with(|state| state.link_news.admit(monotonic())) {
        line(unsaid);
    }
}

/// A track of a link in use.
#[derive(Clone, Debug)]
pub(super) struct Pump {
    pub(super) link: Arc<Link>,
    tracks: Tracks,
    node: NodeId,
    number: LinkId,
    /// Frames may come compressed.
    packs: bool,
}

/// What a read has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Nothing,
    /// All there was.
    Some,
    /// Perhaps not all there was, or the end.
    Full,
}

impl Turn {
    fn has_more(self) -> bool {
        self == Turn::Full
    }
}

impl Pump {
    /// Starts the threads that write what has to wait, and the reader of the bulk track.
    fn start_others(
        &self,
        shared: &Arc<Shared>,
        rest: Vec<u8>,
    ) -> std::io::Result<Vec<JoinHandle<()>>> {
        let mut threads = Vec::new();
        for track in Track::ALL {
            let link = self.tracks.of(track).clone();
            let flusher = Builder::new().name("link-flush".into());
            threads.push(flusher.spawn(move || link.flush_queued())?);
        }
        let bulk = Pump { link: self.tracks.bulk.clone(), ..self.clone() };
        let shared = shared.clone();
        let reader = Builder::new().name("link-bulk".into());
        threads.push(reader.spawn(move || {
            let reason = bulk.read_bulk(&shared, rest);
            tracing::debug!(node = bulk.node.0, reason, "the bulk track has ended");
            bulk.tracks.close();
        })?);
        Ok(threads)
    }

    /// Reads the bulk track until it ends, and says why it did.
    fn read_bulk(&self, shared: &Shared, rest: Vec<u8>) -> String {
        let mut reading = self.link.reading();
        reading.begin(rest);
        self.take(shared, &mut reading);
        loop {
            // What has come is taken first, when it may be.
            if reading.is_early {
                if !self.link.await_unheld() {
                    return "the link is closed".to_owned();
                }
                self.take(shared, &mut reading);
                continue;
            }
            let read = self.turn(shared, &mut reading);
            if let Some(reason) = reading.ended.take() {
                return reason;
            }
            if !read.has_more()
                && !reading.is_early
                && let Err(error) = self.link.await_turn()
            {
                return error.to_string();
            }
        }
    }

    /// The small track's own reader: reads until the link ends, and says why it did.
    fn run(&self, shared: &Shared, rest: Vec<u8>) -> String {
        {
            let mut reading = self.link.reading();
            reading.begin(rest);
            self.take(shared, &mut reading);
        }
        shared.with(|state| state.pumps.insert(self.number, self.clone()));
        shared.watched.fetch_add(1, Ordering::SeqCst);
        if let Some(linking) = &shared.linking {
            // Later changes are told to all who are among the pumps.
            let announcement = linking.membership.announcement();
            let link = self.tracks.for_length(announcement.len());
            link.send(announcement);
            link.flush();
        }
        let mut watcher = Watcher::default();
        let reason = loop {
            let mut reading = self.link.reading();
            let read = self.turn(shared, &mut reading);
            if let Some(reason) = reading.ended.take() {
                break reason;
            }
            let calls = std::mem::take(&mut reading.calls);
            drop(reading);
            watcher.await_answers(shared, calls);
            if !read.has_more()
                && let Err(error) = self.link.await_turn()
            {
                break error.to_string();
            }
        };
        shared.with(|state| state.pumps.remove(&self.number));
        shared.watched.fetch_add(1, Ordering::SeqCst);
        reason
    }

    pub(super) fn is_same(&self, other: &Pump) -> bool {
        self.number == other.number
    }

    /// The proxy thread reads as well, while it is looking around anyway: the answer to what it has just sent is
    /// then there one wake-up earlier.
    pub(super) fn try_turn(&self, shared: &Shared) -> bool {
        let Some(mut reading) = self.link.try_reading() else { return false };
        let first = self.turn(shared, &mut reading);
        let mut read = first;
        // What has been decrypted is no longer at the socket, where the link's own reader may be waiting.
        while read.has_more() {
            read = self.turn(shared, &mut reading);
        }
        // This thread looks for the answers anyway.
        reading.calls = 0;
        first != Turn::Nothing
    }

    /// Reads what there is, without waiting.
    fn turn(&self, shared: &Shared, reading: &mut Reading) -> Turn {
        if reading.ended.is_some() {
            return Turn::Nothing;
        }
        match self.link.try_read(reading.room()) {
            None => return Turn::Nothing,
            Some(Ok(0)) => reading.ended = Some("the other side has closed it".into()),
            Some(Ok(count)) => {
                let is_full = reading.note_read(count);
                self.link.note_use(monotonic());
                self.take(shared, reading);
                if reading.ended.is_none() && !is_full {
                    return Turn::Some;
                }
            }
            Some(Err(error)) => reading.ended = Some(error.to_string()),
        }
        if reading.ended.is_some() {
            // The link's own reader notices, and cleans up.
            self.link.close();
        }
        Turn::Full
    }

    /// Gives the whole frames that have been read to the kernel.
    fn take(&self, shared: &Shared, reading: &mut Reading) {
        let taken = match self.link.track() {
            Track::Small => self.take_frames(shared, reading.unread(), None),
            Track::Bulk => {
                let whole = reading.whole();
                self.take_frames(shared, &whole, Some(&whole))
            }
        };
        match taken {
            Ok((used, calls, is_early)) => {
                reading.calls += calls;
                reading.is_early = is_early;
                reading.remove(used);
            }
            Err(reason) => {
                shared.with(|state| state.counters.protocol_errors += 1);
                // Nothing more is taken, whatever comes before it.
                reading.is_early = false;
                reading.ended = Some(reason);
            }
        }
    }

    /// Gives the whole frames in `bytes` to the kernel, and the rest to the members thread; returns how much they are, and
    /// how many calls they brought. On the bulk track it stops before what comes too early, and says so.
    fn take_frames(
        &self,
        shared: &Shared,
        bytes: &[u8],
        whole: Option<&Bytes>,
    ) -> Result<(usize, usize, bool), String> {
        let (mut used, mut calls) = (0, 0);
        loop {
            let (mut packets, mut end) = (Vec::new(), used);
            let stopped = loop {
                let packet = match control::next(&bytes[end..]) {
                    Ok(Next::Control(message, length)) => break Ok((message, length)),
                    Ok(Next::Kernel) => frame::decode(&bytes[end..]),
                    Err(error) => break Err(error),
                };
                match packet {
                    Ok((packet, length)) => {
                        packets.push((end, Packet { whole, ..packet }));
                        end += length;
                    }
                    Err(error) => break Err(error),
                }
            };
            if !packets.is_empty() {
                used = shared.with(|state| self.give(state, &packets, end, &mut calls));
                if self.link.track() == Track::Small {
                    self.tracks.bulk.hold(false);
                }
            }
            if used < end {
                return Ok((used, calls, true));
            }
            match stopped {
                Ok((Control::Packed(packed), length)) if self.packs => {
                    let frame = packing::unpack(packed).map_err(|error| error.to_string())?;
                    let end = used + length;
                    if self.give_unpacked(shared, &frame, (used, end), &mut calls)? < end {
                        return Ok((used, calls, true));
                    }
                    used = end;
                }
                Ok((message, length)) => {
                    pass_on(shared, self.node, message)?;
                    used += length;
                }
                Err(FrameError::Incomplete { .. }) => return Ok((used, calls, false)),
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// Gives a frame that came compressed, from `start` to `end` of what has been read, to the kernel; returns `start` if it
    /// comes too early.
    fn give_unpacked(
        &self,
        shared: &Shared,
        frame: &Bytes,
        (start, end): (usize, usize),
        calls: &mut usize,
    ) -> Result<usize, String> {
        let (packet, length) = frame::decode(frame).map_err(|error| error.to_string())?;
        if length != frame.len() {
            return Err("something comes after a compressed frame".into());
        }
        let packets = [(start, Packet { whole: Some(frame), ..packet })];
        Ok(shared.with(|state| {
            let taken = self.give(state, &packets, end, calls);
            state.counters.packed_in += u64::from(taken == end);
            taken
        }))
    }

    /// Gives packets to the kernel; returns where the first that comes too early begins, or `end`.
    fn give(
        &self,
        state: &mut Node,
        packets: &[(usize, Packet<'_>)],
        end: usize,
        calls: &mut usize,
    ) -> usize {
        let (node, link, track) = (self.node, self.number, self.link.track());
        let posted = state.couriers.posted;
        let mut taken = end;
        for (start, packet) in packets {
            if state.kernel.is_early(node, track, packet) {
                // Under the lock: the small frames that it waits for come later.
                self.link.hold(true);
                taken = *start;
                break;
            }
            state.counters.frames_in += 1;
            state.step(Input::Packet { node, link, track, packet });
        }
        let begin = packets.first().map_or(end, |(start, _)| *start);
        state.counters.bytes_in += (taken - begin) as u64;
        state.settle();
        *calls += state.couriers.posted - posted;
        taken
    }
}

/// Gives a message about members to the thread that takes them.
fn pass_on(shared: &Shared, node: NodeId, message: Control<'_>) -> Result<(), String> {
    let Some(linking) = &shared.linking else { return Ok(()) };
    let from = node.0;
    let heard = match message {
        Control::Group(bytes) => {
            linking.system.deliver(from, bytes);
            return Ok(());
        }
        Control::Load(bytes) => return super::sensing::hear(shared, node, bytes),
        Control::Members(document) => Heard::Members { from, document: document.to_vec() },
        Control::Renew(request) => Heard::Renew { from, request: request.to_vec() },
        Control::Renewed(certificate) => Heard::Renewed { from, certificate: certificate.to_vec() },
        Control::NotRenewed(why) => Heard::NotRenewed { from, why: why.to_vec() },
        Control::Packed(_) => return Err("a compressed frame, which was not agreed on".to_owned()),
    };
    let sent = linking.heard.try_send(heard);
    sent.map_err(|_| "it says more about members than can be taken".to_owned())
}
