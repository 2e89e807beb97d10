//! Another node: its link, the session that outlives links, and when it is given up.
//!
//! Both sides name a session by incarnation and epoch of both, taken from the two Hellos on a link, and neither ever
//! goes back to an earlier incarnation or epoch. So they agree whether the session goes on or a new one starts,
//! even if one of them has missed the end of the last: there it ends when the next link comes up.

use super::calls::Outgoing;
use super::directory::Reply;
use super::{Kernel, LinkError, LinkId, NodeInfo, NodeState, Output, Steer};
use crate::frame::{Frame, Hello, Packet};
use crate::limits::{
    LINK_SILENCE, NODE_DOWN_AFTER, PING_EVERY, RECEIVED_BYTES, RECEIVED_FRAMES, UNRECEIVED_LIMIT,
    UNRECEIVED_MAX,
};
use crate::server::{Gone, Nanos};
use bytes::Bytes;
use m3ipc::{DcId, Endpoint, IpcError, NodeId};
use std::collections::VecDeque;

/// Another node.
#[derive(Debug)]
pub(super) struct Peer {
    node: NodeId,
    link: Link,
    /// How often it was given up.
    epoch: u64,
    session: Option<Session>,
    /// Sequenced frames of the session so far, and those that it may not have received, the last ones.
    sent: u64,
    unreceived: VecDeque<Bytes>,
    unreceived_bytes: usize,
    /// Sequenced frames received in the session; how many of them it has been told of; bytes of the rest.
    received: u64,
    said: u64,
    unsaid_bytes: usize,
    /// A limit is reached: it is given up at the end of the step.
    pub(super) is_overfull: bool,
    /// The administrator wants no link.
    pub(super) is_cut: bool,
    pub(super) outgoing: Outgoing,
    pub(super) calls_in: usize,
    pub(super) bytes_in: usize,
    /// Of kept frames of `outgoing`.
    pub(super) bytes_out: usize,
}

/// The other's half of the session's name; this node's half is its incarnation and `Peer::epoch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Session {
    incarnation: u64,
    epoch: u64,
}

#[derive(Clone, Copy, Debug)]
enum Link {
    Up { link: LinkId, since: Nanos, heard: Nanos, spoke: Nanos, round_trip: Option<Nanos> },
    Lost { since: Nanos },
    Down { since: Nanos },
}

impl Peer {
    pub(super) fn new(node: NodeId, now: Nanos) -> Peer {
        Peer {
            node,
            link: Link::Lost { since: now },
            epoch: 0,
            session: None,
            sent: 0,
            unreceived: VecDeque::new(),
            unreceived_bytes: 0,
            received: 0,
            said: 0,
            unsaid_bytes: 0,
            is_overfull: false,
            is_cut: false,
            outgoing: Outgoing::new(),
            calls_in: 0,
            bytes_in: 0,
            bytes_out: 0,
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
            calls_in: self.calls_in,
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
            received: self.received,
        }
    }

    pub(super) fn unreceived_bytes(&self) -> usize {
        self.unreceived_bytes
    }

    pub(super) fn deadline(&self) -> Option<Nanos> {
        match self.link {
            Link::Up { heard, spoke, .. } => Some((heard + LINK_SILENCE).min(spoke + PING_EVERY)),
            Link::Lost { since } => Some(since + NODE_DOWN_AFTER),
            Link::Down { .. } => None,
        }
    }

    fn lose_link(&mut self, now: Nanos, out: &mut Vec<Output>) {
        self.link = Link::Lost { since: now };
        self.end_cancelled(out);
    }

    /// Sends a frame, now if there is a link. A sequenced one is kept until it is received; of the others,
    /// and to a node that is down, it is lost.
    fn send(&mut self, now: Nanos, frame: &Frame<'_>, out: &mut Vec<Output>) -> Bytes {
        if matches!(self.link, Link::Down { .. }) {
            return Bytes::new();
        }
        let is_sequenced = frame.is_sequenced();
        self.sent += u64::from(is_sequenced);
        let sequence = if is_sequenced { self.sent } else { 0 };
        let bytes =
            Bytes::from(Packet { sequence, received: self.received, frame: *frame }.encode());
        if is_sequenced {
            self.unreceived_bytes += bytes.len();
            self.unreceived.push_back(bytes.clone());
            self.is_overfull |= self.unreceived_bytes > UNRECEIVED_LIMIT;
        }
        if let Link::Up { link, spoke, .. } = &mut self.link {
            *spoke = now;
            out.push(Output::Send { node: self.node, link: *link, bytes: bytes.clone() });
            self.said = self.received;
            self.unsaid_bytes = 0;
        }
        bytes
    }

    /// The other has received `count` frames of the session.
    fn forget_received(&mut self, count: u64) -> Result<(), LinkError> {
        if count > self.sent {
            return Err(LinkError::ReceivedTooMany { got: count, sent: self.sent });
        }
        while self.sent - (self.unreceived.len() as u64) < count {
            let Some(bytes) = self.unreceived.pop_front() else { break };
            self.unreceived_bytes -= bytes.len();
        }
        Ok(())
    }

    /// Says what has been received, if so much is unsaid that the other keeps too much for it.
    fn say_received(&mut self, now: Nanos, out: &mut Vec<Output>) {
        if self.received - self.said >= RECEIVED_FRAMES || self.unsaid_bytes >= RECEIVED_BYTES {
            self.send(now, &Frame::Received, out);
        }
    }

