//! Another node: its link, the session that outlives links, and when it is given up.
//!
//! Both sides name a session by incarnation and epoch of both, taken from the two Hellos on a link, and neither ever
//! goes back to an earlier incarnation or epoch. So they agree whether the session goes on or a new one starts,
//! even if one of them has missed the end of the last: there it ends when the next link comes up.
//!
//! A link has two tracks. A small frame overtakes bulk ones unless somebody could tell: what must be in order with a
//! bulk frame that the other may not have yet goes on the bulk track, behind it ([`Peer::track_of`]).

use super::calls::{Lane, Outgoing};
use super::directory::Reply;
use super::shares::Shares;
use super::{Forgery, Kernel, LinkError, LinkId, NodeInfo, NodeState, Output, Steer};
use crate::frame::{Frame, Hello, Packet, Track};
use crate::limits::{
    CONGESTED, LINK_SILENCE, NODE_DOWN_AFTER, PING_EVERY, RECEIVED_BYTES, RECEIVED_FRAMES,
    UNRECEIVED_LIMIT, UNRECEIVED_MAX,
};
use crate::server::{Gone, Nanos};
use bytes::Bytes;
use m3ipc::{DcId, Endpoint, IpcError, NodeId};
use std::collections::{BTreeMap, VecDeque};

/// Another node.
#[derive(Debug)]
pub(super) struct Peer {
    node: NodeId,
    link: Link,
    /// How often it was given up.
    epoch: u64,
    session: Option<Session>,
    /// Sequenced frames of the session so far, by track, and those that it may not have received.
    sent: [Sent; 2],
    unreceived_bytes: usize,
    /// The last request on each lane that is among the unreceived bulk frames.
    bulk_lanes: BTreeMap<(DcId, Lane), u64>,
    /// Until it has received so many bulk frames nothing overtakes any: news of the directory is among them.
    in_order_until: u64,
    /// Sequenced frames received in the session, by track; how many of them it has been told of; bytes of the rest.
    received: [u64; 2],
    said: [u64; 2],
    unsaid_bytes: usize,
    /// A limit is reached: it is given up at the end of the step.
    pub(super) is_overfull: bool,
    /// The administrator wants no link.
    pub(super) is_cut: bool,
    pub(super) outgoing: Outgoing,
    /// Of `outgoing`: they, and their kept frames.
    pub(super) open_out: Shares,
    /// Calls of that node that are open here, and their payloads.
    pub(super) open_in: Shares,
}

/// What has been sent on a track in a session.
#[derive(Debug, Default)]
struct Sent {
    count: u64,
    /// Those that the other may not have received, the last ones; a bulk request with its lane.
    unreceived: VecDeque<(Bytes, Option<(DcId, Lane)>)>,
}

impl Sent {
    /// Frames that the other has received, as it has said.
    fn confirmed(&self) -> u64 {
        self.count - self.unreceived.len() as u64
    }
}

/// Is a frame believed; if not, for whom it speaks, and why not.
type Believed = Result<(), (DcId, Endpoint, Forgery)>;

/// The other's half of the session's name; this node's half is its incarnation and `Peer::epoch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Session {
    incarnation: u64,
    epoch: u64,
}

#[derive(Clone, Copy, Debug)]
enum Link {
    /// When something came, and was sent, by track.
    Up {
        link: LinkId,
        since: Nanos,
        heard: [Nanos; 2],
        spoke: [Nanos; 2],
        round_trip: Option<Nanos>,
    },
    Lost {
        since: Nanos,
    },
    Down {
        since: Nanos,
    },
}

impl Peer {
    /// The other's life, if there is a session.
    pub(super) fn life(&self) -> Option<u64> {
        self.session.map(|session| session.incarnation)
    }

    pub(super) fn new(node: NodeId, now: Nanos) -> Peer {
        Peer {
            node,
            link: Link::Lost { since: now },
            epoch: 0,
            session: None,
            sent: Default::default(),
            unreceived_bytes: 0,
            bulk_lanes: BTreeMap::new(),
            in_order_until: 0,
            received: [0; 2],
            said: [0; 2],
            unsaid_bytes: 0,
            is_overfull: false,
            is_cut: false,
            outgoing: Outgoing::new(),
            open_out: Shares::default(),
            open_in: Shares::default(),
        }
    }

