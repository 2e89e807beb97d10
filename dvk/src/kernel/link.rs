//! Another node: its link, the session that outlives links, and when it is given up.
//!
//! Both sides name a session by incarnation and epoch of both, taken from the two Hellos on a link, and neither ever
//! goes back to an earlier incarnation or epoch. So they agree whether the session goes on or a new one starts,
//! even if one of them has missed the end of the last: there it ends when the next link comes up.

use super::calls::Outgoing;
use super::{Kernel, LinkError, LinkId, NodeInfo, NodeState, Output};
use crate::frame::{Frame, Hello, Packet};
use crate::limits::{
    LINK_SILENCE, NODE_DOWN_AFTER, PING_EVERY, RECEIVED_BYTES, RECEIVED_FRAMES, UNRECEIVED_LIMIT,
    UNRECEIVED_MAX,
};
use crate::server::Nanos;
use bytes::Bytes;
use m3ipc::{DcId, Endpoint, NodeId};
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
    pub(super) outgoing: Outgoing,
    pub(super) calls_in: usize,
    pub(super) bytes_in: usize,
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
            outgoing: Outgoing::new(),
            calls_in: 0,
            bytes_in: 0,
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

    /// Sends a frame, now if there is a link. A sequenced one is kept until it is received; of the others,
    /// and to a node that is down, it is lost.
    fn send(&mut self, now: Nanos, frame: &Frame<'_>, out: &mut Vec<Output>) {
        if matches!(self.link, Link::Down { .. }) {
            return;
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
            out.push(Output::Send { node: self.node, link: *link, bytes });
            self.said = self.received;
            self.unsaid_bytes = 0;
        }
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
    /// Sends a frame to another node; what need not arrive only if there is room.
    pub(super) fn send(
        &mut self,
        now: Nanos,
        node: NodeId,
        frame: &Frame<'_>,
        out: &mut Vec<Output>,
    ) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if !matches!(frame, Frame::Notify { .. }) || peer.unreceived_bytes <= UNRECEIVED_MAX {
            peer.send(now, frame, out);
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
        match self.meet(sent, received) {
            Ok(is_over) if is_over => self.restart_session(received, out),
            Ok(_) => {}
            Err(reason) => {
                out.push(Output::DropLink { node, link, reason });
                if matches!(reason, LinkError::ReceivedTooMany { .. }) {
                    self.give_up(now, node, reason, out);
                }
                return;
            }
        }
        let Some(peer) = self.peers.get_mut(&node) else { return };
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
    fn restart_session(&mut self, received: &Hello, out: &mut Vec<Output>) {
        self.end_session(received.node, out);
        if let Some(peer) = self.peers.get_mut(&received.node) {
            peer.session =
                Some(Session { incarnation: received.incarnation, epoch: received.epoch });
        }
    }

    pub(super) fn link_down(&mut self, now: Nanos, node: NodeId, gone: LinkId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if let Link::Up { link, .. } = peer.link
            && link == gone
        {
            peer.link = Link::Lost { since: now };
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
            Frame::Ping { sent } => peer.send(now, &Frame::Pong { sent: *sent }, out),
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
        self.check_speaker(node, &packet.frame)?;
        match &packet.frame {
            Frame::Request(request) => self.request(now, node, request, out),
            Frame::Answer(answer) => self.answer(node, answer, out),
            Frame::Cancel { dc, to, id } => self.cancel(*dc, *to, *id, out),
            Frame::Gone { dc, to, gone } => self.remote_died(node, *dc, *to, *gone, out),
            Frame::Notify { dc, from, to, value } => {
                self.remote_notify(node, *dc, *from, *to, *value, out)
            }
            Frame::Await { dc, from, to, number, wish } => {
                self.remote_await(now, node, *dc, *from, *to, *number, *wish, out)
            }
            Frame::Awaited { number, outcome, .. } => self.awaited(node, *number, *outcome, out),
            Frame::Hello(_) | Frame::Ping { .. } | Frame::Pong { .. } | Frame::Received => {}
        }
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.say_received(now, out);
        }
        Ok(())
    }

    /// A node speaks for its own endpoints, and for the servers it has.
    fn check_speaker(&self, node: NodeId, frame: &Frame<'_>) -> Result<(), LinkError> {
        let (dc, speaker) = match frame {
            Frame::Request(request) => (request.dc, request.message.source),
            Frame::Answer(answer) => (answer.dc, answer.message.source),
            Frame::Cancel { dc, id, .. } => (*dc, id.source),
            Frame::Gone { dc, gone, .. } => (*dc, *gone),
            Frame::Notify { dc, from, .. }
            | Frame::Await { dc, from, .. }
            | Frame::Awaited { dc, from, .. } => (*dc, *from),
            Frame::Hello(_) | Frame::Ping { .. } | Frame::Pong { .. } | Frame::Received => {
                return Ok(());
            }
        };
        let is_theirs =
            speaker.node() == node || speaker.is_server() && self.serves(dc, speaker.slot, node);
        // A container that this node does not have (any more): nothing it says of it has an effect here.
        if is_theirs || !self.containers.contains_key(&dc) {
            Ok(())
        } else {
            Err(LinkError::Forged(speaker))
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
                    peer.link = Link::Lost { since: now };
                }
                Link::Up { spoke, .. } if spoke + PING_EVERY <= now => {
                    peer.send(now, &Frame::Ping { sent: now }, out)
                }
                Link::Lost { since } if since + NODE_DOWN_AFTER <= now => down.push(peer.node),
                _ => {}
            }
        }
        for node in down {
            self.give_up(now, node, LinkError::Silent, out);
        }
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
        self.end_session(node, out);
    }

    fn end_session(&mut self, node: NodeId, out: &mut Vec<Output>) {
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
            container.tell_all(node, out);
        }
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
            self.containers.get(&dc).filter(|container| container.dc.nodes.contains(&node))
        {
            container.notify(from, to, value, out);
        }
    }
}
