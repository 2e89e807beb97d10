//! Links to the other nodes: who connects, the Hellos, and the threads that read.
//!
//! Of two nodes the one with the smaller number connects, the other accepts. A link's reader gives each frame to
//! the kernel and carries out what follows itself: an answer goes straight into the caller's lane.

use super::link::{Link, Reading, Tcp};
use super::node::Shared;
use super::proxy::Watcher;
use crate::frame::{self, Frame, FrameError, Hello, Packet};
use crate::host::solo::monotonic;
use crate::kernel::{Input, LinkId};
use crate::limits::{
    FRAME_MAX, HANDSHAKE_TIMEOUT, HANDSHAKES_MAX, LINK_QUEUE, RECONNECT_MAX, RECONNECT_MIN,
};
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use m3ipc::NodeId;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::Builder;
use std::time::Instant;

/// Listens for the other nodes.
pub(super) fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).with_context(|| format!("cannot listen at {address}"))
}

/// The body of the thread that accepts connections.
pub(super) fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    let handshakes = Arc::new(AtomicUsize::new(0));
    while !shared.is_stopping() {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a link");
                std::thread::sleep(RECONNECT_MIN);
                continue;
            }
        };
        if shared.is_stopping() {
            return;
        }
        // Strangers who connect and say nothing must not use up the threads.
        if handshakes.fetch_add(1, Ordering::SeqCst) >= HANDSHAKES_MAX {
            handshakes.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        let (shared, counter) = (shared.clone(), handshakes.clone());
        let thread = Builder::new().name("link".into()).spawn(move || {
            let met = meet(&shared, stream, None);
            counter.fetch_sub(1, Ordering::SeqCst);
            match met {
                Ok(met) => met.run(&shared),
                Err(error) => {
                    tracing::debug!(error = format!("{error:#}"), "a connection is refused")
                }
            }
        });
        if let Err(error) = thread {
            tracing::error!(%error, "cannot start a thread");
            handshakes.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// The body of the thread that keeps a link to `node`, which accepts.
pub(super) fn connect(shared: &Shared, node: NodeId, address: SocketAddr) {
    let mut pause = RECONNECT_MIN;
    while !shared.is_stopping() {
        let met = TcpStream::connect_timeout(&address, HANDSHAKE_TIMEOUT)
            .context("cannot connect")
            .and_then(|stream| meet(shared, stream, Some(node)));
        match met {
            Ok(met) => {
                met.run(shared);
                pause = RECONNECT_MIN;
            }
            Err(error) => tracing::debug!(node = node.0, error = format!("{error:#}"), "no link"),
        }
        shared.nap(pause);
        pause = (pause * 2).min(RECONNECT_MAX);
    }
}

/// A connection on which both have said who they are.
struct Met {
    link: Arc<Link>,
    sent: Hello,
    received: Hello,
    /// What came after the Hello.
    rest: Vec<u8>,
}

/// Exchanges Hellos. `node`: whom this node has connected to; the other speaks first if it connected.
fn meet(shared: &Shared, stream: TcpStream, node: Option<NodeId>) -> Result<Met> {
    let link = Arc::new(Link::new(Box::new(Tcp::new(stream)?), LINK_QUEUE));
    let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
    let say = |node: NodeId| -> Result<Hello> {
        let hello = shared
            .with(|state| state.kernel.hello(node))
            .context("a node that is not configured")?;
        link.send(Bytes::from(
            Packet { sequence: 0, received: 0, frame: Frame::Hello(hello) }.encode(),
        ));
        link.flush();
        Ok(hello)
    };
    let said = node.map(say).transpose()?;
    let (received, rest) = hear_hello(&link, deadline)?;
    ensure!(received.to.0 == shared.config.node, "it wants to talk to node {}", received.to.0);
    let sent = match said {
        Some(sent) => {
            ensure!(sent.to == received.node, "it is node {}", received.node.0);
            sent
        }
        None => {
            ensure!(
                received.node.0 < shared.config.node,
                "node {} does not connect to this one",
                received.node.0
            );
            say(received.node)?
        }
    };
    Ok(Met { link, sent, received, rest })
}

/// Waits for the Hello; returns it and the bytes that came after it.
fn hear_hello(link: &Link, deadline: Instant) -> Result<(Hello, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let count = link.read_by(&mut chunk, deadline).context("no Hello")?;
        ensure!(count > 0, "the connection was closed");
        bytes.extend_from_slice(&chunk[..count]);
        match frame::decode(&bytes) {
            Ok((Packet { frame: Frame::Hello(hello), .. }, used)) => {
                return Ok((hello, bytes.split_off(used)));
            }
            Ok(_) => bail!("the first frame is no Hello"),
            // A Hello is short: who announces more is not one of us.
            Err(FrameError::Incomplete { need }) if need <= chunk.len() => {}
            Err(error) => return Err(error.into()),
        }
    }
}

impl Met {
    /// Takes the link into use until it ends.
    fn run(self, shared: &Shared) {
        let Met { link, sent, received, rest } = self;
        let node = received.node;
        let number = shared.with(|state| {
            let number = state.new_link();
            state.links.insert(number, link.clone());
            state.step(Input::LinkUp { link: number, sent: &sent, received: &received });
            if shared.is_stopping() {
                link.close();
            }
            number
        });
        tracing::info!(node = node.0, "link up");
        let flusher = link.clone();
        let reason =
            match Builder::new().name("link-flush".into()).spawn(move || flusher.flush_queued()) {
                Ok(_) => Pump { link: link.clone(), node, number }.run(shared, rest),
                Err(error) => error.to_string(),
            };
        link.close();
        shared.with(|state| {
            state.links.remove(&number);
            state.step(Input::LinkDown { node, link: number });
        });
        if !shared.is_stopping() {
            tracing::info!(node = node.0, reason, "link down");
        }
    }
}

/// A link in use.
#[derive(Clone, Debug)]
pub(super) struct Pump {
    pub(super) link: Arc<Link>,
    node: NodeId,
    number: LinkId,
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
    /// The link's own reader: reads until the link ends, and says why it did.
    fn run(self, shared: &Shared, rest: Vec<u8>) -> String {
        {
            let mut reading = self.link.reading();
            reading.end = rest.len();
            reading.bytes = rest;
            self.take(shared, &mut reading);
        }
        shared.with(|state| state.pumps.insert(self.number, self.clone()));
        shared.watched.fetch_add(1, Ordering::SeqCst);
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
        let read = self.turn(shared, &mut reading);
        // This thread looks for the answers anyway.
        reading.calls = 0;
        read != Turn::Nothing
    }

    /// Reads what there is, without waiting.
    fn turn(&self, shared: &Shared, reading: &mut Reading) -> Turn {
        if reading.ended.is_some() {
            return Turn::Nothing;
        }
        // Room for the rest of the longest frame, and then some.
        let end = reading.end;
        if reading.bytes.len() < end + FRAME_MAX {
            reading.bytes.resize(end + FRAME_MAX, 0);
        }
        match self.link.try_read(&mut reading.bytes[end..]) {
            None => return Turn::Nothing,
            Some(Ok(0)) => reading.ended = Some("the other side has closed it".into()),
            Some(Ok(count)) => {
                let is_full = end + count == reading.bytes.len();
                reading.end += count;
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
        match take_frames(shared, self.node, self.number, &reading.bytes[..reading.end]) {
            Ok((used, calls)) => {
                reading.calls += calls;
                reading.bytes.copy_within(used..reading.end, 0);
                reading.end -= used;
            }
            Err(error) => {
                shared.with(|state| state.counters.protocol_errors += 1);
                reading.ended = Some(error.to_string());
            }
        }
    }
}

/// Gives the whole frames in `bytes` to the kernel; returns how much they are, and how many calls they brought.
fn take_frames(
    shared: &Shared,
    node: NodeId,
    link: LinkId,
    bytes: &[u8],
) -> Result<(usize, usize), FrameError> {
    let mut used = 0;
    let mut packets = Vec::new();
    let outcome = loop {
        match frame::decode(&bytes[used..]) {
            Ok((packet, length)) => {
                packets.push(packet);
                used += length;
            }
            Err(FrameError::Incomplete { .. }) => break Ok(used),
            Err(error) => break Err(error),
        }
    };
    let mut calls = 0;
    if !packets.is_empty() {
        shared.with(|state| {
            state.counters.frames_in += packets.len() as u64;
            state.counters.bytes_in += used as u64;
            let posted = state.couriers.posted;
            for packet in &packets {
                state.step(Input::Packet { node, link, packet });
            }
            state.settle();
            calls = state.couriers.posted - posted;
        });
    }
    outcome.map(|used| (used, calls))
}