    pub(super) fn state(&self) -> NodeState {
        match self.link {
            Link::Up { since, round_trip, .. } => NodeState::Up { since, round_trip },
            Link::Lost { since } => NodeState::Lost { since },
            Link::Down { since } => NodeState::Down { since },
        }
    }

    pub(super) fn info(&self) -> NodeInfo {
        NodeInfo {
            node: self.node,
            state: self.state(),
            incarnation: self.session.map_or(0, |session| session.incarnation),
            epoch: self.epoch,
            calls_out: self.outgoing.len(),
            calls_in: self.open_in.calls(),
            is_cut: self.is_cut,
        }
    }

    pub(super) fn hello(&self, node: NodeId, incarnation: u64) -> Hello {
        Hello {
            node,
            to: self.node,
            incarnation,
            epoch: self.epoch,
            peer_incarnation: self.session.map_or(0, |session| session.incarnation),
            peer_epoch: self.session.map_or(0, |session| session.epoch),
            received: self.received[0],
            received_bulk: self.received[1],
            track: Track::Small,
            pair: 0,
            packs: false,
        }
    }

    pub(super) fn unreceived_bytes(&self) -> usize {
        self.unreceived_bytes
    }

    pub(super) fn deadline(&self) -> Option<Nanos> {
        match self.link {
            Link::Up { heard, spoke, .. } => {
                let (heard, spoke) = (heard[0].min(heard[1]), spoke[0].min(spoke[1]));
                Some((heard + LINK_SILENCE).min(spoke + PING_EVERY))
            }
            Link::Lost { since } => Some(since + NODE_DOWN_AFTER),
            Link::Down { .. } => None,
        }
    }

    fn lose_link(&mut self, now: Nanos, out: &mut Vec<Output>) {
        self.link = Link::Lost { since: now };
        self.end_cancelled(out);
    }

    /// The track of a frame that is sent now. On the bulk track it comes after all that has been sent before.
    fn track_of(&self, frame: &Frame<'_>) -> Track {
        let bulk = &self.sent[Track::Bulk as usize];
        let overtakes = match frame {
            _ if frame.is_bulk() => false,
            _ if !frame.is_sequenced() || bulk.unreceived.is_empty() => true,
            _ if self.in_order_until > bulk.confirmed() => false,
            // In the order of the lane.
            Frame::Request(request) => {
                !self.bulk_lanes.contains_key(&(request.dc, Lane::new(request.id(), request.to)))
            }
            Frame::Cancel { dc, to, id } => {
                !self.bulk_lanes.contains_key(&(*dc, Lane::new(*id, *to)))
            }
            Frame::Answer(_) | Frame::Notify { .. } | Frame::Await { .. } => true,
            Frame::Awaited { outcome: Ok(bound), .. } => *bound != Endpoint::NONE,
            // Deaths come after what the dead have sent; where endpoints are, after what has been sent to them.
            _ => false,
        };
        if overtakes { Track::Small } else { Track::Bulk }
    }

    /// Sends a frame, now if there is a link. A sequenced one is kept until it is received; of the others,
    /// and to a node that is down, it is lost.
    fn send(&mut self, now: Nanos, frame: &Frame<'_>, out: &mut Vec<Output>) -> Bytes {
        self.send_on(self.track_of(frame), now, frame, out)
    }

    fn send_on(
        &mut self,
        track: Track,
        now: Nanos,
        frame: &Frame<'_>,
        out: &mut Vec<Output>,
    ) -> Bytes {
        if matches!(self.link, Link::Down { .. }) {
            return Bytes::new();
        }
        let [received, received_bulk] = self.received;
        let mut packet = Packet { received, received_bulk, ..Packet::alone(*frame) };
        if frame.is_sequenced() {
            self.sent[track as usize].count += 1;
            packet.sequence = self.sent[track as usize].count;
            if track == Track::Bulk {
                packet.after = self.sent[Track::Small as usize].count;
            }
        }
        let bytes = Bytes::from(packet.encode());
        if frame.is_sequenced() {
            self.keep(track, packet.sequence, frame, &bytes);
        }
        if let Link::Up { link, spoke, .. } = &mut self.link {
            spoke[track as usize] = now;
            out.push(Output::Send { node: self.node, link: *link, track, bytes: bytes.clone() });
            self.said = self.received;
            self.unsaid_bytes = 0;
        }
        bytes
    }