    /// A link with `theirs` comes up: starts the session that the Hellos name, or goes on with it where the other is.
    /// True if another session was there: it is over.
    fn start_or_go_on(&mut self, theirs: &Hello, incarnation: u64) -> Result<bool, LinkError> {
        let session = Session { incarnation: theirs.incarnation, epoch: theirs.epoch };
        let has_it = theirs.peer_incarnation == incarnation && theirs.peer_epoch == self.epoch;
        let received = if has_it { theirs.received } else { 0 };
        let confirmed = self.sent - self.unreceived.len() as u64;
        match self.session {
            Some(old) if old != session => Ok(true),
            // It has confirmed frames of the session that it says it never had: its Hello is older than that.
            Some(_) if !has_it && confirmed > 0 => Err(LinkError::Outdated),
            Some(_) => self.forget_received(received).map(|()| false),
            None if received > 0 => Err(LinkError::ReceivedTooMany { got: received, sent: 0 }),
            // What was to be sent before there was a session is its beginning.
            None => {
                self.session = Some(session);
                Ok(false)
            }
        }
    }

    /// Whatever there was with it is over.
    fn end_session(&mut self, out: &mut Vec<Output>) {
        self.session = None;
        self.sent = 0;
        self.unreceived.clear();
        self.unreceived_bytes = 0;
        self.received = 0;
        self.said = 0;
        self.unsaid_bytes = 0;
        self.is_overfull = false;
        self.end_all_outgoing(out);
    }
}

impl Kernel {
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
        peer.link = Link::Up { link, since: now, heard: now, spoke: now, round_trip: None };
        out.extend(peer.unreceived.iter().map(|bytes| Output::Send {
            node,
            link,
            bytes: bytes.clone(),
        }));
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
        packet: &Packet<'_>,
        out: &mut Vec<Output>,
    ) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        match &mut peer.link {
            Link::Up { link, heard, .. } if *link == from => *heard = now,
            _ => return,
        }
        let result = peer.forget_received(packet.received).and_then(|()| {
            if packet.frame.is_sequenced() {
                self.sequenced(now, node, packet, out)
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

    /// Takes each frame of the session once, in order.
    fn sequenced(
        &mut self,
        now: Nanos,
        node: NodeId,
        packet: &Packet<'_>,
        out: &mut Vec<Output>,
    ) -> Result<(), LinkError> {
        let Some(peer) = self.peers.get_mut(&node) else { return Ok(()) };
        let expected = peer.received + 1;
        if packet.sequence < expected {
            return Ok(());
        }
        if packet.sequence > expected {
            return Err(LinkError::Gap { got: packet.sequence, expected });
        }
        peer.received = expected;
        peer.unsaid_bytes += packet.frame.payload_len();
        if self.check_speaker(node, &packet.frame)? {
            self.take_frame(now, node, &packet.frame, out);
        } else if let Frame::Request(request) = &packet.frame {
            self.refuse_request(now, node, request, out);
        }
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.say_received(now, out);
        }
        Ok(())
    }

    fn take_frame(&mut self, now: Nanos, node: NodeId, frame: &Frame<'_>, out: &mut Vec<Output>) {
        match frame {
            Frame::Request(request) => self.request(now, node, request, out),
            Frame::Answer(answer) => self.answer(node, answer, out),
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
            Frame::Entry { dc, endpoint, node: at, epoch, is_over } => {
                self.entry(now, node, *dc, *endpoint, *at, *epoch, *is_over, out);
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
    /// the frame is not believed.
    fn check_speaker(&self, node: NodeId, frame: &Frame<'_>) -> Result<bool, LinkError> {
        let (dc, speaker) = match frame {
            Frame::Request(request) => (request.dc, request.message.source),
            // Who makes a call knows where, and takes answers from nowhere else.
            Frame::Answer(answer) if answer.message.source.is_well_known() => return Ok(true),
            Frame::Answer(answer) => (answer.dc, answer.message.source),
            Frame::Cancel { dc, id, .. } => (*dc, id.source),
            Frame::Gone { dc, gone, .. } => (*dc, *gone),
            // What was pending where the endpoint was before.
            Frame::Notify { dc, to, .. } if self.came_from(*dc, to.slot, node) => return Ok(true),
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
            | Frame::Received => return Ok(true),
        };
        // A container that this node does not have (any more): nothing it says of it has an effect here.
        let Some(container) = self.containers.get(&dc) else { return Ok(true) };
        let moved = container.directory.place(speaker.slot);
        let is_theirs = match moved {
            Some(place) => place == node,
            None => {
                speaker.node() == node || speaker.is_server() && self.serves(dc, speaker.slot, node)
            }
        };
        let may_be_new = speaker.is_well_known() && container.dc.nodes.contains(&speaker.node());
        if is_theirs || may_be_new { Ok(is_theirs) } else { Err(LinkError::Forged(speaker)) }
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
                Link::Up { link, heard, .. } if heard + LINK_SILENCE <= now => {
                    out.push(Output::DropLink { node: peer.node, link, reason: LinkError::Silent });
                    peer.lose_link(now, out);
                }
                Link::Up { spoke, .. } if spoke + PING_EVERY <= now => {
                    peer.send(now, &Frame::Ping { sent: now }, out);
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