    /// Keeps a sequenced frame until the other has received it.
    fn keep(&mut self, track: Track, sequence: u64, frame: &Frame<'_>, bytes: &Bytes) {
        let mut lane = None;
        if track == Track::Bulk {
            if let Frame::Request(request) = frame {
                let key = (request.dc, Lane::new(request.id(), request.to));
                self.bulk_lanes.insert(key, sequence);
                lane = Some(key);
            }
            if frame.is_of_directory() {
                self.in_order_until = sequence;
            }
        }
        self.unreceived_bytes += bytes.len();
        self.sent[track as usize].unreceived.push_back((bytes.clone(), lane));
        self.is_overfull |= self.unreceived_bytes > UNRECEIVED_LIMIT;
    }

    /// The other has received so many frames of the session, by track.
    fn forget_received(&mut self, counts: [u64; 2]) -> Result<(), LinkError> {
        for (sent, count) in self.sent.iter_mut().zip(counts) {
            if count > sent.count {
                return Err(LinkError::ReceivedTooMany { got: count, sent: sent.count });
            }
            while sent.confirmed() < count {
                let Some((bytes, lane)) = sent.unreceived.pop_front() else { break };
                self.unreceived_bytes -= bytes.len();
                let confirmed = sent.confirmed();
                if let Some(lane) = lane
                    && self.bulk_lanes.get(&lane).is_some_and(|last| *last <= confirmed)
                {
                    self.bulk_lanes.remove(&lane);
                }
            }
        }
        Ok(())
    }

    /// Says what has been received, if so much is unsaid that the other keeps too much for it.
    fn say_received(&mut self, now: Nanos, out: &mut Vec<Output>) {
        let unsaid: u64 = self.received.iter().sum::<u64>() - self.said.iter().sum::<u64>();
        if unsaid >= RECEIVED_FRAMES || self.unsaid_bytes >= RECEIVED_BYTES {
            self.send(now, &Frame::Received, out);
        }
    }

    /// A link with `theirs` comes up: starts the session that the Hellos name, or goes on with it where the other is.
    /// True if another session was there: it is over.
    fn start_or_go_on(&mut self, theirs: &Hello, incarnation: u64) -> Result<bool, LinkError> {
        let session = Session { incarnation: theirs.incarnation, epoch: theirs.epoch };
        let has_it = theirs.peer_incarnation == incarnation && theirs.peer_epoch == self.epoch;
        let received = if has_it { [theirs.received, theirs.received_bulk] } else { [0; 2] };
        let confirmed: u64 = self.sent.iter().map(Sent::confirmed).sum();
        let received_any = received.into_iter().max().unwrap_or(0);
        match self.session {
            Some(old) if old != session => Ok(true),
            // It has confirmed frames of the session that it says it never had: its Hello is older than that.
            Some(_) if !has_it && confirmed > 0 => Err(LinkError::Outdated),
            Some(_) => self.forget_received(received).map(|()| false),
            None if received_any > 0 => {
                Err(LinkError::ReceivedTooMany { got: received_any, sent: 0 })
            }
            // What was to be sent before there was a session is its beginning.
            None => {
                self.session = Some(session);
                Ok(false)
            }
        }
    }

    fn is_early(&self, track: Track, packet: &Packet<'_>) -> bool {
        track == Track::Bulk
            && packet.sequence > self.received[Track::Bulk as usize]
            && packet.after > self.received[Track::Small as usize]
    }

    /// Whatever there was with it is over.
    fn end_session(&mut self, out: &mut Vec<Output>) {
        self.session = None;
        self.sent = Default::default();
        self.unreceived_bytes = 0;
        self.bulk_lanes.clear();
        self.in_order_until = 0;
        self.received = [0; 2];
        self.said = [0; 2];
        self.unsaid_bytes = 0;
        self.is_overfull = false;
        self.end_all_outgoing(out);
    }
}

impl Kernel {
    /// Has so much of what was sent to the node not been received that large messages should wait?
    pub fn is_congested(&self, node: NodeId) -> bool {
        self.peers.get(&node).is_some_and(|peer| peer.unreceived_bytes > CONGESTED)
    }

    /// Sends a frame to another node; what need not arrive only if there is room. Returns its bytes.
    pub(super) fn send(
        &mut self,
        now: Nanos,
        node: NodeId,
        frame: &Frame<'_>,
        out: &mut Vec<Output>,
    ) -> Bytes {
        match self.peers.get_mut(&node) {
            Some(peer)
                if !matches!(frame, Frame::Notify { .. })
                    || peer.unreceived_bytes <= UNRECEIVED_MAX =>
            {
                peer.send(now, frame, out)
            }
            _ => Bytes::new(),
        }
    }

    pub(super) fn link_up(
        &mut self,
        now: Nanos,
        link: LinkId,
        sent: &Hello,
        received: &Hello,
        out: &mut Vec<Output>,
    ) {
        let node = received.node;
        let is_new = self.peers.get(&node).is_some_and(|peer| peer.session.is_none());
        let is_new = match self.meet(sent, received) {
            Ok(true) => {
                self.restart_session(now, received, out);
                true
            }
            Ok(false) => is_new,
            Err(reason) => {
                out.push(Output::DropLink { node, link, reason });
                if matches!(reason, LinkError::ReceivedTooMany { .. }) {
                    self.give_up(now, node, reason, out);
                }
                return;
            }
        };
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.is_cut {
            // Made before it was cut.
            return out.push(Output::DropLink { node, link, reason: LinkError::Cut });
        }
        if let Link::Up { link: replaced, .. } = peer.link {
            out.push(Output::DropLink { node, link: replaced, reason: LinkError::Replaced });
        }
        let times = [now; 2];
        peer.link = Link::Up { link, since: now, heard: times, spoke: times, round_trip: None };
        for track in Track::ALL {
            let unreceived = peer.sent[track as usize].unreceived.iter();
            out.extend(unreceived.map(|(bytes, _)| {
                let bytes = bytes.clone();
                Output::Send { node, link, track, bytes }
            }));
        }
        // The round trip is soon known, and what has been received.
        peer.send(now, &Frame::Ping { sent: now }, out);
        if is_new {
            self.introduce_directory(now, node, out);
            self.introduce_replicas(now, node, out);
        }
    }

    fn meet(&mut self, sent: &Hello, received: &Hello) -> Result<bool, LinkError> {
        let peer = self.peers.get_mut(&received.node).ok_or(LinkError::WrongNode)?;
        if received.to != self.node || sent.to != received.node {
            return Err(LinkError::WrongNode);
        }
        // The other names the session by the Hello that it got from here.
        if sent.incarnation != self.incarnation || sent.epoch != peer.epoch {
            return Err(LinkError::Outdated);
        }
        peer.start_or_go_on(received, self.incarnation)
    }

    /// The other has restarted, or given this node up.
    fn restart_session(&mut self, now: Nanos, received: &Hello, out: &mut Vec<Output>) {
        self.end_session(now, received.node, out);
        if let Some(peer) = self.peers.get_mut(&received.node) {
            peer.session =
                Some(Session { incarnation: received.incarnation, epoch: received.epoch });
        }
    }

    pub(super) fn link_down(
        &mut self,
        now: Nanos,
        node: NodeId,
        gone: LinkId,
        out: &mut Vec<Output>,
    ) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if let Link::Up { link, .. } = peer.link
            && link == gone
        {
            peer.lose_link(now, out);
        }
    }

    pub(super) fn packet(
        &mut self,
        now: Nanos,
        node: NodeId,
        from: LinkId,
        track: Track,
        packet: &Packet<'_>,
        out: &mut Vec<Output>,
    ) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        match &mut peer.link {
            Link::Up { link, heard, .. } if *link == from => heard[track as usize] = now,
            _ => return,
        }
        let received = [packet.received, packet.received_bulk];
        let result = peer.forget_received(received).and_then(|()| {
            if packet.frame.is_sequenced() {
                self.sequenced(now, node, track, packet, out)
            } else {
                self.unsequenced(now, node, &packet.frame, out)
            }
        });
        if let Err(reason) = result {
            self.give_up(now, node, reason, out);
        }
    }

    fn unsequenced(
        &mut self,
        now: Nanos,
        node: NodeId,
        frame: &Frame<'_>,
        out: &mut Vec<Output>,
    ) -> Result<(), LinkError> {
        let Some(peer) = self.peers.get_mut(&node) else { return Ok(()) };
        match frame {
            Frame::Ping { sent } => {
                peer.send(now, &Frame::Pong { sent: *sent }, out);
            }
            Frame::Pong { sent } => {
                if let Link::Up { round_trip, .. } = &mut peer.link {
                    *round_trip = Some(now.saturating_sub(*sent));
                }
            }
            Frame::Hello(_) => return Err(LinkError::SecondHello),
            _ => {}
        }
        Ok(())
    }

    /// Does the frame on that track come too early: has it to wait until more has come on the other? Then it is not to be
    /// given to the kernel yet, nor what comes behind it.
    pub fn is_early(&self, node: NodeId, track: Track, packet: &Packet<'_>) -> bool {
        self.peers.get(&node).is_some_and(|peer| peer.is_early(track, packet))
    }

    /// Takes each frame of the session once, in order.
    fn sequenced(
        &mut self,
        now: Nanos,
        node: NodeId,
        track: Track,
        packet: &Packet<'_>,
        out: &mut Vec<Output>,
    ) -> Result<(), LinkError> {
        let Some(peer) = self.peers.get_mut(&node) else { return Ok(()) };
        let expected = peer.received[track as usize] + 1;
        if packet.sequence < expected {
            return Ok(());
        }
        if packet.sequence > expected {
            return Err(LinkError::Gap { got: packet.sequence, expected });
        }
        if peer.is_early(track, packet) {
            let expected = peer.received[Track::Small as usize] + 1;
            return Err(LinkError::Gap { got: packet.after, expected });
        }
        peer.received[track as usize] = expected;
        peer.unsaid_bytes += packet.frame.payload_len();
        let believed = self.check_speaker(node, &packet.frame)?;
        if let Err((dc, endpoint, forgery)) = believed {
            out.push(Output::Forged { node, dc, endpoint, forgery });
        }
        let is_nobody = matches!(believed, Err((_, _, Forgery::NotThere)));
        match &packet.frame {
            Frame::Request(request) if is_nobody => self.refuse_request(now, node, request, out),
            _ if is_nobody => {}
            // What is of another container has no effect there, or is refused.
            _ => self.take_frame(now, node, packet, out),
        }
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.say_received(now, out);
        }
        Ok(())
    }

    fn take_frame(&mut self, now: Nanos, node: NodeId, packet: &Packet<'_>, out: &mut Vec<Output>) {
        match &packet.frame {
            Frame::Request(request) => self.request(now, node, request, out),
            Frame::Answer(answer) => self.answer(node, answer, packet, out),
            Frame::Cancel { dc, to, id } => self.cancel(now, *dc, *to, *id, out),
            Frame::Gone { dc, to, gone } => self.remote_died(node, *dc, *to, *gone, out),
            Frame::Notify { dc, from, to, value } => {
                self.remote_notify(node, *dc, *from, *to, *value, out)
            }
            Frame::Await { dc, from, to, number, wish } => {
                self.remote_await(now, node, *dc, *from, *to, *number, *wish, out)
            }
            Frame::Awaited { number, outcome, .. } => {
                self.awaited(now, node, *number, *outcome, out);
            }
            Frame::Order { dc, from, to, number, order } => {
                let reply = Reply::There { node, from: *from, number: *number };
                self.remote_order(now, node, *dc, *to, reply, *order, out);
            }
            Frame::Entry { dc, endpoint, epoch } => {
                self.asked(now, node, *dc, *endpoint, *epoch, out);
            }
            Frame::Noted { dc, endpoint, epoch } => {
                self.noted(now, node, *dc, endpoint.slot, *epoch, out);
            }
            Frame::Adopt { dc, endpoint, backup, epoch, rights } => {
                self.adopt(now, node, *dc, *endpoint, *backup, *epoch, rights, out);
            }
            Frame::Adopted { dc, endpoint, epoch, status } => {
                self.adopted(now, node, *dc, *endpoint, *epoch, *status, out);
            }
            Frame::Moved { dc, to, id, is_received } => {
                self.moved(now, node, *dc, *to, *id, *is_received, out);
            }
            Frame::StandBy { dc, to, backup, is_over } => {
                self.stand_by(now, node, *dc, *to, *backup, *is_over, out);
            }
            Frame::Replica { dc, endpoint, is_over } => {
                self.remote_replica(now, node, *dc, *endpoint, *is_over, out);
            }
            Frame::Hello(_) | Frame::Ping { .. } | Frame::Pong { .. } | Frame::Received => {}
        }
    }

    /// Does the node speak for whom the frame is of? It does for its own endpoints, for the servers it has, and for
    /// endpoints that the directory says are there. If it may be one of these that this node has not heard of yet,
    /// the frame is not believed. What it says of a container that does not join the two nodes has no effect.
    fn check_speaker(&self, node: NodeId, frame: &Frame<'_>) -> Result<Believed, LinkError> {
        let (dc, speaker) = match frame {
            Frame::Request(request) => (request.dc, request.message.source),
            // Who makes a call knows where, and takes answers from nowhere else.
            Frame::Answer(answer) if answer.message.source.is_well_known() => return Ok(Ok(())),
            Frame::Answer(answer) => (answer.dc, answer.message.source),
            Frame::Cancel { dc, id, .. } => (*dc, id.source),
            Frame::Gone { dc, gone, .. } => (*dc, *gone),
            // What was pending where the endpoint was before.
            Frame::Notify { dc, to, .. } if self.came_from(*dc, to.slot, node) => {
                return Ok(Ok(()));
            }
            Frame::Notify { dc, from, .. } | Frame::Await { dc, from, .. } => (*dc, *from),
            Frame::Order { dc, from, .. } => (*dc, *from),
            // As answers; and what is about the directory is judged there.
            Frame::Awaited { .. }
            | Frame::Entry { .. }
            | Frame::Noted { .. }
            | Frame::Adopt { .. }
            | Frame::Adopted { .. }
            | Frame::Moved { .. }
            | Frame::StandBy { .. }
            | Frame::Replica { .. }
            | Frame::Hello(_)
            | Frame::Ping { .. }
            | Frame::Pong { .. }
            | Frame::Received => return Ok(Ok(())),
        };
        // Not, or not any more.
        let own = self.containers.get(&dc);
        let Some(container) = own.filter(|own| own.dc.nodes.contains(&self.node)) else {
            return Ok(Err((dc, speaker, Forgery::Elsewhere)));
        };
        let moved = container.directory.place(speaker.slot);
        let is_theirs = match moved {
            Some(place) => place == node,
            None => {
                speaker.node() == node || speaker.is_server() && self.serves(dc, speaker.slot, node)
            }
        };
        let may_be_new = speaker.is_well_known() && container.dc.nodes.contains(&speaker.node());
        match is_theirs {
            true if container.dc.nodes.contains(&node) => Ok(Ok(())),
            true => Ok(Err((dc, speaker, Forgery::Outsider))),
            false if may_be_new => Ok(Err((dc, speaker, Forgery::NotThere))),
            false => Err(LinkError::Forged { dc, endpoint: speaker }),
        }
    }

    fn came_from(&self, dc: DcId, slot: u32, node: NodeId) -> bool {
        self.containers.get(&dc).is_some_and(|container| container.directory.came_from(slot, node))
    }

    /// A node orders something about an endpoint: only those of its own container count.
    #[expect(clippy::too_many_arguments, reason = "the fields of Frame::Order")]
    fn remote_order(
        &mut self,
        now: Nanos,
        node: NodeId,
        dc: DcId,
        to: Endpoint,
        reply: Reply,
        order: crate::frame::Order,
        out: &mut Vec<Output>,
    ) {
        let spans =
            self.containers.get(&dc).is_some_and(|container| container.dc.nodes.contains(&node));
        if spans {
            self.order(now, dc, to, reply, order, out);
        } else if let Reply::There { from, number, .. } = reply {
            let outcome = Err(IpcError::NotBound.status());
            self.send(now, node, &Frame::Awaited { dc, from: to, to: from, number, outcome }, out);
        }
    }

    fn serves(&self, dc: DcId, number: u32, node: NodeId) -> bool {
        self.containers
            .get(&dc)
            .is_some_and(|container| container.dc.servers.get(&number) == Some(&node))
    }

    /// Keeps links alive, drops those that are not, gives up nodes that do not come back.
    pub(super) fn watch_links(&mut self, now: Nanos, out: &mut Vec<Output>) {
        let mut down = Vec::new();
        for peer in self.peers.values_mut() {
            match peer.link {
                Link::Up { link, heard, .. } if heard[0].min(heard[1]) + LINK_SILENCE <= now => {
                    out.push(Output::DropLink { node: peer.node, link, reason: LinkError::Silent });
                    peer.lose_link(now, out);
                }
                Link::Up { spoke, .. } => {
                    let frames = [Frame::Ping { sent: now }, Frame::Received];
                    for (track, frame) in Track::ALL.into_iter().zip(frames) {
                        if spoke[track as usize] + PING_EVERY <= now {
                            peer.send_on(track, now, &frame, out);
                        }
                    }
                }
                Link::Lost { since } if since + NODE_DOWN_AFTER <= now => down.push(peer.node),
                _ => {}
            }
        }
        for node in down {
            self.give_up(now, node, LinkError::Silent, out);
        }
    }

    /// An administrator cuts the link to a node of its container, or has it made again.
    pub(super) fn steer(
        &mut self,
        now: Nanos,
        dc: DcId,
        node: NodeId,
        steer: Steer,
        privileged: bool,
        out: &mut Vec<Output>,
    ) -> Result<(), IpcError> {
        let container = self.containers.get(&dc).ok_or(IpcError::NotBound)?;
        let spans = container.dc.nodes.contains(&node);
        if !privileged {
            return Err(IpcError::Denied);
        }
        match steer {
            Steer::Leave => return self.leave(now, dc, node, out),
            Steer::Enter => return self.enter(now, dc, node, out),
            Steer::Disconnect | Steer::Down | Steer::Connect => {}
        }
        let peer = self.peers.get_mut(&node).filter(|_| spans).ok_or(IpcError::NotBound)?;
        peer.is_cut = steer != Steer::Connect;
        match steer {
            Steer::Disconnect => {
                if let Link::Up { link, .. } = peer.link {
                    out.push(Output::DropLink { node, link, reason: LinkError::Cut });
                    peer.lose_link(now, out);
                }
            }
            Steer::Down if !matches!(peer.link, Link::Down { .. }) => {
                self.give_up(now, node, LinkError::Cut, out);
            }
            Steer::Down | Steer::Connect | Steer::Leave | Steer::Enter => {}
        }
        Ok(())
    }

    /// This node's part of a container has nothing to do with `node` any more. Both sides' calls between the two end; others
    /// of the session go on.
    fn leave(
        &mut self,
        now: Nanos,
        dc: DcId,
        node: NodeId,
        out: &mut Vec<Output>,
    ) -> Result<(), IpcError> {
        let own = self.node;
        let container = self.containers.get_mut(&dc).ok_or(IpcError::NotBound)?;
        if node == own || container.dc.servers.values().any(|home| *home == node) {
            // What would be left is no container.
            return Err(IpcError::InUse);
        }
        if !container.dc.nodes.contains(&node) {
            return Err(IpcError::NotBound);
        }
        let mut known = Vec::new();
        for binding in container.slots.iter_mut() {
            let there = binding.reached.iter().filter(|(reached, _)| *reached == node);
            known.extend(there.map(|(_, to)| (binding.endpoint, *to)));
            binding.reached.retain(|(reached, _)| *reached != node);
        }
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.end_outgoing_of(dc, out);
        }
        for (gone, to) in known {
            self.send(now, node, &Frame::Gone { dc, to, gone }, out);
        }
        self.end_incoming_from(now, dc, node, out);
        self.end_awaits_between(now, dc, node, out);
        if let Some(container) = self.containers.get_mut(&dc) {
            container.tell_all(Gone::Node(node), out);
        }
        self.directory_of_without(now, dc, node, out);
        if let Some(container) = self.containers.get_mut(&dc) {
            container.dc.nodes.remove(&node);
        }
        Ok(())
    }

    /// A container spans `node` (again), a member of the cluster.
    fn enter(
        &mut self,
        now: Nanos,
        dc: DcId,
        node: NodeId,
        out: &mut Vec<Output>,
    ) -> Result<(), IpcError> {
        self.peers.get(&node).ok_or(IpcError::NotBound)?;
        let container = self.containers.get_mut(&dc).ok_or(IpcError::NotBound)?;
        if !container.dc.nodes.insert(node) {
            return Err(IpcError::InUse);
        }
        self.introduce_directory(now, node, out);
        self.introduce_replicas(now, node, out);
        Ok(())
    }

    /// A new member: waited for as the others are at the start.
    pub(super) fn node_joined(&mut self, now: Nanos, node: NodeId) {
        if node != self.node {
            self.peers.entry(node).or_insert_with(|| Peer::new(node, now));
        }
    }

    /// No member any more: calls to it end at once. Its number stays, as it never comes back.
    pub(super) fn node_revoked(&mut self, now: Nanos, node: NodeId, out: &mut Vec<Output>) {
        self.give_up(now, node, LinkError::Revoked, out);
    }

    /// The node's machine says that no daemon listens there: the one that had a session with this node has ended, and
    /// everything bound there with it. One that has not been met yet may be about to start.
    pub(super) fn node_refused(&mut self, now: Nanos, node: NodeId, out: &mut Vec<Output>) {
        let was_met =
            |peer: &Peer| matches!(peer.link, Link::Lost { .. }) && peer.session.is_some();
        if self.peers.get(&node).is_some_and(was_met) {
            self.give_up(now, node, LinkError::Refused, out);
        }
    }

    pub(super) fn give_up_overfull(&mut self, now: Nanos, out: &mut Vec<Output>) {
        while let Some(peer) = self.peers.values().find(|peer| peer.is_overfull) {
            self.give_up(now, peer.node, LinkError::Exhausted, out);
        }
    }

    /// Is there no link to the node, which has not been given up?
    pub fn is_lost(&self, node: NodeId) -> bool {
        self.peers.get(&node).is_some_and(|peer| matches!(peer.link, Link::Lost { .. }))
    }

    /// From now on this node treats the other's endpoints as gone, and makes it do the same when it is
    /// back: whatever there was between the two is over.
    fn give_up(&mut self, now: Nanos, node: NodeId, reason: LinkError, out: &mut Vec<Output>) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.epoch += 1;
        if let Link::Up { link, .. } = peer.link {
            out.push(Output::DropLink { node, link, reason });
        }
        peer.link = Link::Down { since: now };
        self.end_session(now, node, out);
    }

    fn end_session(&mut self, now: Nanos, node: NodeId, out: &mut Vec<Output>) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.end_session(out);
        self.drop_incoming_of(node);
        self.end_awaits_of_node(node, out);
        for container in
            self.containers.values_mut().filter(|container| container.dc.nodes.contains(&node))
        {
            for binding in container.slots.iter_mut() {
                binding.reached.retain(|(reached, _)| *reached != node);
            }
            container.tell_all(Gone::Node(node), out);
        }
        self.directory_without(now, node, out);
    }

    fn remote_notify(
        &mut self,
        node: NodeId,
        dc: DcId,
        from: Endpoint,
        to: Endpoint,
        value: u64,
        out: &mut Vec<Output>,
    ) {
        if let Some(container) =
            self.containers.get_mut(&dc).filter(|container| container.dc.nodes.contains(&node))
        {
            container.notify(from, to, value, out);
        }
    }
}
